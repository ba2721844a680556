package scheduler

import (
	"fmt"
	"strings"
	"testing"

	"wherry.dev/spec"
)

// TestExplain: every node is counted, and the nearest is the one from which least
// is wanted.
func TestExplain(t *testing.T) {
	constraint := func(s string) []spec.Constraint {
		c, err := spec.ParseConstraint(s)
		if err != nil {
			t.Fatal(err)
		}
		return []spec.Constraint{c}
	}
	down := func(n *spec.Node) { n.State = spec.NodeDown }
	drained := func(n *spec.Node) { n.Availability = spec.NodeDrain }
	size := func(memory int64) func(*spec.Node) { return func(n *spec.Node) { n.Info.Memory = memory << 20 } }
	port := []spec.Port{{Published: 80, Protocol: "tcp", Mode: spec.PublishHost}}
	for _, tt := range []struct {
		name  string
		nodes []*spec.Node
		class Class
		taken []Booking
		want  string
	}{
		{"one fits", []*spec.Node{testNode("a", down), testNode("b")}, Class{}, nil, ""},
		{"none at all", nil, Class{}, nil, ""},
		{
			"memory", []*spec.Node{testNode("a"), testNode("b"), testNode("c", drained)}, Class{Memory: 800 << 20},
			[]Booking{{Node: "a", Memory: 900 << 20}, {Node: "b", Memory: 424 << 20}},
			"not enough memory [name-a name-b]; drained [name-c]; fits if name-b frees 200 MiB of memory",
		},
		{
			"two resources", []*spec.Node{testNode("a"), testNode("b")}, Class{Memory: 800 << 20, CPUs: 15e8},
			[]Booking{{Node: "a", Memory: 900 << 20, CPUs: 1e9}, {Node: "b", CPUs: 2e9}},
			"not enough CPUs [name-a name-b]; fits if name-b frees 1.5 CPUs",
		},
		{
			"all that is lacking", []*spec.Node{testNode("a", drained)}, Class{Memory: 800 << 20, CPUs: 1e9},
			[]Booking{{Node: "a", Memory: 900 << 20, CPUs: 2e9}},
			"drained [name-a]; fits if name-a is activated and frees 1 CPU and frees 676 MiB of memory",
		},
		{
			"too small", []*spec.Node{testNode("a", size(512)), testNode("b", size(1024))}, Class{Memory: 20 << 30}, nil,
			"not enough memory [name-a name-b]; fits if name-b has 19 GiB of memory more",
		},
		{
			"full before small", []*spec.Node{testNode("a", size(512)), testNode("b", size(1024))}, Class{Memory: 600 << 20},
			[]Booking{{Node: "b", Memory: 1 << 30}},
			"not enough memory [name-a name-b]; fits if name-b frees 600 MiB of memory",
		},
		{
			"label", []*spec.Node{testNode("a", label("disk", "hdd")), testNode("b", down, label("disk", "ssd"))}, Class{Constraints: constraint("node.labels.disk==ssd")}, nil,
			"does not satisfy node.labels.disk==ssd [name-a]; down [name-b]; fits if name-a gets the label disk=ssd",
		},
		{
			"not the label", []*spec.Node{testNode("a", label("disk", "hdd"))}, Class{Constraints: constraint("node.labels.disk!=hdd")}, nil,
			"does not satisfy node.labels.disk!=hdd [name-a]; fits if name-a has another label than disk=hdd",
		},
		{
			"a role is no near miss", []*spec.Node{testNode("a")}, Class{Constraints: constraint("node.role==manager")}, nil,
			"does not satisfy node.role==manager [name-a]",
		},
		{"nor is a platform", []*spec.Node{testNode("a")}, Class{Platform: "linux/arm64"}, nil, "cannot run linux/arm64 [name-a]"},
		{
			"a volume elsewhere", []*spec.Node{testNode("a"), testNode("b", down)}, Class{Homes: []Homes{{"v", []spec.NodeID{"b"}}}}, nil,
			"does not hold volume v [name-a]; down [name-b]; fits if name-b is up again",
		},
		{"as many as may be", []*spec.Node{testNode("a")}, Class{Service: "s", MaxPerNode: 1}, []Booking{{Node: "a", Service: "s"}}, "has 1 of at most 1 tasks of the service [name-a]"},
		{
			"a port", []*spec.Node{testNode("a")}, Class{Ports: port}, []Booking{{Node: "a", Service: "shop/web", Ports: port}},
			"port 80/tcp is taken [name-a]; fits if name-a releases port 80/tcp, which shop/web has",
		},
		{
			"generic", []*spec.Node{testNode("a", label("resource.gpu", "2"))}, Class{Generic: map[string]int64{"gpu": 1}}, []Booking{{Node: "a", Generic: map[string]int64{"gpu": 2}}},
			"not enough of gpu [name-a]; fits if name-a frees 1 of gpu",
		},
		{
			"an interface", []*spec.Node{testNode("a", func(n *spec.Node) { n.Info.Interfaces = "eth0" })}, Class{Parents: []string{"eth9"}}, nil,
			"has no interface eth9 for a macvlan network now [name-a]; fits if name-a gets an interface eth9",
		},
		{"an older version", []*spec.Node{testNode("a")}, Class{Format: 9}, nil, "runs an older version of Wherry [name-a]; fits if name-a is upgraded"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := NewBoard(tt.nodes)
			for _, k := range tt.taken {
				b.Book(k)
			}
			refusals, near := b.Explain(&tt.class)
			var got []string
			for _, r := range refusals {
				got = append(got, fmt.Sprintf("%s %v", r.Reason, r.Nodes))
			}
			if near != nil {
				got = append(got, "fits if "+near.String())
			}
			if s := strings.Join(got, "; "); s != tt.want {
				t.Errorf("got  %s\nwant %s", s, tt.want)
			}
		})
	}
}

