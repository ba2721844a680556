package overlay

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

func (k *linuxKernel) apply(ops []Op) []error {
	errs := make([]error, len(ops))
	doomed := false
	var fresh []Addr
	find := k.finder()
	for i := 0; i < len(ops); i++ {
		if isNFT(ops[i]) {
			end := i + 1
			tables := k.nftOf(tableOf(ops[i]))
			for end < len(ops) && isNFT(ops[end]) && k.nftOf(tableOf(ops[end])) == tables {
				end++
			}
			err := tables.transact(ops[i:end])
			for ; i < end; i++ {
				errs[i] = err
			}
			i--
			continue
		}
		if f, ok := endFlow(ops[i]); ok {
			flows := []Flow{f}
			for j := i + 1; j < len(ops); j++ {
				next, ok := endFlow(ops[j])
				if !ok || next.NS != f.NS {
					break
				}
				flows = append(flows, next)
			}
			err := k.forgetEnds(f.NS, flows)
			for range flows {
				errs[i] = err
				i++
			}
			i--
			continue
		}
		if isEntry(ops[i]) {
			end := i + 1
			for end < len(ops) && isEntry(ops[end]) {
				end++
			}
			copy(errs[i:end], k.applyEntries(ops[i:end]))
			i = end - 1
			continue
		}
		if x, ok := ops[i].Object.(Sysctl); ok {
			settings := []Sysctl{x}
			for j := i + 1; j < len(ops); j++ {
				next, ok := ops[j].Object.(Sysctl)
				if !ok || next.Key.NS != x.Key.NS {
					break
				}
				settings = append(settings, next)
			}
			for _, err := range k.writeSysctls(x.Key.NS, settings) {
				if err != nil {
					errs[i] = fmt.Errorf("%s: %w", ops[i], err)
				}
				i++
			}
			i--
			continue
		}
		if err := k.applyOne(ops[i], find); err != nil {
			errs[i] = fmt.Errorf("%s: %w", ops[i], err)
		} else if a, ok := ops[i].Object.(Addr); ok && ops[i].Verb == Add {
			fresh = append(fresh, a)
		}
		if _, ok := ops[i].Object.(*LinkChange); ok {
			doomed = doomed || ops[i].Verb == Delete
			find = k.finder()
		}
	}
	settleAddrs(fresh, find)
	k.announce(fresh, find)
	if doomed {
		select {
		case k.reap <- struct{}{}:
		default:
		}
	}
	return errs
}

func isNFT(o Op) bool {
	switch o.Object.(type) {
	case TableChange, SetChange, Element, *ChainChange:
		return true
	}
	return false
}

func (k *linuxKernel) applyOne(o Op, find findLink) error {
	switch x := o.Object.(type) {
	case *LinkChange:
		return k.applyLink(o.Verb, x)
	case Claim:
		if o.Verb == Delete {
			k.release(x)
			return nil
		}
		return k.claim([]Claim{x})[x]
	case Flow:
		return k.forget(x)
	case Addr:
		return applyAddr(o.Verb, x, find)
	case Route:
		return addRoute(x, find)
	case Program:
		return k.addProgram(x)
	}
	return fmt.Errorf("operation %T is not known", o.Object)
}

// handleFor returns the handle of the namespace that a link is in.
func (k *linuxKernel) handleFor(ns spec.TaskID) (*netlink.Handle, error) {
	if ns == "" {
		return k.fast, nil
	}
	return k.spaces.handle(ns)
}

func (k *linuxKernel) find(id LinkID) (*netlink.Handle, netlink.Link, error) {
	h, err := k.handleFor(id.NS)
	if err != nil {
		return nil, nil, err
	}
	l, err := h.LinkByName(id.Name)
	if err != nil {
		return nil, nil, fmt.Errorf("find link %s: %w", id, err)
	}
	if id.NS == "" && !k.isOurs(l.Attrs()) {
		return nil, nil, spec.Conflictf("link %s is not of this node", describe(l))
	}
	return h, l, nil
}

// findLink finds a link and what speaks to the kernel where it is.
type findLink func(id LinkID) (*netlink.Handle, netlink.Link, error)

// finder is find that asks once for each link. It is good for as long as no
// link changes.
func (k *linuxKernel) finder() findLink {
	type found struct {
		h *netlink.Handle
		l netlink.Link
	}
	known := map[LinkID]found{}
	return func(id LinkID) (*netlink.Handle, netlink.Link, error) {
		f, ok := known[id]
		if !ok {
			var err error
			if f.h, f.l, err = k.find(id); err != nil {
				return nil, nil, err
			}
			known[id] = f
		}
		return f.h, f.l, nil
	}
}

