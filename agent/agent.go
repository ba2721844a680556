package agent

import (
	"context"
	"io"
	"net/netip"
	"time"

	"wherry.dev/spec"
)

// Images makes images present on the node. Safe for concurrent use; calls for
// the same image share one pull.
type Images interface {
	// Ensure returns when the image is present and unpacked, pulling it when it
	// is not. Errors of class spec.ErrNotFound and spec.ErrInvalid (no such
	// image, wrong platform, refused credentials) will not go away by trying
	// again soon; all others may.
	Ensure(ctx context.Context, r ImageRequest) (ImageConfig, error)
}

// ImageRequest names an image as a template does.
type ImageRequest struct {
	Image    string // normalised reference
	Digest   string // of the index; empty takes what the tag names
	Platform string // empty is the node's
}

// ImageConfig is what an image says about how to run it.
type ImageConfig struct {
	// Ref is the name by which the runtime finds the image.
	Ref        string
	Digest     string
	Entrypoint []string
	Cmd        []string
	Env        []string
	User       string
	WorkingDir string
	StopSignal string
	// Volumes are the paths that the image declares as volumes, sorted.
	Volumes []string
	Health  *spec.HealthCheck
}

// Runtime runs containers, one per task. It must be safe for concurrent use
// for different tasks; calls for one task come one after the other. All calls
// are level-triggered: doing what is done already is no error.
//
// The life of a container: Create; then any number of times Start and the end
// of its process; then Remove. The container's file system is kept between
// attempts. Containers outlive the caller and are found again by List.
type Runtime interface {
	// Create makes the container and its file system, not its process. A
	// container that exists already is left as it is.
	Create(ctx context.Context, c Container) error
	// Start starts the process anew and returns its PID. The previous process
	// must have ended. A command that does not exist or may not be executed is
	// of class spec.ErrInvalid.
	Start(ctx context.Context, t spec.TaskID) (pid int, err error)
	// Kill sends a signal to the first process, or with all to every process.
	// A container without process is no error.
	Kill(ctx context.Context, t spec.TaskID, signal int, all bool) error
	// Remove kills what runs and removes the container and its file system.
	Remove(ctx context.Context, t spec.TaskID) error
	// List tells the state of every container of ours on this node.
	List(ctx context.Context) ([]ContainerState, error)
}

// Execer runs further processes inside a running container.
type Execer interface {
	// Exec returns when the process has ended and its output was copied, or
	// when ctx ends, in which case the process is killed. A container that does
	// not run is of class spec.ErrConflict; a command that does not exist of
	// class spec.ErrInvalid.
	Exec(ctx context.Context, t spec.TaskID, e Exec) (exitCode int, err error)
}

// Exchanger changes the files that a running container sees.
type Exchanger interface {
	// Exchange puts other sources in the place of what is mounted at the targets
	// of a container. Whoever opens one of them finds either the old file or the
	// new one; what is open stays as it is. The mounts are as those that the
	// container was created with, whose sources stay those of its next start.
	// A container that does not run is of class spec.ErrConflict.
	Exchange(ctx context.Context, t spec.TaskID, mounts []Mount) error
}

// Tmpfs makes file systems that are in memory and never written to a disk.
type Tmpfs interface {
	// Mount makes one of an empty folder. One that it is already stays as it is.
	Mount(dir string) error
	// Unmount undoes that, with all that is in it. There may be none.
	Unmount(dir string) error
}

// Exec is a process to be run in a container.
type Exec struct {
	Args []string
	// Env is added to the container's; User and Dir replace its when not empty.
	Env  []string
	User string
	Dir  string
	TTY  bool
	// Privileged gives the process all capabilities.
	Privileged bool
	// Stdin, Stdout, Stderr may be nil. With TTY all output goes to Stdout.
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	// Resize delivers terminal sizes; nil when there are none.
	Resize <-chan WindowSize
}

// WindowSize is the size of a terminal in characters.
type WindowSize struct{ Width, Height uint16 }

