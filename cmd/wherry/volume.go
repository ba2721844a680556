package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wherry.dev/api"
)

func (a *app) volumeCmd() *cobra.Command {
	return group("volume", "List volumes, make, move, back up, restore and remove them",
		a.formatFlag(a.volumeLsCmd(), "table"), a.formatFlag(a.volumeInspectCmd(), "json"), a.volumeCreateCmd(), a.volumeMoveCmd(),
		a.volumeBackupCmd(), a.volumeRestoreCmd(), a.volumeRmCmd())
}

func (a *app) volumeLsCmd() *cobra.Command {
	c := &cobra.Command{Use: "ls", Short: "List the volumes of the cluster", Args: noArgs("wherry volume inspect NAME shows one")}
	size := c.Flags().BoolP("size", "s", false, "also add up what they take on their nodes")
	quiet := c.Flags().BoolP("quiet", "q", false, "print names alone")
	c.RunE = a.withClient(func(c *cobra.Command, cl *api.Client, _ []string) error {
		l, err := cl.Volumes(c.Context(), *size)
		if err != nil {
			return err
		}
		if *quiet {
			for _, v := range l.Items {
				fmt.Fprintln(a.out, v.Name)
			}
			return nil
		}
		columns := []string{"NAME", "STACK", "NODES", "SERVICES", "STATE"}
		if *size {
			columns = append(columns, "SIZE")
		}
		return show(a, l.Items, columns, func(v api.VolumeInfo) []string {
			row := []string{v.Name, cmp.Or(v.Stack, "-"), volumeNodes(v), cmp.Or(strings.Join(v.Services, ","), "-"), volumeState(v)}
			if *size {
				row = append(row, volumeSize(v))
			}
			return row
		})
	})
	return c
}

func volumeNodes(v api.VolumeInfo) string {
	if v.Shared {
		return v.Options["device"]
	}
	return cmp.Or(strings.Join(v.Nodes, ","), "-")
}

func volumeState(v api.VolumeInfo) string {
	switch {
	case v.Removing:
		return "removing"
	case v.Move != nil:
		return "moving to " + v.Move.To
	case v.InUse:
		return "in use"
	}
	return "unused"
}

// volumeSize is the sum of what is known, with a plus when more is not.
func volumeSize(v api.VolumeInfo) string {
	if len(v.Instances) == 0 {
		return "-"
	}
	var sum int64
	known, more := false, ""
	for _, in := range v.Instances {
		if in.Problem != "" {
			more = "+"
			continue
		}
		known = true
		sum += in.Bytes
	}
	if !known {
		return "?"
	}
	return bytesText(sum) + more
}

func (a *app) volumeInspectCmd() *cobra.Command {
	c := &cobra.Command{Use: "inspect VOLUME…", Short: "Print all that is known of volumes, with what they take on each node", Args: someArgs("names of volumes", 1, 0)}
	c.RunE = a.withClient(func(c *cobra.Command, cl *api.Client, args []string) error {
		var items []api.VolumeInfo
		for _, name := range args {
			v, err := cl.Volume(c.Context(), name, true)
			if err != nil {
				return err
			}
			items = append(items, v)
		}
		return show(a, items, []string{"NAME", "STACK", "NODES", "SERVICES", "STATE", "SIZE"}, func(v api.VolumeInfo) []string {
			return []string{v.Name, cmp.Or(v.Stack, "-"), volumeNodes(v), cmp.Or(strings.Join(v.Services, ","), "-"), volumeState(v), volumeSize(v)}
		})
	})
	return c
}

func (a *app) volumeCreateCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "create VOLUME", Short: "Make a volume that belongs to no stack", Args: someArgs("a name", 1, 1),
		Long: "Make a volume that belongs to no stack. Stacks use it as external: true. It stays until it is removed by \"wherry volume rm\".\n" +
			"One that exists already and was made in the same way is left as it is.",
		Example: "  wherry volume create pool --node host-2\n  wherry volume create media --opt type=nfs --opt o=addr=10.0.0.9,nfsvers=4 --opt device=:/media",
	}
	driver := c.Flags().StringP("driver", "d", "local", "local is the only one")
	opts := c.Flags().StringArrayP("opt", "o", nil, "an option KEY=VALUE of the driver: type, o or device; may be given several times")
	labels := c.Flags().StringArray("label", nil, "a label KEY=VALUE; may be given several times")
	var v api.CreateVolume
	c.Flags().StringVar(&v.Node, "node", "", "the node that is to hold the data; by default that of its first user")
	c.RunE = a.withClient(func(c *cobra.Command, cl *api.Client, args []string) error {
		if *driver != "local" {
			return exitWith(exitInvalid, "volume driver %q: there is only local; its options type, o and device mount what Linux can", *driver)
		}
		var err error
		if v.Spec.Labels, err = parseLabels(*labels); err != nil {
			return err
		}
		if v.Spec.DriverOpts, err = parsePairs("option", *opts); err != nil {
			return err
		}
		v.Name, v.Author, v.RequestID = args[0], author(), requestID()
		if _, err := cl.CreateVolume(c.Context(), v); err != nil {
			return err
		}
		fmt.Fprintln(a.out, v.Name)
		return nil
	})
	return c
}

func (a *app) volumeRmCmd() *cobra.Command {
	c := &cobra.Command{Use: "rm VOLUME…", Short: "Delete volumes and their data", Args: someArgs("names of volumes", 1, 0)}
	c.RunE = a.withClient(func(c *cobra.Command, cl *api.Client, args []string) error {
		return each(args, func(name string) error {
			if _, err := cl.RemoveVolume(c.Context(), name, requestID()); err != nil {
				return err
			}
			fmt.Fprintln(a.out, name)
			return nil
		})
	})
	return c
}

