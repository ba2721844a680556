package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"wherry.dev/api"
	"wherry.dev/overlay"
	"wherry.dev/spec"
)

const (
	// lookTime bounds one look: a disk that hangs must not hang who asks.
	lookTime = 10 * time.Second
	// askTime bounds a question to a name server or a manager.
	askTime = 2 * time.Second
	// diskRecords is how many records are written to find out how long one takes.
	diskRecords = 20
)

// hostLook is what a host is looked at with.
type hostLook struct {
	dataDir, runDir string
	// port of the API, and tunnels that of networks between hosts.
	port, tunnels uint16
	// running: this process is the daemon.
	running bool
	// networks says whether the host has any, six whether it needs IPv6.
	networks, six bool
	// firewalls returns those in the way.
	firewalls func() ([]overlay.FirewallProblem, error)
}

// lookAtHost looks at a host on which no daemon runs.
func lookAtHost(ctx context.Context, dataDir, runDir string) []api.Check {
	port, _ := strconv.ParseUint(api.DefaultPort, 10, 16)
	h := hostLook{dataDir: dataDir, runDir: runDir, port: uint16(port), tunnels: spec.VXLANPort}
	h.firewalls = func() ([]overlay.FirewallProblem, error) { return overlay.CheckFirewalls(runDir, netip.AddrPort{}) }
	return look(ctx, h.looks())
}

// aLook finds out about one thing.
type aLook struct {
	name string
	do   func(ctx context.Context) []api.Check
}

// look does all looks at the same time and returns what they found, in order.
// One that does not come to an end is left alone.
func look(ctx context.Context, looks []aLook) []api.Check {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	found := make([][]api.Check, len(looks))
	var all sync.WaitGroup
	for i, l := range looks {
		all.Go(func() {
			got := make(chan []api.Check, 1)
			go func() { got <- l.do(ctx) }()
			select {
			case found[i] = <-got:
			case <-ctx.Done():
				found[i] = []api.Check{failing(well(l.name, "host", "the look did not come to an end within %s", lookTime), "what it looks at hangs", "Look at the kernel's log (dmesg).")}
			}
		})
	}
	all.Wait()
	return slices.Concat(found...)
}

func single(f func(context.Context) api.Check) func(context.Context) []api.Check {
	return func(ctx context.Context) []api.Check { return []api.Check{f(ctx)} }
}

// looks are what a host is looked at for, whether a daemon runs or not.
func (h hostLook) looks() []aLook {
	return []aLook{
		{"kernel", h.kernel}, {"cgroups", single(h.cgroups)}, {"runtime", single(h.runc)},
		{"space", h.space}, {"filesystem", single(h.fileSystem)}, {"disk", single(h.disk)},
		{"limits", h.limits}, {"clock", single(h.clock)}, {"port", h.ports}, {"firewall", h.firewall},
		{"names", h.names}, {"forwarding", h.settings}, {"engines", single(h.engines)},
	}
}

func (h hostLook) kernel(context.Context) []api.Check {
	release := "of unknown version"
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		release = unix.ByteSliceToString(u.Release[:])
	}
	if os.Geteuid() != 0 {
		return []api.Check{doubtful(well("kernel", release, "not tried"), "only root can make the namespaces that it is tried in", "sudo wherry doctor")}
	}
	var bad []api.Check
	for _, f := range overlay.KernelFeatures() {
		if f.Err != nil {
			bad = append(bad, judgeFeature(release, f.Name, f.Err))
		}
	}
	if len(bad) == 0 {
		return []api.Check{well("kernel", release, "has what networks need")}
	}
	return bad
}

func (h hostLook) cgroups(context.Context) api.Check {
	v2, have, err := controllers()
	if err != nil {
		return failing(well("cgroups", "host", "%v", err), "limits of CPU, memory and processes rest on them", "Mount /sys/fs/cgroup.")
	}
	return judgeCgroups(v2, have)
}

// controllers returns the controllers of cgroups that can be used.
func controllers() (v2 bool, have []string, err error) {
	if b, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return true, strings.Fields(string(b)), nil
	}
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false, nil, err
	}
	for line := range strings.Lines(string(b)) {
		_, after, _ := strings.Cut(line, " - ")
		if fields := strings.Fields(after); len(fields) == 3 && fields[0] == "cgroup" {
			have = append(have, strings.Split(fields[2], ",")...)
		}
	}
	known := slices.DeleteFunc(slices.Compact(slices.Sorted(slices.Values(have))), func(s string) bool {
		return !slices.Contains([]string{"blkio", "cpu", "cpuacct", "cpuset", "devices", "freezer", "hugetlb", "memory", "net_cls", "net_prio", "perf_event", "pids"}, s)
	})
	return false, known, nil
}

