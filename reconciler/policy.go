package reconciler

import (
	"cmp"
	"fmt"
	"strings"
	"time"

	"wherry.dev/spec"
)

// policy says how the tasks of a service are replaced, with every default
// filled in.
type policy struct {
	parallelism int // tasks at a time; 0 is all of them
	delay       time.Duration
	action      spec.FailureAction
	// monitor is how long a task without a health check must have run, checked how
	// long one with a check must have been healthy, before it is trusted.
	monitor, checked time.Duration
	ratio            float64 // of places that may fail
	order            spec.UpdateOrder
	deadline         time.Duration // without progress
}

// policyOf returns the policy of an update of the service, or of a rollback.
func policyOf(s *spec.ServiceSpec, rollback bool) policy {
	u, action := &s.Update, spec.FailureRollback
	if rollback {
		u, action = &s.Rollback, spec.FailurePause
	}
	p := policy{
		parallelism: 1, delay: u.Delay.D(), action: cmp.Or(u.FailureAction, action),
		monitor: cmp.Or(u.Monitor.D(), Monitor), checked: u.Monitor.D(),
		ratio: u.MaxFailureRatio, order: u.Order,
		deadline: cmp.Or(s.ProgressDeadline.D(), spec.DefaultProgressDeadline),
	}
	if u.Parallelism != nil {
		p.parallelism = *u.Parallelism
	}
	return p
}

// exceeds reports whether more of a number of places failed than a policy admits.
func exceeds(failed, places int, ratio float64) bool {
	return failed > 0 && float64(failed)/float64(max(places, 1)) > ratio
}

// length is a duration for people: without the zeros at its end.
func length(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// spaced is a short duration for people, "5 s".
func spaced(d time.Duration) string {
	if d%time.Second == 0 && d < time.Minute {
		return fmt.Sprintf("%d s", d/time.Second)
	}
	return length(d)
}
