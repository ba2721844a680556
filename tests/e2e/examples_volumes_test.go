//go:build e2e

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestVolumesExample runs the example as its comments do, and looks at each kind
// of storage in it.
func TestVolumesExample(t *testing.T) {
	_, h := oneHost(t)
	file := filepath.Join(copyDir(t, "../../examples/volumes"), "stack.yml")
	t.Cleanup(func() { _ = os.RemoveAll("/var/tmp/wherry-example") })
	refused(t, h.Wherry("apply", "-f", file), "volume volumes_shared")
	h.Must("volume", "create", "volumes_shared")
	h.Must("apply", "-f", file)
	sh := func(line string) string {
		t.Helper()
		r := h.Wherry("exec", "volumes/app", "--", "sh", "-c", line)
		return strings.TrimSpace(r.Stdout + r.Stderr)
	}
	check := func(line, want string) {
		t.Helper()
		if got := sh(line); !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
	check("grep ' /mem ' /proc/mounts", "size=1024k")
	check("stat -c %a /mem", "1777")
	check("ls /bin/busybox", "/bin/busybox")            // copied: without it there would be no shell
	check("stat -c %a /tmp; ls -A /tmp | wc -l", "755") // not even the mode of the image's folder
	check("cat /book/page", "once")
	check("echo x >/book/page", "Read-only")
	check("cat /seed/first; echo more >>/seed/first; cat /notes.txt", "notes")
	check("echo x >/notes.txt", "Read-only")
	check("stat -c '%a %u' /cache; grep ' /cache ' /proc/mounts", "770 7")
	check("grep ' /cache ' /proc/mounts", "size=4096k")
	sh("for d in data shared cache host mem var/own; do echo $d >/$d/mine; done")
	if b, err := os.ReadFile("/var/tmp/wherry-example/mine"); string(b) != "host\n" || err != nil {
		t.Errorf("%q, %v", b, err)
	}

	// The next task of the slot has all but what was in memory alone.
	h.Must("service", "restart", "volumes/app")
	check("cat /data/mine /shared/mine /host/mine /var/own/mine /seed/first", "data\nshared\nhost\nvar/own\nfrom the seed\nmore")
	check("cat /mem/mine", "No such file")
	check("wc -l </data/started", "2")
	list := h.Must("volume", "ls", "--size")
	for _, want := range []string{"volumes_data ", "volumes_shared ", "volumes/app,volumes/librarian", "in use"} {
		if !strings.Contains(list, want) {
			t.Errorf("no %q in\n%s", want, list)
		}
	}
	if got := h.Must("volume", "inspect", "volumes_data", "--format", "{{.labels.backup}} {{index .services 0}}"); strings.TrimSpace(got) != "nightly volumes/app" {
		t.Errorf("inspect: %q", got)
	}
	if got := h.Must("volume", "inspect", "volumes_cache", "--format", "{{.options.type}}"); strings.TrimSpace(got) != "tmpfs" {
		t.Errorf("inspect: %q", got)
	}

	// Nothing but the order to do so deletes data.
	h.Must("rm", "volumes")
	refused(t, h.Wherry("volume", "inspect", "none"), "none")
	for _, name := range []string{"volumes_data", "volumes_shared", "volumes_tools"} {
		if !strings.Contains(h.Must("volume", "ls", "--quiet"), name+"\n") {
			t.Errorf("volume %s is gone", name)
		}
	}
	h.Must("volume", "backup", "volumes_data", filepath.Join(t.TempDir(), "data"))
	for _, name := range strings.Fields(h.Must("volume", "ls", "--quiet")) {
		h.Must("volume", "rm", name)
	}
}
