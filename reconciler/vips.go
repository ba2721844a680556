package reconciler

import (
	"net/netip"
	"slices"

	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// settleVIPs gives every service a virtual address on each of its networks, and
// takes back what it must not have any more. It comes after the passes over all
// services: where addresses are scarce, tasks are worth more.
//
// An address stays as long as the service and the numbers of the network do, so
// that nobody who has looked it up is led astray. What is taken back is given
// away by a later plan only: this one's parts may be applied in part.
func (p *planner) settleVIPs() {
	if p.snap.Format() < store.VIPFormat {
		return // not every manager knows of them
	}
	parts := map[string]int{} // by key
	for i := range p.plan.Parts {
		parts[p.plan.Parts[i].Key] = i
	}
	for _, svc := range p.services {
		vips, nets := p.vips(svc)
		if slices.Equal(vips, svc.VIPs) {
			continue
		}
		// Two parts of one plan cannot stand on one version when the first moves it.
		i, ok := parts[partKey(svc)]
		if !ok {
			i = len(p.plan.Parts)
			p.plan.Parts = append(p.plan.Parts, newPart(svc))
		}
		part := &p.plan.Parts[i]
		if part.Service == nil {
			part.Service = &spec.ServiceChange{Stack: svc.Stack, Name: svc.Name}
		}
		part.Service.VIPs = &vips
		for _, n := range nets {
			p.read(part, spec.KindNetwork, string(n.ID), n.Version)
		}
		sortReads(part)
	}
}

// vips returns the virtual addresses that a service shall have, in the order of
// its networks, and the networks on which it gets one by this plan. Without an
// IPv4 address there is none of IPv6 either.
func (p *planner) vips(svc *spec.Service) (vips []spec.ServiceVIP, fresh []*spec.Network) {
	vips = []spec.ServiceVIP{}
	if !svc.Spec.HasVIP() {
		return vips, nil
	}
	on := map[spec.NetworkID]bool{}
	for _, a := range p.attachments(svc.Stack, &svc.Spec.Template) {
		if a.net == nil || on[a.net.ID] {
			continue
		}
		on[a.net.ID] = true
		v, got := spec.ServiceVIP{Network: a.net.ID}, false
		for _, six := range []bool{false, true} {
			ip, kept := p.keptVIP(svc, a.net.ID, six)
			if !kept && p.space(a.net, six) != nil && p.numbered[a.net.ID] != nil && (!six || v.Address != "") {
				var err error
				if ip, err = p.addresses(a.net, six).Take(); err != nil {
					continue // Status says so
				}
				got = true
			}
			v = withVIP(v, ip, six)
		}
		if v.Address != "" {
			vips = append(vips, v)
		}
		if got {
			fresh = append(fresh, a.net)
		}
	}
	for _, old := range svc.VIPs { // where it leaves a network task by task
		if ip, ok := p.keptVIP(svc, old.Network, false); ok && !on[old.Network] && p.stillOn(svc, old.Network) {
			ip6, _ := p.keptVIP(svc, old.Network, true)
			vips = append(vips, withVIP(withVIP(spec.ServiceVIP{Network: old.Network}, ip, false), ip6, true))
		}
	}
	return vips, fresh
}

// withVIP sets one address, if it is one.
func withVIP(v spec.ServiceVIP, ip netip.Addr, six bool) spec.ServiceVIP {
	switch {
	case !ip.IsValid():
	case six:
		v.Address6 = ip.String()
	default:
		v.Address = ip.String()
	}
	return v
}

// keptVIP returns the virtual address of a service on a network, if the network
// would still choose it, as it does while no other numbers can be had.
func (p *planner) keptVIP(svc *spec.Service, network spec.NetworkID, six bool) (netip.Addr, bool) {
	ip, ok := vipOn(svc, network, six)
	n := p.snap.Network(network)
	if !ok || n == nil || n.Gone && p.numbered[network] == nil {
		return netip.Addr{}, false
	}
	if space := p.space(n, six); space == nil || !space.Chooses(ip) {
		return netip.Addr{}, false
	}
	return ip, true
}

// stillOn reports whether a service has a task on a network that this plan does
// not end for good.
func (p *planner) stillOn(svc *spec.Service, network spec.NetworkID) bool {
	return slices.ContainsFunc(p.tasks[svc.Key()], func(t *spec.Task) bool {
		return !t.Status.State.Terminal() && !p.over[t.ID] &&
			slices.ContainsFunc(t.Addresses, func(a spec.Address) bool { return a.Network == network })
	})
}

// whyNoVIP says why a service lacks a virtual address, or "".
func (p *planner) whyNoVIP(svc *spec.Service) string {
	if p.snap.Format() < store.VIPFormat || !svc.Spec.HasVIP() {
		return ""
	}
	for _, a := range p.attachments(svc.Stack, &svc.Spec.Template) {
		if a.net == nil {
			continue
		}
		for _, six := range []bool{false, true} {
			if _, has := vipOn(svc, a.net.ID, six); has || p.space(a.net, six) == nil {
				continue
			}
			if _, err := p.addresses(a.net, six).Peek(); err != nil {
				return "its name leads to its tasks, as with endpoint_mode dnsrr, for there is no virtual address: " + err.Error()
			}
		}
	}
	return ""
}
