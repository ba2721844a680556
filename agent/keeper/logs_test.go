package keeper

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

func logSpec(dir string) spec.LogSink {
	return spec.LogSink{Task: "1-1", File: filepath.Join(dir, "logs", "1-1", "log"), MaxSize: 1 << 30, MaxFiles: 3}
}

func appendText(w *logFile, text string) {
	w.append(nil, []byte(text), "stdout", time.Unix(1, 0), true)
}

func TestRotation(t *testing.T) {
	for _, files := range []int{1, 2, 4} {
		t.Run(fmt.Sprint(files), func(t *testing.T) {
			s := logSpec(t.TempDir())
			s.MaxSize, s.MaxFiles = 2000, files
			w := newLogFile(s, new(counters))
			defer w.close()
			var written []string
			for i := range 500 {
				line := fmt.Sprintf("line %d\n", i)
				appendText(w, line+"second\n")
				written = append(written, line, "second\n")
			}
			entries, err := os.ReadDir(filepath.Dir(s.File))
			if err != nil || len(entries) != files {
				t.Fatalf("%d files, not %d: %v", len(entries), files, err)
			}
			for _, e := range entries {
				if fi, _ := e.Info(); fi.Size() > s.MaxSize {
					t.Errorf("%s has %d bytes", e.Name(), fi.Size())
				}
			}
			var got []string
			for _, r := range readRecords(t, s.File) {
				got = append(got, r.Log)
			}
			if diff := cmp.Diff(written[len(written)-len(got):], got); diff != "" || len(got) < 10 {
				t.Errorf("%d lines are kept\n%s", len(got), diff)
			}
		})
	}
}

// TestRotateLongLine: a record larger than a file has one to itself.
func TestRotateLongLine(t *testing.T) {
	s := logSpec(t.TempDir())
	s.MaxSize = 100
	w := newLogFile(s, new(counters))
	defer w.close()
	for range 5 {
		appendText(w, strings.Repeat("x", 3000)+"\n")
	}
	if got := readRecords(t, s.File); len(got) != s.MaxFiles {
		t.Errorf("%d records in %d files", len(got), s.MaxFiles)
	}
}

// TestTornRecord: what a crash in the middle of a write left is removed.
func TestTornRecord(t *testing.T) {
	s := logSpec(t.TempDir())
	w := newLogFile(s, new(counters))
	appendText(w, "one\n")
	whole := w.size
	appendText(w, "two\n")
	w.close()
	for cut := w.size - 1; cut >= whole; cut-- {
		if err := os.Truncate(s.File, cut); err != nil {
			t.Fatal(err)
		}
		w := newLogFile(s, new(counters))
		appendText(w, "two\n")
		w.close()
		if got := readLog(t, s.File, "stdout"); string(got) != "one\ntwo\n" {
			t.Fatalf("cut at %d: %q", cut, got)
		}
	}
	// A file that is one torn record.
	if err := os.WriteFile(s.File, []byte(`{"log":"on`), 0o600); err != nil {
		t.Fatal(err)
	}
	w = newLogFile(s, new(counters))
	appendText(w, "one\n")
	w.close()
	if got := readLog(t, s.File, "stdout"); string(got) != "one\n" {
		t.Fatalf("got %q", got)
	}
}

