package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"wherry.dev/spec"
)

// registryPath is what a request may name: the full repository with its host,
// and a manifest or a blob of it.
var registryPath = regexp.MustCompile(`^/v2/(.+)/(manifests|blobs)/([^/]+)$`)

// imageServer serves the content store.
type imageServer struct {
	r *Runtime

	mu sync.Mutex
	// known are all parts of images, as of the images in state. // :: digest → part
	known map[digest.Digest]ocispec.Descriptor
	state string    // names and digests of the images
	at    time.Time // of the walk
}

// Registry serves the images of this node to its peers, read-only, as an OCI
// registry below /v2/. The repository is the full name with its host, as in
// /v2/docker.io/library/nginx/manifests/1.27. A tag is that of an image of this
// node; a digest is served when it is part of any image of the node. Nothing can
// be listed or written. Whoever is let in may read every image.
func (r *Runtime) Registry() http.Handler {
	return &imageServer{r: r}
}

// ServeHTTP implements http.Handler.
func (g *imageServer) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		refuse(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "images of a node can only be read")
		return
	}
	if req.URL.Path == "/v2/" || req.URL.Path == "/v2" {
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, "{}")
		return
	}
	m := registryPath.FindStringSubmatch(req.URL.Path)
	if m == nil {
		refuse(w, http.StatusNotFound, "UNSUPPORTED", "there is no such path")
		return
	}
	name, manifest, what := m[1], m[2] == "manifests", m[3]
	desc, modified, err := g.find(quiet(req.Context()), name, manifest, what)
	if err == nil {
		err = g.serve(w, req, desc, modified)
	}
	switch {
	case err == nil || req.Context().Err() != nil:
	case errors.Is(err, spec.ErrNotFound) && manifest:
		refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN", err.Error())
	case errors.Is(err, spec.ErrNotFound):
		refuse(w, http.StatusNotFound, "BLOB_UNKNOWN", err.Error())
	case errors.Is(err, spec.ErrInvalid):
		refuse(w, http.StatusBadRequest, "NAME_INVALID", err.Error())
	default:
		g.r.c.Logger.Warn("image part cannot be served", "path", req.URL.Path, "err", err)
		refuse(w, http.StatusServiceUnavailable, "UNKNOWN", err.Error())
	}
}

// refuse answers with an error in the form of OCI distribution.
func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": code, "message": message}}})
}

// find returns the part that a request asks for, and when its name was given to
// it, for a tag.
func (g *imageServer) find(ctx context.Context, name string, manifest bool, what string) (ocispec.Descriptor, time.Time, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	dgst, err := digest.Parse(what)
	switch {
	case err == nil:
		desc, err := g.part(ctx, dgst)
		if err == nil && manifest && !images.IsManifestType(desc.MediaType) && !images.IsIndexType(desc.MediaType) {
			err = spec.NotFoundf("%s is no manifest", dgst)
		}
		return desc, time.Time{}, err
	case !manifest:
		return ocispec.Descriptor{}, time.Time{}, spec.Invalidf("%q is no digest", what)
	}
	full := name + ":" + what
	if ref, err := NormalizeImage(full); err != nil || ref != full {
		return ocispec.Descriptor{}, time.Time{}, spec.Invalidf("%q is not the full name of an image", full)
	}
	rec, err := g.r.client.ImageService().Get(ctx, full)
	if isNotFound(err) {
		return ocispec.Descriptor{}, time.Time{}, spec.NotFoundf("image %s is not on this node", full)
	}
	if err != nil {
		return ocispec.Descriptor{}, time.Time{}, classify(err)
	}
	return rec.Target, rec.UpdatedAt, nil
}

// walkAgain is how long after a walk a part that was not found is believed to
// be absent, when no image has changed: another platform of one may have come.
const walkAgain = time.Second

