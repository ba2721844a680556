package containerd

import (
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"wherry.dev/agent"
	"wherry.dev/spec"
)

// maskedPaths tell about, or change, the node; a container sees them empty.
var maskedPaths = []string{
	"/proc/acpi",
	"/proc/asound",
	"/proc/interrupts",
	"/proc/kallsyms",
	"/proc/kcore",
	"/proc/keys",
	"/proc/kpagecgroup",
	"/proc/kpagecount",
	"/proc/kpageflags",
	"/proc/latency_stats",
	"/proc/sched_debug",
	"/proc/scsi",
	"/proc/timer_list",
	"/proc/timer_stats",
	"/sys/class/thermal",
	"/sys/devices/virtual/powercap",
	"/sys/firmware",
	"/sys/kernel/debug",
	"/sys/kernel/tracing",
}

var readonlyPaths = []string{
	"/proc/bus",
	"/proc/fs",
	"/proc/irq",
	"/proc/sys",
	"/proc/sysrq-trigger",
}

func specLinux(c agent.Container, o SpecOptions) (*specs.Linux, error) {
	t := &c.Template
	sysctls, err := specSysctls(c)
	if err != nil {
		return nil, err
	}
	devices, rules, err := specDevices(t, o)
	if err != nil {
		return nil, err
	}
	resources, err := specResources(t, o)
	if err != nil {
		return nil, err
	}
	l := &specs.Linux{
		Sysctl:      sysctls,
		Namespaces:  specNamespaces(c, o),
		CgroupsPath: path.Join(o.CgroupParent, string(c.Task)),
		Devices:     devices,
		Resources:   resources,
	}
	l.Resources.Devices = rules
	if !t.Privileged {
		l.MaskedPaths, l.ReadonlyPaths = slices.Clone(maskedPaths), slices.Clone(readonlyPaths)
		for _, opt := range t.SecurityOpt {
			if key, value := securityOption(opt); key == "systempaths" && value == "unconfined" {
				l.MaskedPaths, l.ReadonlyPaths = nil, nil
			}
		}
	}
	// Mounts that a user asked to share have to be shared by the root, too.
	l.RootfsPropagation = "rprivate"
	for _, m := range c.Mounts {
		switch m.Propagation {
		case "shared", "rshared":
			l.RootfsPropagation = "rshared"
		case "slave", "rslave":
			if l.RootfsPropagation == "rprivate" {
				l.RootfsPropagation = "rslave"
			}
		}
	}
	return l, nil
}

func specNamespaces(c agent.Container, o SpecOptions) []specs.LinuxNamespace {
	t := &c.Template
	ns := []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	if t.UTSMode != "host" {
		ns = append(ns, specs.LinuxNamespace{Type: specs.UTSNamespace})
	}
	if hasNetNS(c) {
		ns = append(ns, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: c.NetNS})
	}
	if t.PIDMode != "host" {
		ns = append(ns, specs.LinuxNamespace{Type: specs.PIDNamespace})
	}
	if t.IPCMode != "host" {
		ns = append(ns, specs.LinuxNamespace{Type: specs.IPCNamespace})
	}
	if t.CgroupMode == "private" || t.CgroupMode == "" && o.Unified && !t.Privileged {
		ns = append(ns, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	return ns
}

// hasNetNS reports whether the container has a network namespace of its own.
func hasNetNS(c agent.Container) bool {
	return c.Template.NetworkMode != "host" && (c.NetNS != "" || c.Template.NetworkMode == "none")
}

func specSysctls(c agent.Container) (map[string]string, error) {
	t := &c.Template
	out := map[string]string{}
	if hasNetNS(c) && t.Joins() == "" { // else they are set where the network is
		// They take the place of the capabilities NET_RAW, for ping, and
		// NET_BIND_SERVICE, for users other than root.
		out["net.ipv4.ping_group_range"] = "0 2147483647"
		out["net.ipv4.ip_unprivileged_port_start"] = "0"
	}
	for name, value := range t.Sysctls {
		switch {
		case strings.HasPrefix(name, "net."):
			if !hasNetNS(c) {
				return nil, spec.Invalidf("sysctls: %s would change the node, since the service is on the node's network", name)
			}
		case strings.HasPrefix(name, "fs.mqueue."), strings.HasPrefix(name, "kernel.shm"), strings.HasPrefix(name, "kernel.msg"), name == "kernel.sem":
			if t.IPCMode == "host" {
				return nil, spec.Invalidf("sysctls: %s would change the node, since the service has ipc: host", name)
			}
		default:
			return nil, spec.Invalidf("sysctls: %s belongs to the node and not to a container; set it in the node's /etc/sysctl.d", name)
		}
		out[name] = value
	}
	if t.Domainname != "" {
		out["kernel.domainname"] = t.Domainname
	}
	return out, nil
}

// The device nodes that every container may use, beside those that the runtime
// makes in /dev.
var defaultDevices = []specs.LinuxDeviceCgroup{
	{Allow: true, Type: "c", Access: "m"},
	{Allow: true, Type: "b", Access: "m"},
	{Allow: true, Type: "c", Major: num(1), Minor: num(3), Access: "rwm"}, // null
	{Allow: true, Type: "c", Major: num(1), Minor: num(5), Access: "rwm"}, // zero
	{Allow: true, Type: "c", Major: num(1), Minor: num(7), Access: "rwm"}, // full
	{Allow: true, Type: "c", Major: num(1), Minor: num(8), Access: "rwm"}, // random
	{Allow: true, Type: "c", Major: num(1), Minor: num(9), Access: "rwm"}, // urandom
	{Allow: true, Type: "c", Major: num(5), Minor: num(0), Access: "rwm"}, // tty
	{Allow: true, Type: "c", Major: num(5), Minor: num(1), Access: "rwm"}, // console
	{Allow: true, Type: "c", Major: num(5), Minor: num(2), Access: "rwm"}, // ptmx
	{Allow: true, Type: "c", Major: num(136), Access: "rwm"},              // pts
}

func num(n int64) *int64 { return &n }

// specDevices returns the device nodes to make and the rules of what may be used.
func specDevices(t *spec.Template, o SpecOptions) ([]specs.LinuxDevice, []specs.LinuxDeviceCgroup, error) {
	if t.Privileged {
		devices := slices.Clone(o.Devices)
		return devices, []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}, nil
	}
	rules := append([]specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}, defaultDevices...)
	var devices []specs.LinuxDevice
	for _, d := range t.Devices {
		if strings.Trim(d.Permissions, "rwm") != "" {
			return nil, nil, spec.Invalidf("device %s: permissions %q are no subset of \"rwm\"", d.Source, d.Permissions)
		}
		access := d.Permissions
		if access == "" {
			access = "rwm"
		}
		found := false
		for _, h := range o.Devices {
			rest, ok := strings.CutPrefix(h.Path, d.Source)
			if !ok || rest != "" && rest[0] != '/' {
				continue
			}
			found = true
			h.Path = path.Clean(d.Target + rest)
			devices = append(devices, h)
			rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: h.Type, Major: num(h.Major), Minor: num(h.Minor), Access: access})
		}
		if !found {
			return nil, nil, spec.Invalidf("device %s does not exist on this node", d.Source)
		}
	}
	for _, r := range t.DeviceRules {
		rule := specs.LinuxDeviceCgroup{Allow: true, Type: r.Type, Access: r.Permissions}
		if r.Major >= 0 {
			rule.Major = num(r.Major)
		}
		if r.Minor >= 0 {
			rule.Minor = num(r.Minor)
		}
		rules = append(rules, rule)
	}
	return devices, rules, nil
}

