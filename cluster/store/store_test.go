package store

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wherry.dev/spec"
)

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestWatch(t *testing.T) {
	h := newHarness(t)
	w := h.s.Watch()
	if closed(w) || h.s.Watch() != w {
		t.Fatal("the watch is not quiet")
	}
	clone := h.s.Clone()
	clone.Apply(1000, putStack(web("shop", 1)))
	if closed(w) {
		t.Fatal("a clone woke the watchers of its origin")
	}
	for _, c := range []Command{putStack(web("shop", 1)), putStack(web("shop", 1)), {RemoveStack: &RemoveStack{Name: "x"}}} {
		w = h.s.Watch()
		before := h.s.Snapshot().Index()
		h.apply(c)
		if !closed(w) || closed(h.s.Watch()) {
			t.Errorf("%s: the watch was not closed, or the next one was", c.Kind())
		}
		if h.s.Snapshot().Index() != before+10 {
			t.Error("who was woken sees the old state")
		}
	}
	w = h.s.Watch()
	if err := h.s.Restore(strings.NewReader("junk")); err == nil || closed(w) {
		t.Errorf("a failed restore: %v", err)
	}
	if err := h.s.Restore(strings.NewReader(dump(t, h.s.Snapshot()))); err != nil || !closed(w) {
		t.Errorf("a restore did not wake: %v", err)
	}
}

// Readers, a writer and who waits for a change, all at once: for the race
// detector, and to see that every woken reader finds a newer state.
func TestConcurrentUse(t *testing.T) {
	s := New()
	const last = 300
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			var seen uint64
			for seen < last {
				w := s.Watch()
				n := s.Snapshot()
				if n.Index() < seen || len(n.Stacks()) > 1 {
					t.Error("the state went back")
					return
				}
				if seen = n.Index(); seen < last {
					<-w
				}
			}
		})
	}
	for i := range uint64(last) {
		s.Apply(i+1, putStack(web("shop", uint16(i+1))))
	}
	wg.Wait()
}

func TestSnapshotIsImmutable(t *testing.T) {
	h := planned(t)
	h.running("n1", 1, "10.1.0.2/24")
	n := h.s.Snapshot()
	before := dump(t, n)
	h.must(putStack(web("shop", 9999)))
	h.must(Command{RemoveStack: &RemoveStack{Name: "shop", Volumes: true}})
	if after := dump(t, n); after != before {
		t.Error(cmp.Diff(before, after))
	}
}

func TestClone(t *testing.T) {
	h := planned(t)
	before := dump(t, h.s.Snapshot())
	c := h.s.Clone()
	if got := dump(t, c.Snapshot()); got != before {
		t.Error("the clone differs")
	}
	if res := c.Apply(h.index+1, putStack(web("more", 1))); res.Err != nil || c.Snapshot().Stack("more") == nil {
		t.Fatalf("%+v", res)
	}
	if got := dump(t, h.s.Snapshot()); got != before {
		t.Error("a write to the clone reached the store")
	}
	h.must(putStack(web("less", 2)))
	if c.Snapshot().Stack("less") != nil {
		t.Error("a write to the store reached the clone")
	}
}

func TestIndexMustGrow(t *testing.T) {
	h := newHarness(t)
	before := dump(t, h.s.Snapshot())
	for _, i := range []uint64{0, h.index - 1, h.index} {
		res := h.s.Apply(i, putStack(web("shop", 1)))
		wantError(t, res.Err, spec.ErrInvalid, "applied already")
	}
	if dump(t, h.s.Snapshot()) != before {
		t.Error("an old entry changed the state")
	}
}

func TestEnvelopeRefuses(t *testing.T) {
	s := New()
	wantError(t, s.Apply(1, Command{}).Err, spec.ErrInvalid, "exactly one body")
	wantError(t, s.Apply(2, Command{Reports: &Reports{}, ApplyPlan: &ApplyPlan{}}).Err, spec.ErrInvalid, "exactly one body")
	long := putStack(web("shop", 1))
	long.RequestID = strings.Repeat("x", 129)
	wantError(t, s.Apply(3, long).Err, spec.ErrInvalid, "request ID")
	c, err := Decode([]byte("\x01" + `{"time":"0000-01-01T00:00:00+10:00","put_stack":{"stack":{"name":"shop","services":{}}}}`))
	if err != nil {
		t.Fatal(err)
	}
	wantError(t, s.Apply(4, c).Err, spec.ErrInvalid, "time")
	if s.Snapshot().Index() != 4 {
		t.Errorf("index %d", s.Snapshot().Index())
	}
}

