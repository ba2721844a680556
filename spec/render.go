package spec

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"text/template"
	"text/template/parse"
)

// RenderFacts are what a template of a secret or config can name, as in Swarm:
// {{.Service.Name}}, {{.Task.Slot}}, {{.Node.Hostname}}.
type RenderFacts struct {
	Service struct {
		ID string
		// Name is "stack_service".
		Name   string
		Labels map[string]string
	}
	Task struct {
		ID string
		// Name is "stack.service.slot".
		Name string
		// Slot is the place of the task: a number, or the node's ID.
		Slot string
	}
	Node struct {
		ID       string
		Hostname string
		Platform struct{ Architecture, OS string }
	}
}

// RenderFuncs answer {{env "NAME"}}, {{secret "NAME"}} and {{config "NAME"}}.
type RenderFuncs struct {
	// Env is the environment that the stack gives to the service.
	Env map[string]string
	// Datum returns the bytes of a secret or config of the same task, which may
	// itself not be a template. Who asks calls it by its name in the stack or by
	// its target.
	Datum func(k DatumKind, name string) (string, error)
	// MadeUp: Datum returns nothing secret, so that errors may show all.
	MadeUp bool
}

const (
	// maxRendered bounds the output of a template in bytes.
	maxRendered = MaxContent
	// maxTicks bounds how often the parts of a template are repeated.
	maxTicks = 20_000
	tickName = "_tick"
)

// Render fills in a template in the language of text/template, that of a secret
// or of a config. Name is how errors call it; they begin with name, line and,
// where it is known, column, and never hold anything of a secret.
func Render(kind DatumKind, name, text string, facts RenderFacts, funcs RenderFuncs) ([]byte, error) {
	ticks, secret := 0, false // a secret is in the play
	datum := func(k DatumKind) func(string) (string, error) {
		return func(n string) (string, error) {
			secret = secret || k == DatumSecret && !funcs.MadeUp
			return funcs.Datum(k, n)
		}
	}
	t, err := template.New(name).Option("missingkey=error").Funcs(template.FuncMap{
		"env":    func(n string) string { return funcs.Env[n] },
		"secret": datum(DatumSecret),
		"config": datum(DatumConfig),
		"join":   func(sep string, parts ...string) string { return strings.Join(parts, sep) },
		tickName: func() (string, error) {
			if ticks++; ticks > maxTicks {
				return "", errors.New("it takes too long: a template may repeat itself 20,000 times")
			}
			return "", nil
		},
	}).Parse(text)
	if err != nil {
		return nil, renderError(kind, err, false)
	}
	tick := template.Must(template.New(name).Funcs(template.FuncMap{tickName: func() string { return "" }}).Parse("{{" + tickName + "}}")).Root.Nodes[0]
	for _, x := range t.Templates() {
		if x.Tree != nil && x.Root != nil {
			count(x.Root, tick)
			x.Root.Nodes = slices.Insert(x.Root.Nodes, 0, tick)
		}
	}
	out := &bounded{}
	if err := t.Execute(out, facts); err != nil {
		return nil, renderError(kind, err, secret)
	}
	return out.Bytes(), nil
}

// count has every round of a loop counted: a template of a few lines may else
// keep a node busy for ever.
func count(n parse.Node, tick parse.Node) {
	branch := func(b *parse.BranchNode) {
		count(b.List, tick)
		if b.ElseList != nil {
			count(b.ElseList, tick)
		}
	}
	switch n := n.(type) {
	case *parse.ListNode:
		for _, x := range n.Nodes {
			count(x, tick)
		}
	case *parse.IfNode:
		branch(&n.BranchNode)
	case *parse.WithNode:
		branch(&n.BranchNode)
	case *parse.RangeNode:
		branch(&n.BranchNode)
		n.List.Nodes = slices.Insert(n.List.Nodes, 0, tick)
	}
}

type bounded struct{ bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	if b.Len()+len(p) > maxRendered {
		return 0, fmt.Errorf("it renders to more than %d KiB", maxRendered>>10)
	}
	return b.Buffer.Write(p)
}

// position is where an error of package template begins: the name of the
// template, a line and perhaps a column.
var position = regexp.MustCompile(`^(.*?:\d+(?::\d+)?): (executing .*? at <.*?>: )?`)

