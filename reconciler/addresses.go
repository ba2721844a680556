package reconciler

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"wherry.dev/cluster/store"
	"wherry.dev/overlay/ipam"
	"wherry.dev/spec"
)

// pool names the addresses of one family on a network.
type pool struct {
	network spec.NetworkID
	six     bool // of IPv6
}

// claim is one address.
type claim struct {
	pool
	ip netip.Addr
}

// spaceOf returns what a network has of one family; ok is false while it has no
// numbers of it. What it wants of a subnet that it does not have is left out.
func spaceOf(n *spec.Network, six bool) (s ipam.Space, ok bool) {
	subnet, gateway, wants := n.Subnet, n.Gateway, &n.Spec.Pool
	if six {
		subnet, gateway, wants = n.Subnet6, n.Gateway6, n.Spec.IPv6
	}
	p, err := netip.ParsePrefix(subnet)
	if err != nil {
		return ipam.Space{}, false
	}
	s = ipam.Space{Subnet: p, Gateway: ipam.Gateway(p)}
	if a, err := netip.ParseAddr(gateway); err == nil {
		s.Gateway = a
	}
	if wants == nil || wants.Subnet == "" {
		return s, true
	}
	if w, err := ipam.ParseSubnet(wants.Subnet); err != nil || w != p {
		return s, true
	}
	s.Range, _ = netip.ParsePrefix(wants.Range) // invalid: all of the subnet
	for _, text := range wants.Reserved {
		if a, err := netip.ParseAddr(text); err == nil {
			s.Reserved = append(s.Reserved, a)
		}
	}
	return s, true
}

// wantsIPv6 reports whether tasks on a network are to have IPv6 addresses.
func (v *view) wantsIPv6(n *spec.Network) bool {
	return n.Spec.IPv6 != nil && v.snap.Format() >= store.AddressFormat
}

// space returns what a network has of one family by the numbers of this plan,
// with the addresses that services ask for among those that are not chosen. It
// is nil where none is given to anybody.
func (p *planner) space(n *spec.Network, six bool) *ipam.Space {
	if six && !p.wantsIPv6(n) {
		return nil
	}
	k := pool{n.ID, six}
	if have, known := p.spaces[k]; known {
		return have
	}
	p.spaces[k] = nil
	if s, ok := spaceOf(p.numberedOr(n), six); ok {
		s.Reserved = append(s.Reserved, p.fixed[k]...)
		p.spaces[k] = &s
	}
	return p.spaces[k]
}

// addresses returns the range of one family of a network that has a space.
func (p *planner) addresses(n *spec.Network, six bool) *ipam.Range {
	k := pool{n.ID, six}
	if r := p.ranges[k]; r != nil {
		return r
	}
	r := ipam.NewRange(n.Name, *p.space(n, six))
	for _, svc := range p.vipsOn[n.ID] {
		if ip, ok := vipOn(svc, n.ID, six); ok {
			r.Hold(ip) // before the tasks: the search goes on behind the newest of these
		}
	}
	for _, t := range p.byNet[n.ID] {
		for _, a := range t.Addresses {
			ip, ok := ipOf(a, six)
			switch {
			case !ok || a.Network != n.ID:
			case p.holdsAddress(t):
				r.Hold(ip)
			default:
				r.Rest(ip)
			}
		}
	}
	p.ranges[k] = r
	return r
}

// findFixed collects the addresses that services ask for, which nobody else is
// given.
func (p *planner) findFixed() {
	for _, svc := range p.services {
		if svc.Spec.Template.FixedAddress() == "" {
			continue
		}
		for _, a := range p.attachments(svc.Stack, &svc.Spec.Template) {
			if a.net == nil {
				continue
			}
			for _, six := range []bool{false, true} {
				k := pool{a.net.ID, six}
				p.fixed[k] = append(p.fixed[k], p.asks(svc, a.net, six)...)
			}
		}
	}
}

// asks returns the address of one family that a service asks for on a network.
func (p *planner) asks(svc *spec.Service, n *spec.Network, six bool) []netip.Addr {
	for i, a := range p.attachments(svc.Stack, &svc.Spec.Template) {
		if a.net != nil && a.net.ID == n.ID {
			if ip, err := netip.ParseAddr(fixedOf(&svc.Spec.Template.Networks[i], six)); err == nil {
				return []netip.Addr{ip}
			}
		}
	}
	return nil
}

// fixedOf is the address that an attachment asks for, "" for any.
func fixedOf(a *spec.Attachment, six bool) string {
	if six {
		return a.IP6
	}
	return a.IP
}

