package overlay

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"wherry.dev/spec"
)

// fwChain is a chain of somebody else's firewall. It is read and judged, and
// never changed.
type fwChain struct {
	Family, Table, Name string
	// Hook of a base chain; empty for one that is only jumped to.
	Hook string
	// Drop is the policy.
	Drop bool
	// Legacy is a chain of the tables that nftables does not show.
	Legacy bool
	Rules  []fwRule
}

// fwRule does something with the packets for which every condition holds.
type fwRule struct {
	If   []fwCond
	Then string
	To   string // chain of a jump or goto
}

// What a rule may do. A rejected packet is dropped, too; fwUnknown may be
// anything.
const (
	fwAccept   = "accept"
	fwDrop     = "drop"
	fwContinue = "continue"
	fwReturn   = "return"
	fwJump     = "jump"
	fwGoto     = "goto"
	fwUnknown  = "unknown"
)

// fwCond holds when what Key names is one of Any, or with Not when it is none.
type fwCond struct {
	Key string
	Not bool
	Any []string
}

// What a condition may ask for. Of anything else it is not known whether it
// holds.
const (
	fwIif    = "iif"    // names; one that ends in * is a beginning
	fwOif    = "oif"    // likewise
	fwFamily = "family" // ip, ip6, arp
	fwProto  = "proto"  // tcp, udp, icmp, or a number
	fwSrc    = "src"    // prefixes and ranges
	fwDst    = "dst"    // likewise
	fwDport  = "dport"  // ports and ranges
	fwSport  = "sport"  // likewise
	fwState  = "state"  // new, established, related, invalid, untracked
	fwStatus = "status" // dnat, snat
	fwDir    = "dir"    // original, reply
	fwType   = "type"   // of the destination: local, unicast, …
	fwMAC    = "mac"    // the source's: addresses and ranges
	fwOther  = "?"
)

// fwPacket is a packet, or a kind of packets, that has to get through. Empty
// fields are not known, or differ.
type fwPacket struct {
	hooks      []string // that it passes on its way
	bridge     bool     // a frame of a bridge, as family bridge sees it
	family     string   // ip, ip6
	iif, oif   string
	proto      string
	src, dst   netip.Prefix // an address in it
	dport      uint16
	state, mac string
	reply      bool
	dnat       bool
	local      bool // its destination is this host
}

// need is traffic that has to get through, and what lets it.
type need struct {
	what string
	// now: it stops what is there. Without it, what may come.
	now     bool
	packets []fwPacket
	// bridges: what a bridge of ours takes in or gives out is to be accepted;
	// otherwise the port is, to this host or with out to others.
	bridges bool
	proto   string
	port    uint16
	out     bool
}

// FirewallProblem is a chain of somebody else that drops what the networks of
// this host need.
type FirewallProblem struct {
	// Chain in words, such as "chain FORWARD of nftables table inet fw".
	Chain string
	// Drops says what it drops.
	Drops []string
	// Now: what it drops is there. Otherwise it may come, with the first network
	// or the first other node.
	Now bool
	// Add are the lines that let it through, to be run as root.
	Add []string
}

func (p FirewallProblem) String() string {
	return fmt.Sprintf("%s drops %s; let it through: %s", p.Chain, strings.Join(p.Drops, ", "), strings.Join(p.Add, "; "))
}

// fwInput is everything that the verdict on other firewalls follows from.
type fwInput struct {
	Chains   []fwChain
	Node     spec.NodeID
	Networks []spec.HostNetwork
	// Underlay is what the node advertises; it may be unknown.
	Underlay netip.AddrPort
	// Device has the underlay's address, Egress the default route; either may
	// be unknown.
	Device, Egress string
	// Bridged4 and Bridged6: what crosses a bridge passes the chains of IP, too.
	Bridged4, Bridged6 bool
}

