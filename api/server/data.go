package server

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"wherry.dev/api"
	"wherry.dev/cluster/store"
	"wherry.dev/reconciler"
	"wherry.dev/spec"
)

// dataHandlers answer for the secrets and the configs.
func (s *Server) dataHandlers() map[string]handler {
	out := map[string]handler{}
	for _, k := range spec.DatumKinds {
		out[string(k)+".list"] = func(w http.ResponseWriter, r *http.Request) error { return s.dataList(w, r, k) }
		out[string(k)+".get"] = func(w http.ResponseWriter, r *http.Request) error { return s.datumGet(w, r, k) }
		out[string(k)+".put"] = func(w http.ResponseWriter, r *http.Request) error { return s.datumPut(w, r, k) }
		out[string(k)+".delete"] = func(w http.ResponseWriter, r *http.Request) error { return s.datumDelete(w, r, k) }
	}
	return out
}

func (s *Server) dataList(w http.ResponseWriter, r *http.Request, k spec.DatumKind) error {
	snap, err := s.snapshot(r)
	if err != nil {
		return err
	}
	return writeJSON(w, api.List[api.DatumInfo]{Index: snap.Index(), Items: dataInfo(snap, k)})
}

func (s *Server) datumGet(w http.ResponseWriter, r *http.Request, k spec.DatumKind) error {
	snap, err := s.snapshot(r)
	if err != nil {
		return err
	}
	all := dataInfo(snap, k)
	i := slices.IndexFunc(all, func(d api.DatumInfo) bool { return d.Name == r.PathValue("name") })
	if i < 0 {
		return noDatum(k, r.PathValue("name"), all)
	}
	return writeJSON(w, all[i])
}

func noDatum(k spec.DatumKind, name string, all []api.DatumInfo) error {
	var have []string
	for _, d := range all {
		have = append(have, d.Name)
	}
	if len(have) == 0 {
		return spec.NotFoundf("%s %q does not exist; there are no %ss", k, name, k)
	}
	return spec.NotFoundf("%s %q does not exist; there are: %s", k, name, strings.Join(have, ", "))
}

// maxDatumBody bounds the body of a write: the largest config, in base64, and
// labels.
const maxDatumBody = 2 << 20

// datumPut seals the bytes before they leave this manager's memory, whether for
// another manager or for the log.
func (s *Server) datumPut(w http.ResponseWriter, r *http.Request, k spec.DatumKind) error {
	var in api.PutDatum
	if err := readBounded(w, r, &in, maxDatumBody); err != nil {
		return err
	}
	name := r.PathValue("name")
	if err := spec.ValidateDatum(k, name, in.Labels, len(in.Data)); err != nil {
		return err
	}
	render := in.Render != nil && *in.Render
	if old := s.Store.Snapshot().Datum(k, name); in.Render == nil && old != nil {
		render = old.Render
	}
	if render {
		if err := spec.CheckTemplate(k, name, string(in.Data)); err != nil {
			return fmt.Errorf("%s %s: %w", k, name, err)
		}
	}
	packed, err := spec.PackContent([]spec.ContentFile{{Path: ".", Mode: 0o444, Data: in.Data}})
	if err != nil {
		return fmt.Errorf("%s %s: %w", k, name, err)
	}
	id, blob, err := s.keyed(k, packed)
	if err != nil {
		return err
	}
	if err := s.putContents(r.Context(), map[spec.ContentID][]byte{id: blob}, in.Author); err != nil {
		return err
	}
	res, err := s.propose(r.Context(), store.Command{RequestID: in.RequestID, Author: in.Author, PutDatum: &store.PutDatum{
		Kind: k, Name: name, Content: id, Size: len(in.Data), Render: in.Render, Labels: in.Labels, Replace: in.Replace, Base: in.Base}})
	if err != nil {
		return err
	}
	out := api.DatumWritten{Written: api.Written{Index: res.Index, Changed: res.Changed}, Users: []string{}}
	// Another manager may have applied it; who uses it is the same before.
	out.Users = append(out.Users, s.Store.Snapshot().DatumUsers(k, name)...)
	return writeJSON(w, out)
}

func (s *Server) datumDelete(w http.ResponseWriter, r *http.Request, k spec.DatumKind) error {
	res, err := s.propose(r.Context(), store.Command{RequestID: r.URL.Query().Get("request_id"),
		RemoveDatum: &store.RemoveDatum{Kind: k, Name: r.PathValue("name")}})
	if err != nil {
		return err
	}
	return writeJSON(w, api.Written{Index: res.Index, Changed: res.Changed})
}

// keyed names a packed datum as it is in the state, and gives it the form that
// it has there.
func (s *Server) keyed(k spec.DatumKind, packed []byte) (spec.ContentID, []byte, error) {
	if k == spec.DatumSecret {
		return spec.SealContent(s.ContentKey, packed)
	}
	return spec.KeyedContentID(s.ContentKey, packed), packed, nil
}

