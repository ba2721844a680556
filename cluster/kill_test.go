package cluster

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"
)

// childEnv makes the test binary play a part instead of testing: the
// environment variable holds "part folder".
const childEnv = "WHERRY_CLUSTER_TEST_CHILD"

// children are the parts; each gets its folder and ends by returning.
var children = map[string]func(dir string) error{"writer": writerChild}

func TestMain(m *testing.M) {
	part, dir, ok := strings.Cut(os.Getenv(childEnv), " ")
	if !ok {
		os.Exit(m.Run())
	}
	// A part that hangs says where, and leaves no process behind.
	time.AfterFunc(2*patience, func() {
		debug.SetTraceback("all")
		panic("the part " + part + " hangs")
	})
	if err := children[part](dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func child(part, dir string, wrap ...string) *exec.Cmd {
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	argv := append(wrap, exe)
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), childEnv+"="+part+" "+dir)
	cmd.Stderr = os.Stderr
	return cmd
}

const (
	writers = 8
	slots   = 10 // labels that a writer uses in turn
)

func killConfig(dir string) Config {
	c := testConfig(dir)
	c.SnapshotThreshold = 150 // so that kills fall into snapshots and cuts of the log, too
	return c
}

func writeKey(w, n int) string { return fmt.Sprintf("w%d-%d", w, n%slots) }

// writerChild writes with several writers at once until it is killed. It tells
// of each write before and after: "try WRITER N", "ack WRITER N INDEX".
func writerChild(dir string) error {
	m, err := Open(context.Background(), killConfig(dir))
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var all sync.WaitGroup
	all.Go(func() {
		select {
		case <-m.Ready():
		case <-ctx.Done():
			return
		}
		n := m.Store().Snapshot().Node(m.Node())
		for w := range writers {
			from := 0
			for i := range slots {
				var v int
				fmt.Sscan(n.Labels[writeKey(w, i)], &v)
				from = max(from, v)
			}
			all.Go(func() {
				for i := from + 1; ctx.Err() == nil; i++ {
					fmt.Printf("try %d %d\n", w, i)
					res, err := m.Propose(ctx, label(m, writeKey(w, i), fmt.Sprint(i)))
					if err = errors.Join(err, res.Err); err != nil {
						fmt.Fprintln(os.Stderr, "propose:", err)
						return
					}
					fmt.Printf("ack %d %d %d\n", w, i, res.Index)
				}
			})
		}
	})
	err = m.Run(ctx)
	stop()
	all.Wait()
	return err
}

// write is what is known outside of one write.
type write struct{ writer, n int }

// journal is what an outside observer knows of the writes.
type journal struct {
	acked map[write]uint64 // by index in the log
	tried map[write]bool   // and not acknowledged
}

// follow reads a child's output to its end.
func (j *journal) follow(r io.Reader, first func()) error {
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		var w write
		var index uint64
		if n, _ := fmt.Sscanf(lines.Text(), "ack %d %d %d", &w.writer, &w.n, &index); n == 3 {
			j.acked[w] = index
			delete(j.tried, w)
			if first != nil {
				first()
				first = nil
			}
		} else if n, _ := fmt.Sscanf(lines.Text(), "try %d %d", &w.writer, &w.n); n == 2 {
			if _, done := j.acked[w]; !done {
				j.tried[w] = true
			}
		}
	}
	return lines.Err()
}

// A member killed at random moments, while it writes, keeps every write that
// it has acknowledged; the judge is a process of its own.
func TestKilledMemberKeepsAcknowledgedWrites(t *testing.T) {
	const rounds = 20
	dir := filepath.Join(t.TempDir(), "data")
	j := journal{acked: map[write]uint64{}, tried: map[write]bool{}}
	inFlight, acked := 0, 0
	for round := range rounds {
		cmd := child("writer", dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		after := time.Duration(rand.IntN(120)) * time.Millisecond
		err = j.follow(out, func() {
			time.AfterFunc(after, func() { cmd.Process.Kill() })
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil || cmd.ProcessState.Exited() {
			t.Fatalf("round %d: the child ended by itself: %v", round, err)
		}
		if len(j.tried) > 0 {
			inFlight++
		}
		acked += len(j.acked)
		judge(t, round, dir, &j)
		if t.Failed() {
			return
		}
	}
	t.Logf("%d kills, %d with proposals in flight, %d acknowledged writes, 0 lost", rounds, inFlight, acked)
	if inFlight < rounds*8/10 {
		t.Errorf("only %d of %d kills fell while a proposal was in flight", inFlight, rounds)
	}
}

// judge opens the folder of a killed member and compares it with the journal,
// which is empty afterwards.
func judge(t *testing.T, round int, dir string, j *journal) {
	t.Helper()
	r := start(t, killConfig(dir))
	defer r.end()
	newest := map[int]int{}
	for w := range j.acked {
		newest[w.writer] = max(newest[w.writer], w.n)
	}
	for w := range j.acked {
		if w.n <= newest[w.writer]-slots {
			continue // overwritten by a later write of the same writer
		}
		var got int
		fmt.Sscan(r.get(writeKey(w.writer, w.n)), &got)
		if got == w.n+slots && j.tried[write{w.writer, got}] {
			continue // overwritten by the one in flight
		}
		if got != w.n {
			t.Errorf("round %d: write %d of writer %d was acknowledged at index %d, the label holds %d", round, w.n, w.writer, j.acked[w], got)
		}
	}
	// A client that got no answer repeats its request: it counts once.
	for w := range j.tried {
		c := label(r.Member, writeKey(w.writer, w.n), fmt.Sprint(w.n))
		a, err := r.Propose(t.Context(), c)
		b, err2 := r.Propose(t.Context(), c)
		if err := errors.Join(err, err2, a.Err, b.Err); err != nil || a.Index != b.Index {
			t.Errorf("round %d: repeating write %d of writer %d: index %d and %d, err %v", round, w.n, w.writer, a.Index, b.Index, err)
		}
	}
	for w, n := range newest {
		res, err := r.Propose(t.Context(), label(r.Member, writeKey(w, n), fmt.Sprint(n)))
		if want := j.acked[write{w, n}]; err != nil || res.Index != want {
			t.Errorf("round %d: repeating write %d of writer %d, acknowledged at index %d: index %d, err %v", round, n, w, want, res.Index, err)
		}
	}
	clear(j.acked)
	clear(j.tried)
}
