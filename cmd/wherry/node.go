package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wherry.dev/api"
	"wherry.dev/spec"
)

func (a *app) nodeCmd() *cobra.Command {
	return group("node", "Look at the nodes and change them",
		a.formatFlag(a.nodeLsCmd(), "table"), a.formatFlag(a.nodeInspectCmd(), "json"),
		a.drainCmd(), a.availabilityCmd("pause", "Give nodes no new tasks; those they have go on", spec.NodePaused),
		a.availabilityCmd("activate", "Give nodes tasks again", spec.NodeActive),
		a.roleCmd("promote", "Make workers managers", spec.RoleManager), a.roleCmd("demote", "Make managers workers", spec.RoleWorker),
		a.labelCmd(), a.nodeRmCmd(), a.leaveCmd())
}

var nodeHeader = []string{"NAME", "ID", "ROLE", "STATE", "AVAILABILITY", "ADDRESS", "TASKS", "CPUS", "MEMORY"}

func nodeRow(n api.NodeInfo) []string {
	role := string(n.Role)
	if n.Leader {
		role += " (leader)"
	}
	state := string(n.State)
	if !n.DownSince.IsZero() {
		state += " " + ago(n.DownSince)
	}
	return []string{n.Name, string(n.ID), role, state, string(n.Availability), n.Address, strconv.Itoa(n.Tasks),
		fmt.Sprintf("%.1f", float64(n.Info.NanoCPUs)/1e9), bytesText(n.Info.Memory)}
}

func (a *app) nodeLsCmd() *cobra.Command {
	c := &cobra.Command{Use: "ls", Short: "List the nodes", Args: noArgs("wherry node inspect NODE shows one")}
	c.RunE = a.withClient(func(c *cobra.Command, cl *api.Client, _ []string) error {
		l, err := cl.Nodes(c.Context())
		if err != nil {
			return err
		}
		slices.SortFunc(l.Items, func(x, y api.NodeInfo) int { return cmp.Compare(x.Name, y.Name) })
		return show(a, l.Items, nodeHeader, nodeRow)
	})
	return c
}

func (a *app) nodeInspectCmd() *cobra.Command {
	c := &cobra.Command{Use: "inspect NODE…", Short: "Print all that is known of nodes", Args: someArgs("names or IDs of nodes", 1, 0)}
	c.RunE = a.withClient(func(c *cobra.Command, cl *api.Client, args []string) error {
		var items []api.NodeInfo
		for _, ref := range args {
			n, err := cl.Node(c.Context(), ref)
			if err != nil {
				return err
			}
			items = append(items, n)
		}
		return show(a, items, nodeHeader, nodeRow)
	})
	return c
}

// onNodes makes a command that does the same to each node it is given.
func (a *app) onNodes(use, short string, do func(ctx context.Context, cl *api.Client, node string) error) *cobra.Command {
	c := &cobra.Command{Use: use + " NODE…", Short: short, Args: someArgs("names or IDs of nodes", 1, 0)}
	c.RunE = a.withClient(func(c *cobra.Command, cl *api.Client, args []string) error {
		return each(args, func(node string) error { return do(c.Context(), cl, node) })
	})
	return c
}

func (a *app) availabilityCmd(verb, short string, to spec.Availability) *cobra.Command {
	return a.onNodes(verb, short, func(ctx context.Context, cl *api.Client, node string) error {
		if _, err := cl.UpdateNode(ctx, node, api.NodeUpdate{Availability: &to, RequestID: requestID()}); err != nil {
			return err
		}
		fmt.Fprintf(a.out, "%s: %s\n", node, to)
		return nil
	})
}

func (a *app) drainCmd() *cobra.Command {
	var w *waitFlags
	var stopPinned *bool
	c := a.onNodes("drain", "Move the tasks of nodes elsewhere", func(ctx context.Context, cl *api.Client, node string) error {
		to := spec.NodeDrain
		if _, err := cl.UpdateNode(ctx, node, api.NodeUpdate{Availability: &to, StopPinned: *stopPinned, RequestID: requestID()}); err != nil {
			return err
		}
		return a.waitDrained(ctx, cl, node, *stopPinned, w)
	})
	c.Long = "Move the tasks of nodes elsewhere: each is replaced first and stopped when its replacement serves.\n" +
		"Tasks that cannot move, because their volume is on the node, stay and are listed; the exit code is then 1."
	c.Example = "  wherry node drain host-2\n  wherry node drain host-2 --stop-pinned   # stop those, too\n  wherry node activate host-2"
	stopPinned = c.Flags().Bool("stop-pinned", false, "also stop tasks that cannot move, because their data is on the node")
	w = addWait(c)
	return c
}

