package overlay

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"wherry.dev/spec"
)

const (
	// anyPort stands for a port that no rule has in mind.
	anyPort = 50123
	// defaultAPIPort counts while the node's own is not known.
	defaultAPIPort = 4477
	// ourBridges and ourMACs are how rules of others may know what is ours.
	ourBridges  = "wbr-"
	ourMACs     = "02:57:00:00:00:00-02:58:ff:ff:ff:ff"
	sampleFrame = "02:58:00:00:00:01"
)

// needs is the traffic of this host's networks and of its node. A host without
// networks is taken to get one.
func (in fwInput) needs() []need {
	var out []need
	nets := slices.DeleteFunc(slices.Clone(in.Networks), isLAN) // these do not pass the host
	if len(nets) == 0 {
		out = in.networkNeeds(spec.HostNetwork{Network: spec.Network{ID: "1-1"}, Ports: []spec.PublishedPort{{Port: anyPort, Protocol: "tcp"}}}, false)
	}
	for _, d := range nets {
		out = append(out, in.networkNeeds(d, true)...)
	}
	return append(out, in.nodeNeeds()...)
}

// networkNeeds is the traffic of one network, of each family that it has.
func (in fwInput) networkNeeds(d spec.HostNetwork, now bool) []need {
	bridge := bridgeName(in.Node, d.Network.ID)
	var out, ports, within, frames, tasks []fwPacket
	families := map[string]string{"ip": d.Network.Subnet}
	if d.Network.Subnet6 != "" {
		families["ip6"] = d.Network.Subnet6
	}
	forward := []string{"forward", "postrouting"}
	for _, family := range []string{"ip", "ip6"} {
		text, ok := families[family]
		if !ok {
			continue
		}
		subnet, _ := netip.ParsePrefix(text) // the zero value is not known
		for _, proto := range []string{"tcp", "udp"} {
			if !d.Network.Spec.Internal {
				p := fwPacket{family: family, proto: proto, iif: bridge, src: subnet, dport: anyPort, state: "new"}
				first := p
				first.hooks = []string{"prerouting"}
				p.hooks, p.oif = forward, in.Egress
				back := fwPacket{family: family, proto: proto, iif: in.Egress, oif: bridge, dst: subnet, state: "established", reply: true, hooks: forward}
				out = append(out, first, p, back)
			}
			if in.bridged(family) {
				p := fwPacket{family: family, proto: proto, iif: bridge, oif: bridge, src: subnet, dst: subnet, dport: anyPort, state: "new", hooks: []string{"prerouting", "forward", "postrouting"}}
				back := p
				back.dport, back.state, back.reply = 0, "established", true
				within = append(within, p, back)
			}
			tasks = append(tasks, fwPacket{family: family, proto: proto, oif: bridge, dst: subnet, dport: anyPort, state: "new", hooks: []string{"output", "postrouting"}})
		}
	}
	tunnel, task := tunnelName(in.Node, d.Network.ID), vethName(in.Node, "1-1", 0)
	kinds := []fwPacket{{family: "ip", proto: "tcp"}, {family: "ip", proto: "udp"}, {family: "arp"}}
	if d.Network.Subnet6 != "" {
		kinds = append(kinds, fwPacket{family: "ip6", proto: "tcp"}, fwPacket{family: "ip6", proto: "udp"})
	}
	for _, p := range kinds {
		p.bridge, p.mac, p.hooks = true, sampleFrame, []string{"prerouting", "forward", "input", "output", "postrouting"}
		p.iif, p.oif = task, tunnel
		if p.proto != "" {
			p.dport, p.state = anyPort, "new"
		}
		frames = append(frames, p)
	}
	var published []need
	n := Input{Node: in.Node, Networks: []spec.HostNetwork{d}, Underlay: in.Underlay}.networks()[d.Network.ID]
	for _, p := range d.Ports {
		claims, _ := n.claims(p)
		if len(claims) > 0 {
			ports = append(ports, in.portPackets(p, bridge, now)...)
		}
		for _, c := range claims {
			published = append(published, in.portNeeds(c, now)...)
		}
	}
	needs := []need{
		{what: "what tasks send to the outside", packets: out},
		{what: toPublished, packets: ports},
		{what: "what tasks of a network send to each other", packets: append(within, frames...)},
		{what: "connections of this host to its tasks", packets: tasks},
	}
	for i := range needs {
		needs[i].bridges, needs[i].now = true, now
	}
	return append(needs, published...)
}

func (in fwInput) bridged(family string) bool {
	if family == "ip6" {
		return in.Bridged6
	}
	return in.Bridged4
}

const toPublished = "connections to published ports"

