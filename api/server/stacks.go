package server

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"wherry.dev/api"
	"wherry.dev/cluster/store"
	"wherry.dev/reconciler"
	"wherry.dev/spec"
)

func (s *Server) stackList(w http.ResponseWriter, r *http.Request) error {
	snap, err := s.snapshot(r)
	if err != nil {
		return err
	}
	l := api.List[api.StackInfo]{Index: snap.Index(), Items: []api.StackInfo{}}
	for _, row := range snap.Stacks() {
		l.Items = append(l.Items, s.stackInfo(snap, row))
	}
	return writeJSON(w, l)
}

func (s *Server) stackInfo(snap *store.Snapshot, row *spec.StackRow) api.StackInfo {
	st, _ := reconciler.Status(snap, row.Name, s.Now())
	return api.StackInfo{Name: row.Name, Revision: row.Revision, Version: row.Version, Services: len(st.Services), State: st.State}
}

func (s *Server) stackGet(w http.ResponseWriter, r *http.Request) error {
	snap, err := s.snapshot(r)
	if err != nil {
		return err
	}
	row := snap.Stack(r.PathValue("stack"))
	if row == nil {
		return noStack(snap, r.PathValue("stack"))
	}
	rev := snap.StackRevision(row.Name, row.Revision)
	if rev == nil {
		return fmt.Errorf("stack %s: revision %d is not in the state", row.Name, row.Revision)
	}
	return writeJSON(w, api.StackDetail{StackInfo: s.stackInfo(snap, row), Spec: rev.Spec})
}

func noStack(snap *store.Snapshot, name string) error {
	var have []string
	for _, row := range snap.Stacks() {
		have = append(have, row.Name)
	}
	if len(have) == 0 {
		return spec.NotFoundf("stack %q does not exist; there are no stacks", name)
	}
	return spec.NotFoundf("stack %q does not exist; there are: %s", name, strings.Join(have, ", "))
}

func (s *Server) stackStatus(w http.ResponseWriter, r *http.Request) error {
	snap, err := s.snapshot(r)
	if err != nil {
		return err
	}
	name := r.PathValue("stack")
	out := api.StackStatus{Index: snap.Index(), Name: name, Services: []api.ServiceInfo{}}
	if st, ok := reconciler.Status(snap, name, s.Now()); ok {
		out.State, out.Revision, out.Message = st.State, st.Revision, st.Message
		for _, sv := range st.Services {
			out.Services = append(out.Services, serviceInfo(snap, sv))
		}
	}
	for _, t := range snap.Tasks() {
		if t.Stack == name && !t.Status.State.Terminal() {
			out.Tasks++
		}
	}
	if out.State == "" && out.Tasks == 0 {
		return noStack(snap, name)
	}
	return writeJSON(w, out)
}

func (s *Server) stackPut(w http.ResponseWriter, r *http.Request) error {
	var p api.PutStack
	if err := readJSON(w, r, &p); err != nil {
		return err
	}
	if p.Stack.Name != r.PathValue("stack") {
		return spec.Invalidf("the stack is called %q in the document and %q in the path", p.Stack.Name, r.PathValue("stack"))
	}
	cmd, contents, err := s.prepare(r.Context(), &p)
	if err != nil {
		return err
	}
	if err := s.putContents(r.Context(), contents, p.Author); err != nil {
		return err
	}
	res, err := s.propose(r.Context(), cmd)
	if err != nil {
		return err
	}
	return writeJSON(w, api.Written{Index: res.Index, Revision: res.Revision, Changed: res.Changed})
}

// putContents stores what is not in the state yet.
func (s *Server) putContents(ctx context.Context, contents map[spec.ContentID][]byte, author string) error {
	snap := s.Store.Snapshot()
	for _, id := range slices.Sorted(maps.Keys(contents)) {
		if c := snap.Content(id); c != nil && len(c.Data) == c.Size {
			continue
		}
		for _, chunk := range chunks(id, contents[id]) {
			if _, err := s.propose(ctx, store.Command{Author: author, PutContent: &chunk}); err != nil {
				return fmt.Errorf("store content: %w", err)
			}
		}
	}
	return nil
}