// waitDrained waits until a node has no task left but those that stay; with all
// none stays.
func (a *app) waitDrained(ctx context.Context, cl *api.Client, node string, all bool, w *waitFlags) error {
	if !w.wait {
		fmt.Fprintf(a.err, "%s: gets no new tasks, and those it has move elsewhere; `wherry ps` shows them\n", node)
		return nil
	}
	wctx, cancel := w.within(ctx)
	defer cancel()
	p := newProgress(a.err, a.terminal())
	defer p.close()
	var left []api.Leftover
	poll := api.Poll{}
	for {
		l, err := cl.Leftovers(wctx, node, poll)
		switch {
		case ctx.Err() != nil:
			return &exitError{exitInterrupted, fmt.Errorf("no longer waiting; the cluster goes on to drain %s", node)}
		case wctx.Err() != nil:
			return &exitError{exitTimeout, fmt.Errorf("node %s still has %s after %s, and the cluster goes on to drain it: %s", node, count(len(left), "task"), w.timeout, reasons(left))}
		case errors.Is(err, spec.ErrUnavailable): // no leader at this moment
			pause(wctx, followPause)
			continue
		case err != nil:
			return err
		}
		poll, left = api.Poll{Index: l.Index, Wait: pollWait}, l.Items
		pinned := 0
		for _, t := range left {
			if t.Pinned && !all {
				pinned++
			}
		}
		switch {
		case len(left) == 0:
			p.close()
			fmt.Fprintf(a.err, "%s: drained, no task is left on it, %.1f s\n", node, time.Since(p.started).Seconds())
			return nil
		case pinned == len(left):
			p.close()
			return exitWith(exitFailed, "node %s is drained but for %s: %s", node, count(pinned, "task"), reasons(left))
		}
		p.line(node, fmt.Sprintf("%s left to move", count(len(left)-pinned, "task")))
	}
}

func reasons(tasks []api.Leftover) string {
	var out []string
	for _, t := range tasks {
		out = append(out, t.Name+" "+t.Reason)
	}
	return strings.Join(out, "; ")
}

func (a *app) roleCmd(verb, short string, to spec.NodeRole) *cobra.Command {
	var w *waitFlags
	c := a.onNodes(verb, short, func(ctx context.Context, cl *api.Client, node string) error {
		n, err := cl.Node(ctx, node)
		if err != nil {
			return err
		}
		if _, err := cl.UpdateNode(ctx, node, api.NodeUpdate{Role: &to, RequestID: requestID()}); err != nil {
			return err
		}
		return a.waitRole(ctx, cl, n, to, w)
	})
	w = addWait(c)
	return c
}

// waitRole waits until Raft has followed the table: a manager votes, a worker
// is unknown to it.
func (a *app) waitRole(ctx context.Context, cl *api.Client, n api.NodeInfo, to spec.NodeRole, w *waitFlags) error {
	if !w.wait {
		fmt.Fprintf(a.err, "%s: becomes a %s; `wherry cluster status` shows how far it is\n", n.Name, to)
		return nil
	}
	wctx, cancel := w.within(ctx)
	defer cancel()
	p := newProgress(a.err, a.terminal())
	defer p.close()
	for {
		s, err := cl.ClusterStatus(wctx)
		switch {
		case ctx.Err() != nil:
			return &exitError{exitInterrupted, fmt.Errorf("no longer waiting for node %s; the cluster goes on", n.Name)}
		case wctx.Err() != nil:
			return &exitError{exitTimeout, fmt.Errorf("node %s is not yet a %s after %s; `wherry cluster status` says more", n.Name, to, w.timeout)}
		case to == spec.RoleWorker && (errors.Is(err, api.ErrNotManager) || errors.Is(err, api.ErrUnreachable)):
			err = nil // it is the demoted one that was asked
		case err != nil && !errors.Is(err, spec.ErrUnavailable):
			return err
		}
		raft := "none"
		for _, m := range s.Managers {
			if m.ID == n.ID {
				raft = m.Raft
			}
		}
		if err == nil && (to == spec.RoleManager && (raft == "voter" || raft == "leader") || to == spec.RoleWorker && raft == "none") {
			p.close()
			fmt.Fprintf(a.err, "%s: is a %s now, %.1f s\n", n.Name, to, time.Since(p.started).Seconds())
			return nil
		}
		if err == nil {
			p.line(n.Name, onItsWay(to, raft))
		}
		pause(wctx, 100*time.Millisecond) // there is no index to poll Raft by
	}
}

