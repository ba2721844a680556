package scheduler

import (
	"cmp"
	"container/heap"
	"fmt"
	"slices"
	"strings"

	"wherry.dev/spec"
)

// Place chooses nodes for n tasks of class c and books them. The answers are
// in the order of the choice; once a task finds no node, the rest finds none
// either, for the same reason.
//
// Ranking: first the group with the fewest tasks of the service by each spread
// key, then the node with the fewest recent failures of the service, then the
// fewest tasks of the service, then the fewest tasks, then the lowest ID.
func (b *Board) Place(c *Class, n int) []Placement {
	out := make([]Placement, 0, n)
	var root *group
	if n > 0 {
		root = b.rank(c)
	}
	for range n {
		best := root.best()
		if best == nil {
			why := b.reasons(c)
			for len(out) < n {
				out = append(out, Placement{Reason: why})
			}
			return out
		}
		out = append(out, Placement{Node: best.ID})
		b.Book(c.Booking(best.ID))
		if c.Together {
			return b.follow(c, best, n, out)
		}
		root.placed(c, best)
	}
	return out
}

// follow puts the rest of the tasks on the node of the first.
func (b *Board) follow(c *Class, first *node, n int, out []Placement) []Placement {
	for len(out) < n {
		why := c.refuse(first)
		if why != "" {
			why = fmt.Sprintf("node %s, which will hold the volume: %s", nodeName(first.Node), why)
			out = append(out, Placement{Reason: why})
			continue
		}
		b.Book(c.Booking(first.ID))
		out = append(out, Placement{Node: first.ID})
	}
	return out
}

// rank builds the tree of groups over the nodes that can take a task of c now.
func (b *Board) rank(c *Class) *group {
	root := &group{class: c}
	for _, n := range b.nodes {
		root.count(c, n, c.Spread)
		if c.refuse(n) == "" {
			root.insert(c, n, c.Spread)
		}
	}
	root.init()
	return root
}

// group is a set of nodes: either groups by the value of a spread key, or,
// below the last key, nodes. Both are heaps with the best member on top.
type group struct {
	class *Class
	value string // of the spread key
	tasks int    // of the service, on all nodes of the group
	kids  []*group
	index map[string]*group // kids by value, all that there were
	nodes []*node
}

// count adds the tasks of all nodes, also of those that cannot take another
// one: they weigh in the balance too.
func (g *group) count(c *Class, n *node, keys []string) {
	g.tasks += n.services[c.Service]
	if len(keys) > 0 {
		g.kid(c, property(n.Node, keys[0])).count(c, n, keys[1:])
	}
}

func (g *group) insert(c *Class, n *node, keys []string) {
	if len(keys) == 0 {
		g.nodes = append(g.nodes, n)
		return
	}
	g.kid(c, property(n.Node, keys[0])).insert(c, n, keys[1:])
}

func (g *group) kid(c *Class, value string) *group {
	if k := g.index[value]; k != nil {
		return k
	}
	if g.index == nil {
		g.index = map[string]*group{}
	}
	k := &group{class: c, value: value}
	g.index[value] = k
	g.kids = append(g.kids, k)
	return k
}

// init drops groups without nodes and establishes the heaps.
func (g *group) init() {
	g.kids = slices.DeleteFunc(g.kids, func(k *group) bool {
		k.init()
		return k.empty()
	})
	heap.Init(g)
}

func (g *group) empty() bool { return len(g.kids) == 0 && len(g.nodes) == 0 }

// best returns the node that the next task goes to, or nil.
func (g *group) best() *node {
	for len(g.kids) > 0 {
		g = g.kids[0]
	}
	if len(g.nodes) == 0 {
		return nil
	}
	return g.nodes[0]
}

// placed restores the order after a task went to the best node, which is on
// top of every heap on the way down to it.
func (g *group) placed(c *Class, n *node) {
	g.tasks++
	if len(g.kids) > 0 {
		g.kids[0].placed(c, n)
		if g.kids[0].empty() {
			heap.Pop(g)
			return
		}
	} else if c.refuse(n) != "" {
		heap.Pop(g)
		return
	}
	heap.Fix(g, 0)
}

// Len, Less, Swap, Push and Pop implement heap.Interface over the members.
func (g *group) Len() int { return len(g.kids) + len(g.nodes) }

