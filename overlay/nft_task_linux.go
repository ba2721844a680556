package overlay

import (
	"encoding/binary"
	"fmt"
	"maps"
	"strings"

	"github.com/google/nftables/userdata"
	mdl "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

// nftInside is for the tables of a task's namespace. Its socket is kept, like
// the others inside namespaces, until the namespace goes.
func nftInside(enter func() (int, error)) *nftTables { return &nftTables{enter: enter} }

// inside returns the tables of a task's namespace as they are. The kernel
// counts the transactions of a namespace, so a count that has not changed since
// they were last read says that nothing else has.
func (n *nftTables) inside(task spec.TaskID) (map[TableID]Table, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.openLocked(); err != nil {
		return nil, err
	}
	tables, err := n.insideLocked(task)
	if err != nil {
		n.closeLocked()
		return nil, fmt.Errorf("read nftables of task %s: %w", task, err)
	}
	return tables, nil
}

func (n *nftTables) insideLocked(task spec.TaskID) (map[TableID]Table, error) {
	gen, err := n.generationLocked()
	if err != nil {
		return nil, err
	}
	if n.seen != nil && n.gen == gen {
		return n.seen, nil
	}
	ids, err := n.tablesLocked(task)
	if err != nil {
		return nil, err
	}
	tables := map[TableID]Table{}
	for _, id := range ids {
		t := Table{Sets: map[string]Set{}, Chains: map[string]Chain{}}
		if err := n.readSetsLocked(id, t); err != nil {
			return nil, err
		}
		if err := n.readChainsLocked(id, t); err != nil {
			return nil, err
		}
		tables[id] = t
	}
	// What changed while it was read is read again next time.
	n.seen, n.gen = tables, gen
	return tables, nil
}

// generationLocked returns the number of the namespace's last transaction.
func (n *nftTables) generationLocked() (uint32, error) {
	msgs, err := n.dumpLocked(unix.NFT_MSG_GETGEN, unix.NFPROTO_UNSPEC, 0)
	if err != nil {
		return 0, fmt.Errorf("get generation: %w", err)
	}
	for _, m := range msgs {
		if b := m[unix.NFTA_GEN_ID]; len(b) == 4 {
			return binary.BigEndian.Uint32(b), nil
		}
	}
	return 0, fmt.Errorf("get generation: the kernel does not say it")
}

// tablesLocked returns which of our tables there are.
func (n *nftTables) tablesLocked(task spec.TaskID) ([]TableID, error) {
	var ids []TableID
	for _, family := range []string{familyInet, familyNetdev} {
		id := TableID{task, family, taskTableName}
		msgs, err := n.dumpLocked(unix.NFT_MSG_GETTABLE, byte(nftTable(id).Family), mdl.Dump)
		if err != nil {
			return nil, fmt.Errorf("list tables: %w", err)
		}
		for _, m := range msgs {
			if text(m[unix.NFTA_TABLE_NAME]) == id.Name {
				ids = append(ids, id)
			}
		}
	}
	return ids, nil
}

// readChainsLocked reads chains and the text of rules. The library does not
// tell a chain's device, and takes every rule's expressions apart.
func (n *nftTables) readChainsLocked(id TableID, t Table) error {
	family := byte(nftTable(id).Family)
	chains, err := n.dumpLocked(unix.NFT_MSG_GETCHAIN, family, mdl.Dump)
	if err != nil {
		return fmt.Errorf("list chains: %w", err)
	}
	for _, m := range chains {
		if text(m[unix.NFTA_CHAIN_TABLE]) != id.Name {
			continue
		}
		h, err := hookFrom(family, text(m[unix.NFTA_CHAIN_TYPE]), m[unix.NFTA_CHAIN_HOOK])
		if err != nil {
			return fmt.Errorf("list chains: %w", err)
		}
		t.Chains[text(m[unix.NFTA_CHAIN_NAME])] = Chain{Hook: h}
	}
	rules, err := n.dumpLocked(unix.NFT_MSG_GETRULE, family, mdl.Dump, mdl.Attribute{Type: unix.NFTA_RULE_TABLE, Data: []byte(id.Name + "\x00")})
	if err != nil {
		return fmt.Errorf("list rules: %w", err)
	}
	for _, m := range rules {
		name := text(m[unix.NFTA_RULE_CHAIN])
		c, ok := t.Chains[name]
		if !ok || text(m[unix.NFTA_RULE_TABLE]) != id.Name {
			continue
		}
		comment, _ := userdata.GetString(m[unix.NFTA_RULE_USERDATA], ruleComment)
		c.Rules = append(c.Rules, Rule{Text: strings.TrimRight(comment, "\x00")})
		t.Chains[name] = c
	}
	return nil
}

func hookFrom(family byte, typ string, data []byte) (Hook, error) {
	if data == nil {
		return Hook{}, nil
	}
	attrs, err := attributes(data)
	if err != nil {
		return Hook{}, err
	}
	num, priority := attrs[unix.NFTA_HOOK_HOOKNUM], attrs[unix.NFTA_HOOK_PRIORITY]
	if len(num) != 4 || len(priority) != 4 {
		return Hook{}, fmt.Errorf("a hook has no place")
	}
	names := map[uint32]string{0: "prerouting", 1: "input", 2: "forward", 3: "output", 4: "postrouting"}
	if family == unix.NFPROTO_NETDEV {
		names = map[uint32]string{unix.NF_NETDEV_INGRESS: "ingress", unix.NF_NETDEV_EGRESS: "egress"}
	}
	return Hook{
		Type: typ, Name: names[binary.BigEndian.Uint32(num)],
		Priority: int(int32(binary.BigEndian.Uint32(priority))), Device: text(attrs[unix.NFTA_HOOK_DEV]),
	}, nil
}

// dumpLocked asks nftables and returns the attributes of the answers.
func (n *nftTables) dumpLocked(msg uint16, family byte, flags mdl.HeaderFlags, attrs ...mdl.Attribute) ([]map[uint16][]byte, error) {
	data, err := mdl.MarshalAttributes(attrs)
	if err != nil {
		return nil, err
	}
	answers, err := n.raw.Execute(mdl.Message{
		Header: mdl.Header{Type: mdl.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | msg), Flags: mdl.Request | flags},
		Data:   append(nfHeader(family, 0), data...),
	})
	if err != nil {
		return nil, err
	}
	var out []map[uint16][]byte
	for _, a := range answers {
		if len(a.Data) < 4 {
			continue
		}
		m, err := attributes(a.Data[4:])
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

func attributes(data []byte) (map[uint16][]byte, error) {
	list, err := mdl.UnmarshalAttributes(data)
	if err != nil {
		return nil, err
	}
	out := map[uint16][]byte{}
	for _, a := range list {
		out[a.Type&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER)] = a.Data
	}
	return out, nil
}

func text(b []byte) string { return strings.TrimRight(string(b), "\x00") }

// nft returns the nftables of the task's namespace; their socket is kept until
// drop.
func (n *namespaces) nft(t spec.TaskID) *nftTables {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.tables[t] == nil {
		n.tables[t] = nftInside(func() (int, error) { return n.open(t) })
	}
	return n.tables[t]
}

// nftOf returns what a table is read and written by.
func (k *linuxKernel) nftOf(id TableID) *nftTables {
	if id.NS == "" && id.Family == familyIPv6 {
		return k.nft6
	}
	return k.nftIn(id.NS)
}

// nftIn returns the nftables of a task's namespace, or of the host's.
func (k *linuxKernel) nftIn(ns spec.TaskID) *nftTables {
	if ns == "" {
		return k.nft
	}
	return k.spaces.nft(ns)
}

// observeTables adds the tables of a task's namespace.
func (k *linuxKernel) observeTables(t spec.TaskID, o *observation) error {
	tables, err := k.spaces.nft(t).inside(t)
	maps.Copy(o.state.Tables, tables)
	return err
}
