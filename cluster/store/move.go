package store

import "wherry.dev/spec"

// moveTasks lets tasks be replaced by ones on other nodes.
func (r *reducer) moveTasks(c *MoveTasks) error {
	for _, id := range c.Tasks {
		old := r.tasks.get(r.txn, idKey(id))
		if old == nil {
			return spec.NotFoundf("there is no task %q", id)
		}
		if old.Slot == 0 {
			return spec.Invalidf("task %s is of a global service, and cannot move", id)
		}
	}
	for _, id := range c.Tasks {
		old := r.tasks.get(r.txn, idKey(id))
		if old.Desired != spec.DesiredRunning || old.Status.State.Terminal() || old.Status.State == spec.TaskPending {
			continue
		}
		next := *old
		next.MoveUntil, next.Version = r.now.Add(MoveFor).Round(0), r.index
		put(r, &r.tasks, next)
		r.event(spec.Event{Kind: "task.moves", Stack: old.Stack, Service: old.Service, Task: id, Node: old.Node})
		if svc := r.services.get(r.txn, textsKey(old.Stack, old.Service)); svc != nil && svc.Version != r.index {
			touched := *svc
			touched.Version = r.index
			put(r, &r.services, touched)
		}
	}
	return nil
}
