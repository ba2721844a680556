package agent

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"wherry.dev/spec"
)

var t0 = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func at(s float64) time.Time { return t0.Add(time.Duration(s * float64(time.Second))) }

func TestStep(t *testing.T) {
	grace := stopRule{Signal: 15, Grace: spec.Duration(10 * time.Second)}
	running := ContainerState{State: RunRunning, PID: 7}
	created := ContainerState{State: RunCreated}
	stopped := ContainerState{State: RunStopped, ExitCode: 1, Ended: at(-1)}
	alive := func() memory {
		return memory{Status: spec.TaskStatus{State: spec.TaskRunning}, Stop: grace, Attempt: &attempt{Number: 1, Started: at(-10), PID: 7}}
	}
	// before is the second of two containers before the task's own.
	before := func(m memory) memory { m.Inits = 1; return m }
	// hooked has two hooks before the stop, which was begun then, or never at 0.
	hooked := func(since float64, done int) memory {
		m := alive()
		m.Stop.Hooks, m.PreStopped = make([]spec.Hook, 2), done
		if since != 0 {
			m.StopSent = at(since)
		}
		return m
	}
	intended := func() memory {
		return memory{Status: spec.TaskStatus{State: spec.TaskStarting}, Stop: grace, Attempt: &attempt{Number: 1, Started: at(-10)}}
	}
	idle := func() memory {
		return memory{Status: spec.TaskStatus{State: spec.TaskPreparing}, Stop: grace, Image: &ImageConfig{}}
	}
	terminal := memory{Status: spec.TaskStatus{State: spec.TaskFailed}}
	check := &spec.HealthCheck{Interval: seconds(30), Retries: 3}
	run, stop := spec.DesiredRunning, spec.DesiredStopped

	tests := []struct {
		name string
		in   input
		want decision
	}{
		// What is not known is looked at first.
		{"unknown", input{wanted: true, desired: run}, decision{act: actWait}},
		{"unknown, stopping", input{mem: alive()}, decision{act: actWait}},

		// Files that change while it runs.
		{"files", input{known: true, wanted: true, desired: run, mem: alive(), run: running, network: true, stale: true}, decision{act: actFiles}},
		{"files later", input{known: true, wanted: true, desired: run, mem: alive(), run: running, network: true, stale: true, filesFrom: at(3)}, decision{actWait, at(3)}},
		{"files when it is well", input{known: true, wanted: true, desired: run, mem: alive(), run: running, network: true, stale: true, filesLater: true}, decision{act: actWait}},
		{"files failed before", input{known: true, wanted: true, desired: run, mem: alive(), run: running, network: true, stale: true, retry: map[action]time.Time{actFiles: at(3)}}, decision{actWait, at(3)}},
		{"a check is due before files", input{known: true, wanted: true, desired: run, mem: alive(), run: running, network: true, stale: true, check: &spec.HealthCheck{Interval: seconds(1), Retries: 3}}, decision{act: actProbe}},
		{"no files for a task that drains", input{known: true, wanted: true, desired: spec.DesiredDraining, mem: alive(), run: running, network: true, stale: true}, decision{act: actWait}},

		// Terminal.
		{"over, wanted", input{known: true, wanted: true, desired: run, mem: terminal}, decision{act: actWait}},
		{"over, wanted, leftover", input{known: true, wanted: true, mem: terminal, run: stopped}, decision{act: actRemove}},
		{"over, not wanted", input{known: true, mem: terminal}, decision{act: actForget}},

		// The way up.
		{"image", input{known: true, wanted: true, desired: run}, decision{act: actImage}},
		{"image again after a container went", input{known: true, wanted: true, desired: run, mem: idle()}, decision{act: actImage}},
		{"no image for a container that is there", input{known: true, wanted: true, desired: run, mem: idle(), run: created}, decision{act: actMounts}},
		{"mounts", input{known: true, wanted: true, desired: run, mem: idle(), image: true}, decision{act: actMounts}},
		{"attach", input{known: true, wanted: true, desired: run, mem: idle(), image: true, mounts: true}, decision{act: actAttach}},
		{"files that are out of date", input{known: true, wanted: true, desired: run, mem: idle(), image: true, mounts: true, stale: true}, decision{act: actFiles}},
		{"files that are not to be had", input{known: true, wanted: true, desired: run, mem: idle(), image: true, mounts: true, stale: true, retry: map[action]time.Time{actFiles: at(3)}}, decision{act: actAttach}},
		{"create", input{known: true, wanted: true, desired: run, mem: idle(), image: true, mounts: true, network: true}, decision{act: actCreate}},
		{"logs", input{known: true, wanted: true, desired: run, mem: idle(), image: true, mounts: true, network: true, run: created}, decision{act: actLogs}},
		{"start", input{known: true, wanted: true, desired: run, mem: idle(), image: true, mounts: true, network: true, logs: true, run: created}, decision{act: actStart}},
		{"start after an end", input{known: true, wanted: true, desired: run, mem: idle(), mounts: true, network: true, logs: true, run: stopped}, decision{act: actStart}},
		{"start that was intended", input{known: true, wanted: true, desired: run, mem: intended(), image: true, mounts: true, network: true, logs: true, run: created}, decision{act: actStart}},
		{"failed before", input{known: true, wanted: true, desired: run, retry: map[action]time.Time{actImage: at(3)}}, decision{actWait, at(3)}},
		{"failed long before", input{known: true, wanted: true, desired: run, retry: map[action]time.Time{actImage: at(-3)}}, decision{act: actImage}},
		{"back-off", input{known: true, wanted: true, desired: run, run: stopped,
			mem: memory{Status: spec.TaskStatus{State: spec.TaskRunning, NextStart: at(4)}}}, decision{actWait, at(4)}},

		{"held", input{known: true, wanted: true, desired: run, hold: at(3)}, decision{actWait, at(3)}},
		{"held no longer", input{known: true, wanted: true, desired: run, hold: t0}, decision{act: actImage}},
		{"held, but stopping", input{known: true, wanted: true, desired: stop, mem: alive(), run: running, hold: at(3)}, decision{act: actSignal}},
		{"no lease", input{known: true, wanted: true, desired: run, mem: idle(), image: true, mounts: true, network: true, logs: true, run: created, exclusive: true}, decision{act: actLease}},
		{"no lease yet", input{known: true, wanted: true, desired: run, mem: idle(), image: true, mounts: true, network: true, logs: true, run: created, exclusive: true,
			retry: map[action]time.Time{actLease: at(1)}}, decision{actWait, at(1)}},
		{"a lease", input{known: true, wanted: true, desired: run, mem: idle(), image: true, mounts: true, network: true, logs: true, run: created, exclusive: true, leased: true}, decision{act: actStart}},

		// Running.
		{"lease", input{known: true, wanted: true, desired: run, mem: alive(), run: running, network: true, exclusive: true, leaseEnd: at(9)}, decision{actWait, at(9)}},
		{"lease, probe sooner", input{known: true, wanted: true, desired: run, mem: alive(), run: running, network: true, exclusive: true, leaseEnd: at(30), check: check}, decision{actWait, at(20)}},
		{"lease over", input{known: true, wanted: true, desired: run, mem: alive(), run: running, network: true, exclusive: true, leaseEnd: t0}, decision{act: actKill}},
		{"lease over within the grace", input{known: true, mem: func() memory { m := alive(); m.StopSent = at(-2); return m }(), run: running, signalled: true, exclusive: true, leaseEnd: t0}, decision{act: actKill}},
		{"grace beyond the lease", input{known: true, mem: func() memory { m := alive(); m.StopSent = at(-2); return m }(), run: running, signalled: true, exclusive: true, leaseEnd: at(3)}, decision{actWait, at(3)}},
		{"lease over, killed", input{known: true, wanted: true, desired: run, mem: func() memory { m := alive(); m.KillSent = at(-1); return m }(), run: running, exclusive: true, leaseEnd: at(-1)}, decision{actWait, at(1)}},
		{"lease over, not adopted yet", input{known: true, wanted: true, desired: run, run: running, exclusive: true, leaseEnd: at(-1)}, decision{act: actAdopt}},
		{"running", input{known: true, wanted: true, desired: run, mem: alive(), run: running, network: true}, decision{act: actWait}},
		{"running, network not sure", input{known: true, wanted: true, desired: run, mem: alive(), run: running}, decision{act: actAttach}},
		{"running, network failing", input{known: true, wanted: true, desired: run, mem: alive(), run: running, retry: map[action]time.Time{actAttach: at(2)}}, decision{actWait, at(2)}},
		{"running, network failing, probe sooner", input{known: true, wanted: true, desired: run, mem: alive(), run: running, check: &spec.HealthCheck{Interval: seconds(11)},
			retry: map[action]time.Time{actAttach: at(2)}}, decision{actWait, at(1)}},
		{"probe later", input{known: true, wanted: true, desired: run, mem: alive(), run: running, network: true, check: check}, decision{actWait, at(20)}},
		{"probe now", input{known: true, wanted: true, desired: run, mem: alive(), run: running, network: true, check: &spec.HealthCheck{Interval: seconds(10)}}, decision{act: actProbe}},
		{"probing", input{known: true, wanted: true, desired: run, mem: alive(), run: running, network: true, check: &spec.HealthCheck{Interval: seconds(10)}, probing: true}, decision{act: actWait}},
		{"the first container before the start", input{known: true, wanted: true, desired: run, mem: idle(), image: true, mounts: true, network: true, inits: 2}, decision{act: actCreate}},
		{"it has been made", input{known: true, wanted: true, desired: run, mem: idle(), image: true, mounts: true, network: true, logs: true, inits: 2, run: ContainerState{State: RunCreated, Stage: 1}}, decision{act: actStart}},
		{"it runs", input{known: true, wanted: true, desired: run, mem: alive(), network: true, inits: 2, run: ContainerState{State: RunRunning, PID: 7, Stage: 1}, check: &spec.HealthCheck{Interval: seconds(1)}, postStart: true}, decision{act: actWait}},
		{"it has ended", input{known: true, wanted: true, desired: run, mem: alive(), inits: 2, run: ContainerState{State: RunStopped, Ended: at(-1), Stage: 1}}, decision{act: actEnded}},
		{"it has done its work", input{known: true, wanted: true, desired: run, image: true, mounts: true, network: true, logs: true, inits: 2, run: ContainerState{State: RunStopped, Ended: at(-1), Stage: 1},
			mem: before(memory{Status: spec.TaskStatus{State: spec.TaskStarting}, LastEnded: at(-1), Attempt: &attempt{Number: 1, Started: at(-1)}})}, decision{act: actRemove}},
		{"the second one is there", input{known: true, wanted: true, desired: run, mem: before(idle()), image: true, mounts: true, network: true, logs: true, inits: 2, run: ContainerState{State: RunCreated, Stage: 2}}, decision{act: actStart}},
		{"the one that failed", input{known: true, wanted: true, desired: run, mem: before(idle()), image: true, mounts: true, network: true, logs: true, inits: 2, run: ContainerState{State: RunStopped, Stage: 2}}, decision{act: actStart}},
		{"the task's own after its end", input{known: true, wanted: true, desired: run, mem: func() memory { m := idle(); m.Inits = 2; return m }(), image: true, mounts: true, network: true, logs: true, inits: 2, run: stopped}, decision{act: actStart}},
		{"a container before the start is told to stop", input{known: true, wanted: true, desired: stop, mem: hooked(0, 0), serves: true, inits: 2, run: ContainerState{State: RunRunning, PID: 7, Stage: 1}}, decision{act: actSignal}},
		{"hook after the start", input{known: true, wanted: true, desired: run, mem: alive(), run: running, network: true, postStart: true, check: check}, decision{act: actHook}},
		{"hook under way", input{known: true, wanted: true, desired: run, mem: alive(), run: running, network: true, postStart: true, hooking: true, check: &spec.HealthCheck{Interval: seconds(10)}}, decision{act: actWait}},
		{"hook could not be run", input{known: true, wanted: true, desired: run, mem: alive(), run: running, network: true, postStart: true, retry: map[action]time.Time{actHook: at(3)}}, decision{actWait, at(3)}},
		{"hook and network could not", input{known: true, wanted: true, desired: run, mem: alive(), run: running, postStart: true,
			retry: map[action]time.Time{actHook: at(3), actAttach: at(2)}}, decision{actWait, at(2)}},
		{"hook under way, lease", input{known: true, wanted: true, desired: run, mem: alive(), run: running, network: true, postStart: true, hooking: true, exclusive: true, leaseEnd: at(9)}, decision{actWait, at(9)}},
		{"draining", input{known: true, wanted: true, desired: spec.DesiredDraining, mem: alive(), run: running, network: true}, decision{act: actWait}},
		{"unhealthy", input{known: true, wanted: true, desired: run, run: running, network: true,
			mem: memory{Status: spec.TaskStatus{State: spec.TaskRunning}, Stop: grace, Attempt: &attempt{PID: 7, Unhealthy: "x"}}}, decision{act: actSignal}},

		// Found by a new process.
		{"adopt an intended start", input{known: true, wanted: true, desired: run, mem: intended(), run: running}, decision{act: actAdopt}},
		{"adopt without memory", input{known: true, wanted: true, desired: run, run: running, fresh: true}, decision{act: actAdopt}},
		{"adopt before stopping", input{known: true, wanted: true, desired: stop, run: running, fresh: true}, decision{act: actAdopt}},
		{"adopt another PID", input{known: true, wanted: true, desired: run, mem: alive(), run: ContainerState{State: RunRunning, PID: 8}}, decision{act: actAdopt}},

		// Ends.
		{"ended", input{known: true, wanted: true, desired: run, mem: alive(), run: stopped}, decision{act: actEnded}},
		{"ended, not wanted", input{known: true, mem: alive(), run: stopped}, decision{act: actEnded}},
		{"ended after an intended start", input{known: true, wanted: true, desired: run, mem: intended(), run: stopped}, decision{act: actEnded}},
		{"end unseen, container left", input{known: true, wanted: true, desired: run, mem: alive(), run: created}, decision{act: actEnded}},
		{"end unseen, nothing left", input{known: true, wanted: true, desired: run, mem: alive()}, decision{act: actEnded}},
		{"ended without memory", input{known: true, wanted: true, desired: run, run: stopped, fresh: true}, decision{act: actEnded}},
		{"an old end is not the intended one", input{known: true, wanted: true, desired: run, image: true, mounts: true, network: true, logs: true, run: stopped,
			mem: memory{Status: spec.TaskStatus{State: spec.TaskRunning}, LastEnded: at(-1), Attempt: &attempt{Number: 2, Started: at(-2)}}}, decision{act: actStart}},
		{"an end before the intent is not its", input{known: true, wanted: true, desired: run, image: true, mounts: true, network: true, logs: true, run: stopped,
			mem: memory{Status: spec.TaskStatus{State: spec.TaskRunning}, Attempt: &attempt{Number: 2, Started: at(-0.5)}}}, decision{act: actStart}},

		// The way down.
		{"stop", input{known: true, wanted: true, desired: stop, mem: alive(), run: running}, decision{act: actSignal}},
		{"removed", input{known: true, wanted: true, desired: spec.DesiredRemoved, mem: alive(), run: running}, decision{act: actSignal}},
		{"not wanted", input{known: true, mem: alive(), run: running}, decision{act: actSignal}},
		{"stop, hosts send to it", input{known: true, wanted: true, desired: stop, mem: alive(), run: running, serves: true}, decision{act: actDrain}},
		{"drain", input{known: true, wanted: true, desired: stop, mem: alive(), run: running, serves: true, drainEnd: at(1)}, decision{actWait, at(1)}},
		{"drained", input{known: true, wanted: true, desired: stop, mem: alive(), run: running, serves: true, drainEnd: at(1), drained: true}, decision{act: actSignal}},
		{"drained by nobody", input{known: true, wanted: true, desired: stop, mem: alive(), run: running, serves: true, drainEnd: t0}, decision{act: actSignal}},
		{"drain, lease over", input{known: true, wanted: true, desired: stop, mem: alive(), run: running, serves: true, drainEnd: at(1), exclusive: true, leaseEnd: t0}, decision{act: actKill}},
		{"drain, lease ends sooner", input{known: true, wanted: true, desired: stop, mem: alive(), run: running, serves: true, drainEnd: at(2), exclusive: true, leaseEnd: at(1)}, decision{actWait, at(1)}},
		{"ended in a drain", input{known: true, wanted: true, desired: stop, mem: alive(), run: stopped, serves: true, drainEnd: at(1)}, decision{act: actEnded}},
		{"not wanted, hosts send to it", input{known: true, mem: alive(), run: running, serves: true}, decision{act: actSignal}},
		{"unhealthy, hosts send to it", input{known: true, wanted: true, desired: run, run: running, network: true, serves: true,
			mem: memory{Status: spec.TaskStatus{State: spec.TaskRunning}, Attempt: &attempt{PID: 7, Unhealthy: "x"}}}, decision{act: actSignal}},
		{"signal by the process before, hosts send to it", input{known: true, wanted: true, desired: stop, serves: true,
			mem: func() memory { m := alive(); m.StopSent = at(-2); return m }(), run: running}, decision{act: actSignal}},
		{"what never started is not drained", input{known: true, wanted: true, desired: stop, mem: intended(), run: created, serves: true}, decision{act: actRemove}},
		{"hook before the stop", input{known: true, wanted: true, desired: stop, mem: hooked(0, 0), run: running}, decision{act: actBefore}},
		{"hook before the stop, after the drain", input{known: true, wanted: true, desired: stop, mem: hooked(0, 0), run: running, serves: true}, decision{act: actDrain}},
		{"hook before the stop under way", input{known: true, wanted: true, desired: stop, mem: hooked(-2, 0), run: running, hooking: true}, decision{actWait, at(6)}},
		{"next hook before the stop", input{known: true, wanted: true, desired: stop, mem: hooked(-2, 1), run: running}, decision{act: actBefore}},
		{"hook before the stop could not be run", input{known: true, mem: hooked(-2, 1), run: running, retry: map[action]time.Time{actBefore: at(3)}}, decision{actWait, at(3)}},
		{"hook before the stop cannot be run in time", input{known: true, mem: hooked(-2, 1), run: running, retry: map[action]time.Time{actBefore: at(30)}}, decision{actWait, at(6)}},
		{"hooks before the stop over", input{known: true, mem: hooked(-2, 2), run: running}, decision{act: actSignal}},
		{"hooks before the stop take too long", input{known: true, mem: hooked(-8, 1), run: running, hooking: true}, decision{act: actSignal}},
		{"hooks of a short grace", input{known: true, mem: func() memory { m := hooked(-1, 1); m.Stop.Grace = seconds(3); return m }(), run: running, hooking: true}, decision{actWait, at(0.5)}},
		{"signalled after hooks", input{known: true, mem: hooked(-8, 1), run: running, signalled: true}, decision{actWait, at(2)}},
		{"killed after hooks", input{known: true, mem: func() memory { m := hooked(-20, 1); m.KillSent = at(-1); return m }(), run: running}, decision{actWait, at(1)}},
		{"hook before the stop, lease over", input{known: true, mem: hooked(-2, 0), run: running, hooking: true, exclusive: true, leaseEnd: t0}, decision{act: actKill}},
		{"ended before its hooks were", input{known: true, mem: hooked(-2, 0), run: stopped, hooking: true}, decision{act: actEnded}},
		{"grace", input{known: true, mem: func() memory { m := alive(); m.StopSent = at(-2); return m }(), run: running, signalled: true}, decision{actWait, at(8)}},
		{"signal by the process before", input{known: true, mem: func() memory { m := alive(); m.StopSent = at(-2); return m }(), run: running}, decision{act: actSignal}},
		{"kill", input{known: true, mem: func() memory { m := alive(); m.StopSent = at(-10); return m }(), run: running, signalled: true}, decision{act: actKill}},
		{"killed", input{known: true, mem: func() memory { m := alive(); m.StopSent, m.KillSent = at(-11), at(-1); return m }(), run: running}, decision{actWait, at(1)}},
		{"kill again", input{known: true, mem: func() memory { m := alive(); m.StopSent, m.KillSent = at(-13), at(-2); return m }(), run: running}, decision{act: actKill}},
		{"remove", input{known: true, wanted: true, desired: stop, mem: idle(), run: stopped}, decision{act: actRemove}},
		{"remove what never started", input{known: true, wanted: true, desired: stop, mem: intended(), run: created}, decision{act: actRemove}},
		{"detach", input{known: true, wanted: true, desired: stop, mem: idle()}, decision{act: actDetach}},
		{"finish", input{known: true, wanted: true, desired: stop, mem: idle(), detached: true}, decision{act: actFinish}},
		{"stop, shared", input{known: true, wanted: true, desired: stop, mem: alive(), run: running, shared: true}, decision{act: actWait}},
		{"stop, shared and served", input{known: true, wanted: true, desired: stop, mem: alive(), run: running, shared: true, serves: true}, decision{act: actDrain}},
		{"not wanted, shared", input{known: true, mem: alive(), run: running, shared: true}, decision{act: actWait}},
		{"told to stop, shared", input{known: true, mem: func() memory { m := alive(); m.StopSent = at(-10); return m }(), run: running, signalled: true, shared: true}, decision{act: actKill}},
		{"unhealthy, shared", input{known: true, wanted: true, desired: run, run: running, network: true, shared: true,
			mem: memory{Status: spec.TaskStatus{State: spec.TaskRunning}, Attempt: &attempt{PID: 7, Unhealthy: "x"}}}, decision{act: actSignal}},
		{"remove, shared", input{known: true, wanted: true, desired: stop, mem: idle(), run: stopped, shared: true}, decision{act: actRemove}},
		{"detach, shared", input{known: true, wanted: true, desired: stop, mem: idle(), shared: true}, decision{act: actWait}},
		{"join", input{known: true, wanted: true, desired: run, mem: idle(), image: true, mounts: true, joins: true, headReady: true}, decision{act: actAttach}},
		{"join, no network there", input{known: true, wanted: true, desired: run, mem: idle(), image: true, mounts: true, joins: true}, decision{act: actWait}},
		{"runs, network of its head not sure", input{known: true, wanted: true, desired: run, mem: alive(), run: running, joins: true, check: check}, decision{actWait, at(20)}},
		{"head gone", input{known: true, wanted: true, desired: run, mem: alive(), run: running, network: true, joins: true, headGone: true}, decision{act: actSignal}},
		{"head gone before it started", input{known: true, wanted: true, desired: run, mem: idle(), joins: true, headGone: true}, decision{act: actDetach}},
		{"stop while backing off", input{known: true, wanted: true, desired: stop, run: stopped,
			mem: memory{Status: spec.TaskStatus{State: spec.TaskRunning, NextStart: at(4)}}}, decision{act: actRemove}},
		{"drained before it ran", input{known: true, wanted: true, desired: spec.DesiredDraining, run: created}, decision{act: actRemove}},
		{"outcome, running", input{known: true, wanted: true, desired: run, run: running, mem: func() memory { m := alive(); m.Outcome = spec.TaskRejected; return m }()}, decision{act: actSignal}},
		{"outcome", input{known: true, wanted: true, desired: run, mem: memory{Outcome: spec.TaskComplete}}, decision{act: actDetach}},
		{"remove failed", input{known: true, wanted: true, desired: stop, mem: idle(), run: stopped, retry: map[action]time.Time{actRemove: at(1)}}, decision{actWait, at(1)}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := step(tt.in, t0); got != tt.want {
				t.Errorf("got %v until %v, want %v until %v", got.act, got.until, tt.want.act, tt.want.until)
			}
		})
	}
}

