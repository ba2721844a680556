//go:build linux

package lab

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// Member is one end of a Mesh.
type Member struct {
	Space
	IP string
	// Asks is a name that it asks Resolver for, whose answer must hold all
	// of Answers; "" asks for nothing.
	Asks     string
	Answers  []string
	Resolver string // "" is the package's
}

// Load is what each ordered pair of members does in a second.
type Load struct {
	// Packets are UDP packets with a sequence number.
	Packets int
	// Conns are TCP connections, each with a question and its answer.
	Conns int
	// Lookups of the first one of the pair.
	Lookups int
}

// Ports that a Mesh uses in the namespaces.
const (
	meshPackets = 7007
	meshStreams = 7008
)

// Mesh is traffic between all ordered pairs of its members, besides Load one
// long connection per pair whose bytes are checked. Every packet, byte,
// connection and lookup is accounted for. Safe for concurrent use.
type Mesh struct {
	load    Load
	members []Member
	addrs   []netip.AddrPort // of members, for packets
	pairs   []*pair          // from*len(members)+to; nil for a member and itself
	started time.Time
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	stop    sync.Once
	sockets []io.Closer

	mu       sync.Mutex
	conns    map[net.Conn]bool // that servers have open
	since    Report            // what has happened since the last report, without packets
	reported time.Time
}

// pair is the accounts of the packets from one member to another.
type pair struct {
	mu    sync.Mutex
	sent  []uint32 // when, in milliseconds from the start, by number
	got   []uint64 // a bit for each number
	twice int
	told  int // numbers below are in an earlier report
}

// Failure is something that went wrong between two members.
type Failure struct {
	At       time.Time
	From, To string
	What     string
}

// Outage is packets in a row that were all lost between two members.
type Outage struct {
	From, To string
	At       time.Time
	For      time.Duration // from the first lost packet to the first that arrives
	Packets  int
}

// Report is what has happened in a Mesh in a time.
type Report struct {
	Start, End time.Time
	// Packets sent, and of these lost and doubled.
	Packets, Lost, Twice int
	// Bytes that arrived in long connections, and how many of these ended, or
	// delivered other bytes.
	Bytes  int64
	Broken int
	// Stall is the longest time in which nothing of a long connection arrived.
	Stall time.Duration
	// Conns made, and how many of these failed; Slowest is the longest one.
	Conns, Failed int
	Slowest       time.Duration
	// Lookups made, how many had no or a wrong answer, and how many had to ask
	// more than once.
	Lookups, Unanswered, Again int
	Failures                   []Failure
	Outages                    []Outage
}

// Err is nil when nothing was lost.
func (r Report) Err() error {
	if r.Lost+r.Twice+r.Broken+r.Failed+r.Unanswered == 0 {
		return nil
	}
	var b strings.Builder
	b.WriteString(r.String())
	for i, o := range r.Outages {
		if i == 20 {
			fmt.Fprintf(&b, "\n  … %d more outages", len(r.Outages)-i)
			break
		}
		fmt.Fprintf(&b, "\n  %s %s → %s: %d packets, %s", o.At.UTC().Format("15:04:05.000"), o.From, o.To, o.Packets, o.For.Round(time.Millisecond))
	}
	for i, f := range r.Failures {
		if i == 20 {
			fmt.Fprintf(&b, "\n  … %d more failures", len(r.Failures)-i)
			break
		}
		fmt.Fprintf(&b, "\n  %s %s → %s: %s", f.At.UTC().Format("15:04:05.000"), f.From, f.To, f.What)
	}
	return errors.New(b.String())
}

// Complete is nil when at least a share of the load was brought about, in
// percent: a probe that does nothing loses nothing.
func (r Report) Complete(load Load, pairs, percent int) error {
	secs := r.End.Sub(r.Start).Seconds()
	var errs []error
	for _, x := range []struct {
		what      string
		got, rate int
	}{{"packets", r.Packets, load.Packets}, {"connections", r.Conns, load.Conns}, {"lookups", r.Lookups, load.Lookups}} {
		if want := int(secs * float64(x.rate*pairs*percent) / 100); x.got < want {
			errs = append(errs, fmt.Errorf("only %d %s in %.1f s between %d pairs, want %d", x.got, x.what, secs, pairs, want))
		}
	}
	if load.Packets > 0 && r.Bytes == 0 {
		errs = append(errs, errors.New("no byte has arrived in long connections"))
	}
	return errors.Join(errs...)
}

