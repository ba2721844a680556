package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"wherry.dev/spec"
)

// dataFiles owns RunDir/files, a file system in memory: in contents are secrets
// as they came from the managers, and in tasks/ID the secrets and configs that
// a container has, each called as the index of its mount. So a node goes on
// without any manager as long as it is not switched off. The file system is
// there only while a task needs it.
type dataFiles struct {
	dir    string
	tmpfs  Tmpfs
	sealed *contents // in contents
	plain  *contents // on disk, of what is no secret

	mu sync.Mutex // held while the file system, or the folder of a task, comes or goes
}

func newDataFiles(dir string, tmpfs Tmpfs, plain *contents, effect func(op string)) *dataFiles {
	sealed := newContents(filepath.Join(dir, "contents"), plain.fetch, effect)
	sealed.sealed = true
	return &dataFiles{dir: dir, tmpfs: tmpfs, plain: plain, sealed: sealed}
}

func (d *dataFiles) taskDir(t spec.TaskID) string { return filepath.Join(d.dir, "tasks", string(t)) }

// file is where the i-th mount of a task has its source.
func (d *dataFiles) file(t spec.TaskID, i int) string {
	return filepath.Join(d.taskDir(t), strconv.Itoa(i))
}

// env is where a task has the secrets that are environment variables.
func (d *dataFiles) env(t spec.TaskID) string { return filepath.Join(d.taskDir(t), "env") }

// open makes the folder of a task.
func (d *dataFiles) open(t spec.TaskID) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return fmt.Errorf("make folder of secrets: %w", err)
	}
	if err := d.tmpfs.Mount(d.dir); err != nil {
		return fmt.Errorf("make the memory for secrets: %w", err)
	}
	if err := errors.Join(os.MkdirAll(filepath.Join(d.dir, "contents"), 0o700), os.MkdirAll(d.taskDir(t), 0o700)); err != nil {
		return fmt.Errorf("make folder of secrets: %w", err)
	}
	return nil
}

// close removes what a task has.
func (d *dataFiles) close(t spec.TaskID) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return os.RemoveAll(d.taskDir(t))
}

// sweep removes the folders of tasks that are unneeded, the secrets that keep
// does not name, and the file system when nothing is left in it.
func (d *dataFiles) sweep(unneeded func(task string) bool, keep map[spec.ContentID]bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, err := os.Stat(d.dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	tasks, err := dirNames(filepath.Join(d.dir, "tasks"))
	errs := []error{err}
	left := 0
	for _, n := range tasks {
		if !unneeded(n) {
			left++
			continue
		}
		errs = append(errs, os.RemoveAll(filepath.Join(d.dir, "tasks", n)))
	}
	if left == 0 {
		return errors.Join(append(errs, d.removeLocked())...)
	}
	return errors.Join(append(errs, d.sealed.sweep(keep))...)
}

// remove removes everything.
func (d *dataFiles) remove() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.removeLocked()
}

func (d *dataFiles) removeLocked() error {
	if _, err := os.Stat(d.dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return errors.Join(d.tmpfs.Unmount(d.dir), os.RemoveAll(d.dir))
}

// bytes returns a secret or config, fetching it when it is not there.
func (d *dataFiles) bytes(ctx context.Context, id spec.ContentID) ([]byte, error) {
	from := d.plain
	if id.Sealed() {
		from = d.sealed
	}
	root, err := from.ensure(ctx, id)
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(root)
	if err != nil {
		return nil, fmt.Errorf("content %s: %w", id.Short(), err)
	}
	return b, nil
}

// dataJob is what the files of one task are made of.
type dataJob struct {
	task *spec.Task
	tmpl *spec.Template
	// live are the versions of what changes in running tasks.
	live  map[spec.DatumKey]spec.ContentID
	facts spec.RenderFacts
}

func (a *Agent) dataJob(t *spec.Task, tmpl *spec.Template, svc spec.WantedService, live map[spec.DatumKey]spec.ContentID) dataJob {
	j := dataJob{task: t, tmpl: tmpl, live: live}
	f := &j.facts
	f.Service.ID, f.Service.Name, f.Service.Labels = string(svc.ID), spec.ScopedName(t.Stack, t.Service), svc.Labels
	f.Task.ID, f.Task.Name, f.Task.Slot = string(t.ID), spec.TaskName(t, a.c.NodeName), t.Place()
	f.Node.ID, f.Node.Hostname = string(a.c.Node), a.c.NodeName
	f.Node.Platform.Architecture, f.Node.Platform.OS = runtime.GOARCH, runtime.GOOS
	return j
}

// version is the content of a mount; "" for one that nobody has told of.
func (j *dataJob) version(m *spec.Mount) spec.ContentID {
	kind, short, _ := m.Datum()
	if m.OnChange.Live() {
		return j.live[spec.KeyOf(kind, short)]
	}
	return m.Content
}

// text is what the file of a mount is to hold.
func (d *dataFiles) text(ctx context.Context, j *dataJob, m *spec.Mount) ([]byte, error) {
	kind, short, _ := m.Datum()
	id := j.version(m)
	if id == "" {
		return nil, spec.Unavailablef("%s %s: the managers have not told its version yet", kind, short)
	}
	b, err := d.bytes(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", kind, short, err)
	}
	if !m.Render {
		return b, nil
	}
	b, err = spec.Render(kind, short, string(b), j.facts, spec.RenderFuncs{Env: j.tmpl.Env, Datum: func(k spec.DatumKind, name string) (string, error) {
		other, err := j.tmpl.FindDatum(k, name)
		if err != nil {
			return "", err
		}
		b, err := d.bytes(ctx, j.version(other))
		return string(b), err
	}})
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", kind, short, err)
	}
	return b, nil
}

