package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

func TestLeadRunsUntilTheEnd(t *testing.T) {
	c := testConfig(t.TempDir())
	var m *Member
	started := make(chan uint64, 1)
	var stopped atomic.Bool
	c.Lead = func(ctx context.Context, epoch uint64) error {
		if m.Store().Snapshot().ClusterID() == "" {
			t.Error("the leader's work began before the cluster was formed")
		}
		// What the leader does, it does by proposals.
		res, err := m.Propose(ctx, store.Command{ApplyPlan: &store.ApplyPlan{Epoch: epoch}})
		if err = errors.Join(err, res.Err); err != nil {
			t.Error(err)
		}
		started <- epoch
		<-ctx.Done()
		time.Sleep(20 * time.Millisecond) // work that takes a while to stop
		stopped.Store(true)
		return nil
	}
	m = mustOpen(t, c)
	r := run(t, m)
	r.await(r.Ready(), "ready")
	if epoch := <-started; epoch != r.Status().Term || r.Store().Snapshot().Epoch() != epoch {
		t.Errorf("epoch %d, term %d, state's epoch %d", epoch, r.Status().Term, r.Store().Snapshot().Epoch())
	}
	r.end()
	if !stopped.Load() {
		t.Error("Run returned before the leader's work had stopped")
	}
}

func TestLeadIsStartedAgain(t *testing.T) {
	c := testConfig(t.TempDir())
	calls := make(chan uint64, 2)
	c.Lead = func(ctx context.Context, epoch uint64) error {
		calls <- epoch
		if len(calls) == 2 {
			<-ctx.Done()
		}
		return errors.New("went wrong")
	}
	r := start(t, c)
	r.until("a second call", func() bool { return len(calls) == 2 })
	if a, b := <-calls, <-calls; a != b {
		t.Errorf("epochs %d and %d", a, b)
	}
	if err := r.end(); err != nil {
		t.Fatal(err)
	}
}

// A leader that loses and wins before the news of the loss is read gets only
// the second "won"; the work of the old term must end all the same.
func TestReignEndsWhenLeadershipWasWonAgain(t *testing.T) {
	m := mustOpen(t, testConfig(t.TempDir()))
	defer m.release()
	won := make(chan bool, 1)
	won <- true
	if !m.reign(t.Context(), won) {
		t.Error("the new term is not noticed")
	}
	won <- false
	if m.reign(t.Context(), won) {
		t.Error("the loss is not noticed")
	}
}

// fabric connects the members of a test over loopback sockets, and can cut one
// off.
type fabric struct {
	mu    sync.Mutex
	at    map[spec.NodeID]string
	cut   map[spec.NodeID]bool
	conns map[net.Conn][2]spec.NodeID
}

type fabricEnd struct {
	net.Listener
	f  *fabric
	id *spec.NodeID
}

func newFabric() *fabric {
	return &fabric{at: map[spec.NodeID]string{}, cut: map[spec.NodeID]bool{}, conns: map[net.Conn][2]spec.NodeID{}}
}

func (e fabricEnd) Dial(ctx context.Context, id spec.NodeID) (net.Conn, error) {
	e.f.mu.Lock()
	addr, cut := e.f.at[id], e.f.cut[id] || e.f.cut[*e.id]
	e.f.mu.Unlock()
	if cut || addr == "" {
		return nil, errors.New("no way")
	}
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	e.f.mu.Lock()
	defer e.f.mu.Unlock()
	e.f.conns[c] = [2]spec.NodeID{*e.id, id}
	return c, nil
}

func (f *fabric) isolate(id spec.NodeID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.cut[id] = true
	for c, ends := range f.conns {
		if ends[0] == id || ends[1] == id {
			c.Close()
			delete(f.conns, c)
		}
	}
}

func (f *fabric) heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.cut)
}

