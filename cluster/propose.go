package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"wherry.dev/api"
	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

const (
	// maxEntry is the largest command in bytes, encoded.
	maxEntry = 4 << 20
	// enqueueTime is how long a command waits for Raft to take it. Raft takes
	// one as soon as the append before it is on the disk.
	enqueueTime = 10 * time.Second

	// The log's next file is allocated in full, and a snapshot takes room
	// beside the log; without either the member would have to stop. So
	// commands are refused while there is still room for them: the ones that
	// add data early, the ones that may free some late.
	reserve      = 16 << 20
	reserveToAdd = 64 << 20
)

// Propose writes c to the log and applies it, through the leader if that is
// another member. It returns when c is applied here, with the outcome of Apply:
// the caller looks at Result.Err. A zero c.Time becomes now.
//
// Where that can do no harm, a command is tried again for up to 10 s while
// leadership changes: a user's command with a RequestID, reports, and whatever
// was not sent. What only the leader may propose (plans, states of nodes) is
// neither sent to another member nor tried again.
//
// The returned error says that the outcome is unknown or that c was refused
// before it was written: of class ErrInvalid when it is too large,
// ErrUnavailable when there is no leader, the member has ended or the disk is
// short of space, or the cause of ctx. After an unknown outcome a user's
// command may be repeated with the same RequestID.
func (m *Member) Propose(ctx context.Context, c store.Command) (store.Result, error) {
	select {
	case <-m.ready:
	default:
		if err := m.halt.failure(); err != nil {
			return store.Result{}, m.stopped(err)
		}
		return store.Result{}, spec.Unavailablef("the cluster has no leader yet: try again in a moment")
	}
	if m.role != spec.RoleManager {
		return store.Result{}, errWorker
	}
	if err := m.room(&c); err != nil {
		return store.Result{}, err
	}
	return m.propose(ctx, c)
}

var errWorker = spec.Unavailablef("this node is a worker: ask a manager")

// propose is Propose for a member that is not ready yet, too.
func (m *Member) propose(ctx context.Context, c store.Command) (store.Result, error) {
	if c.Time.IsZero() {
		c.Time = time.Now().UTC()
	}
	entry, err := store.Encode(c)
	if err != nil {
		return store.Result{}, fmt.Errorf("propose command: %w", err)
	}
	if len(entry) > maxEntry {
		return store.Result{}, spec.Invalidf("command %s has %d KiB encoded, at most %d are possible: split it", c.Kind(), len(entry)>>10, maxEntry>>10)
	}
	if leadersOwn(&c) {
		return m.apply(ctx, entry)
	}
	return throughLeader(ctx, m, repeatable(&c),
		func(ctx context.Context) (store.Result, error) { return m.apply(ctx, entry) },
		func(ctx context.Context, leader spec.NodeID) (store.Result, error) {
			return m.applyAt(ctx, leader, entry)
		})
}

// leadersOwn tells the commands that only a leader may propose, on the ground
// of having led when it decided.
func leadersOwn(c *store.Command) bool { return c.ApplyPlan != nil || c.SetNodeState != nil }

// repeatable tells the commands that may be sent again after an unknown
// outcome.
func repeatable(c *store.Command) bool {
	switch c.Kind() {
	case "reports", "put_node", "bootstrap", "put_content":
		return true
	}
	return c.RequestID != ""
}

// apply applies an encoded command on this member, which must lead.
func (m *Member) apply(ctx context.Context, entry []byte) (store.Result, error) {
	return await(ctx, m, func(r *raft.Raft) (store.Result, error) {
		f := r.ApplyLog(raft.Log{Data: entry}, enqueueTime)
		if err := f.Error(); err != nil {
			return store.Result{}, err
		}
		res, ok := f.Response().(store.Result)
		if !ok { // the state machine stopped at this command
			return res, raft.ErrRaftShutdown
		}
		return res, nil
	})
}

// room refuses a command while the data folder is short of space.
func (m *Member) room(c *store.Command) error {
	left, err := m.free()
	if err != nil {
		return spec.Unavailablef("%v", err)
	}
	keep := int64(m.c.SegmentSize) + reserve
	low := left < keep+reserveToAdd
	if m.low.Swap(low) != low {
		if low {
			m.log.Warn("data folder is short of space", "dir", m.c.DataDir, "left", left, "want", keep+reserveToAdd)
		} else {
			m.log.Info("data folder has space again", "dir", m.c.DataDir, "left", left)
		}
	}
	if c.PutStack != nil || c.PutContent != nil {
		keep += reserveToAdd
	}
	if left >= keep {
		return nil
	}
	return spec.Unavailablef("disk full: data folder %s has %d MiB left and this needs %d: free some space on its file system and try again",
		m.c.DataDir, left>>20, (keep+1<<20-1)>>20)
}

