//go:build linux

package overlay

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"wherry.dev/spec"
)

// randomHosts makes a network one between hosts, most of the time.
func randomHosts(r *rand.Rand, doc *spec.HostNetwork) {
	if r.IntN(4) == 0 {
		return
	}
	doc.Network.Spec.Driver, doc.Network.VNI, doc.HostNumber = spec.DriverOverlay, uint32(4096+r.IntN(2)), 1
	for n := range 1 + r.IntN(3) {
		doc.Hosts = append(doc.Hosts, spec.NetworkHost{Number: uint32(2 + n), Address: fmt.Sprintf("198.18.0.%d", 10+n+r.IntN(2))})
	}
	for i := range r.IntN(8) {
		doc.Remote = append(doc.Remote, spec.RemoteEndpoint{
			IP: fmt.Sprintf("10.9.9.%d", 100+i), IP6: fmt.Sprintf("fd00:9:9::%d", 100+i+r.IntN(2)), MAC: fmt.Sprintf("02:58:0a:09:09:%02x", 100+i+r.IntN(2)), Host: uint32(2 + r.IntN(4)),
		})
	}
}

// linked is a host with a network between hosts and a task.
func linked() Input {
	return Input{
		Node: testNode, Underlay: netip.MustParseAddrPort("198.18.0.11:4477"),
		Networks: []spec.HostNetwork{{
			Network:    spec.Network{ID: "1-1", Subnet: "10.9.1.0/24", Gateway: "10.9.1.1", VNI: 4097, Spec: spec.NetworkSpec{Driver: spec.DriverOverlay}},
			HostNumber: 1,
			Hosts:      []spec.NetworkHost{{Node: "b", Number: 2, Address: "198.18.0.12"}},
			Remote:     []spec.RemoteEndpoint{{IP: "10.9.1.3", MAC: "02:58:0a:09:01:03", Host: 2}},
		}},
		Tasks: []spec.Sandbox{{Task: "1-10", Name: "shop.web.1", Addresses: []spec.Address{{Network: "1-1", IP: "10.9.1.2/24", MAC: "02:58:0a:09:01:02"}}}},
	}
}

