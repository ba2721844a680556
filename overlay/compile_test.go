//go:build linux

package overlay

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"wherry.dev/spec"
)

var update = flag.Bool("update", false, "rewrite the expectations in testdata")

const testNode = spec.NodeID("00c0ffee00000001")

// step is what is wanted at one time of a golden test.
type step struct {
	Networks []spec.HostNetwork `json:"networks"`
	Tasks    []spec.Sandbox     `json:"tasks"`
	MTU      int                `json:"mtu"`
	Underlay netip.AddrPort     `json:"underlay"`
	Refused  []Claim            `json:"refused"`
	Router6  *Router6           `json:"router6"`
	NoEgress bool               `json:"no_egress"`
	Parents  map[string]Parent  `json:"parents"`
}

func (s step) input() Input {
	in := Input{Node: testNode, Networks: s.Networks, Tasks: s.Tasks, MTU: s.MTU, Underlay: s.Underlay, Router6: s.Router6, NoEgress: s.NoEgress, Parents: s.Parents, Refused: map[Claim]bool{}}
	for _, c := range s.Refused {
		in.Refused[c] = true
	}
	return in
}

// TestGolden plays the steps of each file: N.in is what is wanted, N.ops the
// operations that lead there from the step before, N.state, where the file has
// it, the whole state.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			have, want := NewState(), NewState()
			for i := range ar.Files {
				f := &ar.Files[i]
				var got string
				switch filepath.Ext(f.Name) {
				case ".in":
					var s step
					if err := json.Unmarshal(f.Data, &s); err != nil {
						t.Fatalf("%s: %v", f.Name, err)
					}
					have, want = want, Compile(s.input())
					continue
				case ".ops":
					got = opsText(Diff(have, want))
				case ".state":
					got = want.String()
				default:
					t.Fatalf("%s: neither in nor ops nor state", f.Name)
				}
				if *update {
					f.Data = []byte(got)
				} else if diff := cmp.Diff(string(f.Data), got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", f.Name, diff)
				}
			}
			if *update {
				if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func opsText(ops []Op) string {
	var b strings.Builder
	for _, o := range ops {
		fmt.Fprintln(&b, o)
	}
	return b.String()
}

// example is a host with two networks and two tasks.
func example() Input {
	return Input{
		Node: testNode,
		Networks: []spec.HostNetwork{
			{
				Network: spec.Network{ID: "1-1", Subnet: "10.9.1.0/24", Gateway: "10.9.1.1"}, HostNumber: 7,
				Ports: []spec.PublishedPort{
					{Port: 8080, Protocol: "tcp", Owner: "shop/web", Targets: []string{"10.9.1.2:80"}},
					{Port: 5300, Protocol: "udp", Owner: "shop/dns", Targets: []string{"10.9.1.2:53"}},
				},
			},
			{Network: spec.Network{ID: "1-2", Subnet: "10.9.2.0/24", Gateway: "10.9.2.1", Spec: spec.NetworkSpec{Internal: true}}, HostNumber: 7},
		},
		Tasks: []spec.Sandbox{
			{Task: "1-10", Name: "shop.web.1", Addresses: []spec.Address{
				{Network: "1-2", IP: "10.9.2.2/24", MAC: "02:58:0A:09:02:02"}, {Network: "1-1", IP: "10.9.1.2/24", MAC: "02:58:0a:09:01:02"},
			}},
			{Task: "1-11", Mode: "none"},
		},
	}
}

// TestDamage checks what Diff does about a kernel that somebody has changed.
func TestDamage(t *testing.T) {
	bridge, veth := LinkID{Name: "wbr-1-1"}, LinkID{Name: "w1-10-1"}
	inner := LinkID{"1-10", "eth1"}
	table := hostTable(testNode)
	change := func(id LinkID, f func(*Link)) func(State) {
		return func(s State) {
			l := s.Links[id]
			f(&l)
			s.Links[id] = l
		}
	}
	tests := []struct {
		name   string
		damage func(have State)
		want   string
	}{
		{"nothing", func(State) {}, ""},
		{"bridge gone", func(s State) {
			s.dropLinks(func(l LinkID) bool { return l == bridge })
			delete(s.Sysctls, SysctlKey{Path: sysctlLocalnet("wbr-1-1")})
			delete(s.Sysctls, SysctlKey{Path: sysctl6("wbr-1-1", "accept_ra")})
			change(veth, func(l *Link) { l.Master = "" })(s)
			delete(s.FDB, FDB{Link: veth.Name, MAC: "02:58:0a:09:01:02"})
		}, `add link wbr-1-1 bridge mac 02:57:00:00:00:07 mtu 1500 up alias wherry:00c0ffee00000001:network:1-1
set link w1-10-1 master wbr-1-1 port mcast_flood,bcast_flood,locked,hairpin
set sysctl net/ipv4/conf/wbr-1-1/route_localnet = 1
set sysctl net/ipv6/conf/wbr-1-1/accept_ra = 0
add addr 10.9.1.1/24 dev wbr-1-1
add route 10.9.1.0/24 dev wbr-1-1 src 10.9.1.1
add fdb 02:58:0a:09:01:02 dev w1-10-1 static
`},
		{"inner end gone while its entries seem to be there", func(s State) { s.dropLinks(func(l LinkID) bool { return l == inner }) },
			`replace link w1-10-1 veth mtu 1500 up master wbr-1-1 port mcast_flood,bcast_flood,locked,hairpin alias wherry:00c0ffee00000001:task:1-10:1-1 peer 1-10/eth1 peer-mac 02:58:0a:09:01:02
add addr 10.9.1.2/24 dev 1-10/eth1
add route 0.0.0.0/0 via 10.9.1.1 dev 1-10/eth1
add route 10.9.1.0/24 dev 1-10/eth1 src 10.9.1.2
add fdb 02:58:0a:09:01:02 dev w1-10-1 static
`},
		{"port flags", change(veth, func(l *Link) { l.Port = Port{Learning: true, Flood: true} }),
			"set link w1-10-1 port mcast_flood,bcast_flood,locked,hairpin\n"},
		{"link down, other MTU and MAC", change(bridge, func(l *Link) { l.Up, l.MTU, l.MAC = false, 1300, "02:00:00:00:00:01" }),
			"set link wbr-1-1 mac 02:57:00:00:00:07 mtu 1500 up\n"},
		{"link made but not named before a crash", change(veth, func(l *Link) { l.Alias = "" }),
			"set link w1-10-1 alias wherry:00c0ffee00000001:task:1-10:1-1\n"},
		{"another kind of link", change(bridge, func(l *Link) { l.Kind = "dummy" }),
			`replace link wbr-1-1 bridge mac 02:57:00:00:00:07 mtu 1500 up alias wherry:00c0ffee00000001:network:1-1
add addr 10.9.1.1/24 dev wbr-1-1
add route 10.9.1.0/24 dev wbr-1-1 src 10.9.1.1
`},
		{"what the task added is its own", func(s State) {
			s.Links[LinkID{"1-10", "tun0"}] = Link{Kind: "tun", Up: true}
			s.Addrs[Addr{inner, "192.0.2.1/24"}] = true
			s.Routes[Route{Link: inner, Dst: "192.0.2.0/24"}] = true
		}, ""},
		{"more than wanted on the host", func(s State) {
			s.Links[LinkID{Name: "w1-9-0"}] = Link{Kind: kindVeth, Master: "wbr-1-1"}
			s.FDB[FDB{Link: "w1-9-0", MAC: "02:58:0a:09:01:09"}] = true // goes with its link
			s.FDB[FDB{Link: veth.Name, MAC: "02:58:0a:09:01:09"}] = true
			s.Addrs[Addr{bridge, "10.9.1.9/24"}] = true
			s.Claims[Claim{"tcp", "0.0.0.0", 9999}] = true
		}, `del fdb 02:58:0a:09:01:09 dev w1-10-1 static
del addr 10.9.1.9/24 dev wbr-1-1
del link w1-9-0
del claim tcp 0.0.0.0:9999
`},
		{"sysctls", func(s State) { clear(s.Sysctls); s.Sysctls[SysctlKey{Path: sysctlForward}] = "0" },
			`set sysctl net/ipv4/ip_forward = 1
set sysctl net/ipv4/conf/wbr-1-1/route_localnet = 1
set sysctl net/ipv4/conf/wbr-1-2/route_localnet = 0
set sysctl net/ipv6/conf/wbr-1-1/accept_ra = 0
set sysctl net/ipv6/conf/wbr-1-2/accept_ra = 0
`},
		{"nftables: elements", func(s State) {
			sets := s.Tables[table].Sets
			delete(sets[setBridges], "wbr-1-1")
			sets[slotMap(mapAny, 1)]["tcp . 8080 . 0"] = "10.9.1.66 . 80"
			sets[slotMap(mapAny, 1)]["udp . 5300 . 0"] = "10.9.1.66 . 53"
			sets["of_an_older_version"] = Set{}
		}, `del element wherry-00c0ffee any1 { tcp . 8080 . 0 : 10.9.1.66 . 80 }
del element wherry-00c0ffee any1 { udp . 5300 . 0 : 10.9.1.66 . 53 }
add element wherry-00c0ffee any1 { tcp . 8080 . 0 : 10.9.1.2 . 80 }
add element wherry-00c0ffee any1 { udp . 5300 . 0 : 10.9.1.2 . 53 }
add element wherry-00c0ffee bridges { wbr-1-1 }
del set wherry-00c0ffee of_an_older_version
del flow udp 0.0.0.0:5300 except to 10.9.1.2
`},
		{"nftables: chains", func(s State) {
			chains := s.Tables[table].Chains
			delete(chains, "out")
			chains["pre"] = Chain{Hook: Hook{Type: "nat", Name: "prerouting", Priority: -50}, Rules: chains["pre"].Rules}
			chains["post"] = Chain{Hook: chains["post"].Hook, Rules: chains["post"].Rules[:1]}
			chains["stranger"] = Chain{}
		}, `add chain wherry-00c0ffee out
replace chain wherry-00c0ffee pre
set chain wherry-00c0ffee out { fib daddr type local jump ports }
set chain wherry-00c0ffee post { oifname @bridges ct status dnat ip saddr 127.0.0.0/8 masquerade } { oifname @bridges ct status dnat ip saddr . ip daddr @self masquerade } { ip saddr 10.9.1.0/24 ip daddr != 10.9.1.0/24 oifname != @bridges masquerade } { ip saddr 10.9.1.0/24 ip daddr 10.9.1.0/24 ct status dnat masquerade }
set chain wherry-00c0ffee pre { ip daddr 127.0.0.0/8 return } { fib daddr type local jump ports }
del chain wherry-00c0ffee stranger
`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			have := Compile(example())
			tt.damage(have)
			if diff := cmp.Diff(tt.want, opsText(Diff(have, Compile(example())))); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestRemovalIsComplete(t *testing.T) {
	have := Compile(example())
	have.dropInside(func(spec.TaskID) bool { return true })
	want := `del link wbr-1-1
del link wbr-1-2
del link w1-10-0
del link w1-10-1
del table ip wherry-00c0ffee
del claim udp 0.0.0.0:5300
del claim tcp 0.0.0.0:8080
`
	if diff := cmp.Diff(want, opsText(Diff(have, Compile(Input{Node: testNode})))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// Documents that make no sense leave things out, and never make a state that
// the kernel refuses as a whole.
func TestCompileLeavesOut(t *testing.T) {
	in := example()
	in.Networks = append(in.Networks,
		spec.HostNetwork{Network: spec.Network{ID: "1-3"}},
		spec.HostNetwork{Network: spec.Network{ID: "1-4", Subnet: "fd00::/64", Gateway: "fd00::1"}},
	)
	in.Networks[0].Ports = append(in.Networks[0].Ports,
		spec.PublishedPort{HostIP: "::1", Port: 1, Protocol: "tcp"},
		spec.PublishedPort{HostIP: "bogus", Port: 2, Protocol: "tcp"},
		spec.PublishedPort{Port: 3, Protocol: "sctp"},
		spec.PublishedPort{Port: 8080, Protocol: "tcp", Owner: "other/web", Targets: []string{"10.9.1.3:80"}}, // published already
	)
	in.Tasks = append(in.Tasks,
		spec.Sandbox{Task: "1-12", Mode: "host", Addresses: in.Tasks[0].Addresses},
		spec.Sandbox{Task: "1-13", Addresses: []spec.Address{{Network: "1-3", IP: "10.9.3.2/24"}, {Network: "1-1", IP: "nonsense"}}},
	)
	want := Compile(example())
	want.Links[LinkID{"1-13", "lo"}] = Link{Kind: kindLoopback, Up: true}
	if diff := cmp.Diff(want.String(), Compile(in).String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// What a port claims, and why it cannot.
func TestClaims(t *testing.T) {
	dual := network{doc: spec.HostNetwork{Network: spec.Network{Subnet6: "fd00::/64"}}, gateway6: netip.MustParseAddr("fd00::1")}
	off := network{doc: dual.doc}
	for _, tt := range []struct {
		n      network
		hostIP string
		want   string
	}{
		{network{}, "", "0.0.0.0"},
		{dual, "", "0.0.0.0 ::"},
		{off, "", "0.0.0.0"},
		{network{}, "127.0.0.1", "127.0.0.1"},
		{dual, "0.0.0.0", "0.0.0.0"},
		{dual, "::", "::"},
		{dual, "::ffff:127.0.0.1", "127.0.0.1"},
		{dual, "2001:DB8::1", "2001:db8::1"},
		{network{}, "2001:db8::1", "cannot be published on 2001:db8::1: its network has no IPv6"},
		{off, "2001:db8::1", "its network goes on with IPv4 alone on this node"},
		{dual, "::1", "cannot be published on ::1: the kernel leads nothing from there to a container; publish it on 127.0.0.1"},
		{dual, "fe80::1", "link-local"},
		{dual, "2001:db8::1%eth0", "link-local"},
		{dual, "host", "that is no address"},
	} {
		claims, err := tt.n.claims(spec.PublishedPort{HostIP: tt.hostIP, Port: 80, Protocol: "tcp"})
		var got []string
		for _, c := range claims {
			if c.Port != 80 || c.Proto != "tcp" {
				t.Errorf("%q: %s", tt.hostIP, c)
			}
			got = append(got, c.IP)
		}
		text := strings.Join(got, " ")
		if err != nil {
			text = err.Error()
		}
		if err == nil && text != tt.want || err != nil && (!strings.Contains(text, tt.want) || len(claims) > 0) {
			t.Errorf("%q: %s; want %s", tt.hostIP, text, tt.want)
		}
	}
	for _, p := range []spec.PublishedPort{{Protocol: "tcp"}, {Port: 80, Protocol: "sctp"}} {
		if claims, err := dual.claims(p); err == nil || len(claims) > 0 {
			t.Errorf("%+v: %v", p, claims)
		}
	}
}

func TestSlotClass(t *testing.T) {
	for targets, want := range map[int]uint32{0: 1, 1: 1, 2: 16, 4: 16, 5: 128, 32: 128, 33: 1024, 256: 1024, 2000: 1024} {
		if got := slotClass(targets); got != want {
			t.Errorf("slotClass(%d) = %d, want %d", targets, got, want)
		}
	}
}

func TestNames(t *testing.T) {
	long := spec.NetworkID("123456789-123456789")
	for _, tt := range []struct{ got, want string }{
		{bridgeName(testNode, "1-12"), "wbr-1-12"},
		{bridgeName(testNode, "1-123456789"), "wbr-1-123456789"},
		{vethName(testNode, "1-34", 2), "w1-34-2"},
		{tunnelName(testNode, "1-12"), "wvx-1-12"},
		{tableName(testNode), "wherry-00c0ffee"},
		{tableName("ab"), "wherry-ab"},
		{hostMAC(0x01020304), "02:57:01:02:03:04"},
	} {
		if tt.got != tt.want {
			t.Errorf("got %q, want %q", tt.got, tt.want)
		}
	}
	if n := bridgeName(testNode, long); len(n) != maxLinkName || n == bridgeName("00c0ffee00000002", long) || n == bridgeName(testNode, long+"0") {
		t.Errorf("name of a long ID: %q", n)
	}
	if linkGroup(testNode) == doomedGroup(testNode) || linkGroup(testNode) == 0 {
		t.Error("the groups of links are not apart")
	}
}

func TestElements(t *testing.T) {
	types := setTypes(fieldIPv4)
	for set, text := range map[string]string{
		setSelf: "fd00:9:1::2 . fd00:9:1::2", "any16": "tcp . 8080 . 15", "at1024": "2001:db8::1 . udp . 1 . 1023", setEnds: "fd00:9:1::2",
	} {
		typ := setTypes(fieldIPv6)[set]
		b, err := encode(typ.key, text)
		if err != nil || decode(typ.key, b) != text || len(b) > 64 {
			t.Errorf("%s: %q became %x, %v, and that %q", set, text, b, err, decode(typ.key, b))
		}
	}
	for set, text := range map[string]string{
		setBridges: "wbr-1-1", setSame: "wbr-1-1 . wbr-1-1", setRefused: "udp . 53", setRefusedAt: "127.0.0.1 . tcp . 65535",
		setPeers: "198.18.0.1", setSelf: "10.9.1.2 . 10.9.1.2", "any16": "tcp . 8080 . 15", "at1024": "198.18.0.1 . udp . 1 . 1023",
	} {
		b, err := encode(types[set].key, text)
		if err != nil || decode(types[set].key, b) != text {
			t.Errorf("%s: %q became %x, %v, and that %q", set, text, b, err, decode(types[set].key, b))
		}
	}
	for _, bad := range []string{"tcp", "tcp . x . 1", "tcp . 70000 . 1", "tcp . 1 . 1 . 1"} {
		if b, err := encode(types["any1"].key, bad); err == nil {
			t.Errorf("%q became %x", bad, b)
		}
	}
	if got := decode(types["any1"].key, []byte{1, 2}); !strings.HasPrefix(got, "unknown") {
		t.Errorf("short key became %q", got)
	}
}

// From any state to any other in one go: what Diff says leads there, and then
// it has nothing more to say.
func TestDiffConverges(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 0))
		have, want := Compile(randomInput(r)), Compile(randomInput(r))
		have.Tables = cloneTables(have.Tables)
		k := &fakeKernel{st: have}
		for pass := 0; ; pass++ {
			ops := Diff(k.st, want)
			if len(ops) == 0 {
				break
			}
			for i, err := range k.apply(ops) {
				if err != nil {
					t.Fatalf("seed %d: %s: %v", seed, ops[i], err)
				}
			}
			if pass == 3 {
				t.Fatalf("seed %d: still %s", seed, opsText(ops))
			}
		}
		if diff := cmp.Diff(want.onlyHost(), k.st.onlyHost()); diff != "" {
			t.Fatalf("seed %d (-want +got):\n%s", seed, diff)
		}
	}
}

// onlyHost is the text of a state without what Diff leaves alone: sysctls of
// links that are gone, and the inside of namespaces.
func (s State) onlyHost() string {
	c := NewState()
	c.merge(s)
	c.dropInside(func(spec.TaskID) bool { return true })
	for id, l := range c.Links {
		l.Peer, l.PeerMAC = LinkID{}, ""
		c.Links[id] = l
	}
	c.Sysctls = nil
	return c.String()
}

func randomInput(r *rand.Rand) Input {
	in := Input{Node: testNode, MTU: 1400 + r.IntN(2)*100, Underlay: netip.MustParseAddrPort(fmt.Sprintf("198.18.0.%d:4477", 1+r.IntN(4)/3)), Refused: map[Claim]bool{{"tcp", "0.0.0.0", 8081}: r.IntN(2) == 0}}
	for n := range 1 + r.IntN(4) {
		if r.IntN(3) == 0 {
			continue
		}
		doc := spec.HostNetwork{Network: spec.Network{
			ID: spec.NetworkID(fmt.Sprintf("1-%d", n)), Subnet: fmt.Sprintf("10.9.%d.0/24", n), Gateway: fmt.Sprintf("10.9.%d.1", n),
			Spec: spec.NetworkSpec{Internal: r.IntN(4) == 0},
		}}
		if r.IntN(2) == 0 {
			doc.Network.Subnet6, doc.Network.Gateway6 = fmt.Sprintf("fd00:9:%d::/64", n), fmt.Sprintf("fd00:9:%d::1", n)
		}
		randomHosts(r, &doc)
		for p := range r.IntN(4) {
			port := spec.PublishedPort{Port: uint16(8080 + p + 10*n), Protocol: []string{"tcp", "udp"}[r.IntN(2)], HostIP: []string{"", "127.0.0.1", "2001:db8::1"}[r.IntN(3)]}
			for range r.IntN(7) {
				port.Targets = append(port.Targets, netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 9, byte(n), byte(2 + r.IntN(9))}), 80).String())
				port.Targets = append(port.Targets, fmt.Sprintf("[fd00:9:%d::%d]:80", n, 2+r.IntN(9)))
			}
			slices.Sort(port.Targets)
			port.Targets = slices.Compact(port.Targets)
			doc.Ports = append(doc.Ports, port)
		}
		for v := range r.IntN(2) {
			vip := spec.VIP{Address: fmt.Sprintf("10.9.%d.%d", n, 200+v)}
			for range r.IntN(4) {
				vip.Targets = append(vip.Targets, fmt.Sprintf("10.9.%d.%d", n, 2+r.IntN(9)))
			}
			doc.VIPs = append(doc.VIPs, vip)
			vip = spec.VIP{Address: fmt.Sprintf("fd00:9:%d::%d", n, 200+v)}
			for range r.IntN(4) {
				vip.Targets = append(vip.Targets, fmt.Sprintf("fd00:9:%d::%d", n, 2+r.IntN(9)))
			}
			doc.VIPs = append(doc.VIPs, vip)
		}
		for range r.IntN(3) {
			doc.Remote = append(doc.Remote, spec.RemoteEndpoint{IP: fmt.Sprintf("10.9.%d.%d", n, 2+r.IntN(9))})
		}
		in.Networks = append(in.Networks, doc)
	}
	for i := range r.IntN(6) {
		s := spec.Sandbox{Task: spec.TaskID(fmt.Sprintf("1-%d", 100+i))}
		for n := range 4 {
			if r.IntN(2) == 0 {
				s.Addresses = append(s.Addresses, spec.Address{Network: spec.NetworkID(fmt.Sprintf("1-%d", n)), IP: fmt.Sprintf("10.9.%d.%d/24", n, 2+i), IP6: fmt.Sprintf("fd00:9:%d::%d/64", n, 2+i), MAC: fmt.Sprintf("02:58:0a:09:%02x:%02x", n, 2+i)})
			}
		}
		in.Tasks = append(in.Tasks, s)
	}
	return in
}

// The text of a compiled state does not depend on the order of maps.
func TestCompileIsDeterministic(t *testing.T) {
	for seed := range uint64(20) {
		in := randomInput(rand.New(rand.NewPCG(seed, 1)))
		first := Compile(in).String()
		for range 5 {
			if again := Compile(in).String(); again != first {
				t.Fatalf("seed %d: %s", seed, cmp.Diff(first, again))
			}
		}
	}
}

// Every rule of the table has an expression, and every set that a rule names
// exists.
func TestRulesNameSets(t *testing.T) {
	types := setTypes(fieldIPv4) // IPv6 has the same names
	for number, chains := range map[int]map[string]Chain{7: baseChains(), 6: baseChains6(), 2: guardChains6()} {
		for name, c := range chains {
			for _, r := range c.Rules {
				for _, term := range r.terms {
					if term.kind == termJump {
						if _, ok := chains[term.set]; !ok {
							t.Errorf("chain %s: %q jumps to nowhere", name, r.Text)
						}
					} else if _, ok := types[term.set]; term.set != "" && !ok {
						t.Errorf("chain %s: %q names no set", name, r.Text)
					}
				}
				if len(exprs(r.terms)) == 0 || len(r.Text) > 200 {
					t.Errorf("chain %s: %q has no expressions or does not fit into a rule's comment", name, r.Text)
				}
				if number != 7 && regexp.MustCompile(`\bip (saddr|daddr)`).MatchString(r.Text) {
					t.Errorf("chain %s: %q is not for IPv6", name, r.Text)
				}
			}
		}
		if got := slices.Sorted(maps.Keys(chains)); len(got) != number {
			t.Errorf("chains %v, want %d", got, number)
		}
	}
}
