package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"wherry.dev/spec"
)

// contents owns DataDir/contents: one folder per content, with its file or its
// tree as "root". A folder that exists is complete.
type contents struct {
	dir    string
	fetch  func(ctx context.Context, id spec.ContentID) ([]byte, error)
	effect func(op string)
	// sealed: it is for secrets, and for nothing else.
	sealed bool

	mu    sync.Mutex
	locks map[spec.ContentID]chan struct{} // :: a token while nobody works on it
}

func newContents(dir string, fetch func(context.Context, spec.ContentID) ([]byte, error), effect func(op string)) *contents {
	return &contents{dir: dir, fetch: fetch, effect: effect, locks: map[spec.ContentID]chan struct{}{}}
}

// contentDir is the name of a content's folder: mount tools take a colon for a
// separator.
func contentDir(id spec.ContentID) string { return strings.ReplaceAll(string(id), ":", "-") }

// get returns the bytes of a content, checked as far as a node can.
func (c *contents) get(ctx context.Context, id spec.ContentID) ([]spec.ContentFile, error) {
	b, err := c.fetch(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("fetch content %s: %w", id, err)
	}
	if strings.HasPrefix(string(id), "sha256:") && spec.PlainContentID(b) != id {
		return nil, fmt.Errorf("fetch content %s: the bytes that came have another hash", id)
	}
	files, err := spec.UnpackContent(b)
	if err != nil {
		return nil, fmt.Errorf("unpack content %s: %w", id, err)
	}
	return files, nil
}

// ensure returns the path of a content's file or tree, fetching it when it is
// not there.
func (c *contents) ensure(ctx context.Context, id spec.ContentID) (string, error) {
	c.mu.Lock()
	l := c.locks[id]
	if l == nil {
		l = make(chan struct{}, 1)
		l <- struct{}{}
		c.locks[id] = l
	}
	c.mu.Unlock()
	select {
	case <-l:
		defer func() { l <- struct{}{} }()
	case <-ctx.Done():
		return "", ctx.Err()
	}
	if id == "" || id.Sealed() != c.sealed {
		return "", spec.Invalidf("content %s does not belong to this place", id.Short())
	}
	dir := filepath.Join(c.dir, contentDir(id))
	if _, err := os.Stat(dir); err == nil {
		return filepath.Join(dir, "root"), nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("content %s: %w", id, err)
	}
	files, err := c.get(ctx, id)
	if err != nil {
		return "", err
	}
	tmp := filepath.Join(c.dir, ".new-"+contentDir(id))
	if err := errors.Join(os.RemoveAll(tmp), os.Mkdir(tmp, 0o700)); err != nil {
		return "", fmt.Errorf("write content %s: %w", id, err)
	}
	if err := writeContent(filepath.Join(tmp, "root"), files, owner{}, true); err != nil {
		return "", fmt.Errorf("write content %s: %w", id, err)
	}
	c.effect("content files")
	if err := errors.Join(syncDir(tmp), os.Rename(tmp, dir), syncDir(c.dir)); err != nil {
		return "", fmt.Errorf("write content %s: %w", id, err)
	}
	c.effect("content")
	return filepath.Join(dir, "root"), nil
}

// sweep removes the contents that keep does not name.
func (c *contents) sweep(keep map[spec.ContentID]bool) error {
	names, err := dirNames(c.dir)
	if err != nil {
		return err
	}
	kept := map[string]bool{} // :: name of a folder
	for id := range keep {
		kept[contentDir(id)] = true
	}
	var errs []error
	for _, n := range names {
		if !kept[strings.TrimPrefix(n, ".new-")] {
			errs = append(errs, os.RemoveAll(filepath.Join(c.dir, n)))
		}
	}
	return errors.Join(errs...)
}

// owner overrides whose the files of a content are; nil fields keep what the
// content says, which is owner 0.
type owner struct{ uid, gid, mode *uint32 }

func (o owner) empty() bool { return o.uid == nil && o.gid == nil && o.mode == nil }

// writeContent writes files at path, which becomes a file when the content is
// one. A folder that exists is filled. Contents never leave it: UnpackContent
// has checked their names, and os.Root does so again for links.
func writeContent(path string, files []spec.ContentFile, o owner, sync bool) error {
	// A folder comes before what it holds, and "." before all.
	sorted := slices.SortedFunc(slices.Values(files), func(a, b spec.ContentFile) int { return cmp.Compare(a.Path, b.Path) })
	if len(sorted) == 1 && sorted[0].Path == "." && !sorted[0].Dir && sorted[0].Link == "" {
		dir, name := filepath.Split(path)
		root, err := os.OpenRoot(dir)
		if err != nil {
			return err
		}
		defer root.Close()
		return writeContentFile(root, name, sorted[0], o, sync)
	}
	if err := os.Mkdir(path, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, f := range sorted {
		if f.Path != "." {
			if err := root.MkdirAll(filepath.Dir(f.Path), 0o755); err != nil {
				return err
			}
		}
		if err := writeContentFile(root, f.Path, f, o, sync); err != nil {
			return err
		}
	}
	if !slices.ContainsFunc(sorted, func(f spec.ContentFile) bool { return f.Path == "." }) && !o.empty() {
		return o.apply(root, ".", spec.ContentFile{Dir: true, Mode: 0o755})
	}
	return nil
}

func writeContentFile(root *os.Root, name string, f spec.ContentFile, o owner, sync bool) error {
	switch {
	case f.Dir:
		if name != "." {
			if err := root.Mkdir(name, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
		}
	case f.Link != "":
		return root.Symlink(f.Link, name)
	default:
		w, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = w.Write(f.Data)
		if sync && err == nil {
			err = w.Sync()
		}
		if err := errors.Join(err, w.Close()); err != nil {
			return err
		}
	}
	return o.apply(root, name, f)
}

// apply sets owner and mode; a folder gets the right to be walked through
// wherever the mode gives the right to read.
func (o owner) apply(root *os.Root, name string, f spec.ContentFile) error {
	mode := f.Mode & 0o7777
	if o.mode != nil {
		mode = *o.mode & 0o7777
		if f.Dir {
			mode |= mode & 0o444 >> 2
		}
	}
	if o.uid != nil || o.gid != nil {
		uid, gid := -1, -1
		if o.uid != nil {
			uid = int(*o.uid)
		}
		if o.gid != nil {
			gid = int(*o.gid)
		}
		if err := root.Chown(name, uid, gid); err != nil {
			return err
		}
	}
	return root.Chmod(name, fileMode(mode))
}

// fileMode translates the twelve bits of chmod(2).
func fileMode(m uint32) fs.FileMode {
	out := fs.FileMode(m & 0o777)
	if m&0o4000 != 0 {
		out |= fs.ModeSetuid
	}
	if m&0o2000 != 0 {
		out |= fs.ModeSetgid
	}
	if m&0o1000 != 0 {
		out |= fs.ModeSticky
	}
	return out
}
