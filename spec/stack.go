package spec

import (
	"slices"
	"strings"
	"time"
)

// Stack is the document that a user applies: one Compose application, fully
// rendered. It is complete in itself: no environment, no relative path and no
// file of the client is needed to run it; what it needs of the client's files
// travels as contents.
type Stack struct {
	// Name scopes all other names of the stack; it matches [a-z0-9][a-z0-9_-]*.
	Name string `json:"name"`
	// Services by name.
	Services map[string]ServiceSpec `json:"services"`
	// Networks by stack-scoped name; "default" is the implicit one.
	Networks map[string]NetworkSpec `json:"networks,omitempty"`
	// Volumes by stack-scoped name.
	Volumes map[string]VolumeSpec `json:"volumes,omitempty"`
	// Secrets and Configs by stack-scoped name.
	Secrets map[string]DatumSpec `json:"secrets,omitempty"`
	Configs map[string]DatumSpec `json:"configs,omitempty"`
}

// ServiceMode says how the number of a service's tasks is found.
type ServiceMode string

const (
	// Replicated runs a given number of tasks anywhere.
	Replicated ServiceMode = "replicated"
	// Global runs one task on every node that fits.
	Global ServiceMode = "global"
	// ReplicatedJob runs a given number of tasks to their end, anywhere.
	ReplicatedJob ServiceMode = "replicated-job"
	// GlobalJob runs one task to its end on every node that fits.
	GlobalJob ServiceMode = "global-job"
)

// ServiceSpec is the declaration of a service. Only Template decides how a
// container runs; a change of anything else never restarts one.
type ServiceSpec struct {
	Mode ServiceMode `json:"mode"`
	// Replicas wanted; nil keeps the number that was set by scaling (1 at first).
	// Of a job, how many tasks are to complete. Unused for global services.
	Replicas *int `json:"replicas,omitempty"`
	// MaxConcurrent is how many tasks of a job are there at the same time; 0 is
	// all of them.
	MaxConcurrent int       `json:"max_concurrent,omitempty"`
	Template      Template  `json:"template"`
	Placement     Placement `json:"placement,omitzero"`
	// Ports that are published on nodes.
	Ports []Port `json:"ports,omitempty"`
	// EndpointMode says what the service's name resolves to; empty is
	// EndpointVIP.
	EndpointMode EndpointMode `json:"endpoint_mode,omitempty"`
	// Labels of the service (deploy.labels); container labels are in Template.
	Labels    map[string]string `json:"labels,omitempty"`
	DependsOn []Dependency      `json:"depends_on,omitempty"`
	// AlwaysPull asks the registry about the image at every apply.
	AlwaysPull bool `json:"always_pull,omitempty"`
	// Live are the versions of secrets and configs whose files change in running
	// tasks (OnChange.Live); filled in when the stack is written.
	Live map[DatumKey]ContentID `json:"live,omitempty"`
	// Update says how tasks are replaced, Rollback how that is taken back.
	Update   UpdateConfig `json:"update,omitzero"`
	Rollback UpdateConfig `json:"rollback,omitzero"`
	// Canary says which part of the tasks an update tries first.
	Canary Canary `json:"canary,omitzero"`
	// ProgressDeadline is how long an update or a rollback may get no further
	// before it has failed; 0 is DefaultProgressDeadline.
	ProgressDeadline Duration `json:"progress_deadline,omitempty"`
}

// EndpointMode says what the name of a service resolves to.
type EndpointMode string

const (
	// EndpointVIP: one address on each network that leads to the ready tasks.
	EndpointVIP EndpointMode = "vip"
	// EndpointDNSRR: the addresses of the ready tasks.
	EndpointDNSRR EndpointMode = "dnsrr"
)

// Placement limits the nodes on which a task may run.
type Placement struct {
	// Constraints such as "node.role==manager"; all must hold. Keys are
	// node.id, node.hostname, node.role, node.ip, node.platform.os,
	// node.platform.arch, node.labels.NAME; operators are == and !=.
	Constraints []string `json:"constraints,omitempty"`
	// Spread lists node label keys over whose values tasks are spread evenly.
	Spread []string `json:"spread,omitempty"`
	// MaxPerNode is the largest number of tasks on one node; 0 is no limit.
	MaxPerNode int `json:"max_per_node,omitempty"`
	// Priority from -MaxPriority to MaxPriority: tasks of services with a higher one
	// get their nodes first.
	Priority int `json:"priority,omitempty"`
	// Preempt: where no node has room, tasks of services with a lower priority end
	// to make some.
	Preempt bool `json:"preempt,omitempty"`
}

