package spec

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"
)

const (
	// minMemory is the least memory a container starts with, in bytes.
	minMemory = 4 << 20
	// maxLogFiles bounds the number of files of one log.
	maxLogFiles = 1000
)

var (
	contentID  = regexp.MustCompile(`^(sha256|hmac):[0-9a-f]{64}$`)
	digestForm = regexp.MustCompile(`^[a-z0-9+._-]+:[0-9a-fA-F]{32,}$`)
	platform   = regexp.MustCompile(`^[a-z0-9]+/[a-z0-9_]+(/[a-z0-9_.]+)?$`)
	signalForm = regexp.MustCompile(`^((SIG)?[A-Za-z0-9+-]{1,12}|[0-9]{1,2})$`)
	cpusetForm = regexp.MustCompile(`^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$`)
	sysctlName = regexp.MustCompile(`^[A-Za-z0-9_-]+([./][A-Za-z0-9_-]+)+$`)
	permitted  = regexp.MustCompile(`^[rwm]{1,3}$`)
)

// ulimits are the names of resource limits of Linux.
var ulimits = []string{
	"as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime",
	"sigpending", "stack",
}

// capabilities are the capabilities of Linux, without the prefix CAP_.
var capabilities = strings.Fields(`AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN DAC_OVERRIDE
	DAC_READ_SEARCH FOWNER FSETID IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD NET_ADMIN
	NET_BIND_SERVICE NET_BROADCAST NET_RAW PERFMON SETFCAP SETGID SETPCAP SETUID SYSLOG SYS_ADMIN SYS_BOOT SYS_CHROOT SYS_MODULE
	SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG WAKE_ALARM`)

var propagations = []string{"", "private", "rprivate", "shared", "rshared", "slave", "rslave"}

func (c *checker) template(at string, t *Template) {
	t = c.placeholders(at, t)
	if strings.TrimSpace(t.Image) == "" {
		c.add(at+".image", "a service needs an image")
	}
	if t.Digest != "" && !digestForm.MatchString(t.Digest) {
		c.add(at+".digest", "%q is not a digest", t.Digest)
	}
	if t.Platform != "" && !platform.MatchString(t.Platform) {
		c.add(at+".platform", "%q is not a platform such as linux/amd64", t.Platform)
	}
	c.env(at+".env", t.Env)
	if t.Hostname != "" {
		c.name(at+".hostname", t.Hostname, dnsName, "letters, digits, ., _ and -")
	}
	if t.Domainname != "" && !dnsName.MatchString(t.Domainname) {
		c.add(at+".domainname", "%q is not a domain name", t.Domainname)
	}
	if t.WorkingDir != "" && !path.IsAbs(t.WorkingDir) {
		c.add(at+".working_dir", "%q is not an absolute path", t.WorkingDir)
	}
	c.labels(at+".labels", t.Labels)
	c.labels(at+".annotations", t.Annotations)
	for _, k := range slices.Sorted(maps.Keys(t.Annotations)) {
		if ReservedAnnotation(k) {
			c.add(at+".annotations", "%s would change how the container is run, beside what the keys for that say", k)
		}
	}
	c.mounts(at+".mounts", t.Mounts)
	c.secretEnv(at+".secret_env", t.SecretEnv)
	c.attachments(at, t)
	c.health(at+".health", t.Health)
	for i, p := range t.PreStart {
		where := fmt.Sprintf("%s.pre_start[%d]", at, i)
		if strings.TrimSpace(p.Image) == "" {
			c.add(where+".image", "a container before the start needs an image")
		}
		if p.Digest != "" && !digestForm.MatchString(p.Digest) {
			c.add(where+".digest", "%q is not a digest", p.Digest)
		}
		if p.WorkingDir != "" && !path.IsAbs(p.WorkingDir) {
			c.add(where+".working_dir", "%q is not an absolute path", p.WorkingDir)
		}
		c.env(where+".env", p.Env)
	}
	c.hooks(at+".post_start", t.PostStart)
	c.hooks(at+".pre_stop", t.PreStop)
	oneOf(c, at+".restart.condition", t.Restart.Condition, RestartAny, RestartOnFailure, RestartNone)
	c.notNegative(at+".restart.delay", int64(t.Restart.Delay))
	if t.Restart.Window != NoWindow {
		c.notNegative(at+".restart.window", int64(t.Restart.Window))
	}
	c.notNegative(at+".restart.max_attempts", int64(t.Restart.MaxAttempts))
	if t.StopSignal != "" && !signalForm.MatchString(t.StopSignal) {
		c.add(at+".stop_signal", "%q is not a signal", t.StopSignal)
	}
	c.notNegative(at+".stop_grace", int64(t.StopGrace))
	c.resources(at+".resources", &t.Resources)
	c.isolation(at, t)
	c.notNegative(at+".log.max_size", t.Log.MaxSize)
	if t.Log.MaxFiles < 0 || t.Log.MaxFiles > maxLogFiles {
		c.add(at+".log.max_files", "must be from 0 to %d", maxLogFiles)
	}
}

