package agent_test

import (
	"context"
	"errors"
	"log/slog"
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

// senders are the hosts n1 and n2, which answer when they are let. A host that
// is never let hangs as long as it may.
type senders struct {
	mu    sync.Mutex
	let   map[spec.NodeID]chan error
	asked []spec.NodeID
	addrs []spec.Address // of the last question
	left  int            // questions that were given up
}

func (s *senders) answer(n spec.NodeID, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.let[n] <- err
}

func (s *senders) withdrawn(ctx context.Context, n spec.NodeID, addrs []spec.Address) error {
	s.mu.Lock()
	s.asked, s.addrs = append(s.asked, n), addrs
	let := s.let[n]
	s.mu.Unlock()
	select {
	case err := <-let:
		return err
	case <-ctx.Done():
		s.mu.Lock()
		defer s.mu.Unlock()
		s.left++
		return errors.New("no answer in time")
	}
}

// lines are the messages that were logged, with their level.
type lines struct {
	slog.Handler
	mu  sync.Mutex
	all []string
}

func (l *lines) Enabled(context.Context, slog.Level) bool { return true }

func (l *lines) Handle(_ context.Context, r slog.Record) error {
	text := r.Level.String() + " " + r.Message
	r.Attrs(func(a slog.Attr) bool { text += " " + a.String(); return true })
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, text)
	return nil
}

func (l *lines) has(parts ...string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.all, func(line string) bool {
		return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) })
	})
}

// served runs a test on a node with a running task, to which two hosts send.
func served(t *testing.T, script string, test func(n *node, s *senders, log *lines)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, script)
		s := &senders{let: map[spec.NodeID]chan error{"n1": make(chan error, 9), "n2": make(chan error, 9)}}
		n.host.Nodes, n.host.OnWithdrawn = []spec.NodeID{"n1", "n2"}, s.withdrawn
		log := &lines{Handler: slog.DiscardHandler}
		n.configure = func(c *agent.Config) { c.Senders, c.Logger = n.host, slog.New(log) }
		n.agent()
		n.want(spec.DesiredRunning)
		settle(time.Second)
		test(n, s, log)
		n.stop()
		n.check()
	})
}

// TestDrain: the stop signal waits until both hosts have answered, and the grace
// begins then.
func TestDrain(t *testing.T) {
	served(t, "trap '' TERM; "+forever, func(n *node, s *senders, log *lines) {
		n.want(spec.DesiredStopped)
		settle(150 * time.Millisecond)
		if r := n.status().Reason; r != "" || len(n.host.Kills(task)) > 0 {
			t.Errorf("after a moment: %q, signals %v", r, n.host.Kills(task))
		}
		settle(150 * time.Millisecond)
		if r := n.status().Reason; r != "draining: waits until 2 hosts no longer send to it" {
			t.Errorf("a little later: %q", r)
		}
		s.answer("n1", nil)
		settle(200 * time.Millisecond)
		if st := n.status(); st.Reason != "draining: waits until 1 host no longer sends to it" || st.State != spec.TaskRunning || len(n.host.Kills(task)) > 0 {
			t.Errorf("one has answered: %+v, signals %v", st, n.host.Kills(task))
		}
		s.answer("n2", nil)
		settle(100 * time.Millisecond)
		if st := n.status(); st.Reason != "stopping" || !slices.Equal(n.host.Kills(task), []int{15}) {
			t.Errorf("both have answered: %+v, signals %v", st, n.host.Kills(task))
		}
		if !slices.Equal(s.asked, []spec.NodeID{"n1", "n2"}) && !slices.Equal(s.asked, []spec.NodeID{"n2", "n1"}) || s.addrs[0].IP != "10.0.1.7/24" {
			t.Errorf("asked %v about %v", s.asked, s.addrs)
		}
		settle(9800 * time.Millisecond) // the default is 10 s
		if k := n.host.Kills(task); len(k) != 1 {
			t.Errorf("within the grace: %v", k)
		}
		settle(300 * time.Millisecond)
		if k := n.host.Kills(task); !slices.Equal(k, []int{15, 9}) {
			t.Errorf("after the grace: %v", k)
		}
		if !log.has("DEBUG no host sends to the task any more", "task=1-1", "hosts=2", "took=500ms") {
			t.Errorf("log: %q", log.all)
		}
	})
}

