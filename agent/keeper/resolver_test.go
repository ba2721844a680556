package keeper

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

// startResolver serves v on loopback within the test.
func startResolver(t testing.TB, v *view) (string, *resolver, *counters) {
	t.Helper()
	s, err := openLoopback(emptyFile(t))
	if err != nil {
		t.Fatal(err)
	}
	c := new(counters)
	r := newResolver(spec.Resolver{Task: "1-1"}, s, v, newExchanger("/dev/null"), c)
	r.serve()
	t.Cleanup(r.close)
	return s.udp.LocalAddr().String(), r, c
}

func TestResolver(t *testing.T) {
	up := newFakeServer(t, says("1.1.1.1"))
	v := testView()
	v.upstream = append(v.upstream, addrPort(up.addr))
	server, _, _ := startResolver(t, v)
	for _, network := range []string{"udp", "tcp"} {
		for _, x := range []struct{ name, want string }{
			{"web", "NOERROR 10.0.1.2 10.0.1.3"}, {"example.com", "NOERROR 1.1.1.1"}, {"nothing", "NXDOMAIN"},
		} {
			if got, err := lookup(server, network, x.name, dns.TypeA); got != x.want {
				t.Errorf("%s over %s: got %s, %v, want %s", x.name, network, got, err, x.want)
			}
		}
	}
	// A name of the cluster never leaves it.
	if n := up.udp.Load(); n != 2 {
		t.Errorf("the upstream server was asked %d times", n)
	}
}

// TestOutside: with a first server that is silent and a second one whose answer
// is too long for UDP, names outside resolve, over TCP as a whole, and which
// names are outside is told by their form: a name of the cluster with a domain
// of a search list is one.
func TestOutside(t *testing.T) {
	dead := newFakeServer(t, silent)
	up := newFakeServer(t, func(q *dns.Msg, tcp bool) [][]byte {
		m := new(dns.Msg).SetReply(q)
		for i := range 100 {
			m.Answer = append(m.Answer, &dns.A{Hdr: header(q.Question[0].Name, dns.TypeA), A: net.IPv4(1, 1, 1, byte(i))})
		}
		if strings.EqualFold(q.Question[0].Name, "short.example.com.") {
			m.Answer = m.Answer[:1]
		}
		if !tcp {
			m.Truncate(dns.MinMsgSize)
		}
		return [][]byte{packed(m)}
	})
	v := testView()
	v.upstream = append(v.upstream, addrPort(dead.addr), addrPort(up.addr))
	server, _, _ := startResolver(t, v)
	began := time.Now()
	if got, err := lookup(server, "udp", "short.example.com", dns.TypeA); got != "NOERROR 1.1.1.0" {
		t.Errorf("got %s, %v", got, err)
	}
	if d := time.Since(began); d < firstTry/2 {
		t.Errorf("the second server was asked after %v", d)
	}
	for _, name := range []string{"web.example.com", "shop.web.1.example.com", "tasks.web.example.com", "db.lan"} {
		if got, err := lookup(server, "udp", name, dns.TypeA); !strings.HasSuffix(got, " TC") {
			t.Errorf("%s over UDP: got %s, %v, want an answer that is cut", name, got, err)
		}
		if got, err := lookup(server, "tcp", name, dns.TypeA); strings.Count(got, " 1.1.1.") != 100 || strings.HasSuffix(got, "TC") {
			t.Errorf("%s over TCP: got %s, %v, want 100 addresses", name, got, err)
		}
	}
	if n := dead.udp.Load(); n != 1 {
		t.Errorf("the silent server was asked %d times, want once", n)
	}
	asked := up.udp.Load()
	for _, name := range []string{"web", "WEB.", "tasks.web", "tasks.nothing", "shop.web.9", "nothing", "_http._tcp.nothing"} {
		if got, err := lookup(server, "udp", name, dns.TypeA); strings.Contains(got, "1.1.1.") || err != nil {
			t.Errorf("%s: got %s, %v", name, got, err)
		}
	}
	if n := up.udp.Load(); n != asked {
		t.Errorf("names of the cluster were asked outside %d times", n-asked)
	}
}

// TestIsolated: what has no way out is not told to the host's servers either.
func TestIsolated(t *testing.T) {
	up := newFakeServer(t, says("1.1.1.1"))
	v := testView()
	v.isolated = true
	server, r, _ := startResolver(t, v)
	r.exchange.host, r.exchange.checked = append(r.exchange.host, addrPort(up.addr)), time.Now().Add(time.Hour)
	for name, want := range map[string]string{"web": "NOERROR 10.0.1.2 10.0.1.3", "nothing": "NXDOMAIN", "example.com": "SERVFAIL"} {
		if got, err := lookup(server, "udp", name, dns.TypeA); got != want {
			t.Errorf("%s: got %s, %v, want %s", name, got, err, want)
		}
	}
	if n := up.udp.Load(); n != 0 {
		t.Errorf("a server of the host was asked %d times", n)
	}
}

