package overlay

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"wherry.dev/spec"
)

// Input is everything that the state of a host follows from.
type Input struct {
	Node spec.NodeID
	// Networks of the host.
	Networks []spec.HostNetwork
	// Tasks whose sandboxes exist. An address of a task on a network that is
	// not in Networks is left out.
	Tasks []spec.Sandbox
	// Underlay is the address and port at which other nodes reach this one;
	// without it there is no network between hosts.
	Underlay netip.AddrPort
	// MTU of this host's underlay in bytes, for networks whose document has
	// none; 0 is 1500.
	MTU int
	// NoIPv6: the kernel of this host has no IPv6. Networks that have it go on
	// with IPv4 alone.
	NoIPv6 bool
	// NoEgress: the kernel of this host has no hook for chains at egress of a
	// link, so a program stands for them.
	NoEgress bool
	// Parents are the host's own interfaces, by name; nil is not known.
	Parents map[string]Parent
	// Router6 is what the host does about forwarding IPv6; nil is not known.
	Router6 *Router6
	// Refused are ports that another process of the host holds. They are
	// neither claimed nor forwarded: the host's own ports are never taken away.
	Refused map[Claim]bool
}

// Router6 says whether a host forwards IPv6, and by which of its links.
type Router6 struct {
	// On: between all links.
	On bool
	// Single: the kernel can do it for single links, since 6.17.
	Single bool
	// Links of others by which IPv6 goes out of the host and comes in.
	Links []string
	// Listeners are links of others that take router advertisements for as long
	// as the host does not forward, and "default" for those to come.
	Listeners []string
}

const (
	defaultMTU = 1500
	minMTU     = 1280
	maxMTU     = 9000
	// minMTU6 is the least with which the kernel does IPv6.
	minMTU6 = 1280
	// What a tunnel adds to a packet, over IPv4 and over IPv6.
	vxlanOverhead4 = 50
	vxlanOverhead6 = 70
)

// sysctlForward is a setting of the host that has to be on.
const sysctlForward = "net/ipv4/ip_forward"

// sysctlForward6 is its like for IPv6.
const sysctlForward6 = "net/ipv6/conf/all/forwarding"

func sysctlLocalnet(bridge string) string { return "net/ipv4/conf/" + bridge + "/route_localnet" }

// sysctl6 is a setting of IPv6 of a link, or of "default" or "all".
func sysctl6(link, name string) string { return "net/ipv6/conf/" + link + "/" + name }

// Compile returns the state that in asks for. Documents with addresses that do
// not parse, which no manager makes, are left out.
func Compile(in Input) State {
	st := NewState()
	networks := in.networks()
	if len(networks) == 0 {
		return st
	}
	in.vlans(networks, st)
	in.bridges(bridged(networks), st)
	shared := taskSets{}
	for _, s := range in.Tasks {
		st.merge(in.task(s, networks, shared))
	}
	return st
}

// bridges adds what the host has of networks that have a bridge.
func (in Input) bridges(networks map[spec.NetworkID]network, st State) {
	if len(networks) == 0 {
		return
	}
	st.Sysctls[SysctlKey{Path: sysctlForward}] = "1"
	tables := in.tables(networks)
	for _, d := range in.Networks {
		n, ok := networks[d.Network.ID]
		if !ok {
			continue
		}
		st.merge(n.bridge(in))
		n.tunnel(in, st)
		for _, p := range n.doc.Ports {
			claims, _ := n.claims(p) // what cannot be published is told by the Host
			for _, c := range claims {
				if !in.Refused[c] && !st.Claims[c] {
					st.Claims[c] = true
					publish(tables[in.table(c)], c, p.Targets)
				}
			}
		}
	}
	maps.Copy(st.Tables, tables)
	in.forward6(st, networks)
}

// CompileTask returns the part of Compile's state that belongs to the task s
// alone: both ends of its interfaces, what hangs on them and its tables.
func CompileTask(in Input, s spec.Sandbox) State { return in.task(s, in.networks(), taskSets{}) }

