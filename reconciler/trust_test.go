package reconciler

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// trial is a cluster with one service, shop/web, without health check.
func trial(t *testing.T, replicas int, restart string) *cluster {
	c := newCluster(t)
	c.addNode("n1")
	c.version(1, replicas, restart)
	c.plan()
	return c
}

// version declares a revision of the service of a trial. An update that fails
// pauses, so that what made it fail can be looked at.
func (c *cluster) version(n, replicas int, restart string) {
	c.files["s"] = fmt.Appendf(nil, `{"name": "shop", "services": {"web": {"mode": "replicated", "replicas": %d, "update": {"failure_action": "pause"}, "template": {"image": "web:%d", "restart": %s,
		"mounts": [{"type": "volume", "target": "/cache"}]}}}}`, replicas, n, restart)
	c.do("put s")
}

// attempts reports that the newest task of a name, if one is not over, had attempts which ended with the codes, each
// after a second, the last one now.
func (c *cluster) attempts(name string, state spec.TaskState, codes ...int) {
	c.t.Helper()
	s := spec.TaskStatus{State: state, Since: c.now, Started: len(codes)}
	if state == spec.TaskRunning {
		s.Started++
		s.Health = spec.HealthNone
	}
	for i, code := range codes {
		end := c.now.Add(time.Duration(i+1-len(codes)) * time.Second)
		s.Attempts = append(s.Attempts, spec.Attempt{Number: i + 1, Started: end.Add(-time.Second), Ended: end, ExitCode: code, LastLog: []string{"bye"}})
	}
	s.Attempts = s.Attempts[max(0, len(codes)-spec.KeepAttempts):]
	for _, t := range slices.Backward(c.store.Snapshot().Tasks()) {
		if !t.Status.State.Terminal() && c.name(t) == name {
			c.tell(t, s)
			return
		}
	}
}

// newestRuns reports that the newest task of a name runs since now.
func (c *cluster) newestRuns(name string) {
	c.t.Helper()
	c.report(name, spec.TaskRunning, string(spec.HealthNone))
}

func (c *cluster) expect(state, message string) {
	c.t.Helper()
	st, _ := Status(c.store.Snapshot(), "shop", c.now)
	s := st.Services[0]
	if s.State != state || s.Message != message {
		c.t.Errorf("at %s: %s %q, want %s %q", c.now.Format("15:04:05"), s.State, s.Message, state, message)
	}
}

func (c *cluster) pass(d time.Duration) { c.now = c.now.Add(d) }

const anyRestart = `{"condition": "any"}`

// TestFirstDeploy: a service runs when all its tasks are steady.
func TestFirstDeploy(t *testing.T) {
	c := trial(t, 2, anyRestart)
	c.newestRuns("shop.web.1")
	c.pass(2 * time.Second)
	c.newestRuns("shop.web.2")
	c.expect(StateUpdating, "shop.web.1 runs; it must last 5 s")
	c.pass(3 * time.Second)
	c.expect(StateUpdating, "shop.web.2 runs; it must last 5 s")
	c.pass(2 * time.Second)
	c.plan()
	c.expect(StateRunning, "")
	// After days one of them ends, and is started again at once.
	c.pass(72 * time.Hour)
	was := c.store.Snapshot().TasksOf("shop", "web")[0]
	status := was.Status
	status.Started, status.Attempts = 2, []spec.Attempt{{Number: 1, Started: status.Since, Ended: c.now, ExitCode: 3}}
	c.tell(was, status)
	c.pass(Monitor - 1)
	c.expect(StateDegraded, "shop.web.1: exit 3; it runs again and must last 5 s")
	c.pass(1)
	c.expect(StateRunning, "")
}

func TestFirstDeployThatCrashes(t *testing.T) {
	c := trial(t, 1, anyRestart)
	c.newestRuns("shop.web.1")
	c.expect(StateUpdating, "shop.web.1 runs; it must last 5 s")
	for i := 1; i <= 3; i++ {
		c.pass(time.Second)
		c.attempts("shop.web.1", spec.TaskRunning, []int{1, 1, 1}[:i]...)
		if i < 3 {
			c.expect(StateDegraded, "shop.web.1: exit 1: bye; it runs again and must last 5 s")
		} else {
			c.expect(StateFailed, "shop.web.1: exit 1: bye")
		}
	}
}