// TestStepInvariants goes through every combination of inputs and checks what
// must hold whatever the situation.
func TestStepInvariants(t *testing.T) {
	bools := []bool{false, true}
	states := []ContainerState{{}, {State: RunCreated}, {State: RunRunning, PID: 7}, {State: RunStopped, Ended: at(-1)}}
	attempts := []*attempt{nil, {Number: 1, Started: at(-5)}, {Number: 1, Started: at(-5), PID: 7}, {Number: 1, Started: at(-5), PID: 7, Unhealthy: "x"}}
	desired := []spec.TaskDesired{spec.DesiredRunning, spec.DesiredDraining, spec.DesiredStopped, spec.DesiredRemoved}
	outcomes := []spec.TaskState{"", spec.TaskFailed}
	statuses := []spec.TaskState{spec.TaskAssigned, spec.TaskRunning, spec.TaskStopped}
	n := 0
	for _, run := range states {
		for _, a := range attempts {
			for _, d := range desired {
				for _, o := range outcomes {
					for _, st := range statuses {
						for bits := range 1 << 11 {
							flag := func(i int) bool { return bools[bits>>i&1] }
							in := input{
								wanted: flag(0), desired: d, run: run, known: flag(1), fresh: flag(2),
								image: flag(3), mounts: flag(3), network: flag(4), logs: flag(4), detached: flag(5), signalled: flag(6),
								mem:    memory{Status: spec.TaskStatus{State: st}, Attempt: a, Outcome: o},
								serves: flag(7), drained: flag(8), shared: flag(9), joins: flag(10), headGone: flag(10) && flag(7),
							}
							n++
							if err := checkStep(in, step(in, t0)); err != "" {
								t.Fatalf("%s: %+v", err, in)
							}
						}
					}
				}
			}
		}
	}
	t.Logf("%d situations", n)
}

