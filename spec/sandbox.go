package spec

// Sandbox is the network side of one task on its node: a network namespace
// with the task's interfaces, made before the container and removed after it.
type Sandbox struct {
	Task TaskID `json:"task"`
	// Name of the task, for logs.
	Name string `json:"name"`
	// Stack of the task, whose own names come first.
	Stack string `json:"stack,omitempty"`
	// Mode is Template.NetworkMode: "" or "none" (own namespace), "host".
	Mode string `json:"mode,omitempty"`
	// Addresses of the task. The first whose network is not internal holds the
	// default route and takes the published ports.
	Addresses []Address `json:"addresses,omitempty"`
	// Sysctls of the namespace (net.*).
	Sysctls map[string]string `json:"sysctls,omitempty"`
	// DNS servers that names outside the cluster are asked of; empty is the
	// host's /etc/resolv.conf.
	DNS []string `json:"dns,omitempty"`
}

// Resolver is one DNS server at 127.0.0.11 inside a task's namespace.
type Resolver struct {
	Task TaskID `json:"task"`
	// NetNS is the path of the namespace.
	NetNS string `json:"netns"`
	// Networks whose names it answers, in order of preference. A name of Stack is
	// preferred on any of them.
	Networks []NetworkID `json:"networks"`
	Stack    string      `json:"stack,omitempty"`
	// Upstream servers ("address" or "address:port") for all other names; empty
	// is those of the host.
	Upstream []string `json:"upstream,omitempty"`
	// Isolated: nobody is asked for other names, since none of Networks leads out.
	Isolated bool `json:"isolated,omitempty"`
}

// NameTable holds the names of one network.
type NameTable struct {
	Network NetworkID `json:"network"`
	Names   []Name    `json:"names"`
	// Ports that have a name, for SRV lookups.
	Ports []NamedPort `json:"ports,omitempty"`
}

// LogSink drains the output of one task into rotated files.
type LogSink struct {
	Task TaskID `json:"task"`
	// Stdout and Stderr are the paths of FIFOs; Stderr is empty with a terminal.
	Stdout string `json:"stdout"`
	Stderr string `json:"stderr,omitempty"`
	// File is the newest log file; older ones are File.1, File.2, …
	File string `json:"file"`
	// MaxSize in bytes and MaxFiles bound the log.
	MaxSize  int64 `json:"max_size"`
	MaxFiles int   `json:"max_files"`
}

// Defaults of a log.
const (
	DefaultLogSize  = 10 << 20
	DefaultLogFiles = 3
)
