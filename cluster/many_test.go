package cluster

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"wherry.dev/api"
	"wherry.dev/cluster/ca"
	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// routes are the routes that members need of each other, as package api/server
// has them.
func routes(m *Member) http.Handler {
	mux := http.NewServeMux()
	handle := func(pattern string, role spec.NodeRole, f func(r *http.Request) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			if m.port == nil {
				http.Error(w, "", http.StatusNotFound)
				return
			}
			err := error(nil)
			if c, ok := callerOf(m, r.TLS); role != "" && !ok {
				err = api.Errorf(api.ErrForbidden, "no certificate")
			} else if role == spec.RoleManager && c.Role != role {
				err = api.Errorf(api.ErrForbidden, "%s is a %s", c.ID, c.Role)
			}
			var out any
			if err == nil {
				out, err = f(r)
			}
			if err != nil {
				var e api.ErrorBody
				e.Error.Class, e.Error.Message = api.ErrorClass(err), err.Error()
				w.WriteHeader(api.ErrorStatus(err))
				json.NewEncoder(w).Encode(e)
				return
			}
			json.NewEncoder(w).Encode(out)
		})
	}
	in := func(r *http.Request, v any) error { return json.NewDecoder(r.Body).Decode(v) }
	handle("GET /v1/version", "", func(*http.Request) (any, error) { return api.Version{}, nil })
	handle("POST /v1/cluster/join", "", func(r *http.Request) (any, error) {
		var j api.JoinRequest
		if err := in(r, &j); err != nil {
			return nil, err
		}
		return m.Join(r.Context(), j, r.RemoteAddr)
	})
	handle("POST /v1/cluster/renew", spec.RoleWorker, func(r *http.Request) (any, error) {
		if m.Role() != spec.RoleManager {
			return nil, api.Errorf(api.ErrNotManager, "this node is a worker")
		}
		var j api.RenewRequest
		if err := in(r, &j); err != nil {
			return nil, err
		}
		c, _ := callerOf(m, r.TLS)
		return m.Renew(r.Context(), c, j)
	})
	handle("POST /v1/cluster/propose", spec.RoleManager, func(r *http.Request) (any, error) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			return nil, err
		}
		return m.Forward(r.Context(), b)
	})
	handle("POST /v1/cluster/read-index", spec.RoleManager, func(r *http.Request) (any, error) { return m.ReadIndex(r.Context()) })
	handle("POST /v1/cluster/alive", spec.RoleManager, func(r *http.Request) (any, error) {
		var a api.Alive
		if err := in(r, &a); err != nil {
			return nil, err
		}
		return m.Alive(a), nil
	})
	handle("GET /v1/node/member", spec.RoleManager, func(*http.Request) (any, error) { return m.MemberStatus(), nil })
	return mux
}

// callerOf returns who is at the other end of a connection of m; false without a
// certificate of this cluster. Its role is the one that counts: on a manager
// that of the table of nodes, on a worker that of the last word of a session.
// The role of a node that is not in the table (any more) is empty.
func callerOf(m *Member, cs *tls.ConnectionState) (ca.Caller, bool) {
	if cs == nil || m.identity == nil {
		return ca.Caller{}, false
	}
	c, ok := ca.PeerOf(*cs)
	if !ok || c.Kind != ca.KindNode {
		return c, ok
	}
	id := spec.NodeID(c.ID)
	if m.role == spec.RoleManager {
		s := m.store.Snapshot()
		n := s.Node(id)
		switch {
		case s.ClusterID() == "":
			// A manager that has just joined has no state yet, and gets it only
			// after others have asked it how it is.
		case n == nil:
			c.Role = ""
		case n.Key != "" && n.Key != c.Key:
			return ca.Caller{}, false
		default:
			c.Role = n.Role
		}
		return c, true
	}
	// A worker that was told nothing yet believes the certificate.
	if info, ok := m.dir.cluster(); ok {
		c.Role = spec.RoleWorker
		for _, p := range info.Managers {
			if p.ID == id {
				c.Role = spec.RoleManager
			}
		}
	}
	return c, true
}

