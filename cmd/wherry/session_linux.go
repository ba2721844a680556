package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"wherry.dev/agent"
	"wherry.dev/api"
	"wherry.dev/cluster"
	"wherry.dev/cluster/ca"
	"wherry.dev/overlay"
	"wherry.dev/spec"
)

// hearsay is what this node was last told of its cluster.
type hearsay struct {
	info atomic.Pointer[api.ClusterInfo]
}

func (h *hearsay) managers() []api.Peer {
	if i := h.info.Load(); i != nil {
		return i.Managers
	}
	return nil
}

func (h *hearsay) nodes() []api.Peer {
	if i := h.info.Load(); i != nil {
		return i.Nodes
	}
	return nil
}

// name of a node as people know it; its ID as long as that is not known.
func (h *hearsay) name(id spec.NodeID) string {
	for _, p := range h.nodes() {
		if p.ID == id {
			return p.Name
		}
	}
	return string(id)
}

// session is this node's tie to the managers.
type session struct {
	node     spec.NodeID
	member   *cluster.Member
	managers *api.Client
	network  *overlay.Host
	host     *agent.Agent
	told     *hearsay
	gone     *leaver
	// refused is set while another host holds this node's identity, so that
	// nothing is started here.
	refused *atomic.Bool
	log     *slog.Logger
}

const (
	// A session that broke off is tried again after this much, and up to as
	// much more by chance: a manager that dies has many.
	sessionRetry = 50 * time.Millisecond
	sessionSpan  = 250 * time.Millisecond

	beatEvery = time.Second
	// twinPatience is how long another host may hold this node's identity until
	// this one gives in: what was here before may only just have ended. It starts
	// nothing meanwhile, so that it leaves nothing behind.
	twinPatience = 10 * time.Second
)

// follow hands every document to the part of the host that it is for. It
// returns when ctx ends.
func (s *session) follow(ctx context.Context) error {
	select {
	case <-s.member.Ready():
	case <-ctx.Done():
		return nil
	}
	networks := map[spec.NetworkID]spec.HostNetwork{}
	var known bool // Wanted has come, so networks is complete
	var quiet bool // the failure was told
	for {
		err := s.managers.Session(ctx, s.node, s.member.Instance(), func(d api.Document) error {
			quiet = false
			switch {
			case d.Cluster != nil:
				s.told.info.Store(d.Cluster)
				s.member.SetCluster(*d.Cluster)
			case d.Network != nil:
				networks[d.Network.Network.ID] = *d.Network
			case d.Wanted != nil:
				known = true
				maps.DeleteFunc(networks, func(id spec.NetworkID, _ spec.HostNetwork) bool {
					return !slices.Contains(d.Wanted.Networks, id)
				})
			}
			if known && (d.Network != nil || d.Wanted != nil) {
				sorted := slices.Sorted(maps.Keys(networks))
				all := make([]spec.HostNetwork, 0, len(sorted))
				for _, id := range sorted {
					all = append(all, networks[id])
				}
				s.network.Set(all)
			}
			if d.Wanted != nil {
				s.host.Set(*d.Wanted)
			}
			return nil
		})
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, api.ErrRemoved) {
			return s.gone.removed(ctx)
		}
		if !quiet {
			s.log.Warn("session broke off, containers run on", "err", err)
			quiet = true
		}
		if !pause(ctx, sessionRetry+rand.N(sessionSpan)) {
			return nil
		}
	}
}

// beat tells the managers every second that this node lives.
func (s *session) beat(ctx context.Context) error {
	select {
	case <-s.member.Ready():
	case <-ctx.Done():
		return nil
	}
	var since time.Time
	for {
		bctx, cancel := context.WithTimeout(ctx, 2*beatEvery)
		err := s.managers.Beat(bctx, s.node, api.Beat{Instance: s.member.Instance(), Address: s.member.Address()})
		cancel()
		if since, err = s.judge(err, since, time.Now()); err != nil {
			return err
		}
		if !pause(ctx, beatEvery) {
			return nil
		}
	}
}

