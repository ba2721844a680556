package overlay

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	mdl "github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// fwReader reads one rule: what the kernel calls expressions, which load parts
// of a packet into registers, compare them, and end in a verdict.
type fwReader struct {
	family string
	table  string
	sets   fwSets
	links  map[uint32]string

	regs  map[uint32]operand
	conds []fwCond
	// about is the family of addresses that the rule is about, when the table's
	// does not say it.
	about string
	// rest are the rules that a map of verdicts stands for.
	rest []fwRule
}

// The verdicts of netfilter that end a packet's way.
const (
	nfDrop   = 0
	nfAccept = 1
)

// operand is what a register holds: a part of the packet, or of what the kernel
// knows of it, behind a mask.
type operand struct {
	key  string
	len  int // bytes; 0 is any
	mask []byte
}

func number32(b []byte) uint32 {
	if len(b) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

func native32(b []byte) uint32 {
	if len(b) != 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

// rule reads a rule; one with a map of verdicts becomes several.
func (r *fwReader) rule(data []byte) ([]fwRule, error) {
	list, err := mdl.UnmarshalAttributes(data)
	if err != nil {
		return nil, err
	}
	then := fwRule{Then: fwContinue}
	for _, item := range list {
		e, err := attributes(item.Data)
		if err != nil {
			return nil, err
		}
		a, err := attributes(e[unix.NFTA_EXPR_DATA])
		if err != nil {
			return nil, err
		}
		name := text(e[unix.NFTA_EXPR_NAME])
		if r.statement(name, a, &then) {
			continue
		}
		if err := r.expression(name, a); err != nil {
			return nil, err
		}
	}
	then.If = r.conds
	if then.Then == fwContinue && len(r.rest) > 0 {
		return r.rest, nil
	}
	return append(r.rest, then), nil
}

// statement reads what a rule does; false is something else.
func (r *fwReader) statement(name string, a map[uint16][]byte, then *fwRule) bool {
	switch name {
	case "counter", "log", "notrack", "last", "ct_helper", "dup", "secmark":
	case "reject":
		then.Then = fwDrop
	case "nat", "masq", "redir":
		then.Then = fwAccept
	case "queue", "tproxy", "synproxy", "fwd", "flow_offload":
		then.Then = fwUnknown
	case "target":
		then.Then = targetVerdict(text(a[unix.NFTA_TARGET_NAME]))
	case "immediate":
		data, err := attributes(a[unix.NFTA_IMMEDIATE_DATA])
		if err != nil || number32(a[unix.NFTA_IMMEDIATE_DREG]) != unix.NFT_REG_VERDICT {
			return true // something is loaded to be written into the packet
		}
		v, err := attributes(data[unix.NFTA_DATA_VERDICT])
		if err != nil {
			then.Then = fwUnknown
			return true
		}
		then.Then, then.To = verdictOf(v)
	default:
		return false
	}
	return true
}

func verdictOf(v map[uint16][]byte) (then, to string) {
	to = text(v[unix.NFTA_VERDICT_CHAIN])
	switch int32(number32(v[unix.NFTA_VERDICT_CODE])) {
	case nfAccept:
		return fwAccept, ""
	case nfDrop:
		return fwDrop, ""
	case unix.NFT_CONTINUE:
		return fwContinue, ""
	case unix.NFT_RETURN:
		return fwReturn, ""
	case unix.NFT_JUMP:
		return fwJump, to
	case unix.NFT_GOTO:
		return fwGoto, to
	}
	return fwUnknown, ""
}

// targetVerdict says what a target of iptables does.
func targetVerdict(name string) string {
	switch name {
	case "REJECT", "DROP":
		return fwDrop
	case "ACCEPT", "DNAT", "SNAT", "MASQUERADE", "REDIRECT", "NETMAP":
		return fwAccept
	case "LOG", "NFLOG", "ULOG", "MARK", "CONNMARK", "TCPMSS", "CHECKSUM", "CLASSIFY", "CT", "NOTRACK", "TRACE", "TTL", "HL", "DSCP", "TOS", "SET", "AUDIT", "SECMARK", "CONNSECMARK", "RATEEST", "TCPOPTSTRIP", "IDLETIMER", "LED":
		return fwContinue
	}
	return fwUnknown
}

// expression reads what loads or compares. What is not understood is a
// condition of which nobody knows whether it holds.
func (r *fwReader) expression(name string, a map[uint16][]byte) error {
	switch name {
	case "meta":
		if a[unix.NFTA_META_SREG] != nil {
			return nil // it sets a mark or the like
		}
		r.load(a[unix.NFTA_META_DREG], r.metaOperand(number32(a[unix.NFTA_META_KEY])))
	case "payload":
		if a[unix.NFTA_PAYLOAD_SREG] != nil {
			return nil
		}
		r.load(a[unix.NFTA_PAYLOAD_DREG], r.payloadOperand(number32(a[unix.NFTA_PAYLOAD_BASE]), number32(a[unix.NFTA_PAYLOAD_OFFSET]), number32(a[unix.NFTA_PAYLOAD_LEN])))
	case "ct":
		if a[unix.NFTA_CT_SREG] != nil {
			return nil
		}
		keys := map[uint32]string{unix.NFT_CT_STATE: fwState, unix.NFT_CT_STATUS: fwStatus, unix.NFT_CT_DIRECTION: fwDir}
		r.load(a[unix.NFTA_CT_DREG], operand{key: keys[number32(a[unix.NFTA_CT_KEY])]})
	case "fib":
		o := operand{}
		const destination = unix.NFTA_FIB_F_DADDR
		if number32(a[unix.NFTA_FIB_RESULT]) == unix.NFT_FIB_RESULT_ADDRTYPE && number32(a[unix.NFTA_FIB_FLAGS]) == destination {
			o.key = fwType
		}
		r.load(a[unix.NFTA_FIB_DREG], o)
	case "bitwise":
		mask, err := dataOf(a[unix.NFTA_BITWISE_MASK])
		if err != nil {
			return err
		}
		xor, err := dataOf(a[unix.NFTA_BITWISE_XOR])
		if err != nil {
			return err
		}
		o := r.reg(a[unix.NFTA_BITWISE_SREG])
		if mask == nil || len(bytes.Trim(xor, "\x00")) > 0 || o.mask != nil {
			o = operand{}
		}
		o.mask = mask
		r.load(a[unix.NFTA_BITWISE_DREG], o)
	case "cmp":
		value, err := dataOf(a[unix.NFTA_CMP_DATA])
		if err != nil {
			return err
		}
		r.compare(r.reg(a[unix.NFTA_CMP_SREG]), number32(a[unix.NFTA_CMP_OP]), value)
	case "range":
		from, err := dataOf(a[unix.NFTA_RANGE_FROM_DATA])
		if err != nil {
			return err
		}
		to, err := dataOf(a[unix.NFTA_RANGE_TO_DATA])
		if err != nil {
			return err
		}
		o := r.reg(a[unix.NFTA_RANGE_SREG])
		r.add(o.key, number32(a[unix.NFTA_RANGE_OP]) == unix.NFT_RANGE_NEQ, r.span(o, from, to))
	case "lookup":
		return r.lookup(a)
	case "match":
		r.match(text(a[unix.NFTA_MATCH_NAME]), a[unix.NFTA_MATCH_INFO])
	case "objref":
		// A counter, or a limit: which of them does not matter to us.
		r.add("", false, "object")
	default:
		for _, dreg := range []uint16{1, 2} { // where most loads have their register
			delete(r.regs, number32(a[dreg]))
		}
		r.add("", false, name)
	}
	return nil
}

func dataOf(b []byte) ([]byte, error) {
	if b == nil {
		return nil, nil
	}
	a, err := attributes(b)
	if err != nil {
		return nil, err
	}
	return a[unix.NFTA_DATA_VALUE], nil
}

func (r *fwReader) load(dreg []byte, o operand) { r.regs[register(dreg)] = o }
func (r *fwReader) reg(sreg []byte) operand     { return r.regs[register(sreg)] }

// register numbers the registers of 16 bytes as the first of their four of 4.
func register(b []byte) uint32 {
	n := number32(b)
	if n >= unix.NFT_REG_1 && n <= unix.NFT_REG_4 {
		return unix.NFT_REG32_00 + (n-unix.NFT_REG_1)*4
	}
	return n
}

// indexLen is the length of a link's number, by which a rule may know it.
const indexLen = 4

func (r *fwReader) metaOperand(key uint32) operand {
	switch key {
	case unix.NFT_META_IIFNAME:
		return operand{key: fwIif, len: unix.IFNAMSIZ}
	case unix.NFT_META_OIFNAME:
		return operand{key: fwOif, len: unix.IFNAMSIZ}
	case unix.NFT_META_IIF:
		return operand{key: fwIif, len: indexLen}
	case unix.NFT_META_OIF:
		return operand{key: fwOif, len: indexLen}
	case unix.NFT_META_L4PROTO:
		return operand{key: fwProto}
	case unix.NFT_META_NFPROTO:
		return operand{key: fwFamily, len: 1}
	case unix.NFT_META_PROTOCOL:
		return operand{key: fwFamily, len: 2}
	}
	return operand{}
}

// bothPorts are two conditions in one: the source's port and the destination's.
const bothPorts = "ports"

func (r *fwReader) payloadOperand(base, offset, length uint32) operand {
	family := r.family
	if r.about != "" {
		family = r.about
	}
	n := int(length)
	switch base {
	case unix.NFT_PAYLOAD_LL_HEADER:
		switch {
		case offset == 6 && n == 6:
			return operand{key: fwMAC, len: 6}
		case offset == 12 && n == 2:
			return operand{key: fwFamily, len: 2}
		}
	case unix.NFT_PAYLOAD_TRANSPORT_HEADER:
		switch {
		case n == 2:
			return operand{key: map[uint32]string{0: fwSport, 2: fwDport}[offset], len: 2}
		case n == 4 && offset == 0:
			return operand{key: bothPorts, len: 4}
		}
	case unix.NFT_PAYLOAD_NETWORK_HEADER:
		switch {
		case family == "ip" && offset == 9 && n == 1, family == "ip6" && offset == 6 && n == 1:
			return operand{key: fwProto, len: 1}
		case family == "ip" && offset == 12 && n <= 4, family == "ip6" && offset == 8 && n <= 16:
			return operand{key: fwSrc, len: n}
		case family == "ip" && offset == 16 && n <= 4, family == "ip6" && offset == 24 && n <= 16:
			return operand{key: fwDst, len: n}
		}
	}
	return operand{}
}

// add notes a condition. Without a key, or with a value that is not
// understood, it is one that may hold or not.
func (r *fwReader) add(key string, not bool, values ...string) {
	if key == "" || slices.Contains(values, "") || len(values) == 0 {
		label := cmp.Or(strings.Join(values, "+"), "unknown")
		r.conds = append(r.conds, fwCond{Key: fwOther, Any: []string{strings.ReplaceAll(label, " ", "-")}})
		return
	}
	if key == fwFamily && !not && len(values) == 1 {
		r.about = values[0]
	}
	r.conds = append(r.conds, fwCond{key, not, values})
}

// compare reads a comparison with one value.
func (r *fwReader) compare(o operand, op uint32, value []byte) {
	not := op == unix.NFT_CMP_NEQ
	if o.key == fwState || o.key == fwStatus {
		switch {
		case o.mask != nil && not && len(bytes.Trim(value, "\x00")) == 0: // any bit of the mask
			r.add(o.key, false, flagNames(o.key, native32(o.mask))...)
		case o.mask == nil && (not || op == unix.NFT_CMP_EQ):
			r.add(o.key, not, flagNames(o.key, native32(value))...)
		default:
			r.add("", false, o.key)
		}
		return
	}
	if o.mask != nil && (o.key == fwSrc || o.key == fwDst) {
		ones := 0
		for _, b := range o.mask {
			ones += bits.OnesCount8(b)
		}
		if !bytes.Equal(o.mask, net.CIDRMask(ones, len(o.mask)*8)) {
			r.add("", false, o.key)
			return
		}
		r.add(o.key, not, prefixText(value, ones))
		return
	}
	if o.mask != nil || o.key == bothPorts && (op != unix.NFT_CMP_EQ || len(value) != 4) {
		r.add("", false, o.key)
		return
	}
	if o.key == bothPorts {
		r.compare(operand{key: fwSport}, op, value[:2])
		r.compare(operand{key: fwDport}, op, value[2:])
		return
	}
	if o.key == fwDport || o.key == fwSport {
		if len(value) != 2 {
			r.add("", false, o.key)
			return
		}
		port := int(binary.BigEndian.Uint16(value))
		switch op {
		case unix.NFT_CMP_LT:
			r.add(o.key, false, portSpan(0, port-1))
			return
		case unix.NFT_CMP_LTE:
			r.add(o.key, false, portSpan(0, port))
			return
		case unix.NFT_CMP_GT:
			r.add(o.key, false, portSpan(port+1, 65535))
			return
		case unix.NFT_CMP_GTE:
			r.add(o.key, false, portSpan(port, 65535))
			return
		}
	}
	if op != unix.NFT_CMP_EQ && op != unix.NFT_CMP_NEQ {
		r.add("", false, o.key)
		return
	}
	if o.key == fwSrc || o.key == fwDst {
		r.add(o.key, not, prefixText(value, 8*len(value)))
		return
	}
	r.add(o.key, not, r.value(o, value))
}

// value is one value of an operand in words, empty when it has none.
func (r *fwReader) value(o operand, b []byte) string {
	switch o.key {
	case fwIif, fwOif:
		if o.len == indexLen {
			return cmp.Or(r.links[native32(b)], fmt.Sprintf("#%d", native32(b)))
		}
		if i := bytes.IndexByte(b, 0); i >= 0 {
			return string(b[:i])
		}
		return string(b) + "*"
	case fwProto:
		if len(b) == 1 {
			return protoName(b[0])
		}
	case fwFamily:
		switch {
		case len(b) == 1:
			return map[byte]string{unix.NFPROTO_IPV4: "ip", unix.NFPROTO_IPV6: "ip6"}[b[0]]
		case len(b) == 2:
			return map[uint16]string{unix.ETH_P_IP: "ip", unix.ETH_P_IPV6: "ip6", unix.ETH_P_ARP: "arp"}[binary.BigEndian.Uint16(b)]
		}
	case fwSport, fwDport:
		if len(b) == 2 {
			return strconv.Itoa(int(binary.BigEndian.Uint16(b)))
		}
	case fwDir:
		if len(b) == 1 && b[0] < 2 {
			return []string{"original", "reply"}[b[0]]
		}
	case fwType:
		return addrTypes[native32(b)]
	case fwMAC:
		return net.HardwareAddr(b).String()
	}
	return ""
}

var addrTypes = map[uint32]string{unix.RTN_UNICAST: "unicast", unix.RTN_LOCAL: "local", unix.RTN_BROADCAST: "broadcast", unix.RTN_ANYCAST: "anycast", unix.RTN_MULTICAST: "multicast"}

func protoName(n byte) string {
	switch n {
	case unix.IPPROTO_TCP:
		return "tcp"
	case unix.IPPROTO_UDP:
		return "udp"
	case unix.IPPROTO_ICMP:
		return "icmp"
	case unix.IPPROTO_ICMPV6:
		return "icmpv6"
	}
	return strconv.Itoa(int(n))
}

func portSpan(from, to int) string { return fmt.Sprintf("%d-%d", from, to) }

// prefixText is a prefix of so many bits. Fewer bytes than an address has are
// its beginning.
func prefixText(b []byte, ones int) string {
	size := 4
	if len(b) > 4 {
		size = 16
	}
	full := make([]byte, size)
	copy(full, b)
	a, ok := netip.AddrFromSlice(full)
	if !ok {
		return ""
	}
	return netip.PrefixFrom(a, ones).String()
}

// span is a range of values.
func (r *fwReader) span(o operand, from, to []byte) string {
	if o.mask != nil {
		return ""
	}
	switch o.key {
	case fwSrc, fwDst:
		a, ok1 := netip.AddrFromSlice(from)
		b, ok2 := netip.AddrFromSlice(to)
		if !ok1 || !ok2 {
			return ""
		}
		if a == b {
			return netip.PrefixFrom(a, a.BitLen()).String()
		}
		return a.String() + "-" + b.String()
	case fwIif, fwOif:
		// "wbr-*" in a set is the range of all names that begin so.
		begin := bytes.TrimRight(from, "\x00")
		if !bytes.Equal(from, to) && bytes.HasPrefix(to, begin) && len(bytes.Trim(to[len(begin):], "\xff")) == 0 {
			return string(begin) + "*"
		}
	case fwSport, fwDport, fwMAC:
		a, b := r.value(o, from), r.value(o, to)
		if a != "" && a != b {
			return a + "-" + b
		}
	}
	if bytes.Equal(from, to) {
		return r.value(o, from)
	}
	return ""
}

// flagNames are the names of the bits of a connection's state or status.
func flagNames(key string, mask uint32) []string {
	names := []struct {
		bit  uint32
		name string
	}{{1, "invalid"}, {2, "established"}, {4, "related"}, {8, "new"}, {64, "untracked"}}
	if key == fwStatus {
		names = names[:0]
		names = append(names, struct {
			bit  uint32
			name string
		}{0x20, "dnat"}, struct {
			bit  uint32
			name string
		}{0x10, "snat"})
	}
	var out []string
	for _, n := range names {
		if mask&n.bit != 0 {
			out = append(out, n.name)
			mask &^= n.bit
		}
	}
	if mask != 0 {
		out = append(out, "") // not understood
	}
	return out
}

// lookup reads a comparison with a set, or a map of verdicts.
func (r *fwReader) lookup(a map[uint16][]byte) error {
	name := text(a[unix.NFTA_LOOKUP_SET])
	set := r.sets.known[fwSetID{r.table, name}]
	o := r.reg(a[unix.NFTA_LOOKUP_SREG])
	dreg := a[unix.NFTA_LOOKUP_DREG]
	// What a set that others fill says changes all the time, and is no rule; a
	// key of several parts is not understood.
	plain := o.key != "" && o.key != bothPorts && o.mask == nil && (set.anonymous || o.key != fwSrc && o.key != fwDst) && (o.len == 0 || set.keyLen == o.len)
	if dreg != nil && !set.verdicts {
		r.load(dreg, operand{})
		r.add("", false, "map")
		return nil
	}
	var elements []fwElement
	if plain {
		var err error
		elements, err = r.sets.elements(r.table, name, set)
		if errors.Is(err, errSetTooLarge) {
			plain = false
		} else if err != nil {
			return err
		}
	}
	if !plain {
		r.add("", false, "@"+strings.TrimPrefix(name, "__"))
		if set.verdicts {
			r.rest = append(r.rest, fwRule{If: slices.Clone(r.conds), Then: fwUnknown})
		}
		return nil
	}
	if set.verdicts {
		before := r.conds
		for _, e := range elements {
			r.conds = slices.Clone(before)
			r.addElements(o, false, e)
			then, to := verdictOf(e.verdict)
			r.rest = append(r.rest, fwRule{r.conds, then, to})
		}
		r.conds = before
		return nil
	}
	const inverted = 1
	r.addElements(o, number32(a[unix.NFTA_LOOKUP_FLAGS])&inverted != 0, elements...)
	return nil
}

func (r *fwReader) addElements(o operand, not bool, elements ...fwElement) {
	var values []string
	for _, e := range elements {
		if o.key == fwState || o.key == fwStatus {
			values = append(values, flagNames(o.key, native32(e.from))...)
			continue
		}
		values = append(values, r.span(o, e.from, e.to))
	}
	slices.Sort(values)
	r.add(o.key, not, values...)
}
