//go:build linux

package lab

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// PowerOff takes the power from a host: at one moment its cable is dead and
// all its processes are (daemon, containerd, shims, containers, keeper), and
// what a kernel forgets is gone: mounts, cgroups, links, the run folder. The
// disk stays. A host that is without power when the test ends stays so.
func (h *Host) PowerOff() {
	h.lab.t.Helper()
	if h.off {
		return
	}
	// Both ends of the cable: connections that nobody closes any more may keep
	// the namespace for minutes, unseen.
	h.lab.ip("-n", h.lab.ns("sw"), "link", "del", port(h.Name))
	h.Kill()
	h.purge()
	h.lab.ip("netns", "del", h.lab.ns(h.Name))
	h.off = true
}

// PowerOn gives a host its power back and starts its daemon, without waiting
// for it.
func (h *Host) PowerOn() {
	h.lab.t.Helper()
	if h.off {
		h.lab.plug(h.Name, h.IP)
		h.off = false
	}
	h.Launch()
}

// Reboot is PowerOff and PowerOn.
func (h *Host) Reboot() {
	h.lab.t.Helper()
	h.PowerOff()
	h.PowerOn()
}

// Wipe is PowerOff with the loss of the disk. PowerOn starts a new host.
func (h *Host) Wipe() {
	h.lab.t.Helper()
	h.PowerOff()
	entries, err := os.ReadDir(h.DataDir) // the folder itself may be a mount
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		h.lab.t.Fatal(err)
	}
	for _, e := range entries {
		if err := os.RemoveAll(filepath.Join(h.DataDir, e.Name())); err != nil {
			h.lab.t.Fatal(err)
		}
	}
}

// Freeze stops the daemon as SIGSTOP does: its sockets stay open and nobody
// answers. Further parts ("containerd", "keeper") are stopped with it.
func (h *Host) Freeze(also ...string) {
	h.lab.t.Helper()
	for _, part := range append([]string{"daemon"}, also...) {
		pids := h.Part(part)
		if len(pids) == 0 {
			h.lab.t.Fatalf("freeze %s: it has no %s", h.Name, part)
		}
		for _, pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
				h.lab.t.Fatalf("freeze %s of %s: %v", part, h.Name, err)
			}
		}
	}
}

// Thaw lets frozen parts of a host go on.
func (h *Host) Thaw() {
	for _, part := range []string{"keeper", "containerd", "daemon"} {
		for _, pid := range h.Part(part) {
			_ = syscall.Kill(pid, syscall.SIGCONT) // it may have ended by now
		}
	}
}

// ChangeAddress gives the host another address. The daemon is to be restarted
// by the test, as a host's is.
func (h *Host) ChangeAddress(ip string) {
	h.lab.t.Helper()
	h.IP = ip
	if h.off {
		return
	}
	h.lab.inNS(h.Name, "ip", "addr", "flush", "dev", "eth0")
	h.lab.inNS(h.Name, "ip", "addr", "add", ip+"/24", "dev", "eth0")
	h.lab.inNS(h.Name, "ip", "route", "replace", "default", "via", subnet+"254")
}

// Disk makes the data folder a small disk of its own, such as "64m", before
// the first start of the daemon.
func (h *Host) Disk(size string) {
	h.lab.t.Helper()
	if err := os.MkdirAll(h.DataDir, 0o700); err != nil {
		h.lab.t.Fatal(err)
	}
	if err := syscall.Mount("tmpfs", h.DataDir, "tmpfs", 0, "size="+size); err != nil {
		h.lab.t.Fatalf("mount disk of %s: %v", h.Name, err)
	}
	h.disk = true
}

// Part finds the processes of a part of the host by its namespace and run
// folder: "daemon", "containerd", "keeper", "shim".
func (h *Host) Part(name string) []int {
	var out []int
	for pid, args := range h.parts() {
		if len(args) > 1 && args[1] == name || name == "shim" && slices.Contains(args, "-namespace") {
			out = append(out, pid)
		}
	}
	return out
}

// parts are the processes, with their arguments, that have the run folder in
// these, and are not clients of the tests.
func (h *Host) parts() map[int][]string {
	space, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		return nil
	}
	out := map[int][]string{}
	for _, pid := range pids() {
		dir := filepath.Join("/proc", strconv.Itoa(pid))
		cmd, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || !bytes.Contains(cmd, []byte(h.RunDir)) {
			continue
		}
		if ns, err := os.Readlink(filepath.Join(dir, "ns/net")); err == nil && ns != space {
			out[pid] = strings.Split(string(cmd), "\x00")
		}
	}
	return out
}