func chunks(id spec.ContentID, b []byte) []store.PutContent {
	var out []store.PutContent
	for off := 0; ; off += spec.MaxChunk {
		end := min(off+spec.MaxChunk, len(b))
		out = append(out, store.PutContent{ID: id, Size: len(b), Offset: off, Data: b[off:end]})
		if end == len(b) {
			return out
		}
	}
}

// prepare turns a request into a command: the stack is validated, its contents
// get their keyed names and its images their digests. It changes nothing.
func (s *Server) prepare(ctx context.Context, p *api.PutStack) (store.Command, map[spec.ContentID][]byte, error) {
	if err := spec.ValidateStack(&p.Stack); err != nil {
		return store.Command{}, nil, err
	}
	contents, err := s.nameContents(p)
	if err != nil {
		return store.Command{}, nil, err
	}
	if err := s.pinImages(ctx, p); err != nil {
		return store.Command{}, nil, err
	}
	return store.Command{
		RequestID: p.RequestID, Author: p.Author,
		PutStack: &store.PutStack{Stack: p.Stack, Base: p.Base, Message: p.Message, KeepOthers: p.KeepOthers},
	}, contents, nil
}

// nameContents replaces the plain IDs in the stack by keyed ones and returns
// the blobs by these.
func (s *Server) nameContents(p *api.PutStack) (map[spec.ContentID][]byte, error) {
	out := map[spec.ContentID][]byte{}
	var errs []error
	rename := func(where string, id *spec.ContentID) {
		if *id == "" || strings.HasPrefix(string(*id), "hmac:") {
			return
		}
		b, ok := p.Contents[*id]
		if !ok {
			errs = append(errs, spec.Invalidf("%s: content %s was not sent", where, *id))
			return
		}
		if spec.PlainContentID(b) != *id {
			errs = append(errs, spec.Invalidf("%s: content %s is damaged", where, *id))
			return
		}
		if _, err := spec.UnpackContent(b); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", where, err))
			return
		}
		*id = spec.KeyedContentID(s.ContentKey, b)
		out[*id] = b
	}
	errs = append(errs, s.nameData(p, out)...)
	for _, name := range slices.Sorted(maps.Keys(p.Stack.Services)) {
		t := p.Stack.Services[name].Template
		for i := range t.Mounts {
			if _, _, ok := t.Mounts[i].Datum(); ok {
				continue // filled in by Apply
			}
			rename(fmt.Sprintf("services.%s.volumes[%d]", name, i), &t.Mounts[i].Content)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.Stack.Volumes)) {
		v := p.Stack.Volumes[name]
		rename("volumes."+name, &v.Seed)
		p.Stack.Volumes[name] = v
	}
	return out, errors.Join(errs...)
}

