package agent

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

// The archive of a volume is what `tar --zstd` reads: names begin with "./",
// owners are numbers, extended attributes are PAX records. Zstandard's
// checksums tell a whole archive from one that was cut off.

// xattrRecord begins the PAX records of extended attributes.
const xattrRecord = "SCHILY.xattr."

// inode names a file whatever it is called.
type inode struct{ dev, ino uint64 }

// writeArchive writes all that is in the folder root, but for sockets, which
// mean nothing without the process that made them. What vanishes or grows
// meanwhile is left out or cut: who wants more has nobody write.
func writeArchive(ctx context.Context, w io.Writer, root string) error {
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1))
	if err != nil {
		return fmt.Errorf("compress: %w", err)
	}
	defer z.Close()
	t := tar.NewWriter(z)
	seen := map[inode]string{}
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && p != root {
			return nil
		}
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		err = writeEntry(t, p, rel, seen)
		if errors.Is(err, fs.ErrNotExist) && p != root {
			return nil
		}
		return err
	})
	if err == nil {
		err = t.Close()
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		return fmt.Errorf("write archive: %w", err)
	}
	return nil
}

func writeEntry(t *tar.Writer, p, rel string, seen map[inode]string) error {
	info, err := os.Lstat(p)
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSocket != 0 {
		return nil
	}
	var f *os.File
	link := ""
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		if link, err = os.Readlink(p); err != nil {
			return err
		}
	case info.Mode().IsRegular():
		// A link that took the file's place must not lead out of the volume.
		if f, err = os.OpenFile(p, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0); err != nil {
			return err
		}
		defer f.Close()
		if info, err = f.Stat(); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	h.Format, h.Uname, h.Gname = tar.FormatPAX, "", ""
	h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
	h.Name = "./" + filepath.ToSlash(rel)
	if rel == "." {
		h.Name = "./"
	} else if info.IsDir() {
		h.Name += "/"
	}
	if h.PAXRecords, err = readXattrs(p); err != nil {
		return err
	}
	if f != nil {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			return fmt.Errorf("look at %s: %w", rel, err)
		}
		id := inode{uint64(st.Dev), st.Ino}
		if first := seen[id]; first != "" {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return t.WriteHeader(h)
		}
		if st.Nlink > 1 {
			seen[id] = h.Name
		}
	}
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	if f == nil {
		return nil
	}
	n, err := io.Copy(t, io.LimitReader(f, h.Size))
	if err != nil {
		return fmt.Errorf("read %s: %w", rel, err)
	}
	if n < h.Size { // it became shorter; the header is out already
		_, err = io.CopyN(t, zeros{}, h.Size-n)
	}
	return err
}

// zeros is an endless source of zero bytes.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

func readXattrs(p string) (map[string]string, error) {
	size, err := unix.Llistxattr(p, nil)
	if errors.Is(err, unix.ENOTSUP) || err == nil && size == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, &fs.PathError{Op: "list attributes of", Path: p, Err: err}
	}
	names := make([]byte, size)
	if size, err = unix.Llistxattr(p, names); err != nil {
		return nil, &fs.PathError{Op: "list attributes of", Path: p, Err: err}
	}
	out := map[string]string{}
	for name := range strings.SplitSeq(strings.Trim(string(names[:size]), "\x00"), "\x00") {
		n, err := unix.Lgetxattr(p, name, nil)
		if err != nil {
			continue // it was taken away meanwhile
		}
		value := make([]byte, n)
		if n, err = unix.Lgetxattr(p, name, value); err == nil {
			out[xattrRecord+name] = string(value[:n])
		}
	}
	return out, nil
}

// readArchive makes in the empty folder root what the archive holds, and fails
// when that is not whole. Nothing is made outside of root, whatever the archive
// says. Errors in the archive are of class spec.ErrInvalid.
func readArchive(ctx context.Context, r io.Reader, root string) error {
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
	if err != nil {
		return spec.Invalidf("the archive cannot be read: %v", err)
	}
	defer z.Close()
	dir, err := os.OpenRoot(root)
	if err != nil {
		return fmt.Errorf("open folder: %w", err)
	}
	defer dir.Close()
	t := tar.NewReader(z)
	times := map[string]time.Time{} // of folders, which change when something is made in them
	var folders []string
	for n := 0; ; n++ {
		h, err := t.Next()
		if errors.Is(err, io.EOF) && n == 0 {
			err = io.ErrUnexpectedEOF // the folder itself is always there
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return archiveError(ctx, err)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		name := path.Clean(strings.TrimPrefix(h.Name, "/"))
		if !filepath.IsLocal(name) {
			return spec.Invalidf("the archive has %q, which is outside of the volume", h.Name)
		}
		if err := makeEntry(dir, name, h, t); err != nil {
			var in *inputError
			if errors.As(err, &in) {
				return archiveError(ctx, in.error)
			}
			return fmt.Errorf("restore %s: %w", name, err)
		}
		if h.Typeflag == tar.TypeDir {
			folders = append(folders, name)
			times[name] = h.ModTime
		}
	}
	// What is behind the end of the archive has to be there, too: the checksum.
	if _, err := io.Copy(io.Discard, z); err != nil {
		return archiveError(ctx, err)
	}
	for i := len(folders) - 1; i >= 0; i-- {
		if err := dir.Chtimes(folders[i], times[folders[i]], times[folders[i]]); err != nil {
			return fmt.Errorf("restore %s: %w", folders[i], err)
		}
	}
	return nil
}

// inputError is an error in reading the archive, not in writing the files.
type inputError struct{ error }

func archiveError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return spec.Invalidf("the archive is damaged, or not one of tar and zstd: %v", err)
}

