package reconciler

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// Why says of the services of a stack why their tasks are as they are, service by
// service; of all stacks when it is empty, and of one service when that is given.
// Places that are as they ought to be are left out, but for the one with the given
// name (as Task.Place), if any. Services without such places are there all the
// same.
func Why(s *store.Snapshot, stack, service, place string, now time.Time) []spec.ServiceWhy {
	p := newPlanner(s, now.Round(0).UTC())
	p.numberNetworks() // as the next plan will
	out := []spec.ServiceWhy{}
	for _, svc := range p.services {
		if (stack == "" || svc.Stack == stack) && (service == "" || svc.Name == service) {
			out = append(out, p.why(svc, place))
		}
	}
	return out
}

func (p *planner) why(svc *spec.Service, place string) spec.ServiceWhy {
	st := p.serviceStatus(svc)
	s := p.look(svc)
	out := spec.ServiceWhy{
		Stack: svc.Stack, Service: svc.Name, State: st.State, Message: st.Message,
		Running: st.Running, Desired: st.Desired, Tasks: []spec.TaskWhy{},
	}
	if svc.Spec.Mode == spec.Global && st.Desired == 0 {
		out.Refusals, _ = s.board.Explain(&s.class)
	}
	for _, pl := range s.places {
		if place != "" && pl.name != place || !pl.fillable && len(pl.live) == 0 && place == "" {
			continue
		}
		if w := s.whyPlace(pl); place != "" || w.Verdict != spec.VerdictFine {
			out.Tasks = append(out.Tasks, w)
		}
	}
	return out
}

// whyPlace explains one place.
func (s *pass) whyPlace(pl *place) spec.TaskWhy {
	tr := s.trouble(pl)
	w := spec.TaskWhy{Name: s.placeName(pl), Message: tr.message, Verdict: spec.VerdictStarting}
	switch tr.rank {
	case fine:
		w.Verdict = spec.VerdictFine
	case impaired, failing:
		w.Verdict = spec.VerdictFailing
	}
	t := cmp.Or(last(pl.live, s.isNewest), newest(pl.live), newest(pl.ending), newest(pl.over))
	if t != nil {
		w.ID, w.State, w.Since = t.ID, t.Status.State, t.Status.Since
		if t.Node != "" {
			w.Node = s.nodeName(t.Node)
		}
		if s.now.Before(t.Status.NextStart) && !t.Status.State.Terminal() {
			w.Until = t.Status.NextStart
		}
	}
	w.Ends = s.ends(pl)
	switch _, gave := s.gaveUp(pl); {
	case gave != nil:
		w.Verdict = spec.VerdictFailed
	case len(pl.live) == 0 && s.settled(pl):
		if n, _ := s.lost(pl); n > 0 {
			w.Verdict = spec.VerdictFailed
		}
	case len(pl.live) == 0 && len(pl.ending) > 0:
		w.Verdict = spec.VerdictStopping
	case t == nil || t.Status.State == spec.TaskPending || len(pl.live) == 0:
		s.whyUnplaced(pl, t, &w)
	case s.isDown(t):
		w.Verdict = spec.VerdictDown
		s.whyNoOther(pl, t, &w)
	case s.isNewest(t) && s.serves(t) && w.Verdict == spec.VerdictFailing && !s.steady(t):
		w.Verdict = spec.VerdictStarting // it stands in for a failure
	case len(pl.live) == 1 && s.serves(t) && s.unfit(t) != "":
		s.whyNoOther(pl, t, &w)
	}
	if !w.Until.IsZero() && w.Verdict != spec.VerdictFailed {
		w.Verdict = spec.VerdictBackOff
	}
	if w.Message == "" {
		w.Message = s.whyFine(pl, t)
	}
	return w
}

