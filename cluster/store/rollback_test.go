package store

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wherry.dev/spec"
)

// completed tells that the newest revision of shop has completed.
func (h *harness) completed(ports map[string][]spec.Port) {
	h.Helper()
	for _, svc := range h.s.Snapshot().ServicesOf("shop") {
		h.mustPart(spec.Part{Service: &spec.ServiceChange{Stack: "shop", Name: svc.Name, Ports: ports[svc.Name],
			Update: &spec.UpdateStatus{State: spec.UpdateCompleted, Rollout: svc.Rollout}}})
	}
	h.mustPart(spec.Part{Stack: &spec.StackChange{Name: "shop", Revision: h.s.Snapshot().Stack("shop").Revision, State: spec.RevisionCompleted, Ports: ports}})
}

// image returns shop with other images.
func image(web string) spec.Stack {
	return edit(webAndDB(), "web", func(s *spec.ServiceSpec) { s.Template.Image = web })
}

func webAndDB() spec.Stack {
	s := web("shop", 8080)
	s.Services["db"] = spec.ServiceSpec{Mode: spec.Replicated, Template: spec.Template{Image: "db:1"},
		Ports: []spec.Port{{Target: 5432, Protocol: "tcp", Mode: spec.PublishIngress}}}
	return s
}

// revisions has the state of each kept revision.
func (h *harness) revisions() string {
	var out []string
	for _, r := range h.s.Snapshot().StackRevisions("shop") {
		s := fmt.Sprintf("%d:%s", r.Number, r.State)
		if r.Rollback != 0 {
			s += fmt.Sprintf("(back to %d by %s)", r.Rollback, r.Author)
		}
		out = append(out, s)
	}
	return strings.Join(out, " ")
}

func rollback(h *harness, to uint64) spec.Part {
	row := h.s.Snapshot().Stack("shop")
	return spec.Part{
		Reads:    []spec.Read{{Kind: spec.KindStack, Key: "shop", Version: row.Version}},
		Rollback: &spec.StackRollback{Name: "shop", Revision: row.Revision, To: to, Service: "web", Why: "it broke", Log: "bye"},
	}
}

func TestRollbackOfTheCluster(t *testing.T) {
	h := newHarness(t)
	h.must(putStack(image("web:1")))
	port := spec.Port{Published: 30007, Target: 5432, Protocol: "tcp", Mode: spec.PublishIngress}
	h.completed(map[string][]spec.Port{"db": {port}})
	first := h.s.Snapshot()
	second := image("web:2")
	delete(second.Services, "db")
	second.Networks = map[string]spec.NetworkSpec{"default": second.Networks["default"], "more": {Driver: spec.DriverOverlay}}
	h.must(putStack(second))
	h.mustPart(rollback(h, 1))

	n := h.s.Snapshot()
	if got := h.revisions(); got != "1:completed 2:rolled_back 3:(back to 1 by wherry)" {
		t.Error(got)
	}
	rev := n.StackRevision("shop", 3)
	if d := cmp.Diff(image("web:1"), rev.Spec); d != "" {
		t.Error(d)
	}
	if rev.Message != "rolled back to revision 1, since revision 2 failed: it broke" {
		t.Error(rev.Message)
	}
	if failed := n.StackRevision("shop", 2); failed.Why != "it broke" || failed.Log != "bye" {
		t.Errorf("%+v", failed)
	}
	svc := n.Service("shop", "web")
	if svc.Revision != first.Service("shop", "web").Revision || svc.Rollout != h.index || !svc.Changed.Equal(rev.Time) {
		t.Errorf("%+v", svc)
	}
	if db := n.Service("shop", "db"); db == nil || !cmp.Equal(db.Ports, []spec.Port{port}) {
		t.Errorf("the service comes back as %+v", db)
	}
	if net := n.NetworkNamed("shop_more"); !net.Gone {
		t.Error("the network of the failed revision stays")
	}
	if n.VolumeNamed("shop_data").Removing {
		t.Error("a volume is removed")
	}
	if row := n.Stack("shop"); row.Version != h.index || row.Completed != 1 {
		t.Errorf("%+v", row)
	}
	h.refuse(Command{PutStack: &PutStack{Stack: second, Base: &first.Stack("shop").Version}}, spec.ErrConflict, "read it again")
	if got := h.kinds(); !strings.HasSuffix(got, " stack.rolled_back") {
		t.Error(got)
	}
}

func TestRollbackIsRejected(t *testing.T) {
	h := newHarness(t)
	h.must(putStack(image("web:1")))
	wantError(t, h.part(rollback(h, 1)), spec.ErrConflict, "no revision 1 that completed")
	h.completed(nil)
	wantError(t, h.part(rollback(h, 1)), spec.ErrConflict, "not one that failed")
	h.must(putStack(image("web:2")))
	late := rollback(h, 1)
	h.must(putStack(image("web:3")))
	wantError(t, h.part(late), spec.ErrConflict, "has moved")
	late.Reads = nil
	wantError(t, h.part(late), spec.ErrConflict, "at revision 3")
	h.must(Command{RemoveStack: &RemoveStack{Name: "shop"}})
	wantError(t, h.part(late), spec.ErrConflict, "stack shop is gone")
}

