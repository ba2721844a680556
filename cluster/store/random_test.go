package store

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wherry.dev/spec"
)

// generator makes commands that fit a state often enough to get deep into it,
// and miss it often enough to meet every refusal.
type generator struct {
	*rand.Rand
	n *Snapshot
}

func pick[T any](g *generator, list ...T) T {
	var none T
	if len(list) == 0 {
		return none
	}
	return list[g.IntN(len(list))]
}

func (g *generator) maybe(percent int) bool { return g.IntN(100) < percent }

func (g *generator) stack() string   { return pick(g, "a", "b", "c") }
func (g *generator) service() string { return pick(g, "x", "y", "z") }
func (g *generator) node() spec.NodeID {
	return pick(g, spec.NodeID("n1"), "n2", "n3", "n4", "")
}

func (g *generator) base(stack string) *uint64 {
	switch row := g.n.Stack(stack); {
	case g.maybe(60):
		return nil
	case row != nil && g.maybe(80):
		return &row.Version
	}
	return ptr(uint64(g.IntN(3)))
}

func (g *generator) command(step int) Command {
	c := Command{Time: start.Add(time.Duration(step) * time.Second), Author: pick(g, "", "ann")}
	if g.maybe(30) {
		c.RequestID = fmt.Sprint("r", g.IntN(step+1))
	}
	switch k := g.IntN(100); {
	case step == 1 && k < 50:
		c.Bootstrap = &Bootstrap{ClusterID: "c1", Incarnation: 1, Format: Format}
	case k < 2:
		c.Bootstrap = &Bootstrap{ClusterID: "c1", Incarnation: g.n.Incarnation() + g.Uint64N(2), Format: pick(g, 0, 1, 2, 3, 4, 4)}
	case k < 22:
		c.PutStack = g.putStack()
	case k < 27:
		s := g.stack()
		c.RemoveStack = &RemoveStack{Name: s, Volumes: g.maybe(50), Base: g.base(s)}
	case k < 31:
		s := g.stack()
		c.ScaleService = &ScaleService{Stack: s, Service: g.service(), Replicas: g.IntN(5) - 1, Base: g.base(s)}
	case k < 33:
		s := g.stack()
		c.RollbackStack = &RollbackStack{Stack: s, Service: pick(g, "", "", g.service()), To: uint64(g.IntN(4)), Base: g.base(s)}
	case k < 35:
		c.SteerService = &SteerService{Stack: g.stack(), Service: g.service(), Action: pick(g, SteerPause, SteerResume, SteerRestart, SteerPromote)}
	case k < 38:
		off := g.IntN(4)
		c.PutContent = &PutContent{ID: pick(g, spec.ContentID("k1"), "k2"), Size: 4, Offset: off, Data: []byte("data")[off:][:g.IntN(5-off)]}
		if g.maybe(40) {
			c.PutContent = &PutContent{ID: pick(g, spec.ContentID("sealed:a"), "sealed:b"), Size: 1, Data: []byte("x")}
		}
	case k < 40:
		c.PutDatum = &PutDatum{Kind: spec.DatumSecret, Name: pick(g, "d", "s_own"), Content: pick(g, spec.ContentID("sealed:a"), "sealed:b"), Size: 1, Replace: g.maybe(60)}
		if g.maybe(40) {
			c.PutDatum, c.RemoveDatum = nil, &RemoveDatum{Kind: spec.DatumSecret, Name: "d"}
		}
	case k < 41:
		c.RemoveVolumes = &RemoveVolumes{Names: []string{spec.ScopedName(g.stack(), pick(g, "v", "w"))}}
		switch g.IntN(4) {
		case 0:
			c.RemoveVolumes, c.CreateVolume = nil, &CreateVolume{Name: pick(g, "vol", "a_v"), Home: pick(g, "", g.node())}
		case 1, 2:
			c.RemoveVolumes, c.MoveVolume = nil, &MoveVolume{Name: pick(g, "vol", spec.ScopedName(g.stack(), "v")), To: g.node(), Stop: g.maybe(70)}
		}
	case k < 42:
		c.CreateNetwork = &CreateNetwork{Name: pick(g, "shared", "hand"), Spec: spec.NetworkSpec{Driver: spec.DriverOverlay, Internal: g.maybe(50)}}
	case k < 43:
		c.RemoveNetwork = &RemoveNetwork{Name: pick(g, "shared", "hand", "a_net")}
	case k < 45:
		c.SetNode = &SetNode{ID: g.node(), Availability: ptr(pick(g, spec.NodeActive, spec.NodeDrain, "odd")), Labels: map[string]*string{"l": pick(g, nil, ptr("1")), "m": ptr("2")}}
	case k < 50:
		id := g.node()
		c.PutNode = &PutNode{ID: id, Name: pick(g, "host-"+string(id), "alpha"), Role: pick(g, "", spec.RoleManager, spec.RoleWorker), Key: pick(g, "", "k1", "k2")}
	case k < 51:
		c.RemoveNode = &RemoveNode{ID: g.node(), Force: g.maybe(50)}
	case k < 52:
		c.SetRole = &SetRole{ID: g.node(), Role: pick(g, spec.RoleManager, spec.RoleWorker)}
	case k < 53:
		c.SetAuthority = &SetAuthority{Authority: authority(pick(g, "r1", "r2"))}
		if a := g.n.Authority(); a != nil && g.maybe(80) {
			c.SetAuthority.Base = a.Version
		}
	case k < 56:
		c.SetNodeState = &SetNodeState{ID: g.node(), State: pick(g, spec.NodeReady, spec.NodeDown)}
	case k < 82:
		c.ApplyPlan = &ApplyPlan{Epoch: g.n.Epoch() + uint64(g.IntN(20)/19)}
		for range 1 + g.IntN(3) {
			c.ApplyPlan.Parts = append(c.ApplyPlan.Parts, g.part())
		}
	default:
		c.Reports = &Reports{}
		for range 1 + g.IntN(3) {
			c.Reports.Reports = append(c.Reports.Reports, g.report())
		}
	}
	return c
}

