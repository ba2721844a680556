package cluster

import (
	"bytes"
	"cmp"
	"context"
	"crypto/cipher"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"wherry.dev/api"
	"wherry.dev/cluster/ca"
	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// tlsDir, in the data folder, holds the node's key, certificate and roots.
const tlsDir = "tls"

// Open claims the data folder for this process and opens what is in it; on an
// empty folder it makes an identity and a cluster of one, or joins the cluster
// of Config.Join. A folder that another process has claimed is an error of
// class ErrConflict. Everything is given back when Run returns, or when the
// process ends.
func Open(ctx context.Context, c Config) (*Member, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("open cluster member: %w", err)
	}
	m := &Member{
		c: c, log: c.Logger, store: store.New(), halt: newHalt(), ready: make(chan struct{}),
		free:     func() (int64, error) { return freeSpace(c.DataDir) },
		instance: cmp.Or(c.Instance, hex.EncodeToString(random(8))), ended: make(chan error, 1),
	}
	m.addr.Store(&c.Advertise)
	if err := m.openAll(ctx); err != nil {
		m.release()
		return nil, fmt.Errorf("open cluster member: %w", explain(err, c.DataDir))
	}
	return m, nil
}

func (m *Member) openAll(ctx context.Context) (err error) {
	dir := m.c.DataDir
	if m.lock, err = claimFolder(dir); err != nil {
		return err
	}
	who, err := loadIdentity(dir)
	if err != nil {
		return err
	}
	m.id, m.keys = who.id, who.keys
	m.log = m.log.With("node", m.id)
	if m.c.Listen != "" {
		if err := m.openPort(); err != nil {
			return err
		}
	}
	if err := m.belong(ctx); err != nil {
		return err
	}
	m.role = m.keys.role()
	if m.port != nil {
		if err := m.openParts(ctx); err != nil {
			return err
		}
	}
	if m.role == spec.RoleWorker {
		if m.c.Recover {
			return spec.Invalidf("recover: %s is the data folder of a worker, which has nothing of the state: recover on a manager", dir)
		}
		m.once.Do(func() { close(m.ready) })
		return dropState(dir)
	}
	if m.streams = m.c.Streams; m.streams == nil && m.port != nil {
		m.streams = m.port.raft()
	} else if m.streams == nil {
		m.streams = newAlone()
	}
	return m.openState(ctx)
}

// openPort opens the port and what is needed to find and know others.
func (m *Member) openPort() (err error) {
	if m.identity, err = ca.OpenIdentity(filepath.Join(m.c.DataDir, tlsDir)); err != nil {
		return err
	}
	m.dir = openDirectory(filepath.Join(m.c.DataDir, peersFile), m.c.Peers, m.log)
	m.port, err = openPort(portConfig{
		Listen: m.c.Listen, Identity: m.identity, Find: m.dir.find, Learn: m.dir.learn,
		AdmitRaft: func(c ca.Caller) error {
			if !m.ran.Load() {
				return errStarting
			}
			return m.admitRaft(spec.NodeID(c.ID), c.Key, c.Role)
		},
		AdmitGossip: func(c ca.Caller) error {
			switch {
			case !m.ran.Load():
				return errStarting
			case m.removed(spec.NodeID(c.ID)):
				return errors.New("it was removed from the cluster")
			}
			return nil
		},
		Rank:   m.rank,
		Logger: m.log,
	})
	if err != nil {
		return err
	}
	addr, err := advertised(m.c.Advertise, m.port.number())
	if err != nil {
		return err
	}
	if loopback(addr) && m.reachesOthers() {
		return spec.Invalidf("this host is one of several and cannot be reached at %s by the others: give --advertise an address that they reach", addr)
	}
	m.addr.Store(&addr)
	return nil
}

// reachesOthers reports whether this member was told of managers on other hosts.
func (m *Member) reachesOthers() bool {
	info, _ := m.dir.cluster()
	return slices.ContainsFunc(info.Managers, func(p api.Peer) bool { return p.ID != m.id && !loopback(p.Address) })
}

// errStarting is for streams that come before the member is open: what judges
// them is not there yet.
var errStarting = errors.New("this member is just starting")

