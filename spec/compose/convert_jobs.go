package compose

import (
	"fmt"
	"maps"
	"slices"
	"strconv"

	"github.com/compose-spec/compose-go/v2/types"

	"wherry.dev/spec"
)

// waiter returns a service that waits for another one to complete; empty when
// none does.
func (c *conversion) waiter(name string) string {
	for _, other := range slices.Sorted(maps.Keys(c.p.Services)) {
		if d, ok := c.p.Services[other].DependsOn[name]; ok && d.Condition == types.ServiceConditionCompletedSuccessfully {
			return other
		}
	}
	return ""
}

// job converts what makes a service a job. One that others wait for to complete
// is one, as in Compose, where it is started once by each "up".
func (c *conversion) job(at path, s types.ServiceConfig, out *spec.ServiceSpec) {
	where := at.key("deploy").key("mode")
	implied := false
	if other := c.waiter(at[1]); other != "" && !out.Mode.Job() {
		if c.given(where) {
			c.refuse(where, "write replicated-job, or leave it out", "service %s waits for it to complete, and a service that is %s does not", other, out.Mode)
			return
		}
		implied = true
		out.Mode = spec.ReplicatedJob
	}
	out.MaxConcurrent = c.maxConcurrent(at.key("x-wherry"), s.Extensions["x-wherry"], out)
	if !out.Mode.Job() {
		return
	}
	c.jobRestart(at, s, &out.Template.Restart, implied)
	c.jobUpdate(at, out)
}

// jobRestart fits the restart policy: a job ends by itself.
func (c *conversion) jobRestart(at path, s types.ServiceConfig, r *spec.Restart, implied bool) {
	where := at.key("restart")
	given := s.Restart != ""
	if s.Deploy != nil && s.Deploy.RestartPolicy != nil {
		where, given = at.key("deploy").key("restart_policy").key("condition"), s.Deploy.RestartPolicy.Condition != ""
	}
	switch {
	case r.Condition != spec.RestartAny:
	case given:
		c.note(where, "a job is started again after a failure only")
		r.Condition = spec.RestartOnFailure
	case implied: // as Compose does
		r.Condition = spec.RestartNone
	default:
		r.Condition = spec.RestartOnFailure
	}
	if r.Window == 0 {
		r.Window = spec.NoWindow
	}
}

// jobUpdate leaves out what is about replacing tasks one after the other.
func (c *conversion) jobUpdate(at path, out *spec.ServiceSpec) {
	for i, u := range []*spec.UpdateConfig{&out.Update, &out.Rollback} {
		key := [...]string{"update_config", "rollback_config"}[i]
		for _, name := range []string{"parallelism", "delay", "monitor", "order"} {
			where := at.key("deploy").key(key).key(name)
			if !c.given(where) || refusedWithin(c.findings, where.String()) {
				continue
			}
			why := "the tasks of a job are not replaced one after the other"
			if name == "parallelism" {
				why += "; x-wherry: {max_concurrent: N} says how many are there at a time"
			}
			c.noEffect(where, "%s", why)
		}
		u.Parallelism, u.Delay, u.Monitor, u.Order = nil, 0, 0, ""
	}
}

func (c *conversion) maxConcurrent(at path, v any, out *spec.ServiceSpec) int {
	keys, _ := v.(map[string]any) // what is no mapping was refused
	text, ok := keys["max_concurrent"]
	if !ok {
		return 0
	}
	at = at.key("max_concurrent")
	if !out.Mode.Job() {
		c.refuse(at, "", "only a job has it; this service is %s", out.Mode)
		return 0
	}
	n, err := strconv.Atoi(fmt.Sprint(text))
	if err != nil || n < 1 || n > spec.MaxReplicas {
		c.refuse(at, "leave it out for all at once", "must be from 1 to %d", spec.MaxReplicas)
		return 0
	}
	return n
}
