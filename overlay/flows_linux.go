package overlay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	mdl "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

// endFlow returns the Flow of an operation if it is one without a port.
func endFlow(o Op) (Flow, bool) {
	f, ok := o.Object.(Flow)
	return f, ok && f.Port == 0
}

// forgetEnds deletes the connection tracking entries of Flows without a port
// in one namespace.
//
// The kernel looks for those of IPv4 itself where it can, one end at a time.
// Where there are more, and with an older kernel, which takes the request for
// that of one entry and refuses, all entries are read. Either takes some
// milliseconds in each namespace, however few they are, since the table of all
// namespaces is one; where there are none, nobody is asked. Those of IPv6 are
// always read: the kernel's filter compares their addresses the wrong way
// round, and leaves just those that it is asked to delete.
func (k *linuxKernel) forgetEnds(ns spec.TaskID, flows []Flow) error {
	if count, err := k.readSysctl(SysctlKey{NS: ns, Path: "net/netfilter/nf_conntrack_count"}); err == nil && count == "0" {
		return nil
	}
	four, six := splitFlows(flows)
	if len(four) > 0 && !k.scan && ends(four) <= fewEnds && k.nftIn(ns).forget(four) == nil {
		four = nil
	}
	if len(four)+len(six) == 0 {
		return nil
	}
	h := k.rt
	if ns != "" {
		fd, err := k.spaces.open(ns)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		// Not kept: it is seldom needed, and one more socket for each task.
		h, err = netlink.NewHandleAt(netns.NsHandle(fd), unix.NETLINK_NETFILTER)
		if err != nil {
			return fmt.Errorf("open netlink of task %s: %w", ns, err)
		}
		defer h.Close()
	}
	for family, flows := range map[netlink.InetFamily][]Flow{unix.AF_INET: four, unix.AF_INET6: six} {
		if len(flows) == 0 {
			continue
		}
		if _, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, family, endFilter(flows)); err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return fmt.Errorf("delete connections: %w", err)
		}
	}
	return nil
}

// fewEnds is for how many ends the kernel is asked for each: it goes through the
// entries of all namespaces every time.
const fewEnds = 2

func ends(flows []Flow) (n int) {
	for _, f := range flows {
		n += len(f.Gone)
	}
	return n
}

// splitFlows tells the ends of IPv4 that are gone from those of IPv6.
func splitFlows(flows []Flow) (four, six []Flow) {
	for _, f := range flows {
		var parts [2][]netip.Addr
		for _, a := range f.Gone {
			if a.Is6() {
				parts[1] = append(parts[1], a)
			} else {
				parts[0] = append(parts[0], a)
			}
		}
		if f.Gone = parts[0]; len(f.Gone) > 0 {
			four = append(four, f)
		}
		if f.Gone = parts[1]; len(f.Gone) > 0 {
			six = append(six, f)
		}
	}
	return four, six
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

// forget asks the kernel to delete the entries of all ends that are gone.
func (n *nftTables) forget(flows []Flow) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.openLocked(); err != nil {
		return err
	}
	for _, f := range flows {
		for _, gone := range f.Gone {
			data, err := flowRequest(f, gone)
			if err != nil {
				return err
			}
			_, err = n.raw.Execute(mdl.Message{
				Header: mdl.Header{Type: unix.NFNL_SUBSYS_CTNETLINK<<8 | ctDelete, Flags: mdl.Request | mdl.Acknowledge},
				Data:   append(nfHeader(unix.AF_INET, 0), data...),
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// flowRequest describes the entries of a Flow that lead to one end of IPv4. The filter
// says which parts of the two tuples count.
func flowRequest(f Flow, gone netip.Addr) ([]byte, error) {
	nested := func(typ uint16, in ...mdl.Attribute) mdl.Attribute {
		b, _ := mdl.MarshalAttributes(in) // its only error is an attribute of more than 64 kB
		return mdl.Attribute{Type: typ | unix.NLA_F_NESTED, Data: b}
	}
	flags := func(typ uint16, v uint32) mdl.Attribute {
		return mdl.Attribute{Type: typ, Data: binary.NativeEndian.AppendUint32(nil, v)}
	}
	proto := nested(ctTupleProto, mdl.Attribute{Type: ctProtoNum, Data: []byte{protocols()[f.Proto]}})
	end := nested(ctTupleIP, mdl.Attribute{Type: ctIPv4Src, Data: gone.AsSlice()})
	orig, counts := nested(ctTupleOrig, proto), uint32(ctMatchProto)
	if f.IP != "" {
		ip, err := netip.ParseAddr(f.IP)
		if err != nil {
			return nil, err
		}
		orig = nested(ctTupleOrig, nested(ctTupleIP, mdl.Attribute{Type: ctIPv4Dst, Data: ip.AsSlice()}), proto)
		counts |= ctMatchDst
	}
	return mdl.MarshalAttributes([]mdl.Attribute{
		orig, nested(ctTupleReply, end, proto),
		nested(ctFilter, flags(ctFilterOrig, counts), flags(ctFilterReply, ctMatchSrc|ctMatchProto)),
	})
}

func protocols() map[string]byte { return map[string]byte{"tcp": protoTCP, "udp": protoUDP} }

// endFilter matches what Flows without a port describe.
type endFilter []Flow

func (fs endFilter) MatchConntrackFlow(c *netlink.ConntrackFlow) bool {
	dst, end := addrOf(c.Forward.DstIP), addrOf(c.Reverse.SrcIP)
	return slices.ContainsFunc(fs, func(f Flow) bool {
		return c.Forward.Protocol == protocols()[f.Proto] && (f.IP == "" || dst.String() == f.IP) && slices.Contains(f.Gone, end)
	})
}
