package store

import (
	"testing"

	"wherry.dev/spec"
)

// pair is a stack of two services, of which app shares the network of web.
func pair(name string, web, app int) spec.Stack {
	s := guest(name, "")
	s.Networks = map[string]spec.NetworkSpec{"default": {Driver: spec.DriverOverlay}}
	s = edit(s, "web", func(svc *spec.ServiceSpec) { svc.Replicas = &web })
	s.Services["app"] = spec.ServiceSpec{Mode: spec.Replicated, Replicas: &app, Template: spec.Template{Image: "app", NetworkMode: spec.JoinMode("web")}}
	return s
}

func TestJoins(t *testing.T) {
	h := newHarness(t)
	h.must(putStack(pair("shop", 2, 2)))
	task := func(service string, slot int, node spec.NodeID, joins spec.TaskID) spec.Task {
		return spec.Task{Stack: "shop", Service: service, Slot: slot, Node: node, Joins: joins, Revision: h.s.Snapshot().Service("shop", service).Revision}
	}
	h.mustPart(spec.Part{Create: []spec.Task{task("web", 1, "n1", ""), task("web", 2, "n2", ""), task("app", 2, "", "")}})
	all := h.s.Snapshot().Tasks()
	one, two, waiting := all[0].ID, all[1].ID, all[2].ID
	wantError(t, h.part(spec.Part{Create: []spec.Task{task("app", 1, "n2", one)}}), spec.ErrInvalid, "cannot share the network of task shop.web.1")
	wantError(t, h.part(spec.Part{Create: []spec.Task{task("app", 1, "n2", two)}}), spec.ErrInvalid, "cannot share")
	wantError(t, h.part(spec.Part{Create: []spec.Task{task("app", 1, "n1", "9-9")}}), spec.ErrConflict, "9-9", "is gone")
	h.mustPart(spec.Part{Create: []spec.Task{task("app", 1, "n1", one)}})
	wantError(t, h.part(spec.Part{Change: []spec.TaskChange{{Task: waiting, Node: "n1", Joins: two}}}), spec.ErrInvalid, "cannot share")
	h.mustPart(spec.Part{Change: []spec.TaskChange{{Task: waiting, Node: "n2", Joins: two}}})
	got := h.s.Snapshot().Task(waiting)
	if got.Joins != two || got.Node != "n2" || got.Status.State != spec.TaskAssigned {
		t.Errorf("%+v", got)
	}

	// It ends for the sake of the other only when that one ends.
	end := spec.Part{Change: []spec.TaskChange{{Task: waiting, Desired: spec.DesiredStopped, With: two}}}
	wantError(t, h.part(end), spec.ErrConflict, "task shop.web.2 goes on")
	h.mustPart(spec.Part{Change: []spec.TaskChange{{Task: two, Desired: spec.DesiredStopped}}})
	h.mustPart(end)
	wantError(t, h.part(spec.Part{Create: []spec.Task{task("app", 2, "n2", two)}}), spec.ErrConflict, "is ending")
	h.mustPart(spec.Part{Change: []spec.TaskChange{{Task: waiting, Desired: spec.DesiredRemoved, With: "9-9"}}})
}

func TestJoinsNumbers(t *testing.T) {
	h := newHarness(t)
	s := pair("shop", 2, 1)
	h.must(putStack(s))
	h.refuse(Command{ScaleService: &ScaleService{Stack: "shop", Service: "app", Replicas: 3}}, spec.ErrInvalid, "shares the network of service web, which is scaled to 2")
	h.must(Command{ScaleService: &ScaleService{Stack: "shop", Service: "app", Replicas: 2}})
	h.refuse(Command{ScaleService: &ScaleService{Stack: "shop", Service: "web", Replicas: 1}}, spec.ErrInvalid, "app, which is scaled to 2, shares the network of service shop/web")
	h.must(Command{ScaleService: &ScaleService{Stack: "shop", Service: "web", Replicas: 5}})
	delete(s.Services, "web")
	h.refuse(putStack(s), spec.ErrInvalid, `service app shares the network of service "web"`)
	if got := (&Command{PutStack: &PutStack{Stack: pair("x", 1, 1)}}).NeedsFormat(); got != 4 {
		t.Errorf("the stack needs format %d", got)
	}
	for _, p := range []spec.Part{{Create: []spec.Task{{Joins: "1-1"}}}, {Change: []spec.TaskChange{{With: "1-1"}}}, {Change: []spec.TaskChange{{Joins: "1-1"}}}} {
		if got := (&Command{ApplyPlan: &ApplyPlan{Parts: []spec.Part{p}}}).NeedsFormat(); got != 4 {
			t.Errorf("%+v needs format %d", p, got)
		}
	}
}
