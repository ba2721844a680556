package keeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

func mustStatus(t testing.TB, c *Client) Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	s, err := c.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func expectLookup(t testing.TB, server, name, want string) {
	t.Helper()
	if got, err := lookup(server, "udp", name, dns.TypeA); got != want {
		t.Errorf("%s: got %s, %v, want %s", name, got, err, want)
	}
}

func TestKeeper(t *testing.T) {
	w := newWorld(t)
	c := w.ensure("1")
	ctx := w.ctx()
	s := mustStatus(t, c)
	if s.Version != "1" || s.PID == os.Getpid() || s.Resolvers != 0 {
		t.Errorf("status %+v", s)
	}
	// A second Ensure finds the same process.
	if again := mustStatus(t, w.ensure("1")); again.PID != s.PID {
		t.Errorf("a second keeper was started")
	}
	for _, f := range []string{sockName, pidName, lockName} {
		if fi, err := os.Stat(filepath.Join(w.dir, f)); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, fi, err)
		}
	}

	ns := w.namespace("ns")
	if err := c.SetDNS(ctx, []spec.Resolver{resolverOf("1-7", ns)}, tablesOf(name("web", "10.0.1.2"))); err != nil {
		t.Fatal(err)
	}
	server := w.server(ns)
	expectLookup(t, server, "web", "NOERROR 10.0.1.2")
	if err := c.SetDNS(ctx, []spec.Resolver{resolverOf("1-7", ns)}, tablesOf(name("web", "10.0.1.3"))); err != nil {
		t.Fatal(err)
	}
	expectLookup(t, server, "web", "NOERROR 10.0.1.3")

	// One resolver that cannot be served does not hurt the other.
	err := c.SetDNS(ctx, []spec.Resolver{resolverOf("1-8", filepath.Join(w.dir, "gone")), resolverOf("1-7", ns)}, tablesOf(name("web", "10.0.1.4")))
	if err == nil || !strings.Contains(err.Error(), "task 1-8: ") {
		t.Errorf("missing namespace: %v", err)
	}
	expectLookup(t, server, "web", "NOERROR 10.0.1.4")
	if s := mustStatus(t, c); s.Resolvers != 1 || len(s.Problems) != 1 {
		t.Errorf("status %+v", s)
	}
	// It is served once it can be.
	late := w.namespace("gone")
	eventually(t, "the late namespace is served", func() bool { return mustStatus(t, c).Resolvers == 2 })
	expectLookup(t, w.server(late), "web", "NOERROR 10.0.1.4")

	// A namespace that is exchanged under its path is let go of.
	os.Rename(w.namespace("other"), ns)
	if err := c.SetDNS(ctx, []spec.Resolver{resolverOf("1-7", ns)}, tablesOf(name("web", "10.0.1.5"))); err != nil {
		t.Fatal(err)
	}
	if again := w.server(ns); again == server {
		t.Error("the old namespace is still served")
	}
	expectLookup(t, w.server(ns), "web", "NOERROR 10.0.1.5")
	if err := c.SetDNS(ctx, nil, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := lookup(w.server(ns), "udp", "web", dns.TypeA); err == nil {
		t.Error("an unlisted resolver answers")
	}

	if err := c.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Status(ctx); !errors.Is(err, spec.ErrUnavailable) {
		t.Errorf("after the stop: %v", err)
	}
	if err := c.SetDNS(ctx, nil, nil); !errors.Is(err, spec.ErrUnavailable) {
		t.Errorf("after the stop: %v", err)
	}
	if err := c.Stop(ctx); err != nil {
		t.Errorf("stop again: %v", err)
	}
	left, _ := filepath.Glob(filepath.Join(w.dir, "keeper.*"))
	if diff := cmp.Diff([]string{filepath.Join(w.dir, lockName), filepath.Join(w.dir, logName)}, left); diff != "" {
		t.Error(diff)
	}
}

