package containerd

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"wherry.dev/spec"
)

// saying is a registry that connects after a while, and answers after another.
type saying struct {
	remotes.Resolver
	connect, answer time.Duration // connect < 0: never
	err             error
	digest          digest.Digest
	connected       atomic.Bool
	asked           atomic.Int32
}

func (r *saying) Resolve(ctx context.Context, ref string) (string, ocispec.Descriptor, error) {
	r.asked.Add(1)
	for i, d := range []time.Duration{r.connect, r.answer} {
		if d < 0 {
			d = time.Hour
		}
		select {
		case <-time.After(d):
		case <-ctx.Done():
			return "", ocispec.Descriptor{}, ctx.Err()
		}
		r.connected.Store(r.connected.Load() || i == 0 && r.connect > 0)
	}
	return ref, ocispec.Descriptor{Digest: r.digest, Size: 5}, r.err
}

// holds is a peer that has one manifest under every name, modified at a time.
type holds struct {
	digest   digest.Digest
	modified time.Time
}

func (p holds) RoundTrip(r *http.Request) (*http.Response, error) {
	h := http.Header{"Docker-Content-Digest": {p.digest.String()}, "Content-Type": {ocispec.MediaTypeImageManifest},
		"Last-Modified": {p.modified.UTC().Format(http.TimeFormat)}}
	status := http.StatusOK
	if p.digest == "" || strings.Contains(r.URL.Path, "sha256:") && !strings.HasSuffix(r.URL.Path, p.digest.String()) {
		status = http.StatusNotFound
	}
	return &http.Response{StatusCode: status, Header: h, ContentLength: 5, Body: http.NoBody}, nil
}

// TestTagIsTheRegistrysToSay: a peer decides what a tag means only when the
// registry does not, and then soon.
func TestTagIsTheRegistrysToSay(t *testing.T) {
	good, bad, worse := digest.FromString("good"), digest.FromString("bad"), digest.FromString("worse")
	const ms = time.Millisecond
	for _, tt := range []struct {
		name     string
		ref      string
		registry *saying
		peer     digest.Digest // a newer one than worse, which another peer has; "" for no peer
		want     digest.Digest // "" for the registry's error
		limit    time.Duration
	}{
		{"it says", "reg/app:1", &saying{connect: 10 * ms, answer: 100 * ms}, bad, good, 200 * ms},
		{"it is slow", "reg/app:1", &saying{connect: 1900 * ms, answer: 30 * time.Second}, bad, good, 32 * time.Second},
		{"it refuses connections", "reg/app:1", &saying{err: errors.New("connection refused")}, bad, bad, 10 * ms},
		{"it is not reached", "reg/app:1", &saying{connect: -1}, bad, bad, 2 * time.Second},
		{"it does not know", "reg/app:1", &saying{connect: 10 * ms, answer: 50 * ms, err: spec.NotFoundf("none")}, bad, bad, 100 * ms},
		{"no peer has it", "reg/app:1", &saying{connect: 5 * time.Second, answer: time.Second}, "", good, 7 * time.Second},
		{"nobody has it", "reg/app:1", &saying{connect: 10 * ms, err: spec.NotFoundf("none")}, "", "", 20 * ms},
		{"by digest", "reg/app@" + bad.String(), &saying{connect: 10 * ms}, bad, bad, ms},
		{"by digest, no peer has it", "reg/app@" + good.String(), &saying{connect: 10 * ms}, bad, good, 20 * ms},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				reg := tt.registry
				reg.digest = good
				s := &sources{registry: reg, reached: reg.connected.Load, found: map[string]ocispec.Descriptor{}}
				s.peers = []Peer{{Name: "a", Transport: holds{}}}
				if tt.peer != "" {
					s.peers = append(s.peers, Peer{Name: "b", Transport: holds{worse, time.Unix(1000, 0)}}, Peer{Name: "c", Transport: holds{tt.peer, time.Now().Add(time.Hour)}})
				}
				begin := time.Now()
				_, desc, err := s.Resolve(t.Context(), tt.ref)
				if d := time.Since(begin); d > tt.limit {
					t.Errorf("took %s, more than %s", d, tt.limit)
				}
				if tt.want == "" && !errors.Is(err, spec.ErrNotFound) || tt.want != "" && (err != nil || desc.Digest != tt.want) {
					t.Errorf("%s, %v, want %s", desc.Digest, err, tt.want)
				}
				// What others have is not where the parts come from first.
				for _, p := range s.holders {
					if p.Transport.(holds).digest != desc.Digest {
						t.Errorf("peer %s counts as one that has it", p.Name)
					}
				}
				_, again, err2 := s.Resolve(t.Context(), tt.ref)
				if err == nil && (err2 != nil || again.Digest != desc.Digest || reg.asked.Load() > 1) {
					t.Errorf("asked %d times, then %s, %v", reg.asked.Load(), again.Digest, err2)
				}
			})
		})
	}
}
