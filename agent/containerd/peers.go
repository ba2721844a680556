package containerd

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"wherry.dev/spec"
)

// The times of asking peers.
const (
	// askPeers bounds the question who has an image. With an answer, others are
	// waited for only askOthers.
	askPeers  = time.Second
	askOthers = 100 * time.Millisecond
	// peerIdle is how long a peer may send nothing of a part.
	peerIdle = 10 * time.Second
	// reachTime is how long a connection to the registry may take when a peer
	// has an image; one that is connected may take its usual time to answer.
	reachTime = 2 * time.Second
)

// sources is where one pull finds an image: the peers, then the registry. It
// implements remotes.Resolver. What a digest names is checked by containerd, so
// that it does not matter where it comes from.
type sources struct {
	registry remotes.Resolver
	// reached reports whether the registry, or whoever is asked in its place, was
	// ever connected.
	reached func() bool
	peers   []Peer
	// fresh: what the name stands for is the registry's to say.
	fresh bool

	mu sync.Mutex
	// found is the answer of Resolve. // :: reference → descriptor
	found map[string]ocispec.Descriptor
	// holders are the peers that have the image, others those that answered that
	// they have not; they may have parts of it.
	holders, others []Peer
	// used are the parts that came from a peer, at least in part. // :: digest → names of peers
	used map[digest.Digest][]string
}

// sources returns the sources of one pull.
func (r *Runtime) sources(ctx context.Context, fresh bool) *sources {
	registry, reached := r.resolver()
	s := &sources{registry: registry, reached: reached, fresh: fresh, found: map[string]ocispec.Descriptor{}, used: map[digest.Digest][]string{}}
	if r.c.Peers != nil {
		s.peers = r.c.Peers(ctx)
	}
	return s
}

// Resolve implements remotes.Resolver. A reference with a digest is resolved to
// nothing else, whatever a tag in it names.
func (s *sources) Resolve(ctx context.Context, ref string) (string, ocispec.Descriptor, error) {
	s.mu.Lock()
	desc, ok := s.found[ref]
	s.mu.Unlock()
	if ok {
		return ref, desc, nil
	}
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return "", desc, spec.Invalidf("image name %q: %v", ref, err)
	}
	repo := reference.TrimNamed(named).String()
	var has []answer
	var others []Peer
	if s.fresh {
		if _, desc, err = s.registry.Resolve(ctx, ref); err == nil {
			has, others = s.ask(ctx, repo, desc.Digest.String())
		}
	} else if d, ok := named.(reference.Digested); ok {
		if has, others = s.ask(ctx, repo, d.Digest().String()); len(has) > 0 {
			desc = has[0].desc
		} else {
			_, desc, err = s.registry.Resolve(ctx, ref)
		}
	} else if t, ok := named.(reference.Tagged); ok {
		desc, has, others, err = s.resolveTag(ctx, ref, repo, t.Tag())
	}
	if err != nil {
		return "", desc, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holders, s.others = nil, others
	for _, a := range has {
		if a.desc.Digest == desc.Digest {
			s.holders = append(s.holders, a.peer)
		} else {
			s.others = append(s.others, a.peer)
		}
	}
	s.found[ref] = desc
	return ref, desc, nil
}

// resolveTag asks the registry and the peers at once what a tag stands for. That
// is the registry's to say. The peers, of which any may say anything, are
// believed only when it does not: it is not there, or does not give the image.
func (s *sources) resolveTag(ctx context.Context, ref, repo, tag string) (desc ocispec.Descriptor, has []answer, others []Peer, err error) {
	type word struct {
		desc ocispec.Descriptor
		err  error
	}
	rctx, cancel := context.WithCancel(ctx)
	defer cancel()
	said := make(chan word, 1)
	go func() {
		_, desc, err := s.registry.Resolve(rctx, ref)
		said <- word{desc, err}
	}()
	reach := time.NewTimer(reachTime)
	defer reach.Stop()
	has, others = s.ask(ctx, repo, tag)
	var late <-chan time.Time // nil: without a peer there is nothing to be in time for
	if len(has) > 0 {
		late = reach.C
	}
	for {
		select {
		case w := <-said:
			if w.err != nil && len(has) > 0 && ctx.Err() == nil {
				return has[0].desc, has, others, nil
			}
			return w.desc, has, others, w.err
		case <-late:
			if !s.reached() {
				return has[0].desc, has, others, nil
			}
		}
	}
}

// answer is what a peer has under a reference.
type answer struct {
	peer     Peer
	answered bool
	has      bool
	desc     ocispec.Descriptor
	modified time.Time
}

