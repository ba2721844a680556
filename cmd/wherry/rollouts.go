package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"wherry.dev/api"
	"wherry.dev/spec"
	"wherry.dev/spec/compose"
)

func (a *app) historyCmd() *cobra.Command {
	c := &cobra.Command{Use: "history STACK", Short: "List the revisions of a stack, and what became of each", Args: someArgs("one STACK", 1, 1)}
	c.RunE = a.withClient(func(c *cobra.Command, cl *api.Client, args []string) error {
		l, err := cl.History(c.Context(), args[0])
		if err != nil {
			return err
		}
		return show(a, l.Items, []string{"REVISION", "AGE", "AUTHOR", "RESULT", "MESSAGE"}, func(r api.StackRevision) []string {
			number := strconv.FormatUint(r.Revision, 10)
			if r.Current {
				number += " *"
			}
			message := r.Message
			if r.Why != "" {
				message = strings.TrimPrefix(message+"; "+r.Why, "; ")
			}
			return []string{number, ago(r.Time), cmp.Or(r.Author, "-"), strings.ReplaceAll(r.State, "_", " "), message}
		})
	})
	return a.formatFlag(c, "table")
}

// back are the flags of commands that go back to an older revision.
type back struct {
	to      uint64
	message string
	force   bool
	dry     bool
	wait    *waitFlags
}

func (b *back) flags(c *cobra.Command) {
	c.Flags().Uint64Var(&b.to, "to", 0, "revision to go back to (default: the last one that completed and differs)")
	c.Flags().StringVarP(&b.message, "message", "m", "", "a line for the history of the stack")
	c.Flags().BoolVar(&b.force, "force", false, "also if somebody else changed the stack meanwhile")
	c.Flags().BoolVar(&b.dry, "dry-run", false, "show what would be done, and do nothing")
	b.wait = addWaitFor(c, updateTimeout)
}

// rollBack takes a stack or one service of it back, and waits for it.
func (a *app) rollBack(ctx context.Context, cl *api.Client, stack, service string, b *back) error {
	r := api.Rollback{To: b.to, Message: b.message, Author: author(), RequestID: requestID()}
	if b.dry {
		p, err := cl.Plan(ctx, api.PutStack{Stack: spec.Stack{Name: stack}, Back: &r, BackService: service})
		if err != nil {
			return err
		}
		a.format = "table"
		return a.showPlans([]api.Plan{p})
	}
	if !b.force {
		base, err := baseOf(ctx, cl, stack)
		if err != nil {
			return err
		}
		if *base != 0 { // else let the answer say that there is no such stack
			r.Base = base
		}
	}
	w, err := cl.RollbackStack(ctx, stack, service, r)
	if err != nil {
		return err
	}
	what := "unchanged"
	if w.Changed {
		what = "rolled back"
	}
	fmt.Fprintf(a.err, "%s: %s, revision %d\n", stack, what, w.Revision)
	return a.waitStack(ctx, cl, stack, w.Index, w.Revision, b.wait)
}

func (a *app) rollbackCmd() *cobra.Command {
	var b back
	c := &cobra.Command{
		Use: "rollback STACK", Short: "Take a stack back to an older revision, and wait for it", Args: someArgs("one STACK", 1, 1),
		Long: "Take a stack back to an older revision: its services, with the images that were pinned, the contents and the ports of then.\n" +
			"Volumes stay as they are. What it declared becomes a new revision, which is rolled out by deploy.rollback_config.",
		Example: "  wherry history shop\n  wherry rollback shop          # to the last revision that completed and differs\n  wherry rollback shop --to 3",
	}
	b.flags(c)
	c.RunE = a.withClient(func(c *cobra.Command, cl *api.Client, args []string) error {
		return a.rollBack(c.Context(), cl, args[0], "", &b)
	})
	return c
}

func (a *app) serviceRollbackCmd() *cobra.Command {
	var b back
	c := &cobra.Command{Use: "rollback STACK/SERVICE", Short: "Take one service back to an older revision, and wait for it", Args: someArgs("one STACK/SERVICE", 1, 1)}
	b.flags(c)
	c.RunE = a.withClient(func(c *cobra.Command, cl *api.Client, args []string) error {
		stack, service, err := serviceArg(args[0])
		if err != nil {
			return err
		}
		return a.rollBack(c.Context(), cl, stack, service, &b)
	})
	return c
}

// onServices makes a command that does the same to each service it is given.
func (a *app) onServices(use, short string, do func(ctx context.Context, cl *api.Client, stack, service string) error) *cobra.Command {
	c := &cobra.Command{Use: use + " STACK/SERVICE…", Short: short, Args: someArgs("services as STACK/SERVICE", 1, 0)}
	c.RunE = a.withClient(func(c *cobra.Command, cl *api.Client, args []string) error {
		for _, arg := range args {
			if _, _, err := serviceArg(arg); err != nil {
				return err
			}
		}
		return each(args, func(arg string) error {
			stack, service, err := serviceArg(arg)
			if err != nil {
				return err
			}
			return do(c.Context(), cl, stack, service)
		})
	})
	return c
}

