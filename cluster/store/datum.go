package store

import (
	"fmt"
	"maps"
	"slices"

	"wherry.dev/spec"
)

// putDatum makes a secret or config that exists by itself, or a new version of
// one. Every stack that uses it gets a new revision with the new version.
func (r *reducer) putDatum(c *PutDatum) error {
	if err := checkDatum(c); err != nil {
		return err
	}
	if have := r.contents.get(r.txn, textKey(c.Content)); have == nil || len(have.Data) != have.Size {
		return spec.Conflictf("%s %s: its content is not complete; send it first", c.Kind, c.Name)
	}
	old := r.data.get(r.txn, datumKey(c.Kind, c.Name))
	next := spec.Datum{Kind: c.Kind, Name: c.Name}
	if old != nil {
		next = *old
	}
	next.Version = r.index
	if len(c.Labels) > 0 {
		next.Labels = c.Labels
	}
	if c.Render != nil {
		next.Render = *c.Render
	}
	same := old != nil && old.Newest().Content == c.Content && old.Render == next.Render && maps.Equal(old.Labels, next.Labels)
	if err := r.mayPut(c, old, same); err != nil || same {
		return err
	}
	if old == nil || old.Newest().Content != c.Content {
		v := spec.DatumVersion{Number: 1, Content: c.Content, Size: c.Size, Created: r.now, Author: r.cmd.Author}
		if old != nil {
			v.Number = old.Newest().Number + 1
		}
		next.Versions = append(r.keptVersions(old), v)
	}
	put(r, &r.data, next)
	kind := string(c.Kind) + ".created"
	if old != nil {
		kind = string(c.Kind) + ".changed"
	}
	r.event(spec.Event{Kind: kind, Message: fmt.Sprintf("%s, version %d", c.Name, next.Newest().Number)})
	return r.passOn(&next)
}

func checkDatum(c *PutDatum) error {
	if !slices.Contains(spec.DatumKinds, c.Kind) {
		return spec.Invalidf("%q is neither a secret nor a config", c.Kind)
	}
	if err := checkName(string(c.Kind), c.Name); err != nil {
		return err
	}
	switch {
	case c.Size < 0 || c.Size > c.Kind.MaxSize():
		return spec.Invalidf("%s %s has %d bytes: the limit is %d KiB", c.Kind, c.Name, c.Size, c.Kind.MaxSize()>>10)
	case c.Content.Sealed() != (c.Kind == spec.DatumSecret):
		return spec.Invalidf("%s %s: a secret has a sealed content, a config has not", c.Kind, c.Name)
	}
	return nil
}

// mayPut refuses a name that a stack has, a base that is out of date, and
// anything else than there is unless it is to be replaced.
func (r *reducer) mayPut(c *PutDatum, old *spec.Datum, same bool) error {
	if owner := r.datumOwner(c.Kind, c.Name); owner != "" {
		return spec.Conflictf("%s %s belongs to stack %s: choose another name", c.Kind, c.Name, owner)
	}
	var at uint64
	if old != nil {
		at = old.Version
	}
	switch {
	case c.Base != nil && *c.Base != at && old == nil:
		return spec.Conflictf("%s %s was removed since version %d, on which the write is based", c.Kind, c.Name, *c.Base)
	case c.Base != nil && *c.Base != at:
		return spec.Conflictf("%s %s is at version %d, the write is based on %d: read it again", c.Kind, c.Name, at, *c.Base)
	case old != nil && !c.Replace && !same:
		return spec.Conflictf("%s %s exists already, with another value or other labels: replace it if that is meant, which changes it for all that use it", c.Kind, c.Name)
	}
	return nil
}

// keptVersions are those of a datum whose content is still there.
func (r *reducer) keptVersions(d *spec.Datum) []spec.DatumVersion {
	if d == nil {
		return nil
	}
	var out []spec.DatumVersion
	for _, v := range d.Versions {
		if r.contents.get(r.txn, textKey(v.Content)) != nil {
			out = append(out, v)
		}
	}
	return out[max(0, len(out)-spec.MaxDatumVersions+1):]
}

// passOn gives the newest version of a datum to the stacks that use it.
func (r *reducer) passOn(d *spec.Datum) error {
	for head := range r.stacks.all(r.txn) {
		newest := r.newest(head)
		want := newest.Spec
		changed := false
		for short, x := range want.Data(d.Kind) { // each on its own
			if !x.External || x.ClusterName(want.Name, short) != d.Name || x.Content == d.Newest().Content && x.Render == d.Render {
				continue
			}
			if !changed {
				want.SetData(d.Kind, maps.Clone(want.Data(d.Kind)))
				changed = true
			}
			want.Data(d.Kind)[short] = filled(x, d)
		}
		if !changed {
			continue
		}
		want.ResolveData()
		if err := r.declareServices(&want); err != nil {
			return err
		}
		r.addRevision(head, spec.StackRevision{Spec: want, Author: r.cmd.Author, Message: fmt.Sprintf("%s %s has version %d", d.Kind, d.Name, d.Newest().Number)})
	}
	return nil
}

// filled is the declaration x of an external datum with what it means now.
func filled(x spec.DatumSpec, d *spec.Datum) spec.DatumSpec {
	v := d.Newest()
	x.Content, x.Size, x.Render = v.Content, v.Size, d.Render
	return x
}

