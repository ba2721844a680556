package containerd

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/dialer"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"wherry.dev/agent"
	"wherry.dev/spec"
)

const (
	// Namespace is the containerd namespace that holds all that is ours.
	Namespace   = "wherry"
	runtimeName = "io.containerd.runc.v2"
)

// Labels of containers. None of them comes from an image.
const (
	labelTask    = "wherry.dev/task"
	labelStack   = "wherry.dev/stack"
	labelService = "wherry.dev/service"
	labelName    = "wherry.dev/name"
	labelStdin   = "wherry.dev/stdin"
	labelStdout  = "wherry.dev/stdout"
	labelStderr  = "wherry.dev/stderr"
	labelTTY     = "wherry.dev/tty"
	labelCgroup  = "wherry.dev/cgroup"
	labelStage   = "wherry.dev/stage"
	// labelRealtime marks containers that get a share of real-time scheduling.
	labelRealtime = "wherry.dev/realtime"
	// labelImage and a number name the images that are mounted into the container.
	labelImage = "wherry.dev/image."
	// labelView marks snapshots that are mounted for a moment to look into an image.
	labelView = "wherry.dev/view"
)

// Times that calls may take. A shim that hangs must not hold up other tasks.
const (
	callTimeout   = 20 * time.Second // what touches containerd's database only
	createTimeout = 60 * time.Second // starts a shim and an OCI runtime
	killTimeout   = 10 * time.Second
)

// Config says which containerd to use and how.
type Config struct {
	// Address of containerd's socket, Daemon.Address.
	Address string
	// DataDir and RunDir are the node's folders; records of ends are kept in
	// DataDir/containerd, FIFOs and the OCI runtime's state in RunDir/containerd.
	DataDir, RunDir string
	// Node whose containers these are; it names the parent of their cgroups.
	Node spec.NodeID
	// RuncBinary is the path or name of the OCI runtime; empty takes runc or
	// crun, whichever is found first.
	RuncBinary string
	// CDIDirs are where devices are described; nil is /etc/cdi and /var/run/cdi.
	CDIDirs []string
	// Binary is the path of this program, which is mounted into containers
	// that ask for an init; empty refuses those.
	Binary string
	// Credentials returns user name and secret for a registry's host, both
	// empty for none. nil uses none.
	Credentials func(host string) (user, secret string, err error)
	// Insecure lists hosts (with port, as in image names) of registries that
	// are spoken to over HTTP, apart from those on loopback addresses.
	Insecure []string
	// Peers are the nodes that may have images, as of now; nil is none. They are
	// asked before a registry is.
	Peers func(ctx context.Context) []Peer
	// Logger is for what goes wrong in the background; nil discards it.
	Logger *slog.Logger
}

// Peer is another node, whose images are reached by its Registry.
type Peer struct {
	// Name of the node, for messages.
	Name string
	// Transport takes requests for paths below /v2/ to the node, whatever host
	// they name.
	Transport http.RoundTripper
}

// Runtime runs containers on one containerd. It is safe for concurrent use.
type Runtime struct {
	c       Config
	client  *client.Client
	changed chan struct{}
	pulls   flights
	// token marks what this process makes for a moment, apart from what an
	// earlier one has left behind.
	token string

	// creating is held for reading while a cgroup may be made, for writing
	// while the empty parent is removed.
	creating sync.RWMutex
	// slots bounds how many processes are made at once.
	slots chan struct{}

	mu          sync.Mutex
	snapshotter string
	images      map[string]*image            // by reference
	handles     map[spec.TaskID]*handle      // of containers that this process has seen
	copying     map[string]chan struct{}     // volume folders that are being filled
	features    map[string]features.Features // of OCI runtimes, by path
	limbo       map[limbo]time.Time          // when the end of a process was seen, but not yet how it ended
}

var (
	_ agent.Images  = (*Runtime)(nil)
	_ agent.Runtime = (*Runtime)(nil)
	_ agent.Execer  = (*Runtime)(nil)
)

// concurrentStarts is how many processes are made at once; more callers wait
// their turn. A few dozen keep all cores busy; with hundreds nothing else on the
// node would get its share.
const concurrentStarts = 32

