// Package spec is the one domain model of Wherry: what users declare (Stack,
// Service, Network, Volume), what the cluster derives from it (Revision, Task,
// Plan), what a node is told to have (Wanted, HostNetwork) and what it reports
// back (Report).
//
// The same plain structs, in the same JSON, go into the replicated log, the
// agents' streams, the HTTP API and the golden files. There is no second model
// and nothing is generated. Durations encode as "10s", addresses as text.
//
// The package holds values and pure functions on them: validate, default,
// hash. It reads no clock, no file and no network, starts no goroutine and
// imports only the standard library. Values handed out by the store are shared
// and must not be modified by the receiver.
//
// Every field of a stored struct has one writer, named above it:
//
//	user        what a person declared, written by PutStack and its kin
//	reconciler  what the leader decided, written by a Plan
//	agent       what a node observed, written by a Report
//	cluster     what membership knows
//	apply       assigned by the state machine itself
package spec
