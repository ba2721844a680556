package reconciler

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// round makes one plan of the newest state and applies it.
func (c *cluster) round() {
	c.t.Helper()
	p := Plan(c.store.Snapshot(), c.now)
	for i, err := range c.apply(store.Command{ApplyPlan: &store.ApplyPlan{Epoch: 1, Parts: p.Parts}}).Parts {
		if err != nil {
			c.t.Fatalf("part %s: %v", p.Parts[i].Key, err)
		}
	}
}

// tellAll reports one state of all tasks that are not over.
func (c *cluster) tellAll(state spec.TaskState) {
	c.t.Helper()
	reports := map[spec.NodeID]*spec.Report{}
	for _, t := range c.store.Snapshot().Tasks() {
		if t.Node == "" || t.Status.State.Terminal() || state.Terminal() && t.Desired == spec.DesiredRunning {
			continue
		}
		if reports[t.Node] == nil {
			reports[t.Node] = &spec.Report{Node: t.Node}
		}
		reports[t.Node].Tasks = append(reports[t.Node].Tasks, spec.TaskReport{Task: t.ID, Status: spec.TaskStatus{State: state, Since: c.now, Started: 1}})
	}
	for _, r := range reports { // in any order
		c.must(store.Command{Reports: &store.Reports{Reports: []spec.Report{*r}}})
	}
}

// in returns the addresses that a network has given away, of both families, and
// fails when one is given twice or is not of the network.
func (c *cluster) in(network string) map[netip.Addr]bool {
	c.t.Helper()
	s := c.store.Snapshot()
	n := s.NetworkNamed(network)
	subnet, subnet6 := netip.MustParsePrefix(n.Subnet), netip.Prefix{}
	if n.Subnet6 != "" {
		subnet6 = netip.MustParsePrefix(n.Subnet6)
	}
	out := map[netip.Addr]bool{}
	add := func(a netip.Addr) {
		if !subnet.Contains(a) && !subnet6.Contains(a) || out[a] || a.String() == n.Gateway || a.String() == n.Gateway6 {
			c.t.Fatalf("%v is given on network %s with %v and %v, twice: %t", a, network, subnet, subnet6, out[a])
		}
		out[a] = true
	}
	for _, t := range s.TasksAt(n.ID) {
		for _, a := range t.Addresses {
			for _, six := range []bool{false, true} {
				if ip, ok := ipOf(a, six); ok && a.Network == n.ID && s.HoldsAddresses(t) {
					add(ip)
				}
			}
		}
	}
	for _, svc := range s.ServicesAt(n.ID) {
		for _, six := range []bool{false, true} {
			if ip, ok := vipOn(svc, n.ID, six); ok {
				add(ip)
			}
		}
	}
	return out
}

// TestFilledAndEmptied: a /26 is filled to its last address and emptied again, a
// thousand times, and nothing of it is lost.
func TestFilledAndEmptied(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	for i := range 4 {
		c.addNode(fmt.Sprint("n", i))
	}
	// 61 addresses, one of which is kept, one virtual, and one asked for.
	c.files["s"] = []byte(`{"name": "s", "networks": {"default": {"driver": "overlay", "subnet": "10.9.0.0/26", "reserved": ["10.9.0.9"], "ipv6": {}}}, "services": {
		"one": {"mode": "replicated", "endpoint_mode": "dnsrr", "template": {"image": "a", "restart": {"condition": "any"}, "networks": [{"network": "default", "ip": "10.9.0.8"}]}},
		"web": {"mode": "replicated", "replicas": 1, "template": {"image": "a", "restart": {"condition": "any"}, "networks": [{"network": "default"}]}}}}`)
	c.do("put s")
	c.round()
	scale := func(web, one int) {
		c.must(store.Command{ScaleService: &store.ScaleService{Stack: "s", Service: "web", Replicas: web}})
		c.must(store.Command{ScaleService: &store.ScaleService{Stack: "s", Service: "one", Replicas: one}})
	}
	times := 1000
	if testing.Short() {
		times = 50
	}
	for i := range times {
		scale(59, 1)
		c.round()
		four := 0
		for a := range c.in("s_default") {
			if a.Is4() {
				four++
			}
		}
		full := c.store.Snapshot().TasksOf("s", "web")
		if last := full[len(full)-1]; four != 60 || last.Status.State != spec.TaskPending || last.Status.Reason != "network s_default has no free address: all of 10.9.0.0/26 are in use" {
			t.Fatalf("time %d: %d addresses are in use, and the last of %d tasks is %s: %s", i, four, len(full), last.Status.State, last.Status.Reason)
		}
		scale(0, 0)
		c.round()
		c.tellAll(spec.TaskStopped)
		c.round()
		if left := c.in("s_default"); len(left) != 2 || len(c.store.Snapshot().Tasks()) != 0 {
			t.Fatalf("time %d: %v and %d tasks are left", i, left, len(c.store.Snapshot().Tasks()))
		}
	}
}

