package agent

import (
	"time"

	"wherry.dev/spec"
)

// action is one thing that a worker can do for its task.
type action string

// The actions. Each may be repeated: what is done already is found done.
const (
	actWait   action = "wait"   // nothing to do before a change or a deadline
	actImage  action = "image"  // make the image present
	actMounts action = "mounts" // volumes, contents and files
	actAttach action = "attach" // the network side
	actCreate action = "create" // the container
	actLogs   action = "logs"   // let the output be drained
	actLease  action = "lease"  // by which an exclusive task may run
	actStart  action = "start"  // the process
	actAdopt  action = "adopt"  // take note of a process that runs already
	actEnded  action = "ended"  // take note of the end of a process
	actHook   action = "hook"   // run the next hook after the start
	actFiles  action = "files"  // exchange secrets and configs
	actProbe  action = "probe"  // run the health check
	actDrain  action = "drain"  // ask the hosts that send to the task whether they still do
	actBefore action = "before" // run the next hook before the stop
	actSignal action = "signal" // send the stop signal
	actKill   action = "kill"   // send SIGKILL to all
	actRemove action = "remove" // the container
	actDetach action = "detach" // the network side
	actFinish action = "finish" // remove what is left and tell the end
	actForget action = "forget" // nobody asks for the task any more
)

// killAgain is how long a process may outlive SIGKILL before it gets another.
const killAgain = 2 * time.Second

// input is all that step decides from: what is wanted of a task, what is
// remembered of it, and what the runtime says.
type input struct {
	// wanted is false for a task that is in no Wanted any more.
	wanted  bool
	desired spec.TaskDesired
	// check is the health check with all defaults, nil for none.
	check *spec.HealthCheck
	mem   memory
	// run is what the runtime says; its State is empty when there is no
	// container. known is false when run may be older than the last action.
	run   ContainerState
	known bool
	// fresh: nothing was remembered of the task when this process first saw it.
	fresh bool
	// What has been done in the life of this process.
	image, mounts, network, logs, detached bool
	// inits is how many containers come before the task's own.
	inits int
	// probing: a health check is under way; hooking: a hook is.
	probing, hooking bool
	// postStart: there are hooks after the start that have not succeeded yet.
	postStart bool
	// signalled: this process has sent the stop signal. One that was sent by
	// the process before is sent again, since it may have died just before; the
	// grace is counted from the first.
	signalled bool
	// serves: hosts may send to the task. Before it is stopped they are asked,
	// until drained says that none does or until drainEnd, which is zero before.
	serves, drained bool
	drainEnd        time.Time
	// stale: the files of secrets or configs are not of the version that is
	// wanted. In a running container that is changed from filesFrom on, or, with
	// filesLater, when there is news.
	stale, filesLater bool
	filesFrom         time.Time
	// retry holds, per action that failed, the time before which it is not to
	// be tried again. // :: action → time
	retry map[action]time.Time
	// hold is the time before which nothing is started; zero for none.
	hold time.Time
	// A task that joins another one, its head, has the network of that: headReady
	// says that there is one, headGone that the head ends, and so the task does.
	joins, headReady, headGone bool
	// shared: a task that joins this one is not over.
	shared bool
	// exclusive tasks need a lease; leased: there is one, for long enough to
	// start by it. leaseEnd is when a running one must have ended; zero when
	// nobody knows.
	exclusive, leased bool
	leaseEnd          time.Time
}

// decision is the outcome of step. With actWait, until is the time at which
// the decision may change by itself; zero is never.
type decision struct {
	act   action
	until time.Time
}

// step decides the one next thing to do for a task. It is pure.
func step(in input, now time.Time) decision {
	d := in.step(now)
	// Whatever is waited for, the end of the lease is not slept through.
	if d.act == actWait && in.run.State == RunRunning && now.Before(in.leaseEnd) && (d.until.IsZero() || in.leaseEnd.Before(d.until)) {
		d.until = in.leaseEnd
	}
	return d
}

