// Package lab makes hosts out of network namespaces, so that a cluster runs on
// one machine without touching that machine's own network.
//
// A Lab is a switch: a namespace with a bridge that all hosts are plugged into.
// A Host has a namespace with its own address, a data folder, a run folder,
// and a daemon with its own containerd. Only the network namespace is entered
// (nsenter --net), since `ip netns exec` also remounts /sys and hides the
// cgroup controllers. All traffic stays inside these namespaces.
//
// The Census lists what exists on the machine, by looking and not by our own
// labels; what a test leaves behind is the difference of two.
package lab
