package server

import (
	"cmp"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"wherry.dev/api"
	"wherry.dev/cluster/store"
	"wherry.dev/reconciler"
	"wherry.dev/spec"
)

func serviceInfo(snap *store.Snapshot, sv reconciler.ServiceStatus) api.ServiceInfo {
	out := api.ServiceInfo{
		ID: sv.ID, Name: sv.Name, Stack: sv.Stack, Mode: sv.Mode, Image: sv.Image,
		Replicas: api.Replicas{Desired: sv.Desired, Running: sv.Running, Completed: sv.Completed},
		State:    sv.State, Message: sv.Message, Blocked: sv.Blocked, Impossible: sv.Impossible, Update: sv.Update, Ports: sv.Ports,
	}
	out.Update.State = cmp.Or(out.Update.State, spec.UpdateNone)
	for _, v := range sv.VIPs {
		name := string(v.Network)
		if n := snap.Network(v.Network); n != nil {
			name = n.Name
		}
		out.VIPs = append(out.VIPs, api.VIP{Network: name, Address: v.Address, Address6: v.Address6})
	}
	return out
}

func (s *Server) serviceList(w http.ResponseWriter, r *http.Request) error {
	snap, err := s.snapshot(r)
	if err != nil {
		return err
	}
	want := r.URL.Query().Get("stack")
	l := api.List[api.ServiceInfo]{Index: snap.Index(), Items: []api.ServiceInfo{}}
	if want != "" && snap.Stack(want) == nil {
		return noStack(snap, want)
	}
	for _, row := range snap.Stacks() {
		if want != "" && row.Name != want {
			continue
		}
		st, _ := reconciler.Status(snap, row.Name, s.Now())
		for _, sv := range st.Services {
			l.Items = append(l.Items, serviceInfo(snap, sv))
		}
	}
	return writeJSON(w, l)
}

func (s *Server) serviceGet(w http.ResponseWriter, r *http.Request) error {
	snap, err := s.snapshot(r)
	if err != nil {
		return err
	}
	stack, name := r.PathValue("stack"), r.PathValue("service")
	row := snap.Service(stack, name)
	if row == nil {
		return noService(snap, stack, name)
	}
	st, _ := reconciler.Status(snap, stack, s.Now())
	out := api.ServiceDetail{Revision: row.Revision, Version: row.Version, Spec: row.Spec, Tasks: []api.TaskInfo{}}
	for _, sv := range st.Services {
		if sv.Name == name {
			out.ServiceInfo = serviceInfo(snap, sv)
		}
	}
	for _, t := range snap.TasksOf(stack, name) {
		out.Tasks = append(out.Tasks, taskInfo(snap, t))
	}
	return writeJSON(w, out)
}

func noService(snap *store.Snapshot, stack, name string) error {
	if snap.Stack(stack) == nil {
		return noStack(snap, stack)
	}
	var have []string
	for _, sv := range snap.ServicesOf(stack) {
		have = append(have, sv.Name)
	}
	return spec.NotFoundf("stack %s has no service %q; it has: %s", stack, name, strings.Join(have, ", "))
}

func (s *Server) serviceScale(w http.ResponseWriter, r *http.Request) error {
	var in api.Scale
	if err := readJSON(w, r, &in); err != nil {
		return err
	}
	if in.Replicas < 0 || in.Replicas > 100_000 {
		return spec.Invalidf("replicas=%d: want 0 to 100000", in.Replicas)
	}
	stack, name := r.PathValue("stack"), r.PathValue("service")
	if snap := s.Store.Snapshot(); snap.Service(stack, name) == nil {
		return noService(snap, stack, name)
	}
	res, err := s.propose(r.Context(), store.Command{RequestID: in.RequestID,
		ScaleService: &store.ScaleService{Stack: stack, Service: name, Replicas: in.Replicas, Base: in.Base}})
	if err != nil {
		return err
	}
	return writeJSON(w, api.Written{Index: res.Index, Changed: res.Changed})
}

