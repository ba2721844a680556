package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/term"

	"wherry.dev/api"
	"wherry.dev/spec"
)

// pollWait is how long one question for news may take; the elapsed time on a
// terminal moves that often.
const pollWait = time.Second

// waitStack waits until the stack runs as the write at index says, showing
// how far it is. Its error tells whether it failed or ran out of time. A write
// that made a revision, else 0, has failed when that is no longer in force.
func (a *app) waitStack(ctx context.Context, cl *api.Client, stack string, index, revision uint64, w *waitFlags) error {
	if !w.wait {
		return nil
	}
	wctx, cancel := w.within(ctx)
	defer cancel()
	p := newProgress(a.err, a.terminal())
	defer p.close()
	poll := api.Poll{Index: max(index, 1) - 1, Wait: pollWait}
	var last api.StackStatus
	for {
		st, err := cl.StackStatus(wctx, stack, poll)
		if err != nil {
			return waitError(ctx, wctx, stack, last, w, err)
		}
		last, poll.Index = st, st.Index
		p.show(st)
		if err := impossible(st); err != nil && (revision == 0 || st.Revision == revision) {
			p.close()
			return &exitError{exitFailed, err}
		}
		if moving(st) {
			continue
		}
		well := st.State == api.StateRunning || st.State == api.StateStopped
		waits := slices.ContainsFunc(st.Services, undecided)
		if revision != 0 && st.Revision != revision && (well || waits || stuck(st)) {
			p.close()
			return a.overtaken(wctx, cl, st, revision)
		}
		switch {
		case well:
			p.close()
			fmt.Fprintf(a.err, "%s: %s, %s, %.1f s\n", stack, st.State, count(st.Tasks, "task"), time.Since(p.started).Seconds())
			return nil
		case stuck(st):
			p.close()
			return &exitError{exitFailed, failure(st)}
		case waits:
			p.close()
			for _, s := range st.Services {
				if undecided(s) {
					fmt.Fprintf(a.err, "%s: %s\n", spec.ServiceKey(s.Stack, s.Name), s.Message)
				}
			}
			return nil
		}
	}
}

// impossible says why the nodes could never take what the stack wants, or nil:
// there is nothing to wait for.
func impossible(st api.StackStatus) error {
	var errs []error
	for _, s := range st.Services {
		if s.Impossible != "" {
			errs = append(errs, fmt.Errorf("service %s: %s", spec.ServiceKey(s.Stack, s.Name), s.Impossible))
		}
	}
	if len(errs) == 0 {
		return nil
	}
	return fmt.Errorf("stack %s does not fit: %w\nit stays declared, and goes on when a node can take it; `wherry why %s` says more", st.Name, errors.Join(errs...), st.Name)
}

// moving reports whether a service is still on its way by itself. One that
// only waits for another may do so for long.
func moving(st api.StackStatus) bool {
	for _, s := range st.Services {
		if !s.Blocked && (s.State == api.StateUpdating || s.Update.State == spec.UpdateUpdating) && !undecided(s) && !strings.Contains(s.Message, "waits for service") {
			return true
		}
	}
	return false
}

// stuck reports whether somebody has to do something.
func stuck(st api.StackStatus) bool {
	return st.State == api.StateFailed ||
		slices.ContainsFunc(st.Services, func(s api.ServiceInfo) bool { return s.Update.State == spec.UpdatePaused && !undecided(s) })
}

// undecided reports whether the canary of a service is well and waits for a
// person, as its file says.
func undecided(s api.ServiceInfo) bool {
	return s.Update.State == spec.UpdatePaused && s.Update.Canary == spec.CanaryWaiting
}

