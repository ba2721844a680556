package spec

// Change is one declared object that a write would create, update or remove.
type Change struct {
	Kind   string      `json:"kind"` // stack, service, network, volume, secret, config
	Name   string      `json:"name"`
	Action string      `json:"action"` // create, update, remove
	Fields []FieldDiff `json:"fields,omitempty"`
}

// FieldDiff is one field that would change; Old or New is empty when it is
// added or removed.
type FieldDiff struct {
	Path string `json:"path"`
	Old  string `json:"old,omitempty"`
	New  string `json:"new,omitempty"`
}

// Move is a task that would better be on another node.
type Move struct {
	Task TaskID `json:"task"`
	Name string `json:"name"`
	From string `json:"from"` // names of nodes
	To   string `json:"to"`
}

// TaskAction is what would happen to one task, and why.
type TaskAction struct {
	Action string `json:"action"` // create, replace, remove
	Name   string `json:"name"`
	Node   string `json:"node,omitempty"` // name of the node
	Why    string `json:"why"`
}