func (g *generator) putStack() *PutStack {
	s := spec.Stack{Name: g.stack(), Services: map[string]spec.ServiceSpec{}, Networks: map[string]spec.NetworkSpec{}, Volumes: map[string]spec.VolumeSpec{}}
	for _, name := range []string{"net", "back"} {
		if g.maybe(70) {
			s.Networks[name] = spec.NetworkSpec{Driver: pick(g, spec.DriverOverlay, spec.DriverBridge), External: g.maybe(10), Name: pick(g, "", "", "", "", "shared", "hand"), IPv6: pick(g, nil, nil, &spec.Pool{})}
		}
	}
	for _, name := range []string{"v", "w"} {
		if g.maybe(60) {
			s.Volumes[name] = spec.VolumeSpec{External: g.maybe(5), Seed: pick(g, "", "", "", spec.ContentID("k1"))}
		}
	}
	for _, name := range []string{"x", "y", "z"} {
		if g.maybe(60) {
			s.Services[name] = g.serviceSpec(&s)
		}
	}
	if g.n.Format() > 3 && g.maybe(50) {
		s.Secrets = map[string]spec.DatumSpec{"own": {Content: pick(g, spec.ContentID("sealed:a"), "sealed:b")}}
		if g.maybe(30) {
			s.Secrets["d"] = spec.DatumSpec{External: true}
		}
		for name, svc := range s.Services {
			source := pick(g, "d", "own", "none")
			svc.Template.Mounts = append(svc.Template.Mounts, spec.Mount{Type: spec.MountSecret, Source: source, Target: "/s", OnChange: pick(g, "", spec.OnChangeNone)})
			s.Services[name] = svc
		}
	}
	return &PutStack{Stack: s, Base: g.base(s.Name), KeepOthers: g.maybe(20)}
}

