package cluster

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"wherry.dev/api"
	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// Status is what a member knows of itself and of Raft, for people.
type Status struct {
	Node    spec.NodeID `json:"node"`
	Version string      `json:"version,omitempty"`
	// State is Raft's: "leader", "follower", "candidate" or "stopped".
	State string `json:"state"`
	// Leader says whether this member leads, LeaderID who does; it is empty
	// when nobody is known to.
	Leader   bool        `json:"leader"`
	LeaderID spec.NodeID `json:"leader_id,omitempty"`
	Term     uint64      `json:"term"`
	// Log indexes: the last entry here, the last committed, the last given to
	// the state, and the one that the newest snapshot (0: none) goes up to.
	LastIndex     uint64 `json:"last_index"`
	CommitIndex   uint64 `json:"commit_index"`
	AppliedIndex  uint64 `json:"applied_index"`
	SnapshotIndex uint64 `json:"snapshot_index"`
	SnapshotBytes int64  `json:"snapshot_bytes"`
	// Voters and NonVoters, in the order of Raft's configuration.
	Voters    []spec.NodeID `json:"voters"`
	NonVoters []spec.NodeID `json:"non_voters,omitempty"`
	// FreeBytes left in the data folder's file system; -1 when unknown.
	FreeBytes int64 `json:"free_bytes"`
	// Failure says why the member stopped.
	Failure string `json:"failure,omitempty"`
}

// Status returns the present status. It neither waits nor fails.
func (m *Member) Status() Status {
	s := Status{Node: m.id, Version: m.c.Version, State: "stopped", FreeBytes: -1}
	if left, err := m.free(); err == nil {
		s.FreeBytes = left
	}
	if m.snaps != nil {
		if snap := m.snaps.newest.Load(); snap != nil {
			s.SnapshotIndex, s.SnapshotBytes = snap.Index, snap.Size
		}
	}
	if err := m.halt.failure(); err != nil && err != errEnded {
		s.Failure = err.Error()
	}
	m.mu.Lock()
	r, open := m.raft, m.open
	m.mu.Unlock()
	if r == nil || !open {
		return s
	}
	switch r.State() {
	case raft.Leader:
		s.State, s.Leader = "leader", true
	case raft.Candidate:
		s.State = "candidate"
	case raft.Follower:
		s.State = "follower"
	}
	addr, _ := r.LeaderWithID()
	s.LeaderID = spec.NodeID(addr)
	s.Term, s.LastIndex, s.CommitIndex, s.AppliedIndex = r.CurrentTerm(), r.LastIndex(), r.CommitIndex(), r.AppliedIndex()
	if f := r.GetConfiguration(); f.Error() == nil {
		for _, v := range f.Configuration().Servers {
			if v.Suffrage == raft.Voter {
				s.Voters = append(s.Voters, nodeOf(v))
			} else {
				s.NonVoters = append(s.NonVoters, nodeOf(v))
			}
		}
	}
	return s
}

// MemberStatus returns what this manager knows of itself, for other managers.
// AppliedIndex is the index of the last command in its state.
func (m *Member) MemberStatus() api.MemberStatus {
	s := m.Status()
	return api.MemberStatus{
		Node: s.Node, Seat: string(m.seat), Version: s.Version, State: s.State, LeaderID: s.LeaderID, Term: s.Term,
		LastIndex: s.LastIndex, AppliedIndex: m.store.Snapshot().Index(), SnapshotIndex: s.SnapshotIndex,
		FreeBytes: s.FreeBytes, Voters: s.Voters, NonVoters: s.NonVoters, Time: time.Now().UTC(), Failure: s.Failure,
	}
}

// askAll asks members at the same time how they are, this one aside. Times in
// the answers are moved to the middle of the question, so that they can be
// compared with the clock here.
func (m *Member) askAll(ctx context.Context, ids []spec.NodeID) (map[spec.NodeID]api.MemberStatus, map[spec.NodeID]error) {
	ctx, cancel := context.WithTimeoutCause(ctx, askTime, fmt.Errorf("no answer within %s", askTime))
	defer cancel()
	var mu sync.Mutex
	answers, failures := map[spec.NodeID]api.MemberStatus{}, map[spec.NodeID]error{}
	var all sync.WaitGroup
	for _, id := range ids {
		if id == m.id {
			continue
		}
		all.Go(func() {
			var s api.MemberStatus
			asked := time.Now()
			err := m.call(ctx, id, "GET", memberPath, nil, &s)
			took := time.Since(asked)
			if err != nil && ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failures[id] = err
				return
			}
			s.Time = s.Time.Add(took / 2)
			answers[id] = s
		})
	}
	all.Wait()
	return answers, failures
}

// ClusterStatus asks all managers how they are. It answers without a leader,
// too, and then says so.
func (m *Member) ClusterStatus(ctx context.Context) (api.ClusterStatus, error) {
	if m.role != spec.RoleManager {
		return api.ClusterStatus{}, errWorker
	}
	snap := m.store.Snapshot()
	answers, failures := m.askAll(ctx, managersOf(snap.Nodes()))
	if ctx.Err() != nil {
		return api.ClusterStatus{}, context.Cause(ctx)
	}
	answers[m.id] = m.MemberStatus()
	return survey(snap, m.id, answers, failures, time.Now()), nil
}

