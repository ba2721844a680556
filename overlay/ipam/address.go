package ipam

import (
	"net/netip"

	"wherry.dev/spec"
)

// Range hands out the addresses of one network during one pass.
type Range struct {
	name   string
	prefix netip.Prefix
	// held addresses belong to tasks that are not over, or are the virtual ones
	// of services; rested ones belong to tasks that are over, and are taken again
	// only when no other is left.
	held, rested map[netip.Addr]bool
	// next is where the search begins: behind the newest address.
	next netip.Addr
}

// NewRange returns the range of a network with the given name, for messages,
// and subnet. The network's own address, its gateway, and for IPv4 the
// broadcast address are never handed out.
func NewRange(name string, subnet netip.Prefix) *Range {
	p := subnet.Masked()
	return &Range{
		name: name, prefix: p,
		held: map[netip.Addr]bool{}, rested: map[netip.Addr]bool{},
		next: Gateway(p).Next(),
	}
}

// Hold notes that a task which is not over, or a service, has the address. Tasks
// must be told after services, from the oldest to the newest, with Rest for those
// that are over: the search goes on behind the newest.
func (r *Range) Hold(a netip.Addr) { r.note(a, r.held) }

// Rest notes that a task which is over, but still known, had the address.
func (r *Range) Rest(a netip.Addr) { r.note(a, r.rested) }

func (r *Range) note(a netip.Addr, in map[netip.Addr]bool) {
	if r.prefix.Contains(a) {
		in[a] = true
		r.next = a.Next()
	}
}

// Take returns the next free address and holds it: round the subnet from the
// newest address on, so that an address rests as long as the subnet allows;
// one that a known task had comes only after all others. The error is of class
// ErrUnavailable.
func (r *Range) Take() (netip.Addr, error) {
	a, err := r.Peek()
	if err == nil {
		r.Hold(a)
	}
	return a, err
}

// Peek returns what Take would, and holds nothing.
func (r *Range) Peek() (netip.Addr, error) {
	for _, spare := range []bool{true, false} {
		if a, ok := r.search(spare); ok {
			return a, nil
		}
	}
	return netip.Addr{}, spec.Unavailablef("network %s has no free address: all of %v are in use", r.name, r.prefix)
}

// search goes round once. It ends after as many steps as there are addresses,
// or as there can be obstacles, whichever is less.
func (r *Range) search(spare bool) (netip.Addr, bool) {
	first, last := Gateway(r.prefix).Next(), lastOf(r.prefix)
	a := r.next
	for range len(r.held) + len(r.rested) + 2 {
		if !a.IsValid() || a.Less(first) || last.Less(a) {
			a = first
		}
		if !r.held[a] && !(spare && r.rested[a]) {
			return a, true
		}
		a = a.Next()
	}
	return netip.Addr{}, false
}

// Has reports whether an address is one that the range of a subnet hands out.
func Has(subnet netip.Prefix, a netip.Addr) bool {
	p := subnet.Masked()
	return !a.Less(Gateway(p).Next()) && !lastOf(p).Less(a)
}

// lastOf returns the highest address of p that a task may have.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	if a.Is4() {
		return a.Prev() // broadcast
	}
	return a
}