// MaxPriority is the highest priority of a service, and without its sign the
// lowest.
const MaxPriority = 1000

// DependencyCondition is what must hold of a dependency before a task starts.
type DependencyCondition string

const (
	// DependencyStarted: at least one task of it is running.
	DependencyStarted DependencyCondition = "service_started"
	// DependencyHealthy: at least one task of it is running and healthy.
	DependencyHealthy DependencyCondition = "service_healthy"
	// DependencyCompleted: every task of it, which is a job, has completed for
	// what is declared now. Updates and rollbacks wait for it, too.
	DependencyCompleted DependencyCondition = "service_completed_successfully"
)

// Dependency orders the first start of tasks.
type Dependency struct {
	Service   string              `json:"service"`
	Condition DependencyCondition `json:"condition"`
	// Optional: a dependency that is not part of the stack is no error.
	Optional bool `json:"optional,omitempty"`
	// Restart replaces the tasks after those of the dependency were, by an update,
	// a rollback or a restart.
	Restart bool `json:"restart,omitempty"`
}

// PublishMode says on which nodes a port is published.
type PublishMode string

const (
	// PublishIngress publishes on every node and forwards to any task.
	PublishIngress PublishMode = "ingress"
	// PublishHost publishes on the node of the task only.
	PublishHost PublishMode = "host"
)

// Port is one published port; ranges are expanded before they get here.
type Port struct {
	// Name of the port: SRV lookups of _NAME._PROTOCOL.SERVICE answer with
	// Target. One that is no label of DNS documents the port only.
	Name string `json:"name,omitempty"`
	// HostIP restricts the address it is published on; empty is all addresses.
	// It is never widened.
	HostIP string `json:"host_ip,omitempty"`
	// Published port on the node; 0 asks for one of First to Last, or where those
	// are 0 of FirstDynamicPort to LastDynamicPort.
	Published uint16 `json:"published,omitempty"`
	First     uint16 `json:"first,omitempty"`
	Last      uint16 `json:"last,omitempty"`
	// Target is the port inside the container.
	Target   uint16      `json:"target"`
	Protocol string      `json:"protocol"` // tcp or udp
	Mode     PublishMode `json:"mode"`
}

// The range of published ports that are chosen where none is asked for.
const (
	FirstDynamicPort = 30000
	LastDynamicPort  = 32767
)

// Choice returns the range that the published port is chosen from.
func (p *Port) Choice() (first, last uint16) {
	if p.First == 0 {
		return FirstDynamicPort, LastDynamicPort
	}
	return p.First, p.Last
}

// Label is the name by which SRV lookups find the port, which have no case;
// empty when the port has no name that can stand there.
func (p *Port) Label() string {
	if !portLabel.MatchString(p.Name) {
		return ""
	}
	return strings.ToLower(p.Name)
}

// NetworkDriver is how a network is built.
type NetworkDriver string

const (
	// DriverOverlay spans all hosts of the cluster.
	DriverOverlay NetworkDriver = "overlay"
	// DriverBridge is local to each host.
	DriverBridge NetworkDriver = "bridge"
	// DriverMacvlan puts tasks on a network that the hosts are on themselves,
	// beside them.
	DriverMacvlan NetworkDriver = "macvlan"
)

