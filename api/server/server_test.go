package server

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"wherry.dev/api"
	"wherry.dev/cluster/store"
	"wherry.dev/reconciler"
	"wherry.dev/spec"
)

// world is a manager without a log: commands go straight into the store.
type world struct {
	t      *testing.T
	store  *store.Store
	server *Server
	client *api.Client // operator
	node   *api.Client // node and manager

	mu    sync.Mutex
	index uint64
	// images that the resolver knows, by reference.
	images map[string]string
	// lines is the log of every task.
	lines   []api.LogLine
	cluster fakeCluster
	// others are the nodes but this one, by the transport to each.
	others map[spec.NodeID]http.RoundTripper
	// catchUp is what the next linearizable read waits for; lost fails it.
	catchUp func()
	lost    error
	host    fakeHost
	// instances are the volumes of this node, gives is who may have them.
	instances instances
	gives     string
}

const testNode = spec.NodeID("0123456789abcdef")

// newWorld returns a world that is called over sockets. Its server has the
// configuration that change makes of the usual one.
func newWorld(t *testing.T, change ...func(*Config)) *world {
	t.Helper()
	w := quietWorld(t, change...)
	w.node = w.listen(api.RuleNode, api.RuleManager)
	w.client = w.listen(api.RuleOperator)
	return w
}

// quietWorld returns a world without sockets.
func quietWorld(t *testing.T, change ...func(*Config)) *world {
	t.Helper()
	w := &world{t: t, instances: instances{}, store: store.New(), images: map[string]string{"docker.io/library/nginx:1": "sha256:aa"}}
	w.must(store.Command{Bootstrap: &store.Bootstrap{ClusterID: "c", Incarnation: 1, Format: store.Format}})
	w.must(store.Command{PutNode: &store.PutNode{ID: testNode, Name: "host-1", Role: spec.RoleManager, Address: "127.0.0.1:4477"}})
	var err error
	w.cluster.leader = testNode
	c := w.config()
	for _, f := range change {
		f(&c)
	}
	w.server, err = New(c)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) config() Config {
	return Config{Store: w.store, Proposer: w, Resolver: w, Nodes: w, Images: &w.host, Tasks: w, Volumes: w, Network: &w.host, Leaver: &w.host, Doctor: doctored,
		Registry: &w.host, Sessions: &w.cluster, Enroller: &w.cluster, Peers: &w.cluster, Caller: identify,
		ContentKey: []byte("key"), Node: testNode, Name: "host-1", Version: "test"}
}

func (w *world) listen(rules ...api.Rule) *api.Client {
	w.t.Helper()
	path := filepath.Join(w.t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		w.t.Fatal(err)
	}
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: w.server.Handler(rules...)}}
	s.Start()
	w.t.Cleanup(s.Close)
	c, err := api.NewClient("unix://" + path)
	if err != nil {
		w.t.Fatal(err)
	}
	return c
}

func (w *world) must(c store.Command) store.Result {
	w.t.Helper()
	res, err := w.Propose(w.t.Context(), c)
	if err := errors.Join(err, res.Err); err != nil {
		w.t.Fatal(err)
	}
	return res
}

func (w *world) Propose(_ context.Context, c store.Command) (store.Result, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if c.Time.IsZero() {
		c.Time = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	}
	w.index++
	return w.store.Apply(w.index, c), nil
}

// next returns the index of the next entry.
func (w *world) next() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.index++
	return w.index
}

func (w *world) Linearizable(context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if f := w.catchUp; f != nil {
		w.catchUp = nil
		f()
	}
	return w.lost
}

