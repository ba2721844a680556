package main

import (
	"cmp"
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

func (a *app) lsCmd() *cobra.Command {
	c := &cobra.Command{Use: "ls", Short: "List the stacks", Args: noArgs("wherry ps STACK lists the tasks of one")}
	c.RunE = a.withClient(func(c *cobra.Command, cl *api.Client, _ []string) error {
		l, err := cl.Stacks(c.Context())
		if err != nil {
			return err
		}
		return show(a, l.Items, []string{"STACK", "STATE", "SERVICES", "REVISION"}, func(s api.StackInfo) []string {
			return []string{s.Name, s.State, strconv.Itoa(s.Services), strconv.FormatUint(s.Revision, 10)}
		})
	})
	return a.formatFlag(c, "table")
}

func (a *app) psCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "ps [STACK[/SERVICE]]", Short: "List the tasks of a stack, of a service, or all", Args: someArgs("at most one STACK, STACK/SERVICE or task", 0, 1),
	}
	all := c.Flags().BoolP("all", "a", false, "also tasks that were replaced or scaled away")
	c.RunE = a.withClient(func(c *cobra.Command, cl *api.Client, args []string) error {
		var f api.TaskFilter
		if len(args) == 1 {
			f.Stack, f.Service, _ = spec.SplitServiceKey(args[0])
		}
		l, err := cl.Tasks(c.Context(), f, api.Poll{})
		if errors.Is(err, spec.ErrNotFound) && f.Service == "" {
			if t, terr := cl.Task(c.Context(), args[0]); terr == nil {
				l, err = api.List[api.TaskInfo]{Items: []api.TaskInfo{t}}, nil
			}
		}
		if err != nil {
			return err
		}
		items := slices.DeleteFunc(l.Items, func(t api.TaskInfo) bool {
			return !*all && t.State.Terminal() && t.Desired != spec.DesiredRunning
		})
		slices.SortStableFunc(items, func(x, y api.TaskInfo) int {
			return cmp.Or(cmp.Compare(x.Stack, y.Stack), cmp.Compare(x.Service, y.Service), cmp.Compare(x.Slot, y.Slot))
		})
		return show(a, items, []string{"NAME", "ID", "NODE", "STATE", "SINCE", "IMAGE", "MESSAGE"}, func(t api.TaskInfo) []string {
			return []string{t.Name, string(t.ID), cmp.Or(t.Node, "-"), taskState(t), ago(t.Status.Since), shortImage(t.Image), taskMessage(t)}
		})
	})
	return a.formatFlag(c, "table")
}

