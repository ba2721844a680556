package agent_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"wherry.dev/agent"
	"wherry.dev/agent/agenttest"
	"wherry.dev/spec"
)

const task = spec.TaskID("1-1")

// node is one host with its folders; agents come and go on it.
type node struct {
	t         *testing.T
	host      *agenttest.Host
	data      string
	run       string
	wanted    spec.Wanted
	template  spec.Template
	mu        sync.Mutex // held while wanted is told, or the agent exchanged
	a         *agent.Agent
	stop      func()
	configure func(c *agent.Config) // of the next agent; nil leaves it
	clock     func() time.Duration  // of leases, of the next agent; nil leaves it
	hook      atomic.Pointer[func(ctx context.Context, op string, t spec.TaskID) error]
}

// before sets what is called at the beginning of each call to the host.
func (n *node) before(f func(ctx context.Context, op string, t spec.TaskID) error) { n.hook.Store(&f) }

// newNode makes a host whose one task runs script. It is to be called inside
// the bubble.
func newNode(t *testing.T, script string) *node {
	n := &node{t: t, host: agenttest.NewHost(), data: t.TempDir(), run: t.TempDir()}
	n.host.Before = func(ctx context.Context, op string, t spec.TaskID) error {
		if f := n.hook.Load(); f != nil {
			return (*f)(ctx, op, t)
		}
		return nil
	}
	n.template = spec.Template{
		Image: "example.com/app:1", Entrypoint: []string{"/bin/sh", "-c", script},
		Restart: spec.Restart{Condition: spec.RestartAny},
	}
	return n
}

// want says that the task is to be as desired; "" takes it off the node.
func (n *node) want(desired spec.TaskDesired) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.wanted.Node = "n1"
	n.wanted.Index++
	n.wanted.Tasks, n.wanted.Revisions = nil, nil
	if desired != "" {
		n.wanted.Tasks = []spec.Task{{
			ID: task, Stack: "shop", Service: "web", Slot: 1, Revision: "r1", Node: "n1", Desired: desired,
			Addresses: []spec.Address{{Network: "1-2", IP: "10.0.1.7/24"}},
			Status:    spec.TaskStatus{State: spec.TaskAssigned},
		}}
		for _, m := range n.template.Mounts {
			if m.Type == spec.MountVolume {
				n.wanted.Tasks[0].Volumes = append(n.wanted.Tasks[0].Volumes, spec.VolumeBinding{Target: m.Target, Name: "shop_data", ID: "1-3"})
			}
		}
		n.wanted.Revisions = map[spec.RevisionID]spec.Template{"r1": n.template}
	}
	n.a.Set(n.wanted)
}

// agent starts an agent on the node.
func (n *node) agent() {
	c := agent.Config{
		DataDir: n.data, RunDir: n.run, Node: "n1", NodeName: "alpha",
		Images: n.host, Runtime: n.host, Execer: n.host, Network: n.host, Logs: n.host, Manager: n.host,
		Wake: n.host.Wake, Exchanger: n.host, Tmpfs: n.host,
	}
	if n.configure != nil {
		n.configure(&c)
	}
	n.a = agent.New(c)
	if n.clock != nil {
		agent.SetClock(n.a, n.clock)
	}
	n.start()
}

func (n *node) start() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- n.a.Run(ctx) }()
	n.stop = func() {
		cancel()
		if err := <-done; err != nil {
			n.t.Errorf("run: %v", err)
		}
	}
}

func (n *node) status() spec.TaskStatus { return n.host.Status(task) }

// check reports breaches of contracts.
func (n *node) check() {
	n.t.Helper()
	for _, f := range n.host.Faults() {
		n.t.Error(f)
	}
}

// empty checks that nothing of the task is left.
func (n *node) empty() {
	n.t.Helper()
	if left := n.host.Left(); len(left) > 0 {
		n.t.Errorf("left on the host: %v", left)
	}
	for _, dir := range []string{n.data + "/tasks", n.data + "/anon", n.data + "/logs", n.data + "/contents", n.run + "/tasks"} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			n.t.Error(err)
		}
		for _, e := range entries {
			n.t.Errorf("left: %s", filepath.Join(dir, e.Name()))
		}
	}
}

