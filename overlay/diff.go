package overlay

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"wherry.dev/spec"
)

// Verb is what an operation does.
type Verb string

// The verbs. Replace takes something away first because it cannot be changed
// as it is.
const (
	Add     Verb = "add"
	Change  Verb = "set"
	Replace Verb = "replace"
	Delete  Verb = "del"
)

// Object is the object of an operation: *LinkChange, Addr, Route, FDB, Neigh,
// Sysctl, Claim, TableChange, SetChange, Element, *ChainChange or Flow.
type Object interface{ String() string }

// Op is one step from one state towards another; it prints as one line.
type Op struct {
	Verb   Verb
	Object Object
}

func (o Op) String() string { return string(o.Verb) + " " + o.Object.String() }

// LinkChange makes or changes a link; Have is zero for a new one.
type LinkChange struct {
	ID         LinkID
	Have, Want Link
}

func (l *LinkChange) String() string {
	if l.Want == (Link{}) {
		return "link " + l.ID.String()
	}
	if l.Have == (Link{}) {
		return fmt.Sprintf("link %s %s", l.ID, l.Want)
	}
	var diff []string
	for _, f := range changedFields(l.Have, l.Want) {
		diff = append(diff, f.text())
	}
	return fmt.Sprintf("link %s %s", l.ID, strings.Join(diff, " "))
}

// changedFields returns the fields of want that have does not have. What want
// does not care about, and what cannot be observed, is left out.
func changedFields(have, want Link) []linkField {
	var out []linkField
	h := linkFields(have)
	for i, f := range linkFields(want) {
		if f.value == "" || f.name == "peer" || f.name == "peer-mac" || f.name == "parent" {
			continue
		}
		if f.value != h[i].value {
			out = append(out, f)
		}
	}
	return out
}

// Sysctl is a setting and its value.
type Sysctl struct {
	Key   SysctlKey
	Value string
}

func (s Sysctl) String() string { return fmt.Sprintf("sysctl %s = %s", s.Key, s.Value) }

// TableChange makes or deletes a table.
type TableChange struct{ Table TableID }

func (t TableChange) String() string { return "table " + t.Table.String() }

// SetChange makes or deletes a set.
type SetChange struct {
	Table TableID
	Set   string
}

func (s SetChange) String() string { return fmt.Sprintf("set %s %s", s.Table.short(), s.Set) }

// Element adds or deletes an element of a set.
type Element struct {
	Table           TableID
	Set, Key, Value string
}

func (e Element) String() string {
	return fmt.Sprintf("element %s %s { %s }", e.Table.short(), e.Set, element(e.Key, e.Value))
}

// ChainChange makes a chain, or empties and fills it again, or deletes it.
type ChainChange struct {
	Table TableID
	Name  string
	Chain Chain
}

func (c *ChainChange) String() string {
	s := fmt.Sprintf("chain %s %s", c.Table.short(), c.Name)
	for _, r := range c.Chain.Rules {
		s += " { " + r.Text + " }"
	}
	return s
}

// Diff returns the operations that lead from have to want, in order: first
// what protects and forwards, then links and what hangs on them, and at last
// what goes. All nftables operations of a namespace but the deletion of a table
// stand together and are one transaction. Those of tasks come after the links,
// since one of their chains is at a link.
//
// Inside a task's namespace nothing is deleted but in our own tables: what a
// task adds there is its own business.
func Diff(have, want State) []Op {
	var ops []Op
	ops = append(ops, claims(Add, want.Claims, have.Claims)...)
	ops = append(ops, sysctls(have, want, beforeLinks)...)
	ops = append(ops, diffTables(have, want, func(t TableID) bool { return t.NS == "" })...)
	links, fresh := diffLinks(have, want)
	ops = append(ops, links...)
	ops = append(ops, sysctls(have, want, func(k SysctlKey) bool { return !beforeLinks(k) })...)

	ops = append(ops, missing(want.Addrs, have.Addrs, func(a Addr) LinkID { return a.Link }, fresh)...)
	ops = append(ops, missing(want.Routes, have.Routes, func(r Route) LinkID { return r.Link }, fresh)...)
	ops = append(ops, missing(want.Programs, have.Programs, func(p Program) LinkID { return p.Link }, fresh)...)
	ops = append(ops, missing(want.FDB, have.FDB, func(f FDB) LinkID { return LinkID{Name: f.Link} }, fresh)...)
	ops = append(ops, missing(want.Neighs, have.Neighs, func(n Neigh) LinkID { return LinkID{Name: n.Link} }, fresh)...)
	ops = append(ops, diffTables(have, want, func(t TableID) bool { return t.NS != "" })...)
	ops = append(ops, diffFlows(have, want)...)

	// What hung on a link that was replaced has gone with it.
	kept := func(id LinkID) bool { _, ok := want.Links[id]; return ok && id.NS == "" && !fresh[id] }
	only := sync.OnceValues(func() (map[FDB]bool, map[Neigh]bool) { return onlyOnes(want) })
	ops = append(ops, surplus(have.FDB, want.FDB, func(f FDB) bool {
		tunnels, _ := only()
		return kept(LinkID{Name: f.Link}) && !(f.Dst != "" && tunnels[FDB{Link: f.Link, MAC: f.MAC}])
	})...)
	ops = append(ops, surplus(have.Neighs, want.Neighs, func(n Neigh) bool {
		_, neighs := only()
		return kept(LinkID{Name: n.Link}) && !neighs[Neigh{Link: n.Link, IP: n.IP}]
	})...)
	ops = append(ops, surplus(have.Addrs, want.Addrs, func(a Addr) bool { return kept(a.Link) })...)
	for _, id := range sortedLinks(have.Links) {
		if _, ok := want.Links[id]; !ok && id.NS == "" {
			ops = append(ops, Op{Delete, &LinkChange{ID: id, Have: have.Links[id]}})
		}
	}
	for _, id := range slices.SortedFunc(maps.Keys(have.Tables), compareTables) {
		if _, ok := want.Tables[id]; !ok && (id.NS == "" || concerns(want, id.NS)) {
			ops = append(ops, Op{Delete, TableChange{id}})
		}
	}
	return append(ops, claims(Delete, have.Claims, want.Claims)...)
}

