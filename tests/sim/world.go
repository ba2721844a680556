package sim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"time"

	"wherry.dev/cluster/store"
	"wherry.dev/reconciler"
	"wherry.dev/spec"
)

// World is a cluster and the people who use it.
type World struct {
	rng   *rand.Rand
	store *store.Store
	index uint64
	epoch uint64
	now   time.Time
	hosts []*host
	// scarce: there are networks with fewer addresses than tasks.
	scarce bool
	// calm: nothing goes wrong any more.
	calm bool
	// dead is a host that does not come back.
	dead *host
	// late are commands that were sent and have not arrived yet.
	late []store.Command
	// Trace has one line per event, for the reader of a failing seed.
	Trace []string
	err   error
}

// New returns the world of a seed.
func New(seed uint64) *World {
	w := &World{
		rng:   rand.New(rand.NewPCG(seed, 1)),
		store: store.New(),
		epoch: 1,
		now:   time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	w.scarce = w.chance(20)
	w.apply(store.Command{Bootstrap: &store.Bootstrap{ClusterID: "sim", Incarnation: 1}})
	for i := range 1 + w.rng.IntN(3) {
		h := newHost(spec.NodeID(fmt.Sprintf("node%012d", i+1)), fmt.Sprint("n", i+1))
		w.hosts = append(w.hosts, h)
		w.apply(store.Command{PutNode: &store.PutNode{ID: h.id, Name: h.name, Role: spec.RoleManager, Address: fmt.Sprint("192.0.2.", i+1)}})
		w.apply(store.Command{Reports: &store.Reports{Reports: []spec.Report{{Node: h.id, Info: &spec.NodeInfo{
			OS: "linux", Arch: "amd64", NanoCPUs: 4e9, Memory: int64(2+w.rng.IntN(6)) << 30,
		}}}}})
	}
	return w
}

// Err returns the first invariant that did not hold.
func (w *World) Err() error { return w.err }

func (w *World) failf(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf(format, args...)
	}
}

func (w *World) note(format string, args ...any) {
	w.Trace = append(w.Trace, fmt.Sprintf("%s #%d ", w.now.Format("15:04:05.000"), w.index)+fmt.Sprintf(format, args...))
}

// chance reports true in p of 100 cases.
func (w *World) chance(p int) bool { return w.rng.IntN(100) < p }

// apply brings a command through its encoding into the state, as the log does.
func (w *World) apply(c store.Command) store.Result {
	if c.Time.IsZero() {
		c.Time = w.now
	}
	b, err := store.Encode(c)
	if err == nil {
		c, err = store.Decode(b)
	}
	if err != nil {
		w.failf("a command does not survive its encoding: %v", err)
		return store.Result{Err: err}
	}
	before := w.store.Snapshot()
	w.index++
	res := w.store.Apply(w.index, c)
	w.check(before, w.store.Snapshot(), &c)
	return res
}

// Step makes one random event.
func (w *World) Step() {
	w.now = w.now.Add(time.Duration(w.rng.IntN(500)) * time.Millisecond)
	switch n := w.rng.IntN(100); {
	case n < 30:
		w.lead()
	case n < 60:
		h := w.hosts[w.rng.IntN(len(w.hosts))]
		h.hear(w, w.chance(70))
		h.step(w)
	case n < 80:
		w.hosts[w.rng.IntN(len(w.hosts))].tell(w)
	case n < 88:
		w.use()
	case n < 92:
		w.arriveLate()
	case n < 94:
		w.epoch++
		w.note("a new leader, term %d", w.epoch)
	case n < 97:
		w.hosts[w.rng.IntN(len(w.hosts))].flip(w)
	case n < 98:
		w.now = w.now.Add(time.Duration(w.rng.IntN(120)) * time.Second)
	default:
		w.quiet()
	}
}

// quiet is a time in which all that is up works as it should: rollouts get
// far enough to fail or to succeed.
func (w *World) quiet() {
	w.note("a quiet time")
	for range 12 {
		if plan := w.plan(); !plan.Empty() {
			w.send(plan)
		}
		for _, h := range w.hosts {
			h.hear(w, true)
			for _, id := range h.ids() {
				h.advance(w, h.runs[id])
			}
			if h.up {
				h.tellAll(w)
			}
		}
		w.now = w.now.Add(time.Duration(w.rng.IntN(10)) * time.Second)
	}
}

