package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"wherry.dev/api"
	"wherry.dev/spec"
)

func (a *app) rebalanceCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "rebalance [STACK]", Short: "Move tasks to nodes with fewer, and wait for it", Args: someArgs("at most one STACK", 0, 1),
		Long: "Move tasks to nodes that have fewer, such as after a node has joined or come back. Of a service one task moves at a time, and its\n" +
			"replacement runs and is healthy before it stops. Tasks with volumes, with a port of their node, of exclusive services and of services\n" +
			"that stop before they start stay, and so do those of services that are not as they ought to be. Nothing moves by itself.",
		Example: "  wherry rebalance --dry-run\n  wherry rebalance shop --max 3",
	}
	dry := c.Flags().Bool("dry-run", false, "show what would move, and do nothing")
	most := c.Flags().Int("max", 10, "move at most that many tasks")
	wait := addWaitFor(c, updateTimeout)
	a.formatFlag(c, "table")
	c.RunE = func(c *cobra.Command, args []string) error {
		r := api.Rebalance{Max: *most, Author: author(), RequestID: requestID()}
		if len(args) > 0 {
			r.Stack = args[0]
		}
		if r.Max < 1 || r.Max > api.MaxMoves {
			return exitWith(exitUsage, "--max %d: want 1 to %d", r.Max, api.MaxMoves)
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		do := cl.Rebalance
		if *dry {
			do = cl.Moves
		}
		l, err := do(c.Context(), r)
		if err != nil {
			return err
		}
		if len(l.Items) == 0 && (a.format == "table" || a.format == "") {
			fmt.Fprintln(a.err, "nothing to move: no task that may move gains by it")
			return nil
		}
		err = show(a, l.Items, []string{"TASK", "ID", "FROM", "TO"}, func(m spec.Move) []string {
			return []string{m.Name, string(m.Task), m.From, m.To}
		})
		if err != nil || *dry {
			return err
		}
		return a.waitMoves(c.Context(), cl, l, wait)
	}
	return c
}

// waitMoves waits until each task has moved, or stays after all.
func (a *app) waitMoves(ctx context.Context, cl *api.Client, moves api.List[spec.Move], w *waitFlags) error {
	if !w.wait {
		return nil
	}
	wctx, cancel := w.within(ctx)
	defer cancel()
	p := newProgress(a.err, a.terminal())
	defer p.close()
	poll := api.Poll{Index: max(moves.Index, 1) - 1, Wait: pollWait}
	for {
		l, err := cl.Tasks(wctx, api.TaskFilter{}, poll)
		if err != nil {
			return waitError(ctx, wctx, "cluster", api.StackStatus{}, w, err)
		}
		poll.Index = l.Index
		var left, stay []string
		for _, m := range moves.Items {
			i := slices.IndexFunc(l.Items, func(t api.TaskInfo) bool { return t.ID == m.Task })
			switch {
			case i < 0 || l.Items[i].State.Terminal():
			case l.Items[i].Desired == spec.DesiredRunning && !time.Now().Before(l.Items[i].MoveUntil):
				stay = append(stay, m.Name)
			default:
				left = append(left, m.Name)
			}
		}
		if len(left) > 0 {
			p.line("rebalance", fmt.Sprintf("%d of %s moved", len(moves.Items)-len(left)-len(stay), count(len(moves.Items), "task")))
			continue
		}
		p.close()
		fmt.Fprintf(a.err, "%s moved, %.1f s\n", count(len(moves.Items)-len(stay), "task"), time.Since(p.started).Seconds())
		for _, name := range stay {
			fmt.Fprintf(a.err, "task %s stays: it would not gain any more, or its replacement was not well (`wherry why %s`)\n", name, name)
		}
		return nil
	}
}
