//go:build e2e

package containerd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"wherry.dev/agent"
	"wherry.dev/spec"
	"wherry.dev/tests/images"
)

func TestExec(t *testing.T) {
	h := newHost(t)
	img := h.load(map[string]string{"etc/passwd": "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/:/bin/sh\n", "etc/group": "root:x:0:\napp:x:1001:\nextra:x:1002:app\n"}, images.Config{Env: []string{"FROM=image"}})
	c := h.container("1-1", img, command("while :; do sleep 1; done"))
	c.Template.Env = map[string]string{"OF": "service"}
	h.runTask(c)
	run := func(e agent.Exec) (string, int) {
		t.Helper()
		var out bytes.Buffer
		e.Stdout = &out
		code, err := h.rt.Exec(context.Background(), "1-1", e)
		if err != nil {
			t.Fatal(err)
		}
		return out.String(), code
	}
	for _, tt := range []struct {
		name string
		e    agent.Exec
		want string
	}{
		{"environment", agent.Exec{Args: []string{"sh", "-c", "echo $FROM $OF $MORE $HOSTNAME"}, Env: []string{"MORE=exec", "OF=changed"}}, "image changed exec web\n"},
		{"user", agent.Exec{Args: []string{"sh", "-c", "id -u; id -g; id -G"}, User: "app"}, "1000\n1001\n1001 1002\n"},
		{"number", agent.Exec{Args: []string{"sh", "-c", "id -u; id -g"}, User: "7:8"}, "7\n8\n"},
		{"folder", agent.Exec{Args: []string{"pwd"}, Dir: "/etc"}, "/etc\n"},
		{"not privileged", agent.Exec{Args: []string{"grep", "CapEff", "/proc/self/status"}}, "CapEff:\t00000000a00405fb\n"},
		{"privileged", agent.Exec{Args: []string{"sh", "-c", "grep CapEff /proc/self/status | grep -q a00405fb || echo more"}, Privileged: true}, "more\n"},
		{"no terminal", agent.Exec{Args: []string{"sh", "-c", "test -t 1 || echo none"}}, "none\n"},
		{"no input", agent.Exec{Args: []string{"cat"}}, ""},
		{"large output", agent.Exec{Args: []string{"sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x"}}, strings.Repeat("x", 3000000)},
	} {
		if out, code := run(tt.e); out != tt.want || code != 0 {
			t.Errorf("%s: %d, %.200q, want %.200q", tt.name, code, out, tt.want)
		}
	}
	if _, err := h.rt.Exec(context.Background(), "1-1", agent.Exec{Args: []string{"true"}, User: "nobody-here"}); !errors.Is(err, spec.ErrInvalid) {
		t.Errorf("unknown user: %v", err)
	}
	input := strings.Repeat("y", 500_000)
	if out, _ := run(agent.Exec{Args: []string{"sh", "-c", "cat | wc -c"}, Stdin: strings.NewReader(input)}); strings.TrimSpace(out) != "500000" {
		t.Errorf("large input: %q", out)
	}
	entries, err := os.ReadDir(h.rt.dir("exec"))
	if err != nil || len(entries) > 0 {
		t.Errorf("left over: %v, %v", entries, err)
	}
}

// lockedBuffer is written by a copier and read by a test at the same time.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func TestExecTerminal(t *testing.T) {
	h := newHost(t)
	img := h.load(nil, images.Config{})
	h.runTask(h.container("1-1", img, command("while :; do sleep 1; done")))
	var out lockedBuffer
	in, typed := io.Pipe()
	resize := make(chan agent.WindowSize, 1)
	done := make(chan int, 1)
	go func() {
		code, err := h.rt.Exec(context.Background(), "1-1", agent.Exec{Args: []string{"sh"}, TTY: true, Stdin: in, Stdout: &out, Resize: resize})
		if err != nil {
			t.Error(err)
		}
		done <- code
	}()
	resize <- agent.WindowSize{Width: 91, Height: 37}
	waitFor(t, "the size of the terminal", func() bool {
		if _, err := typed.Write([]byte("stty size; tty\n")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
		return strings.Contains(out.String(), "37 91") && strings.Contains(out.String(), "/dev/pts/")
	})
	if _, err := typed.Write([]byte("exit 4\n")); err != nil {
		t.Fatal(err)
	}
	if code := <-done; code != 4 {
		t.Errorf("exit code %d, want 4", code)
	}
	_ = typed.Close()
}

func TestExecSurvivesContainerd(t *testing.T) {
	h := newHost(t)
	img := h.load(nil, images.Config{})
	c, end := h.withSignal(h.container("1-1", img, command("while :; do sleep 1; done")))
	h.runTask(c)
	var out lockedBuffer
	done := make(chan struct{})
	go func() {
		defer close(done)
		code, err := h.rt.Exec(context.Background(), "1-1", agent.Exec{Args: []string{"sh", "-c", "echo begun; while [ ! -e /sig/end ]; do sleep 0.02; done; echo over; exit 6"}, Stdout: &out})
		if err != nil || code != 6 {
			t.Errorf("exec: %d, %v", code, err)
		}
	}()
	waitFor(t, "the start", func() bool { return strings.Contains(out.String(), "begun") })
	h.killChild()
	h.await("1-1", agent.RunRunning)
	end()
	<-done
	if !strings.Contains(out.String(), "over") {
		t.Errorf("output %q", out.String())
	}
}

func TestTerminalOfContainer(t *testing.T) {
	h := newHost(t)
	img := h.load(nil, images.Config{})
	c := h.container("1-1", img, command("test -t 0 && test -t 1 && echo yes $TERM"))
	c.Template.TTY = true
	if out, s := h.output(c); strings.TrimSpace(out) != "yes xterm" || s.ExitCode != 0 {
		t.Errorf("output %q, %+v", out, s)
	}
	// An open standard input without a terminal has no end.
	c = h.container("1-2", img, command("cat"))
	c.Template.StdinOpen = true
	h.runTask(c)
	time.Sleep(200 * time.Millisecond)
	if s := h.state("1-2"); s.State != agent.RunRunning {
		t.Errorf("with an open input: %+v", s)
	}
	if err := h.rt.Remove(context.Background(), "1-2"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(h.rt.dir("stdin"), "1-2")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the pipe of the input is left over: %v", err)
	}
}
