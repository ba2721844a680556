package main

import (
	"context"
	"errors"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"wherry.dev/api"
	"wherry.dev/spec"
)

// Exit codes of exec for errors of its own, as docker has them.
const (
	exitExecFailed   = 125
	exitExecNotRun   = 126
	exitExecNotFound = 127
)

func (a *app) execCmd() *cobra.Command {
	var r api.ExecRequest
	c := &cobra.Command{
		Use: "exec TASK|STACK/SERVICE [-it] -- COMMAND [ARG…]", Short: "Run a command in a running container", Args: someArgs("a task or STACK/SERVICE, and a command", 2, 0),
	}
	f := c.Flags()
	f.SetInterspersed(false) // what follows the task belongs to the command
	f.BoolVarP(&r.Stdin, "interactive", "i", false, "pass standard input on")
	f.BoolVarP(&r.TTY, "tty", "t", false, "give the command a terminal")
	f.StringVarP(&r.User, "user", "u", "", "user[:group] to run as")
	f.StringVarP(&r.Dir, "workdir", "w", "", "folder to run in")
	f.StringArrayVarP(&r.Env, "env", "e", nil, "NAME=VALUE to add to the environment")
	f.BoolVar(&r.Privileged, "privileged", false, "give the command all capabilities")
	c.RunE = func(c *cobra.Command, args []string) error {
		ref := args[0]
		rest := args[1:]
		// Flags may also stand between the task and the command.
		for len(rest) > 0 && strings.HasPrefix(rest[0], "-") {
			if rest[0] == "--" {
				rest = rest[1:]
				break
			}
			if err := f.Parse(rest[:1]); err != nil {
				return &exitError{exitUsage, err}
			}
			rest = rest[1:]
		}
		if r.Args = rest; len(r.Args) == 0 {
			return exitWith(exitUsage, "exec: no command given")
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		code, err := a.exec(c.Context(), cl, ref, r)
		switch {
		case err == nil && code == 0:
			return nil
		case err == nil:
			return &exitError{code: code}
		case c.Context().Err() != nil:
			return &exitError{code: exitInterrupted}
		case errors.Is(err, api.ErrUnreachable):
			return err
		case errors.Is(err, spec.ErrInvalid) && code == exitExecNotRun:
			return &exitError{exitExecNotRun, err}
		case errors.Is(err, spec.ErrInvalid):
			return &exitError{exitExecNotFound, err}
		}
		return &exitError{exitExecFailed, err}
	}
	return c
}

func (a *app) exec(ctx context.Context, cl *api.Client, ref string, r api.ExecRequest) (int, error) {
	streams := api.ExecIO{Stdout: a.out, Stderr: a.err}
	if r.Stdin {
		streams.Stdin = a.in
	}
	if r.TTY {
		if !term.IsTerminal(int(a.in.Fd())) {
			return 0, exitWith(exitUsage, "exec -t: standard input is no terminal")
		}
		fd := int(a.in.Fd())
		old, err := term.MakeRaw(fd)
		if err != nil {
			return 0, err
		}
		defer func() { _ = term.Restore(fd, old) }() // nothing can be done about a terminal that has gone
		w, h, err := term.GetSize(fd)
		if err == nil {
			r.Width, r.Height = uint16(w), uint16(h)
		}
		sizes, stop := windowSizes(fd)
		defer stop()
		streams.Resize = sizes
	}
	return cl.Exec(ctx, ref, r, streams)
}
