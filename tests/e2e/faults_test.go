//go:build e2e

package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"wherry.dev/tests/images"
	"wherry.dev/tests/lab"
)

// TestRefusals: each bad input gives a clear error and its exit code, and
// changes nothing.
func TestRefusals(t *testing.T) {
	l, h := oneHost(t)
	foreign := filepath.Join(t.TempDir(), "foreign.tar")
	if err := os.WriteFile(foreign, images.Must(t, "wherry-examples/foreign:1", "linux/s390x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := h.Wherry("image", "load", foreign); r.Code != 3 || !strings.Contains(r.Stderr, "linux/s390x") {
		t.Errorf("image for another platform: exit %d, want 3 and its platform: %s", r.Code, r.Stderr)
	}
	h.Must("apply", "-f", stack(t, "name: holder\nservices: {web: {image: "+image+", init: true, command: [sleep, '1000'], ports: ['7000:80']}}\n"))

	// Somebody else on the host listens on 7100.
	squatter := exec.Command("nsenter", "--net="+l.NSPath(h.Name), "--", "busybox", "nc", "-l", "-p", "7100")
	squatter.Stdin = nil
	if err := squatter.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = squatter.Process.Kill(); _ = squatter.Wait() }()

	cases := []struct {
		name, file string
		code       int
		want       []string
	}{
		{"missing image", "services: {web: {image: 127.0.0.1:1/none:1}}", 1, []string{"services.web.image", "127.0.0.1:1/none:1"}},
		{"two stacks want one port", "services: {web: {image: " + image + ", ports: ['7000:80']}}", 1, []string{"7000", "holder/web"}},
		{"the host has the port", "services: {web: {image: " + image + ", init: true, command: [sleep, '1000'], ports: ['7100:80']}}", 1, []string{"7100", "busybox"}},
		{"no such command", "services: {web: {image: " + image + ", command: [/no/such/command]}}", 1, []string{"/no/such/command"}},
		{"unknown key", "services: {web: {image: " + image + ", comand: [true]}}", 3, []string{"comand", "command"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := h.Wherry("apply", "-f", stack(t, "name: bad\n"+c.file+"\n"), "--timeout", "45s")
			if r.Code != c.code {
				t.Errorf("exit %d, want %d", r.Code, c.code)
			}
			for _, w := range c.want {
				if !strings.Contains(r.Stderr, w) {
					t.Errorf("the error does not say %q", w)
				}
			}
			if t.Failed() {
				t.Log(r.Stderr)
			}
			if h.Wherry("rm", "bad").Code == 0 {
				t.Log("the stack had been accepted")
			}
		})
	}
	if got := strings.Fields(h.Must("ls", "--format", "{{.name}}")); len(got) != 1 {
		t.Errorf("stacks afterwards: %v", got)
	}
}

// TestPortTaken: a running service that is moved to a port of somebody else on
// the host fails and names him, and serves as soon as he is gone.
func TestPortTaken(t *testing.T) {
	l, h := oneHost(t)
	file := func(port int) string {
		return stack(t, fmt.Sprintf("name: shop\nservices: {web: {image: %s, init: true, command: [httpd, -f, -p, '80', -h, /etc], ports: ['%d:80']}}\n", image, port))
	}
	serves := func(port int) error {
		_, err := fetch(l, h.Name, fmt.Sprintf("http://%s:%d/passwd", h.IP, port))
		return err
	}
	h.Must("apply", "-f", file(7200))
	lab.Eventually(t, soon, "the first port serves", func() error { return serves(7200) })
	before := one(t, h, "shop/web")

	holder := exec.Command("nsenter", "--net="+l.NSPath(h.Name), "--", "busybox", "nc", "-l", "-p", "7201")
	in, err := holder.StdinPipe() // at the end of its input it would end
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	release := sync.OnceFunc(func() { _ = holder.Process.Kill(); _ = holder.Wait() })
	defer release()
	lab.Eventually(t, soon, "somebody listens on 7201", func() error {
		if out := l.In(h.Name, "ss", "-Hltn", "sport = :7201").Stdout; !strings.Contains(out, ":7201") {
			return fmt.Errorf("sockets: %q", out)
		}
		return nil
	})

	r := h.Wherry("apply", "-f", file(7201), "--timeout", "45s")
	if r.Code != 1 || !strings.Contains(r.Stderr, "7201/tcp") || !strings.Contains(r.Stderr, "busybox") {
		t.Errorf("apply onto a taken port: exit %d, want 1 and the holder\n%s", r.Code, r.Stderr)
	}
	if ls := h.Must("service", "ls", "shop", "--format", "json"); !strings.Contains(ls, "busybox") || !strings.Contains(ls, "failed") {
		t.Errorf("service ls does not tell: %s", ls)
	}
	release()
	lab.Eventually(t, soon, "the service runs again by itself", func() error {
		if ls := h.Must("service", "ls", "shop", "--format", "{{.state}}"); strings.TrimSpace(ls) != "running" {
			return fmt.Errorf("service ls: %s", ls)
		}
		return nil
	})
	h.Must("apply", "-f", file(7201))
	if err := serves(7201); err != nil {
		t.Errorf("the port does not serve: %v", err)
	}
	if after := one(t, h, "shop/web"); after.ID != before.ID || after.Status.PID != before.Status.PID {
		t.Errorf("task %s (pid %d) has become %s (pid %d)", before.ID, before.Status.PID, after.ID, after.Status.PID)
	}
	h.Must("rm", "shop")
}

