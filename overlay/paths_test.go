//go:build linux

package overlay

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"wherry.dev/spec"
)

// TestPaths: the ways are those to hosts that live, with room for the largest
// packet of any common network and its tunnel.
func TestPaths(t *testing.T) {
	network := func(id string, driver spec.NetworkDriver, mtu int, hosts ...spec.NetworkHost) spec.HostNetwork {
		return spec.HostNetwork{HostNumber: 1, MTU: mtu, Hosts: hosts,
			Network: spec.Network{ID: spec.NetworkID(id), Subnet: "10.9.1.0/24", Gateway: "10.9.1.1", VNI: 4097, Spec: spec.NetworkSpec{Driver: driver}}}
	}
	two := spec.NetworkHost{Node: "b", Number: 2, Address: "198.18.0.12"}
	six := spec.NetworkHost{Node: "f", Number: 6, Address: "fd00::12"}
	tests := []struct {
		name     string
		underlay string
		nets     []spec.HostNetwork
		want     string
	}{
		{"no network", "198.18.0.11:4477", nil, ""},
		{"one", "198.18.0.11:4477", []spec.HostNetwork{network("1-1", spec.DriverOverlay, 1400, two)}, "b 198.18.0.12 1400"},
		{"the MTU is not known", "198.18.0.11:4477", []spec.HostNetwork{network("1-1", spec.DriverOverlay, 0, two)}, "b 198.18.0.12 1500"},
		{"the larger of two", "198.18.0.11:4477", []spec.HostNetwork{network("1-1", spec.DriverOverlay, 1400, two), network("1-2", spec.DriverOverlay, 9000, two)}, "b 198.18.0.12 9000"},
		{"less than is possible", "198.18.0.11:4477", []spec.HostNetwork{network("1-1", spec.DriverOverlay, 1000, two)}, "b 198.18.0.12 1280"},
		{"local to the host", "198.18.0.11:4477", []spec.HostNetwork{network("1-1", spec.DriverBridge, 1500, two)}, ""},
		{"a dead host", "198.18.0.11:4477", []spec.HostNetwork{network("1-1", spec.DriverOverlay, 1500, spec.NetworkHost{Node: "b", Number: 2, Address: "198.18.0.12", Down: true})}, ""},
		{"of another family", "198.18.0.11:4477", []spec.HostNetwork{network("1-1", spec.DriverOverlay, 1500, two, six)}, "b 198.18.0.12 1500"},
		{"IPv6", "[fd00::11]:4477", []spec.HostNetwork{network("1-1", spec.DriverOverlay, 1500, two, six)}, "f fd00::12 1500"},
		{"nothing is known of this host", ":0", []spec.HostNetwork{network("1-1", spec.DriverOverlay, 1500, two)}, ""},
	}
	for _, tt := range tests {
		at, _ := netip.ParseAddrPort(tt.underlay)
		var got []string
		for _, p := range (Input{Node: testNode, Networks: tt.nets, Underlay: at}).paths() {
			got = append(got, fmt.Sprint(p.Node, " ", p.Address, " ", p.Size))
		}
		if s := strings.Join(got, ", "); s != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, s, tt.want)
		}
	}
}

func TestBoundMTU(t *testing.T) {
	for _, tt := range [][3]int{{0, 1500, 1500}, {0, 0, 0}, {1400, 1500, 1400}, {1400, 1300, 1300}, {1400, 0, 1400}} {
		if got := (Config{MTU: tt[0]}).bound(tt[1]); got != tt[2] {
			t.Errorf("bound by %d, %d is %d", tt[0], tt[1], got)
		}
	}
}