func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// bubble runs a test with an agent on a fresh node.
func bubble(t *testing.T, script string, test func(n *node)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, script)
		n.agent()
		test(n)
		n.stop()
		n.check()
	})
}

const forever = "while :; do sleep 0.1; done"

func TestStartAndStop(t *testing.T) {
	bubble(t, forever, func(n *node) {
		n.want(spec.DesiredRunning)
		settle(time.Second)
		s := n.status()
		if s.State != spec.TaskRunning || s.PID == 0 || s.Started != 1 || s.Health != spec.HealthNone || s.Reason != "" {
			t.Errorf("status: %+v", s)
		}
		c, _ := n.host.Container(task)
		if c.Name != "shop.web.1" || c.Hostname != "web-1-1" || c.NetNS != "/netns/1-1" {
			t.Errorf("container: %+v", c)
		}
		hosts, err := os.ReadFile(filepath.Join(n.run, "tasks", string(task), "hosts"))
		if err != nil || !strings.Contains(string(hosts), "10.0.1.7\tweb-1-1\n") {
			t.Errorf("hosts: %q, %v", hosts, err)
		}
		if k := n.host.Sinks(); len(k) != 1 || k[0].File != filepath.Join(n.data, "logs", string(task), "log") || k[0].MaxFiles != 3 {
			t.Errorf("sinks: %+v", k)
		}
		if i := n.host.Info(); i == nil || i.NanoCPUs == 0 || i.Memory == 0 || i.Boot == "" || i.Kernel == "" {
			t.Errorf("node info: %+v", i)
		}
		n.want(spec.DesiredStopped)
		settle(time.Second)
		if s := n.status(); s.State != spec.TaskStopped || s.PID != 0 || len(s.Attempts) != 1 || s.Attempts[0].Signal != 15 {
			t.Errorf("status after stop: %+v", s)
		}
		if k := n.host.Sinks(); len(k) != 0 {
			t.Errorf("sinks after stop: %+v", k)
		}
		n.wanted.KeepLogs = []spec.TaskID{task}
		n.want("")
		settle(time.Second)
		if _, err := os.Stat(agent.LogDir(n.data, task)); err != nil {
			t.Errorf("a log that is to be kept: %v", err)
		}
		n.wanted.KeepLogs = nil
		n.want("")
		settle(time.Second)
		n.empty()
	})
}

func TestOlderWantedIsIgnored(t *testing.T) {
	bubble(t, forever, func(n *node) {
		n.want(spec.DesiredRunning)
		settle(time.Second)
		old := n.wanted
		old.Index, old.Tasks = 0, nil
		n.a.Set(old)
		other := n.wanted
		other.Node, other.Index, other.Tasks = "n2", 99, nil
		n.a.Set(other)
		settle(30 * time.Second)
		if s := n.status(); s.State != spec.TaskRunning || n.host.Starts(task) != 1 || len(n.host.Kills(task)) != 0 {
			t.Errorf("status: %+v", s)
		}
	})
}

func TestStopKillsAfterGrace(t *testing.T) {
	bubble(t, "trap '' TERM; "+forever, func(n *node) {
		n.template.StopGrace = spec.Duration(3 * time.Second)
		n.want(spec.DesiredRunning)
		settle(time.Second)
		n.want(spec.DesiredStopped)
		settle(2 * time.Second)
		if s := n.status(); s.State != spec.TaskRunning || s.Reason != "stopping" {
			t.Errorf("within the grace: %+v", s)
		}
		settle(2 * time.Second)
		if s := n.status(); s.State != spec.TaskStopped || s.Attempts[0].ExitCode != 137 {
			t.Errorf("after the grace: %+v", s)
		}
		if k := n.host.Kills(task); !slices.Equal(k, []int{15, 9}) {
			t.Errorf("signals: %v", k)
		}
	})
}

func TestDrainingKeepsRunning(t *testing.T) {
	bubble(t, "sleep 30; exit 1", func(n *node) {
		n.want(spec.DesiredRunning)
		settle(time.Second)
		n.want(spec.DesiredDraining)
		settle(10 * time.Second)
		if s := n.status(); s.State != spec.TaskRunning || s.PID == 0 {
			t.Errorf("draining: %+v", s)
		}
		settle(30 * time.Second)
		if s := n.status(); s.State != spec.TaskStopped || n.host.Starts(task) != 1 {
			t.Errorf("ended while draining: %+v", s)
		}
	})
}

