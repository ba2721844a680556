package cluster

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"wherry.dev/api"
	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// clocked returns a liveness whose clock is at *at.
func clocked(at *time.Duration) *liveness {
	l := newLiveness(0, nil)
	l.elapsed = func() time.Duration { return *at }
	return l
}

func TestDecide(t *testing.T) {
	const s = moment(time.Second)
	down := 2500 * time.Millisecond
	for _, c := range []struct {
		name  string
		state spec.NodeState
		began moment
		ready moment // since when the table says so; never: notice has not seen it
		seen  moment // never: not heard
		now   moment
		want  spec.NodeState
	}{
		{"heard just now", spec.NodeReady, 0, 0, 10 * s, 10 * s, spec.NodeReady},
		{"almost down", spec.NodeReady, 0, 0, 10 * s, 12*s + s/2 - 1, spec.NodeReady},
		{"down", spec.NodeReady, 0, 0, 10 * s, 12*s + s/2, spec.NodeDown},
		{"long dead, stays so", spec.NodeDown, 0, never, 10 * s, 100 * s, spec.NodeDown},
		{"never heard, stays down", spec.NodeDown, 0, never, never, 100 * s, spec.NodeDown},
		{"comes back", spec.NodeDown, 0, never, 99 * s, 100 * s, spec.NodeReady},
		{"an old word does not bring it back", spec.NodeDown, 0, never, 97*s + s/2, 100 * s, spec.NodeDown},
		{"never heard, after an election", spec.NodeReady, 100 * s, 100 * s, never, 102 * s, spec.NodeReady},
		{"long silent, after an election", spec.NodeReady, 100 * s, 100 * s, 1 * s, 102 * s, spec.NodeReady},
		{"a full period after an election", spec.NodeReady, 100 * s, 100 * s, 1 * s, 102*s + s/2, spec.NodeDown},
		{"has just joined", spec.NodeReady, 0, 99 * s, never, 101 * s, spec.NodeReady},
		{"has joined and said no more", spec.NodeReady, 0, 97 * s, never, 100 * s, spec.NodeDown},
	} {
		w := newWatch("me", c.began)
		if c.ready != never {
			w.ready["n"] = c.ready
		}
		seen := map[spec.NodeID]moment{}
		if c.seen != never {
			seen["n"] = c.seen
		}
		var want []store.SetNodeState
		if c.want != c.state {
			want = []store.SetNodeState{{ID: "n", State: c.want}}
		}
		got := w.decide([]*spec.Node{{ID: "n", State: c.state}}, seen, c.now, down)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", c.name, diff)
		}
	}
}

// Whatever was heard when: who was heard within the period is not declared
// dead, who was not is, and deciding twice changes nothing more.
func TestDecideProperties(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 7))
	down := 2500 * time.Millisecond
	states := []spec.NodeState{spec.NodeReady, spec.NodeDown}
	for range 20_000 {
		some := func() moment { return moment(rnd.Int64N(int64(10 * time.Second))) }
		now := moment(10 * time.Second)
		w := newWatch("n0", some())
		seen := map[spec.NodeID]moment{}
		var nodes []*spec.Node
		for i := range 4 {
			n := &spec.Node{ID: spec.NodeID(fmt.Sprintf("n%d", i)), State: states[rnd.IntN(2)]}
			nodes = append(nodes, n)
			if rnd.IntN(4) > 0 {
				seen[n.ID] = some()
			}
		}
		w.notice(nodes, some())
		was := map[spec.NodeID]spec.NodeState{}
		for _, n := range nodes {
			was[n.ID] = n.State
		}
		for _, c := range w.decide(nodes, seen, now, down) {
			for _, n := range nodes {
				if n.ID == c.ID {
					n.State = c.State
				}
			}
		}
		for _, n := range nodes {
			at, heard := seen[n.ID]
			recent := heard && now.since(at) < down
			grace := was[n.ID] == spec.NodeReady && (now.since(w.began) < down || now.since(w.ready[n.ID]) < down)
			want := spec.NodeDown
			if n.ID == w.self || recent || grace {
				want = spec.NodeReady
			}
			if n.State != want {
				t.Fatalf("%s was %s and is now %s: began %s, ready %s, seen %s", n.ID, was[n.ID], n.State, time.Duration(w.began), time.Duration(w.ready[n.ID]), time.Duration(at))
			}
		}
		if again := w.decide(nodes, seen, now, down); again != nil {
			t.Fatalf("decides %v after it has decided", again)
		}
	}
}

