package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/memberlist"
	"golang.org/x/sys/unix"

	"wherry.dev/cluster/ca"
	"wherry.dev/spec"
)

// The protocols that share the port, as TLS tells them apart (ALPN). A client
// that names none speaks HTTP/1.1.
const (
	protoHTTP2  = "h2"
	protoHTTP1  = "http/1.1"
	protoRaft   = "wherry-raft"
	protoGossip = "wherry-gossip"
)

const (
	// greetTime is how long a connection may take to say who it is, and then
	// to be taken by the part that it is for.
	greetTime = 5 * time.Second
	// maxGreetings bounds the connections that have not said who they are. One
	// more closes the oldest: an honest one needs milliseconds, so the oldest
	// is the one that only holds a place.
	maxGreetings = 128
	// maxStrangers bounds the connections that have no certificate: hosts that
	// join. One more closes the oldest, for the same reason.
	maxStrangers = 256
	// deafTime is how long sent bytes may stay unacknowledged before a
	// connection between members is given up. Without it, TCP waits a quarter
	// of an hour, in ever longer steps.
	deafTime = 3 * time.Second
	// deafClientTime is the same for the API, whose clients may be far away.
	deafClientTime = 15 * time.Second
)

// keepAlive finds out that the other end of a silent connection has vanished.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: time.Second, Count: 3}

// portConfig says how to open a port.
type portConfig struct {
	// Listen is the "host:port" to listen on; an empty host is all addresses,
	// port 0 any free one.
	Listen string
	// Identity of this node, for both directions.
	Identity *ca.Identity
	// Find returns the addresses to try for a node, the best first.
	Find func(spec.NodeID) []string
	// Learn, unless nil, is told which node answers at an address.
	Learn func(spec.NodeID, string)
	// AdmitRaft and AdmitGossip refuse streams of a node by an error; nil
	// admits every node of the cluster. AdmitRaft is also asked about a node
	// whose certificate has expired (Caller.Expired), nothing else is.
	AdmitRaft   func(ca.Caller) error
	AdmitGossip func(ca.Caller) error
	// Rank says how much a node may, more is more: when it becomes less, what
	// the node has opened for the API is closed. nil is always the same.
	Rank func(spec.NodeID) int
	// Logger; nil discards.
	Logger *slog.Logger
}

// port is this node's one door: a TLS listener for the API, Raft and gossip
// streams, and gossip packets on the UDP port of the same number. It is also
// the way to the other nodes' ports. Nodes are known by the ID in their
// certificate, never by address.
//
// Safe for concurrent use. What is taken from it ends with close.
type port struct {
	c      portConfig
	log    *slog.Logger
	server *tls.Config
	tcp    net.Listener
	udp    *net.UDPConn

	apiDoor, raftDoor, gossipDoor *door
	// packets of gossip that have come in.
	packets chan *memberlist.Packet
	// echo answers path probes; nil until the key is known.
	echo atomic.Pointer[pathEcho]

	// http2 carries requests, upgrade those that become a plain stream. The
	// host of a URL is the node's ID. http2 is another one as soon as the node
	// has another certificate.
	http2   atomic.Pointer[http.Transport]
	upgrade *http.Transport

	closed chan struct{}
	wg     sync.WaitGroup

	mu sync.Mutex
	// conns are all open connections, in both directions.
	conns map[*portConn]struct{}
	// greetings are those that have not said who they are, strangers those that
	// had nothing to show; oldest first.
	greetings, strangers []*portConn
}

