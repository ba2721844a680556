//go:build e2e

package containerd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/shim"

	"wherry.dev/agent"
	"wherry.dev/spec"
	"wherry.dev/tests/images"
)

// shims returns the processes of shims of a container.
func (h *host) shims(id string) (pids []int) {
	for pid, line := range processes() {
		if shimID(line, h.daemon.Address()) == id {
			pids = append(pids, pid)
		}
	}
	return pids
}

// sockets returns the names of the shims' sockets that exist.
func (h *host) sockets() []string {
	h.t.Helper()
	var names []string
	entries, err := os.ReadDir(h.daemon.config().ShimSockets)
	if err != nil {
		h.t.Fatal(err)
	}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func (h *host) socketOf(id string) string {
	h.t.Helper()
	c := h.daemon.config()
	a, err := shim.CreateSocketAddress(namespaces.WithNamespace(context.Background(), Namespace), c.ShimSockets, c.Address, id, false)
	if err != nil {
		h.t.Fatal(err)
	}
	return strings.TrimPrefix(a, "unix://")
}

// serving waits until the shim of a container answers, which it does even to
// what is no request.
func (h *host) serving(id string) {
	h.t.Helper()
	conn, err := net.Dial("unix", h.socketOf(id))
	if err != nil {
		h.t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		h.t.Fatal(err)
	}
	_, err = conn.Write(make([]byte, 10))
	if _, rerr := conn.Read(make([]byte, 10)); errors.Join(err, rerr) != nil {
		h.t.Fatalf("the shim does not serve: %v", errors.Join(err, rerr))
	}
}

// readLog opens the log of a shim, which waits for that before it serves.
func (h *host) readLog(bundle string) {
	h.t.Helper()
	f, err := os.OpenFile(filepath.Join(bundle, "log"), os.O_RDWR, 0)
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { f.Close() })
}

