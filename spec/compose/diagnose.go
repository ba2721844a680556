package compose

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/interpolation"
	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/schema"
	"github.com/compose-spec/compose-go/v2/template"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"github.com/santhosh-tekuri/jsonschema/v6/kind"
)

// maxRepairs is how many problems are cut out of a refused input to find the
// next one.
const maxRepairs = 50

// maxAttempts bounds the search for the place of one error.
const maxAttempts = 200

// diagnose finds out all that is wrong with an input that compose-go refuses:
// it checks the merged view against the schema itself, cuts out what is wrong,
// and tries again with the rest.
func (l *loading) diagnose(first error) (*types.Project, bool) {
	l.diagnosing = true
	before := l.refusals()
	prune := map[string]bool{"include": true, "version": true}
	for _, f := range l.findings {
		if f.Verdict == Refused && f.Path != "" {
			prune[f.Path] = true
		}
	}
	for _, name := range l.tree.get("services").clone().keys {
		prune["services."+name+".extends"] = true
	}
	l.castErrors(prune)
	l.schemaErrors(prune)
	project := l.repair(prune)
	if l.refusals() == before && !l.explained(first) {
		l.refuseError(first)
	}
	if project == nil {
		return nil, false
	}
	l.checkConsistency(project)
	return project, true
}

// explained reports whether a refusal that is known already is the one that
// err is about.
func (l *loading) explained(err error) bool {
	p, message := l.errorPlace(err)
	return slices.ContainsFunc(l.findings, func(f Finding) bool {
		return f.Verdict == Refused && (f.Message == message || f.Path != "" && (f.Path == p.String() || strings.HasPrefix(f.Path, p.String()+".") || strings.HasPrefix(f.Path, p.String()+"[") || strings.Contains(err.Error(), f.Path)))
	})
}

var castError = regexp.MustCompile(`error while interpolating (\S+): failed to cast to expected type: (.*)`)

// castErrors reports values that are not the number or boolean they have to be,
// and adds their places to prune.
func (l *loading) castErrors(prune map[string]bool) {
	_, err := l.rest(prune)
	if err == nil {
		return
	}
	for _, m := range castError.FindAllStringSubmatch(err.Error(), -1) {
		p := l.existing(splitPath(m[1]))
		if len(p) < 2 || prune[p.String()] {
			continue
		}
		prune[p.String()] = true
		want := "must be a number"
		if strings.Contains(m[2], "boolean") {
			want = "must be true or false"
		}
		l.refuse(p, "", "%s, not %q", want, l.substitute(l.tree.find(p).text()))
	}
}

// schemaErrors checks the merged view against the schema of Compose and adds
// the places of all errors to prune.
func (l *loading) schemaErrors(prune map[string]bool) {
	config, _ := l.rest(prune)
	raw, err := json.Marshal(config)
	if err != nil {
		return
	}
	value, err := jsonschema.UnmarshalJSON(strings.NewReader(string(raw)))
	if err != nil {
		return
	}
	s, err := compiledSchema()
	if err != nil {
		return
	}
	var invalid *jsonschema.ValidationError
	if !errors.As(s.Validate(value), &invalid) {
		return
	}
	for _, e := range leaves(invalid) {
		switch e.ErrorKind.(type) {
		case *kind.FalseSchema, *kind.AdditionalProperties:
			// An unknown key, which the walk of the keys has reported; or any
			// key beside a wrong one, since then none counts as evaluated.
			continue
		}
		p := l.instancePath(e.InstanceLocation)
		prune[p.String()] = true
		l.refuse(p, "", "%s", schemaMessage(e))
	}
}

