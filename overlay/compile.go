package overlay

import (
	"cmp"
	"fmt"
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
	// MTU of the underlay in bytes; 0 is 1500.
	MTU int
	// Refused are ports that another process of the host holds. They are
	// neither claimed nor forwarded: the host's own ports are never taken away.
	Refused map[Claim]bool
}

const (
	defaultMTU = 1500
	minMTU     = 1280
	maxMTU     = 9000
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
	for _, d := range in.Networks {
		n, ok := networks[d.Network.ID]
		if !ok {
			continue
		}
		st.merge(n.bridge(in.Node, in.mtu()))
		n.program(t)
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
	st.Tables[hostTable(in.Node)] = t
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

func (in Input) mtu() int {
	if in.MTU == 0 {
		return defaultMTU
	}
	return min(max(in.MTU, minMTU), maxMTU)
}

func (n network) bridge(node spec.NodeID, mtu int) State {
	st := NewState()
	id := LinkID{Name: n.bridgeN}
	st.Links[id] = Link{Kind: kindBridge, Alias: bridgeAlias(node, n.doc.Network.ID), MAC: hostMAC(n.doc.HostNumber), MTU: mtu, Up: true}
	st.Addrs[Addr{Link: id, IP: netip.PrefixFrom(n.gateway, n.subnet.Bits()).String()}] = true
	st.Routes[Route{Link: id, Dst: n.subnet.String(), Src: n.gateway.String()}] = true
	localnet := "0"
	if len(n.doc.Ports) > 0 {
		localnet = "1"
	}
	st.Sysctls[SysctlKey{Path: sysctlLocalnet(n.bridgeN)}] = localnet
	return st
}

// program adds what the table says of the network, its ports apart.
func (n network) program(t Table) {
	t.Sets[setBridges][n.bridgeN] = ""
	t.Sets[setSame][n.bridgeN+" . "+n.bridgeN] = ""
	if n.doc.Network.Spec.Internal {
		t.Sets[setInternal][n.bridgeN] = ""
		return
	}
	post := t.Chains["post"]
	post.Rules = append(post.Rules, egressRules(n.subnet)...)
	slices.SortStableFunc(post.Rules[1:], func(a, b Rule) int { return strings.Compare(a.Text, b.Text) })
	t.Chains["post"] = post
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
			Kind: kindVeth, Alias: vethAlias(in.Node, s.Task, a.Network), MTU: in.mtu(), Up: true, Master: n.bridgeN,
			// The kernel learns nothing and floods no unknown address; broadcast
			// goes through, since tasks of one host answer each other's ARP. A
			// locked port takes only the address that the FDB knows. Hairpin is
			// for a task that reaches itself by its own published port when
			// bridged frames pass the host's IP chains.
			Port: Port{McastFlood: true, BcastFlood: true, Locked: true, Hairpin: n.published[ip.Addr().String()]},
			Peer: inner, PeerMAC: mac,
		}
		st.Links[inner] = Link{Kind: kindVeth, MAC: mac, MTU: in.mtu(), Up: true}
		st.FDB[FDB{host.Name, mac}] = true
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
