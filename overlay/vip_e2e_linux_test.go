//go:build e2e

package overlay

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wherry.dev/spec"
)

const (
	vip   = "10.9.1.200"
	mine  = "10.9.1.201" // leads to the client itself
	empty = "10.9.1.202"
)

// tasks attaches tasks 10.9.1.2, .3 and so on that serve their names on port
// 80, and makes them ends of the network.
func (w *world) tasks(network int, names ...string) (paths []string) {
	w.t.Helper()
	for i, name := range names {
		s := sandbox(spec.TaskID(fmt.Sprintf("1-%d", 10+i)), "shop."+name+".1", fmt.Sprintf("1-1=10.9.1.%d/24", 2+i))
		w.nets[network].Tasks = append(w.nets[network].Tasks, spec.Endpoint{Task: s.Task, Name: s.Name, IP: s.Addresses[0].IP, MAC: s.Addresses[0].MAC})
		ns := w.attach(s)
		w.serve(ns, "tcp", "0.0.0.0:80", name)
		w.serve(ns, "udp", "0.0.0.0:80", name)
		paths = append(paths, ns)
	}
	return paths
}

func TestVIP(t *testing.T) { bothFamilies(t, testVIP) }

func testVIP(t *testing.T, six bool) {
	for _, nf := range []string{"0", "1"} {
		t.Run("bridge-nf-call-iptables="+nf, func(t *testing.T) {
			w := newWorld(t, nf)
			w.six = six
			a := w.network("1-1", "10.9.1.0/24", "10.9.1.1", false)
			w.set()
			one := w.tasks(a, "one", "two", "three", "four")[0]
			w.nets[a].VIPs = []spec.VIP{
				{Address: vip, Owner: "shop/web", Targets: []string{"10.9.1.2", "10.9.1.3", "10.9.1.4", "10.9.1.5"}},
				{Address: mine, Owner: "shop/me", Targets: []string{"10.9.1.2"}},
				{Address: empty, Owner: "shop/none"},
			}
			w.set()
			for _, proto := range []string{"tcp", "udp"} {
				seen := map[string]int{}
				for range 200 {
					answer, err := w.ask(one, proto, vip+":80")
					if err != nil {
						t.Fatalf("%s: %v", proto, err)
					}
					seen[answer]++
				}
				for _, name := range []string{"one", "two", "three", "four"} {
					if seen[w.say(name+" 10.9.1.2")] < 20 {
						t.Errorf("200 %s connections went to %v", proto, seen)
					}
				}
				w.want(one, proto, mine+":80", "one 10.9.1.2")
				start := time.Now()
				_, err := w.ask(one, proto, empty+":80")
				want := map[string]error{"tcp": syscall.ECONNREFUSED, "udp": syscall.EPERM}[proto]
				if took := time.Since(start); !errors.Is(err, want) || took > 500*time.Millisecond {
					t.Errorf("%s to an address without targets: %v after %v, want %v", proto, err, took, want)
				}
			}
			// nft(8) can read what is there.
			if out := w.inside(one, "nft list ruleset"); !strings.Contains(out, w.say(vip)) {
				t.Errorf("nft lists:\n%s", out)
			}
			// A new task has the addresses when Attach returns.
			five := w.attach(sandbox("1-20", "shop.five.1", "1-1=10.9.1.20/24"))
			w.want(five, "tcp", mine+":80", "one 10.9.1.20")
		})
	}
}

