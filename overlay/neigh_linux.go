package overlay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

// ndmsgSize is the size of struct ndmsg, the head of a message about a
// neighbour or forwarding entry.
const ndmsgSize = 12

// entry is a neighbour or forwarding entry as the kernel tells it.
type entry struct {
	family byte
	index  int
	state  uint16
	flags  byte
	mac    net.HardwareAddr
	dst    netip.Addr
	// odd are properties that no entry of ours has, in the words of bridge(8).
	odd string
}

func parseEntry(b []byte) (entry, error) {
	if len(b) < ndmsgSize {
		return entry{}, fmt.Errorf("message of %d bytes about a neighbour", len(b))
	}
	e := entry{family: b[0], index: int(int32(binary.NativeEndian.Uint32(b[4:]))), state: binary.NativeEndian.Uint16(b[8:]), flags: b[10]}
	for b = b[ndmsgSize:]; len(b) >= unix.SizeofRtAttr; {
		size := int(binary.NativeEndian.Uint16(b))
		if size < unix.SizeofRtAttr || size > len(b) {
			return e, fmt.Errorf("message about a neighbour has an attribute of %d bytes", size)
		}
		v := b[unix.SizeofRtAttr:size]
		switch binary.NativeEndian.Uint16(b[2:]) & nl.NLA_TYPE_MASK {
		case netlink.NDA_DST:
			e.dst, _ = netip.AddrFromSlice(v)
		case netlink.NDA_LLADDR:
			e.mac = v
		case netlink.NDA_VNI:
			if len(v) == 4 {
				e.odd += fmt.Sprintf(" vni %d", binary.NativeEndian.Uint32(v))
			}
		case netlink.NDA_PORT:
			if len(v) == 2 {
				e.odd += fmt.Sprintf(" port %d", binary.BigEndian.Uint16(v))
			}
		case netlink.NDA_IFINDEX:
			if len(v) == 4 {
				e.odd += fmt.Sprintf(" via %d", binary.NativeEndian.Uint32(v))
			}
		}
		b = b[min((size+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1), len(b)):]
	}
	return e, nil
}

// entries reads all entries of a family: AF_BRIDGE has those of bridges and of
// VXLAN devices, AF_UNSPEC the neighbours of IPv4 and IPv6.
func entries(family byte) ([]entry, error) {
	return dump(func() ([]entry, error) {
		req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, unix.NLM_F_DUMP)
		req.AddRawData(append([]byte{family}, make([]byte, ndmsgSize-1)...))
		msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH)
		if err != nil {
			return nil, err
		}
		out := make([]entry, 0, len(msgs))
		for _, m := range msgs {
			e, err := parseEntry(m)
			if err != nil {
				return nil, err
			}
			out = append(out, e)
		}
		return out, nil
	})
}

// observeEntries adds the forwarding entries and the permanent neighbours of
// links of ours.
func observeEntries(st *State, id func(int) (LinkID, bool)) (map[neighbour]string, error) {
	fdb, err := entries(unix.AF_BRIDGE)
	if err != nil {
		return nil, fmt.Errorf("list forwarding entries: %w", err)
	}
	st.FDB = make(map[FDB]bool, len(fdb))
	for _, e := range fdb {
		l, ours := id(e.index)
		static := e.state&(netlink.NUD_NOARP|netlink.NUD_PERMANENT) != 0
		switch {
		case !ours:
		case e.flags&netlink.NTF_SELF == 0:
			if e.state&netlink.NUD_NOARP != 0 {
				st.FDB[FDB{Link: l.Name, MAC: e.mac.String()}] = true
			}
		case st.Links[l].Kind == kindVXLAN:
			if !static {
				e.odd += " dynamic"
			}
			st.FDB[FDB{Link: l.Name, MAC: e.mac.String(), Dst: e.dst.String() + e.odd}] = true
		}
	}
	known := map[neighbour]string{}
	neighs, err := entries(unix.AF_UNSPEC)
	if err != nil {
		return nil, fmt.Errorf("list neighbours: %w", err)
	}
	for _, e := range neighs {
		if l, ours := id(e.index); ours && e.state&netlink.NUD_PERMANENT != 0 && st.Links[l].Kind == kindBridge {
			st.Neighs[Neigh{Link: l.Name, IP: e.dst.String(), MAC: e.mac.String()}] = true
			known[neighbour{e.index, e.dst}] = e.mac.String()
		}
	}
	return known, nil
}

// neighbour names a neighbour of a link.
type neighbour struct {
	index int
	ip    netip.Addr
}

// landmarks are what the last look at the kernel found of ours, by which
// events are told apart.
type landmarks struct {
	links map[int]bool
	// neighs are the permanent neighbours and their addresses.
	neighs map[neighbour]string
	// underlay is the address that the node advertises, carrier the link that
	// has it, and mtu what that carries.
	underlay netip.Addr
	carrier  int
	mtu      int
}