func (in *input) step(now time.Time) decision {
	m := &in.mem
	switch {
	case !in.known:
		return decision{act: actWait}
	case m.Status.State.Terminal():
		if in.run.State != "" {
			return in.try(actRemove, now)
		}
		if !in.wanted {
			return in.try(actForget, now)
		}
		return decision{act: actWait}
	case in.hasEnded():
		return decision{act: actEnded}
	case in.run.State == RunRunning && (m.Attempt == nil || m.Attempt.PID != in.run.PID):
		return decision{act: actAdopt}
	case in.run.State == RunRunning && !in.leaseEnd.IsZero() && !now.Before(in.leaseEnd):
		return in.kill(now)
	case in.ending():
		return in.stepEnding(now)
	case in.run.State == RunRunning:
		return in.stepRunning(now)
	default:
		return in.stepStarting(now)
	}
}

// stage is that of the container which the task needs now.
func (in *input) stage() int {
	if in.mem.Inits < in.inits {
		return in.mem.Inits + 1
	}
	return 0
}

// hasEnded reports whether the runtime shows the end of a process that is not
// in the memory yet.
func (in *input) hasEnded() bool {
	a := in.mem.Attempt
	switch in.run.State {
	case RunRunning:
		return false
	case RunStopped:
		switch {
		case a == nil:
			return in.fresh
		case a.PID != 0:
			return true
		}
		// The start was intended and perhaps not made: what is seen may be the
		// end of the process before.
		return !in.run.Ended.Equal(in.mem.LastEnded) && !in.run.Ended.Before(a.Started)
	default:
		return a != nil && a.PID != 0
	}
}

// stopping reports whether somebody wants the task to end.
func (in *input) stopping() bool {
	return !in.wanted || in.desired == spec.DesiredStopped || in.desired == spec.DesiredRemoved || in.headGone
}

// ending reports whether the task is on its way to a terminal state: it has to
// stop, its outcome is known, or it drains and has nothing left to drain.
func (in *input) ending() bool {
	return in.stopping() || in.mem.Outcome != "" ||
		in.desired == spec.DesiredDraining && in.run.State != RunRunning
}

func (in *input) stepEnding(now time.Time) decision {
	switch {
	case in.run.State == RunRunning:
		return in.terminate(now)
	case in.run.State != "":
		return in.try(actRemove, now)
	case in.shared: // what joins it ends first
		return decision{act: actWait}
	case !in.detached:
		return in.try(actDetach, now)
	default:
		return in.try(actFinish, now)
	}
}

// drains reports whether the task must not be told to stop before nobody sends
// to it: the managers have told everybody. They have not when the task ends for
// a reason of its own, and long since, or never will, when they do not know of
// the task any more.
func (in *input) drains() bool {
	return in.serves && in.run.Stage == 0 && !in.drained && in.wanted && in.stopping() && in.mem.StopSent.IsZero()
}

// lastWord is what hooks before the stop leave of the grace for the process to
// end by its signal, unless half of it is less.
const lastWord = 2 * time.Second

// preStop decides about the hooks before the stop signal; ok is false when it
// is to be sent.
func (in *input) preStop(now time.Time) (d decision, ok bool) {
	m := &in.mem
	if in.run.Stage > 0 || in.signalled || !m.KillSent.IsZero() || m.PreStopped >= len(m.Stop.Hooks) {
		return d, false
	}
	if m.StopSent.IsZero() {
		return in.try(actBefore, now), true
	}
	grace := m.Stop.Grace.D()
	end := m.StopSent.Add(grace - min(lastWord, grace/2))
	if !now.Before(end) {
		return d, false
	}
	if !in.hooking {
		d = in.try(actBefore, now)
	}
	if in.hooking || d.act == actWait && end.Before(d.until) {
		d = decision{actWait, end}
	}
	return d, true
}

