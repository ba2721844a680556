package store

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wherry.dev/spec"
)

// planned returns a harness with the stack shop, its network numbered.
func planned(t *testing.T) *harness {
	h := newHarness(t)
	h.must(putStack(web("shop", 8080)))
	h.mustPart(spec.Part{Networks: []spec.NetworkNumbers{{
		ID: h.s.Snapshot().NetworkNamed("shop_default").ID, Subnet: "10.1.0.0/24", Gateway: "10.1.0.1", VNI: 7,
	}}})
	return h
}

func TestCreateTask(t *testing.T) {
	h := planned(t)
	task := h.task("n1", 1, "10.1.0.2/24")
	task.Volumes = []spec.VolumeBinding{{Target: "/data", Name: "shop_data"}}
	waiting := h.task("", 2, "")
	waiting.Status.Reason = "no node fits"
	h.mustPart(spec.Part{
		Reads:  []spec.Read{{Kind: spec.KindService, Key: "shop/web", Version: h.s.Snapshot().Service("shop", "web").Version}},
		Homes:  []spec.VolumeHome{{Name: "shop_data", Node: "n1"}},
		Create: []spec.Task{task, waiting},
	})
	n := h.s.Snapshot()
	all := n.TasksOf("shop", "web")
	if len(all) != 2 {
		t.Fatalf("%d tasks", len(all))
	}
	a, b := all[0], all[1]
	now := start.Add(time.Duration(h.index) * time.Second)
	want := &spec.Task{
		ID: "1-8", Stack: "shop", Service: "web", Slot: 1, Revision: task.Revision, Node: "n1", Desired: spec.DesiredRunning,
		Addresses: task.Addresses, Volumes: []spec.VolumeBinding{{Target: "/data", Name: "shop_data", ID: n.VolumeNamed("shop_data").ID}},
		Created: now, Status: spec.TaskStatus{State: spec.TaskAssigned, Since: now}, Version: h.index,
	}
	want.ID = a.ID
	if d := cmp.Diff(want, a); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if b.Status.State != spec.TaskPending || b.Status.Reason != "no node fits" || b.Desired != spec.DesiredRunning {
		t.Errorf("waiting task %+v", b)
	}
	if n.Service("shop", "web").Version != h.index || n.VolumeNamed("shop_data").Version != h.index {
		t.Error("versions were not raised")
	}
	if d := cmp.Diff([]*spec.Task{a}, n.TasksOn("n1")); d != "" || len(n.TasksOn("n2"))+len(n.TasksOn("")) != 0 {
		t.Errorf("tasks on nodes: %s", d)
	}
	if d := cmp.Diff([]spec.NodeID{"n1"}, n.VolumeNamed("shop_data").Homes); d != "" {
		t.Error(d)
	}
}

func TestReads(t *testing.T) {
	h := planned(t)
	n := h.s.Snapshot()
	h.must(Command{PutContent: &PutContent{ID: "blob", Size: 1, Data: []byte("x")}})
	good := []spec.Read{
		{Kind: spec.KindService, Key: "shop/web", Version: n.Service("shop", "web").Version},
		{Kind: spec.KindService, Key: "shop/none"},
		{Kind: spec.KindService, Key: "nonsense"},
		{Kind: spec.KindNode, Key: "n1", Version: n.Node("n1").Version},
		{Kind: spec.KindNode, Key: "none"},
		{Kind: spec.KindNetwork, Key: string(n.NetworkNamed("shop_default").ID), Version: n.NetworkNamed("shop_default").Version},
		{Kind: spec.KindNetwork, Key: "9-9"},
		{Kind: spec.KindVolume, Key: "shop_data", Version: n.VolumeNamed("shop_data").Version},
		{Kind: spec.KindVolume, Key: "none"},
		{Kind: spec.KindContent, Key: "blob", Version: h.index},
		{Kind: spec.KindContent, Key: "none"},
	}
	h.mustPart(spec.Part{Reads: good})
	for _, read := range good {
		bad := read
		bad.Version++
		want := "moved from version"
		if read.Version == 0 {
			want = "is gone"
		}
		wantError(t, h.part(spec.Part{Reads: []spec.Read{read, bad}}), spec.ErrConflict, string(read.Kind), want)
		if read.Version != 0 {
			bad.Version = 0
			wantError(t, h.part(spec.Part{Reads: []spec.Read{bad}}), spec.ErrConflict, read.Key, "exists by now")
		}
	}
	wantError(t, h.part(spec.Part{Reads: []spec.Read{{Kind: "mood"}}}), spec.ErrInvalid, "mood")
}