// Targets come and go, between one and many, under a stream of new
// connections. None is lost. Flows of UDP are forgotten when their target goes,
// so an answer that is on its way at that moment does not arrive; who asks
// again gets one.
func TestVIPExchange(t *testing.T) {
	w := newWorld(t, "")
	a := w.network("1-1", "10.9.1.0/24", "10.9.1.1", false)
	w.set()
	one := w.tasks(a, "one", "two", "three")[0]
	sets := [][]string{{"10.9.1.3"}, {"10.9.1.4"}, {"10.9.1.3", "10.9.1.4"}, {"10.9.1.4"}, {"10.9.1.2", "10.9.1.3", "10.9.1.4"}}
	change := func(i int) {
		w.nets[a].VIPs = []spec.VIP{{Address: vip, Owner: "shop/web", Targets: sets[i%len(sets)]}}
		w.set()
	}
	change(0)
	var stop atomic.Bool
	var flows [2]int
	again := 0
	var wg sync.WaitGroup
	for i, proto := range []string{"tcp", "udp"} {
		wg.Go(func() {
			err := at(one, func() error {
				for !stop.Load() {
					c, err := net.DialTimeout(proto+"4", vip+":80", time.Second)
					if err != nil {
						return err
					}
					if proto == "udp" {
						for range 3 {
							c.SetDeadline(time.Now().Add(100 * time.Millisecond))
							c.Write([]byte("?"))
							if _, err = c.Read(make([]byte, 100)); err == nil {
								break
							}
							again++
						}
					} else {
						_, err = exchange(c)
					}
					c.Close()
					if err != nil {
						return err
					}
					flows[i]++
				}
				return nil
			})
			if err != nil {
				t.Errorf("%s: %v", proto, err)
			}
		})
	}
	const changes = 50
	for i := range changes {
		change(i)
	}
	stop.Store(true)
	wg.Wait()
	t.Logf("%d exchanges during %d TCP and %d UDP flows, of which %d were asked again", changes, flows[0], flows[1], again)
}

// echo answers every line of every connection with its name.
func (w *world) echo(ns, addr, name string) {
	w.t.Helper()
	addr = w.say(addr)
	err := at(ns, func() error {
		l, err := net.Listen(with("tcp", addr), addr)
		if err != nil {
			return err
		}
		w.t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					b := make([]byte, 10)
					for {
						if _, err := c.Read(b); err != nil {
							return
						}
						fmt.Fprint(c, name)
					}
				}()
			}
		}()
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

func TestVIPFlows(t *testing.T) {
	for _, scan := range []bool{false, true} {
		t.Run(fmt.Sprintf("scan=%v", scan), func(t *testing.T) {
			bothFamilies(t, func(t *testing.T, six bool) { testVIPFlows(t, scan, six) })
		})
	}
}

func testVIPFlows(t *testing.T, scan, six bool) {
	w := newWorld(t, "")
	w.six = six
	a := w.network("1-1", "10.9.1.0/24", "10.9.1.1", false)
	w.set()
	w.host.kernel.(*linuxKernel).scan = scan
	ns := w.tasks(a, "one", "two", "three")
	one := ns[0]
	w.echo(ns[1], "0.0.0.0:81", "two")
	w.echo(ns[2], "0.0.0.0:81", "three")
	targets := func(ends ...string) {
		w.nets[a].VIPs = []spec.VIP{{Address: vip, Owner: "shop/web", Targets: ends}}
		w.nets[a].Ports = []spec.PublishedPort{{Port: 8081, Protocol: "tcp", Owner: "shop/web"}}
		for _, e := range ends {
			w.nets[a].Ports[0].Targets = append(w.nets[a].Ports[0].Targets, e+":81")
		}
		w.set()
	}
	targets("10.9.1.3")
	dial := func(ns, proto, addr string) net.Conn {
		var c net.Conn
		if err := at(ns, func() (err error) { c, err = net.Dial(with(proto, w.say(addr)), w.say(addr)); return err }); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	tcp, udp, port := dial(one, "tcp", vip+":81"), dial(one, "udp", vip+":80"), dial(w.client(), "tcp", hostIP+":8081")
	direct := dial(one, "tcp", "10.9.1.3:81")
	say := func(c net.Conn) (string, error) {
		c.SetDeadline(time.Now().Add(2 * time.Second))
		if _, err := c.Write([]byte("?")); err != nil {
			return "", err
		}
		b := make([]byte, 100)
		n, err := c.Read(b)
		return string(b[:n]), err
	}
	answer := func(c net.Conn, want string) {
		t.Helper()
		if got, err := say(c); err != nil || !strings.HasPrefix(got, want) {
			t.Errorf("answer %q, %v; want %q", got, err, want)
		}
	}
	for _, c := range []net.Conn{tcp, udp, port, direct} {
		answer(c, "two")
	}
	// It drains: what is established stays, datagrams go elsewhere.
	targets("10.9.1.4")
	answer(tcp, "two")
	answer(port, "two")
	answer(udp, "three")
	answer(dial(one, "tcp", vip+":81"), "three")
	// It is gone, though nobody told the client: it hears so at once.
	w.nets[a].Tasks = slices.DeleteFunc(w.nets[a].Tasks, func(e spec.Endpoint) bool { return e.Name == "shop.two.1" })
	w.set()
	for _, c := range []net.Conn{tcp, port} {
		if got, err := say(c); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) && !errors.Is(err, io.EOF) {
			t.Errorf("a connection to a dead end: %q, %v; want a reset", got, err)
		}
	}
	// A UDP flow to an address that loses its last target fails, and goes on
	// with the next one.
	targets()
	if got, err := say(udp); !errors.Is(err, syscall.EPERM) {
		t.Errorf("without a target: %q, %v", got, err)
	}
	targets("10.9.1.4")
	answer(udp, "three")
}

