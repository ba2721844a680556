package sim

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// Ledger counts updates and their ends, and watches what they take away.
type Ledger struct {
	// Called are the updates that were called for, Ends what became of each in the
	// end. One that another write overtook has no end of its own.
	// :: service and Rollout → kind
	Called int
	Ends   map[string]string
	// Leaders and Deaths count new leaders and hosts that were cut off meanwhile.
	Leaders, Deaths int
	// Away is the largest number of places of a service that updates had taken
	// away at the same time, by order.
	Away map[spec.UpdateOrder]int
	// taken are the places whose last task that served was taken away by a plan,
	// and that have not served since. // :: service → slot
	taken map[string]map[int]bool
}

func newLedger() *Ledger {
	return &Ledger{Ends: map[string]string{}, Away: map[spec.UpdateOrder]int{}, taken: map[string]map[int]bool{}}
}

// Add sums up.
func (l *Ledger) Add(m *Ledger) {
	l.Called += m.Called
	l.Leaders += m.Leaders
	l.Deaths += m.Deaths
	for k, kind := range m.Ends {
		l.Ends[fmt.Sprint(l.Called, " ", k)] = kind
	}
	for k, n := range m.Away {
		l.Away[k] = max(l.Away[k], n)
	}
}

func (l *Ledger) String() string {
	s := fmt.Sprintf("%d updates, %d leaders, %d hosts cut off:", l.Called, l.Leaders, l.Deaths)
	kinds := l.Kinds()
	for _, k := range slices.Sorted(maps.Keys(kinds)) {
		s += fmt.Sprintf("\n%6d %s", kinds[k], k)
	}
	return s + fmt.Sprintf("\nmost places of a service away at a time: %d with start-first, %d with stop-first", l.Away[spec.StartFirst], l.Away[spec.StopFirst])
}

// Kinds counts the ends by kind.
func (l *Ledger) Kinds() map[string]int {
	out := map[string]int{}
	for _, kind := range l.Ends {
		out[kind]++
	}
	return out
}

func ended(u *spec.UpdateStatus) bool {
	return u.State == spec.UpdateCompleted || u.State == spec.UpdateRolledBack || u.State == spec.UpdatePaused
}

// end names the end of an update.
func end(svc *spec.Service) string {
	switch u := &svc.Update; {
	case u.State == spec.UpdateCompleted && u.Failed > 0:
		return "completed, with failures that are admitted"
	case u.State == spec.UpdateCompleted:
		return "completed"
	case u.State == spec.UpdateRolledBack:
		return "rolled back"
	case u.Canary == spec.CanaryWaiting:
		return "paused: its canary waits for a person"
	case svc.Held != "":
		return "paused by a person"
	case u.Rollback != 0:
		return "paused: the rollback failed"
	}
	return "paused: it failed"
}

func (l *Ledger) note(w *World, before, after *store.Snapshot, c *store.Command) {
	key := func(s *spec.Service) string { return fmt.Sprint(s.Key(), " ", s.Rollout) }
	for _, svc := range after.Services() {
		old := before.Service(svc.Stack, svc.Name)
		if old == nil {
			old = &spec.Service{}
		}
		if svc.Rollout != old.Rollout {
			l.Called++
			over := old.Rollout == 0 || old.Update.Rollout == old.Rollout && ended(&old.Update)
			switch {
			case !over && c.ApplyPlan != nil:
				l.Ends[key(old)] = "failed, and the stack goes back, which is an update of its own"
			case !over:
				l.Ends[key(old)] = "overtaken by another write of a user"
			}
		}
		if u := &svc.Update; u.Rollout == svc.Rollout && ended(u) && !(old.Update.Rollout == u.Rollout && ended(&old.Update)) {
			l.Ends[key(svc)] = end(svc)
			if u.State != spec.UpdateCompleted && u.Message == "" {
				w.failf("the update of %s is %s for no reason", svc.Key(), u.State)
			}
		}
		if old.ID == svc.ID {
			l.watch(w, before, after, svc, min(old.Replicas, svc.Replicas), c.ApplyPlan != nil)
		}
	}
}

