//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"wherry.dev/api"
	"wherry.dev/spec"
	"wherry.dev/tests/images"
	"wherry.dev/tests/lab"
)

// TestUpdates: what a failed update comes to, for each action, and what people
// do about it.
func TestUpdates(t *testing.T) {
	_, h := oneHost(t)
	const well, bad = "exec sleep 1000", "echo no such table; sleep 1; exit 9"
	// file is a stack whose service web has two tasks, and side one.
	file := func(version int, script, update string) string {
		return stack(t, fmt.Sprintf(`
name: up
services:
  web:
    image: %[1]s
    init: true
    environment: {VERSION: "%[2]d"}
    command: [sh, -c, '%[3]s']
    deploy: {replicas: 2, update_config: {monitor: 2s, %[4]s}, rollback_config: {parallelism: 0, monitor: 1s}}
  side:
    image: %[1]s
    init: true
    environment: {VERSION: "%[2]d"}
    command: [sh, -c, '%[5]s']
    deploy: {update_config: {monitor: 1s}, rollback_config: {monitor: 1s}}
`, image, version, script, update, well))
	}
	pids := func() string {
		t.Helper()
		m := map[string]int{}
		for _, ti := range tasks(t, h, "up/web") {
			m[ti.Name] = ti.Status.PID
		}
		return fmt.Sprint(m)
	}
	fails := func(path string, want ...string) {
		t.Helper()
		r := h.Wherry("apply", "-f", path, "--timeout", "120s")
		if r.Code != 1 {
			t.Fatalf("apply: exit %d, want 1\n%s", r.Code, r.Stderr)
		}
		for _, w := range want {
			if !strings.Contains(r.Stderr, w) {
				t.Errorf("apply does not tell %q:\n%s", w, r.Stderr)
			}
		}
	}
	results := func() string {
		t.Helper()
		var out []string
		for _, r := range history(t, h, "up") {
			out = append(out, fmt.Sprintf("%d %s", r.Revision, r.State))
		}
		return strings.Join(out, ", ")
	}
	state := func() spec.UpdateState {
		t.Helper()
		return spec.UpdateState(strings.TrimSpace(h.Must("service", "inspect", "up/web", "--format", "{{.update.state}}")))
	}
	version := func(service string) string {
		t.Helper()
		return strings.TrimSpace(h.Must("service", "inspect", "up/"+service, "--format", "{{.spec.template.env.VERSION}}"))
	}

	h.Must("apply", "-f", file(1, well, ""))
	first := pids()

	t.Run("rollback", func(t *testing.T) {
		fails(file(2, bad, ""), "stack up: revision 2 failed: task up.web.1 failed 3 times, last: exit 9", "  | no such table", "it was rolled back to revision 1")
		if got := results(); got != "1 completed, 2 rolled_back, 3 completed" {
			t.Error(got)
		}
		if got := pids(); got != first {
			t.Errorf("tasks that served were replaced: %s, before %s", got, first)
		}
		if v := version("side"); v != "1" || state() != spec.UpdateRolledBack {
			t.Errorf("the other service is at version %s, the update %s", v, state())
		}
		h.Must("apply", "-f", file(1, well, "")) // nothing to do, and well
	})

	t.Run("pause", func(t *testing.T) {
		fails(file(4, bad, "failure_action: pause"), "service up/web: update paused: task up.web.1 failed 3 times, last: exit 9", "  | no such table", "wherry service resume up/web")
		if v := version("side"); v != "4" || state() != spec.UpdatePaused {
			t.Errorf("the other service is at version %s, the update %s", v, state())
		}
		if r := h.Wherry("service", "resume", "up/web", "--timeout", "120s"); r.Code != 1 {
			t.Errorf("resume: exit %d, want 1, since it fails again\n%s", r.Code, r.Stderr)
		}
		if got := pids(); !strings.Contains(first, strings.Fields(strings.Trim(got, "map[]"))[1]) {
			t.Errorf("tasks that served were replaced: %s, before %s", got, first)
		}
		h.Must("service", "rollback", "up/web", "--timeout", "120s")
		if v, w := version("side"), version("web"); v != "4" || w != "1" || state() != spec.UpdateRolledBack {
			t.Errorf("side is at version %s, web at %s, its update %s", v, w, state())
		}
	})

	t.Run("continue", func(t *testing.T) {
		fails(file(6, bad, "failure_action: continue, order: stop-first"), "service up/web: up.web.1: ", "exit 9", "no such table")
		l := history(t, h, "up")
		if last := l[len(l)-1]; last.State != "failed" || !strings.HasPrefix(last.Why, "service web: 2 of 2 tasks failed: task up.web.1 failed ") {
			t.Errorf("%+v", last)
		}
		if got := state(); got != spec.UpdateCompleted {
			t.Error(got)
		}
	})

	t.Run("a person goes back, and restarts", func(t *testing.T) {
		h.Must("rollback", "up", "--to", "3", "-m", "by hand", "--timeout", "120s")
		l := history(t, h, "up")
		if last := l[len(l)-1]; last.State != "completed" || last.Message != "by hand" || last.Rollback != 3 || last.Author == "" {
			t.Errorf("%+v", last)
		}
		before := pids()
		h.Must("service", "restart", "up/web", "--timeout", "120s")
		after := pids()
		for _, field := range strings.Fields(strings.Trim(before, "map[]")) {
			if strings.Contains(after, field) {
				t.Errorf("%s was not restarted: %s", field, after)
			}
		}
		if now := history(t, h, "up"); len(now) != len(l) {
			t.Errorf("a restart made a revision: %+v", now)
		}
	})

	t.Run("the first deployment", func(t *testing.T) {
		h.Must("rm", "up")
		fails(file(1, bad, ""), "service up/web: deployment paused: task up.web.", "there is no revision to go back to", "  | no such table")
		if len(tasks(t, h, "up/web")) != 2 {
			t.Error("its tasks are not left to be looked at")
		}
		h.Must("apply", "-f", file(2, well, ""))
		if got := results(); got != "1 superseded, 2 completed" {
			t.Error(got)
		}
		h.Must("rm", "up")
	})
}

