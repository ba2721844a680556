package reconciler

import (
	"slices"

	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// Documents returns all that a node must have.
func Documents(s *store.Snapshot, node spec.NodeID) (spec.Wanted, []spec.HostNetwork) {
	w, networks := wantedTasks(s, node), HostNetworks(s, node)
	for _, n := range networks {
		w.Networks = append(w.Networks, n.Network.ID)
	}
	return w, networks
}

// Wanted returns the whole of what a node must run. The tasks in it have no
// Status: the node itself is the source of that, and a document that repeated
// it would change with every report.
func Wanted(s *store.Snapshot, node spec.NodeID) spec.Wanted {
	w, _ := Documents(s, node)
	return w
}

// wantedTasks is Wanted without Networks.
func wantedTasks(s *store.Snapshot, node spec.NodeID) spec.Wanted {
	w := spec.Wanted{
		Clock: clock(s), Node: node,
		Tasks: []spec.Task{}, Revisions: map[spec.RevisionID]spec.Template{},
	}
	used := map[spec.VolumeID]bool{}
	for _, t := range s.TasksOn(node) {
		if t.Status.State.Terminal() {
			w.KeepLogs = append(w.KeepLogs, t.ID)
			continue
		}
		if t.Status.State == spec.TaskPending {
			continue // of a global service, and waits
		}
		c := *t
		c.Status = spec.TaskStatus{}
		w.Tasks = append(w.Tasks, c)
		if r := s.Revision(t.Revision); r != nil {
			w.Revisions[t.Revision] = r.Template
		}
		for _, b := range t.Volumes {
			if v := s.Volume(b.ID); v != nil && !used[v.ID] {
				used[v.ID] = true
				w.Volumes = append(w.Volumes, *v)
			}
		}
	}
	for _, svc := range s.ServicesFetchedBy(node) {
		if r := s.Revision(svc.Revision); r != nil {
			w.Fetch = append(w.Fetch, svc.Revision)
			w.Revisions[svc.Revision] = r.Template
		}
	}
	slices.Sort(w.Fetch)
	w.Services = wantedServices(s, &w)
	slices.SortFunc(w.Volumes, func(a, b spec.Volume) int { return compareIDs(string(a.ID), string(b.ID)) })
	for _, v := range s.RemovedVolumes() {
		if !used[v.ID] && slices.Contains(v.Homes, node) {
			w.RemoveVolumes = append(w.RemoveVolumes, v.ID)
		}
	}
	for _, v := range s.MovedVolumes() {
		if !used[v.ID] && slices.Contains(v.Left, node) {
			w.RemoveVolumes = append(w.RemoveVolumes, v.ID)
		}
		if v.Move == nil || len(v.Homes) != 1 || node != v.Move.To && node != v.Homes[0] || len(s.VolumeUsers(v.ID)) > 0 {
			continue
		}
		tr := spec.VolumeTransfer{Volume: v.ID, Name: v.Name, Move: v.Move.ID}
		if node == v.Move.To {
			tr.Peer = v.Homes[0]
			w.FetchVolumes = append(w.FetchVolumes, tr)
		} else {
			tr.Peer = v.Move.To
			w.GiveVolumes = append(w.GiveVolumes, tr)
		}
	}
	return w
}

func clock(s *store.Snapshot) spec.Clock {
	return spec.Clock{Incarnation: s.Incarnation(), Index: s.Index()}
}