func (g *generator) serviceSpec(s *spec.Stack) spec.ServiceSpec {
	svc := spec.ServiceSpec{Mode: pick(g, spec.Replicated, spec.Replicated, spec.Global), Template: spec.Template{Image: pick(g, "i1", "i2")}}
	if g.maybe(40) {
		svc.Replicas = ptr(g.IntN(4))
	}
	for _, n := range []string{"net", "back"} {
		if _, ok := s.Networks[n]; ok && g.maybe(70) || g.maybe(2) {
			svc.Template.Networks = append(svc.Template.Networks, spec.Attachment{Network: n, IP: pick(g, "", "", "", "10.1.0.3")})
		}
	}
	if _, ok := s.Volumes["v"]; ok && g.maybe(50) {
		svc.Template.Mounts = append(svc.Template.Mounts, spec.Mount{Type: spec.MountVolume, Source: "v", Target: "/v"})
	}
	if g.maybe(5) {
		svc.Template.Mounts = append(svc.Template.Mounts, spec.Mount{Type: spec.MountContent, Content: "k2", Target: "/c"})
	}
	if g.maybe(30) {
		svc.Ports = []spec.Port{{Published: uint16(g.IntN(8)), Target: 80, Protocol: "tcp", Mode: spec.PublishIngress}}
	}
	return svc
}

func (g *generator) part() spec.Part {
	var p spec.Part
	svc := pick(g, g.n.Services()...)
	task := pick(g, g.n.Tasks()...)
	vol := pick(g, g.n.Volumes()...)
	net := pick(g, g.n.Networks()...)
	if svc != nil && g.maybe(70) {
		p.Reads = append(p.Reads, spec.Read{Kind: spec.KindService, Key: svc.Key(), Version: svc.Version - uint64(g.IntN(10)/9)})
	}
	if net != nil && g.maybe(20) {
		i := g.IntN(6)
		n := spec.NetworkNumbers{ID: net.ID, Subnet: fmt.Sprintf("10.%d.0.0/24", i), Gateway: fmt.Sprintf("10.%d.0.1", i), VNI: uint32(i)}
		if i := g.IntN(6); g.maybe(50) {
			n.Subnet6, n.Gateway6 = fmt.Sprintf("fd00:%d::/64", i), fmt.Sprintf("fd00:%d::1", i)
		}
		p.Networks = append(p.Networks, n)
	}
	if g.maybe(10) {
		p.Volumes = append(p.Volumes, spec.Volume{Stack: g.stack(), Name: fmt.Sprint("anon", g.IntN(20)), Anonymous: true, Service: g.service(), Slot: "1"})
	}
	if vol != nil && g.maybe(20) {
		p.Homes = append(p.Homes, spec.VolumeHome{Name: vol.Name, Node: g.node()})
	}
	if svc != nil && g.maybe(60) {
		t := spec.Task{Stack: svc.Stack, Service: svc.Name, Slot: g.IntN(4), Revision: svc.Revision, Node: g.node()}
		if net != nil && g.maybe(70) {
			t.Addresses = []spec.Address{{Network: net.ID, IP: fmt.Sprintf("10.1.0.%d/24", g.IntN(12))}}
			if g.maybe(40) {
				t.Addresses[0].IP6 = fmt.Sprintf("fd00::%d/64", g.IntN(12))
			}
		}
		if vol != nil && g.maybe(40) {
			t.Volumes = []spec.VolumeBinding{{Target: "/v", Name: vol.Name}}
		}
		if other := pick(g, g.n.Tasks()...); other != nil && g.maybe(10) {
			t.Joins, t.Node, t.Slot = other.ID, other.Node, other.Slot
		}
		p.Create = append(p.Create, t)
	}
	if task != nil && g.maybe(30) {
		p.Change = append(p.Change, spec.TaskChange{
			Task: task.ID, Desired: pick(g, "", spec.DesiredRunning, spec.DesiredDraining, spec.DesiredStopped, spec.DesiredRemoved),
			Node: pick(g, "", "", g.node()), State: pick(g, "", "", "", spec.TaskLost, spec.TaskStopped, spec.TaskAssigned), Reason: pick(g, "", "", "why"),
		})
	}
	if t := pick(g, g.n.Tasks()...); t != nil && g.maybe(20) {
		p.Remove = append(p.Remove, t.ID)
	}
	if svc != nil && g.maybe(20) {
		p.Service = &spec.ServiceChange{Stack: svc.Stack, Name: svc.Name, Update: &spec.UpdateStatus{State: pick(g, spec.UpdateUpdating, spec.UpdatePaused, spec.UpdateCompleted), Rollout: svc.Rollout}}
		if net != nil && g.maybe(50) {
			vip := spec.ServiceVIP{Network: net.ID, Address: fmt.Sprintf("10.1.0.%d", g.IntN(12))}
			if g.maybe(40) {
				vip.Address6 = fmt.Sprintf("fd00::%d", g.IntN(12))
			}
			p.Service.VIPs = &[]spec.ServiceVIP{vip}
		}
		for _, port := range svc.Spec.Ports {
			if port.Published == 0 {
				port.Published = uint16(g.IntN(8))
			}
			p.Service.Ports = append(p.Service.Ports, port)
		}
	}
	if row := pick(g, g.n.Stacks()...); row != nil && g.n.Format() >= RolloutFormat && g.maybe(20) {
		p.Stack = &spec.StackChange{Name: row.Name, Revision: row.Revision, State: pick(g, spec.RevisionCompleted, spec.RevisionCompleted, spec.RevisionPaused, spec.RevisionUpdating)}
	} else if row != nil && row.Completed != 0 && g.maybe(20) {
		p.Rollback = &spec.StackRollback{Name: row.Name, Revision: row.Revision, To: row.Completed, Service: g.service(), Why: "why"}
	}
	if net != nil && net.Gone && g.maybe(30) {
		p.RemoveNetworks = append(p.RemoveNetworks, net.ID)
	}
	if vol != nil && (vol.Anonymous || g.maybe(10)) && g.maybe(30) {
		p.RemoveVolumes = append(p.RemoveVolumes, vol.ID)
	}
	if rev := pick(g, g.n.Revisions()...); rev != nil && g.maybe(10) {
		p.RemoveRevisions = append(p.RemoveRevisions, rev.ID)
	}
	if content := pick(g, g.n.Contents()...); content != nil && g.maybe(5) {
		p.RemoveContents = append(p.RemoveContents, content.ID)
	}
	return p
}

