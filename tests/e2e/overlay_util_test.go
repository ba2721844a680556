//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"wherry.dev/api"
	"wherry.dev/spec"
	"wherry.dev/tests/lab"
)

// link is a cluster of n managers whose first has both images.
func link(t *testing.T, n int) *lab.Cluster {
	t.Helper()
	c := grow(t, n, 0)
	c.Hosts[0].Must("image", "load", "../../build/images/serve.tar")
	return c
}

// apply applies a stack and waits for it.
func apply(t *testing.T, c *lab.Cluster, file string) {
	t.Helper()
	c.Leader().Must("apply", "-f", file, "--timeout", "90s")
}

// address of a task, without its prefix length.
func address(t *testing.T, ti api.TaskInfo) string {
	t.Helper()
	if len(ti.Addresses) == 0 {
		t.Fatalf("%s has no address", ti.Name)
	}
	return strings.Split(ti.Addresses[0], "/")[0]
}

// space is where a task's sockets are.
func space(c *lab.Cluster, ti api.TaskInfo) lab.Space {
	return c.Host(ti.Node).TaskSpace(ti.Name, string(ti.ID))
}

// members are the running tasks of services, by name. Each looks up the names
// of all of the first service's.
func members(t *testing.T, c *lab.Cluster, refs ...string) []lab.Member {
	t.Helper()
	var out []lab.Member
	var answers []string
	var lookup string
	for i, ref := range refs {
		for _, ti := range tasks(t, c.Leader(), ref) {
			if ti.State != spec.TaskRunning {
				continue
			}
			if i == 0 {
				answers = append(answers, address(t, ti))
				_, service, _ := strings.Cut(ref, "/")
				lookup = "tasks." + service
			}
			out = append(out, lab.Member{Space: space(c, ti), IP: address(t, ti)})
		}
	}
	for i := range out {
		out[i].Asks, out[i].Answers = lookup, answers
	}
	slices.SortFunc(out, func(a, b lab.Member) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// quiet starts traffic between members of which nothing is lost for a time
// without any fault. When something is, the load is too high for the machine,
// and is halved.
func quiet(t *testing.T, d time.Duration, who func() []lab.Member) (*lab.Mesh, lab.Load) {
	t.Helper()
	load := lab.Load{Packets: 200, Conns: 20, Lookups: 20}
	var last error
	for ; load.Packets >= 25; load = (lab.Load{Packets: load.Packets / 2, Conns: load.Conns / 2, Lookups: load.Lookups / 2}) {
		m := lab.NewMesh(t, who(), load)
		time.Sleep(d) // the traffic is the experiment
		r := m.Report()
		if last = r.Err(); last == nil {
			last = r.Complete(load, m.Pairs(), 40)
		}
		if last == nil && r.Again > 0 {
			last = errors.New(r.String())
		}
		if last == nil {
			t.Logf("figure control run, %d ordered pairs, each %+v: %s", m.Pairs(), load, r)
			return m, load
		}
		m.Stop()
		t.Logf("with %+v: %v", load, last)
	}
	t.Fatalf("something is lost without any fault: %v", last)
	return nil, load
}

// unhurt fails the test when anything was lost since the last report.
func unhurt(t *testing.T, m *lab.Mesh, load lab.Load, what string, again bool) {
	t.Helper()
	r := m.Report()
	if err := r.Err(); err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	if r.Again > 0 && !again {
		t.Errorf("%s: lookups had to ask twice: %s", what, r)
	}
	if err := r.Complete(load, m.Pairs(), 20); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	t.Logf("%s: %s", what, r)
}

// allPairs is nil when each member has an answer from each other one, to a
// packet and in a new connection. Both have a second.
func allPairs(members []lab.Member) error {
	const port = "7009"
	var open []io.Closer
	defer func() {
		for _, c := range open {
			_ = c.Close() // nothing is under way
		}
	}()
	for _, m := range members {
		l, err := m.Listen("tcp4", ":"+port)
		if err != nil {
			return fmt.Errorf("%s: %w", m.Name, err)
		}
		p, err := m.ListenPacket("udp4", ":"+port)
		if err != nil {
			return errors.Join(fmt.Errorf("%s: %w", m.Name, err), l.Close())
		}
		open = append(open, l, p)
		go func() {
			for b := make([]byte, 64); ; {
				n, from, err := p.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = p.WriteTo(b[:n], from) // the asker sees what is missing
			}
		}()
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
			}
		}()
	}
	var mu sync.Mutex
	var errs []error
	var wg sync.WaitGroup
	for i, a := range members {
		for j, b := range members {
			if i == j {
				continue
			}
			for _, network := range []string{"tcp4", "udp4"} {
				wg.Go(func() {
					if err := ask(a.Space, network, net.JoinHostPort(b.IP, port), a.Name, time.Second); err != nil {
						mu.Lock()
						defer mu.Unlock()
						errs = append(errs, fmt.Errorf("%s %s → %s: %w", network, a.Name, b.Name, err))
					}
				})
			}
		}
	}
	wg.Wait()
	return errors.Join(errs...)
}

