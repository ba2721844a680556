//go:build e2e

package overlay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

// tunnelFrame is a packet of a tunnel as the switch sees it.
type tunnelFrame struct {
	outer    string // the sender's underlay address
	dst      net.HardwareAddr
	typ      uint16
	icmp6    byte // the type of a message of ICMPv6
	fragment bool
}

func (f tunnelFrame) String() string {
	return fmt.Sprintf("from %s to %s type %04x ICMPv6 %d fragment %v", f.outer, f.dst, f.typ, f.icmp6, f.fragment)
}

// payload reports whether it is what tasks say to each other: no question for a
// neighbour, a router or a group, and to one receiver.
func (f tunnelFrame) payload() bool {
	return !f.fragment && f.dst[0]&1 == 0 && (f.typ == unix.ETH_P_IP || f.typ == unix.ETH_P_IPV6) && (f.icmp6 < 130 || f.icmp6 > 143)
}

// tap collects the tunnel's packets at a port of the switch.
type tap struct {
	mu     sync.Mutex
	frames []tunnelFrame
	fd     int
}

func newTap(t *testing.T, port string) *tap {
	t.Helper()
	const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 // network order
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
	if err != nil {
		t.Fatal(err)
	}
	dev, err := net.InterfaceByName(port)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: dev.Index}); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}); err != nil {
		t.Fatal(err)
	}
	p := &tap{fd: fd}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 1<<16)
		for ctx.Err() == nil {
			n, _, err := unix.Recvfrom(fd, b, 0)
			if err == nil {
				p.see(b[:n])
			}
		}
	}()
	t.Cleanup(func() { cancel(); <-done; unix.Close(fd) })
	return p
}

func (p *tap) see(b []byte) {
	if len(b) < 14 {
		return
	}
	f, ip := tunnelFrame{}, b[14:]
	var udp []byte
	switch binary.BigEndian.Uint16(b[12:]) {
	case unix.ETH_P_IP:
		if len(ip) < 20 || ip[9] != unix.IPPROTO_UDP {
			return
		}
		f.outer, f.fragment = net.IP(ip[12:16]).String(), binary.BigEndian.Uint16(ip[6:])&0x3fff != 0
		udp = ip[int(ip[0]&15)*4:]
	case unix.ETH_P_IPV6:
		if len(ip) < 40 {
			return
		}
		f.outer, f.fragment = net.IP(ip[8:24]).String(), ip[6] == unix.IPPROTO_FRAGMENT
		if ip[6] != unix.IPPROTO_UDP && !f.fragment {
			return
		}
		udp = ip[40:]
	default:
		return
	}
	if !f.fragment {
		if len(udp) < 8+8+14 || binary.BigEndian.Uint16(udp[2:]) != spec.VXLANPort {
			return
		}
		f.dst, f.typ = slices.Clone(net.HardwareAddr(udp[16:22])), binary.BigEndian.Uint16(udp[28:])
		if inner := udp[30:]; f.typ == unix.ETH_P_IPV6 && len(inner) > 48 {
			switch {
			case inner[6] == unix.IPPROTO_ICMPV6:
				f.icmp6 = inner[40]
			case inner[6] == unix.IPPROTO_HOPOPTS && inner[40] == unix.IPPROTO_ICMPV6: // of groups
				f.icmp6 = inner[48]
			}
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frames = append(p.frames, f)
}

func (p *tap) take() []tunnelFrame {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := p.frames
	p.frames = nil
	return out
}

// ping sends one echo of size bytes, the IP header included, that must not be
// fragmented, and waits for its answer.
func ping(ns, ip string, size int) error {
	to := netip.MustParseAddr(ip)
	family, proto, header := unix.AF_INET, unix.IPPROTO_ICMP, 20
	if to.Is6() {
		family, proto, header = unix.AF_INET6, unix.IPPROTO_ICMPV6, 40
	}
	var fd int
	err := at(ns, func() (err error) {
		fd, err = unix.Socket(family, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
		return err
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	m := make([]byte, max(size-header, 8))
	binary.BigEndian.PutUint16(m[4:], uint16(os.Getpid()))
	var reply byte
	if to.Is6() {
		m[0], reply = 128, 129 // the kernel sums it up
		err = errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO),
			unix.Connect(fd, &unix.SockaddrInet6{Addr: to.As16()}))
	} else {
		m[0], reply = 8, 0
		binary.BigEndian.PutUint16(m[2:], sum(m))
		err = errors.Join(unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO),
			unix.Connect(fd, &unix.SockaddrInet4{Addr: to.As4()}))
	}
	if err := errors.Join(err, unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 1})); err != nil {
		return err
	}
	if _, err := unix.Write(fd, m); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	b := make([]byte, 1<<16)
	for {
		n, err := unix.Read(fd, b)
		if err != nil {
			return fmt.Errorf("no answer: %w", err)
		}
		got := b[:n]
		if to.Is4() {
			got = got[header:] // what is read has it
		}
		if len(got) >= 8 && got[0] == reply { // connected, so from there
			if len(got) != len(m) {
				return fmt.Errorf("answer of %d bytes to %d", len(got), len(m))
			}
			return nil
		}
	}
}

