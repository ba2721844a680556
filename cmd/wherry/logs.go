package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"wherry.dev/api"
	"wherry.dev/spec"
)

func (a *app) logsCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "logs STACK[/SERVICE]|TASK", Short: "Print what containers wrote, also of tasks that are over", Args: someArgs("one STACK, STACK/SERVICE or task", 1, 1),
	}
	follow := c.Flags().BoolP("follow", "f", false, "go on with what is being written, also by new tasks")
	tail := c.Flags().String("tail", "all", "number of last lines of each task to begin with")
	since := c.Flags().String("since", "", "only lines since a time (2026-01-02T15:04:05Z) or a duration ago (10m)")
	stamps := c.Flags().BoolP("timestamps", "t", false, "begin each line with its time")
	c.RunE = func(c *cobra.Command, args []string) error {
		o := api.LogOptions{Tail: -1, Follow: *follow}
		if *tail != "all" {
			n, err := strconv.Atoi(*tail)
			if err != nil || n < 0 {
				return exitWith(exitUsage, "--tail %q: want a number of lines, or all", *tail)
			}
			o.Tail = n
		}
		var err error
		if o.Since, err = parseSince(*since, time.Now()); err != nil {
			return err
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		lw := &logWriter{w: a.out, stamps: *stamps, colour: a.colour()}
		err = a.printLogs(c.Context(), cl, args[0], o, lw)
		if c.Context().Err() != nil {
			return &exitError{code: exitInterrupted}
		}
		return err
	}
	return c
}

func parseSince(s string, now time.Time) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, exitWith(exitUsage, "--since %q: want a duration such as 10m, or a time such as 2026-01-02T15:04:05Z", s)
}

// printLogs prints the logs of one task, or of all tasks of a service or stack.
func (a *app) printLogs(ctx context.Context, cl *api.Client, ref string, o api.LogOptions, lw *logWriter) error {
	stack, service, isService := spec.SplitServiceKey(ref)
	if !isService {
		t, err := cl.Task(ctx, ref)
		if err == nil {
			return followTask(ctx, cl, t.ID, o, func(l api.LogLine) error { return lw.print("", l) })
		}
		if !errors.Is(err, spec.ErrNotFound) {
			return err
		}
	}
	l, err := cl.Tasks(ctx, api.TaskFilter{Stack: stack, Service: service}, api.Poll{})
	if err != nil {
		if !isService && errors.Is(err, spec.ErrNotFound) {
			return spec.NotFoundf("there is no stack and no task called %q; `wherry ls` and `wherry ps` list them", ref)
		}
		return err
	}
	if !o.Follow {
		return mergeLogs(ctx, cl, l.Items, o, lw)
	}
	return followLogs(ctx, cl, api.TaskFilter{Stack: stack, Service: service}, l, o, lw)
}