func compiledSchema() (*jsonschema.Schema, error) {
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(schema.Schema))
	if err != nil {
		return nil, fmt.Errorf("read the schema of Compose: %w", err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("compose-spec.json", doc); err != nil {
		return nil, fmt.Errorf("read the schema of Compose: %w", err)
	}
	return c.Compile("compose-spec.json")
}

// leaves returns the errors that matter: of alternatives the one that got
// farthest, of everything else all.
func leaves(e *jsonschema.ValidationError) []*jsonschema.ValidationError {
	if len(e.Causes) == 0 {
		return []*jsonschema.ValidationError{e}
	}
	var all []*jsonschema.ValidationError
	for _, c := range e.Causes {
		all = append(all, leaves(c)...)
	}
	switch e.ErrorKind.(type) {
	case *kind.OneOf, *kind.AnyOf:
		best := slices.MaxFunc(all, func(a, b *jsonschema.ValidationError) int {
			return len(a.InstanceLocation) - len(b.InstanceLocation)
		})
		if len(best.InstanceLocation) == len(e.InstanceLocation) {
			return []*jsonschema.ValidationError{mergeTypes(e, all)}
		}
		return []*jsonschema.ValidationError{best}
	}
	return all
}

// mergeTypes makes "must be a string or a list" of two alternatives.
func mergeTypes(e *jsonschema.ValidationError, all []*jsonschema.ValidationError) *jsonschema.ValidationError {
	var want []string
	for _, a := range all {
		if t, ok := a.ErrorKind.(*kind.Type); ok {
			want = append(want, t.Want...)
		}
	}
	for _, a := range all {
		if _, ok := a.ErrorKind.(*kind.Type); !ok {
			return a
		}
	}
	merged := *all[0]
	merged.InstanceLocation = e.InstanceLocation
	merged.ErrorKind = &kind.Type{Want: want}
	return &merged
}

func schemaMessage(e *jsonschema.ValidationError) string {
	switch k := e.ErrorKind.(type) {
	case *kind.Type:
		return "must be " + typeNames(k.Want)
	case *kind.Enum:
		return "must be one of " + strings.Join(texts(k.Want), ", ")
	case *kind.Minimum:
		return "must be at least " + k.Want.RatString()
	case *kind.Maximum:
		return "must be at most " + k.Want.RatString()
	case *kind.Required:
		return "needs the key " + strings.Join(k.Missing, ", ")
	case *kind.Pattern:
		return fmt.Sprintf("%q is not valid, want %s", k.Got, strings.Trim(k.Want, "^$"))
	case *kind.UniqueItems:
		return "holds the same value twice"
	case *kind.Format:
		return fmt.Sprintf("%v is not a valid %s", k.Got, k.Want)
	}
	_, message, _ := strings.Cut(e.Error(), "': ")
	return strings.TrimSpace(message)
}

func texts(values []any) []string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = fmt.Sprint(v)
	}
	return out
}

