package store

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wherry.dev/spec"
)

func TestNodes(t *testing.T) {
	h := newHarness(t)
	h.must(Command{PutNode: &PutNode{ID: "n3", Name: "gamma", Role: spec.RoleWorker}})
	want := &spec.Node{ID: "n3", Name: "gamma", Role: spec.RoleWorker, State: spec.NodeReady, Availability: spec.NodeActive, Number: 3, Version: h.index}
	if d := cmp.Diff(want, h.s.Snapshot().Node("n3")); d != "" {
		t.Error(d)
	}
	if h.must(Command{PutNode: &PutNode{ID: "n3", Name: "gamma", Role: spec.RoleWorker}}).Changed {
		t.Error("the same again is a change")
	}
	h.must(Command{SetNodeState: &SetNodeState{ID: "n3", State: spec.NodeDown}})
	if h.must(Command{SetNodeState: &SetNodeState{ID: "n3", State: spec.NodeDown}}).Changed {
		t.Error("down twice")
	}
	h.must(Command{SetNode: &SetNode{ID: "n3", Availability: ptr(spec.NodeDrain), Labels: map[string]*string{"a": ptr("1"), "b": ptr("2")}}})
	h.must(Command{SetNode: &SetNode{ID: "n3", Labels: map[string]*string{"a": nil, "c": ptr("3"), "d": nil}}})
	if h.must(Command{SetNode: &SetNode{ID: "n3", Labels: map[string]*string{"a": nil, "c": ptr("3")}}}).Changed {
		t.Error("the same labels again are a change")
	}
	h.must(Command{PutNode: &PutNode{ID: "n3", Name: "delta", Address: "a", Key: "k"}})
	want = &spec.Node{
		ID: "n3", Name: "delta", Address: "a", Role: spec.RoleWorker, Key: "k", State: spec.NodeReady, Availability: spec.NodeDrain,
		Number: 3, Labels: map[string]string{"b": "2", "c": "3"}, Version: h.index,
	}
	if d := cmp.Diff(want, h.s.Snapshot().Node("n3")); d != "" {
		t.Error(d)
	}
	if got := h.kinds(); got != "node.joined node.joined node.joined node.down node.availability node.up" {
		t.Errorf("events %q", got)
	}
}

func TestNodeCommandsRefuse(t *testing.T) {
	h := newHarness(t)
	for _, tc := range []struct {
		c     Command
		class error
		want  string
	}{
		{Command{PutNode: &PutNode{Name: "x", Role: spec.RoleWorker}}, spec.ErrInvalid, "name"},
		{Command{PutNode: &PutNode{ID: "x", Role: spec.RoleWorker}}, spec.ErrInvalid, "name"},
		{Command{PutNode: &PutNode{ID: "a\x00b", Name: "x", Role: spec.RoleWorker}}, spec.ErrInvalid, "control"},
		{Command{PutNode: &PutNode{ID: "x", Name: "x", Role: "boss"}}, spec.ErrInvalid, `"boss"`},
		{Command{PutNode: &PutNode{ID: "x", Name: "alpha", Role: spec.RoleWorker}}, spec.ErrConflict, "the name alpha is that of node n1, which is ready"},
		{Command{PutNode: &PutNode{ID: "n2", Name: "alpha", Role: spec.RoleWorker}}, spec.ErrConflict, "--name"},
		{Command{PutNode: &PutNode{ID: "x", Name: "x"}}, spec.ErrNotFound, "was removed"},
		{Command{PutNode: &PutNode{ID: "n1", Name: "alpha", Role: spec.RoleWorker}}, spec.ErrConflict, "promote or demote"},
		{Command{SetNode: &SetNode{ID: "x"}}, spec.ErrNotFound, `"x"`},
		{Command{SetNode: &SetNode{ID: "n1", StopPinned: true}}, spec.ErrInvalid, "only while the node is drained"},
		{Command{SetNode: &SetNode{ID: "n1", Availability: ptr(spec.NodePaused), StopPinned: true}}, spec.ErrInvalid, "only while the node is drained"},
		{Command{SetRole: &SetRole{ID: "x", Role: spec.RoleWorker}}, spec.ErrNotFound, `"x"`},
		{Command{SetRole: &SetRole{ID: "n2", Role: "boss"}}, spec.ErrInvalid, `"boss"`},
		{Command{SetRole: &SetRole{ID: "n1", Role: spec.RoleWorker}}, spec.ErrConflict, "node alpha is the only manager and cannot be demoted: promote"},
		{Command{RemoveNode: &RemoveNode{ID: "x"}}, spec.ErrNotFound, `"x"`},
		{Command{RemoveNode: &RemoveNode{ID: "n1", Force: true}}, spec.ErrConflict, "only manager"},
		{Command{RemoveNode: &RemoveNode{ID: "n2"}}, spec.ErrConflict, "node beta is ready"},
		{Command{SetNode: &SetNode{ID: "n1", Availability: ptr(spec.Availability("odd"))}}, spec.ErrInvalid, `alpha: the availability "odd"`},
		{Command{SetNodeState: &SetNodeState{ID: "x", State: spec.NodeDown}}, spec.ErrNotFound, `"x"`},
		{Command{SetNodeState: &SetNodeState{ID: "n1", State: "odd"}}, spec.ErrInvalid, `"odd"`},
		{Command{Bootstrap: &Bootstrap{Incarnation: 2}}, spec.ErrInvalid, "ID of the cluster"},
		{Command{Bootstrap: &Bootstrap{ClusterID: "c2", Incarnation: 2}}, spec.ErrConflict, "c1, not c2"},
		{Command{Bootstrap: &Bootstrap{ClusterID: "c1"}}, spec.ErrInvalid, "at least 1"},
		{Command{Bootstrap: &Bootstrap{ClusterID: "c1", Incarnation: 2, Format: -1}}, spec.ErrInvalid, "-1"},
	} {
		h.refuse(tc.c, tc.class, tc.want)
	}
	h.must(Command{Bootstrap: &Bootstrap{ClusterID: "c1", Incarnation: 4}})
	h.refuse(Command{Bootstrap: &Bootstrap{ClusterID: "c1", Incarnation: 3}}, spec.ErrConflict, "incarnation 4")
}

