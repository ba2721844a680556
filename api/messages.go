package api

import (
	"time"

	"wherry.dev/spec"
)

// List is the answer of every list: the objects and the log index of the
// state they were read from.
type List[T any] struct {
	Index uint64 `json:"index"`
	Items []T    `json:"items"`
}

// ErrorBody is the body of every answer that is an error.
type ErrorBody struct {
	Error struct {
		// Class as ErrorClass has it; empty for an internal error.
		Class   string `json:"class,omitempty"`
		Message string `json:"message"`
	} `json:"error"`
}

// Version is what a daemon says of itself.
type Version struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
	// Node is empty in the answer of a client without a daemon, and so are its
	// Name and Role.
	Node spec.NodeID   `json:"node,omitempty"`
	Name string        `json:"name,omitempty"`
	Role spec.NodeRole `json:"role,omitempty"`
}

// PutStack is the body of "stack.put" and of "stack.plan".
type PutStack struct {
	Stack spec.Stack `json:"stack"`
	// Contents by the plain IDs that Stack refers to.
	Contents map[spec.ContentID][]byte `json:"contents,omitempty"`
	// Base is the StackRow.Version that the caller has seen; 0 says that the
	// stack must not exist, nil that it does not matter.
	Base    *uint64 `json:"base,omitempty"`
	Message string  `json:"message,omitempty"`
	Author  string  `json:"author,omitempty"`
	// KeepOthers keeps services that are no longer in the file.
	KeepOthers bool `json:"keep_others,omitempty"`
	// Pull asks the registry again about images that are pinned already;
	// PullServices for these services alone.
	Pull         bool     `json:"pull,omitempty"`
	PullServices []string `json:"pull_services,omitempty"`
	// Remove plans the removal of the stack instead ("stack.plan" only).
	Remove bool `json:"remove,omitempty"`
	// Back plans a rollback of the stack instead ("stack.plan" only), or with
	// BackService that of one service.
	Back        *Rollback `json:"back,omitempty"`
	BackService string    `json:"back_service,omitempty"`
	// RequestID makes a repeat of the call harmless.
	RequestID string `json:"request_id,omitempty"`
}

// Written answers a write.
type Written struct {
	// Index of the log entry: a read with ?index=N-1 sees the write.
	Index uint64 `json:"index"`
	// Revision of the stack in force.
	Revision uint64 `json:"revision,omitempty"`
	// Changed is false when the state was so already.
	Changed bool `json:"changed"`
}

// Scale is the body of "service.scale".
type Scale struct {
	Replicas  int     `json:"replicas"`
	Base      *uint64 `json:"base,omitempty"`
	RequestID string  `json:"request_id,omitempty"`
}

// Rebalance is the body of "rebalance"; "rebalance.plan" has the first two in its
// query, as "stack" and "max".
type Rebalance struct {
	// Stack whose tasks may move; empty is all.
	Stack string `json:"stack,omitempty"`
	// Max is the largest number of tasks that move, from 1 to MaxMoves.
	Max       int    `json:"max"`
	Author    string `json:"author,omitempty"`
	RequestID string `json:"request_id,omitempty"`
}

// MaxMoves bounds the tasks of one rebalancing.
const MaxMoves = 1000

// StackRevision is a row of "stack.history".
type StackRevision struct {
	Revision uint64    `json:"revision"`
	Time     time.Time `json:"time"`
	Author   string    `json:"author"`
	Message  string    `json:"message"`
	// State is what became of it: updating, completed, paused, failed,
	// rolled_back or superseded; unknown where nobody wrote that down.
	State string `json:"state"`
	// Why it did not complete, and the last lines of output of the task that
	// failed.
	Why string `json:"why,omitempty"`
	Log string `json:"log,omitempty"`
	// Rollback is the revision that it has brought back; 0 for any other.
	Rollback uint64 `json:"rollback,omitempty"`
	// Current: it is what the stack declares now.
	Current  bool `json:"current"`
	Services int  `json:"services"`
}

// States of a StackRevision besides those of spec.RevisionState.
const (
	RevisionUpdating = "updating"
	RevisionUnknown  = "unknown"
)

// Rollback is the body of "stack.rollback" and of "service.rollback".
type Rollback struct {
	// To is the revision to go back to; 0 is the last one that completed and
	// differs from what is declared.
	To uint64 `json:"to,omitempty"`
	// Base is as in PutStack.
	Base      *uint64 `json:"base,omitempty"`
	Message   string  `json:"message,omitempty"`
	Author    string  `json:"author,omitempty"`
	RequestID string  `json:"request_id,omitempty"`
}

// Steer is the body of "service.pause", "service.resume", "service.promote",
// "service.restart" and "service.run".
type Steer struct {
	Author    string `json:"author,omitempty"`
	RequestID string `json:"request_id,omitempty"`
}

// Stack states, as `ls` shows them.
const (
	StateRunning  = "running"
	StateUpdating = "updating"
	StateDegraded = "degraded"
	StateFailed   = "failed"
	StateStopped  = "stopped"
)

