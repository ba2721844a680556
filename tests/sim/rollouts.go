package sim

import (
	"bytes"
	"slices"
	"strings"
	"time"

	"wherry.dev/cluster/store"
	"wherry.dev/reconciler"
	"wherry.dev/spec"
)

// longestMonitor is more than any service of a world asks for.
const longestMonitor = 10 * time.Second

// policyOf is what an update of a service goes by.
func policyOf(svc *spec.Service) spec.UpdateConfig {
	if svc.Update.Rollback != 0 {
		return svc.Spec.Rollback
	}
	return svc.Spec.Update
}

// atOnce is how many tasks of a service may be replaced at the same time.
func atOnce(svc *spec.Service) int {
	most := 1
	for _, u := range []spec.UpdateConfig{svc.Spec.Update, svc.Spec.Rollback} {
		switch n := u.Parallelism; {
		case n != nil && *n == 0:
			return 1000
		case n != nil:
			most = max(most, *n)
		}
	}
	return most
}

// extra is how many tasks a service may have beyond its number: those of a
// batch, and those that may fail beside the ones they stand in for.
func extra(svc *spec.Service) int {
	if mayFail(svc) {
		return svc.Replicas
	}
	return atOnce(svc)
}

// mayFail: an update of the service may go on after a failure.
func mayFail(svc *spec.Service) bool {
	return slices.ContainsFunc([]spec.UpdateConfig{svc.Spec.Update, svc.Spec.Rollback}, func(u spec.UpdateConfig) bool {
		return u.MaxFailureRatio > 0 || u.FailureAction == spec.FailureContinue
	})
}

// stopsFirst and mayBeTogether: one of the policies says so.
func stopsFirst(svc *spec.Service) bool {
	return svc.Spec.Update.Order == spec.StopFirst || svc.Spec.Rollback.Order == spec.StopFirst
}

func mayBeTogether(svc *spec.Service) bool {
	return svc.Spec.Update.Order == spec.StartFirst || svc.Spec.Rollback.Order == spec.StartFirst
}

// monitor is the shortest time after which a task of a service is trusted.
func monitor(svc *spec.Service) time.Duration {
	least := longestMonitor
	for _, u := range []spec.UpdateConfig{svc.Spec.Update, svc.Spec.Rollback} {
		if d := u.Monitor.D(); d != 0 {
			least = min(least, d)
		} else {
			least = min(least, reconciler.Monitor)
		}
	}
	return least
}

// checkRevisions: a stack goes back by itself once, to a revision that
// completed and to all of it, and a revision that completed stays so.
func (w *World) checkRevisions(before, after *store.Snapshot, c *store.Command) {
	for _, row := range after.Stacks() {
		revs := after.StackRevisions(row.Name)
		for i, r := range revs {
			old := before.StackRevision(row.Name, r.Number)
			if old != nil && old.State == spec.RevisionCompleted && r.State != spec.RevisionCompleted && before.Stack(row.Name).ID == row.ID {
				w.failf("revision %d of %s had completed and is %s", r.Number, row.Name, r.State)
			}
			if (r.State == spec.RevisionPaused || r.State == spec.RevisionFailed || r.State == spec.RevisionRolledBack) && r.Why == "" {
				w.failf("revision %d of %s is %s for no reason", r.Number, row.Name, r.State)
			}
			if r.Author != spec.RollbackAuthor || i == 0 || revs[i-1].Number != r.Number-1 {
				continue
			}
			if revs[i-1].Author == spec.RollbackAuthor {
				w.failf("stack %s goes back and back: revisions %d and %d", row.Name, r.Number-1, r.Number)
			}
			if revs[i-1].State != spec.RevisionRolledBack {
				w.failf("stack %s went back from revision %d, which is %q", row.Name, r.Number-1, revs[i-1].State)
			}
		}
		head := after.StackRevision(row.Name, row.Revision)
		if before.Index() == after.Index() || head.Author != spec.RollbackAuthor || before.StackRevision(row.Name, row.Revision) != nil {
			continue
		}
		w.note("stack %s goes back to revision %d: %s", row.Name, head.Rollback, head.Message)
		target := after.StackRevision(row.Name, head.Rollback)
		if target == nil || target.State != spec.RevisionCompleted || !bytes.Equal(encode(target.Spec), encode(head.Spec)) {
			w.failf("stack %s went back to revision %d: %s", row.Name, head.Rollback, encode(target))
		}
		if c.ApplyPlan == nil {
			w.failf("stack %s went back by %s", row.Name, c.Kind())
		}
	}
}

