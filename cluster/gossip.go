package cluster

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"wherry.dev/spec"
)

const (
	// seekAlone is how often a node that gossips with nobody tries all that it
	// has heard of; seekLost is how often one that has company tries one that
	// is missing, which brings two halves together again after a long cut.
	seekAlone = 2 * time.Second
	seekLost  = 10 * time.Second
	// pingWait is how long an answer to a ping is waited for.
	pingWait = 500 * time.Millisecond
)

// gossipConfig says how to gossip.
type gossipConfig struct {
	// Node is this node's ID, Key the cluster's gossip key.
	Node spec.NodeID
	Key  []byte
	// Port carries it, Directory gets what it says.
	Port      *port
	Directory *directory
	// Removed says that a node was removed from the cluster; it is false while
	// that is not known. nil is never. It must neither block nor gossip.
	Removed func(spec.NodeID) bool
	Logger  *slog.Logger
}

// gossip tells the nodes each other's addresses, and carries the pings by
// which a leader asks for a sign of life. Nothing else rests on it: what it
// believes of a node's life or death has no effect.
//
// The library insists that a living member's address never changes, so it gets
// one that is made from the node's ID and cannot be dialled. The real address
// is the member's metadata, and packets go by the directory.
type gossip struct {
	c    gossipConfig
	log  *slog.Logger
	addr atomic.Pointer[string]
	// list is set while run runs.
	list atomic.Pointer[memberlist.Memberlist]
	// moved has an element while a new address is to be told to the others.
	moved chan struct{}
}

// newGossip prepares to gossip that this node is at addr.
func newGossip(c gossipConfig, addr string) *gossip {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Removed == nil {
		c.Removed = func(spec.NodeID) bool { return false }
	}
	g := &gossip{c: c, log: c.Logger.With("component", "gossip"), moved: make(chan struct{}, 1)}
	g.addr.Store(&addr)
	return g
}

// announce tells the others that this node is at addr from now on.
func (g *gossip) announce(addr string) {
	if old := g.addr.Swap(&addr); *old == addr {
		return
	}
	select {
	case g.moved <- struct{}{}:
	default:
	}
}

// run gossips until ctx ends.
func (g *gossip) run(ctx context.Context) error {
	transport := &gossipTransport{port: g.c.Port, node: g.c.Node}
	list, err := memberlist.Create(g.settings(transport))
	if err != nil {
		return fmt.Errorf("start gossip: %w", err)
	}
	g.list.Store(list)
	defer func() {
		g.list.Store(nil)
		list.Shutdown()
	}()
	seek := time.NewTimer(0)
	defer seek.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-g.moved:
			// It would wait until the last of many has been told, and goes on
			// by itself when it is not let to.
			_ = list.UpdateNode(time.Millisecond)
		case <-seek.C:
			seek.Reset(g.seek(list))
		}
	}
}

// seek looks for nodes that do not gossip with this one, and returns when to
// look again.
func (g *gossip) seek(list *memberlist.Memberlist) time.Duration {
	here := map[string]bool{string(g.c.Node): true}
	for _, n := range list.Members() {
		here[n.Name] = true
	}
	var lost []string
	for _, id := range g.c.Directory.ids() {
		if !here[string(id)] && !g.c.Removed(id) {
			lost = append(lost, string(id)+"/"+nodeAt(id).String())
		}
	}
	alone := len(here) == 1
	if alone {
		// A seed says who it is when it answers.
		for _, s := range g.c.Directory.strangers() {
			lost = append(lost, resolve(s)...)
		}
	}
	rand.Shuffle(len(lost), func(i, j int) { lost[i], lost[j] = lost[j], lost[i] })
	for _, l := range lost {
		_, err := list.Join([]string{l})
		if err == nil || !alone {
			break
		}
	}
	if alone && list.NumMembers() == 1 {
		return seekAlone
	}
	return seekLost
}

// resolve returns the "IP:PORT"s of a "host:port".
func resolve(addr string) []string {
	if _, err := netip.ParseAddrPort(addr); err == nil {
		return []string{addr}
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), seekAlone)
	defer cancel()
	ips, _ := net.DefaultResolver.LookupHost(ctx, host) // what cannot be resolved now may be later
	for i := range ips {
		ips[i] = net.JoinHostPort(ips[i], port)
	}
	return ips
}

// ping asks a node for a sign of life and waits for it, half a second at most.
// It reports whether there was one; no answer says nothing, since packets may
// get lost and nobody gossips before run runs. When ctx ends it returns at
// once, and leaves a goroutine for the rest of the half second.
func (g *gossip) ping(ctx context.Context, id spec.NodeID) bool {
	list := g.list.Load()
	if list == nil || ctx.Err() != nil {
		return false
	}
	answer := make(chan error, 1)
	go func() {
		_, err := list.Ping(string(id), nodeAt(id))
		answer <- err
	}()
	select {
	case <-ctx.Done():
		return false
	case err := <-answer:
		return err == nil
	}
}

// settings are those of a LAN, with little to do while nothing happens.
func (g *gossip) settings(t memberlist.NodeAwareTransport) *memberlist.Config {
	c := memberlist.DefaultLANConfig()
	c.Name = string(g.c.Node)
	c.Transport = t
	c.BindPort = 0 // what the library puts in place of the 0 of nodeAt
	c.SecretKey = g.c.Key
	c.TCPTimeout = 3 * time.Second
	c.ProbeInterval = 2 * time.Second
	c.ProbeTimeout = pingWait
	c.GossipInterval = 250 * time.Millisecond
	c.PushPullInterval = 30 * time.Second
	// Packets are small, and compressing costs more than all else together.
	c.EnableCompression = false
	c.Delegate = gossipMeta{g}
	c.Events = gossipEvents{g}
	c.Alive = gossipAlive{g}
	c.Logger = log.New(gossipLog{g.log}, "", 0)
	return c
}

