package spec

import (
	"strings"
	"time"
)

// Refusal is one reason why nodes do not take a task, and the names of those for
// which it holds, sorted.
type Refusal struct {
	Reason string   `json:"reason"`
	Nodes  []string `json:"nodes"`
}

// NearMiss is the node that lacks least to take a task.
type NearMiss struct {
	Node string `json:"node"` // name
	// Needs are what must come true, such as "frees 200 MiB of memory"; each
	// follows "fits if NODE".
	Needs []string `json:"needs"`
}

// String completes "fits if".
func (m *NearMiss) String() string { return m.Node + " " + strings.Join(m.Needs, " and ") }

// TaskVerdict is the kind of answer to why a task is as it is.
type TaskVerdict string

// The verdicts.
const (
	VerdictFine     TaskVerdict = "fine"     // it is as it ought to be
	VerdictPending  TaskVerdict = "pending"  // no node takes it
	VerdictWaiting  TaskVerdict = "waiting"  // for others, or for its turn
	VerdictBackOff  TaskVerdict = "back-off" // the next attempt is delayed
	VerdictStarting TaskVerdict = "starting" // on its way, or not trusted yet
	VerdictFailing  TaskVerdict = "failing"  // it fails, and is tried again
	VerdictFailed   TaskVerdict = "failed"   // it is not tried again
	VerdictDown     TaskVerdict = "down"     // its node is
	VerdictStopping TaskVerdict = "stopping" // on its way out
)

// ServiceWhy says why a service is as it is.
type ServiceWhy struct {
	Stack   string `json:"stack"`
	Service string `json:"service"`
	// State and Message are those of the service.
	State   string `json:"state"`
	Message string `json:"message,omitempty"`
	Running int    `json:"running"`
	Desired int    `json:"desired"`
	// Refusals of nodes by a global service that has no task anywhere.
	Refusals []Refusal `json:"refusals,omitempty"`
	// Tasks that are not as they ought to be, by place, or those that were asked
	// for.
	Tasks []TaskWhy `json:"tasks"`
}

// TaskWhy says why a place of a service is as it is.
type TaskWhy struct {
	// Name of the place as TaskName has it. ID, Node (a name), State and Since are
	// those of its newest task; empty while there is none.
	Name  string    `json:"name"`
	ID    TaskID    `json:"id,omitempty"`
	Node  string    `json:"node,omitempty"`
	State TaskState `json:"state,omitempty"`
	Since time.Time `json:"since,omitzero"`
	// Verdict, and Message in one line for a person.
	Verdict TaskVerdict `json:"verdict"`
	Message string      `json:"message"`
	// Waits are the services that it waits for.
	Waits []TaskWait `json:"waits,omitempty"`
	// Until is when the next attempt is due; zero when none is delayed.
	Until time.Time `json:"until,omitzero"`
	// Refusals of all nodes when none takes it, the most frequent first, and the
	// nearest miss; nil when no node could ever take it as it is.
	Refusals []Refusal `json:"refusals,omitempty"`
	Nearest  *NearMiss `json:"nearest,omitempty"`
	// Ends are the newest ends of attempts at the place, oldest first, at most
	// KeepAttempts.
	Ends []AttemptEnd `json:"ends,omitempty"`
}

// TaskWait is a service that a task waits for.
type TaskWait struct {
	Service string `json:"service"`
	// Condition that does not hold yet, and Message what keeps it.
	Condition DependencyCondition `json:"condition"`
	Message   string              `json:"message,omitempty"`
}

// AttemptEnd is the end of an attempt of a task.
type AttemptEnd struct {
	Attempt
	ID   TaskID `json:"id"`
	Node string `json:"node"` // name
}
