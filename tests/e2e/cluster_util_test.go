//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"wherry.dev/api"
	"wherry.dev/spec"
	"wherry.dev/tests/images"
	"wherry.dev/tests/lab"
)

// grow returns a cluster whose first host has the image.
func grow(t *testing.T, managers, workers int) *lab.Cluster {
	t.Helper()
	l := lab.New(t)
	started := time.Now()
	c := l.Cluster(managers, workers)
	t.Logf("%d managers and %d workers are ready after %s", managers, workers, short(time.Since(started)))
	load(t, c.Hosts[0], images.Must(t, image, ""))
	return c
}

// count is a number from the environment, such as how often a figure is taken.
func count(t *testing.T, name string, def int) int {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		return def
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 {
		t.Fatalf("%s=%q: want a number", name, v)
	}
	return n
}

// span is a time from the environment.
func span(t *testing.T, name string, def time.Duration) time.Duration {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		return def
	}
	d, err := time.ParseDuration(v)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// full says that the figures must hold as they are promised. On a machine that
// runs the whole suite they are only bounded.
func full() bool { return os.Getenv("FULL") != "" }

// figure prints a figure in the form that the soak looks for, and compares it
// with what is promised: three times as much, unless in full.
func figure(t *testing.T, what string, times []time.Duration, median, most time.Duration) {
	t.Helper()
	if len(times) == 0 {
		t.Fatalf("figure %s: nothing was measured", what)
	}
	sorted := slices.Sorted(slices.Values(times))
	mid, max := sorted[len(sorted)/2], sorted[len(sorted)-1]
	t.Logf("figure %s: median %s, max %s, n=%d", what, short(mid), short(max), len(sorted))
	if !full() {
		median, most = 3*median, 3*most
	}
	if median > 0 && mid > median || max > most {
		t.Errorf("%s: median %s and max %s, want at most %s and %s: %v", what, short(mid), short(max), median, most, sorted)
	}
}

func short(d time.Duration) time.Duration { return d.Round(time.Millisecond) }

func client(t *testing.T, h *lab.Host) *api.Client {
	t.Helper()
	cl, err := api.NewClient(h.Socket())
	if err != nil {
		t.Fatal(err)
	}
	return cl
}

func clients(t *testing.T, hosts []*lab.Host) []*api.Client {
	t.Helper()
	var out []*api.Client
	for _, h := range hosts {
		out = append(out, client(t, h))
	}
	return out
}

// writeThrough is write through whichever manager answers. A write whose end is
// not known is sent again as what it is, a repeat, until it is acknowledged.
// Each attempt's end is told.
func (j *journal) writeThrough(ctx context.Context, managers []*api.Client, done func(error)) {
	at := 0
	for n := j.tried + 1; ctx.Err() == nil; n++ {
		j.mu.Lock()
		j.tried = n
		j.mu.Unlock()
		for ctx.Err() == nil {
			once, cancel := context.WithTimeout(ctx, 15*time.Second)
			_, err := managers[at].PutStack(once, api.PutStack{Stack: numbered(j.stack, n, 0), RequestID: fmt.Sprintf("%s-%d", j.stack, n)})
			cancel()
			if err == nil {
				j.mu.Lock()
				j.acked = n
				j.mu.Unlock()
				done(nil)
				break
			}
			done(err)
			at = (at + 1) % len(managers)
			pause(ctx, 10*time.Millisecond)
		}
	}
}

// pause lets a moment pass between two attempts.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// traffic is writers at work, with their journals.
type traffic struct {
	journals []*journal
	stop     context.CancelFunc
	wg       sync.WaitGroup

	mu   sync.Mutex
	acks []time.Time
	err  error // of the last attempt that failed
}

// writing starts n writers, each of which begins at another manager.
func writing(t *testing.T, hosts []*lab.Host, n int, prefix string) *traffic {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	w := &traffic{stop: stop}
	cls := clients(t, hosts)
	for i := range n {
		j := &journal{stack: fmt.Sprintf("%s-%d", prefix, i)}
		w.journals = append(w.journals, j)
		order := append(slices.Clone(cls[i%len(cls):]), cls[:i%len(cls)]...)
		w.wg.Go(func() {
			j.writeThrough(ctx, order, func(err error) {
				w.mu.Lock()
				defer w.mu.Unlock()
				if err != nil {
					w.err = err
					return
				}
				w.acks = append(w.acks, time.Now())
			})
		})
	}
	return w
}

// flow waits until n more writes are acknowledged.
func (w *traffic) flow(t *testing.T, n int) {
	t.Helper()
	w.mu.Lock()
	from := len(w.acks)
	w.mu.Unlock()
	lab.Eventually(t, time.Minute, "writes are acknowledged", func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if got := len(w.acks) - from; got < n {
			return fmt.Errorf("%d of %d; last error: %v", got, n, w.err)
		}
		return nil
	})
}

// gap is the longest time from then on in which no write was acknowledged.
func (w *traffic) gap(from time.Time) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	last, worst := from, time.Duration(0)
	for _, a := range w.acks {
		if a.After(from) {
			worst = max(worst, a.Sub(last))
			last = a
		}
	}
	return worst
}

