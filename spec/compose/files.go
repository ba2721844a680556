package compose

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/compose-spec/compose-go/v2/loader"
)

// maxFiles is how many files one stack may be made of.
const maxFiles = 256

// mainFile is a file that was named by the user.
type mainFile struct {
	abs     string // "-" for standard input
	display string
	data    []byte
}

// fileSet knows the names that files have in findings, in order.
type fileSet struct{ names []string }

func (s *fileSet) add(name string) {
	if !slices.Contains(s.names, name) {
		s.names = append(s.names, name)
	}
}

func (s *fileSet) order(name string) int { return slices.Index(s.names, name) }

func newLoading(ctx context.Context, o Options) (*loading, error) {
	if len(o.Files) == 0 {
		return nil, errors.New("load stack: no file given")
	}
	l := &loading{ctx: ctx, opts: o, seen: map[string]bool{}, tree: &node{}}
	dir := o.WorkingDir
	if dir == "" && o.Files[0] != "-" {
		dir = filepath.Dir(o.Files[0])
	}
	var err error
	if l.dir, err = filepath.Abs(dir); err != nil {
		return nil, fmt.Errorf("find the folder of the stack: %w", err)
	}
	for _, name := range o.Files {
		f, err := openMain(name, o.Stdin)
		if err != nil {
			return nil, err
		}
		l.mains = append(l.mains, f)
		l.files.add(f.display)
	}
	return l, nil
}

func openMain(name string, stdin io.Reader) (mainFile, error) {
	if name == "-" {
		if stdin == nil {
			return mainFile{}, errors.New("read standard input: there is none")
		}
		data, err := io.ReadAll(io.LimitReader(stdin, maxFile+1))
		if err != nil {
			return mainFile{}, fmt.Errorf("read standard input: %w", err)
		}
		return mainFile{abs: "-", display: "-", data: data}, nil
	}
	abs, err := filepath.Abs(name)
	if err != nil {
		return mainFile{}, fmt.Errorf("read %s: %w", name, err)
	}
	data, err := readLimited(abs)
	if err != nil {
		return mainFile{}, fmt.Errorf("read stack file: %w", err)
	}
	return mainFile{abs: abs, display: filepath.Clean(name), data: data}, nil
}

// readLimited reads at most one byte more than a stack file may have. It
// refuses what is no regular file, since reading a device might never end;
// pipes are taken, for the shell's <(…).
func readLimited(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() && info.Mode().Type() != fs.ModeNamedPipe {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	return io.ReadAll(io.LimitReader(f, maxFile+1))
}

// display is how a file is called in findings.
func (l *loading) display(abs string) string {
	for _, m := range l.mains {
		if m.abs == abs {
			return m.display
		}
	}
	rel, err := filepath.Rel(l.dir, abs)
	if err != nil || l.opts.Files[0] == "-" {
		return abs
	}
	return filepath.Join(filepath.Dir(l.mains[0].display), rel)
}

// checkInputFile refuses a file that compose-go is going to read and that it
// should not. Paths in findings are those of the key that names the file.
func (l *loading) checkInputFile(p path, name string) bool {
	if l.misplaced(p) {
		return false
	}
	info, err := os.Stat(name)
	switch {
	case err != nil:
		l.refuse(p, "create it, or remove the key", "the file %s cannot be read: %s", l.display(name), reason(err))
	case !info.Mode().IsRegular():
		l.refuse(p, "", "%s is not a regular file", l.display(name))
	case info.Size() > maxFile:
		l.refuse(p, "", "the file %s is larger than %d KiB", l.display(name), maxFile>>10)
	default:
		return true
	}
	return false
}

// misplaced reports whether the path that a key names cannot be resolved, since
// the key stands in a file of another folder and only the merged view is left.
func (l *loading) misplaced(p path) bool {
	return l.diagnosing && filepath.Dir(l.tree.find(p).file) != filepath.Dir(l.mains[0].display)
}

// reason strips the operation and the path, which the message names itself.
func reason(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		err = pe.Err
	}
	if errors.Is(err, fs.ErrNotExist) {
		return "it does not exist"
	}
	return err.Error()
}

// readEnvironment completes the environment by env files, as Compose does.
func (l *loading) readEnvironment() bool {
	l.env = map[string]string{}
	for k, v := range l.opts.Env {
		l.env[k] = v
	}
	files := l.opts.EnvFiles
	if len(files) == 0 {
		name := filepath.Join(l.dir, ".env")
		if info, err := os.Stat(name); err == nil && !info.IsDir() {
			files = []string{name}
		}
	}
	ok := true
	for _, name := range files {
		ok = l.readEnvFile(name) && ok
	}
	l.profiles = l.opts.Profiles
	if len(l.profiles) == 0 {
		l.profiles = strings.FieldsFunc(l.env["COMPOSE_PROFILES"], func(r rune) bool { return r == ',' })
	}
	return ok
}