func (r Report) String() string {
	return fmt.Sprintf("%s: %d of %d packets lost, %d doubled; %d long connections broken, %d KiB, longest stall %s; %d of %d connections failed, slowest %s; %d of %d lookups failed, %d asked again",
		r.End.Sub(r.Start).Round(time.Millisecond), r.Lost, r.Packets, r.Twice, r.Broken, r.Bytes>>10, r.Stall.Round(time.Millisecond),
		r.Failed, r.Conns, r.Slowest.Round(time.Millisecond), r.Unanswered, r.Lookups, r.Again)
}

// Worst is the longest outage of packets.
func (r Report) Worst() time.Duration {
	var d time.Duration
	for _, o := range r.Outages {
		d = max(d, o.For)
	}
	return d
}

// Healed is when the last lost packet was followed by one that arrived, from
// a moment on; 0 when none was lost.
func (r Report) Healed(from time.Time) time.Duration {
	var d time.Duration
	for _, o := range r.Outages {
		d = max(d, o.At.Add(o.For).Sub(from))
	}
	return d
}

// NewMesh opens all sockets and starts the traffic. It ends with the test, or
// by Stop.
func NewMesh(t testing.TB, members []Member, load Load) *Mesh {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	m := &Mesh{load: load, members: members, cancel: cancel, conns: map[net.Conn]bool{}}
	t.Cleanup(m.Stop)
	n := len(members)
	m.pairs = make([]*pair, n*n)
	packets := make([]*net.UDPConn, n)
	listeners := make([]net.Listener, n)
	for i, x := range members {
		ip, err := netip.ParseAddr(x.IP)
		if err != nil {
			t.Fatalf("probe %s: %v", x.Name, err)
		}
		m.addrs = append(m.addrs, netip.AddrPortFrom(ip, meshPackets))
		if packets[i], err = x.ListenPacket("udp4", fmt.Sprintf(":%d", meshPackets)); err != nil {
			t.Fatalf("probe %s: %v", x.Name, err)
		}
		m.sockets = append(m.sockets, packets[i])
		if listeners[i], err = x.Listen("tcp4", fmt.Sprintf(":%d", meshStreams)); err != nil {
			t.Fatalf("probe %s: %v", x.Name, err)
		}
		m.sockets = append(m.sockets, listeners[i])
		for j := range members {
			if i != j {
				m.pairs[i*n+j] = &pair{}
			}
		}
	}
	m.started = time.Now()
	m.reported = m.started
	m.since.Start = m.started
	for i := range members {
		m.wg.Go(func() { m.receive(i, packets[i]) })
		m.wg.Go(func() { m.serve(i, listeners[i]) })
		m.wg.Go(func() { m.send(ctx, i, packets[i]) })
		for j := range members {
			if i == j {
				continue
			}
			m.wg.Go(func() { m.stream(ctx, i, j) })
			if load.Conns > 0 {
				m.wg.Go(func() { m.connect(ctx, i, j) })
			}
			if load.Lookups > 0 && members[i].Asks != "" {
				m.wg.Go(func() { m.resolve(ctx, i, j) })
			}
		}
	}
	return m
}

// Pairs is the number of ordered pairs.
func (m *Mesh) Pairs() int { return len(m.members) * (len(m.members) - 1) }

// Stop ends the traffic and closes all sockets.
func (m *Mesh) Stop() {
	m.stop.Do(func() {
		m.cancel()
		for _, s := range m.sockets {
			_ = s.Close() // nothing is lost in it any more
		}
		m.mu.Lock()
		for c := range m.conns {
			_ = c.Close()
		}
		m.mu.Unlock()
		m.wg.Wait()
	})
}

// settle is how long a packet may be under way.
const settle = 2 * time.Second

