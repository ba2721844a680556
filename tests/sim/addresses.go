package sim

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"wherry.dev/cluster/store"
	"wherry.dev/reconciler"
	"wherry.dev/spec"
)

// The places of addresses in these histories: 10.9 are networks with a handful,
// 10.11 and fd09 others that are asked for. routes are what hosts may reach by
// other ways, some of it the same.
var routes = []string{"10.9.1.0/29", "10.200.0.0/20", "10.11.0.0/16,fd09:1::/48", "172.17.0.0/16,192.0.2.53/32", "fd09::53/128"}

// interfaces are what hosts may have for networks of their own, "" when they do
// not tell; at rest all have all.
var interfaces = []string{"", "eth0", "eth1", "br0", allLinks}

const allLinks = "eth0 eth1"

// address makes networks of a stack choose addresses in all ways, and adds a
// service with one of its own.
func (w *World) address(s *spec.Stack, image string) {
	if w.store != nil && w.store.Snapshot().Format() < store.AddressFormat {
		return
	}
	own := slices.Index(stackNames, s.Name) + 1 // 0 is a third stack
	if w.chance(40) {
		n := s.Networks["default"]
		n.IPv6 = &spec.Pool{}
		if w.chance(30) {
			n.IPv6.Subnet = fmt.Sprintf("fd09:%d::/64", own)
			n.IPv6.Range = []string{"", n.IPv6.Subnet[:len(n.IPv6.Subnet)-3] + "1:0/112"}[w.rng.IntN(2)]
		}
		s.Networks["default"] = n
	}
	if back := s.Networks["back"]; back.Subnet == "" && w.chance(30) {
		back.Subnet = fmt.Sprintf("10.11.%d.0/24", own)
		if w.chance(60) {
			back.Range = fmt.Sprintf("10.11.%d.%d/26", own, 64*w.rng.IntN(4))
		}
		if w.chance(40) {
			back.Gateway = fmt.Sprintf("10.11.%d.%d", own, []int{1, 254, 77}[w.rng.IntN(3)])
		}
		if w.chance(40) {
			back.Reserved = []string{fmt.Sprintf("10.11.%d.2", own), fmt.Sprintf("10.11.%d.66", own)}
		}
		s.Networks["back"] = back
	}
	if w.chance(30) {
		w.lan(s, image)
	}
	if w.chance(50) {
		return
	}
	n := spec.NetworkSpec{Driver: spec.DriverOverlay, Pool: spec.Pool{Subnet: fmt.Sprintf("10.11.%d.0/24", 10+own)}}
	if w.chance(50) {
		n.Range = fmt.Sprintf("10.11.%d.128/25", 10+own)
	}
	if w.chance(50) {
		n.IPv6 = &spec.Pool{Subnet: fmt.Sprintf("fd09:%d::/64", 10+own)}
	}
	asks := spec.Attachment{Network: "asked", IP: fmt.Sprintf("10.11.%d.%d", 10+own, 2+w.rng.IntN(4))}
	if n.IPv6 != nil && w.chance(70) {
		asks.IP6 = fmt.Sprintf("fd09:%d::%d", 10+own, 2+w.rng.IntN(4))
	}
	if w.chance(30) {
		asks.MAC = "0a:00:00:00:00:01"
		asks.Interface = []string{"", "lan0"}[w.rng.IntN(2)]
	}
	if other := "shop_asked"; s.Name == "blog" && w.chance(30) && w.store != nil {
		if row := w.store.Snapshot().NetworkNamed(other); row != nil && !row.Gone {
			n, asks.IP, asks.IP6 = spec.NetworkSpec{External: true, Name: other}, "10.11.11.3", "" // shop may ask for it as well
		}
	}
	s.Networks["asked"] = n
	one := 1
	fix := spec.ServiceSpec{Mode: spec.Replicated, Template: template(image)}
	fix.Template.Networks = []spec.Attachment{asks}
	if w.chance(50) {
		fix.Replicas = &one
	}
	s.Services["fix"] = fix
	web := s.Services["web"] // others are there by chance
	web.Template.Networks = append(slices.Clone(web.Template.Networks), spec.Attachment{Network: "asked"})
	s.Services["web"] = web
}

// lan adds a network of the hosts' own, for a service that is on all of them or
// on some.
func (w *World) lan(s *spec.Stack, image string) {
	own := slices.Index(stackNames, s.Name) + 1
	subnet := fmt.Sprintf("10.12.%d.", own)
	s.Networks["lan"] = spec.NetworkSpec{Driver: spec.DriverMacvlan, Parent: []string{"eth0", "eth1.7"}[w.rng.IntN(2)],
		Pool: spec.Pool{Subnet: subnet + "0/24", Gateway: subnet + "1", Range: subnet + "64/26"}}
	cam := spec.ServiceSpec{Mode: spec.Replicated, Template: template(image, "lan")}
	if w.chance(50) {
		cam.Mode = spec.Global
	}
	if w.chance(50) {
		cam.Template.Networks = append(cam.Template.Networks, spec.Attachment{Network: "default"})
	}
	s.Services["cam"] = cam
}

