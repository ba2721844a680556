package spec

import "net/netip"

// ParseSubnet checks the IPv4 subnet that a network asks for and returns it
// with the bits of the host cleared. It needs room for a gateway and at least
// one task, and is no larger than a /8.
func ParseSubnet(s string) (string, error) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return "", Invalidf("%q is not a subnet such as 10.1.0.0/24", s)
	case !p.Addr().Is4():
		return "", Invalidf("the subnet %s is not IPv4", s)
	case p.Bits() < 8 || p.Bits() > 29:
		return "", Invalidf("the subnet %s must have a prefix length from 8 to 29", s)
	case p.Addr().IsLoopback() || p.Addr().IsMulticast() || p.Addr().IsUnspecified():
		return "", Invalidf("the subnet %s cannot be used for tasks", s)
	}
	return p.Masked().String(), nil
}

// ParseSubnet6 is ParseSubnet for IPv6, of a prefix length from 16 to 125.
func ParseSubnet6(s string) (string, error) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return "", Invalidf("%q is not a subnet such as fd12:3456:789a::/64", s)
	case !p.Addr().Is6() || p.Addr().Is4In6():
		return "", Invalidf("the subnet %s is not IPv6", s)
	case p.Bits() < 16 || p.Bits() > 125:
		return "", Invalidf("the subnet %s must have a prefix length from 16 to 125", s)
	case p.Addr().IsLoopback() || p.Addr().IsMulticast() || p.Addr().IsUnspecified() || p.Addr().IsLinkLocalUnicast():
		return "", Invalidf("the subnet %s cannot be used for tasks", s)
	}
	return p.Masked().String(), nil
}

// LastAddress returns the highest address of p, which for IPv4 is that of all
// hosts.
func LastAddress(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