func TestKeeperLogs(t *testing.T) {
	w := newWorld(t)
	c := w.ensure("1")
	ctx := w.ctx()
	s := logSpec(w.dir)
	var out *os.File
	s.Stdout, out = w.fifo("out")
	bad := spec.LogSink{Task: "1-2", Stdout: filepath.Join(w.dir, "missing"), File: filepath.Join(w.dir, "x")}
	if err := c.SetLogs(ctx, []spec.LogSink{bad, s}); err == nil || !strings.Contains(err.Error(), "task 1-2: ") {
		t.Errorf("missing FIFO: %v", err)
	}
	has := func(file, want string) func() bool {
		return func() bool {
			if _, err := os.Stat(file); err != nil {
				return false
			}
			return string(readLog(t, file, "stdout")) == want
		}
	}
	out.WriteString("one\n")
	eventually(t, "the first line", has(s.File, "one\n"))
	// Other bounds, another file: nothing is lost on the way.
	s.MaxSize = 5000
	other := s
	other.File = filepath.Join(w.dir, "logs", "other")
	out.WriteString("two\n")
	eventually(t, "the second line", has(s.File, "one\ntwo\n"))
	if err := c.SetLogs(ctx, []spec.LogSink{s}); err != nil {
		t.Fatal(err)
	}
	if err := c.SetLogs(ctx, []spec.LogSink{other}); err != nil {
		t.Fatal(err)
	}
	out.WriteString("three\nfour")
	eventually(t, "the other file", has(other.File, "three\nfour"))
	// A sink that leaves the list is drained, though nothing ends its line.
	out.WriteString(" and five")
	out.Close()
	if err := c.SetLogs(ctx, nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all is drained", has(other.File, "three\nfour and five"))
	// A FIFO of the same path but made anew.
	os.Remove(s.Stdout)
	w.fifo("out")
	if err := c.SetLogs(ctx, []spec.LogSink{other}); err != nil {
		t.Fatal(err)
	}
	os.Remove(s.Stdout)
	_, out = w.fifo("out")
	if err := c.SetLogs(ctx, []spec.LogSink{other}); err != nil {
		t.Fatal(err)
	}
	out.WriteString("\nsix\n")
	eventually(t, "the new FIFO", has(other.File, "three\nfour and five\nsix\n"))
	// What is in the FIFO when the keeper is stopped is written.
	out.WriteString("the end")
	if err := c.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	if !has(other.File, "three\nfour and five\nsix\nthe end")() {
		t.Errorf("got %q", readLog(t, other.File, "stdout"))
	}
}

// TestKill: a keeper that is killed is back at once, also for names,
// and no line is missing; the last chunk may be there twice.
func TestKill(t *testing.T) {
	w := newWorld(t)
	ns := w.namespace("ns")
	s := logSpec(w.dir)
	var out *os.File
	s.Stdout, out = w.fifo("out")
	c := w.ensure("1")
	ctx, cancel := context.WithCancel(w.ctx())
	t.Cleanup(cancel) // before the keeper is stopped for good
	ran := make(chan error, 1)
	go func() { ran <- c.Run(ctx) }()
	if err := c.SetDNS(ctx, []spec.Resolver{resolverOf("1-7", ns)}, tablesOf(name("web", "10.0.1.2"))); err != nil {
		t.Fatal(err)
	}
	if err := c.SetLogs(ctx, []spec.LogSink{s}); err != nil {
		t.Fatal(err)
	}
	l := &load{t: t, stop: make(chan struct{}), tolerated: true}
	l.wg.Go(func() {
		for i := 0; !l.stopped(); i++ {
			fmt.Fprintf(out, "%d\n", i)
			l.written.Reset()
			fmt.Fprint(&l.written, i)
			if i%200 == 0 {
				time.Sleep(time.Millisecond) // a log of a size that can be read in a test
			}
		}
	})
	var slowest time.Duration
	for range 10 {
		var pid int
		eventually(t, "something is logged", func() bool {
			st, _ := c.Status(ctx)
			pid = st.PID
			return st.LogBytes > 50_000
		})
		began := time.Now()
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "names resolve", func() bool {
			// A query that the killed one had received is lost; clients repeat it.
			got, _ := lookupFor(100*time.Millisecond, w.server(ns), "udp", "web", dns.TypeA)
			return got == "NOERROR 10.0.1.2"
		})
		slowest = max(slowest, time.Since(began))
	}
	// Killed again and again it waits up to maxBackoff; the rest is for a busy machine.
	if slowest > maxBackoff+1500*time.Millisecond {
		t.Errorf("back after %v", slowest)
	}
	close(l.stop)
	l.wg.Wait()
	last := l.written.String()
	eventually(t, "the last line", func() bool { return bytes.Contains(readLogQuick(s.File), []byte(`{"log":"`+last+`\n"`)) })
	next, repeated := 0, 0
	for line := range strings.Lines(string(readLog(t, s.File, "stdout"))) {
		var i int
		if _, err := fmt.Sscanf(line, "%d\n", &i); err != nil {
			t.Fatalf("line %q: %v", line, err)
		}
		if i > next {
			t.Fatalf("after line %d comes %d", next-1, i)
		}
		if i < next {
			repeated++
		}
		next = i + 1
	}
	t.Logf("back after at most %v; %d lines, %d twice", slowest, next, repeated)

	// Without a daemon, the next keeper serves what the last was told.
	cancel()
	if err := <-ran; err != nil {
		t.Error(err)
	}
	unix.Kill(mustStatus(t, c).PID, unix.SIGKILL)
	eventually(t, "it is gone", func() bool {
		_, err := lookupFor(100*time.Millisecond, w.server(ns), "udp", "web", dns.TypeA)
		return err != nil
	})
	w.ensure("1")
	expectLookup(t, w.server(ns), "web", "NOERROR 10.0.1.2")
	out.WriteString("after\n")
	eventually(t, "a line after all that", func() bool { return bytes.Contains(readLogQuick(s.File), []byte(`{"log":"after\n"`)) })
}

