package compose

import (
	"cmp"
	"fmt"
	"maps"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/compose-spec/compose-go/v2/types"

	"wherry.dev/spec"
)

// Defaults of Compose that the files may leave out.
const (
	defaultGrace         = 10 * time.Second
	defaultInterval      = 30 * time.Second
	defaultTimeout       = 30 * time.Second
	defaultStartInterval = 5 * time.Second
	defaultRetries       = 3
)

// searchDomains writes the empty value, by which files turn the search off, as
// the dot that stands for none.
func searchDomains(domains []string) []string {
	if len(domains) == 1 && strings.TrimSpace(domains[0]) == "" {
		return []string{"."}
	}
	return domains
}

func (c *conversion) template(at path, s types.ServiceConfig) spec.Template {
	t := spec.Template{
		Platform:    c.platform(at.key("platform"), s.Platform),
		Entrypoint:  s.Entrypoint,
		Command:     s.Command,
		Env:         c.environment(at, s),
		User:        s.User,
		GroupAdd:    s.GroupAdd,
		WorkingDir:  s.WorkingDir,
		Hostname:    s.Hostname,
		Domainname:  s.DomainName,
		TTY:         s.Tty,
		StdinOpen:   s.StdinOpen,
		Labels:      c.labels(at, s),
		Annotations: nonEmpty(s.Annotations),
		DNS:         s.DNS,
		DNSSearch:   searchDomains(s.DNSSearch),
		DNSOptions:  s.DNSOpts,
		ExtraHosts:  extraHosts(s.ExtraHosts),
		Health:      c.health(at.key("healthcheck"), s.HealthCheck),
		PreStart:    c.preStart(at, s),
		PostStart:   c.hooks(at.key("post_start"), s.PostStart),
		PreStop:     c.hooks(at.key("pre_stop"), s.PreStop),
		Restart:     c.restart(at, s),
		StopSignal:  s.StopSignal,
		StopGrace:   spec.Duration(defaultGrace),
		Resources:   c.resources(at, s),
		Ulimits:     ulimits(s.Ulimits),
		Sysctls:     nonEmpty(s.Sysctls),
		CapAdd:      capabilities(s.CapAdd),
		CapDrop:     capabilities(s.CapDrop),
		Privileged:  s.Privileged,
		ReadOnly:    s.ReadOnly,
		Runtime:     c.runtime(at.key("runtime"), s.Runtime),
		Init:        s.Init != nil && *s.Init,
		PIDMode:     c.namespaceMode(at.key("pid"), s.Pid),
		IPCMode:     c.ipcMode(at.key("ipc"), s.Ipc),
		UTSMode:     c.namespaceMode(at.key("uts"), s.Uts),
		CgroupMode:  s.Cgroup,
		Umask:       s.Umask,
		DeviceRules: c.deviceRules(at.key("device_cgroup_rules"), s.DeviceCgroupRules),
		Log:         c.log(at.key("logging"), s.Logging),
	}
	c.own(at.key("x-wherry"), s.Extensions["x-wherry"], &t)
	c.image(at, s, &t)
	if s.StopGracePeriod != nil {
		t.StopGrace = spec.Duration(*s.StopGracePeriod)
	}
	t.SecurityOpt, t.Seccomp = c.securityOpt(at.key("security_opt"), s.SecurityOpt)
	t.Devices, t.DeviceRequests = c.devices(at, s)
	c.attach(at, s, &t)
	c.firstMAC(at, s, &t)
	t.Mounts = c.mounts(at, s, &t)
	t.Placeholders = t.HoldsPlaceholders()
	return t
}

// own converts x-wherry. Which keys there are is judged by the table.
func (c *conversion) own(at path, v any, t *spec.Template) {
	if v == nil {
		return
	}
	keys, ok := v.(map[string]any)
	if !ok {
		c.refuse(at, "write for instance x-wherry: {exclusive: true}", "%v is no mapping", v)
		return
	}
	if v, ok := keys["exclusive"]; ok {
		b, err := strconv.ParseBool(fmt.Sprint(v)) // a string after interpolation
		if err != nil {
			c.refuse(at.key("exclusive"), "", "%q is neither true nor false", fmt.Sprint(v))
		}
		t.Exclusive = b
	}
}

func (c *conversion) image(at path, s types.ServiceConfig, t *spec.Template) {
	if s.Image == "" {
		if s.Build != nil {
			c.refuse(at.key("build"), "build it and push it or load it by wherry image load, then name it by image:", "building images: %s", notBuilt)
		}
		return
	}
	image, digest, err := NormalizeImage(s.Image)
	if err != nil {
		c.refuse(at.key("image"), "", "%v", err)
		return
	}
	t.Image, t.Digest = image, digest
	if s.PullPolicy == types.PullPolicyBuild {
		c.refuse(at.key("pull_policy"), "build it and push it or load it by wherry image load", "building images: %s", notBuilt)
	}
	if _, _, err := s.GetPullPolicy(); err != nil {
		c.refuse(at.key("pull_policy"), suggestion(s.PullPolicy, "always", "missing", "never"), "the policy %q does not exist", s.PullPolicy)
	}
}

