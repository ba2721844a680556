package store

import (
	"maps"
	"slices"
	"strings"

	"wherry.dev/spec"
)

// declare makes the objects of a stack as want says. It keeps the identity of
// what exists and touches nothing that is right already, so that a small
// change of a large stack stays small.
func (r *reducer) declare(want *spec.Stack) error {
	if err := r.checkExternals(want, nil); err != nil {
		return err
	}
	if err := r.checkData(want); err != nil {
		return err
	}
	if err := r.checkContents(want); err != nil {
		return err
	}
	if err := r.declareNetworks(want); err != nil {
		return err
	}
	if err := r.declareVolumes(want); err != nil {
		return err
	}
	return r.declareServices(want)
}

// checkExternals names every external network and volume that is missing, and
// the secrets and configs that are known to be. From AddressFormat on a network
// may be: the services that name it wait.
func (r *reducer) checkExternals(want *spec.Stack, missing []string) error {
	for _, short := range slices.Sorted(maps.Keys(want.Networks)) {
		n := want.Networks[short]
		if !n.External || r.meta.Format >= AddressFormat {
			continue
		}
		name := n.ClusterName(want.Name, short)
		if row := r.networks.first(r.txn, byName, textKey(name)); row == nil || row.Gone {
			missing = append(missing, "network "+name)
		}
	}
	for _, short := range slices.Sorted(maps.Keys(want.Volumes)) {
		v := want.Volumes[short]
		if !v.External {
			continue
		}
		name := v.ClusterName(want.Name, short)
		row := r.volumes.first(r.txn, byName, textKey(name))
		if row == nil {
			missing = append(missing, "volume "+name)
		} else if row.Removing {
			return spec.Conflictf("external volume %s is being removed", name)
		}
	}
	if len(missing) > 0 {
		return spec.NotFoundf("stack %s declares external what does not exist: %s; create it first, or drop \"external\"",
			want.Name, strings.Join(missing, ", "))
	}
	return nil
}

// checkContents names every content that is not there completely.
func (r *reducer) checkContents(want *spec.Stack) error {
	var missing []string
	for _, id := range stackContents(want) {
		if c := r.contents.get(r.txn, textKey(id)); c == nil || len(c.Data) != c.Size {
			missing = append(missing, string(id))
		}
	}
	if len(missing) > 0 {
		return spec.Conflictf("stack %s refers to contents that are not complete: %s; send them first", want.Name, strings.Join(missing, ", "))
	}
	return nil
}

// declareVolumes never removes one: data outlives its declaration.
func (r *reducer) declareVolumes(want *spec.Stack) error {
	declared := map[string]bool{}
	for _, short := range slices.Sorted(maps.Keys(want.Volumes)) {
		v := want.Volumes[short]
		if v.External {
			continue
		}
		name := v.ClusterName(want.Name, short)
		if declared[name] {
			return spec.Invalidf("stack %s declares volume %s twice", want.Name, name)
		}
		declared[name] = true
		if err := r.declareVolume(want.Name, short, name, v); err != nil {
			return err
		}
	}
	return nil
}

func (r *reducer) declareVolume(stack, short, name string, v spec.VolumeSpec) error {
	row := r.volumes.first(r.txn, byName, textKey(name))
	switch {
	case row == nil:
		put(r, &r.volumes, spec.Volume{
			ID: spec.VolumeID(r.newID()), Stack: stack, Short: short, Name: name, Spec: v, Version: r.index,
		})
		return nil
	case row.Removing:
		return spec.Conflictf("volume %s is being removed: try again when it is gone", name)
	case row.Anonymous:
		return spec.Conflictf("volume %s is an anonymous volume of service %s: choose another name", name, spec.ServiceKey(row.Stack, row.Service))
	case row.Stack != stack && row.Stack == "":
		return spec.Conflictf("volume %s belongs to no stack, somebody has made it by hand: declare it external to use it", name)
	case row.Stack != stack:
		return spec.Conflictf("volume %s belongs to stack %s: declare it external to use it", name, row.Stack)
	case row.Short != short || !same(&row.Spec, &v):
		next := *row
		next.Short, next.Spec, next.Version = short, v, r.index
		put(r, &r.volumes, next)
	}
	return nil
}

// declareServices makes the services of the stack exactly those of want.
func (r *reducer) declareServices(want *spec.Stack) error {
	for row := range r.services.under(r.txn, textsKey(want.Name)) {
		if _, ok := want.Services[row.Name]; !ok {
			drop(r, &r.services, row)
		}
	}
	var changed []string
	renewed := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(want.Services)) {
		old := r.services.get(r.txn, textsKey(want.Name, name))
		if r.declareService(want.Name, name, want.Services[name]) {
			changed = append(changed, name)
			renewed[name] = old != nil && old.Revision != r.services.get(r.txn, textsKey(want.Name, name)).Revision
		}
	}
	r.restartAfter(want.Name, func(name string) bool { return renewed[name] })
	// Only now is every port of the stack as it will be.
	for _, name := range changed {
		svc := r.services.get(r.txn, textsKey(want.Name, name))
		if err := r.checkPorts(svc); err != nil {
			return err
		}
		if ip := svc.Spec.Template.FixedAddress(); ip != "" && svc.Replicas > 1 {
			return spec.Invalidf("service %s is scaled to %d, and its address %s can be that of one task: scale it to 1 first, or set its replicas", svc.Key(), svc.Replicas, ip)
		}
	}
	return nil
}

// restartAfter calls for a restart of those services of a stack that ask for it
// when the tasks of another one are replaced.
func (r *reducer) restartAfter(stack string, replaced func(service string) bool) {
	var after []*spec.Service
	for svc := range r.services.under(r.txn, textsKey(stack)) {
		if slices.ContainsFunc(svc.Spec.DependsOn, func(d spec.Dependency) bool { return d.Restart && replaced(d.Service) }) {
			after = append(after, svc)
		}
	}
	for _, svc := range after {
		next := *svc
		next.Restarts++
		next.Rollout, next.Changed, next.Version = r.index, r.now, r.index
		put(r, &r.services, next)
	}
}

// declareService reports whether the service is new or differs.
func (r *reducer) declareService(stack, name string, s spec.ServiceSpec) bool {
	rev := spec.HashTemplate(stack, name, &s.Template)
	if r.revisions.get(r.txn, textKey(rev)) == nil {
		put(r, &r.revisions, spec.Revision{ID: rev, Stack: stack, Service: name, Template: s.Template})
	}
	next := spec.Service{Stack: stack, Name: name, Replicas: 1}
	old := r.services.get(r.txn, textsKey(stack, name))
	if old != nil {
		next = *old
	}
	if s.Replicas != nil {
		next.Replicas = *s.Replicas
	}
	if old != nil && next.Replicas == old.Replicas && same(&old.Spec, &s) {
		return false
	}
	if old == nil {
		next.ID = spec.ServiceID(r.newID())
	}
	next.Spec, next.Revision, next.Changed, next.Version = s, rev, r.now, r.index
	if r.meta.Format >= RolloutFormat {
		next.Rollout, next.Held = r.index, ""
	}
	put(r, &r.services, next)
	return true
}
