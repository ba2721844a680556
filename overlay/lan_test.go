//go:build linux

package overlay

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"

	"wherry.dev/spec"
)

func lanNetwork(id spec.NetworkID, subnet, gateway, parent string) spec.HostNetwork {
	return spec.HostNetwork{
		Network: spec.Network{ID: id, Subnet: subnet, Gateway: gateway, Spec: spec.NetworkSpec{Driver: spec.DriverMacvlan, Parent: parent}},
		Clock:   spec.Clock{Incarnation: 1, Index: 1},
	}
}

func TestParentsOf(t *testing.T) {
	const up, lower, down, unknown = netlink.OperUp, netlink.OperLowerLayerDown, netlink.OperDown, netlink.OperUnknown
	index := 0
	attrs := func(name string, group uint32, state netlink.LinkOperState, master int, flags net.Flags) netlink.LinkAttrs {
		index++
		return netlink.LinkAttrs{Index: index, Name: name, EncapType: "ether", Group: group, OperState: state, MasterIndex: master, Flags: flags}
	}
	links := []netlink.Link{
		&netlink.Bridge{LinkAttrs: attrs("br0", 0, up, 0, net.FlagUp)},
		&netlink.Vrf{LinkAttrs: attrs("red", 0, up, 0, net.FlagUp)},
		&netlink.Device{LinkAttrs: attrs("eth0", 0, up, 0, net.FlagUp)},
		&netlink.Device{LinkAttrs: attrs("eth1", 0, unknown, 1, net.FlagUp)},
		&netlink.Device{LinkAttrs: attrs("eth2", 0, up, 2, net.FlagUp)},
		&netlink.Device{LinkAttrs: attrs("eth3", 0, down, 0, net.FlagUp)},
		&netlink.Vlan{LinkAttrs: attrs("eth3.7", 0, lower, 0, net.FlagUp)},
		&netlink.Device{LinkAttrs: attrs("eth4", 0, down, 1, 0)},
		&netlink.Bridge{LinkAttrs: attrs("wbr-1-1", 9, up, 0, net.FlagUp)},
		&netlink.Device{LinkAttrs: attrs("lo", 0, unknown, 0, net.FlagUp|net.FlagLoopback)},
		&netlink.Wireguard{LinkAttrs: attrs("wg0", 0, unknown, 0, net.FlagUp)},
	}
	links[len(links)-1].Attrs().EncapType = "none"
	want := map[string]Parent{
		"br0": {Up: true}, "red": {Up: true}, "eth0": {Up: true}, "eth2": {Up: true},
		"eth1": {true, "it is a part of br0: name that one", true},
		"eth3": {true, "it has no carrier", false}, "eth3.7": {true, "it has no carrier", false}, "eth4": {false, "it is down", false},
		"lo": {true, "it is no Ethernet interface", false}, "wg0": {true, "it is no Ethernet interface", false},
	}
	if diff := cmp.Diff(want, parentsOf(links, func(a *netlink.LinkAttrs) bool { return a.Group == 9 })); diff != "" {
		t.Error(diff)
	}
}

func TestParentsText(t *testing.T) {
	if got := parentsText([]string{"eth1", "br0", "eth0.7"}); got != "br0 eth0.7 eth1" {
		t.Errorf("got %q", got)
	}
	var many []string
	for i := range maxParents + 1 {
		many = append(many, fmt.Sprintf("eth%d", i))
	}
	if got := parentsText(many[1:]); len(strings.Fields(got)) != maxParents {
		t.Errorf("got %q", got)
	}
	if got := parentsText(many); got != "" {
		t.Errorf("got %q: who is not among them is taken to be missing", got)
	}
}

func TestLANProblem(t *testing.T) {
	parents := map[string]Parent{"eth0": {Up: true}, "eth1": {true, "it is a part of br0: name that one", true}, "eth2": {false, "it is down", false}, "eth0.9": {false, "it is down", false}}
	for parent, want := range map[string]string{
		"eth0": "", "eth0.7": "", "eth1.7": "",
		"eth1":   "network 1-1: interface eth1: it is a part of br0: name that one",
		"eth2":   "network 1-1: interface eth2: it is down",
		"eth2.7": "network 1-1: interface eth2: it is down",
		"eth0.9": "network 1-1: interface eth0.9: it is down",
		"eth3":   "network 1-1: interface eth3: this host has none of that name",
		"eth3.7": "network 1-1: interface eth3: this host has none of that name",
	} {
		d := lanNetwork("1-1", "192.168.7.0/24", "192.168.7.1", parent)
		got := ""
		if err := (Input{Parents: parents}).lanProblem(d); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%s: %q, want %q", parent, got, want)
		}
		if err := (Input{}).lanProblem(d); err != nil {
			t.Errorf("%s: %v, though nothing is known", parent, err)
		}
	}
}

