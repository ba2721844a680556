package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"wherry.dev/spec"
)

// signalAfter is how long a process runs before it is told of files that have
// changed meanwhile: one that has just started may not listen yet.
const signalAfter = 5 * time.Second

// stale says whether the files of the task are not of the versions that are
// wanted, and from when on that may be changed: those of a running container at
// once, but when it is to get a signal not before it can be expected to handle
// it. from is zero for at once; never says that only news can tell.
func (w *worker) stale() (stale bool, from time.Time, never bool) {
	want := w.wantedLive()
	if want == nil {
		return false, time.Time{}, false
	}
	if w.run.State != RunRunning {
		return w.prep != nil && !maps.Equal(want, w.prep.live), time.Time{}, false
	}
	if maps.Equal(want, w.mem.Files) {
		return false, time.Time{}, false
	}
	if w.mem.Attempt == nil || len(signalsOf(w.tmpl, w.changedMounts(want))) == 0 {
		return true, time.Time{}, false
	}
	if w.mem.Attempt.GoodSince.IsZero() {
		return true, time.Time{}, true // it has not been healthy yet
	}
	return true, w.mem.Attempt.Started.Add(signalAfter), false
}

// changedMounts are the mounts whose version is another one now.
func (w *worker) changedMounts(want map[spec.DatumKey]spec.ContentID) []int {
	var out []int
	for i := range w.tmpl.Mounts {
		m := &w.tmpl.Mounts[i]
		if kind, short, ok := m.Datum(); ok && m.OnChange.Live() && want[spec.KeyOf(kind, short)] != w.mem.Files[spec.KeyOf(kind, short)] {
			out = append(out, i)
		}
	}
	return out
}

// exchange brings the files of the task to the versions that are wanted. In a
// running container all of them are exchanged, then the signals are sent, then
// it is noted that this is done: whatever ends this process in between, the next
// one does all of it again, so that no signal is missed. It may then be sent
// twice; else it never is.
func (w *worker) exchange(ctx context.Context, in input) error {
	want := w.wantedLive()
	m := w.mem
	m.Contents = dataContents(w.tmpl, want, m.Files)
	if err := w.store(m); err != nil { // before anything that it protects
		return err
	}
	cctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	pctx, done := w.preparing(cctx)
	j := w.a.dataJob(w.task, w.tmpl, w.svc, want)
	if in.run.State != RunRunning {
		err := done(w.a.data.write(pctx, &j))
		if err == nil {
			w.prep.live = want
		}
		return w.filesError(ctx, err)
	}
	changed, err := w.stageChanged(pctx, &j, want)
	if err == nil && len(changed) > 0 {
		w.a.effect("data staged")
		err = w.a.c.Exchanger.Exchange(pctx, w.id, w.newMounts(changed))
	}
	if err = done(err); err != nil {
		return w.filesError(ctx, err)
	}
	w.a.effect("data exchanged")
	for _, s := range signalsOf(w.tmpl, changed) {
		n, err := parseSignal(s)
		if err != nil {
			return err
		}
		if err := w.sendSignal(ctx, n, false); err != nil {
			return fmt.Errorf("tell the task of changed files: %w", err)
		}
		w.a.log.Info("told a task of changed files", "task", w.id, "signal", s)
	}
	for _, i := range changed {
		if err := w.a.data.place(w.id, i); err != nil {
			return fmt.Errorf("change files of the task: %w", err)
		}
	}
	if w.prep != nil {
		w.prep.live = want
	}
	m.Files, m.Status.Files = want, want
	m.Contents = dataContents(w.tmpl, want)
	if w.fails[actFiles] > 0 {
		m.Status.Reason = ""
	}
	w.commit(m)
	w.a.tidy.Store(true) // what only the old files needed
	poke(w.a.look)
	return nil
}

// stageChanged writes the files that have another version now, and templates
// that come out differently because of one.
func (w *worker) stageChanged(ctx context.Context, j *dataJob, want map[spec.DatumKey]spec.ContentID) ([]int, error) {
	if err := w.a.data.open(w.id); err != nil {
		return nil, err
	}
	known := map[int]bool{}
	for _, i := range w.changedMounts(want) {
		known[i] = true
	}
	var out []int
	for i := range w.tmpl.Mounts {
		m := &w.tmpl.Mounts[i]
		if _, _, ok := m.Datum(); !ok || !m.OnChange.Live() || !known[i] && !m.Render {
			continue
		}
		differs, err := w.a.data.stage(ctx, j, i)
		if err != nil {
			return nil, err
		}
		if known[i] || differs {
			out = append(out, i)
		}
	}
	return out, nil
}

// newMounts are the mounts of what was staged.
func (w *worker) newMounts(changed []int) []Mount {
	var out []Mount
	for _, i := range changed {
		m := w.a.data.mount(w.id, i, &w.tmpl.Mounts[i])
		m.Source += newSuffix
		out = append(out, m)
	}
	return out
}

// filesError is what is made of an error: the task goes on with the files that
// it has.
func (w *worker) filesError(ctx context.Context, err error) error {
	switch {
	case err == nil, errors.Is(err, errInterrupted):
		return err
	case ctx.Err() != nil:
		return ctx.Err()
	}
	return fmt.Errorf("change files of the task: %w", err)
}
