package store

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"wherry.dev/spec"
)

// rollbackStack declares again what an older revision of a stack declared, as a
// revision of its own: image digests, contents and chosen ports come with it.
func (r *reducer) rollbackStack(c *RollbackStack) error {
	head := r.stacks.get(r.txn, textKey(c.Stack))
	if head == nil {
		return spec.NotFoundf("there is no stack %q", c.Stack)
	}
	if err := checkBase(head, c.Stack, c.Base); err != nil {
		return err
	}
	newest := r.newest(head)
	target, err := r.rollbackTarget(newest, c)
	if err != nil {
		return err
	}
	want, what := target.Spec, ""
	if c.Service != "" {
		what = "service " + c.Service + " "
		want = withService(newest.Spec, &target.Spec, c.Service)
	}
	if err := checkStack(&want); err != nil {
		return err
	}
	if r.inForce(&want, newest) {
		r.res.Revision = head.Revision
		return nil
	}
	if missing := r.resolveData(&want); len(missing) > 0 {
		return r.checkExternals(&want, missing)
	}
	message := cmp.Or(c.Message, fmt.Sprintf("%srolled back to revision %d", what, target.Number))
	if err := r.revise(head, spec.StackRevision{Spec: want, Author: r.cmd.Author, Message: message, Rollback: target.Number}); err != nil {
		return err
	}
	r.restorePorts(target, c.Service)
	r.event(spec.Event{Kind: "stack.rolled_back", Stack: c.Stack, Service: c.Service, Message: message})
	return nil
}

// rollbackTarget returns the revision that a user means: the one that is named,
// else the last one that did not fail and is not what the stack declares now.
func (r *reducer) rollbackTarget(newest *spec.StackRevision, c *RollbackStack) (*spec.StackRevision, error) {
	if _, ok := newest.Spec.Services[c.Service]; !ok && c.Service != "" && c.To == 0 {
		return nil, spec.NotFoundf("stack %s has no service %q", c.Stack, c.Service)
	}
	var found *spec.StackRevision
	oldest := newest.Number
	for rev := range r.stackRevisions.under(r.txn, textsKey(c.Stack)) {
		oldest = min(oldest, rev.Number)
		switch {
		case c.To != 0 && rev.Number == c.To:
			found = rev
		case c.To == 0 && rev.Number < newest.Number && mayGoBackTo(rev) && differs(rev, newest, c.Service):
			found = rev // they come in order
		}
	}
	switch {
	case found == nil && c.To == 0:
		return nil, spec.NotFoundf("stack %s has no earlier revision that completed and differs; \"wherry history %s\" lists those that are kept, --to names one", c.Stack, c.Stack)
	case found == nil:
		return nil, spec.NotFoundf("revision %d of stack %s is not kept; there are %d to %d", c.To, c.Stack, oldest, newest.Number)
	case c.Service != "":
		if _, ok := found.Spec.Services[c.Service]; !ok {
			return nil, spec.NotFoundf("revision %d of stack %s has no service %q", found.Number, c.Stack, c.Service)
		}
	}
	return found, nil
}

// mayGoBackTo: the revision completed, or is from a time when nobody wrote that
// down.
func mayGoBackTo(rev *spec.StackRevision) bool {
	return rev.State == spec.RevisionCompleted || rev.State == ""
}

// differs reports whether two revisions declare different things, for one
// service or, when it is empty, at all.
func differs(a, b *spec.StackRevision, service string) bool {
	if service == "" {
		return !same(&a.Spec, &b.Spec)
	}
	x, ok := a.Spec.Services[service]
	y := b.Spec.Services[service]
	return ok && !same(&x, &y)
}

// withService returns a stack whose one service is as from has it, with the
// networks, volumes, secrets and configs that it uses; those that the stack has
// stay as they are.
func withService(s spec.Stack, from *spec.Stack, service string) spec.Stack {
	s.Services = maps.Clone(s.Services)
	s.Networks, s.Volumes = cloned(s.Networks), cloned(s.Volumes)
	s.Secrets, s.Configs = maps.Clone(s.Secrets), maps.Clone(s.Configs)
	s.Services[service] = from.Services[service]
	carryUsed(&s, from, service)
	return s
}

// restorePorts gives the services of a stack, or the one that is named, the
// ports that had been chosen for them when a revision completed, unless somebody
// else has them by now.
func (r *reducer) restorePorts(target *spec.StackRevision, service string) {
	for _, name := range slices.Sorted(maps.Keys(target.Ports)) {
		svc := r.services.get(r.txn, textsKey(target.Stack, name))
		if svc == nil || service != "" && name != service || slices.Equal(svc.Ports, target.Ports[name]) {
			continue
		}
		next := *svc
		next.Ports, next.Version = target.Ports[name], r.index
		if r.checkPorts(&next) == nil {
			put(r, &r.services, next)
		}
	}
}

