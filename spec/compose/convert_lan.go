package compose

import (
	"cmp"
	"maps"
	"slices"

	"github.com/compose-spec/compose-go/v2/types"

	"wherry.dev/spec"
)

// networkOpts reads the options of a network's driver.
func (c *conversion) networkOpts(at path, n types.NetworkConfig, out *spec.NetworkSpec) {
	opts := at.key("driver_opts")
	c.origins["networks."+at[1]+".parent"], c.origins["networks."+at[1]+".subnet"] = opts.key("parent"), at.key("ipam")
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
		default:
			c.refuse(opts.key(k), cmp.Or(suggestion(k, "parent"), leaveOut), "the option %q of the network driver: %s", k, notBuilt)
		}
	}
}
