package spec

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
)

// HostGateway is what a further host may have as its address: that of the host,
// as the task sees it.
const HostGateway = "host-gateway"

// Template is everything that decides how a container runs, and nothing else.
// Its hash is the ID of the Revision: two templates with the same hash give
// the same container. Zero values mean "as the image or the runtime has it".
type Template struct {
	// Image as the user wrote it, normalised ("docker.io/library/nginx:1.27").
	Image string `json:"image"`
	// Digest of the image index that Image was pinned to.
	Digest string `json:"digest,omitempty"`
	// Platform "os/arch[/variant]"; empty is the node's.
	Platform string `json:"platform,omitempty"`

	// Entrypoint and Command replace the image's; an empty list that is not
	// nil clears the image's. Setting Entrypoint also drops the image's command.
	Entrypoint []string `json:"entrypoint"`
	Command    []string `json:"command"`
	// Env is added to the image's.
	Env         map[string]string `json:"env,omitempty"`
	User        string            `json:"user,omitempty"`
	GroupAdd    []string          `json:"group_add,omitempty"`
	WorkingDir  string            `json:"working_dir,omitempty"`
	Hostname    string            `json:"hostname,omitempty"`
	Domainname  string            `json:"domainname,omitempty"`
	TTY         bool              `json:"tty,omitempty"`
	StdinOpen   bool              `json:"stdin_open,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	// Placeholders: Hostname, the values of Env (of PreStart, too) and Labels, and sources of binds
	// and subpaths of mounts may hold placeholders such as {{.Task.Slot}}, which
	// the node replaces for each task.
	Placeholders bool `json:"placeholders,omitempty"`

	Mounts []Mount `json:"mounts,omitempty"`
	// SecretEnv are secrets that the container gets as environment variables,
	// by ascending name. They win over Env.
	SecretEnv []SecretVar `json:"secret_env,omitempty"`

	// NetworkMode is empty (attach to Networks), "host", "none" or "service:NAME":
	// the network of the task of service NAME that is at the same place.
	NetworkMode string       `json:"network_mode,omitempty"`
	Networks    []Attachment `json:"networks,omitempty"`
	DNS         []string     `json:"dns,omitempty"`
	DNSSearch   []string     `json:"dns_search,omitempty"`
	DNSOptions  []string     `json:"dns_options,omitempty"`
	// ExtraHosts are "name=address" lines of /etc/hosts, in order; the address
	// may be HostGateway.
	ExtraHosts []string `json:"extra_hosts,omitempty"`

	Health *HealthCheck `json:"health,omitempty"`
	// PreStart run to their end, one after the other, before the first start of
	// the task's own container: once for each task, not for each attempt.
	PreStart []InitContainer `json:"pre_start,omitempty"`
	// PostStart are run one after the other in the container when its process has
	// been started; until all have succeeded the task is not ready, and a failure
	// ends the attempt. PreStop are run before the stop signal, within StopGrace.
	PostStart  []Hook   `json:"post_start,omitempty"`
	PreStop    []Hook   `json:"pre_stop,omitempty"`
	Restart    Restart  `json:"restart"`
	StopSignal string   `json:"stop_signal,omitempty"`
	StopGrace  Duration `json:"stop_grace"`

	Resources   Resources         `json:"resources,omitzero"`
	Ulimits     map[string]Ulimit `json:"ulimits,omitempty"`
	Sysctls     map[string]string `json:"sysctls,omitempty"`
	CapAdd      []string          `json:"cap_add,omitempty"`
	CapDrop     []string          `json:"cap_drop,omitempty"`
	Privileged  bool              `json:"privileged,omitempty"`
	SecurityOpt []string          `json:"security_opt,omitempty"`
	// Seccomp takes the place of the default profile; nil keeps it.
	Seccomp  *SeccompProfile `json:"seccomp,omitempty"`
	ReadOnly bool            `json:"read_only,omitempty"`
	// Init runs a small init as PID 1 that reaps zombies and forwards signals.
	Init bool `json:"init,omitempty"`
	// Runtime is the OCI runtime, one of Runtimes; empty is the node's.
	Runtime string `json:"runtime,omitempty"`
	// Exclusive promises that no two tasks of one place ever run at the same
	// time, on whatever nodes: the container runs only while its node holds a
	// lease from the managers.
	Exclusive bool `json:"exclusive,omitempty"`
	// PIDMode, IPCMode and UTSMode are empty (own namespace) or "host"; IPCMode
	// may also be "none": own namespace, and no /dev/shm.
	PIDMode string `json:"pid_mode,omitempty"`
	IPCMode string `json:"ipc_mode,omitempty"`
	UTSMode string `json:"uts_mode,omitempty"`
	// CgroupMode is the namespace of control groups: "private", "host", or
	// empty: private on nodes with cgroup v2, unless the container is privileged.
	CgroupMode string `json:"cgroup_mode,omitempty"`
	// Umask of the first process and its descendants, permission bits; nil is
	// the runtime's, 022.
	Umask   *uint32  `json:"umask,omitempty"`
	Devices []Device `json:"devices,omitempty"`
	// DeviceRules say which devices may be used beside those, without making
	// nodes for them.
	DeviceRules []DeviceRule `json:"device_rules,omitempty"`
	// DeviceRequests ask for devices that the node finds, by CDI.
	DeviceRequests []DeviceRequest `json:"device_requests,omitempty"`
	Log            LogSpec         `json:"log,omitzero"`
}

// MountType is the kind of a mount.
type MountType string

// The kinds of mounts.
const (
	MountVolume  MountType = "volume"  // a volume of the stack, or an anonymous one
	MountBind    MountType = "bind"    // an absolute path of the node
	MountTmpfs   MountType = "tmpfs"   // memory
	MountContent MountType = "content" // files that travel with the stack
	MountImage   MountType = "image"   // the files of another image, read-only
	MountSecret  MountType = "secret"  // a secret of the stack, as a file in memory
	MountConfig  MountType = "config"  // a config of the stack, as a file in memory
)

// Mount is one mount of a container.
type Mount struct {
	Type MountType `json:"type"`
	// Source: for a volume its stack-scoped name, empty for an anonymous one;
	// for a secret or config its stack-scoped name; for a bind an absolute path
	// of the node; for an image its normalised reference; else empty.
	Source string `json:"source,omitempty"`
	// Digest of the index of the image in Source that was pinned.
	Digest   string `json:"digest,omitempty"`
	Target   string `json:"target"`
	ReadOnly bool   `json:"read_only,omitempty"`

	// Content of a content mount, and the version of a secret or config whose
	// change replaces tasks; filled in there when the stack is written.
	Content ContentID `json:"content,omitempty"`
	// OnChange says what a new version of a secret or config does.
	OnChange OnChange `json:"on_change,omitempty"`
	// Render as in DatumSpec; filled in when the stack is written.
	Render bool `json:"render,omitempty"`
	// UID, GID and Mode of the files of a content, secret or config mount; Mode
	// also of a tmpfs (octal permission bits). nil keeps what the content says,
	// and is owner 0 and 0444 for a secret or config.
	UID  *uint32 `json:"uid,omitempty"`
	GID  *uint32 `json:"gid,omitempty"`
	Mode *uint32 `json:"mode,omitempty"`

	// Size of a tmpfs in bytes; 0 is the kernel's default of half the memory.
	Size int64 `json:"size,omitempty"`
	// Options of a tmpfs in short form ("noexec", "size=64m"), passed to mount.
	Options []string `json:"options,omitempty"`
	// Propagation of a bind: rprivate (default), private, rshared, …
	Propagation string `json:"propagation,omitempty"`
	// MustExist: a missing source of a bind is an error instead of being made.
	MustExist bool `json:"must_exist,omitempty"`
	// NonRecursive: submounts of a bind are not carried along.
	NonRecursive bool `json:"non_recursive,omitempty"`
	// Submounts says of a read-only bind what becomes of the mounts below its
	// source: "writable" leaves them as they are, "readonly" makes them read-only
	// or fails, and empty makes them so where the node can.
	Submounts string `json:"submounts,omitempty"`
	// NoCopy: a new volume is not filled from the image's folder.
	NoCopy bool `json:"no_copy,omitempty"`
	// Subpath of the volume or image that is mounted instead of its root.
	Subpath string `json:"subpath,omitempty"`
}

// Attachment puts a task on a network.
type Attachment struct {
	// Network is its stack-scoped name.
	Network string `json:"network"`
	// Aliases are further names of the service on this network.
	Aliases []string `json:"aliases,omitempty"`
	// IP and IP6 are the addresses that its one task has, without prefix length;
	// empty takes any.
	IP  string `json:"ip,omitempty"`
	IP6 string `json:"ip6,omitempty"`
	// MAC address that its one task has, "0a:00:00:00:00:01"; empty is made of
	// the address.
	MAC string `json:"mac,omitempty"`
	// Interface is the name of the device in the container; empty is the first
	// of eth0, eth1, … that no other one has.
	Interface string `json:"interface,omitempty"`
	// NoServiceName: the name of the service alone leads nowhere on this network,
	// but its aliases and other names do.
	NoServiceName bool `json:"no_service_name,omitempty"`
}

// FixedAddress returns an IP or MAC address that the template asks for, the
// first; empty when it takes any. One task at a time can run from a template with one.
func (t *Template) FixedAddress() string {
	for _, a := range t.Networks {
		if ip := cmp.Or(a.IP, a.IP6, a.MAC); ip != "" {
			return ip
		}
	}
	return ""
}

// HealthCheck says how the health of a container is found. Test follows
// Docker: ["CMD", …], ["CMD-SHELL", line] or ["NONE"]; without one the image's
// test runs. Zero times and retries are the image's, or else the defaults of
// Docker.
type HealthCheck struct {
	Test     []string `json:"test"`
	Interval Duration `json:"interval"`
	Timeout  Duration `json:"timeout"`
	// StartPeriod is how long failures do not count after the start.
	StartPeriod Duration `json:"start_period,omitempty"`
	// StartInterval is the interval during StartPeriod.
	StartInterval Duration `json:"start_interval,omitempty"`
	// Retries is how many failures in a row make a container unhealthy.
	Retries int `json:"retries"`
}

// InitContainer is a container that comes before a task's own, with the network
// and the volumes of that; what it does not say here it has of it as well.
type InitContainer struct {
	// Image and Digest as in Template.
	Image  string `json:"image"`
	Digest string `json:"digest,omitempty"`
	// Entrypoint, Command, Env, User and WorkingDir are all that there is of
	// each, beside what the image says.
	Entrypoint []string          `json:"entrypoint"`
	Command    []string          `json:"command"`
	Env        map[string]string `json:"env,omitempty"`
	User       string            `json:"user,omitempty"`
	WorkingDir string            `json:"working_dir,omitempty"`
	Privileged bool              `json:"privileged,omitempty"`
}

// Stage returns the template of the n-th container of PreStart, from 1; for 0
// that of the task's own.
func (t *Template) Stage(n int) Template {
	out := *t
	out.PreStart = nil
	if n == 0 {
		return out
	}
	i := &t.PreStart[n-1]
	out.Image, out.Digest, out.Entrypoint, out.Command = i.Image, i.Digest, i.Entrypoint, i.Command
	out.Env, out.User, out.WorkingDir, out.Privileged = i.Env, i.User, i.WorkingDir, i.Privileged
	out.PostStart, out.PreStop, out.Health = nil, nil, nil
	return out
}

// Hook is a command that is run in a running container.
type Hook struct {
	Command []string `json:"command"`
	// User and WorkingDir, when not empty, replace those of the container.
	User       string `json:"user,omitempty"`
	WorkingDir string `json:"working_dir,omitempty"`
	// Privileged gives the command all capabilities.
	Privileged bool `json:"privileged,omitempty"`
	// Env is added to the container's.
	Env map[string]string `json:"env,omitempty"`
}

// RestartCondition says after which ends a container is started again.
type RestartCondition string

// The restart conditions.
const (
	RestartAny       RestartCondition = "any"
	RestartOnFailure RestartCondition = "on-failure"
	RestartNone      RestartCondition = "none"
)

// Restart is the restart policy, obeyed by the agent alone within a task.
type Restart struct {
	Condition RestartCondition `json:"condition"`
	// Delay before a restart; 0 uses the back-off 0, 1, 2, 4 … 300 s. When set
	// it takes the place of the back-off's base.
	Delay Duration `json:"delay,omitempty"`
	// MaxAttempts is the number of restarts; 0 is no limit. Once they are used
	// up, the place stays empty until the service changes.
	MaxAttempts int `json:"max_attempts,omitempty"`
	// Window after which an attempt that still runs counts as a success and
	// the count starts anew; 0 is one minute, NoWindow is never.
	Window Duration `json:"window,omitempty"`
}

// Resources are limits and reservations; 0 is none.
type Resources struct {
	// CPU limit in billionths of a core.
	NanoCPUs int64 `json:"nano_cpus,omitempty"`
	// Memory limit in bytes.
	Memory int64 `json:"memory,omitempty"`
	// MemorySwap is memory plus swap in bytes; -1 is unlimited swap.
	MemorySwap int64 `json:"memory_swap,omitempty"`
	// Pids is the largest number of processes; 0 is the default of 4096, -1
	// unlimited.
	Pids      int64  `json:"pids,omitempty"`
	CPUShares int64  `json:"cpu_shares,omitempty"`
	CPUQuota  int64  `json:"cpu_quota,omitempty"`  // microseconds per CPUPeriod
	CPUPeriod int64  `json:"cpu_period,omitempty"` // microseconds
	Cpuset    string `json:"cpuset,omitempty"`
	// ReserveCPUs (billionths of a core) and ReserveMemory (bytes) count in
	// placement only.
	ReserveCPUs   int64 `json:"reserve_cpus,omitempty"`
	ReserveMemory int64 `json:"reserve_memory,omitempty"`
	// ReserveGeneric are numbers of what the labels of nodes say that they have,
	// by kind; they count in placement only.
	ReserveGeneric map[string]int64 `json:"reserve_generic,omitempty"`
	// ShmSize is the size of /dev/shm in bytes; 0 is 64 MiB.
	ShmSize     int64 `json:"shm_size,omitempty"`
	OOMScoreAdj int   `json:"oom_score_adj,omitempty"`
	// KeepOnOOM: processes that want more memory than the limit wait for some to
	// become free instead of being killed. cgroup v1 only.
	KeepOnOOM bool `json:"keep_on_oom,omitempty"`
	// Swappiness from 0 to 100 is how readily memory is swapped out; nil is the
	// node's. cgroup v1 only.
	Swappiness *int64 `json:"swappiness,omitempty"`
	// RealtimeRuntime is how long, in microseconds of each RealtimePeriod, the
	// processes may be scheduled in real time. cgroup v1 only.
	RealtimeRuntime int64 `json:"realtime_runtime,omitempty"`
	RealtimePeriod  int64 `json:"realtime_period,omitempty"`
	// BlockIO bounds the use of block devices; nil is without bounds.
	BlockIO *BlockIO `json:"block_io,omitempty"`
}

// BlockIO are limits on the use of block devices.
type BlockIO struct {
	// Weight against other containers, from 10 to 1000; 0 is the kernel's.
	Weight uint16 `json:"weight,omitempty"`
	// WeightDevices are weights for single devices.
	WeightDevices []DeviceWeight `json:"weight_devices,omitempty"`
	// Bytes and operations per second.
	ReadBytes  []DeviceRate `json:"read_bytes,omitempty"`
	WriteBytes []DeviceRate `json:"write_bytes,omitempty"`
	ReadOps    []DeviceRate `json:"read_ops,omitempty"`
	WriteOps   []DeviceRate `json:"write_ops,omitempty"`
}

// DeviceWeight is the weight for one block device of the node.
type DeviceWeight struct {
	Path   string `json:"path"`
	Weight uint16 `json:"weight"` // 10 to 1000
}

// DeviceRate is what one block device of the node may carry per second.
type DeviceRate struct {
	Path string `json:"path"`
	Rate uint64 `json:"rate"`
}

// Ulimit is one resource limit of the processes.
type Ulimit struct {
	Soft int64 `json:"soft"`
	Hard int64 `json:"hard"`
}

// Device is a device node of the host in the container.
type Device struct {
	Source      string `json:"source"`
	Target      string `json:"target"`
	Permissions string `json:"permissions"` // a subset of "rwm"
}

// Runtimes are the OCI runtimes that a template may ask for, and the programs
// of a node that they are: each takes the arguments of runc.
var Runtimes = map[string]string{
	"crun": "crun", "krun": "krun", "nvidia": "nvidia-container-runtime", "runc": "runc", "runsc": "runsc", "sysbox-runc": "sysbox-runc", "youki": "youki",
}

// DeviceRule allows the use of devices by their numbers.
type DeviceRule struct {
	Type string `json:"type"` // "c", "b", or "a" for both
	// Major and Minor; -1 is all.
	Major       int64  `json:"major"`
	Minor       int64  `json:"minor"`
	Permissions string `json:"permissions"` // a subset of "rwm"
}

// DeviceRequest asks for devices by what they are: for all of the Names, or
// for Count of those of a class. Devices are not counted between tasks.
type DeviceRequest struct {
	// Names in full, such as "vendor.com/net=eth0".
	Names []string `json:"names,omitempty"`
	// Vendor of the devices, such as "nvidia.com"; empty is the only one that
	// the node has devices of the class of.
	Vendor string `json:"vendor,omitempty"`
	// Class of the devices, such as "gpu"; empty with Names.
	Class string `json:"class,omitempty"`
	// IDs of the devices within the class, or else their number; -1 is all.
	IDs   []string `json:"ids,omitempty"`
	Count int      `json:"count,omitempty"`
}

// LogSpec bounds the log of a task. The zero value keeps 3 files of 10 MiB.
type LogSpec struct {
	// Disabled drops the output.
	Disabled bool  `json:"disabled,omitempty"`
	MaxSize  int64 `json:"max_size,omitempty"` // bytes per file
	MaxFiles int   `json:"max_files,omitempty"`
}

// Revision is a template as it is stored, once for all tasks that run it.
type Revision struct {
	ID       RevisionID `json:"id"`
	Stack    string     `json:"stack"`
	Service  string     `json:"service"`
	Template Template   `json:"template"`
}

// HashTemplate returns the ID of the revision that t makes: the first 20 hex
// digits of SHA-256 over its canonical encoding (fields in order of
// declaration, map keys sorted; encoding/json guarantees both), prefixed by
// the stack and the service so that equal templates of two services stay two
// revisions.
func HashTemplate(stack, service string, t *Template) RevisionID {
	b, err := json.Marshal(t)
	if err != nil {
		panic(fmt.Sprintf("spec: a template does not encode: %v", err)) // no field can fail
	}
	h := sha256.New()
	fmt.Fprintf(h, "%s/%s\n", stack, service)
	h.Write(b)
	return RevisionID(hex.EncodeToString(h.Sum(nil))[:20])
}
