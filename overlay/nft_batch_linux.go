package overlay

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/userdata"
	mdl "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// setFieldLen is NFTA_SET_FIELD_LEN.
const setFieldLen = 1

// nftBatch collects the messages of one transaction. The library's own asks
// for an answer to each, and for a copy of each rule: for the tables of a new
// task, that is more work than the transaction itself. Here the last message
// alone is answered; a refusal is always told.
type nftBatch struct {
	msgs []mdl.Message
	sets uint32
	// fresh are chains made in this transaction, which hold no rules yet.
	fresh map[chainID]bool
	err   error
}

type chainID struct {
	table TableID
	name  string
}

func (b *nftBatch) add(msg uint16, flags mdl.HeaderFlags, id TableID, attrs ...mdl.Attribute) {
	b.msgs = append(b.msgs, mdl.Message{
		Header: mdl.Header{Type: mdl.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | msg), Flags: mdl.Request | flags},
		Data:   append(nfHeader(byte(nftTable(id).Family), 0), b.marshal(attrs)...),
	})
}

func (b *nftBatch) marshal(attrs []mdl.Attribute) []byte {
	data, err := mdl.MarshalAttributes(attrs)
	if err != nil && b.err == nil {
		b.err = err
	}
	return data
}

func (b *nftBatch) nested(typ uint16, attrs ...mdl.Attribute) mdl.Attribute {
	return mdl.Attribute{Type: typ | unix.NLA_F_NESTED, Data: b.marshal(attrs)}
}

func textAttr(typ uint16, s string) mdl.Attribute {
	return mdl.Attribute{Type: typ, Data: append([]byte(s), 0)}
}

func numAttr(typ uint16, v uint32) mdl.Attribute {
	return mdl.Attribute{Type: typ, Data: binary.BigEndian.AppendUint32(nil, v)}
}

// send does the transaction.
func (b *nftBatch) send(c *mdl.Conn) error {
	if b.err != nil {
		return b.err
	}
	if len(b.msgs) == 0 {
		return nil
	}
	b.msgs[len(b.msgs)-1].Header.Flags |= mdl.Acknowledge
	edge := func(typ mdl.HeaderType) mdl.Message {
		return mdl.Message{Header: mdl.Header{Type: typ, Flags: mdl.Request}, Data: nfHeader(0, unix.NFNL_SUBSYS_NFTABLES)}
	}
	all := append([]mdl.Message{edge(unix.NFNL_MSG_BATCH_BEGIN)}, b.msgs...)
	if _, err := c.SendMessages(append(all, edge(unix.NFNL_MSG_BATCH_END))); err != nil {
		return err
	}
	_, err := c.Receive()
	return err
}

func (b *nftBatch) table(verb Verb, id TableID) {
	msg, flags := uint16(unix.NFT_MSG_NEWTABLE), mdl.Create
	if verb == Delete {
		msg, flags = unix.NFT_MSG_DELTABLE, 0
	}
	b.add(msg, flags, id, textAttr(unix.NFTA_TABLE_NAME, id.Name))
}

func (b *nftBatch) delSet(id TableID, name string) {
	b.add(unix.NFT_MSG_DELSET, 0, id, textAttr(unix.NFTA_SET_TABLE, id.Name), textAttr(unix.NFTA_SET_NAME, name))
}

func (b *nftBatch) addSet(id TableID, name string, typ setType) {
	b.sets++
	s := nftSet(id, name, typ)
	flags := uint32(0)
	if s.IsMap {
		flags |= unix.NFT_SET_MAP
	}
	if s.Concatenation {
		flags |= nftables.NFT_SET_CONCAT
	}
	attrs := []mdl.Attribute{
		textAttr(unix.NFTA_SET_TABLE, id.Name), textAttr(unix.NFTA_SET_NAME, name), numAttr(unix.NFTA_SET_FLAGS, flags),
		numAttr(unix.NFTA_SET_KEY_TYPE, s.KeyType.GetNFTMagic()), numAttr(unix.NFTA_SET_KEY_LEN, s.KeyType.Bytes), numAttr(unix.NFTA_SET_ID, b.sets),
	}
	if s.IsMap {
		attrs = append(attrs, numAttr(unix.NFTA_SET_DATA_TYPE, s.DataType.GetNFTMagic()), numAttr(unix.NFTA_SET_DATA_LEN, s.DataType.Bytes))
	}
	if s.Concatenation { // without the lengths of the parts, nft(8) crashes
		var parts []mdl.Attribute
		for _, p := range nftables.ConcatSetTypeElements(s.KeyType) {
			parts = append(parts, b.nested(unix.NFTA_LIST_ELEM, numAttr(setFieldLen, p.Bytes)))
		}
		attrs = append(attrs, b.nested(unix.NFTA_SET_DESC, b.nested(nftables.NFTA_SET_DESC_CONCAT, parts...)))
	}
	if s.KeyByteOrder == binaryutil.NativeEndian {
		attrs = append(attrs, mdl.Attribute{Type: unix.NFTA_SET_USERDATA, Data: userdata.AppendUint32(nil, userdata.NFTNL_UDATA_SET_KEYBYTEORDER, 1)})
	}
	b.add(unix.NFT_MSG_NEWSET, mdl.Create, id, attrs...)
}

