package cluster

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"wherry.dev/api"
	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

const (
	// defaultDownAfter is how long a node is silent before it is down.
	defaultDownAfter = 2500 * time.Millisecond
	// lifeTick is how often the leader looks while a node is down or has been
	// silent for longer than usual, restTick otherwise.
	lifeTick, restTick = 100 * time.Millisecond, 250 * time.Millisecond
	// maxTick is how much of the time between two looks counts: this member has
	// slept through the rest, and could hear nobody then.
	maxTick = 400 * time.Millisecond
	// tellEvery is how often followers tell the leader, tellTime how long they
	// wait for its answer.
	tellEvery, tellTime = 500 * time.Millisecond, time.Second
	// vouchTime is how long a follower asks a node that the leader does not hear.
	vouchTime = 400 * time.Millisecond
	// tellAge is the age up to which a sign of life is passed on.
	tellAge = 10 * time.Second
	// restartSlack is how long after a daemon was started again a word of its
	// former life may still be on its way.
	restartSlack = 500 * time.Millisecond
	// stateRetry is how long a change of state that failed waits.
	stateRetry = 500 * time.Millisecond
)

// The leader pings a node that has been silent for so long, so often. A node
// that is down comes back by itself as a rule, and is asked more rarely.
const (
	quietAge, quietPing   = 500 * time.Millisecond, 200 * time.Millisecond
	silentAge, silentPing = time.Second, 100 * time.Millisecond
	downPing              = time.Second
)

// moment is a point in time by the clock of a liveness: the time since it was
// made, less what this member slept through. It does not jump with the clock
// on the wall, nor run on while nobody could have been heard.
type moment time.Duration

// never is before every moment that counts.
const never = moment(-1 << 62)

func (m moment) since(then moment) time.Duration { return time.Duration(m - then) }

// liveness is what a manager knows of the lives of nodes. Signs of life come in
// at all managers (beat, seen), followers pass theirs on to the leader (tell,
// merge), and the leader asks those that are silent and says who is down
// (lead). All methods may be called concurrently.
type liveness struct {
	down time.Duration
	log  *slog.Logger
	// elapsed is the time since some point, by a clock that never jumps.
	elapsed func() time.Duration

	mu sync.Mutex
	// slept is the time that does not count. looked is when lead looked last,
	// by elapsed; negative while it does not run.
	slept, looked time.Duration
	nodes         map[spec.NodeID]*life
	// silent is since when each node has been silent, as lead saw it last; nil
	// while it does not run.
	silent map[spec.NodeID]moment
}

// life is what is known of one node.
type life struct {
	// seen is when it gave the last sign of life of any kind.
	seen moment
	// holder is the life of the daemon that holds the node's identity; empty
	// while none was heard. beat is when it was heard last, took when first,
	// and remote the host that it was heard from, if that is known.
	holder     string
	beat, took moment
	remote     string
	// former is the instance that the holder has followed on the same host, as
	// a daemon does that is started again.
	former string
	// refused is the instance that was turned away last, tried when it asked
	// last. Until the moment banned, that was said by the leader, who knows
	// the holder's host as rival.
	refused       string
	tried, banned moment
	rival         string
}

// newLiveness returns an empty table. A node is down after so long without a
// sign of life; 0 is 2.5 s.
func newLiveness(down time.Duration, log *slog.Logger) *liveness {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	start := time.Now()
	return &liveness{
		down: cmp.Or(down, defaultDownAfter), log: log.With("component", "liveness"),
		elapsed: func() time.Duration { return time.Since(start) },
		looked:  -1, nodes: map[spec.NodeID]*life{},
	}
}

// nowLocked is the present moment: between two looks of lead, time passes up to
// maxTick only.
func (l *liveness) nowLocked() moment {
	at := l.elapsed()
	if l.looked >= 0 {
		at = min(at, l.looked+maxTick)
	}
	return moment(at - l.slept)
}

// lookLocked is nowLocked for lead alone, which calls it at regular times and
// so finds out when it could not.
func (l *liveness) lookLocked() moment {
	now := l.nowLocked()
	l.looked = l.elapsed()
	l.slept = l.looked - time.Duration(now)
	return now
}

func (l *liveness) lifeLocked(id spec.NodeID) *life {
	n := l.nodes[id]
	if n == nil {
		n = &life{seen: never, beat: never, took: never, tried: never, banned: never}
		l.nodes[id] = n
	}
	return n
}

// seen notes a sign of life.
func (l *liveness) seen(id spec.NodeID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := l.lifeLocked(id)
	n.seen = l.nowLocked()
}

