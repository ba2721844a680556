package reconciler

import (
	"fmt"
	"slices"

	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// goBackTo returns the revision of the stack that an update which has failed
// goes back to, or why there is none.
func (s *pass) goBackTo() (to uint64, cannot string) {
	row, head := s.snap.Stack(s.svc.Stack), s.head(s.svc.Stack)
	if row == nil || head == nil {
		return 0, "the stack is gone"
	}
	if s.up.Rollback != 0 || head.Rollback != 0 && head.State != spec.RevisionCompleted {
		return 0, "a rollback is not taken back"
	}
	if head.State == spec.RevisionCompleted {
		return 0, fmt.Sprintf("revision %d of the stack had completed, so going back would not help", head.Number)
	}
	target := s.snap.StackRevision(row.Name, row.Completed)
	if target == nil {
		return 0, "there is no revision to go back to"
	}
	if old, ok := target.Spec.Services[s.svc.Name]; ok && len(diffFields(&old, &s.svc.Spec)) == 0 {
		return 0, fmt.Sprintf("going back would not help: revision %d of the stack, which completed last, declares the same service", target.Number)
	}
	for _, svc := range s.snap.ServicesOf(row.Name) {
		u, ok := s.updates[svc.Key()]
		if !ok {
			u = svc.Update
		}
		if u.State == spec.UpdatePaused && u.Rollout == svc.Rollout && u.Canary != spec.CanaryWaiting {
			return 0, "the stack does not go back while service " + svc.Name + " is paused"
		}
	}
	return target.Number, ""
}

// settleStacks writes down what has become of the newest revisions of stacks,
// and takes those back that have failed. It comes last: what a rollback declares
// is for the next plan.
func (p *planner) settleStacks() {
	if p.snap.Format() < store.RolloutFormat {
		return
	}
	for _, row := range p.snap.Stacks() {
		head := p.head(row.Name)
		if head == nil || head.State == spec.RevisionCompleted {
			continue
		}
		part := spec.Part{Key: "stack " + row.Name, Reads: []spec.Read{{Kind: spec.KindStack, Key: row.Name, Version: row.Version}}}
		if back := p.rollbacks[row.Name]; back != nil {
			part.Rollback = back
		} else if next := p.stackState(row.Name); next.State != head.State || next.Why != head.Why {
			next.Name, next.Revision = row.Name, row.Revision
			part.Stack = &next
		}
		p.emit(part)
	}
}

// stackState judges the newest revision of a stack by the updates of its
// services.
func (p *planner) stackState(stack string) spec.StackChange {
	out := spec.StackChange{State: spec.RevisionCompleted}
	for _, svc := range p.snap.ServicesOf(stack) {
		u, ok := p.updates[svc.Key()]
		switch {
		case !ok || u.State == spec.UpdateUpdating:
			return spec.StackChange{State: spec.RevisionUpdating}
		case u.State == spec.UpdatePaused && out.State != spec.RevisionPaused:
			out = spec.StackChange{State: spec.RevisionPaused, Why: "service " + svc.Name + ": " + u.Message, Log: u.Log}
		case out.State == spec.RevisionCompleted && p.beyond(svc, &u):
			out = spec.StackChange{State: spec.RevisionFailed, Why: "service " + svc.Name + ": " + u.Message}
		}
	}
	if out.State == spec.RevisionCompleted {
		out.Ports = p.chosenPorts(stack)
	}
	return out
}

// beyond reports whether more tasks of a service failed than its policy admits,
// and the update went on all the same.
func (p *planner) beyond(svc *spec.Service, u *spec.UpdateStatus) bool {
	places := svc.Replicas
	if svc.Spec.Mode.PerNode() {
		places = len(p.nodeList)
	}
	return exceeds(u.Failed, places, policyOf(&svc.Spec, u.Rollback != 0).ratio)
}

// chosenPorts returns the published ports of the services of a stack of which a
// number was chosen.
func (p *planner) chosenPorts(stack string) map[string][]spec.Port {
	var out map[string][]spec.Port
	for _, svc := range p.snap.ServicesOf(stack) {
		if !slices.ContainsFunc(svc.Spec.Ports, func(q spec.Port) bool { return q.Published == 0 }) {
			continue
		}
		if out == nil {
			out = map[string][]spec.Port{}
		}
		out[svc.Name] = p.ports[svc.Key()]
	}
	return out
}
