package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

const (
	// fetchIdle is how long the other node may send nothing.
	fetchIdle = 30 * time.Second
	// fetchRetry is the time between a fetch that failed and the next.
	fetchRetry = 5 * time.Second
	// movedName is the file beside the data of an instance that says which move
	// has brought it.
	movedName = "move"
)

// VolumeSize is what an instance of a volume takes on this node: bytes of disk,
// and the number of files and folders. One that does not exist takes nothing.
func (a *Agent) VolumeSize(ctx context.Context, id spec.VolumeID) (bytes, files int64, err error) {
	if !safeName(string(id)) {
		return 0, 0, spec.Invalidf("%q is not the ID of a volume", id)
	}
	bytes, files, err = treeSize(ctx, a.vols.data(id))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, 0, nil
	}
	return bytes, files, err
}

// ExportVolume writes an archive of the instance of a volume. While tasks write
// to it, every file is as it was when it was read.
func (a *Agent) ExportVolume(ctx context.Context, id spec.VolumeID, w io.Writer) error {
	if !safeName(string(id)) {
		return spec.Invalidf("%q is not the ID of a volume", id)
	}
	if _, err := os.Stat(a.vols.data(id)); errors.Is(err, fs.ErrNotExist) {
		return spec.NotFoundf("the volume has no data on this node yet")
	}
	return writeArchive(ctx, w, a.vols.data(id))
}

// ImportVolume replaces all that is in the instance of a volume by what an
// archive holds, at once when that is complete; before, everything is as it
// was. A volume that a task of this node uses is of class spec.ErrConflict.
func (a *Agent) ImportVolume(ctx context.Context, id spec.VolumeID, r io.Reader) error {
	if !safeName(string(id)) {
		return spec.Invalidf("%q is not the ID of a volume", id)
	}
	return a.vols.replace(ctx, id, 0, r, func() error {
		if a.volumeUsed(id, "") {
			return spec.Conflictf("a task uses the volume: stop it first")
		}
		return nil
	})
}

// GiveVolume writes an archive of an instance to the node that it is to be moved
// to, as the managers have said it. Others are of class spec.ErrConflict.
func (a *Agent) GiveVolume(ctx context.Context, id spec.VolumeID, peer spec.NodeID, w io.Writer) error {
	gives := func() error {
		switch want, heard := a.current(); {
		case !heard || !slices.ContainsFunc(want.GiveVolumes, func(t spec.VolumeTransfer) bool { return t.Volume == id && t.Peer == peer }):
			return spec.Conflictf("the managers have not told this node to give volume %s to node %s", id, peer)
		case a.volumeUsed(id, ""):
			return spec.Conflictf("a task still uses volume %s", id)
		}
		return nil
	}
	if err := gives(); err != nil {
		return err
	}
	unlock, err := a.vols.lock(ctx, id) // nobody mounts or removes it meanwhile
	if err != nil {
		return err
	}
	defer unlock()
	if err := gives(); err != nil {
		return err
	}
	if _, err := os.Stat(a.vols.data(id)); errors.Is(err, fs.ErrNotExist) {
		// Its home never had a task that used it: the move is one of nothing.
		if err := a.vols.buildEmpty(id); err != nil {
			return err
		}
	}
	return writeArchive(ctx, writerFunc(func(b []byte) (int, error) {
		if err := gives(); err != nil { // it was taken back, and its users wait
			return 0, err
		}
		return w.Write(b)
	}), a.vols.data(id))
}

// fetchVolumes copies the instances that the managers name to this node, and
// tells once of each.
func (a *Agent) fetchVolumes(ctx context.Context, w *spec.Wanted) {
	if _, heard := a.current(); !heard || a.c.Fetch == nil {
		return // the move may be over by now
	}
	a.mu.Lock()
	for move := range a.volMoved {
		if !slices.Contains(w.FetchVolumes, move) {
			delete(a.volMoved, move)
		}
	}
	a.mu.Unlock()
	for _, tr := range w.FetchVolumes {
		a.mu.Lock()
		next, tried := a.volMoved[tr]
		a.mu.Unlock()
		if tried && (next.IsZero() || time.Now().Before(next)) || !safeName(string(tr.Volume)) || a.volumeUsed(tr.Volume, "") {
			continue
		}
		a.laterWithin(ctx, 0, "volume "+string(tr.Volume), func(ctx context.Context) error {
			err := a.fetchVolume(ctx, tr)
			f := spec.VolumeFetched{Volume: tr.Volume, Move: tr.Move}
			again := time.Time{}
			if err != nil {
				f.Problem, again = err.Error(), time.Now().Add(fetchRetry)
			}
			if ctx.Err() != nil || !a.fetches(tr) {
				return nil // nobody wants to know
			}
			a.mu.Lock()
			a.volMoved[tr] = again
			a.mu.Unlock()
			if err == nil {
				a.log.Info("volume fetched", "volume", tr.Name, "from", tr.Peer)
			}
			a.report.volumeFetched(f)
			return err
		})
	}
}

