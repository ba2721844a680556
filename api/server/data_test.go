package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"maps"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"wherry.dev/api"
	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

func packed(t *testing.T, text string) (spec.ContentID, []byte) {
	t.Helper()
	b, err := spec.PackContent([]spec.ContentFile{{Path: ".", Mode: 0o444, Data: []byte(text)}})
	if err != nil {
		t.Fatal(err)
	}
	return spec.PlainContentID(b), b
}

// secretive is a stack whose service has the secret key and the config conf.
func secretive(t *testing.T, key, conf string) api.PutStack {
	t.Helper()
	p := api.PutStack{Stack: nginx(), Contents: map[spec.ContentID][]byte{}, Author: "ann"}
	kid, kb := packed(t, key)
	cid, cb := packed(t, conf)
	p.Contents[kid], p.Contents[cid] = kb, cb
	p.Stack.Secrets = map[string]spec.DatumSpec{"key": {Content: kid, Labels: map[string]string{"a": "b"}}}
	p.Stack.Configs = map[string]spec.DatumSpec{"conf": {Content: cid}}
	svc := p.Stack.Services["web"]
	svc.Template.Mounts = []spec.Mount{
		{Type: spec.MountSecret, Source: "key", Target: "/run/secrets/key"},
		{Type: spec.MountConfig, Source: "conf", Target: "/conf", OnChange: spec.OnChangeNone},
	}
	p.Stack.Services["web"] = svc
	return p
}

// answers is all that an operator can ask for, as text.
func (w *world) answers() string {
	w.t.Helper()
	var b strings.Builder
	srv := w.server.Handler(api.RuleOperator)
	for _, r := range api.Routes {
		if r.Method != "GET" || r.Rule != api.RuleOperator || strings.HasPrefix(r.Path, "/v1/cluster") || strings.Contains(r.Path, "logs") || strings.HasPrefix(r.Path, "/v1/images") {
			continue
		}
		path := strings.NewReplacer("{stack}", "shop", "{service}", "web", "{task}", "shop.web.1", "{node}", "host-1", "{name}", "shop_key", "{network}", "x").Replace(r.Path)
		rec := httptest.NewRecorder()
		srv.ServeHTTP(rec, httptest.NewRequest("GET", path, nil))
		b.WriteString(rec.Body.String())
	}
	return b.String()
}

func TestSecretsStayHidden(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	const value = "hunter2-is-the-word"
	plain, _ := packed(t, value)
	if _, err := w.client.PutDatum(ctx, spec.DatumSecret, "alone", api.PutDatum{Data: []byte(value + "-alone")}); err != nil {
		t.Fatal(err)
	}
	put := secretive(t, value, "no secret at all")
	plan, err := w.client.Plan(ctx, put)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.client.PutStack(ctx, put); err != nil {
		t.Fatal(err)
	}
	w.settle()
	next := secretive(t, value+"-changed", "no secret at all")
	changed, err := w.client.Plan(ctx, next)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := json.Marshal([]api.Plan{plan, changed})
	var state bytes.Buffer
	if err := w.store.Persist(&state); err != nil {
		t.Fatal(err)
	}
	all := w.answers()
	if !strings.Contains(all, "shop_key") || !strings.Contains(all, "alone") || !strings.Contains(string(b), "secret key changed") {
		t.Fatalf("the answers say nothing of the secrets: %s %s", all, b)
	}
	for where, text := range map[string]string{"the state": state.String(), "an answer": all, "a plan": string(b)} {
		for _, x := range []string{value, string(plain), string(plain)[7:19], "aHVudGVyMi1pcy10aGUtd29yZ"} { // also in base64
			if strings.Contains(text, x) {
				t.Errorf("%s holds %q", where, x)
			}
		}
	}
	blind := true
	for _, c := range w.store.Snapshot().Contents() {
		blind = blind && !bytes.Contains(c.Data, []byte("no secret at all"))
	}
	if blind {
		t.Error("the config is not found either")
	}
	for _, c := range w.store.Snapshot().Contents() {
		if bytes.Contains(c.Data, []byte("hunter2")) {
			t.Errorf("content %s is not sealed", c.ID)
		}
	}
}