// overtaken says what became of a revision that is no longer in force.
func (a *app) overtaken(ctx context.Context, cl *api.Client, st api.StackStatus, revision uint64) error {
	l, err := cl.History(ctx, st.Name)
	if err != nil {
		return err
	}
	var mine, now api.StackRevision
	for _, r := range l.Items {
		if r.Revision == revision {
			mine = r
		}
		if r.Current {
			now = r
		}
	}
	if mine.State != string(spec.RevisionRolledBack) {
		return exitWith(exitFailed, "stack %s is at revision %d by now, which %s has made: revision %d is %s", st.Name, now.Revision, cmp.Or(now.Author, "somebody"), revision, cmp.Or(mine.State, "not kept"))
	}
	what := fmt.Sprintf("it was rolled back to revision %d", now.Rollback)
	if now.Rollback == 0 || now.State != string(spec.RevisionCompleted) {
		what = fmt.Sprintf("revision %d, which took it back, is %s", now.Revision, now.State)
		if stuck(st) {
			what += ": " + failure(st).Error()
		}
	}
	return exitWith(exitFailed, "stack %s: revision %d failed: %s\n%s%s; `wherry history %s` says more", st.Name, revision, mine.Why, lastWords(mine.Log), what, st.Name)
}

// lastWords are lines of output, each on a line of its own.
func lastWords(log string) string {
	if log == "" {
		return ""
	}
	return "  | " + strings.ReplaceAll(log, "\n", "\n  | ") + "\n"
}

func failure(st api.StackStatus) error {
	var errs []error
	if st.Message != "" {
		errs = append(errs, errors.New(st.Message))
	}
	hint := fmt.Sprintf("`wherry why %s` and `wherry logs %s` say more", st.Name, st.Name)
	for _, s := range st.Services {
		paused := s.Update.State == spec.UpdatePaused && !undecided(s)
		if s.State != api.StateFailed && !paused {
			continue
		}
		key, log := spec.ServiceKey(s.Stack, s.Name), ""
		if paused {
			hint = fmt.Sprintf("`wherry service resume %s` goes on, `wherry logs %s` says more", key, st.Name)
			if s.Update.Log != "" {
				log = "\n" + strings.TrimSuffix(lastWords(s.Update.Log), "\n")
			}
		}
		errs = append(errs, fmt.Errorf("service %s: %s%s", key, s.Message, log))
	}
	return fmt.Errorf("stack %s failed: %w\n%s", st.Name, errors.Join(errs...), hint)
}

// waitError says why the waiting ended without an end.
func waitError(ctx, wctx context.Context, stack string, last api.StackStatus, w *waitFlags, err error) error {
	switch {
	case ctx.Err() != nil:
		return &exitError{exitInterrupted, fmt.Errorf("no longer waiting for %s; the cluster goes on, see `wherry ps %s`", stack, stack)}
	case wctx.Err() != nil:
		var open []string
		for _, s := range last.Services {
			if s.State != api.StateRunning {
				open = append(open, fmt.Sprintf("service %s %s: %s", s.Name, replicasText(s), s.Message))
			}
		}
		return &exitError{exitTimeout, fmt.Errorf("stack %s is not there after %s: %s", stack, w.timeout, strings.Join(open, "; "))}
	}
	return err
}

// waitGone waits until nothing of a removed stack is left.
func (a *app) waitGone(ctx context.Context, cl *api.Client, stack string, index uint64, volumes bool, w *waitFlags) error {
	wctx, cancel := w.within(ctx)
	defer cancel()
	p := newProgress(a.err, a.terminal())
	defer p.close()
	poll := api.Poll{Index: max(index, 1) - 1, Wait: pollWait}
	for {
		st, err := cl.StackStatus(wctx, stack, poll)
		if errors.Is(err, spec.ErrNotFound) {
			break
		}
		if err != nil {
			return waitError(ctx, wctx, stack, st, w, err)
		}
		poll.Index = st.Index
		p.line(stack, fmt.Sprintf("%s left to stop", count(st.Tasks, "task")))
	}
	return a.waitVolumes(ctx, wctx, cl, stack, volumes, w)
}

