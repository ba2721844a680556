package reconciler

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"wherry.dev/scheduler"
	"wherry.dev/spec"
)

// settle ends the tasks of a place that must not go on, whatever else
// happens: those of nodes that are gone, those of global services on nodes that
// are drained, those that a better one
// stands in for, and outdated ones that never got a node.
func (s *pass) settle(pl *place) {
	s.endOrphans(pl)
	for _, t := range slices.Clone(pl.ending) {
		if s.endState(t) != "" {
			s.end(pl, t, t.Desired, s.whyLost(t))
		}
	}
	for _, t := range slices.Clone(pl.live) {
		n := s.nodes[t.Node]
		switch {
		case t.Status.State == spec.TaskPending:
			if s.outdated(t) != "" || (n == nil && t.Node != "") || (n != nil && !pl.fillable) {
				s.end(pl, t, spec.DesiredStopped, cmp.Or(s.outdated(t), "the node takes no tasks"))
			}
		case n == nil:
			s.end(pl, t, spec.DesiredStopped, s.whyLost(t))
		case s.job() && s.outdated(t) != "":
			s.end(pl, t, spec.DesiredStopped, s.outdated(t))
		case pl.slot == 0 && s.drained(t) != "":
			s.end(pl, t, spec.DesiredStopped, s.drained(t))
		case s.preempted[t.ID] != "":
			s.end(pl, t, spec.DesiredStopped, s.preempted[t.ID])
		}
	}
	s.settleSurplus(pl)
}

func (s *pass) whyLost(t *spec.Task) string {
	if s.nodes[t.Node] == nil && t.Node != "" {
		return "node " + string(t.Node) + " does not exist any more"
	}
	if t.Node != "" {
		return "node " + s.nodeName(t.Node) + " is down"
	}
	return "the task has no node"
}

// settleSurplus leaves one live task per place, or two while one takes over
// from the other.
func (s *pass) settleSurplus(pl *place) {
	if s.joined() {
		s.surplusPairs(pl)
		return
	}
	if len(pl.live) == 1 && s.settled(pl) {
		if n, _ := s.lost(pl); n == 0 {
			s.endOthers(pl) // the one that was to take over has done its work
		}
	}
	if len(pl.live) < 2 {
		return
	}
	if next := last(pl.live, func(t *spec.Task) bool { return s.leaving(pl, t) == "" && s.steady(t) }); next != nil {
		s.endOthers(pl, next)
		return
	}
	next := last(pl.live, func(t *spec.Task) bool { return s.leaving(pl, t) == "" })
	old := last(pl.live, func(t *spec.Task) bool { return t != next && s.serves(t) })
	if old == nil {
		old = last(pl.live, func(t *spec.Task) bool { return t != next })
	}
	if next == nil {
		s.endOthers(pl, old)
		return
	}
	s.endOthers(pl, old, next)
}

func (s *pass) endOthers(pl *place, keep ...*spec.Task) {
	for _, t := range slices.Clone(pl.live) {
		if !slices.Contains(keep, t) {
			s.end(pl, t, spec.DesiredStopped, cmp.Or(s.leaving(pl, t), "another task has taken over"))
		}
	}
}

// leaving says why a task must be, or may be, replaced, or "".
func (s *pass) leaving(pl *place, t *spec.Task) string { return cmp.Or(s.unfit(t), s.moving(pl, t)) }

// last returns the newest task that fits; tasks are in order of ID.
func last(list []*spec.Task, fits func(*spec.Task) bool) *spec.Task {
	for _, t := range slices.Backward(list) {
		if fits(t) {
			return t
		}
	}
	return nil
}

// outdated says why a task is not what the service wants now, or "".
func (s *pass) outdated(t *spec.Task) string {
	if t.Revision != s.svc.Revision {
		return s.whyRevision(t)
	}
	if t.Restarts != s.svc.Restarts {
		return "the service is restarted"
	}
	if t.Status.State == spec.TaskPending || s.job() {
		return "" // what ends by itself is not interrupted for less
	}
	if n := s.nodes[t.Node]; n != nil && !scheduler.Satisfies(&s.class, n) {
		return "node " + s.nodeName(t.Node) + " does not fit the service any more"
	}
	return cmp.Or(s.misaddressed(t), s.misbound(t))
}

// isNewest reports whether a task was made for what the service runs now, and
// since its last restart.
func (s *pass) isNewest(t *spec.Task) bool {
	return t.Revision == s.svc.Revision && t.Restarts == s.svc.Restarts
}