// TestFullDisk: what cannot be written is dropped, counted and told.
func TestFullDisk(t *testing.T) {
	s := logSpec(t.TempDir())
	c := new(counters)
	w := newLogFile(s, c)
	defer w.close()
	appendText(w, "before\n")
	w.close()
	full, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.f = full
	// The device cannot be truncated, so the failed write also closes it.
	appendText(w, "lost\nlost too\n")
	if w.lost.Records != 2 || c.droppedBytes.Load() != 14 {
		t.Errorf("%+v, %d bytes", w.lost, c.droppedBytes.Load())
	}
	appendText(w, "after\n")
	var got []string
	for _, r := range readRecords(t, s.File) {
		got = append(got, r.Stream+": "+r.Log)
	}
	want := []string{"stdout: before\n", "stderr: wherry: 2 lines (14 bytes) of output were dropped: no space left on device\n", "stdout: after\n"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestBadFolder: a log that cannot be opened holds up nothing, and begins when
// it can.
func TestBadFolder(t *testing.T) {
	dir := t.TempDir()
	s := logSpec(dir)
	if err := os.WriteFile(filepath.Join(dir, "logs"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	w := newLogFile(s, new(counters))
	defer w.close()
	appendText(w, "lost\n")
	os.Remove(filepath.Join(dir, "logs"))
	appendText(w, "kept\n")
	if got := readLog(t, s.File, "stdout"); string(got) != "kept\n" {
		t.Errorf("got %q", got)
	}
	if got := readLog(t, s.File, "stderr"); !strings.Contains(string(got), "1 lines (5 bytes) of output were dropped: not a directory") {
		t.Errorf("got %q", got)
	}
}

// TestRemovedFile: a file that somebody moved away is begun anew.
func TestRemovedFile(t *testing.T) {
	s := logSpec(t.TempDir())
	w := newLogFile(s, new(counters))
	defer w.close()
	appendText(w, "old\n")
	if err := os.Rename(s.File, s.File+".moved"); err != nil {
		t.Fatal(err)
	}
	w.check()
	appendText(w, "new\n")
	if got := readLog(t, s.File, "stdout"); string(got) != "new\n" {
		t.Errorf("got %q", got)
	}
}

// startSink drains two FIFOs within the test.
func startSink(t testing.TB, w *world, s spec.LogSink) (k *sink, stdout, stderr *os.File) {
	t.Helper()
	s.Stdout, stdout = w.fifo("stdout")
	s.Stderr, stderr = w.fifo("stderr")
	sl := newSlots(1)
	k, err := openSink(s, nil, sl, new(counters), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	k.start()
	t.Cleanup(func() { k.stop(); k.close(); sl.close() })
	return k, stdout, stderr
}

func TestSink(t *testing.T) {
	w := newWorld(t)
	s := logSpec(w.dir)
	_, stdout, stderr := startSink(t, w, s)
	texts := func() (out []string) {
		for _, r := range readRecords(t, s.File) {
			out = append(out, r.Stream+" "+r.Log)
		}
		return out
	}
	var want []string
	expect := func(more ...string) {
		t.Helper()
		want = append(want, more...)
		eventually(t, strings.Join(more, ""), func() bool { return len(texts()) >= len(want) })
		if diff := cmp.Diff(want, texts()); diff != "" {
			t.Fatal(diff)
		}
	}
	stdout.WriteString("hello\n")
	expect("stdout hello\n")
	stderr.WriteString("oh\nno\n")
	expect("stderr oh\n", "stderr no\n")
	// A line in pieces is one record.
	stdout.WriteString("in ")
	stdout.WriteString("pieces\n")
	expect("stdout in pieces\n")
	// A prompt shows before it is answered.
	began := time.Now()
	stdout.WriteString("password: ")
	expect("stdout password: ")
	if d := time.Since(began); d < partialAfter/2 {
		t.Errorf("an unfinished line was written after %v", d)
	}
	stdout.WriteString("\n")
	expect("stdout \n")
	// A character in two writes.
	stdout.WriteString("caf\xc3")
	expect("stdout caf")
	stdout.WriteString("\xa9\n")
	eventually(t, "the rest", func() bool {
		return strings.HasSuffix(string(readLog(t, s.File, "stdout")), "\n\n") || strings.Count(string(readLog(t, s.File, "stdout")), "\n") == 4
	})
}

// TestVolume: everything arrives, in order, whatever the sizes of the writes.
func TestVolume(t *testing.T) {
	w := newWorld(t)
	s := logSpec(w.dir)
	_, stdout, stderr := startSink(t, w, s)
	r := rand.New(rand.NewPCG(1, 2))
	var want bytes.Buffer
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 2000 {
			fmt.Fprintf(stderr, "error %d\n", i)
		}
	}()
	for want.Len() < 8<<20 {
		line := make([]byte, int(1)<<r.IntN(17))
		for i := range line {
			line[i] = byte(' ' + r.IntN(90))
		}
		if r.IntN(4) > 0 {
			line[len(line)-1] = '\n'
		}
		want.Write(line)
		stdout.Write(line)
	}
	stdout.WriteString("\n")
	want.WriteString("\n")
	<-done
	eventually(t, "all arrived", func() bool {
		return len(readLogQuick(s.File)) > 0 && bytes.Equal(readLog(t, s.File, "stdout"), want.Bytes())
	})
	var errors bytes.Buffer
	for i := range 2000 {
		fmt.Fprintf(&errors, "error %d\n", i)
	}
	if diff := cmp.Diff(errors.String(), string(readLog(t, s.File, "stderr"))); diff != "" {
		t.Error(diff)
	}
}

func readLogQuick(file string) []byte {
	b, _ := os.ReadFile(file)
	if len(b) == 0 || b[len(b)-1] != '\n' {
		return nil
	}
	return b
}

// TestDrain: a sink ends with its output, or after a while when its writer
// does not end.
func TestDrain(t *testing.T) {
	for _, x := range []struct {
		name     string
		closeAll bool
		atLeast  time.Duration
	}{{"writer ends", true, 0}, {"writer stays", false, drainTime}} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			s := logSpec(w.dir)
			k, stdout, stderr := startSink(t, w, s)
			k.stop()
			stdout.WriteString("last words\nand no end")
			os.Remove(k.spec.Stdout) // the folder of a task may be gone already
			if x.closeAll {
				stdout.Close()
				stderr.Close()
			}
			began := time.Now()
			k.drain(context.Background())
			d := time.Since(began)
			if d < x.atLeast || d > x.atLeast+time.Second {
				t.Errorf("drained for %v", d)
			}
			if got := readLog(t, s.File, "stdout"); string(got) != "last words\nand no end" {
				t.Errorf("got %q", got)
			}
		})
	}
}

// TestFragments: a pipe that is full of tiny pieces without a newline does not
// stop.
func TestFragments(t *testing.T) {
	w := newWorld(t)
	s := logSpec(w.dir)
	_, stdout, _ := startSink(t, w, s)
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	const n = 64 // a pipe has 16 slots
	fifo := int(stdout.Fd())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range n {
			unix.Write(p[1], []byte("."))
			unix.Splice(p[0], nil, fifo, nil, 1, 0)
		}
	}()
	defer func() { <-done }()
	eventually(t, "all dots", func() bool { return len(readLog(t, s.File, "stdout")) == n })
}

