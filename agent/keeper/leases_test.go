package keeper

import (
	"errors"
	"log/slog"
	"slices"
	"testing"
	"time"

	"wherry.dev/spec"
)

// fakeGuard is a guard with a clock that stands still and cgroups in memory.
type fakeGuard struct {
	*guard
	clock  time.Duration
	procs  map[string]int // :: cgroup → processes
	killed []string
	fails  error
}

func newFakeGuard() *fakeGuard {
	f := &fakeGuard{guard: newGuard(slog.New(slog.DiscardHandler)), procs: map[string]int{}}
	f.now = func() int64 { return int64(f.clock) }
	f.kill = func(cgroup string) (int, error) {
		if f.fails != nil {
			return 0, f.fails
		}
		n := f.procs[cgroup]
		f.procs[cgroup] = 0
		if n > 0 {
			f.killed = append(f.killed, cgroup)
		}
		return n, nil
	}
	return f
}

func leaseOf(task string, deadline time.Duration) spec.TaskLease {
	return spec.TaskLease{Task: spec.TaskID(task), Cgroup: "/wherry-n1/" + task, Deadline: int64(deadline)}
}

func TestGuard(t *testing.T) {
	f := newFakeGuard()
	f.procs["/wherry-n1/1-1"], f.procs["/wherry-n1/1-2"] = 3, 1
	if wait := f.look(); wait != 0 {
		t.Errorf("without leases: look again after %s", wait)
	}
	f.set([]spec.TaskLease{leaseOf("1-1", 10*time.Second), leaseOf("1-2", 60*time.Second)})
	if wait := f.look(); wait != leaseLook || len(f.killed) > 0 {
		t.Errorf("long before: look again after %s, killed %v", wait, f.killed)
	}
	f.clock = 9700 * time.Millisecond
	if wait := f.look(); wait != 300*time.Millisecond || len(f.killed) > 0 {
		t.Errorf("just before: look again after %s, killed %v", wait, f.killed)
	}
	f.clock = 10 * time.Second
	if wait := f.look(); wait != leaseAgain || !slices.Equal(f.killed, []string{"/wherry-n1/1-1"}) {
		t.Errorf("at the deadline: look again after %s, killed %v", wait, f.killed)
	}
	// A start that comes late is ended as well.
	f.procs["/wherry-n1/1-1"] = 1
	f.clock += leaseAgain
	f.look()
	if len(f.killed) != 2 || f.ended.Load() != 2 {
		t.Errorf("a late start: killed %v", f.killed)
	}
	// A later deadline lets it run again.
	f.set([]spec.TaskLease{leaseOf("1-1", 30*time.Second), leaseOf("1-2", 60*time.Second)})
	f.procs["/wherry-n1/1-1"] = 1
	if wait := f.look(); wait != leaseLook || len(f.killed) != 2 {
		t.Errorf("renewed: look again after %s, killed %v", wait, f.killed)
	}
	f.clock = time.Hour
	f.pause(true)
	if wait := f.look(); wait != 0 || len(f.killed) != 2 {
		t.Errorf("paused: look again after %s, killed %v", wait, f.killed)
	}
	f.pause(false)
	f.fails = errors.New("read-only file system")
	f.look()
	if p := f.problems(); len(p) != 2 || p[0] != "task 1-1 cannot be ended: read-only file system" {
		t.Errorf("problems: %q", p)
	}
	f.fails = nil
	f.look()
	if len(f.killed) != 4 || len(f.problems()) != 0 {
		t.Errorf("at last: killed %v, problems %v", f.killed, f.problems())
	}
	f.set(nil)
	f.procs["/wherry-n1/1-1"] = 1
	if wait := f.look(); wait != 0 || len(f.killed) != 4 {
		t.Errorf("off the list: look again after %s, killed %v", wait, f.killed)
	}
}

func TestLeasesAreChecked(t *testing.T) {
	w := newWorld(t)
	c := w.ensure("1")
	for _, cgroup := range []string{"", "/", "/system.slice", "/wherry-n1/", "wherry-n1/1-1", "/wherry-n1/../x", "/wherry-n1/*", "/a//b"} {
		err := c.SetLeases(w.ctx(), []spec.TaskLease{{Task: "1-1", Cgroup: cgroup, Deadline: 1}})
		if !errors.Is(err, spec.ErrInvalid) {
			t.Errorf("cgroup %q: %v, want a refusal", cgroup, err)
		}
	}
	if s := mustStatus(t, c); s.Leases != 0 {
		t.Errorf("status %+v", s)
	}
}

// TestLeasesAreKept: the next keeper knows the deadlines, after a handover and
// after the end of the last one.
func TestLeasesAreKept(t *testing.T) {
	w := newWorld(t)
	c := w.ensure("1")
	far := time.Duration(boottime()) + time.Hour
	if err := c.SetLeases(w.ctx(), []spec.TaskLease{leaseOf("1-1", far), leaseOf("1-2", far)}); err != nil {
		t.Fatal(err)
	}
	c = w.ensure("2")
	if s := mustStatus(t, c); s.Leases != 2 || s.Version != "2" {
		t.Errorf("after a handover: %+v", s)
	}
	p, err := processOf(mustStatus(t, c).PID)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.kill(w.ctx()); err != nil {
		t.Fatal(err)
	}
	if s := mustStatus(t, w.ensure("2")); s.Leases != 2 || s.PID == p.PID {
		t.Errorf("after its end: %+v", s)
	}
}
