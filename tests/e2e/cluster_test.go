//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"wherry.dev/spec"
	"wherry.dev/tests/images"
	"wherry.dev/tests/lab"
)

// TestCluster is one cluster of three managers and two workers through all
// that may happen to it. Each part begins when all is well.
func TestCluster(t *testing.T) {
	c := grow(t, 3, 2)
	first := c.Hosts[0]
	// What must not be touched by anything below, on every node.
	first.Must("apply", "--wait=false", "-f", stack(t, `
name: everywhere
services:
  s:
    image: `+image+`
    command: [sh, -c, "echo I am here; exec sleep 7101"]
    network_mode: none
    stop_signal: SIGKILL
    deploy: {mode: global}
`))
	for _, part := range []struct {
		name string
		run  func(*testing.T, *lab.Cluster)
		same bool // no task may notice anything
	}{
		{"any manager does anything", anyManager, true},
		{"a worker points to its managers", workerPoints, true},
		{"remote client", remoteClient, true},
		{"leader killed", leaderKilled, true},
		{"planned handover", plannedHandover, true},
		{"asymmetric cut", asymmetricCut, true},
		{"majority frozen", majorityFrozen, true},
		{"worker without power", workerWithoutPower, false},
		{"worker cut off", workerCutOff, false},
		{"drain", drain, false},
		{"pinned volume", pinnedVolume, false},
	} {
		c.Step(t, part.name, func(t *testing.T) {
			for _, h := range c.Hosts {
				c.Await(h, soon, func(n lab.Node) bool { return n.State == "ready" && n.Availability == "active" }, "is ready and active")
			}
			placed(t, c.Leader(), "everywhere/s", len(c.Hosts))
			before := processes(t, c.Leader(), "everywhere")
			part.run(t, c)
			if part.same {
				same(t, c.Leader(), "everywhere", before)
			}
		})
	}
}

// anyManager: an image that was loaded on one host runs on all, and logs,
// commands and volumes of all are reached through each manager.
func anyManager(t *testing.T, c *lab.Cluster) {
	live := tasks(t, c.Hosts[1], "everywhere")
	if len(live) != len(c.Hosts) {
		t.Fatalf("%d tasks, want one on each of %d hosts", len(live), len(c.Hosts))
	}
	for _, via := range c.Managers() {
		for _, ti := range live {
			if out, err := via.Try("logs", ti.Name); err != nil || !strings.Contains(out, "I am") {
				t.Errorf("logs of %s on %s through %s: %q %v", ti.Name, ti.Node, via.Name, out, err)
			}
			if r := via.WherryIn("", ti.Name, "exec", "-i", ti.Name, "--", "sh", "-c", "cat; exit 7"); r.Code != 7 || r.Stdout != ti.Name {
				t.Errorf("exec in %s on %s through %s: %+v", ti.Name, ti.Node, via.Name, r)
			}
		}
		nodes, err := via.Nodes()
		if err != nil {
			t.Fatal(err)
		}
		leaders := 0
		for _, h := range c.Hosts {
			n := nodes[h.Name]
			if n.State != "ready" || n.Address != h.Address() || n.Availability != "active" {
				t.Errorf("%s as %s sees it: %+v", h.Name, via.Name, n)
			}
			if n.Leader {
				leaders++
			}
		}
		if leaders != 1 || len(nodes) != len(c.Hosts) {
			t.Errorf("%s sees %d leaders among %d nodes", via.Name, leaders, len(nodes))
		}
		out := via.Must("cluster", "status")
		for _, m := range c.Managers() {
			if !strings.Contains(out, m.Name) {
				t.Errorf("status does not show manager %s:\n%s", m.Name, out)
			}
		}
	}
	// A write through one is at once seen through another.
	from, to := c.Follower(), c.Leader()
	for i := range 10 {
		from.Must("node", "label", from.Name, fmt.Sprintf("turn=%d", i))
		nodes, err := to.Nodes()
		if err != nil {
			t.Fatal(err)
		}
		if got := nodes[from.Name].Labels["turn"]; got != fmt.Sprint(i) {
			t.Fatalf("%s reads %q after %s wrote %d", to.Name, got, from.Name, i)
		}
		from, to = to, from
	}
	from.Must("node", "label", c.Managers()[0].Name, "turn-")
}

