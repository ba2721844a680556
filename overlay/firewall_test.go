//go:build linux

package overlay

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"wherry.dev/spec"
)

// firewalled is a host with one network between hosts, and a port of it.
func firewalled(chains []fwChain, bridged bool) fwInput {
	return fwInput{
		Chains: chains, Node: testNode, Underlay: netip.MustParseAddrPort("198.18.0.11:4477"), Device: "eth0", Egress: "eth0", Bridged4: bridged,
		Networks: []spec.HostNetwork{{
			Network: spec.Network{ID: "1-1", Subnet: "10.9.1.0/24", Gateway: "10.9.1.1", Spec: spec.NetworkSpec{Driver: spec.DriverOverlay}},
			Hosts:   []spec.NetworkHost{{Number: 2, Address: "198.18.0.12"}},
			Ports:   []spec.PublishedPort{{Port: 8080, Protocol: "tcp", Owner: "shop/web", Targets: []string{"10.9.1.2:80"}}},
		}},
	}
}

func problemsText(list []FirewallProblem) string {
	var b strings.Builder
	for _, p := range list {
		when := "now"
		if !p.Now {
			when = "later"
		}
		fmt.Fprintf(&b, "%s, %s\n\tdrops %s\n", p.Chain, when, strings.Join(p.Drops, "\n\tdrops "))
		for _, line := range p.Add {
			fmt.Fprintf(&b, "\t+ %s\n", line)
		}
	}
	return b.String()
}

// parseChains reads what fwChain.String writes.
func parseChains(t *testing.T, text string) []fwChain {
	t.Helper()
	var out []fwChain
	for line := range strings.Lines(text) {
		words := strings.Fields(line)
		if !strings.HasPrefix(line, "\t") {
			c := fwChain{Family: words[1], Table: words[2], Name: words[3], Legacy: slices.Contains(words, "legacy")}
			if len(words) > 4 && words[4] == "hook" {
				c.Hook, c.Drop = words[5], words[7] == "drop"
			}
			out = append(out, c)
			continue
		}
		r := fwRule{}
		for _, w := range words {
			key, values, cond := strings.Cut(w, "=")
			switch {
			case cond:
				key, not := strings.CutSuffix(key, "!")
				r.If = append(r.If, fwCond{key, not, strings.Split(values, ",")})
			case r.Then == "":
				r.Then = w
			default:
				r.To = w
			}
		}
		c := &out[len(out)-1]
		c.Rules = append(c.Rules, r)
	}
	if got := chainsText(out); got != text {
		t.Fatalf("chains are not read as they are written:\n%s", cmp.Diff(text, got))
	}
	return out
}

func chainsText(chains []fwChain) string {
	var b strings.Builder
	for _, c := range chains {
		b.WriteString(c.String())
	}
	return b.String()
}

func section(ar *txtar.Archive, name string) *txtar.File {
	for i := range ar.Files {
		if ar.Files[i].Name == name {
			return &ar.Files[i]
		}
	}
	ar.Files = append(ar.Files, txtar.File{Name: name})
	return &ar.Files[len(ar.Files)-1]
}

