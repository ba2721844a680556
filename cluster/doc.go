// Package cluster is one member of a cluster, manager or worker: it owns the
// member's data folder (identity, keys, vote, log and snapshots) and its port,
// joins, finds the other nodes and knows which of them are alive. On a manager
// it runs Raft, feeds committed commands to cluster/store and knows who leads.
//
// It refuses to decide anything about stacks or tasks: what a leader does is a
// function given to it (Config.Lead), and what a command means is store.Apply.
// It never goes on after an error of its store: Run returns, and the process
// is expected to end.
//
// Entry point: Open claims the folder, and joins if it is to; Run does the work
// until its context ends or the node's role changes. Propose writes,
// Linearizable makes a read of Store current, both through whoever leads.
//
// Goroutines: those of the port are started by Open, all others by Run, and all
// have ended when Run returns, with the exceptions named there. Every method of
// Member but Run may be called from any number of goroutines at any time, also
// before Run and after it.
package cluster
