package agent

import (
	"sync"
	"time"

	"wherry.dev/spec"
)

// The times that starts wait for.
const (
	// defaultSettle is Config.Settle.
	defaultSettle = 10 * time.Second
	// stopsFirst bounds how long the starts of a document wait for its stops.
	stopsFirst = time.Second
	// refusedAgain is how often a start that waits for Config.Refused asks.
	refusedAgain = time.Second
)

// order says until when nothing may be started: what a document no longer wants
// is told to stop before anything that it newly wants is started, and a stored
// document alone starts nothing for a while.
type order struct {
	mu     sync.Mutex
	settle time.Time                // no start before, unless a manager was heard
	due    map[spec.TaskID]struct{} // to be told to stop
	until  time.Time                // they are waited for no longer
	twin   time.Time                // no start before: another host was this node a moment ago
}

// begin is the start of the agent, with a document from the disk.
func (o *order) begin(until time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.settle = until
}

// heard ends the settling and reports whether there was any.
func (o *order) heard() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	was := !o.settle.IsZero()
	o.settle = time.Time{}
	return was
}

// refused takes note that another host has the identity of this node now. What
// is stored is then believed only a settling later.
func (o *order) refused(now time.Time, settle time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.twin = now.Add(refusedAgain)
	if !o.settle.IsZero() {
		o.settle = now.Add(settle)
	}
}

// stops replaces what is to be told to stop.
func (o *order) stops(due map[spec.TaskID]struct{}, until time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.due, o.until = due, until
}

// told takes note that a task needs no stop any more, and reports whether it
// was the last.
func (o *order) told(t spec.TaskID) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, ok := o.due[t]; !ok {
		return false
	}
	delete(o.due, t)
	return len(o.due) == 0
}

// hold is the time before which nothing is started; zero for none.
func (o *order) hold() time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	until := o.settle
	if o.twin.After(until) {
		until = o.twin
	}
	if len(o.due) > 0 && o.until.After(until) {
		until = o.until
	}
	return until
}

// toStop reports whether a task in this state is to be told to stop by a
// document in which it is as desired; "" for one that is not in it.
func toStop(m memory, desired spec.TaskDesired) bool {
	running := m.Attempt != nil && m.Attempt.PID != 0 && !m.Status.State.Terminal()
	return running && m.StopSent.IsZero() && desired != spec.DesiredRunning && desired != spec.DesiredDraining
}

// orderStops makes the starts of w wait for its stops.
func (p *pass) orderStops(w *spec.Wanted) {
	desired := map[spec.TaskID]spec.TaskDesired{}
	for _, t := range w.Tasks {
		desired[t.ID] = t.Desired
	}
	due := map[spec.TaskID]struct{}{}
	for id, m := range p.memories {
		if toStop(m, desired[id]) {
			due[id] = struct{}{}
		}
	}
	for id, wk := range p.a.snapshotWorkers() {
		if toStop(wk.memory(), desired[id]) {
			due[id] = struct{}{}
		}
	}
	p.a.order.stops(due, time.Now().Add(stopsFirst))
}

// stopTold is called by a worker that has nothing to be told any more.
func (a *Agent) stopTold(t spec.TaskID) {
	if a.order.told(t) {
		a.wakeAll()
	}
}

// wakeAll makes all workers decide anew.
func (a *Agent) wakeAll() {
	for _, wk := range a.snapshotWorkers() {
		poke(wk.wake)
	}
}
