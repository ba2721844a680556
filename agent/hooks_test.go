package agent_test

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"wherry.dev/spec"
)

// commands answers Exec by the first word of a command: a time is waited for,
// a number is the exit status.
type commands struct {
	mu   sync.Mutex
	ran  []string
	code map[string]int
	wait map[string]time.Duration
}

func (c *commands) exec(ctx context.Context, _ spec.TaskID, args []string) (string, int, error) {
	c.mu.Lock()
	c.ran = append(c.ran, args[0])
	code, wait := c.code[args[0]], c.wait[args[0]]
	c.mu.Unlock()
	select {
	case <-time.After(wait):
		return "says\nno " + args[0] + "\n", code, nil
	case <-ctx.Done():
		c.mu.Lock()
		c.ran = append(c.ran, "killed "+args[0])
		c.mu.Unlock()
		return "", 0, ctx.Err()
	}
}

func (c *commands) take() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.ran
	c.ran = nil
	return out
}

func hooks(names ...string) []spec.Hook {
	var out []spec.Hook
	for _, n := range names {
		out = append(out, spec.Hook{Command: []string{n}})
	}
	return out
}

func TestPostStart(t *testing.T) {
	bubble(t, forever, func(n *node) {
		c := &commands{wait: map[string]time.Duration{"one": 3 * time.Second, "two": 3 * time.Second}}
		n.host.OnExec = c.exec
		n.template.PostStart = hooks("one", "two")
		n.want(spec.DesiredRunning)
		settle(time.Second)
		if s := n.status(); s.State != spec.TaskRunning || s.Health != spec.HealthStarting || s.Reason != "post_start hook 1 of 2 runs" {
			t.Errorf("while the first runs: %+v", s)
		}
		settle(3 * time.Second)
		if s := n.status(); s.Health != spec.HealthStarting || s.Reason != "post_start hook 2 of 2 runs" {
			t.Errorf("while the second runs: %+v", s)
		}
		settle(3 * time.Second)
		if s := n.status(); s.Health != spec.HealthNone || s.Reason != "" {
			t.Errorf("after both: %+v", s)
		}
		if ran := c.take(); !slices.Equal(ran, []string{"one", "two"}) {
			t.Errorf("ran %q", ran)
		}
		n.host.End(task, 0)
		settle(10 * time.Second)
		if ran := c.take(); !slices.Equal(ran, []string{"one", "two"}) {
			t.Errorf("the next attempt ran %q", ran)
		}
	})
}

// TestPostStartComesBeforeChecks: what a hook prepares need not be there for
// the check before.
func TestPostStartComesBeforeChecks(t *testing.T) {
	bubble(t, forever, func(n *node) {
		c := &commands{wait: map[string]time.Duration{"prepare": 10 * time.Second}}
		n.host.OnExec = c.exec
		n.template.PostStart = hooks("prepare")
		n.template.Health = &spec.HealthCheck{Test: []string{"CMD", "check"}, Interval: seconds(2), Timeout: seconds(1), Retries: 1}
		n.want(spec.DesiredRunning)
		settle(11 * time.Second)
		if s := n.status(); s.Health != spec.HealthHealthy {
			t.Errorf("status: %+v", s)
		}
		if ran := c.take(); !slices.Equal(ran, []string{"prepare", "check"}) {
			t.Errorf("ran %q", ran)
		}
	})
}

func TestPostStartFails(t *testing.T) {
	bubble(t, forever, func(n *node) {
		c := &commands{code: map[string]int{"bad": 3}}
		n.host.OnExec = c.exec
		n.template.PostStart = hooks("bad", "never")
		n.template.Restart = spec.Restart{Condition: spec.RestartNone}
		n.want(spec.DesiredRunning)
		settle(time.Second)
		s := n.status()
		if want := "post_start hook 1 failed: exit 3: no bad"; s.State != spec.TaskFailed || s.Reason != want || s.Attempts[0].Error != want {
			t.Errorf("status: %+v", s)
		}
		if k := n.host.Kills(task); !slices.Equal(k, []int{15}) {
			t.Errorf("signals: %v", k)
		}
		if ran := c.take(); !slices.Equal(ran, []string{"bad"}) {
			t.Errorf("ran %q", ran)
		}
	})
}

