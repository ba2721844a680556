//go:build e2e

package overlay

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"wherry.dev/spec"
)

// lanFleet is two hosts whose tasks are on the network of the hosts themselves,
// with a machine outside that is the router of that network.
func lanFleet(t *testing.T, parent string) (f *fleet, outside *member) {
	f = newFleet(t, 2, false)
	f.network = spec.Network{ID: "1-1", Subnet: "198.18.0.0/24", Gateway: "198.18.0.20", VNI: 4097, Spec: spec.NetworkSpec{Driver: spec.DriverMacvlan, Parent: parent}}
	outside = f.join(10)
	t.Cleanup(func() {
		outside.sh("ip link del up0") // the namespace goes when the kernel has the time
		if err := f.spaces.remove("host-10"); err != nil {
			t.Error(err)
		}
	})
	outside.sh("ip addr add 192.0.2.99/32 dev lo")
	return f, outside
}

func (m *member) links() string {
	return strings.Join(strings.Fields(m.sh("ip -o link | cut -d: -f2 | cut -d@ -f1 | sort")), " ")
}

// Tasks on a network of the hosts are machines there: who is on it reaches them
// at their own addresses, and they reach all others, but their own host.
func TestLAN(t *testing.T) {
	f, outside := lanFleet(t, "up0")
	one, two := f.members[0], f.members[1]
	f.task(0, "1-10", "198.18.0.130")
	f.task(0, "1-11", "198.18.0.131")
	f.task(1, "2-10", "198.18.0.132")
	f.set()
	f.attachAll()
	f.serveAll()
	f.serve(outside.ns, "tcp", "192.0.2.99:80", "outside")
	a, b, c := f.tasks[0], f.tasks[1], f.tasks[2]

	for _, to := range f.tasks {
		f.want(outside.ns, "tcp", to.ip()+":80", to.ip()+" 198.18.0.20")
		f.want(outside.ns, "udp", to.ip()+":80", to.ip()+" 198.18.0.20")
		f.want(to.ns, "tcp", "192.0.2.99:80", "outside "+to.ip()) // by its router, without a translation
	}
	f.want(a.ns, "tcp", b.ip()+":80", b.ip()+" "+a.ip())
	f.want(a.ns, "tcp", c.ip()+":80", c.ip()+" "+a.ip())
	f.want(c.ns, "tcp", a.ip()+":80", a.ip()+" "+c.ip())
	f.want(two.ns, "tcp", a.ip()+":80", a.ip()+" "+two.underlay())
	if err := ping(one.ns, a.ip(), 100); err == nil {
		t.Error("a host reaches its own task: the documentation says that it does not")
	}

	for _, m := range f.members {
		if got := m.links(); got != "lo up0" {
			t.Errorf("host %d has the links %s", m.number, got)
		}
		if got := m.sh("nft list ruleset"); got != "" {
			t.Errorf("host %d has rules:\n%s", m.number, got)
		}
		if r := m.do(order{Converge: true}); len(r.Status.Errors) > 0 {
			t.Errorf("host %d: %q", m.number, r.Status.Errors)
		}
		if r := m.do(order{Converge: true}); len(r.Ops) > 0 || r.Status.Repairs > 0 {
			t.Errorf("host %d: %q", m.number, r.Ops)
		}
	}

	// A daemon that starts anew finds all as it should be.
	one.quit(false)
	one.start()
	one.do(order{Set: f.documents(one)})
	f.applied(one)
	if r := one.do(order{Converge: true}); len(r.Ops) > 0 {
		t.Errorf("after a restart: %q", r.Ops)
	}
	f.want(outside.ns, "tcp", a.ip()+":80", a.ip()+" 198.18.0.20")

	// What is taken from a task comes back.
	f.inside(b.ns, "ip link del eth0")
	f.within(10*time.Second, "the device is back", func() error {
		got, err := f.ask(outside.ns, "tcp", b.ip()+":80")
		if err == nil && got != b.ip()+" 198.18.0.20" {
			err = errors.New(got)
		}
		return err
	})
}

// An address that moves to another host is found there at once, though the
// switch has seen its MAC elsewhere, and though its namespace is still there.
func TestLANMoves(t *testing.T) {
	f, outside := lanFleet(t, "up0")
	f.task(0, "1-10", "198.18.0.130")
	f.set()
	f.attachAll()
	f.serve(f.tasks[0].ns, "tcp", "0.0.0.0:80", "here")
	for i := range 4 {
		from, to := f.members[i%2], f.members[(i+1)%2]
		f.within(5*time.Second, "it is reached", func() error { _, err := f.ask(outside.ns, "tcp", "198.18.0.130:80"); return err })
		old := f.tasks[0]
		from.do(order{Detach: old.Task})
		f.within(5*time.Second, "nobody answers", func() error {
			if ping(outside.ns, "198.18.0.130", 100) == nil {
				return errors.New("somebody does")
			}
			return nil
		})
		f.tasks = nil
		f.task((i+1)%2, spec.TaskID(fmt.Sprintf("%d-%d", to.number, 20+i)), "198.18.0.130")
		f.set()
		f.attachAll()
		f.serve(f.tasks[0].ns, "tcp", "0.0.0.0:80", "here")
		start := time.Now()
		if got, err := f.ask(outside.ns, "tcp", "198.18.0.130:80"); err != nil || got != "here 198.18.0.20" || time.Since(start) > 500*time.Millisecond {
			t.Errorf("%d: %q, %v after %v", i, got, err, time.Since(start))
		}
	}
}

