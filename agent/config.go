package agent

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"wherry.dev/spec"
)

// Config is what an Agent needs. All interfaces but Senders and Tmpfs are required.
type Config struct {
	// DataDir holds what lives as long as the node, RunDir what lives as long
	// as its boot. Both are absolute, exist already, and are the agent's in the
	// parts that it uses: in DataDir wanted.json, tasks, volumes, anon,
	// contents and logs; in RunDir tasks, files and lease.json. It also reads the names in
	// RunDir/netns, to detach what no task needs.
	DataDir string
	RunDir  string
	// Node is the identity of this node; NodeName is how people call it and is
	// part of the names of global services' tasks. Default: Node.
	Node     spec.NodeID
	NodeName string
	// Version of Wherry, as it is reported.
	Version string

	Images  Images
	Runtime Runtime
	Execer  Execer
	// Exchanger changes secrets and configs in running containers.
	Exchanger Exchanger
	// Tmpfs is where they are; nil is that of the host.
	Tmpfs   Tmpfs
	Network Network
	Logs    Logs
	Manager Manager
	// Senders are asked before a task is told to stop; nil: nobody is.
	Senders Senders

	// Wake says that some container has changed. It should have a capacity of
	// one. nil is allowed: changes are then seen at the next resync.
	Wake <-chan struct{}
	// Ports tells what became of the ports that this node is to publish, all of
	// them in a stable order; known is false as long as nobody can say. The
	// agent owns the list. It is asked at the start and whenever PortsChanged,
	// which should have a capacity of one, says so. nil: ports are not reported.
	Ports        func() (ports []spec.PortStatus, known bool)
	PortsChanged <-chan struct{}
	// Identity tells what a node info says of the node's certificate and of the
	// entries it understands. It is asked at the start and whenever InfoChanged,
	// which should have a capacity of one, says so. nil leaves them empty.
	Identity    func() (issuer, trusts string, format int)
	InfoChanged <-chan struct{}
	// MTU tells what a node info says of the device that holds the node's address;
	// 0 is unknown. It is asked at the start, at every resync and whenever
	// InfoChanged says so. nil: unknown.
	MTU func() int
	// Subnets tells what a node info says of what the host reaches by other ways
	// than our networks. It is asked when MTU is, by one goroutine. nil: nothing.
	Subnets func() string
	// Interfaces likewise tells those on which macvlan networks can be; nil is
	// unknown.
	Interfaces func() string
	// Settle is how long after the start of Run no process is started on the
	// word of the stored document alone: a manager may know better. The first
	// document that is told ends it. 10 s when 0.
	Settle time.Duration
	// Refused reports whether the managers say that another host has this node's
	// identity: nothing is started then, whoever wants it. nil: never.
	Refused func() bool
	// Lease asks the managers for a lease, by which exclusive tasks may run for
	// that long from the moment of asking. Leases has it enforced, by the cgroup
	// that Cgroup names, a path below the root of every hierarchy. Without any of
	// the three, exclusive tasks are not started.
	Lease  func(ctx context.Context) (time.Duration, error)
	Leases Leases
	Cgroup func(t spec.TaskID) string
	// Fetch opens the archive of an instance that another node gives to this one.
	// nil: none is fetched.
	Fetch func(ctx context.Context, t spec.VolumeTransfer) (io.ReadCloser, error)
	// PurgeImages removes all images of the node, for Leave; nil: there are none.
	PurgeImages func(ctx context.Context) error
	// Resync is how often everything is looked at without a reason; 10 s when 0.
	Resync time.Duration
	// Logger; nil discards.
	Logger *slog.Logger
}

// Agent makes its node run what it was told last. Use New; all methods are
// safe for concurrent use, Run is to be called once.
type Agent struct {
	c      Config
	log    *slog.Logger
	report *reporter
	sinks  *sinkList
	leases *leaseList
	order  order
	vols   *volumes
	blobs  *contents
	data   *dataFiles

	// ticket orders observations and actions: an observation is news to a
	// worker only if it began after the worker's last action.
	ticket atomic.Uint64
	// look asks for an observation, tidy for a sweep as well. Capacity one.
	look chan struct{}
	tidy atomic.Bool
	// starts bounds how many containers are made and started at once.
	starts chan struct{}
	// background counts goroutines of Run.
	background sync.WaitGroup

	mu      sync.Mutex
	wanted  *spec.Wanted               // newest; nil before the first
	workers map[spec.TaskID]*worker    // :: every task wanted or remembered
	joined  map[spec.TaskID][]*worker  // :: task → those of them that join it
	busy    map[string]bool            // :: background removal under way
	volGone map[spec.VolumeID]struct{} // instances whose absence was reported
	// volMoved are the moves that were reported. // :: zero: done; else when to try again
	volMoved map[spec.VolumeTransfer]time.Time
	heard    bool                 // wanted is not only from the disk
	stuck    map[spec.TaskID]bool // :: exclusive tasks whose end hung when the last process ended
	leaving  bool                 // by Leave: nothing is wanted any more

	// effect, for tests, is told of every change made to a file.
	effect func(op string)
}

// New makes an agent. It touches nothing before Run.
func New(c Config) *Agent {
	if c.Resync <= 0 {
		c.Resync = 10 * time.Second
	}
	if c.Settle == 0 {
		c.Settle = defaultSettle
	}
	if c.Refused == nil {
		c.Refused = func() bool { return false }
	}
	if c.Tmpfs == nil {
		c.Tmpfs = hostTmpfs{}
	}
	if c.NodeName == "" {
		c.NodeName = string(c.Node)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	a := &Agent{
		c: c, log: c.Logger,
		look:    make(chan struct{}, 1),
		starts:  make(chan struct{}, parallelStarts),
		workers: map[spec.TaskID]*worker{},
		joined:  map[spec.TaskID][]*worker{},
		busy:    map[string]bool{},
		volGone: map[spec.VolumeID]struct{}{}, volMoved: map[spec.VolumeTransfer]time.Time{},
	}
	a.effect = func(string) {}
	a.report = newReporter(c.Node, c.Manager, c.Logger)
	a.sinks = newSinkList(c.Logs)
	a.leases = newLeaseList(c)
	a.leases.changed = a.wakeAll
	a.leases.overdue = a.overdue
	a.vols = newVolumes(filepath.Join(c.DataDir, "volumes"), func(op string) { a.effect(op) })
	a.blobs = newContents(filepath.Join(c.DataDir, "contents"), c.Manager.Content, func(op string) { a.effect(op) })
	a.data = newDataFiles(filepath.Join(c.RunDir, "files"), c.Tmpfs, a.blobs, func(op string) { a.effect(op) })
	return a
}

// parallelStarts is how many containers are created or started at once: enough
// to keep the machine busy, few enough for none to time out.
const parallelStarts = 16

// makeDirs makes the agent's folders. Containers get at volumes by bind
// mounts, so nobody else has to be able to walk through the parents.
func (a *Agent) makeDirs() error {
	for _, dir := range []string{
		filepath.Join(a.c.DataDir, "tasks"), filepath.Join(a.c.DataDir, "volumes"),
		filepath.Join(a.c.DataDir, "anon"), filepath.Join(a.c.DataDir, "contents"),
		filepath.Join(a.c.DataDir, "logs"), filepath.Join(a.c.RunDir, "tasks"),
	} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make folder of the agent: %w", err)
		}
	}
	return nil
}

func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// sleep waits for d; false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
