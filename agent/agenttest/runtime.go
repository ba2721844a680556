package agenttest

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"
	"time"

	"wherry.dev/agent"
	"wherry.dev/spec"
)

// container is a container and its present process.
type container struct {
	spec  agent.Container
	files map[string]int // :: path → lines
	// mounted are the files that the process sees. // :: target → bytes
	mounted map[string]string
	state   agent.ContainerState
	onTERM
	end *time.Timer // of the process, when it ends by itself
}

// onTERM says what a process does with SIGTERM.
type onTERM struct {
	ignore bool
	code   int // exit status; 143 without a trap
}

// enter checks that calls for one task come one after the other.
func (h *Host) enter(ctx context.Context, op string, t spec.TaskID) (leave func(), err error) {
	if err := h.before(ctx, op, t); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if other := h.inside[t]; other != "" {
		h.faults = append(h.faults, fmt.Sprintf("%s of task %s while %s is under way", op, t, other))
	}
	h.inside[t] = op
	return func() {
		h.mu.Lock()
		delete(h.inside, t)
		h.mu.Unlock()
	}, nil
}

// Create implements agent.Runtime.
func (h *Host) Create(ctx context.Context, c agent.Container) error {
	leave, err := h.enter(ctx, "Create", c.Task)
	if err != nil {
		return err
	}
	h.mu.Lock()
	if h.containers[c.Task] == nil {
		h.containers[c.Task] = &container{spec: c, files: map[string]int{}, state: agent.ContainerState{Task: c.Task, State: agent.RunCreated, Stage: c.Stage}}
	}
	h.mu.Unlock()
	leave()
	h.after("Create", c.Task)
	return nil
}

// Start implements agent.Runtime. The command is ["/bin/sh", "-c", SCRIPT] with
// the statements that run knows; any other command does not exist.
func (h *Host) Start(ctx context.Context, t spec.TaskID) (int, error) {
	leave, err := h.enter(ctx, "Start", t)
	if err != nil {
		return 0, err
	}
	pid, err := h.start(t)
	leave()
	if err != nil {
		return 0, err
	}
	h.after("Start", t)
	return pid, nil
}

func (h *Host) start(t spec.TaskID) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.containers[t]
	if c == nil {
		return 0, spec.NotFoundf("no container %s", t)
	}
	if c.state.State == agent.RunRunning {
		h.faults = append(h.faults, fmt.Sprintf("second process of task %s", t))
		return 0, spec.Conflictf("container %s runs already", t)
	}
	if id, ok := strings.CutPrefix(c.spec.NetNS, "/netns/"); ok {
		if _, ok := h.netns[spec.TaskID(id)]; !ok {
			h.faults = append(h.faults, fmt.Sprintf("process of task %s without its network", t))
		}
	}
	args := slices.Concat(c.spec.Template.Entrypoint, c.spec.Template.Command)
	if len(args) != 3 || args[0] != "/bin/sh" {
		return 0, spec.Invalidf("exec: %q: executable file not found in $PATH", strings.Join(args, " "))
	}
	h.starts[t]++
	h.nextPID++
	pid := h.nextPID
	c.mounted = map[string]string{}
	for _, m := range c.spec.Mounts {
		h.showLocked(c, m)
	}
	if c.spec.EnvFile != "" {
		h.showLocked(c, agent.Mount{Source: c.spec.EnvFile, Target: "env"})
	}
	c.state = agent.ContainerState{Task: t, State: agent.RunRunning, Stage: c.spec.Stage, PID: pid}
	h.runLocked(c, args[2])
	return pid, nil // also when it has ended already
}

// runLocked interprets a script of a few statements: "exit N",
// "exit $(wc -l < FILE)", "sleep N", "echo TEXT", "echo x >> FILE",
// "trap 'exit N' TERM", "trap ” TERM", "first STATEMENT" (done by the first
// process only), "oom" (the kernel kills it) and "while …" (for ever).
func (h *Host) runLocked(c *container, script string) {
	c.onTERM = onTERM{code: 128 + int(syscall.SIGTERM)}
	var after time.Duration
	code, oom := 0, false
	for s := range strings.SplitSeq(script, ";") {
		s = strings.TrimSpace(s)
		if rest, ok := strings.CutPrefix(s, "first "); ok {
			if h.starts[c.spec.Task] > 1 {
				continue
			}
			s = rest
		}
		var file string
		var seconds float64
		switch {
		case strings.HasPrefix(s, "while"):
			return
		case strings.HasPrefix(s, "trap ''"):
			c.ignore = true
			continue
		case scan(s, "trap 'exit %d' TERM", &c.onTERM.code):
			continue
		case scan(s, "echo x >> %s", &file):
			c.files[file]++
			continue
		case strings.HasPrefix(s, "echo "):
			h.writeLogLocked(c.spec.Task, strings.TrimPrefix(s, "echo "))
			continue
		case scan(s, "sleep %g", &seconds):
			after += time.Duration(seconds * float64(time.Second))
			continue
		case strings.HasPrefix(s, "exit $(wc -l <"):
			code = c.files[strings.TrimSpace(strings.TrimSuffix(strings.TrimPrefix(s, "exit $(wc -l <"), ")"))]
		case scan(s, "exit %d", &code):
		case s == "oom":
			code, oom = 128+int(syscall.SIGKILL), true
		default:
			h.faults = append(h.faults, "script statement not known: "+s)
			code = 2
		}
		break
	}
	if after == 0 {
		h.endLocked(c, code, oom)
		return
	}
	pid := c.state.PID
	c.end = time.AfterFunc(after, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if c.state.PID == pid {
			h.endLocked(c, code, oom)
		}
	})
}