// watch: a plan takes away no more places than the policies of the service admit,
// beside those that failures of tasks and hosts take.
func (l *Ledger) watch(w *World, before, after *store.Snapshot, svc *spec.Service, slots int, plan bool) {
	taken := l.taken[svc.Key()]
	if taken == nil {
		taken = map[int]bool{}
		l.taken[svc.Key()] = taken
	}
	was, is, more := serving(before, svc), serving(after, svc), false
	for slot := 1; slot <= slots; slot++ {
		switch {
		case is[slot]:
			delete(taken, slot)
		case was[slot] && plan:
			taken[slot], more = true, true
		}
	}
	order := spec.StartFirst
	if stopsFirst(svc) || svc.Spec.Apart() != "" && !mayBeTogether(svc) {
		order = spec.StopFirst
	}
	if more { // else they are of an older policy
		l.Away[order] = max(l.Away[order], len(taken))
	}
	if most := maxAway(svc); more && len(taken) > most {
		w.failf("an update has taken away %d of %d places of %s, and may take %d: %s", len(taken), svc.Replicas, svc.Key(), most, encode(svc.Spec.Update))
	}
}

// maxAway is how many places of a service may be without a task that serves for
// the sake of updates. With start-first none. With stop-first as many as are
// replaced at a time, and those beside them that may fail: then the update goes
// on with others although nothing serves there.
func maxAway(svc *spec.Service) int {
	most := 0
	for _, u := range []spec.UpdateConfig{svc.Spec.Update, svc.Spec.Rollback} {
		if u.Order == spec.StartFirst || u.Order == "" && svc.Spec.Apart() == "" {
			continue
		}
		n := 1
		if u.Parallelism != nil {
			n = *u.Parallelism
		}
		if n == 0 || u.FailureAction == spec.FailureContinue {
			return svc.Replicas
		}
		most = max(most, n+int(u.MaxFailureRatio*float64(svc.Replicas)))
	}
	return min(most, svc.Replicas)
}

func serving(s *store.Snapshot, svc *spec.Service) map[int]bool {
	out := map[int]bool{}
	for _, t := range s.TasksOf(svc.Stack, svc.Name) {
		if n := s.Node(t.Node); t.Ready() && n != nil && n.State == spec.NodeReady {
			out[t.Slot] = true
		}
	}
	return out
}

// Rollouts plays updates of two services, one after the other, with failures of
// all kinds, and demands that each has an end soon after these are over.
func Rollouts(seed uint64, updates int) *World {
	w := New(seed)
	w.ledger, w.scarce = newLedger(), false
	w.upgrade()
	for len(w.hosts) < 3 {
		w.join()
	}
	w.calm = true
	w.declare("app:0")
	w.finish()
	for range updates {
		if w.err != nil {
			break
		}
		w.calm = false
		w.declare(w.image())
		for range 20 + w.rng.IntN(150) {
			w.roll()
		}
		w.recover()
		w.finish()
	}
	return w
}

func (w *World) image() string {
	return []string{"app:1", "app:2", "app:3", "app:4", "flaky:1", "flaky:3", "missing:1", "broken:1"}[w.rng.IntN(8)]
}

// declare declares two services; the first one runs the image.
func (w *World) declare(image string) {
	s := spec.Stack{Name: "shop", Networks: map[string]spec.NetworkSpec{"default": {Driver: spec.DriverOverlay}}, Services: map[string]spec.ServiceSpec{}}
	for _, name := range []string{"web", "more"} {
		svc := spec.ServiceSpec{Mode: spec.Replicated, Template: template(image, "default")}
		n := 2 + w.rng.IntN(7)
		if row := w.store.Snapshot().Service("shop", name); row != nil {
			n = row.Replicas
		}
		svc.Replicas = &n
		w.policies(&svc)
		if w.chance(30) {
			svc.Canary = spec.Canary{}
			if svc.Update.FailureAction != spec.FailureContinue {
				svc.Canary = w.canary()
			}
		}
		s.Services[name] = svc
		if w.chance(50) {
			image = w.image()
		}
	}
	res := w.apply(store.Command{PutStack: &store.PutStack{Stack: s}})
	w.note("a user declares web %s and more %s: %v", s.Services["web"].Template.Image, s.Services["more"].Template.Image, res.Err)
	if res.Err != nil {
		w.failf("the stack is refused: %v", res.Err)
	}
}

