package compose

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"wherry.dev/spec"
)

// maxEntries is how many files and folders one content may have.
const maxEntries = 4096

var errTooLarge = errors.New("too large")

// exists reports whether there is anything at name.
func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// decideBind looks at the path of a relative bind. A file, and a folder that
// nobody writes to, travels as content; everything else becomes a volume of
// the stack.
func (c *conversion) decideBind(b *relativeBind) {
	info, err := os.Stat(b.abs)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		c.bindVolume(b, "does not exist: it becomes the empty volume %s")
		if strings.Contains(filepath.Base(b.name), ".") && !strings.HasPrefix(filepath.Base(b.name), ".") {
			b.note += ", a folder, as Compose would make one; create the file if it is meant to be one"
		}
	case err != nil:
		b.refusal = fmt.Sprintf("the path %s cannot be read: %s", b.name, reason(err))
	case !info.IsDir() && !info.Mode().IsRegular():
		b.refusal = fmt.Sprintf("%s is neither a file nor a folder", b.name)
		b.hint = "bind an absolute path of the nodes"
	default:
		c.packBind(b, info.IsDir())
	}
}

func (c *conversion) packBind(b *relativeBind, dir bool) {
	files, size, err := readContent(b.abs)
	if errors.Is(err, errTooLarge) {
		b.refusal = fmt.Sprintf("%s is larger than %d KiB, too large to travel with the stack", b.name, spec.MaxContent>>10)
		b.hint = "put the files into the image, use a named volume, bind an absolute path that the nodes have, or use the folder where it lies by x-wherry: {pin: NODE}"
		return
	}
	if err == nil && dir && len(files) == 1 {
		c.bindVolume(b, "is empty: it becomes the volume %s")
		return
	}
	if err == nil {
		b.content, err = c.pack(files)
	}
	if err != nil {
		b.refusal = fmt.Sprintf("the files of %s cannot travel with the stack: %v", b.name, err)
		b.hint = "bind an absolute path that the nodes have, or use a volume"
		return
	}
	if dir && b.writers {
		c.bindVolume(b, fmt.Sprintf("(%s) is copied once into the volume %%s, where services write to it", sizeText(size)))
		return
	}
	b.note = fmt.Sprintf("%s (%s) travels with the stack as read-only content", b.name, sizeText(size))
}

func (c *conversion) bindVolume(b *relativeBind, how string) {
	b.volume = bindVolumeName(b.name)
	b.note = b.name + " " + fmt.Sprintf(how, b.volume)
}

func sizeText(n int) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d bytes", n)
	}
	return fmt.Sprintf("%d KiB", (n+1<<10-1)>>10)
}

// pack keeps a content and returns its ID.
func (c *conversion) pack(files []spec.ContentFile) (spec.ContentID, error) {
	b, err := spec.PackContent(files)
	if err != nil {
		return "", err
	}
	id := spec.PlainContentID(b)
	c.contents[id] = b
	return id, nil
}

// readContent reads a file, or a folder with everything below. Symbolic links
// inside a folder stay links. The size is that of the data alone.
func readContent(root string) (files []spec.ContentFile, size int, err error) {
	if root, err = filepath.EvalSymlinks(root); err != nil {
		return nil, 0, err
	}
	err = filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return fmt.Errorf("%s: %s", name, reason(err))
		}
		if len(files) >= maxEntries {
			return errTooLarge
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		f, err := readEntry(name, d)
		if err != nil {
			return err
		}
		f.Path = filepath.ToSlash(rel)
		if size += len(f.Data); size > spec.MaxContent {
			return errTooLarge
		}
		files = append(files, f)
		return nil
	})
	return files, size, err
}

func readEntry(name string, d fs.DirEntry) (spec.ContentFile, error) {
	info, err := d.Info()
	if err != nil {
		return spec.ContentFile{}, fmt.Errorf("%s: %s", name, reason(err))
	}
	f := spec.ContentFile{Mode: uint32(info.Mode().Perm()), Dir: d.IsDir()}
	switch {
	case d.IsDir():
	case info.Mode()&fs.ModeSymlink != 0:
		f.Mode = 0o777
		if f.Link, err = os.Readlink(name); err != nil {
			return f, fmt.Errorf("%s: %s", name, reason(err))
		}
	case !info.Mode().IsRegular():
		return f, spec.Invalidf("%s is neither a file nor a folder", name)
	case info.Size() > spec.MaxContent:
		return f, errTooLarge
	default:
		if f.Data, err = os.ReadFile(name); err != nil {
			return f, fmt.Errorf("%s: %s", name, reason(err))
		}
	}
	return f, nil
}