func TestIncarnation(t *testing.T) {
	h := newHarness(t)
	if h.must(Command{Bootstrap: &Bootstrap{ClusterID: "c1", Incarnation: 1}}).Changed {
		t.Error("the same incarnation is a change")
	}
	h.must(putStack(web("shop", 1)))
	h.must(Command{Bootstrap: &Bootstrap{ClusterID: "c1", Incarnation: 2}})
	h.must(putStack(web("new", 2)))
	if n := h.s.Snapshot(); n.Stack("shop").ID != "1-4" || n.Stack("new").ID != "2-4" || n.Incarnation() != 2 || n.ClusterID() != "c1" || n.Format() != Format {
		t.Errorf("%s %s %d", n.Stack("shop").ID, n.Stack("new").ID, n.Incarnation())
	}
}

func TestNodeKeepsItsKey(t *testing.T) {
	h := newHarness(t)
	put := func(key, address string) Command {
		return Command{PutNode: &PutNode{ID: "n2", Name: "beta", Address: address, Role: spec.RoleWorker, Key: key}}
	}
	h.must(put("k1", "a")) // a node of an older version gets one
	h.refuse(put("k2", "a"), spec.ErrConflict, "beta has another key")
	h.must(put("", "b"))
	if n := h.s.Snapshot().NodeNamed("beta"); n.Key != "k1" || n.Address != "b" {
		t.Errorf("node %+v", n)
	}
}

func TestDownSince(t *testing.T) {
	h := newHarness(t)
	at := start.Add(time.Hour)
	h.must(Command{Time: at, SetNodeState: &SetNodeState{ID: "n2", State: spec.NodeDown}})
	h.must(Command{SetNodeState: &SetNodeState{ID: "n2", State: spec.NodeDown}})
	h.must(Command{SetNode: &SetNode{ID: "n2", Availability: ptr(spec.NodeDrain)}})
	if n := h.s.Snapshot().Node("n2"); !n.DownSince.Equal(at) {
		t.Errorf("down since %v, want %v", n.DownSince, at)
	}
	h.must(Command{SetNodeState: &SetNodeState{ID: "n2", State: spec.NodeReady}})
	if n := h.s.Snapshot().Node("n2"); !n.DownSince.IsZero() {
		t.Errorf("a node that is back is down since %v", n.DownSince)
	}
	h.must(Command{SetNodeState: &SetNodeState{ID: "n2", State: spec.NodeDown}})
	h.must(Command{PutNode: &PutNode{ID: "n2", Name: "beta", Role: spec.RoleWorker}})
	if n := h.s.Snapshot().Node("n2"); !n.DownSince.IsZero() || n.State != spec.NodeReady {
		t.Errorf("a node that joined again is %s since %v", n.State, n.DownSince)
	}
}