func (g *generator) report() spec.Report {
	r := spec.Report{Node: g.node()}
	if g.maybe(10) {
		r.Info = &spec.NodeInfo{OS: "linux", Memory: int64(g.IntN(3)), MTU: pick(g, 0, 0, 0, 1500), Subnets: pick(g, "", "", "10.0.0.0/16"), Interfaces: pick(g, "", "", "eth0")}
	}
	if g.maybe(10) {
		ports := make([]spec.PortStatus, g.IntN(3))
		for i := range ports {
			ports[i] = spec.PortStatus{Port: uint16(80 + i), Protocol: "tcp", Owner: "a/web", Problem: pick(g, "", "taken")}
		}
		r.Ports = &ports
	}
	for range g.IntN(4) {
		t := pick(g, g.n.Tasks()...)
		if t == nil {
			break
		}
		if g.maybe(90) && t.Node != "" {
			r.Node = t.Node
		}
		r.Tasks = append(r.Tasks, spec.TaskReport{Task: t.ID, Status: spec.TaskStatus{
			State: pick(g, spec.TaskPreparing, spec.TaskStarting, spec.TaskRunning, spec.TaskRunning, spec.TaskFailed, spec.TaskStopped, spec.TaskComplete, spec.TaskLost), PID: g.IntN(3),
		}})
	}
	for _, v := range g.n.Volumes() {
		if v.Removing && g.maybe(50) {
			r.VolumesRemoved = append(r.VolumesRemoved, v.ID)
		}
	}
	return r
}

