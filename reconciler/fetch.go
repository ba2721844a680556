package reconciler

import (
	"slices"

	"wherry.dev/spec"
)

// A task that is to stop before the next one of its place starts is not told to
// before the image of that one is on the node where it will run: else the place
// would be empty for as long as a pull takes, or for nothing at all where there
// is no such image. The nodes that have to get it are Service.Fetch; they tell
// what became of it in Node.Fetched.

// awaitsImage says what the replacement of the one task of a place waits for
// before that stops, or "". never tells that the node cannot get the image.
func (s *pass) awaitsImage(pl *place, old *spec.Task) (why string, never bool) {
	if s.eager || !s.rollouts() || !s.updating || !s.serves(old) || old.Revision == s.svc.Revision {
		return "", false
	}
	n := s.nodes[s.target(pl, old)]
	if n == nil || n.Fetched == nil || n.ID == old.Node && s.sameImage(old) {
		return "", false // nobody can say, the node is of a version that does not, or has it
	}
	if !slices.Contains(s.fetch, n.ID) {
		s.fetch = append(s.fetch, n.ID)
		slices.Sort(s.fetch)
	}
	i := slices.IndexFunc(*n.Fetched, func(f spec.FetchStatus) bool { return f.Revision == s.svc.Revision })
	switch {
	case i < 0 || (*n.Fetched)[i].Problem == "" && !(*n.Fetched)[i].Done:
		return "waits until node " + s.nodeName(n.ID) + " has image " + s.tmpl.Image, false
	case (*n.Fetched)[i].Done:
		return "", false
	}
	f := &(*n.Fetched)[i]
	// Where tasks may fail, this one does it as any other.
	if f.Never && (s.policy.action == spec.FailureContinue || s.policy.ratio > 0) {
		return "", false
	}
	return "node " + s.nodeName(n.ID) + " cannot get image " + s.tmpl.Image + ": " + f.Problem, f.Never
}

// holdForImage is awaitsImage for a replacement that was about to begin.
func (s *pass) holdForImage(pl *place, old *spec.Task) bool {
	if pl.waits, _ = s.awaitsImage(pl, old); pl.waits == "" {
		return false
	}
	s.awaiting++
	return true
}

// sameImage reports whether a task has the image of the current revision.
func (s *pass) sameImage(t *spec.Task) bool {
	old := s.template(t.Revision)
	return old != nil && old.Image == s.tmpl.Image && old.Digest == s.tmpl.Digest && old.Platform == s.tmpl.Platform
}

// target is the node on which the replacement of a task will run as it looks now:
// the task is over then. It is empty when there is none.
func (s *pass) target(pl *place, old *spec.Task) spec.NodeID {
	if pl.slot == 0 {
		return pl.node
	}
	if s.joined() {
		return old.Node
	}
	s.board.Release(s.booking(old))
	defer s.board.Book(s.booking(old))
	got := s.board.Place(&s.class, 1)[0].Node
	if got != "" {
		s.board.Release(s.class.Booking(got))
	}
	return got
}

// neverFetched returns why an update cannot go on without taking a task away for
// nothing, or "".
func (s *pass) neverFetched() string {
	if !slices.ContainsFunc(s.fetch, func(id spec.NodeID) bool {
		n := s.nodes[id]
		return n != nil && n.Fetched != nil && slices.ContainsFunc(*n.Fetched, func(f spec.FetchStatus) bool { return f.Never && f.Revision == s.svc.Revision })
	}) {
		return ""
	}
	for _, pl := range s.places {
		if len(pl.live) != 1 || !s.replaceable(pl) || !s.stopFirst(pl.live[0]) {
			continue
		}
		if why, never := s.awaitsImage(pl, pl.live[0]); never {
			return s.cannotReplace(pl, why)
		}
	}
	return ""
}

// settleFetch writes down which nodes are to get the image, as long as the update
// is under way.
func (s *pass) settleFetch(u *spec.UpdateStatus) {
	next := s.fetch
	if u.State != spec.UpdateUpdating {
		next = nil
	}
	if s.rollouts() && !slices.Equal(next, s.svc.Fetch) {
		if next == nil {
			next = []spec.NodeID{}
		}
		s.serviceChange().Fetch = &next
	}
}
