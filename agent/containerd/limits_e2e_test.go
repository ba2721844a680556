//go:build e2e

package containerd

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"wherry.dev/agent"
	"wherry.dev/spec"
	"wherry.dev/tests/images"
)

// TestLimitsInForce reads what the kernel holds a container to.
func TestLimitsInForce(t *testing.T) {
	if cgroupUnified() {
		t.Skip("these limits are those of cgroup v1")
	}
	h := newHost(t)
	img := h.load(nil, images.Config{})
	disks, _ := filepath.Glob("/sys/block/*")
	if len(disks) == 0 {
		t.Skip("this host has no block device")
	}
	disk := filepath.Join("/dev", filepath.Base(disks[0]))
	c := h.container("1-1", img, command("while :; do sleep 1; done"))
	c.Template.Resources = spec.Resources{
		Memory: 64 << 20, Swappiness: new(int64(7)), KeepOnOOM: true,
		BlockIO: &spec.BlockIO{ReadBytes: []spec.DeviceRate{{Path: disk, Rate: 1 << 20}}, WriteOps: []spec.DeviceRate{{Path: disk, Rate: 30}}},
	}
	h.runTask(c)
	group := h.rt.Cgroup("1-1")
	var st unix.Stat_t
	if err := unix.Stat(disk, &st); err != nil {
		t.Fatal(err)
	}
	number := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	for file, want := range map[string]string{
		"memory/memory.swappiness":               "7",
		"memory/memory.oom_control":              "oom_kill_disable 1",
		"blkio/blkio.throttle.read_bps_device":   number + " 1048576",
		"blkio/blkio.throttle.write_iops_device": number + " 30",
	} {
		controller, name, _ := strings.Cut(file, "/")
		b, err := os.ReadFile(filepath.Join(cgroupRoot, controller, group, name))
		if err != nil || !strings.Contains("\n"+string(b), "\n"+want+"\n") {
			t.Errorf("%s holds %q, %v, want %q", name, b, err, want)
		}
	}
}

// TestRealtimeInForce needs a hierarchy whose root has something to give.
func TestRealtimeInForce(t *testing.T) {
	all, err := os.ReadFile(filepath.Join(cgroupRoot, "cpu", "cpu.rt_runtime_us"))
	if err != nil || strings.TrimSpace(string(all)) == "0" {
		t.Skip("this host has no time to share out for scheduling in real time")
	}
	h := newHost(t)
	img := h.load(nil, images.Config{})
	c := h.container("1-1", img, command("while :; do sleep 1; done"))
	c.Template.Resources.RealtimeRuntime, c.Template.Resources.RealtimePeriod = 20_000, 500_000
	h.runTask(c)
	b, err := os.ReadFile(filepath.Join(cgroupRoot, "cpu", h.rt.Cgroup("1-1"), "cpu.rt_runtime_us"))
	if err != nil || strings.TrimSpace(string(b)) != "20000" {
		t.Errorf("cpu.rt_runtime_us holds %q, %v", b, err)
	}
}

// TestSharedWithTheNode: names, masks and control groups as a program sees them.
func TestSharedWithTheNode(t *testing.T) {
	h := newHost(t)
	img := h.load(nil, images.Config{})
	name, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	for id, tt := range map[string]struct {
		line   string
		change func(*spec.Template)
		want   string
	}{
		"1-1": {"hostname", func(t *spec.Template) { t.UTSMode = "host" }, name},
		"1-2": {"umask", func(t *spec.Template) { t.Umask = new(uint32(0o027)) }, "0027"},
		"1-3": {"umask", func(*spec.Template) {}, "0022"},
		"1-4": {"ls -d /dev/shm 2>/dev/null || echo none", func(t *spec.Template) { t.IPCMode = "none" }, "none"},
		"1-5": {"grep -c wherry /proc/self/cgroup", func(t *spec.Template) { t.CgroupMode = "private" }, "0"},
		"1-6": {"grep -q 1-6 /proc/self/cgroup && echo shared", func(t *spec.Template) { t.CgroupMode = "host" }, "shared"},
		"1-7": {"mknod /tmp/full c 1 7 && echo made; head -c 1 /tmp/full | wc -c", func(t *spec.Template) {
			t.CapAdd = []string{"CAP_MKNOD"}
		}, "made\n1"},
		"1-8": {"mknod /tmp/loop c 10 237; cat /tmp/loop 2>&1", func(t *spec.Template) {
			t.CapAdd = []string{"CAP_MKNOD"}
		}, "cat: can't open '/tmp/loop': Operation not permitted"},
		"1-9": {"mknod /tmp/loop c 10 237; cat /tmp/loop 2>&1", func(t *spec.Template) {
			t.CapAdd, t.DeviceRules = []string{"CAP_MKNOD"}, []spec.DeviceRule{{Type: "c", Major: 10, Minor: 237, Permissions: "r"}}
		}, "cat: read error: Invalid argument"},
	} {
		c := h.container(id, img, command("mkdir -p /tmp; "+tt.line))
		tt.change(&c.Template)
		if out, _ := h.output(c); strings.TrimSpace(out) != tt.want {
			t.Errorf("%s says %q, want %q", tt.line, out, tt.want)
		}
	}
}

// TestSeccompProfile: the kernel holds a container to its own profile.
func TestSeccompProfile(t *testing.T) {
	h := newHost(t)
	img := h.load(nil, images.Config{})
	c := h.container("1-1", img, command("mkdir /a 2>&1 || echo $?; mkdir -p /proc/x 2>/dev/null; echo done"))
	p, err := spec.ParseSeccompProfile([]byte(`{"defaultAction": "SCMP_ACT_ALLOW", "archMap": [{"architecture": "SCMP_ARCH_X86_64"}, {"architecture": "SCMP_ARCH_AARCH64"}],
		"syscalls": [
			{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28, "includes": {"minKernel": "4.8"}},
			{"names": ["write"], "action": "SCMP_ACT_ERRNO", "includes": {"minKernel": "99.0"}}
		]}`))
	if err != nil {
		t.Fatal(err)
	}
	c.Template.Seccomp = p
	if out, _ := h.output(c); out != "mkdir: can't create directory '/a': No space left on device\n1\ndone\n" {
		t.Errorf("output %q", out)
	}
}

// TestTrees: what is mounted below the source of a read-only bind.
func TestTrees(t *testing.T) {
	h := newHost(t)
	img := h.load(nil, images.Config{})
	source := filepath.Join(h.dir, "tree")
	if err := os.MkdirAll(filepath.Join(source, "below"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", filepath.Join(source, "below"), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(filepath.Join(source, "below"), 0); err != nil {
			t.Error(err)
		}
	})
	for id, tt := range map[string]struct {
		mount agent.Mount
		want  string
	}{
		"1-1": {agent.Mount{}, "written"},
		"1-2": {agent.Mount{Tree: agent.TreeReadOnly}, "refused"},
		"1-3": {agent.Mount{Tree: agent.TreeStrict, Propagation: "rslave"}, "refused"},
		"1-4": {agent.Mount{NonRecursive: true}, "refused"},
	} {
		c := h.container(id, img, command("touch /tree/x 2>/dev/null && echo oops; touch /tree/below/x 2>/dev/null && echo written || echo refused"))
		tt.mount.Source, tt.mount.Target, tt.mount.ReadOnly = source, "/tree", true
		c.Mounts = []agent.Mount{tt.mount}
		if out, _ := h.output(c); strings.TrimSpace(out) != tt.want {
			t.Errorf("%+v: %q, want %q", tt.mount, out, tt.want)
		}
	}
}
