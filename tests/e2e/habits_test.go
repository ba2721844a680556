//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wherry.dev/tests/lab"
)

// TestHabits: what files for one host take for granted, on two. The commands
// are given on the one, the tasks run on the other.
func TestHabits(t *testing.T) {
	c := grow(t, 1, 1)
	h := c.Hosts[0]
	dir := t.TempDir()
	write := func(name string, data []byte) {
		t.Helper()
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("page.html", []byte("a page"))
	write("seed/first", []byte("seeded\n"))
	write("large/disk", bytes.Repeat([]byte("x"), 2<<20))
	write("stack.yml", []byte(`name: habits
services:
  away:
    image: `+image+`
    container_name: my-own-name
    command: httpd -f -p 80 -h /www
    external_links: [other]
    deploy: {placement: {constraints: [node.hostname==host-2]}}
    volumes:
      - ./page.html:/www/index.html:ro
      - ./seed:/seed
      - ./none:/none
  pinned:
    image: `+image+`
    command: sleep 1000
    x-wherry: {pin: host-2}
    volumes: ["./large:/large"]
  here:
    image: `+image+`
    command: sleep 1000
    deploy: {placement: {constraints: [node.hostname==host-1]}}
  docker:
    image: `+image+`
    command: sleep 1000
    deploy: {replicas: 0}
    volumes: ["/nowhere/docker.sock:/var/run/docker.sock"]
`))
	file := filepath.Join(dir, "stack.yml")
	if r := h.Wherry("apply", "-f", file); r.Code != 3 || !strings.Contains(r.Stderr, "services.away.external_links: links to") {
		t.Errorf("a refused key: exit %d\n%s", r.Code, r.Stderr)
	}
	if out := h.Must("plan", "-f", file, "--accept", "services.away.external_links"); !strings.Contains(out, "note: services.away.external_links is left out as accepted; it would be refused: ") {
		t.Errorf("the plan is silent:\n%s", out)
	}
	h.Must("apply", "-f", file, "--accept", "services.away.external_links")
	for service, node := range map[string]string{"away": "host-2", "pinned": "host-2", "here": "host-1"} {
		if task := one(t, h, "habits/"+service); task.Node != node {
			t.Errorf("%s is on %s, want %s", service, task.Node, node)
		}
	}
	in := func(service, line string) string {
		t.Helper()
		r := h.Wherry("exec", "habits/"+service, "--", "sh", "-c", line)
		return strings.TrimSpace(r.Stdout + r.Stderr)
	}
	for _, tt := range []struct{ service, line, want string }{
		{"here", "wget -qO- http://my-own-name/", "a page"},
		{"away", "cat /seed/first; ls /none; echo mine > /seed/second; cat /seed/second", "seeded\nmine"},
		{"away", "echo x > /www/index.html", "sh: can't create /www/index.html: Read-only file system"},
		{"pinned", "wc -c < /large/disk; echo mine > /large/notes", "2097152"},
	} {
		if got := in(tt.service, tt.line); got != tt.want {
			t.Errorf("%s: %s says %q, want %q", tt.service, tt.line, got, tt.want)
		}
	}
	if got := mustRead(t, filepath.Join(dir, "large/notes")); got != "mine\n" {
		t.Errorf("the folder that lies here has %q", got)
	}
	if _, err := os.Stat(filepath.Join(dir, "seed/second")); err == nil {
		t.Error("what a task writes into a volume came back to the client")
	}

	// No folder is made where the socket of Docker should be.
	h.Must("service", "scale", "habits/docker=1", "--wait=false")
	lab.Eventually(t, soon, "the task is rejected", func() error {
		if out := h.Must("ps", "-a", "habits/docker"); !strings.Contains(out, "rejected") || !strings.Contains(out, "/nowhere/docker.sock") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	if _, err := os.Stat("/nowhere"); err == nil {
		t.Error("/nowhere was made")
	}
}