// A connection that came by another host is answered there, although the
// default route leads to the own one. The other host is a namespace on the
// task's bridge with the same gateway address, as the tunnel would show it.
func TestReturnToEntryHost(t *testing.T) { bothFamilies(t, testReturnToEntryHost) }

func testReturnToEntryHost(t *testing.T, six bool) {
	for _, nf := range []string{"0", "1"} {
		t.Run("bridge-nf-call-iptables="+nf, func(t *testing.T) {
			w := newWorld(t, nf)
			w.six = six
			a := w.network("1-1", "10.9.1.0/24", "10.9.1.1", false)
			w.network("1-2", "10.9.2.0/24", "10.9.2.1", true)
			w.set()
			// The default route is on its second interface.
			one := w.attach(sandbox("1-10", "shop.web.1", "1-2=10.9.2.2/24", "1-1=10.9.1.2/24"))
			w.serve(one, "tcp", "0.0.0.0:80", "one")
			w.serve(one, "udp", "10.9.1.2:80", "one")
			w.serve(w.client(), "tcp", "0.0.0.0:80", "client")

			other := w.otherHost(8, "192.0.2.9")
			check := func() error {
				for _, from := range []string{"192.0.2.9", "10.9.1.1"} {
					for _, proto := range []string{"tcp", "udp"} {
						var answer string
						err := at(other, func() error {
							d := net.Dialer{Timeout: 500 * time.Millisecond, LocalAddr: &net.TCPAddr{IP: net.ParseIP(w.say(from))}}
							if proto == "udp" {
								d.LocalAddr = &net.UDPAddr{IP: net.ParseIP(w.say(from))}
							}
							c, err := d.Dial(with(proto, w.say("10.9.1.2:80")), w.say("10.9.1.2:80"))
							if err != nil {
								return err
							}
							defer c.Close()
							answer, err = exchange(c)
							return err
						})
						if err != nil || answer != w.say("one "+from) {
							return fmt.Errorf("%s from %s by the other host: %q, %v", proto, from, answer, err)
						}
					}
				}
				return nil
			}
			if err := check(); err != nil {
				t.Error(err)
			}
			// The own host, and the way out, are as ever.
			w.want("", "tcp", "10.9.1.2:80", "one 10.9.1.1")
			w.want(one, "tcp", clientIP+":80", "client "+hostIP)
			w.nets[a].Ports = []spec.PublishedPort{{Port: 8080, Protocol: "tcp", Owner: "shop/web", Targets: []string{"10.9.1.2:80"}}}
			w.set()
			w.want(w.client(), "tcp", hostIP+":8080", "one "+clientIP)

			// Without the rules it does not work, and they come back.
			w.inside(one, "nft flush ruleset")
			w.eventually("it works again", check)
		})
	}
}

// A client may use one port for connections by two hosts: they end at the same
// task, with the same address and port of the client.
func TestOneClientByTwoHosts(t *testing.T) { bothFamilies(t, testOneClientByTwoHosts) }

