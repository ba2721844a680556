package cluster

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func mustStable(t *testing.T, path string) *stableStore {
	t.Helper()
	s, err := openStable(path, newHalt())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.close() })
	return s
}

// vote stores a vote as Raft does: the term, then the candidate.
func vote(s *stableStore, term uint64, candidate string) error {
	if err := s.SetUint64([]byte(keyLastVoteTerm), term); err != nil {
		return err
	}
	return s.Set([]byte(keyLastVoteCand), []byte(candidate))
}

// read returns the ballot through the interface that Raft uses.
func read(t *testing.T, s *stableStore) ballot {
	t.Helper()
	var b ballot
	var err [3]error
	b.Term, err[0] = s.GetUint64([]byte(keyCurrentTerm))
	b.VoteTerm, err[1] = s.GetUint64([]byte(keyLastVoteTerm))
	b.VoteFor, err[2] = s.Get([]byte(keyLastVoteCand))
	for _, e := range err {
		if e != nil {
			t.Fatal(e)
		}
	}
	return b
}

func TestStableStoreKeepsTermAndVote(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vote")
	s := mustStable(t, path)
	if got := read(t, s); got.Term != 0 || got.VoteTerm != 0 || len(got.VoteFor) != 0 {
		t.Fatalf("new store holds %+v", got)
	}
	for term := uint64(1); term <= 5; term++ {
		if err := s.SetUint64([]byte(keyCurrentTerm), term); err != nil {
			t.Fatal(err)
		}
		if err := vote(s, term, fmt.Sprintf("node-%d", term)); err != nil {
			t.Fatal(err)
		}
		want := ballot{Term: term, VoteTerm: term, VoteFor: fmt.Appendf(nil, "node-%d", term)}
		if diff := cmp.Diff(want, read(t, s)); diff != "" {
			t.Fatal(diff)
		}
		if diff := cmp.Diff(want, read(t, mustStable(t, path))); diff != "" {
			t.Fatalf("after opening again: %s", diff)
		}
	}
}

// The order of calls that Raft makes is cut between the two: neither this
// store nor one opened later may show the new term beside the old candidate.
func TestVoteWithoutCandidateIsNoVote(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vote")
	s := mustStable(t, path)
	if err := vote(s, 5, "a"); err != nil {
		t.Fatal(err)
	}
	if err := s.SetUint64([]byte(keyLastVoteTerm), 6); err != nil {
		t.Fatal(err)
	}
	// A change of the current term in between must not carry it along either.
	if err := s.SetUint64([]byte(keyCurrentTerm), 6); err != nil {
		t.Fatal(err)
	}
	want := ballot{Term: 6, VoteTerm: 5, VoteFor: []byte("a")}
	for _, s := range []*stableStore{s, mustStable(t, path)} {
		if diff := cmp.Diff(want, read(t, s)); diff != "" {
			t.Fatal(diff)
		}
	}
}

// A write that stops after any number of bytes leaves the old ballot or, once
// it is complete, the new one.
func TestTornWriteLeavesOldBallot(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "vote")
	s := mustStable(t, path)
	if err := vote(s, 1, "a"); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	old := read(t, s)
	if err := vote(s, 2, "bb"); err != nil {
		t.Fatal(err)
	}
	after, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	fresh := read(t, s)
	at := 0
	for at < len(before) && before[at] == after[at] {
		at++
	}
	at -= at % slotStride
	if !bytes.Equal(before[:at], after[:at]) || !bytes.Equal(before[at+slotSize:], after[at+slotSize:]) {
		t.Fatal("a write touched more than one slot")
	}
	for n := 0; n <= slotSize; n++ {
		torn := bytes.Clone(before)
		copy(torn[at:at+n], after[at:])
		p := filepath.Join(dir, "torn")
		if err := os.WriteFile(p, torn, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := openStable(p, newHalt())
		if err != nil {
			t.Fatalf("%d bytes written: %v", n, err)
		}
		got := read(t, s)
		if !cmp.Equal(got, old) && !cmp.Equal(got, fresh) {
			t.Fatalf("%d bytes written: ballot %+v is neither %+v nor %+v", n, got, old, fresh)
		}
		if n == slotSize && !cmp.Equal(got, fresh) {
			t.Fatal("a complete write does not count")
		}
		// What follows must not be lost because of the torn slot.
		if err := vote(s, 9, "c"); err != nil {
			t.Fatal(err)
		}
		s.close()
		if got := read(t, mustStable(t, p)); got.VoteTerm != 9 {
			t.Fatalf("%d bytes written: a later vote is lost: %+v", n, got)
		}
	}
}

func TestStableStoreRefuses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vote")
	for name, call := range map[string]func(*stableStore) error{
		"unknown number":         func(s *stableStore) error { return s.SetUint64([]byte("Other"), 1) },
		"unknown bytes":          func(s *stableStore) error { return s.Set([]byte("Other"), nil) },
		"candidate without term": func(s *stableStore) error { return s.Set([]byte(keyLastVoteCand), []byte("a")) },
		"long candidate":         func(s *stableStore) error { return vote(s, 1, string(make([]byte, maxCandidate+1))) },
	} {
		s := mustStable(t, path)
		if err := call(s); err == nil {
			t.Errorf("%s: no error", name)
		}
		if s.halt.failure() == nil {
			t.Errorf("%s: the member goes on", name)
		}
		if err := vote(s, 1, "a"); err == nil {
			t.Errorf("%s: a vote was taken afterwards", name)
		}
	}
	if got := read(t, mustStable(t, path)); got.VoteTerm != 0 {
		t.Errorf("a refused call left %+v", got)
	}
}

func TestStableStoreFailsForGood(t *testing.T) {
	s := mustStable(t, filepath.Join(t.TempDir(), "vote"))
	s.f.Close()
	if err := vote(s, 1, "a"); err == nil {
		t.Fatal("a vote was acknowledged without a file")
	}
	if s.halt.failure() == nil {
		t.Fatal("the member goes on")
	}
	if got := read(t, s); got.VoteTerm != 0 {
		t.Fatalf("the failed vote counts: %+v", got)
	}
}

func TestDamagedStableStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vote")
	if err := os.WriteFile(path, make([]byte, slotStride+slotSize), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openStable(path, newHalt()); err == nil {
		t.Fatal("a damaged file was opened")
	}
}
