package compose

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"wherry.dev/spec"
)

// FuzzLoad checks that no input makes Load panic, that every refusal says
// something, and that what is accepted is a valid stack whose contents are all
// there.
func FuzzLoad(f *testing.F) {
	archives, err := filepath.Glob(filepath.Join("testdata", "golden", "*.txtar"))
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range archives {
		a, err := txtar.ParseFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(a.Files[0].Data))
	}
	f.Add("services: {a: {image: b, ports: ['1-3:1-3'], volumes: ['./x:/y', '~/z:/z:ro']}}")
	f.Add("services: {a: &a {image: '${B:-c}', <<: *a}}")
	dir := f.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "one.conf"), []byte("one"), 0o644); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, "..") || strings.Contains(text, "/") && strings.Contains(text, "include") {
			return // might read files of the machine
		}
		start := time.Now()
		r, err := Load(t.Context(), Options{Files: []string{"-"}, Stdin: strings.NewReader(text), WorkingDir: dir, Env: map[string]string{"HOME": dir}})
		if err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("took %v", d)
		}
		for _, f := range r.Findings {
			if f.Message == "" {
				t.Errorf("the finding %+v says nothing", f)
			}
		}
		if r.Err() != nil {
			return
		}
		if err := spec.ValidateStack(&r.Stack); err != nil {
			t.Errorf("accepted, but not valid: %v", err)
		}
		checkContents(t, r)
	})
}
