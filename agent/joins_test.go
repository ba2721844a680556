package agent_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"wherry.dev/spec"
)

const partner = spec.TaskID("1-2")

// wantPair says that the task and one that joins it are to be as desired.
func (n *node) wantPair(head, side spec.TaskDesired) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.wanted.Node = "n1"
	n.wanted.Index++
	n.wanted.Tasks, n.wanted.Revisions = nil, nil
	beside := n.template
	beside.NetworkMode, beside.Hostname, beside.DNSSearch = spec.JoinMode("web"), "", nil
	if head != "" {
		n.wanted.Tasks = append(n.wanted.Tasks, spec.Task{ID: task, Stack: "shop", Service: "web", Slot: 1, Revision: "r1", Node: "n1", Desired: head,
			Addresses: []spec.Address{{Network: "1-2", IP: "10.0.1.7/24"}}, Status: spec.TaskStatus{State: spec.TaskAssigned}})
	}
	if side != "" {
		n.wanted.Tasks = append(n.wanted.Tasks, spec.Task{ID: partner, Stack: "shop", Service: "side", Slot: 1, Revision: "r2", Node: "n1", Desired: side,
			Joins: task, Status: spec.TaskStatus{State: spec.TaskAssigned}})
	}
	n.wanted.Revisions = map[spec.RevisionID]spec.Template{"r1": n.template, "r2": beside}
	n.a.Set(n.wanted)
}

// calls are those that begin with one of the words.
func (n *node) calls(words ...string) []string {
	return slices.DeleteFunc(n.host.Calls(), func(c string) bool {
		return !slices.ContainsFunc(words, func(w string) bool { return strings.HasPrefix(c, w) })
	})
}

func TestJoin(t *testing.T) {
	bubble(t, forever, func(n *node) {
		n.template.Hostname, n.template.DNSSearch = "chosen", []string{"shop.test"}
		n.wantPair(spec.DesiredRunning, spec.DesiredRunning)
		settle(time.Second)
		if a, b := n.status(), n.host.Status(partner); a.State != spec.TaskRunning || b.State != spec.TaskRunning {
			t.Fatalf("%+v, %+v", a, b)
		}
		c, _ := n.host.Container(partner)
		if c.NetNS != "/netns/1-1" || c.Hostname != "chosen" {
			t.Errorf("it is called %q, in %q", c.Hostname, c.NetNS)
		}
		for name, want := range map[string]string{"hosts": "10.0.1.7\tchosen\n", "resolv.conf": "search shop.test\n"} {
			if b, err := os.ReadFile(filepath.Join(n.run, "tasks", string(partner), name)); !strings.Contains(string(b), want) {
				t.Errorf("%s: %q, %v", name, b, err)
			}
		}
		if got := n.calls("Attach"); !slices.Equal(got, []string{"Attach 1-1"}) {
			t.Errorf("attached: %q", got)
		}
		// What ends by itself is started again, and concerns nobody else.
		n.host.End(partner, 1)
		settle(time.Second)
		n.host.End(task, 1)
		settle(time.Second)
		if a, b := n.host.Starts(task), n.host.Starts(partner); a != 2 || b != 2 {
			t.Errorf("%d and %d starts", a, b)
		}
		// The partner is exchanged.
		n.wantPair(spec.DesiredRunning, "")
		settle(time.Second)
		if n.host.State(task).State != "running" || len(n.host.Kills(task)) > 0 || n.host.Status(partner).State != spec.TaskStopped {
			t.Errorf("%+v beside %+v", n.host.State(task), n.host.Status(partner))
		}
	})
}

// TestJoinWaits: a task is started when the one that it joins has a network.
func TestJoinWaits(t *testing.T) {
	bubble(t, forever, func(n *node) {
		n.template.Sysctls = nil
		fail := true
		n.before(func(_ context.Context, op string, _ spec.TaskID) error {
			if op == "Attach" && fail {
				return spec.Unavailablef("not here yet")
			}
			return nil
		})
		n.wantPair(spec.DesiredRunning, spec.DesiredRunning)
		settle(10 * time.Second)
		if n.host.Starts(task)+n.host.Starts(partner) != 0 {
			t.Fatalf("started: %v", n.host.Calls())
		}
		fail = false
		settle(10 * time.Second)
		if n.host.Starts(task) != 1 || n.host.Starts(partner) != 1 {
			t.Errorf("started: %v", n.calls("Start"))
		}
	})
}

