package reconciler

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"wherry.dev/overlay/ipam"
	"wherry.dev/spec"
)

// numberNetworks gives subnet, gateway and VNI to networks that have none. A
// network whose wanted subnet has changed is numbered anew once no task holds
// an address on it.
func (p *planner) numberNetworks() {
	taken := map[spec.NetworkID]*spec.Network{} // networks with the numbers that count as used
	var todo []*spec.Network
	var wanted map[spec.NetworkID]bool // when it is asked for
	for _, n := range p.snap.Networks() {
		taken[n.ID] = n // also of one that is to be renumbered: it may keep them yet
		if p.keepsNumbers(n) {
			p.numbered[n.ID] = n
			continue
		}
		if n.Gone && wanted == nil {
			wanted = p.wantedNetworks()
		}
		if !n.Gone || wanted[n.ID] {
			todo = append(todo, n)
		}
	}
	for _, n := range todo {
		next, err := p.number(n, taken)
		if err != nil {
			p.troubles[n.ID] = err.Error()
			continue
		}
		taken[n.ID], p.numbered[n.ID] = next, next
		p.emit(spec.Part{
			Key:      "network " + n.Name,
			Reads:    []spec.Read{{Kind: spec.KindNetwork, Key: string(n.ID), Version: n.Version}},
			Networks: []spec.NetworkNumbers{{ID: n.ID, Subnet: next.Subnet, Gateway: next.Gateway, VNI: next.VNI}},
		})
	}
}

// keepsNumbers reports whether the numbers of a network stay as they are.
func (p *planner) keepsNumbers(n *spec.Network) bool {
	have, ok := subnetOf(n)
	if !ok || n.VNI == 0 {
		return false
	}
	if n.Spec.Subnet == "" {
		return true
	}
	want, err := ipam.ParseSubnet(n.Spec.Subnet)
	if err != nil || want == have {
		return true
	}
	return slices.ContainsFunc(p.byNet[n.ID], p.holdsAddress)
}

// number returns n with numbers that no other network has.
func (p *planner) number(n *spec.Network, taken map[spec.NetworkID]*spec.Network) (*spec.Network, error) {
	var subnets []netip.Prefix
	names := map[netip.Prefix]string{}
	vnis := map[uint32]bool{}
	for id, other := range taken {
		if id == n.ID {
			continue
		}
		vnis[other.VNI] = true
		if s, ok := subnetOf(other); ok {
			subnets = append(subnets, s)
			names[s] = other.Name
		}
	}
	slices.SortFunc(subnets, comparePrefixes) // the first overlap is told
	next, start := *n, counter(string(n.ID))
	var subnet netip.Prefix
	var err error
	if n.Spec.Subnet == "" {
		subnet, err = ipam.Subnet(ipam.Pools4(), ipam.SubnetBits, start, subnets)
	} else if subnet, err = ipam.ParseSubnet(n.Spec.Subnet); err == nil {
		if with, meets := ipam.Overlap(subnet, subnets); meets {
			err = spec.Conflictf("subnet %v overlaps %v of network %s", subnet, with, names[with])
		}
	}
	if err == nil && next.VNI == 0 {
		next.VNI, err = ipam.VNI(start, func(v uint32) bool { return vnis[v] })
	}
	if err != nil {
		return nil, fmt.Errorf("network %s: %w", n.Name, err)
	}
	next.Subnet, next.Gateway = subnet.String(), ipam.Gateway(subnet).String()
	return &next, nil
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}

// counter returns the counter of an ID, which no other object of the same
// incarnation has: networks made one after the other start their search apart.
func counter(id string) uint64 {
	_, c, _ := strings.Cut(id, "-")
	n, _ := strconv.ParseUint(c, 10, 64)
	return n
}

// addresses returns the range of a network with numbers.
func (p *planner) addresses(n *spec.Network) *ipam.Range {
	if r := p.ranges[n.ID]; r != nil {
		return r
	}
	subnet, _ := subnetOf(n)
	r := ipam.NewRange(n.Name, ipam.Space{Subnet: subnet, Gateway: ipam.Gateway(subnet)})
	for _, ip := range p.vipsOn[n.ID] {
		r.Hold(ip) // before the tasks: the search goes on behind the newest of these
	}
	for _, t := range p.byNet[n.ID] {
		for _, a := range t.Addresses {
			ip, ok := ipOf(a)
			switch {
			case !ok || a.Network != n.ID:
			case p.holdsAddress(t):
				r.Hold(ip)
			default:
				r.Rest(ip)
			}
		}
	}
	p.ranges[n.ID] = r
	return r
}
