package agent

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

// readNodeInfo asks the kernel what this node is.
func readNodeInfo(version string) (spec.NodeInfo, error) {
	i := spec.NodeInfo{OS: runtime.GOOS, Arch: runtime.GOARCH, Version: version, NanoCPUs: int64(runtime.NumCPU()) * 1e9}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return i, fmt.Errorf("ask the kernel for its name: %w", err)
	}
	i.Kernel = unix.ByteSliceToString(u.Release[:])
	var s unix.Sysinfo_t
	if err := unix.Sysinfo(&s); err != nil {
		return i, fmt.Errorf("ask the kernel for its memory: %w", err)
	}
	i.Memory = int64(uint64(s.Totalram) * uint64(s.Unit))
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return i, fmt.Errorf("read boot ID: %w", err)
	}
	i.Boot = strings.TrimSpace(string(boot))
	return i, nil
}

// The C library keeps the first two real-time signals for itself.
const rtMin, rtMax = 34, 64

// parseSignal reads a signal as Docker has it: "SIGTERM", "TERM", "15",
// "SIGRTMIN+3".
func parseSignal(s string) (int, error) {
	name := strings.ToUpper(strings.TrimSpace(s))
	if n, err := strconv.Atoi(name); err == nil {
		if n < 1 || n > rtMax {
			return 0, spec.Invalidf("stop signal %s is not in 1 to %d", s, rtMax)
		}
		return n, nil
	}
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if n := unix.SignalNum(name); n != 0 {
		return int(n), nil
	}
	for prefix, base := range map[string]int{"SIGRTMIN": rtMin, "SIGRTMAX": rtMax} {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		n, err := strconv.Atoi(rest)
		if rest == "" {
			n, err = 0, nil
		}
		if err == nil && base+n >= rtMin && base+n <= rtMax {
			return base + n, nil
		}
	}
	return 0, spec.Invalidf("stop signal %q is not known", s)
}

// stopSignal is the template's, else the image's, else SIGTERM. A signal that
// an image has wrong does not keep a task from being stopped.
func stopSignal(tmpl *spec.Template, image *ImageConfig) int {
	for _, s := range []string{tmpl.StopSignal, image.StopSignal} {
		if n, err := parseSignal(s); s != "" && err == nil {
			return n
		}
	}
	return int(syscall.SIGTERM)
}

const sigKill = int(syscall.SIGKILL)