// Report tells what has happened since the last report. Traffic goes on.
func (m *Mesh) Report() Report {
	until := make([]int, len(m.pairs))
	for i, p := range m.pairs {
		if p != nil {
			p.mu.Lock()
			until[i] = len(p.sent)
			p.mu.Unlock()
		}
	}
	m.mu.Lock()
	now := time.Now()
	r := m.since
	r.Start, r.End, m.reported = m.reported, now, now
	m.since = Report{}
	m.mu.Unlock()
	for deadline := now.Add(settle); time.Now().Before(deadline); {
		missing := 0
		for i, p := range m.pairs {
			if p != nil {
				missing += p.missing(until[i])
			}
		}
		if missing == 0 {
			break
		}
		time.Sleep(20 * time.Millisecond) // between two looks
	}
	n := len(m.members)
	for i, p := range m.pairs {
		if p == nil {
			continue
		}
		from, to := m.members[i/n].Name, m.members[i%n].Name
		sent, twice, outages := p.report(until[i])
		r.Packets += sent
		r.Twice += twice
		for _, o := range outages {
			r.Lost += o.count
			r.Outages = append(r.Outages, Outage{From: from, To: to, Packets: o.count,
				At: m.started.Add(time.Duration(o.from) * time.Millisecond), For: time.Duration(o.until-o.from) * time.Millisecond})
		}
	}
	slices.SortFunc(r.Outages, func(a, b Outage) int { return a.At.Compare(b.At) })
	return r
}

func (p *pair) missing(until int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for seq := p.told; seq < until; seq++ {
		if !p.has(seq) {
			n++
		}
	}
	return n
}

func (p *pair) has(seq int) bool {
	return seq/64 < len(p.got) && p.got[seq/64]&(1<<(seq%64)) != 0
}

// row is lost packets in a row: when the first one was sent, and the first
// thereafter that arrived, in milliseconds.
type row struct {
	from, until uint32
	count       int
}

// report counts the numbers from the last report to until.
func (p *pair) report(until int) (sent, twice int, rows []row) {
	p.mu.Lock()
	defer p.mu.Unlock()
	var now *row
	for seq := p.told; seq < until; seq++ {
		switch {
		case p.has(seq):
			if now != nil {
				now.until, now = p.sent[seq], nil
			}
		case now == nil:
			rows = append(rows, row{from: p.sent[seq], until: p.sent[seq], count: 1})
			now = &rows[len(rows)-1]
		default:
			now.until = p.sent[seq]
			now.count++
		}
	}
	sent, twice = until-p.told, p.twice
	p.told, p.twice = until, 0
	return sent, twice, rows
}

// next gives out the number of the next packet.
func (p *pair) next(ms uint32) uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sent = append(p.sent, ms)
	return uint64(len(p.sent) - 1)
}

// arrive notes a number; false when it was never sent.
func (p *pair) arrive(seq uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if seq >= uint64(len(p.sent)) {
		return false
	}
	for uint64(len(p.got)) <= seq/64 {
		p.got = append(p.got, 0)
	}
	if p.has(int(seq)) {
		p.twice++
	}
	p.got[seq/64] |= 1 << (seq % 64)
	return true
}

// A packet: what it is, from whom, to whom, its number, and bytes that follow
// from it.
const (
	packetMagic = 0x77686f70
	packetSize  = 128
)

func packet(b []byte, from, to int, seq uint64) []byte {
	b = binary.BigEndian.AppendUint32(b[:0], packetMagic)
	b = binary.BigEndian.AppendUint16(b, uint16(from))
	b = binary.BigEndian.AppendUint16(b, uint16(to))
	b = binary.BigEndian.AppendUint64(b, seq)
	return pattern(b, packetSize-len(b), int64(seq), from)
}

// pattern appends the n bytes that a stream of a member has from an offset on.
func pattern(b []byte, n int, offset int64, from int) []byte {
	for i := offset; i < offset+int64(n); i++ {
		b = append(b, byte(i)^byte(i>>8)^byte(i>>16)*31^byte(from)*17)
	}
	return b
}

// send sends packets to all others, as many as are due.
func (m *Mesh) send(ctx context.Context, from int, c *net.UDPConn) {
	if m.load.Packets == 0 {
		return
	}
	tick := time.NewTicker(max(time.Second/time.Duration(m.load.Packets), 2*time.Millisecond))
	defer tick.Stop()
	const burst = 50 // more is not made up for
	buf := make([]byte, 0, packetSize)
	for done := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		due := int(time.Since(m.started).Seconds() * float64(m.load.Packets))
		if due-done > burst {
			done = due - burst
		}
		for ; done < due; done++ {
			for to := range m.members {
				if to == from || ctx.Err() != nil {
					continue
				}
				seq := m.pairs[from*len(m.members)+to].next(uint32(time.Since(m.started).Milliseconds()))
				buf = packet(buf, from, to, seq)
				if _, err := c.WriteToUDPAddrPort(buf, m.addrs[to]); err != nil && ctx.Err() == nil {
					m.fail(from, to, "send packet: "+err.Error()) // it counts as lost
				}
			}
		}
	}
}

