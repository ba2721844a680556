//go:build e2e

package e2e

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"wherry.dev/api"
	"wherry.dev/tests/images"
	"wherry.dev/tests/lab"
)

// TestOverlay is one cluster of HOSTS hosts through all that may happen to the
// network between them. Each part begins when all pairs of tasks reach each
// other, and HOSTS=1 runs what a single host can show.
func TestOverlay(t *testing.T) {
	n := count(t, "HOSTS", 3)
	c := link(t, n)
	c.Plug("client")
	withPairs(t, c, "")
	for _, part := range []struct {
		name  string
		hosts int // that it needs
		run   func(*testing.T, *lab.Cluster)
	}{
		{"faults of the control plane", 1, controlFaults},
		{"published ports", 1, publishedPorts},
		{"virtual addresses", 1, virtualAddresses},
		{"endpoint changes", 1, endpointChanges},
		{"rolling update under load", 1, rolling},
		{"isolation", 1, isolation},
		{"full-size packets", 1, func(t *testing.T, c *lab.Cluster) { fullSize(t, members(t, c, "pairs/a", "pairs/b"), 1500) }},
		{"without and with bridge-nf", 1, bridgeNF},
		{"tampering", 1, tampering},
		{"another address of a host", 2, otherAddress},
		{"reboot of a host", 2, reboot},
		{"a host without power", 2, deadHost},
	} {
		if n < part.hosts {
			continue
		}
		c.Step(t, part.name, func(t *testing.T) {
			started := time.Now()
			everyPair(t, c)
			t.Logf("all pairs reach each other after %s", short(time.Since(started)))
			part.run(t, c)
		})
	}
}

// withPairs applies the stack pairs with more services: one task on each node,
// and beside some of them another one.
func withPairs(t *testing.T, c *lab.Cluster, more string) {
	t.Helper()
	second := fmt.Sprintf("{replicas: %d}", max(1, 3-len(c.Hosts)))
	if full() {
		second = "{mode: global}"
	}
	apply(t, c, stack(t, `
name: pairs
services:
  a: {image: `+image+`, command: [sleep, "7501"], stop_signal: SIGKILL, deploy: {mode: global}}
  b: {image: `+image+`, command: [sleep, "7502"], stop_signal: SIGKILL, deploy: `+second+`}
`+more))
}

// everyPair waits until all nodes are ready and the tasks of pairs reach each
// other.
func everyPair(t *testing.T, c *lab.Cluster) {
	t.Helper()
	for _, h := range c.Hosts {
		c.Await(h, soon, func(n lab.Node) bool { return n.State == "ready" }, "is ready")
	}
	placed(t, c.Leader(), "pairs/a", len(c.Hosts))
	lab.Eventually(t, soon, "all pairs reach each other", func() error { return allPairs(members(t, c, "pairs/a", "pairs/b")) })
}

// controlFaults: whatever happens to daemons, containerd and keepers, no packet
// is lost, no connection is cut and each lookup is answered. FAULTS is how
// often each thing happens.
func controlFaults(t *testing.T, c *lab.Cluster) {
	n := count(t, "FAULTS", 1)
	before := processes(t, c.Leader(), "pairs")
	m, load := quiet(t, span(t, "CONTROL", 4*time.Second), func() []lab.Member { return members(t, c, "pairs/a", "pairs/b") })
	defer m.Stop()
	for _, fault := range []struct {
		name  string
		do    func(t *testing.T, h *lab.Host, i int)
		any   bool // on any host, not on the leader
		again bool // a question that has arrived may be lost with who was to answer it
	}{
		{"leader changes", leaderChange, false, false},
		{"daemon killed", func(t *testing.T, h *lab.Host, _ int) {
			h.Kill()
			h.Launch()
			h.WaitReady()
		}, true, false},
		{"containerd restarted", func(t *testing.T, h *lab.Host, _ int) {
			restartPart(t, h, "containerd")
			ref := taskOn(t, c, h)
			lab.Eventually(t, soon, "containerd serves again", func() error {
				_, err := c.Leader().Try("exec", ref, "--", "true")
				return err
			})
		}, true, false},
		{"keeper restarted", func(t *testing.T, h *lab.Host, _ int) {
			restartPart(t, h, "keeper")
			pause(t.Context(), 3*time.Second) // a question that it took is asked again by then
		}, true, true},
	} {
		c.Step(t, fault.name, func(t *testing.T) {
			var failed int
			for i := range n {
				h := c.Leader()
				if fault.any {
					h = c.Hosts[i%len(c.Hosts)]
				}
				fault.do(t, h, i)
				pause(t.Context(), time.Second) // what it does to packets may come later
				what := fmt.Sprintf("%s on %s", fault.name, h.Name)
				if unhurt(t, m, load, what, fault.again); t.Failed() && failed == 0 {
					failed = i + 1
				}
			}
			t.Logf("figure %s with %d pairs: n=%d, 0 lost packets, 0 resets, 0 failed lookups: %v", fault.name, m.Pairs(), n, !t.Failed())
		})
	}
	same(t, c.Leader(), "pairs", before)
}

