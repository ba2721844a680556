package keeper

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"
)

const (
	// answerTTL is zero: an answer must not outlive the endpoint behind it, and
	// asking again costs one round trip over loopback.
	answerTTL = 0
	// maxUDP is the largest answer sent over UDP, whatever the client offers;
	// loopback does not fragment it.
	maxUDP = 4096
	// minUDP is what every client accepts.
	minUDP = dns.MinMsgSize
	// maxAddresses in one answer keep it below the 64 KiB that TCP can carry. A
	// random choice is given when there are more.
	maxAddresses = 2000
	// maxServices in one answer, for the same reason: they are longer.
	maxServices = 200
)

// verdict says what becomes of a packet.
type verdict int

const (
	drop    verdict = iota // not a question: no answer
	reply                  // answered here
	forward                // to be asked of the upstream servers
)

// respond judges one packet. With verdict reply, out is the answer, in buf when
// that is large enough. limit is the largest answer that the client takes over
// UDP, also for verdict forward.
func (v *view) respond(packet, buf []byte, tcp bool) (out []byte, limit int, what verdict) {
	var q dns.Msg
	err := q.Unpack(packet)
	if len(packet) < 12 || q.Response {
		return nil, 0, drop
	}
	limit = minUDP
	var m *dns.Msg
	switch opt := q.IsEdns0(); {
	case q.Opcode != dns.OpcodeQuery:
		m = refuse(&q, dns.RcodeNotImplemented)
	case err != nil || len(q.Question) != 1:
		m = refuse(&q, dns.RcodeFormatError)
	case opt != nil && opt.Version() != 0:
		m = refuse(&q, dns.RcodeBadVers)
	default:
		if opt != nil {
			limit = min(max(minUDP, int(opt.UDPSize())), maxUDP)
		}
		if m = v.answer(&q); m == nil {
			return nil, limit, forward
		}
	}
	return pack(m, buf, limit, tcp), limit, reply
}

// pack encodes m, cut to limit, which over TCP is what TCP can carry.
func pack(m *dns.Msg, buf []byte, limit int, tcp bool) []byte {
	m.Compress = true
	if tcp {
		limit = dns.MaxMsgSize
	}
	if len(m.Extra) > 1 && m.Len() > limit {
		// Addresses that nobody asked for are no reason to cut an answer.
		m.Extra = slices.DeleteFunc(m.Extra, func(r dns.RR) bool { return r.Header().Rrtype != dns.TypeOPT })
	}
	m.Truncate(limit)
	out, err := m.PackBuffer(buf)
	if err != nil {
		// Only the question can be at fault, for all else is ours.
		m.Question, m.Answer, m.Rcode = nil, nil, dns.RcodeFormatError
		out, _ = m.PackBuffer(buf)
	}
	return out
}

// refuse is an answer that holds nothing but a code.
func refuse(q *dns.Msg, rcode int) *dns.Msg {
	m := newReply(q)
	m.Rcode = rcode
	return m
}

func newReply(q *dns.Msg) *dns.Msg {
	m := new(dns.Msg)
	m.SetReply(q)
	m.RecursionAvailable = true
	if opt := q.IsEdns0(); opt != nil {
		m.SetEdns0(maxUDP, false)
	}
	return m
}

// answer is the reply to a well-formed question, or nil when the servers
// outside are to be asked.
func (v *view) answer(q *dns.Msg) *dns.Msg {
	question := q.Question[0]
	switch {
	case question.Qclass != dns.ClassINET && question.Qclass != dns.ClassANY:
		return refuse(q, dns.RcodeRefused)
	case question.Qtype == dns.TypeAXFR || question.Qtype == dns.TypeIXFR:
		return refuse(q, dns.RcodeRefused)
	}
	name := canonical(question.Name)
	if ip, ok := reverseAddress(name); ok {
		owner, ok := v.owner(ip)
		if !ok {
			return nil
		}
		m := newReply(q)
		m.Authoritative = true
		if question.Qtype == dns.TypePTR || question.Qtype == dns.TypeANY {
			m.Answer = []dns.RR{&dns.PTR{Hdr: header(question.Name, dns.TypePTR), Ptr: dns.Fqdn(owner)}}
		}
		return m
	}
	a, _, known := v.lookup(name)
	if port, rest, ok := splitService(name); ok && !known {
		return v.answerService(q, port, rest)
	}
	if !known && isLocalhost(name) {
		a, known = localhost, true
	}
	if !known && !ours(name, question.Qtype) {
		return nil
	}
	m := newReply(q)
	m.Authoritative = true
	if a.len() == 0 {
		m.Rcode = dns.RcodeNameError
		return m
	}
	m.Answer = records(question.Name, question.Qtype, addresses{shuffled(a.v4), shuffled(a.v6)})
	return m
}

