package agent_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"wherry.dev/agent"
	"wherry.dev/spec"
)

// crasher ends an agent after a given number of side effects as SIGKILL would:
// from then on no goroutine of it changes anything any more.
type crasher struct {
	mu    sync.Mutex
	left  int // effects until the crash; never when negative
	dead  bool
	count int
	where string
	died  chan struct{}
}

// effect is called after each side effect of the agent.
func (c *crasher) effect(op string) {
	c.mu.Lock()
	c.count++
	if !c.dead && c.left >= 0 {
		if c.left--; c.left < 0 {
			c.dead, c.where = true, op
			close(c.died)
		}
	}
	dead := c.dead
	c.mu.Unlock()
	if dead {
		runtime.Goexit()
	}
}

// before is called before each call to the host.
func (c *crasher) before() {
	c.mu.Lock()
	dead := c.dead
	c.mu.Unlock()
	if dead {
		runtime.Goexit()
	}
}

// life runs agents on n one after the other: a new one whenever the present
// one has crashed. Set reaches the present one.
func (n *node) life(first *crasher) (end func()) {
	var current atomic.Pointer[crasher]
	current.Store(first)
	n.host.Before = func(context.Context, string, spec.TaskID) error { current.Load().before(); return nil }
	n.host.After = func(op string, _ spec.TaskID) { current.Load().effect(op) }
	begin := func(c *crasher) (cancel func()) {
		n.a = agent.New(agent.Config{
			DataDir: n.data, RunDir: n.run, Node: "n1",
			Images: n.host, Runtime: n.host, Execer: n.host, Network: n.host, Logs: n.host, Manager: n.host,
			Wake: n.host.Wake, Exchanger: n.host, Tmpfs: n.host, Leases: n.host, Senders: n.host,
			Lease:  func(context.Context) (time.Duration, error) { return 15 * time.Second, nil },
			Cgroup: func(t spec.TaskID) string { return "/wherry-n1/" + string(t) },
		})
		agent.SetClock(n.a, n.clock)
		agent.OnFile(n.a, c.effect)
		ctx, stop := context.WithCancel(context.Background())
		done := make(chan struct{})
		a := n.a
		go func() {
			defer close(done)
			a.Run(ctx)
		}()
		return func() { stop(); <-done }
	}
	cancel := begin(first)
	over := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-first.died:
			cancel()
			next := &crasher{left: -1, died: make(chan struct{})}
			current.Store(next)
			n.mu.Lock()
			cancel = begin(next)
			if n.wanted.Index > 0 {
				n.a.Set(n.wanted) // the managers tell it again
			}
			n.mu.Unlock()
			<-over
		case <-over:
		}
		cancel()
	}()
	return func() { close(over); <-ended }
}

