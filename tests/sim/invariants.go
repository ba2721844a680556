package sim

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"wherry.dev/cluster/store"
	"wherry.dev/reconciler"
	"wherry.dev/spec"
)

// keepHistory is how many tasks that are over a place may have.
const keepHistory = 5

// check holds the invariants that are true at any moment.
func (w *World) check(before, after *store.Snapshot, c *store.Command) {
	w.checkForward(before, after)
	w.checkAddresses(after)
	w.checkNetworks(after)
	w.checkVIPs(before, after)
	if w.index%16 == 0 { // they are dear
		w.checkDocuments(after)
	}
	w.checkPlaces(before, after, c)
	w.checkTrust(before, after, c)
	w.checkLimits(before, after, c)
	w.checkMoves(before, after, c)
	w.checkPairs(before, after, c)
	w.checkRevisions(before, after, c)
	w.checkAvailable(before, after, c)
	w.checkRoom(before, c)
	w.checkCanary(before, after, c)
	if w.ledger != nil {
		w.ledger.note(w, before, after, c)
	}
	w.checkJobs(before, after, c)
	w.checkRebalanced(before, c)
	w.checkNodes(before, after, c)
	w.checkContents(after)
	w.checkHomes(before, after, c)
	if c.RemoveStack == nil && c.RemoveVolumes == nil {
		w.checkData(before, after)
	}
	for _, v := range after.Volumes() {
		if svc := after.Service(v.Stack, "db"); v.Short == "data" && svc != nil && len(v.Homes) > 1 {
			w.failf("volume %s of a replicated service has homes %v", v.Name, v.Homes)
		}
	}
}

// checkForward: states only move forward, and no task is moved.
func (w *World) checkForward(before, after *store.Snapshot) {
	for _, old := range before.Tasks() {
		t := after.Task(old.ID)
		if t == nil {
			if !old.Status.State.Terminal() && old.Status.State != spec.TaskPending && before.Node(old.Node) != nil {
				w.failf("task %s was %s and its row is gone", old.ID, old.Status.State)
			}
			continue
		}
		a, b := old.Status.State, t.Status.State
		if a != b && !a.Before(b) && !(a == spec.TaskLost && b.Terminal()) {
			w.failf("task %s went from %s to %s", t.ID, a, b)
		}
		if t.Desired.Before(old.Desired) || old.Node != "" && t.Node != old.Node || t.Slot != old.Slot || t.Revision != old.Revision {
			w.failf("task %s changed from %s to %s", t.ID, encode(old), encode(t))
		}
	}
}

// spot is an address on a network.
type spot struct {
	network spec.NetworkID
	ip      netip.Addr
}

// checkAddresses: no address twice, nor MAC address, of tasks and services alike, each in the
// subnet of its network.
func (w *World) checkAddresses(s *store.Snapshot) {
	seen := map[spot]string{}
	take := func(who string, network spec.NetworkID, ip netip.Addr) {
		at := spot{network, ip}
		if other, twice := seen[at]; twice {
			w.failf("%s and %s both have %s on network %s", other, who, ip, network)
		}
		seen[at] = who
	}
	for _, svc := range s.Services() {
		for _, v := range svc.VIPs {
			for i, address := range []string{v.Address, v.Address6} {
				ip, err := netip.ParseAddr(address)
				if i > 0 && address == "" {
					continue
				}
				if err != nil || s.Network(v.Network) == nil || ip.Is6() != (i > 0) {
					w.failf("service %s has %s on network %s", svc.Key(), address, v.Network)
				}
				take("service "+svc.Key(), v.Network, ip)
			}
		}
	}
	macs := map[string]spec.TaskID{} // by network and address
	for _, t := range s.Tasks() {
		if t.Status.State.Terminal() && (t.Status.State != spec.TaskLost || s.Node(t.Node) == nil) {
			continue
		}
		for _, a := range t.Addresses {
			key := string(a.Network) + " " + a.MAC
			if other, twice := macs[key]; twice {
				w.failf("tasks %s and %s both have %s on network %s", other, t.ID, a.MAC, a.Network)
			}
			macs[key] = t.ID
			n := s.Network(a.Network)
			if n == nil {
				w.failf("task %s is on network %s, which is gone", t.ID, a.Network)
				continue
			}
			for i, address := range []string{a.IP, a.IP6} {
				if i > 0 && address == "" {
					continue
				}
				ip, err := netip.ParsePrefix(address)
				subnet, gateway, _ := numbers(n, i > 0)
				if err != nil || ip.Addr().Is6() != (i > 0) || !subnet.Contains(ip.Addr()) || ip.Addr() == gateway {
					w.failf("task %s has %s on network %s with %s", t.ID, address, n.Name, subnet)
				}
				take("task "+string(t.ID), a.Network, ip.Addr())
			}
		}
	}
}

