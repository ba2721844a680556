package agent

import "wherry.dev/spec"

// A task may join another one of this node, its head: it has the network of
// that, and tells of it what the head would. The head is not told to stop, and
// its network not removed, before those that join it are over; they end when it
// ends, whether the managers say so or not. The memory of a task names its head,
// so that this holds for what the managers have forgotten, too.

// head is a task and what it runs.
type head struct {
	task *spec.Task
	tmpl *spec.Template
}

// heads are the tasks of a document that others of it join.
func (a *Agent) heads(w *spec.Wanted) map[spec.TaskID]*head {
	out := map[spec.TaskID]*head{}
	for _, t := range w.Tasks {
		if t.Joins != "" {
			out[t.Joins] = nil
		}
	}
	for i := range w.Tasks {
		t := &w.Tasks[i]
		tmpl, ok := w.Revisions[t.Revision]
		if _, wanted := out[t.ID]; ok && wanted {
			tmpl = tmpl.Filled(a.placeholders(t))
			out[t.ID] = &head{t, &tmpl}
		}
	}
	return out
}

// beside says how a task stands with those that it shares a network with.
type beside struct{ joins, ready, gone, shared bool }

func (w *worker) beside() beside {
	b := beside{joins: w.mem.Joins != ""}
	w.a.mu.Lock()
	others := append([]*worker(nil), w.a.joined[w.id]...)
	h := w.a.workers[w.mem.Joins]
	w.a.mu.Unlock()
	for _, other := range others {
		b.shared = b.shared || !other.over()
	}
	if !b.joins {
		return b
	}
	if h != nil {
		h.mu.Lock()
		b.ready = h.space != nil
		b.gone = h.mem.Outcome != "" || h.mem.Status.State.Terminal()
		h.mu.Unlock()
	}
	if w.wanted && (w.head == nil || w.head.task.Desired == spec.DesiredStopped || w.head.task.Desired == spec.DesiredRemoved) {
		b.gone = true
	}
	return b
}

// setSpace notes where the task's network is; nil is nowhere.
func (w *worker) setSpace(path *string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.space = path
}

// join returns where the network of the head is.
func (w *worker) join() (string, error) {
	h := w.a.worker(w.mem.Joins)
	if h == nil {
		return "", spec.Unavailablef("task %s, whose network it shares, is not here yet", w.mem.Joins)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.space == nil:
		return "", spec.Unavailablef("task %s, whose network it shares, has none yet", w.mem.Joins)
	case *h.space == "":
		return "", spec.Invalidf("task %s, whose network it is to share, is on that of the host", w.mem.Joins)
	}
	return *h.space, nil
}

// network is the task whose network the task has: itself or its head.
func (o orders) network() head {
	if o.head != nil {
		return *o.head
	}
	return head{o.task, o.tmpl}
}

// served are the addresses at which hosts send to the task: its own, or those
// of its head when that is to stop, for nobody withdraws them before.
func (w *worker) served() []spec.Address {
	if w.head != nil && w.head.task.Desired != spec.DesiredRunning {
		return w.head.task.Addresses
	}
	return w.task.Addresses
}

// wakeBeside lets those that share a network with the task decide anew.
func (w *worker) wakeBeside() {
	w.a.mu.Lock()
	defer w.a.mu.Unlock()
	for _, other := range w.a.joined[w.id] {
		poke(other.wake)
	}
	if h := w.a.workers[w.mem.Joins]; h != nil {
		poke(h.wake)
	}
}
