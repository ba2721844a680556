package ipam

import (
	"crypto/sha256"
	"net/netip"
	"slices"
	"strings"

	"wherry.dev/spec"
)

// Pool is where networks that ask for no subnet get theirs: 2,048 subnets of
// SubnetBits, 10.200.0.0/24 to 10.207.255.0/24. It keeps clear of the pools of
// Docker (172.17–172.31, 192.168, Swarm's overlays from the start of 10/8) and
// of the usual ones of Kubernetes (10.42, 10.43, 10.96, 10.244).
const Pool = "10.200.0.0/13"

// Spare is where they get theirs when nothing is free in Pool, as where hosts
// have a route for all of 10/8: as many, at the end that Docker comes to last.
const Spare = "172.24.0.0/13"

const (
	// SubnetBits is the prefix length of a subnet of the pools: 253 tasks.
	SubnetBits = 24
	// Subnet6Bits is that of an IPv6 subnet.
	Subnet6Bits = 64
	// FirstVNI is the lowest network identifier in use; lower ones are left to
	// whatever else runs VXLAN by hand.
	FirstVNI = 4096
	// LastVNI is the highest: a VNI has 24 bits.
	LastVNI = 1<<24 - 1
)

// Pools4 are the pools of IPv4 in the order in which they are used.
func Pools4() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix(Pool), netip.MustParsePrefix(Spare)}
}

// Pool6 returns where the networks of a cluster get their IPv6 subnets: 65,536
// of Subnet6Bits in a /48 of local addresses (RFC 4193), whose random part is a
// hash of the cluster's ID. Two clusters have different ones, so that their
// hosts and networks may be joined one day.
func Pool6(clusterID string) netip.Prefix {
	sum := sha256.Sum256([]byte("wherry networks " + clusterID))
	b := [16]byte{0: 0xfd}
	copy(b[1:6], sum[:])
	return netip.PrefixFrom(netip.AddrFrom16(b), 48)
}

// Subnet returns a subnet of one of the pools, the first that has one, that
// overlaps none of the used ones. The search begins at the given subnet of a
// pool, counted from 0 and wrapped: a caller that passes a number which grows
// with every network gets a subnet back only after all others have been had.
// bits is the prefix length of the subnet, at most 32 more than that of a pool.
// The error is of class ErrUnavailable and says that the pools are used up.
func Subnet(pools []netip.Prefix, bits int, start uint64, used []netip.Prefix) (netip.Prefix, error) {
	var names []string
	for _, pool := range pools {
		names = append(names, pool.String())
		near := slices.DeleteFunc(slices.Clone(used), func(u netip.Prefix) bool { return !u.Overlaps(pool) })
		if slices.ContainsFunc(near, func(u netip.Prefix) bool { return u.Bits() <= pool.Bits() }) {
			continue // all of it at once
		}
		n := uint64(1) << (bits - pool.Bits())
		for i := range n {
			p := nth(pool, bits, (start+i)%n)
			if _, taken := Overlap(p, near); !taken {
				return p, nil
			}
		}
	}
	return netip.Prefix{}, spec.Unavailablef("no subnet is free in %s: all are used by networks, or by the hosts themselves", strings.Join(names, " and "))
}

// nth returns the subnet with a number of a pool.
func nth(pool netip.Prefix, bits int, n uint64) netip.Prefix {
	b := pool.Masked().Addr().AsSlice()
	for at := bits - 1; n > 0; at, n = at-1, n>>1 {
		b[at/8] |= byte(n&1) << (7 - at%8)
	}
	a, _ := netip.AddrFromSlice(b)
	return netip.PrefixFrom(a, bits)
}

// Overlap returns the first of the used prefixes that shares an address with p.
func Overlap(p netip.Prefix, used []netip.Prefix) (with netip.Prefix, ok bool) {
	for _, u := range used {
		if u.Overlaps(p) {
			return u, true
		}
	}
	return netip.Prefix{}, false
}

// ParseSubnet reads a subnet that a user wrote. It must leave room for the
// gateway and a task. The error is of class ErrInvalid.
func ParseSubnet(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, spec.Invalidf("subnet %q: want an address with prefix length such as 10.8.0.0/24", s)
	}
	if hostBits := p.Addr().BitLen() - p.Bits(); hostBits < 2 {
		return netip.Prefix{}, spec.Invalidf("subnet %s is too small: it holds no gateway and task", s)
	}
	return p.Masked(), nil
}

// Gateway returns the gateway of a subnet for which none was asked: its first
// address.
func Gateway(p netip.Prefix) netip.Addr { return p.Masked().Addr().Next() }

// VNI returns an unused network identifier. The search begins at FirstVNI +
// start and wraps, as that of Subnet. used tells whether one is taken. The
// error is of class ErrUnavailable.
func VNI(start uint64, used func(uint32) bool) (uint32, error) {
	const n = LastVNI - FirstVNI + 1
	for i := range uint64(n) {
		v := FirstVNI + uint32((start+i)%n)
		if !used(v) {
			return v, nil
		}
	}
	return 0, spec.Unavailablef("no VNI is free: all %d are used by networks", n)
}

// MAC returns the hardware address that belongs to an address: 02:58 (locally
// administered) and the last four bytes of the address. On one network it is
// unique as far as these are, as those of IPv4 are: a task with both families
// has the one that belongs to its IPv4 address.
func MAC(ip netip.Addr) string {
	b := ip.AsSlice()
	const hex = "0123456789abcdef"
	out := []byte("02:58")
	for _, v := range b[len(b)-4:] {
		out = append(out, ':', hex[v>>4], hex[v&15])
	}
	return string(out)
}
