//go:build soak

package soak

import (
	"regexp"
	"strings"
	"testing"
)

var figureLine = regexp.MustCompile(`figure (.+?): (.+)`)

// TestCluster takes the figures of clusters as often and for as long as they
// are promised.
func TestCluster(t *testing.T) {
	for _, f := range []struct {
		pattern string
		env     []string
	}{
		{"^TestCluster$", []string{"RUNS=20"}}, // leader killed, planned handover, worker without power
		{"^TestClusterJoinTime$", []string{"RUNS=20"}},
		{"^TestClusterDiskHangs$", []string{"RUNS=20"}},
		{"^TestClusterLeaderChanges$", []string{"CHANGES=200"}},
		{"^TestClusterLoss$", []string{"HOSTS=10", "LOSS=10m"}},
		{"^TestClusterBusy$", []string{"BUSY=10m"}},
	} {
		t.Run(strings.Trim(f.pattern, "^$"), func(t *testing.T) {
			out := run(t, "tests/e2e", f.pattern, append(f.env, "FULL=yes")...)
			lines := figureLine.FindAllStringSubmatch(out, -1)
			if len(lines) == 0 {
				t.Fatalf("the test did not say how it went:\n%s", out)
			}
			for _, m := range lines {
				record(t, m[1], strings.Join(f.env, " "), m[2])
			}
		})
	}
}
