package store

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"wherry.dev/spec"
)

func TestPutStackMakesObjects(t *testing.T) {
	h := newHarness(t)
	res := h.must(Command{Author: "ann", PutStack: &PutStack{Stack: web("shop", 8080), Base: ptr(uint64(0)), Message: "first"}})
	if res.Revision != 1 || !res.Changed {
		t.Fatalf("result %+v", res)
	}
	n := h.s.Snapshot()
	if d := cmp.Diff(&spec.StackRow{ID: "1-4", Name: "shop", Revision: 1, Version: h.index}, n.Stack("shop")); d != "" {
		t.Error(d)
	}
	svc := n.Service("shop", "web")
	if svc.Replicas != 1 || svc.Version != h.index || svc.Changed != n.StackRevision("shop", 1).Time || n.Revision(svc.Revision) == nil {
		t.Errorf("service %+v", svc)
	}
	if net := n.NetworkNamed("shop_default"); net == nil || net.Short != "default" || net.Stack != "shop" || n.Network(net.ID) != net {
		t.Errorf("network %+v", net)
	}
	if v := n.VolumeNamed("shop_data"); v == nil || v.Short != "data" || n.Volume(v.ID) != v {
		t.Errorf("volume %+v", v)
	}
	want := []*spec.StackRevision{{Stack: "shop", Number: 1, Spec: web("shop", 8080), Author: "ann", Message: "first", Incoming: h.index}}
	if d := cmp.Diff(want, n.StackRevisions("shop"), cmpopts.IgnoreFields(spec.StackRevision{}, "Time")); d != "" {
		t.Error(d)
	}
	if got := h.kinds(); got != "node.joined node.joined stack.applied" {
		t.Errorf("events %q", got)
	}
}

func TestPutStackEqualChangesNothing(t *testing.T) {
	h := newHarness(t)
	h.must(putStack(web("shop", 8080)))
	before := h.s.Snapshot()
	res := h.must(Command{PutStack: &PutStack{Stack: web("shop", 8080), Base: &before.Stack("shop").Version, Message: "other words"}})
	if res.Changed || res.Revision != 1 {
		t.Errorf("result %+v", res)
	}
}

func TestPutStackTouchesOnlyWhatChanged(t *testing.T) {
	h := newHarness(t)
	s := web("shop", 8080)
	s.Services["db"] = spec.ServiceSpec{Mode: spec.Replicated, Template: spec.Template{Image: "postgres"}}
	h.must(putStack(s))
	a := h.s.Snapshot()
	res := h.must(putStack(edit(s, "web", func(s *spec.ServiceSpec) { s.Template.Env = map[string]string{"A": "2"} })))
	b := h.s.Snapshot()
	if res.Revision != 2 {
		t.Errorf("revision %d", res.Revision)
	}
	if a.Service("shop", "db") != b.Service("shop", "db") || a.NetworkNamed("shop_default") != b.NetworkNamed("shop_default") || a.VolumeNamed("shop_data") != b.VolumeNamed("shop_data") {
		t.Error("an unchanged object was written")
	}
	x, y := a.Service("shop", "web"), b.Service("shop", "web")
	if x.ID != y.ID || x.Revision == y.Revision || y.Version != h.index {
		t.Errorf("service %+v became %+v", x, y)
	}
	if b.Revision(x.Revision) == nil {
		t.Error("the old revision is gone, tasks may still need it")
	}
}

func TestPutStackRemovesWhatLeft(t *testing.T) {
	h := newHarness(t)
	h.must(putStack(web("shop", 8080)))
	old := h.s.Snapshot()
	h.must(putStack(spec.Stack{Name: "shop"}))
	n := h.s.Snapshot()
	if n.Service("shop", "web") != nil || !n.NetworkNamed("shop_default").Gone {
		t.Error("what left the file is still there")
	}
	if n.VolumeNamed("shop_data") != old.VolumeNamed("shop_data") {
		t.Error("the volume was touched")
	}
	// A network that comes back is the same network; a service has a new life.
	h.must(putStack(web("shop", 8080)))
	n = h.s.Snapshot()
	if net := n.NetworkNamed("shop_default"); net.Gone || net.ID != old.NetworkNamed("shop_default").ID {
		t.Errorf("network %+v", net)
	}
	if n.Service("shop", "web").ID == old.Service("shop", "web").ID {
		t.Error("the service has the identity of the removed one")
	}
}