func typeNames(want []string) string {
	names := map[string]string{"object": "a mapping", "array": "a list", "string": "a string", "integer": "an integer",
		"number": "a number", "boolean": "true or false", "null": "empty"}
	var out []string
	for _, w := range want {
		if n := names[w]; n != "" && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	if len(out) < 2 {
		return strings.Join(out, "")
	}
	return strings.Join(out[:len(out)-1], ", ") + " or " + out[len(out)-1]
}

// instancePath makes a path of a location in the value that was validated.
func (l *loading) instancePath(location []string) path {
	var p path
	n := l.tree
	for _, s := range location {
		if n != nil && n.kind == listNode {
			s = "[" + s + "]"
		}
		p = p.key(s)
		n = n.child(s)
	}
	return p
}

// rest is the merged view without what prune names, interpolated; variables
// that have to be set and are not count as "1", having been reported.
func (l *loading) rest(prune map[string]bool) (map[string]any, error) {
	config, _ := l.tree.any(nil, prune).(map[string]any)
	details := l.details(nil)
	casts := loader.ToOptions(&details, nil).Interpolate.TypeCastMapping
	return interpolation.Interpolate(config, interpolation.Options{
		LookupValue:     l.lookup,
		TypeCastMapping: casts,
		Substitute: func(s string, m template.Mapping) (string, error) {
			out, err := interpolate(s, m)
			if err != nil {
				return "1", nil //nolint:nilerr // reported by checkVariables
			}
			return out, nil
		},
	})
}

// repair loads what is left of the input, cutting out one error after the
// other, and returns the project, or nil when that does not work out.
func (l *loading) repair(prune map[string]bool) *types.Project {
	for range maxRepairs {
		project, err := l.attempt(prune)
		if err == nil {
			return project
		}
		p, message := l.errorPlace(err)
		if len(p) < 2 {
			p = l.locate(err, prune)
		}
		if len(p) < 2 || l.tree.get(p...) == nil || prune[p.String()] {
			return nil
		}
		prune[p.String()] = true
		l.refuse(p, "", "%s", message)
	}
	return nil
}

// attempt loads the merged view without what prune names.
func (l *loading) attempt(prune map[string]bool) (*types.Project, error) {
	config, err := l.rest(prune)
	if err != nil {
		return nil, err
	}
	// The content keeps compose-go from looking for the name in a file.
	file := types.ConfigFile{Filename: filepath.Join(l.dir, "stack.yml"), Content: []byte("{}"), Config: escaped(config).(map[string]any)}
	_, project, err := l.load([]types.ConfigFile{file})
	return project, err
}

// locate finds the place of an error that names none: the smallest part of the
// input that gives the same error when all beside it is cut out.
func (l *loading) locate(want error, prune map[string]bool) path {
	var at path
	n := l.tree
	for attempts := 0; attempts < maxAttempts; {
		children := slices.Clone(n.keys)
		for i := range n.items {
			children = append(children, fmt.Sprintf("[%d]", i))
		}
		found := false
		for _, child := range children {
			only := maps.Clone(prune)
			for _, sibling := range children {
				if sibling != child {
					only[at.key(sibling).String()] = true
				}
			}
			attempts++
			if _, err := l.attempt(only); err != nil && err.Error() == want.Error() && !prune[at.key(child).String()] {
				at, n, found = at.key(child), n.child(child), true
				break
			}
		}
		if !found {
			return at
		}
	}
	return at
}

// escaped doubles the dollar signs of values that are interpolated already.
func escaped(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			v[k] = escaped(e)
		}
	case []any:
		for i, e := range v {
			v[i] = escaped(e)
		}
	case string:
		return strings.ReplaceAll(v, "$", "$$")
	}
	return v
}

// refuseError makes a finding of an error of compose-go.
func (l *loading) refuseError(err error) {
	p, message := l.errorPlace(err)
	n := l.tree.find(p)
	l.add(Finding{Verdict: Refused, Path: p.String(), File: n.file, Line: n.line, Column: n.column, Message: message})
}

var (
	errorPath    = regexp.MustCompile(`\b(services|networks|volumes|configs|secrets|jobs|models|include|name)((?:\.[A-Za-z0-9_-]+|\.?\[\d*\])*)`)
	errorService = regexp.MustCompile(`\bservice "?([A-Za-z0-9._-]+)"?`)
	errorPrefix  = regexp.MustCompile(`^(?:validating|failed to parse) (\S+): `)
)

// errorPlace finds the place that an error of compose-go is about, and its
// message without that.
func (l *loading) errorPlace(err error) (path, string) {
	message := strings.TrimSuffix(strings.Join(strings.Fields(err.Error()), " "), ": invalid compose project")
	message = errorPrefix.ReplaceAllString(message, "")
	var p path
	if m := errorPath.FindStringSubmatch(message); m != nil {
		p = l.existing(append([]string{m[1]}, splitPath(m[2])...))
		if m[2] == "" {
			return p, message
		}
		message = strings.TrimLeft(strings.Replace(message, m[0], "", 1), ": ")
	} else if m := errorService.FindStringSubmatch(message); m != nil && l.tree.get("services", m[1]) != nil {
		p = path{"services", m[1]}
	}
	if message == "" {
		message = err.Error()
	}
	return p, message
}

func splitPath(s string) []string {
	s = strings.ReplaceAll(s, "[", ".[")
	return strings.FieldsFunc(s, func(r rune) bool { return r == '.' })
}

// existing cuts p where the merged view ends.
func (l *loading) existing(p []string) path {
	n := l.tree
	for i, s := range p {
		if n.kind == listNode && !strings.HasPrefix(s, "[") {
			s = "[" + s + "]"
			p[i] = s
		}
		if n = n.child(s); n == nil {
			return p[:i]
		}
	}
	return p
}
