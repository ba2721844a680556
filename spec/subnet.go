package spec

import "net/netip"

// ParseSubnet checks the subnet that a network asks for and returns it with
// the bits of the host cleared. It has to be IPv4, with room for a gateway and
// at least one task, and no larger than a /8.
func ParseSubnet(s string) (string, error) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return "", Invalidf("%q is not a subnet such as 10.1.0.0/24", s)
	case !p.Addr().Is4():
		return "", Invalidf("the subnet %s is not IPv4: IPv6 networks are not built yet", s)
	case p.Bits() < 8 || p.Bits() > 29:
		return "", Invalidf("the subnet %s must have a prefix length from 8 to 29", s)
	case p.Addr().IsLoopback() || p.Addr().IsMulticast() || p.Addr().IsUnspecified():
		return "", Invalidf("the subnet %s cannot be used for tasks", s)
	}
	return p.Masked().String(), nil
}
