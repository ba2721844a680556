package cluster

import (
	"context"
	"crypto/cipher"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"

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

// Member is one member of a cluster. All methods may be called concurrently.
type Member struct {
	c    Config
	log  *slog.Logger
	id   spec.NodeID
	keys keyring

	store *store.Store
	halt  *halt
	ready chan struct{}
	// free returns the bytes left in the data folder's file system.
	free func() (int64, error)

	lock    *os.File
	stable  *stableStore
	wal     *wal.WAL
	logs    *logStore
	snaps   *snapshots
	streams Streams

	ran atomic.Bool
	// barrier is the newest term that this member led and in which everything
	// committed before is applied here.
	barrier atomic.Uint64
	// low is set while the data folder is short of space.
	low atomic.Bool

	mu sync.Mutex
	// raft is set once Run has made it.
	raft *raft.Raft
	// open says whether calls may go to raft. calls counts those that do; it
	// is added to only under mu while open.
	open  bool
	calls sync.WaitGroup
}

// Open claims the data folder for this process and opens what is in it; on an
// empty folder it makes an identity, keys and a cluster of one. A folder that
// another process has claimed is an error of class ErrConflict. Everything is
// given back when Run returns, or when the process ends.
func Open(c Config) (*Member, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("open cluster member: %w", err)
	}
	m := &Member{
		c: c, log: c.Logger, store: store.New(), halt: newHalt(), ready: make(chan struct{}),
		free:    func() (int64, error) { return freeSpace(c.DataDir) },
		streams: c.Streams,
	}
	if m.streams == nil {
		m.streams = newAlone()
	}
	if err := m.openFiles(); err != nil {
		m.release()
		return nil, fmt.Errorf("open cluster member: %w", explain(err, c.DataDir))
	}
	return m, nil
}

func (m *Member) openFiles() (err error) {
	dir := m.c.DataDir
	if m.lock, err = claim(dir); err != nil {
		return err
	}
	who, err := loadIdentity(dir)
	if err != nil {
		return err
	}
	m.id, m.keys = who.id, who.keys
	m.log = m.log.With("node", m.id)
	dir = filepath.Join(dir, raftDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make raft folder: %w", err)
	}
	if err := syncDir(m.c.DataDir); err != nil {
		return fmt.Errorf("sync data folder: %w", err)
	}
	if m.stable, err = openStable(filepath.Join(dir, stableFile), m.halt); err != nil {
		return err
	}
	aead, err := newSealKey(m.keys.Data, nil, "log")
	if err != nil {
		return err
	}
	m.logs = m.newLogStore(aead)
	if m.snaps, err = openSnapshots(filepath.Join(dir, snapDir), m.keys.Data, m.logs.snapshotTaken); err != nil {
		return err
	}
	if m.wal, err = openLog(filepath.Join(dir, logDir), m.c.SegmentSize, m.log); err != nil {
		return err
	}
	m.logs.inner = m.wal
	if err := syncDir(dir); err != nil {
		return fmt.Errorf("sync raft folder: %w", err)
	}
	if err := m.bootstrap(); err != nil {
		return err
	}
	return m.checkLog()
}

func (m *Member) newLogStore(aead cipher.AEAD) *logStore {
	return &logStore{
		aead: aead, halt: m.halt, log: m.log, hung: m.diskHangs, patience: slowAppend,
		due: make(chan struct{}, 1), maxEntries: m.c.SnapshotThreshold, maxBytes: m.c.SnapshotBytes,
	}
}

// bootstrap makes this member the only voter of a new cluster, if the folder
// holds nothing yet. It is raft.BootstrapCluster, but can also go on where a
// process died in the middle of it, which leaves a term without a log.
func (m *Member) bootstrap() error {
	last, err := m.logs.LastIndex()
	if err != nil {
		return fmt.Errorf("find the log's end: %w", err)
	}
	if last > 0 || m.snaps.newest.Load() != nil {
		return nil
	}
	term, err := m.stable.GetUint64([]byte(keyCurrentTerm))
	if err != nil {
		return err
	}
	if term > 1 {
		return spec.Conflictf("the log in %s is empty, but this member has been in a cluster up to term %d: bring back a copy of the folder, or start with an empty data folder",
			filepath.Join(m.c.DataDir, raftDir), term)
	}
	if err := m.stable.SetUint64([]byte(keyCurrentTerm), 1); err != nil {
		return err
	}
	self := raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(m.id), Address: raft.ServerAddress(m.id)}
	return m.logs.StoreLog(&raft.Log{
		Index: 1, Term: 1, Type: raft.LogConfiguration,
		Data: raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{self}}),
	})
}

