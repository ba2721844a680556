package overlay

import (
	"cmp"
	"maps"
	"net/netip"
	"strconv"
	"strings"

	"wherry.dev/spec"
)

// taskSets are the elements of tasks' tables by the networks that a task is
// on. Tasks on the same networks have the same elements, and share the maps:
// nobody writes to the sets of a compiled state.
type taskSets map[string]map[string]Set

// taskTables adds the tables of a task's namespace to st: addresses of
// services on its networks, and the way back to the host by which a connection
// came. The latter is on the device with the default route, if that leads to
// a network between hosts; gate is nil if it does not.
func (c taskSets) taskTables(st State, s spec.Sandbox, on []network, gate *LinkID) {
	if len(on) == 0 {
		return
	}
	t := Table{Sets: c.sets(on), Chains: vipChains()}
	if gate != nil {
		maps.Copy(t.Chains, returnChains())
		st.Tables[TableID{s.Task, familyNetdev, taskTableName}] = Table{Sets: map[string]Set{}, Chains: egressChains(gate.Name)}
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
	sets := map[string]Set{}
	for name := range taskSetTypes() {
		sets[name] = Set{}
	}
	for _, n := range on {
		for _, v := range n.doc.VIPs {
			serve(sets, v)
		}
	}
	c[key] = sets
	return sets
}

// serve fills the slots of a service's address with its targets in turn.
func serve(sets map[string]Set, v spec.VIP) {
	a, err := netip.ParseAddr(v.Address)
	if err != nil || !a.Is4() {
		return
	}
	address := a.String()
	if _, taken := sets[setVIPs][address]; taken {
		return
	}
	sets[setVIPs][address] = ""
	var ends []string
	for _, s := range v.Targets {
		if e, err := netip.ParseAddr(s); err == nil && e.Is4() {
			ends = append(ends, e.String())
		}
	}
	if len(ends) == 0 {
		sets[setUnserved][address] = ""
		return
	}
	slots := slotClass(len(ends))
	m := sets[slotMap(mapVIP, slots)]
	for i := range int(slots) {
		m[address+" . "+strconv.Itoa(i)] = ends[i%len(ends)]
	}
}

// spans reports whether the network is one between hosts.
func (n network) spans() bool {
	return cmp.Or(n.doc.Network.Spec.Driver, spec.DriverOverlay) == spec.DriverOverlay
}

// ends adds the addresses of all tasks on the network to the table, but for
// those of hosts that are held for dead: connections to them are given up.
func (n network) ends(t Table) {
	for _, e := range n.doc.Tasks {
		if p, err := netip.ParsePrefix(e.IP); err == nil && p.Addr().Is4() {
			t.Sets[setEnds][p.Addr().String()] = ""
		}
	}
	dead := map[uint32]bool{}
	for _, h := range n.doc.Hosts {
		dead[h.Number] = h.Down
	}
	for _, e := range n.doc.Remote {
		if a, err := netip.ParseAddr(e.IP); err == nil && a.Is4() && !dead[e.Host] {
			t.Sets[setEnds][a.String()] = ""
		}
	}
}