// openPort listens from its return on. Connections wait until the part they
// are for takes them.
func openPort(c portConfig) (*port, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	tcp, udp, err := listen(c.Listen)
	if err != nil {
		return nil, err
	}
	p := &port{
		c: c, log: c.Logger.With("component", "port"), tcp: tcp, udp: udp,
		server: c.Identity.Server(protoHTTP2, protoHTTP1, protoRaft, protoGossip),
		closed: make(chan struct{}), conns: map[*portConn]struct{}{},
	}
	p.apiDoor, p.raftDoor, p.gossipDoor = newDoor(tcp.Addr()), newDoor(tcp.Addr()), newDoor(tcp.Addr())
	p.packets = make(chan *memberlist.Packet, 256)
	p.http2.Store(p.newTransport(protoHTTP2))
	p.upgrade = p.newTransport(protoHTTP1)
	leaf := c.Identity.Leaf()
	p.wg.Go(func() { p.followCertificate(leaf) })
	p.wg.Go(p.accept)
	p.wg.Go(p.readPackets)
	return p, nil
}

// listen opens the TCP and the UDP port of one number.
func listen(addr string) (net.Listener, *net.UDPConn, error) {
	host, number, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, nil, spec.Invalidf("listen on %q: want HOST:PORT: %v", addr, err)
	}
	lc := net.ListenConfig{KeepAliveConfig: keepAlive}
	// A port that is free for TCP may be taken for UDP; that matters only when
	// any port will do.
	for try := 0; ; try++ {
		tcp, err := lc.Listen(context.Background(), "tcp", addr)
		if err != nil {
			return nil, nil, explainListen(err, "tcp", number)
		}
		at := tcp.Addr().(*net.TCPAddr)
		udp, err := net.ListenPacket("udp", net.JoinHostPort(host, fmt.Sprint(at.Port)))
		if err == nil {
			return tcp, udp.(*net.UDPConn), nil
		}
		tcp.Close()
		if number != "0" || try == 20 || !errors.Is(err, syscall.EADDRINUSE) {
			return nil, nil, explainListen(err, "udp", number)
		}
	}
}

func explainListen(err error, network, number string) error {
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return spec.Conflictf("port %s/%s is in use by another program on this host: stop that one, or take another port with --advertise IP:PORT", number, network)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return spec.Invalidf("listen on port %s/%s: %v: this host does not have that address", number, network, err)
	}
	return fmt.Errorf("listen on port %s/%s: %w", number, network, err)
}

// addr returns the address that the port listens on.
func (p *port) addr() string { return p.tcp.Addr().String() }

// number returns the port's number.
func (p *port) number() int { return p.tcp.Addr().(*net.TCPAddr).Port }

// api returns the connections for the API: each is a *tls.Conn whose handshake
// is done, so http.Server.Serve speaks HTTP/2 and HTTP/1.1 on them. A client
// without a certificate comes here, too.
func (p *port) api() net.Listener { return p.apiDoor }

// raft returns the streams for Raft.
func (p *port) raft() Streams { return raftStreams{p.raftDoor, p} }

type raftStreams struct {
	*door
	p *port
}

func (s raftStreams) Dial(ctx context.Context, id spec.NodeID) (net.Conn, error) {
	return s.p.dial(ctx, id, protoRaft)
}

// close ends everything that goes through the port and returns when none of
// its goroutines is left.
func (p *port) close() error {
	p.mu.Lock()
	select {
	case <-p.closed:
		p.mu.Unlock()
		return nil
	default:
	}
	close(p.closed)
	conns := p.conns
	p.conns = nil
	p.mu.Unlock()
	err := errors.Join(p.tcp.Close(), p.udp.Close())
	for _, d := range []*door{p.apiDoor, p.raftDoor, p.gossipDoor} {
		d.Close()
	}
	for c := range conns {
		c.Conn.Close()
	}
	p.wg.Wait()
	p.http2.Load().CloseIdleConnections()
	p.upgrade.CloseIdleConnections()
	if err != nil {
		return fmt.Errorf("close port: %w", err)
	}
	return nil
}

// review closes the streams of Raft and gossip that would not be admitted any
// more, and the connections for the API of nodes that may less than when they
// opened them: they must say again who they are, and are judged anew.
func (p *port) review() {
	p.mu.Lock()
	open := map[*portConn]func() error{}
	for c := range p.conns {
		if c.admit != nil {
			open[c] = c.admit
		}
	}
	p.mu.Unlock()
	for c, admit := range open {
		if err := admit(); err != nil {
			p.log.Info("stream cut", "from", c.RemoteAddr(), "err", err)
			c.Close()
		}
	}
}

