package compose

import (
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"

	"wherry.dev/spec"
)

// joinPrefix begins a network_mode that names a service.
const joinPrefix = "service:"

// join lets a service share the network of another one. As with Docker, what
// belongs to the network is refused here, or means nothing: that service has it.
func (c *conversion) join(at path, s types.ServiceConfig, t *spec.Template) {
	where := at.key("network_mode")
	head := c.joined(where, s.Name)
	if head == "" {
		return
	}
	for _, x := range []struct {
		key string
		set bool
	}{
		{"ports", len(s.Ports) > 0}, {"hostname", s.Hostname != ""}, {"dns", len(s.DNS) > 0}, {"extra_hosts", len(s.ExtraHosts) > 0}, {"links", len(s.Links) > 0},
	} {
		if x.set {
			c.refuse(at.key(x.key), "set it at "+head, "the network, and all that belongs to it, is that of service %s", head)
		}
	}
	for _, x := range []struct {
		key string
		set bool
	}{
		{"domainname", s.DomainName != ""}, {"dns_search", len(s.DNSSearch) > 0}, {"dns_opt", len(s.DNSOpts) > 0}, {"container_name", s.ContainerName != ""},
	} {
		if x.set {
			c.noEffect(at.key(x.key), "the network, and all that belongs to it, is that of service %s", head)
		}
	}
	t.NetworkMode = spec.JoinMode(head)
	t.Hostname, t.Domainname, t.DNS, t.DNSSearch, t.DNSOptions, t.ExtraHosts = "", "", nil, nil, nil, nil
	if h := c.p.Services[head]; h.NetworkMode == "host" || h.NetworkMode == "" && slices.ContainsFunc(byPriority(h.Networks), func(n string) bool { return isHostNetwork(c.p.Networks[n]) }) {
		c.refuse(where, "write network_mode: host here as well", "service %s has the network of its host", head)
	}
}

// joined returns the service whose network a service has in the end: one that
// is named may itself share that of another. It is empty when there is none.
func (c *conversion) joined(where path, name string) string {
	way := []string{name}
	for {
		mode := c.p.Services[way[len(way)-1]].NetworkMode
		next, ok := strings.CutPrefix(mode, joinPrefix)
		switch {
		case !ok && len(way) > 2:
			c.note(where, "the network of %s is that of %s", way[1], way[len(way)-1])
			return way[len(way)-1]
		case !ok:
			return way[1]
		}
		if _, exists := c.p.Services[next]; !exists {
			if len(way) == 1 { // else it is told there
				c.refuse(where, nearestName(next, c.p.Services), "the service %q does not exist or is not active", next)
			}
			return ""
		}
		if i := slices.Index(way, next); i >= 0 {
			if !refusedWithin(c.findings, where.String()) {
				c.refuse(where, "give one of them a network", "the services share each other's network: %s", strings.Join(append(way[i:], next), " -> "))
			}
			return ""
		}
		way = append(way, next)
	}
}
