package agent_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"wherry.dev/agent"
	"wherry.dev/spec"
)

// leased runs a test on a node with an exclusive task, a keeper that enforces
// what it is told, and managers that answer while up is true.
func leased(t *testing.T, script string, test func(n *node, up *atomic.Bool)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, script)
		n.template.Exclusive = true
		boot := time.Now().Add(-time.Hour)
		n.clock = func() time.Duration { return time.Since(boot) }
		var up atomic.Bool
		up.Store(true)
		n.configure = func(c *agent.Config) {
			c.Lease = func(ctx context.Context) (time.Duration, error) {
				if !up.Load() {
					return 0, spec.Unavailablef("no leader now")
				}
				return 15 * time.Second, nil
			}
			c.Leases = n.host
			c.Cgroup = func(t spec.TaskID) string { return "/wherry-n1/" + string(t) }
		}
		ended, end := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			for ended.Err() == nil {
				n.host.Enforce(int64(n.clock()))
				time.Sleep(100 * time.Millisecond)
			}
		}()
		n.agent()
		test(n, &up)
		n.stop()
		end()
		<-done
		n.check()
	})
}

func TestLease(t *testing.T) {
	leased(t, forever, func(n *node, up *atomic.Bool) {
		n.want(spec.DesiredRunning)
		settle(time.Second)
		if s := n.status(); s.State != spec.TaskRunning || s.Reason != "" {
			t.Fatalf("status: %+v", s)
		}
		l := n.host.Leases()
		if left := time.Duration(l[0].Deadline) - n.clock(); len(l) != 1 || l[0].Task != task || l[0].Cgroup != "/wherry-n1/1-1" || left < 13*time.Second || left > 15*time.Second {
			t.Errorf("leases: %+v, %s left", l, left)
		}
		settle(time.Minute)
		if n.host.Starts(task) != 1 {
			t.Error("restarted while the lease was renewed")
		}

		// No manager answers: the task ends when the lease is over, not before.
		up.Store(false)
		settle(9 * time.Second)
		if s := n.status(); s.PID == 0 {
			t.Errorf("ended early: %+v", s)
		}
		settle(7 * time.Second)
		s := n.status()
		if s.PID != 0 || s.State != spec.TaskRunning || !strings.HasPrefix(s.Reason, "waits for a lease: no manager answers") || s.Health != spec.HealthStarting {
			t.Errorf("after the end of the lease: %+v", s)
		}
		settle(10 * time.Minute)
		if s := n.status(); n.host.Starts(task) != 1 || s.PID != 0 || s.State.Terminal() {
			t.Errorf("without a lease: %+v", s)
		}
		if h := len(n.host.History(task)); h > 12 {
			t.Errorf("%d reports of a task that waits", h)
		}

		// Another lease: it goes on, and it was no failure.
		up.Store(true)
		settle(3 * time.Second)
		s = n.status()
		if s.PID == 0 || s.Reason != "" || len(s.Attempts) != 1 || s.Attempts[0].Error != "its lease was over: no manager answered in time" {
			t.Errorf("with another lease: %+v", s)
		}
		n.want(spec.DesiredStopped)
		settle(time.Second)
		n.want("")
		settle(time.Second)
		n.empty()
		if l := n.host.Leases(); len(l) != 0 {
			t.Errorf("leases at the end: %+v", l)
		}
		calls := len(n.host.Calls())
		settle(time.Minute)
		if slices.Contains(n.host.Calls()[calls:], "SetLeases ") {
			t.Error("leases go on without an exclusive task")
		}
	})
}

// TestLeaseLateAnswer: a lease counts from the moment of asking.
func TestLeaseLateAnswer(t *testing.T) {
	leased(t, forever, func(n *node, up *atomic.Bool) {
		n.stop()
		n.alsoConfigure(func(c *agent.Config) {
			c.Lease = func(ctx context.Context) (time.Duration, error) {
				time.Sleep(3 * time.Second)
				return 7500 * time.Millisecond, nil
			}
		})
		n.agent()
		n.want(spec.DesiredRunning)
		settle(time.Minute)
		if n.host.Starts(task) != 0 {
			t.Error("started with less than 5 s left")
		}
		if s := n.status(); !strings.HasPrefix(s.Reason, "waits for a lease") {
			t.Errorf("status: %+v", s)
		}
	})
}

