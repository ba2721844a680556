package overlay

import (
	"cmp"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

const (
	// maxSubnets is how many subnets of a host are told: the managers keep them.
	maxSubnets = 64
	// minSubnetBits is the shortest prefix that is a subnet: what is wider is a
	// default route by another name, as two halves of all addresses are.
	minSubnetBits = 8
)

// resolvConfs name the servers that a host asks; the second one those behind a
// server on the host itself.
var resolvConfs = []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"}

// HostSubnets returns a function that says what this host reaches by other ways
// than the networks of its node, and where its resolvers are, for
// spec.NodeInfo.Subnets. While that cannot be found out it says what it said
// last. It is for one goroutine.
func HostSubnets(node spec.NodeID) func() string {
	last := ""
	return func() string {
		found, err := hostSubnets(node)
		if err == nil {
			for _, file := range resolvConfs {
				for _, text := range hostResolvers(file) {
					if ip, err := netip.ParseAddr(text); err == nil {
						found = append(found, netip.PrefixFrom(ip.Unmap().WithZone(""), ip.Unmap().BitLen()))
					}
				}
			}
			last = subnetsText(found)
		}
		return last
	}
}

// hostSubnets returns the destinations of the main routing table and the
// addresses of the host, as they are, but for links of the node.
func hostSubnets(node spec.NodeID) ([]netip.Prefix, error) {
	own := map[int]bool{} // links, as far as asked for
	isOwn := func(index int) bool {
		is, known := own[index]
		if !known {
			if l, err := netlink.LinkByIndex(index); err == nil {
				group := l.Attrs().Group
				is = group == linkGroup(node) || group == doomedGroup(node)
			}
			own[index] = is
		}
		return is
	}
	var out []netip.Prefix
	add := func(n *net.IPNet) {
		if n == nil {
			return // a default route
		}
		if ip, ok := netip.AddrFromSlice(n.IP); ok {
			bits, _ := n.Mask.Size()
			out = append(out, netip.PrefixFrom(ip.Unmap(), min(bits, ip.Unmap().BitLen())))
		}
	}
	want := &netlink.Route{Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST}
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, want, netlink.RT_FILTER_TABLE|netlink.RT_FILTER_TYPE)
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		if r.LinkIndex == 0 || !isOwn(r.LinkIndex) { // several ways have no link
			add(r.Dst)
		}
	}
	addrs, err := netlink.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if !isOwn(a.LinkIndex) {
			add(a.IPNet)
		}
	}
	return out, nil
}

// subnetsText sorts and joins what matters of the prefixes: none within another,
// none that every host has, and when they are too many wider ones in their
// place.
func subnetsText(list []netip.Prefix) string {
	list = outermost(list, func(p netip.Prefix) netip.Prefix { return p })
	if len(list) > maxSubnets { // one route per machine, say
		list = outermost(list, func(p netip.Prefix) netip.Prefix {
			limit := 24
			if p.Addr().Is6() {
				limit = 64
			}
			return netip.PrefixFrom(p.Addr(), min(p.Bits(), limit))
		})
	}
	var out []string
	for _, p := range list[:min(len(list), maxSubnets)] {
		out = append(out, p.String())
	}
	return strings.Join(out, ",")
}

// outermost returns the prefixes as changed, sorted, without those that are in
// others, are of no use to others, or are no subnets.
func outermost(list []netip.Prefix, change func(netip.Prefix) netip.Prefix) []netip.Prefix {
	var all, out []netip.Prefix
	for _, p := range list {
		ip := p.Addr()
		if p.Bits() >= minSubnetBits && !ip.IsLoopback() && !ip.IsMulticast() && !ip.IsLinkLocalUnicast() && !ip.IsUnspecified() {
			all = append(all, change(p).Masked())
		}
	}
	slices.SortFunc(all, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	for _, p := range all {
		if n := len(out); n == 0 || !out[n-1].Overlaps(p) {
			out = append(out, p)
		}
	}
	return out
}