// TestCapacity: what is beyond it does not fit however empty the nodes become.
func TestCapacity(t *testing.T) {
	nodes := []*spec.Node{
		testNode("a", label("resource.gpu", "3")), testNode("b", func(n *spec.Node) { n.State = spec.NodeDown }),
		testNode("c", func(n *spec.Node) { n.Availability, n.Info.Memory = spec.NodeDrain, 4<<30 }),
	}
	unknown := testNode("d", func(n *spec.Node) { n.Info = spec.NodeInfo{} })
	for _, tt := range []struct {
		name  string
		nodes []*spec.Node
		class Class
		want  int
	}{
		{"nothing reserved", nodes, Class{}, 10},
		{"memory", nodes, Class{Memory: 1 << 30}, 6},
		{"CPUs", nodes, Class{CPUs: 2e9}, 3},
		{"too much", nodes, Class{Memory: 5 << 30}, 0},
		{"at most one", nodes, Class{MaxPerNode: 1}, 3},
		{"ports", nodes, Class{Ports: []spec.Port{{Published: 80}}}, 3},
		{"generic", nodes, Class{Generic: map[string]int64{"gpu": 2}}, 1},
		{"one volume for all", nodes, Class{Memory: 1 << 30, Together: true}, 4},
		{"volume", nodes, Class{Memory: 1 << 30, Homes: []Homes{{"v", []spec.NodeID{"a"}}}}, 1},
		{"platform", nodes, Class{Platform: "linux/arm64"}, 0},
		{"invalid", nodes, Class{Invalid: "what"}, 0},
		{"nobody knows", append(nodes, unknown), Class{Platform: "linux/arm64"}, 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := NewBoard(tt.nodes)
			for _, n := range tt.nodes { // what is booked does not count
				b.Book(Booking{Node: n.ID, CPUs: 9e9, Memory: 9 << 30})
			}
			if got := b.Capacity(&tt.class, 10); got != tt.want {
				t.Errorf("%d, want %d", got, tt.want)
			}
		})
	}
}
