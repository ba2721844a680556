package agent_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"wherry.dev/spec"
)

// inits are containers before the start that run scripts.
func inits(scripts ...string) []spec.InitContainer {
	var out []spec.InitContainer
	for i, s := range scripts {
		out = append(out, spec.InitContainer{Image: "example.com/init:" + string(rune('1'+i)), Entrypoint: []string{"/bin/sh", "-c", s}})
	}
	return out
}

func TestPreStart(t *testing.T) {
	bubble(t, "sleep 100; exit 0", func(n *node) {
		n.template.PreStart = inits("sleep 10; exit 0", "sleep 10; exit 0")
		n.template.Health = &spec.HealthCheck{Test: []string{"CMD", "check"}, Interval: seconds(1)}
		n.template.PostStart = hooks("hook")
		c := &commands{}
		n.host.OnExec = c.exec
		n.want(spec.DesiredRunning)
		for i, image := range []string{"example.com/init:1", "example.com/init:2"} {
			settle(5 * time.Second)
			s := n.status()
			if want := "pre_start container " + string(rune('1'+i)) + " of 2 runs"; s.State != spec.TaskStarting || s.Health != spec.HealthStarting || s.Reason != want || s.PID == 0 {
				t.Errorf("status %+v, want %q", s, want)
			}
			made, _ := n.host.Container(task)
			if made.Stage != i+1 || made.Image.Ref != image || made.Fill != "example.com/app:1" || made.Name != "shop.web.1" || made.NetNS != "/netns/1-1" || made.Stdout == "" {
				t.Errorf("container: %+v", made)
			}
			if ran := c.take(); len(ran) > 0 {
				t.Errorf("in it ran %q", ran)
			}
			settle(5 * time.Second)
		}
		settle(2 * time.Second)
		s := n.status()
		if s.State != spec.TaskRunning || s.Started != 1 || len(s.Attempts) > 0 || s.Reason != "" {
			t.Errorf("afterwards: %+v", s)
		}
		if made, _ := n.host.Container(task); made.Stage != 0 || made.Image.Ref != "example.com/app:1" || made.Fill != "" {
			t.Errorf("container: %+v", made)
		}
		// A restart has none of it.
		settle(115 * time.Second)
		if s := n.status(); s.Started != 2 || s.State != spec.TaskRunning || n.host.Starts(task) != 4 {
			t.Errorf("after a restart: %+v, %d starts", s, n.host.Starts(task))
		}
		n.want("")
		settle(20 * time.Second)
		n.empty()
	})
}

func TestPreStartFails(t *testing.T) {
	bubble(t, forever, func(n *node) {
		// The fake counts starts of all containers: the second is the first one's second.
		n.template.PreStart = inits("first echo no; first exit 3; exit 0")
		n.want(spec.DesiredRunning)
		settle(time.Second)
		s := n.status()
		if len(s.Attempts) != 1 || s.Attempts[0].ExitCode != 3 || s.Attempts[0].Error != "pre_start container 1 of 1 failed: exit 3" || !slices.Equal(s.Attempts[0].LastLog, []string{"no"}) {
			t.Errorf("attempts: %+v", s.Attempts)
		}
		settle(5 * time.Second)
		if s := n.status(); s.State != spec.TaskRunning || s.Started != 2 || n.host.Starts(task) != 3 {
			t.Errorf("after the next attempt: %+v", s)
		}
	})
	bubble(t, forever, func(n *node) {
		n.template.PreStart, n.template.Restart = inits("exit 1"), spec.Restart{Condition: spec.RestartNone}
		n.want(spec.DesiredRunning)
		settle(time.Second)
		if s := n.status(); s.State != spec.TaskFailed || s.Reason != "pre_start container 1 of 1 failed: exit 1" {
			t.Errorf("status: %+v", s)
		}
	})
	bubble(t, forever, func(n *node) {
		n.template.PreStart = []spec.InitContainer{{Image: "example.com/init:1", Entrypoint: []string{"/no/such"}}}
		n.want(spec.DesiredRunning)
		settle(time.Second)
		if s := n.status(); len(s.Attempts) == 0 || s.Attempts[0].ExitCode != 127 || !strings.HasPrefix(s.Attempts[0].Error, "pre_start container 1 of 1 failed: exec: \"/no/such\"") {
			t.Errorf("status: %+v", s)
		}
	})
}