// forward6 lets the host forward for networks with IPv6 that are not internal.
// To forward between all links, as older kernels can only, makes a host deaf to
// router advertisements, by which it may have its own address and default route:
// so who listened is made to go on with that before, in a pass of its own.
func (in Input) forward6(st State, networks map[spec.NetworkID]network) {
	if in.Router6 == nil || in.Router6.On {
		return
	}
	var bridges []string
	for _, n := range networks {
		if n.six() && !n.doc.Network.Spec.Internal {
			bridges = append(bridges, n.bridgeN)
		}
	}
	switch r := in.Router6; {
	case len(bridges) == 0:
	case r.Single:
		for _, l := range append(bridges, r.Links...) {
			st.Sysctls[SysctlKey{Path: sysctl6(l, "force_forwarding")}] = "1"
		}
	case len(r.Listeners) > 0:
		for _, l := range r.Listeners {
			st.Sysctls[SysctlKey{Path: sysctl6(l, "accept_ra")}] = "2"
		}
	default:
		st.Sysctls[SysctlKey{Path: sysctlForward6}] = "1"
	}
}

// Claims returns what has to be claimed for the ports that in publishes,
// sorted.
func Claims(in Input) []Claim {
	var claims []Claim
	for _, n := range in.networks() {
		for _, p := range n.doc.Ports {
			c, _ := n.claims(p)
			claims = append(claims, c...)
		}
	}
	slices.SortFunc(claims, compareClaims)
	return slices.Compact(claims)
}

func compareClaims(a, b Claim) int {
	return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.IP, b.IP))
}

// claims returns what a published port needs: a claim for each family in which
// it is published. The error says why there is none.
func (n network) claims(p spec.PublishedPort) ([]Claim, error) {
	cannot := func(why string) error {
		on := ""
		if p.HostIP != "" {
			on = " on " + p.HostIP
		}
		return spec.Invalidf("port %d/%s cannot be published%s: %s", p.Port, p.Protocol, on, why)
	}
	if p.Port == 0 || p.Protocol != "tcp" && p.Protocol != "udp" {
		return nil, cannot("only ports of tcp and udp can be")
	}
	if p.HostIP == "" {
		claims := []Claim{{Proto: p.Protocol, IP: "0.0.0.0", Port: p.Port}}
		if n.six() {
			claims = append(claims, Claim{Proto: p.Protocol, IP: "::", Port: p.Port})
		}
		return claims, nil
	}
	ip, err := netip.ParseAddr(p.HostIP)
	ip = ip.Unmap()
	switch {
	case err != nil:
		return nil, cannot("that is no address")
	case ip.Is4():
	case ip.IsLoopback():
		return nil, cannot("the kernel leads nothing from there to a container; publish it on 127.0.0.1 or on another address of the host")
	case ip.Zone() != "" || ip.IsLinkLocalUnicast():
		return nil, cannot("what comes to a link-local address is not led on; publish it on another address of the host")
	case n.doc.Network.Subnet6 == "":
		return nil, cannot("its network has no IPv6; publish it on an IPv4 address")
	case !n.six():
		return nil, cannot("its network goes on with IPv4 alone on this node")
	}
	return []Claim{{Proto: p.Protocol, IP: ip.String(), Port: p.Port}}, nil
}

// refusal says why a claim is not held, or why there cannot be one.
type refusal struct {
	Claim
	err error
}

// refusals say why a published port is not served, or not in one family.
func (n network) refusals(p spec.PublishedPort, refused map[Claim]error) []refusal {
	claims, err := n.claims(p)
	if err != nil {
		return []refusal{{Claim{Proto: p.Protocol, IP: p.HostIP, Port: p.Port}, err}}
	}
	var out []refusal
	for _, c := range claims {
		if err := refused[c]; err != nil {
			out = append(out, refusal{c, err})
		}
	}
	return out
}