// maxElements bounds the elements of one message, whose lengths have 16 bits.
const maxElements = 500

// elements adds or deletes elements of one set.
func (b *nftBatch) elements(verb Verb, typ setType, list []Element) error {
	for len(list) > maxElements {
		if err := b.elements(verb, typ, list[:maxElements]); err != nil {
			return err
		}
		list = list[maxElements:]
	}
	var elems []mdl.Attribute
	for _, e := range list {
		key, err := encode(typ.key, e.Key)
		if err != nil {
			return err
		}
		value := func(typ uint16, data []byte) mdl.Attribute {
			return b.nested(typ, mdl.Attribute{Type: unix.NFTA_DATA_VALUE, Data: data})
		}
		parts := []mdl.Attribute{value(unix.NFTA_SET_ELEM_KEY, key)}
		if len(typ.value) > 0 {
			v, err := encode(typ.value, e.Value)
			if err != nil {
				return err
			}
			parts = append(parts, value(unix.NFTA_SET_ELEM_DATA, v))
		}
		elems = append(elems, b.nested(unix.NFTA_LIST_ELEM, parts...))
	}
	msg, flags := uint16(unix.NFT_MSG_NEWSETELEM), mdl.Create
	if verb == Delete {
		msg, flags = unix.NFT_MSG_DELSETELEM, 0
	}
	id := list[0].Table
	b.add(msg, flags, id, textAttr(unix.NFTA_SET_ELEM_LIST_TABLE, id.Name), textAttr(unix.NFTA_SET_ELEM_LIST_SET, list[0].Set), b.nested(unix.NFTA_SET_ELEM_LIST_ELEMENTS, elems...))
	return nil
}

func (b *nftBatch) addChain(id TableID, name string, h Hook) {
	if b.fresh == nil {
		b.fresh = map[chainID]bool{}
	}
	b.fresh[chainID{id, name}] = true
	attrs := []mdl.Attribute{textAttr(unix.NFTA_CHAIN_TABLE, id.Name), textAttr(unix.NFTA_CHAIN_NAME, name)}
	if h != (Hook{}) {
		place := []mdl.Attribute{numAttr(unix.NFTA_HOOK_HOOKNUM, hookNumber(h.Name)), numAttr(unix.NFTA_HOOK_PRIORITY, uint32(int32(h.Priority)))}
		if h.Device != "" {
			place = append(place, textAttr(unix.NFTA_HOOK_DEV, h.Device))
		}
		attrs = append(attrs, b.nested(unix.NFTA_CHAIN_HOOK, place...),
			numAttr(unix.NFTA_CHAIN_POLICY, uint32(nftables.ChainPolicyAccept)), textAttr(unix.NFTA_CHAIN_TYPE, h.Type))
	}
	b.add(unix.NFT_MSG_NEWCHAIN, mdl.Create, id, attrs...)
}

func hookNumber(name string) uint32 {
	return map[string]uint32{
		"prerouting": unix.NF_INET_PRE_ROUTING, "input": unix.NF_INET_LOCAL_IN, "forward": unix.NF_INET_FORWARD,
		"output": unix.NF_INET_LOCAL_OUT, "postrouting": unix.NF_INET_POST_ROUTING, "egress": unix.NF_NETDEV_EGRESS,
	}[name]
}

func (b *nftBatch) delChain(id TableID, name string) {
	b.flushChain(id, name)
	b.add(unix.NFT_MSG_DELCHAIN, 0, id, textAttr(unix.NFTA_CHAIN_TABLE, id.Name), textAttr(unix.NFTA_CHAIN_NAME, name))
}

func (b *nftBatch) flushChain(id TableID, name string) {
	b.add(unix.NFT_MSG_DELRULE, 0, id, textAttr(unix.NFTA_RULE_TABLE, id.Name), textAttr(unix.NFTA_RULE_CHAIN, name))
}

// fillChain replaces all rules of a chain.
func (b *nftBatch) fillChain(id TableID, name string, rules []Rule) error {
	if !b.fresh[chainID{id, name}] {
		b.flushChain(id, name)
	}
	family := byte(nftTable(id).Family)
	for _, r := range rules {
		var list []mdl.Attribute
		for _, e := range exprs(r.terms) {
			data, err := marshalExpr(family, e)
			if err != nil {
				return fmt.Errorf("rule %q: %w", r.Text, err)
			}
			list = append(list, mdl.Attribute{Type: unix.NFTA_LIST_ELEM | unix.NLA_F_NESTED, Data: data})
		}
		b.add(unix.NFT_MSG_NEWRULE, mdl.Create|mdl.Append, id,
			textAttr(unix.NFTA_RULE_TABLE, id.Name), textAttr(unix.NFTA_RULE_CHAIN, name), b.nested(unix.NFTA_RULE_EXPRESSIONS, list...),
			mdl.Attribute{Type: unix.NFTA_RULE_USERDATA, Data: userdata.AppendString(nil, ruleComment, r.Text)})
	}
	return nil
}