// crashStory is the life of one task: made, ended by itself after 3 s, started
// again, stopped after 40 s and forgotten. It is exclusive, which adds the steps
// of the lease to those of any other task.
func crashStory(t *testing.T, left int) (effects int) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, "first sleep 3; first echo bye; first exit 5; "+forever)
		n.template.Exclusive = true
		n.template.PostStart, n.template.PreStop = hooks("warm"), hooks("flush")
		boot := time.Now()
		n.clock = func() time.Duration { return time.Since(boot) + time.Hour }
		seed, err := spec.PackContent([]spec.ContentFile{{Path: "seed.txt", Mode: 0o644, Data: []byte("seed")}})
		if err != nil {
			t.Fatal(err)
		}
		id := spec.PlainContentID(seed)
		n.host.Contents[id] = seed
		mode := uint32(0o400)
		n.host.Image.Volumes = []string{"/cache"}
		n.template.Mounts = []spec.Mount{
			{Type: spec.MountVolume, Source: "data", Target: "/data"},
			{Type: spec.MountContent, Target: "/conf", Content: id},
			{Type: spec.MountContent, Target: "/own", Content: id, Mode: &mode},
		}
		n.wanted.Volumes = []spec.Volume{{ID: "1-3", Name: "shop_data", Spec: spec.VolumeSpec{Seed: id}}}
		n.host.Nodes = []spec.NodeID{"n1", "n2"}
		n.host.OnWithdrawn = func(ctx context.Context, _ spec.NodeID, _ []spec.Address) error {
			select { // long enough to be told
			case <-time.After(500 * time.Millisecond):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		c := &crasher{left: left, died: make(chan struct{})}
		end := n.life(c)
		if left >= 0 {
			defer func() {
				if t.Failed() {
					t.Logf("crash after effect %d, %s", left, c.where)
					t.Logf("calls: %s", strings.Join(n.host.Calls(), ", "))
				}
			}()
		}

		n.want(spec.DesiredRunning)
		settle(40 * time.Second)
		s := n.status()
		if s.State != spec.TaskRunning || s.Started != 2 || s.PID != n.host.State(task).PID {
			t.Errorf("running: %+v, host %+v", s, n.host.State(task))
		}
		if len(s.Attempts) != 1 || s.Attempts[0].ExitCode != 5 || s.Attempts[0].Number != 1 || !slices.Equal(s.Attempts[0].LastLog, []string{"bye"}) {
			t.Errorf("attempts: %+v", s.Attempts)
		}
		if got := n.host.Starts(task); got != 2 {
			t.Errorf("%d starts, want 2", got)
		}
		for _, name := range []string{"volumes/1-3/_data/seed.txt"} {
			if b, err := os.ReadFile(filepath.Join(n.data, name)); string(b) != "seed" {
				t.Errorf("%s: %q, %v", name, b, err)
			}
		}
		n.want(spec.DesiredStopped)
		settle(30 * time.Second)
		s = n.status()
		if s.State != spec.TaskStopped || s.PID != 0 || len(s.Attempts) != 2 || s.Attempts[1].Signal != 15 {
			t.Errorf("stopped: %+v", s)
		}
		n.mu.Lock()
		n.wanted.Volumes, n.wanted.RemoveVolumes = nil, []spec.VolumeID{"1-3"}
		n.mu.Unlock()
		n.want("")
		settle(60 * time.Second)
		if got := n.host.VolumesRemoved(); len(got) == 0 || got[0] != "1-3" {
			t.Errorf("volumes removed: %v", got)
		}
		if entries, err := os.ReadDir(filepath.Join(n.data, "volumes")); err != nil || len(entries) > 0 {
			t.Errorf("volumes left: %v, %v", entries, err)
		}
		if got := n.host.Starts(task); got != 2 {
			t.Errorf("%d starts at the end, want 2", got)
		}
		n.empty()
		if l := n.host.Leases(); len(l) > 0 {
			t.Errorf("leases left: %+v", l)
		}
		end()
		n.check()
		effects = c.count
	})
	return effects
}

// TestCrashAnywhere kills the agent after each of its side effects in turn.
// Whatever the moment, each attempt has one process, each end is told once
// with its right code, and nothing is left over.
func TestCrashAnywhere(t *testing.T) {
	effects := crashStory(t, -1)
	if effects < 40 {
		t.Fatalf("the story has only %d effects", effects)
	}
	for k := range effects {
		t.Run(fmt.Sprint(k), func(t *testing.T) { crashStory(t, k) })
	}
}

