package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"wherry.dev/spec"
)

// TestFindPath: the wanted size is asked for first, and more only if it does
// not arrive; what arrives is found to the byte.
func TestFindPath(t *testing.T) {
	broken := errors.New("no such device")
	tests := []struct {
		name         string
		want, fits   int // fits 0: nothing arrives
		err          error
		path         string
		least, asked int
	}{
		{"all is well", 1500, 1500, nil, "true 1500", 1, 1},
		{"more would fit", 1500, 9000, nil, "true 1500", 1, 1},
		{"one byte less", 1500, 1499, nil, "true 1499", 2, 14},
		{"a tunnel on the way", 1500, 1400, nil, "true 1400", 2, 14},
		{"jumbo frames that are none", 9000, 1500, nil, "true 1500", 2, 16},
		{"the least", 1500, 576, nil, "true 576", 2, 14},
		{"nobody answers", 1500, 0, nil, "false 0", 2, 2},
		{"this host cannot ask", 1500, 1500, broken, "false 0", 1, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			asked := 0
			p, err := findPath(tt.want, func(size int) (bool, error) {
				asked++
				return size <= tt.fits && tt.err == nil, tt.err
			})
			if got := fmt.Sprint(p.Answers, " ", map[bool]int{true: p.Fits}[p.Answers]); got != tt.path || !errors.Is(err, tt.err) || asked < tt.least || asked > tt.asked {
				t.Errorf("%s, %v, asked %d times", got, err, asked)
			}
		})
	}
}

// TestPathEcho: only a whole question of another member is answered, by fewer
// bytes than it has, and not too often.
func TestPathEcho(t *testing.T) {
	key, other := pathKey([]byte("gossip key")), pathKey([]byte("another key"))
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	question := pathPacket{kind: pathQuestion, size: 1472, nonce: [pathNonce]byte{1, 2, 3}, from: nodeA}
	ask := func(change func(q *pathPacket)) []byte {
		q := question
		change(&q)
		return q.marshal(key, 1472)
	}
	whole := ask(func(*pathPacket) {})
	tests := map[string][]byte{
		"another key":        question.marshal(other, 1472),
		"cut off":            whole[:1000],
		"cut off at the end": whole[:1471],
		"longer":             append(bytes.Clone(whole), 0),
		"changed":            append(bytes.Clone(whole[:1400]), bytes.Repeat([]byte{1}, 72)...),
		"an answer":          ask(func(q *pathPacket) { q.kind = pathAnswer }),
		"of itself":          ask(func(q *pathPacket) { q.from = nodeB }),
		"of a removed node":  ask(func(q *pathPacket) { q.from = nodeC }),
		"not what it says":   ask(func(q *pathPacket) { q.size = 9000 }),
		"as short as an answer": pathPacket{kind: pathQuestion, size: uint16(pathHead), from: nodeA}.
			marshal(key, pathHead),
		"empty":          nil,
		"only the magic": []byte(pathMagic),
	}
	echo := func() *pathEcho {
		return &pathEcho{node: nodeB, key: key, removed: func(id spec.NodeID) bool { return id == nodeC }}
	}
	for name, b := range tests {
		if got := echo().answer(b, now); got != nil {
			t.Errorf("%s: is answered by %d bytes", name, len(got))
		}
	}
	e := echo()
	got := e.answer(whole, now)
	a, err := parsePath(key, got)
	if err != nil || len(got) >= len(whole) || a.kind != pathAnswer || a.nonce != question.nonce || a.size != 1472 || a.from != nodeB {
		t.Errorf("answer of %d bytes: %+v, %v", len(got), a, err)
	}
	answered := 1
	for range 1000 {
		if e.answer(whole, now.Add(time.Millisecond)) != nil {
			answered++
		}
	}
	if answered != pathAnswers {
		t.Errorf("%d answers in a second", answered)
	}
	if e.answer(whole, now.Add(time.Second)) == nil {
		t.Error("no answer in the next second")
	}
}

// TestPathProbe goes through real sockets: a port answers, beside gossip.
func TestPathProbe(t *testing.T) {
	a := newAuthority(t, "path")
	p, err := openPort(portConfig{Listen: "127.0.0.1:0", Identity: a.node(nodeB), Find: func(spec.NodeID) []string { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	key := pathKey([]byte("gossip key"))
	to := netip.MustParseAddrPort(p.addr())
	conn, err := dialPath(t.Context(), to.Addr(), to)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	probe := pathProbe{node: nodeA, key: key, conn: conn, header: pathHeader(to.Addr())}
	if ok, err := probe.arrives(t.Context(), 1500); ok || err != nil {
		t.Errorf("before the key is known: %v, %v", ok, err)
	}
	p.echo.Store(&pathEcho{node: nodeB, key: key, removed: func(spec.NodeID) bool { return false }})
	if got, err := findPath(9000, func(size int) (bool, error) { return probe.arrives(t.Context(), size) }); got != (Path{true, 9000}) || err != nil {
		t.Errorf("with the key: %+v, %v", got, err)
	}
	select {
	case b := <-p.packets:
		t.Errorf("gossip gets %d bytes", len(b.Buf))
	default:
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := probe.arrives(ctx, 1500); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
}