// attached are the networks that a service names, as far as they exist, in the
// order of its tasks' addresses.
func attached(s *store.Snapshot, svc *spec.Service) []spec.NetworkID {
	row := s.Stack(svc.Stack)
	nets := s.StackRevision(svc.Stack, row.Revision).Spec.Networks
	var out []spec.NetworkID
	for _, a := range svc.Spec.Template.Networks {
		if n := s.NetworkNamed(nets[a.Network].ClusterName(svc.Stack, a.Network)); n != nil {
			out = append(out, n.ID)
		}
	}
	return out
}

// checkVIPs: a virtual address stays as long as the service names its network,
// wants to have one, and the network would still choose it.
func (w *World) checkVIPs(before, after *store.Snapshot) {
	if w.belated {
		return // decided when other addresses were chosen
	}
	for _, old := range before.Services() {
		svc := after.Service(old.Stack, old.Name)
		if svc == nil || svc.ID != old.ID || !svc.Spec.HasVIP() {
			continue
		}
		named := attached(after, svc)
		for _, v := range old.VIPs {
			if n := after.Network(v.Network); n != nil && slices.Contains(named, v.Network) {
				w.checkVIPStays(before, after, svc, n, v)
			}
		}
	}
}

func (w *World) checkVIPStays(before, after *store.Snapshot, svc *spec.Service, n *spec.Network, old spec.ServiceVIP) {
	var now spec.ServiceVIP
	if i := slices.IndexFunc(svc.VIPs, func(v spec.ServiceVIP) bool { return v.Network == n.ID }); i >= 0 {
		now = svc.VIPs[i]
	}
	for i, x := range [][2]string{{old.Address, now.Address}, {old.Address6, now.Address6}} {
		ip, err := netip.ParseAddr(x[0])
		if err != nil || x[0] == x[1] || i > 0 && n.Spec.IPv6 == nil {
			continue
		}
		if right(after, n, i > 0, ip, "") == "" && right(before, before.Network(n.ID), i > 0, ip, "") == "" {
			w.failf("service %s had %s on network %s and has %v", svc.Key(), x[0], n.Name, svc.VIPs)
		}
	}
}

// checkVIPsAtRest: whatever shall have a virtual address has one, or says why
// not, and nothing else has.
func (w *World) checkVIPsAtRest() {
	s := w.store.Snapshot()
	for _, row := range s.Stacks() {
		st, _ := reconciler.Status(s, row.Name, w.now)
		for _, one := range st.Services {
			svc := s.Service(row.Name, one.Name)
			var want []spec.NetworkID
			if svc.Spec.HasVIP() {
				want = attached(s, svc)
			}
			for _, id := range want {
				n := s.Network(id)
				i := slices.IndexFunc(svc.VIPs, func(v spec.ServiceVIP) bool { return v.Network == id })
				if i < 0 {
					if !unsettled(n) && (!w.scarce || one.Message == "") {
						w.failf("service %s has no virtual address on network %s: %q", svc.Key(), n.Name, one.Message)
					}
					continue
				}
				for k, address := range []string{svc.VIPs[i].Address, svc.VIPs[i].Address6} {
					has := k == 0 || n.Spec.IPv6 != nil && n.Subnet6 != ""
					if ip, err := netip.ParseAddr(address); (err == nil) != has || has && right(s, n, k > 0, ip, "") != "" {
						w.failf("service %s has %q on network %s", svc.Key(), address, encode(n))
					}
				}
			}
			for _, v := range svc.VIPs {
				still := slices.ContainsFunc(s.TasksOf(svc.Stack, svc.Name), func(t *spec.Task) bool {
					return !t.Status.State.Terminal() && slices.ContainsFunc(t.Addresses, func(a spec.Address) bool { return a.Network == v.Network })
				})
				if !slices.Contains(want, v.Network) && (!svc.Spec.HasVIP() || !still) {
					w.failf("service %s has %s on network %s for nothing", svc.Key(), v.Address, v.Network)
				}
			}
		}
	}
}

