package store

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"wherry.dev/spec"
)

// Format is the newest format of commands and snapshots that this program
// reads and writes. It is raised by every change that an older program would
// not understand. The state has a format of its own, which only grows: until
// all managers know a newer one, commands that need it are refused.
//
//	1  one host
//	2  SetRole, RemoveNode, SetAuthority; keys, SetNode.StopPinned and
//	   Node.DownSince; what managers tell of themselves in NodeInfo; exclusive
//	   services
//	3  virtual addresses: ServiceChange.VIPs and Service.VIPs,
//	   ServiceSpec.EndpointMode; NodeInfo.MTU
//	4  addresses: NetworkSpec.IPv6, Range, Gateway, Reserved, Parent and MTU, and
//	   all that follows from them; Attachment.IP, IP6, MAC, Interface and
//	   NoServiceName; Address.Interface; Port.HostIP that is all
//	   addresses of one family; NodeInfo.Subnets and Interfaces; Port.First and
//	   Last; Bootstrap.VXLANPort
//	   networks: CreateNetwork, RemoveNetwork, and external networks that do
//	   not exist yet
//	   templates: what newInTemplate lists; Task.Joins
//	   secrets and configs: PutDatum, RemoveDatum, sealed contents, Stack.Secrets
//	   and Configs and what uses them, TaskStatus.Files
//	   volumes: CreateVolume, MoveVolume, Volume.Move and Left
//	   rollouts: RollbackStack, SteerService; policies of updates in ServiceSpec;
//	   what became of updates and of revisions of stacks; TaskStatus.HealthySince;
//	   Service.Fetch and Node.Fetched
//	   placement: Placement.Priority and Preempt; MoveTasks and Task.MoveUntil
//	   jobs: their modes, ServiceSpec.MaxConcurrent, Restart.Window without an end;
//	   Dependency.Restart and DependencyCompleted
const Format = 4

const (
	// VIPFormat is the first format in which services have virtual addresses.
	VIPFormat = 3
	// MTUFormat is the first format in which nodes tell their MTU.
	MTUFormat = 3
	// AddressFormat is the first format in which networks have IPv6, fixed
	// addresses and the networks of hosts, and nodes tell theirs. It is also the
	// first one in which a network may belong to no stack, be handed from one
	// stack to another, and be waited for.
	AddressFormat = 4
	// RolloutFormat is the first format in which updates have a policy and an
	// end, and stacks go back.
	RolloutFormat = 4
)

// Command is one entry of the log: an envelope with exactly one body that is
// not nil. The store keeps parts of what a command points to, so a command
// must not be modified once it was applied.
type Command struct {
	// Time of the proposer; the only clock that Apply sees.
	Time time.Time `json:"time"`
	// RequestID of a user's command; empty is none. A repeat within the last
	// KeepRequests user commands returns the first result and changes nothing.
	// Ignored on all other commands. At most 128 bytes.
	RequestID string `json:"request_id,omitempty"`
	// Author of a user's command, for the history.
	Author string `json:"author,omitempty"`

	Bootstrap     *Bootstrap     `json:"bootstrap,omitempty"`      // cluster
	PutStack      *PutStack      `json:"put_stack,omitempty"`      // user
	RemoveStack   *RemoveStack   `json:"remove_stack,omitempty"`   // user
	ScaleService  *ScaleService  `json:"scale_service,omitempty"`  // user
	RollbackStack *RollbackStack `json:"rollback_stack,omitempty"` // user
	SteerService  *SteerService  `json:"steer_service,omitempty"`  // user
	MoveTasks     *MoveTasks     `json:"move_tasks,omitempty"`     // user
	PutContent    *PutContent    `json:"put_content,omitempty"`    // user
	PutDatum      *PutDatum      `json:"put_datum,omitempty"`      // user
	RemoveDatum   *RemoveDatum   `json:"remove_datum,omitempty"`   // user
	RemoveVolumes *RemoveVolumes `json:"remove_volumes,omitempty"` // user
	CreateVolume  *CreateVolume  `json:"create_volume,omitempty"`  // user
	MoveVolume    *MoveVolume    `json:"move_volume,omitempty"`    // user
	CreateNetwork *CreateNetwork `json:"create_network,omitempty"` // user
	RemoveNetwork *RemoveNetwork `json:"remove_network,omitempty"` // user
	SetNode       *SetNode       `json:"set_node,omitempty"`       // user
	SetRole       *SetRole       `json:"set_role,omitempty"`       // user
	RemoveNode    *RemoveNode    `json:"remove_node,omitempty"`    // user
	SetAuthority  *SetAuthority  `json:"set_authority,omitempty"`  // cluster
	PutNode       *PutNode       `json:"put_node,omitempty"`       // cluster
	SetNodeState  *SetNodeState  `json:"set_node_state,omitempty"` // cluster
	ApplyPlan     *ApplyPlan     `json:"apply_plan,omitempty"`     // reconciler
	Reports       *Reports       `json:"reports,omitempty"`        // agent
}

