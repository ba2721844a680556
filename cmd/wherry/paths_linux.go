package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"wherry.dev/api"
	"wherry.dev/cluster"
	"wherry.dev/overlay"
	"wherry.dev/spec"
)

const (
	// pathEvery is how often each way to another host is tried, pathLook how
	// often it is seen whether there are others or they need more.
	pathEvery = time.Minute
	pathLook  = time.Second
	// pathsAtOnce bounds the tries under way: those of hosts that do not answer
	// take seconds.
	pathsAtOnce = 8
)

// paths finds out whether the packets of networks arrive at the other hosts
// whole. Where they do not, small ones pass and full ones vanish, which nothing
// else tells.
type paths struct {
	// ways are those that the networks need now, by node.
	ways func() []overlay.Path
	try  func(ctx context.Context, id spec.NodeID, at netip.Addr, size int) (cluster.Path, error)
	// name is what people call a node.
	name func(spec.NodeID) string
	log  *slog.Logger

	mu    sync.Mutex
	tried map[spec.NodeID]triedPath
}

// triedPath is how a way was when it was last tried.
type triedPath struct {
	overlay.Path
	found cluster.Path
	err   error
	due   time.Time // for the next try
}

// Run tries every way once a minute, and at once when it is new or needs more,
// until ctx ends.
func (p *paths) Run(ctx context.Context) error {
	tick := time.NewTicker(pathLook)
	defer tick.Stop()
	for {
		p.tryAll(ctx, time.Now())
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// tryAll tries the ways that are due.
func (p *paths) tryAll(ctx context.Context, now time.Time) {
	ways := p.ways()
	p.mu.Lock()
	due := duePaths(ways, p.tried, now)
	next := map[spec.NodeID]triedPath{}
	for _, w := range ways {
		if t, ok := p.tried[w.Node]; ok {
			next[w.Node] = t
		}
	}
	p.tried = next
	p.mu.Unlock()
	slots := make(chan struct{}, pathsAtOnce)
	var all sync.WaitGroup
	for _, w := range due {
		all.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			found, err := p.try(ctx, w.Node, w.Address, w.Size)
			if ctx.Err() == nil {
				p.note(triedPath{w, found, err, time.Now().Add(pathEvery)})
			}
		})
	}
	all.Wait()
}

// duePaths are the ways that are new, or need something else than when they
// were tried, or were tried long ago.
func duePaths(ways []overlay.Path, tried map[spec.NodeID]triedPath, now time.Time) []overlay.Path {
	return slices.DeleteFunc(slices.Clone(ways), func(w overlay.Path) bool {
		t, ok := tried[w.Node]
		return ok && t.Path == w && now.Before(t.due)
	})
}

// note keeps what was found, and logs it when it is news.
func (p *paths) note(t triedPath) {
	name := p.name(t.Node)
	p.mu.Lock()
	was, known := p.tried[t.Node]
	p.tried[t.Node] = t
	p.mu.Unlock()
	now := judgePath(name, t)
	before := judgePath(name, was)
	switch {
	case now.Status == api.CheckFail && (!known || now.What != before.What):
		p.log.Warn("full packets do not arrive at another host", "err", now.What+"; "+now.Why+": "+strings.Join(now.Do, "; "))
	case known && before.Status == api.CheckFail && now.Status != api.CheckFail:
		p.log.Info("full packets arrive at another host again", "node", t.Node, "bytes", t.found.Fits)
	case t.err != nil:
		p.log.Debug("cannot try the way to another host", "err", t.err)
	}
}

// checks tries all ways now and says how they are.
func (p *paths) checks(ctx context.Context) []api.Check {
	p.tryAll(ctx, time.Now().Add(2*pathEvery))
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []api.Check
	for id, t := range p.tried {
		out = append(out, judgePath(p.name(id), t))
	}
	slices.SortFunc(out, func(a, b api.Check) int { return cmp.Compare(a.Where, b.Where) })
	return out
}

// judgePath judges the way to another host. That nothing at all was answered is
// no matter of size: others find out whether the host lives.
func judgePath(name string, t triedPath) api.Check {
	c := well("path", fmt.Sprintf("%s (%s)", name, t.Address), "carries the %d bytes that networks need", t.Size)
	switch {
	case t.err != nil:
		c.What = fmt.Sprintf("not known: %v", t.err)
	case !t.found.Answers:
		c.What = "not known: the node does not answer, or is of a version that cannot"
	case t.found.Fits < overlay.LeastMTU:
		c.What = fmt.Sprintf("carries packets of %d bytes, and networks need %d at least", t.found.Fits, overlay.LeastMTU)
		return failing(c, "full packets of tasks vanish on the way: connections stand and carry nothing", "Have what is between the hosts (tunnels, switches, virtual machines) carry larger packets.")
	case t.found.Fits < t.Size:
		c.What = fmt.Sprintf("carries packets of %d bytes, and networks send up to %d", t.found.Fits, t.Size)
		return failing(c, "full packets of tasks vanish on the way: connections stand and carry nothing",
			fmt.Sprintf("wherry daemon --mtu %d, on one of the two hosts, or on all that are behind the same way", t.found.Fits),
			"Or have what is between the hosts carry larger packets.")
	}
	return c
}