// checkDocuments: what the hosts of a network are told fits together.
func (w *World) checkDocuments(s *store.Snapshot) {
	docs := map[uint32]map[spec.NetworkID]*spec.HostNetwork{} // by number of the node
	var numbers []uint32
	for _, n := range s.Nodes() {
		of := map[spec.NetworkID]*spec.HostNetwork{}
		for _, d := range reconciler.HostNetworks(s, n.ID) {
			of[d.Network.ID] = &d
		}
		docs[n.Number] = of
		numbers = append(numbers, n.Number)
	}
	slices.Sort(numbers)
	for _, a := range numbers {
		for id, d := range docs[a] { // any order finds the same
			w.checkEnds(d)
			for _, b := range numbers {
				if b != a && docs[b][id] != nil {
					w.checkPair(s, a, b, d, docs[b][id])
				}
			}
			for _, h := range d.Hosts {
				if h.Number == a || docs[h.Number][id] == nil {
					w.failf("host %d is told that host %d has network %s", a, h.Number, d.Network.Name)
				}
			}
		}
	}
}

// checkEnds: every target is an end that the host knows, and a network that is
// local to each host has no other.
func (w *World) checkEnds(d *spec.HostNetwork) {
	ends := map[netip.Addr]bool{}
	for _, t := range d.Tasks {
		ends[netip.MustParsePrefix(t.IP).Addr()] = true
		if t.IP6 != "" {
			ends[netip.MustParsePrefix(t.IP6).Addr()] = true
		}
	}
	for _, r := range d.Remote {
		ends[netip.MustParseAddr(r.IP)] = true
		if r.IP6 != "" {
			ends[netip.MustParseAddr(r.IP6)] = true
		}
	}
	for _, v := range d.VIPs {
		for _, t := range v.Targets {
			to := netip.MustParseAddr(t)
			if !ends[to] || to.Is4() != netip.MustParseAddr(v.Address).Is4() {
				w.failf("host %d leads %s on network %s to %s, which is no end of it: %s", d.HostNumber, v.Address, d.Network.Name, t, encode(d))
			}
		}
	}
	for _, p := range d.Ports {
		for _, t := range p.Targets {
			to := netip.MustParseAddrPort(t).Addr()
			if on, err := netip.ParseAddr(p.HostIP); !ends[to] || err == nil && on.Is4() != to.Is4() {
				w.failf("host %d leads port %d of network %s to %s, which is no end of it: %s", d.HostNumber, p.Port, d.Network.Name, t, encode(d))
			}
		}
	}
	if d.Network.Spec.Driver == spec.DriverBridge && len(d.Hosts)+len(d.Remote) > 0 {
		w.failf("host %d is told of others on network %s", d.HostNumber, d.Network.Name)
	}
}

// checkPair: two hosts of a network know each other, the ends of each other's
// tasks and no more, and agree about what virtual addresses lead to.
func (w *World) checkPair(s *store.Snapshot, a, b uint32, da, db *spec.HostNetwork) {
	if da.Network.Spec.Driver == spec.DriverBridge {
		return
	}
	if !slices.ContainsFunc(da.Hosts, func(h spec.NetworkHost) bool { return h.Number == b }) || da.MTU != db.MTU {
		w.failf("hosts %d and %d of network %s do not agree:\n%s\n%s", a, b, da.Network.Name, encode(da), encode(db))
	}
	told := func(number uint32) bool { // of its version, which knows IPv6
		return slices.ContainsFunc(s.Nodes(), func(n *spec.Node) bool {
			return n.Number == number && n.Info.Format >= store.AddressFormat
		})
	}
	theirs := map[string]string{}
	for _, t := range db.Tasks {
		ip6, _ := netip.ParsePrefix(t.IP6)
		if !told(a) || !told(b) {
			ip6 = netip.Prefix{}
		}
		theirs[netip.MustParsePrefix(t.IP).Addr().String()] = fmt.Sprint(t.MAC, ip6.Addr())
	}
	for _, r := range da.Remote {
		if r.Host != b {
			continue
		}
		if ip6, _ := netip.ParseAddr(r.IP6); theirs[r.IP] != fmt.Sprint(r.MAC, ip6) {
			w.failf("host %d is told of %s at host %d, which has %s", a, encode(r), b, encode(db.Tasks))
		}
		delete(theirs, r.IP)
	}
	if len(theirs) > 0 {
		w.failf("host %d is not told of %v at host %d", a, theirs, b)
	}
	ready := func(number uint32) bool { // and has told of its version
		return slices.ContainsFunc(s.Nodes(), func(n *spec.Node) bool {
			return n.Number == number && n.State == spec.NodeReady && n.Info.Format != 0
		})
	}
	if ready(a) && ready(b) && (!bytes.Equal(encode(da.VIPs), encode(db.VIPs)) || !bytes.Equal(encode(da.Names), encode(db.Names))) {
		w.failf("hosts %d and %d of network %s lead to others:\n%s%s\n%s%s", a, b, da.Network.Name, encode(da.VIPs), encode(da.Names), encode(db.VIPs), encode(db.Names))
	}
}

