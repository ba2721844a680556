package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"wherry.dev/api"
	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// instances are the volumes of a node, by ID. // :: volume → its one file
type instances map[spec.VolumeID]string

// The world has what its volumes map says; one whose text begins with "!" fails
// half way.
func (w *world) VolumeSize(_ context.Context, id spec.VolumeID) (bytes, files int64, err error) {
	return int64(len(w.instances[id])), 1, nil
}

func (w *world) ExportVolume(_ context.Context, id spec.VolumeID, out io.Writer) error {
	text := w.instances[id]
	if _, err := io.WriteString(out, text); err != nil {
		return err
	}
	if strings.HasPrefix(text, "!") {
		return errors.New("the disk is broken")
	}
	return nil
}

func (w *world) ImportVolume(_ context.Context, id spec.VolumeID, r io.Reader) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if string(b) == "damaged" {
		return spec.Invalidf("the archive is damaged")
	}
	w.instances[id] = string(b)
	return nil
}

func (w *world) GiveVolume(_ context.Context, id spec.VolumeID, peer spec.NodeID, out io.Writer) error {
	if string(peer) != w.gives {
		return spec.Conflictf("not told to give it to %s", peer)
	}
	_, err := io.WriteString(out, w.instances[id])
	return err
}

func TestVolumes(t *testing.T) {
	w := newWorld(t)
	w.must(store.Command{SetNodeState: &store.SetNodeState{ID: testNode, State: spec.NodeReady}})
	w.must(store.Command{PutNode: &store.PutNode{ID: "n2", Name: "host-2", Role: spec.RoleWorker, Address: "127.0.0.2:4477"}})
	w.must(store.Command{SetNodeState: &store.SetNodeState{ID: "n2", State: spec.NodeDown}})
	ctx := t.Context()
	wrong := func(err error, class string, want ...string) {
		t.Helper()
		if spec.ErrorClass(err) != class {
			t.Errorf("%v, want class %s", err, class)
			return
		}
		for _, s := range want {
			if !strings.Contains(err.Error(), s) {
				t.Errorf("%v does not say %q", err, s)
			}
		}
	}
	create := func(v api.CreateVolume) error {
		_, err := w.client.CreateVolume(ctx, v)
		return err
	}
	wrong(create(api.CreateVolume{Name: "a b", Spec: spec.VolumeSpec{DriverOpts: map[string]string{"size": "1"}}}), "invalid", "a b", "size")
	wrong(create(api.CreateVolume{Name: "pool", Node: "host-9"}), "not_found", "host-9")
	for _, v := range []api.CreateVolume{
		{Name: "pool", Spec: spec.VolumeSpec{Labels: map[string]string{"a": "b"}}}, {Name: "away", Node: "host-2"},
		{Name: "share", Spec: spec.VolumeSpec{DriverOpts: map[string]string{"type": "nfs", "device": "nas:/x"}}},
		{Name: "device", Spec: spec.VolumeSpec{DriverOpts: map[string]string{"type": "tmpfs", "device": "tmpfs"}}},
	} {
		if err := create(v); err != nil {
			t.Fatal(err)
		}
	}
	var b bytes.Buffer
	backup := func(name, node string) error { b.Reset(); return w.client.BackupVolume(ctx, name, node, &b) }
	restore := func(name, node, text string) error {
		return w.client.RestoreVolume(ctx, name, node, strings.NewReader(text))
	}
	wrong(backup("none", ""), "not_found", "none")
	wrong(backup("pool", ""), "conflict", "no data yet")
	wrong(restore("pool", "", "text"), "conflict", "on no node yet")
	wrong(restore("share", "", "text"), "invalid", "nas:/x")
	wrong(backup("device", ""), "conflict", "only while a task uses it")
	wrong(restore("device", "host-1", "text"), "invalid", "driver_opts")
	wrong(restore("away", "", "text"), "unavailable", "node host-2 is down")
	wrong(restore("away", "host-1", "text"), "conflict", "is not on node host-1 but on host-2")
	if err := restore("pool", "host-1", "text"); err != nil {
		t.Fatal(err)
	}
	wrong(restore("pool", "", "damaged"), "invalid", "damaged")
	if err := backup("pool", ""); err != nil || b.String() != "text" {
		t.Errorf("%q, %v", &b, err)
	}
	pool := w.store.Snapshot().VolumeNamed("pool").ID
	w.instances[pool] = "!" + strings.Repeat("x", 1<<20)
	if err := backup("pool", "host-1"); err == nil {
		t.Error("half a backup is taken for a whole one")
	}
	w.instances[pool] = "text"

	// Those who use it.
	stack := nginx()
	web := stack.Services["web"]
	web.Template.Mounts = []spec.Mount{{Type: spec.MountVolume, Source: "data", Target: "/data"}}
	stack.Services["web"], stack.Volumes = web, map[string]spec.VolumeSpec{"data": {}}
	w.must(store.Command{PutStack: &store.PutStack{Stack: stack}})
	w.settle()
	l, err := w.client.Volumes(ctx, true)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]api.VolumeInfo{}
	for _, v := range l.Items {
		found[v.Name] = v
	}
	if v := found["pool"]; v.Stack != "" || v.Labels["a"] != "b" || len(v.Nodes) != 1 || len(v.Instances) != 1 || v.Instances[0] != (api.VolumeInstance{Node: "host-1", Bytes: 4, Files: 1}) {
		t.Errorf("%+v", v)
	}
	if v := found["away"]; len(v.Instances) != 1 || !strings.Contains(v.Instances[0].Problem, "down") {
		t.Errorf("%+v", v)
	}
	if v := found["share"]; !v.Shared || len(v.Instances) != 0 || v.Options["device"] != "nas:/x" {
		t.Errorf("%+v", v)
	}
	if v := found["shop_data"]; !v.InUse || len(v.Services) != 1 || v.Services[0] != "shop/web" || v.Stack != "shop" {
		t.Errorf("%+v", v)
	}
	wrong(restore("shop_data", "", "text"), "conflict", "used by task shop.web.1", "wherry service scale shop/web=0")

	_, err = w.client.MoveVolume(ctx, "pool", api.MoveVolume{Node: "host-2"})
	wrong(err, "conflict", "host-2 is down")
	w.must(store.Command{SetNodeState: &store.SetNodeState{ID: "n2", State: spec.NodeReady}})
	if _, err = w.client.MoveVolume(ctx, "pool", api.MoveVolume{Node: "host-2"}); err != nil {
		t.Fatal(err)
	}
	v, err := w.client.Volume(ctx, "pool", false)
	if err != nil || v.Move == nil || v.Move.To != "host-2" || v.Instances != nil {
		t.Errorf("%+v, %v", v, err)
	}
	wrong(restore("pool", "", "text"), "conflict", "being moved")
	_, err = w.node.GiveVolume(ctx, pool)
	wrong(err, "conflict", "not told to give")
	w.gives = string(testNode)
	body, err := w.node.GiveVolume(ctx, pool)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	if b, err := io.ReadAll(body); string(b) != "text" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
}

// TestStreamIsCut: an archive that is not whole does not look so.
func TestStreamIsCut(t *testing.T) {
	w := quietWorld(t)
	srv := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		_ = w.server.stream(rw, r, func(out io.Writer) error {
			if _, err := out.Write([]byte("half")); err != nil {
				return err
			}
			return errors.New("broken")
		})
	}))
	defer srv.Close()
	resp, err := http.Get(srv.URL)
	if err == nil {
		_, err = io.ReadAll(resp.Body)
		resp.Body.Close()
	}
	if err == nil {
		t.Error("nobody can tell")
	}
}
