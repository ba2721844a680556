package compose

import (
	"fmt"

	"github.com/compose-spec/compose-go/v2/types"

	"wherry.dev/spec"
)

// A service may be pinned to the node whose folders are those of the client:
// then its relative paths are used where they lie, whatever their size.

// surveyPin notes what x-wherry.pin says of a service.
func (c *conversion) surveyPin(name string) {
	keys, _ := c.p.Services[name].Extensions["x-wherry"].(map[string]any)
	v, ok := keys["pin"]
	if !ok {
		return
	}
	node, _ := v.(string)
	if _, err := spec.ParseConstraint(pinConstraint(node)); err != nil {
		c.refuse(path{"services", name, "x-wherry", "pin"}, "write the name that wherry node ls shows", "%q is no name of a node", fmt.Sprint(v))
		return
	}
	c.pins[name] = node
}

func pinConstraint(node string) string { return "node.hostname==" + node }

// pinned reports whether a bind is one of a path of the client that is used
// where it lies.
func (c *conversion) pinned(service string, v types.ServiceVolumeConfig) bool {
	return c.pins[service] != "" && v.Type == types.VolumeTypeBind && isRelative(v.Source) && !spec.HasPlaceholder(v.Source)
}

// pinMount makes the bind of a pinned service one of a path of the node. What
// the client has must be there: it would be another folder that is made.
func (c *conversion) pinMount(at path, m spec.Mount) (spec.Mount, bool) {
	name, abs := m.Source, c.resolve(m.Source)
	if c.binds[abs] != nil {
		c.refuse(at, "pin both to the same node, or none", "%s travels with the stack for another service, which would not see what this one does", name)
		return m, false
	}
	m.Source = abs
	if exists(abs) {
		m.MustExist = true
	}
	c.note(at, "%s is used where it lies: as %s on the node %s", name, abs, c.pins[at[1]])
	return m, true
}

// pin places a pinned service. Two tasks never write to its folders together,
// unless the file asks for it, as to a named volume.
func (c *conversion) pin(name string, out *spec.ServiceSpec) {
	node := c.pins[name]
	if node == "" {
		return
	}
	out.Placement.Constraints = append(out.Placement.Constraints, pinConstraint(node))
	for _, v := range c.p.Services[name].Volumes {
		if !c.pinned(name, v) || v.ReadOnly {
			continue
		}
		for _, u := range []*spec.UpdateConfig{&out.Update, &out.Rollback} {
			if u.Order == "" {
				u.Order = spec.StopFirst
			}
		}
	}
}
