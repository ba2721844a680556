package reconciler

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

func TestBackoff(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	ran := func(d time.Duration) []spec.Attempt {
		return []spec.Attempt{{Started: now.Add(-d), Ended: now, ExitCode: 1}}
	}
	for _, tt := range []struct {
		name     string
		state    spec.TaskState
		attempts []spec.Attempt
		restart  spec.Restart
		want     []time.Duration // of one failure after the other
	}{
		{name: "failed", state: spec.TaskFailed, attempts: ran(time.Second), want: []time.Duration{1e9, 2e9, 4e9, 8e9, 16e9, 32e9, 64e9, 128e9, 256e9, 300e9, 300e9, 300e9}},
		{name: "rejected", state: spec.TaskRejected, want: []time.Duration{5e9, 10e9, 20e9, 40e9, 80e9, 160e9, 300e9, 300e9}},
		{name: "own base", state: spec.TaskFailed, attempts: ran(time.Second), restart: spec.Restart{Delay: spec.Duration(10 * time.Second)}, want: []time.Duration{10e9, 20e9, 40e9}},
		{name: "base above the limit", state: spec.TaskFailed, attempts: ran(time.Second), restart: spec.Restart{Delay: spec.Duration(time.Hour)}, want: []time.Duration{3600e9, 3600e9}},
		{name: "ran well", state: spec.TaskFailed, attempts: ran(time.Minute), want: []time.Duration{0, 0}},
		{name: "ran shorter than its window", state: spec.TaskFailed, attempts: ran(time.Minute), restart: spec.Restart{Window: spec.Duration(2 * time.Minute)}, want: []time.Duration{1e9, 2e9}},
		{name: "complete", state: spec.TaskComplete, attempts: ran(time.Second), want: []time.Duration{1e9, 2e9}},
		{name: "stopped", state: spec.TaskStopped, want: []time.Duration{0}},
		{name: "lost", state: spec.TaskLost, attempts: ran(time.Second), want: []time.Duration{0}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for seed := range 50 { // whatever the spread is, the series goes on
				task := &spec.Task{Created: now}
				for i, want := range tt.want {
					task.ID = spec.TaskID(spec.MakeID(1, uint64(seed*100+i)))
					task.Status = spec.TaskStatus{State: tt.state, Attempts: tt.attempts}
					got := backoff(task, tt.restart)
					if float64(got) < 0.799*float64(want) || float64(got) > 1.201*float64(want) {
						t.Fatalf("failure %d: %v, want about %v", i+1, got, want)
					}
					task.NotBefore = time.Time{}
					if got > 0 {
						task.NotBefore = task.Created.Add(got)
					}
				}
			}
		})
	}
}

func TestSpreadIsEven(t *testing.T) {
	low, high := 0, 0
	for i := range 1000 {
		d := spread(spec.TaskID(spec.MakeID(1, uint64(i))), time.Second)
		if d < 800*time.Millisecond || d > 1200*time.Millisecond {
			t.Fatalf("%v is outside of a fifth", d)
		}
		if d < 900*time.Millisecond {
			low++
		}
		if d > 1100*time.Millisecond {
			high++
		}
	}
	if low < 150 || high < 150 {
		t.Errorf("the spread is uneven: %d low, %d high of 1000", low, high)
	}
}

func TestCompareIDs(t *testing.T) {
	ids := []string{"2-1", "1-10", "1-9", "1-100", "10-1"}
	slices.SortFunc(ids, compareIDs)
	if got, want := fmt.Sprint(ids), "[1-9 1-10 1-100 2-1 10-1]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestDiffFields(t *testing.T) {
	a := &spec.ServiceSpec{Mode: spec.Replicated, Template: spec.Template{Image: "a", Env: map[string]string{"X": "1", "Y": "2"}, Command: []string{}}}
	b := &spec.ServiceSpec{Mode: spec.Replicated, Template: spec.Template{Image: "a", Env: map[string]string{"X": "2"}, Command: []string{"run", "it"}}}
	got := fmt.Sprint(diffFields(a, b))
	want := `[{template.command [] } {template.command[0]  run} {template.command[1]  it} {template.env.X 1 2} {template.env.Y 2 }]`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := fmt.Sprint(diffPaths(&a.Template, &b.Template)); got != "[command env]" {
		t.Errorf("paths %s", got)
	}
	if got := diffFields(a, a); len(got) > 0 {
		t.Errorf("a value differs from itself: %v", got)
	}
}

