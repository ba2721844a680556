package overlay

import (
	"cmp"
	"fmt"
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
	// Refused are ports that another process of the host holds. They are
	// neither claimed nor forwarded: the host's own ports are never taken away.
	Refused map[Claim]bool
}

const (
	defaultMTU = 1500
	minMTU     = 1280
	maxMTU     = 9000
	// What a tunnel adds to a packet, over IPv4 and over IPv6.
	vxlanOverhead4 = 50
	vxlanOverhead6 = 70
)

// sysctlForward is the one setting of the host that has to be on.
const sysctlForward = "net/ipv4/ip_forward"

func sysctlLocalnet(bridge string) string { return "net/ipv4/conf/" + bridge + "/route_localnet" }

// Compile returns the state that in asks for. Documents with addresses that do
// not parse, which no manager makes, are left out.
func Compile(in Input) State {
	st := NewState()
	networks := in.networks()
	if len(networks) == 0 {
		return st
	}
	st.Sysctls[SysctlKey{Path: sysctlForward}] = "1"
	t := Table{Sets: map[string]Set{}, Chains: baseChains()}
	for name := range setTypes() {
		t.Sets[name] = Set{}
	}
	var egress []Rule
	for _, d := range in.Networks {
		n, ok := networks[d.Network.ID]
		if !ok {
			continue
		}
		st.merge(n.bridge(in.Node))
		n.tunnel(in, st)
		egress = append(egress, n.program(t)...)
		n.ends(t)
		for _, p := range n.doc.Ports {
			c, ok := claimOf(p)
			if !ok || in.Refused[c] || st.Claims[c] {
				continue
			}
			st.Claims[c] = true
			publish(t, c, p.Targets)
		}
	}
	in.members(t.Sets[setPeers], netip.Addr.Is4)
	in.api(t.Sets[setAPI])
	slices.SortFunc(egress, func(a, b Rule) int { return strings.Compare(a.Text, b.Text) })
	post := t.Chains["post"]
	post.Rules = append(post.Rules, egress...)
	t.Chains["post"] = post
	st.Tables[hostTable(in.Node)] = t
	in.guard6(st, networks)
	shared := taskSets{}
	for _, s := range in.Tasks {
		st.merge(in.task(s, networks, shared))
	}
	return st
}

// CompileTask returns the part of Compile's state that belongs to the task s
// alone: both ends of its interfaces, what hangs on them and its tables.
func CompileTask(in Input, s spec.Sandbox) State { return in.task(s, in.networks(), taskSets{}) }

// Claims returns the ports that the documents publish, sorted.
func Claims(networks []spec.HostNetwork) []Claim {
	var claims []Claim
	for _, n := range networks {
		for _, p := range n.Ports {
			if c, ok := claimOf(p); ok {
				claims = append(claims, c)
			}
		}
	}
	slices.SortFunc(claims, compareClaims)
	return slices.Compact(claims)
}

func compareClaims(a, b Claim) int {
	return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Proto, b.Proto), cmp.Compare(a.IP, b.IP))
}

// claimOf returns the claim that a published port needs; ok is false for what
// cannot be published: IPv6 addresses and protocols other than tcp and udp.
func claimOf(p spec.PublishedPort) (c Claim, ok bool) {
	c = Claim{Proto: p.Protocol, IP: "0.0.0.0", Port: p.Port}
	if p.HostIP != "" {
		ip, err := netip.ParseAddr(p.HostIP)
		if err != nil || !ip.Is4() {
			return c, false
		}
		c.IP = ip.String()
	}
	return c, p.Port != 0 && (p.Protocol == "tcp" || p.Protocol == "udp")
}