// architectures are the names of architectures in platforms, by what users
// write.
var architectures = map[string]string{
	"amd64": "amd64", "x86_64": "amd64", "arm64": "arm64", "aarch64": "arm64", "arm": "arm", "386": "386", "ppc64le": "ppc64le",
	"s390x": "s390x", "riscv64": "riscv64", "mips64le": "mips64le", "loong64": "loong64",
}

func (c *conversion) platform(at path, p string) string {
	if p == "" {
		return ""
	}
	parts := strings.Split(strings.ToLower(p), "/")
	if len(parts) == 1 {
		parts = []string{"linux", parts[0]}
	}
	arch := architectures[parts[1]]
	if len(parts) > 3 || parts[0] != "linux" || arch == "" || slices.Contains(parts, "") {
		c.refuse(at, "write for instance linux/amd64", "the platform %q is none of linux/ARCHITECTURE[/VARIANT]", p)
		return ""
	}
	parts[1] = arch
	return strings.Join(parts, "/")
}

// environment reads the env files and leaves out variables without a value.
func (c *conversion) environment(at path, s types.ServiceConfig) map[string]string {
	files := c.envFiles(at, s)
	one := types.Project{Environment: c.p.Environment, Services: types.Services{s.Name: {
		Name: s.Name, ContainerSpec: types.ContainerSpec{Environment: s.Environment, EnvFiles: files},
	}}}
	resolved, err := one.WithServicesEnvironmentResolved(true)
	if err != nil {
		c.refuse(at.key("env_file"), "", "%s", strings.Join(strings.Fields(err.Error()), " "))
		return nil
	}
	out := map[string]string{}
	env := resolved.Services[s.Name].Environment
	for _, k := range slices.Sorted(maps.Keys(env)) {
		if v := env[k]; v != nil {
			out[k] = *v
			c.noteNumber(at.key("environment").key(k), *v)
		} else {
			c.note(at.key("environment"), "the variable %s has no value and is left out", k)
		}
	}
	return nonEmpty(out)
}

// noteNumber tells of a variable that is not what its text looks like: YAML has
// read a number or a boolean, and Compose writes that in its own way.
func (c *conversion) noteNumber(at path, value string) {
	n := c.tree.get(at...)
	if text := n.text(); text != "" && text != value && slices.Contains([]string{"!!int", "!!float", "!!bool"}, n.scalar.ShortTag()) {
		c.note(at, "is read as %q, not as text; write it in quotes for %q", value, text)
	}
}

// envFiles returns the env files that can be read, by absolute path.
func (c *conversion) envFiles(at path, s types.ServiceConfig) []types.EnvFile {
	var out []types.EnvFile
	for i, f := range s.EnvFiles {
		f.Path = c.resolve(f.Path)
		where := at.key("env_file")
		if c.tree.get(where.index(i)...) != nil {
			where = where.index(i)
		}
		if !bool(f.Required) && !exists(f.Path) {
			c.note(where, "the env file %s does not exist", c.display(f.Path))
			continue
		}
		if f.Format != "" && f.Format != rawFormat && f.Format != dotenv.DotEnv {
			c.refuse(where, suggestion(f.Format, rawFormat), "the format %q does not exist, want raw, or none for that of .env files", f.Format)
			continue
		}
		if c.checkInputFile(where, f.Path) {
			out = append(out, f)
		}
	}
	return out
}

func (c *conversion) labels(at path, s types.ServiceConfig) map[string]string {
	var files []string
	for _, f := range s.LabelFiles {
		if f = c.resolve(f); c.checkInputFile(at.key("label_file"), f) {
			files = append(files, f)
		}
	}
	one := types.Project{Services: types.Services{s.Name: {
		Name: s.Name, ContainerSpec: types.ContainerSpec{Labels: s.Labels, LabelFiles: files},
	}}}
	resolved, err := one.WithServicesLabelsResolved(true)
	if err != nil {
		c.refuse(at.key("label_file"), "", "%s", strings.Join(strings.Fields(err.Error()), " "))
		return nil
	}
	return nonEmpty(resolved.Services[s.Name].Labels)
}

// extraHosts returns NAME=ADDRESS lines; "host-gateway" is resolved by the
// node.
func extraHosts(hosts types.HostsList) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(hosts)) {
		for _, address := range hosts[name] {
			out = append(out, name+"="+strings.Trim(address, "[]"))
		}
	}
	return out
}

