package reconciler

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strconv"

	"wherry.dev/spec"
)

// judgePorts lets the status of a service tell of its ports: one that a node
// cannot serve makes it failed, and one of which a node has not told yet, as
// right after a change of the ports, makes it updating.
func (p *planner) judgePorts(svc *spec.Service, one *ServiceStatus) {
	state, message := StateFailed, p.portProblem(svc)
	if message == "" {
		state, message = StateUpdating, p.portAwaited(svc)
	}
	if message == "" || worse(state, one.State) != state {
		return
	}
	if state != one.State {
		one.State, one.Message = state, message
		return
	}
	one.Message = cmp.Or(one.Message, message)
}

// portProblem says why a port of the service is not served on a node that is
// alive; empty when all are.
func (p *planner) portProblem(svc *spec.Service) string {
	ports := publishedPorts(svc)
	if way := p.wayOut(svc); len(ports) > 0 && way != nil && p.wayIn(svc) == nil {
		return fmt.Sprintf("its ports are not published: network %s is on %s of the hosts, where its tasks are reached at their own addresses", way.Name, way.Spec.Parent)
	}
	for _, q := range ports {
		if q.Published == 0 && !p.anyFree(&q) {
			first, last := q.Choice()
			return fmt.Sprintf("no published port of %d-%d/%s is free for port %d", first, last, q.Protocol, q.Target)
		}
	}
	for _, n := range p.nodeList {
		if n.State != spec.NodeReady || n.Ports == nil {
			continue
		}
		for _, told := range *n.Ports {
			// What the service does not publish any more is news of yesterday.
			i := slices.IndexFunc(ports, func(q spec.Port) bool { return isPort(&told, &q) })
			if told.Problem == "" || told.Owner != svc.Key() || i < 0 || told.Elsewhere() && p.servedElsewhere(svc, &ports[i]) {
				continue
			}
			return p.onNode(n) + told.Problem
		}
	}
	return ""
}

// anyFree reports whether a port can still be given a number.
func (p *planner) anyFree(q *spec.Port) bool {
	used := p.usedPorts()
	first, last := q.Choice()
	for n := int(first); n <= int(last); n++ {
		if !used[portNumber{uint16(n), q.Protocol}] {
			return true
		}
	}
	return false
}

// servedElsewhere reports whether a port of one address, which all nodes that
// have it publish, is served by one, or may be: a node has not told yet.
func (p *planner) servedElsewhere(svc *spec.Service, q *spec.Port) bool {
	if way := p.wayIn(svc); way == nil || isLocal(q, way) {
		return false
	}
	return slices.ContainsFunc(p.nodeList, func(n *spec.Node) bool {
		if n.State != spec.NodeReady || n.Ports == nil {
			return false
		}
		i := slices.IndexFunc(*n.Ports, func(t spec.PortStatus) bool { return t.Owner == svc.Key() && isPort(&t, q) })
		return i < 0 || (*n.Ports)[i].Problem == ""
	})
}

// portAwaited names a port of the service of which a node that is alive has
// not told yet what became of it. Nodes that never tell are not waited for.
func (p *planner) portAwaited(svc *spec.Service) string {
	ports := publishedPorts(svc)
	way := p.wayIn(svc)
	if len(ports) == 0 || way == nil { // without a way in nothing is published
		return ""
	}
	for _, n := range p.nodeList {
		if n.State != spec.NodeReady || n.Ports == nil {
			continue
		}
		for _, q := range ports {
			if q.Published == 0 || isLocal(&q, way) && !p.hasTask(svc, n.ID, way.ID) {
				continue
			}
			told := slices.ContainsFunc(*n.Ports, func(t spec.PortStatus) bool { return t.Owner == svc.Key() && isPort(&t, &q) })
			if !told {
				return p.onNode(n) + "waits for port " + portText(&q) + " to be published"
			}
		}
	}
	return ""
}

// hasTask reports whether a node has a task of the service on a network that
// is not over, and so publishes the ports that only such nodes publish.
func (p *planner) hasTask(svc *spec.Service, node spec.NodeID, network spec.NetworkID) bool {
	return slices.ContainsFunc(p.tasks[svc.Key()], func(t *spec.Task) bool {
		return t.Node == node && isPlaced(t) && slices.ContainsFunc(t.Addresses, func(a spec.Address) bool { return a.Network == network })
	})
}

// onNode names the node where there are several.
func (p *planner) onNode(n *spec.Node) string {
	if len(p.nodeList) < 2 {
		return ""
	}
	return "node " + p.nodeName(n.ID) + ": "
}

func isPort(told *spec.PortStatus, q *spec.Port) bool {
	return told.Port == q.Published && told.Protocol == q.Protocol && told.HostIP == publishedOn(q.HostIP)
}

func portText(q *spec.Port) string {
	if q.HostIP == "" {
		return fmt.Sprintf("%d/%s", q.Published, q.Protocol)
	}
	return net.JoinHostPort(q.HostIP, strconv.Itoa(int(q.Published))) + "/" + q.Protocol
}
