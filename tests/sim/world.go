package sim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
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
	// skew is how far the leader's clock is ahead of the true time, seen what it
	// has seen by a clock that nobody sets.
	skew  time.Duration
	seen  *reconciler.Sightings
	hosts []*host // of the cluster
	// left are hosts whose nodes were removed; they may go on for a while.
	left []*host
	made int // hosts so far
	// scarce: there are networks with fewer addresses than tasks.
	scarce bool
	// calm: nothing goes wrong any more.
	calm bool
	// spoilt is the stack whose newest revision cannot start, at the end.
	spoilt string
	// ledger counts how updates end, where that is asked for.
	ledger *Ledger
	// dead is a host that does not come back, away one that stays drained.
	dead, away *host
	// late are commands that were sent and have not arrived yet; belated says that
	// one of them does now.
	late    []store.Command
	belated bool
	// Trace has one line per event, for the reader of a failing seed.
	Trace []string
	err   error
	// versions are those that services had, data the writes to volumes.
	versions map[version]bool
	data     map[spec.VolumeID]int
}

// begin is when a world begins; its first leader has led for long.
var begin = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

const longLed = -24 * time.Hour

// New returns the world of a seed.
func New(seed uint64) *World {
	w := &World{
		rng:   rand.New(rand.NewPCG(seed, 1)),
		store: store.New(),
		epoch: 1,
		now:   begin,
		seen:  reconciler.NewSightings(longLed),

		versions: map[version]bool{}, data: map[spec.VolumeID]int{},
	}
	w.scarce = w.chance(20)
	format := store.Format
	if w.chance(20) {
		format-- // some managers are of an older version at first
	}
	w.apply(store.Command{Bootstrap: &store.Bootstrap{ClusterID: "sim", Incarnation: 1, Format: format}})
	hosts := 1 + w.rng.IntN(2)
	if w.chance(80) {
		hosts = 3 + w.rng.IntN(3)
	}
	for range hosts {
		w.join()
	}
	return w
}

// join adds a host; the first three are managers.
func (w *World) join() {
	w.made++
	h := newHost(spec.NodeID(fmt.Sprintf("node%012d", w.made)), fmt.Sprint("n", w.made))
	h.memory = int64(2+w.rng.IntN(6)) << 30
	h.older = w.made%4 == 0
	h.mtu = []int{0, 1400, 1500, 9000}[w.rng.IntN(4)]
	h.address = fmt.Sprintf("192.0.2.%d:4477", w.made)
	h.links = interfaces[w.rng.IntN(len(interfaces))]
	if w.chance(10) {
		h.routes = routes[w.rng.IntN(len(routes))]
	}
	role := spec.RoleWorker
	if w.made <= 3 {
		role = spec.RoleManager
	}
	w.enter(h, role)
}

// enter makes a host a node of the cluster, for the first time or again.
func (w *World) enter(h *host, role spec.NodeRole) {
	w.hosts = append(w.hosts, h)
	h.up = true
	w.note("%s joins as a %s", h.name, role)
	w.apply(store.Command{PutNode: &store.PutNode{ID: h.id, Name: h.name, Role: role, Address: h.address, Key: "key of " + h.name}})
	w.introduce(h)
}

// introduce lets a host tell of itself what the state takes.
func (w *World) introduce(h *host) {
	info := spec.NodeInfo{OS: "linux", Arch: "amd64", NanoCPUs: 4e9, Memory: h.memory, Format: store.Format}
	if w.store.Snapshot().Format() >= store.MTUFormat {
		info.MTU = h.mtu
	}
	if w.store.Snapshot().Format() >= store.AddressFormat {
		info.Subnets, info.Interfaces = h.routes, h.links
	}
	w.apply(store.Command{Reports: &store.Reports{Reports: []spec.Report{{Node: h.id, Info: &info}}}})
}

// upgrade raises the format of the state, when it is not the newest yet.
func (w *World) upgrade() {
	s := w.store.Snapshot()
	if s.Format() == store.Format {
		return
	}
	w.note("every manager knows format %d", store.Format)
	w.apply(store.Command{Bootstrap: &store.Bootstrap{ClusterID: s.ClusterID(), Incarnation: s.Incarnation(), Format: store.Format}})
	for _, h := range w.hosts {
		w.introduce(h)
	}
}

// clock is the leader's.
func (w *World) clock() time.Time { return w.now.Add(w.skew) }

// wait lets time pass, in which leases run out.
func (w *World) wait(d time.Duration) {
	w.now = w.now.Add(d)
	for _, h := range append(slices.Clone(w.hosts), w.left...) {
		h.endLeases(w)
	}
	w.checkExclusive()
}

