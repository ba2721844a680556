package overlay

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"

	"wherry.dev/spec"
)

// Parent is an interface of the host that is not one of ours.
type Parent struct {
	// Up: it is switched on.
	Up bool
	// Why no macvlan network can be on it now; empty if one can.
	Why string
	// VLANs of it can be had all the same.
	VLANs bool
}

// maxParents is how many interfaces of a host are told: the managers keep them.
const maxParents = 128

// lan reports whether the network is one that the hosts are on themselves. Of
// it a host has the devices inside the tasks' namespaces, and nothing else: no
// bridge, no rules, no way by itself.
func (n network) lan() bool { return isLAN(n.doc) }

func isLAN(d spec.HostNetwork) bool { return d.Network.Spec.Driver == spec.DriverMacvlan }

// bridged returns the networks that have a bridge.
func bridged(networks map[spec.NetworkID]network) map[spec.NetworkID]network {
	out := maps.Clone(networks)
	maps.DeleteFunc(out, func(_ spec.NetworkID, n network) bool { return n.lan() })
	return out
}

// vlans adds the VLAN interfaces that networks are on, but for those that others
// have made. As long as it is not known which these are, all are added.
func (in Input) vlans(networks map[spec.NetworkID]network, st State) {
	for _, n := range networks {
		name := n.doc.Network.Spec.Parent
		base, vlan, err := spec.ParseParent(name)
		if _, theirs := in.Parents[name]; !n.lan() || err != nil || vlan == 0 || theirs || !in.hasParent(base) {
			continue
		}
		// With the interface below it the kernel takes it down and up.
		up := in.Parents == nil || in.Parents[base].Up
		st.Links[LinkID{Name: name}] = Link{Kind: kindVLAN, Alias: vlanAlias(in.Node, name), Up: up, Parent: base, VLAN: vlan}
		for path, value := range vlanSysctls(name, !in.NoIPv6) {
			st.Sysctls[SysctlKey{Path: path}] = value
		}
	}
}

// plug adds the device of a task on a network of the host's. way: the router
// there leads to all other networks.
func (n network) plug(st State, inner LinkID, ip netip.Prefix, mac string, way bool) {
	st.Links[inner] = Link{Kind: kindMacvlan, MAC: mac, Up: true, Parent: n.doc.Network.Spec.Parent}
	st.Addrs[Addr{inner, ip.String()}] = true
	st.Routes[Route{Link: inner, Dst: ip.Masked().String(), Src: ip.Addr().String()}] = true
	if way {
		st.Routes[Route{Link: inner, Dst: "0.0.0.0/0", Via: n.gateway.String()}] = true
	}
}

// vlanSysctls keep the host itself off a VLAN that its tasks are on: by an
// interface that no route leads to nothing comes in, and no IPv6 begins there.
func vlanSysctls(name string, six bool) map[string]string {
	out := map[string]string{"net/ipv4/conf/" + name + "/rp_filter": "1"}
	if six {
		out[sysctl6(name, "disable_ipv6")] = "1"
	}
	return out
}

// parent looks for the interface of a network, or that of which it is a VLAN.
func (in Input) parent(name string) (found string, p Parent, ok bool) {
	if p, ok = in.Parents[name]; ok {
		return name, p, true
	}
	base, _, err := spec.ParseParent(name)
	if err != nil || base == "" {
		return name, p, false
	}
	if p, ok = in.Parents[base]; p.VLANs {
		p.Why = ""
	}
	return base, p, ok
}

// hasParent reports whether devices of tasks can be made on an interface, now or
// in the next pass.
func (in Input) hasParent(name string) bool {
	_, _, ok := in.parent(name)
	return ok || in.Parents == nil
}

// lanProblem says why tasks cannot be on a network of the host's.
func (in Input) lanProblem(d spec.HostNetwork) error {
	if in.Parents == nil {
		return nil
	}
	name, p, ok := in.parent(d.Network.Spec.Parent)
	if !ok {
		p.Why = noInterface
	}
	if p.Why != "" {
		return fmt.Errorf("network %s: %w", d.Network.ID, &parentError{name, p.Why})
	}
	return nil
}

const noInterface = "this host has none of that name"

// parentError says why no network can be on an interface of the host.
type parentError struct{ name, why string }

func (e *parentError) Error() string { return "interface " + e.name + ": " + e.why }

// otherVLAN reports whether a VLAN interface has settings that are made with it.
func otherVLAN(h, w Link) bool {
	return w.Kind == kindVLAN && (h.VLAN != w.VLAN || h.Parent != w.Parent)
}

// parentsText joins the names of interfaces by spaces. If they are too many to
// be told, none is.
func parentsText(names []string) string {
	if len(names) > maxParents {
		return ""
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// blame returns a failure as that of the networks of the host's that it is
// about, if there are any: it holds up no others.
func (in Input) blame(o Op, err error) []error {
	on := ""
	switch x := o.Object.(type) {
	case *LinkChange:
		switch x.Want.Kind {
		case kindVLAN:
			on = x.ID.Name
		case kindMacvlan:
			on = x.Want.Parent
		}
	case Sysctl:
		ofVLAN := func(d spec.HostNetwork) bool {
			_, ok := vlanSysctls(d.Network.Spec.Parent, true)[x.Key.Path]
			return ok && isLAN(d)
		}
		if x.Key.NS == "" && errors.Is(err, os.ErrNotExist) && slices.ContainsFunc(in.Networks, ofVLAN) {
			return nil // that the interface cannot be made is told
		}
	}
	if p := (*parentError)(nil); errors.As(err, &p) {
		err = p
	}
	var out []error
	for _, d := range in.Networks {
		if isLAN(d) && d.Network.Spec.Parent == on {
			out = append(out, networkProblem{d.Network.ID, fmt.Errorf("network %s: %w", d.Network.ID, err)})
		}
	}
	if len(out) == 0 {
		return []error{err}
	}
	return out
}

// lanRefusal gives a failure to connect a task the class by which it goes
// elsewhere, if an interface of this host is the reason. problems are those of
// the last pass, which may know more.
func lanRefusal(s spec.Sandbox, err error, problems []string) error {
	p := (*parentError)(nil)
	if !errors.As(err, &p) {
		return err
	}
	for _, a := range s.Addresses {
		for _, text := range problems {
			if why, ok := strings.CutPrefix(text, "network "+string(a.Network)+": "); ok {
				return spec.Conflictf("%s", why)
			}
		}
	}
	return spec.Conflictf("%v", p)
}
