package reconciler

import (
	"cmp"
	"iter"
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

// reachable reports whether a task takes traffic, as seen from this node: a
// node that gets a document is alive, whatever the state says of it.
func (h *host) reachable(t *spec.Task) bool { return t.Ready() && h.alive(t) }

func (h *host) alive(t *spec.Task) bool { return t.Node == h.node || h.nodeUp(t.Node) }

// isLocal reports whether the network is another one on each host.
func (n *hostNetwork) isLocal() bool { return n.Network.Spec.Driver == spec.DriverBridge }

// fill completes the document by what the tasks on the network say.
func (n *hostNetwork) fill() {
	var tasks []*spec.Task
	for _, t := range n.snap.TasksAt(n.Network.ID) {
		if t.Node == n.node || !n.isLocal() {
			tasks = append(tasks, t)
		}
	}
	n.fillMTU(tasks)
	n.fillHosts(tasks)
	ready := n.ready(tasks)
	n.fillNames(tasks, n.fillVIPs(ready))
	n.describeNames(&n.HostNetwork, tasks)
	n.fillPorts(ready)
}

// end is a ready task behind a virtual address or a port.
type end struct {
	ip   netip.Addr
	here bool // on this node
}

// ready returns the addresses of the tasks that take traffic, sorted, by the key
// of their service.
func (n *hostNetwork) ready(tasks []*spec.Task) map[string][]end {
	out := map[string][]end{}
	for _, t := range tasks {
		if !n.reachable(t) {
			continue
		}
		for _, ip := range addressesOn(t, n.Network.ID) {
			out[serviceKey(t)] = append(out[serviceKey(t)], end{ip, t.Node == n.node})
		}
	}
	for _, list := range out {
		slices.SortFunc(list, func(a, b end) int { return a.ip.Compare(b.ip) })
	}
	return out
}

// fillMTU finds the least MTU of the nodes that the network is on, whether they
// are up or down. A node that is down counts as long as what it may still run
// holds an address, for the MTU must not go up and down with it.
func (n *hostNetwork) fillMTU(tasks []*spec.Task) {
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
	for _, t := range tasks {
		if n.holdsAddress(t) {
			count(n.nodes[t.Node])
		}
	}
}

// fillHosts lists the other nodes that the network is on and the ends of tasks
// there. A node without a usable address is left out with all that it has.
func (n *hostNetwork) fillHosts(tasks []*spec.Task) {
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
	type remote struct {
		ip netip.Addr
		spec.RemoteEndpoint
	}
	var ends []remote
	for _, t := range tasks {
		if !isPlaced(t) {
			continue
		}
		add(t.Node)
		for i, ip := range addressesOn(t, n.Network.ID) {
			if number := hosts[t.Node]; number != 0 {
				ends = append(ends, remote{ip, spec.RemoteEndpoint{IP: ip.String(), MAC: t.Addresses[i].MAC, Host: number}})
			}
		}
	}
	slices.SortFunc(ends, func(a, b remote) int { return a.ip.Compare(b.ip) })
	for _, e := range ends {
		n.Remote = append(n.Remote, e.RemoteEndpoint)
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

// addressesOn returns the addresses of a task on a network, each with its place
// among all that the task has.
func addressesOn(t *spec.Task, network spec.NetworkID) iter.Seq2[int, netip.Addr] {
	return func(yield func(int, netip.Addr) bool) {
		for i, a := range t.Addresses {
			if ip, ok := ipOf(a); ok && a.Network == network && !yield(i, ip) {
				return
			}
		}
	}
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
func (n *hostNetwork) fillNames(tasks []*spec.Task, vips map[string]virtual) {
	table := map[string]*nameEntry{}
	for _, v := range vips {
		addName(table, v.Name, v.ip)
		addName(table, spec.ScopedName(v.Stack, v.Name), v.ip)
		for i, a := range n.attachments(v.Stack, &v.Spec.Template) {
			if a.net != nil && a.net.ID == n.Network.ID {
				addNames(table, v.Spec.Template.Networks[i].Aliases, v.ip)
			}
		}
	}
	for _, t := range tasks {
		if t.Desired != spec.DesiredRunning || t.Status.State != spec.TaskRunning || !n.alive(t) {
			continue
		}
		for i, ip := range addressesOn(t, n.Network.ID) {
			addName(table, n.taskName(t), ip)
			if !t.Ready() {
				continue
			}
			addName(table, "tasks."+t.Service, ip)
			to := ip
			if v, ok := vips[serviceKey(t)]; ok {
				to = v.ip
			}
			addName(table, t.Service, to)
			addName(table, spec.ScopedName(t.Stack, t.Service), to)
			if tmpl := n.template(t.Revision); tmpl != nil && i < len(tmpl.Networks) { // addresses are in the order of the attachments
				addNames(table, tmpl.Networks[i].Aliases, to)
			}
		}
	}
	n.Names = sortedNames(table)
}

// fillPorts completes the published ports by the ready tasks behind them.
func (n *hostNetwork) fillPorts(ready map[string][]end) {
	for _, e := range n.entries {
		p := spec.PublishedPort{HostIP: e.HostIP, Port: e.Published, Protocol: e.Protocol, Owner: e.owner, Shared: !e.local}
		for _, end := range ready[e.owner] {
			if end.here || !e.local {
				p.Targets = append(p.Targets, netip.AddrPortFrom(end.ip, e.Target).String())
			}
		}
		n.Ports = append(n.Ports, p)
	}
	slices.SortFunc(n.Ports, func(a, b spec.PublishedPort) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.HostIP, b.HostIP), cmp.Compare(a.Owner, b.Owner))
	})
}

// nameEntry collects the addresses of one name.
type nameEntry struct{ ips []netip.Addr }

func addName(table map[string]*nameEntry, name string, ip netip.Addr) {
	e := table[name]
	if e == nil {
		e = &nameEntry{}
		table[name] = e
	}
	e.ips = append(e.ips, ip)
}

func addNames(table map[string]*nameEntry, names []string, ip netip.Addr) {
	for _, name := range names {
		addName(table, name, ip)
	}
}

func compareIPs(a, b netip.Addr) int { return a.Compare(b) }