// StackInfo is a row of "stack.list".
type StackInfo struct {
	Name     string `json:"name"`
	Revision uint64 `json:"revision"`
	Services int    `json:"services"`
	State    string `json:"state"`
	Version  uint64 `json:"version"`
}

// StackDetail is the answer of "stack.get".
type StackDetail struct {
	StackInfo
	Spec spec.Stack `json:"spec"`
}

// StackStatus is the answer of "stack.status".
type StackStatus struct {
	Index    uint64        `json:"index"`
	Name     string        `json:"name"`
	State    string        `json:"state"`
	Revision uint64        `json:"revision"`
	Services []ServiceInfo `json:"services"`
	// Message says what keeps a stack without services from running.
	Message string `json:"message,omitempty"`
	// Tasks that are not over yet; a stack that was removed is gone when none
	// is left.
	Tasks int `json:"tasks"`
}

// Replicas counts the tasks of a service.
type Replicas struct {
	Desired int `json:"desired"`
	// Running are ready tasks of the current revision.
	Running int `json:"running"`
	// Completed are the tasks of a job that have done what they had to.
	Completed int `json:"completed,omitempty"`
}

// ServiceInfo is a service as people see it.
type ServiceInfo struct {
	ID       spec.ServiceID   `json:"id"`
	Name     string           `json:"name"`
	Stack    string           `json:"stack"`
	Mode     spec.ServiceMode `json:"mode"`
	Replicas Replicas         `json:"replicas"`
	Image    string           `json:"image"`
	State    string           `json:"state"`
	Message  string           `json:"message,omitempty"`
	// Blocked: nothing goes on before somebody does what Message says.
	Blocked bool `json:"blocked,omitempty"`
	// Impossible says why the nodes that there are could not take all tasks even if
	// they were ready and empty; empty when they could.
	Impossible string            `json:"impossible,omitempty"`
	Update     spec.UpdateStatus `json:"update"`
	Ports      []spec.Port       `json:"ports,omitempty"`
	// VIPs of the service, one for each network on which it has one.
	VIPs []VIP `json:"vips,omitempty"`
}

// VIP is the virtual address of a service on a network.
type VIP struct {
	Network string `json:"network"` // cluster-wide name
	Address string `json:"address"` // without prefix length
	// Address6 is the IPv6 one; empty where the network has none.
	Address6 string `json:"address6,omitempty"`
}

// ServiceDetail is the answer of "service.get".
type ServiceDetail struct {
	ServiceInfo
	Revision spec.RevisionID  `json:"revision"`
	Version  uint64           `json:"version"`
	Spec     spec.ServiceSpec `json:"spec"`
	Tasks    []TaskInfo       `json:"tasks"`
}

// TaskInfo is a task with all names resolved. Fields of the same JSON name
// take the place of the embedded task's. Addresses are "ip/prefix", by network,
// the IPv6 one of each after that of IPv4.
type TaskInfo struct {
	spec.Task
	Name string `json:"name"`
	// Node is the name of the node.
	Node      string           `json:"node"`
	NodeID    spec.NodeID      `json:"node_id,omitempty"`
	State     spec.TaskState   `json:"state"`
	Health    spec.HealthState `json:"health"`
	Image     string           `json:"image"`
	Error     string           `json:"error"`
	Attempts  []spec.Attempt   `json:"attempts"`
	Addresses []string         `json:"addresses"`
	Ports     []TaskPort       `json:"ports"`
	// Current says that the task runs the newest revision of its service.
	Current bool `json:"current"`
	// Canary says that an update tries the newest revision with the task, and
	// with few others.
	Canary bool `json:"canary,omitempty"`
}

// TaskPort is a published port of a task.
type TaskPort struct {
	HostIP    string           `json:"host_ip,omitempty"`
	Published uint16           `json:"published"`
	Target    uint16           `json:"target"`
	Protocol  string           `json:"protocol"`
	Mode      spec.PublishMode `json:"mode"`
}

// NodeInfo is a node as people see it.
type NodeInfo struct {
	ID           spec.NodeID       `json:"id"`
	Name         string            `json:"name"`
	Role         spec.NodeRole     `json:"role"`
	Leader       bool              `json:"leader"`
	State        spec.NodeState    `json:"state"`
	Availability spec.Availability `json:"availability"`
	Address      string            `json:"address"`
	Labels       map[string]string `json:"labels"`
	// StopPinned as in NodeUpdate.
	StopPinned bool `json:"stop_pinned,omitempty"`
	// DownSince is zero for a node that is ready.
	DownSince time.Time     `json:"down_since,omitzero"`
	Tasks     int           `json:"tasks"`
	Info      spec.NodeInfo `json:"info"`
}

// Network states, as `network ls` shows them.
const (
	NetworkInUse  = "in use"
	NetworkUnused = "unused"
	// NetworkKept: nobody declares it any more, and services still use it.
	NetworkKept = "kept"
	// NetworkRemoving: it goes with the last of its tasks.
	NetworkRemoving = "removing"
)

