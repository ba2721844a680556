package compose

import (
	"maps"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"

	"wherry.dev/spec"
)

// conversion makes a spec.Stack of a project.
type conversion struct {
	*loading
	p *types.Project
	// binds decides what every relative path becomes, by its absolute form.
	binds map[string]*relativeBind
	// pins are the nodes of services that are pinned, by the service's name.
	pins map[string]string
	// usedVolumes and usedNetworks are what services refer to.
	usedVolumes, usedNetworks map[string]bool
	// data are the secrets and configs that services use.
	data map[spec.DatumKey]*datum
	// aliases are names that links give to other services.
	aliases map[string][]string
}

// convert fills in the stack. It never stops at a problem.
func (l *loading) convert(p *types.Project) {
	l.contents, l.origins = map[spec.ContentID][]byte{}, map[string]path{}
	c := &conversion{loading: l, p: p, binds: map[string]*relativeBind{}, pins: map[string]string{}, usedVolumes: map[string]bool{}, usedNetworks: map[string]bool{}, data: map[spec.DatumKey]*datum{}, aliases: map[string][]string{}}
	l.stack = spec.Stack{Name: p.Name, Services: map[string]spec.ServiceSpec{}, Networks: map[string]spec.NetworkSpec{}, Volumes: map[string]spec.VolumeSpec{}}
	if declared := l.substitute(l.tree.get("name").text()); declared != "" && l.opts.Name == "" && declared != p.Name {
		l.note(path{"name"}, "the stack is called %q", p.Name)
	}
	names := slices.Sorted(maps.Keys(p.Services))
	if c.onlyNetworks() {
		for name, n := range p.Networks {
			c.usedNetworks[name] = !bool(n.External) // for the services of other stacks
		}
	} else if len(names) == 0 {
		l.refuse(path{"services"}, "activate a profile by --profile, or add a service", "the stack has no active service")
	}
	for _, name := range names {
		c.surveyPin(name)
	}
	c.surveyBinds(names)
	for _, name := range names {
		c.surveyLinks(name)
	}
	for _, name := range names {
		l.stack.Services[name] = c.service(name, p.Services[name])
	}
	c.networks()
	c.volumes()
	c.declareData()
	if len(l.stack.Networks) == 0 {
		l.stack.Networks = nil
	}
	if len(l.stack.Volumes) == 0 {
		l.stack.Volumes = nil
	}
	if err := spec.ValidateStack(&l.stack); err != nil {
		before := slices.Clone(l.findings)
		for _, line := range strings.Split(err.Error(), "\n") {
			l.refuseLine(line, before)
		}
	}
}

// refuseLine makes a finding of a line of spec.ValidateStack, whose paths are
// those of the model, unless the place has been refused for a better reason,
// which is among the findings before.
func (l *loading) refuseLine(line string, before []Finding) {
	where, message, _ := strings.Cut(line, ": ")
	if p, ok := l.origin(where); ok {
		if !refusedWithin(before, p.String()) {
			l.refuse(p, "", "%s", message)
		}
		return
	}
	parts := splitPath(where)
	p := l.existing(slices.Clone(parts))
	if len(parts) > 3 && parts[2] == "template" {
		field := strings.TrimPrefix(strings.Join(parts[3:], "."), "resources.")
		name, _, _ := strings.Cut(field, ".")
		if key := modelKeys[name]; l.tree.get(parts[0], parts[1], key) != nil {
			p = path{parts[0], parts[1], key}
			if alike[name] {
				p = l.existing(append(p, parts[4:]...))
			}
		}
	}
	if len(p) < len(parts) && len(p) < 3 && len(parts) > 2 {
		message = path(parts[2:]).String() + ": " + message
	}
	if refusedWithin(before, p[:min(len(p), 3)].String()) {
		return
	}
	l.refuse(p, "", "%s", message)
}

// origin returns the path of what is at a path of the model, or around it.
func (l *loading) origin(where string) (path, bool) {
	for {
		if p, ok := l.origins[where]; ok {
			return p, true
		}
		i := strings.LastIndexByte(where, '.')
		if i < 0 {
			return nil, false
		}
		where = where[:i]
	}
}

