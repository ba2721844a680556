package reconciler

import (
	"encoding/hex"
	"fmt"
	"hash/fnv"
	"slices"

	"wherry.dev/scheduler"
	"wherry.dev/spec"
)

// attached is an attachment of a template, resolved.
type attached struct {
	name string        // cluster-wide
	net  *spec.Network // nil: does not exist
}

// attachments resolves the networks of a template, in its order. A task has
// its addresses in the same order.
func (v *view) attachments(stack string, t *spec.Template) []attached {
	if t.NetworkMode != "" {
		return nil
	}
	out := make([]attached, 0, len(t.Networks))
	for _, a := range t.Networks {
		name := v.networkName(stack, a.Network)
		out = append(out, attached{name: name, net: v.network(name)})
	}
	return out
}

// volumeMount is a volume mount of a template, resolved.
type volumeMount struct {
	target    string
	name      string // cluster-wide; empty for an anonymous one, whose name depends on the place
	anonymous bool
}

func (v *view) volumeMounts(stack string, t *spec.Template) []volumeMount {
	var out []volumeMount
	for _, m := range t.Mounts {
		switch {
		case m.Type != spec.MountVolume:
		case m.Source == "":
			out = append(out, volumeMount{target: m.Target, anonymous: true})
		default:
			out = append(out, volumeMount{target: m.Target, name: v.volumeName(stack, m.Source)})
		}
	}
	return out
}

// homeless reports whether the data of a volume is elsewhere than on the nodes
// that mount it, so that every node can.
func homeless(v *spec.Volume) bool { return v.Spec.Shared() }

// anonymousName is the name of the anonymous volume of a place. It depends on
// nothing but what people call the place, so that a service or slot that comes
// back finds its data: only a user removes that. The hash has the stack and the
// service too, since two pairs of them may be written alike.
func anonymousName(svc *spec.Service, place, target string) string {
	h := fnv.New64a()
	h.Write([]byte(svc.Key() + "\x00" + target))
	return fmt.Sprintf("%s_%s.%s.%s", svc.Stack, svc.Name, place, hex.EncodeToString(h.Sum(nil))[:10])
}

// classOf collects what the placement of a service's tasks depends on.
func (p *planner) classOf(svc *spec.Service, ports []spec.Port, mounts []volumeMount) scheduler.Class {
	t := &svc.Spec.Template
	c := scheduler.Class{
		Service: svc.Key(), CPUs: t.Resources.ReserveCPUs, Memory: t.Resources.ReserveMemory, Generic: t.Resources.ReserveGeneric,
		Platform: t.Platform, Ports: hostPorts(ports),
		MaxPerNode: svc.Spec.Placement.MaxPerNode,
	}
	for _, text := range svc.Spec.Placement.Constraints {
		k, err := spec.ParseConstraint(text)
		if err != nil {
			c.Invalid = err.Error()
			continue
		}
		c.Constraints = append(c.Constraints, k)
	}
	for _, text := range svc.Spec.Placement.Spread {
		key, err := spec.ParseSpread(text)
		if err != nil {
			c.Invalid = err.Error()
			continue
		}
		c.Spread = append(c.Spread, key)
	}
	for _, task := range p.tasks[svc.Key()] {
		if failed(task) && task.Revision == svc.Revision && task.Node != "" {
			if c.Failures == nil {
				c.Failures = map[spec.NodeID]int{}
			}
			c.Failures[task.Node]++
		}
	}
	if !svc.Spec.Mode.PerNode() {
		p.bindHomes(&c, mounts)
	}
	c.Parents = p.parents(svc)
	p.joinClass(&c, svc)
	return c
}

// parents are the interfaces of a node that the tasks of a service need.
func (p *planner) parents(svc *spec.Service) []string {
	var out []string
	for _, a := range p.attachments(svc.Stack, &svc.Spec.Template) {
		if a.net != nil && a.net.Spec.Driver == spec.DriverMacvlan {
			out = append(out, a.net.Spec.Parent)
		}
	}
	return out
}

// bindHomes limits a replicated service to where its volumes are.
func (p *planner) bindHomes(c *scheduler.Class, mounts []volumeMount) {
	c.Homes, c.Together = nil, false
	for _, m := range slices.Concat(mounts, p.partnerMounts(c.Service)) {
		v := p.volumes[m.name]
		switch {
		case m.anonymous || v == nil || homeless(v):
		case len(p.homes[m.name]) == 0:
			c.Together = true
		default:
			c.Homes = append(c.Homes, scheduler.Homes{Volume: m.name, Nodes: p.homes[m.name]})
		}
	}
}

