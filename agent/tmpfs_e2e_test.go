//go:build e2e

package agent

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestTmpfs mounts for real, in a mount namespace of its own: it runs itself
// again in one.
func TestTmpfs(t *testing.T) {
	const inside = "AGENT_TEST_INSIDE"
	if os.Getenv(inside) == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestTmpfs$", "-test.v")
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	dir := filepath.Join(t.TempDir(), "files")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time it is one already
		if err := (hostTmpfs{}).Mount(dir); err != nil {
			t.Fatal(err)
		}
		if under, err := mountsUnder(dir); err != nil || len(under) != 1 {
			t.Fatalf("mounts: %v, %v", under, err)
		}
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Type != unix.TMPFS_MAGIC && st.Type != unix.RAMFS_MAGIC {
		t.Errorf("it is a file system of type %x, %v", st.Type, err)
	}
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(info)) {
		if strings.Contains(line, " "+dir+" ") && st.Type == unix.TMPFS_MAGIC && !strings.Contains(line, "noswap") {
			t.Errorf("it may be swapped out: %s", line)
		}
	}
	if s, err := os.Stat(dir); err != nil || s.Mode().Perm() != 0o700 {
		t.Errorf("mode %v, %v", s.Mode(), err)
	}
	if err := os.WriteFile(filepath.Join(dir, "x"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is none
		if err := (hostTmpfs{}).Unmount(dir); err != nil {
			t.Fatal(err)
		}
	}
	if names, err := dirNames(dir); err != nil || len(names) != 0 {
		t.Errorf("left are %v, %v", names, err)
	}
}
