package containerd

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The flags of the init: with variables of a file, and in the place of itself.
const (
	flagEnv  = "--env="
	flagExec = "--exec"
)

// initArgs begin the command of a container that needs the init: one that asked
// for it, and one that has variables which must not be in its spec.
func initArgs(init, env bool) []string {
	args := []string{initTarget}
	if env {
		args = append(args, flagEnv+envTarget)
	}
	if !init {
		args = append(args, flagExec)
	}
	return append(args, "--")
}

// withEnv is the command of a further process in a container whose first one
// was started with args: it has the same variables.
func withEnv(args, command []string) []string {
	if len(args) > 1 && args[0] == initTarget && strings.HasPrefix(args[1], flagEnv) {
		return slices.Concat(initArgs(false, true), command)
	}
	return command
}

// runInit is PID 1 of a container that asked for an init: it runs one command,
// passes signals on to it, reaps what is orphaned to it, and ends with the
// command's status. args are flags and the command, after an optional "--".
func runInit(args []string) int {
	// A container may have a tight limit of memory and of processes.
	runtime.GOMAXPROCS(1)
	debug.SetGCPercent(20)
	instead := false
	for len(args) > 0 && strings.HasPrefix(args[0], "--") {
		flag := args[0]
		args = args[1:]
		if flag == "--" {
			break
		}
		if file, ok := strings.CutPrefix(flag, flagEnv); ok {
			if err := loadEnv(file); err != nil {
				fmt.Fprintf(os.Stderr, "init: %v\n", err)
				return 126
			}
		}
		instead = instead || flag == flagExec
	}
	if len(args) == 0 {
		fmt.Fprintln(os.Stderr, "init: no command")
		return 2
	}
	if instead {
		return execInstead(args)
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

// loadEnv takes the variables of a file, each ended by a zero byte, into the
// environment. Its errors say nothing of them.
func loadEnv(file string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read variables: %w", err)
	}
	for line := range strings.SplitSeq(strings.TrimSuffix(string(b), "\x00"), "\x00") {
		name, value, _ := strings.Cut(line, "=")
		if os.Setenv(name, value) != nil {
			return fmt.Errorf("the variable %s cannot be set", name)
		}
	}
	return nil
}

// execInstead lets the command take the place of this process.
func execInstead(args []string) int {
	path, err := exec.LookPath(args[0])
	if err == nil {
		err = syscall.Exec(path, args, os.Environ())
	}
	fmt.Fprintf(os.Stderr, "init: start %s: %v\n", args[0], err)
	return startFailure(err)
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
