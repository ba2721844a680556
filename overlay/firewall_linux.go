package overlay

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

	mdl "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

// firewalls reads what others have set up in this process's network namespace.
// Reading all takes some messages for each family, so it is left out while the
// kernel has counted no transaction. Safe for concurrent use.
type firewalls struct {
	mu         sync.Mutex
	nft        nftTables
	read       bool
	generation uint32
	chains     []fwChain // of nftables
}

// CheckFirewalls judges the firewalls of this host without a Host: for the
// networks of the run folder, if there are any, and for a node that advertises
// underlay, if that is known.
func CheckFirewalls(runDir string, underlay netip.AddrPort) ([]FirewallProblem, error) {
	var f firewalls
	defer f.close()
	nets, err := loadNetworks(runDir)
	if err != nil {
		return nil, err
	}
	return f.check("", nets, underlay)
}

func (f *firewalls) check(node spec.NodeID, nets []spec.HostNetwork, underlay netip.AddrPort) ([]FirewallProblem, error) {
	chains, err := f.foreign()
	if err != nil {
		return nil, fmt.Errorf("read other firewalls: %w", err)
	}
	if len(chains) == 0 {
		return nil, nil
	}
	in := fwInput{Chains: chains, Node: node, Networks: nets, Underlay: underlay,
		Bridged4: switchedOn("bridge-nf-call-iptables"), Bridged6: switchedOn("bridge-nf-call-ip6tables")}
	if in.Device, in.Egress, err = uplinks(underlay.Addr().Unmap()); err != nil {
		return nil, err
	}
	return judgeFirewalls(in), nil
}

// wallWatch is what a Host remembers of other firewalls between two looks.
type wallWatch struct {
	firewalls
	told string
}

func (w *wallWatch) close() {
	if w != nil {
		w.firewalls.close()
	}
}

// watchFirewalls brings the status up to date with what others have set up,
// and logs what is new about it. It needs no document: a host that is about to
// join must hear of it, too.
func (h *Host) watchFirewalls() {
	if h.walls == nil {
		return
	}
	h.mu.Lock()
	nets := h.documentsLocked()
	h.mu.Unlock()
	problems, err := h.walls.check(h.c.Node, nets, h.underlay())
	if err == nil {
		h.mu.Lock()
		h.status.Firewalls = problems
		h.mu.Unlock()
	}
	told := fmt.Sprint(problems, err)
	if told == h.walls.told {
		return
	}
	h.walls.told = told
	if err != nil {
		h.log.Warn("cannot see other firewalls", "err", err)
	}
	for _, p := range problems {
		h.log.Warn("a firewall stands in the way", "err", p)
	}
}

// switchedOn reports whether what crosses bridges passes the chains of a family
// of IP. Without the setting the kernel has no such thing.
func switchedOn(setting string) bool {
	b, err := os.ReadFile("/proc/sys/net/bridge/" + setting)
	return err == nil && strings.TrimSpace(string(b)) == "1"
}

// uplinks returns the devices with an address, and with the default route.
func uplinks(addr netip.Addr) (device, egress string, err error) {
	devices, err := net.Interfaces()
	if err != nil {
		return "", "", fmt.Errorf("list links: %w", err)
	}
	names := map[int]string{}
	for _, d := range devices {
		names[d.Index] = d.Name
		addrs, err := d.Addrs()
		if err != nil {
			continue // it went just now
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Unmap() == addr {
				device = d.Name
			}
		}
	}
	routes, err := dump(func() ([]netlink.Route, error) { return netlink.RouteList(nil, unix.AF_INET) })
	if err != nil {
		return "", "", fmt.Errorf("list routes: %w", err)
	}
	routes = slices.DeleteFunc(routes, func(r netlink.Route) bool { return r.Dst != nil && !r.Dst.IP.IsUnspecified() })
	if len(routes) > 0 {
		best := slices.MinFunc(routes, func(a, b netlink.Route) int { return a.Priority - b.Priority })
		egress = names[best.LinkIndex]
	}
	return cmp.Or(device, egress), egress, nil
}

