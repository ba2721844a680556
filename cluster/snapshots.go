package cluster

import (
	"bufio"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"wherry.dev/cluster/ca"
)

// A snapshot is one file, named TERM-INDEX.snap, that appears under its name
// only when it is whole and durable:
//
//	magic[8] format[4] length of meta[4] salt[32] meta (JSON) sealed stream
//
// All that precedes the stream is authenticated with it.
const (
	snapMagic   = "wherrysn"
	snapFormat  = 1
	snapPrefix  = 16
	snapSalt    = 32
	snapSuffix  = ".snap"
	maxSnapMeta = 1 << 20
)

// snapshots is Raft's SnapshotStore. It keeps the newest snapshot only: the
// log behind it is gone, so an older one could not be continued from, and a
// newest one that cannot be read must stop the member instead of being passed
// over in silence.
type snapshots struct {
	dir string
	key []byte // the data key
	// taken is called with the index of each new snapshot.
	taken func(index uint64)
	// newest is what List returns; nil when there is none.
	newest atomic.Pointer[raft.SnapshotMeta]
}

func openSnapshots(dir string, key []byte, taken func(uint64)) (*snapshots, error) {
	s := &snapshots{dir: dir, key: key, taken: taken}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make snapshot folder: %w", err)
	}
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if strings.HasSuffix(name, ".tmp") { // of a writer that died
			if err := os.Remove(filepath.Join(dir, name)); err != nil {
				return nil, fmt.Errorf("remove unfinished snapshot: %w", err)
			}
			continue
		}
		meta, f, _, err := s.openFile(name)
		if err != nil {
			return nil, fmt.Errorf("open snapshot %s: %w", filepath.Join(dir, name), err)
		}
		f.Close()
		if old := s.newest.Load(); old == nil || newer(meta, old) {
			s.newest.Store(meta)
		}
	}
	return s, s.verify()
}

// verify reads the newest snapshot through, because Raft would only say that
// it could load none.
func (s *snapshots) verify() error {
	meta := s.newest.Load()
	if meta == nil {
		return nil
	}
	_, r, err := s.Open(meta.ID)
	if err != nil {
		return err
	}
	defer r.Close()
	if _, err := io.Copy(io.Discard, r); err != nil {
		return fmt.Errorf("read snapshot %s: %w: bring back a copy of the data folder", filepath.Join(s.dir, meta.ID), err)
	}
	return nil
}

func newer(a, b *raft.SnapshotMeta) bool {
	if a.Term != b.Term {
		return a.Term > b.Term
	}
	return a.Index > b.Index
}

func (s *snapshots) names() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	var names []string
	for _, e := range entries {
		if n := e.Name(); strings.HasSuffix(n, snapSuffix) || strings.HasSuffix(n, snapSuffix+".tmp") {
			names = append(names, n)
		}
	}
	return names, nil
}

// List returns the newest snapshot, or nothing.
func (s *snapshots) List() ([]*raft.SnapshotMeta, error) {
	meta := s.newest.Load()
	if meta == nil {
		return nil, nil
	}
	c := *meta
	return []*raft.SnapshotMeta{&c}, nil
}

// Open returns a snapshot's plaintext. The file may be removed meanwhile.
func (s *snapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	meta, f, head, err := s.openFile(id)
	if err != nil {
		return nil, nil, fmt.Errorf("open snapshot %s: %w", filepath.Join(s.dir, id), err)
	}
	aead, err := newSealKey(s.key, head[snapPrefix:snapPrefix+snapSalt], "snapshot")
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return meta, struct {
		io.Reader
		io.Closer
	}{newOpenReader(f, aead, head), f}, nil
}