// judgeFirewalls names every chain that is sure to drop something that has to
// get through. A rule of which it is not known whether it applies is never the
// ground for a complaint, nor is a packet that such a rule may have accepted.
func judgeFirewalls(in fwInput) []FirewallProblem {
	needs := in.needs()
	type table struct {
		family, name string
		legacy       bool
	}
	tables := map[table]fwTable{}
	for _, c := range in.Chains {
		id := table{c.Family, c.Table, c.Legacy}
		if tables[id] == nil {
			tables[id] = fwTable{}
		}
		tables[id][c.Name] = c
	}
	var out []FirewallProblem
	for _, c := range in.Chains {
		t := tables[table{c.Family, c.Table, c.Legacy}]
		if c.Hook == "" {
			continue
		}
		p := FirewallProblem{Chain: c.words(t)}
		for _, n := range needs {
			dropped, by := t.drops(c, n)
			if !dropped {
				continue
			}
			p.Now = p.Now || n.now
			p.Drops = addOnce(p.Drops, n.what)
			for _, line := range c.cure(t, n, by) {
				p.Add = addOnce(p.Add, line)
			}
		}
		if len(p.Drops) > 0 {
			p.Add = reloadLast(p.Add)
			out = append(out, p)
		}
	}
	return out
}

func addOnce(list []string, s string) []string {
	if slices.Contains(list, s) {
		return list
	}
	return append(list, s)
}

// fwTable are the chains of one table.
type fwTable map[string]fwChain

// The ways that a packet may come out of a chain, as a set.
const (
	wayAccept = 1 << iota
	wayDrop
	wayOn    // to the next rule
	wayLeave // to the rule after the jump that led here
)

// drops reports whether one of the packets surely ends in the base chain, and
// in which chain that happens.
func (t fwTable) drops(c fwChain, n need) (dropped bool, by string) {
	for _, p := range n.packets {
		covers := c.Family == "inet" || c.Family == p.family
		if p.bridge || c.Family == "bridge" {
			covers = p.bridge && c.Family == "bridge"
		}
		if !covers || !slices.Contains(p.hooks, c.Hook) {
			continue
		}
		w := fwWalk{table: t, packet: p, by: c.Name}
		ways := w.walk(c)
		if ways&(wayOn|wayLeave) != 0 && c.Drop {
			ways |= wayDrop
		} else if ways&(wayOn|wayLeave) != 0 {
			ways |= wayAccept
		}
		if ways&wayDrop != 0 && ways&wayAccept == 0 {
			return true, w.by
		}
	}
	return false, ""
}

// maxSteps bounds the rules that one packet is led past. Chains that lead back
// to themselves the kernel refuses, but they are not read in one moment.
const maxSteps = 100_000

// fwWalk leads a packet through a table.
type fwWalk struct {
	table  fwTable
	packet fwPacket
	// by is the last chain in which a rule may drop it.
	by    string
	steps int
}

// walk leads the packet through a chain.
func (w *fwWalk) walk(c fwChain) (ways int) {
	for _, r := range c.Rules {
		if w.steps++; w.steps > maxSteps {
			return wayAccept | wayDrop
		}
		holds := r.holds(w.packet)
		if holds == no {
			continue
		}
		next := w.do(c, r)
		if holds == maybe {
			next |= wayOn
		}
		ways |= next &^ wayOn
		if next&wayOn == 0 {
			return ways
		}
	}
	return ways | wayOn
}

func (w *fwWalk) do(c fwChain, r fwRule) int {
	switch r.Then {
	case fwAccept:
		return wayAccept
	case fwDrop:
		w.by = c.Name
		return wayDrop
	case fwContinue:
		return wayOn
	case fwReturn:
		return wayLeave
	case fwJump, fwGoto:
		to, ok := w.table[r.To]
		if !ok {
			break
		}
		ways := w.walk(to)
		out := ways & (wayAccept | wayDrop)
		switch {
		case ways&(wayOn|wayLeave) == 0:
		case r.Then == fwGoto:
			out |= wayLeave
		default:
			out |= wayOn
		}
		return out
	}
	return wayAccept | wayDrop | wayOn | wayLeave
}

// truth is what can be said of a condition.
type truth int

const (
	no truth = iota
	maybe
	yes
)

func truthOf(b bool) truth {
	if b {
		return yes
	}
	return no
}

func (r fwRule) holds(p fwPacket) truth {
	out := yes
	for _, c := range r.If {
		h := c.holds(p)
		if c.Not {
			h = yes - h
		}
		out = min(out, h)
	}
	return out
}