// terminate ends the process: drain, the end of what joins it, hooks, stop
// signal, grace, SIGKILL.
func (in *input) terminate(now time.Time) decision {
	m := &in.mem
	switch {
	case !in.drains():
	case in.drainEnd.IsZero():
		return decision{act: actDrain}
	case now.Before(in.drainEnd):
		return decision{actWait, in.drainEnd}
	}
	if in.shared && in.stopping() && m.StopSent.IsZero() {
		return decision{act: actWait}
	}
	if d, ok := in.preStop(now); ok {
		return d
	}
	if m.StopSent.IsZero() || !in.signalled && m.KillSent.IsZero() {
		return in.try(actSignal, now)
	}
	if t := m.StopSent.Add(m.Stop.Grace.D()); now.Before(t) {
		return decision{actWait, t}
	}
	return in.kill(now)
}

// kill sends SIGKILL, and again when the process takes no notice.
func (in *input) kill(now time.Time) decision {
	if t := in.mem.KillSent.Add(killAgain); !in.mem.KillSent.IsZero() && now.Before(t) {
		return decision{actWait, t}
	}
	return in.try(actKill, now)
}

func (in *input) stepRunning(now time.Time) decision {
	m := &in.mem
	if m.Attempt.Unhealthy != "" {
		return in.terminate(now)
	}
	var next time.Time
	if !in.network && !in.waitsForHead() {
		d := in.try(actAttach, now)
		if d.act != actWait {
			return d
		}
		next = d.until
	}
	if in.run.Stage > 0 { // it is not to serve, but to end
		return decision{actWait, next}
	}
	if in.postStart {
		if in.hooking {
			return decision{actWait, next}
		}
		d := in.try(actHook, now)
		if d.act == actWait && !next.IsZero() && next.Before(d.until) {
			d.until = next
		}
		return d
	}
	if in.check != nil && !in.probing {
		due := probeDue(in.check, m.Health, m.Attempt.Started)
		if !now.Before(due) {
			return decision{act: actProbe}
		}
		if next.IsZero() || due.Before(next) {
			next = due
		}
	}
	if in.stale && !in.filesLater && in.desired == spec.DesiredRunning {
		d := in.try(actFiles, now)
		if now.Before(in.filesFrom) {
			d = decision{actWait, in.filesFrom}
		}
		if d.act != actWait {
			return d
		}
		if next.IsZero() || d.until.Before(next) {
			next = d.until
		}
	}
	return decision{actWait, next}
}

func (in *input) stepStarting(now time.Time) decision {
	m := &in.mem
	if now.Before(m.Status.NextStart) {
		return decision{actWait, m.Status.NextStart}
	}
	if now.Before(in.hold) {
		return decision{actWait, in.hold}
	}
	switch {
	case in.run.State != "" && in.run.Stage != in.stage(): // it has done its work
		return in.try(actRemove, now)
	case !in.image && (m.Image == nil || in.run.State == ""):
		return in.try(actImage, now)
	case !in.mounts:
		return in.try(actMounts, now)
	case in.stale && !now.Before(in.retry[actFiles]): // else it starts with what there is
		return decision{act: actFiles}
	case !in.network && in.waitsForHead():
		return decision{act: actWait}
	case !in.network:
		return in.try(actAttach, now)
	case in.run.State == "":
		return in.try(actCreate, now)
	case !in.logs:
		return in.try(actLogs, now)
	case in.exclusive && !in.leased:
		return in.try(actLease, now)
	default:
		return in.try(actStart, now)
	}
}

// waitsForHead reports whether there is no network yet that the task could join.
func (in *input) waitsForHead() bool { return in.joins && !in.headReady }

// try is a, unless a failed and must wait.
func (in *input) try(a action, now time.Time) decision {
	if t := in.retry[a]; now.Before(t) {
		return decision{actWait, t}
	}
	return decision{act: a}
}
