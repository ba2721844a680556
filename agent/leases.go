package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

// The times of leases.
const (
	leaseEvery   = 5 * time.Second
	leaseRetry   = time.Second
	leaseTimeout = 4 * time.Second
	// leaseRoom is what must be left of a lease for a process to be started.
	leaseRoom = 5 * time.Second
	// leaseSlack is how much earlier than its deadline an end may seem to be that
	// the deadline was the reason of: ends are told by another clock.
	leaseSlack = time.Second
)

// waitsForLease is the reason of a task that may not run now.
const waitsForLease = "waits for a lease: no manager answers"

// leaseList holds the node's lease and the exclusive tasks that run by it. All
// times are of CLOCK_BOOTTIME, since the boot of the host: it goes on while the
// host sleeps and nobody sets it.
type leaseList struct {
	ask    func(ctx context.Context) (time.Duration, error)
	keeper Leases
	cgroup func(spec.TaskID) string
	file   string
	log    *slog.Logger
	clock  func() time.Duration
	// changed is called when there is a lease again.
	changed func()
	// overdue reports whether a task should have ended by now, so that it gets no
	// later deadline: when its end hangs, the keeper makes it.
	overdue func(t spec.TaskID) bool

	turn chan struct{} // a token while nobody hands over
	wake chan struct{} // capacity one: ask now

	mu    sync.Mutex
	tasks map[spec.TaskID]struct{} // exclusive tasks that are not over
	// told is what the keeper knows. // :: task → deadline
	told  map[spec.TaskID]time.Duration
	until time.Duration // end of the newest lease; 0 when none is known
	fault error         // of the last asking
}

func newLeaseList(c Config) *leaseList {
	l := &leaseList{
		ask: c.Lease, keeper: c.Leases, cgroup: c.Cgroup, file: filepath.Join(c.RunDir, "lease.json"), log: c.Logger, clock: boottime,
		changed: func() {}, overdue: func(spec.TaskID) bool { return false }, turn: make(chan struct{}, 1), wake: make(chan struct{}, 1),
		tasks: map[spec.TaskID]struct{}{}, told: map[spec.TaskID]time.Duration{},
	}
	l.turn <- struct{}{}
	return l
}

// boottime is CLOCK_BOOTTIME.
func boottime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic(fmt.Sprintf("agent: CLOCK_BOOTTIME: %v", err)) // since Linux 2.6.39
	}
	return time.Duration(t.Nano())
}

// usable reports whether there is a way to leases at all.
func (l *leaseList) usable() bool { return l.ask != nil && l.keeper != nil && l.cgroup != nil }

// leaseFile is the lease as it survives the process, for the same boot.
type leaseFile struct {
	Until int64 `json:"until"` // nanoseconds of CLOCK_BOOTTIME
	// Earlier are the deadlines of tasks that get no later one.
	Earlier map[spec.TaskID]int64 `json:"earlier,omitempty"`
}