func TestPutStackKeepsTenRevisions(t *testing.T) {
	h := newHarness(t)
	for i := range 13 {
		h.must(putStack(web("shop", uint16(8000+i))))
	}
	var numbers []uint64
	for _, r := range h.s.Snapshot().StackRevisions("shop") {
		numbers = append(numbers, r.Number)
	}
	if d := cmp.Diff([]uint64{4, 5, 6, 7, 8, 9, 10, 11, 12, 13}, numbers); d != "" {
		t.Error(d)
	}
}

func TestKeepOthers(t *testing.T) {
	h := newHarness(t)
	h.must(putStack(web("shop", 8080)))
	db := spec.Stack{Name: "shop", Services: map[string]spec.ServiceSpec{"db": {Mode: spec.Replicated}}}
	keep := Command{PutStack: &PutStack{Stack: db, KeepOthers: true}}
	h.must(keep)
	n := h.s.Snapshot()
	want := web("shop", 8080)
	want.Services["db"] = db.Services["db"]
	if d := cmp.Diff(want, n.StackRevision("shop", 2).Spec); d != "" {
		t.Errorf("the revision lost what was kept (-want +got):\n%s", d)
	}
	if n.Service("shop", "web") == nil || n.NetworkNamed("shop_default").Gone {
		t.Error("a kept service or its network went")
	}
	if res := h.must(keep); res.Changed || res.Revision != 2 {
		t.Errorf("the repeat: %+v", res)
	}
	// What no kept service uses goes all the same.
	h.must(Command{PutStack: &PutStack{Stack: spec.Stack{Name: "shop", Services: map[string]spec.ServiceSpec{"web": {}}}, KeepOthers: true}})
	if n = h.s.Snapshot(); !n.NetworkNamed("shop_default").Gone || n.Service("shop", "db") == nil {
		t.Error("want db kept and the network gone")
	}
}

func TestReplicas(t *testing.T) {
	h := newHarness(t)
	unset := web("shop", 8080)
	set := edit(unset, "web", func(s *spec.ServiceSpec) { s.Replicas = ptr(2) })
	replicas := func() int { return h.s.Snapshot().Service("shop", "web").Replicas }
	scale := func(n int) Result {
		return h.must(Command{ScaleService: &ScaleService{Stack: "shop", Service: "web", Replicas: n}})
	}
	h.must(putStack(unset))
	rev := h.s.Snapshot().Service("shop", "web").Revision
	scale(5)
	if s := h.s.Snapshot(); replicas() != 5 || s.Stack("shop").Version != h.index || s.Service("shop", "web").Version != h.index {
		t.Errorf("scaling: %+v", s.Service("shop", "web"))
	}
	if scale(5).Changed {
		t.Error("scaling to the same number is a change")
	}
	if res := h.must(putStack(unset)); res.Changed || replicas() != 5 {
		t.Errorf("a file without a number changed the scaled one to %d", replicas())
	}
	h.must(putStack(edit(unset, "web", func(s *spec.ServiceSpec) { s.Labels = map[string]string{"a": "b"} })))
	if replicas() != 5 {
		t.Errorf("a changed file without a number gives %d", replicas())
	}
	if h.must(putStack(set)); replicas() != 2 {
		t.Errorf("a file with a number gives %d", replicas())
	}
	scale(7)
	res := h.must(putStack(set))
	if !res.Changed || res.Revision != 4 || replicas() != 2 {
		t.Errorf("the same file again must win over scaling: %+v, %d", res, replicas())
	}
	if h.must(putStack(set)).Changed {
		t.Error("the third time is a change")
	}
	if h.s.Snapshot().Service("shop", "web").Revision != rev {
		t.Error("scaling changed the revision")
	}
}

