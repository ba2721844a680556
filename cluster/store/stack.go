package store

import (
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"wherry.dev/spec"
)

// putStack makes the state declare what c says.
func (r *reducer) putStack(c *PutStack) error {
	want := c.Stack
	if want.Services == nil {
		want.Services = map[string]spec.ServiceSpec{} // one form of "no service"
	}
	head := r.stacks.get(r.txn, textKey(want.Name))
	if err := checkBase(head, want.Name, c.Base); err != nil {
		return err
	}
	newest := r.newest(head)
	if newest != nil && c.KeepOthers {
		want = keepOthers(want, &newest.Spec)
	}
	if err := checkStack(&want); err != nil {
		return err
	}
	if missing := r.resolveData(&want); len(missing) > 0 {
		return r.checkExternals(&want, missing)
	}
	if newest != nil && r.inForce(&want, newest) {
		r.res.Revision = head.Revision
		return nil
	}
	return r.revise(head, spec.StackRevision{Spec: want, Author: r.cmd.Author, Message: c.Message})
}

// revise makes the state declare what a new revision of a stack says.
func (r *reducer) revise(head *spec.StackRow, rev spec.StackRevision) error {
	if err := r.declare(&rev.Spec); err != nil {
		return err
	}
	r.res.Revision = r.addRevision(head, rev)
	return nil
}

// addRevision makes rev the newest revision of its stack and returns its
// number; head is nil for a new stack.
func (r *reducer) addRevision(head *spec.StackRow, rev spec.StackRevision) uint64 {
	next := spec.StackRow{Name: rev.Spec.Name, Revision: 1}
	if head == nil {
		next.ID = spec.StackID(r.newID())
	} else {
		next = *head
		next.Revision++
		r.supersede(head)
	}
	next.Version = r.index
	put(r, &r.stacks, next)
	rev.Stack, rev.Number, rev.Time, rev.Incoming = next.Name, next.Revision, r.now, r.index
	put(r, &r.stackRevisions, rev)
	for old := range r.stackRevisions.under(r.txn, textsKey(next.Name)) {
		if old.Number+spec.KeepStackRevisions <= next.Revision && old.Number != next.Completed {
			drop(r, &r.stackRevisions, old)
		}
	}
	if rev.Rollback == 0 {
		r.event(spec.Event{Kind: "stack.applied", Stack: next.Name, Message: rev.Message})
	}
	return next.Revision
}

// supersede notes that the newest revision of a stack has not come to its end.
func (r *reducer) supersede(head *spec.StackRow) {
	old := r.newest(head)
	if r.meta.Format < RolloutFormat || old == nil || old.State != spec.RevisionUpdating && old.State != spec.RevisionPaused {
		return
	}
	next := *old
	next.State = spec.RevisionSuperseded
	put(r, &r.stackRevisions, next)
}

// newest returns the newest revision of a stack; nil when there is no stack.
func (r *reducer) newest(head *spec.StackRow) *spec.StackRevision {
	if head == nil {
		return nil
	}
	return r.stackRevisions.get(r.txn, stackRevisionKey(head.Name, head.Revision))
}

// inForce reports whether the state is as want says already: the newest
// revision is equal, and no service was scaled away from the file's number.
func (r *reducer) inForce(want *spec.Stack, newest *spec.StackRevision) bool {
	for name, s := range want.Services { // any order gives the same answer
		svc := r.services.get(r.txn, textsKey(want.Name, name))
		if svc == nil || s.Replicas != nil && svc.Replicas != *s.Replicas {
			return false
		}
	}
	return same(want, &newest.Spec)
}

// keepOthers adds to want the services that only old has, with the networks,
// volumes, secrets and configs that they use.
func keepOthers(want spec.Stack, old *spec.Stack) spec.Stack {
	want.Services = maps.Clone(want.Services)
	want.Networks = cloned(want.Networks)
	want.Volumes = cloned(want.Volumes)
	want.Secrets, want.Configs = maps.Clone(want.Secrets), maps.Clone(want.Configs)
	for name, s := range old.Services { // each adds what no other can change
		if _, ok := want.Services[name]; ok {
			continue
		}
		want.Services[name] = s
		carryUsed(&want, old, name)
	}
	return want
}

