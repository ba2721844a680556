package containerd

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/errdefs"
	"github.com/containerd/fifo"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"wherry.dev/agent"
	"wherry.dev/spec"
)

// Exec implements agent.Execer.
func (r *Runtime) Exec(ctx context.Context, t spec.TaskID, e agent.Exec) (exitCode int, err error) {
	if len(e.Args) == 0 || e.Args[0] == "" {
		return 0, spec.Invalidf("exec in task %s: no command", t)
	}
	code, err := r.exec(ctx, t, e)
	if err != nil {
		return code, fmt.Errorf("exec in task %s: %w", t, err)
	}
	return code, nil
}

func (r *Runtime) exec(ctx context.Context, t spec.TaskID, e agent.Exec) (int, error) {
	proc, err := r.execProcess(ctx, t, e)
	if err != nil {
		return 0, err
	}
	encoded, err := typeurl.MarshalAnyToProto(proc)
	if err != nil {
		return 0, fmt.Errorf("encode process: %w", err)
	}
	id := "x" + r.token + rand.Text()[:16]
	streams, err := openStreams(ctx, r.dir("exec", id), e)
	if err != nil {
		return 0, err
	}
	defer streams.close()

	sctx, cancel := context.WithTimeout(ctx, createTimeout)
	defer cancel()
	_, err = r.tasks().Exec(sctx, &tasksapi.ExecProcessRequest{
		ContainerID: string(t), ExecID: id, Spec: encoded, Terminal: e.TTY,
		Stdin: streams.stdin, Stdout: streams.stdout, Stderr: streams.stderr,
	})
	if err != nil {
		return 0, execError(err)
	}
	x := execution{r: r, task: string(t), id: id}
	x.delete = sync.OnceFunc(x.remove)
	defer x.delete()
	if _, err := r.tasks().Start(sctx, &tasksapi.StartRequest{ContainerID: string(t), ExecID: id}); err != nil {
		return 0, execError(err)
	}
	return x.wait(ctx, streams, e.Resize)
}

// execProcess is the container's process with what e changes about it.
func (r *Runtime) execProcess(ctx context.Context, t spec.TaskID, e agent.Exec) (*specs.Process, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	c, err := r.client.ContainerService().Get(ctx, string(t))
	if err != nil {
		if isNotFound(err) {
			return nil, spec.Conflictf("the container does not run")
		}
		return nil, classify(err)
	}
	var s specs.Spec
	if err := typeurl.UnmarshalTo(c.Spec, &s); err != nil || s.Process == nil {
		return nil, fmt.Errorf("decode spec of container: %w", err)
	}
	p := s.Process
	p.Terminal, p.Args = e.TTY, withEnv(p.Args, e.Args)
	if e.TTY && !slices.ContainsFunc(p.Env, func(v string) bool { return strings.HasPrefix(v, "TERM=") }) {
		p.Env = append(p.Env, "TERM=xterm")
	}
	for _, v := range e.Env {
		name, _, _ := strings.Cut(v, "=")
		p.Env = slices.DeleteFunc(p.Env, func(old string) bool { return strings.HasPrefix(old, name+"=") })
		p.Env = append(p.Env, v)
	}
	if e.Dir != "" {
		if p.Cwd, err = workingDir(e.Dir, ""); err != nil {
			return nil, err
		}
	}
	if e.User != "" {
		passwd, group := r.databases(t)
		if p.User, err = resolveUser(e.User, nil, passwd, group); err != nil {
			return nil, err
		}
	}
	if e.Privileged {
		p.Capabilities, p.NoNewPrivileges = capSets(allCaps, nodeCapabilities()), false
	}
	return p, nil
}

// databases reads the user databases of a running container as it sees them;
// what cannot be read is empty, and names are then not found.
func (r *Runtime) databases(t spec.TaskID) (passwd, group []byte) {
	run, ok := readRun(r.records(), string(t))
	if !ok || !run.alive() {
		return nil, nil
	}
	root, err := os.OpenRoot(fmt.Sprintf("/proc/%d/root", run.PID))
	if err != nil {
		return nil, nil
	}
	defer root.Close()
	passwd, _ = readDatabase(root, "etc/passwd")
	group, _ = readDatabase(root, "etc/group")
	return passwd, group
}

// execError classifies what stood in the way of a further process.
func execError(err error) error {
	msg := errText(err)
	n := native(err)
	switch {
	case errdefs.IsNotFound(n), errdefs.IsFailedPrecondition(n), strings.Contains(msg, "cannot exec in a stopped"), strings.Contains(msg, "container not running"), strings.Contains(msg, "cannot exec in a"):
		return spec.Conflictf("the container does not run")
	}
	return startError(err)
}

// execution is one further process in a container.
type execution struct {
	r        *Runtime
	task, id string
	delete   func() // once
}

