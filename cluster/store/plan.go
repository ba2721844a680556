package store

import (
	"errors"
	"net/netip"
	"slices"
	"strings"

	"wherry.dev/spec"
)

// applyPlan applies each part on its own.
func (r *reducer) applyPlan(c *ApplyPlan) {
	r.res.Parts = make([]error, len(c.Parts))
	if c.Epoch < r.meta.Epoch {
		r.res.Err = spec.Conflictf("the plan is of term %d, the state has seen term %d: its maker leads no longer", c.Epoch, r.meta.Epoch)
		for i := range r.res.Parts {
			r.res.Parts[i] = r.res.Err
		}
		return
	}
	r.meta.Epoch = c.Epoch
	for i := range c.Parts {
		changed := r.res.Changed
		err := r.attempt(func() error { return r.applyPart(&c.Parts[i]) })
		if why := (cannotGoBack{}); errors.As(err, &why) {
			r.res.Changed = changed
			err = r.attempt(func() error { return (&part{reducer: r}).pauseInstead(&c.Parts[i], why) })
		}
		if err != nil {
			r.res.Parts[i], r.res.Changed = err, changed
		}
	}
}

// part is one part at work.
type part struct {
	*reducer
	// touched are the services whose tasks or own fields changed, in order.
	touched []string
}

// applyPart makes room before it takes any: what ends or goes away comes
// before what is created, so that a part may hand an address on.
func (r *reducer) applyPart(p *spec.Part) error {
	w := &part{reducer: r}
	if err := w.checkReads(p.Reads); err != nil {
		return err
	}
	for _, step := range []func(*spec.Part) error{
		w.numberNetworks, w.createVolumes, w.addHomes, w.changeTasks, w.removeTasks, w.createTasks,
		w.changeService, w.dropNetworks, w.dropVolumes, w.dropRevisions, w.dropContents, w.changeStack, w.goBack,
	} {
		if err := step(p); err != nil {
			return err
		}
	}
	w.bumpServices()
	r.sweepVolumes()
	return nil
}

func (w *part) checkReads(reads []spec.Read) error {
	for _, read := range reads {
		have, err := w.version(read)
		if err != nil {
			return err
		}
		switch {
		case have == read.Version:
		case have == 0:
			return spec.Conflictf("%s %s is gone", read.Kind, read.Key)
		case read.Version == 0:
			return spec.Conflictf("%s %s exists by now", read.Kind, read.Key)
		default:
			return spec.Conflictf("%s %s has moved from version %d to %d", read.Kind, read.Key, read.Version, have)
		}
	}
	return nil
}

// version returns the version of what a part has read; 0 when it is not there.
func (w *part) version(read spec.Read) (uint64, error) {
	switch read.Kind {
	case spec.KindStack:
		if s := w.stacks.get(w.txn, textKey(read.Key)); s != nil {
			return s.Version, nil
		}
	case spec.KindService:
		stack, name, _ := spec.SplitServiceKey(read.Key)
		if s := w.services.get(w.txn, textsKey(stack, name)); s != nil {
			return s.Version, nil
		}
	case spec.KindNode:
		if n := w.nodes.get(w.txn, textKey(read.Key)); n != nil {
			return n.Version, nil
		}
	case spec.KindNetwork:
		if n := w.networks.get(w.txn, idKey(read.Key)); n != nil {
			return n.Version, nil
		}
	case spec.KindVolume:
		if v := w.volumes.first(w.txn, byName, textKey(read.Key)); v != nil {
			return v.Version, nil
		}
	case spec.KindContent:
		if c := w.contents.get(w.txn, textKey(read.Key)); c != nil {
			return c.Index, nil
		}
	default:
		return 0, spec.Invalidf("a part cannot read a %q", read.Kind)
	}
	return 0, nil
}

func (w *part) numberNetworks(p *spec.Part) error {
	for _, n := range p.Networks {
		row := w.networks.get(w.txn, idKey(n.ID))
		if row == nil {
			return spec.Conflictf("network %s is gone", n.ID)
		}
		if err := w.checkNumbers(row, n); err != nil {
			return err
		}
		next := *row
		next.Subnet, next.Gateway, next.VNI, next.Version = n.Subnet, n.Gateway, n.VNI, w.index
		next.Subnet6, next.Gateway6 = n.Subnet6, n.Gateway6
		put(w.reducer, &w.networks, next)
	}
	return nil
}

