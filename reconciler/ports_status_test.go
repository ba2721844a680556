package reconciler

import (
	"testing"

	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

const portsStack = `{"name": "shop", "networks": {"default": {}}, "services": {
  "web": {"mode": "replicated", "placement": {"constraints": ["node.labels.here==1"]},
    "ports": [{"target": 80, "published": 7201, "protocol": "tcp", "mode": "ingress"},
      {"target": 80, "published": 7300, "protocol": "tcp", "mode": "ingress", "host_ip": "127.0.0.1"}],
    "template": {"image": "web:1", "restart": {"condition": "any"}, "networks": [{"network": "default"}]}},
  "db": {"mode": "replicated", "template": {"image": "db:1", "restart": {"condition": "any"}, "networks": [{"network": "default"}]}}}}`

func TestStatusOfPorts(t *testing.T) {
	const problem = "port 7201/tcp is in use on the host by nc (pid 7)"
	told := func(owner string, port uint16, problem string) spec.PortStatus {
		return spec.PortStatus{Port: port, Protocol: "tcp", Owner: owner, Problem: problem}
	}
	list := func(p ...spec.PortStatus) *[]spec.PortStatus { return &p }
	loopback := told("shop/web", 7300, "")
	loopback.HostIP = "127.0.0.1"
	all := list(told("shop/web", 7201, ""), loopback)
	bad := list(told("shop/web", 7201, problem), loopback)
	for _, tt := range []struct {
		name           string
		a, b           *[]spec.PortStatus // a has the task
		down           string
		state, message string
	}{
		{"nobody tells", nil, nil, "", StateRunning, ""},
		{"served", all, list(told("shop/web", 7201, "")), "", StateRunning, ""},
		{"not told yet", list(), nil, "", StateUpdating, "node a: waits for port 7201/tcp to be published"},
		{"one of two", list(told("shop/web", 7201, "")), nil, "", StateUpdating, "node a: waits for port 127.0.0.1:7300/tcp to be published"},
		{"other node not yet", all, list(), "", StateUpdating, "node b: waits for port 7201/tcp to be published"},
		{"refused", bad, nil, "", StateFailed, "node a: " + problem},
		{"refused on one of two", all, list(told("shop/web", 7201, problem)), "", StateFailed, "node b: " + problem},
		{"refusal before waiting", list(), bad, "", StateFailed, "node b: " + problem},
		{"of a node that is down", all, bad, "b", StateRunning, ""},
		{"no longer published", list(told("shop/web", 7200, problem), (*all)[0], (*all)[1]), nil, "", StateRunning, ""},
		{"of another service", list(told("shop/db", 7201, problem)), nil, "", StateUpdating, "node a: waits for port 7201/tcp to be published"},
		{"another address", list(loopback, spec.PortStatus{HostIP: "192.0.2.1", Port: 7201, Protocol: "tcp", Owner: "shop/web", Problem: problem}), nil, "", StateUpdating, "node a: waits for port 7201/tcp to be published"},
		{"another protocol", list(loopback, spec.PortStatus{Port: 7201, Protocol: "udp", Owner: "shop/web", Problem: problem}), nil, "", StateUpdating, "node a: waits for port 7201/tcp to be published"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCluster(t)
			c.addNode("a", "here=1")
			c.addNode("b")
			c.files["shop"] = []byte(portsStack)
			c.do("put shop")
			c.do("settle")
			for id, ports := range map[spec.NodeID]*[]spec.PortStatus{nodeID("a"): tt.a, nodeID("b"): tt.b} {
				c.must(store.Command{Reports: &store.Reports{Reports: []spec.Report{{Node: id, Ports: ports}}}})
			}
			if tt.down != "" {
				c.do("down " + tt.down)
			}
			st, ok := Status(c.store.Snapshot(), "shop", c.now)
			if !ok || st.State != tt.state {
				t.Errorf("stack: %+v, want %s", st, tt.state)
			}
			for _, s := range st.Services {
				want, message := StateRunning, ""
				if s.Name == "web" {
					want, message = tt.state, tt.message
				}
				if s.State != want || s.Message != message {
					t.Errorf("%s: %s %q, want %s %q", s.Name, s.State, s.Message, want, message)
				}
			}
		})
	}
	t.Run("what failed before counts first", func(t *testing.T) {
		p := &planner{view: &view{nodeList: []*spec.Node{{State: spec.NodeReady, Ports: bad}}}}
		svc := &spec.Service{Stack: "shop", Name: "web", Spec: spec.ServiceSpec{Ports: []spec.Port{{Published: 7201, Protocol: "tcp"}}}}
		one := ServiceStatus{State: StateFailed, Message: "shop.web.1: exit code 1"}
		if p.judgePorts(svc, &one); one.Message != "shop.web.1: exit code 1" {
			t.Errorf("%+v", one)
		}
		if got := p.portProblem(svc); got != problem { // the only node needs no name
			t.Errorf("%q", got)
		}
	})
}