// history lists the revisions of a stack that are kept, oldest first.
func history(t *testing.T, h *lab.Host, stack string) []api.StackRevision {
	t.Helper()
	var l []api.StackRevision
	if err := json.Unmarshal([]byte(h.Must("history", stack, "--format", "json")), &l); err != nil {
		t.Fatal(err)
	}
	return l
}

// TestUpdateCanary: a canary waits for a person, who goes on or back.
func TestUpdateCanary(t *testing.T) {
	_, h := oneHost(t)
	file := func(version int, more string) string {
		return stack(t, fmt.Sprintf(`
name: canary
services:
  web:
    image: %s
    init: true
    environment: {VERSION: "%d"}
    command: [sh, -c, exec sleep 1000]
    deploy: {replicas: 3, update_config: {monitor: 1s, parallelism: 0, order: stop-first}}
    x-wherry: {canary: {weight: 10%%%s}}
`, image, version, more))
	}
	newest := func() (out []string) {
		t.Helper()
		for _, ti := range tasks(t, h, "canary/web") {
			if ti.Current && ti.Desired == spec.DesiredRunning {
				out = append(out, fmt.Sprint(ti.Name, " ", ti.Canary))
			}
		}
		return out
	}
	h.Must("apply", "-f", file(1, ""), "--timeout", "120s")
	r := h.Wherry("apply", "-f", file(2, ", promote: manual"), "--timeout", "120s")
	if r.Code != 0 || !strings.Contains(r.Stderr, "canary: 1 of 3 tasks are of the new revision and well") {
		t.Fatalf("apply: exit %d\n%s", r.Code, r.Stderr)
	}
	if got := newest(); len(got) != 1 || got[0] != "canary.web.1 true" {
		t.Fatalf("of the new revision: %q", got)
	}
	if l := history(t, h, "canary"); l[len(l)-1].State != "paused" || !strings.Contains(l[len(l)-1].Why, "wherry service promote canary/web") {
		t.Errorf("%+v", l[len(l)-1])
	}
	h.Must("service", "promote", "canary/web", "--timeout", "120s")
	if got := newest(); len(got) != 3 || got[0] != "canary.web.1 false" {
		t.Errorf("of the new revision: %q", got)
	}
	h.Must("apply", "-f", file(3, ""), "--timeout", "120s") // by itself
	h.Must("apply", "-f", file(4, ", promote: manual"), "--timeout", "120s")
	h.Must("service", "rollback", "canary/web", "--timeout", "120s")
	if v := strings.TrimSpace(h.Must("service", "inspect", "canary/web", "--format", "{{.spec.template.env.VERSION}}")); v != "3" {
		t.Errorf("version %s is back", v)
	}
	h.Must("rm", "canary")
}

// TestUpdateImage: with stop-first a task stops for an image that is there, and for
// none that is not to be had.
func TestUpdateImage(t *testing.T) {
	_, h := oneHost(t)
	load(t, h, images.Must(t, "wherry-examples/next:1", ""))
	file := func(image string) string {
		return stack(t, fmt.Sprintf(`
name: img
services:
  db:
    image: %s
    init: true
    command: [sh, -c, exec sleep 1000]
    volumes: [data:/data]
    deploy: {update_config: {monitor: 1s}, rollback_config: {monitor: 1s}}
    x-wherry: {progress_deadline: 5s}
volumes: {data: }
`, image))
	}
	h.Must("apply", "-f", file(image), "--timeout", "120s")
	first := tasks(t, h, "img/db")[0]
	h.Must("apply", "-f", file("wherry-examples/next:1"), "--timeout", "120s")
	var next api.TaskInfo
	for _, ti := range tasks(t, h, "img/db") {
		if ti.Desired == spec.DesiredRunning {
			next = ti
		}
	}
	if next.ID == first.ID || !strings.Contains(next.Image, "next") {
		t.Fatalf("task %s runs %s", next.ID, next.Image)
	}
	r := h.Wherry("apply", "-f", file("localhost:1/none@sha256:"+strings.Repeat("0", 64)), "--timeout", "120s")
	if r.Code != 1 || !strings.Contains(r.Stderr, "no progress for 5s: img.db.1: ") || !strings.Contains(r.Stderr, "it was rolled back to revision 2") {
		t.Errorf("apply: exit %d\n%s", r.Code, r.Stderr)
	}
	for _, ti := range tasks(t, h, "img/db") {
		if ti.Desired == spec.DesiredRunning && (ti.ID != next.ID || ti.Status.PID != next.Status.PID) {
			t.Errorf("task %s was replaced by %s, for an image that is not to be had", next.ID, ti.ID)
		}
	}
	h.Must("rm", "img", "--volumes")
}
