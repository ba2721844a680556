package compose

import (
	"cmp"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"

	"wherry.dev/spec"
)

// defaultNetwork is the network of services that name none.
const defaultNetwork = "default"

// surveyLinks collects the names that a service gives to others.
func (c *conversion) surveyLinks(name string) {
	for i, link := range c.p.Services[name].Links {
		target, alias, ok := strings.Cut(link, ":")
		if _, exists := c.p.Services[target]; !exists {
			c.refuse(path{"services", name, "links"}.index(i), nearestName(target, c.p.Services), "the service %q does not exist or is not active", target)
			continue
		}
		if !c.shareNetwork(name, target) {
			c.noEffect(path{"services", name, "links"}.index(i), "no name resolves, since the services are on no network together")
		}
		if ok && alias != target {
			c.aliases[target] = append(c.aliases[target], alias)
		}
	}
}

func (c *conversion) shareNetwork(a, b string) bool {
	other := c.networksOf(b)
	return slices.ContainsFunc(c.networksOf(a), func(n string) bool { return slices.Contains(other, n) })
}

// networksOf returns the networks of a service that have names.
func (c *conversion) networksOf(service string) []string {
	switch s := c.p.Services[service]; s.NetworkMode {
	case "bridge", "default":
		return []string{defaultNetwork}
	case "":
		return slices.DeleteFunc(slices.Collect(maps.Keys(s.Networks)), func(n string) bool { return isHostNetwork(c.p.Networks[n]) })
	}
	return nil
}

// nearestName returns a did-you-mean for the name of one of the things in m.
func nearestName[V any](name string, m map[string]V) string {
	if best := spec.Nearest(name, sortedKeys(m)); best != "" {
		return "did you mean " + best + "?"
	}
	return ""
}

// attach puts a service on its networks.
func (c *conversion) attach(at path, s types.ServiceConfig, t *spec.Template) {
	where := at.key("network_mode")
	switch mode := s.NetworkMode; {
	case mode == "host" || mode == "none":
		t.NetworkMode = mode
		return
	case mode == "":
	case mode == "bridge" || mode == "default":
		c.note(where, "the service is put on the default network of the stack")
		c.usedNetworks[defaultNetwork] = true
		t.Networks = []spec.Attachment{{Network: defaultNetwork, Aliases: c.names(s, nil)}}
		return
	case strings.HasPrefix(mode, joinPrefix):
		c.join(at, s, t)
		return
	case strings.HasPrefix(mode, "container:"):
		c.refuse(where, "put both services on one network and use their names", "a container outside the stack may be on another node")
		return
	default:
		c.refuse(where, suggestion(mode, "host", "none", "bridge"), "the mode %q does not exist, want host, none, bridge or service:NAME", mode)
		return
	}
	for _, name := range byPriority(s.Networks) {
		n := s.Networks[name]
		if n == nil {
			n = &types.ServiceNetworkConfig{}
		}
		if isHostNetwork(c.p.Networks[name]) {
			if len(s.Networks) > 1 {
				c.refuse(at.key("networks").key(name), "use network_mode: host alone", "the host's network cannot be combined with others")
			}
			t.NetworkMode, t.Networks = "host", nil
			return
		}
		c.usedNetworks[name] = true
		a := c.attachment(at, len(t.Networks), name, n)
		a.Aliases = c.names(s, n.Aliases)
		t.Networks = append(t.Networks, a)
	}
}

// byPriority orders networks: the first that is not internal holds the default
// route.
func byPriority(networks map[string]*types.ServiceNetworkConfig) []string {
	rank := func(name string) (int, int) {
		if n := networks[name]; n != nil {
			return n.GatewayPriority, n.Priority
		}
		return 0, 0
	}
	return slices.SortedFunc(maps.Keys(networks), func(a, b string) int {
		ga, pa := rank(a)
		gb, pb := rank(b)
		return cmp.Or(cmp.Compare(gb, ga), cmp.Compare(pb, pa), cmp.Compare(a, b))
	})
}