// Container is everything a runtime needs to make a container; nothing in it
// has to be looked up any more.
type Container struct {
	Task    spec.TaskID
	Name    string // "shop.web.1"
	Stack   string
	Service string
	// Stage is 0 for the task's own container, and n for the n-th of those that
	// come before its start; Template is that of the stage. Fill is the Ref of the
	// image that volumes are filled from, when that is not Image.
	Stage int
	Fill  string
	// Hostname inside the container.
	Hostname string
	Template spec.Template
	Image    ImageConfig
	// NetNS is the path of the network namespace; empty is the host's.
	NetNS  string
	Mounts []Mount
	// EnvFile is a file of the node with further variables, each NAME=VALUE and
	// ended by a zero byte; empty is none. They win over the template's and are
	// to be written down nowhere.
	EnvFile string
	// Stdout and Stderr are paths of FIFOs, empty to discard the output. With
	// Template.TTY only Stdout is used.
	Stdout, Stderr string
}

// Mount is a mount whose source is a path of the node or an image.
type Mount struct {
	// Source path; empty for a tmpfs and for an image.
	Source string
	// Image mounts the files of an image, which Images.Ensure has returned by
	// this Ref, or those below Subpath of it.
	Image   string
	Subpath string
	Target  string
	// Tmpfs mounts memory with Options instead of Source.
	Tmpfs    bool
	ReadOnly bool
	// NonRecursive and Propagation as in spec.Mount.
	NonRecursive bool
	Propagation  string
	// Tree makes the mounts below Source read-only, too.
	Tree TreeMode
	// Options are further mount options.
	Options []string
	// CopyUp fills Source from the image's folder at Target before the first
	// start, keeping owners and modes, when Source is empty.
	CopyUp bool
}

// TreeMode says whether a read-only mount takes the mounts below its source
// along as read-only ones.
type TreeMode int

// The modes of trees.
const (
	TreeAsIs     TreeMode = iota
	TreeReadOnly          // where kernel and OCI runtime can, else as it is
	TreeStrict            // or class spec.ErrInvalid
)

// RunState is the state of a container's process.
type RunState string

// The states of a container's process.
const (
	RunCreated RunState = "created" // no process yet
	RunRunning RunState = "running"
	RunStopped RunState = "stopped" // the process has ended
)

// ContainerState is what the runtime knows of one container.
type ContainerState struct {
	Task  spec.TaskID
	State RunState
	// Stage as in Container.
	Stage int
	PID   int
	// ExitCode, Ended and OOM are set when State is RunStopped. ExitCode is
	// 128 + signal for a process that a signal killed, as runtimes report it.
	ExitCode int
	Ended    time.Time
	OOM      bool
}

// Network makes the network side of tasks. Safe for concurrent use.
type Network interface {
	// Attach returns the path of the task's namespace, made and connected, or
	// "" for the host's. It is level-triggered. Class spec.ErrUnavailable: a
	// network of the task is not on this node yet, try again; spec.ErrConflict:
	// a published port is taken, the error names the holder.
	Attach(ctx context.Context, s spec.Sandbox) (netns string, err error)
	// Detach removes it. What is slow happens in the background.
	Detach(ctx context.Context, t spec.TaskID) error
	// Gateways are the addresses of the host on a network, one of each family
	// that the network has, IPv4 first; none on a macvlan network. Class
	// spec.ErrUnavailable as for Attach.
	Gateways(n spec.NetworkID) ([]netip.Addr, error)
}

// Senders are the hosts that may send traffic to tasks of this node, itself
// among them. Safe for concurrent use.
type Senders interface {
	// Senders names the hosts on the networks of the addresses.
	Senders(addrs []spec.Address) []spec.NodeID
	// Withdrawn returns nil when nothing on a host leads new traffic to any of
	// the addresses. An error says that this is not known, and when ctx ends,
	// why it was not known in time.
	Withdrawn(ctx context.Context, n spec.NodeID, addrs []spec.Address) error
}

// Logs drains output FIFOs into files; the keeper implements it.
type Logs interface {
	// SetLogs replaces the whole list of sinks. A sink that is no longer listed
	// is drained to its end and closed.
	SetLogs(ctx context.Context, sinks []spec.LogSink) error
}

// Manager is the agent's way to the managers.
type Manager interface {
	// Report delivers r; it has been committed when Report returns nil.
	Report(ctx context.Context, r spec.Report) error
	// Content fetches the bytes of a content.
	Content(ctx context.Context, id spec.ContentID) ([]byte, error)
}

// Leases ends exclusive tasks whose lease is over, whatever becomes of this
// process; the keeper implements it.
type Leases interface {
	// SetLeases replaces the whole list of leases. Before a task is taken off
	// the list, its processes must have ended.
	SetLeases(ctx context.Context, leases []spec.TaskLease) error
}