func TestLeaderIsAlive(t *testing.T) {
	w := newWatch("me", 0)
	nodes := []*spec.Node{{ID: "me", State: spec.NodeReady}}
	w.notice(nodes, 0)
	if got := w.decide(nodes, nil, moment(time.Hour), time.Second); got != nil {
		t.Errorf("a leader declares itself: %v", got)
	}
	nodes[0].State = spec.NodeDown
	got := w.decide(nodes, nil, moment(time.Hour), time.Second)
	if diff := cmp.Diff([]store.SetNodeState{{ID: "me", State: spec.NodeReady}}, got); diff != "" {
		t.Error(diff)
	}
	if got := w.pings(nodes, nil, moment(time.Hour)); got != nil {
		t.Errorf("a leader pings itself: %v", got)
	}
}

func TestPingsBySilence(t *testing.T) {
	w := newWatch("me", 0)
	nodes := []*spec.Node{{ID: "n", State: spec.NodeReady}}
	seen := map[spec.NodeID]moment{"n": 0}
	w.notice(nodes, 0)
	count := func(from, to time.Duration) (n int) {
		for at := from; at < to; at += lifeTick {
			n += len(w.pings(nodes, seen, moment(at)))
		}
		return n
	}
	if n := count(0, 500*time.Millisecond); n != 0 {
		t.Errorf("%d pings of a node that was heard just now", n)
	}
	if n := count(500*time.Millisecond, time.Second); n < 2 || n > 3 {
		t.Errorf("%d pings within the second half of a second's silence", n)
	}
	if n := count(time.Second, 2500*time.Millisecond); n < 14 || n > 16 {
		t.Errorf("%d pings in the 1.5 s after that", n)
	}
	nodes[0].State = spec.NodeDown
	w.notice(nodes, moment(2500*time.Millisecond))
	if n := count(2500*time.Millisecond, 12500*time.Millisecond); n < 9 || n > 11 {
		t.Errorf("%d pings of a dead node in 10 s", n)
	}
}

func TestLooksBySilence(t *testing.T) {
	for _, c := range []struct {
		name  string
		id    spec.NodeID
		state spec.NodeState
		age   time.Duration
		want  time.Duration
	}{
		{"heard just now", "n", spec.NodeReady, 0, restTick},
		{"to be pinged now", "n", spec.NodeReady, quietAge, restTick},
		{"has not answered", "n", spec.NodeReady, quietAge + restTick, lifeTick},
		{"down and silent", "n", spec.NodeDown, time.Hour, lifeTick},
		{"down and just back", "n", spec.NodeDown, 0, lifeTick},
		{"the leader itself", "me", spec.NodeReady, time.Hour, restTick},
	} {
		w := newWatch("me", 0)
		now := moment(2 * time.Hour)
		nodes := []*spec.Node{{ID: "me", State: spec.NodeReady}, {ID: c.id, State: c.state}}
		if got := w.tick(nodes, map[spec.NodeID]moment{c.id: now - moment(c.age)}, now); got != c.want {
			t.Errorf("%s: looks again after %s, want %s", c.name, got, c.want)
		}
	}
	if restTick >= maxTick {
		t.Errorf("a leader that looks each %s takes itself for frozen", restTick)
	}
}

func TestTwoInstances(t *testing.T) {
	at := time.Minute
	l := clocked(&at)
	ok := func(instance, remote string) {
		t.Helper()
		if err := l.beat("n", instance, remote); err != nil {
			t.Errorf("%s at %s from %s: %v", instance, at, remote, err)
		}
	}
	refused := func(instance, remote, where string) {
		t.Helper()
		err := l.beat("n", instance, remote)
		if !errors.Is(err, spec.ErrConflict) || !strings.Contains(fmt.Sprint(err), "another host"+where+" uses the identity of node n") {
			t.Errorf("%s at %s from %s: %v", instance, at, remote, err)
		}
	}
	ok("one", "10.0.0.1:500")
	at += time.Second
	refused("two", "10.0.0.2:500", " at 10.0.0.1")
	ok("one", "10.0.0.1:501")
	// The first is silent for a full period: the second may have it.
	at += 2400 * time.Millisecond
	refused("two", "10.0.0.2:500", " at 10.0.0.1")
	at += 100 * time.Millisecond
	ok("two", "10.0.0.2:500")
	at += 100 * time.Millisecond
	refused("one", "10.0.0.1:501", " at 10.0.0.2")
	ok("two", "10.0.0.2:500")

	// A daemon that was started again on its host goes on at once.
	ok("three", "10.0.0.2:777")
	at += 700 * time.Millisecond
	ok("three", "10.0.0.2:777")
	// But if its former life was none, the newcomer goes.
	ok("two", "10.0.0.2:500")
	refused("three", "10.0.0.2:777", " at 10.0.0.2")
	at += time.Second
	ok("two", "10.0.0.2:500")
	refused("three", "10.0.0.2:777", " at 10.0.0.2")
}

