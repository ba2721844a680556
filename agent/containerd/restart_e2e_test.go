//go:build e2e

package containerd

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"

	"wherry.dev/agent"
	"wherry.dev/agent/runtimetest"
	"wherry.dev/spec"
	"wherry.dev/tests/images"
)

// endWhenTold is a line for a shell that ends with a code once the file exists
// in its volume.
const endWhenTold = "while [ ! -e /sig/end ]; do sleep 0.02; done; exit 42"

func (h *host) withSignal(c agent.Container) (agent.Container, func()) {
	h.t.Helper()
	dir, err := os.MkdirTemp(h.dir, "sig")
	if err != nil {
		h.t.Fatal(err)
	}
	c.Mounts = append(c.Mounts, agent.Mount{Source: dir, Target: "/sig"})
	return c, func() {
		if err := os.WriteFile(dir+"/end", nil, 0o644); err != nil {
			h.t.Fatal(err)
		}
	}
}

// running reports whether a process runs; a zombie does not.
func running(pid int) bool {
	_, state, _, ok := procStat(pid)
	return ok && state != 'Z'
}

func (h *host) killChild() {
	h.t.Helper()
	pid := h.childPID()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		h.t.Fatal(err)
	}
	waitFor(h.t, "containerd to be dead", func() bool { return !running(pid) })
}

// abandon is the SIGKILL of a daemon: its child is left alone.
func (h *host) abandon() {
	h.daemon.c.KeepChild = true
	h.cancel()
	<-h.done
	h.cancel = nil
}

func TestContainerdKilled(t *testing.T) {
	h := newHost(t)
	img := h.load(nil, images.Config{})
	stays := h.container("1-1", img, command("while :; do sleep 1; done"))
	pid := h.runTask(stays)
	ends, end := h.withSignal(h.container("1-2", img, command(endWhenTold)))
	h.runTask(ends)
	oom := h.container("1-3", img, command("sleep 0.3; tail /dev/zero"))
	oom.Template.Resources.Memory = 16 << 20
	oom.Template.Resources.MemorySwap = 16 << 20
	h.runTask(oom)

	changed := h.rt.Changed()
	h.killChild()
	end()
	waitFor(t, "the end to be on record", func() bool { _, ok := readExit(h.rt.records(), "1-2"); return ok })
	waitFor(t, "the other end to be on record", func() bool { _, ok := readExit(h.rt.records(), "1-3"); return ok })
	if s := h.await("1-2", agent.RunStopped); s.ExitCode != 42 || s.Ended.IsZero() || s.OOM {
		t.Errorf("ended while containerd was down: %+v, want exit code 42", s)
	}
	if s := h.await("1-3", agent.RunStopped); s.ExitCode != 137 || !s.OOM {
		t.Errorf("killed for its memory while containerd was down: %+v, want 137 and OOM", s)
	}
	if s := h.state("1-1"); s.State != agent.RunRunning || s.PID != pid {
		t.Errorf("running all the time: %+v, want PID %d", s, pid)
	}
	select {
	case <-changed:
	case <-time.After(10 * time.Second):
		t.Error("nobody was told to look again")
	}
	// Both can be started anew, and the first goes on.
	if _, err := h.rt.Start(context.Background(), "1-2"); err != nil {
		t.Error(err)
	}
	if code, err := h.rt.Exec(context.Background(), "1-1", agent.Exec{Args: []string{"/bin/true"}}); err != nil || code != 0 {
		t.Errorf("exec after the restart: %d, %v", code, err)
	}
}

func TestDaemonRestart(t *testing.T) {
	h := newHost(t)
	img := h.load(nil, images.Config{})
	pid := h.runTask(h.container("1-1", img, command("while :; do sleep 1; done")))
	ends, end := h.withSignal(h.container("1-2", img, command(endWhenTold)))
	h.runTask(ends)
	child := h.childPID()

	h.abandon()
	end()
	waitFor(t, "the end", func() bool { _, ok := readExit(recordsDir(h.data()), "1-2"); return ok })
	h.start()
	if h.childPID() != child {
		t.Errorf("the orphan %d was not adopted, %d runs", child, h.childPID())
	}
	if s := h.state("1-2"); s.State != agent.RunStopped || s.ExitCode != 42 {
		t.Errorf("ended while the daemon was down: %+v", s)
	}
	if s := h.state("1-1"); s.State != agent.RunRunning || s.PID != pid {
		t.Errorf("running all the time: %+v, want PID %d", s, pid)
	}
	// An adopted child is watched like any other.
	h.killChild()
	waitFor(t, "a new containerd", func() bool {
		var r childRecord
		return readRecord(h.daemon.pidFile(), &r) && r.PID != child
	})
	if s := h.await("1-1", agent.RunRunning); s.PID != pid {
		t.Errorf("after the death of the adopted child: %+v", s)
	}

	// A clean end stops the child and leaves the containers.
	child = h.childPID()
	h.cancel()
	<-h.done
	h.cancel = nil
	if running(child) {
		t.Error("containerd still runs after a clean end")
	}
	if !running(pid) {
		t.Error("the container has ended with the daemon")
	}
	h.start()
	if s := h.await("1-1", agent.RunRunning); s.PID != pid {
		t.Errorf("after a clean restart: %+v", s)
	}
}

