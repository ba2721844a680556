package keeper

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// A query is sent to each server in turn, twice round; the first round is
	// impatient. The whole, from the arrival of the query on, takes less than the
	// five seconds after which common clients ask again.
	firstTry  = time.Second
	secondTry = 2 * time.Second
	allTries  = 4500 * time.Millisecond
	// A server that did not answer is asked last for this long.
	avoidFor = 30 * time.Second
	// maxServers of one list are asked.
	maxServers = 4
)

// exchanger asks servers outside on behalf of the containers. It caches
// nothing, so there is nothing to poison and nothing to go stale. Safe for
// concurrent use.
type exchanger struct {
	// conf is the resolv.conf used by resolvers without servers of their own.
	conf    string
	buffers bufferPool

	mu      sync.Mutex
	avoid   map[netip.AddrPort]time.Time // servers that did not answer → until when they come last
	host    []netip.AddrPort             // of conf
	hostMod time.Time
	checked time.Time
}

// bufferPool holds packet buffers, so that an idle resolver owns none.
type bufferPool struct{ p sync.Pool }

func (b *bufferPool) get() *[]byte {
	if x, ok := b.p.Get().(*[]byte); ok {
		return x
	}
	x := make([]byte, maxUDP+1)
	return &x
}

func (b *bufferPool) put(x *[]byte) { b.p.Put(x) }

func newExchanger(conf string) *exchanger {
	return &exchanger{conf: conf, avoid: map[netip.AddrPort]time.Time{}}
}

// errNoAnswer: no server gave an answer to the question.
var errNoAnswer = errors.New("no upstream server answered")

// exchange asks the servers for the answer to a packet that holds one
// question, until ctx ends, and returns it under the packet's own ID and
// spelling. Unless the client came over TCP, an answer that was cut is passed
// on as it is: the client decides whether to come again over TCP.
func (x *exchanger) exchange(ctx context.Context, servers []netip.AddrPort, packet []byte, tcp bool) ([]byte, error) {
	question, ok := questionOf(packet)
	if !ok {
		return nil, errNoAnswer
	}
	var refusal []byte
	for _, patience := range []time.Duration{firstTry, secondTry} {
		for _, server := range x.order(servers) {
			answer, err := x.ask(ctx, server, packet, question, tcp, time.Now().Add(patience))
			switch {
			case ctx.Err() != nil:
				return refusal, noAnswer(refusal)
			case err != nil:
				x.setAvoid(server, true)
			case isRefusal(answer):
				refusal = answer // another server may know
			default:
				x.setAvoid(server, false)
				return answer, nil
			}
		}
		if refusal != nil {
			break
		}
	}
	return refusal, noAnswer(refusal)
}

func noAnswer(refusal []byte) error {
	if refusal == nil {
		return errNoAnswer
	}
	return nil
}

// isRefusal reports whether an answer is SERVFAIL or REFUSED.
func isRefusal(answer []byte) bool {
	rcode := answer[3] & 0xf
	return rcode == dns.RcodeServerFailure || rcode == dns.RcodeRefused
}

// order is the servers to ask, those that failed recently last.
func (x *exchanger) order(servers []netip.AddrPort) []netip.AddrPort {
	now := time.Now()
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(servers) == 0 {
		servers = x.hostServersLocked(now)
	}
	var good, bad []netip.AddrPort
	for _, s := range servers[:min(len(servers), maxServers)] {
		until, failed := x.avoid[s]
		switch {
		case !failed:
			good = append(good, s)
		case now.After(until):
			delete(x.avoid, s)
			good = append(good, s)
		default:
			bad = append(bad, s)
		}
	}
	return append(good, bad...)
}

func (x *exchanger) setAvoid(server netip.AddrPort, failed bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if failed {
		if len(x.avoid) < 1000 { // lists come from users; this is a hint that need not be kept
			x.avoid[server] = time.Now().Add(avoidFor)
		}
		return
	}
	delete(x.avoid, server)
}

// hostServersLocked reads the host's resolv.conf again when it has changed,
// looking at most once a second.
func (x *exchanger) hostServersLocked(now time.Time) []netip.AddrPort {
	if now.Sub(x.checked) < time.Second {
		return x.host
	}
	x.checked = now
	fi, err := os.Stat(x.conf)
	if err != nil || fi.ModTime().Equal(x.hostMod) {
		return x.host
	}
	b, err := os.ReadFile(x.conf)
	if err != nil {
		return x.host
	}
	x.host, x.hostMod = parseResolvConf(string(b)), fi.ModTime()
	return x.host
}

func parseResolvConf(text string) []netip.AddrPort {
	var out []netip.AddrPort
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if ip, err := netip.ParseAddr(f[1]); err == nil {
			out = append(out, netip.AddrPortFrom(ip, 53))
		}
	}
	return out
}

// questionOf returns the question section of a packet with one question: its
// name's bytes start at 12. Compression cannot occur in it.
func questionOf(packet []byte) ([]byte, bool) {
	if len(packet) < 17 || binary.BigEndian.Uint16(packet[4:]) != 1 {
		return nil, false
	}
	i := 12
	for packet[i] != 0 {
		if packet[i] > 63 {
			return nil, false
		}
		i += int(packet[i]) + 1
		if i >= len(packet) {
			return nil, false
		}
	}
	if i+5 > len(packet) {
		return nil, false
	}
	return packet[12 : i+5], true
}

