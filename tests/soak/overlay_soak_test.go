//go:build soak

package soak

import (
	"strings"
	"testing"
)

// TestOverlay takes the figures of networks between hosts as often and for as
// long as they are promised.
func TestOverlay(t *testing.T) {
	for _, f := range []struct {
		name, pattern string
		env           []string
	}{
		{"faults", "^TestOverlay$/^faults", []string{"CONTROL=10m", "FAULTS=50"}},
		{"services", "^TestOverlay$/^(published|virtual|endpoint)", []string{"RUNS=50", "CHANGES=100", "IDLE=20m"}},
		{"rolling", "^TestOverlay$/^rolling", []string{"REQUESTS=100000", "DOWNLOAD=30s"}},
		{"tampering", "^TestOverlay$/^tampering", []string{"TAMPER=1000"}},
		{"hosts", "^TestOverlay$/^(another|reboot|a_host)", []string{"RUNS=20", "REBOOTS=50"}},
		{"hosts-10", "^TestOverlay$/^(endpoint|full)", []string{"HOSTS=10", "CHANGES=20"}},
		{"packets", "^TestOverlay$/^(isolation|full|without)|^TestOverlayMTU$", nil},
	} {
		t.Run(f.name, func(t *testing.T) {
			out := run(t, "tests/e2e", f.pattern, append(f.env, "FULL=yes")...)
			lines := figureLine.FindAllStringSubmatch(out, -1)
			if len(lines) == 0 {
				t.Fatalf("the test did not say how it went:\n%s", out)
			}
			for _, m := range lines {
				if strings.HasPrefix(m[1], "control run") && f.name != "faults" {
					continue // a short one before each of many faults
				}
				record(t, m[1], strings.Join(f.env, " "), m[2])
			}
		})
	}
}
