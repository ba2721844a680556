//go:build e2e

package containerd

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"wherry.dev/agent"
	"wherry.dev/spec"
	"wherry.dev/tests/images"
)

// served is the registry of a host over plain HTTP; hook may answer in its place.
type served struct {
	peer Peer
	hook atomic.Pointer[func(w http.ResponseWriter, r *http.Request, next http.Handler)]

	mu   sync.Mutex
	seen []string // "GET blobs", with " range" for a part of one
}

func (h *host) serve(name string) *served {
	h.t.Helper()
	s := &served{}
	next := h.rt.Registry()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		parts := strings.Split(r.URL.Path, "/")
		line := r.Method + " " + parts[len(parts)-2]
		if r.Header.Get("Range") != "" {
			line += " range"
		}
		s.mu.Lock()
		s.seen = append(s.seen, line)
		s.mu.Unlock()
		if f := s.hook.Load(); f != nil {
			(*f)(w, r, next)
			return
		}
		next.ServeHTTP(w, r)
	}))
	h.t.Cleanup(srv.Close)
	s.peer = Peer{Name: name, Transport: toHost(strings.TrimPrefix(srv.URL, "http://"))}
	return s
}

func (s *served) count(line string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, l := range s.seen {
		if l == line {
			n++
		}
	}
	return n
}

func (s *served) on(f func(w http.ResponseWriter, r *http.Request, next http.Handler)) {
	s.hook.Store(&f)
}

// toHost is a transport that takes every request to one address.
type toHost string

func (t toHost) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.URL = &url.URL{Scheme: "http", Host: string(t), Path: r.URL.Path}
	return http.DefaultTransport.RoundTrip(r)
}

// peers makes h ask these from now on.
func (h *host) peers(all ...*served) {
	h.rt.c.Peers = func(context.Context) []Peer {
		var out []Peer
		for _, s := range all {
			out = append(out, s.peer)
		}
		return out
	}
}

// noise is a file that does not get smaller by compression.
func noise(t *testing.T, size int) string {
	t.Helper()
	b := make([]byte, size)
	if _, err := rand.Read(b); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func isBlob(r *http.Request) bool {
	return r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/")
}

// TestPeers: an image that was loaded on one host runs on another, whatever
// may happen to one of several peers.
func TestPeers(t *testing.T) {
	ctx := context.Background()
	a, b, c := newHost(t), newHost(t), newHost(t)
	first := a.load(map[string]string{"version": "one"}, images.Config{Name: "reg.invalid/app:1"})
	pa := a.serve("a")
	b.peers(pa)

	dgst, err := b.rt.Resolve(ctx, "reg.invalid/app:1", "")
	if err != nil || dgst != first.Digest {
		t.Fatalf("resolve: %s, %v, want %s", dgst, err, first.Digest)
	}
	img, err := b.rt.Ensure(ctx, agent.ImageRequest{Image: "reg.invalid/app:1", Digest: dgst})
	if err != nil {
		t.Fatal(err)
	}
	if out, _ := b.output(b.container("1-1", img, command("cat /version"))); out != "one" {
		t.Errorf("output %q", out)
	}

	// The tag moves: what is pinned is got by its digest, from whoever has it.
	second := a.load(map[string]string{"version": "two", "noise": noise(t, 8<<20)}, images.Config{Name: "reg.invalid/app:1"})
	if err := a.rt.RemoveImage(ctx, first.Digest); err != nil && !errors.Is(err, spec.ErrNotFound) {
		t.Fatal(err)
	}
	pb := b.serve("b")
	c.peers(pa, pb)
	if got, err := c.rt.Ensure(ctx, agent.ImageRequest{Image: "reg.invalid/app:1", Digest: first.Digest}); err != nil || got.Digest != first.Digest {
		t.Errorf("pinned after the tag has moved: %+v, %v", got, err)
	}
	if n := pa.count("GET blobs"); n != 2 { // those for b
		t.Errorf("host a was asked for %d blobs", n)
	}
	// The newest of a tag wins, and one that lies about a digest is not believed.
	if got, err := c.rt.Resolve(ctx, "reg.invalid/app:1", ""); err != nil || got != second.Digest {
		t.Errorf("resolve: %s, %v, want the newest %s", got, err, second.Digest)
	}
	pb.on(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if strings.Contains(r.URL.Path, "/manifests/") {
			r.URL.Path = "/v2/reg.invalid/app/manifests/" + first.Digest
		}
		next.ServeHTTP(w, r)
	})

	// Host a breaks off in the middle of the layer, twice; b has it by then.
	b.peers(pa)
	if _, err := b.rt.Ensure(ctx, agent.ImageRequest{Image: "reg.invalid/app:1", Digest: second.Digest}); err != nil {
		t.Fatal(err)
	}
	pb.hook.Store(nil)
	cut := func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if isBlob(r) && r.Header.Get("Range") == "" {
			next.ServeHTTP(&cutter{ResponseWriter: w, left: 3 << 20}, r)
			return
		}
		next.ServeHTTP(w, r)
	}
	pa.on(cut)
	pb.on(cut) // whichever is first breaks off, the other resumes
	img, err = c.rt.Ensure(ctx, agent.ImageRequest{Image: "reg.invalid/app:1", Digest: second.Digest})
	if err != nil {
		t.Fatal(err)
	}
	if out, _ := c.output(c.container("1-1", img, command("cat /version"))); out != "two" {
		t.Errorf("output %q", out)
	}
	if n := pa.count("GET blobs range") + pb.count("GET blobs range"); n != 1 {
		t.Errorf("%d requests for the rest of a blob, want one", n)
	}
}

