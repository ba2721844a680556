package cluster

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"wherry.dev/api"
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
	m.pace(leaderPace)
	select {
	case <-ctx.Done():
	case again = <-won:
	}
	m.pace(1)
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
		default:
			err = m.work(ctx, epoch)
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

// work does the leader's work: what was given to this member, and its own.
func (m *Member) work(ctx context.Context, epoch uint64) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(ErrLeadershipLost)
	var own sync.WaitGroup
	defer own.Wait()
	defer end(ErrLeadershipLost) // before the wait
	if m.port != nil {
		own.Go(func() { m.keepMembers(ctx) })
		own.Go(func() {
			if err := m.enroll.rotate(ctx); err != nil && ctx.Err() == nil {
				m.log.Error("care for the certificate authority ended", "err", err)
			}
		})
		own.Go(func() {
			m.live.lead(ctx, leading{
				Self: m.id, Nodes: func() []*spec.Node { return m.store.Snapshot().Nodes() }, Ping: m.gossip.ping,
				Propose: func(ctx context.Context, c store.SetNodeState) error {
					return m.must(ctx, store.Command{SetNodeState: &c})
				},
			})
		})
	}
	if m.c.Lead == nil {
		<-ctx.Done()
		return nil
	}
	return m.c.Lead(ctx, epoch)
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
	m.becameReady()
	return epoch, nil
}

// becameReady closes ready.
func (m *Member) becameReady() {
	m.once.Do(func() {
		s := m.Status()
		m.log.Info("cluster is ready", "cluster", m.store.Snapshot().ClusterID(), "term", s.Term, "leader", s.LeaderID)
		close(m.ready)
	})
}

// form writes the state's first commands, as far as they are missing, and what
// changed about this node since the last run.
func (m *Member) form(ctx context.Context) error {
	s := m.store.Snapshot()
	if s.ClusterID() == "" {
		err := m.must(ctx, store.Command{Bootstrap: &store.Bootstrap{
			ClusterID: hex.EncodeToString(random(8)), Incarnation: 1, Format: store.Format, VXLANPort: m.c.VXLANPort,
		}})
		if err != nil {
			return err
		}
	}
	if err := m.beginLife(ctx); err != nil {
		return err
	}
	// A state of a former version cannot have the rest before its format is
	// raised; when it cannot be raised yet, there is a leader all the same.
	if err := m.raiseFormat(ctx); err != nil {
		return err
	}
	if err := m.keepRow(ctx, true); err != nil {
		return err
	}
	if m.enroll == nil || m.store.Snapshot().Format() < authorityFormat {
		return nil
	}
	return m.enroll.ensureAuthority(ctx)
}

// authorityFormat is the first format in which the state knows keys of nodes
// and a certificate authority.
const authorityFormat = 2

// row is what the table of nodes shall say of this node.
func (m *Member) row() store.PutNode {
	c := store.PutNode{ID: m.id, Name: m.c.NodeName, Address: m.Address(), Role: spec.RoleManager}
	if m.identity != nil && m.store.Snapshot().Format() >= authorityFormat {
		c.Key = m.identity.Key()
	}
	return c
}

// keepRow writes what has changed about this node. A leader is ready, and
// makes the first row of all.
func (m *Member) keepRow(ctx context.Context, leads bool) error {
	s, want := m.store.Snapshot(), m.row()
	n := s.Node(m.id)
	switch {
	case n == nil && m.port != nil && (!leads || len(s.Nodes()) > 0):
		return spec.Unavailablef("the table of nodes does not have this node")
	case n == nil:
	case n.Role != spec.RoleManager:
		return nil // this member is about to end
	case n.Name == want.Name && n.Address == want.Address && (want.Key == "" || n.Key == want.Key) && (n.State == spec.NodeReady || !leads):
		return nil
	}
	if n != nil && s.Format() >= authorityFormat {
		want.Role = "" // it may have been removed since
	}
	return m.must(ctx, store.Command{PutNode: &want})
}

// becomeReady waits until the state here is up to date, whoever leads, and
// keeps this node's row in it as it is.
func (m *Member) becomeReady(ctx context.Context) {
	if m.port == nil {
		return // a leader is ready at once, and nobody else can be
	}
	for ctx.Err() == nil {
		changed := m.led.wait()
		err := m.Linearizable(ctx)
		if err == nil && m.leader() != m.id {
			err = m.keepRow(ctx, false)
			if err == nil {
				m.becameReady()
			}
		} else if err == nil {
			select {
			case <-m.ready:
				err = m.keepRow(ctx, true)
			default: // establish does it
			}
		}
		pause := rowTick
		if err != nil {
			m.log.Debug("not ready yet", "err", err)
			pause, changed = readyRetry, nil
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-t.C:
		case <-changed:
		}
		t.Stop()
	}
}