// table is the one in which the port of a claim is published.
func (in Input) table(c Claim) TableID {
	if c.six() {
		return hostTable6(in.Node)
	}
	return hostTable(in.Node)
}

// network is a document with its addresses parsed.
type network struct {
	doc     spec.HostNetwork
	subnet  netip.Prefix
	gateway netip.Addr
	// subnet6 and gateway6 are invalid for a network that has no IPv6 here.
	subnet6  netip.Prefix
	gateway6 netip.Addr
	bridgeN  string
	// mtu of the bridge and everything at it.
	mtu int
	// hosts are the addresses of the other hosts that can be reached, by number.
	hosts map[uint32]netip.Addr
	// published are the addresses behind published ports.
	published map[string]bool
}

func (in Input) networks() map[spec.NetworkID]network {
	out := map[spec.NetworkID]network{}
	for _, d := range in.Networks {
		subnet, err1 := netip.ParsePrefix(d.Network.Subnet)
		gateway, err2 := netip.ParseAddr(d.Network.Gateway)
		if err1 != nil || err2 != nil || !subnet.Addr().Is4() || !gateway.Is4() {
			continue
		}
		n := network{doc: d, subnet: subnet.Masked(), gateway: gateway, bridgeN: bridgeName(in.Node, d.Network.ID), published: map[string]bool{}}
		n.hosts, n.mtu = in.hosts(d), in.mtu(d)
		n.subnet6, n.gateway6, _ = in.addresses6(d) // see problems
		for _, p := range d.Ports {
			for _, t := range p.Targets {
				if a, err := netip.ParseAddrPort(t); err == nil {
					n.published[a.Addr().String()] = true
				}
			}
		}
		out[d.Network.ID] = n
	}
	return out
}

// six reports whether the network has IPv6 here.
func (n network) six() bool { return n.gateway6.IsValid() }

// addresses6 returns the IPv6 subnet and gateway of a network, which are
// invalid if it has none, and an error if it has but cannot have it here.
func (in Input) addresses6(d spec.HostNetwork) (netip.Prefix, netip.Addr, error) {
	no := func(why string, args ...any) (netip.Prefix, netip.Addr, error) {
		return netip.Prefix{}, netip.Addr{}, fmt.Errorf("network %s: it goes on with IPv4 alone on this node: "+why, append([]any{d.Network.ID}, args...)...)
	}
	if d.Network.Subnet6 == "" && d.Network.Gateway6 == "" {
		return netip.Prefix{}, netip.Addr{}, nil
	}
	subnet, err := netip.ParsePrefix(d.Network.Subnet6)
	if err != nil || !subnet.Addr().Is6() || subnet.Addr().Is4In6() {
		return no("%q is no IPv6 subnet", d.Network.Subnet6)
	}
	subnet = subnet.Masked()
	switch a := subnet.Addr(); {
	case a.IsMulticast() || a.IsLinkLocalUnicast() || a.IsLoopback() || a.IsUnspecified():
		return no("no task can have an address of the subnet %s", subnet)
	case subnet.Bits() > 126:
		return no("the subnet %s has no room for tasks", subnet)
	}
	gateway, err := netip.ParseAddr(d.Network.Gateway6)
	switch {
	case err != nil || gateway.Zone() != "":
		return no("its gateway %q is no IPv6 address", d.Network.Gateway6)
	case !subnet.Contains(gateway) || gateway == subnet.Addr():
		return no("its gateway %s is no address of a host in %s", gateway, subnet)
	case in.NoIPv6:
		return no("the kernel has no IPv6")
	}
	if mtu := in.mtu(d); mtu < minMTU6 {
		return no("a packet on it can have %d bytes, and IPv6 needs %d; raise the MTU of what carries it by %d", mtu, minMTU6, minMTU6-mtu)
	}
	return subnet, gateway, nil
}