func testOneClientByTwoHosts(t *testing.T, six bool) {
	w := newWorld(t, "0")
	w.six = six
	a := w.network("1-1", "10.9.1.0/24", "10.9.1.1", false)
	w.set()
	one := w.attach(sandbox("1-10", "shop.web.1", "1-1=10.9.1.2/24"))
	w.echo(one, "0.0.0.0:81", "one")
	w.nets[a].Ports = []spec.PublishedPort{{Port: 8081, Protocol: "tcp", Owner: "shop/web", Targets: []string{"10.9.1.2:81"}}}
	w.set()
	other := w.otherHost(8, clientIP)
	const port = 41000
	dial := func(ns, to string) net.Conn {
		var c net.Conn
		err := at(ns, func() (err error) {
			d := net.Dialer{Timeout: 3 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(w.say(clientIP)), Port: port}}
			c, err = d.Dial(with("tcp", w.say(to)), w.say(to))
			return err
		})
		if err != nil {
			t.Fatalf("%s: %v", to, err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	conns := []net.Conn{dial(other, "10.9.1.2:81"), dial(w.client(), hostIP+":8081")}
	for range 3 {
		for i, c := range conns {
			c.SetDeadline(time.Now().Add(2 * time.Second))
			if _, err := c.Write([]byte("?")); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 100)
			n, err := c.Read(b)
			if got := string(b[:n]); err != nil || !strings.HasPrefix(got, "one") {
				t.Errorf("connection %d: %q, %v", i, got, err)
			}
		}
	}
}

// otherHost makes another host of network 1-1, a namespace on the bridge with the
// same gateway address, as the tunnel would show it. It knows the task 10.9.1.2
// and has an address of a client.
func (w *world) otherHost(number uint32, client string) string {
	t := w.t
	id := spec.TaskID(fmt.Sprint("host", number))
	other, err := w.others.make(spec.Sandbox{Task: id})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.others.remove(id) })
	sh(t, "ip link add other0 type veth peer name br0 address "+hostMAC(number)+" netns "+other+"; ip link set other0 addrgenmode none master wbr-1-1 up")
	t.Cleanup(func() { sh(t, "ip link del other0 2>/dev/null; true") })
	w.inside(other, "echo 8 > /proc/sys/net/ipv4/conf/all/arp_ignore; ip link set lo up; ip addr add "+client+"/32 dev lo; ip addr add 10.9.1.1/24 dev br0; ip link set br0 up; ip neigh add 10.9.1.2 lladdr 02:58:0a:09:01:02 dev br0 nud permanent")
	sh(t, "bridge link set dev other0 mcast_flood off") // it would answer for the gateway's IPv6 address
	w.inside(other, "ip link set br0 addrgenmode none; ip addr add "+like(netip.MustParseAddr(client)).String()+"/128 dev lo; ip addr add fd00:9:1::1/64 dev br0 nodad; ip neigh add fd00:9:1::2 lladdr 02:58:0a:09:01:02 dev br0 nud permanent")
	// To ask for a link makes the kernel notice its carrier; until then it sends nothing.
	w.eventually("the other host is linked", func() error {
		if got := w.inside(other, "ip link show br0") + sh(t, "ip link show wbr-1-1; bridge link show dev other0"); strings.Count(got, "state UP") < 2 || !strings.Contains(got, "forwarding") {
			return errors.New(got)
		}
		return nil
	})
	return other
}

// Nothing announces damage inside a namespace: the regular pass finds it.
func TestRepairInside(t *testing.T) { bothFamilies(t, testRepairInside) }

