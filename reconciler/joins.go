package reconciler

import (
	"maps"
	"slices"

	"wherry.dev/cluster/store"
	"wherry.dev/scheduler"
	"wherry.dev/spec"
)

// Tasks that share the network of another one (network_mode: service:NAME): that
// one is the head, they are its partners. A partner is placed at the side of the
// head of its place as soon as that runs, and ends with it. All else it does by
// itself, and nothing that becomes of it concerns the head.
//
// While a head is replaced its place has two, and so it may have two partners:
// each stays with its head.

func headKey(svc *spec.Service) string {
	return spec.ServiceKey(svc.Stack, svc.Spec.Template.Joins())
}

// joined reports whether the tasks of the service are partners.
func (s *pass) joined() bool { return s.svc.Spec.Template.Joins() != "" }

// group are the other services whose tasks are at the side of this one's.
func (p *planner) group(svc *spec.Service) []*spec.Service {
	if svc.Spec.Template.Joins() == "" {
		return p.partners[svc.Key()]
	}
	var out []*spec.Service
	if head := p.byKey[headKey(svc)]; head != nil {
		out = append(out, head)
	}
	for _, other := range p.partners[headKey(svc)] {
		if other != svc {
			out = append(out, other)
		}
	}
	return out
}

// joinClass adds to what a service needs of a node what goes along with it.
// What partners reserve is booked with their heads, lest a head takes a node
// that has no room for them.
func (p *planner) joinClass(c *scheduler.Class, svc *spec.Service) {
	group := p.group(svc)
	if len(group) == 0 {
		return
	}
	c.Format = store.AddressFormat
	for _, other := range group {
		c.Parents = append(c.Parents, p.parents(other)...)
		for _, text := range other.Spec.Placement.Constraints {
			k, err := spec.ParseConstraint(text)
			if err != nil {
				c.Invalid = err.Error()
				continue
			}
			c.Constraints = append(c.Constraints, k)
		}
		switch want := other.Spec.Template.Platform; {
		case want == "" || want == c.Platform:
		case c.Platform == "":
			c.Platform = want
		default:
			c.Invalid = "service " + other.Key() + ", which is to be at its side, runs on " + want
		}
	}
	if svc.Spec.Template.Joins() != "" {
		c.CPUs, c.Memory, c.Generic = 0, 0, nil
		return
	}
	for _, other := range group {
		r := &other.Spec.Template.Resources
		c.CPUs, c.Memory, c.Generic = c.CPUs+r.ReserveCPUs, c.Memory+r.ReserveMemory, sums(c.Generic, r.ReserveGeneric)
		if n := other.Spec.Placement.MaxPerNode; n > 0 && (c.MaxPerNode == 0 || n < c.MaxPerNode) {
			c.MaxPerNode = n
		}
	}
}

// bookPair makes the booking of a task what joinClass says.
func (p *planner) bookPair(b *scheduler.Booking, t *spec.Task) {
	if t.Joins != "" {
		b.CPUs, b.Memory, b.Generic = 0, 0, nil
		return
	}
	for _, other := range p.partners[b.Service] {
		r := &other.Spec.Template.Resources
		b.CPUs, b.Memory, b.Generic = b.CPUs+r.ReserveCPUs, b.Memory+r.ReserveMemory, sums(b.Generic, r.ReserveGeneric)
	}
}

// sums adds numbers by kind, and changes neither a nor b.
func sums(a, b map[string]int64) map[string]int64 {
	if len(b) == 0 {
		return a
	}
	out := maps.Clone(b)
	for kind, n := range a { // any order gives the same sums
		out[kind] += n
	}
	return out
}

// partnerMounts are the volumes of the partners of a service, with the key: their
// heads go where these are.
func (p *planner) partnerMounts(key string) []volumeMount {
	var out []volumeMount
	for _, other := range p.partners[key] {
		out = append(out, p.volumeMounts(other.Stack, &other.Spec.Template)...)
	}
	return out
}