// newSuffix ends the name of a file that is not in its place yet.
const newSuffix = ".new"

// stage writes the file of the i-th mount beside its place, and reports whether
// it differs from what is there.
func (d *dataFiles) stage(ctx context.Context, j *dataJob, i int) (differs bool, err error) {
	m := &j.tmpl.Mounts[i]
	b, err := d.text(ctx, j, m)
	if err != nil {
		return false, err
	}
	path := d.file(j.task.ID, i)
	mode := uint32(0o444)
	if m.Mode != nil {
		mode = *m.Mode
	}
	if err := writeUnseen(path+newSuffix, b, owner{uid: m.UID, gid: m.GID, mode: &mode}); err != nil {
		return false, fmt.Errorf("write file of %s: %w", m.Source, err)
	}
	old, err := os.ReadFile(path)
	return err != nil || !bytes.Equal(old, b), nil
}

// writeUnseen writes a file that nobody else sees until it is renamed.
func writeUnseen(path string, b []byte, o owner) error {
	if err := remove(path); err != nil {
		return err
	}
	root, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer root.Close()
	return writeContentFile(root, filepath.Base(path), spec.ContentFile{Data: b}, o, false)
}

// place puts what was staged into its place.
func (d *dataFiles) place(t spec.TaskID, i int) error {
	return os.Rename(d.file(t, i)+newSuffix, d.file(t, i))
}

// write makes all files of a task. It may be repeated at any time, also while
// the container runs, which sees none of it.
func (d *dataFiles) write(ctx context.Context, j *dataJob) error {
	if err := d.open(j.task.ID); err != nil {
		return err
	}
	var staged []int
	for i := range j.tmpl.Mounts {
		if _, _, ok := j.tmpl.Mounts[i].Datum(); !ok {
			continue
		}
		if _, err := d.stage(ctx, j, i); err != nil {
			return err
		}
		staged = append(staged, i)
	}
	if err := d.writeEnv(ctx, j); err != nil {
		return err
	}
	for _, i := range staged {
		if err := d.place(j.task.ID, i); err != nil {
			return fmt.Errorf("write file of secret or config: %w", err)
		}
	}
	return nil
}

// writeEnv makes the file of the secrets that are environment variables: each
// as NAME=VALUE, ended by a zero byte. The line end at the end of a secret is
// that of its file and no part of the variable.
func (d *dataFiles) writeEnv(ctx context.Context, j *dataJob) error {
	if len(j.tmpl.SecretEnv) == 0 {
		return nil
	}
	var out bytes.Buffer
	for _, v := range j.tmpl.SecretEnv {
		b, err := d.bytes(ctx, v.Content)
		if err != nil {
			return fmt.Errorf("secret %s: %w", v.Source, err)
		}
		if bytes.IndexByte(b, 0) >= 0 {
			return spec.Invalidf("secret %s has a zero byte, which cannot be in the variable %s: take it as a file", v.Source, v.Name)
		}
		b = bytes.TrimSuffix(bytes.TrimSuffix(b, []byte("\n")), []byte("\r"))
		fmt.Fprintf(&out, "%s=%s\x00", v.Name, b)
	}
	path := d.env(j.task.ID)
	mode := uint32(0o444) // the program may be anybody in the container
	if err := writeUnseen(path+newSuffix, out.Bytes(), owner{mode: &mode}); err != nil {
		return fmt.Errorf("write variables: %w", err)
	}
	if err := os.Rename(path+newSuffix, path); err != nil {
		return fmt.Errorf("write variables: %w", err)
	}
	return nil
}

// dataMount is the mount of a secret or config.
func (d *dataFiles) mount(t spec.TaskID, i int, m *spec.Mount) Mount {
	out := Mount{Source: d.file(t, i), Target: m.Target, ReadOnly: true, Options: []string{"nosuid", "nodev"}}
	if m.Type == spec.MountSecret {
		out.Options = append(out.Options, "noexec")
	}
	return out
}

// prepareData makes the files of a task and returns the versions that they have
// of what changes in running tasks: those that are wanted, or, when these cannot
// be had now, those that the task had before.
func (a *Agent) prepareData(ctx context.Context, t *spec.Task, tmpl *spec.Template, svc spec.WantedService, had map[spec.DatumKey]spec.ContentID) (map[spec.DatumKey]spec.ContentID, error) {
	want := tmpl.LiveOf(svc.Live)
	if want == nil {
		want = had // the service is gone
	}
	j := a.dataJob(t, tmpl, svc, want)
	err := a.data.write(ctx, &j)
	if err != nil && had != nil && !errors.Is(err, spec.ErrInvalid) && !maps.Equal(want, had) {
		j.live = had
		if a.data.write(ctx, &j) == nil {
			want, err = had, nil
		}
	}
	a.effect("data")
	return want, err
}

// wantedLive are the versions that the task ought to have of what changes while
// it runs; nil when there is none.
func (w *worker) wantedLive() map[spec.DatumKey]spec.ContentID {
	if w.tmpl == nil {
		return nil
	}
	return w.tmpl.LiveOf(w.svc.Live)
}

// dataContents are the contents that the task has or is about to have.
func dataContents(tmpl *spec.Template, lives ...map[spec.DatumKey]spec.ContentID) []spec.ContentID {
	ids := tmpl.Contents()
	for _, l := range lives {
		ids = slices.AppendSeq(ids, maps.Values(l))
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

// signalsOf are the signals to be sent after the mounts have changed, each once.
func signalsOf(tmpl *spec.Template, mounts []int) []string {
	var out []string
	for _, i := range mounts {
		if s := tmpl.Mounts[i].OnChange.Signal(); s != "" {
			out = append(out, strings.ToUpper(s))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