// checkParents: a plan gives no task on a network of the hosts' own to one that
// lacks its interface.
func (w *World) checkParents(before *store.Snapshot, plan *spec.Plan) {
	check := func(id spec.NodeID, list []spec.Address) {
		n := before.Node(id)
		for _, a := range list {
			row := w.store.Snapshot().Network(a.Network)
			if n == nil || row == nil || row.Spec.Driver != spec.DriverMacvlan || n.Info.Interfaces == "" {
				continue
			}
			base, _, _ := strings.Cut(row.Spec.Parent, ".")
			if !slices.Contains(strings.Fields(n.Info.Interfaces), base) {
				w.failf("node %s has %s, and gets a task on %s", n.Name, n.Info.Interfaces, row.Spec.Parent)
			}
		}
	}
	for _, p := range plan.Parts {
		for i := range p.Create {
			check(p.Create[i].Node, p.Create[i].Addresses)
		}
		for _, c := range p.Change {
			check(c.Node, c.Addresses)
		}
	}
}

// unsettled reports whether a network has not the numbers that it wants: others
// hold them, or a task is on it, or a host reaches them by other ways.
func unsettled(n *spec.Network) bool {
	_, gateway, _ := numbers(n, false)
	wants := n.Spec.IPv6
	return n.Subnet == "" || n.Spec.Subnet != "" && (n.Spec.Subnet != n.Subnet || n.Spec.Gateway != "" && n.Spec.Gateway != gateway.String()) ||
		(wants != nil) != (n.Subnet6 != "") || wants != nil && wants.Subnet != "" && wants.Subnet != n.Subnet6
}

// onUnsettled reports whether a service is on such a network.
func onUnsettled(s *store.Snapshot, svc *spec.Service) bool {
	return slices.ContainsFunc(attached(s, svc), func(id spec.NetworkID) bool { return unsettled(s.Network(id)) })
}

// awaited reports whether addresses may be waited for: they are scarce, or asked
// for, or a network is to get other numbers when all of it are given back. What
// waits for an image may find that a service behind it has taken its room.
func (w *World) awaited() bool {
	s := w.store.Snapshot()
	return w.scarce || slices.ContainsFunc(s.Networks(), unsettled) ||
		slices.ContainsFunc(s.Services(), func(s *spec.Service) bool { return s.Spec.Template.FixedAddress() != "" || s.Fetch != nil })
}

// reroute lets a host reach other subnets than before, by other interfaces.
func (w *World) reroute() {
	h := w.hosts[w.rng.IntN(len(w.hosts))]
	h.routes = ""
	if w.chance(50) {
		h.routes = routes[w.rng.IntN(len(routes))]
	}
	if !w.calm {
		h.links = interfaces[w.rng.IntN(len(interfaces))]
	}
	w.note("%s reaches %q by other ways, and has %q", h.name, h.routes, h.links)
	w.introduce(h)
}

// numbers of one family on a network, invalid where there are none.
func numbers(n *spec.Network, six bool) (subnet netip.Prefix, gateway netip.Addr, wants *spec.Pool) {
	s, g, wants := n.Subnet, n.Gateway, &n.Spec.Pool
	if six {
		s, g, wants = n.Subnet6, n.Gateway6, n.Spec.IPv6
	}
	subnet, _ = netip.ParsePrefix(s)
	gateway, _ = netip.ParseAddr(g)
	return subnet, gateway, wants
}

// asked is what a service asks for on a network, "" for nothing.
func asked(s *store.Snapshot, svc *spec.Service, network spec.NetworkID, six bool) string {
	nets := s.StackRevision(svc.Stack, s.Stack(svc.Stack).Revision).Spec.Networks
	for _, a := range svc.Spec.Template.Networks {
		n := s.NetworkNamed(nets[a.Network].ClusterName(svc.Stack, a.Network))
		switch {
		case n == nil || n.ID != network:
		case six:
			return a.IP6
		default:
			return a.IP
		}
	}
	return ""
}

// right says what is wrong with an address on a network: it is to be what was
// asked for, or else one that nobody keeps others from.
func right(s *store.Snapshot, n *spec.Network, six bool, ip netip.Addr, ask string) string {
	subnet, gateway, wants := numbers(n, six)
	last := !subnet.Contains(ip.Next())
	switch {
	case !subnet.Contains(ip) || ip == gateway || ip == subnet.Addr() || last && ip.Is4():
		return fmt.Sprintf("is not of %v with %v", subnet, gateway)
	case ask != "" && ask != ip.String():
		return "is not " + ask
	case ask != "":
		return ""
	}
	for _, svc := range s.Services() {
		if asked(s, svc, n.ID, six) == ip.String() {
			return "is what service " + svc.Key() + " asks for"
		}
	}
	if wants != nil && wants.Subnet == subnet.String() {
		if part, err := netip.ParsePrefix(wants.Range); err == nil && !part.Contains(ip) {
			return "is outside of " + wants.Range
		}
		if slices.Contains(wants.Reserved, ip.String()) {
			return "is reserved"
		}
	}
	return ""
}

