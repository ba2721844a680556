//go:build play

package lab

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
)

const usage = `commands:
  ls                                   hosts and what is cut
  start|stop|kill|freeze|thaw HOST     the daemon
  poweroff|poweron|wipe HOST           the host; wipe is poweroff without the disk
  new HOST manager|worker              one more host, which joins
  cut A B | cutboth A B | isolate A    drop what A sends to B | both ways | to and from all
  loss PERCENT | heal                  drop frames at random | take back cuts and loss
  address HOST IP                      another address; restart its daemon with stop and start
  probe                                who reaches whom
  run HOST COMMAND…                    in the host's network
  down                                 take everything away
`

// play is a testing.TB by which a command that fails tells its user, instead
// of ending the lab.
type play struct {
	*testing.T
	busy bool
}

type failure string

func (p *play) Fatalf(format string, args ...any) {
	p.Helper()
	if p.busy {
		panic(failure(fmt.Sprintf(format, args...)))
	}
	p.T.Fatalf(format, args...)
}

func (p *play) Fatal(args ...any) {
	p.Helper()
	p.Fatalf("%s", fmt.Sprintln(args...))
}

// TestPlay brings up a cluster for a person to play with, takes commands on a
// socket in LAB_DIR, and takes everything down again: `make lab`.
func TestPlay(t *testing.T) {
	dir, err := filepath.Abs(os.Getenv("LAB_DIR"))
	if err != nil {
		t.Fatal(err)
	}
	managers, workers := size(t)
	socket, ready := filepath.Join(dir, "lab.sock"), filepath.Join(dir, "lab.txt")
	p := &play{T: t}
	l := New(p)
	if err := os.WriteFile(filepath.Join(dir, "lab.dir"), []byte(l.dir), 0o644); err != nil {
		t.Fatal(err)
	}
	c := l.Cluster(managers, workers)
	if images, err := filepath.Glob("../../build/images/*.tar"); err == nil && len(images) > 0 {
		c.Hosts[0].Must(append([]string{"image", "load"}, images...)...)
	}
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, os.Interrupt, syscall.SIGTERM)
	var mu sync.Mutex
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		line, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		out, err := p.command(c, strings.Fields(string(line)), end)
		if err != nil {
			w.WriteHeader(http.StatusBadRequest)
			out = err.Error() + "\n"
		}
		_, _ = io.WriteString(w, out) // whoever asked may be gone
	})}
	go func() { _ = server.Serve(listener) }() // it ends with the lab
	defer server.Close()

	var text strings.Builder
	for _, h := range c.Hosts {
		fmt.Fprintf(&text, "%-8s %-13s export WHERRY_HOST=%s; tail -f %s\n", h.Name, h.IP, h.Socket(), h.LogFile())
	}
	fmt.Fprintf(&text, "\nAs root: %s node ls; build/lab/lab COMMAND, with\n%s\nmake lab-down takes everything away again.\n", Binary(t), usage)
	if err := os.WriteFile(ready, []byte(text.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	<-end
	for _, f := range []string{ready, socket} {
		_ = os.Remove(f) // the next lab writes them anew
	}
}

// size of the cluster: MANAGERS and WORKERS, or HOSTS in all, which is one.
func size(t *testing.T) (managers, workers int) {
	t.Helper()
	number := func(name string, def int) int {
		v := os.Getenv(name)
		if v == "" {
			return def
		}
		n, err := strconv.Atoi(v)
		if err != nil || n < 0 {
			t.Fatalf("%s=%q: want a number", name, v)
		}
		return n
	}
	hosts := max(1, number("HOSTS", 1))
	managers = 1
	if hosts >= 3 {
		managers = 3
	}
	managers = max(1, number("MANAGERS", managers))
	return managers, number("WORKERS", max(0, hosts-managers))
}

// TestSweep takes away a lab whose own process is dead.
func TestSweep(t *testing.T) {
	dir, err := os.ReadFile(filepath.Join(os.Getenv("LAB_DIR"), "lab.dir"))
	if err != nil {
		t.Fatal(err)
	}
	l := &Lab{t: t, name: filepath.Base(string(dir)), dir: string(dir)}
	entries, err := os.ReadDir(l.dir)
	if errors.Is(err, os.ErrNotExist) {
		return // it took itself away
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		h := &Host{Name: e.Name(), lab: l, DataDir: filepath.Join(l.dir, e.Name(), "data"), RunDir: filepath.Join(l.dir, e.Name(), "run")}
		h.purge()
		l.hosts = append(l.hosts, h)
	}
	l.unplug()
	if err := os.RemoveAll(l.dir); err != nil {
		t.Error(err)
	}
}

// command does what a line says.
func (p *play) command(c *Cluster, words []string, end chan<- os.Signal) (out string, err error) {
	p.busy = true
	defer func() {
		p.busy = false
		if f, ok := recover().(failure); ok {
			err = errors.New(string(f))
		}
	}()
	if len(words) == 0 {
		return usage, nil
	}
	host := func(i int) *Host {
		if i >= len(words) {
			p.Fatalf("%s: a host is missing\n%s", words[0], usage)
		}
		return c.Host(words[i])
	}
	arg := func(i int) string {
		if i >= len(words) {
			p.Fatalf("%s: a word is missing\n%s", words[0], usage)
		}
		return words[i]
	}
	switch words[0] {
	case "ls":
		return p.list(c), nil
	case "start":
		if h := host(1); h.off {
			h.PowerOn()
		} else if !h.Alive() {
			h.Launch()
		}
	case "stop":
		host(1).Stop()
	case "kill":
		host(1).Kill()
	case "freeze":
		host(1).Freeze()
	case "thaw":
		host(1).Thaw()
	case "poweroff":
		host(1).PowerOff()
	case "poweron":
		if h := host(1); h.off {
			h.PowerOn()
		}
	case "wipe":
		host(1).Wipe()
	case "new":
		var h *Host
		for _, o := range c.Hosts {
			if o.Name == arg(1) {
				h = o // it was wiped, and joins again
			}
		}
		if h == nil {
			h = c.Lab.Host(arg(1))
			c.Hosts = append(c.Hosts, h)
		}
		h.Join(c.Leader(), arg(2))
	case "cut":
		c.Cut(host(1), host(2))
	case "cutboth":
		c.CutBoth(host(1), host(2))
	case "isolate":
		c.Isolate(host(1))
	case "loss":
		percent, err := strconv.Atoi(arg(1))
		if err != nil {
			return "", err
		}
		c.Loss(percent)
	case "heal":
		c.Heal()
	case "address":
		host(1).ChangeAddress(arg(2))
	case "probe":
		for _, r := range c.Probe() {
			out += fmt.Sprintf("%s → %s\ttcp %v\tudp %v\n", r.From, r.To, r.TCP, r.UDP)
		}
		return out, nil
	case "run":
		r := host(1).Run(words[2:]...)
		if r.Code != 0 {
			return "", fmt.Errorf("%s%sexit %d", r.Stdout, r.Stderr, r.Code)
		}
		return r.Stdout + r.Stderr, nil
	case "down":
		end <- syscall.SIGTERM
		return "", nil
	default:
		return "", fmt.Errorf("no command %q; %s", words[0], usage)
	}
	return p.list(c), nil
}

func (p *play) list(c *Cluster) string {
	var b strings.Builder
	for _, h := range c.Hosts {
		state := "daemon runs"
		switch {
		case h.off:
			state = "without power"
		case !h.Alive():
			state = "no daemon"
		}
		fmt.Fprintf(&b, "%-8s %-13s %s\n", h.Name, h.IP, state)
	}
	for cut := range c.cuts {
		fmt.Fprintf(&b, "cut: %s → %s\n", cut[0], cut[1])
	}
	if c.loss > 0 {
		fmt.Fprintf(&b, "loss: %d %%\n", c.loss)
	}
	return b.String()
}