// A VLAN interface is there before the first task on it, and goes with the
// network; what is missing is named, and holds up nobody else.
func TestLANHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, t.TempDir())
		b.k.parents = map[string]Parent{"eth0": {Up: true}}
		defer b.run(t)()
		vlan := lanNetwork("1-1", "192.168.7.0/24", "192.168.7.1", "eth0.7")
		none := lanNetwork("1-2", "192.168.8.0/24", "192.168.8.1", "eth9")
		plain := spec.HostNetwork{Network: spec.Network{ID: "1-3", Subnet: "10.9.3.0/24", Gateway: "10.9.3.1"}, Clock: spec.Clock{Incarnation: 1, Index: 1}}
		b.Set([]spec.HostNetwork{vlan, none, plain})
		attach := func(id spec.TaskID, addrs ...string) error {
			s := spec.Sandbox{Task: id, Name: "shop.web.1"}
			for _, a := range addrs {
				network, ip, _ := strings.Cut(a, "=")
				s.Addresses = append(s.Addresses, spec.Address{Network: spec.NetworkID(network), IP: ip, MAC: "02:58:00:00:00:01"})
			}
			_, err := b.Attach(t.Context(), s)
			return err
		}
		if err := attach("1-10", "1-1=192.168.7.9/24", "1-3=10.9.3.2/24"); err != nil { // before any pass
			t.Fatal(err)
		}
		synctest.Wait()
		st := b.Status()
		if len(st.Errors) != 1 || st.Errors[0] != "network 1-2: interface eth9: this host has none of that name" {
			t.Errorf("errors %q", st.Errors)
		}
		_, bad := st.Applied["1-2"]
		if st.Applied["1-1"] != vlan.Clock || st.Applied["1-3"] != plain.Clock || bad {
			t.Errorf("applied %v", st.Applied)
		}
		if got := b.k.st.Links[LinkID{Name: "eth0.7"}]; got.Kind != kindVLAN || got.VLAN != 7 || got.Parent != "eth0" || !got.Up {
			t.Errorf("eth0.7 is %s", got)
		}
		if got := b.k.st.Links[LinkID{"1-10", "eth0"}]; got.Kind != kindMacvlan || got.Parent != "eth0.7" {
			t.Errorf("eth0 of the task is %s", got)
		}
		// That one network has a problem does not keep repairs from being counted.
		b.k.damage(func(s State) { s.dropLinks(func(l LinkID) bool { return l.Name == "wbr-1-3" }) }, false)
		before := b.Status().Repairs
		time.Sleep(4 * time.Second)
		if n := b.Status().Repairs - before; n == 0 {
			t.Error("the bridge came back, and no repair is counted")
		}
		if list, err := b.Gateways("1-1"); err != nil || len(list) > 0 {
			t.Errorf("gateways %v, %v", list, err)
		}
		if err := attach("1-11", "1-2=192.168.8.9/24"); spec.ErrorClass(err) != "conflict" || err.Error() != "attach task 1-11: interface eth9: this host has none of that name" {
			t.Errorf("attach: %v", err)
		}
		if err := b.Detach(t.Context(), "1-11"); err != nil {
			t.Fatal(err)
		}

		// The task's device goes and comes back with the interface.
		b.k.damage(func(s State) {
			s.dropLinks(func(l LinkID) bool { return l.Name == "eth0.7" || l == LinkID{"1-10", "eth0"} })
			b.k.parents = map[string]Parent{}
		}, false)
		time.Sleep(4 * time.Second)
		b.k.take()
		time.Sleep(4 * time.Second)
		want := []string{"network 1-1: interface eth0: this host has none of that name", "network 1-2: interface eth9: this host has none of that name"}
		if ops := b.k.take(); len(ops) > 0 || !slices.Equal(b.Status().Errors, want) {
			t.Errorf("without the interface: %q, errors %q", ops, b.Status().Errors)
		}
		b.k.damage(func(State) { b.k.parents = map[string]Parent{"eth0": {Up: true}} }, false)
		time.Sleep(4 * time.Second)
		routes := b.k.st.Routes
		if !routes[Route{Link: LinkID{"1-10", "eth0"}, Dst: "0.0.0.0/0", Via: "192.168.7.1"}] || routes[Route{Link: LinkID{"1-10", "eth1"}, Dst: "0.0.0.0/0", Via: "10.9.3.1"}] {
			t.Errorf("routes %v", routes)
		}

		b.Set([]spec.HostNetwork{plain})
		synctest.Wait()
		if _, ok := b.k.st.Links[LinkID{Name: "eth0.7"}]; !ok {
			t.Error("eth0.7 is gone, and a task is on it")
		}
		if err := b.Detach(context.Background(), "1-10"); err != nil {
			t.Fatal(err)
		}
		b.Set([]spec.HostNetwork{plain})
		synctest.Wait()
		if l, ok := b.k.st.Links[LinkID{Name: "eth0.7"}]; ok {
			t.Errorf("left: %s", l)
		}
	})
}
