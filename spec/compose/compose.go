package compose

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"wherry.dev/spec"
)

// Options say what to load.
type Options struct {
	// Files are merged in order; "-" reads Stdin. Relative names are relative
	// to the current directory. At least one is needed.
	Files []string
	// Stdin is the data of the file "-".
	Stdin io.Reader
	// Name of the stack; empty takes COMPOSE_PROJECT_NAME, then the files'
	// "name", then the name of WorkingDir.
	Name string
	// EnvFiles take the place of ".env" in WorkingDir.
	EnvFiles []string
	// Profiles that are active; "*" is all. None takes COMPOSE_PROFILES.
	Profiles []string
	// Env is the environment for interpolation; it wins over env files.
	Env map[string]string
	// WorkingDir is the folder that paths in the files are relative to; empty
	// is the folder of the first file.
	WorkingDir string
	// Accept names keys by the paths that findings have. One that is refused is
	// left out, and the refusal becomes a finding of the verdict Accepted.
	Accept []string
}

// Verdict is what a finding means for the user.
type Verdict string

// The verdicts of findings.
const (
	// Refused: the stack cannot be applied.
	Refused Verdict = "refused"
	// NoEffect: the key is understood and does nothing on a cluster.
	NoEffect Verdict = "no-effect"
	// Note: the key is honoured in a way worth knowing.
	Note Verdict = "note"
	// Accepted: the key would be refused, and was left out on demand.
	Accepted Verdict = "accepted"
)

// Finding is something to say about one place of the input.
type Finding struct {
	Verdict Verdict `json:"verdict"`
	// Path of the key, such as "services.web.ports[0]"; empty for the file.
	Path string `json:"path,omitempty"`
	File string `json:"file,omitempty"`
	// Line and Column count from 1; 0 is unknown.
	Line    int    `json:"line,omitempty"`
	Column  int    `json:"column,omitempty"`
	Message string `json:"message"`
	// Hint is what to do about it; empty when there is nothing to do.
	Hint string `json:"hint,omitempty"`
}

// String returns "file:line:column: path: message; hint".
func (f Finding) String() string {
	var b strings.Builder
	if f.File != "" {
		b.WriteString(f.File)
		if f.Line > 0 {
			fmt.Fprintf(&b, ":%d:%d", f.Line, f.Column)
		}
		b.WriteString(": ")
	}
	if f.Path != "" {
		b.WriteString(f.Path + ": ")
	}
	b.WriteString(f.Message)
	if f.Hint != "" {
		b.WriteString("; " + f.Hint)
	}
	return b.String()
}

// Result is what Load made of the input.
type Result struct {
	// Stack is complete and valid when Err returns nil; else it is what could
	// be made out, for display only.
	Stack spec.Stack
	// Contents are the packed contents that Stack refers to, by plain ID.
	Contents map[spec.ContentID][]byte
	// Findings in the order of files and lines.
	Findings []Finding
	// Unaccepted says why keys of Options.Accept let nothing through.
	Unaccepted map[string]string
}

// Err returns nil when nothing was refused, else an error of class
// spec.ErrInvalid with one line for each refusal.
func (r Result) Err() error {
	var lines []string
	for _, f := range r.Findings {
		if f.Verdict == Refused {
			lines = append(lines, f.String())
		}
	}
	if len(lines) == 0 {
		return nil
	}
	return spec.Invalidf("%s", strings.Join(lines, "\n"))
}

// Load reads the files of o. Everything that is wrong with the input is in the
// findings of the result; the error is for what is not the input's fault: a
// file that cannot be read, a cancelled ctx.
func Load(ctx context.Context, o Options) (Result, error) {
	registerRaw()
	l, err := newLoading(ctx, o)
	if err != nil {
		return Result{}, err
	}
	l.run()
	l = l.accepting()
	if err := ctx.Err(); err != nil {
		return Result{}, fmt.Errorf("load stack: %w", err)
	}
	return l.result(), nil
}

// loading is the state of one Load.
type loading struct {
	ctx      context.Context
	opts     Options
	dir      string // absolute project folder
	env      map[string]string
	profiles []string
	mains    []mainFile
	// tree is the merged view of all files, as written.
	tree *node
	// diagnosing: the files were refused and their merged view is examined, in
	// which paths of included files have lost the folder they belong to.
	diagnosing bool
	files      fileSet
	findings   []Finding
	seen       map[string]bool // findings, to say nothing twice
	stack      spec.Stack
	// origins are the paths of what is elsewhere in the model, by its path there.
	origins  map[string]path
	contents map[spec.ContentID][]byte
	// model is compose-go's merged model, which also knows what zero values hide;
	// nil before the conversion.
	model map[string]any
	// accepted are the findings on keys that are left out, and left where these
	// are in the merged view.
	accepted []Finding
	left     []path
}

// run goes through the stages; each one adds findings, and those after which
// going on makes no sense end it.
func (l *loading) run() {
	if !l.readEnvironment() || !l.readTree() {
		return
	}
	l.dropAccepted()
	l.judge()
	l.checkVariables()
	l.checkModes()
	project, ok := l.project()
	if !ok {
		return
	}
	l.convert(project)
}

func (l *loading) result() Result {
	slices.SortStableFunc(l.findings, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(l.files.order(a.File), l.files.order(b.File)),
			cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), cmp.Compare(a.Path, b.Path))
	})
	return Result{Stack: l.stack, Contents: l.contents, Findings: l.findings, Unaccepted: l.unaccepted()}
}

// refusals reports whether anything was refused so far.
func (l *loading) refusals() int {
	n := 0
	for _, f := range l.findings {
		if f.Verdict == Refused {
			n++
		}
	}
	return n
}

// add records a finding once.
func (l *loading) add(f Finding) {
	key := fmt.Sprintf("%s\x00%s\x00%s\x00%d\x00%s", f.Verdict, f.Path, f.File, f.Line, f.Message)
	if l.seen[key] {
		return
	}
	l.seen[key] = true
	l.findings = append(l.findings, f)
}

// at records a finding at a path of the merged view.
func (l *loading) at(v Verdict, p path, message, hint string) {
	n := l.tree.find(p)
	l.add(Finding{Verdict: v, Path: p.String(), File: n.file, Line: n.line, Column: n.column, Message: message, Hint: hint})
}

// refuse records a refusal. Without a better hint it names the variables of the
// value that are not set: an empty one is why most of such values are wrong.
func (l *loading) refuse(p path, hint, format string, args ...any) {
	if n := l.tree.get(p...); hint == "" && n != nil {
		if unset := l.unset(n); len(unset) > 0 {
			hint = "set " + strings.Join(unset, ", ") + ", which is not set and counts as empty"
		}
	}
	l.at(Refused, p, fmt.Sprintf(format, args...), hint)
}

func (l *loading) note(p path, format string, args ...any) {
	l.at(Note, p, fmt.Sprintf(format, args...), "")
}

func (l *loading) noEffect(p path, format string, args ...any) {
	l.at(NoEffect, p, fmt.Sprintf(format, args...), "")
}
