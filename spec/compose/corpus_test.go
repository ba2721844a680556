package compose

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// wantedShare is the least share of the files that compose-go loads which must
// have no refusal.
const wantedShare = 0.75

// rawEnvFile needs the format raw of env files, which the docker command adds
// to compose-go, as we do.
const rawEnvFile = "/TestRawEnvFile/compose.yaml"

// TestCorpus loads the files of a corpus of public stack files: those in
// testdata/corpus, and those of ../shared/corpus beside the repository where
// that folder is present. INDEX.tsv tells what compose-go itself says of each
// file, with an empty environment and all profiles.
func TestCorpus(t *testing.T) {
	t.Run("subset", func(t *testing.T) { checkCorpus(t, filepath.Join("testdata", "corpus"), 12) })
	whole := filepath.Join("..", "..", "..", "shared", "corpus")
	if _, err := os.Stat(filepath.Join(whole, "INDEX.tsv")); err == nil {
		t.Run("whole", func(t *testing.T) { checkCorpus(t, whole, 100) })
	}
}

func checkCorpus(t *testing.T, dir string, least int) {
	index, err := os.ReadFile(filepath.Join(dir, "INDEX.tsv"))
	if err != nil {
		t.Fatal(err)
	}
	files, loadable, accepted := 0, 0, 0
	for i, line := range strings.Split(strings.TrimSpace(string(index)), "\n") {
		fields := strings.Split(line, "\t")
		if i == 0 || len(fields) < 7 {
			continue
		}
		files++
		name := filepath.Join(dir, fields[0])
		r, err := Load(t.Context(), Options{Files: []string{name}, Profiles: []string{"*"}, Env: map[string]string{}})
		if err != nil {
			t.Errorf("%s: %v", fields[0], err)
			continue
		}
		for _, f := range r.Findings {
			if f.File == "" || f.Message == "" || f.Verdict == Refused && f.Line == 0 && f.Path != "" {
				t.Errorf("%s: the finding %+v has no place or no message", fields[0], f)
			}
		}
		refusal := r.Err()
		switch ok := fields[6] == "ok"; {
		case ok && refusal == nil:
			loadable, accepted = loadable+1, accepted+1
			checkContents(t, r)
		case ok:
			loadable++
		case refusal == nil && !strings.HasSuffix(fields[0], rawEnvFile):
			t.Errorf("%s is accepted, compose-go refuses it: %s", fields[0], fields[len(fields)-1])
		}
	}
	if files < least {
		t.Fatalf("the corpus in %s has %d files, want at least %d", dir, files, least)
	}
	t.Logf("%d files, compose-go loads %d, accepted of those %d (%.1f %%)", files, loadable, accepted, 100*float64(accepted)/float64(loadable))
	if float64(accepted) < wantedShare*float64(loadable) {
		t.Errorf("%d of %d files that compose-go loads are accepted, want %.0f %%", accepted, loadable, 100*wantedShare)
	}
}