// pinImages gives every service the digest of its image, of those that it
// mounts and of those that run before it. A reference that has not changed keeps
// its digest, unless the caller or the service asks for a new one.
func (s *Server) pinImages(ctx context.Context, p *api.PutStack) error {
	snap := s.Store.Snapshot()
	var errs []error
	type key struct {
		image, platform string
		fresh           bool
	}
	found := map[key]string{}
	pin := func(where, image, platform string, fresh bool, digest *string, old string) {
		if _, d, ok := strings.Cut(image, "@"); ok {
			*digest = d
			return
		}
		if !fresh && *digest == "" {
			*digest = old
		}
		if *digest != "" {
			return
		}
		k := key{image, platform, fresh}
		if found[k] == "" {
			d, err := s.Resolver.Resolve(ctx, image, platform, fresh)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", where, err))
				return
			}
			found[k] = d
		}
		*digest = found[k]
	}
	for _, name := range slices.Sorted(maps.Keys(p.Stack.Services)) {
		sv := p.Stack.Services[name]
		t := &sv.Template
		fresh := p.Pull || sv.AlwaysPull || slices.Contains(p.PullServices, name)
		pinned := map[string]string{} // :: image → digest of now
		if old := snap.Service(p.Stack.Name, name); old != nil && old.Spec.Template.Platform == t.Platform {
			pinned = pinnedImages(&old.Spec.Template)
		}
		pin("services."+name+".image", t.Image, t.Platform, fresh, &t.Digest, pinned[t.Image])
		for i := range t.Mounts {
			if m := &t.Mounts[i]; m.Type == spec.MountImage {
				pin(fmt.Sprintf("services.%s.volumes: %s", name, m.Target), m.Source, t.Platform, fresh, &m.Digest, pinned[m.Source])
			}
		}
		for i := range t.PreStart {
			h := &t.PreStart[i]
			pin(fmt.Sprintf("services.%s.pre_start[%d].image", name, i), h.Image, t.Platform, fresh, &h.Digest, pinned[h.Image])
		}
		p.Stack.Services[name] = sv
	}
	return errors.Join(errs...)
}

// pinnedImages are the digests of the images of a template, by their names.
func pinnedImages(t *spec.Template) map[string]string {
	out := map[string]string{}
	for _, m := range t.Mounts {
		if m.Type == spec.MountImage {
			out[m.Source] = m.Digest
		}
	}
	for _, h := range t.PreStart {
		out[h.Image] = h.Digest
	}
	out[t.Image] = t.Digest
	return out
}

func (s *Server) stackPlan(w http.ResponseWriter, r *http.Request) error {
	var p api.PutStack
	if err := readJSON(w, r, &p); err != nil {
		return err
	}
	if err := s.Proposer.Linearizable(r.Context()); err != nil {
		return err
	}
	private := s.Store.Clone()
	cmd := store.Command{Time: s.Now()}
	switch {
	case p.Remove:
		cmd.RemoveStack = &store.RemoveStack{Name: p.Stack.Name}
	case p.Back != nil:
		cmd.RollbackStack = &store.RollbackStack{Stack: p.Stack.Name, Service: p.BackService, To: p.Back.To, Base: p.Back.Base}
	default:
		var contents map[spec.ContentID][]byte
		var err error
		if cmd, contents, err = s.prepare(r.Context(), &p); err != nil {
			return err
		}
		cmd.Time = s.Now()
		index := private.Snapshot().Index()
		for _, id := range slices.Sorted(maps.Keys(contents)) {
			for _, chunk := range chunks(id, contents[id]) {
				index++
				if res := private.Apply(index, store.Command{Time: cmd.Time, PutContent: &chunk}); res.Err != nil {
					return res.Err
				}
			}
		}
	}
	pv, err := reconciler.NewPreview(private, cmd, s.Now())
	if err != nil {
		return err
	}
	out := api.Plan{Stack: p.Stack.Name, Changes: pv.Changes, Tasks: pv.Tasks, Notes: pv.Notes}
	if row := s.Store.Snapshot().Stack(p.Stack.Name); row != nil {
		out.Version = row.Version
	}
	return writeJSON(w, out)
}

func (s *Server) stackDelete(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	cmd := &store.RemoveStack{Name: r.PathValue("stack"), Volumes: q.Get("volumes") == "true"}
	if v := q.Get("base"); v != "" {
		base, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			return spec.Invalidf("base=%q: want a version", v)
		}
		cmd.Base = &base
	}
	res, err := s.propose(r.Context(), store.Command{RequestID: q.Get("request_id"), Author: q.Get("author"), RemoveStack: cmd})
	if err != nil {
		return err
	}
	return writeJSON(w, api.Written{Index: res.Index, Changed: res.Changed})
}
