package overlay

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"wherry.dev/spec"
)

// Flow forgets connections that the kernel would otherwise send to somebody
// who is gone, for as long as the client keeps sending. There are three kinds:
//
//   - with IP and Port, those to a UDP port of the host that do not lead to
//     one of Targets;
//   - with IP alone, the UDP flows of a task to a service's address that lead
//     to one of Gone;
//   - with neither, all TCP connections to Gone: they are no end of any network
//     any more, so that nothing but an error can come of them. The next packet
//     goes to somebody else, who answers with a reset.
type Flow struct {
	// NS is the task whose namespace knows them; empty is the host's.
	NS    spec.TaskID
	Proto string
	// IP is 0.0.0.0 or :: for a port of all addresses of a family.
	IP   string
	Port uint16
	// Targets are those that flows may stay with, Gone those that left.
	Targets, Gone []netip.Addr
}

func (f Flow) String() string {
	what := f.Proto
	if f.NS != "" {
		what = string(f.NS) + "/" + f.Proto
	}
	switch {
	case f.Port != 0:
		return fmt.Sprintf("flow %s %s except to %s", what, net.JoinHostPort(f.IP, strconv.Itoa(int(f.Port))), join(f.Targets))
	case f.IP != "":
		return fmt.Sprintf("flow %s %s to %s", what, f.IP, join(f.Gone))
	}
	return fmt.Sprintf("flow %s to %s", what, join(f.Gone))
}

func join(a []netip.Addr) string {
	if len(a) == 0 {
		return "nobody"
	}
	s := make([]string, len(a))
	for i := range a {
		s[i] = a[i].String()
	}
	return strings.Join(s, ",")
}

// diffFlows returns what is to be forgotten because targets or whole ends are
// gone. Flows to a target that is still an end of its network are another
// matter if they are TCP: it may be draining, and they are its last. Which ends
// there were is read from the host's table, so that one that goes while no
// daemon runs is noticed by the next.
func diffFlows(have, want State) []Op {
	var ops []Op
	var dead []netip.Addr
	for _, id := range slices.SortedFunc(maps.Keys(want.Tables), compareTables) {
		h, w := have.Tables[id], want.Tables[id]
		switch {
		case id.NS == "":
			ops = append(ops, portFlows(h, w, id.Family == familyIPv6)...)
			dead = append(dead, lostEnds(h, w)...)
		case id.Family == familyInet:
			ops = append(ops, vipFlows(id.NS, h, w)...)
		}
	}
	if len(dead) == 0 {
		return ops
	}
	ops = append(ops, Op{Delete, Flow{Proto: "tcp", Gone: dead}})
	for _, id := range slices.SortedFunc(maps.Keys(want.Tables), compareTables) {
		if sets := want.Tables[id].Sets; id.Family != familyInet || len(sets[vip4.vips])+len(sets[vip6.vips]) == 0 {
			continue
		}
		if near := onNetworksOf(want, id.NS, dead); len(near) > 0 {
			ops = append(ops, Op{Delete, Flow{NS: id.NS, Proto: "tcp", Gone: near}})
		}
	}
	return ops
}

// onNetworksOf returns those addresses that are on a network of the task.
func onNetworksOf(s State, task spec.TaskID, addrs []netip.Addr) []netip.Addr {
	var nets []netip.Prefix
	for r := range s.Routes {
		if p, err := netip.ParsePrefix(r.Dst); err == nil && r.Link.NS == task && r.Via == "" {
			nets = append(nets, p)
		}
	}
	return slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool {
		return !slices.ContainsFunc(nets, func(p netip.Prefix) bool { return p.Contains(a) })
	})
}

// lostEnds returns the sorted ends of networks that are none any more.
func lostEnds(have, want Table) []netip.Addr {
	var out []netip.Addr
	for key := range have.Sets[setEnds] {
		if _, ok := want.Sets[setEnds][key]; ok {
			continue
		}
		if a, err := netip.ParseAddr(key); err == nil {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

// vipFlows returns the services' addresses that lost targets.
func vipFlows(task spec.TaskID, have, want Table) []Op {
	var ops []Op
	for _, v := range []vipNames{vip4, vip6} {
		same := true
		for _, n := range slotClasses {
			same = same && maps.Equal(have.Sets[slotMap(v.slots, n)], want.Sets[slotMap(v.slots, n)])
		}
		if same {
			continue
		}
		h, w := v.targets(have), v.targets(want)
		for _, vip := range slices.Sorted(maps.Keys(h)) {
			if gone := without(h[vip], w[vip]); len(gone) > 0 {
				ops = append(ops, Op{Delete, Flow{NS: task, Proto: "udp", IP: vip, Gone: gone}})
			}
		}
	}
	return ops
}

// targets returns the sorted targets of each address of a service.
func (v vipNames) targets(t Table) map[string][]netip.Addr {
	out := map[string][]netip.Addr{}
	for _, n := range slotClasses {
		for key, value := range t.Sets[slotMap(v.slots, n)] {
			vip, _, _ := strings.Cut(key, " . ")
			if a, err := netip.ParseAddr(value); err == nil {
				out[vip] = append(out[vip], a)
			}
		}
	}
	return sortedTargets(out)
}

func sortedTargets[K comparable](m map[K][]netip.Addr) map[K][]netip.Addr {
	for k, list := range m {
		slices.SortFunc(list, netip.Addr.Compare)
		m[k] = slices.Compact(list)
	}
	return m
}

func without(list, drop []netip.Addr) []netip.Addr {
	return slices.DeleteFunc(slices.Clone(list), func(a netip.Addr) bool { return slices.Contains(drop, a) })
}

// portFlows returns the UDP ports whose targets changed.
func portFlows(have, want Table, six bool) []Op {
	every := "0.0.0.0"
	if six {
		every = "::"
	}
	h, w := udpTargets(have, every), udpTargets(want, every)
	ports := slices.Collect(maps.Keys(w))
	for p := range h {
		if _, ok := w[p]; !ok {
			ports = append(ports, p)
		}
	}
	slices.SortFunc(ports, compareClaims)
	var ops []Op
	for _, p := range ports {
		gone := without(h[p], w[p])
		if len(gone) > 0 || len(h[p]) == 0 && len(w[p]) > 0 {
			ops = append(ops, Op{Delete, Flow{Proto: "udp", IP: p.IP, Port: p.Port, Targets: w[p], Gone: gone}})
		}
	}
	return ops
}

// udpTargets returns the sorted addresses behind each published UDP port; every
// stands for all addresses of the host.
func udpTargets(t Table, every string) map[Claim][]netip.Addr {
	out := map[Claim][]netip.Addr{}
	for name, set := range t.Sets {
		at := strings.HasPrefix(name, mapAt)
		for key, value := range set {
			f := strings.Split(key, " . ")
			c := Claim{Proto: "udp", IP: every}
			if at {
				c.IP, f = f[0], f[1:]
			}
			ip, _, _ := strings.Cut(value, " . ")
			a, err := netip.ParseAddr(ip)
			if err != nil || f[0] != "udp" {
				continue
			}
			port, err := strconv.ParseUint(f[1], 10, 16)
			if err != nil {
				continue
			}
			c.Port = uint16(port)
			out[c] = append(out[c], a)
		}
	}
	return sortedTargets(out)
}
