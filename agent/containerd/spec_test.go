package containerd

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/rogpeppe/go-internal/txtar"
	"golang.org/x/sys/unix"

	"wherry.dev/agent"
	"wherry.dev/spec"
)

var update = flag.Bool("update", false, "write the golden files anew")

const (
	testPasswd = "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34:web:/srv:/bin/sh\n"
	testGroup  = "root:x:0:\nweb:x:34:\nlogs:x:40:web,other\nvideo:x:44:\n"
)

func testContainer() agent.Container {
	return agent.Container{
		Task: "1-7", Name: "shop.web.1", Stack: "shop", Service: "web", Hostname: "web-1",
		Image: agent.ImageConfig{
			Ref: "docker.io/library/app:1", Entrypoint: []string{"/entry"}, Cmd: []string{"serve"},
			Env: []string{"PATH=/opt/bin:/bin", "LANG=C"}, User: "web", WorkingDir: "/srv",
		},
		Template: spec.Template{Image: "docker.io/library/app:1"},
		NetNS:    "/run/wherry/netns/1-7",
	}
}

func testOptions() SpecOptions {
	return SpecOptions{
		Passwd: []byte(testPasswd), Group: []byte(testGroup), CgroupParent: "/wherry-0123456789ab", Init: "/usr/bin/wherry",
		Arch: "amd64", Kernel: "6.1.0-18-amd64", AppArmor: []string{"docker-default"}, ReadOnlyTrees: true,
		Devices: []specs.LinuxDevice{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}},
	}
}

func encode(t *testing.T, c agent.Container, o SpecOptions) string {
	t.Helper()
	s, err := Spec(c, o)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b) + "\n"
}

// TestSpecGolden compares whole specs. Each file holds a container as JSON,
// which is laid over testContainer, and the spec that comes of it. The seccomp
// profile has a test of its own: it differs between architectures.
func TestSpecGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/spec/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no golden files: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			c, o := testContainer(), testOptions()
			var want string
			for _, f := range ar.Files {
				switch f.Name {
				case "container.json":
					d := json.NewDecoder(bytes.NewReader(f.Data))
					d.DisallowUnknownFields()
					if err := d.Decode(&c); err != nil {
						t.Fatal(err)
					}
				case "unified":
					o.Unified = true
				case "spec.json":
					want = string(f.Data)
				}
			}
			s, err := Spec(c, o)
			if err != nil {
				t.Fatal(err)
			}
			if s.Linux.Seccomp != nil {
				s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: s.Linux.Seccomp.DefaultAction}
			}
			b, err := json.MarshalIndent(s, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			got := string(b) + "\n"
			if *update {
				ar.Files = slices.DeleteFunc(ar.Files, func(f txtar.File) bool { return f.Name == "spec.json" })
				ar.Files = append(ar.Files, txtar.File{Name: "spec.json", Data: []byte(got)})
				if err := os.WriteFile(file, txtar.Format(ar), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("spec differs (-want +got):\n%s", diff)
			}
		})
	}
}

// elsewhere lists the fields of a template that do not show in the spec, and
// who honours them.
var elsewhere = map[string]string{
	"Image":      "chooses the file system (Runtime.Create)",
	"Digest":     "chooses the image (Runtime.Ensure)",
	"Platform":   "chooses the image (Runtime.Ensure)",
	"StdinOpen":  "gives the process a pipe (Runtime.Create)",
	"Mounts":     "resolved by the agent into Container.Mounts",
	"SecretEnv":  "resolved by the agent into Container.EnvFile",
	"Networks":   "the network side, in Container.NetNS",
	"DNS":        "the agent writes resolv.conf",
	"DNSSearch":  "the agent writes resolv.conf",
	"DNSOptions": "the agent writes resolv.conf",
	"ExtraHosts": "the agent writes hosts",
	"Health":     "the agent's checks",
	"PreStart":   "the agent's steps before the start",
	"PostStart":  "the agent's hooks",
	"PreStop":    "the agent's hooks",

	"Runtime":        "runs the spec (Runtime.Create)",
	"Placeholders":   "filled in by the agent",
	"DeviceRequests": "added to the spec from the node's descriptions (Runtime.injectDevices)",
	"Restart":        "the agent's policy",
	"StopSignal":     "the agent's stop",
	"StopGrace":      "the agent's stop",
	"Exclusive":      "the agent's lease",
	"Log":            "the agent's sinks",

	"Resources.ReserveCPUs":   "placement",
	"Resources.ReserveMemory": "placement",

	"Resources.ReserveGeneric": "placement",
}

