//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"wherry.dev/tests/images"
	"wherry.dev/tests/lab"
)

// drainStack is a page on two tasks of host-1. Told to stop, a task refuses new
// connections at once and takes its time for those that it has, as good servers
// do. So what comes to it after the signal fails, and nothing else does.
const drainStack = `name: drain
services:
  web:
    image: ` + image + `
    command:
      - sh
      - -c
      - |
        httpd -f -p 80 -h /etc & p=$$!
        trap 'kill $$p; sleep 1; exit 0' TERM
        while :; do sleep 0.1 & wait $$!; done
    environment: {TURN: "%d"}
    healthcheck: {test: wget -q -O /dev/null http://127.0.0.1/passwd, interval: 5s, start_period: 30s, start_interval: 200ms}
    ports: ["7400:80"]
    deploy:
      replicas: 2
      placement: {constraints: [node.hostname == host-1]}
`

// TestDrain: under a stream of new connections from outside, none fails while
// tasks are stopped by a smaller number, by an update, by an update in which the
// daemon is killed again and again, and while the daemon of another host that
// sends to them is slow.
func TestDrain(t *testing.T) {
	l := lab.New(t)
	c := grownWith(t, l, "--log-level", "debug")
	h := c.Hosts[0]
	l.Plug("client")
	file := func(turn int) string { return stack(t, fmt.Sprintf(drainStack, turn)) }
	h.Must("apply", "-f", file(1))

	var addrs []string
	for _, h := range c.Hosts {
		addr := h.IP + ":7400"
		lab.Eventually(t, soon, "the page is at "+addr, func() error { return get(l, "client", addr) })
		addrs = append(addrs, addr)
	}

	step := func(name string, f func()) {
		t.Run(name, func(t *testing.T) {
			v := sendVisitors(l, "client", addrs)
			f()
			time.Sleep(2 * time.Second) // until the last one has been stopped, and more
			n, errs := v.end()
			t.Logf("%d connections", n)
			if len(errs) > 0 || n < 50 {
				t.Errorf("%d connections, %d failed, the first with: %v", n, len(errs), errors.Join(errs[:min(3, len(errs))]...))
			}
		})
	}
	step("scaled down", func() { h.Must("service", "scale", "drain/web=1") })
	step("scaled up", func() { h.Must("service", "scale", "drain/web=2") })
	step("updated", func() { h.Must("apply", "-f", file(2)) })
	step("updated while daemons are killed", func() {
		h.Must("apply", "-f", file(3), "--wait=false")
		for range 3 {
			time.Sleep(700 * time.Millisecond)
			h.Kill()
			h.Start()
		}
		h.Must("apply", "-f", file(3))
	})

	log, err := os.ReadFile(h.LogFile())
	if err != nil {
		t.Fatal(err)
	}
	var took []time.Duration
	for _, m := range regexp.MustCompile(`no host sends to the task any more.* took=(\S+)`).FindAllStringSubmatch(string(log), -1) {
		d, err := time.ParseDuration(m[1])
		if err != nil {
			t.Fatal(err)
		}
		took = append(took, d)
	}
	if len(took) < 3 {
		t.Errorf("%d tasks were drained, want at least 3", len(took))
	}
	figure(t, "drain", took, 100*time.Millisecond, 600*time.Millisecond)
	if i := strings.Index(string(log), "a task is stopped to which hosts may still send"); i >= 0 {
		line, _, _ := strings.Cut(string(log)[i:], "\n")
		t.Errorf("a drain took too long: %s", line)
	}

	if len(addrs) < 2 {
		return // no other host sends to the tasks
	}
	step("another host is slow", func() {
		c.Hosts[1].Freeze()
		defer c.Hosts[1].Thaw()
		h.Must("service", "scale", "drain/web=1", "--wait=false")
		lab.Eventually(t, soon, "it is told what is waited for", func() error {
			for _, ti := range tasks(t, h, "drain/web") {
				if ti.Status.Reason == "draining: waits until 1 host no longer sends to it" {
					return nil
				}
			}
			return fmt.Errorf("tasks: %+v", tasks(t, h, "drain/web"))
		})
		time.Sleep(500 * time.Millisecond) // within the 2 s
	})
}

// grownWith is a manager and a worker with further flags, and the image on the
// manager.
func grownWith(t *testing.T, l *lab.Lab, args ...string) *lab.Cluster {
	t.Helper()
	c := l.Cluster(1, 1, args...)
	load(t, c.Hosts[0], images.Must(t, image, ""))
	return c
}

// inside calls f on a thread in a namespace of the lab.
func inside(l *lab.Lab, ns string, f func() error) error {
	end := make(chan error, 1)
	go func() {
		// The thread goes back, since it may be the one that stands for the
		// process in /proc; if it cannot, it ends with the goroutine.
		runtime.LockOSThread()
		end <- func() error {
			home, err := os.Open("/proc/thread-self/ns/net")
			if err != nil {
				return err
			}
			defer home.Close()
			there, err := os.Open(l.NSPath(ns))
			if err != nil {
				return err
			}
			defer there.Close()
			if err := unix.Setns(int(there.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter %s: %w", ns, err)
			}
			err = f()
			if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
				runtime.UnlockOSThread()
			}
			return err
		}()
	}()
	return <-end
}

// get reads a page over a connection from a namespace of the lab.
func get(l *lab.Lab, from, addr string) error {
	return inside(l, from, func() error { return page(addr) })
}

// page reads a page over a new connection from the namespace of the thread.
func page(addr string) error {
	conn, err := net.DialTimeout("tcp", addr, 10*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	if _, err := io.WriteString(conn, "GET /passwd HTTP/1.0\r\n\r\n"); err != nil {
		return err
	}
	b, err := io.ReadAll(conn)
	if err == nil && !strings.Contains(string(b), "root:x:0:0") {
		err = fmt.Errorf("page: %.100q", b)
	}
	return err
}

// visitors open one connection after the other.
type visitors struct {
	stop atomic.Bool
	wg   sync.WaitGroup
	mu   sync.Mutex
	n    int
	errs []error
}

// sendVisitors sends visitors to all addresses from a namespace of the lab.
func sendVisitors(l *lab.Lab, from string, addrs []string) *visitors {
	v := &visitors{}
	for _, addr := range addrs {
		for range 3 {
			v.wg.Go(func() {
				_ = inside(l, from, func() error {
					for !v.stop.Load() {
						v.note(addr, page(addr))
						time.Sleep(time.Millisecond)
					}
					return nil
				}) // who cannot enter visits nobody, which is seen by the number
			})
		}
	}
	return v
}

func (v *visitors) note(addr string, err error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.n++; err != nil {
		v.errs = append(v.errs, fmt.Errorf("%s %s: %w", time.Now().Format("15:04:05.000"), addr, err))
	}
}

// end sends them home and returns how many connections there were, and what
// became of those that failed.
func (v *visitors) end() (int, []error) {
	v.stop.Store(true)
	v.wg.Wait()
	return v.n, v.errs
}
