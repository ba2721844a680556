// Package overlay makes the network of one host what spec.HostNetwork says:
// bridges, tunnels to other hosts, task namespaces, forwarding data, nftables,
// published ports and the tables of the DNS server.
//
// The host is set, not steered. Compile turns the wanted documents into a
// State, the kernel is read into another State, Diff gives the operations that
// lead from one to the other, and each operation prints as one line. The same
// two functions serve a new host, a repair, a crash and the attaching of one
// task. Compile and Diff are pure; what touches the kernel is in the files
// named *_linux.go.
//
// Entry point: New, then Host.Run. Run owns the goroutines of the package: the
// loop, the readers of kernel events and the worker that deletes links. Attach
// and Detach may be called from any goroutine, also while Run does not run.
//
// The package refuses to touch what is not its own. Its links carry a group
// number and an alias made from the node's ID, its nftables live in tables
// of their own, on the host and in the namespace of each task. The one setting
// of the host that it changes is net.ipv4.ip_forward, which it switches on when
// it is off.
package overlay
