package containerd

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"wherry.dev/agent"
	"wherry.dev/spec"
)

// TestLimits shows what comes of limits with either version of control groups.
// A refusal is written as its beginning.
func TestLimits(t *testing.T) {
	swappiness := func(n int64) *int64 { return &n }
	disks := map[string]specs.LinuxDevice{"/dev/sda": {Type: "b", Major: 8, Minor: 16}, "/dev/null": {Type: "c", Major: 1, Minor: 3}}
	rates := []spec.DeviceRate{{Path: "/dev/sda", Rate: 100}}
	for _, tt := range []struct {
		name    string
		r       spec.Resources
		o       SpecOptions
		v1, v2  string
		pidsToo bool
	}{
		{name: "nothing", pidsToo: true, v1: `{"pids":{"limit":4096}}`, v2: `{"pids":{"limit":4096}}`},
		{
			name: "half a core", r: spec.Resources{NanoCPUs: 5e8},
			v1: `{"cpu":{"quota":50000,"period":100000}}`, v2: `{"cpu":{"quota":50000,"period":100000}}`,
		}, {
			name: "memory", r: spec.Resources{Memory: 64 << 20},
			v1: `{"memory":{"limit":67108864,"swap":134217728}}`, v2: `{"memory":{"limit":67108864,"swap":134217728}}`,
		}, {
			name: "no limit of swap", r: spec.Resources{Memory: 64 << 20, MemorySwap: 65 << 20}, o: SpecOptions{NoSwapLimit: true},
			v1: `{"memory":{"limit":67108864}}`, v2: `{"memory":{"limit":67108864}}`,
		}, {
			name: "swappiness", r: spec.Resources{Swappiness: swappiness(0)},
			v1: `{"memory":{"swappiness":0}}`, v2: "mem_swappiness: this node has cgroup v2",
		}, {
			name: "out of memory", r: spec.Resources{Memory: 64 << 20, KeepOnOOM: true},
			v1: `{"memory":{"limit":67108864,"swap":134217728,"disableOOMKiller":true}}`, v2: "oom_kill_disable: this node has cgroup v2",
		}, {
			name: "real time", r: spec.Resources{RealtimeRuntime: 1000, RealtimePeriod: 5000},
			v1: `{"cpu":{"realtimeRuntime":1000,"realtimePeriod":5000}}`, v2: "cpu_rt_runtime: the kernel of this node",
		}, {
			name: "real time without the kernel's", r: spec.Resources{RealtimeRuntime: 1000}, o: SpecOptions{NoRealtime: true},
			v1: "cpu_rt_runtime: the kernel of this node", v2: "cpu_rt_runtime: the kernel of this node",
		}, {
			name: "weight", r: spec.Resources{BlockIO: &spec.BlockIO{Weight: 300, WeightDevices: []spec.DeviceWeight{{Path: "/dev/sda", Weight: 20}}}},
			v1: `{"blockIO":{"weight":300,"weightDevice":[{"major":8,"minor":16,"weight":20}]}}`,
			v2: `{"blockIO":{"weight":300,"weightDevice":[{"major":8,"minor":16,"weight":20}]}}`,
		}, {
			name: "weight without a scheduler", r: spec.Resources{BlockIO: &spec.BlockIO{Weight: 300}}, o: SpecOptions{NoBlockWeight: true},
			v1: "blkio_config: no I/O scheduler", v2: "blkio_config: no I/O scheduler",
		}, {
			name: "rates", r: spec.Resources{BlockIO: &spec.BlockIO{ReadBytes: rates, WriteOps: rates}}, o: SpecOptions{NoBlockWeight: true},
			v1: `{"blockIO":{"throttleReadBpsDevice":[{"major":8,"minor":16,"rate":100}],"throttleWriteIOPSDevice":[{"major":8,"minor":16,"rate":100}]}}`,
			v2: `{"blockIO":{"throttleReadBpsDevice":[{"major":8,"minor":16,"rate":100}],"throttleWriteIOPSDevice":[{"major":8,"minor":16,"rate":100}]}}`,
		}, {
			name: "no such disk", r: spec.Resources{BlockIO: &spec.BlockIO{ReadOps: []spec.DeviceRate{{Path: "/dev/sdz"}}}},
			v1: "blkio_config: /dev/sdz is no block device", v2: "blkio_config: /dev/sdz is no block device",
		}, {
			name: "no disk", r: spec.Resources{BlockIO: &spec.BlockIO{WeightDevices: []spec.DeviceWeight{{Path: "/dev/null"}}}},
			v1: "blkio_config: /dev/null is no block device", v2: "blkio_config: /dev/null is no block device",
		},
	} {
		for unified, want := range map[bool]string{false: tt.v1, true: tt.v2} {
			o := tt.o
			o.Unified, o.BlockDevices = unified, disks
			out, err := specResources(&spec.Template{Resources: tt.r}, o)
			if !strings.HasPrefix(want, "{") {
				if !errors.Is(err, spec.ErrInvalid) || !strings.HasPrefix(err.Error(), want) {
					t.Errorf("%s, cgroup v2 %v: %v, want %q", tt.name, unified, err, want)
				}
				continue
			}
			if err != nil {
				t.Errorf("%s, cgroup v2 %v: %v", tt.name, unified, err)
				continue
			}
			if !tt.pidsToo {
				out.Pids = nil
			}
			b, err := json.Marshal(out)
			if err != nil {
				t.Fatal(err)
			}
			if string(b) != want {
				t.Errorf("%s, cgroup v2 %v: %s, want %s", tt.name, unified, b, want)
			}
		}
	}
}

