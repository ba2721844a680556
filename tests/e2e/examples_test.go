//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"wherry.dev/spec"
	"wherry.dev/tests/lab"
)

// exampleNeeds are the variables that examples leave to whoever applies them.
var exampleNeeds = map[string]map[string]string{
	"secrets": {"DB_PASSWORD": "first"},
}

// exampleVolumes are the volumes that examples want made by hand.
var exampleVolumes = map[string]string{"volumes": "volumes_shared"}

// examplePages are pages of examples, of the host, and what is in them.
var examplePages = map[string]map[string]string{
	"hello":   {":8080/": "Hello from Wherry"},
	"ports":   {":8084/": "early", ":8085/": "early", ":8086/": "early", ":8089/": "early"},
	"updates": {":8090/": "early 1"},
	"global":  {":8091/load": "host-1 "},
	"configs": {":8092/": "Hello from a file", ":8092/about.txt": "task 1 of configs_web on host-1"},
}

// TestExamples runs every folder of examples: its stack.yml, then the other
// stacks in it; all become well, answer, change nothing when they are applied
// again, and leave nothing.
func TestExamples(t *testing.T) {
	l, h := oneHost(t)
	l.Plug("client")
	h.Must("image", "load", filepath.Join(builtImages, "serve.tar"))
	dirs, err := filepath.Glob("../../examples/*/stack.yml")
	if err != nil || len(dirs) < 8 {
		t.Fatalf("found %d examples: %v", len(dirs), err)
	}
	for _, first := range dirs {
		dir := filepath.Dir(first)
		l.Step(t, filepath.Base(dir), func(t *testing.T) { runExample(t, l, h, dir) })
	}
}

func runExample(t *testing.T, l *lab.Lab, h *lab.Host, dir string) {
	name := filepath.Base(dir)
	for k, v := range exampleNeeds[name] {
		t.Setenv(k, v)
	}
	before := hostCensus(l, h)
	if v := exampleVolumes[name]; v != "" {
		h.Must("volume", "create", v)
		defer h.Wherry("volume", "rm", v)
	}
	files := exampleStacks(t, dir)
	for _, f := range files {
		h.Must("apply", "-f", f, "--timeout", "2m")
	}
	stacks := strings.Fields(h.Must("ls", "--format", "{{.name}}"))
	if len(stacks) != len(files) || !slices.Contains(stacks, name) {
		t.Errorf("stacks %v, want one for each of %v, and one named %s", stacks, files, name)
	}
	for _, s := range stacks {
		if got := strings.TrimSpace(h.Must("ls", "--format", `{{if eq .name "`+s+`"}}{{.state}}{{end}}`)); got != "running" {
			t.Errorf("stack %s is %q", s, got)
		}
		for _, ti := range tasks(t, h, s) {
			if ti.State != spec.TaskRunning || ti.Health != spec.HealthNone && ti.Health != spec.HealthHealthy {
				t.Errorf("%s is %s, its health %q", ti.Name, ti.State, ti.Health)
			}
		}
	}
	for url, want := range examplePages[name] {
		look{url: url, want: want}.check(t, l, h, name, false)
	}
	for _, f := range files {
		if r := h.Wherry("plan", "-f", f, "--exit-code"); r.Code != 0 {
			t.Errorf("a plan of what runs: exit %d\n%s%s", r.Code, r.Stdout, r.Stderr)
		}
	}
	slices.Reverse(stacks)
	for _, s := range stacks {
		h.Must("rm", s, "--volumes")
	}
	if left := strings.TrimSpace(h.Must("ps", "--format", "{{.name}}")); left != "" {
		t.Errorf("left: %s", left)
	}
	lab.Eventually(t, soon+30*time.Second, "nothing of the example is left", func() error { return nothingSince(before, l, h) })
}

// exampleStacks lists the stack files of a folder, stack.yml first.
func exampleStacks(t *testing.T, dir string) []string {
	t.Helper()
	files := []string{filepath.Join(dir, "stack.yml")}
	all, err := filepath.Glob(filepath.Join(dir, "*.yml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if f != files[0] && strings.Contains("\n"+string(b), "\nservices:") {
			files = append(files, f)
		}
	}
	return files
}
