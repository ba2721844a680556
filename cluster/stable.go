package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"sync"

	"github.com/hashicorp/raft"

	"wherry.dev/cluster/ca"
)

// The keys that Raft keeps in its stable store. Any other is refused, so that
// a version of the library that keeps more is noticed at its first start.
const (
	keyCurrentTerm  = "CurrentTerm"
	keyLastVoteTerm = "LastVoteTerm"
	keyLastVoteCand = "LastVoteCand"
)

// ballot is all that a member must never forget.
type ballot struct {
	// Term is the newest term the member has seen.
	Term uint64
	// VoteTerm and VoteFor are its newest vote: in that term it voted for that
	// candidate and will vote for no other.
	VoteTerm uint64
	VoteFor  []byte
}

// The file holds two slots, each on a page of its own, and the valid slot with
// the higher sequence number counts. A write goes to the other slot, so that
// the record that counts is never overwritten, and a write that is cut off
// anywhere leaves the ballot as it was. The file never grows: a member can
// vote on a disk without a free block.
//
//	slot: magic[8] format[4] length of VoteFor[4] sequence[8] Term[8]
//	      VoteTerm[8] VoteFor[≤ maxCandidate] zeros CRC-32C[4], big endian
const (
	slotMagic    = "wherrybv"
	slotFormat   = 1
	slotSize     = 512
	slotStride   = 4096
	slotHeader   = 40
	maxCandidate = 256
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// stableStore is Raft's StableStore, made so that a vote is committed in one
// record. Raft stores the term of a vote and then its candidate in two calls.
// With two records, a crash in between leaves the new term beside the previous
// candidate, and the member then grants a repeated request of that candidate
// without comparing logs: a leader with an old log, and acknowledged writes
// gone. Here the term waits in memory for the candidate; a crash before that
// loses a vote that was never sent.
//
// Safe for concurrent use. Any error of the file is fail-stop.
type stableStore struct {
	halt *halt

	mu  sync.Mutex
	f   *os.File
	seq uint64
	b   ballot
	// voteTerm is the term of a vote whose candidate is still to come; 0 none.
	voteTerm uint64
}

// openStable opens the file at path, or makes it.
func openStable(path string, h *halt) (*stableStore, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if err := createStable(path); err != nil {
			return nil, fmt.Errorf("make %s: %w", path, err)
		}
		f, err = os.OpenFile(path, os.O_RDWR, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("open stable store: %w", err)
	}
	s := &stableStore{halt: h, f: f}
	if err := s.load(); err != nil {
		f.Close()
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return s, nil
}

// createStable makes the file with an empty ballot; it appears under its name
// only when it is whole.
func createStable(path string) error {
	b := make([]byte, slotStride+slotSize)
	copy(b, encodeSlot(1, ballot{}))
	return ca.WriteFile(path, b)
}

func (s *stableStore) load() error {
	b := make([]byte, slotStride+slotSize)
	if _, err := s.f.ReadAt(b, 0); err != nil {
		return err
	}
	for _, at := range []int{0, slotStride} {
		seq, ballot, ok := decodeSlot(b[at : at+slotSize])
		if ok && seq > s.seq {
			s.seq, s.b = seq, ballot
		}
	}
	if s.seq == 0 {
		return errors.New("neither of the two records is readable: the file is damaged")
	}
	// What was read may be a record whose writer died before its fsync. From
	// here on answers are given that rest on it, so it must be on the disk.
	return s.f.Sync()
}

func encodeSlot(seq uint64, b ballot) []byte {
	slot := make([]byte, slotHeader, slotSize)
	copy(slot, slotMagic)
	binary.BigEndian.PutUint32(slot[8:], slotFormat)
	binary.BigEndian.PutUint32(slot[12:], uint32(len(b.VoteFor)))
	binary.BigEndian.PutUint64(slot[16:], seq)
	binary.BigEndian.PutUint64(slot[24:], b.Term)
	binary.BigEndian.PutUint64(slot[32:], b.VoteTerm)
	slot = append(slot, b.VoteFor...)[:slotSize]
	binary.BigEndian.PutUint32(slot[slotSize-4:], crc32.Checksum(slot[:slotSize-4], castagnoli))
	return slot
}

func decodeSlot(slot []byte) (seq uint64, b ballot, ok bool) {
	sum := binary.BigEndian.Uint32(slot[slotSize-4:])
	n := binary.BigEndian.Uint32(slot[12:])
	switch {
	case string(slot[:8]) != slotMagic,
		binary.BigEndian.Uint32(slot[8:]) != slotFormat,
		sum != crc32.Checksum(slot[:slotSize-4], castagnoli),
		n > maxCandidate:
		return 0, ballot{}, false
	}
	b.Term = binary.BigEndian.Uint64(slot[24:])
	b.VoteTerm = binary.BigEndian.Uint64(slot[32:])
	b.VoteFor = append([]byte(nil), slot[slotHeader:slotHeader+n]...)
	return binary.BigEndian.Uint64(slot[16:]), b, true
}

// commitLocked makes b durable in one record.
func (s *stableStore) commitLocked(b ballot) error {
	if err := s.halt.failure(); err != nil {
		return s.halt.die(err)
	}
	seq := s.seq + 1
	at := int64(0)
	if seq%2 == 0 {
		at = slotStride
	}
	_, err := s.f.WriteAt(encodeSlot(seq, b), at)
	if err == nil {
		err = s.f.Sync()
	}
	if err != nil {
		return s.halt.die(fmt.Errorf("write term and vote: %w", err))
	}
	s.seq, s.b = seq, b
	return nil
}

// SetUint64 stores the current term at once, and keeps the term of a vote
// until Set brings the candidate.
func (s *stableStore) SetUint64(key []byte, v uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch string(key) {
	case keyCurrentTerm:
		if v == s.b.Term {
			return nil
		}
		b := s.b
		b.Term = v
		return s.commitLocked(b)
	case keyLastVoteTerm:
		s.voteTerm = v
		return nil
	}
	return s.halt.die(fmt.Errorf("write %q to the stable store: unknown key", key))
}

// Set commits the vote whose term SetUint64 was told before.
func (s *stableStore) Set(key, v []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case string(key) != keyLastVoteCand:
		return s.halt.die(fmt.Errorf("write %q to the stable store: unknown key", key))
	case s.voteTerm == 0:
		return s.halt.die(fmt.Errorf("write vote for %q: it has no term", v))
	case len(v) > maxCandidate:
		return s.halt.die(fmt.Errorf("write vote: the candidate's address has %d bytes", len(v)))
	}
	b := s.b
	b.VoteTerm, b.VoteFor = s.voteTerm, append([]byte(nil), v...)
	s.voteTerm = 0
	return s.commitLocked(b)
}

// GetUint64 returns the committed value of key, 0 when there is none.
func (s *stableStore) GetUint64(key []byte) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch string(key) {
	case keyCurrentTerm:
		return s.b.Term, nil
	case keyLastVoteTerm:
		return s.b.VoteTerm, nil
	}
	return 0, fmt.Errorf("read %q from the stable store: unknown key", key)
}

// Get returns the committed candidate, nil when there is none.
func (s *stableStore) Get(key []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if string(key) != keyLastVoteCand {
		return nil, fmt.Errorf("read %q from the stable store: unknown key", key)
	}
	return append([]byte(nil), s.b.VoteFor...), nil
}

func (s *stableStore) close() error { return s.f.Close() }

var _ raft.StableStore = (*stableStore)(nil)