// refusedWithin reports whether a refusal is at a path or below.
func refusedWithin(findings []Finding, p string) bool {
	return slices.ContainsFunc(findings, func(f Finding) bool {
		rest, ok := strings.CutPrefix(f.Path, p)
		return f.Verdict == Refused && ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
	})
}

// modelKeys are the Compose keys of fields of spec.Template and its resources.
var modelKeys = map[string]string{
	"env": "environment", "network_mode": "network_mode", "hostname": "hostname", "domainname": "domainname", "working_dir": "working_dir", "labels": "labels",
	"annotations": "annotations", "mounts": "volumes", "networks": "networks", "dns": "dns", "dns_search": "dns_search", "dns_options": "dns_opt", "extra_hosts": "extra_hosts",
	"health": "healthcheck", "stop_signal": "stop_signal", "stop_grace": "stop_grace_period", "ulimits": "ulimits",
	"sysctls": "sysctls", "cap_add": "cap_add", "devices": "devices", "log": "logging", "platform": "platform", "image": "image",
	"nano_cpus": "cpus", "memory": "mem_limit", "memory_swap": "memswap_limit", "pids": "pids_limit", "cpu_shares": "cpu_shares",
	"cpu_quota": "cpu_quota", "cpu_period": "cpu_period", "cpuset": "cpuset", "shm_size": "shm_size", "oom_score_adj": "oom_score_adj",
	"swappiness": "mem_swappiness", "realtime_runtime": "cpu_rt_runtime", "realtime_period": "cpu_rt_period", "block_io": "blkio_config",
	"post_start": "post_start", "pre_stop": "pre_stop", "uts_mode": "uts", "cgroup_mode": "cgroup", "umask": "umask", "runtime": "runtime", "reserve_generic": "deploy", "device_rules": "device_cgroup_rules",
}

// alike are fields of spec.Template whose parts are in the same order and have
// the same names in the files.
var alike = map[string]bool{"post_start": true, "pre_stop": true}

func (c *conversion) service(name string, s types.ServiceConfig) spec.ServiceSpec {
	at := path{"services", name}
	out := spec.ServiceSpec{Mode: spec.Replicated, Template: c.template(at, s)}
	c.replicas(at, s, &out)
	if s.Deploy != nil {
		out.Labels = nonEmpty(s.Deploy.Labels)
		out.Placement = c.placement(at.key("deploy").key("placement"), s.Deploy.Placement)
	}
	out.EndpointMode = c.endpointMode(at, s, out.Template.NetworkMode)
	out.Ports = c.ports(at, s, out.Template.NetworkMode)
	out.DependsOn = c.dependsOn(at, s)
	out.AlwaysPull = s.PullPolicy == types.PullPolicyAlways
	c.updates(at, s, &out)
	c.pin(name, &out)
	c.job(at, s, &out)
	return out
}

func (c *conversion) replicas(at path, s types.ServiceConfig, out *spec.ServiceSpec) {
	mode := ""
	if s.Deploy != nil {
		mode = s.Deploy.Mode
		out.Replicas = s.Deploy.Replicas
	}
	where := at.key("deploy").key("replicas")
	if s.Scale != nil {
		out.Replicas, where = s.Scale, at.key("scale")
	}
	switch mode {
	case "", "replicated":
	case "global", "global-job":
		out.Mode = spec.ServiceMode(mode)
		if out.Replicas != nil {
			c.noEffect(where, "a %s service runs one task on every node", mode)
			out.Replicas = nil
		}
	case "replicated-job":
		out.Mode = spec.ReplicatedJob
	default:
		modes := []string{"replicated", "global", "replicated-job", "global-job"}
		c.refuse(at.key("deploy").key("mode"), suggestion(mode, modes...), "the mode %q does not exist, want %s", mode, anyOf(modes))
	}
	if out.Replicas != nil && (*out.Replicas < 0 || *out.Replicas > spec.MaxReplicas) {
		c.refuse(where, "", "the number of replicas must be from 0 to %d", spec.MaxReplicas)
	}
}

