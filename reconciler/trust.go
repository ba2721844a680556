package reconciler

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"wherry.dev/spec"
)

// Monitor is how long a task without health check must have run before it is
// trusted, unless its service says otherwise: before the next task of an update
// is replaced, before the task that it stands in for is stopped, and before its
// service counts as running. A health check takes its place. Traffic does not
// wait for it.
const Monitor = spec.DefaultMonitor

// steady reports whether a task serves and is trusted to go on: its health
// check says so, and has for as long as the service asks, or its present attempt
// has run for Monitor. It keeps an update from rolling a crash loop over all
// places, since each new attempt looks ready for a moment.
func (s *pass) steady(t *spec.Task) bool {
	if !s.serves(t) {
		return false
	}
	at := s.begun(t).Add(s.policy.monitor)
	if t.Status.Health == spec.HealthHealthy {
		if s.policy.checked == 0 {
			return true
		}
		at = s.begun(t)
		if !t.Status.HealthySince.IsZero() {
			at = t.Status.HealthySince
		}
		at = at.Add(s.policy.checked)
	}
	if s.now.Before(at) {
		s.wake(at)
		return false
	}
	return true
}

// begun is when the present attempt of a running task was started at the
// latest. The node tells when it began the first one; a later one begins after
// the end of the one before and the back-off.
func (s *pass) begun(t *spec.Task) time.Time {
	at := t.Status.Since
	if n := len(t.Status.Attempts); n > 0 {
		r := &s.tmpl.Restart
		if tmpl := s.template(t.Revision); tmpl != nil {
			r = &tmpl.Restart
		}
		if next := t.Status.Attempts[n-1].Ended.Add(s.longestWait(t.Status.Attempts, r)); next.After(at) {
			at = next
		}
	}
	return at
}

// longestWait bounds the back-off after the last of some attempts. The node
// waits not at all, or the delay of the policy, after the first or a long one,
// then a second or the delay, then twice as long as the last time; all of it
// spread by up to a fifth. What lies between two attempts may be longer than the
// wait: the node was down.
func (s *pass) longestWait(attempts []spec.Attempt, r *spec.Restart) time.Duration {
	spread := func(d time.Duration) time.Duration { return d + d/5 }
	n := len(attempts)
	delay := r.Delay.D()
	if n == 1 || s.longRun(&attempts[n-1]) {
		return spread(delay)
	}
	last := attempts[n-1].Started.Sub(attempts[n-2].Ended)
	if attempts[n-1].Started.IsZero() {
		last = 0 // it was never started
	}
	base := cmp.Or(delay, backoffBase)
	wait := max(spread(base), 2*last)
	if attempts[0].Number == 1 { // all are known, so the wait has doubled n-2 times at most
		wait = min(wait, spread(base<<(n-2)))
	}
	return min(wait, spread(max(backoffLimit, delay)))
}

// failedAttempts in a row make a service failed, and pause its update.
const failedAttempts = 3

// lost counts a place as lost when the current revision has given up there,
// when the node has rejected its last task, or when at least failedAttempts
// attempts failed in a row, without a success and since the user changed the
// service. It returns the task that tells why; n is 0 when all may yet be well.
func (s *pass) lost(pl *place) (n int, t *spec.Task) {
	if s.completed(pl) != nil {
		return 0, nil
	}
	if restarts, t := s.gaveUp(pl); t != nil {
		return restarts + 1, t
	}
	if s.settled(pl) {
		if t := newest(pl.over); t.Status.State != spec.TaskComplete && !t.Created.Before(s.svc.Changed) {
			return 1, t
		}
		return 0, nil
	}
	tasks := slices.Concat(pl.over, pl.live)
	slices.SortStableFunc(tasks, func(a, b *spec.Task) int { return compareIDs(string(a.ID), string(b.ID)) })
	for _, x := range slices.Backward(tasks) {
		if !s.isNewest(x) || s.steady(x) {
			break
		}
		if x.Status.State == spec.TaskRejected && !x.Created.Before(s.svc.Changed) {
			return failedAttempts, cmp.Or(t, x)
		}
		if x.Joins != "" && x.Status.State == spec.TaskStopped {
			continue // it ended with another one
		}
		for _, a := range slices.Backward(x.Status.Attempts) {
			if !a.Failed() || a.Ended.Before(s.svc.Changed) || s.longRun(&a) {
				return atLeast(n), t
			}
			n++
			t = cmp.Or(t, x)
		}
	}
	return atLeast(n), t
}

