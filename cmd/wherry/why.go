package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"wherry.dev/api"
	"wherry.dev/spec"
)

func (a *app) whyCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "why [STACK[/SERVICE[.SLOT]]|TASK]", Short: "Explain tasks that are not as they ought to be", Args: someArgs("at most one STACK, STACK/SERVICE or task", 0, 1),
		Long: "Explain every task that is pending, waits, fails or is not ready: what each node says to it and which one lacks least, what it\n" +
			"waits for, and how its last attempts ended. A task that is asked for by name is explained in any case.",
		Example: "  wherry why\n  wherry why shop\n  wherry why shop/web.2\n  wherry why shop --format json",
	}
	c.RunE = a.withClient(func(c *cobra.Command, cl *api.Client, args []string) error {
		l, err := cl.Why(c.Context(), strings.Join(args, ""))
		if err != nil {
			return err
		}
		if a.format == "table" || a.format == "" {
			writeWhy(a.out, l.Items, time.Now())
			return nil
		}
		return show(a, l.Items, nil, nil)
	})
	return a.formatFlag(c, "table")
}

// writeWhy prints explanations for people. Services and tasks that are as they
// ought to be are counted only.
func writeWhy(w io.Writer, services []spec.ServiceWhy, now time.Time) {
	well, tasks := 0, 0
	for i := range services {
		s := &services[i]
		if s.State == api.StateRunning || s.State == api.StateStopped {
			well, tasks = well+1, tasks+s.Running
			if len(s.Tasks) == 0 {
				continue
			}
		}
		fmt.Fprintf(w, "%s is %s, %d of %s\n", spec.ServiceKey(s.Stack, s.Service), s.State, s.Running, count(s.Desired, "task"))
		if s.Message != "" && (len(s.Tasks) == 0 || s.Message != s.Tasks[0].Message) {
			fmt.Fprintf(w, "  %s\n", s.Message)
		}
		writeRefusals(w, "  ", s.Refusals)
		for j := range s.Tasks {
			writeTaskWhy(w, &s.Tasks[j], now)
		}
	}
	if well > 0 && well == len(services) {
		fmt.Fprintf(w, "all is as it ought to be: %s, %s\n", count(well, "service"), count(tasks, "task"))
	}
}

func writeTaskWhy(w io.Writer, t *spec.TaskWhy, now time.Time) {
	fmt.Fprintf(w, "  %s\n", t.Message)
	if t.ID != "" {
		where := ""
		if t.Node != "" {
			where = " on " + t.Node
		}
		fmt.Fprintf(w, "    task %s%s, %s for %s\n", t.ID, where, t.State, short(now.Sub(t.Since)))
	}
	for _, d := range t.Waits {
		fmt.Fprintf(w, "    waits for %s: %s\n", d.Service, cmp.Or(d.Message, strings.ReplaceAll(string(d.Condition), "_", " ")))
	}
	if t.Until.After(now) {
		fmt.Fprintf(w, "    the next attempt is in %s, at %s\n", short(t.Until.Sub(now)+time.Second), t.Until.Local().Format("15:04:05"))
	}
	writeRefusals(w, "    ", t.Refusals)
	if t.Nearest != nil {
		fmt.Fprintf(w, "    fits if %s\n", t.Nearest)
	}
	for i := range t.Ends {
		writeEnd(w, &t.Ends[i], now)
	}
}

func writeRefusals(w io.Writer, indent string, refusals []spec.Refusal) {
	const show = 5
	for _, r := range refusals {
		names := r.Nodes
		more := ""
		if len(names) > show {
			more = fmt.Sprintf(" and %d more", len(names)-show)
			names = names[:show]
		}
		fmt.Fprintf(w, "%s%s: %s (%s%s)\n", indent, count(len(r.Nodes), "node"), r.Reason, strings.Join(names, ", "), more)
	}
}

// writeEnd tells how an attempt ended, with its last output.
func writeEnd(w io.Writer, e *spec.AttemptEnd, now time.Time) {
	how := cmp.Or(e.Error, fmt.Sprintf("exit %d", e.ExitCode))
	if e.Signal != 0 {
		how += fmt.Sprintf(", signal %d", e.Signal)
	}
	if e.OOM {
		how += ", out of memory"
	}
	if !e.Started.IsZero() {
		how += " after " + e.Ended.Sub(e.Started).Round(100*time.Millisecond).String()
	}
	fmt.Fprintf(w, "    %s ago on %s, task %s: %s\n", short(now.Sub(e.Ended)), cmp.Or(e.Node, "-"), e.ID, how)
	for _, line := range e.LastLog {
		fmt.Fprintf(w, "      | %s\n", line)
	}
}
