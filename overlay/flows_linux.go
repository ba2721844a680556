package overlay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	mdl "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// forgetEnds deletes the connection tracking entries of a Flow without a port.
//
// The kernel looks for them itself where it can (6.12). Where it cannot, they
// are all read, which takes it some milliseconds in each namespace, however
// few they are: the table of all namespaces is one.
func (k *linuxKernel) forgetEnds(f Flow) error {
	n := k.nftIn(f.NS)
	for _, gone := range f.Gone {
		if !k.scan && n.forget(f, gone) == nil {
			continue
		}
		return k.scanFlows(f)
	}
	return nil
}

// The attributes of a request about connections (nfnetlink_conntrack.h).
const (
	ctDelete      = 2
	ctTupleOrig   = 1
	ctTupleReply  = 2
	ctFilter      = 25
	ctTupleIP     = 1
	ctTupleProto  = 2
	ctIPv4Src     = 1
	ctIPv4Dst     = 2
	ctProtoNum    = 1
	ctFilterOrig  = 1
	ctFilterReply = 2

	ctMatchSrc   = 1 << 0
	ctMatchDst   = 1 << 1
	ctMatchProto = 1 << 3
)

// forget deletes the entries of one end.
func (n *nftTables) forget(f Flow, gone netip.Addr) error {
	nested := func(typ uint16, in ...mdl.Attribute) mdl.Attribute {
		b, _ := mdl.MarshalAttributes(in) // its only error is an attribute of more than 64 kB
		return mdl.Attribute{Type: typ | unix.NLA_F_NESTED, Data: b}
	}
	proto := nested(ctTupleProto, mdl.Attribute{Type: ctProtoNum, Data: []byte{protocols()[f.Proto]}})
	// The kernel wants addresses in both tuples; the flags say which count.
	match := func(tuple, ip uint16, a netip.Addr) mdl.Attribute {
		return nested(tuple, nested(ctTupleIP, mdl.Attribute{Type: ip, Data: a.AsSlice()}), proto)
	}
	flags := func(typ uint16, v uint32) mdl.Attribute {
		return mdl.Attribute{Type: typ, Data: binary.NativeEndian.AppendUint32(nil, v)}
	}
	orig, filter := nested(ctTupleOrig, proto), []mdl.Attribute{flags(ctFilterOrig, ctMatchProto), flags(ctFilterReply, ctMatchSrc|ctMatchProto)}
	if f.IP != "" {
		ip, err := netip.ParseAddr(f.IP)
		if err != nil {
			return err
		}
		orig, filter[0] = match(ctTupleOrig, ctIPv4Dst, ip), flags(ctFilterOrig, ctMatchDst|ctMatchProto)
	}
	data, err := mdl.MarshalAttributes([]mdl.Attribute{orig, match(ctTupleReply, ctIPv4Src, gone), nested(ctFilter, filter...)})
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.openLocked(); err != nil {
		return err
	}
	_, err = n.raw.Execute(mdl.Message{
		Header: mdl.Header{Type: unix.NFNL_SUBSYS_CTNETLINK<<8 | ctDelete, Flags: mdl.Request | mdl.Acknowledge},
		Data:   append(nfHeader(unix.AF_INET, 0), data...),
	})
	return err
}

func protocols() map[string]byte { return map[string]byte{"tcp": protoTCP, "udp": protoUDP} }

// scanFlows does what forget does on a kernel that cannot.
func (k *linuxKernel) scanFlows(f Flow) error {
	h := k.rt
	if f.NS != "" {
		fd, err := k.spaces.open(f.NS)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		// Not kept: it is seldom needed, and one more socket for each task.
		h, err = netlink.NewHandleAt(netns.NsHandle(fd), unix.NETLINK_NETFILTER)
		if err != nil {
			return fmt.Errorf("open netlink of task %s: %w", f.NS, err)
		}
		defer h.Close()
	}
	if _, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, endFilter{f}); err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return fmt.Errorf("delete connections: %w", err)
	}
	return nil
}

// endFilter matches what a Flow without a port describes.
type endFilter struct{ Flow }

func (f endFilter) MatchConntrackFlow(c *netlink.ConntrackFlow) bool {
	if c.Forward.Protocol != protocols()[f.Proto] {
		return false
	}
	dst, _ := netip.AddrFromSlice(c.Forward.DstIP.To4())
	end, _ := netip.AddrFromSlice(c.Reverse.SrcIP.To4())
	if f.IP != "" && dst.String() != f.IP {
		return false
	}
	for _, g := range f.Gone {
		if g == end {
			return true
		}
	}
	return false
}
