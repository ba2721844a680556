//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"wherry.dev/api"
	"wherry.dev/tests/lab"
)

// TestClusterExclusive: three workers are lost in three ways while each runs a
// task of an exclusive service. Each task ends with its lease, also where the
// daemon is dead or frozen; only then is it replaced elsewhere, and at no
// moment are there two.
func TestClusterExclusive(t *testing.T) {
	c := grow(t, 3, 3)
	h := c.Leader()
	managers, workers := c.Managers(), c.Workers()
	for _, m := range managers {
		h.Must("node", "pause", m.Name)
	}
	ways := []struct {
		name       string
		lose, back func(*lab.Host)
	}{
		{"cut", c.Isolate, func(*lab.Host) { c.Heal() }},
		{"killed", (*lab.Host).Kill, (*lab.Host).Launch},
		{"frozen", func(h *lab.Host) { h.Freeze() }, (*lab.Host).Thaw},
	}
	var services strings.Builder
	for i, w := range ways {
		fmt.Fprintf(&services, "  %s: {image: %s, command: [sleep, '730%d'], network_mode: none, stop_signal: SIGKILL, x-wherry: {exclusive: true}}\n", w.name, image, i)
	}
	h.Must("apply", "-f", stack(t, "name: only\nservices:\n"+services.String()))
	for _, m := range managers {
		h.Must("node", "activate", m.Name)
	}
	command := func(i int) string { return fmt.Sprintf("sleep 730%d", i) }
	home := make([]*lab.Host, len(ways))
	for i, w := range ways {
		home[i] = c.Host(on(t, h, "only/"+w.name)[0])
		for j := range i {
			if home[i] == home[j] {
				t.Fatalf("two of the services are on %s", home[i].Name)
			}
		}
	}
	if len(workers) != len(ways) {
		t.Fatalf("%d workers", len(workers))
	}

	// What runs is looked at all the time, from outside.
	most, stop, seen := make([]int, len(ways)), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(seen)
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
			for i := range ways {
				most[i] = max(most[i], alive(command(i)))
			}
		}
	}()
	lost := time.Now()
	for i, w := range ways {
		w.lose(home[i])
	}
	const slack = 3 * time.Second
	ended := make([]time.Duration, len(ways))
	lab.Eventually(t, api.LeaseTime+slack, "every task ends with its lease", func() error {
		var left []string
		for i, w := range ways {
			switch {
			case ended[i] != 0:
			case aliveOn(home[i], command(i)) == 0:
				ended[i] = time.Since(lost)
			default:
				left = append(left, w.name)
			}
		}
		if len(left) > 0 {
			return fmt.Errorf("still running: %v", left)
		}
		return nil
	})
	for i, w := range ways {
		lab.Eventually(t, soon, w.name+" is replaced", func() error {
			if n := alive(command(i)); n != 1 {
				return fmt.Errorf("%d processes", n)
			}
			return nil
		})
		t.Logf("%s: ended after %s, running elsewhere by %s", w.name, short(ended[i]), short(time.Since(lost)))
	}
	for i, w := range ways {
		w.back(home[i])
	}
	for _, w := range home {
		c.Await(w, time.Minute, func(n lab.Node) bool { return n.State == "ready" }, "is ready again")
	}
	placed(t, h, "only", len(ways))
	close(stop)
	<-seen
	for i, w := range ways {
		if most[i] != 1 {
			t.Errorf("%s: up to %d processes at a time", w.name, most[i])
		}
		if n := alive(command(i)); n != 1 {
			t.Errorf("%s: %d processes in the end", w.name, n)
		}
	}
}
