package overlay

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// termKind is one building block of a rule; its text is nft(8)'s where nft has
// a text for it.
type termKind int

const (
	termIif          termKind = iota // iifname @set
	termOif                          // oifname @set
	termPair                         // iifname . oifname @set
	termSaddr                        // ip saddr prefix
	termDaddr                        // ip daddr prefix
	termLocal                        // fib daddr type local
	termTCP                          // meta l4proto tcp
	termNew                          // ct state new
	termEstablished                  // ct state established,related
	termDNATed                       // ct status dnat
	termPort                         // meta l4proto . th dport @set
	termAddrPort                     // ip daddr . meta l4proto . th dport @set
	termDNATPort                     // dnat by a map of protocol, port and slot
	termDNATAddrPort                 // the same with the address in front
	termMasquerade
	termAccept
	termDrop
	termReturn
	termJump
	termRejectTCP
	termReject
	termSaddrIn // ip saddr @set
	termDaddrIn // ip daddr @set
	termSelf    // ip saddr . ip daddr @set
	termNoICMP6 // meta l4proto != ipv6-icmp
)

// term is a building block with its argument.
type term struct {
	kind   termKind
	set    string // or chain
	prefix netip.Prefix
	not    bool
	slots  uint32
	// six: the addresses that it looks at are of IPv6.
	six bool
}

func (t term) String() string {
	op, ip := "", "ip"
	if t.six {
		ip = "ip6"
	}
	if t.not {
		op = "!= "
	}
	switch t.kind {
	case termIif:
		return "iifname " + op + "@" + t.set
	case termOif:
		return "oifname " + op + "@" + t.set
	case termPair:
		return "iifname . oifname " + op + "@" + t.set
	case termSaddr:
		return ip + " saddr " + op + t.prefix.String()
	case termDaddr:
		return ip + " daddr " + op + t.prefix.String()
	case termLocal:
		return "fib daddr type local"
	case termTCP:
		return "meta l4proto tcp"
	case termNew:
		return "ct state new"
	case termEstablished:
		return "ct state established,related"
	case termDNATed:
		return "ct status dnat"
	case termPort:
		return "meta l4proto . th dport @" + t.set
	case termAddrPort:
		return ip + " daddr . meta l4proto . th dport @" + t.set
	case termDNATPort:
		return fmt.Sprintf("dnat to meta l4proto . th dport . numgen random mod %d map @%s", t.slots, t.set)
	case termDNATAddrPort:
		return fmt.Sprintf("dnat to %s daddr . meta l4proto . th dport . numgen random mod %d map @%s", ip, t.slots, t.set)
	case termMasquerade:
		return "masquerade"
	case termAccept:
		return "accept"
	case termDrop:
		return "drop"
	case termReturn:
		return "return"
	case termJump:
		return "jump " + t.set
	case termRejectTCP:
		return "reject with tcp reset"
	case termReject:
		return "reject"
	case termSaddrIn:
		return ip + " saddr " + op + "@" + t.set
	case termDaddrIn:
		return ip + " daddr " + op + "@" + t.set
	case termSelf:
		return ip + " saddr . " + ip + " daddr @" + t.set
	case termNoICMP6:
		return "meta l4proto != ipv6-icmp"
	}
	if text := t.taskText(); text != "" {
		return text
	}
	panic(fmt.Sprintf("overlay: term %d has no text", t.kind))
}

func rule(terms ...term) Rule {
	text := make([]string, len(terms))
	for i, t := range terms {
		text[i] = t.String()
	}
	return Rule{Text: strings.Join(text, " "), terms: terms}
}

func iif(set string) term       { return term{kind: termIif, set: set} }
func oif(set string) term       { return term{kind: termOif, set: set} }
func oifNot(set string) term    { return term{kind: termOif, set: set, not: true} }
func saddr(p netip.Prefix) term { return term{kind: termSaddr, prefix: p, six: p.Addr().Is6()} }
func daddr(p netip.Prefix) term { return term{kind: termDaddr, prefix: p, six: p.Addr().Is6()} }
func notDaddr(p netip.Prefix) term {
	return term{kind: termDaddr, prefix: p, six: p.Addr().Is6(), not: true}
}
func is(k termKind) term { return term{kind: k} }
func in(k termKind, set string) term {
	return term{kind: k, set: set}
}