// leaderChange is by turns a kill, a stop and a freeze.
func leaderChange(t *testing.T, h *lab.Host, i int) {
	switch i % 3 {
	case 0:
		h.Kill()
		h.Launch()
	case 1:
		h.Stop()
		h.Launch()
	default:
		h.Freeze()
		pause(t.Context(), 2*time.Second) // longer than anybody waits for a leader, shorter than for a node
		h.Thaw()
	}
	h.WaitReady()
}

// restartPart kills a part of a host and waits for another one.
func restartPart(t *testing.T, h *lab.Host, part string) {
	t.Helper()
	old := h.Part(part)
	if len(old) == 0 {
		t.Fatalf("%s has no %s", h.Name, part)
	}
	for _, pid := range old {
		kill(t, pid)
	}
	lab.Eventually(t, soon, "another "+part+" of "+h.Name, func() error {
		for _, pid := range h.Part(part) {
			if !slices.Contains(old, pid) {
				return nil
			}
		}
		return fmt.Errorf("there is none")
	})
}

// taskOn is the name of a task of pairs on a host.
func taskOn(t *testing.T, c *lab.Cluster, h *lab.Host) string {
	t.Helper()
	for _, ti := range tasks(t, c.Leader(), "pairs/a") {
		if ti.Node == h.Name {
			return ti.Name
		}
	}
	t.Fatalf("no task of pairs is on %s", h.Name)
	return ""
}

// endpointChanges: how long after a change is committed it has reached the
// kernel of all hosts. CHANGES is how often.
func endpointChanges(t *testing.T, c *lab.Cluster) {
	withPairs(t, c, "  flip: {image: "+images.Serve+", stop_signal: SIGKILL}\n")
	defer withPairs(t, c, "")
	watchers := members(t, c, "pairs/a")
	to := vip(t, watchers[0].Space, "flip") + ":80"
	cl := client(t, c.Leader())
	scale := func(n int) {
		t.Helper()
		if _, err := cl.Scale(t.Context(), "pairs", "flip", api.Scale{Replicas: n}); err != nil {
			t.Fatal(err)
		}
	}
	var times []time.Duration
	for range count(t, "CHANGES", 3) {
		for _, w := range watchers {
			lab.Eventually(t, soon, "flip serves "+w.Name, func() error {
				_, err := consult(w.Space, to)
				return err
			})
		}
		var mu sync.Mutex
		var wg sync.WaitGroup
		gone := map[string]time.Time{}
		for _, w := range watchers {
			wg.Go(func() {
				for end := time.Now().Add(soon); time.Now().Before(end); {
					con, err := w.Dial("tcp4", to, time.Second)
					if err != nil {
						mu.Lock()
						gone[w.Name] = time.Now()
						mu.Unlock()
						return
					}
					_ = con.Close() // it was made, which is all
					time.Sleep(2 * time.Millisecond)
				}
			})
		}
		time.Sleep(100 * time.Millisecond) // the watchers are at work
		scale(0)
		committed := time.Now()
		wg.Wait()
		var last time.Duration
		for _, w := range watchers {
			if gone[w.Name].IsZero() {
				t.Fatalf("%s still reaches flip %s after it was taken away", w.Name, soon)
			}
			last = max(last, gone[w.Name].Sub(committed))
		}
		times = append(times, last)
		scale(1)
	}
	figure(t, fmt.Sprintf("endpoint taken away, committed until programmed on all of %d hosts", len(watchers)), times, 0, time.Second)
}