func TestPartsStandAlone(t *testing.T) {
	h := planned(t)
	res := h.apply(Command{ApplyPlan: &ApplyPlan{Epoch: 3, Parts: []spec.Part{
		{Create: []spec.Task{h.task("n1", 1, "10.1.0.2/24")}},
		{Create: []spec.Task{h.task("n2", 2, "10.1.0.3/24"), h.task("n2", 3, "10.1.0.2/24")}},
		{Create: []spec.Task{h.task("n2", 4, "10.1.0.3/24")}},
	}}})
	if res.Err != nil || !res.Changed || res.Parts[0] != nil || res.Parts[2] != nil {
		t.Fatalf("result %+v", res)
	}
	wantError(t, res.Parts[1], spec.ErrConflict, "address 10.1.0.2/24", "shop_default", "shop.web.1")
	var slots []int
	for _, task := range h.s.Snapshot().Tasks() {
		slots = append(slots, task.Slot)
	}
	if d := cmp.Diff([]int{1, 4}, slots); d != "" {
		t.Error(d)
	}
}

func TestEpoch(t *testing.T) {
	h := planned(t)
	apply := func(epoch uint64) Result {
		return h.apply(Command{ApplyPlan: &ApplyPlan{Epoch: epoch, Parts: []spec.Part{{Create: []spec.Task{h.task("n1", 1, "")}}, {}}}})
	}
	apply(5)
	res := apply(4)
	wantError(t, res.Err, spec.ErrConflict, "term 4", "term 5")
	for _, err := range res.Parts {
		wantError(t, err, spec.ErrConflict, "term 4")
	}
	if len(res.Parts) != 2 || h.s.Snapshot().Epoch() != 5 || len(h.s.Snapshot().Tasks()) != 1 {
		t.Errorf("result %+v, epoch %d", res, h.s.Snapshot().Epoch())
	}
	if apply(5).Parts[0] != nil || apply(6).Parts[0] != nil {
		t.Error("the leader's own plans are refused")
	}
	// A recovered cluster counts terms from the start.
	h.must(Command{Bootstrap: &Bootstrap{ClusterID: "c1", Incarnation: 2}})
	if apply(1).Parts[0] != nil {
		t.Error("the first plan after a recovery is refused")
	}
}