func TestSteady(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	ago := func(s float64) time.Time { return now.Add(-time.Duration(s * float64(time.Second))) }
	end := func(began, ended float64) spec.Attempt {
		return spec.Attempt{Started: ago(began), Ended: ago(ended), ExitCode: 1}
	}
	for _, tt := range []struct {
		name    string
		status  spec.TaskStatus
		restart spec.Restart
		update  spec.UpdateConfig
		wait    float64 // seconds until it is steady
	}{
		{name: "new", status: spec.TaskStatus{Since: now}, wait: 5},
		{name: "four seconds", status: spec.TaskStatus{Since: ago(4)}, wait: 1},
		{name: "long", status: spec.TaskStatus{Since: ago(5)}},
		{name: "longer monitor", update: spec.UpdateConfig{Monitor: spec.Duration(time.Minute)}, status: spec.TaskStatus{Since: ago(20)}, wait: 40},
		{name: "shorter monitor", update: spec.UpdateConfig{Monitor: spec.Duration(time.Second)}, status: spec.TaskStatus{Since: ago(1)}},
		{name: "healthy for long enough", update: spec.UpdateConfig{Monitor: spec.Duration(time.Minute)},
			status: spec.TaskStatus{Since: ago(900), Health: spec.HealthHealthy, HealthySince: ago(60)}},
		{name: "healthy since a moment ago", update: spec.UpdateConfig{Monitor: spec.Duration(time.Minute)},
			status: spec.TaskStatus{Since: ago(900), Health: spec.HealthHealthy, HealthySince: ago(59)}, wait: 1},
		{name: "healthy on a node that does not tell since when", update: spec.UpdateConfig{Monitor: spec.Duration(time.Minute)},
			status: spec.TaskStatus{Since: ago(58), Health: spec.HealthHealthy}, wait: 2},
		{name: "healthy", status: spec.TaskStatus{Since: now, Health: spec.HealthHealthy}},
		{name: "restarted at once", status: spec.TaskStatus{Since: ago(900), Attempts: []spec.Attempt{end(900, 2)}}, wait: 3},
		{name: "restarted long ago", status: spec.TaskStatus{Since: ago(900), Attempts: []spec.Attempt{end(900, 600)}}},
		// The node may have waited before the present attempt.
		{name: "after the delay of the policy", restart: spec.Restart{Delay: spec.Duration(10 * time.Second)},
			status: spec.TaskStatus{Since: ago(900), Attempts: []spec.Attempt{end(900, 2)}}, wait: 15},
		{name: "after a second crash", status: spec.TaskStatus{Since: ago(20), Attempts: []spec.Attempt{end(12, 11), end(11, 3)}}, wait: 3.2},
		{name: "after a wait of four seconds", status: spec.TaskStatus{Since: ago(40), Attempts: []spec.Attempt{end(31, 20), end(16, 9)}}, wait: 4},
		{name: "after a long run", status: spec.TaskStatus{Since: ago(400), Attempts: []spec.Attempt{end(300, 200), end(168, 2)}}, wait: 3},
		{name: "wait is bounded", status: spec.TaskStatus{Since: ago(9000), Attempts: []spec.Attempt{end(9000, 8000), end(1001, 1000)}}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPlanner(newCluster(t).store.Snapshot(), now)
			p.nodes["n"] = &spec.Node{ID: "n", State: spec.NodeReady}
			s := &pass{planner: p, svc: &spec.Service{}, tmpl: &spec.Template{Restart: tt.restart}, policy: policyOf(&spec.ServiceSpec{Update: tt.update}, false)}
			tt.status.State = spec.TaskRunning
			task := &spec.Task{Node: "n", Desired: spec.DesiredRunning, Status: tt.status}
			if got := s.steady(task); got != (tt.wait == 0) {
				t.Errorf("steady is %v", got)
			}
			if tt.wait > 0 && !p.plan.Next.Equal(ago(-tt.wait)) {
				t.Errorf("next pass at %s, want %s", p.plan.Next, ago(-tt.wait))
			}
		})
	}
}

