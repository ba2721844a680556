package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/sirupsen/logrus"

	"wherry.dev/agent"
	"wherry.dev/spec"
)

// PullOptions say what to pull.
type PullOptions struct {
	// Platform "os/arch[/variant]"; empty is the node's.
	Platform string
	// Progress is called some times a second from one goroutine, and once
	// after the end. nil reports nothing.
	Progress func(PullProgress)
}

// PullProgress says how far a pull has come. Total grows while it is found out.
type PullProgress struct {
	Done, Total int64 // bytes
}

// Pull fetches an image, also when the name is stored already: the tag may have
// moved, so what it stands for is asked of its registry; the parts come from
// this node, its peers or the registry. Errors are as Ensure's.
func (r *Runtime) Pull(ctx context.Context, name string, o PullOptions) (Image, error) {
	ref, err := NormalizeImage(name)
	if err != nil {
		return Image{}, err
	}
	rec, err := r.pull(ctx, ref, o.Platform, true, o.Progress)
	if err != nil {
		return Image{}, err
	}
	if _, err := r.present(ctx, ref, agent.ImageRequest{Image: ref, Platform: o.Platform}); err != nil {
		return Image{}, err
	}
	return r.describe(ctx, rec), nil
}

// Resolve returns the digest of the index, or manifest, that a name stands for:
// of a stored image if there is one with this name and platform, else what the
// registry says now, else of the newest that a peer has. An empty platform is the
// node's.
func (r *Runtime) Resolve(ctx context.Context, name, platform string) (string, error) {
	ref, err := NormalizeImage(name)
	if err != nil {
		return "", err
	}
	rec, err := r.client.ImageService().Get(ctx, ref)
	if err == nil {
		err := r.checkPlatform(ctx, rec, platform)
		if err == nil || errors.Is(err, spec.ErrInvalid) {
			return rec.Target.Digest.String(), err
		}
	} else if !isNotFound(err) {
		return "", fmt.Errorf("look up image %s: %w", ref, classify(err))
	}
	_, desc, err := r.sources(ctx, false).Resolve(quiet(ctx), ref)
	if err != nil {
		return "", registryError(ctx, ref, err)
	}
	return desc.Digest.String(), nil
}

// quiet keeps containerd's libraries from writing to standard error: what goes
// wrong is in the errors that they return.
func quiet(ctx context.Context) context.Context {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return log.WithLogger(ctx, logrus.NewEntry(l))
}

// resolver makes a resolver of its own for each pull: it remembers tokens.
// reached reports whether any connection was made.
func (r *Runtime) resolver() (_ remotes.Resolver, reached func() bool) {
	var connected atomic.Bool
	dialer := &net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}
	transport := docker.DefaultHTTPTransport(nil)
	transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dialer.DialContext(ctx, network, addr)
		if err == nil {
			connected.Store(true)
		}
		return c, err
	}
	transport.ResponseHeaderTimeout = 60 * time.Second
	hc := &http.Client{Transport: transport}
	opts := []docker.AuthorizerOpt{docker.WithAuthClient(hc)}
	if r.c.Credentials != nil {
		opts = append(opts, docker.WithAuthCreds(func(host string) (string, string, error) {
			if host == "registry-1.docker.io" {
				host = "docker.io"
			}
			return r.c.Credentials(host)
		}))
	}
	return docker.NewResolver(docker.ResolverOptions{
		Headers: http.Header{"User-Agent": {"wherry"}},
		Hosts: docker.ConfigureDefaultRegistries(
			docker.WithClient(hc),
			docker.WithAuthorizer(docker.NewDockerAuthorizer(opts...)),
			docker.WithPlainHTTP(func(host string) (bool, error) {
				if slices.Contains(r.c.Insecure, host) {
					return true, nil
				}
				return docker.MatchLocalhost(host)
			})),
	}), connected.Load
}

// pull fetches and unpacks an image and names it ref. fresh: what the name
// stands for is the registry's to say.
func (r *Runtime) pull(ctx context.Context, ref, platform string, fresh bool, progress func(PullProgress)) (images.Image, error) {
	s := r.sources(ctx, fresh)
	for {
		rec, err := r.pullFrom(ctx, s, ref, platform, progress)
		if err == nil || !errors.Is(err, errWrongBytes) {
			return rec, err
		}
		// A peer whose disk rots must not keep the image from us.
		parts, ok := s.spoiled()
		if !ok {
			return rec, err
		}
		r.c.Logger.Warn("what came from other nodes is damaged, pulling again without them", "image", ref, "err", err)
		r.abort(ctx, parts)
	}
}

