package spec

import "strings"

// Clock orders the documents that a node gets: first by the incarnation of
// the state, then by the log index they were made from. An older document
// never replaces a newer one.
type Clock struct {
	Incarnation uint64 `json:"incarnation"`
	Index       uint64 `json:"index"`
}

// Before reports whether c is older than d.
func (c Clock) Before(d Clock) bool {
	if c.Incarnation != d.Incarnation {
		return c.Incarnation < d.Incarnation
	}
	return c.Index < d.Index
}

// Wanted is the whole of what a node must run: what is not in it is to be
// stopped and removed. It is a pure function of the state.
type Wanted struct {
	Clock
	Node NodeID `json:"node"`
	// Tasks of the node that are not over yet, by ascending ID.
	Tasks []Task `json:"tasks"`
	// Revisions that Tasks refer to.
	Revisions map[RevisionID]Template `json:"revisions"`
	// Volumes that Tasks use.
	Volumes []Volume `json:"volumes,omitempty"`
	// Services of Tasks that use secrets or configs, by "stack/service".
	Services map[string]WantedService `json:"services,omitempty"`
	// RemoveVolumes are instances whose data is to be deleted here. Only this
	// list ever deletes data of a named volume.
	RemoveVolumes []VolumeID `json:"remove_volumes,omitempty"`
	// FetchVolumes are instances to be copied to this node, GiveVolumes those that
	// another node copies from here. No task that is not over uses them.
	FetchVolumes []VolumeTransfer `json:"fetch_volumes,omitempty"`
	GiveVolumes  []VolumeTransfer `json:"give_volumes,omitempty"`
	// KeepLogs are tasks that are over and whose logs are kept.
	KeepLogs []TaskID `json:"keep_logs,omitempty"`
	// Fetch are revisions, among Revisions, whose images are to be had although no
	// task here is of them: one will be as soon as another is over. Sorted.
	Fetch []RevisionID `json:"fetch,omitempty"`
	// Networks that have a HostNetwork on this node; any other is to be removed.
	Networks []NetworkID `json:"networks,omitempty"`
}

// VolumeTransfer is the node's part in the move of a volume.
type VolumeTransfer struct {
	Volume VolumeID `json:"volume"`
	Name   string   `json:"name"`
	// Move is VolumeMove.ID.
	Move uint64 `json:"move"`
	// Peer is the other node.
	Peer NodeID `json:"peer"`
}

// WantedService is what tasks need of their service besides their template.
type WantedService struct {
	ID ServiceID `json:"id"`
	// Labels of the service, for templates.
	Labels map[string]string `json:"labels,omitempty"`
	// Live as in ServiceSpec; older tasks may have only some of them.
	Live map[DatumKey]ContentID `json:"live,omitempty"`
}

// HostNetwork is the whole of what one network must be on one node.
type HostNetwork struct {
	Clock
	Network Network `json:"network"`
	// HostNumber is the Number of the node; its bridges' MAC is made from it.
	HostNumber uint32 `json:"host_number"`
	// MTU in bytes of what carries the network between its hosts, the least of
	// them; 0 is unknown. It is the same on all hosts.
	MTU int `json:"mtu,omitempty"`
	// VXLANPort is the UDP port that carries the network between its hosts, the
	// same for all networks of a cluster; 0 is VXLANPort.
	VXLANPort uint16 `json:"vxlan_port,omitempty"`
	// Tasks of this node on the network, running or about to, by ascending ID.
	Tasks []Endpoint `json:"tasks,omitempty"`
	// Hosts are the other nodes that the network is on, by ascending Number;
	// none for a network that is local to each host.
	Hosts []NetworkHost `json:"hosts,omitempty"`
	// Remote are the ends of tasks on Hosts, running or about to, by address.
	Remote []RemoteEndpoint `json:"remote,omitempty"`
	// VIPs of services on the network, by address.
	VIPs []VIP `json:"vips,omitempty"`
	// Names that resolve on this network, sorted by name and stack.
	Names []Name `json:"names,omitempty"`
	// NamedPorts of services on the network, by name, protocol and port.
	NamedPorts []NamedPort `json:"named_ports,omitempty"`
	// Ports that this node publishes of services on this network.
	Ports []PublishedPort `json:"ports,omitempty"`
}

// Endpoint is a task's end of a network.
type Endpoint struct {
	Task TaskID `json:"task"`
	// Name of the task, for logs and PTR records.
	Name string `json:"name"`
	IP   string `json:"ip"`            // with prefix length
	IP6  string `json:"ip6,omitempty"` // likewise; empty where the network has no IPv6
	MAC  string `json:"mac"`
}

// NetworkHost is another node that a network is on.
type NetworkHost struct {
	Node NodeID `json:"node"`
	// Number of the node; the MAC of its bridges is made from it.
	Number uint32 `json:"number"`
	// Address is the IP address by which other nodes reach it.
	Address string `json:"address"`
	// Down: the managers hold it for dead. The way to it stays as it is, since it
	// may be alive all the same, but nobody waits for its tasks.
	Down bool `json:"down,omitempty"`
}

