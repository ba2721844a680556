package reconciler

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// log is a Proposer that applies at once, unless told otherwise.
type log struct {
	mu    sync.Mutex
	store *store.Store
	fail  error
	// spoil changes a plan before it is applied.
	spoil func(*store.ApplyPlan)
	calls []time.Time
	sizes []int // parts per entry
}

func (l *log) Propose(ctx context.Context, c store.Command) (store.Result, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return store.Result{}, err
	}
	l.calls = append(l.calls, time.Now())
	l.sizes = append(l.sizes, len(c.ApplyPlan.Parts))
	if l.fail != nil {
		return store.Result{}, l.fail
	}
	if l.spoil != nil {
		l.spoil(c.ApplyPlan)
	}
	return l.store.Apply(l.store.Snapshot().Index()+1, c), nil
}

func (l *log) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.calls)
}

// inBubble runs f while the loop of a small cluster runs.
func inBubble(t *testing.T, f func(t *testing.T, c *cluster, l *log)) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t)
		c.now = time.Now()
		c.addNode("n1")
		c.files["v1"] = []byte(`{"name": "shop", "services": {"web": {"mode": "replicated", "template": {"image": "web:1", "restart": {"condition": "any"}}}}}`)
		c.files["v2"] = []byte(`{"name": "shop", "services": {"web": {"mode": "replicated", "replicas": 3, "template": {"image": "web:1", "restart": {"condition": "any"}}}}}`)
		l := &log{store: c.store}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- NewLoop(Config{Store: c.store, Proposer: l}).Run(ctx, 1) }()
		synctest.Wait()
		f(t, c, l)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the loop ends with %v", err)
		}
	})
}

func TestLoopPlansOnChange(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster, l *log) {
		if l.count() != 0 {
			t.Fatal("an empty plan was proposed")
		}
		begin := time.Now()
		c.do("put v1")
		c.do("put v2") // is seen together with the first
		time.Sleep(time.Second)
		if got := len(c.store.Snapshot().Tasks()); got != 3 {
			t.Errorf("%d tasks, want 3", got)
		}
		if len(l.calls) != 1 || l.calls[0].Sub(begin) != debounce {
			t.Errorf("proposed at %v, want once after %v", l.calls, debounce)
		}
	})
}

func TestLoopWakesForNext(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster, l *log) {
		c.do("put v1")
		time.Sleep(time.Second)
		c.now = time.Now()
		c.do("report shop.web.1 failed oops")
		time.Sleep(100 * time.Millisecond)
		tasks := c.store.Snapshot().Tasks()
		task := tasks[len(tasks)-1]
		if task.Status.State != spec.TaskPending || task.NotBefore.IsZero() {
			t.Fatalf("no back-off: %+v", task)
		}
		time.Sleep(time.Until(task.NotBefore) - time.Millisecond)
		if got := c.store.Snapshot().Task(task.ID).Status.State; got != spec.TaskPending {
			t.Errorf("the task is %s before its time", got)
		}
		time.Sleep(debounce)
		if got := c.store.Snapshot().Task(task.ID).Status.State; got != spec.TaskAssigned {
			t.Errorf("the task is %s behind its time", got)
		}
	})
}

func TestLoopRetries(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster, l *log) {
		l.mu.Lock()
		l.fail = errors.New("no quorum")
		l.mu.Unlock()
		c.do("put v1")
		time.Sleep(time.Minute)
		if n := l.count(); n < 10 || n > 30 {
			t.Errorf("%d attempts in a minute", n)
		}
		l.mu.Lock()
		l.fail = nil
		l.mu.Unlock()
		time.Sleep(lastRetry + time.Second)
		if got := len(c.store.Snapshot().Tasks()); got != 1 {
			t.Errorf("%d tasks, want 1", got)
		}
	})
}

