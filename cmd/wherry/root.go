package main

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"os/user"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"wherry.dev/api"
	"wherry.dev/spec"
)

// defaultDataDir is where a daemon keeps what must last.
const defaultDataDir = "/var/lib/wherry"

// app is what all commands share.
type app struct {
	in       *os.File
	out, err io.Writer
	env      func(string) (string, bool)

	host   string
	files  api.TLSFiles // for a host elsewhere
	format string
	// parsed says that the command line was understood and the command runs.
	parsed bool
}

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "wherry",
		Short:         "Run Compose applications on a few Linux hosts",
		SilenceErrors: true, SilenceUsage: true,
		PersistentPreRun:           func(*cobra.Command, []string) { a.parsed = true },
		SuggestionsMinimumDistance: 1, // "rm" is no help to whoever typed "up"
		CompletionOptions:          cobra.CompletionOptions{HiddenDefaultCmd: true},
	}
	host, _ := a.env("WHERRY_HOST")
	root.PersistentFlags().StringVar(&a.host, "host", cmp.Or(host, api.DefaultHost), "address of the daemon (WHERRY_HOST)")
	for _, f := range []struct {
		value     *string
		name, use string
	}{
		{&a.files.Cert, "cert", "certificate for a daemon elsewhere"},
		{&a.files.Key, "key", "its key"},
		{&a.files.CA, "ca", "roots that the daemon's certificate must come from"},
	} {
		env := "WHERRY_" + strings.ToUpper(f.name)
		def, _ := a.env(env)
		root.PersistentFlags().StringVar(f.value, f.name, def, f.use+" ("+env+")")
	}
	root.AddCommand(
		a.applyCmd(), a.planCmd(), a.validateCmd(), a.rmCmd(), a.historyCmd(), a.rollbackCmd(),
		a.lsCmd(), a.psCmd(), a.whyCmd(), a.rebalanceCmd(), a.logsCmd(), a.execCmd(),
		a.serviceCmd(), a.imageCmd(), a.volumeCmd(), a.networkCmd(), a.datumCmd(spec.DatumSecret), a.datumCmd(spec.DatumConfig), a.nodeCmd(),
		a.tokenCmd(), a.clusterCmd(), a.doctorCmd(), a.versionCmd(),
	)
	a.addDaemon(root)
	return root
}

func (a *app) client() (*api.Client, error) {
	var cl *api.Client
	var err error
	if strings.HasPrefix(a.host, "https://") {
		cl, err = api.NewTLSClient(a.host, a.files)
	} else {
		cl, err = api.NewClient(a.host)
	}
	if err != nil {
		return nil, &exitError{exitUsage, err}
	}
	return cl, nil
}

// withClient hands a client to the function of a command. One that has to do
// something before, such as to check its flags, makes the client itself.
func (a *app) withClient(run func(*cobra.Command, *api.Client, []string) error) func(*cobra.Command, []string) error {
	return func(c *cobra.Command, args []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		return run(c, cl, args)
	}
}

// formatFlag adds --format to a command that prints objects.
func (a *app) formatFlag(c *cobra.Command, def string) *cobra.Command {
	format := c.Flags().String("format", def, "table, json, yaml or a Go template such as '{{.name}}'")
	c.PreRun = func(*cobra.Command, []string) { a.format = *format }
	return c
}

// group makes a command that only holds others. Called by itself it is a
// mistake, which scripts must see.
func group(name, short string, subs ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: name, Short: short, SuggestionsMinimumDistance: 2}
	c.RunE = func(c *cobra.Command, args []string) error {
		var names []string
		for _, s := range subs {
			names = append(names, s.Name())
		}
		if len(args) > 0 {
			return exitWith(exitUsage, "%s has no command %q; it has %s", name, args[0], strings.Join(names, ", "))
		}
		return exitWith(exitUsage, "%s wants one of %s", name, strings.Join(names, ", "))
	}
	c.AddCommand(subs...)
	return c
}

// noArgs refuses arguments, and says what to write instead.
func noArgs(hint string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			return exitWith(exitUsage, "%s takes no argument such as %q; %s", c.Name(), args[0], hint)
		}
		return nil
	}
}

// someArgs wants at least one argument of a kind, and with most more than 0 at
// most that many.
func someArgs(kind string, least, most int) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return exitWith(exitUsage, "%s wants %s; see wherry %s --help", c.Name(), kind, strings.TrimPrefix(c.CommandPath(), "wherry "))
		case most > 0 && len(args) > most:
			return exitWith(exitUsage, "%s takes %s, and %q is too much", c.Name(), kind, args[most])
		}
		return nil
	}
}

// terminal reports whether progress may rewrite lines on stderr.
func (a *app) terminal() bool {
	f, ok := a.err.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return false
	}
	t, _ := a.env("TERM")
	return t != "dumb"
}

// colour reports whether stdout takes colours.
func (a *app) colour() bool {
	if _, no := a.env("NO_COLOR"); no {
		return false
	}
	f, ok := a.out.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// author is who runs the command, for the history of a stack.
func author() string {
	u, err := user.Current()
	if err != nil {
		return ""
	}
	return u.Username
}

// requestID makes a write safe to repeat.
func requestID() string {
	var b [12]byte
	if _, err := rand.Read(b[:]); err != nil {
		panic(fmt.Sprintf("no randomness: %v", err)) // crypto/rand never fails on Linux
	}
	return hex.EncodeToString(b[:])
}

func (a *app) versionCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "version", Short: "Print the version of this binary, and with --daemon the daemon's", Args: noArgs("it prints this binary's"),
	}
	daemon := c.Flags().Bool("daemon", false, "ask the daemon as well")
	a.formatFlag(c, "table")
	c.RunE = func(c *cobra.Command, _ []string) error {
		items := []api.Version{{Version: version, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}}
		if *daemon {
			cl, err := a.client()
			if err != nil {
				return err
			}
			v, err := cl.Version(c.Context())
			if err != nil {
				return err
			}
			items = append(items, v)
		}
		return show(a, items, []string{"VERSION", "GO", "PLATFORM", "NODE"}, func(v api.Version) []string {
			return []string{v.Version, v.Go, v.OS + "/" + v.Arch, cmp.Or(string(v.Node), "client")}
		})
	}
	return c
}
