package reconciler

import (
	"slices"

	"wherry.dev/spec"
)

// endGoneServices ends the tasks of services that do not exist any more, and
// removes their rows once they are over.
func (p *planner) endGoneServices() {
	seen := map[string]bool{}
	for _, t := range p.all {
		key := serviceKey(t)
		if p.byKey[key] != nil || seen[key] {
			continue
		}
		seen[key] = true
		s := &pass{planner: p, part: spec.Part{
			Key:   "service " + key,
			Reads: []spec.Read{{Kind: spec.KindService, Key: key}},
		}}
		for _, t := range p.tasks[key] {
			if t.Status.State.Terminal() {
				s.reap(t)
			} else {
				s.end(nil, t, spec.DesiredRemoved, "service "+key+" was removed")
			}
		}
		p.emit(s.part)
	}
}

// reapNetworks removes networks that nobody declares, no service uses and no
// task has an address on.
func (p *planner) reapNetworks() {
	var gone []*spec.Network
	for _, n := range p.snap.Networks() {
		if n.Gone {
			gone = append(gone, n)
		}
	}
	if len(gone) == 0 {
		return
	}
	wanted := p.wantedNetworks()
	for _, n := range gone {
		if wanted[n.ID] || slices.ContainsFunc(p.byNet[n.ID], func(t *spec.Task) bool { return p.holdsAddress(t) && !p.reaped[t.ID] }) {
			continue
		}
		p.emit(spec.Part{
			Key:            "network " + n.Name,
			Reads:          []spec.Read{{Kind: spec.KindNetwork, Key: string(n.ID), Version: n.Version}},
			RemoveNetworks: []spec.NetworkID{n.ID},
		})
	}
}

// reapRevisions removes revisions that no service, no task and no kept
// revision of a stack names. A service that comes back to one in the meantime
// moves its version, and the part is rejected.
func (p *planner) reapRevisions() {
	used := map[spec.RevisionID]bool{}
	for _, svc := range p.services {
		used[svc.Revision] = true
	}
	for _, t := range p.all {
		if !p.reaped[t.ID] {
			used[t.Revision] = true
		}
	}
	var idle []*spec.Revision
	for _, r := range p.snap.Revisions() {
		if !used[r.ID] {
			idle = append(idle, r)
		}
	}
	hashes := map[kept]spec.RevisionID{}
	parts := map[string]*spec.Part{}
	var order []string
	for _, r := range idle {
		key := spec.ServiceKey(r.Stack, r.Service)
		if p.keepsRevision(r, hashes) {
			continue
		}
		if parts[key] == nil {
			order = append(order, key)
			read := spec.Read{Kind: spec.KindService, Key: key}
			if svc := p.byKey[key]; svc != nil {
				read.Version = svc.Version
			}
			parts[key] = &spec.Part{Key: "revisions of " + key, Reads: []spec.Read{read}}
		}
		parts[key].RemoveRevisions = append(parts[key].RemoveRevisions, r.ID)
	}
	slices.Sort(order)
	for _, key := range order {
		p.emitRevisions(*parts[key])
	}
}

// emitRevisions joins the part with that of the same service, if there is one:
// two parts of one plan cannot stand on one version when the first moves it.
func (p *planner) emitRevisions(part spec.Part) {
	for i := range p.plan.Parts {
		other := &p.plan.Parts[i]
		if slices.Contains(other.Reads, part.Reads[0]) {
			other.RemoveRevisions = part.RemoveRevisions
			return
		}
	}
	p.emit(part)
}

// keepsRevision reports whether a kept revision of the stack, which a rollback
// may name, has the template of r. Hashing is dear, so it is done only where
// the images agree, and once per template of a service.
func (p *planner) keepsRevision(r *spec.Revision, hashes map[kept]spec.RevisionID) bool {
	list, ok := p.stackRevs[r.Stack]
	if !ok {
		list = p.snap.StackRevisions(r.Stack)
		p.stackRevs[r.Stack] = list
	}
	for _, x := range slices.Backward(list) {
		s, ok := x.Spec.Services[r.Service]
		if !ok || s.Template.Image != r.Template.Image || s.Template.Digest != r.Template.Digest {
			continue
		}
		k := kept{x, r.Service}
		if hashes[k] == "" {
			hashes[k] = spec.HashTemplate(r.Stack, r.Service, &s.Template)
		}
		if hashes[k] == r.ID {
			return true
		}
	}
	return false
}

// kept names a template in a revision of a stack.
type kept struct {
	revision *spec.StackRevision
	service  string
}

// keepContents is how many log entries a content that nothing refers to is
// kept: the write that is about to refer to it may be on its way.
const keepContents = 1000

// reapContents removes contents that nothing refers to.
func (p *planner) reapContents() {
	for _, c := range p.snap.Contents() {
		if c.Index+keepContents < p.snap.Index() && !p.snap.ContentInUse(c.ID) {
			p.emit(spec.Part{
				Key:            "content " + string(c.ID),
				Reads:          []spec.Read{{Kind: spec.KindContent, Key: string(c.ID), Version: c.Index}},
				RemoveContents: []spec.ContentID{c.ID},
			})
		}
	}
}