func (k *linuxKernel) applyLink(verb Verb, c *LinkChange) error {
	switch verb {
	case Add:
		return k.addLink(c.ID, c.Want)
	case Replace:
		if h, l, err := k.find(c.ID); err == nil {
			if err := h.LinkDel(l); err != nil {
				return fmt.Errorf("delete the old link: %w", err)
			}
		}
		return k.addLink(c.ID, c.Want)
	case Delete:
		_, l, err := k.find(c.ID)
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return nil
		}
		if err != nil {
			return err
		}
		return k.fast.LinkSetGroup(l, int(doomedGroup(k.node)))
	}
	return k.setLink(c)
}

// errNoBridge: the bridge that a link belongs to does not exist.
var errNoBridge = errors.New("its bridge does not exist")

// bridge finds a bridge of ours.
func (k *linuxKernel) bridge(name string) (netlink.Link, error) {
	_, l, err := k.find(LinkID{Name: name})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoBridge, err)
	}
	return l, nil
}

func (k *linuxKernel) addLink(id LinkID, w Link) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.Group = id.Name, w.MTU, linkGroup(k.node)
	var link netlink.Link
	switch w.Kind {
	case kindVLAN:
		return k.addVLAN(id, w)
	case kindMacvlan:
		return k.addMacvlan(id, w)
	case kindBridge:
		mac, err := net.ParseMAC(w.MAC)
		if err != nil {
			return err
		}
		attrs.HardwareAddr = mac
		// An MTU that is given at the creation does not last: the kernel takes
		// a bridge's back to 1500 with its last port. One that is set later does.
		attrs.MTU = 0
		link = &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: new(bool)}
	case kindVXLAN:
		bridge, err := k.bridge(w.Master)
		if err != nil {
			return err
		}
		attrs.MasterIndex = bridge.Attrs().Index
		link = &netlink.Vxlan{LinkAttrs: attrs, VxlanId: int(w.VNI), SrcAddr: net.ParseIP(w.Local), Port: int(w.DstPort), Learning: w.Learning}
	case kindVeth:
		mac, err := net.ParseMAC(w.PeerMAC)
		if err != nil {
			return err
		}
		bridge, err := k.bridge(w.Master)
		if err != nil {
			return err
		}
		ns, err := k.spaces.open(w.Peer.NS)
		if err != nil {
			return err
		}
		defer unix.Close(ns)
		attrs.MasterIndex = bridge.Attrs().Index
		veth := netlink.NewVeth(attrs)
		veth.PeerName, veth.PeerHardwareAddr, veth.PeerMTU, veth.PeerNamespace = w.Peer.Name, mac, uint32(w.MTU), netlink.NsFd(ns)
		link = veth
	default:
		return fmt.Errorf("a link of kind %q cannot be made", w.Kind)
	}
	if err := k.create(link); err != nil {
		return err
	}
	if w.Kind == kindBridge && w.MTU > 0 {
		if err := k.fast.LinkSetMTU(link, w.MTU); err != nil {
			return err
		}
	}
	if err := k.finish(link, w); err != nil {
		return err
	}
	switch w.Kind {
	case kindBridge:
		return nil
	case kindVXLAN:
		// It has no carrier to wait for, but its bridge gets one by it.
		return k.settle(w.Master)
	}
	h, inner, err := k.find(w.Peer)
	if err != nil {
		return err
	}
	noLinkLocal(h, inner)
	if err := h.LinkSetUp(inner); err != nil {
		return err
	}
	return k.settle(id.Name, w.Master)
}

// settle waits until links carry packets. The kernel hears of a new carrier by
// a work queue, and until then a port of a bridge, and a bridge that gets its
// first port, drop what they are given: the first ARP of a task would be lost,
// and the next one comes a second later. Asking for a single link makes the
// kernel (6.8 and later) catch up at once, ports before their bridge.
func (k *linuxKernel) settle(names ...string) error {
	const tries, between = 100, time.Millisecond
	for _, name := range names {
		for i := 0; ; i++ {
			l, err := k.fast.LinkByName(name)
			if err != nil {
				return err
			}
			if l.Attrs().OperState == netlink.OperUp {
				break
			}
			if i == tries {
				return fmt.Errorf("link %s does not come up: it is %s", name, l.Attrs().OperState)
			}
			time.Sleep(between) // an older kernel takes a moment
		}
	}
	return nil
}

