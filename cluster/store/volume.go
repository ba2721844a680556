package store

import (
	"fmt"
	"slices"
	"strings"

	"wherry.dev/spec"
)

// removeVolumes marks volumes for the removal of their data.
func (r *reducer) removeVolumes(c *RemoveVolumes) error {
	var missing []string
	for _, name := range c.Names {
		if r.volumes.first(r.txn, byName, textKey(name)) == nil {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return spec.NotFoundf("there is no volume %s", strings.Join(missing, ", "))
	}
	for _, name := range c.Names {
		v := r.volumes.first(r.txn, byName, textKey(name))
		if v.Removing {
			continue
		}
		if r.allCopiesGone(v) && r.declarer(v.Name) != "" {
			r.forgetHomes(v) // its services need the volume, if an empty one
			r.event(spec.Event{Kind: "volume.reset", Stack: v.Stack, Message: v.Name + " begins anew: its copies were on nodes that were removed"})
			continue
		}
		if v.Move != nil {
			return spec.Conflictf("volume %s is being moved: wait, or take that back by moving it to where it is", v.Name)
		}
		if err := r.checkUnused(v, ""); err != nil {
			return err
		}
		r.markRemoving(v)
	}
	r.sweepVolumes()
	return nil
}

// allCopiesGone reports whether every copy of a volume was on a node that is no
// part of the cluster any more.
func (r *reducer) allCopiesGone(v *spec.Volume) bool {
	return len(v.Homes) > 0 && !slices.ContainsFunc(v.Homes, func(id spec.NodeID) bool { return r.nodes.get(r.txn, textKey(id)) != nil })
}

// removeVolumesOf marks every volume that a stack owns, after its row is gone.
func (r *reducer) removeVolumesOf(stack string) error {
	for v := range r.volumes.with(r.txn, byStack, textsKey(stack)) {
		if v.Removing {
			continue
		}
		if err := r.checkUnused(v, stack); err != nil {
			return err
		}
		r.markRemoving(v)
	}
	return nil
}

// checkUnused refuses to remove a volume that a live task of another stack
// than except uses, or that a stack declares: its services could then never
// start again.
func (r *reducer) checkUnused(v *spec.Volume, except string) error {
	for t := range r.liveUsers(v.ID) {
		if t.Stack != except {
			return spec.Conflictf("volume %s is used by task %s", v.Name, r.taskName(t))
		}
	}
	if stack := r.declarer(v.Name); stack != "" {
		return spec.Conflictf("volume %s is declared by stack %s: remove the stack, or the volume from its file, first", v.Name, stack)
	}
	return nil
}

// declarer returns a stack that declares the volume.
func (r *reducer) declarer(name string) string {
	for head := range r.stacks.all(r.txn) {
		rev := r.newest(head)
		for short, v := range rev.Spec.Volumes { // any order gives the same answer
			if v.ClusterName(head.Name, short) == name {
				return head.Name
			}
		}
	}
	return ""
}

// liveUsers returns the tasks that use a volume and are not over.
func (r *reducer) liveUsers(id spec.VolumeID) func(yield func(*spec.Task) bool) {
	return func(yield func(*spec.Task) bool) {
		for t := range r.tasks.with(r.txn, byVolume, idKey(id)) {
			if !t.Status.State.Terminal() && !yield(t) {
				return
			}
		}
	}
}

func (r *reducer) taskName(t *spec.Task) string {
	name := string(t.Node)
	if n := r.nodes.get(r.txn, textKey(t.Node)); n != nil {
		name = n.Name
	}
	return spec.TaskName(t, name)
}

func (r *reducer) markRemoving(v *spec.Volume) {
	next := *v
	next.Removing, next.Version = true, r.index
	// Whoever has a copy deletes it.
	next.Homes = slices.Concat(v.Homes, v.Left)
	if v.Move != nil {
		next.Homes = append(next.Homes, v.Move.To)
	}
	next.Move, next.Left = nil, nil
	put(r, &r.volumes, next)
	r.forgetHomes(&next)
}

// sweepVolumes deletes the rows of volumes whose data is gone everywhere.
func (r *reducer) sweepVolumes() {
	for v := range r.volumes.with(r.txn, byRemoving, removingVolume) {
		if len(v.Homes) > 0 {
			continue
		}
		used := false
		for range r.liveUsers(v.ID) {
			used = true
			break
		}
		if !used {
			drop(r, &r.volumes, v)
			r.event(spec.Event{Kind: "volume.removed", Stack: v.Stack, Message: v.Name})
		}
	}
}

// volumeGone takes a node's word that its instance of a volume is gone.
func (r *reducer) volumeGone(node spec.NodeID, id spec.VolumeID) {
	v := r.volumes.get(r.txn, idKey(id))
	if v == nil {
		return
	}
	next := *v
	if !v.Removing {
		if slices.Contains(v.Left, node) {
			next.Left, next.Version = without(v.Left, node), r.index
			put(r, &r.volumes, next)
		}
		return
	}
	if !slices.Contains(v.Homes, node) {
		return
	}
	next.Homes = without(v.Homes, node)
	next.Version = r.index
	put(r, &r.volumes, next)
}

func without(list []spec.NodeID, node spec.NodeID) []spec.NodeID {
	out := slices.DeleteFunc(slices.Clone(list), func(id spec.NodeID) bool { return id == node })
	if len(out) == 0 {
		return nil
	}
	return out
}

// createVolume makes a volume that belongs to no stack. One that is there
// already and was made in the same way stays as it is.
func (r *reducer) createVolume(c *CreateVolume) error {
	if err := checkName("volume", c.Name); err != nil {
		return err
	}
	if c.Spec.External || c.Spec.Name != "" || c.Spec.Seed != "" {
		return spec.Invalidf("volume %s: one that is made by hand is not external, and has no other name and no seed", c.Name)
	}
	if c.Home != "" && c.Spec.Shared() {
		return spec.Invalidf("volume %s: its data is on no node, so it has no home", c.Name)
	}
	if c.Home != "" && r.nodes.get(r.txn, textKey(c.Home)) == nil {
		return spec.NotFoundf("there is no node %q", c.Home)
	}
	row := r.volumes.first(r.txn, byName, textKey(c.Name))
	switch {
	case row == nil:
	case row.Removing:
		return spec.Conflictf("volume %s is being removed: try again when it is gone", c.Name)
	case row.Stack != "":
		return spec.Conflictf("volume %s exists already, it belongs to stack %s", c.Name, row.Stack)
	case !same(&row.Spec, &c.Spec), c.Home != "" && !slices.Contains(row.Homes, c.Home):
		return spec.Conflictf("volume %s exists already, with other options, other labels or another home", c.Name)
	default:
		return nil
	}
	v := spec.Volume{ID: spec.VolumeID(r.newID()), Short: c.Name, Name: c.Name, Spec: c.Spec, Version: r.index}
	if c.Home != "" {
		v.Homes = []spec.NodeID{c.Home}
	}
	put(r, &r.volumes, v)
	r.event(spec.Event{Kind: "volume.created", Message: c.Name})
	return nil
}

// moveVolume begins the move of a volume to another node, or takes one back.
func (r *reducer) moveVolume(c *MoveVolume) error {
	v := r.volumes.first(r.txn, byName, textKey(c.Name))
	to := r.nodes.get(r.txn, textKey(c.To))
	switch {
	case v == nil:
		return spec.NotFoundf("there is no volume %s", c.Name)
	case to == nil:
		return spec.NotFoundf("there is no node %q", c.To)
	case v.Removing:
		return spec.Conflictf("volume %s is being removed", v.Name)
	case v.Anonymous:
		return spec.Conflictf("volume %s belongs to one slot of service %s and cannot be moved: give the volume a name in the file", v.Name, spec.ServiceKey(v.Stack, v.Service))
	case v.Spec.Shared():
		return spec.Invalidf("volume %s has its data on no node: every node mounts it", v.Name)
	case len(v.Spec.DriverOpts) > 0:
		return spec.Invalidf("volume %s is what driver_opts make of a device of its node: that cannot be copied", v.Name)
	case len(v.Homes) > 1:
		return spec.Conflictf("volume %s has an instance on each of %d nodes, and none of them is the one to be moved", v.Name, len(v.Homes))
	}
	next := *v
	next.Version = r.index
	if len(v.Homes) == 0 {
		next.Homes = []spec.NodeID{to.ID}
		put(r, &r.volumes, next)
		return nil
	}
	if v.Move != nil && v.Move.To == to.ID {
		return nil
	}
	if v.Homes[0] == to.ID {
		if v.Move != nil {
			r.endMove(&next)
			put(r, &r.volumes, next)
			r.event(spec.Event{Kind: "volume.stays", Stack: v.Stack, Node: to.ID, Message: v.Name + " stays on node " + to.Name})
		}
		return nil
	}
	home := r.nodes.get(r.txn, textKey(v.Homes[0]))
	switch {
	case home == nil:
		return spec.Conflictf("volume %s: its only copy was on node %s, which was removed from the cluster", v.Name, v.Homes[0])
	case home.State != spec.NodeReady:
		return spec.Conflictf("volume %s cannot be copied: node %s, which holds it, is %s", v.Name, home.Name, home.State)
	case to.State != spec.NodeReady:
		return spec.Conflictf("volume %s cannot be copied: node %s is %s", v.Name, to.Name, to.State)
	case slices.Contains(v.Left, to.ID):
		return spec.Conflictf("node %s still deletes an older copy of volume %s: try again in a moment", to.Name, v.Name)
	}
	for t := range r.liveUsers(v.ID) {
		switch {
		case t.Slot == 0:
			return spec.Conflictf("volume %s is used by task %s of a global service, which has one on each node", v.Name, r.taskName(t))
		case !c.Stop && v.Move == nil:
			return spec.Conflictf("volume %s is used by task %s: with --stop its users stop until it has moved", v.Name, r.taskName(t))
		}
	}
	r.endMove(&next)
	next.Move = &spec.VolumeMove{ID: r.index, To: to.ID}
	put(r, &r.volumes, next)
	r.event(spec.Event{Kind: "volume.moving", Stack: v.Stack, Node: to.ID, Message: fmt.Sprintf("%s, from node %s to node %s", v.Name, home.Name, to.Name)})
	return nil
}

// endMove gives up a move; what there is of a copy does not count.
func (r *reducer) endMove(v *spec.Volume) {
	if v.Move != nil {
		v.Left = slices.Concat(v.Left, []spec.NodeID{v.Move.To})
		v.Move = nil
	}
}

// forgetMove gives up a move to or from a node that is gone, and waits for no
// word from it.
func (r *reducer) forgetMove(v *spec.Volume, gone spec.NodeID) {
	next := *v
	if v.Move != nil && (v.Move.To == gone || slices.Contains(v.Homes, gone)) {
		r.endMove(&next)
	}
	next.Left, next.Version = without(next.Left, gone), r.index
	if !same(v.Move, next.Move) || len(v.Left) != len(next.Left) {
		put(r, &r.volumes, next)
	}
}

// volumeFetched takes a node's word on a move to it. When the data is there,
// the node is the home, and the copy of the old home does not count any more.
func (r *reducer) volumeFetched(node spec.NodeID, f *spec.VolumeFetched) {
	v := r.volumes.get(r.txn, idKey(f.Volume))
	if v == nil || v.Move == nil || v.Move.ID != f.Move || v.Move.To != node {
		return
	}
	next := *v
	if f.Problem != "" {
		if f.Problem != v.Move.Problem {
			move := *v.Move
			move.Problem = f.Problem
			next.Move, next.Version = &move, r.index
			put(r, &r.volumes, next)
		}
		return
	}
	for range r.liveUsers(v.ID) {
		return // it ran while the copy was made, which cannot be
	}
	next.Homes, next.Left, next.Move, next.Version = []spec.NodeID{node}, slices.Concat(v.Left, v.Homes), nil, r.index
	put(r, &r.volumes, next)
	r.event(spec.Event{Kind: "volume.moved", Stack: v.Stack, Node: node, Message: v.Name})
}