func (g *group) Less(i, j int) bool {
	if len(g.kids) > 0 {
		x, y := g.kids[i], g.kids[j]
		return cmp.Or(cmp.Compare(x.tasks, y.tasks), strings.Compare(x.value, y.value)) < 0
	}
	x, y, c := g.nodes[i], g.nodes[j], g.class
	return cmp.Or(
		cmp.Compare(c.Failures[x.ID], c.Failures[y.ID]),
		cmp.Compare(x.services[c.Service], y.services[c.Service]),
		cmp.Compare(x.tasks, y.tasks),
		cmp.Compare(x.ID, y.ID),
	) < 0
}

func (g *group) Swap(i, j int) {
	if len(g.kids) > 0 {
		g.kids[i], g.kids[j] = g.kids[j], g.kids[i]
		return
	}
	g.nodes[i], g.nodes[j] = g.nodes[j], g.nodes[i]
}

func (g *group) Push(any) { panic("scheduler: members of a group are known from the start") }

func (g *group) Pop() any {
	if n := len(g.kids); n > 0 {
		g.kids = g.kids[:n-1]
		return nil
	}
	g.nodes = g.nodes[:len(g.nodes)-1]
	return nil
}

// reasons counts why no node takes a task of c: "3 nodes: not enough memory;
// 1: drained", the most frequent one first.
func (b *Board) reasons(c *Class) string {
	if c.Invalid != "" {
		return c.Invalid
	}
	if len(b.nodes) == 0 {
		return "the cluster has no nodes"
	}
	counts := map[string]int{}
	var kinds []string
	for _, n := range b.nodes {
		r := c.refuse(n)
		if counts[r] == 0 {
			kinds = append(kinds, r)
		}
		counts[r]++
	}
	return Counted(kinds, counts)
}

// Counted writes reasons with the numbers of nodes they hold for, the most
// frequent first, equal ones by name.
func Counted(kinds []string, counts map[string]int) string {
	slices.SortFunc(kinds, func(x, y string) int {
		return cmp.Or(cmp.Compare(counts[y], counts[x]), strings.Compare(x, y))
	})
	var s strings.Builder
	for i, r := range kinds {
		switch {
		case i > 0:
			fmt.Fprintf(&s, "; %d: %s", counts[r], r)
		case counts[r] == 1:
			fmt.Fprintf(&s, "1 node: %s", r)
		default:
			fmt.Fprintf(&s, "%d nodes: %s", counts[r], r)
		}
	}
	return s.String()
}

// compile-time proof that a group is a heap.
var _ heap.Interface = (*group)(nil)

// Names of nodes, for reasons that name one.
func nodeName(n *spec.Node) string { return cmp.Or(n.Name, string(n.ID)) }

// Better returns the node on which one more task of class c would go and how much
// more even that makes things than if it were on the given node, where it is and
// whose booking was released; gain is 0 when it does not. A gain on a key of the
// spread counts more than one on the tasks of the service, and this more than one on
// all tasks.
func (b *Board) Better(c *Class, from spec.NodeID) (to spec.NodeID, gain int) {
	best, old := b.rank(c).best(), b.byID[from]
	if best == nil || old == nil || best == old {
		return "", 0
	}
	type level struct{ from, to int }
	var levels []level
	for i := range c.Spread {
		x, y := 0, 0
		for _, n := range b.nodes {
			if sameValues(n.Node, old.Node, c.Spread[:i+1]) {
				x += n.services[c.Service]
			}
			if sameValues(n.Node, best.Node, c.Spread[:i+1]) {
				y += n.services[c.Service]
			}
		}
		levels = append(levels, level{x, y})
	}
	levels = append(levels, level{old.services[c.Service], best.services[c.Service]}, level{old.tasks, best.tasks})
	const step = 1 << 20
	for i, l := range levels {
		switch d := l.from - l.to; {
		case d > 0:
			return best.ID, (len(levels)-i-1)*step + min(d, step-1)
		case d < 0:
			return "", 0
		}
	}
	return "", 0
}

// sameValues reports whether two nodes are in one group by the given keys.
func sameValues(x, y *spec.Node, keys []string) bool {
	return !slices.ContainsFunc(keys, func(k string) bool { return property(x, k) != property(y, k) })
}
