// Package sim runs random histories of a whole control plane in one goroutine:
// the real store, reconciler, scheduler and ipam, with hosts that are fakes.
// Hosts join, are cut off, come back, are drained, promoted and removed; the
// leader finds out late, and its clock may be wrong. Exclusive tasks live by
// leases, as the agent and the keeper would have it.
//
// A seed decides everything, so a failing history replays bit by bit.
//
// World.Step makes the next random event: a command of a user, a plan that
// arrives, is lost, late or repeated, a host that goes on, dies or tells what
// happened. After each change the invariants are checked. World.Converge ends
// all faults and demands that what was declared comes true.
//
// It has no goroutine, reads no clock, and is used by tests only.
package sim