func (a *app) volumeMoveCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "move VOLUME NODE", Short: "Copy a volume to another node, which then is its home", Args: someArgs("a volume and a node", 2, 2),
		Long: "Copy the data of a volume to another node. When it is there, complete and on disk, the other node is its home; the services that use\n" +
			"the volume go on there, and the old copy is deleted. Until then the old one holds, whatever fails or is switched off; what was\n" +
			"interrupted begins anew by itself. To move a volume to where it is takes a move back.\n\n" +
			"A volume in use is refused. With --stop its users stop, and start again on the other node.",
	}
	m := api.MoveVolume{}
	c.Flags().BoolVar(&m.Stop, "stop", false, "stop what uses the volume until it has moved")
	wait := addWait(c)
	c.RunE = a.withClient(func(c *cobra.Command, cl *api.Client, args []string) error {
		m.Node, m.Author, m.RequestID = args[1], author(), requestID()
		n, err := cl.Node(c.Context(), args[1])
		if err != nil {
			return err
		}
		if _, err := cl.MoveVolume(c.Context(), args[0], m); err != nil {
			return err
		}
		return a.waitMoved(c.Context(), cl, args[0], n.Name, wait)
	})
	return c
}

// moveLook is how often a move is looked at.
const moveLook = 300 * time.Millisecond

func (a *app) waitMoved(ctx context.Context, cl *api.Client, volume, node string, w *waitFlags) error {
	if !w.wait {
		return nil
	}
	wctx, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	told := ""
	for {
		v, err := cl.Volume(wctx, volume, false)
		switch {
		case wctx.Err() != nil:
		case err != nil:
			return err
		case v.Move == nil && slices.Equal(v.Nodes, []string{node}):
			fmt.Fprintf(a.err, "%s is on %s\n", volume, node)
			return nil
		case v.Move == nil || v.Move.To != node:
			return fmt.Errorf("the move of volume %s was taken back: it is on %s", volume, strings.Join(v.Nodes, ", "))
		default:
			if state := cmp.Or(v.Move.Problem, "its users stop"); v.InUse || v.Move.Problem != "" {
				if state != told {
					fmt.Fprintf(a.err, "%s: %s\n", volume, state)
					told = state
				}
			}
		}
		select {
		case <-wctx.Done():
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return exitWith(exitTimeout, "volume %s has not moved within %s; it goes on. wherry volume ls shows it, and a move to where it is takes it back", volume, w.timeout)
		case <-time.After(moveLook):
		}
	}
}

func (a *app) volumeBackupCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "backup VOLUME FILE|-", Short: "Write the data of a volume to a file or the output", Args: someArgs("a volume and a file, or - for standard output", 2, 2),
		Long: "Write all that is in a volume to a file: an archive of tar, compressed by Zstandard, which \"tar --zstd -x\" reads, too. It is not encrypted.\n" +
			"While tasks write to the volume, each file is as it was when its turn came: a database is better dumped by its own tool, or stopped.",
		Example: "  wherry volume backup shop_data shop.tar.zst\n  wherry volume backup shop_data - | ssh vault 'cat >shop.tar.zst'",
	}
	node := c.Flags().String("node", "", "the node, when several have an instance")
	force := c.Flags().Bool("force", false, "replace a file that exists")
	c.RunE = a.withClient(func(c *cobra.Command, cl *api.Client, args []string) error {
		if args[1] == "-" {
			return cl.BackupVolume(c.Context(), args[0], *node, a.out)
		}
		if _, err := os.Lstat(args[1]); err == nil && !*force {
			return exitWith(exitFailed, "%s exists; give another name, or --force to replace it", args[1])
		}
		return writeNew(args[1], func(w io.Writer) error { return cl.BackupVolume(c.Context(), args[0], *node, w) })
	})
	return c
}

func (a *app) volumeRestoreCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "restore VOLUME FILE|-", Short: "Replace the data of a volume by a backup", Args: someArgs("a volume and a file, or - for standard input", 2, 2),
		Long: "Replace all that is in a volume by what a backup holds, or any archive of tar and Zstandard. It is done when the archive was read as a whole; before,\n" +
			"everything is as it was. A volume in use is refused, and one that does not exist: see \"wherry volume create\".",
		Example: "  wherry volume create shop_data --node host-2\n  wherry volume restore shop_data shop.tar.zst",
	}
	node := c.Flags().String("node", "", "the node for a volume that is on none yet, or when several have an instance")
	c.RunE = a.withClient(func(c *cobra.Command, cl *api.Client, args []string) error {
		var in io.Reader = a.in
		if args[1] != "-" {
			f, err := os.Open(args[1])
			if err != nil {
				return exitWith(exitInvalid, "%v", err)
			}
			defer f.Close()
			in = f
		}
		if err := cl.RestoreVolume(c.Context(), args[0], *node, in); err != nil {
			return err
		}
		fmt.Fprintf(a.err, "%s restored\n", args[0])
		return nil
	})
	return c
}

// parsePairs reads KEY=VALUE.
func parsePairs(what string, list []string) (map[string]string, error) {
	var out map[string]string
	for _, l := range list {
		k, v, ok := strings.Cut(l, "=")
		if !ok || k == "" {
			return nil, exitWith(exitUsage, "%s %q: want KEY=VALUE", what, l)
		}
		if out == nil {
			out = map[string]string{}
		}
		out[k] = v
	}
	return out, nil
}
