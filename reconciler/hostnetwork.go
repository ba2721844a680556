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

// wayIn returns the network on which the hosts bring published ports to the
// tasks of a service: the way out, unless that is not by the hosts.
func (v *view) wayIn(svc *spec.Service) *spec.Network {
	if way := v.wayOut(svc); way != nil && way.Spec.Driver != spec.DriverMacvlan {
		return way
	}
	return nil
}

// isLocal reports whether a port of a service with that way in is published on
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
	// six: it has IPv6, and the node is of a version that knows of it.
	six bool
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
	if port := h.snap.VXLANPort(); port != spec.VXLANPort {
		n.VXLANPort = port
	}
	if me := h.nodes[h.node]; me != nil {
		n.HostNumber = me.Number
	}
	n.six = row.Subnet6 != "" && h.knowsIPv6(h.node)
	h.nets[id] = n
	return n
}

// knowsIPv6 reports whether a node is of a version that gives tasks IPv6.
func (v *view) knowsIPv6(id spec.NodeID) bool {
	n := v.nodes[id]
	return n != nil && n.Info.Format >= store.AddressFormat
}

func (h *host) endpoints(t *spec.Task) {
	for _, a := range t.Addresses {
		if n := h.network(a.Network); n != nil {
			e := spec.Endpoint{Task: t.ID, Name: h.taskName(t), IP: a.IP, MAC: a.MAC}
			if n.six {
				e.IP6 = a.IP6
			}
			n.Tasks = append(n.Tasks, e)
			n.ends[serviceKey(t)] = true
		}
	}
}