// judge takes the answer to a beat. since is from when on another host has held
// the identity, without a break; an error says that it is to be left to it. Only
// a beat that is taken ends the refusal: no answer says nothing.
func (s *session) judge(answer error, since, now time.Time) (time.Time, error) {
	switch {
	case answer == nil:
		s.refused.Store(false)
		return time.Time{}, nil
	case !errors.Is(answer, spec.ErrConflict):
		return time.Time{}, nil
	}
	s.refused.Store(true)
	switch {
	case since.IsZero():
		since = now
	case now.Sub(since) > twinPatience:
		return since, fmt.Errorf("stop, since two of one identity do harm: %w", answer)
	}
	return since, nil
}

// watchIdentity tells of every change of the node's certificate and of the
// roots that it trusts.
func watchIdentity(ctx context.Context, id *ca.Identity, changed chan<- struct{}) error {
	for {
		next := id.Changed()
		select {
		case changed <- struct{}{}:
		default: // what has not been looked at yet will be seen with it
		}
		select {
		case <-next:
		case <-ctx.Done():
			return nil
		}
	}
}

// pass tells of every change that it is told of.
func pass(ctx context.Context, from <-chan struct{}, to chan<- struct{}) error {
	for {
		select {
		case <-from:
		case <-ctx.Done():
			return nil
		}
		select {
		case to <- struct{}{}:
		default: // what has not been looked at yet will be seen with it
		}
	}
}

// leaver takes this host out of its cluster.
type leaver struct {
	member   *cluster.Member
	managers *api.Client
	host     *agent.Agent
	network  *overlay.Host
	end      context.CancelFunc
	log      *slog.Logger

	mu sync.Mutex // one at a time
	// left is set when nothing of the cluster is left to do here.
	left bool
	// purged is set when every trace is to go with the daemon.
	purged atomic.Bool
}

const (
	quitTimeout = 10 * time.Second
	// leaveTimeout is how long the tasks may take to stop, their grace included.
	leaveTimeout = 2 * time.Minute
)

// Leave implements server.Leaver: the node is taken out of the table first, so
// that its tasks start elsewhere, then stops everything of ours.
func (l *leaver) Leave(ctx context.Context, o api.Leave) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	// A caller who gives up waiting must not leave the host half gone.
	ctx = context.WithoutCancel(ctx)
	qctx, cancel := context.WithTimeout(ctx, quitTimeout)
	err := l.managers.Quit(qctx, l.member.Node())
	cancel()
	switch {
	case err == nil, errors.Is(err, api.ErrRemoved):
	case !o.Force:
		return fmt.Errorf("take this node out of the cluster: %w; nothing was changed here. With --force it leaves all the same, and `wherry node rm --force` on a manager removes it from the table", err)
	default:
		l.log.Warn("leaving without the managers' knowledge", "err", err)
	}
	if err := l.stop(ctx, o.Purge); err != nil {
		return err
	}
	l.left = true
	l.purged.Store(o.Purge)
	// The answer to this very call still gets out: serve waits for it.
	l.end()
	return nil
}

// removed is what happens when the managers say that the node was removed: its
// tasks are stopped. It returns nil if the host is leaving by itself.
func (l *leaver) removed(ctx context.Context) error {
	l.mu.Lock() // a leave that is under way comes to its end first
	defer l.mu.Unlock()
	if l.left {
		return nil
	}
	l.log.Error("this node was removed from its cluster, its tasks are stopped")
	if err := l.stop(ctx, false); err != nil {
		l.log.Error("stop the tasks of a removed node", "err", err)
	}
	l.left = true
	l.end()
	return cluster.ErrRemoved
}

func (l *leaver) stop(ctx context.Context, purge bool) error {
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	err := l.host.Leave(ctx, purge)
	l.network.Set(nil)
	if err != nil {
		return fmt.Errorf("stop what runs here: %w", err)
	}
	return nil
}
