//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"wherry.dev/api"
	"wherry.dev/spec"
	"wherry.dev/tests/lab"
)

// journal is what one outside client has been told: its own record of which
// writes were acknowledged, kept apart from the system under test.
type journal struct {
	stack string

	mu sync.Mutex
	// tried is the newest value sent, acked the newest acknowledged: what the
	// state holds must lie between them.
	tried, acked int
	// made are stacks whose creation was acknowledged; they must all exist.
	made []string
}

// write sends values one after the other until ctx ends.
func (j *journal) write(ctx context.Context, cl *api.Client, inflight *atomic.Int32) {
	for n := j.tried + 1; ctx.Err() == nil; n++ {
		j.mu.Lock()
		j.tried = n
		j.mu.Unlock()
		inflight.Add(1)
		_, err := cl.PutStack(ctx, api.PutStack{Stack: numbered(j.stack, n, 1), RequestID: fmt.Sprintf("%s-%d", j.stack, n)})
		inflight.Add(-1)
		if err == nil {
			j.mu.Lock()
			j.acked = n
			j.mu.Unlock()
		}
		if n%25 != 0 {
			continue
		}
		name := fmt.Sprintf("%s-%d", j.stack, n)
		inflight.Add(1)
		_, err = cl.PutStack(ctx, api.PutStack{Stack: numbered(name, n, 0), RequestID: "make " + name})
		inflight.Add(-1)
		if err == nil {
			j.mu.Lock()
			j.made = append(j.made, name)
			j.mu.Unlock()
		}
	}
}

// numbered is a stack of one service that carries a number.
func numbered(name string, n, replicas int) spec.Stack {
	return spec.Stack{Name: name, Services: map[string]spec.ServiceSpec{"s": {
		Mode: spec.Replicated, Replicas: &replicas,
		Template: spec.Template{
			Image: "docker.io/" + image, Command: []string{"sleep", "7301"}, Env: map[string]string{"N": strconv.Itoa(n)},
			NetworkMode: "none", StopSignal: "SIGKILL", StopGrace: spec.Duration(time.Second),
			Restart: spec.Restart{Condition: spec.RestartAny},
		},
	}}}
}

// check compares the state with the journal.
func (j *journal) check(ctx context.Context, cl *api.Client) error {
	j.mu.Lock()
	tried, acked, made := j.tried, j.acked, j.made
	j.mu.Unlock()
	for _, name := range made {
		if _, err := cl.Stack(ctx, name); err != nil {
			return fmt.Errorf("acknowledged stack %s: %w", name, err)
		}
	}
	if acked == 0 {
		return nil
	}
	d, err := cl.Stack(ctx, j.stack)
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(d.Spec.Services["s"].Template.Env["N"])
	if err != nil || n < acked || n > tried {
		return fmt.Errorf("stack %s holds %d, acknowledged %d, tried %d: %v", j.stack, n, acked, tried, err)
	}
	return nil
}

// TestRandomKills kills the daemon, and every third time its containerd with
// it, at random moments under two writers, and asks after each restart
// whether everything that was acknowledged is there.
func TestRandomKills(t *testing.T) {
	rounds := 20
	if v := os.Getenv("KILLS"); v != "" {
		var err error
		if rounds, err = strconv.Atoi(v); err != nil {
			t.Fatalf("KILLS=%q: want a number", v)
		}
	}
	seed := uint64(time.Now().UnixNano())
	if v := os.Getenv("SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatalf("SEED=%q: want a number", v)
		}
	}
	t.Logf("SEED=%d KILLS=%d", seed, rounds)
	rng := rand.New(rand.NewPCG(seed, 0))

	_, h := oneHost(t)
	cl, err := api.NewClient(h.Socket())
	if err != nil {
		t.Fatal(err)
	}
	journals := []*journal{{stack: "left"}, {stack: "right"}}
	busy := 0
	for round := range rounds {
		ctx, cancel := context.WithCancel(t.Context())
		var inflight atomic.Int32
		var writers sync.WaitGroup
		for _, j := range journals {
			writers.Go(func() { j.write(ctx, cl, &inflight) })
		}
		time.Sleep(time.Duration(200+rng.IntN(1500)) * time.Millisecond) // the moment is the experiment
		withContainerd := round%3 == 2
		var child []int
		if withContainerd {
			child = findProcesses(h.RunDir, "wherry containerd")
		}
		if inflight.Load() > 0 {
			busy++
		}
		h.Kill()
		for _, pid := range child {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended by itself
		}
		cancel()
		writers.Wait()
		h.Start()
		for _, j := range journals {
			if err := j.check(t.Context(), cl); err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
		}
	}
	if busy*100 < rounds*80 {
		t.Errorf("only %d of %d kills fell while a write was in flight, want 80 %%", busy, rounds)
	}
	acked := 0
	for _, j := range journals {
		acked += j.acked + len(j.made)
	}
	t.Logf("%d kills, %d of them with a write in flight; %d acknowledged writes, none lost", rounds, busy, acked)

	// In the end exactly one container of each runs, and carries the last number.
	for _, j := range journals {
		lab.Eventually(t, 2*time.Minute, j.stack+" runs its last value", func() error {
			live := tasks(t, h, j.stack)
			if len(live) != 1 || live[0].State != spec.TaskRunning {
				return fmt.Errorf("%d live tasks: %+v", len(live), live)
			}
			d, err := cl.Stack(t.Context(), j.stack)
			if err != nil {
				return err
			}
			env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", live[0].Status.PID))
			if err != nil {
				return err
			}
			if want := "N=" + d.Spec.Services["s"].Template.Env["N"]; !strings.Contains("\x00"+string(env), "\x00"+want+"\x00") {
				return fmt.Errorf("the process does not have %s", want)
			}
			return nil
		})
	}
	if n := len(findProcesses("sleep 7301")); n != len(journals) {
		t.Errorf("%d containers' processes run, want %d", n, len(journals))
	}
}
