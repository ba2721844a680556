package reconciler

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"wherry.dev/cluster/store"
	"wherry.dev/scheduler"
	"wherry.dev/spec"
)

// The states of stacks and services, as people see them.
const (
	StateRunning  = "running"  // all is as declared
	StateUpdating = "updating" // on the way, nothing in it failed
	StateDegraded = "degraded" // less than declared runs
	StateFailed   = "failed"   // tasks of the current revision do not start
	StateStopped  = "stopped"  // nothing is to run, and nothing does
)

// StackStatus says where a stack stands.
type StackStatus struct {
	Name     string          `json:"name"`
	State    string          `json:"state"`
	Revision uint64          `json:"revision"`
	Version  uint64          `json:"version"`
	Services []ServiceStatus `json:"services"` // by name
	// Message says what keeps a stack without services from being as declared.
	Message string `json:"message,omitempty"`
}

// ServiceStatus says where a service stands.
type ServiceStatus struct {
	ID      spec.ServiceID   `json:"id"`
	Name    string           `json:"name"`
	Stack   string           `json:"stack"`
	Mode    spec.ServiceMode `json:"mode"`
	Desired int              `json:"desired"` // tasks
	// Running are the ready tasks of the current revision.
	Running int `json:"running"`
	// Completed are the tasks of a job that have done what they had to.
	Completed int    `json:"completed,omitempty"`
	Image     string `json:"image"`
	State     string `json:"state"`
	// Message says in one line what is being waited for, or what fails with
	// its last line of output.
	Message string `json:"message,omitempty"`
	// Blocked: nothing goes on before somebody does what Message says.
	Blocked bool              `json:"blocked,omitempty"`
	Update  spec.UpdateStatus `json:"update"`
	Ports   []spec.Port       `json:"ports,omitempty"`
	VIPs    []spec.ServiceVIP `json:"vips,omitempty"`
	// Impossible says why the nodes that there are could not take all tasks even if
	// they were ready and empty; empty when they could. Waiting does not help.
	Impossible string `json:"impossible,omitempty"`
}

// Status returns where a stack stands; ok is false when there is no such
// stack. It judges with the rules of the passes and changes nothing.
func Status(s *store.Snapshot, stack string, now time.Time) (st StackStatus, ok bool) {
	row := s.Stack(stack)
	if row == nil {
		return StackStatus{}, false
	}
	st = StackStatus{Name: row.Name, Revision: row.Revision, Version: row.Version, State: StateRunning, Services: []ServiceStatus{}}
	p := newPlanner(s, now.Round(0).UTC())
	p.numberNetworks() // as the next plan will
	want := 0
	for _, svc := range s.ServicesOf(stack) {
		one := p.serviceStatus(svc)
		st.Services = append(st.Services, one)
		st.State = worse(st.State, one.State)
		want += one.Desired
	}
	if len(st.Services) == 0 {
		st.State, st.Message = p.networksReady(stack)
	}
	if want == 0 && len(st.Services) > 0 && st.State == StateRunning {
		st.State = StateStopped
	}
	return st, true
}

// worse returns the state that matters more to a person.
func worse(a, b string) string {
	order := []string{StateStopped, StateRunning, StateUpdating, StateDegraded, StateFailed}
	if slices.Index(order, a) > slices.Index(order, b) {
		return a
	}
	return b
}

// trouble is what is wrong at a place.
type trouble struct {
	rank    int // of the states, the highest counts
	message string
}

const (
	fine = iota
	progressing
	impaired
	failing
)

// serviceStatus says where a service stands, with what beside its tasks matters.
func (p *planner) serviceStatus(svc *spec.Service) ServiceStatus {
	one := p.status(svc)
	p.judgePorts(svc, &one)
	p.judgeFiles(svc, &one)
	one.Message = cmp.Or(one.Message, p.whyNoVIP(svc), p.networkNote(svc)) // it works all the same
	return one
}

