package reconciler

import (
	"cmp"
	"fmt"
	"time"

	"wherry.dev/spec"
)

// LeaseWait is how long a node that is not heard may still run an exclusive
// task: the 15 s of a lease, and 5 s for the end of the task and for clocks.
const LeaseWait = 20 * time.Second

// Seen is since when a leader has seen by itself what the state says, by the
// clock of now: what it has not seen for as long as it must be has not been so.
// What is missing counts from long ago.
type Seen struct {
	// Since is from when on it leads.
	Since time.Time
	// Down is for nodes that are down, Lost for tasks that are lost.
	Down map[spec.NodeID]time.Time
	Lost map[spec.TaskID]time.Time
	// Stamps is for times that are written down in the progress of updates.
	Stamps map[Stamp]time.Time
}

// Stamp is a time that the progress of the update of a service has, by what it
// reads: the clock that it was read from may be another.
type Stamp struct {
	Service string // key
	At      int64  // nanoseconds since 1970
}

// exclusive reports whether a task runs under a lease.
func (v *view) exclusive(t *spec.Task) bool {
	tmpl := v.template(t.Revision)
	return tmpl != nil && tmpl.Exclusive
}

// mayRun says until when an exclusive task that was given up may still run,
// and why; the zero time means that it does not. A node that is heard no more
// gets no lease. One that is back may get one before it stops the task, and
// tells when it has.
func (v *view) mayRun(t *spec.Task) (until time.Time, why string) {
	n := v.nodes[t.Node]
	gone := t.Status.State == spec.TaskLost
	if !v.exclusive(t) || !gone && (n == nil || t.Status.State.Terminal()) {
		return time.Time{}, ""
	}
	name := "node " + v.nodeName(t.Node)
	since := later(t.Status.Since, v.seen.Lost[t.ID])
	switch {
	case n == nil:
		why = cmp.Or(t.Status.Reason, name+" was removed") + " and may still run it"
	case n.State == spec.NodeReady:
		wait := confirmWait
		if tmpl := v.template(t.Revision); tmpl != nil {
			wait += tmpl.StopGrace.D()
		}
		return later(since, v.seen.Since).Add(wait), name + " is back and has not stopped it yet"
	default:
		why = name + " may still run it"
		if !n.DownSince.IsZero() {
			since = later(n.DownSince, v.seen.Down[n.ID])
		} else if !gone {
			since = v.now // this plan gives it up
		}
	}
	return later(since, v.seen.Since).Add(LeaseWait), why
}

// later is the later time, as times of the state are.
func later(a, b time.Time) time.Time {
	if a.Before(b) {
		a = b
	}
	return a.Round(0).UTC()
}

// mayRunAt says why a place must stay empty for now, or "": a task that was
// given up may still run. What is decided on that ground stands on the nodes
// in question.
func (s *pass) mayRunAt(pl *place) string {
	var until time.Time
	var why string
	for _, t := range pl.unsure {
		if at, w := s.mayRun(t); at.After(until) {
			until, why = at, w
		}
		version := uint64(0)
		if n := s.nodes[t.Node]; n != nil {
			version = n.Version
		}
		s.read(&s.part, spec.KindNode, string(t.Node), version)
	}
	if s.eager || !s.now.Before(until) {
		return ""
	}
	s.wake(until)
	return fmt.Sprintf("waits until %s: %s", clockTime(until), why)
}

// clockTime is a time of the day for people, never too early.
func clockTime(t time.Time) string {
	return t.Add(time.Second - 1).UTC().Format("15:04:05 MST")
}
