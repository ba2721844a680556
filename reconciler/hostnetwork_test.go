package reconciler

import (
	"fmt"
	"testing"

	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// crowd returns a cluster of 10 hosts with a stack "shop" of that many tasks on
// one network, and others that share nothing with it.
func crowd(tb testing.TB, tasks, others int) *cluster {
	c := newCluster(tb)
	for i := range 10 {
		c.addNode(fmt.Sprint("n", i), fmt.Sprintf("address=192.0.2.%d:4477", i+10), "mtu=1500", fmt.Sprintf("side=%d", i/5))
	}
	put := func(name string, replicas int, side string, ports ...spec.Port) {
		s := spec.Stack{Name: name, Networks: map[string]spec.NetworkSpec{"default": {Driver: spec.DriverOverlay, Pool: spec.Pool{Subnet: subnets[name]}}}, Services: map[string]spec.ServiceSpec{}}
		for i := range 10 {
			n := replicas / 10
			svc := spec.ServiceSpec{Mode: spec.Replicated, Replicas: &n, Ports: ports, Template: spec.Template{
				Image: "web:1", Restart: spec.Restart{Condition: spec.RestartAny},
				Networks: []spec.Attachment{{Network: "default", Aliases: []string{"www"}}},
			}}
			if side != "" {
				svc.Placement.Constraints = []string{"node.labels.side==" + side}
			}
			ports = nil
			s.Services[fmt.Sprint("web", i)] = svc
		}
		c.must(store.Command{PutStack: &store.PutStack{Stack: s}})
	}
	put("shop", tasks, "", spec.Port{Published: 80, Target: 80, Protocol: "tcp", Mode: spec.PublishIngress})
	for i := range others / 100 {
		put(fmt.Sprint("other", i), 100, "1")
	}
	for range 100 {
		p := Plan(c.store.Snapshot(), c.now)
		if p.Empty() {
			break
		}
		c.must(store.Command{ApplyPlan: &store.ApplyPlan{Epoch: 1, Parts: p.Parts}})
		for _, t := range c.store.Snapshot().Tasks() {
			if t.Node != "" && t.Status.State == spec.TaskAssigned {
				c.tell(t, spec.TaskStatus{State: spec.TaskRunning, Health: spec.HealthHealthy, Started: 1})
			}
		}
	}
	return c
}

// subnets are those of networks that are too large for one of the pool.
var subnets = map[string]string{"shop": "10.8.0.0/16"}

// BenchmarkHostNetworks: the documents of the networks of one of 10 hosts. What
// other nodes have on other networks must not cost anything, and ten times the
// ends ten times the time. The budget: 10 ms for 1,000 ends.
func BenchmarkHostNetworks(b *testing.B) {
	for _, size := range []struct{ tasks, others int }{{100, 0}, {1000, 0}, {1000, 5000}, {10_000, 0}} {
		b.Run(fmt.Sprintf("ends=%d/others=%d", size.tasks, size.others), func(b *testing.B) {
			c := crowd(b, size.tasks, size.others)
			snap := c.store.Snapshot()
			nets := HostNetworks(snap, nodeID("n0"))
			if len(nets) != 1 || len(nets[0].Hosts) != 9 || len(nets[0].Tasks)+len(nets[0].Remote) != size.tasks || len(snap.Tasks()) != size.tasks+size.others {
				b.Fatalf("%d networks, %d tasks", len(nets), len(snap.Tasks()))
			}
			b.ReportAllocs()
			for b.Loop() {
				HostNetworks(snap, nodeID("n0"))
			}
		})
	}
}

// TestDocumentsTellThePort: all documents have the cluster's port, and none the
// usual one.
func TestDocumentsTellThePort(t *testing.T) {
	for port, want := range map[uint16]uint16{0: 0, spec.VXLANPort: 0, 4789: 4789} {
		c := emptyCluster(t)
		c.must(store.Command{Bootstrap: &store.Bootstrap{ClusterID: "test", Incarnation: 1, Format: store.Format, VXLANPort: port}})
		c.must(store.Command{PutNode: &store.PutNode{ID: nodeID("n1"), Name: "n1", Role: spec.RoleManager, Address: "10.0.0.1:4477"}})
		c.must(store.Command{PutStack: &store.PutStack{Stack: spec.Stack{Name: "shop",
			Networks: map[string]spec.NetworkSpec{"default": {Driver: spec.DriverOverlay}},
			Services: map[string]spec.ServiceSpec{"web": {Mode: spec.Global, Template: spec.Template{Image: "web:1", Networks: []spec.Attachment{{Network: "default"}}}}}}}})
		for range 3 {
			c.must(store.Command{ApplyPlan: &store.ApplyPlan{Epoch: 1, Parts: Plan(c.store.Snapshot(), c.now).Parts}})
		}
		docs := HostNetworks(c.store.Snapshot(), nodeID("n1"))
		if len(docs) != 1 || docs[0].VXLANPort != want {
			t.Errorf("port %d: %+v", port, docs)
		}
	}
}
