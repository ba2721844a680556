// Package store is the replicated state of a cluster: typed commands, the
// reducer Apply that turns a command into the next state, immutable snapshots
// of that state, and its canonical byte form.
//
// The package owns what is stored and which change is allowed. It decides
// nothing: what ought to run is the reconciler's business, and how commands
// get here in the same order on every manager is that of package cluster. It
// refuses whatever would break the state's own integrity (a write based on an
// old version, two holders of one port or address, a task on a node that does
// not exist, a state that moves backward), and it never deletes data that
// somebody still uses.
//
// Start at Store.Apply, the one writer, and Store.Snapshot, the one reader.
// Apply is a pure function of the state and the command: it reads no clock,
// uses no randomness, and lets no order of a map leak into the state, so that
// managers that apply the same entries hold the same bytes (Snapshot.Persist).
//
// Objects that a Snapshot hands out are shared by all snapshots and must not
// be modified. A program built with the race detector keeps a checksum of every
// object and panics when one has been.
//
// The package starts no goroutine. A Store is safe for concurrent use: calls of
// Apply and Restore exclude each other and never wait for readers, nor readers
// for them.
package store
