package compose

import (
	"cmp"
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

// preStart converts containers that come before the service's own. compose-go
// has completed them with all that they have of the service.
func (c *conversion) preStart(at path, s types.ServiceConfig) []spec.InitContainer {
	var out []spec.InitContainer
	for i, h := range s.PreStart {
		where := at.key("pre_start").index(i)
		if !h.PerReplica && !c.oneTask(s) {
			c.refuse(where, "add per_replica: true, if it may run more than once", "it is to run once for the service, but each task runs it before its first start, and there is more than one")
		}
		image, digest, err := NormalizeImage(cmp.Or(h.Image, s.Image))
		if err != nil && h.Image != s.Image { // else told of the service
			c.refuse(where.key("image"), "", "%v", err)
		}
		hook := types.ServiceConfig{Name: s.Name, ContainerSpec: h.ContainerSpec}
		out = append(out, spec.InitContainer{
			Image: image, Digest: digest, Entrypoint: h.Entrypoint, Command: h.Command, Env: c.environment(where, hook),
			User: h.User, WorkingDir: h.WorkingDir, Privileged: h.Privileged,
		})
		model := at.key("template").key("pre_start").index(i)
		c.origins[model.String()] = where
	}
	return out
}

// oneTask reports whether a service has one task, or none, as far as its file
// says: that it may be scaled is the business of who does it.
func (c *conversion) oneTask(s types.ServiceConfig) bool {
	if d := s.Deploy; d != nil && d.Mode == "global" {
		return false
	}
	return s.GetScale() <= 1
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
