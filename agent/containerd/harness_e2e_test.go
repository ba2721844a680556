//go:build e2e

package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wherry.dev/agent"
	"wherry.dev/spec"
	"wherry.dev/tests/images"
)

// TestMain lets the test binary be what the program is: containerd, its shim
// and the init of containers.
func TestMain(m *testing.M) {
	if run, ok := Role(os.Args); ok {
		os.Exit(run())
	}
	os.Exit(m.Run())
}

// host is a node with a containerd of its own.
type host struct {
	t      testing.TB
	dir    string
	node   spec.NodeID
	daemon *Daemon
	rt     *Runtime
	cancel context.CancelFunc
	done   chan struct{}
}

var hostCount atomic.Int32

// newHost starts containerd in a folder of its own and stops all of it at the
// end of the test.
func newHost(t testing.TB) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("this test needs root")
	}
	dir, err := os.MkdirTemp("", "wh")
	if err != nil {
		t.Fatal(err)
	}
	h := &host{t: t, dir: dir, node: spec.NodeID(fmt.Sprintf("%08x%04x0000", os.Getpid(), hostCount.Add(1)))}
	t.Cleanup(func() {
		h.stop()
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("folder is still in use: %v", err)
		}
	})
	h.start()
	return h
}

func (h *host) data() string { return filepath.Join(h.dir, "d") }
func (h *host) run() string  { return filepath.Join(h.dir, "r") }

func (h *host) daemonConfig() DaemonConfig {
	return DaemonConfig{DataDir: h.data(), RunDir: h.run(), Binary: self(h.t), Logger: slog.New(slog.NewTextHandler(testWriter{h.t}, nil))}
}

func self(t testing.TB) string {
	p, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// start is the start of a daemon of the node.
func (h *host) start() {
	h.t.Helper()
	h.daemon = NewDaemon(h.daemonConfig())
	ctx, cancel := context.WithCancel(context.Background())
	h.cancel, h.done = cancel, make(chan struct{})
	failed := make(chan error, 1)
	rt, err := New(h.config())
	if err != nil {
		h.t.Fatal(err)
	}
	h.rt = rt
	go func() {
		defer close(h.done)
		rctx, rcancel := context.WithCancel(context.Background())
		ended := make(chan struct{})
		go func() { defer close(ended); _ = rt.Run(rctx) }()
		if err := h.daemon.Run(ctx); err != nil {
			failed <- err
		}
		rcancel()
		<-ended
	}()
	select {
	case <-h.daemon.Ready():
	case err := <-failed:
		h.t.Fatal(err)
	case <-time.After(30 * time.Second):
		h.t.Fatal("containerd does not start")
	}
}

func (h *host) config() Config {
	return Config{
		Address: filepath.Join(h.run(), "containerd", "containerd.sock"), DataDir: h.data(), RunDir: h.run(),
		Node: h.node, Binary: self(h.t), CDIDirs: []string{filepath.Join(h.dir, "cdi")},
		Logger: slog.New(slog.NewTextHandler(testWriter{h.t}, nil)),
	}
}

func (h *host) stop() {
	if h.cancel == nil {
		return
	}
	if states, err := h.rt.List(context.Background()); err == nil {
		for _, s := range states {
			if err := h.rt.Remove(context.Background(), s.Task); err != nil {
				h.t.Error(err)
			}
		}
	} else {
		h.t.Error(err)
	}
	h.rt.removeParent()
	h.cancel()
	<-h.done
	h.cancel = nil
}

// childPID is the PID of the containerd that runs now.
func (h *host) childPID() int {
	h.t.Helper()
	var r childRecord
	if !readRecord(h.daemon.pidFile(), &r) {
		h.t.Fatal("no containerd runs")
	}
	return r.PID
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	if testing.Verbose() {
		fmt.Fprintf(os.Stderr, "%s: %s", w.t.Name(), b)
	}
	return len(b), nil
}

// load stores an image and returns its configuration.
func (h *host) load(files map[string]string, c images.Config) agent.ImageConfig {
	h.t.Helper()
	b, err := images.Busybox(files, c)
	if err != nil {
		h.t.Fatal(err)
	}
	loaded, err := h.rt.Load(context.Background(), bytes.NewReader(b))
	if err != nil {
		h.t.Fatal(err)
	}
	img, err := h.rt.Ensure(context.Background(), agent.ImageRequest{Image: loaded[0].Name})
	if err != nil {
		h.t.Fatal(err)
	}
	return img
}

// container makes a description whose output goes to two FIFOs.
func (h *host) container(id string, img agent.ImageConfig, t spec.Template) agent.Container {
	return agent.Container{
		Task: spec.TaskID(id), Name: "test.web." + id, Stack: "test", Service: "web", Hostname: "web",
		Template: t, Image: img,
	}
}

// command makes a template that runs a shell line.
func command(line string) spec.Template {
	return spec.Template{Image: "docker.io/library/busybox:latest", Command: []string{"/bin/sh", "-c", line}, NetworkMode: "none"}
}

func (h *host) runTask(c agent.Container) int {
	h.t.Helper()
	ctx := context.Background()
	if err := h.rt.Create(ctx, c); err != nil {
		h.t.Fatal(err)
	}
	pid, err := h.rt.Start(ctx, c.Task)
	if err != nil {
		h.t.Fatal(err)
	}
	return pid
}

// state returns the state of a task.
func (h *host) state(id spec.TaskID) agent.ContainerState {
	h.t.Helper()
	states, err := h.rt.List(context.Background())
	if err != nil {
		h.t.Fatal(err)
	}
	for _, s := range states {
		if s.Task == id {
			return s
		}
	}
	return agent.ContainerState{}
}

// await polls until the task is in a state.
func (h *host) await(id spec.TaskID, want agent.RunState) agent.ContainerState {
	h.t.Helper()
	var s agent.ContainerState
	waitFor(h.t, fmt.Sprintf("%s to be %s", id, want), func() bool {
		s = h.state(id)
		return s.State == want
	})
	return s
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// output runs a task to its end and returns what it wrote.
func (h *host) output(c agent.Container) (string, agent.ContainerState) {
	h.t.Helper()
	path := filepath.Join(h.dir, "out"+string(c.Task))
	if err := syscall.Mkfifo(path, 0o600); err != nil && !errors.Is(err, os.ErrExist) {
		h.t.Fatal(err)
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	c.Stdout, c.Stderr = path, path
	h.runTask(c)
	s := h.await(c.Task, agent.RunStopped)
	var all strings.Builder
	buf := make([]byte, 4096)
	for {
		_ = f.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		n, err := f.Read(buf)
		all.Write(buf[:n])
		if err != nil {
			break
		}
	}
	return all.String(), s
}
