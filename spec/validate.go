package spec

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
)

const (
	// MaxReplicas is the largest number of tasks of one service.
	MaxReplicas = 10_000
	// MaxName is the largest length of a name in bytes, that of a DNS label.
	MaxName = 63
)

var (
	stackName    = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]*$`)
	objectName   = regexp.MustCompile(`^[A-Za-z0-9._-]*[A-Za-z0-9][A-Za-z0-9._-]*$`)
	resolvOption = regexp.MustCompile(`^[A-Za-z0-9_-]+(:[A-Za-z0-9_.-]+)?$`)
	portLabel    = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_-]{0,60}[A-Za-z0-9])?$`)
	dnsName      = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?$`)
)

// ValidateStack checks everything about s that can be checked without knowing
// the cluster. Its error, of class ErrInvalid, joins all problems, one per
// line, each with its path: "services.web.template.mounts[0].target: …".
func ValidateStack(s *Stack) error {
	c := &checker{stack: s}
	c.name("name", s.Name, stackName, "lower-case letters, digits, _ and -, beginning with a letter or digit")
	if len(s.Services) == 0 && len(s.Networks) == 0 {
		c.add("services", "a stack needs at least one service or network")
	}
	for _, name := range slices.Sorted(maps.Keys(s.Services)) {
		svc := s.Services[name]
		c.service("services."+name, name, &svc)
	}
	for _, name := range slices.Sorted(maps.Keys(s.Networks)) {
		n := s.Networks[name]
		c.network("networks."+name, name, &n)
	}
	for _, name := range slices.Sorted(maps.Keys(s.Volumes)) {
		v := s.Volumes[name]
		c.volume("volumes."+name, name, &v)
	}
	c.fixed()
	c.data()
	c.portClashes()
	c.cycles()
	return errors.Join(c.problems...)
}

// ValidateNetwork checks what somebody wants of a network that belongs to no
// stack. Its error is as that of ValidateStack, with paths below the name.
func ValidateNetwork(name string, n *NetworkSpec) error {
	c := &checker{}
	c.network("network "+name, name, n)
	if n.External || n.Name != "" {
		c.add("network "+name, "it is neither external nor has it another name")
	}
	if name == "host" {
		c.add("network "+name, "the name stands for the network of each host itself")
	}
	return errors.Join(c.problems...)
}

// ValidateVolume checks a volume that belongs to no stack, like Stack.Validate.
func ValidateVolume(name string, v *VolumeSpec) error {
	c := &checker{}
	c.volume("volume "+name, name, v)
	if v.External || v.Name != "" || v.Seed != "" {
		c.add("volume "+name, "it is not external, and has no other name and no seed")
	}
	return errors.Join(c.problems...)
}

type checker struct {
	stack    *Stack
	problems []error
}

func (c *checker) add(at, format string, args ...any) {
	c.problems = append(c.problems, Invalidf("%s: %s", at, fmt.Sprintf(format, args...)))
}

func (c *checker) name(at, name string, pattern *regexp.Regexp, want string) {
	if len(name) > MaxName || !pattern.MatchString(name) {
		c.add(at, "the name %q is not valid, want at most %d %s", name, MaxName, want)
	}
}

func (c *checker) objectName(at, name string) {
	c.name(at, name, objectName, "letters, digits, ., _ and -")
}

// oneOf reports a value that is not among the allowed ones.
func oneOf[S ~string](c *checker, at string, got S, want ...S) {
	if !slices.Contains(want, got) {
		c.add(at, "%q is not one of %q", got, want)
	}
}

func (c *checker) notNegative(at string, n int64) {
	if n < 0 {
		c.add(at, "must not be negative")
	}
}

func (c *checker) service(at, name string, s *ServiceSpec) {
	c.objectName(at, name)
	oneOf(c, at+".mode", s.Mode, Replicated, Global, ReplicatedJob, GlobalJob)
	oneOf(c, at+".endpoint_mode", cmp.Or(s.EndpointMode, EndpointVIP), EndpointVIP, EndpointDNSRR)
	if r := s.Replicas; r != nil {
		switch {
		case s.Mode.PerNode():
			c.add(at+".replicas", "a global service has no number of replicas")
		case *r < 0 || *r > MaxReplicas:
			c.add(at+".replicas", "must be from 0 to %d", MaxReplicas)
		}
	}
	c.template(at+".template", &s.Template)
	c.joins(at, name, s)
	c.gatewayOnLAN(at+".template", &s.Template)
	c.placement(at+".placement", &s.Placement)
	for i, p := range s.Ports {
		c.port(fmt.Sprintf("%s.ports[%d]", at, i), p, c.wayOut(s))
		c.portOnLAN(fmt.Sprintf("%s.ports[%d]", at, i), c.wayOut(s))
	}
	if len(s.Ports) > 0 && s.Template.NetworkMode != "" {
		c.add(at+".ports", "a service with network mode %s publishes no ports", s.Template.NetworkMode)
	}
	seen := map[string]bool{}
	for i, d := range s.DependsOn {
		where := fmt.Sprintf("%s.depends_on[%d]", at, i)
		oneOf(c, where+".condition", d.Condition, DependencyStarted, DependencyHealthy, DependencyCompleted)
		dep, ok := c.stack.Services[d.Service]
		if !ok && !d.Optional {
			c.add(where, "there is no service %q", d.Service)
		}
		if ok && d.Condition == DependencyCompleted && !dep.Mode.Job() {
			c.add(where+".condition", "service %s is %s and never completes: only a job does", d.Service, dep.Mode)
		}
		if seen[d.Service] {
			c.add(where, "the service %q is named twice", d.Service)
		}
		seen[d.Service] = true
	}
	c.labels(at+".labels", s.Labels)
	c.job(at, s)
	c.updates(at, s)
}

func (c *checker) labels(at string, labels map[string]string) {
	for k := range labels {
		if k == "" {
			c.add(at, "a label has no name")
		}
	}
}

func (c *checker) placement(at string, p *Placement) {
	for i, s := range p.Constraints {
		if _, err := ParseConstraint(s); err != nil {
			c.add(fmt.Sprintf("%s.constraints[%d]", at, i), "%v", err)
		}
	}
	for i, s := range p.Spread {
		if _, err := ParseSpread(s); err != nil {
			c.add(fmt.Sprintf("%s.spread[%d]", at, i), "%v", err)
		}
	}
	c.notNegative(at+".max_per_node", int64(p.MaxPerNode))
	if p.Priority < -MaxPriority || p.Priority > MaxPriority {
		c.add(at+".priority", "must be from %d to %d", -MaxPriority, MaxPriority)
	}
}

func (c *checker) port(at string, p Port, way *NetworkSpec) {
	if p.Target == 0 {
		c.add(at+".target", "must be from 1 to 65535")
	}
	if (p.First != 0 || p.Last != 0) && (p.Published != 0 || p.First == 0 || p.Last <= p.First) {
		c.add(at, "must have either a published port or a range of them, the first before the last")
	}
	oneOf(c, at+".protocol", p.Protocol, "tcp", "udp")
	oneOf(c, at+".mode", p.Mode, PublishIngress, PublishHost)
	if p.HostIP != "" {
		c.hostIP(at+".host_ip", p.HostIP, way)
	}
}

// portClashes finds ports that two services of the stack, or one twice, would
// publish.
func (c *checker) portClashes() {
	type claim struct {
		owner string
		at    string
		ip    string
	}
	taken := map[string][]claim{}
	for _, name := range slices.Sorted(maps.Keys(c.stack.Services)) {
		for i, p := range c.stack.Services[name].Ports {
			if p.Published == 0 {
				continue
			}
			key := fmt.Sprintf("%d/%s", p.Published, p.Protocol)
			mine := claim{owner: name, at: fmt.Sprintf("services.%s.ports[%d]", name, i), ip: p.HostIP}
			for _, other := range taken[key] {
				if hostIPsOverlap(other.ip, mine.ip) {
					c.add(mine.at, "port %s is published by %s already", key, other.owner)
					break
				}
			}
			taken[key] = append(taken[key], mine)
		}
	}
}

// cycles finds services that wait for each other.
func (c *checker) cycles() {
	done := map[string]bool{}
	var open []string
	var visit func(name string)
	visit = func(name string) {
		if i := slices.Index(open, name); i >= 0 {
			c.add("services."+name+".depends_on", "the services wait for each other: %s", strings.Join(append(slices.Clone(open[i:]), name), " -> "))
			return
		}
		if done[name] {
			return
		}
		open = append(open, name)
		svc := c.stack.Services[name]
		for _, d := range svc.DependsOn {
			visit(d.Service)
		}
		if head, ok := c.stack.Services[svc.Template.Joins()]; ok && head.Template.Joins() == "" {
			visit(svc.Template.Joins()) // it is waited for, too
		}
		open = open[:len(open)-1]
		done[name] = true
	}
	for _, name := range slices.Sorted(maps.Keys(c.stack.Services)) {
		visit(name)
	}
}

func (c *checker) network(at, name string, n *NetworkSpec) {
	c.objectName(at, name)
	if n.Name != "" {
		c.objectName(at+".name", n.Name)
	}
	oneOf(c, at+".driver", cmp.Or(n.Driver, DriverOverlay), DriverOverlay, DriverBridge, DriverMacvlan)
	if !n.External {
		c.lan(at, n)
	}
	switch {
	case n.MTU == 0:
	case n.Driver == DriverMacvlan:
		c.add(at+".mtu", "tasks have the MTU of the interface of the hosts: set it there")
	case n.MTU < LeastMTU || n.MTU > LargestMTU:
		c.add(at+".mtu", "%d is not from %d to %d", n.MTU, LeastMTU, LargestMTU)
	}
	c.addresses(at, n)
	c.labels(at+".labels", n.Labels)
}

func (c *checker) volume(at, name string, v *VolumeSpec) {
	c.objectName(at, name)
	if v.Name != "" {
		c.objectName(at+".name", v.Name)
	}
	for _, k := range slices.Sorted(maps.Keys(v.DriverOpts)) {
		oneOf(c, at+".driver_opts", k, "type", "o", "device")
	}
	if v.External && (v.Seed != "" || len(v.DriverOpts) > 0) {
		c.add(at, "an external volume has neither options nor a seed")
	}
	if v.Seed != "" {
		c.content(at+".seed", v.Seed)
	}
	c.labels(at+".labels", v.Labels)
}

func (c *checker) content(at string, id ContentID) {
	if !contentID.MatchString(string(id)) {
		c.add(at, "%q is not the ID of a content", id)
	}
}

// cleanAbsolute reports whether p is an absolute path in its shortest form.
func cleanAbsolute(p string) bool { return path.IsAbs(p) && path.Clean(p) == p }