func TestCreateRefuses(t *testing.T) {
	h := planned(t)
	h.must(putStack(web("other", 1)))
	h.mustPart(spec.Part{Homes: []spec.VolumeHome{{Name: "shop_data", Node: "n1"}}, Create: []spec.Task{h.task("n1", 1, "10.1.0.2/24")}})
	h.mustPart(spec.Part{Volumes: []spec.Volume{{Stack: "shop", Name: "anon", Anonymous: true, Homes: []spec.NodeID{"n1"}}}})
	h.mustPart(spec.Part{RemoveVolumes: []spec.VolumeID{h.s.Snapshot().VolumeNamed("anon").ID}})
	for _, tc := range []struct {
		name  string
		edit  func(*spec.Task)
		class error
		want  string
	}{
		{"service", func(t *spec.Task) { t.Service = "x" }, spec.ErrConflict, "service shop/x is gone"},
		{"revision", func(t *spec.Task) { t.Revision = "x" }, spec.ErrConflict, `no revision "x"`},
		{"foreign revision", func(t *spec.Task) { t.Stack = "other" }, spec.ErrConflict, "other/web has no revision"},
		{"slot", func(t *spec.Task) { t.Slot = -1 }, spec.ErrInvalid, "slot -1"},
		{"desired", func(t *spec.Task) { t.Desired = "x" }, spec.ErrInvalid, `"x"`},
		{"state", func(t *spec.Task) { t.Status.State = spec.TaskRunning }, spec.ErrInvalid, `"running"`},
		{"assigned to none", func(t *spec.Task) { t.Node, t.Status.State = "", spec.TaskAssigned }, spec.ErrInvalid, "no node"},
		{"node", func(t *spec.Task) { t.Node = "x" }, spec.ErrConflict, `no node "x"`},
		{"network", func(t *spec.Task) { t.Addresses = []spec.Address{{Network: "7-7", IP: "10.1.0.9/24"}} }, spec.ErrConflict, `no network "7-7"`},
		{"address", func(t *spec.Task) { t.Addresses[0].IP = "10.1.0.9" }, spec.ErrInvalid, `"10.1.0.9"`},
		{"address in use", func(t *spec.Task) { t.Addresses[0].IP = "10.1.0.2/24" }, spec.ErrConflict, "held by task shop.web.1"},
		{"address in other words", func(t *spec.Task) { t.Addresses[0].IP = "10.1.0.2/16" }, spec.ErrConflict, "held by task shop.web.1"},
		{"volume", func(t *spec.Task) { t.Volumes = []spec.VolumeBinding{{Name: "x"}} }, spec.ErrConflict, `no volume "x"`},
		{"removed volume", func(t *spec.Task) { t.Volumes = []spec.VolumeBinding{{Name: "anon"}} }, spec.ErrConflict, "anon is being removed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h.TB = t
			task := h.task("n1", 2, "10.1.0.3/24")
			tc.edit(&task)
			wantError(t, h.part(spec.Part{Create: []spec.Task{task}}), tc.class, tc.want)
		})
	}
}

