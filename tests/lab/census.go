//go:build linux

package lab

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Census is what exists on the machine: one line per object.
type Census map[string]bool

// TakeCensus looks at everything that a daemon could leave behind: links,
// addresses, routes, rules, neighbours and nftables of the calling process'
// network namespace, network namespaces, mounts, cgroups, processes, loop
// devices, unix sockets, and what lies in the usual run folders.
func TakeCensus() Census {
	c := Census{}
	for _, args := range [][]string{
		{"ip", "-o", "link"}, {"ip", "-o", "addr"}, {"ip", "route", "show", "table", "all"},
		{"ip", "-6", "route", "show", "table", "all"}, {"ip", "rule"}, {"ip", "neigh", "show", "nud", "permanent"},
		{"bridge", "fdb"}, {"nft", "list", "ruleset"},
	} {
		out, err := exec.Command(args[0], args[1:]...).Output()
		if err != nil {
			c.add("census", fmt.Sprintf("%s failed: %v", strings.Join(args, " "), err))
			continue
		}
		for _, line := range strings.Split(string(out), "\n") {
			c.add(args[0]+" "+args[len(args)-1], strings.TrimSpace(line))
		}
	}
	c.mounts()
	c.folders("netns", "/run/netns")
	c.folders("run", "/run/containerd", "/run/runc", "/run/wherry")
	c.cgroups()
	c.processes()
	c.sockets()
	return c
}

func (c Census) add(kind, what string) {
	if what != "" {
		c[kind+": "+what] = true
	}
}

// Diff lists what is in after and not in c, sorted.
func (c Census) Diff(after Census) []string {
	var out []string
	for line := range after {
		if !c[line] {
			out = append(out, line)
		}
	}
	slices.Sort(out)
	return out
}

func (c Census) mounts() {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		c.add("census", err.Error())
		return
	}
	for _, line := range strings.Split(string(b), "\n") {
		if f := strings.Fields(line); len(f) > 4 {
			c.add("mount", f[4])
		}
	}
}

func (c Census) folders(kind string, roots ...string) {
	for _, root := range roots {
		_ = filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
			// ip(8) makes its folder at its first use, for good.
			if err == nil && p != "/run/netns" {
				c.add(kind, p)
			}
			return nil // what vanishes while we look is not left behind
		})
	}
}

func (c Census) cgroups() {
	_ = filepath.WalkDir("/sys/fs/cgroup", func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			c.add("cgroup", p)
		}
		return nil
	})
}

// processes lists every process that runs the binary under test, or lives in
// another network or mount namespace than the caller: all that a daemon starts
// is one or the other. What descends from one that is listed is not, so that
// the coming and going in a container of somebody else does not matter, nor
// does what else goes on on the machine.
func (c Census) processes() {
	bin := os.Getenv("WHERRY_BIN")
	if abs, err := filepath.Abs(bin); err == nil {
		bin = abs
	}
	own := namespaces("self")
	found, parents := map[int]string{}, map[int]int{}
	for _, n := range pids() {
		pid := strconv.Itoa(n)
		exe, err := os.Readlink(filepath.Join("/proc", pid, "exe"))
		if err != nil {
			continue // a kernel thread, or gone by now
		}
		_, parents[n] = stat(filepath.Join("/proc", pid))
		if ns := namespaces(pid); strings.TrimSuffix(exe, " (deleted)") == bin || ns != "" && ns != own {
			cmd, _ := os.ReadFile(filepath.Join("/proc", pid, "cmdline"))
			found[n] = pid + " " + strings.ReplaceAll(strings.TrimRight(string(cmd), "\x00"), "\x00", " ")
		}
	}
	for pid, line := range found {
		if _, ok := found[parents[pid]]; !ok {
			c.add("process", line)
		}
	}
}

// namespaces names the network and the mount namespace of a process; "" when
// it is gone.
func namespaces(pid string) string {
	net, err1 := os.Readlink(filepath.Join("/proc", pid, "ns/net"))
	mnt, err2 := os.Readlink(filepath.Join("/proc", pid, "ns/mnt"))
	if err1 != nil || err2 != nil {
		return ""
	}
	return net + " " + mnt
}

// autobound are names that the kernel gives to the nameless ends of other
// programs' connections.
var autobound = regexp.MustCompile(`^@[0-9a-f]{5}$`)

func (c Census) sockets() {
	b, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		c.add("census", err.Error())
		return
	}
	for _, l := range strings.Split(string(b), "\n") {
		if f := strings.Fields(l); len(f) == 8 && f[0] != "Num" && !autobound.MatchString(f[7]) {
			c.add("socket", f[7])
		}
	}
}
