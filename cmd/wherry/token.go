package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wherry.dev/api"
	"wherry.dev/spec"
)

func (a *app) tokenCmd() *cobra.Command {
	return group("token", "Print the command by which a host joins",
		a.formatFlag(a.tokenOfCmd(spec.RoleWorker, "Print the command by which a host joins as a worker"), "table"),
		a.formatFlag(a.tokenOfCmd(spec.RoleManager, "Print the command by which a host joins as a manager"), "table"))
}

func (a *app) tokenOfCmd(role spec.NodeRole, short string) *cobra.Command {
	c := &cobra.Command{
		Use: string(role), Short: short, Args: noArgs("it has flags only"),
		Long: short + ".\nThe token holds until it is rotated; hosts that have joined do not need it any more.\n" +
			"It is a secret, and whoever lists the processes of the joining host sees what follows --token. In scripts rather\n" +
			"put it into a file, by --quiet, for `wherry daemon --join ADDR --token-file FILE`, or into WHERRY_TOKEN.",
		Example: fmt.Sprintf("  wherry token %[1]s\n  wherry token %[1]s --ttl 1h        # a new one, for an hour\n"+
			"  wherry token %[1]s --rotate        # the old one is worth nothing from now on\n"+
			"  wherry token %[1]s --quiet >token  # for wherry daemon --token-file token", role),
	}
	quiet := c.Flags().BoolP("quiet", "q", false, "print the token alone")
	rotate := c.Flags().Bool("rotate", false, "make a new token; the old one is worth nothing from now on")
	ttl := c.Flags().Duration("ttl", 0, "make a new token that ends after this time")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if *ttl < 0 || c.Flags().Changed("ttl") && *ttl == 0 {
			return exitWith(exitUsage, "--ttl %s: want a time above 0, such as 24h", *ttl)
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		t, err := cl.Token(c.Context(), role, api.TokenRequest{Rotate: *rotate, TTL: spec.Duration(*ttl)})
		if err != nil {
			return err
		}
		switch {
		case *quiet:
			fmt.Fprintln(a.out, t.Token)
			return nil
		case a.format != "table":
			return show(a, []api.Token{t}, nil, nil)
		case len(t.Addresses) == 0:
			return exitWith(exitFailed, "this cluster has no address that another host could reach: start the daemon with --advertise IP")
		}
		fmt.Fprintf(a.out, "wherry daemon --join %s --token %s\n", t.Addresses[0], t.Token)
		if len(t.Addresses) > 1 {
			fmt.Fprintf(a.err, "Any manager will do: %s.\n", strings.Join(t.Addresses, ", "))
		}
		if !t.Expires.IsZero() {
			fmt.Fprintf(a.err, "It ends at %s.\n", t.Expires.Local().Format(time.DateTime))
		}
		return nil
	}
	return c
}
