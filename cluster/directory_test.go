package cluster

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wherry.dev/api"
	"wherry.dev/spec"
)

func newDirectory(t *testing.T, seeds ...string) *directory {
	t.Helper()
	return openDirectory(filepath.Join(t.TempDir(), peersFile), seeds, slog.New(slog.DiscardHandler))
}

func TestDirectoryPrefersNews(t *testing.T) {
	d := newDirectory(t)
	check := func(what string, want ...string) {
		t.Helper()
		if got := d.find("n"); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", what, got, want)
		}
	}
	check("unknown")
	d.tell("n", "10.0.0.1:1", fromState)
	check("told", "10.0.0.1:1")
	d.tell("n", "10.0.0.2:1", fromSession)
	check("another source says otherwise", "10.0.0.2:1", "10.0.0.1:1")
	d.tell("n", "10.0.0.1:1", fromState)
	check("a source repeats itself", "10.0.0.2:1", "10.0.0.1:1")
	d.tell("n", "10.0.0.1:1", fromGossip)
	check("a source's first word is what is known", "10.0.0.2:1", "10.0.0.1:1")
	d.tell("n", "10.0.0.2:1", fromGossip)
	d.tell("n", "10.0.0.1:1", fromGossip)
	check("it moved back", "10.0.0.1:1", "10.0.0.2:1")
	d.learn("n", "10.0.0.3:1")
	check("it answered", "10.0.0.3:1", "10.0.0.1:1", "10.0.0.2:1")
	d.learn("other", "10.0.0.3:1")
	check("another one answered", "10.0.0.1:1", "10.0.0.2:1", "10.0.0.3:1")
	for _, bad := range []string{"", "10.0.0.1", ":4477", "10.0.0.1:0", strings.Repeat("x", 400) + ":1"} {
		d.tell("n", bad, fromGossip)
	}
	d.learn("n", "10.0.0.4:1")
	d.learn("n", "10.0.0.5:1")
	check("four are kept", "10.0.0.5:1", "10.0.0.4:1", "10.0.0.1:1", "10.0.0.2:1")
	if got := d.ids(); !slices.Equal(got, []spec.NodeID{"n", "other"}) {
		t.Errorf("%q", got)
	}
	d.tell("n", "10.0.0.9:1", fromState)
	for _, a := range []string{"10.0.0.10:1", "10.0.0.11:1", "10.0.0.12:1", "10.0.0.13:1", "10.0.0.14:1"} {
		d.tell("n", a, fromGossip)
	}
	check("what the state says stays", "10.0.0.14:1", "10.0.0.13:1", "10.0.0.12:1", "10.0.0.9:1")
	d.learn("n", "10.0.0.9:1")
	d.learn("n", "10.0.0.15:1")
	check("also when it was first", "10.0.0.15:1", "10.0.0.9:1", "10.0.0.14:1", "10.0.0.13:1")
	d.tell("n", "10.0.0.16:1", fromState)
	check("the state says something else", "10.0.0.16:1", "10.0.0.15:1", "10.0.0.9:1", "10.0.0.14:1")
	d.setNodes([]*spec.Node{{ID: "other", Address: "10.0.0.3:1"}, {ID: "new", Address: "10.0.0.9:1"}})
	check("removed from the cluster")
	if got := d.find("new"); !slices.Equal(got, []string{"10.0.0.9:1"}) {
		t.Errorf("%q", got)
	}
}

func TestDirectorySeeds(t *testing.T) {
	d := newDirectory(t, "10.0.0.1:1", "host:2")
	d.tell("n", "10.0.0.7:1", fromState)
	if got := d.find("n"); !slices.Equal(got, []string{"10.0.0.7:1", "10.0.0.1:1", "host:2"}) {
		t.Errorf("%q", got)
	}
	d.learn("m", "host:2")
	if got := d.find("n"); !slices.Equal(got, []string{"10.0.0.7:1", "10.0.0.1:1"}) {
		t.Errorf("a seed of which it is known whose it is: %q", got)
	}
	if got := d.known("n"); !slices.Equal(got, []string{"10.0.0.7:1"}) {
		t.Errorf("%q", got)
	}
}

func TestDirectoryIsKept(t *testing.T) {
	d := newDirectory(t)
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() {
		if err := d.run(ctx); err != nil {
			t.Error(err)
		}
	})
	d.tell("n", "10.0.0.1:1", fromState)
	d.tell("n", "10.0.0.2:1", fromGossip)
	info := api.ClusterInfo{ClusterID: "c", Role: spec.RoleWorker, Managers: []api.Peer{{ID: "m", Name: "m1", Address: "10.0.0.3:1"}}}
	d.setCluster(info)
	stop()
	all.Wait()
	d = openDirectory(d.path, nil, d.log)
	if got := d.find("n"); !slices.Equal(got, []string{"10.0.0.2:1", "10.0.0.1:1"}) {
		t.Errorf("%q", got)
	}
	if got := d.find("m"); !slices.Equal(got, []string{"10.0.0.3:1"}) {
		t.Errorf("%q", got)
	}
	if got, ok := d.cluster(); !ok || cmp.Diff(info, got) != "" {
		t.Errorf("%+v", got)
	}
	// What the state says at the start may be older than the file.
	d.tell("n", "10.0.0.1:1", fromState)
	if got := d.find("n"); got[0] != "10.0.0.2:1" {
		t.Errorf("%q", got)
	}
	before, err := os.Stat(d.path)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.save(); err != nil {
		t.Fatal(err)
	}
	after, err := os.Stat(d.path)
	if err != nil || !os.SameFile(before, after) {
		t.Errorf("written again without a change: %v", err)
	}

	if err := os.WriteFile(d.path, []byte(`{"nodes":{"n":["10.0`), 0o600); err != nil {
		t.Fatal(err)
	}
	d = openDirectory(d.path, []string{"10.0.0.1:1"}, d.log)
	if got := d.find("n"); !slices.Equal(got, []string{"10.0.0.1:1"}) {
		t.Errorf("from a damaged file: %q", got)
	}
	if _, ok := d.cluster(); ok {
		t.Error("a damaged file says something of the cluster")
	}
}
