package keeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

// Files of the run folder.
const (
	sockName  = "keeper.sock" // control
	lockName  = "keeper.lock" // held by the one keeper of the folder
	pidName   = "keeper.pid"  // process
	stateName = "keeper.json" // what the keeper was told last
	logName   = "keeper.log"  // its own output
)

// maxOwnLog is the size at which the keeper's own output is begun anew, at its
// start.
const maxOwnLog = 1 << 20

// process names one process for good: a PID may be used again, together with
// the start time it may not.
type process struct {
	PID int
	// Start is in clock ticks since boot.
	Start uint64
}

// processOf describes a running process.
func processOf(pid int) (process, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, err
	}
	// The second field is in parentheses and may hold anything.
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 20 {
		return process{}, fmt.Errorf("read /proc/%d/stat: %d fields", pid, len(f))
	}
	if f[0] == "Z" || f[0] == "X" {
		return process{}, fmt.Errorf("process %d: %w", pid, fs.ErrNotExist)
	}
	start, err := strconv.ParseUint(f[19], 10, 64)
	return process{pid, start}, err
}

// writePID and readPID keep the keeper's process in the run folder.
func writePID(dir string) error {
	p, err := processOf(os.Getpid())
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, pidName), fmt.Appendf(nil, "%d %d\n", p.PID, p.Start))
}

func readPID(dir string) (p process, err error) {
	b, err := os.ReadFile(filepath.Join(dir, pidName))
	if err != nil {
		return p, err
	}
	if _, err := fmt.Sscanf(string(b), "%d %d", &p.PID, &p.Start); err != nil || p.PID <= 1 {
		return process{}, fmt.Errorf("read %s: no process in %q", filepath.Join(dir, pidName), b)
	}
	return p, nil
}

// writeFile replaces a file as a whole; readers see the old or the new one.
func writeFile(path string, b []byte) error {
	if err := os.WriteFile(path+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// kill ends the process at once and returns when it is gone. A process that is
// gone already is no error; another one under its PID is never touched.
func (p process) kill(ctx context.Context) error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(fd)
	// The descriptor is bound to a process now: look which one it is.
	if now, err := processOf(p.PID); err != nil || now != p {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return os.NewSyscallError("pidfd_send_signal", err)
	}
	return waitGone(ctx, fd)
}

// wait returns when the process is gone; no process is.
func (p process) wait(ctx context.Context) error {
	if p == (process{}) {
		return nil
	}
	fd, err := unix.PidfdOpen(p.PID, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return os.NewSyscallError("pidfd_open", err)
	}
	defer unix.Close(fd)
	if now, err := processOf(p.PID); err != nil || now != p {
		return nil
	}
	return waitGone(ctx, fd)
}

// waitGone waits until the process of a pidfd has ended.
func waitGone(ctx context.Context, fd int) error {
	for ctx.Err() == nil {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 50) // wakes to look at ctx
		if n > 0 {
			return nil
		}
		if err != nil && err != unix.EINTR {
			return os.NewSyscallError("poll", err)
		}
	}
	return fmt.Errorf("wait for the end of the keeper: %w", context.Cause(ctx))
}

// spawn starts a keeper process in a session of its own and returns when it
// serves, or with the reason why it does not.
func spawn(ctx context.Context, c Config) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	defer w.Close()
	out, err := openOwnLog(filepath.Join(c.RunDir, logName))
	if err != nil {
		return err
	}
	defer out.Close()
	binary := c.Binary
	if binary == "" {
		binary = "/proc/self/exe"
	}
	cmd := exec.Command(binary, "keeper", "--run-dir", c.RunDir, "--version", c.Version, "--ready-fd", "3")
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = out, out
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	// It outlives every Run of this process; the goroutine is there so that it
	// leaves no zombie while this process lives.
	go cmd.Wait()
	w.Close()

	stop := context.AfterFunc(ctx, func() { r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	said, err := io.ReadAll(io.LimitReader(r, 4096))
	switch text := strings.TrimSpace(string(said)); {
	case text == readyText:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("wait for process %d to serve: %w", cmd.Process.Pid, context.Cause(ctx))
	case text != "":
		return errors.New(text)
	case err != nil:
		return err
	}
	return spec.Unavailablef("process %d ended at once; see %s", cmd.Process.Pid, out.Name())
}

// readyText is what a keeper writes to its ready descriptor when it serves.
const readyText = "ok"

func openOwnLog(path string) (*os.File, error) {
	flags := os.O_WRONLY | os.O_APPEND | os.O_CREATE
	if fi, err := os.Stat(path); err == nil && fi.Size() > maxOwnLog {
		flags |= os.O_TRUNC
	}
	return os.OpenFile(path, flags, 0o600)
}