// flood sends n different questions from one socket at once and counts the
// answers by code.
func flood(t testing.TB, server string, n int, name func(i int) string, patience time.Duration) map[string]int {
	t.Helper()
	c, err := net.Dial("udp", server)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20) != nil {
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 16<<20)
		}
	})
	for i := range n {
		m := new(dns.Msg).SetQuestion(name(i), dns.TypeA)
		m.Id = uint16(i)
		if _, err := c.Write(packed(m)); err != nil {
			t.Fatal(err)
		}
	}
	got := map[string]int{}
	c.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 65536)
	for range n {
		k, err := c.Read(buf)
		if err != nil {
			break
		}
		r := new(dns.Msg)
		if err := r.Unpack(buf[:k]); err != nil {
			t.Fatal(err)
		}
		got[dns.RcodeToString[r.Rcode]]++
	}
	return got
}

// TestSlowUpstream: ten thousand lookups at once of names of the cluster are
// all answered while more than may be under way wait for a server that is
// silent.
func TestSlowUpstream(t *testing.T) {
	const lost = maxForwards + 500
	up := newFakeServer(t, silent)
	v := testView()
	v.upstream = append(v.upstream, addrPort(up.addr))
	server, r, c := startResolver(t, v)
	var wg sync.WaitGroup
	wg.Go(func() {
		got := flood(t, server, lost, func(i int) string { return fmt.Sprintf("n%d.example.com.", i) }, time.Minute)
		if got["SERVFAIL"] != lost {
			t.Errorf("of the silent server: %v", got)
		}
	})
	eventually(t, "many queries wait", func() bool { return r.forwards.count() >= maxForwards/2 })
	began := time.Now()
	got := flood(t, server, 10_000, func(int) string { return "web." }, time.Minute)
	if got["NOERROR"] != 10_000 {
		t.Errorf("of the cluster's names: %v", got)
	}
	t.Logf("10,000 answers in %v, %d queries had failed until then", time.Since(began), c.failed.Load())
	wg.Wait()
	if n := c.failed.Load(); n != lost {
		t.Errorf("%d queries failed", n)
	}
}

// TestFull: names of the cluster are answered although no query outside ever
// ends and no more are taken, which is told at once.
func TestFull(t *testing.T) {
	server, r, _ := startResolver(t, testView())
	release := make(chan struct{})
	defer close(release)
	for range maxForwards + maxWaiting {
		r.forwards.do(&r.work, func() { <-release })
	}
	for name, want := range map[string]string{"web": "NOERROR 10.0.1.2 10.0.1.3", "nothing": "NXDOMAIN", "example.com": "SERVFAIL"} {
		for _, network := range []string{"udp", "tcp"} {
			if got, err := lookup(server, network, name, dns.TypeA); got != want {
				t.Errorf("%s over %s: got %s, %v, want %s", name, network, got, err, want)
			}
		}
	}
}

