package cluster

import (
	"crypto/cipher"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	wal "github.com/hashicorp/raft-wal"

	"wherry.dev/cluster/ca"
)

// slowAppend is how long an append may take before it counts as hanging.
const slowAppend = 3 * time.Second

// logStore is Raft's LogStore over raft-wal. It seals what it writes, ends the
// member at the first error, watches for a disk that hangs, and says when so
// much was written that a snapshot is due.
//
// The library calls StoreLogs and DeleteRange from one goroutine at a time and
// the rest from any number.
type logStore struct {
	inner raft.LogStore
	aead  cipher.AEAD
	halt  *halt
	log   *slog.Logger
	// hung is called, on a goroutine of its own, when an append has taken
	// longer than patience.
	hung     func(time.Duration)
	patience time.Duration

	// due has capacity one and gets one value per snapshot, when the entries
	// since the last one reach maxEntries or maxBytes.
	due        chan struct{}
	maxEntries uint64
	maxBytes   int64

	mu    sync.Mutex
	since uint64 // index of the last snapshot
	last  uint64 // highest index seen, written or replayed
	bytes int64  // of the entries after since, up to last
	asked bool   // due was filled since the last snapshot
	// newest is the entry that was appended last, as Raft gave it. An idle
	// leader looks at it many times a second: each message to a follower names
	// the entry before it.
	newest *raft.Log
	// begun is the index of the last entry of the newest append, from before it
	// is durable; begins rings then.
	begun  uint64
	begins bell
}

// openLog opens raft-wal in dir and makes durable what an earlier process may
// have written without an fsync: Raft will count these entries as stored.
func openLog(dir string, segment int, l *slog.Logger) (*wal.WAL, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make log folder: %w", err)
	}
	w, err := wal.Open(dir, wal.WithSegmentSize(segment), wal.WithLogger(hclogTo(l)))
	if err != nil {
		return nil, fmt.Errorf("open the log in %s: %w", dir, err)
	}
	if err := syncFiles(dir, ".wal"); err != nil {
		w.Close()
		return nil, fmt.Errorf("sync the log in %s: %w", dir, err)
	}
	return w, nil
}

func syncFiles(dir, suffix string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), suffix) {
			continue
		}
		f, err := os.OpenFile(filepath.Join(dir, e.Name()), os.O_RDWR, 0)
		if err != nil {
			return err
		}
		err = f.Sync()
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			return err
		}
	}
	return ca.SyncDir(dir)
}

// IsMonotonic reports that the log has no gaps, which raft-wal insists on.
func (s *logStore) IsMonotonic() bool { return true }

// FirstIndex returns the first index, 0 for none. It reads no file.
func (s *logStore) FirstIndex() (uint64, error) { return s.inner.FirstIndex() }

// LastIndex returns the last index, 0 for none. It reads no file.
func (s *logStore) LastIndex() (uint64, error) { return s.inner.LastIndex() }

// GetLog reads one entry, whose data must not be modified.
func (s *logStore) GetLog(index uint64, l *raft.Log) error {
	s.mu.Lock()
	newest := s.newest
	s.mu.Unlock()
	if newest != nil && newest.Index == index {
		*l = *newest
		return nil
	}
	err := s.inner.GetLog(index, l)
	if errors.Is(err, raft.ErrLogNotFound) || errors.Is(err, wal.ErrClosed) {
		return err
	}
	if err == nil {
		size := int64(len(l.Data))
		if err = openEntry(s.aead, l); err == nil {
			s.count(index, size)
			return nil
		}
	}
	return s.halt.die(fmt.Errorf("read log entry %d: %w", index, err))
}

// StoreLog appends one entry.
func (s *logStore) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs appends entries; they are durable when it returns.
func (s *logStore) StoreLogs(logs []*raft.Log) error {
	if err := s.halt.failure(); err != nil {
		return s.halt.die(err)
	}
	if len(logs) > 0 {
		s.mu.Lock()
		s.begun = logs[len(logs)-1].Index
		s.mu.Unlock()
		s.begins.ring()
	}
	sealed := make([]*raft.Log, len(logs))
	for i, l := range logs {
		sealed[i] = sealEntry(s.aead, l)
	}
	began := time.Now()
	watch := time.AfterFunc(s.patience, func() { s.hung(s.patience) })
	err := s.inner.StoreLogs(sealed)
	if !watch.Stop() {
		s.log.Warn("append to the log took long", "duration", time.Since(began).Round(time.Millisecond))
	}
	if err != nil {
		return s.halt.die(fmt.Errorf("append to the log: %w", err))
	}
	for _, l := range sealed {
		s.count(l.Index, int64(len(l.Data)))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(logs) > 0 {
		s.newest = logs[len(logs)-1]
	}
	return nil
}

// DeleteRange removes entries at one end of the log.
func (s *logStore) DeleteRange(lo, hi uint64) error {
	s.mu.Lock()
	if s.newest != nil && lo <= s.newest.Index && s.newest.Index <= hi {
		s.newest = nil
	}
	s.mu.Unlock()
	if err := s.inner.DeleteRange(lo, hi); err != nil {
		return s.halt.die(fmt.Errorf("delete log entries %d to %d: %w", lo, hi, err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	// A suffix that a new leader replaces is written, and counted, again.
	if lo <= s.last && hi >= s.last {
		s.last = lo - 1
	}
	return nil
}

// after returns a channel that is closed when an entry behind index is being
// appended; nil if one is already.
func (s *logStore) after(index uint64) <-chan struct{} {
	begins := s.begins.wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.begun > index {
		return nil
	}
	return begins
}

// count adds an entry that was written, or read for the first time since the
// start, and says when a snapshot is due.
func (s *logStore) count(index uint64, size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if index <= s.last || index <= s.since {
		return
	}
	s.last = index
	s.bytes += size
	if s.asked || (index-s.since < s.maxEntries && s.bytes < s.maxBytes) {
		return
	}
	s.asked = true
	select {
	case s.due <- struct{}{}:
	default:
	}
}

// snapshotTaken starts the count anew behind a snapshot at index. What was
// appended while it was written is not counted: a little more fits.
func (s *logStore) snapshotTaken(index uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.since, s.bytes, s.asked = index, 0, false
}

var _ raft.MonotonicLogStore = (*logStore)(nil)
