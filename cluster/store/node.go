package store

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"

	"wherry.dev/spec"
)

// CheckNodeName says what is wrong with the name of a node.
func CheckNodeName(name string) error {
	if strings.HasPrefix(name, "-") || strings.ContainsFunc(name, unicode.IsSpace) {
		return spec.Invalidf("node %q: the name must not begin with a dash or hold spaces", name)
	}
	return checkName("node", name)
}

// putNode adds a node or changes what membership knows of it.
func (r *reducer) putNode(c *PutNode) error {
	if err := checkName("node", string(c.ID)); err != nil {
		return err
	}
	if err := CheckNodeName(c.Name); err != nil {
		return err
	}
	if c.Role != spec.RoleManager && c.Role != spec.RoleWorker && c.Role != "" {
		return spec.Invalidf("node %s: the role %q is neither manager nor worker", c.Name, c.Role)
	}
	if other := r.nodes.first(r.txn, byName, textKey(c.Name)); other != nil && other.ID != c.ID {
		return spec.Conflictf("the name %s is that of node %s, which is %s: give this host another one (--name), or remove that node first", c.Name, other.ID, other.State)
	}
	old := r.nodes.get(r.txn, textKey(c.ID))
	next := spec.Node{ID: c.ID, Role: c.Role, Availability: spec.NodeActive, Key: c.Key}
	switch {
	case old == nil && c.Role == "":
		return spec.NotFoundf("there is no node %q: it was removed, or has not joined", c.ID)
	case old == nil:
		next.Number = r.freeNumber()
	case c.Role != "" && c.Role != old.Role:
		return spec.Conflictf("node %s is a %s and stays one: promote or demote it to change that", old.Name, old.Role)
	case c.Key != "" && old.Key != "" && c.Key != old.Key:
		return spec.Conflictf("node %s has another key: the identity of a host is not handed on, join with a new one", old.Name)
	default:
		next = *old
		if c.Key != "" {
			next.Key = c.Key
		}
	}
	next.Name, next.Address, next.State, next.DownSince = c.Name, c.Address, spec.NodeReady, time.Time{}
	if old != nil && same(old, &next) {
		return nil
	}
	next.Version = r.index
	put(r, &r.nodes, next)
	switch {
	case old == nil && r.meta.Format >= 2:
		r.event(spec.Event{Kind: "node.joined", Node: c.ID, Message: fmt.Sprintf("%s, a %s at %s", c.Name, c.Role, c.Address)})
	case old == nil || old.State != spec.NodeReady:
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
		next.Availability, next.StopPinned = *a, c.StopPinned
	}
	if c.StopPinned && next.Availability != spec.NodeDrain {
		return spec.Invalidf("node %s: tasks that cannot move are stopped only while the node is drained", old.Name)
	}
	next.StopPinned = next.StopPinned || c.StopPinned
	next.Labels = cloned(old.Labels)
	for name, value := range c.Labels { // each changes one key of its own
		if value == nil {
			delete(next.Labels, name)
		} else {
			next.Labels[name] = *value
		}
	}
	if next.Availability == old.Availability && next.StopPinned == old.StopPinned && maps.Equal(next.Labels, old.Labels) {
		return nil
	}
	next.Version = r.index
	put(r, &r.nodes, next)
	if r.meta.Format >= 2 && (next.Availability != old.Availability || next.StopPinned != old.StopPinned) {
		what := fmt.Sprintf("%s is %s", old.Name, next.Availability)
		if next.StopPinned {
			what += ", tasks that cannot move are stopped"
		}
		r.event(spec.Event{Kind: "node.availability", Node: c.ID, Message: what})
	}
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
	next.State, next.DownSince, next.Version = c.State, time.Time{}, r.index
	if c.State == spec.NodeDown && r.meta.Format >= 2 {
		next.DownSince = r.now
	}
	put(r, &r.nodes, next)
	r.event(spec.Event{Kind: kind, Node: c.ID, Message: old.Name})
	return nil
}