// changes has, for every other field, something that must change the spec.
var changes = map[string]func(*spec.Template){
	"Entrypoint":  func(t *spec.Template) { t.Entrypoint = []string{"/other"} },
	"Command":     func(t *spec.Template) { t.Command = []string{"other"} },
	"Env":         func(t *spec.Template) { t.Env = map[string]string{"A": "b"} },
	"User":        func(t *spec.Template) { t.User = "root" },
	"GroupAdd":    func(t *spec.Template) { t.GroupAdd = []string{"video"} },
	"WorkingDir":  func(t *spec.Template) { t.WorkingDir = "/tmp" },
	"Hostname":    func(t *spec.Template) { t.Hostname = "other" },
	"Domainname":  func(t *spec.Template) { t.Domainname = "example.org" },
	"TTY":         func(t *spec.Template) { t.TTY = true },
	"Labels":      func(t *spec.Template) { t.Labels = map[string]string{"a": "b"} },
	"Annotations": func(t *spec.Template) { t.Annotations = map[string]string{"a": "b"} },
	"NetworkMode": func(t *spec.Template) { t.NetworkMode = "host" },
	"Ulimits":     func(t *spec.Template) { t.Ulimits = map[string]spec.Ulimit{"core": {Soft: 0, Hard: -1}} },
	"Sysctls":     func(t *spec.Template) { t.Sysctls = map[string]string{"net.core.somaxconn": "99"} },
	"CapAdd":      func(t *spec.Template) { t.CapAdd = []string{"NET_RAW"} },
	"CapDrop":     func(t *spec.Template) { t.CapDrop = []string{"CHOWN"} },
	"Privileged":  func(t *spec.Template) { t.Privileged = true },
	"SecurityOpt": func(t *spec.Template) { t.SecurityOpt = []string{"no-new-privileges:false"} },
	"Seccomp":     func(t *spec.Template) { t.Seccomp = &spec.SeccompProfile{DefaultAction: "SCMP_ACT_ALLOW"} },
	"ReadOnly":    func(t *spec.Template) { t.ReadOnly = true },
	"Init":        func(t *spec.Template) { t.Init = true },
	"PIDMode":     func(t *spec.Template) { t.PIDMode = "host" },
	"IPCMode":     func(t *spec.Template) { t.IPCMode = "host" },
	"UTSMode":     func(t *spec.Template) { t.UTSMode = "host" },
	"CgroupMode":  func(t *spec.Template) { t.CgroupMode = "private" },
	"Umask":       func(t *spec.Template) { t.Umask = new(uint32(0)) },
	"Devices":     func(t *spec.Template) { t.Devices = []spec.Device{{Source: "/dev/fuse", Target: "/dev/fuse"}} },
	"DeviceRules": func(t *spec.Template) { t.DeviceRules = []spec.DeviceRule{{Type: "c", Major: 1, Minor: -1}} },

	"Resources.NanoCPUs":    func(t *spec.Template) { t.Resources.NanoCPUs = 5e8 },
	"Resources.Memory":      func(t *spec.Template) { t.Resources.Memory = 1 << 20 },
	"Resources.Pids":        func(t *spec.Template) { t.Resources.Pids = -1 },
	"Resources.CPUShares":   func(t *spec.Template) { t.Resources.CPUShares = 7 },
	"Resources.CPUQuota":    func(t *spec.Template) { t.Resources.CPUQuota = 5000 },
	"Resources.CPUPeriod":   func(t *spec.Template) { t.Resources.CPUPeriod = 5000 },
	"Resources.Cpuset":      func(t *spec.Template) { t.Resources.Cpuset = "0" },
	"Resources.ShmSize":     func(t *spec.Template) { t.Resources.ShmSize = 1 << 20 },
	"Resources.OOMScoreAdj": func(t *spec.Template) { t.Resources.OOMScoreAdj = 5 },
	"Resources.KeepOnOOM":   func(t *spec.Template) { t.Resources.KeepOnOOM = true },
	"Resources.Swappiness":  func(t *spec.Template) { t.Resources.Swappiness = new(int64(0)) },
	"Resources.BlockIO":     func(t *spec.Template) { t.Resources.BlockIO = &spec.BlockIO{Weight: 10} },

	"Resources.RealtimeRuntime": func(t *spec.Template) { t.Resources.RealtimeRuntime = 1000 },
	"Resources.RealtimePeriod":  func(t *spec.Template) { t.Resources.RealtimePeriod = 1000 },

	"Resources.MemorySwap": func(t *spec.Template) { t.Resources.Memory, t.Resources.MemorySwap = 1<<20, -1 },
}

