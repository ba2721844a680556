package keeper

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

const (
	// maxConns of one container are open over TCP.
	maxConns = 256
	// maxPipeline queries of one TCP connection are under way; then no more are
	// read from it.
	maxPipeline = 64
	// idleConn closes a TCP connection on which nothing was asked.
	idleConn = 10 * time.Second
	// udpBatch packets of one socket are handled before others get their turn.
	udpBatch = 32
)

// counters of the whole process.
type counters struct {
	queries, forwarded, failed atomic.Uint64
	logBytes, droppedBytes     atomic.Uint64
}

// sockets of one resolver, bound in its namespace.
type sockets struct {
	udp *net.UDPConn
	tcp *net.TCPListener
	ns  fileID // of the namespace when they were opened
}

func (s sockets) close() {
	s.udp.Close()
	s.tcp.Close()
}

// resolver is one DNS server. Its methods are called by the keeper under the
// keeper's lock; set may run beside serving.
type resolver struct {
	spec     spec.Resolver
	sockets  sockets
	exchange *exchanger
	count    *counters
	view     atomic.Pointer[view]

	ctx    context.Context // ends forwards and connections
	cancel context.CancelFunc
	loops  sync.WaitGroup // the two readers
	work   sync.WaitGroup // forwards and connections

	forwards forwards
	conns    atomic.Int32
}

func newResolver(r spec.Resolver, s sockets, v *view, x *exchanger, c *counters) *resolver {
	ctx, cancel := context.WithCancel(context.Background())
	srv := &resolver{spec: r, sockets: s, exchange: x, count: c, ctx: ctx, cancel: cancel}
	srv.view.Store(v)
	return srv
}

// serve starts the readers; pause ends it.
func (r *resolver) serve() {
	r.sockets.udp.SetReadDeadline(time.Time{})
	r.sockets.tcp.SetDeadline(time.Time{})
	r.loops.Go(r.serveUDP)
	r.loops.Go(r.serveTCP)
}

// pause stops reading new queries and returns when none is being read. What
// arrives meanwhile waits in the sockets. Forwards and open connections go on.
func (r *resolver) pause() {
	past := time.Unix(1, 0)
	r.sockets.udp.SetReadDeadline(past)
	r.sockets.tcp.SetDeadline(past)
	r.loops.Wait()
}

// finish ends a paused resolver after its open work is done, or when ctx ends.
func (r *resolver) finish(ctx context.Context) {
	r.sockets.tcp.Close()
	stop := context.AfterFunc(ctx, r.cancel)
	r.work.Wait()
	stop()
	r.cancel()
	r.sockets.close()
}

// close ends everything at once; the namespace is free when it returns.
func (r *resolver) close() {
	r.cancel()
	r.sockets.close()
	r.loops.Wait()
	r.work.Wait()
}

// serveUDP waits for packets without owning a buffer.
func (r *resolver) serveUDP() {
	raw, err := r.sockets.udp.SyscallConn()
	if err != nil {
		return
	}
	for err == nil {
		err = raw.Read(func(fd uintptr) bool { return r.readPackets(int(fd)) })
		runtime.Gosched() // a flood from one container must not hold up the others
	}
}

// readPackets handles what has arrived, up to a batch. It returns false when
// nothing had.
func (r *resolver) readPackets(fd int) bool {
	buf, out := r.exchange.buffers.get(), r.exchange.buffers.get()
	defer r.exchange.buffers.put(buf)
	defer r.exchange.buffers.put(out)
	for i := range udpBatch {
		n, from, err := unix.Recvfrom(fd, *buf, unix.MSG_DONTWAIT)
		switch err {
		case nil:
		case unix.EAGAIN:
			return i > 0
		default: // an error of an earlier answer, told once
			continue
		}
		to, ok := from.(*unix.SockaddrInet4)
		if !ok {
			continue
		}
		addr := netip.AddrPortFrom(netip.AddrFrom4(to.Addr), uint16(to.Port))
		r.handle((*buf)[:n], *out, false, nil, func(answer []byte) {
			r.sockets.udp.WriteToUDPAddrPort(answer, addr)
		})
	}
	return true
}

// handle answers one packet, now or, when others have to be asked, later from
// a goroutine of r.work. begin, if not nil, is called before a query is given
// to such a goroutine and returns what to call when it is answered.
func (r *resolver) handle(packet, buf []byte, tcp bool, begin func() (end func()), send func([]byte)) {
	r.count.queries.Add(1)
	v := r.view.Load()
	answer, limit, what := v.respond(packet, buf, tcp)
	switch what {
	case reply:
		send(answer)
	case forward:
		if v.isolated {
			r.fail(packet, limit, tcp, send)
			return
		}
		end := func() {}
		if begin != nil {
			end = begin()
		}
		packet, until := bytes.Clone(packet), time.Now().Add(allTries)
		if !r.forwards.do(&r.work, func() {
			defer end()
			r.forward(v, packet, limit, tcp, until, send)
		}) {
			defer end()
			r.fail(packet, limit, tcp, send)
		}
	}
}

// forward asks the servers outside until a time: that it had to wait for its
// turn does not make the client wait longer.
func (r *resolver) forward(v *view, packet []byte, limit int, tcp bool, until time.Time, send func([]byte)) {
	r.count.forwarded.Add(1)
	ctx, cancel := context.WithDeadline(r.ctx, until)
	defer cancel()
	answer, err := r.exchange.exchange(ctx, v.upstream, packet, tcp)
	if err != nil {
		r.fail(packet, limit, tcp, send)
		return
	}
	if !tcp {
		answer = cut(answer, limit)
	}
	send(answer)
}

// fail answers SERVFAIL.
func (r *resolver) fail(packet []byte, limit int, tcp bool, send func([]byte)) {
	r.count.failed.Add(1)
	var q dns.Msg
	if q.Unpack(packet) == nil {
		send(pack(refuse(&q, dns.RcodeServerFailure), nil, limit, tcp))
	}
}

func (r *resolver) serveTCP() {
	for {
		c, err := r.sockets.tcp.Accept()
		if err != nil {
			if !retryAccept(r.ctx, err) {
				return
			}
			continue
		}
		if r.conns.Add(1) > maxConns {
			r.conns.Add(-1)
			c.Close()
			continue
		}
		r.work.Go(func() {
			defer r.conns.Add(-1)
			r.serveConn(c)
		})
	}
}

// serveConn answers the queries of one TCP connection, each as soon as its
// answer is known.
func (r *resolver) serveConn(c net.Conn) {
	var pending sync.WaitGroup
	defer c.Close()
	defer pending.Wait()
	defer context.AfterFunc(r.ctx, func() { c.Close() })()

	var writing sync.Mutex
	send := func(answer []byte) {
		writing.Lock()
		defer writing.Unlock()
		c.SetWriteDeadline(time.Now().Add(idleConn))
		c.Write(append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(answer)), uint16(len(answer))), answer...))
	}
	slots := make(chan struct{}, maxPipeline)
	begin := func() func() {
		slots <- struct{}{} // freed by forwards, which end by themselves
		pending.Add(1)
		return func() { <-slots; pending.Done() }
	}
	for {
		c.SetReadDeadline(time.Now().Add(idleConn))
		var size [2]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return
		}
		packet := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(c, packet); err != nil {
			return
		}
		r.handle(packet, nil, true, begin, send)
	}
}