// checkGiven: what a plan of the newest state gives is right, and no subnet that
// it gives is one that a host reaches by other ways.
func (w *World) checkGiven(before *store.Snapshot, plan *spec.Plan) {
	s := w.store.Snapshot()
	check := func(stack, service string, list []spec.Address) {
		svc := s.Service(stack, service)
		if svc == nil {
			return // the same plan took its stack back to a revision without it
		}
		for _, a := range list {
			n := s.Network(a.Network)
			for i, text := range []string{a.IP, a.IP6} {
				if text == "" {
					continue
				}
				ip := netip.MustParsePrefix(text)
				if why := right(s, n, i > 0, ip.Addr(), asked(s, svc, n.ID, i > 0)); why != "" {
					w.failf("a task of %s/%s gets %s on network %s, which %s", stack, service, text, n.Name, why)
				}
				if subnet, _, _ := numbers(n, i > 0); subnet.Bits() != ip.Bits() {
					w.failf("a task of %s/%s gets %s on network %s with %s", stack, service, text, n.Name, subnet)
				}
			}
			if (a.IP6 != "") != (n.Spec.IPv6 != nil && n.Subnet6 != "" && s.Format() >= store.AddressFormat) {
				w.failf("a task of %s/%s gets %+v on network %s", stack, service, a, encode(n))
			}
		}
	}
	for _, p := range plan.Parts {
		for i := range p.Create {
			check(p.Create[i].Stack, p.Create[i].Service, p.Create[i].Addresses)
		}
		for _, c := range p.Change {
			if t := s.Task(c.Task); t != nil && len(c.Addresses) > 0 {
				check(t.Stack, t.Service, c.Addresses)
			}
		}
		for _, n := range p.Networks {
			old := before.Network(n.ID)
			if old.Spec.Driver == spec.DriverMacvlan {
				continue // it is one of theirs
			}
			for _, node := range s.Nodes() {
				for _, text := range strings.Split(node.Info.Subnets, ",") {
					route, err := netip.ParsePrefix(text)
					if err != nil {
						continue
					}
					for _, x := range [][2]string{{old.Subnet, n.Subnet}, {old.Subnet6, n.Subnet6}} {
						if p, err := netip.ParsePrefix(x[1]); err == nil && x[0] != x[1] && p.Overlaps(route) {
							w.failf("network %s gets %s, and node %s reaches %s by other ways", old.Name, p, node.Name, route)
						}
					}
				}
			}
		}
	}
}

// checkNetworks: no two networks overlap, in neither family.
func (w *World) checkNetworks(s *store.Snapshot) {
	all := s.Networks()
	for i, a := range all {
		for _, b := range all[:i] {
			for _, six := range []bool{false, true} {
				x, _, _ := numbers(a, six)
				y, _, _ := numbers(b, six)
				if x.Overlaps(y) {
					w.failf("networks %s and %s have %s and %s", a.Name, b.Name, x, y)
				}
			}
		}
	}
}

// checkAddressesAtRest: where all is well, every task has what it is to have.
func (w *World) checkAddressesAtRest() {
	s := w.store.Snapshot()
	for _, row := range s.Stacks() {
		st, _ := reconciler.Status(s, row.Name, w.now)
		for _, one := range st.Services {
			svc := s.Service(row.Name, one.Name)
			if one.State != reconciler.StateRunning || one.Message != "" {
				continue // it says what is not as it should be
			}
			for _, t := range s.TasksOf(svc.Stack, svc.Name) {
				if t.Status.State.Terminal() || w.dead != nil && t.Node == w.dead.id || w.away != nil && t.Node == w.away.id {
					continue
				}
				for _, a := range t.Addresses {
					n := s.Network(a.Network)
					for i, text := range []string{a.IP, a.IP6} {
						has := i == 0 || n.Spec.IPv6 != nil && n.Subnet6 != ""
						ip, err := netip.ParsePrefix(text)
						if (err == nil) != has {
							w.failf("task %s of %s has %+v on network %s", t.ID, svc.Key(), a, encode(n))
						} else if why := right(s, n, i > 0, ip.Addr(), asked(s, svc, n.ID, i > 0)); has && why != "" {
							w.failf("task %s of %s has %s on network %s at rest, which %s", t.ID, svc.Key(), text, n.Name, why)
						}
					}
				}
			}
		}
	}
}
