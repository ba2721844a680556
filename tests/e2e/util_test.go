//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"wherry.dev/api"
	"wherry.dev/tests/images"
	"wherry.dev/tests/lab"
)

// image is the image that all stacks of these tests run.
const image = "wherry-examples/busybox:1.35"

// oneHost returns a lab with one running host that has the image.
func oneHost(t *testing.T) (*lab.Lab, *lab.Host) {
	t.Helper()
	l := lab.New(t)
	h := l.Host("host-1")
	h.Start()
	load(t, h, images.Must(t, image, ""))
	return l, h
}

func load(t *testing.T, h *lab.Host, archive []byte) {
	t.Helper()
	f := filepath.Join(t.TempDir(), "image.tar")
	if err := os.WriteFile(f, archive, 0o600); err != nil {
		t.Fatal(err)
	}
	h.Must("image", "load", f)
}

// stack writes a stack file into a folder of its own and returns its path.
func stack(t *testing.T, text string) string {
	t.Helper()
	f := filepath.Join(t.TempDir(), "stack.yml")
	if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return f
}

// tasks lists the tasks that are not over, of a stack or a service.
func tasks(t *testing.T, h *lab.Host, ref string) []api.TaskInfo {
	t.Helper()
	var all, live []api.TaskInfo
	if err := json.Unmarshal([]byte(h.Must("ps", ref, "--format", "json")), &all); err != nil {
		t.Fatal(err)
	}
	for _, ti := range all {
		if !ti.State.Terminal() {
			live = append(live, ti)
		}
	}
	return live
}

// one returns the only live task of a service.
func one(t *testing.T, h *lab.Host, ref string) api.TaskInfo {
	t.Helper()
	l := tasks(t, h, ref)
	if len(l) != 1 {
		t.Fatalf("%s has %d live tasks, want 1", ref, len(l))
	}
	return l[0]
}

// startTime of a process in clock ticks since boot; together with the PID it
// names a process for ever.
func startTime(pid int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", err
	}
	return strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))[19], nil
}

// netns names the network namespace of a process.
func netns(pid int) (string, error) { return os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid)) }

// fetch gets a page from inside a namespace of the lab.
func fetch(l *lab.Lab, from, url string) (string, error) {
	r := l.In(from, "timeout", "5", "busybox", "wget", "-q", "-O", "-", url)
	if r.Code != 0 {
		return r.Stdout, fmt.Errorf("wget %s: exit %d %s", url, r.Code, r.Stderr)
	}
	return r.Stdout, nil
}

// childPIDs are the processes whose command line holds all the words.
func findProcesses(words ...string) []int {
	var pids []int
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		if err != nil {
			continue
		}
		line, all := strings.ReplaceAll(string(b), "\x00", " "), true
		for _, w := range words {
			all = all && strings.Contains(line, w)
		}
		if all {
			pids = append(pids, pid)
		}
	}
	return pids
}

// soon is how long a thing may take that takes moments on a quiet machine.
const soon = 30 * time.Second