// Where the old declaration is not possible any more, the update is paused and
// says why.
func TestRollbackThatIsNotPossible(t *testing.T) {
	h := newHarness(t)
	h.must(putStack(image("web:1")))
	h.completed(nil)
	second := edit(image("web:2"), "web", func(s *spec.ServiceSpec) { s.Ports = nil })
	h.must(putStack(second))
	h.must(putStack(web("thief", 8080)))
	h.mustPart(rollback(h, 1))
	n := h.s.Snapshot()
	u := n.Service("shop", "web").Update
	if u.State != spec.UpdatePaused || u.Message != "it broke; the stack cannot go back to revision 1: port 8080/tcp is published by thief/web already" || u.Log != "bye" {
		t.Errorf("%+v", u)
	}
	if got := h.revisions(); got != "1:completed 2:" {
		t.Error(got)
	}
}

func TestStackChange(t *testing.T) {
	h := newHarness(t)
	h.must(putStack(image("web:1")))
	change := func(revision uint64, state spec.RevisionState) spec.Part {
		return spec.Part{Stack: &spec.StackChange{Name: "shop", Revision: revision, State: state}}
	}
	wantError(t, h.part(change(1, spec.RevisionCompleted)), spec.ErrConflict, "has not ended well")
	wantError(t, h.part(change(2, spec.RevisionPaused)), spec.ErrConflict, "another revision")
	h.mustPart(change(1, spec.RevisionPaused))
	h.completed(nil)
	wantError(t, h.part(change(1, spec.RevisionPaused)), spec.ErrConflict, "completed already")
	h.must(putStack(image("web:2")))
	h.must(putStack(image("web:3")))
	if got := h.revisions(); got != "1:completed 2:superseded 3:" {
		t.Error(got)
	}
}

// The last revision that completed is kept however many failed since.
func TestCompletedRevisionIsKept(t *testing.T) {
	h := newHarness(t)
	h.must(putStack(image("web:1")))
	h.completed(nil)
	for i := range 15 {
		h.must(putStack(image(fmt.Sprint("web:bad", i))))
	}
	revs := h.s.Snapshot().StackRevisions("shop")
	if len(revs) != spec.KeepStackRevisions+1 || revs[0].Number != 1 || revs[1].Number != 7 {
		t.Errorf("%d are kept: %s", len(revs), h.revisions())
	}
	h.mustPart(rollback(h, 1))
	h.completed(nil)
	h.must(putStack(image("web:good")))
	if revs := h.s.Snapshot().StackRevisions("shop"); len(revs) != spec.KeepStackRevisions || revs[0].Number != 9 {
		t.Errorf("%d are kept: %s", len(revs), h.revisions())
	}
}

func TestRollbackByAUser(t *testing.T) {
	h := newHarness(t)
	back := func(service string, to uint64) Command {
		return Command{Author: "ann", RollbackStack: &RollbackStack{Stack: "shop", Service: service, To: to}}
	}
	h.refuse(back("", 0), spec.ErrNotFound, `no stack "shop"`)
	h.must(putStack(image("web:1")))
	h.completed(nil)
	h.refuse(back("", 0), spec.ErrNotFound, "no earlier revision", "wherry history shop")
	h.refuse(back("", 9), spec.ErrNotFound, "revision 9 of stack shop is not kept; there are 1 to 1")
	h.refuse(back("none", 0), spec.ErrNotFound, `no service "none"`)
	h.must(putStack(image("web:2")))
	h.must(putStack(edit(image("web:3"), "db", func(s *spec.ServiceSpec) { s.Template.Image = "db:2" })))
	h.completed(nil)

	// One service, to the last revision that completed.
	if res := h.must(back("web", 0)); res.Revision != 4 {
		t.Errorf("%+v", res)
	}
	n := h.s.Snapshot()
	if w, d := n.Service("shop", "web"), n.Service("shop", "db"); w.Spec.Template.Image != "web:1" || d.Spec.Template.Image != "db:2" || d.Rollout == w.Rollout {
		t.Errorf("%+v\n%+v", w, d)
	}
	if got := n.StackRevision("shop", 4).Message; got != "service web rolled back to revision 1" {
		t.Error(got)
	}
	// The whole stack, to any that is named, with its own words.
	named := back("", 2)
	named.RollbackStack.Message = "because"
	h.must(named)
	if got := h.revisions(); got != "1:completed 2:superseded 3:completed 4:superseded(back to 1 by ann) 5:(back to 2 by ann)" {
		t.Error(got)
	}
	if rev := h.s.Snapshot().StackRevision("shop", 5); rev.Message != "because" || rev.Spec.Services["web"].Template.Image != "web:2" {
		t.Errorf("%+v", rev)
	}
	if res := h.must(back("", 5)); res.Changed || res.Revision != 5 {
		t.Errorf("a rollback to what is in force: %+v", res)
	}
	stale := back("", 1)
	stale.RollbackStack.Base = ptr(uint64(1))
	h.refuse(stale, spec.ErrConflict, "read it again")
}