// each does the same for all arguments and reports every failure.
func each(args []string, f func(string) error) error {
	var errs []error
	for _, arg := range args {
		if err := f(arg); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func taskState(t api.TaskInfo) string {
	switch {
	case t.State.Terminal():
		return string(t.State)
	case t.Desired != spec.DesiredRunning:
		return "stopping"
	case t.State == spec.TaskRunning && t.Status.PID == 0:
		return "back-off"
	case t.State == spec.TaskRunning && t.Health != spec.HealthNone && t.Health != "":
		return fmt.Sprintf("running (%s)", t.Health)
	}
	return string(t.State)
}

// taskMessage is the standing reason and, while a task keeps ending, how and
// with what last words.
func taskMessage(t api.TaskInfo) string {
	var parts []string
	if t.Canary {
		parts = append(parts, "canary")
	}
	if t.Error != "" {
		parts = append(parts, t.Error+lastLine(t))
	}
	if n := len(t.Attempts); n > 0 && t.State != spec.TaskStopped && t.Error == "" {
		parts = append(parts, attemptText(t.Attempts[n-1]))
	}
	if !t.Status.NextStart.IsZero() {
		if d := time.Until(t.Status.NextStart); d > 0 {
			parts = append(parts, "next start in "+short(d+time.Second))
		}
	}
	return strings.Join(parts, "; ")
}

// lastLine is the last one that a task wrote before its present reason.
func lastLine(t api.TaskInfo) string {
	n := len(t.Attempts)
	if n == 0 || t.Status.PID != 0 || t.State != spec.TaskFailed && t.State != spec.TaskRunning {
		return ""
	}
	if l := t.Attempts[n-1].LastLog; len(l) > 0 {
		return ": " + strings.TrimSpace(l[len(l)-1])
	}
	return ""
}

func attemptText(at spec.Attempt) string {
	var s string
	switch {
	case at.OOM:
		s = "last attempt was killed for lack of memory"
	case at.Error != "":
		s = at.Error
	case at.Signal != 0:
		s = fmt.Sprintf("last attempt was killed by signal %d", at.Signal)
	default:
		s = fmt.Sprintf("last attempt exited %d", at.ExitCode)
	}
	if n := len(at.LastLog); n > 0 {
		s += ": " + strings.TrimSpace(at.LastLog[n-1])
	}
	return s
}

func (a *app) serviceCmd() *cobra.Command {
	ls := &cobra.Command{Use: "ls [STACK]", Short: "List the services", Args: someArgs("at most one STACK", 0, 1)}
	ls.RunE = a.withClient(func(c *cobra.Command, cl *api.Client, args []string) error {
		stack := ""
		if len(args) == 1 {
			stack = args[0]
		}
		l, err := cl.Services(c.Context(), stack)
		if err != nil {
			return err
		}
		return show(a, l.Items, []string{"NAME", "MODE", "REPLICAS", "STATE", "IMAGE", "PORTS", "MESSAGE"}, func(s api.ServiceInfo) []string {
			ports := make([]string, len(s.Ports))
			for i, p := range s.Ports {
				ports[i] = portText(p)
			}
			return []string{spec.ServiceKey(s.Stack, s.Name), string(s.Mode), replicasText(s), s.State, shortImage(s.Image), strings.Join(ports, ","), s.Message}
		})
	})
	inspect := &cobra.Command{Use: "inspect STACK/SERVICE…", Short: "Print all that is known of services", Args: someArgs("services as STACK/SERVICE", 1, 0)}
	inspect.RunE = a.withClient(func(c *cobra.Command, cl *api.Client, args []string) error {
		var items []api.ServiceDetail
		for _, arg := range args {
			stack, name, err := serviceArg(arg)
			if err != nil {
				return err
			}
			s, err := cl.Service(c.Context(), stack, name)
			if err != nil {
				return err
			}
			items = append(items, s)
		}
		return show(a, items, []string{"NAME", "REPLICAS", "STATE", "IMAGE", "VIPS"}, func(s api.ServiceDetail) []string {
			var vips []string
			for _, v := range s.VIPs {
				vips = append(vips, v.Network+"="+v.Address)
				if v.Address6 != "" {
					vips = append(vips, v.Network+"="+v.Address6)
				}
			}
			return []string{spec.ServiceKey(s.Stack, s.Name), replicasText(s.ServiceInfo), s.State, shortImage(s.Image), strings.Join(vips, ",")}
		})
	})
	return group("service", "Look at services, scale, update and restart them", a.formatFlag(ls, "table"), a.formatFlag(inspect, "json"), a.scaleCmd(),
		a.serviceUpdateCmd(), a.restartCmd(), a.serviceRollbackCmd(), a.pauseCmd(), a.resumeCmd(), a.promoteCmd(), a.runNowCmd())
}

func replicasText(s api.ServiceInfo) string {
	if s.Mode.Job() {
		return fmt.Sprintf("%d/%d completed", s.Replicas.Completed, s.Replicas.Desired)
	}
	return fmt.Sprintf("%d/%d", s.Replicas.Running, s.Replicas.Desired)
}

func serviceArg(arg string) (stack, service string, err error) {
	stack, service, ok := spec.SplitServiceKey(arg)
	if !ok || stack == "" || service == "" {
		return "", "", exitWith(exitUsage, "%q: want STACK/SERVICE, such as shop/web", arg)
	}
	return stack, service, nil
}

func (a *app) scaleCmd() *cobra.Command {
	c := &cobra.Command{Use: "scale STACK/SERVICE=N…", Short: "Set the number of replicas and wait for them", Args: someArgs("STACK/SERVICE=N", 1, 0)}
	wait := addWait(c)
	c.RunE = a.withClient(func(c *cobra.Command, cl *api.Client, args []string) error {
		type target struct {
			stack, service string
			replicas       int
		}
		var targets []target
		for _, arg := range args {
			key, num, ok := strings.Cut(arg, "=")
			n, err := strconv.Atoi(num)
			if !ok || err != nil || n < 0 {
				return exitWith(exitUsage, "%q: want STACK/SERVICE=N, such as shop/web=3", arg)
			}
			stack, service, err := serviceArg(key)
			if err != nil {
				return err
			}
			targets = append(targets, target{stack, service, n})
		}
		index := map[string]uint64{}
		for _, t := range targets {
			w, err := cl.Scale(c.Context(), t.stack, t.service, api.Scale{Replicas: t.replicas, RequestID: requestID()})
			if err != nil {
				return err
			}
			index[t.stack] = w.Index
		}
		for _, t := range targets {
			i, ok := index[t.stack]
			if !ok {
				continue // waited for already
			}
			delete(index, t.stack)
			if err := a.waitStack(c.Context(), cl, t.stack, i, 0, wait); err != nil {
				return err
			}
		}
		return nil
	})
	return c
}