// await runs a call of Raft that cannot be interrupted, and returns when it
// does, or when ctx or the member ends. Errors of Raft come back with class
// ErrUnavailable.
func await[T any](ctx context.Context, m *Member, call func(*raft.Raft) (T, error)) (none T, err error) {
	if ctx.Err() != nil {
		return none, context.Cause(ctx)
	}
	m.mu.Lock()
	r, open := m.raft, m.open
	if open {
		m.calls.Add(1)
	}
	m.mu.Unlock()
	if !open {
		return none, m.stopped(m.halt.failure())
	}
	type outcome struct {
		v   T
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		defer m.calls.Done()
		v, err := call(r)
		done <- outcome{v, err}
	}()
	select {
	case o := <-done:
		return o.v, m.classify(o.err)
	case <-ctx.Done():
		return none, fmt.Errorf("wait for the cluster: %w", context.Cause(ctx))
	case <-m.halt.c:
		return none, m.stopped(m.halt.err)
	}
}

// errNotLeader says that nothing was done because another member leads, or
// none.
var errNotLeader = spec.Unavailablef("this member does not lead the cluster")

// errTransfer is errNotLeader for a leader that is about to be none.
var errTransfer = spec.Unavailablef("leadership is being handed over: try again in a moment")

// classify gives an error of Raft its class and words.
func (m *Member) classify(err error) error {
	switch {
	case err == nil, errors.Is(err, raft.ErrNothingNewToSnapshot):
		return err
	case errors.Is(err, raft.ErrNotLeader):
		return errNotLeader
	case errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrAbortedByRestore):
		return spec.Unavailablef("leadership was lost meanwhile: the command may or may not have been done, repeat it")
	case errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return errTransfer
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return spec.Unavailablef("the disk of %s has not answered for %s: try again later", m.c.DataDir, enqueueTime)
	case errors.Is(err, raft.ErrRaftShutdown):
		return m.stopped(m.halt.failure())
	}
	return spec.Unavailablef("%v", explain(err, m.c.DataDir))
}

// stopped is what a caller gets from a member that does not run.
func (m *Member) stopped(err error) error {
	if err == nil || errors.Is(err, errEnded) {
		return spec.Unavailablef("this manager is not running")
	}
	return spec.Unavailablef("this manager stops: %v", explain(err, m.c.DataDir))
}

// Linearizable returns when Store holds every write that was acknowledged, by
// any member, before the call; a follower asks the leader how far that is. It
// fails with class ErrUnavailable when nobody can be sure of it.
func (m *Member) Linearizable(ctx context.Context) error {
	if m.role != spec.RoleManager {
		return errWorker
	}
	_, err := throughLeader(ctx, m, true,
		func(ctx context.Context) (struct{}, error) { return struct{}{}, m.verify(ctx) },
		func(ctx context.Context, leader spec.NodeID) (none struct{}, err error) {
			var at api.ReadIndex
			if err := m.call(ctx, leader, "POST", readPath, nil, &at); err != nil {
				return none, err
			}
			return none, m.reach(ctx, at.Index)
		})
	return err
}

// verify returns when this member, which must lead, has applied all that was
// acknowledged before the call.
func (m *Member) verify(ctx context.Context) error {
	_, err := await(ctx, m, func(r *raft.Raft) (uint64, error) {
		term := r.CurrentTerm()
		// A new leader may not have applied yet what the one before it has
		// acknowledged.
		if m.barrier.Load() != term {
			if err := r.Barrier(enqueueTime).Error(); err != nil {
				return 0, err
			}
		}
		if err := r.VerifyLeader().Error(); err != nil {
			return 0, err
		}
		return sameTerm(r, term)
	})
	return err
}

// sameTerm returns term if r leads in it. Terms only grow: what happened on
// this leader since term was read then happened in that term.
func sameTerm(r *raft.Raft, term uint64) (uint64, error) {
	if r.CurrentTerm() != term || r.State() != raft.Leader {
		return 0, raft.ErrNotLeader
	}
	return term, nil
}
