//go:build e2e

package e2e

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wherry.dev/api"
	"wherry.dev/spec"
	"wherry.dev/tests/images"
	"wherry.dev/tests/lab"
)

// metadata is where clouds tell a machine its secrets.
const metadata = "169.254.169.254"

// isolation: tasks of one network reach no task of another one, no daemon, no
// VXLAN port and no metadata of the machine; packets for a network are taken
// from its members alone.
func isolation(t *testing.T, c *lab.Cluster) {
	apply(t, c, stack(t, `
name: iso
services:
  in: {image: `+images.Serve+`, stop_signal: SIGKILL, networks: [one], deploy: {mode: global}}
  out: {image: `+images.Serve+`, stop_signal: SIGKILL, networks: [two], deploy: {mode: global}}
networks: {one: , two: }
`))
	defer c.Leader().Must("rm", "iso")
	inside, others := members(t, c, "iso/in"), members(t, c, "iso/out")

	c.Step(t, "other networks", func(t *testing.T) {
		var tries sync.WaitGroup
		defer tries.Wait()
		for _, a := range inside {
			for _, b := range inside { // what follows is not because nothing works
				if _, err := consult(a.Space, b.IP+":80"); err != nil {
					t.Errorf("%s → %s of the same network: %v", a.Name, b.Name, err)
				}
			}
			for _, b := range others {
				tries.Go(func() {
					if con, err := a.Dial("tcp4", b.IP+":80", time.Second); err == nil {
						_ = con.Close()
						t.Errorf("TCP: %s reaches %s of another network", a.Name, b.Name)
					}
				})
				tries.Go(func() {
					if who, _, err := knock(a.Space, b.IP+":80"); err == nil {
						t.Errorf("UDP: %s reaches %s of another network: %s", a.Name, b.Name, who)
					}
				})
			}
			if answer, _, err := a.Lookup(lab.Resolver, "out"); err == nil {
				t.Errorf("%s resolves a name of another network: %v", a.Name, answer)
			}
		}
	})

	c.Step(t, "daemons and metadata", func(t *testing.T) {
		// Somebody answers there, as seen by the hosts.
		if r := c.In("sw", "ip", "addr", "add", metadata+"/32", "dev", "br0"); r.Code != 0 {
			t.Fatal(r.Stderr)
		}
		defer c.In("sw", "ip", "addr", "del", metadata+"/32", "dev", "br0")
		l, err := c.Space("sw").Listen("tcp4", metadata+":80")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		for _, h := range c.Hosts {
			for _, to := range []string{metadata + ":80", h.Address()} {
				con, err := c.Space(h.Name).Dial("tcp4", to, 3*time.Second)
				if err != nil {
					t.Fatalf("not even %s reaches %s: %v", h.Name, to, err)
				}
				_ = con.Close() // it was made
			}
		}
		gateways := map[string]bool{}
		for _, n := range networks(t, c) {
			gateways[n.Gateway] = true
		}
		_, port, err := net.SplitHostPort(c.Hosts[0].Address())
		if err != nil {
			t.Fatal(err)
		}
		targets := []string{metadata + ":80"}
		for _, h := range c.Hosts {
			targets = append(targets, h.Address())
		}
		for g := range gateways {
			addr, _, _ := net.SplitHostPort(net.JoinHostPort(g, "0"))
			targets = append(targets, net.JoinHostPort(addr, port))
		}
		var tries sync.WaitGroup
		defer tries.Wait()
		for _, a := range inside {
			for _, to := range targets {
				tries.Go(func() {
					if con, err := a.Dial("tcp4", to, time.Second); err == nil {
						_ = con.Close()
						t.Errorf("%s reaches %s", a.Name, to)
					}
				})
			}
		}
	})

	if len(c.Hosts) < 2 {
		return
	}
	c.Step(t, "forged packets between hosts", func(t *testing.T) {
		vni := uint32(0)
		for _, n := range networks(t, c) {
			if n.Stack == "iso" && n.Short == "one" {
				vni = n.VNI
			}
		}
		h, peer := c.Hosts[0], c.Hosts[1]
		var target lab.Member
		for _, m := range inside {
			if len(except([]lab.Member{m}, h)) == 0 {
				target = m
			}
		}
		if vni == 0 || target.IP == "" {
			t.Fatalf("no network or no task: VNI %d, %+v", vni, target)
		}
		const port = 7010
		in, err := target.ListenPacket("udp4", fmt.Sprintf(":%d", port))
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		mac := macOf(t, target)
		source, _ := outside(c)
		for _, from := range []struct {
			space  lab.Space
			passes bool
		}{
			{c.Space(peer.Name), true}, // a member: what is forged is well made
			{source, false},
			{inside[0].Space, false},
			{inside[len(inside)-1].Space, false},
			{others[0].Space, false},
			{others[len(others)-1].Space, false},
		} {
			con, err := from.space.Dial("udp4", fmt.Sprintf("%s:%d", h.IP, spec.VXLANPort), time.Second)
			if err != nil {
				t.Fatal(err)
			}
			arrived := false
			for range 5 {
				words := "forged by " + from.space.Name
				_, werr := con.Write(vxlanFrame(vni, mac, target.IP, port, words)) // refused is as good as dropped
				_ = in.SetReadDeadline(time.Now().Add(200 * time.Millisecond))     // a socket that is closed fails below
				b := make([]byte, 1500)
				n, _, err := in.ReadFrom(b)
				if errors.Is(err, net.ErrClosed) || from.passes && werr != nil {
					t.Fatal(err, werr)
				}
				arrived = arrived || err == nil && string(b[:n]) == words
			}
			_ = con.Close()
			if arrived != from.passes {
				t.Errorf("a packet of the network from %s arrives: %v, want %v", from.space.Name, arrived, from.passes)
			}
		}
	})
}