// checkPlaces: what a plan makes stays within the bounds of the service.
func (w *World) checkPlaces(before, after *store.Snapshot, c *store.Command) {
	// A plan that takes a stack back knew the numbers of before.
	back := c.ApplyPlan != nil && goesBack(spec.Plan{Parts: c.ApplyPlan.Parts})
	for _, svc := range after.Services() {
		exclusive := slices.Contains([]string{"db", "api", "solo", "fix"}, svc.Name)
		had := map[string]int{} // they may have been together by an older policy
		for _, t := range before.TasksOf(svc.Stack, svc.Name) {
			if !t.Status.State.Terminal() {
				had[t.Place()]++
			}
		}
		live, perSlot := 0, map[string]int{}
		for _, t := range after.TasksOf(svc.Stack, svc.Name) {
			if t.Status.State.Terminal() {
				continue
			}
			if t.Desired == spec.DesiredRunning {
				live++
				if c.ApplyPlan != nil && !back && before.Task(t.ID) == nil && t.Slot > svc.Replicas {
					w.failf("task %s of %s is in slot %d of %d", t.ID, svc.Key(), t.Slot, svc.Replicas)
				}
			}
			perSlot[t.Place()]++
			if n := perSlot[t.Place()]; n > 2 || n > max(1, had[t.Place()]) && exclusive && !mayBeTogether(svc) {
				w.failf("%d tasks of %s are at %s", n, svc.Key(), t.Place())
			}
		}
		was := 0
		for _, t := range before.TasksOf(svc.Stack, svc.Name) {
			if !t.Status.State.Terminal() && t.Desired == spec.DesiredRunning {
				was++
			}
		}
		if !back && svc.Spec.Mode == spec.Replicated && live > max(was, svc.Replicas+extra(svc)) {
			w.failf("service %s has %d tasks for %d replicas", svc.Key(), live, svc.Replicas)
		}
	}
}

// checkTrust: a task that serves is not stopped for the sake of one that is
// not known to last.
func (w *World) checkTrust(before, after *store.Snapshot, c *store.Command) {
	if c.ApplyPlan == nil {
		return
	}
	for _, old := range before.Tasks() {
		t, svc := after.Task(old.ID), after.Service(old.Stack, old.Service)
		n := after.Node(old.Node)
		if t == nil || svc == nil || svc.Name != "web" || !old.Ready() || t.Desired == spec.DesiredRunning || t.Slot > svc.Replicas ||
			n.State != spec.NodeReady || n.Availability == spec.NodeDrain {
			continue
		}
		for _, next := range before.TasksOf(old.Stack, old.Service) {
			if next.ID != old.ID && next.Place() == old.Place() && next.Ready() && next.Revision == svc.Revision && old.Revision != svc.Revision &&
				!stopsFirst(svc) && next.Status.Health != spec.HealthHealthy && c.Time.Before(next.Status.Since.Add(monitor(svc))) {
				w.failf("task %s was stopped for task %s, which runs since %s only", old.ID, next.ID, next.Status.Since)
			}
		}
	}
}