// settle lets the reconciler act until it has nothing left to do.
func (w *world) settle() {
	w.t.Helper()
	for range 20 {
		p := reconciler.Plan(w.store.Snapshot(), time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
		if p.Empty() {
			return
		}
		w.must(store.Command{ApplyPlan: &store.ApplyPlan{Epoch: 1, Parts: p.Parts}})
	}
	w.t.Fatal("the reconciler does not settle")
}

func (w *world) Resolve(_ context.Context, image, _ string, _ bool) (string, error) {
	if d, ok := w.images[image]; ok {
		return d, nil
	}
	return "", spec.NotFoundf("image %s: not found", image)
}

func (w *world) Transport(n spec.NodeID) (http.RoundTripper, error) {
	if tr := w.others[n]; tr != nil {
		return tr, nil
	}
	if n != testNode {
		return nil, spec.Unavailablef("node %s is not connected", n)
	}
	return w.node.Transport(), nil
}

func (w *world) Logs(_ context.Context, _ spec.TaskID, o api.LogOptions, fn func(api.LogLine) error) error {
	lines := w.lines
	if o.Tail >= 0 {
		lines = lines[max(0, len(lines)-o.Tail):]
	}
	for _, l := range lines {
		if err := fn(l); err != nil {
			return err
		}
	}
	return nil
}

// Exec echoes its input, then says how it was called.
func (w *world) Exec(_ context.Context, t spec.TaskID, r api.ExecRequest, s api.ExecIO) (int, error) {
	switch r.Args[0] {
	case "cat":
		_, err := io.Copy(s.Stdout, s.Stdin)
		return 0, err
	case "size":
		size := <-s.Resize
		fmt.Fprintf(s.Stdout, "%dx%d", size[0], size[1])
		return 0, nil
	case "missing":
		return 127, spec.Invalidf("no such command")
	}
	fmt.Fprintf(s.Stderr, "%s in %s as %q", strings.Join(r.Args, " "), t, r.User)
	return 7, nil
}

func nginx() spec.Stack {
	return spec.Stack{Name: "shop", Services: map[string]spec.ServiceSpec{"web": {
		Mode: spec.Replicated,
		Template: spec.Template{Image: "docker.io/library/nginx:1", NetworkMode: "none", StopGrace: spec.Duration(time.Second),
			Restart: spec.Restart{Condition: spec.RestartAny}},
	}}}
}

func TestCheckRoutes(t *testing.T) {
	h := map[string]handler{"a": nil, "b": func(http.ResponseWriter, *http.Request) error { return nil }, "c": nil}
	err := checkRoutes([]api.Route{{Name: "a", Rule: api.RuleOperator}, {Name: "b"}}, h)
	for _, want := range []string{"route a has no handler", "route b has no rule", "handler c has no route"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %q", err, want)
		}
	}
}

