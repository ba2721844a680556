//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"wherry.dev/tests/lab"
)

// TestClusterJoinRefused: each join that cannot be ends with a message that
// says why, and leaves nothing behind on either side.
func TestClusterJoinRefused(t *testing.T) {
	l := lab.New(t)
	c := &lab.Cluster{Lab: l, Hosts: []*lab.Host{l.Host("host-1")}}
	first := c.Hosts[0]
	first.Start()
	foreign, local := l.Host("foreign"), l.Host("local", "--advertise", "127.0.0.1")
	foreign.Launch()
	local.Launch()
	foreign.WaitReady()
	local.WaitReady()
	guest := l.Host("guest")

	rotated := first.Token("worker")
	worker := strings.TrimSpace(first.Must("token", "worker", "--quiet", "--rotate"))
	if worker == rotated {
		t.Error("rotation gives the same token")
	}
	short := strings.TrimSpace(first.Must("token", "manager", "--quiet", "--ttl", "1s"))
	expired := time.Now().Add(1500 * time.Millisecond)
	at := first.Address()
	flip := func(s string, i int) string {
		b := []byte(s)
		if b[i] == 'a' {
			b[i] = 'b'
		} else {
			b[i] = 'a'
		}
		return string(b)
	}

	cases := []refusal{
		{"malformed token", at, worker[:len(worker)-3], nil, []string{"join token is malformed"}},
		{"no token at all", at, "hello", nil, []string{"join token is malformed"}},
		{"wrong secret", at, flip(worker, len(worker)-5), nil, []string{"join token is wrong or was rotated"}},
		{"rotated token", at, rotated, nil, []string{"join token is wrong or was rotated", "wherry token worker"}},
		{"token of another cluster", at, foreign.Token("worker"), nil, []string{"another cluster", "Nothing was sent"}},
		{"another cluster's address", foreign.Address(), worker, nil, []string{"another cluster", "Nothing was sent"}},
		{"name taken", at, worker, []string{"--name", "host-1"}, []string{"the name host-1 is taken", "--name"}},
		{"advertises loopback", at, worker, []string{"--advertise", "127.0.0.1"}, []string{"127.0.0.1", "--advertise"}},
		{"a manager on loopback", local.Address(), local.Token("worker"), nil, []string{"--advertise", "local"}},
		{"expired token", at, short, nil, []string{"join token expired at", "--rotate"}},
	}
	// These two wait for an answer, each on a host of its own meanwhile.
	unanswered := []refusal{
		{"nobody listens", first.IP + ":4478", worker, nil, []string{"nobody answers there", first.IP + ":4478"}},
		{"no such host", "10.123.0.222:4477", worker, nil, []string{"nobody answers there", "10.123.0.222:4477"}},
	}
	var waiting sync.WaitGroup
	results := make([]lab.Result, len(unanswered))
	hosts := make([]*lab.Host, len(unanswered))
	for i, c := range unanswered {
		h := l.Host(fmt.Sprintf("waits-%d", i))
		hosts[i] = h
		waiting.Go(func() { results[i] = h.Daemon(30*time.Second, "--join", c.addr, "--token", c.token) })
	}
	for _, c := range cases {
		l.Step(t, c.name, func(t *testing.T) {
			if c.name == "expired token" {
				time.Sleep(time.Until(expired)) // the end of the token is the experiment
			}
			c.check(t, guest, guest.Daemon(20*time.Second, slices.Concat([]string{"--join", c.addr, "--token", c.token}, c.flags)...))
		})
	}
	waiting.Wait()
	for i, c := range unanswered {
		l.Step(t, c.name, func(t *testing.T) { c.check(t, hosts[i], results[i]) })
	}
	l.Step(t, "port taken", func(t *testing.T) {
		nc := exec.Command("nsenter", "--net="+l.NSPath("guest"), "--", "busybox", "nc", "-l", "-p", "4477")
		in, err := nc.StdinPipe() // at the end of its input it would end
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		if err := nc.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = nc.Process.Kill(); _ = nc.Wait() }()
		lab.Eventually(t, soon, "somebody listens on 4477", func() error {
			if out := l.In("guest", "ss", "-Hltn", "sport = :4477").Stdout; !strings.Contains(out, ":4477") {
				return fmt.Errorf("sockets: %q", out)
			}
			return nil
		})
		refused(t, guest.Daemon(20*time.Second, "--join", at, "--token", worker), "port 4477/tcp is in use")
		refused(t, guest.Daemon(20*time.Second), "port 4477/tcp is in use")
	})
	if nodes, err := first.Nodes(); err != nil || len(nodes) != 1 {
		t.Errorf("nodes after all refusals: %v %v", nodes, err)
	}

	// After all of this the same host joins with the right words; and the same
	// line again, which is what a unit file says at each boot, is no harm.
	l.Step(t, "join, and again", func(t *testing.T) {
		guest.JoinWith(at, worker)
		guest.WaitReady()
		id := c.Nodes()["guest"].ID
		guest.Stop()
		guest.JoinWith(at, worker)
		guest.WaitReady()
		if got := c.Nodes()["guest"].ID; got != id {
			t.Errorf("its ID was %s and is %s", id, got)
		}
		guest.Stop()
		refused(t, guest.Daemon(20*time.Second, "--join", foreign.Address(), "--token", foreign.Token("worker")), "another cluster")
		guest.Launch()
		guest.WaitReady()
	})

	l.Step(t, "two holders of one identity", func(t *testing.T) {
		for _, of := range []*lab.Host{guest, first} {
			twin := l.Host("twin-" + of.Name)
			copyFolder(t, of.DataDir, twin.DataDir)
			r := twin.Daemon(30*time.Second, "--name", of.Name, "--peer", at)
			refused(t, r, "identity")
			t.Logf("copy of %s: exit %d: %s", of.Name, r.Code, lastLine(r.Stderr))
			if n := twin.Processes(); len(n) > 0 {
				t.Errorf("the twin leaves processes %v", n)
			}
			twin.PowerOff()
		}
		for _, h := range []*lab.Host{first, guest} {
			if !h.Alive() {
				t.Fatalf("%s, the rightful holder, has ended:\n%s", h.Name, h.LogTail(20))
			}
			h.WaitReady()
		}
		if got := c.Nodes()["guest"].Address; got != guest.Address() {
			t.Errorf("guest is at %s, want %s", got, guest.Address())
		}
	})
}

