package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"wherry.dev/spec"
)

// volumes owns DataDir/volumes. An instance is the folder ID with the data in
// ID/_data; it is built as .new-ID and renamed, so that what exists is
// complete, and renamed to .gone-ID before it is deleted.
type volumes struct {
	dir    string
	effect func(op string)

	mu    sync.Mutex
	locks map[spec.VolumeID]chan struct{} // :: a token while nobody works on it
}

func newVolumes(dir string, effect func(op string)) *volumes {
	return &volumes{dir: dir, effect: effect, locks: map[spec.VolumeID]chan struct{}{}}
}

// lock makes the caller the only one to work on volume id.
func (v *volumes) lock(ctx context.Context, id spec.VolumeID) (unlock func(), err error) {
	v.mu.Lock()
	l := v.locks[id]
	if l == nil {
		l = make(chan struct{}, 1)
		l <- struct{}{}
		v.locks[id] = l
	}
	v.mu.Unlock()
	select {
	case <-l:
		return func() { l <- struct{}{} }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (v *volumes) path(id spec.VolumeID) string { return filepath.Join(v.dir, string(id)) }

// sweep finishes what a crash has interrupted; nobody may use v meanwhile.
func (v *volumes) sweep() error {
	names, err := dirNames(v.dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range names {
		if strings.HasPrefix(n, ".new-") || strings.HasPrefix(n, ".gone-") {
			errs = append(errs, removeTree(filepath.Join(v.dir, n)))
		}
	}
	return errors.Join(errs...)
}

// use makes the instance of vol present, mounted where its options ask for it,
// and returns the path of its data. seed, called only for a new instance with
// a seed, returns the files that it begins with.
func (v *volumes) use(ctx context.Context, vol spec.Volume, seed func() ([]spec.ContentFile, error)) (string, error) {
	unlock, err := v.lock(ctx, vol.ID)
	if err != nil {
		return "", err
	}
	defer unlock()
	opts, err := parseDriverOpts(vol.Spec.DriverOpts)
	if err != nil {
		return "", fmt.Errorf("volume %s: %w", vol.Name, err)
	}
	data := filepath.Join(v.path(vol.ID), "_data")
	if _, err := os.Stat(data); errors.Is(err, fs.ErrNotExist) {
		if err := v.build(vol, seed); err != nil {
			return "", fmt.Errorf("make volume %s: %w", vol.Name, err)
		}
	} else if err != nil {
		return "", fmt.Errorf("volume %s: %w", vol.Name, err)
	}
	if opts == nil {
		return data, nil
	}
	if err := opts.mount(ctx, data); err != nil {
		return "", fmt.Errorf("mount volume %s: %w", vol.Name, err)
	}
	return data, nil
}

func (v *volumes) build(vol spec.Volume, seed func() ([]spec.ContentFile, error)) error {
	var files []spec.ContentFile
	if vol.Spec.Seed != "" {
		var err error
		if files, err = seed(); err != nil {
			return err
		}
	}
	tmp := filepath.Join(v.dir, ".new-"+string(vol.ID))
	if err := removeTree(tmp); err != nil {
		return err
	}
	data := filepath.Join(tmp, "_data")
	if err := os.MkdirAll(tmp, 0o700); err != nil {
		return err
	}
	v.effect("volume folder")
	if len(files) > 0 && files[0].Path == "." && !files[0].Dir {
		return spec.Invalidf("its seed is a file, not a folder")
	}
	if err := os.Mkdir(data, 0o755); err != nil {
		return err
	}
	if err := writeContent(data, files, owner{}, true); err != nil {
		return err
	}
	v.effect("volume seed")
	if err := syncDir(tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, v.path(vol.ID)); err != nil {
		return err
	}
	v.effect("volume")
	return syncDir(v.dir)
}

// release unmounts an instance that no task uses any more.
func (v *volumes) release(ctx context.Context, id spec.VolumeID) error {
	unlock, err := v.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	return unmountAll(filepath.Join(v.path(id), "_data"))
}

// remove deletes the data of an instance that no task uses. What was mounted
// on it is unmounted, not deleted. An instance that does not exist is gone.
func (v *volumes) remove(ctx context.Context, id spec.VolumeID) error {
	unlock, err := v.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if err := unmountAll(filepath.Join(v.path(id), "_data")); err != nil {
		return err
	}
	gone := filepath.Join(v.dir, ".gone-"+string(id))
	if err := removeTree(gone); err != nil {
		return err
	}
	if err := os.Rename(v.path(id), gone); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove volume %s: %w", id, err)
	}
	v.effect("volume gone")
	return removeTree(gone)
}

// subpath returns the path of a folder or file inside a volume. What leads out
// of the volume, also by a link, is of class spec.ErrInvalid.
func subpath(data, sub string) (string, error) {
	if sub == "" {
		return data, nil
	}
	if !filepath.IsLocal(sub) {
		return "", spec.Invalidf("subpath %q leaves its volume", sub)
	}
	root, err := os.OpenRoot(data)
	if err != nil {
		return "", fmt.Errorf("open volume: %w", err)
	}
	defer root.Close()
	if _, err := root.Stat(sub); errors.Is(err, fs.ErrNotExist) {
		return "", spec.NotFoundf("subpath %q does not exist in its volume; make it first, or mount the whole volume", sub)
	} else if err != nil {
		return "", spec.Invalidf("subpath %q leaves its volume or cannot be read: %v", sub, err)
	}
	// The mount follows links by itself, so it gets a path without any.
	real, err := filepath.EvalSymlinks(filepath.Join(data, sub))
	if err != nil {
		return "", fmt.Errorf("subpath %q: %w", sub, err)
	}
	base, err := filepath.EvalSymlinks(data)
	if err != nil {
		return "", fmt.Errorf("subpath %q: %w", sub, err)
	}
	if real != base && !strings.HasPrefix(real, base+string(filepath.Separator)) {
		return "", spec.Invalidf("subpath %q leaves its volume", sub)
	}
	return real, nil
}

// removeTree deletes a folder, unless something is mounted in it: that would
// be deleted as well, perhaps on another host.
func removeTree(path string) error {
	inside, err := mountsUnder(path)
	if err != nil {
		return err
	}
	if len(inside) > 0 {
		return fmt.Errorf("remove %s: %s is mounted in it; unmount that first", path, inside[len(inside)-1])
	}
	if err := os.RemoveAll(path); err != nil {
		return fmt.Errorf("remove folder: %w", err)
	}
	return nil
}