func scan(s, format string, to any) bool {
	n, err := fmt.Sscanf(s, format, to)
	return err == nil && n == 1
}

func (h *Host) endLocked(c *container, code int, oom bool) {
	if c.end != nil {
		c.end.Stop()
	}
	c.state = agent.ContainerState{Task: c.spec.Task, State: agent.RunStopped, Stage: c.spec.Stage, ExitCode: code, OOM: oom, Ended: time.Now()}
	h.wake()
}

// End ends the process of a task from outside, as an operator or the kernel
// may; no agent is told but by Wake.
func (h *Host) End(t spec.TaskID, code int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c := h.containers[t]; c != nil && c.state.State == agent.RunRunning {
		h.endLocked(c, code, false)
	}
}

// Reboot ends all processes without a trace, as the end of the host does.
func (h *Host) Reboot() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id, c := range h.containers {
		if c.end != nil {
			c.end.Stop()
		}
		c.state = agent.ContainerState{Task: id, State: agent.RunCreated, Stage: c.spec.Stage}
	}
	clear(h.netns)
	h.sinks = nil
	for dir := range h.mounted {
		h.forgetLocked(dir)
	}
}

// Kill implements agent.Runtime.
func (h *Host) Kill(ctx context.Context, t spec.TaskID, signal int, all bool) error {
	leave, err := h.enter(ctx, "Kill", t)
	if err != nil {
		return err
	}
	h.mu.Lock()
	if c := h.containers[t]; c != nil && c.state.State == agent.RunRunning {
		h.kills[t] = append(h.kills[t], signal)
		switch {
		case signal == int(syscall.SIGTERM) && c.ignore, signal == int(syscall.SIGHUP), signal == int(syscall.SIGUSR1):
			// It goes on, as the first process of a container does that handles them
			// or not.
		case signal == int(syscall.SIGTERM):
			h.endLocked(c, c.onTERM.code, false)
		default:
			h.endLocked(c, 128+signal, false)
		}
	}
	h.mu.Unlock()
	leave()
	h.after("Kill", t)
	return nil
}

// Remove implements agent.Runtime.
func (h *Host) Remove(ctx context.Context, t spec.TaskID) error {
	leave, err := h.enter(ctx, "Remove", t)
	if err != nil {
		return err
	}
	h.mu.Lock()
	if c := h.containers[t]; c != nil && c.end != nil {
		c.end.Stop()
	}
	delete(h.containers, t)
	h.mu.Unlock()
	leave()
	h.after("Remove", t)
	return nil
}

// List implements agent.Runtime.
func (h *Host) List(ctx context.Context) ([]agent.ContainerState, error) {
	if err := h.before(ctx, "List", ""); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	out := make([]agent.ContainerState, 0, len(h.containers))
	for _, c := range h.containers {
		out = append(out, c.state)
	}
	return out, nil
}

// Container returns what Create was given.
func (h *Host) Container(t spec.TaskID) (agent.Container, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c := h.containers[t]; c != nil {
		return c.spec, true
	}
	return agent.Container{}, false
}

// State is the state of a task's process.
func (h *Host) State(t spec.TaskID) agent.ContainerState {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c := h.containers[t]; c != nil {
		return c.state
	}
	return agent.ContainerState{Task: t}
}

// Exec implements agent.Execer by way of OnExec.
func (h *Host) Exec(ctx context.Context, t spec.TaskID, e agent.Exec) (int, error) {
	if err := h.before(ctx, "Exec", t); err != nil {
		return 0, err
	}
	if h.State(t).State != agent.RunRunning {
		return 0, spec.Conflictf("container %s does not run", t)
	}
	if h.OnExec == nil {
		return 0, nil
	}
	output, code, err := h.OnExec(ctx, t, e.Args)
	if err != nil {
		return 0, err
	}
	if e.Stdout != nil {
		if _, err := io.WriteString(e.Stdout, output); err != nil {
			return 0, err
		}
	}
	return code, ctx.Err()
}
