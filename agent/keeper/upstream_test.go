package keeper

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"
)

// fakeServer answers on UDP and TCP of one loopback port with what answer
// returns; nil is silence, several packets are sent one after the other.
type fakeServer struct {
	addr     string
	udp, tcp atomic.Int64 // questions
}

func newFakeServer(t testing.TB, answer func(q *dns.Msg, tcp bool) [][]byte) *fakeServer {
	t.Helper()
	s, err := openLoopback(emptyFile(t))
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeServer{addr: s.udp.LocalAddr().String()}
	var wg sync.WaitGroup
	t.Cleanup(func() { s.close(); wg.Wait() })
	wg.Go(func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := s.udp.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			f.udp.Add(1)
			q := new(dns.Msg)
			if q.Unpack(buf[:n]) != nil {
				continue
			}
			for _, p := range answer(q, false) {
				s.udp.WriteToUDPAddrPort(p, from)
			}
		}
	})
	wg.Go(func() {
		for {
			c, err := s.tcp.Accept()
			if err != nil {
				return
			}
			f.tcp.Add(1)
			wg.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(10 * time.Second))
				var size [2]byte
				if _, err := io.ReadFull(c, size[:]); err != nil {
					return
				}
				b := make([]byte, binary.BigEndian.Uint16(size[:]))
				io.ReadFull(c, b)
				q := new(dns.Msg)
				if q.Unpack(b) != nil {
					return
				}
				for _, p := range answer(q, true) {
					c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(p))), p...))
				}
			})
		}
	})
	return f
}

func emptyFile(t testing.TB) string {
	path := filepath.Join(t.TempDir(), "port")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// says is an honest answer with one address.
func says(address string) func(q *dns.Msg, tcp bool) [][]byte {
	return func(q *dns.Msg, _ bool) [][]byte { return [][]byte{answerWith(q, address)} }
}

func answerWith(q *dns.Msg, address string) []byte {
	m := new(dns.Msg).SetReply(q)
	m.Answer = []dns.RR{&dns.A{
		Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET, Ttl: 60},
		A:   net.ParseIP(address),
	}}
	return packed(m)
}

func packed(m *dns.Msg) []byte {
	m.Compress = true
	b, err := m.Pack()
	if err != nil {
		panic(err)
	}
	return b
}

func silent(*dns.Msg, bool) [][]byte { return nil }

func rcode(code int) func(q *dns.Msg, tcp bool) [][]byte {
	return func(q *dns.Msg, _ bool) [][]byte { return [][]byte{packed(new(dns.Msg).SetRcode(q, code))} }
}

