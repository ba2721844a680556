package store

import (
	"cmp"

	"wherry.dev/spec"
)

// steerService pauses the update of a service, goes on with it, also behind its
// canary, or calls for a restart of its tasks.
func (r *reducer) steerService(c *SteerService) error {
	head := r.stacks.get(r.txn, textKey(c.Stack))
	if head == nil {
		return spec.NotFoundf("there is no stack %q", c.Stack)
	}
	svc := r.services.get(r.txn, textsKey(c.Stack, c.Service))
	if svc == nil {
		return spec.NotFoundf("stack %s has no service %q", c.Stack, c.Service)
	}
	r.res.Revision = head.Revision
	next := *svc
	paused := svc.Held != "" || svc.Update.State == spec.UpdatePaused && svc.Update.Rollout == svc.Rollout
	switch c.Action {
	case SteerPause:
		if paused {
			return nil
		}
		if svc.Update.State != spec.UpdateUpdating && svc.Update.Rollout == svc.Rollout {
			return spec.Conflictf("no update of service %s is under way", svc.Key())
		}
		next.Held = cmp.Or(r.cmd.Author, "a user")
	case SteerResume:
		if !paused {
			return spec.Conflictf("the update of service %s is not paused", svc.Key())
		}
		if svc.Held == "" && svc.Update.Canary == spec.CanaryWaiting {
			return spec.Conflictf("the update of service %s waits for a decision about its canary: promote it, or roll it back", svc.Key())
		}
		next.Held = ""
		next.Rollout, next.Changed = r.index, r.now
	case SteerRun, SteerRestart:
		if c.Action == SteerRun && !svc.Spec.Mode.Job() {
			return spec.Invalidf("service %s is %s and no job: restart replaces its tasks", svc.Key(), svc.Spec.Mode)
		}
		next.Restarts++
		next.Held = ""
		next.Rollout, next.Changed = r.index, r.now
	case SteerPromote:
		if svc.Promoted == svc.Rollout && svc.Rollout != 0 {
			return nil
		}
		trying := svc.Update.Canary == spec.CanaryTesting || svc.Update.Canary == spec.CanaryWaiting
		if svc.Held != "" {
			return spec.Conflictf("the update of service %s was paused by %s: resume it first", svc.Key(), svc.Held)
		}
		if !trying || svc.Update.Rollout != svc.Rollout || paused && svc.Update.Canary != spec.CanaryWaiting {
			return spec.Conflictf("no canary of service %s is being tried", svc.Key())
		}
		next.Promoted = svc.Rollout
	default:
		return spec.Invalidf("a service can be steered by pause, resume, restart, run and promote, not by %q", c.Action)
	}
	next.Version = r.index
	put(r, &r.services, next)
	if c.Action == SteerRestart {
		r.restartAfter(c.Stack, func(name string) bool { return name == c.Service })
	}
	row := *head
	row.Version = r.index
	put(r, &r.stacks, row)
	r.event(spec.Event{Kind: "service." + string(c.Action), Stack: c.Stack, Service: c.Service})
	return nil
}
