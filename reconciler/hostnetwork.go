package reconciler

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// HostNetworks returns what every network must be on a node, by ID: the
// networks that a task of the node which is not over yet is on, and those
// through which the node publishes a port.
func HostNetworks(s *store.Snapshot, node spec.NodeID) []spec.HostNetwork {
	h := &host{
		view: newView(s, time.Time{}), node: node,
		nets: map[spec.NetworkID]*spec.HostNetwork{},
	}
	for _, t := range s.TasksOn(node) {
		if !t.Status.State.Terminal() && t.Status.State != spec.TaskPending {
			h.endpoints(t)
		}
	}
	for _, svc := range h.services {
		h.publish(svc)
	}
	h.names()
	out := make([]spec.HostNetwork, 0, len(h.nets))
	for _, n := range h.nets {
		out = append(out, *n)
	}
	slices.SortFunc(out, func(a, b spec.HostNetwork) int {
		return compareIDs(string(a.Network.ID), string(b.Network.ID))
	})
	return out
}

// host is one HostNetworks at work.
type host struct {
	*view
	node spec.NodeID
	nets map[spec.NetworkID]*spec.HostNetwork
}

// network returns the document of a network, nil when the network is unknown
// or has no numbers yet.
func (h *host) network(id spec.NetworkID) *spec.HostNetwork {
	if n := h.nets[id]; n != nil {
		return n
	}
	row := h.snap.Network(id)
	if row == nil || row.Subnet == "" {
		return nil
	}
	n := &spec.HostNetwork{Clock: clock(h.snap), Network: *row}
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
		}
	}
}

// reachable reports whether a task takes traffic, as seen from this node: a
// node that gets a document is alive, whatever the state says of it.
func (h *host) reachable(t *spec.Task) bool {
	return t.Ready() && (t.Node == h.node || h.nodeUp(t.Node))
}

// publish adds the ports of a service to the network that its tasks take them
// on: the first attached one that has a way out.
func (h *host) publish(svc *spec.Service) {
	ports := publishedPorts(svc)
	if len(ports) == 0 {
		return
	}
	i := slices.IndexFunc(h.attachments(svc.Stack, &svc.Spec.Template), func(a attached) bool {
		return a.net != nil && !a.net.Spec.Internal
	})
	if i < 0 {
		return
	}
	id := h.attachments(svc.Stack, &svc.Spec.Template)[i].net.ID
	here := slices.ContainsFunc(h.tasks[svc.Key()], func(t *spec.Task) bool {
		return t.Node == h.node && !t.Status.State.Terminal() && t.Status.State != spec.TaskPending
	})
	for _, p := range ports {
		local := p.Mode == spec.PublishHost || isLoopback(p.HostIP)
		if p.Published == 0 || local && !here {
			continue
		}
		n := h.network(id)
		if n == nil {
			continue
		}
		n.Ports = append(n.Ports, spec.PublishedPort{
			HostIP: p.HostIP, Port: p.Published, Protocol: p.Protocol, Owner: svc.Key(),
			Targets: h.targets(svc, id, p.Target, local),
		})
	}
}

// targets are the ready tasks behind a port.
func (h *host) targets(svc *spec.Service, id spec.NetworkID, port uint16, local bool) []string {
	var ips []netip.Addr
	for _, t := range h.tasks[svc.Key()] {
		if !h.reachable(t) || local && t.Node != h.node {
			continue
		}
		for _, a := range t.Addresses {
			if ip, ok := ipOf(a); ok && a.Network == id {
				ips = append(ips, ip)
			}
		}
	}
	slices.SortFunc(ips, compareIPs)
	var out []string
	for _, ip := range ips {
		out = append(out, netip.AddrPortFrom(ip, port).String())
	}
	return out
}

func isLoopback(ip string) bool {
	a, err := netip.ParseAddr(ip)
	return err == nil && a.IsLoopback()
}

func compareIPs(a, b netip.Addr) int { return a.Compare(b) }

// nameEntry collects the addresses of one name.
type nameEntry struct{ ips []netip.Addr }

// names fills in what resolves on each network of the node.
//
// The names of a service lead to its ready tasks. The name of a task leads to
// that task as soon as it runs: the members of a cluster have to find each
// other in order to become ready.
func (h *host) names() {
	tables := map[spec.NetworkID]map[string]*nameEntry{}
	for id := range h.nets {
		tables[id] = map[string]*nameEntry{}
	}
	for _, t := range h.all {
		if t.Desired != spec.DesiredRunning || t.Status.State != spec.TaskRunning || t.Node != h.node && !h.nodeUp(t.Node) {
			continue
		}
		var tmpl *spec.Template
		for i, a := range t.Addresses {
			table := tables[a.Network]
			ip, ok := ipOf(a)
			if table == nil || !ok {
				continue
			}
			addName(table, h.taskName(t), ip)
			if !h.reachable(t) {
				continue
			}
			for _, name := range []string{t.Service, "tasks." + t.Service, t.Stack + "_" + t.Service} {
				addName(table, name, ip)
			}
			if tmpl == nil {
				tmpl = h.template(t.Revision)
			}
			if tmpl == nil || i >= len(tmpl.Networks) {
				continue
			}
			for _, alias := range tmpl.Networks[i].Aliases { // addresses are in the order of the attachments
				addName(table, alias, ip)
			}
		}
	}
	for id, n := range h.nets {
		n.Names = sortedNames(tables[id])
		slices.SortFunc(n.Ports, func(a, b spec.PublishedPort) int {
			return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.HostIP, b.HostIP), cmp.Compare(a.Owner, b.Owner))
		})
	}
}

func addName(table map[string]*nameEntry, name string, ip netip.Addr) {
	e := table[name]
	if e == nil {
		e = &nameEntry{}
		table[name] = e
	}
	e.ips = append(e.ips, ip)
}