func TestRequestIDs(t *testing.T) {
	h := newHarness(t)
	put := putStack(web("shop", 8080))
	put.RequestID = "r1"
	first := h.must(put)
	at := h.index
	if first.Index != at || !first.Changed {
		t.Fatalf("%+v", first)
	}
	bad := Command{RequestID: "r2", ScaleService: &ScaleService{Stack: "later", Service: "web", Replicas: 3}}
	refused := h.apply(bad)
	wantError(t, refused.Err, spec.ErrNotFound)
	h.must(putStack(web("later", 1)))
	h.must(Command{RemoveStack: &RemoveStack{Name: "shop"}})

	same := cmp.Comparer(func(a, b error) bool {
		return a == nil && b == nil || a != nil && b != nil && a.Error() == b.Error() && spec.ErrorClass(a) == spec.ErrorClass(b)
	})
	check := func() {
		t.Helper()
		before := objects(t, h.s.Snapshot())
		b, _ := Encode(put)
		c, _ := Decode(b)
		h.index += 10
		if d := cmp.Diff(first, h.s.Apply(h.index, c), same); d != "" {
			t.Errorf("repeat (-first +second):\n%s", d)
		}
		h.index += 10
		if d := cmp.Diff(refused, h.s.Apply(h.index, bad), same); d != "" {
			t.Errorf("repeat of a refusal (-first +second):\n%s", d)
		}
		if objects(t, h.s.Snapshot()) != before {
			t.Error("a repeat changed the state")
		}
	}
	check()
	if err := h.s.Restore(strings.NewReader(dump(t, h.s.Snapshot()))); err != nil {
		t.Fatal(err)
	}
	check()

	scale := func(id string) Result {
		h.index += 10
		return h.s.Apply(h.index, Command{RequestID: id, ScaleService: &ScaleService{Stack: "later", Service: "web", Replicas: 1}})
	}
	for i := range KeepRequests - 2 {
		scale(fmt.Sprint("s", i))
	}
	check()
	scale("one more")
	if n := h.s.Snapshot(); n.tables.requests.count(n.read()) != KeepRequests {
		t.Errorf("%d results are kept", n.tables.requests.count(n.read()))
	}
	if res := h.must(put); res.Index != h.index {
		t.Error("the oldest result is still remembered")
	}
	// Commands that are not a user's have no memory.
	for range 2 {
		if res := h.must(Command{RequestID: "x", Reports: &Reports{}}); res.Index != h.index {
			t.Errorf("%+v", res)
		}
	}
}

func TestEvents(t *testing.T) {
	h := &harness{TB: t, s: New()}
	h.must(Command{PutNode: &PutNode{ID: "n1", Name: "alpha", Role: spec.RoleWorker}})
	seqs := func(after uint64, limit int) ([]uint64, bool) {
		events, gone := h.s.Snapshot().Events(after, limit)
		var out []uint64
		for _, e := range events {
			out = append(out, e.Seq)
		}
		return out, gone
	}
	flip := func(n int) {
		for i := range n {
			h.index++
			h.s.Apply(h.index, Command{SetNodeState: &SetNodeState{ID: "n1", State: []spec.NodeState{spec.NodeDown, spec.NodeReady}[i%2]}})
		}
	}
	flip(4)
	for _, tc := range []struct {
		after uint64
		limit int
		want  []uint64
		gone  bool
	}{
		{0, 0, []uint64{1, 2, 3, 4, 5}, false},
		{0, 2, []uint64{1, 2}, false},
		{3, 10, []uint64{4, 5}, false},
		{5, 0, nil, false},
		{6, 0, nil, true},
	} {
		if got, gone := seqs(tc.after, tc.limit); !slices.Equal(got, tc.want) || gone != tc.gone {
			t.Errorf("after %d: %v %t, want %v %t", tc.after, got, gone, tc.want, tc.gone)
		}
	}
	for limit, want := range map[int][]uint64{-1: nil, 0: nil, 1: {5}, 2: {4, 5}, 9: {1, 2, 3, 4, 5}} {
		var got []uint64
		for _, e := range h.s.Snapshot().RecentEvents(limit) {
			got = append(got, e.Seq)
		}
		if !slices.Equal(got, want) {
			t.Errorf("the newest %d: %v, want %v", limit, got, want)
		}
	}
	flip(spec.KeepEvents)
	if _, gone := seqs(4, 1); !gone {
		t.Error("there is a gap behind 4")
	}
	got, gone := seqs(5, 0)
	if gone || len(got) != spec.KeepEvents || got[0] != 6 || got[len(got)-1] != spec.KeepEvents+5 {
		t.Errorf("%d events from %v, gone %t", len(got), got[:1], gone)
	}
	if !slices.IsSorted(got) {
		t.Error("out of order")
	}
}

