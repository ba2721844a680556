package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"gopkg.in/yaml.v3"

	"wherry.dev/api"
	"wherry.dev/spec"
	"wherry.dev/spec/compose"
)

// source is where the stacks of a command come from.
type source struct {
	files    []string
	name     string
	envFiles []string
	profiles []string
	accept   []string
}

func (s *source) flags(c *cobra.Command) {
	f := c.Flags()
	f.StringArrayVarP(&s.files, "file", "f", nil, "stack file, folder of stack files, or - for standard input; several files make one stack")
	f.StringVar(&s.name, "name", "", "name of the stack (default: name: in the file, else its folder)")
	f.StringArrayVar(&s.envFiles, "env-file", nil, "file with variables for ${…} (default: .env beside the stack file)")
	f.StringArrayVar(&s.profiles, "profile", nil, "also take services of this profile")
	f.StringArrayVar(&s.accept, "accept", nil, "leave out this key, as services.NAME.KEY, that is refused")
}

// load reads the stacks, prints what there is to say of them, and fails when
// anything was refused.
func (a *app) load(ctx context.Context, s *source) ([]compose.Result, error) {
	sets, err := s.sets()
	if err != nil {
		return nil, err
	}
	env := map[string]string{}
	for _, kv := range os.Environ() {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v
	}
	var results []compose.Result
	refused := 0
	from := map[string]string{} // :: name of a stack → its first file
	for _, set := range sets {
		r, err := compose.Load(ctx, compose.Options{Files: set.files, Stdin: a.in, Name: set.name,
			EnvFiles: s.envFiles, Profiles: s.profiles, Env: env, Accept: s.accept})
		if err != nil {
			return nil, &exitError{exitInvalid, err} // a file that cannot be read
		}
		for _, f := range r.Findings {
			fmt.Fprintln(a.err, findingText(f))
			if f.Verdict == compose.Refused {
				refused++
			}
		}
		if first, ok := from[r.Stack.Name]; ok {
			return nil, exitWith(exitInvalid, "%s and %s both make the stack %s; give one of them another name:", first, set.files[0], r.Stack.Name)
		}
		from[r.Stack.Name] = set.files[0]
		results = append(results, r)
	}
	if refused > 0 {
		return nil, &exitError{exitInvalid, fmt.Errorf("%s; nothing was changed", count(refused, "problem"))}
	}
	if err := unaccepted(s.accept, results); err != nil {
		return nil, &exitError{exitInvalid, err}
	}
	return ownersFirst(results), nil
}

// unaccepted is the error for keys of --accept that let no file through.
func unaccepted(keys []string, results []compose.Result) error {
	var errs []error
	for _, k := range keys {
		why, useless := "", true
		for _, r := range results {
			reason, ok := r.Unaccepted[k]
			useless = useless && ok
			why = cmp.Or(why, reason)
		}
		if useless {
			errs = append(errs, spec.Invalidf("--accept %s: %s", k, why))
		}
	}
	return errors.Join(errs...)
}

// ownersFirst puts before each stack those that declare the networks which it
// names as external, so that it does not wait for what comes later.
func ownersFirst(stacks []compose.Result) []compose.Result {
	var out []compose.Result
	seen := map[string]bool{} // by name
	var visit func(compose.Result)
	visit = func(r compose.Result) {
		if seen[r.Stack.Name] {
			return
		}
		seen[r.Stack.Name] = true
		for _, owner := range stacks {
			if joins(&r.Stack, &owner.Stack) {
				visit(owner)
			}
		}
		out = append(out, r)
	}
	for _, r := range stacks {
		visit(r)
	}
	return out
}

// joins reports whether an external network of s is one that owner declares.
func joins(s, owner *spec.Stack) bool {
	for short, n := range s.Networks {
		for other, m := range owner.Networks {
			if n.External && !m.External && n.ClusterName(s.Name, short) == m.ClusterName(owner.Name, other) {
				return true
			}
		}
	}
	return false
}

// fileSet are the files of one stack, and its name where it is known already.
type fileSet struct {
	files []string
	name  string
}