// TestBurst: more lookups at once of names outside than may be under way wait
// for their turn, and all are answered.
func TestBurst(t *testing.T) {
	const clients, each = 50, 2 * maxForwards / 50
	v := testView()
	v.upstream = append(v.upstream, addrPort(newSlowServer(t, 100*time.Millisecond)))
	server, _, c := startResolver(t, v)
	var questions [][]byte
	for i := range 100 {
		questions = append(questions, packed(new(dns.Msg).SetQuestion(fmt.Sprintf("n%d.example.com.", i), dns.TypeA)))
	}
	var wg sync.WaitGroup
	var slow atomic.Bool
	for range clients {
		c, err := net.Dial("udp", server)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		wg.Go(func() {
			_, err := askMany(c, questions, each, each)
			if errors.Is(err, errSlow) {
				slow.Store(true)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if slow.Load() && !t.Failed() {
		t.Skipf("the machine is too slow for %d queries outside in %v", clients*each, allTries)
	}
	t.Logf("%d were asked outside, %d failed", c.forwarded.Load(), c.failed.Load())
}

// newSlowServer answers every question over UDP after a time, many at once.
func newSlowServer(t testing.TB, delay time.Duration) string {
	t.Helper()
	s, err := openLoopback(emptyFile(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.close)
	go func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := s.udp.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			q := new(dns.Msg)
			if q.Unpack(buf[:n]) != nil {
				continue
			}
			answer := answerWith(q, "1.1.1.1")
			time.AfterFunc(delay, func() { s.udp.WriteToUDPAddrPort(answer, from) })
		}
	}()
	return s.udp.LocalAddr().String()
}

// TestForwards: what is beyond the limits is refused, and everything else run
// in its turn.
func TestForwards(t *testing.T) {
	var q forwards
	var wg sync.WaitGroup
	var ran atomic.Int32
	release := make(chan struct{})
	f := func() { <-release; ran.Add(1) }
	for i := range maxForwards + maxWaiting {
		if !q.do(&wg, f) {
			t.Fatalf("number %d was refused", i)
		}
	}
	if q.do(&wg, f) {
		t.Error("one too many was taken")
	}
	close(release)
	wg.Wait()
	if n := ran.Load(); n != maxForwards+maxWaiting || q.count() != 0 || q.waiting != nil {
		t.Errorf("%d were run, %d are left", n, q.count())
	}
}

func TestPipeline(t *testing.T) {
	slow := newFakeServer(t, func(q *dns.Msg, tcp bool) [][]byte {
		return [][]byte{answerWith(q, "1.1.1.1")}
	})
	v := testView()
	v.upstream = append(v.upstream, addrPort(slow.addr))
	server, _, _ := startResolver(t, v)
	c, err := net.Dial("tcp", server)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	const n = 500
	go func() {
		for i := range n {
			q := new(dns.Msg).SetQuestion([]string{"web.", "example.com."}[i%2], dns.TypeA)
			q.Id = uint16(i)
			b := packed(q)
			c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...))
		}
	}()
	seen := map[uint16]string{}
	for range n {
		var size [2]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(c, b); err != nil {
			t.Fatal(err)
		}
		r := new(dns.Msg)
		if err := r.Unpack(b); err != nil {
			t.Fatal(err)
		}
		seen[r.Id] = describe(r)
	}
	for i := range n {
		if want := []string{"NOERROR 10.0.1.2 10.0.1.3", "NOERROR 1.1.1.1"}[i%2]; seen[uint16(i)] != want {
			t.Fatalf("question %d: got %q, want %s", i, seen[uint16(i)], want)
		}
	}
}

// TestManyConns: connections beyond the limit are closed, and the others work.
func TestManyConns(t *testing.T) {
	server, r, _ := startResolver(t, testView())
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			c.Close()
		}
	}()
	for range maxConns {
		c, err := net.Dial("tcp", server)
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
	}
	eventually(t, "all are open", func() bool { return r.conns.Load() == maxConns })
	c, err := net.Dial("tcp", server)
	if err != nil {
		t.Fatal(err)
	}
	conns = append(conns, c)
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Errorf("one too many: %v", err)
	}
	dc := dns.Conn{Conn: conns[0]}
	dc.WriteMsg(new(dns.Msg).SetQuestion("web.", dns.TypeA))
	if m, err := dc.ReadMsg(); err != nil || len(m.Answer) != 2 {
		t.Errorf("one of the others: %v, %v", m, err)
	}
}

// TestPause: what arrives during a pause is answered after it, and what was
// begun before it during it.
func TestPause(t *testing.T) {
	release := make(chan struct{})
	up := newFakeServer(t, func(q *dns.Msg, tcp bool) [][]byte {
		<-release
		return [][]byte{answerWith(q, "1.1.1.1")}
	})
	v := testView()
	v.upstream = append(v.upstream, addrPort(up.addr))
	server, r, _ := startResolver(t, v)
	results := make(chan string, 2)
	go func() {
		got, err := lookup(server, "udp", "example.com", dns.TypeA)
		results <- fmt.Sprint(got, err)
	}()
	eventually(t, "the query is under way", func() bool { return r.forwards.count() == 1 && up.udp.Load() == 1 })
	r.pause()
	close(release)
	if got := <-results; got != "NOERROR 1.1.1.1<nil>" {
		t.Errorf("begun before the pause: %s", got)
	}
	go func() {
		got, err := lookup(server, "udp", "db", dns.TypeA)
		results <- fmt.Sprint(got, err)
	}()
	eventually(t, "the query waits", func() bool {
		n := 0
		raw, _ := r.sockets.udp.SyscallConn()
		raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
		return n > 0
	})
	r.serve()
	if got := <-results; got != "NOERROR 10.0.1.9<nil>" {
		t.Errorf("begun during the pause: %s", got)
	}
	r.pause()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	r.finish(ctx)
	if ctx.Err() != nil {
		t.Error("a resolver without open work lingers")
	}
}

func BenchmarkLookup(b *testing.B) {
	server, _, _ := startResolver(b, testView())
	b.RunParallel(func(pb *testing.PB) {
		c, err := net.Dial("udp", server)
		if err != nil {
			b.Error(err)
			return
		}
		defer c.Close()
		packet := packed(new(dns.Msg).SetQuestion("web.", dns.TypeA))
		buf := make([]byte, 512)
		for pb.Next() {
			c.Write(packet)
			c.SetReadDeadline(time.Now().Add(5 * time.Second))
			if _, err := c.Read(buf); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

func BenchmarkRespond(b *testing.B) {
	v := testView()
	packet := packed(new(dns.Msg).SetQuestion("web.", dns.TypeA))
	buf := make([]byte, maxUDP+1)
	b.ReportAllocs()
	for b.Loop() {
		v.respond(packet, buf, false)
	}
}
