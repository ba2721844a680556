//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wherry.dev/tests/lab"
)

// TestSecretsExample runs the example as its comments do.
func TestSecretsExample(t *testing.T) {
	l, h := oneHost(t)
	dir := copyDir(t, "../../examples/secrets")
	file := filepath.Join(dir, "stack.yml")
	apply := func(password string) {
		t.Helper()
		t.Setenv("DB_PASSWORD", password)
		h.Must("apply", "-f", file)
	}
	heard := func(want ...string) {
		t.Helper()
		lab.Eventually(t, soon, "the worker says "+want[len(want)-1], func() error {
			logs := h.Must("logs", "secrets/worker")
			for _, w := range want {
				if !strings.Contains(logs, w) {
					return fmt.Errorf("no %q in\n%s", w, logs)
				}
			}
			return nil
		})
	}
	apply("first")
	heard("started: password of 5, token of 16")
	before := one(t, h, "secrets/worker")
	if got := h.Must("exec", "secrets/worker", "--", "stat", "-c", "%a %u %g", "/run/secrets/db_password"); strings.TrimSpace(got) != "400 1000 1000" {
		t.Errorf("the file is %q", got)
	}
	page, err := fetch(l, h.Name, "http://127.0.0.1:8082/")
	if err != nil || !strings.Contains(page, "secrets_web ") || !strings.Contains(page, h.Name+", good day") {
		t.Errorf("%v\n%s", err, page)
	}

	apply("second")
	heard("reloaded: password of 6, token of 16")
	if now := one(t, h, "secrets/worker"); now.ID != before.ID || now.Status.PID != before.Status.PID {
		t.Errorf("the worker was replaced: %s, %s", before.ID, now.ID)
	}

	if err := os.WriteFile(filepath.Join(dir, "token"), []byte("third\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	apply("second")
	heard("started: password of 6, token of 5")
	if now := one(t, h, "secrets/worker"); now.ID == before.ID {
		t.Error("the worker goes on with the old variable")
	}
	h.Must("rm", "secrets")
}
