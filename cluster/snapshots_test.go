package cluster

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/raft"
)

func TestSnapshots(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "snapshots")
	key := bytes.Repeat([]byte{1}, keySize)
	var taken []uint64
	open := func() (*snapshots, error) {
		return openSnapshots(dir, key, func(i uint64) { taken = append(taken, i) })
	}
	s, err := open()
	if err != nil {
		t.Fatal(err)
	}
	if l, err := s.List(); err != nil || len(l) != 0 {
		t.Fatalf("new store lists %v, %v", l, err)
	}
	conf := raft.Configuration{Servers: []raft.Server{{ID: "a", Address: "a"}}}
	begin := func(index uint64, content string) raft.SnapshotSink {
		t.Helper()
		k, err := s.Create(1, index, 2, conf, 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(k, content); err != nil {
			t.Fatal(err)
		}
		return k
	}
	want := bytes.Repeat([]byte("state "), 50_000)
	if err := begin(10, "old").Close(); err != nil {
		t.Fatal(err)
	}
	if err := begin(20, string(want)).Close(); err != nil {
		t.Fatal(err)
	}
	if err := begin(30, "dropped").Cancel(); err != nil {
		t.Fatal(err)
	}
	begin(40, "never finished")
	if s, err = open(); err != nil { // as after a crash
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Fatalf("folder holds %v, %v", entries, err)
	}
	l, err := s.List()
	if err != nil || len(l) != 1 {
		t.Fatalf("list %v, %v", l, err)
	}
	meta, r, err := s.Open(l[0].ID)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("%d bytes back, err %v", len(got), err)
	}
	if diff := cmp.Diff(&raft.SnapshotMeta{
		Version: 1, ID: "2-20.snap", Index: 20, Term: 2, Size: int64(len(want)),
		Configuration: conf, ConfigurationIndex: 1,
	}, meta); diff != "" {
		t.Fatal(diff)
	}
	if diff := cmp.Diff([]uint64{10, 20}, taken); diff != "" {
		t.Fatal(diff)
	}

	path := filepath.Join(dir, entries[0].Name())
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(raw, []byte("state ")) {
		t.Error("the snapshot is on the disk in clear")
	}
	for _, bad := range [][]byte{raw[:len(raw)-1], raw[:20], append(bytes.Clone(raw[:len(raw)-1]), raw[len(raw)-1]^1)} {
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := open(); err == nil {
			t.Errorf("a damaged snapshot of %d bytes was accepted", len(bad))
		}
	}
}