// Random histories: what must hold of every state, and a replica that was
// restored from a snapshot now and then has the same bytes all the time.
func TestRandomHistories(t *testing.T) {
	seeds, steps := 20, 250
	if testing.Short() || raceEnabled {
		seeds = 3
	}
	did := map[string]int{}
	for seed := range seeds {
		a, b := newStore(true), newStore(true)
		g := &generator{Rand: rand.New(rand.NewPCG(uint64(seed), 1))}
		old := a.Snapshot()
		for step := 1; step <= steps; step++ {
			g.n = a.Snapshot()
			entry, err := Encode(g.command(step))
			if err != nil {
				t.Fatal(err)
			}
			res := applyEntry(t, a, uint64(step), entry)
			if d := cmp.Diff(outcome(res), outcome(applyEntry(t, b, uint64(step), entry))); d != "" {
				t.Fatalf("seed %d, step %d: the results differ: %s", seed, step, d)
			}
			c, _ := Decode(entry)
			did[c.Kind()+outcomeClass(res)]++
			n := a.Snapshot()
			checkInvariants(t, old, n)
			if t.Failed() {
				t.Fatalf("seed %d, step %d: after %s", seed, step, entry)
			}
			if old = n; g.maybe(5) {
				b = newStore(true)
				if err := b.Restore(strings.NewReader(dump(t, n))); err != nil {
					t.Fatalf("seed %d, step %d: %v", seed, step, err)
				}
			}
			if g.maybe(20) || step == steps {
				if d := cmp.Diff(dump(t, n), dump(t, b.Snapshot())); d != "" {
					t.Fatalf("seed %d, step %d: the replicas differ: %s", seed, step, d)
				}
			}
		}
	}
	for _, kind := range []string{"put_stack", "remove_stack", "scale_service", "put_content", "set_node", "put_node", "set_node_state", "apply_plan", "reports", "bootstrap", "remove_volumes", "create_network", "remove_network", "set_role", "remove_node", "set_authority", "put_datum", "remove_datum", "rollback_stack", "steer_service"} {
		if did[kind] == 0 && seeds > 3 {
			t.Errorf("the histories never do %s successfully: %v", kind, did)
		}
	}
}

func applyEntry(t *testing.T, s *Store, index uint64, entry []byte) Result {
	t.Helper()
	c, err := Decode(entry)
	if err != nil {
		t.Fatal(err)
	}
	return s.Apply(index, c)
}

func outcome(r Result) string {
	parts := []string{fmt.Sprint(r.Index, r.Revision, r.Changed, r.Err, spec.ErrorClass(r.Err))}
	for _, err := range r.Parts {
		parts = append(parts, fmt.Sprint(err, spec.ErrorClass(err)))
	}
	return strings.Join(parts, "\n")
}

func outcomeClass(r Result) string {
	if r.Err != nil {
		return " refused"
	}
	if len(r.Parts) > 0 && !slices.Contains(r.Parts, nil) {
		return " rejected"
	}
	return ""
}