// Two hosts with one identity at two followers: the leader refuses one, and the
// follower goes on refusing it as long as the other lives.
func TestTwoInstancesAtTwoManagers(t *testing.T) {
	at := time.Minute
	leader, a, b := clocked(&at), clocked(&at), clocked(&at)
	exchange := func() {
		for _, f := range []*liveness{a, b} {
			f.refuse(leader.merge(f.alive()))
		}
	}
	beats := map[string]int{}
	for i := range 200 {
		at += 100 * time.Millisecond
		if i%10 == 3 {
			if a.beat("n", "one", "10.0.0.1:1") != nil {
				beats["one refused"]++
			}
			if i > 50 && b.beat("n", "two", "10.0.0.2:1") == nil {
				beats["two admitted"]++
			}
		}
		if i%5 == 0 {
			exchange()
		}
	}
	if beats["one refused"] != 0 || beats["two admitted"] > 1 {
		t.Errorf("%v", beats)
	}
	// The first dies; the second may have the identity soon.
	admitted := false
	for i := range 70 {
		at += 100 * time.Millisecond
		if i%10 == 3 {
			admitted = b.beat("n", "two", "10.0.0.2:1") == nil
		}
		if i%5 == 0 {
			exchange()
		}
	}
	if !admitted {
		t.Error("the second is refused though the first is dead")
	}
	if n := leader.nodes["n"]; n.holder != "two" {
		t.Errorf("the leader holds on to %q", n.holder)
	}
}

