package cluster

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"wherry.dev/api"
	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

const (
	// changeTick is how often the leader looks at members while Raft's
	// configuration is not what the table of nodes wants, idleTick otherwise.
	changeTick = 100 * time.Millisecond
	idleTick   = 5 * time.Second
	// askTime is how long a member may take to say how it is.
	askTime = time.Second
	// closeBy is how many entries a member may be behind to become a voter:
	// fewer than a second's worth.
	closeBy = 64
)

// step is the next change of who takes part in Raft.
type step struct {
	kind stepKind
	id   spec.NodeID
	// seat is the node's place in Raft's configuration.
	seat raft.ServerID
}

// nodeOf is the node that a server is on.
func nodeOf(s raft.Server) spec.NodeID { return spec.NodeID(s.Address) }

// left reports whether a node has another seat by now than the one that Raft's
// configuration knows: its old log is gone, and with it the right to vote.
func left(s raft.Server, answers map[spec.NodeID]api.MemberStatus) bool {
	a, ok := answers[nodeOf(s)]
	return ok && a.Seat != "" && a.Seat != string(s.ID)
}

type stepKind string

const (
	stepNone    stepKind = ""
	stepAdd     stepKind = "add"     // as a non-voter, to catch up
	stepPromote stepKind = "promote" // to a voter
	stepRemove  stepKind = "remove"  // from the configuration
	stepWait    stepKind = "wait"    // for members to catch up or to answer
)

// nextStep decides how Raft's configuration comes closer to the table of
// nodes. answers are the members that have just answered; applied is how far
// the leader is. One step is taken at a time, and none that would leave fewer
// voters that answer than are needed to go on. The leader itself is no matter
// of its own: it gives leadership away first.
func nextStep(self spec.NodeID, servers []raft.Server, nodes []*spec.Node, answers map[spec.NodeID]api.MemberStatus, applied uint64) step {
	managers := map[spec.NodeID]bool{}
	for _, n := range nodes {
		managers[n.ID] = n.Role == spec.RoleManager
	}
	in := map[spec.NodeID]raft.ServerSuffrage{}
	voters, alive := 0, 0
	for _, s := range servers {
		id := nodeOf(s)
		in[id] = s.Suffrage
		if s.Suffrage != raft.Voter {
			continue
		}
		voters++
		if _, ok := answers[id]; ok && !left(s, answers) || id == self {
			alive++
		}
	}
	waits := false
	// Members that can vote come before members that shall not any more: the
	// fewer changes a cluster makes with few voters, the better.
	for _, n := range nodes {
		suffrage, known := in[n.ID]
		if known && slices.ContainsFunc(servers, func(s raft.Server) bool { return nodeOf(s) == n.ID && left(s, answers) }) {
			continue // the old seat goes first, below
		}
		if n.Role != spec.RoleManager || n.ID == self || known && suffrage == raft.Voter {
			continue
		}
		a, answered := answers[n.ID]
		switch {
		case !answered:
			waits = true
		case !known:
			return step{stepAdd, n.ID, seatOf(n.ID, a)}
		case a.LastIndex > 0 && a.AppliedIndex+closeBy >= applied:
			return step{stepPromote, n.ID, seatOf(n.ID, a)}
		default:
			waits = true
		}
	}
	for _, s := range servers {
		id := nodeOf(s)
		if managers[id] && !left(s, answers) || id == self {
			continue
		}
		rest := alive
		if _, ok := answers[id]; ok && s.Suffrage == raft.Voter && !left(s, answers) {
			rest--
		}
		if s.Suffrage == raft.Voter && rest < (voters-1)/2+1 {
			waits = true
			continue
		}
		return step{stepRemove, id, s.ID}
	}
	if waits {
		return step{kind: stepWait}
	}
	return step{}
}

// seatOf is the seat that a node says it has; one that was never given up is
// called as the node itself.
func seatOf(id spec.NodeID, a api.MemberStatus) raft.ServerID {
	return raft.ServerID(cmp.Or(a.Seat, string(id)))
}

// settled reports whether Raft's configuration is what the table of nodes
// wants.
func settled(servers []raft.Server, nodes []*spec.Node, answers map[spec.NodeID]api.MemberStatus) bool {
	voters := map[spec.NodeID]bool{}
	for _, s := range servers {
		voters[nodeOf(s)] = s.Suffrage == raft.Voter && !left(s, answers)
	}
	for _, n := range nodes {
		if n.Role != spec.RoleManager {
			continue
		}
		if !voters[n.ID] {
			return false
		}
		delete(voters, n.ID)
	}
	return len(voters) == 0
}

// keepMembers makes Raft's configuration what the table of nodes wants, as
// long as this member leads.
func (m *Member) keepMembers(ctx context.Context) {
	for {
		changed := m.store.Watch()
		busy, err := m.fitMembers(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			m.log.Info("change of managers failed, will try again", "err", err)
		}
		tick := idleTick
		if busy {
			tick, changed = changeTick, nil // the tick looks at the state as well
		}
		t := time.NewTimer(tick)
		select {
		case <-ctx.Done():
		case <-t.C:
		case <-changed:
		}
		t.Stop()
	}
}