func TestStopPinned(t *testing.T) {
	h := newHarness(t)
	pinned := func() bool { return h.s.Snapshot().Node("n2").StopPinned }
	h.must(Command{SetNode: &SetNode{ID: "n2", Availability: ptr(spec.NodeDrain)}})
	h.must(Command{SetNode: &SetNode{ID: "n2", StopPinned: true}})
	if !pinned() {
		t.Error("not set for a drained node")
	}
	h.must(Command{SetNode: &SetNode{ID: "n2", Labels: map[string]*string{"a": ptr("b")}}})
	if !pinned() {
		t.Error("a label takes it away")
	}
	h.must(Command{SetNode: &SetNode{ID: "n2", Availability: ptr(spec.NodeActive)}})
	if pinned() {
		t.Error("set on an active node")
	}
	h.must(Command{SetNode: &SetNode{ID: "n2", Availability: ptr(spec.NodeDrain), StopPinned: true}})
	h.must(Command{SetNode: &SetNode{ID: "n2", Availability: ptr(spec.NodeDrain)}})
	if pinned() {
		t.Error("a plain drain keeps it")
	}
}

func TestRoles(t *testing.T) {
	h := newHarness(t)
	role := func(id spec.NodeID, r spec.NodeRole) Command { return Command{SetRole: &SetRole{ID: id, Role: r}} }
	state := func(id spec.NodeID, s spec.NodeState) { h.must(Command{SetNodeState: &SetNodeState{ID: id, State: s}}) }
	h.must(Command{PutNode: &PutNode{ID: "n3", Name: "gamma", Role: spec.RoleWorker}})
	state("n3", spec.NodeDown)
	h.refuse(role("n3", spec.RoleManager), spec.ErrConflict, "gamma is down", "start its daemon")
	state("n3", spec.NodeReady)
	h.must(role("n2", spec.RoleManager))
	h.must(role("n3", spec.RoleManager))
	if h.must(role("n3", spec.RoleManager)).Changed {
		t.Error("the same role again is a change")
	}
	state("n3", spec.NodeDown)
	h.refuse(role("n2", spec.RoleWorker), spec.ErrConflict, "beta cannot be demoted", "no majority", "gamma")
	h.refuse(Command{RemoveNode: &RemoveNode{ID: "n1", Force: true}}, spec.ErrConflict, "alpha cannot be removed", "no majority")
	h.must(role("n3", spec.RoleWorker)) // one that is down gives nothing away
	h.must(role("n2", spec.RoleWorker))
	if got := h.kinds(); !strings.HasSuffix(got, "node.role node.role node.down node.role node.role") {
		t.Errorf("events %q", got)
	}
}

func TestRemoveNode(t *testing.T) {
	h := planned(t)
	id := h.running("n2", 1, "10.1.0.3/24")
	stays := h.running("n1", 2, "10.1.0.4/24")
	svc := h.s.Snapshot().Service("shop", "web")
	h.mustPart(spec.Part{Homes: []spec.VolumeHome{{Name: "shop_data", Node: "n2"}}})
	h.must(Command{SetNodeState: &SetNodeState{ID: "n2", State: spec.NodeDown}})
	remove := Command{RequestID: "r", RemoveNode: &RemoveNode{ID: "n2"}}
	h.must(remove)
	h.must(remove) // a repeat is harmless
	n := h.s.Snapshot()
	task := n.Task(id)
	if n.Node("n2") != nil || n.NodeNamed("beta") != nil || len(n.Nodes()) != 1 {
		t.Error("the node is still there")
	}
	if task.Status.State != spec.TaskLost || task.Status.Reason != "node beta was removed from the cluster" || n.HoldsAddresses(task) {
		t.Errorf("task %+v", task)
	}
	if n.Task(stays).Status.State != spec.TaskRunning {
		t.Error("a task of another node was touched")
	}
	if n.Service("shop", "web").Version == svc.Version {
		t.Error("a plan that was made before would be taken")
	}
	if v := n.VolumeNamed("shop_data"); len(v.Homes) != 1 || v.Homes[0] != "n2" {
		t.Errorf("the homes of the volume are %v", v.Homes)
	}
	if got := h.kinds(); !strings.HasSuffix(got, "node.down node.removed task.lost") {
		t.Errorf("events %q", got)
	}
	// What it had is free, and it is heard no more.
	if h.report("n2", id, spec.TaskStopped).Changed {
		t.Error("a removed node was heard")
	}
	other := h.running("n1", 1, "10.1.0.3/24")
	// Under the same identity it is a new node, which holds nothing.
	h.must(Command{PutNode: &PutNode{ID: "n2", Name: "beta", Role: spec.RoleWorker}})
	n = h.s.Snapshot()
	if n.HoldsAddresses(n.Task(id)) && len(n.Task(id).Addresses) > 0 || n.Task(other).Addresses[0].IP != "10.1.0.3/24" {
		t.Errorf("task %+v", n.Task(id))
	}
	h.must(Command{RemoveNode: &RemoveNode{ID: "n2", Force: true}})
}