// checkAvailable: a plan takes away no more tasks that serve than the policy
// admits at a time, and none while others are on their way; with start-first it
// takes none away before another serves in its place. Tasks that end with the
// one whose network they share are not of their own service's choice.
func (w *World) checkAvailable(before, after *store.Snapshot, c *store.Command) {
	if c.ApplyPlan == nil {
		return
	}
	why := map[spec.TaskID]string{}
	for _, p := range c.ApplyPlan.Parts {
		for _, x := range p.Change {
			why[x.Task] = x.Why
		}
	}
	for _, svc := range after.Services() {
		old := before.Service(svc.Stack, svc.Name)
		if old == nil || old.ID != svc.ID || svc.Spec.Mode != spec.Replicated {
			continue
		}
		taken, under := 0, ""
		for slot := 1; slot <= min(svc.Replicas, old.Replicas); slot++ {
			was, is, follows := false, false, false
			for _, t := range before.TasksOf(svc.Stack, svc.Name) {
				n := before.Node(t.Node)
				if t.Slot != slot || n == nil || n.State != spec.NodeReady {
					continue
				}
				if h := before.Task(t.Joins); h != nil && h.Ready() && !after.Task(h.ID).Ready() {
					continue // it goes with its head, whose update sets the pace
				}
				if strings.HasPrefix(why[t.ID], "makes room for") {
					continue // see checkRoom
				}
				if !t.Ready() {
					// One that this plan replaces as well is part of the same batch.
					now := after.Task(t.ID)
					if now != nil && now.Desired == spec.DesiredRunning && !t.Status.State.Terminal() && t.Status.State != spec.TaskPending && len(t.Status.Attempts) == 0 {
						under = string(t.ID)
					}
					continue
				}
				was = true
				now := after.Task(t.ID)
				is = is || now.Ready()
				if !now.Ready() && why[t.ID] != "" {
					w.checkFetched(before, svc, t, why[t.ID])
				}
				// What shares the network of another task ends with that, whoever's turn it is.
				head := after.Task(t.Joins)
				follows = follows || t.Joins != "" && (head == nil || head.Desired != spec.DesiredRunning)
				if !now.Ready() && svc.Name == "web" && !stopsFirst(svc) && !w.scarce && !n.StopPinned && why[t.ID] != "" &&
					!strings.Contains(why[t.ID], "no room for both") && !w.another(before, t) {
					w.failf("task %s of %s was stopped before another serves: %s", t.ID, svc.Key(), why[t.ID])
				}
			}
			if was && !is && !follows {
				taken++
			}
		}
		if taken == 0 {
			continue
		}
		if most := atOnce(svc); taken > most {
			w.failf("a plan takes %d tasks of %s away, which replaces %d at a time", taken, svc.Key(), most)
		}
		if under != "" && atOnce(svc) < 1000 && !mayFail(svc) && svc.Update.State == spec.UpdateUpdating && svc.Update.Rollout == old.Update.Rollout {
			w.failf("a plan takes a task of %s away while task %s is on its way", svc.Key(), under)
		}
	}
}

// checkRoom: a plan ends tasks for others only if these have a higher priority and
// ask for it.
func (w *World) checkRoom(before *store.Snapshot, c *store.Command) {
	if c.ApplyPlan == nil {
		return
	}
	for _, p := range c.ApplyPlan.Parts {
		for _, x := range p.Change {
			name, ok := strings.CutPrefix(x.Why, "makes room for task ")
			if !ok {
				continue
			}
			w.note("task %s %s", x.Task, x.Why)
			t := before.Task(x.Task)
			stack, rest, _ := strings.Cut(name, ".")
			service, _, _ := strings.Cut(rest, ".")
			to, of := before.Service(stack, service), before.Service(t.Stack, t.Service)
			if to == nil || of == nil || !to.Spec.Placement.Preempt || to.Spec.Placement.Priority <= of.Spec.Placement.Priority {
				w.failf("task %s of %s was ended for %s", x.Task, of.Key(), name)
			}
		}
	}
}

