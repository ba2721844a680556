//go:build soak

package soak

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// record appends a line to the ledger.
func record(t *testing.T, what, span, result string) {
	t.Helper()
	commit := "unknown"
	if out, err := exec.Command("git", "rev-parse", "--short", "HEAD").Output(); err == nil {
		commit = strings.TrimSpace(string(out))
	}
	f, err := os.OpenFile("ledger.tsv", os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := fmt.Fprintf(f, "%s\t%s\t%s\t%s\n", commit, what, span, result); err != nil {
		t.Fatal(err)
	}
	t.Logf("%s %s: %s", what, span, result)
}

// run runs tests of another package of this module with an environment of
// their own, and returns what they said. They get the tags of $TAGS: not ours,
// which keeps this package out of `make test`.
func run(t *testing.T, pkg, pattern string, env ...string) string {
	t.Helper()
	args := []string{"test", "-count=1", "-v", "-timeout", "0", "-run", pattern}
	if tags := os.Getenv("TAGS"); tags != "" {
		args = append(args, "-tags", tags)
	}
	c := exec.Command("go", append(args, "./"+pkg)...)
	c.Dir = filepath.Join("..", "..")
	c.Env = append(os.Environ(), env...)
	out, err := c.CombinedOutput()
	if err != nil {
		record(t, pattern, strings.Join(env, " "), "failed")
		t.Fatalf("%s: %v\n%s", pattern, err, out)
	}
	return string(out)
}

var killLine = regexp.MustCompile(`(\d+) kills, (\d+) of them with a write in flight; (\d+) acknowledged writes, none lost`)

// TestKills: 50 random kills under writers.
func TestKills(t *testing.T) {
	out := run(t, "tests/e2e", "^TestRandomKills$", "KILLS=50")
	m := killLine.FindString(out)
	if m == "" {
		t.Fatalf("the test did not say how it went:\n%s", out)
	}
	record(t, "kills", "50", m)
}

// TestSimulation: 10,000 random histories of store, reconciler and scheduler.
func TestSimulation(t *testing.T) {
	run(t, "tests/sim", ".", "SIM_SEEDS=10000")
	record(t, "simulation", "seeds 1-10000", "no violation")
}

// TestPublicStacks: all public stacks, not some of them.
func TestPublicStacks(t *testing.T) {
	out := run(t, "tests/e2e", "^TestPublicStacks$", "STACKS=20")
	if n := strings.Count(out, "--- PASS: TestPublicStacks/"); n != 20 {
		t.Fatalf("%d stacks ran, want 20:\n%s", n, out)
	}
	record(t, "public stacks", "20", "up, well, reached, changed, changed back, removed, nothing left")
}
