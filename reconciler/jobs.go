package reconciler

import (
	"slices"

	"wherry.dev/spec"
)

// job reports whether the tasks of the service are to end by themselves.
func (s *pass) job() bool { return s.svc.Spec.Mode.Job() }

// completed returns the task with which a place of a job has done what the
// service wants now; nil while there is none. A node that was given up may tell
// late that its task has completed, so it need not be the newest.
func (s *pass) completed(pl *place) *spec.Task {
	if !s.job() {
		return nil
	}
	return last(pl.over, s.hasCompleted)
}

func (s *pass) hasCompleted(t *spec.Task) bool {
	return t.Status.State == spec.TaskComplete && s.isNewest(t)
}

// remembers reports whether the row of a task that is over is kept although its
// place is not there now: when that comes back, the job is not run there again.
func (s *pass) remembers(t *spec.Task) bool {
	if !s.job() || !s.hasCompleted(t) || s.foreign(t) || (t.Slot == 0) != s.svc.Spec.Mode.PerNode() {
		return false
	}
	return t.Slot > 0 || s.nodes[t.Node] != nil
}

// foreign reports whether a task of a job was made for a service of that name
// that was removed since: what it has done is not what this one asks for.
func (s *pass) foreign(t *spec.Task) bool {
	return s.job() && compareIDs(string(t.ID), string(s.svc.ID)) < 0
}

// completedAll reports whether a job has completed at all its places. Of a job
// on every node those count that are there.
func (s *pass) completedAll() bool {
	if !s.job() || s.svc.Spec.Mode.PerNode() && len(s.places) == 0 {
		return false
	}
	return !slices.ContainsFunc(s.places, func(pl *place) bool {
		return s.completed(pl) == nil && (pl.fillable || len(pl.live) > 0)
	})
}

// allCompleted is completedAll of a service.
func (p *planner) allCompleted(svc *spec.Service) bool {
	done, ok := p.complete[svc.Key()]
	if !ok { // nobody plans now
		done = p.look(svc).completedAll()
		p.complete[svc.Key()] = done
	}
	return done
}

// hasTurn reports whether one more place of a job may get a task.
func (s *pass) hasTurn() bool {
	most := s.svc.Spec.MaxConcurrent
	if !s.job() || most == 0 {
		return true
	}
	for _, t := range s.tasks[s.svc.Key()] { // also those whose place is gone
		if !t.Status.State.Terminal() && !s.over[t.ID] && !s.reaped[t.ID] {
			most--
		}
	}
	return s.made < most
}

// patient reports whether something goes on that takes as long as it takes, so
// that an update which gets no further for long is not stuck: a task of a job
// runs, or one that this service waits for is still under way.
func (s *pass) patient() bool {
	runs := func(t *spec.Task) bool { return t.Status.State == spec.TaskRunning && s.nodeUp(t.Node) }
	if s.job() && slices.ContainsFunc(s.places, func(pl *place) bool { return slices.ContainsFunc(pl.live, runs) }) {
		return true
	}
	if !slices.ContainsFunc(s.svc.Spec.DependsOn, func(d spec.Dependency) bool {
		return d.Condition == spec.DependencyCompleted && s.updates[spec.ServiceKey(s.svc.Stack, d.Service)].State == spec.UpdateUpdating
	}) {
		return false
	}
	return slices.ContainsFunc(s.places, func(pl *place) bool { return pl.fillable && !s.current(pl) && s.gate(pl) != "" })
}

// expendable is the index of the task of a place that is forgotten first: the
// oldest, of a job one that did not complete.
func (s *pass) expendable(pl *place) int {
	if !s.job() {
		return 0
	}
	return max(0, slices.IndexFunc(pl.over, func(t *spec.Task) bool { return t.Status.State != spec.TaskComplete }))
}
