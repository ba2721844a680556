package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"testing"
	"time"

	"wherry.dev/cluster/store"
	"wherry.dev/reconciler"
	"wherry.dev/spec"
)

// crowd is a state of many nodes and tasks, without a server.
type crowd struct {
	tb    testing.TB
	store *store.Store
	index uint64
	nodes []spec.NodeID
}

func newCrowd(tb testing.TB, nodes int) *crowd {
	c := &crowd{tb: tb, store: store.New()}
	c.apply(store.Command{Bootstrap: &store.Bootstrap{ClusterID: "c", Incarnation: 1, Format: store.Format}})
	c.apply(store.Command{SetAuthority: &store.SetAuthority{Authority: spec.Authority{Signer: "a", Roots: []spec.Root{{Hash: "a", Certificate: "cert", Key: "secret"}}}}})
	for i := range nodes {
		c.nodes = append(c.nodes, spec.NodeID(fmt.Sprintf("%016x", i+1)))
		c.join(i, "10.0.0.1:4477")
	}
	return c
}

func (c *crowd) join(i int, address string) {
	role := spec.RoleWorker
	if i < 3 {
		role = spec.RoleManager
	}
	c.apply(store.Command{PutNode: &store.PutNode{ID: c.nodes[i], Name: fmt.Sprint("host-", i), Role: role, Address: address, Key: "k"}})
}

func (c *crowd) apply(cmd store.Command) store.Result {
	c.index++
	cmd.Time = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).Add(time.Duration(c.index) * time.Second)
	return c.store.Apply(c.index, cmd)
}

// put writes a stack of one service, on a network of its own and one port. Some
// have networks that are local to each host, or no virtual address.
func (c *crowd) put(name string, replicas int, port uint16, volume bool) {
	svc := spec.ServiceSpec{Mode: spec.Replicated, Replicas: &replicas,
		Template: spec.Template{Image: "nginx@sha256:aa", Networks: []spec.Attachment{{Network: "default", Aliases: []string{"alias-" + name}}}, StopGrace: spec.Duration(time.Second),
			Restart: spec.Restart{Condition: spec.RestartAny}},
		Ports: []spec.Port{{Published: port, Target: 80, Protocol: "tcp", Mode: spec.PublishIngress}}}
	driver := spec.DriverOverlay
	switch name {
	case "s1":
		driver = spec.DriverBridge
	case "s2":
		svc.EndpointMode = spec.EndpointDNSRR
	}
	st := spec.Stack{Name: name, Networks: map[string]spec.NetworkSpec{"default": {Driver: driver}}, Services: map[string]spec.ServiceSpec{"web": svc}}
	if volume {
		svc.Template.Mounts = []spec.Mount{{Type: spec.MountVolume, Source: "data", Target: "/data"}}
		st.Services["web"], st.Volumes = svc, map[string]spec.VolumeSpec{"data": {}}
	}
	if port == 0 {
		svc.Ports = nil
		st.Services["web"] = svc
	}
	if res := c.apply(store.Command{PutStack: &store.PutStack{Stack: st}}); res.Err != nil && !errors.Is(res.Err, spec.ErrConflict) {
		c.tb.Fatal(res.Err)
	}
}

// plan lets the reconciler act once, and reports whether it did.
func (c *crowd) plan() bool {
	p := reconciler.Plan(c.store.Snapshot(), time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).Add(time.Duration(c.index)*time.Second))
	if p.Empty() {
		return false
	}
	c.apply(store.Command{ApplyPlan: &store.ApplyPlan{Epoch: 1, Parts: p.Parts}})
	return true
}

// settle lets the reconciler act until it has nothing left to do.
func (c *crowd) settle() {
	for range 100 {
		if !c.plan() {
			return
		}
	}
	c.tb.Fatal("the reconciler does not settle")
}

func (c *crowd) report(t *spec.Task, s spec.TaskStatus) {
	c.apply(store.Command{Reports: &store.Reports{Reports: []spec.Report{{Node: t.Node, Tasks: []spec.TaskReport{{Task: t.ID, Status: s}}}}}})
}

