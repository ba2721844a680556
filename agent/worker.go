package agent

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"time"

	"wherry.dev/spec"
)

// worker brings one task from what is to what is wanted. Its goroutine alone
// acts and changes its memory; the main loop and probes only leave news.
type worker struct {
	a    *Agent
	id   spec.TaskID
	wake chan struct{} // capacity one

	mu sync.Mutex
	// News, written by others.
	said      orders // newest
	seenAt    uint64 // ticket of seen
	after     uint64 // ticket of the last action that changed the container
	seen      ContainerState
	awaiting  bool // the next observation is news whatever it says
	probe     *probeNews
	hooked    *hookNews
	interrupt context.CancelFunc // ends a preparatory action that is not wanted any more
	told      bool               // false: report the status whether or not it changed
	stopSaid  time.Time          // since when the orders say stop; zero when they do not
	// mem is written by the goroutine, under mu, since others read it.
	mem memory
	// space is where the task's network is, once it has one.
	space *string

	// The rest is the goroutine's own.
	orders                   // as of the last observation
	run       ContainerState // its view of the container, known to be true or not
	known     bool
	fresh     bool
	image     bool
	images    []ImageConfig // of the containers before the start, when image is true
	prep      *prepared
	net       bool
	netns     string
	logs      bool
	detach    bool
	signalled bool
	cancel    context.CancelFunc // of the probe under way
	hook      context.CancelFunc // of the hook under way
	drain     *drain             // since the task is to stop, until it is told to
	fails     map[action]int
	retry     map[action]time.Time
	last      spec.TaskStatus // as reported
	dirty     bool            // mem is newer than its file
}

// orders are what the managers say about a task.
type orders struct {
	wanted bool
	// task and tmpl are the newest ones; nil when the task never was wanted in
	// the life of this process.
	task *spec.Task
	tmpl *spec.Template
	vols []spec.Volume
	svc  spec.WantedService
	// unstored says why the document that wants the task is not on disk.
	unstored error
	// head is the task that this one joins, if it is wanted.
	head *head
}

// halting reports whether the orders are anything but to run.
func (o orders) halting() bool { return !o.wanted || o.task.Desired != spec.DesiredRunning }

// stopping reports whether the orders are to end at once.
func (o orders) stopping() bool {
	return !o.wanted || o.task.Desired == spec.DesiredStopped || o.task.Desired == spec.DesiredRemoved
}

// probeNews is the result of a probe of one attempt.
type probeNews struct {
	attempt int
	probeResult
}

func newWorker(a *Agent, m memory, fresh bool) *worker {
	return &worker{
		a: a, id: m.Task, wake: make(chan struct{}, 1), mem: m, fresh: fresh,
		fails: map[action]int{}, retry: map[action]time.Time{},
	}
}

// update leaves the newest word of the managers; t is nil when they do not
// want the task any more.
func (w *worker) update(t *spec.Task, tmpl *spec.Template, vols []spec.Volume, svc spec.WantedService, unstored error, h *head) {
	w.mu.Lock()
	if w.said.wanted = t != nil; t != nil {
		w.said = orders{true, t, tmpl, vols, svc, unstored, h}
	}
	switch {
	case !w.said.stopping():
		w.stopSaid = time.Time{}
	case w.stopSaid.IsZero():
		w.stopSaid = time.Now()
	}
	if w.interrupt != nil && w.said.halting() {
		w.interrupt()
	}
	w.mu.Unlock()
	poke(w.wake)
}

// see leaves an observation that began at ticket begin.
func (w *worker) see(begin uint64, s ContainerState) {
	w.mu.Lock()
	stale := begin <= w.after
	news := !stale && (w.awaiting || !sameRun(w.seen, s))
	if stale {
		w.awaiting = true
	} else {
		w.seenAt, w.seen = begin, s
	}
	w.mu.Unlock()
	if stale { // what it tells in vain must be asked again
		poke(w.a.look)
	}
	if news {
		poke(w.wake)
	}
}

func sameRun(a, b ContainerState) bool {
	return a.State == b.State && a.Stage == b.Stage && a.PID == b.PID && a.ExitCode == b.ExitCode && a.Ended.Equal(b.Ended) && a.OOM == b.OOM
}

// tellAgain reports the status whether or not it has changed.
func (w *worker) tellAgain() {
	w.mu.Lock()
	w.told = false
	w.mu.Unlock()
	poke(w.wake)
}

// memory returns the task's memory, which must not be changed.
func (w *worker) memory() memory {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mem
}

func (w *worker) over() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mem.Status.State.Terminal()
}