func (c *checker) env(at string, env map[string]string) {
	for _, k := range slices.Sorted(maps.Keys(env)) {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.Contains(env[k], "\x00") {
			c.add(at, "the variable %q is not valid", k)
		}
	}
}

func (c *checker) hooks(at string, hooks []Hook) {
	for i, h := range hooks {
		where := fmt.Sprintf("%s[%d]", at, i)
		if len(h.Command) == 0 || h.Command[0] == "" {
			c.add(where, "a hook needs a command")
		}
		if h.WorkingDir != "" && !path.IsAbs(h.WorkingDir) {
			c.add(where+".working_dir", "%q is not an absolute path", h.WorkingDir)
		}
		c.env(where+".env", h.Env)
	}
}

func (c *checker) mounts(at string, mounts []Mount) {
	taken := map[string]int{}
	for i, m := range mounts {
		where := fmt.Sprintf("%s[%d]", at, i)
		if first, ok := taken[m.Target]; ok {
			c.add(where+".target", "%s is already the target of mount %d", m.Target, first)
		}
		taken[m.Target] = i
		if !cleanAbsolute(m.Target) || m.Target == "/" {
			c.add(where+".target", "%q is not an absolute path below /", m.Target)
		}
		c.mount(where, m)
	}
}

func (c *checker) mount(at string, m Mount) {
	c.notNegative(at+".size", m.Size)
	oneOf(c, at+".propagation", m.Propagation, propagations...)
	oneOf(c, at+".submounts", m.Submounts, "", "writable", "readonly")
	if m.Submounts != "" && (m.Type != MountBind || !m.ReadOnly || m.NonRecursive) {
		c.add(at+".submounts", "only a bind that is read-only and recursive says what becomes of the mounts below it")
	}
	if m.Mode != nil && *m.Mode > 0o7777 {
		c.add(at+".mode", "%o is no file mode", *m.Mode)
	}
	switch m.Type {
	case MountVolume:
		if _, ok := c.stack.Volumes[m.Source]; !ok && m.Source != "" {
			c.add(at+".source", "the volume %q is not declared", m.Source)
		}
		if !localPath(m.Subpath) {
			c.add(at+".subpath", "%q leaves the volume", m.Subpath)
		}
	case MountBind:
		if !cleanAbsolute(m.Source) {
			c.add(at+".source", "%q is not an absolute path", m.Source)
		}
	case MountTmpfs:
		if m.Source != "" {
			c.add(at+".source", "a tmpfs has no source")
		}
	case MountContent:
		c.content(at+".content", m.Content)
	case MountSecret, MountConfig:
		c.datumMount(at, &m, DatumKind(m.Type))
	case MountImage:
		if strings.TrimSpace(m.Source) == "" {
			c.add(at+".source", "an image to mount needs a name")
		}
		if m.Digest != "" && !digestForm.MatchString(m.Digest) {
			c.add(at+".digest", "%q is not a digest", m.Digest)
		}
		if !localPath(m.Subpath) {
			c.add(at+".subpath", "%q leaves the image", m.Subpath)
		}
	default:
		c.add(at+".type", "%q is not one of volume, bind, tmpfs, content, secret, config and image", m.Type)
	}
}

// localPath reports whether s is empty or a relative path that stays below
// where it begins.
func localPath(s string) bool {
	p := path.Clean(s)
	return !path.IsAbs(s) && p != ".." && !strings.HasPrefix(p, "../")
}

