package reconciler

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// beginUpdate finds the update that is under way, or the one that the user has
// called for, and the policy that it goes by.
func (s *pass) beginUpdate() {
	s.up = s.svc.Update
	// What was declared before the state had room for all this is judged once.
	old := s.up.To == "" && s.up.State != spec.UpdatePaused
	begins := s.rollouts() && (s.svc.Rollout != s.up.Rollout || old)
	if begins {
		s.up = spec.UpdateStatus{
			State: spec.UpdateUpdating, Since: s.now, Rollout: s.svc.Rollout,
			From: s.svc.Update.To, To: s.svc.Revision, Progress: s.now,
		}
		if head := s.head(s.svc.Stack); head != nil && head.State != spec.RevisionCompleted {
			s.up.Rollback = head.Rollback
		}
	}
	s.updating = s.up.State == spec.UpdateUpdating || s.up.State == spec.UpdatePaused
	if s.svc.Rollout == 0 { // declared before updates were called for
		for _, pl := range s.places {
			for _, t := range pl.live {
				s.updating = s.updating || t.Revision != s.svc.Revision
			}
		}
	}
	s.policy = policyOf(&s.svc.Spec, s.updating && s.up.Rollback != 0)
	if begins {
		s.up.Canary = s.firstCanary()
	}
	s.promotedByUser()
	if s.updating && s.up.To == s.svc.Update.To {
		s.fetch = slices.Clone(s.svc.Fetch)
	}
}

// rollouts reports whether the state has room for the progress of updates.
func (v *view) rollouts() bool { return v.snap.Format() >= store.RolloutFormat }

// halted reports whether an update must not begin anything: it is paused, or
// has failed, or its stack is about to go back.
func (s *pass) halted() bool {
	if !s.updating || s.asWanted {
		return false // or this plan ends it, and what else there is to do does not wait
	}
	paused := s.rollouts() && s.up.State == spec.UpdatePaused
	return paused || s.svc.Held != "" || s.failure != nil || s.rollbacks[s.svc.Stack] != nil
}

// failure is why an update has failed.
type failure struct {
	why, log string
	// stuck: nothing has failed, but nothing goes on either.
	stuck bool
}

// judgeUpdate finds out whether the update has failed, before this plan begins
// anything.
func (s *pass) judgeUpdate() {
	if !s.updating {
		return
	}
	s.asWanted = s.whole()
	if pl := s.failing(); pl != nil {
		_, t := s.lost(pl)
		s.failure = &failure{why: s.whyFailing(pl), log: lastLog(t)}
		if n, _ := s.failures(); n > 1 {
			s.failure.why = fmt.Sprintf("%d of %d tasks failed: %s", n, s.tries(), s.failure.why)
		}
		return
	}
	if why := s.neverFetched(); why != "" && !s.halted() {
		s.failure = &failure{why: why}
		return
	}
	if at := s.deadline(); at.IsZero() || s.now.Before(at) || s.done() > s.up.Done {
		return
	}
	// This plan begins nothing more; what it waits for stays as it is.
	s.failure = &failure{why: "no progress for " + length(s.policy.deadline), stuck: true}
	for _, pl := range s.places {
		if why := s.whyStuck(pl); why != "" {
			s.failure.why += ": " + why
			if len(pl.live) > 0 {
				s.failure.log = lastLog(pl.live[len(pl.live)-1])
			}
			break
		}
	}
}

// whyStuck says why a place is not as the service wants it, or "".
func (s *pass) whyStuck(pl *place) string {
	switch {
	case s.current(pl) || !pl.fillable:
		return ""
	case len(pl.live) == 1 && s.isDown(pl.live[0]):
		return s.placeName(pl) + ": node " + s.nodeName(pl.live[0].Node) + " is down"
	case len(pl.ending) > 0:
		return s.placeName(pl) + ": waits for task " + string(pl.ending[0].ID) + " to stop"
	case s.replaceable(pl):
		if why := s.roomWithout(pl, pl.live[0]); why != "" {
			return s.cannotReplace(pl, why)
		}
		if s.stopFirst(pl.live[0]) {
			if why, _ := s.awaitsImage(pl, pl.live[0]); why != "" {
				return s.placeName(pl) + ": " + why
			}
		}
	}
	return cmp.Or(s.trouble(pl).message, s.placeName(pl)+" is not as it ought to be")
}

func (s *pass) cannotReplace(pl *place, why string) string {
	return fmt.Sprintf("task %s cannot be replaced: %s", s.placeName(pl), why)
}

// lastLog returns the last lines of output of a task's last attempt.
func lastLog(t *spec.Task) string {
	if n := len(t.Status.Attempts); n > 0 {
		return strings.Join(t.Status.Attempts[n-1].LastLog, "\n")
	}
	return ""
}

