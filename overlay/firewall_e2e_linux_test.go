//go:build e2e

package overlay

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"wherry.dev/spec"
)

// loaders give rulesets to the kernel by the tools that they are written for.
var loaders = map[string][]string{
	"iptables": {"iptables-restore"},
	"legacy":   {"iptables-legacy-restore"},
	"nft":      {"nft", "-f", "-"},
}

// TestFirewallsAreRead: what tools give to the kernel is read from it as the
// rulesets of TestFirewalls say.
func TestFirewallsAreRead(t *testing.T) {
	files, err := filepath.Glob("testdata/firewalls/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no rulesets: %v", err)
	}
	spaces := newNamespaces(t.TempDir())
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			// What the old iptables has made stays as long as the namespace.
			ns, err := spaces.make(spec.Sandbox{Task: "host"})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = spaces.remove("host") })
			var chains []fwChain
			if err := at(ns, func() error {
				sh(t, "ip link set lo up; ip link add eth0 type veth peer name out0")
				by := loaders[ar.Files[0].Name]
				cmd := exec.Command(by[0], by[1:]...)
				cmd.Stdin = strings.NewReader(string(ar.Files[0].Data))
				if out, err := cmd.CombinedOutput(); err != nil {
					return fmt.Errorf("%s: %w\n%s", by[0], err, out)
				}
				var f firewalls
				defer f.close()
				chains, err = f.foreign()
				return err
			}); err != nil {
				t.Fatal(err)
			}
			want := section(ar, "chains")
			if got := chainsText(chains); *update {
				want.Data = []byte(got)
				if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if diff := cmp.Diff(string(want.Data), got); diff != "" {
				t.Errorf("read as (-want +got):\n%s", diff)
			}
		})
	}
}

// load gives the first section of a ruleset to the kernel of a host whose
// uplink is called otherwise.
func (m *member) load(ar *txtar.Archive) {
	m.t.Helper()
	by := loaders[ar.Files[0].Name]
	cmd := exec.Command("nsenter", append([]string{"--net=" + m.ns}, by...)...)
	cmd.Stdin = strings.NewReader(strings.ReplaceAll(string(ar.Files[0].Data), "eth0", "up0"))
	if out, err := cmd.CombinedOutput(); err != nil {
		m.t.Fatalf("%s: %v\n%s", by[0], err, out)
	}
}

// TestBesideFirewalls: tasks of two hosts, the outside and a published port
// talk beside each firewall as soon as its advice is followed, and before that
// it is named. A tool that is not here is stood in for by what it makes of its
// advice.
func TestBesideFirewalls(t *testing.T) {
	for _, name := range []string{"docker", "docker-legacy", "ufw", "firewalld", "nftables", "bridge"} {
		for _, nf := range []string{"0", "1"} {
			t.Run(name+" with bridge-nf "+nf, func(t *testing.T) {
				before, err := txtar.ParseFile("testdata/firewalls/" + name + ".txtar")
				if err != nil {
					t.Fatal(err)
				}
				f := newFleet(t, 2, false)
				m := f.members[0]
				client := f.join(3)
				t.Cleanup(func() {
					client.sh("ip link del up0")
					_ = f.spaces.remove("host-3")
				})
				m.sh("ip route add default via 198.18.0.13; echo " + nf + " > /proc/sys/net/bridge/bridge-nf-call-iptables")
				m.quit(false)
				m.Resync = 200 * time.Millisecond
				m.start()
				m.load(before)
				f.edit = func(at *member, d *spec.HostNetwork) {
					if at == m {
						d.Ports = []spec.PublishedPort{{Port: 8080, Protocol: "tcp", Owner: "shop/web", Targets: []string{"10.9.1.3:80"}}}
					}
				}
				f.task(0, "1-10", "10.9.1.2")
				f.task(1, "1-20", "10.9.1.3")
				f.set()
				f.attachAll()
				f.serveAll()
				f.serve(client.ns, "tcp", "0.0.0.0:80", "client")
				ways := []struct{ what, from, to, answer string }{
					{"out", f.tasks[0].ns, "198.18.0.13:80", "client 198.18.0.11"},
					{"in", client.ns, "198.18.0.11:8080", "10.9.1.3 198.18.0.13"},
					{"from the other host", f.tasks[1].ns, "10.9.1.2:80", "10.9.1.2 10.9.1.3"},
					{"to the other host", f.tasks[0].ns, "10.9.1.3:80", "10.9.1.3 10.9.1.2"},
				}
				var stopped atomic.Int32
				var all sync.WaitGroup
				for _, w := range ways {
					all.Go(func() {
						if _, err := ask(w.from, "tcp", w.to); err != nil {
							stopped.Add(1)
						}
					})
				}
				all.Wait()
				problems := m.do(order{}).Status.Firewalls
				if stopped.Load() == 0 || len(problems) == 0 {
					t.Fatalf("%d ways stopped, said of it: %v", stopped.Load(), problems)
				}
				if cured, err := txtar.ParseFile("testdata/firewalls/" + name + "-cured.txtar"); err == nil && name != "docker" {
					m.sh("nft flush ruleset")
					m.load(cured)
				} else {
					for _, p := range problems {
						for _, line := range p.Add {
							m.sh(line)
						}
					}
				}
				f.eventually("the firewall is named no more", func() error {
					if left := m.do(order{}).Status.Firewalls; len(left) > 0 {
						return fmt.Errorf("%v", left)
					}
					return nil
				})
				for _, w := range ways {
					f.eventually(w.what, func() error {
						if got, err := ask(w.from, "tcp", w.to); err != nil || got != w.answer {
							return fmt.Errorf("%q, %v", got, err)
						}
						return nil
					})
				}
			})
		}
	}
}