// elect changes the leader, whose clock may be another.
func (w *World) elect() {
	w.epoch++
	w.skew = 0
	if w.chance(30) && !w.calm {
		w.skew = time.Duration(w.rng.IntN(60)-30) * time.Second
	}
	w.seen = reconciler.NewSightings(w.elapsed())
	w.note("a new leader, term %d, whose clock is ahead by %v", w.epoch, w.skew)
}

// notice is the leader's look at who is alive.
func (w *World) notice() {
	for _, h := range w.hosts {
		n := w.store.Snapshot().Node(h.id)
		state := spec.NodeDown
		if h.up {
			state = spec.NodeReady
		}
		if n == nil || n.State == state || !h.up && w.now.Sub(h.flipped) < 2500*time.Millisecond || w.chance(50) {
			continue
		}
		c := store.Command{Time: w.clock(), SetNodeState: &store.SetNodeState{ID: h.id, State: state}}
		if w.chance(5) {
			w.late = append(w.late, c)
			continue
		}
		w.note("the leader finds %s %s", h.name, state)
		w.apply(c)
	}
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
	if w.chance(50) { // a leader that is quick looks at every state
		w.seen.Look(w.store.Snapshot(), w.elapsed())
	}
	w.check(before, w.store.Snapshot(), &c)
	return res
}

func (w *World) elapsed() time.Duration { return w.now.Sub(begin) }

// planOf is what the leader plans for the newest state.
func (w *World) planOf() spec.Plan {
	snap := w.store.Snapshot()
	w.seen.Look(snap, w.elapsed())
	return reconciler.PlanSeen(snap, w.clock(), w.seen.At(w.clock(), w.elapsed()))
}

// Step makes one random event.
func (w *World) Step() {
	w.wait(time.Duration(w.rng.IntN(500)) * time.Millisecond)
	w.notice()
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
		w.elect()
		if w.chance(30) {
			w.upgrade()
		}
	case n < 97:
		w.hosts[w.rng.IntN(len(w.hosts))].flip(w)
	case n < 98:
		for range w.rng.IntN(24) {
			w.wait(5 * time.Second)
			w.notice()
			for _, h := range w.hosts {
				h.hear(w, w.chance(80))
			}
		}
	default:
		w.quiet()
	}
}

// storm makes one of the events that leases are for.
func (w *World) storm() {
	w.wait(time.Duration(w.rng.IntN(1500)) * time.Millisecond)
	w.notice()
	h := w.hosts[w.rng.IntN(len(w.hosts))]
	switch n := w.rng.IntN(100); {
	case n < 40:
		w.lead()
		for _, h := range w.hosts {
			h.hear(w, w.chance(50))
			if w.chance(60) {
				h.stepAll(w)
			}
			w.checkExclusive()
		}
	case n < 75:
		h.tell(w)
	case n < 85:
		h.flip(w)
	case n < 92:
		w.elect()
	default:
		w.arriveLate()
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
			w.checkExclusive()
			if h.up {
				h.tellAll(w)
			}
		}
		w.wait(time.Duration(w.rng.IntN(10)) * time.Second)
		w.notice()
	}
}

// send brings a plan of the newest state into the log.
func (w *World) send(plan spec.Plan) {
	w.note("plan %s", keys(plan.Parts))
	before := w.store.Snapshot()
	w.afterPlan(before, plan, w.apply(store.Command{Time: w.clock(), ApplyPlan: &store.ApplyPlan{Epoch: w.epoch, Parts: plan.Parts}}))
}

// lead makes a plan and sends it, or loses it, or sends it twice, or late.
func (w *World) lead() {
	plan := w.plan()
	if plan.Empty() {
		return
	}
	c := store.Command{Time: w.clock(), ApplyPlan: &store.ApplyPlan{Epoch: w.epoch, Parts: plan.Parts}}
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
			w.belated = true
			w.apply(c)
			w.belated = false
		}
	}
}

// plan computes a plan, now and then twice, which must give the same bytes.
func (w *World) plan() spec.Plan {
	plan := w.planOf()
	if w.chance(10) {
		if again := w.planOf(); !bytes.Equal(encode(plan), encode(again)) {
			w.failf("two plans of one snapshot differ:\n%s\n%s", encode(plan), encode(again))
		}
	}
	return plan
}