func TestOrphanOfAnotherVersion(t *testing.T) {
	h := newHost(t)
	img := h.load(nil, images.Config{})
	pid := h.runTask(h.container("1-1", img, command("while :; do sleep 1; done")))
	child := h.childPID()
	h.abandon()
	var r childRecord
	if !readRecord(h.daemon.pidFile(), &r) {
		t.Fatal("no record of the child")
	}
	r.Version = "older"
	if err := writeRecord(h.daemon.pidFile(), r); err != nil {
		t.Fatal(err)
	}
	h.start()
	if h.childPID() == child || running(child) {
		t.Errorf("containerd %d of another version was kept", child)
	}
	if s := h.await("1-1", agent.RunRunning); s.PID != pid {
		t.Errorf("the container was not kept: %+v", s)
	}
}

func TestForeignProcessIsNotAdopted(t *testing.T) {
	h := newHost(t)
	h.stop()
	// The PID is used again by another process, which must be left alone.
	rec := childRecord{PID: os.Getpid(), Birth: 1, Boot: bootID(), Version: "x"}
	if err := writeRecord(h.daemon.pidFile(), rec); err != nil {
		t.Fatal(err)
	}
	h.start()
	if h.childPID() == os.Getpid() {
		t.Error("adopted a process that is no containerd")
	}
}

func TestShimKilled(t *testing.T) {
	h := newHost(t)
	img := h.load(nil, images.Config{})
	c := h.container("1-1", img, command("while :; do sleep 1; done"))
	h.runTask(c)
	run, ok := readRun(h.rt.records(), "1-1")
	if !ok || run.Shim <= 1 {
		t.Fatalf("no record of the shim: %+v", run)
	}
	if err := killProcess(run.Shim, run.ShimBirth); err != nil {
		t.Fatal(err)
	}
	if s := h.await("1-1", agent.RunStopped); s.ExitCode != 137 {
		t.Errorf("after the death of its shim: %+v", s)
	}
	if _, err := h.rt.Start(context.Background(), "1-1"); err != nil {
		t.Errorf("start after the death of the shim: %v", err)
	}
}

