package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
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
