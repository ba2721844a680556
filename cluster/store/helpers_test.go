package store

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wherry.dev/spec"
)

// harness is a guarded store whose commands take the way through the log, and
// whose every step is checked for what must hold of all of them.
type harness struct {
	testing.TB
	s     *Store
	index uint64
}

var start = time.Date(2031, 2, 3, 4, 5, 6, 0, time.UTC)

// newHarness returns a store with two nodes, n1 and n2.
func newHarness(t testing.TB) *harness {
	h := &harness{TB: t, s: newStore(true)}
	h.must(Command{Bootstrap: &Bootstrap{ClusterID: "c1", Incarnation: 1, Format: Format}})
	h.must(Command{PutNode: &PutNode{ID: "n1", Name: "alpha", Address: "10.0.0.1:4477", Role: spec.RoleManager}})
	h.must(Command{PutNode: &PutNode{ID: "n2", Name: "beta", Address: "10.0.0.2:4477", Role: spec.RoleWorker}})
	return h
}

// apply sends c through its encoded form. A refused command must have changed
// no object, and no object must ever be written in place.
func (h *harness) apply(c Command) Result {
	h.Helper()
	h.index += 10
	if c.Time.IsZero() {
		c.Time = start.Add(time.Duration(h.index) * time.Second)
	}
	b, err := Encode(c)
	if err != nil {
		h.Fatalf("encode: %v", err)
	}
	if c, err = Decode(b); err != nil {
		h.Fatalf("decode: %v", err)
	}
	before := objects(h, h.s.Snapshot())
	res := h.s.Apply(h.index, c)
	h.s.Snapshot().verify()
	if after := objects(h, h.s.Snapshot()); (res.Err != nil || !res.Changed && c.Bootstrap == nil) && after != before {
		h.Fatalf("%s (err %v, changed %t) changed the state:\n%s", c.Kind(), res.Err, res.Changed, cmp.Diff(before, after))
	}
	if res.Err != nil && spec.ErrorClass(res.Err) == "" {
		h.Fatalf("%s: the error %q has no class", c.Kind(), res.Err)
	}
	return res
}

func (h *harness) must(c Command) Result {
	h.Helper()
	res := h.apply(c)
	if res.Err != nil {
		h.Fatalf("%s: %v", c.Kind(), res.Err)
	}
	for i, err := range res.Parts {
		if err != nil {
			h.Fatalf("part %d: %v", i, err)
		}
	}
	return res
}

// refuse applies c and wants an error of the class whose text has all of want.
func (h *harness) refuse(c Command, class error, want ...string) {
	h.Helper()
	wantError(h, h.apply(c).Err, class, want...)
}

func wantError(t testing.TB, err, class error, want ...string) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Fatalf("got error %v, want class %v", err, class)
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not mention %q", err, w)
		}
	}
}

// part applies one part and returns its error.
func (h *harness) part(p spec.Part) error {
	h.Helper()
	before := objects(h, h.s.Snapshot())
	res := h.apply(Command{ApplyPlan: &ApplyPlan{Epoch: 1, Parts: []spec.Part{p}}})
	if res.Err != nil {
		h.Fatalf("plan: %v", res.Err)
	}
	if res.Parts[0] != nil {
		if after := objects(h, h.s.Snapshot()); before != after {
			h.Fatalf("a rejected part changed the state:\n%s", cmp.Diff(before, after))
		}
		if spec.ErrorClass(res.Parts[0]) == "" {
			h.Fatalf("the error %q has no class", res.Parts[0])
		}
	}
	return res.Parts[0]
}

func (h *harness) mustPart(p spec.Part) {
	h.Helper()
	if err := h.part(p); err != nil {
		h.Fatalf("part: %v", err)
	}
}

func (n *Snapshot) verify() {
	for _, t := range n.tables.list() {
		t.verify(n.read())
	}
}