// ask asks all peers at once for a manifest by tag or digest. It returns those
// that have it, where they differ the newest first, and those that have not.
func (s *sources) ask(ctx context.Context, repo, what string) (has []answer, others []Peer) {
	ctx, cancel := context.WithTimeout(ctx, askPeers)
	defer cancel()
	answers := make(chan answer, len(s.peers))
	for _, p := range s.peers {
		go func() { answers <- askPeer(ctx, p, repo, what) }()
	}
	for range s.peers {
		var a answer
		select {
		case a = <-answers:
		case <-ctx.Done(): // the rest does not count, now that nobody waits
		}
		switch {
		case a.has:
			if len(has) == 0 {
				t := time.AfterFunc(askOthers, cancel)
				defer t.Stop()
			}
			has = append(has, a)
		case a.answered:
			others = append(others, a.peer)
		}
	}
	slices.SortStableFunc(has, func(a, b answer) int {
		if c := b.modified.Compare(a.modified); c != 0 {
			return c
		}
		return strings.Compare(a.peer.Name, b.peer.Name)
	})
	return has, others
}

// askPeer asks one peer.
func askPeer(ctx context.Context, p Peer, repo, what string) answer {
	a := answer{peer: p}
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, peerURL(repo, "manifests", what), nil)
	if err != nil {
		return a
	}
	resp, err := p.Transport.RoundTrip(req)
	if err != nil {
		return a
	}
	_ = resp.Body.Close()
	a.answered = true
	if resp.StatusCode != http.StatusOK {
		return a
	}
	d, err := digest.Parse(resp.Header.Get("Docker-Content-Digest"))
	if err != nil {
		return a
	}
	if pinned, err := digest.Parse(what); err == nil && pinned != d {
		return a // it says what was not asked
	}
	a.desc = ocispec.Descriptor{MediaType: resp.Header.Get("Content-Type"), Digest: d, Size: resp.ContentLength}
	manifest := images.IsManifestType(a.desc.MediaType) || images.IsIndexType(a.desc.MediaType)
	a.has = manifest && a.desc.Size > 0 && a.desc.Size <= maxManifest
	if t, err := http.ParseTime(resp.Header.Get("Last-Modified")); err == nil {
		a.modified = t
	}
	return a
}

// peerURL names no host: the transport knows whom to ask.
func peerURL(repo, kind, what string) string {
	return "http://wherry/v2/" + repo + "/" + kind + "/" + what
}

// Fetcher implements remotes.Resolver.
func (s *sources) Fetcher(ctx context.Context, ref string) (remotes.Fetcher, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return nil, spec.Invalidf("image name %q: %v", ref, err)
	}
	inner, err := s.registry.Fetcher(ctx, ref)
	if err != nil {
		return nil, err
	}
	repo := reference.TrimNamed(named).String()
	return remotes.FetcherFunc(func(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
		peers := s.candidates(d)
		if d.Size <= 0 || len(peers) == 0 {
			return inner.Fetch(ctx, d)
		}
		return &part{ctx: ctx, s: s, repo: repo, desc: d, peers: peers, registry: inner}, nil
	}), nil
}

// Pusher implements remotes.Resolver.
func (s *sources) Pusher(context.Context, string) (remotes.Pusher, error) {
	return nil, fmt.Errorf("push: %w", errdefs.ErrNotImplemented)
}

// candidates are the peers to ask for a part. Those that have the image take
// turns to be the first.
func (s *sources) candidates(d ocispec.Descriptor) []Peer {
	s.mu.Lock()
	defer s.mu.Unlock()
	first := 0
	if len(s.holders) > 0 {
		h := fnv.New32a()
		_, _ = io.WriteString(h, d.Digest.String())
		first = int(h.Sum32() % uint32(len(s.holders)))
	}
	return slices.Concat(s.holders[first:], s.holders[:first], s.others)
}

// drop asks a peer no more, since it has broken off.
func (s *sources) drop(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.forget(func(p Peer) bool { return p.Name == name })
}

func (s *sources) forget(which func(Peer) bool) {
	s.holders = slices.DeleteFunc(s.holders, which)
	s.others = slices.DeleteFunc(s.others, which)
}

// spoiled forgets the peers that gave any part of a pull that came out wrong. It
// returns the parts, and false when all came from the registry.
func (s *sources) spoiled() (parts []digest.Digest, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	bad := map[string]bool{}
	for d, names := range s.used {
		parts = append(parts, d)
		for _, n := range names {
			bad[n] = true
		}
	}
	s.forget(func(p Peer) bool { return bad[p.Name] })
	clear(s.used)
	return parts, len(parts) > 0
}

