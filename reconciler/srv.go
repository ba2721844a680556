package reconciler

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"wherry.dev/spec"
)

// describeNames adds to a document with names and virtual addresses what other
// lookups than those of addresses need: which names are those of tasks and
// services and no further ones, and where named ports are found. tasks hold all
// that are on the network.
func (v *view) describeNames(n *spec.HostNetwork, tasks []*spec.Task) {
	behind := map[string][]netip.Addr{} // addresses of tasks and services, by key of the service
	own := map[nameOf]bool{}
	for _, x := range n.VIPs {
		if ip, err := netip.ParseAddr(x.Address); err == nil {
			behind[x.Owner] = append(behind[x.Owner], ip)
		}
		stack, service, _ := spec.SplitServiceKey(x.Owner)
		own[nameOf{service, stack}], own[nameOf{spec.ScopedName(stack, service), stack}] = true, true
	}
	for _, t := range tasks {
		if t.Status.State != spec.TaskRunning {
			continue
		}
		for _, a := range t.Addresses {
			for _, six := range []bool{false, true} {
				if ip, ok := ipOf(a, six); ok && a.Network == n.Network.ID {
					behind[serviceKey(t)] = append(behind[serviceKey(t)], ip)
					own[nameOf{v.taskName(t), t.Stack}] = true
				}
			}
		}
	}
	for i := range n.Names {
		n.Names[i].Reverse = own[nameOf{n.Names[i].Name, n.Names[i].Stack}]
	}
	ports := map[portKey][]netip.Addr{}
	for key, ips := range behind {
		stack, service, _ := spec.SplitServiceKey(key)
		for _, p := range portKeys(v.snap.Service(stack, service)) {
			ports[p] = append(ports[p], ips...)
		}
	}
	n.NamedPorts = nil
	for _, k := range slices.SortedFunc(maps.Keys(ports), portKey.compare) {
		n.NamedPorts = append(n.NamedPorts, spec.NamedPort{Name: k.name, Protocol: k.protocol, Port: k.port, Addresses: sortedIPs(ports[k])})
	}
}

// portKey is a port that has a name.
type portKey struct {
	name, protocol string
	port           uint16
}

func (k portKey) compare(l portKey) int {
	return cmp.Or(cmp.Compare(k.name, l.name), cmp.Compare(k.protocol, l.protocol), cmp.Compare(k.port, l.port))
}

// portKeys are the ports of a service, if there is one, that can be asked for
// by name, whether or not they are published.
func portKeys(svc *spec.Service) []portKey {
	if svc == nil {
		return nil
	}
	var out []portKey
	for _, p := range svc.Spec.Ports {
		k := portKey{p.Label(), p.Protocol, p.Target}
		if k.name != "" && !slices.Contains(out, k) {
			out = append(out, k)
		}
	}
	return out
}

// sortedIPs are the texts of addresses, each once.
func sortedIPs(ips []netip.Addr) []string {
	slices.SortFunc(ips, compareIPs)
	var out []string
	for _, ip := range slices.Compact(ips) {
		out = append(out, ip.String())
	}
	return out
}