// TestContentsAreReaped: what nothing refers to goes after a while, what is
// referred to stays.
func TestContentsAreReaped(t *testing.T) {
	c := newCluster(t)
	c.addNode("n1")
	for _, id := range []spec.ContentID{"hmac:used", "hmac:idle", "hmac:half"} {
		size := 4
		if id == "hmac:half" {
			size = 8
		}
		c.must(store.Command{PutContent: &store.PutContent{ID: id, Size: size, Data: []byte("data")}})
	}
	c.files["s"] = []byte(`{"name": "shop", "services": {"web": {"mode": "replicated", "template": {"image": "w", "restart": {"condition": "any"},
		"mounts": [{"type": "content", "target": "/etc/x", "content": "hmac:used"}]}}}}`)
	c.do("put s")
	c.settle()
	if got := len(c.store.Snapshot().Contents()); got != 3 {
		t.Fatalf("%d contents at once, want 3", got)
	}
	for range keepContents + 1 {
		c.apply(store.Command{Reports: &store.Reports{}})
	}
	c.settle()
	left := c.store.Snapshot().Contents()
	if len(left) != 1 || left[0].ID != "hmac:used" {
		t.Errorf("left: %v", left)
	}
}

// TestHistoryIsBounded: a service that fails for ever keeps five tasks that
// are over, and every back-off is longer than the one before.
func TestHistoryIsBounded(t *testing.T) {
	c := newCluster(t)
	c.addNode("n1")
	c.files["s"] = []byte(`{"name": "shop", "services": {"web": {"mode": "replicated", "template": {"image": "w", "restart": {"condition": "any"}}}}}`)
	c.do("put s")
	var last time.Duration
	for i := range 30 {
		p := c.plan()
		if !p.Next.IsZero() && i > 0 {
			if wait := p.Next.Sub(c.now); wait > 360*time.Second || i < 9 && wait < last {
				t.Errorf("failure %d: the wait goes from %v to %v", i, last, wait)
			} else {
				last = wait
			}
			c.now = p.Next
			c.plan()
		}
		c.report("shop.web.1", spec.TaskFailed, "again")
		c.now = c.now.Add(10 * time.Millisecond)
	}
	if last < 240*time.Second {
		t.Errorf("the last wait is %v, want about 300 s", last)
	}
	c.plan()
	if got := len(c.store.Snapshot().Tasks()); got != keepHistory+1 {
		t.Errorf("%d tasks are kept, want %d", got, keepHistory+1)
	}
}

// TestRevisionsAreReaped: those that a rollback may name stay.
func TestRevisionsAreReaped(t *testing.T) {
	c := newCluster(t)
	c.addNode("n1")
	for i := range 25 {
		c.files["s"] = fmt.Appendf(nil, `{"name": "shop", "services": {"web": {"mode": "replicated", "template": {"image": "w", "user": "%d", "restart": {"condition": "any"}}}}}`, i)
		c.do("put s")
		c.settle()
		for range 6 { // the tasks of old revisions leave the history
			c.plan()
		}
	}
	// Ten revisions of the stack, and those of the tasks that are kept.
	if got := len(c.store.Snapshot().Revisions()); got != spec.KeepStackRevisions {
		t.Errorf("%d revisions are kept, want %d", got, spec.KeepStackRevisions)
	}
}

