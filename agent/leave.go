package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"wherry.dev/spec"
)

// leaveLook is how often Leave looks whether all is gone.
const leaveLook = 50 * time.Millisecond

// Leave stops and removes every task of the node with its container, its
// namespace and its files, and returns when that is done or ctx ends. From then
// on nothing is started any more: what Set says is ignored. With purge the
// volumes and their data, the logs and the images go, too, and everything else
// that the agent has in its folders. Run must be running; it goes on, without
// work. The error names everything that could not be removed; Leave may be
// called again.
func (a *Agent) Leave(ctx context.Context, purge bool) error {
	if err := a.wantNothing(purge); err != nil {
		return err
	}
	for n := 0; ; n++ {
		left, err := a.remains(ctx)
		if err == nil && len(left) == 0 {
			break
		}
		if n%20 == 0 {
			a.tidy.Store(true)
			poke(a.look)
		}
		if !sleep(ctx, leaveLook) {
			return errors.Join(fmt.Errorf("leave the cluster: still on this node: %s", strings.Join(left, "; ")), err, context.Cause(ctx))
		}
	}
	errs := []error{
		remove(wantedPath(a.c.DataDir)), remove(a.leases.file), os.RemoveAll(filepath.Join(a.c.RunDir, "tasks")),
		os.RemoveAll(filepath.Join(a.c.DataDir, "tasks")), removeTree(filepath.Join(a.c.DataDir, "anon")),
		os.RemoveAll(filepath.Join(a.c.DataDir, "contents")), a.data.remove(),
	}
	if purge {
		errs = append(errs, a.purge(ctx)...)
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("leave the cluster: %w", err)
	}
	return nil
}

// wantNothing makes the agent end all that it runs.
func (a *Agent) wantNothing(purge bool) error {
	w := spec.Wanted{Node: a.c.Node}
	if !purge {
		names, err := dirNames(filepath.Join(a.c.DataDir, "logs"))
		if err != nil {
			return fmt.Errorf("leave the cluster: %w", err)
		}
		for _, n := range names {
			w.KeepLogs = append(w.KeepLogs, spec.TaskID(n))
		}
	}
	a.mu.Lock()
	a.leaving = true
	if a.wanted != nil {
		w.Clock = a.wanted.Clock
	}
	a.wanted = &w
	a.mu.Unlock()
	a.tidy.Store(true)
	poke(a.look)
	return nil
}

// remains names what is still on the node.
func (a *Agent) remains(ctx context.Context) ([]string, error) {
	var out []string
	known := a.snapshotWorkers()
	for id, wk := range known {
		m := wk.memory()
		if m.Status.State.Terminal() {
			out = append(out, fmt.Sprintf("task %s", id))
			continue
		}
		out = append(out, fmt.Sprintf("task %s (%s: %s)", id, m.Status.State, m.Status.Reason))
	}
	lctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	states, err := a.c.Runtime.List(lctx)
	for _, s := range states {
		if _, task := known[s.Task]; !task {
			out = append(out, fmt.Sprintf("container %s", s.Task))
		}
	}
	names, nerr := dirNames(filepath.Join(a.c.RunDir, "netns"))
	for _, n := range names {
		if _, task := known[spec.TaskID(n)]; !task {
			out = append(out, fmt.Sprintf("network namespace %s", n))
		}
	}
	a.mu.Lock()
	for what := range a.busy {
		out = append(out, what)
	}
	a.mu.Unlock()
	slices.Sort(out)
	return out, errors.Join(err, nerr)
}

// purge removes what outlives tasks.
func (a *Agent) purge(ctx context.Context) []error {
	var errs []error
	dir := filepath.Join(a.c.DataDir, "volumes")
	names, err := dirNames(dir)
	errs = append(errs, err)
	for _, n := range names {
		if strings.HasPrefix(n, ".") {
			errs = append(errs, removeTree(filepath.Join(dir, n)))
			continue
		}
		if err := a.vols.remove(ctx, spec.VolumeID(n)); err != nil {
			errs = append(errs, fmt.Errorf("volume %s: %w", n, err))
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, fmt.Errorf("remove folder of volumes: %w", err))
	}
	errs = append(errs, os.RemoveAll(filepath.Join(a.c.DataDir, "logs")))
	if a.c.PurgeImages != nil {
		if err := a.c.PurgeImages(ctx); err != nil {
			errs = append(errs, fmt.Errorf("remove images: %w", err))
		}
	}
	return errs
}

// remove removes a file, which need not exist.
func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