// member starts a member on the fabric; one that is not the first forgets the
// cluster of one that Open makes, and waits to be added.
func (f *fabric) member(t *testing.T, first bool, lead func(context.Context, uint64) error) *running {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	id := new(spec.NodeID)
	c := testConfig(t.TempDir())
	c.NodeName = l.Addr().String()
	c.Heartbeat = 120 * time.Millisecond
	c.Streams, c.Lead = fabricEnd{l, f, id}, lead
	m := mustOpen(t, c)
	*id = m.Node()
	f.mu.Lock()
	f.at[*id] = l.Addr().String()
	f.mu.Unlock()
	if !first {
		if err := m.wal.DeleteRange(1, 1); err != nil {
			t.Fatal(err)
		}
	}
	return run(t, m)
}

func TestThreeMembers(t *testing.T) {
	f := newFabric()
	type reign struct {
		ctx   context.Context
		epoch uint64
	}
	reigns := make(chan reign, 100)
	var leading atomic.Int32
	lead := func(ctx context.Context, epoch uint64) error {
		leading.Add(1)
		defer leading.Add(-1)
		reigns <- reign{ctx, epoch}
		<-ctx.Done()
		return nil
	}
	a := f.member(t, true, lead)
	a.await(a.Ready(), "ready")
	first := <-reigns
	all := []*running{a, f.member(t, false, lead), f.member(t, false, lead)}
	for _, m := range all[1:] {
		if err := a.raft.AddVoter(raft.ServerID(m.Node()), raft.ServerAddress(m.Node()), 0, patience).Error(); err != nil {
			t.Fatal(err)
		}
	}
	a.put("color", "blue")
	for _, m := range all {
		m.until("the write", func() bool {
			n := m.Store().Snapshot().Node(a.Node())
			return n != nil && n.Labels["color"] == "blue"
		})
	}
	b := all[1]
	if err := b.Linearizable(t.Context()); !errors.Is(err, spec.ErrUnavailable) {
		t.Errorf("a follower vouches for its state: %v", err)
	}
	if st := b.Status(); st.Leader || st.LeaderID != a.Node() || len(st.Voters) != 3 {
		t.Errorf("status of a follower: %+v", st)
	}

	f.isolate(a.Node())
	<-first.ctx.Done()
	if cause := context.Cause(first.ctx); !errors.Is(cause, ErrLeadershipLost) {
		t.Errorf("the leader's work ended because of %v", cause)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := a.Linearizable(ctx); err == nil {
		t.Error("a leader that is cut off vouches for its state")
	}
	if _, err := a.Propose(ctx, label(a.Member, "color", "red")); err == nil {
		t.Error("a leader that is cut off acknowledged a write")
	}
	second := <-reigns
	if second.epoch <= first.epoch {
		t.Errorf("epoch %d after %d", second.epoch, first.epoch)
	}
	var next *running
	for _, m := range all[1:] {
		if m.Status().Leader {
			next = m
		}
	}
	if next == nil {
		t.Fatal("nobody leads")
	}
	next.await(next.Ready(), "ready")
	if err := next.Linearizable(t.Context()); err != nil {
		t.Fatal(err)
	}
	blue := "green"
	res, err := next.Propose(t.Context(), store.Command{RequestID: "g", SetNode: &store.SetNode{ID: a.Node(), Labels: map[string]*string{"color": &blue}}})
	if err = errors.Join(err, res.Err); err != nil {
		t.Fatal(err)
	}

	f.heal()
	a.until("the write it missed", func() bool { return a.get("color") == "green" })
	if n := leading.Load(); n != 1 {
		t.Errorf("%d members lead", n)
	}

	// A disk that hangs must not keep the leader in office: here it cannot be
	// hung, so only the decision is tested.
	next.diskHangs(slowAppend)
	next.await(next.done, "end of a leader whose disk hangs")
	if next.err == nil {
		t.Error("its Run returned no error")
	}
	third := <-reigns
	if third.epoch <= second.epoch {
		t.Errorf("epoch %d after %d", third.epoch, second.epoch)
	}
	for i, m := range all {
		if m != next {
			m.until(fmt.Sprint("member ", i, " to know a leader"), func() bool { return m.Status().LeaderID != "" && m.Status().LeaderID != next.Node() })
		}
	}
}