// nameData is nameContents for the secrets and configs of a stack. What has a
// keyed name already must be of a kept revision of the same stack: that it is
// known does not give a right to it.
func (s *Server) nameData(p *api.PutStack, out map[spec.ContentID][]byte) []error {
	var errs []error
	texts := map[spec.DatumKey]string{}
	snap := s.Store.Snapshot()
	known := s.knownData(snap, p.Stack.Name)
	for _, k := range spec.DatumKinds {
		for _, short := range slices.Sorted(maps.Keys(p.Stack.Data(k))) {
			d := p.Stack.Data(k)[short]
			where := fmt.Sprintf("%ss.%s", k, short)
			switch {
			case d.Content == "": // external, to be found
				continue
			case known[d.Content]:
				continue
			case d.External || strings.HasPrefix(string(d.Content), "hmac:") || d.Content.Sealed():
				errs = append(errs, spec.Invalidf("%s: its content is of no kept revision of stack %s; send the file", where, p.Stack.Name))
				continue
			}
			text, packed, err := sentDatum(p, k, d.Content)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", where, err))
				continue
			}
			texts[spec.KeyOf(k, short)] = string(text)
			id, blob, err := s.keyed(k, packed)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", where, err))
				continue
			}
			d.Content, d.Size = id, len(text)
			p.Stack.Data(k)[short] = d
			out[id] = blob
		}
	}
	return append(errs, s.checkTemplates(snap, p.Stack, texts)...)
}

// sentDatum is what the client has sent for a secret or config. Errors do not
// name it by its plain hash, which would tell a short secret to whoever guesses.
func sentDatum(p *api.PutStack, k spec.DatumKind, id spec.ContentID) (text, packed []byte, err error) {
	packed, ok := p.Contents[id]
	switch {
	case !ok:
		return nil, nil, spec.Invalidf("its content was not sent")
	case spec.PlainContentID(packed) != id:
		return nil, nil, spec.Invalidf("its content is damaged")
	}
	text, err = fileOf(packed)
	if err == nil && len(text) > k.MaxSize() {
		err = spec.Invalidf("it has %d bytes: a %s has at most %d KiB", len(text), k, k.MaxSize()>>10)
	}
	return text, packed, err
}

// fileOf returns the bytes of a packed content that is a single file.
func fileOf(packed []byte) ([]byte, error) {
	files, err := spec.UnpackContent(packed)
	if err != nil {
		return nil, spec.Invalidf("its content is no archive of one file")
	}
	if len(files) != 1 || files[0].Path != "." || files[0].Dir || files[0].Link != "" {
		return nil, spec.Invalidf("its content is not a single file")
	}
	return files[0].Data, nil
}

// knownData are the contents of secrets and configs in the kept revisions of a
// stack.
func (s *Server) knownData(snap *store.Snapshot, stack string) map[spec.ContentID]bool {
	known := map[spec.ContentID]bool{}
	for _, rev := range snap.StackRevisions(stack) {
		for _, k := range spec.DatumKinds {
			for _, d := range rev.Spec.Data(k) {
				known[d.Content] = true
			}
		}
	}
	return known
}

// checkTemplates refuses templates that cannot be rendered, those of external
// data too.
func (s *Server) checkTemplates(snap *store.Snapshot, stack spec.Stack, texts map[spec.DatumKey]string) []error {
	for _, k := range spec.DatumKinds {
		declared := maps.Clone(stack.Data(k))
		for short, d := range declared { // each on its own
			if !d.External {
				continue
			}
			row := snap.Datum(k, d.ClusterName(stack.Name, short))
			if row == nil {
				continue // the command is refused for that
			}
			if d.Render = row.Render; d.Render {
				if text, err := s.opened(snap, row.Newest().Content); err == nil {
					texts[spec.KeyOf(k, short)] = string(text)
				}
			}
			declared[short] = d
		}
		stack.SetData(k, declared)
	}
	stack.ResolveData() // tells the mounts what is a template
	var errs []error
	for _, p := range spec.CheckTemplates(&stack, func(k spec.DatumKind, short string) (string, string, bool) {
		text, ok := texts[spec.KeyOf(k, short)]
		return short, text, ok
	}) {
		by := ""
		if p.Service != "" {
			by = " for service " + p.Service
		}
		errs = append(errs, fmt.Errorf("%ss.%s%s: %w", p.Kind, p.Name, by, p.Err))
	}
	return errs
}

// opened returns the bytes of a datum in the state.
func (s *Server) opened(snap *store.Snapshot, id spec.ContentID) ([]byte, error) {
	c := snap.Content(id)
	if c == nil || len(c.Data) != c.Size {
		return nil, spec.NotFoundf("content %s is not in the state", id.Short())
	}
	b := c.Data
	if id.Sealed() {
		var err error
		if b, err = spec.OpenContent(s.ContentKey, id, b); err != nil {
			return nil, err
		}
	}
	return fileOf(b)
}