func (m *Mesh) receive(self int, c *net.UDPConn) {
	buf, want := make([]byte, 2048), make([]byte, 0, packetSize)
	for {
		n, addr, err := c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			m.fail(self, self, "receive packet: "+err.Error())
			continue
		}
		if n < 16 || binary.BigEndian.Uint32(buf) != packetMagic {
			m.fail(self, self, fmt.Sprintf("a packet of %d bytes that nobody sent, from %s", n, addr))
			continue
		}
		from, to, seq := int(binary.BigEndian.Uint16(buf[4:])), int(binary.BigEndian.Uint16(buf[6:])), binary.BigEndian.Uint64(buf[8:])
		switch {
		case to != self || from >= len(m.members) || from == self:
			m.fail(self, self, fmt.Sprintf("a packet from member %d to %d", from, to))
			continue
		case netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port()) != m.addrs[from]:
			m.fail(from, self, fmt.Sprintf("a packet comes from %s, not from %s", addr, m.addrs[from]))
			continue
		}
		if want = packet(want, from, to, seq); !bytes.Equal(want, buf[:n]) {
			m.fail(from, self, fmt.Sprintf("packet %d has other bytes", seq))
			continue
		}
		if !m.pairs[from*len(m.members)+to].arrive(seq) {
			m.fail(from, self, fmt.Sprintf("packet %d was never sent", seq))
		}
	}
}

// fail notes a failure.
func (m *Mesh) fail(from, to int, what string) {
	m.note(func(r *Report) {
		if len(r.Failures) < 10_000 {
			r.Failures = append(r.Failures, Failure{At: time.Now(), From: m.members[from].Name, To: m.members[to].Name, What: what})
		}
	})
}

func (m *Mesh) note(f func(*Report)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f(&m.since)
}

// The first byte of a connection says what it is, the second whose.
const (
	kindStream = 'S'
	kindConn   = 'C'
)

func (m *Mesh) serve(self int, l net.Listener) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			m.fail(self, self, "accept: "+err.Error())
			time.Sleep(10 * time.Millisecond) // it may be out of descriptors
			continue
		}
		m.mu.Lock()
		m.conns[c] = true
		m.mu.Unlock()
		m.wg.Go(func() {
			m.answer(self, c)
			_ = c.Close() // what it had to say is said
			m.mu.Lock()
			delete(m.conns, c)
			m.mu.Unlock()
		})
	}
}