func TestPartRefuses(t *testing.T) {
	h := planned(t)
	h.must(putStack(web("other", 1)))
	h.must(putStack(web("gone", 2)))
	h.must(Command{RemoveStack: &RemoveStack{Name: "gone", Volumes: true}})
	h.must(Command{PutContent: &PutContent{ID: "seed", Size: 1, Data: []byte("x")}})
	s := web("shop", 8080)
	s.Volumes["seeded"] = spec.VolumeSpec{Seed: "seed"}
	h.must(putStack(s))
	id := h.running("n1", 1, "10.1.0.2/24")
	h.mustPart(spec.Part{Volumes: []spec.Volume{{Stack: "shop", Name: "anon", Anonymous: true}}})
	user := h.task("n1", 2, "")
	user.Volumes = []spec.VolumeBinding{{Target: "/a", Name: "anon"}}
	h.mustPart(spec.Part{Create: []spec.Task{user}})
	n := h.s.Snapshot()
	shop, other := n.NetworkNamed("shop_default").ID, n.NetworkNamed("other_default").ID
	task := n.Task(id)
	numbers := func(subnet, gateway string, vni uint32) spec.Part {
		return spec.Part{Networks: []spec.NetworkNumbers{{ID: other, Subnet: subnet, Gateway: gateway, VNI: vni}}}
	}
	for _, tc := range []struct {
		name  string
		part  spec.Part
		class error
		want  string
	}{
		{"network", spec.Part{Networks: []spec.NetworkNumbers{{ID: "9-9"}}}, spec.ErrConflict, "9-9 is gone"},
		{"subnet", numbers("x", "10.2.0.1", 8), spec.ErrInvalid, `subnet "x"`},
		{"gateway", numbers("10.2.0.0/24", "x", 8), spec.ErrInvalid, `gateway "x"`},
		{"overlap", numbers("10.1.0.0/16", "10.1.0.1", 8), spec.ErrConflict, "overlaps 10.1.0.0/24 of network shop_default"},
		{"vni", numbers("10.2.0.0/24", "10.2.0.1", 7), spec.ErrConflict, "VNI 7 is that of network shop_default"},
		{"volume exists", spec.Part{Volumes: []spec.Volume{{Stack: "shop", Name: "shop_data"}}}, spec.ErrConflict, "shop_data exists"},
		{"volume name", spec.Part{Volumes: []spec.Volume{{Stack: "shop", Name: "a/b"}}}, spec.ErrInvalid, "a/b"},
		{"volume stack", spec.Part{Volumes: []spec.Volume{{Name: "a"}}}, spec.ErrInvalid, "stack"},
		{"volume home", spec.Part{Volumes: []spec.Volume{{Stack: "shop", Name: "a", Homes: []spec.NodeID{"x"}}}}, spec.ErrConflict, `no node "x"`},
		{"home of none", spec.Part{Homes: []spec.VolumeHome{{Name: "x", Node: "n1"}}}, spec.ErrConflict, `no volume "x"`},
		{"home nowhere", spec.Part{Homes: []spec.VolumeHome{{Name: "shop_data", Node: "x"}}}, spec.ErrConflict, `no node "x"`},
		{"change of none", spec.Part{Change: []spec.TaskChange{{Task: "9-9"}}}, spec.ErrConflict, "9-9 is gone"},
		{"remove none", spec.Part{Remove: []spec.TaskID{"9-9"}}, spec.ErrConflict, "9-9 is gone"},
		{"remove running", spec.Part{Remove: []spec.TaskID{id}}, spec.ErrConflict, "is running"},
		{"service", spec.Part{Service: &spec.ServiceChange{Stack: "x", Name: "y"}}, spec.ErrConflict, "x/y is gone"},
		{"network unknown", spec.Part{RemoveNetworks: []spec.NetworkID{"9-9"}}, spec.ErrConflict, "9-9 is gone"},
		{"network declared", spec.Part{RemoveNetworks: []spec.NetworkID{shop}}, spec.ErrConflict, "shop_default is declared by stack shop"},
		{"volume unknown", spec.Part{RemoveVolumes: []spec.VolumeID{"9-9"}}, spec.ErrConflict, "9-9 is gone"},
		{"named volume", spec.Part{RemoveVolumes: []spec.VolumeID{n.VolumeNamed("shop_data").ID}}, spec.ErrConflict, "shop_data is not anonymous"},
		{"volume in use", spec.Part{RemoveVolumes: []spec.VolumeID{n.VolumeNamed("anon").ID}}, spec.ErrConflict, "used by task shop.web.2"},
		{"revision unknown", spec.Part{RemoveRevisions: []spec.RevisionID{"x"}}, spec.ErrConflict, "x is gone"},
		{"newest revision", spec.Part{RemoveRevisions: []spec.RevisionID{task.Revision}}, spec.ErrConflict, "newest of service shop/web"},
		{"content unknown", spec.Part{RemoveContents: []spec.ContentID{"x"}}, spec.ErrConflict, "x is gone"},
		{"content in use", spec.Part{RemoveContents: []spec.ContentID{"seed"}}, spec.ErrConflict, "seed is in use"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h.TB = t
			wantError(t, h.part(tc.part), tc.class, tc.want)
		})
	}

	// A network with a task, and a revision that only a task has.
	h.must(putStack(edit(s, "web", func(s *spec.ServiceSpec) { s.Template.User = "1000" })))
	wantError(t, h.part(spec.Part{RemoveRevisions: []spec.RevisionID{task.Revision}}), spec.ErrConflict, "that of task shop.web.1")
	h.must(Command{RemoveStack: &RemoveStack{Name: "shop"}})
	wantError(t, h.part(spec.Part{RemoveNetworks: []spec.NetworkID{shop}}), spec.ErrConflict, "has task shop.web.1")
}

