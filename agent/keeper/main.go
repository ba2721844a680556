package keeper

import (
	"context"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
)

const (
	// gcPercent trades a little processor for a small heap.
	gcPercent = 25
	// memoryLimit makes the collector work harder before a flood of queries or
	// a very large table grows the process further. It is not a hard limit.
	memoryLimit = 128 << 20
	// maxProcs is enough for more output than a disk takes.
	maxProcs = 4
	// maxFiles is how many descriptors the process may have, if that is granted.
	maxFiles = 1 << 17
	// oomScore makes the keeper one of the last that the kernel ends for want of
	// memory.
	oomScore = "-900"
)

// Main is the hidden role "keeper" of the program: args are those after the
// name of the role. It returns the exit code of the process, which it tunes to
// be small, and is meant to be the process's only work.
//
//	--run-dir DIR    folder of the control socket (required)
//	--version V      version of the program
//	--ready-fd N     descriptor that is told "ok" or an error, then closed
func Main(args []string) int { return mainWith(args, openInNamespace) }

func mainWith(args []string, open opener) int {
	flags := flag.NewFlagSet("keeper", flag.ContinueOnError)
	var c Config
	flags.StringVar(&c.RunDir, "run-dir", "", "folder of the control socket")
	flags.StringVar(&c.Version, "version", "", "version of the program")
	readyFD := flags.Int("ready-fd", -1, "descriptor that is told when the keeper serves")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if c.RunDir == "" || flags.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "keeper: --run-dir is required, and nothing but flags")
		return 2
	}
	tune()
	c.Logger = slog.New(slog.NewTextHandler(os.Stderr, nil))
	ready := io.WriteCloser(nopCloser{io.Discard})
	if *readyFD >= 0 {
		syscall.CloseOnExec(*readyFD)
		ready = os.NewFile(uintptr(*readyFD), "ready")
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	signal.Ignore(syscall.SIGHUP)
	say := sync.OnceFunc(func() {
		fmt.Fprintln(ready, readyText)
		ready.Close()
		debug.FreeOSMemory()
	})
	if err := run(ctx, c, open, say); err != nil {
		c.Logger.Error("keeper ends", "err", err)
		fmt.Fprintln(ready, strings.ReplaceAll(err.Error(), "\n", "; "))
		return 1
	}
	return 0
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// tune makes the process small and hard to kill.
func tune() {
	debug.SetGCPercent(gcPercent)
	debug.SetMemoryLimit(memoryLimit)
	// One processor is left for names when output comes in floods.
	runtime.GOMAXPROCS(min(maxProcs, max(2, runtime.NumCPU())))
	os.WriteFile("/proc/self/oom_score_adj", []byte(oomScore), 0) // needs a privilege that tests lack
	syscall.Umask(0o077)
	// Some ten descriptors per task, and one per query under way.
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) == nil && limit.Cur < maxFiles {
		syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: maxFiles, Max: max(maxFiles, limit.Max)})
	}
}
