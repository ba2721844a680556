package compose

import (
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"

	"wherry.dev/spec"
)

func (c *conversion) ipcMode(at path, mode string) string {
	if mode == "none" {
		return mode
	}
	return c.namespaceMode(at, mode, "private", "shareable")
}

// namespaceMode returns "host" or, for the modes that say the same, "".
func (c *conversion) namespaceMode(at path, mode string, same ...string) string {
	switch {
	case mode == "" || slices.Contains(same, mode):
		return ""
	case mode == "host":
		return mode
	case strings.HasPrefix(mode, "service:"):
		c.refuse(at, "put both programs into one service", "the mode %q: tasks of two services may run on different nodes", mode)
	case strings.HasPrefix(mode, "container:"):
		c.refuse(at, leaveOut, "the mode %q: a container outside the stack may be on another node", mode)
	default:
		c.refuse(at, "", "the mode %q does not exist, want host", mode)
	}
	return ""
}

// runtime returns the name of an OCI runtime; that which every node has is left
// out.
func (c *conversion) runtime(at path, name string) string {
	switch {
	case name == "runc", name == "io.containerd.runc.v2":
		return ""
	case strings.HasPrefix(name, "io.containerd."):
		c.refuse(at, "name the OCI runtime, such as crun or runsc", "containers are watched by Wherry itself, not by %s", name)
		return ""
	case strings.HasPrefix(name, "kata"):
		c.refuse(at, leaveOut, "the runtime %s cannot be run as an OCI runtime", name)
		return ""
	}
	return name
}

// securityOpt returns the options in the form KEY=VALUE, and the profile of
// calls that one of them names. Of two for one thing the last one holds.
func (c *conversion) securityOpt(at path, opts []string) (out []string, profile *spec.SeccompProfile) {
	for i, o := range opts {
		key, value, ok := strings.Cut(o, "=")
		if !ok {
			key, value, _ = strings.Cut(o, ":")
		}
		where := at.index(i)
		switch {
		case key == "no-new-privileges" && slices.Contains([]string{"", "true", "false"}, value):
			if value == "" {
				value = "true"
			}
		case key == "seccomp" && value == "builtin": // the default
			out, profile = dropOption(out, key), nil
			continue
		case key == "seccomp" && value == "unconfined":
			profile = nil
		case key == "seccomp" && value != "":
			out, profile = dropOption(out, key), c.seccompProfile(where, value)
			continue
		case key == "apparmor" && value != "", key == "systempaths" && value == "unconfined":
		case key == "label" && value == "disable":
			continue // there are none
		case key == "label":
			c.refuse(where, leaveOut, "containers get no SELinux labels")
			continue
		default:
			c.refuse(where, suggestion(key, "no-new-privileges", "seccomp", "apparmor", "systempaths"), "the option %q does not exist", o)
			continue
		}
		out = append(dropOption(out, key), key+"="+value)
	}
	return out, profile
}

func dropOption(opts []string, key string) []string {
	return slices.DeleteFunc(opts, func(o string) bool { return strings.HasPrefix(o, key+"=") })
}

// seccompProfile reads the file of a profile, which travels with the stack.
func (c *conversion) seccompProfile(at path, name string) *spec.SeccompProfile {
	file := c.resolve(name)
	if !c.checkInputFile(at, file) {
		return nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		c.refuse(at, "", "the file %s cannot be read: %s", c.display(file), reason(err))
		return nil
	}
	p, err := spec.ParseSeccompProfile(b)
	if err != nil {
		c.refuse(at, "", "%s: %v", c.display(file), err)
		return nil
	}
	c.origins[at[:2].key("template").key("seccomp").String()] = at
	return p
}

var deviceRule = regexp.MustCompile(`^([acb]) ([0-9]{1,7}|\*):([0-9]{1,7}|\*) ([rwm]{1,3})$`)

func (c *conversion) deviceRules(at path, rules []string) []spec.DeviceRule {
	var out []spec.DeviceRule
	for i, text := range rules {
		m := deviceRule.FindStringSubmatch(text)
		if m == nil {
			c.refuse(at.index(i), "", "%q is not a rule such as \"c 1:3 rwm\" or \"b 8:* r\"", text)
			continue
		}
		out = append(out, spec.DeviceRule{Type: m[1], Major: deviceNumber(m[2]), Minor: deviceNumber(m[3]), Permissions: m[4]})
	}
	return out
}

// deviceNumber reads a number of at most seven digits; "*" is -1, all.
func deviceNumber(s string) int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return -1
	}
	return n
}

func blockIO(b *types.BlkioConfig) *spec.BlockIO {
	if b == nil {
		return nil
	}
	rates := func(in []types.ThrottleDevice) []spec.DeviceRate {
		var out []spec.DeviceRate
		for _, d := range in {
			out = append(out, spec.DeviceRate{Path: d.Path, Rate: uint64(d.Rate)})
		}
		return out
	}
	out := &spec.BlockIO{
		Weight:    b.Weight,
		ReadBytes: rates(b.DeviceReadBps), WriteBytes: rates(b.DeviceWriteBps),
		ReadOps: rates(b.DeviceReadIOps), WriteOps: rates(b.DeviceWriteIOps),
	}
	for _, d := range b.WeightDevice {
		out.WeightDevices = append(out.WeightDevices, spec.DeviceWeight{Path: d.Path, Weight: d.Weight})
	}
	return out
}