// answer serves one connection. Its other end notes what fails, but for wrong
// bytes, which are seen only here.
func (m *Mesh) answer(self int, c net.Conn) {
	r := bufio.NewReaderSize(c, 64<<10)
	var head [2]byte
	if _, err := io.ReadFull(r, head[:]); err != nil || int(head[1]) >= len(m.members) {
		return
	}
	from := int(head[1])
	if head[0] == kindConn {
		var nonce [8]byte
		if _, err := io.ReadFull(r, nonce[:]); err == nil {
			_, _ = c.Write(append(nonce[:], byte(self)))
			_, _ = io.Copy(io.Discard, r) // the other end closes first
		}
		return
	}
	buf, want := make([]byte, 64<<10), make([]byte, 0, 64<<10)
	last := time.Now()
	for at := int64(0); ; {
		n, err := r.Read(buf)
		now := time.Now()
		want = pattern(want[:0], n, at, from)
		m.note(func(r *Report) {
			r.Bytes += int64(n)
			r.Stall = max(r.Stall, now.Sub(last))
		})
		if !bytes.Equal(want, buf[:n]) {
			m.note(func(r *Report) { r.Broken++ })
			m.fail(from, self, fmt.Sprintf("long connection: other bytes after %d", at))
			return
		}
		at, last = at+int64(n), now
		// The count goes back, so that both ends know what arrived.
		if n > 0 {
			if _, werr := c.Write(binary.BigEndian.AppendUint64(nil, uint64(at))); werr != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// stream keeps a connection and sends 1 KiB ten times a second, now and then
// 64 KiB. All of it must be acknowledged.
func (m *Mesh) stream(ctx context.Context, from, to int) {
	for ctx.Err() == nil {
		err := m.streamOnce(ctx, from, to)
		if ctx.Err() != nil {
			return
		}
		m.note(func(r *Report) { r.Broken++ })
		m.fail(from, to, "long connection: "+err.Error())
		wait(ctx, 200*time.Millisecond)
	}
}

func (m *Mesh) streamOnce(ctx context.Context, from, to int) error {
	c, err := m.members[from].Dial("tcp4", netip.AddrPortFrom(m.addrs[to].Addr(), meshStreams).String(), 5*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	if _, err := c.Write([]byte{kindStream, byte(from)}); err != nil {
		return err
	}
	acks := make(chan uint64, 1)
	gone := make(chan error, 1)
	go func() {
		var b [8]byte
		for {
			if _, err := io.ReadFull(c, b[:]); err != nil {
				gone <- err
				return
			}
			select { // only the newest counts
			case <-acks:
			default:
			}
			acks <- binary.BigEndian.Uint64(b[:])
		}
	}()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	var sent, acked uint64
	progress := time.Now()
	for i := 1; ; i++ {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-gone:
			return fmt.Errorf("after %d bytes: %w", acked, err)
		case acked = <-acks:
			if acked > sent {
				return fmt.Errorf("%d bytes are acknowledged of %d", acked, sent)
			}
			progress = time.Now()
			i--
			continue
		case <-tick.C:
		}
		if acked == sent {
			progress = time.Now()
		} else if d := time.Since(progress); d > 15*time.Second {
			return fmt.Errorf("nothing arrives any more for %s, after %d bytes", d.Round(time.Second), acked)
		}
		if sent-acked > 1<<20 {
			continue
		}
		n := 1 << 10
		if i%30 == 0 {
			n = 64 << 10
		}
		if _, err := c.Write(pattern(nil, n, int64(sent), from)); err != nil {
			return fmt.Errorf("after %d bytes: %w", acked, err)
		}
		sent += uint64(n)
	}
}

// connect makes connections, each with a question and its answer, on a thread
// that stays in the namespace.
func (m *Mesh) connect(ctx context.Context, from, to int) {
	address := netip.AddrPortFrom(m.addrs[to].Addr(), meshStreams).String()
	err := m.members[from].Do(func() error {
		every(ctx, m.load.Conns, func(n int) {
			started := time.Now()
			err := exchange(ctx, address, from, to, uint64(n))
			took := time.Since(started)
			if err != nil && ctx.Err() != nil {
				return
			}
			m.note(func(r *Report) {
				r.Conns++
				r.Slowest = max(r.Slowest, took)
				if err != nil {
					r.Failed++
				}
			})
			if err != nil {
				m.fail(from, to, fmt.Sprintf("connection after %s: %v", took.Round(time.Millisecond), err))
			}
		})
		return nil
	})
	if err != nil {
		m.note(func(r *Report) { r.Failed++ })
		m.fail(from, to, err.Error())
	}
}

func exchange(ctx context.Context, address string, from, to int, nonce uint64) error {
	c, err := dialer(5*time.Second).DialContext(ctx, "tcp4", address)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	question := binary.BigEndian.AppendUint64([]byte{kindConn, byte(from)}, nonce)
	if _, err := c.Write(question); err != nil {
		return err
	}
	var got [9]byte
	if _, err := io.ReadFull(c, got[:]); err != nil {
		return err
	}
	if !bytes.Equal(got[:8], question[2:]) || int(got[8]) != to {
		return fmt.Errorf("the answer is %x, want %x%02x", got, question[2:], to)
	}
	return nil
}

// resolve looks the member's name up.
func (m *Mesh) resolve(ctx context.Context, from, to int) {
	x := m.members[from]
	server := x.Resolver
	if server == "" {
		server = Resolver
	}
	c, err := x.ListenPacket("udp4", ":0")
	if err != nil {
		m.note(func(r *Report) { r.Unanswered++ })
		m.fail(from, to, err.Error())
		return
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	every(ctx, m.load.Lookups, func(n int) {
		answer, asked, err := lookup(c, server, x.Asks, uint16(n))
		if ctx.Err() != nil {
			return
		}
		for _, want := range x.Answers {
			if err == nil && !slices.Contains(answer, want) {
				err = fmt.Errorf("%v, without %s", answer, want)
			}
		}
		m.note(func(r *Report) {
			r.Lookups++
			if asked > 1 {
				r.Again++
			}
			if err != nil {
				r.Unanswered++
			}
		})
		if err != nil {
			m.fail(from, to, "lookup "+x.Asks+": "+err.Error())
		}
	})
}

// every calls f so many times a second, but never twice at a time.
func every(ctx context.Context, rate int, f func(n int)) {
	tick := time.NewTicker(time.Second / time.Duration(rate))
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			f(n)
		}
	}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