// checkMoves: a task that serves on a drained node is stopped only when another
// one at its place is known to last.
func (w *World) checkMoves(before, after *store.Snapshot, c *store.Command) {
	if c.ApplyPlan == nil || w.scarce {
		return
	}
	for _, old := range before.Tasks() {
		t, svc, n := after.Task(old.ID), after.Service(old.Stack, old.Service), after.Node(old.Node)
		if t == nil || svc == nil || svc.Name != "web" || !old.Ready() || t.Desired == spec.DesiredRunning || t.Slot > svc.Replicas ||
			n == nil || n.State != spec.NodeReady || n.Availability != spec.NodeDrain || n.StopPinned || stopsFirst(svc) {
			continue
		}
		lasts := false
		for _, next := range before.TasksOf(old.Stack, old.Service) {
			if next.ID != old.ID && next.Place() == old.Place() && next.Ready() &&
				(next.Status.Health == spec.HealthHealthy || !c.Time.Before(next.Status.Since.Add(monitor(svc)))) {
				lasts = true
			}
		}
		if !lasts {
			w.failf("task %s of %s was stopped on drained node %s, and nothing lasts in its place", t.ID, svc.Key(), n.Name)
		}
	}
}

// checkNodes: nothing is placed on a node that takes no tasks, nothing is left
// on one that was removed, there is a manager, and names differ.
func (w *World) checkNodes(before, after *store.Snapshot, c *store.Command) {
	managers, names := 0, map[string]bool{}
	for _, n := range after.Nodes() {
		if n.Role == spec.RoleManager {
			managers++
		}
		if names[n.Name] {
			w.failf("two nodes are called %s", n.Name)
		}
		names[n.Name] = true
	}
	if managers == 0 && len(before.Nodes()) > 0 {
		w.failf("the last manager is gone")
	}
	for _, t := range after.Tasks() {
		n := after.Node(t.Node)
		if t.Node != "" && n == nil && !t.Status.State.Terminal() {
			w.failf("task %s is %s on a node that was removed", t.ID, t.Status.State)
		}
		old := before.Task(t.ID)
		fresh := old == nil || old.Status.State == spec.TaskPending
		if c.ApplyPlan != nil && n != nil && fresh && t.Status.State == spec.TaskAssigned && (n.State != spec.NodeReady || n.Availability != spec.NodeActive) {
			w.failf("task %s was placed on node %s, which is %s and %s", t.ID, n.Name, n.State, n.Availability)
		}
	}
}

// checkExclusive: no two processes of one place of an exclusive service, on
// whatever hosts.
func (w *World) checkExclusive() {
	at := map[string]spec.TaskID{}
	for _, h := range append(slices.Clone(w.hosts), w.left...) {
		for _, id := range h.ids() {
			r := h.runs[id]
			if !r.exclusive || !r.lives() {
				continue
			}
			place := spec.ServiceKey(r.task.Stack, r.task.Service) + "/" + r.task.Place()
			if other := at[place]; other != "" {
				w.failf("tasks %s and %s of %s run at the same time, the latter on %s", other, id, place, h.name)
			}
			at[place] = id
		}
	}
}

// checkPairs: a task that shares the network of another one is at its side, on
// its host as in the state, and is ended only for its own sake or with it.
func (w *World) checkPairs(before, after *store.Snapshot, c *store.Command) {
	for _, h := range append(slices.Clone(w.hosts), w.left...) {
		for _, id := range h.ids() {
			r := h.runs[id]
			if head := h.runs[r.task.Joins]; r.task.Joins != "" && r.lives() && (head == nil || !head.lives()) {
				w.failf("task %s runs on %s without task %s, whose network it shares", id, h.name, r.task.Joins)
			}
		}
	}
	for _, t := range after.Tasks() {
		head := after.Task(t.Joins)
		if t.Joins != "" && head != nil && (head.Node != t.Node || head.Slot != t.Slot || head.Stack != t.Stack || head.Joins != "") {
			w.failf("task %s shares the network of %s", encode(t), encode(head))
		}
	}
	if c.ApplyPlan == nil {
		return
	}
	for _, old := range before.Tasks() {
		t, svc := after.Task(old.ID), after.Service(old.Stack, old.Service)
		if old.Joins == "" || !old.Ready() || svc == nil || t != nil && t.Desired == spec.DesiredRunning {
			continue
		}
		head, n := after.Task(old.Joins), after.Node(old.Node)
		goes := head == nil || head.Status.State.Terminal() || head.Desired != spec.DesiredRunning
		fits := n != nil && n.Availability != spec.NodeDrain && (svc.Spec.Placement.Constraints == nil || n.Labels["disk"] != "hdd")
		if !goes && fits && old.Revision == svc.Revision && old.Slot <= svc.Replicas && (old.Slot == 0) == (svc.Spec.Mode == spec.Global) {
			w.failf("task %s of %s was stopped, and task %s, whose network it shares, goes on", old.ID, svc.Key(), old.Joins)
		}
	}
}

