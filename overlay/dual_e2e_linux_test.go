//go:build e2e

package overlay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

// advertise says once, on a link of a namespace, that it leads to a router.
func advertise(t *testing.T, ns, link string) {
	t.Helper()
	err := at(ns, func() error {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		dev, err := net.InterfaceByName(link)
		if err != nil {
			return err
		}
		m := make([]byte, 16)
		m[0], m[4] = 134, 64
		binary.BigEndian.PutUint16(m[6:], 1800)
		return errors.Join(
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255), // nobody believes another
			unix.Sendto(fd, m, 0, &unix.SockaddrInet6{Addr: [16]byte{0: 0xff, 1: 2, 15: 1}, ZoneId: uint32(dev.Index)}))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// A host that forwards for its networks goes on to hear of its own router, and
// of nobody else: neither it nor a task believes a task that says it is one.
func TestRouterAdvertisements(t *testing.T) {
	for _, allLinks := range []bool{false, true} {
		t.Run(fmt.Sprintf("all links=%v", allLinks), func(t *testing.T) {
			w := newWorld(t, "")
			w.six = true
			t.Cleanup(func() {
				sh(t, "echo 0 > /proc/sys/net/ipv6/conf/all/forwarding; echo 1 > /proc/sys/net/ipv6/conf/default/accept_ra")
			})
			w.eventually("the host has opened the kernel", func() error {
				w.host.mu.Lock()
				defer w.host.mu.Unlock()
				k, ok := w.host.kernel.(*linuxKernel)
				if !ok {
					return errors.New("not yet")
				}
				k.allLinks = allLinks
				return nil
			})
			routes := func() string { return sh(t, "ip -6 route show proto ra") }
			heard := func(what string) {
				t.Helper()
				w.eventually(what, func() error {
					if got := routes(); !strings.Contains(got, "default via fe80::2 dev up0") {
						return errors.New(got)
					}
					return nil
				})
			}
			advertise(t, w.client(), "out0")
			heard("the host hears its router")

			w.network("1-1", "10.9.1.0/24", "10.9.1.1", false)
			w.network("1-2", "10.9.2.0/24", "10.9.2.1", true)
			w.set()
			one := w.attach(sandbox("1-10", "shop.web.1", "1-1=10.9.1.2/24"))
			two := w.attach(sandbox("1-11", "shop.web.2", "1-1=10.9.1.3/24"))
			w.serve(w.client(), "tcp", "0.0.0.0:80", "client")
			w.eventually("a task gets out", func() error {
				got, err := w.ask(one, "tcp", clientIP+":80")
				if err == nil && got != w.say("client "+hostIP) {
					err = errors.New(got)
				}
				return err
			})
			heard("the route is still there")
			sh(t, "ip -6 route flush proto ra")
			advertise(t, w.client(), "out0")
			heard("the host still listens")

			settings := strings.Fields(sh(t, "cd /proc/sys/net/ipv6/conf; cat all/forwarding up0/accept_ra default/accept_ra wbr-1-1/accept_ra"))
			want := []string{"0", "1", "1", "0"}
			if allLinks {
				want = []string{"1", "2", "2", "0"}
			}
			if !slices.Equal(settings, want) {
				t.Errorf("settings %q, want %q", settings, want)
			}
			if !allLinks {
				if got := strings.Fields(sh(t, "cd /proc/sys/net/ipv6/conf; cat up0/force_forwarding wbr-1-1/force_forwarding wbr-1-2/force_forwarding default/force_forwarding")); !slices.Equal(got, []string{"1", "1", "0", "0"}) {
					t.Errorf("forwarding by single links: %q", got)
				}
			}

			advertise(t, one, "eth0")
			w.want(one, "tcp", clientIP+":80", "client "+hostIP) // behind it
			if got := routes() + w.inside(two, "ip -6 route show proto ra"); strings.Contains(got, "wbr-") || strings.Contains(got, "eth0") {
				t.Errorf("a task was believed:\n%s", got)
			}
			w.host.converge(true)
			w.ops.take()
			w.host.converge(true)
			if ops := w.ops.take(); len(ops) > 0 {
				t.Errorf("still %q", ops)
			}
		})
	}
}

// Each family of a port is claimed by itself, and who holds it is named.
func TestPortConflict6(t *testing.T) {
	w := newWorld(t, "")
	hold := func(network, addr string) {
		l, err := net.Listen(network, addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
	}
	hold("tcp6", "[::]:8080") // without IPv4, as Go makes it
	hold("tcp4", "0.0.0.0:8081")
	hold("tcp", ":8082")
	hold("tcp6", "[::]:8084")
	a := w.network("1-1", "10.9.1.0/24", "10.9.1.1", false)
	b := w.network("1-2", "10.9.2.0/24", "10.9.2.1", false)
	w.nets[a].Network.Subnet6, w.nets[a].Network.Gateway6 = "fd00:9:1::/64", "fd00:9:1::1"
	both := []string{"10.9.1.2:80", "[fd00:9:1::2]:80"}
	for i := range 4 {
		w.nets[a].Ports = append(w.nets[a].Ports, spec.PublishedPort{Port: uint16(8080 + i), Protocol: "tcp", Owner: "shop/web", Targets: both})
	}
	w.nets[a].Ports = append(w.nets[a].Ports,
		spec.PublishedPort{HostIP: hostIP6, Port: 8085, Protocol: "tcp", Owner: "shop/web", Targets: both},
		spec.PublishedPort{HostIP: "2001:db8::99", Port: 8086, Protocol: "tcp", Owner: "shop/web", Targets: both},
		spec.PublishedPort{HostIP: "::1", Port: 8087, Protocol: "tcp", Owner: "shop/web", Targets: both})
	w.nets[b].Ports = []spec.PublishedPort{{Port: 8084, Protocol: "tcp", Owner: "shop/db"}}
	w.set()
	box := sandbox("1-10", "shop.job.1", "1-1=10.9.1.2/24")
	box.Addresses[0].IP6 = "fd00:9:1::2/64"
	one := w.attach(box)
	for _, addr := range []string{"0.0.0.0:80", "[::]:80"} {
		w.serve(one, "tcp", addr, "one")
	}
	pid := fmt.Sprintf("(pid %d)", os.Getpid())
	want := []string{
		"tcp [::]:8080 " + pid, "tcp 0.0.0.0:8081 " + pid, "tcp 0.0.0.0:8082 " + pid, "tcp [::]:8082 " + pid,
		"tcp [2001:db8::99]:8086 the host has no such address", "tcp [::1]:8087 publish it on 127.0.0.1",
	}
	got := w.host.Status().Conflicts
	for i, c := range got {
		text := strings.TrimPrefix(c.Claim.String(), "claim ")
		if i >= len(want) || !strings.HasPrefix(want[i], text+" ") || !strings.Contains(c.Reason, strings.TrimPrefix(want[i], text+" ")) {
			t.Errorf("conflict %s: %s", text, c.Reason)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d conflicts, want %d", len(got), len(want))
	}
	for _, p := range w.host.Status().Ports {
		if served := p.Port == 8083 || p.Port == 8084 || p.Port == 8085; served != (p.Problem == "") {
			t.Errorf("port %+v", p)
		}
	}
	w.want(w.client(), "tcp", hostIP+":8080", "one "+clientIP)
	w.want(w.client(), "tcp", "["+hostIP6+"]:8081", "one "+clientIP6)
	w.want(w.client(), "tcp", hostIP+":8083", "one "+clientIP)
	w.want(w.client(), "tcp", "["+hostIP6+"]:8083", "one "+clientIP6)
	w.want(w.client(), "tcp", "["+hostIP6+"]:8085", "one "+clientIP6)
	w.refused(w.client(), "tcp", hostIP+":8085")
	// The same service cannot start a task here.
	_, err := w.host.Attach(context.Background(), sandbox("1-11", "shop.web.1", "1-1=10.9.1.3/24"))
	if err == nil || !strings.Contains(err.Error(), "port 8087/tcp cannot be published on ::1") {
		t.Errorf("attach: %v", err)
	}
	w.nets[a].Ports = w.nets[a].Ports[:1]
	w.set()
	_, err = w.host.Attach(context.Background(), sandbox("1-11", "shop.web.1", "1-1=10.9.1.3/24"))
	if spec.ErrorClass(err) != "conflict" || !strings.Contains(err.Error(), "port 8080/tcp on :: is in use on the host") {
		t.Errorf("attach: %v", err)
	}
}

// A network whose packets are too small for IPv6 goes on with IPv4 and says so,
// and has IPv6 again when they may be larger. Others are not concerned.
func TestTooSmallForIPv6(t *testing.T) {
	w := newWorld(t, "")
	w.six = true
	a := w.network("1-1", "10.9.1.0/24", "10.9.1.1", false)
	w.network("1-2", "10.9.2.0/24", "10.9.2.1", false)
	w.nets[a].Network.Spec.Driver = spec.DriverOverlay
	w.set()
	ns := w.tasks(a, "one", "two")
	for i, n := range ns {
		l := []string{"one", "two"}[i]
		w.six = false
		w.serve(n, "tcp", "0.0.0.0:80", l)
		w.six = true
	}
	w.nets[a].VIPs = []spec.VIP{{Address: vip, Owner: "shop/web", Targets: []string{"10.9.1.3"}}}
	w.set()
	check := func() error {
		for _, addr := range []string{"10.9.1.3:80", vip + ":80"} {
			if got, err := w.ask(ns[0], "tcp", addr); err != nil || got != w.say("two 10.9.1.2") {
				return fmt.Errorf("%s: %q, %v", w.say(addr), got, err)
			}
		}
		return nil
	}
	w.eventually("it works", check)
	w.host.converge(true)
	good := w.stateText()

	w.nets[a].MTU = 1300
	w.clock++
	nets := slices.Clone(w.nets)
	for i := range nets {
		nets[i] = w.document(nets[i])
		nets[i].Clock = spec.Clock{Incarnation: 1, Index: w.clock}
	}
	w.host.Set(nets)
	w.eventually("it is said, and the other network is as it should", func() error {
		st := w.host.Status()
		if len(st.Errors) != 1 || !strings.Contains(st.Errors[0], "network 1-1: it goes on with IPv4 alone on this node: a packet on it can have 1250 bytes") {
			return fmt.Errorf("errors %q", st.Errors)
		}
		if _, ok := st.Applied["1-1"]; ok || st.Applied["1-2"].Index != w.clock {
			return fmt.Errorf("applied %v", st.Applied)
		}
		return nil
	})
	w.six = false
	w.want(ns[0], "tcp", "10.9.1.3:80", "two 10.9.1.2")
	w.six = true
	if err := check(); err == nil {
		t.Error("it still works")
	}

	w.nets[a].MTU = 0
	w.set()
	w.eventually("it is as it was", func() error {
		if diff := cmp.Diff(good, w.stateText()); diff != "" {
			return errors.New(diff)
		}
		return check()
	})
	w.within(5*time.Second, "nothing is left to do", func() error {
		w.ops.take()
		w.host.converge(true)
		if ops := w.ops.take(); len(ops) > 0 {
			return fmt.Errorf("%q", ops)
		}
		return nil
	})
}

// An address is good as soon as Attach returns: nobody waits for the answer to
// a question that was not heard.
func TestIPv6IsHeardAtOnce(t *testing.T) {
	w := newWorld(t, "")
	w.six = true
	w.network("1-1", "10.9.1.0/24", "10.9.1.1", false)
	w.set()
	one := w.attach(sandbox("1-10", "shop.web.1", "1-1=10.9.1.2/24"))
	for i := range 30 {
		ip := fmt.Sprintf("10.9.1.%d", 20+i)
		w.attach(sandbox(spec.TaskID(fmt.Sprintf("1-%d", 20+i)), "shop.web.2", "1-1="+ip+"/24"))
		start := time.Now()
		if err := ping(one, w.say(ip), 100); err != nil || time.Since(start) > 500*time.Millisecond {
			t.Errorf("task %d: %v after %v", i, err, time.Since(start))
		}
	}
}