// fetches reports whether a transfer is still wanted.
func (a *Agent) fetches(tr spec.VolumeTransfer) bool {
	w, _ := a.current()
	return slices.Contains(w.FetchVolumes, tr)
}

func (a *Agent) fetchVolume(ctx context.Context, tr spec.VolumeTransfer) error {
	if a.vols.movedBy(tr.Volume) == tr.Move {
		return nil // a life of this agent before has done it
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	idle := time.AfterFunc(fetchIdle, func() { cancel(fmt.Errorf("the other node has sent nothing for %s", fetchIdle)) })
	defer idle.Stop()
	body, err := a.c.Fetch(ctx, tr)
	if err != nil {
		return err
	}
	defer body.Close()
	unused := func() error {
		if a.volumeUsed(tr.Volume, "") {
			return spec.Conflictf("a task uses the volume")
		}
		return nil
	}
	return a.vols.replace(ctx, tr.Volume, tr.Move, readerFunc(func(b []byte) (int, error) {
		if !a.fetches(tr) {
			return 0, errors.New("the move was taken back")
		}
		n, err := body.Read(b)
		idle.Reset(fetchIdle)
		return n, err
	}), unused)
}

type readerFunc func(b []byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

type writerFunc func(b []byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

func (v *volumes) data(id spec.VolumeID) string { return filepath.Join(v.path(id), "_data") }

// movedBy is the move that has brought an instance; 0 for none.
func (v *volumes) movedBy(id spec.VolumeID) uint64 {
	b, err := os.ReadFile(filepath.Join(v.path(id), movedName))
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// buildEmpty makes an instance without anything in it; the caller has the lock.
func (v *volumes) buildEmpty(id spec.VolumeID) error {
	if err := v.build(spec.Volume{ID: id}, nil); err != nil {
		return fmt.Errorf("make volume: %w", err)
	}
	return nil
}

// replace puts what an archive holds in the place of an instance, or makes one
// of it. The change is one step: whenever the host dies, the instance is the
// old one or the new one, whole. free is asked under the lock of the instance,
// first and last.
func (v *volumes) replace(ctx context.Context, id spec.VolumeID, move uint64, r io.Reader, free func() error) error {
	unlock, err := v.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if err := free(); err != nil {
		return err
	}
	if mounted, err := isMountPoint(v.data(id)); err != nil || mounted {
		return errors.Join(err, spec.Conflictf("the volume is a mount on this node; write to what is mounted"))
	}
	tmp := filepath.Join(v.dir, ".new-"+string(id))
	defer removeTree(tmp)
	if err := removeTree(tmp); err != nil {
		return err
	}
	data := filepath.Join(tmp, "_data")
	if err := errors.Join(os.Mkdir(tmp, 0o700), os.Mkdir(data, 0o755)); err != nil {
		return fmt.Errorf("make volume: %w", err)
	}
	v.effect("volume folder")
	if err := readArchive(ctx, r, data); err != nil {
		return err
	}
	if move != 0 {
		if err := os.WriteFile(filepath.Join(tmp, movedName), []byte(strconv.FormatUint(move, 10)+"\n"), 0o600); err != nil {
			return fmt.Errorf("make volume: %w", err)
		}
	}
	if err := syncFilesystem(tmp); err != nil {
		return err
	}
	if err := free(); err != nil {
		return err
	}
	v.effect("volume data")
	err = unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, v.path(id), unix.RENAME_EXCHANGE)
	if errors.Is(err, unix.ENOENT) {
		err = os.Rename(tmp, v.path(id))
	}
	if err != nil {
		return fmt.Errorf("put the new data in place: %w", err)
	}
	v.effect("volume")
	return syncDir(v.dir)
}

// syncFilesystem returns when all that was written to the file system of path is
// on its disk.
func syncFilesystem(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return fmt.Errorf("sync: %w", err)
	}
	return nil
}