// NetworkSpec declares a network of a stack.
type NetworkSpec struct {
	// Name overrides the cluster-wide name "stack_name".
	Name   string        `json:"name,omitempty"`
	Driver NetworkDriver `json:"driver"`
	// External: the network must exist and is never created or removed.
	External bool `json:"external,omitempty"`
	// Internal: no way out of the network, and no published ports on it.
	Internal bool              `json:"internal,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
	// Pool of IPv4 addresses.
	Pool
	// IPv6 addresses that tasks have besides; nil is none.
	IPv6 *Pool `json:"ipv6,omitempty"`
	// Parent is the interface of each host that a macvlan network is on, "eth0",
	// or "eth0.7" for VLAN 7 of it; empty for other drivers.
	Parent string `json:"parent,omitempty"`
	// MTU is the largest that devices of tasks have, in bytes, from LeastMTU to
	// LargestMTU; less where the hosts carry less. 0 is what they carry.
	MTU int `json:"mtu,omitempty"`
}

// The bounds of NetworkSpec.MTU. IPv6 needs the least of them.
const (
	LeastMTU   = 1280
	LargestMTU = 65535
)

// Pool says where the addresses of a network come from, for one family.
type Pool struct {
	// Subnet wanted, in CIDR notation; empty takes one from the cluster's.
	Subnet string `json:"subnet,omitempty"`
	// Range is the part of Subnet that addresses are chosen from, in CIDR
	// notation; empty is all of it. What a service asks for by itself may be
	// outside of it.
	Range string `json:"range,omitempty"`
	// Gateway is the address that the hosts have on the network; empty is the
	// first one of Subnet.
	Gateway string `json:"gateway,omitempty"`
	// Reserved addresses of Subnet are never chosen; sorted.
	Reserved []string `json:"reserved,omitempty"`
}

// ClusterName returns the cluster-wide name of the network that a stack calls
// short. An external network is not scoped by the stack.
func (n NetworkSpec) ClusterName(stack, short string) string {
	return clusterName(n.Name, n.External, stack, short)
}

// VolumeSpec declares a volume of a stack.
type VolumeSpec struct {
	// Name overrides the cluster-wide name "stack_name".
	Name string `json:"name,omitempty"`
	// External: the volume must exist.
	External bool `json:"external,omitempty"`
	// DriverOpts of the local driver: type, o, device, as in mount(8).
	DriverOpts map[string]string `json:"driver_opts,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
	// Seed is copied into the volume when an instance of it is first made.
	Seed ContentID `json:"seed,omitempty"`
}

// ClusterName returns the cluster-wide name of the volume that a stack calls
// short. An external volume is not scoped by the stack.
func (v VolumeSpec) ClusterName(stack, short string) string {
	return clusterName(v.Name, v.External, stack, short)
}

// Shared reports whether the data of the volume is elsewhere than on the nodes
// that mount it, so that every node can.
func (v *VolumeSpec) Shared() bool {
	kind := strings.ToLower(v.DriverOpts["type"])
	return slices.ContainsFunc([]string{"nfs", "cifs", "smb", "ceph", "glusterfs", "9p"}, func(k string) bool { return strings.HasPrefix(kind, k) })
}

func clusterName(name string, external bool, stack, short string) string {
	switch {
	case name != "":
		return name
	case external:
		return short
	}
	return ScopedName(stack, short)
}

// StackRow is the stored head of a stack.
type StackRow struct {
	ID   StackID `json:"id"`   // apply
	Name string  `json:"name"` // user
	// Revision is the number of the newest StackRevision, from 1.
	Revision uint64 `json:"revision"` // apply
	// Version is the log index of the last user write to any part of the stack;
	// a write based on an older one is refused.
	Version uint64 `json:"version"` // apply
	// Completed is the newest revision of which every update completed; 0 while
	// there is none. It is what an update that fails goes back to.
	Completed uint64 `json:"completed,omitempty"` // reconciler
}

// StackRevision is one version of a stack as it was applied; ten are kept, and
// the last one that completed.
type StackRevision struct {
	Stack    string    `json:"stack"`
	Number   uint64    `json:"number"`
	Spec     Stack     `json:"spec"`
	Author   string    `json:"author,omitempty"`
	Message  string    `json:"message,omitempty"`
	Time     time.Time `json:"time"`
	Incoming uint64    `json:"index"` // log index of the write
	// Rollback is the revision whose declaration this one has brought back; 0
	// for any other.
	Rollback uint64 `json:"rollback,omitempty"` // apply
	// State is what became of it; empty while it is under way, and for one that
	// is older than this field. One that has completed stays so.
	State RevisionState `json:"state,omitempty"` // reconciler
	// Why says in one line why it is in that state, when it did not complete, and
	// Log has the last lines of output of the task that failed.
	Why string `json:"why,omitempty"` // reconciler
	Log string `json:"log,omitempty"` // reconciler
	// Ports that were chosen for its services, by their names, when it completed.
	Ports map[string][]Port `json:"ports,omitempty"` // reconciler
}

// KeepStackRevisions is how many revisions of a stack are kept.
const KeepStackRevisions = 10

// RevisionState is what became of a revision of a stack.
type RevisionState string

