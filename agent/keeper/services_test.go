package keeper

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/miekg/dns"

	"wherry.dev/spec"
)

func reverseName(n string, addresses ...string) spec.Name {
	return spec.Name{Name: n, Addresses: addresses, Reverse: true}
}

// servicesView is a network with a service behind a virtual address (web), one
// without (db), one on two networks (old, which is reached by its tasks), and
// two stacks that share a name (api).
func servicesView() *view {
	zs := newZones([]spec.NameTable{
		{Network: "1-1", Names: []spec.Name{
			reverseName("web", "10.0.1.100"), reverseName("shop_web", "10.0.1.100"), name("w", "10.0.1.100"), name("w.example.com", "10.0.1.100"),
			name("tasks.web", "10.0.1.2", "10.0.1.3"), reverseName("shop.web.1", "10.0.1.2"), reverseName("shop.web.2", "10.0.1.3"),
			reverseName("shop.web.3", "10.0.1.4"), // runs and is not ready
			name("db", "10.0.1.9", "fd00::9"), name("a.b.c", "10.0.1.9"), name("tasks.db", "10.0.1.9", "fd00::9"), reverseName("shop.db.1", "10.0.1.9", "fd00::9"),
			reverseName("api", "10.0.1.101", "10.0.1.102"), reverseName("a_api", "10.0.1.101"), reverseName("b_api", "10.0.1.102"),
			name("empty.example.com", "10.0.1.2"),
			reverseName("dual", "10.0.1.110", "fd00::110"), name("tasks.dual", "10.0.1.12", "fd00::12"), reverseName("shop.dual.1", "10.0.1.12", "fd00::12"),
		}, Ports: []spec.NamedPort{
			{Name: "http", Protocol: "tcp", Port: 80, Addresses: []string{"10.0.1.2", "10.0.1.3", "10.0.1.4", "10.0.1.100", "10.0.1.101"}},
			{Name: "http", Protocol: "tcp", Port: 8080, Addresses: []string{"10.0.1.102", "bogus"}},
			{Name: "quic", Protocol: "udp", Port: 443, Addresses: []string{"10.0.1.100"}},
			{Name: "http", Protocol: "tcp", Port: 88, Addresses: []string{"10.0.1.110", "fd00::110", "10.0.1.12", "fd00::12"}},
			{Name: "sql", Protocol: "tcp", Port: 5432, Addresses: []string{"10.0.1.9", "fd00::9"}},
			{Name: "sql", Protocol: "tcp", Port: 5433, Addresses: []string{"10.0.1.9"}},
		}},
		{Network: "1-2", Names: []spec.Name{name("old", "10.0.2.1"), reverseName("shop.old.1", "10.0.2.1"), name("web", "10.0.2.9")}, Ports: []spec.NamedPort{
			{Name: "http", Protocol: "tcp", Port: 81, Addresses: []string{"10.0.2.1", "10.0.2.9"}},
			{Name: "other", Protocol: "tcp", Port: 82, Addresses: []string{"10.0.2.9"}},
		}},
	})
	return zs.view(resolverOf("1-7", "/x"))
}

// ask puts a question to v and returns the answer, nil when it is to be asked
// outside.
func (v *view) ask(t testing.TB, name string, qtype uint16, size uint16, tcp bool) *dns.Msg {
	t.Helper()
	m := new(dns.Msg).SetQuestion(name, qtype)
	if size > 0 {
		m.SetEdns0(size, false)
	}
	out, limit, what := v.respond(packed(m), nil, tcp)
	if what == forward {
		return nil
	}
	r := new(dns.Msg)
	if err := r.Unpack(out); err != nil {
		t.Fatal(err)
	}
	if !tcp && len(out) > limit {
		t.Errorf("%s: %d bytes, more than %d", name, len(out), limit)
	}
	return r
}