// publish notes the ports of a service that this node publishes.
func (h *host) publish(svc *spec.Service) {
	way := h.wayIn(svc)
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
			if ip, ok := ipOf(a, false); ok && a.Network == n.Network.ID {
				e := end{t, i, key, dual{ip: ip}}
				if n.six && n.knowsIPv6(t.Node) {
					e.ip6, _ = ipOf(a, true)
				}
				all = append(all, e)
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
	at  int    // in the addresses of the task
	key string // of the service
	dual
}

// dual is the address of a task or service on a network, of each family; ip6 is
// invalid where there is none.
type dual struct{ ip, ip6 netip.Addr }

// list returns those that there are.
func (a dual) list() []netip.Addr {
	if a.ip6.IsValid() {
		return []netip.Addr{a.ip, a.ip6}
	}
	return []netip.Addr{a.ip}
}

// text6 is the IPv6 address in words, "" for none.
func (a dual) text6() string {
	if a.ip6.IsValid() {
		return a.ip6.String()
	}
	return ""
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
			n.Remote = append(n.Remote, spec.RemoteEndpoint{IP: e.ip.String(), IP6: e.text6(), MAC: e.Addresses[e.at].MAC, Host: number})
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
	out := map[string]virtual{}
	var six []spec.VIP
	for _, svc := range n.snap.ServicesAt(n.Network.ID) {
		ip, ok := n.vip(svc, false)
		if !ok {
			continue
		}
		v := spec.VIP{Address: ip.String(), Owner: svc.Key()}
		for _, e := range ready[svc.Key()] {
			v.Targets = append(v.Targets, e.ip.String())
		}
		n.VIPs = append(n.VIPs, v)
		ip6, ok := n.vip(svc, true)
		if ok {
			six = append(six, spec.VIP{Address: ip6.String(), Owner: svc.Key(), Targets: sortedIPs(ip6sOf(ready[svc.Key()]))})
		}
		// A node of an older version would not know where the address leads.
		if me := n.nodes[n.node]; svc.Spec.HasVIP() && me != nil && me.Info.Format >= store.VIPFormat {
			out[svc.Key()] = virtual{svc, dual{ip, ip6}}
		}
	}
	slices.SortFunc(six, func(a, b spec.VIP) int {
		return netip.MustParseAddr(a.Address).Compare(netip.MustParseAddr(b.Address))
	})
	n.VIPs = append(n.VIPs, six...)
	return out
}

// ip6sOf returns the IPv6 addresses of those that have one.
func ip6sOf(list []end) []netip.Addr {
	var out []netip.Addr
	for _, e := range list {
		if e.ip6.IsValid() {
			out = append(out, e.ip6)
		}
	}
	return out
}

// vip returns the virtual address of a service here, if it is of the numbers
// that the network has now.
func (n *hostNetwork) vip(svc *spec.Service, six bool) (netip.Addr, bool) {
	ip, ok := vipOn(svc, n.Network.ID, six)
	if space, has := spaceOf(&n.Network, six); !ok || !has || six && !n.six || !space.Subnet.Contains(ip) {
		return netip.Addr{}, false
	}
	return ip, true
}

// virtual is a service with its addresses on a network.
type virtual struct {
	*spec.Service
	dual
}

// vipOn returns the virtual address of one family of a service on a network.
func vipOn(svc *spec.Service, network spec.NetworkID, six bool) (netip.Addr, bool) {
	for _, v := range svc.VIPs {
		if v.Network != network {
			continue
		}
		text := v.Address
		if six {
			text = v.Address6
		}
		if text == "" {
			break
		}
		ip, err := netip.ParseAddr(text)
		return ip, err == nil
	}
	return netip.Addr{}, false
}

// fillNames says what resolves on the network.
//
// The names of a service lead to its virtual address, whether a task is ready
// or not, or in a family in which it has none to its ready tasks. The name of a
// task leads to that task as soon as it runs: the members of a cluster have to
// find each other in order to become ready.
func (n *hostNetwork) fillNames(all []end, vips map[string]virtual) {
	table := names{}
	for _, v := range vips {
		ips := v.list()
		table.add(v.Stack, spec.ScopedName(v.Stack, v.Name), ips)
		for i, a := range n.attachments(v.Stack, &v.Spec.Template) {
			if a.net != nil && a.net.ID == n.Network.ID {
				table.addAll(v.Stack, namesAt(v.Name, &v.Spec.Template.Networks[i]), ips)
			}
		}
	}
	for _, e := range all {
		aliases := []string{e.Service}
		if tmpl := n.template(e.Revision); tmpl != nil && e.at < len(tmpl.Networks) { // addresses are in the order of the attachments
			aliases = namesAt(e.Service, &tmpl.Networks[e.at])
		}
		if isPlaced(e.Task) {
			table.claim(e.Stack, "tasks."+e.Service)
			table.claim(e.Stack, aliases...)
		}
		if e.Desired != spec.DesiredRunning || e.Status.State != spec.TaskRunning || !n.alive(e.Task) {
			continue
		}
		own := e.list()
		table.add(e.Stack, n.taskName(e.Task), own)
		if !e.Ready() {
			continue
		}
		table.add(e.Stack, "tasks."+e.Service, own)
		if v, ok := vips[e.key]; ok {
			if v.ip6.IsValid() {
				e.ip6 = v.ip6
			}
			own = dual{v.ip, e.ip6}.list()
		}
		table.add(e.Stack, spec.ScopedName(e.Stack, e.Service), own)
		table.addAll(e.Stack, aliases, own)
	}
	n.Names = table.sorted()
}

// namesAt are the names of a service where it is attached, besides those that
// hold its stack's.
func namesAt(service string, a *spec.Attachment) []string {
	if a.NoServiceName {
		return a.Aliases
	}
	return append([]string{service}, a.Aliases...)
}

// fillPorts completes the published ports by the ready tasks behind them.
func (n *hostNetwork) fillPorts(ready map[string][]end) {
	for _, e := range n.entries {
		p := spec.PublishedPort{HostIP: publishedOn(e.HostIP), Port: e.Published, Protocol: e.Protocol, Owner: e.owner, Shared: !e.local}
		behind := ready[e.owner]
		if e.local {
			behind = slices.DeleteFunc(slices.Clone(behind), func(to end) bool { return to.Node != n.node })
		}
		four, six := hostFamilies(e.HostIP)
		for _, to := range behind {
			if four {
				p.Targets = append(p.Targets, netip.AddrPortFrom(to.ip, e.Target).String())
			}
		}
		if ips := ip6sOf(behind); six {
			slices.SortFunc(ips, compareIPs)
			for _, ip := range ips {
				p.Targets = append(p.Targets, netip.AddrPortFrom(ip, e.Target).String())
			}
		}
		n.Ports = append(n.Ports, p)
	}
	slices.SortFunc(n.Ports, func(a, b spec.PublishedPort) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.HostIP, b.HostIP), cmp.Compare(a.Owner, b.Owner))
	})
}

// publishedOn is the address of a node that a port is published on, as documents
// have it. All addresses of one family are all addresses there: that the port
// has no target of the other refuses who comes by that.
func publishedOn(hostIP string) string {
	if ip, err := netip.ParseAddr(hostIP); err == nil && ip.IsUnspecified() {
		return ""
	}
	return hostIP
}

// hostFamilies says by which families a port on a host address is reached.
func hostFamilies(hostIP string) (four, six bool) {
	ip, err := netip.ParseAddr(hostIP)
	return err != nil || ip.Is4(), err != nil || ip.Is6()
}

func compareIPs(a, b netip.Addr) int { return a.Compare(b) }