// TestLeaseWithoutKeeper: what the keeper was not told does not count.
func TestLeaseWithoutKeeper(t *testing.T) {
	leased(t, forever, func(n *node, up *atomic.Bool) {
		var dead atomic.Bool
		n.before(func(_ context.Context, op string, _ spec.TaskID) error {
			if op == "SetLeases" && dead.Load() {
				return spec.Unavailablef("no keeper is running")
			}
			return nil
		})
		dead.Store(true)
		n.want(spec.DesiredRunning)
		settle(30 * time.Second)
		if n.host.Starts(task) != 0 {
			t.Error("started without a keeper")
		}
		dead.Store(false)
		settle(3 * time.Second)
		if n.host.Starts(task) != 1 {
			t.Error("not started with a keeper")
		}
	})
}

// TestLeaseOutlivesDaemon: a daemon that comes back finds the task running by
// the old lease, and an end that the keeper made is known for what it is.
func TestLeaseOutlivesDaemon(t *testing.T) {
	for _, away := range []time.Duration{5 * time.Second, time.Minute} {
		t.Run(away.String(), func(t *testing.T) {
			leased(t, forever, func(n *node, up *atomic.Bool) {
				n.want(spec.DesiredRunning)
				settle(2 * time.Second)
				n.stop()
				up.Store(false)
				settle(away)
				n.agent()
				n.a.Set(n.wanted)
				settle(2 * time.Second)
				s := n.status()
				if early := away < 10*time.Second; early != (s.PID != 0) || s.State != spec.TaskRunning || n.host.Starts(task) != 1 {
					t.Errorf("back: %+v", s)
				}
				settle(15 * time.Second)
				s = n.status()
				if s.PID != 0 || !strings.HasPrefix(s.Reason, "waits for a lease: no manager answers") || len(s.Attempts) != 1 || !strings.HasPrefix(s.Attempts[0].Error, "its lease was over") {
					t.Errorf("without a lease: %+v", s)
				}
				up.Store(true)
				settle(3 * time.Second)
				if s := n.status(); s.PID == 0 || n.host.Starts(task) != 2 {
					t.Errorf("with another lease: %+v", s)
				}
			})
		})
	}
}

// TestLeaseKilledByAgent: without a keeper that does it, the agent ends the
// task itself, also one that is being stopped with a long grace.
func TestLeaseKilledByAgent(t *testing.T) {
	for _, stop := range []bool{false, true} {
		leased(t, "trap '' TERM; "+forever, func(n *node, up *atomic.Bool) {
			n.template.StopGrace = spec.Duration(time.Hour)
			n.want(spec.DesiredRunning)
			settle(2 * time.Second)
			up.Store(false)
			if stop {
				n.want(spec.DesiredStopped)
			}
			n.before(func(_ context.Context, op string, _ spec.TaskID) error { return nil })
			n.host.SetLeases(context.Background(), nil) // the keeper has lost its memory
			settle(20 * time.Second)
			if k := n.host.Kills(task); len(k) == 0 || k[len(k)-1] != 9 {
				t.Errorf("stop %v: signals %v", stop, k)
			}
		})
	}
}

