package compose

import (
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
