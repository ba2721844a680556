package keeper

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"wherry.dev/spec"
)

// zone is the searchable form of a spec.NameTable. It is never modified once
// it is built.
type zone struct {
	// names by lower-case name without trailing dot. An entry without
	// addresses is a name of the cluster that nothing answers for right now.
	names map[string]addresses
	// own are the names of each stack that has some here, likewise.
	own map[string]map[string]addresses
	// owners are the names that reverse lookups answer with.
	owners map[netip.Addr]string
	// reverse are the names that tasks and services are called by, as opposed
	// to further ones.
	reverse map[string]bool
	// ports by name and protocol: at which addresses there are which.
	ports map[portName]map[netip.Addr][]uint16
}

// portName is what an SRV lookup asks for, in lower case.
type portName struct{ name, protocol string }

type addresses struct{ v4, v6 []netip.Addr }

func (a addresses) len() int { return len(a.v4) + len(a.v6) }

func (a *addresses) add(ip netip.Addr) {
	if ip.Is4() {
		a.v4 = append(a.v4, ip)
	} else {
		a.v6 = append(a.v6, ip)
	}
}

// merge adds the addresses of b that a lacks.
func (a *addresses) merge(b addresses) {
	for _, ips := range [][]netip.Addr{b.v4, b.v6} {
		for _, ip := range ips {
			if !slices.Contains(a.v4, ip) && !slices.Contains(a.v6, ip) {
				a.add(ip)
			}
		}
	}
}

// mergeInto adds a to the addresses of a name.
func mergeInto(names map[string]addresses, key string, a addresses) {
	if old, ok := names[key]; ok {
		old.v4, old.v6 = slices.Clip(old.v4), slices.Clip(old.v6) // another map may have them too
		old.merge(a)
		a = old
	}
	names[key] = a
}

// newZone builds a zone. Addresses that do not parse are left out: a bad entry
// must not cost the good ones.
func newZone(t spec.NameTable) *zone {
	z := &zone{
		names:   make(map[string]addresses, len(t.Names)),
		own:     make(map[string]map[string]addresses),
		owners:  make(map[netip.Addr]string),
		reverse: make(map[string]bool),
		ports:   make(map[portName]map[netip.Addr][]uint16),
	}
	for _, n := range t.Names {
		key := canonical(n.Name)
		if key == "" {
			continue
		}
		if n.Reverse {
			z.reverse[key] = true
		}
		var a addresses
		for _, s := range n.Addresses {
			ip, ok := parseAddress(s)
			if !ok {
				continue
			}
			a.add(ip)
		}
		if n.Stack != "" {
			if z.own[n.Stack] == nil {
				z.own[n.Stack] = make(map[string]addresses)
			}
			mergeInto(z.own[n.Stack], key, a)
		}
		mergeInto(z.names, key, a)
	}
	for name, a := range z.names {
		for _, ips := range [][]netip.Addr{a.v4, a.v6} {
			for _, ip := range ips {
				if old, ok := z.owners[ip]; !ok || z.better(name, old) {
					z.owners[ip] = name
				}
			}
		}
	}
	for _, p := range t.Ports {
		key := portName{canonical(p.Name), canonical(p.Protocol)}
		if z.ports[key] == nil {
			z.ports[key] = make(map[netip.Addr][]uint16, len(p.Addresses))
		}
		for _, s := range p.Addresses {
			if ip, ok := parseAddress(s); ok {
				z.ports[key][ip] = append(z.ports[key][ip], p.Port)
			}
		}
	}
	return z
}

// parseAddress accepts "address" and "address/bits".
func parseAddress(s string) (netip.Addr, bool) {
	s, _, _ = strings.Cut(s, "/")
	ip, err := netip.ParseAddr(s)
	return ip.Unmap(), err == nil && ip.Zone() == ""
}

// better reports whether a says more about an address than b does: what a task
// or service is called before further names, the task's own name before a
// service's, a name of few addresses before one of many, a plain name before
// "tasks.NAME", then the shorter. The order is total, so that all hosts give
// the same answer.
func (z *zone) better(a, b string) bool {
	if ra, rb := z.reverse[a], z.reverse[b]; ra != rb {
		return ra
	}
	if ta, tb := isTaskName(a), isTaskName(b); ta != tb {
		return ta
	}
	if la, lb := z.names[a].len(), z.names[b].len(); la != lb {
		return la < lb
	}
	if pa, pb := strings.HasPrefix(a, tasksPrefix), strings.HasPrefix(b, tasksPrefix); pa != pb {
		return pb
	}
	if len(a) != len(b) {
		return len(a) < len(b)
	}
	return a < b
}

const tasksPrefix = "tasks."