// NetworkInfo is a network as people see it.
type NetworkInfo struct {
	spec.Network
	State string `json:"state"`
	// Services that attach to it, as "stack/service", sorted.
	Services []string `json:"services"`
	// Problem says why it has no subnet, or not that of IPv6.
	Problem string `json:"problem,omitempty"`
	// Note is what a person ought to know of it all the same: a node reaches some
	// of it by other ways, or it waits for other numbers.
	Note string `json:"note,omitempty"`
}

// NetworkDetail is the answer of "network.get".
type NetworkDetail struct {
	NetworkInfo
	Index uint64 `json:"index"`
	// VIPs are the virtual addresses of services on it.
	VIPs []NetworkVIP `json:"vips"`
	// Tasks that have an address on it, in the order of these.
	Tasks []NetworkTask `json:"tasks"`
}

// NetworkVIP is the virtual address of a service, without prefix length.
type NetworkVIP struct {
	Service  string `json:"service"` // "stack/service"
	Address  string `json:"address"`
	Address6 string `json:"address6,omitempty"`
}

// NetworkTask is a task on a network.
type NetworkTask struct {
	ID    spec.TaskID    `json:"id"`
	Name  string         `json:"name"`
	Node  string         `json:"node"` // name of the node
	State spec.TaskState `json:"state"`
	IP    string         `json:"ip"` // with prefix length
	IP6   string         `json:"ip6,omitempty"`
}

// CreateNetwork is the body of "network.create".
type CreateNetwork struct {
	Name      string           `json:"name"`
	Spec      spec.NetworkSpec `json:"spec"`
	Author    string           `json:"author,omitempty"`
	RequestID string           `json:"request_id,omitempty"`
}

// Image is an image on a node.
type Image struct {
	Name      string    `json:"name"`
	Digest    string    `json:"digest"`
	Size      int64     `json:"size"` // bytes, compressed
	Platforms []string  `json:"platforms"`
	Created   time.Time `json:"created,omitzero"`
	InUse     bool      `json:"in_use"`
}

// PullProgress is one line of the answer of "image.pull".
type PullProgress struct {
	// Done and Total are bytes; Total may grow while manifests are read.
	Done  int64 `json:"done"`
	Total int64 `json:"total"`
	// Image is set in the last line.
	Image *Image `json:"image,omitempty"`
	// Error and Class are set in the last line of a pull that failed.
	Error string `json:"error,omitempty"`
	Class string `json:"class,omitempty"`
}

// PullImage is the body of "image.pull".
type PullImage struct {
	Image    string `json:"image"`
	Platform string `json:"platform,omitempty"`
}

// Plan is the answer of "stack.plan".
type Plan struct {
	Stack   string            `json:"stack"`
	Version uint64            `json:"version"` // StackRow.Version that it was made on; 0 for a new stack
	Changes []spec.Change     `json:"changes"`
	Tasks   []spec.TaskAction `json:"tasks"`
	Notes   []string          `json:"notes,omitempty"`
}

// Empty reports whether nothing would change.
func (p *Plan) Empty() bool { return len(p.Changes) == 0 && len(p.Tasks) == 0 }

// Document is one line of a session's stream. Exactly one field is set; an
// empty one says only that the manager lives.
type Document struct {
	Wanted  *spec.Wanted      `json:"wanted,omitempty"`
	Network *spec.HostNetwork `json:"network,omitempty"`
	Cluster *ClusterInfo      `json:"cluster,omitempty"`
}

// LogOptions select log lines.
type LogOptions struct {
	// Tail is the number of last lines to begin with; -1 is all.
	Tail int
	// Since drops lines before it; zero is all.
	Since time.Time
	// Follow keeps the stream open until the task is over.
	Follow bool
}

// LogLine is one line of a log stream.
type LogLine struct {
	Time   time.Time `json:"time"`
	Stream string    `json:"stream"` // stdout or stderr
	// Log is the text with its newline, if it had one.
	Log string `json:"log"`
}

// ExecRequest is what is to be run in a container; it travels in the query of
// "task.exec" as JSON, since the body becomes the stream.
type ExecRequest struct {
	Args       []string `json:"args"`
	Env        []string `json:"env,omitempty"`
	User       string   `json:"user,omitempty"`
	Dir        string   `json:"dir,omitempty"`
	TTY        bool     `json:"tty,omitempty"`
	Stdin      bool     `json:"stdin,omitempty"`
	Privileged bool     `json:"privileged,omitempty"`
	// Width and Height of the terminal at the start; 0 when there is none.
	Width  uint16 `json:"width,omitempty"`
	Height uint16 `json:"height,omitempty"`
}

// ExecEnd is the last frame of an exec stream.
type ExecEnd struct {
	ExitCode int    `json:"exit_code"`
	Error    string `json:"error,omitempty"`
	Class    string `json:"class,omitempty"`
}