func claims(verb Verb, of, without map[Claim]bool) []Op {
	var ops []Op
	for _, c := range slices.SortedFunc(maps.Keys(of), compareClaims) {
		if !without[c] {
			ops = append(ops, Op{verb, c})
		}
	}
	return ops
}

func sysctls(have, want State, which func(SysctlKey) bool) []Op {
	var ops []Op
	byName := func(a, b SysctlKey) int {
		return cmp.Or(cmp.Compare(a.NS, b.NS), cmp.Compare(a.Path, b.Path))
	}
	for _, k := range slices.SortedFunc(maps.Keys(want.Sysctls), byName) {
		if v := want.Sysctls[k]; which(k) && have.Sysctls[k] != v {
			ops = append(ops, Op{Change, Sysctl{k, v}})
		}
	}
	return ops
}

// beforeLinks reports whether a setting is made before the links, which take
// some over when they are made.
func beforeLinks(k SysctlKey) bool {
	return k.Path == sysctlForward || k.NS != "" && strings.HasPrefix(k.Path, sysctl6("default", ""))
}

// sortedLinks orders bridges before their ports, and the host before tasks.
func sortedLinks(links map[LinkID]Link) []LinkID {
	return slices.SortedFunc(maps.Keys(links), func(a, b LinkID) int {
		return cmp.Or(cmp.Compare(a.NS, b.NS), cmp.Compare(links[a].Kind, links[b].Kind), cmp.Compare(a.Name, b.Name))
	})
}

// diffLinks returns the operations on links that are wanted, and the set of
// links that come new with them: what hung on an old one of that name is gone.
func diffLinks(have, want State) (ops []Op, fresh map[LinkID]bool) {
	fresh = map[LinkID]bool{}
	for _, id := range sortedLinks(want.Links) {
		w := want.Links[id]
		h, ok := have.Links[id]
		switch {
		case fresh[id]: // came as the peer of a link of the host
		case !ok && id.NS != "" && w.Kind == kindVeth:
			// Only a pair as a whole can be made; its other end is handled there.
		case !ok:
			ops = append(ops, Op{Add, &LinkChange{ID: id, Want: w}})
			fresh[id], fresh[w.Peer] = true, true
		case h.Kind != w.Kind || w.Kind == kindVXLAN && otherTunnel(h, w) || otherVLAN(h, w) || w.Peer != (LinkID{}) && peerGone(have, want, w):
			ops = append(ops, Op{Replace, &LinkChange{ID: id, Want: w}})
			fresh[id], fresh[w.Peer] = true, true
		case len(changedFields(h, w)) > 0:
			ops = append(ops, Op{Change, &LinkChange{ID: id, Have: h, Want: w}})
		}
	}
	return ops, fresh
}

// otherTunnel reports whether a VXLAN device has settings that are made with it.
func otherTunnel(h, w Link) bool {
	return h.VNI != w.VNI || h.Local != w.Local || h.DstPort != w.DstPort || h.Learning != w.Learning
}

// peerGone reports whether the inner end of a pair is wanted, has been looked
// for and is not there. Inner ends are looked for together with the rest of
// their namespace, of which lo is always there.
func peerGone(have, want State, w Link) bool {
	if _, wanted := want.Links[w.Peer]; !wanted {
		return false
	}
	if _, looked := have.Links[LinkID{w.Peer.NS, "lo"}]; !looked {
		return false
	}
	_, ok := have.Links[w.Peer]
	return !ok
}

func missing[K interface {
	comparable
	String() string
}](want, have map[K]bool, link func(K) LinkID, fresh map[LinkID]bool) []Op {
	var keys []K
	for k := range want {
		if !have[k] || fresh[link(k)] {
			keys = append(keys, k)
		}
	}
	return inOrder(Add, keys)
}

