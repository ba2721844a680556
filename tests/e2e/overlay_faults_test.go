//go:build e2e

package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"wherry.dev/tests/images"
	"wherry.dev/tests/lab"
)

// except are the members that are not on a host, and look up each other alone:
// names of tasks on a host that is gone may go with it.
func except(all []lab.Member, h *lab.Host) []lab.Member {
	there := func(m lab.Member) bool { return filepath.Dir(m.Path) == filepath.Dir(h.TaskSpace("", "x").Path) }
	gone := map[string]bool{}
	for _, m := range all {
		gone[m.IP] = there(m)
	}
	var out []lab.Member
	for _, m := range all {
		if !there(m) {
			m.Answers = slices.DeleteFunc(slices.Clone(m.Answers), func(ip string) bool { return gone[ip] })
			out = append(out, m)
		}
	}
	return out
}

// otherAddress: a host that comes back with another address is reached there by
// all others; nothing is lost between these, and its tasks go on.
func otherAddress(t *testing.T, c *lab.Cluster) {
	var times []time.Duration
	for i := range count(t, "RUNS", 1) {
		h := c.Follower()
		before := processes(t, c.Leader(), "pairs")
		m, load := quiet(t, 2*time.Second, func() []lab.Member { return except(members(t, c, "pairs/a", "pairs/b"), h) })
		h.Stop()
		h.ChangeAddress(fmt.Sprintf("10.123.0.%d", 120+i))
		h.Launch()
		h.WaitReady()
		up := time.Now()
		took, err := until(t.Context(), soon, up, func() error { return allPairs(members(t, c, "pairs/a", "pairs/b")) })
		if err != nil {
			t.Errorf("after the change of address of %s: %v", h.Name, err)
		}
		times = append(times, took)
		unhurt(t, m, load, "between the other hosts", false)
		m.Stop()
		same(t, c.Leader(), "pairs", before)
	}
	figure(t, "all pairs after a host is up with another address", times, 0, 10*time.Second)
}

// reboot: after a host has lost its power and has it back, all pairs reach each
// other, and nothing is lost between the others meanwhile.
func reboot(t *testing.T, c *lab.Cluster) {
	var times []time.Duration
	for i := range count(t, "REBOOTS", 1) {
		h := c.Hosts[(i+1)%len(c.Hosts)]
		m, load := quiet(t, 2*time.Second, func() []lab.Member { return except(members(t, c, "pairs/a"), h) })
		h.Reboot()
		h.WaitReady()
		up := time.Now()
		took, err := until(t.Context(), soon, up, func() error {
			all := members(t, c, "pairs/a", "pairs/b")
			if len(all) < len(c.Hosts)+1 {
				return fmt.Errorf("%d tasks run", len(all))
			}
			return allPairs(all)
		})
		if err != nil {
			t.Errorf("after the reboot of %s: %v", h.Name, err)
		}
		times = append(times, took)
		unhurt(t, m, load, "between the other hosts", false)
		m.Stop()
	}
	figure(t, "all pairs after a rebooted host is up", times, 0, 10*time.Second)
	m, _ := quiet(t, 2*time.Second, func() []lab.Member { return members(t, c, "pairs/a", "pairs/b") })
	m.Stop()
}

// deadHost: a connection to a task on a host that has lost its power fails
// soon, and new ones go to tasks that live; whether the task runs elsewhere now
// or was that host's own.
func deadHost(t *testing.T, c *lab.Cluster) {
	h := c.Follower()
	withPairs(t, c, "  everywhere: {image: "+images.Serve+", stop_signal: SIGKILL, deploy: {mode: global}}\n"+
		"  moves: {image: "+images.Serve+", stop_signal: SIGKILL, deploy: {replicas: 3}}\n")
	defer withPairs(t, c, "")
	from := except(members(t, c, "pairs/a"), h)[0]
	services := []string{"everywhere", "moves"}
	to, open := map[string]string{}, map[string]net.Conn{}
	for _, s := range services {
		to[s] = vip(t, from.Space, s) + ":80"
		open[s] = connected(t, c, from.Space, "pairs/"+s, to[s], h)
		defer open[s].Close()
	}
	off := time.Now()
	h.PowerOff()
	ends := map[string]chan time.Duration{}
	for _, s := range services {
		end := make(chan time.Duration, 1)
		ends[s] = end
		go func() {
			end <- ended(open[s], off)
		}()
	}
	// New connections: ten in a row that all succeed.
	for _, s := range services {
		took, err := until(t.Context(), soon, off, func() error {
			for range 10 {
				if _, err := consult(from.Space, to[s]); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Errorf("new connections to %s: %v", s, err)
		}
		figure(t, "new connections to "+s+" after a host lost its power", []time.Duration{took}, 0, 5*time.Second)
	}
	for _, s := range services {
		figure(t, "a connection to a task of "+s+" on a dead host fails", []time.Duration{<-ends[s]}, 0, 6*time.Second)
	}
	if t.Failed() {
		t.Logf("with %s without power:\n%s", h.Name, c.Leader().Must("ps", "pairs"))
	}
	h.PowerOn()
	h.WaitReady()
	everyPair(t, c)
}

// connected is a connection through a virtual address that ends at a task on a
// host.
func connected(t *testing.T, c *lab.Cluster, from lab.Space, ref, to string, h *lab.Host) net.Conn {
	t.Helper()
	there := map[string]bool{}
	for _, ti := range tasks(t, c.Leader(), ref) {
		there[address(t, ti)] = ti.Node == h.Name
	}
	for range 100 {
		con, err := from.Dial("tcp4", to, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		r, err := question(con, bufio.NewReader(con), "/", false)
		if err != nil {
			t.Fatal(err)
		}
		if there[r.server] {
			return con
		}
		_ = con.Close() // it ends somewhere else
	}
	t.Fatalf("no connection to %s ends at %s: its tasks are %v", ref, h.Name, there)
	return nil
}

// ended says when a connection on which somebody speaks all the time fails.
func ended(con net.Conn, from time.Time) time.Duration {
	for b := make([]byte, 8); time.Since(from) < soon; {
		_ = con.SetDeadline(time.Now().Add(200 * time.Millisecond)) // silence is no failure
		if _, err := con.Write([]byte("x")); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		if _, err := con.Read(b); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
	}
	return time.Since(from)
}