// refusal is a join that cannot be, and what the message must say.
type refusal struct {
	name, addr, token string
	flags, want       []string
}

func (c refusal) check(t *testing.T, h *lab.Host, r lab.Result) {
	t.Helper()
	refused(t, r, c.want...)
	t.Logf("exit %d: %s", r.Code, lastLine(r.Stderr))
	if len(c.token) > 20 && strings.Contains(r.Stderr, c.token[len(c.token)-20:]) {
		t.Error("the message shows the token's secret")
	}
	clean(t, h)
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// clean checks that a refused join has left nothing but what the next one needs.
func clean(t *testing.T, h *lab.Host) {
	t.Helper()
	if pids := h.Processes(); len(pids) > 0 {
		t.Errorf("processes %v are left", pids)
	}
	for _, f := range []string{"raft", "keyring", "tls/cert.pem", "tls/roots.pem", "peers.json", "containerd"} {
		if _, err := os.Stat(filepath.Join(h.DataDir, f)); err == nil {
			t.Errorf("%s is left in the data folder", f)
		}
	}
}

// copyFolder copies what makes the identity and the state of a host, without
// its images.
func copyFolder(t *testing.T, from, to string) {
	t.Helper()
	if err := os.MkdirAll(to, 0o700); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() == "containerd" || e.Name() == "volumes" {
			continue
		}
		if out, err := exec.Command("cp", "-a", "--sparse=always", filepath.Join(from, e.Name()), to).CombinedOutput(); err != nil {
			t.Fatalf("copy %s: %v: %s", e.Name(), err, out)
		}
	}
}
