package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"wherry.dev/api"
	"wherry.dev/spec"
)

func (a *app) doctorCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "doctor", Short: "Look for what is wrong with this node", Args: noArgs("it looks at the node that --host names, else at this one"),
		Long: "Look for what is wrong with this node, or will be: kernel, runtime, disk, clock, ports, firewalls, names, certificate, managers.\n" +
			"The daemon looks, on managers and workers alike. Where none runs, the host alone is looked at, for which root is needed: so a host\n" +
			"can be tried before it joins. Nothing is changed. The exit code is 1 when a check fails; a warning is none.",
		Example: "  wherry doctor\n  wherry doctor --format json",
	}
	dataDir := c.Flags().String("data-dir", defaultDataDir, "data folder to look at while no daemon runs")
	a.formatFlag(c, "table")
	c.RunE = func(c *cobra.Command, _ []string) error {
		checks, err := a.examine(c.Context(), *dataDir)
		if err != nil {
			return err
		}
		if a.format == "table" {
			err = a.showChecks(checks)
		} else {
			err = show(a, checks, nil, nil)
		}
		failed := slices.ContainsFunc(checks, func(c api.Check) bool { return c.Status == api.CheckFail })
		if err == nil && failed {
			return &exitError{code: exitFailed}
		}
		return err
	}
	return c
}

// examine asks the daemon, or looks at the host itself when none runs here.
func (a *app) examine(ctx context.Context, dataDir string) ([]api.Check, error) {
	cl, err := a.client()
	if err != nil {
		return nil, err
	}
	got, err := cl.Doctor(ctx)
	socket, here := strings.CutPrefix(a.host, "unix://")
	if err == nil || !here || !errors.Is(err, api.ErrUnreachable) && !errors.Is(err, spec.ErrNotFound) {
		return got.Items, err
	}
	why := api.Check{Name: "daemon", Status: api.CheckWarn, Where: socket, What: "no daemon answers, so only the host was looked at",
		Why: "nothing is started or repaired while it does not run; containers go on", Do: []string{"wherry daemon"}}
	if errors.Is(err, spec.ErrNotFound) {
		why.What, why.Why, why.Do = "the daemon is of a version without this command, so only the host was looked at", "it cannot say how it is", []string{"Start the daemon with this binary."}
	}
	checks := lookAtHost(ctx, dataDir, filepath.Dir(socket))
	if checks == nil {
		return nil, err
	}
	return append([]api.Check{why}, checks...), nil
}

// showChecks prints a table of all, and then what to do about those that are
// not well, the worst first.
func (a *app) showChecks(checks []api.Check) error {
	var rows [][]string
	for _, c := range checks {
		rows = append(rows, []string{c.Status, c.Name, c.Where, c.What})
	}
	if err := table(a.out, []string{"STATUS", "CHECK", "WHERE", "FOUND"}, rows); err != nil {
		return err
	}
	for _, status := range []string{api.CheckFail, api.CheckWarn} {
		for _, c := range checks {
			if c.Status != status {
				continue
			}
			fmt.Fprintf(a.out, "\n%s: %s: %s\n", c.Status, strings.TrimSpace(c.Name+" "+c.Where), c.What)
			if c.Why != "" {
				fmt.Fprintf(a.out, "  why: %s\n", c.Why)
			}
			for _, line := range c.Do {
				fmt.Fprintf(a.out, "  do:  %s\n", line)
			}
		}
	}
	return nil
}
