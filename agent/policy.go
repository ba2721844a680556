package agent

import (
	"fmt"
	"hash/fnv"
	"slices"
	"time"

	"wherry.dev/spec"
)

// The fixed parts of the restart policy.
const (
	firstBackoff = time.Second
	maxBackoff   = 300 * time.Second
	// goodRun is how long an attempt must serve to begin the count anew, when
	// the policy has no window.
	goodRun = time.Minute
	// failureLimit failures within failureSpan end the task: its place is
	// filled anew, elsewhere if possible.
	failureLimit = 5
	failureSpan  = 5 * time.Minute
)

// ending is the end of one attempt.
type ending struct {
	code int
	at   time.Time
	oom  bool
	err  string // why it could not be started, or was ended by us
	log  []string
	// unleased: the node's lease was over.
	unleased bool
}

func (e ending) failed() bool { return e.code != 0 || e.err != "" }

// describe says in a few words how an attempt ended.
func (e ending) describe() string {
	switch {
	case e.err != "":
		return e.err
	case e.oom:
		return fmt.Sprintf("out of memory (exit %d)", e.code)
	case e.code > 128 && e.code <= 128+64:
		return fmt.Sprintf("signal %d (exit %d)", e.code-128, e.code)
	case e.code < 0:
		return "an end that was not seen"
	default:
		return fmt.Sprintf("exit %d", e.code)
	}
}

// endAttempt records the end of the present attempt and decides, by the
// restart policy alone, what becomes of the task: another attempt after a
// while, or an outcome. halted: nobody wants another attempt.
func endAttempt(m memory, e ending, halted bool, p spec.Restart, now time.Time) memory {
	a := m.Attempt
	if a == nil { // nothing is remembered of the process that ended
		m.Status.Started++
		a = &attempt{Number: m.Status.Started}
	}
	if a.Unhealthy != "" {
		e.err = a.Unhealthy
	}
	row := spec.Attempt{Number: a.Number, Started: a.Started, Ended: e.at, ExitCode: e.code, OOM: e.oom, Error: e.err, LastLog: e.log}
	if e.code > 128 && e.code <= 128+64 {
		row.Signal = e.code - 128
	}
	all := append(slices.Clone(m.Status.Attempts), row)
	m.Status.Attempts = all[max(0, len(all)-spec.KeepAttempts):]
	m.Status.PID = 0
	m.Attempt, m.Health = nil, health{}
	sent := !m.StopSent.IsZero()
	m.StopSent, m.KillSent, m.PreStopped = time.Time{}, time.Time{}, 0

	window := p.Window.D()
	if window <= 0 {
		window = goodRun
	}
	good := p.Window != spec.NoWindow && a.Unhealthy == "" && !a.GoodSince.IsZero() && e.at.Sub(a.GoodSince) >= window
	if good {
		m.Restarts, m.Streak = 0, 0
	}
	m.Failures = slices.DeleteFunc(slices.Clone(m.Failures), func(t time.Time) bool { return now.Sub(t) >= failureSpan })
	if e.failed() && !halted && !e.unleased {
		m.Failures = append(m.Failures, now)
	}

	over, failure := spec.TaskComplete, e.describe()
	if e.failed() {
		over = spec.TaskFailed
	}
	switch {
	case halted && (sent || e.failed()):
		m.end(spec.TaskStopped, "")
	case halted:
		m.end(over, "")
	case e.unleased: // no fault of the task: it goes on when there is a lease
		m.Status.Reason = waitsForLease
		m.setHealth(spec.HealthStarting, e.at)
	case p.Condition == spec.RestartNone,
		p.Condition == spec.RestartOnFailure && !e.failed():
		m.end(over, onlyFailure(e, failure))
	case p.MaxAttempts > 0 && m.Restarts >= p.MaxAttempts:
		m.end(over, onlyFailure(e, fmt.Sprintf("%s after %s", failure, plural(m.Restarts, "restart"))))
	case len(m.Failures) >= failureLimit:
		m.end(spec.TaskFailed, fmt.Sprintf("%d attempts failed within %s, the last with %s", len(m.Failures), "5 minutes", failure))
	default:
		wait := backoff(m.Task, p.Delay.D(), m.Streak)
		m.Restarts++
		m.Streak++
		m.Status.NextStart = now.Add(wait)
		m.Status.Reason = fmt.Sprintf("back-off %s after %s (attempt %d)", shortDuration(wait), failure, a.Number)
		// A task that waits serves nobody, whether or not it has a check.
		m.setHealth(spec.HealthStarting, e.at)
	}
	return m
}

func onlyFailure(e ending, s string) string {
	if e.failed() {
		return s
	}
	return ""
}

// backoff returns the wait before the next attempt, after streak short runs in
// a row: 0, 1, 2, 4 … 300 s, each spread by up to a fifth by a hash of the
// task, so that tasks that fail together do not restart together. A base from
// the policy takes the place of the first second, is waited each time, and is
// never undercut.
func backoff(t spec.TaskID, base time.Duration, streak int) time.Duration {
	if base <= 0 && streak == 0 {
		return 0
	}
	d, limit := firstBackoff, maxBackoff
	if base > 0 {
		d, limit = base, max(maxBackoff, base)
	}
	for range streak - 1 {
		if d *= 2; d >= limit {
			d = limit
			break
		}
	}
	return max(spread(t, d), base)
}

// spread returns d times 0.8 to 1.2, always the same for one task.
func spread(t spec.TaskID, d time.Duration) time.Duration {
	h := fnv.New32a()
	h.Write([]byte(t))
	part := float64(h.Sum32()%1000) / 1000 // FNV's low digits are well mixed
	return time.Duration(float64(d) * (0.8 + 0.4*part)).Round(time.Millisecond)
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// shortDuration prints whole seconds as "4 s" and leaves tenths below that.
func shortDuration(d time.Duration) string {
	if d < 10*time.Second {
		return fmt.Sprintf("%.3g s", d.Round(100*time.Millisecond).Seconds())
	}
	return fmt.Sprintf("%d s", int(d.Round(time.Second).Seconds()))
}