// takeAddresses takes the addresses of a new task, or says why there is none.
func (s *pass) takeAddresses() ([]spec.Address, string) {
	var out []spec.Address
	for i, a := range s.nets {
		at := &s.tmpl.Networks[i]
		if why := s.macTaken(a.net, at.MAC, nil); why != "" {
			return nil, why
		}
		x := spec.Address{Network: a.net.ID, Interface: at.Interface}
		for _, six := range []bool{false, true} {
			space, fixed := s.space(a.net, six), fixedOf(&s.tmpl.Networks[i], six)
			if why := s.roomFor(a.net, six, fixed, nil); why != "" {
				return nil, why
			}
			if space == nil {
				continue
			}
			ip, err := netip.ParseAddr(fixed)
			if err != nil {
				ip, _ = s.addresses(a.net, six).Take()
			} else {
				s.addresses(a.net, six).Hold(ip)
				s.given[claim{pool{a.net.ID, six}, ip}] = s.svc.Key()
			}
			text := netip.PrefixFrom(ip, space.Subnet.Bits()).String()
			if six {
				x.IP6 = text
			} else {
				x.IP, x.MAC = text, ipam.MAC(ip)
			}
		}
		if at.MAC != "" {
			x.MAC = at.MAC
			s.macs[macClaim{a.net.ID, at.MAC}] = s.svc.Key()
		}
		out = append(out, x)
	}
	return out, ""
}

// macClaim is a MAC address on a network.
type macClaim struct {
	network spec.NetworkID
	mac     string
}

// macTaken says why a task cannot have the MAC address that it asks for, or "".
// The old task is the one that gives it back.
func (s *pass) macTaken(n *spec.Network, mac string, old *spec.Task) string {
	if mac == "" {
		return ""
	}
	what := fmt.Sprintf("MAC address %s on network %s", mac, n.Name)
	if holder := s.macs[macClaim{n.ID, mac}]; holder != "" {
		return fmt.Sprintf("waits for %s, which service %s has", what, holder)
	}
	for _, t := range s.byNet[n.ID] {
		has := slices.ContainsFunc(t.Addresses, func(a spec.Address) bool { return a.Network == n.ID && a.MAC == mac })
		switch {
		case !has || old != nil && t.ID == old.ID || !s.holdsAddress(t):
		case !s.nodeUp(t.Node):
			return fmt.Sprintf("%s is held by a task of service %s on node %s, which is down: it is free when the node is back or removed", what, serviceKey(t), s.nodeName(t.Node))
		default:
			return fmt.Sprintf("waits for %s, which service %s has", what, serviceKey(t))
		}
	}
	return ""
}

// addressRoom says which address of a new task cannot be had, or "", once the
// old task, if there is one, has given back its own.
func (s *pass) addressRoom(old *spec.Task) string {
	for i, a := range s.nets {
		if a.net == nil {
			continue // that is told as missing
		}
		if why := s.macTaken(a.net, s.tmpl.Networks[i].MAC, old); why != "" {
			return why
		}
		for _, six := range []bool{false, true} {
			if why := s.roomFor(a.net, six, fixedOf(&s.tmpl.Networks[i], six), old); why != "" {
				return why
			}
		}
	}
	return ""
}

// roomFor says why a task can have no address of one family on a network, or
// not the one that it asks for.
func (s *pass) roomFor(n *spec.Network, six bool, fixed string, old *spec.Task) string {
	space := s.space(n, six)
	var had netip.Addr // of the old task
	if old != nil {
		for _, a := range old.Addresses {
			if ip, has := ipOf(a, six); has && a.Network == n.ID {
				had = ip
			}
		}
	}
	ip, err := netip.ParseAddr(fixed)
	switch {
	case space == nil && (err != nil || !six): // there is no IPv6, or no number at all, which is told as missing
		return ""
	case err != nil:
		if space.Chooses(had) {
			return ""
		}
		if _, err := s.addresses(n, six).Peek(); err != nil {
			return err.Error()
		}
		return ""
	case space == nil:
		return fmt.Sprintf("address %s cannot be had: network %s has no IPv6", ip, n.Name)
	case !space.Usable(ip):
		return fmt.Sprintf("address %s cannot be had: network %s has %s with gateway %s", ip, n.Name, space.Subnet, space.Gateway)
	case ip == had || s.addresses(n, six).Free(ip):
		return ""
	}
	return s.whoHolds(n, six, ip)
}