// TestLeaseEndsWhatHangs: a task whose end hangs gets no later deadline, though
// managers answer, so that the keeper ends it; one within its grace is left alone.
func TestLeaseEndsWhatHangs(t *testing.T) {
	for _, tt := range []struct {
		name    string
		desired spec.TaskDesired
		grace   time.Duration
		restart bool // of the daemon, meanwhile
		lives   time.Duration
		dead    time.Duration
	}{
		{"to be stopped", spec.DesiredStopped, 20 * time.Second, false, 28 * time.Second, 37 * time.Second},
		{"restarted", spec.DesiredStopped, 20 * time.Second, true, 28 * time.Second, 37 * time.Second},
		{"not wanted", "", time.Hour, false, 8 * time.Second, 17 * time.Second},
		{"draining", spec.DesiredDraining, time.Second, false, time.Minute, 0},
		{"in its grace", spec.DesiredStopped, time.Hour, false, time.Minute, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leased(t, "trap '' TERM; "+forever, func(n *node, up *atomic.Bool) {
				n.template.StopGrace = spec.Duration(tt.grace)
				n.want(spec.DesiredRunning)
				settle(2 * time.Second)
				n.before(func(ctx context.Context, op string, _ spec.TaskID) error {
					if op == "Kill" {
						<-ctx.Done() // the runtime hangs
						return ctx.Err()
					}
					return nil
				})
				n.want(tt.desired)
				begin := time.Now()
				if tt.restart {
					settle(25 * time.Second)
					n.stop()
					n.agent()
					n.a.Set(n.wanted)
				}
				alive := func() bool {
					list, err := n.host.List(context.Background())
					return err != nil || len(list) > 0 && list[0].State == agent.RunRunning
				}
				settle(tt.lives - time.Since(begin))
				if !alive() {
					t.Fatalf("ended within %s", tt.lives)
				}
				if tt.dead > 0 {
					settle(tt.dead - time.Since(begin))
					if alive() {
						t.Errorf("runs after %s: %+v", tt.dead, n.host.Leases())
					}
				}
				n.before(func(context.Context, string, spec.TaskID) error { return nil })
			})
		})
	}
}

// TestRefused: while another host has the identity nothing is started, neither
// by the stored document nor by one that is told; what runs goes on.
func TestRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, forever)
		var refused atomic.Bool
		n.configure = func(c *agent.Config) { c.Refused = refused.Load }
		n.agent()
		n.want(spec.DesiredRunning)
		settle(time.Second)
		refused.Store(true)
		settle(30 * time.Second)
		if s := n.status(); s.PID == 0 || n.host.Starts(task) != 1 {
			t.Errorf("running: %+v", s)
		}
		n.stop()
		n.host.Reboot()
		n.agent()
		settle(time.Minute)
		if got := n.host.Starts(task); got != 1 {
			t.Errorf("%d starts by the stored document of a refused host", got)
		}
		// The refusal is over, and no manager says what is wanted.
		refused.Store(false)
		settle(8 * time.Second)
		if got := n.host.Starts(task); got != 1 {
			t.Errorf("%d starts before it has settled", got)
		}
		settle(4 * time.Second)
		if got := n.host.Starts(task); got != 2 {
			t.Errorf("%d starts after it has settled", got)
		}
		refused.Store(true)
		n.exchange("1-9")
		settle(time.Minute)
		if got := n.host.Starts("1-9"); got != 0 {
			t.Errorf("%d starts by a new document of a refused host", got)
		}
		refused.Store(false)
		settle(2 * time.Second)
		if got := n.host.Starts("1-9"); got != 1 {
			t.Errorf("%d starts after the refusal", got)
		}
		n.stop()
		n.check()
	})
}

func TestNoWayToLeases(t *testing.T) {
	bubble(t, forever, func(n *node) {
		n.template.Exclusive = true
		n.want(spec.DesiredRunning)
		settle(time.Minute)
		if s := n.status(); n.host.Starts(task) != 0 || s.Reason != "waits for a lease: this node cannot ask for one" {
			t.Errorf("status: %+v", s)
		}
	})
}