// onIPv6 returns chains whose terms look at addresses of IPv6.
func onIPv6(chains map[string]Chain) map[string]Chain {
	for name, c := range chains {
		for i, r := range c.Rules {
			terms := slices.Clone(r.terms)
			for j := range terms {
				terms[j].six = true
			}
			c.Rules[i] = rule(terms...)
		}
		chains[name] = c
	}
	return chains
}

// The sets and maps of the host's tables. Bridges are known by name, so that rules and
// bridges may come and go in any order.
const (
	setBridges   = "bridges"    // bridges of ours
	setInternal  = "internal"   // those of internal networks
	setSame      = "same"       // each bridge with itself: traffic within a network
	setRefused   = "refused"    // published ports without a ready task
	setRefusedAt = "refused_at" // the same for one address of the host
	setEnds      = "ends"       // tasks on our networks; no rule asks, see diffFlows
	setPeers     = "peers"      // addresses of the other hosts of our networks
	setAPI       = "api"        // the ports of the node's API
	setTunnels   = "tunnels"    // the port of networks between hosts
	setSelf      = "self"       // each published task of this host with itself
	mapAny       = "any"        // + slots: published on every address
	mapAt        = "at"         // + slots: published on one address
)

// slotClasses are the numbers of slots that a published port may have: the
// smallest that is at least four times its targets, or one for one target. A
// fixed class keeps the rules constant: what changes is elements.
var slotClasses = []uint32{1, 16, 128, 1024}

func slotClass(targets int) uint32 {
	if targets <= 1 {
		return 1
	}
	for _, n := range slotClasses[1:] {
		if uint32(targets)*4 <= n {
			return n
		}
	}
	return slotClasses[len(slotClasses)-1]
}

func slotMap(prefix string, slots uint32) string { return fmt.Sprintf("%s%d", prefix, slots) }

// fieldType is the type of one part of a set's key or value.
type fieldType int

const (
	fieldIfname fieldType = iota
	fieldIPv4
	fieldIPv6
	fieldProto
	fieldPort
	fieldSlot
)

// setType is the type of a set; value is empty for a set that is no map.
type setType struct{ key, value []fieldType }

// setTypes gives the type of every set of a host's table by its name, for
// addresses of IPv4 or IPv6.
func setTypes(ip fieldType) map[string]setType {
	target := []fieldType{ip, fieldPort}
	types := map[string]setType{
		setBridges:   {key: []fieldType{fieldIfname}},
		setInternal:  {key: []fieldType{fieldIfname}},
		setSame:      {key: []fieldType{fieldIfname, fieldIfname}},
		setRefused:   {key: []fieldType{fieldProto, fieldPort}},
		setRefusedAt: {key: []fieldType{ip, fieldProto, fieldPort}},
		setEnds:      {key: []fieldType{ip}},
		setPeers:     {key: []fieldType{ip}},
		setAPI:       {key: []fieldType{fieldProto, fieldPort}},
		setTunnels:   {key: []fieldType{fieldProto, fieldPort}},
		setSelf:      {key: []fieldType{ip, ip}},
	}
	for _, n := range slotClasses {
		types[slotMap(mapAny, n)] = setType{[]fieldType{fieldProto, fieldPort, fieldSlot}, target}
		types[slotMap(mapAt, n)] = setType{[]fieldType{ip, fieldProto, fieldPort, fieldSlot}, target}
	}
	return types
}

var (
	loopback = netip.MustParsePrefix("127.0.0.0/8")
	// linkLocal is where a cloud tells a host its secrets.
	linkLocal = netip.MustParsePrefix("169.254.0.0/16")
)