// mtu leaves room for the tunnel also while there is no other host, so that
// one that comes changes nothing.
func (in Input) mtu(d spec.HostNetwork) int {
	mtu := in.carried(d)
	if most := d.Network.Spec.MTU; most > 0 {
		mtu = max(min(mtu, most), minMTU)
	}
	return mtu
}

// carried is the largest packet of a network that its hosts carry.
func (in Input) carried(d spec.HostNetwork) int {
	mtu := min(max(cmp.Or(d.MTU, in.MTU, defaultMTU), minMTU), maxMTU)
	switch {
	case d.Network.Spec.Driver != spec.DriverOverlay:
		return mtu
	case in.underlay().Is6():
		return mtu - vxlanOverhead6
	}
	return mtu - vxlanOverhead4
}

// underlay is the address of the tunnels' end here; the zero value is unknown.
func (in Input) underlay() netip.Addr { return in.Underlay.Addr().Unmap() }

// hosts returns the other hosts of a network that this one can reach.
func (in Input) hosts(d spec.HostNetwork) map[uint32]netip.Addr {
	out := map[uint32]netip.Addr{}
	if isLAN(d) || in.problem(d) != nil {
		return out
	}
	for _, h := range d.Hosts {
		if a, err := in.peer(h); err == nil && h.Number != d.HostNumber {
			out[h.Number] = a
		}
	}
	return out
}

// peer returns the address of another host in the family of this one's.
func (in Input) peer(h spec.NetworkHost) (netip.Addr, error) {
	a, err := netip.ParseAddr(h.Address)
	if err != nil {
		return a, fmt.Errorf("its address %q cannot be read", h.Address)
	}
	if a = a.Unmap(); a.Is4() != in.underlay().Is4() {
		return a, fmt.Errorf("it is at %s and this node at %s: one has an IPv4 address and the other an IPv6 address", a, in.underlay())
	}
	return a, nil
}

// problem says why a network that has other hosts cannot be linked to any.
func (in Input) problem(d spec.HostNetwork) error {
	switch {
	case len(d.Hosts) == 0:
	case d.Network.Spec.Driver != spec.DriverOverlay:
		return fmt.Errorf("network %s: it has driver %q and is not linked to other hosts", d.Network.ID, d.Network.Spec.Driver)
	case !in.underlay().IsValid():
		return fmt.Errorf("network %s: it is not linked to other hosts, because the address that this node advertises is not known", d.Network.ID)
	case d.Network.VNI == 0:
		return fmt.Errorf("network %s: it is not linked to other hosts, because it has no VXLAN identifier", d.Network.ID)
	}
	return nil
}

// networkProblem is about one network, and no reason to hold up the others.
type networkProblem struct {
	network spec.NetworkID
	error
}

// problems says in words what of the networks cannot be as their documents
// have it.
func (in Input) problems() []error {
	var out []error
	for _, d := range in.Networks {
		add := func(err error) {
			if err != nil {
				out = append(out, networkProblem{d.Network.ID, err})
			}
		}
		if isLAN(d) {
			add(in.lanProblem(d))
			continue
		}
		_, _, err := in.addresses6(d)
		add(err)
		if err := in.problem(d); err != nil {
			add(err)
			continue
		}
		for _, h := range d.Hosts {
			if _, err := in.peer(h); err != nil {
				add(fmt.Errorf("network %s: node %s cannot be reached: %w", d.Network.ID, h.Node, err))
			}
		}
	}
	return out
}

