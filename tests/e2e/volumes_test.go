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
	"wherry.dev/spec"
	"wherry.dev/tests/lab"
)

func volume(t *testing.T, h *lab.Host, name string) api.VolumeInfo {
	t.Helper()
	var l []api.VolumeInfo
	if err := json.Unmarshal([]byte(h.Must("volume", "inspect", name)), &l); err != nil {
		t.Fatal(err)
	}
	return l[0]
}

// instance is the folder of a volume's data on a host.
func instance(h *lab.Host, v api.VolumeInfo) string {
	return filepath.Join(h.DataDir, "volumes", string(v.ID), "_data")
}

// TestVolumeMoves: data follows the order to move it, through crashes of both
// hosts; it is backed up and restored; and what is known of it when its home is
// gone.
func TestVolumeMoves(t *testing.T) {
	c := grow(t, 1, 1)
	h, worker := c.Hosts[0], c.Hosts[1]
	dir := t.TempDir()
	h.Must("volume", "create", "pool", "--node", h.Name, "--label", "team=a")
	if got := h.Must("volume", "create", "pool", "--label", "team=a"); strings.TrimSpace(got) != "pool" {
		t.Errorf("again: %q", got)
	}
	h.Must("apply", "-f", stack(t, `
name: keep
services:
  db:
    image: `+image+`
    command: [sleep, "7341"]
    stop_signal: SIGKILL
    network_mode: none
    volumes: ["pool:/data"]
volumes: {pool: {external: true}}
`))
	sh := func(line string) string {
		t.Helper()
		return h.Must("exec", "keep/db", "--", "sh", "-c", line)
	}
	sh("cd /data && dd if=/dev/urandom of=big bs=1M count=48 2>/dev/null && mkfifo pipe && ln -s big soft && ln big hard && touch owned && chown 70:71 owned && chmod 4750 owned && md5sum big >sum")
	const look = "cd /data && md5sum -c sum && stat -c '%n %a %u %g %h' big owned pipe && readlink soft"
	want := sh(look)

	// In use it is refused, and nothing changes.
	refused(t, h.Wherry("volume", "move", "pool", worker.Name), "used by task keep.db.1", "--stop")
	refused(t, h.Wherry("volume", "rm", "pool"), "pool")
	refused(t, h.Wherry("volume", "restore", "pool", "-"), "used by task keep.db.1")
	if v := volume(t, h, "pool"); v.Move != nil || !v.InUse || v.Labels["team"] != "a" || strings.Join(v.Services, " ") != "keep/db" || len(v.Instances) != 1 || v.Instances[0].Bytes < 48<<20 {
		t.Errorf("%+v", v)
	}
	if got := h.Must("volume", "ls", "--size"); !strings.Contains(got, "keep/db") || !strings.Contains(got, "MiB") {
		t.Error(got)
	}

	// Both daemons are killed while it moves.
	h.Must("volume", "move", "pool", worker.Name, "--stop", "--wait=false")
	lab.Eventually(t, soon, "the copy has begun", func() error {
		_, err := os.Stat(filepath.Join(worker.DataDir, "volumes", ".new-"+string(volume(t, h, "pool").ID)))
		if v := volume(t, h, "pool"); v.Move == nil {
			return nil // it was quicker
		}
		return err
	})
	worker.Kill()
	h.Kill()
	h.Start()
	worker.Start()
	h.Must("volume", "move", "pool", worker.Name, "--stop")
	lab.Eventually(t, soon, "the service runs at its data", func() error {
		if ti := one(t, h, "keep/db"); ti.State != spec.TaskRunning || ti.Node != worker.Name {
			return fmt.Errorf("%s on %s: %s", ti.State, ti.Node, ti.Status.Reason)
		}
		return nil
	})
	if got := sh(look); got != want {
		t.Errorf("moved:\n%swant\n%s", got, want)
	}
	v := volume(t, h, "pool")
	if len(v.Nodes) != 1 || v.Nodes[0] != worker.Name {
		t.Errorf("%+v", v)
	}
	lab.Eventually(t, soon, "the old copy is gone", func() error {
		if _, err := os.Stat(instance(h, v)); !os.IsNotExist(err) {
			return fmt.Errorf("%s is there (%v)", instance(h, v), err)
		}
		return nil
	})

	// A backup, and back from it.
	file := filepath.Join(dir, "pool.tar.zst")
	h.Must("volume", "backup", "pool", file)
	refused(t, h.Wherry("volume", "backup", "pool", file), "exists")
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	sh("rm /data/big /data/hard /data/sum; echo more >/data/new")
	h.Must("service", "scale", "keep/db=0")
	half := filepath.Join(dir, "half")
	b := []byte(mustRead(t, file))
	if err := os.WriteFile(half, b[:len(b)/2], 0o600); err != nil {
		t.Fatal(err)
	}
	lab.Eventually(t, soon, "half a backup is refused as such", func() error {
		if r := h.Wherry("volume", "restore", "pool", half); r.Code != 3 || !strings.Contains(r.Stderr, "damaged") {
			return fmt.Errorf("exit %d: %s", r.Code, r.Stderr)
		}
		return nil
	})
	if _, err := os.Stat(filepath.Join(instance(worker, v), "new")); err != nil {
		t.Errorf("half a backup changed something: %v", err)
	}
	h.Must("volume", "restore", "pool", file)
	h.Must("service", "scale", "keep/db=1")
	if got := sh(look + "; ls new 2>&1 || true"); !strings.HasPrefix(got, want) || !strings.Contains(got, "No such file") {
		t.Errorf("restored:\n%swant\n%s", got, want)
	}

	// Its home is away, then gone.
	worker.PowerOff()
	lab.Eventually(t, soon, "people are told where the data is", func() error {
		for _, ti := range tasks(t, h, "keep/db") {
			if ti.Error == "node "+worker.Name+" is down, and holds volume pool" && strings.Contains(h.Must("service", "ls"), ti.Error) {
				return nil
			}
		}
		return fmt.Errorf("%s%s", h.Must("ps", "keep"), h.Must("service", "ls"))
	})
	refused(t, h.Wherry("volume", "move", "pool", h.Name), "node "+worker.Name+", which holds it, is down")
	refused(t, h.Wherry("volume", "backup", "pool", "-"), worker.Name+" is down")
	h.Must("node", "rm", "--force", worker.Name)
	lab.Eventually(t, soon, "people are told that the data is gone", func() error {
		if out := h.Must("ps", "keep"); !strings.Contains(out, "the only copy of volume pool") {
			return fmt.Errorf("%s", out)
		}
		return nil
	})
	h.Must("volume", "rm", "pool") // begins anew
	lab.Eventually(t, soon, "the service begins anew", func() error {
		if ti := one(t, h, "keep/db"); ti.State != spec.TaskRunning {
			return fmt.Errorf("%s: %s", ti.State, ti.Status.Reason)
		}
		return nil
	})
	h.Must("service", "scale", "keep/db=0")
	lab.Eventually(t, soon, "the backup comes back on another node", func() error {
		if r := h.Wherry("volume", "restore", "pool", file); r.Code != 0 {
			return fmt.Errorf("exit %d: %s", r.Code, r.Stderr)
		}
		return nil
	})
	h.Must("service", "scale", "keep/db=1")
	if got := sh(look); got != want {
		t.Errorf("restored elsewhere:\n%swant\n%s", got, want)
	}
}
