//go:build linux

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Binary returns the wherry binary under test, named by WHERRY_BIN.
func Binary(t testing.TB) string {
	t.Helper()
	bin := os.Getenv("WHERRY_BIN")
	if bin == "" {
		t.Fatal("WHERRY_BIN is not set; run the suite by `make test`, or build with `make build` and set WHERRY_BIN=$PWD/bin/wherry")
	}
	abs, err := filepath.Abs(bin)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(abs); err != nil {
		t.Fatalf("binary under test: %v", err)
	}
	return abs
}

// Lab is a switch with hosts. Close it by the test's cleanup, which New does.
type Lab struct {
	t      testing.TB
	name   string // prefix of all namespaces
	dir    string
	hosts  []*Host
	before Census
	closed bool

	cuts map[[2]string]bool // from, to: names of hosts or "client"
	loss int                // percent of all frames
	mtu  int                // of all cables; 0 is the kernel's
}

// subnet of the underlay; host N has .N, the switch .254.
const subnet = "10.123.0."

// New makes a lab without hosts. When the test ends, hosts that still run are
// stopped, everything is removed, and the census of leftovers must be empty.
func New(t testing.TB) *Lab {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("the lab needs root; run the suite by `make test`")
	}
	// Paths of sockets must stay short, so no t.TempDir.
	dir, err := os.MkdirTemp("", "wl")
	if err != nil {
		t.Fatal(err)
	}
	l := &Lab{t: t, name: filepath.Base(dir), dir: dir, before: TakeCensus(), cuts: map[[2]string]bool{}}
	t.Cleanup(l.close)
	l.ip("netns", "add", l.ns("sw"))
	l.inNS("sw", "ip", "link", "set", "lo", "up")
	l.inNS("sw", "ip", "link", "add", "br0", "type", "bridge")
	l.inNS("sw", "ip", "addr", "add", subnet+"254/24", "dev", "br0")
	l.inNS("sw", "ip", "link", "set", "br0", "up")
	return l
}

// Step runs a part of a test: what fails in it is the part's failure, and the
// next one is run.
func (l *Lab) Step(t *testing.T, name string, f func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		whole := l.t
		l.t = t
		defer func() { l.t = whole }()
		f(t)
	})
}

func (l *Lab) ns(name string) string { return l.name + "-" + name }

// NSPath is the path of a namespace of the lab: "sw" or a host's name.
func (l *Lab) NSPath(name string) string { return "/run/netns/" + l.ns(name) }