// setRole makes a worker a manager or a manager a worker.
func (r *reducer) setRole(c *SetRole) error {
	if c.Role != spec.RoleManager && c.Role != spec.RoleWorker {
		return spec.Invalidf("node %s: the role %q is neither manager nor worker", c.ID, c.Role)
	}
	old := r.nodes.get(r.txn, textKey(c.ID))
	switch {
	case old == nil:
		return spec.NotFoundf("there is no node %q", c.ID)
	case old.Role == c.Role:
		return nil
	case c.Role == spec.RoleManager && old.State != spec.NodeReady:
		return spec.Conflictf("node %s is %s and could not vote: start its daemon, then promote it", old.Name, old.State)
	case c.Role == spec.RoleWorker:
		if err := r.checkManagerGoes(old, "demoted"); err != nil {
			return err
		}
	}
	next := *old
	next.Role, next.Version = c.Role, r.index
	put(r, &r.nodes, next)
	r.event(spec.Event{Kind: "node.role", Node: c.ID, Message: fmt.Sprintf("%s is a %s now", old.Name, c.Role)})
	return nil
}

// checkManagerGoes refuses to take a manager from the voters when none would
// be left, or when those that are alive would be no majority any more.
func (r *reducer) checkManagerGoes(gone *spec.Node, done string) error {
	var ready, all int
	var down []string
	for n := range r.nodes.all(r.txn) {
		if n.ID == gone.ID || n.Role != spec.RoleManager {
			continue
		}
		all++
		if n.State == spec.NodeReady {
			ready++
		} else {
			down = append(down, n.Name)
		}
	}
	switch {
	case all == 0:
		return spec.Conflictf("node %s is the only manager and cannot be %s: promote another node first", gone.Name, done)
	case gone.State == spec.NodeReady && ready < all/2+1:
		return spec.Conflictf("node %s cannot be %s: of the %d managers left only %d would be alive, which is no majority; bring back or remove %s first",
			gone.Name, done, all, ready, down[0])
	}
	return nil
}

// removeNode takes a node out of the cluster. What was on it is lost: nobody is
// left to stop it in order, and what it held is free.
func (r *reducer) removeNode(c *RemoveNode) error {
	old := r.nodes.get(r.txn, textKey(c.ID))
	if old == nil {
		return spec.NotFoundf("there is no node %q", c.ID)
	}
	if old.Role == spec.RoleManager {
		if err := r.checkManagerGoes(old, "removed"); err != nil {
			return err
		}
	}
	if old.State == spec.NodeReady && !c.Force {
		return spec.Conflictf("node %s is ready: drain it and stop its daemon first (\"wherry node leave\" on the host does both), or remove it as it is with --force", old.Name)
	}
	drop(r, &r.nodes, old)
	r.event(spec.Event{Kind: "node.removed", Node: c.ID, Message: old.Name})
	r.loseTasks(old)
	for v := range r.volumes.with(r.txn, byRemoving, removingVolume) {
		r.forgetHomes(v)
	}
	for v := range r.volumes.with(r.txn, byRemoving, movedVolume) {
		r.forgetMove(v, old.ID)
	}
	r.sweepVolumes()
	return nil
}

// loseTasks gives up all tasks of a node that was removed. Their addresses are
// dropped, not only free: the host may join again as the same node and would
// seem to hold them still.
func (r *reducer) loseTasks(n *spec.Node) {
	w := &part{reducer: r}
	for t := range r.tasks.with(r.txn, byNode, textsKey(string(n.ID))) {
		if t.Status.State.Terminal() && t.Status.State != spec.TaskLost {
			continue
		}
		next := *t
		next.Addresses, next.Version = nil, r.index
		if !t.Status.State.Terminal() {
			next.Status.State, next.Status.Since = spec.TaskLost, r.now
		}
		next.Status.Reason = "node " + n.Name + " was removed from the cluster"
		put(r, &r.tasks, next)
		r.taskEvent(t, &next, "")
		w.touch(&next)
	}
	w.bumpServices()
}

// forgetHomes drops the homes of a volume that are on nodes that are gone:
// nobody will ever tell that the data there is deleted.
func (r *reducer) forgetHomes(v *spec.Volume) {
	homes := slices.DeleteFunc(slices.Clone(v.Homes), func(id spec.NodeID) bool { return r.nodes.get(r.txn, textKey(id)) == nil })
	if len(homes) == len(v.Homes) {
		return
	}
	next := *v
	next.Homes, next.Version = homes, r.index
	put(r, &r.volumes, next)
}
