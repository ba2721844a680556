package overlay

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/userdata"
	mdl "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

// nftTables reads and writes our tables of one namespace. The host's one table
// is owned by our socket and persists without it where the kernel can do that
// (6.9): then nobody else's flush touches it, and the next daemon takes it
// over. Those of a task have no owner, see nftInside.
type nftTables struct {
	// name of the host's table, and its family, which is ip if empty.
	name, family string
	// shared keeps the table without an owner, as an older kernel has it.
	shared bool
	// enter opens the namespace of a task; nil is the host's.
	enter func() (int, error)
	// gone: the namespace of the task is being removed.
	gone bool

	mu   sync.Mutex
	conn *nftables.Conn
	raw  *mdl.Conn
	own  bool // the table has been made or claimed by this socket
	// last is what was read last of the host; nil for nothing.
	last *nftReading
	// seen are a task's tables as they were in generation gen; nil is not known.
	seen map[TableID]Table
	gen  uint32
}

// nftReading is what there was in one generation of the kernel's nftables.
type nftReading struct {
	generation uint32
	table      *Table // nil if there was none
}

// ruleComment is the kind of a rule's user data that holds its comment
// (NFTNL_UDATA_RULE_COMMENT).
const ruleComment userdata.Type = 0

// socketBuffer in bytes holds a transaction of some 50,000 elements.
const socketBuffer = 4 << 20

const (
	tableOwner   = 0x2 // NFT_TABLE_F_OWNER
	tablePersist = 0x4 // NFT_TABLE_F_PERSIST
)

func (n *nftTables) hostID() TableID { return TableID{Family: cmp.Or(n.family, "ip"), Name: n.name} }

func nftTable(id TableID) *nftables.Table {
	families := map[string]nftables.TableFamily{
		"ip": nftables.TableFamilyIPv4, familyIPv6: nftables.TableFamilyIPv6, familyInet: nftables.TableFamilyINet, familyNetdev: nftables.TableFamilyNetdev,
	}
	return &nftables.Table{Name: id.Name, Family: families[id.Family]}
}

func (n *nftTables) openLocked() error {
	if n.conn != nil {
		return nil
	}
	if n.gone {
		return spec.NotFoundf("the network namespace of the task is being removed")
	}
	opts := []nftables.ConnOption{nftables.AsLasting()}
	if n.enter != nil {
		fd, err := n.enter()
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		opts = append(opts, nftables.WithNetNSFd(fd))
	}
	conn, err := nftables.New(append(opts, nftables.WithSockOptions(func(c *mdl.Conn) error {
		n.raw = c
		// A transaction is one write, and its acknowledgements are read after it.
		return errors.Join(c.SetWriteBuffer(socketBuffer), c.SetReadBuffer(socketBuffer))
	}))...)
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	n.conn, n.own = conn, false
	return nil
}

// close gives up the ownership; the table stays. Inside a task's namespace it
// is for good.
func (n *nftTables) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.gone = n.enter != nil
	n.closeLocked()
}

func (n *nftTables) closeLocked() {
	if n.conn != nil {
		_ = n.conn.CloseLasting()
		n.conn, n.raw, n.own, n.seen = nil, nil, false, nil
	}
}

// claimLocked makes the table, or takes over one that an earlier process left.
func (n *nftTables) claimLocked() error {
	if n.own {
		return nil
	}
	flags := uint32(tableOwner | tablePersist)
	if n.shared {
		flags = 0
	}
	err := n.newTableLocked(flags)
	if flags != 0 && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)) {
		// The kernel knows no such flags, or the table was made without.
		n.shared = true
		err = n.newTableLocked(0)
	}
	if err != nil {
		return fmt.Errorf("claim nftables table %s: %w", n.name, err)
	}
	n.own = true
	return nil
}

// nfHeader begins every message of netfilter.
func nfHeader(family byte, resource uint16) []byte {
	return append([]byte{family, unix.NFNETLINK_V0}, binary.BigEndian.AppendUint16(nil, resource)...)
}

