package reconciler

import (
	"cmp"
	"fmt"
	"maps"
	"time"

	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// attachedTo are the networks of a service that exist.
func (v *view) attachedTo(svc *spec.Service) map[spec.NetworkID]bool {
	out := map[spec.NetworkID]bool{}
	for _, a := range v.attachments(svc.Stack, &svc.Spec.Template) {
		if a.net != nil {
			out[a.net.ID] = true
		}
	}
	return out
}

// wantedNetworks are the networks that any service attaches to.
func (v *view) wantedNetworks() map[spec.NetworkID]bool {
	wanted := map[spec.NetworkID]bool{}
	for _, svc := range v.services {
		maps.Copy(wanted, v.attachedTo(svc))
	}
	return wanted
}

// usersOf are the keys of the services that attach to a network.
func (v *view) usersOf(network spec.NetworkID) []string {
	var keys []string
	for _, svc := range v.services {
		if v.attachedTo(svc)[network] {
			keys = append(keys, svc.Key())
		}
	}
	return keys
}

// missingNetwork says which network of the service does not exist, or "". That
// can only be an external one: a stack's own networks are made with it.
func (s *pass) missingNetwork() string {
	for _, a := range s.nets {
		if a.net == nil {
			return s.whyNoNetwork(a.name)
		}
	}
	return ""
}

// whyNoNetwork names what may have been meant by the name of a network that
// does not exist, or says how it is made.
func (p *planner) whyNoNetwork(name string) string {
	why := "network " + name + " does not exist"
	var names []string
	for _, n := range p.snap.Networks() {
		if n.Short == name {
			return fmt.Sprintf("%s: what stack %s calls %s has the name %s in the cluster", why, n.Stack, name, n.Name)
		}
		names = append(names, n.Name)
	}
	if near := spec.Nearest(name, names); near != "" {
		return why + ": did you mean " + near + "?"
	}
	return fmt.Sprintf("%s: declare it in a stack, with \"name: %s\", or make it by \"wherry network create %s\"", why, name, name)
}

// NetworkUse says what a network is there for.
type NetworkUse struct {
	// Services that attach to it, by key, sorted.
	Services []string
	// Problem says why it has no subnet, or not that of IPv6; empty for one that
	// has, or is about to.
	Problem string
	// Note is what a person ought to know of it all the same.
	Note string
}

// Uses returns the uses of all networks, by ID.
func Uses(s *store.Snapshot, now time.Time) map[spec.NetworkID]NetworkUse {
	p := newPlanner(s, now.Round(0).UTC())
	p.numberNetworks()
	out := map[spec.NetworkID]NetworkUse{}
	for _, n := range s.Networks() {
		out[n.ID] = NetworkUse{Services: []string{}, Problem: p.troubles[n.ID], Note: cmp.Or(p.meetsHosts(n), p.renumberNote(n))}
	}
	for _, svc := range p.services {
		for id := range p.attachedTo(svc) {
			use := out[id]
			use.Services = append(use.Services, svc.Key())
			out[id] = use
		}
	}
	return out
}

// networksReady judges a stack that declares nothing but networks.
func (p *planner) networksReady(stack string) (state, message string) {
	p.numberNetworks()
	state = StateRunning
	for _, n := range p.snap.Networks() {
		_, numbered := spaceOf(n, false)
		switch {
		case n.Stack != stack || n.Gone:
		case p.troubles[n.ID] != "":
			return StateFailed, p.troubles[n.ID]
		case !numbered:
			state, message = StateUpdating, "network "+n.Name+" waits for its subnet"
		}
	}
	return state, message
}
