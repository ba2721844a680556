package server

import (
	"errors"
	"strings"
	"testing"

	"wherry.dev/api"
	"wherry.dev/spec"
)

// stackOf is nginx() with another image.
func stackOf(image string) spec.Stack {
	s := nginx()
	sv := s.Services["web"]
	sv.Template.Image = image
	s.Services["web"] = sv
	return s
}

// runs lets the newest task run, and the update come to its end.
func (w *world) runs() {
	w.t.Helper()
	w.settle()
	for range 3 {
		var rep spec.Report
		for _, task := range w.store.Snapshot().Tasks() {
			status := spec.TaskStatus{State: spec.TaskRunning, Health: spec.HealthHealthy}
			if task.Desired != spec.DesiredRunning {
				status = spec.TaskStatus{State: spec.TaskStopped}
			}
			if !task.Status.State.Terminal() {
				rep.Tasks = append(rep.Tasks, spec.TaskReport{Task: task.ID, Status: status})
			}
		}
		rep.Node = testNode
		if err := w.node.Report(w.t.Context(), rep); err != nil {
			w.t.Fatal(err)
		}
		w.settle()
	}
}

func TestHistoryAndRollback(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	w.images["docker.io/library/nginx:2"] = "sha256:2222222222222222222222222222222222222222222222222222222222222222"
	if _, err := w.client.History(ctx, "shop"); !errors.Is(err, spec.ErrNotFound) {
		t.Errorf("history of nothing: %v", err)
	}
	if _, err := w.client.RollbackStack(ctx, "shop", "", api.Rollback{}); !errors.Is(err, spec.ErrNotFound) || !strings.Contains(err.Error(), "there are no stacks") {
		t.Errorf("rollback of nothing: %v", err)
	}
	if _, err := w.client.PutStack(ctx, api.PutStack{Stack: nginx(), Author: "ann", Message: "first"}); err != nil {
		t.Fatal(err)
	}
	w.runs()
	first := w.store.Snapshot().Service("shop", "web").Spec.Template.Digest
	if _, err := w.client.PutStack(ctx, api.PutStack{Stack: stackOf("docker.io/library/nginx:2")}); err != nil {
		t.Fatal(err)
	}
	w.runs()
	// Another image of the name: the one that was pinned comes back all the same.
	w.images["docker.io/library/nginx:1"] = "sha256:3333333333333333333333333333333333333333333333333333333333333333"
	p, err := w.client.Plan(ctx, api.PutStack{Stack: spec.Stack{Name: "shop"}, Back: &api.Rollback{}})
	if err != nil || len(p.Tasks) != 1 || p.Tasks[0].Action != "replace" || w.store.Snapshot().Stack("shop").Revision != 2 {
		t.Errorf("plan of the rollback: %+v, %v", p, err)
	}
	res, err := w.client.RollbackStack(ctx, "shop", "", api.Rollback{Author: "bob"})
	if err != nil || res.Revision != 3 || !res.Changed {
		t.Fatalf("%+v, %v", res, err)
	}
	if got := w.store.Snapshot().Service("shop", "web").Spec.Template; got.Digest != first || got.Image != "docker.io/library/nginx:1" {
		t.Errorf("it runs %s@%s, want %s", got.Image, got.Digest, first)
	}
	l, err := w.client.History(ctx, "shop")
	if err != nil || len(l.Items) != 3 {
		t.Fatalf("%+v, %v", l, err)
	}
	for i, want := range []api.StackRevision{
		{Revision: 1, Author: "ann", Message: "first", State: "completed", Services: 1},
		{Revision: 2, State: "completed", Services: 1},
		{Revision: 3, Author: "bob", Message: "rolled back to revision 1", State: "updating", Rollback: 1, Current: true, Services: 1},
	} {
		got := l.Items[i]
		if got.Time.IsZero() {
			t.Errorf("revision %d has no time", got.Revision)
		}
		got.Time = want.Time
		if got != want {
			t.Errorf("got  %+v\nwant %+v", got, want)
		}
	}
	if _, err := w.client.RollbackStack(ctx, "shop", "web", api.Rollback{To: 2}); err != nil {
		t.Error(err)
	}
	base := uint64(1)
	if _, err := w.client.RollbackStack(ctx, "shop", "", api.Rollback{Base: &base}); !errors.Is(err, spec.ErrConflict) {
		t.Errorf("an old base: %v", err)
	}
}

func TestSteer(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	if _, err := w.client.Steer(ctx, "shop", "web", "restart", api.Steer{}); !errors.Is(err, spec.ErrNotFound) {
		t.Errorf("restart of nothing: %v", err)
	}
	if _, err := w.client.PutStack(ctx, api.PutStack{Stack: nginx()}); err != nil {
		t.Fatal(err)
	}
	state := func() spec.UpdateState {
		t.Helper()
		w.settle()
		s, err := w.client.Service(ctx, "shop", "web")
		if err != nil {
			t.Fatal(err)
		}
		return s.Update.State
	}
	for _, step := range []struct {
		action string
		want   spec.UpdateState
	}{{"pause", spec.UpdatePaused}, {"resume", spec.UpdateUpdating}, {"restart", spec.UpdateUpdating}} {
		if _, err := w.client.Steer(ctx, "shop", "web", step.action, api.Steer{Author: "ann"}); err != nil {
			t.Fatal(err)
		}
		if got := state(); got != step.want {
			t.Errorf("after %s: %s", step.action, got)
		}
	}
	w.runs()
	if got := state(); got != spec.UpdateCompleted {
		t.Error(got)
	}
	if _, err := w.client.Steer(ctx, "shop", "web", "pause", api.Steer{}); !errors.Is(err, spec.ErrConflict) {
		t.Errorf("pause of nothing: %v", err)
	}
	if _, err := w.client.Steer(ctx, "shop", "web", "explode", api.Steer{}); err == nil {
		t.Error("what does not exist was done")
	}
}

// TestPullOfOneService asks again for its image and for no other.
func TestPullOfOneService(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	w.images["docker.io/library/nginx:1"] = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
	s := nginx()
	s.Services["other"] = s.Services["web"]
	if _, err := w.client.PutStack(ctx, api.PutStack{Stack: s}); err != nil {
		t.Fatal(err)
	}
	const fresh = "sha256:3333333333333333333333333333333333333333333333333333333333333333"
	w.images["docker.io/library/nginx:1"] = fresh
	s = w.store.Snapshot().StackRevision("shop", 1).Spec
	s.Services = map[string]spec.ServiceSpec{"web": s.Services["web"], "other": s.Services["other"]}
	web := s.Services["web"]
	web.Template.Digest = ""
	s.Services["web"] = web
	if _, err := w.client.PutStack(ctx, api.PutStack{Stack: s, PullServices: []string{"web"}}); err != nil {
		t.Fatal(err)
	}
	snap := w.store.Snapshot()
	if got := snap.Service("shop", "web").Spec.Template.Digest; got != fresh {
		t.Errorf("web has %s", got)
	}
	if got := snap.Service("shop", "other").Spec.Template.Digest; got == fresh || got == "" {
		t.Errorf("other has %s", got)
	}
}