// whyRevision names the field that people look at first.
func (s *pass) whyRevision(t *spec.Task) string {
	old := s.template(t.Revision)
	if old == nil {
		return "the service has changed"
	}
	if old.Image != s.tmpl.Image {
		return fmt.Sprintf("image %s becomes %s", old.Image, s.tmpl.Image)
	}
	if data := changedData(old, s.tmpl); len(data) > 0 {
		return strings.Join(data, ", ") + " changed"
	}
	paths := diffPaths(old, s.tmpl)
	if len(paths) == 0 {
		return "the service has changed"
	}
	const show = 3
	more := ""
	if len(paths) > show {
		more = fmt.Sprintf(" and %d more", len(paths)-show)
		paths = paths[:show]
	}
	return strings.Join(paths, ", ") + more + " changed"
}

// misbound says whether a volume mount means another volume now.
func (s *pass) misbound(t *spec.Task) string {
	for _, m := range s.mounts {
		if m.anonymous {
			continue
		}
		for _, b := range t.Volumes {
			if b.Target == m.target && b.Name != m.name {
				return "volume " + b.Name + " becomes " + m.name
			}
		}
	}
	return ""
}

// fill makes a task for a place that has none, and returns it when it may be
// placed at once.
func (s *pass) fill(pl *place) *spec.Task {
	if s.joined() {
		return s.fillPair(pl)
	}
	if s.leaveDownNode(pl) {
		s.startIn(pl)
		return nil
	}
	if !pl.fillable || len(pl.live) > 0 || s.settled(pl) {
		return nil
	}
	// What is stopping must be gone first where two cannot be together; else
	// one may still be on its way out.
	if len(pl.ending) > 1 || len(pl.ending) == 1 && s.stopFirst(pl.ending[0]) {
		return nil
	}
	if !s.hasTurn() {
		return nil
	}
	if s.full() {
		s.wake(s.now)
		return nil
	}
	return s.create(pl)
}

// create adds a new task to a place. It is returned when nothing but a node is
// missing.
func (s *pass) create(pl *place) *spec.Task {
	t := &spec.Task{
		Stack: s.svc.Stack, Service: s.svc.Name, Slot: pl.slot, Node: pl.node,
		Revision: s.svc.Revision, Restarts: s.svc.Restarts, Desired: spec.DesiredRunning,
		Status: spec.TaskStatus{State: spec.TaskPending, Since: s.now},
	}
	why := ""
	if l := newest(pl.over); l != nil && s.isNewest(l) {
		if d := backoff(l, s.tmpl.Restart); d > 0 {
			t.NotBefore = s.now.Add(d).Round(0)
			why = "replaces task " + string(l.ID) + ", which ended: " + ending(l)
		}
	}
	for _, o := range pl.over {
		if o.Desired == spec.DesiredRunning {
			s.change(o).Desired = spec.DesiredStopped
			s.change(o).Why = cmp.Or(s.change(o).Why, "a new task takes its place")
		}
	}
	pl.fresh = t
	s.made++
	if s.now.Before(t.NotBefore) {
		s.wake(t.NotBefore)
		t.Status.Reason = fmt.Sprintf("waits until %s, %s", clockTime(t.NotBefore), why)
		return nil
	}
	if t.Status.Reason = s.hold(pl); t.Status.Reason != "" {
		return nil
	}
	return t
}

// leaveDownNode gives up tasks on nodes that are down when their place is
// filled on another one, or can be, in which case it reports true. Otherwise
// they stay: their containers may well be running, and nothing would be gained.
func (s *pass) leaveDownNode(pl *place) bool {
	var down []*spec.Task
	filled := false
	for _, t := range pl.live {
		if s.isDown(t) {
			down = append(down, t)
		} else if t.Status.State != spec.TaskPending {
			filled = true
		}
	}
	if pl.slot == 0 || len(down) == 0 {
		return false
	}
	if !filled && s.settled(pl) {
		return false // what was to take over is not started again
	}
	if !filled {
		for _, t := range down {
			s.board.Release(s.booking(t))
		}
		if s.room(pl) != "" {
			for _, t := range down {
				s.board.Book(s.booking(t))
			}
			return false
		}
	}
	for _, t := range down {
		s.end(pl, t, spec.DesiredStopped, s.whyLost(t))
	}
	return len(pl.live) == 0
}

func (s *pass) isDown(t *spec.Task) bool {
	n := s.nodes[t.Node]
	return n != nil && n.State != spec.NodeReady && t.Status.State != spec.TaskPending
}

// pending returns the tasks of a place that wait for a node and may have one,
// and keeps the reasons of the others true.
func (s *pass) pending(pl *place) []*spec.Task {
	var out []*spec.Task
	for _, t := range pl.live {
		if t.Status.State != spec.TaskPending {
			continue
		}
		if s.now.Before(t.NotBefore) {
			s.wake(t.NotBefore)
			continue
		}
		if why := s.hold(pl); why != "" {
			s.reason(t, why)
			continue
		}
		out = append(out, t)
	}
	return out
}

