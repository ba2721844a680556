package runtimetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"wherry.dev/agent"
	"wherry.dev/spec"
)

// Subject is an implementation under test.
type Subject struct {
	Runtime agent.Runtime
	Execer  agent.Execer
	// Image has /bin/sh with sleep, cat and wc, as busybox does, and is present.
	Image agent.ImageConfig
	// Adjust, when not nil, completes a container before it is created, for
	// example with a namespace of the test.
	Adjust func(*agent.Container)
	// Prefix begins the IDs of the tasks; default "9-".
	Prefix string
}

// The scripts of the suite; an implementation in memory may know just these.
const (
	Forever    = "while :; do sleep 0.1; done"
	ExitOnTerm = "trap 'exit 7' TERM; while :; do sleep 0.1; done"
	Count      = "echo x >> /count; exit $(wc -l < /count)"
	Exit3      = "exit 3"
)

// The commands of the suite that are run inside a container.
var (
	ExecOutput = []string{"/bin/sh", "-c", "echo out; echo err >&2; exit 5"}
	ExecInput  = []string{"/bin/cat"}
	ExecLong   = []string{"/bin/sleep", "1000"}
	ExecNone   = []string{"/no/such/command"}
)

// patience is how long a process may take to show what it does.
const patience = 30 * time.Second

// Run runs the suite; newSubject is called once per test and cleans up with t.
func Run(t *testing.T, newSubject func(t *testing.T) Subject) {
	tests := []struct {
		name string
		run  func(*suite)
	}{
		{"create", (*suite).create},
		{"start", (*suite).start},
		{"exit code", (*suite).exitCode},
		{"signal", (*suite).signal},
		{"kill all", (*suite).killAll},
		{"restart keeps the file system", (*suite).restart},
		{"remove", (*suite).remove},
		{"missing command", (*suite).missingCommand},
		{"tasks apart", (*suite).apart},
		{"exec", (*suite).exec},
		{"exec ends with its context", (*suite).execCancel},
		{"exec without process", (*suite).execStopped},
	}
	for i, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := &suite{T: t, Subject: newSubject(t), base: i * 10}
			if s.Prefix == "" {
				s.Prefix = "9-"
			}
			tt.run(s)
		})
	}
}

type suite struct {
	*testing.T
	Subject
	base int
}

// container creates a container that runs script; it is removed at the end.
func (s *suite) container(n int, args ...string) spec.TaskID {
	s.Helper()
	id := spec.TaskID(fmt.Sprintf("%s%d", s.Prefix, 9000+s.base+n))
	c := agent.Container{
		Task: id, Name: fmt.Sprintf("suite.test.%d", n), Stack: "suite", Service: "test", Hostname: "test",
		Template: spec.Template{Image: s.Image.Ref, Entrypoint: args}, Image: s.Image,
	}
	if s.Adjust != nil {
		s.Adjust(&c)
	}
	s.Cleanup(func() {
		if err := s.Runtime.Remove(context.Background(), id); err != nil {
			s.Errorf("remove %s: %v", id, err)
		}
	})
	s.must("create", s.Runtime.Create(s.Context(), c))
	return id
}

func (s *suite) script(n int, script string) spec.TaskID {
	s.Helper()
	return s.container(n, "/bin/sh", "-c", script)
}

func (s *suite) must(what string, err error) {
	s.Helper()
	if err != nil {
		s.Fatalf("%s: %v", what, err)
	}
}

// begin starts the process.
func (s *suite) begin(id spec.TaskID) int {
	s.Helper()
	pid, err := s.Runtime.Start(s.Context(), id)
	s.must("start", err)
	if pid <= 0 {
		s.Fatalf("start: PID %d", pid)
	}
	return pid
}

func (s *suite) state(id spec.TaskID) agent.ContainerState {
	s.Helper()
	list, err := s.Runtime.List(s.Context())
	s.must("list", err)
	var out agent.ContainerState
	for _, c := range list {
		if c.Task == id {
			if out.Task != "" {
				s.Fatalf("list shows %s twice", id)
			}
			out = c
		}
	}
	return out
}