// checkLog reads what Raft is about to read, because Raft panics on an entry
// that is missing or unreadable. It also drops the rest of a log that ends
// before the snapshot, which a process leaves that dies while it installs one.
func (m *Member) checkLog() error {
	first, err := m.logs.FirstIndex()
	if err != nil {
		return fmt.Errorf("find the log's beginning: %w", err)
	}
	last, err := m.logs.LastIndex()
	if err != nil {
		return fmt.Errorf("find the log's end: %w", err)
	}
	from := uint64(1)
	if snap := m.snaps.newest.Load(); snap != nil {
		m.logs.snapshotTaken(snap.Index)
		from = snap.Index + 1
		if last > 0 && last < snap.Index {
			return m.logs.DeleteRange(first, last)
		}
	}
	if last > 0 && first > from {
		return spec.Conflictf("the log begins at entry %d, but entry %d is the first that is needed: %s is damaged, bring back a copy of it",
			first, from, filepath.Join(m.c.DataDir, raftDir))
	}
	for i := from; i <= last; i++ {
		var l raft.Log
		if err := m.logs.GetLog(i, &l); err != nil {
			return err
		}
	}
	return nil
}

// Node returns this member's ID.
func (m *Member) Node() spec.NodeID { return m.id }

// Store returns the replicated state. It is empty until Run has restored it
// and is written by this member alone.
func (m *Member) Store() *store.Store { return m.store }

// ContentKey returns the key that names of contents are made with
// (spec.KeyedContentID). It must not be modified.
func (m *Member) ContentKey() []byte { return m.keys.Content }

// Ready is closed once this member leads a cluster that is formed: everything
// committed before is applied, and the state knows the cluster and this node.
// It stays closed.
func (m *Member) Ready() <-chan struct{} { return m.ready }

// Run takes part in the cluster until ctx ends, and returns nil then, or until
// the store fails, and returns why. A failed store may hold less than Raft
// believes, so the process must end then, and not go on without the member.
//
// When Run returns, Lead has returned, nothing of the member runs any more and
// the folder is given back; only after a failure may a goroutine that hangs in
// the disk be left, and then the folder stays claimed until the process ends.
// Run can be called once.
func (m *Member) Run(ctx context.Context) error {
	if m.ran.Swap(true) {
		return errors.New("run cluster member: it has been run before")
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

	work, stop := context.WithCancelCause(ctx)
	var loops sync.WaitGroup
	loops.Go(func() { m.followLeadership(work, r.LeaderCh()) })
	loops.Go(func() { m.keepSnapshots(work) })
	select {
	case <-ctx.Done():
	case <-m.halt.c:
	}
	stop(ErrLeadershipLost)
	loops.Wait()
	return m.shutdown(r)
}

// raftConfig returns Raft's configuration; slow makes the timeouts a little
// longer, see hurry.
func (m *Member) raftConfig(slow bool) *raft.Config {
	c := raft.DefaultConfig()
	c.LocalID = raft.ServerID(m.id)
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
	c := m.raftConfig(false)
	err := r.ReloadConfig(raft.ReloadableConfig{
		TrailingLogs: c.TrailingLogs, SnapshotInterval: c.SnapshotInterval, SnapshotThreshold: c.SnapshotThreshold,
		HeartbeatTimeout: c.HeartbeatTimeout, ElectionTimeout: c.ElectionTimeout,
	})
	if err != nil {
		m.log.Warn("shorten raft's heartbeat", "err", err)
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
	errs = append(errs, m.streams.Close())
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
