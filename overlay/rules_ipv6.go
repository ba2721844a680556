package overlay

import (
	"fmt"
	"net/netip"

	"wherry.dev/spec"
)

// Where hosts reach each other by IPv6, the tunnels' port is kept to members
// by a second table of the host, of family ip6. On other hosts there is none,
// since not every kernel has IPv6.

const familyIPv6 = "ip6"

// setPeers6 are the addresses of the other hosts of our networks.
const setPeers6 = "peers6"

// setTypes6 gives the type of every set of the table by its name.
func setTypes6() map[string]setType {
	return map[string]setType{
		setBridges: {key: []fieldType{fieldIfname}},
		setPeers6:  {key: []fieldType{fieldIPv6}},
		setAPI:     {key: []fieldType{fieldProto, fieldPort}},
	}
}

// The terms that only this table has.
const (
	termSaddr6 termKind = iota + 2000 // ip6 saddr @set
	termDaddr6                        // ip6 daddr @set
)

// text6 is the text of such a term, "" of any other.
func (t term) text6() string {
	op := ""
	if t.not {
		op = "!= "
	}
	switch t.kind {
	case termSaddr6:
		return fmt.Sprintf("ip6 saddr %s@%s", op, t.set)
	case termDaddr6:
		return fmt.Sprintf("ip6 daddr %s@%s", op, t.set)
	}
	return ""
}

// baseChains6 are the rules; see baseChains, of which they are the part that
// keeps the tunnels' port and the API.
func baseChains6() map[string]Chain {
	return map[string]Chain{
		"forward": {Hook: Hook{Type: "filter", Name: "forward"}, Rules: []Rule{
			rule(iif(setBridges), is(termVXLAN), is(termDrop)),
			rule(iif(setBridges), in(termDaddr6, setPeers6), in(termPort, setAPI), is(termDrop)),
		}},
		"in": {Hook: Hook{Type: "filter", Name: "input"}, Rules: []Rule{
			rule(is(termVXLAN), term{kind: termSaddr6, set: setPeers6, not: true}, is(termDrop)),
			rule(iif(setBridges), is(termVXLAN), is(termDrop)),
			rule(iif(setBridges), in(termPort, setAPI), is(termDrop)),
		}},
	}
}

// guard6 adds the table to st if the underlay is IPv6.
func (in Input) guard6(st State, networks map[spec.NetworkID]network) {
	if !in.underlay().Is6() {
		return
	}
	t := Table{Sets: map[string]Set{}, Chains: baseChains6()}
	for name := range setTypes6() {
		t.Sets[name] = Set{}
	}
	for _, n := range networks {
		t.Sets[setBridges][n.bridgeN] = ""
	}
	in.members(t.Sets[setPeers6], netip.Addr.Is6)
	in.api(t.Sets[setAPI])
	st.Tables[hostTable6(in.Node)] = t
}
