package agent

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"wherry.dev/spec"
)

// fetchAgain is how long an image that could not be had is left alone.
const fetchAgain = 15 * time.Second

// fetches gets images before any task of theirs is here, so that what they are
// to replace need not wait for them. What is had stays had: it is not looked at
// again as long as it is wanted. Owned by the main loop but for done.
type fetches struct {
	a *Agent
	// cancel ends those that are wanted. // :: revision → its end
	cancel map[spec.RevisionID]context.CancelFunc
}

// set makes w.Fetch, and nothing else, be had.
func (f *fetches) set(ctx context.Context, w *spec.Wanted) {
	for id, cancel := range f.cancel {
		if !slices.Contains(w.Fetch, id) {
			cancel()
			delete(f.cancel, id)
		}
	}
	status := make([]spec.FetchStatus, 0, len(w.Fetch))
	for _, id := range w.Fetch {
		tmpl, ok := w.Revisions[id]
		if !ok || f.cancel[id] != nil {
			continue
		}
		fctx, cancel := context.WithCancel(ctx)
		f.cancel[id] = cancel
		status = append(status, spec.FetchStatus{Revision: id})
		f.a.background.Go(func() {
			f.a.fetch(fctx, id, ImageRequest{Image: tmpl.Image, Digest: tmpl.Digest, Platform: tmpl.Platform})
		})
	}
	f.a.report.keepFetched(w.Fetch, status)
}

// fetch tries until the image is there or nobody wants it any more.
func (a *Agent) fetch(ctx context.Context, id spec.RevisionID, q ImageRequest) {
	for {
		_, err := a.c.Images.Ensure(ctx, q)
		if ctx.Err() != nil {
			return
		}
		s := spec.FetchStatus{Revision: id, Done: err == nil}
		if err != nil {
			s.Problem = err.Error()
			s.Never = errors.Is(err, spec.ErrNotFound) || errors.Is(err, spec.ErrInvalid)
			a.log.Warn("image of an update not there yet, trying again", "revision", id, "err", err)
		}
		a.report.fetched(s)
		if err == nil || !sleep(ctx, fetchAgain) {
			return
		}
	}
}

// keepFetched drops what is not wanted any more and adds what is new.
func (r *reporter) keepFetched(wanted []spec.RevisionID, added []spec.FetchStatus) {
	r.mu.Lock()
	old := r.images
	next := slices.DeleteFunc(slices.Clone(old), func(s spec.FetchStatus) bool { return !slices.Contains(wanted, s.Revision) })
	next = append(next, added...)
	r.setFetchedLocked(next)
	r.mu.Unlock()
	poke(r.wake)
}

// fetched takes what became of one image that is wanted still.
func (r *reporter) fetched(s spec.FetchStatus) {
	r.mu.Lock()
	next := slices.Clone(r.images)
	if i := slices.IndexFunc(next, func(x spec.FetchStatus) bool { return x.Revision == s.Revision }); i >= 0 {
		next[i] = s
		r.setFetchedLocked(next)
	}
	r.mu.Unlock()
	poke(r.wake)
}

// setFetchedLocked reports the list when it is news; nil has never been told.
func (r *reporter) setFetchedLocked(next []spec.FetchStatus) {
	if next == nil {
		next = []spec.FetchStatus{} // on the wire, nil is "as before"
	}
	slices.SortFunc(next, func(a, b spec.FetchStatus) int { return cmp.Compare(a.Revision, b.Revision) })
	if r.images == nil || !slices.Equal(r.images, next) {
		r.images, r.untold = next, &next
	}
}
