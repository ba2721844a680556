//go:build e2e

package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"wherry.dev/tests/lab"
)

const named = `
name: named
services:
  # Goes on for a while after it was told to stop.
  web:
    image: ` + image + `
    command: [sh, -c, "trap '' TERM; httpd -p 80; while :; do sleep 1; done"]
    stop_grace_period: 8s
    deploy: {replicas: 2}
    networks: {default: {aliases: [w.example.test]}}
    ports: [{name: http, target: 80}]
  # Runs and never becomes healthy.
  never:
    image: ` + image + `
    command: [sleep, "1000"]
    init: true
    healthcheck: {test: "false", interval: 1s, start_period: 1h}
    ports: [{name: http, target: 80}]
  client:
    image: ` + image + `
    command: [sleep, "1000"]
    init: true
    hostname: chosen
    domainname: example.test
    dns: [%s]
    dns_search: [svc.test]
    dns_opt: ["timeout:2"]
    extra_hosts: ["six=[2001:db8::9]", "node:host-gateway"]
    links: ["web:linked"]
  plain:
    image: ` + image + `
    command: [sleep, "1000"]
    init: true
    dns_search: .
  inner:
    image: ` + image + `
    command: [sleep, "1000"]
    init: true
    dns: [%[1]s]
    networks: [closed]
networks:
  default: {}
  closed: {internal: true}
`