func TestOrder(t *testing.T) {
	s := New()
	for i, id := range []string{"1-10", "2-1", "1-9", "10-1", "1-100", "1-2"} {
		r := &reducer{tables: s.tables, db: s.db, index: uint64(i)}
		if err := r.attempt(func() error {
			put(r, &r.tasks, spec.Task{ID: spec.TaskID(id), Stack: "a", Service: "b", Node: "n"})
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	n := &Snapshot{tables: s.tables, db: s.db}
	want := []spec.TaskID{"1-2", "1-9", "1-10", "1-100", "2-1", "10-1"}
	for name, list := range map[string][]*spec.Task{"all": n.Tasks(), "of": n.TasksOf("a", "b"), "on": n.TasksOn("n")} {
		var got []spec.TaskID
		for _, x := range list {
			got = append(got, x.ID)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
	for _, id := range []spec.TaskID{"", "1", "-", "1-", "-1", "01-2", "1-02", "+1-2", "1-2-3", "1-2 ", "99999999999999999999-1"} {
		if n.Task(id) != nil {
			t.Errorf("%q is found", id)
		}
	}
}

// Prefixes of names and IDs must not be taken for them.
func TestIndexesMatchWhole(t *testing.T) {
	h := newHarness(t)
	for i, name := range []string{"a", "aa", "a-b"} {
		s := web(name, uint16(i+1))
		s.Services["we"] = spec.ServiceSpec{}
		h.must(putStack(s))
	}
	h.must(Command{PutNode: &PutNode{ID: "n", Name: "x", Role: spec.RoleWorker}})
	rev := h.s.Snapshot().Service("a", "web").Revision
	h.mustPart(spec.Part{Create: []spec.Task{{Stack: "a", Service: "web", Slot: 1, Node: "n1", Revision: rev}}})
	n := h.s.Snapshot()
	if got := len(n.ServicesOf("a")); got != 2 {
		t.Errorf("%d services of a", got)
	}
	if len(n.TasksOf("a", "we"))+len(n.TasksOf("a", ""))+len(n.TasksOn("n")) != 0 {
		t.Error("a task is found under a part of its name")
	}
	if len(n.StackRevisions("a")) != 1 {
		t.Error("revisions of another stack")
	}
}

func TestGuardFindsMutation(t *testing.T) {
	for name, mutate := range map[string]func(*Snapshot){
		"field": func(n *Snapshot) { n.Service("shop", "web").Replicas = 9 },
		"map":   func(n *Snapshot) { n.StackRevision("shop", 1).Spec.Services["x"] = spec.ServiceSpec{} },
	} {
		t.Run(name, func(t *testing.T) {
			h := planned(t)
			mutate(h.s.Snapshot())
			defer func() {
				if r := recover(); r == nil || !strings.Contains(fmt.Sprint(r), "modified outside Apply") {
					t.Errorf("recovered %v", r)
				}
			}()
			for range h.s.tables.list() {
				h.s.Snapshot() // each call looks at one table
			}
			t.Error("the mutation was not found")
		})
	}
}

type brokenWriter struct{ left int }

func (w *brokenWriter) Write(b []byte) (int, error) {
	if w.left -= len(b); w.left < 0 {
		return 0, errors.New("disk full")
	}
	return len(b), nil
}

func TestPersistReportsErrors(t *testing.T) {
	h := newHarness(t)
	for range 200 { // more than a buffer
		h.index++
		h.s.Apply(h.index, putStack(web(fmt.Sprint("s", h.index), 0)))
	}
	var b bytes.Buffer
	if err := h.s.Persist(&b); err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 100, 70_000, b.Len() - 1} {
		if err := h.s.Persist(&brokenWriter{n}); err == nil || !strings.Contains(err.Error(), "disk full") {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
}