// renderError leaves out the words of the template package that may quote a
// secret: the template itself, or a value that came into it.
func renderError(kind DatumKind, err error, secret bool) error {
	text := strings.TrimPrefix(err.Error(), "template: ")
	m := position.FindStringSubmatch(text)
	switch {
	case kind == DatumSecret && m != nil:
		return Invalidf("%s: the template is not valid there; what is wrong is not shown, since it is a secret", m[1])
	case kind == DatumSecret:
		return Invalidf("the template is not valid; what is wrong is not shown, since it is a secret")
	case secret && m != nil:
		return Invalidf("%sfails; why is not shown, since a secret is in it", m[0])
	case secret:
		return Invalidf("the template fails; why is not shown, since a secret is in it")
	}
	text, _, _ = strings.Cut(text, " in type ")
	return Invalidf("%s", text)
}

// FindDatum returns the mount of a template that a call like {{secret "NAME"}}
// means: by its name in the stack, its target, or what its target is called in
// the folder of secrets. One that is a template itself is not found.
func (t *Template) FindDatum(k DatumKind, name string) (*Mount, error) {
	var have []string
	for i := range t.Mounts {
		m := &t.Mounts[i]
		mk, short, ok := m.Datum()
		if !ok || mk != k || m.Render {
			continue
		}
		if name == short || name == m.Target || path.Join(SecretDir, name) == m.Target || "/"+name == m.Target {
			return m, nil
		}
		have = append(have, short)
	}
	// The name is not repeated: it may be made of a secret.
	slices.Sort(have)
	if len(have) == 0 {
		return nil, Invalidf("the service has no %s that is not itself a template", k)
	}
	return nil, Invalidf("the service has no such %s; it has %s", k, strings.Join(have, ", "))
}

// SecretDir is the folder of secrets whose target says nothing else.
const SecretDir = "/run/secrets"

// TemplateProblem is what is wrong with a template of a stack.
type TemplateProblem struct {
	Kind DatumKind
	// Name of the datum within the stack.
	Name string
	// Service that cannot use it; empty when nobody can.
	Service string
	Err     error
}

// CheckTemplates renders every secret and config that is a template as far as
// that is possible without a task, for each service that uses it. It reports
// what will never render: what is no template, and what names a field, a secret
// or a config that is not there. text returns the bytes of a datum and how
// errors are to call it; of those that are not known nothing is said.
func CheckTemplates(s *Stack, text func(k DatumKind, short string) (name, text string, known bool)) []TemplateProblem {
	var out []TemplateProblem
	for _, k := range DatumKinds {
		for _, short := range slices.Sorted(maps.Keys(s.Data(k))) {
			if !s.Data(k)[short].Render {
				continue
			}
			name, body, known := text(k, short)
			if !known {
				continue
			}
			if err := CheckTemplate(k, name, body); err != nil {
				out = append(out, TemplateProblem{Kind: k, Name: short, Err: err})
				continue
			}
			for _, service := range s.DatumUsers(k, short) {
				svc := s.Services[service]
				if err := svc.rehearse(k, name, body); err != nil {
					out = append(out, TemplateProblem{Kind: k, Name: short, Service: service, Err: err})
				}
			}
		}
	}
	return out
}

// CheckTemplate refuses what is no template at all.
func CheckTemplate(k DatumKind, name, text string) error {
	_, err := template.New(name).Funcs(template.FuncMap{"env": fmt.Sprint, "secret": fmt.Sprint, "config": fmt.Sprint, "join": fmt.Sprint}).Parse(text)
	if err != nil {
		return renderError(k, err, false)
	}
	return nil
}

// rehearse renders a template for a task that does not exist. Whatever may be
// the fault of the values that were made up for it is no error.
func (svc *ServiceSpec) rehearse(kind DatumKind, name, text string) error {
	var f RenderFacts
	f.Service.ID, f.Service.Name, f.Service.Labels = "1-1", "stack_service", svc.Labels
	f.Task.ID, f.Task.Name, f.Task.Slot = "1-2", "stack.service.1", "1"
	f.Node.ID, f.Node.Hostname = "0123456789abcdef", "node"
	f.Node.Platform.Architecture, f.Node.Platform.OS = "amd64", "linux"
	wrong := false // for any task
	funcs := RenderFuncs{Env: svc.Template.Env, MadeUp: true, Datum: func(k DatumKind, n string) (string, error) {
		_, err := svc.Template.FindDatum(k, n)
		wrong = wrong || err != nil
		return "value", err
	}}
	_, err := Render(DatumConfig, name, text, f, funcs)
	if err == nil {
		return nil
	}
	for _, s := range []string{"can't evaluate field", "takes too long", "exceeded maximum template depth"} {
		wrong = wrong || strings.Contains(err.Error(), s)
	}
	if !wrong {
		return nil
	}
	if kind == DatumSecret { // the same error, in the words that may be shown
		_, err = Render(kind, name, text, f, funcs)
	}
	return err
}