// documents are what a node gets, without clocks, and its networks.
func documents(tb testing.TB, s *store.Snapshot, node spec.NodeID) ([]byte, []spec.NetworkID) {
	info, _ := clusterInfo(s, node)
	wanted := reconciler.Wanted(s, node)
	wanted.Clock = spec.Clock{}
	nets := reconciler.HostNetworks(s, node)
	var ids []spec.NetworkID
	for i := range nets {
		nets[i].Clock = spec.Clock{}
		ids = append(ids, nets[i].Network.ID)
	}
	b, err := json.Marshal([]any{info, nets, wanted})
	if err != nil {
		tb.Fatal(err)
	}
	return b, ids
}

// TestOutline: whatever happens, a session that is told that nothing changed
// misses nothing.
func TestOutline(t *testing.T) {
	for seed := range uint64(3) {
		rng := rand.New(rand.NewPCG(seed, 1))
		c := newCrowd(t, 5)
		step := func() {
			tasks := c.store.Snapshot().Tasks()
			node := rng.IntN(len(c.nodes))
			switch rng.IntN(14) {
			case 0:
				i := rng.IntN(6)
				c.put(fmt.Sprint("s", i), 1+rng.IntN(4), []uint16{0, uint16(8000 + i)}[rng.IntN(2)], i%3 == 0)
			case 1:
				if rng.IntN(4) == 0 {
					c.apply(store.Command{RemoveStack: &store.RemoveStack{Name: fmt.Sprint("s", rng.IntN(6)), Volumes: true}})
				}
			case 2:
				c.apply(store.Command{SetNodeState: &store.SetNodeState{ID: c.nodes[node], State: []spec.NodeState{spec.NodeDown, spec.NodeReady}[rng.IntN(2)]}})
			case 3:
				c.apply(store.Command{SetNode: &store.SetNode{ID: c.nodes[node], Availability: &[]spec.Availability{spec.NodeActive, spec.NodeDrain}[rng.IntN(2)]}})
			case 4:
				c.apply(store.Command{SetRole: &store.SetRole{ID: c.nodes[node], Role: []spec.NodeRole{spec.RoleManager, spec.RoleWorker}[rng.IntN(2)]}})
			case 5:
				if rng.IntN(3) == 0 {
					c.apply(store.Command{RemoveNode: &store.RemoveNode{ID: c.nodes[node], Force: true}})
				} else {
					c.join(node, fmt.Sprintf("10.0.0.%d:4477", rng.IntN(3)))
				}
			case 6:
				c.apply(store.Command{Reports: &store.Reports{Reports: []spec.Report{{Node: c.nodes[node], Info: &spec.NodeInfo{OS: fmt.Sprint(c.index), MTU: 1400 + 100*rng.IntN(3), Format: 2 + rng.IntN(2)}}}}})
			case 7:
				for _, v := range c.store.Snapshot().Volumes() {
					if rng.IntN(3) == 0 {
						c.apply(store.Command{MoveVolume: &store.MoveVolume{Name: v.Name, To: c.nodes[node], Stop: true}})
					}
					if v.Move != nil && rng.IntN(3) == 0 {
						c.apply(store.Command{Reports: &store.Reports{Reports: []spec.Report{{Node: v.Move.To, VolumesFetched: []spec.VolumeFetched{{Volume: v.ID, Move: v.Move.ID}}}}}})
					}
					c.apply(store.Command{Reports: &store.Reports{Reports: []spec.Report{{Node: c.nodes[node], VolumesRemoved: []spec.VolumeID{v.ID}}}}})
				}
			case 8:
				c.plan()
			default:
				if len(tasks) == 0 {
					c.plan()
					return
				}
				states := []spec.TaskState{spec.TaskPreparing, spec.TaskStarting, spec.TaskRunning, spec.TaskRunning, spec.TaskRunning, spec.TaskRunning, spec.TaskComplete, spec.TaskStopped}
				health := []spec.HealthState{spec.HealthNone, spec.HealthStarting, spec.HealthHealthy}
				c.report(tasks[rng.IntN(len(tasks))], spec.TaskStatus{State: states[rng.IntN(len(states))], Health: health[rng.IntN(len(health))], PID: rng.IntN(100)})
			}
		}
		type view struct {
			docs []byte
			nets []spec.NetworkID
			turn uint64
		}
		var o outline
		views := map[spec.NodeID]*view{}
		skipped, made, needed := 0, 0, 0
		for range 250 {
			step()
			for _, id := range c.nodes {
				if rng.IntN(3) == 0 {
					continue // it sleeps
				}
				v := views[id]
				if v == nil {
					v = &view{}
					views[id] = v
				}
				snap, turn := o.look(c.store)
				docs, nets := documents(t, snap, id)
				same := bytes.Equal(docs, v.docs)
				if o.changed(id, v.nets, v.turn) {
					*v = view{docs, nets, turn}
					if made++; !same {
						needed++
					}
					continue
				}
				if skipped++; !same {
					t.Fatalf("seed %d, entry %d: node %s was not told of a change\nfrom %s\nto   %s", seed, c.index, id, v.docs, docs)
				}
			}
		}
		if skipped < needed || needed < 40 {
			t.Errorf("seed %d: %d looks without work, %d with, of which %d were needed", seed, skipped, made, needed)
		}
	}
}

