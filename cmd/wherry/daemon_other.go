//go:build !linux

package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"wherry.dev/api"
)

// role: the client has no helper processes.
func role([]string) (code int, ok bool) { return 0, false }

// addDaemon adds nothing: hosts of a cluster run Linux.
func (a *app) addDaemon(*cobra.Command) {}

func restore(string, io.Reader, string) error {
	return exitWith(exitFailed, "a data folder is made on the Linux host that is to use it; run this command there")
}

// lookAtHost looks at nothing: hosts of a cluster run Linux.
func lookAtHost(context.Context, string, string) []api.Check { return nil }
