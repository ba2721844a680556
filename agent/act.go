package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"wherry.dev/spec"
)

// How long one call may take before it is given up and tried again. Pulling
// has no limit: whoever pulls sees to its progress.
const (
	createTimeout = 2 * time.Minute
	callTimeout   = 30 * time.Second
)

// do carries out one action. What the action finds out is in the memory when
// it returns; an error means that it is to be tried again later. When ctx has
// ended nothing may be concluded from an error.
func (w *worker) do(ctx context.Context, a action, in input) error {
	switch a {
	case actImage:
		return w.ensureImage(ctx)
	case actMounts:
		return w.prepare(ctx)
	case actAttach:
		if in.run.State == RunRunning {
			return w.attachAgain(ctx)
		}
		return w.attach(ctx)
	case actCreate:
		return w.create(ctx, in.stage())
	case actLogs:
		return w.drainLogs(ctx)
	case actLease:
		return w.lease(ctx)
	case actStart:
		return w.start(ctx)
	case actAdopt:
		return w.adopt(in)
	case actEnded:
		return w.ended(ctx, in)
	case actHook, actBefore:
		return w.startHook(ctx, a)
	case actFiles:
		return w.exchange(ctx, in)
	case actProbe:
		w.startProbe(ctx, in)
		return nil
	case actDrain:
		w.startDrain(ctx)
		return nil
	case actSignal:
		return w.signal(ctx)
	case actKill:
		return w.kill(ctx)
	case actRemove:
		return w.remove(ctx)
	case actDetach:
		return w.detachNetwork(ctx)
	case actFinish:
		return w.finish(ctx, in)
	}
	panic("agent: unknown action " + string(a))
}

// begin notes that a step towards the first process begins.
func (w *worker) begin(s spec.TaskState, reason string) {
	m := w.mem
	if m.Status.State == "" || m.Status.State.Before(s) {
		m.setState(s, time.Now())
	}
	m.Status.Reason, m.Status.NextStart = reason, time.Time{}
	w.commit(m)
}

// reject ends the task because this node cannot run it.
func (w *worker) reject(err error) error {
	m := w.mem
	m.end(spec.TaskRejected, err.Error())
	w.commit(m)
	return nil
}

func (w *worker) ensureImage(ctx context.Context) error {
	w.begin(spec.TaskPreparing, "pulling "+w.tmpl.Image)
	pctx, done := w.preparing(ctx)
	image, err := w.a.c.Images.Ensure(pctx, ImageRequest{Image: w.tmpl.Image, Digest: w.tmpl.Digest, Platform: w.tmpl.Platform})
	w.images = nil
	for i := 0; err == nil && i < len(w.tmpl.PreStart); i++ {
		h := &w.tmpl.PreStart[i]
		w.begin(spec.TaskPreparing, "pulling "+h.Image)
		var c ImageConfig
		c, err = w.a.c.Images.Ensure(pctx, ImageRequest{Image: h.Image, Digest: h.Digest, Platform: w.tmpl.Platform})
		w.images = append(w.images, c)
	}
	switch err = done(err); {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, spec.ErrNotFound), errors.Is(err, spec.ErrInvalid):
		return w.reject(err)
	case err != nil:
		return err
	}
	w.image = true
	m := w.mem
	m.Image = &image
	m.Stop = stopRuleOf(w.tmpl, &image)
	w.commit(m)
	return nil
}

func preparingReason(t *spec.Template) string {
	for _, m := range t.Mounts {
		if m.Type == spec.MountImage {
			return "preparing volumes and files, pulling " + m.Source
		}
	}
	return "preparing volumes and files"
}

func (w *worker) prepare(ctx context.Context) error {
	w.begin(spec.TaskPreparing, preparingReason(w.tmpl))
	m := w.mem
	m.Contents, m.Volumes = dataContents(w.tmpl, w.wantedLive(), m.Files), nil
	for _, b := range w.task.Volumes {
		m.Volumes = append(m.Volumes, b.ID)
	}
	if err := w.store(m); err != nil { // before anything that it protects
		return err
	}
	pctx, done := w.preparing(ctx)
	p, err := w.a.prepare(pctx, w.orders, m.Image, m.Files)
	switch err = done(err); {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, spec.ErrInvalid):
		return w.reject(err)
	case err != nil:
		return err
	}
	w.prep = p
	m.Sink = p.sink
	w.commit(m)
	return nil
}

// attach makes the network side of a container that is about to be created or
// started.
func (w *worker) attach(ctx context.Context) error {
	w.begin(spec.TaskPreparing, "connecting to networks")
	pctx, done := w.preparing(ctx)
	err := w.attachCall(pctx)
	switch err = done(err); {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, spec.ErrConflict), errors.Is(err, spec.ErrInvalid):
		return w.reject(err)
	}
	return err
}