// TestAddressesRest: an address comes back only when all others that are free
// have been used since.
func TestAddressesRest(t *testing.T) {
	c := newCluster(t)
	c.addNode("n1")
	c.files["s"] = []byte(`{"name": "s", "networks": {"default": {"driver": "overlay", "subnet": "10.9.0.0/26", "ipv6": {"subnet": "fd09::/122"}}}, "services": {
		"web": {"mode": "replicated", "replicas": 8, "template": {"image": "a", "restart": {"condition": "any"}, "networks": [{"network": "default"}]}}}}`)
	c.do("put s")
	c.round()
	c.tellAll(spec.TaskRunning)
	given := map[string]int{} // when an address was given last
	made := 0
	for i := range 500 {
		c.now = c.now.Add(time.Hour) // nothing backs off
		tasks := c.store.Snapshot().TasksOf("s", "web")
		old := tasks[slices.IndexFunc(tasks, func(t *spec.Task) bool { return t.Slot == i%8+1 && !t.Status.State.Terminal() })]
		c.tell(old, spec.TaskStatus{State: spec.TaskFailed, Since: c.now, Started: 1, Attempts: []spec.Attempt{{Number: 1, Started: c.now.Add(-time.Hour), Ended: c.now, ExitCode: 1}}})
		c.round()
		all := c.store.Snapshot().TasksOf("s", "web")
		fresh := all[len(all)-1]
		if fresh.Status.State != spec.TaskAssigned {
			t.Fatalf("after %d: %+v", i, fresh)
		}
		c.tellAll(spec.TaskRunning)
		made++
		const others = 61 - 8 - 1 - 1 // that are free, without those of tasks, the virtual one, and itself
		for _, text := range []string{fresh.Addresses[0].IP, fresh.Addresses[0].IP6} {
			if was, again := given[text]; again && made-was < others {
				t.Fatalf("%s comes back after %d others, of %d that were free", text, made-was, others)
			}
			given[text] = made
		}
	}
	if len(given) < 100 {
		t.Errorf("%d addresses were used", len(given))
	}
}

// TestManyStacks: a hundred stacks with networks of all kinds come at once, go,
// and come again. No two networks overlap, nor what the hosts use, and a subnet
// is not used again at once.
func TestManyStacks(t *testing.T) {
	c := newCluster(t)
	c.addNode("n1", "subnets=10.200.4.0/22,fd00::/16")
	c.addNode("n2")
	outside := netip.MustParsePrefix("10.200.4.0/22")
	was := map[string]bool{}
	for life := range 3 {
		for i := range 100 {
			c.files["s"] = fmt.Appendf(nil, `{"name": "s%d", "networks": {"default": {"driver": "overlay", "ipv6": {}}, "back": {"driver": "overlay", "internal": true}, "own": {"driver": "bridge", "subnet": "10.99.%d.0/24"}}, "services": {
				"web": {"mode": "replicated", "replicas": 2, "template": {"image": "a", "restart": {"condition": "any"}, "networks": [{"network": "default"}, {"network": "back"}, {"network": "own"}]}}}}`, i, i)
			c.must(store.Command{PutStack: &store.PutStack{Stack: c.stack("s")}})
		}
		c.round()
		if p := Plan(c.store.Snapshot(), c.now); !p.Empty() {
			t.Fatalf("life %d: there is more to do: %+v", life, p)
		}
		var all []netip.Prefix
		now := map[string]bool{}
		vnis := map[uint32]bool{}
		for _, n := range c.store.Snapshot().Networks() {
			for _, text := range []string{n.Subnet, n.Subnet6} {
				if text == "" && n.Spec.IPv6 == nil {
					continue
				}
				p := netip.MustParsePrefix(text)
				if slices.ContainsFunc(all, p.Overlaps) || p.Overlaps(outside) || n.Spec.Subnet == "" && was[text] {
					t.Fatalf("life %d: network %s has %s, which another one has or had", life, n.Name, p)
				}
				all, now[text] = append(all, p), true
			}
			if vnis[n.VNI] {
				t.Fatalf("life %d: the VNI %d is given twice", life, n.VNI)
			}
			vnis[n.VNI] = true
			c.in(n.Name)
		}
		if len(all) != 400 || len(c.store.Snapshot().Tasks()) != 200 {
			t.Fatalf("life %d: %d subnets and %d tasks", life, len(all), len(c.store.Snapshot().Tasks()))
		}
		was = now
		for i := range 100 {
			c.must(store.Command{RemoveStack: &store.RemoveStack{Name: fmt.Sprint("s", i)}})
		}
		c.round()
		c.tellAll(spec.TaskStopped)
		c.round()
		if s := c.store.Snapshot(); len(s.Networks())+len(s.Tasks()) > 0 {
			t.Fatalf("life %d: %d networks and %d tasks are left", life, len(s.Networks()), len(s.Tasks()))
		}
	}
}
