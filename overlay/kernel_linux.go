package overlay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

// kernel is the host's network as the loop sees it: it is read, and operations
// are done to it. Safe for concurrent use.
type kernel interface {
	// observe reads what is there of ours.
	observe(q query) (observation, error)
	// apply does the operations in order and goes on after failures; the i-th
	// error belongs to the i-th operation. Links are deleted in the background.
	apply(ops []Op) []error
	// claim holds every port that it can and says why not for the others.
	claim(claims []Claim) map[Claim]error
	// run watches the kernel until ctx ends and calls dirty whenever something
	// of ours may have changed. It also does the work of the background.
	run(ctx context.Context, dirty func()) error
	// close gives up what is held for the process: ports, and the ownership of
	// the table. Nothing that packets need goes.
	close()
}

// query says what of the kernel is to be read.
type query struct {
	// links reads the links of the host and what hangs on them, host also
	// nftables and claims.
	links, host bool
	// watch makes what is seen that with which events are compared: whoever
	// asks puts right what he sees.
	watch bool
	// router6 asks whether and how the host forwards IPv6.
	router6 bool
	// underlay is the address that the node advertises; it may be invalid.
	underlay netip.Addr
	// inside lists the tasks whose namespaces are read too.
	inside []spec.TaskID
	// programs says to look for them, too.
	programs bool
	// sysctls that are read.
	sysctls []SysctlKey
}

// observation is what was read.
type observation struct {
	state State
	// host: all that the query's host asks for was read.
	host bool
	// inside holds the tasks whose namespaces could be read.
	inside map[spec.TaskID]bool
	// mtu of the device that has the underlay's address, else of that of the
	// default route; 0 when there is neither. adrift: no device has the address.
	mtu    int
	adrift bool
	// carrier is the link of that device.
	carrier int
	// parents are the links of the host that are not ours.
	parents map[string]Parent
	// router6 is set if the query asks for it.
	router6 *Router6
}

// watchRetry is the time between two tries to hear the kernel's events.
const watchRetry = time.Second

// linuxKernel is the kernel of this process's network namespace.
type linuxKernel struct {
	node   spec.NodeID
	log    *slog.Logger
	spaces *namespaces

	// rt is for the loop, fast for the attaching of tasks, so that the latter
	// does not wait behind the dumps of the former.
	rt, fast *netlink.Handle
	nft      *nftTables
	// nft6 is for the second table of the host, of IPv6.
	nft6 *nftTables
	// allLinks forwards IPv6 between all links, as an older kernel has it.
	allLinks bool
	// scan reads all connections to find some, as an older kernel has it.
	scan bool

	claimMu sync.Mutex
	held    map[Claim]int // file descriptors; -1 while only closing connections are in the way
	holders holderCache

	// ours is what was seen of ours last.
	ours atomic.Pointer[landmarks]
	// reap wakes the worker that deletes the links of the doomed group.
	reap chan struct{}
}