// end stops the writers and compares the state with their journals.
func (w *traffic) end(t *testing.T, cl *api.Client) {
	t.Helper()
	w.stop()
	w.wg.Wait()
	total := 0
	for _, j := range w.journals {
		lab.Eventually(t, soon, "the state can be read", func() error {
			_, err := cl.Stacks(t.Context())
			return err
		})
		if err := j.check(t.Context(), cl); err != nil {
			t.Errorf("lost write: %v", err)
		}
		total += j.acked
	}
	t.Logf("%d acknowledged writes, checked against the journals", total)
	if total == 0 {
		t.Error("nothing was written")
	}
}

// diary returns the names of the nodes that went down after an event, and the
// newest event.
func diary(t *testing.T, cl *api.Client, after uint64) (down []string, last uint64) {
	t.Helper()
	last = after
	lab.Eventually(t, soon, "events can be read", func() error {
		for {
			l, err := cl.Events(t.Context(), last, api.Poll{})
			if err != nil {
				return err
			}
			if len(l.Items) == 0 {
				return nil
			}
			for _, e := range l.Items {
				if e.Kind == "node.down" {
					down = append(down, e.Message)
				}
				last = e.Seq
			}
		}
	})
	return down, last
}

// newestEvent returns the number of the newest event.
func newestEvent(t *testing.T, cl *api.Client) (seq uint64) {
	t.Helper()
	lab.Eventually(t, soon, "the newest event can be read", func() error {
		l, err := cl.RecentEvents(t.Context(), 1)
		if err == nil {
			seq = l.Items[0].Seq
		}
		return err
	})
	return seq
}

// same checks that nothing has happened to the tasks of a stack.
func same(t *testing.T, h *lab.Host, stack string, before map[string]process) {
	t.Helper()
	after := processes(t, h, stack)
	for name, p := range before {
		if after[name] != p {
			t.Errorf("%s: was %+v, is %+v", name, p, after[name])
		}
	}
	if len(after) != len(before) {
		t.Errorf("%d tasks of %s run, want %d", len(after), stack, len(before))
	}
}

// alive counts the processes with exactly these arguments; each container of
// these tests sleeps for a time of its own.
func alive(cmdline string) int {
	n := 0
	for _, pid := range findProcesses(cmdline) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && strings.TrimRight(strings.ReplaceAll(string(b), "\x00", " "), " ") == cmdline {
			n++
		}
	}
	return n
}

// aliveOn counts them on one host.
func aliveOn(h *lab.Host, cmdline string) int {
	n := 0
	for _, pid := range h.Processes() {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && strings.TrimRight(strings.ReplaceAll(string(b), "\x00", " "), " ") == cmdline {
			n++
		}
	}
	return n
}

// on lists the nodes of the live tasks of a service, sorted.
func on(t *testing.T, h *lab.Host, ref string) []string {
	t.Helper()
	var out []string
	for _, ti := range tasks(t, h, ref) {
		if ti.State == spec.TaskRunning {
			out = append(out, ti.Node)
		}
	}
	slices.Sort(out)
	return out
}

// placed waits until n tasks of a service run, all on one of the nodes when
// some are given.
func placed(t *testing.T, h *lab.Host, ref string, n int, nodes ...string) {
	t.Helper()
	lab.Eventually(t, time.Minute, fmt.Sprintf("%d tasks of %s run on %v", n, ref, nodes), func() error {
		out, err := h.Try("ps", ref, "--format", "json")
		if err != nil {
			return err
		}
		var all []api.TaskInfo
		if err := json.Unmarshal([]byte(out), &all); err != nil {
			return err
		}
		got := 0
		for _, ti := range all {
			if ti.State == spec.TaskRunning && (len(nodes) == 0 || slices.Contains(nodes, ti.Node)) {
				got++
			}
		}
		if got != n {
			return fmt.Errorf("%d do:\n%s", got, h.Wherry("ps", ref).Stdout)
		}
		return nil
	})
}

// writable waits until a write through the host is acknowledged.
func writable(t *testing.T, h *lab.Host) {
	t.Helper()
	lab.Eventually(t, soon, "a write through "+h.Name, func() error {
		_, err := h.Try("node", "label", h.Name, fmt.Sprintf("written=%d", time.Now().UnixNano()))
		return err
	})
}

// refused runs a command that must end with an exit code that is none of
// success, within a time, and say all the words.
func refused(t *testing.T, r lab.Result, words ...string) {
	t.Helper()
	if r.Code <= 0 {
		t.Errorf("exit %d, want a refusal: %s%s", r.Code, r.Stdout, r.Stderr)
	}
	for _, w := range words {
		if !strings.Contains(r.Stderr, w) {
			t.Errorf("the refusal does not say %q: %s", w, r.Stderr)
		}
	}
}

// each runs a function on every regular file below some folders.
func each(t *testing.T, f func(path string, content []byte), roots ...string) {
	t.Helper()
	for _, root := range roots {
		err := filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return nil // what vanishes while we look holds nothing
			}
			if b, err := os.ReadFile(p); err == nil {
				f(p, b)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
