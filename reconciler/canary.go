package reconciler

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"wherry.dev/spec"
)

// canary is how many places the update tries first; 0 is none.
func (s *pass) canary() int { return s.svc.Spec.Canary.Of(len(s.places)) }

// firstCanary is the state of the canary of an update that begins now. One that
// goes on with the same revision goes on with its canary; a revision that runs
// at as many places already needs none.
func (s *pass) firstCanary() spec.CanaryState {
	n, old := s.canary(), &s.svc.Update
	if n == 0 || s.up.Rollback != 0 {
		return ""
	}
	if old.To == s.svc.Revision && old.Rollback == 0 && old.Canary != "" {
		if old.Canary == spec.CanaryPromoted {
			return spec.CanaryPromoted
		}
		return spec.CanaryTesting
	}
	stale, known := false, 0
	for _, pl := range s.places {
		stale = stale || slices.ContainsFunc(pl.live, func(t *spec.Task) bool { return t.Revision != s.svc.Revision })
		if s.current(pl) && len(pl.live) > 0 {
			known++
		}
	}
	switch {
	case !stale:
		return ""
	case known >= n:
		return spec.CanaryPromoted
	}
	return spec.CanaryTesting
}

// promotedByUser goes on with an update whose canary a person has found good.
func (s *pass) promotedByUser() {
	if s.svc.Promoted == 0 || s.svc.Promoted != s.svc.Rollout || s.up.Rollout != s.svc.Rollout {
		return
	}
	switch s.up.Canary {
	case spec.CanaryWaiting:
		s.up.State = spec.UpdateUpdating
		s.promote()
	case spec.CanaryTesting:
		s.promote()
	}
}

// promote lets the update go on behind its canary.
func (s *pass) promote() {
	s.up.Canary = spec.CanaryPromoted
	s.up.Rests, s.up.Progress = time.Time{}, s.now
}

// trying reports whether the update is at its canary. A preview looks behind it.
func (s *pass) trying() bool {
	return s.updating && !s.eager && (s.up.Canary == spec.CanaryTesting || s.up.Canary == spec.CanaryWaiting)
}

// tried reports whether a place belongs to the canary: it has the new revision,
// perhaps in a task that is on its way out, or is about to get it.
func (s *pass) tried(pl *place) bool {
	if pl.fresh != nil || len(pl.live) == 0 && pl.fillable {
		return true
	}
	return slices.ContainsFunc(slices.Concat(pl.live, pl.ending), func(t *spec.Task) bool { return t.Revision == s.svc.Revision })
}

// canaryFull reports whether no other place may get the new revision yet.
func (s *pass) canaryFull() bool {
	if !s.trying() {
		return false
	}
	n := 0
	for _, pl := range s.places {
		n += b2i(s.tried(pl))
	}
	return n >= s.canary()
}

// judgeCanary finds out whether the canary is well, and for how long it has been.
func (s *pass) judgeCanary() {
	if !s.trying() || s.failure != nil || s.svc.Held != "" || s.up.State == spec.UpdatePaused {
		return // one that waits for a person goes on waiting, or fails
	}
	tried, well := 0, true
	for _, pl := range s.places {
		if !s.tried(pl) {
			continue
		}
		tried++
		failed, _ := s.lost(pl)
		well = well && (failed > 0 || s.current(pl)) // as many may fail as the policy admits
	}
	switch n := s.canary(); {
	case n == 0 || tried == len(s.places):
		s.promote() // nothing is left to decide
	case tried < n:
	case !well:
		s.up.Rests = time.Time{} // it is watched anew
	case s.svc.Spec.Canary.Promote == spec.PromoteManual:
		s.up.Canary, s.up.Rests = spec.CanaryWaiting, time.Time{}
	default:
		if s.up.Rests.IsZero() {
			s.up.Rests = s.now
		}
		if at := s.since(s.up.Rests).Add(s.watch()); s.now.Before(at) {
			s.wake(at)
			return
		}
		s.promote()
	}
}

// watch is how long all tasks of a canary must have been trusted before an update
// goes on by itself.
func (s *pass) watch() time.Duration { return cmp.Or(s.svc.Spec.Update.Monitor.D(), Monitor) }

// canaryMessage says what an update waits for at its canary.
func (s *pass) canaryMessage(state spec.CanaryState) string {
	what := fmt.Sprintf("canary: %d of %d tasks", s.canary(), len(s.places))
	if state == spec.CanaryWaiting {
		return fmt.Sprintf("%s are of the new revision and well; \"wherry service promote %s\" goes on, \"wherry service rollback %s\" goes back",
			what, s.svc.Key(), s.svc.Key())
	}
	return what + " are tried first"
}
