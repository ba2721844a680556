package containerd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

const cgroupRoot = "/sys/fs/cgroup"

// cgroupUnified reports whether the node has cgroup v2 alone.
func cgroupUnified() bool {
	var st unix.Statfs_t
	return unix.Statfs(cgroupRoot, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

// swapLimited reports whether the kernel can limit the swap of a cgroup.
func swapLimited() bool {
	if cgroupUnified() {
		_, err := os.Stat("/proc/swaps")
		return err == nil
	}
	_, err := os.Stat(filepath.Join(cgroupRoot, "memory", "memory.memsw.limit_in_bytes"))
	return err == nil
}

// realtimeShared reports whether the kernel shares out real-time scheduling
// between control groups.
func realtimeShared() bool {
	_, err := os.Stat(filepath.Join(cgroupRoot, "cpu", "cpu.rt_runtime_us"))
	return err == nil
}

// lendRealtime gives a cgroup all the time that the root has for scheduling in
// real time. A new cgroup has none, and one cannot give what it does not have.
func lendRealtime(cgroup string) error {
	root := filepath.Join(cgroupRoot, "cpu")
	dir := filepath.Join(root, cgroup)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make cgroup: %w", err)
	}
	for _, name := range []string{"cpu.rt_period_us", "cpu.rt_runtime_us"} {
		all, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return fmt.Errorf("read real-time share: %w", err)
		}
		has, _ := os.ReadFile(filepath.Join(dir, name))
		if bytes.Equal(has, all) {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), bytes.TrimSpace(all), 0); err != nil {
			return spec.Invalidf("cpu_rt_runtime: this node has no time left for scheduling in real time, which other control groups hold: %v", err)
		}
	}
	return nil
}

// blocksWeighed reports whether a scheduler of block devices may weigh control
// groups. With cgroup v2 that shows only in the container's own.
func blocksWeighed() bool {
	if cgroupUnified() {
		return true
	}
	for _, name := range []string{"blkio.weight", "blkio.bfq.io_service_bytes"} {
		if _, err := os.Stat(filepath.Join(cgroupRoot, "blkio", name)); err == nil {
			return true
		}
	}
	return false
}

// bundleCgroup returns the cgroup of a bundle's container, "" when unknown.
func bundleCgroup(bundle string) string {
	var c struct {
		Linux struct {
			CgroupsPath string `json:"cgroupsPath"`
		} `json:"linux"`
	}
	b, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil || json.Unmarshal(b, &c) != nil {
		return ""
	}
	return c.Linux.CgroupsPath
}

// oomKills returns how many processes of a cgroup were killed for lack of
// memory since it was made. The counter is read when the container ends and
// its cgroup still is there, so nobody needs to have watched.
func oomKills(cgroup string) int {
	if cgroup == "" {
		return 0
	}
	file := filepath.Join(cgroupRoot, "memory", cgroup, "memory.oom_control")
	if cgroupUnified() {
		file = filepath.Join(cgroupRoot, cgroup, "memory.events")
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if n, ok := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); ok {
			kills, _ := strconv.Atoi(n)
			return kills
		}
	}
	return 0
}

// cgroupDirs returns the folders of a cgroup, one per hierarchy.
func cgroupDirs(cgroup string) []string {
	if cgroupUnified() {
		return []string{filepath.Join(cgroupRoot, cgroup)}
	}
	// A v2 hierarchy without controllers may be mounted beside the v1 ones;
	// runtimes put processes there, too.
	dirs, err := filepath.Glob(filepath.Join(cgroupRoot, "*", cgroup))
	if err != nil {
		return nil
	}
	return dirs
}

// cgroupPIDs returns the processes of a cgroup.
func cgroupPIDs(cgroup string) []int {
	var pids []int
	for _, dir := range cgroupDirs(cgroup) {
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if err != nil {
			continue
		}
		for _, f := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
		if len(pids) > 0 {
			return pids
		}
	}
	return pids
}

// removeCgroup removes an empty cgroup from all hierarchies; one that holds
// others or processes stays.
func removeCgroup(cgroup string) {
	if cgroup == "" || cgroup == "/" {
		return
	}
	for _, dir := range cgroupDirs(cgroup) {
		_ = unix.Rmdir(dir)
	}
}
