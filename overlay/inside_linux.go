package overlay

import "wherry.dev/spec"

// What is inside a task's namespace is read in the regular passes only, not
// each time that a document changes: on a host with a hundred tasks, one
// target of one service would cost more reading than writing. In between, the
// loop goes by what it left there.
//
// That is right because nobody but the loop and Attach changes what is ours in
// there, and Attach hands over what it left. A change by somebody else is
// damage, of which nothing tells before the next regular pass in any case.
// What is remembered is therefore what a look would have shown, or the next
// regular pass repairs it. Where that is in doubt, because an operation failed
// or a link came anew, it is forgotten, and the next pass looks.

// recallLocked divides the tasks that no Attach is at work on into those to be
// looked into and those of which it is known. With full, all are looked into.
func (h *Host) recallLocked(full bool) (gens map[spec.TaskID]uint64, look []spec.TaskID, known map[spec.TaskID]State) {
	gens, known = map[spec.TaskID]uint64{}, map[spec.TaskID]State{}
	for id, t := range h.tasks {
		if t.busy {
			continue
		}
		gens[id] = t.gen
		if full || t.inside == nil {
			look = append(look, id)
		} else {
			known[id] = *t.inside
		}
	}
	return gens, look, known
}

// recall adds what is known without a look.
func (o observation) recall(known map[spec.TaskID]State) {
	for id, st := range known {
		o.state.merge(st)
		o.inside[id] = true
	}
}

// remember notes what a pass left inside the namespaces of tasks that no
// Attach has touched since.
func (h *Host) remember(gens map[spec.TaskID]uint64, want State, ops []Op, errs []error) {
	doubt := map[spec.TaskID]bool{}
	for i, o := range ops {
		if id, anew := touches(o); anew || errs[i] != nil {
			doubt[id] = true
		}
	}
	left := want.inside()
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, gen := range gens {
		t := h.tasks[id]
		if t == nil || t.busy || t.gen != gen {
			continue
		}
		t.inside = nil
		if st, ok := left[id]; ok && !doubt[id] {
			t.inside = &st
		}
	}
}

// touches returns the task into whose namespace an operation reaches, and
// whether it makes a link there: what hung on an old one is gone then.
func touches(o Op) (task spec.TaskID, anew bool) {
	switch x := o.Object.(type) {
	case *LinkChange:
		if x.ID.NS == "" && x.Want.Peer.NS != "" {
			return x.Want.Peer.NS, o.Verb == Add || o.Verb == Replace
		}
		return x.ID.NS, x.ID.NS != "" && (o.Verb == Add || o.Verb == Replace)
	case Addr:
		return x.Link.NS, false
	case Route:
		return x.Link.NS, false
	case Program:
		return x.Link.NS, false
	case Sysctl:
		return x.Key.NS, false
	}
	return tableOf(o).NS, false
}
