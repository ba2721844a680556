package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"wherry.dev/api"
	"wherry.dev/spec"
)

// datumCmd is the command secret or config.
func (a *app) datumCmd(k spec.DatumKind) *cobra.Command {
	return group(string(k), fmt.Sprintf("Look at the %ss, make and remove them", k),
		a.formatFlag(a.datumLsCmd(k), "table"), a.formatFlag(a.datumInspectCmd(k), "json"), a.datumCreateCmd(k), a.datumRmCmd(k))
}

func (a *app) datumLsCmd(k spec.DatumKind) *cobra.Command {
	c := &cobra.Command{Use: "ls", Short: fmt.Sprintf("List the %ss", k), Args: noArgs(fmt.Sprintf("wherry %s inspect NAME shows one", k))}
	c.RunE = a.withClient(func(c *cobra.Command, cl *api.Client, _ []string) error {
		l, err := cl.Data(c.Context(), k)
		if err != nil {
			return err
		}
		return show(a, l.Items, datumColumns, datumRow)
	})
	return c
}

var datumColumns = []string{"NAME", "STACK", "SIZE", "VERSIONS", "UPDATED", "SERVICES"}

func datumRow(d api.DatumInfo) []string {
	return []string{d.Name, cmp.Or(d.Stack, "-"), bytesText(int64(d.Size)), strconv.Itoa(len(d.Versions)), ago(d.Updated), cmp.Or(strings.Join(d.Users, ","), "-")}
}

func (a *app) datumInspectCmd(k spec.DatumKind) *cobra.Command {
	c := &cobra.Command{
		Use: "inspect NAME…", Short: fmt.Sprintf("Print all that is known of %ss but their bytes", k), Args: someArgs(fmt.Sprintf("names of %ss", k), 1, 0),
	}
	c.RunE = a.withClient(func(c *cobra.Command, cl *api.Client, args []string) error {
		var items []api.DatumInfo
		for _, name := range args {
			d, err := cl.Datum(c.Context(), k, name)
			if err != nil {
				return err
			}
			items = append(items, d)
		}
		return show(a, items, datumColumns, datumRow)
	})
	return c
}

func (a *app) datumCreateCmd(k spec.DatumKind) *cobra.Command {
	c := &cobra.Command{
		Use: "create NAME FILE|-", Short: fmt.Sprintf("Make a %s that belongs to no stack, or with --replace a new version of it", k),
		Args: someArgs("a name and a file, or - for standard input", 2, 2),
		Long: fmt.Sprintf("Make a %s that belongs to no stack. Stacks use it as external: true. It stays until it is removed by \"wherry %s rm\".\n\n"+
			"With --replace a new version takes the place of the one there is, with its labels unless others are given. All services that use\n"+
			"it get it: their tasks are replaced one after the other, or, where the file of the stack says so by on_change, the file changes\n"+
			"in the running tasks.", k, k),
		Example: fmt.Sprintf("  wherry %s create db_password ./password.txt\n  openssl rand -hex 32 | wherry %s create --replace api_key -", k, k),
	}
	var p api.PutDatum
	c.Flags().BoolVar(&p.Replace, "replace", false, "also replace another value that it has")
	labels := c.Flags().StringArray("label", nil, "a label KEY=VALUE; may be given several times")
	driver := c.Flags().String("template-driver", "", "golang: the bytes are a template that each node renders for its tasks; none: they are not")
	wait := addWait(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		var err error
		if p.Labels, err = parseLabels(*labels); err != nil {
			return err
		}
		switch *driver {
		case "":
		case "golang", "none":
			p.Render = new(*driver == "golang")
		default:
			return exitWith(exitUsage, "template driver %q: want golang or none", *driver)
		}
		if p.Data, err = a.readDatum(k, args[1]); err != nil {
			return err
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		p.Author, p.RequestID = author(), requestID()
		w, err := cl.PutDatum(c.Context(), k, args[0], p)
		if errors.Is(err, spec.ErrConflict) && !p.Replace && strings.Contains(err.Error(), "exists already") {
			return fmt.Errorf("%w: use --replace", err)
		}
		if err != nil {
			return err
		}
		fmt.Fprintln(a.out, args[0])
		if !w.Changed {
			fmt.Fprintf(a.err, "%s %s: unchanged\n", k, args[0])
			return nil
		}
		if len(w.Users) == 0 {
			return nil
		}
		fmt.Fprintf(a.err, "%s %s: used by %s\n", k, args[0], strings.Join(w.Users, ", "))
		for _, stack := range stacksOf(w.Users) {
			if err := a.waitStack(c.Context(), cl, stack, w.Index, 0, wait); err != nil {
				return err
			}
		}
		return nil
	}
	return c
}

// parseLabels reads KEY=VALUE.
func parseLabels(list []string) (map[string]string, error) { return parsePairs("label", list) }

// stacksOf names the stacks of services, "stack/service", and of "stack NAME".
func stacksOf(users []string) []string {
	var out []string
	for _, u := range users {
		stack, _, _ := spec.SplitServiceKey(strings.TrimPrefix(u, "stack "))
		out = append(out, stack)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// readDatum reads a file, or the input: from a terminal one line, which for a
// secret is not shown.
func (a *app) readDatum(k spec.DatumKind, name string) ([]byte, error) {
	var r io.Reader = a.in
	switch {
	case name == "-" && term.IsTerminal(int(a.in.Fd())) && k == spec.DatumSecret:
		fmt.Fprint(a.err, "value of the secret: ")
		b, err := term.ReadPassword(int(a.in.Fd()))
		fmt.Fprintln(a.err)
		if err != nil {
			return nil, fmt.Errorf("read the value: %w", err)
		}
		return b, nil
	case name != "-":
		f, err := os.Open(name)
		if err != nil {
			var pe *fs.PathError
			if errors.As(err, &pe) {
				err = pe.Err
			}
			return nil, exitWith(exitInvalid, "%s: %v", name, err)
		}
		defer f.Close()
		r = f
	}
	b, err := io.ReadAll(io.LimitReader(r, int64(k.MaxSize())+1))
	switch {
	case err != nil:
		return nil, exitWith(exitInvalid, "read %s: %v", name, err)
	case len(b) > k.MaxSize():
		return nil, exitWith(exitInvalid, "%s is larger than %d KiB, the most a %s may have", name, k.MaxSize()>>10, k)
	}
	return b, nil
}

func (a *app) datumRmCmd(k spec.DatumKind) *cobra.Command {
	c := &cobra.Command{
		Use: "rm NAME…", Short: fmt.Sprintf("Remove %ss that were made by \"wherry %s create\" and that nobody uses", k, k), Args: someArgs(fmt.Sprintf("names of %ss", k), 1, 0),
	}
	c.RunE = a.withClient(func(c *cobra.Command, cl *api.Client, args []string) error {
		return each(args, func(name string) error {
			if _, err := cl.RemoveDatum(c.Context(), k, name, requestID()); err != nil {
				return err
			}
			fmt.Fprintln(a.out, name)
			return nil
		})
	})
	return c
}