func workerPoints(t *testing.T, c *lab.Cluster) {
	w := c.Workers()[0]
	for _, args := range [][]string{{"ls"}, {"ps"}, {"apply", "-f", stack(t, "services: {a: {image: "+image+"}}")}, {"token", "worker"}} {
		r := w.Wherry(args...)
		if r.Code != 5 || !strings.Contains(r.Stderr, "worker") || !strings.Contains(r.Stderr, "--host") {
			t.Errorf("%v at a worker: exit %d, want 5 and the way to a manager: %s", args, r.Code, r.Stderr)
		}
	}
	w.Must("version", "--daemon")
	w.Must("image", "ls")
}

// remoteClient: with a certificate everything works over the network, without
// one nothing does.
func remoteClient(t *testing.T, c *lab.Cluster) {
	c.Plug("client")
	dir := t.TempDir()
	if r := c.Follower().WherryIn(dir, "", "cluster", "ca", "client", "alice"); r.Code != 0 {
		t.Fatal(r.Stderr)
	}
	for _, f := range []string{"alice.pem", "alice-key.pem", "ca.pem"} {
		st, err := os.Stat(filepath.Join(dir, f))
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, want 0600", f, st.Mode())
		}
	}
	files := []string{"--cert", filepath.Join(dir, "alice.pem"), "--key", filepath.Join(dir, "alice-key.pem"), "--ca", filepath.Join(dir, "ca.pem")}
	remote := func(h *lab.Host, flags []string, args ...string) lab.Result {
		return c.In("client", slices.Concat([]string{"timeout", "20", lab.Binary(t), "--host", "https://" + h.Address()}, flags, args)...)
	}
	for _, h := range c.Managers() {
		if r := remote(h, files, "node", "ls"); r.Code != 0 || !strings.Contains(r.Stdout, c.Hosts[4].Name) {
			t.Errorf("node ls at %s: %+v", h.Name, r)
		}
		if r := remote(h, files, "exec", "everywhere.s."+c.Hosts[4].Name, "--", "sh", "-c", "exit 9"); r.Code != 9 {
			t.Errorf("exec through %s: %+v", h.Name, r)
		}
	}
	refused(t, remote(c.Workers()[0], files, "node", "ls"), "worker")
	refused(t, remote(c.Hosts[0], nil, "node", "ls"))
	refused(t, remote(c.Hosts[0], []string{"--ca", filepath.Join(dir, "ca.pem")}, "node", "ls"))
}

// leaderKilled: SIGKILL of the leader under two writers, again and again.
// Writes go on, none that was acknowledged is lost, and nobody else notices.
func leaderKilled(t *testing.T, c *lab.Cluster) {
	runs := count(t, "RUNS", 3)
	cl := client(t, c.Hosts[0])
	seq := newestEvent(t, cl)
	w := writing(t, c.Managers(), 2, "kill")
	var gaps []time.Duration
	killed := map[string]bool{}
	var down []string
	for range runs {
		w.flow(t, 20)
		leader := c.Leader()
		killed[leader.Name] = true
		from := time.Now()
		leader.Kill()
		w.flow(t, 20)
		gaps = append(gaps, w.gap(from))
		leader.Launch()
		leader.WaitReady()
		more, last := diary(t, client(t, c.Leader()), seq)
		down, seq = append(down, more...), last
	}
	w.end(t, cl)
	figure(t, "leader killed, writes accepted again", gaps, 600*time.Millisecond, 1500*time.Millisecond)
	for _, n := range down {
		if !killed[n] {
			t.Errorf("%s was declared down, and nothing had happened to it", n)
		}
	}
	t.Logf("%d leaders killed; declared down for a moment: %v", runs, down)
}

