package agent

import (
	"fmt"
	"time"
)

// Containers that come before a task's own are made one after the other in its
// place: each has the task's ID, its network, its volumes and its log, and is
// removed when its process has ended well, upon which the next one is made.
// What fails is an attempt of the task that failed. Which of them a container is
// the runtime tells, so that a task whose memory was lost goes on as well.

// noteStage takes note of what the container that is there says about those
// before it.
func (w *worker) noteStage() {
	if !w.known || w.run.State == "" || len(w.tmpl.PreStart) == 0 {
		return
	}
	done := w.run.Stage - 1
	if w.run.Stage == 0 {
		done = len(w.tmpl.PreStart)
	}
	w.mem.Inits = max(w.mem.Inits, done)
}

// initDone takes note of the good end of a container before the start. The
// attempt goes on with what comes next.
func (w *worker) initDone(in input) error {
	m := w.mem
	a := attempt{Number: m.Status.Started, Started: time.Now()}
	if m.Attempt != nil {
		a.Number = m.Attempt.Number
	}
	m.Attempt, m.Inits, m.LastEnded = &a, in.run.Stage, in.run.Ended
	m.Status.PID, m.Status.Reason = 0, ""
	w.a.log.Info("container before the start has ended", "task", w.id, "number", in.run.Stage)
	w.commit(m)
	return nil
}

// initText says something about the present container before the start.
func (w *worker) initText(what string) string {
	if w.tmpl == nil {
		return fmt.Sprintf("pre_start container %d %s", w.run.Stage, what)
	}
	return fmt.Sprintf("pre_start container %d of %d %s", w.run.Stage, len(w.tmpl.PreStart), what)
}
