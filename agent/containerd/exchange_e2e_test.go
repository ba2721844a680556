//go:build e2e

package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"wherry.dev/agent"
	"wherry.dev/spec"
	"wherry.dev/tests/images"
)

// memory is a file system as the agent has it for secrets.
func (h *host) memory() string {
	h.t.Helper()
	dir := filepath.Join(h.dir, "files")
	if err := errors.Join(os.MkdirAll(dir, 0o700), unix.Mount("files", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700,noswap")); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			h.t.Error(err)
		}
	})
	return dir
}

func (h *host) file(path, text string) string {
	h.t.Helper()
	if err := errors.Join(os.RemoveAll(path), os.WriteFile(path, []byte(text), 0o444)); err != nil {
		h.t.Fatal(err)
	}
	return path
}

// sh runs a line in a task.
func (h *host) sh(id spec.TaskID, line string) string {
	h.t.Helper()
	var out bytes.Buffer
	if code, err := h.rt.Exec(context.Background(), id, agent.Exec{Args: []string{"sh", "-c", line}, Stdout: &out, Stderr: &out}); err != nil || code != 0 {
		h.t.Fatalf("%s: %d, %v, %s", line, code, err, out.String())
	}
	return out.String()
}

// TestExchange: files that are mounted one by one, anywhere, change at once for
// whoever opens them, and never are half of anything.
func TestExchange(t *testing.T) {
	h := newHost(t)
	dir := h.memory()
	img := h.load(map[string]string{"etc/app/other": "neighbour", "real/deep/file": "of the image", "link": "->"}, images.Config{})
	c := h.container("1-1", img, command(`ln -s /nowhere /x; exec 3</etc/app/conf
while read a < /etc/app/conf && [ ${#a} = 4096 ] && [ -z "$(echo $a | tr -d $(echo $a | cut -c1))" ]; do :; done
echo "$a" > /half; sleep 1000`))
	full := func(c string) string { return strings.Repeat(c, 4096) + "\n" }
	options := []string{"nosuid", "nodev", "noexec"}
	mount := func(name, target string) agent.Mount {
		return agent.Mount{Source: filepath.Join(dir, name), Target: target, ReadOnly: true, Options: options}
	}
	c.Template.ReadOnly = false
	c.Mounts = []agent.Mount{mount("a", "/etc/app/conf"), mount("b", "/run/secrets/key"), mount("c", "/root-file"), mount("d", "/move/d/file")}
	for _, name := range []string{"a", "b", "c", "d"} {
		h.file(filepath.Join(dir, name), full(name))
	}
	h.runTask(c)
	mounts := h.sh("1-1", "wc -l < /proc/1/mountinfo")
	for round := range 30 {
		letter := string(rune('A' + round%26))
		h.file(filepath.Join(dir, "a.new"), full(letter))
		h.file(filepath.Join(dir, "b.new"), letter)
		if err := h.rt.Exchange(context.Background(), "1-1", []agent.Mount{mount("a.new", "/etc/app/conf"), mount("b.new", "/run/secrets/key")}); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"a", "b"} {
			if err := os.Rename(filepath.Join(dir, name+".new"), filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		if got := h.sh("1-1", "cat /etc/app/conf /run/secrets/key"); got != full(letter)+letter {
			t.Fatalf("round %d: %.20q", round, got)
		}
	}
	if got := h.sh("1-1", "cat /root-file /proc/1/fd/3 /etc/app/other"); got != full("c")+full("a")+"neighbour" {
		t.Errorf("what was not exchanged, or is open, has changed: %.20q", got)
	}
	if half := h.sh("1-1", "cat /half 2>/dev/null; true"); half != "" {
		t.Errorf("the program has read %.40q", half)
	}
	if now := h.sh("1-1", "wc -l < /proc/1/mountinfo"); now != mounts {
		t.Errorf("the container has %s mounts, and had %s", now, mounts)
	}
	line := h.sh("1-1", "grep ' /etc/app/conf ' /proc/1/mountinfo")
	for _, o := range []string{"ro", "nosuid", "nodev", "noexec"} {
		if f := strings.Fields(line); !strings.Contains(","+f[5]+",", ","+o+",") {
			t.Errorf("the mount is not %s: %s", o, line)
		}
	}
	if b, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(b), "/etc/app/conf") {
		t.Errorf("the daemon sees the mounts of the container: %v\n%s", err, b)
	}

	// A container that moves its folders about cannot have anything else replaced.
	h.file(filepath.Join(dir, "d.new"), "new")
	moved := []agent.Mount{mount("d.new", "/move/d/file")}
	for _, trick := range []string{"mv /move/d /move/e", "mkdir /move/d; ln -s /proc/kcore /move/d/file", "rm /move/d/file; echo > /move/d/file", "rm /move/d/file; ln -s /etc/hosts /move/d/file"} {
		h.sh("1-1", trick)
		before := h.sh("1-1", "cat /proc/1/mountinfo")
		if err := h.rt.Exchange(context.Background(), "1-1", moved); err == nil {
			t.Errorf("%s: exchanged", trick)
		}
		if after := h.sh("1-1", "cat /proc/1/mountinfo"); after != before {
			t.Errorf("%s: the mounts are\n%swere\n%s", trick, after, before)
		}
	}
	h.sh("1-1", "rm -r /move/d; mv /move/e /move/d")
	if err := h.rt.Exchange(context.Background(), "1-1", moved); err != nil {
		t.Error(err)
	}
	if got := h.sh("1-1", "cat /move/d/file"); got != "new" {
		t.Errorf("moved back it is %.20q", got)
	}

	// The next process starts with what is in place by then.
	if err := h.rt.Kill(context.Background(), "1-1", 9, true); err != nil {
		t.Fatal(err)
	}
	h.await("1-1", agent.RunStopped)
	if err := h.rt.Exchange(context.Background(), "1-1", moved); !errors.Is(err, spec.ErrConflict) {
		t.Errorf("exchanged in a container that does not run: %v", err)
	}
	if _, err := h.rt.Start(context.Background(), "1-1"); err != nil {
		t.Fatal(err)
	}
	if got := h.sh("1-1", "cat /run/secrets/key"); got != "D" {
		t.Errorf("the next process has %q", got)
	}
}

