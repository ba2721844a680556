package overlay

import (
	"encoding/binary"
	"fmt"
	"net"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
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
	dport := func(reg uint32) expr.Any {
		return &expr.Payload{OperationType: expr.PayloadLoad, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2, DestRegister: reg}
	}
	lookup := func() expr.Any { return &expr.Lookup{SourceRegister: reg32(0), SetName: t.set, Invert: t.not} }
	verdict := func(k expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: k, Chain: t.set}} }
	w := t.words()
	switch t.kind {
	case termIif:
		return []expr.Any{meta(expr.MetaKeyIIFNAME, reg32(0)), lookup()}
	case termOif:
		return []expr.Any{meta(expr.MetaKeyOIFNAME, reg32(0)), lookup()}
	case termPair:
		return []expr.Any{meta(expr.MetaKeyIIFNAME, reg32(0)), meta(expr.MetaKeyOIFNAME, reg32(4)), lookup()}
	case termSaddr:
		return append([]expr.Any{t.source(0)}, t.inPrefix()...)
	case termDaddr:
		return append([]expr.Any{t.destination(0)}, t.inPrefix()...)
	case termLocal:
		return []expr.Any{
			&expr.Fib{Register: reg32(0), ResultADDRTYPE: true, FlagDADDR: true},
			&expr.Cmp{Op: expr.CmpOpEq, Register: reg32(0), Data: binary.NativeEndian.AppendUint32(nil, unix.RTN_LOCAL)},
		}
	case termTCP:
		return []expr.Any{meta(expr.MetaKeyL4PROTO, reg32(0)), &expr.Cmp{Op: expr.CmpOpEq, Register: reg32(0), Data: []byte{unix.IPPROTO_TCP}}}
	case termNoICMP6:
		return []expr.Any{meta(expr.MetaKeyL4PROTO, reg32(0)), &expr.Cmp{Op: expr.CmpOpNeq, Register: reg32(0), Data: []byte{unix.IPPROTO_ICMPV6}}}
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
		return []expr.Any{t.destination(0), meta(expr.MetaKeyL4PROTO, reg32(w)), dport(reg32(w + 1)), lookup()}
	case termDNATPort:
		return append([]expr.Any{meta(expr.MetaKeyL4PROTO, reg32(0)), dport(reg32(1))}, t.dnat(2, true)...)
	case termDNATAddrPort:
		return append([]expr.Any{t.destination(0), meta(expr.MetaKeyL4PROTO, reg32(w)), dport(reg32(w + 1))}, t.dnat(w+2, true)...)
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
		const portUnreachable, portUnreachable6 = 3, 4
		return t.reject(portUnreachable, portUnreachable6)
	case termSaddrIn:
		return []expr.Any{t.source(0), lookup()}
	case termDaddrIn:
		return []expr.Any{t.destination(0), lookup()}
	case termSelf:
		return []expr.Any{t.source(0), t.destination(w), lookup()}
	}
	if out := t.taskExprs(); out != nil {
		return out
	}
	panic(fmt.Sprintf("overlay: term %q has no expression", t))
}

// words is the number of 32-bit registers that an address takes.
func (t term) words() uint32 {
	if t.six {
		return 4
	}
	return 1
}

// source and destination load the address of a packet into registers from reg
// on.
func (t term) source(reg uint32) expr.Any {
	if t.six {
		return address(8, 16, reg)
	}
	return address(12, 4, reg)
}

func (t term) destination(reg uint32) expr.Any {
	if t.six {
		return address(24, 16, reg)
	}
	return address(16, 4, reg)
}

func address(offset, size, reg uint32) expr.Any {
	return &expr.Payload{OperationType: expr.PayloadLoad, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size, DestRegister: reg32(reg)}
}

// reject answers that something cannot be reached, with the code of either
// protocol.
func (t term) reject(code, code6 uint8) []expr.Any {
	if t.six {
		code = code6
	}
	return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: code}}
}

// inPrefix compares the first registers with the prefix of the term.
func (t term) inPrefix() []expr.Any {
	p := t.prefix.Masked()
	size := p.Addr().BitLen() / 8
	op := expr.CmpOpEq
	if t.not {
		op = expr.CmpOpNeq
	}
	return []expr.Any{
		&expr.Bitwise{SourceRegister: reg32(0), DestRegister: reg32(0), Len: uint32(size), Mask: net.CIDRMask(p.Bits(), size*8), Xor: make([]byte, size)},
		&expr.Cmp{Op: op, Register: reg32(0), Data: p.Addr().AsSlice()},
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
// goes to the address that it finds, with port also to the port. A key that is
// not in the map ends the rule.
func (t term) dnat(slot uint32, port bool) []expr.Any {
	to := &expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg32(0)}
	if t.six {
		to.Family = unix.NFPROTO_IPV6
	}
	if port {
		to.RegProtoMin = reg32(t.words())
	}
	return []expr.Any{
		&expr.Numgen{Register: reg32(slot), Modulus: t.slots, Type: unix.NFT_NG_RANDOM},
		&expr.Lookup{SourceRegister: reg32(0), DestRegister: reg32(0), IsDestRegSet: true, SetName: t.set},
		to,
	}
}
