package overlay

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

// reg32 is the n-th 32-bit register; a concatenation is registers in a row.
func reg32(n uint32) uint32 { return unix.NFT_REG32_00 + n }

// exprs translates the terms of a rule for the kernel. Every term starts at
// the first register, which holds nothing between terms.
func exprs(terms []term) []expr.Any {
	var out []expr.Any
	for _, t := range terms {
		out = append(out, t.exprs()...)
	}
	return out
}

func (t term) exprs() []expr.Any {
	meta := func(key expr.MetaKey, reg uint32) expr.Any { return &expr.Meta{Key: key, Register: reg} }
	ip := func(offset, reg uint32) expr.Any {
		return &expr.Payload{OperationType: expr.PayloadLoad, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4, DestRegister: reg}
	}
	dport := func(reg uint32) expr.Any {
		return &expr.Payload{OperationType: expr.PayloadLoad, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2, DestRegister: reg}
	}
	lookup := func() expr.Any { return &expr.Lookup{SourceRegister: reg32(0), SetName: t.set, Invert: t.not} }
	verdict := func(k expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: k, Chain: t.set}} }
	const source, destination = 12, 16
	switch t.kind {
	case termIif:
		return []expr.Any{meta(expr.MetaKeyIIFNAME, reg32(0)), lookup()}
	case termOif:
		return []expr.Any{meta(expr.MetaKeyOIFNAME, reg32(0)), lookup()}
	case termPair:
		return []expr.Any{meta(expr.MetaKeyIIFNAME, reg32(0)), meta(expr.MetaKeyOIFNAME, reg32(4)), lookup()}
	case termSaddr:
		return append([]expr.Any{ip(source, reg32(0))}, t.inPrefix()...)
	case termDaddr:
		return append([]expr.Any{ip(destination, reg32(0))}, t.inPrefix()...)
	case termLocal:
		return []expr.Any{
			&expr.Fib{Register: reg32(0), ResultADDRTYPE: true, FlagDADDR: true},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg32(0), Data: binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)},
		}
	case termTCP:
		return []expr.Any{meta(expr.MetaKeyL4PROTO, reg32(0)), &expr.Cmp{Op: expr.CmpOpEq, Register: reg32(0), Data: []byte{unix.IPPROTO_TCP}}}
	case termNew:
		return ctBits(expr.CtKeySTATE, expr.CtStateBitNEW)
	case termEstablished:
		return ctBits(expr.CtKeySTATE, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)
	case termDNATed:
		const ipsDstNAT = 1 << 5
		return ctBits(expr.CtKeySTATUS, ipsDstNAT)
	case termPort:
		return []expr.Any{meta(expr.MetaKeyL4PROTO, reg32(0)), dport(reg32(1)), lookup()}
	case termAddrPort:
		return []expr.Any{ip(destination, reg32(0)), meta(expr.MetaKeyL4PROTO, reg32(1)), dport(reg32(2)), lookup()}
	case termDNATPort:
		return append([]expr.Any{meta(expr.MetaKeyL4PROTO, reg32(0)), dport(reg32(1))}, t.dnat(2)...)
	case termDNATAddrPort:
		return append([]expr.Any{ip(destination, reg32(0)), meta(expr.MetaKeyL4PROTO, reg32(1)), dport(reg32(2))}, t.dnat(3)...)
	case termMasquerade:
		return []expr.Any{&expr.Masq{}}
	case termAccept:
		return verdict(expr.VerdictAccept)
	case termDrop:
		return verdict(expr.VerdictDrop)
	case termReturn:
		return verdict(expr.VerdictReturn)
	case termJump:
		return verdict(expr.VerdictJump)
	case termRejectTCP:
		return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}
	case termReject:
		const portUnreachable = 3
		return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: portUnreachable}}
	case termVXLAN:
		return []expr.Any{
			meta(expr.MetaKeyL4PROTO, reg32(0)), &expr.Cmp{Op: expr.CmpOpEq, Register: reg32(0), Data: []byte{unix.IPPROTO_UDP}},
			dport(reg32(0)), &expr.Cmp{Op: expr.CmpOpEq, Register: reg32(0), Data: binary.BigEndian.AppendUint16(nil, spec.VXLANPort)},
		}
	case termSaddrIn:
		return []expr.Any{ip(source, reg32(0)), lookup()}
	case termDaddrIn:
		return []expr.Any{ip(destination, reg32(0)), lookup()}
	case termSelf:
		return []expr.Any{ip(source, reg32(0)), ip(destination, reg32(1)), lookup()}
	}
	address6 := func(offset uint32) []expr.Any {
		return []expr.Any{&expr.Payload{OperationType: expr.PayloadLoad, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 16, DestRegister: reg32(0)}, lookup()}
	}
	const source6, destination6 = 8, 24
	switch t.kind {
	case termSaddr6:
		return address6(source6)
	case termDaddr6:
		return address6(destination6)
	}
	if out := t.taskExprs(); out != nil {
		return out
	}
	panic(fmt.Sprintf("overlay: term %q has no expression", t))
}

// inPrefix compares the first register with the prefix of the term.
func (t term) inPrefix() []expr.Any {
	mask := binary.BigEndian.AppendUint32(nil, ^uint32(0)<<(32-t.prefix.Bits()))
	op := expr.CmpOpEq
	if t.not {
		op = expr.CmpOpNeq
	}
	return []expr.Any{
		&expr.Bitwise{SourceRegister: reg32(0), DestRegister: reg32(0), Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: reg32(0), Data: t.prefix.Masked().Addr().AsSlice()},
	}
}

func ctBits(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: key, Register: reg32(0)},
		&expr.Bitwise{SourceRegister: reg32(0), DestRegister: reg32(0), Len: 4, Mask: binary.NativeEndian.AppendUint32(nil, bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg32(0), Data: make([]byte, 4)},
	}
}

// dnat looks up what the registers before slot and a random slot hold, and
// goes to the address and port that it finds. A key that is not in the map
// ends the rule.
func (t term) dnat(slot uint32) []expr.Any {
	return []expr.Any{
		&expr.Numgen{Register: reg32(slot), Modulus: t.slots, Type: unix.NFT_NG_RANDOM},
		&expr.Lookup{SourceRegister: reg32(0), DestRegister: reg32(0), IsDestRegSet: true, SetName: t.set},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg32(0), RegProtoMin: reg32(1)},
	}
}