func TestDrainIsBrief(t *testing.T) {
	served(t, forever, func(n *node, s *senders, log *lines) {
		s.answer("n1", nil)
		s.answer("n2", nil)
		n.want(spec.DesiredStopped)
		settle(100 * time.Millisecond)
		for _, st := range n.host.History(task) {
			if strings.Contains(st.Reason, "draining") {
				t.Errorf("told: %+v", st)
			}
		}
		if s := n.status(); s.State != spec.TaskStopped {
			t.Errorf("status: %+v", s)
		}
	})
}

// TestDrainTimesOut: neither a host that hangs nor one that is not there holds
// a task for longer than 2 s.
func TestDrainTimesOut(t *testing.T) {
	served(t, forever, func(n *node, s *senders, log *lines) {
		s.answer("n1", errors.New("no way to it"))
		n.want(spec.DesiredStopped)
		settle(1900 * time.Millisecond)
		if k := n.host.Kills(task); len(k) > 0 {
			t.Errorf("stopped early: %v", k)
		}
		settle(200 * time.Millisecond)
		if s := n.status(); s.State != spec.TaskStopped || s.Attempts[0].Signal != 15 {
			t.Errorf("status: %+v", s)
		}
		if !log.has("WARN a task is stopped to which hosts may still send", "task=1-1", "node n1: no way to it; node n2: no answer in time", "took=2s") {
			t.Errorf("log: %q", log.all)
		}
	})
}

// TestDrainEndsWithTheProcess: a process that ends by itself meanwhile is waited
// for no longer, and nobody is asked any more.
func TestDrainEndsWithTheProcess(t *testing.T) {
	served(t, forever, func(n *node, s *senders, log *lines) {
		n.want(spec.DesiredStopped)
		settle(500 * time.Millisecond)
		n.host.End(task, 3)
		settle(100 * time.Millisecond)
		if st := n.status(); st.State != spec.TaskStopped || st.Attempts[0].ExitCode != 3 || len(n.host.Kills(task)) > 0 || s.left != 2 {
			t.Errorf("%+v, signals %v, %d questions given up", st, n.host.Kills(task), s.left)
		}
		if log.has("WARN") {
			t.Errorf("log: %q", log.all)
		}
	})
}

// TestDrainAgain: a daemon that comes back in the middle asks again, and its
// wait begins anew; one that had sent the signal does not.
func TestDrainAgain(t *testing.T) {
	served(t, "trap '' TERM; "+forever, func(n *node, s *senders, log *lines) {
		n.want(spec.DesiredStopped)
		settle(time.Second)
		n.stop()
		n.agent()
		n.a.Set(n.wanted)
		settle(1500 * time.Millisecond)
		if k := n.host.Kills(task); len(k) > 0 || len(s.asked) != 4 {
			t.Errorf("signals %v, asked %v", k, s.asked)
		}
		s.answer("n1", nil)
		s.answer("n2", nil)
		settle(100 * time.Millisecond)
		n.stop()
		n.agent()
		n.a.Set(n.wanted)
		settle(time.Second)
		if k := n.host.Kills(task); !slices.Equal(k, []int{15, 15}) || len(s.asked) != 4 {
			t.Errorf("signals %v, asked %v", k, s.asked)
		}
	})
}

