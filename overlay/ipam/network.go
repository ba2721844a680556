package ipam

import (
	"encoding/binary"
	"net/netip"

	"wherry.dev/spec"
)

// Pool is where networks that ask for no subnet get theirs: 2,048 subnets of
// SubnetBits, 10.200.0.0/24 to 10.207.255.0/24. It keeps clear of the pools of
// Docker (172.17–172.31, 192.168, Swarm's overlays from the start of 10/8) and
// of the usual ones of Kubernetes (10.42, 10.43, 10.96, 10.244).
const Pool = "10.200.0.0/13"

const (
	// SubnetBits is the prefix length of a subnet of the pool: 253 tasks.
	SubnetBits = 24
	// FirstVNI is the lowest network identifier in use; lower ones are left to
	// whatever else runs VXLAN by hand.
	FirstVNI = 4096
	// LastVNI is the highest: a VNI has 24 bits.
	LastVNI = 1<<24 - 1
)

// Subnet returns a subnet of the pool that overlaps none of the used ones. The
// search begins at the given subnet of the pool, counted from 0 and wrapped: a
// caller that passes a number which grows with every network gets a subnet
// back only after all others have been had. The error is of class
// ErrUnavailable and says that the pool is used up.
func Subnet(start uint64, used []netip.Prefix) (netip.Prefix, error) {
	pool := netip.MustParsePrefix(Pool)
	n := uint64(1) << (SubnetBits - pool.Bits())
	base := binary.BigEndian.Uint32(pool.Addr().AsSlice())
	for i := range n {
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], base+uint32((start+i)%n)<<(32-SubnetBits))
		p := netip.PrefixFrom(netip.AddrFrom4(b), SubnetBits)
		if _, taken := Overlap(p, used); !taken {
			return p, nil
		}
	}
	return netip.Prefix{}, spec.Unavailablef("no subnet is free in %s: all %d are used by networks", Pool, n)
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

// Gateway returns the gateway of a subnet: its first address.
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
// unique as far as these are.
func MAC(ip netip.Addr) string {
	b := ip.AsSlice()
	const hex = "0123456789abcdef"
	out := []byte("02:58")
	for _, v := range b[len(b)-4:] {
		out = append(out, ':', hex[v>>4], hex[v&15])
	}
	return string(out)
}