// waitVolumes waits until the data of a stack's volumes is gone. Volumes that
// are not being removed are not waited for.
func (a *app) waitVolumes(ctx, wctx context.Context, cl *api.Client, stack string, volumes bool, w *waitFlags) error {
	var after uint64
	for volumes {
		l, err := cl.Volumes(wctx, false)
		if err != nil {
			return waitError(ctx, wctx, stack, api.StackStatus{}, w, err)
		}
		left := 0
		for _, v := range l.Items {
			if v.Stack == stack && v.Removing {
				left++
			}
		}
		if left == 0 {
			return nil
		}
		// The next change of the state, whatever it is, is worth another look.
		ev, err := cl.Tasks(wctx, api.TaskFilter{}, api.Poll{Index: max(after, l.Index), Wait: pollWait})
		if err != nil {
			return waitError(ctx, wctx, stack, api.StackStatus{}, w, err)
		}
		after = ev.Index
	}
	return nil
}

// progress shows the state of services: on a terminal one line per service,
// rewritten; else a line per change.
type progress struct {
	w       io.Writer
	rewrite bool
	started time.Time
	drawn   int               // lines on the terminal that belong to us
	said    map[string]string // plain: the last line of each service
}

func newProgress(w io.Writer, rewrite bool) *progress {
	return &progress{w: w, rewrite: rewrite, started: time.Now(), said: map[string]string{}}
}

func (p *progress) show(st api.StackStatus) {
	var lines []string
	width := 0
	for _, s := range st.Services {
		width = max(width, len(s.Name))
	}
	services := slices.Clone(st.Services)
	if p.rewrite && len(services) >= p.rows()-2 {
		// Where not all have room, those that are not there yet come first.
		slices.SortStableFunc(services, func(x, y api.ServiceInfo) int {
			return cmp.Compare(boolInt(x.State == api.StateRunning), boolInt(y.State == api.StateRunning))
		})
	}
	for _, s := range services {
		text := fmt.Sprintf("%s %-9s", replicasText(s), s.State)
		if s.State != api.StateRunning && s.Message != "" {
			text += " " + s.Message
		}
		line := fmt.Sprintf("  %-*s  %s", width, s.Name, strings.TrimRight(text, " "))
		if !p.rewrite {
			p.line(st.Name+"/"+s.Name, text)
		}
		lines = append(lines, line)
	}
	if p.rewrite {
		p.draw(append(lines, fmt.Sprintf("  %s", short(time.Since(p.started)))))
	}
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// line says one thing about one subject; on a terminal it replaces all that
// was shown.
func (p *progress) line(subject, text string) {
	text = strings.TrimRight(text, " ")
	if p.rewrite {
		p.draw([]string{"  " + subject + ": " + text})
		return
	}
	if p.said[subject] == text {
		return
	}
	p.said[subject] = text
	fmt.Fprintf(p.w, "%s: %s\n", subject, text)
}

func (p *progress) draw(lines []string) {
	var b strings.Builder
	// What has scrolled out of the terminal cannot be rewritten.
	if most := p.rows() - 1; len(lines) > most {
		lines = append(lines[:most-1:most-1], fmt.Sprintf("  … and %d more", len(lines)-most+1))
	}
	if p.drawn > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", p.drawn)
	}
	width := p.columns()
	for _, l := range lines {
		if r := []rune(l); len(r) >= width {
			l = string(r[:width-1])
		}
		fmt.Fprintf(&b, "\r\x1b[2K%s\n", l)
	}
	for range max(0, p.drawn-len(lines)) {
		b.WriteString("\x1b[2K\n")
	}
	if extra := p.drawn - len(lines); extra > 0 {
		fmt.Fprintf(&b, "\x1b[%dA", extra)
	}
	p.drawn = len(lines)
	_, _ = io.WriteString(p.w, b.String()) // a closed terminal is no reason to stop
}

func (p *progress) columns() int { w, _ := p.size(); return w }

func (p *progress) rows() int { _, h := p.size(); return h }

func (p *progress) size() (columns, rows int) {
	if f, ok := p.w.(*os.File); ok {
		if w, h, err := term.GetSize(int(f.Fd())); err == nil && w > 20 && h > 4 {
			return w, h
		}
	}
	return 120, 25
}

// close leaves what is shown and starts a new line after it.
func (p *progress) close() { p.drawn = 0 }

// pause waits; it returns false when ctx ends before.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