// send brings a plan of the newest state into the log.
func (w *World) send(plan spec.Plan) {
	w.note("plan %s", keys(plan.Parts))
	w.afterPlan(plan, w.apply(store.Command{Time: w.now, ApplyPlan: &store.ApplyPlan{Epoch: w.epoch, Parts: plan.Parts}}))
}

// lead makes a plan and sends it, or loses it, or sends it twice, or late.
func (w *World) lead() {
	plan := w.plan()
	if plan.Empty() {
		return
	}
	c := store.Command{Time: w.now, ApplyPlan: &store.ApplyPlan{Epoch: w.epoch, Parts: plan.Parts}}
	switch n := w.rng.IntN(100); {
	case n < 5:
		w.note("a plan is lost")
	case n < 15:
		w.note("a plan is late")
		w.late = append(w.late, c)
	default:
		w.send(plan)
		if w.chance(5) {
			w.note("the plan arrives again")
			w.apply(c)
		}
	}
}

// plan computes a plan, now and then twice, which must give the same bytes.
func (w *World) plan() spec.Plan {
	snap := w.store.Snapshot()
	plan := reconciler.Plan(snap, w.now)
	if w.chance(10) {
		if again := reconciler.Plan(snap, w.now); !bytes.Equal(encode(plan), encode(again)) {
			w.failf("two plans of one snapshot differ:\n%s\n%s", encode(plan), encode(again))
		}
	}
	return plan
}

// afterPlan demands that a plan of the newest state is taken as a whole and
// leaves nothing to plan.
func (w *World) afterPlan(plan spec.Plan, res store.Result) {
	for i, err := range res.Parts {
		if err != nil {
			w.failf("part %s of a fresh plan was rejected: %v", plan.Parts[i].Key, err)
			return
		}
	}
	next := reconciler.Plan(w.store.Snapshot(), w.now)
	// Where addresses are scarce, one that this plan has set free is given
	// away by the next.
	for i := 0; w.scarce && i < 3 && !next.Empty(); i++ {
		w.note("one more plan %s", keys(next.Parts))
		w.apply(store.Command{Time: w.now, ApplyPlan: &store.ApplyPlan{Epoch: w.epoch, Parts: next.Parts}})
		next = reconciler.Plan(w.store.Snapshot(), w.now)
	}
	if !next.Empty() {
		w.failf("a second plan is not empty: %s", encode(next))
	}
}

// arriveLate delivers what was sent long ago.
func (w *World) arriveLate() {
	if len(w.late) == 0 {
		return
	}
	i := w.rng.IntN(len(w.late))
	c := w.late[i]
	w.late = append(w.late[:i], w.late[i+1:]...)
	w.note("a late %s arrives", c.Kind())
	w.apply(c)
}

// Converge ends all faults, and plays on until nothing moves any more.
func (w *World) Converge() {
	w.calm, w.late = true, nil
	for i, h := range w.hosts {
		if i > 0 && i == len(w.hosts)-1 && w.chance(30) {
			w.dead = h // and stays so
			if h.up {
				h.flip(w)
			}
			continue
		}
		h.heal(w)
	}
	w.lastWill()
	const rounds = 2000
	for range rounds {
		if w.err != nil {
			return
		}
		plan := w.plan()
		if !plan.Empty() {
			w.send(plan)
		}
		moved := false
		for _, h := range w.hosts {
			if h == w.dead {
				continue
			}
			h.hear(w, true)
			moved = h.stepAll(w) || moved
			moved = h.tellAll(w) || moved
		}
		switch {
		case moved || !plan.Empty():
			w.now = w.now.Add(time.Second)
		case !plan.Next.IsZero():
			w.now = plan.Next
		default:
			w.now = w.now.Add(reconciler.Monitor) // nothing is to be done then, but all is trusted
			w.checkWanted()
			if w.dead == nil {
				w.checkNothingLeft(w.store.Snapshot())
				w.checkViews()
			}
			w.checkShuffled()
			return
		}
	}
	w.failf("the world does not come to rest: %s", encode(w.plan()))
}

func keys(parts []spec.Part) string {
	s := ""
	for _, p := range parts {
		s += fmt.Sprintf("[%s +%d ~%d -%d]", p.Key, len(p.Create), len(p.Change), len(p.Remove))
	}
	return s
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}