func TestEveryFieldOfTheTemplateCounts(t *testing.T) {
	names := fieldNames(reflect.TypeFor[spec.Template](), "")
	base := encode(t, testContainer(), testOptions())
	limited := testContainer()
	limited.Template.Resources.Memory = 1 << 20
	for _, name := range names {
		change, counts := changes[name]
		why, other := elsewhere[name]
		switch {
		case counts && other:
			t.Errorf("%s is said to change the spec and to be honoured elsewhere: %s", name, why)
		case other:
		case !counts:
			t.Errorf("%s is honoured by nobody: it needs an effect on the spec and an entry in the table", name)
		default:
			c := testContainer()
			change(&c.Template)
			from := base
			if name == "Resources.MemorySwap" {
				from = encode(t, limited, testOptions())
			}
			if encode(t, c, testOptions()) == from {
				t.Errorf("%s does not change the spec", name)
			}
		}
	}
	for name := range changes {
		if !slices.Contains(names, name) {
			t.Errorf("%s is no field of a template", name)
		}
	}
}

func fieldNames(typ reflect.Type, prefix string) []string {
	var names []string
	for f := range typ.Fields() {
		if f.Type == reflect.TypeFor[spec.Resources]() {
			names = append(names, fieldNames(f.Type, f.Name+".")...)
			continue
		}
		names = append(names, prefix+f.Name)
	}
	return names
}

func TestEveryFieldOfAMountCounts(t *testing.T) {
	bind := agent.Mount{Source: "/data", Target: "/srv"}
	tmpfs := agent.Mount{Tmpfs: true, Target: "/srv"}
	table := map[string][2]agent.Mount{
		"Source":       {bind, {Source: "/other", Target: "/srv"}},
		"Target":       {bind, {Source: "/data", Target: "/other"}},
		"Tmpfs":        {bind, tmpfs},
		"ReadOnly":     {bind, {Source: "/data", Target: "/srv", ReadOnly: true}},
		"Tree":         {{Source: "/data", Target: "/srv", ReadOnly: true}, {Source: "/data", Target: "/srv", ReadOnly: true, Tree: agent.TreeReadOnly}},
		"NonRecursive": {bind, {Source: "/data", Target: "/srv", NonRecursive: true}},
		"Propagation":  {bind, {Source: "/data", Target: "/srv", Propagation: "rshared"}},
		"Options":      {tmpfs, {Tmpfs: true, Target: "/srv", Options: []string{"size=1m"}}},
	}
	for f := range reflect.TypeFor[agent.Mount]().Fields() {
		pair, ok := table[f.Name]
		if !ok {
			// These come before: they fill the source, or are one.
			if !slices.Contains([]string{"CopyUp", "Image", "Subpath"}, f.Name) {
				t.Errorf("%s is not in the table", f.Name)
			}
			continue
		}
		var enc [2]string
		for i, m := range pair {
			c := testContainer()
			c.Mounts = []agent.Mount{m}
			enc[i] = encode(t, c, testOptions())
		}
		if enc[0] == enc[1] {
			t.Errorf("%s does not change the spec", f.Name)
		}
	}
}

