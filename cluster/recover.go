package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"wherry.dev/cluster/ca"
	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// lifeFile, in the raft folder, says that this member's log was made its alone
// (by a recovery, or by a restore), and that the state does not know it yet.
const lifeFile = "new-life"

// newLife is the form of lifeFile.
type newLife struct {
	// Incarnation that the state gets; writing it twice changes nothing.
	Incarnation uint64 `json:"incarnation"`
}

func writeLife(raftFolder string, l newLife) error {
	b, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("encode %s: %w", lifeFile, err)
	}
	if err := ca.WriteFile(filepath.Join(raftFolder, lifeFile), append(b, '\n')); err != nil {
		return fmt.Errorf("write %s: %w", lifeFile, err)
	}
	return nil
}

// onlyMe is Raft's configuration of a cluster of one.
func (m *Member) onlyMe() raft.Configuration { return onlyVoter(m.seat, m.id) }

func onlyVoter(seat raft.ServerID, id spec.NodeID) raft.Configuration {
	return raft.Configuration{Servers: []raft.Server{{Suffrage: raft.Voter, ID: seat, Address: raft.ServerAddress(id)}}}
}

// alone reports whether this member is the only one of a configuration.
func (m *Member) alone(config raft.Configuration) bool {
	return len(config.Servers) == 1 && config.Servers[0].ID == m.seat && config.Servers[0].Suffrage == raft.Voter
}

// recoverAlone makes this member the only voter of its cluster, with all that
// its log holds. It is raft.RecoverCluster, but an entry that cannot be read is
// an error and not a panic, and it is refused while the majority is there: a
// flag that was forgotten in a unit file must not split a cluster. config is
// the newest in the log.
func (m *Member) recoverAlone(ctx context.Context, config raft.Configuration) error {
	if m.alone(config) {
		m.log.Info("nothing to recover: this is the only manager of its cluster already, --recover can be left out")
		return nil
	}
	if len(config.Servers) == 0 {
		return spec.Conflictf("recover: %s holds no state: this host has not been a manager for long enough; recover on another one, or restore a backup", m.c.DataDir)
	}
	state := store.New()
	index, term := uint64(0), uint64(0)
	if snap := m.snaps.newest.Load(); snap != nil {
		_, r, err := m.snaps.Open(snap.ID)
		if err != nil {
			return fmt.Errorf("recover: %w", err)
		}
		err = state.Restore(r)
		if err = errors.Join(err, r.Close()); err != nil {
			return fmt.Errorf("recover: %w", err)
		}
		index, term = snap.Index, snap.Term
	}
	first, err := m.logs.FirstIndex()
	if err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	last, err := m.logs.LastIndex()
	if err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	for i := index + 1; i <= last; i++ {
		var l raft.Log
		if err := m.logs.GetLog(i, &l); err != nil {
			return fmt.Errorf("recover: %w", err)
		}
		index, term = l.Index, l.Term
		if l.Type != raft.LogCommand {
			continue
		}
		c, err := store.Decode(l.Data)
		if err != nil {
			return fmt.Errorf("recover: read command %d of the log: %w", i, err)
		}
		state.Apply(l.Index, c)
	}
	s := state.Snapshot()
	if s.ClusterID() == "" {
		return spec.Conflictf("recover: the state in %s is empty: recover on another manager, or restore a backup", m.c.DataDir)
	}
	if err := m.majorityIsGone(ctx, config, s); err != nil {
		return err
	}
	var gone []string
	for _, v := range config.Servers {
		if v.ID != m.seat {
			gone = append(gone, string(nodeOf(v)))
		}
	}
	m.log.Warn("recovery: this manager goes on alone with what its own log holds; the others must never start again with their old data folders",
		"cluster", s.ClusterID(), "index", s.Index(), "incarnation", s.Incarnation()+1, "given_up", strings.Join(gone, " "))
	// The mark comes first: from it a start without --recover goes on.
	if err := writeLife(filepath.Join(m.c.DataDir, raftDir), newLife{s.Incarnation() + 1}); err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	if err := writeState(m.snaps, s, index, term, m.onlyMe()); err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	if last == 0 {
		return nil
	}
	if err := m.logs.DeleteRange(first, last); err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	return nil
}

// knockTime is how long the other managers may take to answer before this one
// goes on without them.
const knockTime = 2 * time.Second