// ask puts the question to one server. The ID, the port (the kernel's choice)
// and the spelling of the name are random; an answer over UDP must repeat all
// three. A server that does not keep the spelling is asked over TCP, and if it
// does not take TCP, trusted without.
func (x *exchanger) ask(ctx context.Context, server netip.AddrPort, packet, question []byte, tcp bool, end time.Time) ([]byte, error) {
	sent := disguise(packet, question, true)
	answer, err := x.askUDP(ctx, server, sent, len(question), end)
	switch {
	case err == nil && tcp && answer[2]&truncated != 0:
		if whole, err := askTCP(ctx, server, sent, len(question), end); err == nil {
			answer = whole
		}
	case errors.Is(err, errSpelling):
		answer, err = askTCP(ctx, server, sent, len(question), end)
		if err != nil {
			sent = disguise(packet, question, false) // under another ID and port
			answer, err = x.askUDP(ctx, server, sent, len(question), end)
			if errors.Is(err, errSpelling) {
				err = nil // this server cannot do better; ID and port are right
			}
		}
	}
	if err != nil {
		return nil, err
	}
	copy(answer[:2], packet[:2])
	copy(answer[12:], question)
	return answer, nil
}

// truncated is the bit of the third byte of a packet that says so.
const truncated = 2

// disguise copies a packet, gives it a random ID and, with spelling, every
// letter of the question's name a random case.
func disguise(packet, question []byte, spelling bool) []byte {
	out := bytes.Clone(packet)
	var random [2 + 32]byte // a bit for each of the at most 255 bytes of a name
	rand.Read(random[:])
	copy(out, random[:2])
	if !spelling {
		return out
	}
	name := out[12 : 12+len(question)-4]
	for i := 0; name[i] != 0; {
		next := i + 1 + int(name[i])
		for i++; i < next; i++ {
			if c := name[i] | 0x20; 'a' <= c && c <= 'z' {
				name[i] = c &^ (random[2+i/8] >> (i % 8) & 1 << 5)
			}
		}
	}
	return out
}

var (
	errSpelling = errors.New("the answer spells the name differently")
	errMismatch = errors.New("not the answer to the question")
)

// verify reports whether answer belongs to what was sent: nil, errSpelling when
// only the spelling differs, or errMismatch.
func verify(answer, sent []byte, question int) error {
	if len(answer) < 12+question || answer[0] != sent[0] || answer[1] != sent[1] ||
		answer[2]&0x80 == 0 || binary.BigEndian.Uint16(answer[4:]) != 1 {
		return errMismatch
	}
	got, want := answer[12:12+question], sent[12:12+question]
	switch {
	case bytes.Equal(got, want):
		return nil
	case equalFold(got[:question-4], want[:question-4]) && bytes.Equal(got[question-4:], want[question-4:]):
		return errSpelling
	}
	return errMismatch
}

func equalFold(a, b []byte) bool {
	for i, c := range a {
		d := b[i]
		if c != d && (c|0x20 != d|0x20 || c|0x20 < 'a' || c|0x20 > 'z') {
			return false
		}
	}
	return true
}

// dial connects within the process's own network namespace, which is the
// host's, and closes the connection when ctx ends.
func dial(ctx context.Context, network string, server netip.AddrPort, end time.Time) (net.Conn, func(), error) {
	d := net.Dialer{Deadline: end}
	c, err := d.DialContext(ctx, network, server.String())
	if err != nil {
		return nil, nil, err
	}
	c.SetDeadline(end)
	stop := context.AfterFunc(ctx, func() { c.Close() })
	return c, func() { stop(); c.Close() }, nil
}

func (x *exchanger) askUDP(ctx context.Context, server netip.AddrPort, sent []byte, question int, end time.Time) ([]byte, error) {
	c, closeConn, err := dial(ctx, "udp", server, end)
	if err != nil {
		return nil, err
	}
	defer closeConn()
	if _, err := c.Write(sent); err != nil {
		return nil, err
	}
	buf := x.buffers.get()
	defer x.buffers.put(buf)
	for {
		n, err := c.Read(*buf)
		if err != nil {
			return nil, err
		}
		// What does not fit is not ours or not true: wait for the right one.
		err = verify((*buf)[:n], sent, question)
		if errors.Is(err, errMismatch) {
			continue
		}
		answer := bytes.Clone((*buf)[:n])
		if n == len(*buf) {
			answer[2] |= truncated // more than we had room for: ask over TCP
		}
		return answer, err
	}
}

func askTCP(ctx context.Context, server netip.AddrPort, sent []byte, question int, end time.Time) ([]byte, error) {
	c, closeConn, err := dial(ctx, "tcp", server, end)
	if err != nil {
		return nil, err
	}
	defer closeConn()
	if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(sent))), sent...)); err != nil {
		return nil, err
	}
	var size [2]byte
	if _, err := io.ReadFull(c, size[:]); err != nil {
		return nil, err
	}
	answer := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(c, answer); err != nil {
		return nil, err
	}
	if err := verify(answer, sent, question); err != nil && !errors.Is(err, errSpelling) {
		return nil, err
	}
	return answer, nil
}

// cut makes an answer that is too long for UDP into an empty one that says so.
// It keeps the question alone.
func cut(answer []byte, limit int) []byte {
	if len(answer) <= limit {
		return answer
	}
	question, ok := questionOf(answer)
	if !ok {
		return answer[:0]
	}
	out := answer[:12+len(question)]
	out[2] |= truncated
	clear(out[6:12])
	return out
}