// checkNumbers refuses a subnet or VNI that another network has: two plans from
// one snapshot may have chosen the same.
func (w *part) checkNumbers(row *spec.Network, n spec.NetworkNumbers) error {
	subnet, err := checkSubnet(row, n.Subnet, n.Gateway)
	if err != nil {
		return err
	}
	var subnet6 netip.Prefix // invalid, and overlaps nothing, where there is none
	if n.Subnet6 != "" || n.Gateway6 != "" {
		if subnet6, err = checkSubnet(row, n.Subnet6, n.Gateway6); err != nil {
			return err
		}
	}
	for other := range w.networks.all(w.txn) {
		if other.ID == row.ID {
			continue
		}
		if taken, err := netip.ParsePrefix(other.Subnet); err == nil && taken.Overlaps(subnet) {
			return spec.Conflictf("network %s: the subnet %s overlaps %s of network %s", row.Name, subnet, taken, other.Name)
		}
		if taken, err := netip.ParsePrefix(other.Subnet6); err == nil && taken.Overlaps(subnet6) {
			return spec.Conflictf("network %s: the subnet %s overlaps %s of network %s", row.Name, subnet6, taken, other.Name)
		}
		if n.VNI != 0 && other.VNI == n.VNI {
			return spec.Conflictf("network %s: the VNI %d is that of network %s", row.Name, n.VNI, other.Name)
		}
	}
	return nil
}

func checkSubnet(row *spec.Network, subnet, gateway string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(subnet)
	if err != nil {
		return p, spec.Invalidf("network %s: the subnet %q is none", row.Name, subnet)
	}
	if _, err := netip.ParseAddr(gateway); err != nil {
		return p, spec.Invalidf("network %s: the gateway %q is no address", row.Name, gateway)
	}
	return p, nil
}

func (w *part) createVolumes(p *spec.Part) error {
	for _, v := range p.Volumes {
		if err := checkName("volume", v.Name); err != nil {
			return err
		}
		if err := checkName("stack", v.Stack); err != nil {
			return err
		}
		if w.volumes.first(w.txn, byName, textKey(v.Name)) != nil {
			return spec.Conflictf("volume %s exists by now", v.Name)
		}
		for _, home := range v.Homes {
			if w.nodes.get(w.txn, textKey(home)) == nil {
				return spec.Conflictf("volume %s: there is no node %q", v.Name, home)
			}
		}
		v.ID, v.Removing, v.Version = spec.VolumeID(w.newID()), false, w.index
		put(w.reducer, &w.volumes, v)
	}
	return nil
}

func (w *part) addHomes(p *spec.Part) error {
	for _, h := range p.Homes {
		v, err := w.usableVolume(h.Name)
		if err != nil {
			return err
		}
		if w.nodes.get(w.txn, textKey(h.Node)) == nil {
			return spec.Conflictf("volume %s: there is no node %q", h.Name, h.Node)
		}
		if slices.Contains(v.Homes, h.Node) {
			continue
		}
		next := *v
		next.Homes, next.Version = slices.Concat(v.Homes, []spec.NodeID{h.Node}), w.index
		put(w.reducer, &w.volumes, next)
	}
	return nil
}

func (w *part) usableVolume(name string) (*spec.Volume, error) {
	v := w.volumes.first(w.txn, byName, textKey(name))
	if v == nil {
		return nil, spec.Conflictf("there is no volume %q", name)
	}
	if v.Removing {
		return nil, spec.Conflictf("volume %s is being removed", name)
	}
	if v.Move != nil {
		return nil, spec.Conflictf("volume %s is being moved", name)
	}
	return v, nil
}

func (w *part) changeService(p *spec.Part) error {
	c := p.Service
	if c == nil {
		return nil
	}
	old := w.services.get(w.txn, textsKey(c.Stack, c.Name))
	if old == nil {
		return spec.Conflictf("service %s is gone", spec.ServiceKey(c.Stack, c.Name))
	}
	next := *old
	if c.Update != nil {
		next.Update = *c.Update
	}
	next.Version = w.index
	if c.Ports != nil {
		next.Ports = c.Ports
	}
	if c.Fetch != nil {
		if next.Fetch = *c.Fetch; len(next.Fetch) == 0 {
			next.Fetch = nil
		}
		if len(slices.Compact(slices.Sorted(slices.Values(next.Fetch)))) != len(next.Fetch) {
			return spec.Invalidf("service %s: a node is to fetch its image twice", next.Key())
		}
	}
	if c.VIPs != nil {
		next.VIPs = *c.VIPs
		if len(next.VIPs) == 0 {
			next.VIPs = nil // one form of "none"
		}
	}
	put(w.reducer, &w.services, next)
	w.updateEvent(old, &next)
	if c.VIPs != nil {
		if err := w.checkVIPs(&next); err != nil {
			return err
		}
	}
	if c.Ports == nil {
		return nil
	}
	return w.checkPorts(&next)
}

