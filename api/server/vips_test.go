package server

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"wherry.dev/api"
	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// TestVIPsAreShown: with the name of their network, wherever a service is.
func TestVIPsAreShown(t *testing.T) {
	w := newWorld(t)
	svc := spec.ServiceSpec{Mode: spec.Replicated, Template: spec.Template{Image: "docker.io/library/nginx:1", Restart: spec.Restart{Condition: spec.RestartAny},
		Networks: []spec.Attachment{{Network: "front"}, {Network: "back"}}}}
	plain := svc
	plain.EndpointMode = spec.EndpointDNSRR
	w.must(store.Command{PutStack: &store.PutStack{Stack: spec.Stack{Name: "shop",
		Networks: map[string]spec.NetworkSpec{"front": {Driver: spec.DriverOverlay, Pool: spec.Pool{Subnet: "10.8.0.0/24"}}, "back": {Driver: spec.DriverOverlay, Pool: spec.Pool{Subnet: "10.8.1.0/24"}, Internal: true, IPv6: &spec.Pool{Subnet: "fd08::/64"}}},
		Services: map[string]spec.ServiceSpec{"web": svc, "rr": plain}}}})
	w.settle()
	want := []api.VIP{{Network: "shop_front", Address: "10.8.0.4"}, {Network: "shop_back", Address: "10.8.1.4", Address6: "fd08::4"}}
	l, err := w.client.Services(t.Context(), "shop")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range l.Items {
		if s.Name == "web" && !slices.Equal(s.VIPs, want) || s.Name == "rr" && len(s.VIPs) > 0 {
			t.Errorf("service ls: %s has %+v", s.Name, s.VIPs)
		}
	}
	d, err := w.client.Service(t.Context(), "shop", "web")
	if err != nil || !slices.Equal(d.VIPs, want) {
		t.Errorf("service inspect: %+v, %v", d.VIPs, err)
	}
	if got := d.Tasks[0].Addresses; !slices.Equal(got, []string{"10.8.0.3/24", "10.8.1.3/24", "fd08::3/64"}) {
		t.Errorf("the addresses of a task are %v", got)
	}
}

// oldWorld is a world whose state has an older format.
func oldWorld(t *testing.T, format int) *world {
	w := newWorld(t, func(c *Config) {
		old := store.New()
		for i, cmd := range []store.Command{
			{Bootstrap: &store.Bootstrap{ClusterID: "c", Incarnation: 1, Format: format}},
			{PutNode: &store.PutNode{ID: testNode, Name: "host-1", Role: spec.RoleManager, Address: "127.0.0.1:4477"}},
			{SetAuthority: &store.SetAuthority{Authority: spec.Authority{Signer: "a", Roots: []spec.Root{{Hash: "a", Certificate: "cert", Key: "secret"}}}}},
		} {
			if res := old.Apply(uint64(i+1), cmd); res.Err != nil {
				t.Fatal(res.Err)
			}
		}
		var b bytes.Buffer
		if err := old.Persist(&b); err != nil {
			t.Fatal(err)
		}
		if err := c.Store.Restore(&b); err != nil {
			t.Fatal(err)
		}
	})
	w.index = 3
	return w
}

// TestHealthySinceWaitsForFormat: likewise for since when a task is healthy.
func TestHealthySinceWaitsForFormat(t *testing.T) {
	w := oldWorld(t, store.RolloutFormat-1)
	if _, err := w.client.PutStack(t.Context(), api.PutStack{Stack: nginx()}); err != nil {
		t.Fatal(err)
	}
	w.settle()
	since := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	report := func() spec.TaskStatus {
		t.Helper()
		task := w.store.Snapshot().TasksOf("shop", "web")[0]
		err := w.node.Report(t.Context(), spec.Report{Node: testNode, Tasks: []spec.TaskReport{{Task: task.ID,
			Status: spec.TaskStatus{State: spec.TaskRunning, Health: spec.HealthHealthy, HealthySince: since}}}})
		if err != nil {
			t.Fatal(err)
		}
		return w.store.Snapshot().Task(task.ID).Status
	}
	if got := report(); got.State != spec.TaskRunning || !got.HealthySince.IsZero() {
		t.Errorf("%+v", got)
	}
	w.must(store.Command{Bootstrap: &store.Bootstrap{ClusterID: "c", Incarnation: 1, Format: store.Format}})
	if got := report(); !got.HealthySince.Equal(since) {
		t.Errorf("%+v", got)
	}
}

// TestInfoWaitsForFormat: a state that other managers must be able to read does
// not take the MTU, nor the subnets, and the rest of the report is taken. The node is told when it
// may tell it.
func TestInfoWaitsForFormat(t *testing.T) {
	w := oldWorld(t, store.MTUFormat-1)
	report := func() spec.NodeInfo {
		t.Helper()
		if err := w.node.Report(t.Context(), spec.Report{Node: testNode, Info: &spec.NodeInfo{OS: "linux", Format: store.Format, MTU: 1450, Subnets: "10.0.0.0/16"}}); err != nil {
			t.Fatal(err)
		}
		return w.store.Snapshot().Node(testNode).Info
	}
	told := func() int {
		c, _ := clusterInfo(w.store.Snapshot(), testNode)
		return c.Format
	}
	var o outline
	_, turn := o.look(w.store)
	if got := report(); got.Format != store.Format || got.MTU != 0 || got.Subnets != "" || told() >= store.MTUFormat {
		t.Errorf("%+v, told of format %d", got, told())
	}
	w.must(store.Command{Bootstrap: &store.Bootstrap{ClusterID: "c", Incarnation: 1, Format: store.AddressFormat - 1}})
	if got := report(); got.MTU != 1450 || got.Subnets != "" {
		t.Errorf("in format %d: %+v", store.AddressFormat-1, got)
	}
	w.must(store.Command{Bootstrap: &store.Bootstrap{ClusterID: "c", Incarnation: 1, Format: store.Format}})
	if o.look(w.store); !o.changed(testNode, nil, turn) || told() != store.Format {
		t.Errorf("told of format %d", told())
	}
	if got := report(); got.MTU != 1450 || got.Subnets != "10.0.0.0/16" {
		t.Errorf("%+v", got)
	}
}