// fitMembers takes one step; busy says that more are to come.
func (m *Member) fitMembers(ctx context.Context) (busy bool, err error) {
	servers, index, err := m.configuration(ctx)
	if err != nil {
		return true, err
	}
	snap := m.store.Snapshot()
	nodes := snap.Nodes()
	if err := m.raiseFormat(ctx); err != nil {
		m.log.Warn("format not raised, will try again", "err", err)
	}
	answers := m.ask(ctx, managersOf(nodes))
	if settled(servers, nodes, answers) {
		m.yieldFullDisk(ctx, servers, answers)
		return false, nil
	}
	if n := snap.Node(m.id); n == nil || n.Role != spec.RoleManager {
		m.abdicate(ctx, servers, snap)
		return true, nil
	}
	s := nextStep(m.id, servers, nodes, answers, m.store.Snapshot().Index())
	name := string(s.id)
	if n := snap.Node(s.id); n != nil {
		name = n.Name
	}
	server, addr := s.seat, raft.ServerAddress(s.id)
	var call func(*raft.Raft) error
	switch s.kind {
	case stepNone:
		return false, nil
	case stepWait:
		return true, nil
	case stepAdd:
		call = func(r *raft.Raft) error { return r.AddNonvoter(server, addr, index, enqueueTime).Error() }
	case stepPromote:
		call = func(r *raft.Raft) error { return r.AddVoter(server, addr, index, enqueueTime).Error() }
	case stepRemove:
		call = func(r *raft.Raft) error { return r.RemoveServer(server, index, enqueueTime).Error() }
	}
	_, err = await(ctx, m, func(r *raft.Raft) (struct{}, error) { return struct{}{}, call(r) })
	if err != nil {
		return true, fmt.Errorf("%s manager %s: %w", s.kind, name, err)
	}
	m.log.Info("managers changed", "step", s.kind, "manager", name)
	return true, nil
}

// abdicate gives leadership to a voter that stays a manager, since this member
// does not; the others do not answer its questions any more.
func (m *Member) abdicate(ctx context.Context, servers []raft.Server, snap *store.Snapshot) {
	for _, s := range servers {
		n := snap.Node(nodeOf(s))
		if s.Suffrage != raft.Voter || n == nil || n.Role != spec.RoleManager {
			continue
		}
		_, err := await(ctx, m, func(r *raft.Raft) (struct{}, error) {
			return struct{}{}, r.LeadershipTransferToServer(s.ID, s.Address).Error()
		})
		if err == nil {
			m.log.Info("leadership handed over: this node is no manager any more", "to", n.Name)
			return
		}
		m.log.Info("leadership not handed over, trying another", "to", n.Name, "err", err)
	}
}

// yieldFullDisk hands leadership over when the data folder here is short of
// space and that of another voter is not: writes would be refused here.
func (m *Member) yieldFullDisk(ctx context.Context, servers []raft.Server, answers map[spec.NodeID]api.MemberStatus) {
	need := int64(m.c.SegmentSize) + reserve + reserveToAdd
	left, err := m.free()
	if err != nil || left >= need || len(servers) < 2 {
		return
	}
	best, most := spec.NodeID(""), 2*need // so that it is not handed back
	for _, s := range servers {
		a, ok := answers[nodeOf(s)]
		if ok && s.Suffrage == raft.Voter && a.FreeBytes > most && a.AppliedIndex+closeBy >= m.store.Snapshot().Index() {
			best, most = a.Node, a.FreeBytes
		}
	}
	if best == "" {
		return
	}
	m.log.Warn("data folder is short of space, leadership goes to another manager", "dir", m.c.DataDir, "left", left, "to", best)
	if err := m.transferTo(ctx, best); err != nil {
		m.log.Warn("leadership not handed over, will try again", "err", err)
	}
}