const (
	// badSkew is how far clocks may differ, badLag how many entries a member
	// may be behind, lowDisk how many bytes a manager's disk should have left.
	badSkew = time.Second
	badLag  = 4096
	lowDisk = 1 << 30
)

// survey makes one picture of what the managers have said.
func survey(s *store.Snapshot, self spec.NodeID, answers map[spec.NodeID]api.MemberStatus, failures map[spec.NodeID]error, now time.Time) api.ClusterStatus {
	c := api.ClusterStatus{ClusterID: s.ClusterID(), Incarnation: s.Incarnation(), Format: s.Format(), VXLANPort: s.VXLANPort()}
	// Who leads is believed of the newest term; only the leader's own word
	// counts, if it is there.
	var newest api.MemberStatus
	for _, id := range sortedIDs(answers) {
		a := answers[id]
		if a.Term > newest.Term || a.Term == newest.Term && a.State == "leader" {
			newest = a
		}
	}
	c.Term = newest.Term
	if newest.State == "leader" {
		c.Leader = newest.Node
	}
	voters := newest.Voters
	if len(voters) == 0 {
		voters = answers[self].Voters
	}
	var severe, other []string
	alive := 0
	for _, n := range s.Nodes() {
		if n.State == spec.NodeReady {
			c.Ready++
		}
		if n.Role != spec.RoleManager {
			c.Workers++
			continue
		}
		ms := api.ManagerStatus{ID: n.ID, Name: n.Name, Address: n.Address, Raft: "none"}
		switch {
		case n.ID == c.Leader:
			ms.Raft = "leader"
		case slices.Contains(voters, n.ID):
			ms.Raft = "voter"
		case slices.Contains(newest.NonVoters, n.ID):
			ms.Raft = "non-voter"
		}
		a, ok := answers[n.ID]
		if !ok {
			ms.Error = "it was not asked"
			if err := failures[n.ID]; err != nil {
				ms.Error = err.Error()
			}
			other = append(other, fmt.Sprintf("manager %s (%s) does not answer: %s", n.Name, n.Address, ms.Error))
			c.Managers = append(c.Managers, ms)
			continue
		}
		if ms.Raft == "leader" || ms.Raft == "voter" {
			alive++
		}
		ms.Reachable, ms.Version, ms.Term, ms.FreeBytes, ms.Error = true, a.Version, a.Term, a.FreeBytes, a.Failure
		if n.ID != self {
			ms.Skew = spec.Duration(a.Time.Sub(now).Round(time.Millisecond))
		}
		if newest.LastIndex > a.LastIndex {
			ms.Lag = newest.LastIndex - a.LastIndex
		}
		switch {
		case a.Failure != "":
			severe = append(severe, fmt.Sprintf("manager %s has stopped: %s", n.Name, a.Failure))
		case ms.Raft == "none":
			other = append(other, fmt.Sprintf("manager %s does not take part yet: the leader adds it as soon as it can reach it", n.Name))
		case ms.Raft == "non-voter":
			other = append(other, fmt.Sprintf("manager %s is catching up and has no vote yet", n.Name))
		case ms.Lag > badLag:
			other = append(other, fmt.Sprintf("manager %s is %d entries behind the leader", n.Name, ms.Lag))
		}
		if skew := time.Duration(ms.Skew); skew.Abs() > badSkew {
			other = append(other, fmt.Sprintf("the clock of manager %s differs by %s: set it, for example by NTP", n.Name, skew.Round(100*time.Millisecond)))
		}
		if a.FreeBytes >= 0 && a.FreeBytes < lowDisk {
			other = append(other, fmt.Sprintf("the data folder of manager %s has %d MiB left: free some space on its file system", n.Name, a.FreeBytes>>20))
		}
		c.Managers = append(c.Managers, ms)
	}
	quorum := len(voters)/2 + 1
	switch {
	case c.Leader == "":
		severe = append([]string{fmt.Sprintf("the cluster has no leader: %d of %d voters answer, %d are needed; start the others, or, if they are gone for ever, start one with --recover", alive, len(voters), quorum)}, severe...)
	case alive == quorum && len(voters) > 2:
		severe = append(severe, fmt.Sprintf("%d of %d voters answer, and that many are needed: the cluster stops when another one fails", alive, len(voters)))
	}
	if len(voters) > 0 && len(voters)%2 == 0 {
		other = append(other, fmt.Sprintf("%d voters survive the failure of %d, as %d would: add a manager, or demote one", len(voters), (len(voters)-1)/2, len(voters)-1))
	}
	addAuthority(&c, s, now)
	if len(c.Waiting) > 0 {
		other = append(other, "the exchange of the certificate authority waits for "+strings.Join(c.Waiting, ", "))
	}
	c.Problems = append(severe, other...)
	return c
}

// addAuthority tells of the certificate authority.
func addAuthority(c *api.ClusterStatus, s *store.Snapshot, now time.Time) {
	a := s.Authority()
	if a == nil {
		return
	}
	c.Signer = a.Signer
	for _, r := range a.Roots {
		c.Roots = append(c.Roots, r.Hash)
	}
	_, c.Waiting = nextExchange(a, s.Nodes(), now)
}