// portConn is an open TCP connection that the port knows of.
type portConn struct {
	net.Conn
	p *port
	// admit says whether it may stay open; nil is always. Guarded by port.mu.
	admit func() error
	// pool is what keeps it open for further requests; nil for one that is not
	// of a pool. Guarded by port.mu.
	pool *http.Transport
}

// own makes the port close a connection when it is closed itself; nil when
// that has happened already.
func (p *port) own(c net.Conn) *portConn {
	pc := &portConn{Conn: c, p: p}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conns == nil {
		c.Close()
		return nil
	}
	p.conns[pc] = struct{}{}
	return pc
}

// Close closes the connection.
func (c *portConn) Close() error {
	c.p.mu.Lock()
	delete(c.p.conns, c)
	c.p.strangers = without(c.p.strangers, c)
	c.p.mu.Unlock()
	return c.Conn.Close()
}

// deaf sets how long sent bytes may stay unacknowledged.
func (c *portConn) deaf(d time.Duration) {
	tcp, ok := c.Conn.(*net.TCPConn)
	if !ok {
		return
	}
	raw, err := tcp.SyscallConn()
	if err != nil {
		return
	}
	// On a connection that is closed by now, nothing is lost.
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(d.Milliseconds()))
	})
}

// accept takes connections and leaves the rest to greet.
func (p *port) accept() {
	pause := time.Duration(0)
	for {
		raw, err := p.tcp.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// For lack of file descriptors, say: it may pass.
			pause = min(max(2*pause, 5*time.Millisecond), time.Second)
			p.log.Warn("cannot accept connections, will try again", "err", err, "after", pause)
			select {
			case <-p.closed:
				return
			case <-time.After(pause):
			}
			continue
		}
		pause = 0
		c := p.own(raw)
		if c == nil {
			return
		}
		p.beginGreeting(c)
		p.wg.Go(func() { p.greet(c) })
	}
}

func (p *port) beginGreeting(c *portConn) {
	p.mu.Lock()
	var oldest *portConn
	p.greetings, oldest = enqueue(p.greetings, c, maxGreetings)
	p.mu.Unlock()
	if oldest != nil {
		oldest.Close()
	}
}

// endGreeting notes who has connected: a stranger is somebody without a
// certificate.
func (p *port) endGreeting(c *portConn, stranger bool) {
	p.mu.Lock()
	var oldest *portConn
	p.greetings = without(p.greetings, c)
	if _, open := p.conns[c]; stranger && open {
		p.strangers, oldest = enqueue(p.strangers, c, maxStrangers)
	}
	p.mu.Unlock()
	if oldest != nil {
		oldest.Close()
	}
}

// enqueue appends a connection, and takes out the oldest when there are more
// than most.
func enqueue(list []*portConn, c *portConn, most int) (_ []*portConn, oldest *portConn) {
	if len(list) == most {
		oldest = list[0]
		list = slices.Delete(list, 0, 1)
	}
	return append(list, c), oldest
}

func without(list []*portConn, c *portConn) []*portConn {
	if i := slices.Index(list, c); i >= 0 {
		return slices.Delete(list, i, i+1)
	}
	return list
}

