// Package ipam chooses numbers: the subnets and VNI of a network, and
// the addresses and MAC of a task on it.
//
// It owns the pool and the order of choice. It keeps no state: what is taken
// is told by the caller, who reads it from a snapshot, so that an allocation
// that no object refers to cannot exist and nothing can leak. Numbers are
// reused as late as possible, since a host may still be busy with removing
// what used them last.
//
// Entry points: Subnet, VNI, and a Range per network for addresses. The
// package reads no clock and starts no goroutine.
package ipam
