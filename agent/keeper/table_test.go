package keeper

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"wherry.dev/spec"
)

func testView() *view {
	zs := newZones([]spec.NameTable{
		{Network: "1-1", Names: []spec.Name{
			name("web", "10.0.1.2", "10.0.1.3", "fd00::2"),
			name("tasks.web", "10.0.1.2", "10.0.1.3", "fd00::2"),
			name("shop_web", "10.0.1.2", "10.0.1.3"),
			name("shop.web.1", "10.0.1.2"),
			name("shop.web.2", "10.0.1.3"),
			name("db", "10.0.1.9/24"),
			name("shop_db", "10.0.1.9"),
			name("shadow", "10.0.1.7"),
			name("api.example.com"),
			name("Cache", "10.0.1.8", "bogus"),
			name("six", "fd00::6"), name("six.example.com", "fd00::6/64"), name("four.example.com", "10.0.1.4"),
		}},
		{Network: "1-2", Names: []spec.Name{
			name("shadow", "10.0.2.7"), name("other", "10.0.2.1"), name("api.example.com", "10.0.2.2"),
		}},
		{Network: "1-3", Names: []spec.Name{name("foreign", "10.0.3.1")}},
	})
	return zs.view(resolverOf("1-7", "/x"))
}

func TestAnswer(t *testing.T) {
	v := testView()
	many := make([]string, 600)
	for i := range many {
		many[i] = fmt.Sprintf("10.9.%d.%d", i/250, i%250)
	}
	v.zones = append(v.zones, newZone(spec.NameTable{Names: []spec.Name{name("many", many...)}}))
	for _, x := range []struct{ question, want string }{
		{"web. A", "NOERROR 10.0.1.2 10.0.1.3"},
		{"WEB. A", "NOERROR 10.0.1.2 10.0.1.3"},
		{"web. AAAA", "NOERROR fd00::2"},
		{"web. ANY", "NOERROR 10.0.1.2 10.0.1.3 fd00::2"},
		{"db. A", "NOERROR 10.0.1.9"},
		{"db. AAAA", "NOERROR"}, // NXDOMAIN would make musl give up on the name
		{"six. AAAA", "NOERROR fd00::6"},
		{"six. A", "NOERROR"},
		{"six.example.com. A", "NOERROR"}, // never asked outside
		{"four.example.com. AAAA", "NOERROR"},
		{"db. MX", "NOERROR"},
		{"db. TXT", "NOERROR"},
		{"cache. A", "NOERROR 10.0.1.8"},
		{"tasks.web. A", "NOERROR 10.0.1.2 10.0.1.3"},
		{"shop_web. A", "NOERROR 10.0.1.2 10.0.1.3"},
		{"shop.web.1. A", "NOERROR 10.0.1.2"},
		{"shadow. A", "NOERROR 10.0.1.7"},
		{"other. A", "NOERROR 10.0.2.1"},
		{"api.example.com. A", "NOERROR 10.0.2.2"},
		{"foreign. A", "NXDOMAIN"},
		{"nothing. A", "NXDOMAIN"},
		{"nothing. TXT", "NXDOMAIN"},
		{"tasks.nothing. A", "NXDOMAIN"},
		{"shop.web.3. A", "NXDOMAIN"},
		{"10.0.0.1. A", "NXDOMAIN"},
		{"com. NS", "forward"},
		{"com. DS", "forward"},
		{". NS", "forward"},
		{"example.com. A", "forward"},
		{"web.example.com. A", "forward"},
		{"localhost. A", "NOERROR 127.0.0.1"},
		{"x.localhost. AAAA", "NOERROR ::1"},
		{"2.1.0.10.in-addr.arpa. PTR", "NOERROR shop.web.1."},
		{"9.1.0.10.in-addr.arpa. PTR", "NOERROR db."},
		{"9.1.0.10.IN-ADDR.ARPA. PTR", "NOERROR db."},
		{"9.1.0.10.in-addr.arpa. A", "NOERROR"},
		{"99.1.0.10.in-addr.arpa. PTR", "forward"},
		{"1.0.10.in-addr.arpa. PTR", "forward"},
		{"2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.d.f.ip6.arpa. PTR", "NOERROR web."},
		{"web. AXFR", "REFUSED"},
		{"many. A", "cut"},
	} {
		t.Run(x.question, func(t *testing.T) {
			q, qtype, _ := strings.Cut(x.question, " ")
			m := new(dns.Msg).SetQuestion(q, dns.StringToType[qtype])
			m.SetEdns0(1232, false)
			packet, err := m.Pack()
			if err != nil {
				t.Fatal(err)
			}
			out, limit, what := v.respond(packet, nil, false)
			got := "forward"
			if what == reply {
				r := new(dns.Msg)
				if err := r.Unpack(out); err != nil {
					t.Fatal(err)
				}
				if got = describe(r); r.Truncated && len(r.Answer) > 50 {
					got = "cut"
				}
				if r.Id != m.Id || r.IsEdns0() == nil || r.Question[0].Name != q {
					t.Errorf("the answer does not fit the question: %v", r)
				}
			}
			if got != x.want || limit != 1232 || len(out) > limit {
				t.Errorf("got %s (%d of %d bytes), want %s", got, len(out), limit, x.want)
			}
		})
	}
}