// Processes are all processes of the host, containers too: those in its
// network namespace, those outside of the tests' own that have its run folder
// in their arguments, those whose root lies in its folders, and what descends
// from all these.
func (h *Host) Processes() []int {
	space, err := os.Stat(h.lab.NSPath(h.Name))
	if err != nil {
		space = nil
	}
	parts := h.parts()
	folder := []byte(filepath.Join(h.lab.dir, h.Name) + "/")
	mine, parents := map[int]bool{}, map[int]int{}
	for _, pid := range pids() {
		dir := filepath.Join("/proc", strconv.Itoa(pid))
		state, parent := stat(dir)
		if state == 'Z' || state == 'X' || state == 0 {
			continue
		}
		parents[pid] = parent
		if _, ok := parts[pid]; ok {
			mine[pid] = true
			continue
		}
		if ns, err := os.Stat(filepath.Join(dir, "ns/net")); err == nil && space != nil && os.SameFile(ns, space) {
			mine[pid] = true
			continue
		}
		// The first mount of a container is its root, an overlay over the host's disk.
		if mounts, err := os.ReadFile(filepath.Join(dir, "mountinfo")); err == nil {
			root, _, _ := bytes.Cut(mounts, []byte("\n"))
			mine[pid] = bytes.Contains(root, folder)
		}
	}
	var out []int
	for pid := range parents {
		for p := pid; p > 1; p = parents[p] {
			if mine[p] {
				out = append(out, pid)
				break
			}
		}
	}
	slices.Sort(out)
	return out
}

func pids() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var out []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil && pid != os.Getpid() {
			out = append(out, pid)
		}
	}
	return out
}

// stat returns the state and the parent of a process; 0 when it is gone.
func stat(dir string) (state byte, parent int) {
	b, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return 0, 0
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	parent, err = strconv.Atoi(f[1])
	if err != nil {
		return 0, 0
	}
	return f[0][0], parent
}

// purge ends what runs on the host and removes what a kernel would forget.
func (h *Host) purge() {
	h.lab.t.Helper()
	cgroups := h.cgroups()
	Eventually(h.lab.t, 20*time.Second, "all processes of "+h.Name+" are dead", func() error {
		left := h.Processes()
		for _, pid := range left {
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended by now
		}
		if len(left) > 0 {
			return fmt.Errorf("processes %v", left)
		}
		return nil
	})
	for _, m := range h.mounts() {
		if m != h.DataDir {
			_ = syscall.Unmount(m, syscall.MNT_DETACH) // what is still there is in the census
		}
	}
	if err := os.RemoveAll(h.RunDir); err != nil {
		h.lab.t.Errorf("empty the run folder of %s: %v", h.Name, err)
	}
	for _, dir := range cgroups {
		h.lab.removeCgroup(dir)
	}
}

// Remains lists what is left of the product on a host whose daemon has ended
// for good: processes, mounts, cgroups, files, links and firewall rules.
func (h *Host) Remains() []string {
	h.lab.t.Helper()
	var out []string
	for _, pid := range h.Processes() {
		cmd, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		out = append(out, fmt.Sprintf("process %d %s", pid, bytes.ReplaceAll(cmd, []byte{0}, []byte{' '})))
	}
	for _, m := range h.mounts() {
		if m != h.DataDir {
			out = append(out, "mount "+m)
		}
	}
	for _, dir := range h.cgroups() {
		out = append(out, "cgroup "+dir)
	}
	for _, root := range []string{h.DataDir, h.RunDir} {
		_ = filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
			if err == nil && p != root {
				out = append(out, "file "+p)
			}
			return nil // what is not there is what we want
		})
	}
	for _, link := range strings.Split(h.Run("ip", "-br", "link").Stdout, "\n") {
		if name, _, _ := strings.Cut(link, " "); name != "" && name != "lo" && !strings.HasPrefix(name, "eth0") {
			out = append(out, "link "+link)
		}
	}
	if rules := strings.TrimSpace(h.Run("nft", "list", "ruleset").Stdout); rules != "" {
		out = append(out, "nftables "+rules)
	}
	return out
}

// mounts below the host's folder, the innermost first.
func (h *Host) mounts() []string {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	var out []string
	for _, l := range strings.Split(string(b), "\n") {
		if f := strings.Fields(l); len(f) > 4 && strings.HasPrefix(f[4], filepath.Join(h.lab.dir, h.Name)+"/") {
			out = append(out, f[4])
		}
	}
	slices.Reverse(out)
	return out
}

// cgroups are the folders, one per hierarchy, below which the host's
// containers have theirs. They are named after the node.
func (h *Host) cgroups() []string {
	id := h.nodeID()
	if id == "" {
		return nil
	}
	name := "wherry-" + id[:min(12, len(id))]
	var out []string
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		dirs, _ := filepath.Glob(pattern + name) // the pattern is well formed
		out = append(out, dirs...)
	}
	return out
}

// nodeID of the host as its folder has it, or had it last; "" before the first
// start.
func (h *Host) nodeID() string {
	if id, err := os.ReadFile(filepath.Join(h.DataDir, "node-id")); err == nil {
		h.id = strings.TrimSpace(string(id))
	}
	return h.id
}

// removeCgroup removes a cgroup with all below it. The kernel lets go of dead
// processes in its own time.
func (l *Lab) removeCgroup(root string) {
	l.t.Helper()
	Eventually(l.t, 10*time.Second, "cgroup "+root+" is removed", func() error {
		var dirs []string
		_ = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, p)
			}
			return nil // what vanishes while we look is gone
		})
		slices.Reverse(dirs)
		for _, d := range dirs {
			if err := syscall.Rmdir(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		return nil
	})
}