// gossipMeta is what this node says of itself: its address.
type gossipMeta struct{ g *gossip }

func (m gossipMeta) NodeMeta(limit int) []byte {
	addr := *m.g.addr.Load()
	return []byte(addr[:min(len(addr), limit)])
}
func (gossipMeta) NotifyMsg([]byte)                {}
func (gossipMeta) GetBroadcasts(int, int) [][]byte { return nil }
func (gossipMeta) LocalState(bool) []byte          { return nil }
func (gossipMeta) MergeRemoteState([]byte, bool)   {}

// gossipAlive refuses to hear of removed nodes.
type gossipAlive struct{ g *gossip }

func (a gossipAlive) NotifyAlive(n *memberlist.Node) error {
	if a.g.c.Removed(spec.NodeID(n.Name)) {
		return errors.New("it was removed from the cluster")
	}
	return nil
}

// gossipEvents hears what nodes say of themselves. It is called with a lock of
// the library held.
type gossipEvents struct{ g *gossip }

func (e gossipEvents) NotifyJoin(n *memberlist.Node)   { e.NotifyUpdate(n) }
func (e gossipEvents) NotifyLeave(n *memberlist.Node)  {}
func (e gossipEvents) NotifyUpdate(n *memberlist.Node) { e.g.heard(n) }

func (g *gossip) heard(n *memberlist.Node) {
	id := spec.NodeID(n.Name)
	if id == g.c.Node || g.c.Removed(id) {
		return
	}
	g.c.Directory.tell(id, string(n.Meta), fromGossip)
}

// gossipLog writes what the library says into slog.
type gossipLog struct{ l *slog.Logger }

func (w gossipLog) Write(b []byte) (int, error) {
	if w.l.Enabled(context.Background(), slog.LevelDebug) {
		w.l.Debug(strings.TrimSpace(string(b)))
	}
	return len(b), nil
}

// nodeNet begins the addresses by which the library knows nodes: a private
// network that no host is in.
var nodeNet = netip.MustParsePrefix("fd57:6865:7272:7900::/64")

// nodeAt returns the address by which the library knows a node. Its port is 0,
// so that a ping is answered to where it came from.
func nodeAt(id spec.NodeID) *net.UDPAddr {
	ip := nodeNet.Addr().As16()
	sum := sha256.Sum256([]byte(id))
	copy(ip[8:], sum[:8])
	return &net.UDPAddr{IP: ip[:]}
}

// gossipTransport carries gossip to nodes by their name, which is their ID.
type gossipTransport struct {
	port *port
	node spec.NodeID
}

func (t *gossipTransport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return nodeAt(t.node).IP, 0, nil
}

func (t *gossipTransport) PacketCh() <-chan *memberlist.Packet { return t.port.packets }

func (t *gossipTransport) StreamCh() <-chan net.Conn { return t.port.gossipDoor.conns }

// Shutdown leaves the port as it is.
func (t *gossipTransport) Shutdown() error { return nil }

func (t *gossipTransport) WriteTo(b []byte, addr string) (time.Time, error) {
	return t.WriteToAddress(b, memberlist.Address{Addr: addr})
}

// WriteToAddress sends a packet to a real address as it is, and else to the
// two best addresses of the node: while it moves, one of them is right.
func (t *gossipTransport) WriteToAddress(b []byte, a memberlist.Address) (time.Time, error) {
	to, err := netip.ParseAddrPort(a.Addr)
	if err != nil {
		return time.Time{}, err
	}
	if !nodeNet.Contains(to.Addr()) {
		_, err := t.port.udp.WriteToUDPAddrPort(b, to)
		return time.Now(), err
	}
	addrs := t.port.c.Find(spec.NodeID(a.Name))
	sent := 0
	var failed error
	for _, addr := range addrs[:min(2, len(addrs))] {
		to, err := netip.ParseAddrPort(addr)
		if err != nil { // a name: streams will find out more
			continue
		}
		if _, err := t.port.udp.WriteToUDPAddrPort(b, to); err != nil {
			failed = err
			continue
		}
		sent++
	}
	if sent == 0 {
		return time.Time{}, fmt.Errorf("send to node %s: no way to it: %w", a.Name, errors.Join(failed))
	}
	return time.Now(), nil
}

func (t *gossipTransport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.DialAddressTimeout(memberlist.Address{Addr: addr}, timeout)
}

// DialAddressTimeout opens a stream to the named node or, without a name, to
// whatever node is at the address.
func (t *gossipTransport) DialAddressTimeout(a memberlist.Address, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	if a.Name != "" {
		return t.port.dial(ctx, spec.NodeID(a.Name), protoGossip)
	}
	return t.port.dialAt(ctx, a.Addr, "", protoGossip)
}

var _ memberlist.NodeAwareTransport = (*gossipTransport)(nil)

// members returns the nodes that gossip with this one, itself included.
func (g *gossip) members() []spec.NodeID {
	list := g.list.Load()
	if list == nil {
		return nil
	}
	var ids []spec.NodeID
	for _, n := range list.Members() {
		ids = append(ids, spec.NodeID(n.Name))
	}
	slices.Sort(ids)
	return ids
}
