// Package agent makes a node run what it is told to: for every task of
// spec.Wanted one worker takes one step at a time from what is to what is
// wanted, and every change of a task's status is reported.
//
// It knows neither containerd nor the network nor HTTP: those are behind the
// small interfaces of agent.go. It owns the folders of volumes, of contents
// and of logs, the secrets and configs that tasks have in memory, health
// checks, restart policies and the node's memory of its tasks, so that a node
// goes on without any manager; only exclusive tasks need a lease, which it renews and has the keeper enforce. It refuses to decide
// where a task runs, and to delete the data of a named volume that the
// managers have not named for removal.
//
// New and Agent.Run are the entry points; Agent.Set says what is wanted, and
// Agent.Leave takes everything off the node.
// ReadLogs reads what the log keeper has written.
//
// Goroutines, all of them ended when Run returns: the main loop, the reporter,
// the one that renews the list of log sinks, the one that renews the lease, the
// one that watches the node's identity, one per task, one per health check
// under way, one per drain and one per host that it asks, and one per removal of
// something that no task needs. ReadLogs starts one while it follows.
package agent