// TestNames: what a container finds by names, and what it does not: tasks that
// are not ready, or are being stopped.
func TestNames(t *testing.T) {
	l, h := oneHost(t)
	serveNames(t, l, h)
	h.Must("apply", "--wait=false", "-f", stack(t, fmt.Sprintf(named, h.IP)))
	ask := func(task, qtype, name string) []string { return nslookup(h, task, qtype, name) }
	lab.Eventually(t, soon, "the tasks are found", func() error {
		if got := ask("named/client", "a", "tasks.web"); len(got) != 2 {
			return fmt.Errorf("tasks.web: %v", got)
		}
		_, err := h.Try("exec", "named/inner", "--", "true")
		return err
	})
	lab.Eventually(t, soon, "the unhealthy task is found by its own name", func() error {
		if got := ask("named/client", "a", "named.never.1"); len(got) != 1 {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
	if got := ask("named/client", "a", "tasks.never"); len(got) != 0 {
		t.Errorf("a service without a healthy task is found at %v", got)
	}
	if got := ask("named/client", "srv", "_http._tcp.tasks.never"); len(got) != 0 {
		t.Errorf("a service without a healthy task has its port at %v", got)
	}

	web := ask("named/client", "a", "web")
	for _, name := range []string{"named_web", "linked", "w.example.test", "WEB"} {
		if got := ask("named/client", "a", name); !slices.Equal(got, web) || len(got) == 0 {
			t.Errorf("%s is found at %v, web at %v", name, got, web)
		}
	}
	for name, want := range map[string][]string{
		"_http._tcp.tasks.web":   {"80 named.web.1", "80 named.web.2"},
		"_HTTP._tcp.named.web.2": {"80 named.web.2"},
		"_http._udp.tasks.web":   nil,
		"_other._tcp.tasks.web":  nil,
	} {
		if got := ask("named/client", "srv", name); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if got := ask("named/client", "srv", "_http._tcp.web"); len(got) == 0 || !strings.HasPrefix(got[0], "80 ") {
		t.Errorf("_http._tcp.web: %q", got)
	}
	for _, name := range []string{"named.web.1", "named.web.2"} {
		for _, ip := range ask("named/client", "a", name) {
			if got := ask("named/client", "ptr", ip); !slices.Equal(got, []string{name}) {
				t.Errorf("%s is called %q, want %s", ip, got, name)
			}
		}
	}

	for task, want := range map[string]string{"client": "192.0.2.77", "plain": "", "inner": ""} {
		if got := strings.Join(ask("named/"+task, "a", "outside.test"), " "); got != want {
			t.Errorf("a name outside, by the servers of %s: %q, want %q", task, got, want)
		}
	}
	gateway := strings.Fields(h.Must("exec", "named/client", "--", "ip", "route", "show", "default"))[2]
	for script, want := range map[string]string{
		"cat /etc/resolv.conf":          "nameserver 127.0.0.11\nsearch svc.test\noptions timeout:2 ndots:0",
		"grep six /etc/hosts":           "2001:db8::9\tsix",
		"grep -w node /etc/hosts":       gateway + "\tnode",
		"hostname; hostname -f":         "chosen\nchosen.example.test",
		"cat /proc/sys/kernel/hostname": "chosen",
		"dnsdomainname":                 "example.test",
	} {
		if got := strings.TrimSpace(h.Must("exec", "named/client", "--", "sh", "-c", script)); got != want {
			t.Errorf("%s: %q, want %q", script, got, want)
		}
	}
	if got := strings.TrimSpace(h.Must("exec", "named/plain", "--", "cat", "/etc/resolv.conf")); got != "nameserver 127.0.0.11\noptions ndots:0" {
		t.Errorf("without a search list: %q", got)
	}

	// While it is being stopped, a task still runs and is found no more.
	pid := 0
	for _, ti := range tasks(t, h, "named/web") {
		if ti.Slot == 2 {
			pid = ti.Status.PID
		}
	}
	h.Must("service", "scale", "named/web=1", "--wait=false")
	lab.Eventually(t, soon, "the task that is stopped leaves the names", func() error {
		if got := ask("named/client", "a", "tasks.web"); len(got) != 1 {
			return fmt.Errorf("%v", got)
		}
		return nil
	})
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); pid == 0 || err != nil {
		t.Errorf("the task ended before it left the names: %v", err)
	}
	if got := ask("named/client", "srv", "_http._tcp.tasks.web"); !slices.Equal(got, []string{"80 named.web.1"}) {
		t.Errorf("its port is still found: %q", got)
	}
}

// nslookup asks from within a task and returns addresses or names, or the port
// and name of services, sorted; none when there is no answer.
func nslookup(h *lab.Host, task, qtype, name string) []string {
	args := []string{"exec", task, "--", "nslookup", "-type=" + qtype, name, "127.0.0.11"}
	if qtype == "ptr" {
		args = []string{"exec", task, "--", "nslookup", name, "127.0.0.11"}
	}
	r := h.Wherry(args...)
	var out []string
	_, text, _ := strings.Cut(r.Stdout, "\n\n") // after the server
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		switch {
		case len(f) == 2 && f[0] == "Address:":
			out = append(out, f[1])
		case strings.Contains(line, "service = "): // NAME service = PRIORITY WEIGHT PORT TARGET
			out = append(out, f[len(f)-2]+" "+f[len(f)-1])
		case strings.Contains(line, "name = "):
			out = append(out, f[len(f)-1])
		}
	}
	slices.Sort(out)
	return out
}

// serveNames answers every question for an A record that comes to port 53 of a
// host with 192.0.2.77.
func serveNames(t *testing.T, l *lab.Lab, h *lab.Host) {
	t.Helper()
	type opened struct {
		net.PacketConn
		error
	}
	done := make(chan opened)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		ns, err := os.Open(l.NSPath(h.Name))
		if err != nil {
			done <- opened{nil, err}
			return
		}
		defer ns.Close()
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			done <- opened{nil, err}
			return
		}
		c, err := net.ListenPacket("udp4", h.IP+":53")
		done <- opened{c, err}
	}()
	c := <-done
	if c.error != nil {
		t.Fatal(c.error)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		buf := make([]byte, 512)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			end := 12
			for end < n && buf[end] != 0 {
				end += int(buf[end]) + 1
			}
			if end += 5; end > n {
				continue
			}
			answer := append([]byte(nil), buf[:end]...) // without what comes after the question
			answer[2], answer[3] = 0x81, 0x80
			clear(answer[6:12])
			if binary.BigEndian.Uint16(answer[end-4:]) == 1 {
				answer[7] = 1
				answer = append(answer, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 192, 0, 2, 77)
			}
			c.WriteTo(answer, from)
		}
	}()
}
