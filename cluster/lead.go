package cluster

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

const (
	leadRetry = time.Second
	leadStop  = 5 * time.Second
)

// followLeadership runs lead while this member leads, once per term, one at a
// time.
func (m *Member) followLeadership(ctx context.Context, won <-chan bool) {
	leads := false
	for {
		if !leads {
			select {
			case <-ctx.Done():
				return
			case leads = <-won:
				continue
			}
		}
		if leads = m.reign(ctx, won); ctx.Err() != nil {
			return
		}
	}
}

// reign leads until leadership changes or ctx ends, and returns when lead has
// returned. Raft keeps only the newest change for a slow reader, so a second
// "won" stands for a loss and a new term: it then reports true.
func (m *Member) reign(ctx context.Context, won <-chan bool) (again bool) {
	term, end := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.lead(term)
	}()
	select {
	case <-ctx.Done():
	case again = <-won:
	}
	end(ErrLeadershipLost)
	slow := time.AfterFunc(leadStop, func() { m.log.Warn("leader's work does not stop", "after", leadStop) })
	<-done
	slow.Stop()
	return again
}

// lead establishes leadership and does the leader's work until ctx ends.
func (m *Member) lead(ctx context.Context) {
	for ctx.Err() == nil {
		epoch, err := m.establish(ctx)
		switch {
		case err != nil:
		case m.c.Lead == nil:
			<-ctx.Done()
		default:
			err = m.c.Lead(ctx, epoch)
		}
		if err == nil {
			err = errors.New("it returned")
		}
		// Work often fails for lack of leadership a moment before the news of
		// its loss: that is no error.
		if !wait(ctx, leadRetry) {
			return
		}
		m.log.Error("leader's work ended, starting it again", "epoch", epoch, "err", err)
	}
}

// establish waits until everything committed before this term is applied,
// writes what the state must know of this cluster and node, and returns the
// term.
func (m *Member) establish(ctx context.Context) (uint64, error) {
	epoch, err := await(ctx, m, func(r *raft.Raft) (uint64, error) {
		term := r.CurrentTerm()
		if err := r.Barrier(0).Error(); err != nil {
			return 0, err
		}
		return sameTerm(r, term)
	})
	if err != nil {
		return 0, fmt.Errorf("establish leadership: %w", err)
	}
	m.barrier.Store(epoch)
	if err := m.form(ctx); err != nil {
		return 0, fmt.Errorf("form the cluster: %w", err)
	}
	select {
	case <-m.ready:
	default:
		m.log.Info("cluster is ready", "cluster", m.store.Snapshot().ClusterID(), "term", epoch)
		close(m.ready)
	}
	return epoch, nil
}

// form writes the state's first commands, as far as they are missing, and what
// changed about this node since the last run.
func (m *Member) form(ctx context.Context) error {
	s := m.store.Snapshot()
	if s.ClusterID() == "" {
		err := m.must(ctx, store.Command{Bootstrap: &store.Bootstrap{
			ClusterID: hex.EncodeToString(random(8)), Incarnation: 1, Format: store.Format,
		}})
		if err != nil {
			return err
		}
	}
	n := s.Node(m.id)
	if n != nil && n.Name == m.c.NodeName && n.Address == m.c.Advertise && n.Role == spec.RoleManager && n.State == spec.NodeReady {
		return nil
	}
	return m.must(ctx, store.Command{PutNode: &store.PutNode{
		ID: m.id, Name: m.c.NodeName, Address: m.c.Advertise, Role: spec.RoleManager,
	}})
}

func (m *Member) must(ctx context.Context, c store.Command) error {
	res, err := m.propose(ctx, c)
	if err != nil {
		return err
	}
	return res.Err
}
