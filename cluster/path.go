package cluster

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

// A path probe asks whether packets of a size arrive at another node. It is a
// packet of that size that must not be taken apart on the way, to the port that
// gossip has, and the answer is a small one. So it tries one direction; the
// other node tries the other.
//
// Both are sealed by a key that only nodes have. An answer is shorter than its
// question, and there are no more than pathAnswers in a second: who repeats a
// question that he has seen gains nothing by it.
const (
	pathMagic    = "wherryP\x01" // gossip begins with 0 or 1
	pathQuestion = 1
	pathAnswer   = 2
	pathNonce    = 16
	pathNode     = 32
	// pathHead is the magic, the kind, the length of the packet, the nonce, the
	// sender and the seal. A question is filled up with zeros.
	pathHead = len(pathMagic) + 1 + 2 + pathNonce + pathNode + sha256.Size

	pathAnswers = 100 // a second
	// pathWait is how long an answer is waited for, pathTries how often it is
	// asked for: a packet may get lost without being too large.
	pathWait  = 300 * time.Millisecond
	pathTries = 3
	// leastPath is the size of the packet that shows whether the node answers at
	// all: every host must take it.
	leastPath = 576
)

// pathPacket is a question or an answer.
type pathPacket struct {
	kind  byte
	size  uint16 // of the UDP payload of the question
	nonce [pathNonce]byte
	from  spec.NodeID
}

// pathKey is made from the key of gossip, and used for nothing else.
func pathKey(gossip []byte) []byte {
	h := hmac.New(sha256.New, gossip)
	h.Write([]byte("wherry path probe"))
	return h.Sum(nil)
}

// marshal returns the packet with so many bytes, at least pathHead.
func (p pathPacket) marshal(key []byte, length int) []byte {
	b := make([]byte, 0, max(length, pathHead))
	b = append(b, pathMagic...)
	b = append(b, p.kind)
	b = binary.BigEndian.AppendUint16(b, p.size)
	b = append(b, p.nonce[:]...)
	var from [pathNode]byte
	copy(from[:], p.from)
	b = append(b, from[:]...)
	b = b[:cap(b)]
	copy(b[pathHead-sha256.Size:], pathSeal(key, b))
	return b
}

// pathSeal is over all but itself.
func pathSeal(key, b []byte) []byte {
	h := hmac.New(sha256.New, key)
	h.Write(b[:pathHead-sha256.Size])
	h.Write(b[pathHead:])
	return h.Sum(nil)
}

// isPath reports whether a packet is none of gossip's.
func isPath(b []byte) bool { return bytes.HasPrefix(b, []byte(pathMagic)) }

func parsePath(key, b []byte) (pathPacket, error) {
	var p pathPacket
	if len(b) < pathHead || !isPath(b) {
		return p, errors.New("no path probe")
	}
	if !hmac.Equal(b[pathHead-sha256.Size:pathHead], pathSeal(key, b)) {
		return p, errors.New("path probe of somebody without the key")
	}
	rest := b[len(pathMagic):]
	p.kind, p.size = rest[0], binary.BigEndian.Uint16(rest[1:])
	rest = rest[3:]
	copy(p.nonce[:], rest)
	p.from = spec.NodeID(bytes.TrimRight(rest[pathNonce:pathNonce+pathNode], "\x00"))
	return p, nil
}

// pathEcho answers path probes. It is for one goroutine.
type pathEcho struct {
	node    spec.NodeID
	key     []byte
	removed func(spec.NodeID) bool

	second time.Time
	count  int
}

// answer returns what is to be sent back; nil is nothing.
func (e *pathEcho) answer(b []byte, now time.Time) []byte {
	if now.Sub(e.second) >= time.Second {
		e.second, e.count = now, 0
	}
	if e.count >= pathAnswers || len(b) <= pathHead {
		return nil
	}
	p, err := parsePath(e.key, b)
	if err != nil || p.kind != pathQuestion || int(p.size) != len(b) || p.from == e.node || e.removed(p.from) {
		return nil
	}
	e.count++
	return pathPacket{pathAnswer, p.size, p.nonce, e.node}.marshal(e.key, pathHead)
}

