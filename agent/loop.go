package agent

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"wherry.dev/spec"
)

// The times of looking at the runtime.
const (
	// lookGap is the least time between two looks; a runtime that takes long
	// to answer is given twice as long.
	lookGap     = 25 * time.Millisecond
	lookTimeout = 30 * time.Second
	lookRetry   = time.Second
)

// Run works until ctx ends, and returns after all its goroutines. It fails
// only when the agent's folders cannot be used.
func (a *Agent) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer a.background.Wait()
	defer cancel()
	if err := a.makeDirs(); err != nil {
		return err
	}
	if err := a.vols.sweep(); err != nil {
		a.log.Error("clean up volumes", "err", err)
	}
	file := &wantedFile{path: wantedPath(a.c.DataDir)}
	memories, err := a.restore(file)
	if err != nil {
		return err
	}
	info, err := readNodeInfo(a.c.Version)
	if err != nil {
		return err
	}
	a.background.Go(func() { a.watchInfo(ctx, info) })
	a.background.Go(func() { a.report.run(ctx) })
	a.background.Go(func() { a.leases.run(ctx) })
	a.background.Go(func() { a.refreshSinks(ctx) })
	if a.c.Ports != nil {
		a.background.Go(func() { a.watchPorts(ctx) })
	}

	resync := time.NewTicker(a.c.Resync)
	defer resync.Stop()
	p := &pass{a: a, file: file, memories: memories, fetches: fetches{a: a, cancel: map[spec.RevisionID]context.CancelFunc{}}}
	for {
		start := time.Now()
		next := p.run(ctx)
		if !sleep(ctx, min(max(lookGap, 2*time.Since(start)), lookRetry)) {
			return nil
		}
		var again <-chan time.Time
		var timer *time.Timer
		if next > 0 {
			timer = time.NewTimer(next)
			again = timer.C
		}
		select {
		case <-ctx.Done():
		case <-a.look:
		case <-a.c.Wake:
		case <-again:
		case <-resync.C:
			a.tidy.Store(true)
		}
		if timer != nil {
			timer.Stop()
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// restore loads what the last process left.
func (a *Agent) restore(file *wantedFile) (map[spec.TaskID]memory, error) {
	w, err := file.load()
	if err != nil {
		// The managers will tell it again; until then everything stays as it is.
		a.log.Error("go on without wanted state", "err", err)
	}
	a.mu.Lock()
	stored := w != nil && (a.wanted == nil || a.wanted.Clock.Before(w.Clock))
	if stored { // what was told before Run, if anything, came from a manager that is behind
		a.wanted, a.heard = w, false
	}
	a.mu.Unlock()
	if stored {
		a.order.begin(time.Now().Add(a.c.Settle))
	}
	list, broken, err := loadMemories(a.c.DataDir)
	if err != nil {
		return nil, err
	}
	for _, name := range broken {
		if filepath.Ext(name) != ".tmp" {
			a.log.Warn("memory of a task cannot be read, removed", "file", name)
		}
		if err := os.Remove(filepath.Join(a.c.DataDir, "tasks", name)); err != nil {
			return nil, fmt.Errorf("remove unreadable memory: %w", err)
		}
	}
	memories := map[spec.TaskID]memory{}
	var exclusive []spec.TaskID
	stuck := map[spec.TaskID]bool{}
	for _, m := range list {
		memories[m.Task] = m
		if m.Exclusive && !m.Status.State.Terminal() {
			exclusive = append(exclusive, m.Task)
			stuck[m.Task] = m.graceOver(m.StopSent, time.Now())
		}
		if m.Sink != nil && !m.Status.State.Terminal() {
			if _, err := os.Stat(m.Sink.Stdout); err == nil {
				a.sinks.want(*m.Sink)
			}
		}
	}
	a.mu.Lock()
	a.stuck = stuck
	a.mu.Unlock()
	a.leases.restore(exclusive)
	a.tidy.Store(true)
	return memories, nil
}

// refreshSinks tells the keeper its list at the start and from time to time:
// it may have been replaced.
func (a *Agent) refreshSinks(ctx context.Context) {
	for {
		if err := a.sinks.again(ctx); err != nil && ctx.Err() == nil {
			a.log.Warn("log keeper does not answer, trying again", "err", err)
			if !sleep(ctx, lookRetry) {
				return
			}
			continue
		}
		if !sleep(ctx, a.c.Resync) {
			return
		}
	}
}

// pass is the memory of the main loop.
type pass struct {
	a    *Agent
	file *wantedFile
	// memories not yet given to a worker. // :: task → memory
	memories    map[spec.TaskID]memory
	given       *spec.Wanted // last one given to the workers
	incarnation uint64       // of given
	failing     bool         // the last look failed
	fetches     fetches
}

// run brings the workers up to date once: first with what is wanted, then with
// what the runtime says. It returns when it should run again at the latest, 0
// for no such time.
func (p *pass) run(ctx context.Context) time.Duration {
	a := p.a
	w, heard := a.current()
	if w == nil {
		return 0 // what runs goes on until somebody says what is wanted
	}
	var again time.Duration
	before := p.file.err
	if err := p.file.save(w); err != nil {
		a.log.Error("wanted state not stored, trying again", "err", err)
		again = lookRetry
	}
	if w != p.given || before != p.file.err {
		a.effect("wanted")
		p.dispatch(ctx, w)
	}
	// Only now: all have their new orders.
	if heard && a.order.heard() {
		a.wakeAll()
	}
	begin := a.ticket.Add(1)
	lctx, cancel := context.WithTimeout(ctx, lookTimeout)
	states, err := a.c.Runtime.List(lctx)
	cancel()
	if err != nil {
		if !p.failing && ctx.Err() == nil {
			a.log.Warn("runtime does not answer, trying again", "err", err)
		}
		p.failing = true
		return lookRetry
	}
	p.failing = false
	seen := make(map[spec.TaskID]ContainerState, len(states))
	for _, s := range states {
		seen[s.Task] = s
	}
	for id, wk := range a.snapshotWorkers() {
		s, ok := seen[id]
		if !ok {
			s = ContainerState{Task: id}
		}
		wk.see(begin, s)
	}
	if a.tidy.Swap(false) {
		a.sweep(ctx, w, seen)
	}
	return again
}

// dispatch gives every task of w to its worker, and tells the others that
// they are no longer wanted.
func (p *pass) dispatch(ctx context.Context, w *spec.Wanted) {
	a := p.a
	p.orderStops(w)
	p.fetches.set(ctx, w)
	wanted := map[spec.TaskID]bool{}
	heads := p.a.heads(w)
	for i := range w.Tasks {
		t := &w.Tasks[i]
		tmpl, ok := w.Revisions[t.Revision]
		if !ok || !safeName(string(t.ID)) {
			a.log.Error("wanted task cannot be understood, ignored", "task", t.ID, "revision", t.Revision)
			continue
		}
		tmpl = tmpl.Filled(a.placeholders(t))
		wanted[t.ID] = true
		svc := w.Services[spec.ServiceKey(t.Stack, t.Service)]
		wk := a.worker(t.ID)
		if wk == nil {
			m, remembered := p.memories[t.ID]
			delete(p.memories, t.ID)
			if !remembered {
				m = memory{Task: t.ID, Status: t.Status, Joins: t.Joins}
			}
			wk = a.addWorker(m, !remembered)
			wk.update(t, &tmpl, w.Volumes, svc, p.file.err, heads[t.Joins])
			a.background.Go(func() { wk.loop(ctx) })
			continue
		}
		wk.update(t, &tmpl, w.Volumes, svc, p.file.err, heads[t.Joins])
	}
	for id, m := range p.memories {
		delete(p.memories, id)
		wk := a.addWorker(m, false)
		wk.update(nil, nil, nil, spec.WantedService{}, nil, nil)
		a.background.Go(func() { wk.loop(ctx) })
	}
	forgot := p.given != nil && w.Incarnation > p.incarnation // a state restored from a copy knows less than it did
	if forgot {
		a.report.publishAgain()
	}
	for id, wk := range a.snapshotWorkers() {
		if !wanted[id] {
			wk.update(nil, nil, nil, spec.WantedService{}, nil, nil)
		}
		if forgot {
			wk.tellAgain()
		}
	}
	p.given, p.incarnation = w, w.Incarnation
}

// safeName reports whether an ID may be the name of a file.
func safeName(id string) bool {
	return id != "" && filepath.Base(id) == id && id != "." && id != ".."
}

func (a *Agent) worker(id spec.TaskID) *worker {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.workers[id]
}

func (a *Agent) addWorker(m memory, fresh bool) *worker {
	wk := newWorker(a, m, fresh)
	a.mu.Lock()
	a.workers[m.Task] = wk
	if m.Joins != "" {
		a.joined[m.Joins] = append(a.joined[m.Joins], wk)
	}
	a.mu.Unlock()
	return wk
}

func (a *Agent) removeWorker(id spec.TaskID) {
	a.mu.Lock()
	wk := a.workers[id]
	delete(a.workers, id)
	for head, list := range a.joined {
		if a.joined[head] = slices.DeleteFunc(list, func(w *worker) bool { return w == wk }); len(a.joined[head]) == 0 {
			delete(a.joined, head)
		}
	}
	a.mu.Unlock()
	a.stopTold(id)
	a.tidy.Store(true)
	poke(a.look)
}

func (a *Agent) snapshotWorkers() map[spec.TaskID]*worker {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make(map[spec.TaskID]*worker, len(a.workers))
	for id, w := range a.workers {
		out[id] = w
	}
	return out
}

// volumeUsed reports whether a task that is not over uses volume id; except
// is not asked.
func (a *Agent) volumeUsed(id spec.VolumeID, except spec.TaskID) bool {
	for t, w := range a.snapshotWorkers() {
		if t != except && slices.Contains(w.usedVolumes(), id) {
			return true
		}
	}
	return false
}

// LogOpen reports whether output of the task may still come; for the Done of
// LogOptions.
func (a *Agent) LogOpen(t spec.TaskID) bool {
	if a.sinks.has(t) {
		return true
	}
	w := a.worker(t)
	return w != nil && !w.over()
}
