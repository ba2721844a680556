package cluster

import (
	"github.com/hashicorp/raft"

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
	// Voters, in the order of Raft's configuration.
	Voters []spec.NodeID `json:"voters"`
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
	if snap := m.snaps.newest.Load(); snap != nil {
		s.SnapshotIndex, s.SnapshotBytes = snap.Index, snap.Size
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
	_, id := r.LeaderWithID()
	s.LeaderID = spec.NodeID(id)
	s.Term, s.LastIndex, s.CommitIndex, s.AppliedIndex = r.CurrentTerm(), r.LastIndex(), r.CommitIndex(), r.AppliedIndex()
	if f := r.GetConfiguration(); f.Error() == nil {
		for _, v := range f.Configuration().Servers {
			if v.Suffrage == raft.Voter {
				s.Voters = append(s.Voters, spec.NodeID(v.ID))
			}
		}
	}
	return s
}
