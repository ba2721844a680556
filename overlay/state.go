package overlay

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	"wherry.dev/spec"
)

// State is what the kernel has, or ought to have, of ours. The zero value has
// nothing. Its text form (String) is sorted and complete, so that two states
// are equal exactly if their texts are.
type State struct {
	Links   map[LinkID]Link
	Addrs   map[Addr]bool
	Routes  map[Route]bool
	FDB     map[FDB]bool
	Neighs  map[Neigh]bool
	Sysctls map[SysctlKey]string
	Claims  map[Claim]bool
	Tables  map[TableID]Table
	// Programs stand for chains that the kernel has no hook for.
	Programs map[Program]bool
}

// NewState returns a state in which every map can be written to.
func NewState() State {
	return State{
		Links: map[LinkID]Link{}, Addrs: map[Addr]bool{}, Routes: map[Route]bool{}, FDB: map[FDB]bool{}, Neighs: map[Neigh]bool{},
		Sysctls: map[SysctlKey]string{}, Claims: map[Claim]bool{}, Tables: map[TableID]Table{}, Programs: map[Program]bool{},
	}
}

// LinkID names a link. NS is the task whose namespace holds it; empty is the
// host's.
type LinkID struct {
	NS   spec.TaskID
	Name string
}

// String returns "NAME", or "TASK/NAME" inside a task's namespace.
func (l LinkID) String() string {
	if l.NS == "" {
		return l.Name
	}
	return string(l.NS) + "/" + l.Name
}

// The kinds of links.
const (
	kindBridge   = "bridge"
	kindVeth     = "veth"
	kindVXLAN    = "vxlan"
	kindLoopback = "loopback"
	kindVLAN     = "vlan"
	kindMacvlan  = "macvlan"
)

// Link is a network device.
type Link struct {
	Kind string
	// Alias says whose link it is; empty inside a task's namespace.
	Alias string
	// MAC in lower-case hex; empty does not care.
	MAC string
	// MTU in bytes; 0 does not care.
	MTU int
	Up  bool
	// Master is the bridge whose port it is, with the flags of the port.
	Master string
	Port   Port
	// Peer is the other end of a veth of the host, and PeerMAC its address.
	// Only wanted states have them: they matter when the pair is made.
	Peer    LinkID
	PeerMAC string
	// VNI is the identifier of a VXLAN device, Local the address it sends from,
	// DstPort the UDP port it sends to. Learning, which ours never do, is to
	// follow the addresses of what comes in.
	VNI      uint32
	Local    string
	DstPort  uint16
	Learning bool
	// Parent is the link of the host that a VLAN interface or a task's device is
	// on, VLAN the number of the former. That of a task's device is not observed.
	Parent string
	VLAN   uint16
}

func (l Link) String() string {
	var b strings.Builder
	b.WriteString(l.Kind)
	for _, f := range linkFields(l) {
		if f.value != "" {
			fmt.Fprintf(&b, " %s", f.text())
		}
	}
	return b.String()
}

// Port holds the flags of a bridge's port, named as bridge(8) names them.
type Port struct {
	Learning, Flood, McastFlood, BcastFlood, NeighSuppress, Locked, Hairpin, Isolated bool
}

func (p Port) String() string {
	var on []string
	for _, f := range p.flags() {
		if f.on {
			on = append(on, f.name)
		}
	}
	if len(on) == 0 {
		return "none"
	}
	return strings.Join(on, ",")
}

type portFlag struct {
	name string
	on   bool
}

func (p Port) flags() []portFlag {
	return []portFlag{
		{"learning", p.Learning},
		{"flood", p.Flood},
		{"mcast_flood", p.McastFlood},
		{"bcast_flood", p.BcastFlood},
		{"neigh_suppress", p.NeighSuppress},
		{"locked", p.Locked},
		{"hairpin", p.Hairpin},
		{"isolated", p.Isolated},
	}
}

// linkField is one property of a link as text; an empty value is not compared.
type linkField struct{ name, value string }

func (f linkField) text() string {
	if f.name == "state" {
		return f.value
	}
	return f.name + " " + f.value
}

func linkFields(l Link) []linkField {
	f := []linkField{{name: "mac", value: l.MAC}, {name: "mtu"}, {name: "state", value: "down"}, {name: "master", value: l.Master}, {name: "port"}, {name: "id"}, {name: "local", value: l.Local}, {name: "dstport"}, {name: "learning"}, {name: "alias", value: l.Alias}, {name: "peer"}, {name: "peer-mac", value: l.PeerMAC}, {name: "parent", value: l.Parent}, {name: "vlan"}}
	if l.MTU > 0 {
		f[1].value = fmt.Sprint(l.MTU)
	}
	if l.Up {
		f[2].value = "up"
	}
	if l.Master != "" {
		f[4].value = l.Port.String()
	}
	if l.Kind == kindVXLAN {
		f[5].value, f[7].value, f[8].value = fmt.Sprint(l.VNI), fmt.Sprint(l.DstPort), "off"
		if l.Learning {
			f[8].value = "on"
		}
	}
	if l.Peer != (LinkID{}) {
		f[10].value = l.Peer.String()
	}
	if l.VLAN != 0 {
		f[13].value = fmt.Sprint(l.VLAN)
	}
	return f
}

