package compose

import (
	"cmp"
	"maps"
	"slices"
	"strconv"

	"github.com/compose-spec/compose-go/v2/types"

	"wherry.dev/spec"
)

// networkOpts reads the options of a network's driver.
func (c *conversion) networkOpts(at path, n types.NetworkConfig, out *spec.NetworkSpec) {
	opts := at.key("driver_opts")
	c.origins["networks."+at[1]+".parent"], c.origins["networks."+at[1]+".subnet"] = opts.key("parent"), at.key("ipam")
	c.origins["networks."+at[1]+".mtu"] = opts.key(optMTU)
	for _, k := range slices.Sorted(maps.Keys(n.DriverOpts)) {
		v := n.DriverOpts[k]
		switch {
		case out.Driver == spec.DriverMacvlan && k == "parent":
			out.Parent = v
		case out.Driver == spec.DriverMacvlan && k == "macvlan_mode" && v == "bridge": // as it is
		case out.Driver == spec.DriverMacvlan && k == "macvlan_mode":
			c.refuse(opts.key(k), "leave it out for bridge", "the mode %q: %s", v, notBuilt)
		case k == "parent":
			c.refuse(opts.key(k), "set driver: macvlan, or leave it out", "only a macvlan network is on an interface of the hosts")
		case dockerOpts[k].honours(c, opts.key(k), v, out):
		default:
			c.refuse(opts.key(k), cmp.Or(suggestion(k, "parent"), leaveOut), "the option %q of the network driver: %s", k, notBuilt)
		}
	}
}

const optMTU = "com.docker.network.driver.mtu"

// dockerOpt is an option of Docker's network drivers.
type dockerOpt struct {
	// same are values that say what holds anyway.
	same []string
	// why others are refused, and what to do instead.
	why, hint string
	// read takes what is honoured; false is no value of the option.
	read func(v string, out *spec.NetworkSpec) bool
}

var dockerOpts = map[string]dockerOpt{
	optMTU: {why: "is no number of bytes", read: func(v string, out *spec.NetworkSpec) bool {
		n, err := strconv.Atoi(v)
		out.MTU = n
		return err == nil && n > 0
	}},
	"com.docker.network.bridge.enable_icc":              {same: []string{"true"}, why: "tasks of one network reach each other", hint: "put them on networks of their own"},
	"com.docker.network.bridge.enable_ip_masquerade":    {same: []string{"true"}, why: "what leaves a network has the address of its host, since nobody else knows a way back", hint: "use internal: true for no way out, or driver: macvlan"},
	"com.docker.network.bridge.gateway_mode_ipv4":       {same: []string{"nat"}, why: "what leaves a network has the address of its host, since nobody else knows a way back", hint: "use internal: true for no way out, or driver: macvlan"},
	"com.docker.network.bridge.gateway_mode_ipv6":       {same: []string{"nat"}, why: "what leaves a network has the address of its host, since nobody else knows a way back", hint: "use internal: true for no way out"},
	"com.docker.network.bridge.host_binding_ipv4":       {same: []string{"", "0.0.0.0"}, why: "an address for all ports of a network: " + notBuilt, hint: "give it at each port, as in 127.0.0.1:80:80"},
	"com.docker.network.bridge.name":                    {why: "bridges are made on each host, and named, by the networks that are there", hint: "leave it out; all their names begin with wbr-"},
	"com.docker.network.bridge.inhibit_ipv4":            {same: []string{"false"}, why: "the host has the gateway's address", hint: "use internal: true for no way out"},
	"com.docker.network.bridge.trusted_host_interfaces": {why: "nobody reaches a task but through published ports", hint: "publish the ports"},
	"com.docker.network.bridge.default_bridge":          {same: []string{"false"}, why: "there is no default bridge", hint: leaveOut},
	"com.docker.network.container_iface_prefix":         {same: []string{"eth"}, why: "a prefix of the names of interfaces: " + notBuilt, hint: "use interface_name where a service names its networks"},
	"com.docker.network.driver.overlay.vxlanid_list":    {why: "the managers number networks, each one once", hint: leaveOut},
	"encrypted": {same: []string{"false"}, why: "networks between hosts are not encrypted", hint: "encrypt what crosses them, or connect the hosts by a VPN"},
}

// honours reports whether the option is known: it is honoured then, or refused
// with its reason.
func (o dockerOpt) honours(c *conversion, at path, v string, out *spec.NetworkSpec) bool {
	switch {
	case o.why == "":
		return false
	case slices.Contains(o.same, v):
	case o.read == nil || !o.read(v, out):
		c.refuse(at, o.hint, "%q: %s", v, o.why)
	}
	return true
}
