package cluster

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"wherry.dev/spec"
)

// gossiper is a node that gossips.
type gossiper struct {
	*gossip
	id      spec.NodeID
	p       *port
	dir     *directory
	removed atomic.Pointer[spec.NodeID]
	stop    func()
}

var gossipKey = []byte("0123456789abcdef0123456789abcdef")

func (a authority) gossiper(id spec.NodeID, key []byte, seeds ...string) *gossiper {
	a.t.Helper()
	n := &gossiper{id: id, dir: newDirectory(a.t, seeds...)}
	p, err := openPort(portConfig{Listen: "127.0.0.1:0", Identity: a.node(id), Find: n.dir.find, Learn: n.dir.learn})
	if err != nil {
		a.t.Fatal(err)
	}
	n.p = p
	n.gossip = newGossip(gossipConfig{
		Node: id, Key: key, Port: p, Directory: n.dir,
		Removed: func(id spec.NodeID) bool {
			r := n.removed.Load()
			return r != nil && *r == id
		},
	}, p.addr())
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	all.Go(func() {
		if err := n.run(ctx); err != nil {
			a.t.Error(err)
		}
	})
	var once sync.Once
	n.stop = func() {
		once.Do(func() {
			cancel()
			all.Wait()
			if err := p.close(); err != nil {
				a.t.Error(err)
			}
		})
	}
	a.t.Cleanup(n.stop)
	return n
}

func nodeID(i int) spec.NodeID { return spec.NodeID(fmt.Sprintf("%016x", i)) }

func TestGossipConverges(t *testing.T) {
	noLeak(t)
	a := newAuthority(t, "one")
	var nodes []*gossiper
	for i := range 5 {
		var seeds []string
		if i > 0 {
			seeds = []string{nodes[i-1].p.addr()}
		}
		nodes = append(nodes, a.gossiper(nodeID(i), gossipKey, seeds...))
	}
	know := func() bool {
		for _, n := range nodes {
			for _, m := range nodes {
				if n != m && !slices.Contains(n.dir.known(m.id), m.p.addr()) {
					return false
				}
			}
			if len(n.members()) != len(nodes) {
				return false
			}
		}
		return true
	}
	soon(t, "all know all", know)
	for _, n := range nodes[1:] {
		if !nodes[0].ping(t.Context(), n.id) {
			t.Errorf("no answer of %s to a ping", n.id)
		}
	}

	// One moves: a new port with a new address, and the same name.
	nodes[4].stop()
	if nodes[0].ping(t.Context(), nodes[4].id) {
		t.Error("an answer of a node that is gone")
	}
	nodes[4] = a.gossiper(nodes[4].id, gossipKey, nodes[0].p.addr())
	soon(t, "all know where it has gone", func() bool {
		for _, n := range nodes[:4] {
			if k := n.dir.known(nodes[4].id); len(k) == 0 || k[0] != nodes[4].p.addr() {
				return false
			}
		}
		return true
	})
	soon(t, "a ping finds it", func() bool { return nodes[0].ping(t.Context(), nodes[4].id) })
}

// A node that lives on and finds that its address has changed tells the others.
func TestGossipOfANewAddress(t *testing.T) {
	noLeak(t)
	a := newAuthority(t, "one")
	na := a.gossiper(nodeA, gossipKey)
	nb := a.gossiper(nodeB, gossipKey, na.p.addr())
	soon(t, "they know each other", func() bool { return len(na.dir.known(nodeB)) > 0 && len(nb.dir.known(nodeA)) > 0 })
	for _, addr := range []string{"127.0.0.2:4477", "127.0.0.3:4477", "127.0.0.2:4477"} {
		nb.announce(addr)
		soon(t, "the new address is known", func() bool { return na.dir.known(nodeB)[0] == addr })
	}
	// The old one is kept, so it is still found there.
	if !slices.Contains(na.dir.known(nodeB), nb.p.addr()) {
		t.Errorf("%q", na.dir.known(nodeB))
	}
}

func TestGossipKeepsStrangersOut(t *testing.T) {
	noLeak(t)
	a, foreign := newAuthority(t, "one"), newAuthority(t, "two")
	na := a.gossiper(nodeA, gossipKey)
	nb := a.gossiper(nodeB, gossipKey, na.p.addr())
	soon(t, "they know each other", func() bool { return len(na.members()) == 2 })

	otherKey := slices.Clone(gossipKey)
	otherKey[0]++
	wrongKey := a.gossiper(nodeC, otherKey, na.p.addr())
	wrongCA := foreign.gossiper("dddddddddddddddd", gossipKey, na.p.addr())
	gone := spec.NodeID("eeeeeeeeeeeeeeee")
	na.removed.Store(&gone)
	nb.removed.Store(&gone)
	removed := a.gossiper(gone, gossipKey, na.p.addr())
	// It gets as far as asking: that is the moment to look at what came of it.
	soon(t, "the removed node has asked", func() bool { return len(removed.members()) > 1 })
	soon(t, "the one with the wrong key has asked", func() bool { return len(wrongKey.dir.known(nodeA)) > 0 })
	for _, n := range []*gossiper{na, nb} {
		if got := n.members(); !slices.Equal(got, []spec.NodeID{nodeA, nodeB}) {
			t.Errorf("%s gossips with %q", n.id, got)
		}
		if got := n.dir.known(gone); got != nil {
			t.Errorf("%s knows where the removed node is: %q", n.id, got)
		}
	}
	for _, n := range []*gossiper{wrongKey, wrongCA} {
		if len(n.members()) != 1 || na.ping(t.Context(), n.id) {
			t.Errorf("%s is let in", n.id)
		}
	}
}

// A node whose seeds are away at first finds them when they come.
func TestGossipTriesAgain(t *testing.T) {
	t.Parallel()
	a := newAuthority(t, "one")
	na := a.gossiper(nodeA, gossipKey)
	addr := na.p.addr()
	na.stop()
	nb := a.gossiper(nodeB, gossipKey, addr)
	soon(t, "it gossips with itself", func() bool { return len(nb.members()) == 1 })
	dir := newDirectory(t)
	p, err := openPort(portConfig{Listen: addr, Identity: a.node(nodeA), Find: dir.find, Learn: dir.learn})
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	again := newGossip(gossipConfig{Node: nodeA, Key: gossipKey, Port: p, Directory: dir}, addr)
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	all.Go(func() { again.run(ctx) })
	defer func() { stop(); all.Wait() }()
	soon(t, "they meet", func() bool { return len(nb.members()) == 2 && len(again.members()) == 2 })
}

func TestPingBeforeRun(t *testing.T) {
	g := newGossip(gossipConfig{Node: nodeA}, "127.0.0.1:1")
	if g.ping(t.Context(), nodeB) || g.members() != nil {
		t.Error("it gossips before it runs")
	}
}
