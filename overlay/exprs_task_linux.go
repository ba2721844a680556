package overlay

import (
	"encoding/binary"

	"github.com/google/nftables/expr"
	mdl "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// originalZone sets the zone of a connection for packets of its original
// direction alone, which the library cannot say.
type originalZone struct{ *expr.Ct }

// marshalExpr is expr.Marshal for all that rules are made of.
func marshalExpr(family byte, e expr.Any) ([]byte, error) {
	zone, ok := e.(originalZone)
	if !ok {
		return expr.Marshal(family, e)
	}
	data, err := mdl.MarshalAttributes([]mdl.Attribute{
		numAttr(unix.NFTA_CT_KEY, uint32(zone.Key)), numAttr(unix.NFTA_CT_SREG, zone.Register),
		{Type: unix.NFTA_CT_DIRECTION, Data: []byte{0}},
	})
	if err != nil {
		return nil, err
	}
	return mdl.MarshalAttributes([]mdl.Attribute{textAttr(unix.NFTA_EXPR_NAME, "ct"), {Type: unix.NLA_F_NESTED | unix.NFTA_EXPR_DATA, Data: data}})
}

// taskExprs translates a term of a task's rules; nil is any other. Marks and
// payload are copied through a register as they are, so their byte order is
// the same on the way in and out.
func (t term) taskExprs() []expr.Any {
	mac := func(offset, size uint32) *expr.Payload {
		return &expr.Payload{Base: expr.PayloadBaseLLHeader, Offset: offset, Len: size}
	}
	load := func(offset, size uint32) expr.Any {
		p := mac(offset, size)
		p.OperationType, p.DestRegister = expr.PayloadLoad, reg32(0)
		return p
	}
	store := func(offset, size uint32) expr.Any {
		p := mac(offset, size)
		p.OperationType, p.SourceRegister = expr.PayloadWrite, reg32(0)
		return p
	}
	cmp := func(op expr.CmpOp, data ...byte) expr.Any { return &expr.Cmp{Op: op, Register: reg32(0), Data: data} }
	prefix := binary.BigEndian.AppendUint16(nil, hostPrefix)
	// The destination and the source address begin an Ethernet header. Of
	// either, the last four bytes are the host's number.
	const destination, source, number = 0, 6, 2
	switch t.kind {
	case termFamily:
		family := byte(unix.NFPROTO_IPV4)
		if t.six {
			family = unix.NFPROTO_IPV6
		}
		return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg32(0)}, cmp(expr.CmpOpEq, family)}
	case termVIP:
		return append([]expr.Any{t.destination(0)}, t.dnat(t.words(), false)...)
	case termUnreachable:
		const hostUnreachable, addressUnreachable6 = 1, 3
		return t.reject(hostUnreachable, addressUnreachable6)
	case termFromHost:
		return []expr.Any{load(source, 2), cmp(expr.CmpOpEq, prefix...)}
	case termKeepHost:
		return []expr.Any{load(source+number, 4), &expr.Ct{Key: expr.CtKeyMARK, Register: reg32(0), SourceRegister: true}}
	case termZone:
		return []expr.Any{load(source+number+2, 2), originalZone{&expr.Ct{Key: expr.CtKeyZONE, Register: reg32(0), SourceRegister: true}}}
	case termReply:
		const reply = 1
		return []expr.Any{&expr.Ct{Key: expr.CtKeyDIRECTION, Register: reg32(0)}, cmp(expr.CmpOpEq, reply)}
	case termKept:
		return []expr.Any{&expr.Ct{Key: expr.CtKeyMARK, Register: reg32(0)}, cmp(expr.CmpOpNeq, 0, 0, 0, 0)}
	case termRestore:
		return []expr.Any{&expr.Ct{Key: expr.CtKeyMARK, Register: reg32(0)}, &expr.Meta{Key: expr.MetaKeyMARK, Register: reg32(0), SourceRegister: true}}
	case termMarked:
		return []expr.Any{&expr.Meta{Key: expr.MetaKeyMARK, Register: reg32(0)}, cmp(expr.CmpOpNeq, 0, 0, 0, 0)}
	case termToHost:
		return []expr.Any{
			&expr.Meta{Key: expr.MetaKeyMARK, Register: reg32(0)}, store(destination+number, 4),
			&expr.Immediate{Register: reg32(0), Data: prefix}, store(destination, 2),
		}
	}
	return nil
}