// answerService is the reply to a question about a named port behind a name, or
// nil when the servers outside are to be asked.
func (v *view) answerService(q *dns.Msg, port portName, name string) *dns.Msg {
	question := q.Question[0]
	found := v.services(port, name)
	if len(found) == 0 && !ours(name, question.Qtype) {
		return nil
	}
	m := newReply(q)
	m.Authoritative = true
	if len(found) == 0 {
		m.Rcode = dns.RcodeNameError
		return m
	}
	if question.Qtype != dns.TypeSRV && question.Qtype != dns.TypeANY {
		return m
	}
	rand.Shuffle(len(found), func(i, j int) { found[i], found[j] = found[j], found[i] })
	beside := map[string]*addresses{} // by target, which may have several ports
	for _, s := range found[:min(len(found), maxServices)] {
		m.Answer = append(m.Answer, &dns.SRV{Hdr: header(question.Name, dns.TypeSRV), Weight: 1, Port: s.port, Target: dns.Fqdn(s.target)})
		if beside[s.target] == nil {
			beside[s.target] = new(addresses)
		}
		beside[s.target].merge(s.addresses)
	}
	for target, a := range beside {
		m.Extra = append(m.Extra, records(dns.Fqdn(target), dns.TypeANY, *a)...)
	}
	return m
}

// records are the addresses of a name that a question of a type asks for.
func records(name string, qtype uint16, a addresses) []dns.RR {
	var out []dns.RR
	if qtype == dns.TypeANY || qtype == dns.TypeA {
		for _, ip := range a.v4 {
			out = append(out, &dns.A{Hdr: header(name, dns.TypeA), A: ip.AsSlice()})
		}
	}
	if qtype == dns.TypeANY || qtype == dns.TypeAAAA {
		for _, ip := range a.v6 {
			out = append(out, &dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: ip.AsSlice()})
		}
	}
	return out
}

// splitService takes "_port._protocol.name" apart.
func splitService(name string) (port portName, rest string, ok bool) {
	first, rest, _ := strings.Cut(name, ".")
	second, rest, ok := strings.Cut(rest, ".")
	if !ok || len(first) < 2 || first[0] != '_' || second != "_tcp" && second != "_udp" {
		return portName{}, "", false
	}
	return portName{first[1:], second[1:]}, rest, true
}

func header(name string, rrtype uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: rrtype, Class: dns.ClassINET, Ttl: answerTTL}
}

// shuffled is a copy of ips in random order, so that clients which take the
// first address spread over all.
func shuffled(ips []netip.Addr) []netip.Addr {
	out := append([]netip.Addr(nil), ips...)
	rand.Shuffle(len(out), func(i, j int) { out[i], out[j] = out[j], out[i] })
	return out[:min(len(out), maxAddresses)]
}

var localhost = addresses{
	v4: []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})},
	v6: []netip.Addr{netip.IPv6Loopback()},
}

// isLocalhost: RFC 6761 has these answered by whoever is asked first.
func isLocalhost(name string) bool {
	return name == "localhost" || strings.HasSuffix(name, ".localhost")
}

// ours reports whether an unknown name can only be one of the cluster, so that
// no server outside may hear of it, let alone answer for it: a service that is
// not ready must not resolve to whatever a wildcard out there says. Such are
// the addresses of names without a dot (no public name has an address at the
// top level; names of a local domain are found by the search list), tasks.NAME
// and STACK.SERVICE.SLOT, whose last label no public name can have.
func ours(name string, qtype uint16) bool {
	if name == "" {
		return false
	}
	dot := strings.LastIndexByte(name, '.')
	if dot < 0 {
		switch qtype {
		case dns.TypeNS, dns.TypeSOA, dns.TypeDS, dns.TypeDNSKEY, dns.TypeRRSIG, dns.TypeNSEC, dns.TypeNSEC3:
			return false // asked by a validating resolver about a top-level domain
		}
		return true
	}
	if rest, ok := strings.CutPrefix(name, tasksPrefix); ok && !strings.Contains(rest, ".") {
		return true
	}
	return strings.Trim(name[dot+1:], "0123456789") == ""
}
