package overlay

import (
	"encoding/binary"
	"slices"
	"strconv"
)

// match reads a match of iptables, whose parameters are as its kernel module
// has them (linux/netfilter/xt_*.h).
func (r *fwReader) match(name string, info []byte) {
	u16 := func(at int) uint16 { return binary.NativeEndian.Uint16(info[at:]) }
	switch {
	case name == "comment":
		return
	case name == "tcp" && len(info) >= 12, name == "udp" && len(info) >= 9:
		// Source ports, destination ports, and for TCP an option and flags; then
		// what is inverted.
		inverted := info[8]
		if name == "tcp" {
			inverted = info[11]
			if info[8] != 0 || info[9] != 0 {
				r.add("", false, "tcp-flags")
			}
		}
		r.ports(fwSport, u16(0), u16(2), inverted&1 != 0)
		r.ports(fwDport, u16(4), u16(6), inverted&2 != 0)
		return
	case name == "multiport" && len(info) >= 48:
		r.multiport(info)
		return
	case name == "conntrack" && len(info) >= 156:
		const matchFlags, invertFlags, stateMask, statusMask = 146, 148, 150, 152
		const byState, byStatus, byDirection = 1, 1 << 6, 1 << 12
		flags, inverted := u16(matchFlags), u16(invertFlags)
		if flags&byState != 0 {
			r.add(fwState, inverted&byState != 0, xtStates(uint32(u16(stateMask)))...)
		}
		if flags&byStatus != 0 {
			r.add(fwStatus, inverted&byStatus != 0, flagNames(fwStatus, uint32(u16(statusMask)))...)
		}
		if flags&byDirection != 0 {
			r.add(fwDir, false, []string{"original", "reply"}[min(1, inverted&byDirection)])
		}
		if flags&^(byState|byStatus|byDirection|1<<13) != 0 {
			r.add("", false, "xt-conntrack")
		}
		return
	case name == "state" && len(info) >= 4:
		r.add(fwState, false, xtStates(binary.NativeEndian.Uint32(info))...)
		return
	case name == "addrtype" && len(info) >= 8:
		const invertSource, invertDest, ofDevice = 1, 2, 4 | 8
		source, dest, flags := u16(0), u16(2), binary.NativeEndian.Uint32(info[4:])
		if source != 0 || flags&ofDevice != 0 {
			r.add("", false, "xt-addrtype")
		}
		if dest != 0 {
			var types []string
			for bit := range uint32(12) {
				if dest&(1<<bit) != 0 {
					types = append(types, addrTypes[bit])
				}
			}
			r.add(fwType, flags&invertDest != 0, types...)
		}
		return
	}
	r.add("", false, "xt-"+name)
}

func (r *fwReader) ports(key string, from, to uint16, not bool) {
	switch {
	case from == 0 && to == 65535 && !not: // any
	case from == to:
		r.add(key, not, strconv.Itoa(int(from)))
	default:
		r.add(key, not, portSpan(int(from), int(to)))
	}
}

// multiport reads struct xt_multiport_v1: which ports, how many, the ports,
// which of them begins a range, and whether all that is inverted.
func (r *fwReader) multiport(info []byte) {
	const ports, spans, inverted = 2, 32, 47
	key := map[byte]string{0: fwSport, 1: fwDport}[info[0]]
	var values []string
	for i := 0; i < min(int(info[1]), 15); i++ {
		port := func(i int) int { return int(binary.NativeEndian.Uint16(info[ports+2*i:])) }
		if info[spans+i] != 0 && i+1 < 15 {
			values = append(values, portSpan(port(i), port(i+1)))
			i++
			continue
		}
		values = append(values, strconv.Itoa(port(i)))
	}
	slices.Sort(values)
	r.add(key, info[inverted] != 0, values...)
}

// xtStates are the names of the bits that iptables has for states. Newer ones
// also stand for what was translated, and are not understood.
func xtStates(mask uint32) []string {
	const untracked = 256
	known := flagNames(fwState, mask&(1|2|4|8))
	if mask&untracked != 0 {
		known = append(known, "untracked")
	}
	if mask&^(1|2|4|8|untracked) != 0 {
		known = append(known, "")
	}
	return known
}