// TestTunnelDamage checks what Diff does about a tunnel that somebody changed.
func TestTunnelDamage(t *testing.T) {
	const (
		bridge, tunnel = "wbr-1-1", "wvx-1-1"
		mac            = "02:58:0a:09:01:03"
		device         = "link wvx-1-1 vxlan mtu 1450 up master wbr-1-1 port neigh_suppress id 4097 local 198.18.0.11 dstport 4478 learning off alias wherry:00c0ffee00000001:tunnel:1-1\n"
		entries        = `add fdb 02:57:00:00:00:02 dev wvx-1-1 dst 198.18.0.12 self
add fdb 02:57:00:00:00:02 dev wvx-1-1 static
add fdb 02:58:0a:09:01:03 dev wvx-1-1 dst 198.18.0.12 self
add fdb 02:58:0a:09:01:03 dev wvx-1-1 static
`
	)
	change := func(f func(*Link)) func(State) {
		return func(s State) {
			l := s.Links[LinkID{Name: tunnel}]
			f(&l)
			s.Links[LinkID{Name: tunnel}] = l
		}
	}
	tests := []struct {
		name   string
		damage func(have State)
		want   string
	}{
		{"nothing", func(State) {}, ""},
		{"device gone", func(s State) { s.dropLinks(func(l LinkID) bool { return l.Name == tunnel }) }, "add " + device + entries},
		{"another identifier", change(func(l *Link) { l.VNI = 5 }), "replace " + device + entries},
		{"another port", change(func(l *Link) { l.DstPort = 4789 }), "replace " + device + entries},
		{"another address", change(func(l *Link) { l.Local = "198.18.0.99" }), "replace " + device + entries},
		{"it learns", change(func(l *Link) { l.Learning = true }), "replace " + device + entries},
		{"another kind", change(func(l *Link) { l.Kind = "dummy" }), "replace " + device + entries},
		{"flags, MTU, down", change(func(l *Link) { l.Port, l.MTU, l.Up = Port{Flood: true, Learning: true}, 1500, false }),
			"set link wvx-1-1 mtu 1450 up port neigh_suppress\n"},
		{"no port of the bridge", func(s State) {
			change(func(l *Link) { l.Master = "" })(s)
			delete(s.FDB, FDB{Link: tunnel, MAC: mac})
		}, "set link wvx-1-1 master wbr-1-1 port neigh_suppress\nadd fdb 02:58:0a:09:01:03 dev wvx-1-1 static\n"},
		{"entries lead elsewhere", func(s State) {
			delete(s.FDB, FDB{Link: tunnel, MAC: mac, Dst: "198.18.0.12"})
			s.FDB[FDB{Link: tunnel, MAC: mac, Dst: "198.18.0.66 port 4789"}] = true
			delete(s.Neighs, Neigh{Link: bridge, IP: "10.9.1.3", MAC: mac})
			s.Neighs[Neigh{Link: bridge, IP: "10.9.1.3", MAC: "02:58:0a:09:01:66"}] = true
		}, "add fdb 02:58:0a:09:01:03 dev wvx-1-1 dst 198.18.0.12 self\nadd neigh 10.9.1.3 lladdr 02:58:0a:09:01:03 dev wbr-1-1\n"},
		{"more entries than wanted", func(s State) {
			s.FDB[FDB{Link: tunnel, MAC: "00:00:00:00:00:00", Dst: "198.18.0.66"}] = true
			s.FDB[FDB{Link: tunnel, MAC: "02:58:0a:09:01:66"}] = true
			s.Neighs[Neigh{Link: bridge, IP: "10.9.1.66", MAC: "02:58:0a:09:01:66"}] = true
		}, `del fdb 00:00:00:00:00:00 dev wvx-1-1 dst 198.18.0.66 self
del fdb 02:58:0a:09:01:66 dev wvx-1-1 static
del neigh 10.9.1.66 lladdr 02:58:0a:09:01:66 dev wbr-1-1
`},
		{"device of a network that is gone", func(s State) {
			s.Links[LinkID{Name: "wvx-1-9"}] = Link{Kind: kindVXLAN, Master: bridge, VNI: 9}
			s.FDB[FDB{Link: "wvx-1-9", MAC: mac, Dst: "198.18.0.12"}] = true // goes with it
		}, "del link wvx-1-9\n"},
		{"members", func(s State) { s.Tables[hostTable(testNode)].Sets[setPeers]["198.18.0.66"] = "" },
			"del element wherry-00c0ffee peers { 198.18.0.66 }\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			have := Compile(linked())
			tt.damage(have)
			if diff := cmp.Diff(tt.want, opsText(Diff(have, Compile(linked())))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestMTU(t *testing.T) {
	for _, tt := range []struct {
		driver        spec.NetworkDriver
		underlay      string
		document, own int
		want          int
	}{
		{spec.DriverOverlay, "198.18.0.1:1", 0, 0, 1450},
		{spec.DriverOverlay, "[fd00::1]:1", 0, 0, 1430},
		{spec.DriverOverlay, "[::ffff:198.18.0.1]:1", 0, 0, 1450},
		{spec.DriverOverlay, "198.18.0.1:1", 1400, 9000, 1350},
		{spec.DriverOverlay, "198.18.0.1:1", 0, 9000, 8950},
		{spec.DriverOverlay, "198.18.0.1:1", 65536, 0, 8950},
		{spec.DriverOverlay, "198.18.0.1:1", 576, 0, 1230},
		{spec.DriverOverlay, "", 0, 0, 1450},
		{spec.DriverBridge, "198.18.0.1:1", 1400, 0, 1400},
		{spec.DriverBridge, "[fd00::1]:1", 0, 1500, 1500},
	} {
		in := Input{MTU: tt.own}
		in.Underlay, _ = netip.ParseAddrPort(tt.underlay)
		d := spec.HostNetwork{MTU: tt.document, Network: spec.Network{Spec: spec.NetworkSpec{Driver: tt.driver}}}
		if got := in.mtu(d); got != tt.want {
			t.Errorf("%+v: got %d", tt, got)
		}
	}
}

func TestProblemsAreNamed(t *testing.T) {
	for want, change := range map[string]func(in *Input){
		"": func(*Input) {},
		"address that this node advertises is not known":  func(in *Input) { in.Underlay = netip.AddrPort{} },
		"no VXLAN identifier":                             func(in *Input) { in.Networks[0].Network.VNI = 0 },
		`driver "bridge"`:                                 func(in *Input) { in.Networks[0].Network.Spec.Driver = spec.DriverBridge },
		`node b cannot be reached: its address "nowhere"`: func(in *Input) { in.Networks[0].Hosts[0].Address = "nowhere" },
		"one has an IPv4 address and the other":           func(in *Input) { in.Networks[0].Hosts[0].Address = "fd00::2" },
	} {
		in := linked()
		change(&in)
		got := ""
		if err := errors.Join(in.problems()...); err != nil {
			got = err.Error()
		}
		_, tunnel := Compile(in).Links[LinkID{Name: "wvx-1-1"}]
		if !strings.Contains(got, want) || (want == "") != (got == "") || tunnel != (got == "") {
			t.Errorf("got %q and tunnel %v; want %q", got, tunnel, want)
		}
	}
}

// What stands in the way of IPv6 on a network is named, and costs nothing but
// IPv6.
func TestIPv6IsRefused(t *testing.T) {
	for _, tt := range []struct {
		subnet, gateway string
		change          func(in *Input)
		want            string
	}{
		{"fd00:9:1::/64", "fd00:9:1::1", nil, ""},
		{"fd00:9:1::5/64", "fd00:9:1::1", nil, ""},
		{"", "", nil, ""},
		{"10.9.7.0/24", "fd00:9:1::1", nil, `"10.9.7.0/24" is no IPv6 subnet`},
		{"::ffff:10.9.7.0/120", "fd00:9:1::1", nil, "is no IPv6 subnet"},
		{"fd00:9:1::1", "fd00:9:1::1", nil, "is no IPv6 subnet"},
		{"", "fd00:9:1::1", nil, `"" is no IPv6 subnet`},
		{"fe80::/64", "fe80::1", nil, "no task can have an address of the subnet fe80::/64"},
		{"ff02::/64", "ff02::1", nil, "no task can have"},
		{"fd00:9:1::/127", "fd00:9:1::1", nil, "no room for tasks"},
		{"fd00:9:1::/64", "", nil, `its gateway "" is no IPv6 address`},
		{"fd00:9:1::/64", "10.9.1.1", nil, "its gateway 10.9.1.1 is no address of a host in fd00:9:1::/64"},
		{"fd00:9:1::/64", "fd00:9:2::1", nil, "is no address of a host in fd00:9:1::/64"},
		{"fd00:9:1::/64", "fd00:9:1::", nil, "is no address of a host in fd00:9:1::/64"},
		{"fd00:9:1::/64", "fd00:9:1::1%eth0", nil, "is no IPv6 address"},
		{"fd00:9:1::/64", "fd00:9:1::1", func(in *Input) { in.NoIPv6 = true }, "the kernel has no IPv6"},
		{"fd00:9:1::/64", "fd00:9:1::1", func(in *Input) { in.Networks[0].MTU = 1329 }, "can have 1279 bytes, and IPv6 needs 1280; raise the MTU of what carries it by 1"},
		{"fd00:9:1::/64", "fd00:9:1::1", func(in *Input) { in.Networks[0].MTU = 1330 }, ""},
	} {
		in := linked()
		if tt.change != nil {
			tt.change(&in)
		}
		four := Compile(in)
		d := &in.Networks[0]
		d.Network.Subnet6, d.Network.Gateway6 = tt.subnet, tt.gateway
		d.Remote[0].IP6, in.Tasks[0].Addresses[0].IP6 = "fd00:9:1::3", "fd00:9:1::2/64"
		got := ""
		if err := errors.Join(in.problems()...); err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, tt.want) || (tt.want == "") != (got == "") || got != "" && !strings.HasPrefix(got, "network 1-1: it goes on with IPv4 alone on this node: ") {
			t.Errorf("%s, gateway %s: got %q; want %q", tt.subnet, tt.gateway, got, tt.want)
		}
		if six := Compile(in).Neighs[Neigh{"wbr-1-1", "fd00:9:1::3", "02:58:0a:09:01:03"}]; six != (got == "" && tt.subnet != "") {
			t.Errorf("%s, gateway %s: IPv6 is there: %v", tt.subnet, tt.gateway, six)
		}
		if got != "" {
			if diff := cmp.Diff(four.String(), Compile(in).String()); diff != "" {
				t.Errorf("%s, gateway %s: more than IPv6 is missing (-without +with):\n%s", tt.subnet, tt.gateway, diff)
			}
		}
	}
}

// One network's problem keeps neither the others from being applied nor tasks
// from being withdrawn.
func TestHostGoesOnBesideAProblem(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		defer b.run(t)()
		nets := documents(1)
		nets[0].Network.Subnet6, nets[0].Network.Gateway6 = "fd00:9:1::/64", "fd00:9:9::1"
		b.Set(nets)
		synctest.Wait()
		st := b.Status()
		if len(st.Errors) != 1 || !strings.Contains(st.Errors[0], "its gateway fd00:9:9::1") {
			t.Errorf("errors %q", st.Errors)
		}
		if _, ok := st.Applied["1-1"]; ok || st.Applied["1-2"].Index != 1 {
			t.Errorf("applied %v", st.Applied)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := b.Withdrawn(ctx, []spec.Address{{Network: "1-1", IP: "10.9.1.77/24"}}); err != nil {
			t.Errorf("withdrawn: %v", err)
		}
		if still := b.Leads([]spec.Address{{Network: "1-1", IP: "10.9.1.2/24"}}); len(still) != 1 {
			t.Errorf("leads to %v", still)
		}
	})
}

func TestHostSaysWhyThereIsNoTunnel(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		b.c.Underlay = nil
		defer b.run(t)()
		b.Set(linked().Networks)
		synctest.Wait()
		if st := b.Status(); len(st.Errors) != 1 || !strings.Contains(st.Errors[0], "is not known") || len(st.Applied) > 0 {
			t.Errorf("status %+v", st)
		}
		b.c.Underlay = func() netip.AddrPort { return linked().Underlay }
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if st := b.Status(); len(st.Errors) > 0 || len(st.Applied) != 1 {
			t.Errorf("status %+v", st)
		}
		if ops := b.k.take(); !slices.ContainsFunc(ops, func(op string) bool { return strings.HasPrefix(op, "add link wvx-1-1") }) {
			t.Errorf("no tunnel: %q", ops)
		}
	})
}

// The budget of one change in a network of 1,000 ends is 50 ms of the host,
// reading and writing the kernel included; these two are called thrice for it.
func BenchmarkLargeNetwork(b *testing.B) {
	in := linked()
	for i := range 1000 {
		in.Networks[0].Remote = append(in.Networks[0].Remote, spec.RemoteEndpoint{
			IP: fmt.Sprintf("10.9.%d.%d", 2+i/250, i%250), MAC: fmt.Sprintf("02:58:0a:09:%02x:%02x", 2+i/250, i%250), Host: 2,
		})
	}
	have := Compile(in)
	b.Run("compile", func(b *testing.B) {
		for b.Loop() {
			Compile(in)
		}
	})
	b.Run("same", func(b *testing.B) {
		for b.Loop() {
			if ops := Diff(have, have); len(ops) > 0 {
				b.Fatal(ops)
			}
		}
	})
	b.Run("all", func(b *testing.B) {
		for b.Loop() {
			Diff(NewState(), have)
		}
	})
}