// attachAgain makes sure of the network of a process that runs already. A
// failure is told and tried again; it never ends the process.
func (w *worker) attachAgain(ctx context.Context) error {
	err := w.attachCall(ctx)
	if err == nil && w.fails[actAttach] > 0 {
		m := w.mem
		m.Status.Reason = ""
		w.commit(m)
	}
	return err
}

func (w *worker) attachCall(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var netns string
	var err error
	if w.mem.Joins != "" {
		netns, err = w.join()
	} else {
		netns, err = w.a.c.Network.Attach(ctx, w.a.sandbox(w.task, w.tmpl))
	}
	if err == nil {
		w.net, w.netns = true, netns
		w.setSpace(&netns)
	}
	return err
}

// call runs one call that changes the container. Observations that began
// before its end may show what was before, so they do not count; when there
// was one, another is asked for. After an error it is not known what is.
func (w *worker) call(ctx context.Context, limit time.Duration, do func(ctx context.Context) error) error {
	begin := w.a.ticket.Load()
	cctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	err := do(cctx)
	if err != nil {
		w.known = false
	}
	w.mu.Lock()
	w.after = w.a.ticket.Add(1)
	missed := w.seenAt > begin
	w.awaiting = w.awaiting || missed
	w.mu.Unlock()
	if missed {
		poke(w.a.look)
	}
	return err
}

// startCall is call with a limit on how many run at once.
func (w *worker) startCall(ctx context.Context, do func(ctx context.Context) error) error {
	select {
	case w.a.starts <- struct{}{}:
		defer func() { <-w.a.starts }()
	case <-ctx.Done():
		return ctx.Err()
	}
	return w.call(ctx, createTimeout, do)
}

func (w *worker) create(ctx context.Context, stage int) error {
	w.begin(spec.TaskStarting, "creating the container")
	if w.unstored != nil {
		return w.unstored
	}
	c := Container{
		Task: w.id, Name: spec.TaskName(w.task, w.a.c.NodeName), Stack: w.task.Stack, Service: w.task.Service,
		Hostname: w.prep.hostname, Template: *w.tmpl, Image: *w.mem.Image, NetNS: w.netns, Mounts: w.prep.mounts,
		Stdout: w.prep.stdout, Stderr: w.prep.stderr, EnvFile: w.prep.env,
	}
	if c.Stage, c.Template = stage, w.tmpl.Stage(stage); stage > 0 {
		c.Image, c.Fill = w.images[stage-1], w.mem.Image.Ref
	}
	err := w.startCall(ctx, func(ctx context.Context) error { return w.a.c.Runtime.Create(ctx, c) })
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, spec.ErrNotFound):
		w.image = false // somebody has removed it meanwhile
		return err
	case errors.Is(err, spec.ErrInvalid):
		return w.reject(err)
	case err != nil:
		return err
	}
	w.run = ContainerState{Task: w.id, State: RunCreated, Stage: stage}
	return nil
}

func (w *worker) drainLogs(ctx context.Context) error {
	if w.prep.sink != nil {
		ctx, cancel := context.WithTimeout(ctx, callTimeout)
		defer cancel()
		if err := w.a.sinks.add(ctx, *w.prep.sink); err != nil {
			return err
		}
	}
	w.logs = true
	return nil
}

// errNoLease: the task may not run now.
var errNoLease = spec.Unavailablef("no lease")

// errRefused: nothing may be started now.
var errRefused = spec.Unavailablef("another host uses the identity of this node")

// lease gets the task to where it may be started.
func (w *worker) lease(ctx context.Context) error {
	m := w.mem
	if !m.Exclusive { // whoever finds the container has to know
		m.Exclusive = true
		if err := w.store(m); err != nil {
			return err
		}
	}
	cctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err := w.a.leases.hold(cctx, w.id)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		m.Status.Reason = err.Error()
		w.commit(m)
		return errNoLease
	}
	return nil
}

