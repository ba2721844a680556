package cluster

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"os"
	"time"

	wal "github.com/hashicorp/raft-wal"

	"wherry.dev/cluster/ca"
	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// Config says how to open a Member. Only DataDir is required.
type Config struct {
	// DataDir is the data folder. It is made (0700) when it does not exist.
	// The member owns node-id, keyring, lock and raft/ in it.
	DataDir string
	// NodeName is the name of this node; empty is the host's name. It may
	// change from one run to the next.
	NodeName string
	// Listen is the address of the node's one port, TCP and UDP, ":4477" as a
	// rule. Empty opens none: a cluster of one that nobody can join.
	Listen string
	// Advertise is the address that others reach this node at, "IP[:PORT]";
	// empty is found out. It may change from one run to the next.
	Advertise string
	// Moved, unless nil, is called when this node advertises another address than
	// before. It must not block.
	Moved func()
	// Join makes this host a node of a cluster that is there already. On a
	// folder that belongs to that cluster it does nothing.
	Join *Join
	// VXLANPort is the UDP port of networks between hosts of a cluster that this
	// member forms; 0 is spec.VXLANPort. In any other cluster it is the one that
	// the state has.
	VXLANPort uint16
	// Peers are addresses of nodes to begin with, when all that are known of
	// the cluster may be outdated.
	Peers []string
	// Recover makes this manager the only one of its cluster, whatever became
	// of the others: what only they knew is lost.
	Recover bool
	// DownAfter is how long a node must give no sign of life to count as down;
	// 0 is 2.5 s.
	DownAfter time.Duration
	// Instance names this life of the host's daemon; empty is a random name. A
	// daemon that opens its node again in another role keeps it.
	Instance string
	// Version of the program, for Status.
	Version string

	// SegmentSize of the log's files in bytes, which are allocated in full
	// when they are made; 0 is raft-wal's default of 64 MiB.
	SegmentSize int
	// Heartbeat is how long a member hears nothing from a leader before it
	// stands for election (up to twice as long, by chance); 0 is 350 ms. At
	// least 5 ms.
	Heartbeat time.Duration
	// SnapshotThreshold is the number of log entries after which a snapshot is
	// taken; 0 is 8192.
	SnapshotThreshold uint64
	// SnapshotBytes is the size of the log entries after which a snapshot is
	// taken, whatever their number; 0 is 64 MiB.
	SnapshotBytes int64

	// Streams carries Raft between members. nil suits a cluster of one: nobody
	// can be dialled and nobody dials.
	Streams Streams
	// Lead is what this member does while it leads, from the moment at which
	// everything that earlier leaders committed is applied here. Its context
	// ends with the cause ErrLeadershipLost when leadership does, and nothing
	// that follows (a new term, the end of Run) begins before Lead has
	// returned. epoch is the term, to be written into each ApplyPlan. When Lead
	// returns while this member still leads, it is called again after a second.
	// nil leads without doing anything.
	Lead func(ctx context.Context, epoch uint64) error

	// Logger; nil discards.
	Logger *slog.Logger
}

// Join says where to join a cluster.
type Join struct {
	// Addr of a manager, "host:port".
	Addr string
	// Token of the role that this host shall get.
	Token string
}

// ErrRoleChanged is what Run returns when the node is to have another role than
// the one it was opened with: open it again.
var ErrRoleChanged = errors.New("this node has another role now")

// ErrRemoved is what Run returns when the node was removed from its cluster.
var ErrRemoved = errors.New("this node was removed from its cluster: join again with an empty data folder")

// ErrLeadershipLost is the cause with which the context of Config.Lead ends
// when another member leads, or may lead, from now on.
var ErrLeadershipLost = errors.New("leadership lost")

const (
	// defaultAdvertise has the usual port, and the address of a host that
	// nobody else reaches.
	defaultAdvertise = "127.0.0.1:4477"
	defaultHeartbeat = 350 * time.Millisecond

	// trailingLogs is how many entries stay in the log behind a snapshot, so
	// that a follower that was away for a moment needs no snapshot. Entries may
	// have 512 KiB, so this is kept small.
	trailingLogs = 256
)

func (c Config) withDefaults() (Config, error) {
	if c.DataDir == "" {
		return c, spec.Invalidf("no data folder given")
	}
	if c.NodeName == "" {
		name, err := os.Hostname()
		if err != nil {
			return c, spec.Invalidf("find the host's name: %v; give the node a name", err)
		}
		c.NodeName = name
	}
	if err := store.CheckNodeName(c.NodeName); err != nil {
		return c, err
	}
	if c.Join != nil {
		if _, err := ca.ParseToken(c.Join.Token); err != nil {
			return c, err
		}
	}
	if c.Advertise == "" && c.Listen == "" {
		c.Advertise = defaultAdvertise
	}
	if c.Join != nil && c.Listen == "" {
		return c, spec.Invalidf("a node that joins a cluster needs a port of its own")
	}
	if c.DownAfter < 0 {
		return c, spec.Invalidf("a node cannot be down after %s", c.DownAfter)
	}
	if c.SegmentSize == 0 {
		c.SegmentSize = wal.DefaultSegmentSize
	}
	// A segment must hold an entry of any size that is accepted several times
	// over, and the library keeps its size in 31 bits.
	if c.SegmentSize < 1<<20 || c.SegmentSize > math.MaxInt32 {
		return c, spec.Invalidf("segment size %d: want 1 MiB to 2 GiB", c.SegmentSize)
	}
	if c.Heartbeat == 0 {
		c.Heartbeat = defaultHeartbeat
	}
	if c.Heartbeat < 5*time.Millisecond {
		return c, spec.Invalidf("heartbeat %s: want at least 5ms", c.Heartbeat)
	}
	if c.SnapshotThreshold == 0 {
		c.SnapshotThreshold = 8192
	}
	if c.SnapshotBytes == 0 {
		c.SnapshotBytes = 64 << 20
	}
	if c.SnapshotBytes < 0 {
		return c, spec.Invalidf("snapshot bytes %d: want a positive number", c.SnapshotBytes)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, nil
}
