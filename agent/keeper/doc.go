// Package keeper is the small process that every host runs beside its daemon
// and that outlives it: the daemon may stop, crash or be upgraded, and still
// names resolve inside the containers, their output reaches the log files, and
// an exclusive task whose lease is over ends.
//
// It owns the DNS servers at 127.0.0.11 inside the namespaces of tasks, the
// reading ends of the tasks' output FIFOs, the rotation of their log files, and
// the deadlines of exclusive tasks. It refuses to decide anything: it is told
// the whole of its work (SetDNS, SetLogs, SetLeases), repeats the last it was told and keeps that on disk, so
// that it also survives its own end.
//
// The process enters by Main, which is Run with the process tuned to be small.
// The daemon enters by Ensure, which finds a running keeper of its version,
// replaces one of another version by handing over the open descriptors, or
// starts one; Client.Run then watches over it.
//
// Goroutines of the process: one per DNS socket, one per open TCP connection,
// one per query under way to an upstream server, one per FIFO, one per control
// connection, one that watches the deadlines. All end before Run returns. The package works on Linux only.
package keeper