// plannedHandover: a leader that is stopped, or demoted, hands over first.
func plannedHandover(t *testing.T, c *lab.Cluster) {
	runs := count(t, "RUNS", 3)
	cl := client(t, c.Hosts[0])
	seq := newestEvent(t, cl)
	w := writing(t, c.Managers(), 2, "handover")
	var gaps []time.Duration
	var down []string
	for range runs {
		w.flow(t, 20)
		leader := c.Leader()
		from := time.Now()
		leader.Stop()
		w.flow(t, 20)
		gaps = append(gaps, w.gap(from))
		leader.Launch()
		leader.WaitReady()
		more, last := diary(t, client(t, c.Leader()), seq)
		down, seq = append(down, more...), last
	}
	w.end(t, cl)
	figure(t, "planned handover", gaps, 0, 300*time.Millisecond)
	if len(down) > 0 {
		t.Logf("declared down while stopped: %v", down)
	}
}

// asymmetricCut: the leader cannot send to a follower, but hears it; then the
// other way round. Nobody is declared down, every manager takes writes.
func asymmetricCut(t *testing.T, c *lab.Cluster) {
	for _, way := range []string{"to", "from"} {
		leader, follower := c.Leader(), c.Follower()
		cl := client(t, leader)
		seq := newestEvent(t, cl)
		if way == "to" {
			c.Cut(leader, follower)
		} else {
			c.Cut(follower, leader)
		}
		deadline := time.Now().Add(4 * time.Second)
		for time.Now().Before(deadline) {
			for _, h := range c.Hosts[:3] {
				if h != follower {
					writable(t, h)
				}
			}
		}
		started := time.Now()
		c.Heal()
		writable(t, follower)
		t.Logf("cut %s the follower: writes through it %s after the end of the cut", way, short(time.Since(started)))
		down, _ := diary(t, cl, seq)
		if len(down) > 0 {
			t.Errorf("cut %s the follower: declared down: %v", way, down)
		}
	}
}

// majorityFrozen: without a majority writes are refused, in time and with an
// exit code; what runs goes on; afterwards all is as before.
func majorityFrozen(t *testing.T, c *lab.Cluster) {
	left := c.Follower()
	var frozen []*lab.Host
	for _, h := range c.Managers() {
		if h != left {
			frozen = append(frozen, h)
			h.Freeze()
		}
	}
	started := time.Now()
	r := left.Within(30*time.Second, "node", "label", left.Name, "frozen=yes")
	took := time.Since(started)
	refused(t, r, "leader")
	if took > 15*time.Second {
		t.Errorf("a write was refused after %s", took)
	}
	if n := alive("sleep 7101"); n < len(c.Hosts) {
		t.Errorf("only %d processes run without managers", n)
	}
	for _, h := range frozen {
		h.Thaw()
	}
	thawed := time.Now()
	for _, h := range c.Hosts[:3] {
		writable(t, h)
	}
	t.Logf("refused after %s: %s; writes through all managers %s after the thaw", short(took), strings.TrimSpace(r.Stderr), short(time.Since(thawed)))
	c.Leader().Must("node", "label", left.Name, "frozen-")
}

