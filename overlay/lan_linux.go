package overlay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

// HostInterfaces returns a function that says on which interfaces of this host
// macvlan networks, or VLANs for them, can be, for spec.NodeInfo.Interfaces.
// While that cannot be found out it says what it said last. It is for one
// goroutine.
func HostInterfaces(node spec.NodeID) func() string {
	last := ""
	return func() string {
		links, err := dump(netlink.LinkList)
		if err != nil {
			return last
		}
		var names []string
		parents := parentsOf(links, func(a *netlink.LinkAttrs) bool { return a.Group == linkGroup(node) || a.Group == doomedGroup(node) })
		for _, l := range links {
			name := l.Attrs().Name
			p, ok := parents[name]
			// The ends of other containers' networks come and go, and are all
			// that many hosts have by the hundred.
			if _, _, err := spec.ParseParent(name); ok && err == nil && (p.Why == "" || p.VLANs && l.Type() != kindVeth) {
				names = append(names, name)
			}
		}
		last = parentsText(names)
		return last
	}
}

// parentsOf judges the interfaces of the host that are not ours.
func parentsOf(links []netlink.Link, ours func(*netlink.LinkAttrs) bool) map[string]Parent {
	by := map[int]netlink.Link{}
	for _, l := range links {
		by[l.Attrs().Index] = l
	}
	out := map[string]Parent{}
	for _, l := range links {
		a := l.Attrs()
		if ours(a) {
			continue
		}
		p := Parent{Up: a.Flags&net.FlagUp != 0}
		master := by[a.MasterIndex]
		switch {
		case a.Flags&net.FlagLoopback != 0 || a.EncapType != "ether":
			p.Why = "it is no Ethernet interface"
		case !p.Up:
			p.Why = "it is down"
		case a.OperState == netlink.OperDown || a.OperState == netlink.OperLowerLayerDown || a.OperState == netlink.OperNotPresent:
			p.Why = "it has no carrier"
		case master != nil && master.Type() != "vrf":
			p.Why, p.VLANs = fmt.Sprintf("it is a part of %s: name that one", master.Attrs().Name), true
		}
		out[a.Name] = p
	}
	return out
}

// addVLAN makes a VLAN interface. It is closed to the host before it is up.
func (k *linuxKernel) addVLAN(id LinkID, w Link) error {
	base, err := k.fast.LinkByName(w.Parent)
	if err != nil {
		return noLink(w.Parent, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Group, attrs.ParentIndex = id.Name, linkGroup(k.node), base.Attrs().Index
	vlan := &netlink.Vlan{LinkAttrs: attrs, VlanId: int(w.VLAN), VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}
	if err := k.create(vlan); errors.Is(err, unix.EOPNOTSUPP) {
		return &parentError{id.Name, "the kernel has no VLANs (module 8021q)"}
	} else if err != nil {
		return err
	}
	for path, value := range vlanSysctls(id.Name, true) {
		if err := os.WriteFile("/proc/sys/"+path, []byte(value), 0o644); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := k.finish(vlan, w); err != nil || base.Attrs().OperState != netlink.OperUp {
		return err
	}
	return k.settle(id.Name) // lest it is taken for one without carrier
}

// addMacvlan makes the device of a task on an interface of the host.
func (k *linuxKernel) addMacvlan(id LinkID, w Link) error {
	parent, err := k.fast.LinkByName(w.Parent)
	if err != nil {
		return noLink(w.Parent, err)
	}
	links := []netlink.Link{parent}
	if m := parent.Attrs().MasterIndex; m != 0 {
		if master, err := k.fast.LinkByIndex(m); err == nil {
			links = append(links, master)
		}
	}
	if p := parentsOf(links, func(*netlink.LinkAttrs) bool { return false })[w.Parent]; p.Why != "" {
		return &parentError{w.Parent, p.Why}
	}
	mac, err := net.ParseMAC(w.MAC)
	if err != nil {
		return err
	}
	ns, err := k.spaces.open(id.NS)
	if err != nil {
		return err
	}
	defer unix.Close(ns)
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.ParentIndex, attrs.Namespace = id.Name, mac, parent.Attrs().Index, netlink.NsFd(ns)
	switch err := k.fast.LinkAdd(&netlink.Macvlan{LinkAttrs: attrs, Mode: netlink.MACVLAN_MODE_BRIDGE}); {
	case errors.Is(err, unix.EOPNOTSUPP):
		return &parentError{w.Parent, "the kernel has no macvlan devices"}
	case errors.Is(err, unix.EBUSY):
		return &parentError{w.Parent, "something else has it for itself alone"}
	case err != nil:
		return err
	}
	h, inner, err := k.find(id)
	if err != nil {
		return err
	}
	noLinkLocal(h, inner)
	return h.LinkSetUp(inner)
}

func noLink(name string, err error) error {
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return &parentError{name, noInterface}
	}
	return err
}

// announce says on the networks of the host where tasks' new addresses are:
// switches may know their MAC by another port, from a task before.
func (k *linuxKernel) announce(fresh []Addr, find findLink) {
	for _, a := range fresh {
		p, err := netip.ParsePrefix(a.IP)
		if err != nil || a.Link.NS == "" || !p.Addr().Is4() {
			continue
		}
		if _, l, err := find(a.Link); err == nil && l.Type() == kindMacvlan {
			err = k.spaces.within(a.Link.NS, func() error { return sendARP(l.Attrs(), p.Addr()) })
			if err != nil {
				k.log.Warn("cannot announce an address", "addr", a, "err", err)
			}
		}
	}
}

// sendARP asks for an address on the link that has it, which tells all others.
func sendARP(l *netlink.LinkAttrs, ip netip.Addr) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	const ethernet, request = 1, 1
	addr := ip.AsSlice()
	m := binary.BigEndian.AppendUint16(nil, ethernet)
	m = binary.BigEndian.AppendUint16(m, unix.ETH_P_IP)
	m = append(m, 6, 4)
	m = binary.BigEndian.AppendUint16(m, request)
	m = append(append(m, l.HardwareAddr...), addr...)
	m = append(append(m, make([]byte, 6)...), addr...)
	to := &unix.SockaddrLinklayer{Protocol: binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ARP)), Ifindex: l.Index, Halen: 6}
	for i := range 6 {
		to.Addr[i] = 0xff
	}
	return unix.Sendto(fd, m, 0, to)
}

// unplug removes the devices of a task on networks of the host at once: a
// namespace goes when the kernel has the time, and until then it would answer.
func (n *namespaces) unplug(t spec.TaskID) error {
	h, err := n.handle(t)
	if err != nil {
		return nil // there is no namespace
	}
	links, err := dump(h.LinkList)
	if err != nil {
		return fmt.Errorf("list links of task %s: %w", t, err)
	}
	for _, l := range links {
		if l.Type() != kindMacvlan {
			continue
		}
		if err := h.LinkDel(l); err != nil && !errors.As(err, new(netlink.LinkNotFoundError)) && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("delete link %s of task %s: %w", l.Attrs().Name, t, err)
		}
	}
	return nil
}
