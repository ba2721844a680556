package store

import (
	"testing"
	"time"

	"wherry.dev/spec"
)

// TestMoveTasks: a task that runs may move for a while; one that is over may not, and
// what does not exist changes nothing.
func TestMoveTasks(t *testing.T) {
	h := newHarness(t)
	h.must(putStack(web("shop", 80)))
	id := h.running("n1", 1, "")
	h.refuse(Command{MoveTasks: &MoveTasks{Tasks: []spec.TaskID{id, "9-9"}}}, spec.ErrNotFound, "9-9")
	if !h.s.Snapshot().Task(id).MoveUntil.IsZero() {
		t.Error("a command that was refused has moved a task")
	}
	before := h.s.Snapshot().Service("shop", "web").Version
	h.must(Command{MoveTasks: &MoveTasks{Tasks: []spec.TaskID{id}}})
	now := start.Add(time.Duration(h.index) * time.Second)
	if got := h.s.Snapshot().Task(id).MoveUntil.Sub(now); got != MoveFor || h.s.Snapshot().Service("shop", "web").Version == before {
		t.Errorf("it moves for %v, at version %d of its service", got, before)
	}
	h.report("n1", id, spec.TaskFailed)
	if res := h.must(Command{MoveTasks: &MoveTasks{Tasks: []spec.TaskID{id}}}); res.Changed {
		t.Error("a task that is over moves")
	}
}
