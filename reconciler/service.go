package reconciler

import (
	"fmt"
	"slices"
	"strconv"

	"wherry.dev/scheduler"
	"wherry.dev/spec"
)

// pass is one service during a plan: its places, and the part that is made.
type pass struct {
	*planner
	svc    *spec.Service
	tmpl   *spec.Template
	class  scheduler.Class
	nets   []attached
	mounts []volumeMount
	part   spec.Part
	// places that the service ought to fill or whose tasks may stay, in order.
	places []*place
	// updating: an update is under way or paused. up is its status as this plan
	// leaves it, failure why it has failed; policy is what it goes by.
	updating bool
	up       spec.UpdateStatus
	// asWanted: every place is as the service wants it, before this plan leaves
	// drained nodes.
	asWanted bool
	failure  *failure
	policy   policy
	// fetch are the nodes that are to have the image of the new revision before the
	// tasks of the old one stop.
	fetch []spec.NodeID
	// awaiting counts the places that wait for that.
	awaiting int
	// made counts the tasks that are to be created.
	made int
}

// place is a slot, or for a global service a node, and its tasks.
type place struct {
	name string // as Task.Place
	slot int
	node spec.NodeID // of a global service
	// fillable: a task ought to be here. A node that is down or paused keeps
	// its task and gets no new one.
	fillable bool
	// live tasks are wanted and not over, ending ones are on their way out, over
	// ones are the history. Each by ID, as this plan leaves them.
	live, ending, over []*spec.Task
	// unsure are exclusive tasks that were given up and may run all the same.
	unsure []*spec.Task
	// fresh is the task that this plan adds.
	fresh *spec.Task
	// blocked says why an update cannot go on here, waits what it waits for.
	blocked, waits string
}

// newPass looks at a service that has the given published ports.
func (p *planner) newPass(svc *spec.Service, ports []spec.Port) *pass {
	s := &pass{planner: p, svc: svc, tmpl: &svc.Spec.Template}
	s.part = newPart(svc)
	s.nets = p.attachments(svc.Stack, s.tmpl)
	s.mounts = p.volumeMounts(svc.Stack, s.tmpl)
	s.class = p.classOf(svc, ports, s.mounts)
	s.sortTasks()
	s.beginUpdate()
	return s
}

// service makes the part of one service.
func (p *planner) service(svc *spec.Service, ports []spec.Port) {
	s := p.newPass(svc, ports)
	s.settlePorts(ports)
	for _, pl := range s.places {
		s.settle(pl)
	}
	var ready []*spec.Task // pending tasks that may be placed
	for _, pl := range s.places {
		ready = append(ready, s.pending(pl)...)
	}
	for _, pl := range s.places {
		if t := s.fill(pl); t != nil {
			ready = append(ready, t)
		}
	}
	s.placeAll(ready)
	s.makeRoom(ready)
	s.keepRoom()
	s.judgeUpdate()
	s.judgeCanary()
	s.update()
	for _, pl := range s.places {
		s.trimHistory(pl)
	}
	s.settleUpdate()
	s.complete[svc.Key()] = s.completedAll()
	s.finish()
}

// settlePorts records newly chosen ports.
func (s *pass) settlePorts(ports []spec.Port) {
	if len(ports) > 0 && !slices.Equal(ports, s.svc.Ports) {
		s.serviceChange().Ports = ports
	}
}

func (s *pass) serviceChange() *spec.ServiceChange {
	if s.part.Service == nil {
		s.part.Service = &spec.ServiceChange{Stack: s.svc.Stack, Name: s.svc.Name}
	}
	return s.part.Service
}

// sortTasks makes the places and puts every task into one. Tasks without a
// place end: the highest slots go first when a service is scaled down.
func (s *pass) sortTasks() {
	index := map[string]*place{}
	add := func(pl *place) {
		s.places = append(s.places, pl)
		index[pl.name] = pl
	}
	if s.svc.Spec.Mode.PerNode() {
		for _, n := range s.nodeList {
			if scheduler.Satisfies(&s.class, n) {
				up := n.State == spec.NodeReady && n.Availability != spec.NodePaused && n.Availability != spec.NodeDrain
				add(&place{name: string(n.ID), node: n.ID, fillable: up})
			}
		}
	} else {
		for i := 1; i <= s.svc.Replicas; i++ {
			add(&place{name: strconv.Itoa(i), slot: i, fillable: true})
		}
	}
	for _, t := range s.tasks[s.svc.Key()] {
		pl := index[t.Place()]
		if pl != nil && (t.Slot > 0) != (pl.slot > 0) {
			pl = nil // the mode of the service has changed
		}
		if s.foreign(t) {
			pl = nil
		}
		if pl != nil && t.Status.State == spec.TaskLost && s.exclusive(t) {
			pl.unsure = append(pl.unsure, t)
		}
		switch over := t.Status.State.Terminal(); {
		case over && s.remembers(t) && pl == nil:
		case over && (pl == nil || t.Desired == spec.DesiredRemoved && !s.remembers(t)):
			s.reap(t)
		case over:
			pl.over = append(pl.over, t)
		case pl == nil:
			s.end(nil, t, spec.DesiredRemoved, s.whyNoPlace(t))
			if home := index[t.Place()]; home != nil && s.foreign(t) && !s.over[t.ID] {
				home.ending = append(home.ending, t) // it is there as long as it runs
			}
		case t.Desired == spec.DesiredRunning:
			pl.live = append(pl.live, t)
		default:
			pl.ending = append(pl.ending, t)
		}
	}
}