// many are the members of a cluster that a test starts and stops.
type many struct {
	t    *testing.T
	dirs map[string]string
	live map[string]*running
	// at are the addresses of those that have run before.
	at map[string]string
	// heartbeat of all.
	heartbeat time.Duration
	opened    func(name string, m *Member) // unless nil, is called before Run
	lead      func(ctx context.Context, epoch uint64) error
}

func newMany(t *testing.T) *many {
	return &many{t: t, dirs: map[string]string{}, live: map[string]*running{}, at: map[string]string{}, heartbeat: 120 * time.Millisecond}
}

func (y *many) config(name string) Config {
	dir := y.dirs[name]
	if dir == "" {
		dir = filepath.Join(y.t.TempDir(), name)
		y.dirs[name] = dir
	}
	c := testConfig(dir)
	c.NodeName, c.Listen, c.Advertise, c.Heartbeat, c.Lead = name, "127.0.0.1:0", "127.0.0.1", y.heartbeat, y.lead
	if at := y.at[name]; at != "" {
		c.Listen, c.Advertise = at, at
	}
	if testing.Verbose() && os.Getenv("WHERRY_TEST_LOG") != "" {
		c.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo})).With("n", name)
	}
	return c
}

// run opens and runs a member.
func (y *many) run(name string, c Config) *running {
	y.t.Helper()
	m := mustOpen(y.t, c)
	m.Serve(routes(m))
	if y.opened != nil {
		y.opened(name, m)
	}
	r := run(y.t, m)
	y.live[name], y.at[name] = r, m.Address()
	return r
}

// first starts the first manager.
func (y *many) first(name string) *running {
	y.t.Helper()
	r := y.run(name, y.config(name))
	r.await(r.Ready(), "ready")
	r.until("the certificate", r.identity.Has)
	return r
}

func (y *many) token(role spec.NodeRole) string {
	y.t.Helper()
	t, err := y.any().Token(y.t.Context(), role, api.TokenRequest{})
	if err != nil {
		y.t.Fatal(err)
	}
	return t.Token
}

// any is any manager that runs.
func (y *many) any() *running {
	for _, name := range slices.Sorted(func(yield func(string) bool) {
		for n := range y.live {
			if !yield(n) {
				return
			}
		}
	}) {
		if r := y.live[name]; r.Role() == spec.RoleManager {
			return r
		}
	}
	y.t.Fatal("no manager runs")
	return nil
}

// join starts a host that joins through a manager.
func (y *many) join(name string, role spec.NodeRole) *running {
	y.t.Helper()
	c := y.config(name)
	c.Join = &Join{Addr: y.any().Address(), Token: y.token(role)}
	r := y.run(name, c)
	r.await(r.Ready(), "ready")
	return r
}

// three starts managers a, b and c, all of them voters.
func three(t *testing.T) *many {
	t.Helper()
	y := newMany(t)
	y.first("a")
	y.join("b", spec.RoleManager)
	y.join("c", spec.RoleManager)
	y.voters(3)
	return y
}

// voters waits until every manager that runs says that there are n voters.
func (y *many) voters(n int) {
	y.t.Helper()
	for _, r := range y.live {
		if r.Role() == spec.RoleManager {
			r.until(fmt.Sprint(n, " voters"), func() bool { s := r.Status(); return len(s.Voters) == n && len(s.NonVoters) == 0 })
		}
	}
}

// stop ends a member; what it returned is checked.
func (y *many) stop(name string) {
	y.t.Helper()
	if err := y.live[name].end(); err != nil {
		y.t.Errorf("member %s ended: %v", name, err)
	}
	delete(y.live, name)
}

// leader waits until one member leads, and returns its name.
func (y *many) leader() string {
	y.t.Helper()
	found := ""
	y.any().until("a leader", func() bool {
		found = ""
		for name, r := range y.live {
			if r.Role() == spec.RoleManager && r.Status().Leader {
				if found != "" {
					return false
				}
				found = name
			}
		}
		return found != ""
	})
	return found
}