// TestLoopClockSet: an exclusive task is not replaced early because somebody
// sets the leader's clock, and a node that is down again counts from then.
func TestLoopClockSet(t *testing.T) {
	for _, tt := range []struct {
		name  string
		again bool // the node is back for a moment, and down again
		gone  bool // the node is removed
		wait  time.Duration
	}{
		{"down", false, false, 0},
		{"down again", true, false, 15 * time.Second},
		{"removed", false, true, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t)
				var step atomic.Int64
				clock := func() time.Time { return time.Now().Round(0).Add(time.Duration(step.Load())) }
				do := func(line string) {
					c.now = clock()
					c.do(line)
				}
				c.files["db"] = []byte(`{"name": "shop", "services": {"db": {"mode": "replicated", "template": {"image": "db:1", "exclusive": true, "stop_grace": "10s", "restart": {"condition": "any"}}}}}`)
				do("node n1")
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error)
				l := &log{store: c.store}
				go func() { done <- NewLoop(Config{Store: c.store, Proposer: l, Now: clock}).Run(ctx, 1) }()
				do("put db")
				time.Sleep(time.Minute)
				do("node n2")
				for _, x := range c.store.Snapshot().Tasks() {
					c.now = clock()
					c.tell(x, spec.TaskStatus{State: spec.TaskRunning})
				}
				live := func() int {
					n := 0
					for _, x := range c.store.Snapshot().Tasks() {
						if x.Node == nodeID("n2") && !x.Status.State.Terminal() {
							n++
						}
					}
					return n
				}
				if tt.gone {
					do("remove n1 force")
				} else {
					do("down n1")
				}
				time.Sleep(tt.wait)
				if tt.again {
					// Both are between two looks, and the clock goes back to what it was.
					do("up n1")
					c.now = c.now.Add(time.Nanosecond)
					c.do("down n1")
				}
				step.Store(int64(time.Hour))
				do("node n3") // the loop looks at once
				time.Sleep(LeaseWait - time.Second)
				if n := live(); n != 0 {
					t.Error("replaced while the old one may still run")
				}
				time.Sleep(31 * time.Second) // by the clock it may be a resync later
				if n := live(); n != 1 {
					t.Errorf("%d replacements", n)
				}
				cancel()
				if err := <-done; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// TestLoopDoesNotSpin: a plan that the state rejects each time moves the index
// each time, which must not make the loop run hot.
func TestLoopDoesNotSpin(t *testing.T) {
	inBubble(t, func(t *testing.T, c *cluster, l *log) {
		l.mu.Lock()
		l.spoil = func(p *store.ApplyPlan) {
			for i := range p.Parts {
				p.Parts[i].Reads = append(p.Parts[i].Reads, spec.Read{Kind: spec.KindNode, Key: "nobody", Version: 7})
			}
		}
		l.mu.Unlock()
		c.do("put v1")
		time.Sleep(time.Minute)
		if n := l.count(); n < 10 || n > 30 {
			t.Errorf("%d attempts in a minute", n)
		}
	})
}

func TestEntries(t *testing.T) {
	big := func(n int) spec.Part { return spec.Part{Key: strings.Repeat("x", n)} }
	for _, tt := range []struct {
		sizes []int
		want  []int
	}{
		{nil, nil},
		{[]int{1, 1, 1}, []int{3}},
		{[]int{maxEntry + 1, 1}, []int{1, 1}},
		{[]int{1, maxEntry + 1, 1}, []int{1, 1, 1}},
		{[]int{maxEntry / 2, maxEntry / 4, maxEntry / 2, 9}, []int{2, 2}},
	} {
		var parts []spec.Part
		for _, n := range tt.sizes {
			parts = append(parts, big(n))
		}
		var got []int
		for _, e := range entries(parts) {
			got = append(got, len(e))
		}
		if !slices.Equal(got, tt.want) {
			t.Errorf("%v: %v, want %v", tt.sizes, got, tt.want)
		}
	}
}
