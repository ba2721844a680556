package reconciler

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// Preview is what a write would do.
type Preview struct {
	Stack string `json:"stack"`
	// Changes of what is declared, stack first, then services, networks,
	// volumes, secrets and configs, each by name.
	Changes []spec.Change `json:"changes"`
	// Tasks of the stack that would come and go, by service and place.
	Tasks []spec.TaskAction `json:"tasks"`
	// Notes are for the person: what stays, what cannot be done.
	Notes []string `json:"notes,omitempty"`
}

// maxRounds bounds the passes of a preview. Each place takes a few, all at the
// same time.
const maxRounds = 100

// NewPreview returns what would become of a command that writes a stack
// (PutStack, RemoveStack, RollbackStack or ScaleService): it applies the command to a private
// copy of the store, which itself does not change, and lets the passes go on
// until nothing is left to do, on nodes on which every task starts and stops
// at once. The error is the one that the command itself would get.
func NewPreview(s *store.Store, c store.Command, now time.Time) (Preview, error) {
	now = now.Round(0).UTC()
	v := &rehearsal{store: s.Clone(), now: now, whys: map[spec.TaskID]string{}}
	switch {
	case c.PutStack != nil:
		v.stack = c.PutStack.Stack.Name
	case c.RemoveStack != nil:
		v.stack = c.RemoveStack.Name
	case c.ScaleService != nil:
		v.stack = c.ScaleService.Stack
	case c.RollbackStack != nil:
		v.stack = c.RollbackStack.Stack
	default:
		return Preview{}, spec.Invalidf("a preview is made of commands that write a stack, not of %q", c.Kind())
	}
	c.RequestID = "" // the answer to a repeat would be that of the first time
	v.before = newView(v.store.Snapshot(), now)
	if res := v.apply(c); res.Err != nil {
		return Preview{}, res.Err
	}
	declared := newView(v.store.Snapshot(), now)
	p := Preview{Stack: v.stack, Changes: declaredChanges(v.before, declared, v.stack), Tasks: []spec.TaskAction{}}
	v.settle()
	v.after = newView(v.store.Snapshot(), v.now)
	p.Tasks = append(p.Tasks, v.actions()...)
	p.Notes = v.notes()
	return p, nil
}

// rehearsal is one preview at work.
type rehearsal struct {
	store         *store.Store
	stack         string
	now           time.Time
	before, after *view
	// whys are the grounds for the end of tasks.
	whys map[spec.TaskID]string
}

func (v *rehearsal) apply(c store.Command) store.Result {
	c.Time = v.now
	return v.store.Apply(v.store.Snapshot().Index()+1, c)
}

// settle lets the passes and perfect nodes take turns until neither has
// anything left to do.
func (v *rehearsal) settle() {
	for range maxRounds {
		snap := v.store.Snapshot()
		p := newPlanner(snap, v.now)
		p.eager = true
		plan := p.run()
		for i := range plan.Parts {
			for _, c := range plan.Parts[i].Change {
				if c.Desired != "" {
					v.whys[c.Task] = cmp.Or(v.whys[c.Task], c.Why)
				}
			}
		}
		if !plan.Empty() {
			v.apply(store.Command{ApplyPlan: &store.ApplyPlan{Epoch: snap.Epoch(), Parts: plan.Parts}})
		}
		told := v.report()
		if !plan.Empty() || told {
			continue
		}
		if plan.Next.IsZero() || !plan.Next.After(v.now) {
			return
		}
		v.now = plan.Next
	}
}

// report lets the tasks of the stack that are new start, and those that are to
// end stop.
func (v *rehearsal) report() bool {
	snap := v.store.Snapshot()
	byNode := map[spec.NodeID]int{}
	var reports []spec.Report
	for _, t := range snap.Tasks() {
		status := spec.TaskStatus{Since: v.now, Started: t.Status.Started}
		switch n := snap.Node(t.Node); {
		case t.Stack != v.stack || n == nil || n.State != spec.NodeReady || t.Status.State.Terminal() || t.Status.State == spec.TaskPending:
			continue
		case t.Desired != spec.DesiredRunning:
			status.State = spec.TaskStopped
		case v.before.snap.Task(t.ID) == nil && t.Status.State != spec.TaskRunning:
			status.State, status.Health, status.Started = spec.TaskRunning, spec.HealthHealthy, 1
		default:
			continue
		}
		i, ok := byNode[t.Node]
		if !ok {
			i = len(reports)
			byNode[t.Node] = i
			reports = append(reports, spec.Report{Node: t.Node})
		}
		reports[i].Tasks = append(reports[i].Tasks, spec.TaskReport{Task: t.ID, Status: status})
	}
	if len(reports) > 0 {
		v.apply(store.Command{Reports: &store.Reports{Reports: reports}})
	}
	return len(reports) > 0
}

// spot is a place of a service and the task that fills it.
type spot struct {
	service, place string
	slot           int
	task           *spec.Task
}

// spots returns the tasks of the stack that are meant to run, one per place.
func (v *view) spots(stack string) []spot {
	index := map[string]int{}
	var out []spot
	for _, t := range v.all {
		if t.Stack != stack || t.Status.State.Terminal() || t.Desired != spec.DesiredRunning {
			continue
		}
		s := spot{t.Service, t.Place(), t.Slot, t}
		if i, ok := index[s.service+"/"+s.place]; ok {
			out[i] = s // the newer one
			continue
		}
		index[s.service+"/"+s.place] = len(out)
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b spot) int {
		return cmp.Or(cmp.Compare(a.service, b.service), cmp.Compare(a.slot, b.slot), cmp.Compare(a.place, b.place))
	})
	return out
}