// overdue reports whether the task should have ended by now: it is not wanted
// any more, or was to stop more than a drain and its grace ago, whatever became of that. A
// worker that has no orders yet knows only of a stop that was sent.
func (w *worker) overdue(now time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.said.wanted && !w.stopSaid.IsZero() || w.mem.graceOver(w.stopSaid, now.Add(-drainTime)) || w.mem.graceOver(w.mem.StopSent, now)
}

// overdue reports whether a task should have ended by now.
func (a *Agent) overdue(t spec.TaskID) bool {
	if w := a.worker(t); w != nil {
		return w.overdue(time.Now())
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stuck[t] // nobody has looked at it yet
}

// usedVolumes are those that must not be removed for the task's sake.
func (w *worker) usedVolumes() []spec.VolumeID {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.mem.Status.State.Terminal() {
		return nil
	}
	out := slices.Clone(w.mem.Volumes)
	if w.said.task != nil {
		for _, b := range w.said.task.Volumes {
			out = append(out, b.ID)
		}
	}
	return out
}

func (w *worker) usedContents() []spec.ContentID {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.mem.Status.State.Terminal() {
		return nil
	}
	return slices.Clone(w.mem.Contents)
}

// loop observes, decides, acts and waits until ctx ends or the task is forgotten.
func (w *worker) loop(ctx context.Context) {
	defer w.stopProbe()
	defer w.stopHook()
	defer w.stopDrain()
	for ctx.Err() == nil {
		in := w.observe()
		d := step(in, time.Now())
		// A drain and hooks take their time; what is to start here does not wait for them.
		if in.known && d.act != actAdopt && d.act != actSignal {
			w.a.stopTold(w.id)
		}
		switch d.act {
		case actWait:
			w.wait(ctx, in.known, d.until)
		case actForget:
			if w.forget() {
				return
			}
		default:
			err := w.do(ctx, d.act, in)
			if ctx.Err() != nil {
				return
			}
			w.fresh = false
			w.settle(d.act, err)
			w.wakeBeside()
		}
	}
}

// observe gathers the news and forms the input of a step.
func (w *worker) observe() input {
	w.mu.Lock()
	w.orders = w.said
	switch {
	case w.seenAt > w.after:
		w.run, w.known, w.awaiting = w.seen, true, false
	case !w.known:
		w.awaiting = true
	}
	news, hooked := w.probe, w.hooked
	w.probe, w.hooked = nil, nil
	w.mu.Unlock()
	if news != nil {
		w.takeProbe(news)
	}
	if hooked != nil {
		w.takeHook(hooked)
	}
	w.takeDrain()
	if w.dirty {
		w.commit(w.mem)
	} else {
		w.publish()
	}
	beside := w.beside()
	w.mu.Lock()
	defer w.mu.Unlock()
	in := input{
		joins: beside.joins, headReady: beside.ready, headGone: beside.gone, shared: beside.shared,
		wanted: w.wanted, mem: w.mem, run: w.run, known: w.known, fresh: w.fresh,
		image: w.image, mounts: w.prep != nil, network: w.net, logs: w.logs, detached: w.detach,
		probing: w.cancel != nil, hooking: w.hook != nil, signalled: w.signalled, retry: w.retry,
	}
	in.stale, in.filesFrom, in.filesLater = w.stale()
	if w.a.c.Refused() {
		w.a.order.refused(time.Now(), w.a.c.Settle)
	}
	in.hold = w.a.order.hold()
	if in.exclusive = w.mem.Exclusive || w.tmpl != nil && w.tmpl.Exclusive; in.exclusive {
		if left, known := w.a.leases.left(w.id); known {
			in.leaseEnd = time.Now().Add(left)
		}
		if in.leased = w.a.leases.ready(w.id); in.leased {
			delete(w.retry, actLease)
		}
	}
	if w.drain != nil {
		left, _ := w.drain.state()
		in.drainEnd, in.drained = w.drain.end, left == 0
	}
	if w.task != nil {
		w.noteStage()
		in.inits, in.mem.Inits = len(w.tmpl.PreStart), w.mem.Inits
		in.serves = w.a.c.Senders != nil && len(w.served()) > 0
		in.desired = w.task.Desired
		in.postStart = hooksLeft(w.tmpl, w.mem.Attempt)
		in.check = resolveCheck(w.tmpl.Health, imageHealth(w.mem.Image))
		if in.mem.Stop.Signal == 0 {
			in.mem.Stop = stopRuleOf(w.tmpl, w.mem.Image)
			w.mem.Stop = in.mem.Stop
		}
	}
	return in
}

func imageHealth(i *ImageConfig) *spec.HealthCheck {
	if i == nil {
		return nil
	}
	return i.Health
}

// defaultGrace is how long a process may take to end when nothing else is said.
const defaultGrace = 10 * time.Second

func stopRuleOf(tmpl *spec.Template, image *ImageConfig) stopRule {
	if image == nil {
		image = &ImageConfig{}
	}
	r := stopRule{Signal: stopSignal(tmpl, image), Grace: tmpl.StopGrace, Hooks: tmpl.PreStop}
	if r.Grace <= 0 {
		r.Grace = spec.Duration(defaultGrace)
	}
	return r
}

// wait returns on news, at the deadline, or when ctx ends.
func (w *worker) wait(ctx context.Context, known bool, until time.Time) {
	if !known {
		poke(w.a.look)
	}
	var at <-chan time.Time
	if !until.IsZero() {
		t := time.NewTimer(time.Until(until))
		defer t.Stop()
		at = t.C
	}
	var retry <-chan time.Time
	if w.dirty {
		t := time.NewTimer(lookRetry)
		defer t.Stop()
		retry = t.C
	}
	select {
	case <-ctx.Done():
	case <-w.wake:
	case <-at:
	case <-retry:
	}
}

// store makes m the memory, on disk first; on error nothing has changed.
func (w *worker) store(m memory) error {
	if err := saveMemory(w.a.c.DataDir, m); err != nil {
		return err
	}
	w.mu.Lock()
	w.mem = m
	w.mu.Unlock()
	w.dirty = false
	w.a.effect("memory")
	w.publish()
	return nil
}

// commit makes m the memory and reports it. When the disk does not take it,
// it is written later: what has happened has happened.
func (w *worker) commit(m memory) {
	if !w.dirty && reflect.DeepEqual(m, w.mem) {
		w.publish()
		return
	}
	if err := w.store(m); err == nil {
		return
	} else if !w.dirty {
		w.a.log.Error("memory of a task not stored, trying again", "task", w.id, "err", err)
	}
	w.mu.Lock()
	w.mem = m
	w.mu.Unlock()
	w.dirty = true
	w.publish()
}

// publish reports the status when it has changed since it was last reported.
func (w *worker) publish() {
	w.mu.Lock()
	s := w.mem.Status
	told := w.told
	w.told = true
	w.mu.Unlock()
	if s.State == spec.TaskPending || s.State == "" || told && reflect.DeepEqual(s, w.last) {
		return
	}
	w.last = s
	w.a.report.task(w.id, s)
}

// errInterrupted: a preparatory action was given up because the task is not
// wanted any more.
var errInterrupted = errors.New("interrupted")

// preparing returns a context that also ends when the task is not wanted any
// more. done must be called with the action's error and returns what to make
// of it.
func (w *worker) preparing(ctx context.Context) (pctx context.Context, done func(error) error) {
	pctx, cancel := context.WithCancel(ctx)
	w.mu.Lock()
	w.interrupt = cancel
	late := w.said.halting()
	w.mu.Unlock()
	if late {
		cancel()
	}
	return pctx, func(err error) error {
		w.mu.Lock()
		w.interrupt = nil
		w.mu.Unlock()
		cancelled := pctx.Err() != nil
		cancel()
		if err != nil && cancelled && ctx.Err() == nil {
			return errInterrupted
		}
		return err
	}
}

// The waits before an action that failed is tried again.
const (
	retryBase      = time.Second
	retryLimit     = time.Minute
	retrySoon      = 100 * time.Millisecond // when something else is not ready yet
	retrySoonLimit = 5 * time.Second
)

// settle takes note of how an action ended.
func (w *worker) settle(a action, err error) {
	switch {
	case err == nil:
		delete(w.fails, a)
		delete(w.retry, a)
		return
	case errors.Is(err, errInterrupted):
		return
	case errors.Is(err, errNoLease): // the reason is told, and does not change
		w.retry[a] = time.Now().Add(leaseRetry)
		return
	}
	base, limit := retryBase, retryLimit
	if errors.Is(err, spec.ErrUnavailable) {
		base, limit = retrySoon, retrySoonLimit
	}
	d := spread(w.id, min(base<<min(w.fails[a], 10), limit))
	if w.fails[a]++; w.fails[a] == 1 {
		w.a.log.Warn("task cannot go on, trying again", "task", w.id, "step", string(a), "err", err)
	}
	w.retry[a] = time.Now().Add(d)
	m := w.mem
	m.Status.Reason = fmt.Sprintf("%v; next try in %s", err, shortDuration(d))
	w.commit(m)
}
