package scheduler

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"wherry.dev/spec"
)

// refuse returns the first reason why n cannot take a task of class c, from
// the most lasting reason to the least, or "".
func (c *Class) refuse(n *node) string {
	if c.Invalid != "" {
		return c.Invalid
	}
	if r := refuseState(n.Node); r != "" {
		return r
	}
	if r := c.refuseKind(n.Node); r != "" {
		return r
	}
	if n.Info.Format < c.Format {
		return "runs an older version of Wherry"
	}
	for _, name := range c.Parents {
		if !n.Info.HasParent(name) {
			return "has no interface " + name + " for a macvlan network now"
		}
	}
	if v := c.homeElsewhere(n); v != "" {
		return "does not hold volume " + v
	}
	return c.refuseLoad(n)
}

// homeElsewhere returns a volume of which n holds no instance, though others do,
// or "".
func (c *Class) homeElsewhere(n *node) string {
	for _, h := range c.Homes {
		if !slices.Contains(h.Nodes, n.ID) {
			return h.Volume
		}
	}
	return ""
}

func refuseState(n *spec.Node) string {
	switch {
	case n.State != spec.NodeReady:
		return "down"
	case n.Availability == spec.NodeDrain:
		return "drained"
	case n.Availability == spec.NodePaused:
		return "paused"
	}
	return ""
}

// refuseKind judges what a node is.
func (c *Class) refuseKind(n *spec.Node) string {
	for _, k := range c.Constraints {
		if !holds(k, n) {
			return "does not satisfy " + k.String()
		}
	}
	if c.Platform != "" && !runs(n, c.Platform) {
		return "cannot run " + c.Platform
	}
	return ""
}

// refuseLoad judges what is left on a node.
func (c *Class) refuseLoad(n *node) string {
	switch {
	case c.MaxPerNode > 0 && n.services[c.Service] >= c.MaxPerNode:
		return fmt.Sprintf("has %d of at most %d tasks of the service", n.services[c.Service], c.MaxPerNode)
	case c.CPUs > 0 && n.cpus+c.CPUs > n.Info.NanoCPUs:
		return "not enough CPUs"
	case c.Memory > 0 && n.memory+c.Memory > n.Info.Memory:
		return "not enough memory"
	}
	for _, kind := range slices.Sorted(maps.Keys(c.Generic)) {
		if n.generic[kind]+c.Generic[kind] > n.has(kind) {
			return "not enough of " + kind
		}
	}
	for _, p := range c.Ports {
		if n.takes(p) != nil {
			return fmt.Sprintf("port %d/%s is taken", p.Published, p.Protocol)
		}
	}
	return ""
}

// has is how many of a kind of thing the node has; what is no number is none.
func (n *node) has(kind string) int64 {
	count, _ := strconv.ParseInt(n.Labels[spec.ResourceLabel+kind], 10, 64)
	return count
}

// takes returns what is booked of a port already; nil when nothing is.
func (n *node) takes(p spec.Port) *taken {
	for i := range n.ports {
		if portsMeet(p, n.ports[i].Port) {
			return &n.ports[i]
		}
	}
	return nil
}

// portsMeet reports whether two ports of one node cannot both be had: a port
// without address takes all of them.
func portsMeet(p, q spec.Port) bool {
	return p.Published == q.Published && p.Protocol == q.Protocol &&
		(p.HostIP == q.HostIP || everywhere(p.HostIP) || everywhere(q.HostIP))
}

func everywhere(ip string) bool {
	a, err := netip.ParseAddr(ip)
	return err != nil || a.IsUnspecified()
}

// holds reports whether n satisfies k.
func holds(k spec.Constraint, n *spec.Node) bool {
	var equal bool
	if k.Key == "node.ip" {
		equal = sameAddress(n.Address, k.Value)
	} else {
		equal = property(n, k.Key) == k.Value
	}
	return equal == (k.Op == spec.ConstraintEqual)
}

// property returns the value of a key of constraints and spreads.
func property(n *spec.Node, key string) string {
	switch key {
	case "node.id":
		return string(n.ID)
	case "node.hostname":
		return n.Name
	case "node.role":
		return string(n.Role)
	case "node.ip":
		return n.Address
	case "node.platform.os":
		return n.Info.OS
	case "node.platform.arch":
		return n.Info.Arch
	}
	return n.Labels[strings.TrimPrefix(key, spec.NodeLabelPrefix)]
}

// sameAddress reports whether the address, which may carry a port, is the
// wanted one or inside the wanted prefix.
func sameAddress(address, want string) bool {
	a, err := netip.ParseAddr(address)
	if err != nil {
		ap, err := netip.ParseAddrPort(address)
		if err != nil {
			return false
		}
		a = ap.Addr()
	}
	if p, err := netip.ParsePrefix(want); err == nil {
		return p.Contains(a)
	}
	w, err := netip.ParseAddr(want)
	return err == nil && w == a
}

// runs reports whether n runs images of the platform "os/arch[/variant]". The
// variant is left to the node, which knows its processor.
func runs(n *spec.Node, platform string) bool {
	os, rest, _ := strings.Cut(platform, "/")
	arch, _, _ := strings.Cut(rest, "/")
	if os != n.Info.OS {
		return false
	}
	return arch == "" || goArch(arch) == goArch(n.Info.Arch)
}

// goArch maps the kernel's names of architectures to those of images.
func goArch(a string) string {
	switch a {
	case "x86_64":
		return "amd64"
	case "aarch64":
		return "arm64"
	}
	return a
}