func (f *firewalls) close() { f.nft.close() }

// foreign returns the chains of others. The caller must not change their rules.
func (f *firewalls) foreign() ([]fwChain, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.nft.mu.Lock()
	defer f.nft.mu.Unlock()
	if err := f.nft.openLocked(); err != nil {
		return nil, err
	}
	generation, err := f.nft.generationLocked()
	if err != nil {
		f.nft.closeLocked() // answers may be left in it
		return nil, err
	}
	legacy, err := legacyChains()
	if err != nil {
		return nil, err
	}
	if f.read && f.generation == generation {
		return slices.Concat(f.chains, legacy), nil
	}
	f.read = false
	var chains []fwChain
	for _, family := range []string{"ip", "ip6", "inet", "bridge"} {
		more, err := f.familyLocked(family)
		if err != nil {
			f.nft.closeLocked()
			return nil, err
		}
		chains = append(chains, more...)
	}
	f.read, f.generation, f.chains = true, generation, chains
	return slices.Concat(chains, legacy), nil
}

var fwFamilies = map[string]byte{"ip": unix.NFPROTO_IPV4, "ip6": unix.NFPROTO_IPV6, "inet": unix.NFPROTO_INET, "bridge": unix.NFPROTO_BRIDGE}

// familyLocked reads the tables of one family but ours.
func (f *firewalls) familyLocked(family string) ([]fwChain, error) {
	number := fwFamilies[family]
	list, err := f.nft.dumpLocked(unix.NFT_MSG_GETCHAIN, number, mdl.Dump)
	if err != nil {
		return nil, fmt.Errorf("list chains: %w", err)
	}
	type id struct{ table, name string }
	at := map[id]int{}
	var chains []fwChain
	hooked := false
	for _, m := range list {
		c := fwChain{Family: family, Table: text(m[unix.NFTA_CHAIN_TABLE]), Name: text(m[unix.NFTA_CHAIN_NAME])}
		if strings.HasPrefix(c.Table, tableName("")) {
			continue
		}
		h, err := hookFrom(number, "", m[unix.NFTA_CHAIN_HOOK])
		if err != nil {
			return nil, fmt.Errorf("list chains: %w", err)
		}
		c.Hook, c.Drop = h.Name, number32(m[unix.NFTA_CHAIN_POLICY]) == nfDrop && m[unix.NFTA_CHAIN_POLICY] != nil
		hooked = hooked || c.Hook != ""
		at[id{c.Table, c.Name}] = len(chains)
		chains = append(chains, c)
	}
	if !hooked {
		return nil, nil
	}
	rules, err := f.nft.dumpLocked(unix.NFT_MSG_GETRULE, number, mdl.Dump)
	if err != nil {
		return nil, fmt.Errorf("list rules: %w", err)
	}
	sets, err := f.nft.dumpLocked(unix.NFT_MSG_GETSET, number, mdl.Dump)
	if err != nil {
		return nil, fmt.Errorf("list sets: %w", err)
	}
	look := fwSets{nft: &f.nft, family: number, known: map[fwSetID]fwSet{}}
	for _, m := range sets {
		flags := number32(m[unix.NFTA_SET_FLAGS])
		look.known[fwSetID{text(m[unix.NFTA_SET_TABLE]), text(m[unix.NFTA_SET_NAME])}] = fwSet{
			anonymous: flags&unix.NFT_SET_ANONYMOUS != 0, interval: flags&unix.NFT_SET_INTERVAL != 0,
			verdicts: number32(m[unix.NFTA_SET_DATA_TYPE]) == 0xffffff00, keyLen: int(number32(m[unix.NFTA_SET_KEY_LEN])),
		}
	}
	links, err := linkNames()
	if err != nil {
		return nil, err
	}
	for _, m := range rules {
		i, ok := at[id{text(m[unix.NFTA_RULE_TABLE]), text(m[unix.NFTA_RULE_CHAIN])}]
		if !ok {
			continue
		}
		r := fwReader{family: family, table: chains[i].Table, sets: look, links: links, regs: map[uint32]operand{}}
		more, err := r.rule(m[unix.NFTA_RULE_EXPRESSIONS])
		if err != nil {
			return nil, fmt.Errorf("read rules of chain %s of table %s: %w", chains[i].Name, chains[i].Table, err)
		}
		chains[i].Rules = append(chains[i].Rules, more...)
	}
	return chains, nil
}