func TestExchange(t *testing.T) {
	lie := func(change func(m *dns.Msg)) func(q *dns.Msg, tcp bool) [][]byte {
		return func(q *dns.Msg, tcp bool) [][]byte {
			m := q.Copy()
			change(m)
			return [][]byte{answerWith(m, "6.6.6.6"), answerWith(q, "1.1.1.1")}
		}
	}
	for _, x := range []struct {
		name    string
		servers []func(q *dns.Msg, tcp bool) [][]byte
		tcp     bool
		want    string
	}{
		{name: "honest", servers: []func(*dns.Msg, bool) [][]byte{says("1.1.1.1")}, want: "NOERROR 1.1.1.1"},
		{name: "silent first", servers: []func(*dns.Msg, bool) [][]byte{silent, says("1.1.1.1")}, want: "NOERROR 1.1.1.1"},
		{name: "failing first", servers: []func(*dns.Msg, bool) [][]byte{rcode(dns.RcodeServerFailure), says("1.1.1.1")}, want: "NOERROR 1.1.1.1"},
		{name: "refusing first", servers: []func(*dns.Msg, bool) [][]byte{rcode(dns.RcodeRefused), says("1.1.1.1")}, want: "NOERROR 1.1.1.1"},
		{name: "all refusing", servers: []func(*dns.Msg, bool) [][]byte{rcode(dns.RcodeRefused), rcode(dns.RcodeRefused)}, want: "REFUSED"},
		{name: "no such name", servers: []func(*dns.Msg, bool) [][]byte{rcode(dns.RcodeNameError), says("1.1.1.1")}, want: "NXDOMAIN"},
		{name: "wrong ID", servers: []func(*dns.Msg, bool) [][]byte{lie(func(m *dns.Msg) { m.Id++ })}, want: "NOERROR 1.1.1.1"},
		{name: "wrong name", servers: []func(*dns.Msg, bool) [][]byte{lie(func(m *dns.Msg) { m.Question[0].Name = "evil.example.com." })}, want: "NOERROR 1.1.1.1"},
		{name: "wrong type", servers: []func(*dns.Msg, bool) [][]byte{lie(func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeTXT })}, want: "NOERROR 1.1.1.1"},
		{name: "a question for an answer", servers: []func(*dns.Msg, bool) [][]byte{func(q *dns.Msg, _ bool) [][]byte {
			return [][]byte{packed(q), {1}, {}, answerWith(q, "1.1.1.1")}
		}}, want: "NOERROR 1.1.1.1"},
		{name: "spelling lost", servers: []func(*dns.Msg, bool) [][]byte{func(q *dns.Msg, tcp bool) [][]byte {
			q.Question[0].Name = strings.ToLower(q.Question[0].Name)
			if tcp {
				return [][]byte{answerWith(q, "1.1.1.1")}
			}
			return [][]byte{answerWith(q, "6.6.6.6")}
		}}, want: "NOERROR 1.1.1.1"},
		{name: "spelling lost and no TCP", servers: []func(*dns.Msg, bool) [][]byte{func(q *dns.Msg, tcp bool) [][]byte {
			if tcp {
				return [][]byte{{1}}
			}
			q.Question[0].Name = strings.ToLower(q.Question[0].Name)
			return [][]byte{answerWith(q, "1.1.1.1")}
		}}, want: "NOERROR 1.1.1.1"},
		{name: "cut, for UDP", servers: []func(*dns.Msg, bool) [][]byte{cutOverUDP}, want: "NOERROR TC"},
		{name: "cut, for TCP", servers: []func(*dns.Msg, bool) [][]byte{cutOverUDP}, tcp: true, want: "NOERROR 1.1.1.1"},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			var servers []netip.AddrPort
			for _, answer := range x.servers {
				servers = append(servers, addrPort(newFakeServer(t, answer).addr))
			}
			q := new(dns.Msg).SetQuestion("wWw.ExamPle.com.", dns.TypeA)
			packet := packed(q)
			answer, err := newExchanger("").exchange(context.Background(), servers, packet, x.tcp)
			if err != nil {
				t.Fatal(err)
			}
			r := new(dns.Msg)
			if err := r.Unpack(answer); err != nil {
				t.Fatal(err)
			}
			if got := describe(r); got != x.want || r.Id != q.Id || r.Question[0] != q.Question[0] {
				t.Errorf("got %s for %v, want %s", got, r.Question, x.want)
			}
			if len(r.Answer) > 0 && r.Answer[0].Header().Name != q.Question[0].Name {
				t.Errorf("the answer is about %s", r.Answer[0].Header().Name)
			}
		})
	}
}

func cutOverUDP(q *dns.Msg, tcp bool) [][]byte {
	if tcp {
		return [][]byte{answerWith(q, "1.1.1.1")}
	}
	m := new(dns.Msg).SetReply(q)
	m.Truncated = true
	return [][]byte{packed(m)}
}

func TestExchangeNobody(t *testing.T) {
	t.Parallel()
	x := newExchanger(filepath.Join(t.TempDir(), "missing"))
	packet := packed(new(dns.Msg).SetQuestion("example.com.", dns.TypeA))
	if _, err := x.exchange(context.Background(), nil, packet, false); err != errNoAnswer {
		t.Errorf("without servers: %v", err)
	}
	began := time.Now()
	s := newFakeServer(t, silent)
	if _, err := x.exchange(context.Background(), []netip.AddrPort{addrPort(s.addr)}, packet, false); err != errNoAnswer {
		t.Errorf("of a silent server: %v", err)
	}
	if d := time.Since(began); d > firstTry+secondTry+time.Second || s.udp.Load() < 2 {
		t.Errorf("gave up after %v and %d tries", d, s.udp.Load())
	}
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(20*time.Millisecond, cancel)
	began = time.Now()
	if _, err := x.exchange(ctx, []netip.AddrPort{addrPort(s.addr)}, packet, false); err == nil || time.Since(began) > firstTry/2 {
		t.Errorf("canceled after %v: %v", time.Since(began), err)
	}
}

