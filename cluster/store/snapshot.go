package store

import (
	"cmp"
	"iter"
	"slices"

	"github.com/hashicorp/go-memdb"

	"wherry.dev/spec"
)

// Snapshot is one state, for ever the same. It may be read concurrently.
//
// Its methods return pointers into the state, which nobody may modify, and
// slices that belong to the caller. A single object that does not exist is
// nil. Identifiers sort by number: "1-9" comes before "1-10".
type Snapshot struct {
	tables *tables
	db     *memdb.MemDB
	meta   meta
}

// meta is the part of the state that is no table.
type meta struct {
	ClusterID string `json:"cluster_id,omitempty"`
	// VXLANPort as it was chosen when the cluster was formed; 0 is spec.VXLANPort.
	VXLANPort uint16 `json:"vxlan_port,omitempty"`
	// Format of commands that the state admits.
	Format int `json:"format"`
	// Incarnation and Counter are the last identifier that was assigned.
	Incarnation uint64 `json:"incarnation"`
	Counter     uint64 `json:"counter"`
	Epoch       uint64 `json:"epoch"`
	Index       uint64 `json:"index"`
	// Events and Requests are the last sequence numbers of these tables.
	Events   uint64 `json:"events"`
	Requests uint64 `json:"requests"`
}

func (n *Snapshot) read() *memdb.Txn { return n.db.Txn(false) }

// collect never returns nil, so that a list without items encodes as [].
func collect[T any](seq iter.Seq[*T]) []*T {
	return slices.AppendSeq([]*T{}, seq)
}

// Index returns the index of the last command that was applied, whether it
// changed anything or not; 0 at first.
func (n *Snapshot) Index() uint64 { return n.meta.Index }

// Incarnation returns the number of the state's life: it is raised by each
// recovery, so that no identifier is used twice.
func (n *Snapshot) Incarnation() uint64 { return n.meta.Incarnation }

// Epoch returns the highest term of a leader whose plan was applied.
func (n *Snapshot) Epoch() uint64 { return n.meta.Epoch }

// ClusterID returns the identity of the cluster; empty before Bootstrap.
func (n *Snapshot) ClusterID() string { return n.meta.ClusterID }

// VXLANPort returns the UDP port of networks between hosts. It never changes.
func (n *Snapshot) VXLANPort() uint16 { return cmp.Or(n.meta.VXLANPort, spec.VXLANPort) }

// Format returns the format that commands may use at most.
func (n *Snapshot) Format() int { return n.meta.Format }

// CommonFormat returns the newest format that every manager knows: self, which
// runs this program, and the others by what they report. When it is above
// Format, the leader may raise that with a Bootstrap of the same incarnation. A
// manager that has not told counts as of format 1.
func (n *Snapshot) CommonFormat(self spec.NodeID) int {
	f := Format
	for m := range n.tables.nodes.all(n.read()) {
		if m.ID != self && m.Role == spec.RoleManager {
			f = min(f, max(m.Info.Format, 1))
		}
	}
	return max(f, n.meta.Format)
}

// Stacks returns all stacks by name.
func (n *Snapshot) Stacks() []*spec.StackRow { return collect(n.tables.stacks.all(n.read())) }

// Stack returns the stack of that name.
func (n *Snapshot) Stack(name string) *spec.StackRow {
	return n.tables.stacks.get(n.read(), textKey(name))
}

// StackRevisions returns the kept revisions of a stack, oldest first.
func (n *Snapshot) StackRevisions(stack string) []*spec.StackRevision {
	return collect(n.tables.stackRevisions.under(n.read(), textsKey(stack)))
}

// StackRevision returns one revision of a stack.
func (n *Snapshot) StackRevision(stack string, number uint64) *spec.StackRevision {
	return n.tables.stackRevisions.get(n.read(), stackRevisionKey(stack, number))
}

// Services returns all services by stack and name.
func (n *Snapshot) Services() []*spec.Service { return collect(n.tables.services.all(n.read())) }

// Service returns the service of that name.
func (n *Snapshot) Service(stack, name string) *spec.Service {
	return n.tables.services.get(n.read(), textsKey(stack, name))
}

// ServicesOf returns the services of a stack by name.
func (n *Snapshot) ServicesOf(stack string) []*spec.Service {
	return collect(n.tables.services.under(n.read(), textsKey(stack)))
}

// Publishers returns the services that publish a port whose number is known,
// each once.
func (n *Snapshot) Publishers() []*spec.Service {
	return once(n.tables.services.with(n.read(), byPort, []byte{}))
}

// ServicesAt returns the services that have a virtual address on a network, in
// the order of these.
func (n *Snapshot) ServicesAt(network spec.NetworkID) []*spec.Service {
	return once(n.tables.services.with(n.read(), byVIP, idKey(network)))
}

// Tasks returns all tasks by ID.
func (n *Snapshot) Tasks() []*spec.Task { return collect(n.tables.tasks.all(n.read())) }

// Task returns the task with the ID.
func (n *Snapshot) Task(id spec.TaskID) *spec.Task { return n.tables.tasks.get(n.read(), idKey(id)) }

// TasksOf returns the tasks of a service by ID, also of a service that is
// gone or had another life.
func (n *Snapshot) TasksOf(stack, service string) []*spec.Task {
	return collect(n.tables.tasks.with(n.read(), byService, textsKey(stack, service)))
}

// TasksOn returns the tasks of a node by ID. The empty node has none.
func (n *Snapshot) TasksOn(node spec.NodeID) []*spec.Task {
	return collect(n.tables.tasks.with(n.read(), byNode, textsKey(string(node))))
}

// TasksAt returns the tasks that have, or had, an address on a network, each
// once, in the order of their addresses.
func (n *Snapshot) TasksAt(network spec.NetworkID) []*spec.Task {
	return once(n.tables.tasks.with(n.read(), byAddress, idKey(network)))
}