// carryUsed adds to a stack the networks, volumes, secrets and configs that a
// service of it uses, as another one declares them, unless it declares them
// itself.
func carryUsed(to, from *spec.Stack, service string) {
	t := to.Services[service].Template
	for _, a := range t.Networks {
		carry(to.Networks, from.Networks, a.Network)
	}
	for _, m := range t.Mounts {
		if m.Type == spec.MountVolume {
			carry(to.Volumes, from.Volumes, m.Source)
		}
		if kind, short, ok := m.Datum(); ok {
			carryDatum(to, from, kind, short)
		}
	}
	for _, v := range t.SecretEnv {
		carryDatum(to, from, spec.DatumSecret, v.Source)
	}
}

func cloned[V any](m map[string]V) map[string]V {
	c := map[string]V{}
	maps.Copy(c, m)
	return c
}

func carry[V any](to, from map[string]V, key string) {
	if v, ok := from[key]; ok {
		if _, have := to[key]; !have {
			to[key] = v
		}
	}
}

// carryDatum carries a secret or config. A stack without any has no map of them.
func carryDatum(to, from *spec.Stack, kind spec.DatumKind, short string) {
	if to.Data(kind) == nil {
		to.SetData(kind, map[string]spec.DatumSpec{})
	}
	carry(to.Data(kind), from.Data(kind), short)
}

// checkBase refuses a write that is based on another version of the stack.
func checkBase(head *spec.StackRow, name string, base *uint64) error {
	switch {
	case base == nil:
		return nil
	case head == nil && *base == 0, head != nil && head.Version == *base:
		return nil
	case head == nil:
		return spec.Conflictf("stack %s was removed since version %d, on which the write is based: read it again", name, *base)
	case *base == 0:
		return spec.Conflictf("stack %s exists already, at version %d", name, head.Version)
	}
	return spec.Conflictf("stack %s is at version %d, the write is based on %d: read it again", name, head.Version, *base)
}

// checkStack refuses what the state could not hold: names that are not names,
// and services that refer to what the stack does not declare. Everything else
// was validated before.
func checkStack(s *spec.Stack) error {
	if err := checkName("stack", s.Name); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(s.Networks)) {
		if err := checkDeclared("network", name, s.Networks[name].ClusterName(s.Name, name)); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.Volumes)) {
		if err := checkDeclared("volume", name, s.Volumes[name].ClusterName(s.Name, name)); err != nil {
			return err
		}
	}
	for _, kind := range spec.DatumKinds {
		for _, name := range slices.Sorted(maps.Keys(s.Data(kind))) {
			if err := checkDeclared(string(kind), name, s.Data(kind)[name].ClusterName(s.Name, name)); err != nil {
				return err
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.Services)) {
		svc := s.Services[name]
		if err := checkService(s, name, &svc); err != nil {
			return err
		}
	}
	return nil
}

func checkDeclared(kind, short, name string) error {
	if err := checkName(kind, short); err != nil {
		return err
	}
	return checkName(kind, name)
}

func checkService(s *spec.Stack, name string, svc *spec.ServiceSpec) error {
	if err := checkName("service", name); err != nil {
		return err
	}
	if n := svc.Replicas; n != nil {
		if err := checkReplicas(name, *n); err != nil {
			return err
		}
	}
	if head := svc.Template.Joins(); head != "" {
		if _, ok := s.Services[head]; !ok {
			return spec.Invalidf("service %s shares the network of service %q, which stack %s does not declare", name, head, s.Name)
		}
	}
	for _, a := range svc.Template.Networks {
		if _, ok := s.Networks[a.Network]; !ok {
			return spec.Invalidf("service %s uses network %q, which stack %s does not declare", name, a.Network, s.Name)
		}
	}
	for _, v := range svc.Template.SecretEnv {
		if _, ok := s.Secrets[v.Source]; !ok {
			return spec.Invalidf("service %s uses secret %q, which stack %s does not declare", name, v.Source, s.Name)
		}
	}
	for _, m := range svc.Template.Mounts {
		if kind, short, ok := m.Datum(); ok {
			if _, ok := s.Data(kind)[short]; !ok {
				return spec.Invalidf("service %s uses %s %q, which stack %s does not declare", name, kind, short, s.Name)
			}
		}
		if m.Type != spec.MountVolume || m.Source == "" {
			continue
		}
		if _, ok := s.Volumes[m.Source]; !ok {
			return spec.Invalidf("service %s uses volume %q, which stack %s does not declare", name, m.Source, s.Name)
		}
	}
	return nil
}

