package compose

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"

	"wherry.dev/spec"
)

// pools reads the addresses that a network asks for, one pool of each family.
// What is wrong with them is told by spec.ValidateStack.
func (c *conversion) pools(at path, n types.NetworkConfig, out *spec.NetworkSpec) {
	if n.EnableIPv6 != nil && *n.EnableIPv6 {
		out.IPv6 = &spec.Pool{}
	}
	taken := map[bool]bool{} // by: of IPv6
	for i, p := range n.Ipam.Config {
		if p == nil {
			continue
		}
		where := at.key("ipam").key("config").index(i)
		six := strings.Contains(cmp.Or(p.Subnet, p.IPRange, p.Gateway), ":")
		name, model, to := "IPv4", "networks."+at[1], &out.Pool
		if six {
			name, model, to = "IPv6", model+".ipv6", out.IPv6
		}
		switch {
		case to == nil:
			c.refuse(where, "set enable_ipv6: true, or leave the subnet out", "the network has no IPv6")
		case taken[six]:
			c.refuse(where, "give one subnet of each family", "more than one %s subnet: %s", name, notBuilt)
		default:
			*to = c.pool(where, model, p)
			taken[six] = true
		}
	}
}

// pool reads one pool. model is where it is in the model.
func (c *conversion) pool(at path, model string, p *types.IPAMPool) spec.Pool {
	for field, key := range map[string]string{"subnet": "subnet", "range": "ip_range", "gateway": "gateway", "reserved[0]": "aux_addresses"} {
		c.origins[model+"."+field] = at.key(key)
	}
	out := spec.Pool{Subnet: shortPrefix(p.Subnet), Range: shortPrefix(p.IPRange), Gateway: shortAddr(p.Gateway)}
	from := map[string]string{} // names by address
	for _, name := range slices.Sorted(maps.Keys(p.AuxiliaryAddresses)) {
		ip := shortAddr(p.AuxiliaryAddresses[name])
		if _, twice := from[ip]; !twice {
			from[ip] = name
		}
	}
	out.Reserved = slices.SortedFunc(maps.Keys(from), func(a, b string) int {
		x, _ := netip.ParseAddr(a)
		y, _ := netip.ParseAddr(b)
		return cmp.Or(x.Compare(y), cmp.Compare(a, b))
	})
	for i, ip := range out.Reserved {
		c.origins[fmt.Sprintf("%s.reserved[%d]", model, i)] = at.key("aux_addresses").key(from[ip])
	}
	return out
}

// shortPrefix returns a subnet in its shortest form without bits of the host,
// and what is none as it is.
func shortPrefix(s string) string {
	if p, err := netip.ParsePrefix(strings.TrimSpace(s)); err == nil {
		return p.Masked().String()
	}
	return s
}

// shortAddr returns an address in its shortest form, and what is none as it is.
func shortAddr(s string) string {
	if a, err := netip.ParseAddr(strings.TrimSpace(s)); err == nil {
		return a.String()
	}
	return s
}

// attachment is a network of a service, the i-th.
func (c *conversion) attachment(at path, i int, name string, n *types.ServiceNetworkConfig) spec.Attachment {
	model := fmt.Sprintf("services.%s.template.networks[%d]", at[1], i)
	where := at.key("networks").key(name)
	c.origins[model+".ip"], c.origins[model+".ip6"] = where.key("ipv4_address"), where.key("ipv6_address")
	c.origins[model+".mac"], c.origins[model+".interface"] = where.key("mac_address"), where.key("interface_name")
	out := spec.Attachment{Network: name, IP: shortAddr(n.Ipv4Address), IP6: shortAddr(n.Ipv6Address),
		MAC: shortMAC(n.MacAddress), Interface: n.InterfaceName, NoServiceName: !n.ServiceNameAliasEnabled()}
	for _, k := range slices.Sorted(maps.Keys(n.DriverOpts)) {
		v, opt := n.DriverOpts[k], where.key("driver_opts").key(k)
		switch {
		case k == "com.docker.network.endpoint.ifname" && (out.Interface == "" || out.Interface == v):
			out.Interface = v
			c.origins[model+".interface"] = opt
		case k == "com.docker.network.endpoint.ifname":
			c.refuse(opt, "leave one of them out", "interface_name says %s", out.Interface)
		case k == "com.docker.network.endpoint.sysctls":
			c.refuse(opt, "use sysctls of the service, with the name of the interface", "settings of one interface: %s", notBuilt)
		default:
			c.refuse(opt, cmp.Or(suggestion(k, "com.docker.network.endpoint.ifname"), leaveOut), "the option %q of the network driver: %s", k, notBuilt)
		}
	}
	return out
}

