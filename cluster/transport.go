package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"wherry.dev/spec"
)

// Streams is how Raft reaches other members: authenticated, encrypted byte
// streams. It is called from several goroutines at once.
type Streams interface {
	// Accept waits for a stream from another member of the cluster, as
	// net.Listener does; it returns an error after Close.
	Accept() (net.Conn, error)
	// Dial opens a stream to the member with this ID, whose address
	// the implementation knows: Raft's own configuration holds IDs only, so
	// that a member's address may change without a change of configuration.
	Dial(ctx context.Context, id spec.NodeID) (net.Conn, error)
	// Close ends Accept. Streams that are open stay so.
	Close() error
}

// alone is the Streams of a cluster of one.
type alone struct {
	once   sync.Once
	closed chan struct{}
}

func newAlone() *alone { return &alone{closed: make(chan struct{})} }

func (a *alone) Accept() (net.Conn, error) {
	<-a.closed
	return nil, net.ErrClosed
}

func (a *alone) Dial(_ context.Context, id spec.NodeID) (net.Conn, error) {
	return nil, fmt.Errorf("dial node %s: this member has no way to others", id)
}

func (a *alone) Close() error {
	a.once.Do(func() { close(a.closed) })
	return nil
}

// nodeAddr is a member's address in Raft: its ID.
type nodeAddr spec.NodeID

func (nodeAddr) Network() string  { return "node" }
func (a nodeAddr) String() string { return string(a) }

// streamLayer makes Streams what raft.NetworkTransport wants.
type streamLayer struct {
	Streams
	id   spec.NodeID
	open *openStreams
}

func (s streamLayer) Addr() net.Addr { return nodeAddr(s.id) }

func (s streamLayer) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), timeout, errors.New("the member does not answer"))
	defer cancel()
	conn, err := s.Streams.Dial(ctx, spec.NodeID(to))
	if err != nil {
		return nil, err
	}
	return s.open.add(conn)
}

// openStreams are the streams to other members. They are cut when a member
// ends: Raft waits for the requests that are under way, also for those to a
// member that does not answer; and while its disk hangs, its heartbeats would
// keep the others from an election.
type openStreams struct {
	mu    sync.Mutex
	conns map[*stream]struct{}
	cut   bool
}

type stream struct {
	net.Conn
	of *openStreams
}

func (o *openStreams) add(conn net.Conn) (net.Conn, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.cut {
		return nil, errors.Join(errEnded, conn.Close())
	}
	s := &stream{conn, o}
	if o.conns == nil {
		o.conns = map[*stream]struct{}{}
	}
	o.conns[s] = struct{}{}
	return s, nil
}

func (s *stream) Close() error {
	s.of.mu.Lock()
	delete(s.of.conns, s)
	s.of.mu.Unlock()
	return s.Conn.Close()
}

// end closes all streams, for good.
func (o *openStreams) end() {
	o.mu.Lock()
	conns := o.conns
	o.conns, o.cut = nil, true
	o.mu.Unlock()
	for s := range conns {
		_ = s.Conn.Close()
	}
}

const (
	rpcTimeout = 10 * time.Second
	maxPool    = 3
	// maxInFlight of one turns off the library's pipelines. A pipeline whose
	// follower refuses an entry, as at each change of leadership, may wait for
	// itself for ever: then Raft never ends, and a follower hears heartbeats but
	// gets no entry any more (seen, and grafana/pyroscope#5518 explains it). One
	// request at a time carries up to 64 entries; that is enough.
	maxInFlight = 1
)

// idleRest is by how much a leader delays a message that says nothing new to a
// follower. Raft sends one 50 to 100 ms after the last, besides the heartbeats,
// so that followers learn soon what is committed; on an idle leader these cost
// more than the heartbeats. Together it stays below a heartbeat's time: where heartbeats get
// lost or late, these are what keeps a follower from an election.
const idleRest = 125 * time.Millisecond

// transport is Raft's way to other members.
type transport struct {
	*raft.NetworkTransport
	logs *logStore
	mu   sync.Mutex
	// told is what each follower has confirmed to know as committed.
	told map[raft.ServerID]commit
}

// commit is a leader's word that all up to index is committed.
type commit struct{ term, index uint64 }

func (m *Member) newTransport() *transport {
	return &transport{logs: m.logs, told: map[raft.ServerID]commit{}, NetworkTransport: raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: streamLayer{m.streams, m.id, &m.dialled}, MaxPool: maxPool, Timeout: rpcTimeout, MaxRPCsInFlight: maxInFlight,
		Logger: hclogTo(m.log), MsgpackUseNewTimeFormat: true,
	})}
}

// AppendEntries sends a message of the leader and waits for the answer. Raft
// sends no other to this follower meanwhile, except for heartbeats. One that
// says nothing new waits for idleRest first, or until there is a new entry.
func (t *transport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	// The follower has all entries, and all are committed: a heartbeat names none.
	if len(args.Entries) > 0 || args.PrevLogEntry == 0 || args.LeaderCommitIndex != args.PrevLogEntry {
		return t.NetworkTransport.AppendEntries(id, target, args, resp)
	}
	word := commit{args.Term, args.LeaderCommitIndex}
	t.mu.Lock()
	known := t.told[id] == word
	t.mu.Unlock()
	if known {
		t.rest(args.PrevLogEntry)
	}
	err := t.NetworkTransport.AppendEntries(id, target, args, resp)
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil && resp.Success {
		t.told[id] = word
	} else {
		delete(t.told, id)
	}
	return err
}

// rest returns after idleRest, or as soon as an entry behind index is being
// appended. It overlaps with that: Raft sends the entry when it is durable here.
func (t *transport) rest(index uint64) {
	appends := t.logs.after(index)
	if appends == nil {
		return
	}
	timer := time.NewTimer(idleRest)
	defer timer.Stop()
	select {
	case <-appends:
	case <-timer.C:
	}
}
