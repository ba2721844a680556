//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"wherry.dev/tests/lab"
)

// TestClusterJoinTime: from the command to ready. RUNS is how often.
func TestClusterJoinTime(t *testing.T) {
	c := &lab.Cluster{Lab: lab.New(t)}
	first := c.Lab.Host("host-1")
	c.Hosts = []*lab.Host{first}
	first.Start()
	token, cl := first.Token("worker"), client(t, first)
	joiner := c.Lab.Host("joiner")
	var times []time.Duration
	for range count(t, "RUNS", 3) {
		started := time.Now()
		joiner.JoinWith(first.Address(), token)
		for {
			if n, err := cl.Node(t.Context(), "joiner"); err == nil && n.State == "ready" && n.Info.NanoCPUs > 0 {
				break
			}
			if time.Since(started) > soon {
				t.Fatalf("not ready after %s:\n%s", soon, joiner.LogTail(40))
			}
			time.Sleep(2 * time.Millisecond) // between two looks
		}
		times = append(times, time.Since(started))
		joiner.WaitReady()
		joiner.Wipe()
		first.Must("node", "rm", "joiner", "--force")
	}
	figure(t, "join of a worker", times, 0, time.Second)
}

// TestClusterDiskHangs: a leader whose disk hangs is replaced, and what it had
// acknowledged is there.
func TestClusterDiskHangs(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		t.Fatal("this test needs strace: apt-get install strace")
	}
	c := grow(t, 3, 0)
	w := writing(t, c.Hosts, 2, "hang")
	var gaps []time.Duration
	for range count(t, "RUNS", 1) {
		w.flow(t, 20)
		leader := c.Leader()
		// Each sync waits for a minute before it is made.
		hang := exec.Command("strace", "-f", "-qqq", "-o", "/dev/null", "-p", fmt.Sprint(leader.PID()),
			"-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:delay_enter=60s")
		if err := hang.Start(); err != nil {
			t.Fatal(err)
		}
		traced(t, leader.PID())
		from := time.Now()
		w.flow(t, 20)
		gaps = append(gaps, w.gap(from))
		if now := c.Leader(leader); now == leader {
			t.Error("the leader with the hanging disk still leads")
		}
		_ = syscall.Kill(leader.PID(), syscall.SIGKILL) // it may have ended by itself
		_ = hang.Process.Kill()                         // whoever is traced dies when nobody holds him
		_ = hang.Wait()
		leader.Kill()
		leader.Launch()
		leader.WaitReady()
	}
	w.end(t, client(t, c.Leader()))
	figure(t, "leader with a hanging disk replaced", gaps, 0, 6*time.Second)
}

// traced waits until strace has taken hold of a process.
func traced(t *testing.T, pid int) {
	t.Helper()
	lab.Eventually(t, soon, "strace has attached", func() error {
		out, err := exec.Command("grep", "-c", "TracerPid:\t[1-9]", fmt.Sprintf("/proc/%d/status", pid)).Output()
		if err != nil {
			return errors.Join(errors.New(string(out)), err)
		}
		return nil
	})
}

// TestClusterLeaderChanges: CHANGES leader changes under load, by turns a kill,
// a stop and a freeze: no acknowledged write is lost, no task restarts, no
// other node is declared down.
func TestClusterLeaderChanges(t *testing.T) {
	c := grow(t, 3, 2)
	c.Hosts[0].Must("apply", "--wait=false", "-f", stack(t, "name: calm\nservices: {s: {image: "+image+", command: [sleep, '7401'], network_mode: none, stop_signal: SIGKILL, deploy: {mode: global}}}\n"))
	placed(t, c.Hosts[0], "calm/s", len(c.Hosts))
	before := processes(t, c.Hosts[0], "calm")
	cl := client(t, c.Hosts[0])
	seq := newestEvent(t, cl)
	w := writing(t, c.Hosts[:3], 3, "change")
	changes := count(t, "CHANGES", 3)
	flips := 0
	for i := range changes {
		w.flow(t, 10)
		leader := c.Leader()
		switch i % 3 {
		case 0:
			leader.Kill()
			leader.Launch()
		case 1:
			leader.Stop()
			leader.Launch()
		default:
			leader.Freeze()
			next := c.Leader(leader)
			if next == leader {
				t.Fatal("a frozen leader leads")
			}
			leader.Thaw()
		}
		w.flow(t, 10)
		leader.WaitReady()
		down, last := diary(t, client(t, c.Leader()), seq)
		seq = last
		for _, n := range down {
			t.Errorf("change %d (of %s): %s was declared down", i, leader.Name, n)
			flips++
		}
	}
	same(t, c.Leader(), "calm", before)
	w.end(t, client(t, c.Leader()))
	t.Logf("figure leader changes under load: n=%d, %d node-state flips, tasks and writes as above", changes, flips)
}

// TestClusterLoss: LOSS of 20 % of all frames between HOSTS hosts, and nobody
// is declared down.
func TestClusterLoss(t *testing.T) {
	hosts, d := count(t, "HOSTS", 5), span(t, "LOSS", 8*time.Second)
	c := lab.New(t).Cluster(3, hosts-3)
	seq := newestEvent(t, client(t, c.Hosts[0]))
	c.Loss(20)
	started, wrote := time.Now(), 0
	for time.Since(started) < d {
		if r := c.Hosts[wrote%3].Within(20*time.Second, "node", "label", "host-1", fmt.Sprintf("n=%d", wrote)); r.Code == 0 {
			wrote++
		}
	}
	c.Heal()
	down, _ := diary(t, client(t, c.Leader()), seq)
	if len(down) > 0 {
		t.Errorf("declared down: %v", down)
	}
	if wrote == 0 {
		t.Error("no write was accepted")
	}
	t.Logf("figure loss of 20 %% for %s over %d hosts: %d declared down, %d writes accepted", d, hosts, len(down), wrote)
}

// TestClusterBusy: for BUSY, eight busy loops beside three managers on this
// machine, and no election.
func TestClusterBusy(t *testing.T) {
	d := span(t, "BUSY", 8*time.Second)
	c := lab.New(t).Cluster(3, 2)
	cl := client(t, c.Hosts[0])
	seq := newestEvent(t, cl)
	term := func() uint64 {
		t.Helper()
		var term uint64
		lab.Eventually(t, soon, "the status can be read", func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			s, err := cl.ClusterStatus(ctx)
			term = s.Term
			return err
		})
		return term
	}
	before := term()
	var loops []*exec.Cmd
	for range 8 {
		loop := exec.Command("sh", "-c", "while :; do :; done")
		loop.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		if err := loop.Start(); err != nil {
			t.Fatal(err)
		}
		loops = append(loops, loop)
	}
	time.Sleep(d) // the time is the experiment
	after := term()
	for _, loop := range loops {
		_ = loop.Process.Kill()
		_ = loop.Wait()
	}
	down, _ := diary(t, cl, seq)
	if after != before || len(down) > 0 {
		t.Errorf("term %d has become %d; declared down: %s", before, after, strings.Join(down, " "))
	}
	t.Logf("figure %s beside 8 busy loops: %d elections, %d declared down", d, after-before, len(down))
}