// A node gets a secret as long as it runs a task that uses it.
func TestWhoGetsSecrets(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	w.must(store.Command{PutNode: &store.PutNode{ID: "bbbbbbbbbbbbbbbb", Name: "host-2", Role: spec.RoleWorker, Address: "127.0.0.2:4477"}})
	put := secretive(t, "hunter2", "conf")
	put.Stack.Services["web"] = func() spec.ServiceSpec {
		s := put.Stack.Services["web"]
		s.Placement.Constraints = []string{"node.hostname==host-2"}
		return s
	}()
	if _, err := w.client.PutStack(ctx, put); err != nil {
		t.Fatal(err)
	}
	w.settle()
	id := w.store.Snapshot().StackRevision("shop", 1).Spec.Secrets["key"].Content
	if _, err := w.node.Content(ctx, id); !errors.Is(err, api.ErrForbidden) || !strings.Contains(err.Error(), "has no task that uses secret content "+id.Short()) {
		t.Errorf("a node without a task: %v", err)
	}
	if _, err := w.node.Content(ctx, w.store.Snapshot().StackRevision("shop", 1).Spec.Configs["conf"].Content); err != nil {
		t.Errorf("a config: %v", err)
	}
	move := secretive(t, "hunter2", "conf")
	s := move.Stack.Services["web"]
	s.Placement.Constraints = []string{"node.hostname==host-1"}
	move.Stack.Services["web"] = s
	// The state here may lag behind that of who told the node.
	w.mu.Lock()
	w.catchUp = func() {
		w.mu.Unlock()
		defer w.mu.Lock()
		if _, err := w.client.PutStack(ctx, move); err != nil {
			t.Error(err)
		}
		w.settle()
		for _, task := range w.store.Snapshot().Tasks() {
			if task.Desired != spec.DesiredRunning {
				w.must(store.Command{Reports: &store.Reports{Reports: []spec.Report{{Node: task.Node, Tasks: []spec.TaskReport{{Task: task.ID, Status: spec.TaskStatus{State: spec.TaskStopped}}}}}}})
			}
		}
		w.settle()
	}
	w.mu.Unlock()
	b, err := w.node.Content(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	if files, err := spec.UnpackContent(b); err != nil || string(files[0].Data) != "hunter2" {
		t.Errorf("the node got %v, %v", files, err)
	}
	if _, err := w.client.RemoveStack(ctx, "shop", false, ""); err != nil {
		t.Fatal(err)
	}
	w.settle()
	for _, task := range w.store.Snapshot().Tasks() {
		w.must(store.Command{Reports: &store.Reports{Reports: []spec.Report{{Node: task.Node, Tasks: []spec.TaskReport{{Task: task.ID, Status: spec.TaskStatus{State: spec.TaskStopped}}}}}}})
	}
	if _, err := w.node.Content(ctx, id); !errors.Is(err, api.ErrForbidden) {
		t.Errorf("after the last task: %v", err)
	}
}

func TestData(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	secret := spec.DatumSecret
	if l, err := w.client.Data(ctx, secret); err != nil || l.Items == nil || len(l.Items) != 0 {
		t.Errorf("no secrets: %+v, %v", l, err)
	}
	if _, err := w.client.Datum(ctx, secret, "x"); !errors.Is(err, spec.ErrNotFound) || err.Error() != `secret "x" does not exist; there are no secrets` {
		t.Errorf("unknown: %v", err)
	}
	first := api.PutDatum{Data: []byte("one"), Labels: map[string]string{"team": "a"}, Author: "ann", RequestID: "r1"}
	wr, err := w.client.PutDatum(ctx, secret, "shared", first)
	if err != nil || !wr.Changed || len(wr.Users) != 0 {
		t.Fatalf("%+v, %v", wr, err)
	}
	if again, err := w.client.PutDatum(ctx, secret, "shared", first); err != nil || again.Index != wr.Index {
		t.Errorf("a repeat: %+v, %v", again, err)
	}
	put := secretive(t, "own", "conf")
	put.Stack.Secrets["shared"] = spec.DatumSpec{External: true}
	svc := put.Stack.Services["web"]
	svc.Template.Mounts = append(svc.Template.Mounts, spec.Mount{Type: spec.MountSecret, Source: "shared", Target: "/run/secrets/shared"})
	put.Stack.Services["web"] = svc
	if _, err := w.client.PutStack(ctx, put); err != nil {
		t.Fatal(err)
	}
	w.settle()
	if _, err := w.client.PutDatum(ctx, secret, "shared", api.PutDatum{Data: []byte("two")}); !errors.Is(err, spec.ErrConflict) || !strings.Contains(err.Error(), "replace") {
		t.Errorf("another value: %v", err)
	}
	if wr, err = w.client.PutDatum(ctx, secret, "shared", api.PutDatum{Data: []byte("two!"), Replace: true, Author: "bob"}); err != nil || !slices.Equal(wr.Users, []string{"shop/web"}) {
		t.Errorf("replaced: %+v, %v", wr, err)
	}
	d, err := w.client.Datum(ctx, secret, "shared")
	if err != nil || d.Size != 4 || len(d.Versions) != 2 || !d.Versions[0].Current || d.Versions[1].Current || d.Versions[1].Author != "ann" || d.Versions[1].Tasks != 1 ||
		!slices.Equal(d.Versions[0].Revisions, []string{"shop@2"}) || !slices.Equal(d.Versions[1].Revisions, []string{"shop@1"}) || !slices.Equal(d.Users, []string{"shop/web"}) || d.Version == 0 {
		t.Errorf("%+v, %v", d, err)
	}
	l, err := w.client.Data(ctx, secret)
	if err != nil || len(l.Items) != 2 || l.Items[0].Name != "shared" || l.Items[1].Name != "shop_key" || l.Items[1].Stack != "shop" || l.Items[1].Size != 3 ||
		!slices.Equal(l.Items[1].Users, []string{"shop/web"}) || !slices.Equal(l.Items[1].Versions[0].Revisions, []string{"shop@2", "shop@1"}) {
		t.Errorf("%+v, %v", l, err)
	}
	if l, err := w.client.Data(ctx, spec.DatumConfig); err != nil || len(l.Items) != 1 || l.Items[0].Name != "shop_conf" {
		t.Errorf("%+v, %v", l, err)
	}
	if _, err := w.client.RemoveDatum(ctx, secret, "shared", ""); !errors.Is(err, spec.ErrConflict) || !strings.Contains(err.Error(), "in use by shop/web") {
		t.Errorf("removed while in use: %v", err)
	}
	base := uint64(1)
	if _, err := w.client.PutDatum(ctx, secret, "shared", api.PutDatum{Data: []byte("3"), Replace: true, Base: &base}); !errors.Is(err, spec.ErrConflict) {
		t.Errorf("an old base: %v", err)
	}
	if _, err := w.client.RemoveStack(ctx, "shop", false, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := w.client.RemoveDatum(ctx, secret, "shared", ""); err != nil {
		t.Error(err)
	}
	if _, err := w.client.Datum(ctx, secret, "shared"); !errors.Is(err, spec.ErrNotFound) {
		t.Errorf("removed: %v", err)
	}
}

func TestDataRefused(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	w.images["docker.io/library/nginx:1"] = "sha256:" + strings.Repeat("0", 64)
	for want, f := range map[string]func() error{
		"it has 512001 bytes, and at most 500 KiB are allowed": func() error {
			_, err := w.client.PutDatum(ctx, spec.DatumSecret, "x", api.PutDatum{Data: make([]byte, spec.MaxSecret+1)})
			return err
		},
		"it has 1024001 bytes, and at most 1000 KiB are allowed": func() error {
			_, err := w.client.PutDatum(ctx, spec.DatumConfig, "x", api.PutDatum{Data: make([]byte, spec.MaxConfig+1)})
			return err
		},
		"request is larger than 2048 KiB": func() error {
			_, err := w.client.PutDatum(ctx, spec.DatumConfig, "x", api.PutDatum{Data: make([]byte, 3<<20)})
			return err
		},
		"the name \"a b\" is not valid": func() error {
			_, err := w.client.PutDatum(ctx, spec.DatumConfig, "a b", api.PutDatum{Labels: map[string]string{"": "x"}})
			if err != nil && !strings.Contains(err.Error(), "a label has no name") {
				t.Errorf("not all problems at once: %v", err)
			}
			return err
		},
		"config x: x:2: unclosed action": func() error {
			_, err := w.client.PutDatum(ctx, spec.DatumConfig, "x", api.PutDatum{Data: []byte("\n{{"), Render: new(true)})
			return err
		},
		"secret x: x:1: the template is not valid there": func() error {
			_, err := w.client.PutDatum(ctx, spec.DatumSecret, "x", api.PutDatum{Data: []byte("{{hunter2}}"), Render: new(true)})
			return err
		},
	} {
		if err := f(); !errors.Is(err, spec.ErrInvalid) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter") {
			t.Errorf("want %q, got %v", want, err)
		}
	}
	if _, err := w.client.PutDatum(ctx, spec.DatumConfig, "tmpl", api.PutDatum{Data: []byte("{{secret \"none\"}}"), Render: new(true)}); err != nil {
		t.Fatal(err)
	}
	plain := func(p *api.PutStack) spec.ContentID { return p.Stack.Secrets["key"].Content }
	set := func(p *api.PutStack, d spec.DatumSpec) { p.Stack.Secrets["key"] = d }
	folder, err := spec.PackContent([]spec.ContentFile{{Path: ".", Dir: true, Mode: 0o755}, {Path: "hunter2", Mode: 0o644}})
	if err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(p *api.PutStack){
		"secrets.key: its content was not sent": func(p *api.PutStack) { delete(p.Contents, plain(p)) },
		"secrets.key: its content is damaged":   func(p *api.PutStack) { p.Contents[plain(p)] = []byte("hunter2") },
		"secrets.key: its content is not a single file": func(p *api.PutStack) {
			p.Contents[spec.PlainContentID(folder)] = folder
			set(p, spec.DatumSpec{Content: spec.PlainContentID(folder)})
		},
		"secrets.key: its content is no archive": func(p *api.PutStack) {
			b := bytes.Repeat([]byte("hunter2"), 1000)
			p.Contents[spec.PlainContentID(b)] = b
			set(p, spec.DatumSpec{Content: spec.PlainContentID(b)})
		},
		"secrets.key: it has 512001 bytes: a secret has at most 500 KiB": func(p *api.PutStack) {
			id, b := packed(t, strings.Repeat("x", spec.MaxSecret+1))
			p.Contents[id] = b
			set(p, spec.DatumSpec{Content: id})
		},
		"secrets.key: its content is of no kept revision of stack shop": func(p *api.PutStack) {
			set(p, spec.DatumSpec{Content: spec.ContentID("sealed:" + strings.Repeat("a", 64))})
		},
		"secrets.key: its content is of no kept revision": func(p *api.PutStack) { // by the ID of a config
			set(p, spec.DatumSpec{Content: spec.ContentID("hmac:" + strings.Repeat("a", 64))})
		},
		"configs.conf for service web: conf:1:2:": func(p *api.PutStack) {
			p.Stack.Configs["conf"] = spec.DatumSpec{External: true, Name: "tmpl"}
		},
		"services.web.volumes[0]: content": func(p *api.PutStack) {
			svc := p.Stack.Services["web"]
			svc.Template.Mounts = []spec.Mount{{Type: spec.MountContent, Target: "/x", Content: "sha256:" + spec.ContentID(strings.Repeat("b", 64))}}
			p.Stack.Services["web"] = svc
		},
		"mounts[0].content:": func(p *api.PutStack) { // a secret as something else
			svc := p.Stack.Services["web"]
			svc.Template.Mounts = []spec.Mount{{Type: spec.MountContent, Target: "/x", Content: "sealed:" + spec.ContentID(strings.Repeat("b", 64))}}
			p.Stack.Services["web"] = svc
		},
	} {
		p := secretive(t, "hunter2", "conf")
		hash := string(plain(&p))[7:]
		change(&p)
		_, err := w.client.PutStack(ctx, p)
		if !errors.Is(err, spec.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
			continue
		}
		if strings.Contains(err.Error(), "hunter") || strings.Contains(err.Error(), hash) {
			t.Errorf("the error tells of the secret: %v", err)
		}
	}
	if n := len(w.store.Snapshot().Stacks()); n != 0 {
		t.Errorf("a refused stack was written: %d", n)
	}

	// A kept revision of the stack may come back, and to no other stack.
	if _, err := w.client.PutStack(ctx, secretive(t, "hunter2", "conf")); err != nil {
		t.Fatal(err)
	}
	old := w.store.Snapshot().StackRevision("shop", 1).Spec
	if _, err := w.client.PutStack(ctx, secretive(t, "hunter3", "conf")); err != nil {
		t.Fatal(err)
	}
	if wr, err := w.client.PutStack(ctx, api.PutStack{Stack: old}); err != nil || wr.Revision != 3 {
		t.Errorf("the old revision: %+v, %v", wr, err)
	}
	spy := old
	spy.Name = "spy"
	if _, err := w.client.PutStack(ctx, api.PutStack{Stack: spy}); !errors.Is(err, spec.ErrInvalid) || !strings.Contains(err.Error(), "secrets.key: its content is of no kept revision of stack spy") {
		t.Errorf("the secret of another stack by its ID: %v", err)
	}
}

// A node cannot fill the state with what it says of files.
func TestReportedFilesAreBounded(t *testing.T) {
	files := map[spec.DatumKey]spec.ContentID{"secret a": "sealed:1", spec.DatumKey(strings.Repeat("k", 1000)): "x", "secret b": spec.ContentID(strings.Repeat("v", 1000))}
	many := map[spec.DatumKey]spec.ContentID{}
	for i := range maxFiles + 1 {
		many[spec.KeyOf(spec.DatumSecret, strings.Repeat("x", i))] = "x"
	}
	rep := spec.Report{Tasks: []spec.TaskReport{{Status: spec.TaskStatus{Files: maps.Clone(files)}}, {Status: spec.TaskStatus{Files: many}}}}
	if err := bound(&rep); err != nil {
		t.Fatal(err)
	}
	if got := rep.Tasks[0].Status.Files; len(got) != 1 || got["secret a"] == "" || rep.Tasks[1].Status.Files != nil {
		t.Errorf("left are %v and %d", got, len(rep.Tasks[1].Status.Files))
	}
}
