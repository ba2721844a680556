package ipam

import (
	"net/netip"
	"slices"

	"wherry.dev/spec"
)

// Space is what a network has of one family of addresses.
type Space struct {
	// Subnet that every address is in.
	Subnet netip.Prefix
	// Range is the part of Subnet that addresses are chosen from; the zero value
	// is all of it.
	Range netip.Prefix
	// Gateway is the address that the hosts have.
	Gateway netip.Addr
	// Reserved addresses are never chosen: they are for what is no task, or for
	// those who ask for them.
	Reserved []netip.Addr
}

// Usable reports whether an address can be that of a task or service: it is in
// the subnet, and neither its first one, the gateway, nor for IPv4 the
// broadcast address.
func (s Space) Usable(a netip.Addr) bool {
	return s.Subnet.Contains(a) && a != s.Subnet.Masked().Addr() && a != s.Gateway && !isBroadcast(s.Subnet, a)
}

// Chooses reports whether an address is one that is chosen when it is free.
func (s Space) Chooses(a netip.Addr) bool {
	return s.Usable(a) && (!s.Range.IsValid() || s.Range.Contains(a)) && !slices.Contains(s.Reserved, a)
}

// bounds returns the first and the last address that may be chosen, as far as
// subnet and range tell.
func (s Space) bounds() (first, last netip.Addr) {
	part := s.Range
	if !part.IsValid() {
		part = s.Subnet
	}
	if first = part.Masked().Addr(); first == s.Subnet.Masked().Addr() {
		first = first.Next()
	}
	if last = spec.LastAddress(part); isBroadcast(s.Subnet, last) {
		last = last.Prev()
	}
	return first, last
}

// Range hands out the addresses of one family on one network during one pass.
// What it costs depends on how many are in use, and not on the size of the
// subnet.
type Range struct {
	name        string
	space       Space
	first, last netip.Addr
	reserved    map[netip.Addr]bool
	// held addresses belong to tasks that are not over, or are the virtual ones
	// of services; rested ones belong to tasks that are over, and are taken again
	// only when no other is left.
	held, rested map[netip.Addr]bool
	// next is where the search begins: behind the newest address.
	next netip.Addr
}

// NewRange returns the range of a network with the given name, for messages.
func NewRange(name string, s Space) *Range {
	r := &Range{
		name: name, space: s, reserved: map[netip.Addr]bool{},
		held: map[netip.Addr]bool{}, rested: map[netip.Addr]bool{},
	}
	r.first, r.last = s.bounds()
	for _, a := range s.Reserved {
		r.reserved[a] = true
	}
	return r
}

// Hold notes that a task which is not over, or a service, has the address. Tasks
// must be told after services, from the oldest to the newest, with Rest for those
// that are over: the search goes on behind the newest.
func (r *Range) Hold(a netip.Addr) { r.note(a, r.held) }

// Rest notes that a task which is over, but still known, had the address.
func (r *Range) Rest(a netip.Addr) { r.note(a, r.rested) }

func (r *Range) note(a netip.Addr, in map[netip.Addr]bool) {
	if !r.space.Subnet.Contains(a) {
		return
	}
	in[a] = true
	if r.chooses(a) { // what was asked for says nothing of how far the search is
		r.next = a.Next()
	}
}

// chooses is that of the space, quicker.
func (r *Range) chooses(a netip.Addr) bool {
	return r.space.Usable(a) && !a.Less(r.first) && !r.last.Less(a) && !r.reserved[a]
}

// Free reports whether somebody who asks for an address may have it: it is
// usable and not held.
func (r *Range) Free(a netip.Addr) bool { return r.space.Usable(a) && !r.held[a] }

// Take returns the next free address and holds it: round the range from the
// newest address on, so that an address rests as long as the range allows;
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
	if r.space.Range.IsValid() {
		return netip.Addr{}, spec.Unavailablef("network %s has no free address: all of its range %v are in use", r.name, r.space.Range)
	}
	return netip.Addr{}, spec.Unavailablef("network %s has no free address: all of %v are in use", r.name, r.space.Subnet)
}

// search goes round once. It ends after as many steps as there are addresses,
// or as there can be obstacles, whichever is less.
func (r *Range) search(spare bool) (netip.Addr, bool) {
	a := r.next
	for range len(r.held) + len(r.rested) + len(r.reserved) + 3 {
		if !a.IsValid() || a.Less(r.first) || r.last.Less(a) {
			a = r.first
		}
		if r.chooses(a) && !r.held[a] && !(spare && r.rested[a]) {
			return a, true
		}
		a = a.Next()
	}
	return netip.Addr{}, false
}

// isBroadcast reports whether an address is the last one of an IPv4 subnet,
// which is that of all hosts.
func isBroadcast(p netip.Prefix, a netip.Addr) bool {
	return a.Is4() && p.Contains(a) && !p.Contains(a.Next())
}