// openFile reads the head of a snapshot; f stands behind it.
func (s *snapshots) openFile(id string) (meta *raft.SnapshotMeta, f *os.File, head []byte, err error) {
	if f, err = os.Open(filepath.Join(s.dir, filepath.Base(id))); err != nil {
		return nil, nil, nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	head = make([]byte, snapPrefix+snapSalt)
	if _, err := io.ReadFull(f, head); err != nil {
		return nil, nil, nil, err
	}
	n := binary.BigEndian.Uint32(head[12:])
	switch {
	case string(head[:8]) != snapMagic || n > maxSnapMeta:
		return nil, nil, nil, errors.New("it is not a snapshot")
	case binary.BigEndian.Uint32(head[8:]) != snapFormat:
		return nil, nil, nil, errors.New("its format is of another version of wherry")
	}
	head = append(head, make([]byte, n)...)
	if _, err := io.ReadFull(f, head[snapPrefix+snapSalt:]); err != nil {
		return nil, nil, nil, err
	}
	meta = &raft.SnapshotMeta{}
	if err := json.Unmarshal(head[snapPrefix+snapSalt:], meta); err != nil {
		return nil, nil, nil, fmt.Errorf("read its head: %w", err)
	}
	st, err := f.Stat()
	if err != nil {
		return nil, nil, nil, err
	}
	meta.ID, meta.Size = filepath.Base(id), plainSize(st.Size()-int64(len(head)))
	return meta, f, head, nil
}

// Create begins a snapshot.
func (s *snapshots) Create(v raft.SnapshotVersion, index, term uint64, c raft.Configuration, ci uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	meta := &raft.SnapshotMeta{
		Version: v, ID: fmt.Sprintf("%d-%d%s", term, index, snapSuffix),
		Index: index, Term: term, Configuration: c, ConfigurationIndex: ci,
	}
	b, err := json.Marshal(meta)
	if err != nil {
		return nil, fmt.Errorf("encode the snapshot's head: %w", err)
	}
	salt := make([]byte, snapSalt)
	rand.Read(salt)
	head := binary.BigEndian.AppendUint32([]byte(snapMagic), snapFormat)
	head = binary.BigEndian.AppendUint32(head, uint32(len(b)))
	head = append(append(head, salt...), b...)
	aead, err := newSealKey(s.key, salt, "snapshot")
	if err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(s.dir, meta.ID+".tmp"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make snapshot: %w", err)
	}
	k := &sink{s: s, meta: meta, f: f, buf: bufio.NewWriterSize(f, 1<<16), head: len(head)}
	k.w = newSealWriter(k.buf, aead, head)
	if _, err := k.buf.Write(head); err != nil {
		return nil, errors.Join(fmt.Errorf("write snapshot: %w", err), k.Cancel())
	}
	return k, nil
}

// sink is a snapshot in the making, used by one goroutine.
type sink struct {
	s    *snapshots
	meta *raft.SnapshotMeta
	f    *os.File
	buf  *bufio.Writer
	w    *sealWriter
	head int
	over bool
}

// ID returns the snapshot's name.
func (k *sink) ID() string { return k.meta.ID }

// Write adds plaintext.
func (k *sink) Write(b []byte) (int, error) { return k.w.Write(b) }

// Cancel drops the snapshot.
func (k *sink) Cancel() error {
	if k.over {
		return nil
	}
	k.over = true
	k.f.Close()
	return os.Remove(k.f.Name())
}

// Close makes the snapshot durable and removes the older ones.
func (k *sink) Close() error {
	if k.over {
		return nil
	}
	if err := k.finish(); err != nil {
		return errors.Join(fmt.Errorf("write snapshot %s: %w", k.meta.ID, err), k.Cancel())
	}
	k.over = true
	k.s.newest.Store(k.meta)
	k.s.taken(k.meta.Index)
	return k.s.removeOthers(k.meta.ID)
}

func (k *sink) finish() error {
	if err := k.w.Close(); err != nil {
		return err
	}
	if err := k.buf.Flush(); err != nil {
		return err
	}
	if err := k.f.Sync(); err != nil {
		return err
	}
	st, err := k.f.Stat()
	if err != nil {
		return err
	}
	k.meta.Size = plainSize(st.Size() - int64(k.head))
	if err := k.f.Close(); err != nil {
		return err
	}
	if err := os.Rename(k.f.Name(), filepath.Join(k.s.dir, k.meta.ID)); err != nil {
		return err
	}
	return ca.SyncDir(k.s.dir)
}

func (s *snapshots) removeOthers(keep string) error {
	names, err := s.names()
	if err != nil {
		return err
	}
	for _, n := range names {
		if n == keep {
			continue
		}
		if err := os.Remove(filepath.Join(s.dir, n)); err != nil {
			return fmt.Errorf("remove old snapshot: %w", err)
		}
	}
	return nil
}

var _ raft.SnapshotStore = (*snapshots)(nil)
