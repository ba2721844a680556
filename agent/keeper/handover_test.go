package keeper

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"wherry.dev/spec"
)

// load asks and writes without a pause, until done.
type load struct {
	t         *testing.T
	stop      chan struct{}
	wg        sync.WaitGroup
	written   bytes.Buffer
	answers   atomic.Int64
	failures  atomic.Int64
	tolerated bool
}

// newLoad starts writing lines and asking for names, over UDP and TCP, inside
// and outside.
func newLoad(t *testing.T, server string, out *os.File, names ...string) *load {
	l := &load{t: t, stop: make(chan struct{})}
	l.wg.Go(func() {
		for i := 0; !l.stopped(); i++ {
			line := fmt.Sprintf("line %d %s\n", i, strings.Repeat("x", i%200))
			l.written.WriteString(line)
			if _, err := out.WriteString(line); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for _, n := range names {
		for _, network := range []string{"udp", "tcp"} {
			l.wg.Go(func() {
				for !l.stopped() {
					got, err := lookup(server, network, n, dns.TypeA)
					if err != nil || !strings.HasPrefix(got, "NOERROR ") {
						l.failures.Add(1)
						if !l.tolerated {
							t.Errorf("%s over %s: %s, %v", n, network, got, err)
							return
						}
						continue
					}
					l.answers.Add(1)
				}
			})
		}
	}
	return l
}

func (l *load) stopped() bool {
	select {
	case <-l.stop:
		return true
	default:
		return false
	}
}

func (l *load) finish() {
	close(l.stop)
	l.wg.Wait()
}

// TestHandover: keepers replace each other while one writer writes and four
// clients ask; no query fails, and the log is what was written.
func TestHandover(t *testing.T) {
	up := newFakeServer(t, func(q *dns.Msg, tcp bool) [][]byte {
		time.Sleep(3 * time.Millisecond) // so that some are always under way
		return [][]byte{answerWith(q, "1.1.1.1")}
	})
	w := newWorld(t)
	ns := w.namespace("ns")
	s := logSpec(w.dir)
	var out *os.File
	s.Stdout, out = w.fifo("out")
	s.Stderr, _ = w.fifo("err")
	c := w.ensure("v0")
	if err := c.SetDNS(w.ctx(), []spec.Resolver{resolverOf("1-7", ns, up.addr)}, tablesOf(name("web", "10.0.1.2"))); err != nil {
		t.Fatal(err)
	}
	if err := c.SetLogs(w.ctx(), []spec.LogSink{s}); err != nil {
		t.Fatal(err)
	}
	l := newLoad(t, w.server(ns), out, "web", "example.com")
	const times = 8
	pids := map[int]bool{mustStatus(t, c).PID: true}
	for i := 1; i <= times; i++ {
		before := l.answers.Load()
		c := w.ensure(fmt.Sprintf("v%d", i))
		st := mustStatus(t, c)
		if st.Version != fmt.Sprintf("v%d", i) || st.Resolvers != 1 || st.Sinks != 1 || len(st.Problems) > 0 {
			t.Fatalf("after handover %d: %+v", i, st)
		}
		pids[st.PID] = true
		eventually(t, "answers from the new one", func() bool { return t.Failed() || l.answers.Load() > before+50 })
	}
	l.finish()
	if len(pids) != times+1 {
		t.Errorf("%d processes", len(pids))
	}
	eventually(t, "all lines arrived", func() bool { return len(readLog(t, s.File, "stdout")) >= l.written.Len() })
	compareLogs(t, l.written.Bytes(), readLog(t, s.File, "stdout"))
	t.Logf("%d answers, %d bytes of output, %d handovers", l.answers.Load(), l.written.Len(), times)
	for pid := range pids {
		if pid != mustStatus(t, c).PID {
			eventually(t, fmt.Sprintf("keeper %d is gone", pid), func() bool { _, err := processOf(pid); return err != nil })
		}
	}
}

// compareLogs tells where two logs differ.
func compareLogs(t *testing.T, want, got []byte) {
	t.Helper()
	if bytes.Equal(want, got) {
		return
	}
	i := 0
	for i < min(len(want), len(got)) && want[i] == got[i] {
		i++
	}
	t.Errorf("the log (%d bytes) differs from what was written (%d) at %d: %q, want %q", len(got), len(want), i,
		got[i:min(i+80, len(got))], want[i:min(i+80, len(want))])
}

// TestHandoverUnlinked: a FIFO whose writer has ended and whose path is gone is
// handed over with what it holds.
func TestHandoverUnlinked(t *testing.T) {
	w := newWorld(t)
	s := logSpec(w.dir)
	var out *os.File
	s.Stdout, out = w.fifo("out")
	c := w.ensure("1")
	if err := c.SetLogs(w.ctx(), []spec.LogSink{s}); err != nil {
		t.Fatal(err)
	}
	os.Remove(s.Stdout)
	w.ensure("2")
	out.WriteString("still heard\n")
	eventually(t, "the line", func() bool { return string(readLogIfThere(t, s.File)) == "still heard\n" })
}

func readLogIfThere(t testing.TB, file string) []byte {
	if _, err := os.Stat(file); err != nil {
		return nil
	}
	return readLog(t, file, "stdout")
}

// TestHandoverFails: a keeper whose successor breaks off goes on as if nothing
// had been.
func TestHandoverFails(t *testing.T) {
	w := newWorld(t)
	ns := w.namespace("ns")
	s := logSpec(w.dir)
	var out *os.File
	s.Stdout, out = w.fifo("out")
	c := w.ensure("1")
	if err := c.SetDNS(w.ctx(), []spec.Resolver{resolverOf("1-7", ns)}, tablesOf(name("web", "10.0.1.2"))); err != nil {
		t.Fatal(err)
	}
	if err := c.SetLogs(w.ctx(), []spec.LogSink{s}); err != nil {
		t.Fatal(err)
	}
	l := newLoad(t, w.server(ns), out, "web")
	before := mustStatus(t, c)
	for step := range 4 { // break off ever later
		p, err := dialControl(w.ctx(), w.dir)
		if err != nil {
			t.Fatal(err)
		}
		p.send(message{Op: opHandover})
		for range step {
			_, fds, err := p.receive()
			if err != nil {
				t.Fatal(err)
			}
			closeAll(fds)
		}
		if step == 3 {
			if _, fds, err := p.receive(); err != nil { // the end
				t.Fatal(err)
			} else {
				closeAll(fds)
			}
			p.sendItem(item{Kind: itemReady})
			if err := p.expect(itemGo); err != nil {
				t.Fatal(err)
			}
		}
		p.c.Close()
		n := l.answers.Load()
		eventually(t, "answers again", func() bool { return l.answers.Load() > n+20 })
	}
	l.finish()
	if after := mustStatus(t, c); after.PID != before.PID || after.Resolvers != 1 || after.Sinks != 1 {
		t.Errorf("status %+v", after)
	}
	eventually(t, "all lines arrived", func() bool { return len(readLog(t, s.File, "stdout")) >= l.written.Len() })
	compareLogs(t, l.written.Bytes(), readLog(t, s.File, "stdout"))
}

// TestHandoverRefused: a keeper of another version that does not hand over is
// ended, and a new one takes its place.
func TestHandoverRefused(t *testing.T) {
	w := newWorld(t)
	old := exec.Command("sleep", "60")
	if err := old.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := processOf(old.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeFile(filepath.Join(w.dir, pidName), fmt.Appendf(nil, "%d %d\n", p.PID, p.Start)); err != nil {
		t.Fatal(err)
	}
	l, err := listenControl(w.dir)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		old.Wait()
		l.Close()
	}()
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				p := &peer{c: c}
				for {
					m, fds, err := p.receive()
					closeAll(fds)
					if err != nil {
						return
					}
					r := failure(spec.Invalidf("what is %q", m.Op))
					if m.Op == opStatus {
						r = message{Status: &Status{Version: "0", PID: old.Process.Pid}}
					}
					p.send(r)
				}
			})
		}
	})
	if st := mustStatus(t, w.ensure("1")); st.Version != "1" {
		t.Errorf("status %+v", st)
	}
	wg.Wait()
}