func TestMergeTakesTheAgeIntoAccount(t *testing.T) {
	at := time.Minute
	l := clocked(&at)
	l.merge(api.Alive{Nodes: []api.AliveNode{
		{ID: "n", Instance: "i", Age: spec.Duration(2 * time.Second)},
		{ID: "m", Age: spec.Duration(time.Hour)},
		{ID: "future", Age: spec.Duration(-time.Hour)},
	}})
	l.merge(api.Alive{Nodes: []api.AliveNode{{ID: "n", Instance: "i", Age: spec.Duration(3 * time.Second)}}})
	now := moment(at)
	for id, want := range map[spec.NodeID]time.Duration{"n": 2 * time.Second, "m": time.Hour, "future": 0} {
		if got := now.since(l.nodes[id].seen); got != want {
			t.Errorf("%s was seen %s ago, want %s", id, got, want)
		}
	}
	at += time.Second
	got := l.alive()
	want := api.Alive{Nodes: []api.AliveNode{{ID: "future", Age: spec.Duration(time.Second)}, {ID: "n", Instance: "i", Age: spec.Duration(3 * time.Second)}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// A leader that has slept, frozen or starved, must not take its own deafness
// for the silence of the others; neither may signs of life that arrive as it
// wakes up count as being of the future.
func TestSleepIsNotSilence(t *testing.T) {
	at := time.Minute
	l := clocked(&at)
	nodes := []*spec.Node{{ID: "n", State: spec.NodeReady}, {ID: "woke", State: spec.NodeReady}}
	now, _ := l.look(nodes)
	w := newWatch("me", now)
	w.notice(nodes, now)
	l.seen("n")
	l.seen("woke")
	at += time.Hour
	l.seen("woke") // before the loop has looked again
	now, seen := l.look(nodes)
	if got := w.decide(nodes, seen, now, l.down); got != nil {
		t.Errorf("after a sleep: %v", got)
	}
	for range 24 {
		at += lifeTick
		now, seen = l.look(nodes)
	}
	got := w.decide(nodes, seen, now, l.down)
	if diff := cmp.Diff([]store.SetNodeState{{ID: "n", State: spec.NodeDown}}, got); diff != "" {
		t.Error(diff)
	}
	for range 4 {
		at += lifeTick
		now, seen = l.look(nodes)
	}
	if got := w.decide(nodes, seen, now, l.down); len(got) != 2 {
		t.Errorf("a word at the end of a sleep counts for longer than any other: %v", got)
	}
}

// world is a leader with nodes whose signs of life get lost.
type world struct {
	l     *liveness
	loss  float64
	start time.Time

	mu    sync.Mutex
	rnd   *rand.Rand
	nodes map[spec.NodeID]*spec.Node
	dead  map[spec.NodeID]time.Time
	took  []string // the changes that were made
	found map[spec.NodeID]time.Duration
	// cut are the nodes that the leader does not hear, though others do.
	cut map[spec.NodeID]bool
}

func newWorld(nodes int, seed uint64, loss float64) *world {
	w := &world{
		l: newLiveness(0, nil), loss: loss, start: time.Now(), rnd: rand.New(rand.NewPCG(seed, 1)),
		nodes: map[spec.NodeID]*spec.Node{}, dead: map[spec.NodeID]time.Time{}, found: map[spec.NodeID]time.Duration{},
		cut: map[spec.NodeID]bool{},
	}
	for i := range nodes {
		id := spec.NodeID(fmt.Sprintf("n%d", i))
		w.nodes[id] = &spec.Node{ID: id, State: spec.NodeReady}
	}
	w.nodes["me"] = &spec.Node{ID: "me", State: spec.NodeReady}
	return w
}

// arrives draws whether a packet does.
func (w *world) arrives(id spec.NodeID) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, dead := w.dead[id]
	return !dead && w.rnd.Float64() >= w.loss
}

// heard draws whether a packet to or from the leader arrives.
func (w *world) heard(id spec.NodeID) bool {
	w.mu.Lock()
	cut := w.cut[id]
	w.mu.Unlock()
	return !cut && w.arrives(id)
}

// follow runs a follower that no node is connected to.
func (w *world) follow(ctx context.Context, self spec.NodeID) {
	newLiveness(0, nil).tell(ctx, telling{
		Self: self,
		Send: func(_ context.Context, a api.Alive) (api.AliveReply, error) { return w.l.merge(a), nil },
		Ping: func(ctx context.Context, id spec.NodeID) bool {
			if there := w.arrives(id); w.arrives(id) && there { // the question and the answer
				return wait(ctx, time.Millisecond)
			}
			wait(ctx, pingWait)
			return false
		},
	})
}

func (w *world) table() []*spec.Node {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []*spec.Node
	for _, n := range w.nodes {
		c := *n
		out = append(out, &c)
	}
	return out
}

// ping is the leader's.
func (w *world) ping(ctx context.Context, id spec.NodeID) bool {
	if w.heard(id) && w.arrives(id) {
		wait(ctx, time.Millisecond)
		return true
	}
	wait(ctx, pingWait)
	return false
}

func (w *world) propose(_ context.Context, c store.SetNodeState) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nodes[c.ID].State = c.State
	w.took = append(w.took, fmt.Sprintf("%s %s at %s", c.ID, c.State, time.Since(w.start)))
	if at, dead := w.dead[c.ID]; dead && c.State == spec.NodeDown {
		w.found[c.ID] = time.Since(at)
	}
	return nil
}

// run lets the nodes beat and the leader lead.
func (w *world) run(ctx context.Context) *sync.WaitGroup {
	var all sync.WaitGroup
	for id := range w.nodes {
		if id == "me" {
			continue
		}
		w.mu.Lock()
		phase := time.Duration(w.rnd.Int64N(int64(time.Second)))
		w.mu.Unlock()
		all.Go(func() {
			for wait(ctx, phase) {
				phase = time.Second
				if w.heard(id) {
					w.l.beat(id, "i-"+string(id), "10.0.0.1:1")
				}
			}
		})
	}
	all.Go(func() {
		w.l.lead(ctx, leading{Self: "me", Nodes: w.table, Ping: w.ping, Propose: w.propose})
	})
	return &all
}

func (w *world) changes() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string(nil), w.took...)
}

