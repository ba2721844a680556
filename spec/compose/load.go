package compose

import (
	"bytes"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/template"
	"github.com/compose-spec/compose-go/v2/types"
	"go.yaml.in/yaml/v4"
)

// maxPortRange is how many ports one entry of "ports" may have.
const maxPortRange = 1024

// guardValues ends the load of a document with values that would take forever
// to process.
func (l *loading) guardValues(doc *node) bool {
	ok := true
	doc.walk(nil, func(p path, n *node) {
		s := n.text()
		if strings.Contains(s, "$") && tooManyVariables(s) {
			ok = false
			l.refuseNode(p, n, "the value holds too many variables for its length", "")
			return
		}
		if len(p) >= 4 && len(p) <= 5 && p[0] == "services" && p[2] == "ports" {
			ok = l.guardPorts(p, n) && ok
		}
	})
	return ok
}

// refuseNode refuses a value that need not be part of the merged view.
func (l *loading) refuseNode(p path, n *node, message, hint string) {
	l.add(Finding{Verdict: Refused, Path: p.String(), File: n.file, Line: n.line, Column: n.column, Message: message, Hint: hint})
}

var portRange = regexp.MustCompile(`(\d+)-(\d+)`)

func (l *loading) guardPorts(p path, n *node) bool {
	for _, m := range portRange.FindAllStringSubmatch(l.substitute(n.text()), -1) {
		from, _ := strconv.Atoi(m[1])
		to, _ := strconv.Atoi(m[2])
		if to-from >= maxPortRange {
			l.refuseNode(p, n, fmt.Sprintf("%s is a range of more than %d ports", m[0], maxPortRange), "publish a smaller range, or use network_mode: host")
			return false
		}
	}
	return true
}

func (l *loading) isMain(file string) bool {
	return slices.ContainsFunc(l.mains, func(m mainFile) bool { return m.display == file })
}

// project lets compose-go merge, interpolate and check the files. When it
// refuses them, what can be found out about why is in the findings; the
// project is then good for finding more problems only.
func (l *loading) project() (*types.Project, bool) {
	files := make([]types.ConfigFile, 0, len(l.mains))
	for _, m := range l.mains {
		files = append(files, types.ConfigFile{Filename: m.abs, Content: blankVersion(m.data)})
	}
	dict, project, err := l.load(files)
	if err != nil {
		return l.diagnose(err)
	}
	l.judgeModel(dict)
	l.model = copyAny(dict).(map[string]any)
	return l.checked(dict, project)
}

// checked compares with compose-go's own check of consistency, which stops at
// the first problem and takes time exponential in the depth of dependencies:
// beyond a bound only ours runs.
func (l *loading) checked(dict map[string]any, project *types.Project) (*types.Project, bool) {
	before := l.refusals()
	cheap := l.checkConsistency(project)
	if cheap {
		if _, err := l.bind(dict, project.Name, true); err != nil && l.refusals() == before {
			l.refuseError(err)
		}
	}
	return project, true
}

// load runs compose-go without its check of consistency. The returned model is
// a copy that nothing else uses.
func (l *loading) load(files []types.ConfigFile) (dict map[string]any, project *types.Project, err error) {
	defer recovered(&err)
	dict, err = loader.LoadModelWithContext(l.ctx, l.details(files), l.loaderOptions(true))
	if err != nil {
		return nil, nil, err
	}
	l.dropFrom(dict)
	name, _ := dict["name"].(string)
	keep := copyAny(dict).(map[string]any)
	project, err = l.bind(dict, name, false)
	return keep, project, err
}

// bind makes the typed project of a model, which it uses up.
func (l *loading) bind(dict map[string]any, name string, check bool) (project *types.Project, err error) {
	defer recovered(&err)
	details := l.details(nil)
	details.Environment["COMPOSE_PROJECT_NAME"] = name
	opts := loader.ToOptions(&details, []func(*loader.Options){l.loaderOptions(!check)})
	opts.SetProjectName(name, true)
	return loader.ModelToProject(dict, opts, details)
}

// given reports whether any of the files gives a value to a key, which may be
// the zero value. No part of p may be an index.
func (l *loading) given(p path) bool {
	var v any = l.model
	for _, k := range p {
		m, _ := v.(map[string]any)
		if v = m[k]; v == nil {
			return false
		}
	}
	return true
}

// recovered turns a panic of compose-go, which asserts types before it has
// checked them, into an error.
func recovered(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("a value has a type that the Compose library cannot handle (%v)", r)
	}
}

func (l *loading) details(files []types.ConfigFile) types.ConfigDetails {
	return types.ConfigDetails{WorkingDir: l.dir, ConfigFiles: files, Environment: maps.Clone(l.env)}
}

// loaderOptions leave paths as written, to tell relative from absolute ones,
// and files unread, to report all that are missing.
func (l *loading) loaderOptions(skipCheck bool) func(*loader.Options) {
	return func(o *loader.Options) {
		name, explicit := l.stackName()
		o.SetProjectName(name, explicit)
		o.Profiles = l.profiles
		o.ResolvePaths = false
		o.SkipResolveEnvironment = true
		o.SkipResolveLabels = true
		o.SkipConsistencyCheck = skipCheck
		o.Interpolate.Substitute = func(s string, m template.Mapping) (string, error) {
			return interpolate(s, m)
		}
	}
}

func copyAny(v any) any {
	switch v := v.(type) {
	case map[string]any:
		m := make(map[string]any, len(v))
		for k, e := range v {
			m[k] = copyAny(e)
		}
		return m
	case []any:
		s := make([]any, len(v))
		for i, e := range v {
			s[i] = copyAny(e)
		}
		return s
	}
	return v
}

// blankVersion empties the line of the obsolete top-level key "version", about
// which compose-go would write to the log of the process.
func blankVersion(data []byte) []byte {
	var doc yaml.Node
	if err := decode(yaml.NewDecoder(bytes.NewReader(data)), &doc); err != nil || len(doc.Content) == 0 {
		return data
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode || root.Style&yaml.FlowStyle != 0 {
		return data
	}
	for i := 0; i+1 < len(root.Content); i += 2 {
		k, v := root.Content[i], root.Content[i+1]
		simple := v.Kind == yaml.ScalarNode && v.Anchor == "" && v.Style&(yaml.LiteralStyle|yaml.FoldedStyle) == 0
		if k.Value != "version" || !simple || k.Line != v.Line || i+2 < len(root.Content) && root.Content[i+2].Line <= k.Line {
			continue
		}
		lines := bytes.SplitAfter(data, []byte("\n"))
		if k.Line > len(lines) || !bytes.HasPrefix(bytes.TrimLeft(lines[k.Line-1], " "), []byte("version")) {
			return data
		}
		lines[k.Line-1] = []byte("\n")
		return bytes.Join(lines, nil)
	}
	return data
}

// resolve returns the absolute form of a path that the files name.
func (l *loading) resolve(name string) string {
	if rest, ok := strings.CutPrefix(name, "~"); ok && (rest == "" || rest[0] == '/') && l.env["HOME"] != "" {
		return filepath.Join(l.env["HOME"], rest)
	}
	return absolute(l.dir, name)
}