// transferTo gives leadership to a node.
func (m *Member) transferTo(ctx context.Context, id spec.NodeID) error {
	servers, _, err := m.configuration(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(servers, func(s raft.Server) bool { return nodeOf(s) == id })
	if i < 0 {
		return fmt.Errorf("node %s is not in the configuration of raft", id)
	}
	_, err = await(ctx, m, func(r *raft.Raft) (struct{}, error) {
		return struct{}{}, r.LeadershipTransferToServer(servers[i].ID, servers[i].Address).Error()
	})
	return err
}

// raiseFormat lets the state use a newer format once every manager knows it.
func (m *Member) raiseFormat(ctx context.Context) error {
	s := m.store.Snapshot()
	format := s.CommonFormat(m.id)
	if format <= s.Format() {
		return nil
	}
	m.log.Info("every manager knows a newer format of the state", "from", s.Format(), "to", format)
	return m.must(ctx, store.Command{Bootstrap: &store.Bootstrap{ClusterID: s.ClusterID(), Incarnation: s.Incarnation(), Format: format}})
}

// configuration returns Raft's newest configuration and its index.
func (m *Member) configuration(ctx context.Context) (servers []raft.Server, index uint64, err error) {
	type answer struct {
		servers []raft.Server
		index   uint64
	}
	a, err := await(ctx, m, func(r *raft.Raft) (answer, error) {
		f := r.GetConfiguration()
		if err := f.Error(); err != nil {
			return answer{}, err
		}
		return answer{f.Configuration().Servers, f.Index()}, nil
	})
	return a.servers, a.index, err
}

func managersOf(nodes []*spec.Node) []spec.NodeID {
	var ids []spec.NodeID
	for _, n := range nodes {
		if n.Role == spec.RoleManager {
			ids = append(ids, n.ID)
		}
	}
	return ids
}

// ask asks other members at the same time how they are, and returns what came
// back in time.
func (m *Member) ask(ctx context.Context, ids []spec.NodeID) map[spec.NodeID]api.MemberStatus {
	answers, _ := m.askAll(ctx, ids)
	return answers
}

// admitRaft decides whether a node may open a stream of Raft: a manager of the
// table of nodes may, and whoever is in Raft's configuration, which follows the
// table. A member that hears from no leader must not rest on either: what it
// has missed may be the very row of the node that leads now, so the certificate
// decides, also for the leader that it then hears from, until it has caught up.
// Raft itself gives no vote to a candidate that is not in its configuration.
func (m *Member) admitRaft(id spec.NodeID, key string, certified spec.NodeRole) error {
	n := m.store.Snapshot().Node(id)
	switch {
	case n != nil && n.Key != "" && n.Key != key:
		return spec.Conflictf("node %s is known by another key", id)
	case n != nil && n.Role == spec.RoleManager:
		return nil
	}
	switch st := m.Status(); {
	case slices.Contains(st.Voters, id), slices.Contains(st.NonVoters, id),
		certified == spec.RoleManager && (st.LeaderID == "" || st.LeaderID == id):
		return nil
	}
	return spec.Conflictf("node %s is not a manager", id)
}

// outTick is how often streams are looked at that nobody may have any more.
const outTick = 500 * time.Millisecond

// keepOut cuts off the nodes that were removed or demoted, also where Raft's
// configuration follows the table later.
func (m *Member) keepOut(ctx context.Context) {
	for wait(ctx, outTick) {
		m.port.review()
	}
}

// rank is how much a node may by the table.
func (m *Member) rank(id spec.NodeID) int {
	switch n := m.store.Snapshot().Node(id); {
	case n == nil:
		return 0
	case n.Role != spec.RoleManager:
		return 1
	}
	return 2
}

// handOver gives leadership to another voter, if this member leads and there is
// one, so that the cluster does not have to find out that it is gone.
func (m *Member) handOver() {
	m.mu.Lock()
	r := m.raft
	m.mu.Unlock()
	if r == nil || m.halt.failure() != nil || r.State() != raft.Leader || m.voters(r) < 2 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), handOverTime)
	defer cancel()
	// Writes go on while the others are asked, and wait while leadership moves.
	for r.State() == raft.Leader && ctx.Err() == nil && m.halt.failure() == nil {
		heirs := m.heirs(ctx)
		if len(heirs) == 0 {
			m.log.Info("leadership not handed over: no other voter answers")
			return
		}
		for _, id := range heirs {
			began := time.Now()
			err := m.transferTo(ctx, id)
			if err == nil {
				m.log.Info("leadership handed over", "to", id, "duration", time.Since(began).Round(time.Millisecond))
				return
			}
			m.log.Info("leadership not handed over, trying again", "to", id, "err", err)
		}
	}
}

// heirs are the voters that answer now, the one that has most of the log first:
// Raft's own choice may be a member that is gone.
func (m *Member) heirs(ctx context.Context) []spec.NodeID {
	ctx, cancel := context.WithTimeout(ctx, heirTime)
	defer cancel()
	var others []spec.NodeID
	for _, id := range m.Status().Voters {
		if id != m.id {
			others = append(others, id)
		}
	}
	if m.port == nil {
		return others
	}
	answers := m.ask(ctx, others)
	ids := sortedIDs(answers)
	slices.SortStableFunc(ids, func(a, b spec.NodeID) int { return cmp.Compare(answers[b].LastIndex, answers[a].LastIndex) })
	return ids
}

const (
	// handOverTime is how long a leader that ends tries to find a successor.
	handOverTime = 2 * time.Second
	// heirTime is how long the others may take to say that they are there.
	heirTime = 300 * time.Millisecond
)

// sortedIDs returns the keys of a map in order.
func sortedIDs[V any](of map[spec.NodeID]V) []spec.NodeID {
	var ids []spec.NodeID
	for id := range of {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}