func linkNames() (map[uint32]string, error) {
	devices, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	names := map[uint32]string{}
	for _, d := range devices {
		names[uint32(d.Index)] = d.Name
	}
	return names, nil
}

// fwSets are the sets of one family.
type fwSets struct {
	nft    *nftTables // locked
	family byte
	known  map[fwSetID]fwSet
}

type fwSetID struct{ table, name string }

type fwSet struct {
	anonymous, interval, verdicts bool
	keyLen                        int
}

// fwElement is an element of a set, or a range of them.
type fwElement struct {
	from, to []byte
	verdict  map[uint16][]byte // of a map of verdicts
}

// maxForeign bounds what is read of a set: a firewall's own lists are short,
// and a list of strangers' addresses says nothing of us.
const maxForeign = 4096

var errSetTooLarge = errors.New("set too large")

// elements reads a set.
func (s fwSets) elements(table, name string, set fwSet) ([]fwElement, error) {
	msgs, err := s.nft.dumpLocked(unix.NFT_MSG_GETSETELEM, s.family, mdl.Dump,
		mdl.Attribute{Type: unix.NFTA_SET_ELEM_LIST_TABLE, Data: []byte(table + "\x00")},
		mdl.Attribute{Type: unix.NFTA_SET_ELEM_LIST_SET, Data: []byte(name + "\x00")})
	if err != nil {
		return nil, fmt.Errorf("read set %s: %w", name, err)
	}
	type edge struct {
		key     []byte
		end     bool
		verdict map[uint16][]byte
	}
	var edges []edge
	for _, m := range msgs {
		list, err := mdl.UnmarshalAttributes(m[unix.NFTA_SET_ELEM_LIST_ELEMENTS])
		if err != nil {
			return nil, err
		}
		for _, e := range list {
			a, err := attributes(e.Data)
			if err != nil {
				return nil, err
			}
			key, err := attributes(a[unix.NFTA_SET_ELEM_KEY])
			if err != nil {
				return nil, err
			}
			flags := number32(a[unix.NFTA_SET_ELEM_FLAGS])
			const catchall = 2
			if flags&catchall != 0 {
				return nil, errSetTooLarge // it holds everything
			}
			one := edge{key: key[unix.NFTA_DATA_VALUE], end: flags&unix.NFT_SET_ELEM_INTERVAL_END != 0}
			if set.verdicts && !one.end {
				data, err := attributes(a[unix.NFTA_SET_ELEM_DATA])
				if err != nil {
					return nil, err
				}
				if one.verdict, err = attributes(data[unix.NFTA_DATA_VERDICT]); err != nil {
					return nil, err
				}
			}
			edges = append(edges, one)
		}
	}
	if len(edges) > maxForeign {
		return nil, errSetTooLarge
	}
	slices.SortFunc(edges, func(a, b edge) int {
		if c := slices.Compare(a.key, b.key); c != 0 || a.end == b.end {
			return c
		}
		if a.end {
			return -1 // one range ends where the next begins
		}
		return 1
	})
	var out []fwElement
	for i, e := range edges {
		if e.end {
			continue
		}
		to := e.key
		if set.interval {
			to = slices.Repeat([]byte{0xff}, len(e.key))
			if i+1 < len(edges) && edges[i+1].end {
				to = before(edges[i+1].key)
			}
		}
		out = append(out, fwElement{e.key, to, e.verdict})
	}
	return out, nil
}

// before is the number in b, in network order, less one.
func before(b []byte) []byte {
	out := slices.Clone(b)
	for i := len(out) - 1; i >= 0; i-- {
		out[i]--
		if out[i] != 0xff {
			break
		}
	}
	return out
}
