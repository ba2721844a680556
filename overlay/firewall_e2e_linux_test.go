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
	"syscall"
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

// docker is a dockerd in the namespace of the test.
type docker struct {
	t   *testing.T
	dir string
	cmd *exec.Cmd
}

func startDocker(t *testing.T) *docker {
	t.Helper()
	if _, err := exec.LookPath("dockerd"); err != nil {
		t.Skip("there is no dockerd here: apt-get install docker.io, with its service off")
	}
	d := &docker{t: t, dir: t.TempDir()}
	t.Cleanup(func() {
		d.do("rm -f $(docker ps -aq) 2>/dev/null; true")
		d.stop()
		sh(t, "ip link del docker0; umount "+d.dir+"/exec/netns/* 2>/dev/null; true")
	})
	d.start()
	return d
}

func (d *docker) start() {
	d.t.Helper()
	log, err := os.OpenFile(d.dir+"/log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	defer log.Close()
	d.cmd = exec.Command("dockerd", "--data-root", d.dir+"/data", "--exec-root", d.dir+"/exec", "--pidfile", d.dir+"/pid", "-H", "unix://"+d.dir+"/sock", "--storage-driver", "vfs")
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if err := d.cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) { // between two looks
		if d.try("version") == nil {
			return
		}
		if time.Now().After(deadline) {
			b, _ := os.ReadFile(d.dir + "/log")
			d.t.Fatalf("dockerd does not answer; its log:\n%s", b)
		}
	}
}

func (d *docker) stop() {
	d.t.Helper()
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		d.t.Error(err)
	}
	_ = d.cmd.Wait()
}

func (d *docker) try(args string) error {
	return exec.Command("sh", "-c", "DOCKER_HOST=unix://"+d.dir+"/sock; export DOCKER_HOST; docker "+args).Run()
}

func (d *docker) do(args string) string {
	d.t.Helper()
	return sh(d.t, "DOCKER_HOST=unix://"+d.dir+"/sock; export DOCKER_HOST; docker "+args)
}

// TestBesideDocker: dockerd has set the policy of forwarding to drop. With the
// lines that are advised, and with none of Docker's own rules changed, its
// containers and our tasks reach the outside, are reached from there, and reach
// each other by published ports; also when either is started anew.
func TestBesideDocker(t *testing.T) {
	for _, nf := range []string{"0", "1"} {
		t.Run("bridge-nf "+nf, func(t *testing.T) {
			w := newWorld(t, nf)
			w.stop()
			sh(t, "echo 0 > /proc/sys/net/ipv4/ip_forward")
			d := startDocker(t)
			sh(t, "echo "+nf+" > /proc/sys/net/bridge/bridge-nf-call-iptables") // dockerd switches it on
			sh(t, "mkdir -p "+d.dir+"/img/bin && cp $(command -v busybox) "+d.dir+"/img/bin/ && for a in sh nc echo; do ln -s busybox "+d.dir+"/img/bin/$a; done && tar -C "+d.dir+"/img -c . >"+d.dir+"/img.tar")
			d.do("import " + d.dir + "/img.tar box")
			const web = "run -d --name web -p 8081:80 box /bin/nc -ll -p 80 -e /bin/echo docker"
			d.do(web)
			rules := func() string { return sh(t, "iptables-save | grep -v '^[#:]'") }
			w.start()
			w.network("1-1", "10.9.1.0/24", "10.9.1.1", false)
			w.nets[0].Ports = []spec.PublishedPort{{Port: 8080, Protocol: "tcp", Owner: "shop/web", Targets: []string{"10.9.1.2:80"}}}
			w.set()
			one := w.attach(sandbox("1-10", "shop.web.1", "1-1=10.9.1.2/24"))
			two := w.attach(sandbox("1-11", "shop.web.2", "1-1=10.9.1.3/24"))
			w.serve(one, "tcp", "0.0.0.0:80", "ours")
			w.serve(w.client(), "tcp", "0.0.0.0:80", "client")
			w.dropped(one, "tcp", clientIP+":80")
			var problems []FirewallProblem
			w.eventually("Docker is named", func() error {
				if problems = w.host.Status().Firewalls; len(problems) != 1 || !strings.Contains(problems[0].Chain, "Docker's") {
					return fmt.Errorf("%v", problems)
				}
				return nil
			})
			for _, line := range problems[0].Add {
				sh(t, line)
			}
			before := rules()
			check := func() {
				t.Helper()
				w.want(one, "tcp", clientIP+":80", "client "+hostIP)
				w.want(w.client(), "tcp", hostIP+":8080", "ours "+clientIP)
				w.want(two, "tcp", "10.9.1.2:80", "ours 10.9.1.3")
				w.want(w.client(), "tcp", hostIP+":8081", "docker\n")
				w.want(one, "tcp", hostIP+":8081", "docker\n")
				// Docker gives what its containers send to other bridges the host's address.
				for to, answer := range map[string]string{clientIP + " 80": "client " + hostIP, hostIP + " 8080": "ours 10.9.1.1"} {
					if got := d.do("exec web /bin/nc -w 2 " + to + " 2>&1 || true"); got != answer {
						t.Errorf("Docker's container to %s: %q, want %q", to, got, answer)
					}
				}
			}
			check()
			w.eventually("nothing is said any more", func() error {
				if st := w.host.Status(); len(st.Firewalls)+len(st.Errors) > 0 {
					return fmt.Errorf("%v %v", st.Firewalls, st.Errors)
				}
				return nil
			})
			w.stop()
			w.start()
			w.set()
			check()
			if diff := cmp.Diff(before, rules()); diff != "" {
				t.Errorf("rules of others were changed:\n%s", diff)
			}
			d.do("rm -f web")
			d.stop()
			d.start()
			d.do(web)
			sh(t, "echo "+nf+" > /proc/sys/net/bridge/bridge-nf-call-iptables")
			check()
		})
	}
}