// holds judges the condition without its Not.
func (c fwCond) holds(p fwPacket) truth {
	one := func(have string) truth {
		if have == "" {
			return maybe
		}
		return truthOf(slices.Contains(c.Any, have))
	}
	switch c.Key {
	case fwIif:
		return nameHolds(c.Any, p.iif)
	case fwOif:
		return nameHolds(c.Any, p.oif)
	case fwFamily:
		return one(p.family)
	case fwProto:
		return one(p.proto)
	case fwState:
		return one(p.state)
	case fwSrc:
		return prefixHolds(c.Any, p.src)
	case fwDst:
		return prefixHolds(c.Any, p.dst)
	case fwDport:
		return rangeHolds(c.Any, p.dport)
	case fwMAC:
		return macHolds(c.Any, p.mac)
	case fwStatus:
		if slices.Equal(c.Any, []string{"dnat"}) {
			return truthOf(p.dnat)
		}
	case fwDir:
		if p.reply {
			return one("reply")
		}
		return one("original")
	case fwType:
		if p.local {
			return one("local")
		}
		if slices.Equal(c.Any, []string{"local"}) {
			return no
		}
	}
	return maybe
}

func nameHolds(any []string, name string) truth {
	if name == "" {
		return maybe
	}
	return truthOf(slices.ContainsFunc(any, func(s string) bool {
		begin, open := strings.CutSuffix(s, "*")
		return s == name || open && strings.HasPrefix(name, begin)
	}))
}

func rangeHolds(any []string, port uint16) truth {
	if port == 0 {
		return maybe
	}
	return truthOf(slices.ContainsFunc(any, func(s string) bool {
		from, to, ok := strings.Cut(s, "-")
		if !ok {
			to = from
		}
		a, err1 := strconv.Atoi(from)
		b, err2 := strconv.Atoi(to)
		return err1 == nil && err2 == nil && a <= int(port) && int(port) <= b
	}))
}

func macHolds(any []string, mac string) truth {
	if mac == "" {
		return maybe
	}
	return truthOf(slices.ContainsFunc(any, func(s string) bool {
		from, to, ok := strings.Cut(s, "-")
		if !ok {
			to = from
		}
		return from <= mac && mac <= to
	}))
}

// prefixHolds is yes when all of have is in one of them, no when nothing is.
func prefixHolds(any []string, have netip.Prefix) truth {
	out := no
	for _, s := range any {
		from, to, ok := addrRange(s)
		switch {
		case !ok:
			out = max(out, maybe)
		case !have.IsValid():
			if from.IsUnspecified() && !to.Next().IsValid() {
				return yes // everything
			}
			out = max(out, maybe)
		case from.Is4() != have.Addr().Is4():
		default:
			first, last := have.Masked().Addr(), lastAddr(have)
			if !first.Less(from) && !to.Less(last) {
				return yes
			}
			if !last.Less(from) && !to.Less(first) {
				out = max(out, maybe)
			}
		}
	}
	return out
}

// addrRange reads "10.0.0.0/8" or "10.0.0.1-10.0.0.9".
func addrRange(s string) (from, to netip.Addr, ok bool) {
	if a, b, found := strings.Cut(s, "-"); found {
		from, err1 := netip.ParseAddr(a)
		to, err2 := netip.ParseAddr(b)
		return from, to, err1 == nil && err2 == nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return from, to, false
	}
	return p.Masked().Addr(), lastAddr(p), true
}

func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// String is the chain's line in a listing, and its rules.
func (c fwChain) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "chain %s %s %s", c.Family, c.Table, c.Name)
	if c.Hook != "" {
		policy := fwAccept
		if c.Drop {
			policy = fwDrop
		}
		fmt.Fprintf(&b, " hook %s policy %s", c.Hook, policy)
	}
	if c.Legacy {
		b.WriteString(" legacy")
	}
	b.WriteByte('\n')
	for _, r := range c.Rules {
		b.WriteString("\t" + r.String() + "\n")
	}
	return b.String()
}

func (r fwRule) String() string {
	var words []string
	for _, c := range r.If {
		op := "="
		if c.Not {
			op = "!="
		}
		words = append(words, c.Key+op+strings.Join(c.Any, ","))
	}
	words = append(words, r.Then)
	if r.To != "" {
		words = append(words, r.To)
	}
	return strings.Join(words, " ")
}