// belong makes sure that the folder is one of a cluster: the one that it was
// of, the one of Config.Join, or a new one.
func (m *Member) belong(ctx context.Context) error {
	k, join := m.keys, m.c.Join
	switch {
	case k.Format == 0 && join == nil:
		m.keys = newKeyring()
		return writeKeyring(m.c.DataDir, m.keys)
	case k.Format == 1: // made by a version that had no gossip, so a cluster of one
		m.keys.Gossip = random(keySize)
		return writeKeyring(m.c.DataDir, m.keys)
	case k.Joined && m.identity == nil:
		return spec.Invalidf("%s is the data folder of a node that has joined a cluster: it needs a port", m.c.DataDir)
	case join == nil && k.Joined && !m.identity.Has():
		return spec.Conflictf("this host began to join a cluster and did not come to the end: start it with --join and --token again, or with an empty data folder")
	case join == nil:
		return nil
	case k.Format == 0 || k.Joined && !m.identity.Has():
		return m.joinNow(ctx)
	}
	token, err := ca.ParseToken(join.Token)
	if err != nil {
		return err
	}
	known, err := knownRoots(m.c.DataDir)
	if err != nil {
		return err
	}
	if !slices.Contains(append(known, m.identity.Trusts()...), token.CAHash) {
		return spec.Conflictf("data folder %s belongs to another cluster than the one to join: start without --join to stay there, or with an empty data folder to join", m.c.DataDir)
	}
	m.log.Info("this host is a node of that cluster already, --join can be left out")
	return nil
}

// joinRetry is how long it takes until a join is tried again that failed for
// a reason that may pass.
const joinRetry = 500 * time.Millisecond

// joinNow joins. What it writes is in an order that lets the same command go on
// from wherever it ended: the ID and the key are there before anything is sent,
// and asking again with the same two gives the same answer; the certificate,
// which comes last, is the sign that all is there.
func (m *Member) joinNow(ctx context.Context) error {
	join := m.c.Join
	m.log.Info("joining the cluster", "at", join.Addr, "address", m.Address())
	self := api.JoinRequest{Node: m.id, Name: m.c.NodeName, Address: m.Address(), Version: m.c.Version, Format: store.Format}
	var reply api.JoinReply
	for began := time.Now(); ; {
		var err error
		if reply, err = joinCluster(ctx, join.Addr, join.Token, m.identity, self); err == nil {
			break
		}
		if !errors.Is(err, spec.ErrUnavailable) || time.Since(began) > leaderTime {
			return err
		}
		m.log.Info("join failed, will try again", "err", err)
		if !wait(ctx, joinRetry) {
			return err
		}
	}
	m.keys = keyring{Format: keyringFormat, Gossip: reply.GossipKey, Content: reply.ContentKey, Data: reply.DataKey, Joined: true}
	if len(reply.DataKey) == 0 {
		m.keys.Content, m.keys.Data = nil, nil
	}
	if err := writeKeyring(m.c.DataDir, m.keys); err != nil {
		return err
	}
	m.dir.setCluster(api.ClusterInfo{ClusterID: reply.ClusterID, Role: reply.Role, Managers: reply.Managers, Roots: reply.Roots})
	if err := m.dir.save(); err != nil {
		return err
	}
	if err := m.identity.Install(reply.Certificate, reply.Roots); err != nil {
		return err
	}
	m.log.Info("joined the cluster", "cluster", reply.ClusterID, "role", reply.Role, "managers", len(reply.Managers))
	return nil
}

// openParts makes what goes through the port.
func (m *Member) openParts(ctx context.Context) error {
	if m.identity.Has() {
		if err := preflight(ctx, m.identity, m.id, m.dir.known(m.id), m.Address(), m.port.number()); err != nil {
			return err
		}
	}
	m.port.echo.Store(&pathEcho{node: m.id, key: pathKey(m.keys.Gossip), removed: m.removed})
	m.live = newLiveness(m.c.DownAfter, m.log)
	m.managers = &managers{m: m}
	m.gossip = newGossip(gossipConfig{
		Node: m.id, Key: m.keys.Gossip, Port: m.port, Directory: m.dir, Removed: m.removed, Logger: m.log,
	}, m.Address())
	if m.role == spec.RoleManager {
		m.enroll = &enroller{
			self: m.id, identity: m.identity, keys: m.keys, store: m.store,
			propose: m.propose, fresh: m.Linearizable, limit: &limiter{}, now: time.Now, log: m.log,
		}
	}
	return nil
}

