package compose

import (
	"maps"
	"slices"

	"github.com/compose-spec/compose-go/v2/types"

	"wherry.dev/spec"
)

// hooks converts commands that are run in the running container.
func (c *conversion) hooks(at path, in []types.ServiceHook) []spec.Hook {
	var out []spec.Hook
	for i, h := range in {
		out = append(out, spec.Hook{
			Command: h.Command, User: h.User, WorkingDir: h.WorkingDir, Privileged: h.Privileged,
			Env: c.hookEnv(at.index(i).key("environment"), h.Environment),
		})
	}
	return out
}

// hookEnv takes variables without a value from the environment of the client,
// as those of services are.
func (c *conversion) hookEnv(at path, in types.MappingWithEquals) map[string]string {
	out := map[string]string{}
	for _, k := range slices.Sorted(maps.Keys(in)) {
		if v := in[k]; v != nil {
			out[k] = *v
		} else if v, ok := c.p.Environment[k]; ok {
			out[k] = v
		} else {
			c.note(at, "the variable %s has no value and is left out", k)
		}
	}
	return nonEmpty(out)
}