// TestPreStartIsStopped: it ends as the task does, without hooks, and is no
// success of the task.
func TestPreStartIsStopped(t *testing.T) {
	for _, script := range []string{forever, "trap 'exit 0' TERM; " + forever} {
		bubble(t, forever, func(n *node) {
			c := &commands{}
			n.host.OnExec = c.exec
			n.template.PreStart, n.template.PreStop = inits(script), hooks("flush")
			n.want(spec.DesiredRunning)
			settle(time.Second)
			n.want(spec.DesiredStopped)
			settle(time.Second)
			if s := n.status(); s.State != spec.TaskStopped || n.host.Starts(task) != 1 {
				t.Errorf("status: %+v", s)
			}
			if ran := c.take(); len(ran) > 0 {
				t.Errorf("ran %q", ran)
			}
		})
	}
	bubble(t, forever, func(n *node) {
		n.template.PreStart = inits("sleep 10; exit 0")
		n.want(spec.DesiredRunning)
		settle(time.Second)
		n.want(spec.DesiredDraining)
		settle(30 * time.Second)
		if s := n.status(); s.State != spec.TaskStopped || n.host.Starts(task) != 1 {
			t.Errorf("one that drains: %+v", s)
		}
	})
}

// TestPreStartOverARestart: whatever is lost, nothing runs twice that has done
// its work, and the task's own container is not taken for one before it.
func TestPreStartOverARestart(t *testing.T) {
	for name, lose := range map[string]func(n *node){
		"nothing": func(*node) {},
		"memory": func(n *node) {
			if err := os.RemoveAll(filepath.Join(n.data, "tasks")); err != nil {
				n.t.Error(err)
			}
		},
	} {
		for _, when := range []time.Duration{5 * time.Second, 15 * time.Second, 25 * time.Second} {
			t.Run(name+" "+when.String(), func(t *testing.T) {
				bubble(t, forever, func(n *node) {
					n.template.PreStart = inits("sleep 10; exit 0", "sleep 10; exit 0")
					n.want(spec.DesiredRunning)
					settle(when)
					n.stop()
					lose(n)
					settle(20 * time.Second) // it ends meanwhile, unless it is the last
					n.agent()
					n.want(spec.DesiredRunning)
					settle(30 * time.Second)
					if s := n.status(); s.State != spec.TaskRunning || s.PID == 0 || len(s.Attempts) > 0 || n.host.Starts(task) != 3 {
						t.Errorf("%d starts, status %+v", n.host.Starts(task), s)
					}
				})
			})
		}
	}
}

func TestPreStartWithoutItsImage(t *testing.T) {
	bubble(t, forever, func(n *node) {
		var mu sync.Mutex
		pulls := 0
		n.before(func(_ context.Context, op string, _ spec.TaskID) error {
			mu.Lock()
			defer mu.Unlock()
			if op == "Ensure" {
				if pulls++; pulls == 2 { // the service's comes first
					return spec.NotFoundf("image example.com/init:1 does not exist")
				}
			}
			return nil
		})
		n.template.PreStart = inits("exit 0")
		n.want(spec.DesiredRunning)
		settle(time.Second)
		if s := n.status(); s.State != spec.TaskRejected || s.Reason != "image example.com/init:1 does not exist" {
			t.Errorf("status: %+v", s)
		}
	})
}

// TestPreStartCrashAnywhere kills the agent after each of its side effects:
// each container before the start has one process, in order, and so has the
// task's own.
func TestPreStartCrashAnywhere(t *testing.T) {
	story := func(t *testing.T, left int) (effects int) {
		synctest.Test(t, func(t *testing.T) {
			n := newNode(t, forever)
			n.template.PreStart = inits("sleep 1; exit 0", "sleep 1; exit 0")
			n.clock = func() time.Duration { return time.Hour }
			c := &crasher{left: left, died: make(chan struct{})}
			end := n.life(c)
			n.want(spec.DesiredRunning)
			settle(40 * time.Second)
			if s := n.status(); s.State != spec.TaskRunning || len(s.Attempts) > 0 || n.host.Starts(task) != 3 || n.host.State(task).Stage != 0 {
				t.Errorf("%d starts, status %+v; crash after effect %d, %s", n.host.Starts(task), s, left, c.where)
			}
			n.want("")
			settle(60 * time.Second)
			n.empty()
			end()
			n.check()
			effects = c.count
		})
		return effects
	}
	effects := story(t, -1)
	for k := range effects {
		t.Run(strconv.Itoa(k), func(t *testing.T) { story(t, k) })
	}
}
