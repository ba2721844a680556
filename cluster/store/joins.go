package store

import (
	"slices"

	"wherry.dev/spec"
)

// checkJoins refuses a task that would share the network of one that is not at
// its side, or not for long.
func (w *part) checkJoins(t *spec.Task) error {
	if t.Joins == "" {
		return nil
	}
	head := w.tasks.get(w.txn, idKey(t.Joins))
	switch {
	case head == nil:
		return spec.Conflictf("task %s, whose network a task of %s is to share, is gone", t.Joins, spec.ServiceKey(t.Stack, t.Service))
	case head.Stack != t.Stack || head.Slot != t.Slot || head.Node != t.Node || head.Joins != "":
		return spec.Invalidf("a task of %s cannot share the network of task %s", spec.ServiceKey(t.Stack, t.Service), w.taskName(head))
	case leaves(head):
		return spec.Conflictf("task %s, whose network a task of %s is to share, is ending", w.taskName(head), spec.ServiceKey(t.Stack, t.Service))
	}
	return nil
}

// checkWith refuses to end a task for the sake of one that goes on: the part
// that was to end that one was rejected.
func (w *part) checkWith(c *spec.TaskChange) error {
	if c.With == "" {
		return nil
	}
	if head := w.tasks.get(w.txn, idKey(c.With)); head != nil && !leaves(head) {
		return spec.Conflictf("task %s goes on, so task %s does", w.taskName(head), c.Task)
	}
	return nil
}

// leaves reports whether a task is over or on its way out.
func leaves(t *spec.Task) bool {
	return t.Status.State.Terminal() || t.Desired != spec.DesiredRunning
}

// pairs reports whether a part knows of tasks that share a network.
func pairs(p *spec.Part) bool {
	return slices.ContainsFunc(p.Create, func(t spec.Task) bool { return t.Joins != "" }) ||
		slices.ContainsFunc(p.Change, func(c spec.TaskChange) bool { return c.Joins != "" || c.With != "" })
}

// checkPairs refuses a number of replicas that leaves tasks without the one
// whose network they share.
func (r *reducer) checkPairs(svc *spec.Service, replicas int) error {
	if name := svc.Spec.Template.Joins(); name != "" {
		if head := r.services.get(r.txn, textsKey(svc.Stack, name)); head != nil && replicas > head.Replicas {
			return spec.Invalidf("service %s shares the network of service %s, which is scaled to %d: scale that first", svc.Key(), name, head.Replicas)
		}
	}
	for other := range r.services.under(r.txn, textsKey(svc.Stack)) {
		if other.Spec.Template.Joins() == svc.Name && other.Replicas > replicas && !other.Spec.Mode.PerNode() {
			return spec.Invalidf("service %s, which is scaled to %d, shares the network of service %s: scale that first", other.Name, other.Replicas, svc.Key())
		}
	}
	return nil
}
