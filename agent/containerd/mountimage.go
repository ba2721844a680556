package containerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"golang.org/x/sys/unix"

	"wherry.dev/agent"
	"wherry.dev/spec"
)

// Images that are mounted into a container are views of their snapshots, one
// for each mount, which containerd keeps as long as the container's record
// refers to them. They are mounted on the node, below the run folder, since a
// part of one can be handed on only from there, and are so from Create or, after
// the node was down, from Start until Remove.

func (r *Runtime) imageDir(id string, n int) string { return r.dir("images", id, strconv.Itoa(n)) }

func imageView(id string, n int) string { return id + "-image-" + strconv.Itoa(n) }

// imageSources returns the mounts with the place where an image will be as
// their source, and the images in order.
func (r *Runtime) imageSources(id string, mounts []agent.Mount) (out []agent.Mount, images []agent.Mount) {
	out = slices.Clone(mounts)
	for i := range out {
		if m := &out[i]; m.Image != "" {
			m.Source = filepath.Join(r.imageDir(id, len(images)), filepath.FromSlash(m.Subpath))
			images = append(images, *m)
		}
	}
	return out, images
}

// imageLabels let the images of a container be found again, and keep them.
func imageLabels(id, snapshotter string, images []agent.Mount) map[string]string {
	labels := map[string]string{}
	for n, m := range images {
		labels[labelImage+strconv.Itoa(n)] = m.Image
		labels[fmt.Sprintf("containerd.io/gc.ref.snapshot.%s/image-%d", snapshotter, n)] = imageView(id, n)
	}
	return labels
}

// viewImages makes the views of images and mounts them.
func (r *Runtime) viewImages(ctx context.Context, c containers.Container, images []agent.Mount) error {
	sn := r.client.SnapshotService(c.Snapshotter)
	for n, m := range images {
		img, err := r.image(ctx, m.Image)
		if err != nil {
			return err
		}
		_, err = sn.View(ctx, imageView(c.ID, n), img.chain, snapshots.WithLabels(map[string]string{labelTask: c.ID}))
		if isNotFound(err) {
			r.dropImage(m.Image)
			return spec.Unavailablef("the unpacked layers of image %s are gone from this node; they are made again", m.Image)
		}
		if err != nil && !isExists(err) {
			return fmt.Errorf("open image %s: %w", m.Image, classify(err))
		}
	}
	if err := r.mountImages(ctx, c.ID, c.Snapshotter, c.Labels); err != nil {
		return err
	}
	for n, m := range images {
		if err := checkSubpath(r.imageDir(c.ID, n), m); err != nil {
			return err
		}
	}
	return nil
}

// checkSubpath refuses a part of an image that does not exist or leads through
// a link, which would be followed on the node.
func checkSubpath(dir string, m agent.Mount) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("open image %s: %w", m.Image, err)
	}
	defer root.Close()
	sub := filepath.Clean(m.Subpath)
	real, err := resolve(root, sub)
	if err != nil {
		return err
	}
	if real != sub {
		return spec.Invalidf("image %s: the subpath %s leads through a symbolic link, to %s; name that", m.Image, m.Subpath, real)
	}
	if _, err := root.Lstat(sub); errors.Is(err, fs.ErrNotExist) {
		return spec.Invalidf("image %s has no %s", m.Image, m.Subpath)
	} else if err != nil {
		return fmt.Errorf("look into image %s: %w", m.Image, err)
	}
	return nil
}

// mountImages mounts the images of a container on the node. What is mounted
// there already is mounted anew: nothing of the container runs.
func (r *Runtime) mountImages(ctx context.Context, id, snapshotter string, labels map[string]string) error {
	for n := 0; labels[labelImage+strconv.Itoa(n)] != ""; n++ {
		mounts, err := r.client.SnapshotService(snapshotter).Mounts(ctx, imageView(id, n))
		if err != nil {
			return fmt.Errorf("open image %s: %w", labels[labelImage+strconv.Itoa(n)], classify(err))
		}
		dir := r.imageDir(id, n)
		if err := errors.Join(unmount(dir), os.MkdirAll(dir, 0o700)); err != nil {
			return fmt.Errorf("mount image: %w", err)
		}
		if err := mount.All(readOnly(mounts), dir); err != nil {
			return fmt.Errorf("mount image: %w", err)
		}
	}
	return nil
}

// unmountImages undoes viewImages, however far that came.
func (r *Runtime) unmountImages(ctx context.Context, id, snapshotter string, labels map[string]string) error {
	for n := 0; labels[labelImage+strconv.Itoa(n)] != ""; n++ {
		if err := unmount(r.imageDir(id, n)); err != nil {
			return fmt.Errorf("unmount image: %w", err)
		}
		if err := r.client.SnapshotService(snapshotter).Remove(ctx, imageView(id, n)); err != nil && !isNotFound(err) {
			return fmt.Errorf("remove view of image: %w", classify(err))
		}
	}
	return os.RemoveAll(r.dir("images", id)) // empty folders
}

// unmount takes away all that is mounted at dir.
func unmount(dir string) error {
	for {
		switch err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); {
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil
		case err != nil:
			return err
		}
	}
}