// A service comes back with the networks and volumes that it used.
func TestServiceRollbackCarries(t *testing.T) {
	h := newHarness(t)
	h.must(putStack(image("web:1")))
	h.completed(nil)
	bare := image("web:2")
	bare.Networks, bare.Volumes = nil, nil
	bare = edit(bare, "web", func(s *spec.ServiceSpec) { s.Template.Networks, s.Template.Mounts = nil, nil })
	h.must(putStack(bare))
	h.must(Command{RollbackStack: &RollbackStack{Stack: "shop", Service: "web"}})
	if d := cmp.Diff(image("web:1"), h.s.Snapshot().StackRevision("shop", 3).Spec); d != "" {
		t.Error(d)
	}
}

func TestSteerService(t *testing.T) {
	h := newHarness(t)
	steer := func(a SteerAction) Command {
		return Command{Author: "ann", SteerService: &SteerService{Stack: "shop", Service: "web", Action: a}}
	}
	h.refuse(steer(SteerPause), spec.ErrNotFound, `no stack "shop"`)
	h.must(putStack(image("web:1")))
	h.refuse(Command{SteerService: &SteerService{Stack: "shop", Service: "none", Action: SteerPause}}, spec.ErrNotFound, `no service "none"`)
	h.refuse(steer("fly"), spec.ErrInvalid, `not by "fly"`)
	h.refuse(steer(SteerResume), spec.ErrConflict, "is not paused")
	get := func() *spec.Service { return h.s.Snapshot().Service("shop", "web") }

	first := get().Rollout
	h.must(steer(SteerPause)) // the update has been called for
	if get().Held != "ann" || get().Rollout != first || h.s.Snapshot().Stack("shop").Version != h.index {
		t.Errorf("%+v", get())
	}
	if res := h.must(steer(SteerPause)); res.Changed {
		t.Error("it was paused already")
	}
	h.must(steer(SteerResume))
	if get().Held != "" || get().Rollout != h.index || get().Restarts != 0 {
		t.Errorf("%+v", get())
	}
	h.completed(nil)
	h.refuse(steer(SteerPause), spec.ErrConflict, "no update of service shop/web is under way")
	h.refuse(steer(SteerResume), spec.ErrConflict, "is not paused")
	h.must(steer(SteerRestart))
	if get().Restarts != 1 || get().Rollout != h.index {
		t.Errorf("%+v", get())
	}
	h.must(steer(SteerPause))
	h.must(steer(SteerRestart))
	if get().Held != "" || get().Restarts != 2 {
		t.Errorf("%+v", get())
	}
	h.must(steer(SteerPause))
	h.must(putStack(image("web:2")))
	if get().Held != "" || get().Restarts != 2 || get().Rollout != h.index {
		t.Errorf("a new declaration: %+v", get())
	}
	// One that failed can be resumed, too.
	h.mustPart(spec.Part{Service: &spec.ServiceChange{Stack: "shop", Name: "web", Update: &spec.UpdateStatus{State: spec.UpdatePaused, Rollout: get().Rollout}}})
	h.must(steer(SteerResume))
	if got := h.kinds(); !strings.HasSuffix(got, " update.paused service.resume") {
		t.Error(got)
	}
	// A canary is promoted once, by whoever finds it good.
	h.refuse(steer(SteerPromote), spec.ErrConflict, "no canary of service shop/web is being tried")
	h.mustPart(spec.Part{Service: &spec.ServiceChange{Stack: "shop", Name: "web", Update: &spec.UpdateStatus{
		State: spec.UpdatePaused, Canary: spec.CanaryWaiting, Rollout: get().Rollout,
	}}})
	h.refuse(steer(SteerResume), spec.ErrConflict, "waits for a decision about its canary: promote it")
	rollout := get().Rollout
	h.must(steer(SteerPromote))
	if got := get(); got.Promoted != rollout || got.Rollout != rollout {
		t.Errorf("%+v", got)
	}
	if res := h.must(steer(SteerPromote)); res.Changed {
		t.Error("it was promoted already")
	}
	h.must(steer(SteerRestart))
	h.refuse(steer(SteerPromote), spec.ErrConflict, "no canary")
}

// A change of the policy alone calls for an update that has nothing to do, and
// leaves the revision as it is.
func TestPolicyIsNoPartOfTheRevision(t *testing.T) {
	h := newHarness(t)
	h.must(putStack(image("web:1")))
	before := h.s.Snapshot().Service("shop", "web")
	h.must(putStack(edit(image("web:1"), "web", func(s *spec.ServiceSpec) { s.Update.Parallelism, s.Rollback.Order = ptr(3), spec.StopFirst })))
	after := h.s.Snapshot().Service("shop", "web")
	if before.Revision != after.Revision || after.Rollout != h.index {
		t.Errorf("%+v", after)
	}
}
