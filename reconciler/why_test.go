package reconciler

import (
	"strings"
)

// printWhy explains STACK[/SERVICE[.PLACE]].
func (c *cluster) printWhy(ref string) {
	stack, rest, _ := strings.Cut(ref, "/")
	service, place, _ := strings.Cut(rest, ".")
	for _, s := range Why(c.store.Snapshot(), stack, service, place, c.now) {
		c.printf("  %s/%s %d/%d %s%s\n", s.Stack, s.Service, s.Running, s.Desired, s.State, join(" ", s.Message))
		for _, r := range s.Refusals {
			c.printf("    %v: %s\n", r.Nodes, r.Reason)
		}
		for _, t := range s.Tasks {
			c.printf("    %s %s%s: %s\n", t.Name, t.Verdict, join(" on ", t.Node), t.Message)
			for _, w := range t.Waits {
				c.printf("      %s %s: %s\n", w.Service, w.Condition, w.Message)
			}
			if !t.Until.IsZero() {
				c.printf("      until %s\n", t.Until.Format("15:04:05.000"))
			}
			for _, r := range t.Refusals {
				c.printf("      %v: %s\n", r.Nodes, r.Reason)
			}
			if t.Nearest != nil {
				c.printf("      fits if %s\n", t.Nearest)
			}
			for _, e := range t.Ends {
				c.printf("      %s on %s attempt %d: exit %d signal %d oom %t%s %q\n", e.ID, e.Node, e.Number, e.ExitCode, e.Signal, e.OOM, join(" ", e.Error), e.LastLog)
			}
		}
	}
}