// beat notes that an instance of a node's daemon is alive, as it says itself
// from the remote "host:port". The error is of class ErrConflict when another
// instance holds the node's identity and is alive: this one must not take
// part, though it may ask again.
func (l *liveness) beat(id spec.NodeID, instance, remote string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.nowLocked()
	n := l.lifeLocked(id)
	if host, _, err := net.SplitHostPort(remote); err == nil {
		remote = host
	}
	rival, ok := n.hear(instance, remote, now, now, l.down)
	if !ok {
		return twoHolders(id, rival)
	}
	return nil
}

func twoHolders(id spec.NodeID, rival string) error {
	if rival != "" && rival != "@" {
		rival = " at " + rival
	} else {
		rival = ""
	}
	return spec.Conflictf("another host%s uses the identity of node %s: stop one of the two; if its data folder is a copy, start it with an empty one and let it join as a new node", rival, id)
}

// hear judges a word of an instance that was said at a moment. False means
// that another instance, on the host rival, holds the identity.
func (n *life) hear(instance, remote string, said, now moment, down time.Duration) (rival string, ok bool) {
	n.seen = max(n.seen, said)
	alive := n.holder != "" && now.since(n.beat) < down
	if n.refused == instance && now < n.banned {
		n.tried = max(n.tried, said)
		return n.rival, false
	}
	switch {
	case instance == n.holder:
		n.beat = max(n.beat, said)
		if remote != "" {
			n.remote = remote
		}
		return "", true
	case !alive:
		n.holder, n.remote, n.took, n.beat, n.former = instance, remote, said, said, ""
		return "", true
	case instance == n.former && said.since(n.took) <= restartSlack:
		return "", true
	case instance == n.former:
		// It was not started again, then: there are two on this host, and the
		// newcomer has to go.
		n.refused, n.tried, n.rival = n.holder, n.beat, n.remote
		n.holder, n.took, n.beat, n.former = instance, said, said, ""
		return "", true
	case remote != "" && remote == n.remote && instance != n.refused:
		n.former = n.holder
		n.holder, n.took, n.beat = instance, said, said
		return "", true
	}
	n.refused, n.tried, n.rival = instance, max(n.tried, said), n.remote
	return n.remote, false
}

// alive returns the signs of life that this manager has, for the leader.
func (l *liveness) alive() api.Alive {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.nowLocked()
	var a api.Alive
	add := func(id spec.NodeID, instance, remote string, at moment, limit time.Duration) {
		if age := now.since(at); age < limit {
			a.Nodes = append(a.Nodes, api.AliveNode{ID: id, Instance: instance, Remote: remote, Age: spec.Duration(age)})
		}
	}
	for id, n := range l.nodes {
		if n.holder != "" {
			add(id, n.holder, n.remote, n.beat, tellAge)
		}
		if n.seen > n.beat {
			add(id, "", "", n.seen, tellAge)
		}
		// The leader must go on saying that this one is refused, or no longer.
		if n.refused != "" {
			add(id, n.refused, "", n.tried, l.down)
		}
	}
	slices.SortFunc(a.Nodes, func(a, b api.AliveNode) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Instance, b.Instance))
	})
	return a
}

// merge notes the signs of life that another manager has; the reply names the
// instances that must not take part, and the nodes that are still not heard.
func (l *liveness) merge(a api.Alive) api.AliveReply {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.nowLocked()
	var reply api.AliveReply
	for _, s := range a.Nodes {
		n := l.lifeLocked(s.ID)
		said := now - moment(max(s.Age.D(), 0))
		if s.Instance == "" || now.since(said) >= l.down {
			n.seen = max(n.seen, said)
			continue
		}
		if rival, ok := n.hear(s.Instance, s.Remote, said, now, l.down); !ok {
			reply.Refused = append(reply.Refused, api.AliveNode{ID: s.ID, Instance: s.Instance, Remote: rival})
		}
	}
	for id, since := range l.silent {
		if n := l.nodes[id]; n != nil {
			since = max(since, n.seen)
		}
		if now.since(since) >= silentAge {
			reply.Ask = append(reply.Ask, id)
		}
	}
	slices.Sort(reply.Ask)
	return reply
}

// refuse notes what the leader has said of this manager's signs of life.
func (l *liveness) refuse(r api.AliveReply) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.nowLocked()
	for _, s := range r.Refused {
		n := l.lifeLocked(s.ID)
		if n.holder == s.Instance {
			n.tried = n.beat
			n.holder, n.remote, n.former, n.beat = "", "", "", never
		}
		n.refused, n.rival, n.banned = s.Instance, s.Remote, now+moment(l.down)
	}
}