// New connects to containerd, which need not serve yet: calls wait for it. It
// fails when the node has no OCI runtime or a folder cannot be made.
func New(c Config) (*Runtime, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	var err error
	if c.RuncBinary, err = findRunc(c.RuncBinary); err != nil {
		return nil, err
	}
	r := &Runtime{
		c:       c,
		token:   rand.Text()[:8],
		changed: make(chan struct{}, 1),
		slots:   make(chan struct{}, concurrentStarts),
		images:  map[string]*image{},
		handles: map[spec.TaskID]*handle{},
		copying: map[string]chan struct{}{},
		limbo:   map[limbo]time.Time{},

		features: map[string]features.Features{},
	}
	for _, dir := range []string{r.records(), r.dir("stdin"), r.dir("exec"), r.dir("views"), r.runcRoot()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make folder of the container runtime: %w", err)
		}
	}
	if r.client, err = connect(c.Address); err != nil {
		return nil, fmt.Errorf("connect to containerd: %w", err)
	}
	return r, nil
}

// findRunc returns the path of the OCI runtime.
func findRunc(name string) (string, error) {
	names := []string{name}
	if name == "" {
		names = []string{"runc", "crun"}
	}
	for _, n := range names {
		if path, err := exec.LookPath(n); err == nil {
			return filepath.Abs(path)
		}
		// Not in the search path of ordinary users, but where Debian puts it.
		if path, err := exec.LookPath(filepath.Join("/usr/sbin", n)); err == nil && !filepath.IsAbs(n) {
			return path, nil
		}
	}
	if name != "" {
		return "", spec.Invalidf("the OCI runtime %s does not exist or cannot be executed", name)
	}
	return "", spec.Invalidf("no OCI runtime on this node: neither runc nor crun is in the search path; install it with your distribution's package manager, such as: apt-get install runc")
}

// runtimePath is the program of the OCI runtime that a template asks for.
func (r *Runtime) runtimePath(name string) (string, error) {
	if name == "" {
		return r.c.RuncBinary, nil
	}
	program := spec.Runtimes[name]
	if path, err := findRunc(program); program != "" && err == nil {
		return path, nil
	}
	return "", spec.Invalidf("runtime: this node has no OCI runtime %s; install it, leave it out, or use placement constraints", cmp.Or(program, name))
}

// canDo returns what an OCI runtime can do, which is asked once.
func (r *Runtime) canDo(path string) features.Features {
	r.mu.Lock()
	f, ok := r.features[path]
	r.mu.Unlock()
	if !ok {
		f = askFeatures(path)
		r.mu.Lock()
		r.features[path] = f
		r.mu.Unlock()
	}
	return f
}

// askFeatures returns what an OCI runtime says that it can do. One that is too
// old for the question can do nothing that needs it.
func askFeatures(binary string) features.Features {
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	var f features.Features
	if out, err := exec.CommandContext(ctx, binary, "features").Output(); err == nil {
		_ = json.Unmarshal(out, &f)
	}
	return f
}

// connect opens a connection that is made, and made again, when it is needed.
// A call that meets no server waits for one as long as its context allows.
func connect(address string) (*client.Client, error) {
	b := backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 500 * time.Millisecond}
	return client.New(address,
		client.WithDefaultNamespace(Namespace),
		client.WithDefaultRuntime(runtimeName),
		client.WithDialOpts([]grpc.DialOption{
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: b, MinConnectTimeout: 5 * time.Second}),
			grpc.WithContextDialer(dialer.ContextDialer),
		}),
		client.WithCallOpts([]grpc.CallOption{
			grpc.WaitForReady(true),
			grpc.MaxCallRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
			grpc.MaxCallSendMsgSize(defaults.DefaultMaxSendMsgSize),
		}))
}

