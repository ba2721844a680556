package reconciler

import (
	"cmp"
	"slices"

	"wherry.dev/spec"
)

// hold says what the next task of a place waits for, or "".
func (s *pass) hold(pl *place) string { return cmp.Or(s.gate(pl), s.mayRunAt(pl)) }

// gate says what the first start at a place waits for, or "". A place that has
// run before does not wait again: a dependency that fails later must not keep
// its dependants from being restarted. But what is new waits for the jobs that
// must come before it.
func (s *pass) gate(pl *place) string {
	if s.eager || len(s.svc.Spec.DependsOn) == 0 {
		return ""
	}
	if hasRun(pl) {
		return s.awaits()
	}
	for _, d := range s.svc.Spec.DependsOn {
		if why := s.waitsFor(s.svc.Stack, d); why != "" {
			return why
		}
	}
	return ""
}

// awaits says what an update waits for before it touches anything, or "": jobs
// that must complete, and services after whose update this one is restarted.
func (s *pass) awaits() string {
	if s.eager || !s.updating {
		return ""
	}
	for _, d := range s.svc.Spec.DependsOn {
		if d.Condition == spec.DependencyCompleted {
			if why := s.waitsFor(s.svc.Stack, d); why != "" {
				return why
			}
		}
		dep := s.byKey[spec.ServiceKey(s.svc.Stack, d.Service)]
		if d.Restart && dep != nil && s.up.From != "" && !s.updateEnded(dep) {
			return "waits for service " + d.Service + " to be updated"
		}
	}
	return ""
}

// updateEnded reports whether the newest update of a service has come to its
// end, as this plan leaves it.
func (p *planner) updateEnded(svc *spec.Service) bool {
	u, ok := p.updates[svc.Key()]
	if !ok {
		u = svc.Update
	}
	return u.Rollout == svc.Rollout && (u.State == spec.UpdateCompleted || u.State == spec.UpdateRolledBack)
}

func hasRun(pl *place) bool {
	return slices.ContainsFunc(slices.Concat(pl.over, pl.ending, pl.live), func(t *spec.Task) bool {
		return t.Desired != spec.DesiredRemoved && (t.Status.Started > 0 || t.Status.State == spec.TaskRunning)
	})
}

// waitsFor says why a dependency does not hold, or "".
func (p *planner) waitsFor(stack string, d spec.Dependency) string {
	key := spec.ServiceKey(stack, d.Service)
	if p.byKey[key] == nil {
		if d.Optional {
			return ""
		}
		return "waits for service " + d.Service + ", which does not exist"
	}
	if d.Condition == spec.DependencyCompleted {
		if p.allCompleted(p.byKey[key]) {
			return ""
		}
		return "waits for service " + d.Service + " to complete"
	}
	if d.Condition == spec.DependencyHealthy {
		if slices.ContainsFunc(p.tasks[key], func(t *spec.Task) bool { return p.serves(t) && !p.ended[t.ID] }) {
			return ""
		}
		return "waits for service " + d.Service + " to be healthy"
	}
	if slices.ContainsFunc(p.tasks[key], p.hasStarted) {
		return ""
	}
	return "waits for service " + d.Service + " to start"
}

// hasStarted: the task runs, or has done all it had to do.
func (p *planner) hasStarted(t *spec.Task) bool {
	switch t.Status.State {
	case spec.TaskRunning:
		return t.Desired == spec.DesiredRunning && p.nodeUp(t.Node) && !p.ended[t.ID]
	case spec.TaskComplete:
		return t.Desired != spec.DesiredRemoved && !p.reaped[t.ID]
	}
	return false
}