// TestOutlineIdle: what is no concern of a node makes it no work.
func TestOutlineIdle(t *testing.T) {
	c := newCrowd(t, 4)
	c.put("a", 4, 0, false)
	c.put("b", 1, 0, false)
	c.settle()
	snap := c.store.Snapshot()
	b := snap.TasksOf("b", "web")[0]
	node := c.nodes[slices.IndexFunc(c.nodes, func(id spec.NodeID) bool { return id != b.Node })]
	var a, other *spec.Task
	for _, x := range snap.TasksOf("a", "web") {
		switch x.Node {
		case node:
			a = x
		default:
			other = x
		}
	}
	if a == nil || other == nil {
		t.Fatal("the tasks of a are not spread")
	}
	var o outline
	_, turn := o.look(c.store)
	_, nets := documents(t, snap, node)
	running := spec.TaskStatus{State: spec.TaskRunning}
	for _, s := range []struct {
		name string
		do   func()
		want bool
	}{
		{"the task of another network runs", func() { c.report(b, running) }, false},
		{"another node tells of itself", func() {
			c.apply(store.Command{Reports: &store.Reports{Reports: []spec.Report{{Node: b.Node, Info: &spec.NodeInfo{OS: "linux"}}}}})
		}, false},
		{"a content", func() {
			c.apply(store.Command{PutContent: &store.PutContent{ID: "hmac:1", Size: 1, Data: []byte("x")}})
		}, false},
		{"a task of its network elsewhere is on its way", func() { c.report(other, spec.TaskStatus{State: spec.TaskPreparing}) }, false},
		{"a task of its network elsewhere runs", func() { c.report(other, running) }, true},
		{"the same with another PID", func() { c.report(other, spec.TaskStatus{State: spec.TaskRunning, PID: 2}) }, false},
		{"the same is unwell", func() {
			c.report(other, spec.TaskStatus{State: spec.TaskRunning, Health: spec.HealthUnhealthy})
		}, true},
		{"its own task ended", func() { c.report(a, spec.TaskStatus{State: spec.TaskFailed}) }, true},
		{"another node tells its MTU", func() {
			c.apply(store.Command{Reports: &store.Reports{Reports: []spec.Report{{Node: b.Node, Info: &spec.NodeInfo{OS: "linux", MTU: 1400}}}}})
		}, true},
		{"and something else", func() {
			c.apply(store.Command{Reports: &store.Reports{Reports: []spec.Report{{Node: b.Node, Info: &spec.NodeInfo{OS: "linux", MTU: 1400, Boot: "x"}}}}})
		}, false},
		{"another node has another address", func() { c.join(slices.Index(c.nodes, b.Node), "10.0.0.9:4477") }, true},
		{"another node is down", func() {
			c.apply(store.Command{SetNodeState: &store.SetNodeState{ID: b.Node, State: spec.NodeDown}})
		}, true},
	} {
		s.do()
		_, next := o.look(c.store)
		if got := o.changed(node, nets, turn); got != s.want || next == turn {
			t.Errorf("%s: changed is %t, want %t", s.name, got, s.want)
		}
		turn = next
	}
}