func TestRestartAndBackoff(t *testing.T) {
	bubble(t, "echo one; echo two; first sleep 0; sleep 1; exit 3", func(n *node) {
		n.want(spec.DesiredRunning)
		settle(1500 * time.Millisecond) // the first restart is immediate
		s := n.status()
		if s.State != spec.TaskRunning || s.Started != 2 || s.PID == 0 {
			t.Errorf("after the first end: %+v", s)
		}
		if a := s.Attempts[0]; a.ExitCode != 3 || a.Number != 1 || !slices.Equal(a.LastLog, []string{"one", "two"}) {
			t.Errorf("first attempt: %+v", a)
		}
		settle(time.Second)
		if s = n.status(); s.PID != 0 || s.NextStart.IsZero() || !strings.HasPrefix(s.Reason, "back-off ") || !strings.HasSuffix(s.Reason, " after exit 3 (attempt 2)") || s.Health != spec.HealthStarting {
			t.Errorf("backing off: %+v", s)
		}
		settle(time.Minute)
		s = n.status()
		if s.State != spec.TaskFailed || s.Started != 5 || n.host.Starts(task) != 5 || s.Reason != "5 attempts failed within 5 minutes, the last with exit 3" {
			t.Errorf("after five failures: %+v", s)
		}
		if left := n.host.Left(); len(left) != 0 {
			t.Errorf("left: %v", left)
		}
	})
}

func TestRestartConditions(t *testing.T) {
	tests := []struct {
		name    string
		script  string
		restart spec.Restart
		state   spec.TaskState
		starts  int
	}{
		{"none, success", "exit 0", spec.Restart{Condition: spec.RestartNone}, spec.TaskComplete, 1},
		{"none, failure", "exit 1", spec.Restart{Condition: spec.RestartNone}, spec.TaskFailed, 1},
		{"on-failure, success", "exit 0", spec.Restart{Condition: spec.RestartOnFailure}, spec.TaskComplete, 1},
		{"on-failure, failure", "exit 1", spec.Restart{Condition: spec.RestartOnFailure}, spec.TaskFailed, 5},
		{"max attempts", "exit 1", spec.Restart{Condition: spec.RestartAny, MaxAttempts: 2}, spec.TaskFailed, 3},
		{"max attempts, success", "exit 0", spec.Restart{Condition: spec.RestartAny, MaxAttempts: 2}, spec.TaskComplete, 3},
		{"slow", "sleep 200; exit 1", spec.Restart{Condition: spec.RestartAny, MaxAttempts: 1}, spec.TaskRunning, 3},
		{"oom", "oom", spec.Restart{Condition: spec.RestartNone}, spec.TaskFailed, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, tt.script, func(n *node) {
				n.template.Restart = tt.restart
				n.want(spec.DesiredRunning)
				settle(500 * time.Second)
				s := n.status()
				if s.State != tt.state || n.host.Starts(task) != tt.starts {
					t.Errorf("%d starts, status %+v", n.host.Starts(task), s)
				}
				if oom := len(s.Attempts) > 0 && s.Attempts[0].OOM; oom != (tt.script == "oom") {
					t.Errorf("OOM: %+v", s.Attempts)
				}
			})
		})
	}
}

func TestMissingCommand(t *testing.T) {
	bubble(t, "", func(n *node) {
		n.template.Entrypoint = []string{"/no/such"}
		n.want(spec.DesiredRunning)
		settle(2 * time.Second)
		s := n.status()
		if len(s.Attempts) == 0 || s.Attempts[0].ExitCode != 127 || !strings.Contains(s.Attempts[0].Error, "/no/such") || !strings.HasPrefix(s.Reason, "back-off") {
			t.Errorf("status: %+v", s)
		}
		settle(time.Minute)
		if s := n.status(); s.State != spec.TaskFailed || !strings.Contains(s.Reason, "/no/such") {
			t.Errorf("status at the end: %+v", s)
		}
	})
}

