package scheduler

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wherry.dev/spec"
)

func testNode(id string, edit ...func(*spec.Node)) *spec.Node {
	n := &spec.Node{
		ID: spec.NodeID(id), Name: "name-" + id, Role: spec.RoleWorker, State: spec.NodeReady,
		Availability: spec.NodeActive, Address: "192.0.2.7:4477", Labels: map[string]string{},
		Info: spec.NodeInfo{OS: "linux", Arch: "amd64", NanoCPUs: 2e9, Memory: 1 << 30},
	}
	for _, f := range edit {
		f(n)
	}
	return n
}

func label(k, v string) func(*spec.Node) { return func(n *spec.Node) { n.Labels[k] = v } }

// where lists the nodes of the placements, or the reason after a "!".
func where(ps []Placement) string {
	var out []string
	for _, p := range ps {
		if p.Node == "" {
			out = append(out, "!"+p.Reason)
		} else {
			out = append(out, string(p.Node))
		}
	}
	return strings.Join(out, " ")
}

func TestFilter(t *testing.T) {
	port := func(ip string, n uint16) spec.Port {
		return spec.Port{HostIP: ip, Published: n, Protocol: "tcp", Mode: spec.PublishHost}
	}
	constraint := func(s string) []spec.Constraint {
		c, err := spec.ParseConstraint(s)
		if err != nil {
			t.Fatal(err)
		}
		return []spec.Constraint{c}
	}
	for _, tt := range []struct {
		name  string
		node  func(*spec.Node)
		class Class
		taken []Booking
		want  string // "" fits
	}{
		{name: "plain"},
		{name: "down", node: func(n *spec.Node) { n.State = spec.NodeDown }, want: "down"},
		{name: "drained", node: func(n *spec.Node) { n.Availability = spec.NodeDrain }, want: "drained"},
		{name: "paused", node: func(n *spec.Node) { n.Availability = spec.NodePaused }, want: "paused"},
		{name: "memory fits", class: Class{Memory: 1 << 30}},
		{name: "memory", class: Class{Memory: 1<<30 + 1}, want: "not enough memory"},
		{name: "memory taken", class: Class{Memory: 1 << 29}, taken: []Booking{{Memory: 1<<29 + 1}}, want: "not enough memory"},
		{name: "cpus", class: Class{CPUs: 1e9}, taken: []Booking{{CPUs: 1e9}, {CPUs: 5e8}}, want: "not enough CPUs"},
		{name: "generic", node: label("resource.gpu", "2"), class: Class{Generic: map[string]int64{"gpu": 1}}, taken: []Booking{{Generic: map[string]int64{"gpu": 1, "fpga": 9}}}},
		{name: "generic taken", node: label("resource.gpu", "2"), class: Class{Generic: map[string]int64{"gpu": 1}}, taken: []Booking{{Generic: map[string]int64{"gpu": 2}}}, want: "not enough of gpu"},
		{name: "generic, none", class: Class{Generic: map[string]int64{"gpu": 1}}, want: "not enough of gpu"},
		{name: "generic, no number", node: label("resource.gpu", "many"), class: Class{Generic: map[string]int64{"gpu": 1}}, want: "not enough of gpu"},
		{name: "nothing reserved on a full node", taken: []Booking{{CPUs: 9e9, Memory: 9 << 30}}},
		{name: "invalid", class: Class{Invalid: "what is this"}, want: "what is this"},
		{name: "id", class: Class{Constraints: constraint("node.id==a")}},
		{name: "other id", class: Class{Constraints: constraint("node.id!=a")}, want: "does not satisfy node.id!=a"},
		{name: "hostname", class: Class{Constraints: constraint("node.hostname==name-a")}},
		{name: "role", class: Class{Constraints: constraint("node.role==manager")}, want: "does not satisfy node.role==manager"},
		{name: "os", class: Class{Constraints: constraint("node.platform.os==linux")}},
		{name: "arch", class: Class{Constraints: constraint("node.platform.arch!=amd64")}, want: "does not satisfy node.platform.arch!=amd64"},
		{name: "ip", class: Class{Constraints: constraint("node.ip==192.0.2.7")}},
		{name: "prefix", class: Class{Constraints: constraint("node.ip==192.0.2.0/24")}},
		{name: "other prefix", class: Class{Constraints: constraint("node.ip==10.0.0.0/8")}, want: "does not satisfy node.ip==10.0.0.0/8"},
		{name: "bare address", node: func(n *spec.Node) { n.Address = "192.0.2.7" }, class: Class{Constraints: constraint("node.ip==192.0.2.7")}},
		{name: "no address", node: func(n *spec.Node) { n.Address = "" }, class: Class{Constraints: constraint("node.ip==192.0.2.7")}, want: "does not satisfy node.ip==192.0.2.7"},
		{name: "label", node: label("disk", "ssd"), class: Class{Constraints: constraint("node.labels.disk==ssd")}},
		{name: "no label", class: Class{Constraints: constraint("node.labels.disk==ssd")}, want: "does not satisfy node.labels.disk==ssd"},
		{name: "no label, not equal", class: Class{Constraints: constraint("node.labels.disk!=ssd")}},
		{name: "platform", class: Class{Platform: "linux/amd64"}},
		{name: "platform by the kernel's name", class: Class{Platform: "linux/x86_64"}},
		{name: "variant", node: func(n *spec.Node) { n.Info.Arch = "aarch64" }, class: Class{Platform: "linux/arm64/v8"}},
		{name: "other platform", class: Class{Platform: "linux/arm64"}, want: "cannot run linux/arm64"},
		{name: "other system", class: Class{Platform: "windows/amd64"}, want: "cannot run windows/amd64"},
		{name: "interface", node: func(n *spec.Node) { n.Info.Interfaces = "eth0 eth1" }, class: Class{Parents: []string{"eth0.7", "eth1"}}},
		{name: "interface not told", class: Class{Parents: []string{"eth0"}}},
		{name: "no interface", node: func(n *spec.Node) { n.Info.Interfaces = "eth0" }, class: Class{Parents: []string{"eth0", "eth1.7"}}, want: "has no interface eth1.7 for a macvlan network now"},
		{name: "home", class: Class{Homes: []Homes{{"v", []spec.NodeID{"z", "a"}}}}},
		{name: "home elsewhere", class: Class{Homes: []Homes{{"v", []spec.NodeID{"a"}}, {"w", []spec.NodeID{"z"}}}}, want: "does not hold volume w"},
		{name: "max per node", class: Class{Service: "s", MaxPerNode: 2}, taken: []Booking{{Service: "s"}, {Service: "t"}}},
		{name: "max per node reached", class: Class{Service: "s", MaxPerNode: 2}, taken: []Booking{{Service: "s"}, {Service: "s"}}, want: "has 2 of at most 2 tasks of the service"},
		{name: "port", class: Class{Ports: []spec.Port{port("", 80)}}, taken: []Booking{{Ports: []spec.Port{port("", 81)}}}},
		{name: "port taken", class: Class{Ports: []spec.Port{port("", 80)}}, taken: []Booking{{Ports: []spec.Port{port("10.0.0.1", 80)}}}, want: "port 80/tcp is taken"},
		{name: "port of another address", class: Class{Ports: []spec.Port{port("10.0.0.2", 80)}}, taken: []Booking{{Ports: []spec.Port{port("10.0.0.1", 80)}}}},
		{name: "port of all addresses", class: Class{Ports: []spec.Port{port("10.0.0.2", 80)}}, taken: []Booking{{Ports: []spec.Port{port("0.0.0.0", 80)}}}, want: "port 80/tcp is taken"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := testNode("a")
			if tt.node != nil {
				tt.node(n)
			}
			b := NewBoard([]*spec.Node{n})
			for _, k := range tt.taken {
				k.Node = "a"
				b.Book(k)
			}
			if got := b.Fits(&tt.class, "a"); got != tt.want {
				t.Errorf("fits: %q, want %q", got, tt.want)
			}
			got := b.Place(&tt.class, 1)[0]
			if (got.Node == "a") != (tt.want == "") || !strings.Contains(got.Reason, tt.want) {
				t.Errorf("placed: %+v, want %q", got, tt.want)
			}
			for _, k := range tt.taken {
				k.Node = "a"
				b.Release(k)
			}
			if got.Node != "" {
				b.Release(tt.class.Booking("a"))
			}
			if v := b.byID["a"]; v.tasks != 0 || v.cpus != 0 || v.memory != 0 || len(v.ports) != 0 {
				t.Errorf("something is left on the node: %+v", v)
			}
		})
	}
}