func (c *conversion) health(at path, h *types.HealthCheckConfig) *spec.HealthCheck {
	if h == nil {
		return nil
	}
	if h.Disable || len(h.Test) > 0 && h.Test[0] == "NONE" {
		return &spec.HealthCheck{Test: []string{"NONE"}}
	}
	if len(h.Test) == 1 && strings.HasPrefix(h.Test[0], "CMD") {
		c.refuse(at.key("test"), "", "the test %s has no command", h.Test[0])
	}
	out := &spec.HealthCheck{
		Test: h.Test, Interval: duration(h.Interval, 0), Timeout: duration(h.Timeout, 0),
		StartPeriod: duration(h.StartPeriod, 0), StartInterval: duration(h.StartInterval, 0),
	}
	if h.Retries != nil {
		out.Retries = int(min(*h.Retries, 1<<20))
	}
	if len(h.Test) > 0 { // otherwise the image's times come first
		out.Interval = cmp.Or(out.Interval, spec.Duration(defaultInterval))
		out.Timeout = cmp.Or(out.Timeout, spec.Duration(defaultTimeout))
		out.StartInterval = cmp.Or(out.StartInterval, spec.Duration(defaultStartInterval))
		out.Retries = cmp.Or(out.Retries, defaultRetries)
	}
	return out
}

// duration returns d, or the default when it is not given or zero.
func duration(d *types.Duration, def time.Duration) spec.Duration {
	if d == nil || *d == 0 {
		return spec.Duration(def)
	}
	return spec.Duration(*d)
}

func (c *conversion) restart(at path, s types.ServiceConfig) spec.Restart {
	if s.Deploy != nil && s.Deploy.RestartPolicy != nil {
		return c.restartPolicy(at.key("deploy").key("restart_policy"), s.Deploy.RestartPolicy)
	}
	policy, count, counted := strings.Cut(s.Restart, ":")
	out := spec.Restart{Condition: spec.RestartAny}
	switch policy {
	case "", types.RestartPolicyAlways, types.RestartPolicyUnlessStopped:
	case types.RestartPolicyNo:
		out.Condition = spec.RestartNone
	case types.RestartPolicyOnFailure:
		out.Condition = spec.RestartOnFailure
		n, err := strconv.Atoi(count)
		if counted && (err != nil || n < 0) {
			c.refuse(at.key("restart"), "", "%q is not a number of restarts", count)
		}
		out.MaxAttempts = n
	default:
		c.refuse(at.key("restart"), suggestion(policy, "no", "always", "on-failure", "unless-stopped"),
			"the policy %q does not exist, want no, always, on-failure[:n] or unless-stopped", s.Restart)
	}
	return out
}

func (c *conversion) restartPolicy(at path, r *types.RestartPolicy) spec.Restart {
	out := spec.Restart{Condition: spec.RestartAny, Delay: duration(r.Delay, 0), Window: duration(r.Window, 0)}
	switch r.Condition {
	case "", "any", types.RestartPolicyAlways, types.RestartPolicyUnlessStopped:
	case types.RestartPolicyOnFailure:
		out.Condition = spec.RestartOnFailure
	case "none", types.RestartPolicyNo:
		out.Condition = spec.RestartNone
	default:
		c.refuse(at.key("condition"), suggestion(r.Condition, "any", "on-failure", "none"),
			"the condition %q does not exist, want any, on-failure or none", r.Condition)
	}
	if r.MaxAttempts != nil {
		out.MaxAttempts = int(min(*r.MaxAttempts, 1<<20))
	}
	return out
}

func (c *conversion) resources(at path, s types.ServiceConfig) spec.Resources {
	out := spec.Resources{
		NanoCPUs: nanoCPUs(s.CPUS), Memory: int64(s.MemLimit), MemorySwap: int64(s.MemSwapLimit), Pids: s.PidsLimit,
		CPUShares: s.CPUShares, CPUQuota: s.CPUQuota, CPUPeriod: s.CPUPeriod, Cpuset: s.CPUSet,
		ReserveMemory: int64(s.MemReservation), ShmSize: int64(s.ShmSize), OOMScoreAdj: int(s.OomScoreAdj),
		KeepOnOOM: s.OomKillDisable, RealtimeRuntime: s.CPURTRuntime, RealtimePeriod: s.CPURTPeriod,
		BlockIO: blockIO(s.BlkioConfig),
	}
	if s.MemSwappiness != 0 || c.given(at.key("mem_swappiness")) {
		n := int64(s.MemSwappiness)
		out.Swappiness = &n
	}
	if s.Deploy != nil {
		if limits := s.Deploy.Resources.Limits; limits != nil {
			set(&out.NanoCPUs, nanoCPUs(limits.NanoCPUs.Value()))
			set(&out.Memory, int64(limits.MemoryBytes))
			set(&out.Pids, limits.Pids)
		}
		if r := s.Deploy.Resources.Reservations; r != nil {
			set(&out.ReserveCPUs, nanoCPUs(r.NanoCPUs.Value()))
			set(&out.ReserveMemory, int64(r.MemoryBytes))
			out.ReserveGeneric = c.genericResources(at.key("deploy").key("resources").key("reservations").key("generic_resources"), r.GenericResources)
		}
	}
	if out.KeepOnOOM && out.Memory == 0 {
		c.note(at.key("oom_kill_disable"), "without mem_limit, processes that the node has no memory for stop for ever")
	}
	if out.NanoCPUs > 0 && out.CPUQuota > 0 {
		c.refuse(at.key("cpu_quota"), "use one of them", "cpus and cpu_quota set the same limit")
	}
	return out
}

