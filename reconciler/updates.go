package reconciler

import (
	"fmt"
	"slices"

	"wherry.dev/spec"
)

// settleUpdate moves the update status on.
func (s *pass) settleUpdate() {
	if !s.updating {
		return
	}
	was, done := s.svc.Update, true
	for _, pl := range s.places {
		if !pl.fillable && len(pl.live) > 0 && pl.live[0].Revision != s.svc.Revision {
			pl.blocked = "node " + s.nodeName(pl.node) + " takes no tasks"
		}
		done = done && pl.blocked == "" && (!pl.fillable || s.current(pl))
	}
	next := spec.UpdateStatus{State: spec.UpdateUpdating, Since: s.now}
	if pl := s.failing(); pl != nil && !done {
		next.State, next.Message = spec.UpdatePaused, s.whyFailing(pl)
	} else if done {
		next.State = spec.UpdateCompleted
	} else {
		for _, pl := range s.places {
			if pl.blocked != "" {
				next.Message = fmt.Sprintf("task %s cannot be replaced: %s", s.placeName(pl), pl.blocked)
				break
			}
		}
	}
	if next.State == was.State {
		next.Since = was.Since
	}
	if next != was {
		s.serviceChange().Update = &next
	}
}

// current reports whether a place is as the service wants it.
func (s *pass) current(pl *place) bool {
	if pl.fresh != nil || len(pl.ending) > 0 {
		return false
	}
	if len(pl.live) == 0 {
		return s.settled(pl)
	}
	return len(pl.live) == 1 && s.outdated(pl.live[0]) == "" && s.steady(pl.live[0])
}

// maxFailures of a replacement in a row pause an update.
const maxFailures = 3

// failing returns a place at which the current revision has failed too often
// since the user changed the service, or nil. It matters during updates only.
func (s *pass) failing() *place {
	if !s.updating {
		return nil
	}
	for _, pl := range s.places {
		if s.current(pl) {
			continue
		}
		if s.failures(pl) >= maxFailures || s.settled(pl) && s.failures(pl) > 0 {
			return pl
		}
	}
	return nil
}

// failures counts the newest tasks of a place that failed without another
// outcome in between.
func (s *pass) failures(pl *place) int {
	n := 0
	for _, t := range slices.Backward(pl.over) {
		if t.Revision != s.svc.Revision || t.Created.Before(s.svc.Changed) {
			continue // of an update before this one
		}
		if !failed(t) {
			break
		}
		n++
	}
	return n
}

func (s *pass) whyFailing(pl *place) string {
	t := last(pl.over, func(t *spec.Task) bool { return t.Revision == s.svc.Revision && failed(t) })
	n := s.failures(pl)
	times := fmt.Sprintf("%d times", n)
	if n == 1 {
		times = "once"
	}
	return fmt.Sprintf("task %s failed %s, last: %s", s.placeName(pl), times, ending(t))
}

func (s *pass) placeName(pl *place) string {
	return s.taskName(&spec.Task{Stack: s.svc.Stack, Service: s.svc.Name, Slot: pl.slot, Node: pl.node})
}