// Addr is an address with prefix length on a link.
type Addr struct {
	Link LinkID
	IP   string
}

func (a Addr) String() string { return fmt.Sprintf("addr %s dev %s", a.IP, a.Link) }

// Program is what gives answers the MAC of the host that the question came by,
// at a link inside a task's namespace.
type Program struct{ Link LinkID }

func (p Program) String() string { return fmt.Sprintf("program return dev %s", p.Link) }

// Route is a route of the main table through a link.
type Route struct {
	Link LinkID
	// Dst is a prefix; 0.0.0.0/0 and ::/0 are the default routes.
	Dst string
	// Via is the gateway, empty for what is on the link; Src the preferred
	// source of a route without gateway, which ours of IPv6 do not have.
	Via, Src string
}

func (r Route) String() string {
	s := "route " + r.Dst
	if r.Via != "" {
		s += " via " + r.Via
	}
	s += " dev " + r.Link.String()
	if r.Src != "" {
		s += " src " + r.Src
	}
	return s
}

// FDB is a forwarding entry for frames to MAC. Without Dst it is a static one
// of a bridge: they leave by the port Link. With Dst it is one of the VXLAN
// device Link itself: they go to the host at that address. What leaves by a
// tunnel needs both. An entry that was seen and is not as ours are has the
// difference behind its address, in the words of bridge(8).
type FDB struct{ Link, MAC, Dst string }

func (f FDB) String() string {
	if f.Dst != "" {
		return fmt.Sprintf("fdb %s dev %s dst %s self", f.MAC, f.Link, f.Dst)
	}
	return fmt.Sprintf("fdb %s dev %s static", f.MAC, f.Link)
}

// Neigh is a permanent neighbour of a bridge, by which the bridge answers for
// what is on other hosts.
type Neigh struct{ Link, IP, MAC string }

func (n Neigh) String() string { return fmt.Sprintf("neigh %s lladdr %s dev %s", n.IP, n.MAC, n.Link) }

// SysctlKey names a kernel setting by its path below /proc/sys.
type SysctlKey struct {
	NS   spec.TaskID
	Path string
}

func (k SysctlKey) String() string {
	if k.NS == "" {
		return k.Path
	}
	return string(k.NS) + "/" + k.Path
}

// Claim is a port of the host that is ours: a socket is bound to it.
type Claim struct {
	Proto string // tcp or udp
	// IP is an address of the host; 0.0.0.0 is all of IPv4 and :: all of IPv6,
	// neither of which concerns the other.
	IP   string
	Port uint16
}

func (c Claim) String() string {
	return fmt.Sprintf("claim %s %s", c.Proto, net.JoinHostPort(c.IP, strconv.Itoa(int(c.Port))))
}

func (c Claim) six() bool { return strings.Contains(c.IP, ":") }

// every reports whether it is on all addresses of its family.
func (c Claim) every() bool { return c.IP == "0.0.0.0" || c.IP == "::" }

// TableID names an nftables table. NS is the task whose namespace holds it;
// empty is the host's.
type TableID struct {
	NS spec.TaskID
	// Family is ip for the host's table, ip6 for its second one, inet or netdev
	// for a task's.
	Family, Name string
}

// String returns "FAMILY NAME", or "TASK/FAMILY NAME" inside a task's
// namespace.
func (t TableID) String() string {
	if t.NS == "" {
		return t.Family + " " + t.Name
	}
	return string(t.NS) + "/" + t.Family + " " + t.Name
}

// short leaves out the family of the host's table.
func (t TableID) short() string {
	if t.NS == "" && t.Family != familyIPv6 {
		return t.Name
	}
	return t.String()
}

func compareTables(a, b TableID) int {
	return cmp.Or(cmp.Compare(a.NS, b.NS), cmp.Compare(a.Family, b.Family), cmp.Compare(a.Name, b.Name))
}

// Table is an nftables table.
type Table struct {
	Sets   map[string]Set
	Chains map[string]Chain
}

// Set is an nftables set or map: elements as text, each with its value in a
// map. Its name implies its type.
type Set map[string]string

// Chain is an nftables chain. A chain without hook is only jumped to.
type Chain struct {
	Hook  Hook
	Rules []Rule
}

// Hook is the place of a base chain.
type Hook struct {
	Type, Name string
	Priority   int
	// Device is the link that a hook of family netdev is at.
	Device string
}