func (l *loading) readEnvFile(name string) bool {
	fail := func(message string) bool {
		l.files.add(l.display(name))
		l.add(Finding{Verdict: Refused, File: l.display(name), Message: message})
		return false
	}
	info, err := os.Stat(name)
	switch {
	case err != nil:
		return fail("the env file cannot be read: " + reason(err))
	case info.Mode().IsRegular() && info.Size() > maxFile:
		return fail(fmt.Sprintf("the env file is larger than %d KiB", maxFile>>10))
	case !info.Mode().IsRegular() && name != os.DevNull:
		return fail("the env file is not a regular file")
	}
	vars, err := dotenv.GetEnvFromFile(l.env, []string{name})
	if err != nil {
		return fail("the env file is wrong: " + strings.ReplaceAll(strings.TrimPrefix(err.Error(), "failed to read "+name+": "), "\n", " "))
	}
	for k, v := range vars {
		if _, ok := l.opts.Env[k]; !ok {
			l.env[k] = v
		}
	}
	return true
}

// readTree parses all files and everything they include or extend.
func (l *loading) readTree() bool {
	r := &reader{l: l, docs: map[string][]*node{}}
	var trees []*node
	for _, m := range l.mains {
		for _, doc := range r.parse(m.abs, m.data) {
			trees = append(trees, r.expand(doc, m.abs, l.dir, 0))
		}
	}
	for _, t := range trees {
		l.tree = mergeNodes(l.tree, t)
	}
	if len(l.tree.file) == 0 {
		l.tree.file, l.tree.line, l.tree.column = l.mains[0].display, 1, 1
	}
	if r.broken {
		return false
	}
	if len(l.tree.keys) == 0 {
		l.refuse(nil, "", "the file is empty: a stack has at least the key \"services\"")
		return false
	}
	return true
}

// reader reads files and follows include and extends between them.
type reader struct {
	l      *loading
	docs   map[string][]*node // by absolute path
	broken bool
}

// parse parses data, or the file when data is nil.
func (r *reader) parse(abs string, data []byte) []*node {
	if docs, ok := r.docs[abs]; ok {
		return docs
	}
	name := r.l.display(abs)
	r.l.files.add(name)
	if len(data) > maxFile {
		r.broken = true
		r.l.add(Finding{Verdict: Refused, File: name, Message: fmt.Sprintf("the file is larger than %d KiB", maxFile>>10),
			Hint: "keep large values in files of their own (configs, env_file)"})
		return nil
	}
	docs, problems := parse(name, data)
	for _, p := range problems {
		r.broken = true
		r.l.add(Finding{Verdict: Refused, Path: p.path.String(), File: name, Line: p.line, Column: p.column, Message: p.message, Hint: p.hint})
	}
	for _, d := range docs {
		if d.kind != mapNode {
			r.broken = true
			r.l.add(Finding{Verdict: Refused, File: name, Line: d.line, Column: d.column, Message: "a stack file is a mapping with keys such as \"services\""})
			return nil
		}
		r.broken = !r.l.guardValues(d) || r.broken
	}
	r.docs[abs] = docs
	return docs
}

// open reads a file that another one names. What cannot be read is left to
// compose-go, which knows whether it is needed.
func (r *reader) open(abs string) []*node {
	if docs, ok := r.docs[abs]; ok {
		return docs
	}
	if len(r.docs) >= maxFiles {
		r.broken = true
		r.l.add(Finding{Verdict: Refused, File: r.l.mains[0].display, Message: fmt.Sprintf("the stack is made of more than %d files", maxFiles)})
		return nil
	}
	data, err := readLimited(abs)
	if err != nil {
		return nil
	}
	return r.parse(abs, data)
}

// expand returns doc with everything that it includes, and with its services
// completed by what they extend. dir is what its paths are relative to.
func (r *reader) expand(doc *node, abs, dir string, depth int) *node {
	if depth > maxDepth || r.broken {
		return doc
	}
	merged := &node{}
	for _, inc := range r.includes(doc, dir) {
		for _, name := range inc.files {
			for _, d := range r.open(name) {
				merged = mergeNodes(merged, onlyResources(r.expand(d, name, inc.dir, depth+1)))
			}
		}
	}
	merged = mergeNodes(merged, doc)
	if doc.get("services") != nil {
		services := merged.get("services").clone()
		for _, name := range services.keys {
			services.fields[name] = r.extended(services, name, abs, dir, 0)
		}
		merged.set("services", services)
	}
	return merged
}