func TestRejected(t *testing.T) {
	tests := []struct {
		name   string
		op     string
		err    error
		reason string
	}{
		{"image", "Ensure", spec.NotFoundf("image example.com/app:1 does not exist"), "image example.com/app:1 does not exist"},
		{"platform", "Ensure", spec.Invalidf("no variant for linux/amd64"), "no variant for linux/amd64"},
		{"port", "Attach", spec.Conflictf("port 80/tcp is taken by nginx"), "port 80/tcp is taken by nginx"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, forever, func(n *node) {
				n.before(func(_ context.Context, op string, _ spec.TaskID) error {
					if op == tt.op {
						return tt.err
					}
					return nil
				})
				n.want(spec.DesiredRunning)
				settle(time.Second)
				if s := n.status(); s.State != spec.TaskRejected || s.Reason != tt.reason {
					t.Errorf("status: %+v", s)
				}
				n.want("")
				settle(time.Second)
				n.empty()
			})
		})
	}
}

// TestStandingReasons checks that every obstacle that may pass is told, and
// that the task goes on when it has.
func TestStandingReasons(t *testing.T) {
	for _, op := range []string{"Ensure", "Content", "Attach", "Create", "SetLogs", "Start", "List"} {
		t.Run(op, func(t *testing.T) {
			bubble(t, forever, func(n *node) {
				content, err := spec.PackContent([]spec.ContentFile{{Path: ".", Mode: 0o444, Data: []byte("x")}})
				if err != nil {
					t.Fatal(err)
				}
				id := spec.PlainContentID(content)
				n.host.Contents[id] = content
				n.template.Mounts = []spec.Mount{{Type: spec.MountContent, Target: "/conf", Content: id}}
				ok := make(chan struct{})
				n.before(func(_ context.Context, o string, _ spec.TaskID) error {
					select {
					case <-ok:
					default:
						if o == op {
							return spec.Unavailablef("%s is not there", op)
						}
					}
					return nil
				})
				n.want(spec.DesiredRunning)
				settle(20 * time.Second)
				s := n.status()
				if op != "List" && (!strings.Contains(s.Reason, op+" is not there; next try in ") || s.State.Terminal() || len(s.Attempts) > 0) {
					t.Errorf("status: %+v", s)
				}
				close(ok)
				settle(20 * time.Second)
				if s := n.status(); s.State != spec.TaskRunning || s.Reason != "" || n.host.Starts(task) != 1 {
					t.Errorf("status when it is there: %+v", s)
				}
			})
		})
	}
}

func TestStopInterruptsPreparation(t *testing.T) {
	bubble(t, forever, func(n *node) {
		n.before(func(ctx context.Context, op string, _ spec.TaskID) error {
			if op == "Ensure" {
				<-ctx.Done()
			}
			return nil
		})
		n.want(spec.DesiredRunning)
		settle(time.Minute)
		if s := n.status(); s.State != spec.TaskPreparing || s.Reason != "pulling example.com/app:1" {
			t.Errorf("status: %+v", s)
		}
		n.want(spec.DesiredRemoved)
		settle(time.Second)
		if s := n.status(); s.State != spec.TaskStopped {
			t.Errorf("status: %+v", s)
		}
	})
}

func TestReportsAreRetried(t *testing.T) {
	bubble(t, forever, func(n *node) {
		var up atomic.Bool
		n.before(func(_ context.Context, op string, _ spec.TaskID) error {
			if op == "Report" && !up.Load() {
				return spec.Unavailablef("no leader")
			}
			return nil
		})
		n.want(spec.DesiredRunning)
		settle(time.Minute)
		if s := n.status(); s.State != "" {
			t.Fatalf("reported: %+v", s)
		}
		up.Store(true)
		settle(10 * time.Second)
		if s := n.status(); s.State != spec.TaskRunning || n.host.Info() == nil {
			t.Errorf("status: %+v", s)
		}
	})
}

func TestRestoredStateIsToldAgain(t *testing.T) {
	bubble(t, forever, func(n *node) {
		n.want(spec.DesiredRunning)
		settle(time.Second)
		before := len(n.host.History(task))
		n.wanted.Incarnation++
		n.wanted.Index = 0
		n.want(spec.DesiredRunning)
		settle(time.Second)
		if h := n.host.History(task); len(h) != before+1 || h[before].State != spec.TaskRunning {
			t.Errorf("reports: %+v", h[before:])
		}
	})
}

// alsoConfigure adds to the configuration of the next agent.
func (n *node) alsoConfigure(f func(c *agent.Config)) {
	first := n.configure
	n.configure = func(c *agent.Config) { first(c); f(c) }
}
