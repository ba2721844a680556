//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"wherry.dev/spec"
	"wherry.dev/tests/lab"
)

const steady = `
name: steady
services:
  server:
    image: ` + image + `
    command: [httpd, -f, -p, "80"]
    stop_grace_period: 1s
    ports: ["9000:80"]
  # Looks the server up without pause, and says so when it fails.
  prober:
    image: ` + image + `
    command:
      - sh
      - -c
      - |
        until nslookup server 127.0.0.11 >/dev/null 2>&1; do sleep 0.1; done
        i=0; while :; do
          i=$$((i+1)); echo "line $$i"
          nslookup server 127.0.0.11 >/dev/null 2>&1 || echo "LOOKUP FAILED $$(date +%s)"
        done
  ender:
    image: ` + image + `
    command: [sh, -c, "while [ ! -e /tmp/end ]; do sleep 0.1; done; exit 7"]
    restart: "no"
`

// process is what must not change of a container when parts of the system
// are killed.
type process struct{ id, pid, start, netns, address string }

func processes(t *testing.T, h *lab.Host, stack string) map[string]process {
	t.Helper()
	out := map[string]process{}
	for _, ti := range tasks(t, h, stack) {
		if ti.Desired != spec.DesiredRunning && ti.Status.PID == 0 {
			continue // it is over, and about to go
		}
		start, err := startTime(ti.Status.PID)
		if err != nil {
			t.Fatalf("%s: %v", ti.Name, err)
		}
		ns, err := netns(ti.Status.PID)
		if err != nil {
			t.Fatal(err)
		}
		out[ti.Name] = process{string(ti.ID), fmt.Sprint(ti.Status.PID), start, ns, strings.Join(ti.Addresses, ",")}
	}
	return out
}

// TestSurvive kills each part of the system under running containers: they
// keep process, namespace, address, names and every line of their log.
func TestSurvive(t *testing.T) {
	_, h := oneHost(t)
	h.Must("apply", "-f", stack(t, steady))
	before := processes(t, h, "steady")
	if len(before) != 3 {
		t.Fatalf("%d tasks run, want 3", len(before))
	}
	same := func(t *testing.T) {
		t.Helper()
		after := processes(t, h, "steady")
		for name, p := range before {
			if after[name] != p {
				t.Errorf("%s: was %+v, is %+v", name, p, after[name])
			}
		}
	}
	restartable := func(what string) int {
		pids := findProcesses(h.RunDir, what)
		if len(pids) == 0 {
			t.Fatalf("no process %q with %s", what, h.RunDir)
		}
		return pids[0]
	}

	step := func(what string) { t.Logf("%s %s", time.Now().UTC().Format(time.TimeOnly), what) }
	t.Run("daemon stopped and started", func(t *testing.T) {
		step("daemon stopped and started")
		h.Stop()
		h.Start()
		same(t)
	})
	t.Run("daemon killed", func(t *testing.T) {
		step("daemon killed")
		h.Kill()
		h.Start()
		same(t)
	})
	t.Run("containerd killed", func(t *testing.T) {
		step("containerd killed")
		pid := restartable("wherry containerd")
		kill(t, pid)
		lab.Eventually(t, soon, "containerd serves again", func() error {
			_, err := h.Try("exec", "steady/server", "--", "true")
			return err
		})
		same(t)
	})
	t.Run("keeper killed", func(t *testing.T) {
		step("keeper killed")
		pid := restartable("wherry keeper")
		kill(t, pid)
		lab.Eventually(t, soon, "a keeper answers again", func() error {
			_, err := h.Try("exec", "steady/prober", "--", "nslookup", "server", "127.0.0.11")
			return err
		})
		same(t)
	})
	t.Run("daemon and containerd killed together", func(t *testing.T) {
		step("daemon and containerd killed together")
		pid := restartable("wherry containerd")
		h.Kill()
		kill(t, pid)
		h.Start()
		same(t)
	})
	t.Run("an end while everything is down is told with its code", func(t *testing.T) {
		step("an end while everything is down is told with its code")
		ender := one(t, h, "steady/ender")
		root := fmt.Sprintf("/proc/%d/root", ender.Status.PID)
		pid := restartable("wherry containerd")
		h.Kill()
		kill(t, pid)
		if err := os.WriteFile(filepath.Join(root, "tmp/end"), nil, 0o600); err != nil {
			// The image has no /tmp.
			t.Fatal(err)
		}
		lab.Eventually(t, soon, "the process ends", func() error {
			if _, err := os.Stat(root); err == nil {
				return fmt.Errorf("pid %d still runs", ender.Status.PID)
			}
			return nil
		})
		h.Start()
		lab.Eventually(t, soon, "the end is reported", func() error {
			out := h.Must("ps", "steady/ender", "--all", "--format", "{{.state}} {{range .attempts}}{{.exit_code}} {{.oom}}{{end}}")
			if strings.TrimSpace(out) != "failed 7 <no value>" {
				return fmt.Errorf("ps: %q", out)
			}
			return nil
		})
	})

	// Through all of this no line of the log may be missing, and only while
	// the keeper itself was dead may lookups have failed: in one stretch.
	out := h.Must("logs", "steady.prober.1")
	n, failed, first, last := 0, 0, 0, 0
	for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
		var i int
		if c, _ := fmt.Sscanf(line, "LOOKUP FAILED %d", &i); c == 1 {
			if failed++; first == 0 {
				first = i
			}
			if last != i {
				t.Logf("lookups fail at %s", time.Unix(int64(i), 0).UTC().Format(time.TimeOnly))
			}
			last = i
			continue
		}
		if _, err := fmt.Sscanf(line, "line %d", &i); err != nil || i != n+1 {
			t.Fatalf("after line %d comes %q", n, line)
		}
		n = i
	}
	t.Logf("%d lines without a gap, %d failed lookups within %d s", n, failed, last-first)
	if n < 100 {
		t.Errorf("the prober wrote only %d lines", n)
	}
	if last-first > 2 {
		t.Errorf("lookups failed over %d s, want at most 2 s around the death of the keeper", last-first)
	}
}

func kill(t *testing.T, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	lab.Eventually(t, soon, "it is dead", func() error {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(b), ") Z ") {
			return nil
		}
		return fmt.Errorf("pid %d lives", pid)
	})
}

// TestFailingContainer: a container that ends at once backs off, visibly, and
// apply tells the truth about it.
func TestFailingContainer(t *testing.T) {
	_, h := oneHost(t)
	f := stack(t, `
name: crash
services:
  boom:
    image: `+image+`
    command: [sh, -c, "echo cannot find the config; exit 3"]
`)
	started := time.Now()
	r := h.Wherry("apply", "-f", f, "--timeout", "60s")
	if r.Code != 1 || !strings.Contains(r.Stderr, "cannot find the config") {
		t.Errorf("apply: exit %d after %s, want 1 and the last words\n%s", r.Code, time.Since(started), r.Stderr)
	}
	out := h.Must("ps", "crash")
	if !strings.Contains(out, "exit") || !strings.Contains(out, "3") {
		t.Errorf("ps does not say how it ends:\n%s", out)
	}
	if got := h.Must("ls", "--format", "{{.state}}"); strings.TrimSpace(got) != "failed" {
		t.Errorf("ls: state %q, want failed", got)
	}
}
