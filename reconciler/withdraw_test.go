package reconciler

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"wherry.dev/spec"
)

const leadStack = `{"name": "a", "networks": {"default": {"driver": "overlay"}}, "services": {
  "all": {"mode": "global", "template": {"image": "all:1", "restart": {"condition": "any"}, "networks": [{"network": "default"}]}},
  "one": {"mode": "replicated", "template": {"image": "one:%[1]d", "exclusive": true, "restart": {"condition": "any"}, "networks": [{"network": "default"}]}},
  "web": {"mode": "replicated", "replicas": 3, "template": {"image": "web:%[1]d", "restart": {"condition": "any"}, "networks": [{"network": "default", "aliases": ["www"]}]},
    "ports": [{"target": 80, "published": 8080, "protocol": "tcp", "mode": "ingress"}]}}}`

// TestWithdrawnWithTheOrderToStop: by whatever a task is to stop, the same state
// that orders it leads to it from no node any more, and the document of its
// network is still on its node. So a node that obeys can ask the others whether
// they have done so, too.
func TestWithdrawnWithTheOrderToStop(t *testing.T) {
	for name, lines := range map[string][]string{
		"replaced": {"put v2.json"}, "scaled down": {"scale a web 1"}, "removed": {"rm a"}, "node drained": {"drain n1"},
		"node drained of all": {"drain n1 stop-pinned"},
	} {
		t.Run(name, func(t *testing.T) {
			c := newCluster(t)
			c.files["v1.json"], c.files["v2.json"] = fmt.Appendf(nil, leadStack, 1), fmt.Appendf(nil, leadStack, 2)
			for _, line := range []string{"node n1", "node n2", "put v1.json", "settle"} {
				c.do(line)
			}
			c.leads(t) // to all that run
			for _, line := range lines {
				c.do(line)
			}
			stopped := 0
			for range 20 {
				c.plan()
				stopped += c.leads(t)
				for _, task := range c.store.Snapshot().Tasks() {
					switch {
					case task.Status.State.Terminal():
					case task.Desired != spec.DesiredRunning:
						c.tell(task, spec.TaskStatus{State: spec.TaskStopped})
					case !task.Ready():
						c.tell(task, spec.TaskStatus{State: spec.TaskRunning, Health: spec.HealthHealthy, Started: 1})
					}
				}
			}
			if stopped == 0 {
				t.Error("no task was stopped")
			}
		})
	}
}

// leads checks what the documents of all nodes lead to, and returns how many
// tasks are to stop.
func (c *cluster) leads(t *testing.T) (stopping int) {
	t.Helper()
	snap := c.store.Snapshot()
	docs := map[spec.NodeID][]spec.HostNetwork{}
	to := map[string]bool{}
	for _, n := range snap.Nodes() {
		docs[n.ID] = HostNetworks(snap, n.ID)
		for _, d := range docs[n.ID] {
			for _, name := range d.Names {
				for _, ip := range name.Addresses {
					to[ip] = true
				}
			}
			for _, p := range d.Ports {
				for _, target := range p.Targets {
					to[netip.MustParseAddrPort(target).Addr().String()] = true
				}
			}
			for _, v := range d.VIPs {
				for _, ip := range v.Targets {
					to[ip] = true
				}
			}
		}
	}
	for _, task := range snap.Tasks() {
		if task.Status.State.Terminal() {
			continue
		}
		ip := netip.MustParsePrefix(task.Addresses[0].IP).Addr().String()
		if to[ip] != task.Ready() {
			t.Errorf("task %s (%s, %s): traffic is led to it: %t", c.name(task), task.Desired, task.Status.State, to[ip])
		}
		if task.Desired == spec.DesiredRunning {
			continue
		}
		stopping++
		onIt := func(d spec.HostNetwork) bool { return d.Network.ID == task.Addresses[0].Network }
		if w := Wanted(snap, task.Node); !slices.ContainsFunc(docs[task.Node], onIt) || !slices.ContainsFunc(w.Tasks, func(o spec.Task) bool { return o.ID == task.ID }) {
			t.Errorf("task %s is to stop: it, or its network, is in no document of its node", c.name(task))
		}
	}
	return stopping
}
