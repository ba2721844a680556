package reconciler

import (
	"cmp"
	"net/netip"
	"slices"

	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// HostNetworks returns what every network must be on a node, by ID: the
// networks that a task of the node which is not over yet is on, and those
// through which the node publishes a port.
//
// It costs as much as there is on these networks, and not as there is in the
// cluster.
func HostNetworks(s *store.Snapshot, node spec.NodeID) []spec.HostNetwork {
	h := &host{view: newGlance(s), node: node, nets: map[spec.NetworkID]*hostNetwork{}}
	for _, t := range s.TasksOn(node) {
		if isPlaced(t) {
			h.endpoints(t)
		}
	}
	for _, svc := range s.Publishers() {
		h.publish(svc)
	}
	out := make([]spec.HostNetwork, 0, len(h.nets))
	for _, n := range h.nets {
		n.fill()
		out = append(out, n.HostNetwork)
	}
	slices.SortFunc(out, func(a, b spec.HostNetwork) int {
		return compareIDs(string(a.Network.ID), string(b.Network.ID))
	})
	return out
}

// isPlaced reports whether a task is on its node, running or about to.
func isPlaced(t *spec.Task) bool {
	return !t.Status.State.Terminal() && t.Status.State != spec.TaskPending
}

// wayOut returns the network on which the tasks of a service take its published
// ports: the first attached one that is not internal. It may have no numbers
// yet; nil means that nothing is published.
func (v *view) wayOut(svc *spec.Service) *spec.Network {
	for _, a := range v.attachments(svc.Stack, &svc.Spec.Template) {
		if a.net != nil && !a.net.Spec.Internal {
			return a.net
		}
	}
	return nil
}

// isLocal reports whether a port of a service with that way out is published on
// the nodes of its tasks only, and leads to those.
func isLocal(p *spec.Port, way *spec.Network) bool {
	return p.Mode == spec.PublishHost || isLoopback(p.HostIP) || way.Spec.Driver == spec.DriverBridge
}

func isLoopback(ip string) bool {
	a, err := netip.ParseAddr(ip)
	return err == nil && a.IsLoopback()
}

// host is one HostNetworks at work.
type host struct {
	*view
	node spec.NodeID
	nets map[spec.NetworkID]*hostNetwork
}

// hostNetwork is the document of a network in the making.
type hostNetwork struct {
	spec.HostNetwork
	*host
	// everywhere: it has a port that all nodes publish, so all are its hosts.
	everywhere bool
	// entries are the ports that this node publishes.
	entries []entry
	// ends are the services that have a task of this node here, by key.
	ends map[string]bool
}

// entry is a published port of a service.
type entry struct {
	spec.Port
	owner string
	local bool
}

// network returns the document of a network, nil when the network is unknown
// or has no numbers yet.
func (h *host) network(id spec.NetworkID) *hostNetwork {
	if n := h.nets[id]; n != nil {
		return n
	}
	row := h.snap.Network(id)
	if row == nil || row.Subnet == "" {
		return nil
	}
	n := &hostNetwork{host: h, ends: map[string]bool{}}
	n.Clock, n.Network = clock(h.snap), *row
	if me := h.nodes[h.node]; me != nil {
		n.HostNumber = me.Number
	}
	h.nets[id] = n
	return n
}

func (h *host) endpoints(t *spec.Task) {
	for _, a := range t.Addresses {
		if n := h.network(a.Network); n != nil {
			n.Tasks = append(n.Tasks, spec.Endpoint{Task: t.ID, Name: h.taskName(t), IP: a.IP, MAC: a.MAC})
			n.ends[serviceKey(t)] = true
		}
	}
}

// publish notes the ports of a service that this node publishes.
func (h *host) publish(svc *spec.Service) {
	way := h.wayOut(svc)
	if way == nil {
		return
	}
	for _, p := range publishedPorts(svc) {
		local := isLocal(&p, way)
		if have := h.nets[way.ID]; p.Published == 0 || local && (have == nil || !have.ends[svc.Key()]) {
			continue
		}
		if n := h.network(way.ID); n != nil {
			n.everywhere = n.everywhere || !local
			n.entries = append(n.entries, entry{p, svc.Key(), local})
		}
	}
}

// alive reports whether the node of a task lives, as seen from this node: one
// that gets a document is alive, whatever the state says of it.
func (h *host) alive(t *spec.Task) bool { return t.Node == h.node || h.nodeUp(t.Node) }

// isLocal reports whether the network is another one on each host.
func (n *hostNetwork) isLocal() bool { return n.Network.Spec.Driver == spec.DriverBridge }

// fill completes the document by what the tasks on the network say.
func (n *hostNetwork) fill() {
	var all []end
	var tasks []*spec.Task
	for _, t := range n.snap.TasksAt(n.Network.ID) {
		if t.Node != n.node && n.isLocal() {
			continue
		}
		tasks = append(tasks, t)
		key := serviceKey(t)
		for i, a := range t.Addresses {
			if ip, ok := ipOf(a); ok && a.Network == n.Network.ID {
				all = append(all, end{t, i, ip, key})
			}
		}
	}
	slices.SortFunc(all, func(a, b end) int { return a.ip.Compare(b.ip) })
	ready := map[string][]end{} // those that take traffic, by key of the service
	for _, e := range all {
		if e.Ready() && n.alive(e.Task) {
			ready[e.key] = append(ready[e.key], e)
		}
	}
	n.fillMTU(all)
	n.fillHosts(all)
	n.fillNames(all, n.fillVIPs(ready))
	n.describeNames(&n.HostNetwork, tasks)
	n.fillPorts(ready)
}

// end is where a task is on the network, or was.
type end struct {
	*spec.Task
	at  int // in the addresses of the task
	ip  netip.Addr
	key string // of the service
}

// fillMTU finds the least MTU of the nodes that the network is on, whether they
// are up or down. A node that is down counts as long as what it may still run
// holds an address, for the MTU must not go up and down with it.
func (n *hostNetwork) fillMTU(all []end) {
	count := func(m *spec.Node) {
		if m != nil && m.Info.MTU > 0 && (n.MTU == 0 || m.Info.MTU < n.MTU) {
			n.MTU = m.Info.MTU
		}
	}
	if n.everywhere {
		for _, m := range n.nodeList {
			count(m)
		}
		return
	}
	count(n.nodes[n.node])
	for _, e := range all {
		if n.holdsAddress(e.Task) {
			count(n.nodes[e.Node])
		}
	}
}

// fillHosts lists the other nodes that the network is on and the ends of tasks
// there. A node without a usable address is left out with all that it has.
func (n *hostNetwork) fillHosts(all []end) {
	if n.isLocal() {
		return
	}
	hosts := map[spec.NodeID]uint32{} // numbers of other nodes; 0 of those to leave out
	add := func(id spec.NodeID) {
		m := n.nodes[id]
		if _, seen := hosts[id]; seen || id == n.node || m == nil {
			return
		}
		hosts[id] = 0
		if ip, ok := underlayIP(m); ok {
			hosts[id] = m.Number
			n.Hosts = append(n.Hosts, spec.NetworkHost{Node: id, Number: m.Number, Address: ip.String(), Down: !n.nodeUp(id)})
		}
	}
	if n.everywhere {
		for _, m := range n.nodeList {
			add(m.ID)
		}
	}
	for _, e := range all {
		if !isPlaced(e.Task) {
			continue
		}
		add(e.Node)
		if number := hosts[e.Node]; number != 0 {
			n.Remote = append(n.Remote, spec.RemoteEndpoint{IP: e.ip.String(), MAC: e.Addresses[e.at].MAC, Host: number})
		}
	}
	slices.SortFunc(n.Hosts, func(a, b spec.NetworkHost) int { return cmp.Compare(a.Number, b.Number) })
}

// underlayIP is the address by which other nodes reach a node. One that means
// another host, or none, wherever it is read is of no use.
func underlayIP(n *spec.Node) (netip.Addr, bool) {
	at, err := netip.ParseAddrPort(n.Address)
	ip := at.Addr().Unmap()
	return ip, err == nil && ip.Zone() == "" && !ip.IsUnspecified() && !ip.IsMulticast()
}

// fillVIPs lists the virtual addresses of the network and returns the services
// whose names lead to theirs, by key.
func (n *hostNetwork) fillVIPs(ready map[string][]end) map[string]virtual {
	subnet, _ := subnetOf(&n.Network)
	out := map[string]virtual{}
	for _, svc := range n.snap.ServicesAt(n.Network.ID) {
		ip, ok := vipOn(svc, n.Network.ID)
		if !ok || !subnet.Contains(ip) {
			continue // of numbers that the network had before
		}
		v := spec.VIP{Address: ip.String(), Owner: svc.Key()}
		for _, e := range ready[svc.Key()] {
			v.Targets = append(v.Targets, e.ip.String())
		}
		n.VIPs = append(n.VIPs, v)
		// A node of an older version would not know where the address leads.
		if me := n.nodes[n.node]; svc.Spec.EndpointMode != spec.EndpointDNSRR && me != nil && me.Info.Format >= store.VIPFormat {
			out[svc.Key()] = virtual{svc, ip}
		}
	}
	return out
}

// virtual is a service with its address on a network.
type virtual struct {
	*spec.Service
	ip netip.Addr
}

// vipOn returns the virtual address of a service on a network.
func vipOn(svc *spec.Service, network spec.NetworkID) (netip.Addr, bool) {
	for _, v := range svc.VIPs {
		if v.Network == network {
			ip, err := netip.ParseAddr(v.Address)
			return ip, err == nil
		}
	}
	return netip.Addr{}, false
}

// fillNames says what resolves on the network.
//
// The names of a service lead to its virtual address, whether a task is ready
// or not, or where it has none to its ready tasks. The name of a task leads to
// that task as soon as it runs: the members of a cluster have to find each
// other in order to become ready.
func (n *hostNetwork) fillNames(all []end, vips map[string]virtual) {
	table := names{}
	for _, v := range vips {
		table.add(v.Stack, v.Name, v.ip)
		table.add(v.Stack, spec.ScopedName(v.Stack, v.Name), v.ip)
		for i, a := range n.attachments(v.Stack, &v.Spec.Template) {
			if a.net != nil && a.net.ID == n.Network.ID {
				table.addAll(v.Stack, v.Spec.Template.Networks[i].Aliases, v.ip)
			}
		}
	}
	for _, e := range all {
		var aliases []string
		if tmpl := n.template(e.Revision); tmpl != nil && e.at < len(tmpl.Networks) { // addresses are in the order of the attachments
			aliases = tmpl.Networks[e.at].Aliases
		}
		if isPlaced(e.Task) {
			table.claim(e.Stack, e.Service, "tasks."+e.Service)
			table.claim(e.Stack, aliases...)
		}
		if e.Desired != spec.DesiredRunning || e.Status.State != spec.TaskRunning || !n.alive(e.Task) {
			continue
		}
		table.add(e.Stack, n.taskName(e.Task), e.ip)
		if !e.Ready() {
			continue
		}
		table.add(e.Stack, "tasks."+e.Service, e.ip)
		to := e.ip
		if v, ok := vips[e.key]; ok {
			to = v.ip
		}
		table.add(e.Stack, e.Service, to)
		table.add(e.Stack, spec.ScopedName(e.Stack, e.Service), to)
		table.addAll(e.Stack, aliases, to)
	}
	n.Names = table.sorted()
}

// fillPorts completes the published ports by the ready tasks behind them.
func (n *hostNetwork) fillPorts(ready map[string][]end) {
	for _, e := range n.entries {
		p := spec.PublishedPort{HostIP: e.HostIP, Port: e.Published, Protocol: e.Protocol, Owner: e.owner, Shared: !e.local}
		for _, to := range ready[e.owner] {
			if to.Node == n.node || !e.local {
				p.Targets = append(p.Targets, netip.AddrPortFrom(to.ip, e.Target).String())
			}
		}
		n.Ports = append(n.Ports, p)
	}
	slices.SortFunc(n.Ports, func(a, b spec.PublishedPort) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.HostIP, b.HostIP), cmp.Compare(a.Owner, b.Owner))
	})
}

func compareIPs(a, b netip.Addr) int { return a.Compare(b) }
