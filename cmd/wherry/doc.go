// Command wherry is the one binary of Wherry: the client that people type, the
// daemon of a host, and the helper processes that a daemon starts. This
// package parses flags, wires the packages together and prints; it decides
// nothing.
//
//	main.go      roles and exit codes
//	root.go      flags that all commands share
//	apply.go     validate, plan, apply, rm
//	progress.go  what is shown while something is waited for
//	list.go      ls, ps, service, node, volume, network
//	image.go     image
//	logs.go      logs
//	exec.go      exec
//	output.go    tables, JSON, YAML, templates
//	daemon_*.go  the daemon (Linux only)
package main