func TestArgs(t *testing.T) {
	for _, tt := range []struct {
		name           string
		entry, command []string
		image          agent.ImageConfig
		want           []string
	}{
		{"of the image", nil, nil, agent.ImageConfig{Entrypoint: []string{"e"}, Cmd: []string{"c"}}, []string{"e", "c"}},
		{"command replaces the image's", nil, []string{"x"}, agent.ImageConfig{Entrypoint: []string{"e"}, Cmd: []string{"c"}}, []string{"e", "x"}},
		{"no command", nil, []string{}, agent.ImageConfig{Entrypoint: []string{"e"}, Cmd: []string{"c"}}, []string{"e"}},
		{"entrypoint drops the image's command", []string{"x"}, nil, agent.ImageConfig{Entrypoint: []string{"e"}, Cmd: []string{"c"}}, []string{"x"}},
		{"both", []string{"x"}, []string{"y"}, agent.ImageConfig{Entrypoint: []string{"e"}, Cmd: []string{"c"}}, []string{"x", "y"}},
		{"entrypoint cleared", []string{}, []string{"y"}, agent.ImageConfig{Entrypoint: []string{"e"}}, []string{"y"}},
		{"nothing", []string{}, nil, agent.ImageConfig{Entrypoint: []string{"e"}, Cmd: []string{"c"}}, nil},
	} {
		c := testContainer()
		c.Image, c.Template.Entrypoint, c.Template.Command = tt.image, tt.entry, tt.command
		got, err := processArgs(c)
		if (err != nil) != (tt.want == nil) || !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, %v, want %q", tt.name, got, err, tt.want)
		}
	}
}

func TestEnvFile(t *testing.T) {
	c := testContainer()
	c.EnvFile = "/run/wherry/files/tasks/1-7/env"
	for _, tt := range []struct {
		init bool
		want []string
	}{
		{false, []string{"/.wherry-init", "--env=/.wherry-env", "--exec", "--", "/entry", "serve"}},
		{true, []string{"/.wherry-init", "--env=/.wherry-env", "--", "/entry", "serve"}},
	} {
		c.Template.Init = tt.init
		s, err := Spec(c, testOptions())
		if err != nil || !slices.Equal(s.Process.Args, tt.want) {
			t.Errorf("init %t: %q, %v", tt.init, s.Process.Args, err)
		}
		for target, source := range map[string]string{"/.wherry-init": "/usr/bin/wherry", "/.wherry-env": c.EnvFile} {
			if !slices.ContainsFunc(s.Mounts, func(m specs.Mount) bool {
				return m.Destination == target && m.Source == source && slices.Contains(m.Options, "ro")
			}) {
				t.Errorf("init %t: %s is not mounted: %+v", tt.init, target, s.Mounts)
			}
		}
		more := []string{"/.wherry-init", "--env=/.wherry-env", "--exec", "--", "true"}
		if got := withEnv(s.Process.Args, []string{"true"}); !slices.Equal(got, more) {
			t.Errorf("init %t: a further process is %q", tt.init, got)
		}
	}
	if got := withEnv([]string{"/.wherry-init", "--", "/entry"}, []string{"true"}); !slices.Equal(got, []string{"true"}) {
		t.Errorf("without variables a further process is %q", got)
	}
}