// start begins an attempt. The intent is on disk before, so that an end that
// is seen by the next process is known for what it is.
func (w *worker) start(ctx context.Context) error {
	m := w.mem
	a := attempt{Started: time.Now()}
	if m.Attempt != nil {
		a.Number = m.Attempt.Number
	} else {
		m.Status.Started++
		a.Number = m.Status.Started
	}
	m.Attempt, m.StopSent, m.KillSent, m.PreStopped, m.Health = &a, time.Time{}, time.Time{}, 0, health{}
	m.Files = w.prep.live
	if m.Status.State.Before(spec.TaskStarting) {
		m.setState(spec.TaskStarting, time.Now())
	}
	m.Status.NextStart, m.Status.Reason = time.Time{}, "starting"
	if a.Number > 1 {
		m.Status.Reason = fmt.Sprintf("starting attempt %d", a.Number)
	}
	if err := w.store(m); err != nil {
		return err
	}
	var pid int
	err := w.startCall(ctx, func(ctx context.Context) (err error) {
		switch { // it may have been waited long for a turn
		case w.a.c.Refused():
			return errRefused
		case w.tmpl.Exclusive && !w.a.leases.ready(w.id):
			return errNoLease
		}
		pid, err = w.a.c.Runtime.Start(ctx, w.id)
		return err
	})
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil:
		w.run = ContainerState{Task: w.id, State: RunRunning, Stage: w.run.Stage, PID: pid}
		w.commit(w.started(m, pid))
		return nil
	case transient(err):
		return err
	}
	e := ending{code: -1, at: time.Now(), err: err.Error()}
	if errors.Is(err, spec.ErrInvalid) {
		e.code = 127
		if strings.Contains(err.Error(), "permission denied") {
			e.code = 126
		}
	}
	if w.run.Stage > 0 {
		e.err = w.initText("failed") + ": " + e.err
	}
	w.commit(endAttempt(m, e, false, w.tmpl.Restart, time.Now()))
	return nil
}

// transient reports whether an error of Start says nothing about the task:
// the runtime cannot be reached, or the host is out of room.
func transient(err error) bool {
	return errors.Is(err, spec.ErrUnavailable) || errors.Is(err, spec.ErrNotFound) ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) ||
		errors.Is(err, syscall.ENOSPC) || strings.Contains(err.Error(), "no space left on device")
}

// started returns m with its attempt running as pid.
func (w *worker) started(m memory, pid int) memory {
	a := *m.Attempt
	a.PID = pid
	m.setHealth(spec.HealthStarting, a.Started)
	if w.run.Stage > 0 { // it is not the task yet that runs
		m.Attempt, m.Status.PID, m.Status.NextStart, m.Status.Reason = &a, pid, time.Time{}, w.initText("runs")
		return m
	}
	if resolveCheck(w.tmpl.Health, imageHealth(m.Image)) == nil && !hooksLeft(w.tmpl, &a) {
		m.setHealth(spec.HealthNone, a.Started)
		a.GoodSince = a.Started
	}
	m.Attempt = &a
	m.Status.Files = m.Files
	m.Status.PID, m.Status.Reason, m.Status.NextStart = pid, "", time.Time{}
	m.setState(spec.TaskRunning, time.Now())
	return m
}

// adopt takes note of a process that was started by a process before this one.
func (w *worker) adopt(in input) error {
	m := w.mem
	if m.Attempt == nil {
		if m.Status.Started == 0 || m.Status.PID != in.run.PID {
			m.Status.Started++
		}
		m.Attempt = &attempt{Number: m.Status.Started, Started: time.Now()}
	}
	w.a.log.Info("found a running container", "task", w.id, "pid", in.run.PID)
	if w.tmpl != nil && w.tmpl.Exclusive {
		m.Exclusive = true
		w.a.leases.want(w.id)
	}
	if !w.wanted || w.tmpl == nil { // it is about to be stopped
		a := *m.Attempt
		a.PID = in.run.PID
		m.Attempt, m.Status.PID = &a, a.PID
		w.commit(m)
		return nil
	}
	if m.Sink == nil && !w.tmpl.Log.Disabled {
		p := &prepared{}
		if err := os.MkdirAll(w.a.taskDir(w.id), 0o700); err != nil {
			return fmt.Errorf("make folder of task: %w", err)
		}
		if err := w.a.prepareLog(w.id, w.tmpl, p); err != nil {
			return err
		}
		m.Sink = p.sink
	}
	if m.Sink != nil {
		w.a.sinks.want(*m.Sink)
	}
	w.commit(w.started(m, in.run.PID))
	return nil
}