// A host whose interface is missing, down or a part of another says so, and
// takes no task; other networks have nothing to do with it.
func TestLANWithoutInterface(t *testing.T) {
	f, outside := lanFleet(t, "up0")
	one, two := f.members[0], f.members[1]
	lan := func(id spec.NetworkID, subnet, parent string) spec.HostNetwork {
		gateway := netip.MustParsePrefix(subnet).Addr().Next().String()
		return spec.HostNetwork{Clock: spec.Clock{Incarnation: 1, Index: 1}, HostNumber: 1, Network: spec.Network{ID: id, Subnet: subnet, Gateway: gateway, Spec: spec.NetworkSpec{Driver: spec.DriverMacvlan, Parent: parent}}}
	}
	one.sh("ip link add br0 type bridge; ip link add x0 type veth peer name x1; ip link set x0 master br0 up; ip link add d0 type veth peer name d1; ip link set x1 up")
	docs := append(f.documents(one), lan("1-2", "10.9.2.0/24", "none0"), lan("1-3", "10.9.3.0/24", "x0"), lan("1-4", "10.9.4.0/24", "d0"), lan("1-5", "10.9.5.0/24", "d0.7"), lan("1-6", "10.9.6.0/24", "none0.7"))
	want := map[spec.NetworkID]string{
		"1-2": "interface none0: this host has none of that name",
		"1-3": "interface x0: it is a part of br0: name that one",
		"1-4": "interface d0: it is down",
		"1-5": "interface d0: it is down",
		"1-6": "interface none0: this host has none of that name",
	}
	one.do(order{Set: docs})
	f.within(5*time.Second, "the others are as they should be", func() error {
		st := one.do(order{}).Status
		if st.Applied["1-1"] != docs[0].Clock || len(st.Applied) != 1 {
			return fmt.Errorf("applied %v, errors %q", st.Applied, st.Errors)
		}
		return nil
	})
	for id, why := range want {
		if errs := one.do(order{}).Status.Errors; !slices.Contains(errs, "network "+string(id)+": "+why) {
			t.Errorf("network %s: errors %q", id, errs)
		}
		box := sandbox(spec.TaskID("1"+id), "shop.web.1", string(id)+"=10.9.7.9/24")
		if r := one.try(order{Attach: &box}); r.Err != fmt.Sprintf("attach task %s: %s", box.Task, why) {
			t.Errorf("network %s: %s", id, r.Err)
		}
		one.do(order{Detach: box.Task})
	}
	one.sh("ip link set d0 up; ip link set d1 up")
	box := sandbox("1-21", "shop.web.1", "1-4=10.9.4.9/24")
	ns := one.do(order{Attach: &box}).Path
	if got := f.inside(ns, "ip -o -4 addr show eth0; ip route"); !strings.Contains(got, "10.9.4.9/24") || !strings.Contains(got, "default via 10.9.4.1 dev eth0") {
		t.Error(got)
	}

	// The interface goes while a task is on it, and comes back.
	f.task(1, "2-10", "198.18.0.132")
	f.set()
	f.attachAll()
	f.serve(f.tasks[0].ns, "tcp", "0.0.0.0:80", "here")
	f.want(outside.ns, "tcp", "198.18.0.132:80", "here 198.18.0.20")
	two.sh("ip link set up0 name other0 2>/dev/null || { ip link set up0 down; ip link set up0 name other0; }")
	f.within(10*time.Second, "its absence is told", func() error {
		if st := two.do(order{}).Status; len(st.Errors) != 1 || st.Errors[0] != "network 1-1: interface up0: this host has none of that name" {
			return fmt.Errorf("errors %q", st.Errors)
		}
		return nil
	})
	two.sh("ip link set other0 down; ip link set other0 name up0; ip link set up0 up")
	f.clock++
	two.do(order{Set: f.documents(two)})
	f.applied(two)
	f.want(outside.ns, "tcp", "198.18.0.132:80", "here 198.18.0.20")
}

// A VLAN interface comes with its network and goes with it, and the host itself
// is not on that VLAN. Where the kernel has none, that is said.
func TestLANOnVLAN(t *testing.T) {
	f, outside := lanFleet(t, "up0.7")
	f.network.Subnet, f.network.Gateway = "10.9.1.0/24", "10.9.1.20"
	f.task(0, "1-10", "10.9.1.130")
	f.task(1, "2-10", "10.9.1.131")
	has := outside.sh("ip link add link up0 name up0.7 type vlan id 7 2>&1 || true") == ""
	f.clock++
	for i, m := range f.members {
		m.do(order{Set: f.documents(m)})
		if has {
			continue
		}
		r := m.try(order{Attach: &f.tasks[i].Sandbox})
		if want := fmt.Sprintf("attach task %s: interface up0.7: the kernel has no VLANs (module 8021q)", f.tasks[i].Task); r.Err != want {
			t.Errorf("got  %s\nwant %s", r.Err, want)
		}
	}
	if !has {
		t.Log("the kernel has no VLANs, and said so: the rest needs them")
		return
	}
	outside.sh("ip addr add 10.9.1.20/24 dev up0.7; ip link set up0.7 up; ip route add 198.18.0.11/32 dev up0.7")
	f.attachAll()
	f.serveAll()
	for _, to := range f.tasks {
		f.want(outside.ns, "tcp", to.ip()+":80", to.ip()+" 10.9.1.20")
	}
	f.want(f.tasks[0].ns, "tcp", f.tasks[1].ip()+":80", f.tasks[1].ip()+" "+f.tasks[0].ip())
	if err := ping(outside.ns, "198.18.0.11", 100); err == nil {
		t.Error("the host is on the VLAN as well")
	}
	for i, m := range f.members {
		m.do(order{Detach: f.tasks[i].Task})
		m.do(order{Set: []spec.HostNetwork{}})
		f.within(5*time.Second, "the VLAN interface is gone", func() error {
			if got := m.links(); got != "lo up0" {
				return errors.New(got)
			}
			return nil
		})
	}
}