func TestRank(t *testing.T) {
	nodes := []*spec.Node{
		testNode("d", label("zone", "west")),
		testNode("b", label("zone", "east"), label("rack", "1")),
		testNode("c", label("zone", "east"), label("rack", "2")),
		testNode("a", label("zone", "east"), label("rack", "1")),
	}
	for _, tt := range []struct {
		name  string
		class Class
		taken []Booking
		n     int
		want  string
	}{
		{name: "round", n: 6, want: "a b c d a b"},
		{name: "fewest of the service first", class: Class{Service: "s"}, taken: []Booking{{Node: "a", Service: "s"}, {Node: "b"}, {Node: "b"}}, n: 5, want: "c d b a c"},
		{name: "then fewest tasks", class: Class{Service: "s"}, taken: []Booking{{Node: "a"}, {Node: "b"}, {Node: "b"}}, n: 4, want: "c d a b"},
		{name: "failures", class: Class{Failures: map[spec.NodeID]int{"a": 3, "b": 1}}, n: 4, want: "c d c d"},
		{name: "spread", class: Class{Service: "s", Spread: []string{"node.labels.zone"}}, n: 6, want: "a d b d c d"},
		{name: "spread over two keys", class: Class{Service: "s", Spread: []string{"node.labels.zone", "node.labels.rack"}}, n: 6, want: "a d c d b d"},
		{name: "spread counts what is there", class: Class{Service: "s", Spread: []string{"node.labels.zone"}}, taken: []Booking{{Node: "d", Service: "s"}, {Node: "d", Service: "s"}}, n: 3, want: "a b c"},
		{name: "spread over full groups", class: Class{Service: "s", MaxPerNode: 1, Spread: []string{"node.labels.zone"}}, n: 5, want: "a d b c !4 nodes: has 1 of at most 1 tasks of the service"},
		{name: "memory runs out", class: Class{Memory: 1 << 29}, n: 9, want: "a b c d a b c d !4 nodes: not enough memory"},
		{name: "together", class: Class{Together: true, Memory: 1 << 29}, n: 3, want: "a a !node name-a, which will hold the volume: not enough memory"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := NewBoard(nodes)
			for _, k := range tt.taken {
				b.Book(k)
			}
			if diff := cmp.Diff(tt.want, where(b.Place(&tt.class, tt.n))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestReasons(t *testing.T) {
	down := func(n *spec.Node) { n.State = spec.NodeDown }
	drained := func(n *spec.Node) { n.Availability = spec.NodeDrain }
	b := NewBoard([]*spec.Node{testNode("a"), testNode("b", down), testNode("c"), testNode("d", drained), testNode("e")})
	got := where(b.Place(&Class{Memory: 1 << 40}, 1))
	if want := "!3 nodes: not enough memory; 1: down; 1: drained"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := where(NewBoard(nil).Place(&Class{}, 2)), "!the cluster has no nodes !the cluster has no nodes"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := NewBoard(nil).Fits(&Class{}, "x"); got == "" {
		t.Error("fits a node that does not exist")
	}
}

// TestOrder: the order of the nodes does not matter, and placing one by one
// gives what placing at once gives.
func TestOrder(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 200 {
		var nodes []*spec.Node
		for i := range 1 + rng.IntN(8) {
			nodes = append(nodes, testNode(fmt.Sprint("n", i), label("zone", fmt.Sprint(rng.IntN(3))), func(n *spec.Node) {
				n.Info.Memory = int64(1+rng.IntN(6)) << 28
			}))
		}
		c := Class{Service: "s", Memory: 1 << 28, MaxPerNode: rng.IntN(4)}
		if rng.IntN(2) == 0 {
			c.Spread = []string{"node.labels.zone"}
		}
		k := rng.IntN(20)
		want := where(NewBoard(nodes).Place(&c, k))
		rng.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
		b := NewBoard(nodes)
		var got []Placement
		for range k {
			got = append(got, b.Place(&c, 1)...)
		}
		if where(got) != want {
			t.Fatalf("one by one %q, at once %q", where(got), want)
		}
	}
}

func BenchmarkPlace(b *testing.B) {
	for _, size := range []struct{ tasks, nodes int }{{1000, 10}, {1000, 1000}, {10000, 1000}} {
		b.Run(fmt.Sprintf("%dtasks/%dnodes", size.tasks, size.nodes), func(b *testing.B) {
			var nodes []*spec.Node
			for i := range size.nodes {
				nodes = append(nodes, testNode(fmt.Sprintf("n%05d", i)))
			}
			for b.Loop() {
				NewBoard(nodes).Place(&Class{Service: "s"}, size.tasks)
			}
		})
	}
}

// TestGenericResources: each placement takes its share, and gives it back.
func TestGenericResources(t *testing.T) {
	nodes := []*spec.Node{testNode("a", label("resource.gpu", "3")), testNode("b", label("resource.gpu", "1")), testNode("c")}
	b := NewBoard(nodes)
	c := &Class{Service: "s/w", Generic: map[string]int64{"gpu": 1}}
	if got := where(b.Place(c, 5)); got != "a b a a !3 nodes: not enough of gpu" {
		t.Errorf("placed on %s", got)
	}
	b.Release(c.Booking("b"))
	if got := where(b.Place(c, 1)); got != "b" {
		t.Errorf("after one has gone: %s", got)
	}
}
