//go:build linux

package lab

import (
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"time"
)

// Cut drops all that one host sends to another; the way back stays.
func (l *Lab) Cut(from, to *Host) {
	l.t.Helper()
	l.cuts[[2]string{from.Name, to.Name}] = true
	l.rules()
}

// CutBoth drops everything between two hosts.
func (l *Lab) CutBoth(a, b *Host) {
	l.t.Helper()
	l.cuts[[2]string{a.Name, b.Name}] = true
	l.Cut(b, a)
}

// Isolate drops everything between a host and all others.
func (l *Lab) Isolate(h *Host) {
	l.t.Helper()
	for _, other := range l.hosts {
		if other != h {
			l.CutBoth(h, other)
		}
	}
}

// Loss drops a share of all frames at random, in percent.
func (l *Lab) Loss(percent int) {
	l.t.Helper()
	l.loss = percent
	l.rules()
}

// Heal takes back all cuts and the loss.
func (l *Lab) Heal() {
	l.t.Helper()
	if len(l.cuts) == 0 && l.loss == 0 {
		return
	}
	clear(l.cuts)
	l.loss = 0
	l.rules()
}

// MTU sets what the switch and all its cables carry, also those of hosts that
// are plugged in later. A daemon sees it at its next start.
func (l *Lab) MTU(bytes int) {
	l.t.Helper()
	l.mtu = bytes
	for _, name := range append(hostNames(l.hosts), "client") {
		if _, err := os.Stat(l.NSPath(name)); err == nil {
			l.cable(name)
		}
	}
}

// Narrow makes the switch carry less to and from a host than the host's own
// device takes, without a word to anybody; 0 is as much again. Some bytes more
// than that may still pass.
func (l *Lab) Narrow(h *Host, bytes int) {
	l.t.Helper()
	if bytes == 0 {
		bytes = max(l.mtu, 1500)
	}
	// A bridge follows the least of its ports, unless it is told.
	l.ip("-n", l.ns("sw"), "link", "set", port(h.Name), "mtu", fmt.Sprint(bytes))
	l.ip("-n", l.ns("sw"), "link", "set", "br0", "mtu", fmt.Sprint(max(l.mtu, 1500)))
}

// cable sets both ends of a host's cable to the lab's MTU. The bridge follows
// the least of its ports.
func (l *Lab) cable(name string) {
	l.t.Helper()
	if l.mtu > 0 {
		l.ip("-n", l.ns("sw"), "link", "set", port(name), "mtu", fmt.Sprint(l.mtu))
		l.inNS(name, "ip", "link", "set", "eth0", "mtu", fmt.Sprint(l.mtu))
	}
}

// rules sets the switch to what is cut and lost, in one transaction.
func (l *Lab) rules() {
	l.t.Helper()
	var b strings.Builder
	b.WriteString("add table bridge lab\ndelete table bridge lab\ntable bridge lab {\n\tchain forward {\n\t\ttype filter hook forward priority 0;\n")
	switch {
	case l.loss >= 100:
		b.WriteString("\t\tdrop\n")
	case l.loss > 0:
		fmt.Fprintf(&b, "\t\tnumgen random mod 100 < %d drop\n", l.loss)
	}
	cuts := slices.SortedFunc(maps.Keys(l.cuts), func(a, b [2]string) int { return slices.Compare(a[:], b[:]) })
	for _, c := range cuts {
		fmt.Fprintf(&b, "\t\tiifname %q oifname %q drop\n", port(c[0]), port(c[1]))
	}
	b.WriteString("\t}\n}\n")
	c := exec.Command("nsenter", "--net="+l.NSPath("sw"), "--", "nft", "-f", "-")
	c.Stdin = strings.NewReader(b.String())
	if out, err := c.CombinedOutput(); err != nil {
		l.t.Fatalf("set the switch: %v: %s\n%s", err, out, b.String())
	}
}

// Reach says what of one host arrives at another.
type Reach struct {
	From, To string
	TCP      bool // a connection is made, which needs both ways
	UDP      bool // a packet arrives, one way
}

// Probe tries all ordered pairs of hosts that have power.
func (l *Lab) Probe() []Reach {
	l.t.Helper()
	const port = "9"
	const wait = 500 * time.Millisecond
	var on []*Host
	for _, h := range l.hosts {
		if !h.off {
			on = append(on, h)
		}
	}
	var mu sync.Mutex
	heard := map[[2]string]bool{} // from, to
	names := map[string]string{}
	var open []interface{ Close() error }
	defer func() {
		for _, o := range open {
			_ = o.Close() // nothing was written to them
		}
	}()
	for _, h := range on {
		names[h.IP] = h.Name
	}
	for _, h := range on {
		l.within(h.Name, func() error {
			tcp, err := net.Listen("tcp4", net.JoinHostPort(h.IP, port))
			if err != nil {
				return err
			}
			udp, err := net.ListenPacket("udp4", net.JoinHostPort(h.IP, port))
			open = append(open, tcp, udp)
			go func() {
				for b := make([]byte, 1); ; {
					_, from, err := udp.ReadFrom(b)
					if err != nil {
						return
					}
					mu.Lock()
					heard[[2]string{names[from.(*net.UDPAddr).IP.String()], h.Name}] = true
					mu.Unlock()
				}
			}()
			return err
		})
	}
	var out []Reach
	var wg sync.WaitGroup
	for _, a := range on {
		for _, b := range on {
			if a == b {
				continue
			}
			r := Reach{From: a.Name, To: b.Name}
			wg.Go(func() {
				l.within(a.Name, func() error {
					if c, err := net.DialTimeout("tcp4", net.JoinHostPort(b.IP, port), wait); err == nil {
						r.TCP = c.Close() == nil
					}
					return nil
				})
				mu.Lock()
				defer mu.Unlock()
				out = append(out, r)
			})
			// A neighbour's address is asked for by a broadcast, whose answer a
			// cut may swallow; what counts is whether the packet itself passes.
			wg.Go(func() {
				l.within(a.Name, func() error {
					c, err := net.Dial("udp4", net.JoinHostPort(b.IP, port))
					if err != nil {
						return nil
					}
					defer c.Close()
					for deadline := time.Now().Add(wait); time.Now().Before(deadline); {
						_, _ = c.Write([]byte{1}) // refused is as good as not arrived
						time.Sleep(50 * time.Millisecond)
					}
					return nil
				})
			})
		}
	}
	wg.Wait()
	for i, r := range out {
		out[i].UDP = heard[[2]string{r.From, r.To}]
	}
	slices.SortFunc(out, func(a, b Reach) int {
		return slices.Compare([]string{a.From, a.To}, []string{b.From, b.To})
	})
	return out
}

// within calls f on a thread in a namespace of the lab. The sockets that it
// opens stay there.
func (l *Lab) within(ns string, f func() error) {
	l.t.Helper()
	if err := l.Space(ns).Do(f); err != nil {
		l.t.Errorf("in %s: %v", ns, err)
	}
}
