package compose

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"wherry.dev/spec"
)

// judge walks every key of the merged view against the table.
func (l *loading) judge() {
	j := judging{l: l, t: newTable()}
	for _, k := range l.tree.keys {
		if k != "services" {
			j.walk(path{k}, l.tree.fields[k], true)
			continue
		}
		services := l.tree.fields[k]
		for _, name := range services.keys {
			s := services.fields[name]
			p := path{"services", name}
			active := l.active(s)
			if !active {
				l.note(p, "the service is left out: none of its profiles (%s) is active", strings.Join(s.get("profiles").texts(), ", "))
			}
			j.children(p, s, active)
		}
	}
}

// active reports whether a service is part of the stack with the profiles given.
func (l *loading) active(service *node) bool {
	declared := service.get("profiles").texts()
	if len(declared) == 0 || slices.Contains(l.profiles, "*") {
		return true
	}
	return slices.ContainsFunc(declared, func(p string) bool { return slices.Contains(l.profiles, l.substitute(p)) })
}

// judgeModel judges the keys of compose-go's merged model as well, so that no
// key can take effect there that the walk of the written files has missed.
func (l *loading) judgeModel(model map[string]any) {
	j := judging{l: l, t: newTable(), silent: true}
	for k, v := range model {
		services, ok := v.(map[string]any)
		if k != "services" || !ok {
			j.value(path{k}, v)
			continue
		}
		for name, s := range services {
			if l.active(l.tree.get("services", name)) {
				j.values(path{"services", name}, withoutInherited(s))
			}
		}
	}
}

// withoutInherited returns a service without what its containers before the
// start have of it.
func withoutInherited(service any) any {
	s, _ := service.(map[string]any)
	hooks, ok := s["pre_start"].([]any)
	if !ok {
		return service
	}
	s = maps.Clone(s)
	own := make([]any, len(hooks))
	for i, h := range hooks {
		hook, _ := h.(map[string]any)
		own[i] = maps.Clone(hook)
		for k, v := range hook {
			if reflect.DeepEqual(v, s[k]) {
				delete(own[i].(map[string]any), k)
			}
		}
	}
	s["pre_start"] = own
	return s
}

type judging struct {
	l *loading
	t *table
	// silent adds refusals only.
	silent bool
}

// walk judges the key at p and everything below.
func (j *judging) walk(p path, n *node, active bool) {
	if j.key(p, n.texts(), active) {
		j.children(p, n, active)
	}
}

func (j *judging) children(p path, n *node, active bool) {
	for _, k := range n.keys {
		j.walk(p.key(k), n.fields[k], active)
	}
	for i, item := range n.items {
		j.children(p.index(i), item, active)
	}
}

func (j *judging) value(p path, v any) {
	var values []string
	switch v := v.(type) {
	case nil, map[string]any:
	case []any:
		values = texts(v)
	default:
		values = []string{fmt.Sprint(v)}
	}
	if j.key(p, values, true) {
		j.values(p, v)
	}
}

func (j *judging) values(p path, v any) {
	switch v := v.(type) {
	case map[string]any:
		for k, e := range v {
			j.value(p.key(k), e)
		}
	case []any:
		for i, e := range v {
			j.values(p.index(i), e)
		}
	}
}

// key judges one key and reports whether the keys below it are to be judged.
func (j *judging) key(p path, values []string, active bool) (descend bool) {
	r, state := j.t.lookup(p)
	switch state {
	case keyExtension:
		return false
	case keyUnknown:
		if !j.silent {
			j.l.refuse(p, j.t.suggest(p), "there is no such key")
		}
		return false
	}
	if !active {
		return !r.subtree
	}
	switch {
	case len(values) == 1 && slices.Contains(r.same, j.l.substitute(values[0])):
	case r.verdict == Refused:
		j.l.refuse(p, r.hint, "%s", r.note)
		return false
	case r.verdict == NoEffect && !j.silent:
		j.l.at(NoEffect, p, r.note, r.hint)
	}
	return !r.subtree
}