// taskInfo joins a task with the names of its node and image.
func taskInfo(snap *store.Snapshot, t *spec.Task) api.TaskInfo {
	out := api.TaskInfo{
		Task: *t, NodeID: t.Node, State: t.Status.State, Health: cmp.Or(t.Status.Health, spec.HealthNone),
		Error: t.Status.Reason, Attempts: t.Status.Attempts, Addresses: []string{}, Ports: []api.TaskPort{},
	}
	if out.Attempts == nil {
		out.Attempts = []spec.Attempt{}
	}
	if n := snap.Node(t.Node); n != nil {
		out.Node = n.Name
	}
	if away := reconciler.Away(snap, t); away != "" {
		out.Error = away // what the node last told is no news
	}
	out.Name = spec.TaskName(t, out.Node)
	if rev := snap.Revision(t.Revision); rev != nil {
		out.Image = rev.Template.Image
	}
	for _, a := range t.Addresses {
		out.Addresses = append(out.Addresses, a.IP)
		if a.IP6 != "" {
			out.Addresses = append(out.Addresses, a.IP6)
		}
	}
	if sv := snap.Service(t.Stack, t.Service); sv != nil {
		out.Current = sv.Revision == t.Revision
		trying := sv.Update.Canary == spec.CanaryTesting || sv.Update.Canary == spec.CanaryWaiting
		out.Canary = out.Current && trying && sv.Update.Rollout == sv.Rollout
		for _, p := range sv.Ports {
			out.Ports = append(out.Ports, api.TaskPort{HostIP: p.HostIP, Published: p.Published, Target: p.Target, Protocol: p.Protocol, Mode: p.Mode})
		}
	}
	return out
}

func (s *Server) taskList(w http.ResponseWriter, r *http.Request) error {
	snap, err := s.snapshot(r)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	stack, service := q.Get("stack"), q.Get("service")
	tasks := snap.Tasks()
	if stack != "" && service != "" {
		tasks = snap.TasksOf(stack, service)
	}
	l := api.List[api.TaskInfo]{Index: snap.Index(), Items: []api.TaskInfo{}}
	for _, t := range tasks {
		if stack == "" || t.Stack == stack {
			l.Items = append(l.Items, taskInfo(snap, t))
		}
	}
	if len(l.Items) == 0 && stack != "" {
		if service != "" && snap.Service(stack, service) == nil {
			return noService(snap, stack, service)
		}
		if snap.Stack(stack) == nil {
			return noStack(snap, stack)
		}
	}
	return writeJSON(w, l)
}

// findTask resolves an ID, a name, NAME@ID, or STACK/SERVICE. Of several tasks
// with a name the newest that is not over wins, else the newest.
func findTask(snap *store.Snapshot, ref string) (*spec.Task, error) {
	if t := snap.Task(spec.TaskID(ref)); t != nil {
		return t, nil
	}
	name, id, exact := strings.Cut(ref, "@")
	if exact {
		if t := snap.Task(spec.TaskID(id)); t != nil && taskName(snap, t) == name {
			return t, nil
		}
		return nil, spec.NotFoundf("task %q does not exist", ref)
	}
	var candidates []*spec.Task
	if stack, service, ok := spec.SplitServiceKey(ref); ok {
		if candidates = snap.TasksOf(stack, service); len(candidates) == 0 && snap.Service(stack, service) == nil {
			return nil, noService(snap, stack, service)
		}
	} else {
		for _, t := range snap.Tasks() {
			if taskName(snap, t) == name {
				candidates = append(candidates, t)
			}
		}
	}
	if len(candidates) == 0 {
		return nil, spec.NotFoundf("task %q does not exist; `wherry ps` lists the tasks", ref)
	}
	return slices.MaxFunc(candidates, func(a, b *spec.Task) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Version, b.Version))
	}), nil
}

// rank prefers tasks that serve to tasks that run, and these to those that
// are over.
func rank(t *spec.Task) int {
	switch {
	case t.Ready():
		return 3
	case t.Status.State == spec.TaskRunning:
		return 2
	case !t.Status.State.Terminal():
		return 1
	}
	return 0
}