func TestCapabilities(t *testing.T) {
	has := func(add, drop []string, c string) bool {
		got, err := capabilities(&spec.Template{CapAdd: add, CapDrop: drop}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return slices.Contains(got.Bounding, c)
	}
	for _, tt := range []struct {
		name      string
		add, drop []string
		cap       string
		want      bool
	}{
		{"packets cannot be forged", nil, nil, "CAP_NET_RAW", false},
		{"no device nodes", nil, nil, "CAP_MKNOD", false},
		{"low ports", nil, nil, "CAP_NET_BIND_SERVICE", true},
		{"asked for", []string{"net_raw"}, nil, "CAP_NET_RAW", true},
		{"with prefix", []string{"CAP_NET_ADMIN"}, nil, "CAP_NET_ADMIN", true},
		{"dropped", nil, []string{"CHOWN"}, "CAP_CHOWN", false},
		{"all dropped", nil, []string{"ALL"}, "CAP_CHOWN", false},
		{"all dropped but one", []string{"CHOWN"}, []string{"ALL"}, "CAP_CHOWN", true},
		{"all", []string{"ALL"}, nil, "CAP_SYS_ADMIN", true},
		{"all but one", []string{"ALL"}, []string{"SYS_ADMIN"}, "CAP_SYS_ADMIN", false},
	} {
		if got := has(tt.add, tt.drop, tt.cap); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
	if c, _ := capabilities(&spec.Template{}, nil); len(c.Bounding) != 12 {
		t.Errorf("%d capabilities by default, want Docker's 14 less 2", len(c.Bounding))
	}
	if _, err := capabilities(&spec.Template{CapAdd: []string{"FLY"}}, nil); !errors.Is(err, spec.ErrInvalid) {
		t.Errorf("unknown capability: %v", err)
	}
	if _, err := capabilities(&spec.Template{CapAdd: []string{"SYS_ADMIN"}}, []string{"CAP_CHOWN"}); !errors.Is(err, spec.ErrInvalid) {
		t.Errorf("capability that the node lacks: %v", err)
	}
}

func TestSeccomp(t *testing.T) {
	s, err := Spec(testContainer(), testOptions())
	if err != nil {
		t.Fatal(err)
	}
	p := s.Linux.Seccomp
	if p == nil || p.DefaultAction != specs.ActErrno {
		t.Fatalf("no profile that forbids by default: %+v", p)
	}
	allowed := func(call string) bool {
		return slices.ContainsFunc(p.Syscalls, func(r specs.LinuxSyscall) bool { return r.Action == specs.ActAllow && slices.Contains(r.Names, call) })
	}
	for _, call := range []string{"io_uring_setup", "io_uring_enter", "io_uring_register", "socketcall", "userfaultfd", "bpf", "perf_event_open", "mount", "keyctl", "kexec_load", "unshare", "setns"} {
		if allowed(call) {
			t.Errorf("%s is allowed", call)
		}
	}
	for _, call := range []string{"read", "execve", "futex", "epoll_wait", "clone"} {
		if !allowed(call) {
			t.Errorf("%s is not allowed", call)
		}
	}
	socket := func(domain uint64) bool {
		return slices.ContainsFunc(p.Syscalls, func(r specs.LinuxSyscall) bool {
			return slices.Contains(r.Names, "socket") && (len(r.Args) == 0 ||
				r.Args[0].Op == specs.OpEqualTo && r.Args[0].Value == domain || r.Args[0].Op == specs.OpLessThan && domain < r.Args[0].Value)
		})
	}
	for domain, want := range map[uint64]bool{unix.AF_ALG: false, unix.AF_VSOCK: false, unix.AF_INET: true, unix.AF_INET6: true, unix.AF_UNIX: true, unix.AF_NETLINK: true} {
		if socket(domain) != want {
			t.Errorf("sockets of domain %d allowed: %v, want %v", domain, !want, want)
		}
	}
	for _, opt := range []string{"seccomp=unconfined", "seccomp:unconfined"} {
		c := testContainer()
		c.Template.SecurityOpt = []string{opt}
		if s, err := Spec(c, testOptions()); err != nil || s.Linux.Seccomp != nil {
			t.Errorf("%s: %v, %v", opt, s.Linux.Seccomp, err)
		}
	}
}

func TestRefused(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*agent.Container)
	}{
		{"folder of descriptors", func(c *agent.Container) { c.Template.WorkingDir = "/proc/self/fd/7" }},
		{"folder of descriptors in the image", func(c *agent.Container) { c.Image.WorkingDir = "/x/../proc/1/root" }},
		{"descriptors by another name", func(c *agent.Container) { c.Template.WorkingDir = "/dev/fd/7" }},
		{"user beyond 32 bits", func(c *agent.Container) { c.Template.User = "4294967296" }},
		{"user that means no change", func(c *agent.Container) { c.Template.User = "4294967295" }},
		{"huge user", func(c *agent.Container) { c.Template.User = "99999999999999999999" }},
		{"negative user", func(c *agent.Container) { c.Template.User = "-1" }},
		{"group beyond 32 bits", func(c *agent.Container) { c.Template.User = "0:4294967296" }},
		{"unknown user", func(c *agent.Container) { c.Template.User = "nobody" }},
		{"unknown group", func(c *agent.Container) { c.Template.GroupAdd = []string{"nogroup"} }},
		{"sysctl of the node", func(c *agent.Container) { c.Template.Sysctls = map[string]string{"vm.swappiness": "1"} }},
		{"sysctl of the node's network", func(c *agent.Container) {
			c.Template.NetworkMode, c.Template.Sysctls = "host", map[string]string{"net.ipv4.ip_forward": "1"}
		}},
		{"sysctl of the node's queues", func(c *agent.Container) {
			c.Template.IPCMode, c.Template.Sysctls = "host", map[string]string{"kernel.msgmax": "1"}
		}},
		{"profile left behind", func(c *agent.Container) { c.Template.SecurityOpt = []string{"seccomp=./p.json"} }},
		{"AppArmor profile that the node lacks", func(c *agent.Container) { c.Template.SecurityOpt = []string{"apparmor=other"} }},
		{"unknown option", func(c *agent.Container) { c.Template.SecurityOpt = []string{"magic"} }},
		{"unknown limit", func(c *agent.Container) { c.Template.Ulimits = map[string]spec.Ulimit{"files": {}} }},
		{"root as a mount", func(c *agent.Container) { c.Mounts = []agent.Mount{{Source: "/x", Target: "/"}} }},
		{"all of /proc as a mount", func(c *agent.Container) { c.Mounts = []agent.Mount{{Source: "/x", Target: "/a/../proc"}} }},
		{"relative source", func(c *agent.Container) { c.Mounts = []agent.Mount{{Source: "x", Target: "/x"}} }},
		{"unknown propagation", func(c *agent.Container) { c.Mounts = []agent.Mount{{Source: "/x", Target: "/x", Propagation: "most"}} }},
		{"missing device", func(c *agent.Container) {
			c.Template.Devices = []spec.Device{{Source: "/dev/none", Target: "/dev/none"}}
		}},
		{"bad permissions", func(c *agent.Container) {
			c.Template.Devices = []spec.Device{{Source: "/dev/fuse", Target: "/dev/fuse", Permissions: "rx"}}
		}},
	} {
		c := testContainer()
		tt.change(&c)
		if s, err := Spec(c, testOptions()); !errors.Is(err, spec.ErrInvalid) {
			t.Errorf("%s: %v, want an error of class invalid (%+v)", tt.name, err, s)
		}
	}
}