// cannotGoBack says why a revision cannot be declared any more.
type cannotGoBack struct{ error }

// goBack takes a stack back to an older revision because its newest has failed.
func (w *part) goBack(p *spec.Part) error {
	c := p.Rollback
	if c == nil {
		return nil
	}
	head := w.stacks.get(w.txn, textKey(c.Name))
	if head == nil {
		return spec.Conflictf("stack %s is gone", c.Name)
	}
	newest, target := w.newest(head), w.stackRevisions.get(w.txn, stackRevisionKey(c.Name, c.To))
	if head.Revision != c.Revision || newest == nil || newest.State == spec.RevisionCompleted {
		return spec.Conflictf("stack %s is at revision %d and not one that failed", c.Name, head.Revision)
	}
	if target == nil || target.State != spec.RevisionCompleted {
		return spec.Conflictf("stack %s has no revision %d that completed", c.Name, c.To)
	}
	failed := *newest
	failed.State, failed.Why, failed.Log = spec.RevisionRolledBack, c.Why, c.Log
	put(w.reducer, &w.stackRevisions, failed)
	message := fmt.Sprintf("rolled back to revision %d, since revision %d failed: %s", c.To, c.Revision, c.Why)
	want := target.Spec
	if missing := w.resolveData(&want); len(missing) > 0 {
		return cannotGoBack{w.checkExternals(&want, missing)}
	}
	if err := w.revise(head, spec.StackRevision{Spec: want, Author: spec.RollbackAuthor, Message: message, Rollback: c.To}); err != nil {
		return cannotGoBack{err}
	}
	w.restorePorts(target, "")
	w.event(spec.Event{Kind: "stack.rolled_back", Stack: c.Name, Service: c.Service, Message: message})
	return nil
}

// pauseInstead applies a part whose stack cannot go back.
func (w *part) pauseInstead(p *spec.Part, why cannotGoBack) error {
	if err := w.checkReads(p.Reads); err != nil {
		return err
	}
	c := p.Rollback
	svc := w.services.get(w.txn, textsKey(c.Name, c.Service))
	if svc == nil {
		return spec.Conflictf("service %s is gone", spec.ServiceKey(c.Name, c.Service))
	}
	next := svc.Update
	next.State, next.Since, next.Log = spec.UpdatePaused, w.now, c.Log
	next.Message = fmt.Sprintf("%s; the stack cannot go back to revision %d: %v", c.Why, c.To, why)
	w.setUpdate(svc, &next)
	return nil
}

// setUpdate changes the update status of a service.
func (w *part) setUpdate(svc *spec.Service, u *spec.UpdateStatus) {
	next := *svc
	next.Update, next.Version = *u, w.index
	put(w.reducer, &w.services, next)
	w.updateEvent(svc, &next)
}

// updateEvent notes that the update of a service has entered another state.
func (w *part) updateEvent(old, next *spec.Service) {
	if w.meta.Format < RolloutFormat || old.Update.State == next.Update.State && old.Update.Rollout == next.Update.Rollout {
		return
	}
	w.event(spec.Event{Kind: "update." + string(next.Update.State), Stack: next.Stack, Service: next.Name, Message: next.Update.Message})
}

// changeStack notes what became of the newest revision of a stack.
func (w *part) changeStack(p *spec.Part) error {
	c := p.Stack
	if c == nil {
		return nil
	}
	head := w.stacks.get(w.txn, textKey(c.Name))
	if head == nil || head.Revision != c.Revision {
		return spec.Conflictf("stack %s has another revision than %d", c.Name, c.Revision)
	}
	rev := w.newest(head)
	if rev == nil || rev.State == spec.RevisionCompleted {
		return spec.Conflictf("revision %d of stack %s has completed already", c.Revision, c.Name)
	}
	next := *rev
	next.State, next.Why, next.Log, next.Ports = c.State, c.Why, c.Log, c.Ports
	put(w.reducer, &w.stackRevisions, next)
	if c.State != spec.RevisionCompleted {
		return nil
	}
	for svc := range w.services.under(w.txn, textsKey(c.Name)) {
		if s := svc.Update.State; s == spec.UpdateUpdating || s == spec.UpdatePaused || svc.Rollout != svc.Update.Rollout {
			return spec.Conflictf("the update of service %s has not ended well", svc.Key())
		}
	}
	row := *head
	row.Completed = c.Revision
	put(w.reducer, &w.stacks, row)
	return nil
}
