package spec

import (
	"fmt"
	"time"
)

// TaskState is the observed state of a task. It only moves forward, in the
// order of declaration; the last five are terminal.
type TaskState string

// The states of a task.
const (
	TaskPending   TaskState = "pending"   // has no node; Reason says why
	TaskAssigned  TaskState = "assigned"  // has a node that has not reported yet
	TaskPreparing TaskState = "preparing" // image, volumes, network
	TaskStarting  TaskState = "starting"  // the container is being started, or waits to be
	TaskRunning   TaskState = "running"
	TaskComplete  TaskState = "complete" // ended by itself with status 0
	TaskFailed    TaskState = "failed"   // its restart policy is exhausted
	TaskRejected  TaskState = "rejected" // the node cannot run it: no image, port taken, …
	TaskStopped   TaskState = "stopped"  // ended because that was desired
	TaskLost      TaskState = "lost"     // its node is gone, or forgot it
)

var stateOrder = map[TaskState]int{
	TaskPending: 1, TaskAssigned: 2, TaskPreparing: 3, TaskStarting: 4, TaskRunning: 5,
	TaskComplete: 6, TaskFailed: 6, TaskRejected: 6, TaskStopped: 6, TaskLost: 6,
}

// Terminal reports whether s is an end.
func (s TaskState) Terminal() bool { return stateOrder[s] == 6 }

// Before reports whether a task may move from s to t. A running task that is
// restarted within its policy stays running: the attempts tell.
func (s TaskState) Before(t TaskState) bool { return stateOrder[s] < stateOrder[t] }

// TaskDesired is the state that the reconciler wants of a task. It only moves
// forward, in the order of declaration.
type TaskDesired string

// The desired states.
const (
	DesiredRunning  TaskDesired = "running"
	DesiredDraining TaskDesired = "draining" // runs, but gets no new traffic
	DesiredStopped  TaskDesired = "stopped"
	DesiredRemoved  TaskDesired = "removed" // the row goes as soon as it is terminal
)

var desiredOrder = map[TaskDesired]int{DesiredRunning: 1, DesiredDraining: 2, DesiredStopped: 3, DesiredRemoved: 4}

// Before reports whether a task may move from d to e.
func (d TaskDesired) Before(e TaskDesired) bool { return desiredOrder[d] < desiredOrder[e] }

// HealthState is what the health check of a task says.
type HealthState string

// The health states; a task without a check has HealthNone and counts as
// healthy once it runs.
const (
	HealthNone      HealthState = "none"
	HealthStarting  HealthState = "starting"
	HealthHealthy   HealthState = "healthy"
	HealthUnhealthy HealthState = "unhealthy"
)

// Task is one placement of a service: it names a slot, a node and a revision,
// and is never moved. What it runs is in its Revision.
type Task struct {
	ID      TaskID `json:"id"`      // apply
	Stack   string `json:"stack"`   // reconciler
	Service string `json:"service"` // reconciler
	// Slot from 1 that the task fills; 0 for a task of a global service, whose
	// place is its node.
	Slot     int        `json:"slot,omitempty"` // reconciler
	Revision RevisionID `json:"revision"`       // reconciler
	// Restarts is Service.Restarts as it was when the task was made.
	Restarts int `json:"restarts,omitempty"` // reconciler
	// Node is empty while no node fits; Status.Reason then says why.
	Node    NodeID      `json:"node,omitempty"` // reconciler
	Desired TaskDesired `json:"desired"`        // reconciler
	// Joins is the task whose network it shares, on the same node, when
	// Template.NetworkMode says so; empty while it has no node.
	Joins TaskID `json:"joins,omitempty"` // reconciler
	// Addresses, one per attached network.
	Addresses []Address `json:"addresses,omitempty"` // reconciler
	// Volumes resolves the volume mounts of the template.
	Volumes []VolumeBinding `json:"volumes,omitempty"` // reconciler
	// NotBefore delays the assignment: the slot backs off after failures.
	NotBefore time.Time `json:"not_before,omitzero"` // reconciler
	// MoveUntil is until when the task may be replaced by one on a node with fewer
	// tasks; zero when nobody has asked for that.
	MoveUntil time.Time `json:"move_until,omitzero"` // user
	// Created is when the task was made, by the clock of the leader.
	Created time.Time `json:"created"` // apply
	// Status is written by the agent of Node; while there is no Node, and when
	// the node is lost, by the reconciler.
	Status TaskStatus `json:"status"` // agent
	// Version is the log index of the last write that was not a report.
	Version uint64 `json:"version"` // apply
}

