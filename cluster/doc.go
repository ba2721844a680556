// Package cluster is one member of a cluster: it owns the member's data folder
// (its identity, keys, vote, log and snapshots), runs Raft over it, feeds
// committed commands to cluster/store and knows who leads.
//
// It refuses to decide anything about stacks or tasks: what a leader does is a
// function given to it (Config.Lead), and what a command means is store.Apply.
// It never goes on after an error of its store: Run returns, and the process
// is expected to end.
//
// Entry point: Open claims the folder, Run does the work until its context
// ends. Propose writes, Linearizable makes a read of Store current.
//
// Goroutines: all are started by Run and have ended when it returns, with the
// exceptions named there. Every method of Member but Run may be called from
// any number of goroutines at any time, also before Run and after it.
package cluster
