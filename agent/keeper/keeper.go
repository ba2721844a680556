package keeper

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

const (
	// checkEvery is how often the keeper looks whether namespaces and files are
	// still there; retryEvery, while something could not be served.
	checkEvery = 10 * time.Second
	retryEvery = time.Second
	// lingerFor bounds how long a keeper that was replaced finishes the queries
	// and connections that it had begun.
	lingerFor = 12 * time.Second
	// startTimeout bounds how long a keeper waits to become the one of its folder.
	startTimeout = 10 * time.Second
)

// Config of a keeper, for the process as well as for the daemon.
type Config struct {
	// RunDir is the folder of the control socket. It must exist, be on a file
	// system that is empty after a boot, and be writable by its owner alone.
	RunDir string
	// Binary is what Ensure starts, as "BINARY keeper --run-dir …"; empty is
	// the running program itself. The process does not use it.
	Binary string
	// Version of the program. A running keeper of another version is replaced,
	// so it must differ whenever the program does.
	Version string
	// Logger, nil to discard.
	Logger *slog.Logger
}

func (c Config) logger() *slog.Logger {
	if c.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return c.Logger
}

// The ways in which a keeper ends.
var (
	errStopped  = errors.New("stopped")
	errReplaced = errors.New("replaced by another keeper")
	// errRunning: a keeper of the same version serves already.
	errRunning = errors.New("a keeper of this version is running")
	// errRefused: a keeper of another version does not hand over.
	errRefused = errors.New("the running keeper does not hand over")
)

// state is what a keeper was told last, kept in the run folder.
type state struct {
	DNS    dnsState    `json:"dns"`
	Logs   logsState   `json:"logs"`
	Leases leasesState `json:"leases,omitzero"`
}

// keeper is the process.
type keeper struct {
	cfg      Config
	log      *slog.Logger
	open     opener
	exchange *exchanger
	count    counters
	slots    slots
	guard    *guard
	started  time.Time
	end      context.CancelCauseFunc // ends the process

	listener *net.UnixListener
	lock     *os.File
	conns    sync.WaitGroup // accept loop and control connections

	mu        sync.Mutex
	replaced  bool // everything was handed over
	state     state
	saved     []byte // state as it is on disk
	zones     zones
	resolvers map[spec.TaskID]*resolver
	sinks     map[spec.TaskID]*sink
	drains    map[spec.TaskID]chan struct{} // of former sinks → closed when drained
	faults    map[string]error              // "dns" and "logs" → what cannot be served
	wake      chan struct{}                 // capacity one: look after things soon
	kept      []*peer                       // connections that end with the process
}

// Run is the keeper process: it serves until ctx ends, a client stops it or
// another keeper has taken over. If a keeper of the same version runs in the
// folder, Run returns at once without error; one of another version is
// replaced. On return all its descriptors are closed and what the FIFOs held
// is in the log files.
func Run(ctx context.Context, c Config) error {
	return run(ctx, c, openInNamespace, func() {})
}

func run(ctx context.Context, c Config, open opener, ready func()) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	k := &keeper{
		cfg: c, log: c.logger(), open: open, end: end,
		exchange:  newExchanger("/etc/resolv.conf"),
		slots:     newSlots(max(1, runtime.GOMAXPROCS(0)-1)),
		guard:     newGuard(c.logger()),
		started:   time.Now(),
		resolvers: map[spec.TaskID]*resolver{},
		sinks:     map[spec.TaskID]*sink{},
		drains:    map[spec.TaskID]chan struct{}{},
		faults:    map[string]error{},
		wake:      make(chan struct{}, 1),
	}
	defer k.slots.close()
	err := k.begin(ctx)
	if errors.Is(err, errRunning) {
		ready()
		return nil
	}
	if err != nil {
		return fmt.Errorf("start keeper in %s: %w", c.RunDir, err)
	}
	k.log.Info("keeper serves", "version", c.Version, "pid", os.Getpid(), "resolvers", len(k.resolvers), "sinks", len(k.sinks))
	ready()
	k.conns.Go(func() { k.guard.run(ctx) })
	k.acceptAll(ctx)
	k.loop(ctx)
	k.finish(ctx)
	for _, p := range k.kept {
		p.c.Close()
	}
	k.log.Info("keeper ends", "version", c.Version, "pid", os.Getpid(), "cause", context.Cause(ctx))
	return nil
}

