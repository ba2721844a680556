package server

import (
	"slices"
	"sync"

	"wherry.dev/api"
	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// outline knows when the rows that the documents of a node are made of last
// changed, so that a session makes its documents anew only then. It looks at
// each state once for all sessions, and at each task that is another row than
// before. Whatever clusterInfo and reconciler.Documents read must be in it; a
// difference that they do not show does no harm.
//
// The zero value is ready for use, also concurrently.
type outline struct {
	mu   sync.Mutex
	snap *store.Snapshot
	// turn counts the states that were looked at.
	turn uint64
	// all is what every document may depend on, and changed in turn allAt.
	all   common
	allAt uint64
	tasks map[spec.TaskID]*spec.Task
	// at are the turns in which tasks of a place last changed.
	at map[place]uint64
}

// place is a node or a network that a task is on.
type place struct {
	node    spec.NodeID
	network spec.NetworkID
}

// look returns the newest state and its turn, which is above 0.
func (o *outline) look(st *store.Store) (*store.Snapshot, uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	snap := st.Snapshot()
	if snap == o.snap {
		return snap, o.turn
	}
	if o.snap == nil {
		o.tasks, o.at = map[spec.TaskID]*spec.Task{}, map[place]uint64{}
	}
	o.snap = snap
	o.turn++
	if next := commonOf(snap); !next.same(&o.all) {
		o.all, o.allAt = next, o.turn
		clear(o.at) // what changed earlier adds nothing to that
	}
	o.follow(snap.Tasks())
	return snap, o.turn
}

// changed reports whether the documents of a node, which is on these networks,
// may have changed since a turn.
func (o *outline) changed(node spec.NodeID, networks []spec.NetworkID, since uint64) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.allAt > since || o.at[place{node: node}] > since ||
		slices.ContainsFunc(networks, func(id spec.NetworkID) bool { return o.at[place{network: id}] > since })
}

func (o *outline) follow(tasks []*spec.Task) {
	for _, t := range tasks {
		old := o.tasks[t.ID]
		if old == t {
			continue
		}
		o.tasks[t.ID] = t
		if old == nil || !alike(old, t) {
			o.touch(old)
			o.touch(t)
		}
	}
	if len(o.tasks) == len(tasks) {
		return
	}
	live := map[spec.TaskID]bool{}
	for _, t := range tasks {
		live[t.ID] = true
	}
	for id, t := range o.tasks {
		if !live[id] {
			o.touch(t)
			delete(o.tasks, id)
		}
	}
}

// touch notes that a task, if it is one, changed.
func (o *outline) touch(t *spec.Task) {
	if t == nil {
		return
	}
	o.at[place{node: t.Node}] = o.turn
	for _, a := range t.Addresses {
		o.at[place{network: a.Network}] = o.turn
	}
}

// alike reports whether two rows of one task make the same documents. All but
// its Status has changed when its Version has.
func alike(a, b *spec.Task) bool {
	return a.Version == b.Version && phase(a) == phase(b) && a.Ready() == b.Ready()
}

// phase is what documents tell apart of the states of tasks.
func phase(t *spec.Task) string {
	switch s := t.Status.State; {
	case s == spec.TaskPending, s == spec.TaskRunning, s == spec.TaskLost: // what is lost still counts for the MTU
		return string(s)
	case s.Terminal():
		return "over"
	}
	return "under way"
}

// common is what the documents of every node may depend on. A row is the same
// as long as nobody writes it, and none of these but a node's is written by
// ordinary reports.
type common struct {
	id        string
	format    int
	authority *spec.Authority
	members   []member
	stacks    []*spec.StackRow
	services  []*spec.Service
	networks  []*spec.Network
	volumes   []*spec.Volume
	// moves says of each volume that is being moved whether tasks still use it.
	moves []bool
}

// member is what documents tell of a node.
type member struct {
	api.Peer
	role   spec.NodeRole
	state  spec.NodeState
	number uint32
	mtu    int
	format int
}

func commonOf(s *store.Snapshot) common {
	c := common{id: s.ClusterID(), format: s.Format(), authority: s.Authority(), stacks: s.Stacks(), services: s.Services(), networks: s.Networks(), volumes: s.Volumes()}
	for _, v := range s.MovedVolumes() {
		c.moves = append(c.moves, v.Move != nil && len(s.VolumeUsers(v.ID)) > 0)
	}
	for _, n := range s.Nodes() {
		c.members = append(c.members, member{peerOf(n), n.Role, n.State, n.Number, n.Info.MTU, n.Info.Format})
	}
	return c
}

func (c *common) same(d *common) bool {
	return c.id == d.id && c.format == d.format && c.authority == d.authority && slices.Equal(c.members, d.members) && slices.Equal(c.stacks, d.stacks) &&
		slices.Equal(c.services, d.services) && slices.Equal(c.networks, d.networks) && slices.Equal(c.volumes, d.volumes) &&
		slices.Equal(c.moves, d.moves)
}

func peerOf(n *spec.Node) api.Peer {
	return api.Peer{ID: n.ID, Name: n.Name, Address: n.Address, Key: n.Key}
}
