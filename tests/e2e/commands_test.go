//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wherry.dev/api"
	"wherry.dev/tests/lab"
)

// TestLogsAndExec: output of containers, also of those that are over, and
// commands inside of them.
func TestLogsAndExec(t *testing.T) {
	_, h := oneHost(t)
	h.Must("apply", "-f", stack(t, `
name: talk
services:
  speaker:
    image: `+image+`
    command: [sh, -c, "echo to stdout; echo to stderr >&2; exec sleep 1000"]
    environment: {COLOUR: blue}
    user: "1000:1000"
    stop_grace_period: 1s
    working_dir: /tmp
  counter:
    image: `+image+`
    command: [sh, -c, "for i in 1 2 3 4 5; do echo line $$i; done; exec sleep 1000"]
    stop_grace_period: 1s
  done:
    image: `+image+`
    command: [echo, all done]
    restart: "no"
`))
	// The two streams of a container are read independently: their order is
	// known only within each.
	for ref, lines := range map[string][]string{
		"talk/speaker": {"to stdout", "to stderr"},
		"talk/counter": {"line 5"},
		"talk":         {"talk.done.1", "all done", "talk.speaker.1", "to stdout", "to stderr", "talk.counter.1", "line 1", "line 5"},
	} {
		lab.Eventually(t, soon, "the log of "+ref+" is written", func() error {
			out := h.Must("logs", ref)
			for _, l := range lines {
				if !strings.Contains(out, l) {
					return fmt.Errorf("no %q in the log: %q", l, out)
				}
			}
			return nil
		})
	}
	if out := h.Must("logs", "talk.counter.1", "--tail", "2"); out != "line 4\nline 5\n" {
		t.Errorf("--tail 2: %q", out)
	}
	if out := h.Must("logs", "talk.speaker.1", "--tail", "2"); out != "to stdout\nto stderr\n" && out != "to stderr\nto stdout\n" {
		t.Errorf("--tail 2 of two streams: %q", out)
	}
	if out := h.Must("logs", "talk", "--since", "1h", "-t"); !strings.Contains(out, "T") {
		t.Errorf("timestamps:\n%s", out)
	}

	for _, c := range []struct {
		name string
		args []string
		in   string
		code int
		out  string
	}{
		{"status is passed on", []string{"exec", "talk/speaker", "--", "sh", "-c", "exit 42"}, "", 42, ""},
		{"environment, user and folder", []string{"exec", "talk/speaker", "--", "sh", "-c", "echo $COLOUR $(id -u) $(pwd)"}, "", 0, "blue 1000 /tmp\n"},
		{"standard input", []string{"exec", "talk/speaker", "-i", "--", "cat"}, "through\n", 0, "through\n"},
		{"other user, folder and variable", []string{"exec", "-u", "0", "-w", "/", "-e", "A=b", "talk/speaker", "--", "sh", "-c", "echo $A $(id -u) $(pwd)"}, "", 0, "b 0 /\n"},
		{"by task name", []string{"exec", "talk.speaker.1", "--", "true"}, "", 0, ""},
		{"no such command", []string{"exec", "talk/speaker", "--", "/nonsense"}, "", 127, ""},
		{"no such service", []string{"exec", "talk/nobody", "--", "true"}, "", 125, ""},
		{"a task that is over", []string{"exec", "talk/done", "--", "true"}, "", 125, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := h.WherryIn("", c.in, c.args...)
			if r.Code != c.code || c.out != "" && r.Stdout != c.out {
				t.Errorf("exit %d, want %d; output %q, want %q; %s", r.Code, c.code, r.Stdout, c.out, r.Stderr)
			}
		})
	}
}

// TestJSON: the fields that scripts rely on.
func TestJSON(t *testing.T) {
	_, h := oneHost(t)
	h.Must("apply", "-f", stack(t, "name: j\nservices: {web: {image: "+image+", init: true, command: [sleep, '1000'], ports: ['7000:80/tcp']}}\n"))
	for cmd, fields := range map[string]string{
		"ps":         "id name stack service slot node state desired health image error attempts addresses ports",
		"service ls": "id name stack mode replicas image update",
		"node ls":    "id name role leader state availability address labels",
		"ls":         "name revision services state",
		"volume ls":  "",
		"image ls":   "name digest size in_use",
	} {
		var items []map[string]any
		out := h.Must(append(strings.Fields(cmd), "--format", "json")...)
		if err := json.Unmarshal([]byte(out), &items); err != nil {
			t.Errorf("%s: %v\n%s", cmd, err, out)
			continue
		}
		for _, f := range strings.Fields(fields) {
			if len(items) == 0 {
				t.Errorf("%s: nothing listed", cmd)
				break
			}
			if _, ok := items[0][f]; !ok && !(f == "slot") {
				t.Errorf("%s: no field %q in %s", cmd, f, out)
			}
		}
	}
	ti := one(t, h, "j/web")
	if ti.Node != h.Name || ti.Name != "j.web.1" || ti.Slot != 1 || len(ti.Addresses) != 1 || !strings.Contains(ti.Addresses[0], "/") {
		t.Errorf("task: node %q name %q slot %d addresses %v", ti.Node, ti.Name, ti.Slot, ti.Addresses)
	}
	if want := (api.TaskPort{Published: 7000, Target: 80, Protocol: "tcp", Mode: "ingress"}); len(ti.Ports) != 1 || ti.Ports[0] != want {
		t.Errorf("ports: %+v, want %+v", ti.Ports, want)
	}
}