// sets returns the files of each stack: several files merge into one stack, a
// folder has one stack per file, which is called as its file unless it says
// its name itself.
func (s *source) sets() ([]fileSet, error) {
	if len(s.files) == 0 {
		for _, n := range []string{"stack.yml", "stack.yaml", "compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml"} {
			if _, err := os.Stat(n); err == nil {
				return []fileSet{{[]string{n}, s.name}}, nil
			}
		}
		return nil, exitWith(exitUsage, "no stack file given and none found here; name one with -f FILE")
	}
	var dirs []string
	for _, f := range s.files {
		if st, err := os.Stat(f); err == nil && st.IsDir() {
			dirs = append(dirs, f)
		}
	}
	if len(dirs) == 0 {
		return []fileSet{{s.files, s.name}}, nil
	}
	if len(dirs) != len(s.files) {
		return nil, exitWith(exitUsage, "-f takes either files, which make one stack, or folders with one stack per file, not both")
	}
	if s.name != "" {
		return nil, exitWith(exitUsage, "--name does not go with a folder of stacks")
	}
	var sets []fileSet
	for _, d := range dirs {
		entries, err := os.ReadDir(d)
		if err != nil {
			return nil, fmt.Errorf("read folder of stacks: %w", err)
		}
		for _, e := range entries {
			p := filepath.Join(d, e.Name())
			ext := filepath.Ext(p)
			if e.IsDir() || ext != ".yml" && ext != ".yaml" {
				continue
			}
			stack, named := outline(p)
			switch {
			case stack && named:
				sets = append(sets, fileSet{files: []string{p}})
			case stack:
				sets = append(sets, fileSet{[]string{p}, strings.TrimSuffix(e.Name(), ext)})
			}
		}
	}
	if len(sets) == 0 {
		return nil, exitWith(exitInvalid, "no file in %s has top-level services: or networks:", strings.Join(dirs, ", "))
	}
	return sets, nil
}

// outline reports whether a file is a stack, by top-level services: or networks:,
// and has a name:. A file that is no YAML counts as a stack, so that its fault
// is reported.
func outline(path string) (stack, named bool) {
	b, err := os.ReadFile(path)
	if err != nil {
		return true, true
	}
	var doc map[string]yaml.Node
	if yaml.Unmarshal(b, &doc) != nil {
		return true, true
	}
	_, services := doc["services"]
	_, networks := doc["networks"]
	_, named = doc["name"]
	return services || networks, named
}

func findingText(f compose.Finding) string {
	var b strings.Builder
	if f.File != "" {
		fmt.Fprintf(&b, "%s:", f.File)
		if f.Line > 0 {
			fmt.Fprintf(&b, "%d:", f.Line)
		}
		b.WriteByte(' ')
	}
	switch f.Verdict {
	case compose.Refused:
		b.WriteString("refused: ")
	case compose.NoEffect:
		b.WriteString("no effect: ")
	case compose.Accepted:
		b.WriteString("accepted: ")
	default:
		b.WriteString("note: ")
	}
	if f.Path != "" {
		fmt.Fprintf(&b, "%s: ", f.Path)
	}
	b.WriteString(f.Message)
	if f.Hint != "" {
		b.WriteString("; " + f.Hint)
	}
	return b.String()
}

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func (a *app) validateCmd() *cobra.Command {
	var src source
	c := &cobra.Command{
		Use: "validate -f FILE", Short: "Judge every key of a stack file, without a daemon", Args: noArgs("name the file with -f"),
		RunE: func(c *cobra.Command, _ []string) error {
			results, err := a.load(c.Context(), &src)
			if err != nil {
				return err
			}
			for _, r := range results {
				if err := spec.ValidateStack(&r.Stack); err != nil {
					return err
				}
				what := count(len(r.Stack.Services), "service")
				if len(r.Stack.Services) == 0 {
					what = count(len(r.Stack.Networks), "network")
				}
				fmt.Fprintf(a.out, "%s: %s, valid\n", r.Stack.Name, what)
			}
			return nil
		},
	}
	src.flags(c)
	return c
}

// putFlags are the flags that plan and apply have in common.
type putFlags struct {
	source
	prune bool
	pull  bool
}

func (p *putFlags) flags(c *cobra.Command) {
	p.source.flags(c)
	c.Flags().BoolVar(&p.prune, "prune", true, "remove services that are no longer in the file (never volumes)")
	c.Flags().BoolVar(&p.pull, "pull", false, "ask the registry again about images that are pinned already")
}

func (p *putFlags) request(r compose.Result) api.PutStack {
	return api.PutStack{Stack: r.Stack, Contents: r.Contents, KeepOthers: !p.prune, Pull: p.pull, Author: author()}
}

