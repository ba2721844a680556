package agent_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"wherry.dev/agent"
	"wherry.dev/spec"
)

// fakePorts are the ports of a network in memory.
type fakePorts struct {
	mu      sync.Mutex
	ports   []spec.PortStatus
	known   bool
	changed chan struct{}
}

func (p *fakePorts) get() ([]spec.PortStatus, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.ports), p.known
}

func (p *fakePorts) set(ports ...spec.PortStatus) {
	p.mu.Lock()
	p.ports, p.known = ports, true
	p.mu.Unlock()
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

func TestPortsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, forever)
		p := &fakePorts{changed: make(chan struct{}, 1)}
		run := func() {
			n.a = agent.New(agent.Config{
				DataDir: n.data, RunDir: n.run, Node: "n1", NodeName: "alpha",
				Images: n.host, Runtime: n.host, Execer: n.host, Network: n.host, Logs: n.host, Manager: n.host,
				Wake: n.host.Wake, Ports: p.get, PortsChanged: p.changed,
			})
			n.start()
		}
		served := spec.PortStatus{Port: 7200, Protocol: "tcp", Owner: "shop/web"}
		refused := spec.PortStatus{Port: 7201, Protocol: "tcp", Owner: "shop/web", Problem: "port 7201/tcp is in use by nc (pid 7)"}
		var want [][]spec.PortStatus
		check := func(when string) {
			t.Helper()
			settle(time.Second)
			if d := cmp.Diff(want, n.host.Ports()); d != "" {
				t.Errorf("%s (-want +got):\n%s", when, d)
			}
		}
		run()
		check("nothing is known")
		p.set()
		want = append(want, []spec.PortStatus{})
		check("there are none")
		p.set(served)
		want = append(want, []spec.PortStatus{served})
		check("one is served")
		p.set(served)
		check("nothing new")

		broken := func(_ context.Context, op string, _ spec.TaskID) error {
			if op == "Report" {
				return spec.Unavailablef("no leader")
			}
			return nil
		}
		n.before(broken)
		p.set(refused)
		check("managers do not answer")
		p.set(served, refused)
		n.before(func(context.Context, string, spec.TaskID) error { return nil })
		want = append(want, []spec.PortStatus{served, refused})
		settle(5 * time.Second) // the longest pause between two tries
		check("the newest gets through")

		n.want(spec.DesiredRunning)
		check("another document")
		n.wanted.Incarnation++
		n.want(spec.DesiredRunning)
		want = append(want, []spec.PortStatus{served, refused})
		check("managers with a restored state")

		n.stop()
		run()
		want = append(want, []spec.PortStatus{served, refused})
		check("after a restart")
		p.set()
		want = append(want, []spec.PortStatus{})
		check("none any more")
		n.want("")
		settle(20 * time.Second)
		n.stop()
		n.check()
	})
}