// reason sets the reason of a pending task when it is another one.
func (s *pass) reason(t *spec.Task, why string) {
	if t.ID == "" {
		t.Status.Reason = why
	} else if t.Status.Reason != why {
		s.change(t).Reason = why
	}
}

// stopFirst reports whether an old task of a place must be over before the
// next one starts: both would write one volume, listen on one port or have one
// address, or must not be together for what only their makers know.
func (s *pass) stopFirst(old *spec.Task) bool { return s.sharesHead(old) || s.apart(old) }

// apart is stopFirst for tasks that are in no network together.
func (s *pass) apart(old *spec.Task) bool {
	if s.svc.Spec.NeverTogether() != "" || s.exclusive(old) {
		return true
	}
	if s.policy.order != "" {
		return s.policy.order == spec.StopFirst
	}
	if s.svc.Spec.Apart() != "" {
		return true
	}
	if tmpl := s.template(old.Revision); tmpl != nil && tmpl.NetworkMode == "host" {
		return true
	}
	return slices.ContainsFunc(old.Volumes, func(b spec.VolumeBinding) bool {
		v := s.volumes[b.Name]
		return v == nil || !v.Anonymous
	})
}

// settled reports whether the last task of a place, but for older ones that
// still run, was the last one: it ended by itself and its restart policy asks
// for no other.
func (s *pass) settled(pl *place) bool {
	if s.completed(pl) != nil {
		return true
	}
	t := newest(pl.over)
	if t == nil || !s.isNewest(t) || t.Status.Started == 0 && t.Status.State != spec.TaskComplete {
		return false // of another revision, before a restart, or has never run
	}
	if l := newest(pl.live); l != nil && compareIDs(string(l.ID), string(t.ID)) > 0 {
		return false // the revision has come back since
	}
	if s.job() && t.Status.Since.Before(s.svc.Changed) {
		return false // what has failed is tried anew when a user says so
	}
	switch s.tmpl.Restart.Condition {
	case spec.RestartNone:
		return t.Status.State == spec.TaskComplete || t.Status.State == spec.TaskFailed ||
			t.Status.State == spec.TaskRejected || t.Status.State == spec.TaskLost && !s.job()
	case spec.RestartOnFailure:
		if t.Status.State == spec.TaskComplete {
			return true
		}
	}
	_, last := s.gaveUp(pl)
	return last != nil
}

// update replaces tasks that are outdated or on drained nodes, in batches as the
// policy says, and begins the next only when every replacement of the last is
// steady. Drained nodes alone are left one task at a time.
func (s *pass) update() {
	var todo, others []*place
	for _, pl := range s.places {
		switch {
		case !s.replaceable(pl):
			others = append(others, pl)
		case !s.isDown(pl.live[0]) && pl.fillable:
			todo = append(todo, pl)
		}
	}
	if s.halted() || s.awaits() != "" {
		return
	}
	// A task that does not serve is replaced first: that costs nothing.
	slices.SortStableFunc(todo, func(a, b *place) int {
		return cmp.Compare(b2i(s.serves(a.live[0])), b2i(s.serves(b.live[0])))
	})
	batch := 0
	for len(todo) > 0 {
		may, size := s.mayGo(todo, others)
		if batch >= size || s.canaryFull() || batch == 0 && !s.rested() {
			break
		}
		if s.full() {
			s.wake(s.now)
			break
		}
		// No more places wait for images than may be replaced.
		i := slices.IndexFunc(may, func(pl *place) bool { return s.awaiting < size && s.replace(pl) })
		if i < 0 {
			break
		}
		begun := may[i]
		todo = slices.DeleteFunc(todo, func(pl *place) bool { return pl == begun })
		// One that waits for a node, or fails anyway, takes nobody's turn.
		if failed, _ := s.lost(begun); s.eager || s.busy(begun) && failed == 0 {
			batch++
		} else {
			others = append(others, begun)
		}
	}
	if batch == 0 {
		return
	}
	s.noteBatch()
	for _, pl := range todo {
		pl.blocked, pl.waits = "", "" // something is under way
	}
}

// mayGo returns the places of todo that may begin, as long as there is something
// under way at others, and how many of them at the same time.
func (s *pass) mayGo(todo, others []*place) (may []*place, size int) {
	if s.eager || s.updating && s.policy.parallelism == 0 {
		return todo, len(s.places)
	}
	// A place that fails anyway must not keep a node from being emptied, as
	// long as what leaves it goes on until its replacement is well. Nor does one
	// hold up an update that may go on.
	failing := false
	for _, pl := range others {
		if !s.busy(pl) {
			continue
		}
		if n, _ := s.lost(pl); n == 0 {
			return nil, 0
		}
		failing = true
	}
	size = 1
	if s.updating {
		size = s.policy.parallelism
	}
	if !failing || s.updating {
		return todo, size
	}
	for _, pl := range todo {
		if s.outdated(pl.live[0]) == "" && !s.stopFirst(pl.live[0]) {
			may = append(may, pl)
		}
	}
	return may, size
}