// ServicesFetchedBy returns the services whose image a node is to have.
func (n *Snapshot) ServicesFetchedBy(node spec.NodeID) []*spec.Service {
	return once(n.tables.services.with(n.read(), byNode, textsKey(string(node))))
}

// once collects what an index may find by several values.
func once[T any](seq iter.Seq[*T]) []*T {
	out, seen := []*T{}, map[*T]bool{}
	for v := range seq {
		if !seen[v] {
			seen[v] = true
			out = append(out, v)
		}
	}
	return out
}

// HoldsAddresses reports whether the addresses of a task are taken, so that
// Apply refuses to give them to another: until the task is over, and, once it
// is lost, until its node confirms the end, or its row or node is removed.
func (n *Snapshot) HoldsAddresses(t *spec.Task) bool { return n.tables.holdsAddress(n.read(), t) }

// Networks returns all networks by ID.
func (n *Snapshot) Networks() []*spec.Network { return collect(n.tables.networks.all(n.read())) }

// Network returns the network with the ID.
func (n *Snapshot) Network(id spec.NetworkID) *spec.Network {
	return n.tables.networks.get(n.read(), idKey(id))
}

// NetworkNamed returns the network with the cluster-wide name, also one that
// is Gone.
func (n *Snapshot) NetworkNamed(name string) *spec.Network {
	return n.tables.networks.first(n.read(), byName, textKey(name))
}

// Volumes returns all volumes by ID.
func (n *Snapshot) Volumes() []*spec.Volume { return collect(n.tables.volumes.all(n.read())) }

// RemovedVolumes returns the volumes that are being removed, by ID.
func (n *Snapshot) RemovedVolumes() []*spec.Volume {
	return collect(n.tables.volumes.with(n.read(), byRemoving, removingVolume))
}

// MovedVolumes returns the volumes that are not being removed and have a Move
// or Left, by ID.
func (n *Snapshot) MovedVolumes() []*spec.Volume {
	return collect(n.tables.volumes.with(n.read(), byRemoving, movedVolume))
}

// VolumeUsers returns the tasks that use the volume and are not over, by ID.
func (n *Snapshot) VolumeUsers(id spec.VolumeID) []*spec.Task {
	return slices.DeleteFunc(collect(n.tables.tasks.with(n.read(), byVolume, idKey(id))), func(t *spec.Task) bool { return t.Status.State.Terminal() })
}

// Volume returns the volume with the ID.
func (n *Snapshot) Volume(id spec.VolumeID) *spec.Volume {
	return n.tables.volumes.get(n.read(), idKey(id))
}

// VolumeNamed returns the volume with the cluster-wide name, also one that is
// being removed.
func (n *Snapshot) VolumeNamed(name string) *spec.Volume {
	return n.tables.volumes.first(n.read(), byName, textKey(name))
}

// Nodes returns all nodes by ID.
func (n *Snapshot) Nodes() []*spec.Node { return collect(n.tables.nodes.all(n.read())) }

// Node returns the node with the ID.
func (n *Snapshot) Node(id spec.NodeID) *spec.Node { return n.tables.nodes.get(n.read(), textKey(id)) }

// NodeNamed returns the node of that name.
func (n *Snapshot) NodeNamed(name string) *spec.Node {
	return n.tables.nodes.first(n.read(), byName, textKey(name))
}

// Authority returns the certificate authority; nil before there is one. It
// holds private keys and must not leave the managers.
func (n *Snapshot) Authority() *spec.Authority {
	return n.tables.authority.get(n.read(), authorityKey)
}

// Revisions returns all revisions by ID.
func (n *Snapshot) Revisions() []*spec.Revision { return collect(n.tables.revisions.all(n.read())) }

// Revision returns the revision with the ID.
func (n *Snapshot) Revision(id spec.RevisionID) *spec.Revision {
	return n.tables.revisions.get(n.read(), textKey(id))
}

// Contents returns all contents by ID, complete or not.
func (n *Snapshot) Contents() []*spec.Content { return collect(n.tables.contents.all(n.read())) }

// Content returns the content with the ID; it is complete when its data has
// its size.
func (n *Snapshot) Content(id spec.ContentID) *spec.Content {
	return n.tables.contents.get(n.read(), textKey(id))
}

// ContentInUse reports whether anything refers to the content: a service, a
// kept revision of a stack, a volume that is filled from it, or the newest
// version of a secret or config that exists by itself.
func (n *Snapshot) ContentInUse(id spec.ContentID) bool { return n.tables.contentInUse(n.read(), id) }

// RecentEvents returns the newest events, at most limit, oldest first.
func (n *Snapshot) RecentEvents(limit int) []*spec.Event {
	limit = max(0, min(limit, spec.KeepEvents))
	events, _ := n.Events(n.meta.Events-min(n.meta.Events, uint64(limit)), limit)
	return events
}

// Events returns at most limit events with a greater Seq than after, oldest
// first; a limit of 0 or less is none. gone says that the answer would have a
// gap: events behind after have been dropped already, or after is ahead of
// this state, which happens when an older state was restored.
func (n *Snapshot) Events(after uint64, limit int) (events []*spec.Event, gone bool) {
	oldest := uint64(1)
	if n.meta.Events > spec.KeepEvents {
		oldest = n.meta.Events - spec.KeepEvents + 1
	}
	if after > n.meta.Events || after+1 < oldest {
		return nil, true
	}
	events = []*spec.Event{}
	for e := range n.tables.events.from(n.read(), numberKey(after+1)) {
		if limit > 0 && len(events) == limit {
			break
		}
		events = append(events, e)
	}
	return events, false
}