func (p *planner) status(svc *spec.Service) ServiceStatus {
	ports := publishedPorts(svc)
	s := p.newPass(svc, ports)
	out := ServiceStatus{
		ID: svc.ID, Name: svc.Name, Stack: svc.Stack, Mode: svc.Spec.Mode, Image: s.tmpl.Image,
		Update: s.up, Ports: ports, VIPs: svc.VIPs,
	}
	worst := trouble{}
	for _, pl := range s.places {
		if s.completed(pl) != nil {
			out.Completed++
		} else if !pl.fillable && len(pl.live) == 0 {
			continue
		}
		out.Desired++
		for _, t := range pl.live {
			if s.isNewest(t) && s.serves(t) {
				out.Running++
				break
			}
		}
		if tr := s.trouble(pl); tr.rank > worst.rank {
			worst = tr
		}
	}
	if !svc.Spec.Mode.PerNode() && svc.Replicas == 0 {
		out.State, out.Message = s.scaledToZero()
		return out
	}
	why := s.missingNetwork()
	for i := 0; i < len(s.places) && why == "" && s.joined(); i++ {
		why = s.whyNoHead(s.places[i])
	}
	if why != "" {
		out.State, out.Message, out.Blocked = StateFailed, why, true
		return out
	}
	out.State = [...]string{StateRunning, StateUpdating, StateDegraded, StateFailed}[worst.rank]
	out.Message = worst.message
	switch {
	case s.up.State == spec.UpdatePaused && s.up.Canary == spec.CanaryWaiting:
		if worst.rank <= progressing {
			out.Message = s.up.Message
		}
		out.State = worse(out.State, StateUpdating)
	case s.up.State == spec.UpdateUpdating:
		out.State = worse(out.State, StateUpdating)
		out.Message = cmp.Or(out.Message, s.up.Message)
	case s.up.State == spec.UpdatePaused:
		out.State = worse(out.State, StateDegraded)
		what := "update"
		switch {
		case s.up.Rollback != 0:
			what = "rollback"
		case s.up.From == "" && s.rollouts():
			what = "deployment"
		}
		out.Message = what + " paused: " + cmp.Or(s.up.Message, out.Message)
	}
	if svc.Spec.Mode.PerNode() && out.Desired == 0 {
		out.State, out.Message = worse(out.State, StateDegraded), cmp.Or(out.Message, "no node fits: "+s.whyNoNode())
	}
	if why := s.impossible(); why != "" {
		out.Message, out.Impossible = why, why
		if out.State = worse(out.State, StateDegraded); out.Running < out.Desired {
			out.State = StateFailed
		}
	}
	return out
}

// impossible says why the nodes that there are could never take what the service
// wants of them, or "". Tasks that run all the same are left in peace.
func (s *pass) impossible() string {
	want := s.svc.Replicas
	if s.svc.Spec.Mode == spec.Global || s.joined() || s.missing() != "" {
		return ""
	}
	room := s.board.Capacity(&s.class, want)
	if room >= want || s.done() >= want {
		return ""
	}
	why := fmt.Sprintf("the nodes have room for %d of %d tasks, were they all ready and empty", room, want)
	if room == 0 {
		why = "no node could take a task, were it ready and empty"
	}
	refusals, near := s.board.Explain(&s.class)
	if len(refusals) > 0 {
		counts, kinds := map[string]int{}, []string{}
		for _, r := range refusals {
			kinds, counts[r.Reason] = append(kinds, r.Reason), len(r.Nodes)
		}
		why += ": " + scheduler.Counted(kinds, counts)
	}
	if near != nil && room == 0 {
		why += "; it fits if " + near.String()
	}
	return why
}

// scaledToZero judges a service of which nothing is to run.
func (s *pass) scaledToZero() (state, message string) {
	for _, t := range s.tasks[s.svc.Key()] {
		if !t.Status.State.Terminal() && s.endState(t) == "" {
			return StateUpdating, "scaled to 0: waits for task " + string(t.ID) + " to stop"
		}
	}
	return StateStopped, "scaled to 0"
}

// whyNoNode counts why a global service has no place at all.
func (s *pass) whyNoNode() string {
	if len(s.nodeList) == 0 {
		return "the cluster has no nodes"
	}
	counts := map[string]int{}
	var kinds []string
	for _, n := range s.nodeList {
		why := s.board.Fits(&s.class, n.ID)
		if counts[why] == 0 {
			kinds = append(kinds, why)
		}
		counts[why]++
	}
	return scheduler.Counted(kinds, counts)
}