// KeepRequests is how many results of user commands are remembered for
// repeats.
const KeepRequests = 1000

// Bootstrap begins the life of a state, or its next incarnation after a
// recovery.
type Bootstrap struct {
	ClusterID string `json:"cluster_id"`
	// Incarnation is greater than the state's; the same one changes nothing.
	Incarnation uint64 `json:"incarnation"`
	// Format that the state shall use from now on, at most Format; 0 keeps it.
	Format int `json:"format,omitempty"`
	// VXLANPort is the UDP port of networks between hosts, chosen with the first
	// Bootstrap for ever; 0 is spec.VXLANPort. It needs AddressFormat.
	VXLANPort uint16 `json:"vxlan_port,omitempty"`
}

// PutStack declares a stack: the state shall be as it says.
type PutStack struct {
	Stack spec.Stack `json:"stack"`
	// Base is the StackRow.Version that the write is based on; 0 means that the
	// stack must not exist, nil that its version does not matter.
	Base *uint64 `json:"base,omitempty"`
	// Message for the history.
	Message string `json:"message,omitempty"`
	// KeepOthers keeps services that are not in Stack, with the networks and
	// volumes they use, as part of the new revision.
	KeepOthers bool `json:"keep_others,omitempty"`
}

// RemoveStack removes a stack; its tasks are ended by the reconciler.
type RemoveStack struct {
	Name string `json:"name"`
	// Volumes also deletes the data of every volume that the stack owns.
	Volumes bool `json:"volumes,omitempty"`
	// Base is as in PutStack.
	Base *uint64 `json:"base,omitempty"`
}

// ScaleService sets the number of tasks of a replicated service. It holds
// until the stack is applied with a number in its file.
type ScaleService struct {
	Stack    string `json:"stack"`
	Service  string `json:"service"`
	Replicas int    `json:"replicas"`
	// Base is the StackRow.Version that the write is based on; nil when it does
	// not matter.
	Base *uint64 `json:"base,omitempty"`
}

// RollbackStack takes a stack, or one service of it, back to an older revision.
// What it declared becomes a new revision. Volumes stay as they are.
type RollbackStack struct {
	Stack string `json:"stack"`
	// Service that goes back alone; empty for the whole stack.
	Service string `json:"service,omitempty"`
	// To is the revision to go back to; 0 is the last one that completed and
	// differs from what is declared.
	To uint64 `json:"to,omitempty"`
	// Base is as in PutStack.
	Base *uint64 `json:"base,omitempty"`
	// Message for the history; empty says what was done.
	Message string `json:"message,omitempty"`
}

// SteerAction is what a user wants of the update of a service.
type SteerAction string

// The actions.
const (
	// SteerPause stops an update that is under way before its next batch.
	SteerPause SteerAction = "pause"
	// SteerResume goes on with an update that was paused, by a person or because
	// it had failed; failures so far are forgotten.
	SteerResume SteerAction = "resume"
	// SteerRestart replaces all tasks, as an update does.
	SteerRestart SteerAction = "restart"
	// SteerPromote goes on behind the canary of an update.
	SteerPromote SteerAction = "promote"
	// SteerRun runs a job once more, also what has completed.
	SteerRun SteerAction = "run"
)

// SteerService steers the update of a service.
type SteerService struct {
	Stack   string      `json:"stack"`
	Service string      `json:"service"`
	Action  SteerAction `json:"action"`
}

