package store

import (
	"sync"
	"sync/atomic"

	"github.com/hashicorp/go-memdb"
)

// Store holds the newest state. Make one with New. All methods may be called
// concurrently.
type Store struct {
	tables *tables
	// cur is the newest state. Readers get nothing else, so what Apply has
	// written so far is never seen.
	cur atomic.Pointer[Snapshot]

	// apply makes Apply and Restore exclude each other; it guards db.
	apply sync.Mutex
	db    *memdb.MemDB

	// wake guards watch; it is never held for longer than an assignment.
	wake  sync.Mutex
	watch chan struct{}

	// guarded keeps a checksum of every object and checks it now and then.
	guarded bool
	// turn is the table whose checksums Snapshot checks next.
	turn atomic.Uint64
}

// New returns a store with an empty state, of format 1 until a Bootstrap raises
// it.
func New() *Store { return newStore(raceEnabled) }

func newStore(guarded bool) *Store {
	t := newTables()
	s := &Store{tables: t, db: t.open(), watch: make(chan struct{}), guarded: guarded}
	s.cur.Store(&Snapshot{tables: t, db: s.db.Snapshot(), meta: meta{Format: 1}})
	return s
}

// Snapshot returns the newest state. It costs the same for any size of state,
// never waits for Apply, and stays as it is for as long as it is held.
func (s *Store) Snapshot() *Snapshot {
	n := s.cur.Load()
	if s.guarded {
		// One table per call keeps a test that takes many snapshots quick;
		// Persist checks them all.
		all := s.tables.list()
		all[s.turn.Add(1)%uint64(len(all))].verify(n.read())
	}
	return n
}

// Clone returns a private copy of the store in its newest state, at a cost
// that does not depend on its size. Apply on the copy does not touch s, nor
// the other way round.
func (s *Store) Clone() *Store {
	n := s.cur.Load()
	c := &Store{tables: s.tables, db: n.db.Snapshot(), watch: make(chan struct{}), guarded: s.guarded}
	c.cur.Store(n)
	return c
}

// Watch returns a channel that is closed after the next Apply or Restore. It
// says that the state has changed, never what. Take the channel before the
// snapshot: a change between the two then wakes the caller once too often
// instead of never.
func (s *Store) Watch() <-chan struct{} {
	s.wake.Lock()
	defer s.wake.Unlock()
	return s.watch
}

// publish makes n the newest state and wakes who waits for it.
func (s *Store) publish(n *Snapshot) {
	s.cur.Store(n)
	s.wake.Lock()
	old := s.watch
	s.watch = make(chan struct{})
	s.wake.Unlock()
	close(old)
}