func (a *app) pauseCmd() *cobra.Command {
	return a.onServices("pause", "Stop an update before its next batch", func(ctx context.Context, cl *api.Client, stack, service string) error {
		if _, err := cl.Steer(ctx, stack, service, "pause", api.Steer{Author: author(), RequestID: requestID()}); err != nil {
			return err
		}
		fmt.Fprintf(a.out, "%s: paused; `wherry service resume` goes on\n", spec.ServiceKey(stack, service))
		return nil
	})
}

func (a *app) resumeCmd() *cobra.Command {
	var w *waitFlags
	c := a.onServices("resume", "Go on with an update that was paused or has failed", func(ctx context.Context, cl *api.Client, stack, service string) error {
		return a.steer(ctx, cl, stack, service, "resume", w)
	})
	w = addWaitFor(c, updateTimeout)
	return c
}

func (a *app) promoteCmd() *cobra.Command {
	var w *waitFlags
	c := a.onServices("promote", "Go on with an update behind its canary", func(ctx context.Context, cl *api.Client, stack, service string) error {
		return a.steer(ctx, cl, stack, service, "promote", w)
	})
	w = addWaitFor(c, updateTimeout)
	return c
}

func (a *app) restartCmd() *cobra.Command {
	var w *waitFlags
	c := a.onServices("restart", "Replace all tasks, as an update does", func(ctx context.Context, cl *api.Client, stack, service string) error {
		return a.steer(ctx, cl, stack, service, "restart", w)
	})
	w = addWaitFor(c, updateTimeout)
	return c
}

func (a *app) runNowCmd() *cobra.Command {
	var w *waitFlags
	c := a.onServices("run-now", "Run a job once more, and wait for it", func(ctx context.Context, cl *api.Client, stack, service string) error {
		return a.steer(ctx, cl, stack, service, "run", w)
	})
	w = addWaitFor(c, updateTimeout)
	return c
}

func (a *app) steer(ctx context.Context, cl *api.Client, stack, service, action string, w *waitFlags) error {
	res, err := cl.Steer(ctx, stack, service, action, api.Steer{Author: author(), RequestID: requestID()})
	if err != nil {
		return err
	}
	return a.waitStack(ctx, cl, stack, res.Index, res.Revision, w)
}

func (a *app) serviceUpdateCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "update STACK/SERVICE", Short: "Give a service another image, and wait for it", Args: someArgs("one STACK/SERVICE", 1, 1),
		Long: "Give a service another image, or the newest one of the same name, as a new revision of its stack.\n" +
			"All else is changed in the file of the stack, which also wins at its next apply.",
		Example: "  wherry service update shop/web --image registry.example/web:1.2\n  wherry service update shop/web --pull",
	}
	image := c.Flags().String("image", "", "the new image")
	pull := c.Flags().Bool("pull", false, "ask the registry again about the image")
	message := c.Flags().StringP("message", "m", "", "a line for the history of the stack")
	wait := addWaitFor(c, updateTimeout)
	c.RunE = func(c *cobra.Command, args []string) error {
		stack, service, err := serviceArg(args[0])
		if err != nil {
			return err
		}
		if *image == "" && !*pull {
			return exitWith(exitUsage, "update wants --image or --pull; all else is changed in the file of the stack")
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		put, err := a.withImage(c.Context(), cl, stack, service, *image, *pull)
		if err != nil {
			return err
		}
		put.Message = *message
		w, err := cl.PutStack(c.Context(), put)
		if errors.Is(err, spec.ErrConflict) {
			return fmt.Errorf("%w: somebody changed it meanwhile; try again", err)
		}
		if err != nil {
			return err
		}
		what := "unchanged"
		if w.Changed {
			what = "updated"
		}
		fmt.Fprintf(a.err, "%s: %s, revision %d\n", args[0], what, w.Revision)
		return a.waitStack(c.Context(), cl, stack, w.Index, w.Revision, wait)
	}
	return c
}

// withImage returns what the stack declares, but for the image of one service.
func (a *app) withImage(ctx context.Context, cl *api.Client, stack, service, image string, pull bool) (api.PutStack, error) {
	d, err := cl.Stack(ctx, stack)
	if err != nil {
		return api.PutStack{}, err
	}
	svc, ok := d.Spec.Services[service]
	if !ok {
		return api.PutStack{}, spec.NotFoundf("stack %s has no service %q", stack, service)
	}
	if err := setImage(&svc.Template, cmp.Or(image, svc.Template.Image)); err != nil {
		return api.PutStack{}, &exitError{exitInvalid, err}
	}
	d.Spec.Services[service] = svc
	put := api.PutStack{Stack: d.Spec, Base: &d.Version, Author: author(), RequestID: requestID()}
	if pull {
		put.PullServices = []string{service}
	}
	return put, nil
}

// setImage changes the image of a service, also where containers before it have
// the same: a migration is of one version with what it migrates for.
func setImage(t *spec.Template, image string) error {
	name, digest, err := compose.NormalizeImage(image)
	if err != nil {
		return err
	}
	for i := range t.PreStart {
		if h := &t.PreStart[i]; h.Image == t.Image {
			h.Image, h.Digest = name, digest
		}
	}
	t.Image, t.Digest = name, digest
	return nil
}