func testRepairInside(t *testing.T, six bool) {
	w := newWorld(t, "")
	w.six = six
	damages := strings.NewReplacer()
	if six {
		w.stop()
		w.resync = 300 * time.Millisecond // as long as it is shows the other run
		w.start()
		damages = strings.NewReplacer("vip1 ", "vip6_1 ", "vips ", "vips6 ", "wherry vip\n", "wherry vip6\n", "left ", "left6 ", "ip route", "ip -6 route")
	}
	a := w.network("1-1", "10.9.1.0/24", "10.9.1.1", false)
	w.set()
	one := w.tasks(a, "one", "two")[0]
	w.nets[a].VIPs = []spec.VIP{{Address: vip, Owner: "shop/web", Targets: []string{"10.9.1.3"}}, {Address: empty, Owner: "shop/none"}}
	w.set()
	w.host.converge(true)
	good := w.stateText()
	for _, damage := range []string{
		"nft flush ruleset",
		"nft delete table netdev wherry",
		"nft delete element inet wherry vip1 { " + vip + " . 0 }",
		"nft add element inet wherry vips { 10.9.1.99 }",
		"nft flush chain inet wherry vip",
		"nft add rule inet wherry left accept",
		"nft add chain inet wherry stranger",
		"ip route del default",
	} {
		damage = w.say(strings.TrimSpace(damages.Replace(damage + "\n")))
		w.inside(one, damage)
		if w.stateText() == good {
			t.Fatalf("%s: no damage", damage)
		}
		w.eventually("repaired after "+damage, func() error {
			if diff := cmp.Diff(good, w.stateText()); diff != "" {
				return errors.New(diff)
			}
			return nil
		})
		w.want(one, "tcp", vip+":80", "two 10.9.1.2")
	}
	// What the task adds is its own.
	w.inside(one, "nft add table inet own; nft add chain inet own c")
	w.host.converge(true)
	if out := w.inside(one, "nft list tables"); !strings.Contains(out, "inet own") {
		t.Errorf("tables: %s", out)
	}
	if six { // A privileged task may do without IPv6: that is no trouble of the host's.
		w.inside(one, "echo 1 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6")
		w.host.converge(true)
		if errs := w.host.Status().Errors; len(errs) > 0 || w.stateText() == good {
			t.Errorf("a task without IPv6: %q", errs)
		}
		w.inside(one, "echo 0 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6")
		w.eventually("it has IPv6 again", func() error {
			if diff := cmp.Diff(good, w.stateText()); diff != "" {
				return errors.New(diff)
			}
			return nil
		})
	}
	// A link that is taken away comes back with its tables.
	sh(t, "ip link del w1-10-0")
	w.eventually("the link is back", func() error {
		if diff := cmp.Diff(good, w.stateText()); diff != "" {
			return errors.New(diff)
		}
		return nil
	})
	w.want(one, "tcp", vip+":80", "two 10.9.1.2")
}

// The budget of a task's network is 5 ms with two services.
func TestVIPLatency(t *testing.T) { bothFamilies(t, testVIPLatency) }

func testVIPLatency(t *testing.T, six bool) {
	w := newWorld(t, "")
	w.six = six
	a := w.network("1-1", "10.9.1.0/24", "10.9.1.1", false)
	targets := func(ends ...string) {
		w.nets[a].VIPs = []spec.VIP{{Address: "10.9.1.200", Owner: "shop/web", Targets: ends}, {Address: "10.9.1.201", Owner: "shop/db", Targets: ends}}
		w.set()
	}
	targets("10.9.1.10", "10.9.1.11", "10.9.1.12", "10.9.1.13")
	const n = 100
	var times []time.Duration
	for i := range n {
		s := sandbox(spec.TaskID(fmt.Sprintf("1-%d", 100+i)), "shop.web.1", fmt.Sprintf("1-1=10.9.1.%d/24", 10+i))
		start := time.Now()
		w.attach(s)
		times = append(times, time.Since(start))
	}
	slices.Sort(times)
	t.Logf("attach with 2 services of 4 targets: fastest %v, median %v, p95 %v", times[0], times[n/2], times[n*95/100])
	for _, full := range []bool{true, true, false} {
		start := time.Now()
		w.host.converge(full)
		t.Logf("a pass over %d tasks, looking inside %v: %v", n, full, time.Since(start))
	}
	for _, scan := range []bool{false, true} {
		w.host.kernel.(*linuxKernel).scan = scan
		start := time.Now()
		targets("10.9.1.10", "10.9.1.11", "10.9.1.12")
		t.Logf("a target of 2 services less in %d tasks, reading all connections %v: %v", n, scan, time.Since(start))
		start = time.Now()
		targets("10.9.1.10", "10.9.1.11", "10.9.1.12", "10.9.1.13")
		t.Logf("a target of 2 services more in %d tasks: %v", n, time.Since(start))
	}
}