// Place returns the name of the place that the task fills: its slot, or for a
// task of a global service its node.
func (t *Task) Place() string {
	if t.Slot > 0 {
		return fmt.Sprint(t.Slot)
	}
	return string(t.Node)
}

// Ready reports whether t serves: it runs, is meant to, and its check, if it
// has one, says healthy.
func (t *Task) Ready() bool {
	return t.Desired == DesiredRunning && t.Status.State == TaskRunning &&
		(t.Status.Health == HealthNone || t.Status.Health == "" || t.Status.Health == HealthHealthy)
}

// Address is the place of a task on a network.
type Address struct {
	Network NetworkID `json:"network"`
	// IP with prefix length of the network, "10.0.1.7/24".
	IP string `json:"ip"`
	// IP6 is the IPv6 address with prefix length; empty where the network has
	// none.
	IP6 string `json:"ip6,omitempty"`
	// MAC address, derived from the IP unless the service asks for one.
	MAC string `json:"mac"`
	// Interface as in Attachment.
	Interface string `json:"interface,omitempty"`
}

// InterfaceNames returns the names of a task's devices, in the order of its
// addresses.
func InterfaceNames(list []Address) []string {
	taken := map[string]bool{}
	for _, a := range list {
		taken[a.Interface] = true
	}
	var out []string
	next := 0
	for _, a := range list {
		name := a.Interface
		for name == "" {
			if free := fmt.Sprintf("eth%d", next); !taken[free] {
				name = free
			}
			next++
		}
		out = append(out, name)
	}
	return out
}

// VolumeBinding resolves one volume mount of a task's template.
type VolumeBinding struct {
	// Target of the mount, which is unique within a template.
	Target string `json:"target"`
	// Name is the cluster-wide name of the volume; Apply looks ID up by it.
	Name string   `json:"name"`
	ID   VolumeID `json:"id"`
}

// TaskStatus is what is known of a task's container.
type TaskStatus struct {
	State TaskState `json:"state"`
	// Since is when State was entered, by the clock of the writer.
	Since  time.Time   `json:"since,omitzero"`
	Health HealthState `json:"health,omitempty"`
	// HealthySince is since when a health check has found the present attempt
	// healthy, by the clock of the node; zero when it does not, and from nodes of
	// older versions.
	HealthySince time.Time `json:"healthy_since,omitzero"`
	// Reason is one line for a person: why pending, what is being waited for,
	// what failed. Empty when there is nothing to say.
	Reason string `json:"reason,omitempty"`
	// PID of the container's first process on its node; 0 when none runs.
	PID int `json:"pid,omitempty"`
	// Started counts the attempts so far.
	Started int `json:"started,omitempty"`
	// Attempts are the newest ends of attempts, oldest first, at most
	// KeepAttempts.
	Attempts []Attempt `json:"attempts,omitempty"`
	// Files are the versions that the running container has of those secrets and
	// configs that change in running tasks; nil when there are none.
	Files map[DatumKey]ContentID `json:"files,omitempty"`
	// NextStart is when the next attempt is due, while the task backs off.
	NextStart time.Time `json:"next_start,omitzero"`
}

// KeepAttempts is how many ended attempts a status lists.
const KeepAttempts = 5

// Attempt is the end of one run of a task's container.
type Attempt struct {
	Number  int       `json:"number"` // from 1
	Started time.Time `json:"started,omitzero"`
	Ended   time.Time `json:"ended"`
	// ExitCode as a shell has it: 128 + signal when killed by one; -1 when the
	// container could not be started or its end was not seen.
	ExitCode int  `json:"exit_code"`
	Signal   int  `json:"signal,omitempty"`
	OOM      bool `json:"oom,omitempty"` // killed for lack of memory
	// Error says why the container could not be started, or why it was ended
	// by its node ("health check failed 3 times: …").
	Error string `json:"error,omitempty"`
	// LastLog are the last lines of output, at most 5 of at most 200 bytes.
	LastLog []string `json:"last_log,omitempty"`
}

// Failed reports whether the attempt ended otherwise than by itself with
// status 0.
func (a *Attempt) Failed() bool { return a.ExitCode != 0 || a.Error != "" }

// TaskName is the name of a task for people: "stack.service.slot", or for a
// global service "stack.service.node".
func TaskName(t *Task, nodeName string) string {
	if t.Slot > 0 {
		return fmt.Sprintf("%s.%s.%d", t.Stack, t.Service, t.Slot)
	}
	return fmt.Sprintf("%s.%s.%s", t.Stack, t.Service, nodeName)
}
