package compose

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"

	"wherry.dev/spec"
)

// updates converts what says how tasks are replaced. What states a default is
// left out, so that a file that says it is the same as one that does not.
func (c *conversion) updates(at path, s types.ServiceConfig, out *spec.ServiceSpec) {
	if s.Deploy != nil {
		deploy := at.key("deploy")
		out.Update = c.updateConfig(deploy.key("update_config"), s.Deploy.UpdateConfig, spec.FailureRollback, spec.FailurePause, spec.FailureContinue)
		out.Rollback = c.updateConfig(deploy.key("rollback_config"), s.Deploy.RollbackConfig, spec.FailurePause, spec.FailureContinue)
		why := out.NoStartFirst()
		if why != "" && out.Update.Order == spec.StartFirst {
			c.refuse(deploy.key("update_config").key("order"), leaveOut, "%s is not possible: %s", spec.StartFirst, why)
		}
		if why != "" && out.Rollback.Order == spec.StartFirst {
			c.refuse(deploy.key("rollback_config").key("order"), leaveOut, "%s is not possible: %s", spec.StartFirst, why)
		}
	}
	c.priority(at.key("x-wherry"), s.Extensions["x-wherry"], &out.Placement)
	out.ProgressDeadline = c.progressDeadline(at.key("x-wherry"), s.Extensions["x-wherry"])
	out.Canary = c.canary(at.key("x-wherry").key("canary"), s.Extensions["x-wherry"])
	if out.Canary != (spec.Canary{}) && out.Update.FailureAction == spec.FailureContinue {
		c.refuse(at.key("x-wherry").key("canary"), "write failure_action: rollback or pause", "a canary that fails must not be gone on behind, as update_config.failure_action: continue says")
	}
}

// updateConfig converts one of the two, whose first action is the default.
func (c *conversion) updateConfig(at path, u *types.UpdateConfig, actions ...spec.FailureAction) spec.UpdateConfig {
	var out spec.UpdateConfig
	if u == nil {
		return out
	}
	if p := u.Parallelism; p != nil && *p > spec.MaxReplicas {
		c.refuse(at.key("parallelism"), "", "must be from 0, which is all at once, to %d", spec.MaxReplicas)
	} else if p != nil && *p != 1 {
		out.Parallelism = new(int(*p))
	}
	out.Delay = c.notNegative(at.key("delay"), u.Delay)
	out.Monitor = c.notNegative(at.key("monitor"), u.Monitor)
	out.FailureAction = oneOf(c, at.key("failure_action"), "action", u.FailureAction, actions)
	if out.FailureAction == actions[0] {
		out.FailureAction = ""
	}
	out.Order = oneOf(c, at.key("order"), "order", u.Order, []spec.UpdateOrder{spec.StartFirst, spec.StopFirst})
	// A float32 in its shortest form: 0.1 is not 0.10000000149.
	ratio, err := strconv.ParseFloat(strconv.FormatFloat(float64(u.MaxFailureRatio), 'g', -1, 32), 64)
	if err != nil || !(ratio >= 0 && ratio <= 1) {
		c.refuse(at.key("max_failure_ratio"), "write 0.25 for a quarter of the tasks", "must be from 0 to 1")
	} else {
		out.MaxFailureRatio = ratio
	}
	return out
}

func (c *conversion) notNegative(at path, d types.Duration) spec.Duration {
	if d < 0 {
		c.refuse(at, "", "must not be negative")
		return 0
	}
	return spec.Duration(d)
}

// oneOf returns a value that is empty or among the valid ones, and refuses any
// other.
func oneOf[S ~string](c *conversion, at path, what, got string, valid []S) S {
	if got == "" {
		return ""
	}
	var names []string
	for _, v := range valid {
		if S(got) == v {
			return v
		}
		names = append(names, string(v))
	}
	c.refuse(at, suggestion(got, names...), "the %s %q does not exist here, want %s", what, got, anyOf(names))
	return ""
}

// anyOf joins names as in "a, b or c".
func anyOf(names []string) string {
	s := names[0]
	for i, n := range names[1:] {
		if i == len(names)-2 {
			s += " or " + n
		} else {
			s += ", " + n
		}
	}
	return s
}

// priority converts which services come first, and whether others make room.
func (c *conversion) priority(at path, v any, p *spec.Placement) {
	keys, _ := v.(map[string]any) // what is no mapping was refused
	if v, ok := keys["priority"]; ok {
		n, err := strconv.Atoi(fmt.Sprint(v)) // a string after interpolation
		if err != nil || n < -spec.MaxPriority || n > spec.MaxPriority {
			c.refuse(at.key("priority"), "write for instance 100", "%q is no whole number from %d to %d", fmt.Sprint(v), -spec.MaxPriority, spec.MaxPriority)
		} else {
			p.Priority = n
		}
	}
	if v, ok := keys["preempt"]; ok {
		b, err := strconv.ParseBool(fmt.Sprint(v))
		if err != nil {
			c.refuse(at.key("preempt"), "", "%q is neither true nor false", fmt.Sprint(v))
		}
		p.Preempt = b
	}
}

func (c *conversion) progressDeadline(at path, v any) spec.Duration {
	keys, _ := v.(map[string]any) // what is no mapping was refused
	text, ok := keys["progress_deadline"]
	if !ok {
		return 0
	}
	d, err := time.ParseDuration(fmt.Sprint(text))
	if err != nil || d <= 0 {
		c.refuse(at.key("progress_deadline"), "write for instance 30m", "%q is no length of time", fmt.Sprint(text))
		return 0
	}
	if d == spec.DefaultProgressDeadline {
		return 0
	}
	return spec.Duration(d)
}

func (c *conversion) canary(at path, v any) spec.Canary {
	own, _ := v.(map[string]any) // what is no mapping was refused
	got, ok := own["canary"]
	if !ok || got == nil {
		return spec.Canary{}
	}
	keys, ok := got.(map[string]any)
	if !ok {
		c.refuse(at, "write for instance canary: {weight: 10%}", "%v is no mapping", got)
		return spec.Canary{}
	}
	var out spec.Canary
	_, replicas := keys["replicas"]
	_, weight := keys["weight"]
	if replicas == weight {
		c.refuse(at, "", "give either replicas, a number of tasks, or weight, a share of them")
		return out
	}
	if replicas {
		out.Replicas = c.from1To(at.key("replicas"), keys["replicas"], "", spec.MaxReplicas, "write the number of tasks that are tried first")
	} else {
		out.Weight = c.from1To(at.key("weight"), keys["weight"], "%", 99, "write for instance 10%")
	}
	text, ok := keys["promote"]
	if !ok {
		return out
	}
	out.Promote = oneOf(c, at.key("promote"), "way", fmt.Sprint(text), []spec.Promotion{spec.PromoteAuto, spec.PromoteManual})
	if out.Promote == spec.PromoteAuto {
		out.Promote = ""
	}
	return out
}

// from1To reads a whole number, which may have a unit behind it.
func (c *conversion) from1To(at path, v any, unit string, most int, hint string) int {
	text := fmt.Sprint(v)
	n, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(text, unit)))
	if err != nil || n < 1 || n > most {
		c.refuse(at, hint, "%q is no number from 1 to %d", text, most)
		return 0
	}
	return n
}