func (h hostLook) runc(ctx context.Context) api.Check {
	for _, name := range []string{"runc", "crun", "/usr/sbin/runc", "/usr/sbin/crun"} {
		path, err := exec.LookPath(name)
		if err != nil {
			continue
		}
		out, err := exec.CommandContext(ctx, path, "--version").Output()
		version, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return judgeRunc(path, version, err)
	}
	return judgeRunc("", "", nil)
}

// folder is the data folder, or the one above it that exists.
func (h hostLook) folder() string {
	dir := h.dataDir
	for {
		if _, err := os.Stat(dir); err == nil || dir == filepath.Dir(dir) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

func (h hostLook) space(context.Context) []api.Check {
	dir := h.folder()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return []api.Check{failing(well("space", dir, "%v", err), "the state is written there", "Give --data-dir a folder on a disk.")}
	}
	size := uint64(st.Bsize)
	return []api.Check{judgeSpace(dir, st.Bavail*size, st.Blocks*size), judgeInodes(dir, st.Ffree, st.Files)}
}

var fileSystems = map[int64]string{
	unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", 0x2fc12fc1: "zfs",
	unix.TMPFS_MAGIC: "tmpfs", unix.RAMFS_MAGIC: "ramfs", unix.NFS_SUPER_MAGIC: "nfs", unix.OVERLAYFS_SUPER_MAGIC: "overlay",
	unix.FUSE_SUPER_MAGIC: "fuse", unix.CIFS_SUPER_MAGIC: "cifs", unix.SMB2_SUPER_MAGIC: "smb2", unix.V9FS_MAGIC: "9p", unix.F2FS_SUPER_MAGIC: "f2fs",
}

func (h hostLook) fileSystem(context.Context) api.Check {
	dir := h.folder()
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return judgeFileSystem(dir, "unknown", err)
	}
	kind := fileSystems[int64(uint32(st.Type))]
	if kind == "" {
		kind = fmt.Sprintf("type %x", st.Type)
	}
	if os.Geteuid() != 0 {
		return doubtful(well("filesystem", dir, "%s; no overlay was tried on it", kind), "only root can mount", "sudo wherry doctor")
	}
	return judgeFileSystem(dir, kind, tryOverlay(dir))
}

// tryOverlay mounts an overlay below dir where nobody else sees it, and changes
// a file in it.
func tryOverlay(dir string) error {
	tmp, err := os.MkdirTemp(dir, ".doctor-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	at := func(name string) string { return filepath.Join(tmp, name) }
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(at(d), 0o700); err != nil {
			return err
		}
	}
	if err := os.WriteFile(at("lower/file"), []byte("below"), 0o600); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		// The thread ends with the goroutine, and its mounts with it.
		runtime.LockOSThread()
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
				return err
			}
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				return err
			}
			options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", at("lower"), at("upper"), at("work"))
			if err := unix.Mount("overlay", at("merged"), "overlay", 0, options); err != nil {
				return err
			}
			defer unix.Unmount(at("merged"), unix.MNT_DETACH)
			if err := os.WriteFile(at("merged/file"), []byte("above"), 0o600); err != nil {
				return err
			}
			b, err := os.ReadFile(at("upper/file"))
			if err == nil && string(b) != "above" {
				err = errors.New("what is written does not arrive in the upper folder")
			}
			return err
		}()
	}()
	return <-done
}