func dump(t testing.TB, n *Snapshot) string {
	t.Helper()
	var b bytes.Buffer
	if err := n.Persist(&b); err != nil {
		t.Fatalf("persist: %v", err)
	}
	return b.String()
}

// objects is the dump without the meta line and the remembered requests, which
// a refused command adds to.
func objects(t testing.TB, n *Snapshot) string {
	t.Helper()
	_, s, _ := strings.Cut(dump(t, n), "\n")
	s, _, _ = strings.Cut(s, `{"table":"requests"`)
	return s
}

func ptr[T any](v T) *T { return &v }

// web is a stack with one service on a network, with a volume and a port.
func web(name string, port uint16) spec.Stack {
	return spec.Stack{
		Name: name,
		Services: map[string]spec.ServiceSpec{"web": {
			Mode: spec.Replicated,
			Template: spec.Template{
				Image:    "docker.io/library/nginx:1.27",
				Env:      map[string]string{"A": "1"},
				Networks: []spec.Attachment{{Network: "default"}},
				Mounts:   []spec.Mount{{Type: spec.MountVolume, Source: "data", Target: "/data"}},
			},
			Ports: []spec.Port{{Published: port, Target: 80, Protocol: "tcp", Mode: spec.PublishIngress}},
		}},
		Networks: map[string]spec.NetworkSpec{"default": {Driver: spec.DriverOverlay}},
		Volumes:  map[string]spec.VolumeSpec{"data": {}},
	}
}

func putStack(s spec.Stack) Command { return Command{Author: "ann", PutStack: &PutStack{Stack: s}} }

// edit returns a copy of the stack with its service changed by f.
func edit(s spec.Stack, service string, f func(*spec.ServiceSpec)) spec.Stack {
	s.Services = cloned(s.Services)
	svc := s.Services[service]
	f(&svc)
	s.Services[service] = svc
	return s
}

// task returns a new task of shop/web, to be placed on a node.
func (h *harness) task(node spec.NodeID, slot int, addr string) spec.Task {
	n := h.s.Snapshot()
	t := spec.Task{Stack: "shop", Service: "web", Slot: slot, Node: node, Revision: n.Service("shop", "web").Revision}
	if addr != "" {
		t.Addresses = []spec.Address{{Network: n.NetworkNamed("shop_default").ID, IP: addr, MAC: "02:00:00:00:00:01"}}
	}
	return t
}

// running creates a task and reports that it runs.
func (h *harness) running(node spec.NodeID, slot int, addr string) spec.TaskID {
	h.Helper()
	t := h.task(node, slot, addr)
	if h.s.Snapshot().VolumeNamed("shop_data") != nil {
		t.Volumes = []spec.VolumeBinding{{Target: "/data", Name: "shop_data"}}
	}
	h.mustPart(spec.Part{Create: []spec.Task{t}})
	all := h.s.Snapshot().TasksOf("shop", "web")
	id := all[len(all)-1].ID
	h.report(node, id, spec.TaskRunning)
	return id
}

func (h *harness) report(node spec.NodeID, id spec.TaskID, state spec.TaskState) Result {
	h.Helper()
	return h.must(Command{Reports: &Reports{Reports: []spec.Report{{
		Node: node, Tasks: []spec.TaskReport{{Task: id, Status: spec.TaskStatus{State: state}}},
	}}}})
}

// vips is a part that gives the service web of a stack these virtual addresses,
// and no others.
func vips(stack string, list ...spec.ServiceVIP) spec.Part {
	if list == nil {
		list = []spec.ServiceVIP{}
	}
	return spec.Part{Service: &spec.ServiceChange{Stack: stack, Name: "web", VIPs: &list}}
}

// kinds lists the kinds of all events.
func (h *harness) kinds() string {
	events, _ := h.s.Snapshot().Events(0, 0)
	var out []string
	for _, e := range events {
		out = append(out, e.Kind)
	}
	return strings.Join(out, " ")
}