// write sets a label of node a through a member and returns the command's
// index.
func (y *many) write(r *running, key, value string) uint64 {
	y.t.Helper()
	res, err := r.Propose(y.t.Context(), store.Command{RequestID: key + value, SetNode: &store.SetNode{ID: y.node("a"), Labels: map[string]*string{key: &value}}})
	if err = errors.Join(err, res.Err); err != nil {
		y.t.Fatalf("write %s=%s through %s: %v", key, value, r.Name(), err)
	}
	return res.Index
}

func (y *many) node(name string) spec.NodeID {
	for _, n := range y.any().Store().Snapshot().Nodes() {
		if n.Name == name {
			return n.ID
		}
	}
	return ""
}

func (y *many) label(r *running, key string) string {
	for _, n := range r.Store().Snapshot().Nodes() {
		if n.Name == "a" {
			return n.Labels[key]
		}
	}
	return ""
}

func (y *many) setRole(name string, role spec.NodeRole) {
	y.t.Helper()
	res, err := y.any().Propose(y.t.Context(), store.Command{RequestID: fmt.Sprint(name, role, time.Now()), SetRole: &store.SetRole{ID: y.node(name), Role: role}})
	if err = errors.Join(err, res.Err); err != nil {
		y.t.Fatal(err)
	}
}