func makeEntry(dir *os.Root, name string, h *tar.Header, content io.Reader) error {
	if parent := path.Dir(name); parent != "." {
		if err := dir.MkdirAll(parent, 0o755); err != nil {
			return err
		}
	}
	mode := fs.FileMode(h.Mode) & fs.ModePerm
	switch h.Typeflag {
	case tar.TypeDir:
		if err := dir.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	case tar.TypeReg:
		f, err := dir.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		err = copyContent(f, content)
		if err == nil {
			err = setXattrs(int(f.Fd()), h.PAXRecords)
		}
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	case tar.TypeLink:
		target := path.Clean(strings.TrimPrefix(h.Linkname, "/"))
		if !filepath.IsLocal(target) {
			return spec.Invalidf("it is a link to %q, which is outside of the volume", h.Linkname)
		}
		return dir.Link(target, name) // it has mode and owner from the first
	case tar.TypeSymlink:
		if err := dir.Symlink(h.Linkname, name); err != nil {
			return err
		}
		return dir.Lchown(name, h.Uid, h.Gid)
	case tar.TypeFifo, tar.TypeChar, tar.TypeBlock:
		if err := makeNode(dir, name, h); err != nil {
			return err
		}
	default:
		return spec.Invalidf("it is of a kind %q that no volume has", string(h.Typeflag))
	}
	if err := dir.Lchown(name, h.Uid, h.Gid); err != nil {
		return err
	}
	// Only now: a change of the owner takes these bits away.
	for bit, m := range map[int64]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if h.Mode&bit != 0 {
			mode |= m
		}
	}
	if err := dir.Chmod(name, mode); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		f, err := dir.Open(name)
		if err != nil {
			return err
		}
		return errors.Join(setXattrs(int(f.Fd()), h.PAXRecords), f.Close())
	}
	return dir.Chtimes(name, h.ModTime, h.ModTime)
}

func copyContent(f *os.File, content io.Reader) error {
	b := make([]byte, 128<<10)
	for {
		n, err := content.Read(b)
		if n > 0 {
			if _, err := f.Write(b[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return &inputError{err}
		}
	}
}

// makeNode makes a FIFO or a device in its parent folder.
func makeNode(dir *os.Root, name string, h *tar.Header) error {
	parent, err := dir.Open(path.Dir(name))
	if err != nil {
		return err
	}
	defer parent.Close()
	kind := map[byte]uint32{tar.TypeFifo: unix.S_IFIFO, tar.TypeChar: unix.S_IFCHR, tar.TypeBlock: unix.S_IFBLK}[h.Typeflag]
	if err := unix.Mknodat(int(parent.Fd()), path.Base(name), kind|0o600, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))); err != nil {
		return fmt.Errorf("make node: %w", err)
	}
	return nil
}

func setXattrs(fd int, records map[string]string) error {
	for k, v := range records { // any order does
		name, ok := strings.CutPrefix(k, xattrRecord)
		if !ok {
			continue
		}
		if err := unix.Fsetxattr(fd, name, []byte(v), 0); err != nil {
			return fmt.Errorf("set attribute %s: %w", name, err)
		}
	}
	return nil
}

// treeSize adds up what a folder takes on its disk, and counts what is in it.
func treeSize(ctx context.Context, root string) (bytes, files int64, err error) {
	seen := map[inode]bool{}
	err = filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && p != root {
			return nil
		}
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			if errors.Is(err, unix.ENOENT) && p != root {
				return nil
			}
			return &fs.PathError{Op: "look at", Path: p, Err: err}
		}
		if p != root {
			files++
		}
		if id := (inode{uint64(st.Dev), st.Ino}); !seen[id] {
			if st.Nlink > 1 {
				seen[id] = true
			}
			bytes += st.Blocks * 512
		}
		return nil
	})
	return bytes, files, err
}