func TestRemovedNodesDoNotHoldVolumes(t *testing.T) {
	h := planned(t)
	s := web("old", 81)
	h.must(putStack(s))
	home := func(volume string, node spec.NodeID) {
		h.mustPart(spec.Part{Homes: []spec.VolumeHome{{Name: volume, Node: node}}})
	}
	home("old_data", "n1")
	home("old_data", "n2")
	h.must(Command{RemoveStack: &RemoveStack{Name: "old", Volumes: true}})
	h.must(Command{RemoveNode: &RemoveNode{ID: "n2", Force: true}})
	if v := h.s.Snapshot().VolumeNamed("old_data"); v == nil || len(v.Homes) != 1 || v.Homes[0] != "n1" {
		t.Errorf("volume %+v waits for a node that is gone, or for none", v)
	}
	h.must(Command{Reports: &Reports{Reports: []spec.Report{{Node: "n1", VolumesRemoved: []spec.VolumeID{h.s.Snapshot().VolumeNamed("old_data").ID}}}}})
	if h.s.Snapshot().VolumeNamed("old_data") != nil {
		t.Error("the volume is left")
	}

	// Removed later than its only home.
	h.must(Command{PutNode: &PutNode{ID: "n3", Name: "gamma", Role: spec.RoleWorker}})
	h.must(putStack(s))
	home("old_data", "n3")
	h.must(Command{RemoveNode: &RemoveNode{ID: "n3", Force: true}})
	h.must(Command{RemoveStack: &RemoveStack{Name: "old"}})
	h.must(Command{RemoveVolumes: &RemoveVolumes{Names: []string{"old_data"}}})
	if h.s.Snapshot().VolumeNamed("old_data") != nil {
		t.Error("the volume is left")
	}

	// Still declared: it stays, and begins anew.
	h.must(Command{PutNode: &PutNode{ID: "n3", Name: "gamma", Role: spec.RoleWorker}})
	home("shop_data", "n3")
	h.refuse(Command{RemoveVolumes: &RemoveVolumes{Names: []string{"shop_data"}}}, spec.ErrConflict, "declared by stack shop")
	h.must(Command{RemoveNode: &RemoveNode{ID: "n3", Force: true}})
	h.must(Command{RemoveVolumes: &RemoveVolumes{Names: []string{"shop_data"}}})
	if v := h.s.Snapshot().VolumeNamed("shop_data"); v == nil || v.Removing || len(v.Homes) != 0 {
		t.Errorf("volume %+v", v)
	}
	if got := h.kinds(); !strings.HasSuffix(got, "volume.reset") {
		t.Errorf("events %q", got)
	}
}

// authority signs with the last of the roots.
func authority(roots ...string) spec.Authority {
	a := spec.Authority{Tokens: map[spec.NodeRole]spec.JoinToken{
		spec.RoleWorker:  {Generation: 1, Hash: bytes.Repeat([]byte{1}, 32)},
		spec.RoleManager: {Generation: 2, Hash: bytes.Repeat([]byte{2}, 32), Expires: start.Add(time.Hour)},
	}}
	for _, r := range roots {
		a.Roots = append(a.Roots, spec.Root{Hash: r, Certificate: "certificate of " + r, Key: "key of " + r})
		a.Signer = r
	}
	return a
}

func TestAuthority(t *testing.T) {
	h := newHarness(t)
	set := func(a spec.Authority, base uint64) Command {
		return Command{SetAuthority: &SetAuthority{Authority: a, Base: base}}
	}
	if h.s.Snapshot().Authority() != nil {
		t.Fatal("an authority out of nothing")
	}
	h.refuse(set(authority("r1"), 7), spec.ErrConflict, "at version 0")
	h.must(set(authority("r1"), 0))
	first := h.index
	h.refuse(set(authority("r2"), 0), spec.ErrConflict, "already")
	h.must(set(authority("r1", "r2"), first))
	h.refuse(set(authority("r3"), first), spec.ErrConflict, "read it again")
	want := authority("r1", "r2")
	want.Version = h.index - 10
	if d := cmp.Diff(&want, h.s.Snapshot().Authority()); d != "" {
		t.Error(d)
	}
	for _, spoil := range []func(*spec.Authority){
		func(a *spec.Authority) { a.Signer = "other" },
		func(a *spec.Authority) { a.Roots, a.Signer = nil, "" },
		func(a *spec.Authority) { a.Roots[0].Key = "" },
		func(a *spec.Authority) { a.Tokens["boss"] = spec.JoinToken{} },
		func(a *spec.Authority) { a.Tokens[spec.RoleWorker] = spec.JoinToken{Generation: 1} },
		func(a *spec.Authority) { a.Tokens[spec.RoleWorker] = spec.JoinToken{Hash: make([]byte, 32)} },
	} {
		a := authority("r1")
		spoil(&a)
		h.refuse(set(a, want.Version), spec.ErrInvalid)
	}
}