func (a *app) planCmd() *cobra.Command {
	var p putFlags
	c := &cobra.Command{Use: "plan -f FILE", Short: "Show what apply would do, and change nothing", Args: noArgs("name the file with -f")}
	p.flags(c)
	exitCode := c.Flags().Bool("exit-code", false, "exit 10 when there is something to do")
	a.formatFlag(c, "table")
	c.RunE = func(c *cobra.Command, _ []string) error {
		plans, err := a.plans(c.Context(), &p)
		if err != nil {
			return err
		}
		if err := a.showPlans(plans); err != nil {
			return err
		}
		if *exitCode && slices.ContainsFunc(plans, func(p api.Plan) bool { return !p.Empty() }) {
			return &exitError{code: 10}
		}
		return nil
	}
	return c
}

func (a *app) plans(ctx context.Context, p *putFlags) ([]api.Plan, error) {
	results, err := a.load(ctx, &p.source)
	if err != nil {
		return nil, err
	}
	cl, err := a.client()
	if err != nil {
		return nil, err
	}
	var plans []api.Plan
	for _, r := range results {
		pl, err := cl.Plan(ctx, p.request(r))
		if err != nil {
			return nil, err
		}
		for _, f := range r.Findings {
			if f.Verdict == compose.Accepted {
				pl.Notes = append(pl.Notes, f.Path+" "+f.Message)
			}
		}
		plans = append(plans, pl)
	}
	return plans, nil
}

func (a *app) showPlans(plans []api.Plan) error {
	if a.format != "table" {
		return show(a, plans, nil, nil)
	}
	mark := map[string]string{"create": "+", "update": "~", "replace": "±", "remove": "-"}
	for _, p := range plans {
		if p.Empty() {
			fmt.Fprintf(a.out, "stack %s: nothing to do\n", p.Stack)
			continue
		}
		fmt.Fprintf(a.out, "stack %s\n", p.Stack)
		for _, ch := range p.Changes {
			fmt.Fprintf(a.out, "  %s %s %s\n", mark[ch.Action], ch.Kind, ch.Name)
			if ch.Action == "create" {
				continue // what is new is in the file
			}
			for _, f := range ch.Fields {
				fmt.Fprintf(a.out, "      %s\n", fieldText(f))
			}
		}
		for _, t := range p.Tasks {
			on := ""
			if t.Node != "" {
				on = " on " + t.Node
			}
			fmt.Fprintf(a.out, "  %s task %s%s: %s\n", mark[t.Action], t.Name, on, t.Why)
		}
		for _, n := range p.Notes {
			fmt.Fprintf(a.out, "  note: %s\n", n)
		}
	}
	return nil
}

func fieldText(f spec.FieldDiff) string {
	switch {
	case f.Old == "":
		return fmt.Sprintf("%s: %s", f.Path, f.New)
	case f.New == "":
		return fmt.Sprintf("%s: %s → (none)", f.Path, f.Old)
	}
	return fmt.Sprintf("%s: %s → %s", f.Path, f.Old, f.New)
}

func (a *app) applyCmd() *cobra.Command {
	var p putFlags
	c := &cobra.Command{
		Use: "apply -f FILE", Short: "Make the cluster run what a stack file says, and wait until it does", Args: noArgs("name the file with -f"),
		SuggestFor: []string{"up", "deploy"},
	}
	p.flags(c)
	wait := addWaitFor(c, updateTimeout)
	dry := c.Flags().Bool("dry-run", false, "the same as plan")
	force := c.Flags().Bool("force", false, "apply even if somebody else changed the stack meanwhile")
	message := c.Flags().StringP("message", "m", "", "a line for the history of the stack")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if *dry {
			plans, err := a.plans(c.Context(), &p)
			if err != nil {
				return err
			}
			a.format = "table"
			return a.showPlans(plans)
		}
		results, err := a.load(c.Context(), &p.source)
		if err != nil {
			return err
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		for _, r := range results {
			req := p.request(r)
			req.Message, req.RequestID = *message, requestID()
			if !*force {
				if req.Base, err = baseOf(c.Context(), cl, r.Stack.Name); err != nil {
					return err
				}
			}
			w, err := cl.PutStack(c.Context(), req)
			if errors.Is(err, spec.ErrConflict) && req.Base != nil && strings.Contains(err.Error(), "version") {
				return fmt.Errorf("%w: somebody changed it meanwhile; look at `wherry plan` and apply again, or use --force", err)
			}
			if err != nil {
				return err
			}
			what := "unchanged"
			if w.Changed {
				what = "applied"
			}
			fmt.Fprintf(a.err, "%s: %s, revision %d\n", r.Stack.Name, what, w.Revision)
			if err := a.waitStack(c.Context(), cl, r.Stack.Name, w.Index, w.Revision, wait); err != nil {
				return err
			}
		}
		return nil
	}
	return c
}