// TestOutlineHosts: a session is told of the ends of its networks on other
// nodes, and of no others.
func TestOutlineHosts(t *testing.T) {
	c := newCrowd(t, 4)
	for i := range c.nodes {
		c.join(i, fmt.Sprintf("10.0.0.%d:4477", i+1))
	}
	c.put("a", 4, 0, false)
	c.put("b", 2, 0, false)
	c.settle()
	snap := c.store.Snapshot()
	// A node that has a task of a and none of b.
	node := c.nodes[slices.IndexFunc(c.nodes, func(id spec.NodeID) bool {
		return !slices.ContainsFunc(snap.TasksOf("b", "web"), func(t *spec.Task) bool { return t.Node == id })
	})]
	var o outline
	look := func() (changed bool, nets []spec.HostNetwork) {
		t.Helper()
		_, turn := o.look(c.store)
		_, ids := documents(t, c.store.Snapshot(), node)
		return o.changed(node, ids, turn-1), reconciler.HostNetworks(c.store.Snapshot(), node)
	}
	_, nets := look()
	if len(nets) != 1 || len(nets[0].Remote) != 3 || len(nets[0].Hosts) != 3 {
		t.Fatalf("the node has %+v", nets)
	}
	end := func(stack string) *spec.Task {
		tasks := c.store.Snapshot().TasksOf(stack, "web")
		return tasks[slices.IndexFunc(tasks, func(t *spec.Task) bool { return t.Node != node && !t.Status.State.Terminal() })]
	}
	c.report(end("b"), spec.TaskStatus{State: spec.TaskComplete})
	if changed, _ := look(); changed {
		t.Error("told of the end of a task on a network of others")
	}
	c.report(end("a"), spec.TaskStatus{State: spec.TaskComplete})
	if changed, nets := look(); !changed || len(nets[0].Remote) != 2 || len(nets[0].Hosts) != 2 {
		t.Errorf("told: %t, and now it has %+v", changed, nets)
	}
	c.plan() // which puts another task in its place, and back off for b
	if changed, nets := look(); !changed || len(nets[0].Remote) < 2 {
		t.Errorf("told: %t, and now it has %+v", changed, nets)
	}
}

// BenchmarkSessions: what a report of one node costs a manager with sessions of
// 50 nodes and 1,000 tasks. "all" is without an outline. The budget with one: 1 ms for
// a report that makes no document another, so that 200 per second take a fifth
// of a core.
func BenchmarkSessions(b *testing.B) {
	c := newCrowd(b, 50)
	for i := range 10 {
		c.put(fmt.Sprint("s", i), 100, uint16(8000+i), false)
	}
	c.settle()
	for _, t := range c.store.Snapshot().Tasks() {
		c.report(t, spec.TaskStatus{State: spec.TaskRunning})
	}
	c.settle()
	tasks := slices.DeleteFunc(c.store.Snapshot().Tasks(), func(t *spec.Task) bool { return t.Status.State != spec.TaskRunning })
	if len(tasks) != 1000 {
		b.Fatalf("%d tasks run", len(tasks))
	}
	for _, bench := range []struct {
		name   string
		health func(i int) spec.HealthState
	}{
		{"report=pid", func(int) spec.HealthState { return spec.HealthHealthy }},
		{"report=health", func(i int) spec.HealthState {
			return []spec.HealthState{spec.HealthHealthy, spec.HealthUnhealthy}[i%2]
		}},
	} {
		for _, how := range []string{"all", "outline"} {
			b.Run(bench.name+"/"+how, func(b *testing.B) {
				var o outline
				var sessions []*sessionWriter
				for range c.nodes {
					sessions = append(sessions, &sessionWriter{enc: json.NewEncoder(io.Discard), flush: http.NewResponseController(noFlush{}), sent: map[string][]byte{}})
				}
				look := func() {
					for i, s := range sessions {
						snap, turn := o.look(c.store)
						if how == "outline" && !o.changed(c.nodes[i], s.networks, s.turn) {
							continue
						}
						if _, err := s.send(snap, c.nodes[i]); err != nil && !errors.Is(err, http.ErrNotSupported) {
							b.Fatal(err)
						}
						s.turn = turn
					}
				}
				look()
				for i := 0; b.Loop(); i++ {
					c.report(tasks[i/2%len(tasks)], spec.TaskStatus{State: spec.TaskRunning, PID: i + 1, Health: bench.health(i)})
					look()
				}
			})
		}
	}
}

type noFlush struct{ http.ResponseWriter }