// deadline is when the update has got no further for as long as it may; the zero
// time is never. A wait between batches is no standstill.
func (s *pass) deadline() time.Time {
	if s.eager || !s.rollouts() || s.up.State != spec.UpdateUpdating || s.svc.Held != "" || s.up.Progress.IsZero() || s.patient() {
		return time.Time{}
	}
	since := s.since(s.up.Progress)
	if !s.up.Rests.IsZero() {
		rest := s.policy.delay
		if s.trying() {
			rest = max(rest, s.watch())
		}
		since = later(since, s.since(s.up.Rests).Add(rest))
	}
	return since.Add(s.policy.deadline)
}

// since is when a wait of the update began, by the clock of this leader: at
// has been written by the one who led then.
func (s *pass) since(at time.Time) time.Time {
	if seen, ok := s.seen.Stamps[Stamp{s.svc.Key(), at.UnixNano()}]; ok {
		return seen.Round(0).UTC()
	}
	if at.After(s.now) {
		return s.now
	}
	return later(at, s.seen.Since)
}

// done counts the places that are as the service wants them.
func (s *pass) done() int {
	n := 0
	for _, pl := range s.places {
		if pl.fillable && s.current(pl) {
			n++
		}
	}
	return n
}

// rested reports whether the delay between two batches is over, now that
// nothing is under way.
func (s *pass) rested() bool {
	if s.eager || s.policy.delay == 0 || s.up.Batches == 0 || !s.rollouts() || s.asWanted {
		return true
	}
	if s.up.Rests.IsZero() {
		if !s.updating {
			return true
		}
		if slices.ContainsFunc(s.places, func(pl *place) bool { n, _ := s.lost(pl); return n == 0 && s.busy(pl) }) {
			return false // some of the last batch, where all go at once
		}
		s.up.Rests = s.now
	}
	if at := s.since(s.up.Rests).Add(s.policy.delay); s.now.Before(at) {
		s.wake(at)
		return false
	}
	return true
}

// noteBatch takes note of a batch that begins, where that matters.
func (s *pass) noteBatch() {
	if !s.eager && s.updating && s.policy.delay > 0 && s.rollouts() {
		s.up.Batches++
		s.up.Rests, s.up.Progress = time.Time{}, s.now
	}
}

// settleUpdate moves the update status on.
func (s *pass) settleUpdate() {
	next := s.up
	if s.updating {
		s.progress(&next)
		next.State, next.Message = s.updateState(&next)
		if at := s.deadline(); next.State == spec.UpdateUpdating && s.now.Before(at) {
			s.wake(at)
		}
	}
	if next.State != s.svc.Update.State || next.Rollout != s.svc.Update.Rollout {
		next.Since = s.now
	}
	if next != s.svc.Update {
		s.serviceChange().Update = &next
	}
	s.settleFetch(&next)
	s.updates[s.svc.Key()] = next
}

// progress writes down how many places are done, now and then: each time would
// be a write for each task, and only the deadline needs to know.
func (s *pass) progress(next *spec.UpdateStatus) {
	if !s.rollouts() {
		return
	}
	n, often := s.done(), s.policy.deadline/10
	patient := s.patient()
	if next.Progress.IsZero() || (n > next.Done || patient) && s.now.Sub(next.Progress) >= often {
		next.Done, next.Progress = n, s.now
	}
	if patient {
		s.wake(next.Progress.Add(often)) // the deadline counts from when that ends
	}
}

// updateState judges the update after what this plan does. Log is set when it
// fails.
func (s *pass) updateState(next *spec.UpdateStatus) (spec.UpdateState, string) {
	for _, pl := range s.places {
		if s.oldThere(pl) {
			pl.blocked = "node " + s.nodeName(pl.node) + " takes no tasks"
		}
	}
	done, failed := s.finished()
	if done && next.Canary != "" {
		next.Canary = spec.CanaryPromoted
	}
	switch {
	case done && next.Rollback != 0:
		next.Failed = failed
		return spec.UpdateRolledBack, s.rolledBack()
	case done && failed > 0:
		_, first := s.failures()
		next.Failed = failed
		return spec.UpdateCompleted, fmt.Sprintf("%d of %d tasks failed: %s", failed, len(s.places), s.whyFailing(first))
	case done:
		return spec.UpdateCompleted, ""
	case s.svc.Held != "":
		return spec.UpdatePaused, "paused by " + s.svc.Held
	case s.rollouts() && s.up.State == spec.UpdatePaused && s.up.Canary != spec.CanaryWaiting:
		return spec.UpdatePaused, s.up.Message
	case s.failure != nil && s.rollouts():
		return s.fail(next)
	case s.failure != nil:
		// Until the state has room for an end, what is seen now counts, not what
		// was seen then.
		if pl := s.failing(); pl != nil {
			return spec.UpdatePaused, s.whyFailing(pl)
		}
	case next.Canary == spec.CanaryWaiting:
		return spec.UpdatePaused, s.canaryMessage(next.Canary)
	}
	if why := s.awaits(); why != "" {
		return spec.UpdateUpdating, why
	}
	for _, pl := range s.places {
		if pl.blocked != "" {
			return spec.UpdateUpdating, s.cannotReplace(pl, pl.blocked)
		}
	}
	for _, pl := range s.places {
		if pl.waits != "" {
			return spec.UpdateUpdating, s.placeName(pl) + " " + pl.waits
		}
	}
	if next.Rollback != 0 {
		return spec.UpdateUpdating, s.rolledBack()
	}
	if s.trying() {
		return spec.UpdateUpdating, s.canaryMessage(next.Canary)
	}
	return spec.UpdateUpdating, ""
}

