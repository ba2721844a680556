//go:build e2e

package keeper

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

// hostNS is the namespace where the test program was started; later, /proc/self
// may show the one that its first thread was left in.
var hostNS, _ = os.Readlink("/proc/self/ns/net")

// newNetNS makes a network namespace, held by a mount at the returned path.
func newNetNS(t *testing.T, w *world, name string) string {
	t.Helper()
	path := w.namespace(name)
	onThread(t, func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	})
	t.Cleanup(func() { unix.Unmount(path, unix.MNT_DETACH) })
	return path
}

// onThread runs f on a thread that ends with it.
func onThread(t *testing.T, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// inside runs f in a network namespace.
func inside(t *testing.T, path string, f func() error) {
	t.Helper()
	onThread(t, func() error {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}

func command(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// ask is lookup on the calling thread, hence in its namespace.
func ask(name string, tcp bool) (string, error) {
	network := "udp"
	if tcp {
		network = "tcp"
	}
	c, err := net.DialTimeout(network, "127.0.0.11:53", 5*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	dc := dns.Conn{Conn: c}
	dc.SetDeadline(time.Now().Add(5 * time.Second))
	if err := dc.WriteMsg(new(dns.Msg).SetQuestion(dns.Fqdn(name), dns.TypeA)); err != nil {
		return "", err
	}
	r, err := dc.ReadMsg()
	if err != nil {
		return "", err
	}
	return describe(r), nil
}

func expectAsk(t *testing.T, ns, name, want string) {
	t.Helper()
	for _, tcp := range []bool{false, true} {
		inside(t, ns, func() error {
			if got, err := ask(name, tcp); got != want {
				t.Errorf("%s, over TCP %v: got %s, %v, want %s", name, tcp, got, err, want)
			}
			return nil
		})
	}
}

func TestE2ENamespaces(t *testing.T) {
	t.Setenv("KEEPER_TEST_OPENER", "netns")
	up := newFakeServer(t, says("1.1.1.1"))
	w := newWorld(t)
	a, b := newNetNS(t, w, "a"), newNetNS(t, w, "b")
	c := w.ensure("1")
	if err := c.SetDNS(w.ctx(), []spec.Resolver{
		{Task: "1-1", NetNS: a, Networks: []spec.NetworkID{"1-1"}, Upstream: []string{up.addr}},
		{Task: "1-2", NetNS: b, Networks: []spec.NetworkID{"1-2"}},
	}, []spec.NameTable{
		{Network: "1-1", Names: []spec.Name{name("web", "10.0.1.2")}},
		{Network: "1-2", Names: []spec.Name{name("web", "10.0.2.2")}},
	}); err != nil {
		t.Fatal(err)
	}
	expectAsk(t, a, "web", "NOERROR 10.0.1.2")
	expectAsk(t, b, "web", "NOERROR 10.0.2.2")
	// The namespace itself has no way to the server; the keeper's has.
	expectAsk(t, a, "example.com", "NOERROR 1.1.1.1")

	// The keeper's own threads are all in the namespace where it was started.
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/ns/net", mustStatus(t, c).PID))
	if err != nil || len(tasks) == 0 {
		t.Fatal(err)
	}
	for _, task := range tasks {
		if ns, err := os.Readlink(task); err == nil && ns != hostNS {
			t.Errorf("%s is %s, not %s", task, ns, hostNS)
		}
	}

	// The sockets survive the next version of the keeper and a kill.
	w.ensure("2")
	expectAsk(t, a, "web", "NOERROR 10.0.1.2")
	c2 := w.ensure("2")
	unix.Kill(mustStatus(t, c2).PID, unix.SIGKILL)
	if err := c2.ensure(w.ctx()); err != nil {
		t.Fatal(err)
	}
	expectAsk(t, b, "web", "NOERROR 10.0.2.2")
}

// TestE2ENamespaceGone: a namespace ends when its resolver is unlisted, or when
// its path goes while no daemon is there. Whether it has ended shows in a veth
// that it holds one end of.
func TestE2ENamespaceGone(t *testing.T) {
	t.Setenv("KEEPER_TEST_OPENER", "netns")
	for _, unlist := range []bool{true, false} {
		t.Run(fmt.Sprintf("unlisted %v", unlist), func(t *testing.T) {
			w := newWorld(t)
			parent, child := newNetNS(t, w, "parent"), newNetNS(t, w, "child")
			inside(t, parent, func() error {
				return command("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1", "netns", child)
			})
			c := w.ensure("1")
			r := spec.Resolver{Task: "1-1", NetNS: child, Networks: []spec.NetworkID{"1-1"}}
			tables := []spec.NameTable{{Network: "1-1", Names: []spec.Name{name("web", "10.0.1.2")}}}
			if err := c.SetDNS(w.ctx(), []spec.Resolver{r}, tables); err != nil {
				t.Fatal(err)
			}
			expectAsk(t, child, "web", "NOERROR 10.0.1.2")
			if err := unix.Unmount(child, unix.MNT_DETACH); err != nil {
				t.Fatal(err)
			}
			os.Remove(child)
			if unlist {
				if err := c.SetDNS(w.ctx(), nil, tables); err != nil {
					t.Fatal(err)
				}
			}
			eventually(t, "the namespace has ended", func() bool {
				gone := false
				inside(t, parent, func() error { gone = command("ip", "link", "show", "v0") != nil; return nil })
				return gone
			})
		})
	}
}

// TestE2EFullDisk: a full disk stops neither the writer nor, once there is
// room, the log.
func TestE2EFullDisk(t *testing.T) {
	w := newWorld(t)
	s := logSpec(w.dir)
	disk := filepath.Dir(s.File)
	if err := os.MkdirAll(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(disk, unix.MNT_DETACH)
	fill := filepath.Join(disk, "fill")
	if err := os.WriteFile(fill, make([]byte, 128<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	var out *os.File
	s.Stdout, out = w.fifo("out")
	c := w.ensure("1")
	if err := c.SetLogs(w.ctx(), []spec.LogSink{s}); err != nil {
		t.Fatal(err)
	}
	line := strings.Repeat("x", 99) + "\n"
	for range 10_000 {
		if _, err := out.WriteString(line); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all is read", func() bool {
		st := mustStatus(t, c)
		return st.LogBytes+st.DroppedBytes == uint64(10_000*len(line)) && st.DroppedBytes > 0
	})
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	out.WriteString("room again\n")
	eventually(t, "the log goes on", func() bool { return strings.HasSuffix(string(readLog(t, s.File, "stdout")), "\nroom again\n") })
	var told uint64
	for line := range strings.Lines(string(readLog(t, s.File, "stderr"))) {
		var lines, bytes uint64
		if _, err := fmt.Sscanf(line, "wherry: %d lines (%d bytes) of output were dropped: no space left on device\n", &lines, &bytes); err != nil {
			t.Errorf("%q: %v", line, err)
		}
		told += bytes
	}
	if dropped := mustStatus(t, c).DroppedBytes; told != dropped {
		t.Errorf("%d bytes were dropped, the log says %d", dropped, told)
	}
}

// TestE2EParallel is TestParallel in a network namespace.
func TestE2EParallel(t *testing.T) {
	t.Setenv("KEEPER_TEST_OPENER", "netns")
	w := newWorld(t)
	ns := newNetNS(t, w, "ns")
	testParallel(t, w, ns, func() (c net.Conn, err error) {
		inside(t, ns, func() error { c, err = net.Dial("udp", "127.0.0.11:53"); return nil })
		return c, err
	})
}

// TestE2ELatency measures lookups inside a namespace, alone and beside a flood
// of output.
func TestE2ELatency(t *testing.T) {
	t.Setenv("KEEPER_TEST_OPENER", "netns")
	w := newWorld(t)
	ns := newNetNS(t, w, "ns")
	s := logSpec(w.dir)
	s.MaxSize = 10 << 20
	var out *os.File
	s.Stdout, out = w.fifo("out")
	c := w.ensure("1")
	if err := c.SetLogs(w.ctx(), []spec.LogSink{s}); err != nil {
		t.Fatal(err)
	}
	if err := c.SetDNS(w.ctx(), []spec.Resolver{{Task: "1-1", NetNS: ns, Networks: []spec.NetworkID{"1-1"}}},
		[]spec.NameTable{{Network: "1-1", Names: []spec.Name{name("web", "10.0.1.2")}}}); err != nil {
		t.Fatal(err)
	}
	measure := func(what string) {
		const n = 50_000
		times := make([]time.Duration, 0, n)
		packet := packed(new(dns.Msg).SetQuestion("web.", dns.TypeA))
		inside(t, ns, func() error {
			c, err := net.Dial("udp", "127.0.0.11:53")
			if err != nil {
				return err
			}
			defer c.Close()
			buf := make([]byte, 512)
			for range n {
				began := time.Now()
				c.Write(packet)
				c.SetReadDeadline(time.Now().Add(5 * time.Second))
				if _, err := c.Read(buf); err != nil {
					return err
				}
				times = append(times, time.Since(began))
			}
			return nil
		})
		slices.Sort(times)
		t.Logf("%s: %d lookups, p50 %v p99 %v p99.9 %v max %v", what, n, times[n/2], times[n*99/100], times[n*999/1000], times[n-1])
		if times[n/2] > 10*time.Millisecond {
			t.Errorf("%s: half of the lookups took more than 10 ms", what)
		}
	}
	measure("alone")
	stop := make(chan struct{})
	done := make(chan error)
	go func() {
		line := []byte(strings.Repeat("x", 99) + "\n")
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			if _, err := out.Write(line); err != nil {
				done <- err
				return
			}
		}
	}()
	measure("beside a flood of output")
	close(stop)
	if err := <-done; err != nil && !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
	st := mustStatus(t, c)
	t.Logf("%d MB of output meanwhile", st.LogBytes/1e6)
}
