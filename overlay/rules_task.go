package overlay

import "fmt"

// The tables of a task's namespace: rules of family inet, and of family netdev
// for what only the edge of a device can do. They have the same name in every
// namespace, and no owner: who has the rights to change them is the task
// itself, and hurts nobody else.
const taskTableName = "wherry"

const (
	familyInet   = "inet"
	familyNetdev = "netdev"
)

// The sets and maps of a task's table. They are for IPv4, as their type says;
// IPv6 takes others beside them.
const (
	setVIPs     = "vips"     // addresses of services
	setUnserved = "unserved" // those without a target
	mapVIP      = "vip"      // + slots: address and slot to a target
)

// taskSetTypes gives the type of every set of a task's table by its name.
func taskSetTypes() map[string]setType {
	types := map[string]setType{
		setVIPs:     {key: []fieldType{fieldIPv4}},
		setUnserved: {key: []fieldType{fieldIPv4}},
	}
	for _, n := range slotClasses {
		types[slotMap(mapVIP, n)] = setType{[]fieldType{fieldIPv4, fieldSlot}, []fieldType{fieldIPv4}}
	}
	return types
}

// typesOf gives the types of the sets of a table.
func typesOf(id TableID) map[string]setType {
	switch id.Family {
	case familyInet:
		return taskSetTypes()
	case familyIPv6:
		return setTypes6()
	}
	return setTypes()
}

// The terms of a task's rules. Those that have no text in nft(8) are written
// as it writes raw payload: @ll is the link-layer header, with the first bit
// and the number of bits.
const (
	termIPv4        termKind = iota + 1000 // meta nfproto ipv4
	termDaddrSet                           // ip daddr @set
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
	case termIPv4:
		return "meta nfproto ipv4"
	case termDaddrSet:
		return "ip daddr @" + t.set
	case termVIP:
		return fmt.Sprintf("dnat ip to ip daddr . numgen random mod %d map @%s", t.slots, t.set)
	case termUnreachable:
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
func vipChains() map[string]Chain {
	vip := Chain{}
	for _, n := range slotClasses {
		vip.Rules = append(vip.Rules, rule(term{kind: termVIP, set: slotMap(mapVIP, n), slots: n}))
	}
	try := rule(is(termIPv4), in(termDaddrSet, setVIPs), in(termJump, "vip"))
	return map[string]Chain{
		"out": {Hook: Hook{Type: "nat", Name: "output", Priority: -100}, Rules: []Rule{try, try}},
		"vip": vip,
		"rej": {Hook: Hook{Type: "filter", Name: "output"}, Rules: []Rule{
			rule(is(termIPv4), in(termDaddrSet, setVIPs), in(termJump, "left")),
		}},
		"left": {Rules: []Rule{
			rule(is(termTCP), in(termDaddrSet, setUnserved), is(termRejectTCP)),
			rule(in(termDaddrSet, setUnserved), is(termUnreachable)),
			rule(is(termDrop)),
		}},
	}
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
