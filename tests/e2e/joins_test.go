//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"wherry.dev/api"
	"wherry.dev/spec"
	"wherry.dev/tests/images"
	"wherry.dev/tests/lab"
)

// TestJoins: a service shares the network of another one, on two hosts. They
// are always on one host and in one network, and whatever becomes of the one
// that shares is no concern of the other.
func TestJoins(t *testing.T) {
	c := grow(t, 1, 1)
	c.Hosts[0].Must("image", "load", "../../build/images/serve.tar")
	c.Plug("client")
	m, w := c.Hosts[0], c.Hosts[1]
	file := func(version string) string {
		return stack(t, fmt.Sprintf(`
name: pair
services:
  net:
    image: %s
    command: [sh, -c, "httpd -p 127.0.0.1:82 -h /etc; exec sleep 7601"]
    init: true
    hostname: shared
    ports: ["8080:80"]
    environment: {VERSION: "%s"}
    stop_signal: SIGKILL
  web:
    image: %s
    network_mode: service:net
    stop_grace_period: 1s
  shell:
    image: %s
    command: [sh, -c, "echo up; exec sleep 7602"]
    init: true
    network_mode: service:net
    stop_signal: SIGKILL
  other:
    image: %s
    command: [sleep, "7603"]
    init: true
    stop_signal: SIGKILL
    deploy: {mode: global}
`, image, version, images.Serve, image, image))
	}
	apply(t, c, file("1"))
	var off *lab.Host // without power
	paired := func() error {
		head, err := only(m, "pair/net")
		if err != nil {
			return err
		}
		for _, name := range []string{"pair/web", "pair/shell"} {
			ti, err := only(m, name)
			switch {
			case err != nil:
				return err
			case ti.Node != head.Node || ti.Joins != head.ID || len(ti.Addresses) > 0:
				return fmt.Errorf("%s joins %s on %s and has %v, but %s is on %s", ti.Name, ti.Joins, ti.Node, ti.Addresses, head.ID, head.Node)
			}
			a, err := netns(head.Status.PID)
			if err != nil {
				return err
			}
			if b, err := netns(ti.Status.PID); err != nil || a != b {
				return fmt.Errorf("%s is in %s, %s in %s: %v", head.Name, a, ti.Name, b, err)
			}
		}
		// By localhost both ways, by the name and by the port of the one that has the network.
		if _, err := m.Try("exec", "pair/net", "--", "wget", "-q", "-O", "-", "http://127.0.0.1:80/"); err != nil {
			return fmt.Errorf("from net to web: %w", err)
		}
		if out, err := m.Try("exec", "pair/shell", "--", "wget", "-q", "-O", "-", "http://127.0.0.1:82/hostname"); err != nil || strings.TrimSpace(out) != "shared" {
			return fmt.Errorf("from shell to net: %q, %w", out, err)
		}
		if out, err := m.Try("exec", "pair/shell", "--", "sh", "-c", "hostname; wget -q -O - http://net/"); err != nil || !strings.HasPrefix(out, "shared\n") {
			return fmt.Errorf("from shell by name: %q, %w", out, err)
		}
		others, err := live(m, "pair/other")
		if err != nil {
			return err
		}
		for _, ti := range others {
			if c.Host(ti.Node) == off {
				continue
			}
			if _, err := m.Try("exec", ti.Name, "--", "wget", "-q", "-O", "-", "http://net/"); err != nil {
				return fmt.Errorf("from %s: %w", ti.Name, err)
			}
		}
		client, _ := outside(c)
		for _, h := range c.Hosts {
			if h != off {
				if r, err := consult(client, h.IP+":8080"); err != nil || r.server != address(t, head) {
					return fmt.Errorf("from outside by %s: %+v, %w", h.Name, r, err)
				}
			}
		}
		return nil
	}
	together := func(what string) {
		t.Helper()
		lab.Eventually(t, time.Minute, "they are together: "+what, paired)
	}
	together("at first")
	if out := m.Must("logs", "pair/shell"); !strings.Contains(out, "up") {
		t.Errorf("the log is %q", out)
	}

	// Each may crash by itself, and the other does not notice.
	before := processes(t, m, "pair")
	kill(t, one(t, m, "pair/shell").Status.PID)
	together("the one that shares has crashed")
	after := processes(t, m, "pair")
	if after["pair.net.1"] != before["pair.net.1"] || after["pair.web.1"] != before["pair.web.1"] {
		t.Errorf("%+v became %+v", before, after)
	}
	before = after
	kill(t, one(t, m, "pair/net").Status.PID)
	together("the one that has the network has crashed")
	after = processes(t, m, "pair")
	if after["pair.shell.1"] != before["pair.shell.1"] || after["pair.web.1"] != before["pair.web.1"] || after["pair.net.1"].netns != before["pair.net.1"].netns {
		t.Errorf("%+v became %+v", before, after)
	}

	// The daemon and the keeper come and go.
	h := c.Host(one(t, m, "pair/net").Node)
	before = processes(t, m, "pair")
	h.Kill()
	h.Launch()
	h.WaitReady()
	restartPart(t, h, "keeper")
	together("after a restart of the daemon and the keeper")
	same(t, m, "pair", before)

	// What concerns the one concerns the others; what concerns these does not.
	apply(t, c, file("2"))
	together("after an update")
	if now := processes(t, m, "pair"); now["pair.web.1"].id == before["pair.web.1"].id || now["pair.shell.1"].id == before["pair.shell.1"].id {
		t.Errorf("a new task has old partners: %+v", now)
	}
	m.Must("node", "drain", m.Name)
	together("on the other host")
	if n := one(t, m, "pair/net").Node; n != w.Name {
		t.Errorf("they are on %s", n)
	}
	m.Must("node", "activate", m.Name)
	w.PowerOff()
	off = w
	lab.Eventually(t, time.Minute, "they are lost", func() error {
		if ti, err := only(m, "pair/net"); err != nil || ti.Node != m.Name {
			return fmt.Errorf("%s: %w", ti.Node, err)
		}
		return nil
	})
	together("without the host that they were on")
}

// live lists the tasks of a service that are not over.
func live(h *lab.Host, ref string) ([]api.TaskInfo, error) {
	out, err := h.Try("ps", ref, "--format", "json")
	if err != nil {
		return nil, err
	}
	var all []api.TaskInfo
	if err := json.Unmarshal([]byte(out), &all); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(ti api.TaskInfo) bool { return ti.State.Terminal() }), nil
}

// only is the one task of a service that is not over, when it runs.
func only(h *lab.Host, ref string) (api.TaskInfo, error) {
	l, err := live(h, ref)
	switch {
	case err != nil:
		return api.TaskInfo{}, err
	case len(l) != 1:
		return api.TaskInfo{}, fmt.Errorf("%s has %d tasks", ref, len(l))
	case l[0].State != spec.TaskRunning || l[0].Status.PID == 0:
		return l[0], fmt.Errorf("%s is %s: %s", l[0].Name, l[0].State, l[0].Error)
	}
	return l[0], nil
}