type keyState int

const (
	keyKnown keyState = iota
	keyUnknown
	keyExtension
)

// table finds the row of a path.
type table struct {
	root *level
}

// level is a node of the tree of all rows: keys by name, "*" for a name that
// the user chooses, "[]" for the items of a list.
type level struct {
	row  *row
	next map[string]*level
}

func newTable() *table {
	t := &table{root: &level{next: map[string]*level{}}}
	for _, group := range [][]row{topRows, serviceRows, deployRows, resourceRows, ownRows} {
		for i := range group {
			t.insert(&group[i])
		}
	}
	return t
}

func (t *table) insert(r *row) {
	n := t.root
	for _, s := range strings.Split(r.path, ".") {
		if n.next[s] == nil {
			n.next[s] = &level{next: map[string]*level{}}
		}
		n = n.next[s]
	}
	n.row = r
}

func (t *table) lookup(p path) (*row, keyState) {
	n := t.root
	for i, s := range p {
		if strings.HasPrefix(s, "[") {
			s = "[]"
		}
		next := n.next[s]
		if next == nil {
			next = n.next["*"]
		}
		if next == nil {
			if strings.HasPrefix(s, "x-") {
				if s == "x-wherry" {
					return &ownExtension, keyKnown
				}
				return nil, keyExtension
			}
			return nil, keyUnknown
		}
		n = next
		if n.row != nil && (n.row.subtree || n.row.verdict == Refused) && i < len(p)-1 {
			return n.row, keyKnown
		}
	}
	if n.row == nil {
		return &structure, keyKnown
	}
	return n.row, keyKnown
}

// structure is the row of a level that only holds others.
var structure = row{}

// ownExtension is the row of x-wherry where it has no meaning.
var ownExtension = row{verdict: Refused, note: "there is nothing to be set here", hint: "x-wherry stands below services.NAME and its secrets and configs", subtree: true}

// suggest says what key may have been meant at p.
func (t *table) suggest(p path) string {
	n := t.root
	for _, s := range p[:len(p)-1] {
		if strings.HasPrefix(s, "[") {
			s = "[]"
		}
		next := n.next[s]
		if next == nil {
			next = n.next["*"]
		}
		if next == nil {
			return ""
		}
		n = next
	}
	key := p[len(p)-1]
	if best := nearest(key, n); best != "" {
		return fmt.Sprintf("did you mean %q?", best)
	}
	scope := t.root
	if p[0] == "services" && len(p) > 2 {
		scope = t.root.next["services"].next["*"]
	}
	if best := deeper(key, scope, ""); best != "" {
		return fmt.Sprintf("did you mean %q?", best)
	}
	if len(p) == 1 {
		if t.root.next["services"].next["*"].next[key] != nil {
			return "keys of a service stand below services.NAME"
		}
	}
	return "remove it, or prefix it with x-"
}

// nearest returns the key of a level that is closest to key, or "".
func nearest(key string, n *level) string {
	best, distance := "", len(key)/3+1
	for _, k := range sortedKeys(n.next) {
		if k == "*" || k == "[]" {
			continue
		}
		if d := spec.EditDistance(key, k); d < distance || (d == distance && best == "") {
			best, distance = k, d
		}
	}
	return best
}

// deeper returns the dotted name of a key below n that is nearly key, or "".
func deeper(key string, n *level, prefix string) string {
	for _, k := range sortedKeys(n.next) {
		name := prefix + k
		if k != "*" && k != "[]" && prefix != "" && spec.EditDistance(key, k) <= len(key)/5 {
			return name
		}
		if strings.Count(prefix, ".") < 3 && k != "*" && k != "[]" {
			if found := deeper(key, n.next[k], name+"."); found != "" {
				return found
			}
		}
	}
	return ""
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
