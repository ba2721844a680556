//go:build e2e

package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wherry.dev/tests/images"
	"wherry.dev/tests/lab"
)

// TestClusterRecovery takes a cluster through everything that managers may
// lose, each cured by at most two commands.
func TestClusterRecovery(t *testing.T) {
	c := grow(t, 3, 1)
	h := c.Hosts
	worker := h[3]
	h[0].Must("apply", "--wait=false", "-f", stack(t, "name: kept\nservices: {s: {image: "+image+", command: [sleep, '7201'], network_mode: none, stop_signal: SIGKILL, deploy: {replicas: 2, placement: {constraints: [node.role==worker]}}}}\n"))
	placed(t, h[0], "kept/s", 2, worker.Name)
	before := processes(t, h[0], "kept")
	whole := func(t *testing.T) {
		t.Helper()
		for _, m := range c.Managers() {
			writable(t, m)
		}
		for _, x := range h {
			if x.Alive() {
				c.Await(x, soon, func(n lab.Node) bool { return n.State == "ready" }, "is ready")
			}
		}
		same(t, c.Leader(), "kept", before)
	}

	c.Step(t, "a manager's disk is gone", func(t *testing.T) {
		old := c.Nodes()[h[2].Name].ID
		h[2].Wipe()
		c.Leader().Must("node", "rm", h[2].Name, "--force")
		h[2].Join(c.Leader(), "manager")
		h[2].WaitReady()
		if got := c.Nodes()[h[2].Name].ID; got == old || got == "" {
			t.Errorf("it is node %q again, want a new one", got)
		}
		threeVoters(t, c)
		whole(t)
	})

	c.Step(t, "all managers restarted in every order", func(t *testing.T) {
		for _, order := range [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
			for _, m := range h[:3] {
				m.Kill()
			}
			started := time.Now()
			for i, n := range order {
				h[n].Launch()
				if i == 1 {
					// Two of three are a majority.
					lab.Eventually(t, soon, "two of three lead", func() error {
						_, err := h[order[0]].Try("node", "label", h[n].Name, "order="+fmt.Sprint(started.UnixNano()))
						return err
					})
				}
			}
			t.Logf("order %v: a write after %s", order, short(time.Since(started)))
			for _, m := range h[:3] {
				m.WaitReady()
			}
		}
		whole(t)
	})

	c.Step(t, "all addresses changed", func(t *testing.T) {
		for _, x := range h {
			x.Stop()
		}
		for i, x := range h {
			x.ChangeAddress(fmt.Sprintf("10.123.0.%d", 101+i))
		}
		started := time.Now()
		for _, x := range h {
			x.LaunchWith("--peer", h[0].Address())
		}
		for _, x := range h {
			x.WaitReady()
		}
		writable(t, h[0])
		t.Logf("a write %s after the start at new addresses", short(time.Since(started)))
		whole(t)
		// The seed is not needed again.
		for _, x := range h {
			x.Stop()
		}
		for _, x := range h {
			x.Launch()
		}
		for _, x := range h {
			x.WaitReady()
		}
		whole(t)
		for _, x := range h {
			c.Await(x, soon, func(n lab.Node) bool { return n.Address == x.Address() }, "is known at "+x.Address())
		}
	})

	c.Step(t, "the first manager is gone for ever", func(t *testing.T) {
		h[0].Wipe()
		c.Await(h[0], soon, func(n lab.Node) bool { return n.State == "down" }, "is down")
		c.Leader().Must("node", "rm", h[0].Name)
		whole(t)
		h[0].Join(c.Leader(), "manager")
		h[0].WaitReady()
		threeVoters(t, c)
		whole(t)
	})

	c.Step(t, "the majority is gone for ever", func(t *testing.T) {
		h[1].Wipe()
		h[2].Wipe()
		refused(t, h[0].Within(30*time.Second, "node", "label", h[0].Name, "lost=yes"), "leader")
		h[0].Stop()
		started := time.Now()
		h[0].LaunchWith("--recover")
		h[0].WaitReady()
		writable(t, h[0])
		t.Logf("a write %s after --recover", short(time.Since(started)))
		c.Await(worker, soon, func(n lab.Node) bool { return n.State == "ready" }, "is ready")
		same(t, h[0], "kept", before)
		// The others come back as new nodes.
		for _, x := range h[1:3] {
			if _, ok := c.Nodes()[x.Name]; ok {
				h[0].Must("node", "rm", x.Name, "--force")
			}
			x.Join(h[0], "manager")
			x.WaitReady()
		}
		threeVoters(t, c)
		whole(t)
	})

	c.Step(t, "backup and restore onto a new host", func(t *testing.T) {
		dir := t.TempDir()
		load(t, c.Leader(), images.Must(t, image, "")) // those that had it by its name are gone
		w := writing(t, c.Managers(), 1, "backup")     // it is hot
		w.flow(t, 10)
		if r := c.Follower().WherryIn(dir, "", "cluster", "backup", "state.wherry", "--key-file", "state.key"); r.Code != 0 {
			t.Fatal(r.Stderr)
		}
		w.flow(t, 10)
		w.end(t, client(t, c.Leader()))
		stacks := strings.Fields(c.Leader().Must("ls", "--format", "{{.name}}"))

		// A wrong key and a damaged file are refused, and leave nothing.
		fresh := c.Lab.Host("host-9")
		refused(t, fresh.WherryIn(dir, "", "cluster", "restore", "state.wherry", "--key-file", "state.wherry", "--data-dir", fresh.DataDir), "key")
		refused(t, fresh.WherryIn(dir, "", "cluster", "restore", "state.key", "--key-file", "state.key", "--data-dir", fresh.DataDir), "not a backup")

		// The old hosts are gone but for the worker, which shall find the new
		// manager at an address that it has never heard of.
		for _, x := range h[:3] {
			x.PowerOff()
		}
		if r := fresh.WherryIn(dir, "", "cluster", "restore", "state.wherry", "--key-file", "state.key", "--data-dir", fresh.DataDir); r.Code != 0 {
			t.Fatal(r.Stderr)
		}
		started := time.Now()
		fresh.Start()
		c.Hosts = append(c.Hosts, fresh)
		writable(t, fresh)
		t.Logf("a write %s after the start on a restored folder", short(time.Since(started)))
		got := strings.Fields(fresh.Must("ls", "--format", "{{.name}}"))
		if strings.Join(got, " ") != strings.Join(stacks, " ") {
			t.Errorf("stacks %v, want %v", got, stacks)
		}
		worker.Stop()
		worker.LaunchWith("--peer", fresh.Address())
		worker.WaitReady()
		for _, x := range h[:3] {
			if n, ok := c.Nodes()[x.Name]; ok {
				c.Await(x, soon, func(n lab.Node) bool { return n.State == "down" }, "is down")
				fresh.Must("node", "rm", n.Name)
			}
		}
		same(t, fresh, "kept", before)
		started = time.Now()
		fresh.Must("rm", "kept")
		if n, took := alive("sleep 7201"), time.Since(started); n > 0 || took > 10*time.Second {
			t.Errorf("%d processes are left of what was removed, after %s", n, took)
		}
		if r := fresh.WherryIn(dir, "", "cluster", "restore", filepath.Join(dir, "state.wherry"), "--key-file", "state.key", "--data-dir", fresh.DataDir); r.Code == 0 {
			t.Error("a restore onto a folder in use succeeds")
		}
	})
}

func threeVoters(t *testing.T, c *lab.Cluster) {
	t.Helper()
	lab.Eventually(t, soon, "three managers vote", func() error {
		s, err := client(t, c.Leader()).ClusterStatus(t.Context())
		if err != nil {
			return err
		}
		voters := 0
		for _, m := range s.Managers {
			if m.Raft == "leader" || m.Raft == "voter" {
				voters++
			}
		}
		if voters != 3 {
			return fmt.Errorf("%d: %+v", voters, s)
		}
		return nil
	})
}