func TestWritesAndReadsThroughAnyManager(t *testing.T) {
	y := three(t)
	for i := range 5 {
		for name, w := range y.live {
			value := fmt.Sprint(name, i)
			index := y.write(w, "k", value)
			if got := y.label(w, "k"); got != value || w.Store().Snapshot().Index() < index {
				t.Errorf("%s does not have its own write: %q", name, got)
			}
			for other, r := range y.live {
				if err := r.Linearizable(t.Context()); err != nil {
					t.Fatal(err)
				}
				if got := y.label(r, "k"); got != value {
					t.Errorf("written through %s, read through %s: %q, want %q", name, other, got, value)
				}
			}
		}
	}
	// What Apply says comes back with its class.
	for name, r := range y.live {
		res, err := r.Propose(t.Context(), store.Command{RequestID: "rm" + name, RemoveStack: &store.RemoveStack{Name: "none"}})
		if err != nil || !errors.Is(res.Err, spec.ErrNotFound) {
			t.Errorf("through %s: result %v, err %v", name, res.Err, err)
		}
	}
	// The plans of a leader of yesterday go nowhere.
	for name, r := range y.live {
		if name == y.leader() {
			continue
		}
		if _, err := r.Propose(t.Context(), store.Command{ApplyPlan: &store.ApplyPlan{Epoch: 1}}); !errors.Is(err, spec.ErrUnavailable) {
			t.Errorf("a plan of %s, which does not lead: %v", name, err)
		}
		b, err := store.Encode(store.Command{ApplyPlan: &store.ApplyPlan{Epoch: 1}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := y.live[y.leader()].Forward(t.Context(), b); !errors.Is(err, spec.ErrInvalid) {
			t.Errorf("the leader takes a plan of another: %v", err)
		}
	}
	if _, err := y.live[y.leader()].Forward(t.Context(), []byte("\x7fnonsense")); !errors.Is(err, spec.ErrInvalid) {
		t.Errorf("the leader takes nonsense: %v", err)
	}
}

func TestLeaderEndsAndComesBack(t *testing.T) {
	y := three(t)
	for round := range 3 {
		old := y.leader()
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			y.live[old].stop()
			<-y.live[old].done
		}()
		var other *running
		for name, r := range y.live {
			if name != old {
				other = r
			}
		}
		began := time.Now()
		y.write(other, "round", fmt.Sprint(round))
		t.Logf("write through another while the leader ends: %s", time.Since(began).Round(time.Millisecond))
		<-stopped
		delete(y.live, old)
		y.write(other, "after", fmt.Sprint(round))
		r := y.run(old, y.config(old))
		r.await(r.Ready(), "ready")
		if got := y.label(r, "after"); got != fmt.Sprint(round) {
			t.Errorf("round %d: %s is ready with %q", round, old, got)
		}
		y.voters(3)
	}
}

func TestMinorityRefuses(t *testing.T) {
	y := three(t)
	lead := y.leader()
	for name := range y.live {
		if name != lead {
			y.stop(name)
		}
	}
	r := y.live[lead]
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := r.Propose(ctx, label(r.Member, "a", "b")); err == nil {
		t.Error("one of three acknowledges a write")
	}
	r.until("it to notice", func() bool { return !r.Status().Leader })
	st, err := r.ClusterStatus(t.Context())
	if err != nil || st.Leader != "" || len(st.Problems) == 0 || !strings.Contains(st.Problems[0], "no leader") || !strings.Contains(st.Problems[0], "1 of 3") {
		t.Errorf("status %+v, %v", st, err)
	}
	// One more is enough.
	for name := range y.dirs {
		if y.live[name] == nil {
			y.run(name, y.config(name))
			break
		}
	}
	y.write(r, "back", "yes")
}

func TestDemotePromoteRemove(t *testing.T) {
	y := three(t)
	lead := y.leader()
	id := y.live[lead].Node()
	y.setRole(lead, spec.RoleWorker)
	old := y.live[lead]
	old.await(old.done, "end of the demoted leader")
	if !errors.Is(old.err, ErrRoleChanged) {
		t.Fatalf("the demoted leader's Run returned %v", old.err)
	}
	delete(y.live, lead)
	y.voters(2)
	w := y.run(lead, y.config(lead))
	if w.Role() != spec.RoleWorker || w.Node() != id {
		t.Fatalf("opened again it is a %s", w.Role())
	}
	for _, name := range []string{logDir, snapDir} {
		if _, err := os.Stat(filepath.Join(w.c.DataDir, raftDir, name)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the worker keeps %s: %v", name, err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(w.c.DataDir, keyringFile)); err != nil || bytes.Contains(b, []byte("data_key")) {
		t.Errorf("the worker keeps the data key: %v", err)
	}
	if _, err := w.Propose(t.Context(), label(w.Member, "a", "b")); err == nil {
		t.Error("a worker takes a write")
	}

	y.setRole(lead, spec.RoleManager)
	w.SetCluster(y.any().enroll.own())
	w.await(w.done, "end of the promoted worker")
	if !errors.Is(w.err, ErrRoleChanged) {
		t.Fatalf("the promoted worker's Run returned %v", w.err)
	}
	delete(y.live, lead)
	m := y.run(lead, y.config(lead))
	m.await(m.Ready(), "ready")
	y.voters(3)
	y.write(m, "again", "manager")
	// Raft must not take it for the voter of old configurations.
	servers, _, err := y.live[y.leader()].configuration(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if m.seat == old.seat || !slices.ContainsFunc(servers, func(s raft.Server) bool { return s.ID == m.seat && nodeOf(s) == id }) {
		t.Errorf("the manager with a new log is %s in raft, as it was %s before; the configuration is %v", m.seat, old.seat, servers)
	}

	// Removal of another one.
	var gone string
	for name := range y.live {
		if name != "a" && name != y.leader() {
			gone = name
		}
	}
	res, err := y.any().Propose(t.Context(), store.Command{RequestID: "rm", RemoveNode: &store.RemoveNode{ID: y.node(gone), Force: true}})
	if err = errors.Join(err, res.Err); err != nil {
		t.Fatal(err)
	}
	r := y.live[gone]
	r.await(r.done, "end of the removed manager")
	if !errors.Is(r.err, ErrRemoved) {
		t.Errorf("the removed manager's Run returned %v", r.err)
	}
	delete(y.live, gone)
	y.voters(2)
	// It stays out, and finds out why.
	r = y.run(gone, y.config(gone))
	r.await(r.done, "end of the removed manager")
	if !errors.Is(r.err, ErrRemoved) {
		t.Errorf("opened again, the removed manager's Run returned %v", r.err)
	}
	delete(y.live, gone)
	if err := y.any().admitRaft(r.Node(), r.identity.Key(), spec.RoleManager); err == nil {
		t.Error("a removed manager's streams are admitted")
	}
}

func TestFiveManagersInAnyOrder(t *testing.T) {
	y := three(t)
	y.join("d", spec.RoleManager)
	y.join("e", spec.RoleManager)
	w := y.join("w", spec.RoleWorker)
	y.voters(5)
	y.write(y.any(), "five", "yes")
	if w.Role() != spec.RoleWorker {
		t.Errorf("w is a %s", w.Role())
	}
	for _, order := range []string{"abcde", "edcba"} {
		for _, name := range order {
			y.stop(string(name))
		}
		for _, name := range order {
			y.run(string(name), y.config(string(name)))
		}
		for name, r := range y.live {
			r.await(r.Ready(), "ready")
			if got := y.label(r, "five"); r.Role() == spec.RoleManager && got != "yes" {
				t.Errorf("%s has %q", name, got)
			}
		}
	}
	st, err := y.any().ClusterStatus(t.Context())
	if err != nil || len(st.Managers) != 5 || st.Workers != 1 || st.Leader == "" {
		t.Fatalf("status %+v, %v", st, err)
	}
	for _, m := range st.Managers {
		if !m.Reachable || m.Raft != "voter" && m.Raft != "leader" {
			t.Errorf("manager %+v", m)
		}
	}
}

func TestAllAddressesChangeAtOnce(t *testing.T) {
	y := three(t)
	y.write(y.any(), "before", "yes")
	for name := range y.dirs {
		y.stop(name)
	}
	clear(y.at)
	for name := range y.dirs {
		// Nothing that was known is of any use.
		if err := os.Remove(filepath.Join(y.dirs[name], peersFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	seed := y.run("a", y.config("a")).Address()
	for _, name := range []string{"b", "c"} {
		c := y.config(name)
		c.Peers = []string{seed}
		y.run(name, c)
	}
	for name, r := range y.live {
		r.await(r.Ready(), "ready")
		r.until("the new addresses", func() bool {
			for _, o := range y.live {
				if r.Store().Snapshot().Node(o.Node()).Address != o.Address() {
					return false
				}
			}
			return true
		})
		if got := y.label(r, "before"); got != "yes" {
			t.Errorf("%s has %q", name, got)
		}
	}
}

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
	key, err := Key(y.dirs["a"])
	if err != nil {
		t.Fatal(err)
	}
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

func TestJoinGoesOnAfterACrash(t *testing.T) {
	y := newMany(t)
	y.first("a")
	c := y.config("b")
	c.Join = &Join{Addr: y.live["a"].Address(), Token: y.token(spec.RoleManager)}
	open := func() *Member {
		t.Helper()
		m, err := Open(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	id := open()
	id.release()
	// The files in the order in which they are written; a crash leaves the ones
	// before.
	for _, lost := range [][]string{
		{filepath.Join(tlsDir, "cert.pem")},
		{filepath.Join(tlsDir, "cert.pem"), peersFile},
		{filepath.Join(tlsDir, "cert.pem"), peersFile, raftDir, keyringFile},
	} {
		for _, f := range lost {
			if err := os.RemoveAll(filepath.Join(c.DataDir, f)); err != nil {
				t.Fatal(err)
			}
		}
		m := open()
		m.release()
		if m.Node() != id.Node() {
			t.Errorf("with %s lost, the host joins under another ID", lost)
		}
	}
	// Begun, and then without the flags: it must not make a cluster of its own.
	if err := os.Remove(filepath.Join(c.DataDir, tlsDir, "cert.pem")); err != nil {
		t.Fatal(err)
	}
	alone := c
	alone.Join = nil
	if _, err := Open(t.Context(), alone); !errors.Is(err, spec.ErrConflict) || !strings.Contains(err.Error(), "--join") {
		t.Errorf("a join that was not finished, without --join: %v", err)
	}
	r := y.run("b", c)
	r.await(r.Ready(), "ready")
	y.voters(2)
	y.stop("b")
	// With the flags still there it goes on; with those of another cluster not.
	r = y.run("b", c)
	r.await(r.Ready(), "ready")
	y.stop("b")
	other := newMany(t)
	other.first("x")
	c.Join = &Join{Addr: other.live["x"].Address(), Token: other.token(spec.RoleManager)}
	if _, err := Open(t.Context(), c); !errors.Is(err, spec.ErrConflict) || !strings.Contains(err.Error(), "another cluster") {
		t.Errorf("joining another cluster: %v", err)
	}
	// Somebody who made a cluster does not join one by accident.
	y.stop("a")
	c = y.config("a")
	c.Join = &Join{Addr: other.live["x"].Address(), Token: other.token(spec.RoleManager)}
	if _, err := Open(t.Context(), c); !errors.Is(err, spec.ErrConflict) {
		t.Errorf("the first manager joining another cluster: %v", err)
	}
}

// tellCertificates reports what each node trusts, as its agent would, and tells
// workers what the cluster wants, until the authority is as it should be.
func (y *many) tellCertificates(done func(*spec.Authority) bool) {
	y.t.Helper()
	boss := y.any()
	boss.until("the exchange of the authority", func() bool {
		for _, r := range y.live {
			if r.Role() == spec.RoleWorker {
				r.SetCluster(boss.enroll.own())
			}
			info := spec.NodeInfo{Format: store.Format, Issuer: r.identity.Issuer(), Trusts: strings.Join(r.identity.Trusts(), ",")}
			if n := boss.Store().Snapshot().Node(r.Node()); n != nil && n.Info == info {
				continue
			}
			if _, err := boss.Propose(y.t.Context(), store.Command{Reports: &store.Reports{Reports: []spec.Report{{Node: r.Node(), Info: &info}}}}); err != nil {
				y.t.Fatal(err)
			}
		}
		return done(boss.Store().Snapshot().Authority())
	})
}

// A unit file keeps the flags of the join for years; the authority may be
// another one by then.
func TestJoinFlagsOutliveAnExchange(t *testing.T) {
	y := newMany(t)
	a := y.first("a")
	join := &Join{Addr: a.Address(), Token: y.token(spec.RoleWorker)}
	y.join("w", spec.RoleWorker)
	old := a.Store().Snapshot().Authority().Signer
	if err := a.RotateCA(t.Context()); err != nil {
		t.Fatal(err)
	}
	y.tellCertificates(func(u *spec.Authority) bool { return len(u.Roots) == 1 && u.Signer != old })
	for _, r := range y.live {
		r.until("the old root to be dropped", func() bool {
			if r.Role() == spec.RoleWorker {
				r.SetCluster(a.enroll.own())
			}
			return !slices.Contains(r.identity.Trusts(), old)
		})
	}
	for _, name := range []string{"w", "a"} {
		y.stop(name)
		c := y.config(name)
		c.Join = join
		m, err := Open(t.Context(), c)
		if err != nil {
			t.Errorf("%s with the flags of its first start: %v", name, err)
			continue
		}
		m.release()
		foreign, err := ca.ParseToken(join.Token)
		if err != nil {
			t.Fatal(err)
		}
		foreign.CAHash = strings.Repeat("a", len(old))
		c.Join = &Join{Addr: join.Addr, Token: foreign.String()}
		if m, err := Open(t.Context(), c); !errors.Is(err, spec.ErrConflict) || !strings.Contains(err.Error(), "another cluster") {
			if err == nil {
				m.release()
			}
			t.Errorf("%s with a token of another cluster: %v", name, err)
		}
	}
}

// What a removed or demoted node has open is cut, whoever holds it.
func TestRemovedNodesAreCutOff(t *testing.T) {
	y := three(t)
	y.join("w", spec.RoleWorker)
	boss := y.live["a"]
	if y.leader() == "b" || y.leader() == "c" {
		lead := y.live[y.leader()]
		lead.until("leadership of a", func() bool {
			_ = lead.transferTo(t.Context(), boss.Node())
			return boss.Status().Leader
		})
	}
	open := func(name, proto string) (gone chan struct{}) {
		t.Helper()
		conn, _, err := dialNode(t.Context(), y.live[name].identity, boss.Address(), boss.Node(), proto, func(c net.Conn) (net.Conn, error) { return c, nil })
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		gone = make(chan struct{})
		go func() {
			defer close(gone)
			io.Copy(io.Discard, conn)
		}()
		return gone
	}
	stays := open("b", protoRaft)
	var cut []chan struct{}
	for name, protos := range map[string][]string{"w": {protoHTTP2}, "c": {protoHTTP2, protoRaft}} {
		for _, proto := range protos {
			cut = append(cut, open(name, proto))
		}
	}
	y.setRole("c", spec.RoleWorker)
	res, err := boss.Propose(t.Context(), store.Command{RequestID: "rm", RemoveNode: &store.RemoveNode{ID: y.node("w"), Force: true}})
	if err = errors.Join(err, res.Err); err != nil {
		t.Fatal(err)
	}
	limit := time.After(8 * time.Second) // the server gives up a silent connection after 10 s
	for _, gone := range cut {
		select {
		case <-gone:
		case <-limit:
			t.Fatal("a node that was removed or demoted keeps its connection")
		}
	}
	boss.until("two voters", func() bool { return len(boss.Status().Voters) == 2 })
	late := open("c", protoRaft) // it is refused after the handshake
	boss.await(late, "end of a stream of a demoted manager")
	select {
	case <-stays:
		t.Error("the stream of a manager was cut, too")
	default:
	}
}

// A stream that was admitted while it could be is cut when it may not be any
// more.
func TestStreamsAreReviewed(t *testing.T) {
	noLeak(t)
	a := newAuthority(t, "one")
	var mu sync.Mutex
	refuse := map[string]bool{}
	admit := func(c ca.Caller) error {
		mu.Lock()
		defer mu.Unlock()
		if refuse[c.ID] {
			return errors.New("not any more")
		}
		return nil
	}
	pb := a.port(nodeB, func(c *portConfig) { c.AdmitRaft, c.AdmitGossip = admit, admit })
	gone := map[spec.NodeID][]chan struct{}{}
	for _, id := range []spec.NodeID{nodeA, nodeC} {
		p := a.port(id)
		p.knows(nodeB, pb.addr())
		for _, proto := range []string{protoRaft, protoGossip} {
			conn, err := p.dial(t.Context(), nodeB, proto)
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan struct{})
			go func() {
				defer close(done)
				io.Copy(io.Discard, conn)
			}()
			gone[id] = append(gone[id], done)
		}
	}
	for range 2 {
		for _, l := range []net.Listener{pb.raftDoor, pb.gossipDoor} {
			if _, err := l.Accept(); err != nil {
				t.Fatal(err)
			}
		}
	}
	pb.review()
	mu.Lock()
	refuse[string(nodeC)] = true
	mu.Unlock()
	pb.review()
	for _, done := range gone[nodeC] {
		<-done
	}
	for _, done := range gone[nodeA] {
		select {
		case <-done:
			t.Error("a stream that may stay was cut")
		default:
		}
	}
}

// A worker that has moved says so to whatever manager it asks, and the table
// follows.
func TestTableFollowsTheAddressOfAWorker(t *testing.T) {
	y := three(t)
	w := y.join("w", spec.RoleWorker)
	row := func() *spec.Node { return y.live["a"].Store().Snapshot().Node(w.Node()) }
	was := row()
	for name, r := range y.live {
		if r.Role() != spec.RoleManager {
			continue
		}
		moved := "127.0.0.1:" + map[string]string{"a": "7001", "b": "7002", "c": "7003"}[name]
		began, last := time.Now(), time.Time{}
		r.until("the new address", func() bool {
			if time.Since(last) > 200*time.Millisecond { // a daemon says it each second
				last = time.Now()
				if err := r.Beat(t.Context(), w.Node(), api.Beat{Instance: w.Instance(), Address: moved}, "127.0.0.1:999"); err != nil {
					t.Fatal(err)
				}
			}
			return row().Address == moved
		})
		t.Logf("told to %s, it took %s", name, time.Since(began).Round(time.Millisecond))
	}
	now := *row()
	if now.Name != was.Name || now.Key != was.Key || now.Role != was.Role {
		t.Errorf("the row was %+v and is %+v", was, now)
	}
	// What is of no use, and what another host with this identity says, counts
	// for nothing.
	b := y.live["b"]
	b.until("b to have the row", func() bool { return b.Store().Snapshot().Node(w.Node()).Address == now.Address })
	b.until("b to forget what it was told", func() bool { return len(b.moved.fresh()) == 0 })
	for _, said := range []struct{ instance, addr, remote string }{
		{w.Instance(), "", "127.0.0.1:999"},
		{w.Instance(), "0.0.0.0:4477", "127.0.0.1:999"},
		{w.Instance(), "127.0.0.1:7009", "192.0.2.1:999"},
		{"another", "127.0.0.1:7009", "192.0.2.2:999"},
	} {
		err := b.Beat(t.Context(), w.Node(), api.Beat{Instance: said.instance, Address: said.addr}, said.remote)
		if fresh := b.moved.fresh(); len(fresh) > 0 {
			t.Errorf("%+v is believed: %v", said, fresh)
		}
		if (err != nil) != (said.instance != w.Instance()) {
			t.Errorf("%+v: %v", said, err)
		}
	}
}

// A folder of the first version gets what it lacks, in place.
func TestFolderOfTheFirstVersion(t *testing.T) {
	y := newMany(t)
	dir := filepath.Join(t.TempDir(), "a")
	y.dirs["a"] = dir
	c := y.config("a")
	c.Listen, c.Advertise = "", "127.0.0.1:4477"
	old := start(t, c)
	old.put("color", "blue")
	old.end()
	k, err := readKeyring(dir)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(map[string]any{"format": 1, "content_key": k.Content, "data_key": k.Data})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, keyringFile), b, 0o600); err != nil {
		t.Fatal(err)
	}
	r := y.first("a")
	if got := y.label(r, "color"); got != "blue" {
		t.Errorf("color is %q", got)
	}
	if n := r.Store().Snapshot().Node(r.Node()); n.Key != r.identity.Key() {
		t.Errorf("the row has the key %q", n.Key)
	}
	y.join("b", spec.RoleManager)
	y.voters(2)
}

// A worker's way to the managers goes on when the one that it used is gone.
func TestManagerFailsOver(t *testing.T) {
	y := three(t)
	w := y.join("w", spec.RoleWorker)
	get := func() error {
		return callOver(t.Context(), w.Manager(), "GET", "/v1/version", nil, &api.Version{})
	}
	if err := get(); err != nil {
		t.Fatal(err)
	}
	w.SetCluster(y.any().enroll.own())
	w.managers.mu.Lock()
	now := w.managers.now
	w.managers.mu.Unlock()
	for name, r := range y.live {
		if r.Node() == now {
			y.stop(name)
			break
		}
	}
	if err := get(); err != nil {
		t.Fatal(err)
	}
	w.managers.mu.Lock()
	defer w.managers.mu.Unlock()
	if w.managers.now == now {
		t.Error("it sticks to a manager that is gone")
	}
}

// A leader whose disk is full gives way to a manager that has room.
func TestFullDiskOfTheLeader(t *testing.T) {
	y := newMany(t)
	full := map[string]bool{}
	var mu sync.Mutex
	y.opened = func(name string, m *Member) {
		m.free = func() (int64, error) {
			mu.Lock()
			defer mu.Unlock()
			if full[name] {
				return 1 << 20, nil
			}
			return 1 << 40, nil
		}
	}
	y.first("a")
	y.join("b", spec.RoleManager)
	y.join("c", spec.RoleManager)
	y.voters(3)
	was := y.leader()
	mu.Lock()
	full[was] = true
	mu.Unlock()
	y.any().until("another leader", func() bool { return y.leader() != was })
	// It may lead again for a moment, if no other is heard.
	for name, r := range y.live {
		r.until("a write through "+name, func() bool {
			res, err := r.Propose(t.Context(), label(r.Member, "room", name))
			return name == was || errors.Join(err, res.Err) == nil
		})
	}
}