func newLinuxKernel(node spec.NodeID, spaces *namespaces, log *slog.Logger) (*linuxKernel, error) {
	rt, err := netlink.NewHandle(unix.NETLINK_ROUTE, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	fast, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		rt.Close()
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return &linuxKernel{
		node: node, log: log, spaces: spaces, rt: rt, fast: fast,
		nft: &nftTables{name: tableName(node)}, nft6: &nftTables{name: tableName(node), family: familyIPv6}, held: map[Claim]int{}, reap: make(chan struct{}, 1),
	}, nil
}

func (k *linuxKernel) run(ctx context.Context, dirty func()) error {
	var wg sync.WaitGroup
	wg.Go(func() { k.reaper(ctx) })
	for ctx.Err() == nil {
		if err := k.watch(ctx, dirty); err != nil && ctx.Err() == nil {
			k.log.Warn("cannot hear the kernel's events; looking regularly instead", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(watchRetry):
			}
		}
	}
	wg.Wait()
	return nil
}

func (k *linuxKernel) close() {
	k.nft.close()
	k.nft6.close()
	k.releaseAll()
}

func (k *linuxKernel) observe(q query) (observation, error) {
	o := observation{state: NewState(), inside: map[spec.TaskID]bool{}}
	var errs []error
	if q.host || q.links {
		if err := k.observeLinks(q, &o); err != nil {
			return o, err
		}
	}
	if q.host {
		for _, n := range []*nftTables{k.nft, k.nft6} {
			if err := n.observe(&o); err != nil {
				return o, err
			}
		}
		k.claimMu.Lock()
		for c := range k.held {
			o.state.Claims[c] = true
		}
		k.claimMu.Unlock()
		o.host = true
	}
	for _, key := range q.sysctls {
		v, err := k.readSysctl(key)
		if err == nil {
			o.state.Sysctls[key] = v
		} else if !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	for _, t := range q.inside {
		if err := k.observeInside(t, q.programs, &o); err != nil {
			errs = append(errs, err)
		}
	}
	return o, errors.Join(errs...)
}

// dump repeats a dump that the kernel says was interrupted by a change.
func dump[T any](list func() ([]T, error)) ([]T, error) {
	for range 5 {
		out, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return out, err
		}
	}
	return nil, fmt.Errorf("read the kernel's network: it changes too fast")
}

func (k *linuxKernel) observeLinks(q query, o *observation) error {
	links, err := dump(k.rt.LinkList)
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	names, mtus, ours := map[int]string{}, map[int]int{}, map[int]bool{}
	for _, l := range links {
		a := l.Attrs()
		names[a.Index] = a.Name
		if a.Flags&net.FlagLoopback == 0 {
			mtus[a.Index] = a.MTU
		}
		ours[a.Index] = k.isOurs(a)
	}
	o.parents = parentsOf(links, k.isOurs)
	ports, err := k.portFlags(k.rt)
	if err != nil {
		return err
	}
	for _, l := range links {
		if a := l.Attrs(); ours[a.Index] {
			link := linkOf(l)
			link.Alias = a.Alias
			if link.Kind != kindBridge {
				link.MAC = "" // of the host's end: nobody cares
			}
			if link.Kind == kindVLAN {
				link.Parent = names[a.ParentIndex]
			}
			if a.MasterIndex != 0 {
				link.Master, link.Port = names[a.MasterIndex], ports[a.Index]
			}
			o.state.Links[LinkID{Name: a.Name}] = link
		} else {
			delete(ours, a.Index)
		}
	}
	id := func(index int) (LinkID, bool) { return LinkID{Name: names[index]}, ours[index] }
	addrs, routes, err := observeAddrs(k.rt, &o.state, id)
	if err != nil {
		return err
	}
	holder := slices.IndexFunc(addrs, func(a netlink.Addr) bool { return a.IP.Equal(q.underlay.AsSlice()) })
	o.adrift = holder < 0
	if holder >= 0 {
		o.carrier = addrs[holder].LinkIndex
	}
	if mtus[o.carrier] == 0 {
		o.carrier = defaultRouteLink(routes, mtus)
	}
	o.mtu = mtus[o.carrier]
	if q.router6 {
		k.observeRouter6(o, links, addrs, routes)
	}
	neighs, err := observeEntries(&o.state, id)
	if err != nil {
		return err
	}
	if q.watch {
		k.ours.Store(&landmarks{ours, neighs, q.underlay, o.carrier, o.mtu})
	}
	return nil
}

// observeRouter6 adds how the host forwards IPv6, and the settings of links
// that say so.
func (k *linuxKernel) observeRouter6(o *observation, links []netlink.Link, addrs []netlink.Addr, routes []netlink.Route) {
	read := func(link, name string) string {
		key := SysctlKey{Path: sysctl6(link, name)}
		v, err := k.readSysctl(key)
		if err != nil {
			return "" // a link that has gone, or has no IPv6
		}
		o.state.Sysctls[key] = v
		return v
	}
	r := &Router6{On: read("all", "forwarding") == "1"}
	o.router6 = r
	if r.On {
		return
	}
	r.Single = !k.allLinks && read("all", "force_forwarding") != ""
	ways := map[int]bool{}
	for _, a := range addrs {
		if a.IP.To4() == nil && a.IP.IsGlobalUnicast() {
			ways[a.LinkIndex] = true
		}
	}
	for _, route := range routes {
		if route.Family != unix.AF_INET6 {
			continue
		}
		ways[route.LinkIndex] = ways[route.LinkIndex] || route.Gw != nil
		for _, hop := range route.MultiPath {
			ways[hop.LinkIndex] = true
		}
	}
	listens := func(link string) bool { return read(link, "accept_ra") == "1" && read(link, "forwarding") == "0" }
	for _, l := range links {
		a := l.Attrs()
		own, ours := o.state.Links[LinkID{Name: a.Name}]
		switch {
		case a.Flags&net.FlagLoopback != 0:
		case r.Single && own.Kind == kindBridge:
			read(a.Name, "force_forwarding")
		case ours:
		case r.Single && ways[a.Index]:
			read(a.Name, "force_forwarding")
			r.Links = append(r.Links, a.Name)
		case !r.Single && listens(a.Name):
			r.Listeners = append(r.Listeners, a.Name)
		}
	}
	if !r.Single && listens("default") {
		r.Listeners = append(r.Listeners, "default")
	}
}

// isOurs goes by the group alone while a link is so new that it has no alias.
func (k *linuxKernel) isOurs(a *netlink.LinkAttrs) bool {
	return a.Group == linkGroup(k.node) && (a.Alias == "" || strings.HasPrefix(a.Alias, aliasPrefix(k.node)))
}

func linkOf(l netlink.Link) Link {
	a := l.Attrs()
	out := Link{Kind: l.Type(), MTU: a.MTU, Up: a.Flags&net.FlagUp != 0, MAC: a.HardwareAddr.String()}
	if v, ok := l.(*netlink.Vxlan); ok {
		out.VNI, out.DstPort, out.Learning = uint32(v.VxlanId), uint16(v.Port), v.Learning
		if local, ok := netip.AddrFromSlice(v.SrcAddr); ok {
			out.Local = local.String()
		}
	}
	if v, ok := l.(*netlink.Vlan); ok {
		out.VLAN = uint16(v.VlanId)
	}
	if a.Flags&net.FlagLoopback != 0 {
		out = Link{Kind: kindLoopback, Up: out.Up}
	}
	return out
}

// observeAddrs adds the addresses and routes of the links that id knows, and
// returns all addresses, and all routes of the main table.
func observeAddrs(h *netlink.Handle, st *State, id func(int) (LinkID, bool)) (addrs []netlink.Addr, routes []netlink.Route, err error) {
	addrs, err = dump(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, nil, fmt.Errorf("list addresses: %w", err)
	}
	for _, a := range addrs {
		if l, ok := id(a.LinkIndex); ok {
			st.Addrs[Addr{l, a.IPNet.String()}] = true
		}
	}
	routes, err = dump(func() ([]netlink.Route, error) { return h.RouteList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, nil, fmt.Errorf("list routes: %w", err)
	}
	for _, r := range routes {
		l, ok := id(r.LinkIndex)
		if !ok {
			continue
		}
		out := Route{Link: l, Dst: "0.0.0.0/0"}
		switch {
		case r.Dst != nil:
			out.Dst = r.Dst.String()
		case r.Family == unix.AF_INET6:
			out.Dst = "::/0"
		}
		if r.Gw != nil {
			out.Via = r.Gw.String()
		} else if r.Src != nil && r.Family == unix.AF_INET {
			out.Src = r.Src.String()
		}
		st.Routes[out] = true
	}
	return addrs, routes, nil
}

// defaultRouteLink is the device of the best default route, which is one of
// IPv4 if there is any; 0 is none.
func defaultRouteLink(routes []netlink.Route, mtus map[int]int) int {
	defaults := slices.DeleteFunc(slices.Clone(routes), func(r netlink.Route) bool {
		return r.Dst != nil && !isDefault(r.Dst) || mtus[r.LinkIndex] == 0
	})
	if len(defaults) == 0 {
		return 0
	}
	best := slices.MinFunc(defaults, func(a, b netlink.Route) int {
		return cmp.Or(cmp.Compare(a.Family, b.Family), cmp.Compare(a.Priority, b.Priority))
	})
	return best.LinkIndex
}

func isDefault(dst *net.IPNet) bool {
	bits, _ := dst.Mask.Size()
	return bits == 0 && dst.IP.IsUnspecified()
}

func (k *linuxKernel) observeInside(t spec.TaskID, programs bool, o *observation) error {
	h, err := k.spaces.handle(t)
	if err != nil {
		return err
	}
	links, err := dump(h.LinkList)
	if err != nil {
		return fmt.Errorf("list links of task %s: %w", t, err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
		o.state.Links[LinkID{t, l.Attrs().Name}] = linkOf(l)
		if !programs || l.Type() != kindVeth {
			continue
		}
		runs, err := hasProgram(h, l)
		if err != nil {
			return fmt.Errorf("list filters of task %s: %w", t, err)
		}
		if runs {
			o.state.Programs[Program{LinkID{t, l.Attrs().Name}}] = true
		}
	}
	id := func(index int) (LinkID, bool) { return LinkID{t, names[index]}, names[index] != "" }
	if _, _, err := observeAddrs(h, &o.state, id); err != nil {
		return fmt.Errorf("task %s: %w", t, err)
	}
	if err := k.observeTables(t, o); err != nil {
		return err
	}
	o.inside[t] = true
	return nil
}

func (k *linuxKernel) readSysctl(key SysctlKey) (string, error) {
	var v string
	read := func() error {
		b, err := os.ReadFile("/proc/sys/" + key.Path)
		v = strings.Join(strings.Fields(string(b)), " ")
		return err
	}
	if key.NS == "" {
		return v, read()
	}
	err := k.spaces.within(key.NS, read)
	return v, err
}

// writeSysctls makes settings of one namespace, and returns an error for each.
func (k *linuxKernel) writeSysctls(ns spec.TaskID, settings []Sysctl) []error {
	errs := make([]error, len(settings))
	write := func() error {
		for i, s := range settings {
			errs[i] = os.WriteFile("/proc/sys/"+s.Key.Path, []byte(s.Value), 0o644)
		}
		return nil
	}
	if ns == "" {
		_ = write()
		for i, s := range settings {
			if errs[i] == nil && ofOthers(s) {
				k.log.Info("changed a setting of the host", "sysctl", s.Key.Path, "value", s.Value)
			}
		}
		return errs
	}
	if err := k.spaces.within(ns, write); err != nil {
		for i := range errs {
			errs[i] = err
		}
	}
	return errs
}

// ofOthers reports whether a setting is not that of a link of ours alone.
func ofOthers(s Sysctl) bool {
	return s.Key.Path == sysctlForward || s.Key.Path == sysctlForward6 || s.Value != "0" && path.Base(s.Key.Path) == "accept_ra" || path.Base(s.Key.Path) == "force_forwarding"
}
