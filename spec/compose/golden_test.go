package compose

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"wherry.dev/spec"
)

// TestGolden loads the files of each archive in testdata/golden. The comment
// of the archive holds the options, one per line: "file NAME", "profile P",
// "name N", "env K=V", "env-file NAME", "accept KEY"; without a file it is stack.yml. The
// sections "findings" and "stack" hold what is expected.
func TestGolden(t *testing.T) {
	archives, err := filepath.Glob(filepath.Join("testdata", "golden", "*.txtar"))
	if err != nil || len(archives) == 0 {
		t.Fatalf("no archives: %v", err)
	}
	for _, name := range archives {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			a.Files = slices.DeleteFunc(a.Files, func(f txtar.File) bool { return f.Name == "findings" || f.Name == "stack" })
			findings, stack := loadArchive(t, a)
			a.Files = append(a.Files, txtar.File{Name: "findings", Data: []byte(findings)}, txtar.File{Name: "stack", Data: []byte(stack)})
			got := string(txtar.Format(a))
			if *update {
				if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// loadArchive unpacks the inputs of a, loads them and describes the result.
func loadArchive(t *testing.T, a *txtar.Archive) (findings, stack string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "shop")
	for _, f := range a.Files {
		writeFile(t, filepath.Join(dir, f.Name), string(f.Data))
	}
	o := Options{Env: map[string]string{"HOME": filepath.Join(dir, "home")}}
	for _, line := range strings.Split(strings.TrimSpace(string(a.Comment)), "\n") {
		k, v, _ := strings.Cut(line, " ")
		switch k {
		case "file":
			o.Files = append(o.Files, filepath.Join(dir, v))
		case "profile":
			o.Profiles = append(o.Profiles, v)
		case "name":
			o.Name = v
		case "env":
			name, value, _ := strings.Cut(v, "=")
			o.Env[name] = value
		case "accept":
			o.Accept = append(o.Accept, v)
		case "env-file":
			o.EnvFiles = append(o.EnvFiles, filepath.Join(dir, v))
		}
	}
	if o.Files == nil {
		o.Files = []string{filepath.Join(dir, "stack.yml")}
	}
	r, err := Load(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for _, f := range r.Findings {
		line := strings.ReplaceAll(f.String(), dir+"/", "")
		fmt.Fprintf(&b, "%s %s\n", f.Verdict, line)
	}
	for _, k := range slices.Sorted(mapKeys(r.Unaccepted)) {
		fmt.Fprintf(&b, "unaccepted %s: %s\n", k, r.Unaccepted[k])
	}
	if r.Err() != nil {
		return b.String(), ""
	}
	checkContents(t, r)
	for _, id := range slices.Sorted(mapKeys(r.Contents)) {
		files, err := spec.UnpackContent(r.Contents[id])
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			fmt.Fprintf(&b, "content %s %s dir=%v %q\n", id[:15], f.Path, f.Dir, f.Data)
		}
	}
	out, err := json.MarshalIndent(r.Stack, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return b.String(), strings.ReplaceAll(string(out), dir, "/shop") + "\n"
}

func mapKeys[K comparable, V any](m map[K]V) func(func(K) bool) {
	return func(yield func(K) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// checkContents checks that the contents of a result are those that its stack
// refers to, under the right IDs.
func checkContents(t *testing.T, r Result) {
	t.Helper()
	wanted := map[spec.ContentID]bool{}
	for _, s := range r.Stack.Services {
		for _, m := range s.Template.Mounts {
			if m.Content != "" {
				wanted[m.Content] = true
			}
		}
	}
	for _, k := range spec.DatumKinds {
		for _, d := range r.Stack.Data(k) {
			if !d.External {
				wanted[d.Content] = true
			}
		}
	}
	for _, v := range r.Stack.Volumes {
		if v.Seed != "" {
			wanted[v.Seed] = true
		}
	}
	for id := range wanted {
		if b, ok := r.Contents[id]; !ok || spec.PlainContentID(b) != id {
			t.Errorf("the content %s is missing or has another ID", id)
		}
	}
	if len(r.Contents) != len(wanted) {
		t.Errorf("%d contents, of which the stack refers to %d", len(r.Contents), len(wanted))
	}
}