// leaves reports whether a head is over or on its way out, by this plan as well.
func (p *planner) leaves(head *spec.Task) bool {
	return head == nil || head.Status.State.Terminal() || head.Desired != spec.DesiredRunning || p.ended[head.ID]
}

// endOrphans ends the partners of heads that end, as a part that stands or falls
// with what ends those.
func (s *pass) endOrphans(pl *place) {
	for _, t := range slices.Clone(pl.live) {
		if t.Joins == "" {
			continue
		}
		head := s.snap.Task(t.Joins)
		if !s.leaves(head) {
			continue
		}
		name := string(t.Joins)
		if head != nil {
			name = s.taskName(head)
		}
		why := "task " + name + ", whose network it shares, ends"
		if s.endState(t) == spec.TaskLost {
			why = s.whyLost(t)
		}
		s.end(pl, t, spec.DesiredStopped, why)
		for i := range s.part.Change {
			if s.part.Change[i].Task == t.ID {
				s.part.Change[i].With = t.Joins
			}
		}
	}
}

// headOf is the task that a partner joins, as far as this plan knows.
func (s *pass) headOf(t *spec.Task) spec.TaskID {
	for i := range s.part.Change {
		if c := &s.part.Change[i]; c.Task == t.ID && c.Joins != "" {
			return c.Joins
		}
	}
	return t.Joins
}

// freeHead returns the newest task at a place that runs and has no partner of
// the service, or what is waited for.
func (s *pass) freeHead(pl *place) (head *spec.Task, why string) {
	svc := s.byKey[headKey(s.svc)]
	if why := s.whyNoHead(pl); why != "" {
		return nil, why
	}
	taken := map[spec.TaskID]bool{}
	for _, t := range append(slices.Clone(pl.live), pl.fresh) {
		if t != nil {
			taken[s.headOf(t)] = true
		}
	}
	for _, t := range slices.Backward(s.tasks[svc.Key()]) {
		if t.Place() == pl.name && (t.Slot > 0) == (pl.slot > 0) && t.Status.State == spec.TaskRunning && !s.leaves(t) && !taken[t.ID] && s.nodeUp(t.Node) {
			return t, ""
		}
	}
	return nil, "waits for service " + svc.Name + " to start"
}

// whyNoHead says why there can be no head at a place, or "": a person has to
// act.
func (s *pass) whyNoHead(pl *place) string {
	head := s.byKey[headKey(s.svc)]
	switch {
	case head == nil:
		return "service " + s.svc.Spec.Template.Joins() + ", whose network is shared, does not exist"
	case head.Spec.Mode.PerNode() != (pl.slot == 0):
		return "service " + head.Name + ", whose network is shared, is " + string(head.Spec.Mode)
	case pl.slot > 0 && pl.slot > head.Replicas:
		return "service " + head.Name + ", whose network is shared, has no task " + pl.name + ": scale it up, or this one down"
	}
	return ""
}

// placePairs gives partners, existing or new, to heads that have none.
func (s *pass) placePairs(tasks []*spec.Task) {
	for _, t := range tasks {
		i := slices.IndexFunc(s.places, func(pl *place) bool { return pl.name == t.Place() })
		if !s.svc.Spec.Mode.PerNode() {
			s.bindHomes(&s.class, s.mounts)
		}
		head, why := s.freeHead(s.places[i])
		if why == "" {
			if why = s.board.Fits(&s.class, head.Node); why != "" {
				why = "node " + s.nodeName(head.Node) + ", where task " + s.taskName(head) + " is: " + why
			}
		}
		if why == "" {
			s.board.Book(s.class.Booking(head.Node))
			why = s.assign(t, head.Node)
		}
		switch {
		case why != "":
			s.reason(t, why)
		case t.ID == "":
			t.Joins = head.ID
		default:
			s.change(t).Joins = head.ID
		}
	}
}