// endpointMode returns what the name of the service resolves to; the default is
// left out, so that a file that states it is the same as one that does not.
func (c *conversion) endpointMode(at path, s types.ServiceConfig, network string) spec.EndpointMode {
	if s.Deploy == nil {
		return ""
	}
	where := at.key("deploy").key("endpoint_mode")
	switch mode := s.Deploy.EndpointMode; spec.EndpointMode(mode) {
	case "", spec.EndpointVIP:
	case spec.EndpointDNSRR:
		if network == "" {
			return spec.EndpointDNSRR
		}
		c.noEffect(where, "with the network mode %s the service has no name on a network", network)
	default:
		c.refuse(where, suggestion(mode, "vip", "dnsrr"), "the mode %q does not exist, want vip or dnsrr", mode)
	}
	return ""
}

// suggestion returns a did-you-mean for a value that is close to a valid one.
func suggestion(got string, valid ...string) string {
	for _, v := range valid {
		if spec.EditDistance(strings.ToLower(got), v) <= 2 {
			return "did you mean " + v + "?"
		}
	}
	return ""
}

func (c *conversion) placement(at path, p types.Placement) spec.Placement {
	var out spec.Placement
	for i, s := range p.Constraints {
		constraint, err := spec.ParseConstraint(s)
		if err != nil {
			c.refuse(at.key("constraints").index(i), "", "%v", err)
			continue
		}
		out.Constraints = append(out.Constraints, constraint.String())
	}
	for i, pref := range p.Preferences {
		key, err := spec.ParseSpread(pref.Spread)
		if err != nil {
			c.refuse(at.key("preferences").index(i), "", "%v", err)
			continue
		}
		out.Spread = append(out.Spread, key)
	}
	if p.MaxReplicas > spec.MaxReplicas {
		c.refuse(at.key("max_replicas_per_node"), "", "must be at most %d", spec.MaxReplicas)
	} else {
		out.MaxPerNode = int(p.MaxReplicas)
	}
	return out
}

func (c *conversion) dependsOn(at path, s types.ServiceConfig) []spec.Dependency {
	var out []spec.Dependency
	for _, name := range slices.Sorted(maps.Keys(s.DependsOn)) {
		d := s.DependsOn[name]
		where := at.key("depends_on").key(name)
		dep := spec.Dependency{Service: name, Condition: spec.DependencyCondition(d.Condition), Optional: !d.Required}
		if c.tree.get(where.key("restart")...) != nil { // else it is the library that says so
			dep.Restart = d.Restart
		}
		switch d.Condition {
		case "", types.ServiceConditionStarted:
			dep.Condition = spec.DependencyStarted
		case types.ServiceConditionHealthy:
		case types.ServiceConditionCompletedSuccessfully:
		default:
			c.refuse(where.key("condition"), "", "the condition %q does not exist, want service_started, service_healthy or service_completed_successfully", d.Condition)
		}
		if _, ok := c.p.Services[name]; !ok && !d.Required {
			c.note(where, "the service is not part of the stack and is not waited for")
		}
		out = append(out, dep)
	}
	return out
}

// onlyNetworks reports whether the file declares networks and no service, not
// even one that a profile leaves out.
func (c *conversion) onlyNetworks() bool {
	return len(c.p.Services)+len(c.p.DisabledServices) == 0 && slices.ContainsFunc(slices.Collect(maps.Keys(c.p.Networks)),
		func(name string) bool {
			return c.tree.get("networks", name) != nil && !bool(c.p.Networks[name].External)
		})
}

// networks adds the networks that services use.
func (c *conversion) networks() {
	for _, name := range slices.Sorted(maps.Keys(c.p.Networks)) {
		at := path{"networks", name}
		n := c.p.Networks[name]
		if !c.usedNetworks[name] {
			if c.tree.get(at...) != nil && !isHostNetwork(n) {
				c.noEffect(at, "no active service uses the network")
			}
			continue
		}
		c.stack.Networks[name] = c.network(at, name, n)
	}
	if _, ok := c.stack.Networks["default"]; !ok && c.usedNetworks["default"] {
		c.stack.Networks["default"] = spec.NetworkSpec{Driver: spec.DriverOverlay}
	}
}

