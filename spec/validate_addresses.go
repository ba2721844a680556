package spec

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// family is what differs between IPv4 and IPv6 in what a stack says of
// addresses.
type family struct {
	name    string
	six     bool
	parse   func(string) (string, error)
	example string
}

var (
	family4 = family{name: "IPv4", parse: ParseSubnet, example: "10.1.0.9"}
	family6 = family{name: "IPv6", six: true, parse: ParseSubnet6, example: "fd12:3456:789a::9"}
)

// parseAddr reads an address of the family in its shortest form.
func (f *family) parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	switch {
	case err != nil || a.Is6() != f.six || a.Is4In6() || a.Zone() != "":
		return a, Invalidf("%q is not an %s address such as %s", s, f.name, f.example)
	case a.String() != s:
		return a, Invalidf("%s is to be written as %s", s, a)
	}
	return a, nil
}

// addresses checks what a network says of its addresses.
func (c *checker) addresses(at string, n *NetworkSpec) {
	if n.External && (n.Subnet != "" || n.IPv6 != nil) {
		c.add(at, "an external network has the addresses that it was made with, and no others can be asked for")
		return
	}
	c.pool(at, &n.Pool, family4)
	if n.IPv6 != nil {
		c.pool(at+".ipv6", n.IPv6, family6)
	}
}

// pool checks a pool whose fields are below at.
func (c *checker) pool(at string, p *Pool, f family) {
	if p.Subnet == "" {
		needs := func(name string, set bool) {
			if set {
				c.add(at+name, "needs a subnet that it is part of")
			}
		}
		needs(".range", p.Range != "")
		needs(".gateway", p.Gateway != "")
		needs(".reserved[0]", len(p.Reserved) > 0)
		return
	}
	canonical, err := f.parse(p.Subnet)
	if err != nil {
		c.add(at+".subnet", "%v", err)
		return
	}
	if canonical != p.Subnet {
		c.add(at+".subnet", "%s has bits of the host, want %s", p.Subnet, canonical)
	}
	subnet := netip.MustParsePrefix(canonical)
	if p.Range != "" {
		part, err := netip.ParsePrefix(p.Range)
		switch {
		case err != nil || part.Addr().Is6() != f.six:
			c.add(at+".range", "%q is not a part of a subnet, as %s is one of itself", p.Range, subnet)
		case part.Masked().String() != p.Range:
			c.add(at+".range", "%s has bits of the host, want %s", p.Range, part.Masked())
		case part.Bits() < subnet.Bits() || !subnet.Contains(part.Addr()):
			c.add(at+".range", "the range %s is not within the subnet %s", part, subnet)
		}
	}
	if p.Gateway != "" {
		if a, ok := c.inSubnet(at+".gateway", p.Gateway, subnet, f); ok {
			c.notEnd(at+".gateway", a, subnet)
		}
	}
	var last netip.Addr
	for i, s := range p.Reserved {
		where := fmt.Sprintf("%s.reserved[%d]", at, i)
		a, ok := c.inSubnet(where, s, subnet, f)
		if ok && i > 0 && !last.Less(a) {
			c.add(where, "%s does not come after the one before it: the list is sorted and has each address once", s)
		}
		last = a
	}
}

func (c *checker) inSubnet(at, s string, subnet netip.Prefix, f family) (netip.Addr, bool) {
	a, err := f.parseAddr(s)
	if err != nil {
		c.add(at, "%v", err)
		return a, false
	}
	if !subnet.Contains(a) {
		c.add(at, "%s is not in the subnet %s", a, subnet)
		return a, false
	}
	return a, true
}

// notEnd refuses the two addresses of a subnet that nobody can have.
func (c *checker) notEnd(at string, a netip.Addr, subnet netip.Prefix) bool {
	switch {
	case a == subnet.Addr():
		c.add(at, "%s is the address of the subnet %s itself", a, subnet)
	case a.Is4() && a == LastAddress(subnet):
		c.add(at, "%s is the broadcast address of the subnet %s", a, subnet)
	default:
		return true
	}
	return false
}

// fixed checks the addresses that services ask for.
func (c *checker) fixed() {
	taken := map[string]string{} // services by network and address
	for _, name := range slices.Sorted(maps.Keys(c.stack.Services)) {
		s := c.stack.Services[name]
		for i, a := range s.Template.Networks {
			at := fmt.Sprintf("services.%s.template.networks[%d]", name, i)
			n, declared := c.stack.Networks[a.Network]
			if a.MAC != "" && c.mac(at+".mac", a.MAC) {
				c.oneTask(at+".mac", &s)
				key := n.ClusterName(c.stack.Name, a.Network) + " " + a.MAC
				if other, twice := taken[key]; twice {
					c.add(at+".mac", "%s is that of the service %s on the network %s already", a.MAC, other, a.Network)
				}
				taken[key] = name
			}
			for _, x := range []struct {
				family
				at, address string
				pool        *Pool
			}{{family4, at + ".ip", a.IP, &n.Pool}, {family6, at + ".ip6", a.IP6, n.IPv6}} {
				if x.address == "" {
					continue
				}
				ip, err := x.parseAddr(x.address)
				if err != nil {
					c.add(x.at, "%v", err)
					continue
				}
				c.oneTask(x.at, &s)
				if !declared || n.External {
					continue // what is not known here shows when the address is given
				}
				if c.fixedIn(x.at, ip, a.Network, x.pool, x.family) {
					key := n.ClusterName(c.stack.Name, a.Network) + " " + x.address
					if other, twice := taken[key]; twice {
						c.add(x.at, "%s is that of the service %s on the network %s already", ip, other, a.Network)
					}
					taken[key] = name
				}
			}
		}
	}
}

