package compose

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

// Limits of what is parsed; beyond them a file is refused before any work is
// done on it that grows faster than its size.
const (
	maxFile  = 1 << 20
	maxDepth = 100
	maxNodes = 100_000 // with aliases expanded
)

// path is the place of a value: keys, and indices as "[0]".
type path []string

func (p path) key(k string) path { return append(slices.Clip(p), k) }
func (p path) index(i int) path  { return p.key("[" + strconv.Itoa(i) + "]") }

// String returns "services.web.ports[0]".
func (p path) String() string {
	var b strings.Builder
	for i, s := range p {
		if i > 0 && !strings.HasPrefix(s, "[") {
			b.WriteByte('.')
		}
		b.WriteString(s)
	}
	return b.String()
}

type nodeKind int

const (
	scalarNode nodeKind = iota
	mapNode
	listNode
)

// node is a value as it was written: aliases and merge keys are resolved, each
// with the position of its text.
type node struct {
	kind         nodeKind
	file         string
	line, column int // of the key, or of the item of a list
	keys         []string
	fields       map[string]*node
	items        []*node
	scalar       *yaml.Node
	tag          string // "!reset", "!override" or ""
}

// find returns the deepest node on the way to p.
func (n *node) find(p path) *node {
	for _, s := range p {
		next := n.child(s)
		if next == nil {
			break
		}
		n = next
	}
	return n
}

// get returns the node at p, or nil.
func (n *node) get(p ...string) *node {
	for _, s := range p {
		if n = n.child(s); n == nil {
			return nil
		}
	}
	return n
}

func (n *node) child(s string) *node {
	if n == nil {
		return nil
	}
	if n.kind == listNode {
		i, err := strconv.Atoi(strings.Trim(s, "[]"))
		if err != nil || !strings.HasPrefix(s, "[") || i < 0 || i >= len(n.items) {
			return nil
		}
		return n.items[i]
	}
	return n.fields[s]
}

// text returns the text of a scalar, else "".
func (n *node) text() string {
	if n == nil || n.scalar == nil || n.scalar.Tag == "!!null" {
		return ""
	}
	return n.scalar.Value
}

// texts returns a scalar as one string, or the scalars of a list.
func (n *node) texts() []string {
	if n == nil {
		return nil
	}
	if n.kind == scalarNode {
		if s := n.text(); s != "" {
			return []string{s}
		}
		return nil
	}
	var out []string
	for _, i := range n.items {
		if s := i.text(); s != "" {
			out = append(out, s)
		}
	}
	return out
}

// isNull reports whether n is the null value.
func (n *node) isNull() bool {
	return n.kind == scalarNode && (n.scalar == nil || n.scalar.Tag == "!!null")
}

// walk calls f for every scalar below n.
func (n *node) walk(p path, f func(path, *node)) {
	switch n.kind {
	case scalarNode:
		f(p, n)
	case mapNode:
		for _, k := range n.keys {
			n.fields[k].walk(p.key(k), f)
		}
	case listNode:
		for i, item := range n.items {
			item.walk(p.index(i), f)
		}
	}
}

// any returns the value of n as yaml decodes it, without what prune names.
func (n *node) any(p path, prune map[string]bool) any {
	switch n.kind {
	case mapNode:
		m := map[string]any{}
		for _, k := range n.keys {
			if q := p.key(k); !prune[q.String()] {
				m[k] = n.fields[k].any(q, prune)
			}
		}
		return m
	case listNode:
		l := make([]any, 0, len(n.items))
		for i, item := range n.items {
			if q := p.index(i); !prune[q.String()] {
				l = append(l, item.any(q, prune))
			}
		}
		return l
	}
	if n.scalar == nil {
		return nil
	}
	var v any
	if err := n.scalar.Decode(&v); err != nil {
		return n.scalar.Value
	}
	return v
}

// problem is something wrong with the text of a file.
type problem struct {
	line, column int
	path         path
	message      string
	hint         string
}

var yamlLine = regexp.MustCompile(`^(?:yaml: )?(?:line (\d+): )?(.*)$`)

// parse reads the documents of a file.
func parse(file string, data []byte) ([]*node, []problem) {
	d := yaml.NewDecoder(bytes.NewReader(data))
	var docs []*node
	var problems []problem
	for {
		var doc yaml.Node
		err := decode(d, &doc)
		if errors.Is(err, io.EOF) {
			return docs, problems
		}
		if err != nil {
			m := yamlLine.FindStringSubmatch(strings.ReplaceAll(err.Error(), "\n", " "))
			line, _ := strconv.Atoi(m[1])
			return docs, append(problems, problem{line: line, column: 1, message: "is not valid YAML: " + m[2]})
		}
		if p := guard(&doc); p != nil {
			return docs, append(problems, *p)
		}
		if len(doc.Content) == 0 {
			continue
		}
		b := builder{file: file}
		n := b.build(doc.Content[0], nil)
		problems = append(problems, b.problems...)
		n.line, n.column = doc.Content[0].Line, doc.Content[0].Column
		docs = append(docs, n)
	}
}