// roll makes one random event of an update.
func (w *World) roll() {
	if w.err != nil {
		return
	}
	w.wait(time.Duration(w.rng.IntN(1500)) * time.Millisecond)
	w.notice()
	h := w.hosts[w.rng.IntN(len(w.hosts))]
	switch n := w.rng.IntN(100); {
	case n < 35:
		w.lead()
	case n < 60:
		h.hear(w, w.chance(80))
		h.stepAll(w)
	case n < 82:
		h.tell(w)
	case n < 86:
		w.arriveLate()
	case n < 91:
		w.ledger.Leaders++
		w.elect()
	case n < 94:
		w.ledger.Deaths += b2i(h.up)
		h.flip(w)
	case n < 96:
		w.meddle()
	case n < 98:
		w.idle(time.Duration(w.rng.IntN(30)) * time.Second)
	default:
		w.quiet()
	}
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// meddle is what people do in the middle of an update.
func (w *World) meddle() {
	service := []string{"web", "more"}[w.rng.IntN(2)]
	var c store.Command
	switch w.rng.IntN(7) {
	case 0:
		w.declare(w.image())
		return
	case 1:
		c.RollbackStack = &store.RollbackStack{Stack: "shop"}
	case 2:
		c.RollbackStack = &store.RollbackStack{Stack: "shop", Service: service}
	default:
		action := []store.SteerAction{store.SteerPause, store.SteerResume, store.SteerRestart, store.SteerPromote}[w.rng.IntN(4)]
		c.SteerService = &store.SteerService{Stack: "shop", Service: service, Action: action}
	}
	res := w.apply(c)
	w.note("a user sends %s: %v", strings.TrimSpace(string(encode(c.SteerService))+" "+string(encode(c.RollbackStack))), res.Err)
}

// recover ends the faults, but for a host that may stay dead.
func (w *World) recover() {
	w.calm, w.late, w.dead = true, nil, nil
	w.elect()
	for i, h := range w.hosts {
		if i > 0 && i == len(w.hosts)-1 && w.chance(30) {
			w.dead = h
			if h.up {
				h.flip(w)
			}
			w.apply(store.Command{Time: w.clock(), SetNodeState: &store.SetNodeState{ID: h.id, State: spec.NodeDown}})
			continue
		}
		h.heal(w)
	}
}

// finish plays on until every update has had an end for a while: then it must
// not begin anew by itself.
func (w *World) finish() {
	const rounds, still = 3000, 40
	over, undecided := 0, false
	for range rounds {
		if w.err != nil {
			return
		}
		plan := w.plan()
		if !plan.Empty() {
			w.send(plan)
		}
		moved := !plan.Empty()
		for _, h := range w.hosts {
			if h == w.dead {
				continue
			}
			h.hear(w, true)
			moved = h.stepAll(w) || moved
			moved = h.tellAll(w) || moved
		}
		switch {
		case w.ended():
			over++
		case undecided:
			over = 0 // a canary may fail while it waits for a person
		case over > 0:
			w.failf("an update that had ended goes on by itself: %s", encode(w.store.Snapshot().Services()))
		}
		undecided = slices.ContainsFunc(w.store.Snapshot().Services(), func(s *spec.Service) bool { return s.Update.Canary == spec.CanaryWaiting })
		if over > still || over > 0 && !moved && plan.Next.IsZero() {
			w.checkEnded()
			return
		}
		switch {
		case moved:
			w.wait(time.Second)
		case !plan.Next.IsZero():
			w.idle(plan.Next.Sub(w.now))
		default:
			w.idle(longestMonitor)
		}
	}
	w.failf("an update has no end: %s", encode(w.store.Snapshot().Services()))
}