// network is a document with its addresses parsed.
type network struct {
	doc     spec.HostNetwork
	subnet  netip.Prefix
	gateway netip.Addr
	bridgeN string
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

// mtu leaves room for the tunnel also while there is no other host, so that
// one that comes changes nothing.
func (in Input) mtu(d spec.HostNetwork) int {
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
	if in.problem(d) != nil {
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

// problems says in words why hosts of the networks cannot be reached.
func (in Input) problems() []error {
	var out []error
	for _, d := range in.Networks {
		if err := in.problem(d); err != nil {
			out = append(out, err)
			continue
		}
		for _, h := range d.Hosts {
			if _, err := in.peer(h); err != nil {
				out = append(out, fmt.Errorf("network %s: node %s cannot be reached: %w", d.Network.ID, h.Node, err))
			}
		}
	}
	return out
}

func (n network) bridge(node spec.NodeID) State {
	st := NewState()
	id := LinkID{Name: n.bridgeN}
	st.Links[id] = Link{Kind: kindBridge, Alias: bridgeAlias(node, n.doc.Network.ID), MAC: hostMAC(n.doc.HostNumber), MTU: n.mtu, Up: true}
	st.Addrs[Addr{Link: id, IP: netip.PrefixFrom(n.gateway, n.subnet.Bits()).String()}] = true
	st.Routes[Route{Link: id, Dst: n.subnet.String(), Src: n.gateway.String()}] = true
	localnet := "0"
	if len(n.doc.Ports) > 0 {
		localnet = "1"
	}
	st.Sysctls[SysctlKey{Path: sysctlLocalnet(n.bridgeN)}] = localnet
	return st
}

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
		VNI: n.doc.Network.VNI, Local: in.underlay().String(), DstPort: spec.VXLANPort,
	}
	to := func(mac string, host netip.Addr) {
		st.FDB[FDB{Link: name, MAC: mac}] = true
		st.FDB[FDB{Link: name, MAC: mac, Dst: host.String()}] = true
	}
	for number, host := range n.hosts {
		to(hostMAC(number), host)
	}
	taken, takenMAC := map[netip.Addr]bool{n.gateway: true}, map[string]bool{}
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
	}
}

// members adds the addresses of the other hosts of all networks.
func (in Input) members(set Set, family func(netip.Addr) bool) {
	for _, d := range in.Networks {
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

// program adds what the table says of the network, its ports apart, and
// returns its rules.
func (n network) program(t Table) []Rule {
	t.Sets[setBridges][n.bridgeN] = ""
	t.Sets[setSame][n.bridgeN+" . "+n.bridgeN] = ""
	if n.doc.Network.Spec.Internal {
		t.Sets[setInternal][n.bridgeN] = ""
		return nil
	}
	for _, e := range n.doc.Tasks {
		if ip, err := netip.ParsePrefix(e.IP); err == nil && n.published[ip.Addr().String()] {
			t.Sets[setSelf][fmt.Sprintf("%s . %s", ip.Addr(), ip.Addr())] = ""
		}
	}
	return egressRules(n.subnet, n.doc.Network.Spec.Driver != spec.DriverOverlay)
}

// publish fills the slots of a port with its targets in turn.
func publish(t Table, c Claim, targets []string) {
	key, prefix, refused := fmt.Sprintf("%s . %d", c.Proto, c.Port), mapAny, setRefused
	if c.IP != "0.0.0.0" {
		key, prefix, refused = c.IP+" . "+key, mapAt, setRefusedAt
	}
	var ends []string
	for _, s := range targets {
		if a, err := netip.ParseAddrPort(s); err == nil && a.Addr().Is4() {
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
	routed, gate := false, (*LinkID)(nil)
	for i, a := range s.Addresses {
		n, ok := networks[a.Network]
		ip, err := netip.ParsePrefix(a.IP)
		if !ok || err != nil || s.Mode == "none" {
			continue
		}
		host, inner := LinkID{Name: vethName(in.Node, s.Task, i)}, LinkID{s.Task, fmt.Sprintf("eth%d", i)}
		mac := strings.ToLower(a.MAC)
		on = append(on, n)
		st.Links[host] = Link{
			Kind: kindVeth, Alias: vethAlias(in.Node, s.Task, a.Network), MTU: n.mtu, Up: true, Master: n.bridgeN,
			// The kernel learns nothing and floods no unknown address; broadcast
			// goes through, since tasks of one host answer each other's ARP. A
			// locked port takes only the address that the FDB knows. Hairpin is
			// for a task that reaches itself by its own published port when
			// bridged frames pass the host's IP chains.
			Port: Port{McastFlood: true, BcastFlood: true, Locked: true, Hairpin: n.published[ip.Addr().String()]},
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
	}
	shared.taskTables(st, s, on, gate)
	return st
}
