package api

import (
	"time"

	"wherry.dev/spec"
)

// JoinRequest is the body of "cluster.join": a host asks to become a node. It
// is sent over TLS to a manager whose root has the hash in the token.
type JoinRequest struct {
	// Token is WHERRY-1-<hash of the CA>-<secret>; its role is found by it.
	Token string `json:"token"`
	// CSR is a certificate request in PEM. Only its public key is taken from it.
	CSR string `json:"csr"`
	// Node is the ID that the host has chosen for itself; asking again with the
	// same ID and key is a repeat.
	Node    spec.NodeID `json:"node"`
	Name    string      `json:"name"`
	Address string      `json:"address"` // "host:port" that it advertises
	Version string      `json:"version"`
	// Format is the newest format of log entries that it understands.
	Format int `json:"format"`
	// Time at the host, to find clocks that differ.
	Time time.Time `json:"time"`
}

// JoinReply makes the host a node.
type JoinReply struct {
	ClusterID string        `json:"cluster_id"`
	Role      spec.NodeRole `json:"role"`
	Certificates
	// GossipKey seals gossip. ContentKey and DataKey are for managers only.
	GossipKey  []byte `json:"gossip_key"`
	ContentKey []byte `json:"content_key,omitempty"`
	DataKey    []byte `json:"data_key,omitempty"`
	// Managers that can be asked from now on.
	Managers []Peer `json:"managers"`
}

// Certificates are a certificate with the roots to trust, all in PEM.
type Certificates struct {
	Certificate string `json:"certificate"`
	Roots       string `json:"roots"`
}

// RenewRequest is the body of "cluster.renew".
type RenewRequest struct {
	CSR string `json:"csr"`
}

// RenewReply answers "cluster.renew". The keys are there for managers, so that
// a worker that was promoted gets them.
type RenewReply struct {
	Role spec.NodeRole `json:"role"`
	Certificates
	GossipKey  []byte `json:"gossip_key"`
	ContentKey []byte `json:"content_key,omitempty"`
	DataKey    []byte `json:"data_key,omitempty"`
	Managers   []Peer `json:"managers"`
}

// Peer is a node and where it can be reached.
type Peer struct {
	ID      spec.NodeID `json:"id"`
	Name    string      `json:"name"`
	Address string      `json:"address"`
	// Key is the fingerprint of the node's public key, as spec.Node has it; empty
	// where it is not known.
	Key string `json:"key,omitempty"`
}

// ClusterInfo is what every node must know of its cluster: a document of its
// session.
type ClusterInfo struct {
	ClusterID string `json:"cluster_id"`
	// Format of the state; it only grows. What a node tells of itself and a later
	// format brought is not taken before; 0 is that of a manager that does not say.
	Format int `json:"format,omitempty"`
	// Role that the node has, or shall take.
	Role     spec.NodeRole `json:"role"`
	Managers []Peer        `json:"managers"`
	// Nodes are all nodes, managers too: a worker serves nobody else.
	Nodes []Peer `json:"nodes"`
	// Roots to trust, in PEM.
	Roots string `json:"roots"`
	// Signer is the hash of the root that certificates shall come from: a node
	// whose certificate has another issuer renews it soon.
	Signer string `json:"signer"`
}

// Beat is the body of "session.beat": a node is alive. It is sent every second.
type Beat struct {
	// Instance is random for each life of the node's daemon.
	Instance string `json:"instance"`
	// Address that the node advertises now; empty leaves the known one.
	Address string `json:"address"`
}

// Alive is the body of "cluster.alive": what a manager knows of the nodes'
// lives, for the leader.
type Alive struct {
	Nodes []AliveNode `json:"nodes"`
}

// AliveNode says when a node last gave a sign of life.
type AliveNode struct {
	ID       spec.NodeID   `json:"id"`
	Instance string        `json:"instance"`
	Age      spec.Duration `json:"age"`
	// Remote is the host that the instance was heard from, in a reply the host
	// of the one that holds the identity.
	Remote string `json:"remote,omitempty"`
}

// AliveReply answers "cluster.alive".
type AliveReply struct {
	// Refused are instances that hold the identity of a node that is alive
	// elsewhere: their sessions are to be ended.
	Refused []AliveNode `json:"refused,omitempty"`
	// Ask are nodes that the leader has not heard for a while: whoever can
	// reach them shall ask them for a sign of life.
	Ask []spec.NodeID `json:"ask,omitempty"`
}

// Lease answers "session.lease".
type Lease struct {
	// For is how long exclusive tasks of the node may run, counted from the
	// moment at which the node asked.
	For spec.Duration `json:"for"`
}

// LeaseTime is how long a lease holds; ReplaceAfter is how long after its node
// was found dead an exclusive task may be replaced.
const (
	LeaseTime    = 15 * time.Second
	ReplaceAfter = 20 * time.Second
)

// Key answers "cluster.key".
type Key struct {
	// Key in text, as `wherry cluster restore --key-file` reads it.
	Key string `json:"key"`
}

// Leftover is a task that is still on a node that is, or may be, drained.
type Leftover struct {
	Task spec.TaskID `json:"task"`
	Name string      `json:"name"`
	// Pinned: it cannot move and stays until the node is active again, or until
	// pinned tasks are stopped, too.
	Pinned bool `json:"pinned"`
	// Reason is what it waits for, or why it stays and what to do.
	Reason string `json:"reason"`
}

// TokenRequest is the body of "cluster.token".
type TokenRequest struct {
	// Rotate makes the present token worthless and a new one.
	Rotate bool `json:"rotate,omitempty"`
	// TTL makes a new token that ends by then; 0 is never.
	TTL spec.Duration `json:"ttl,omitempty"`
}

