package spec

// TaskLease says until when one exclusive task may run on its node. When the
// time has come its keeper ends every process of the task, and goes on doing
// so until it is told a later deadline or that the task is over.
type TaskLease struct {
	Task TaskID `json:"task"`
	// Cgroup of the container, as a path below the root of every hierarchy:
	// "/wherry-NODE/TASK". What is in it are the processes of the task.
	Cgroup string `json:"cgroup"`
	// Deadline in nanoseconds of CLOCK_BOOTTIME.
	Deadline int64 `json:"deadline"`
}