// newTableLocked sends NEWTABLE with flags, which the library always sends as
// zero.
func (n *nftTables) newTableLocked(flags uint32) error {
	attrs, err := mdl.MarshalAttributes([]mdl.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: []byte(n.name + "\x00")},
		{Type: unix.NFTA_TABLE_FLAGS, Data: binary.BigEndian.AppendUint32(nil, flags)},
	})
	if err != nil {
		return err
	}
	msgs := []mdl.Message{
		{Header: mdl.Header{Type: unix.NFNL_MSG_BATCH_BEGIN, Flags: mdl.Request}, Data: nfHeader(0, unix.NFNL_SUBSYS_NFTABLES)},
		{
			Header: mdl.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWTABLE, Flags: mdl.Request | mdl.Acknowledge | mdl.Create},
			Data:   append(nfHeader(byte(nftTable(n.hostID()).Family), 0), attrs...),
		},
		{Header: mdl.Header{Type: unix.NFNL_MSG_BATCH_END, Flags: mdl.Request}, Data: nfHeader(0, unix.NFNL_SUBSYS_NFTABLES)},
	}
	if _, err := n.raw.SendMessages(msgs); err != nil {
		return err
	}
	_, err = n.raw.Receive()
	return err
}

// observe reads the table.
func (n *nftTables) observe(o *observation) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.observeLocked(); err != nil {
		// Answers may be left in the socket; the next pass takes a new one.
		n.closeLocked()
		return fmt.Errorf("read nftables: %w", err)
	}
	if n.last.table != nil {
		o.state.Tables[n.hostID()] = *n.last.table
	}
	return nil
}

// observeLocked brings last up to date. Reading all takes a hundred messages
// even of a small host, so it is left out while nobody has changed anything.
func (n *nftTables) observeLocked() error {
	if err := n.openLocked(); err != nil {
		return err
	}
	generation, err := n.generationLocked()
	if err != nil {
		return err
	}
	if n.last != nil && n.last.generation == generation && n.own == (n.last.table != nil) {
		return nil
	}
	n.last = nil
	// What changes from here on is of another generation, and read next time.
	now := &nftReading{generation: generation}
	family := nftTable(n.hostID()).Family
	tables, err := n.conn.ListTablesOfFamily(family)
	if err != nil {
		return err
	}
	found := false
	for _, t := range tables {
		found = found || t.Name == n.name
	}
	if !found {
		n.own, n.last = false, now
		return nil
	}
	chains, err := n.conn.ListChains()
	if err != nil {
		return err
	}
	if err := n.claimLocked(); err != nil {
		return err
	}
	t := Table{Sets: map[string]Set{}, Chains: map[string]Chain{}}
	if err := n.readSetsLocked(n.hostID(), t); err != nil {
		return err
	}
	for _, c := range chains {
		if c.Table == nil || c.Table.Name != n.name || c.Table.Family != family {
			continue
		}
		rules, err := n.conn.GetRules(nftTable(n.hostID()), c)
		if err != nil {
			return err
		}
		chain := Chain{Hook: hookOf(c)}
		for _, r := range rules {
			text, _ := userdata.GetString(r.UserData, ruleComment)
			chain.Rules = append(chain.Rules, Rule{Text: strings.TrimRight(text, "\x00")})
		}
		t.Chains[c.Name] = chain
	}
	now.table, n.last = &t, now
	return nil
}

func (n *nftTables) readSetsLocked(id TableID, t Table) error {
	sets, err := n.conn.GetSets(nftTable(id))
	if err != nil {
		return err
	}
	types := typesOf(id)
	for _, s := range sets {
		out := Set{}
		t.Sets[s.Name] = out
		typ, ok := types[s.Name]
		if !ok {
			continue // of another version of us: its elements go with it
		}
		elems, err := n.conn.GetSetElements(s)
		if err != nil {
			return err
		}
		for _, e := range elems {
			out[decode(typ.key, e.Key)] = decode(typ.value, e.Val)
		}
	}
	return nil
}