// containerName is what can be looked up, as any name of a service.
var containerName = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?$`)

// names returns all further names of a service on a network.
func (c *conversion) names(s types.ServiceConfig, aliases []string) []string {
	all := slices.Concat(aliases, c.aliases[s.Name])
	switch {
	case s.ContainerName == "":
	case !containerName.MatchString(s.ContainerName):
		c.refuse(path{"services", s.Name, "container_name"}, "", "%q is not a name, want letters and digits with ., _ and - in between", s.ContainerName)
	default:
		all = append(all, s.ContainerName)
	}
	slices.Sort(all)
	all = slices.DeleteFunc(slices.Compact(all), func(n string) bool { return n == s.Name })
	if len(all) == 0 {
		return nil
	}
	return all
}

// ports returns the ports of a service whose template has the given mode.
func (c *conversion) ports(at path, s types.ServiceConfig, mode string) []spec.Port {
	if len(s.Ports) == 0 {
		return nil
	}
	if strings.HasPrefix(s.NetworkMode, joinPrefix) {
		return nil // refused
	}
	if mode != "" {
		c.noEffect(at.key("ports"), "nothing is published: with the network mode %s the service has %s", mode,
			map[string]string{"host": "the ports of its node", "none": "no network"}[mode])
		return nil
	}
	if c.onlyInternal(s) {
		c.noEffect(at.key("ports"), "nothing is published: all networks of the service are internal")
	}
	var found []spec.Port
	var paths []path
	for i, p := range s.Ports {
		where := c.portPath(at, i, len(s.Ports))
		if port, ok := c.port(where, p); ok {
			found, paths = append(found, port), append(paths, where)
		}
	}
	out := c.families(s, found, paths)
	slices.SortFunc(out, func(a, b spec.Port) int {
		return cmp.Or(cmp.Compare(a.Target, b.Target), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Published, b.Published),
			cmp.Compare(a.HostIP, b.HostIP), cmp.Compare(a.Mode, b.Mode), cmp.Compare(a.Name, b.Name))
	})
	return out
}

func (c *conversion) onlyInternal(s types.ServiceConfig) bool {
	for name := range s.Networks {
		if !c.p.Networks[name].Internal {
			return false
		}
	}
	return len(s.Networks) > 0
}

// portPath is where a port was written; ranges make one entry many ports, in
// which case it is the whole list.
func (c *conversion) portPath(at path, i, n int) path {
	at = at.key("ports")
	if list := c.tree.get(at...); list != nil && len(list.items) == n {
		return at.index(i)
	}
	return at
}

// published reads a published port, or a range of which one is to be chosen.
func (c *conversion) published(at path, text string) (port, first, last uint16) {
	from, to, isRange := strings.Cut(text, "-")
	parse := func(s string) uint16 {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil {
			c.refuse(at, "", "the published port %q is not from 0 to 65535", s)
		}
		return uint16(n)
	}
	if text == "" {
		return 0, 0, 0
	}
	first = parse(from)
	if !isRange {
		return first, 0, 0
	}
	before := c.refusals()
	last = parse(to)
	switch {
	case c.refusals() > before:
	case first == 0 || last < first:
		c.refuse(at, "", "the published ports %q are no range from 1 to 65535", text)
	case first == last:
		return first, 0, 0
	}
	return 0, first, last
}

func (c *conversion) port(at path, p types.ServicePortConfig) (spec.Port, bool) {
	out := spec.Port{Name: p.Name, Protocol: p.Protocol, Mode: spec.PublishMode(p.Mode)}
	before := c.refusals()
	if p.Name != "" && out.Label() == "" {
		c.note(at.key("name"), "SRV lookups cannot find the port: %q is not made of letters, digits, - and _", p.Name)
	}
	if p.Target == 0 || p.Target > 65535 {
		c.refuse(at, "", "the target port %d is not from 1 to 65535", p.Target)
	}
	out.Target = uint16(p.Target)
	out.Published, out.First, out.Last = c.published(at, p.Published)
	switch p.Protocol {
	case "":
		out.Protocol = "tcp"
	case "tcp", "udp":
	default:
		c.refuse(at, suggestion(p.Protocol, "tcp", "udp"), "the protocol %q: %s, want tcp or udp", p.Protocol, notBuilt)
	}
	switch out.Mode {
	case "":
		out.Mode = spec.PublishIngress
	case spec.PublishIngress, spec.PublishHost:
	default:
		c.refuse(at, suggestion(p.Mode, "ingress", "host"), "the mode %q does not exist, want ingress or host", p.Mode)
	}
	if p.HostIP != "" {
		out.HostIP = c.hostIP(at, p.HostIP)
	}
	return out, c.refusals() == before
}
