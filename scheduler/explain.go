package scheduler

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"wherry.dev/spec"
)

// Explain returns why no node takes a task of class c now: every reason with the
// names of the nodes for which it holds, the most frequent first, and the node
// that lacks least. It returns nothing when some node does take it, and no
// nearest miss when none could without becoming another one.
func (b *Board) Explain(c *Class) ([]spec.Refusal, *spec.NearMiss) {
	var out []spec.Refusal
	index := map[string]int{}
	var nearest *spec.NearMiss
	least := 0.0
	for _, n := range b.nodes {
		why := c.refuse(n)
		if why == "" {
			return nil, nil
		}
		i, ok := index[why]
		if !ok {
			i = len(out)
			index[why] = i
			out = append(out, spec.Refusal{Reason: why})
		}
		out[i].Nodes = append(out[i].Nodes, nodeName(n.Node))
		if needs, far, ok := c.lacks(n); ok && (nearest == nil || far < least) {
			nearest, least = &spec.NearMiss{Node: nodeName(n.Node), Needs: needs}, far
		}
	}
	for i := range out {
		slices.Sort(out[i].Nodes)
	}
	slices.SortFunc(out, func(x, y spec.Refusal) int {
		return cmp.Or(cmp.Compare(len(y.Nodes), len(x.Nodes)), strings.Compare(x.Reason, y.Reason))
	})
	return out, nearest
}

// How far a node is from taking a task: what tasks give back by themselves is
// near, what a person does by one command is farther, and another machine is
// farthest. What is short of a resource adds its share of what is wanted.
const (
	farFree = 1 << iota
	farActivate
	farLabel
	farUp
	farUpgrade
	farLarger
)

// lacks lists all that must come true until n takes a task of class c, and how
// far that is; ok is false when no change of the node would do.
func (c *Class) lacks(n *node) (needs []string, far float64, ok bool) {
	add := func(distance float64, format string, args ...any) {
		needs, far = append(needs, fmt.Sprintf(format, args...)), far+distance
	}
	if c.Invalid != "" || c.MaxPerNode > 0 && n.services[c.Service] >= c.MaxPerNode || c.homeElsewhere(n) != "" ||
		c.Platform != "" && !runs(n.Node, c.Platform) {
		return nil, 0, false
	}
	for _, k := range c.Constraints {
		label, is := strings.CutPrefix(k.Key, spec.NodeLabelPrefix)
		switch {
		case holds(k, n.Node):
		case !is:
			return nil, 0, false // it would be another node
		case k.Op == spec.ConstraintEqual:
			add(farLabel, "gets the label %s=%s", label, k.Value)
		default:
			add(farLabel, "has another label than %s=%s", label, k.Value)
		}
	}
	switch {
	case n.State != spec.NodeReady:
		add(farUp, "is up again")
	case n.Info.Format < c.Format:
		add(farUpgrade, "is upgraded")
	}
	if n.Availability != spec.NodeActive {
		add(farActivate, "is activated")
	}
	for _, name := range c.Parents {
		if !n.Info.HasParent(name) {
			add(farLarger, "gets an interface %s", name)
		}
	}
	if c.CPUs > 0 {
		amount(add, n.Info.NanoCPUs, n.cpus, c.CPUs, cpusText)
	}
	if c.Memory > 0 {
		amount(add, n.Info.Memory, n.memory, c.Memory, memoryText)
	}
	for _, kind := range slices.Sorted(maps.Keys(c.Generic)) {
		amount(add, n.has(kind), n.generic[kind], c.Generic[kind], func(i int64) string { return fmt.Sprintf("%d of %s", i, kind) })
	}
	for _, p := range c.Ports {
		if q := n.takes(p); q != nil {
			add(farFree, "releases port %d/%s, which %s has", p.Published, p.Protocol, q.service)
		}
	}
	return needs, far, true
}

// amount tells what is short of a resource of which there is some, some is booked
// and more is wanted.
func amount(add func(float64, string, ...any), has, booked, wants int64, text func(int64) string) {
	short := booked + wants - has
	switch {
	case short <= 0:
	case wants > has:
		add(farLarger+float64(wants-has)/float64(wants), "has %s more", text(wants-has))
	default:
		add(farFree+float64(short)/float64(wants), "frees %s", text(short))
	}
}

func cpusText(nano int64) string {
	text := strconv.FormatFloat(float64(nano)/1e9, 'f', -1, 64)
	if text == "1" {
		return "1 CPU"
	}
	return text + " CPUs"
}

// memoryText rounds up, since who frees less has not done enough.
func memoryText(bytes int64) string {
	switch {
	case bytes >= 10<<30:
		return fmt.Sprintf("%d GiB of memory", (bytes+1<<30-1)>>30)
	case bytes >= 1<<20:
		return fmt.Sprintf("%d MiB of memory", (bytes+1<<20-1)>>20)
	}
	return fmt.Sprintf("%d B of memory", bytes)
}

// Capacity returns how many tasks of class c the nodes could take if they were
// all ready, active and empty: what is beyond that is not cured by waiting. It is
// at most limit. A node that has not told what it is counts as large enough.
func (b *Board) Capacity(c *Class, limit int) int {
	all, largest := 0, 0
	if c.Invalid != "" {
		return 0
	}
	for _, n := range b.nodes {
		room := c.emptyRoom(n, limit)
		all, largest = min(all+room, limit), max(largest, room)
	}
	if c.Together {
		return largest
	}
	return all
}

func (c *Class) emptyRoom(n *node, limit int) int {
	if n.Info.OS == "" {
		return limit
	}
	if c.refuseKind(n.Node) != "" || c.homeElsewhere(n) != "" {
		return 0
	}
	room := int64(limit)
	if c.MaxPerNode > 0 {
		room = min(room, int64(c.MaxPerNode))
	}
	if len(c.Ports) > 0 {
		room = min(room, 1)
	}
	if c.CPUs > 0 {
		room = min(room, n.Info.NanoCPUs/c.CPUs)
	}
	if c.Memory > 0 {
		room = min(room, n.Info.Memory/c.Memory)
	}
	for kind, count := range c.Generic { // any order gives the same
		if count > 0 {
			room = min(room, n.has(kind)/count)
		}
	}
	return int(room)
}