// errWrongBytes: what was fetched does not have the digest that it should have.
var errWrongBytes = spec.Unavailablef("what was fetched is damaged")

// abort throws away what was written of parts that came out wrong.
func (r *Runtime) abort(ctx context.Context, parts []digest.Digest) {
	cs := r.client.ContentStore()
	open, err := cs.ListStatuses(ctx, "")
	if err != nil {
		return // the next pull finds it again
	}
	for _, st := range open {
		if slices.ContainsFunc(parts, func(d digest.Digest) bool { return strings.Contains(st.Ref, d.String()) }) {
			_ = cs.Abort(ctx, st.Ref)
		}
	}
}

func (r *Runtime) pullFrom(ctx context.Context, resolver *sources, ref, platform string, progress func(PullProgress)) (images.Image, error) {
	m, want, err := matcher(platform)
	if err != nil {
		return images.Image{}, err
	}
	// Nothing that is fetched may be collected before it has a name.
	ctx, done, err := r.client.WithLease(quiet(ctx))
	if err != nil {
		return images.Image{}, fmt.Errorf("pull image %s: %w", ref, classify(err))
	}
	defer func() { _ = done(context.WithoutCancel(ctx)) }()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	name, desc, err := resolver.Resolve(ctx, ref)
	if err != nil {
		return images.Image{}, registryError(ctx, ref, err)
	}
	fetcher, err := resolver.Fetcher(ctx, name)
	if err != nil {
		return images.Image{}, registryError(ctx, ref, err)
	}
	if err := r.checkIndex(ctx, ref, fetcher, desc, m.Match, want); err != nil {
		return images.Image{}, err
	}
	_, snapshotter, err := r.snapshots(ctx)
	if err != nil {
		return images.Image{}, err
	}
	w := newPullWatch(r.client.ContentStore(), progress, cancel)
	stop := w.run(ctx)
	got, err := r.client.Pull(ctx, ref,
		client.WithResolver(resolver),
		client.WithPlatformMatcher(m),
		client.WithPullUnpack,
		client.WithPullSnapshotter(snapshotter),
		client.WithMaxConcurrentDownloads(3),
		client.WithImageHandler(images.HandlerFunc(w.part)))
	stop()
	if err != nil {
		return images.Image{}, registryError(ctx, ref, err)
	}
	rec := got.Metadata()
	if err := r.checkPlatform(ctx, rec, platform); err != nil {
		_ = r.client.ImageService().Delete(ctx, rec.Name)
		return images.Image{}, err
	}
	return rec, nil
}

// checkIndex fetches the index of an image, if it has one, and refuses the
// image when it is not made for our platform.
func (r *Runtime) checkIndex(ctx context.Context, ref string, f remotes.Fetcher, desc ocispec.Descriptor, match func(ocispec.Platform) bool, want string) error {
	if err := smallEnough(desc); err != nil {
		return err
	}
	if !images.IsIndexType(desc.MediaType) {
		return nil
	}
	if _, err := remotes.FetchHandler(r.client.ContentStore(), f)(ctx, desc); err != nil {
		return registryError(ctx, ref, err)
	}
	b, err := readBlob(ctx, r.client.ContentStore(), desc)
	if err != nil {
		return fmt.Errorf("read index of image %s: %w", ref, classify(err))
	}
	var idx ocispec.Index
	if err := json.Unmarshal(b, &idx); err != nil {
		return spec.Invalidf("index of image %s: %v", ref, err)
	}
	var has []ocispec.Platform
	for _, d := range idx.Manifests {
		if d.Platform == nil {
			return nil // its configuration tells
		}
		has = append(has, *d.Platform)
	}
	return platformError(ref, has, matchFunc(match), want)
}

type matchFunc func(ocispec.Platform) bool

func (f matchFunc) Match(p ocispec.Platform) bool { return f(p) }

// smallEnough refuses parts that would be read into memory and are too large.
func smallEnough(d ocispec.Descriptor) error {
	small := images.IsIndexType(d.MediaType) || images.IsManifestType(d.MediaType) || images.IsConfigType(d.MediaType)
	if small && d.Size > maxManifest {
		return spec.Invalidf("image part %s (%s) has %d bytes, more than %d MiB", d.Digest, d.MediaType, d.Size, maxManifest>>20)
	}
	return nil
}