// actions compares the tasks before and after.
func (v *rehearsal) actions() []spec.TaskAction {
	was, is := map[string]spot{}, map[string]bool{}
	for _, s := range v.before.spots(v.stack) {
		was[s.service+"/"+s.place] = s
	}
	var out []spec.TaskAction
	for _, s := range v.after.spots(v.stack) {
		key := s.service + "/" + s.place
		is[key] = true
		old, had := was[key]
		if had && old.task.ID == s.task.ID {
			continue
		}
		a := spec.TaskAction{Action: "create", Name: v.after.taskName(s.task), Node: v.after.nodeName(s.task.Node), Why: v.whyCreated(s)}
		if had {
			a.Action, a.Why = "replace", cmp.Or(v.whys[old.task.ID], "the service has changed")
		}
		if s.task.Status.State == spec.TaskPending {
			a.Why += "; stays pending: " + s.task.Status.Reason
		}
		out = append(out, a)
	}
	for _, s := range v.before.spots(v.stack) {
		if !is[s.service+"/"+s.place] {
			out = append(out, spec.TaskAction{
				Action: "remove", Name: v.before.taskName(s.task), Node: v.before.nodeName(s.task.Node),
				Why: cmp.Or(v.whys[s.task.ID], "service "+spec.ServiceKey(v.stack, s.service)+" was removed"),
			})
		}
	}
	return out
}

func (v *rehearsal) whyCreated(s spot) string {
	key := spec.ServiceKey(v.stack, s.service)
	old := v.before.byKey[key]
	switch now := v.after.byKey[key]; {
	case old == nil:
		return "service " + key + " is new"
	case now != nil && s.slot > old.Replicas:
		return fmt.Sprintf("the service is scaled from %d to %d", old.Replicas, now.Replicas)
	}
	return "the place is empty"
}

// notes tell what a person might not expect.
func (v *rehearsal) notes() []string {
	var out []string
	declared := v.after.stack(v.stack)
	for _, x := range v.before.snap.Volumes() {
		if x.Stack != v.stack || x.Anonymous || x.Removing {
			continue
		}
		after := v.after.volumes[x.Name]
		still := false
		if declared != nil {
			_, still = declared.Volumes[x.Short]
		}
		if after != nil && !after.Removing && !still {
			out = append(out, "volume "+x.Name+" is not declared any more; its data is kept until it is removed with \"volume rm\"")
		}
	}
	for _, x := range v.before.snap.Networks() {
		if users := v.after.usersOf(x.ID); x.Stack == v.stack && !x.Gone && len(users) > 0 && v.after.snap.Network(x.ID).Gone {
			out = append(out, "network "+x.Name+" stays as long as other stacks use it: "+strings.Join(users, ", "))
		}
	}
	for _, svc := range v.after.services {
		if svc.Stack == v.stack && svc.Update.State == spec.UpdateUpdating && svc.Update.Message != "" {
			out = append(out, svc.Update.Message)
		}
	}
	out = append(out, v.liveNotes()...)
	slices.Sort(out)
	return out
}

// declaredChanges compares what a stack declares before and after.
func declaredChanges(before, after *view, stack string) []spec.Change {
	out := []spec.Change{}
	old, now := before.snap.Stack(stack), after.snap.Stack(stack)
	if (old == nil) != (now == nil) {
		out = append(out, spec.Change{Kind: "stack", Name: stack, Action: action(old == nil, now == nil)})
	}
	out = append(out, compare("service", servicesOf(before, stack), servicesOf(after, stack))...)
	out = append(out, compare("network", networksOf(before, stack), networksOf(after, stack))...)
	out = append(out, compare("volume", volumesOf(before, stack), volumesOf(after, stack))...)
	for _, k := range spec.DatumKinds {
		out = append(out, compare(string(k), dataOf(before, k, stack), dataOf(after, k, stack))...)
	}
	return out
}

func action(created, removed bool) string {
	switch {
	case created:
		return "create"
	case removed:
		return "remove"
	}
	return "update"
}

// compare compares named objects; each is a map of fields that flatten takes.
func compare(kind string, before, after map[string]any) []spec.Change {
	var names []string
	for name := range before {
		names = append(names, name)
	}
	for name := range after {
		if before[name] == nil {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	var out []spec.Change
	for _, name := range names {
		fields := diffFields(before[name], after[name])
		if after[name] == nil {
			fields = nil // nothing is left to look at
		}
		if len(fields) > 0 || (before[name] == nil) != (after[name] == nil) {
			out = append(out, spec.Change{Kind: kind, Name: name, Action: action(before[name] == nil, after[name] == nil), Fields: fields})
		}
	}
	return out
}

func servicesOf(v *view, stack string) map[string]any {
	out := map[string]any{}
	for _, s := range v.services {
		if s.Stack != stack {
			continue
		}
		fields := s.Spec
		fields.Template, fields.Live = *plainData(&s.Spec.Template), nil // their versions are shown with the data
		fields.Replicas = nil
		if !s.Spec.Mode.PerNode() {
			n := s.Replicas // the number in force
			fields.Replicas = &n
		}
		out[s.Name] = &fields
	}
	return out
}

func networksOf(v *view, stack string) map[string]any {
	out := map[string]any{}
	for _, n := range v.snap.Networks() {
		if n.Stack == stack && !n.Gone {
			out[n.Name] = &n.Spec
		}
	}
	return out
}

func volumesOf(v *view, stack string) map[string]any {
	out := map[string]any{}
	for _, x := range v.snap.Volumes() {
		if x.Stack == stack && !x.Anonymous && !x.Removing {
			out[x.Name] = &x.Spec
		}
	}
	return out
}