// wait returns when the process has ended and its output was copied.
func (x execution) wait(ctx context.Context, s *streams, resize <-chan agent.WindowSize) (int, error) {
	type result struct {
		code int
		err  error
	}
	ended := make(chan result, 1)
	wctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	go func() {
		for {
			resp, err := x.r.tasks().Wait(wctx, &tasksapi.WaitRequest{ContainerID: x.task, ExecID: x.id})
			if err != nil && errdefs.IsUnavailable(native(err)) && wctx.Err() == nil {
				continue // containerd was restarted, the process goes on
			}
			ended <- result{int(resp.GetExitStatus()), err}
			return
		}
	}()
	inputEnd := s.inputEnd
	for {
		select {
		case w, ok := <-resize:
			if !ok {
				resize = nil
				continue
			}
			_, _ = x.r.tasks().ResizePty(ctx, &tasksapi.ResizePtyRequest{ContainerID: x.task, ExecID: x.id, Width: uint32(w.Width), Height: uint32(w.Height)})
		case <-inputEnd:
			// The shim holds an end of the pipe, too: the process sees the end
			// of its input when both are closed.
			inputEnd = nil
			_, _ = x.r.tasks().CloseIO(ctx, &tasksapi.CloseIORequest{ContainerID: x.task, ExecID: x.id, Stdin: true})
		case res := <-ended:
			if res.err != nil {
				return 0, classify(res.err)
			}
			// Returns when the shim has copied the output into our pipes.
			x.delete()
			s.drain()
			return res.code, nil
		case <-ctx.Done():
			x.kill()
			select {
			case <-ended:
			case <-time.After(killTimeout):
			}
			return 0, ctx.Err()
		}
	}
}

func (x execution) kill() {
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	_, _ = x.r.tasks().Kill(ctx, &tasksapi.KillRequest{ContainerID: x.task, ExecID: x.id, Signal: uint32(syscall.SIGKILL)})
}

func (x execution) remove() {
	ctx, cancel := context.WithTimeout(context.Background(), createTimeout)
	defer cancel()
	if _, err := x.r.tasks().DeleteProcess(ctx, &tasksapi.DeleteProcessRequest{ContainerID: x.task, ExecID: x.id}); err != nil && !isNotFound(err) {
		x.r.c.Logger.Debug("delete process of exec", "task", x.task, "err", err)
	}
}

// streams connect a process to readers and writers over FIFOs in a folder.
type streams struct {
	dir                   string
	stdin, stdout, stderr string // paths
	outputs               []*os.File
	copying               sync.WaitGroup
	input                 io.WriteCloser
	// inputEnd is closed when all input was handed over; nil without input.
	inputEnd chan struct{}
}

func openStreams(ctx context.Context, dir string, e agent.Exec) (_ *streams, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make pipes: %w", err)
	}
	s := &streams{dir: dir}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if e.Stdin != nil {
		s.stdin, s.inputEnd = filepath.Join(dir, "stdin"), make(chan struct{})
		// Opens in the background, when the shim has opened its end.
		s.input, err = fifo.OpenFifo(ctx, s.stdin, unix.O_WRONLY|unix.O_CREAT|unix.O_NONBLOCK, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open pipe: %w", err)
		}
		go func() {
			_, _ = io.Copy(s.input, e.Stdin)
			_ = s.input.Close()
			close(s.inputEnd)
		}()
	}
	for _, out := range []struct {
		path *string
		name string
		w    io.Writer
	}{{&s.stdout, "stdout", e.Stdout}, {&s.stderr, "stderr", e.Stderr}} {
		if e.TTY && out.name == "stderr" {
			continue
		}
		if out.w == nil {
			*out.path = os.DevNull
			continue
		}
		*out.path = filepath.Join(dir, out.name)
		f, err := openOutput(*out.path)
		if err != nil {
			return nil, err
		}
		s.outputs = append(s.outputs, f)
		s.copying.Go(func() { copyOutput(out.w, f) })
	}
	return s, nil
}

// openOutput makes a FIFO and opens both of its ends, so that opening does not
// wait and reading does not end before drain says so.
func openOutput(path string) (*os.File, error) {
	if err := makeFIFO(path); err != nil {
		return nil, err
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open pipe %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// copyOutput copies until drain sets a deadline, and then what is left.
func copyOutput(w io.Writer, f *os.File) {
	buf := make([]byte, 32<<10)
	failed := false
	write := func(b []byte) {
		if failed {
			return // but go on reading: the process must not block
		}
		_, err := w.Write(b)
		failed = err != nil
	}
	for {
		n, err := f.Read(buf)
		write(buf[:n])
		if err != nil {
			break
		}
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		for {
			n, err := unix.Read(int(fd), buf)
			if n <= 0 || err != nil {
				return
			}
			write(buf[:n])
		}
	})
}

// drain returns when all output is copied that is in the pipes.
func (s *streams) drain() {
	for _, f := range s.outputs {
		_ = f.SetReadDeadline(time.Unix(1, 0))
	}
	s.copying.Wait()
}

// close gives the streams up. A read of the input that is under way may
// outlast it; what it returns is dropped.
func (s *streams) close() {
	s.drain()
	for _, f := range s.outputs {
		_ = f.Close()
	}
	if s.input != nil {
		_ = s.input.Close()
	}
	_ = os.RemoveAll(s.dir)
}