// shortMAC returns a MAC address in its usual form, and what is none as it is.
func shortMAC(s string) string {
	if m, err := net.ParseMAC(strings.TrimSpace(s)); err == nil {
		return m.String()
	}
	return s
}

// firstMAC gives the first network of a service the MAC address that the service
// itself has.
func (c *conversion) firstMAC(at path, s types.ServiceConfig, t *spec.Template) {
	if s.MacAddress == "" {
		return
	}
	where := at.key("mac_address")
	if len(t.Networks) == 0 {
		c.refuse(where, leaveOut, "the service is on no network of its own")
		return
	}
	first, mac := &t.Networks[0], shortMAC(s.MacAddress)
	if first.MAC != "" && first.MAC != mac {
		c.refuse(where, "leave it out", "the network %s says %s", first.Network, first.MAC)
		return
	}
	if first.MAC == "" {
		c.origins["services."+at[1]+".template.networks[0].mac"] = where
	}
	first.MAC = mac
}

// hostIP reads the address that a port is published on.
func (c *conversion) hostIP(at path, text string) string {
	ip, err := netip.ParseAddr(strings.Trim(text, "[]"))
	if err != nil {
		c.refuse(at, "", "%q is not an IP address", text)
		return ""
	}
	return ip.Unmap().String()
}

// wayOut returns the name of the network by which the tasks of a service take
// its published ports: the first that is not internal.
func (c *conversion) wayOut(s types.ServiceConfig) string {
	names := byPriority(s.Networks)
	if s.NetworkMode != "" {
		names = c.networksOf(s.Name)
	}
	for _, name := range names {
		if n := c.p.Networks[name]; !n.Internal && !isHostNetwork(n) {
			return name
		}
	}
	return ""
}

// families fits ports, found at paths, to the families that a service has. All
// IPv4 addresses of a node are all addresses where it has no IPv6, and where
// they are published beside all IPv6 addresses.
func (c *conversion) families(s types.ServiceConfig, ports []spec.Port, paths []path) []spec.Port {
	way := c.wayOut(s)
	n := c.p.Networks[way]
	six := bool(n.External) || n.EnableIPv6 != nil && *n.EnableIPv6 // or may have it
	var out []spec.Port
	for i, p := range ports {
		ip, _ := netip.ParseAddr(p.HostIP)
		other := p
		switch {
		case ip == netip.IPv6Loopback():
			c.at(NoEffect, paths[i], "nothing is published on ::1: the kernel leads nothing from there to a container", "publish it on 127.0.0.1")
			continue
		case ip == netip.IPv4Unspecified():
			other.HostIP = netip.IPv6Unspecified().String()
			if !six || slices.Contains(ports, other) {
				p.HostIP = ""
			}
		case ip == netip.IPv6Unspecified():
			other.HostIP = netip.IPv4Unspecified().String()
			if slices.Contains(ports, other) {
				continue // that one is for both
			}
		}
		if ip.Is6() && !six && way != "" {
			c.refuse(paths[i], "set enable_ipv6: true on it", "nothing would answer at %s: the network %s has no IPv6", ip, way)
		}
		if !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}