// afterPlan demands that a plan of the newest state is taken as a whole and
// leaves nothing to plan.
func (w *World) afterPlan(before *store.Snapshot, plan spec.Plan, res store.Result) {
	for i, err := range res.Parts {
		if err != nil {
			w.failf("part %s of a fresh plan was rejected: %v", plan.Parts[i].Key, err)
			return
		}
	}
	w.checkGiven(before, &plan)
	w.checkParents(before, &plan)
	if goesBack(plan) {
		return // what that declares is still to be planned
	}
	next := w.planOf()
	// What this plan has set free is given away by the next.
	for i := 0; i < 3 && !next.Empty() && w.awaited(); i++ {
		w.note("one more plan %s", keys(next.Parts))
		w.apply(store.Command{Time: w.clock(), ApplyPlan: &store.ApplyPlan{Epoch: w.epoch, Parts: next.Parts}})
		next = w.planOf()
	}
	// Contents go when nothing refers to them any more, and by the length of the log.
	next.Parts = slices.DeleteFunc(next.Parts, func(p spec.Part) bool { return len(p.RemoveContents) > 0 })
	if !next.Empty() {
		w.failf("a second plan is not empty: %s\nafter the plan %s", encode(next), encode(plan))
	}
}

// goesBack reports whether a plan declares something anew.
func goesBack(plan spec.Plan) bool {
	return slices.ContainsFunc(plan.Parts, func(p spec.Part) bool { return p.Rollback != nil })
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
	w.belated = true
	w.apply(c)
	w.belated = false
}

// Converge ends all faults, and plays on until nothing moves any more.
func (w *World) Converge() {
	w.calm, w.late = true, nil
	w.elect()
	for i, h := range w.hosts {
		if i == 1 && len(w.hosts) > 3 && w.chance(40) {
			w.away = h // and stays drained
			if !h.up {
				h.flip(w)
			}
			drain := spec.NodeDrain
			w.apply(store.Command{SetNodeState: &store.SetNodeState{ID: h.id, State: spec.NodeReady}})
			w.apply(store.Command{SetNode: &store.SetNode{ID: h.id, Availability: &drain, StopPinned: w.chance(50)}})
			continue
		}
		if i > 0 && i == len(w.hosts)-1 && w.chance(30) {
			w.dead = h // and stays so
			if h.up {
				h.flip(w)
			}
			w.apply(store.Command{Time: w.clock(), SetNodeState: &store.SetNodeState{ID: h.id, State: spec.NodeDown}})
			continue
		}
		h.heal(w)
	}
	w.upgrade()
	for _, h := range w.hosts {
		h.links = allLinks
		w.introduce(h)
	}
	w.lastWill()
	w.index += 2 * keepContents
	w.value() // now what nothing refers to is due to go
	w.rest()
	if w.err == nil && w.dead == nil && w.away == nil {
		w.spoil()
	}
	if w.err == nil {
		w.checkShuffled()
	}
}

// rest plays on until nothing moves any more, and looks at what there is then.
func (w *World) rest() {
	const rounds = 2000
	ended := 0
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
			w.checkExclusive()
		}
		for _, h := range w.left {
			h.hear(w, true)
			h.stepAll(w)
		}
		// What fails and goes on never rests; it must not begin anew either.
		if (w.spoilt != "" || w.restless()) && w.ended() {
			ended++
		}
		if ended > 60 {
			w.checkEnded()
			if w.spoilt != "" {
				w.checkSpoilt()
			}
			return
		}
		switch {
		case moved || !plan.Empty():
			w.wait(time.Second)
		case !plan.Next.IsZero():
			w.idle(plan.Next.Sub(w.now))
		default:
			w.idle(longestMonitor) // nothing is to be done then, but all is trusted
			w.checkEnded()
			if w.spoilt != "" {
				w.checkSpoilt()
				return
			}
			w.checkWanted()
			w.checkVIPsAtRest()
			w.checkAddressesAtRest()
			w.checkDocuments(w.store.Snapshot())
			w.checkDrained()
			w.checkNoneWaitsForRoom()
			w.checkPairsAtRest()
			w.checkFiles()
			w.checkMoved()
			if w.dead == nil && w.away == nil {
				w.checkNothingLeft(w.store.Snapshot())
				w.checkViews()
			}
			return
		}
	}
	w.failf("the world does not come to rest: %s", encode(w.plan()))
}

// idle lets time pass in which nothing happens but that nodes are heard.
func (w *World) idle(d time.Duration) {
	for ; d > 0; d -= 5 * time.Second {
		w.wait(min(d, 5*time.Second))
		for _, h := range w.hosts {
			h.hear(w, true)
		}
	}
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