type inclusion struct {
	files []string
	dir   string
}

func (r *reader) includes(doc *node, dir string) []inclusion {
	list := doc.get("include")
	if list == nil {
		return nil
	}
	var out []inclusion
	for _, item := range list.items {
		names, project := item.texts(), ""
		if item.kind == mapNode {
			names, project = item.get("path").texts(), r.l.substitute(item.get("project_directory").text())
		}
		var inc inclusion
		for _, n := range names {
			inc.files = append(inc.files, absolute(dir, r.l.substitute(n)))
		}
		if len(inc.files) == 0 {
			continue
		}
		inc.dir = filepath.Dir(inc.files[0])
		if project != "" {
			inc.dir = absolute(dir, project)
		}
		out = append(out, inc)
	}
	return out
}

// extended returns a service completed by the one it extends.
func (r *reader) extended(services *node, name, abs, dir string, depth int) *node {
	s := services.get(name)
	ext := s.get("extends")
	if ext == nil || depth > maxDepth {
		return s
	}
	base, file := r.l.substitute(ext.text()), ""
	if ext.kind == mapNode {
		base, file = r.l.substitute(ext.get("service").text()), r.l.substitute(ext.get("file").text())
	}
	from, fromFile := services, abs
	if file != "" {
		fromFile = absolute(dir, file)
		from = &node{}
		for _, d := range r.open(fromFile) {
			from = mergeNodes(from, d)
		}
		from, dir = from.get("services"), filepath.Dir(fromFile)
	}
	if from.get(base) == nil || (from == services && base == name) {
		return s
	}
	return mergeNodes(onlyInherited(r.extended(from, base, fromFile, dir, depth+1)), s)
}

// onlyInherited drops what a service does not pass on by extends.
func onlyInherited(s *node) *node {
	s = s.clone()
	s.remove("depends_on")
	return s
}

// onlyResources drops what an included file does not give to its includer.
func onlyResources(doc *node) *node {
	doc = doc.clone()
	for _, k := range []string{"name", "version", "include"} {
		doc.remove(k)
	}
	return doc
}

func absolute(dir, name string) string {
	if filepath.IsAbs(name) {
		return filepath.Clean(name)
	}
	return filepath.Join(dir, name)
}

func (n *node) clone() *node {
	if n == nil {
		return &node{}
	}
	c := *n
	c.keys = slices.Clone(n.keys)
	c.fields = make(map[string]*node, len(n.fields))
	for k, v := range n.fields {
		c.fields[k] = v
	}
	return &c
}

// mergeNodes lays b over a, the way Compose merges files: mappings by key,
// lists one after the other, everything else replaced.
func mergeNodes(a, b *node) *node {
	switch {
	case a == nil || b.tag == "!override" || a.kind != b.kind || a.kind == scalarNode:
		return b.withoutReset()
	case a.kind == listNode:
		c := *a
		c.items = append(slices.Clip(a.items), b.items...)
		c.file, c.line, c.column = b.file, b.line, b.column
		return &c
	}
	c := a.clone()
	if c.file == "" || b.file != "" {
		c.file, c.line, c.column = b.file, b.line, b.column
	}
	for _, k := range b.keys {
		over := b.fields[k]
		switch {
		case over.tag == "!reset":
			c.remove(k)
		case over.isNull() && c.fields[k] != nil:
			// null lays nothing over what is there
		default:
			c.set(k, mergeNodes(c.fields[k], over))
		}
	}
	return c
}

// withoutReset returns n without the keys that are tagged !reset.
func (n *node) withoutReset() *node {
	if n.kind != mapNode {
		return n
	}
	c := n.clone()
	for _, k := range n.keys {
		if n.fields[k].tag == "!reset" {
			c.remove(k)
			continue
		}
		c.fields[k] = n.fields[k].withoutReset()
	}
	return c
}

// substitute interpolates s; what does not work out stays as it is, to be
// reported by the pass that checks all values.
func (l *loading) substitute(s string) string {
	if !strings.Contains(s, "$") || tooManyVariables(s) {
		return s
	}
	out, err := interpolate(s, l.lookup)
	if err != nil {
		return s
	}
	return out
}

func (l *loading) lookup(k string) (string, bool) {
	v, ok := l.env[k]
	return v, ok
}

// stackName returns the name of the stack and whether it overrides the files'.
func (l *loading) stackName() (name string, explicit bool) {
	if l.opts.Name != "" {
		return l.opts.Name, true
	}
	if n := l.env["COMPOSE_PROJECT_NAME"]; n != "" {
		return n, true
	}
	return loader.NormalizeProjectName(filepath.Base(l.dir)), false
}
