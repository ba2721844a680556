package overlay

import (
	"cmp"
	"errors"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"wherry.dev/spec"
)

// taskSets are the elements of tasks' tables by the networks that a task is
// on. Tasks on the same networks have the same elements, and share the maps:
// nobody writes to the sets of a compiled state.
type taskSets map[string]map[string]Set

// taskTables adds the tables of a task's namespace to st, program one of them
// as a program: addresses of
// services on its networks, and the way back to the host by which a connection
// came. The latter is on the device with the default route, if that leads to
// a network between hosts; gate is nil if it does not.
func (c taskSets) taskTables(st State, s spec.Sandbox, on []network, gate *LinkID, program bool) {
	if len(on) == 0 {
		return
	}
	t := Table{Sets: c.sets(on), Chains: vipChains(slices.ContainsFunc(on, network.six))}
	if gate != nil {
		maps.Copy(t.Chains, returnChains())
		if program {
			st.Programs[Program{*gate}] = true
		} else {
			st.Tables[TableID{s.Task, familyNetdev, taskTableName}] = Table{Sets: map[string]Set{}, Chains: egressChains(gate.Name)}
		}
	}
	st.Tables[TableID{s.Task, familyInet, taskTableName}] = t
}

// sets returns the elements for a task on some networks. Of an address that
// two networks claim, which no manager does, the first has it.
func (c taskSets) sets(on []network) map[string]Set {
	var ids []string
	for _, n := range on {
		ids = append(ids, string(n.doc.Network.ID))
	}
	key := strings.Join(ids, " ")
	if s, ok := c[key]; ok {
		return s
	}
	sets := emptyVIPs(slices.ContainsFunc(on, network.six))
	for _, n := range on {
		for _, v := range n.doc.VIPs {
			serve(sets, v, n.six())
		}
	}
	c[key] = sets
	return sets
}

// emptyVIPs are the sets of a task's table, with those of IPv6 if it has that.
func emptyVIPs(six bool) map[string]Set {
	sets := map[string]Set{}
	for name := range vip4.types() {
		sets[name] = Set{}
	}
	if six {
		for name := range vip6.types() {
			sets[name] = Set{}
		}
	}
	return sets
}

// serve fills the slots of a service's address with its targets in turn. An
// IPv6 address is left out where the network has none.
func serve(sets map[string]Set, v spec.VIP, six bool) {
	a, err := netip.ParseAddr(v.Address)
	if err != nil || a.Is6() && !six {
		return
	}
	names := vip4
	if a.Is6() {
		names = vip6
	}
	address := a.String()
	if _, taken := sets[names.vips][address]; taken {
		return
	}
	sets[names.vips][address] = ""
	var ends []string
	for _, s := range v.Targets {
		if e, err := netip.ParseAddr(s); err == nil && e.Is6() == a.Is6() {
			ends = append(ends, e.String())
		}
	}
	if len(ends) == 0 {
		sets[names.unserved][address] = ""
		return
	}
	slots := slotClass(len(ends))
	m := sets[slotMap(names.slots, slots)]
	for i := range int(slots) {
		m[address+" . "+strconv.Itoa(i)] = ends[i%len(ends)]
	}
}

// spans reports whether the network is one between hosts.
func (n network) spans() bool {
	return cmp.Or(n.doc.Network.Spec.Driver, spec.DriverOverlay) == spec.DriverOverlay
}

// ends adds the addresses of all tasks on the network to the table of their
// family, but for those of hosts that are held for dead: connections to them
// are given up.
func (n network) ends(t Table, six bool) {
	for _, e := range n.doc.Tasks {
		if p, err := netip.ParsePrefix(ipOf(six, e.IP, e.IP6)); err == nil && p.Addr().Is6() == six {
			t.Sets[setEnds][p.Addr().String()] = ""
		}
	}
	dead := map[uint32]bool{}
	for _, h := range n.doc.Hosts {
		dead[h.Number] = h.Down
	}
	for _, e := range n.doc.Remote {
		if a, err := netip.ParseAddr(ipOf(six, e.IP, e.IP6)); err == nil && a.Is6() == six && !dead[e.Host] {
			t.Sets[setEnds][a.String()] = ""
		}
	}
}

// withoutIPv6 returns the devices of tasks to which the kernel gave no IPv6
// address or route: a privileged task has switched it off there, which is its own
// affair.
func withoutIPv6(ops []Op, errs []error) map[LinkID]bool {
	out := map[LinkID]bool{}
	for i, o := range ops {
		if l, six := ofIPv6(o); six && l.NS != "" && errors.Is(errs[i], os.ErrPermission) {
			out[l] = true
		}
	}
	return out
}

// ofIPv6 returns the link of an IPv6 address or route.
func ofIPv6(o Op) (l LinkID, six bool) {
	switch x := o.Object.(type) {
	case Addr:
		return x.Link, strings.Contains(x.IP, ":")
	case Route:
		return x.Link, strings.Contains(x.Dst, ":")
	}
	return l, false
}