// The fourteen capabilities of Docker without NET_RAW, which lets a container
// forge packets, and MKNOD.
var defaultCaps = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
	"CAP_NET_BIND_SERVICE", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// allCaps are the capabilities there are, in the order of the kernel's numbers.
var allCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
	"CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE",
	"CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME",
	"CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP",
	"CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ",
	"CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// capabilities follows Docker: with ALL added, what is dropped is taken from
// all; with ALL dropped, only what is added is left; an addition wins.
// What the node lacks itself is left out, unless it was asked for by name.
func capabilities(t *spec.Template, node []string) (*specs.LinuxCapabilities, error) {
	has := func(c string) bool { return node == nil || slices.Contains(node, c) }
	if t.Privileged {
		return capSets(allCaps, node), nil
	}
	add, addAll, err := capNames("cap_add", t.CapAdd)
	if err != nil {
		return nil, err
	}
	drop, dropAll, err := capNames("cap_drop", t.CapDrop)
	if err != nil {
		return nil, err
	}
	set := map[string]bool{}
	base := defaultCaps
	if addAll {
		base = allCaps
	}
	if !dropAll || addAll {
		for _, c := range base {
			set[c] = true
		}
	}
	for _, c := range drop {
		delete(set, c)
	}
	for _, c := range add {
		if !has(c) {
			return nil, spec.Invalidf("cap_add: this node itself lacks the capability %s", c)
		}
		set[c] = true
	}
	return capSets(slices.Sorted(maps.Keys(set)), node), nil
}

// capSets leaves the ambient and inheritable sets empty, so that a process of
// another user than root has none. Those that the node lacks are left out; nil
// means that it has all.
func capSets(caps, node []string) *specs.LinuxCapabilities {
	if node != nil {
		caps = slices.DeleteFunc(slices.Clone(caps), func(c string) bool { return !slices.Contains(node, c) })
	}
	return &specs.LinuxCapabilities{Bounding: slices.Clone(caps), Effective: slices.Clone(caps), Permitted: slices.Clone(caps)}
}

func capNames(key string, list []string) (names []string, all bool, err error) {
	for _, n := range list {
		c := strings.ToUpper(n)
		if c == "ALL" || c == "CAP_ALL" {
			all = true
			continue
		}
		if !strings.HasPrefix(c, "CAP_") {
			c = "CAP_" + c
		}
		if !slices.Contains(allCaps, c) {
			return nil, false, spec.Invalidf("%s: there is no capability %q", key, n)
		}
		names = append(names, c)
	}
	return names, all, nil
}