// registryError says what a registry's refusal means for the user. Only what
// may go away by itself is of class unavailable.
func registryError(ctx context.Context, ref string, err error) error {
	if cause := context.Cause(ctx); cause != nil && errors.Is(cause, errStalled) {
		return spec.Unavailablef("pull image %s: %v", ref, cause)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("pull image %s: %w", ref, context.Cause(ctx))
	}
	host := "the registry"
	if named, perr := reference.ParseDockerRef(ref); perr == nil {
		host = reference.Domain(named)
	}
	var status remoteerrors.ErrUnexpectedStatus
	switch {
	case errdefs.IsFailedPrecondition(err):
		return fmt.Errorf("pull image %s: %w: %v", ref, errWrongBytes, err)
	case errors.Is(err, spec.ErrInvalid):
		return fmt.Errorf("pull image %s: %w", ref, err)
	case strings.Contains(err.Error(), "rejecting ") && errdefs.IsNotFound(err):
		return spec.Invalidf("pull image %s: its manifest is larger than %d MiB", ref, maxManifest>>20)
	case errdefs.IsNotFound(err):
		return spec.NotFoundf("image %s: not found in registry %s, and not loaded on any node that answers; load it with `wherry image load`", ref, host)
	case errors.Is(err, docker.ErrInvalidAuthorization), errors.As(err, &status) && (status.StatusCode == http.StatusUnauthorized || status.StatusCode == http.StatusForbidden):
		return spec.Invalidf("image %s: registry %s refused access; it does not exist there, or needs `wherry login %s`", ref, host, host)
	}
	return spec.Unavailablef("image %s: registry %s cannot be used now: %v; without it, load the image with `wherry image load`", ref, host, err)
}

// pullWatch counts what a pull has fetched and gives up one that stands still.
type pullWatch struct {
	store    content.Store
	progress func(PullProgress)
	cancel   context.CancelCauseFunc
	parts    chan ocispec.Descriptor
}

var errStalled = errors.New("the registry has sent nothing for two minutes")

const stallTimeout = 2 * time.Minute

func newPullWatch(cs content.Store, progress func(PullProgress), cancel context.CancelCauseFunc) *pullWatch {
	return &pullWatch{store: cs, progress: progress, cancel: cancel, parts: make(chan ocispec.Descriptor)}
}

// part is called for each part of the image before it is fetched.
func (w *pullWatch) part(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	if err := smallEnough(d); err != nil {
		return nil, err
	}
	select {
	case w.parts <- d:
	case <-ctx.Done():
	}
	return nil, nil
}

// run watches until stop is called, which returns when the watch has ended.
func (w *pullWatch) run(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.watch(ctx)
	}()
	return func() {
		cancel()
		<-ended
	}
}

func (w *pullWatch) watch(ctx context.Context) {
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	sizes := map[string]int64{}
	var last PullProgress
	moved := time.Now()
	for {
		select {
		case d := <-w.parts:
			sizes[d.Digest.String()] = d.Size
			continue
		case <-ctx.Done():
			if w.progress != nil {
				last.Total = 0
				for _, size := range sizes {
					last.Total += size
				}
				w.progress(PullProgress{Done: last.Total, Total: last.Total})
			}
			return
		case <-tick.C:
		}
		open, err := w.store.ListStatuses(ctx, "")
		if err != nil {
			continue
		}
		now := w.count(ctx, sizes, open)
		// Without an open transfer it is being unpacked, which takes its time.
		if now != last || len(open) == 0 {
			moved = time.Now()
		}
		if time.Since(moved) > stallTimeout {
			w.cancel(errStalled)
		}
		last = now
		if w.progress != nil {
			w.progress(now)
		}
	}
}

// count adds up what is complete and what has arrived of the rest.
func (w *pullWatch) count(ctx context.Context, sizes map[string]int64, open []content.Status) PullProgress {
	var p PullProgress
	arrived := map[string]int64{}
	for _, s := range open {
		if i := strings.Index(s.Ref, "sha256:"); i >= 0 {
			arrived[s.Ref[i:]] = s.Offset
		}
	}
	for dgst, size := range sizes {
		p.Total += size
		if n, ok := arrived[dgst]; ok {
			p.Done += n
		} else if w.complete(ctx, dgst) {
			p.Done += size
		}
	}
	return p
}

func (w *pullWatch) complete(ctx context.Context, dgst string) bool {
	d, err := digest.Parse(dgst)
	if err != nil {
		return false
	}
	_, err = w.store.Info(ctx, d)
	return err == nil
}