func TestLossOfPacketsIsNotDeath(t *testing.T) {
	for seed := range uint64(3) {
		synctest.Test(t, func(t *testing.T) {
			ctx, stop := context.WithCancel(t.Context())
			w := newWorld(9, seed, 0.2)
			all := w.run(ctx)
			time.Sleep(10 * time.Minute)
			if got := w.changes(); got != nil {
				t.Errorf("seed %d: declared in spite of being alive: %v", seed, got)
			}
			// All but one die, each at a time of its own.
			for i := range 8 {
				time.Sleep(333 * time.Millisecond)
				w.mu.Lock()
				w.dead[spec.NodeID(fmt.Sprintf("n%d", i))] = time.Now()
				w.mu.Unlock()
			}
			time.Sleep(5 * time.Second)
			w.mu.Lock()
			for i := range 8 {
				id := spec.NodeID(fmt.Sprintf("n%d", i))
				if after, ok := w.found[id]; !ok || after > 2700*time.Millisecond {
					t.Errorf("seed %d: the death of %s was found after %s (%v)", seed, id, after, ok)
				}
			}
			// And come back.
			clear(w.dead)
			w.mu.Unlock()
			time.Sleep(8 * time.Second)
			for _, n := range w.table() {
				if n.State != spec.NodeReady {
					t.Errorf("seed %d: %s is back and still %s", seed, n.ID, n.State)
				}
			}
			if got := w.changes(); len(got) != 16 {
				t.Errorf("seed %d: want 8 deaths and 8 returns, got %v", seed, got)
			}
			stop()
			all.Wait()
		})
	}
}

// A node that only the leader does not hear lives by the word of a follower,
// and is found dead as soon as any other when it dies.
func TestOthersVouch(t *testing.T) {
	for _, loss := range []float64{0, 0.2} {
		for seed := range uint64(3) {
			synctest.Test(t, func(t *testing.T) {
				ctx, stop := context.WithCancel(t.Context())
				w := newWorld(3, seed, loss)
				w.cut["n0"], w.cut["n1"] = true, true
				all := w.run(ctx)
				all.Go(func() { w.follow(ctx, "n2") })
				time.Sleep(10*time.Minute + time.Duration(seed)*333*time.Millisecond)
				if got := w.changes(); got != nil {
					t.Errorf("loss %v, seed %d: declared though a follower hears them: %v", loss, seed, got)
				}
				w.mu.Lock()
				w.dead["n0"] = time.Now()
				w.mu.Unlock()
				time.Sleep(5 * time.Second)
				w.mu.Lock()
				if after, ok := w.found["n0"]; !ok || after > 2700*time.Millisecond {
					t.Errorf("loss %v, seed %d: the death was found after %s (%v)", loss, seed, after, ok)
				}
				w.mu.Unlock()
				if got := w.changes(); len(got) != 1 {
					t.Errorf("loss %v, seed %d: want one death, got %v", loss, seed, got)
				}
				stop()
				all.Wait()
			})
		}
	}
}

// A node that was declared down behind a cut comes back once another manager
// reaches it; a follower does not vouch for itself.
func TestOthersBringBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		w := newWorld(2, 1, 0)
		w.cut["n0"] = true
		all := w.run(ctx)
		all.Go(func() { w.follow(ctx, "n0") })
		time.Sleep(10 * time.Second)
		if got := w.changes(); len(got) != 1 || !strings.HasPrefix(got[0], "n0 down") {
			t.Errorf("nobody hears it, but: %v", got)
		}
		all.Go(func() { w.follow(ctx, "n1") })
		time.Sleep(time.Minute)
		if got := w.changes(); len(got) != 2 || !strings.HasPrefix(got[1], "n0 ready") {
			t.Errorf("a follower hears it, but: %v", got)
		}
		stop()
		all.Wait()
	})
}

// The leader names the nodes that it has not heard for a second, and no longer
// those of which it learns by the same call; who does not lead names none.
func TestAsksForTheUnheard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		w := newWorld(3, 1, 0)
		w.cut["n0"], w.cut["n1"] = true, true
		all := w.run(ctx)
		ask := func(a api.Alive, want ...spec.NodeID) {
			t.Helper()
			if got := w.l.merge(a).Ask; !slices.Equal(got, want) {
				t.Errorf("it asks for %q, want %q", got, want)
			}
		}
		time.Sleep(950 * time.Millisecond)
		ask(api.Alive{})
		time.Sleep(200 * time.Millisecond)
		ask(api.Alive{}, "n0", "n1")
		ask(api.Alive{Nodes: []api.AliveNode{{ID: "n1"}}}, "n0")
		time.Sleep(200 * time.Millisecond)
		ask(api.Alive{}, "n0")
		stop()
		all.Wait()
		ask(api.Alive{})
	})
}