// placeAll gives nodes to tasks that wait for one, existing or new, in order.
func (s *pass) placeAll(tasks []*spec.Task) {
	if len(tasks) == 0 {
		return
	}
	if why := s.missing(); why != "" {
		for _, t := range tasks {
			s.reason(t, why)
		}
		return
	}
	if s.joined() {
		s.placePairs(tasks)
		return
	}
	if s.svc.Spec.Mode.PerNode() {
		for _, t := range tasks {
			why := s.board.Fits(&s.class, t.Node)
			if why == "" {
				s.board.Book(s.class.Booking(t.Node))
				why = s.assign(t, t.Node)
			}
			if why != "" {
				s.reason(t, scheduler.Counted([]string{why}, map[string]int{why: 1}))
			}
		}
		return
	}
	for i, got := range s.board.Place(&s.class, len(tasks)) {
		why := got.Reason
		if why == "" {
			why = s.assign(tasks[i], got.Node)
		}
		if why != "" {
			s.reason(tasks[i], why)
		}
	}
	s.bindHomes(&s.class, s.mounts)
}

// missing says what no task of the service can do without, or "".
func (s *pass) missing() string {
	if s.snap.Revision(s.svc.Revision) == nil {
		return "revision " + string(s.svc.Revision) + " does not exist"
	}
	if why := s.copiesGone(); why != "" {
		return why
	}
	if why := s.missingNetwork(); why != "" {
		return why
	}
	for _, a := range s.nets {
		if s.numbered[a.net.ID] == nil {
			return s.troubles[a.net.ID]
		}
	}
	for _, m := range s.mounts {
		if m.anonymous {
			continue
		}
		if v := s.volumes[m.name]; v == nil {
			return "volume " + m.name + " does not exist"
		} else if v.Removing {
			return "volume " + m.name + " is being removed"
		} else if v.Move != nil {
			return s.moveReason(v)
		}
	}
	return ""
}

// assign gives a task its node, addresses and volumes. It returns a reason
// when the node cannot be used after all, and then takes the booking back.
func (s *pass) assign(t *spec.Task, node spec.NodeID) (why string) {
	addresses, why := s.takeAddresses()
	var volumes []spec.VolumeBinding
	if why == "" {
		volumes, why = s.bindVolumes(t, node)
	}
	if why != "" {
		s.board.Release(s.class.Booking(node))
		return why
	}
	s.read(&s.part, spec.KindNode, string(node), s.nodes[node].Version)
	for _, a := range s.nets {
		s.read(&s.part, spec.KindNetwork, string(a.net.ID), a.net.Version)
	}
	if t.ID == "" {
		t.Node, t.Addresses, t.Volumes = node, addresses, volumes
		t.Status.State, t.Status.Reason = spec.TaskAssigned, ""
		return ""
	}
	c := s.change(t)
	c.Node, c.Addresses, c.Volumes, c.Reason = node, addresses, volumes, ""
	return ""
}

// bindVolumes resolves the volume mounts for a task on a node, makes anonymous
// volumes, and adds homes.
func (s *pass) bindVolumes(t *spec.Task, node spec.NodeID) ([]spec.VolumeBinding, string) {
	place := t.Place()
	if t.Slot == 0 {
		place = string(node)
	}
	out := make([]spec.VolumeBinding, 0, len(s.mounts))
	for _, m := range s.mounts {
		if m.anonymous {
			m.name = anonymousName(s.svc, place, m.target)
			if v := s.volumes[m.name]; v != nil && v.Removing {
				return nil, "volume " + m.name + " is being removed"
			}
		}
		out = append(out, spec.VolumeBinding{Target: m.target, Name: m.name})
	}
	for i, m := range s.mounts {
		s.useVolume(out[i].Name, m.anonymous, place, node)
		if v := s.volumes[out[i].Name]; v != nil {
			out[i].ID = v.ID
		}
	}
	return out, ""
}

// useVolume makes sure that a volume exists and has the node as a home.
func (s *pass) useVolume(name string, anonymous bool, place string, node spec.NodeID) {
	v := s.volumes[name]
	switch {
	case v != nil:
		s.read(&s.part, spec.KindVolume, name, v.Version)
	case !slices.ContainsFunc(s.part.Volumes, func(v spec.Volume) bool { return v.Name == name }):
		s.read(&s.part, spec.KindVolume, name, 0)
		s.part.Volumes = append(s.part.Volumes, spec.Volume{
			Stack: s.svc.Stack, Name: name, Anonymous: anonymous, Service: s.svc.Name, Slot: place,
		})
	}
	if v != nil && homeless(v) || slices.Contains(s.homes[name], node) {
		return
	}
	s.homes[name] = append(slices.Clone(s.homes[name]), node)
	s.part.Homes = append(s.part.Homes, spec.VolumeHome{Name: name, Node: node})
}

// numberedOr returns a network with the numbers of this plan.
func (p *planner) numberedOr(n *spec.Network) *spec.Network {
	if m := p.numbered[n.ID]; m != nil {
		return m
	}
	return n
}