func atLeast(n int) int {
	if n < failedAttempts {
		return 0
	}
	return n
}

func (s *pass) longRun(a *spec.Attempt) bool {
	return longRun(a, &s.tmpl.Restart)
}

// The rule by which a node ends a task whose policy would allow more restarts.
const (
	nodeFailures = 5
	nodeSpan     = 5 * time.Minute
)

// gaveUp returns the task with which the restarts that the policy allows a
// place were used up, since the user changed the service, and their number; or
// nil. The restarts are counted through the tasks of the place, since a node
// ends a task after five failures in five minutes however many are allowed.
func (s *pass) gaveUp(pl *place) (restarts int, t *spec.Task) {
	limit := s.tmpl.Restart.MaxAttempts
	t = newest(pl.over)
	if limit <= 0 || t == nil || !s.exhausted(t) || s.completed(pl) != nil {
		return 0, nil
	}
	attempts := 0
	for _, x := range slices.Backward(pl.over) {
		if !s.exhausted(x) {
			break
		}
		n, all := s.inARow(x)
		attempts += n
		if !all {
			break
		}
	}
	if attempts <= limit && limit >= nodeFailures && nodeEnded(t) {
		return 0, nil // there are restarts left
	}
	return max(attempts-1, limit), t
}

// exhausted reports whether a task of the current revision ended by itself
// although its policy asks for restarts, since the user changed the service.
func (s *pass) exhausted(t *spec.Task) bool {
	if !s.isNewest(t) || t.Status.Since.Before(s.svc.Changed) || len(t.Status.Attempts) == 0 {
		return false
	}
	switch s.tmpl.Restart.Condition {
	case spec.RestartAny:
		return t.Status.State == spec.TaskFailed || t.Status.State == spec.TaskComplete
	case spec.RestartOnFailure:
		return t.Status.State == spec.TaskFailed
	}
	return false
}

// inARow counts the last attempts of a task, back to one that ran long enough
// for the count to begin anew; all tells that there is none and no attempt is
// forgotten.
func (s *pass) inARow(t *spec.Task) (n int, all bool) {
	for _, a := range slices.Backward(t.Status.Attempts) {
		n++
		if s.longRun(&a) {
			return n, false
		}
	}
	return n, t.Status.Started <= n
}

// nodeEnded reports whether the last attempts of a task are what makes a node
// end it.
func nodeEnded(t *spec.Task) bool {
	a := t.Status.Attempts
	if len(a) < nodeFailures {
		return false
	}
	a = a[len(a)-nodeFailures:]
	return a[nodeFailures-1].Ended.Sub(a[0].Ended) < nodeSpan &&
		!slices.ContainsFunc(a, func(x spec.Attempt) bool { return !x.Failed() })
}

// whyGaveUp says in one line how a task ended that is not started again.
func whyGaveUp(restarts int, t *spec.Task) string {
	why := attemptEnd(&t.Status.Attempts[len(t.Status.Attempts)-1])
	many := "s"
	if restarts == 1 {
		many = ""
	}
	return fmt.Sprintf("gave up after %d restart%s: %s", restarts, many, why)
}

// attemptEnd says in one line how an attempt ended, with its last line of
// output.
func attemptEnd(a *spec.Attempt) string {
	why := cmp.Or(a.Error, fmt.Sprintf("exit %d", a.ExitCode))
	if a.OOM {
		why += ", out of memory"
	}
	if k := len(a.LastLog); k > 0 {
		why += suffix(strings.TrimSpace(a.LastLog[k-1]))
	}
	return why
}