// checkPairsAtRest: what shares a network does so with one that runs.
func (w *World) checkPairsAtRest() {
	s := w.store.Snapshot()
	for _, t := range s.Tasks() {
		head := s.Task(t.Joins)
		if t.Joins != "" && !t.Status.State.Terminal() && (head == nil || head.Status.State.Terminal() || head.Desired != spec.DesiredRunning) {
			w.failf("task %s shares at rest the network of task %s: %s", t.ID, t.Joins, encode(head))
		}
	}
}

// checkDrained: a drained node at rest has only what cannot move, and says so.
func (w *World) checkDrained() {
	if w.away == nil {
		return
	}
	s := w.store.Snapshot()
	n := s.Node(w.away.id)
	for _, l := range reconciler.Leftovers(s, n.ID, w.now) {
		svc := s.Service(l.Task.Stack, l.Task.Service)
		paused := svc != nil && svc.Update.State == spec.UpdatePaused
		if !paused && (!l.Pinned || n.StopPinned || svc == nil || svc.Spec.Mode == spec.Global ||
			svc.Name == "web" && svc.Spec.Placement.Constraints == nil && !w.scarce && !onUnsettled(s, svc)) {
			w.failf("task %s is left on drained node %s: %+v", l.Name, n.Name, l)
		}
	}
}

// checkLimits: a place whose restarts are used up is not filled again until
// the service changes.
func (w *World) checkLimits(before, after *store.Snapshot, c *store.Command) {
	if c.ApplyPlan == nil {
		return
	}
	for _, t := range after.Tasks() {
		svc := after.Service(t.Stack, t.Service)
		if before.Task(t.ID) != nil || svc == nil || svc.Spec.Template.Restart.MaxAttempts == 0 {
			continue
		}
		var last *spec.Task
		for _, old := range before.TasksOf(t.Stack, t.Service) {
			if old.Place() == t.Place() {
				last = old
			}
		}
		if last != nil && last.Status.State == spec.TaskFailed && last.Revision == svc.Revision && !last.Status.Since.Before(svc.Changed) {
			w.failf("task %s follows task %s of %s, which had used up its restarts", t.ID, last.ID, svc.Key())
		}
	}
}

// checkData: the row of a volume goes only when a user asked for that.
func (w *World) checkData(before, after *store.Snapshot) {
	for _, v := range before.Volumes() {
		now := after.Volume(v.ID)
		if !v.Removing && (now == nil || now.Removing) {
			w.failf("volume %s is removed and nobody asked", v.Name)
		}
	}
}