// telling is what tell needs of the rest.
type telling struct {
	// Self is this node.
	Self spec.NodeID
	// Send tells the leader. It must fail, and not wait, while there is no
	// leader or this member leads itself.
	Send func(context.Context, api.Alive) (api.AliveReply, error)
	// Ping waits for a sign of life, for less than a second.
	Ping func(context.Context, spec.NodeID) bool
}

// tell tells the leader what this manager knows, twice a second until ctx
// ends, and asks the nodes that the leader does not hear: it may be only the
// way from there that is cut. Their answers are told at once.
func (l *liveness) tell(ctx context.Context, c telling) {
	var all sync.WaitGroup
	defer all.Wait()
	var answered bell
	var busy sync.Map // nodes that are being asked
	news := answered.wait()
	for changeWithin(ctx, tellEvery, news) {
		news = answered.wait()
		call, cancel := context.WithTimeout(ctx, tellTime)
		reply, err := c.Send(call, l.alive())
		cancel()
		if err != nil {
			l.log.Debug("cannot tell the leader who is alive", "err", err)
			continue
		}
		l.refuse(reply)
		for _, id := range reply.Ask {
			if id == c.Self {
				continue // cut off from the leader: only others can help
			}
			if _, on := busy.LoadOrStore(id, true); on {
				continue
			}
			all.Go(func() {
				defer busy.Delete(id)
				if l.ask(ctx, id, c.Ping) {
					answered.ring()
				}
			})
		}
	}
}

// ask asks a node for a sign of life, again and again for vouchTime, and reports
// whether there was one.
func (l *liveness) ask(ctx context.Context, id spec.NodeID, ping func(context.Context, spec.NodeID) bool) bool {
	ctx, end := context.WithTimeout(ctx, vouchTime)
	defer end()
	var all sync.WaitGroup
	var heard atomic.Bool
	for {
		all.Go(func() {
			if ping(ctx, id) {
				l.seen(id)
				heard.Store(true)
				end()
			}
		})
		if !wait(ctx, silentPing) {
			break
		}
	}
	all.Wait()
	return heard.Load()
}

// watch is the leader's memory of the table of nodes.
type watch struct {
	self spec.NodeID
	// began is when the leader began to look: what was before, it need not
	// have heard.
	began moment
	// ready is since when the table has said that a node is ready.
	ready map[spec.NodeID]moment
	// pinged is when a node was pinged last.
	pinged map[spec.NodeID]moment
}

func newWatch(self spec.NodeID, now moment) *watch {
	return &watch{self: self, began: now, ready: map[spec.NodeID]moment{}, pinged: map[spec.NodeID]moment{}}
}

// notice takes note of the nodes that have become ready: somebody must have
// heard them.
func (w *watch) notice(nodes []*spec.Node, now moment) {
	here := map[spec.NodeID]bool{}
	for _, n := range nodes {
		here[n.ID] = true
		_, was := w.ready[n.ID]
		switch {
		case n.State != spec.NodeReady:
			delete(w.ready, n.ID)
		case !was:
			w.ready[n.ID] = now
		}
	}
	for _, m := range []map[spec.NodeID]moment{w.ready, w.pinged} {
		maps.DeleteFunc(m, func(id spec.NodeID, _ moment) bool { return !here[id] })
	}
}

// silence is for how long a node has been silent, as far as it could be heard.
func (w *watch) silence(id spec.NodeID, seen map[spec.NodeID]moment, now moment) time.Duration {
	return now.since(w.since(id, seen))
}

// since is when a node was heard last, or from when on it could have been.
func (w *watch) since(id spec.NodeID, seen map[spec.NodeID]moment) moment {
	since := w.began
	if at, ok := w.ready[id]; ok {
		since = max(since, at)
	}
	if at, ok := seen[id]; ok {
		since = max(since, at)
	}
	return since
}

// decide says which nodes have died or have come back.
func (w *watch) decide(nodes []*spec.Node, seen map[spec.NodeID]moment, now moment, down time.Duration) []store.SetNodeState {
	var changes []store.SetNodeState
	for _, n := range nodes {
		at, heard := seen[n.ID]
		state := n.State
		switch {
		case n.ID == w.self:
			state = spec.NodeReady
		case n.State == spec.NodeReady && w.silence(n.ID, seen, now) >= down:
			state = spec.NodeDown
		case n.State != spec.NodeReady && heard && now.since(at) < down:
			state = spec.NodeReady
		}
		if state != n.State {
			changes = append(changes, store.SetNodeState{ID: n.ID, State: state})
		}
	}
	return changes
}

