package agent

import (
	"flag"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"wherry.dev/spec"
)

var update = flag.Bool("update", false, "rewrite golden files")

// dualNetwork is one where the host has an address of each family.
type dualNetwork struct{ Network }

func (dualNetwork) Gateways(n spec.NetworkID) ([]netip.Addr, error) {
	if n != "1-1" {
		return nil, spec.Unavailablef("network %s is not on this node yet", n)
	}
	return []netip.Addr{netip.MustParseAddr("10.0.1.254"), netip.MustParseAddr("fd00:1::1")}, nil
}

func TestEtcFiles(t *testing.T) {
	host := hostInfo{
		hostname: "alpha",
		hosts:    "127.0.0.1 localhost\n192.0.2.1 alpha\n",
		resolv:   "# local\nnameserver 192.0.2.53\nsearch example.com lan\noptions timeout:1\n",
	}
	base := spec.Task{ID: "1-42", Stack: "shop", Service: "web", Slot: 1}
	two := base
	two.Addresses = []spec.Address{{Network: "1-1", IP: "10.0.1.7/24", IP6: "fd00:1::7/64"}, {Network: "1-2", IP: "10.0.2.7/24"}}
	a := &Agent{c: Config{Network: dualNetwork{}}}
	cases := []struct {
		name string
		task spec.Task
		tmpl spec.Template
	}{
		{"plain", two, spec.Template{}},
		{"named", two, spec.Template{Hostname: "shop", Domainname: "example.org", DNSSearch: []string{"svc.example.org"}, DNSOptions: []string{"timeout:3"}}},
		{"own ndots", two, spec.Template{DNSOptions: []string{"ndots:2"}, DNS: []string{"192.0.2.99"}}},
		{"extra hosts", two, spec.Template{ExtraHosts: []string{"db=192.0.2.9", "v6=[2001:db8::1]", "host=host-gateway"}, DNSSearch: []string{"."}}},
		{"host network", base, spec.Template{NetworkMode: "host", ExtraHosts: []string{"host=host-gateway"}}},
		{"host network with servers", base, spec.Template{NetworkMode: "host", DNS: []string{"192.0.2.99"}}},
		{"no network", base, spec.Template{NetworkMode: "none"}},
	}
	out := &txtar.Archive{}
	for _, c := range cases {
		gateways, err := a.gateways(&c.task, &c.tmpl)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		f, err := compileEtc(&c.task, &c.tmpl, host, gateways)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		out.Files = append(out.Files, txtar.File{Name: c.name, Data: []byte("hostname: " + f.hostname + f.hosts + "resolv.conf:\n" + f.resolv)})
	}
	const golden = "testdata/etc.txtar"
	if *update {
		if err := os.WriteFile(golden, txtar.Format(out), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(txtar.Format(out))); diff != "" {
		t.Errorf("files differ (-want +got):\n%s", diff)
	}
	lost := base
	lost.Addresses = two.Addresses[1:]
	if _, err := a.gateways(&lost, &spec.Template{ExtraHosts: []string{"host=host-gateway"}}); spec.ErrorClass(err) != "unavailable" {
		t.Errorf("the host of a network that is not here yet: %v", err)
	}
	bad := base
	bad.Addresses = []spec.Address{{Network: "1-1", IP: "10.0.1.7/24", IP6: "fd00:1::7"}}
	if _, err := compileEtc(&bad, &spec.Template{}, host, nil); spec.ErrorClass(err) != "invalid" {
		t.Errorf("an address without prefix length: %v", err)
	}
	if _, err := compileEtc(&base, &spec.Template{ExtraHosts: []string{"broken"}}, host, nil); spec.ErrorClass(err) != "invalid" {
		t.Errorf("broken extra host: %v", err)
	}
}

// TestNameFieldsTakeEffect: tasks that differ in nothing but one of the fields
// about names get other files, or another sandbox.
func TestNameFieldsTakeEffect(t *testing.T) {
	task := spec.Task{ID: "1-42", Stack: "shop", Service: "web", Slot: 1, Addresses: []spec.Address{{Network: "1-1", IP: "10.0.1.7/24"}}}
	compile := func(tmpl spec.Template) any {
		f, err := compileEtc(&task, &tmpl, hostInfo{hostname: "alpha", resolv: "search lan\n"}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return []any{f.hostname, f.hosts, f.resolv, new(Agent).sandbox(&task, &tmpl)}
	}
	for name, pair := range map[string][2]spec.Template{
		"dns":                       {{DNS: []string{"192.0.2.1"}}, {DNS: []string{"192.0.2.2"}}},
		"dns and none":              {{DNS: []string{"192.0.2.1"}}, {}},
		"dns of the host's network": {{NetworkMode: "host", DNS: []string{"192.0.2.1"}}, {NetworkMode: "host", DNS: []string{"192.0.2.2"}}},
		"dns_search":                {{DNSSearch: []string{"a.example"}}, {DNSSearch: []string{"b.example"}}},
		"dns_search and none":       {{DNSSearch: []string{"a.example"}}, {}},
		"dns_search: a dot":         {{DNSSearch: []string{"."}}, {}},
		"dns_opt":                   {{DNSOptions: []string{"timeout:1"}}, {DNSOptions: []string{"timeout:2"}}},
		"dns_opt and none":          {{DNSOptions: []string{"timeout:1"}}, {}},
		"extra_hosts":               {{ExtraHosts: []string{"a=192.0.2.1"}}, {ExtraHosts: []string{"a=host-gateway"}}},
		"extra_hosts of IPv6":       {{ExtraHosts: []string{"a=2001:db8::1"}}, {ExtraHosts: []string{"a=2001:db8::2"}}},
		"hostname":                  {{Hostname: "a"}, {Hostname: "b"}},
		"domainname":                {{Domainname: "a.example"}, {Domainname: "b.example"}},
	} {
		if cmp.Equal(compile(pair[0]), compile(pair[1])) {
			t.Errorf("%s has no effect: %v", name, compile(pair[0]))
		}
	}
}

func TestHostname(t *testing.T) {
	long := strings.Repeat("x", 80)
	for service, want := range map[string]string{"web": "web-1-42", "a_b.c": "a-b-c-1-42", "_": "1-42", long: strings.Repeat("x", 58) + "-1-42"} {
		if got := hostname(&spec.Task{ID: "1-42", Service: service}, &spec.Template{}, hostInfo{}); got != want || len(got) > 63 {
			t.Errorf("%s: %q, want %q", service, got, want)
		}
	}
}