// TestJoinEnds: whatever ends a task, those that join it end first.
func TestJoinEnds(t *testing.T) {
	order := []string{"Kill 1-2", "Remove 1-2", "Kill 1-1", "Remove 1-1", "Detach 1-1"}
	for _, tt := range []struct {
		name string
		end  func(n *node)
		want []string
	}{
		{"stop", func(n *node) { n.wantPair(spec.DesiredStopped, spec.DesiredStopped) }, order},
		{"stop of the one", func(n *node) { n.wantPair(spec.DesiredStopped, spec.DesiredRunning) }, order},
		{"forgotten", func(n *node) { n.wantPair("", "") }, order},
		{"one forgotten", func(n *node) { n.wantPair("", spec.DesiredRunning) }, order},
		{"failure", func(n *node) { n.host.End(task, 1) }, []string{"Remove 1-1", "Kill 1-2", "Remove 1-2", "Detach 1-1"}},
		{"stop after a restart", func(n *node) {
			n.stop()
			n.agent()
			n.wantPair(spec.DesiredStopped, spec.DesiredStopped)
		}, order},
		{"forgotten after a restart", func(n *node) {
			n.stop()
			n.agent()
			n.wantPair("", "")
		}, order},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, "first "+forever, func(n *node) {
				n.template.Restart.Condition = spec.RestartNone
				n.wantPair(spec.DesiredRunning, spec.DesiredRunning)
				settle(time.Second)
				if n.host.Starts(task) != 1 || n.host.Starts(partner) != 1 {
					t.Fatalf("started: %v", n.calls("Start"))
				}
				before := len(n.calls("Kill", "Remove", "Detach"))
				tt.end(n)
				settle(25 * time.Second)
				got := n.calls("Kill", "Remove", "Detach")[before:]
				if tt.name == "failure" { // who is removed first does not matter
					slices.Sort(got[:3])
					slices.Sort(tt.want[:3])
				}
				if !slices.Equal(got, tt.want) {
					t.Errorf("got %q, want %q", got, tt.want)
				}
				if s := n.host.Status(partner); s.State != spec.TaskStopped {
					t.Errorf("%+v", s)
				}
				if n.host.Starts(partner) != 1 {
					t.Errorf("it was started again")
				}
				n.wantPair("", "")
				settle(time.Minute)
				n.empty()
			})
		})
	}
}

// TestJoinServed: a task that joins one to which hosts send is told to stop with
// it when they have been asked, and at once when that one goes on.
func TestJoinServed(t *testing.T) {
	served(t, forever, func(n *node, s *senders, _ *lines) {
		n.wantPair(spec.DesiredRunning, spec.DesiredRunning)
		settle(time.Second)
		n.wantPair(spec.DesiredStopped, spec.DesiredStopped)
		settle(200 * time.Millisecond)
		if k := n.host.Kills(partner); len(k) > 0 {
			t.Errorf("signals before anybody has answered: %v", k)
		}
		for range 2 { // both tasks ask
			s.answer("n1", nil)
			s.answer("n2", nil)
		}
		settle(500 * time.Millisecond)
		if len(n.host.Kills(partner)) != 1 || len(n.host.Kills(task)) != 1 {
			t.Errorf("signals: %v and %v", n.host.Kills(partner), n.host.Kills(task))
		}
	})
	served(t, forever, func(n *node, _ *senders, _ *lines) {
		n.wantPair(spec.DesiredRunning, spec.DesiredRunning)
		settle(time.Second)
		n.wantPair(spec.DesiredRunning, spec.DesiredStopped)
		settle(200 * time.Millisecond)
		if k := n.host.Kills(partner); len(k) != 1 {
			t.Errorf("signals: %v", k)
		}
	})
}

// TestJoinCrash: the agent is killed after each of its side effects in the life
// of a pair.
func TestJoinCrash(t *testing.T) {
	story := func(t *testing.T, left int) (effects int) {
		synctest.Test(t, func(t *testing.T) {
			n := newNode(t, forever)
			boot := time.Now()
			n.clock = func() time.Duration { return time.Since(boot) }
			c := &crasher{left: left, died: make(chan struct{})}
			end := n.life(c)
			n.wantPair(spec.DesiredRunning, spec.DesiredRunning)
			settle(30 * time.Second)
			if n.host.Starts(task) != 1 || n.host.Starts(partner) != 1 || n.host.Status(partner).State != spec.TaskRunning {
				t.Errorf("started: %v, %+v", n.calls("Start"), n.host.Status(partner))
			}
			n.wantPair(spec.DesiredStopped, spec.DesiredStopped)
			settle(30 * time.Second)
			if a, b := n.status(), n.host.Status(partner); a.State != spec.TaskStopped || b.State != spec.TaskStopped {
				t.Errorf("%+v, %+v", a, b)
			}
			n.wantPair("", "")
			settle(60 * time.Second)
			n.empty()
			end()
			n.check()
			if t.Failed() && left >= 0 {
				t.Logf("crash after effect %d, %s; calls: %s", left, c.where, strings.Join(n.host.Calls(), ", "))
			}
			effects = c.count
		})
		return effects
	}
	effects := story(t, -1)
	if effects < 40 {
		t.Fatalf("the story has only %d effects", effects)
	}
	for k := range effects {
		t.Run(fmt.Sprint(k), func(t *testing.T) { story(t, k) })
	}
}