// leak starts a shim and takes its bundle away. Unless it is deaf, it serves.
func (h *host) leak(id string, deaf bool) int {
	h.t.Helper()
	bundle := filepath.Join(h.dir, "leak", id)
	if err := errors.Join(os.MkdirAll(bundle, 0o700), syscall.Mkfifo(filepath.Join(bundle, "log"), 0o600)); err != nil {
		h.t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: h.socketOf(id), Net: "unix"})
	if err != nil {
		h.t.Fatal(err)
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	if err != nil {
		h.t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command(self(h.t), "-namespace", Namespace, "-id", id, "-address", h.daemon.Address())
	cmd.Dir = bundle
	cmd.ExtraFiles = []*os.File{f}
	cmd.Env = append(os.Environ(), "TTRPC_ADDRESS="+h.daemon.Address()+".ttrpc", exitsEnv+"="+recordsDir(h.data()))
	if err := cmd.Start(); err != nil {
		h.t.Fatal(err)
	}
	go func() { _ = cmd.Wait() }()
	h.t.Cleanup(func() { _ = cmd.Process.Kill() })
	pid := cmd.Process.Pid
	if deaf {
		waitFor(h.t, "the shim to open its log", func() bool { return holdsLog(pid) })
	} else {
		h.readLog(bundle)
		h.serving(id)
	}
	if err := os.RemoveAll(bundle); err != nil {
		h.t.Fatal(err)
	}
	return pid
}

// holdsLog reports whether a process has a file by the name of a shim's log open.
func holdsLog(pid int) bool {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	entries, _ := os.ReadDir(dir)
	return slices.ContainsFunc(entries, func(e os.DirEntry) bool {
		to, err := os.Readlink(filepath.Join(dir, e.Name()))
		return err == nil && filepath.Base(to) == "log"
	})
}

// TestShimWithoutBundle: containerd and the daemon are killed while a helper
// starts a shim, which is then known to nobody.
func TestShimWithoutBundle(t *testing.T) {
	h := newHost(t)
	img := h.load(nil, images.Config{})
	loop := command("while :; do sleep 1; done")
	pid := h.runTask(h.container("1-1", img, loop))
	served := h.shims("1-1")

	// The helper has been told everything, and waits until it is told to go on.
	link, told, goOn := h.daemon.dir("bin", shimName), h.dir+"/told", h.dir+"/go"
	script := fmt.Sprintf("#!/bin/sh\ncat > %[1]s.part\nmv %[1]s.part %[1]s\nwhile [ ! -e %[2]s ]; do sleep 0.02; done\nexec %[3]s \"$@\" < %[1]s\n", told, goOn, self(t))
	if err := errors.Join(os.Remove(link), os.WriteFile(link, []byte(script), 0o700)); err != nil {
		t.Fatal(err)
	}
	c := h.container("1-2", img, loop)
	if err := h.rt.Create(context.Background(), c); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if _, err := h.rt.Start(ctx, c.Task); err == nil {
			t.Error("started without containerd")
		}
	}()
	waitFor(t, "the helper", func() bool { _, err := os.Stat(told); return err == nil })
	// Frozen, lest it end the helper when its client goes.
	if err := syscall.Kill(h.childPID(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	h.abandon()
	h.killChild()
	cancel()
	<-ended
	if err := os.WriteFile(goOn, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var lost []int
	waitFor(t, "the helper to leave a shim", func() bool {
		lost = h.shims("1-2")
		return len(lost) == 1 && holdsLog(lost[0])
	})
	h.readLog(filepath.Join(h.daemon.bundles(), "1-2"))
	h.serving("1-2")

	h.start()
	waitFor(t, "the shim to be ended", func() bool { return !running(lost[0]) })
	waitFor(t, "its socket to be removed", func() bool { return slices.Equal(h.sockets(), []string{filepath.Base(h.socketOf("1-1"))}) })
	if now := h.shims("1-1"); !slices.Equal(now, served) {
		t.Errorf("shim of the running container: processes %d, want %d", now, served)
	}
	if s := h.state("1-1"); s.State != agent.RunRunning || s.PID != pid {
		t.Errorf("running all the time: %+v, want PID %d", s, pid)
	}
	if _, err := h.rt.Start(context.Background(), c.Task); err != nil {
		t.Errorf("start after the shim was ended: %v", err)
	}
}

// TestSweep: what serves nobody goes, also when the daemon ends; a shim that
// lost its bundle and was found by a later start of its container stays.
func TestSweep(t *testing.T) {
	h := newHost(t)
	img := h.load(nil, images.Config{})
	loop := command("while :; do sleep 1; done")
	pids := map[spec.TaskID]int{"1-1": h.runTask(h.container("1-1", img, loop))}
	found := h.leak("1-2", false)
	pids["1-2"] = h.runTask(h.container("1-2", img, loop))
	if _, _, parent, _ := procStat(pids["1-2"]); parent != found {
		t.Fatalf("the container runs under %d, want the shim %d", parent, found)
	}
	// Not as one that may just be starting a container.
	if err := os.Chtimes(filepath.Join(h.daemon.bundles(), "1-2"), time.Time{}, time.Now().Add(-startTime)); err != nil {
		t.Fatal(err)
	}
	shims := [][]int{h.shims("1-1"), h.shims("1-2")}
	sockets := h.sockets()
	check := func(lost int) {
		t.Helper()
		if running(lost) {
			t.Error("a shim that serves nobody still runs")
		}
		if now := h.sockets(); !slices.Equal(now, sockets) {
			t.Errorf("sockets %v, want those of the running containers: %v", now, sockets)
		}
		if now := [][]int{h.shims("1-1"), h.shims("1-2")}; !reflect.DeepEqual(now, shims) {
			t.Errorf("shims of the running containers: processes %d, want %d", now, shims)
		}
	}

	lost := h.leak("1-3", false)
	h.daemon.sweep(t.Context())
	check(lost)

	lost = h.leak("1-4", true)
	h.cancel()
	<-h.done
	h.cancel = nil
	check(lost)

	// Both shims are reached by their sockets.
	h.start()
	for id, pid := range pids {
		if s := h.state(id); s.State != agent.RunRunning || s.PID != pid {
			t.Errorf("running all the time: %+v, want PID %d", s, pid)
		}
	}
}