// neighbourEvent reports whether a neighbour of a bridge of ours is not what
// it was: tasks come and go among them by themselves all the time, and only
// the permanent ones are ours.
func (s *landmarks) neighbourEvent(typ uint16, data []byte) bool {
	e, err := parseEntry(data)
	if err != nil || !s.links[e.index] {
		return false
	}
	mac, ours := s.neighs[neighbour{e.index, e.dst}]
	permanent := typ == unix.RTM_NEWNEIGH && e.state&netlink.NUD_PERMANENT != 0
	return ours != permanent || ours && mac != e.mac.String()
}

// message is the request that adds, replaces or deletes an entry.
func (e entry) message(verb Verb, seq uint32, ack bool) []byte {
	b := make([]byte, unix.SizeofNlMsghdr+ndmsgSize, 96)
	typ, flags := uint16(unix.RTM_NEWNEIGH), uint16(unix.NLM_F_REQUEST|unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	if verb == Delete {
		typ, flags = unix.RTM_DELNEIGH, unix.NLM_F_REQUEST
	}
	if ack {
		flags |= unix.NLM_F_ACK
	}
	binary.NativeEndian.PutUint16(b[4:], typ)
	binary.NativeEndian.PutUint16(b[6:], flags)
	binary.NativeEndian.PutUint32(b[8:], seq)
	h := b[unix.SizeofNlMsghdr:]
	h[0], h[10] = e.family, e.flags
	binary.NativeEndian.PutUint32(h[4:], uint32(e.index))
	binary.NativeEndian.PutUint16(h[8:], e.state)
	attr := func(typ uint16, v []byte) {
		b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(v)))
		b = append(binary.NativeEndian.AppendUint16(b, typ), v...)
		b = append(b, make([]byte, -len(b)&(unix.NLMSG_ALIGNTO-1))...)
	}
	if e.dst.IsValid() {
		attr(netlink.NDA_DST, e.dst.AsSlice())
	}
	if e.mac != nil {
		attr(netlink.NDA_LLADDR, e.mac)
	}
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	return b
}

// entryOf returns the entry that an operation on a FDB or Neigh is about.
func entryOf(o Op) (link string, e entry, err error) {
	switch x := o.Object.(type) {
	case FDB:
		link, e = x.Link, entry{family: unix.AF_BRIDGE, state: netlink.NUD_NOARP, flags: netlink.NTF_MASTER}
		e.mac, err = net.ParseMAC(x.MAC)
		if x.Dst != "" {
			e.state, e.flags = netlink.NUD_PERMANENT, netlink.NTF_SELF
			// A deletion without the destination deletes the whole entry.
			if err == nil && o.Verb != Delete {
				e.dst, err = netip.ParseAddr(x.Dst)
			}
		}
	case Neigh:
		link, e = x.Link, entry{family: unix.AF_INET, state: netlink.NUD_PERMANENT}
		if e.dst, err = netip.ParseAddr(x.IP); err == nil && e.dst.Is6() {
			e.family = unix.AF_INET6
		}
		if err == nil && o.Verb != Delete {
			e.mac, err = net.ParseMAC(x.MAC)
		}
	}
	return link, e, err
}

func isEntry(o Op) bool {
	switch o.Object.(type) {
	case FDB, Neigh:
		return true
	}
	return false
}

// entryBatch is how many entries go into one message to the kernel: should
// each of them fail, the answers still fit into the socket's buffer.
const entryBatch = 128

// applyEntries does operations on entries, many in one system call. Entries
// that fail for the same reason share one error, so that a link which is not
// there does not fill the status with a thousand lines.
func (k *linuxKernel) applyEntries(ops []Op) []error {
	errs := make([]error, len(ops))
	type reason struct{ link, text string }
	reasons := map[reason]error{}
	fail := func(i int, link string, err error) {
		r := reason{link, err.Error()}
		if reasons[r] == nil {
			reasons[r] = fmt.Errorf("%s: %w", ops[i], err)
		}
		errs[i] = reasons[r]
	}
	type found struct {
		index int
		err   error
	}
	links := map[string]found{}
	var batch []queued
	sock, err := openRoute()
	if err != nil {
		for i := range ops {
			fail(i, "", err)
		}
		return errs
	}
	defer unix.Close(sock)
	flush := func() {
		for i, err := range sendEntries(sock, batch) {
			if err != nil && !(ops[batch[i].op].Verb == Delete && errors.Is(err, unix.ENOENT)) {
				fail(batch[i].op, batch[i].link, err)
			}
		}
		batch = batch[:0]
	}
	for i, o := range ops {
		link, e, err := entryOf(o)
		if err != nil {
			fail(i, link, err)
			continue
		}
		l, ok := links[link]
		if !ok {
			var dev netlink.Link
			if _, dev, l.err = k.find(LinkID{Name: link}); l.err == nil {
				l.index = dev.Attrs().Index
			}
			links[link] = l
		}
		if l.err != nil {
			fail(i, link, l.err)
			continue
		}
		e.index = l.index
		batch = append(batch, queued{op: i, link: link, verb: o.Verb, entry: e})
		if len(batch) == entryBatch {
			flush()
		}
	}
	flush()
	return errs
}