func (c *checker) attachments(at string, t *Template) {
	if t.Joins() == "" {
		oneOf(c, at+".network_mode", t.NetworkMode, "", "host", "none", "service:NAME")
	}
	if t.NetworkMode != "" && len(t.Networks) > 0 {
		c.add(at+".networks", "a service with network mode %s is on no network", t.NetworkMode)
	}
	c.interfaces(at, t)
	seen := map[string]bool{}
	for i, a := range t.Networks {
		where := fmt.Sprintf("%s.networks[%d]", at, i)
		if _, ok := c.stack.Networks[a.Network]; !ok {
			c.add(where, "the network %q is not declared", a.Network)
		}
		if seen[a.Network] {
			c.add(where, "the network %q is named twice", a.Network)
		}
		seen[a.Network] = true
		for _, alias := range a.Aliases {
			if len(alias) > 253 || !dnsName.MatchString(alias) {
				c.add(where+".aliases", "%q is not a name", alias)
			}
		}
	}
	for _, s := range t.DNS {
		if _, err := netip.ParseAddr(s); err != nil {
			c.add(at+".dns", "%q is not an IP address", s)
		}
	}
	for _, s := range t.DNSSearch { // a line of resolv.conf, as are the options
		if d := strings.TrimSuffix(s, "."); s != "." && (len(d) > 253 || !dnsName.MatchString(d)) {
			c.add(at+".dns_search", "%q is neither a domain nor a dot alone, which stands for none", s)
		}
	}
	for _, s := range t.DNSOptions {
		if !resolvOption.MatchString(s) {
			c.add(at+".dns_options", "%q is not an option such as ndots:2", s)
		}
	}
	for _, h := range t.ExtraHosts {
		name, addr, _ := strings.Cut(h, "=")
		if _, err := netip.ParseAddr(addr); name == "" || strings.ContainsAny(name, " \t\n") || err != nil && addr != HostGateway {
			c.add(at+".extra_hosts", "%q is not NAME=ADDRESS", h)
		}
	}
}

func (c *checker) health(at string, h *HealthCheck) {
	if h == nil || len(h.Test) > 0 && h.Test[0] == "NONE" {
		return
	}
	if len(h.Test) > 0 {
		oneOf(c, at+".test", h.Test[0], "CMD", "CMD-SHELL")
		if len(h.Test) < 2 {
			c.add(at+".test", "the test has no command")
		}
	}
	c.notNegative(at+".interval", int64(h.Interval))
	c.notNegative(at+".timeout", int64(h.Timeout))
	c.notNegative(at+".start_period", int64(h.StartPeriod))
	c.notNegative(at+".start_interval", int64(h.StartInterval))
	c.notNegative(at+".retries", int64(h.Retries))
}

func (c *checker) resources(at string, r *Resources) {
	for _, v := range []struct {
		name string
		n    int64
	}{
		{"nano_cpus", r.NanoCPUs}, {"memory", r.Memory}, {"cpu_shares", r.CPUShares}, {"cpu_quota", r.CPUQuota}, {"cpu_period", r.CPUPeriod},
		{"reserve_cpus", r.ReserveCPUs}, {"reserve_memory", r.ReserveMemory}, {"shm_size", r.ShmSize},
	} {
		c.notNegative(at+"."+v.name, v.n)
	}
	if r.Memory > 0 && r.Memory < minMemory {
		c.add(at+".memory", "%d bytes are too few, want at least %d MiB", r.Memory, minMemory>>20)
	}
	if r.MemorySwap < -1 || r.MemorySwap > 0 && r.MemorySwap < r.Memory {
		c.add(at+".memory_swap", "must be -1 or at least the limit of memory, which it includes")
	}
	if r.MemorySwap > 0 && r.Memory == 0 {
		c.add(at+".memory_swap", "needs a limit of memory as well")
	}
	if r.Pids < -1 {
		c.add(at+".pids", "must be -1 or more")
	}
	if r.CPUPeriod != 0 && (r.CPUPeriod < 1000 || r.CPUPeriod > 1_000_000) {
		c.add(at+".cpu_period", "must be from 1000 to 1000000 microseconds")
	}
	if r.CPUQuota != 0 && r.CPUQuota < 1000 {
		c.add(at+".cpu_quota", "must be at least 1000 microseconds")
	}
	if r.Cpuset != "" && !cpusetForm.MatchString(r.Cpuset) {
		c.add(at+".cpuset", "%q is not a list such as 0-2,4", r.Cpuset)
	}
	if r.OOMScoreAdj < -1000 || r.OOMScoreAdj > 1000 {
		c.add(at+".oom_score_adj", "must be from -1000 to 1000")
	}
	for _, kind := range slices.Sorted(maps.Keys(r.ReserveGeneric)) {
		if !labelName.MatchString(kind) || r.ReserveGeneric[kind] < 1 {
			c.add(at+".reserve_generic", "%d of %q is not a number from 1 of a kind that a label of a node can have", r.ReserveGeneric[kind], kind)
		}
	}
	if s := r.Swappiness; s != nil && (*s < 0 || *s > 100) {
		c.add(at+".swappiness", "must be from 0 to 100")
	}
	c.notNegative(at+".realtime_runtime", r.RealtimeRuntime)
	c.notNegative(at+".realtime_period", r.RealtimePeriod)
	if r.RealtimeRuntime > cmp.Or(r.RealtimePeriod, defaultRealtimePeriod) {
		c.add(at+".realtime_runtime", "must be at most the period, which is %d microseconds unless it is set", defaultRealtimePeriod)
	}
	if r.BlockIO != nil {
		c.blockIO(at+".block_io", r.BlockIO)
	}
}

