package containerd

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"wherry.dev/agent"
	"wherry.dev/spec"
)

// Load stores the images of an archive, which is an OCI layout or what `docker
// save` writes, plain or compressed with gzip, and unpacks them. It returns
// them in the order of the archive. Class spec.ErrInvalid: it is no such
// archive, an image in it has no name, or none is made for this node's platform.
func (r *Runtime) Load(ctx context.Context, in io.Reader) ([]Image, error) {
	in, err := plain(in)
	if err != nil {
		return nil, spec.Invalidf("load images: %v", err)
	}
	ctx, done, err := r.client.WithLease(quiet(ctx))
	if err != nil {
		return nil, fmt.Errorf("load images: %w", classify(err))
	}
	defer func() { _ = done(context.WithoutCancel(ctx)) }()
	cs := r.client.ContentStore()
	index, err := archive.ImportIndex(ctx, cs, in)
	if err != nil {
		return nil, loadError(ctx, err)
	}
	recs, err := named(ctx, cs, index)
	if err != nil {
		return nil, err
	}
	var loaded []Image
	for _, rec := range recs {
		img, err := r.admit(ctx, rec)
		if err != nil {
			return loaded, fmt.Errorf("load image %s: %w", rec.Name, err)
		}
		loaded = append(loaded, img)
	}
	return loaded, nil
}

// plain undoes a compression with gzip.
func plain(in io.Reader) (io.Reader, error) {
	b := bufio.NewReader(in)
	if magic, err := b.Peek(2); err != nil {
		return nil, errors.New("the archive is empty")
	} else if !bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		return b, nil
	}
	return gzip.NewReader(b)
}

// loadError tells a bad archive from a store that does not work.
func loadError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("load images: %w", ctx.Err())
	}
	if c := classify(err); errors.Is(c, spec.ErrUnavailable) {
		return fmt.Errorf("load images: %w", c)
	}
	return spec.Invalidf("load images: this is no image archive that can be read (%v); an OCI layout or the output of `docker save` is", err)
}

// named lists the images of an archive's index.
func named(ctx context.Context, cs content.Provider, index ocispec.Descriptor) ([]images.Image, error) {
	b, err := readBlob(ctx, cs, index)
	if err != nil {
		return nil, loadError(ctx, err)
	}
	var idx ocispec.Index
	if err := json.Unmarshal(b, &idx); err != nil {
		return nil, spec.Invalidf("load images: index of the archive: %v", err)
	}
	var recs []images.Image
	for _, m := range idx.Manifests {
		name := m.Annotations[images.AnnotationImageName]
		if name == "" {
			name = m.Annotations[ocispec.AnnotationRefName]
		}
		if name == "" {
			continue
		}
		ref, err := NormalizeImage(name)
		if err != nil {
			return nil, err
		}
		recs = append(recs, images.Image{Name: ref, Target: ocispec.Descriptor{
			MediaType: m.MediaType, Digest: m.Digest, Size: m.Size, Platform: m.Platform,
		}})
	}
	if len(recs) == 0 {
		return nil, spec.Invalidf("load images: the archive does not say what its images are called; save them by name, not by ID")
	}
	return recs, nil
}

// admit checks one image of an archive, names it and unpacks it.
func (r *Runtime) admit(ctx context.Context, rec images.Image) (Image, error) {
	if err := r.keepParts(ctx, rec.Target); err != nil {
		return Image{}, err
	}
	if err := r.checkPlatform(ctx, rec, ""); err != nil {
		return Image{}, err
	}
	is := r.client.ImageService()
	made, err := is.Create(ctx, rec)
	if isExists(err) {
		made, err = is.Update(ctx, rec, "target")
	}
	if err != nil {
		return Image{}, classify(err)
	}
	img, err := r.present(ctx, made.Name, agent.ImageRequest{Image: made.Name})
	if err == nil && img == nil {
		err = spec.Invalidf("the archive lacks parts of it")
	}
	if err != nil {
		_ = is.Delete(context.WithoutCancel(ctx), made.Name)
		return Image{}, err
	}
	return r.describe(ctx, made), nil
}

// keepParts makes every part of an image refer to its children, so that they
// are kept as long as it is. Parts of other platforms may be missing.
func (r *Runtime) keepParts(ctx context.Context, target ocispec.Descriptor) error {
	cs := r.client.ContentStore()
	children := images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		if err := smallEnough(d); err != nil {
			return nil, err
		}
		info, err := cs.Info(ctx, d.Digest)
		if isNotFound(err) {
			return nil, images.ErrSkipDesc
		}
		if err != nil {
			return nil, err
		}
		if info.Size > maxManifest && (images.IsIndexType(d.MediaType) || images.IsManifestType(d.MediaType)) {
			return nil, spec.Invalidf("image part %s is larger than %d MiB", d.Digest, maxManifest>>20)
		}
		found, err := images.Children(ctx, cs, d)
		if err != nil {
			return nil, err
		}
		return slices.DeleteFunc(found, func(c ocispec.Descriptor) bool {
			_, err := cs.Info(ctx, c.Digest)
			return isNotFound(err)
		}), nil
	})
	return images.Walk(ctx, images.SetChildrenLabels(cs, children), target)
}
