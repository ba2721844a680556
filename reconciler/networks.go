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

// outside is what a node reaches by other ways than our networks.
type outside struct {
	subnet netip.Prefix
	node   string // name
}

// findOutside reads what the nodes tell of that, in their order. Their own
// addresses need not be in it.
func (p *planner) findOutside() {
	for _, n := range p.nodeList {
		if ip, ok := underlayIP(n); ok && !ip.IsLoopback() {
			p.outside = append(p.outside, outside{netip.PrefixFrom(ip, ip.BitLen()), p.nodeName(n.ID)})
		}
		for _, text := range strings.Split(n.Info.Subnets, ",") {
			if subnet, err := netip.ParsePrefix(text); err == nil {
				p.outside = append(p.outside, outside{subnet.Masked(), p.nodeName(n.ID)})
			}
		}
	}
}

// numberNetworks gives subnets, gateways and VNI to networks that have none. A
// family whose wanted numbers have changed, or that is not wanted any more, is
// numbered anew once no task holds an address of it. IPv6 that cannot be had
// keeps a network from being used only when it is new.
func (p *planner) numberNetworks() {
	taken := map[spec.NetworkID]*spec.Network{} // networks with the numbers that count as used
	var todo []*spec.Network
	var wanted map[spec.NetworkID]bool // when it is asked for
	for _, n := range p.snap.Networks() {
		taken[n.ID] = n // also of one that is to be renumbered: it may keep them yet
		four := p.keepsNumbers(n, false)
		if four && (n.Gone || p.keepsNumbers(n, true)) {
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
		}
		if next == nil {
			continue
		}
		taken[n.ID], p.numbered[n.ID] = next, next
		if numbers := numbersOf(next); numbers != numbersOf(n) {
			p.emit(spec.Part{
				Key:      "network " + n.Name,
				Reads:    []spec.Read{{Kind: spec.KindNetwork, Key: string(n.ID), Version: n.Version}},
				Networks: []spec.NetworkNumbers{numbers},
			})
		}
	}
}

func numbersOf(n *spec.Network) spec.NetworkNumbers {
	return spec.NetworkNumbers{ID: n.ID, Subnet: n.Subnet, Gateway: n.Gateway, VNI: n.VNI, Subnet6: n.Subnet6, Gateway6: n.Gateway6}
}

// keepsNumbers reports whether the numbers of one family of a network stay as
// they are.
func (p *planner) keepsNumbers(n *spec.Network, six bool) bool {
	have, ok := spaceOf(n, six)
	wants := &n.Spec.Pool
	if six {
		wants = n.Spec.IPv6
	}
	switch {
	case six && !p.wantsIPv6(n):
		if !ok {
			return true
		}
	case !ok || n.VNI == 0:
		return false
	case wants.Subnet == "":
		return true
	default:
		if subnet, gateway, err := wantedNumbers(wants); err != nil || subnet == have.Subnet && gateway == have.Gateway {
			return true
		}
	}
	return slices.ContainsFunc(p.byNet[n.ID], func(t *spec.Task) bool {
		return p.holdsAddress(t) && slices.ContainsFunc(t.Addresses, func(a spec.Address) bool {
			_, has := ipOf(a, six)
			return has && a.Network == n.ID
		})
	})
}

// wantedNumbers are the subnet that is asked for, and the gateway on it.
func wantedNumbers(p *spec.Pool) (subnet netip.Prefix, gateway netip.Addr, err error) {
	if subnet, err = ipam.ParseSubnet(p.Subnet); err != nil {
		return subnet, gateway, err
	}
	gateway = ipam.Gateway(subnet)
	if p.Gateway != "" {
		gateway, err = netip.ParseAddr(p.Gateway)
	}
	return subnet, gateway, err
}

// number returns n with numbers that no other network has; nil and why not when
// it cannot be used, or not nil when only its IPv6 is not as it should be.
func (p *planner) number(n *spec.Network, taken map[spec.NetworkID]*spec.Network) (*spec.Network, error) {
	next := *n
	if !p.keepsNumbers(n, false) {
		subnet, gateway, err := p.chooseNumbers(n, false, taken)
		if err != nil {
			return nil, err
		}
		next.Subnet, next.Gateway = subnet.String(), gateway.String()
	}
	if next.VNI == 0 {
		vnis := map[uint32]bool{}
		for _, other := range taken {
			vnis[other.VNI] = true
		}
		var err error
		if next.VNI, err = ipam.VNI(counter(string(n.ID)), func(v uint32) bool { return vnis[v] }); err != nil {
			return nil, fmt.Errorf("network %s: %w", n.Name, err)
		}
	}
	switch {
	case p.keepsNumbers(n, true):
	case !p.wantsIPv6(n):
		next.Subnet6, next.Gateway6 = "", ""
	default:
		subnet, gateway, err := p.chooseNumbers(n, true, taken)
		if err != nil && n.Subnet == "" {
			return nil, err
		} else if err != nil {
			return &next, err
		}
		next.Subnet6, next.Gateway6 = subnet.String(), gateway.String()
	}
	return &next, nil
}

// chooseNumbers returns the subnet and gateway that a network shall have of one
// family. It overlaps no other network, nor what the nodes reach by other ways.
func (p *planner) chooseNumbers(n *spec.Network, six bool, taken map[spec.NetworkID]*spec.Network) (subnet netip.Prefix, gateway netip.Addr, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("network %s: %w", n.Name, err)
		}
	}()
	var used []netip.Prefix
	names := map[netip.Prefix]string{}
	for id, other := range taken {
		if s, ok := spaceOf(other, six); ok && id != n.ID {
			used = append(used, s.Subnet)
			names[s.Subnet] = other.Name
		}
	}
	slices.SortFunc(used, comparePrefixes) // the first overlap is told
	pools, bits, wants := ipam.Pools4(), ipam.SubnetBits, &n.Spec.Pool
	if six {
		pools, bits, wants = []netip.Prefix{ipam.Pool6(p.snap.ClusterID())}, ipam.Subnet6Bits, n.Spec.IPv6
	}
	if wants.Subnet == "" {
		for _, o := range p.outside {
			used = append(used, o.subnet)
		}
		subnet, err = ipam.Subnet(pools, bits, counter(string(n.ID)), used)
		return subnet, ipam.Gateway(subnet), err
	}
	if subnet, gateway, err = wantedNumbers(wants); err != nil {
		return subnet, gateway, err
	}
	if with, meets := ipam.Overlap(subnet, used); meets {
		return subnet, gateway, spec.Conflictf("subnet %v overlaps %v of network %s", subnet, with, names[with])
	}
	for _, o := range p.outside {
		if n.Spec.Driver != spec.DriverMacvlan && o.subnet.Overlaps(subnet) { // that is one of theirs
			return subnet, gateway, spec.Conflictf("subnet %v overlaps %v, which node %s reaches by other ways", subnet, o.subnet, o.node)
		}
	}
	return subnet, gateway, nil
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