func sum(m []byte) uint16 {
	sum := uint32(0)
	for i := 0; i+1 < len(m); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(m[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// pathMTU is what the kernel takes for the way to an address.
func pathMTU(ns, ip string) (mtu int, err error) {
	addr := net.JoinHostPort(ip, "9")
	err = at(ns, func() error {
		c, err := net.Dial(with("udp", addr), addr)
		if err != nil {
			return err
		}
		defer c.Close()
		raw, err := c.(*net.UDPConn).SyscallConn()
		if err != nil {
			return err
		}
		level, option := unix.IPPROTO_IP, unix.IP_MTU
		if strings.Contains(ip, ":") {
			level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU
		}
		return errors.Join(raw.Control(func(fd uintptr) { mtu, err = unix.GetsockoptInt(int(fd), level, option) }), err)
	})
	return mtu, err
}

func underlays(t *testing.T, f func(t *testing.T, v6 bool)) {
	for _, v6 := range []bool{false, true} {
		t.Run(map[bool]string{false: "IPv4", true: "IPv6"}[v6], func(t *testing.T) {
			if _, err := os.Stat("/proc/sys/net/ipv6"); v6 && err != nil {
				t.Skip("the kernel has no IPv6")
			}
			f(t, v6)
		})
	}
}

// serveAll makes every task answer with its address, which is its name.
func (f *fleet) serveAll() {
	for _, t := range f.tasks {
		f.serve(t.ns, "tcp", "0.0.0.0:80", t.ip())
		f.serve(t.ns, "udp", "0.0.0.0:80", t.ip())
	}
}

// Tasks on three hosts reach each other, and nothing but what they say to each
// other is in the tunnel.
func TestHostsTalk(t *testing.T) {
	bothFamilies(t, func(t *testing.T, six bool) {
		underlays(t, func(t *testing.T, v6 bool) { testHostsTalk(t, v6, six) })
	})
}

func testHostsTalk(t *testing.T, v6, six bool) {
	f := newFleet(t, 3, v6)
	f.six = six
	mtu := 1450
	if v6 {
		mtu = 1430
	}
	for i, m := range f.members {
		f.task(i, spec.TaskID(fmt.Sprintf("1-%d0", i+1)), fmt.Sprintf("10.9.1.%d", 2+2*i))
		f.task(i, spec.TaskID(fmt.Sprintf("1-%d1", i+1)), fmt.Sprintf("10.9.1.%d", 3+2*i))
		if r := m.do(order{}); r.MTU != 1500 {
			t.Errorf("host %d: MTU %d before the first document", m.number, r.MTU)
		}
	}
	f.set()
	var taps []*tap
	for i := range f.members {
		taps = append(taps, newTap(t, fmt.Sprintf("sw%d", i+1)))
	}
	f.attachAll()
	f.serveAll()
	for _, from := range f.tasks {
		for _, to := range f.tasks {
			if from.ns == to.ns {
				continue
			}
			f.want(from.ns, "tcp", to.ip()+":80", to.ip()+" "+from.ip())
			f.want(from.ns, "udp", to.ip()+":80", to.ip()+" "+from.ip())
			if err := ping(from.ns, f.say(to.ip()), mtu); err != nil {
				t.Errorf("full-size ping from %s to %s: %v", from.ip(), to.ip(), err)
			}
			if got, err := pathMTU(from.ns, f.say(to.ip())); got != mtu || err != nil {
				t.Errorf("path MTU from %s to %s: %d, %v", from.ip(), to.ip(), got, err)
			}
			if err := ping(from.ns, f.say(to.ip()), mtu+1); !errors.Is(err, unix.EMSGSIZE) {
				t.Errorf("ping of %d bytes: %v", mtu+1, err)
			}
		}
		if err := ping(from.ns, f.say("10.9.1.1"), mtu); err != nil {
			t.Errorf("ping to the gateway: %v", err)
		}
	}
	// What would be flooded.
	one := f.tasks[0].ns
	if err := at(one, func() error {
		c, err := net.Dial("udp4", "10.9.1.255:9")
		if err == nil {
			_, err = c.Write([]byte("everybody"))
			c.Close()
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	if six {
		// Everybody, and the link-local address of a task on another host.
		for _, to := range []string{"[ff02::1%eth0]:9", "[fe80::58:aff:fe09:104%eth0]:9"} {
			if err := at(one, func() error {
				c, err := net.Dial("udp6", to)
				if err == nil {
					_, err = c.Write([]byte("everybody"))
					c.Close()
				}
				return err
			}); err != nil {
				t.Errorf("%s: %v", to, err)
			}
		}
	}
	if err := ping(one, f.say("10.9.1.200"), 100); err == nil {
		t.Error("an address of nobody answers")
	}
	frames := 0
	for _, p := range taps {
		for _, fr := range p.take() {
			frames++
			if !fr.payload() {
				t.Errorf("in the tunnel: %v", fr)
			}
		}
	}
	if frames < 100 {
		t.Errorf("only %d frames seen in the tunnels", frames)
	}
	if t.Failed() {
		return
	}

	// Smaller packets on the way: everything that exists follows.
	f.mtu = 1400
	f.set()
	f.eventually("the MTU follows", func() error {
		if got, err := pathMTU(one, f.say(f.tasks[5].ip())); got != mtu-100 || err != nil {
			return fmt.Errorf("path MTU %d, %v", got, err)
		}
		return ping(one, f.say(f.tasks[5].ip()), mtu-100)
	})
	for _, m := range f.members {
		if text := m.do(order{State: true}).Text; strings.Contains(text, fmt.Sprintf("mtu %d", mtu)) || strings.Count(text, fmt.Sprintf("mtu %d", mtu-100)) != 6 {
			t.Errorf("host %d:\n%s", m.number, text)
		}
	}

	// A daemon that starts anew finds nothing to do, and while none runs
	// everything works.
	m := f.members[0]
	before := m.kernelText()
	m.quit(false)
	f.want(one, "tcp", f.tasks[5].ip()+":80", f.tasks[5].ip()+" "+f.tasks[0].ip())
	m.start()
	m.do(order{Set: f.documents(m)})
	for _, task := range f.tasks[:2] {
		box := f.box(task.Sandbox)
		m.do(order{Attach: &box})
	}
	if r := m.do(order{Converge: true}); len(r.Ops) > 0 {
		t.Errorf("the new host did or said:\n%s", strings.Join(r.Ops, "\n"))
	}
	if diff := cmp.Diff(before, m.kernelText()); diff != "" {
		t.Errorf("the restart changed the kernel:\n%s", diff)
	}

	// The last other host goes, and then everything.
	f.edit = func(_ *member, d *spec.HostNetwork) { d.Hosts, d.Remote = nil, nil }
	f.set()
	for _, m := range f.members {
		f.eventually("the tunnel goes", func() error {
			if text := m.kernelText(); strings.Contains(text, "wvx-") || strings.Contains(text, "PERMANENT") {
				return fmt.Errorf("left over:\n%s", text)
			}
			return nil
		})
		m.quit(true)
		if text := m.kernelText(); strings.Contains(text, "wherry") || strings.Contains(text, "wbr-") || strings.Contains(text, "dst ") {
			t.Errorf("left over:\n%s", text)
		}
	}
}

// Whatever is damaged comes back, without waiting for the regular look.
func TestTunnelRepair(t *testing.T) {
	underlays(t, func(t *testing.T, v6 bool) {
		// What is spoken within is the other family.
		f := newFleet(t, 2, v6)
		f.six = !v6
		m, peer := f.members[0], f.members[1].underlay()
		m.quit(false)
		m.Resync = time.Hour
		m.start()
		f.task(0, "1-10", "10.9.1.2")
		f.task(1, "1-20", "10.9.1.3")
		f.set()
		f.attachAll()
		f.serveAll()
		one, two := f.tasks[0].ns, f.tasks[1].ns
		check := func() error {
			if got, err := f.ask(one, "tcp", "10.9.1.3:80"); err != nil || got != f.say("10.9.1.3 10.9.1.2") {
				return fmt.Errorf("to the other host: %q, %v", got, err)
			}
			if got, err := f.ask(two, "tcp", "10.9.1.2:80"); err != nil || got != f.say("10.9.1.2 10.9.1.3") {
				return fmt.Errorf("from the other host: %q, %v", got, err)
			}
			return nil
		}
		f.eventually("it works", check)
		good := m.do(order{State: true}).Text
		const mac = "02:58:0a:09:01:03 dev wvx-1-1 "
		far := map[bool]string{false: "198.18.0.77", true: "fd00::77"}[v6]
		damages := []string{
			"bridge fdb del " + mac + "self",
			"bridge fdb del " + mac + "master",
			"bridge fdb del 02:57:00:00:00:02 dev wvx-1-1 self; bridge fdb del 02:57:00:00:00:02 dev wvx-1-1 master",
			"bridge fdb replace " + mac + "self static dst " + far,
			"bridge fdb replace " + mac + "self static port 4789 dst " + peer,
			"bridge fdb append 00:00:00:00:00:00 dev wvx-1-1 self static dst " + far,
			"bridge fdb add 02:58:0a:09:01:66 dev wvx-1-1 master static",
			"bridge fdb add 02:58:0a:09:01:66 dev wvx-1-1 self dynamic dst " + far,
			"bridge fdb replace 02:58:0a:09:01:03 dev w1-10-0 master static",
			f.say("ip neigh del 10.9.1.3 dev wbr-1-1"),
			f.say("ip neigh replace 10.9.1.3 lladdr 02:58:0a:09:01:66 dev wbr-1-1 nud permanent"),
			f.say("ip neigh replace 10.9.1.3 lladdr 02:58:0a:09:01:03 dev wbr-1-1 nud reachable"),
			f.say("ip neigh add 10.9.1.66 lladdr 02:58:0a:09:01:66 dev wbr-1-1 nud permanent"),
			"bridge link set dev wvx-1-1 neigh_suppress off",
			"bridge link set dev wvx-1-1 flood on mcast_flood on bcast_flood on learning on",
			"ip link set wvx-1-1 type vxlan learning",
			"ip link set wvx-1-1 mtu 1300",
			"ip link set wbr-1-1 mtu 1300",
			"ip link set wvx-1-1 nomaster",
			"ip link set wvx-1-1 down",
			"ip link set wvx-1-1 down; ip link set wvx-1-1 up",
			"ip link del wvx-1-1",
			"ip link set wbr-1-1 down",
			"ip link set wbr-1-1 down; ip link set wbr-1-1 up",
			"ip link del wbr-1-1",
			f.say("ip addr del 10.9.1.1/24 dev wbr-1-1"),
			f.say("ip route del 10.9.1.0/24 dev wbr-1-1"),
			"ip addr del " + m.underlay() + map[bool]string{false: "/24", true: "/64"}[v6] + " dev up0; ip addr add " + m.underlay() + map[bool]string{false: "/24", true: "/64 nodad"}[v6] + " dev up0",
		}
		for _, d := range damages {
			start, before := time.Now(), m.do(order{}).Status.Repairs
			m.sh(d)
			f.eventually(d+": is repaired", func() error {
				if now := m.do(order{State: true}).Text; now != good {
					return fmt.Errorf("state differs:\n%s", cmp.Diff(good, now))
				}
				return nil
			})
			f.eventually(d+": works again", check)
			t.Logf("%-90s %5d ms, %d repairs", d, time.Since(start).Milliseconds(), m.do(order{}).Status.Repairs-before)
		}
		if st := m.do(order{Converge: true}).Status; len(st.Errors) > 0 {
			t.Errorf("errors %q", st.Errors)
		}
	})
}

// Who is no member does not get into a network, and tasks get neither at the
// tunnels nor at the API by way of their host.
func TestOnlyMembersGetIn(t *testing.T) {
	bothFamilies(t, func(t *testing.T, six bool) {
		underlays(t, func(t *testing.T, v6 bool) {
			f := newFleet(t, 2, v6)
			f.six = six
			m := f.members[0]
			f.task(0, "1-10", "10.9.1.2")
			f.task(1, "1-20", "10.9.1.3")
			f.set()
			f.attachAll()
			f.serveAll()
			one := f.tasks[0].ns

			// A stranger on the underlay who knows everything.
			s := f.join(9)
			t.Cleanup(func() {
				s.sh("ip link del up0; ip link del vx0")
				if err := f.spaces.remove("host-9"); err != nil {
					t.Error(err)
				}
			})
			s.sh(fmt.Sprintf("ip link add vx0 address 02:57:00:00:00:09 type vxlan id 4097 dstport %d local %s nolearning; ip addr add 10.9.1.99/24 dev vx0; ip link set vx0 up", spec.VXLANPort, s.underlay()))
			s.sh("bridge fdb append 02:58:0a:09:01:02 dev vx0 self dst " + m.underlay() + "; ip neigh add 10.9.1.2 lladdr 02:58:0a:09:01:02 dev vx0")
			s.sh("ip addr add fd00:9:1::63/64 dev vx0 nodad; ip neigh add fd00:9:1::2 lladdr 02:58:0a:09:01:02 dev vx0")
			received := func() int {
				n, err := strconv.Atoi(strings.TrimSpace(m.sh("cat /proc/net/dev | sed -n 's/^ *wvx-1-1: *[0-9]* *\\([0-9]*\\).*/\\1/p'")))
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
			before := received()
			if err := ping(s.ns, f.say("10.9.1.2"), 100); err == nil {
				t.Error("a stranger gets an answer")
			}
			if got := received(); got != before {
				t.Errorf("the tunnel took %d packets of a stranger", got-before)
			}
			// As a member it gets in at once.
			f.edit = func(_ *member, d *spec.HostNetwork) {
				d.Hosts = append(d.Hosts, spec.NetworkHost{Node: s.Node, Number: 9, Address: s.underlay()})
				d.Remote = append(d.Remote, spec.RemoteEndpoint{IP: "10.9.1.99", MAC: "02:57:00:00:00:09", Host: 9})
			}
			f.set()
			if err := ping(s.ns, f.say("10.9.1.2"), 100); err != nil {
				t.Errorf("a member gets no answer: %v", err)
			}
			f.edit = nil
			f.set()
			if err := ping(s.ns, f.say("10.9.1.2"), 100); err == nil {
				t.Error("a former member gets an answer")
			}

			if v6 != six {
				return // the other hosts are known by addresses of one family
			}
			for _, h := range f.members {
				h.sh("ip addr add 169.254.169.254/32 dev lo; ip addr add fd00:ec2::254/128 dev lo nodad")
				for _, port := range []string{"80", "4477"} {
					f.serve(h.ns, "tcp", "0.0.0.0:"+port, fmt.Sprintf("host %d", h.number))
				}
			}
			away, own, gateway, cloud := "198.18.0.12", "198.18.0.11", "10.9.1.1", "169.254.169.254"
			if six {
				away, own, cloud = "[fd00::12]", "[fd00::11]", "[fd00:ec2::254]"
				gateway = "[fd00:9:1::1]"
			}
			seen := func(host string) string { return strings.Trim(host, "[]") }
			f.want(m.ns, "tcp", away+":4477", "host 2 "+seen(own))
			f.want(one, "tcp", away+":80", "host 2 "+seen(own)) // the way is there
			f.want(one, "tcp", own+":80", f.say("host 1 10.9.1.2"))
			reached := func(ns, addr, answer string) { // a new address takes a moment
				f.eventually(addr+" is there", func() error {
					if got, err := ask(ns, "tcp", addr); err != nil || got != answer {
						return fmt.Errorf("got %q, %v", got, err)
					}
					return nil
				})
			}
			reached(m.ns, cloud+":80", "host 1 "+seen(cloud))
			closed := []string{away + ":4477", own + ":4477", gateway + ":4477", cloud + ":80"}
			if six {
				f.want(m.ns, "tcp", "[fe80::57:ff:fe00:1%wbr-1-1]:80", "host 1 fe80::57:ff:fe00:1")
				closed = append(closed, "[fe80::57:ff:fe00:1%eth0]:80")
				m.sh("ip -6 route add fd20:ce::254/128 via fd00::12") // a cloud's, beyond the host
				f.members[1].sh("ip addr add fd20:ce::254/128 dev lo nodad; ip addr add fd20:ce::253/128 dev lo nodad")
				m.sh("ip -6 route add fd20:ce::253/128 via fd00::12")
				reached(one, "[fd20:ce::253]:80", "host 2 fd00::11")
				closed = append(closed, "[fd20:ce::254]:80")
			}
			f.dropped(one, "tcp", closed...)
			p := newTap(t, "sw2")
			if err := at(one, func() error {
				c, err := net.Dial("udp", net.JoinHostPort(seen(away), strconv.Itoa(spec.VXLANPort)))
				if err == nil {
					_, err = c.Write(make([]byte, 100))
					c.Close()
				}
				return err
			}); err != nil {
				t.Error(err)
			}
			f.want(one, "tcp", away+":80", "host 2 "+seen(own)) // behind it
			if frames := p.take(); len(frames) > 0 {
				t.Errorf("a task sent into the tunnels: %v", frames)
			}
		})
	})
}

// A port is published on every host, and its task sees who asks; when the
// task's host is lost, its connections end.
func TestPublishedOnEveryHost(t *testing.T) { bothFamilies(t, testPublishedOnEveryHost) }

// On a kernel without an egress hook a program does the same, is put back when
// it is lost, and stays when the daemon starts anew.
func TestPublishedWithoutEgressHook(t *testing.T) {
	oldKernels = true
	defer func() { oldKernels = false }()
	bothFamilies(t, testPublishedOnEveryHost)

	f := newFleet(t, 2, false)
	f.task(0, "1-10", "10.9.1.2")
	f.set()
	f.attachAll()
	m := f.members[0]
	good := m.do(order{State: true}).Text
	if !strings.Contains(good, "program return dev 1-10/eth0") || strings.Contains(good, "1-10/netdev") {
		t.Fatalf("the state is\n%s", good)
	}
	sh(t, "nsenter --net="+f.tasks[0].ns+" tc qdisc del dev eth0 clsact")
	if r := m.do(order{Converge: true, State: true}); r.Text != good || r.Status.Repairs != 1 {
		t.Errorf("%d repairs, and the state is\n%s", r.Status.Repairs, cmp.Diff(good, r.Text))
	}
	m.quit(false)
	m.start()
	m.do(order{Set: f.documents(m)})
	m.do(order{Attach: &f.tasks[0].Sandbox})
	if r := m.do(order{Converge: true}); slices.ContainsFunc(r.Ops, func(o string) bool { return strings.Contains(o, "program") && !strings.Contains(o, "eBPF") }) {
		t.Errorf("the new host did:\n%s", strings.Join(r.Ops, "\n"))
	}
}

func testPublishedOnEveryHost(t *testing.T, six bool) {
	f := newFleet(t, 2, false)
	f.six = six
	f.task(0, "1-10", "10.9.1.2")
	f.task(1, "1-20", "10.9.1.3")
	f.edit = func(_ *member, d *spec.HostNetwork) {
		for _, proto := range []string{"tcp", "udp"} {
			d.Ports = append(d.Ports, spec.PublishedPort{Port: 8080, Protocol: proto, Owner: "shop/web", Targets: []string{"10.9.1.3:80"}})
		}
		d.Ports = append(d.Ports, spec.PublishedPort{Port: 8081, Protocol: "tcp", Owner: "shop/web", Targets: []string{"10.9.1.3:81"}})
	}
	f.set()
	f.attachAll()
	f.serveAll()
	c := f.join(9)
	t.Cleanup(func() {
		c.sh("ip link del up0")
		if err := f.spaces.remove("host-9"); err != nil {
			t.Error(err)
		}
	})
	host1, host2, one, two := f.members[0].ns, f.members[1].ns, f.tasks[0].ns, f.tasks[1].ns
	for _, proto := range []string{"tcp", "udp"} {
		for _, tt := range []struct{ from, to, seen string }{
			{c.ns, "198.18.0.11", "198.18.0.19"},
			{c.ns, "198.18.0.12", "198.18.0.19"},
			{host1, "198.18.0.11", "198.18.0.11"},
			{host1, "198.18.0.12", "198.18.0.11"},
			{host1, "127.0.0.1", "10.9.1.1"},
			{host2, "127.0.0.1", "10.9.1.1"},
			{one, "198.18.0.11", "10.9.1.2"},
			{one, "10.9.1.1", "10.9.1.2"},
			{one, "198.18.0.12", "198.18.0.11"},
			{two, "198.18.0.11", "198.18.0.12"},
			{two, "198.18.0.12", "10.9.1.1"},
		} {
			if six && tt.to == "127.0.0.1" {
				f.refused(tt.from, proto, tt.to+":8080")
				continue
			}
			f.want(tt.from, proto, tt.to+":8080", "10.9.1.3 "+tt.seen)
		}
	}
	f.want(host1, "tcp", "10.9.1.3:80", "10.9.1.3 10.9.1.1") // without a port

	var l net.Listener
	var conn net.Conn
	if err := at(two, func() (err error) { l, err = net.Listen("tcp", ":81"); return err }); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := at(c.ns, func() (err error) {
		conn, err = net.DialTimeout("tcp", f.say("198.18.0.11:8081"), time.Second)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	// The host is gone, and after a while the managers say so.
	f.members[1].sh("ip link set up0 down")
	if _, err := conn.Write([]byte("?")); err != nil {
		t.Fatal(err)
	}
	f.edit = func(_ *member, d *spec.HostNetwork) { d.Hosts, d.Remote = nil, nil }
	f.set()
	conn.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("a connection to a lost host: %v", err)
	}
	f.members[1].sh("ip link set up0 up")
}

// What carries the tunnels changes, and the networks follow at once, without
// waiting for the regular look.
func TestUnderlayIsFollowed(t *testing.T) {
	f := newFleet(t, 2, false)
	m := f.members[0]
	m.quit(false)
	m.Resync = time.Hour
	m.start()
	f.task(0, "1-10", "10.9.1.2")
	f.task(1, "1-20", "10.9.1.3")
	f.set()
	f.attachAll()
	for _, mtu := range []int{1400, 1500} {
		m.sh(fmt.Sprintf("ip link set up0 mtu %d", mtu))
		f.within(2*time.Second, fmt.Sprintf("everything carries what fits into %d", mtu), func() error {
			if text := m.do(order{State: true}).Text; strings.Count(text, fmt.Sprintf("mtu %d ", mtu-50)) != 4 {
				return fmt.Errorf("the state is\n%s", text)
			}
			return nil
		})
	}
	adrift := func(want bool) {
		t.Helper()
		f.within(2*time.Second, fmt.Sprintf("the address is missed: %v", want), func() error {
			if got := strings.Contains(strings.Join(m.do(order{}).Status.Errors, "\n"), "no interface of this host has the address"); got != want {
				return fmt.Errorf("errors %q", m.do(order{}).Status.Errors)
			}
			return nil
		})
	}
	m.sh("ip addr del " + m.underlay() + "/24 dev up0")
	adrift(true)
	m.sh("ip addr add " + m.underlay() + "/24 dev up0")
	adrift(false)
}

// What stands in the way of a tunnel is named, left alone, and made up for when
// it is gone.
func TestForeignTunnelIsNamed(t *testing.T) {
	f := newFleet(t, 2, false)
	m := f.members[0]
	m.quit(false)
	m.Resync = 300 * time.Millisecond
	m.start()
	f.task(0, "1-10", "10.9.1.2")
	f.task(1, "1-20", "10.9.1.3")
	f.clock++
	named := func(what string, words ...string) {
		t.Helper()
		f.eventually(what+" is named", func() error {
			all := strings.Join(m.do(order{}).Status.Errors, "\n")
			for _, w := range words {
				if !strings.Contains(all, w) {
					return fmt.Errorf("%q is not in %q", w, all)
				}
			}
			if n := len(m.do(order{}).Status.Errors); n > 3 {
				return fmt.Errorf("%d errors:\n%s", n, all)
			}
			return nil
		})
	}
	healed := func() {
		t.Helper()
		f.eventually("it is made", func() error {
			if r := m.do(order{State: true}); len(r.Status.Errors) > 0 || !strings.Contains(r.Text, "link wvx-1-1: vxlan mtu 1450 up") {
				return fmt.Errorf("errors %q and\n%s", r.Status.Errors, r.Text)
			}
			return nil
		})
	}
	m.sh(fmt.Sprintf("ip link add other type vxlan id 4097 dstport %d local 198.18.0.11 nolearning; ip link set other alias theirs", spec.VXLANPort))
	m.do(order{Set: f.documents(m)})
	f.members[1].do(order{Set: f.documents(f.members[1])})
	named("a device with our identifier", "VXLAN identifier 4097 on UDP port 4478 is taken by link other", `alias "theirs"`)
	if text := m.sh("bridge fdb show dev other"); strings.Contains(text, "02:58") {
		t.Errorf("a foreign device was written to:\n%s", text)
	}
	m.sh("ip link del other")
	healed()

	m.sh("ip link set wvx-1-1 group 0")
	named("a link with our name", "wvx-1-1", "not of this node")
	m.sh("ip link del wvx-1-1")
	healed()

	m.quit(false) // no task is there: everything goes
	m.sh(fmt.Sprintf("ip link add other type vxlan external dstport %d; ip link set other up", spec.VXLANPort))
	m.start()
	m.do(order{Set: f.documents(m)})
	named("a device with our port", "UDP port 4478 is taken by VXLAN device other")
	m.sh("ip link del other")
	healed()

	m.quit(false)
	var held net.PacketConn
	if err := at(m.ns, func() (err error) {
		held, err = net.ListenPacket("udp4", fmt.Sprintf("0.0.0.0:%d", spec.VXLANPort))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	m.start()
	m.do(order{Set: f.documents(m)})
	named("a process with our port", "UDP port 4478", fmt.Sprintf("(pid %d)", os.Getpid()))
	held.Close()
	healed()
	f.attachAll()
	f.serveAll()
	f.want(f.tasks[0].ns, "tcp", "10.9.1.3:80", "10.9.1.3 10.9.1.2")

	// An address that is not this host's, or that is not known.
	m.sh("ip addr del 198.18.0.11/24 dev up0")
	named("an address of nobody", "no interface of this host has the address 198.18.0.11")
	m.sh("ip addr add 198.18.0.11/24 dev up0")
	f.eventually("it works again", func() error {
		_, err := ask(f.tasks[0].ns, "tcp", "10.9.1.3:80")
		return err
	})
}

// The budget for a network of 1,000 ends is 2 s, and for one change 50 ms of
// the host's time.
func TestManyEnds(t *testing.T) { bothFamilies(t, testManyEnds) }

func testManyEnds(t *testing.T, six bool) {
	f := newFleet(t, 2, false)
	f.six = six
	neighbours := map[bool]int{false: 1, true: 2}[six]
	m := f.members[0]
	n := 1000
	f.network.Subnet, f.network.Gateway = "10.9.0.0/16", "10.9.0.1"
	f.edit = func(m *member, d *spec.HostNetwork) {
		if m.number != 1 {
			return
		}
		for i := range n {
			d.Remote = append(d.Remote, spec.RemoteEndpoint{
				IP: fmt.Sprintf("10.9.%d.%d", 4+i/250, i%250), MAC: fmt.Sprintf("02:58:0a:09:%02x:%02x", 4+i/250, i%250), Host: 2,
			})
		}
	}
	timed := func(what string, limit, cpu time.Duration) {
		t.Helper()
		before, start := m.do(order{}).CPU, time.Now()
		f.clock++
		m.do(order{Set: f.documents(m)})
		f.applied(m)
		took := time.Since(start)
		time.Sleep(300 * time.Millisecond) // its own events have been looked at
		used := m.do(order{}).CPU - before
		t.Logf("%-30s %v, %v of CPU", what, took.Round(time.Millisecond), used.Round(time.Millisecond))
		if took > limit || used > cpu {
			t.Errorf("%s: %v and %v of CPU; want at most %v and %v", what, took, used, limit, cpu)
		}
	}
	timed("1,000 ends", 2*time.Second, time.Second)
	if text := m.do(order{State: true}).Text; strings.Count(text, "\nneigh ") != n*neighbours || strings.Count(text, "12 self\n") != n+1 {
		t.Errorf("%d neighbours, %d entries", strings.Count(text, "\nneigh "), strings.Count(text, "12 self\n"))
	}
	n++
	timed("one more", time.Second, 200*time.Millisecond)
	n -= 2
	timed("two less", time.Second, 200*time.Millisecond)
	before, start := m.do(order{}).CPU, time.Now()
	m.sh("ip link del wvx-1-1")
	f.within(2*time.Second, "everything is back", func() error {
		if got := strings.TrimSpace(m.sh("bridge fdb show 2>/dev/null | grep -c \"dst 198.18.0.12\"; true")); got != fmt.Sprint(n+1) {
			return fmt.Errorf("%s entries", got)
		}
		return nil
	})
	r := m.do(order{})
	t.Logf("%-30s %v, %v of CPU", "the device deleted", time.Since(start).Round(time.Millisecond), (r.CPU - before).Round(time.Millisecond))
	if len(r.Ops) > 2*maxLogged+10 {
		t.Errorf("%d lines of log", len(r.Ops))
	}
	f.eventually("nothing is left to do", func() error {
		if r := m.do(order{Converge: true}); len(r.Ops) > 0 {
			return fmt.Errorf("%d operations", len(r.Ops))
		}
		return nil
	})
}