func (n network) bridge(in Input) State {
	st := NewState()
	id := LinkID{Name: n.bridgeN}
	mac := hostMAC(n.doc.HostNumber)
	st.Links[id] = Link{Kind: kindBridge, Alias: bridgeAlias(in.Node, n.doc.Network.ID), MAC: mac, MTU: n.mtu, Up: true}
	st.Addrs[Addr{Link: id, IP: netip.PrefixFrom(n.gateway, n.subnet.Bits()).String()}] = true
	st.Routes[Route{Link: id, Dst: n.subnet.String(), Src: n.gateway.String()}] = true
	localnet := "0"
	if len(n.doc.Ports) > 0 {
		localnet = "1"
	}
	st.Sysctls[SysctlKey{Path: sysctlLocalnet(n.bridgeN)}] = localnet
	if !in.NoIPv6 && n.mtu >= minMTU6 {
		// A task may have the rights to say that it is a router.
		st.Sysctls[SysctlKey{Path: sysctl6(n.bridgeN, "accept_ra")}] = "0"
	}
	if n.six() {
		n.address6(st, id, netip.PrefixFrom(n.gateway6, n.subnet6.Bits()), mac)
		// A host whose own links have no IPv6 may still have such networks.
		st.Sysctls[SysctlKey{Path: sysctl6(n.bridgeN, "disable_ipv6")}] = "0"
	}
	return st
}

// address6 gives an IPv6 address to a link of the network, and a link-local
// one, from which a link asks for its neighbours where it has no better. Both
// are there at once: nobody else can have them, so nobody is asked.
func (n network) address6(st State, id LinkID, ip netip.Prefix, mac string) {
	local, ok := linkLocalOf(mac)
	if !ok {
		return
	}
	for _, p := range []netip.Prefix{ip, local} {
		st.Addrs[Addr{Link: id, IP: p.String()}] = true
		st.Routes[Route{Link: id, Dst: p.Masked().String()}] = true
	}
}

// linkLocalOf is the link-local address that the kernel would make of a MAC.
func linkLocalOf(mac string) (netip.Prefix, bool) {
	m, err := net.ParseMAC(mac)
	if err != nil || len(m) != 6 {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]}), 64), true
}

// tunnelPort is the UDP port of a network between hosts, the same for all
// networks of a cluster.
func tunnelPort(d spec.HostNetwork) uint16 { return cmp.Or(d.VXLANPort, spec.VXLANPort) }

// tunnel adds to st what links the network to its other hosts. Nothing is
// flooded or learned: for every task and every host there is an entry that
// says where it is, and the bridge answers for the tasks.
func (n network) tunnel(in Input, st State) {
	if len(n.hosts) == 0 {
		return
	}
	name := tunnelName(in.Node, n.doc.Network.ID)
	st.Links[LinkID{Name: name}] = Link{
		Kind: kindVXLAN, Alias: tunnelAlias(in.Node, n.doc.Network.ID), MTU: n.mtu, Up: true,
		Master: n.bridgeN, Port: Port{NeighSuppress: true},
		VNI: n.doc.Network.VNI, Local: in.underlay().String(), DstPort: tunnelPort(n.doc),
	}
	to := func(mac string, host netip.Addr) {
		st.FDB[FDB{Link: name, MAC: mac}] = true
		st.FDB[FDB{Link: name, MAC: mac, Dst: host.String()}] = true
	}
	for number, host := range n.hosts {
		to(hostMAC(number), host)
	}
	taken, takenMAC := map[netip.Addr]bool{n.gateway: true, n.gateway6: true}, map[string]bool{}
	for _, r := range n.doc.Remote {
		host, ok := n.hosts[r.Host]
		ip, err := netip.ParseAddr(r.IP)
		mac, err2 := net.ParseMAC(r.MAC)
		if !ok || err != nil || err2 != nil || len(mac) != 6 || taken[ip] || takenMAC[mac.String()] {
			continue
		}
		taken[ip], takenMAC[mac.String()] = true, true
		to(mac.String(), host)
		st.Neighs[Neigh{Link: n.bridgeN, IP: ip.String(), MAC: mac.String()}] = true
		if ip6, err := netip.ParseAddr(r.IP6); err == nil && n.six() && ip6.Is6() && !taken[ip6] {
			taken[ip6] = true
			st.Neighs[Neigh{Link: n.bridgeN, IP: ip6.String(), MAC: mac.String()}] = true
		}
	}
}

