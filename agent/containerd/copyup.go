package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"wherry.dev/agent"
)

// copyMark lies in a volume while it is being filled, so that a copy that was
// cut short is begun anew. No container has seen the volume by then.
const copyMark = ".wherry-filling"

// copyUp fills those of the mounts' sources that are to be filled from the
// image and are empty.
func (r *Runtime) copyUp(ctx context.Context, mounts []agent.Mount, img *image) error {
	var fill []agent.Mount
	for _, m := range mounts {
		if !m.CopyUp || m.Tmpfs {
			continue
		}
		release, err := r.lockSource(ctx, m.Source)
		if err != nil {
			return err
		}
		defer release()
		if empty, err := fillable(m.Source); err != nil {
			return fmt.Errorf("look at volume for %s: %w", m.Target, err)
		} else if empty {
			fill = append(fill, m)
		}
	}
	if len(fill) == 0 {
		return nil
	}
	return r.view(ctx, img.chain, func(root *os.Root) error {
		for _, m := range fill {
			if err := fillVolume(ctx, root, m.Target, m.Source); err != nil {
				return fmt.Errorf("fill volume from %s of the image: %w", m.Target, err)
			}
		}
		return nil
	})
}

// lockSource keeps two containers from filling one volume at a time.
func (r *Runtime) lockSource(ctx context.Context, source string) (release func(), err error) {
	for {
		r.mu.Lock()
		busy := r.copying[source]
		if busy == nil {
			done := make(chan struct{})
			r.copying[source] = done
			r.mu.Unlock()
			return func() {
				r.mu.Lock()
				delete(r.copying, source)
				r.mu.Unlock()
				close(done)
			}, nil
		}
		r.mu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// fillable reports whether a folder is empty or half filled by us.
func fillable(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		if e.Name() == copyMark {
			return true, nil
		}
	}
	// Volumes that are file systems of their own are born with this folder.
	entries = slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return e.Name() == "lost+found" })
	return len(entries) == 0, nil
}

// fillVolume copies the folder target of the image into the folder dir. When
// the image has no such folder, nothing is to be copied.
func fillVolume(ctx context.Context, image *os.Root, target, dir string) error {
	from, err := resolve(image, target)
	if err != nil {
		return err
	}
	st, err := image.Lstat(from)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !st.IsDir() {
		return nil
	}
	if err != nil {
		return err
	}
	src, err := image.OpenRoot(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer dst.Close()
	mark, err := dst.OpenFile(copyMark, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := mark.Close(); err != nil {
		return err
	}
	if err := clearFolder(dst); err != nil {
		return err
	}
	c := copier{src: src, dst: dst, linked: map[[2]uint64]string{}}
	err = fs.WalkDir(src.FS(), ".", func(p string, _ fs.DirEntry, err error) error {
		if err := errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		return c.copy(p)
	})
	if err != nil {
		return err
	}
	// Times of folders last: making their entries has changed them.
	for _, p := range slices.Backward(c.folders) {
		if err := c.times(p); err != nil {
			return err
		}
	}
	if err := dst.Remove(copyMark); err != nil {
		return err
	}
	return c.times(".")
}

func clearFolder(dst *os.Root) error {
	entries, err := fs.ReadDir(dst.FS(), ".")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == copyMark || e.Name() == "lost+found" {
			continue
		}
		if err := dst.RemoveAll(e.Name()); err != nil {
			return err
		}
	}
	return nil
}

// copier copies entries from one root to another, and never follows a link.
type copier struct {
	src, dst *os.Root
	folders  []string
	// linked maps device and inode of files with several names to the first copy.
	linked map[[2]uint64]string
}

func (c *copier) copy(p string) error {
	info, err := c.src.Lstat(p)
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("no owner of %s", p)
	}
	switch mode := info.Mode(); {
	case mode.IsDir():
		c.folders = append(c.folders, p)
		if p != "." {
			if err := c.dst.Mkdir(p, 0o700); err != nil {
				return err
			}
		}
	case mode&fs.ModeSymlink != 0:
		to, err := c.src.Readlink(p)
		if err != nil {
			return err
		}
		if err := c.dst.Symlink(to, p); err != nil {
			return err
		}
		return c.dst.Lchown(p, int(st.Uid), int(st.Gid))
	case mode.IsRegular():
		key := [2]uint64{uint64(st.Dev), st.Ino}
		if first, ok := c.linked[key]; ok {
			return c.dst.Link(first, p)
		}
		if st.Nlink > 1 {
			c.linked[key] = p
		}
		if err := c.file(p); err != nil {
			return err
		}
	default:
		return c.special(p, st)
	}
	// The owner first: changing it takes set-user-ID bits away.
	if err := c.dst.Lchown(p, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := c.dst.Chmod(p, info.Mode()); err != nil {
		return err
	}
	if err := c.attributes(p); err != nil {
		return err
	}
	if info.Mode().IsRegular() {
		return c.times(p)
	}
	return nil
}

func (c *copier) file(p string) (err error) {
	in, err := c.src.Open(p)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := c.dst.OpenFile(p, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in)
	return err
}

// special copies pipes; sockets mean nothing without their process, and device
// nodes have no place in a volume.
func (c *copier) special(p string, st *syscall.Stat_t) error {
	if st.Mode&syscall.S_IFMT != syscall.S_IFIFO {
		return nil
	}
	dir, err := c.dst.Open(path.Dir(p))
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Mknodat(int(dir.Fd()), path.Base(p), st.Mode, 0); err != nil {
		return err
	}
	return c.dst.Lchown(p, int(st.Uid), int(st.Gid))
}

// attributes copies extended attributes, such as the capabilities of a program.
func (c *copier) attributes(p string) error {
	in, err := c.src.Open(p)
	if err != nil {
		return err
	}
	defer in.Close()
	names := make([]byte, 64<<10)
	n, err := unix.Flistxattr(int(in.Fd()), names)
	if err != nil || n == 0 {
		return nil // the file system has none
	}
	out, err := c.dst.Open(p)
	if err != nil {
		return err
	}
	defer out.Close()
	value := make([]byte, 64<<10)
	for name := range splitNul(names[:n]) {
		n, err := unix.Fgetxattr(int(in.Fd()), name, value)
		if err != nil {
			continue
		}
		if err := unix.Fsetxattr(int(out.Fd()), name, value[:n], 0); err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("set attribute %s of %s: %w", name, p, err)
		}
	}
	return nil
}

func splitNul(b []byte) func(func(string) bool) {
	return func(yield func(string) bool) {
		for len(b) > 0 {
			i := slices.Index(b, 0)
			if i < 0 {
				i = len(b)
			}
			if i > 0 && !yield(string(b[:i])) {
				return
			}
			b = b[min(i+1, len(b)):]
		}
	}
}

func (c *copier) times(p string) error {
	info, err := c.src.Lstat(p)
	if err != nil {
		return err
	}
	return c.dst.Chtimes(p, info.ModTime(), info.ModTime())
}