func hookOf(c *nftables.Chain) Hook {
	if c.Hooknum == nil || c.Priority == nil {
		return Hook{}
	}
	names := map[nftables.ChainHook]string{0: "prerouting", 1: "input", 2: "forward", 3: "output", 4: "postrouting"}
	return Hook{Type: string(c.Type), Name: names[*c.Hooknum], Priority: int(*c.Priority)}
}

// transact does operations on the nftables of the namespace as one transaction.
func (n *nftTables) transact(ops []Op) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.openLocked(); err != nil {
		return err
	}
	if err := n.transactLocked(ops); err != nil {
		n.closeLocked() // answers may be left in it
		return fmt.Errorf("change nftables, %d operations from %q: %w", len(ops), ops[0], err)
	}
	return nil
}

func (n *nftTables) transactLocked(ops []Op) error {
	n.seen = nil
	for _, o := range ops {
		if n.enter != nil {
			break
		}
		if _, ok := o.Object.(TableChange); !ok || o.Verb != Delete {
			if err := n.claimLocked(); err != nil {
				return err
			}
			break
		}
	}
	b := &nftBatch{}
	for i := 0; i < len(ops); i++ {
		e, ok := ops[i].Object.(Element)
		if !ok {
			if err := n.queueLocked(b, ops[i]); err != nil {
				return err
			}
			continue
		}
		var list []Element // of one set
		for ; i < len(ops); i++ {
			x, ok := ops[i].Object.(Element)
			if !ok || x.Table != e.Table || x.Set != e.Set || ops[i].Verb != ops[i-len(list)].Verb {
				break
			}
			list = append(list, x)
		}
		i--
		if err := b.elements(ops[i].Verb, typesOf(e.Table)[e.Set], list); err != nil {
			return err
		}
	}
	return b.send(n.raw)
}

func (n *nftTables) queueLocked(b *nftBatch, o Op) error {
	switch x := o.Object.(type) {
	case TableChange:
		if o.Verb == Delete || n.enter != nil { // the host's has been claimed
			b.table(o.Verb, x.Table)
		}
		if o.Verb == Delete {
			n.own = false
		}
	case SetChange:
		if o.Verb == Delete {
			b.delSet(x.Table, x.Set)
		} else {
			b.addSet(x.Table, x.Set, typesOf(x.Table)[x.Set])
		}
	case *ChainChange:
		switch o.Verb {
		case Delete:
			b.delChain(x.Table, x.Name)
		case Add:
			b.addChain(x.Table, x.Name, x.Chain.Hook)
		case Replace:
			b.delChain(x.Table, x.Name)
			b.addChain(x.Table, x.Name, x.Chain.Hook)
		case Change:
			return b.fillChain(x.Table, x.Name, x.Chain.Rules)
		}
	}
	return nil
}

func nftSet(id TableID, name string, typ setType) *nftables.Set {
	s := &nftables.Set{Table: nftTable(id), Name: name, KeyType: nftType(typ.key), Concatenation: len(typ.key) > 1, IsMap: len(typ.value) > 0}
	if typ.key[0] == fieldIfname {
		s.KeyByteOrder = binaryutil.NativeEndian // how nft(8) prints names
	}
	if s.IsMap {
		s.DataType = nftType(typ.value)
	}
	return s
}

func nftType(fields []fieldType) nftables.SetDatatype {
	types := make([]nftables.SetDatatype, len(fields))
	for i, f := range fields {
		types[i] = map[fieldType]nftables.SetDatatype{
			fieldIfname: nftables.TypeIFName, fieldIPv4: nftables.TypeIPAddr, fieldIPv6: nftables.TypeIP6Addr, fieldProto: nftables.TypeInetProto,
			fieldPort: nftables.TypeInetService, fieldSlot: nftables.TypeMark,
		}[f]
	}
	if len(types) == 1 {
		return types[0]
	}
	return nftables.MustConcatSetType(types...)
}
