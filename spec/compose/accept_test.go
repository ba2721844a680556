package compose

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

// TestAcceptAnything accepts all that the golden files with refusals are
// refused for: what can be left out is, and is not refused any more.
func TestAcceptAnything(t *testing.T) {
	archives, err := filepath.Glob(filepath.Join("testdata", "golden", "*refused*.txtar"))
	if err != nil || len(archives) == 0 {
		t.Fatalf("no archives: %v", err)
	}
	accepted := 0
	for _, name := range archives {
		a, err := txtar.ParseFile(name)
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		for _, f := range a.Files {
			writeFile(t, filepath.Join(dir, f.Name), string(f.Data))
		}
		o := Options{Files: []string{filepath.Join(dir, "stack.yml")}}
		first, err := Load(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range first.Findings {
			if f.Verdict == Refused && f.Path != "" {
				o.Accept = append(o.Accept, f.Path)
			}
		}
		r, err := Load(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		for k, why := range r.Unaccepted {
			if why == "is not refused" {
				t.Errorf("%s: %s %s, and was", name, k, why)
			}
		}
		for _, f := range r.Findings {
			if f.Verdict != Accepted {
				continue
			}
			// What is left out may be missed, which is another message.
			still := func(g Finding) bool {
				return g.Verdict == Refused && g.Path == f.Path && strings.HasSuffix(f.Message, g.Message)
			}
			if accepted++; slices.ContainsFunc(r.Findings, still) {
				t.Errorf("%s: %s is accepted and refused", name, f)
			}
		}
	}
	if accepted < 50 {
		t.Errorf("only %d keys were accepted", accepted)
	}
}