// TestPlan: what plan says is what apply does.
func TestPlan(t *testing.T) {
	_, h := oneHost(t)
	first := "name: p\nservices:\n  a: {image: " + image + ", init: true, command: [sleep, '1000']}\n  b: {image: " + image + ", init: true, command: [sleep, '1000'], volumes: ['data:/data']}\nvolumes: {data: }\n"
	r := h.Wherry("plan", "-f", stack(t, first), "--exit-code")
	if r.Code != 10 || !strings.Contains(r.Stdout, "+ service a") && !strings.Contains(r.Stdout, "+ service p/a") || !strings.Contains(r.Stdout, "+ task p.b.1") {
		t.Errorf("plan of a new stack: exit %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	if out := h.Must("ls", "--format", "{{.name}}"); out != "" {
		t.Fatalf("plan changed the state: %q", out)
	}
	h.Must("apply", "-f", stack(t, first))

	second := strings.ReplaceAll(first, "  b: {image: "+image+", init: true, command: [sleep, '1000'], volumes: ['data:/data']}\n", "")
	second = strings.ReplaceAll(second, "volumes: {data: }\n", "")
	second = strings.ReplaceAll(second, "sleep, '1000'", "sleep, '2000'")
	r = h.Wherry("plan", "-f", stack(t, second))
	for _, w := range []string{"± task p.a.1", "- task p.b.1", "1000", "2000"} {
		if !strings.Contains(r.Stdout, w) {
			t.Errorf("plan does not say %q:\n%s", w, r.Stdout)
		}
	}
	h.Must("apply", "-f", stack(t, second))
	if out := h.Must("service", "ls", "--format", "{{.name}}"); strings.TrimSpace(out) != "a" {
		t.Errorf("services after apply: %q", out)
	}
	if out := h.Must("volume", "ls", "--format", "{{.name}}"); strings.TrimSpace(out) != "p_data" {
		t.Errorf("volumes after apply: %q, want the volume to stay", out)
	}
}

// TestContainerOptions: what a file says of a container is so inside of it.
func TestContainerOptions(t *testing.T) {
	_, h := oneHost(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "motd"), []byte("from the file\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	text := `
name: opt
services:
  c:
    image: ` + image + `
    command: [sleep, "1000"]
    hostname: chosen
    environment: {A: "1"}
    working_dir: /var
    read_only: true
    tmpfs: ["/scratch:size=1m"]
    init: true
    cap_drop: [ALL]
    cap_add: [NET_BIND_SERVICE]
    ulimits: {nofile: {soft: 111, hard: 222}}
    sysctls: {net.ipv4.ip_local_port_range: "20000 30000"}
    mem_limit: 64m
    pids_limit: 50
    extra_hosts: ["elsewhere:192.0.2.9"]
    dns_search: [example.test]
    volumes: ["./motd:/etc/motd:ro", "anon:/anon"]
    configs: [{source: greeting, target: /etc/greeting, mode: 0440}]
configs: {greeting: {content: "hi"}}
volumes: {anon: }
`
	f := filepath.Join(dir, "stack.yml")
	if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	h.Must("apply", "-f", f)
	for script, want := range map[string]string{
		"hostname":                                        "chosen",
		"touch /x 2>/dev/null || echo read-only":          "read-only",
		"touch /scratch/x && echo written":                "written",
		"tr '\\0' ' ' </proc/1/cmdline | grep -c init":    "1",
		"grep CapEff /proc/self/status":                   "CapEff:\t0000000000000400",
		"grep NoNewPrivs /proc/self/status":               "NoNewPrivs:\t1",
		"grep Seccomp: /proc/self/status":                 "Seccomp:\t2",
		"ulimit -n":                                       "111",
		"cat /proc/sys/net/ipv4/ip_local_port_range":      "20000\t30000",
		"grep elsewhere /etc/hosts | cut -c1-9":           "192.0.2.9",
		"grep -c 'search.*example.test' /etc/resolv.conf": "1",
		"cat /etc/motd":                                   "from the file",
		"cat /etc/greeting; stat -c %a /etc/greeting":     "hi440",
		"touch /anon/x && echo written":                   "written",
		"pwd":                                             "/var",
		"ls /proc/self/fd | wc -l":                        "4", // 0, 1, 2 and the folder itself
	} {
		out := h.Must("exec", "opt/c", "--", "sh", "-c", script)
		if strings.TrimSpace(out) != want {
			t.Errorf("%s: %q, want %q", script, strings.TrimSpace(out), want)
		}
	}
}

// TestNetworkModes: the host's network and none.
func TestNetworkModes(t *testing.T) {
	l, h := oneHost(t)
	h.Must("apply", "-f", stack(t, `
name: modes
services:
  onhost: {image: `+image+`, command: [httpd, -f, -p, "7300"], init: true, network_mode: host}
  alone: {image: `+image+`, command: [sleep, "1000"], init: true, network_mode: none}
  inside: {image: `+image+`, command: [httpd, -f, -p, "80"], init: true, ports: ["127.0.0.1:7301:80"]}
`))
	if r := l.In(h.Name, "timeout", "5", "busybox", "nc", "127.0.0.1", "7300", "-e", "true"); r.Code != 0 {
		t.Errorf("a service on the host's network does not answer: %+v", r)
	}
	if out := h.Must("exec", "modes/alone", "--", "sh", "-c", "ls /sys/class/net"); strings.TrimSpace(out) != "lo" {
		t.Errorf("network_mode none has %q", out)
	}
	l.Plug("client")
	if r := l.In("client", "timeout", "3", "busybox", "nc", h.IP, "7301", "-e", "true"); r.Code == 0 {
		t.Error("a port published on 127.0.0.1 answers outside of the host")
	}
	if r := l.In(h.Name, "timeout", "5", "busybox", "nc", "127.0.0.1", "7301", "-e", "true"); r.Code != 0 {
		t.Errorf("a port published on 127.0.0.1 does not answer on the host: %+v", r)
	}
}
