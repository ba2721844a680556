package agent

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"time"

	"wherry.dev/spec"
)

// sweepTimeout bounds one call that removes what nobody needs; it is repeated
// at the next sweep.
const sweepTimeout = 2 * time.Minute

// sweep removes what is ours and belongs to no task: containers, namespaces,
// files, logs, contents, and the volumes that are to be removed. It is as
// right after a crash as in a normal pass, since it looks at what there is.
func (a *Agent) sweep(ctx context.Context, w *spec.Wanted, seen map[spec.TaskID]ContainerState) {
	known := a.snapshotWorkers()
	unknown := func(id string) bool {
		_, task := known[spec.TaskID(id)]
		return !task && !a.isBusy("container "+id)
	}
	for id := range seen {
		if unknown(string(id)) {
			a.later(ctx, "container "+string(id), func(ctx context.Context) error {
				a.log.Info("removing a container that no task has", "task", id)
				return a.c.Runtime.Remove(ctx, id)
			})
		}
	}
	free := func(id string) bool {
		_, exists := seen[spec.TaskID(id)]
		return !exists && unknown(id)
	}
	a.sweepDir(filepath.Join(a.c.RunDir, "tasks"), free, os.RemoveAll)
	a.sweepDir(filepath.Join(a.c.DataDir, "anon"), free, removeTree)
	a.sweepDir(filepath.Join(a.c.DataDir, "logs"), func(id string) bool {
		return free(id) && !slices.Contains(w.KeepLogs, spec.TaskID(id))
	}, os.RemoveAll)
	a.sweepDir(filepath.Join(a.c.RunDir, "netns"), free, func(path string) error {
		id := spec.TaskID(filepath.Base(path))
		a.later(ctx, "network "+string(id), func(ctx context.Context) error { return a.c.Network.Detach(ctx, id) })
		return nil
	})
	if err := a.blobs.sweep(a.neededContents(w, known)); err != nil {
		a.log.Warn("remove unused contents", "err", err)
	}
	if err := a.data.sweep(free, usedContents(known)); err != nil {
		a.log.Warn("remove unused secrets", "err", err)
	}
	a.removeVolumes(ctx, w)
	a.fetchVolumes(ctx, w)
}

// usedContents are those that tasks which are not over have or are about to.
func usedContents(known map[spec.TaskID]*worker) map[spec.ContentID]bool {
	used := map[spec.ContentID]bool{}
	for _, wk := range known {
		for _, id := range wk.usedContents() {
			used[id] = true
		}
	}
	return used
}

// sweepDir removes the entries of dir for which unneeded holds.
func (a *Agent) sweepDir(dir string, unneeded func(name string) bool, remove func(path string) error) {
	names, err := dirNames(dir)
	if err != nil {
		a.log.Warn("look for what is left", "err", err)
		return
	}
	for _, n := range names {
		if !unneeded(n) {
			continue
		}
		if err := remove(filepath.Join(dir, n)); err != nil {
			a.log.Warn("remove what is left", "path", filepath.Join(dir, n), "err", err)
		}
	}
}

// later does what may take long in the background, once at a time per key.
func (a *Agent) later(ctx context.Context, key string, do func(ctx context.Context) error) {
	a.laterWithin(ctx, sweepTimeout, key, do)
}

// laterWithin is later with another bound of its time; 0 is none.
func (a *Agent) laterWithin(ctx context.Context, within time.Duration, key string, do func(ctx context.Context) error) {
	a.mu.Lock()
	if a.busy[key] {
		a.mu.Unlock()
		return
	}
	a.busy[key] = true
	a.mu.Unlock()
	a.background.Go(func() {
		defer func() {
			a.mu.Lock()
			delete(a.busy, key)
			a.mu.Unlock()
		}()
		if within > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, within)
			defer cancel()
		}
		if err := do(ctx); err != nil && ctx.Err() == nil {
			a.log.Warn("clean up, trying again later", "what", key, "err", err)
			return
		}
		a.tidy.Store(true)
	})
}

func (a *Agent) isBusy(key string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.busy[key]
}

func (a *Agent) neededContents(w *spec.Wanted, known map[spec.TaskID]*worker) map[spec.ContentID]bool {
	need := usedContents(known)
	for _, tmpl := range w.Revisions {
		for _, id := range tmpl.Contents() {
			need[id] = true
		}
	}
	for _, v := range w.Volumes {
		need[v.Spec.Seed] = true
	}
	return need
}

// removeVolumes deletes the instances that the managers name, each as soon as
// no task uses it, and tells once that it is gone.
func (a *Agent) removeVolumes(ctx context.Context, w *spec.Wanted) {
	a.mu.Lock()
	for id := range a.volGone {
		if !slices.Contains(w.RemoveVolumes, id) {
			delete(a.volGone, id)
		}
	}
	a.mu.Unlock()
	for _, id := range w.RemoveVolumes {
		a.mu.Lock()
		_, told := a.volGone[id]
		a.mu.Unlock()
		if told || !safeName(string(id)) || a.volumeUsed(id, "") {
			continue
		}
		a.later(ctx, "volume "+string(id), func(ctx context.Context) error {
			if err := a.vols.remove(ctx, id); err != nil {
				return err
			}
			a.mu.Lock()
			a.volGone[id] = struct{}{}
			a.mu.Unlock()
			a.log.Info("volume removed", "volume", id)
			a.report.volumeGone(id)
			return nil
		})
	}
}