// workerWithoutPower: what ran on it runs elsewhere; when it comes back it
// starts nothing that is no longer wanted there.
func workerWithoutPower(t *testing.T, c *lab.Cluster) {
	runs := count(t, "RUNS", 3)
	h := c.Leader()
	h.Must("apply", "--wait=false", "-f", stack(t, `
name: move
services:
  s:
    image: `+image+`
    command: [sleep, "7102"]
    network_mode: none
    stop_signal: SIGKILL
    deploy: {replicas: 2, placement: {constraints: [node.role==worker]}}
`))
	var times []time.Duration
	for i := range runs {
		workers := c.Workers()
		victim := workers[i%len(workers)]
		// All of it is on the victim.
		for _, w := range workers {
			if w != victim {
				h.Must("node", "pause", w.Name)
			}
		}
		h.Must("service", "scale", "move/s=0") // waits until they are gone
		h.Must("service", "scale", "move/s=2", "--wait=false")
		placed(t, h, "move/s", 2, victim.Name)
		for _, w := range workers {
			h.Must("node", "activate", w.Name)
		}
		from := time.Now()
		victim.PowerOff()
		for alive("sleep 7102") != 2 {
			if time.Since(from) > 30*time.Second {
				t.Fatalf("not elsewhere after 30 s:\n%s%s", h.Must("node", "ls"), h.Must("ps", "move"))
			}
			time.Sleep(5 * time.Millisecond) // between two looks
		}
		times = append(times, time.Since(from))
		placed(t, h, "move/s", 2)
		victim.PowerOn()
		most := 0
		lab.Eventually(t, soon, victim.Name+" is back", func() error {
			most = max(most, aliveOn(victim, "sleep 7102"))
			if n := c.Nodes()[victim.Name]; n.State != "ready" {
				return errors.New(n.State)
			}
			if aliveOn(victim, "sleep 7101") != 1 {
				return errors.New("its task of everywhere does not run")
			}
			return nil
		})
		if most = max(most, aliveOn(victim, "sleep 7102")); most > 0 {
			t.Errorf("%s started %d processes that were not wanted there any more", victim.Name, most)
		}
		victim.WaitReady()
	}
	figure(t, "worker without power, its tasks running elsewhere", times, 3500*time.Millisecond, 5*time.Second)
	h.Must("rm", "move")
}

// workerCutOff: a worker that nobody can reach keeps what runs there; when it
// is back, it stops what is no longer wanted.
func workerCutOff(t *testing.T, c *lab.Cluster) {
	h, victim := c.Leader(), c.Workers()[0]
	h.Must("apply", "--wait=false", "-f", stack(t, `
name: cut
services:
  s:
    image: `+image+`
    command: [sleep, "7103"]
    network_mode: none
    stop_signal: SIGKILL
    deploy: {replicas: 4, placement: {constraints: [node.role==worker]}}
`))
	placed(t, h, "cut/s", 4)
	there := aliveOn(victim, "sleep 7103")
	if there == 0 {
		t.Fatal("nothing of it is on the worker")
	}
	c.Isolate(victim)
	lab.Eventually(t, soon, "the tasks are replaced", func() error {
		if n := alive("sleep 7103"); n != 4+there {
			return fmt.Errorf("%d processes, want %d", n, 4+there)
		}
		return nil
	})
	if n := aliveOn(victim, "sleep 7103"); n != there {
		t.Errorf("%d of %d tasks run on the worker without managers", n, there)
	}
	c.Heal()
	started := time.Now()
	lab.Eventually(t, soon, "the worker stops what is not wanted", func() error {
		if n := alive("sleep 7103"); n != 4 {
			return fmt.Errorf("%d processes, want 4", n)
		}
		return nil
	})
	t.Logf("%d tasks stopped %s after the end of the cut", there, short(time.Since(started)))
	c.Await(victim, soon, func(n lab.Node) bool { return n.State == "ready" }, "is ready")
	h.Must("rm", "cut")
	placed(t, h, "everywhere", len(c.Hosts))
}