// TestCallRestarts: without Run, a call starts the keeper that it needs.
func TestCallRestarts(t *testing.T) {
	w := newWorld(t)
	c := w.ensure("1")
	ns := w.namespace("ns")
	first := mustStatus(t, c).PID
	unix.Kill(first, unix.SIGKILL)
	if err := c.SetDNS(w.ctx(), []spec.Resolver{resolverOf("1-7", ns)}, tablesOf(name("web", "10.0.1.2"))); err != nil {
		t.Fatal(err)
	}
	expectLookup(t, w.server(ns), "web", "NOERROR 10.0.1.2")
}

// TestHung: a keeper that does not answer is ended and replaced.
func TestHung(t *testing.T) {
	w := newWorld(t)
	c := w.ensure("1")
	first := mustStatus(t, c).PID
	unix.Kill(first, unix.SIGSTOP)
	p, err := readPID(w.dir)
	if err != nil || p.PID != first {
		t.Fatalf("%+v, %v", p, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
	defer cancel()
	err = NewClient(w.dir).Stop(ctx)
	if !isTimeout(err) {
		t.Errorf("stop: %v", err)
	}
	if now, alive := processOf(first); alive == nil {
		t.Errorf("it is still there: %+v, was %+v, %v", now, p, err)
	}
	if again := mustStatus(t, w.ensure("1")); again.PID == first {
		t.Error("the same process answers")
	}
}

// TestTwoStart: of many that start at once, one serves.
func TestTwoStart(t *testing.T) {
	w := newWorld(t)
	var wg sync.WaitGroup
	pids := make([]int, 6)
	for i := range pids {
		wg.Go(func() { pids[i] = mustStatus(t, w.ensure("1")).PID })
	}
	wg.Wait()
	for _, pid := range pids {
		if pid != pids[0] {
			t.Fatalf("processes %v", pids)
		}
	}
}

func TestKillOther(t *testing.T) {
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	p, err := processOf(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	other := p
	other.Start--
	if err := other.kill(context.Background()); err != nil {
		t.Fatal(err)
	}
	if now, err := processOf(p.PID); err != nil || now != p {
		t.Errorf("another process under the same PID was killed: %v", err)
	}
	if err := p.kill(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, err := processOf(p.PID); err == nil {
		t.Error("the process is still there")
	}
}

func TestEnsureFails(t *testing.T) {
	w := newWorld(t)
	c := w.config("1")
	c.Binary = "/bin/false"
	if _, err := Ensure(w.ctx(), c); !errors.Is(err, spec.ErrUnavailable) {
		t.Errorf("a program that ends: %v", err)
	}
	c = w.config("1")
	if err := os.Mkdir(filepath.Join(w.dir, lockName), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := Ensure(w.ctx(), c); err == nil || !strings.Contains(err.Error(), lockName) {
		t.Errorf("no lock: %v", err)
	}
	if code := Main([]string{"--bogus"}); code != 2 {
		t.Errorf("exit code %d", code)
	}
}

// TestStrangers: nonsense on the control socket harms nobody.
func TestStrangers(t *testing.T) {
	w := newWorld(t)
	c := w.ensure("1")
	for _, b := range []string{"", "x", "\xff\xff\xff\xff", "\x00\x00\x00\x02{}", "\x00\x00\x00\x05hello", "\x00\x00\x01\x00{", "GET / HTTP/1.1\r\n\r\n"} {
		conn, err := net.Dial("unix", filepath.Join(w.dir, sockName))
		if err != nil {
			t.Fatal(err)
		}
		conn.Write([]byte(b))
		conn.Close()
	}
	p, err := dialControl(w.ctx(), w.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer p.c.Close()
	if m, err := p.call(message{Op: "dance"}); err != nil || !errors.Is(m.fault(), spec.ErrInvalid) {
		t.Errorf("%+v, %v", m, err)
	}
	mustStatus(t, c)
}