func surplus[K interface {
	comparable
	String() string
}](have, want map[K]bool, which func(K) bool) []Op {
	var keys []K
	for k := range have {
		if !want[k] && which(k) {
			keys = append(keys, k)
		}
	}
	return inOrder(Delete, keys)
}

// inOrder returns one operation for each object, sorted by their texts. A
// network has thousands of entries, so each text is made once, and only for
// what is to be done.
func inOrder[K Object](verb Verb, objects []K) []Op {
	texts := make(map[string]Op, len(objects))
	for _, o := range objects {
		texts[o.String()] = Op{verb, o}
	}
	var ops []Op
	for _, t := range slices.Sorted(maps.Keys(texts)) {
		ops = append(ops, texts[t])
	}
	return ops
}

// onlyOnes returns the wanted entries of which the kernel has one for each
// address, without what they lead to: one that leads elsewhere is replaced when
// ours is made, and to delete it then would delete ours.
func onlyOnes(want State) (tunnels map[FDB]bool, neighs map[Neigh]bool) {
	tunnels, neighs = make(map[FDB]bool, len(want.FDB)), make(map[Neigh]bool, len(want.Neighs))
	for f := range want.FDB {
		if f.Dst != "" {
			tunnels[FDB{Link: f.Link, MAC: f.MAC}] = true
		}
	}
	for n := range want.Neighs {
		neighs[Neigh{Link: n.Link, IP: n.IP}] = true
	}
	return tunnels, neighs
}

// concerns reports whether the inside of a task's namespace is wanted; then lo
// is.
func concerns(want State, task spec.TaskID) bool {
	_, ok := want.Links[LinkID{task, "lo"}]
	return ok
}

func diffTables(have, want State, which func(TableID) bool) (ops []Op) {
	for _, id := range slices.SortedFunc(maps.Keys(want.Tables), compareTables) {
		if !which(id) {
			continue
		}
		w := want.Tables[id]
		h, ok := have.Tables[id]
		if !ok {
			ops = append(ops, Op{Add, TableChange{id}})
		}
		ops = append(ops, diffSets(id, h, w)...)
		ops = append(ops, diffChains(id, h, w)...)
	}
	return ops
}

// diffSets makes sets before the rules that refer to them. Elements are
// deleted before others are added, since a map takes a key only once.
func diffSets(table TableID, have, want Table) []Op {
	var made, dropped, added []Op
	for _, name := range slices.Sorted(maps.Keys(want.Sets)) {
		w := want.Sets[name]
		h, ok := have.Sets[name]
		if !ok {
			made = append(made, Op{Add, SetChange{table, name}})
		}
		if maps.Equal(h, w) {
			continue
		}
		for _, k := range slices.Sorted(maps.Keys(h)) {
			if v, keep := w[k]; !keep || v != h[k] {
				dropped = append(dropped, Op{Delete, Element{table, name, k, h[k]}})
			}
		}
		for _, k := range slices.Sorted(maps.Keys(w)) {
			if v, there := h[k]; !there || v != w[k] {
				added = append(added, Op{Add, Element{table, name, k, w[k]}})
			}
		}
	}
	return slices.Concat(made, dropped, added)
}

// diffChains makes new chains empty first, because rules may jump to any of
// them, and fills them afterwards; chains and sets that are not wanted go when
// no rule refers to them any more.
func diffChains(table TableID, have, want Table) []Op {
	var made, filled, dropped []Op
	for _, name := range slices.Sorted(maps.Keys(want.Chains)) {
		w := want.Chains[name]
		h, ok := have.Chains[name]
		switch {
		case !ok:
			made = append(made, Op{Add, &ChainChange{table, name, Chain{Hook: w.Hook}}})
		case h.Hook != w.Hook:
			made = append(made, Op{Replace, &ChainChange{table, name, Chain{Hook: w.Hook}}})
			h.Rules = nil
		}
		if !slices.EqualFunc(h.Rules, w.Rules, func(a, b Rule) bool { return a.Text == b.Text }) {
			filled = append(filled, Op{Change, &ChainChange{table, name, w}})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(have.Chains)) {
		if _, ok := want.Chains[name]; !ok {
			dropped = append(dropped, Op{Delete, &ChainChange{table, name, Chain{}}})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(have.Sets)) {
		if _, ok := want.Sets[name]; !ok {
			dropped = append(dropped, Op{Delete, SetChange{table, name}})
		}
	}
	return slices.Concat(made, filled, dropped)
}

// tableOf returns the table that an operation on nftables is about.
func tableOf(o Op) TableID {
	switch x := o.Object.(type) {
	case TableChange:
		return x.Table
	case SetChange:
		return x.Table
	case Element:
		return x.Table
	case *ChainChange:
		return x.Table
	}
	return TableID{}
}