func TestPutStackRefuses(t *testing.T) {
	h := newHarness(t)
	h.must(putStack(web("shop", 8080)))
	version := h.s.Snapshot().Stack("shop").Version
	h.must(putStack(edit(web("other", 0), "web", func(s *spec.ServiceSpec) {
		s.Ports = []spec.Port{{HostIP: "127.0.0.1", Published: 9000, Target: 1, Protocol: "tcp"}}
	})))
	h.must(putStack(web("old", 7000)))
	h.must(Command{RemoveStack: &RemoveStack{Name: "old"}})
	h.must(putStack(web("del", 7001)))
	del := h.s.Snapshot().VolumeNamed("del_data")
	h.mustPart(spec.Part{Homes: []spec.VolumeHome{{Name: "del_data", Node: "n1"}}, Volumes: []spec.Volume{{Stack: "del", Name: "anon1", Anonymous: true, Service: "web", Slot: "1"}}})
	h.must(Command{RemoveStack: &RemoveStack{Name: "del", Volumes: true}})
	if !h.s.Snapshot().Volume(del.ID).Removing {
		t.Fatal("the volume is not being removed")
	}
	h.must(putStack(web("anon", 7002)))
	h.mustPart(spec.Part{Volumes: []spec.Volume{{Stack: "anon", Name: "anon_x", Anonymous: true, Service: "web", Slot: "1"}}})
	h.must(Command{PutContent: &PutContent{ID: "half", Size: 10, Data: []byte("12345")}})

	stack := func(f func(*spec.Stack)) *PutStack {
		s := web("new", 1234)
		f(&s)
		return &PutStack{Stack: s}
	}
	service := func(f func(*spec.ServiceSpec)) *PutStack {
		return &PutStack{Stack: edit(web("new", 1234), "web", f)}
	}
	ports := func(p ...spec.Port) *PutStack { return service(func(s *spec.ServiceSpec) { s.Ports = p }) }
	for _, tc := range []struct {
		name  string
		put   *PutStack
		class error
		want  []string
	}{
		{"no name", stack(func(s *spec.Stack) { s.Name = "" }), spec.ErrInvalid, []string{"stack without a name"}},
		{"slash", stack(func(s *spec.Stack) { s.Name = "a/b" }), spec.ErrInvalid, []string{`"a/b"`}},
		{"zero byte", stack(func(s *spec.Stack) { s.Services["a\x00b"] = spec.ServiceSpec{} }), spec.ErrInvalid, []string{"service"}},
		{"long", stack(func(s *spec.Stack) { s.Volumes[fmt.Sprintf("%300d", 1)] = spec.VolumeSpec{} }), spec.ErrInvalid, []string{"255"}},
		{"network name", stack(func(s *spec.Stack) { s.Networks["x"] = spec.NetworkSpec{Name: "a/b"} }), spec.ErrInvalid, []string{"network"}},
		{"undeclared network", service(func(s *spec.ServiceSpec) { s.Template.Networks = []spec.Attachment{{Network: "back"}} }), spec.ErrInvalid, []string{"web", `"back"`}},
		{"undeclared volume", service(func(s *spec.ServiceSpec) {
			s.Template.Mounts = []spec.Mount{{Type: spec.MountVolume, Source: "cache", Target: "/c"}}
		}), spec.ErrInvalid, []string{"web", `"cache"`}},
		{"replicas", service(func(s *spec.ServiceSpec) { s.Replicas = ptr(-1) }), spec.ErrInvalid, []string{"-1"}},
		{"too many replicas", service(func(s *spec.ServiceSpec) { s.Replicas = ptr(MaxReplicas + 1) }), spec.ErrInvalid, []string{"100000"}},
		{"exists", &PutStack{Stack: web("shop", 1), Base: ptr(uint64(0))}, spec.ErrConflict, []string{"shop exists already", fmt.Sprint(version)}},
		{"stale", &PutStack{Stack: web("shop", 1), Base: ptr(version - 1)}, spec.ErrConflict, []string{fmt.Sprint(version), fmt.Sprint(version - 1), "read it again"}},
		{"removed", &PutStack{Stack: web("new", 1), Base: ptr(uint64(3))}, spec.ErrConflict, []string{"new was removed"}},
		{"external missing", stack(func(s *spec.Stack) {
			s.Networks["front"] = spec.NetworkSpec{External: true} // may come later
			s.Volumes["pool"] = spec.VolumeSpec{External: true, Name: "the-pool"}
			s.Volumes["ok"] = spec.VolumeSpec{External: true, Name: "shop_data"}
		}), spec.ErrNotFound, []string{"does not exist: volume the-pool;"}},
		{"external being removed", stack(func(s *spec.Stack) { s.Volumes["x"] = spec.VolumeSpec{External: true, Name: "del_data"} }), spec.ErrConflict, []string{"del_data is being removed"}},
		{"contents", service(func(s *spec.ServiceSpec) {
			s.Template.Mounts = []spec.Mount{{Type: spec.MountContent, Content: "none"}, {Type: spec.MountContent, Content: "half"}}
		}), spec.ErrConflict, []string{"half, none"}},
		{"seed", stack(func(s *spec.Stack) { s.Volumes["data"] = spec.VolumeSpec{Seed: "nowhere"} }), spec.ErrConflict, []string{"nowhere"}},
		{"foreign network", stack(func(s *spec.Stack) { s.Networks["n"] = spec.NetworkSpec{Name: "shop_default"} }), spec.ErrConflict, []string{"shop_default belongs to stack shop"}},
		{"network twice", stack(func(s *spec.Stack) {
			s.Networks["a"] = spec.NetworkSpec{Name: "same"}
			s.Networks["b"] = spec.NetworkSpec{Name: "same"}
		}), spec.ErrInvalid, []string{"same twice"}},
		{"foreign volume", stack(func(s *spec.Stack) { s.Volumes["v"] = spec.VolumeSpec{Name: "shop_data"} }), spec.ErrConflict, []string{"shop_data belongs to stack shop"}},
		{"volume twice", stack(func(s *spec.Stack) {
			s.Volumes["a"] = spec.VolumeSpec{Name: "same"}
			s.Volumes["b"] = spec.VolumeSpec{Name: "same"}
		}), spec.ErrInvalid, []string{"same twice"}},
		{"volume being removed", &PutStack{Stack: web("del", 1)}, spec.ErrConflict, []string{"del_data is being removed"}},
		{"anonymous volume", &PutStack{Stack: spec.Stack{Name: "anon", Volumes: map[string]spec.VolumeSpec{"x": {}}}}, spec.ErrConflict, []string{"anonymous volume of service anon/web"}},
		{"port", ports(spec.Port{Published: 8080, Protocol: "tcp"}), spec.ErrConflict, []string{"port 8080/tcp is published by shop/web already"}},
		{"port on one address", ports(spec.Port{Published: 8080, Protocol: "tcp", HostIP: "10.0.0.1"}), spec.ErrConflict, []string{"port 10.0.0.1:8080/tcp is published by shop/web already"}},
		{"same address", ports(spec.Port{Published: 9000, Protocol: "tcp", HostIP: "127.0.0.1"}), spec.ErrConflict, []string{"by other/web"}},
		{"any address", ports(spec.Port{Published: 9000, Protocol: "tcp"}), spec.ErrConflict, []string{"by other/web"}},
		{"any IPv4", ports(spec.Port{Published: 9000, Protocol: "tcp", HostIP: "0.0.0.0"}), spec.ErrConflict, []string{"by other/web"}},
		{"any IPv6", ports(spec.Port{Published: 9000, Protocol: "tcp", HostIP: "::"}), spec.ErrConflict, []string{"port [::]:9000/tcp", "by other/web"}},
		{"two in one stack", stack(func(s *spec.Stack) { s.Services["w2"] = s.Services["web"] }), spec.ErrConflict, []string{"port 1234/tcp is published by new/web already"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h.TB = t
			h.refuse(Command{PutStack: tc.put}, tc.class, tc.want...)
		})
	}
	for _, p := range [][]spec.Port{
		{{Published: 8080, Protocol: "udp"}, {Published: 9000, Protocol: "tcp", HostIP: "127.0.0.2"}, {Published: 9000, Protocol: "tcp", HostIP: "::1"}},
		{{Target: 80, Protocol: "tcp"}},
	} {
		h.must(Command{PutStack: ports(p...)})
	}
}