// onItsWay says in words what a node that gets a role still is to Raft.
func onItsWay(to spec.NodeRole, raft string) string {
	switch {
	case raft == "leader":
		return "hands leadership over"
	case to == spec.RoleWorker:
		return "is taken from the managers"
	case raft == "non-voter":
		return "catches up with the other managers"
	}
	return "is added to the managers"
}

func (a *app) labelCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "label NODE KEY=VALUE… KEY-…", Short: "Set and remove labels of a node", Args: someArgs("a node and labels as KEY=VALUE, or KEY- to remove one", 2, 0),
		Example: "  wherry node label host-2 disk=ssd zone=a\n  wherry node label host-2 zone-",
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		labels := map[string]*string{}
		for _, arg := range args[1:] {
			key, value, set := strings.Cut(arg, "=")
			switch {
			case set && key != "":
				labels[key] = &value
			case !set && strings.HasSuffix(arg, "-") && len(arg) > 1:
				labels[strings.TrimSuffix(arg, "-")] = nil
			default:
				return exitWith(exitUsage, "%q: want KEY=VALUE, or KEY- to remove it", arg)
			}
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		_, err = cl.UpdateNode(c.Context(), args[0], api.NodeUpdate{Labels: labels, RequestID: requestID()})
		return err
	}
	return c
}

func (a *app) nodeRmCmd() *cobra.Command {
	var force *bool
	c := a.onNodes("rm", "Remove nodes that are down for ever", func(ctx context.Context, cl *api.Client, node string) error {
		if _, err := cl.RemoveNode(ctx, node, *force, requestID()); err != nil {
			return err
		}
		fmt.Fprintf(a.out, "%s: removed\n", node)
		return nil
	})
	c.Long = "Remove nodes from the cluster. Their tasks start elsewhere and their certificates are worth nothing from now on;\n" +
		"the only copies of volumes that are on them are given up. A node that is alive leaves by `wherry node leave` on it;\n" +
		"--force removes it all the same, and it stops its tasks. A removed host can join again with an empty data folder."
	force = c.Flags().Bool("force", false, "also a node that is alive")
	return c
}

func (a *app) leaveCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "leave", Short: "Make this host leave its cluster", Args: noArgs("it is this host that leaves; `wherry node rm NODE` removes another one"),
		Long: "Make this host leave its cluster: it is removed from the table of nodes, its containers and networks are stopped and removed,\n" +
			"and the daemon ends. The data of volumes stays in the data folder, unless --purge deletes it and every other trace.\n" +
			"It waits until the tasks have stopped. Drain the node first to have replacements before the end.",
	}
	var l api.Leave
	c.Flags().BoolVar(&l.Purge, "purge", false, "also delete volumes, images, and everything in the data folder")
	c.Flags().BoolVar(&l.Force, "force", false, "leave even when no manager can be told")
	c.RunE = a.withClient(func(c *cobra.Command, cl *api.Client, _ []string) error {
		if err := cl.Leave(c.Context(), l); err != nil {
			return err
		}
		what := "The data of its volumes is still in the data folder, which must be empty before this host joins again"
		if l.Purge {
			what = "Its volumes and every other trace are deleted with it"
		}
		fmt.Fprintf(a.err, "This host has left its cluster: its tasks are stopped and its daemon ends. %s.\n", what)
		return nil
	})
	return c
}