// The answer of a node that the leader asks for is told at once, however long
// others do not answer.
func TestAnswersAreToldAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		start := time.Now()
		var told []time.Duration
		pings := map[spec.NodeID]int{}
		var mu sync.Mutex
		var all sync.WaitGroup
		all.Go(func() {
			newLiveness(0, nil).tell(ctx, telling{
				Self: "me",
				Send: func(_ context.Context, a api.Alive) (api.AliveReply, error) {
					told = append(told, time.Since(start))
					if len(a.Nodes) > 0 {
						return api.AliveReply{Ask: []spec.NodeID{"me", "dead"}}, nil
					}
					return api.AliveReply{Ask: []spec.NodeID{"me", "dead", "living"}}, nil
				},
				Ping: func(ctx context.Context, id spec.NodeID) bool {
					mu.Lock()
					pings[id]++
					mu.Unlock()
					if id == "living" {
						return wait(ctx, 20*time.Millisecond)
					}
					wait(ctx, pingWait)
					return false
				},
			})
		})
		time.Sleep(950 * time.Millisecond)
		stop()
		all.Wait()
		want := []time.Duration{500 * time.Millisecond, 520 * time.Millisecond}
		if !slices.Equal(told, want) {
			t.Errorf("told at %v, want %v", told, want)
		}
		if pings["me"] != 0 || pings["living"] != 1 || pings["dead"] < 4 || pings["dead"] > 5 {
			t.Errorf("pings: %v", pings)
		}
	})
}

// A node that is heard every now and then changes its state no more often than
// once a period.
func TestFlapping(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		w := newWorld(1, 1, 0)
		w.dead["n0"] = time.Now()
		all := w.run(ctx)
		for range 20 {
			time.Sleep(3 * time.Second)
			w.l.seen("n0")
		}
		synctest.Wait()
		if n := len(w.changes()); n < 30 || n > 41 {
			t.Errorf("%d changes in a minute of signs every 3 s: %v", n, w.changes())
		}
		stop()
		all.Wait()
	})
}

// A change that cannot be made holds up neither the pings nor other changes,
// and is tried again.
func TestProposalsThatHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		w := newWorld(3, 1, 0)
		w.dead["n0"], w.dead["n1"] = time.Now(), time.Now()
		var mu sync.Mutex
		tries := 0
		propose := func(ctx context.Context, c store.SetNodeState) error {
			switch c.ID {
			case "n0":
				wait(ctx, 20*time.Second)
				return context.Cause(ctx)
			case "n1":
				mu.Lock()
				tries++
				first := tries == 1
				mu.Unlock()
				if first {
					return errors.New("no leader")
				}
			}
			return w.propose(ctx, c)
		}
		var all sync.WaitGroup
		all.Go(func() {
			w.l.lead(ctx, leading{Self: "me", Nodes: w.table, Ping: w.ping, Propose: propose})
		})
		time.Sleep(10 * time.Second)
		stop()
		all.Wait()
		// n2 lives by its answers to pings alone.
		if got := w.changes(); len(got) != 1 || !strings.HasPrefix(got[0], "n1 down") {
			t.Errorf("%v", got)
		}
	})
}

func TestTellReachesTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, stop := context.WithCancel(t.Context())
		leader, follower := newLiveness(0, nil), newLiveness(0, nil)
		if err := leader.beat("n", "one", "10.0.0.1:1"); err != nil {
			t.Fatal(err)
		}
		if err := follower.beat("n", "two", "10.0.0.2:1"); err != nil {
			t.Fatal(err)
		}
		follower.seen("other")
		var all sync.WaitGroup
		fails := 2
		all.Go(func() {
			follower.tell(ctx, telling{Self: "f", Send: func(ctx context.Context, a api.Alive) (api.AliveReply, error) {
				if fails--; fails >= 0 {
					<-ctx.Done() // a leader that hangs
					return api.AliveReply{}, ctx.Err()
				}
				return leader.merge(a), nil
			}})
		})
		time.Sleep(1600 * time.Millisecond)
		if err := errors.Join(leader.beat("n", "one", "10.0.0.1:1"), follower.beat("n", "two", "10.0.0.2:1")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		if err := follower.beat("n", "two", "10.0.0.2:1"); !errors.Is(err, spec.ErrConflict) || !strings.Contains(err.Error(), "10.0.0.1") {
			t.Errorf("the follower was not told: %v", err)
		}
		if age := leader.nowLocked().since(leader.nodes["other"].seen); age < 3500*time.Millisecond || age > 3700*time.Millisecond {
			t.Errorf("the leader thinks that the other node was heard %s ago", age)
		}
		stop()
		all.Wait()
	})
}