// mayHave refuses a sealed content to a node that runs no task which uses it.
func (s *Server) mayHave(r *http.Request, id spec.ContentID) error {
	node := spec.NodeID(callerOf(r).ID)
	if reconciler.NodeUses(s.Store.Snapshot(), node, id) {
		return nil
	}
	// Another manager may have told the node of it, and the state here lag behind.
	if err := s.current(r.Context()); err != nil {
		return err
	}
	if reconciler.NodeUses(s.Store.Snapshot(), node, id) {
		return nil
	}
	return api.Errorf(api.ErrForbidden, "content.get: not allowed: node %s has no task that uses secret content %s", node, id.Short())
}

// dataInfo are all secrets or configs, by name: those that exist by themselves
// and those of the newest revisions of stacks.
func dataInfo(snap *store.Snapshot, k spec.DatumKind) []api.DatumInfo {
	out := []api.DatumInfo{}
	tasks := tasksWith(snap)
	revisions := map[string][]*spec.StackRevision{} // of each stack, newest first
	inRevisions := map[spec.ContentID][]string{}
	for _, head := range snap.Stacks() {
		list := snap.StackRevisions(head.Name)
		slices.Reverse(list)
		revisions[head.Name] = list
		for _, rev := range list {
			for _, d := range rev.Spec.Data(k) { // a revision has few
				at := fmt.Sprintf("%s@%d", rev.Stack, rev.Number)
				if !slices.Contains(inRevisions[d.Content], at) {
					inRevisions[d.Content] = append(inRevisions[d.Content], at)
				}
			}
		}
	}
	for _, d := range snap.Data(k) {
		info := api.DatumInfo{Name: d.Name, Labels: d.Labels, Render: d.Render, Version: d.Version, Users: append([]string{}, snap.DatumUsers(k, d.Name)...)}
		for _, v := range slices.Backward(d.Versions) {
			if snap.Content(v.Content) == nil {
				continue
			}
			info.Versions = append(info.Versions, api.DatumVersion{ID: v.Content.Short(), Size: v.Size, Created: v.Created, Author: v.Author,
				Current: v.Number == d.Newest().Number, Tasks: tasks[v.Content], Revisions: inRevisions[v.Content]})
		}
		out = append(out, sized(info))
	}
	for _, head := range snap.Stacks() {
		list := revisions[head.Name]
		if len(list) == 0 {
			continue
		}
		newest := &list[0].Spec
		for _, short := range slices.Sorted(maps.Keys(newest.Data(k))) {
			d := newest.Data(k)[short]
			if d.External {
				continue
			}
			info := api.DatumInfo{Name: d.ClusterName(head.Name, short), Stack: head.Name, Labels: d.Labels, Render: d.Render, Users: []string{}}
			for _, svc := range newest.DatumUsers(k, short) {
				info.Users = append(info.Users, spec.ServiceKey(head.Name, svc))
			}
			info.Versions = stackVersions(list, k, short, tasks)
			out = append(out, sized(info))
		}
	}
	slices.SortStableFunc(out, func(a, b api.DatumInfo) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// sized has the size and the time of the version in force.
func sized(d api.DatumInfo) api.DatumInfo {
	for _, v := range d.Versions {
		if v.Current {
			d.Size, d.Updated = v.Size, v.Created
		}
	}
	return d
}

// stackVersions are the versions of a datum of a stack in its kept revisions,
// newest first; a version is as old as the first of them that has it.
func stackVersions(list []*spec.StackRevision, k spec.DatumKind, short string, tasks map[spec.ContentID]int) []api.DatumVersion {
	var out []api.DatumVersion
	index := map[spec.ContentID]int{}
	for n, rev := range list {
		d, ok := rev.Spec.Data(k)[short]
		if !ok || d.External {
			continue
		}
		i, seen := index[d.Content]
		if !seen {
			i = len(out)
			index[d.Content] = i
			out = append(out, api.DatumVersion{ID: d.Content.Short(), Size: d.Size, Current: n == 0, Tasks: tasks[d.Content]})
		}
		v := &out[i]
		v.Created, v.Author = rev.Time, rev.Author
		v.Revisions = append(v.Revisions, fmt.Sprintf("%s@%d", rev.Stack, rev.Number))
	}
	return out
}

// tasksWith counts the tasks that are not over by the contents they have.
func tasksWith(snap *store.Snapshot) map[spec.ContentID]int {
	out := map[spec.ContentID]int{}
	for _, t := range snap.Tasks() {
		rev := snap.Revision(t.Revision)
		if t.Status.State.Terminal() || rev == nil {
			continue
		}
		ids := slices.AppendSeq(rev.Template.Contents(), maps.Values(t.Status.Files))
		slices.Sort(ids)
		for _, id := range slices.Compact(ids) {
			out[id]++
		}
	}
	return out
}
