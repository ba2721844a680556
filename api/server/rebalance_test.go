package server

import (
	"errors"
	"testing"

	"wherry.dev/api"
	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// TestRebalance: what is proposed is what is asked for, and a proposal changes
// nothing.
func TestRebalance(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	s := nginx()
	sv := s.Services["web"]
	sv.Replicas, sv.Template.Mounts, sv.Ports = new(2), nil, nil
	s.Services["web"] = sv
	if _, err := w.client.PutStack(ctx, api.PutStack{Stack: s}); err != nil {
		t.Fatal(err)
	}
	w.runs()
	if l, err := w.client.Rebalance(ctx, api.Rebalance{Max: 3}); err != nil || len(l.Items) != 0 {
		t.Fatalf("one node alone: %+v, %v", l, err)
	}
	w.must(store.Command{PutNode: &store.PutNode{ID: "n2", Name: "two", Role: spec.RoleWorker, Address: "192.0.2.2:4477"}})
	w.must(store.Command{Reports: &store.Reports{Reports: []spec.Report{{Node: "n2", Info: &spec.NodeInfo{OS: "linux", Arch: "amd64", NanoCPUs: 4e9, Memory: 8 << 30, Format: store.Format}}}}})
	plan, err := w.client.Moves(ctx, api.Rebalance{Stack: "shop", Max: 3})
	if err != nil || len(plan.Items) != 1 || plan.Items[0].To != "two" {
		t.Fatalf("%+v, %v", plan, err)
	}
	if !w.store.Snapshot().Task(plan.Items[0].Task).MoveUntil.IsZero() {
		t.Error("a proposal has moved a task")
	}
	done, err := w.client.Rebalance(ctx, api.Rebalance{Stack: "shop", Max: 3})
	if err != nil || len(done.Items) != 1 || done.Items[0] != plan.Items[0] || w.store.Snapshot().Task(plan.Items[0].Task).MoveUntil.IsZero() {
		t.Errorf("%+v, %v", done, err)
	}
	for _, r := range []api.Rebalance{{Max: 0}, {Max: api.MaxMoves + 1}} {
		if _, err := w.client.Moves(ctx, r); !errors.Is(err, spec.ErrInvalid) {
			t.Errorf("%+v: %v", r, err)
		}
	}
	if _, err := w.client.Rebalance(ctx, api.Rebalance{Stack: "blog", Max: 1}); !errors.Is(err, spec.ErrNotFound) {
		t.Errorf("no such stack: %v", err)
	}
}
