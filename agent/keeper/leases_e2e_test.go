//go:build e2e

package keeper

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"wherry.dev/spec"
)

// newCgroup makes a cgroup in every hierarchy that can have one, with another
// one in it, and returns its path and the folders.
func newCgroup(t *testing.T) (path string, dirs []string) {
	t.Helper()
	parent := fmt.Sprintf("/wherry-test-%d", os.Getpid())
	path = parent + "/1-1"
	roots, err := cgroupDirs("/")
	if err != nil {
		t.Fatal(err)
	}
	for _, root := range roots {
		if filepath.Base(root) == "cpuset" {
			continue // takes no process before it has its CPUs
		}
		dir := filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Join(dir, "inner"), 0o755); err != nil {
			continue // read-only
		}
		t.Cleanup(func() {
			for _, d := range []string{filepath.Join(dir, "inner"), dir, filepath.Join(root, parent)} {
				eventually(t, "the cgroup is empty", func() bool { err := syscall.Rmdir(d); return err == nil || err == syscall.ENOENT })
			}
		})
		dirs = append(dirs, dir)
	}
	if len(dirs) == 0 {
		t.Fatal("no hierarchy of cgroups can be written to")
	}
	return path, dirs
}

// enter starts a shell that forks another, both deaf to SIGTERM, and puts them
// into folders of cgroups.
func enter(t *testing.T, dirs []string, sub string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("sh", "-c", "trap '' TERM; read x; sh -c 'trap \"\" TERM; while :; do sleep 0.05; done' & while :; do sleep 0.05; done")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		if err := os.WriteFile(filepath.Join(d, sub, "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil {
			t.Fatal(err)
		}
	}
	in.Write([]byte("go\n"))
	done := make(chan struct{})
	go func() { cmd.Wait(); close(done) }()
	t.Cleanup(func() { cmd.Process.Kill(); <-done })
	return cmd
}

func members(t *testing.T, dirs []string) int {
	t.Helper()
	n := 0
	for _, d := range dirs {
		all, err := procsBelow(d)
		if err != nil {
			t.Fatal(err)
		}
		n = max(n, len(all))
	}
	return n
}

// TestLeaseIsEnforced: the keeper ends what is in the cgroup when the deadline
// has passed, with no daemon there, also what comes later, and also a keeper
// that was started in place of a dead one; a neighbour is left alone.
func TestLeaseIsEnforced(t *testing.T) {
	w := newWorld(t)
	path, dirs := newCgroup(t)
	neighbour := exec.Command("sleep", "60")
	if err := neighbour.Start(); err != nil {
		t.Fatal(err)
	}
	defer neighbour.Wait()
	defer neighbour.Process.Kill()
	c := w.ensure("1")
	lease := func(d time.Duration) []spec.TaskLease {
		return []spec.TaskLease{{Task: "1-1", Cgroup: path, Deadline: boottime() + int64(d)}}
	}
	if err := c.SetLeases(w.ctx(), lease(2*time.Second)); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	enter(t, dirs, "")
	enter(t, dirs, "inner")
	eventually(t, "both shells have forked", func() bool { return members(t, dirs) >= 4 })
	// Renewed once: it lives on beyond the first deadline.
	if err := c.SetLeases(w.ctx(), lease(3*time.Second)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the processes are gone", func() bool { return members(t, dirs) == 0 })
	if d := time.Since(begin); d < 2900*time.Millisecond || d > 4*time.Second {
		t.Errorf("ended after %s, want 3 s", d)
	}
	if err := neighbour.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("a neighbour: %v", err)
	}
	if s := mustStatus(t, c); s.Ended == 0 || len(s.Problems) > 0 {
		t.Errorf("status %+v", s)
	}
	// One that is started late.
	enter(t, dirs, "")
	eventually(t, "the late process is gone", func() bool { return members(t, dirs) == 0 })

	// Another keeper in place of one that was killed while the lease ran.
	if err := c.SetLeases(w.ctx(), lease(3*time.Second)); err != nil {
		t.Fatal(err)
	}
	enter(t, dirs, "")
	p, err := processOf(mustStatus(t, c).PID)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.kill(w.ctx()); err != nil {
		t.Fatal(err)
	}
	w.ensure("1")
	if members(t, dirs) == 0 {
		t.Error("ended before the deadline")
	}
	eventually(t, "the next keeper ends it", func() bool { return members(t, dirs) == 0 })
}
