package reconciler

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// wantedServices is what the tasks of a document need of their services: those
// of tasks that use secrets or configs.
func wantedServices(s *store.Snapshot, w *spec.Wanted) map[string]spec.WantedService {
	var out map[string]spec.WantedService
	for i := range w.Tasks {
		t := &w.Tasks[i]
		tmpl, key := w.Revisions[t.Revision], serviceKey(t)
		if _, done := out[key]; done || !tmpl.HasData() {
			continue
		}
		svc := s.Service(t.Stack, t.Service)
		if svc == nil {
			continue // its tasks are about to end
		}
		if out == nil {
			out = map[string]spec.WantedService{}
		}
		out[key] = spec.WantedService{ID: svc.ID, Labels: svc.Spec.Labels, Live: svc.Spec.Live}
	}
	return out
}

// NodeUses reports whether a task that a node has, or is about to have, uses a
// content as a secret or config. To others than such nodes no secret is given.
func NodeUses(s *store.Snapshot, node spec.NodeID, id spec.ContentID) bool {
	return slices.ContainsFunc(s.TasksOn(node), func(t *spec.Task) bool {
		if t.Status.State.Terminal() || t.Status.State == spec.TaskPending {
			return false
		}
		rev := s.Revision(t.Revision)
		if rev == nil {
			return false
		}
		if slices.Contains(rev.Template.Contents(), id) {
			return true
		}
		svc := s.Service(t.Stack, t.Service)
		if svc == nil {
			return false
		}
		for _, v := range rev.Template.LiveOf(svc.Spec.Live) { // any order gives the same answer
			if v == id {
				return true
			}
		}
		return false
	})
}

// judgeFiles says of which running tasks the files are not what they ought to
// be.
func (p *planner) judgeFiles(svc *spec.Service, out *ServiceStatus) {
	want := svc.Spec.Template.LiveOf(svc.Spec.Live)
	if want == nil {
		return
	}
	for _, t := range p.tasks[svc.Key()] {
		if t.Status.State != spec.TaskRunning || t.Desired != spec.DesiredRunning || t.Revision != svc.Revision || !p.nodeUp(t.Node) || maps.Equal(want, t.Status.Files) {
			continue
		}
		var stale []string
		for _, k := range slices.Sorted(maps.Keys(want)) {
			if t.Status.Files[k] != want[k] {
				stale = append(stale, string(k))
			}
		}
		out.State = worse(out.State, StateUpdating)
		if out.Message == "" {
			out.Message = fmt.Sprintf("task %s: waits for the new %s%s", p.taskName(t), strings.Join(stale, ", "), suffix(t.Status.Reason))
		}
		return
	}
}

// changedData names the secrets and configs by which two templates differ, if
// by nothing else.
func changedData(old, now *spec.Template) []string {
	if len(old.Mounts) != len(now.Mounts) || len(old.SecretEnv) != len(now.SecretEnv) || !slices.Equal(diffPaths(plainData(old), plainData(now)), nil) {
		return nil
	}
	var out []string
	for i := range old.Mounts {
		if kind, short, ok := now.Mounts[i].Datum(); ok && old.Mounts[i].Content != now.Mounts[i].Content {
			out = append(out, string(spec.KeyOf(kind, short)))
		}
	}
	for i := range old.SecretEnv {
		if old.SecretEnv[i].Content != now.SecretEnv[i].Content {
			out = append(out, string(spec.KeyOf(spec.DatumSecret, now.SecretEnv[i].Source)))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// plainData is a template without the versions of its secrets and configs.
func plainData(t *spec.Template) *spec.Template {
	out := *t
	out.Mounts, out.SecretEnv = slices.Clone(t.Mounts), slices.Clone(t.SecretEnv)
	for i := range out.Mounts {
		if _, _, ok := out.Mounts[i].Datum(); ok {
			out.Mounts[i].Content = ""
		}
	}
	for i := range out.SecretEnv {
		out.SecretEnv[i].Content = ""
	}
	return &out
}

// shownDatum is what a preview shows of a secret or config.
type shownDatum struct {
	Name     string            `json:"name,omitempty"`
	External bool              `json:"external,omitempty"`
	Version  string            `json:"version"`
	Render   bool              `json:"template,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
}

// dataOf are the secrets or configs of a stack, for compare.
func dataOf(v *view, kind spec.DatumKind, stack string) map[string]any {
	out := map[string]any{}
	if s := v.stack(stack); s != nil {
		for short, d := range s.Data(kind) {
			out[short] = &shownDatum{d.Name, d.External, d.Content.Short(), d.Render, d.Labels}
		}
	}
	return out
}

// liveNotes tell of files that change in running tasks.
func (v *rehearsal) liveNotes() []string {
	var out []string
	for _, svc := range v.after.services {
		old := v.before.byKey[svc.Key()]
		if svc.Stack != v.stack || old == nil || old.Revision != svc.Revision {
			continue // its tasks are new anyway
		}
		for _, k := range svc.Spec.Template.LiveKeys() {
			if old.Spec.Live[k] == svc.Spec.Live[k] {
				continue
			}
			then := "and nothing else happens to them"
			for _, m := range svc.Spec.Template.Mounts {
				if kind, short, ok := m.Datum(); ok && spec.KeyOf(kind, short) == k && m.OnChange.Signal() != "" {
					then = "which then get " + m.OnChange.Signal()
				}
			}
			out = append(out, fmt.Sprintf("%s changes in the running tasks of service %s, %s", k, svc.Key(), then))
		}
	}
	return out
}