// TestErrors: the class of an error is the same on both sides of the wire.
func TestErrors(t *testing.T) {
	w := newWorld(t)
	for _, want := range []error{spec.ErrInvalid, spec.ErrNotFound, spec.ErrConflict, spec.ErrUnavailable, api.ErrRemoved, api.ErrForbidden, api.ErrNotManager} {
		rec := httptest.NewRecorder()
		w.server.writeError(rec, api.Route{}, fmt.Errorf("outer: %w", api.ErrorOfClass(api.ErrorClass(want), "inner")))
		var body api.ErrorBody
		if err := json.Unmarshal(rec.Body.Bytes(), &body); err != nil {
			t.Fatal(err)
		}
		if got := api.ErrorOfClass(body.Error.Class, body.Error.Message); rec.Code < 400 || rec.Code == 500 || !errors.Is(got, want) || got.Error() != "outer: inner" {
			t.Errorf("%v: status %d, %v", want, rec.Code, got)
		}
	}
	ctx := t.Context()
	if _, err := w.client.Stack(ctx, "none"); !errors.Is(err, spec.ErrNotFound) || err.Error() != `stack "none" does not exist; there are no stacks` {
		t.Errorf("unknown stack: %v", err)
	}
	if _, err := w.client.Task(ctx, "a.b.1"); !errors.Is(err, spec.ErrNotFound) {
		t.Errorf("unknown task: %v", err)
	}
	bad := nginx()
	bad.Name = "Not A Name"
	if _, err := w.client.PutStack(ctx, api.PutStack{Stack: bad}); !errors.Is(err, spec.ErrInvalid) {
		t.Errorf("bad name: %v", err)
	}
	gone, err := api.NewClient("unix://" + filepath.Join(t.TempDir(), "none"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := gone.Stacks(ctx); !errors.Is(err, api.ErrUnreachable) || !strings.Contains(err.Error(), "wherry daemon") {
		t.Errorf("no daemon: %v", err)
	}
}

func TestPutStack(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	blob, err := spec.PackContent([]spec.ContentFile{{Path: ".", Mode: 0o644, Data: bytes.Repeat([]byte("x"), 300<<10)}})
	if err != nil {
		t.Fatal(err)
	}
	s := nginx()
	sv := s.Services["web"]
	sv.Template.Mounts = []spec.Mount{{Type: spec.MountContent, Target: "/etc/x", Content: spec.PlainContentID(blob)}}
	s.Services["web"] = sv

	if _, err := w.client.PutStack(ctx, api.PutStack{Stack: s}); !errors.Is(err, spec.ErrInvalid) || !strings.Contains(err.Error(), "was not sent") {
		t.Errorf("without its content: %v", err)
	}
	put := api.PutStack{Stack: s, Contents: map[spec.ContentID][]byte{spec.PlainContentID(blob): blob}}
	res, err := w.client.PutStack(ctx, put)
	if err != nil || res.Revision != 1 || !res.Changed {
		t.Fatalf("put: %+v, %v", res, err)
	}
	stored := w.store.Snapshot().Service("shop", "web").Spec.Template
	if stored.Digest != "sha256:aa" {
		t.Errorf("digest %q, want the resolver's", stored.Digest)
	}
	id := stored.Mounts[0].Content
	if !strings.HasPrefix(string(id), "hmac:") {
		t.Errorf("content is called %s in the state, want a keyed name", id)
	}
	if got, err := w.node.Content(ctx, id); err != nil || !bytes.Equal(got, blob) {
		t.Errorf("content: %d bytes, want %d; %v", len(got), len(blob), err)
	}

	// The tag moves; the pinned digest does not, until it is asked for.
	w.images["docker.io/library/nginx:1"] = "sha256:bb"
	if res, err := w.client.PutStack(ctx, put); err != nil || res.Changed {
		t.Errorf("again: %+v, %v; want no change", res, err)
	}
	put.Pull = true
	if res, err := w.client.PutStack(ctx, put); err != nil || !res.Changed {
		t.Errorf("with pull: %+v, %v; want a change", res, err)
	}

	// A write that is based on an older version is refused.
	zero := uint64(0)
	put.Base, put.Stack.Services["web"] = &zero, nginx().Services["web"]
	if _, err := w.client.PutStack(ctx, put); !errors.Is(err, spec.ErrConflict) {
		t.Errorf("old base: %v", err)
	}
	put.Base = nil
	sv = nginx().Services["web"]
	sv.Template.Image = "docker.io/library/none:1"
	put.Stack.Services["web"] = sv
	if _, err := w.client.PutStack(ctx, put); !errors.Is(err, spec.ErrNotFound) || !strings.Contains(err.Error(), "services.web.image") {
		t.Errorf("missing image: %v", err)
	}
}

// TestPlanChangesNothing: a plan says what would be done and does nothing.
func TestPlanChangesNothing(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	before := w.store.Snapshot().Index()
	p, err := w.client.Plan(ctx, api.PutStack{Stack: nginx()})
	if err != nil {
		t.Fatal(err)
	}
	if len(p.Tasks) != 1 || p.Tasks[0].Action != "create" || p.Tasks[0].Name != "shop.web.1" || p.Tasks[0].Node != "host-1" {
		t.Errorf("tasks: %+v", p.Tasks)
	}
	if s := w.store.Snapshot(); s.Index() != before || len(s.Stacks()) != 0 {
		t.Errorf("the state moved from %d to %d", before, s.Index())
	}
	if _, err := w.client.PutStack(ctx, api.PutStack{Stack: nginx()}); err != nil {
		t.Fatal(err)
	}
	w.settle()
	if p, err = w.client.Plan(ctx, api.PutStack{Stack: nginx()}); err != nil || !p.Empty() {
		t.Errorf("plan of what is there: %+v, %v", p, err)
	}
	if p, err = w.client.Plan(ctx, api.PutStack{Stack: nginx(), Remove: true}); err != nil || len(p.Tasks) != 1 || p.Tasks[0].Action != "remove" {
		t.Errorf("plan of the removal: %+v, %v", p, err)
	}
}

// running returns a world with one running task.
func running(t *testing.T) (*world, *spec.Task) {
	w := newWorld(t)
	if _, err := w.client.PutStack(t.Context(), api.PutStack{Stack: nginx()}); err != nil {
		t.Fatal(err)
	}
	w.settle()
	task := w.store.Snapshot().TasksOf("shop", "web")[0]
	err := w.node.Report(t.Context(), spec.Report{Node: testNode, Tasks: []spec.TaskReport{{Task: task.ID,
		Status: spec.TaskStatus{State: spec.TaskRunning, Health: spec.HealthHealthy, PID: 42, Started: 1}}}})
	if err != nil {
		t.Fatal(err)
	}
	w.settle()
	return w, w.store.Snapshot().Task(task.ID)
}

func TestViews(t *testing.T) {
	w, task := running(t)
	ctx := t.Context()
	for _, ref := range []string{string(task.ID), "shop.web.1", "shop.web.1@" + string(task.ID), "shop/web"} {
		got, err := w.client.Task(ctx, ref)
		if err != nil || got.ID != task.ID || got.Name != "shop.web.1" || got.Node != "host-1" || got.State != spec.TaskRunning || !got.Current {
			t.Errorf("%s: %+v, %v", ref, got, err)
		}
	}
	st, err := w.client.StackStatus(ctx, "shop", api.Poll{})
	if err != nil || st.State != api.StateRunning || st.Tasks != 1 || len(st.Services) != 1 || st.Services[0].Replicas != (api.Replicas{Desired: 1, Running: 1}) {
		t.Errorf("status: %+v, %v", st, err)
	}
	nodes, err := w.client.Nodes(ctx)
	if err != nil || len(nodes.Items) != 1 || nodes.Items[0].Tasks != 1 || !nodes.Items[0].Leader {
		t.Errorf("nodes: %+v, %v", nodes, err)
	}
	ev, err := w.client.Events(ctx, 0, api.Poll{})
	if err != nil || len(ev.Items) == 0 {
		t.Errorf("events: %+v, %v", ev, err)
	}
	newest, err := w.client.RecentEvents(ctx, 1)
	if err != nil || len(newest.Items) != 1 || newest.Items[0].Seq != ev.Items[len(ev.Items)-1].Seq {
		t.Errorf("newest event: %+v, %v", newest, err)
	}
	if _, err := w.client.RecentEvents(ctx, -1); !errors.Is(err, spec.ErrInvalid) {
		t.Errorf("the newest -1 events: %v", err)
	}
}

// TestLongPoll: a list with an index waits for a newer state.
func TestLongPoll(t *testing.T) {
	w, _ := running(t)
	index := w.store.Snapshot().Index()
	got := make(chan api.List[api.TaskInfo])
	go func() {
		l, err := w.client.Tasks(t.Context(), api.TaskFilter{}, api.Poll{Index: index, Wait: time.Minute})
		if err != nil {
			t.Error(err)
		}
		got <- l
	}()
	if _, err := w.client.Scale(t.Context(), "shop", "web", api.Scale{Replicas: 2}); err != nil {
		t.Fatal(err)
	}
	if l := <-got; l.Index <= index {
		t.Errorf("index %d, want more than %d", l.Index, index)
	}
}

func TestLogs(t *testing.T) {
	w, _ := running(t)
	for i := range 3 {
		w.lines = append(w.lines, api.LogLine{Stream: "stdout", Log: fmt.Sprintf("%d\n", i)})
	}
	var got string
	err := w.client.Logs(t.Context(), "shop.web.1", api.LogOptions{Tail: 2}, func(l api.LogLine) error {
		got += l.Log
		return nil
	})
	if err != nil || got != "1\n2\n" {
		t.Errorf("logs %q, %v", got, err)
	}
}

func TestExec(t *testing.T) {
	w, task := running(t)
	run := func(r api.ExecRequest, s api.ExecIO) (int, string, string, error) {
		var out, errb bytes.Buffer
		s.Stdout, s.Stderr = &out, &errb
		code, err := w.client.Exec(t.Context(), "shop/web", r, s)
		return code, out.String(), errb.String(), err
	}
	big := strings.Repeat("0123456789", 50_000)
	if code, out, _, err := run(api.ExecRequest{Args: []string{"cat"}, Stdin: true}, api.ExecIO{Stdin: strings.NewReader(big)}); code != 0 || out != big || err != nil {
		t.Errorf("cat: %d, %d bytes of %d, %v", code, len(out), len(big), err)
	}
	if code, _, errOut, err := run(api.ExecRequest{Args: []string{"ls", "-l"}, User: "me"}, api.ExecIO{}); code != 7 || errOut != fmt.Sprintf(`ls -l in %s as "me"`, task.ID) || err != nil {
		t.Errorf("ls: %d %q %v", code, errOut, err)
	}
	sizes := make(chan [2]uint16, 1)
	sizes <- [2]uint16{80, 25}
	if _, out, _, err := run(api.ExecRequest{Args: []string{"size"}, TTY: true}, api.ExecIO{Resize: sizes}); out != "80x25" || err != nil {
		t.Errorf("size: %q %v", out, err)
	}
	if code, _, _, err := run(api.ExecRequest{Args: []string{"missing"}}, api.ExecIO{}); code != 127 || !errors.Is(err, spec.ErrInvalid) {
		t.Errorf("missing: %d %v", code, err)
	}
}
