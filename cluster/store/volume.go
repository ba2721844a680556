package store

import (
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
	put(r, &r.volumes, next)
	r.forgetHomes(&next)
}

// sweepVolumes deletes the rows of volumes whose data is gone everywhere.
func (r *reducer) sweepVolumes() {
	for v := range r.volumes.with(r.txn, byRemoving, []byte{1}) {
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
	if v == nil || !v.Removing || !slices.Contains(v.Homes, node) {
		return
	}
	next := *v
	next.Homes = slices.DeleteFunc(slices.Clone(v.Homes), func(h spec.NodeID) bool { return h == node })
	next.Version = r.index
	put(r, &r.volumes, next)
}
