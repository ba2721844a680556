package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"

	"wherry.dev/api"
	"wherry.dev/cluster/ca"
	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

const (
	// drainTime is how long Run lets calls in flight finish when it ends.
	drainTime = 3 * time.Second
	// hangTime is how long Run waits for Raft to end after a failure: a
	// goroutine of its own may hang in the disk for good.
	hangTime = 5 * time.Second
)

// Member is one member of a cluster: a manager with its share of the state, or
// a worker, which has none. All methods may be called concurrently.
type Member struct {
	c    Config
	log  *slog.Logger
	id   spec.NodeID
	keys keyring
	role spec.NodeRole
	// seat is the member's name in Raft, see takeSeat.
	seat     raft.ServerID
	instance string
	// addr is what the node advertises, "IP:port"; it may change.
	addr atomic.Pointer[string]

	store *store.Store
	halt  *halt
	ready chan struct{}
	// once closes ready.
	once sync.Once
	// free returns the bytes left in the data folder's file system.
	free func() (int64, error)

	// The port and what goes through it; all nil without a port.
	identity *ca.Identity
	port     *port
	dir      *directory
	gossip   *gossip
	live     *liveness
	enroll   *enroller // nil on a worker
	managers *managers
	handler  http.Handler
	// moved are the addresses that nodes have told here, for the table.
	moved addresses

	lock *os.File
	// The files of Raft; nil on a worker.
	stable  *stableStore
	wal     *wal.WAL
	logs    *logStore
	snaps   *snapshots
	streams Streams
	dialled openStreams

	ran atomic.Bool
	// barrier is the newest term that this member led and in which everything
	// committed before is applied here.
	barrier atomic.Uint64
	// low is set while the data folder is short of space.
	low atomic.Bool
	// led rings when another member leads, told when a session has told of the
	// cluster.
	led, told bell
	// ended is why Run returns without being asked to: ErrRoleChanged,
	// ErrRemoved.
	ended chan error

	mu sync.Mutex
	// raft is set once Run has made it.
	raft *raft.Raft
	// open says whether calls may go to raft. calls counts those that do; it
	// is added to only under mu while open.
	open  bool
	calls sync.WaitGroup
}

// Node returns this member's ID.
func (m *Member) Node() spec.NodeID { return m.id }

// Store returns the replicated state. It is empty until Run has restored it,
// is written by this member alone, and stays empty on a worker.
func (m *Member) Store() *store.Store { return m.store }

// ContentKey returns the key that names of contents are made with
// (spec.KeyedContentID). It must not be modified.
func (m *Member) ContentKey() []byte { return m.keys.Content }

// Ready is closed once the state here holds everything that was committed
// before, and knows the cluster and this node, whoever leads; on a worker it is
// closed from the start. It stays closed.
func (m *Member) Ready() <-chan struct{} { return m.ready }

// Run takes part in the cluster until ctx ends, and returns nil then;
// ErrRoleChanged when the node is to have the other role, ErrRemoved when it
// was removed; or, when the store fails, why. A failed store may hold less than
// Raft believes, so the process must end then, and not go on without the
// member.
//
// When Run returns, Lead has returned, nothing of the member runs any more and
// the folder is given back; only after a failure may a goroutine that hangs in
// the disk be left, and then the folder stays claimed until the process ends.
// Run can be called once.
func (m *Member) Run(ctx context.Context) error {
	if m.ran.Swap(true) {
		return errors.New("run cluster member: it has been run before")
	}
	if m.role == spec.RoleWorker {
		return m.runWorker(ctx)
	}
	trans := m.newTransport()
	r, err := raft.NewRaft(m.raftConfig(true), &fsm{m.store, m.halt}, m.logs, m.stable, m.snaps, trans)
	if err != nil {
		trans.Close()
		m.release()
		return fmt.Errorf("start raft: %w", explain(err, m.c.DataDir))
	}
	m.halt.live.Store(true)
	m.mu.Lock()
	m.raft, m.open = r, true
	m.mu.Unlock()
	m.hurry(r)

	work, stop := context.WithCancelCause(context.WithoutCancel(ctx))
	var loops sync.WaitGroup
	loops.Go(func() { m.followLeadership(work, r.LeaderCh()) })
	loops.Go(func() { m.keepSnapshots(work) })
	loops.Go(func() { m.watchLeader(work, r) })
	loops.Go(func() { m.hasten(work, r) })
	loops.Go(func() { m.becomeReady(work) })
	if m.port != nil {
		m.runPort(work, &loops)
		loops.Go(func() { m.watchTable(work) })
		loops.Go(func() { m.keepOut(work) })
		loops.Go(func() { m.keepAddresses(work) })
		loops.Go(func() { m.live.tell(work, telling{Self: m.id, Send: m.tellLeader, Ping: m.gossip.ping}) })
	}
	select {
	case <-ctx.Done():
	case <-m.halt.c:
	case err = <-m.ended:
	}
	if m.halt.failure() != nil {
		m.dialled.end()
	}
	m.handOver()
	stop(ErrLeadershipLost)
	loops.Wait()
	if failed := m.shutdown(r); failed != nil {
		return failed
	}
	return err
}

