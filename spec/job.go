package spec

// Job reports whether the tasks of a service of the mode are to end by
// themselves, with status 0.
func (m ServiceMode) Job() bool { return m == ReplicatedJob || m == GlobalJob }

// PerNode reports whether a service of the mode has a place on every node that
// fits, instead of numbered slots.
func (m ServiceMode) PerNode() bool { return m == Global || m == GlobalJob }

// NoWindow is the Restart.Window of tasks of which no attempt is a success
// because it lasted long: every failure of a job counts.
const NoWindow Duration = -1

// job checks what only jobs have, and what they cannot have.
func (c *checker) job(at string, s *ServiceSpec) {
	if !s.Mode.Job() {
		if s.MaxConcurrent != 0 {
			c.add(at+".max_concurrent", "only a job has it")
		}
		return
	}
	if s.MaxConcurrent < 0 || s.MaxConcurrent > MaxReplicas {
		c.add(at+".max_concurrent", "must be from 0 to %d", MaxReplicas)
	}
	if s.Template.Restart.Condition == RestartAny {
		c.add(at+".template.restart.condition", "a job ends by itself: it is started again %s or not at all (%s)", RestartOnFailure, RestartNone)
	}
	if s.Template.Joins() != "" {
		c.add(at+".template.network_mode", "a job cannot share the network of another service: attach it to a network of that one")
	}
	if s.EndpointMode == EndpointVIP {
		c.add(at+".endpoint_mode", "a job has no virtual address: its name leads to the tasks that run")
	}
}

// HasVIP reports whether the service has virtual addresses. A job has none: who
// connects to it wants a task that runs, and most of the time none does.
func (s *ServiceSpec) HasVIP() bool { return s.EndpointMode != EndpointDNSRR && !s.Mode.Job() }