// checkWanted: what was declared has come true.
func (w *World) checkWanted() {
	s := w.store.Snapshot()
	for _, svc := range s.Services() {
		if svc.Spec.Mode.Job() {
			w.checkDone(s, svc)
			continue
		}
		places := svc.Replicas
		if svc.Spec.Mode == spec.Global {
			places = len(w.hosts)
			if w.dead != nil || w.away != nil {
				continue // its place may be filled or not
			}
		}
		live, over := map[string]*spec.Task{}, map[string]int{}
		for _, t := range s.TasksOf(svc.Stack, svc.Name) {
			switch {
			case t.Status.State.Terminal():
				if t.Status.State != spec.TaskLost { // those wait for their host
					over[t.Place()]++
				}
				if over[t.Place()] > keepHistory {
					w.failf("service %s has %d tasks that are over at %s", svc.Key(), over[t.Place()], t.Place())
				}
				if t.Desired == spec.DesiredRunning && mayEnd(svc) {
					live[t.Place()] = t // done, or given up
				}
			case w.dead != nil && t.Node == w.dead.id && live[t.Place()] != nil && live[t.Place()].Node == t.Node:
				// One was to stand in for the other, and nobody else can for either.
			case live[t.Place()] != nil && !live[t.Place()].Status.State.Terminal():
				w.failf("service %s has two tasks at %s: %s and %s", svc.Key(), t.Place(), encode(live[t.Place()]), encode(t))
			default:
				live[t.Place()] = t
			}
		}
		if len(live) != places {
			w.failf("service %s has %d places filled of %d", svc.Key(), len(live), places)
		}
		for place, t := range live {
			switch {
			case w.dead != nil && t.Node == w.dead.id && !t.Status.State.Terminal():
				w.checkDead(svc, t)
			case t.Revision != svc.Revision && !t.Status.State.Terminal() && slices.ContainsFunc(slices.Collect(maps.Values(live)), waitsForOther):
				// The update goes on when what the new tasks wait for is well.
			case t.Revision != svc.Revision && !t.Status.State.Terminal():
				if svc.Update.State != spec.UpdatePaused || svc.Update.Message == "" { // no node fits the new one, and it says so
					w.failf("task %s at %s of %s runs an old revision: %s", t.ID, place, svc.Key(), encode(svc.Update))
				}
			case t.Status.State == spec.TaskPending && t.Status.Reason == "":
				w.failf("task %s of %s is pending without a reason", t.ID, svc.Key())
			case !t.Ready() && t.Status.State != spec.TaskPending && !t.Status.State.Terminal():
				w.failf("task %s of %s is %s %s", t.ID, svc.Key(), t.Status.State, t.Status.Health)
			}
		}
	}
}

// mayEnd: there are ends after which a place of the service stays empty.
func mayEnd(svc *spec.Service) bool {
	r := &svc.Spec.Template.Restart
	return r.Condition == spec.RestartNone || r.MaxAttempts > 0 || svc.Spec.Mode.Job()
}

// checkDead: what could run elsewhere does not wait for a host that is dead.
func (w *World) checkDead(svc *spec.Service, t *spec.Task) {
	if svc.Name == "web" && svc.Spec.Placement.Constraints == nil && !w.scarce && !onUnsettled(w.store.Snapshot(), svc) {
		w.failf("task %s of %s waits for a dead host", t.ID, svc.Key())
	}
}

// checkNothingLeft: what nobody declares is gone.
func (w *World) checkNothingLeft(s *store.Snapshot) {
	for _, t := range s.Tasks() {
		if s.Service(t.Stack, t.Service) == nil {
			w.failf("task %s of %s/%s is left, %s", t.ID, t.Stack, t.Service, encode(t))
		}
	}
	used, mounted := map[spec.NetworkID]bool{}, map[spec.VolumeID]bool{}
	for _, svc := range s.Services() {
		for _, id := range attached(s, svc) {
			used[id] = true
		}
	}
	for _, t := range s.Tasks() {
		if t.Status.State.Terminal() {
			continue
		}
		for _, a := range t.Addresses {
			used[a.Network] = true // of an old revision: that is judged elsewhere
		}
		for _, b := range t.Volumes {
			mounted[b.ID] = true
		}
	}
	for _, n := range s.Networks() {
		// Where addresses are scarce, a task may stay that could not be replaced.
		stays := slices.ContainsFunc(s.TasksAt(n.ID), func(t *spec.Task) bool { return !t.Status.State.Terminal() })
		if n.Gone && !used[n.ID] && !(w.scarce && stays) {
			w.failf("network %s is left", n.Name)
		}
	}
	for _, v := range s.Volumes() {
		if v.Removing && !mounted[v.ID] {
			w.failf("volume %s is left", v.Name)
		}
	}
	for _, r := range s.Revisions() {
		if s.Stack(r.Stack) == nil {
			w.failf("revision %s of %s is left", r.ID, r.Stack)
		}
	}
	for _, h := range w.hosts {
		for _, id := range h.ids() {
			if r := h.runs[id]; !r.status.State.Terminal() && s.Task(id) == nil {
				w.failf("%s still runs task %s", h.name, id)
			}
		}
	}
}

