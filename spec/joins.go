package spec

import (
	"fmt"
	"slices"
	"strings"
)

// joinsPrefix begins a NetworkMode that names a service.
const joinsPrefix = "service:"

// JoinMode is the NetworkMode of a template whose tasks share the network of a
// service's tasks.
func JoinMode(service string) string { return joinsPrefix + service }

// Joins returns the service whose tasks' network the tasks of t share; empty
// when they have one of their own, none, or the host's.
func (t *Template) Joins() string {
	name, _ := strings.CutPrefix(t.NetworkMode, joinsPrefix)
	if name == t.NetworkMode {
		return ""
	}
	return name
}

// joins checks a service that shares the network of another one. What belongs
// to the network is said by that one alone.
func (c *checker) joins(at, name string, s *ServiceSpec) {
	t := &s.Template
	head := t.Joins()
	if head == "" {
		return
	}
	for _, x := range []struct {
		field string
		set   bool
	}{
		{"hostname", t.Hostname != ""}, {"domainname", t.Domainname != ""}, {"dns", len(t.DNS) > 0}, {"dns_search", len(t.DNSSearch) > 0},
		{"dns_options", len(t.DNSOptions) > 0}, {"extra_hosts", len(t.ExtraHosts) > 0},
	} {
		if x.set {
			c.add(at+".template."+x.field, "it belongs to service %s, whose network is shared", head)
		}
	}
	where := at + ".template.network_mode"
	h, ok := c.stack.Services[head]
	switch {
	case !ok:
		c.add(where, "there is no service %q", head)
		return
	case h.Template.Joins() != "":
		c.add(where, "%s", c.chain(name))
		return
	case h.Template.NetworkMode == "host":
		c.add(where, "service %s has the network of its host: write network_mode host here as well", head)
	}
	if h.Mode.Job() {
		c.add(where, "service %s is a job, whose tasks end: attach this one to a network of it", head)
		return
	}
	if h.Mode != s.Mode {
		c.add(where, "service %s is %s and this one is %s: tasks are paired place by place", head, h.Mode, s.Mode)
	}
	if have, want := replicasOf(&h), replicasOf(s); s.Mode == Replicated && s.Replicas != nil && h.Replicas != nil && want > have {
		c.add(where, "%s of this service share the network of %s of %s", tasks(want), tasks(have), head)
	}
}

func tasks(n int) string {
	if n == 1 {
		return "1 task"
	}
	return fmt.Sprintf("%d tasks", n)
}

func replicasOf(s *ServiceSpec) int {
	if s.Replicas == nil {
		return 1
	}
	return *s.Replicas
}

// chain says how services share each other's network where the one that is
// named has none of its own.
func (c *checker) chain(name string) string {
	path := []string{name}
	for {
		s := c.stack.Services[path[len(path)-1]]
		next := s.Template.Joins()
		if next == "" {
			return fmt.Sprintf("service %s has no network of its own: name %s", path[1], path[len(path)-1])
		}
		if i := slices.Index(path, next); i >= 0 {
			return "the services share each other's network: " + strings.Join(append(path[i:], next), " -> ")
		}
		path = append(path, next)
	}
}