// whoHolds says what an address waits for that somebody else has, or why it does
// not wait.
func (s *pass) whoHolds(n *spec.Network, six bool, ip netip.Addr) string {
	what := fmt.Sprintf("address %s on network %s", ip, n.Name)
	holder := s.given[claim{pool{n.ID, six}, ip}] // in this plan
	for _, t := range s.byNet[n.ID] {
		has := slices.ContainsFunc(t.Addresses, func(a spec.Address) bool {
			have, ok := ipOf(a, six)
			return ok && a.Network == n.ID && have == ip
		})
		if !has || !s.holdsAddress(t) {
			continue
		}
		if !s.nodeUp(t.Node) {
			return fmt.Sprintf("%s is held by a task of service %s on node %s, which is down: it is free when the node is back or removed", what, serviceKey(t), s.nodeName(t.Node))
		}
		holder = serviceKey(t)
	}
	for _, svc := range s.vipsOn[n.ID] {
		if have, ok := vipOn(svc, n.ID, six); ok && have == ip {
			return fmt.Sprintf("waits for %s, which is the virtual one of service %s", what, svc.Key())
		}
	}
	if svc := s.byKey[holder]; svc != nil && holder != s.svc.Key() && slices.Contains(s.asks(svc, n, six), ip) {
		return fmt.Sprintf("%s is taken: service %s asks for it as well", what, holder)
	}
	return fmt.Sprintf("waits for %s, which service %s has", what, holder)
}

// misaddressed says whether a task's addresses are not what the service would
// get now: a network was renumbered, has gained or lost a family, chooses from
// elsewhere, or its name means another.
func (s *pass) misaddressed(t *spec.Task) string {
	if len(t.Addresses) != len(s.nets) {
		return "its networks have changed"
	}
	for i, a := range t.Addresses {
		n := s.nets[i].net
		if n == nil {
			continue // nothing better is known
		}
		if a.Network != n.ID {
			return "network " + n.Name + " has changed"
		}
		for _, six := range []bool{false, true} {
			if why := s.misplaced(n, a, six, fixedOf(&s.tmpl.Networks[i], six)); why != "" {
				return why
			}
		}
	}
	return ""
}

// misplaced says why a task must not keep its address of one family, or "".
func (s *pass) misplaced(n *spec.Network, a spec.Address, six bool, fixed string) string {
	space := s.space(n, six)
	ip, has := ipOf(a, six)
	switch {
	case six && has && !s.wantsIPv6(n):
		return "network " + n.Name + " has no IPv6 any more"
	case space == nil: // nothing better is known
		return ""
	case six && !has:
		return "network " + n.Name + " has IPv6 now"
	case !has || !space.Subnet.Contains(ip):
		return "network " + n.Name + " has changed"
	case fixed == "" && !space.Chooses(ip):
		return fmt.Sprintf("network %s keeps address %s for others", n.Name, ip)
	}
	return ""
}

// networkNote says what a person ought to know of the networks of a service,
// which work all the same, or "".
func (p *planner) networkNote(svc *spec.Service) string {
	for _, a := range p.attachments(svc.Stack, &svc.Spec.Template) {
		if a.net == nil || p.numbered[a.net.ID] == nil {
			continue // told by its tasks
		}
		if why := cmp.Or(p.troubles[a.net.ID], p.meetsHosts(a.net), p.renumberNote(a.net)); why != "" {
			return why
		}
	}
	return ""
}

// meetsHosts says which node reaches addresses of a network by other ways, "".
func (p *planner) meetsHosts(n *spec.Network) string {
	if n.Spec.Driver == spec.DriverMacvlan {
		return "" // it is one of theirs
	}
	for _, six := range []bool{false, true} {
		s, ok := spaceOf(n, six)
		if !ok {
			continue
		}
		for _, o := range p.outside {
			if o.subnet.Overlaps(s.Subnet) {
				return fmt.Sprintf("network %s keeps %s, though node %s reaches %s by other ways: from there one hides the other", n.Name, s.Subnet, o.node, o.subnet)
			}
		}
	}
	return ""
}

// renumberNote says which numbers a network wants and does not get yet, or "".
func (p *planner) renumberNote(n *spec.Network) string {
	for _, six := range []bool{false, true} {
		wants := &n.Spec.Pool
		if six {
			wants = n.Spec.IPv6
		}
		have, ok := spaceOf(n, six)
		if !ok || wants == nil || wants.Subnet == "" {
			continue
		}
		if subnet, gateway, err := wantedNumbers(wants); err == nil && (subnet != have.Subnet || gateway != have.Gateway) {
			return fmt.Sprintf("network %s keeps %s with gateway %s as long as a task is on it, and then gets %s with %s",
				n.Name, have.Subnet, have.Gateway, subnet, gateway)
		}
	}
	return ""
}
