package overlay

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	"wherry.dev/spec"
)

// LeastMTU and MostMTU bound, in bytes, what carries a network between hosts.
const (
	LeastMTU = minMTU
	MostMTU  = maxMTU
)

// Path is the way to another host of this host's networks, and what they need
// of it.
type Path struct {
	Node spec.NodeID
	// Address of the host, as tunnels have it.
	Address netip.Addr
	// Size in bytes of the largest packet that a tunnel sends there, all headers
	// included. It must not be taken apart on the way.
	Size int
}

// paths are the ways to all hosts of the networks that are alive, by node.
func (in Input) paths() []Path {
	all := map[spec.NodeID]Path{}
	for _, n := range in.networks() {
		for _, h := range n.doc.Hosts {
			to, ok := n.hosts[h.Number]
			if !ok || h.Down {
				continue
			}
			size := n.mtu + vxlanOverhead4
			if to.Is6() {
				size = n.mtu + vxlanOverhead6
			}
			all[h.Node] = Path{h.Node, to, max(size, all[h.Node].Size)}
		}
	}
	return slices.SortedFunc(maps.Values(all), func(a, b Path) int { return strings.Compare(string(a.Node), string(b.Node)) })
}