// TestAvoid: only one query pays for a server that does not answer.
func TestAvoid(t *testing.T) {
	t.Parallel()
	dead, alive := newFakeServer(t, silent), newFakeServer(t, says("1.1.1.1"))
	x := newExchanger("")
	packet := packed(new(dns.Msg).SetQuestion("example.com.", dns.TypeA))
	servers := []netip.AddrPort{addrPort(dead.addr), addrPort(alive.addr)}
	for range 20 {
		if _, err := x.exchange(context.Background(), servers, packet, false); err != nil {
			t.Fatal(err)
		}
	}
	if dead.udp.Load() != 1 || alive.udp.Load() != 20 {
		t.Errorf("the dead server was asked %d times, the other %d", dead.udp.Load(), alive.udp.Load())
	}
}

func TestHostServers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	x := newExchanger(path)
	at := time.Now()
	write := func(text string) {
		t.Helper()
		at = at.Add(2 * time.Second)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, at, at); err != nil {
			t.Fatal(err)
		}
		x.mu.Lock()
		x.hostServersLocked(at)
		x.mu.Unlock()
	}
	check := func(want ...netip.AddrPort) {
		t.Helper()
		if diff := cmp.Diff(want, x.host, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
			t.Error(diff)
		}
	}
	check()
	write("# nothing\nsearch example.com\nnameserver 10.0.0.1\nnameserver bogus\nnameserver\n nameserver fd00::1\noptions ndots:2\n")
	check(addrPort("10.0.0.1:53"), addrPort("[fd00::1]:53"))
	write("nameserver 10.0.0.2\n")
	check(addrPort("10.0.0.2:53"))
}

func TestDisguise(t *testing.T) {
	m := new(dns.Msg).SetQuestion("abcdefghijklmnopqrstuvwxyz-0123456789.example.com.", dns.TypeA)
	packet := packed(m)
	question, ok := questionOf(packet)
	if !ok {
		t.Fatal("no question")
	}
	seen := map[string]bool{}
	for range 50 {
		sent := disguise(packet, question, true)
		r := new(dns.Msg)
		if err := r.Unpack(sent); err != nil || canonical(r.Question[0].Name) != canonical(m.Question[0].Name) {
			t.Fatalf("%v: %v", r, err)
		}
		seen[r.Question[0].Name] = true
		sent[2] |= 0x80
		if verify(sent, sent, len(question)) != nil {
			t.Error("its own answer is refused")
		}
		sent2 := append([]byte(nil), sent...)
		sent2[13] ^= 0x20
		if verify(sent2, sent, len(question)) != errSpelling {
			t.Error("another spelling is not noticed")
		}
		sent2[13] = 'z'
		if verify(sent2, sent, len(question)) != errMismatch {
			t.Error("another name is not noticed")
		}
	}
	if len(seen) < 49 {
		t.Errorf("only %d spellings in 50", len(seen))
	}
}

func TestCut(t *testing.T) {
	q := new(dns.Msg).SetQuestion("example.com.", dns.TypeA)
	q.SetEdns0(4096, true)
	b := answerWith(q, "1.1.1.1")
	out := cut(append([]byte(nil), b...), 20)
	r := new(dns.Msg)
	if err := r.Unpack(out); err != nil || !r.Truncated || len(r.Answer) != 0 || len(r.Question) != 1 {
		t.Errorf("%v: %v", r, err)
	}
	if got := cut(b, len(b)); len(got) != len(b) {
		t.Error("an answer that fits was cut")
	}
}