func TestNoFIFO(t *testing.T) {
	w := newWorld(t)
	s := logSpec(w.dir)
	s.Stdout = filepath.Join(w.dir, "missing")
	sl := newSlots(1)
	if _, err := openSink(s, nil, sl, new(counters), slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), s.Stdout) {
		t.Errorf("missing: %v", err)
	}
	s.Stdout = w.namespace("plain")
	if _, err := openSink(s, nil, sl, new(counters), slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "not a FIFO") {
		t.Errorf("plain file: %v", err)
	}
}

func BenchmarkFlood(b *testing.B) {
	line := []byte(strings.Repeat("x", 99) + "\n")
	batch := bytes.Repeat(line, 300) // as a program with buffered output writes
	for _, x := range []struct {
		name  string
		write []byte
	}{{"line", line}, {"batch", batch}} {
		b.Run(x.name, func(b *testing.B) {
			w := newWorld(b)
			s := logSpec(w.dir)
			s.MaxSize = 10 << 20
			k, stdout, _ := startSink(b, w, s)
			b.SetBytes(int64(len(x.write)))
			var before, after unix.Rusage
			unix.Getrusage(unix.RUSAGE_SELF, &before)
			var n int64
			for b.Loop() {
				stdout.Write(x.write)
				n += int64(len(x.write))
			}
			for k.file.count.logBytes.Load() < uint64(n) {
				time.Sleep(time.Millisecond)
			}
			unix.Getrusage(unix.RUSAGE_SELF, &after)
			cpu := float64(after.Utime.Nano()-before.Utime.Nano()+after.Stime.Nano()-before.Stime.Nano()) / 1e9
			b.ReportMetric(cpu/(float64(n)/1e9), "cpu-s/GB")
		})
	}
}

func BenchmarkRecords(b *testing.B) {
	data := bytes.Repeat([]byte("2026-01-01 info \"GET /index.html\" 200 from 10.0.0.1 in 3 ms, cached\n"), 900)
	w := newLogFile(logSpec(b.TempDir()), new(counters))
	w.maxSize = 10 << 20
	defer w.close()
	b.SetBytes(int64(len(data)))
	var buf []byte
	for b.Loop() {
		_, buf = w.append(buf, data, "stdout", time.Unix(1, 0), false)
	}
}
