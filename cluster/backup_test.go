package cluster

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wherry.dev/spec"
)

func TestBackupAndRestore(t *testing.T) {
	y := newMany(t)
	a := y.first("a")
	y.join("b", spec.RoleManager)
	y.voters(2)
	y.write(a, "kept", "canary-51aa")
	var backup bytes.Buffer
	if err := y.live["b"].Backup(t.Context(), &backup); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(backup.Bytes(), []byte("canary-")) {
		t.Error("the backup holds the state in clear")
	}
	text, err := a.BackupKey()
	if err != nil {
		t.Fatal(err)
	}
	key := []byte(text)
	was, incarnation, content := a.Store().Snapshot().ClusterID(), a.Store().Snapshot().Incarnation(), a.ContentKey()
	y.stop("b")
	y.live["a"].stop()
	<-y.live["a"].done
	delete(y.live, "a")

	dir := filepath.Join(t.TempDir(), "new")
	damaged := bytes.Clone(backup.Bytes())
	damaged[len(damaged)-5] ^= 1
	for _, tt := range []struct {
		what   string
		backup []byte
		key    []byte
		says   string
	}{
		{"another key", backup.Bytes(), bytes.Repeat([]byte{1}, keySize), "key is that of another cluster"},
		{"no key", backup.Bytes(), []byte("hello"), "no key of a cluster"},
		{"damage", damaged, key, "damaged"},
		{"a cut", backup.Bytes()[:backup.Len()-100], key, "cut off"},
		{"a cut in the head", backup.Bytes()[:60], key, "cut off"},
		{"something else", []byte(strings.Repeat("x", 200)), key, "not a backup"},
	} {
		err := Restore(dir, bytes.NewReader(tt.backup), tt.key)
		if !errors.Is(err, spec.ErrInvalid) || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("restore with %s: %v", tt.what, err)
		}
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("restore with %s left something behind", tt.what)
		}
	}
	if err := Restore(dir, &backup, key); err != nil {
		t.Fatal(err)
	}
	if err := Restore(dir, bytes.NewReader(damaged), key); err == nil {
		t.Error("restored twice into one folder")
	}
	// The new machine has a new address, and the old name.
	y.dirs["a"] = dir
	clear(y.at)
	r := y.first("a")
	s := r.Store().Snapshot()
	if s.ClusterID() != was || s.Incarnation() != incarnation+1 || !bytes.Equal(r.ContentKey(), content) {
		t.Errorf("restored: cluster %s, incarnation %d", s.ClusterID(), s.Incarnation())
	}
	for _, n := range s.Nodes() {
		if n.Name != "a" || n.ID != r.Node() {
			t.Errorf("restored with node %+v", n)
		}
	}
	delete(y.dirs, "b")
	y.join("b", spec.RoleManager)
	y.voters(2)
	y.write(y.live["b"], "more", "yes")
}