// members adds the addresses of the other hosts of all networks.
func (in Input) members(set Set, family func(netip.Addr) bool) {
	for _, d := range in.Networks {
		if isLAN(d) {
			continue
		}
		for _, h := range d.Hosts {
			if a, err := netip.ParseAddr(h.Address); err == nil && family(a.Unmap()) {
				set[a.Unmap().String()] = ""
			}
		}
	}
}

// api adds the ports of this node's API, which are taken for those of all.
func (in Input) api(set Set) {
	if port := in.Underlay.Port(); port != 0 {
		set[fmt.Sprintf("tcp . %d", port)], set[fmt.Sprintf("udp . %d", port)] = "", ""
	}
}

// tables are the host's, without the published ports.
func (in Input) tables(networks map[spec.NetworkID]network) map[TableID]Table {
	out := map[TableID]Table{hostTable(in.Node): in.program(networks, baseChains(), false)}
	switch {
	case anySix(networks):
		out[hostTable6(in.Node)] = in.program(networks, baseChains6(), true)
	case in.underlay().Is6():
		out[hostTable6(in.Node)] = in.program(networks, guardChains6(), true)
	}
	return out
}

func anySix(networks map[spec.NetworkID]network) bool {
	for _, n := range networks {
		if n.six() {
			return true
		}
	}
	return false
}

// hasIPv6 reports whether any network has IPv6.
func (in Input) hasIPv6() bool { return anySix(in.networks()) }

// program returns what a table of the host says of the networks for one family.
// That of IPv6 knows also the bridges of networks that do not have it: what
// comes from there is what a task gave itself.
func (in Input) program(networks map[spec.NetworkID]network, chains map[string]Chain, six bool) Table {
	ip, family := fieldIPv4, netip.Addr.Is4
	if six {
		ip, family = fieldIPv6, netip.Addr.Is6
	}
	t := Table{Sets: map[string]Set{}, Chains: chains}
	for name := range setTypes(ip) {
		t.Sets[name] = Set{}
	}
	in.members(t.Sets[setPeers], family)
	in.api(t.Sets[setAPI])
	for _, d := range in.Networks {
		t.Sets[setTunnels][fmt.Sprintf("udp . %d", tunnelPort(d))] = ""
	}
	var egress []Rule
	for _, n := range networks {
		t.Sets[setBridges][n.bridgeN] = ""
		t.Sets[setSame][n.bridgeN+" . "+n.bridgeN] = ""
		if n.doc.Network.Spec.Internal {
			t.Sets[setInternal][n.bridgeN] = ""
		}
		if six && !n.six() {
			continue
		}
		n.ends(t, six)
		if n.doc.Network.Spec.Internal {
			continue
		}
		subnet := n.subnet
		if six {
			subnet = n.subnet6
		}
		for _, e := range n.doc.Tasks {
			if p, err := netip.ParsePrefix(ipOf(six, e.IP, e.IP6)); err == nil && n.published[p.Addr().String()] {
				t.Sets[setSelf][fmt.Sprintf("%s . %s", p.Addr(), p.Addr())] = ""
			}
		}
		egress = append(egress, egressRules(subnet, n.doc.Network.Spec.Driver != spec.DriverOverlay)...)
	}
	if post, ok := t.Chains["post"]; ok {
		slices.SortFunc(egress, func(a, b Rule) int { return strings.Compare(a.Text, b.Text) })
		post.Rules = append(post.Rules, egress...)
		t.Chains["post"] = post
	}
	return t
}

// ipOf returns the address of one family.
func ipOf(six bool, ip, ip6 string) string {
	if six {
		return ip6
	}
	return ip
}