// begin makes this the keeper of its folder: it takes over from a running one,
// or resumes what the last one was told.
func (k *keeper) begin(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		err := k.takeOver(ctx)
		if err == nil || errors.Is(err, errRunning) || errors.Is(err, errRefused) {
			return err
		}
		if nobody(err) {
			locked, err := k.takeLock()
			if err != nil {
				return err
			}
			if locked {
				return k.resume()
			}
		}
		// Somebody else is starting or ending; which, shows soon.
		select {
		case <-ctx.Done():
			return spec.Unavailablef("another keeper neither serves nor ends: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// takeLock tries to get the lock of the folder.
func (k *keeper) takeLock() (bool, error) {
	f, err := os.OpenFile(filepath.Join(k.cfg.RunDir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return false, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return false, nil
		}
		return false, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	k.lock = f
	return true, nil
}

// resume serves what the last keeper of the folder was told, then listens.
func (k *keeper) resume() error {
	b, err := os.ReadFile(filepath.Join(k.cfg.RunDir, stateName))
	if err == nil {
		if err := json.Unmarshal(b, &k.state); err != nil {
			k.log.Warn("what the last keeper was told is unreadable; waiting to be told anew", "err", err)
			k.state = state{}
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	k.mu.Lock()
	k.zones = newZones(k.state.DNS.Tables)
	k.guard.set(k.state.Leases.Tasks)
	k.applyDNSLocked()
	k.applyLogsLocked()
	k.mu.Unlock()
	l, err := listenControl(k.cfg.RunDir)
	if err != nil {
		return errors.Join(err, k.finishServing())
	}
	k.listener = l
	return writePID(k.cfg.RunDir)
}

// finishServing ends what resume began, when it cannot be made known.
func (k *keeper) finishServing() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.closeAllLocked()
	return k.lock.Close()
}

// loop looks after what is served until ctx ends.
func (k *keeper) loop(ctx context.Context) {
	for {
		k.mu.Lock()
		wait := checkEvery
		if len(k.faults) > 0 {
			wait = retryEvery
		}
		k.mu.Unlock()
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-k.wake:
			timer.Stop()
		case <-timer.C:
			k.check()
		}
	}
}

// check repeats everything that was told and is not so: namespaces that are
// gone are let go of, sockets and FIFOs that could not be opened are tried
// again.
func (k *keeper) check() {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.replaced {
		return
	}
	k.applyDNSLocked()
	k.applyLogsLocked()
	for _, s := range k.sinks {
		s.check()
	}
	for t, done := range k.drains {
		select {
		case <-done:
			delete(k.drains, t)
		default:
		}
	}
}

func (k *keeper) setDNS(s dnsState) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.replaced {
		return errReplaced
	}
	k.state.DNS = s
	k.zones = newZones(s.Tables)
	return errors.Join(k.applyDNSLocked(), k.saveLocked())
}

func (k *keeper) setLogs(s logsState) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.replaced {
		return errReplaced
	}
	k.state.Logs = s
	return errors.Join(k.applyLogsLocked(), k.saveLocked())
}

// setLeases is not held up by what else the keeper does: the deadlines hold
// before they are on disk. A keeper that was killed in between left the earlier
// ones, which is the safe side.
func (k *keeper) setLeases(s leasesState) error {
	if err := checkLeases(s.Tasks); err != nil {
		return err
	}
	k.guard.set(s.Tasks)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.replaced {
		return errReplaced
	}
	k.state.Leases = s
	return k.saveLocked()
}

// saveLocked keeps the state for the next keeper.
func (k *keeper) saveLocked() error {
	b, err := json.Marshal(k.state)
	if err != nil {
		return err
	}
	if bytes.Equal(b, k.saved) {
		return nil
	}
	if err := writeFile(filepath.Join(k.cfg.RunDir, stateName), b); err != nil {
		return fmt.Errorf("keep what the keeper was told: %w", err)
	}
	k.saved = b
	return nil
}

// setFaultLocked remembers what cannot be served, and logs what is new in it.
func (k *keeper) setFaultLocked(key string, err error) error {
	old := k.faults[key]
	if err == nil {
		delete(k.faults, key)
		return nil
	}
	k.faults[key] = err
	if old == nil || old.Error() != err.Error() {
		k.log.Warn("keeper cannot serve everything, will retry", "what", key, "err", err)
	}
	select {
	case k.wake <- struct{}{}: // the loop now waits a shorter time
	default:
	}
	return err
}

// applyDNSLocked makes the resolvers what was told, and reports every one that
// cannot be served.
func (k *keeper) applyDNSLocked() error {
	wanted := make(map[spec.TaskID]spec.Resolver, len(k.state.DNS.Resolvers))
	for _, r := range k.state.DNS.Resolvers {
		wanted[r.Task] = r
	}
	var errs []error
	for t, have := range k.resolvers {
		want, ok := wanted[t]
		id, err := idOf(want.NetNS)
		if ok && err == nil && id == have.sockets.ns {
			have.spec = want
			have.view.Store(k.zones.view(want))
			continue
		}
		// Its sockets would keep the namespace alive.
		have.close()
		delete(k.resolvers, t)
	}
	for _, want := range k.state.DNS.Resolvers {
		if k.resolvers[want.Task] != nil {
			continue
		}
		s, err := k.open(want.NetNS)
		if err != nil {
			errs = append(errs, fmt.Errorf("task %s: %w", want.Task, err))
			continue
		}
		r := newResolver(want, s, k.zones.view(want), k.exchange, &k.count)
		r.serve()
		k.resolvers[want.Task] = r
	}
	return k.setFaultLocked("dns", errors.Join(errs...))
}

// applyLogsLocked makes the sinks what was told, and reports every one that
// cannot be served.
func (k *keeper) applyLogsLocked() error {
	wanted := make(map[spec.TaskID]spec.LogSink, len(k.state.Logs.Sinks))
	for _, s := range k.state.Logs.Sinks {
		wanted[s.Task] = s
	}
	for t, have := range k.sinks {
		want, ok := wanted[t]
		if ok && want == have.spec && have.fresh() {
			continue
		}
		have.stop()
		if ok && want.Stdout == have.spec.Stdout && want.Stderr == have.spec.Stderr && have.fresh() {
			have.setSpec(want, &k.count)
			have.start()
			continue
		}
		delete(k.sinks, t)
		done := make(chan struct{})
		k.drains[t] = done
		go func() {
			defer close(done)
			have.drain(context.Background())
		}()
	}
	var errs []error
	for _, want := range k.state.Logs.Sinks {
		if k.sinks[want.Task] != nil {
			continue
		}
		if done := k.drains[want.Task]; done != nil {
			<-done // bounded by drainTime; two may not write one file
			delete(k.drains, want.Task)
		}
		s, err := openSink(want, nil, k.slots, &k.count, k.log)
		if err != nil {
			errs = append(errs, fmt.Errorf("task %s: %w", want.Task, err))
			continue
		}
		s.start()
		k.sinks[want.Task] = s
	}
	return k.setFaultLocked("logs", errors.Join(errs...))
}

func (k *keeper) status() *Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := &Status{
		Version: k.cfg.Version, PID: os.Getpid(), Started: k.started,
		Resolvers: len(k.resolvers), Sinks: len(k.sinks),
		Queries: k.count.queries.Load(), Forwarded: k.count.forwarded.Load(), Failed: k.count.failed.Load(),
		Leases: k.guard.count(), Ended: k.guard.ended.Load(),
		LogBytes: k.count.logBytes.Load(), DroppedBytes: k.count.droppedBytes.Load(),
	}
	for _, key := range []string{"dns", "logs"} {
		if err := k.faults[key]; err != nil {
			s.Problems = append(s.Problems, err.Error())
		}
	}
	s.Problems = append(s.Problems, k.guard.problems()...)
	return s
}

// finish ends the process's work in the way that fits the cause.
func (k *keeper) finish(ctx context.Context) {
	cause := context.Cause(ctx)
	k.listener.Close()
	k.conns.Wait()
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.replaced {
		k.lingerLocked()
		return
	}
	if errors.Is(cause, errStopped) {
		os.Remove(filepath.Join(k.cfg.RunDir, stateName))
	}
	os.Remove(filepath.Join(k.cfg.RunDir, sockName))
	os.Remove(filepath.Join(k.cfg.RunDir, pidName))
	k.closeAllLocked()
	k.lock.Close()
}

// closeAllLocked ends all serving and moves what the FIFOs hold.
func (k *keeper) closeAllLocked() {
	for _, r := range k.resolvers {
		r.close()
	}
	for _, s := range k.sinks {
		s.stop()
		s.sweep()
		s.close()
	}
	clear(k.resolvers)
	clear(k.sinks)
	k.waitDrainsLocked()
}

func (k *keeper) waitDrainsLocked() {
	for _, done := range k.drains {
		<-done
	}
	clear(k.drains)
}

// lingerLocked finishes the queries that were begun before everything was
// handed over, and drains that were.
func (k *keeper) lingerLocked() {
	ctx, cancel := context.WithTimeout(context.Background(), lingerFor)
	defer cancel()
	var wg sync.WaitGroup
	for _, r := range k.resolvers {
		wg.Go(func() { r.finish(ctx) })
	}
	wg.Wait()
	k.waitDrainsLocked()
}
