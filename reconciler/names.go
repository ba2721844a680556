package reconciler

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"wherry.dev/spec"
)

// names collects the addresses of the names of one network.
//
// Stacks on a network of several do not lead each other astray: a name that
// two of them have means to the tasks of each the own one, or a stack that
// comes would take a share of the traffic of those that are there.
type names map[nameOf][]netip.Addr

// nameOf is a name as a stack uses it.
type nameOf struct{ name, stack string }

func (t names) add(stack, name string, ips []netip.Addr) {
	k := nameOf{name, stack}
	t[k] = append(t[k], ips...)
}

func (t names) addAll(stack string, list []string, ips []netip.Addr) {
	for _, name := range list {
		t.add(stack, name, ips)
	}
}

// claim notes that a stack has names, whether or not they lead anywhere now.
func (t names) claim(stack string, list ...string) {
	for _, name := range list {
		k := nameOf{name, stack}
		if _, ok := t[k]; !ok {
			t[k] = nil
		}
	}
}

// sorted is the list of a document. A name without addresses is in it only
// where another stack has the name with some.
func (t names) sorted() []spec.Name {
	led := map[string]bool{}
	for k, ips := range t {
		led[k.name] = led[k.name] || len(ips) > 0
	}
	out := make([]spec.Name, 0, len(t))
	for _, k := range slices.SortedFunc(maps.Keys(t), nameOf.compare) {
		if !led[k.name] {
			continue
		}
		ips := t[k]
		slices.SortFunc(ips, compareIPs)
		n := spec.Name{Name: k.name, Stack: k.stack}
		for _, ip := range slices.Compact(ips) {
			n.Addresses = append(n.Addresses, ip.String())
		}
		out = append(out, n)
	}
	return out
}

func (k nameOf) compare(l nameOf) int {
	return cmp.Or(cmp.Compare(k.name, l.name), cmp.Compare(k.stack, l.stack))
}
