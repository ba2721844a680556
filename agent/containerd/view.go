package containerd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"

	"wherry.dev/spec"
)

const viewPrefix = "wherry-view-"

// view mounts an unpacked image read-only for the time of a call of f.
func (r *Runtime) view(ctx context.Context, chain string, f func(root *os.Root) error) (err error) {
	sn, _, err := r.snapshots(ctx)
	if err != nil {
		return err
	}
	key := viewPrefix + r.token + "-" + rand.Text()
	mounts, err := sn.View(ctx, key, chain, snapshots.WithLabels(map[string]string{
		labelView: string(r.c.Node),
		// Nothing refers to it, and it must not be collected before it is removed.
		"containerd.io/gc.root": "true",
	}))
	if err != nil {
		return fmt.Errorf("open image: %w", classify(err))
	}
	clean := context.WithoutCancel(ctx)
	defer func() { err = errors.Join(err, classify(sn.Remove(clean, key))) }()
	dir := r.dir("views", key)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("open image: %w", err)
	}
	defer func() { err = errors.Join(err, os.Remove(dir)) }()
	if err := mount.All(readOnly(mounts), dir); err != nil {
		return fmt.Errorf("mount image: %w", err)
	}
	defer func() { err = errors.Join(err, mount.UnmountMounts(mounts, dir, 0)) }()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("open image: %w", err)
	}
	defer root.Close()
	return f(root)
}

func readOnly(mounts []mount.Mount) []mount.Mount {
	out := make([]mount.Mount, len(mounts))
	for i, m := range mounts {
		out[i] = m
		out[i].Options = append([]string{"ro"}, m.Options...)
		for j, o := range out[i].Options {
			if o == "rw" {
				out[i].Options[j] = "ro"
			}
		}
	}
	return out
}

// maxLinks is how many symbolic links one path may lead through, as in the kernel.
const maxLinks = 40

// resolve returns the path without symbolic links that name means to a process
// whose root is root, relative to it; absolute links and ".." stay inside. What
// does not exist is kept as it is written.
func resolve(root *os.Root, name string) (string, error) {
	done, rest, links := ".", path.Clean("/" + name)[1:], 0
	for rest != "" {
		var part string
		part, rest, _ = strings.Cut(rest, "/")
		switch part {
		case "", ".":
			continue
		case "..":
			done = path.Dir(done)
			continue
		}
		next := path.Join(done, part)
		st, err := root.Lstat(next)
		if err != nil || st.Mode()&fs.ModeSymlink == 0 {
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return "", err
			}
			done = next
			continue
		}
		if links++; links > maxLinks {
			return "", spec.Invalidf("/%s leads through too many symbolic links", name)
		}
		to, err := root.Readlink(next)
		if err != nil {
			return "", err
		}
		if path.IsAbs(to) {
			done = "."
		}
		// Not cleaned: ".." means the parent of what a link before it leads to.
		rest = to + "/" + rest
	}
	return done, nil
}

// maxDatabase bounds /etc/passwd and /etc/group of images in bytes.
const maxDatabase = 4 << 20

// readDatabase reads a file of the image; one that is absent is empty.
func readDatabase(root *os.Root, name string) ([]byte, error) {
	p, err := resolve(root, name)
	if err != nil {
		return nil, fmt.Errorf("read /%s of the image: %w", name, err)
	}
	st, err := root.Lstat(p)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read /%s of the image: %w", name, err)
	}
	if !st.Mode().IsRegular() {
		return nil, nil
	}
	if st.Size() > maxDatabase {
		return nil, spec.Invalidf("/%s of the image is larger than %d MiB", name, maxDatabase>>20)
	}
	f, err := root.Open(p)
	if err != nil {
		return nil, fmt.Errorf("read /%s of the image: %w", name, err)
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxDatabase))
}
