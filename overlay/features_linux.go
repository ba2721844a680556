package overlay

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"runtime"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

// Feature is something that networks need of the kernel.
type Feature struct {
	Name string
	// Err says why it is not there; nil when it is.
	Err error
}

// KernelFeatures tries what networks need of the kernel in a network namespace
// that nobody else sees, with the rules that hosts and tasks get. It needs root.
func KernelFeatures() []Feature {
	done := make(chan []Feature, 1)
	go func() {
		// The thread ends with the goroutine, and the namespace with it.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- []Feature{{"network namespaces", err}}
			return
		}
		done <- append([]Feature{{"network namespaces", nil}}, tryLinks()...)
	}()
	return <-done
}

// tryLinks makes a link of each kind that networks have, and then the tables.
func tryLinks() []Feature {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return []Feature{{"netlink", err}}
	}
	defer h.Close()
	add := func(l netlink.Link, name string) error {
		l.Attrs().Name = name
		return h.LinkAdd(l)
	}
	bridge := &netlink.Bridge{}
	out := []Feature{
		{"veth", add(&netlink.Veth{PeerName: "peer0"}, "eth0")},
		{"bridge", add(bridge, "br0")},
		{"vxlan", add(&netlink.Vxlan{VxlanId: 1, Port: spec.VXLANPort, SrcAddr: netip.MustParseAddr("127.0.0.1").AsSlice()}, "vx0")},
	}
	return append(out, tryTables()...)
}

// tryTables brings the tables of a host and of a task, as Compile has them, to
// the kernel.
func tryTables() []Feature {
	const node, task = spec.NodeID("probe"), spec.TaskID("probe")
	box := spec.Sandbox{Task: task, Addresses: []spec.Address{{Network: "1-1", IP: "192.0.2.2/24", MAC: "02:58:c0:00:02:02"}}}
	want := Compile(Input{Node: node, Underlay: netip.MustParseAddrPort("198.51.100.1:4477"), Tasks: []spec.Sandbox{box}, Networks: []spec.HostNetwork{{
		Network:    spec.Network{ID: "1-1", Subnet: "192.0.2.0/24", Gateway: "192.0.2.1", VNI: 1, Spec: spec.NetworkSpec{Driver: spec.DriverOverlay}},
		HostNumber: 1, Hosts: []spec.NetworkHost{{Number: 2, Address: "198.51.100.2"}},
		VIPs:  []spec.VIP{{Address: "192.0.2.9", Owner: "probe/probe", Targets: []string{"192.0.2.2"}}},
		Ports: []spec.PublishedPort{{Port: 80, Protocol: "tcp", Owner: "probe/probe", Targets: []string{"192.0.2.2:80"}}},
	}}})
	ids := slices.SortedFunc(maps.Keys(want.Tables), func(a, b TableID) int { return strings.Compare(a.Family+a.Name, b.Family+b.Name) })
	var out []Feature
	for _, id := range ids {
		one := NewState()
		one.Tables[id] = want.Tables[id]
		name := fmt.Sprintf("nftables of family %s", id.Family)
		if id.Family == familyNetdev {
			name = egressFeature
		}
		err := tryTable(id, Diff(NewState(), one))
		if err != nil && id.Family == familyNetdev {
			err = tryProgram(err)
		}
		out = append(out, Feature{name, err})
	}
	return out
}

// egressFeature is the hook by which a task's answers go back to the host that
// the connection came by.
const egressFeature = "egress hook of nftables (Linux 5.16), or eBPF"

// tryProgram tries what takes the place of the chain at egress, which was
// refused.
func tryProgram(refused error) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.LinkByName("eth0")
	if err == nil {
		err = attachProgram(h, l)
	}
	if err != nil {
		return errors.Join(refused, err)
	}
	return nil
}

func tryTable(id TableID, ops []Op) error {
	n := &nftTables{name: id.Name, family: id.Family, shared: true}
	if id.NS != "" {
		n = nftInside(func() (int, error) {
			return unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		})
	}
	defer n.close()
	return n.transact(ops)
}

// PortHolder names the process that holds a port of this host, on any address;
// held is false when nobody does. The name is empty when no process can be
// seen, as with the ports of tunnels, which the kernel holds itself.
func PortHolder(proto string, port uint16) (name string, held bool) {
	var h holderCache
	name, held = h.find(proto, netip.IPv4Unspecified(), port)
	if name == unseen {
		name = ""
	}
	return name, held
}

// TunnelPort returns the UDP port of this host's networks, if it has any.
func (h *Host) TunnelPort() (port uint16, known bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, n := range h.nets {
		return tunnelPort(n), true
	}
	return 0, false
}

// HasIPv6 reports whether a network of this host has IPv6.
func (h *Host) HasIPv6() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, n := range h.nets {
		if n.Network.Subnet6 != "" {
			return true
		}
	}
	return false
}