func TestServices(t *testing.T) {
	v := servicesView()
	for _, x := range []struct{ question, want string }{
		{"_http._tcp.web. SRV", "NOERROR web:80 | web 10.0.1.100"},
		{"_HTTP._TCP.Web. SRV", "NOERROR web:80 | web 10.0.1.100"},
		{"_http._tcp.w. SRV", "NOERROR web:80 | web 10.0.1.100"},
		{"_http._tcp.w.example.com. SRV", "NOERROR web:80 | web 10.0.1.100"},
		{"_quic._udp.web. SRV", "NOERROR web:443 | web 10.0.1.100"},
		{"_http._tcp.tasks.web. SRV", "NOERROR shop.web.1:80 shop.web.2:80 | shop.web.1 10.0.1.2 shop.web.2 10.0.1.3"},
		{"_http._tcp.shop.web.3. SRV", "NOERROR shop.web.3:80 | shop.web.3 10.0.1.4"},
		{"_sql._tcp.db. SRV", "NOERROR shop.db.1:5432 shop.db.1:5433 | shop.db.1 10.0.1.9 shop.db.1 fd00::9"},
		{"_http._tcp.dual. SRV", "NOERROR dual:88 | dual 10.0.1.110 dual fd00::110"},
		{"_http._tcp.tasks.dual. SRV", "NOERROR shop.dual.1:88 | shop.dual.1 10.0.1.12 shop.dual.1 fd00::12"},
		{"_http._tcp.api. SRV", "NOERROR a_api:80 b_api:8080 | a_api 10.0.1.101 b_api 10.0.1.102"},
		{"_http._tcp.old. SRV", "NOERROR shop.old.1:81 | shop.old.1 10.0.2.1"},
		{"_http._tcp.web. ANY", "NOERROR web:80 | web 10.0.1.100"},
		{"_http._tcp.web. A", "NOERROR"},
		{"_http._tcp.web. AAAA", "NOERROR"},
		{"_http._udp.web. SRV", "NXDOMAIN"},
		{"_other._tcp.web. SRV", "NXDOMAIN"}, // of the second network, where web is another one
		{"_http._tcp.nothing. SRV", "NXDOMAIN"},
		{"_http._tcp.tasks.nothing. SRV", "NXDOMAIN"},
		{"_http._tcp.shop.web.9. SRV", "NXDOMAIN"},
		{"_other._tcp.empty.example.com. SRV", "forward"},
		{"_http._tcp.example.com. SRV", "forward"},
		{"_http._tcp. SRV", "forward"},
		{"_dmarc.example.com. TXT", "forward"},
		{"web. SRV", "NOERROR"},
	} {
		q, qtype, _ := strings.Cut(x.question, " ")
		if got := describeServices(v.ask(t, q, dns.StringToType[qtype], 1232, false)); got != x.want {
			t.Errorf("%s: got %s, want %s", x.question, got, x.want)
		}
	}
}

func describeServices(r *dns.Msg) string {
	if r == nil {
		return "forward"
	}
	var answers, extra []string
	for _, rr := range r.Answer {
		s := rr.(*dns.SRV)
		answers = append(answers, fmt.Sprintf("%s:%d", strings.TrimSuffix(s.Target, "."), s.Port))
	}
	for _, rr := range r.Extra {
		name := strings.TrimSuffix(rr.Header().Name, ".")
		switch x := rr.(type) {
		case *dns.A:
			extra = append(extra, name+" "+x.A.String())
		case *dns.AAAA:
			extra = append(extra, name+" "+x.AAAA.String())
		}
	}
	slices.Sort(answers)
	slices.Sort(extra)
	out := append([]string{dns.RcodeToString[r.Rcode]}, answers...)
	if len(extra) > 0 {
		out = append(append(out, "|"), extra...)
	}
	if r.Truncated {
		out = append(out, "TC")
	}
	return strings.Join(out, " ")
}

