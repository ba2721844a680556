package sim

import (
	"slices"

	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// uses reports whether a task of the host that is not over uses a volume.
func (h *host) uses(id spec.VolumeID) bool {
	for _, r := range h.runs { // any order finds the same
		if !r.status.State.Terminal() && slices.ContainsFunc(r.task.Volumes, func(b spec.VolumeBinding) bool { return b.ID == id }) {
			return true
		}
	}
	return false
}

// write is what a task does that starts. It has to find what the tasks before it
// have written, wherever that was, unless a person gave that up.
func (h *host) write(w *World, r *run) {
	snap := w.store.Snapshot()
	for _, b := range r.task.Volumes {
		v := snap.Volume(b.ID)
		if v == nil || v.Anonymous || r.task.Slot == 0 {
			continue
		}
		if h.data[b.ID] < w.data[b.ID] && len(v.Homes) == 1 && v.Homes[0] == h.id {
			w.failf("task %s starts on %s with %d of the %d writes to volume %s", r.task.ID, h.name, h.data[b.ID], w.data[b.ID], v.Name)
		}
		h.data[b.ID]++
		w.data[b.ID] = max(w.data[b.ID], h.data[b.ID])
	}
}

// fetch copies the volumes that are to be moved here. It may break off, and a
// copy that is not complete is none.
func (h *host) fetch(w *World) {
	for _, tr := range h.want.FetchVolumes {
		i := slices.IndexFunc(w.hosts, func(x *host) bool { return x.id == tr.Peer })
		if i < 0 || !w.calm && w.chance(30) {
			continue
		}
		from := w.hosts[i]
		f := spec.VolumeFetched{Volume: tr.Volume, Move: tr.Move}
		switch {
		case !from.up, from.uses(tr.Volume), !slices.ContainsFunc(from.want.GiveVolumes, func(g spec.VolumeTransfer) bool { return g.Move == tr.Move && g.Peer == h.id }):
			f.Problem = "the node does not give it"
		default:
			h.data[tr.Volume] = from.data[tr.Volume]
		}
		if f.Problem == "" || !w.calm && w.chance(20) {
			h.fetched[tr.Volume] = f
		}
	}
}

// checkHomes: a task runs only where its volume is at home, and nobody runs
// while it moves; the home of a volume changes by a word from its new one, by
// a plan that gives it the first, or by a person.
func (w *World) checkHomes(before, after *store.Snapshot, c *store.Command) {
	for _, v := range after.Volumes() {
		old := before.Volume(v.ID)
		if old == nil {
			continue
		}
		if len(old.Homes) == 1 && len(v.Homes) == 1 && old.Homes[0] != v.Homes[0] && c.Reports == nil {
			w.failf("volume %s moves by %s", v.Name, c.Kind())
		}
		if old.Move == nil || v.Move == nil {
			continue
		}
		for _, t := range after.VolumeUsers(v.ID) {
			if t.Status.State != spec.TaskPending && before.Task(t.ID) == nil {
				w.failf("task %s is made for volume %s, which is being moved", t.ID, v.Name)
			}
		}
	}
}

// checkMoved: at rest no move is under way between hosts that live, and no copy
// is left on one that does.
func (w *World) checkMoved() {
	s := w.store.Snapshot()
	gone := func(id spec.NodeID) bool { return w.dead != nil && w.dead.id == id }
	for _, v := range s.MovedVolumes() {
		if v.Move != nil && !gone(v.Move.To) && !slices.ContainsFunc(v.Homes, gone) && len(s.VolumeUsers(v.ID)) == 0 {
			w.failf("volume %s does not get to %s", v.Name, v.Move.To)
		}
		if slices.ContainsFunc(v.Left, func(id spec.NodeID) bool { return !gone(id) }) {
			w.failf("volume %s has copies left on %v", v.Name, v.Left)
		}
	}
}
