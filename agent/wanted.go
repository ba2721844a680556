package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"

	"wherry.dev/spec"
)

// Set says what the node must have from now on. An older document, and one for
// another node, is ignored. It may be called at any time, also before Run, and
// returns at once. The agent keeps w; the caller must not change it.
func (a *Agent) Set(w spec.Wanted) {
	if w.Node != a.c.Node {
		a.log.Error("wanted state is for another node, ignored", "node", w.Node)
		return
	}
	a.mu.Lock()
	if a.leaving {
		a.mu.Unlock()
		return
	}
	// A manager that is behind does not know better than the stored document.
	news := a.wanted == nil || !w.Clock.Before(a.wanted.Clock)
	if news {
		a.wanted, a.heard = &w, true
	}
	a.mu.Unlock()
	a.tidy.Store(true)
	poke(a.look)
}

// current is the newest document, and whether it is of this life of the agent.
func (a *Agent) current() (w *spec.Wanted, heard bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.wanted, a.heard
}

// wantedFile keeps the last document on disk, so that a node goes on without
// any manager. What was acted upon is always on disk already: else a restart
// would remove what the document had asked for.
type wantedFile struct {
	path   string
	stored *spec.Wanted // as it is on disk, without statuses
	err    error        // of the last write
}

// load reads the document; nil when there is none yet.
func (f *wantedFile) load() (*spec.Wanted, error) {
	b, err := os.ReadFile(f.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read wanted state: %w", err)
	}
	w := &spec.Wanted{}
	if err := json.Unmarshal(b, w); err != nil {
		return nil, spec.Invalidf("wanted state in %s cannot be read: %v", f.path, err)
	}
	f.stored = withoutStatus(w)
	return w, nil
}

// save writes w, unless it asks for nothing new.
func (f *wantedFile) save(w *spec.Wanted) error {
	plain := withoutStatus(w)
	if f.stored != nil && f.err == nil && sameWanted(f.stored, plain) {
		return nil
	}
	b, err := json.Marshal(plain)
	if err != nil {
		return fmt.Errorf("encode wanted state: %w", err)
	}
	if f.err = replaceFile(f.path, b, true); f.err != nil {
		return f.err
	}
	f.stored = plain
	return nil
}

// withoutStatus leaves out what only echoes this node's own reports, but for
// the counters from which a task whose memory was lost goes on.
func withoutStatus(w *spec.Wanted) *spec.Wanted {
	out := *w
	out.Tasks = slices.Clone(w.Tasks)
	for i := range out.Tasks {
		out.Tasks[i].Status = spec.TaskStatus{State: out.Tasks[i].Status.State}
	}
	return &out
}

// sameWanted compares all but clocks and states.
func sameWanted(a, b *spec.Wanted) bool {
	strip := func(w *spec.Wanted) spec.Wanted {
		out := *w
		out.Clock = spec.Clock{Incarnation: w.Incarnation}
		out.Tasks = slices.Clone(w.Tasks)
		for i := range out.Tasks {
			out.Tasks[i].Status = spec.TaskStatus{}
		}
		return out
	}
	return reflect.DeepEqual(strip(a), strip(b))
}

func wantedPath(dataDir string) string { return filepath.Join(dataDir, "wanted.json") }