// part finds a part of any image by its digest.
func (g *imageServer) part(ctx context.Context, dgst digest.Digest) (ocispec.Descriptor, error) {
	recs, err := g.r.client.ImageService().List(ctx)
	if err != nil {
		return ocispec.Descriptor{}, classify(err)
	}
	var names []string
	for _, rec := range recs {
		names = append(names, rec.Name+" "+rec.Target.Digest.String())
	}
	slices.Sort(names)
	state := strings.Join(names, "\n")
	g.mu.Lock()
	defer g.mu.Unlock()
	desc, ok := g.known[dgst]
	if g.state != state || !ok && time.Since(g.at) > walkAgain {
		g.walk(ctx, recs)
		g.state, g.at = state, time.Now()
		desc, ok = g.known[dgst]
	}
	if !ok {
		return desc, spec.NotFoundf("no image of this node has %s", dgst)
	}
	return desc, nil
}

// walk finds all parts of the images; what is not stored is left out.
func (g *imageServer) walk(ctx context.Context, recs []images.Image) {
	cs := g.r.client.ContentStore()
	g.known = map[digest.Digest]ocispec.Descriptor{}
	for _, rec := range recs {
		_ = images.Walk(ctx, images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
			if _, seen := g.known[d.Digest]; seen {
				return nil, images.ErrSkipDesc
			}
			info, err := cs.Info(ctx, d.Digest)
			if err != nil {
				return nil, images.ErrSkipDesc
			}
			g.known[d.Digest] = ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: info.Size}
			if smallEnough(d) != nil {
				return nil, images.ErrSkipDesc
			}
			children, err := images.Children(ctx, cs, d)
			if err != nil {
				return nil, images.ErrSkipDesc
			}
			return children, nil
		}), rec.Target)
	}
}

// serve writes a part, or the range of it that is asked for.
func (g *imageServer) serve(w http.ResponseWriter, req *http.Request, desc ocispec.Descriptor, modified time.Time) error {
	ra, err := g.r.client.ContentStore().ReaderAt(req.Context(), desc)
	if err != nil {
		return classify(err)
	}
	defer ra.Close()
	h := w.Header()
	h.Set("Content-Type", desc.MediaType)
	h.Set("Docker-Content-Digest", desc.Digest.String())
	h.Set("Etag", `"`+desc.Digest.String()+`"`)
	http.ServeContent(w, req, "", modified, &chunks{SectionReader: io.NewSectionReader(ra, 0, ra.Size())})
	return nil
}

// chunkSize is how much is asked of containerd at once; each question costs a
// round trip.
const chunkSize = 512 << 10

// chunks is a part of an image that is read in large pieces.
type chunks struct {
	*io.SectionReader
	all []byte
	buf []byte // the rest of all: what was read and not yet asked for
}

func (c *chunks) Read(p []byte) (int, error) {
	if len(c.buf) == 0 {
		if c.all == nil {
			c.all = make([]byte, chunkSize)
		}
		n, err := c.SectionReader.Read(c.all)
		if n == 0 {
			return 0, err
		}
		c.buf = c.all[:n]
	}
	n := copy(p, c.buf)
	c.buf = c.buf[n:]
	return n, nil
}

// Seek implements io.Seeker.
func (c *chunks) Seek(offset int64, whence int) (int64, error) {
	if whence == io.SeekCurrent {
		offset -= int64(len(c.buf))
	}
	c.buf = nil
	return c.SectionReader.Seek(offset, whence)
}

// RemoveAllImages removes every image of this node, used or not, and returns
// when the space is free.
func (r *Runtime) RemoveAllImages(ctx context.Context) error {
	is := r.client.ImageService()
	recs, err := is.List(ctx)
	if err != nil {
		return fmt.Errorf("remove images: %w", classify(err))
	}
	var errs []error
	for i, rec := range recs {
		var opts []images.DeleteOpt
		if i == len(recs)-1 {
			opts = append(opts, images.SynchronousDelete())
		}
		if err := is.Delete(ctx, rec.Name, opts...); err != nil && !isNotFound(err) {
			errs = append(errs, fmt.Errorf("remove image %s: %w", rec.Name, classify(err)))
		}
	}
	r.mu.Lock()
	clear(r.images)
	r.mu.Unlock()
	return errors.Join(errs...)
}