// replaceable reports whether all that a place has is one task that must go, and
// its replacement has not used up what it was allowed to try.
func (s *pass) replaceable(pl *place) bool {
	if len(pl.live) != 1 || len(pl.ending) > 0 || pl.fresh != nil {
		return false
	}
	if s.unfit(pl.live[0]) == "" {
		return !s.updating && s.moving(pl, pl.live[0]) != "" && s.gains(pl, pl.live[0])
	}
	if s.headMoves(pl) {
		return false
	}
	failed, _ := s.lost(pl)
	return failed == 0 || !s.settled(pl)
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// busy reports whether something is still under way at a place. A task that
// finds no node, or whose node is down, is not: an update does not wait for it.
func (s *pass) busy(pl *place) bool {
	if len(pl.ending) > 0 {
		return true
	}
	if pl.fresh != nil {
		return pl.fresh.Status.State != spec.TaskPending || s.now.Before(pl.fresh.NotBefore) || s.hold(pl) != ""
	}
	switch len(pl.live) {
	case 0:
		return pl.fillable && !s.settled(pl)
	case 1:
		t := pl.live[0]
		if t.Status.State == spec.TaskPending {
			return s.placed(t) || s.now.Before(t.NotBefore) || s.hold(pl) != ""
		}
		return !s.steady(t) && !s.isDown(t)
	}
	return true
}

// placed reports whether this part gives a node to a task that waits for one.
func (s *pass) placed(t *spec.Task) bool {
	return slices.ContainsFunc(s.part.Change, func(c spec.TaskChange) bool { return c.Task == t.ID && c.Node != "" })
}

// replace begins the replacement of the one task of a place. It reports false
// when that is not possible; blocked then says why an update cannot go on.
func (s *pass) replace(pl *place) bool {
	old := pl.live[0]
	why := s.unfit(old)
	if s.stopFirst(old) || !s.serves(old) {
		if s.pinned(pl, old) {
			return !slices.Contains(pl.live, old) // it was ended nevertheless
		}
		if s.holdForImage(pl, old) {
			return false
		}
		s.end(pl, old, spec.DesiredStopped, why)
		if len(pl.ending) == 1 && s.stopFirst(old) {
			return true // its successor follows when it is over
		}
		s.startIn(pl)
		return true
	}
	if reason := s.room(pl); reason != "" {
		if s.pinned(pl, old) {
			return !slices.Contains(pl.live, old) // it was ended nevertheless
		}
		if s.holdForImage(pl, old) {
			return false
		}
		s.end(pl, old, spec.DesiredStopped, why+"; there is no room for both at once")
		s.startIn(pl)
		return true
	}
	s.startIn(pl)
	return true
}

// startIn adds a task to a place and gives it a node if it may have one.
func (s *pass) startIn(pl *place) {
	if t := s.create(pl); t != nil {
		s.placeAll([]*spec.Task{t})
	}
}

// room says why a task of the service cannot be placed now, or "".
func (s *pass) room(pl *place) string {
	return cmp.Or(s.missing(), s.volumeRoom(pl), s.nodeRoom(pl), s.addressRoom(nil))
}

// roomWithout is room as it will be when the old task is over.
func (s *pass) roomWithout(pl *place, old *spec.Task) string {
	s.board.Release(s.booking(old))
	defer s.board.Book(s.booking(old))
	return cmp.Or(s.missing(), s.volumeRoom(pl), s.nodeRoom(pl), s.addressRoom(old))
}

// volumeRoom says which anonymous volume of a place cannot be had.
func (s *pass) volumeRoom(pl *place) string {
	for _, m := range s.mounts {
		if !m.anonymous {
			continue
		}
		if v := s.volumes[anonymousName(s.svc, pl.name, m.target)]; v != nil && v.Removing {
			return "volume " + v.Name + " is being removed"
		}
	}
	return ""
}

func (s *pass) nodeRoom(pl *place) string {
	if s.joined() {
		return s.headRoom(pl)
	}
	if pl.slot == 0 {
		return s.board.Fits(&s.class, pl.node)
	}
	got := s.board.Place(&s.class, 1)[0]
	if got.Node != "" {
		s.board.Release(s.class.Booking(got.Node))
	}
	return got.Reason
}