// serving waits until containerd serves at address.
func serving(ctx context.Context, address string) error {
	c, err := connect(address)
	if err != nil {
		return err
	}
	defer c.Close()
	for {
		r, err := c.HealthService().Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.WaitForReady(true))
		if err == nil && r.Status == grpc_health_v1.HealthCheckResponse_SERVING {
			return nil
		}
		// The connection may have been refused, or cut while the server dies.
		select {
		case <-ctx.Done():
			return errors.Join(context.Cause(ctx), err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

func recordsDir(dataDir string) string { return filepath.Join(dataDir, "containerd", "records") }

func (r *Runtime) records() string { return recordsDir(r.c.DataDir) }

func (r *Runtime) dir(elem ...string) string {
	return filepath.Join(append([]string{r.c.RunDir, "containerd"}, elem...)...)
}

func (r *Runtime) runcRoot() string { return r.dir("runc") }

// cgroupParent is the cgroup that holds those of all containers of the node.
func (r *Runtime) cgroupParent() string {
	return "/wherry-" + string(r.c.Node)[:min(12, len(r.c.Node))]
}

// Cgroup is the cgroup of a task's container, as a path below the root of every
// hierarchy, whether or not it exists.
func (r *Runtime) Cgroup(t spec.TaskID) string { return path.Join(r.cgroupParent(), string(t)) }

func (r *Runtime) tasks() tasksapi.TasksClient { return r.client.TaskService() }

// handle is what Start needs to know of a container; it is kept by Create and
// read again from containerd by a process that did not create it.
type handle struct {
	snapshotter string
	labels      map[string]string
	mounts      []mount.Mount
}

func (r *Runtime) handle(ctx context.Context, t spec.TaskID) (*handle, error) {
	r.mu.Lock()
	h := r.handles[t]
	r.mu.Unlock()
	if h != nil {
		return h, nil
	}
	c, err := r.client.ContainerService().Get(ctx, string(t))
	if err != nil {
		return nil, fmt.Errorf("read container: %w", classify(err))
	}
	mounts, err := r.client.SnapshotService(c.Snapshotter).Mounts(ctx, c.SnapshotKey)
	if err != nil {
		return nil, fmt.Errorf("read file system: %w", classify(err))
	}
	return r.remember(c, mounts), nil
}

func (r *Runtime) remember(c containers.Container, mounts []mount.Mount) *handle {
	h := &handle{snapshotter: c.Snapshotter, labels: c.Labels, mounts: mounts}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.handles[spec.TaskID(c.ID)] = h
	return h
}

func (r *Runtime) forget(t spec.TaskID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.handles, t)
}

// snapshots returns the snapshotter: overlayfs where the data folder's file
// system can carry it, else plain copies.
func (r *Runtime) snapshots(ctx context.Context) (snapshots.Snapshotter, string, error) {
	r.mu.Lock()
	name := r.snapshotter
	r.mu.Unlock()
	if name == "" {
		ps, err := r.client.IntrospectionService().Plugins(ctx, "type==io.containerd.snapshotter.v1")
		if err != nil {
			return nil, "", fmt.Errorf("list snapshotters: %w", classify(err))
		}
		works := map[string]bool{}
		for _, p := range ps.Plugins {
			works[p.ID] = p.InitErr == nil
		}
		switch {
		case works["overlayfs"]:
			name = "overlayfs"
		case works["native"]:
			name = "native"
			r.c.Logger.Warn("no overlayfs on the data folder, every container gets a full copy of its image", "dir", r.c.DataDir)
		default:
			return nil, "", spec.Unavailablef("containerd has neither the overlayfs nor the native snapshotter")
		}
		r.mu.Lock()
		r.snapshotter = name
		r.mu.Unlock()
	}
	return r.client.SnapshotService(name), name, nil
}

// classify turns an error of containerd into one of our classes where it
// belongs to one. What is left over may go away by trying again.
func classify(err error) error {
	if err == nil {
		return nil
	}
	for _, class := range []error{spec.ErrInvalid, spec.ErrNotFound, spec.ErrConflict, spec.ErrUnavailable} {
		if errors.Is(err, class) {
			return err
		}
	}
	n := native(err)
	switch {
	case errdefs.IsNotFound(n):
		return spec.NotFoundf("%v", n)
	case errdefs.IsInvalidArgument(n):
		return spec.Invalidf("%v", n)
	case errdefs.IsUnavailable(n), errdefs.IsDeadlineExceeded(n), errors.Is(err, context.DeadlineExceeded):
		return spec.Unavailablef("containerd does not answer: %v", n)
	}
	return err
}

// native undoes gRPC's wrapping, which only some of containerd's clients do.
func native(err error) error {
	if _, ok := status.FromError(err); ok {
		return errgrpc.ToNative(err)
	}
	return err
}

func isNotFound(err error) bool { return errdefs.IsNotFound(native(err)) }

func isExists(err error) bool { return errdefs.IsAlreadyExists(native(err)) }

// makeFIFO makes a named pipe; one that exists is kept.
func makeFIFO(path string) error {
	if err := syscall.Mkfifo(path, 0o600); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make pipe %s: %w", path, err)
	}
	return nil
}