// baseChains are the chains of the host's table that do not depend on what is
// wanted.
//
// Filter chains have no drop as policy, and an accept here ends only our own
// chain: somebody else's drop still counts.
func baseChains() map[string]Chain {
	return map[string]Chain{
		// route_localnet lets bridges carry answers for 127.0.0.1; nobody behind
		// a bridge may use that to reach the host's loopback.
		"raw": {Hook: Hook{Type: "filter", Name: "prerouting", Priority: -300}, Rules: []Rule{
			rule(iif(setBridges), daddr(loopback), is(termDrop)),
			rule(iif(setBridges), saddr(loopback), is(termDrop)),
		}},
		// A port of 127.0.0.1 must not be reachable by a neighbour that sends
		// frames for 127.0.0.1 to us, so prerouting leaves that address alone.
		"pre": {Hook: Hook{Type: "nat", Name: "prerouting", Priority: -100}, Rules: []Rule{
			rule(daddr(loopback), is(termReturn)),
			rule(is(termLocal), in(termJump, "ports")),
		}},
		"out": {Hook: Hook{Type: "nat", Name: "output", Priority: -100}, Rules: []Rule{
			rule(is(termLocal), in(termJump, "ports")),
		}},
		"ports": portsChain(),
		"forward": {Hook: Hook{Type: "filter", Name: "forward", Priority: 0}, Rules: []Rule{
			rule(in(termPair, setSame), is(termAccept)),
			// A task's packet to another host would leave with this host's
			// address, which is a member's: it could speak for the node, or put
			// frames into any network.
			rule(iif(setBridges), in(termPort, setTunnels), is(termDrop)),
			rule(iif(setBridges), in(termDaddrIn, setPeers), in(termPort, setAPI), is(termDrop)),
			rule(iif(setBridges), daddr(linkLocal), is(termDrop)),
			rule(iif(setInternal), is(termDrop)),
			rule(oif(setInternal), is(termDrop)),
			rule(oif(setBridges), is(termEstablished), is(termAccept)),
			rule(oif(setBridges), is(termDNATed), is(termAccept)),
			rule(oif(setBridges), is(termDrop)),
		}},
		"in": {Hook: Hook{Type: "filter", Name: "input", Priority: 0}, Rules: append([]Rule{
			// Before the tunnel's end sees them. Addresses can be forged on the
			// underlay: this keeps out strangers, not attackers on the wire.
			rule(in(termPort, setTunnels), term{kind: termSaddrIn, set: setPeers, not: true}, is(termDrop)),
			rule(iif(setBridges), in(termPort, setTunnels), is(termDrop)),
			rule(iif(setBridges), in(termPort, setAPI), is(termDrop)),
			rule(iif(setBridges), daddr(linkLocal), is(termDrop)),
			rule(iif(setInternal), is(termNew), is(termDrop)),
		}, refusals()...)},
		"post": {Hook: Hook{Type: "nat", Name: "postrouting", Priority: 100}, Rules: []Rule{
			rule(oif(setBridges), is(termDNATed), saddr(loopback), is(termMasquerade)),
			// A task that reaches itself by its own published port: it would not
			// take a packet from its own address.
			rule(oif(setBridges), is(termDNATed), in(termSelf, setSelf), is(termMasquerade)),
		}},
	}
}

// portsChain leads connections to published ports on.
func portsChain() Chain {
	c := Chain{}
	for _, n := range slotClasses {
		c.Rules = append(c.Rules, rule(term{kind: termDNATAddrPort, set: slotMap(mapAt, n), slots: n}))
	}
	for _, n := range slotClasses {
		c.Rules = append(c.Rules, rule(term{kind: termDNATPort, set: slotMap(mapAny, n), slots: n}))
	}
	return c
}

// refusals answer connections to published ports without a ready task.
func refusals() []Rule {
	return []Rule{
		rule(is(termTCP), in(termAddrPort, setRefusedAt), is(termRejectTCP)),
		rule(in(termAddrPort, setRefusedAt), is(termReject)),
		rule(is(termTCP), in(termPort, setRefused), is(termRejectTCP)),
		rule(in(termPort, setRefused), is(termReject)),
	}
}

// egressRules are the rules of one network in the chain "post": the way out,
// and on a network that is local to this host a task that reaches a task of
// its own network, or itself, by a published port: the answer has to come back
// by the host. On a network between hosts the task sends it there by itself.
func egressRules(subnet netip.Prefix, local bool) []Rule {
	rules := []Rule{rule(saddr(subnet), notDaddr(subnet), oifNot(setBridges), is(termMasquerade))}
	if local {
		rules = append(rules, rule(saddr(subnet), daddr(subnet), is(termDNATed), is(termMasquerade)))
	}
	return rules
}