// TestSettle: the stored document alone starts nothing for a while; what runs
// is left alone, what is not wanted is stopped.
func TestSettle(t *testing.T) {
	tests := []struct {
		name    string
		reboot  bool // nothing runs any more
		desired spec.TaskDesired
		tell    time.Duration // when a manager is heard; 0 is never
		early   int           // starts after 9 s
		late    int           // and after 20 s
		kills   []int         // after 9 s
	}{
		{"running", false, spec.DesiredRunning, 0, 1, 1, nil},
		{"rebooted", true, spec.DesiredRunning, 0, 1, 2, nil},
		{"rebooted, a manager is heard", true, spec.DesiredRunning, time.Second, 2, 2, nil},
		{"rebooted, a manager wants another", true, "", time.Second, 1, 1, nil},
		{"to be stopped", false, spec.DesiredStopped, 0, 1, 1, []int{15}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, forever, func(n *node) {
				n.want(spec.DesiredRunning)
				settle(time.Second)
				if tt.desired == spec.DesiredStopped {
					// The document is stored, and the agent ends before it can act.
					n.before(func(_ context.Context, op string, _ spec.TaskID) error {
						if op == "Kill" {
							return spec.Unavailablef("not now")
						}
						return nil
					})
					n.want(tt.desired)
					settle(time.Second)
				}
				n.stop()
				n.before(func(context.Context, string, spec.TaskID) error { return nil })
				if tt.reboot {
					n.host.Reboot()
				}
				n.agent()
				settle(time.Millisecond)
				if tt.tell > 0 {
					old := n.wanted
					old.Index--
					n.a.Set(old) // a manager that is behind counts for nothing
					settle(tt.tell)
					if got := n.host.Starts(task); got != 1 {
						t.Errorf("%d starts before a manager was heard", got)
					}
					n.want(tt.desired)
				}
				settle(8 * time.Second)
				if got := n.host.Starts(task); got != tt.early {
					t.Errorf("%d starts early, want %d", got, tt.early)
				}
				if got := n.host.Kills(task); !slices.Equal(got, tt.kills) {
					t.Errorf("signals: %v, want %v", got, tt.kills)
				}
				settle(10 * time.Second)
				if got := n.host.Starts(task); got != tt.late {
					t.Errorf("%d starts late, want %d", got, tt.late)
				}
			})
		})
	}
}

// TestFirstDocumentIsNotWaitedFor: a node without a stored document starts at
// once what it is told.
func TestFirstDocumentIsNotWaitedFor(t *testing.T) {
	bubble(t, forever, func(n *node) {
		n.want(spec.DesiredRunning)
		settle(200 * time.Millisecond)
		if n.host.Starts(task) != 1 {
			t.Error("not started")
		}
	})
}

// exchange makes the node want the task other in place of the first one.
func (n *node) exchange(other spec.TaskID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.wanted.Index++
	next := n.wanted.Tasks[0]
	next.ID, next.Slot = other, 2
	n.wanted.Tasks = []spec.Task{next}
	n.a.Set(n.wanted)
}

// TestStopsComeFirst: in one document, what is no longer wanted is told to stop
// before what is new is started; a stop that hangs holds nothing up for long.
func TestStopsComeFirst(t *testing.T) {
	for _, hang := range []bool{false, true} {
		bubble(t, forever, func(n *node) {
			n.want(spec.DesiredRunning)
			settle(time.Second)
			n.before(func(ctx context.Context, op string, id spec.TaskID) error {
				if op == "Kill" && id == task {
					if hang {
						<-ctx.Done()
						return ctx.Err()
					}
					time.Sleep(300 * time.Millisecond)
				}
				return nil
			})
			n.exchange("1-9")
			settle(2 * time.Second)
			if n.host.Starts("1-9") != 1 {
				t.Fatalf("hang %v: the new task was not started", hang)
			}
			calls := n.host.Calls()
			if kill, start := slices.Index(calls, "Kill 1-1"), slices.Index(calls, "Start 1-9"); !hang && (kill < 0 || start < kill) {
				t.Errorf("started before the other was told to stop: %v", calls)
			}
		})
	}
}

