package compose

import (
	"maps"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"

	"wherry.dev/spec"
)

// maxDependencyPaths bounds the search for cycles in compose-go, which follows
// every path.
const maxDependencyPaths = 10_000

// checkConsistency reports everything that does not fit together. It returns
// false when compose-go's own check would take too long.
func (l *loading) checkConsistency(p *types.Project) (cheap bool) {
	for _, name := range slices.Sorted(maps.Keys(p.Services)) {
		s := p.Services[name]
		at := path{"services", name}
		if s.Image == "" && s.Build == nil && s.Provider == nil {
			l.refuse(at, "set image, or give the file that does by one more -f", "the service has no image")
		}
		l.checkReferences(at, p, s)
		l.checkLimits(at, s)
		l.checkTargets(at, s)
		if s.NetworkMode != "" && len(s.Networks) > 0 {
			l.refuse(at.key("network_mode"), "use one of them", "network_mode and networks exclude each other")
		}
		if h := s.HealthCheck; h != nil && len(h.Test) > 0 && !slices.Contains([]string{"CMD", "CMD-SHELL", "NONE"}, h.Test[0]) {
			l.refuse(at.key("healthcheck").key("test"), "write the command as a string, or put CMD first", "a list must start with CMD, CMD-SHELL or NONE")
		}
		if s.ContainerName != "" && s.GetScale() > 1 {
			l.refuse(at.key("container_name"), "remove it; the name of the service resolves to all its tasks", "one name cannot be that of several tasks")
		}
	}
	return l.checkCycles(p)
}

func (l *loading) checkReferences(at path, p *types.Project, s types.ServiceConfig) {
	for _, n := range slices.Sorted(maps.Keys(s.Networks)) {
		if _, ok := p.Networks[n]; !ok {
			l.refuse(at.key("networks").key(n), nearestOr(n, p.Networks, "declare it in the top-level networks"), "the network %q is not declared", n)
		}
	}
	for i, v := range s.Volumes {
		if _, ok := p.Volumes[v.Source]; !ok && v.Type == types.VolumeTypeVolume && v.Source != "" {
			l.refuse(at.key("volumes").index(i), nearestOr(v.Source, p.Volumes, "declare it in the top-level volumes, or write ./"+v.Source+" for a path"), "the volume %q is not declared", v.Source)
		}
	}
	for i, r := range s.Configs {
		if _, ok := p.Configs[r.Source]; !ok {
			l.refuse(at.key("configs").index(i), nearestOr(r.Source, p.Configs, "declare it in the top-level configs"), "the config %q is not declared", r.Source)
		}
	}
	for i, r := range s.Secrets {
		if _, ok := p.Secrets[r.Source]; !ok {
			l.refuse(at.key("secrets").index(i), nearestOr(r.Source, p.Secrets, "declare it in the top-level secrets"), "the secret %q is not declared", r.Source)
		}
	}
	for _, d := range slices.Sorted(maps.Keys(s.DependsOn)) {
		if _, ok := p.Services[d]; ok || s.NetworkMode == joinPrefix+d { // that is told of network_mode
			continue
		}
		_, disabled := p.DisabledServices[d]
		switch {
		case disabled && !s.DependsOn[d].Required:
		case disabled:
			l.refuse(at.key("depends_on").key(d), "activate its profile, or set required: false", "the service %q is not active", d)
		default:
			l.refuse(at.key("depends_on").key(d), nearestOr(d, p.Services, "declare it, or give the file that does by one more -f"), "the service %q does not exist", d)
		}
	}
}

func nearestOr[V any](name string, m map[string]V, hint string) string {
	if s := nearestName(name, m); s != "" {
		return s
	}
	return hint
}

// checkLimits refuses two values for one thing.
func (l *loading) checkLimits(at path, s types.ServiceConfig) {
	both := func(a string, differ bool, b string) {
		if differ {
			l.refuse(at.key(a), "use one of them", "%s and %s set the same to different values", a, b)
		}
	}
	if s.Scale != nil && *s.Scale < 0 {
		l.refuse(at.key("scale"), "", "must be at least 0")
	}
	d := s.Deploy
	if d == nil {
		return
	}
	if d.Replicas != nil && *d.Replicas < 0 {
		l.refuse(at.key("deploy").key("replicas"), "", "must be at least 0")
	}
	both("scale", s.Scale != nil && d.Replicas != nil && *s.Scale != *d.Replicas, "deploy.replicas")
	if limits := d.Resources.Limits; limits != nil {
		both("cpus", s.CPUS != 0 && limits.NanoCPUs.Value() != s.CPUS, "deploy.resources.limits.cpus")
		both("mem_limit", s.MemLimit != 0 && limits.MemoryBytes != s.MemLimit, "deploy.resources.limits.memory")
		both("pids_limit", s.PidsLimit != 0 && limits.Pids != s.PidsLimit, "deploy.resources.limits.pids")
	}
	if r := d.Resources.Reservations; r != nil {
		both("mem_reservation", s.MemReservation != 0 && r.MemoryBytes != s.MemReservation, "deploy.resources.reservations.memory")
	}
}

// checkTargets refuses two mounts at one place.
func (l *loading) checkTargets(at path, s types.ServiceConfig) {
	taken := map[string]string{}
	mount := func(p path, target string) {
		if first, ok := taken[target]; ok {
			l.refuse(p, "remove one of the two", "%s is already the target of %s", target, first)
			return
		}
		taken[target] = p.String()
	}
	for i, t := range s.Tmpfs {
		target, _, _ := strings.Cut(t, ":")
		mount(at.key("tmpfs").index(i), target)
	}
	for i, v := range s.Volumes {
		mount(at.key("volumes").index(i), v.Target)
	}
	for i, r := range s.Secrets {
		if own, _ := r.Extensions["x-wherry"].(map[string]any); own["env"] == nil { // else it may be no file
			mount(at.key("secrets").index(i), datumTarget(spec.DatumSecret, r.Source, r.Target))
		}
	}
	for i, r := range s.Configs {
		mount(at.key("configs").index(i), datumTarget(spec.DatumConfig, r.Source, r.Target))
	}
}

// checkCycles refuses services that wait for each other.
func (l *loading) checkCycles(p *types.Project) (cheap bool) {
	paths := map[string]int{} // ways to go on from a service
	var open []string
	cheap = true
	var visit func(name string) int
	visit = func(name string) int {
		if n, ok := paths[name]; ok {
			return n
		}
		if i := slices.Index(open, name); i >= 0 {
			cycle := append(slices.Clone(open[i:]), name)
			from := cycle[len(cycle)-2]
			if l.tree.get("services", from, "depends_on", name) == nil && p.Services[from].NetworkMode == joinPrefix+name {
				l.refuse(path{"services", from, "network_mode"}, "give one of them a network", "the services share each other's network, or wait for it: %s", strings.Join(cycle, " -> "))
				return 0
			}
			l.refuse(path{"services", from, "depends_on", name}, "remove one of the dependencies", "the services wait for each other: %s", strings.Join(cycle, " -> "))
			return 0
		}
		open = append(open, name)
		n := 1
		for _, d := range slices.Sorted(maps.Keys(p.Services[name].DependsOn)) {
			if _, ok := p.Services[d]; ok {
				n = min(n+visit(d), maxDependencyPaths+1)
			}
		}
		open = open[:len(open)-1]
		paths[name] = n
		return n
	}
	for _, name := range slices.Sorted(maps.Keys(p.Services)) {
		if visit(name) > maxDependencyPaths {
			cheap = false
		}
	}
	return cheap
}