// rolledBack says what the rollback of the stack is about.
func (s *pass) rolledBack() string {
	if head := s.head(s.svc.Stack); head != nil && head.Rollback != 0 {
		return head.Message
	}
	return ""
}

// finished reports whether every place is as the service wants it. Where some
// may fail, it is enough that every one has been tried.
func (s *pass) finished() (done bool, failed int) {
	if s.asWanted || s.whole() {
		return true, 0
	}
	failed, _ = s.failures()
	if failed == 0 || !s.rollouts() || s.halted() {
		return false, 0
	}
	for _, pl := range s.places {
		n, _ := s.lost(pl)
		if pl.blocked != "" || pl.fillable && n == 0 && !s.current(pl) {
			return false, 0
		}
	}
	return true, failed
}

// whole reports whether every place is as the service wants it.
func (s *pass) whole() bool {
	return !slices.ContainsFunc(s.places, func(pl *place) bool {
		return pl.blocked != "" || pl.fillable && !s.current(pl) || s.oldThere(pl)
	})
}

// oldThere reports whether a node that takes no tasks has an old one.
func (s *pass) oldThere(pl *place) bool {
	return !pl.fillable && len(pl.live) > 0 && pl.live[0].Revision != s.svc.Revision
}

// fail ends an update that has failed as its policy says.
func (s *pass) fail(next *spec.UpdateStatus) (spec.UpdateState, string) {
	why := s.failure.why
	if s.policy.action == spec.FailureRollback {
		to, cannot := s.goBackTo()
		if s.failure.stuck && s.onlyDown() {
			cannot = "going back would not help"
		}
		if cannot == "" {
			if head := s.head(s.svc.Stack); s.rollbacks[s.svc.Stack] == nil {
				s.rollbacks[s.svc.Stack] = &spec.StackRollback{
					Name: s.svc.Stack, Revision: head.Number, To: to, Service: s.svc.Name, Why: why, Log: s.failure.log,
				}
			}
			return spec.UpdateUpdating, s.up.Message
		}
		why += "; " + cannot
	}
	next.Log = s.failure.log
	if next.Canary == spec.CanaryWaiting {
		next.Canary = spec.CanaryTesting // what it waited for is decided
	}
	return spec.UpdatePaused, why
}

// onlyDown reports whether all that an update waits for are nodes that are down.
func (s *pass) onlyDown() bool {
	for _, pl := range s.places {
		if pl.fillable && !s.current(pl) && (len(pl.live) != 1 || !s.isDown(pl.live[0])) {
			return false
		}
	}
	return true
}

// current reports whether a place is as the service wants it.
func (s *pass) current(pl *place) bool {
	if pl.fresh != nil || len(pl.ending) > 0 {
		return false
	}
	if s.job() {
		return len(pl.live) == 0 && s.completed(pl) != nil
	}
	if len(pl.live) == 0 {
		n, _ := s.lost(pl)
		return n == 0 && s.settled(pl)
	}
	return len(pl.live) == 1 && s.outdated(pl.live[0]) == "" && s.steady(pl.live[0])
}

// failing returns a place at which the current revision is lost, when more are
// than the policy admits; else nil. It matters during updates only.
func (s *pass) failing() *place {
	n, first := s.failures()
	if s.policy.action == spec.FailureContinue || !exceeds(n, s.tries(), s.policy.ratio) {
		return nil
	}
	return first
}

// tries is how many places the update is about as yet.
func (s *pass) tries() int {
	if n := s.canary(); n > 0 && s.trying() {
		return n
	}
	return len(s.places)
}

// failures counts the places at which the current revision is lost.
func (s *pass) failures() (n int, first *place) {
	if !s.updating {
		return 0, nil
	}
	for _, pl := range s.places {
		if s.current(pl) {
			continue
		}
		if failed, _ := s.lost(pl); failed > 0 {
			n++
			if first == nil {
				first = pl
			}
		}
	}
	return n, first
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
	why := ending(t)
	if k := len(t.Status.Attempts); k > 0 && !t.Status.State.Terminal() {
		why = attemptEnd(&t.Status.Attempts[k-1]) // its reason is that of the moment
	}
	return fmt.Sprintf("%s failed %d times, last: %s", name, n, why)
}

func (s *pass) placeName(pl *place) string {
	return s.taskName(&spec.Task{Stack: s.svc.Stack, Service: s.svc.Name, Slot: pl.slot, Node: pl.node})
}
