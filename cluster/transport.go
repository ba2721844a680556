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
	id spec.NodeID
}

func (s streamLayer) Addr() net.Addr { return nodeAddr(s.id) }

func (s streamLayer) Dial(to raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), timeout, errors.New("the member does not answer"))
	defer cancel()
	return s.Streams.Dial(ctx, spec.NodeID(to))
}

const (
	rpcTimeout = 10 * time.Second
	maxPool    = 3
)

func (m *Member) newTransport() *raft.NetworkTransport {
	return raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: streamLayer{m.streams, m.id}, MaxPool: maxPool, Timeout: rpcTimeout,
		Logger: hclogTo(m.log), MsgpackUseNewTimeFormat: true,
	})
}
