package agent

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

// sinkList is the whole list of log sinks of the node, handed over whenever it
// changes. Changes that come while it is being handed over share the next turn.
type sinkList struct {
	logs Logs
	turn chan struct{} // a token while nobody hands over

	mu     sync.Mutex
	sinks  map[spec.TaskID]spec.LogSink // :: what ought to be drained
	change uint64                       // counts changes of sinks
	done   uint64                       // newest change that was handed over
}

func newSinkList(l Logs) *sinkList {
	s := &sinkList{logs: l, turn: make(chan struct{}, 1), sinks: map[spec.TaskID]spec.LogSink{}}
	s.turn <- struct{}{}
	return s
}

// add returns when k is being drained.
func (s *sinkList) add(ctx context.Context, k spec.LogSink) error {
	s.want(k)
	s.mu.Lock()
	want := s.change
	s.mu.Unlock()
	return s.handOver(ctx, want)
}

// want puts k on the list; the next handing over tells.
func (s *sinkList) want(k spec.LogSink) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, ok := s.sinks[k.Task]; !ok || old != k {
		s.sinks[k.Task] = k
		s.change++
	}
}

// drop takes a task's sink off the list; the next handing over tells.
func (s *sinkList) drop(ctx context.Context, t spec.TaskID) error {
	s.mu.Lock()
	if _, ok := s.sinks[t]; ok {
		delete(s.sinks, t)
		s.change++
	}
	want := s.change
	s.mu.Unlock()
	return s.handOver(ctx, want)
}

// has reports whether output of t may still come.
func (s *sinkList) has(t spec.TaskID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.sinks[t]
	return ok
}

// again hands the list over as it is, for a keeper that may have lost it.
func (s *sinkList) again(ctx context.Context) error {
	s.mu.Lock()
	s.change++
	want := s.change
	s.mu.Unlock()
	return s.handOver(ctx, want)
}

func (s *sinkList) handOver(ctx context.Context, want uint64) error {
	select {
	case <-s.turn:
		defer func() { s.turn <- struct{}{} }()
	case <-ctx.Done():
		return ctx.Err()
	}
	s.mu.Lock()
	list := slices.SortedFunc(maps.Values(s.sinks), func(a, b spec.LogSink) int { return cmp.Compare(a.Task, b.Task) })
	now, done := s.change, s.done
	s.mu.Unlock()
	if done >= want {
		return nil
	}
	if err := s.logs.SetLogs(ctx, list); err != nil {
		return fmt.Errorf("hand over log sinks: %w", err)
	}
	s.mu.Lock()
	s.done = now
	s.mu.Unlock()
	return nil
}

// The last lines that an attempt keeps.
const (
	lastLines     = 5
	lastLineBytes = 200
	// drainWait bounds the wait for the output of a process that has ended.
	drainWait = 250 * time.Millisecond
)

// lastLog returns the last lines of a task's log, after what the process wrote
// has left its FIFOs.
func lastLog(ctx context.Context, k *spec.LogSink, dir string) []string {
	if k == nil {
		return nil
	}
	end := time.Now().Add(drainWait)
	for fifoBytes(k.Stdout)+fifoBytes(k.Stderr) > 0 && time.Now().Before(end) {
		if !sleep(ctx, 5*time.Millisecond) {
			return nil
		}
	}
	var out []string
	err := ReadLogs(ctx, dir, LogOptions{Tail: lastLines}, func(l LogLine) error {
		out = append(out, clip(l.Text, lastLineBytes))
		return nil
	})
	if err != nil {
		return nil // the reason of an end is told without them, too
	}
	return out
}

// fifoBytes is how much a FIFO holds; reading is left to the keeper.
func fifoBytes(path string) int {
	if path == "" {
		return 0
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	n, err := unix.IoctlGetInt(fd, unix.TIOCINQ)
	if err != nil {
		return 0
	}
	return n
}

// clip shortens s to n bytes at a rune's edge.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xc0 == 0x80 {
		n--
	}
	return s[:n]
}
