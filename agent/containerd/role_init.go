package containerd

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"golang.org/x/sys/unix"
)

// runInit is PID 1 of a container that asked for an init: it runs one command,
// passes signals on to it, reaps what is orphaned to it, and ends with the
// command's status. args is the command, after an optional "--".
func runInit(args []string) int {
	// A container may have a tight limit of memory and of processes.
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(20)
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		fmt.Fprintln(os.Stderr, "init: no command")
		return 2
	}
	// Signals that arrive before the command runs wait in the channel.
	signals := make(chan os.Signal, 64)
	signal.Notify(signals)

	path, err := exec.LookPath(args[0])
	if err != nil {
		fmt.Fprintf(os.Stderr, "init: start %s: %v\n", args[0], err)
		return startFailure(err)
	}
	attr := &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{Setpgid: true}}
	if isTerminal(0) {
		attr.Sys.Foreground, attr.Sys.Ctty = true, 0
	}
	child, err := syscall.ForkExec(path, args, attr)
	if err != nil {
		fmt.Fprintf(os.Stderr, "init: start %s: %v\n", args[0], err)
		return startFailure(err)
	}
	for s := range signals {
		switch s {
		case syscall.SIGCHLD:
			if code, ended := reap(child); ended {
				return code
			}
		case syscall.SIGURG, syscall.SIGTTIN, syscall.SIGTTOU:
			// The Go runtime sends itself SIGURG; the others are meant for init alone.
		default:
			_ = syscall.Kill(child, s.(syscall.Signal))
		}
	}
	return 1
}

// reap collects all ended children; ended tells that child was among them.
func reap(child int) (code int, ended bool) {
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return code, ended
		}
		if pid == child {
			code, ended = ws.ExitStatus(), true
			if ws.Signaled() {
				code = 128 + int(ws.Signal())
			}
		}
	}
}

// startFailure is the status of a command that could not be run, as shells have it.
func startFailure(err error) int {
	if errors.Is(err, os.ErrPermission) {
		return 126
	}
	return 127
}

func isTerminal(fd int) bool {
	_, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	return err == nil
}
