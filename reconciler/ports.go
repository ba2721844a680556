package reconciler

import (
	"slices"

	"wherry.dev/spec"
)

// portNumber is what two services cannot both publish.
type portNumber struct {
	port  uint16
	proto string
}

// choosePorts returns the published ports of every service, by its key, with
// every number chosen; 0 where none is free. A number once chosen stays while
// its port is declared.
func (p *planner) choosePorts() map[string][]spec.Port {
	used := p.usedPorts()
	out := map[string][]spec.Port{}
	next := map[spec.Port]int{} // by protocol and range, where the search goes on
	for _, svc := range p.services {
		ports := publishedPorts(svc)
		for i := range ports {
			if ports[i].Published != 0 {
				continue
			}
			first, last := ports[i].Choice()
			search := spec.Port{Protocol: ports[i].Protocol, First: first, Last: last}
			for n := max(next[search], int(first)); n <= int(last); n++ {
				next[search] = n + 1
				if k := (portNumber{uint16(n), search.Protocol}); !used[k] {
					used[k], ports[i].Published = true, k.port
					break
				}
			}
		}
		out[svc.Key()] = ports
	}
	return out
}

// usedPorts returns the numbers that services ask for or have been given.
func (p *planner) usedPorts() map[portNumber]bool {
	used := map[portNumber]bool{}
	for _, svc := range p.services {
		for _, port := range publishedPorts(svc) {
			used[portNumber{port.Published, port.Protocol}] = true
		}
	}
	return used
}

// publishedPorts returns the declared ports of a service with the numbers that
// have been chosen so far; 0 where none has.
func publishedPorts(svc *spec.Service) []spec.Port {
	chosen := slices.Clone(svc.Ports)
	out := slices.Clone(svc.Spec.Ports)
	for i := range out {
		if out[i].Published != 0 {
			continue
		}
		first, last := out[i].Choice()
		j := slices.IndexFunc(chosen, func(c spec.Port) bool {
			inRange := c.Published >= first && c.Published <= last
			c.Published = 0
			return inRange && c == out[i]
		})
		if j >= 0 {
			out[i].Published = chosen[j].Published
			chosen = slices.Delete(chosen, j, j+1)
		}
	}
	return out
}

// hostPorts are the ports that a task occupies on its node.
func hostPorts(ports []spec.Port) []spec.Port {
	var out []spec.Port
	for _, p := range ports {
		if p.Mode == spec.PublishHost && p.Published != 0 {
			out = append(out, p)
		}
	}
	return out
}