// TestDrainOneByOne: tasks that stop at the same time do not wait for one
// another, and what starts does not wait for them.
func TestDrainOneByOne(t *testing.T) {
	served(t, forever, func(n *node, s *senders, log *lines) {
		add := func(id spec.TaskID, ip string, desired spec.TaskDesired) {
			other := n.wanted.Tasks[0]
			other.ID, other.Slot, other.Desired = id, 2, desired
			other.Addresses = []spec.Address{{Network: "1-2", IP: ip}}
			n.wanted.Tasks = append(n.wanted.Tasks, other)
			n.wanted.Index++
			n.a.Set(n.wanted)
		}
		add("1-2", "10.0.1.8/24", spec.DesiredRunning)
		settle(time.Second)
		var gone atomic.Bool
		n.host.OnWithdrawn = func(ctx context.Context, n spec.NodeID, addrs []spec.Address) error {
			if addrs[0].IP == "10.0.1.8/24" {
				gone.Store(true)
				return nil
			}
			return s.withdrawn(ctx, n, addrs)
		}
		n.want(spec.DesiredStopped)
		add("1-2", "10.0.1.8/24", spec.DesiredStopped)
		add("1-3", "10.0.1.9/24", spec.DesiredRunning)
		settle(100 * time.Millisecond)
		if !gone.Load() || n.host.Status("1-2").State != spec.TaskStopped || n.status().State != spec.TaskRunning || n.host.Starts("1-3") != 1 {
			t.Errorf("%+v, %+v, %d starts", n.host.Status("1-2"), n.status(), n.host.Starts("1-3"))
		}
	})
}

// TestDrainSkipped: who ends for a reason that the managers do not share, or has
// nobody that sends to it, asks nobody.
func TestDrainSkipped(t *testing.T) {
	soon := 100 * time.Millisecond
	tests := []struct {
		name string
		do   func(n *node)
	}{
		{"not wanted any more", func(n *node) { n.want("") }},
		{"the node leaves", func(n *node) {
			go n.a.Leave(context.Background(), true)
		}},
		{"no address", func(n *node) {
			n.wanted.Tasks[0].Addresses, n.wanted.Tasks[0].Desired = nil, spec.DesiredStopped
			n.wanted.Index++
			n.a.Set(n.wanted)
		}},
		{"stops in the middle of a drain being forgotten", func(n *node) {
			n.want(spec.DesiredStopped)
			settle(time.Second)
			n.host.Nodes = nil // what is asked from now on is answered
			n.want("")
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			served(t, forever, func(n *node, s *senders, log *lines) {
				tt.do(n)
				settle(soon)
				if k := n.host.Kills(task); !slices.Equal(k, []int{15}) {
					t.Errorf("signals %v, asked %v", k, s.asked)
				}
			})
		})
	}
	t.Run("never ran", func(t *testing.T) {
		served(t, "exit 1", func(n *node, s *senders, log *lines) {
			settle(time.Second) // it backs off
			n.want(spec.DesiredStopped)
			settle(soon)
			if st := n.status(); st.State != spec.TaskStopped || len(s.asked) > 0 {
				t.Errorf("%+v, asked %v", st, s.asked)
			}
		})
	})
	t.Run("unhealthy", func(t *testing.T) {
		served(t, forever, func(n *node, s *senders, log *lines) {
			n.template.Health = &spec.HealthCheck{Test: []string{"CMD", "check"}, Interval: spec.Duration(time.Second), Retries: 1}
			n.host.OnExec = func(context.Context, spec.TaskID, []string) (string, int, error) { return "no", 1, nil }
			n.want(spec.DesiredRunning)
			settle(2 * time.Second)
			if k := n.host.Kills(task); len(k) == 0 || len(s.asked) > 0 {
				t.Errorf("signals %v, asked %v", k, s.asked)
			}
		})
	})
	t.Run("lease over", func(t *testing.T) {
		leased(t, forever, func(n *node, up *atomic.Bool) {
			s := &senders{let: map[spec.NodeID]chan error{}}
			n.host.Nodes, n.host.OnWithdrawn = []spec.NodeID{"n1"}, s.withdrawn
			n.stop()
			n.alsoConfigure(func(c *agent.Config) { c.Senders = n.host })
			n.agent()
			n.want(spec.DesiredRunning)
			settle(5100 * time.Millisecond)
			up.Store(false)
			n.host.SetLeases(context.Background(), nil) // the keeper has lost its memory
			settle(14 * time.Second)
			n.want(spec.DesiredStopped) // and the lease ends during the drain
			settle(time.Second)
			if k := n.host.Kills(task); !slices.Equal(k, []int{9}) || len(s.asked) != 1 {
				t.Errorf("signals %v, asked %v", k, s.asked)
			}
		})
	})
}