const (
	// rowTick is how often this node's row is compared with what it should be,
	// readyRetry how often while that fails.
	rowTick    = 5 * time.Second
	readyRetry = 100 * time.Millisecond
	// lostTime is how long a manager hears of no leader until it asks others
	// whether it still is one.
	lostTime = 3 * time.Second
)

// watchTable tells the directory what the table of nodes says, and finds out
// when this node is not to be a manager any more.
func (m *Member) watchTable(ctx context.Context) {
	had := false // the table has had this node since the start
	for ctx.Err() == nil {
		changed, led := m.store.Watch(), m.led.wait()
		s := m.store.Snapshot()
		n := s.Node(m.id)
		had = had || n != nil
		if n != nil && m.leader() != "" { // else the table may be an old one
			m.dir.setNodes(s.Nodes())
		}
		tick := time.NewTimer(lostTime)
		switch {
		case n == nil && had, n != nil && n.Role != spec.RoleManager:
			if m.leftRaft(ctx) {
				m.changeRole(ctx)
			}
			changed = nil
			tick.Reset(roleRetry)
		case m.leader() == "" && m.identity.Has():
			// Perhaps the others have gone on without this node while it was
			// away; then nobody would ever tell it.
			select {
			case <-led:
			case <-ctx.Done():
			case <-tick.C:
				if m.leader() == "" {
					m.changeRole(ctx)
				}
			}
			tick.Stop()
			continue
		}
		select {
		case <-ctx.Done():
		case <-changed:
		case <-tick.C:
		}
		tick.Stop()
	}
}

// leftRaft reports whether this member is out of Raft's configuration, by its
// own log or by the word of a manager: before that, its vote may be needed. The
// log does not always tell, because the others cut their streams to it.
func (m *Member) leftRaft(ctx context.Context) bool {
	in := func(s api.MemberStatus) bool {
		return slices.Contains(s.Voters, m.id) || slices.Contains(s.NonVoters, m.id)
	}
	if !in(m.MemberStatus()) {
		return true
	}
	answers, failures := m.askAll(ctx, managersOf(m.store.Snapshot().Nodes()))
	for _, a := range answers {
		if a.State == "leader" && !in(a) {
			return true
		}
	}
	for _, err := range failures {
		if errors.Is(err, api.ErrRemoved) {
			return true
		}
	}
	return false
}

// leaderPace is how many times as long the leader's heartbeat timeout is. Raft
// beats 10 to 20 times in a timeout, each beat costs both sides more than all
// else that an idle manager does, and followers wait for one timeout only: they
// still hear at least five beats in it, and the lease, which is as long, too.
// That leaves room for beats that come late.
const leaderPace = 2

// pace sets Raft's timeouts here to so many times the configured ones.
func (m *Member) pace(times time.Duration) {
	m.mu.Lock()
	r := m.raft
	m.mu.Unlock()
	if r == nil || m.port == nil {
		return // nobody hears beats
	}
	c := m.reloadable(true)
	c.HeartbeatTimeout *= times
	c.ElectionTimeout *= times
	if err := r.ReloadConfig(c); err != nil {
		m.log.Warn("change the pace of heartbeats", "err", err)
	}
}

// hasten makes a follower stand for election a moment after its leader has been
// silent for a heartbeat's time. Raft itself looks at times by chance of its
// own, and so two to three times as late. The moment differs from member to
// member, so that votes are not split.
func (m *Member) hasten(ctx context.Context, r *raft.Raft) {
	if m.port == nil {
		return
	}
	slow, quick := m.reloadable(true), m.reloadable(false)
	after := func() time.Duration { return m.c.Heartbeat + 10*time.Millisecond + rand.N(m.c.Heartbeat/2) }
	patience := after()
	for {
		left := patience - time.Since(r.LastContact())
		follows := r.State() == raft.Follower && m.leader() != ""
		if follows && left <= 0 {
			// A shorter timeout is looked at immediately.
			if err := errors.Join(r.ReloadConfig(slow), r.ReloadConfig(quick)); err != nil {
				m.log.Warn("hasten election", "err", err)
			}
		}
		if !follows || left <= 0 {
			patience = after()
			left = patience
		}
		if !wait(ctx, max(left, 5*time.Millisecond)) {
			return
		}
	}
}

func (m *Member) must(ctx context.Context, c store.Command) error {
	res, err := m.propose(ctx, c)
	if err != nil {
		return err
	}
	return res.Err
}