// Path is what is known of the way to another node.
type Path struct {
	// Answers: the node has answered at all. Otherwise nothing else is known.
	Answers bool
	// Fits is the size in bytes of the largest packet that arrives, its IP header
	// included, up to the size that was asked for.
	Fits int
}

// Path finds out whether packets of a size in bytes, IP header included, arrive
// at a node at one of its addresses, and if not, which do. It takes a
// millisecond when they arrive and some seconds when they do not. An error is
// of this host, or of ctx.
func (m *Member) Path(ctx context.Context, id spec.NodeID, at netip.Addr, size int) (Path, error) {
	port := uint16(m.port.number())
	for _, known := range m.dir.known(id) {
		if a, err := netip.ParseAddrPort(known); err == nil && a.Addr().Unmap() == at.Unmap() {
			port = a.Port()
		}
	}
	own, _ := netip.ParseAddrPort(m.Address())
	to := netip.AddrPortFrom(at.Unmap(), port)
	conn, err := dialPath(ctx, own.Addr().Unmap(), to)
	if err != nil {
		return Path{}, fmt.Errorf("probe the way to node %s: %w", id, err)
	}
	defer conn.Close()
	probe := pathProbe{node: m.id, key: pathKey(m.keys.Gossip), conn: conn, header: pathHeader(at)}
	return findPath(size, func(size int) (bool, error) {
		for range pathTries {
			ok, err := probe.arrives(ctx, size)
			if ok || err != nil {
				return ok, err
			}
		}
		return false, nil
	})
}

// findPath finds the largest packet that arrives: the wanted one as a rule.
func findPath(want int, arrives func(size int) (bool, error)) (Path, error) {
	ok, err := arrives(want)
	if ok || err != nil {
		return Path{Answers: ok, Fits: want}, err
	}
	if ok, err = arrives(min(leastPath, want)); !ok || err != nil {
		return Path{}, err
	}
	fits, less := min(leastPath, want), want // what arrives, and what does not
	for less-fits > 1 {
		middle := (fits + less) / 2
		if ok, err = arrives(middle); err != nil {
			return Path{}, err
		}
		if ok {
			fits = middle
		} else {
			less = middle
		}
	}
	return Path{Answers: true, Fits: fits}, nil
}

// pathHeader is the length of the headers of IP and UDP.
func pathHeader(a netip.Addr) int {
	if a.Unmap().Is4() {
		return 20 + 8
	}
	return 40 + 8
}

// dialPath opens a socket from the address that tunnels have. What it sends is
// never taken apart, whatever the kernel believes of the way.
func dialPath(ctx context.Context, from netip.Addr, to netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) {
			if to.Addr().Is4() {
				failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
			} else {
				failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE)
			}
		})
		return errors.Join(err, failed)
	}}
	if from.IsValid() && from.Is4() == to.Addr().Is4() {
		d.LocalAddr = net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	}
	return d.DialContext(ctx, "udp", to.String())
}

// pathProbe asks one node.
type pathProbe struct {
	node   spec.NodeID
	key    []byte
	conn   net.Conn
	header int
}

// arrives asks once with a packet of a size, headers included.
func (p pathProbe) arrives(ctx context.Context, size int) (bool, error) {
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	payload := size - p.header
	q := pathPacket{kind: pathQuestion, size: uint16(payload), from: p.node}
	if _, err := rand.Read(q.nonce[:]); err != nil {
		return false, err
	}
	end := time.Now().Add(pathWait)
	if d, ok := ctx.Deadline(); ok && d.Before(end) {
		end = d
	}
	if err := p.conn.SetDeadline(end); err != nil {
		return false, err
	}
	switch _, err := p.conn.Write(q.marshal(p.key, payload)); {
	case errors.Is(err, unix.EMSGSIZE), errors.Is(err, unix.ECONNREFUSED):
		return false, nil // too large for the device, or an answer to the packet before
	case err != nil:
		return false, err
	}
	b := make([]byte, 2*pathHead)
	for {
		n, err := p.conn.Read(b)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.EMSGSIZE), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH):
			return false, nil
		case err != nil:
			return false, err
		}
		if a, err := parsePath(p.key, b[:n]); err == nil && a.kind == pathAnswer && a.nonce == q.nonce && a.size == q.size {
			return true, nil
		}
	}
}
