package reconciler

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// Proposer brings commands into the log. It may be called concurrently.
type Proposer interface {
	// Propose returns what Apply returned once the command is committed, or an
	// error when it is not known to be.
	Propose(ctx context.Context, c store.Command) (store.Result, error)
}

// Config of a Loop.
type Config struct {
	Store    *store.Store
	Proposer Proposer
	// Now is the clock; nil is time.Now. It may be set at any time.
	Now func() time.Time
	// Elapsed is a clock that nobody sets; nil is the time since the loop was made.
	Elapsed func() time.Duration
	// Logger; nil discards.
	Logger *slog.Logger
}

const (
	// debounce lets changes that come together be seen together.
	debounce = 20 * time.Millisecond
	// resync is the longest time between two passes.
	resync = 30 * time.Second
	// maxEntry bounds the parts in one log entry, in bytes.
	maxEntry = 512 << 10
	// Waits after a plan that could not be proposed, or whose parts were
	// rejected again and again.
	firstRetry = 50 * time.Millisecond
	lastRetry  = 5 * time.Second
)

// Loop is the leader's loop: look, plan, propose, wait.
type Loop struct{ Config }

// NewLoop returns a loop that is not running yet.
func NewLoop(c Config) *Loop {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Elapsed == nil {
		start := time.Now()
		c.Elapsed = func() time.Duration { return time.Since(start) }
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return &Loop{c}
}

// Run plans until ctx ends, which is no error: then no proposal of it is under
// way any more. It must only run on the leader of the given term. Plans of an
// older one are rejected by the store, so that two leaders that overlap do no
// harm. No Loop may run twice at the same time.
func (l *Loop) Run(ctx context.Context, epoch uint64) error {
	var retry time.Duration
	seen := NewSightings(l.Elapsed())
	for ctx.Err() == nil {
		changed := l.Store.Watch() // before the snapshot: what comes after it wakes us
		snap := l.Store.Snapshot()
		now, elapsed := l.Now(), l.Elapsed()
		seen.Look(snap, elapsed)
		plan := PlanSeen(snap, now, seen.At(now, elapsed))
		ok := l.propose(ctx, epoch, now, &plan)
		if !ok {
			retry = min(max(2*retry, firstRetry), lastRetry)
			wait(ctx, retry, nil)
			continue
		}
		retry = 0
		pause := resync
		if !plan.Next.IsZero() {
			pause = min(pause, max(plan.Next.Sub(l.Now()), debounce))
		}
		// What comes after a quiet time is planned at once; a burst is gathered.
		if wait(ctx, pause, changed) {
			wait(ctx, debounce-l.Now().Sub(now), nil)
		}
	}
	return nil
}

// Sightings are since when one leader has seen what the state says, by a clock
// of its own that nobody sets. For one goroutine.
type Sightings struct {
	since time.Duration
	down  map[downNode]time.Duration
	lost  map[spec.TaskID]time.Duration
	// stamps of updates that are under way.
	stamps map[Stamp]time.Duration
}

// downNode is one time that a node is down. A node that was ready meanwhile may
// have got a lease then, so that time counts anew, even if nobody looked at the
// state in between: the node's version has moved.
type downNode struct {
	id      spec.NodeID
	version uint64
}

// NewSightings returns those of a leader that begins to lead.
func NewSightings(elapsed time.Duration) *Sightings { return &Sightings{since: elapsed} }

// Look takes note of what is new in a state, and forgets what is over.
func (o *Sightings) Look(s *store.Snapshot, elapsed time.Duration) {
	down, lost := map[downNode]time.Duration{}, map[spec.TaskID]time.Duration{}
	for _, n := range s.Nodes() {
		if n.State == spec.NodeDown {
			see(down, o.down, downNode{n.ID, n.Version}, elapsed)
		}
	}
	for _, t := range s.Tasks() {
		if t.Status.State == spec.TaskLost {
			see(lost, o.lost, t.ID, elapsed)
		}
	}
	stamps := map[Stamp]time.Duration{}
	for _, svc := range s.Services() {
		if svc.Update.State != spec.UpdateUpdating {
			continue
		}
		for _, at := range []time.Time{svc.Update.Progress, svc.Update.Rests} {
			if !at.IsZero() {
				see(stamps, o.stamps, Stamp{svc.Key(), at.UnixNano()}, elapsed)
			}
		}
	}
	o.down, o.lost, o.stamps = down, lost, stamps
}

// see enters key with the time at which it was seen first.
func see[K comparable](into, old map[K]time.Duration, key K, elapsed time.Duration) {
	at, ok := old[key]
	if !ok {
		at = elapsed
	}
	into[key] = at
}

// At tells the sightings by the clock of now, whatever it has been set to.
func (o *Sightings) At(now time.Time, elapsed time.Duration) Seen {
	moment := func(d time.Duration) time.Time { return now.Round(0).Add(d - elapsed) }
	seen := Seen{Since: moment(o.since), Down: map[spec.NodeID]time.Time{}, Lost: map[spec.TaskID]time.Time{}, Stamps: map[Stamp]time.Time{}}
	for n, d := range o.down {
		seen.Down[n.id] = moment(d)
	}
	for t, d := range o.lost {
		seen.Lost[t] = moment(d)
	}
	for s, d := range o.stamps {
		seen.Stamps[s] = moment(d)
	}
	return seen
}

// wait returns after d, when ctx ends, or when changed is closed, which it
// then reports.
func wait(ctx context.Context, d time.Duration, changed <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	case <-changed:
		return true
	}
	return false
}

// propose brings the parts into the log, in order. It reports false when the
// next pass must not follow at once: the log takes nothing, or takes it and
// the state rejects all of it.
func (l *Loop) propose(ctx context.Context, epoch uint64, now time.Time, plan *spec.Plan) bool {
	applied := 0
	for _, parts := range entries(plan.Parts) {
		res, err := l.Proposer.Propose(ctx, store.Command{Time: now, ApplyPlan: &store.ApplyPlan{Epoch: epoch, Parts: parts}})
		if err = cmp.Or(err, res.Err); err != nil {
			if ctx.Err() == nil {
				l.Logger.Warn("plan not applied, will retry", "index", plan.Index, "err", fmt.Errorf("propose plan: %w", err))
			}
			return false
		}
		for i := range parts {
			if i < len(res.Parts) && res.Parts[i] != nil {
				l.Logger.Debug("part of plan rejected", "index", plan.Index, "part", parts[i].Key, "err", res.Parts[i])
				continue
			}
			applied++
			l.Logger.Debug("part of plan applied", "index", plan.Index, "part", parts[i].Key,
				"create", len(parts[i].Create), "change", len(parts[i].Change), "remove", len(parts[i].Remove))
		}
	}
	return applied > 0 || len(plan.Parts) == 0
}

// entries divides parts into entries of at most maxEntry bytes. A part is
// never divided; one that is larger gets an entry of its own.
func entries(parts []spec.Part) [][]spec.Part {
	var out [][]spec.Part
	begin, size := 0, 0
	for i := range parts {
		b, err := json.Marshal(&parts[i])
		if err != nil {
			panic(fmt.Sprintf("reconciler: a part does not encode: %v", err)) // no field can fail
		}
		if i > begin && size+len(b) > maxEntry {
			out = append(out, parts[begin:i])
			begin, size = i, 0
		}
		size += len(b)
	}
	if begin < len(parts) {
		out = append(out, parts[begin:])
	}
	return out
}