// TestReverse: an address leads to what its task or service is called, never to
// a further name.
func TestReverse(t *testing.T) {
	v := servicesView()
	got := map[string]string{}
	for _, ip := range []string{"10.0.1.100", "10.0.1.101", "10.0.1.2", "10.0.1.9", "fd00::9", "fd00::110", "fd00::12"} {
		arpa, err := dns.ReverseAddr(ip)
		if err != nil {
			t.Fatal(err)
		}
		got[ip] = describe(v.ask(t, arpa, dns.TypePTR, 0, false))
	}
	want := map[string]string{
		"10.0.1.100": "NOERROR web.", "10.0.1.101": "NOERROR a_api.", "10.0.1.2": "NOERROR shop.web.1.",
		"10.0.1.9": "NOERROR shop.db.1.", "fd00::9": "NOERROR shop.db.1.",
		"fd00::110": "NOERROR dual.", "fd00::12": "NOERROR shop.dual.1.",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// TestManyServices: addresses beside the answer go first when there is no room,
// and then the client is told to come over TCP, which carries the answers
// even of the longest names.
func TestManyServices(t *testing.T) {
	long := strings.Repeat(strings.Repeat("x", 60)+".", 3)
	table := spec.NameTable{Network: "1-1", Names: []spec.Name{name("few"), name("many")}, Ports: []spec.NamedPort{{Name: "http", Protocol: "tcp", Port: 80}}}
	for i := range 1000 {
		ip := fmt.Sprintf("10.9.%d.%d", i/250, i%250)
		if i < 8 {
			table.Names[0].Addresses = append(table.Names[0].Addresses, ip)
		}
		table.Names[1].Addresses = append(table.Names[1].Addresses, ip)
		table.Names = append(table.Names, reverseName(fmt.Sprintf("%sshop.web.%d", long, i), ip))
		table.Ports[0].Addresses = append(table.Ports[0].Addresses, ip)
	}
	v := newZones([]spec.NameTable{table}).view(resolverOf("1-7", "/x"))
	for _, x := range []struct {
		name           string
		size           uint16
		tcp            bool
		answers, extra int
		cut            bool
	}{
		{"few", 4096, false, 8, 8, false},
		{"few", 1850, false, 8, 0, false},
		{"few", 0, false, 2, 0, true},
		{"few", 0, true, 8, 8, false},
		{"many", 0, true, maxServices, 0, false},
	} {
		r := v.ask(t, "_http._tcp."+x.name+".", dns.TypeSRV, x.size, x.tcp)
		extra := len(r.Extra)
		if r.IsEdns0() != nil {
			extra--
		}
		if len(r.Answer) != x.answers || extra != x.extra || r.Truncated != x.cut {
			t.Errorf("%s in %d bytes, over TCP %v: %d answers, %d beside, cut %v, want %d, %d, %v", x.name, x.size, x.tcp,
				len(r.Answer), extra, r.Truncated, x.answers, x.extra, x.cut)
		}
	}
}

// TestManyAddresses: what an answer holds is what fits in what the client
// takes, within our own limits; over TCP it is all.
func TestManyAddresses(t *testing.T) {
	var ips []string
	for i := range 1000 {
		ips = append(ips, fmt.Sprintf("10.9.%d.%d", i/250, i%250))
	}
	v := newZones(tablesOf(name("many", ips...))).view(resolverOf("1-7", "/x"))
	for _, x := range []struct {
		size uint16
		want int
	}{{0, 30}, {100, 29}, {512, 29}, {1232, 74}, {4096, 253}, {65535, 253}} {
		r := v.ask(t, "many.", dns.TypeA, x.size, false)
		if !r.Truncated || len(r.Answer) != x.want {
			t.Errorf("%d bytes: %d addresses, cut %v, want %d", x.size, len(r.Answer), r.Truncated, x.want)
		}
		if r := v.ask(t, "many.", dns.TypeA, x.size, true); r.Truncated || len(r.Answer) != 1000 {
			t.Errorf("over TCP: %d addresses, cut %v", len(r.Answer), r.Truncated)
		}
	}
}
