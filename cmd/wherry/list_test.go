package main

import (
	"testing"
	"time"

	"wherry.dev/api"
	"wherry.dev/spec"
)

func TestTaskMessage(t *testing.T) {
	words := spec.Attempt{ExitCode: 7, LastLog: []string{"first", "  last words "}}
	task := func(state spec.TaskState, reason string, pid int, attempts ...spec.Attempt) api.TaskInfo {
		return api.TaskInfo{Task: spec.Task{Status: spec.TaskStatus{State: state, PID: pid, Attempts: attempts}}, State: state, Error: reason, Attempts: attempts}
	}
	waiting := task(spec.TaskRunning, "back-off 2 s after exit 7 (attempt 2)", 0, words)
	waiting.Status.NextStart = time.Now().Add(90 * time.Second)
	for _, tt := range []struct {
		task api.TaskInfo
		want string
	}{
		{task(spec.TaskPending, "1 node: drained", 0), "1 node: drained"},
		{task(spec.TaskFailed, "exit 7", 0, words), "exit 7: last words"},
		{task(spec.TaskFailed, "exit 7", 0, spec.Attempt{ExitCode: 7}), "exit 7"},
		{task(spec.TaskRejected, "image a does not exist", 0, words), "image a does not exist"},
		{waiting, "back-off 2 s after exit 7 (attempt 2): last words; next start in 1m"},
		{task(spec.TaskRunning, "health check failed once", 9, words), "health check failed once"},
		{task(spec.TaskRunning, "", 9, words), "last attempt exited 7: last words"},
		{task(spec.TaskRunning, "", 9, spec.Attempt{ExitCode: 137, Signal: 9, OOM: true}), "last attempt was killed for lack of memory"},
		{task(spec.TaskRunning, "", 9, spec.Attempt{ExitCode: 137, Signal: 9}), "last attempt was killed by signal 9"},
		{task(spec.TaskStopped, "", 0, words), ""},
	} {
		if got := taskMessage(tt.task); got != tt.want {
			t.Errorf("%s %q: %q, want %q", tt.task.State, tt.task.Error, got, tt.want)
		}
	}
}