// await waits until the process has the given state.
func (s *suite) await(id spec.TaskID, want agent.RunState) agent.ContainerState {
	s.Helper()
	for end := time.Now().Add(patience); ; {
		c := s.state(id)
		if c.State == want {
			return c
		}
		if time.Now().After(end) {
			s.Fatalf("task %s is %+v, want %q", id, c, want)
		}
		time.Sleep(20 * time.Millisecond) // between two looks at the condition
	}
}

func (s *suite) create() {
	id := s.script(1, Forever)
	if c := s.state(id); c.State != agent.RunCreated {
		s.Errorf("after create: %+v, want %q", c, agent.RunCreated)
	}
	c := agent.Container{Task: id, Template: spec.Template{Entrypoint: []string{"/bin/sh", "-c", Exit3}}, Image: s.Image}
	if s.Adjust != nil {
		s.Adjust(&c)
	}
	s.must("create again", s.Runtime.Create(s.Context(), c))
	s.begin(id)
	if c := s.state(id); c.State != agent.RunRunning {
		s.Errorf("the second create has changed the container: %+v", c)
	}
}

func (s *suite) start() {
	id := s.script(1, Forever)
	pid := s.begin(id)
	c := s.state(id)
	if c.State != agent.RunRunning || c.PID != pid {
		s.Errorf("after start: %+v, want running with PID %d", c, pid)
	}
}

func (s *suite) exitCode() {
	id := s.script(1, Exit3)
	before := time.Now().Add(-time.Second)
	s.begin(id)
	c := s.await(id, agent.RunStopped)
	if c.ExitCode != 3 || c.OOM {
		s.Errorf("end: %+v, want exit code 3", c)
	}
	if c.Ended.Before(before) || c.Ended.After(time.Now().Add(time.Second)) {
		s.Errorf("ended at %s, want a time between start and now", c.Ended)
	}
	if again := s.state(id); again != c && !again.Ended.Equal(c.Ended) {
		s.Errorf("the end is told differently the second time: %+v, then %+v", c, again)
	}
}

func (s *suite) signal() {
	id := s.script(1, ExitOnTerm)
	s.must("kill without process", s.Runtime.Kill(s.Context(), id, int(syscall.SIGTERM), false))
	s.begin(id)
	// The shell needs a moment to set its trap; a signal before has no effect
	// on the first process of a namespace.
	for end := time.Now().Add(patience); s.state(id).State == agent.RunRunning && time.Now().Before(end); {
		s.must("kill", s.Runtime.Kill(s.Context(), id, int(syscall.SIGTERM), false))
		time.Sleep(50 * time.Millisecond)
	}
	if c := s.await(id, agent.RunStopped); c.ExitCode != 7 {
		s.Errorf("end: %+v, want exit code 7 from the trap", c)
	}
	s.must("kill after the end", s.Runtime.Kill(s.Context(), id, int(syscall.SIGTERM), false))
}

func (s *suite) killAll() {
	id := s.script(1, Forever)
	s.begin(id)
	s.must("kill", s.Runtime.Kill(s.Context(), id, int(syscall.SIGKILL), true))
	if c := s.await(id, agent.RunStopped); c.ExitCode != 128+int(syscall.SIGKILL) {
		s.Errorf("end: %+v, want exit code 137", c)
	}
}

func (s *suite) restart() {
	id := s.script(1, Count)
	var last time.Time
	for want := 1; want <= 3; want++ {
		s.begin(id)
		var c agent.ContainerState
		for end := time.Now().Add(patience); ; {
			if c = s.await(id, agent.RunStopped); !c.Ended.Equal(last) || time.Now().After(end) {
				break
			}
		}
		if c.ExitCode != want {
			s.Fatalf("run %d: %+v, want exit code %d from the file that earlier runs wrote", want, c, want)
		}
		last = c.Ended
	}
}

