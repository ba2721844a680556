package store

import (
	"testing"

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
	h.must(Command{PutNode: &PutNode{ID: "n3", Name: "delta", Address: "a", Role: spec.RoleManager}})
	want = &spec.Node{
		ID: "n3", Name: "delta", Address: "a", Role: spec.RoleManager, State: spec.NodeReady, Availability: spec.NodeDrain,
		Number: 3, Labels: map[string]string{"b": "2", "c": "3"}, Version: h.index,
	}
	if d := cmp.Diff(want, h.s.Snapshot().Node("n3")); d != "" {
		t.Error(d)
	}
	if got := h.kinds(); got != "node.up node.up node.up node.down node.up" {
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
		{Command{SetNode: &SetNode{ID: "x"}}, spec.ErrNotFound, `"x"`},
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