// checkInvariants looks for what no command may ever bring about.
func checkInvariants(t *testing.T, old, n *Snapshot) {
	t.Helper()
	n.verify()
	for _, svc := range n.Services() {
		for _, id := range slices.AppendSeq(svc.Spec.Template.Contents(), maps.Values(svc.Spec.Live)) {
			if c := n.Content(id); c == nil || len(c.Data) != c.Size {
				t.Errorf("service %s has no content %s", svc.Key(), id)
			}
		}
	}
	held := map[string]spec.TaskID{}
	for _, task := range n.Tasks() {
		if was := old.Task(task.ID); was != nil {
			if task.Desired.Before(was.Desired) || task.Status.State.Before(was.Status.State) || was.Node != "" && task.Node != was.Node {
				t.Errorf("task %+v became %+v", was, task)
			}
		}
		if n.Revision(task.Revision) == nil {
			t.Errorf("task %s has no revision", task.ID)
		}
		if task.Node == "" && task.Status.State != spec.TaskPending && !task.Status.State.Terminal() {
			t.Errorf("task %s is %s without a node", task.ID, task.Status.State)
		}
		if !task.Status.State.Terminal() && task.Node != "" && n.Node(task.Node) == nil {
			t.Errorf("task %s is %s on node %s, which is gone", task.ID, task.Status.State, task.Node)
		}
		for _, a := range task.Addresses {
			if !n.HoldsAddresses(task) {
				continue
			}
			if n.Network(a.Network) == nil {
				t.Errorf("task %s is on a network that is gone", task.ID)
			}
			if a.IP6 != "" && n.Format() < AddressFormat {
				t.Errorf("task %s has %+v in format %d", task.ID, a, n.Format())
			}
			for _, ip := range []string{a.IP, a.IP6} {
				key := string(a.Network) + ip
				if other := held[key]; other != "" {
					t.Errorf("tasks %s and %s have address %s", other, task.ID, key)
				}
				if ip != "" {
					held[key] = task.ID
				}
			}
		}
		for _, b := range task.Volumes {
			if v := n.Volume(b.ID); v == nil && !task.Status.State.Terminal() || v != nil && v.Name != b.Name {
				t.Errorf("task %s uses volume %+v, which is %+v", task.ID, b, v)
			}
		}
	}
	ports := map[string]string{}
	for _, s := range n.Services() {
		if s.Rollout != 0 && n.Format() < RolloutFormat {
			t.Errorf("service %+v in format %d", s, n.Format())
		}
		for _, v := range s.VIPs {
			if n.Network(v.Network) == nil || n.Format() < 3 {
				t.Errorf("service %s has %+v in format %d", s.Key(), v, n.Format())
			}
			for _, ip := range []string{v.Address + "/24", v.Address6 + "/64"} {
				key := string(v.Network) + ip
				if other := held[key]; other != "" {
					t.Errorf("service %s and %s have address %s", s.Key(), other, key)
				}
				if ip != "/64" {
					held[key] = spec.TaskID(s.Key())
				}
			}
		}
		if ip := s.Spec.Template.FixedAddress(); ip != "" && s.Spec.Mode == spec.Replicated && s.Replicas > 1 {
			t.Errorf("service %s has the address %s and %d replicas", s.Key(), ip, s.Replicas)
		}
		if n.Stack(s.Stack) == nil || n.Revision(s.Revision) == nil || spec.HashTemplate(s.Stack, s.Name, &s.Spec.Template) != s.Revision {
			t.Errorf("service %s stands on nothing", s.Key())
		}
		for _, p := range publishedPorts(s) {
			if other := ports[portName(&p)]; other != "" && other != s.Key() {
				t.Errorf("%s and %s publish %s", s.Key(), other, portName(&p))
			}
			ports[portName(&p)] = s.Key()
		}
		if was := old.Service(s.Stack, s.Name); was != nil && was != s && was.Version >= s.Version {
			t.Errorf("service %s was written without a new version", s.Key())
		}
	}
	for _, v := range n.Volumes() {
		if v.Removing && slices.ContainsFunc(v.Homes, func(id spec.NodeID) bool { return n.Node(id) == nil }) {
			t.Errorf("volume %s waits for nodes that are gone: %v", v.Name, v.Homes)
		}
	}
	nets := n.Networks()
	for i, a := range nets {
		for _, b := range nets[:i] {
			if a.Subnet != "" && a.Subnet == b.Subnet || a.Subnet6 != "" && a.Subnet6 == b.Subnet6 {
				t.Errorf("networks %+v and %+v overlap", a, b)
			}
		}
	}
	managers, names := 0, map[string]bool{}
	for _, node := range n.Nodes() {
		if names[node.Name] || node.DownSince.IsZero() != (node.State == spec.NodeReady) && n.Format() >= 2 && old.Format() >= 2 && old.Node(node.ID) != nil && old.Node(node.ID).State != node.State {
			t.Errorf("node %+v", node)
		}
		names[node.Name] = true
		if node.Role == spec.RoleManager {
			managers++
		}
	}
	if managers == 0 && len(n.Nodes()) > 0 && len(old.Nodes()) > 0 && slices.ContainsFunc(old.Nodes(), func(o *spec.Node) bool { return o.Role == spec.RoleManager }) {
		t.Error("the last manager is gone")
	}
	for _, row := range n.Stacks() {
		rev := n.StackRevision(row.Name, row.Revision)
		if rev == nil || len(rev.Spec.Services) != len(n.ServicesOf(row.Name)) || len(n.StackRevisions(row.Name)) > spec.KeepStackRevisions+1 {
			t.Errorf("stack %+v and its revisions and services are at odds", row)
			continue
		}
		if done := n.StackRevision(row.Name, row.Completed); row.Completed != 0 && (done == nil || done.State != spec.RevisionCompleted) {
			t.Errorf("stack %s goes back to revision %d: %+v", row.Name, row.Completed, done)
		}
		for short, v := range rev.Spec.Volumes {
			if n.VolumeNamed(v.ClusterName(row.Name, short)) == nil {
				t.Errorf("stack %s declares volume %s, which is gone", row.Name, short)
			}
		}
		for short, net := range rev.Spec.Networks {
			if x := n.NetworkNamed(net.ClusterName(row.Name, short)); !net.External && (x == nil || x.Gone) {
				t.Errorf("stack %s declares network %s, which is gone", row.Name, short)
			}
		}
		for _, id := range stackContents(&rev.Spec) {
			if c := n.Content(id); c == nil || len(c.Data) != c.Size {
				t.Errorf("stack %s needs content %s", row.Name, id)
			}
		}
	}
	if old.meta.Events > n.meta.Events || old.Incarnation() > n.Incarnation() || old.Epoch() > n.Epoch() && old.Incarnation() == n.Incarnation() {
		t.Errorf("%+v became %+v", old.meta, n.meta)
	}
	events, gone := n.Events(old.meta.Events, 0)
	if gone || uint64(len(events)) != n.meta.Events-old.meta.Events {
		t.Errorf("%d events, gone %t", len(events), gone)
	}
}

