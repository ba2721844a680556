package overlay

import "net/netip"

// A host has a second table, of family ip6, while a network of its has IPv6 or
// hosts reach each other by IPv6; else there is none, since not every kernel
// has IPv6. Its sets are those of the first, of its own addresses.

const familyIPv6 = "ip6"

var (
	loopback6  = netip.MustParsePrefix("::1/128")
	linkLocal6 = netip.MustParsePrefix("fe80::/10")
)

// metadata6 are the addresses besides link-local ones at which clouds tell a
// host its secrets: those of AWS, Google and Scaleway.
func metadata6() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("fd00:ec2::254/128"), netip.MustParsePrefix("fd20:ce::254/128"), netip.MustParsePrefix("fd00:42::42/128")}
}

// guardChains6 keep the tunnels' port and the API on a host whose networks
// have no IPv6, see baseChains. They track no connections.
func guardChains6() map[string]Chain {
	return onIPv6(map[string]Chain{
		"forward": {Hook: Hook{Type: "filter", Name: "forward"}, Rules: []Rule{
			rule(iif(setBridges), in(termPort, setTunnels), is(termDrop)),
			rule(iif(setBridges), in(termDaddrIn, setPeers), in(termPort, setAPI), is(termDrop)),
		}},
		"in": {Hook: Hook{Type: "filter", Name: "input"}, Rules: []Rule{
			rule(in(termPort, setTunnels), term{kind: termSaddrIn, set: setPeers, not: true}, is(termDrop)),
			rule(iif(setBridges), in(termPort, setTunnels), is(termDrop)),
			rule(iif(setBridges), in(termPort, setAPI), is(termDrop)),
		}},
	})
}

// baseChains6 are what baseChains are for IPv4. There is no way to lead what
// comes to ::1 to a task, so it is left alone, and so are the host's link-local
// addresses: who asks there has a link-local address himself, which is not
// forwarded.
func baseChains6() map[string]Chain {
	guard := guardChains6()
	forward, input := guard["forward"].Rules, guard["in"].Rules
	for _, p := range metadata6() {
		forward = append(forward, rule(iif(setBridges), daddr(p), is(termDrop)))
		input = append(input, rule(iif(setBridges), daddr(p), is(termDrop)))
	}
	return onIPv6(map[string]Chain{
		"pre": {Hook: Hook{Type: "nat", Name: "prerouting", Priority: -100}, Rules: []Rule{
			rule(daddr(linkLocal6), is(termReturn)),
			rule(is(termLocal), in(termJump, "ports")),
		}},
		"out": {Hook: Hook{Type: "nat", Name: "output", Priority: -100}, Rules: []Rule{
			rule(daddr(loopback6), is(termReturn)),
			rule(daddr(linkLocal6), is(termReturn)),
			rule(is(termLocal), in(termJump, "ports")),
		}},
		"ports": portsChain(),
		"forward": {Hook: guard["forward"].Hook, Rules: append(append([]Rule{rule(in(termPair, setSame), is(termAccept))}, forward...),
			rule(iif(setInternal), is(termDrop)),
			rule(oif(setInternal), is(termDrop)),
			rule(oif(setBridges), is(termEstablished), is(termAccept)),
			rule(oif(setBridges), is(termDNATed), is(termAccept)),
			rule(oif(setBridges), is(termDrop)),
		)},
		"in": {Hook: guard["in"].Hook, Rules: append(append(input,
			// Tasks find their host by its link-local address, too; it has
			// nothing else for them there.
			rule(iif(setBridges), daddr(linkLocal6), is(termNoICMP6), is(termDrop)),
			rule(iif(setInternal), is(termNew), is(termDrop)),
		), refusals()...)},
		"post": {Hook: Hook{Type: "nat", Name: "postrouting", Priority: 100}, Rules: []Rule{
			rule(oif(setBridges), is(termDNATed), in(termSelf, setSelf), is(termMasquerade)),
		}},
	})
}