func TestResolveUser(t *testing.T) {
	for _, tt := range []struct {
		name    string
		further []string
		want    specs.User
	}{
		{"", nil, specs.User{AdditionalGids: []uint32{0}}},
		{"web", nil, specs.User{UID: 33, GID: 34, AdditionalGids: []uint32{34, 40}}},
		{"33", nil, specs.User{UID: 33, GID: 34, AdditionalGids: []uint32{34, 40}}},
		{"web:logs", nil, specs.User{UID: 33, GID: 40, AdditionalGids: []uint32{40}}},
		{"5", nil, specs.User{UID: 5, AdditionalGids: []uint32{0}}},
		{"5:6", []string{"video", "99"}, specs.User{UID: 5, GID: 6, AdditionalGids: []uint32{6, 44, 99}}},
		{"4294967294", nil, specs.User{UID: 4294967294, AdditionalGids: []uint32{0}}},
	} {
		got, err := resolveUser(tt.name, tt.further, []byte(testPasswd), []byte(testGroup))
		if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
			t.Errorf("user %q: %v %s", tt.name, err, diff)
		}
	}
	// An image may call a user by a number; it means the number all the same.
	if u, err := resolveUser("7", nil, []byte("7:x:0:0::/:/bin/sh\n"), nil); err != nil || u.UID != 7 {
		t.Errorf("a name of digits: %+v, %v, want the number", u, err)
	}
}

func TestSpecDoesNotShareMemory(t *testing.T) {
	a, b := testContainer(), testContainer()
	s, err := Spec(a, testOptions())
	if err != nil {
		t.Fatal(err)
	}
	s.Linux.MaskedPaths[0], s.Process.Capabilities.Bounding[0] = "x", "x"
	if strings.Contains(encode(t, b, testOptions()), `"x"`) {
		t.Error("a change of one spec shows in the next")
	}
}
