package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// testLog writes a log as the keeper does.
type testLog struct {
	t   *testing.T
	dir string
	n   int
}

func (l *testLog) path(n int) string {
	if n == 0 {
		return filepath.Join(l.dir, "log")
	}
	return fmt.Sprintf("%s.%d", filepath.Join(l.dir, "log"), n)
}

func (l *testLog) raw(s string) {
	l.t.Helper()
	f, err := os.OpenFile(l.path(0), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		l.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(s); err != nil {
		l.t.Fatal(err)
	}
}

// write appends n lines, numbered through; line i is i seconds after t0.
func (l *testLog) write(n int) {
	l.t.Helper()
	var b strings.Builder
	for range n {
		r, err := json.Marshal(logRecord{Log: fmt.Sprintf("line %d\n", l.n), Stream: "stdout", Time: at(float64(l.n))})
		if err != nil {
			l.t.Fatal(err)
		}
		b.Write(append(r, '\n'))
		l.n++
	}
	l.raw(b.String())
}

func (l *testLog) rotate(keep int) {
	l.t.Helper()
	os.Remove(l.path(keep - 1))
	for n := keep - 2; n >= 0; n-- {
		if err := os.Rename(l.path(n), l.path(n+1)); err != nil && !os.IsNotExist(err) {
			l.t.Fatal(err)
		}
	}
	l.raw("")
}

func readAll(t *testing.T, dir string, o LogOptions) string {
	t.Helper()
	var out []string
	if err := ReadLogs(t.Context(), dir, o, func(l LogLine) error { out = append(out, strings.TrimPrefix(l.Text, "line ")); return nil }); err != nil {
		t.Fatal(err)
	}
	return strings.Join(out, " ")
}

func TestReadLogs(t *testing.T) {
	l := &testLog{t: t, dir: t.TempDir()}
	l.write(3)
	l.rotate(3)
	l.write(2)
	l.rotate(3)
	l.write(2)
	tests := []struct {
		o    LogOptions
		want string
	}{
		{LogOptions{Tail: -1}, "0 1 2 3 4 5 6"},
		{LogOptions{Tail: 0}, ""},
		{LogOptions{Tail: 1}, "6"},
		{LogOptions{Tail: 2}, "5 6"},
		{LogOptions{Tail: 3}, "4 5 6"},
		{LogOptions{Tail: 5}, "2 3 4 5 6"},
		{LogOptions{Tail: 7}, "0 1 2 3 4 5 6"},
		{LogOptions{Tail: 100}, "0 1 2 3 4 5 6"},
		{LogOptions{Tail: -1, Since: at(3)}, "3 4 5 6"},
		{LogOptions{Tail: 2, Since: at(6)}, "6"},
	}
	for _, tt := range tests {
		if got := readAll(t, l.dir, tt.o); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.o, got, tt.want)
		}
	}
	if got := readAll(t, filepath.Join(l.dir, "none"), LogOptions{Tail: -1}); got != "" {
		t.Errorf("a log that does not exist: %q", got)
	}
}

func TestReadLogsDamaged(t *testing.T) {
	l := &testLog{t: t, dir: t.TempDir()}
	l.write(1)
	l.raw("{\"log\":\"torn\n")
	l.raw(strings.Repeat("\x00", 3<<20) + "\n") // a hole
	l.write(1)
	l.raw(`{"log":"half`)
	if got := readAll(t, l.dir, LogOptions{Tail: -1}); got != "0 1" {
		t.Errorf("%q", got)
	}
}

func TestReadLogsLong(t *testing.T) {
	l := &testLog{t: t, dir: t.TempDir()}
	l.write(1)
	r, err := json.Marshal(logRecord{Log: strings.Repeat("x", 300<<10), Stream: "stderr"})
	if err != nil {
		t.Fatal(err)
	}
	l.raw(string(r) + "\n")
	l.write(1)
	var got []LogLine
	if err := ReadLogs(t.Context(), l.dir, LogOptions{Tail: 2}, func(x LogLine) error { got = append(got, x); return nil }); err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || len(got[0].Text) != 300<<10 || !got[0].Partial || got[0].Stream != "stderr" || got[1].Partial {
		t.Errorf("%d lines", len(got))
	}
}

// TestFollow writes and rotates while a reader follows: every line comes once.
func TestFollow(t *testing.T) {
	for _, exists := range []bool{true, false} {
		t.Run(fmt.Sprintf("log exists %v", exists), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "log")
			if exists {
				if err := os.Mkdir(dir, 0o700); err != nil {
					t.Fatal(err)
				}
			}
			const lines = 2000
			var seen, over atomic.Int64
			result := make(chan error, 1)
			go func() {
				next := int64(0)
				result <- ReadLogs(t.Context(), dir, LogOptions{Tail: -1, Follow: true, Done: func() bool { return over.Load() == 1 }}, func(x LogLine) error {
					if want := fmt.Sprintf("line %d", next); x.Text != want {
						return fmt.Errorf("got %q, want %q", x.Text, want)
					}
					next++
					seen.Store(next)
					return nil
				})
			}()
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			l := &testLog{t: t, dir: dir}
			for l.n < lines {
				l.write(7)
				// The reader may lag by two files at most, or it would rightly miss some.
				for seen.Load() < int64(l.n-50) {
					select {
					case err := <-result:
						t.Fatal(err)
					default:
					}
				}
				if l.n%49 == 0 {
					l.rotate(4)
				}
			}
			over.Store(1)
			if err := <-result; err != nil {
				t.Fatal(err)
			}
			if seen.Load() != int64(l.n) {
				t.Errorf("%d lines of %d", seen.Load(), l.n)
			}
		})
	}
}