func TestTaskChanges(t *testing.T) {
	h := planned(t)
	one := func(c spec.TaskChange) error { return h.part(spec.Part{Change: []spec.TaskChange{c}}) }
	ok := func(c spec.TaskChange) *spec.Task {
		t.Helper()
		if err := one(c); err != nil {
			t.Fatal(err)
		}
		return h.s.Snapshot().Task(c.Task)
	}
	waiting := h.task("", 1, "")
	waiting.Status.Reason = "no node fits"
	h.mustPart(spec.Part{Create: []spec.Task{waiting, h.task("", 2, ""), h.task("n2", 3, "10.1.0.3/24")}})
	all := h.s.Snapshot().Tasks()
	a, b, c := all[0].ID, all[1].ID, all[2].ID

	if got := ok(spec.TaskChange{Task: a, Reason: "still none"}); got.Status.Reason != "still none" || got.Version != h.index {
		t.Errorf("%+v", got)
	}
	wantError(t, one(spec.TaskChange{Task: a, State: spec.TaskRunning}), spec.ErrConflict, `cannot become "running"`)
	wantError(t, one(spec.TaskChange{Task: a, State: "odd"}), spec.ErrConflict, `cannot become "odd"`)
	wantError(t, one(spec.TaskChange{Task: a, State: spec.TaskAssigned}), spec.ErrConflict, `cannot become "assigned"`)
	wantError(t, one(spec.TaskChange{Task: a, Node: "x"}), spec.ErrConflict, `no node "x"`)
	wantError(t, one(spec.TaskChange{Task: a, Node: "n1", Addresses: all[2].Addresses}), spec.ErrConflict, "held by task shop.web.3")
	place := spec.TaskChange{Task: a, Node: "n1", Volumes: []spec.VolumeBinding{{Target: "/data", Name: "shop_data"}}}
	got := ok(place)
	if got.Status.State != spec.TaskAssigned || got.Status.Reason != "" || got.Node != "n1" || got.Volumes[0].ID != h.s.Snapshot().VolumeNamed("shop_data").ID {
		t.Errorf("placed %+v", got)
	}
	if place.Volumes[0].ID != "" {
		t.Error("the command was modified")
	}
	if h.s.Snapshot().Service("shop", "web").Version != h.index {
		t.Error("the version of the service was not raised")
	}
	wantError(t, one(spec.TaskChange{Task: a, Node: "n2"}), spec.ErrConflict, "never moved")
	wantError(t, one(spec.TaskChange{Task: a, Addresses: all[2].Addresses}), spec.ErrConflict, "never moved")
	wantError(t, one(spec.TaskChange{Task: a, State: spec.TaskStopped}), spec.ErrConflict, "on node alpha, which is alive")
	wantError(t, one(spec.TaskChange{Task: a, Reason: "x"}), spec.ErrConflict, "on node alpha, which is alive")

	if got = ok(spec.TaskChange{Task: b, State: spec.TaskStopped, Desired: spec.DesiredStopped, Why: "scaled down"}); got.Status.State != spec.TaskStopped {
		t.Errorf("%+v", got)
	}
	wantError(t, one(spec.TaskChange{Task: b, Node: "n1"}), spec.ErrConflict, "never moved")
	wantError(t, one(spec.TaskChange{Task: b, State: spec.TaskLost}), spec.ErrConflict, `cannot become "lost"`)
	wantError(t, one(spec.TaskChange{Task: b, Desired: spec.DesiredRunning}), spec.ErrConflict, `cannot become "running"`)
	wantError(t, one(spec.TaskChange{Task: b, Desired: "odd"}), spec.ErrConflict, `cannot become "odd"`)
	if got = ok(spec.TaskChange{Task: b, Desired: spec.DesiredRemoved}); got.Desired != spec.DesiredRemoved {
		t.Errorf("%+v", got)
	}

	h.must(Command{SetNodeState: &SetNodeState{ID: "n2", State: spec.NodeDown}})
	if got = ok(spec.TaskChange{Task: c, State: spec.TaskLost, Reason: "node beta is down"}); got.Status.Reason != "node beta is down" {
		t.Errorf("%+v", got)
	}
	events, _ := h.s.Snapshot().Events(0, 0)
	var ends []string
	for _, e := range events {
		if e.Task != "" {
			ends = append(ends, e.Kind+" "+string(e.Task)+" "+e.Message)
		}
	}
	if d := cmp.Diff([]string{"task.stopped " + string(b) + " scaled down", "task.lost " + string(c) + " node beta is down"}, ends); d != "" {
		t.Error(d)
	}
}

