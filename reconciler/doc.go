// Package reconciler decides what the cluster does next. Plan looks at one
// snapshot of the state and returns the changes that bring the tasks closer to
// what users declared; Wanted and HostNetworks say what one node must have;
// Status and NewPreview tell people where things stand and what a write would do.
//
// It owns the rules of rollouts, restarts, scaling, start order, addresses,
// placement and reaping. It refuses to remember: whatever it needs to know is in
// the snapshot, so that a new leader goes on where the last one stopped, and to
// act: a plan is a proposal, and the store rejects each part whose ground has
// moved.
//
// All of it is pure, and its result depends on the snapshot and the time
// alone, but for loop.go: Loop.Run is the leader's one loop, and no other
// goroutine is started.
package reconciler