func TestAnswerWhole(t *testing.T) {
	var many []string
	for i := range 3000 {
		many = append(many, fmt.Sprintf("10.9.%d.%d", i/250, i%250))
	}
	v := &view{zones: []*zone{newZone(spec.NameTable{Names: []spec.Name{name("many", many...)}})}}
	packet, _ := new(dns.Msg).SetQuestion("many.", dns.TypeA).Pack()
	out, _, _ := v.respond(packet, nil, true)
	r := new(dns.Msg)
	if err := r.Unpack(out); err != nil || len(r.Answer) != maxAddresses || r.Truncated {
		t.Errorf("over TCP came %d addresses, cut %v: %v", len(r.Answer), r.Truncated, err)
	}
	if r.Answer[0].Header().Ttl != 0 {
		t.Errorf("an answer may be kept for %d s", r.Answer[0].Header().Ttl)
	}
}

func TestBadPackets(t *testing.T) {
	v := testView()
	good := new(dns.Msg).SetQuestion("web.", dns.TypeA)
	for _, x := range []struct {
		name   string
		change func(*dns.Msg) []byte
		want   string
	}{
		{"answer", func(m *dns.Msg) []byte { m.Response = true; return nil }, "drop"},
		{"short", func(m *dns.Msg) []byte { return []byte{1, 2, 3} }, "drop"},
		{"empty", func(m *dns.Msg) []byte { return []byte{} }, "drop"},
		{"notify", func(m *dns.Msg) []byte { m.Opcode = dns.OpcodeNotify; return nil }, "NOTIMP"},
		{"two questions", func(m *dns.Msg) []byte { m.Question = append(m.Question, m.Question[0]); return nil }, "FORMERR"},
		{"no question", func(m *dns.Msg) []byte { m.Question = nil; return nil }, "FORMERR"},
		{"chaos", func(m *dns.Msg) []byte { m.Question[0].Qclass = dns.ClassCHAOS; return nil }, "REFUSED"},
		{"future EDNS", func(m *dns.Msg) []byte { m.SetEdns0(4096, false); m.IsEdns0().SetVersion(3); return nil }, "BADVERS"},
		{"loop", func(m *dns.Msg) []byte {
			return []byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1}
		}, "FORMERR"},
		{"cut short", func(m *dns.Msg) []byte { return []byte{0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 3, 'w'} }, "FORMERR"},
	} {
		t.Run(x.name, func(t *testing.T) {
			m := good.Copy()
			packet := x.change(m)
			if packet == nil {
				packet, _ = m.Pack()
			}
			out, _, what := v.respond(packet, nil, false)
			got := map[verdict]string{drop: "drop", forward: "forward"}[what]
			if what == reply {
				r := new(dns.Msg)
				if err := r.Unpack(out); err != nil {
					t.Fatal(err)
				}
				if got = dns.RcodeToString[r.Rcode]; got == "BADSIG" { // the same number
					got = "BADVERS"
				}
			}
			if got != x.want {
				t.Errorf("got %s, want %s", got, x.want)
			}
		})
	}
}

func TestShuffled(t *testing.T) {
	v := testView()
	seen := map[string]bool{}
	for range 200 {
		packet, _ := new(dns.Msg).SetQuestion("web.", dns.TypeA).Pack()
		out, _, _ := v.respond(packet, nil, false)
		r := new(dns.Msg)
		r.Unpack(out)
		seen[r.Answer[0].(*dns.A).A.String()] = true
	}
	if len(seen) != 2 {
		t.Errorf("200 answers began with %v only", seen)
	}
}