// portPackets are the first packet of a connection to a published port on its
// way to each task, and the answer.
func (in fwInput) portPackets(p spec.PublishedPort, bridge string, now bool) []fwPacket {
	forward := []string{"forward", "postrouting"}
	targets := p.Targets
	if !now {
		targets = []string{"0.0.0.0:80"}
	}
	var out []fwPacket
	for _, t := range targets {
		a, err := netip.ParseAddrPort(t)
		if err != nil {
			continue
		}
		at, family := justAddr(a.Addr()), familyOf(a.Addr())
		out = append(out,
			fwPacket{family: family, proto: p.Protocol, iif: in.Device, oif: bridge, dst: at, dport: a.Port(), state: "new", dnat: true, hooks: forward},
			fwPacket{family: family, proto: p.Protocol, iif: bridge, oif: in.Device, src: at, state: "established", reply: true, dnat: true, hooks: forward})
	}
	return out
}

// portNeeds is the first packet of a connection to a claimed port as it comes
// in, before it is translated.
func (in fwInput) portNeeds(c Claim, now bool) []need {
	if !now {
		return nil // it is not known which ports there will be
	}
	ip, _ := netip.ParseAddr(c.IP)
	return []need{{what: toPublished, now: now, proto: c.Proto, port: c.Port, packets: []fwPacket{
		{family: familyOf(ip), proto: c.Proto, iif: in.Device, dst: justAddr(ip), dport: c.Port, state: "new", local: true, hooks: []string{"prerouting"}}}}}
}

func familyOf(a netip.Addr) string {
	if a.Unmap().Is6() {
		return "ip6"
	}
	return "ip"
}