// drain: a replacement is healthy before the old task stops.
func drain(t *testing.T, c *lab.Cluster) {
	h, victim := c.Follower(), c.Workers()[0]
	h.Must("apply", "-f", stack(t, `
name: healthy
services:
  s:
    image: `+image+`
    command: [sh, -c, "sleep 1; touch /tmp/ok; exec sleep 7104"]
    network_mode: none
    stop_signal: SIGKILL
    healthcheck: {test: [CMD, test, -e, /tmp/ok], interval: 500ms, retries: 20}
    deploy: {replicas: 2, placement: {preferences: [{spread: node.hostname}], constraints: [node.role==worker]}}
`))
	placed(t, h, "healthy/s", 2)
	if n := aliveOn(victim, "sleep 7104"); n != 1 {
		t.Fatalf("%d of 2 tasks are on %s, want one", n, victim.Name)
	}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	least := make(chan int)
	go func() {
		n := 2
		for ctx.Err() == nil {
			n = min(n, alive("sleep 7104"))
			pause(ctx, 20*time.Millisecond)
		}
		least <- n
	}()
	started := time.Now()
	h.Must("node", "drain", victim.Name)
	t.Logf("drained after %s", short(time.Since(started)))
	stop()
	if n := <-least; n < 2 {
		t.Errorf("only %d healthy processes ran at a time, want 2 all the while", n)
	}
	if got := on(t, h, "healthy/s"); slices.Contains(got, victim.Name) || len(got) != 2 {
		t.Errorf("after the drain its tasks are on %v", got)
	}
	if n := aliveOn(victim, "sleep 7104") + aliveOn(victim, "sleep 7101"); n != 0 {
		t.Errorf("%d processes run on the drained node", n)
	}
	if n := c.Nodes()[victim.Name]; n.Availability != string(spec.NodeDrain) || n.State != "ready" {
		t.Errorf("the drained node is %+v", n)
	}
	h.Must("node", "activate", victim.Name)
	placed(t, h, "everywhere", len(c.Hosts))
	h.Must("rm", "healthy")
}

// pinnedVolume: a task goes where its data is, and nowhere else.
func pinnedVolume(t *testing.T, c *lab.Cluster) {
	h := c.Leader()
	h.Must("apply", "--wait=false", "-f", stack(t, `
name: pin
services:
  s:
    image: `+image+`
    command: [sh, -c, "echo start >>/data/starts; exec sleep 7105"]
    network_mode: none
    stop_signal: SIGKILL
    volumes: ["data:/data"]
    deploy: {placement: {constraints: [node.role==worker]}}
volumes: {data: }
`))
	placed(t, h, "pin/s", 1)
	home := one(t, h, "pin/s").Node
	r := h.Wherry("node", "drain", home)
	if r.Code != 1 || !strings.Contains(r.Stderr, "pin.s.1") {
		t.Errorf("drain: exit %d, want 1 and the task that cannot move: %s%s", r.Code, r.Stdout, r.Stderr)
	}
	if n := aliveOn(c.Host(home), "sleep 7101"); n != 0 {
		t.Errorf("%d tasks that could move are on the drained node", n)
	}
	if got := on(t, h, "pin/s"); !slices.Equal(got, []string{home}) {
		t.Errorf("the task is on %v, its volume on %s", got, home)
	}
	h.Must("node", "drain", home, "--stop-pinned")
	if n := alive("sleep 7105"); n != 0 {
		t.Errorf("%d processes with the volume after --stop-pinned", n)
	}
	h.Must("node", "activate", home)
	placed(t, h, "pin/s", 1, home)
	if out := h.Must("exec", "pin/s", "--", "cat", "/data/starts"); strings.Count(out, "start") != 2 {
		t.Errorf("its volume holds %q, want two starts", out)
	}
	h.Must("rm", "pin", "--volumes")
	placed(t, h, "everywhere", len(c.Hosts))
}

