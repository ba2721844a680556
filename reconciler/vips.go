package reconciler

import (
	"net/netip"
	"slices"

	"wherry.dev/cluster/store"
	"wherry.dev/overlay/ipam"
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
// its networks, and the networks on which it gets one by this plan.
func (p *planner) vips(svc *spec.Service) (vips []spec.ServiceVIP, fresh []*spec.Network) {
	vips = []spec.ServiceVIP{}
	if svc.Spec.EndpointMode == spec.EndpointDNSRR {
		return vips, nil
	}
	on := map[spec.NetworkID]bool{}
	for _, a := range p.attachments(svc.Stack, &svc.Spec.Template) {
		if a.net == nil || on[a.net.ID] {
			continue
		}
		on[a.net.ID] = true
		if ip, ok := p.keptVIP(svc, a.net.ID); ok {
			vips = append(vips, spec.ServiceVIP{Network: a.net.ID, Address: ip.String()})
			continue
		}
		n := p.numbered[a.net.ID]
		if n == nil {
			continue
		}
		if ip, err := p.addresses(n).Take(); err == nil { // else Status says why there is none
			vips = append(vips, spec.ServiceVIP{Network: n.ID, Address: ip.String()})
			fresh = append(fresh, a.net)
		}
	}
	for _, v := range svc.VIPs { // where it leaves a network task by task
		if ip, ok := p.keptVIP(svc, v.Network); ok && !on[v.Network] && p.stillOn(svc, v.Network) {
			vips = append(vips, spec.ServiceVIP{Network: v.Network, Address: ip.String()})
		}
	}
	return vips, fresh
}

// keptVIP returns the virtual address of a service on a network, if the numbers
// of the network still have it, as they do while no others can be had.
func (p *planner) keptVIP(svc *spec.Service, network spec.NetworkID) (netip.Addr, bool) {
	ip, ok := vipOn(svc, network)
	n := p.snap.Network(network)
	if !ok || n == nil || n.Gone && p.numbered[network] == nil {
		return ip, false
	}
	subnet, numbered := subnetOf(p.numberedOr(n))
	return ip, numbered && ipam.Space{Subnet: subnet, Gateway: ipam.Gateway(subnet)}.Usable(ip)
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
	if p.snap.Format() < store.VIPFormat || svc.Spec.EndpointMode == spec.EndpointDNSRR {
		return ""
	}
	for _, a := range p.attachments(svc.Stack, &svc.Spec.Template) {
		if a.net == nil {
			continue
		}
		if _, has := vipOn(svc, a.net.ID); has {
			continue
		}
		if _, numbered := subnetOf(a.net); !numbered {
			continue
		}
		if _, err := p.addresses(a.net).Peek(); err != nil {
			return "its name leads to its tasks, as with endpoint_mode dnsrr, for there is no virtual address: " + err.Error()
		}
	}
	return ""
}