func (h hostLook) disk(ctx context.Context) api.Check {
	dir := h.folder()
	f, err := os.CreateTemp(dir, ".doctor-")
	if errors.Is(err, os.ErrPermission) {
		return doubtful(well("disk", dir, "not tried"), "only root may write there", "sudo wherry doctor")
	}
	if err != nil {
		return judgeDisk(dir, nil, err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	var took []time.Duration
	record := make([]byte, 4096)
	for len(took) < diskRecords && ctx.Err() == nil {
		began := time.Now()
		if _, err := f.Write(record); err != nil {
			return judgeDisk(dir, nil, err)
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return judgeDisk(dir, nil, err)
		}
		took = append(took, time.Since(began))
	}
	return judgeDisk(dir, took, nil)
}

func (h hostLook) limits(context.Context) []api.Check {
	var out []api.Check
	var r unix.Rlimit
	// A program in Go raises its limit to the hard one.
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &r) == nil {
		out = append(out, judgeFiles(r.Max))
	}
	v2, _, _ := controllers()
	if n, err := strconv.Atoi(sysctl("fs.inotify.max_user_instances")); err == nil {
		out = append(out, judgeWatchers(n, v2))
	}
	return out
}

// sysctl returns a setting; empty where there is none.
func sysctl(name string) string {
	b, err := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

func (h hostLook) clock(context.Context) api.Check {
	const unsynchronised = 0x0040 // STA_UNSYNC
	var t unix.Timex
	_, err := unix.Adjtimex(&t)
	return judgeSynchronised(t.Status&unsynchronised == 0, err)
}

func (h hostLook) ports(context.Context) []api.Check {
	tunnels := false
	devices, _ := net.Interfaces() // without them the port is said to be held by the kernel
	for _, d := range devices {
		tunnels = tunnels || strings.HasPrefix(d.Name, "wvx-")
	}
	var out []api.Check
	for _, p := range []portState{{proto: "tcp", port: h.port}, {proto: "udp", port: h.port}, {proto: "udp", port: h.tunnels, tunnels: true}} {
		p.by, p.held = overlay.PortHolder(p.proto, p.port)
		mine := h.running && strings.HasSuffix(p.by, fmt.Sprintf("(pid %d)", os.Getpid()))
		p.own = p.held && (mine || p.tunnels && p.by == "" && tunnels)
		out = append(out, judgePort(p, h.running))
	}
	return out
}

func (h hostLook) firewall(context.Context) []api.Check {
	problems, err := h.firewalls()
	switch {
	case errors.Is(err, os.ErrPermission):
		return []api.Check{doubtful(well("firewall", "host", "not looked at"), "only root can read the rules", "sudo wherry doctor")}
	case err != nil:
		return []api.Check{doubtful(well("firewall", "host", "%v", err), "what it drops is not known", "nft list ruleset")}
	case len(problems) == 0:
		return []api.Check{well("firewall", "host", "none in the way")}
	}
	var out []api.Check
	for _, p := range problems {
		out = append(out, judgeFirewall(p.Chain, p.Drops, p.Now, p.Add))
	}
	return out
}

func (h hostLook) names(ctx context.Context) []api.Check {
	b, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return []api.Check{judgeResolver("/etc/resolv.conf", 0, err)}
	}
	var servers []string
	for s := bufio.NewScanner(bytes.NewReader(b)); s.Scan(); {
		if f := strings.Fields(s.Text()); len(f) > 1 && f[0] == "nameserver" {
			servers = append(servers, f[1])
		}
	}
	if len(servers) == 0 {
		return []api.Check{judgeResolver("/etc/resolv.conf", 0, errors.New("it names no server"))}
	}
	took, errs := make([]time.Duration, len(servers)), make([]error, len(servers))
	var all sync.WaitGroup
	for i, s := range servers {
		all.Go(func() { took[i], errs[i] = askServer(ctx, s) })
	}
	all.Wait()
	var out []api.Check
	for i, s := range servers {
		out = append(out, judgeResolver(s, took[i], errs[i]))
	}
	return out
}

// askServer asks a name server for those of the root. Any answer will do.
func askServer(ctx context.Context, server string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "udp", net.JoinHostPort(server, "53"))
	if err != nil {
		return 0, err
	}
	defer c.Close()
	end, _ := ctx.Deadline()
	if err := c.SetDeadline(end); err != nil {
		return 0, err
	}
	// A number, recursion wanted, one question: ".", name servers, of the internet.
	question := []byte{0x77, 0x79, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1}
	began := time.Now()
	if _, err := c.Write(question); err != nil {
		return 0, err
	}
	answer := make([]byte, 1500)
	for {
		n, err := c.Read(answer)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, fmt.Errorf("nothing was heard within %s", askTime)
		}
		if err != nil {
			return 0, err
		}
		if n >= 12 && bytes.Equal(answer[:2], question[:2]) && answer[2]&0x80 != 0 {
			return time.Since(began), nil
		}
	}
}

func (h hostLook) settings(context.Context) []api.Check {
	// Whether IPv6 is forwarded depends on single links; the network loop knows.
	const forward = "net.ipv4.ip_forward"
	_, err := os.Stat("/proc/sys/net/ipv6")
	out := []api.Check{
		judgeForwarding(forward, sysctl(forward), h.running, h.networks),
		judgeIPv6(err == nil, sysctl("net.ipv6.conf.all.disable_ipv6") == "1", h.six),
	}
	const filter = "net.bridge.bridge-nf-call-iptables"
	return append(out, judgeBridgeFilter(filter, sysctl(filter)))
}

func (h hostLook) engines(context.Context) api.Check {
	var found []string
	for _, e := range []struct{ path, name string }{
		{"/run/docker.sock", "Docker"}, {"/run/podman/podman.sock", "Podman"}, {"/run/containerd/containerd.sock", "containerd"},
		{"/run/crio/crio.sock", "CRI-O"}, {"/run/k3s/containerd/containerd.sock", "K3s"}, {"/var/lib/kubelet", "a kubelet"},
	} {
		if _, err := os.Stat(e.path); err == nil {
			found = append(found, e.name)
		}
	}
	return judgeEngines(found)
}
