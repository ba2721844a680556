package containerd

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"wherry.dev/agent"
	"wherry.dev/spec"
)

// image is what is known of an unpacked image, for one platform.
type image struct {
	digest digest.Digest // of what the name points to
	config agent.ImageConfig
	// chain is the name of the snapshot that holds the unpacked layers.
	chain string
	// passwd and group are the image's user databases.
	passwd, group []byte
	// hazard is why the image must not be run; nil when it may.
	hazard error
}

// maxManifest bounds indices, manifests and configurations, in bytes. They are
// read into memory.
const maxManifest = 4 << 20

// NormalizeImage returns the full form of an image name as users write it:
// "nginx" is "docker.io/library/nginx:latest".
func NormalizeImage(name string) (string, error) {
	ref, err := reference.ParseDockerRef(name)
	if err != nil {
		return "", spec.Invalidf("image name %q: %v", name, err)
	}
	return ref.String(), nil
}

// Ensure implements agent.Images.
func (r *Runtime) Ensure(ctx context.Context, q agent.ImageRequest) (agent.ImageConfig, error) {
	ref, err := recordName(q)
	if err != nil {
		return agent.ImageConfig{}, err
	}
	if img, err := r.present(ctx, ref, q); err != nil || img != nil {
		return configOf(img), err
	}
	if err := r.pulls.do(ctx, ref+" "+q.Platform, func(ctx context.Context) error {
		_, err := r.pull(ctx, ref, q.Platform, false, nil)
		return err
	}); err != nil {
		return agent.ImageConfig{}, err
	}
	img, err := r.present(ctx, ref, q)
	if err == nil && img == nil {
		err = spec.Unavailablef("image %s was removed while it was being pulled", q.Image)
	}
	return configOf(img), err
}

func configOf(img *image) agent.ImageConfig {
	if img == nil {
		return agent.ImageConfig{}
	}
	return img.config
}

// recordName is the name under which an image is kept: a tag may move, so an
// image that is pinned has its digest in the name.
func recordName(q agent.ImageRequest) (string, error) {
	ref, err := reference.ParseDockerRef(q.Image)
	if err != nil {
		return "", spec.Invalidf("image name %q: %v", q.Image, err)
	}
	if q.Digest == "" {
		return ref.String(), nil
	}
	dgst, err := digest.Parse(q.Digest)
	if err != nil {
		return "", spec.Invalidf("digest %q of image %s: %v", q.Digest, q.Image, err)
	}
	pinned, err := reference.WithDigest(reference.TrimNamed(ref), dgst)
	if err != nil {
		return "", spec.Invalidf("image %q: %v", q.Image, err)
	}
	return pinned.String(), nil
}

// present returns the image when it is stored and unpacked, unpacking it when
// it is only stored; nil when it has to be pulled.
func (r *Runtime) present(ctx context.Context, ref string, q agent.ImageRequest) (*image, error) {
	ctx, cancel := context.WithTimeout(quiet(ctx), unpackTimeout)
	defer cancel()
	is := r.client.ImageService()
	rec, err := is.Get(ctx, ref)
	if isNotFound(err) && q.Digest != "" {
		// The same content may be here under its tag, or another name.
		rec, err = r.pin(ctx, ref, q.Digest)
	}
	if isNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look up image %s: %w", q.Image, classify(err))
	}
	key := imageKey(ref, q.Platform)
	r.mu.Lock()
	img := r.images[key]
	r.mu.Unlock()
	if img != nil && img.digest == rec.Target.Digest {
		return img, nil
	}
	img, err = r.load(ctx, rec, q.Platform)
	if isNotFound(err) {
		return nil, nil // parts of it are missing: pull them
	}
	if err != nil {
		return nil, fmt.Errorf("open image %s: %w", q.Image, classify(err))
	}
	img.config.Ref = key
	r.mu.Lock()
	r.images[key] = img
	r.mu.Unlock()
	return img, nil
}

// unpackTimeout bounds opening an image, which may have to be unpacked.
const unpackTimeout = 10 * time.Minute

// imageKey is agent.ImageConfig.Ref: the name of the record and, where it is
// not the node's, the platform.
func imageKey(ref, platform string) string {
	if platform == "" {
		return ref
	}
	return ref + " " + platform
}

// image returns what is known of an image by its key.
func (r *Runtime) image(ctx context.Context, key string) (*image, error) {
	r.mu.Lock()
	img := r.images[key]
	r.mu.Unlock()
	if img != nil {
		return img, nil
	}
	ref, platform, _ := strings.Cut(key, " ")
	img, err := r.present(ctx, ref, agent.ImageRequest{Image: ref, Platform: platform})
	if err == nil && img == nil {
		err = spec.Unavailablef("image %s is no longer on this node", ref)
	}
	return img, err
}

func (r *Runtime) dropImage(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.images, key)
}

// pin gives an image that is stored under another name the name ref.
func (r *Runtime) pin(ctx context.Context, ref, dgst string) (images.Image, error) {
	is := r.client.ImageService()
	same, err := is.List(ctx, "target.digest=="+dgst)
	if err != nil {
		return images.Image{}, err
	}
	if len(same) == 0 {
		return is.Get(ctx, ref) // not found
	}
	rec, err := is.Create(ctx, images.Image{Name: ref, Target: same[0].Target})
	if isExists(err) {
		return is.Get(ctx, ref)
	}
	return rec, err
}