// TestUpdateThatCrashes: a revision whose tasks end soon after their start
// gets no further than the first place.
func TestUpdateThatCrashes(t *testing.T) {
	c := trial(t, 3, anyRestart)
	c.settle()
	c.pass(time.Hour)
	c.version(2, 3, anyRestart)
	c.plan()
	c.newestRuns("shop.web.1")
	if p := c.plan(); !p.Empty() || !p.Next.Equal(c.now.Add(Monitor)) {
		t.Errorf("plan %+v, want the next after %v", p, Monitor)
	}
	old := c.store.Snapshot().TasksOf("shop", "web")[:3]
	c.pass(4 * time.Second)
	next := c.store.Snapshot().TasksOf("shop", "web")[3]
	s := next.Status
	for i := range 3 {
		s.Started, s.Attempts = i+2, append(s.Attempts, spec.Attempt{Number: i + 1, Started: c.now.Add(-time.Second), Ended: c.now, ExitCode: 1, LastLog: []string{"bye"}})
		c.tell(next, s)
		c.plan()
		c.pass(time.Second)
	}
	c.expect(StateFailed, "update paused: task shop.web.1 failed 3 times, last: exit 1: bye")
	for _, x := range old {
		if !c.store.Snapshot().Task(x.ID).Ready() {
			t.Errorf("task %s of the old revision does not serve any more", x.ID)
		}
	}
	if u := c.store.Snapshot().Service("shop", "web").Update; u.State != spec.UpdatePaused {
		t.Errorf("update %+v", u)
	}
}

// TestUpdateWaits: each place in turn, and completed when the last is steady.
func TestUpdateWaits(t *testing.T) {
	c := trial(t, 2, anyRestart)
	c.settle()
	c.pass(time.Hour)
	c.version(2, 2, anyRestart)
	state := func() spec.UpdateState { return c.store.Snapshot().Service("shop", "web").Update.State }
	for slot := 1; slot <= 2; slot++ {
		c.plan()
		c.newestRuns(fmt.Sprint("shop.web.", slot))
		c.pass(Monitor - 1)
		if p := c.plan(); !p.Empty() || state() != spec.UpdateUpdating {
			t.Errorf("slot %d: moved on too early: %s %+v", slot, state(), p.Parts)
		}
		c.pass(1)
		p := c.plan() // the old one stops
		if len(p.Parts) != 1 || len(p.Parts[0].Change) != 1 || p.Parts[0].Change[0].Desired != spec.DesiredStopped {
			t.Errorf("slot %d: %+v", slot, p.Parts)
		}
		for _, x := range c.store.Snapshot().Tasks() {
			if x.Desired == spec.DesiredStopped && !x.Status.State.Terminal() {
				c.tell(x, spec.TaskStatus{State: spec.TaskStopped, Since: c.now})
			}
		}
	}
	c.plan()
	if state() != spec.UpdateCompleted {
		t.Errorf("update is %s", state())
	}
}

func TestUpdateOfWhatEnds(t *testing.T) {
	for _, tt := range []struct {
		name           string
		end            spec.TaskState
		update         spec.UpdateState
		state, message string
	}{
		{"complete", spec.TaskComplete, spec.UpdateCompleted, StateRunning, ""},
		{"failed", spec.TaskFailed, spec.UpdatePaused, StateFailed, "update paused: task shop.web.1 failed: exit 1: oh"},
		{"rejected", spec.TaskRejected, spec.UpdatePaused, StateFailed, "update paused: task shop.web.1 was rejected: oh"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			const none = `{"condition": "none"}`
			c := trial(t, 1, none)
			c.newestRuns("shop.web.1")
			c.pass(time.Hour)
			c.version(2, 1, none)
			c.plan()
			c.report("shop.web.1", tt.end, "oh")
			c.settle()
			if old := c.store.Snapshot().Tasks()[0]; old.Ready() == (tt.end == spec.TaskComplete) {
				t.Errorf("the old task: %s/%s", old.Status.State, old.Desired)
			}
			c.expect(tt.state, tt.message)
			if u := c.store.Snapshot().Service("shop", "web").Update; u.State != tt.update {
				t.Errorf("update %+v, want %s", u, tt.update)
			}
		})
	}
}

