package reconciler

import (
	"cmp"
	"fmt"
	"slices"

	"wherry.dev/scheduler"
	"wherry.dev/spec"
)

// Priorities. Services with a higher one are looked at first, so that they get the
// room that there is. One that also preempts has tasks of lower ones end where no
// node has room: as few as will do, of the lowest priority. It takes two plans: one
// that ends them, and when their nodes have confirmed it one that gives the room
// away, again to the highest priority first.

// waitsForRoom is the reason of a task for which others end.
const waitsForRoom = "waits for room until other tasks have ended"

// makeRoom finds out, for tasks of the service that found no node, where tasks of
// lower priority are to end, and says what is waited for. Room that comes free
// anyway is counted first.
func (s *pass) makeRoom(tasks []*spec.Task) {
	if !s.svc.Spec.Placement.Preempt || s.svc.Spec.Mode == spec.Global || s.joined() || s.missing() != "" {
		return
	}
	tasks = slices.DeleteFunc(slices.Clone(tasks), func(t *spec.Task) bool { return t.Node != "" || s.placed(t) })
	if len(tasks) == 0 || s.addressRoom(nil) != "" {
		return
	}
	var freed []scheduler.Booking
	release := func(t *spec.Task) {
		b := s.booking(t)
		s.board.Release(b)
		freed = append(freed, b)
	}
	for _, t := range s.all {
		if s.holds(t) && (t.Desired != spec.DesiredRunning || s.ended[t.ID] || s.preempted[t.ID] != "") {
			release(t)
		}
	}
	var taken []scheduler.Booking
	for _, t := range tasks {
		node := s.board.Place(&s.class, 1)[0].Node
		if node == "" {
			var victims []*spec.Task
			if node, victims = s.victims(); node == "" {
				break
			}
			for _, v := range victims {
				release(v)
				s.preempted[v.ID] = fmt.Sprintf("makes room for task %s, whose priority is %d", s.taskName(t), s.svc.Spec.Placement.Priority)
			}
			s.board.Book(s.class.Booking(node))
		}
		taken = append(taken, s.class.Booking(node))
		// Its reason is another one than placing it has found.
		s.part.Change = slices.DeleteFunc(s.part.Change, func(c spec.TaskChange) bool { return t.ID != "" && c.Task == t.ID })
		s.reason(t, waitsForRoom)
	}
	for _, b := range taken {
		s.board.Release(b)
	}
	for _, b := range freed {
		s.board.Book(b)
	}
}

// holds reports whether a task takes room of a node.
func (v *view) holds(t *spec.Task) bool {
	return !t.Status.State.Terminal() && t.Node != "" && t.Status.State != spec.TaskPending
}

// victims returns the node on which the least has to end for one more task of the
// service, and what: the lowest highest priority first, then the fewest tasks.
func (s *pass) victims() (spec.NodeID, []*spec.Task) {
	byNode := map[spec.NodeID][]*spec.Task{}
	for _, t := range s.all {
		if s.yields(t) {
			byNode[t.Node] = append(byNode[t.Node], t)
		}
	}
	priority := func(t *spec.Task) int { return s.byKey[serviceKey(t)].Spec.Placement.Priority }
	var best []*spec.Task
	var node spec.NodeID
	for _, n := range s.nodeList {
		have := byNode[n.ID]
		slices.SortStableFunc(have, func(a, b *spec.Task) int { // the newest of the lowest first
			return cmp.Or(cmp.Compare(priority(a), priority(b)), compareIDs(string(b.ID), string(a.ID)))
		})
		found := s.enough(n.ID, have)
		if len(found) == 0 {
			continue
		}
		highest := func(list []*spec.Task) int { return priority(list[len(list)-1]) }
		if best == nil || cmp.Or(cmp.Compare(highest(found), highest(best)), cmp.Compare(len(found), len(best))) < 0 {
			node, best = n.ID, found
		}
	}
	return node, best
}

// enough returns those of some tasks on a node, the first ones rather than the
// others, without which a task of the service fits there; nil when it never does.
func (s *pass) enough(node spec.NodeID, have []*spec.Task) []*spec.Task {
	var out []*spec.Task
	fits := func() bool { return s.board.Fits(&s.class, node) == "" }
	for _, t := range have {
		if fits() {
			break
		}
		s.board.Release(s.booking(t))
		out = append(out, t)
	}
	ok := fits()
	for i := len(out) - 1; i >= 0; i-- { // the ones of higher priority may stay first
		s.board.Book(s.booking(out[i]))
		if !ok {
			continue
		}
		if fits() {
			out = slices.Delete(out, i, i+1)
			continue
		}
		s.board.Release(s.booking(out[i]))
	}
	if !ok {
		return nil
	}
	for _, t := range out {
		s.board.Book(s.booking(t))
	}
	return out
}

// yields reports whether a task may be ended for the service: it has a lower
// priority, and its service is still to be looked at in this plan. Tasks of global
// services, which have nowhere else to go, and those with others at their side stay.
func (s *pass) yields(t *spec.Task) bool {
	svc := s.byKey[serviceKey(t)]
	return svc != nil && s.holds(t) && t.Desired == spec.DesiredRunning && t.Slot > 0 && s.nodeUp(t.Node) &&
		svc.Spec.Placement.Priority < s.svc.Spec.Placement.Priority && svc.Spec.Mode != spec.Global && len(s.group(svc)) == 0 &&
		!s.passed[svc.Key()] && !s.ended[t.ID] && s.preempted[t.ID] == ""
}

// keepRoom books for the rest of this plan what tasks that back off will need, if
// the service preempts: or a lower priority would move in, only to be ended again.
func (s *pass) keepRoom() {
	if !s.svc.Spec.Placement.Preempt || s.svc.Spec.Mode == spec.Global || s.joined() {
		return
	}
	n := 0
	for _, pl := range s.places {
		for _, t := range append(slices.Clone(pl.live), pl.fresh) {
			if t != nil && t.Status.State == spec.TaskPending && s.now.Before(t.NotBefore) {
				n++
			}
		}
	}
	s.board.Place(&s.class, n)
}