// TestFirewalls judges rulesets that are in use: what each tool made is the
// file's first section, "chains" is how it is read from the kernel (see
// TestFirewallsAreRead), "problems" is what is said of it, also where frames of
// bridges pass the chains of IP.
func TestFirewalls(t *testing.T) {
	files, err := filepath.Glob("testdata/firewalls/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no rulesets: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			chains := parseChains(t, string(section(ar, "chains").Data))
			for name, bridged := range map[string]bool{"problems": false, "problems with bridge-nf": true} {
				got := problemsText(judgeFirewalls(firewalled(chains, bridged)))
				f := section(ar, name)
				if *update {
					f.Data = []byte(got)
				} else if diff := cmp.Diff(string(f.Data), got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", name, diff)
				}
			}
			if *update {
				slices.SortStableFunc(ar.Files[1:], func(a, b txtar.File) int { return strings.Compare(a.Name, b.Name) })
				if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestFirewallsAndWhatIsThere: what is said depends on what the host has.
func TestFirewallsAndWhatIsThere(t *testing.T) {
	const drop = "chain inet fw forward hook forward policy drop\n\tiif=wbr-1-2 accept\n\toif=wbr-1-2 accept\n" +
		"chain inet fw input hook input policy drop\n\tstate=established accept\n\tsrc=10.0.0.0/8 proto=udp accept\n"
	tests := []struct {
		name   string
		chains string
		edit   func(in *fwInput)
		want   []string // chain, when, what it drops
	}{
		{"no network yet", drop, func(in *fwInput) { in.Networks = nil }, []string{
			"chain forward of nftables table inet fw, later: what tasks send to the outside, connections to published ports",
			"chain input of nftables table inet fw, later: what other nodes send to port 4477/tcp"}},
		{"nothing is known of the node", drop, func(in *fwInput) { *in = fwInput{Chains: in.Chains} }, []string{
			"chain input of nftables table inet fw, later: what other nodes send to port 4477/tcp"}},
		{"a cluster of one for ever", drop, func(in *fwInput) {
			in.Networks, in.Underlay = nil, netip.MustParseAddrPort("127.0.0.1:4477")
		}, []string{"chain forward of nftables table inet fw, later: what tasks send to the outside, connections to published ports"}},
		{"a network that is let through", drop, func(in *fwInput) { in.Networks[0].Network.ID = "1-2" }, []string{
			"chain input of nftables table inet fw, now: what other nodes send to port 4477/tcp, what other nodes send to port 4477/udp, what other nodes send to port 4478/udp"}},
		{"an internal network without ports", drop, func(in *fwInput) {
			in.Networks[0].Network.Spec.Internal, in.Networks[0].Ports, in.Networks[0].Hosts[0].Address = true, nil, "10.0.0.12"
		}, []string{"chain input of nftables table inet fw, now: what other nodes send to port 4477/tcp"}},
		{"another port of the API", drop, func(in *fwInput) {
			in.Networks[0].Network.ID, in.Underlay = "1-2", netip.MustParseAddrPort("198.18.0.11:5000")
		}, []string{
			"chain input of nftables table inet fw, now: what other nodes send to port 5000/tcp, what other nodes send to port 5000/udp, what other nodes send to port 4478/udp"}},
		{"IPv6 without a network of it", "chain ip6 filter FORWARD hook forward policy drop\n", func(*fwInput) {}, nil},
		{"IPv6", "chain ip6 filter FORWARD hook forward policy drop\n", func(in *fwInput) { in.Networks[0].Network.Subnet6 = "fd00:9::/64" }, []string{
			"chain FORWARD of ip6tables table filter, now: what tasks send to the outside"}},
		{"an underlay of IPv6", "chain ip6 filter INPUT hook input policy drop\n\tsrc=fd00::/16 proto=tcp accept\n", func(in *fwInput) {
			in.Underlay, in.Networks[0].Hosts[0].Address = netip.MustParseAddrPort("[fd00::11]:4477"), "fd00::12"
		}, []string{"chain INPUT of ip6tables table filter, now: what other nodes send to port 4477/udp, what other nodes send to port 4478/udp"}},
		{"one that leads back", "chain inet fw forward hook forward policy accept\n\tgoto a\n\tdrop\nchain inet fw a\n\tjump b\n\tjump b\n\treturn\nchain inet fw b\n\toif=eth0 return\n\tjump a\n", func(*fwInput) {}, nil},
		{"a chain that went meanwhile", "chain inet fw forward hook forward policy drop\n\tjump gone\n", func(*fwInput) {}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := firewalled(parseChains(t, tt.chains), false)
			tt.edit(&in)
			var got []string
			for _, p := range judgeFirewalls(in) {
				when := map[bool]string{true: "now", false: "later"}[p.Now]
				got = append(got, fmt.Sprintf("%s, %s: %s", p.Chain, when, strings.Join(p.Drops, ", ")))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
