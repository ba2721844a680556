package scheduler

import (
	"cmp"
	"slices"

	"wherry.dev/spec"
)

// Class is what all tasks of one call of Place have in common: the
// requirements of one service at one revision.
type Class struct {
	// Service is the key ("stack/service") under which tasks are counted for
	// spreading and for MaxPerNode.
	Service string
	// CPUs (billionths of a core) and Memory (bytes) that one task reserves.
	CPUs, Memory int64
	// Generic are numbers of other things that one task reserves, by kind.
	Generic map[string]int64
	// Constraints must all hold; Invalid, when not empty, is the reason why
	// they cannot be judged, and no node fits.
	Constraints []spec.Constraint
	Invalid     string
	// Platform "os/arch[/variant]" of the image; empty fits every node.
	Platform string
	// Format is the oldest format that the node must know; 0 is any.
	Format int
	// Parents are interfaces that the node must have, for the networks of its
	// own that a task is on.
	Parents []string
	// Ports that a task occupies on its node (mode host).
	Ports []spec.Port
	// Homes limit the nodes: for every volume that has homes, one entry.
	Homes []Homes
	// MaxPerNode is the largest number of the service's tasks on a node; 0 is
	// no limit.
	MaxPerNode int
	// Spread lists keys (as of constraints) over whose values tasks are spread,
	// the first one first.
	Spread []string
	// Together puts all tasks on the node of the first one: they share a volume
	// that has no home yet.
	Together bool
	// Failures counts recent failures of the service by node; a node with fewer
	// is preferred before its tasks are counted.
	Failures map[spec.NodeID]int
}

// Homes are the nodes that hold an instance of a volume.
type Homes struct {
	Volume string // cluster-wide name, for the reason
	Nodes  []spec.NodeID
}

// Booking is what a task that exists takes from its node.
type Booking struct {
	Node         spec.NodeID
	Service      string
	CPUs, Memory int64
	Generic      map[string]int64
	Ports        []spec.Port
}

// Placement is the answer for one task: a node, or the reason why there is
// none.
type Placement struct {
	Node   spec.NodeID
	Reason string
}

// Board holds the nodes and what is booked on them during one pass.
type Board struct {
	nodes []*node // by ID
	byID  map[spec.NodeID]*node
}

// node is a host with the sums of what is booked on it.
type node struct {
	*spec.Node
	cpus, memory int64
	generic      map[string]int64 // by kind; nil while nothing is booked
	tasks        int
	services     map[string]int // tasks by service
	ports        []taken
}

// taken is a port of a node and the service that has it.
type taken struct {
	spec.Port
	service string
}

// NewBoard returns a board of the given nodes, which it does not modify, with
// nothing booked.
func NewBoard(nodes []*spec.Node) *Board {
	b := &Board{byID: make(map[spec.NodeID]*node, len(nodes))}
	for _, n := range nodes {
		v := &node{Node: n, services: map[string]int{}}
		b.nodes = append(b.nodes, v)
		b.byID[n.ID] = v
	}
	slices.SortFunc(b.nodes, func(x, y *node) int { return cmp.Compare(x.ID, y.ID) })
	return b
}

// Book notes a task that exists. A node that does not exist is ignored.
func (b *Board) Book(k Booking) { b.add(k, 1) }

// Release takes back what Book noted, or what Place did: the booking of a
// placement is Class.Booking.
func (b *Board) Release(k Booking) { b.add(k, -1) }

// Booking is what a task of class c takes from the given node.
func (c *Class) Booking(n spec.NodeID) Booking {
	return Booking{Node: n, Service: c.Service, CPUs: c.CPUs, Memory: c.Memory, Generic: c.Generic, Ports: c.Ports}
}

func (b *Board) add(k Booking, sign int) {
	n := b.byID[k.Node]
	if n == nil {
		return
	}
	n.cpus += int64(sign) * k.CPUs
	n.memory += int64(sign) * k.Memory
	for kind, count := range k.Generic { // any order gives the same sums
		if n.generic == nil {
			n.generic = map[string]int64{}
		}
		n.generic[kind] += int64(sign) * count
	}
	n.tasks += sign
	n.services[k.Service] += sign
	for _, p := range k.Ports {
		q := taken{p, k.Service}
		if sign > 0 {
			n.ports = append(n.ports, q)
		} else if i := slices.Index(n.ports, q); i >= 0 {
			n.ports = slices.Delete(n.ports, i, i+1)
		}
	}
}

// Fits returns the reason why a task of class c cannot go to the given node,
// or "" when it can.
func (b *Board) Fits(c *Class, id spec.NodeID) string {
	n := b.byID[id]
	if n == nil {
		return "the node does not exist"
	}
	return c.refuse(n)
}

// Satisfies reports whether the properties of a node that do not change with
// its load, its constraints and its platform, allow a task of class c. It is
// the part of the filter that also holds for tasks that already run.
func Satisfies(c *Class, n *spec.Node) bool {
	return c.Invalid == "" && c.refuseKind(n) == ""
}