// queued is an entry on its way to the kernel, with the number of its operation.
type queued struct {
	op   int
	link string
	verb Verb
	entry
}

func openRoute() (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return -1, fmt.Errorf("open netlink: %w", err)
	}
	limit := nl.SocketTimeoutTv
	err = errors.Join(
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1), // an error does not repeat the message
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit),
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
	)
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("open netlink: %w", err)
	}
	return fd, nil
}

// sendEntries returns one error for each entry. The kernel does them in order
// and answers what fails; the last one asks for an answer in any case, and when
// that has come there are no more.
func sendEntries(sock int, batch []queued) []error {
	errs := make([]error, len(batch))
	if len(batch) == 0 {
		return errs
	}
	all := func(err error) []error {
		for i := range errs {
			errs[i] = err
		}
		return errs
	}
	var b []byte
	for i, q := range batch {
		b = append(b, q.message(q.verb, uint32(i), i == len(batch)-1)...)
	}
	if err := unix.Sendto(sock, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return all(os.NewSyscallError("send to netlink", err))
	}
	answer := make([]byte, os.Getpagesize())
	for {
		n, _, err := unix.Recvfrom(sock, answer, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return all(os.NewSyscallError("receive from netlink", err))
		}
		for m := answer[:n]; len(m) >= unix.SizeofNlMsghdr+4; {
			size, typ, seq := binary.NativeEndian.Uint32(m), binary.NativeEndian.Uint16(m[4:]), binary.NativeEndian.Uint32(m[8:])
			if typ != unix.NLMSG_ERROR || int(seq) >= len(batch) || size < unix.SizeofNlMsghdr+4 {
				return all(fmt.Errorf("netlink answers with message type %d about entry %d", typ, seq))
			}
			if errno := -int32(binary.NativeEndian.Uint32(m[unix.SizeofNlMsghdr:])); errno != 0 {
				errs[seq] = unix.Errno(errno)
			}
			if int(seq) == len(batch)-1 {
				return errs
			}
			m = m[min(int(size+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1), len(m)):]
		}
	}
}

// clearIdentifier makes way for a VXLAN device, of whose identifier and port
// the kernel takes only one: a device of ours that is about to be deleted is
// deleted now, and any other is named.
func (k *linuxKernel) clearIdentifier(want *netlink.Vxlan) error {
	links, err := dump(k.fast.LinkList)
	if err != nil {
		return err
	}
	for _, l := range links {
		v, ok := l.(*netlink.Vxlan)
		if !ok || v.VxlanId != want.VxlanId || v.Port != want.Port {
			continue
		}
		if l.Attrs().Group != doomedGroup(k.node) {
			return spec.Conflictf("VXLAN identifier %d on UDP port %d is taken by link %s; delete that link", want.VxlanId, want.Port, describe(l))
		}
		if err := k.fast.LinkDel(l); err != nil && !errors.As(err, new(netlink.LinkNotFoundError)) {
			return err
		}
	}
	return nil
}

func describe(l netlink.Link) string {
	a := l.Attrs()
	s := fmt.Sprintf("%s (index %d", a.Name, a.Index)
	if a.Alias != "" {
		s += fmt.Sprintf(", alias %q", a.Alias)
	}
	return s + ")"
}

// explainUp says in words why a VXLAN device does not come up: that is when
// the kernel takes its port.
func (k *linuxKernel) explainUp(w Link, err error) error {
	if w.Kind != kindVXLAN || !errors.Is(err, unix.EADDRINUSE) {
		return err
	}
	links, err2 := dump(k.fast.LinkList)
	if err2 != nil {
		return err
	}
	for _, l := range links {
		if v, ok := l.(*netlink.Vxlan); ok && v.Port == int(w.DstPort) && !k.isOurs(l.Attrs()) {
			return spec.Conflictf("UDP port %d is taken by VXLAN device %s, whose settings do not let others share it; delete that link or give it another port", w.DstPort, describe(l))
		}
	}
	every := netip.IPv4Unspecified()
	if a, err := netip.ParseAddr(w.Local); err == nil && a.Is6() {
		every = netip.IPv6Unspecified()
	}
	if holder, found := k.holders.find("udp", every, w.DstPort); found {
		return spec.Conflictf("UDP port %d, which networks between hosts need, is in use on this host by %s; stop it", w.DstPort, holder)
	}
	return err
}
