package keeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

const (
	// leaseLook is how often the deadlines are looked at: the timers of a
	// process stand still while the host sleeps, deadlines do not.
	leaseLook = time.Second
	// leaseAgain is how often the cgroup of a task whose lease is over is looked
	// at: a start that was under way may still bring a process into it.
	leaseAgain = 100 * time.Millisecond
)

// guard ends exclusive tasks whose lease is over. It has a lock of its own, for
// it must wait for nothing else that the keeper does.
type guard struct {
	log  *slog.Logger
	now  func() int64 // CLOCK_BOOTTIME in nanoseconds
	kill func(cgroup string) (killed int, err error)
	wake chan struct{} // capacity one
	// ended counts tasks whose processes were ended.
	ended atomic.Uint64

	mu     sync.Mutex
	tasks  []spec.TaskLease
	paused bool // another keeper does it
	// over are the tasks that cannot be ended. // :: task → error logged last
	over map[spec.TaskID]string
}

func newGuard(log *slog.Logger) *guard {
	return &guard{log: log, now: boottime, kill: killCgroup, wake: make(chan struct{}, 1), over: map[spec.TaskID]string{}}
}

// checkLeases refuses what could end other processes than those of one task.
func checkLeases(tasks []spec.TaskLease) error {
	var errs []error
	for _, l := range tasks {
		if !filepath.IsAbs(l.Cgroup) || filepath.Clean(l.Cgroup) != l.Cgroup || strings.Count(l.Cgroup, "/") < 2 || strings.ContainsAny(l.Cgroup, "*?[\\") {
			errs = append(errs, spec.Invalidf("task %s: %q is no cgroup of a container", l.Task, l.Cgroup))
		}
	}
	return errors.Join(errs...)
}

// set replaces the whole list.
func (g *guard) set(tasks []spec.TaskLease) {
	g.mu.Lock()
	g.tasks = tasks
	listed := map[spec.TaskID]bool{}
	for _, l := range tasks {
		listed[l.Task] = true
	}
	for t := range g.over {
		if !listed[t] {
			delete(g.over, t)
		}
	}
	g.mu.Unlock()
	select {
	case g.wake <- struct{}{}:
	default:
	}
}

// pause returns when nothing is ended any more; with false it goes on.
func (g *guard) pause(paused bool) {
	g.mu.Lock()
	g.paused = paused
	g.mu.Unlock()
	if !paused {
		select {
		case g.wake <- struct{}{}:
		default:
		}
	}
}

func (g *guard) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.tasks)
}

// run looks at the deadlines until ctx ends.
func (g *guard) run(ctx context.Context) {
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		var again <-chan time.Time
		if wait := g.look(); wait > 0 {
			t.Reset(wait)
			again = t.C
		}
		select {
		case <-ctx.Done():
			return
		case <-g.wake:
		case <-again:
		}
	}
}

// look ends what is to be ended now, and returns after which time to look
// again; 0 when there is nothing to watch.
func (g *guard) look() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.paused || len(g.tasks) == 0 {
		return 0
	}
	wait := leaseLook
	for _, l := range g.tasks {
		if left := time.Duration(l.Deadline - g.now()); left > 0 {
			delete(g.over, l.Task)
			wait = min(wait, left)
			continue
		}
		wait = min(wait, leaseAgain)
		killed, err := g.kill(l.Cgroup)
		if killed > 0 {
			g.ended.Add(1)
			g.log.Warn("the lease of an exclusive task is over; its processes were ended", "task", l.Task, "processes", killed)
		}
		if err == nil {
			delete(g.over, l.Task)
		} else if g.over[l.Task] != err.Error() {
			g.over[l.Task] = err.Error()
			g.log.Error("end an exclusive task whose lease is over, trying again", "task", l.Task, "err", err)
		}
	}
	return wait
}

// problems are the tasks that cannot be ended.
func (g *guard) problems() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out []string
	for _, l := range g.tasks {
		if e := g.over[l.Task]; e != "" {
			out = append(out, fmt.Sprintf("task %s cannot be ended: %s", l.Task, e))
		}
	}
	return out
}

// boottime is CLOCK_BOOTTIME, which goes on while the host sleeps and is not
// set by anybody.
func boottime() int64 {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		panic(fmt.Sprintf("keeper: CLOCK_BOOTTIME: %v", err)) // since Linux 2.6.39
	}
	return t.Nano()
}

const cgroupRoot = "/sys/fs/cgroup"

// cgroupDirs returns the folders of a cgroup, one per hierarchy.
func cgroupDirs(cgroup string) ([]string, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(cgroupRoot, &st); err != nil {
		return nil, os.NewSyscallError("statfs", err)
	}
	if st.Type == unix.CGROUP2_SUPER_MAGIC {
		return []string{filepath.Join(cgroupRoot, cgroup)}, nil
	}
	return filepath.Glob(filepath.Join(cgroupRoot, "*", cgroup))
}

// killRounds bounds how often the processes of a cgroup are listed again in one
// look, while new ones are being forked.
const killRounds = 20

// killCgroup ends every process of a cgroup and of those below it, in every
// hierarchy, and tells how many were found. A cgroup that does not exist has none.
func killCgroup(cgroup string) (killed int, err error) {
	dirs, err := cgroupDirs(cgroup)
	if err != nil {
		return 0, err
	}
	for _, dir := range dirs {
		n, err := killDir(dir)
		killed = max(killed, n)
		if err != nil {
			return killed, err
		}
	}
	return killed, nil
}

// killDir ends the processes of one hierarchy. Where the kernel can do it (v2,
// Linux 5.14) no fork escapes; else they are listed until none is left.
func killDir(dir string) (killed int, err error) {
	for range killRounds {
		pids, err := procsBelow(dir)
		if err != nil || len(pids) == 0 {
			return killed, err
		}
		killed = max(killed, len(pids))
		err = os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
		if err == nil {
			return killed, nil
		}
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
			return killed, fmt.Errorf("end cgroup %s: %w", dir, err)
		}
		for _, p := range pids {
			if err := killMember(p.dir, p.pid); err != nil {
				return killed, err
			}
		}
	}
	return killed, nil // the next look goes on
}

// member is a process and the folder of its cgroup.
type member struct {
	dir string
	pid int
}

// procsBelow lists the processes of the cgroup at dir and of those below it.
func procsBelow(dir string) (all []member, err error) {
	pids, err := procsOf(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, nil // it has been removed
	}
	if err != nil {
		return nil, err
	}
	for _, pid := range pids {
		all = append(all, member{dir, pid})
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return all, err
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		more, err := procsBelow(filepath.Join(dir, e.Name()))
		if err != nil {
			return all, err
		}
		all = append(all, more...)
	}
	return all, nil
}

func procsOf(dir string) ([]int, error) {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil, err
	}
	var pids []int
	for f := range bytes.FieldsSeq(b) {
		pid, err := strconv.Atoi(string(f))
		if err != nil || pid <= 1 { // 0 is a process of another PID namespace
			continue
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// killMember ends one process, unless it has left the cgroup meanwhile: its PID
// may be another's by now.
func killMember(dir string, pid int) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(fd)
	pids, err := procsOf(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
		return err
	}
	for _, p := range pids {
		if p != pid {
			continue
		}
		if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return os.NewSyscallError("pidfd_send_signal", err)
		}
	}
	return nil
}
