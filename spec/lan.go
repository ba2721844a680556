package spec

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
)

var linkName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,15}$`)

// The VLANs that there can be.
const (
	FirstVLAN = 1
	LastVLAN  = 4094
)

// ParseParent reads the name of the interface that a macvlan network is on.
// "eth0.7" may be VLAN 7 of the interface eth0, or an interface of that name;
// vlan is 0 for a name that can only be the latter, and base empty.
func ParseParent(name string) (base string, vlan uint16, err error) {
	if !linkName.MatchString(name) || strings.Trim(name, ".") == "" {
		return "", 0, Invalidf("%q is not the name of an interface such as eth0, or eth0.7 for a VLAN of it", name)
	}
	i := strings.LastIndexByte(name, '.')
	if i <= 0 {
		return "", 0, nil
	}
	n, err := strconv.ParseUint(name[i+1:], 10, 32)
	if err != nil || strconv.FormatUint(n, 10) != name[i+1:] {
		return "", 0, nil
	}
	if n < FirstVLAN || n > LastVLAN {
		return "", 0, Invalidf("%q: there is no VLAN %d, they are %d to %d", name, n, FirstVLAN, LastVLAN)
	}
	return name[:i], uint16(n), nil
}

// HasParent reports whether a node has the interface that a macvlan network is
// on, or that of which it is a VLAN. One that does not tell is taken to have it.
func (i *NodeInfo) HasParent(parent string) bool {
	have := strings.Fields(i.Interfaces)
	base, _, err := ParseParent(parent)
	return err == nil && (len(have) == 0 || slices.Contains(have, parent) || base != "" && slices.Contains(have, base))
}

// lan checks what a network says that is on one of the hosts' own. Nothing is
// guessed there: an address that somebody else has, or a router that is none,
// would be trouble for others.
func (c *checker) lan(at string, n *NetworkSpec) {
	if n.Driver != DriverMacvlan {
		if n.Parent != "" {
			c.add(at+".parent", "only a network with driver macvlan is on an interface of the hosts")
		}
		return
	}
	if n.Parent == "" {
		c.add(at+".parent", "needs the interface of the hosts that the network is on, such as eth0, or eth0.7 for a VLAN of it")
	} else if _, _, err := ParseParent(n.Parent); err != nil {
		c.add(at+".parent", "%v", err)
	}
	switch {
	case n.Subnet == "":
		c.add(at+".subnet", "needs the subnet of the network that the interface is on")
	case n.Range == "":
		c.add(at+".range", "needs the part of %s that tasks have addresses from, which nobody else there gives to anything", n.Subnet)
	}
	if n.Subnet != "" && n.Gateway == "" && !n.Internal {
		c.add(at+".gateway", "needs the router of the network, by which tasks reach what is outside of it, or internal: true for none")
	}
	if n.IPv6 != nil {
		c.add(at+".ipv6", "IPv6 of a macvlan network is not built yet: leave it out")
	}
}

// portOnLAN refuses a published port of tasks whose way out is not by the hosts.
func (c *checker) portOnLAN(at string, way *NetworkSpec) {
	if way != nil && way.Driver == DriverMacvlan {
		c.add(at, "the tasks are on the network of %s with addresses of their own, where they are reached without the hosts: leave the port out, or give another network of the service the higher gw_priority", way.Parent)
	}
}

// gatewayOnLAN refuses the name of the host's address where there is none: the
// hosts' own interface takes nothing from the tasks of its host.
func (c *checker) gatewayOnLAN(at string, t *Template) {
	beside := func(a Attachment) bool {
		n, declared := c.stack.Networks[a.Network]
		return !declared || n.Driver != DriverMacvlan
	}
	if len(t.Networks) == 0 || slices.ContainsFunc(t.Networks, beside) {
		return
	}
	if slices.ContainsFunc(t.ExtraHosts, func(e string) bool { return strings.HasSuffix(e, "="+HostGateway) }) {
		c.add(at+".extra_hosts", "%s cannot be had: a task on macvlan networks alone does not reach its own host; add a network with another driver", HostGateway)
	}
}
