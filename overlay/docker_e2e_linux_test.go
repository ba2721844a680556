//go:build e2e && docker

package overlay

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wherry.dev/spec"
)

// Docker itself is too much for each run of all tests: what it makes is played
// from a recording there, see TestBesideFirewalls. With the tag docker, and
// dockerd in the path, this is what it does.

// docker is a dockerd in the namespace of the test.
type docker struct {
	t   *testing.T
	dir string
	cmd *exec.Cmd
}

func startDocker(t *testing.T) *docker {
	t.Helper()
	if _, err := exec.LookPath("dockerd"); err != nil {
		t.Fatal("there is no dockerd here: make soak RUN=Docker brings one")
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
			t.Logf("figure beside Docker %s with bridge-nf %s: named with its lines, then nothing is dropped, and no rule of its own changed: %v",
				strings.TrimSpace(d.do("version --format '{{.Server.Version}}'")), nf, !t.Failed())
		})
	}
}