// removed reports whether a node is known to have been removed: this member
// hears from a leader, and its state does not have the node.
func (m *Member) removed(id spec.NodeID) bool {
	if m.role != spec.RoleManager || m.leader() == "" {
		return false
	}
	s := m.store.Snapshot()
	return s.ClusterID() != "" && s.Node(id) == nil
}

// dropState removes what a worker must not have and a manager that was demoted
// has: the log and the snapshots. Its vote stays, for should it be promoted
// again, it must not vote twice in a term.
func dropState(dir string) error {
	for _, name := range []string{logDir, snapDir, lifeFile, seatFile} {
		if err := os.RemoveAll(filepath.Join(dir, raftDir, name)); err != nil {
			return fmt.Errorf("remove the state of a former manager: %w", err)
		}
	}
	return nil
}

// openState opens the files of Raft.
func (m *Member) openState(ctx context.Context) (err error) {
	dir := filepath.Join(m.c.DataDir, raftDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make raft folder: %w", err)
	}
	if err := ca.SyncDir(m.c.DataDir); err != nil {
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
	if err := ca.SyncDir(dir); err != nil {
		return fmt.Errorf("sync raft folder: %w", err)
	}
	if m.seat, err = m.takeSeat(dir); err != nil {
		return err
	}
	if err := m.bootstrap(); err != nil {
		return err
	}
	config, err := m.checkLog()
	switch {
	case err != nil:
		return err
	case m.c.Recover:
		return m.recoverAlone(ctx, config)
	}
	return m.dropHalfRecovery(config)
}

// seatFile, in the raft folder, holds the member's name in Raft's configuration.
const seatFile = "seat"

// takeSeat returns the name by which Raft knows this member. One that begins
// with an empty log in a cluster that is there takes a new name: on its way
// through the log, or in a snapshot, it may meet an old configuration in which
// this node votes, even alone, and it must not take itself for that voter.
func (m *Member) takeSeat(dir string) (raft.ServerID, error) {
	if !m.keys.Joined {
		return raft.ServerID(m.id), nil
	}
	last, err := m.logs.LastIndex()
	if err != nil {
		return "", fmt.Errorf("find the log's end: %w", err)
	}
	fresh := last == 0 && m.snaps.newest.Load() == nil
	b, err := os.ReadFile(filepath.Join(dir, seatFile))
	switch {
	case err == nil:
		return raft.ServerID(bytes.TrimSpace(b)), nil
	case !errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("read the member's seat: %w", err)
	case !fresh:
		return raft.ServerID(m.id), nil
	}
	seat := string(m.id) + "." + hex.EncodeToString(random(4))
	if err := ca.WriteFile(filepath.Join(dir, seatFile), []byte(seat+"\n")); err != nil {
		return "", fmt.Errorf("write the member's seat: %w", err)
	}
	return raft.ServerID(seat), nil
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
	if m.keys.Joined {
		return nil // the leader fills the log
	}
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
	return m.logs.StoreLog(&raft.Log{
		Index: 1, Term: 1, Type: raft.LogConfiguration,
		Data: raft.EncodeConfiguration(m.onlyMe()),
	})
}

// checkLog reads what Raft is about to read, because Raft panics on an entry
// that is missing or unreadable, and returns the newest configuration. It also
// drops the rest of a log that ends before the snapshot, which a process leaves
// that dies while it installs one.
func (m *Member) checkLog() (config raft.Configuration, err error) {
	first, err := m.logs.FirstIndex()
	if err != nil {
		return config, fmt.Errorf("find the log's beginning: %w", err)
	}
	last, err := m.logs.LastIndex()
	if err != nil {
		return config, fmt.Errorf("find the log's end: %w", err)
	}
	from := uint64(1)
	if snap := m.snaps.newest.Load(); snap != nil {
		m.logs.snapshotTaken(snap.Index)
		from, config = snap.Index+1, snap.Configuration
		if last > 0 && last < snap.Index {
			return config, m.logs.DeleteRange(first, last)
		}
	}
	if last > 0 && first > from {
		return config, spec.Conflictf("the log begins at entry %d, but entry %d is the first that is needed: %s is damaged, bring back a copy of it",
			first, from, filepath.Join(m.c.DataDir, raftDir))
	}
	for i := from; i <= last; i++ {
		var l raft.Log
		if err := m.logs.GetLog(i, &l); err != nil {
			return config, err
		}
		if l.Type == raft.LogConfiguration {
			config = raft.DecodeConfiguration(l.Data)
		}
	}
	return config, nil
}