// restore reads the lease of the process before; tasks are those that may run
// by it.
func (l *leaseList) restore(tasks []spec.TaskID) {
	b, err := os.ReadFile(l.file)
	var f leaseFile
	switch {
	case err == nil && json.Unmarshal(b, &f) == nil:
	case err != nil && errors.Is(err, fs.ErrNotExist):
	default:
		l.log.Warn("lease of the last process cannot be read", "file", l.file, "err", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.until = time.Duration(f.Until)
	for _, t := range tasks {
		l.tasks[t], l.told[t] = struct{}{}, l.until
		if at := f.Earlier[t]; at != 0 {
			l.told[t] = time.Duration(at)
		}
	}
}

// want puts a task on the list and has a lease asked for.
func (l *leaseList) want(t spec.TaskID) {
	l.mu.Lock()
	_, known := l.tasks[t]
	l.tasks[t] = struct{}{}
	l.mu.Unlock()
	if !known {
		poke(l.wake)
	}
}

// drop takes a task off the list: its processes have ended.
func (l *leaseList) drop(ctx context.Context, t spec.TaskID) error {
	l.mu.Lock()
	_, known := l.tasks[t]
	delete(l.tasks, t)
	l.mu.Unlock()
	if !known || !l.usable() {
		return nil
	}
	return l.handOver(ctx)
}

// left is how much longer a task may run, as the keeper knows it; known is
// false when nobody knows.
func (l *leaseList) left(t spec.TaskID) (d time.Duration, known bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := l.told[t]
	return at - l.clock(), at != 0
}

// ready reports whether a process of the task may be started.
func (l *leaseList) ready(t spec.TaskID) bool {
	d, known := l.left(t)
	return known && d >= leaseRoom
}

// over reports whether a process that ended at a time by the wall clock may
// have been ended because the lease was over.
func (l *leaseList) over(t spec.TaskID, at time.Time) bool {
	d, known := l.left(t)
	return known && time.Until(at) >= d-leaseSlack
}

// hold gets a task to where it may be started, or says why it may not. It waits
// for no more than an answer.
func (l *leaseList) hold(ctx context.Context, t spec.TaskID) error {
	if !l.usable() {
		return spec.Unavailablef("waits for a lease: this node cannot ask for one")
	}
	l.mu.Lock()
	_, known := l.tasks[t]
	l.tasks[t] = struct{}{}
	enough := l.until-l.clock() >= leaseRoom
	asking := known && l.fault != nil // again and again, until there is an answer
	l.mu.Unlock()
	if !enough {
		if !asking {
			poke(l.wake)
		}
	} else if err := l.handOver(ctx); err != nil {
		return err
	}
	if !l.ready(t) {
		l.mu.Lock()
		fault := l.fault
		l.mu.Unlock()
		if fault == nil {
			return spec.Unavailablef("waits for a lease")
		}
		return spec.Unavailablef("%s (%v)", waitsForLease, fault)
	}
	return nil
}

// run keeps the lease while there are exclusive tasks.
func (l *leaseList) run(ctx context.Context) {
	if !l.usable() {
		return
	}
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		l.mu.Lock()
		idle := len(l.tasks) == 0
		l.mu.Unlock()
		var again <-chan time.Time
		if !idle {
			wait := leaseEvery
			if !l.renew(ctx) {
				wait = leaseRetry
			}
			t.Reset(wait)
			again = t.C
		}
		select {
		case <-ctx.Done():
			return
		case <-again:
		case <-l.wake:
		}
	}
}

// renew asks once and hands the answer to the keeper. It reports false when
// either has failed.
func (l *leaseList) renew(ctx context.Context) bool {
	begin := l.clock() // before asking: what the managers promise is counted from there
	actx, cancel := context.WithTimeout(ctx, leaseTimeout)
	defer cancel()
	d, err := l.ask(actx)
	if err == nil && d <= 0 {
		err = errors.New("the answer holds no time")
	}
	if ctx.Err() != nil {
		return false
	}
	l.mu.Lock()
	news := (err == nil) != (l.fault == nil)
	l.fault = err
	waited := l.until-l.clock() < leaseRoom
	if err == nil {
		l.until = max(l.until, begin+d)
	}
	l.mu.Unlock()
	if err != nil {
		if news {
			l.log.Warn("no lease for exclusive tasks, trying again", "err", err)
		}
		return false
	}
	if err := l.handOver(actx); err != nil {
		if ctx.Err() == nil {
			l.log.Warn("deadlines of exclusive tasks not set, trying again", "err", err)
		}
		return false
	}
	if waited || news {
		l.changed()
	}
	return true
}

// handOver tells the keeper the deadlines, unless none is known: then it goes
// on with those that it has.
func (l *leaseList) handOver(ctx context.Context) error {
	select {
	case <-l.turn:
		defer func() { l.turn <- struct{}{} }()
	case <-ctx.Done():
		return ctx.Err()
	}
	l.mu.Lock()
	tasks := slices.Collect(maps.Keys(l.tasks))
	l.mu.Unlock()
	overdue := map[spec.TaskID]bool{}
	for _, t := range tasks { // not under mu: it asks the workers, who ask here
		overdue[t] = l.overdue(t)
	}
	l.mu.Lock()
	until := l.until
	list := make([]spec.TaskLease, 0, len(l.tasks))
	file := leaseFile{Until: int64(until)}
	same := len(l.told) == len(l.tasks)
	for t := range l.tasks {
		at := until
		if told := l.told[t]; overdue[t] && told != 0 && told < until {
			at = told
			if file.Earlier == nil {
				file.Earlier = map[spec.TaskID]int64{}
			}
			file.Earlier[t] = int64(at)
		}
		list = append(list, spec.TaskLease{Task: t, Cgroup: l.cgroup(t), Deadline: int64(at)})
		same = same && l.told[t] == at
	}
	l.mu.Unlock()
	if same || until == 0 && len(list) > 0 {
		return nil
	}
	slices.SortFunc(list, func(a, b spec.TaskLease) int { return cmp.Compare(a.Task, b.Task) })
	// The file first: a process that finds it later than the keeper's deadlines
	// takes an end for a failure, one that finds it earlier would end tasks.
	b, err := json.Marshal(file)
	if err != nil {
		return err
	}
	if err := replaceFile(l.file, b, false); err != nil {
		return err
	}
	if err := l.keeper.SetLeases(ctx, list); err != nil {
		return fmt.Errorf("hand over leases: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.told)
	for _, e := range list {
		l.told[e.Task] = time.Duration(e.Deadline)
	}
	return nil
}