// surplusPairs leaves one partner per head, and of those that wait for one no
// more than can be.
func (s *pass) surplusPairs(pl *place) {
	var waiting []*spec.Task
	at := map[spec.TaskID]*spec.Task{}
	takenOver := slices.ContainsFunc(pl.live, func(t *spec.Task) bool { return t.Joins != "" && s.unfit(t) == "" && s.steady(t) })
	for _, t := range slices.Clone(pl.live) {
		switch old := at[t.Joins]; {
		case t.Joins == "" && t.Status.State == spec.TaskPending:
			waiting = append(waiting, t)
			continue
		case t.Joins == "" && takenOver: // it had a network of its own
			s.end(pl, t, spec.DesiredStopped, s.unfit(t))
			continue
		case old != nil:
			s.end(pl, old, spec.DesiredStopped, "another task has taken over")
		}
		at[t.Joins] = t
	}
	most := 1
	if len(at) > 0 {
		most = 0
		if head, _ := s.freeHead(pl); head != nil {
			most = 1
		}
	}
	for len(waiting) > most {
		s.end(pl, waiting[0], spec.DesiredStopped, "no task is left whose network it could share")
		waiting = waiting[1:]
	}
}

// fillPair makes a partner for a head that has none. While there are two heads
// the second one gets its partner when the first one's runs.
func (s *pass) fillPair(pl *place) *spec.Task {
	if !pl.fillable || s.settled(pl) || slices.ContainsFunc(pl.live, func(t *spec.Task) bool { return t.Joins == "" }) {
		return nil
	}
	if len(pl.live) > 0 {
		head, _ := s.freeHead(pl)
		if head == nil || s.board.Fits(&s.class, head.Node) != "" || slices.ContainsFunc(pl.live, func(t *spec.Task) bool {
			return t.Status.State != spec.TaskRunning || s.apart(t)
		}) {
			return nil
		}
	}
	if len(pl.ending) > 1 || len(pl.ending) == 1 && s.stopFirst(pl.ending[0]) {
		return nil
	}
	if s.full() {
		s.wake(s.now)
		return nil
	}
	return s.create(pl)
}

// sharesHead reports whether the next task of the service would be in one
// network with an old one, and find its ports taken.
func (s *pass) sharesHead(old *spec.Task) bool {
	return s.joined() && old.Joins != "" && !s.leaves(s.snap.Task(old.Joins))
}

// headRoom says why the head of a place can have no partner, or "".
func (s *pass) headRoom(pl *place) string {
	for _, t := range pl.live {
		if s.sharesHead(t) {
			return s.board.Fits(&s.class, t.Node)
		}
	}
	head, why := s.freeHead(pl)
	if head == nil {
		return why
	}
	return s.board.Fits(&s.class, head.Node)
}

// headMoves reports whether the head of the one task of a place is about to be
// replaced, so that its partner is replaced with it and not before.
func (s *pass) headMoves(pl *place) bool {
	if !s.joined() {
		return false
	}
	head, svc := s.snap.Task(pl.live[0].Joins), s.byKey[headKey(s.svc)]
	if head == nil || svc == nil || head.Revision == svc.Revision && head.Restarts == svc.Restarts || s.updateOf(svc) == spec.UpdatePaused {
		return false
	}
	pl.blocked = "service " + svc.Name + ", whose network it shares, is updated first"
	return true
}

// updateOf is the state of the update of a service after this plan.
func (p *planner) updateOf(svc *spec.Service) spec.UpdateState {
	for i := range p.plan.Parts {
		if part := &p.plan.Parts[i]; part.Key == partKey(svc) && part.Service != nil && part.Service.Update != nil {
			return part.Service.Update.State
		}
	}
	return svc.Update.State
}

// followsHead says what becomes of a partner on a drained node: the same as of
// its head.
func (p *planner) followsHead(t *spec.Task) (pinned bool, reason string) {
	head := p.snap.Task(t.Joins)
	if p.leaves(head) {
		return false, "is about to be stopped"
	}
	var s *pass
	if svc := p.byKey[serviceKey(head)]; svc != nil {
		s = p.look(svc)
	}
	pinned, reason = p.leftover(s, head)
	return pinned, "shares the network of task " + p.taskName(head) + ", which " + reason
}