// majorityIsGone asks the other voters whether they are there, and returns an
// error of class ErrConflict when they are enough to go on as they are. Those
// that are there and too few are named: nothing else can keep them away.
func (m *Member) majorityIsGone(ctx context.Context, config raft.Configuration, s *store.Snapshot) error {
	if m.port == nil {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, knockTime, fmt.Errorf("no answer within %s", knockTime))
	defer cancel()
	var all sync.WaitGroup
	var mu sync.Mutex
	var there []string
	voters, self := 0, 0
	for _, v := range config.Servers {
		id, name := nodeOf(v), string(nodeOf(v))
		if v.Suffrage != raft.Voter {
			continue
		}
		if voters++; id == m.id {
			self = 1
			continue
		}
		if n := s.Node(id); n != nil {
			name = n.Name
			m.dir.tell(id, n.Address, fromState)
		}
		all.Go(func() {
			conn, err := m.port.dial(ctx, id, protoHTTP2)
			if err != nil {
				m.log.Info("recovery: manager does not answer", "manager", name, "err", err)
				return
			}
			conn.Close()
			mu.Lock()
			defer mu.Unlock()
			there = append(there, name)
		})
	}
	all.Wait()
	slices.Sort(there)
	switch {
	case len(there) == 0:
		return nil
	case len(there)+self > voters/2:
		return spec.Conflictf("recover: %s, so the majority is there: start without --recover", answers(there))
	}
	m.log.Warn("recovery: managers that are given up still answer; stop their daemons now and never use their data folders again: with an empty one they can join", "managers", strings.Join(there, ", "))
	return nil
}

// answers says who answers: "manager m2 answers", "managers m2, m3 answer".
func answers(names []string) string {
	if len(names) == 1 {
		return "manager " + names[0] + " answers"
	}
	return "managers " + strings.Join(names, ", ") + " answer"
}

// writeState makes a snapshot of a state that no Raft runs over.
func writeState(to *snapshots, s *store.Snapshot, index, term uint64, c raft.Configuration) error {
	sink, err := to.Create(1, index, term, c, 1, nil)
	if err != nil {
		return err
	}
	if err := s.Persist(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

// dropHalfRecovery forgets a recovery that ended before anything was changed:
// the mark would take the others out of a cluster that has come back.
func (m *Member) dropHalfRecovery(config raft.Configuration) error {
	if m.alone(config) {
		return nil
	}
	folder := filepath.Join(m.c.DataDir, raftDir)
	err := os.Remove(filepath.Join(folder, lifeFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = ca.SyncDir(folder)
	}
	if err != nil {
		return fmt.Errorf("forget a recovery that was broken off: %w", err)
	}
	m.log.Warn("a recovery was broken off before it had changed anything: start with --recover to do it")
	return nil
}

// beginLife tells the state, as its leader, that its log was made this member's
// alone: a new incarnation, and no other manager. What it has done it can do
// again.
func (m *Member) beginLife(ctx context.Context) error {
	path := filepath.Join(m.c.DataDir, raftDir, lifeFile)
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var l newLife
	if err == nil {
		err = json.Unmarshal(b, &l)
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	s := m.store.Snapshot()
	if err := m.must(ctx, store.Command{Bootstrap: &store.Bootstrap{ClusterID: s.ClusterID(), Incarnation: l.Incarnation}}); err != nil {
		return err
	}
	m.log.Warn("recovery: the state begins a new life", "cluster", s.ClusterID(), "incarnation", l.Incarnation)
	// The last manager cannot be removed and two nodes cannot have one name:
	// so this one comes first, under another name if it must.
	self := m.row()
	for _, n := range s.Nodes() {
		if n.ID != m.id && n.Name == self.Name {
			self.Name += "-" + string(m.id[:4])
		}
	}
	if err := m.must(ctx, store.Command{PutNode: &self}); err != nil {
		return err
	}
	for _, n := range s.Nodes() {
		if n.ID == m.id || n.Role != spec.RoleManager {
			continue
		}
		if err := m.must(ctx, store.Command{RemoveNode: &store.RemoveNode{ID: n.ID, Force: true}}); err != nil && !errors.Is(err, spec.ErrNotFound) {
			return err
		}
		m.log.Warn("recovery: manager removed from the cluster; with an empty data folder it can join again", "manager", n.Name, "node", n.ID)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("end of recovery: %w", err)
	}
	if err := ca.SyncDir(filepath.Dir(path)); err != nil {
		return fmt.Errorf("end of recovery: %w", err)
	}
	m.log.Info("recovery: done; other hosts can join from now on")
	return nil
}