// mergeLogs prints the logs of several tasks in the order of time. It holds no
// more than a few lines of each.
func mergeLogs(ctx context.Context, cl *api.Client, tasks []api.TaskInfo, o api.LogOptions, lw *logWriter) error {
	g, ctx := errgroup.WithContext(ctx)
	var streams []*logStream
	for _, t := range tasks {
		if t.NodeID == "" {
			continue
		}
		s := &logStream{task: t.Name, lines: make(chan api.LogLine, 64)}
		streams = append(streams, s)
		g.Go(func() error {
			defer close(s.lines)
			err := cl.Logs(ctx, string(t.ID), o, func(l api.LogLine) error {
				select {
				case s.lines <- l:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			})
			if err != nil && !errors.Is(err, spec.ErrNotFound) {
				return fmt.Errorf("logs of %s: %w", t.Name, err)
			}
			return nil
		})
	}
	g.Go(func() error {
		for _, s := range streams {
			s.next()
		}
		for {
			s := oldest(streams)
			if s == nil {
				return nil
			}
			if err := lw.print(s.task, *s.head); err != nil {
				return err
			}
			s.next()
		}
	})
	return g.Wait()
}

// logStream is the log of one task, of which head is the next line to be
// printed; nil when the log has ended.
type logStream struct {
	task  string
	lines chan api.LogLine
	head  *api.LogLine
}

func (s *logStream) next() {
	s.head = nil
	if l, ok := <-s.lines; ok {
		s.head = &l
	}
}

func oldest(streams []*logStream) *logStream {
	var first *logStream
	for _, s := range streams {
		if s.head != nil && (first == nil || s.head.Time.Before(first.head.Time)) {
			first = s
		}
	}
	return first
}

// followLogs prints the logs of all tasks that match, also of those that come
// later, until ctx ends.
func followLogs(ctx context.Context, cl *api.Client, f api.TaskFilter, l api.List[api.TaskInfo], o api.LogOptions, lw *logWriter) error {
	g, ctx := errgroup.WithContext(ctx)
	seen := map[spec.TaskID]bool{}
	for first := true; ; first = false {
		for _, t := range l.Items {
			if seen[t.ID] || t.NodeID == "" || !first && t.State.Terminal() {
				continue
			}
			seen[t.ID] = true
			opts := o
			if !first {
				opts.Tail = -1 // a task that is new has said nothing that was missed on purpose
			}
			g.Go(func() error {
				err := followTask(ctx, cl, t.ID, opts, func(ll api.LogLine) error { return lw.print(t.Name, ll) })
				if err != nil && !errors.Is(err, spec.ErrNotFound) && ctx.Err() == nil {
					return fmt.Errorf("logs of %s: %w", t.Name, err)
				}
				return nil
			})
		}
		next, err := cl.Tasks(ctx, f, api.Poll{Index: l.Index, Wait: time.Minute})
		switch {
		case err == nil:
			l = next
		case ctx.Err() != nil:
			return g.Wait()
		case errors.Is(err, spec.ErrNotFound):
			return g.Wait() // the stack is gone; what its tasks still say is printed
		case !pause(ctx, followPause):
			return g.Wait()
		}
	}
}

// followTask calls fn for each line of a task's log. A stream that is to be
// followed is taken up again where it broke off, as when the daemon restarts.
func followTask(ctx context.Context, cl *api.Client, id spec.TaskID, o api.LogOptions, fn func(api.LogLine) error) error {
	for {
		var failed error // of fn
		err := cl.Logs(ctx, string(id), o, func(l api.LogLine) error {
			o.Since, o.Tail = l.Time.Add(1), -1
			failed = fn(l)
			return failed
		})
		if err == nil || !o.Follow || failed != nil || errors.Is(err, spec.ErrNotFound) || !pause(ctx, followPause) {
			return err
		}
	}
}

// followPause is before a log that broke off is followed again.
const followPause = 500 * time.Millisecond

// logWriter prints lines of several tasks, one at a time.
type logWriter struct {
	mu     sync.Mutex
	w      io.Writer
	stamps bool
	colour bool
	width  int
}

func (lw *logWriter) print(task string, l api.LogLine) error {
	lw.mu.Lock()
	defer lw.mu.Unlock()
	var b strings.Builder
	if task != "" {
		lw.width = max(lw.width, len(task))
		name := fmt.Sprintf("%-*s", lw.width, task)
		if lw.colour {
			name = fmt.Sprintf("\x1b[%dm%s\x1b[0m", 31+hash(task)%6, name)
		}
		b.WriteString(name + " | ")
	}
	if lw.stamps {
		b.WriteString(l.Time.Format("2006-01-02T15:04:05.000Z07:00") + " ")
	}
	b.WriteString(l.Log)
	if task != "" && !strings.HasSuffix(l.Log, "\n") {
		b.WriteByte('\n')
	}
	_, err := io.WriteString(lw.w, b.String())
	return err
}

func hash(s string) int {
	h := 0
	for _, r := range s {
		h = (h*31 + int(r)) & 0xffff
	}
	return h
}
