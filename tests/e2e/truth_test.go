//go:build e2e

package e2e

import (
	"strings"
	"testing"
	"time"
)

// TestApplyTellsTheTruth: the exit code of apply is that of the stack, not of
// the moment.
func TestApplyTellsTheTruth(t *testing.T) {
	_, h := oneHost(t)
	file := func(script, more string) string {
		return stack(t, "name: truth\nservices:\n  s:\n    image: "+image+"\n    init: true\n    command: [sh, -c, '"+script+"']\n"+more)
	}

	t.Run("a container that ends a second after its start is not running", func(t *testing.T) {
		r := h.Wherry("apply", "-f", file("echo bad config; sleep 1; exit 7", ""), "--timeout", "90s")
		if r.Code != 1 || !strings.Contains(r.Stderr, "bad config") {
			t.Errorf("exit %d, want 1\n%s", r.Code, r.Stderr)
		}
		h.Must("rm", "truth")
	})

	t.Run("an update to a revision that fails keeps what runs", func(t *testing.T) {
		h.Must("apply", "-f", file("exec sleep 1000", "    deploy: {replicas: 3}\n"))
		r := h.Wherry("apply", "-f", file("sleep 1; exit 9", "    deploy: {replicas: 3}\n"), "--timeout", "90s")
		if r.Code != 1 {
			t.Errorf("exit %d, want 1\n%s", r.Code, r.Stderr)
		}
		running := 0
		for _, ti := range tasks(t, h, "truth/s") {
			if ti.Current && ti.Status.PID != 0 {
				running++
			}
		}
		if running != 3 {
			t.Errorf("%d of 3 tasks of the good revision are left, want all", running)
		}
		if got := strings.TrimSpace(h.Must("service", "inspect", "truth/s", "--format", "{{.update.state}}")); got != "rolled_back" {
			t.Errorf("update: %q, want rolled_back", got)
		}
		h.Must("apply", "-f", file("exec sleep 1000", "    deploy: {replicas: 3}\n"))
	})

	t.Run("scaling to nothing is an end", func(t *testing.T) {
		started := time.Now()
		h.Must("service", "scale", "truth/s=0")
		if d := time.Since(started); d > soon {
			t.Errorf("it took %s", d)
		}
		h.Must("rm", "truth")
	})

	t.Run("a restart policy with a number gives up", func(t *testing.T) {
		r := h.Wherry("apply", "-f", file("echo once more; exit 5", "    restart: on-failure:1\n"), "--timeout", "90s")
		if r.Code != 1 {
			t.Errorf("exit %d, want 1\n%s", r.Code, r.Stderr)
		}
		out := h.Must("logs", "truth")
		if n := strings.Count(out, "once more"); n != 2 {
			t.Errorf("it ran %d times, want 2:\n%s", n, out)
		}
	})
}