// RemoteEndpoint is the end of a network at a task of another node.
type RemoteEndpoint struct {
	IP  string `json:"ip"`            // without prefix length
	IP6 string `json:"ip6,omitempty"` // likewise; empty where the network has no IPv6
	MAC string `json:"mac"`
	// Host is the Number of its node, which is among Hosts.
	Host uint32 `json:"host"`
}

// VIP is the address of a service on a network: connections to it go to one of
// its targets each, which are of the same family. A service has one VIP of each
// family that the network has.
type VIP struct {
	Address string `json:"address"` // without prefix length
	// Owner is "stack/service".
	Owner string `json:"owner"`
	// Targets are the addresses of tasks that are ready, sorted; none means
	// that connections are refused.
	Targets []string `json:"targets,omitempty"`
}

// VXLANPort is the UDP port that networks between hosts use in a cluster that
// was not formed with another one. It is not the
// assigned 4789, which Swarm takes on the same hosts, with the same identifiers.
const VXLANPort = 4478

// Name is one DNS name and the addresses it answers with, sorted. On a network
// that several stacks are on each has an entry of its own for a name that they
// share: tasks of a stack get the answer of their own, all others get both.
type Name struct {
	Name string `json:"name"`
	// Stack whose service or task is called so.
	Stack string `json:"stack,omitempty"`
	// Addresses; none where another stack has the name too, lest that answers
	// while nothing of this one does.
	Addresses []string `json:"addresses"`
	// Reverse: reverse lookups of Addresses answer with this name rather than
	// with another one.
	Reverse bool `json:"reverse,omitempty"`
}

// NamedPort says at which addresses a named port is found. Which of them are
// ready to take connections is what Names say.
type NamedPort struct {
	Name     string `json:"name"`
	Protocol string `json:"protocol"` // tcp or udp
	// Port inside the containers.
	Port uint16 `json:"port"`
	// Addresses of tasks and services, without prefix length, sorted.
	Addresses []string `json:"addresses"`
}

// PublishedPort is one port of a node and the endpoints behind it.
type PublishedPort struct {
	HostIP   string `json:"host_ip,omitempty"`
	Port     uint16 `json:"port"`
	Protocol string `json:"protocol"`
	// Owner is "stack/service".
	Owner string `json:"owner"`
	// Shared: all nodes publish it, and of those that are asked for one HostIP
	// only the ones that have it.
	Shared bool `json:"shared,omitempty"`
	// Targets are "address:port" of tasks that are ready, sorted, of either
	// family; a connection goes to one of its own. None of a family means that
	// connections of it are refused.
	Targets []string `json:"targets,omitempty"`
}

// Report is what a node tells the managers: every status that changed since
// the last report that was acknowledged. Repeating it is harmless.
type Report struct {
	Node NodeID `json:"node"`
	// Info, when it changed or is told for the first time.
	Info *NodeInfo `json:"info,omitempty"`
	// Tasks whose status changed.
	Tasks []TaskReport `json:"tasks,omitempty"`
	// VolumesRemoved are instances that are gone from this node.
	VolumesRemoved []VolumeID `json:"volumes_removed,omitempty"`
	// VolumesFetched tells of moves to this node.
	VolumesFetched []VolumeFetched `json:"volumes_fetched,omitempty"`
	// Ports are all that the node is to publish, when that or what became of it
	// changed or is told for the first time. nil is "as before", which an empty
	// list is not.
	Ports *[]PortStatus `json:"ports,omitempty"`
	// Fetched is what became of all images of Wanted.Fetch, likewise.
	Fetched *[]FetchStatus `json:"fetched,omitempty"`
}

// FetchStatus says what became of an image that a node is to have before a task
// of it.
type FetchStatus struct {
	Revision RevisionID `json:"revision"`
	// Done: it is there, and unpacked.
	Done bool `json:"done,omitempty"`
	// Problem says why it is not, Never that trying again will not help.
	Problem string `json:"problem,omitempty"`
	Never   bool   `json:"never,omitempty"`
}

// VolumeFetched says what became of a move to the node that tells.
type VolumeFetched struct {
	Volume VolumeID `json:"volume"`
	// Move is VolumeMove.ID.
	Move uint64 `json:"move"`
	// Problem is why the data is not here yet; empty when it is, complete and on
	// disk.
	Problem string `json:"problem,omitempty"`
}

// PortStatus says what became of one port that a node is to publish.
type PortStatus struct {
	// HostIP it is published on; empty is all addresses.
	HostIP   string `json:"host_ip,omitempty"`
	Port     uint16 `json:"port"`
	Protocol string `json:"protocol"`
	// Owner is "stack/service".
	Owner string `json:"owner"`
	// Problem says why the port is not served and names who holds it; empty
	// means that it is served.
	Problem string `json:"problem,omitempty"`
}

// NoAddress ends the Problem of a port on a node that does not have its HostIP.
const NoAddress = "the host has no such address"

// Elsewhere reports whether the port is not served for want of its address,
// which another node may have.
func (p *PortStatus) Elsewhere() bool { return strings.HasSuffix(p.Problem, NoAddress) }

// TaskReport is the status of one task.
type TaskReport struct {
	Task   TaskID     `json:"task"`
	Status TaskStatus `json:"status"`
}
