package sim

import (
	"fmt"
	"maps"
	"slices"

	"wherry.dev/cluster/store"
	"wherry.dev/reconciler"
	"wherry.dev/spec"
)

// version is a version that a service once had of what changes in its running
// tasks.
type version struct {
	service string // its key
	key     spec.DatumKey
	id      spec.ContentID
}

// keepContents is for how many entries contents stay that nothing refers to.
const keepContents = 1000

// value makes one of a few secrets complete in the state.
func (w *World) value() spec.ContentID {
	id := spec.ContentID(fmt.Sprint("sealed:", w.rng.IntN(4)))
	w.apply(store.Command{PutContent: &store.PutContent{ID: id, Size: 1, Data: []byte("x")}})
	return id
}

// rotate makes, changes or removes the secret that all stacks may use.
func (w *World) rotate() {
	if w.store.Snapshot().Format() < store.AddressFormat {
		return
	}
	c := store.Command{PutDatum: &store.PutDatum{Kind: spec.DatumSecret, Name: "shared", Content: w.value(), Replace: w.chance(80)}}
	if w.chance(10) {
		c = store.Command{RemoveDatum: &store.RemoveDatum{Kind: spec.DatumSecret, Name: "shared"}}
	}
	res := w.apply(c)
	w.note("a user sends %s: %v", c.Kind(), res.Err)
}

// secrets gives some services of a stack secrets.
func (w *World) secrets(s *spec.Stack) {
	if w.store == nil || w.store.Snapshot().Format() < store.AddressFormat || w.chance(50) {
		return
	}
	s.Secrets = map[string]spec.DatumSpec{"own": {Content: w.value()}}
	if w.store.Snapshot().Datum(spec.DatumSecret, "shared") != nil {
		s.Secrets["shared"] = spec.DatumSpec{External: true}
	}
	for _, name := range slices.Sorted(maps.Keys(s.Services)) {
		if w.chance(50) {
			continue
		}
		svc := s.Services[name]
		for _, source := range slices.Sorted(maps.Keys(s.Secrets)) {
			svc.Template.Mounts = append(slices.Clone(svc.Template.Mounts), spec.Mount{Type: spec.MountSecret, Source: source,
				Target: "/run/secrets/" + source, OnChange: []spec.OnChange{"", spec.OnChangeNone, spec.SignalOnChange("SIGHUP")}[w.rng.IntN(3)]})
		}
		s.Services[name] = svc
	}
}

// files are the versions that a task ought to have of what changes while it
// runs, as far as the host was told.
func (h *host) files(r *run) map[spec.DatumKey]spec.ContentID {
	tmpl := h.want.Revisions[r.task.Revision]
	return tmpl.LiveOf(h.want.Services[spec.ServiceKey(r.task.Stack, r.task.Service)].Live)
}

// exchange brings the files of a running task up to date and reports whether
// anything was to be done.
func (h *host) exchange(r *run) bool {
	want := h.files(r)
	if r.status.State != spec.TaskRunning || want == nil || maps.Equal(want, r.status.Files) {
		return false
	}
	r.status.Files = want
	return true
}

// checkContents: what a service or a task is made of is in the state, so that
// a task can start whenever its host comes to it; a node is given what its own
// tasks use, and no secret of others; and no task shows a version that its
// service never had.
func (w *World) checkContents(s *store.Snapshot) {
	have := func(what string, id spec.ContentID) {
		if c := s.Content(id); c == nil || len(c.Data) != c.Size {
			w.failf("%s has no content %s", what, id)
		}
	}
	for _, svc := range s.Services() {
		for _, id := range svc.Spec.Template.Contents() {
			have("service "+svc.Key(), id)
		}
		for _, k := range slices.Sorted(maps.Keys(svc.Spec.Live)) {
			have("service "+svc.Key(), svc.Spec.Live[k])
			w.versions[version{svc.Key(), k, svc.Spec.Live[k]}] = true
		}
	}
	for _, h := range w.hosts {
		used := map[spec.ContentID]bool{}
		for _, t := range s.TasksOn(h.id) {
			if t.Status.State.Terminal() || t.Status.State == spec.TaskPending {
				continue
			}
			svc, rev := s.Service(t.Stack, t.Service), s.Revision(t.Revision)
			ids := rev.Template.Contents()
			if svc != nil {
				ids = slices.AppendSeq(ids, maps.Values(rev.Template.LiveOf(svc.Spec.Live)))
			}
			for _, id := range ids {
				used[id] = true
				have("task "+string(t.ID), id)
			}
			for _, k := range slices.Sorted(maps.Keys(t.Status.Files)) {
				if svc != nil && !w.versions[version{svc.Key(), k, t.Status.Files[k]}] {
					w.failf("task %s of %s shows %s of %s, which the service never had", t.ID, svc.Key(), t.Status.Files[k], k)
				}
			}
		}
		for _, c := range s.Contents() {
			if reconciler.NodeUses(s, h.id, c.ID) != used[c.ID] {
				w.failf("%s may have content %s: %v, and has a task that uses it: %v", h.name, c.ID, !used[c.ID], used[c.ID])
			}
		}
	}
}

// checkFiles: at rest old versions are gone, and every task has the newest version of what changes while
// it runs, and everything of what else it uses.
func (w *World) checkFiles() {
	s := w.store.Snapshot()
	for _, c := range s.Contents() {
		if !s.ContentInUse(c.ID) && c.Index+keepContents < s.Index() {
			w.failf("content %s is left", c.ID)
		}
	}
	for _, svc := range s.Services() {
		want := svc.Spec.Template.LiveOf(svc.Spec.Live)
		for k, id := range want { // any order finds the same
			if short := string(k)[len("secret "):]; id != s.StackRevision(svc.Stack, s.Stack(svc.Stack).Revision).Spec.Secrets[short].Content {
				w.failf("service %s has %s of %s, which is not what its stack says", svc.Key(), id, k)
			}
		}
		for _, t := range s.TasksOf(svc.Stack, svc.Name) {
			if t.Status.State != spec.TaskRunning || t.Revision != svc.Revision || t.Desired != spec.DesiredRunning || w.dead != nil && t.Node == w.dead.id {
				continue
			}
			if !maps.Equal(t.Status.Files, want) {
				w.failf("task %s of %s has the files %v, want %v", t.ID, svc.Key(), t.Status.Files, want)
			}
		}
	}
}
