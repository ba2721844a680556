package overlay

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// TestRouteEvents: what is of ours, and what changes the way to other hosts,
// leads to a look; what else a host's links tell of themselves does not.
func TestRouteEvents(t *testing.T) {
	const ours, carrier, other = 7, 2, 3
	k := &linuxKernel{}
	link := func(index int, attrs ...*nl.RtAttr) []byte {
		m := nl.NewIfInfomsg(unix.AF_UNSPEC)
		m.Index = int32(index)
		b := m.Serialize()
		for _, a := range attrs {
			b = append(b, a.Serialize()...)
		}
		return b
	}
	mtu := func(n uint32) *nl.RtAttr { return nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(n)) }
	address := func(index int, ip string) []byte {
		a := netip.MustParseAddr(ip)
		m := nl.NewIfAddrmsg(unix.AF_INET)
		m.Index = uint32(index)
		return append(m.Serialize(), nl.NewRtAttr(unix.IFA_LOCAL, a.AsSlice()).Serialize()...)
	}
	tests := []struct {
		name string
		typ  uint16
		data []byte
		hit  bool
	}{
		{"a link of ours", unix.RTM_NEWLINK, link(ours), true},
		{"an address of ours", unix.RTM_NEWADDR, address(ours, "10.9.1.1"), true},
		{"another link", unix.RTM_NEWLINK, link(other, mtu(1400)), false},
		{"another link goes", unix.RTM_DELLINK, link(other), false},
		{"another address", unix.RTM_NEWADDR, address(carrier, "198.18.0.99"), false},
		{"the carrier says what is known", unix.RTM_NEWLINK, link(carrier, mtu(1500)), false},
		{"the carrier says nothing of it", unix.RTM_NEWLINK, link(carrier), false},
		{"the carrier carries less", unix.RTM_NEWLINK, link(carrier, mtu(1400)), true},
		{"the carrier goes", unix.RTM_DELLINK, link(carrier, mtu(1500)), true},
		{"the node's address goes", unix.RTM_DELADDR, address(carrier, "198.18.0.11"), true},
		{"the node's address comes elsewhere", unix.RTM_NEWADDR, address(other, "198.18.0.11"), true},
		{"the node's IPv6 address", unix.RTM_DELADDR, address(carrier, "fd00::11"), false},
		{"cut off", unix.RTM_NEWLINK, link(carrier)[:9], true},
	}
	for _, tt := range tests {
		if k.ours.Store(nil); k.routeEvent(tt.typ, tt.data) {
			t.Errorf("%s, before the first look: a look", tt.name)
		}
		k.ours.Store(&landmarks{links: map[int]bool{ours: true}, underlay: netip.MustParseAddr("198.18.0.11"), carrier: carrier, mtu: 1500})
		if got := k.routeEvent(tt.typ, tt.data); got != tt.hit {
			t.Errorf("%s: %v", tt.name, got)
		}
		k.ours.Store(&landmarks{links: map[int]bool{ours: true}})
		if got := k.routeEvent(tt.typ, tt.data); got && tt.name != "a link of ours" && tt.name != "an address of ours" {
			t.Errorf("%s, with an unknown underlay: a look", tt.name)
		}
	}
}