// create makes the link. One of that name that is about to be deleted is
// deleted now; any other is not ours to touch.
func (k *linuxKernel) create(l netlink.Link) error {
	err := k.fast.LinkAdd(l)
	if !errors.Is(err, os.ErrExist) {
		return err
	}
	old, err2 := k.fast.LinkByName(l.Attrs().Name)
	if v, ok := l.(*netlink.Vxlan); ok && err2 != nil {
		if err := k.clearIdentifier(v); err != nil {
			return err
		}
	}
	if err2 == nil {
		if old.Attrs().Group != doomedGroup(k.node) {
			return spec.Conflictf("a link of that name exists that is not of this node (alias %q)", old.Attrs().Alias)
		}
		if err := k.fast.LinkDel(old); err != nil && !errors.As(err, new(netlink.LinkNotFoundError)) {
			return err
		}
	}
	return k.fast.LinkAdd(l)
}

// finish sets what cannot be set in the message that makes a link.
func (k *linuxKernel) finish(l netlink.Link, w Link) error {
	if err := k.fast.LinkSetAlias(l, w.Alias); err != nil {
		return fmt.Errorf("set alias: %w", err)
	}
	noLinkLocal(k.fast, l)
	if w.Master != "" {
		if err := setPort(k.fast, l, w.Port); err != nil {
			return err
		}
	}
	if !w.Up {
		return nil
	}
	return k.explainUp(w, k.fast.LinkSetUp(l))
}

// noLinkLocal keeps a link without an IPv6 address of its own; on a host
// without IPv6 there is nothing to keep away.
func noLinkLocal(h *netlink.Handle, l netlink.Link) {
	const none = 1
	_ = h.LinkSetIP6AddrGenMode(l, none)
}

func (k *linuxKernel) setLink(c *LinkChange) error {
	h, l, err := k.find(c.ID)
	if err != nil {
		return err
	}
	var errs []error
	do := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	port := false
	for _, f := range changedFields(c.Have, c.Want) {
		switch f.name {
		case "mac":
			mac, err := net.ParseMAC(c.Want.MAC)
			if err == nil {
				err = h.LinkSetHardwareAddr(l, mac)
			}
			do(err)
		case "mtu":
			do(h.LinkSetMTU(l, c.Want.MTU))
		case "alias":
			do(h.LinkSetAlias(l, c.Want.Alias))
		case "master":
			bridge, err := h.LinkByName(c.Want.Master)
			if err == nil {
				err = h.LinkSetMaster(l, bridge)
			}
			do(err)
			port = true
		case "port":
			port = true
		case "state":
			do(k.explainUp(c.Want, h.LinkSetUp(l)))
		}
	}
	if port {
		do(setPort(h, l, c.Want.Port))
	}
	return errors.Join(errs...)
}

// The attributes of a bridge's port (linux/if_link.h).
const (
	brportMode          = 4 // hairpin
	brportLearning      = 8
	brportUnicastFlood  = 9
	brportMcastFlood    = 27
	brportBcastFlood    = 30
	brportNeighSuppress = 32
	brportIsolated      = 33
	brportLocked        = 39
)

func (p *Port) attrs() map[uint16]*bool {
	return map[uint16]*bool{
		brportMode: &p.Hairpin, brportLearning: &p.Learning, brportUnicastFlood: &p.Flood, brportMcastFlood: &p.McastFlood,
		brportBcastFlood: &p.BcastFlood, brportNeighSuppress: &p.NeighSuppress, brportLocked: &p.Locked, brportIsolated: &p.Isolated,
	}
}

// setPort sets all flags of a bridge's port in one message.
func setPort(h *netlink.Handle, l netlink.Link, p Port) error {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
	msg.Index = int32(l.Attrs().Index)
	req.AddData(msg)
	info := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	for typ, on := range p.attrs() {
		v := uint8(0)
		if *on {
			v = 1
		}
		info.AddRtAttr(int(typ), []byte{v})
	}
	req.AddData(info)
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("set flags of the bridge port: %w", err)
	}
	return nil
}

// portFlags reads the flags of all bridge ports, by the index of the link.
func (k *linuxKernel) portFlags(h *netlink.Handle) (map[int]Port, error) {
	msgs, err := dump(func() ([][]byte, error) {
		req := nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_DUMP)
		req.AddData(nl.NewIfInfomsg(unix.AF_BRIDGE))
		return req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	})
	if err != nil {
		return nil, fmt.Errorf("list bridge ports: %w", err)
	}
	ports := map[int]Port{}
	for _, m := range msgs {
		info := nl.DeserializeIfInfomsg(m)
		attrs, err := nl.ParseRouteAttr(m[info.Len():])
		if err != nil {
			return nil, fmt.Errorf("read bridge port: %w", err)
		}
		for _, a := range attrs {
			if a.Attr.Type&nl.NLA_TYPE_MASK != unix.IFLA_PROTINFO {
				continue
			}
			flags, err := nl.ParseRouteAttr(a.Value)
			if err != nil {
				return nil, fmt.Errorf("read bridge port: %w", err)
			}
			// A kernel before 5.18 knows no locked ports and says nothing of
			// them; the static entries still direct the traffic there.
			p := Port{Locked: true}
			to := p.attrs()
			for _, f := range flags {
				if on, ok := to[f.Attr.Type]; ok && len(f.Value) > 0 {
					*on = f.Value[0] != 0
				}
			}
			ports[int(info.Index)] = p
		}
	}
	return ports, nil
}