func TestAdoption(t *testing.T) {
	tests := []struct {
		name string
		// meanwhile is what happens while there is no agent.
		meanwhile func(n *node)
		starts    int
		attempts  []spec.Attempt // numbers, codes and signals
	}{
		{"nothing", func(*node) {}, 1, nil},
		{"an end", func(n *node) { n.host.End(task, 42) }, 2, []spec.Attempt{{Number: 1, ExitCode: 42}}},
		{"a signal", func(n *node) { n.host.End(task, 137) }, 2, []spec.Attempt{{Number: 1, ExitCode: 137, Signal: 9}}},
		{"a reboot", func(n *node) {
			n.host.Reboot()
			if err := os.RemoveAll(filepath.Join(n.run, "tasks")); err != nil {
				n.t.Error(err)
			}
		}, 2, []spec.Attempt{{Number: 1, ExitCode: -1}}},
		{"memory lost", func(n *node) {
			if err := os.RemoveAll(filepath.Join(n.data, "tasks")); err != nil {
				n.t.Error(err)
			}
		}, 1, nil},
		{"memory torn", func(n *node) {
			if err := os.WriteFile(filepath.Join(n.data, "tasks", string(task)+".json"), []byte(`{"task":`), 0o600); err != nil {
				n.t.Error(err)
			}
		}, 1, nil},
		{"memory lost and an end", func(n *node) {
			n.host.End(task, 42)
			if err := os.RemoveAll(filepath.Join(n.data, "tasks")); err != nil {
				n.t.Error(err)
			}
		}, 2, []spec.Attempt{{Number: 1, ExitCode: 42}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, forever, func(n *node) {
				n.want(spec.DesiredRunning)
				settle(time.Second)
				pid := n.status().PID
				n.stop()
				tt.meanwhile(n)
				settle(time.Minute)
				n.agent() // without a word of the managers
				settle(20 * time.Second)
				s := n.status()
				if s.State != spec.TaskRunning || n.host.Starts(task) != tt.starts || s.Started != tt.starts {
					t.Errorf("%d starts, status %+v", n.host.Starts(task), s)
				}
				if tt.starts == 1 && s.PID != pid {
					t.Errorf("PID %d, want %d", s.PID, pid)
				}
				if len(s.Attempts) != len(tt.attempts) {
					t.Fatalf("attempts: %+v", s.Attempts)
				}
				for i, want := range tt.attempts {
					if a := s.Attempts[i]; a.Number != want.Number || a.ExitCode != want.ExitCode || a.Signal != want.Signal {
						t.Errorf("attempt %d: %+v, want %+v", i, a, want)
					}
				}
				if k := n.host.Sinks(); len(k) != 1 {
					t.Errorf("sinks: %+v", k)
				}
				if !slices.Contains(n.host.Left(), "netns "+string(task)) {
					t.Error("the network was not attached again")
				}
			})
		})
	}
}

// TestUnknownIsRemoved: what belongs to no task goes, but only once it is
// known what is wanted.
func TestUnknownIsRemoved(t *testing.T) {
	bubble(t, forever, func(n *node) {
		stranger := agent.Container{Task: "1-77", Template: n.template}
		if err := n.host.Create(t.Context(), stranger); err != nil {
			t.Fatal(err)
		}
		for _, dir := range []string{n.run + "/tasks/1-77", n.run + "/netns/1-78", n.data + "/anon/1-79/0", n.data + "/logs/1-80", n.data + "/contents/hmac-81"} {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		settle(time.Minute)
		if len(n.host.Left()) != 1 {
			t.Error("removed before anything was wanted")
		}
		n.want("")
		settle(time.Minute)
		n.empty()
		if !slices.Contains(n.host.Calls(), "Detach 1-78") {
			t.Error("an unknown namespace was not detached")
		}
	})
}

// TestForgottenTaskIsStopped: a task that is in no Wanted any more ends as if
// it were stopped, also when the agent learns it only after a restart.
func TestForgottenTaskIsStopped(t *testing.T) {
	bubble(t, forever, func(n *node) {
		n.want(spec.DesiredRunning)
		settle(time.Second)
		n.stop()
		n.agent()
		n.want("")
		settle(20 * time.Second)
		if k := n.host.Kills(task); !slices.Equal(k, []int{15}) {
			t.Errorf("signals: %v", k)
		}
		n.empty()
	})
}