func (c *conversion) network(at path, name string, n types.NetworkConfig) spec.NetworkSpec {
	out := spec.NetworkSpec{Driver: spec.DriverOverlay, External: bool(n.External), Internal: n.Internal, Labels: nonEmpty(n.Labels)}
	if out.External || n.Name != spec.ScopedName(c.p.Name, name) {
		out.Name = n.Name
	}
	switch n.Driver {
	case "", "overlay", "default":
	case "bridge":
		out.Driver = spec.DriverBridge
		c.note(at.key("driver"), "the network is local to each host: leave the driver out for one that spans all hosts")
	case "macvlan":
		out.Driver = spec.DriverMacvlan
	default:
		c.refuse(at.key("driver"), "leave it out for a network that spans all hosts", "the network driver %q: %s", n.Driver, notBuilt)
	}
	c.networkOpts(at, n, &out)
	c.pools(at, n, &out)
	if out.External {
		for _, k := range c.tree.get(at...).clone().keys {
			if k != "external" && k != "name" && k != "attachable" && !strings.HasPrefix(k, "x-") {
				c.noEffect(at.key(k), "the network is external: who declares it says this")
			}
		}
	}
	return out
}

// isHostNetwork reports whether n stands for the network of the host, in the
// way of Swarm.
func isHostNetwork(n types.NetworkConfig) bool {
	return bool(n.External) && n.Name == "host" || n.Driver == "host"
}

// volumes adds the volumes that services use.
func (c *conversion) volumes() {
	for _, name := range slices.Sorted(maps.Keys(c.p.Volumes)) {
		at := path{"volumes", name}
		v := c.p.Volumes[name]
		if !c.usedVolumes[name] {
			if c.tree.get(at...) != nil {
				c.noEffect(at, "no active service uses the volume")
			}
			continue
		}
		out := spec.VolumeSpec{External: bool(v.External), DriverOpts: nonEmpty(v.DriverOpts), Labels: nonEmpty(v.Labels)}
		if out.External || v.Name != spec.ScopedName(c.p.Name, name) {
			out.Name = v.Name
		}
		if spec.HasPlaceholder(v.Name) {
			c.refuse(at.key("name"), "mount a volume without a source: each slot has one of its own", "the name of a volume has no placeholders")
			out.Name = ""
		}
		if v.Driver == "" || v.Driver == "local" || v.Driver == "default" {
			c.driverOpts(at.key("driver_opts"), &out)
		}
		c.stack.Volumes[name] = out
	}
	for _, b := range c.binds {
		if b.volume != "" {
			c.stack.Volumes[b.volume] = spec.VolumeSpec{Seed: b.content}
		}
	}
}

// driverOpts checks the options of the local driver. A relative device of a
// bind stands for a folder of the client, as a relative bind does.
func (c *conversion) driverOpts(at path, v *spec.VolumeSpec) {
	for _, k := range slices.Sorted(maps.Keys(v.DriverOpts)) {
		if !slices.Contains([]string{"type", "o", "device"}, k) {
			c.refuse(at.key(k), suggestion(k, "type", "o", "device"), "the option %q does not exist: the local driver has type, o and device", k)
		}
	}
	device := v.DriverOpts["device"]
	isBind := slices.Contains(strings.Split(v.DriverOpts["o"], ","), "bind") || v.DriverOpts["type"] == "none"
	if isBind && !strings.HasPrefix(device, "/") {
		c.refuse(at.key("device"), "leave driver_opts out for a volume that is managed, or bind the folder in the service",
			"the path %q is not absolute, and the nodes do not have the folders of the client", device)
	}
}

// nonEmpty returns m, or nil when it has no entry.
func nonEmpty[M ~map[string]string](m M) map[string]string {
	if len(m) == 0 {
		return nil
	}
	return m
}
