package reconciler

import (
	"fmt"

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
		n, _ := s.lost(pl)
		return n == 0 && s.settled(pl)
	}
	return len(pl.live) == 1 && s.outdated(pl.live[0]) == "" && s.steady(pl.live[0])
}

// failing returns a place at which the current revision is lost, or nil. It
// matters during updates only.
func (s *pass) failing() *place {
	if !s.updating {
		return nil
	}
	for _, pl := range s.places {
		if s.current(pl) {
			continue
		}
		if n, _ := s.lost(pl); n > 0 {
			return pl
		}
	}
	return nil
}

func (s *pass) whyFailing(pl *place) string {
	name := "task " + s.placeName(pl)
	if restarts, t := s.gaveUp(pl); t != nil {
		return name + " " + whyGaveUp(restarts, t)
	}
	n, t := s.lost(pl)
	switch {
	case t.Status.State == spec.TaskRejected:
		return name + " was rejected: " + ending(t)
	case n == 1:
		return name + " failed: " + ending(t)
	}
	return fmt.Sprintf("%s failed %d times, last: %s", name, n, ending(t))
}

func (s *pass) placeName(pl *place) string {
	return s.taskName(&spec.Task{Stack: s.svc.Stack, Service: s.svc.Name, Slot: pl.slot, Node: pl.node})
}