// cutter ends the connection after some bytes.
type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(p []byte) (int, error) {
	if c.left -= len(p); c.left < 0 {
		panic(http.ErrAbortHandler)
	}
	return c.ResponseWriter.Write(p)
}

// TestPeersAndRegistry: what no peer has, or has rightly, comes from the
// registry; a fresh look asks it first.
func TestPeersAndRegistry(t *testing.T) {
	ctx := context.Background()
	a, b, reg := newHost(t), newHost(t), newRegistry(t)
	name := reg.host + "/app:1"
	files := map[string]string{"version": "one", "noise": noise(t, 1<<20)}
	dgst := reg.push(t, "app", "1", blobs(t, files, images.Config{}))
	if _, err := a.rt.Ensure(ctx, agent.ImageRequest{Image: name, Digest: dgst}); err != nil {
		t.Fatal(err)
	}
	loaded := a.load(nil, images.Config{Name: name})
	before := reg.blobs.Load()
	pa := a.serve("a")

	// A peer that is frozen costs a second, not more.
	frozen := &served{peer: Peer{Name: "frozen", Transport: frozenTransport{}}}
	b.peers(frozen)
	begin := time.Now()
	if got, err := b.rt.Resolve(ctx, name, ""); err != nil || got != dgst {
		t.Errorf("resolve by the registry: %s, %v, want %s", got, err, dgst)
	}
	if d := time.Since(begin); d > 3*time.Second {
		t.Errorf("a frozen peer took %s", d)
	}
	b.peers(frozen, pa)
	if got, err := b.rt.Resolve(ctx, name, ""); err != nil || got != dgst {
		t.Errorf("resolve where a peer says %s: %s, %v, want what the registry says, %s", loaded.Digest, got, err, dgst)
	}
	only := reg.host + "/only:1" // the registry does not know it
	mine := a.load(nil, images.Config{Name: only})
	if got, err := b.rt.Resolve(ctx, only, ""); err != nil || got != mine.Digest {
		t.Errorf("resolve by a peer: %s, %v, want %s", got, err, mine.Digest)
	}

	// What a peer has wrong is fetched again elsewhere.
	pa.on(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		if !isBlob(r) {
			next.ServeHTTP(w, r)
			return
		}
		rec := httptest.NewRecorder()
		next.ServeHTTP(rec, r)
		body := rec.Body.Bytes()
		body[len(body)/2] ^= 1
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		_, _ = w.Write(body)
	})
	if got, err := b.rt.Ensure(ctx, agent.ImageRequest{Image: name, Digest: dgst}); err != nil || got.Digest != dgst {
		t.Fatalf("damaged at the peer: %+v, %v", got, err)
	}
	if reg.blobs.Load() == before || pa.count("GET blobs") == 0 {
		t.Errorf("%d blobs from the registry, %d from the peer: want some of both", reg.blobs.Load()-before, pa.count("GET blobs"))
	}
	pa.hook.Store(nil)

	// A fresh look goes to the registry, the parts still come from the peer.
	third := reg.push(t, "app", "1", blobs(t, map[string]string{"version": "three"}, images.Config{}))
	if _, err := a.rt.Ensure(ctx, agent.ImageRequest{Image: name, Digest: third}); err != nil {
		t.Fatal(err)
	}
	before = reg.blobs.Load()
	img, err := b.rt.Pull(ctx, name, PullOptions{})
	if err != nil || img.Digest != third {
		t.Errorf("pull: %+v, %v, want %s", img, err, third)
	}
	if n := reg.blobs.Load() - before; n != 0 {
		t.Errorf("%d blobs were fetched from the registry", n)
	}
	// Nobody has it.
	if _, err := b.rt.Ensure(ctx, agent.ImageRequest{Image: reg.host + "/none:1"}); !errors.Is(err, spec.ErrNotFound) || !strings.Contains(err.Error(), "wherry image load") {
		t.Errorf("missing image: %v", err)
	}
}

