package overlay

import (
	"fmt"
	"maps"
)

// The tables of a task's namespace: rules of family inet, and of family netdev
// for what only the edge of a device can do. They have the same name in every
// namespace, and no owner: who has the rights to change them is the task
// itself, and hurts nobody else.
const taskTableName = "wherry"

const (
	familyInet   = "inet"
	familyNetdev = "netdev"
)

// vipNames are the sets, maps and chains of a task's table for services'
// addresses of one family.
type vipNames struct {
	six      bool
	vips     string // set of the addresses
	unserved string // set of those without a target
	slots    string // map, + slots: address and slot to a target
	try      string // chain that translates
	left     string // chain for what was not translated
}

// vip4 is in every task's table, vip6 in those of tasks on a network with IPv6.
var (
	vip4 = vipNames{vips: "vips", unserved: "unserved", slots: "vip", try: "vip", left: "left"}
	vip6 = vipNames{six: true, vips: "vips6", unserved: "unserved6", slots: "vip6_", try: "vip6", left: "left6"}
)

// types gives the type of the sets by their names.
func (v vipNames) types() map[string]setType {
	ip := fieldIPv4
	if v.six {
		ip = fieldIPv6
	}
	types := map[string]setType{v.vips: {key: []fieldType{ip}}, v.unserved: {key: []fieldType{ip}}}
	for _, n := range slotClasses {
		types[slotMap(v.slots, n)] = setType{[]fieldType{ip, fieldSlot}, []fieldType{ip}}
	}
	return types
}

// taskSetTypes gives the type of every set of a task's table by its name.
func taskSetTypes() map[string]setType {
	types := vip4.types()
	maps.Copy(types, vip6.types())
	return types
}

// typesOf gives the types of the sets of a table.
func typesOf(id TableID) map[string]setType {
	switch id.Family {
	case familyInet:
		return taskSetTypes()
	case familyIPv6:
		return setTypes(fieldIPv6)
	}
	return setTypes(fieldIPv4)
}

// The terms of a task's rules. Those that have no text in nft(8) are written
// as it writes raw payload: @ll is the link-layer header, with the first bit
// and the number of bits.
const (
	termFamily      termKind = iota + 1000 // meta nfproto ipv4
	termVIP                                // dnat by a map of address and slot
	termUnreachable                        // reject with icmp host-unreachable
	termFromHost                           // source MAC is a host's
	termKeepHost                           // the rest of that MAC becomes the connection's mark
	termZone                               // the end of that MAC becomes the zone of the way here
	termReply                              // ct direction reply
	termKept                               // ct mark != 0
	termRestore                            // meta mark set ct mark
	termMarked                             // meta mark != 0
	termToHost                             // the mark becomes the destination MAC again
)

// hostPrefix begins the MAC of every host's bridges, see hostMAC.
const hostPrefix = 0x0257

// taskText is the text of a term of a task's rules, "" of any other.
func (t term) taskText() string {
	switch t.kind {
	case termFamily:
		if t.six {
			return "meta nfproto ipv6"
		}
		return "meta nfproto ipv4"
	case termVIP:
		if t.six {
			return fmt.Sprintf("dnat ip6 to ip6 daddr . numgen random mod %d map @%s", t.slots, t.set)
		}
		return fmt.Sprintf("dnat ip to ip daddr . numgen random mod %d map @%s", t.slots, t.set)
	case termUnreachable:
		if t.six {
			return "reject with icmpv6 addr-unreachable"
		}
		return "reject with icmp host-unreachable"
	case termFromHost:
		return fmt.Sprintf("@ll,48,16 %#04x", hostPrefix)
	case termKeepHost:
		return "ct mark set @ll,64,32"
	case termZone:
		return "ct original zone set @ll,80,16"
	case termReply:
		return "ct direction reply"
	case termKept:
		return "ct mark != 0"
	case termRestore:
		return "meta mark set ct mark"
	case termMarked:
		return "meta mark != 0"
	case termToHost:
		return fmt.Sprintf("@ll,16,32 set meta mark @ll,0,16 set %#04x", hostPrefix)
	}
	return ""
}

// vipChains lead connections of the task to addresses of services on to one of
// their targets.
//
// A packet may pass the rules while a transaction changes the maps, and find
// an address in neither the old nor the new one. So they are gone through
// twice, which finds it in the new one; and what was not translated after all
// is dropped instead of being remembered with the service's address as its
// end: the next packet does better.
//
// A task on no network with IPv6 has nothing for it.
func vipChains(six bool) map[string]Chain {
	out, rej := Chain{Hook: Hook{Type: "nat", Name: "output", Priority: -100}}, Chain{Hook: Hook{Type: "filter", Name: "output"}}
	chains := map[string]Chain{}
	for _, v := range []vipNames{vip4, vip6} {
		if v.six && !six {
			continue
		}
		a := v.chains()
		out.Rules = append(out.Rules, a["out"].Rules...)
		rej.Rules = append(rej.Rules, a["rej"].Rules...)
		chains[v.try], chains[v.left] = a[v.try], a[v.left]
	}
	chains["out"], chains["rej"] = out, rej
	return chains
}

// chains are the part of vipChains for one family.
func (v vipNames) chains() map[string]Chain {
	try := Chain{}
	for _, n := range slotClasses {
		try.Rules = append(try.Rules, rule(term{kind: termVIP, set: slotMap(v.slots, n), slots: n}))
	}
	once := rule(is(termFamily), in(termDaddrIn, v.vips), in(termJump, v.try))
	chains := map[string]Chain{
		"out": {Rules: []Rule{once, once}},
		v.try: try,
		"rej": {Rules: []Rule{rule(is(termFamily), in(termDaddrIn, v.vips), in(termJump, v.left))}},
		v.left: {Rules: []Rule{
			rule(is(termTCP), in(termDaddrIn, v.unserved), is(termRejectTCP)),
			rule(in(termDaddrIn, v.unserved), is(termUnreachable)),
			rule(is(termDrop)),
		}},
	}
	if v.six {
		return onIPv6(chains)
	}
	return chains
}

// returnChains keep by which host a connection came and send its answers back
// there: the source MAC of its first frame says it. A host may come or go
// without a change here. Connection marks are not to be had in family netdev,
// hence the way by the packet's mark.
//
// A client may use one port of its own for connections to two hosts. Here they
// would be one connection, since both have the client's address. So each host's
// are in a zone of their own, on the way here; on the way back, where there are
// no zones, the kernel gives the second one another client's port.
func returnChains() map[string]Chain {
	return map[string]Chain{
		"zone": {Hook: Hook{Type: "filter", Name: "prerouting", Priority: -300}, Rules: []Rule{
			rule(is(termFromHost), is(termZone)),
		}},
		"pre": {Hook: Hook{Type: "filter", Name: "prerouting", Priority: -150}, Rules: []Rule{
			rule(is(termNew), is(termFromHost), is(termKeepHost)),
		}},
		"mk": {Hook: Hook{Type: "filter", Name: "output", Priority: -150}, Rules: []Rule{
			rule(is(termReply), is(termKept), is(termRestore)),
		}},
	}
}

// egressChains write the host's MAC into frames that leave by a device.
func egressChains(device string) map[string]Chain {
	return map[string]Chain{
		"egress": {Hook: Hook{Type: "filter", Name: "egress", Device: device}, Rules: []Rule{
			rule(is(termMarked), is(termToHost)),
		}},
	}
}
