package cluster

import (
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wherry.dev/api"
)

// TestLastCluster: the next life of a daemon knows what the one before was
// told, keys and all.
func TestLastCluster(t *testing.T) {
	open := func(path string) *Member {
		return &Member{dir: openDirectory(path, nil, slog.New(slog.DiscardHandler))}
	}
	path := filepath.Join(t.TempDir(), peersFile)
	m := open(path)
	if info, ok := m.LastCluster(); ok {
		t.Errorf("an empty folder knows %+v", info)
	}
	want := api.ClusterInfo{ClusterID: "c", Managers: []api.Peer{{ID: "a", Name: "m1", Address: "10.0.0.1:4477", Key: "k"}}}
	m.dir.setCluster(want)
	if err := m.dir.save(); err != nil {
		t.Fatal(err)
	}
	if got, ok := open(path).LastCluster(); !ok || !cmp.Equal(got, want) {
		t.Errorf("after a restart: %t, %s", ok, cmp.Diff(want, got))
	}
}