func networks(t *testing.T, c *lab.Cluster) []api.NetworkInfo {
	t.Helper()
	l, err := client(t, c.Leader()).Networks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return l.Items
}

// taskLink is the interface of a task.
type taskLink struct {
	Ifname, Address string
	Mtu             int
}

func linkOf(t *testing.T, s lab.Space) taskLink {
	t.Helper()
	var all []taskLink
	if err := json.Unmarshal([]byte(s.Run("ip", "-j", "link").Stdout), &all); err != nil {
		t.Fatal(err)
	}
	for _, l := range all {
		if l.Ifname != "lo" {
			return l
		}
	}
	t.Fatalf("%s has no interface: %+v", s.Name, all)
	return taskLink{}
}

func macOf(t *testing.T, m lab.Member) net.HardwareAddr {
	t.Helper()
	mac, err := net.ParseMAC(linkOf(t, m.Space).Address)
	if err != nil {
		t.Fatal(err)
	}
	return mac
}

// vxlanFrame is a VXLAN packet with an Ethernet frame to a task.
func vxlanFrame(vni uint32, to net.HardwareAddr, ip string, port uint16, words string) []byte {
	b := binary.BigEndian.AppendUint32([]byte{8, 0, 0, 0}, vni<<8)
	b = append(append(b, to...), 2, 0x58, 1, 2, 3, 4) // the sender's address is made up
	b = append(b, 8, 0)
	dst := netip.MustParseAddr(ip).As4()
	src := dst
	src[3] ^= 1
	head := []byte{0x45, 0}
	head = binary.BigEndian.AppendUint16(head, uint16(28+len(words)))
	head = append(head, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0)
	head = append(append(head, src[:]...), dst[:]...)
	sum := uint32(0)
	for i := 0; i < len(head); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(head[i:]))
	}
	sum = sum&0xffff + sum>>16
	binary.BigEndian.PutUint16(head[10:], ^uint16(sum&0xffff+sum>>16))
	b = append(b, head...)
	b = binary.BigEndian.AppendUint16(b, 7011)
	b = binary.BigEndian.AppendUint16(b, port)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(words)))
	b = append(b, 0, 0) // no checksum
	return append(b, words...)
}

// overhead of a network between hosts, over IPv4.
const overhead = 50

