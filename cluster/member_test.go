package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// patience is how long a test waits for what must happen.
const patience = 20 * time.Second

func testConfig(dir string) Config {
	return Config{
		DataDir: dir, NodeName: "one", Advertise: "192.0.2.1:4477", Version: "test",
		SegmentSize: 1 << 20, Heartbeat: 20 * time.Millisecond,
	}
}

// running is a member that a goroutine of the test runs.
type running struct {
	*Member
	t    *testing.T
	stop context.CancelFunc
	done chan struct{}
	err  error // what Run returned, once done is closed
}

func mustOpen(t *testing.T, c Config) *Member {
	t.Helper()
	m, err := Open(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func run(t *testing.T, m *Member) *running {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	r := &running{Member: m, t: t, stop: stop, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		r.err = m.Run(ctx)
	}()
	t.Cleanup(func() {
		stop()
		r.await(r.done, "end of Run")
	})
	return r
}

func start(t *testing.T, c Config) *running {
	t.Helper()
	r := run(t, mustOpen(t, c))
	r.await(r.Ready(), "ready")
	return r
}

func (r *running) await(c <-chan struct{}, what string) {
	r.t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		r.t.Fatalf("waited %s for: %s", patience, what)
	}
}

// until looks again and again until what is so.
func (r *running) until(what string, is func() bool) {
	r.t.Helper()
	for end := time.Now().Add(patience); !is(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("waited %s for: %s; status %+v", patience, what, r.Status())
		}
	}
}

// end stops the member and returns what Run did.
func (r *running) end() error {
	r.t.Helper()
	r.stop()
	r.await(r.done, "end of Run")
	return r.err
}

// label is a small command whose effect can be told from any other.
func label(m *Member, key, value string) store.Command {
	return store.Command{RequestID: key + "=" + value[:min(len(value), 50)], SetNode: &store.SetNode{ID: m.Node(), Labels: map[string]*string{key: &value}}}
}

func (r *running) put(key, value string) {
	r.t.Helper()
	res, err := r.Propose(r.t.Context(), label(r.Member, key, value))
	if err = errors.Join(err, res.Err); err != nil {
		r.t.Fatal(err)
	}
}

func (r *running) get(key string) string {
	n := r.Store().Snapshot().Node(r.Node())
	if n == nil {
		return ""
	}
	return n.Labels[key]
}

func TestMemberFormsClusterAndKeepsIt(t *testing.T) {
	c := testConfig(filepath.Join(t.TempDir(), "data"))
	r := start(t, c)
	s := r.Store().Snapshot()
	id, key, node := s.ClusterID(), r.ContentKey(), s.Node(r.Node())
	if id == "" || s.Incarnation() != 1 || len(key) != keySize || len(r.Node()) != 16 {
		t.Fatalf("cluster %q incarnation %d key of %d bytes node %q", id, s.Incarnation(), len(key), r.Node())
	}
	if node == nil || node.Name != "one" || node.Address != "192.0.2.1:4477" || node.Role != spec.RoleManager || node.State != spec.NodeReady {
		t.Fatalf("own node is %+v", node)
	}
	r.put("color", "blue")
	if err := r.Linearizable(t.Context()); err != nil {
		t.Fatal(err)
	}
	st := r.Status()
	if !st.Leader || st.State != "leader" || st.LeaderID != r.Node() || st.Term == 0 || len(st.Voters) != 1 || st.FreeBytes <= 0 {
		t.Fatalf("status %+v", st)
	}
	if err := r.end(); err != nil {
		t.Fatal(err)
	}
	if st := r.Status(); st.State != "stopped" || st.Failure != "" {
		t.Fatalf("status after the end: %+v", st)
	}

	c.NodeName, c.Advertise = "uno", "192.0.2.9:4477"
	r2 := start(t, c)
	s2 := r2.Store().Snapshot()
	if s2.ClusterID() != id || r2.Node() != r.Node() || !bytes.Equal(r2.ContentKey(), key) {
		t.Fatal("the second run is another cluster")
	}
	if got := r2.get("color"); got != "blue" {
		t.Fatalf("color is %q after a restart", got)
	}
	n2 := s2.Node(r2.Node())
	if n2.Name != "uno" || n2.Address != "192.0.2.9:4477" || n2.Number != node.Number {
		t.Fatalf("own node is %+v after a change of name and address", n2)
	}
	if r2.Status().Term <= st.Term {
		t.Error("the term did not grow")
	}
	before := r2.Status().LastIndex
	r2.end()
	r3 := start(t, c)
	// The new term's entry and the barrier, and nothing else.
	if got := r3.Status().LastIndex; got != before+2 {
		t.Errorf("a restart without changes wrote %d entries", got-before)
	}
}

func TestDataFolderIsPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	r := start(t, testConfig(dir))
	r.put("secret", "canary-7c1f")
	snapshot(t, r)
	r.put("secret2", "canary-9d02")
	r.end()
	for _, f := range []string{nodeIDFile, keyringFile, lockFile} {
		st, err := os.Stat(filepath.Join(dir, f))
		if err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v", f, st.Mode(), err)
		}
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("%s: %v %v", dir, st.Mode(), err)
	}
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		b, err := os.ReadFile(p)
		if bytes.Contains(b, []byte("canary-")) {
			t.Errorf("%s holds the state in clear", p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func snapshot(t *testing.T, r *running) {
	t.Helper()
	if err := r.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
}

// TestBadConfigurationLeavesNothing: what cannot be right is refused before
// the folder is touched.
func TestBadConfigurationLeavesNothing(t *testing.T) {
	for what, c := range map[string]Config{
		"name":  {NodeName: "a/b"},
		"token": {NodeName: "a", Listen: "127.0.0.1:0", Join: &Join{Addr: "127.0.0.1:1", Token: "nonsense"}},
	} {
		c.DataDir = filepath.Join(t.TempDir(), "data")
		if _, err := Open(t.Context(), c); !errors.Is(err, spec.ErrInvalid) {
			t.Errorf("%s: %v, want an error of class invalid", what, err)
		}
		if _, err := os.Stat(c.DataDir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the data folder was made (%v)", what, err)
		}
	}
}

func TestSecondMemberOnSameFolderIsRefused(t *testing.T) {
	c := testConfig(t.TempDir())
	r := start(t, c)
	_, err := Open(context.Background(), c)
	if !errors.Is(err, spec.ErrConflict) || !strings.Contains(err.Error(), fmt.Sprintf("PID %d", os.Getpid())) || !strings.Contains(err.Error(), "--data-dir") {
		t.Fatalf("err %v", err)
	}
	r.put("still", "works")
	r.end()
	start(t, c)
}

func TestIdentityIsNeverReplaced(t *testing.T) {
	for _, name := range []string{nodeIDFile, keyringFile} {
		c := testConfig(t.TempDir())
		start(t, c).end()
		path := filepath.Join(c.DataDir, name)
		if err := os.Rename(path, path+".away"); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(context.Background(), c); !errors.Is(err, spec.ErrConflict) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s missing: err %v", name, err)
		}
		if err := os.WriteFile(path, []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(context.Background(), c); !errors.Is(err, spec.ErrInvalid) {
			t.Errorf("%s damaged: err %v", name, err)
		}
		if err := os.Rename(path+".away", path); err != nil {
			t.Fatal(err)
		}
		start(t, c)
	}
}

// A process that dies while it makes a cluster leaves a term without a log; a
// member that has been in a cluster and lost its log is something else.
func TestUnfinishedBootstrapGoesOn(t *testing.T) {
	c := testConfig(t.TempDir())
	if err := os.MkdirAll(filepath.Join(c.DataDir, raftDir), 0o700); err != nil {
		t.Fatal(err)
	}
	// node-id and keyring are made before raft/.
	start(t, testConfig(filepath.Join(c.DataDir, "other"))).end()
	for _, f := range []string{nodeIDFile, keyringFile} {
		if err := os.Rename(filepath.Join(c.DataDir, "other", f), filepath.Join(c.DataDir, f)); err != nil {
			t.Fatal(err)
		}
	}
	s := mustStable(t, filepath.Join(c.DataDir, raftDir, stableFile))
	if err := s.SetUint64([]byte(keyCurrentTerm), 1); err != nil {
		t.Fatal(err)
	}
	start(t, c).end()

	if err := os.RemoveAll(filepath.Join(c.DataDir, raftDir, logDir)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(context.Background(), c); !errors.Is(err, spec.ErrConflict) || !strings.Contains(err.Error(), "is empty") {
		t.Fatalf("a member without its log was opened: %v", err)
	}
}

func TestCallsOutsideOfRun(t *testing.T) {
	m := mustOpen(t, testConfig(t.TempDir()))
	check := func(when string) {
		t.Helper()
		if _, err := m.Propose(t.Context(), label(m, "a", "b")); !errors.Is(err, spec.ErrUnavailable) {
			t.Errorf("%s: Propose: %v", when, err)
		}
		if err := m.Linearizable(t.Context()); !errors.Is(err, spec.ErrUnavailable) {
			t.Errorf("%s: Linearizable: %v", when, err)
		}
		m.Status()
	}
	check("before")
	r := run(t, m)
	r.await(m.Ready(), "ready")
	r.end()
	check("after")
	if err := m.Run(t.Context()); err == nil {
		t.Error("Run could be called twice")
	}
}

func TestProposeErrors(t *testing.T) {
	r := start(t, testConfig(t.TempDir()))
	if _, err := r.Propose(t.Context(), store.Command{}); !errors.Is(err, spec.ErrInvalid) {
		t.Errorf("empty command: %v", err)
	}
	if _, err := r.Propose(t.Context(), label(r.Member, "big", strings.Repeat("x", maxEntry))); !errors.Is(err, spec.ErrInvalid) {
		t.Errorf("large command: %v", err)
	}
	why := errors.New("not needed any more")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	if _, err := r.Propose(ctx, label(r.Member, "a", "b")); !errors.Is(err, why) {
		t.Errorf("ended context: %v", err)
	}
	res, err := r.Propose(t.Context(), store.Command{RequestID: "x", RemoveStack: &store.RemoveStack{Name: "none"}})
	if err != nil || !errors.Is(res.Err, spec.ErrNotFound) {
		t.Errorf("refused by Apply: result %v, err %v", res.Err, err)
	}
}

// Proposals at the same time share appends.
func TestProposalsAreCommittedInGroups(t *testing.T) {
	r := start(t, testConfig(t.TempDir()))
	const n = 200
	var all sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		all.Go(func() {
			res, err := r.Propose(t.Context(), label(r.Member, fmt.Sprintf("k%d", i), "v"))
			errs[i] = errors.Join(err, res.Err)
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if r.get(fmt.Sprintf("k%d", i)) != "v" {
			t.Fatalf("k%d is missing", i)
		}
	}
}

func TestSnapshotAndRestore(t *testing.T) {
	c := testConfig(t.TempDir())
	c.SnapshotThreshold = 20
	r := start(t, c)
	for i := range 90 {
		r.put("counter", fmt.Sprint(i))
	}
	r.until("snapshot", func() bool { return r.Status().SnapshotIndex >= 60 })
	first, err := r.logs.FirstIndex()
	if err != nil || first < 10 {
		t.Errorf("the log begins at %d (%v): it was not cut", first, err)
	}
	want := persist(t, r)
	r.end()

	r2 := start(t, c)
	if got := r2.get("counter"); got != "89" {
		t.Fatalf("counter is %q after a restore", got)
	}
	if got := persist(t, r2); !bytes.Equal(got, want) {
		t.Error("the state differs from the one before")
	}
	r2.put("counter", "more")
}

func persist(t *testing.T, r *running) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := r.Store().Snapshot().Persist(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestSnapshotBySize(t *testing.T) {
	c := testConfig(t.TempDir())
	c.SnapshotBytes = 1 << 20
	r := start(t, c)
	for i := range 20 {
		r.put("big", fmt.Sprint(i)+strings.Repeat("x", 100<<10))
	}
	r.until("snapshot", func() bool { return r.Status().SnapshotIndex > 0 })
}

func TestDamageIsNamed(t *testing.T) {
	c := testConfig(t.TempDir())
	r := start(t, c)
	r.put("a", "b")
	snapshot(t, r)
	r.end()
	names, err := filepath.Glob(filepath.Join(c.DataDir, raftDir, snapDir, "*"+snapSuffix))
	if err != nil || len(names) != 1 {
		t.Fatal(names, err)
	}
	b, err := os.ReadFile(names[0])
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-3] ^= 1
	if err := os.WriteFile(names[0], b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(context.Background(), c); err == nil || !strings.Contains(err.Error(), names[0]) {
		t.Fatalf("err %v", err)
	}
	// The claim was given back.
	if _, err := Open(context.Background(), c); errors.Is(err, spec.ErrConflict) {
		t.Fatal(err)
	}
}

func TestShortDiskRefusesWrites(t *testing.T) {
	m := mustOpen(t, testConfig(t.TempDir()))
	var mu sync.Mutex
	left := int64(1 << 40)
	set := func(n int64) {
		mu.Lock()
		defer mu.Unlock()
		left = n
	}
	m.free = func() (int64, error) {
		mu.Lock()
		defer mu.Unlock()
		return left, nil
	}
	r := run(t, m)
	r.await(r.Ready(), "ready")
	stack := store.Command{PutStack: &store.PutStack{Stack: spec.Stack{Name: "shop"}}}
	for _, tt := range []struct {
		left         int64
		adds, others bool
	}{{1 << 40, true, true}, {30 << 20, false, true}, {2 << 20, false, false}, {1 << 40, true, true}} {
		set(tt.left)
		for _, w := range []struct {
			c    store.Command
			want bool
		}{{stack, tt.adds}, {label(m, "a", fmt.Sprint(tt.left)), tt.others}} {
			_, err := r.Propose(t.Context(), w.c)
			if (err == nil) != w.want {
				t.Errorf("%d MiB left, %s: %v", tt.left>>20, w.c.Kind(), err)
			}
			if err != nil && (!errors.Is(err, spec.ErrUnavailable) || !strings.Contains(err.Error(), "disk full")) {
				t.Errorf("%d MiB left: %v", tt.left>>20, err)
			}
		}
		if err := r.Linearizable(t.Context()); err != nil {
			t.Errorf("%d MiB left: a read fails: %v", tt.left>>20, err)
		}
	}
}
