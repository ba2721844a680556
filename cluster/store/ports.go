package store

import (
	"fmt"
	"net/netip"

	"wherry.dev/spec"
)

// publishedPorts returns the ports that a service holds on nodes: those with a
// number of the user's, and for the others the numbers that the reconciler
// chose, unless the user has changed the port since.
func publishedPorts(s *spec.Service) []spec.Port {
	var ports []spec.Port
	for _, p := range s.Spec.Ports {
		if p.Published != 0 {
			ports = append(ports, p)
			continue
		}
		for _, chosen := range s.Ports {
			asked := chosen
			asked.Published = 0
			if asked == p && chosen.Published != 0 {
				ports = append(ports, chosen)
			}
		}
	}
	return ports
}

// checkPorts refuses a port of s that another service holds. Two services may
// publish one port in mode host where there are several nodes: placement keeps
// their tasks apart.
func (r *reducer) checkPorts(s *spec.Service) error {
	for _, p := range publishedPorts(s) {
		for other := range r.services.with(r.txn, byPort, portValue(&p)) {
			if other.Stack == s.Stack && other.Name == s.Name {
				continue
			}
			for _, q := range publishedPorts(other) {
				if p.Mode == spec.PublishHost && q.Mode == spec.PublishHost && r.severalNodes() {
					continue
				}
				if p.Published == q.Published && p.Protocol == q.Protocol && hostIPsOverlap(p.HostIP, q.HostIP) {
					return spec.Conflictf("port %s is published by %s already", portName(&p), other.Key())
				}
			}
		}
	}
	return nil
}

func (r *reducer) severalNodes() bool {
	n := 0
	for range r.nodes.all(r.txn) {
		n++
	}
	return n > 1 && r.meta.Format >= 2
}

func portName(p *spec.Port) string {
	if p.HostIP == "" {
		return fmt.Sprintf("%d/%s", p.Published, p.Protocol)
	}
	ip, err := netip.ParseAddr(p.HostIP)
	if err != nil {
		return fmt.Sprintf("%s:%d/%s", p.HostIP, p.Published, p.Protocol)
	}
	return fmt.Sprintf("%s/%s", netip.AddrPortFrom(ip, p.Published), p.Protocol)
}

// hostIPsOverlap reports whether one socket could not be bound to both. "::"
// takes the IPv4 addresses too, as Linux has it.
func hostIPsOverlap(a, b string) bool {
	if a == "" || b == "" || a == b {
		return true
	}
	x, errX := netip.ParseAddr(a)
	y, errY := netip.ParseAddr(b)
	if errX != nil || errY != nil {
		return false
	}
	x, y = x.Unmap(), y.Unmap()
	covers := func(x, y netip.Addr) bool { return x.IsUnspecified() && (x.Is6() || y.Is4()) }
	return x == y || covers(x, y) || covers(y, x)
}