func checkStep(in input, d decision) string {
	starting := []action{actImage, actMounts, actCreate, actLogs, actStart}
	switch {
	case !in.known && d.act != actWait:
		return fmt.Sprintf("%s without knowing what is", d.act)
	case d.act == actStart && in.run.State != RunCreated && in.run.State != RunStopped:
		return "start without a container that is at rest"
	case d.act == actCreate && in.run.State != "":
		return "second container"
	case slices.Contains(starting, d.act) && in.run.State == RunRunning:
		return fmt.Sprintf("%s of a running container", d.act)
	case slices.Contains(starting, d.act) && (!in.wanted || in.desired != spec.DesiredRunning || in.headGone || in.mem.Outcome != "" || in.mem.Status.State.Terminal()):
		return fmt.Sprintf("%s of a task that is to end", d.act)
	case (d.act == actSignal || d.act == actKill) && in.wanted && !in.headGone && (in.desired == spec.DesiredRunning || in.desired == spec.DesiredDraining) &&
		in.mem.Outcome == "" && in.mem.Attempt.Unhealthy == "":
		return fmt.Sprintf("%s of a task that is to run", d.act)
	case d.act == actSignal && in.serves && !in.drained && in.wanted && in.mem.StopSent.IsZero() && in.stopping():
		return "signal before anybody was asked"
	case d.act == actDrain && (!in.serves || in.drained || !in.wanted || in.run.State != RunRunning):
		return "a drain of what serves nobody"
	case d.act == actRemove && in.run.State == RunRunning && !in.mem.Status.State.Terminal():
		return "removal of a running container"
	case (d.act == actDetach || d.act == actFinish || d.act == actForget) && in.run.State != "":
		return fmt.Sprintf("%s before the container is gone", d.act)
	case d.act == actDetach && in.shared:
		return "the network of others is removed"
	case d.act == actForget && in.wanted:
		return "a wanted task is forgotten"
	case d.act == actFinish && in.mem.Status.State.Terminal():
		return "finished twice"
	}
	return ""
}

func seconds(n float64) spec.Duration { return spec.Duration(n * float64(time.Second)) }