func TestLeave(t *testing.T) {
	for _, purge := range []bool{false, true} {
		bubble(t, "echo hello; "+forever, func(n *node) {
			n.stop()
			purged := false
			n.configure = func(c *agent.Config) {
				c.PurgeImages = func(context.Context) error { purged = true; return nil }
			}
			n.agent()
			n.template.Mounts = []spec.Mount{{Type: spec.MountVolume, Source: "data", Target: "/data"}}
			n.wanted.Volumes = []spec.Volume{{ID: "1-3", Name: "shop_data"}}
			n.want(spec.DesiredRunning)
			settle(time.Second)
			if err := n.a.Leave(n.t.Context(), purge); err != nil {
				t.Errorf("leave: %v", err)
			}
			if left := n.host.Left(); len(left) > 0 {
				t.Errorf("left on the host: %v", left)
			}
			if s := n.status(); s.State != spec.TaskStopped {
				t.Errorf("status: %+v", s)
			}
			n.want(spec.DesiredRunning) // nobody is asked any more
			settle(time.Minute)
			if n.host.Starts(task) != 1 {
				t.Error("started again")
			}
			var names []string
			filepath.WalkDir(n.data, func(path string, d os.DirEntry, err error) error {
				if rel, _ := filepath.Rel(n.data, path); rel != "." {
					names = append(names, rel)
				}
				return err
			})
			want := []string{"logs", "logs/1-1", "logs/1-1/log", "volumes", "volumes/1-3", "volumes/1-3/_data"}
			if purge {
				want = nil
			}
			if !slices.Equal(names, want) || purged != purge {
				t.Errorf("purge %v: files %q, images purged %v", purge, names, purged)
			}
		})
	}
}

// TestLeaveTellsWhatIsLeft: it says what it could not remove, and goes on when
// it is called again.
func TestLeaveTellsWhatIsLeft(t *testing.T) {
	bubble(t, forever, func(n *node) {
		n.want(spec.DesiredRunning)
		settle(time.Second)
		var stuck atomic.Bool
		stuck.Store(true)
		n.before(func(_ context.Context, op string, _ spec.TaskID) error {
			if op == "Detach" && stuck.Load() {
				return spec.Unavailablef("the network is busy")
			}
			return nil
		})
		ctx, cancel := context.WithTimeout(n.t.Context(), 5*time.Second)
		defer cancel()
		err := n.a.Leave(ctx, true)
		if err == nil || !strings.Contains(err.Error(), "task 1-1") || !strings.Contains(err.Error(), "the network is busy") {
			t.Errorf("leave: %v", err)
		}
		stuck.Store(false)
		if err := n.a.Leave(n.t.Context(), true); err != nil {
			t.Errorf("leave again: %v", err)
		}
		n.empty()
	})
}

// TestMTUIsReported: with what else the node is and reaches, and again when one
// of them changes.
func TestMTUIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, forever)
		var mtu, reports atomic.Int64
		n.configure = func(c *agent.Config) {
			c.MTU = func() int { return int(mtu.Load() &^ 1) }
			c.Subnets = func() string { return fmt.Sprint(mtu.Load() & 1) }
		}
		n.before(func(_ context.Context, op string, _ spec.TaskID) error {
			if op == "Report" {
				reports.Add(1)
			}
			return nil
		})
		n.agent()
		settle(time.Second)
		if i := n.host.Info(); i == nil || i.MTU != 0 || i.Memory == 0 {
			t.Fatalf("before it is known: %+v", i)
		}
		for i, m := range []int64{1500, 1400, 1401} { // the last bit stands for the subnets
			mtu.Store(m)
			settle(30 * time.Second)
			if info := n.host.Info(); int64(info.MTU) != m&^1 || info.Subnets != fmt.Sprint(m&1) || info.Memory == 0 || reports.Load() != int64(i)+2 {
				t.Errorf("MTU %d: %d reports, %+v", m, reports.Load(), info)
			}
		}
		n.stop()
	})
}

func TestIdentityIsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, forever)
		var trusts atomic.Value
		trusts.Store("a")
		changed := make(chan struct{}, 1)
		n.configure = func(c *agent.Config) {
			c.InfoChanged = changed
			c.Identity = func() (string, string, int) { return "a", trusts.Load().(string), 3 }
		}
		n.agent()
		settle(time.Second)
		if i := n.host.Info(); i == nil || i.Issuer != "a" || i.Trusts != "a" || i.Format != 3 || i.Memory == 0 {
			t.Errorf("node info: %+v", i)
		}
		trusts.Store("a,b")
		changed <- struct{}{}
		settle(100 * time.Millisecond)
		if i := n.host.Info(); i.Trusts != "a,b" || i.Memory == 0 {
			t.Errorf("node info after a change: %+v", i)
		}
		n.stop()
	})
}