// TestSecretEnv: variables of a file are in the program's environment, in that
// of further processes, and in nothing that is written down.
func TestSecretEnv(t *testing.T) {
	h := newHost(t)
	dir := h.memory()
	img := h.load(nil, images.Config{Env: []string{"A=image"}})
	const value = "hunter2 with = and\nlines"
	for i, init := range []bool{false, true} {
		id := spec.TaskID(fmt.Sprint("1-", i+1))
		c := h.container(string(id), img, command(`echo "$A/$B" > /seen; echo $$ > /pid; exec sleep 1000`))
		c.Template.Init = init
		c.EnvFile = h.file(filepath.Join(dir, "env"), "A=over\x00B="+value+"\x00")
		h.runTask(c)
		waitFor(t, "the program", func() bool { return strings.Contains(h.sh(id, "cat /pid 2>/dev/null; true"), "\n") })
		if got := h.sh(id, "cat /seen"); got != "over/"+value+"\n" {
			t.Errorf("init %t: the program has %q", init, got)
		}
		if got := h.sh(id, `echo "$B"`); got != value+"\n" {
			t.Errorf("init %t: a further process has %q", init, got)
		}
		if pid := strings.TrimSpace(h.sh(id, "cat /pid")); (pid == "1") == init {
			t.Errorf("init %t: the program is process %s", init, pid)
		}
		if code, err := h.rt.Exec(context.Background(), id, agent.Exec{Args: []string{"no-such-thing"}}); code != 127 && !errors.Is(err, spec.ErrInvalid) {
			t.Errorf("init %t: a command that does not exist: %d, %v", init, code, err)
		}
		if code, err := h.rt.Exec(context.Background(), id, agent.Exec{Args: []string{"sh", "-c", "exit 7"}}); code != 7 || err != nil {
			t.Errorf("init %t: the status of a further process: %d, %v", init, code, err)
		}
	}
	err := filepath.WalkDir(h.dir, func(path string, d os.DirEntry, err error) error {
		if path == dir {
			return filepath.SkipDir
		}
		if err != nil || !d.Type().IsRegular() || strings.Contains(path, "/snapshots/") || strings.Contains(path, "/rootfs/") {
			return nil // what the program itself has written
		}
		if b, err := os.ReadFile(path); err == nil && bytes.Contains(b, []byte("hunter2")) {
			t.Errorf("%s holds the secret", path)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