// mac checks a MAC address that a service asks for.
func (c *checker) mac(at, text string) bool {
	m, err := net.ParseMAC(text)
	switch {
	case err != nil || len(m) != 6:
		c.add(at, "%q is not a MAC address such as 0a:00:00:00:00:01", text)
	case m.String() != text:
		c.add(at, "%s is to be written as %s", text, m)
	case m[0]&1 != 0 || text == "00:00:00:00:00:00":
		c.add(at, "%s is no address that a device can have: the first octet is even, and not all are 0", text)
	case strings.HasPrefix(text, "02:57:") || strings.HasPrefix(text, "02:58:"):
		c.add(at, "addresses that begin with 02:57 or 02:58 are those of nodes and of other tasks")
	default:
		return true
	}
	return false
}

// interfaces checks the names of devices that a template asks for.
func (c *checker) interfaces(at string, t *Template) {
	taken := map[string]bool{}
	for i, a := range t.Networks {
		where := fmt.Sprintf("%s.networks[%d].interface", at, i)
		switch {
		case a.Interface == "":
		case !linkName.MatchString(a.Interface) || strings.Trim(a.Interface, ".") == "":
			c.add(where, "%q is not the name of an interface: up to 15 letters, digits, dots, - and _", a.Interface)
		case a.Interface == "lo" || a.Interface == "all" || a.Interface == "default":
			c.add(where, "%s is the kernel's: choose another name", a.Interface)
		case taken[a.Interface]:
			c.add(where, "another network of the service has the interface %s already", a.Interface)
		}
		taken[a.Interface] = true
	}
}

// oneTask refuses a fixed address of a service with several tasks.
func (c *checker) oneTask(at string, s *ServiceSpec) {
	switch {
	case s.Mode == Global:
		c.add(at, "an address can be that of one task, and a global service has one on each node: leave it out and use the name of the service")
	case s.Replicas != nil && *s.Replicas > 1:
		c.add(at, "an address can be that of one task, and the service has %d replicas: leave it out and use the name of the service", *s.Replicas)
	}
}

// fixedIn checks a fixed address against the pool that it is to be of.
func (c *checker) fixedIn(at string, ip netip.Addr, network string, p *Pool, f family) bool {
	switch {
	case p == nil:
		c.add(at, "the network %s has no IPv6: set enable_ipv6 and a subnet there", network)
		return false
	case p.Subnet == "":
		c.add(at, "the network %s has no %s subnet of its own: give it one that %s is in, by ipam.config", network, f.name, ip)
		return false
	}
	canonical, err := f.parse(p.Subnet)
	if err != nil {
		return false // told at the network
	}
	subnet := netip.MustParsePrefix(canonical)
	gateway := subnet.Addr().Next()
	if g, err := f.parseAddr(p.Gateway); p.Gateway != "" && err == nil {
		gateway = g
	}
	switch {
	case !subnet.Contains(ip):
		c.add(at, "%s is not in the subnet %s of the network %s", ip, subnet, network)
	case !c.notEnd(at, ip, subnet):
	case ip == gateway:
		c.add(at, "%s is the gateway of the network %s", ip, network)
	case slices.Contains(p.Reserved, ip.String()):
		c.add(at, "%s is reserved on the network %s", ip, network)
	default:
		return true
	}
	return false
}

// hostIP checks the address of a node that a port is published on. way is the
// network on which tasks take what comes in by it, nil when that is not known
// here.
func (c *checker) hostIP(at string, s string, way *NetworkSpec) {
	ip, err := netip.ParseAddr(s)
	switch {
	case err != nil:
		c.add(at, "%q is not an IP address", s)
	case ip.Zone() != "" || ip.IsMulticast() || ip.Is6() && ip.IsLinkLocalUnicast():
		c.add(at, "%s is not an address that tells one node from another", s)
	case ip == netip.IPv6Loopback():
		c.add(at, "the kernel leads nothing from %s to a task: publish it on 127.0.0.1", s)
	case ip.String() != s || ip.Is4In6():
		c.add(at, "%s is to be written as %s", s, ip.Unmap())
	case ip.Is6() && way != nil && !way.External && way.IPv6 == nil:
		c.add(at, "nothing would answer at %s: the network of the service's published ports has no IPv6; set enable_ipv6 there", s)
	}
}

// wayOut is the network by which the tasks of a service take its published
// ports: the first that is not internal. It is nil when there is none.
func (c *checker) wayOut(s *ServiceSpec) *NetworkSpec {
	for _, a := range s.Template.Networks {
		if n, ok := c.stack.Networks[a.Network]; ok && !n.Internal {
			return &n
		}
	}
	return nil
}

// hostIPsOverlap reports whether two ports with one number and these host IPs
// would be published at one place.
func hostIPsOverlap(a, b string) bool {
	all := func(s string) bool {
		ip, err := netip.ParseAddr(s)
		return s == "" || err == nil && ip.IsUnspecified()
	}
	return a == b || all(a) || all(b)
}
