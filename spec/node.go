package spec

import "time"

// NodeRole is what a node does for the cluster.
type NodeRole string

// The roles. A manager also runs tasks unless it is drained.
const (
	RoleManager NodeRole = "manager"
	RoleWorker  NodeRole = "worker"
)

// NodeState says whether a node is alive.
type NodeState string

// The states of a node.
const (
	NodeReady NodeState = "ready"
	NodeDown  NodeState = "down"
)

// Availability says whether a node takes tasks.
type Availability string

// The availabilities.
const (
	NodeActive Availability = "active"
	NodePaused Availability = "paused"  // keeps its tasks, takes no new ones
	NodeDrain  Availability = "drained" // keeps no tasks
)

// Node is the stored form of a host.
type Node struct {
	ID           NodeID       `json:"id"`           // cluster
	Name         string       `json:"name"`         // cluster
	Role         NodeRole     `json:"role"`         // cluster
	State        NodeState    `json:"state"`        // cluster
	Availability Availability `json:"availability"` // user
	// StopPinned, while the node is drained, also ends tasks whose data is here.
	StopPinned bool              `json:"stop_pinned,omitempty"` // user
	Labels     map[string]string `json:"labels,omitempty"`      // user
	// Address that the node advertises, "host:port".
	Address string `json:"address"` // cluster
	// Key is the fingerprint of the public key by which the node is known: the
	// SHA-256 of its PKIX form in hex. An address may change, this may not.
	Key string `json:"key,omitempty"` // cluster
	// DownSince is when State became NodeDown, by the clock of the leader of
	// then; zero for a node that is ready.
	DownSince time.Time `json:"down_since,omitzero"` // cluster
	// Number is small and unique in the cluster; MAC addresses of bridges are
	// made from it.
	Number uint32 `json:"number"` // apply
	// Info is what the node said of itself.
	Info NodeInfo `json:"info"` // agent
	// Ports are what became of the ports that the node is to publish, by
	// network, port, protocol and address; nil as long as it has not told.
	Ports *[]PortStatus `json:"ports,omitempty"` // agent
	// Fetched are what became of the images that the node is to have before tasks
	// of them; nil as long as it has not told, as nodes of older versions.
	Fetched *[]FetchStatus `json:"fetched,omitempty"` // agent
	// Version is the log index of the last write that was not a report.
	Version uint64 `json:"version"` // apply
}

// ResourceLabel begins the labels of a node that say how many of something it
// has for tasks that reserve some: "resource.gpu" is "2".
const ResourceLabel = "resource."

// NodeInfo is what a node reports about itself; it changes rarely.
type NodeInfo struct {
	OS      string `json:"os"`
	Arch    string `json:"arch"`
	Kernel  string `json:"kernel,omitempty"`
	Version string `json:"version,omitempty"` // of Wherry
	// NanoCPUs (billionths of a core) and Memory (bytes) the node has.
	NanoCPUs int64 `json:"nano_cpus"`
	Memory   int64 `json:"memory"`
	// MTU in bytes of the device that holds the node's address; 0 is unknown.
	MTU int `json:"mtu,omitempty"`
	// Subnets that the host reaches by other ways than our networks, and where
	// its resolvers are: CIDR notation, sorted and joined by commas.
	Subnets string `json:"subnets,omitempty"`
	// Interfaces of the host that macvlan networks can be on now: names, sorted
	// and joined by spaces; empty is unknown.
	Interfaces string `json:"interfaces,omitempty"`
	// Boot identifies the boot of the kernel.
	Boot string `json:"boot,omitempty"`
	// Format is the newest format of log entries that the node understands.
	Format int `json:"format,omitempty"`
	// Issuer is the hash of the root that the node's certificate comes from.
	Issuer string `json:"issuer,omitempty"`
	// Trusts are the hashes of the roots that the node accepts, sorted and
	// joined by commas.
	Trusts string `json:"trusts,omitempty"`
}

// Event is a row of the cluster's diary, appended by Apply.
type Event struct {
	Seq     uint64    `json:"seq"` // from 1, without gaps
	Index   uint64    `json:"index"`
	Time    time.Time `json:"time"`
	Kind    string    `json:"kind"` // "stack.applied", "task.failed", …
	Stack   string    `json:"stack,omitempty"`
	Service string    `json:"service,omitempty"`
	Task    TaskID    `json:"task,omitempty"`
	Node    NodeID    `json:"node,omitempty"`
	Message string    `json:"message,omitempty"`
}

// KeepEvents is how many events the state keeps.
const KeepEvents = 10_000
