//go:build soak

package soak

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"
)

var dockerLine = regexp.MustCompile(`figure (beside Docker .+?): (.+)`)

// TestDocker runs Debian's dockerd, which `make build/docker` unpacks, beside
// tasks.
func TestDocker(t *testing.T) {
	root, err := filepath.Abs("../../build/docker")
	if err != nil {
		t.Fatal(err)
	}
	path := root + "/usr/bin:" + root + "/usr/sbin:" + os.Getenv("PATH")
	t.Setenv("PATH", path)
	t.Setenv("TAGS", os.Getenv("TAGS")+",docker")
	out := run(t, "overlay", "^TestBesideDocker$")
	lines := dockerLine.FindAllStringSubmatch(out, -1)
	if len(lines) == 0 {
		t.Fatalf("the test did not say how it went:\n%s", out)
	}
	for _, m := range lines {
		record(t, m[1], "", m[2])
	}
}
