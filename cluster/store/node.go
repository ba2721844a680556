package store

import (
	"maps"

	"wherry.dev/spec"
)

// putNode adds a node or changes what membership knows of it.
func (r *reducer) putNode(c *PutNode) error {
	if err := checkName("node", string(c.ID)); err != nil {
		return err
	}
	if err := checkName("node", c.Name); err != nil {
		return err
	}
	if c.Role != spec.RoleManager && c.Role != spec.RoleWorker {
		return spec.Invalidf("node %s: the role %q is neither manager nor worker", c.Name, c.Role)
	}
	old := r.nodes.get(r.txn, textKey(c.ID))
	next := spec.Node{ID: c.ID, Availability: spec.NodeActive}
	if old != nil {
		next = *old
	} else {
		next.Number = r.freeNumber()
	}
	next.Name, next.Address, next.Role, next.State = c.Name, c.Address, c.Role, spec.NodeReady
	if old != nil && same(old, &next) {
		return nil
	}
	next.Version = r.index
	put(r, &r.nodes, next)
	if old == nil || old.State != spec.NodeReady {
		r.event(spec.Event{Kind: "node.up", Node: c.ID, Message: c.Name})
	}
	return nil
}

// freeNumber returns the smallest number from 1 that no node has.
func (r *reducer) freeNumber() uint32 {
	taken := map[uint32]bool{}
	for n := range r.nodes.all(r.txn) {
		taken[n.Number] = true
	}
	n := uint32(1)
	for taken[n] {
		n++
	}
	return n
}

// setNode changes what the user decides of a node.
func (r *reducer) setNode(c *SetNode) error {
	old := r.nodes.get(r.txn, textKey(c.ID))
	if old == nil {
		return spec.NotFoundf("there is no node %q", c.ID)
	}
	next := *old
	if a := c.Availability; a != nil {
		if *a != spec.NodeActive && *a != spec.NodePaused && *a != spec.NodeDrain {
			return spec.Invalidf("node %s: the availability %q is none of active, paused and drained", old.Name, *a)
		}
		next.Availability = *a
	}
	next.Labels = cloned(old.Labels)
	for name, value := range c.Labels { // each changes one key of its own
		if value == nil {
			delete(next.Labels, name)
		} else {
			next.Labels[name] = *value
		}
	}
	if next.Availability == old.Availability && maps.Equal(next.Labels, old.Labels) {
		return nil
	}
	next.Version = r.index
	put(r, &r.nodes, next)
	return nil
}

// setNodeState notes that a node came or went.
func (r *reducer) setNodeState(c *SetNodeState) error {
	kinds := map[spec.NodeState]string{spec.NodeReady: "node.up", spec.NodeDown: "node.down"}
	kind, ok := kinds[c.State]
	if !ok {
		return spec.Invalidf("node %s: the state %q is neither ready nor down", c.ID, c.State)
	}
	old := r.nodes.get(r.txn, textKey(c.ID))
	if old == nil {
		return spec.NotFoundf("there is no node %q", c.ID)
	}
	if old.State == c.State {
		return nil
	}
	next := *old
	next.State, next.Version = c.State, r.index
	put(r, &r.nodes, next)
	r.event(spec.Event{Kind: kind, Node: c.ID, Message: old.Name})
	return nil
}
