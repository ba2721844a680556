package sim

import (
	"cmp"
	"fmt"
	"slices"

	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// isJob reports whether a template of this package is that of a job.
func isJob(t *spec.Template) bool { return t.Restart.Window == spec.NoWindow }

// jobs draws services that end by themselves, and one that waits for them.
func (w *World) jobs(s *spec.Stack, image func() string) {
	if w.store != nil && w.store.Snapshot().Format() < store.RolloutFormat {
		return
	}
	job := func(mode spec.ServiceMode) spec.ServiceSpec {
		out := spec.ServiceSpec{Mode: mode, Template: template(image(), "default")}
		out.Template.Restart = spec.Restart{Condition: spec.RestartOnFailure, Window: spec.NoWindow}
		switch n := w.rng.IntN(100); {
		case n < 30:
			out.Template.Restart.Condition = spec.RestartNone
		case n < 60:
			out.Template.Restart.MaxAttempts = 1 + w.rng.IntN(2)
		}
		return out
	}
	if w.chance(50) {
		sums := job(spec.ReplicatedJob)
		sums.MaxConcurrent = w.rng.IntN(3)
		if w.chance(70) {
			n := w.rng.IntN(5)
			sums.Replicas = &n
		}
		s.Services["sums"] = sums
	}
	if w.chance(30) {
		each := job(spec.GlobalJob)
		if w.chance(50) {
			each.Placement.Constraints = []string{"node.labels.disk!=hdd"}
		}
		s.Services["each"] = each
	}
	if w.chance(50) {
		s.Services["migrate"] = job(spec.ReplicatedJob)
		front := spec.ServiceSpec{Mode: spec.Replicated, Template: template(image(), "default")}
		front.DependsOn = []spec.Dependency{
			{Service: "db", Condition: spec.DependencyStarted, Restart: w.chance(50)},
			{Service: "migrate", Condition: spec.DependencyCompleted},
		}
		n := 1 + w.rng.IntN(2)
		front.Replicas = &n
		s.Services["front"] = front
	}
}

// doneAt are the places of a job that have done what it wants now, with the
// task that did it.
func doneAt(s *store.Snapshot, svc *spec.Service) map[string]spec.TaskID {
	out := map[string]spec.TaskID{}
	for _, t := range s.TasksOf(svc.Stack, svc.Name) {
		if t.Status.State == spec.TaskComplete && t.Revision == svc.Revision && t.Restarts == svc.Restarts && !older(string(t.ID), string(svc.ID)) {
			out[t.Place()] = t.ID
		}
	}
	return out
}

// older reports whether an ID was given before another one: a task that is older
// than its service was made for one of that name that is gone.
func older(a, b string) bool {
	var x, y [2]uint64
	for id, to := range map[string]*[2]uint64{a: &x, b: &y} {
		if _, err := fmt.Sscanf(id, "%d-%d", &to[0], &to[1]); err != nil {
			panic(err)
		}
	}
	return slices.Compare(x[:], y[:]) < 0
}

// checkJobs: what has completed is not started again and not forgotten, no more
// tasks are there than at a time, and what waits for a job is not started before.
func (w *World) checkJobs(before, after *store.Snapshot, c *store.Command) {
	if c.ApplyPlan == nil {
		return
	}
	for _, svc := range after.Services() {
		old := before.Service(svc.Stack, svc.Name)
		if old == nil || old.ID != svc.ID || old.Rollout != svc.Rollout {
			continue
		}
		for _, d := range svc.Spec.DependsOn {
			if d.Condition == spec.DependencyCompleted {
				w.checkWaited(before, after, svc, d.Service)
			}
		}
		if !svc.Spec.Mode.Job() {
			continue
		}
		done, live, was := doneAt(before, svc), 0, 0
		for _, t := range after.TasksOf(svc.Stack, svc.Name) {
			if before.Task(t.ID) == nil && done[t.Place()] != "" {
				w.failf("task %s of %s was made, and task %s had completed", t.ID, svc.Key(), done[t.Place()])
			}
			if !t.Status.State.Terminal() {
				live++
			}
		}
		for _, t := range before.TasksOf(svc.Stack, svc.Name) {
			if !t.Status.State.Terminal() {
				was++
			}
			if done[t.Place()] == t.ID && after.Task(t.ID) == nil && before.Node(t.Node) != nil && (t.Slot > 0) == (svc.Spec.Mode == spec.ReplicatedJob) {
				w.failf("task %s of %s had completed and is forgotten", t.ID, svc.Key())
			}
		}
		if most := svc.Spec.MaxConcurrent; most > 0 && live > max(most, was) {
			w.failf("job %s has %d tasks, of %d at a time", svc.Key(), live, most)
		}
	}
}

// checkWaited: while a service is updated, none of its tasks gets a node before
// the job that it waits for has completed.
func (w *World) checkWaited(before, after *store.Snapshot, svc *spec.Service, job string) {
	dep := after.Service(svc.Stack, job)
	if dep == nil || svc.Update.State != spec.UpdateUpdating || len(doneAt(after, dep)) >= dep.Replicas {
		return
	}
	for _, t := range after.TasksOf(svc.Stack, svc.Name) {
		if old := before.Task(t.ID); t.Status.State == spec.TaskAssigned && (old == nil || old.Status.State == spec.TaskPending) {
			w.failf("task %s of %s is started before %s has completed", t.ID, svc.Key(), dep.Key())
		}
	}
}

// checkDone: at rest a job has completed as often as it was to, or its restarts
// are used up and it says so.
func (w *World) checkDone(s *store.Snapshot, svc *spec.Service) {
	done := doneAt(s, svc)
	if svc.Spec.Mode.PerNode() {
		if w.dead != nil || w.away != nil {
			return // which nodes count depends
		}
		for _, n := range s.Nodes() {
			fits := svc.Spec.Placement.Constraints == nil || n.Labels["disk"] != "hdd"
			if fits && done[string(n.ID)] == "" && !w.gaveUp(s, svc, string(n.ID)) {
				w.failf("job %s has not run on %s: %s", svc.Key(), n.Name, encode(s.TasksOf(svc.Stack, svc.Name)))
			}
		}
		return
	}
	for slot := 1; slot <= svc.Replicas; slot++ {
		place := (&spec.Task{Slot: slot}).Place()
		if done[place] == "" && !w.gaveUp(s, svc, place) && !w.noRoom(s, svc) {
			w.failf("job %s has not completed at %s: %s", svc.Key(), place, encode(s.TasksOf(svc.Stack, svc.Name)))
		}
	}
}

// gaveUp reports whether the last task at a place of a job failed and it may
// not be started again.
func (w *World) gaveUp(s *store.Snapshot, svc *spec.Service, place string) bool {
	tasks := s.TasksOf(svc.Stack, svc.Name)
	tasks = slices.DeleteFunc(slices.Clone(tasks), func(t *spec.Task) bool { return t.Place() != place })
	if len(tasks) == 0 {
		return false
	}
	t := slices.MaxFunc(tasks, func(a, b *spec.Task) int {
		return cmp.Or(cmp.Compare(len(a.ID), len(b.ID)), cmp.Compare(a.ID, b.ID))
	})
	r := &svc.Spec.Template.Restart
	return t.Status.State == spec.TaskFailed && t.Revision == svc.Revision && (r.Condition == spec.RestartNone || r.MaxAttempts > 0)
}

// noRoom reports whether a task of a job waits for a node, an address or one
// that is dead.
func (w *World) noRoom(s *store.Snapshot, svc *spec.Service) bool {
	return slices.ContainsFunc(s.TasksOf(svc.Stack, svc.Name), func(t *spec.Task) bool {
		return t.Status.State == spec.TaskPending && t.Status.Reason != "" || w.dead != nil && t.Node == w.dead.id && !t.Status.State.Terminal()
	})
}