func applyAddr(verb Verb, a Addr, find findLink) error {
	h, l, err := find(a.Link)
	if err != nil {
		return err
	}
	addr, err := netlink.ParseAddr(a.IP)
	if err != nil {
		return err
	}
	if verb == Delete {
		// It may have gone with something that was done before.
		if err := h.AddrDel(l, addr); !errors.Is(err, unix.EADDRNOTAVAIL) {
			return err
		}
		return nil
	}
	if addr.IP.To4() == nil {
		addr.Flags = unix.IFA_F_NODAD // it is good at once
	}
	return h.AddrReplace(l, addr)
}

// settleAddrs waits until IPv6 addresses that were added are those of their
// link. The kernel makes them so by a work queue: it joins the group in which
// neighbours ask for an address, and then makes the route by which what comes for
// it is taken in. A question before that is lost, and the next one comes a second
// later. What takes longer is left to that.
func settleAddrs(fresh []Addr, find findLink) {
	const tries, between = 500, 200 * time.Microsecond
	for _, a := range fresh {
		p, err := netip.ParsePrefix(a.IP)
		if err != nil || p.Addr().Is4() {
			continue
		}
		h, l, err := find(a.Link)
		for i := 0; err == nil && i < tries; i++ {
			var routes []netlink.Route
			routes, err = h.RouteGetWithOptions(p.Addr().AsSlice(), &netlink.RouteGetOptions{OifIndex: l.Attrs().Index})
			if len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL {
				break
			}
			time.Sleep(between)
		}
	}
}

// prefixMetric is IP6_RT_PRIO_ADDRCONF, of the route that the kernel makes
// with an IPv6 address.
const prefixMetric = 256

func addRoute(r Route, find findLink) error {
	h, l, err := find(r.Link)
	if err != nil {
		return err
	}
	_, dst, err := net.ParseCIDR(r.Dst)
	if err != nil {
		return err
	}
	if r.Via != "" {
		return h.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_UNIVERSE, Protocol: unix.RTPROT_BOOT, Gw: net.ParseIP(r.Via)})
	}
	route := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK, Protocol: unix.RTPROT_KERNEL, Src: net.ParseIP(r.Src)}
	if dst.IP.To4() != nil {
		return h.RouteReplace(route)
	}
	// To replace would take a route of that prefix from another link, and every
	// link has one of fe80::/64.
	route.Scope, route.Priority = netlink.SCOPE_UNIVERSE, prefixMetric
	if err := h.RouteAppend(route); !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
}

// forget deletes the connection tracking entries of a port of the host.
func (k *linuxKernel) forget(f Flow) error {
	ip, err := netip.ParseAddr(f.IP)
	if err != nil {
		return err
	}
	family := inetOf(ip)
	local := map[netip.Addr]bool{}
	addrs, err := dump(func() ([]netlink.Addr, error) { return k.rt.AddrList(nil, int(family)) })
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		local[addrOf(a.IP)] = true
	}
	_, err = k.rt.ConntrackDeleteFilters(netlink.ConntrackTable, family, flowFilter{f, ip, local})
	if err != nil {
		return fmt.Errorf("delete connections: %w", err)
	}
	return nil
}

func inetOf(ip netip.Addr) netlink.InetFamily {
	if ip.Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// addrOf is an address as netlink tells it.
func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// flowFilter matches what a Flow describes: datagrams to the port at an
// address of this host that go to a target that left, or to the host itself
// because nothing was published when they began.
type flowFilter struct {
	Flow
	ip    netip.Addr
	local map[netip.Addr]bool
}

func (f flowFilter) MatchConntrackFlow(c *netlink.ConntrackFlow) bool {
	if c.Forward.Protocol != unix.IPPROTO_UDP || c.Forward.DstPort != f.Port {
		return false
	}
	dst, end := addrOf(c.Forward.DstIP), addrOf(c.Reverse.SrcIP)
	if !f.ip.IsUnspecified() && dst != f.ip {
		return false
	}
	for _, t := range f.Targets {
		if t == end {
			return false
		}
	}
	for _, g := range f.Gone {
		if g == end {
			return true
		}
	}
	return dst == end && (f.local[dst] || dst.IsLoopback())
}