// genericResources returns numbers by kind.
func (c *conversion) genericResources(at path, in []types.GenericResource) map[string]int64 {
	out := map[string]int64{}
	for i, g := range in {
		d := g.DiscreteResourceSpec
		switch {
		case d == nil || d.Kind == "":
			c.refuse(at.index(i), "write discrete_resource_spec: {kind: gpu, value: 1}", "the resource has no kind")
		case d.Value < 1:
			c.refuse(at.index(i).key("discrete_resource_spec"), "", "the number of %s must be from 1", d.Kind)
		case out[d.Kind] > 0:
			c.refuse(at.index(i), "add the numbers up", "the kind %s is reserved twice", d.Kind)
		default:
			out[d.Kind] = d.Value
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

func set(to *int64, v int64) {
	if v != 0 {
		*to = v
	}
}

// nanoCPUs converts without the error that a float32 has as a float64: 0.1 is
// 100,000,000.
func nanoCPUs(cpus float32) int64 {
	r, ok := new(big.Rat).SetString(strconv.FormatFloat(float64(cpus), 'g', -1, 32))
	if !ok {
		return -1 // infinite or not a number: refused by spec.ValidateStack
	}
	r.Mul(r, big.NewRat(1e9, 1))
	n := new(big.Int).Quo(r.Num(), r.Denom())
	if !n.IsInt64() {
		return -1
	}
	return n.Int64()
}

func ulimits(in map[string]*types.UlimitsConfig) map[string]spec.Ulimit {
	out := map[string]spec.Ulimit{}
	for name, u := range in {
		switch {
		case u == nil:
		case u.Soft != 0 || u.Hard != 0:
			out[name] = spec.Ulimit{Soft: int64(u.Soft), Hard: int64(u.Hard)}
		default:
			out[name] = spec.Ulimit{Soft: int64(u.Single), Hard: int64(u.Single)}
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// capabilities returns names as "CAP_NET_ADMIN" or "ALL".
func capabilities(names []string) []string {
	var out []string
	for _, n := range names {
		n = strings.ToUpper(n)
		if n != "ALL" && !strings.HasPrefix(n, "CAP_") {
			n = "CAP_" + n
		}
		out = append(out, n)
	}
	return out
}

func (c *conversion) log(at path, l *types.LoggingConfig) spec.LogSpec {
	if l == nil {
		return spec.LogSpec{}
	}
	switch l.Driver {
	case "none":
		return spec.LogSpec{Disabled: true}
	case "", "json-file", "local":
	default:
		c.refuse(at.key("driver"), "leave it out and read the logs by wherry logs, or let the program send them",
			"the log driver %q: %s, want json-file, local or none", l.Driver, notBuilt)
		return spec.LogSpec{}
	}
	var out spec.LogSpec
	for _, k := range slices.Sorted(maps.Keys(l.Options)) {
		v, where := l.Options[k], at.key("options").key(k)
		var err error
		switch k {
		case "max-size":
			out.MaxSize, err = parseBytes(v)
		case "max-file":
			out.MaxFiles, err = strconv.Atoi(v)
		default:
			c.noEffect(where, "logs have no such option")
			continue
		}
		if err != nil || out.MaxSize < 0 || out.MaxFiles < 0 {
			c.refuse(where, "", "%q is not a valid %s", v, k)
		}
	}
	return out
}

// parseBytes reads a size such as "10m". -1 is without limit, which logs are
// not: it counts as the default.
func parseBytes(s string) (int64, error) {
	if s == "-1" {
		return 0, nil
	}
	var u types.UnitBytes
	if err := u.DecodeMapstructure(s); err != nil {
		return 0, fmt.Errorf("parse size %q: %w", s, err)
	}
	return int64(u), nil
}