// checkVIPs refuses virtual addresses that are none, two of one service on a
// network, and any that a task or another service holds.
func (w *part) checkVIPs(s *spec.Service) error {
	on := map[spec.NetworkID]bool{}
	for i := range s.VIPs {
		v := &s.VIPs[i]
		n := w.networks.get(w.txn, idKey(v.Network))
		switch {
		case n == nil:
			return spec.Conflictf("there is no network %q for service %s", v.Network, s.Key())
		case on[v.Network]:
			return spec.Invalidf("service %s has two virtual addresses on network %s", s.Key(), n.Name)
		}
		on[v.Network] = true
		for i, address := range []string{v.Address, v.Address6} {
			if i > 0 && address == "" {
				continue
			}
			value := vipValue(v.Network, address)
			if value == nil || i > 0 && !strings.Contains(address, ":") {
				return spec.Invalidf("network %s: %q is no %s without a prefix length", n.Name, address, [...]string{"address", "IPv6 address"}[i])
			}
			if err := w.checkFree(n, address, value, "", s.Key()); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *part) dropNetworks(p *spec.Part) error {
	for _, id := range p.RemoveNetworks {
		n := w.networks.get(w.txn, idKey(id))
		if n == nil {
			return spec.Conflictf("network %s is gone", id)
		}
		if !n.Gone {
			return spec.Conflictf("network %s is declared by stack %s", n.Name, n.Stack)
		}
		for t := range w.tasks.with(w.txn, byAddress, idKey(id)) {
			if w.holdsAddress(w.txn, t) {
				return spec.Conflictf("network %s has task %s", n.Name, w.taskName(t))
			}
		}
		for s := range w.services.with(w.txn, byVIP, idKey(id)) {
			return spec.Conflictf("network %s has a virtual address of service %s", n.Name, s.Key())
		}
		drop(w.reducer, &w.networks, n)
	}
	return nil
}

// dropVolumes removes anonymous volumes only: the data of a named one goes
// when a person says so.
func (w *part) dropVolumes(p *spec.Part) error {
	for _, id := range p.RemoveVolumes {
		v := w.volumes.get(w.txn, idKey(id))
		if v == nil {
			return spec.Conflictf("volume %s is gone", id)
		}
		if !v.Anonymous {
			return spec.Conflictf("volume %s is not anonymous: only a user may remove it", v.Name)
		}
		for t := range w.liveUsers(v.ID) {
			return spec.Conflictf("volume %s is used by task %s", v.Name, w.taskName(t))
		}
		if !v.Removing {
			w.markRemoving(v)
		}
	}
	return nil
}

func (w *part) dropRevisions(p *spec.Part) error {
	for _, id := range p.RemoveRevisions {
		rev := w.revisions.get(w.txn, textKey(id))
		if rev == nil {
			return spec.Conflictf("revision %s is gone", id)
		}
		if s := w.services.get(w.txn, textsKey(rev.Stack, rev.Service)); s != nil && s.Revision == id {
			return spec.Conflictf("revision %s is the newest of service %s", id, s.Key())
		}
		for t := range w.tasks.with(w.txn, byService, textsKey(rev.Stack, rev.Service)) {
			if t.Revision == id {
				return spec.Conflictf("revision %s is that of task %s", id, w.taskName(t))
			}
		}
		drop(w.reducer, &w.revisions, rev)
	}
	return nil
}

func (w *part) dropContents(p *spec.Part) error {
	for _, id := range p.RemoveContents {
		c := w.contents.get(w.txn, textKey(id))
		if c == nil {
			return spec.Conflictf("content %s is gone", id)
		}
		if w.contentInUse(w.txn, id) {
			return spec.Conflictf("content %s is in use", id)
		}
		drop(w.reducer, &w.contents, c)
	}
	return nil
}