func taskName(snap *store.Snapshot, t *spec.Task) string {
	var node string
	if n := snap.Node(t.Node); n != nil {
		node = n.Name
	}
	return spec.TaskName(t, node)
}

func (s *Server) taskGet(w http.ResponseWriter, r *http.Request) error {
	snap, err := s.snapshot(r)
	if err != nil {
		return err
	}
	t, err := findTask(snap, r.PathValue("task"))
	if err != nil {
		return err
	}
	return writeJSON(w, taskInfo(snap, t))
}

func nodeInfo(snap *store.Snapshot, n *spec.Node, leader spec.NodeID) api.NodeInfo {
	out := api.NodeInfo{
		ID: n.ID, Name: n.Name, Role: n.Role, State: n.State, Availability: n.Availability,
		Address: n.Address, Labels: n.Labels, Info: n.Info, Leader: n.ID == leader, DownSince: n.DownSince, StopPinned: n.StopPinned,
	}
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	for _, t := range snap.TasksOn(n.ID) {
		if !t.Status.State.Terminal() {
			out.Tasks++
		}
	}
	return out
}

func (s *Server) nodeList(w http.ResponseWriter, r *http.Request) error {
	snap, err := s.snapshot(r)
	if err != nil {
		return err
	}
	l := api.List[api.NodeInfo]{Index: snap.Index(), Items: []api.NodeInfo{}}
	leader := s.Peers.Leader()
	for _, n := range snap.Nodes() {
		l.Items = append(l.Items, nodeInfo(snap, n, leader))
	}
	return writeJSON(w, l)
}

func (s *Server) nodeGet(w http.ResponseWriter, r *http.Request) error {
	snap, err := s.snapshot(r)
	if err != nil {
		return err
	}
	n, err := findNode(snap, r.PathValue("node"))
	if err != nil {
		return err
	}
	return writeJSON(w, nodeInfo(snap, n, s.Peers.Leader()))
}

func (s *Server) nodeLeftovers(w http.ResponseWriter, r *http.Request) error {
	snap, err := s.snapshot(r)
	if err != nil {
		return err
	}
	n, err := findNode(snap, r.PathValue("node"))
	if err != nil {
		return err
	}
	l := api.List[api.Leftover]{Index: snap.Index(), Items: []api.Leftover{}}
	for _, t := range reconciler.Leftovers(snap, n.ID, s.Now()) {
		l.Items = append(l.Items, api.Leftover{Task: t.Task.ID, Name: t.Name, Pinned: t.Pinned, Reason: t.Reason})
	}
	return writeJSON(w, l)
}

// maxEvents is how many events one answer holds.
const maxEvents = 1000

func (s *Server) eventList(w http.ResponseWriter, r *http.Request) error {
	snap, err := s.snapshot(r)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	if v := q.Get("tail"); v != "" {
		n, err := strconv.ParseUint(v, 10, 31)
		if err != nil || q.Has("after") {
			return spec.Invalidf("tail=%q: want how many of the newest events, and no \"after\" besides", v)
		}
		return writeJSON(w, api.List[*spec.Event]{Index: snap.Index(), Items: snap.RecentEvents(min(int(n), maxEvents))})
	}
	var after uint64
	if v := q.Get("after"); v != "" {
		if after, err = strconv.ParseUint(v, 10, 64); err != nil {
			return spec.Invalidf("after=%q: want the number of an event", v)
		}
	}
	events, gone := snap.Events(after, maxEvents)
	if gone {
		http.Error(w, "the events after "+strconv.FormatUint(after, 10)+" are no longer kept: go on behind the newest, which \"tail=1\" tells", http.StatusGone)
		return nil
	}
	if events == nil {
		events = []*spec.Event{}
	}
	return writeJSON(w, api.List[*spec.Event]{Index: snap.Index(), Items: events})
}