func (h Hook) String() string {
	if h == (Hook{}) {
		return "regular"
	}
	device := ""
	if h.Device != "" {
		device = " device " + h.Device
	}
	return fmt.Sprintf("type %s hook %s%s priority %d", h.Type, h.Name, device, h.Priority)
}

// Rule is one rule. Text is the whole of its meaning, and is stored with the
// rule in the kernel: two rules with equal text are the same rule.
type Rule struct {
	Text  string
	terms []term
}

// String returns the state as sorted lines.
func (s State) String() string {
	var lines []string
	add := func(format string, args ...any) { lines = append(lines, fmt.Sprintf(format, args...)) }
	for id, l := range s.Links {
		add("link %s: %s", id, l)
	}
	for a := range s.Addrs {
		add("%s", a)
	}
	for r := range s.Routes {
		add("%s", r)
	}
	for f := range s.FDB {
		add("%s", f)
	}
	for n := range s.Neighs {
		add("%s", n)
	}
	for p := range s.Programs {
		add("%s", p)
	}
	for k, v := range s.Sysctls {
		add("sysctl %s = %s", k, v)
	}
	for c := range s.Claims {
		add("%s", c)
	}
	slices.Sort(lines)
	for _, id := range slices.SortedFunc(maps.Keys(s.Tables), compareTables) {
		lines = append(lines, s.Tables[id].lines(id)...)
	}
	if len(lines) == 0 {
		return ""
	}
	return strings.Join(lines, "\n") + "\n"
}

func (t Table) lines(id TableID) []string {
	lines := []string{"table " + id.String()}
	for _, n := range slices.Sorted(maps.Keys(t.Sets)) {
		lines = append(lines, "  set "+n)
		for _, k := range slices.Sorted(maps.Keys(t.Sets[n])) {
			lines = append(lines, "    "+element(k, t.Sets[n][k]))
		}
	}
	for _, n := range slices.Sorted(maps.Keys(t.Chains)) {
		lines = append(lines, fmt.Sprintf("  chain %s %s", n, t.Chains[n].Hook))
		for _, r := range t.Chains[n].Rules {
			lines = append(lines, "    "+r.Text)
		}
	}
	return lines
}

func element(key, value string) string {
	if value == "" {
		return key
	}
	return key + " : " + value
}

// merge adds everything of o to s.
func (s State) merge(o State) {
	maps.Copy(s.Links, o.Links)
	maps.Copy(s.Addrs, o.Addrs)
	maps.Copy(s.Routes, o.Routes)
	maps.Copy(s.FDB, o.FDB)
	maps.Copy(s.Neighs, o.Neighs)
	maps.Copy(s.Sysctls, o.Sysctls)
	maps.Copy(s.Claims, o.Claims)
	maps.Copy(s.Tables, o.Tables)
	maps.Copy(s.Programs, o.Programs)
}

// dropInside removes from s, in place, the insides of namespaces of tasks for
// which drop holds.
func (s State) dropInside(drop func(spec.TaskID) bool) {
	s.dropLinks(func(l LinkID) bool { return l.NS != "" && drop(l.NS) })
	maps.DeleteFunc(s.Tables, func(t TableID, _ Table) bool { return t.NS != "" && drop(t.NS) })
}

// inside returns the parts of s that are inside namespaces of tasks.
func (s State) inside() map[spec.TaskID]State {
	out := map[spec.TaskID]State{}
	of := func(t spec.TaskID) State {
		if _, ok := out[t]; !ok {
			out[t] = NewState()
		}
		return out[t]
	}
	for l, v := range s.Links {
		if l.NS != "" {
			of(l.NS).Links[l] = v
		}
	}
	for a := range s.Addrs {
		if a.Link.NS != "" {
			of(a.Link.NS).Addrs[a] = true
		}
	}
	for r := range s.Routes {
		if r.Link.NS != "" {
			of(r.Link.NS).Routes[r] = true
		}
	}
	for p := range s.Programs {
		of(p.Link.NS).Programs[p] = true
	}
	for t, v := range s.Tables {
		if t.NS != "" {
			of(t.NS).Tables[t] = v
		}
	}
	return out
}

// dropLinks removes from s, in place, every link for which drop holds and what
// hangs on it.
func (s State) dropLinks(drop func(LinkID) bool) {
	maps.DeleteFunc(s.Links, func(l LinkID, _ Link) bool { return drop(l) })
	maps.DeleteFunc(s.Addrs, func(a Addr, _ bool) bool { return drop(a.Link) })
	maps.DeleteFunc(s.Programs, func(p Program, _ bool) bool { return drop(p.Link) })
	maps.DeleteFunc(s.Routes, func(r Route, _ bool) bool { return drop(r.Link) })
	maps.DeleteFunc(s.FDB, func(f FDB, _ bool) bool { return drop(LinkID{Name: f.Link}) })
	maps.DeleteFunc(s.Neighs, func(n Neigh, _ bool) bool { return drop(LinkID{Name: n.Link}) })
}
