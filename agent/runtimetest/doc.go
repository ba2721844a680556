// Package runtimetest is the contract of agent.Runtime and agent.Execer as a
// test suite. Every implementation runs it: the one in memory in unit tests,
// the one on containerd in e2e tests.
package runtimetest