func (l *Lab) ip(args ...string) {
	l.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		l.t.Fatalf("ip %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

func (l *Lab) inNS(ns string, args ...string) string {
	l.t.Helper()
	out, err := exec.Command("nsenter", append([]string{"--net=" + l.NSPath(ns), "--"}, args...)...).CombinedOutput()
	if err != nil {
		l.t.Fatalf("in %s: %s: %v: %s", ns, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Plug makes a namespace with the given name on the switch and returns its
// address: a client outside of the cluster.
func (l *Lab) Plug(name string) (ip string) {
	l.t.Helper()
	ip = subnet + "200"
	l.plug(name, ip)
	return ip
}

func (l *Lab) plug(name, ip string) {
	l.t.Helper()
	l.ip("netns", "add", l.ns(name))
	l.ip("-n", l.ns("sw"), "link", "add", port(name), "type", "veth", "peer", "name", "eth0", "netns", l.ns(name))
	l.ip("-n", l.ns("sw"), "link", "set", port(name), "master", "br0", "up")
	l.inNS(name, "ip", "link", "set", "lo", "up")
	l.cable(name)
	l.inNS(name, "ip", "addr", "add", ip+"/24", "dev", "eth0")
	l.inNS(name, "ip", "link", "set", "eth0", "up")
	l.inNS(name, "ip", "route", "add", "default", "via", subnet+"254")
}

// port is the switch's end of a cable.
func port(name string) string { return "p-" + name }

// Host is one host of the lab.
type Host struct {
	Name    string
	IP      string
	DataDir string
	RunDir  string

	lab  *Lab
	bin  string
	proc *exec.Cmd
	done chan struct{} // closed when proc has ended
	log  *os.File
	args []string
	join []string // flags of its next starts until it is ready
	id   string   // of its node, as far as it was seen
	disk bool     // the data folder is a file system of its own
	off  bool     // without power: nothing of it exists but its disk
}

// Host makes a host; its daemon is not started. Args are further flags of the
// daemon.
func (l *Lab) Host(name string, args ...string) *Host {
	l.t.Helper()
	h := &Host{Name: name, lab: l, bin: Binary(l.t), args: args,
		DataDir: filepath.Join(l.dir, name, "data"), RunDir: filepath.Join(l.dir, name, "run")}
	l.hosts = append(l.hosts, h)
	h.IP = subnet + fmt.Sprint(len(l.hosts))
	l.plug(name, h.IP)
	if err := os.MkdirAll(filepath.Join(l.dir, name), 0o755); err != nil {
		l.t.Fatal(err)
	}
	return h
}

// Socket is the address of the host's daemon.
func (h *Host) Socket() string { return "unix://" + filepath.Join(h.RunDir, "wherry.sock") }

// LogFile is where the daemon's own log goes, over all its starts.
func (h *Host) LogFile() string { return filepath.Join(h.lab.dir, h.Name, "daemon.log") }

// Launch starts the daemon and does not wait for it.
func (h *Host) Launch() {
	h.lab.t.Helper()
	log, err := os.OpenFile(h.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		h.lab.t.Fatal(err)
	}
	h.proc = exec.Command("nsenter", h.command(h.join)...)
	h.proc.Stdout, h.proc.Stderr = log, log
	// Ctrl-C is for the lab, which then stops its daemons in order.
	h.proc.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	h.log = log
	if err := h.proc.Start(); err != nil {
		h.lab.t.Fatal(err)
	}
	done := make(chan struct{})
	h.done = done
	go func(p *exec.Cmd) {
		_ = p.Wait() // how it ended is seen by what it leaves
		log.Close()
		close(done)
	}(h.proc)
}

// command are nsenter's arguments that start the daemon. A flag that is given
// twice counts as given last.
func (h *Host) command(more []string) []string {
	return slices.Concat([]string{"--net=" + h.lab.NSPath(h.Name), "--", h.bin, "daemon",
		"--data-dir", h.DataDir, "--run-dir", h.RunDir, "--name", h.Name}, h.args, more)
}

// Start starts the daemon and waits until it answers.
func (h *Host) Start() {
	h.lab.t.Helper()
	h.Launch()
	h.WaitReady()
}

// WaitReady waits until the daemon answers and its node is ready.
func (h *Host) WaitReady() {
	h.lab.t.Helper()
	if err := h.ready(60 * time.Second); err != nil {
		h.lab.t.Fatal(err)
	}
}

func (h *Host) ready(d time.Duration) error {
	for deadline := time.Now().Add(d); ; {
		select {
		case <-h.done:
			return fmt.Errorf("daemon of %s ended; its log:\n%s", h.Name, h.LogTail(60))
		default:
		}
		err := h.listed()
		if err == nil {
			h.join = nil
			h.nodeID() // so that it is known when the folder is gone
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is not ready after %s: %w; its log:\n%s", h.Name, d, err, h.LogTail(60))
		}
		time.Sleep(50 * time.Millisecond) // between two looks at the outside world
	}
}

// listed returns nil when the daemon answers and its node is listed as ready.
// A worker cannot tell that itself, so its managers are asked.
func (h *Host) listed() error {
	r := h.Within(10*time.Second, "node", "ls", "--format", "{{.name}} {{.state}}")
	if r.Code == 5 && strings.Contains(r.Stderr, "worker") {
		for _, other := range h.lab.hosts {
			if r.Code == 0 {
				break
			}
			if other != h && other.Alive() {
				r = other.Within(5*time.Second, "node", "ls", "--format", "{{.name}} {{.state}}")
			}
		}
	}
	if r.Code != 0 {
		return r.err("node", "ls")
	}
	if !slices.Contains(strings.Split(r.Stdout, "\n"), h.Name+" ready") {
		return fmt.Errorf("nodes: %s", r.Stdout)
	}
	return nil
}

// PID of the daemon; 0 when it does not run.
func (h *Host) PID() int {
	if h.proc == nil || h.proc.Process == nil {
		return 0
	}
	return h.proc.Process.Pid // nsenter executes the daemon in its own place
}

// Alive reports whether the daemon runs.
func (h *Host) Alive() bool {
	if h.proc == nil {
		return false
	}
	select {
	case <-h.done:
		return false
	default:
		return true
	}
}

// Wait waits until the daemon has ended by itself.
func (h *Host) Wait(d time.Duration) error {
	select {
	case <-h.done:
		return nil
	case <-time.After(d):
		return errors.New("the daemon still runs")
	}
}

// Stop ends the daemon by SIGTERM and waits for its end. Containers go on.
func (h *Host) Stop() {
	h.lab.t.Helper()
	h.terminate()
	h.stopped()
}

func (h *Host) terminate() {
	if h.Alive() {
		_ = h.proc.Process.Signal(syscall.SIGTERM) // it may have ended this moment
	}
}

// stopped waits for the end of a daemon that was told to end.
func (h *Host) stopped() {
	h.lab.t.Helper()
	if !h.Alive() || h.Wait(30*time.Second) == nil {
		return
	}
	h.lab.t.Errorf("stop %s: the daemon still runs; goroutines:\n", h.Name)
	_ = h.proc.Process.Signal(syscall.SIGQUIT)
	if h.Wait(5*time.Second) != nil {
		h.Kill()
	}
	h.lab.t.Log(h.LogTail(3000))
}

// Kill ends the daemon by SIGKILL and waits for its end.
func (h *Host) Kill() {
	h.lab.t.Helper()
	if !h.Alive() {
		return
	}
	_ = h.proc.Process.Kill() // it may have ended this moment
	<-h.done
}

// LogTail returns the last lines of the daemon's log.
func (h *Host) LogTail(lines int) string {
	b, err := os.ReadFile(h.LogFile())
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Result is the end of a command.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// Wherry runs a command of the client against this host.
func (h *Host) Wherry(args ...string) Result { return h.WherryIn("", "", args...) }

// Within is Wherry with an end: a command that takes longer is killed, and its
// code is -1.
func (h *Host) Within(d time.Duration, args ...string) Result { return h.wherry(d, "", "", args) }

// WherryIn runs a command of the client in a folder and with a standard input.
func (h *Host) WherryIn(dir, stdin string, args ...string) Result {
	return h.wherry(3*time.Minute, dir, stdin, args)
}

func (h *Host) wherry(d time.Duration, dir, stdin string, args []string) Result {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	c := exec.CommandContext(ctx, h.bin, append([]string{"--host", h.Socket()}, args...)...)
	c.Dir = dir
	c.Stdin = strings.NewReader(stdin)
	return run(c)
}

func run(c *exec.Cmd) Result {
	var out, errb bytes.Buffer
	c.Stdout, c.Stderr = &out, &errb
	err := c.Run()
	r := Result{Stdout: out.String(), Stderr: errb.String()}
	var ee *exec.ExitError
	switch {
	case errors.As(err, &ee):
		r.Code = ee.ExitCode()
	case err != nil:
		r.Code, r.Stderr = -1, r.Stderr+err.Error()
	}
	return r
}

// Try runs a command of the client and returns its output, or an error with
// what it said.
func (h *Host) Try(args ...string) (string, error) {
	r := h.Wherry(args...)
	if r.Code != 0 {
		return r.Stdout, r.err(args...)
	}
	return r.Stdout, nil
}

// err of a command that failed.
func (r Result) err(args ...string) error {
	return fmt.Errorf("wherry %s: exit %d: %s%s", strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
}

// Must runs a command of the client that has to succeed.
func (h *Host) Must(args ...string) string {
	h.lab.t.Helper()
	out, err := h.Try(args...)
	if err != nil {
		h.lab.t.Fatalf("%v\n--- daemon log\n%s", err, h.LogTail(40))
	}
	return out
}

// In runs a command inside a namespace of the lab: a host's, or "client".
func (l *Lab) In(ns string, args ...string) Result { return l.Space(ns).Run(args...) }

// Run runs a command in the host's network namespace.
func (h *Host) Run(args ...string) Result { return h.lab.In(h.Name, args...) }

// Eventually calls f until it returns nil, and fails the test with its last
// error after d.
func Eventually(t testing.TB, d time.Duration, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(d)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not after %s: %v", what, d, err)
		}
		time.Sleep(50 * time.Millisecond) // between two looks at the outside world
	}
}

// close stops what runs, removes the lab and takes the census. Where the
// hosts can work it is the product that removes its stacks; hosts that cannot
// are an error, unless the test has left them without power.
func (l *Lab) close() {
	if l.closed {
		return
	}
	l.closed = true
	for _, h := range l.hosts {
		if l.t.Failed() {
			l.t.Logf("--- log of %s\n%s", h.Name, h.LogTail(80))
		}
	}
	started := time.Now()
	if err := l.remove(); err != nil {
		l.t.Error(err)
		for _, h := range l.hosts {
			h.PowerOff()
		}
	}
	l.t.Logf("stacks removed and daemons stopped in %s", time.Since(started).Round(time.Millisecond))
	l.unplug()
	for _, h := range l.hosts {
		if h.disk {
			_ = syscall.Unmount(h.DataDir, 0) // what is still there is in the census
		}
	}
	if err := os.RemoveAll(l.dir); err != nil {
		l.t.Errorf("remove lab: %v", err)
	}
	var left []string
	for deadline := time.Now().Add(20 * time.Second); ; {
		if left = l.before.Diff(TakeCensus()); len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			break
		}
		time.Sleep(200 * time.Millisecond) // the kernel removes namespaces in the background
	}
	l.t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
	for _, h := range l.hosts {
		h.purge() // told above; the next test shall not suffer from it
	}
}

// unplug removes the namespaces, and with them all that is in them.
func (l *Lab) unplug() {
	for _, ns := range append([]string{"sw", "client"}, hostNames(l.hosts)...) {
		if _, err := os.Stat(l.NSPath(ns)); err == nil {
			l.ip("netns", "del", l.ns(ns))
		}
	}
}

func hostNames(hosts []*Host) []string {
	var out []string
	for _, h := range hosts {
		out = append(out, h.Name)
	}
	return out
}

// remove removes all stacks with their volumes and stops all daemons for good.
func (l *Lab) remove() error {
	l.Heal()
	var hosts []*Host
	for _, h := range l.hosts {
		if h.proc == nil || h.off {
			continue
		}
		h.Thaw()
		if !h.Alive() {
			h.Launch()
		}
		hosts = append(hosts, h)
	}
	for _, h := range hosts {
		if err := h.ready(60 * time.Second); err != nil {
			return err
		}
	}
	var errs []error
	for _, h := range hosts {
		r := h.Within(30*time.Second, "ls", "--format", "{{.name}}")
		if r.Code == 5 && strings.Contains(r.Stderr, "worker") {
			continue // its managers remove what it runs
		}
		if r.Code != 0 {
			errs = append(errs, r.err("ls"))
		}
		for _, s := range strings.Fields(r.Stdout) {
			if _, err := h.Try("rm", s, "--volumes", "--timeout", "60s"); err != nil {
				errs = append(errs, fmt.Errorf("%w\n%s", err, h.LogTail(40)))
			}
		}
	}
	for _, h := range hosts {
		h.terminate()
	}
	for _, h := range hosts {
		h.stopped()
	}
	return errors.Join(errs...)
}

// Forget takes a host that is stopped out of the final clean-up; its
// namespace and folders are still removed.
func (h *Host) Forget() { h.proc = nil }
