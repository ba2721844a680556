package cluster

import (
	"fmt"
	"io"

	"github.com/hashicorp/raft"

	"wherry.dev/cluster/store"
)

// fsm hands committed entries to the store. It is no raft.BatchingFSM: the
// store applies one command at a time and a batch would change nothing.
type fsm struct {
	store *store.Store
	halt  *halt
}

// Apply applies one command; it returns a store.Result. An entry that this
// version cannot read stops the member: to skip it would make this member's
// state differ from the others' for ever.
func (f *fsm) Apply(l *raft.Log) any {
	c, err := store.Decode(l.Data)
	if err != nil {
		// die does not return here: only Raft applies entries.
		panic(f.halt.die(fmt.Errorf("read command %d of the log: %w: it was written by a newer version of wherry, start that one", l.Index, err)))
	}
	return f.store.Apply(l.Index, c)
}

// Snapshot takes the state as it is, at no cost.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	return fsmSnapshot{f.store.Snapshot()}, nil
}

// Restore replaces the state.
func (f *fsm) Restore(r io.ReadCloser) error {
	defer r.Close()
	return f.store.Restore(r)
}

type fsmSnapshot struct{ s *store.Snapshot }

// Persist writes the state; Raft closes the sink, which makes it durable.
func (s fsmSnapshot) Persist(sink raft.SnapshotSink) error { return s.s.Persist(sink) }

// Release does nothing: a snapshot is freed with the last reference to it.
func (s fsmSnapshot) Release() {}

var _ raft.FSM = (*fsm)(nil)