// TestClusterRoles: promote, demote, remove and leave, with what each refuses.
func TestClusterRoles(t *testing.T) {
	c := grow(t, 1, 3)
	first := c.Hosts[0]
	first.Must("apply", "--wait=false", "-f", stack(t, "name: stay\nservices: {s: {image: "+image+", command: [sleep, '7111'], network_mode: none, stop_signal: SIGKILL, deploy: {mode: global}}}\n"))
	placed(t, first, "stay/s", 4)
	before := processes(t, first, "stay")

	refused(t, first.Wherry("node", "demote", first.Name), "only manager")
	refused(t, first.Wherry("node", "rm", first.Name, "--force"), "only manager")
	refused(t, first.Wherry("node", "rm", "host-4"), "--force")
	refused(t, first.Wherry("node", "rm", "nobody"), "nobody")

	started := time.Now()
	first.Must("node", "promote", "host-2")
	first.Must("node", "promote", "host-3")
	for _, h := range c.Hosts[1:3] {
		c.Await(h, soon, func(n lab.Node) bool { return n.Role == "manager" && n.State == "ready" }, "is a manager")
		h := h
		lab.Eventually(t, soon, h.Name+" answers as a manager", func() error {
			_, err := h.Nodes()
			return err
		})
	}
	voters := func(n int) {
		t.Helper()
		lab.Eventually(t, soon, fmt.Sprintf("%d voters", n), func() error {
			s, err := client(t, c.Leader()).ClusterStatus(t.Context())
			if err != nil {
				return err
			}
			got := 0
			for _, m := range s.Managers {
				if m.Raft == "leader" || m.Raft == "voter" {
					got++
				}
			}
			if got != n {
				return fmt.Errorf("%d: %+v", got, s)
			}
			return nil
		})
	}
	voters(3)
	t.Logf("two workers are voters %s after promote", short(time.Since(started)))

	c.Step(t, "below quorum", func(t *testing.T) {
		dead := c.Hosts[2]
		dead.Kill()
		c.Await(dead, soon, func(n lab.Node) bool { return n.State == "down" }, "is down", dead)
		refused(t, c.Leader(dead).Wherry("node", "demote", "host-2"), "no majority", dead.Name)
		dead.Launch()
		dead.WaitReady()
	})

	c.Step(t, "demote the leader", func(t *testing.T) {
		leader := c.Leader()
		w := writing(t, c.Managers(), 1, "demote")
		w.flow(t, 20)
		from := time.Now()
		leader.Must("node", "demote", leader.Name)
		w.flow(t, 20)
		gap := w.gap(from)
		c.Await(leader, soon, func(n lab.Node) bool { return n.Role == "worker" && n.State == "ready" }, "is a worker", leader)
		w.end(t, client(t, c.Leader(leader)))
		figure(t, "leader demoted", []time.Duration{gap}, 0, 300*time.Millisecond)
		lab.Eventually(t, soon, leader.Name+" answers as a worker", func() error {
			if r := leader.Wherry("ls"); r.Code != 5 || !strings.Contains(r.Stderr, "worker") {
				return fmt.Errorf("%+v", r)
			}
			return nil
		})
		lab.Eventually(t, soon, "it has nothing of the state", func() error {
			for _, f := range []string{"raft/log", "raft/snapshots"} {
				if _, err := os.Stat(filepath.Join(leader.DataDir, f)); err == nil {
					return fmt.Errorf("%s is there", f)
				}
			}
			keys, err := os.ReadFile(filepath.Join(leader.DataDir, "keyring"))
			if strings.Contains(string(keys), "data_key") {
				return errors.New("it has the data key")
			}
			return err
		})
		voters(2)
	})
	same(t, c.Leader(), "stay", before)

	c.Step(t, "remove", func(t *testing.T) {
		gone := c.Hosts[3]
		h := c.Leader()
		started := time.Now()
		h.Must("node", "rm", gone.Name, "--force")
		lab.Eventually(t, soon, "it stops what it runs", func() error {
			if n := aliveOn(gone, "sleep 7111"); n != 0 {
				return fmt.Errorf("%d processes", n)
			}
			return nil
		})
		t.Logf("it has stopped what it ran after %s", short(time.Since(started)))
		if !strings.Contains(gone.LogTail(200), "removed") {
			t.Errorf("its log does not say that it was removed:\n%s", gone.LogTail(20))
		}
		gone.PowerOff()
		if _, ok := c.Nodes()[gone.Name]; ok {
			t.Error("it is still listed")
		}
		// A dead one goes without force.
		dead := c.Workers()[0]
		dead.PowerOff()
		c.Await(dead, soon, func(n lab.Node) bool { return n.State == "down" }, "is down")
		c.Leader().Must("node", "rm", dead.Name)
		// Its name is free again.
		dead.Wipe()
		dead.Join(c.Leader(), "worker")
		dead.WaitReady()
		t.Logf("removed, wiped and back as another node after %s in all", short(time.Since(started)))
	})

	c.Step(t, "leave", func(t *testing.T) {
		leaver := c.Workers()[0]
		placed(t, c.Leader(), "stay/s", len(c.Nodes()))
		started := time.Now()
		r := leaver.Wherry("node", "leave", "--purge")
		t.Logf("it has left after %s", short(time.Since(started)))
		if r.Code != 0 {
			t.Fatalf("exit %d: %s", r.Code, r.Stderr)
		}
		if err := leaver.Wait(20 * time.Second); err != nil {
			t.Errorf("%v\n%s", err, leaver.LogTail(20))
		}
		if _, ok := c.Nodes()[leaver.Name]; ok {
			t.Error("it is still listed")
		}
		if left := leaver.Remains(); len(left) > 0 {
			t.Errorf("it leaves behind:\n%s", strings.Join(left, "\n"))
		}
		leaver.Forget()
	})
}