func (s *suite) remove() {
	id := s.script(1, Forever)
	s.begin(id)
	s.must("remove a running container", s.Runtime.Remove(s.Context(), id))
	if c := s.state(id); c.Task != "" {
		s.Errorf("after remove: %+v", c)
	}
	s.must("remove again", s.Runtime.Remove(s.Context(), id))
	s.must("remove what never was", s.Runtime.Remove(s.Context(), id+"0"))
}

func (s *suite) missingCommand() {
	id := s.container(1, "/no/such/command")
	if _, err := s.Runtime.Start(s.Context(), id); !errors.Is(err, spec.ErrInvalid) {
		s.Errorf("start: %v, want an error of class invalid", err)
	}
	if c := s.state(id); c.State == agent.RunRunning || c.Task == "" {
		s.Errorf("after a start that failed: %+v, want a container without process", c)
	}
	if _, err := s.Runtime.Start(s.Context(), id); !errors.Is(err, spec.ErrInvalid) {
		s.Errorf("start again: %v, want an error of class invalid", err)
	}
}

func (s *suite) apart() {
	one, two := s.script(1, Forever), s.script(2, Forever)
	pid := s.begin(one)
	s.begin(two)
	s.must("kill", s.Runtime.Kill(s.Context(), two, int(syscall.SIGKILL), true))
	s.await(two, agent.RunStopped)
	s.must("remove", s.Runtime.Remove(s.Context(), two))
	if c := s.state(one); c.State != agent.RunRunning || c.PID != pid {
		s.Errorf("the other task: %+v, want running with PID %d", c, pid)
	}
}

func (s *suite) exec() {
	id := s.script(1, Forever)
	s.begin(id)
	var out, err bytes.Buffer
	code, e := s.Execer.Exec(s.Context(), id, agent.Exec{Args: ExecOutput, Stdout: &out, Stderr: &err})
	if e != nil || code != 5 || out.String() != "out\n" || err.String() != "err\n" {
		s.Errorf("exec: %d, %q, %q, %v", code, out.String(), err.String(), e)
	}
	out.Reset()
	code, e = s.Execer.Exec(s.Context(), id, agent.Exec{Args: ExecInput, Stdin: strings.NewReader("in\n"), Stdout: &out})
	if e != nil || code != 0 || out.String() != "in\n" {
		s.Errorf("exec with input: %d, %q, %v", code, out.String(), e)
	}
	if _, e = s.Execer.Exec(s.Context(), id, agent.Exec{Args: ExecNone}); !errors.Is(e, spec.ErrInvalid) {
		s.Errorf("exec of a missing command: %v, want an error of class invalid", e)
	}
	if c := s.state(id); c.State != agent.RunRunning {
		s.Errorf("exec has changed the container: %+v", c)
	}
}

func (s *suite) execCancel() {
	id := s.script(1, Forever)
	s.begin(id)
	ctx, cancel := context.WithTimeout(s.Context(), 500*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := s.Execer.Exec(ctx, id, agent.Exec{Args: ExecLong}); err == nil {
		s.Error("exec whose context has ended: no error")
	}
	if d := time.Since(start); d > patience {
		s.Errorf("exec returned %s after its context", d)
	}
}

func (s *suite) execStopped() {
	id := s.script(1, Exit3)
	if _, err := s.Execer.Exec(s.Context(), id, agent.Exec{Args: ExecOutput}); !errors.Is(err, spec.ErrConflict) {
		s.Errorf("exec before start: %v, want an error of class conflict", err)
	}
	s.begin(id)
	s.await(id, agent.RunStopped)
	if _, err := s.Execer.Exec(s.Context(), id, agent.Exec{Args: ExecOutput}); !errors.Is(err, spec.ErrConflict) {
		s.Errorf("exec after the end: %v, want an error of class conflict", err)
	}
}