func TestHungShim(t *testing.T) {
	h := newHost(t)
	img := h.load(nil, images.Config{})
	pid := h.runTask(h.container("1-1", img, command("while :; do sleep 1; done")))
	run, _ := readRun(h.rt.records(), "1-1")
	if err := syscall.Kill(run.Shim, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	h.runTask(h.container("1-2", img, command("exit 3")))
	if s := h.await("1-2", agent.RunStopped); s.ExitCode != 3 {
		t.Errorf("beside a hung shim: %+v", s)
	}
	if d := time.Since(begin); d > 8*time.Second {
		t.Errorf("a hung shim held up another task for %v", d)
	}
	if s := h.state("1-1"); s.State != agent.RunRunning || s.PID != pid {
		t.Errorf("behind a hung shim: %+v, want running with PID %d", s, pid)
	}
	if err := h.rt.Remove(context.Background(), "1-1"); err != nil {
		t.Fatal(err)
	}
	if running(pid) || running(run.Shim) {
		t.Error("processes are left over")
	}
	if s := h.state("1-1"); s.Task != "" {
		t.Errorf("still there after the removal: %+v", s)
	}
}

func TestTwoHosts(t *testing.T) {
	a, b := newHost(t), newHost(t)
	imgA, imgB := a.load(nil, images.Config{}), b.load(nil, images.Config{})
	pidA := a.runTask(a.container("1-1", imgA, command("while :; do sleep 1; done")))
	pidB := b.runTask(b.container("1-1", imgB, command("while :; do sleep 1; done")))
	if err := b.rt.Remove(context.Background(), "1-1"); err != nil {
		t.Fatal(err)
	}
	if s := a.state("1-1"); s.PID != pidA || pidA == pidB {
		t.Errorf("the other host's task: %+v, want PID %d", s, pidA)
	}
}

func TestOOM(t *testing.T) {
	h := newHost(t)
	img := h.load(nil, images.Config{})
	limited := command("tail /dev/zero")
	limited.Resources = spec.Resources{Memory: 16 << 20, MemorySwap: 16 << 20}
	h.runTask(h.container("1-1", img, limited))
	if s := h.await("1-1", agent.RunStopped); !s.OOM || s.ExitCode != 137 {
		t.Errorf("past its memory: %+v, want OOM and 137", s)
	}
	h.runTask(h.container("1-2", img, command("kill -9 $$; exit 9")))
	if s := h.await("1-2", agent.RunStopped); s.OOM {
		t.Errorf("without a limit: %+v, want no OOM", s)
	}
}

// TestOrphanWithoutRecord: the run folder was cleared under a running child.
func TestOrphanWithoutRecord(t *testing.T) {
	h := newHost(t)
	child := h.childPID()
	h.abandon()
	if err := os.Remove(h.daemon.pidFile()); err != nil {
		t.Fatal(err)
	}
	h.start()
	if running(child) {
		t.Error("the orphan still runs")
	}
}

// TestReboot: nothing of the run folder is left, and no process; the containers
// and their file systems are.
func TestReboot(t *testing.T) {
	h := newHost(t)
	img := h.load(nil, images.Config{})
	c := h.container("1-1", img, command("test -e /kept && exit 8; touch /kept; while :; do sleep 1; done"))
	c.Template.StdinOpen = true
	h.runTask(c)
	waitFor(t, "the file", func() bool {
		code, err := h.rt.Exec(context.Background(), "1-1", agent.Exec{Args: []string{"test", "-e", "/kept"}})
		return err == nil && code == 0
	})
	run, _ := readRun(h.rt.records(), "1-1")
	child := h.childPID()
	h.abandon()
	for _, pid := range []int{child, run.Shim, run.PID} {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the end of all processes", func() bool { return !running(pid) })
	}
	if err := mount.UnmountAll(h.run()+"/containerd/state/io.containerd.runtime.v2.task/wherry/1-1/rootfs", 0); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(h.run()); err != nil {
		t.Fatal(err)
	}
	h.start()
	if s := h.state("1-1"); s.State != agent.RunStopped || s.ExitCode != -1 {
		t.Errorf("after the reboot: %+v, want an end that nobody saw", s)
	}
	if _, err := h.rt.Start(context.Background(), "1-1"); err != nil {
		t.Fatal(err)
	}
	if s := h.await("1-1", agent.RunStopped); s.ExitCode != 8 {
		t.Errorf("the next attempt: %+v, want 8, since its file system was kept", s)
	}
}

// TestFileSystemsAreFreed: what a removed container wrote leaves the disk soon.
func TestFileSystemsAreFreed(t *testing.T) {
	h := newHost(t)
	img := h.load(nil, images.Config{})
	count := func() int {
		entries, err := os.ReadDir(h.data() + "/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	waitFor(t, "the looks into the image to be cleared away", func() bool { return count() == 1 })
	for i := range 3 {
		h.runTask(h.container(fmt.Sprintf("1-%d", i), img, command("exit 0")))
	}
	if n := count(); n < 4 {
		t.Errorf("%d file systems of the image and three containers", n)
	}
	for i := range 3 {
		if err := h.rt.Remove(context.Background(), spec.TaskID(fmt.Sprintf("1-%d", i))); err != nil {
			t.Fatal(err)
		}
	}
	waitFor(t, "the file systems to go", func() bool { return count() == 1 })
}

// TestExternal runs the contract on a containerd that is not ours.
func TestExternal(t *testing.T) {
	path, err := exec.LookPath("containerd")
	if err != nil {
		t.Fatalf("this test needs a containerd of the distribution: %v", err)
	}
	dir, err := os.MkdirTemp("", "wx")
	if err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf("version = 2\nroot = %q\nstate = %q\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = %q\n", dir+"/root", dir+"/state", dir+"/c.sock")
	if err := os.WriteFile(dir+"/config.toml", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(dir + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(path, "-c", dir+"/config.toml")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	d := NewDaemon(DaemonConfig{Address: dir + "/c.sock"})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	<-d.Ready()
	rt, err := New(Config{Address: d.Address(), DataDir: dir + "/d", RunDir: dir + "/r", Node: "feedfeedfeedfeed", Binary: self(t)})
	if err != nil {
		t.Fatal(err)
	}
	rctx, rcancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); _ = rt.Run(rctx) }()
	h := &host{t: t, dir: dir, rt: rt}
	img := h.load(nil, images.Config{})
	runtimetest.Run(t, func(*testing.T) runtimetest.Subject {
		return runtimetest.Subject{Runtime: rt, Execer: rt, Image: img, Adjust: func(c *agent.Container) { c.Template.NetworkMode = "none" }}
	})
	rcancel()
	<-ended
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