// removeDatum removes a secret or config that no stack uses. Its values go when
// no kept revision of a stack has them any more.
func (r *reducer) removeDatum(c *RemoveDatum) error {
	row := r.data.get(r.txn, datumKey(c.Kind, c.Name))
	if row == nil {
		if owner := r.datumOwner(c.Kind, c.Name); owner != "" {
			return spec.Conflictf("%s %s belongs to stack %s and goes with it", c.Kind, c.Name, owner)
		}
		return spec.NotFoundf("there is no %s %q", c.Kind, c.Name)
	}
	if users := r.datumUsers(c.Kind, c.Name); len(users) > 0 {
		return spec.Conflictf("%s %s is in use by %s: remove them, or take it out of their files first", c.Kind, c.Name, joinSome(users))
	}
	drop(r, &r.data, row)
	r.event(spec.Event{Kind: string(c.Kind) + ".removed", Message: c.Name})
	return nil
}

// joinSome names at most ten.
func joinSome(names []string) string {
	const most = 10
	more := ""
	if len(names) > most {
		more = fmt.Sprintf(" and %d more", len(names)-most)
		names = names[:most]
	}
	out := ""
	for i, n := range names {
		if i > 0 {
			out += ", "
		}
		out += n
	}
	return out + more
}

// datumUsersIn are the services of a stack that use an external datum, as
// "stack/service", or the stack itself when it only declares it.
func datumUsersIn(s *spec.Stack, kind spec.DatumKind, name string) []string {
	var out []string
	for _, short := range slices.Sorted(maps.Keys(s.Data(kind))) {
		if x := s.Data(kind)[short]; !x.External || x.ClusterName(s.Name, short) != name {
			continue
		}
		services := s.DatumUsers(kind, short)
		for _, svc := range services {
			out = append(out, spec.ServiceKey(s.Name, svc))
		}
		if len(services) == 0 {
			out = append(out, "stack "+s.Name)
		}
	}
	return out
}

func (r *reducer) datumUsers(kind spec.DatumKind, name string) []string {
	var out []string
	for head := range r.stacks.all(r.txn) {
		out = append(out, datumUsersIn(&r.newest(head).Spec, kind, name)...)
	}
	return out
}

// datumOwner returns the stack that declares a datum of its own under a
// cluster-wide name, or "".
func (r *reducer) datumOwner(kind spec.DatumKind, name string) string {
	for head := range r.stacks.all(r.txn) {
		if ownsDatum(&r.newest(head).Spec, kind, name) {
			return head.Name
		}
	}
	return ""
}

func ownsDatum(s *spec.Stack, kind spec.DatumKind, name string) bool {
	for short, x := range s.Data(kind) { // any order gives the same answer
		if !x.External && x.ClusterName(s.Name, short) == name {
			return true
		}
	}
	return false
}

// resolveData fills in the versions of all data in want, and names the external
// ones that do not exist. What want shares is not written to.
func (r *reducer) resolveData(want *spec.Stack) (missing []string) {
	for _, kind := range spec.DatumKinds {
		declared := want.Data(kind)
		var next map[string]spec.DatumSpec
		for _, short := range slices.Sorted(maps.Keys(declared)) {
			x := declared[short]
			if !x.External {
				continue
			}
			name := x.ClusterName(want.Name, short)
			row := r.data.get(r.txn, datumKey(kind, name))
			switch {
			case row == nil && r.datumOwner(kind, name) != "":
				missing = append(missing, fmt.Sprintf("%s %s (that one is of stack %s alone)", kind, name, r.datumOwner(kind, name)))
				continue
			case row == nil:
				missing = append(missing, fmt.Sprintf("%s %s", kind, name))
				continue
			case x.Content != "": // of an older revision that comes back
				continue
			}
			if next == nil {
				next = maps.Clone(declared)
			}
			next[short] = filled(x, row)
		}
		if next != nil {
			want.SetData(kind, next)
		}
	}
	want.ResolveData()
	return missing
}

// checkData refuses names of secrets and configs that are taken.
func (r *reducer) checkData(want *spec.Stack) error {
	for _, kind := range spec.DatumKinds {
		taken := map[string]bool{}
		for _, short := range slices.Sorted(maps.Keys(want.Data(kind))) {
			x := want.Data(kind)[short]
			name := x.ClusterName(want.Name, short)
			if x.External {
				continue
			}
			if taken[name] {
				return spec.Invalidf("stack %s declares %s %s twice", want.Name, kind, name)
			}
			taken[name] = true
			if r.data.get(r.txn, datumKey(kind, name)) != nil {
				return spec.Conflictf("%s %s exists by itself: declare it external to use it, or give this one another name", kind, name)
			}
			if owner := r.datumOwner(kind, name); owner != "" && owner != want.Name {
				return spec.Conflictf("%s %s belongs to stack %s: give this one another name", kind, name, owner)
			}
		}
	}
	return nil
}

// Data returns the secrets or configs that exist by themselves, by name.
func (n *Snapshot) Data(kind spec.DatumKind) []*spec.Datum {
	return collect(n.tables.data.under(n.read(), textsKey(string(kind))))
}

// Datum returns the secret or config of that name that exists by itself.
func (n *Snapshot) Datum(kind spec.DatumKind, name string) *spec.Datum {
	return n.tables.data.get(n.read(), datumKey(kind, name))
}

// DatumUsers returns the services whose stacks use an external secret or config,
// as "stack/service", and as "stack NAME" the stacks that only declare it.
func (n *Snapshot) DatumUsers(kind spec.DatumKind, name string) []string {
	var out []string
	for head := range n.tables.stacks.all(n.read()) {
		if rev := n.StackRevision(head.Name, head.Revision); rev != nil {
			out = append(out, datumUsersIn(&rev.Spec, kind, name)...)
		}
	}
	return out
}

func datumKey(kind spec.DatumKind, name string) []byte { return textsKey(string(kind), name) }
