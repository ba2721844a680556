package spec

import "time"

// Plan is what the reconciler wants changed, computed from one snapshot. Its
// parts are independent: each is applied as a whole or not at all.
type Plan struct {
	// Index of the snapshot it was made from.
	Index uint64 `json:"index"`
	Parts []Part `json:"parts,omitempty"`
	// Next is the earliest time at which the passes would decide differently
	// without any change of state; zero when there is none.
	Next time.Time `json:"next,omitzero"`
}

// Empty reports whether there is nothing to do.
func (p *Plan) Empty() bool { return len(p.Parts) == 0 }

// Part is a group of changes that stand or fall together: one service, one
// network, one volume. Apply rejects it when anything in Reads has moved.
type Part struct {
	// Key for people and tests: "service shop/web", "network shop_default".
	Key   string `json:"key"`
	Reads []Read `json:"reads,omitempty"`

	// Networks gives networks their numbers.
	Networks []NetworkNumbers `json:"networks,omitempty"`
	// Volumes to create; their IDs are assigned by Apply.
	Volumes []Volume `json:"volumes,omitempty"`
	// Homes to add to volumes, by name (so that a volume of this part can be
	// meant).
	Homes []VolumeHome `json:"homes,omitempty"`
	// Create lists new tasks, with empty ID, Created and Version.
	Create []Task `json:"create,omitempty"`
	// Change lists changes of tasks that exist.
	Change []TaskChange `json:"change,omitempty"`
	// Remove lists tasks whose rows go.
	Remove []TaskID `json:"remove,omitempty"`
	// Service, when its ports or its update status change.
	Service *ServiceChange `json:"service,omitempty"`
	// Stack, when it is known what became of its newest revision.
	Stack *StackChange `json:"stack,omitempty"`
	// Rollback, when the newest revision of a stack has failed.
	Rollback *StackRollback `json:"rollback,omitempty"`

	// What no longer has a user.
	RemoveNetworks  []NetworkID  `json:"remove_networks,omitempty"`
	RemoveVolumes   []VolumeID   `json:"remove_volumes,omitempty"` // anonymous ones; marks Removing. The passes never do: only a user removes data
	RemoveRevisions []RevisionID `json:"remove_revisions,omitempty"`
	RemoveContents  []ContentID  `json:"remove_contents,omitempty"`
}

// ObjectKind names a table in a Read.
type ObjectKind string

// The kinds that a part can have read.
const (
	KindStack   ObjectKind = "stack"   // by name
	KindService ObjectKind = "service" // by "stack/service"
	KindNode    ObjectKind = "node"    // by ID
	KindNetwork ObjectKind = "network" // by ID
	KindVolume  ObjectKind = "volume"  // by cluster-wide name
	KindContent ObjectKind = "content" // by ID; its version is Content.Index
)

// Read is a piece of the ground that a part stands on.
type Read struct {
	Kind ObjectKind `json:"kind"`
	Key  string     `json:"key"`
	// Version the object had; 0 means that it did not exist.
	Version uint64 `json:"version"`
}

// NetworkNumbers are the numbers of a network.
type NetworkNumbers struct {
	ID      NetworkID `json:"id"`
	Subnet  string    `json:"subnet"`
	Gateway string    `json:"gateway"`
	VNI     uint32    `json:"vni"`
	// Subnet6 and Gateway6 of a network with IPv6.
	Subnet6  string `json:"subnet6,omitempty"`
	Gateway6 string `json:"gateway6,omitempty"`
}

// VolumeHome adds a node to the homes of a volume.
type VolumeHome struct {
	Name string `json:"name"`
	Node NodeID `json:"node"`
}

// TaskChange changes the reconciler's fields of a task; zero fields stay.
type TaskChange struct {
	Task    TaskID      `json:"task"`
	Desired TaskDesired `json:"desired,omitempty"`
	// Node, Joins, Addresses and Volumes place a pending task.
	Node      NodeID          `json:"node,omitempty"`
	Joins     TaskID          `json:"joins,omitempty"`
	Addresses []Address       `json:"addresses,omitempty"`
	Volumes   []VolumeBinding `json:"volumes,omitempty"`
	// State is set only for a task without node, or on a node that is lost.
	State TaskState `json:"state,omitempty"`
	// Reason replaces Status.Reason of such a task.
	Reason string `json:"reason,omitempty"`
	// With is a task that is to end, too, by an earlier part: if it is not, this
	// part is rejected.
	With TaskID `json:"with,omitempty"`
	// Why is the ground of the change, for the event and for plan.
	Why string `json:"why,omitempty"`
}

// ServiceChange changes the reconciler's fields of a service.
type ServiceChange struct {
	Stack string `json:"stack"`
	Name  string `json:"name"`
	Ports []Port `json:"ports,omitempty"`
	// VIPs, when they change: all that the service has from now on; an empty
	// list that is not nil takes them away.
	VIPs *[]ServiceVIP `json:"vips,omitempty"`
	// Fetch likewise.
	Fetch  *[]NodeID     `json:"fetch,omitempty"`
	Update *UpdateStatus `json:"update,omitempty"`
}

// StackChange changes the reconciler's fields of the newest revision of a
// stack.
type StackChange struct {
	Name string `json:"name"`
	// Revision must be the newest one.
	Revision uint64        `json:"revision"`
	State    RevisionState `json:"state"`
	Why      string        `json:"why,omitempty"`
	Log      string        `json:"log,omitempty"`
	// Ports as in StackRevision.
	Ports map[string][]Port `json:"ports,omitempty"`
}

// StackRollback takes a stack back from its newest revision to an older one, as
// a revision of its own. Where that cannot be declared any more, since another
// stack has taken a name or a port, the update of Service is paused instead.
type StackRollback struct {
	Name string `json:"name"`
	// Revision is the newest one, which has failed, To the one to go back to.
	Revision uint64 `json:"revision"`
	To       uint64 `json:"to"`
	// Service is the one whose update failed, Why and Log tell how.
	Service string `json:"service"`
	Why     string `json:"why"`
	Log     string `json:"log,omitempty"`
}