// A port that the reconciler chose is taken, until the user changes the port.
func TestChosenPorts(t *testing.T) {
	h := newHarness(t)
	auto := func(target uint16) spec.Stack {
		return edit(web("shop", 0), "web", func(s *spec.ServiceSpec) {
			s.Ports = []spec.Port{{Target: target, Protocol: "tcp", Mode: spec.PublishIngress}}
		})
	}
	h.must(putStack(auto(80)))
	chosen := []spec.Port{{Published: 30000, Target: 80, Protocol: "tcp", Mode: spec.PublishIngress}}
	h.mustPart(spec.Part{Service: &spec.ServiceChange{Stack: "shop", Name: "web", Ports: chosen}})
	h.refuse(putStack(web("other", 30000)), spec.ErrConflict, "port 30000/tcp is published by shop/web already")

	h.must(putStack(auto(81)))
	h.must(putStack(web("other", 30000)))
	err := h.part(spec.Part{Service: &spec.ServiceChange{Stack: "shop", Name: "web", Ports: []spec.Port{{Published: 30000, Target: 81, Protocol: "tcp", Mode: spec.PublishIngress}}}})
	wantError(t, err, spec.ErrConflict, "by other/web")
}

func TestScaleServiceRefuses(t *testing.T) {
	h := newHarness(t)
	s := web("shop", 8080)
	s.Services["all"] = spec.ServiceSpec{Mode: spec.Global}
	h.must(putStack(s))
	for _, tc := range []struct {
		c     ScaleService
		class error
		want  string
	}{
		{ScaleService{Stack: "x", Service: "web"}, spec.ErrNotFound, `no stack "x"`},
		{ScaleService{Stack: "shop", Service: "x"}, spec.ErrNotFound, `no service "x"`},
		{ScaleService{Stack: "shop", Service: "all"}, spec.ErrInvalid, "shop/all is global"},
		{ScaleService{Stack: "shop", Service: "web", Replicas: -1}, spec.ErrInvalid, "-1"},
		{ScaleService{Stack: "shop", Service: "web", Replicas: 2, Base: ptr(uint64(1))}, spec.ErrConflict, "based on 1"},
	} {
		h.refuse(Command{ScaleService: &tc.c}, tc.class, tc.want)
	}
}

