package reconciler

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"
	"time"

	"wherry.dev/spec"
)

// The back-off of a place whose tasks fail: 1, 2, 4 … 300 s, from 5 s when the
// node could not even start the task.
const (
	backoffBase     = time.Second
	rejectedBase    = 5 * time.Second
	backoffLimit    = 300 * time.Second
	defaultGoodRun  = time.Minute // spec.Restart.Window when it is 0
	backoffSpreadBy = 0.2
)

// failed reports whether a task that is over ended badly.
func failed(t *spec.Task) bool {
	return t.Status.State == spec.TaskFailed || t.Status.State == spec.TaskRejected
}

// backoff returns how long a place waits before the task after t. The previous
// wait is read off t itself, so the series goes on however much history was
// dropped and whoever leads.
func backoff(t *spec.Task, r spec.Restart) time.Duration {
	if !failed(t) && t.Status.State != spec.TaskComplete || ranWell(t, r) {
		return 0
	}
	base := backoffBase
	if t.Status.State == spec.TaskRejected {
		base = rejectedBase
	}
	base = cmp.Or(r.Delay.D(), base)
	limit := max(backoffLimit, base)
	d := base
	if prev := t.NotBefore.Sub(t.Created); !t.NotBefore.IsZero() && prev > 0 {
		// The spread keeps prev within a fifth of base·2ⁿ; the next one is the
		// first of the series that is clearly above.
		for d < limit && float64(d) < 1.3*float64(prev) {
			d *= 2
		}
	}
	return spread(t.ID, min(d, limit))
}

// ranWell reports whether the last attempt ran long enough for the series to
// begin anew: then the next task starts at once.
func ranWell(t *spec.Task, r spec.Restart) bool {
	n := len(t.Status.Attempts)
	if n == 0 || t.Status.State == spec.TaskRejected {
		return false
	}
	return longRun(&t.Status.Attempts[n-1], &r)
}

// longRun reports whether an attempt lasted long enough to count as a success,
// however it ended.
func longRun(a *spec.Attempt, r *spec.Restart) bool {
	return r.Window != spec.NoWindow && !a.Started.IsZero() && a.Ended.Sub(a.Started) >= cmp.Or(r.Window.D(), defaultGoodRun)
}

// spread moves d by up to a fifth, by a hash of the task, so that tasks that
// fail together do not come back together.
func spread(id spec.TaskID, d time.Duration) time.Duration {
	h := fnv.New32a()
	h.Write([]byte(id))
	part := float64(h.Sum32()%1000) / 999
	return time.Duration(float64(d) * (1 - backoffSpreadBy + 2*backoffSpreadBy*part)).Round(time.Millisecond)
}

// ending says in one line how a task ended, with its last line of output.
func ending(t *spec.Task) string {
	why := t.Status.Reason
	var log string
	if n := len(t.Status.Attempts); n > 0 {
		a := &t.Status.Attempts[n-1]
		why = cmp.Or(why, a.Error, fmt.Sprintf("exit %d", a.ExitCode))
		if k := len(a.LastLog); k > 0 {
			log = strings.TrimSpace(a.LastLog[k-1])
		}
	}
	why = cmp.Or(why, string(t.Status.State))
	if log != "" {
		why += ": " + log
	}
	return why
}

// newest returns the newest of the tasks, nil when there are none.
func newest(list []*spec.Task) *spec.Task {
	if len(list) == 0 {
		return nil
	}
	return slices.MaxFunc(list, func(a, b *spec.Task) int { return compareIDs(string(a.ID), string(b.ID)) })
}

// compareIDs orders identifiers by incarnation and counter.
func compareIDs(a, b string) int {
	ai, ac := splitID(a)
	bi, bc := splitID(b)
	return cmp.Or(cmp.Compare(ai, bi), cmp.Compare(ac, bc), strings.Compare(a, b))
}

func splitID(id string) (incarnation, counter uint64) {
	i, c, _ := strings.Cut(id, "-")
	incarnation, _ = strconv.ParseUint(i, 10, 64)
	counter, _ = strconv.ParseUint(c, 10, 64)
	return incarnation, counter
}