// checkRebalanced: a task that moves leaves nothing behind, and only when another one
// serves at its place.
func (w *World) checkRebalanced(before *store.Snapshot, c *store.Command) {
	if c.ApplyPlan == nil {
		return
	}
	for _, p := range c.ApplyPlan.Parts {
		for _, x := range p.Change {
			if !strings.HasPrefix(x.Why, "it moves") {
				continue
			}
			w.note("task %s has moved", x.Task)
			if t := before.Task(x.Task); len(t.Volumes) > 0 || !w.another(before, t) {
				w.failf("task %s moves: %s", x.Task, encode(t))
			}
		}
	}
}

// checkNoneWaitsForRoom: at rest all have ended that others wait for.
func (w *World) checkNoneWaitsForRoom() {
	for _, t := range w.store.Snapshot().Tasks() {
		if strings.HasPrefix(t.Status.Reason, "waits for room") && !t.Status.State.Terminal() {
			w.failf("task %s waits for room for ever: %s", t.ID, encode(t))
		}
	}
}

// checkFetched: a task whose place is to be empty for a while is not stopped for a
// revision whose image no node has.
func (w *World) checkFetched(before *store.Snapshot, svc *spec.Service, t *spec.Task, why string) {
	old := before.Service(svc.Stack, svc.Name)
	u := &old.Update
	image := func(id spec.RevisionID) string { return before.Revision(id).Template.Image }
	policy := policyOf(svc)
	if u.State != spec.UpdateUpdating || u.Rollout != svc.Rollout || svc.Update.Rollout != u.Rollout || t.Revision == svc.Revision ||
		image(t.Revision) == image(svc.Revision) || policy.FailureAction == spec.FailureContinue || policy.MaxFailureRatio > 0 ||
		svc.Spec.Template.Joins() != "" || mayEnd(svc) || before.Node(t.Node).Availability == spec.NodeDrain || w.another(before, t) || svc.Spec.Placement.Constraints != nil ||
		slices.ContainsFunc(t.Volumes, func(b spec.VolumeBinding) bool { v := before.VolumeNamed(b.Name); return v != nil && v.Move != nil }) {
		return
	}
	for _, n := range before.Nodes() {
		if n.Fetched == nil || slices.ContainsFunc(*n.Fetched, func(f spec.FetchStatus) bool { return f.Done && f.Revision == svc.Revision }) {
			return
		}
	}
	w.failf("task %s of %s was stopped, and no node has the image of %s: %s", t.ID, svc.Key(), svc.Revision, why)
}

// checkCanary: as long as a canary is tried, a plan begins no more replacements
// of tasks that serve than it has.
func (w *World) checkCanary(before, after *store.Snapshot, c *store.Command) {
	if c.ApplyPlan == nil {
		return
	}
	for _, svc := range after.Services() {
		u := &svc.Update
		if u.Canary != spec.CanaryTesting && u.Canary != spec.CanaryWaiting || u.Rollout != svc.Rollout || svc.Spec.Mode != spec.Replicated {
			continue
		}
		tried, begun := map[int]bool{}, 0
		for _, t := range after.TasksOf(svc.Stack, svc.Name) {
			if t.Revision != svc.Revision || t.Status.State.Terminal() || t.Slot > svc.Replicas {
				continue
			}
			tried[t.Slot] = true
			if before.Task(t.ID) == nil && slices.ContainsFunc(before.TasksOf(t.Stack, t.Service), func(old *spec.Task) bool {
				n := before.Node(old.Node)
				return old.Slot == t.Slot && old.Revision != svc.Revision && old.Ready() && n != nil && n.State == spec.NodeReady
			}) {
				begun++
			}
		}
		if most := svc.Spec.Canary.Of(svc.Replicas); begun > 0 && len(tried) > most {
			w.failf("%d tasks of %s are of the new revision, and its canary is %d: %s", len(tried), svc.Key(), most, encode(u))
		}
	}
}

// another reports whether another task serves at the place of a task.
func (w *World) another(s *store.Snapshot, t *spec.Task) bool {
	return slices.ContainsFunc(s.TasksOf(t.Stack, t.Service), func(x *spec.Task) bool {
		return x.ID != t.ID && x.Place() == t.Place() && x.Ready()
	})
}