// justAddr is the prefix of one address; of none in particular it is zero.
func justAddr(a netip.Addr) netip.Prefix {
	if !a.IsValid() || a.IsUnspecified() {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(a, a.BitLen())
}

// tunnelPort is the port of networks between hosts.
func (in fwInput) tunnelPort() uint16 {
	if len(in.Networks) > 0 {
		return tunnelPort(in.Networks[0])
	}
	return spec.VXLANPort
}

// nodeNeeds is what nodes say to each other: by the tunnels' port with the
// hosts of common networks, by the API's with all.
func (in fwInput) nodeNeeds() []need {
	own := in.Underlay.Addr().Unmap()
	if own.IsLoopback() {
		return nil // nobody else can be a node of its cluster
	}
	var peers []netip.Addr
	for _, d := range in.Networks {
		for _, h := range d.Hosts {
			if a, err := netip.ParseAddr(h.Address); err == nil && !slices.Contains(peers, a.Unmap()) {
				peers = append(peers, a.Unmap())
			}
		}
	}
	slices.SortFunc(peers, netip.Addr.Compare)
	now := len(peers) > 0
	if !now {
		peers = []netip.Addr{{}}
	}
	family := familyOf(own)
	api := cmp.Or(in.Underlay.Port(), defaultAPIPort)
	var out []need
	for _, s := range []struct {
		proto string
		port  uint16
	}{{"tcp", api}, {"udp", api}, {"udp", in.tunnelPort()}} {
		from := need{what: fmt.Sprintf("what other nodes send to port %d/%s", s.port, s.proto), now: now, proto: s.proto, port: s.port}
		to := need{what: fmt.Sprintf("what this node sends to port %d/%s of others", s.port, s.proto), now: now, proto: s.proto, port: s.port, out: true}
		for _, peer := range peers {
			p := fwPacket{family: family, proto: s.proto, iif: in.Device, src: justAddr(peer), dst: justAddr(own), dport: s.port, local: true, hooks: []string{"prerouting", "input"}}
			q := fwPacket{family: family, proto: s.proto, oif: in.Device, src: justAddr(own), dst: justAddr(peer), dport: s.port, hooks: []string{"output", "postrouting"}}
			for _, state := range []string{"new", "established"} {
				p.state, q.state = state, state
				from.packets, to.packets = append(from.packets, p), append(to.packets, q)
			}
		}
		out = append(out, from, to)
	}
	return out
}

// The firewalls that are told apart, since each has its own way to let
// something through.
const (
	ownerUFW       = "ufw"
	ownerDocker    = "Docker"
	ownerFirewalld = "firewalld"
	ownerIPTables  = "iptables"
	ownerNFTables  = "nftables"
)

var iptablesChains = []string{"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}

// owner says whose a base chain is.
func (c fwChain) owner(t fwTable) string {
	calls := func(prefix string) bool {
		return slices.ContainsFunc(c.Rules, func(r fwRule) bool { return strings.HasPrefix(r.To, prefix) })
	}
	tables := c.Legacy || slices.Contains([]string{"filter", "mangle", "raw", "nat", "security"}, c.Table)
	switch {
	case c.Table == "firewalld":
		return ownerFirewalld
	case !tables || !slices.Contains(iptablesChains, c.Name) || c.Family != "ip" && c.Family != "ip6":
		return ownerNFTables
	case calls("ufw-") || calls("ufw6-"):
		return ownerUFW
	case c.Hook == "forward" && calls("DOCKER-USER"):
		return ownerDocker
	}
	return ownerIPTables
}

// words names a base chain as its owner's people know it.
func (c fwChain) words(t fwTable) string {
	owner := c.owner(t)
	switch {
	case owner == ownerNFTables:
		return fmt.Sprintf("chain %s of nftables table %s %s", c.Name, c.Family, c.Table)
	case owner == ownerFirewalld:
		return fmt.Sprintf("firewalld (chain %s of nftables table %s %s)", c.Name, c.Family, c.Table)
	case owner == ownerIPTables:
		return fmt.Sprintf("chain %s of %s table %s", c.Name, c.command(), c.Table)
	}
	return fmt.Sprintf("chain %s of %s table %s (%s's)", c.Name, c.command(), c.Table, owner)
}

// command is the program that changes the chain.
func (c fwChain) command() string {
	name := "iptables"
	if c.Family == "ip6" {
		name = "ip6tables"
	}
	if c.Legacy {
		name += "-legacy"
	}
	return name
}

// cure are the lines that let traffic through a base chain. by is the chain in
// which it is dropped.
func (c fwChain) cure(t fwTable, n need, by string) []string {
	owner := c.owner(t)
	switch {
	case owner == ownerUFW && n.bridges && c.Hook == "forward":
		return []string{"ufw route allow in on " + ourBridges + "+", "ufw route allow out on " + ourBridges + "+"}
	case owner == ownerUFW && !n.bridges && c.Hook == "input":
		return []string{fmt.Sprintf("ufw allow %d/%s", n.port, n.proto)}
	case owner == ownerUFW && !n.bridges && c.Hook == "output":
		return []string{fmt.Sprintf("ufw allow out %d/%s", n.port, n.proto)}
	case owner == ownerFirewalld && n.bridges:
		return []string{"firewall-cmd --permanent --zone=trusted --add-interface=" + ourBridges + "+", reloadFirewalld}
	case owner == ownerFirewalld && c.Hook == "input":
		zone := ""
		if name, ok := strings.CutPrefix(by, "filter_IN_"); ok {
			zone = " --zone=" + name
		}
		return []string{fmt.Sprintf("firewall-cmd --permanent%s --add-port=%d/%s", zone, n.port, n.proto), reloadFirewalld}
	case owner == ownerFirewalld || owner == ownerNFTables:
		return c.cureNFT(n)
	}
	chain := c.Name
	if owner == ownerDocker {
		chain = "DOCKER-USER"
	}
	command := c.command() + " "
	if c.Table != "filter" {
		command += "-t " + c.Table + " "
	}
	command += "-I " + chain
	if !n.bridges {
		return []string{fmt.Sprintf("%s -p %s --dport %d -j ACCEPT", command, n.proto, n.port)}
	}
	var lines []string
	for _, flag := range c.ends("-i", "-o") {
		lines = append(lines, fmt.Sprintf("%s %s %s+ -j ACCEPT", command, flag, ourBridges))
	}
	return lines
}

const reloadFirewalld = "firewall-cmd --reload"

// reloadLast puts the line that makes the others count behind them.
func reloadLast(lines []string) []string {
	if i := slices.Index(lines, reloadFirewalld); i >= 0 {
		lines = append(slices.Delete(lines, i, i+1), reloadFirewalld)
	}
	return lines
}

// ends are the ends of a packet's way that a chain of the hook can know.
func (c fwChain) ends(in, out string) []string {
	switch c.Hook {
	case "prerouting", "input":
		return []string{in}
	case "output", "postrouting":
		return []string{out}
	}
	return []string{in, out}
}

func (c fwChain) cureNFT(n need) []string {
	command := fmt.Sprintf("nft insert rule %s %s %s ", c.Family, c.Table, c.Name)
	switch {
	case !n.bridges:
		return []string{fmt.Sprintf("%s%s dport %d accept", command, n.proto, n.port)}
	case c.Family == "bridge":
		return []string{command + "ether saddr " + ourMACs + " accept"}
	}
	var lines []string
	for _, end := range c.ends("iifname", "oifname") {
		lines = append(lines, fmt.Sprintf("%s%s %q accept", command, end, ourBridges+"*"))
	}
	return lines
}
