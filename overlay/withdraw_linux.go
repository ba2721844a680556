package overlay

import (
	"context"
	"slices"

	"wherry.dev/spec"
)

// Withdrawn returns nil as soon as this host leads no new traffic to any of the
// addresses: no name, VIP or published port that was brought to the kernel or
// to the DNS does, and none of the documents is about to. Before the first
// success of this process nobody knows that of any address. When ctx ends
// before, it returns ctx's error. Connections that exist go on.
func (h *Host) Withdrawn(ctx context.Context, addrs []spec.Address) error {
	for {
		changed := h.led.changed() // before the look, so that nothing is missed
		if len(h.Leads(addrs)) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// Leads returns those of the addresses that this host may still lead new
// traffic to. What is no address leads nowhere.
func (h *Host) Leads(addrs []spec.Address) []spec.Address {
	var still []spec.Address
	told := map[spec.NetworkID]map[endpoint]bool{}
	for _, a := range addrs {
		if told[a.Network] == nil {
			told[a.Network] = h.told(a.Network)
		}
		if slices.ContainsFunc([]string{a.IP, a.IP6}, func(ip string) bool {
			e, ok := endpointOf(a.Network, ip)
			return ok && (told[a.Network][e] || h.led.leads(e))
		}) {
			still = append(still, a)
		}
	}
	return still
}

// told are the endpoints that the newest document of a network leads to. It
// will be brought to the kernel, whatever is there now.
func (h *Host) told(id spec.NetworkID) map[endpoint]bool {
	h.mu.Lock()
	n, ok := h.nets[id]
	h.mu.Unlock()
	if !ok {
		return map[endpoint]bool{}
	}
	to := targets([]spec.HostNetwork{n})
	for e := range answers([]spec.NameTable{{Network: id, Names: n.Names}}) {
		to[e] = true
	}
	return to
}

// Peers are the other nodes on which the networks of the addresses are, sorted.
func (h *Host) Peers(addrs []spec.Address) []spec.NodeID {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []spec.NodeID
	for _, a := range addrs {
		for _, p := range h.nets[a.Network].Hosts {
			out = append(out, p.Node)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// tryNets notes that a pass brings the kernel to nets, which are wanted since
// change.
func (h *Host) tryNets(change uint64, nets []spec.HostNetwork) {
	if !h.led.current(change) {
		h.led.try(&h.led.kernel, targets(nets))
	}
}

// broughtNets notes that a pass has done so without an error.
func (h *Host) broughtNets(change uint64, nets []spec.HostNetwork) {
	if !h.led.current(change) {
		h.led.succeed(&h.led.kernel, change, targets(nets))
	}
}