// ask sends words and wants them back.
func ask(from lab.Space, network, to, words string, d time.Duration) error {
	c, err := from.Dial(network, to, d)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(d)) // a socket that is closed fails below
	if _, err := io.WriteString(c, words); err != nil {
		return err
	}
	b := make([]byte, len(words))
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if string(b) != words {
		return fmt.Errorf("%q comes back of %q", b, words)
	}
	return nil
}

// reply is what serve says: who it is, who asks, and whether the connection
// came when it had been told to end.
type reply struct {
	server, client string
	late           bool
	version        string
	last           bool // no further question on this connection
}

// question is one request on a connection that may have had others.
func question(c net.Conn, r *bufio.Reader, path string, last bool) (reply, error) {
	_ = c.SetDeadline(time.Now().Add(30 * time.Second)) // a socket that is closed fails below
	closing := ""
	if last {
		closing = "Connection: close\r\n"
	}
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: test\r\n%s\r\n", path, closing); err != nil {
		return reply{}, fmt.Errorf("send question: %w", err)
	}
	res, err := http.ReadResponse(r, nil)
	if err != nil {
		return reply{}, fmt.Errorf("read answer: %w", err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return reply{}, fmt.Errorf("read answer: %w", err)
	}
	f := strings.Fields(string(body))
	if res.StatusCode != http.StatusOK || len(f) < 3 {
		return reply{}, fmt.Errorf("%s: %q", res.Status, body)
	}
	host, _, err := net.SplitHostPort(f[1])
	if err != nil {
		return reply{}, err
	}
	out := reply{server: f[0], client: host, late: f[2] == "late", last: res.Close}
	if len(f) > 3 {
		out.version = f[3]
	}
	return out, nil
}

// consult asks serve once, on a connection of its own.
func consult(from lab.Space, to string) (reply, error) {
	c, err := from.Dial("tcp4", to, 3*time.Second)
	if err != nil {
		return reply{}, err
	}
	defer c.Close()
	return question(c, bufio.NewReader(c), "/", true)
}

// knock sends a packet to serve and returns who answered and whom it saw.
func knock(from lab.Space, to string) (server, client string, err error) {
	c, err := from.Dial("udp4", to, time.Second)
	if err != nil {
		return "", "", err
	}
	defer c.Close()
	b := make([]byte, 1500)
	for range 3 { // the packet itself may be the one that makes an entry
		if _, err = c.Write([]byte("x")); err != nil {
			continue
		}
		_ = c.SetReadDeadline(time.Now().Add(time.Second)) // a socket that is closed fails below
		var n int
		if n, err = c.Read(b); err == nil {
			f := strings.Fields(string(b[:n]))
			host, _, serr := net.SplitHostPort(f[1])
			return f[0], host, serr
		}
	}
	return "", "", err
}

// vip is the address that a name has inside of a task.
func vip(t *testing.T, in lab.Space, name string) string {
	t.Helper()
	var out string
	lab.Eventually(t, soon, name+" has one address", func() error {
		answer, _, err := in.Lookup(lab.Resolver, name)
		if err == nil && len(answer) != 1 {
			err = fmt.Errorf("%s is %v", name, answer)
		}
		if err == nil {
			out = answer[0]
		}
		return err
	})
	return out
}

// outside is a space outside of the cluster, and its address.
func outside(c *lab.Cluster) (lab.Space, string) {
	const name, ip = "client", "10.123.0.200"
	return c.Space(name), ip
}

// until calls f until it is nil and returns how long it took; the moment from
// which is counted is before the call.
func until(ctx context.Context, d time.Duration, from time.Time, f func() error) (time.Duration, error) {
	for {
		err := f()
		took := time.Since(from)
		if err == nil {
			return took, nil
		}
		if took > d || ctx.Err() != nil {
			return took, fmt.Errorf("not after %s: %w", short(took), err)
		}
		pause(ctx, 10*time.Millisecond)
	}
}