func (s *pass) whyNoPlace(t *spec.Task) string {
	switch {
	case s.foreign(t):
		return "the service was removed and declared anew"
	case (t.Slot > 0) != !s.svc.Spec.Mode.PerNode():
		return "the service is " + string(s.svc.Spec.Mode) + " now"
	case t.Slot > 0:
		return fmt.Sprintf("the service is scaled to %d", s.svc.Replicas)
	default:
		return "node " + s.nodeName(t.Node) + " does not fit the service any more"
	}
}

// reap removes the row of a task that is over, unless its address must rest.
func (s *pass) reap(t *spec.Task) {
	ok, at := s.mayReap(t)
	switch {
	case !ok && !at.IsZero():
		s.wake(at)
	case ok && s.full():
		s.wake(s.now)
	case ok:
		s.remove(t)
	}
}

func (s *pass) remove(t *spec.Task) {
	s.part.Remove = append(s.part.Remove, t.ID)
	s.reaped[t.ID] = true
}

// full reports whether the part is as large as it may become.
func (s *pass) full() bool {
	return s.made+len(s.part.Change)+len(s.part.Remove) >= maxPart
}

// change returns the change of a task in this part, new or as begun.
func (s *pass) change(t *spec.Task) *spec.TaskChange { return taskChange(&s.part, t.ID) }

func taskChange(part *spec.Part, id spec.TaskID) *spec.TaskChange {
	for i := len(part.Change) - 1; i >= 0; i-- {
		if part.Change[i].Task == id {
			return &part.Change[i]
		}
	}
	part.Change = append(part.Change, spec.TaskChange{Task: id})
	return &part.Change[len(part.Change)-1]
}

// end moves a task on its way out and, when pl is given, within the place. A
// task without container is over at once.
func (s *pass) end(pl *place, t *spec.Task, d spec.TaskDesired, why string) {
	if pl != nil {
		pl.live = without(pl.live, t)
		pl.ending = without(pl.ending, t)
	}
	s.ended[t.ID] = true
	state := s.endState(t)
	if pl == nil && s.full() {
		s.wake(s.now)
		return
	}
	if pl == nil && t.Status.State == spec.TaskPending {
		s.remove(t) // nothing ever ran
		return
	}
	if t.Desired.Before(d) || state != "" {
		c := s.change(t)
		c.State, c.Why = state, why
		s.over[t.ID] = state != ""
		if t.Desired.Before(d) {
			c.Desired = d
		}
		if state != "" {
			c.Reason = why
		}
	}
	switch {
	case pl == nil && state == spec.TaskLost && s.nodes[t.Node] == nil:
		s.remove(t) // nobody is left to confirm the end
	case pl == nil:
	case state != "":
		if state == spec.TaskLost && s.exclusive(t) {
			pl.unsure = append(pl.unsure, t)
		}
		pl.over = append(pl.over, t)
		slices.SortStableFunc(pl.over, func(a, b *spec.Task) int { return compareIDs(string(a.ID), string(b.ID)) })
	default:
		pl.ending = append(pl.ending, t)
	}
}

// endState is the state that a task which is to end gets from the reconciler,
// because no node will report one: it has none, or its node is gone.
func (p *planner) endState(t *spec.Task) spec.TaskState {
	switch {
	case t.Status.State.Terminal():
		return ""
	case t.Status.State == spec.TaskPending:
		return spec.TaskStopped
	case !p.nodeUp(t.Node):
		return spec.TaskLost
	}
	return ""
}

func without(list []*spec.Task, t *spec.Task) []*spec.Task {
	if i := slices.Index(list, t); i >= 0 {
		return slices.Delete(list, i, i+1)
	}
	return list
}

// trimHistory keeps the newest tasks of a place that are over.
//
// A lost task goes earlier where it holds the address of a network that nobody
// declares any more, which could not go before it.
func (s *pass) trimHistory(pl *place) {
	// A task that ends in this very plan is reaped by a later one; what else is to
	// change of one that goes does not matter any more.
	reap := func(t *spec.Task) {
		if !t.Status.State.Terminal() {
			return
		}
		s.reap(t)
		if s.reaped[t.ID] {
			s.part.Change = slices.DeleteFunc(s.part.Change, func(c spec.TaskChange) bool { return c.Task == t.ID })
		}
	}
	for len(pl.over) > keepHistory {
		i := s.expendable(pl)
		t := pl.over[i]
		pl.over = slices.Delete(slices.Clone(pl.over), i, i+1)
		reap(t)
	}
	pl.over = slices.DeleteFunc(slices.Clone(pl.over), func(t *spec.Task) bool {
		if t.Status.State != spec.TaskLost || !s.onGone(t) {
			return false
		}
		reap(t)
		return s.reaped[t.ID]
	})
}

// onGone reports whether a task has an address on a network that is to go.
func (s *pass) onGone(t *spec.Task) bool {
	return slices.ContainsFunc(t.Addresses, func(a spec.Address) bool {
		n := s.snap.Network(a.Network)
		return n != nil && n.Gone
	})
}

// keepHistory is how many tasks that are over are kept per place.
const keepHistory = 5

// finish emits the part.
func (s *pass) finish() {
	for _, pl := range s.places {
		if pl.fresh != nil {
			s.part.Create = append(s.part.Create, *pl.fresh)
		}
	}
	s.emit(s.part)
}
