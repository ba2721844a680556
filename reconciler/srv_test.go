package reconciler

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// namedPortsStack has names of ports of all sorts, and services that share one.
const namedPortsStack = `{"name": "shop", "networks": {"front": {"driver": "overlay", "subnet": "10.50.0.0/24"}, "back": {"driver": "overlay", "subnet": "10.51.0.0/24"}}, "services": {
  "web": {"mode": "replicated", "replicas": 2, "template": {"image": "web:1", "restart": {"condition": "any"}, "networks": [{"network": "front", "aliases": ["w.example.com"]}, {"network": "back"}]},
    "ports": [{"name": "HTTP", "target": 80, "protocol": "tcp", "mode": "ingress"}, {"name": "http", "target": 80, "protocol": "tcp", "mode": "ingress", "published": 81},
      {"name": "http", "target": 443, "protocol": "udp", "mode": "ingress"}, {"name": "not a label", "target": 90, "protocol": "tcp", "mode": "ingress"},
      {"target": 91, "protocol": "tcp", "mode": "ingress"}]},
  "api": {"mode": "replicated", "replicas": 1, "template": {"image": "api:1", "restart": {"condition": "any"}, "networks": [{"network": "back"}]},
    "ports": [{"name": "http", "target": 8080, "protocol": "tcp", "mode": "ingress"}, {"name": "admin", "target": 9000, "protocol": "tcp", "mode": "ingress"}]}}}`

func TestDescribeNames(t *testing.T) {
	c := newCluster(t)
	c.files["shop"] = []byte(namedPortsStack)
	c.do("node n1")
	c.do("put shop")
	c.do("settle")
	s := c.store.Snapshot()
	got := map[string]spec.HostNetwork{}
	for _, n := range HostNetworks(s, nodeID("n1")) {
		got[n.Network.Short] = n
	}
	if diff := cmp.Diff([]spec.NamedPort{
		{Name: "http", Protocol: "tcp", Port: 80, Addresses: []string{"10.50.0.2", "10.50.0.3", "10.50.0.4"}},
		{Name: "http", Protocol: "udp", Port: 443, Addresses: []string{"10.50.0.2", "10.50.0.3", "10.50.0.4"}},
	}, got["front"].NamedPorts); diff != "" {
		t.Errorf("ports of front (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]spec.NamedPort{
		{Name: "admin", Protocol: "tcp", Port: 9000, Addresses: []string{"10.51.0.2", "10.51.0.5"}},
		{Name: "http", Protocol: "tcp", Port: 80, Addresses: []string{"10.51.0.3", "10.51.0.4", "10.51.0.6"}},
		{Name: "http", Protocol: "tcp", Port: 8080, Addresses: []string{"10.51.0.2", "10.51.0.5"}},
		{Name: "http", Protocol: "udp", Port: 443, Addresses: []string{"10.51.0.3", "10.51.0.4", "10.51.0.6"}},
	}, got["back"].NamedPorts); diff != "" {
		t.Errorf("ports of back (-want +got):\n%s", diff)
	}
	// A virtual address is the service's, and its ports are found there, too.
	want := map[string]bool{"shop.web.1": true, "shop.web.2": true, "web": true, "shop_web": true}
	if diff := cmp.Diff(want, reverseOf(got["front"])); diff != "" {
		t.Errorf("reverse names of front (-want +got):\n%s", diff)
	}

	// Of a service that was removed no port is known, though tasks still run.
	c.must(store.Command{RemoveStack: &store.RemoveStack{Name: "shop"}})
	for _, n := range HostNetworks(c.store.Snapshot(), nodeID("n1")) {
		if n.NamedPorts != nil {
			t.Errorf("removed, and there are still %v", n.NamedPorts)
		}
	}
}

func reverseOf(n spec.HostNetwork) map[string]bool {
	out := map[string]bool{}
	for _, x := range n.Names {
		if x.Reverse {
			out[x.Name] = true
		}
	}
	return out
}
