package cluster

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/raft"

	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// logged is what a member says.
type logged struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(b)
}

func (l *logged) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.text.String(), text)
}

func (l *logged) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func TestRecoverAlone(t *testing.T) {
	y := three(t)
	y.write(y.live["a"], "kept", "yes")
	incarnation := y.live["a"].Store().Snapshot().Incarnation()
	for _, name := range []string{"a", "b", "c"} {
		y.stop(name)
	}
	c := y.config("a")
	c.Recover = true
	r := y.run("a", c)
	r.await(r.Ready(), "ready")
	s := r.Store().Snapshot()
	if got := y.label(r, "kept"); got != "yes" || s.Incarnation() != incarnation+1 {
		t.Errorf("after recovery: %q, incarnation %d", got, s.Incarnation())
	}
	if ids := managersOf(s.Nodes()); len(ids) != 1 || len(r.Status().Voters) != 1 {
		t.Errorf("after recovery there are managers %v, voters %v", ids, r.Status().Voters)
	}
	y.write(r, "more", "yes")
	y.stop("a")
	// The flag that stays in place does no harm.
	r = y.run("a", c)
	r.await(r.Ready(), "ready")
	if got := r.Store().Snapshot().Incarnation(); got != incarnation+1 {
		t.Errorf("the second start with --recover raised the incarnation to %d", got)
	}
	// A manager that was given up joins again with an empty folder.
	delete(y.dirs, "b")
	y.join("b", spec.RoleManager)
	y.voters(2)
}

func TestRecoverRefusals(t *testing.T) {
	y := newMany(t)
	y.first("a")
	y.join("w", spec.RoleWorker)
	y.stop("w")
	c := y.config("w")
	c.Recover = true
	if _, err := Open(t.Context(), c); !errors.Is(err, spec.ErrInvalid) || !strings.Contains(err.Error(), "worker") {
		t.Errorf("recovery on a worker: %v", err)
	}
}

// A flag that was forgotten must not split a cluster that is well.
func TestRecoverIsRefusedWhileTheMajorityIsThere(t *testing.T) {
	y := three(t)
	y.write(y.live["b"], "before", "yes")
	c := y.config("a")
	c.Recover = true
	refused := func(says string) {
		t.Helper()
		m, err := Open(t.Context(), c)
		if err == nil {
			m.release()
		}
		if !errors.Is(err, spec.ErrConflict) || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "start without --recover") {
			t.Fatalf("recovery beside the majority: %v", err)
		}
		if _, err := os.Stat(filepath.Join(c.DataDir, raftDir, lifeFile)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("a refused recovery left its mark: %v", err)
		}
	}
	y.stop("a")
	c.Listen, c.Advertise = y.at["a"], y.at["a"]
	refused("managers b, c answer")
	y.stop("c")
	refused("manager b answers")
	// Without the flag nothing has happened.
	r := y.run("a", y.config("a"))
	r.await(r.Ready(), "ready")
	y.write(r, "after", "yes")
	if s := r.Store().Snapshot(); s.Incarnation() != 1 || len(managersOf(s.Nodes())) != 3 {
		t.Errorf("incarnation %d, managers %v", s.Incarnation(), managersOf(s.Nodes()))
	}
}

// Two of five are too few, but the other one must be known to be there.
func TestRecoverBesideAMinority(t *testing.T) {
	y := three(t)
	y.join("d", spec.RoleManager)
	y.join("e", spec.RoleManager)
	y.voters(5)
	y.write(y.live["a"], "kept", "yes")
	for _, name := range []string{"a", "c", "d", "e"} {
		y.stop(name)
	}
	var said logged
	c := y.config("a")
	c.Recover, c.Logger = true, said.logger()
	r := y.run("a", c)
	r.await(r.Ready(), "ready")
	if !said.has("still answer") || !said.has("never use their data folders again") || !said.has("managers=b\n") {
		t.Errorf("it does not say that b is there:\n%s", said.text.String())
	}
	if s := r.Store().Snapshot(); s.Incarnation() != 2 || len(managersOf(s.Nodes())) != 1 || y.label(r, "kept") != "yes" {
		t.Errorf("incarnation %d, managers %v", s.Incarnation(), managersOf(s.Nodes()))
	}
	y.write(r, "more", "yes")
}

// A recovery that died before it had changed anything is none.
func TestRecoveryThatWasBrokenOff(t *testing.T) {
	y := three(t)
	y.stop("a")
	folder := filepath.Join(y.dirs["a"], raftDir)
	if err := writeLife(folder, newLife{2}); err != nil {
		t.Fatal(err)
	}
	r := y.run("a", y.config("a"))
	if _, err := os.Stat(filepath.Join(folder, lifeFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the mark is still there: %v", err)
	}
	r.await(r.Ready(), "ready")
	y.voters(3)
}

// A state that a version without clusters has made gets its new format before
// what needs it.
func TestStateOfTheFirstFormat(t *testing.T) {
	y := newMany(t)
	dir := filepath.Join(t.TempDir(), "a")
	y.dirs["a"] = dir
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	old, keys := store.New(), newKeyring()
	blue := "blue"
	id := spec.NodeID(newNodeID())
	for i, c := range []store.Command{
		{Bootstrap: &store.Bootstrap{ClusterID: "c1", Incarnation: 1, Format: 1}},
		{PutNode: &store.PutNode{ID: id, Name: "a", Address: "127.0.0.1:4477", Role: spec.RoleManager}},
		{SetNode: &store.SetNode{ID: id, Labels: map[string]*string{"color": &blue}}},
	} {
		if res := old.Apply(uint64(i+1), c); res.Err != nil {
			t.Fatal(res.Err)
		}
	}
	if err := writeRestored(dir, keys, old.Snapshot()); err != nil {
		t.Fatal(err)
	}
	// It was not restored: it is that node, in the life that it was in.
	if err := os.WriteFile(filepath.Join(dir, nodeIDFile), []byte(id+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, raftDir, lifeFile)); err != nil {
		t.Fatal(err)
	}
	snaps, err := openSnapshots(filepath.Join(dir, raftDir, snapDir), keys.Data, func(uint64) {})
	if err != nil {
		t.Fatal(err)
	}
	if err := writeState(snaps, old.Snapshot(), 4, 1, onlyVoter(raft.ServerID(id), id)); err != nil {
		t.Fatal(err)
	}
	r := y.first("a")
	s := r.Store().Snapshot()
	if s.Format() != store.Format || s.Authority() == nil || s.Node(id).Key != r.identity.Key() || s.Incarnation() != 1 {
		t.Errorf("format %d, authority %v, node %+v", s.Format(), s.Authority(), s.Node(id))
	}
	if got := y.label(r, "color"); got != "blue" {
		t.Errorf("color is %q", got)
	}
	y.join("b", spec.RoleManager)
	y.voters(2)
}
