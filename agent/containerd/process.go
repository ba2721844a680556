package containerd

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is a handle of a running process, which need not be our child. It
// never means another process, even when the PID is used again.
type process struct {
	pid   int
	birth uint64
	file  *os.File // a pidfd
	// reap collects the status of a process that is our child; else nil.
	reap func()
}

// processes yields the PID and the command line of each process, whose
// arguments end with a zero byte each.
func processes() iter.Seq2[int, string] {
	return func(yield func(int, string) bool) {
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return
		}
		for _, e := range entries {
			pid, err := strconv.Atoi(e.Name())
			if err != nil {
				continue
			}
			line, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
			if err == nil && !yield(pid, string(line)) {
				return
			}
		}
	}
}

// openProcess returns nil when the process that had pid and was born then is gone.
func openProcess(pid int, birth uint64) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	p := &process{pid: pid, birth: birth, file: os.NewFile(uintptr(fd), "pidfd")}
	// Compared after the descriptor was opened, so both are of one process.
	if now, state, _, ok := procStat(pid); !ok || now != birth || state == 'Z' {
		return nil, p.close()
	}
	return p, nil
}

// childProcess takes over a child that was just started.
func childProcess(cmd *exec.Cmd) (*process, error) {
	birth, _, _, ok := procStat(cmd.Process.Pid)
	if !ok {
		return nil, fmt.Errorf("process %d is gone", cmd.Process.Pid)
	}
	fd, err := unix.PidfdOpen(cmd.Process.Pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", cmd.Process.Pid, err)
	}
	p := &process{pid: cmd.Process.Pid, birth: birth, file: os.NewFile(uintptr(fd), "pidfd")}
	p.reap = sync.OnceFunc(func() { _ = cmd.Wait() })
	return p, nil
}

func (p *process) close() error { return p.file.Close() }

// ended reports whether the process has ended.
func (p *process) ended() bool {
	raw, err := p.file.SyscallConn()
	if err != nil {
		return true
	}
	ended := false
	if err := raw.Control(func(fd uintptr) { ended = readable(fd) }); err != nil {
		return true
	}
	return ended
}

// wait returns nil when the process has ended, or the error of ctx.
func (p *process) wait(ctx context.Context) error {
	raw, err := p.file.SyscallConn()
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		if err := p.file.SetReadDeadline(time.Time{}); err != nil {
			return err
		}
		stop := context.AfterFunc(ctx, func() { _ = p.file.SetReadDeadline(time.Unix(1, 0)) })
		err := raw.Read(readable)
		stop()
		if err == nil {
			if p.reap != nil {
				p.reap()
			}
			return nil
		}
		// An earlier waiter's deadline may still arrive after it has left.
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
	return ctx.Err()
}

// stop asks the process to end, and kills it when it does not within d.
func (p *process) stop(d time.Duration) error {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		if err := p.signal(sig); err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(context.Background(), d)
		err := p.wait(ctx)
		cancel()
		if err == nil {
			return nil
		}
	}
	return fmt.Errorf("process %d does not end", p.pid)
}

// signal sends a signal; a process that has ended is no error.
func (p *process) signal(sig syscall.Signal) error {
	raw, err := p.file.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := raw.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return err
	}
	if serr != nil && !errors.Is(serr, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", p.pid, serr)
	}
	return nil
}

// readable is true for a pidfd whose process has ended.
func readable(fd uintptr) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 1
}