// ended takes note of the end of a process and lets the policy decide.
func (w *worker) ended(ctx context.Context, in input) error {
	w.stopProbe()
	w.stopHook()
	w.stopDrain()
	w.signalled = false
	e := ending{code: in.run.ExitCode, at: in.run.Ended, oom: in.run.OOM}
	if in.run.State != RunStopped || e.code < 0 {
		e = ending{code: -1, at: e.at, err: "the end of the process was not seen: its host or what watches it went away"}
	}
	if e.at.IsZero() {
		e.at = time.Now()
	}
	if w.mem.Exclusive && e.code == 128+sigKill && !e.oom && w.mem.StopSent.IsZero() && w.a.leases.over(w.id, e.at) {
		e.unleased, e.err = true, "its lease was over: no manager answered in time"
	}
	if in.run.Stage > 0 {
		if !e.failed() && !in.stopping() && in.desired != spec.DesiredDraining {
			return w.initDone(in)
		}
		if e.failed() {
			e.err = w.initText("failed") + ": " + e.describe()
		}
	}
	if e.failed() {
		e.log = lastLog(ctx, w.mem.Sink, LogDir(w.a.c.DataDir, w.id))
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	var policy spec.Restart
	halted := in.stopping() || in.desired == spec.DesiredDraining
	if w.tmpl != nil {
		policy = w.tmpl.Restart
	}
	m := w.mem
	if in.run.State == RunStopped {
		m.LastEnded = in.run.Ended
		if in.run.Stage == 0 && m.Status.State.Before(spec.TaskRunning) { // it has run, whoever remembers
			m.setState(spec.TaskRunning, time.Now())
		}
	}
	if in.run.Stage > 0 && halted { // what comes before a task does not complete it
		m.end(spec.TaskStopped, "")
	}
	m = endAttempt(m, e, halted, policy, time.Now())
	w.a.log.Info("attempt ended", "task", w.id, "code", e.code, "reason", m.Status.Reason)
	w.commit(m)
	return nil
}

func (w *worker) signal(ctx context.Context) error {
	w.beginStop("stopping")
	if err := w.sendSignal(ctx, w.mem.Stop.Signal, false); err != nil {
		return err
	}
	w.signalled = true
	return nil
}

// beginStop ends what is under way in the container and notes since when the
// grace runs.
func (w *worker) beginStop(reason string) {
	w.stopProbe()
	w.stopHook()
	w.stopDrain()
	m := w.mem
	if m.StopSent.IsZero() {
		m.StopSent = time.Now()
	}
	if m.Attempt == nil || m.Attempt.Unhealthy == "" {
		m.Status.Reason = reason
	}
	w.commit(m)
}

func (w *worker) kill(ctx context.Context) error {
	m := w.mem
	m.KillSent = time.Now()
	w.commit(m)
	return w.sendSignal(ctx, sigKill, true)
}

// sendSignal needs no call: what it does, if anything, is seen later.
func (w *worker) sendSignal(ctx context.Context, signal int, all bool) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return w.a.c.Runtime.Kill(ctx, w.id, signal, all)
}

func (w *worker) remove(ctx context.Context) error {
	if err := w.call(ctx, createTimeout, func(ctx context.Context) error { return w.a.c.Runtime.Remove(ctx, w.id) }); err != nil {
		return err
	}
	w.run = ContainerState{Task: w.id}
	return nil
}

func (w *worker) detachNetwork(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	w.setSpace(nil)
	if w.mem.Joins == "" {
		if err := w.a.c.Network.Detach(ctx, w.id); err != nil {
			return err
		}
	}
	w.detach, w.net = true, false
	return nil
}

// finish removes the task's files and gives it its terminal state: from now on
// nothing on this node belongs to it but its log.
func (w *worker) finish(ctx context.Context, in input) error {
	cctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	if err := w.a.sinks.drop(cctx, w.id); err != nil {
		w.a.log.Warn("log keeper not told of the end of a task", "task", w.id, "err", err)
	}
	if err := w.a.leases.drop(cctx, w.id); err != nil {
		w.a.log.Warn("keeper not told of the end of an exclusive task", "task", w.id, "err", err)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := errors.Join(os.RemoveAll(w.a.taskDir(w.id)), w.a.data.close(w.id), removeTree(w.a.anonDir(w.id))); err != nil {
		return fmt.Errorf("remove files of task: %w", err)
	}
	w.a.effect("files removed")
	for _, v := range w.mem.Volumes {
		if w.a.volumeUsed(v, w.id) {
			continue
		}
		if err := w.a.vols.release(cctx, v); err != nil {
			w.a.log.Warn("volume stays mounted", "task", w.id, "err", err)
		}
	}
	m := w.mem
	m.end(spec.TaskStopped, "")
	if in.headGone && m.Outcome == spec.TaskStopped && m.OutcomeReason == "" {
		m.OutcomeReason = "task " + string(m.Joins) + ", whose network it shares, ends"
	}
	m.Attempt, m.Sink, m.Volumes, m.Contents, m.Files, m.Status.Files = nil, nil, nil, nil, nil, nil
	m.setHealth("", time.Time{})
	m.Status.PID, m.Status.NextStart = 0, time.Time{}
	m.Status.Reason = m.OutcomeReason
	m.setState(m.Outcome, time.Now())
	w.a.log.Info("task is over", "task", w.id, "state", string(m.Outcome), "reason", m.OutcomeReason)
	w.commit(m)
	w.a.tidy.Store(true)
	poke(w.a.look)
	return nil
}

// forget removes the memory of a task that nobody asks for any more; its log
// goes with the next sweep, unless it is to be kept.
func (w *worker) forget() bool {
	if err := os.Remove(memoryPath(w.a.c.DataDir, w.id)); err != nil && !os.IsNotExist(err) {
		w.settle(actForget, fmt.Errorf("remove memory of task: %w", err))
		return false
	}
	w.a.effect("memory removed")
	w.a.removeWorker(w.id)
	return true
}