// trouble judges one place.
func (s *pass) trouble(pl *place) trouble {
	name := s.placeName(pl)
	if restarts, t := s.gaveUp(pl); t != nil {
		return trouble{failing, name + ": " + whyGaveUp(restarts, t)}
	}
	good := func(t *spec.Task) bool { return s.unfit(t) == "" && s.steady(t) }
	if n, t := s.lost(pl); n > 0 && last(pl.live, good) == nil {
		why := name + ": " + ending(t)
		if next := newest(pl.live); next != nil && unplaced(next) {
			why += "; the next one cannot be placed: " + next.Status.Reason
		}
		return trouble{failing, why}
	}
	if len(pl.live) == 0 {
		if s.settled(pl) {
			return trouble{}
		}
		if len(pl.ending) > 0 {
			return trouble{progressing, name + ": waits for task " + string(pl.ending[0].ID) + " to stop"}
		}
		if !s.hasTurn() {
			return trouble{progressing, fmt.Sprintf("%s: waits for its turn, %d at a time", name, s.svc.Spec.MaxConcurrent)}
		}
		return trouble{progressing, name + ": waits to be created"}
	}
	t := last(pl.live, s.isNewest)
	if t == nil {
		if s.up.State == spec.UpdatePaused {
			return trouble{} // the update says why
		}
		return trouble{progressing, name + ": " + cmp.Or(s.awaits(), "waits to be replaced by the current revision")}
	}
	if s.job() && s.serves(t) && len(t.Status.Attempts) == 0 {
		return trouble{progressing, name + " runs"}
	}
	if s.job() && s.serves(t) {
		return trouble{impaired, name + ": " + ending(t) + "; it runs again"}
	}
	if s.serves(t) && !s.steady(t) {
		return s.probation(pl, name, t)
	}
	if s.serves(t) {
		why := s.outdated(t)
		if why == "" {
			if s.drained(t) == "" || s.roomWithout(pl, t) != "" {
				return trouble{} // what cannot move is as it is meant to be
			}
			return trouble{progressing, name + ": " + s.drained(t)}
		}
		if room := s.roomWithout(pl, t); room != "" {
			why += "; it stays, since no other node can take it: " + room
		}
		return trouble{progressing, name + ": " + why}
	}
	return s.taskTrouble(name, t)
}

// probation judges a task that serves and is not trusted yet. One that stands
// in for a failure is less than was declared; any other is on its way.
func (s *pass) probation(pl *place, name string, t *spec.Task) trouble {
	must := "must last " + spaced(s.policy.monitor)
	if t.Status.Health == spec.HealthHealthy {
		must = "must be healthy for " + spaced(s.policy.checked)
	}
	if len(t.Status.Attempts) > 0 {
		return trouble{impaired, name + ": " + ending(t) + "; it runs again and " + must}
	}
	if old := newest(pl.over); old != nil && failed(old) && old.Revision == t.Revision && !s.updating {
		return trouble{impaired, name + ": " + ending(old) + "; task " + string(t.ID) + " runs in its place and " + must}
	}
	return trouble{progressing, name + " runs; it " + must}
}

// unplaced reports whether a task waits for room, not for its turn.
func unplaced(t *spec.Task) bool {
	return t.Status.State == spec.TaskPending && t.Status.Reason != "" && !strings.HasPrefix(t.Status.Reason, "waits ")
}

// taskTrouble judges a task of the current revision that does not serve.
func (s *pass) taskTrouble(name string, t *spec.Task) trouble {
	st := &t.Status
	switch {
	case st.State == spec.TaskPending && strings.HasPrefix(st.Reason, "waits "):
		return trouble{progressing, name + ": " + st.Reason}
	case unplaced(t):
		return trouble{impaired, name + " cannot be placed: " + st.Reason}
	case st.State != spec.TaskPending && !s.nodeUp(t.Node):
		return trouble{impaired, name + ": " + cmp.Or(Away(s.snap, t), "node "+s.nodeName(t.Node)+" is gone") + suffix(cmp.Or(s.missing(), s.addressRoom(nil)))}
	case len(st.Attempts) > 0 && st.Attempts[len(st.Attempts)-1].Failed():
		return trouble{impaired, name + ": " + ending(t)}
	case st.Health == spec.HealthUnhealthy:
		return trouble{impaired, name + " is unhealthy" + suffix(st.Reason)}
	case st.State == spec.TaskRunning:
		return trouble{progressing, name + ": waits to be healthy" + suffix(st.Reason)}
	}
	return trouble{progressing, name + " is " + string(st.State) + suffix(st.Reason)}
}

func suffix(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

// Away says of a task that is not over that its node is down, and what it has
// there that no other node has; "" when the node is up.
func Away(s *store.Snapshot, t *spec.Task) string {
	n := s.Node(t.Node)
	if n == nil || n.State != spec.NodeDown || t.Status.State.Terminal() {
		return ""
	}
	why := "node " + n.Name + " is down"
	for _, b := range t.Volumes {
		if v := s.Volume(b.ID); v != nil && t.Slot != 0 && !v.Anonymous && !homeless(v) {
			why += ", and holds volume " + v.Name
		}
	}
	return why
}
