package spec

import "time"

// FailureAction is what happens when an update fails.
type FailureAction string

// The actions.
const (
	// FailureRollback takes the whole stack back to its last revision that
	// completed.
	FailureRollback FailureAction = "rollback"
	// FailurePause leaves everything as it is until a person decides.
	FailurePause FailureAction = "pause"
	// FailureContinue goes on with the next tasks.
	FailureContinue FailureAction = "continue"
)

// UpdateOrder says which of two tasks of a place comes first.
type UpdateOrder string

// The orders.
const (
	// StartFirst starts the new task and stops the old one when it is well.
	StartFirst UpdateOrder = "start-first"
	// StopFirst starts the new task when the old one is over.
	StopFirst UpdateOrder = "stop-first"
)

// UpdateConfig says how the tasks of a service are replaced. It is no part of
// the template: to change it restarts nothing. Zero values are the defaults.
type UpdateConfig struct {
	// Parallelism is how many tasks are replaced at a time; 0 is all of them, nil
	// is one.
	Parallelism *int `json:"parallelism,omitempty"`
	// Delay between the end of a batch and the begin of the next.
	Delay Duration `json:"delay,omitempty"`
	// FailureAction is FailureRollback when empty, and FailurePause for a
	// rollback, which cannot be rolled back.
	FailureAction FailureAction `json:"failure_action,omitempty"`
	// Monitor is how long a new task must have been ready before it is trusted. 0
	// is DefaultMonitor for tasks without a health check, and no time at all for
	// those with one.
	Monitor Duration `json:"monitor,omitempty"`
	// MaxFailureRatio is the share of the tasks that may fail, from 0 to 1.
	MaxFailureRatio float64 `json:"max_failure_ratio,omitempty"`
	// Order is StartFirst when empty, or StopFirst for a service whose tasks
	// cannot be together (see ServiceSpec.Apart).
	Order UpdateOrder `json:"order,omitempty"`
}

const (
	// DefaultMonitor is UpdateConfig.Monitor of tasks without a health check.
	DefaultMonitor = 5 * time.Second
	// DefaultProgressDeadline is ServiceSpec.ProgressDeadline when that is 0.
	DefaultProgressDeadline = 10 * time.Minute
)

// Canary says that an update tries the new revision on a part of the tasks
// first. It is no part of the template. The zero value is no canary: so it is
// with rollbacks, restarts and where there is but one task.
type Canary struct {
	// Replicas is how many tasks get the new revision first; 0 when Weight says.
	Replicas int `json:"replicas,omitempty"`
	// Weight is that as a share of the tasks, in percent from 1 to 99, rounded up.
	Weight int `json:"weight,omitempty"`
	// Promote is PromoteAuto when empty.
	Promote Promotion `json:"promote,omitempty"`
}

// Promotion says who decides that an update goes on behind its canary.
type Promotion string

// The ways.
const (
	// PromoteAuto goes on when all tasks of the canary have been well together for
	// UpdateConfig.Monitor, or DefaultMonitor where that is 0.
	PromoteAuto Promotion = "auto"
	// PromoteManual waits for a person as soon as all of them are trusted.
	PromoteManual Promotion = "manual"
)

// Of returns how many of a number of tasks are tried first: never all of them,
// and 0 for no canary.
func (c Canary) Of(tasks int) int {
	n := c.Replicas
	if c.Weight > 0 {
		n = (tasks*c.Weight + 99) / 100
	}
	return max(min(n, tasks-1), 0)
}

// CanaryState is how far the canary of an update is.
type CanaryState string

// The states; empty is an update without canary.
const (
	CanaryTesting  CanaryState = "testing"  // its tasks are replaced and watched
	CanaryWaiting  CanaryState = "waiting"  // they are well, and a person decides
	CanaryPromoted CanaryState = "promoted" // the update has gone on, or goes on
)

// NeverTogether says why two tasks of one place of the service can never be together,
// whatever its update policy says; empty when they can.
func (s *ServiceSpec) NeverTogether() string {
	if s.Template.Exclusive {
		return "the service is exclusive"
	}
	if ip := s.Template.FixedAddress(); ip != "" {
		return "the service has the fixed address " + ip
	}
	if s.Mode.Job() {
		return "the service is a job"
	}
	return ""
}

// NoStartFirst says why the order StartFirst is not possible for the service;
// empty when it is.
func (s *ServiceSpec) NoStartFirst() string {
	if head := s.Template.Joins(); head != "" {
		return "the service shares the network of service " + head + ", where two tasks would want the same ports"
	}
	return s.NeverTogether()
}

// Apart says why the tasks of one place of the service are not together unless
// its update policy asks for it; empty when they are.
func (s *ServiceSpec) Apart() string {
	if why := s.NeverTogether(); why != "" {
		return why
	}
	if s.Template.NetworkMode == "host" {
		return "the service uses the network of its node"
	}
	for _, p := range s.Ports {
		if p.Mode == PublishHost {
			return "the service has a port of its node"
		}
	}
	for _, m := range s.Template.Mounts {
		if m.Type == MountVolume && m.Source != "" {
			return "the service has volume " + m.Source
		}
	}
	return ""
}

func (c *checker) updates(at string, s *ServiceSpec) {
	c.update(at+".update", &s.Update, FailureRollback, FailurePause, FailureContinue)
	c.update(at+".rollback", &s.Rollback, FailurePause, FailureContinue)
	c.notNegative(at+".progress_deadline", int64(s.ProgressDeadline))
	c.canary(at+".canary", s)
	for _, u := range []struct {
		name   string
		config *UpdateConfig
	}{{".update", &s.Update}, {".rollback", &s.Rollback}} {
		if why := s.NoStartFirst(); why != "" && u.config.Order == StartFirst {
			c.add(at+u.name+".order", "%s is not possible: %s", StartFirst, why)
		}
	}
}

func (c *checker) canary(at string, s *ServiceSpec) {
	k := s.Canary
	if k == (Canary{}) {
		return
	}
	if (k.Replicas == 0) == (k.Weight == 0) {
		c.add(at, "must have either replicas or weight")
	}
	if k.Replicas < 0 || k.Replicas > MaxReplicas {
		c.add(at+".replicas", "must be from 1 to %d", MaxReplicas)
	}
	if k.Weight < 0 || k.Weight > 99 {
		c.add(at+".weight", "must be from 1 to 99 percent")
	}
	if k.Promote != "" {
		oneOf(c, at+".promote", k.Promote, PromoteAuto, PromoteManual)
	}
	if s.Update.FailureAction == FailureContinue {
		c.add(at, "is not possible with the failure action %s: a canary that fails is gone back from, or left to a person", FailureContinue)
	}
}

func (c *checker) update(at string, u *UpdateConfig, actions ...FailureAction) {
	if p := u.Parallelism; p != nil && (*p < 0 || *p > MaxReplicas) {
		c.add(at+".parallelism", "must be from 0 to %d", MaxReplicas)
	}
	c.notNegative(at+".delay", int64(u.Delay))
	c.notNegative(at+".monitor", int64(u.Monitor))
	if u.FailureAction != "" {
		oneOf(c, at+".failure_action", u.FailureAction, actions...)
	}
	if !(u.MaxFailureRatio >= 0 && u.MaxFailureRatio <= 1) {
		c.add(at+".max_failure_ratio", "must be from 0 to 1")
	}
	if u.Order != "" {
		oneOf(c, at+".order", u.Order, StartFirst, StopFirst)
	}
}
