//go:build linux

package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"time"
)

// Cluster is hosts that belong together.
type Cluster struct {
	*Lab
	// Hosts are host-1, host-2, …: the managers first.
	Hosts []*Host
}

// Cluster makes hosts and forms them into a cluster: host-1 starts alone, the
// others join it at the same time. Args are further flags of all daemons.
func (l *Lab) Cluster(managers, workers int, args ...string) *Cluster {
	l.t.Helper()
	c := &Cluster{Lab: l}
	for i := range managers + workers {
		c.Hosts = append(c.Hosts, l.Host(fmt.Sprintf("host-%d", i+1), args...))
	}
	first := c.Hosts[0]
	first.Start()
	for i, h := range c.Hosts[1:] {
		role := "manager"
		if i+1 >= managers {
			role = "worker"
		}
		h.Join(first, role)
	}
	for _, h := range c.Hosts {
		h.WaitReady()
	}
	return c
}

// Join starts the daemon of a new host, which joins through another host, and
// does not wait for it.
func (h *Host) Join(via *Host, role string) {
	h.lab.t.Helper()
	h.JoinWith(via.Address(), via.Token(role))
}

// JoinWith is Join with the address and the token to join by.
func (h *Host) JoinWith(address, token string) {
	h.lab.t.Helper()
	h.LaunchWith("--join", address, "--token", token)
}

// LaunchWith starts the daemon with more flags than it usually has, until it
// has been ready once, and does not wait for it.
func (h *Host) LaunchWith(flags ...string) {
	h.lab.t.Helper()
	h.join = flags
	h.PowerOn()
}

// Daemon runs the daemon in the foreground until it ends by itself, which it
// has to within d; else it is killed and the code is -1.
func (h *Host) Daemon(d time.Duration, flags ...string) Result {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return run(exec.CommandContext(ctx, "nsenter", h.command(flags)...))
}

// Token for a role, "manager" or "worker".
func (h *Host) Token(role string) string {
	h.lab.t.Helper()
	return strings.TrimSpace(h.Must("token", role, "--quiet"))
}

// Address at which others reach the daemon.
func (h *Host) Address() string { return h.IP + ":4477" }

// Node is what a manager says of a node.
type Node struct {
	ID           string            `json:"id"`
	Name         string            `json:"name"`
	Role         string            `json:"role"`
	Leader       bool              `json:"leader"`
	State        string            `json:"state"`
	Availability string            `json:"availability"`
	Address      string            `json:"address"`
	Labels       map[string]string `json:"labels"`
	Tasks        int               `json:"tasks"`
}

// Nodes lists the nodes by name, as this host sees them.
func (h *Host) Nodes() (map[string]Node, error) {
	r := h.Within(10*time.Second, "node", "ls", "--format", "json")
	if r.Code != 0 {
		return nil, r.err("node", "ls")
	}
	var all []Node
	if err := json.Unmarshal([]byte(r.Stdout), &all); err != nil {
		return nil, fmt.Errorf("node ls: %w: %s", err, r.Stdout)
	}
	out := map[string]Node{}
	for _, n := range all {
		out[n.Name] = n
	}
	return out, nil
}

// Host of the cluster by its name.
func (c *Cluster) Host(name string) *Host {
	c.t.Helper()
	for _, h := range c.Hosts {
		if h.Name == name {
			return h
		}
	}
	c.t.Fatalf("no host %q", name)
	return nil
}

// Leader is the host whose daemon leads, as soon as one does. Hosts of skip
// are not asked, and do not count.
func (c *Cluster) Leader(skip ...*Host) *Host {
	c.t.Helper()
	var leader *Host
	Eventually(c.t, 30*time.Second, "somebody leads", func() error {
		via, nodes, err := c.ask(skip)
		if err != nil {
			return err
		}
		for _, h := range c.Hosts {
			if nodes[h.Name].Leader && h.Alive() && !slices.Contains(skip, h) {
				leader = h
				return nil
			}
		}
		return fmt.Errorf("%s knows no leader: %+v", via.Name, nodes)
	})
	return leader
}

// Managers are the hosts that are managers by the cluster's own table.
func (c *Cluster) Managers(skip ...*Host) []*Host { return c.role("manager", skip) }

// Workers are the hosts that are workers by the cluster's own table.
func (c *Cluster) Workers(skip ...*Host) []*Host { return c.role("worker", skip) }

func (c *Cluster) role(role string, skip []*Host) []*Host {
	c.t.Helper()
	var out []*Host
	Eventually(c.t, 30*time.Second, "a manager answers", func() error {
		_, nodes, err := c.ask(skip)
		out = nil
		for _, h := range c.Hosts {
			if nodes[h.Name].Role == role && h.Alive() && !slices.Contains(skip, h) {
				out = append(out, h)
			}
		}
		return err
	})
	return out
}

// Follower is some manager that does not lead.
func (c *Cluster) Follower(skip ...*Host) *Host {
	c.t.Helper()
	leader := c.Leader(skip...)
	for _, h := range c.Managers(skip...) {
		if h != leader {
			return h
		}
	}
	c.t.Fatal("no manager but the leader")
	return nil
}

// Nodes lists the nodes by name, as some manager sees them.
func (c *Cluster) Nodes(skip ...*Host) map[string]Node {
	c.t.Helper()
	var out map[string]Node
	Eventually(c.t, 30*time.Second, "a manager answers", func() (err error) {
		_, out, err = c.ask(skip)
		return err
	})
	return out
}

// Await waits until a node is in a state.
func (c *Cluster) Await(h *Host, d time.Duration, want func(Node) bool, what string, skip ...*Host) {
	c.t.Helper()
	Eventually(c.t, d, h.Name+" "+what, func() error {
		_, nodes, err := c.ask(skip)
		if err != nil {
			return err
		}
		if !want(nodes[h.Name]) {
			return fmt.Errorf("%+v", nodes[h.Name])
		}
		return nil
	})
}

// ask asks the managers one after the other.
func (c *Cluster) ask(skip []*Host) (*Host, map[string]Node, error) {
	err := fmt.Errorf("no daemon runs")
	for _, h := range c.Hosts {
		if !h.Alive() || h.off || slices.Contains(skip, h) {
			continue
		}
		var nodes map[string]Node
		if nodes, err = h.Nodes(); err == nil {
			return h, nodes, nil
		}
	}
	return nil, nil, err
}