// TestNamespaces: what a container has for itself, by what it shares and by the
// version of control groups.
func TestNamespaces(t *testing.T) {
	for _, tt := range []struct {
		change func(*spec.Template)
		v1, v2 string
	}{
		{func(*spec.Template) {}, "mount uts network pid ipc", "mount uts network pid ipc cgroup"},
		{func(t *spec.Template) { t.Privileged = true }, "mount uts network pid ipc", "mount uts network pid ipc"},
		{func(t *spec.Template) { t.Privileged, t.CgroupMode = true, "private" }, "mount uts network pid ipc cgroup", "mount uts network pid ipc cgroup"},
		{func(t *spec.Template) { t.CgroupMode = "host" }, "mount uts network pid ipc", "mount uts network pid ipc"},
		{func(t *spec.Template) { t.CgroupMode = "private" }, "mount uts network pid ipc cgroup", "mount uts network pid ipc cgroup"},
		{func(t *spec.Template) { t.UTSMode = "host" }, "mount network pid ipc", "mount network pid ipc cgroup"},
		{func(t *spec.Template) { t.PIDMode, t.IPCMode = "host", "host" }, "mount uts network", "mount uts network cgroup"},
		{func(t *spec.Template) { t.IPCMode = "none" }, "mount uts network pid ipc", "mount uts network pid ipc cgroup"},
	} {
		for unified, want := range map[bool]string{false: tt.v1, true: tt.v2} {
			c := testContainer()
			tt.change(&c.Template)
			o := testOptions()
			o.Unified = unified
			var got []string
			for _, ns := range specNamespaces(c, o) {
				got = append(got, string(ns.Type))
			}
			if strings.Join(got, " ") != want {
				t.Errorf("%+v, cgroup v2 %v: %q, want %q", c.Template, unified, got, want)
			}
		}
	}
}

func TestNoSharedMemory(t *testing.T) {
	c := testContainer()
	c.Template.IPCMode = "none"
	s, err := Spec(c, testOptions())
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(s.Mounts, func(m specs.Mount) bool { return m.Destination == "/dev/shm" }) {
		t.Error("/dev/shm is mounted")
	}
}

func TestNameOfTheNode(t *testing.T) {
	c := testContainer()
	c.Template.UTSMode, c.Hostname = "host", "alpha"
	s, err := Spec(c, testOptions())
	if err != nil {
		t.Fatal(err)
	}
	if s.Hostname != "" || !slices.Contains(s.Process.Env, "HOSTNAME=alpha") {
		t.Errorf("host name %q is set, environment %q", s.Hostname, s.Process.Env)
	}
}

func TestDeviceRules(t *testing.T) {
	c := testContainer()
	c.Template.DeviceRules = []spec.DeviceRule{{Type: "c", Major: 10, Minor: -1, Permissions: "rw"}, {Type: "a", Major: -1, Minor: -1, Permissions: "m"}}
	s, err := Spec(c, testOptions())
	if err != nil {
		t.Fatal(err)
	}
	rules := s.Linux.Resources.Devices
	if rules[0].Allow || rules[0].Access != "rwm" {
		t.Errorf("the first rule is %+v, want none allowed", rules[0])
	}
	b, _ := json.Marshal(rules[len(rules)-2:])
	if want := `[{"allow":true,"type":"c","major":10,"access":"rw"},{"allow":true,"type":"a","access":"m"}]`; string(b) != want {
		t.Errorf("the last rules are %s, want %s", b, want)
	}
	if len(s.Linux.Devices) > 0 {
		t.Errorf("device nodes are made: %+v", s.Linux.Devices)
	}
}

// TestReservedAnnotations: stacks of before they were refused may have some.
func TestReservedAnnotations(t *testing.T) {
	if a := annotations(agent.Container{Template: spec.Template{Annotations: map[string]string{"run.oci.x": "y", "a": "b"}}}); len(a) != 1 || a["a"] != "b" {
		t.Errorf("annotations %v", a)
	}
}

func TestReadOnlyTrees(t *testing.T) {
	for _, tt := range []struct {
		mode     agent.TreeMode
		writable bool
		can      bool
		want     string // options, or the beginning of a refusal
	}{
		{agent.TreeAsIs, false, true, "rbind ro rprivate"},
		{agent.TreeReadOnly, false, true, "rbind ro rro rprivate"},
		{agent.TreeReadOnly, false, false, "rbind ro rprivate"},
		{agent.TreeReadOnly, true, true, "rbind rw rprivate"},
		{agent.TreeStrict, false, true, "rbind ro rro rprivate"},
		{agent.TreeStrict, false, false, "mount at /srv: this node cannot"},
	} {
		m, err := specMount(agent.Mount{Source: "/data", Target: "/srv", ReadOnly: !tt.writable, Tree: tt.mode}, SpecOptions{ReadOnlyTrees: tt.can})
		got := strings.Join(m.Options, " ")
		if err != nil && errors.Is(err, spec.ErrInvalid) {
			got = err.Error()
		}
		if !strings.HasPrefix(got, tt.want) {
			t.Errorf("%+v: %q", tt, got)
		}
	}
}