// baseOf returns the version of the stack that a write is based on; 0 when
// there is no such stack.
func baseOf(ctx context.Context, cl *api.Client, stack string) (*uint64, error) {
	var base uint64
	d, err := cl.Stack(ctx, stack)
	switch {
	case err == nil:
		base = d.Version
	case !errors.Is(err, spec.ErrNotFound):
		return nil, err
	}
	return &base, nil
}

func (a *app) rmCmd() *cobra.Command {
	c := &cobra.Command{
		Use: "rm STACK…", Short: "Stop and remove stacks; their volumes stay unless --volumes is given", Args: someArgs("names of stacks", 1, 0),
		SuggestFor: []string{"down"},
	}
	volumes := c.Flags().Bool("volumes", false, "also delete the volumes of the stack and all their data")
	wait := addWait(c)
	c.RunE = a.withClient(func(c *cobra.Command, cl *api.Client, args []string) error {
		return each(args, func(name string) error { return a.removeStack(c.Context(), cl, name, *volumes, wait) })
	})
	return c
}

func (a *app) removeStack(ctx context.Context, cl *api.Client, name string, volumes bool, wait *waitFlags) error {
	w, err := cl.RemoveStack(ctx, name, volumes, requestID())
	kept, lerr := volumesOf(ctx, cl, name)
	if lerr != nil {
		return errors.Join(err, lerr)
	}
	if errors.Is(err, spec.ErrNotFound) && volumes && len(kept) > 0 {
		// The stack was removed before; what is left of it are its volumes.
		return each(kept, func(v string) error {
			if _, err := cl.RemoveVolume(ctx, v, requestID()); err != nil {
				return err
			}
			fmt.Fprintf(a.err, "%s: volume %s removed\n", name, v)
			return nil
		})
	}
	if err != nil {
		return err
	}
	if wait.wait {
		if err := a.waitGone(ctx, cl, name, w.Index, volumes, wait); err != nil {
			return err
		}
		fmt.Fprintf(a.err, "%s: removed\n", name)
		if err := a.tellKept(ctx, cl, name); err != nil {
			return err
		}
	}
	if !volumes && len(kept) > 0 {
		fmt.Fprintf(a.err, "%s kept: %s; `wherry rm %s --volumes` deletes them\n", count(len(kept), "volume"), strings.Join(kept, ", "), name)
	}
	return nil
}

// tellKept names the networks of a stack that outlive it.
func (a *app) tellKept(ctx context.Context, cl *api.Client, stack string) error {
	l, err := cl.Networks(ctx)
	if err != nil {
		return err
	}
	for _, n := range l.Items {
		if n.Stack == stack && n.State == api.NetworkKept {
			fmt.Fprintf(a.err, "network %s stays as long as it is used by %s\n", n.Name, strings.Join(n.Services, ", "))
		}
	}
	return nil
}

// volumesOf names the volumes of a stack that are not being removed.
func volumesOf(ctx context.Context, cl *api.Client, stack string) ([]string, error) {
	l, err := cl.Volumes(ctx, false)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, v := range l.Items {
		if v.Stack == stack && !v.Removing {
			names = append(names, v.Name)
		}
	}
	return names, nil
}

// waitFlags say whether and how long to wait.
type waitFlags struct {
	wait    bool
	timeout time.Duration
}

// updateTimeout is more than the time after which an update that gets no further
// has failed, and is taken back.
const updateTimeout = 30 * time.Minute

func addWait(c *cobra.Command) *waitFlags { return addWaitFor(c, 10*time.Minute) }

func addWaitFor(c *cobra.Command, timeout time.Duration) *waitFlags {
	var w waitFlags
	c.Flags().BoolVar(&w.wait, "wait", true, "wait until it is done")
	c.Flags().DurationVar(&w.timeout, "timeout", timeout, "give up waiting after this long; the cluster goes on")
	return &w
}

// within returns a context that ends after the timeout, or when ctx does.
func (w *waitFlags) within(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, cmp.Or(w.timeout, 10*time.Minute))
}