type frozenTransport struct{}

func (frozenTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// TestRegistry: what is served, and what is not.
func TestRegistry(t *testing.T) {
	ctx := context.Background()
	h := newHost(t)
	img := h.load(map[string]string{"noise": noise(t, 2<<20)}, images.Config{Name: "app:1"})
	repo := "/v2/docker.io/library/app"
	// Content without an image, as of a pull under way.
	stray := []byte("stray")
	lctx, done, err := h.rt.client.WithLease(ctx, leases.WithExpiration(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = done(ctx) }()
	strayDigest := digest.FromBytes(stray)
	if err := content.WriteBlob(lctx, h.rt.client.ContentStore(), "stray", bytes.NewReader(stray), ocispec.Descriptor{Digest: strayDigest, Size: int64(len(stray))}); err != nil {
		t.Fatal(err)
	}
	var layer ocispec.Descriptor
	g := h.rt.Registry().(*imageServer)
	if _, err := g.part(ctx, digest.Digest(img.Digest)); err != nil {
		t.Fatal(err)
	}
	for _, d := range g.known {
		if d.Size > layer.Size {
			layer = d
		}
	}
	tests := []struct {
		method, path, rang string
		status             int
		size               int64 // -1 is not looked at
	}{
		{"GET", "/v2/", "", 200, 2},
		{"HEAD", repo + "/manifests/1", "", 200, -1},
		{"GET", repo + "/manifests/" + img.Digest, "", 200, -1},
		{"GET", repo + "/blobs/" + layer.Digest.String(), "", 200, layer.Size},
		{"HEAD", repo + "/blobs/" + layer.Digest.String(), "", 200, layer.Size},
		{"GET", repo + "/blobs/" + layer.Digest.String(), "bytes=1000000-", 206, layer.Size - 1000000},
		{"GET", repo + "/blobs/" + layer.Digest.String(), "bytes=10-19", 206, 10},
		{"GET", repo + "/blobs/" + layer.Digest.String(), fmt.Sprintf("bytes=%d-", layer.Size), 416, -1},
		{"GET", repo + "/manifests/2", "", 404, -1},
		{"GET", "/v2/library/app/manifests/1", "", 400, -1}, // not the full name
		{"GET", repo + "/manifests/" + layer.Digest.String(), "", 404, -1},
		{"GET", repo + "/blobs/" + strayDigest.String(), "", 404, -1},
		{"GET", repo + "/blobs/sha256:zz", "", 400, -1},
		{"GET", repo + "/manifests/..%2f..%2f1", "", 404, -1},
		{"GET", "/v2/_catalog", "", 404, -1},
		{"GET", repo + "/tags/list", "", 404, -1},
		{"POST", repo + "/blobs/uploads/", "", 405, -1},
		{"PUT", repo + "/manifests/1", "", 405, -1},
		{"DELETE", repo + "/manifests/1", "", 405, -1},
	}
	srv := httptest.NewServer(h.rt.Registry())
	defer srv.Close()
	for _, tt := range tests {
		req, err := http.NewRequest(tt.method, srv.URL+tt.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if tt.rang != "" {
			req.Header.Set("Range", tt.rang)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != tt.status || tt.size >= 0 && resp.ContentLength != tt.size {
			t.Errorf("%s %s %s: %s, %d bytes, %v, want %d, %d bytes", tt.method, tt.path, tt.rang, resp.Status, resp.ContentLength, err, tt.status, tt.size)
			continue
		}
		if strings.Contains(tt.path, "sha256:") && tt.status == 200 && tt.method == "GET" {
			if got := digest.FromBytes(b); !strings.HasSuffix(tt.path, got.String()) || resp.Header.Get("Docker-Content-Digest") != got.String() {
				t.Errorf("%s: bytes of %s", tt.path, got)
			}
		}
	}
	if err := h.rt.RemoveAllImages(ctx); err != nil {
		t.Error(err)
	}
	if list, err := h.rt.ListImages(ctx); err != nil || len(list) != 0 {
		t.Errorf("images left: %+v, %v", list, err)
	}
	blobs, err := filepath.Glob(filepath.Join(h.data(), "containerd", "root", "io.containerd.content.v1.content", "blobs", "sha256", "*"))
	if err != nil {
		t.Error(err)
	}
	for _, f := range blobs {
		if st, err := os.Stat(f); err == nil && st.Size() > 1<<20 {
			t.Errorf("left: %s", f)
		}
	}
}