// A task of a global service has its node while it still waits.
func TestPendingTaskWithNode(t *testing.T) {
	h := planned(t)
	task := h.task("n1", 0, "")
	task.Status.State = spec.TaskPending
	h.mustPart(spec.Part{Create: []spec.Task{task, task}})
	ids := h.s.Snapshot().Tasks()
	a, b := ids[0].ID, ids[1].ID
	if h.report("n1", a, spec.TaskRunning).Changed {
		t.Error("a node reported a task that is not its own yet")
	}
	h.mustPart(spec.Part{Change: []spec.TaskChange{{Task: a, Reason: "waits for db"}}})
	h.mustPart(spec.Part{Change: []spec.TaskChange{{Task: a, Node: "n1"}}, Remove: []spec.TaskID{b}})
	if got := h.s.Snapshot().Task(a); got.Status.State != spec.TaskAssigned || got.Status.Reason != "" {
		t.Errorf("%+v", got)
	}
}

func TestAddressIsHandedOn(t *testing.T) {
	h := planned(t)
	id := h.running("n2", 1, "10.1.0.2/24")
	next := spec.Part{Create: []spec.Task{h.task("n1", 1, "10.1.0.2/24")}}
	wantError(t, h.part(next), spec.ErrConflict, "held")

	h.must(Command{SetNodeState: &SetNodeState{ID: "n2", State: spec.NodeDown}})
	h.mustPart(spec.Part{Change: []spec.TaskChange{{Task: id, State: spec.TaskLost, Desired: spec.DesiredStopped}}})
	wantError(t, h.part(next), spec.ErrConflict, "held")
	if n := h.s.Snapshot(); !n.HoldsAddresses(n.Task(id)) {
		t.Error("a lost task lets go of its address before its node has confirmed the end")
	}
	h.must(Command{SetNodeState: &SetNodeState{ID: "n2", State: spec.NodeReady}})
	h.report("n2", id, spec.TaskStopped)
	if n := h.s.Snapshot(); n.Task(id).Status.State != spec.TaskStopped || n.HoldsAddresses(n.Task(id)) {
		t.Errorf("the end of a lost task: %+v", n.Task(id))
	}
	next.Remove = []spec.TaskID{id}
	h.mustPart(next)
	if got := h.kinds(); got != "node.joined node.joined stack.applied node.down task.lost node.up" {
		t.Errorf("events %q", got)
	}
}

func TestServiceChange(t *testing.T) {
	h := planned(t)
	before := h.s.Snapshot().Service("shop", "web")
	status := &spec.UpdateStatus{State: spec.UpdateUpdating, Since: start}
	h.mustPart(spec.Part{Service: &spec.ServiceChange{Stack: "shop", Name: "web", Update: status}})
	want := *before
	want.Update, want.Version = *status, h.index
	if d := cmp.Diff(&want, h.s.Snapshot().Service("shop", "web")); d != "" {
		t.Error(d)
	}
	h.must(putStack(edit(web("shop", 8080), "web", func(s *spec.ServiceSpec) { s.Template.User = "x" })))
	if h.s.Snapshot().Service("shop", "web").Update != *status {
		t.Error("the user's write changed the reconciler's field")
	}
}

