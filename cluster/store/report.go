package store

import (
	"slices"

	"github.com/hashicorp/go-memdb"

	"wherry.dev/spec"
)

// reports applies what nodes observed. Nothing in a report is an error: what
// does not fit the state comes too late or from the wrong node.
func (r *reducer) reports(c *Reports) {
	w := &reporter{reducer: r, before: r.db.Txn(false), written: map[spec.TaskID]bool{}}
	for i := range c.Reports {
		w.report(&c.Reports[i])
	}
	r.sweepVolumes()
}

// reporter is one command of reports at work. A read inside a transaction makes
// memdb copy on the next write all the nodes that it has copied already, so a
// task is read from the state before the command unless it was written since.
type reporter struct {
	*reducer
	before  *memdb.Txn
	written map[spec.TaskID]bool
}

func (r *reporter) task(id spec.TaskID) *spec.Task {
	if r.written[id] {
		return r.tasks.get(r.txn, idKey(id))
	}
	return r.tasks.get(r.before, idKey(id))
}

func (r *reporter) report(rep *spec.Report) {
	node := r.nodes.get(r.txn, textKey(rep.Node))
	if node == nil {
		return
	}
	if rep.Info != nil && *rep.Info != node.Info {
		next := *node
		next.Info = *rep.Info
		put(r.reducer, &r.nodes, next)
	}
	r.reportPorts(rep)
	r.reportFetched(rep)
	for i := range rep.Tasks {
		r.reportTask(rep.Node, &rep.Tasks[i])
	}
	for _, id := range rep.VolumesRemoved {
		r.volumeGone(rep.Node, id)
	}
	for i := range rep.VolumesFetched {
		r.volumeFetched(rep.Node, &rep.VolumesFetched[i])
	}
}

// reportPorts replaces what the node told of its ports before. It is no write
// that anybody bases a decision of the passes on, so the version stays.
func (r *reporter) reportPorts(rep *spec.Report) {
	node := r.nodes.get(r.txn, textKey(rep.Node))
	if rep.Ports == nil || node.Ports != nil && slices.Equal(*node.Ports, *rep.Ports) {
		return
	}
	next := *node
	ports := append([]spec.PortStatus{}, *rep.Ports...) // never nil, which would read back as "has not told"
	next.Ports = &ports
	put(r.reducer, &r.nodes, next)
}

// reportFetched likewise replaces what the node told of images.
func (r *reporter) reportFetched(rep *spec.Report) {
	node := r.nodes.get(r.txn, textKey(rep.Node))
	if rep.Fetched == nil || node.Fetched != nil && slices.Equal(*node.Fetched, *rep.Fetched) {
		return
	}
	next := *node
	list := append([]spec.FetchStatus{}, *rep.Fetched...)
	next.Fetched = &list
	put(r.reducer, &r.nodes, next)
}

func (r *reporter) reportTask(node spec.NodeID, rep *spec.TaskReport) {
	t := r.task(rep.Task)
	if t == nil || t.Node != node || !mayReport(t.Status.State, rep.Status.State) {
		return
	}
	status := rep.Status
	status.Attempts = status.Attempts[max(0, len(status.Attempts)-spec.KeepAttempts):]
	if status.Since.IsZero() {
		status.Since = r.now
		if status.State == t.Status.State {
			status.Since = t.Status.Since
		}
	}
	if status.State == t.Status.State && same(&status, &t.Status) {
		return
	}
	next := *t
	next.Status = status
	put(r.reducer, &r.tasks, next)
	r.written[t.ID] = true
	r.taskEvent(t, &next, "")
}

// mayReport reports whether a node may move its task from one state to the
// next. A pending task is not the node's yet. What was given up as lost may
// still end: the node confirms that it no longer runs, and with it that its
// address is free.
func mayReport(from, to spec.TaskState) bool {
	switch {
	case from == spec.TaskPending:
		return false
	case from.Terminal():
		return from == spec.TaskLost && to.Terminal() && to != spec.TaskLost
	}
	return !to.Before(from)
}

// taskEvent notes that a task has come to its end.
func (r *reducer) taskEvent(old, next *spec.Task, why string) {
	if old.Status.State.Terminal() || !next.Status.State.Terminal() {
		return
	}
	if why == "" {
		why = next.Status.Reason
	}
	r.event(spec.Event{
		Kind: "task." + string(next.Status.State), Stack: next.Stack, Service: next.Service, Task: next.ID, Node: next.Node, Message: why,
	})
}
