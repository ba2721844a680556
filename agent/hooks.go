package agent

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"wherry.dev/spec"
)

// hookNews is the result of a run of one hook.
type hookNews struct {
	attempt int // that it ran in
	act     action
	number  int // among its kind, from 0
	// failure says why it failed, "" for success.
	failure string
	// void: it could not be run, and the container is not at fault.
	void error
}

// hooksLeft reports whether hooks after the start of an attempt have to be run.
func hooksLeft(tmpl *spec.Template, a *attempt) bool {
	return tmpl != nil && a != nil && a.PostStarted < len(tmpl.PostStart)
}

// startHook runs the next hook in the background. The grace begins with the
// first hook before the stop.
func (w *worker) startHook(ctx context.Context, a action) error {
	var h spec.Hook
	n := hookNews{act: a}
	if w.mem.Attempt != nil {
		n.attempt = w.mem.Attempt.Number
	}
	if a == actBefore {
		n.number = w.mem.PreStopped
		h = w.mem.Stop.Hooks[n.number]
		w.beginStop(fmt.Sprintf("stopping: pre_stop hook %d of %d runs", n.number+1, len(w.mem.Stop.Hooks)))
	} else {
		n.number = w.mem.Attempt.PostStarted
		h = w.tmpl.PostStart[n.number]
		m := w.mem
		m.Status.Reason = fmt.Sprintf("post_start hook %d of %d runs", n.number+1, len(w.tmpl.PostStart))
		w.commit(m)
	}
	ctx, cancel := context.WithCancel(ctx)
	w.hook = cancel
	w.a.background.Go(func() {
		defer cancel()
		n.failure, n.void = w.a.runHook(ctx, w.id, h)
		if ctx.Err() != nil {
			return
		}
		w.mu.Lock()
		w.hooked = &n
		w.mu.Unlock()
		poke(w.wake)
	})
	return nil
}

// stopHook ends the hook under way; its command is killed.
func (w *worker) stopHook() {
	if w.hook != nil {
		w.hook()
		w.hook = nil
		w.mu.Lock()
		w.hooked = nil
		w.mu.Unlock()
	}
}

func (a *Agent) runHook(ctx context.Context, t spec.TaskID, h spec.Hook) (failure string, void error) {
	out := &clippedBuffer{limit: probeOutput}
	e := Exec{Args: h.Command, User: h.User, Dir: h.WorkingDir, Privileged: h.Privileged, Stdout: out, Stderr: out}
	for _, k := range slices.Sorted(maps.Keys(h.Env)) {
		e.Env = append(e.Env, k+"="+h.Env[k])
	}
	code, err := a.c.Execer.Exec(ctx, t, e)
	switch {
	case errors.Is(err, spec.ErrInvalid):
		return err.Error(), nil
	case err != nil:
		return "", err
	case code == 0:
		return "", nil
	}
	return withOutput(ending{code: code}.describe(), clip(lastLine(out.String()), lastLineBytes)), nil
}

// takeHook takes note of the result of a hook.
func (w *worker) takeHook(n *hookNews) {
	if w.hook == nil {
		return // it was ended meanwhile
	}
	w.stopHook()
	m := w.mem
	if m.Attempt != nil && m.Attempt.Number != n.attempt {
		return
	}
	if n.void != nil {
		w.settle(n.act, fmt.Errorf("%s hook %d: %w", n.kind(), n.number+1, n.void))
		return
	}
	w.settle(n.act, nil)
	w.a.log.Info("hook ended", "task", w.id, "hook", n.kind(), "number", n.number+1, "err", n.failure)
	if n.act == actBefore {
		// Whatever became of it: the task has to end.
		m.PreStopped = n.number + 1
		w.commit(m)
		return
	}
	if m.Attempt == nil || !m.StopSent.IsZero() {
		return
	}
	a := *m.Attempt
	m.Attempt, m.Status.Reason = &a, ""
	switch {
	case n.failure != "":
		a.Unhealthy = fmt.Sprintf("%s hook %d failed: %s", n.kind(), n.number+1, n.failure)
		m.Status.Reason = a.Unhealthy
	default:
		a.PostStarted = n.number + 1
		if !hooksLeft(w.tmpl, &a) && resolveCheck(w.tmpl.Health, imageHealth(m.Image)) == nil {
			a.GoodSince = time.Now()
			m.setHealth(spec.HealthNone, a.GoodSince)
		}
	}
	w.commit(m)
}

func (n *hookNews) kind() string {
	if n.act == actBefore {
		return "pre_stop"
	}
	return "post_start"
}