// The states of revisions of a stack.
const (
	RevisionUpdating   RevisionState = ""
	RevisionCompleted  RevisionState = "completed"
	RevisionPaused     RevisionState = "paused"      // an update of it waits for a person
	RevisionFailed     RevisionState = "failed"      // an update of it went on although more tasks failed than may
	RevisionRolledBack RevisionState = "rolled_back" // an update of it failed, and the stack went back
	RevisionSuperseded RevisionState = "superseded"  // another revision came before its end
)

// RollbackAuthor is the author of revisions that the cluster makes itself,
// because the one before has failed.
const RollbackAuthor = "wherry"

// Service is the stored form of a service.
type Service struct {
	ID    ServiceID   `json:"id"`    // apply
	Stack string      `json:"stack"` // user
	Name  string      `json:"name"`  // user
	Spec  ServiceSpec `json:"spec"`  // user
	// Replicas is the number in force: the file's, or the one set by scaling.
	Replicas int `json:"replicas"` // user
	// Revision that tasks ought to run: the hash of Spec.Template.
	Revision RevisionID `json:"revision"` // apply
	// Ports are Spec.Ports with every published number chosen.
	Ports []Port `json:"ports,omitempty"` // reconciler
	// VIPs, one per network on which the service has one.
	VIPs []ServiceVIP `json:"vips,omitempty"` // reconciler
	// Update is the progress of bringing tasks to Revision.
	Update UpdateStatus `json:"update,omitzero"` // reconciler
	// Fetch are nodes that are to have the image of Revision before the tasks stop
	// that go before those which an update will place there; sorted.
	Fetch []NodeID `json:"fetch,omitempty"` // reconciler
	// Rollout is the log index of the write that called for the newest update: a
	// changed declaration, a restart, or leave to go on with one that was paused.
	Rollout uint64 `json:"rollout,omitempty"` // apply
	// Restarts counts the restarts that users asked for. Tasks that were made
	// before the last one are out of date. A job is run once more by it.
	Restarts int `json:"restarts,omitempty"` // user
	// Held says who paused the update; empty when nobody did.
	Held string `json:"held,omitempty"` // user
	// Promoted is the Rollout whose canary a user has found good.
	Promoted uint64 `json:"promoted,omitempty"` // user
	// Changed is when the user last changed the service.
	Changed time.Time `json:"changed"` // apply
	// Version is the log index of the last write by a user or the reconciler to
	// this service or to its tasks; reports of agents do not move it.
	Version uint64 `json:"version"` // apply
}

// ServiceVIP is the address of a service on a network.
type ServiceVIP struct {
	Network NetworkID `json:"network"`
	Address string    `json:"address"` // without prefix length
	// Address6 is the IPv6 one; empty where the network has none.
	Address6 string `json:"address6,omitempty"`
}

// Key returns "stack/service".
func (s *Service) Key() string { return ServiceKey(s.Stack, s.Name) }

// UpdateState is the state of an update of a service.
type UpdateState string

// The states of an update; the zero value means that none has been needed yet.
const (
	UpdateNone       UpdateState = "none"
	UpdateUpdating   UpdateState = "updating"
	UpdatePaused     UpdateState = "paused"
	UpdateCompleted  UpdateState = "completed"
	UpdateRolledBack UpdateState = "rolled_back"
)

// UpdateStatus says how far an update is and why it stands still. It ends as
// UpdateCompleted, UpdateRolledBack, or UpdatePaused with a message.
type UpdateStatus struct {
	State   UpdateState `json:"state,omitempty"`
	Message string      `json:"message,omitempty"`
	// Since is when State was entered.
	Since time.Time `json:"since,omitzero"`
	// Rollout is the Service.Rollout that it is about; another one there calls
	// for a new update.
	Rollout uint64 `json:"rollout,omitempty"`
	// From and To are the revisions that it leads from and to.
	From RevisionID `json:"from,omitempty"`
	To   RevisionID `json:"to,omitempty"`
	// Rollback is the revision of the stack that it goes back to; 0 for an
	// update that goes forward.
	Rollback uint64 `json:"rollback,omitempty"`
	// Canary is how far its canary is. One that waits for a person is paused, and
	// fails all the same when its tasks do.
	Canary CanaryState `json:"canary,omitempty"`
	// Log has the last lines of output of the task that made it fail.
	Log string `json:"log,omitempty"`
	// Failed counts the places at which it failed when it ended.
	Failed int `json:"failed,omitempty"`
	// Done is the largest number of places that were done, as written down at
	// Progress, which is also when the update began or a batch did.
	Done     int       `json:"done,omitempty"`
	Progress time.Time `json:"progress,omitzero"`
	// Batches counts those that were begun, where there is a delay between them.
	// Rests is since when the update waits for the next, or watches its canary;
	// zero when it does not.
	Batches int       `json:"batches,omitempty"`
	Rests   time.Time `json:"rests,omitzero"`
}