func TestRemoveStack(t *testing.T) {
	h := newHarness(t)
	h.must(putStack(web("shop", 8080)))
	id := h.running("n1", 1, "")
	h.refuse(Command{RemoveStack: &RemoveStack{Name: "x"}}, spec.ErrNotFound, `no stack "x"`)
	h.refuse(Command{RemoveStack: &RemoveStack{Name: "shop", Base: ptr(uint64(1))}}, spec.ErrConflict, "based on 1")
	h.refuse(Command{RemoveStack: &RemoveStack{Name: "shop", Base: ptr(uint64(0))}}, spec.ErrConflict, "exists already")
	h.must(Command{RemoveStack: &RemoveStack{Name: "shop", Base: &h.s.Snapshot().Stack("shop").Version}})
	n := h.s.Snapshot()
	if n.Stack("shop") != nil || len(n.ServicesOf("shop"))+len(n.StackRevisions("shop")) != 0 || !n.NetworkNamed("shop_default").Gone {
		t.Error("something of the stack is left")
	}
	if n.VolumeNamed("shop_data").Removing || n.Task(id) == nil || n.Task(id).Desired != spec.DesiredRunning {
		t.Error("volume or task was touched")
	}
	if got := h.kinds(); got != "node.joined node.joined stack.applied stack.removed" {
		t.Errorf("events %q", got)
	}
}