// fullSize: packets as large as the network allows pass between all pairs
// without being cut into pieces, and larger ones are refused at their sender.
func fullSize(t *testing.T, all []lab.Member, underlay int) {
	t.Helper()
	const port, headers = 7012, 28
	most := underlay - overhead
	for _, a := range all {
		if l := linkOf(t, a.Space); l.Mtu != most {
			t.Errorf("%s of %s carries %d bytes, want %d", l.Ifname, a.Name, l.Mtu, most)
		}
	}
	for _, b := range all {
		in, err := b.ListenPacket("udp4", fmt.Sprintf(":%d", port))
		if err != nil {
			t.Fatal(err)
		}
		for _, a := range all {
			if a.Name == b.Name {
				continue
			}
			con, err := a.Dial("udp4", fmt.Sprintf("%s:%d", b.IP, port), time.Second)
			if err != nil {
				t.Fatal(err)
			}
			neverCut(t, con)
			arrived := 0
			for range 5 {
				if _, err := con.Write(make([]byte, most-headers)); err != nil {
					t.Errorf("%s → %s: %d bytes: %v", a.Name, b.Name, most, err)
				}
				_ = in.SetReadDeadline(time.Now().Add(time.Second)) // a socket that is closed fails below
				if n, _, err := in.ReadFrom(make([]byte, 10_000)); err == nil && n == most-headers {
					arrived++
				}
			}
			if arrived != 5 {
				t.Errorf("%s → %s: %d of 5 packets of %d bytes arrive", a.Name, b.Name, arrived, most)
			}
			if _, err := con.Write(make([]byte, most-headers+1)); !errors.Is(err, unix.EMSGSIZE) {
				t.Errorf("%s → %s: %d bytes: %v, want %v", a.Name, b.Name, most+1, err, unix.EMSGSIZE)
			}
			_ = con.Close() // all has arrived
		}
		_ = in.Close()
	}
}

// neverCut has the socket's packets sent whole or not at all.
func neverCut(t *testing.T, con net.Conn) {
	t.Helper()
	raw, err := con.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
	})
	if err := errors.Join(err, set); err != nil {
		t.Fatal(err)
	}
}

// TestOverlayMTU: the network fits what the cables between the hosts carry.
func TestOverlayMTU(t *testing.T) {
	for _, mtu := range []int{1280, 9000} {
		t.Run(fmt.Sprint(mtu), func(t *testing.T) {
			l := lab.New(t)
			l.MTU(mtu)
			c := l.Cluster(1, 1)
			load(t, c.Hosts[0], images.Must(t, image, ""))
			withPairs(t, c, "")
			everyPair(t, c)
			fullSize(t, members(t, c, "pairs/a", "pairs/b"), mtu)
			m, _ := quiet(t, 2*time.Second, func() []lab.Member { return members(t, c, "pairs/a", "pairs/b") })
			m.Stop()
		})
	}
}

// bridgeNF: whether a host's bridges ask its firewall or not makes no
// difference.
func bridgeNF(t *testing.T, c *lab.Cluster) {
	withPairs(t, c, "  nf: {image: "+images.Serve+", stop_signal: SIGKILL, ports: ['8130:80'], deploy: {replicas: 1}}\n")
	defer withPairs(t, c, "")
	const sysctl = "/proc/sys/net/bridge/bridge-nf-call-iptables"
	from, ip := outside(c)
	for _, value := range []string{"0", "1"} {
		for _, h := range c.Hosts {
			if r := h.Run("sh", "-c", "echo "+value+" >"+sysctl); r.Code != 0 {
				t.Fatalf("this test needs the kernel module br_netfilter: %s", r.Stderr)
			}
		}
		m, load := quiet(t, 2*time.Second, func() []lab.Member { return members(t, c, "pairs/a", "pairs/b") })
		for _, h := range c.Hosts {
			for range 5 {
				if r, err := consult(from, h.IP+":8130"); err != nil || r.client != ip {
					t.Errorf("with %s: via %s the task sees %q, want %s: %v", value, h.Name, r.client, ip, err)
				}
			}
			for _, a := range append(members(t, c, "pairs/a"), members(t, c, "pairs/nf")...) {
				if _, err := consult(a.Space, h.IP+":8130"); err != nil {
					t.Errorf("with %s: %s via %s: %v", value, a.Name, h.Name, err)
				}
				if _, err := consult(a.Space, vip(t, a.Space, "nf")+":80"); err != nil {
					t.Errorf("with %s: %s to the service's name: %v", value, a.Name, err)
				}
			}
		}
		unhurt(t, m, load, "bridge-nf-call-iptables "+value, false)
		m.Stop()
	}
}