// part reads one part of an image: from a peer, where that breaks off from the
// next one, at last from the registry, always going on where the last one ended.
type part struct {
	ctx      context.Context
	s        *sources
	repo     string
	desc     ocispec.Descriptor
	peers    []Peer // not asked yet
	registry remotes.Fetcher

	offset int64
	now    io.ReadCloser
	from   string // name of the peer that now is of
	last   bool   // now is the registry's
}

// Read implements io.Reader.
func (p *part) Read(b []byte) (int, error) {
	for {
		if p.now == nil {
			if p.offset >= p.desc.Size {
				return 0, io.EOF
			}
			if err := p.open(); err != nil {
				return 0, err
			}
		}
		n, err := p.now.Read(b)
		p.offset += int64(n)
		if err == nil || p.last || p.offset >= p.desc.Size && errors.Is(err, io.EOF) {
			return n, err
		}
		_ = p.now.Close()
		p.now = nil
		if p.ctx.Err() != nil {
			return n, p.ctx.Err()
		}
		p.s.drop(p.from)
		if n > 0 {
			return n, nil
		}
	}
}

// open opens the next source at the present offset.
func (p *part) open() error {
	for len(p.peers) > 0 {
		peer := p.peers[0]
		p.peers = p.peers[1:]
		if p.now = p.openPeer(peer); p.now != nil {
			p.s.mu.Lock()
			p.s.used[p.desc.Digest] = append(p.s.used[p.desc.Digest], peer.Name)
			p.s.mu.Unlock()
			p.from = peer.Name
			return nil
		}
		if p.ctx.Err() != nil {
			return p.ctx.Err()
		}
	}
	rc, err := p.registry.Fetch(p.ctx, p.desc)
	if err != nil {
		return err
	}
	if p.offset > 0 {
		seeker, ok := rc.(io.Seeker)
		if !ok {
			_ = rc.Close()
			return spec.Unavailablef("the registry's answer cannot be resumed")
		}
		if _, err := seeker.Seek(p.offset, io.SeekStart); err != nil {
			_ = rc.Close()
			return err
		}
	}
	p.now, p.last = rc, true
	return nil
}

// openPeer asks a peer for the rest of the part; nil when it does not give it.
func (p *part) openPeer(peer Peer) io.ReadCloser {
	kind := "blobs"
	if images.IsManifestType(p.desc.MediaType) || images.IsIndexType(p.desc.MediaType) {
		kind = "manifests"
	}
	ctx, cancel := context.WithCancel(p.ctx)
	b := &peerBody{cancel: cancel, idle: time.AfterFunc(peerIdle, cancel)}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, peerURL(p.repo, kind, p.desc.Digest.String()), nil)
	if err == nil {
		want := http.StatusOK
		if p.offset > 0 {
			req.Header.Set("Range", fmt.Sprintf("bytes=%d-", p.offset))
			want = http.StatusPartialContent
		}
		var resp *http.Response
		if resp, err = peer.Transport.RoundTrip(req); err == nil {
			b.body = resp.Body
			if resp.StatusCode == want && resp.ContentLength == p.desc.Size-p.offset {
				return b
			}
		} else if p.ctx.Err() == nil {
			p.s.drop(peer.Name)
		}
	}
	_ = b.Close()
	return nil
}

// peerBody is the body of a peer's answer; a peer that sends nothing for long
// has broken off.
type peerBody struct {
	body   io.ReadCloser
	cancel context.CancelFunc
	idle   *time.Timer
}

// Read implements io.Reader.
func (b *peerBody) Read(p []byte) (int, error) {
	b.idle.Reset(peerIdle)
	n, err := b.body.Read(p)
	b.idle.Stop() // whoever reads may take its time
	return n, err
}

// Close implements io.Closer.
func (b *peerBody) Close() error {
	b.idle.Stop()
	b.cancel()
	if b.body == nil {
		return nil
	}
	return b.body.Close()
}

// Seek implements io.Seeker: containerd goes on where an earlier pull ended.
func (p *part) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekCurrent:
		offset += p.offset
	case io.SeekEnd:
		offset += p.desc.Size
	}
	if offset < 0 {
		return 0, spec.Invalidf("seek to %d", offset)
	}
	if offset == p.offset {
		return offset, nil
	}
	if p.now != nil {
		_ = p.now.Close()
		p.now, p.last = nil, false
	}
	p.offset = offset
	return offset, nil
}

// Close implements io.Closer.
func (p *part) Close() error {
	if p.now == nil {
		return nil
	}
	err := p.now.Close()
	p.now = nil
	return err
}