// TestPostStartWithoutRuntime: the runtime's faults are not the task's.
func TestPostStartWithoutRuntime(t *testing.T) {
	bubble(t, forever, func(n *node) {
		down := true
		var mu sync.Mutex
		n.host.OnExec = func(context.Context, spec.TaskID, []string) (string, int, error) {
			mu.Lock()
			defer mu.Unlock()
			if down {
				return "", 0, spec.Unavailablef("containerd is away")
			}
			return "", 0, nil
		}
		n.template.PostStart = hooks("one")
		n.want(spec.DesiredRunning)
		settle(30 * time.Second)
		if s := n.status(); s.PID == 0 || !strings.HasPrefix(s.Reason, "post_start hook 1: containerd is away; next try in ") {
			t.Errorf("status: %+v", s)
		}
		mu.Lock()
		down = false
		mu.Unlock()
		settle(10 * time.Second)
		if s := n.status(); s.Health != spec.HealthNone || s.Reason != "" || s.Started != 1 {
			t.Errorf("status when it is back: %+v", s)
		}
	})
}

func TestPreStop(t *testing.T) {
	bubble(t, forever, func(n *node) {
		c := &commands{wait: map[string]time.Duration{"one": 2 * time.Second}, code: map[string]int{"one": 1}}
		n.host.OnExec = c.exec
		n.template.PreStop = hooks("one", "two")
		n.want(spec.DesiredRunning)
		settle(time.Second)
		n.want(spec.DesiredStopped)
		settle(time.Second)
		if s := n.status(); s.State != spec.TaskRunning || s.Reason != "stopping: pre_stop hook 1 of 2 runs" || len(n.host.Kills(task)) > 0 {
			t.Errorf("while the first runs: %+v", s)
		}
		settle(2 * time.Second)
		if s := n.status(); s.State != spec.TaskStopped || s.Attempts[0].Signal != 15 {
			t.Errorf("status: %+v", s)
		}
		if ran := c.take(); !slices.Equal(ran, []string{"one", "two"}) { // a failure keeps nothing from ending
			t.Errorf("ran %q", ran)
		}
	})
}

// TestPreStopTakesTooLong: hooks and signal share the grace.
func TestPreStopTakesTooLong(t *testing.T) {
	bubble(t, "trap '' TERM; "+forever, func(n *node) {
		c := &commands{wait: map[string]time.Duration{"slow": time.Hour}}
		n.host.OnExec = c.exec
		n.template.PreStop, n.template.StopGrace = hooks("slow", "never"), seconds(10)
		n.want(spec.DesiredRunning)
		settle(time.Second)
		n.want(spec.DesiredStopped)
		settle(7500 * time.Millisecond)
		if k := n.host.Kills(task); len(k) > 0 {
			t.Errorf("signals while the hook has time: %v", k)
		}
		settle(time.Second)
		if k := n.host.Kills(task); !slices.Equal(k, []int{15}) {
			t.Errorf("signals two seconds before the end of the grace: %v", k)
		}
		settle(2 * time.Second)
		if k := n.host.Kills(task); !slices.Equal(k, []int{15, 9}) || n.status().State != spec.TaskStopped {
			t.Errorf("signals after the grace: %v, status %+v", k, n.status())
		}
		if ran := c.take(); !slices.Equal(ran, []string{"slow", "killed slow"}) {
			t.Errorf("ran %q", ran)
		}
	})
}

// TestHooksOverARestart: a new agent goes on with the hook that was under way,
// also for a task that nobody wants any more.
func TestHooksOverARestart(t *testing.T) {
	bubble(t, forever, func(n *node) {
		c := &commands{wait: map[string]time.Duration{"two": 5 * time.Second, "before": 5 * time.Second}}
		n.host.OnExec = c.exec
		n.template.PostStart, n.template.PreStop = hooks("one", "two"), hooks("before")
		n.template.StopGrace = seconds(30)
		n.want(spec.DesiredRunning)
		settle(time.Second)
		n.stop()
		n.agent()
		n.want(spec.DesiredRunning)
		settle(6 * time.Second)
		if s := n.status(); s.Health != spec.HealthNone || s.Started != 1 {
			t.Errorf("status: %+v", s)
		}
		if ran := c.take(); !slices.Equal(ran, []string{"one", "two", "killed two", "two"}) {
			t.Errorf("ran %q", ran)
		}
		n.want("")
		settle(time.Second)
		n.stop()
		n.agent()
		settle(11 * time.Second)
		if ran := c.take(); !slices.Equal(ran, []string{"before", "killed before", "before"}) {
			t.Errorf("ran %q", ran)
		}
		if k := n.host.Kills(task); !slices.Equal(k, []int{15}) {
			t.Errorf("signals: %v", k)
		}
		n.empty()
	})
}