// pings says whom to ask for a sign of life now, and takes it for done.
func (w *watch) pings(nodes []*spec.Node, seen map[spec.NodeID]moment, now moment) []spec.NodeID {
	var ids []spec.NodeID
	for _, n := range nodes {
		if n.ID == w.self {
			continue
		}
		every := time.Duration(0)
		switch age := w.silence(n.ID, seen, now); {
		case n.State != spec.NodeReady:
			every = downPing
		case age >= silentAge:
			every = silentPing
		case age >= quietAge:
			every = quietPing
		}
		if last, ok := w.pinged[n.ID]; every == 0 || ok && now.since(last) < every-lifeTick/2 {
			continue
		}
		w.pinged[n.ID] = now
		ids = append(ids, n.ID)
	}
	return ids
}

// tick says after how much time to look again.
func (w *watch) tick(nodes []*spec.Node, seen map[spec.NodeID]moment, now moment) time.Duration {
	for _, n := range nodes {
		// A node that is well is pinged at the first look after quietAge, and has
		// answered by the next.
		if n.ID != w.self && (n.State != spec.NodeReady || w.silence(n.ID, seen, now) >= quietAge+restTick) {
			return lifeTick
		}
	}
	return restTick
}

// silent says since when each node but this one has been silent.
func (w *watch) silent(nodes []*spec.Node, seen map[spec.NodeID]moment) map[spec.NodeID]moment {
	since := make(map[spec.NodeID]moment, len(nodes))
	for _, n := range nodes {
		if n.ID != w.self {
			since[n.ID] = w.since(n.ID, seen)
		}
	}
	return since
}

// leading is what lead needs of the rest.
type leading struct {
	// Self is this node, which is alive.
	Self spec.NodeID
	// Nodes returns the table of nodes.
	Nodes func() []*spec.Node
	// Ping waits for a sign of life, for less than a second.
	Ping func(context.Context, spec.NodeID) bool
	// Propose changes the table.
	Propose func(context.Context, store.SetNodeState) error
}

// lead keeps the states of the nodes as their lives are, until ctx ends. It is
// for the leader alone, and runs once at a time.
func (l *liveness) lead(ctx context.Context, c leading) {
	var all sync.WaitGroup
	defer all.Wait()
	l.mu.Lock()
	l.looked = -1
	w := newWatch(c.Self, l.lookLocked())
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.looked, l.silent = -1, nil
	}()
	var mu sync.Mutex
	busy := map[spec.NodeID]bool{} // a change of its state is on its way
	for {
		nodes := c.Nodes()
		now, seen := l.look(nodes)
		w.notice(nodes, now)
		l.mu.Lock()
		l.silent = w.silent(nodes, seen)
		l.mu.Unlock()
		for _, change := range w.decide(nodes, seen, now, l.down) {
			mu.Lock()
			if busy[change.ID] {
				mu.Unlock()
				continue
			}
			busy[change.ID] = true
			mu.Unlock()
			l.log.Info("node changes", "node", change.ID, "state", change.State, "silent", w.silence(change.ID, seen, now).Round(time.Millisecond))
			all.Go(func() {
				if err := c.Propose(ctx, change); err != nil && wait(ctx, stateRetry) {
					l.log.Warn("cannot change a node's state, will try again", "node", change.ID, "state", change.State, "err", err)
				}
				mu.Lock()
				defer mu.Unlock()
				delete(busy, change.ID)
			})
		}
		for _, id := range w.pings(nodes, seen, now) {
			all.Go(func() {
				if c.Ping(ctx, id) {
					l.seen(id)
				}
			})
		}
		if !wait(ctx, w.tick(nodes, seen, now)) {
			return
		}
	}
}

// look returns the present moment and when each node was seen last; nodes that
// are not in the table any more are forgotten.
func (l *liveness) look(nodes []*spec.Node) (moment, map[spec.NodeID]moment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.lookLocked()
	seen := make(map[spec.NodeID]moment, len(nodes))
	for _, n := range nodes {
		if life := l.nodes[n.ID]; life != nil {
			seen[n.ID] = life.seen
		}
	}
	for id, life := range l.nodes {
		if _, ok := seen[id]; !ok && now.since(life.seen) > tellAge {
			delete(l.nodes, id)
		}
	}
	return now, seen
}