// decode shields from panics of the parser, which is fed what anybody wrote.
func decode(d *yaml.Decoder, n *yaml.Node) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("the parser failed: %v", r)
		}
	}()
	return d.Decode(n)
}

// guard refuses documents that are nested too deeply, or that aliases blow up.
func guard(doc *yaml.Node) *problem {
	sizes := map[*yaml.Node]int{}
	open := map[*yaml.Node]bool{}
	var bad *problem
	var size func(n *yaml.Node, depth int) int
	size = func(n *yaml.Node, depth int) int {
		if bad != nil {
			return 0
		}
		if s, ok := sizes[n]; ok {
			return s
		}
		switch {
		case depth > maxDepth:
			bad = &problem{line: n.Line, column: n.Column, message: fmt.Sprintf("is nested more than %d levels deep", maxDepth)}
			return 0
		case open[n]:
			bad = &problem{line: n.Line, column: n.Column, message: fmt.Sprintf("the anchor %q contains itself", n.Anchor)}
			return 0
		}
		open[n] = true
		total := 1
		if n.Kind == yaml.AliasNode {
			total += size(n.Alias, depth+1)
		}
		for _, c := range n.Content {
			total += size(c, depth+1)
		}
		if total > maxNodes && bad == nil {
			bad = &problem{line: n.Line, column: n.Column, message: fmt.Sprintf("has more than %d values once its aliases are expanded", maxNodes)}
		}
		delete(open, n)
		sizes[n] = total
		return total
	}
	size(doc, 0)
	return bad
}

type builder struct {
	file     string
	problems []problem
}

func (b *builder) build(y *yaml.Node, p path) *node {
	if y.Kind == yaml.AliasNode {
		return b.build(y.Alias, p)
	}
	n := &node{file: b.file, line: y.Line, column: y.Column}
	if y.Tag == "!reset" || y.Tag == "!override" {
		n.tag = y.Tag
	}
	switch y.Kind {
	case yaml.MappingNode:
		n.kind, n.fields = mapNode, map[string]*node{}
		b.fill(n, y, p)
	case yaml.SequenceNode:
		n.kind = listNode
		for i, c := range y.Content {
			item := b.build(c, p.index(i))
			item.line, item.column = c.Line, c.Column
			if item.tag != "!reset" {
				n.items = append(n.items, item)
			}
		}
	default:
		n.scalar = y
	}
	return n
}

// fill adds the fields of y to n: first its own keys, then what merge keys add.
func (b *builder) fill(n *node, y *yaml.Node, p path) {
	var merges []*yaml.Node
	lines := map[string]int{}
	for i := 0; i+1 < len(y.Content); i += 2 {
		k, v := y.Content[i], y.Content[i+1]
		if k.Kind == yaml.AliasNode {
			k = k.Alias
		}
		if k.Tag == "!!merge" || (k.Value == "<<" && k.Tag == "!!str" && k.Style == 0) {
			merges = append(merges, v)
			continue
		}
		if first, ok := lines[k.Value]; ok {
			b.problems = append(b.problems, problem{line: k.Line, column: k.Column, path: p.key(k.Value),
				message: fmt.Sprintf("the key is already set in line %d", first), hint: "remove one of the two"})
			continue
		}
		lines[k.Value] = k.Line
		child := b.build(v, p.key(k.Value))
		child.line, child.column = k.Line, k.Column
		n.set(k.Value, child)
	}
	for _, m := range merges {
		b.merge(n, m, p)
	}
}

// merge adds the keys of a merge value that n does not have.
func (b *builder) merge(n *node, y *yaml.Node, p path) {
	if y.Kind == yaml.AliasNode {
		y = y.Alias
	}
	switch y.Kind {
	case yaml.SequenceNode:
		for _, c := range y.Content {
			b.merge(n, c, p)
		}
	case yaml.MappingNode:
		m := b.build(y, p)
		for _, k := range m.keys {
			if n.fields[k] == nil {
				n.set(k, m.fields[k])
			}
		}
	}
}

func (n *node) set(k string, child *node) {
	if n.fields == nil {
		n.kind, n.fields = mapNode, map[string]*node{}
	}
	if _, ok := n.fields[k]; !ok {
		n.keys = append(n.keys, k)
	}
	n.fields[k] = child
}

func (n *node) remove(k string) {
	delete(n.fields, k)
	n.keys = slices.DeleteFunc(slices.Clone(n.keys), func(s string) bool { return s == k })
}