// MoveTasks lets tasks that run be replaced by ones on nodes with fewer tasks, for
// as long as MoveFor. Tasks that are over, or on their way out, are left out.
type MoveTasks struct {
	Tasks []spec.TaskID `json:"tasks"`
}

// MoveFor is how long a task may move after somebody has asked for it. What finds no
// better node until then stays: nobody wants to be surprised by it later.
const MoveFor = 10 * time.Minute

// MaxReplicas is the largest number of replicas of a service.
const MaxReplicas = 100_000

// PutContent adds a part of a content. Parts come in order; sending a part
// again is harmless, and sending the first part with other bytes starts an
// incomplete content anew.
type PutContent struct {
	ID spec.ContentID `json:"id"`
	// Size of the whole content in bytes, 1 to MaxArchive.
	Size int `json:"size"`
	// Offset of Data in the content.
	Offset int `json:"offset"`
	// Data of at most spec.MaxChunk bytes.
	Data []byte `json:"data"`
}

// MaxArchive is the largest content in bytes as it is stored: spec.MaxContent
// of data and the headers of its archive.
const MaxArchive = 4 * spec.MaxContent

// PutDatum makes a secret or a config that exists by itself, for stacks that
// declare it external. Making what is there already changes nothing.
type PutDatum struct {
	Kind spec.DatumKind `json:"kind"`
	Name string         `json:"name"`
	// Content of the new version, which must be complete, and the Size of the
	// datum in it.
	Content spec.ContentID `json:"content"`
	Size    int            `json:"size"`
	// Render and Labels as in spec.Datum; nil, and no labels, keep what there is.
	Render *bool             `json:"render,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
	// Replace also takes another value than the datum has: its next version, which
	// all that use it get. Without it that is refused.
	Replace bool `json:"replace,omitempty"`
	// Base is the Datum.Version that the write is based on; 0 means that there
	// must be none, nil that it does not matter.
	Base *uint64 `json:"base,omitempty"`
}

// RemoveDatum removes a secret or a config that exists by itself and that
// nobody uses.
type RemoveDatum struct {
	Kind spec.DatumKind `json:"kind"`
	Name string         `json:"name"`
}

// RemoveVolumes deletes volumes and their data, by cluster-wide name: all of
// them or, when one is unknown or in use, none.
type RemoveVolumes struct {
	Names []string `json:"names"`
}

// CreateVolume makes a volume that belongs to no stack. It stays until
// RemoveVolumes.
type CreateVolume struct {
	// Name in the whole cluster.
	Name string          `json:"name"`
	Spec spec.VolumeSpec `json:"spec"`
	// Home is where its data is to be; empty leaves that to its first user.
	Home spec.NodeID `json:"home,omitempty"`
}

// MoveVolume has the data of a volume copied to another node, which then is its
// home. To its home it takes a move back; a volume without home gets one.
type MoveVolume struct {
	Name string      `json:"name"` // cluster-wide
	To   spec.NodeID `json:"to"`
	// Stop also takes a volume that is in use: its users are stopped until it has
	// moved.
	Stop bool `json:"stop,omitempty"`
}

// CreateNetwork makes a network that belongs to no stack. It stays until
// RemoveNetwork.
type CreateNetwork struct {
	// Name in the whole cluster.
	Name string           `json:"name"`
	Spec spec.NetworkSpec `json:"spec"`
}

// RemoveNetwork removes a network that CreateNetwork made and no service uses.
type RemoveNetwork struct {
	Name string `json:"name"`
}

// SetNode changes what the user decides of a node.
type SetNode struct {
	ID spec.NodeID `json:"id"`
	// Availability, unless nil.
	Availability *spec.Availability `json:"availability,omitempty"`
	// Labels to set; nil removes the label. Others stay.
	Labels map[string]*string `json:"labels,omitempty"`
	// StopPinned, with the availability NodeDrain, also stops tasks that cannot
	// move because their data is here.
	StopPinned bool `json:"stop_pinned,omitempty"`
}

// SetRole makes a worker a manager or a manager a worker. Raft follows later:
// the table of nodes says who shall be a voter. The last manager stays one.
type SetRole struct {
	ID   spec.NodeID   `json:"id"`
	Role spec.NodeRole `json:"role"`
}

// RemoveNode takes a node out of the cluster: its tasks are lost and its
// certificate is worth nothing from now on. A node that is ready is removed
// only with Force, the last manager never.
type RemoveNode struct {
	ID    spec.NodeID `json:"id"`
	Force bool        `json:"force,omitempty"`
}

// SetAuthority replaces the certificate authority.
type SetAuthority struct {
	Authority spec.Authority `json:"authority"`
	// Base is the Authority.Version that the write is based on; 0 means that
	// there must be none.
	Base uint64 `json:"base"`
}

// PutNode adds a node or changes what membership knows of it. The node counts
// as ready afterwards. No two nodes may have one name, and a node keeps its
// key and its role (SetRole changes that).
type PutNode struct {
	ID      spec.NodeID `json:"id"`
	Name    string      `json:"name"`
	Address string      `json:"address"`
	// Role of a new node. Empty means that the node must exist: a node that
	// tells its address must not come back that way after it was removed.
	Role spec.NodeRole `json:"role"`
	// Key as in spec.Node; empty leaves it as it is.
	Key string `json:"key,omitempty"`
}

// SetNodeState says that a node was found alive or dead.
type SetNodeState struct {
	ID    spec.NodeID    `json:"id"`
	State spec.NodeState `json:"state"`
}

// ApplyPlan applies the parts of a plan, each as a whole or not at all.
type ApplyPlan struct {
	// Epoch is the term of the leader that made the plan. Below the highest
	// that the state has seen, every part is rejected.
	Epoch uint64      `json:"epoch"`
	Parts []spec.Part `json:"parts"`
}

// Reports are what nodes observed. What is out of date in them is ignored, so
// repeating them is harmless.
type Reports struct {
	Reports []spec.Report `json:"reports"`
}

// Result is the answer of Apply.
type Result struct {
	// Index of the entry; for a repeated request that of the first one.
	Index uint64
	// Err says why the command was refused as a whole; the objects of the
	// state are then as they were.
	Err error
	// Parts has an error per part of ApplyPlan; nil means applied.
	Parts []error
	// Revision of the stack after PutStack; the old number when nothing
	// changed.
	Revision uint64
	// Changed says whether any object changed.
	Changed bool
}

// Kind returns the JSON name of the command's body ("put_stack"), or "" when
// the command does not have exactly one.
func (c *Command) Kind() string {
	kind := ""
	for _, b := range []struct {
		name string
		set  bool
	}{
		{"bootstrap", c.Bootstrap != nil},
		{"put_stack", c.PutStack != nil},
		{"remove_stack", c.RemoveStack != nil},
		{"scale_service", c.ScaleService != nil},
		{"rollback_stack", c.RollbackStack != nil},
		{"steer_service", c.SteerService != nil},
		{"move_tasks", c.MoveTasks != nil},
		{"put_content", c.PutContent != nil},
		{"put_datum", c.PutDatum != nil},
		{"remove_datum", c.RemoveDatum != nil},
		{"remove_volumes", c.RemoveVolumes != nil},
		{"create_volume", c.CreateVolume != nil},
		{"move_volume", c.MoveVolume != nil},
		{"create_network", c.CreateNetwork != nil},
		{"remove_network", c.RemoveNetwork != nil},
		{"set_node", c.SetNode != nil},
		{"set_role", c.SetRole != nil},
		{"remove_node", c.RemoveNode != nil},
		{"set_authority", c.SetAuthority != nil},
		{"put_node", c.PutNode != nil},
		{"set_node_state", c.SetNodeState != nil},
		{"apply_plan", c.ApplyPlan != nil},
		{"reports", c.Reports != nil},
	} {
		if !b.set {
			continue
		}
		if kind != "" {
			return ""
		}
		kind = b.name
	}
	return kind
}

// user reports whether the command is one of a person, whose results are
// remembered by request ID.
func (c *Command) user() bool {
	return c.PutStack != nil || c.RemoveStack != nil || c.ScaleService != nil || c.RollbackStack != nil || c.SteerService != nil ||
		c.PutContent != nil || c.RemoveVolumes != nil || c.CreateVolume != nil || c.MoveVolume != nil || c.CreateNetwork != nil || c.RemoveNetwork != nil || c.SetNode != nil ||
		c.SetRole != nil || c.RemoveNode != nil || c.PutDatum != nil || c.RemoveDatum != nil || c.MoveTasks != nil
}

// NeedsFormat returns the lowest format that has all that the command says. A
// state of a lower one refuses the command; whoever proposes must ask first,
// because an older manager stops when it finds the entry in its log.
func (c *Command) NeedsFormat() int {
	switch {
	case c.usesData(), c.PutStack != nil && usesAddresses(&c.PutStack.Stack), c.CreateNetwork != nil, c.RemoveNetwork != nil,
		c.RollbackStack != nil, c.SteerService != nil, c.CreateVolume != nil, c.MoveVolume != nil, c.MoveTasks != nil,
		c.ApplyPlan != nil && slices.ContainsFunc(c.ApplyPlan.Parts, func(p spec.Part) bool { return givesIPv6(p) || pairs(&p) || rollsOut(&p) }),
		c.PutStack != nil && anyService(&c.PutStack.Stack, func(s *spec.ServiceSpec) bool {
			return newInTemplate(s) || hasPolicy(s) || isJob(s) || s.Placement.Priority != 0 || s.Placement.Preempt
		}),
		c.Reports != nil && slices.ContainsFunc(c.Reports.Reports, func(r spec.Report) bool {
			return r.Info != nil && r.Info.Subnets+r.Info.Interfaces != "" || r.VolumesFetched != nil || r.Fetched != nil ||
				slices.ContainsFunc(r.Tasks, func(t spec.TaskReport) bool { return !t.Status.HealthySince.IsZero() })
		}):
		return 4
	case c.PutStack != nil && anyService(&c.PutStack.Stack, func(s *spec.ServiceSpec) bool { return s.EndpointMode != "" }),
		c.ApplyPlan != nil && slices.ContainsFunc(c.ApplyPlan.Parts, func(p spec.Part) bool { return p.Service != nil && p.Service.VIPs != nil }),
		c.Reports != nil && slices.ContainsFunc(c.Reports.Reports, func(r spec.Report) bool { return r.Info != nil && r.Info.MTU != 0 }):
		return 3
	case c.SetRole != nil, c.RemoveNode != nil, c.SetAuthority != nil,
		c.PutNode != nil && (c.PutNode.Key != "" || c.PutNode.Role == ""),
		c.SetNode != nil && c.SetNode.StopPinned,
		c.PutStack != nil && anyService(&c.PutStack.Stack, func(s *spec.ServiceSpec) bool { return s.Template.Exclusive }),
		c.Reports != nil && slices.ContainsFunc(c.Reports.Reports, tellsOfCluster):
		return 2
	}
	return 1
}

// usesAddresses reports whether a stack has a network, an attachment or a port
// that programs before AddressFormat do not know.
func usesAddresses(s *spec.Stack) bool {
	for _, n := range s.Networks { // any order gives the same answer
		if n.IPv6 != nil || n.Range != "" || n.Gateway != "" || n.Reserved != nil || n.Parent != "" || n.MTU != 0 {
			return true
		}
	}
	return anyService(s, func(svc *spec.ServiceSpec) bool {
		return svc.Template.FixedAddress() != "" ||
			slices.ContainsFunc(svc.Template.Networks, func(a spec.Attachment) bool { return a.Interface != "" || a.NoServiceName }) || slices.ContainsFunc(svc.Ports, func(p spec.Port) bool {
			return p.First != 0 || p.HostIP == "0.0.0.0" || p.HostIP == "::"
		})
	})
}

// givesIPv6 reports whether a part gives an IPv6 subnet or address to anything,
// or an interface its name.
func givesIPv6(p spec.Part) bool {
	six := func(list []spec.Address) bool {
		return slices.ContainsFunc(list, func(a spec.Address) bool { return a.IP6 != "" || a.Interface != "" })
	}
	return slices.ContainsFunc(p.Networks, func(n spec.NetworkNumbers) bool { return n.Subnet6 != "" || n.Gateway6 != "" }) ||
		slices.ContainsFunc(p.Create, func(t spec.Task) bool { return six(t.Addresses) }) ||
		slices.ContainsFunc(p.Change, func(c spec.TaskChange) bool { return six(c.Addresses) }) ||
		p.Service != nil && p.Service.VIPs != nil && slices.ContainsFunc(*p.Service.VIPs, func(v spec.ServiceVIP) bool { return v.Address6 != "" })
}

// usesData reports whether a command has to do with secrets or configs as
// AddressFormat knows them; newInTemplate says the same of templates.
func (c *Command) usesData() bool {
	if c.PutStack != nil {
		s := &c.PutStack.Stack
		return len(s.Secrets)+len(s.Configs) > 0 || anyService(s, func(svc *spec.ServiceSpec) bool { return svc.Live != nil })
	}
	return c.PutDatum != nil || c.RemoveDatum != nil || c.PutContent != nil && c.PutContent.ID.Sealed() ||
		c.Reports != nil && slices.ContainsFunc(c.Reports.Reports, func(r spec.Report) bool {
			return slices.ContainsFunc(r.Tasks, func(t spec.TaskReport) bool { return t.Status.Files != nil })
		})
}

// hasPolicy reports whether a service says how it is to be updated.
func hasPolicy(s *spec.ServiceSpec) bool {
	return s.Update != (spec.UpdateConfig{}) || s.Rollback != (spec.UpdateConfig{}) || s.ProgressDeadline != 0 || s.Canary != (spec.Canary{})
}

// isJob reports whether a service is a job, or has what came with jobs.
func isJob(s *spec.ServiceSpec) bool {
	return s.Mode.Job() || s.MaxConcurrent != 0 || slices.ContainsFunc(s.DependsOn, func(d spec.Dependency) bool {
		return d.Restart || d.Condition == spec.DependencyCompleted
	})
}

// rollsOut reports whether a part has what programs before RolloutFormat do not
// know of updates.
func rollsOut(p *spec.Part) bool {
	bare := func(u *spec.UpdateStatus) bool {
		return *u == spec.UpdateStatus{State: u.State, Message: u.Message, Since: u.Since}
	}
	return p.Stack != nil || p.Rollback != nil || p.Service != nil && p.Service.Fetch != nil || p.Service != nil && p.Service.Update != nil && !bare(p.Service.Update) ||
		slices.ContainsFunc(p.Create, func(t spec.Task) bool { return t.Restarts != 0 })
}

func anyService(s *spec.Stack, is func(*spec.ServiceSpec) bool) bool {
	for _, svc := range s.Services { // any order gives the same answer
		if is(&svc) {
			return true
		}
	}
	return false
}

func tellsOfCluster(r spec.Report) bool {
	return r.Info != nil && (r.Info.Format != 0 || r.Info.Issuer != "" || r.Info.Trusts != "")
}

// Encode returns the form of c in the log: the format byte, which is the lowest
// that has what c says, then JSON. It refuses a command without exactly one
// body.
func Encode(c Command) ([]byte, error) {
	if c.Kind() == "" {
		return nil, spec.Invalidf("encode command: it must have exactly one body")
	}
	b, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode command %s: %w", c.Kind(), err)
	}
	return append([]byte{byte(c.NeedsFormat())}, b...), nil
}

// Decode is the inverse of Encode. An unknown format, command or field is an
// error: a manager that does not understand an entry must stop rather than
// skip it.
func Decode(b []byte) (Command, error) {
	var c Command
	if len(b) == 0 {
		return c, errors.New("decode command: the entry is empty")
	}
	if b[0] == 0 || b[0] > Format {
		return c, fmt.Errorf("decode command: the entry has format %d, this program knows 1 to %d: upgrade it", b[0], Format)
	}
	if err := decodeStrict(b[1:], &c); err != nil {
		return Command{}, fmt.Errorf("decode command: %w", err)
	}
	if c.Kind() == "" {
		return Command{}, errors.New("decode command: the entry must have exactly one body")
	}
	if c.Bootstrap != nil && c.Bootstrap.Format > Format {
		return Command{}, fmt.Errorf("decode command: it raises the format to %d, this program knows 1 to %d: upgrade it", c.Bootstrap.Format, Format)
	}
	return c, nil
}

// decodeStrict decodes exactly one JSON value without unknown fields.
func decodeStrict(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is data behind the value")
	}
	return nil
}