func TestView(t *testing.T) {
	v := zones{}.view(spec.Resolver{Networks: []spec.NetworkID{"1-9"}, Upstream: []string{"10.0.0.1", "10.0.0.2:5353", "fd00::1", "[fd00::2]:53", "nonsense"}})
	var got []string
	for _, a := range v.upstream {
		got = append(got, a.String())
	}
	if diff := cmp.Diff([]string{"10.0.0.1:53", "10.0.0.2:5353", "[fd00::1]:53", "[fd00::2]:53"}, got); diff != "" {
		t.Error(diff)
	}
	if _, _, known := v.lookup("web"); known {
		t.Error("a network without a table knows a name")
	}
}

func TestReverseAddress(t *testing.T) {
	for _, s := range []string{"10.1.2.3", "fd00:1234::abcd", "0.0.0.0", "::1"} {
		want := netip.MustParseAddr(s)
		arpa, err := dns.ReverseAddr(s)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := reverseAddress(canonical(arpa)); !ok || got != want {
			t.Errorf("%s: got %v, want %v", arpa, got, want)
		}
	}
}

// FuzzRespond: no packet crashes the server, and every answer is well-formed,
// within its limit and under the ID of the question.
func FuzzRespond(f *testing.F) {
	for _, n := range []string{"web.", "example.com.", "2.1.0.10.in-addr.arpa.", "_http._tcp.tasks.web."} {
		p, _ := new(dns.Msg).SetQuestion(n, dns.TypeA).SetEdns0(1232, true).Pack()
		f.Add(p, false)
		f.Add(p, true)
	}
	v := servicesView()
	f.Fuzz(func(t *testing.T, packet []byte, tcp bool) {
		if len(packet) > 65535 {
			return
		}
		buf := make([]byte, maxUDP+1)
		out, limit, what := v.respond(packet, buf, tcp)
		switch what {
		case reply:
			r := new(dns.Msg)
			if err := r.Unpack(out); err != nil {
				t.Fatalf("answer %x: %v", out, err)
			}
			if !r.Response || out[0] != packet[0] || out[1] != packet[1] || !tcp && len(out) > limit {
				t.Fatalf("answer %v does not fit", r)
			}
		case forward:
			if question, ok := questionOf(packet); ok {
				sent := disguise(packet, question, true)
				sent[2] |= 0x80
				if err := verify(sent, sent, len(question)); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}

// TestOwnNames: of a name that several stacks have, on one network or on two,
// a task gets what its own stack calls so, or what all others do.
func TestOwnNames(t *testing.T) {
	of := func(stack string, n spec.Name) spec.Name {
		n.Stack = stack
		return n
	}
	zs := newZones([]spec.NameTable{
		{Network: "edge", Names: []spec.Name{
			of("blog", name("web", "10.0.1.2")), of("shop", name("web", "10.0.1.3")),
			of("blog", name("db", "10.0.1.4")),
			of("blog", name("api", "10.0.1.5")), of("shop", name("api")), // nothing of it is ready
			of("blog", name("blog_web", "10.0.1.2")), of("shop", name("shop_web", "10.0.1.3")),
		}},
		{Network: "shop", Names: []spec.Name{of("shop", name("db", "10.0.2.4"))}},
	})
	for _, x := range []struct{ stack, question, want string }{
		{"shop", "web. A", "NOERROR 10.0.1.3"},
		{"blog", "web. A", "NOERROR 10.0.1.2"},
		{"other", "web. A", "NOERROR 10.0.1.2 10.0.1.3"},
		{"", "web. A", "NOERROR 10.0.1.2 10.0.1.3"}, // a sandbox of an older version
		{"shop", "blog_web. A", "NOERROR 10.0.1.2"},
		{"shop", "db. A", "NOERROR 10.0.2.4"},
		{"blog", "db. A", "NOERROR 10.0.1.4"},
		{"other", "db. A", "NOERROR 10.0.1.4"},
		{"shop", "api. A", "NXDOMAIN"},
		{"other", "api. A", "NOERROR 10.0.1.5"},
		{"shop", "2.1.0.10.in-addr.arpa. PTR", "NOERROR blog_web."},
	} {
		r := spec.Resolver{Task: "1-7", Networks: []spec.NetworkID{"edge", "shop"}, Stack: x.stack}
		q, qtype, _ := strings.Cut(x.question, " ")
		if got := describe(zs.view(r).ask(t, q, dns.StringToType[qtype], 1232, false)); got != x.want {
			t.Errorf("%s asks for %s: got %q, want %q", x.stack, x.question, got, x.want)
		}
	}
}