// whyFine says of a place that is as it ought to be what there is.
func (s *pass) whyFine(pl *place, t *spec.Task) string {
	name := s.placeName(pl)
	switch {
	case t == nil:
		return name + " has no task: node " + s.nodeName(pl.node) + " takes none"
	case t.Status.State.Terminal():
		return name + " is " + string(t.Status.State) + ", and is not to run again"
	case s.drained(t) != "":
		return name + " runs; " + s.drained(t) + ", and it cannot move: " + s.whyPinned(t, s.roomWithout(pl, t))
	case len(t.Status.Attempts) > 0:
		return name + " runs; before, it ended: " + attemptEnd(&t.Status.Attempts[len(t.Status.Attempts)-1])
	}
	return name + " is " + string(t.Status.State)
}

// whyUnplaced explains a place whose task, if there is one yet, has no node.
func (s *pass) whyUnplaced(pl *place, t *spec.Task, w *spec.TaskWhy) {
	if t != nil && t.Status.Reason == waitsForRoom {
		w.Verdict, w.Message = spec.VerdictWaiting, w.Name+": "+t.Status.Reason
		return
	}
	if t != nil && t.Status.State == spec.TaskPending && s.now.Before(t.NotBefore) {
		w.Verdict, w.Until, w.Message = spec.VerdictBackOff, t.NotBefore, w.Name+": "+t.Status.Reason
		return
	}
	if why := s.hold(pl); why != "" {
		w.Verdict, w.Message = spec.VerdictWaiting, w.Name+": "+why
		w.Waits = s.waits()
		return
	}
	why := s.room(pl)
	if why == "" {
		return // the next plan places it
	}
	if strings.HasPrefix(why, "waits ") {
		w.Verdict, w.Message = spec.VerdictWaiting, w.Name+": "+why
		return
	}
	w.Verdict, w.Message = spec.VerdictPending, w.Name+" cannot be placed: "+why
	s.refusals(pl, w)
}

// whyNoOther adds why no other node takes what an old task does, if none does.
func (s *pass) whyNoOther(pl *place, old *spec.Task, w *spec.TaskWhy) {
	if s.roomWithout(pl, old) == "" {
		return
	}
	s.board.Release(s.booking(old))
	defer s.board.Book(s.booking(old))
	s.refusals(pl, w)
}

// refusals adds what nodes say to a task of the service, where nothing else keeps
// it.
func (s *pass) refusals(pl *place, w *spec.TaskWhy) {
	if s.joined() || pl.slot == 0 || cmp.Or(s.missing(), s.volumeRoom(pl)) != "" {
		return
	}
	w.Refusals, w.Nearest = s.board.Explain(&s.class)
}

// waits lists the dependencies that do not hold, and what is wrong with each.
func (s *pass) waits() []spec.TaskWait {
	var out []spec.TaskWait
	for _, d := range s.svc.Spec.DependsOn {
		if s.waitsFor(s.svc.Stack, d) == "" {
			continue
		}
		one := spec.TaskWait{Service: d.Service, Condition: d.Condition, Message: "the service does not exist"}
		if svc := s.byKey[spec.ServiceKey(s.svc.Stack, d.Service)]; svc != nil {
			one.Message = s.status(svc).Message
		}
		out = append(out, one)
	}
	return out
}

// ends returns the newest ends of attempts at a place. A task that was refused by
// its node counts as one.
func (s *pass) ends(pl *place) []spec.AttemptEnd {
	var out []spec.AttemptEnd
	tasks := slices.Concat(pl.over, pl.ending, pl.live)
	slices.SortStableFunc(tasks, func(a, b *spec.Task) int { return compareIDs(string(a.ID), string(b.ID)) })
	for _, t := range tasks {
		attempts := t.Status.Attempts
		if t.Status.State == spec.TaskRejected && len(attempts) == 0 {
			attempts = []spec.Attempt{{Ended: t.Status.Since, ExitCode: -1, Error: t.Status.Reason}}
		}
		for _, a := range attempts {
			out = append(out, spec.AttemptEnd{Attempt: a, ID: t.ID, Node: s.nodeName(t.Node)})
		}
	}
	return out[max(0, len(out)-spec.KeepAttempts):]
}