// FuzzApply feeds arbitrary entries to two replicas. Whatever decodes must
// neither panic nor make them differ, and what is refused changes no object.
func FuzzApply(f *testing.F) {
	h := newHarness(f)
	h.must(putStack(web("shop", 8080)))
	h.must(Command{PutContent: &PutContent{ID: "k1", Size: 2, Data: []byte("x")}})
	h.running("n1", 1, "10.1.0.2/24")
	base := dump(f, h.s.Snapshot())
	index := h.index
	g := &generator{Rand: rand.New(rand.NewPCG(1, 2)), n: h.s.Snapshot()}
	for i := range 60 {
		b, err := Encode(g.command(i))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	for _, s := range []string{
		`{"put_stack":{"stack":{"name":"\ud800","services":null}}}`,
		`{"time":"9999-12-31T23:59:59.999999999-23:59","put_stack":{"stack":{"name":"a"}}}`,
		`{"reports":{"reports":[{"node":"n1","tasks":[{"task":"1-7","status":{"state":"running","since":"0000-01-01T00:00:00+23:59"}}]}]}}`,
		`{"apply_plan":{"epoch":1,"parts":[{"change":[{"task":"1-7","volumes":[{}]}],"service":{}}]}}`,
	} {
		f.Add([]byte("\x01" + s))
	}
	f.Fuzz(func(t *testing.T, entry []byte) {
		a, b := newStore(true), newStore(true)
		for _, s := range []*Store{a, b} {
			if err := s.Restore(strings.NewReader(base)); err != nil {
				t.Fatal(err)
			}
		}
		var last Result
		for i := range uint64(2) { // what applies twice meets its own objects
			c, err := Decode(entry)
			if err != nil {
				return
			}
			if again, err := Encode(c); err != nil {
				t.Fatalf("what was decoded does not encode: %v", err)
			} else if d, err := Decode(again); err != nil {
				t.Fatalf("%s: %v", again, err)
			} else if e, _ := Encode(d); !bytes.Equal(again, e) {
				t.Fatalf("%s is encoded as %s", again, e)
			}
			before := objects(t, a.Snapshot())
			last = a.Apply(index+1+i, c)
			if d := cmp.Diff(outcome(last), outcome(applyEntry(t, b, index+1+i, entry))); d != "" {
				t.Fatal(d)
			}
			if after := objects(t, a.Snapshot()); last.Err != nil && after != before {
				t.Fatalf("%v changed the state: %s", last.Err, cmp.Diff(before, after))
			}
		}
		state := dump(t, a.Snapshot())
		if d := cmp.Diff(state, dump(t, b.Snapshot())); d != "" {
			t.Fatal(d)
		}
		if err := b.Restore(strings.NewReader(state)); err != nil {
			t.Fatalf("restore: %v\n%s", err, state)
		}
		if d := cmp.Diff(state, dump(t, b.Snapshot())); d != "" {
			t.Fatalf("restore and persist: %s", d)
		}
	})
}