// TestClusterFullDisk: a leader on a full disk refuses writes and says so, or
// gives way; no write that was acknowledged is lost.
func TestClusterFullDisk(t *testing.T) {
	l := lab.New(t)
	c := &lab.Cluster{Lab: l}
	for i := range 3 {
		h := l.Host(fmt.Sprintf("host-%d", i+1))
		h.Disk("320m")
		c.Hosts = append(c.Hosts, h)
	}
	c.Hosts[0].Start()
	c.Hosts[1].Join(c.Hosts[0], "manager")
	c.Hosts[2].Join(c.Hosts[0], "manager")
	c.Hosts[1].WaitReady()
	c.Hosts[2].WaitReady()
	load(t, c.Hosts[0], images.Must(t, image, ""))

	w := writing(t, c.Managers(), 1, "disk")
	w.flow(t, 20)
	leader := c.Leader()
	filler := filepath.Join(leader.DataDir, "filler")
	fd, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	for block := make([]byte, 64<<10); err == nil; {
		_, err = fd.Write(block)
	}
	fd.Close()
	started := time.Now()
	r := leader.Within(30*time.Second, "node", "label", leader.Name, "full=yes")
	if r.Code == 0 {
		t.Logf("a write succeeds on a full disk: %s leads now", c.Leader().Name)
	} else {
		refused(t, r)
		t.Logf("refused after %s: %s", short(time.Since(started)), strings.TrimSpace(r.Stderr))
	}
	if took := time.Since(started); took > 15*time.Second {
		t.Errorf("it took %s to say so", took)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if !leader.Alive() {
		leader.Launch()
	}
	leader.WaitReady()
	w.flow(t, 20)
	w.end(t, client(t, c.Leader()))
}

// TestClusterImageElsewhere: an image that only one host has can be run on
// another, also when that one could not resolve its name by itself.
func TestClusterImageElsewhere(t *testing.T) {
	c := grow(t, 1, 1)
	worker := c.Hosts[1]
	load(t, worker, images.Must(t, "wherry-examples/only-here:1", ""))
	c.Hosts[0].Must("apply", "--wait=false", "-f", stack(t, "name: img\nservices: {s: {image: 'wherry-examples/only-here:1', command: [sleep, '7121'], network_mode: none, stop_signal: SIGKILL, deploy: {mode: global}}}\n"))
	placed(t, c.Hosts[0], "img/s", 2)
	for _, h := range c.Hosts {
		if n := aliveOn(h, "sleep 7121"); n != 1 {
			t.Errorf("%d processes on %s", n, h.Name)
		}
	}
}