// publish fills the slots of a port with its targets in turn.
func publish(t Table, c Claim, targets []string) {
	key, prefix, refused := fmt.Sprintf("%s . %d", c.Proto, c.Port), mapAny, setRefused
	if c.six() && c.every() {
		// Nothing leads from there to a task, see baseChains6: who asks is told.
		t.Sets[setRefusedAt]["::1 . "+key] = ""
	}
	if !c.every() {
		key, prefix, refused = c.IP+" . "+key, mapAt, setRefusedAt
	}
	var ends []string
	for _, s := range targets {
		if a, err := netip.ParseAddrPort(s); err == nil && a.Addr().Is6() == c.six() {
			ends = append(ends, fmt.Sprintf("%s . %d", a.Addr(), a.Port()))
		}
	}
	if len(ends) == 0 {
		t.Sets[refused][key] = ""
		return
	}
	slots := slotClass(len(ends))
	for i := range int(slots) {
		t.Sets[slotMap(prefix, slots)][key+" . "+strconv.Itoa(i)] = ends[i%len(ends)]
	}
}

func (in Input) task(s spec.Sandbox, networks map[spec.NetworkID]network, shared taskSets) State {
	st := NewState()
	if s.Mode == "host" {
		return st
	}
	st.Links[LinkID{s.Task, "lo"}] = Link{Kind: kindLoopback, Up: true}
	var on []network
	routed, routed6, gate := false, false, (*LinkID)(nil)
	devices := spec.InterfaceNames(s.Addresses)
	for i, a := range s.Addresses {
		n, ok := networks[a.Network]
		ip, err := netip.ParsePrefix(a.IP)
		if !ok || err != nil || s.Mode == "none" {
			continue
		}
		ip6, _ := netip.ParsePrefix(a.IP6) // Attach refuses what is none
		host, inner := LinkID{Name: vethName(in.Node, s.Task, i)}, LinkID{s.Task, devices[i]}
		mac := strings.ToLower(a.MAC)
		if n.lan() {
			way := !routed && !n.doc.Network.Spec.Internal
			routed = routed || way
			if in.hasParent(n.doc.Network.Spec.Parent) { // else nothing can be made
				n.plug(st, inner, ip, mac, way)
			}
			continue
		}
		on = append(on, n)
		st.Links[host] = Link{
			Kind: kindVeth, Alias: vethAlias(in.Node, s.Task, a.Network), MTU: n.mtu, Up: true, Master: n.bridgeN,
			// The kernel learns nothing and floods no unknown address; broadcast
			// goes through, since tasks of one host answer each other's ARP. A
			// locked port takes only the address that the FDB knows. Hairpin is
			// for a task that reaches itself by its own published port when
			// bridged frames pass the host's IP chains.
			Port: Port{McastFlood: true, BcastFlood: true, Locked: true, Hairpin: n.published[ip.Addr().String()] || n.published[ip6.Addr().String()]},
			Peer: inner, PeerMAC: mac,
		}
		st.Links[inner] = Link{Kind: kindVeth, MAC: mac, MTU: n.mtu, Up: true}
		st.FDB[FDB{Link: host.Name, MAC: mac}] = true
		st.Addrs[Addr{inner, ip.String()}] = true
		st.Routes[Route{Link: inner, Dst: ip.Masked().String(), Src: ip.Addr().String()}] = true
		if !routed && !n.doc.Network.Spec.Internal {
			routed = true
			st.Routes[Route{Link: inner, Dst: "0.0.0.0/0", Via: n.gateway.String()}] = true
			if n.spans() {
				gate = &inner
			}
		}
		if !n.six() || !ip6.Addr().Is6() {
			continue
		}
		n.address6(st, inner, ip6, mac)
		if !routed6 && !n.doc.Network.Spec.Internal {
			routed6 = true
			st.Routes[Route{Link: inner, Dst: "::/0", Via: n.gateway6.String()}] = true
		}
	}
	shared.taskTables(st, s, on, gate, in.NoEgress)
	return st
}