// isTaskName reports whether name has the form STACK.SERVICE.SLOT.
func isTaskName(name string) bool {
	return strings.Count(name, ".") >= 2 && !strings.HasPrefix(name, tasksPrefix)
}

// canonical is the form in which names are compared.
func canonical(name string) string {
	return strings.ToLower(strings.TrimSuffix(name, "."))
}

// zones holds the tables of all networks.
type zones map[spec.NetworkID]*zone

func newZones(tables []spec.NameTable) zones {
	zs := make(zones, len(tables))
	for _, t := range tables {
		zs[t.Network] = newZone(t)
	}
	return zs
}

// view is what one resolver may see: it is immutable and replaced as a whole.
type view struct {
	zones []*zone
	// stack whose names come first.
	stack string
	// upstream servers; empty is what the host's resolv.conf names.
	upstream []netip.AddrPort
	// isolated: nobody is asked outside.
	isolated bool
}

func (zs zones) view(r spec.Resolver) *view {
	v := &view{isolated: r.Isolated, stack: r.Stack}
	for _, n := range r.Networks {
		if z := zs[n]; z != nil {
			v.zones = append(v.zones, z)
		}
	}
	for _, s := range r.Upstream {
		if ap, ok := parseServer(s); ok {
			v.upstream = append(v.upstream, ap)
		}
	}
	return v
}

// parseServer accepts "address" and "address:port".
func parseServer(s string) (netip.AddrPort, bool) {
	if ip, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(ip, 53), true
	}
	ap, err := netip.ParseAddrPort(s)
	return ap, err == nil
}

// lookup finds a canonical name. A name of the own stack is preferred on
// whatever network, then the first network that knows it wins; one on which it
// has addresses is preferred to one on which it is known without. z is the
// network that a is from, nil when there are no addresses.
func (v *view) lookup(name string) (a addresses, z *zone, known bool) {
	if a, z, known = v.find(name, func(z *zone) map[string]addresses { return z.own[v.stack] }); known {
		return a, z, true
	}
	return v.find(name, func(z *zone) map[string]addresses { return z.names })
}

func (v *view) find(name string, in func(*zone) map[string]addresses) (a addresses, z *zone, known bool) {
	for _, z := range v.zones {
		b, ok := in(z)[name]
		if !ok {
			continue
		}
		known = true
		if b.len() > 0 {
			return b, z, true
		}
	}
	return a, nil, known
}

// service is one answer to the question where a named port is.
type service struct {
	target string // the name of a task, or of a service
	port   uint16
	// addresses of target at which the port is.
	addresses addresses
}

// services finds a named port behind a canonical name, on the network that the
// name is from, one answer for each target and port, sorted.
func (v *view) services(port portName, name string) []service {
	a, z, _ := v.lookup(name)
	if z == nil {
		return nil
	}
	at := z.ports[port]
	var out []service
	for _, ips := range [][]netip.Addr{a.v4, a.v6} {
		for _, ip := range ips {
			for _, p := range at[ip] {
				s := service{target: z.owners[ip], port: p}
				i, found := slices.BinarySearchFunc(out, s, service.compare)
				if !found {
					out = slices.Insert(out, i, s)
				}
				out[i].addresses.add(ip)
			}
		}
	}
	return out
}

func (s service) compare(t service) int {
	return cmp.Or(cmp.Compare(s.target, t.target), cmp.Compare(s.port, t.port))
}

// owner finds the name of an address.
func (v *view) owner(ip netip.Addr) (string, bool) {
	for _, z := range v.zones {
		if name, ok := z.owners[ip]; ok {
			return name, true
		}
	}
	return "", false
}

// reverseAddress is the address that a reverse name ("4.3.2.1.in-addr.arpa")
// asks for.
func reverseAddress(name string) (netip.Addr, bool) {
	if s, ok := strings.CutSuffix(name, ".in-addr.arpa"); ok {
		labels := strings.Split(s, ".")
		if len(labels) != 4 {
			return netip.Addr{}, false
		}
		ip, err := netip.ParseAddr(labels[3] + "." + labels[2] + "." + labels[1] + "." + labels[0])
		return ip, err == nil
	}
	s, ok := strings.CutSuffix(name, ".ip6.arpa")
	if !ok || len(s) != 63 {
		return netip.Addr{}, false
	}
	var b [16]byte
	for i := range 32 {
		c := s[62-2*i]
		d := strings.IndexByte("0123456789abcdef", c)
		if d < 0 || i < 31 && s[62-2*i-1] != '.' {
			return netip.Addr{}, false
		}
		b[i/2] = b[i/2]<<4 | byte(d)
	}
	return netip.AddrFrom16(b), true
}
