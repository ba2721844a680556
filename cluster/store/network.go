package store

import (
	"maps"
	"slices"
	"strings"

	"wherry.dev/spec"
)

func (r *reducer) declareNetworks(want *spec.Stack) error {
	declared := map[string]bool{} // by cluster-wide name
	for _, short := range slices.Sorted(maps.Keys(want.Networks)) {
		n := want.Networks[short]
		name := n.ClusterName(want.Name, short)
		if n.External {
			r.joinNetwork(name)
			continue
		}
		if declared[name] {
			return spec.Invalidf("stack %s declares network %s twice", want.Name, name)
		}
		declared[name] = true
		if err := r.declareNetwork(want.Name, short, name, n); err != nil {
			return err
		}
	}
	for row := range r.networks.with(r.txn, byStack, textsKey(want.Name)) {
		if !declared[row.Name] {
			r.leaveNetwork(row)
		}
	}
	return nil
}

// declareNetwork makes a network of a stack what its file says. One that nobody
// declares any more, but that others still use, is taken over as it is.
func (r *reducer) declareNetwork(stack, short, name string, n spec.NetworkSpec) error {
	row := r.networks.first(r.txn, byName, textKey(name))
	switch {
	case row == nil:
		put(r, &r.networks, spec.Network{
			ID: spec.NetworkID(r.newID()), Stack: stack, Short: short, Name: name, Spec: n, Version: r.index,
		})
		return nil
	case row.Stack != stack && row.Gone && r.meta.Format < AddressFormat:
		return spec.Conflictf("network %s of stack %s has still tasks that are being stopped: try again later", name, row.Stack)
	case row.Stack != stack && !row.Gone && row.Stack == "":
		return spec.Conflictf("network %s belongs to no stack, somebody has made it by hand: declare it external to use it", name)
	case row.Stack != stack && !row.Gone:
		return spec.Conflictf("network %s belongs to stack %s: declare it external to use it", name, row.Stack)
	case row.Stack != stack || row.Gone || row.Short != short || !same(&row.Spec, &n):
		next := *row
		next.Gone, next.Stack, next.Short, next.Spec, next.Version = false, stack, short, n, r.index
		put(r, &r.networks, next)
	}
	return nil
}

// joinNetwork lets a stack use a network of another one. If nobody declares that
// any more, a plan may be about to remove it: it has to look again.
func (r *reducer) joinNetwork(name string) {
	row := r.networks.first(r.txn, byName, textKey(name))
	if row == nil || !row.Gone || r.meta.Format < AddressFormat {
		return
	}
	next := *row
	next.Version = r.index
	put(r, &r.networks, next)
}

// leaveNetwork marks a network that nobody declares any more.
func (r *reducer) leaveNetwork(row *spec.Network) {
	if row.Gone {
		return
	}
	next := *row
	next.Gone, next.Version = true, r.index
	put(r, &r.networks, next)
}

// createNetwork makes a network that belongs to no stack, or takes over one that
// nobody declares any more.
func (r *reducer) createNetwork(c *CreateNetwork) error {
	if err := checkName("network", c.Name); err != nil {
		return err
	}
	if c.Spec.External || c.Spec.Name != "" {
		return spec.Invalidf("network %s: one that is made by hand is neither external nor has it another name", c.Name)
	}
	if row := r.networks.first(r.txn, byName, textKey(c.Name)); row != nil && !row.Gone {
		return spec.Conflictf("network %s exists already%s", c.Name, ofStack(row))
	}
	if err := r.declareNetwork("", c.Name, c.Name, c.Spec); err != nil {
		return err
	}
	r.event(spec.Event{Kind: "network.created", Message: c.Name})
	return nil
}

func ofStack(row *spec.Network) string {
	if row.Stack == "" {
		return ""
	}
	return ", it belongs to stack " + row.Stack
}

// removeNetwork ends what createNetwork began; the reconciler removes the row.
func (r *reducer) removeNetwork(c *RemoveNetwork) error {
	row := r.networks.first(r.txn, byName, textKey(c.Name))
	switch {
	case row == nil:
		return spec.NotFoundf("there is no network %s", c.Name)
	case row.Stack != "" && !row.Gone:
		return spec.Conflictf("network %s belongs to stack %s: it goes with the stack, or when the stack's file declares it no longer", c.Name, row.Stack)
	}
	if users := r.networkUsers(row); len(users) > 0 {
		return spec.Conflictf("network %s is used by %s: remove what uses it first", c.Name, strings.Join(users, ", "))
	}
	if row.Gone {
		return nil
	}
	r.leaveNetwork(row)
	r.event(spec.Event{Kind: "network.removed", Message: c.Name})
	return nil
}

// networkUsers names the services that attach to a network and, of services
// that do not or no longer exist, the tasks that are still there.
func (r *reducer) networkUsers(row *spec.Network) []string {
	var users []string
	using := map[string]bool{} // by key of the service
	for head := range r.stacks.all(r.txn) {
		want := r.newest(head).Spec
		for _, name := range slices.Sorted(maps.Keys(want.Services)) {
			svc := want.Services[name]
			if slices.ContainsFunc(svc.Template.Networks, func(a spec.Attachment) bool {
				return want.Networks[a.Network].ClusterName(want.Name, a.Network) == row.Name
			}) {
				key := spec.ServiceKey(want.Name, name)
				using[key] = true
				users = append(users, "service "+key)
			}
		}
	}
	for t := range r.tasks.with(r.txn, byAddress, idKey(row.ID)) {
		if !using[spec.ServiceKey(t.Stack, t.Service)] && r.holdsAddress(r.txn, t) {
			users = append(users, "task "+r.taskName(t))
		}
	}
	return users
}
