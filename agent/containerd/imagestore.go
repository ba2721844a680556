package containerd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"wherry.dev/spec"
)

// Image is an image in the node's store.
type Image struct {
	// Name is the normalised reference, "docker.io/library/nginx:1.27".
	Name string `json:"name"`
	// Digest of the index, or of the manifest where there is no index.
	Digest string `json:"digest"`
	// Size in bytes of what is stored of it, compressed as it came.
	Size int64 `json:"size"`
	// Created is when the name was given its digest on this node.
	Created time.Time `json:"created"`
	// Platforms that the image is made for, sorted.
	Platforms []string `json:"platforms"`
	// Used tells that a container of this node runs it.
	Used bool `json:"used"`
}

// ListImages returns the images of the node by name. An image that is kept
// under its digest alone is listed only where it has no other name.
func (r *Runtime) ListImages(ctx context.Context) ([]Image, error) {
	ctx, cancel := context.WithTimeout(ctx, createTimeout)
	defer cancel()
	recs, err := r.client.ImageService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", classify(err))
	}
	used, err := r.usedImages(ctx)
	if err != nil {
		return nil, err
	}
	named := map[digest.Digest]bool{}
	usedDigest := map[digest.Digest]bool{}
	for _, rec := range recs {
		named[rec.Target.Digest] = named[rec.Target.Digest] || !isPinned(rec.Name)
		usedDigest[rec.Target.Digest] = usedDigest[rec.Target.Digest] || used[rec.Name] != ""
	}
	list := []Image{}
	for _, rec := range recs {
		if isPinned(rec.Name) && named[rec.Target.Digest] {
			continue
		}
		img := r.describe(ctx, rec)
		img.Used = usedDigest[rec.Target.Digest]
		list = append(list, img)
	}
	slices.SortFunc(list, func(a, b Image) int { return strings.Compare(a.Name, b.Name) })
	return list, nil
}

// describe tells what is stored of an image; what is damaged is left out.
func (r *Runtime) describe(ctx context.Context, rec images.Image) Image {
	img := Image{Name: rec.Name, Digest: rec.Target.Digest.String(), Created: rec.UpdatedAt, Platforms: []string{}}
	cs := r.client.ContentStore()
	if has, err := images.Platforms(ctx, cs, rec.Target); err == nil {
		for _, p := range has {
			img.Platforms = append(img.Platforms, platforms.Format(p))
		}
		slices.Sort(img.Platforms)
		img.Platforms = slices.Compact(img.Platforms)
	}
	seen := map[digest.Digest]bool{}
	_ = images.Walk(ctx, images.HandlerFunc(func(ctx context.Context, d ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		info, err := cs.Info(ctx, d.Digest)
		if err != nil || seen[d.Digest] {
			return nil, images.ErrSkipDesc
		}
		seen[d.Digest] = true
		img.Size += info.Size
		return images.Children(ctx, cs, d)
	}), rec.Target)
	return img
}

func isPinned(name string) bool { return strings.Contains(name, "@") }

// usedImages maps the names of images that containers were made from, or have
// mounted, to one of those containers.
func (r *Runtime) usedImages(ctx context.Context) (map[string]string, error) {
	cs, err := r.client.ContainerService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", classify(err))
	}
	used := map[string]string{}
	for _, c := range cs {
		ref, _, _ := strings.Cut(c.Image, " ")
		used[ref] = c.Labels[labelName]
		for k, v := range c.Labels {
			if strings.HasPrefix(k, labelImage) {
				ref, _, _ := strings.Cut(v, " ")
				used[ref] = c.Labels[labelName]
			}
		}
	}
	return used, nil
}

// RemoveImage removes an image by name, or all names of a digest. One that a
// container was made from is refused, class spec.ErrConflict; one that does
// not exist is of class spec.ErrNotFound.
func (r *Runtime) RemoveImage(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, createTimeout)
	defer cancel()
	is := r.client.ImageService()
	recs, err := is.List(ctx)
	if err != nil {
		return fmt.Errorf("remove image %s: %w", name, classify(err))
	}
	var doomed []string
	if _, err := digest.Parse(name); err == nil {
		for _, rec := range recs {
			if rec.Target.Digest.String() == name {
				doomed = append(doomed, rec.Name)
			}
		}
	} else if doomed, err = namesOf(recs, name); err != nil {
		return err
	}
	if len(doomed) == 0 {
		return spec.NotFoundf("image %s: not on this node", name)
	}
	used, err := r.usedImages(ctx)
	if err != nil {
		return err
	}
	for _, d := range doomed {
		if user, ok := used[d]; ok {
			return spec.Conflictf("image %s is in use by %s", name, user)
		}
	}
	var errs []error
	for i, d := range doomed {
		var opts []images.DeleteOpt
		if i == len(doomed)-1 {
			opts = append(opts, images.SynchronousDelete()) // its space is free when we return
		}
		if err := is.Delete(ctx, d, opts...); err != nil && !isNotFound(err) {
			errs = append(errs, fmt.Errorf("remove image %s: %w", d, classify(err)))
		}
		r.mu.Lock()
		for key := range r.images {
			if ref, _, _ := strings.Cut(key, " "); ref == d {
				delete(r.images, key)
			}
		}
		r.mu.Unlock()
	}
	return errors.Join(errs...)
}

// namesOf returns the record of a name and, when no other tag of the same
// repository has its digest, the pinned one beside it.
func namesOf(recs []images.Image, name string) ([]string, error) {
	ref, err := NormalizeImage(name)
	if err != nil {
		return nil, err
	}
	var target digest.Digest
	for _, rec := range recs {
		if rec.Name == ref {
			target = rec.Target.Digest
		}
	}
	if target == "" {
		return nil, nil
	}
	names := []string{ref}
	repo := repository(ref)
	for _, rec := range recs {
		if rec.Name == ref || rec.Target.Digest != target || repository(rec.Name) != repo {
			continue
		}
		if !isPinned(rec.Name) {
			return []string{ref}, nil
		}
		names = append(names, rec.Name)
	}
	return names, nil
}

func repository(name string) string {
	ref, err := reference.ParseDockerRef(name)
	if err != nil {
		return name
	}
	return reference.TrimNamed(ref).String()
}
