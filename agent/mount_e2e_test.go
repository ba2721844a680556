//go:build e2e

package agent

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"wherry.dev/spec"
)

// TestVolumeMounts mounts for real, in a mount namespace of its own: it runs
// itself again in one.
func TestVolumeMounts(t *testing.T) {
	const inside = "AGENT_TEST_INSIDE"
	if os.Getenv(inside) == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestVolumeMounts$", "-test.v")
		cmd.Env = append(os.Environ(), inside+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	source := t.TempDir()
	if err := os.WriteFile(filepath.Join(source, "kept"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for id, opts := range map[spec.VolumeID]map[string]string{
		"1-1": {"type": "tmpfs", "device": "tmpfs", "o": "size=64k,mode=1777"},
		"1-2": {"type": "none", "device": source, "o": "bind,ro"},
	} {
		v := testVolumes(t)
		vol := spec.Volume{ID: id, Name: "shop_data", Spec: spec.VolumeSpec{DriverOpts: opts}}
		var data string
		for range 2 { // the second time it is mounted already
			var err error
			if data, err = v.use(t.Context(), vol, noSeed); err != nil {
				t.Fatal(err)
			}
		}
		if got, err := mountsUnder(v.dir); err != nil || !slices.Equal(got, []string{data}) {
			t.Errorf("%s: mounts %v, %v", id, got, err)
		}
		if err := os.WriteFile(filepath.Join(data, "x"), nil, 0o600); (err == nil) != (id == "1-1") {
			t.Errorf("%s: write: %v", id, err)
		}
		if err := removeTree(v.path(id)); err == nil || !strings.Contains(err.Error(), "is mounted in it") {
			t.Errorf("%s: removal through a mount: %v", id, err)
		}
		open, err := os.Open(data)
		if err != nil {
			t.Fatal(err)
		}
		if err := v.remove(t.Context(), id); err == nil {
			t.Errorf("%s: removed while it is busy", id)
		}
		if err := open.Close(); err != nil {
			t.Fatal(err)
		}
		if err := v.release(t.Context(), id); err != nil {
			t.Errorf("%s: release: %v", id, err)
		}
		if err := v.remove(t.Context(), id); err != nil {
			t.Errorf("%s: remove: %v", id, err)
		}
		if names, err := dirNames(v.dir); err != nil || len(names) > 0 {
			t.Errorf("%s: left %v, %v", id, names, err)
		}
	}
	if _, err := os.Stat(filepath.Join(source, "kept")); err != nil {
		t.Error(err)
	}
}
