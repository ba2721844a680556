package reconciler

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"wherry.dev/cluster/store"
	"wherry.dev/overlay/ipam"
	"wherry.dev/scheduler"
	"wherry.dev/spec"
)

// maxPart bounds the tasks that one part touches, so that a part is well below
// the size of a log entry. What is left over follows in the next plan.
const maxPart = 400

// Plan returns what has to change so that the tasks become what users
// declared, as far as it can be decided now. It is a pure function: the same
// snapshot and time give the same bytes. After the plan was applied, Plan of
// the new state is empty unless something happened in between, Next has come, or
// a stack went back, which is as if a user had declared it anew. What waits for
// an image says in the next plan if a service behind it has taken its room.
func Plan(s *store.Snapshot, now time.Time) spec.Plan { return PlanSince(s, now, time.Time{}) }

// PlanSince is Plan for a leader that leads since the given time by the clock
// of now. Times in the state are by the clocks of leaders before it, so that
// what must have been for a while must also have been for as long under this
// one; the zero time is long ago.
func PlanSince(s *store.Snapshot, now, since time.Time) spec.Plan {
	return PlanSeen(s, now, Seen{Since: since})
}

// PlanSeen is PlanSince for a leader that also tells what it has seen itself:
// also a clock that was set while it led is not to be believed.
func PlanSeen(s *store.Snapshot, now time.Time, seen Seen) spec.Plan {
	p := newPlanner(s, now.Round(0).UTC())
	p.seen = seen
	return p.run()
}

// planner is one Plan at work. What the plan has given away so far is in its
// fields, so that no two parts give the same thing twice.
type planner struct {
	*view
	plan  spec.Plan
	board *scheduler.Board
	// numbered holds networks with numbers, those of this plan included, by
	// ID; troubles holds why a network has none, or not those of IPv6.
	numbered map[spec.NetworkID]*spec.Network
	troubles map[spec.NetworkID]string
	spaces   map[pool]*ipam.Space  // as far as asked for
	ranges   map[pool]*ipam.Range  // as far as asked for
	fixed    map[pool][]netip.Addr // that services ask for
	given    map[claim]string      // of these, in this plan: to which service, by key
	macs     map[macClaim]string   // likewise
	outside  []outside
	byNet    map[spec.NetworkID][]*spec.Task    // tasks with an address, by ID
	vipsOn   map[spec.NetworkID][]*spec.Service // services with a virtual address
	// homes of volumes by name, those of this plan included.
	homes     map[string][]spec.NodeID
	stackRevs map[string][]*spec.StackRevision // kept ones by stack, as far as asked for
	// partners are the services whose tasks share the network of a service's, by
	// the key of that one.
	partners map[string][]*spec.Service
	// touched are the objects that an earlier part of this plan changes: a
	// later part cannot ask for the version they had.
	touched map[spec.Read]bool
	// over are tasks that this plan ends for good, reaped those whose rows it
	// removes: what only they used can go in the same plan.
	// ended are all that it wants no longer.
	over, reaped, ended map[spec.TaskID]bool
	// preempted are tasks that are to end for others, and why; passed are services,
	// by their keys, that this plan has looked at.
	preempted map[spec.TaskID]string
	passed    map[string]bool
	// ports of services, by their keys, those of this plan included.
	ports map[string][]spec.Port
	// updates are those of services as this plan leaves them, by their keys;
	// rollbacks are of stacks that are to go back.
	updates   map[string]spec.UpdateStatus
	rollbacks map[string]*spec.StackRollback
	// complete says of services, by their keys, whether they are jobs that have
	// completed, as far as this plan has passed them.
	complete map[string]bool
	// eager starts all replacements of an update at once and never waits for
	// readiness. Only previews do, which want to see the whole update.
	eager bool
}

func newPlanner(s *store.Snapshot, now time.Time) *planner {
	p := &planner{
		view:      newView(s, now),
		plan:      spec.Plan{Index: s.Index()},
		numbered:  map[spec.NetworkID]*spec.Network{},
		troubles:  map[spec.NetworkID]string{},
		spaces:    map[pool]*ipam.Space{},
		ranges:    map[pool]*ipam.Range{},
		fixed:     map[pool][]netip.Addr{},
		given:     map[claim]string{},
		macs:      map[macClaim]string{},
		byNet:     map[spec.NetworkID][]*spec.Task{},
		vipsOn:    map[spec.NetworkID][]*spec.Service{},
		homes:     map[string][]spec.NodeID{},
		touched:   map[spec.Read]bool{},
		stackRevs: map[string][]*spec.StackRevision{},
		partners:  map[string][]*spec.Service{},
		over:      map[spec.TaskID]bool{},
		reaped:    map[spec.TaskID]bool{},
		ended:     map[spec.TaskID]bool{},
		preempted: map[spec.TaskID]string{},
		passed:    map[string]bool{},
		updates:   map[string]spec.UpdateStatus{},
		rollbacks: map[string]*spec.StackRollback{},
		complete:  map[string]bool{},
	}
	for _, svc := range p.services {
		if svc.Spec.Template.Joins() != "" {
			p.partners[headKey(svc)] = append(p.partners[headKey(svc)], svc)
		}
	}
	p.board = scheduler.NewBoard(p.nodeList)
	for _, t := range p.all {
		for _, a := range t.Addresses {
			p.byNet[a.Network] = append(p.byNet[a.Network], t)
		}
		if p.holds(t) {
			p.board.Book(p.booking(t))
		}
	}
	for _, svc := range p.services {
		for _, v := range svc.VIPs {
			p.vipsOn[v.Network] = append(p.vipsOn[v.Network], svc)
		}
	}
	for name, v := range p.volumes {
		p.homes[name] = v.Homes
	}
	p.findFixed()
	p.findOutside()
	return p
}