// matcher returns what matches a platform; the node's for an empty one.
func matcher(platform string) (platforms.MatchComparer, string, error) {
	if platform == "" {
		return platforms.Default(), platforms.Format(platforms.DefaultSpec()), nil
	}
	p, err := platforms.Parse(platform)
	if err != nil {
		return nil, "", spec.Invalidf("platform %q: %v", platform, err)
	}
	return platforms.Only(p), platforms.Format(p), nil
}

// load reads a stored image, unpacks it where that was not done, and looks
// into it. An error of class not found means that content is missing.
func (r *Runtime) load(ctx context.Context, rec images.Image, platform string) (*image, error) {
	m, _, err := matcher(platform)
	if err != nil {
		return nil, err
	}
	if err := r.checkPlatform(ctx, rec, platform); err != nil {
		return nil, err
	}
	cs := r.client.ContentStore()
	desc, err := images.Config(ctx, cs, rec.Target, m)
	if err != nil {
		return nil, err
	}
	b, err := readBlob(ctx, cs, desc)
	if err != nil {
		return nil, err
	}
	var c imageDocument
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, spec.Invalidf("configuration of image %s: %v", rec.Name, err)
	}
	img := &image{digest: rec.Target.Digest, chain: identity.ChainID(c.RootFS.DiffIDs).String(), config: c.imageConfig()}
	img.config.Digest = rec.Target.Digest.String()
	sn, name, err := r.snapshots(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := sn.Stat(ctx, img.chain); isNotFound(err) {
		if err := client.NewImageWithPlatform(r.client, rec, m).Unpack(ctx, name); err != nil {
			return nil, fmt.Errorf("unpack image %s: %w", rec.Name, err)
		}
	} else if err != nil {
		return nil, err
	}
	return img, r.view(ctx, img.chain, func(root *os.Root) (err error) {
		if img.hazard = checkMountPoints(root.Name()); img.hazard != nil {
			return nil
		}
		if img.passwd, img.hazard = readDatabase(root, "etc/passwd"); img.hazard != nil {
			return nil
		}
		img.group, img.hazard = readDatabase(root, "etc/group")
		return nil
	})
}

// checkPlatform refuses an image that is not made for a platform, and names
// those that it is made for.
func (r *Runtime) checkPlatform(ctx context.Context, rec images.Image, platform string) error {
	m, want, err := matcher(platform)
	if err != nil {
		return err
	}
	has, err := images.Platforms(ctx, r.client.ContentStore(), rec.Target)
	if err != nil {
		return err
	}
	return platformError(rec.Name, has, m, want)
}

func platformError(name string, has []ocispec.Platform, m platforms.Matcher, want string) error {
	var names []string
	for _, p := range has {
		if m.Match(p) {
			return nil
		}
		if p.OS == "unknown" || p.OS == "" {
			continue // attestations
		}
		names = append(names, platforms.Format(p))
	}
	if len(has) == 0 {
		return nil
	}
	slices.Sort(names)
	return spec.Invalidf("image %s is not made for %s; it has %s", name, want, strings.Join(slices.Compact(names), ", "))
}

// readBlob reads a small content.
func readBlob(ctx context.Context, cs content.Provider, desc ocispec.Descriptor) ([]byte, error) {
	if desc.Size > maxManifest {
		return nil, spec.Invalidf("image part %s is larger than %d MiB", desc.Digest, maxManifest>>20)
	}
	return content.ReadBlob(ctx, cs, desc)
}

// imageDocument is an image's configuration, with what Docker adds to OCI.
type imageDocument struct {
	ocispec.Image
	Config struct {
		ocispec.ImageConfig
		Healthcheck *struct {
			Test          []string
			Interval      time.Duration
			Timeout       time.Duration
			StartPeriod   time.Duration
			StartInterval time.Duration
			Retries       int
		}
	} `json:"config"`
}

func (d *imageDocument) imageConfig() agent.ImageConfig {
	c := agent.ImageConfig{
		Entrypoint: d.Config.Entrypoint,
		Cmd:        d.Config.Cmd,
		Env:        d.Config.Env,
		User:       d.Config.User,
		WorkingDir: d.Config.WorkingDir,
		StopSignal: d.Config.StopSignal,
	}
	for v := range d.Config.Volumes {
		c.Volumes = append(c.Volumes, v)
	}
	slices.Sort(c.Volumes)
	if h := d.Config.Healthcheck; h != nil && len(h.Test) > 0 {
		// The defaults are Docker's.
		c.Health = &spec.HealthCheck{
			Test:          h.Test,
			Interval:      spec.Duration(orDefault(h.Interval, 30*time.Second)),
			Timeout:       spec.Duration(orDefault(h.Timeout, 30*time.Second)),
			StartPeriod:   spec.Duration(h.StartPeriod),
			StartInterval: spec.Duration(orDefault(h.StartInterval, 5*time.Second)),
			Retries:       orDefault(h.Retries, 3),
		}
	}
	return c
}

func orDefault[T int | time.Duration](v, def T) T {
	if v <= 0 {
		return def
	}
	return v
}