// greet finds out who has connected and for what.
func (p *port) greet(raw *portConn) {
	raw.deaf(deafClientTime)
	conn := tls.Server(raw, p.server)
	ctx, cancel := context.WithTimeout(context.Background(), greetTime)
	err := conn.HandshakeContext(ctx)
	cancel()
	caller, known := ca.PeerOf(conn.ConnectionState())
	var from spec.NodeID
	if err == nil && known && caller.Kind == ca.KindNode {
		from = spec.NodeID(caller.ID)
	}
	p.endGreeting(raw, err == nil && !known)
	if err != nil {
		p.log.Debug("handshake failed", "from", raw.RemoteAddr(), "err", err)
		raw.Close()
		return
	}
	to, admit := p.apiDoor, func(ca.Caller) error { return nil }
	switch conn.ConnectionState().NegotiatedProtocol {
	case protoRaft:
		// A certificate that has expired passes if AdmitRaft says so: managers
		// that were all off for long must elect a leader to get new ones.
		to, admit = p.raftDoor, nodesOnly(known, p.c.AdmitRaft)
		raw.deaf(deafTime)
	case protoGossip:
		to, admit = p.gossipDoor, nodesOnly(known, func(c ca.Caller) error {
			switch {
			case c.Expired:
				return errExpired
			case p.c.AdmitGossip != nil:
				return p.c.AdmitGossip(c)
			}
			return nil
		})
		raw.deaf(deafTime)
	}
	again := func() error { return admit(caller) }
	if to == p.apiDoor {
		again = p.keepsRank(from)
	}
	p.mu.Lock()
	raw.admit = again
	p.mu.Unlock()
	if err := admit(caller); err != nil {
		p.log.Debug("stream refused", "from", raw.RemoteAddr(), "node", caller.ID, "proto", conn.ConnectionState().NegotiatedProtocol, "err", err)
		raw.Close()
		return
	}
	if !to.put(conn, p.closed) {
		raw.Close()
	}
}

// keepsRank returns a check that fails when a node may less than now.
func (p *port) keepsRank(from spec.NodeID) func() error {
	if p.c.Rank == nil || from == "" {
		return nil
	}
	was := p.c.Rank(from)
	return func() error {
		if p.c.Rank(from) < was {
			return fmt.Errorf("node %s was removed or demoted", from)
		}
		return nil
	}
}

var errExpired = errors.New("the certificate has expired")

// nodesOnly admits the nodes of the cluster that further admits; a nil further
// admits those whose certificate has not expired.
func nodesOnly(known bool, further func(ca.Caller) error) func(ca.Caller) error {
	return func(c ca.Caller) error {
		switch {
		case !known || c.Kind != ca.KindNode:
			return errors.New("not a node of the cluster")
		case further != nil:
			return further(c)
		case c.Expired:
			return errExpired
		}
		return nil
	}
}

// door hands connections over to the part that they are for.
type door struct {
	at     net.Addr
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func newDoor(at net.Addr) *door {
	return &door{at: at, conns: make(chan net.Conn), closed: make(chan struct{})}
}

// put waits until the connection is taken; false means that nobody does.
func (d *door) put(c net.Conn, end <-chan struct{}) bool {
	t := time.NewTimer(greetTime)
	defer t.Stop()
	select {
	case d.conns <- c:
		return true
	case <-d.closed:
	case <-end:
	case <-t.C:
	}
	return false
}

func (d *door) Accept() (net.Conn, error) {
	select {
	case c := <-d.conns:
		return c, nil
	case <-d.closed:
		return nil, net.ErrClosed
	}
}

func (d *door) Close() error {
	d.once.Do(func() { close(d.closed) })
	return nil
}

func (d *door) Addr() net.Addr { return d.at }

// readPackets takes gossip packets in; what nobody takes is dropped, as a
// network does. Path probes are answered here.
func (p *port) readPackets() {
	buf := make([]byte, 1<<16)
	for {
		n, from, err := p.udp.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n == 0 {
			continue
		}
		if isPath(buf[:n]) {
			if e := p.echo.Load(); e != nil {
				if answer := e.answer(buf[:n], time.Now()); answer != nil {
					_, _ = p.udp.WriteToUDPAddrPort(answer, from) // who asked asks again
				}
			}
			continue
		}
		select {
		case p.packets <- &memberlist.Packet{Buf: slices.Clone(buf[:n]), From: net.UDPAddrFromAddrPort(from), Timestamp: time.Now()}:
		default:
		}
	}
}