// TestLogsOfBusyTask: without --follow logs end, although the container writes
// faster than they are read, and its files are rotated meanwhile.
func TestLogsOfBusyTask(t *testing.T) {
	l, h := oneHost(t)
	h.Must("apply", "-f", stack(t, "name: busy\nservices: {yes: {image: "+image+", command: ['yes'], cpus: 0.5, "+
		"logging: {driver: json-file, options: {max-size: 1m, max-file: '3'}}}}\n"))
	for _, args := range [][]string{{"logs", "busy"}, {"logs", "busy", "--tail", "1000"}} {
		r := l.In(h.Name, append([]string{"timeout", "30", lab.Binary(t), "--host", h.Socket()}, args...)...)
		if lines := strings.Count(r.Stdout, "\n"); r.Code != 0 || lines == 0 || lines > 100_000 || len(args) > 2 && lines != 1000 {
			t.Errorf("%v: exit %d, %d lines: %s", args, r.Code, lines, r.Stderr)
		}
	}
	h.Must("rm", "busy")
}

// TestSecondDaemon: a folder has one daemon.
func TestSecondDaemon(t *testing.T) {
	_, h := oneHost(t)
	r := h.Run(lab.Binary(t), "daemon", "--data-dir", h.DataDir, "--run-dir", h.RunDir+"2")
	if r.Code != 1 || !strings.Contains(r.Stderr, fmt.Sprint(h.PID())) {
		t.Errorf("same data folder: exit %d, want 1 and the holder's pid %d\n%s", r.Code, h.PID(), r.Stderr)
	}
	child := findProcesses(h.RunDir, "wherry containerd")
	r = h.Run(lab.Binary(t), "daemon", "--data-dir", h.DataDir+"2", "--run-dir", h.RunDir)
	if r.Code != 1 || !strings.Contains(r.Stderr, fmt.Sprint(h.PID())) {
		t.Errorf("same run folder: exit %d, want 1 and the holder's pid %d\n%s", r.Code, h.PID(), r.Stderr)
	}
	if now := findProcesses(h.RunDir, "wherry containerd"); !slices.Equal(now, child) {
		t.Errorf("containerd %v became %v", child, now)
	}
	for _, dir := range []string{h.RunDir + "2", h.DataDir + "2"} {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	h.Must("node", "ls")
}

// TestStaleRunFolder: what a dead daemon left in the run folder is no obstacle.
func TestStaleRunFolder(t *testing.T) {
	l := lab.New(t)
	h := l.Host("host-1")
	if err := os.MkdirAll(h.RunDir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"wherry.sock", "node.sock", "keeper.sock"} {
		stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(h.RunDir, s)})
		if err != nil {
			t.Fatal(err)
		}
		stale.SetUnlinkOnClose(false)
		stale.Close()
	}
	h.Start()
}

// TestDiskFull: a full data folder refuses writes and says so, loses nothing,
// and goes on when there is room again.
func TestDiskFull(t *testing.T) {
	l := lab.New(t)
	h := l.Host("host-1")
	if err := os.MkdirAll(h.DataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	img := filepath.Join(filepath.Dir(h.DataDir), "disk.img")
	for _, args := range [][]string{{"truncate", "-s", "400M", img}, {"mkfs.ext4", "-q", img}, {"mount", "-o", "loop", img, h.DataDir}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	// Cleanups run in reverse: the lab's, which stops the daemon, must be first.
	unmounted := false
	defer func() {
		if !unmounted {
			h.Kill()
			_ = exec.Command("umount", "-l", h.DataDir).Run()
		}
	}()
	h.Start()
	load(t, h, images.Must(t, image, ""))
	f := stack(t, "name: full\nservices: {web: {image: "+image+", init: true, command: [sleep, '1000']}}\n")
	h.Must("apply", "-f", f)
	pid := one(t, h, "full/web").Status.PID

	filler := filepath.Join(h.DataDir, "filler")
	fd, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 1<<20)
	for err == nil {
		_, err = fd.Write(block)
	}
	if !strings.Contains(err.Error(), syscall.ENOSPC.Error()) {
		t.Fatal(err)
	}
	fd.Close()

	lab.Eventually(t, soon, "a write is refused for lack of space", func() error {
		started := time.Now()
		r := h.Wherry("service", "scale", "full/web=2", "--wait=false")
		if r.Code == 0 || !strings.Contains(r.Stderr, "left") && !strings.Contains(r.Stderr, "space") {
			return fmt.Errorf("exit %d: %s", r.Code, r.Stderr)
		}
		if d := time.Since(started); d > 5*time.Second {
			return fmt.Errorf("it took %s to say so", d)
		}
		return nil
	})
	h.Must("ps", "full") // reading goes on
	if !h.Alive() {
		t.Fatalf("the daemon ended:\n%s", h.LogTail(30))
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	lab.Eventually(t, soon, "writes go on when there is room", func() error {
		_, err := h.Try("service", "scale", "full/web=2")
		return err
	})
	found := false
	for _, ti := range tasks(t, h, "full/web") {
		found = found || ti.Status.PID == pid
	}
	if !found {
		t.Error("the container that ran before was restarted")
	}
	h.Must("rm", "full", "--volumes")
	h.Must("image", "rm", image)
	h.Stop()
	if out, err := exec.Command("umount", h.DataDir).CombinedOutput(); err != nil {
		t.Fatalf("umount: %v: %s", err, out)
	}
	unmounted = true
	h.Forget()
}