// defaultRealtimePeriod is the kernel's, in microseconds.
const defaultRealtimePeriod = 1_000_000

func (c *checker) blockIO(at string, b *BlockIO) {
	weight := func(at string, w uint16) {
		if w < 10 || w > 1000 {
			c.add(at, "the weight must be from 10 to 1000")
		}
	}
	device := func(at, name string) {
		if !cleanAbsolute(name) {
			c.add(at, "%q is not the absolute path of a device", name)
		}
	}
	if b.Weight != 0 {
		weight(at+".weight", b.Weight)
	}
	for i, d := range b.WeightDevices {
		where := fmt.Sprintf("%s.weight_devices[%d]", at, i)
		device(where, d.Path)
		weight(where, d.Weight)
	}
	for _, list := range []struct {
		name  string
		rates []DeviceRate
	}{{"read_bytes", b.ReadBytes}, {"write_bytes", b.WriteBytes}, {"read_ops", b.ReadOps}, {"write_ops", b.WriteOps}} {
		for i, d := range list.rates {
			device(fmt.Sprintf("%s.%s[%d]", at, list.name, i), d.Path)
		}
	}
}

func (c *checker) isolation(at string, t *Template) {
	for _, name := range slices.Sorted(maps.Keys(t.Ulimits)) {
		u := t.Ulimits[name]
		if !slices.Contains(ulimits, name) {
			c.add(at+".ulimits", "there is no limit %q", name)
		}
		if u.Soft < -1 || u.Hard < -1 || u.Hard != -1 && (u.Soft > u.Hard || u.Soft == -1) {
			c.add(at+".ulimits."+name, "soft %d and hard %d are not a limit", u.Soft, u.Hard)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(t.Sysctls)) {
		if !sysctlName.MatchString(name) {
			c.add(at+".sysctls", "%q is not the name of a kernel parameter", name)
		}
	}
	if _, ok := Runtimes[t.Runtime]; !ok && t.Runtime != "" {
		c.add(at+".runtime", "the OCI runtime %q is not known, want one of %s", t.Runtime, strings.Join(slices.Sorted(maps.Keys(Runtimes)), ", "))
	}
	c.capabilities(at+".cap_add", t.CapAdd)
	c.capabilities(at+".cap_drop", t.CapDrop)
	for i, o := range t.SecurityOpt {
		key, value, _ := strings.Cut(o, "=")
		switch {
		case key == "no-new-privileges" && (value == "true" || value == "false"), key == "seccomp" && value == "unconfined",
			key == "systempaths" && value == "unconfined", key == "apparmor" && value != "":
		default:
			c.add(fmt.Sprintf("%s.security_opt[%d]", at, i), "%q is none of no-new-privileges=true|false, seccomp=unconfined, apparmor=PROFILE and systempaths=unconfined", o)
		}
	}
	if t.Seccomp != nil {
		c.seccomp(at+".seccomp", t.Seccomp)
	}
	c.namespaces(at, t)
	for i, d := range t.Devices {
		if !path.IsAbs(d.Source) || !path.IsAbs(d.Target) || !permitted.MatchString(d.Permissions) {
			c.add(fmt.Sprintf("%s.devices[%d]", at, i), "%s:%s:%s is not a device with absolute paths and permissions of r, w and m", d.Source, d.Target, d.Permissions)
		}
	}
	for i, r := range t.DeviceRules {
		if r.Type != "a" && r.Type != "b" && r.Type != "c" || r.Major < -1 || r.Minor < -1 || !permitted.MatchString(r.Permissions) {
			c.add(fmt.Sprintf("%s.device_rules[%d]", at, i), "%s %d:%d %s is not a rule with a type of a, b or c, numbers, and permissions of r, w and m", r.Type, r.Major, r.Minor, r.Permissions)
		}
	}
	for i, r := range t.DeviceRequests {
		c.deviceRequest(fmt.Sprintf("%s.device_requests[%d]", at, i), &r)
	}
	if t.Umask != nil && *t.Umask > 0o777 {
		c.add(at+".umask", "%o is no mask of permissions", *t.Umask)
	}
}

var (
	cdiName   = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]*/[A-Za-z][A-Za-z0-9_-]*=[A-Za-z0-9][A-Za-z0-9_.:-]*$`)
	cdiVendor = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_.-]*$`)
	cdiClass  = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]*$`)
	cdiID     = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.:-]*$`)
)