// restless reports whether what is declared has a service that cannot start: a
// stack went back to where a policy had let it fail.
func (w *World) restless() bool {
	return slices.ContainsFunc(w.store.Snapshot().Services(), func(s *spec.Service) bool {
		return strings.HasPrefix(s.Spec.Template.Image, "missing") || strings.HasPrefix(s.Spec.Template.Image, "broken")
	})
}

// ended reports whether no update is under way.
func (w *World) ended() bool {
	return !slices.ContainsFunc(w.store.Snapshot().Services(), func(s *spec.Service) bool {
		return s.Update.State == spec.UpdateUpdating || s.Update.Rollout != s.Rollout
	})
}

// checkEnded: at rest every update has come to its end, with a reason if it is
// not the one that was wanted, and so have the revisions of stacks.
func (w *World) checkEnded() {
	s := w.store.Snapshot()
	for _, svc := range s.Services() {
		u := &svc.Update
		if u.Rollout != svc.Rollout {
			w.failf("the update of %s that was called for at %d has not begun: %s", svc.Key(), svc.Rollout, encode(u))
		}
		ended := u.State == spec.UpdateCompleted || u.State == spec.UpdateRolledBack && u.Message != "" || u.State == spec.UpdatePaused && u.Message != ""
		if !ended && svc.Rollout != 0 {
			w.failf("the update of %s has no end: %s", svc.Key(), encode(u))
		}
	}
	for _, row := range s.Stacks() {
		switch head := s.StackRevision(row.Name, row.Revision); head.State {
		case spec.RevisionCompleted:
			if row.Completed != head.Number {
				w.failf("revision %d of %s completed, and the stack goes back to %d", head.Number, row.Name, row.Completed)
			}
		case spec.RevisionPaused, spec.RevisionFailed:
		default:
			w.failf("revision %d of %s has no end: %q", head.Number, row.Name, head.State)
		}
	}
}

// spoil declares a revision that cannot start, in a world at rest.
func (w *World) spoil() {
	rows := w.store.Snapshot().Stacks()
	if len(rows) == 0 {
		return
	}
	row := rows[w.rng.IntN(len(rows))]
	s := w.store.Snapshot().StackRevision(row.Name, row.Revision).Spec
	next := s
	next.Services = map[string]spec.ServiceSpec{}
	for name, svc := range s.Services { // any order gives the same
		next.Services[name] = svc
	}
	web := next.Services["web"]
	web.Template.Image = []string{"missing:9", "broken:9"}[w.rng.IntN(2)]
	n := 1 + w.rng.IntN(4)
	web.Replicas = &n
	next.Services["web"] = web
	if res := w.apply(store.Command{PutStack: &store.PutStack{Stack: next}}); res.Err != nil {
		w.failf("the spoilt stack is refused: %v", res.Err)
	}
	w.note("stack %s is spoilt", row.Name)
	w.spoilt = row.Name
	w.rest()
}

// checkSpoilt: the stack has gone back as a whole, or says why it has not.
func (w *World) checkSpoilt() {
	s := w.store.Snapshot()
	row := s.Stack(w.spoilt)
	head := s.StackRevision(row.Name, row.Revision)
	web := s.Service(row.Name, "web")
	u := &web.Spec.Update
	switch {
	case head.Author == spec.RollbackAuthor:
		if strings.Contains(web.Spec.Template.Image, ":9") {
			w.failf("stack %s went back, and %s runs %s", row.Name, web.Key(), web.Spec.Template.Image)
		}
		if head.State == spec.RevisionCompleted {
			for _, t := range s.TasksOf(row.Name, "web") {
				if !t.Status.State.Terminal() && t.Revision != web.Revision {
					w.failf("task %s is of the revision that failed: %s", t.ID, encode(t))
				}
			}
		}
	case u.FailureAction == spec.FailureContinue, u.MaxFailureRatio > 0:
	case web.Update.State != spec.UpdatePaused:
		w.failf("stack %s is spoilt, and the update of web is %s", row.Name, encode(web.Update))
	case u.FailureAction == "" && !strings.Contains(web.Update.Message, "; ") && web.Held == "":
		w.failf("stack %s did not go back and does not say why: %s", row.Name, encode(web.Update))
	}
}
