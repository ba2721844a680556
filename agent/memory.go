package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"wherry.dev/spec"
)

// memory is what the node remembers of one task across restarts of the daemon:
// DataDir/tasks/ID.json. It is written before a process is started or
// signalled, and after everything else. It is a value: whoever changes a copy
// replaces slices and pointers instead of writing through them.
type memory struct {
	Task spec.TaskID `json:"task"`
	// Status as it is, or will be, reported.
	Status spec.TaskStatus `json:"status"`
	// Image as it was found, kept so that a task whose container exists needs
	// no registry.
	Image *ImageConfig `json:"image,omitempty"`
	// Stop and Sink let a task be ended that is in no Wanted any more.
	Stop stopRule      `json:"stop"`
	Sink *spec.LogSink `json:"sink,omitempty"`
	// Volumes and Contents that the container uses; they are not removed
	// before the task is over.
	Volumes  []spec.VolumeID  `json:"volumes,omitempty"`
	Contents []spec.ContentID `json:"contents,omitempty"`
	// Files are the versions that the present attempt has of those secrets and
	// configs that change in running tasks, and was told of.
	Files map[spec.DatumKey]spec.ContentID `json:"files,omitempty"`
	// Joins is the task whose network it has; that is not removed before this one
	// is over.
	Joins spec.TaskID `json:"joins,omitempty"`
	// Exclusive tasks run only while the node has a lease.
	Exclusive bool `json:"exclusive,omitempty"`
	// Inits counts the containers before the start that have done their work.
	Inits int `json:"inits,omitempty"`
	// Attempt is the present one: about to be started, or running.
	Attempt *attempt `json:"attempt,omitempty"`
	// LastEnded is the runtime's time of the last end that was taken note of.
	LastEnded time.Time `json:"last_ended,omitzero"`
	// Restarts counts restarts, Streak the short runs in a row; both begin
	// anew after a run that lasted. Failures are the times of recent failures.
	Restarts int         `json:"restarts,omitempty"`
	Streak   int         `json:"streak,omitempty"`
	Failures []time.Time `json:"failures,omitempty"`
	Health   health      `json:"health,omitzero"`
	// StopSent and KillSent are when the process was told to end, or when the
	// first hook before that was begun.
	StopSent time.Time `json:"stop_sent,omitzero"`
	KillSent time.Time `json:"kill_sent,omitzero"`
	// PreStopped counts the hooks before the stop that are over since StopSent.
	PreStopped int `json:"pre_stopped,omitempty"`
	// Outcome is the terminal state that the task will have as soon as its
	// container and its network are gone.
	Outcome       spec.TaskState `json:"outcome,omitempty"`
	OutcomeReason string         `json:"outcome_reason,omitempty"`
}

// attempt is one run of the container's process.
type attempt struct {
	Number  int       `json:"number"`
	Started time.Time `json:"started"`
	// PID is 0 while the start is only intended.
	PID int `json:"pid,omitempty"`
	// PostStarted counts the hooks after the start that have succeeded.
	PostStarted int `json:"post_started,omitempty"`
	// GoodSince is when it first counted as healthy; without a check that is
	// its start.
	GoodSince time.Time `json:"good_since,omitzero"`
	// Unhealthy says why the process is being ended.
	Unhealthy string `json:"unhealthy,omitempty"`
}

// stopRule says how to end a process.
type stopRule struct {
	Signal int           `json:"signal"`
	Grace  spec.Duration `json:"grace"`
	// Hooks are run before the signal, within Grace.
	Hooks []spec.Hook `json:"hooks,omitempty"`
}

// setState moves the status to s, which must not be before its present state.
func (m *memory) setState(s spec.TaskState, now time.Time) {
	if m.Status.State != s {
		m.Status.State, m.Status.Since = s, now
	}
}

// setHealth changes what the health check says, as it is from at on.
func (m *memory) setHealth(h spec.HealthState, at time.Time) {
	switch {
	case h != spec.HealthHealthy:
		at = time.Time{}
	case m.Status.Health == h && !m.Status.HealthySince.IsZero():
		at = m.Status.HealthySince
	}
	m.Status.Health, m.Status.HealthySince = h, at
}

// graceOver reports whether a stop at a time, zero for none, was more than the
// grace ago.
func (m *memory) graceOver(at, now time.Time) bool {
	grace := m.Stop.Grace.D()
	if grace <= 0 {
		grace = defaultGrace
	}
	return !at.IsZero() && now.Sub(at) > grace
}

// end gives m its outcome, unless it has one.
func (m *memory) end(s spec.TaskState, reason string) {
	if m.Outcome == "" {
		m.Outcome, m.OutcomeReason = s, reason
		m.Status.Reason, m.Status.NextStart = reason, time.Time{}
	}
}

func memoryPath(dataDir string, t spec.TaskID) string {
	return filepath.Join(dataDir, "tasks", string(t)+".json")
}

// saveMemory replaces the file of m. It does not wait for the disk: a process
// that dies loses nothing, and a host that dies has no containers to remember.
func saveMemory(dataDir string, m memory) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode memory of task %s: %w", m.Task, err)
	}
	return replaceFile(memoryPath(dataDir, m.Task), b, false)
}

// loadMemories reads all memories. Files that cannot be read as one are
// returned by name; a task without memory is found again by its container.
func loadMemories(dataDir string) (ms []memory, broken []string, err error) {
	dir := filepath.Join(dataDir, "tasks")
	names, err := dirNames(dir)
	if err != nil {
		return nil, nil, err
	}
	for _, name := range names {
		id, ok := strings.CutSuffix(name, ".json")
		if !ok {
			broken = append(broken, name)
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return nil, nil, fmt.Errorf("read memory of task %s: %w", id, err)
		}
		var m memory
		if json.Unmarshal(b, &m) != nil || string(m.Task) != id {
			broken = append(broken, name)
			continue
		}
		ms = append(ms, m)
	}
	return ms, broken, nil
}

// replaceFile writes a file by way of a temporary one, so that it is found
// either old or new. With sync it also survives the end of the host.
func replaceFile(path string, b []byte, sync bool) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(b)
	if sync && err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if sync {
		return syncDir(filepath.Dir(path))
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync folder %s: %w", dir, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync folder %s: %w", dir, err)
	}
	return nil
}

// dirNames lists a folder, sorted; one that does not exist is empty.
func dirNames(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list folder %s: %w", dir, err)
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}