// DeviceName reports whether s is the full name of a device of CDI, such as
// "vendor.com/net=eth0".
func DeviceName(s string) bool { return cdiName.MatchString(s) }

func (c *checker) deviceRequest(at string, r *DeviceRequest) {
	if len(r.Names) > 0 {
		if r.Vendor != "" || r.Class != "" || len(r.IDs) > 0 || r.Count != 0 {
			c.add(at, "names and a class exclude each other")
		}
		for _, n := range r.Names {
			if !DeviceName(n) {
				c.add(at+".names", "%q is not the name of a device such as vendor.com/class=name", n)
			}
		}
		return
	}
	if !cdiClass.MatchString(r.Class) {
		c.add(at+".class", "%q is no class of devices such as gpu", r.Class)
	}
	if r.Vendor != "" && !cdiVendor.MatchString(r.Vendor) {
		c.add(at+".vendor", "%q is no vendor of devices such as nvidia.com", r.Vendor)
	}
	for _, id := range r.IDs {
		if !cdiID.MatchString(id) {
			c.add(at+".ids", "%q is not the ID of a device", id)
		}
	}
	if (len(r.IDs) > 0) == (r.Count != 0) || r.Count < -1 {
		c.add(at+".count", "want a number from 1, -1 for all, or the IDs of devices")
	}
}

// namespaces judges what a container shares with its node.
func (c *checker) namespaces(at string, t *Template) {
	oneOf(c, at+".pid_mode", t.PIDMode, "", "host")
	oneOf(c, at+".ipc_mode", t.IPCMode, "", "host", "none")
	oneOf(c, at+".uts_mode", t.UTSMode, "", "host")
	oneOf(c, at+".cgroup_mode", t.CgroupMode, "", "host", "private")
	if t.UTSMode == "host" && t.Hostname != "" {
		c.add(at+".hostname", "the container has the name of its node (uts: host); remove one of the two")
	}
	if t.UTSMode == "host" && t.Domainname != "" {
		c.add(at+".domainname", "the container has the name of its node (uts: host); remove one of the two")
	}
}

// reservedAnnotations begin the names of annotations by which the programs
// that run a container let themselves be told things.
var reservedAnnotations = []string{"io.containerd.", "io.kubernetes.", "org.systemd.", "run.oci."}

// ReservedAnnotation reports whether an annotation of this name would change
// how a container is run.
func ReservedAnnotation(name string) bool {
	return slices.ContainsFunc(reservedAnnotations, func(p string) bool { return strings.HasPrefix(name, p) })
}

func (c *checker) capabilities(at string, names []string) {
	for _, name := range names {
		short, ok := strings.CutPrefix(name, "CAP_")
		if name != "ALL" && (!ok || !slices.Contains(capabilities, short)) {
			c.add(at, "%q is not a capability such as CAP_NET_ADMIN", name)
		}
	}
}