// run makes the passes in order.
func (p *planner) run() spec.Plan {
	p.numberNetworks()
	p.ports = p.choosePorts()
	for _, svc := range p.inOrder() {
		p.service(svc, p.ports[svc.Key()])
		p.passed[svc.Key()] = true
	}
	p.settleVIPs()
	p.endGoneServices()
	p.reapNetworks()
	p.reapRevisions()
	p.reapContents()
	p.settleStacks()
	return p.plan
}

// inOrder returns the services, those of a higher priority first, but each behind
// those that it depends on, so that a start order is judged by what this plan does
// with the dependencies.
func (p *planner) inOrder() []*spec.Service {
	out := make([]*spec.Service, 0, len(p.services))
	seen := map[string]bool{}
	var visit func(*spec.Service)
	visit = func(svc *spec.Service) {
		if svc == nil || seen[svc.Key()] {
			return
		}
		seen[svc.Key()] = true
		for _, d := range svc.Spec.DependsOn {
			visit(p.byKey[spec.ServiceKey(svc.Stack, d.Service)])
		}
		visit(p.byKey[headKey(svc)])
		out = append(out, svc)
	}
	first := slices.Clone(p.services)
	slices.SortStableFunc(first, func(a, b *spec.Service) int {
		return cmp.Compare(b.Spec.Placement.Priority, a.Spec.Placement.Priority)
	})
	for _, svc := range first {
		visit(svc)
	}
	return out
}

// booking is what a task that exists takes from its node.
func (p *planner) booking(t *spec.Task) scheduler.Booking {
	b := scheduler.Booking{Node: t.Node, Service: serviceKey(t)}
	if tmpl := p.template(t.Revision); tmpl != nil {
		r := &tmpl.Resources
		b.CPUs, b.Memory, b.Generic = r.ReserveCPUs, r.ReserveMemory, r.ReserveGeneric
	}
	if svc := p.byKey[b.Service]; svc != nil {
		b.Ports = hostPorts(svc.Ports)
	}
	p.bookPair(&b, t)
	return b
}

// wake asks for another pass at t at the latest.
func (p *planner) wake(t time.Time) {
	if p.plan.Next.IsZero() || t.Before(p.plan.Next) {
		p.plan.Next = t
	}
}

// emit adds a part that has something in it, its reads in a fixed order.
func (p *planner) emit(part spec.Part) {
	if partEmpty(&part) {
		return
	}
	sortReads(&part)
	for i := range part.Networks {
		p.touched[spec.Read{Kind: spec.KindNetwork, Key: string(part.Networks[i].ID)}] = true
	}
	for i := range part.Volumes {
		p.touched[spec.Read{Kind: spec.KindVolume, Key: part.Volumes[i].Name}] = true
	}
	for _, h := range part.Homes {
		p.touched[spec.Read{Kind: spec.KindVolume, Key: h.Name}] = true
	}
	p.plan.Parts = append(p.plan.Parts, part)
}

func sortReads(part *spec.Part) {
	slices.SortFunc(part.Reads, func(a, b spec.Read) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Key, b.Key))
	})
	part.Reads = slices.Compact(part.Reads)
}

// newPart begins the part of a service.
func newPart(svc *spec.Service) spec.Part {
	return spec.Part{Key: partKey(svc), Reads: []spec.Read{{Kind: spec.KindService, Key: svc.Key(), Version: svc.Version}}}
}

func partKey(svc *spec.Service) string { return "service " + svc.Key() }

func partEmpty(p *spec.Part) bool {
	return len(p.Networks) == 0 && len(p.Volumes) == 0 && len(p.Homes) == 0 && len(p.Create) == 0 &&
		len(p.Change) == 0 && len(p.Remove) == 0 && p.Service == nil && len(p.RemoveNetworks) == 0 &&
		len(p.RemoveVolumes) == 0 && len(p.RemoveRevisions) == 0 && len(p.RemoveContents) == 0 &&
		p.Stack == nil && p.Rollback == nil
}

// read notes that a part stands on an object at a version, unless an earlier
// part of this plan moves it.
func (p *planner) read(part *spec.Part, kind spec.ObjectKind, key string, version uint64) {
	if !p.touched[spec.Read{Kind: kind, Key: key}] {
		part.Reads = append(part.Reads, spec.Read{Kind: kind, Key: key, Version: version})
	}
}