// Token answers "cluster.token".
type Token struct {
	Role    spec.NodeRole `json:"role"`
	Token   string        `json:"token"`
	Expires time.Time     `json:"expires,omitzero"`
	// Addresses of managers that a host can join through.
	Addresses []string `json:"addresses"`
}

// ClientRequest is the body of "cluster.client".
type ClientRequest struct {
	CSR string        `json:"csr"`
	TTL spec.Duration `json:"ttl,omitempty"` // 0 is 90 days
}

// NodeUpdate is the body of "node.update"; nil fields stay.
type NodeUpdate struct {
	Availability *spec.Availability `json:"availability,omitempty"`
	// StopPinned with a drain also stops tasks that cannot move.
	StopPinned bool           `json:"stop_pinned,omitempty"`
	Role       *spec.NodeRole `json:"role,omitempty"`
	// Labels to set; null removes one.
	Labels    map[string]*string `json:"labels,omitempty"`
	RequestID string             `json:"request_id,omitempty"`
}

// Leave is the body of "node.leave": the host shall leave the cluster.
type Leave struct {
	// Purge deletes the data of volumes and every other trace as well.
	Purge bool `json:"purge,omitempty"`
	// Force leaves even when the managers cannot be told.
	Force bool `json:"force,omitempty"`
}

// The bounds of Withdraw.
const (
	MaxWithdrawWait  = 5 * time.Second
	MaxWithdrawAddrs = 256
)

// Withdraw is the body of "node.withdrawn": does the host still lead new traffic
// to one of these addresses of tasks? The answer comes when it does not, or when
// Wait is over.
type Withdraw struct {
	// Addresses, of which network and IP count, at most MaxWithdrawAddrs.
	Addresses []spec.Address `json:"addresses"`
	// Wait is at most MaxWithdrawWait.
	Wait spec.Duration `json:"wait,omitempty"`
}

// Withdrawn answers "node.withdrawn".
type Withdrawn struct {
	// Still are the addresses that the host may lead new traffic to.
	Still []spec.Address `json:"still"`
}

// Forwarded answers "cluster.propose": what Apply said on the leader.
type Forwarded struct {
	Index    uint64   `json:"index"`
	Error    string   `json:"error,omitempty"`
	Class    string   `json:"class,omitempty"`
	Parts    []string `json:"parts,omitempty"` // an error per part, "" for none
	Revision uint64   `json:"revision,omitempty"`
	Changed  bool     `json:"changed,omitempty"`
}

// ReadIndex answers "cluster.read": a state at Index holds every write that was
// acknowledged before the call.
type ReadIndex struct {
	Index uint64 `json:"index"`
	// Incarnation of the leader's state.
	Incarnation uint64 `json:"incarnation"`
}

// MemberStatus is what one manager says of itself ("cluster.member").
type MemberStatus struct {
	Node spec.NodeID `json:"node"`
	// Seat is its name in Raft, another one each time that it begins anew with
	// an empty log.
	Seat          string      `json:"seat"`
	Version       string      `json:"version"`
	State         string      `json:"state"` // leader, follower, candidate, stopped
	LeaderID      spec.NodeID `json:"leader_id,omitempty"`
	Term          uint64      `json:"term"`
	LastIndex     uint64      `json:"last_index"`
	AppliedIndex  uint64      `json:"applied_index"`
	SnapshotIndex uint64      `json:"snapshot_index"`
	FreeBytes     int64       `json:"free_bytes"`
	// Voter and NonVoter as Raft's configuration has it; neither for a member
	// that Raft does not know.
	Voters    []spec.NodeID `json:"voters"`
	NonVoters []spec.NodeID `json:"non_voters,omitempty"`
	// Time at the member, to find clocks that differ.
	Time time.Time `json:"time"`
	// Failure says why it has stopped.
	Failure string `json:"failure,omitempty"`
}

// ClusterStatus answers "cluster.status".
type ClusterStatus struct {
	ClusterID   string          `json:"cluster_id"`
	Incarnation uint64          `json:"incarnation"`
	Leader      spec.NodeID     `json:"leader,omitempty"`
	Term        uint64          `json:"term"`
	Format      int             `json:"format"`
	Managers    []ManagerStatus `json:"managers"`
	Workers     int             `json:"workers"`
	Ready       int             `json:"ready"` // nodes that are ready
	// VXLANPort is the UDP port of networks between hosts.
	VXLANPort uint16 `json:"vxlan_port"`
	// CA tells of the certificate authority: its signer, and which nodes an
	// exchange of it waits for.
	Signer  string   `json:"signer"`
	Roots   []string `json:"roots"`
	Waiting []string `json:"waiting,omitempty"`
	// Problems in words, the worst first; none when all is well.
	Problems []string `json:"problems,omitempty"`
}

// ManagerStatus is one manager in ClusterStatus.
type ManagerStatus struct {
	ID      spec.NodeID `json:"id"`
	Name    string      `json:"name"`
	Address string      `json:"address"`
	// Raft is "leader", "voter", "non-voter", or "none".
	Raft string `json:"raft"`
	// Reachable says whether it answered; the fields below count only then.
	Reachable bool   `json:"reachable"`
	Version   string `json:"version,omitempty"`
	Term      uint64 `json:"term,omitempty"`
	// Lag is how many log entries it is behind the leader.
	Lag       uint64        `json:"lag"`
	FreeBytes int64         `json:"free_bytes,omitempty"`
	Skew      spec.Duration `json:"skew,omitempty"` // its clock minus the clock of who answers
	Error     string        `json:"error,omitempty"`
}
