package compose

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wherry.dev/spec/compose/composetest"
)

// TestHonouredKeysTakeEffect shows for every key that the table calls honoured
// that two files which differ only in it give different stacks.
func TestHonouredKeysTakeEffect(t *testing.T) {
	dir := t.TempDir()
	for name, text := range composetest.Auxiliary {
		writeFile(t, filepath.Join(dir, name), text)
	}
	rows := allRows()
	for _, r := range rows {
		if r.verdict != "" {
			continue
		}
		p, ok := composetest.Samples[r.path]
		if !ok {
			if !holdsHonoured(r.path, rows) {
				t.Errorf("the key %s is called honoured and has no sample", r.path)
			}
			continue
		}
		t.Run(r.path, func(t *testing.T) {
			a, b := loadSample(t, dir, p.A), loadSample(t, dir, p.B)
			if cmp.Equal(a, b) {
				t.Errorf("both files give the same stack:\n%s", a)
			}
		})
	}
	for path := range composetest.Samples {
		if r, state := newTable().lookup(strings.Split(path, ".")); state != keyKnown || r.verdict != "" {
			t.Errorf("the sample for %s is of a key that is not honoured", path)
		}
	}
}

func holdsHonoured(path string, rows []row) bool {
	for _, r := range rows {
		if r.verdict == "" && strings.HasPrefix(r.path, path+".") {
			return true
		}
	}
	return false
}

func allRows() []row {
	var all []row
	for _, group := range [][]row{topRows, serviceRows, deployRows, resourceRows, ownRows} {
		all = append(all, group...)
	}
	return all
}

func loadSample(t *testing.T, dir, text string) string {
	t.Helper()
	file := filepath.Join(dir, "stack.yml")
	writeFile(t, file, text)
	r, err := Load(t.Context(), Options{Files: []string{file}, Profiles: []string{"on"}, Env: map[string]string{"A_SET": "1", "B_SET": "2"}})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Err(); err != nil && (strings.Contains(text, "required: true") || strings.Contains(text, "per_replica: false")) {
		return err.Error()
	} else if err != nil {
		t.Fatalf("the sample is refused:\n%v\n%s", err, text)
	}
	b, err := json.Marshal(r.Stack)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func writeFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	// Modes are part of contents, whatever the umask.
	if err := errors.Join(os.Chmod(filepath.Dir(name), 0o755), os.Chmod(name, 0o644)); err != nil {
		t.Fatal(err)
	}
}