// TestLostTaskKeepsItsAddress until its node confirms the end.
func TestLostTaskKeepsItsAddress(t *testing.T) {
	c := newCluster(t)
	c.addNode("n1")
	c.addNode("n2")
	c.files["s"] = []byte(`{"name": "shop", "networks": {"default": {"driver": "overlay", "subnet": "10.50.0.0/29"}}, "services": {"web": {"mode": "replicated", "replicas": 2, "endpoint_mode": "dnsrr",
		"template": {"image": "w", "restart": {"condition": "any"}, "networks": [{"network": "default"}]}}}}`)
	c.do("put s")
	c.settle()
	c.do("down n1")
	c.settle()
	c.do("scale shop web 5")
	c.settle()
	s := c.store.Snapshot()
	lost := s.TasksOn(nodeID("n1"))[0]
	for _, task := range s.TasksOn(nodeID("n2")) {
		if len(task.Addresses) > 0 && task.Addresses[0].IP == lost.Addresses[0].IP {
			t.Errorf("task %s has the address of the lost one", task.ID)
		}
	}
	pending := 0
	for _, task := range s.Tasks() {
		if task.Status.State == spec.TaskPending {
			pending++
		}
	}
	if pending != 1 {
		t.Errorf("%d tasks wait for an address, want 1", pending)
	}
	// The stack goes: the row of the lost task stays until the node tells.
	c.do("rm shop")
	c.settle()
	if got := len(c.store.Snapshot().Tasks()); got != 1 {
		t.Errorf("%d tasks are left, want the lost one", got)
	}
	c.do("up n1")
	c.settle()
	c.tell(c.store.Snapshot().Tasks()[0], spec.TaskStatus{State: spec.TaskStopped})
	c.settle()
	if s := c.store.Snapshot(); len(s.Tasks())+len(s.Networks()) != 0 {
		t.Errorf("%d tasks and %d networks are left", len(s.Tasks()), len(s.Networks()))
	}
}

// TestMaxPart: a large change comes in several plans.
func TestMaxPart(t *testing.T) {
	c := newCluster(t)
	c.addNode("n1")
	c.files["s"] = []byte(`{"name": "shop", "services": {"web": {"mode": "replicated", "replicas": 1000, "template": {"image": "w", "restart": {"condition": "any"}}}}}`)
	c.do("put s")
	for rounds := 1; ; rounds++ {
		p := Plan(c.store.Snapshot(), c.now)
		if p.Empty() {
			if n := len(c.store.Snapshot().Tasks()); n != 1000 || rounds != 4 {
				t.Errorf("%d tasks after %d plans", n, rounds-1)
			}
			return
		}
		if n := len(p.Parts[0].Create); n > maxPart {
			t.Errorf("a part touches %d tasks", n)
		}
		c.apply(store.Command{ApplyPlan: &store.ApplyPlan{Epoch: 1, Parts: p.Parts}})
	}
}

// BenchmarkPlan measures a pass that finds nothing to do, and one after the
// change of one service. The budget of the former at 10,000 tasks is 50 ms.
func BenchmarkPlan(b *testing.B) {
	for _, tasks := range []int{1000, 10_000} {
		c := newCluster(b)
		for i := range 10 {
			c.addNode(fmt.Sprint("n", i))
		}
		for i := range tasks / 100 {
			c.files["s"] = fmt.Appendf(nil, `{"name": "s%d", "networks": {"default": {"driver": "overlay"}}, "services": {
				"a": {"mode": "replicated", "replicas": 50, "template": {"image": "a", "restart": {"condition": "any"}, "networks": [{"network": "default"}]}},
				"b": {"mode": "replicated", "replicas": 50, "template": {"image": "b", "restart": {"condition": "any"}, "networks": [{"network": "default"}]}}}}`, i)
			c.do("put s")
		}
		c.settle()
		c.out.Reset()
		idle := c.store.Snapshot()
		b.Run(fmt.Sprintf("idle/%d", tasks), func(b *testing.B) {
			for b.Loop() {
				if p := Plan(idle, c.now); !p.Empty() {
					b.Fatal("there is something to do")
				}
			}
		})
		c.do("scale s0 a 60")
		changed := c.store.Snapshot()
		b.Run(fmt.Sprintf("scale/%d", tasks), func(b *testing.B) {
			for b.Loop() {
				if p := Plan(changed, c.now); len(p.Parts) != 1 {
					b.Fatal("there is one part to do")
				}
			}
		})
		for _, what := range []string{"drain", "down"} {
			// A tenth of the tasks has to move, of every service some.
			c.store = c.store.Clone()
			c.do(what + " n1")
			gone := c.store.Snapshot()
			b.Run(fmt.Sprintf("%s/%d", what, tasks), func(b *testing.B) {
				for b.Loop() {
					if p := Plan(gone, c.now); len(p.Parts) < tasks/50 {
						b.Fatal("there is much to do")
					}
				}
			})
		}
		b.Run(fmt.Sprintf("documents/%d", tasks), func(b *testing.B) {
			for b.Loop() {
				Wanted(idle, nodeID("n1"))
			}
		})
	}
}