func TestMaxAttempts(t *testing.T) {
	for _, tt := range []struct {
		name, restart string
		state         spec.TaskState
		codes         []int
		again         bool // the place is filled anew
		message       string
	}{
		{"used up", `{"condition": "on-failure", "max_attempts": 2}`, spec.TaskFailed, []int{7, 7, 7}, false, "deployment paused: task shop.web.1 gave up after 2 restarts: exit 7: bye"},
		{"one", `{"condition": "on-failure", "max_attempts": 1}`, spec.TaskFailed, []int{7, 7}, false, "deployment paused: task shop.web.1 gave up after 1 restart: exit 7: bye"},
		{"any", `{"condition": "any", "max_attempts": 2}`, spec.TaskFailed, []int{0, 7, 7}, false, "deployment paused: task shop.web.1 gave up after 2 restarts: exit 7: bye"},
		{"any that ends well", `{"condition": "any", "max_attempts": 2}`, spec.TaskComplete, []int{0, 0, 0}, false, "deployment paused: task shop.web.1 gave up after 2 restarts: exit 0: bye"},
		{"seven", `{"condition": "any", "max_attempts": 6}`, spec.TaskFailed, []int{0, 0, 0, 7, 7, 7, 7}, false, "deployment paused: task shop.web.1 gave up after 6 restarts: exit 7: bye"},
		{"five in five minutes of ten", `{"condition": "on-failure", "max_attempts": 10}`, spec.TaskFailed, []int{7, 7, 7, 7, 7}, true, ""},
		{"five in five minutes without a limit", `{"condition": "on-failure"}`, spec.TaskFailed, []int{7, 7, 7, 7, 7}, true, ""},
		{"done", `{"condition": "on-failure", "max_attempts": 2}`, spec.TaskComplete, []int{7, 0}, false, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := trial(t, 1, tt.restart)
			c.attempts("shop.web.1", tt.state, tt.codes...)
			c.plan()
			c.pass(time.Hour)
			c.plan()
			if tasks := c.store.Snapshot().Tasks(); (len(tasks) > 1) != tt.again {
				t.Fatalf("%d tasks, want another: %v", len(tasks), tt.again)
			}
			switch {
			case tt.message != "":
				c.expect(StateFailed, tt.message)
			case !tt.again:
				c.plan()
				c.expect(StateRunning, "")
			}
			if tt.again {
				return
			}
			// A change of the service begins anew.
			c.version(2, 1, tt.restart)
			c.settle()
			c.expect(StateRunning, "")
		})
	}
}

// TestMaxAttemptsOfSeveralTasks: the limit holds although the node ends a task
// after five failures.
func TestMaxAttemptsOfSeveralTasks(t *testing.T) {
	c := trial(t, 1, `{"condition": "any", "max_attempts": 9}`)
	for range 4 {
		c.attempts("shop.web.1", spec.TaskFailed, 7, 7, 7, 7, 7)
		c.plan()
		c.pass(time.Minute)
		c.plan()
	}
	if n := len(c.store.Snapshot().Tasks()); n != 2 {
		t.Errorf("%d tasks were made, want 2", n)
	}
	c.expect(StateFailed, "deployment paused: task shop.web.1 gave up after 9 restarts: exit 7: bye")
	c.do("scale shop web 2")
	c.settle()
	c.pass(time.Minute) // its back-off goes on
	c.settle()
	c.expect(StateRunning, "")
}