// checkViews: at rest nobody is told that something fails or is on its way,
// and applying the same file again would change nothing.
func (w *World) checkViews() {
	snap := w.store.Snapshot()
	for _, row := range snap.Stacks() {
		st, _ := reconciler.Status(snap, row.Name, w.now)
		held := false // an update waits for another service
		for _, s := range st.Services {
			held = held || slices.ContainsFunc(snap.TasksOf(row.Name, s.Name), waitsForOther)
			// What has no room says so, and what depends on it waits.
			waits := s.State == reconciler.StateUpdating && (s.Update.Message != "" ||
				strings.Contains(s.Message, "waits for service") || held || strings.Contains(s.Message, "waits for address") || strings.Contains(s.Message, "no other node"))
			// What is never started again may have failed before all was well.
			svc := snap.Service(row.Name, s.Name)
			once := mayEnd(svc) || strings.Contains(s.Message, "the next one cannot be placed")
			if none := !svc.Spec.Mode.PerNode() && svc.Replicas == 0; none || s.State == reconciler.StateStopped {
				if !none || s.State != reconciler.StateStopped {
					w.failf("service %s is %s at rest with %d replicas: %s", svc.Key(), s.State, svc.Replicas, s.Message)
				}
				continue
			}
			if s.State != reconciler.StateRunning && s.State != reconciler.StateDegraded && !waits && s.Impossible == "" && !(once && s.State == reconciler.StateFailed) {
				w.failf("service %s/%s is %s at rest: %s", row.Name, s.Name, s.State, s.Message)
			}
			if s.State == reconciler.StateDegraded && s.Message == "" {
				w.failf("service %s/%s is degraded for no reason", row.Name, s.Name)
			}
		}
		again := store.Command{Time: w.now, PutStack: &store.PutStack{Stack: snap.StackRevision(row.Name, row.Revision).Spec}}
		p, err := reconciler.NewPreview(w.store, again, w.now)
		if err != nil || len(p.Changes) > 0 || len(p.Tasks) > 0 && !held {
			w.failf("applying %s again would change %s, %v", row.Name, encode(p), err)
		}
	}
}

// checkShuffled: the order in which rows came into the tables does not matter.
func (w *World) checkShuffled() {
	var b bytes.Buffer
	snap := w.store.Snapshot()
	if err := snap.Persist(&b); err != nil {
		w.failf("persist: %v", err)
		return
	}
	lines := strings.SplitAfter(b.String()[1:], "\n")
	for i := 0; i < len(lines); i++ {
		var section struct {
			Table string `json:"table"`
			Rows  int    `json:"rows"`
		}
		if json.Unmarshal([]byte(lines[i]), &section) == nil && section.Table != "" && section.Rows > 1 {
			rows := lines[i+1 : i+1+section.Rows]
			w.rng.Shuffle(len(rows), func(i, j int) { rows[i], rows[j] = rows[j], rows[i] })
			i += section.Rows
		}
	}
	other := store.New()
	if err := other.Restore(strings.NewReader(b.String()[:1] + strings.Join(lines, ""))); err != nil {
		w.failf("restore shuffled: %v", err)
		return
	}
	// A later time and one more wish, so that there is something to plan.
	for _, s := range []*store.Store{w.store, other} {
		s.Apply(w.index+1, store.Command{Time: w.now, PutStack: &store.PutStack{Stack: w.fixedStack()}})
	}
	seen := w.seen.At(w.now, w.elapsed())
	a, c := reconciler.PlanSeen(w.store.Snapshot(), w.now, seen), reconciler.PlanSeen(other.Snapshot(), w.now, seen)
	if !bytes.Equal(encode(a), encode(c)) {
		w.failf("the order of the rows changes the plan:\n%s\n%s", encode(a), encode(c))
	}
	for _, h := range w.hosts {
		x := fmt.Sprintf("%s%s", encode(reconciler.Wanted(w.store.Snapshot(), h.id)), encode(reconciler.HostNetworks(w.store.Snapshot(), h.id)))
		y := fmt.Sprintf("%s%s", encode(reconciler.Wanted(other.Snapshot(), h.id)), encode(reconciler.HostNetworks(other.Snapshot(), h.id)))
		if x != y {
			w.failf("the order of the rows changes what %s has to run", h.name)
		}
	}
}

// fixedStack is a stack that needs everything.
func (w *World) fixedStack() spec.Stack {
	s := (&World{rng: New(7).rng}).stack("late", true)
	return s
}

// waitsForOther reports whether a task waits for another service.
func waitsForOther(t *spec.Task) bool {
	return t.Status.State == spec.TaskPending && strings.HasPrefix(t.Status.Reason, "waits for service ")
}
