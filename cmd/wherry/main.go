package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/sirupsen/logrus"

	"wherry.dev/api"
	"wherry.dev/spec"
)

// version is set by the linker.
var version = "dev"

// Exit codes; they are part of the interface.
const (
	exitFailed      = 1
	exitUsage       = 2
	exitInvalid     = 3
	exitTimeout     = 4
	exitUnreachable = 5
	exitInterrupted = 130
)

func main() {
	if code, ok := role(os.Args); ok {
		os.Exit(code)
	}
	// compose-go warns through logrus; what there is to say of a file, our own
	// findings say.
	logrus.SetOutput(io.Discard)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the program at once
	os.Exit(run(ctx, os.Args[1:]))
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, args []string) int {
	app := &app{in: os.Stdin, out: os.Stdout, err: os.Stderr, env: os.LookupEnv}
	root := app.root()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	var e *exitError
	if !errors.As(err, &e) {
		e = &exitError{code: codeOf(err, app.parsed), err: err}
	}
	if e.err != nil {
		fmt.Fprintf(os.Stderr, "wherry: %v\n", e.err)
	}
	return e.code
}

// exitError ends the program with a code of its own; err may be nil when all
// has been said.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

func exitWith(code int, format string, args ...any) error {
	return &exitError{code: code, err: fmt.Errorf(format, args...)}
}

// codeOf maps an error to its exit code. An error from before the command
// itself ran is one of usage.
func codeOf(err error, parsed bool) int {
	switch {
	case !parsed:
		return exitUsage
	case errors.Is(err, api.ErrUnreachable), errors.Is(err, api.ErrNotManager):
		return exitUnreachable
	case errors.Is(err, spec.ErrInvalid):
		return exitInvalid
	case errors.Is(err, context.DeadlineExceeded):
		return exitTimeout
	case errors.Is(err, context.Canceled):
		return exitInterrupted
	}
	return exitFailed
}
