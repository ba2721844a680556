package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"time"

	"wherry.dev/spec"
)

// probeOutput is how much of a probe's output is looked at.
const probeOutput = 4 << 10

// startProbe runs the health check once in the background.
func (w *worker) startProbe(ctx context.Context, in input) {
	ctx, cancel := context.WithCancel(ctx)
	w.cancel = cancel
	number := in.mem.Attempt.Number
	w.a.background.Go(func() {
		defer cancel()
		r := w.a.probe(ctx, w.id, in.check)
		w.mu.Lock()
		w.probe = &probeNews{attempt: number, probeResult: r}
		w.mu.Unlock()
		poke(w.wake)
	})
}

// stopProbe ends the probe under way; its result, if it still comes, is for an
// attempt that is over.
func (w *worker) stopProbe() {
	if w.cancel != nil {
		w.cancel()
		w.cancel = nil
	}
}

// takeProbe takes note of a result. What changes nothing that anybody can see
// is not written down.
func (w *worker) takeProbe(n *probeNews) {
	m := w.mem
	if m.Attempt == nil || m.Attempt.Number != n.attempt {
		return
	}
	w.stopProbe()
	if w.tmpl == nil {
		return
	}
	c := resolveCheck(w.tmpl.Health, imageHealth(m.Image))
	if c == nil || m.Attempt.Unhealthy != "" || !m.StopSent.IsZero() {
		return
	}
	m = probed(m, c, n.probeResult)
	plain := m
	plain.Health.Last = w.mem.Health.Last
	if reflect.DeepEqual(plain, w.mem) {
		w.mu.Lock()
		w.mem = m
		w.mu.Unlock()
		return
	}
	w.commit(m)
}

// probe runs one check in a container.
func (a *Agent) probe(ctx context.Context, t spec.TaskID, c *spec.HealthCheck) probeResult {
	tctx, cancel := context.WithTimeout(ctx, c.Timeout.D())
	defer cancel()
	out := &clippedBuffer{limit: probeOutput}
	code, err := a.c.Execer.Exec(tctx, t, Exec{Args: probeArgs(c), Stdout: out, Stderr: out})
	r := probeResult{at: time.Now(), output: clip(lastLine(out.String()), lastLineBytes)}
	switch {
	case ctx.Err() != nil:
		r.void = true
	case tctx.Err() != nil:
		r.output = fmt.Sprintf("no answer within %s", c.Timeout)
	case errors.Is(err, spec.ErrInvalid):
		r.output = err.Error()
	case err != nil:
		// The runtime is at fault, not the container.
		a.log.Debug("health check could not be run", "task", t, "err", err)
		r.void = true
	case code == 0:
		r.ok = true
	case r.output == "":
		r.output = fmt.Sprintf("exit %d", code)
	}
	return r
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return strings.TrimSpace(s[strings.LastIndexByte(s, '\n')+1:])
}

// clippedBuffer keeps the newest bytes written to it. Safe for concurrent use,
// since both streams of a probe go to it.
type clippedBuffer struct {
	limit int

	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *clippedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buf.Write(p)
	if over := b.buf.Len() - b.limit; over > 0 {
		b.buf.Next(over)
	}
	return len(p), nil
}

func (b *clippedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