// Virtual addresses and those of tasks are one space.
func TestVIPs(t *testing.T) {
	h := planned(t)
	net := h.s.Snapshot().NetworkNamed("shop_default").ID
	at := func(ip string) spec.ServiceVIP { return spec.ServiceVIP{Network: net, Address: ip} }
	h.running("n2", 1, "10.1.0.2/24")
	for _, bad := range []struct {
		list  []spec.ServiceVIP
		class error
		want  string
	}{
		{[]spec.ServiceVIP{at("10.1.0.2")}, spec.ErrConflict, "address 10.1.0.2 on network shop_default is held by task shop.web.1"},
		{[]spec.ServiceVIP{at("10.1.0.9/24")}, spec.ErrInvalid, "without a prefix length"},
		{[]spec.ServiceVIP{at("")}, spec.ErrInvalid, "no address"},
		{[]spec.ServiceVIP{at("10.1.0.8"), at("10.1.0.9")}, spec.ErrInvalid, "two virtual addresses"},
		{[]spec.ServiceVIP{{Network: "1-999", Address: "10.1.0.9"}}, spec.ErrConflict, "no network"},
	} {
		wantError(t, h.part(vips("shop", bad.list...)), bad.class, bad.want)
	}
	h.mustPart(vips("shop", at("10.1.0.9")))
	n := h.s.Snapshot()
	if got := n.ServicesAt(net); len(got) != 1 || got[0].Key() != "shop/web" || got[0].VIPs[0] != at("10.1.0.9") || got[0].Version != h.index {
		t.Errorf("%+v", got)
	}
	wantError(t, h.part(spec.Part{Create: []spec.Task{h.task("n1", 2, "10.1.0.9/24")}}), spec.ErrConflict, "is the virtual one of service shop/web")
	h.mustPart(vips("shop", at("10.1.0.9"))) // its own is no obstacle
	// A user's write and other changes leave it.
	h.must(putStack(edit(web("shop", 8080), "web", func(s *spec.ServiceSpec) { s.Template.User = "x" })))
	h.mustPart(spec.Part{Service: &spec.ServiceChange{Stack: "shop", Name: "web", Update: &spec.UpdateStatus{State: spec.UpdateUpdating}}})
	if got := h.s.Snapshot().Service("shop", "web").VIPs; len(got) != 1 {
		t.Errorf("the addresses are %v", got)
	}
	// Another service of another stack on the same network.
	other := web("blog", 81)
	other.Networks["default"] = spec.NetworkSpec{External: true, Name: "shop_default"}
	h.must(putStack(other))
	wantError(t, h.part(vips("blog", at("10.1.0.9"))), spec.ErrConflict, "is the virtual one of service shop/web")
	h.mustPart(vips("shop"))
	h.mustPart(vips("blog", at("10.1.0.9")))
	// A network is not removed under a virtual address.
	h.must(Command{RemoveStack: &RemoveStack{Name: "shop"}})
	for _, task := range h.s.Snapshot().Tasks() {
		h.report("n2", task.ID, spec.TaskStopped)
	}
	drop := spec.Part{RemoveNetworks: []spec.NetworkID{net}}
	wantError(t, h.part(drop), spec.ErrConflict, "has a virtual address of service blog/web")
	h.must(Command{RemoveStack: &RemoveStack{Name: "blog"}})
	h.mustPart(drop)
}

func TestReaping(t *testing.T) {
	h := planned(t)
	h.must(Command{PutContent: &PutContent{ID: "old", Size: 1, Data: []byte("x")}})
	id := h.running("n1", 1, "10.1.0.2/24")
	h.mustPart(spec.Part{Volumes: []spec.Volume{{Stack: "shop", Name: "anon", Anonymous: true, Homes: []spec.NodeID{"n1"}}, {Stack: "shop", Name: "anon2", Anonymous: true}}})
	h.must(Command{RemoveStack: &RemoveStack{Name: "shop"}})
	h.report("n1", id, spec.TaskStopped)
	n := h.s.Snapshot()
	anon := n.VolumeNamed("anon").ID
	h.mustPart(spec.Part{
		Remove:          []spec.TaskID{id},
		RemoveNetworks:  []spec.NetworkID{n.NetworkNamed("shop_default").ID},
		RemoveRevisions: []spec.RevisionID{n.Task(id).Revision},
		RemoveContents:  []spec.ContentID{"old"},
		RemoveVolumes:   []spec.VolumeID{anon, n.VolumeNamed("anon2").ID},
	})
	n = h.s.Snapshot()
	if len(n.Tasks())+len(n.Networks())+len(n.Revisions())+len(n.Contents()) != 0 || n.VolumeNamed("anon2") != nil || !n.Volume(anon).Removing {
		t.Errorf("left over:\n%s", dump(t, n))
	}
	h.must(Command{Reports: &Reports{Reports: []spec.Report{{Node: "n1", VolumesRemoved: []spec.VolumeID{anon}}}}})
	if h.s.Snapshot().Volume(anon) != nil {
		t.Error("the volume is still there")
	}
}