// Network is the stored form of a network.
type Network struct {
	ID NetworkID `json:"id"` // apply
	// Stack that owns it.
	Stack string `json:"stack"` // user
	// Short is the name inside the stack, Name the cluster-wide one.
	Short string      `json:"short"` // user
	Name  string      `json:"name"`  // user
	Spec  NetworkSpec `json:"spec"`  // user
	// Subnet (CIDR), Gateway and VNI; empty until the reconciler chose them.
	Subnet  string `json:"subnet,omitempty"`  // reconciler
	Gateway string `json:"gateway,omitempty"` // reconciler
	VNI     uint32 `json:"vni,omitempty"`     // reconciler
	// Subnet6 (CIDR) and Gateway6 likewise; empty for ever without Spec.IPv6.
	Subnet6  string `json:"subnet6,omitempty"`  // reconciler
	Gateway6 string `json:"gateway6,omitempty"` // reconciler
	// Gone: no stack declares it any more; removed when its last task is.
	Gone    bool   `json:"gone,omitempty"` // user
	Version uint64 `json:"version"`        // apply
}

// Volume is the stored form of a volume: a cluster object with one instance
// per home.
type Volume struct {
	ID VolumeID `json:"id"` // apply
	// Stack that declared it; the volume outlives the stack.
	Stack string `json:"stack"` // user
	// Short is the name inside the stack, Name the cluster-wide one.
	Short string     `json:"short"` // user
	Name  string     `json:"name"`  // user
	Spec  VolumeSpec `json:"spec"`  // user
	// Anonymous volumes belong to Service and Slot and outlive them: when the
	// same service and slot come back, they are taken up again. Like any other,
	// they go when a user removes them.
	Anonymous bool   `json:"anonymous,omitempty"` // reconciler
	Service   string `json:"service,omitempty"`   // reconciler
	Slot      string `json:"slot,omitempty"`      // reconciler
	// Homes are the nodes that hold an instance. A replicated service makes
	// one, a global service one on each of its nodes.
	Homes []NodeID `json:"homes,omitempty"` // reconciler
	// Removing: the user asked for the removal of the data. The row goes when
	// every home has confirmed that the instance is gone.
	Removing bool `json:"removing,omitempty"` // user
	// Move is under way: the instance of the only home is to be copied to another
	// node, which then is the home. Meanwhile no task that uses the volume runs.
	Move *VolumeMove `json:"move,omitempty"` // user, agent
	// Left are nodes with a copy that does not count: from before a move, or of
	// one that was given up. It is deleted there.
	Left    []NodeID `json:"left,omitempty"` // apply
	Version uint64   `json:"version"`        // apply
}

// VolumeMove is a move of a volume to another node. Until its end the old home
// holds the data.
type VolumeMove struct {
	// ID tells moves apart: the log index of the command that began it.
	ID uint64 `json:"id"` // apply
	To NodeID `json:"to"` // user
	// Problem is what To last told of why it does not have the data yet.
	Problem string `json:"problem,omitempty"` // agent
}

// Content is a read-only blob that travels with a stack: a tar archive of the
// files of one secret, config, bind or volume seed (see PackContent), sealed
// when its ID says so.
type Content struct {
	ID ContentID `json:"id"`
	// Size of the complete blob in bytes, at most MaxContent.
	Size int `json:"size"`
	// Data received so far; complete when len(Data) == Size.
	Data []byte `json:"data"`
	// Index of the last write: an unreferenced blob is kept for a while, for
	// the write that is about to refer to it.
	Index uint64 `json:"index"`
}

const (
	// MaxContent is the largest content in bytes, before archiving.
	MaxContent = 1 << 20
	// MaxChunk is the largest part of a content in one log entry.
	MaxChunk = 256 << 10
)