func checkReplicas(service string, n int) error {
	if n < 0 || n > MaxReplicas {
		return spec.Invalidf("service %s: replicas must be 0 to %d, not %d", service, MaxReplicas, n)
	}
	return nil
}

// checkName admits what can be part of a key: keys of services join names by a
// slash, keys of tables by a zero byte.
func checkName(kind, name string) error {
	switch {
	case name == "":
		return spec.Invalidf("a %s without a name", kind)
	case len(name) > 255:
		return spec.Invalidf("%s %.20q…: the name is longer than 255 bytes", kind, name)
	case !utf8.ValidString(name) || strings.ContainsRune(name, '/') || strings.ContainsFunc(name, unicode.IsControl):
		return spec.Invalidf("%s %q: the name must not hold slashes or control characters", kind, name)
	}
	return nil
}

// scaleService sets the number of replicas in force.
func (r *reducer) scaleService(c *ScaleService) error {
	head := r.stacks.get(r.txn, textKey(c.Stack))
	if head == nil {
		return spec.NotFoundf("there is no stack %q", c.Stack)
	}
	if err := checkBase(head, c.Stack, c.Base); err != nil {
		return err
	}
	svc := r.services.get(r.txn, textsKey(c.Stack, c.Service))
	if svc == nil {
		return spec.NotFoundf("stack %s has no service %q", c.Stack, c.Service)
	}
	if svc.Spec.Mode.PerNode() {
		return spec.Invalidf("service %s is global: it runs one task on every node and cannot be scaled", svc.Key())
	}
	if err := checkReplicas(svc.Key(), c.Replicas); err != nil {
		return err
	}
	if err := r.checkPairs(svc, c.Replicas); err != nil {
		return err
	}
	if ip := svc.Spec.Template.FixedAddress(); ip != "" && c.Replicas > 1 {
		return spec.Invalidf("service %s cannot be scaled to %d: its address %s can be that of one task", svc.Key(), c.Replicas, ip)
	}
	r.res.Revision = head.Revision
	if svc.Replicas == c.Replicas {
		return nil
	}
	next := *svc
	next.Replicas, next.Changed, next.Version = c.Replicas, r.now, r.index
	put(r, &r.services, next)
	row := *head
	row.Version = r.index
	put(r, &r.stacks, row)
	r.event(spec.Event{Kind: "service.scaled", Stack: c.Stack, Service: c.Service})
	return nil
}

// removeStack ends the declaration of a stack. Its tasks stay until the
// reconciler has ended them.
func (r *reducer) removeStack(c *RemoveStack) error {
	head := r.stacks.get(r.txn, textKey(c.Name))
	if head == nil {
		return spec.NotFoundf("there is no stack %q", c.Name)
	}
	if err := checkBase(head, c.Name, c.Base); err != nil {
		return err
	}
	for svc := range r.services.under(r.txn, textsKey(c.Name)) {
		drop(r, &r.services, svc)
	}
	for n := range r.networks.with(r.txn, byStack, textsKey(c.Name)) {
		r.leaveNetwork(n)
	}
	for rev := range r.stackRevisions.under(r.txn, textsKey(c.Name)) {
		drop(r, &r.stackRevisions, rev)
	}
	drop(r, &r.stacks, head)
	if c.Volumes {
		if err := r.removeVolumesOf(c.Name); err != nil {
			return err
		}
	}
	r.event(spec.Event{Kind: "stack.removed", Stack: c.Name})
	r.sweepVolumes()
	return nil
}