// TestReadLogsEnds reads a log that is written and rotated all the time: the
// reader ends where the log ended when it was called.
func TestReadLogsEnds(t *testing.T) {
	l := &testLog{t: t, dir: t.TempDir()}
	l.write(20)
	// busy writes and rotates everything away that there was.
	busy := func() {
		for range 3 {
			l.write(5)
			l.rotate(3)
			l.write(5)
		}
	}
	for _, tail := range []int{-1, 0, 1, 12, 19, 1000} {
		l.rotate(3)
		l.write(7)
		end, first, next := l.n, -1, -1
		err := ReadLogs(t.Context(), l.dir, LogOptions{Tail: tail}, func(x LogLine) error {
			var n int
			if _, err := fmt.Sscanf(x.Text, "line %d", &n); err != nil {
				return err
			}
			if next >= 0 && n != next {
				return fmt.Errorf("line %d, want %d", n, next)
			}
			if first < 0 {
				first = n
			}
			next = n + 1
			busy()
			return nil
		})
		switch {
		case err != nil:
			t.Errorf("tail %d: %v", tail, err)
		case tail == 0 && next != -1:
			t.Errorf("tail 0 began at %d", first)
		case tail != 0 && next != end:
			t.Errorf("tail %d: ended before line %d, want %d", tail, next, end)
		case tail > 0 && tail < 20 && first != end-tail:
			t.Errorf("tail %d: began with line %d of %d", tail, first, end)
		}
	}
}

// TestReadLogsBesideWriter reads while another goroutine writes and rotates
// without a pause: every read ends, in order and without gaps.
func TestReadLogsBesideWriter(t *testing.T) {
	l := &testLog{t: t, dir: t.TempDir()}
	l.write(1)
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !stop.Load() {
			l.write(9)
			if l.n%200 < 9 {
				l.rotate(4)
			}
		}
	}()
	for i := range 40 {
		last := -1
		err := ReadLogs(t.Context(), l.dir, LogOptions{Tail: []int{-1, 30}[i%2]}, func(x LogLine) error {
			var n int
			if _, err := fmt.Sscanf(x.Text, "line %d", &n); err != nil {
				return err
			}
			if last >= 0 && n != last+1 {
				return fmt.Errorf("line %d after line %d", n, last)
			}
			last = n
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	stop.Store(true)
	<-done
	// Between a rotation and the next record there is no newest file.
	os.Remove(l.path(0))
	if got := readAll(t, l.dir, LogOptions{Tail: 0}); got != "" {
		t.Errorf("%q", got)
	}
}

func TestFollowEnds(t *testing.T) {
	l := &testLog{t: t, dir: t.TempDir()}
	l.write(1)
	ctx, cancel := context.WithCancel(t.Context())
	err := ReadLogs(ctx, l.dir, LogOptions{Tail: -1, Follow: true}, func(LogLine) error { cancel(); return nil })
	if err != nil {
		t.Errorf("end of the context: %v", err)
	}
	broken := errors.New("receiver is gone")
	err = ReadLogs(t.Context(), l.dir, LogOptions{Tail: -1, Follow: true}, func(LogLine) error { return broken })
	if !errors.Is(err, broken) {
		t.Errorf("error of the receiver: %v", err)
	}
}

// TestTailIsCheap reads the end of a large log without reading all of it.
func TestTailIsCheap(t *testing.T) {
	l := &testLog{t: t, dir: t.TempDir()}
	l.write(20000)
	f, err := os.Open(l.path(0))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	c := &countingReader{File: f}
	n, _, err := seekLines(c, 10)
	if err != nil || n != 10 || c.read > 64<<10 {
		t.Errorf("%d lines, %d bytes read, %v", n, c.read, err)
	}
}

type countingReader struct {
	*os.File
	read int
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.File.Read(p)
	c.read += n
	return n, err
}

func TestLastLogWaitsForTheFIFO(t *testing.T) {
	if got := clip(strings.Repeat("é", 150), lastLineBytes-1); len(got) != 198 {
		t.Errorf("clipped to %d bytes", len(got))
	}
	start := time.Now()
	if got := lastLog(t.Context(), nil, t.TempDir()); got != nil || time.Since(start) > time.Second {
		t.Errorf("without a log: %q after %s", got, time.Since(start))
	}
}