func TestUpdateThatGivesUp(t *testing.T) {
	const restart = `{"condition": "any", "max_attempts": 1}`
	c := trial(t, 2, restart)
	c.settle()
	c.pass(time.Hour)
	c.version(2, 2, restart)
	c.plan()
	next := c.store.Snapshot().TasksOf("shop", "web")[2]
	a := spec.Attempt{Number: 1, Started: c.now, Ended: c.now, ExitCode: 7}
	c.tell(next, spec.TaskStatus{State: spec.TaskFailed, Since: c.now, Started: 2, Attempts: []spec.Attempt{a, a}})
	c.plan()
	c.pass(time.Hour)
	if p := c.plan(); !p.Empty() {
		t.Errorf("plan %+v", p.Parts)
	}
	c.expect(StateFailed, "update paused: task shop.web.1 gave up after 1 restart: exit 7")
}

func TestScaledToZero(t *testing.T) {
	c := trial(t, 2, anyRestart)
	c.settle()
	c.do("scale shop web 0")
	c.plan()
	st, _ := Status(c.store.Snapshot(), "shop", c.now)
	if st.State != StateUpdating || !strings.HasPrefix(st.Services[0].Message, "scaled to 0: waits for task ") {
		t.Errorf("while its tasks stop: %+v", st)
	}
	c.settle()
	c.expect(StateStopped, "scaled to 0")
	if st, _ = Status(c.store.Snapshot(), "shop", c.now); st.State != StateStopped {
		t.Errorf("the stack is %s", st.State)
	}
	// With another service that runs, the stack does.
	c.files["s"] = []byte(`{"name": "shop", "services": {
		"web": {"mode": "replicated", "replicas": 0, "template": {"image": "web:1", "restart": {"condition": "any"}}},
		"db": {"mode": "replicated", "template": {"image": "db:1", "restart": {"condition": "any"}}}}}`)
	c.do("put s")
	c.settle()
	if st, _ = Status(c.store.Snapshot(), "shop", c.now); st.State != StateRunning || st.Services[1].State != StateStopped {
		t.Errorf("with another service: %+v", st)
	}
}

// TestAnonymousVolumesStay when their slot, service or stack goes, and are
// taken up again.
func TestAnonymousVolumesStay(t *testing.T) {
	bound := func(c *cluster) string {
		s := ""
		for _, x := range c.store.Snapshot().TasksOf("shop", "web") {
			if !x.Status.State.Terminal() {
				s += fmt.Sprint(x.Slot, "=", x.Volumes[0].ID, " ")
			}
		}
		return s
	}
	for _, tt := range []struct {
		name string
		gone store.Command
		kept bool
	}{
		{"slot", store.Command{ScaleService: &store.ScaleService{Stack: "shop", Service: "web", Replicas: 1}}, true},
		{"service", store.Command{PutStack: &store.PutStack{Stack: spec.Stack{Name: "shop"}}}, true},
		{"stack", store.Command{RemoveStack: &store.RemoveStack{Name: "shop"}}, true},
		{"stack with volumes", store.Command{RemoveStack: &store.RemoveStack{Name: "shop", Volumes: true}}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := trial(t, 2, anyRestart)
			c.settle()
			was := bound(c)
			c.must(tt.gone)
			c.settle()
			vols := c.store.Snapshot().Volumes()
			if len(vols) != 2 || vols[0].Removing == tt.kept || vols[1].Removing == tt.kept {
				t.Fatalf("volumes %+v", vols)
			}
			if !tt.kept {
				c.must(store.Command{Reports: &store.Reports{Reports: []spec.Report{{Node: nodeID("n1"), VolumesRemoved: []spec.VolumeID{vols[0].ID, vols[1].ID}}}}})
			}
			c.version(1, 2, anyRestart)
			c.settle()
			if now := bound(c); (now == was) != tt.kept {
				t.Errorf("volumes %s, before %s", now, was)
			}
		})
	}
}

func TestAnonymousNamesDiffer(t *testing.T) {
	a := anonymousName(&spec.Service{Stack: "a", Name: "b_c"}, "1", "/x")
	b := anonymousName(&spec.Service{Stack: "a_b", Name: "c"}, "1", "/x")
	if a == b {
		t.Errorf("two services have one volume %s", a)
	}
}