// runPort starts the loops of every node that has a port.
func (m *Member) runPort(ctx context.Context, loops *sync.WaitGroup) {
	run := func(what string, f func(context.Context) error) {
		loops.Go(func() {
			if err := f(ctx); err != nil {
				m.log.Error(what+" ended", "err", err)
			}
		})
	}
	run("directory of nodes", m.dir.run)
	run("gossip", m.gossip.run)
	run("API on the port", m.serve)
	loops.Go(func() { m.followAddress(ctx) })
	loops.Go(func() { m.noteRoots(ctx) })
	keep := m.certificates()
	loops.Go(func() {
		if !m.mayCertify(ctx) {
			return
		}
		if err := keep.keepCertificate(ctx); err != nil && ctx.Err() == nil {
			m.log.Error("renewal of the certificate ended", "err", err)
		}
	})
}

// mayCertify returns true when the certificate may be judged by the state. A
// manager that is still catching up sees the authority of some time ago, and
// must not go back to it; but without any certificate that is good it could not
// catch up at all.
func (m *Member) mayCertify(ctx context.Context) bool {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for m.role == spec.RoleManager {
		if leaf := m.identity.Leaf(); leaf == nil || time.Now().After(leaf.NotAfter) {
			return true
		}
		select {
		case <-m.ready:
			return true
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
	return true
}

// certificates returns the keeper of this node's certificate.
func (m *Member) certificates() *certificates {
	if m.role == spec.RoleManager {
		return m.enroll.ownCertificates()
	}
	return &certificates{
		identity: m.identity,
		wanted: func() api.ClusterInfo {
			info, _ := m.dir.cluster()
			return info
		},
		changed: m.told.wait, renew: renewOver(m.managers), keep: m.keepKeys, now: m.identity.Now, log: m.log,
	}
}

// serve answers the API on the port until ctx ends.
func (m *Member) serve(ctx context.Context) error {
	h := m.handler
	if h == nil {
		h = http.NotFoundHandler()
	}
	s := &http.Server{
		Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		// A caller that has vanished or is frozen is found out, whatever it streams.
		HTTP2:       &http.HTTP2Config{SendPingTimeout: 5 * time.Second, PingTimeout: 3 * time.Second},
		BaseContext: func(net.Listener) context.Context { return ctx },
		ErrorLog:    slog.NewLogLogger(m.log.Handler(), slog.LevelDebug),
	}
	defer context.AfterFunc(ctx, func() { s.Close() })()
	if err := s.Serve(m.port.api()); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("serve the API: %w", err)
	}
	return nil
}

// addresses are what nodes say of where they are, as far as the table says
// something else. The zero value is ready for use.
type addresses struct {
	bell bell
	mu   sync.Mutex
	told map[spec.NodeID]toldAddress
}

type toldAddress struct {
	addr string
	at   time.Time
}

// addressAge is how long a node's word counts: it may tell another manager the
// next time, and that one then knows better.
const addressAge = 2 * time.Second

// tell notes the word of a node.
func (a *addresses) tell(n *spec.Node, addr string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if n.Address == addr {
		delete(a.told, n.ID)
		return
	}
	if a.told == nil {
		a.told = map[spec.NodeID]toldAddress{}
	}
	a.told[n.ID] = toldAddress{addr, time.Now()}
	a.bell.ring()
}

// done forgets a word that is in the table now.
func (a *addresses) done(id spec.NodeID, addr string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.told[id].addr == addr {
		delete(a.told, id)
	}
}

// fresh returns what was said within the last addressAge.
func (a *addresses) fresh() map[spec.NodeID]string {
	a.mu.Lock()
	defer a.mu.Unlock()
	maps.DeleteFunc(a.told, func(_ spec.NodeID, t toldAddress) bool { return time.Since(t.at) > addressAge })
	out := map[spec.NodeID]string{}
	for id, t := range a.told {
		out[id] = t.addr
	}
	return out
}

// keepAddresses writes into the table where the nodes are that tell this
// manager. A manager writes its own row, see becomeReady.
func (m *Member) keepAddresses(ctx context.Context) {
	for {
		told := m.moved.bell.wait()
		s := m.store.Snapshot()
		fresh := m.moved.fresh()
		for id, addr := range fresh {
			n := s.Node(id)
			if n == nil || n.Address == addr {
				m.moved.done(id, addr)
				continue
			}
			c, end := context.WithTimeout(ctx, addressAge)
			err := m.must(c, store.Command{PutNode: &store.PutNode{ID: id, Name: n.Name, Address: addr}})
			end()
			if err != nil {
				m.log.Info("new address of a node not noted, will try again", "node", n.Name, "address", addr, "err", err)
				continue
			}
			m.log.Info("node has another address", "node", n.Name, "was", n.Address, "is", addr)
			m.moved.done(id, addr)
		}
		pause := addressTick
		if len(fresh) == 0 {
			pause = time.Hour // there is nothing to try again
		}
		if !changeWithin(ctx, pause, told) {
			return
		}
	}
}

// addressTick is how often a word that is not in the table yet is looked at.
const addressTick = 500 * time.Millisecond

// noteRoots writes down which roots this node trusts, see knownRoots.
func (m *Member) noteRoots(ctx context.Context) {
	for {
		changed := m.identity.Changed()
		if err := addRoots(m.c.DataDir, m.identity.Trusts()); err != nil {
			m.log.Warn("roots not noted", "err", explain(err, m.c.DataDir))
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// followAddress tells the others when the address of this host has changed.
func (m *Member) followAddress(ctx context.Context) {
	if m.c.Advertise != "" {
		return
	}
	watchAdvertised(ctx, m.Address(), m.port.number(), func(addr string) {
		m.log.Info("this host has another address now", "was", m.Address(), "is", addr)
		m.addr.Store(&addr)
		if m.c.Moved != nil {
			m.c.Moved()
		}
		m.gossip.announce(addr)
		m.led.ring() // wakes becomeReady
	})
}

// raftConfig returns Raft's configuration; slow makes the timeouts a little
// longer, see hurry.
func (m *Member) raftConfig(slow bool) *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = m.seat
	c.Logger = hclogTo(m.log)
	c.HeartbeatTimeout = m.c.Heartbeat
	c.LeaderLeaseTimeout = m.c.Heartbeat
	if slow {
		c.HeartbeatTimeout += time.Millisecond
	}
	c.ElectionTimeout = c.HeartbeatTimeout
	c.NoLegacyTelemetry = true
	// A member that leaves its own cluster stays a follower until its process
	// is told to end; a Raft that is gone while the process lives on is worse.
	c.ShutdownOnRemove = false
	// keepSnapshots decides when, by size too.
	c.SnapshotThreshold = math.MaxUint64
	c.SnapshotInterval = time.Hour
	c.TrailingLogs = min(trailingLogs, m.c.SnapshotThreshold)
	return c
}

// hurry makes a sole voter stand for election now instead of first waiting for
// a leader that cannot exist: a shorter heartbeat wakes a follower at once.
func (m *Member) hurry(r *raft.Raft) {
	if m.voters(r) != 1 {
		return
	}
	err := r.ReloadConfig(m.reloadable(false))
	if err != nil {
		m.log.Warn("shorten raft's heartbeat", "err", err)
	}
}

// reloadable is the part of raftConfig that can be changed while Raft runs.
func (m *Member) reloadable(slow bool) raft.ReloadableConfig {
	c := m.raftConfig(slow)
	return raft.ReloadableConfig{
		TrailingLogs: c.TrailingLogs, SnapshotInterval: c.SnapshotInterval, SnapshotThreshold: c.SnapshotThreshold,
		HeartbeatTimeout: c.HeartbeatTimeout, ElectionTimeout: c.ElectionTimeout,
	}
}

func (m *Member) voters(r *raft.Raft) int {
	f := r.GetConfiguration()
	if f.Error() != nil {
		return 0
	}
	n := 0
	for _, s := range f.Configuration().Servers {
		if s.Suffrage == raft.Voter {
			n++
		}
	}
	return n
}

// diskHangs is called when an append takes too long. Where others could lead,
// this member must not: its heartbeats go on without the disk, so it would
// keep them from it, and it cannot hand over either while the append hangs.
func (m *Member) diskHangs(after time.Duration) {
	m.mu.Lock()
	r := m.raft
	m.mu.Unlock()
	if r != nil && m.voters(r) > 1 {
		m.halt.stop(fmt.Errorf("append to the log: no answer from the disk of %s within %s", m.c.DataDir, after))
		return
	}
	m.log.Warn("disk does not answer, writes wait", "dir", m.c.DataDir, "after", after)
}

// keepSnapshots takes a snapshot whenever the log has grown enough.
func (m *Member) keepSnapshots(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.logs.due:
		}
		for {
			_, err := await(ctx, m, func(r *raft.Raft) (struct{}, error) { return struct{}{}, r.Snapshot().Error() })
			if err == nil || errors.Is(err, raft.ErrNothingNewToSnapshot) || ctx.Err() != nil {
				break
			}
			m.log.Warn("snapshot failed, will try again", "err", explain(err, m.c.DataDir))
			if !wait(ctx, snapshotRetry) {
				return
			}
		}
	}
}

const snapshotRetry = 5 * time.Second

// wait returns true after d, or false when ctx ends before.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// shutdown ends Raft after the loops have ended.
func (m *Member) shutdown(r *raft.Raft) error {
	m.mu.Lock()
	m.open = false
	m.mu.Unlock()
	// Raft drops, without an answer, what is committed but not yet applied
	// when it ends; so the calls in flight end first.
	if m.halt.failure() == nil && !within(drainTime, m.calls.Wait) {
		m.log.Warn("writes in flight are given up")
	}
	ended := r.Shutdown()
	m.dialled.end()
	if m.halt.failure() != nil {
		if !within(hangTime, func() { ended.Error() }) {
			return fmt.Errorf("run cluster member: %w (and raft hangs in the disk)", explain(m.halt.err, m.c.DataDir))
		}
	} else if err := ended.Error(); err != nil {
		return fmt.Errorf("shut down raft: %w", err)
	}
	err := m.release()
	if failed := m.halt.failure(); failed != nil {
		return fmt.Errorf("run cluster member: %w", explain(failed, m.c.DataDir))
	}
	// Whoever calls from now on is told that the member has ended.
	m.halt.stop(errEnded)
	if err != nil {
		return fmt.Errorf("close the data folder: %w", err)
	}
	return nil
}

var errEnded = errors.New("this member has ended")

// within reports whether f returned in time.
func within(d time.Duration, f func()) bool {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
	}
}

// release closes what openFiles opened; the lock goes last.
func (m *Member) release() error {
	var errs []error
	if m.wal != nil {
		errs = append(errs, m.wal.Close())
	}
	if m.stable != nil {
		errs = append(errs, m.stable.close())
	}
	if m.streams != nil {
		errs = append(errs, m.streams.Close())
	}
	if m.port != nil {
		errs = append(errs, m.port.close())
	}
	if m.lock != nil {
		errs = append(errs, m.lock.Close())
	}
	return errors.Join(slices.DeleteFunc(errs, func(e error) bool { return e == nil })...)
}

// explain says what a person can do about an error of the disk.
func explain(err error, dir string) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w: the disk of %s is full, free some space and start again", err, dir)
	case errors.Is(err, syscall.EIO):
		return fmt.Errorf("%w: the disk of %s fails, look at the kernel's log", err, dir)
	case errors.Is(err, syscall.EROFS):
		return fmt.Errorf("%w: the file system of %s is read-only, look at the kernel's log", err, dir)
	}
	return err
}
