package compose

import (
	"slices"
	"strings"
)

// Keys that are accepted in spite of their refusal are as if they were not in
// the file: they are taken out of the merged view, which is judged, and out of
// compose-go's model, which is converted.

// accepting loads the input again without the keys that are refused and
// accepted, until none is left: what hides behind one may be refused as well.
func (l *loading) accepting() *loading {
	for l.model != nil { // else compose-go refused the files, with all their keys
		var more []Finding
		for _, f := range l.findings {
			known := func(g Finding) bool { return g.Path == f.Path }
			if f.Verdict != Refused || !slices.Contains(l.opts.Accept, f.Path) || slices.ContainsFunc(slices.Concat(l.accepted, more), known) {
				continue
			}
			if l.tree.locate(f.Path).leavable() {
				f.Verdict, f.Message, f.Hint = Accepted, "is left out as accepted; it would be refused: "+f.Message, ""
				more = append(more, f)
			}
		}
		if len(more) == 0 {
			break
		}
		next := &loading{ctx: l.ctx, opts: l.opts, dir: l.dir, mains: l.mains, seen: map[string]bool{}, tree: &node{}, accepted: slices.Concat(l.accepted, more)}
		for _, m := range l.mains {
			next.files.add(m.display)
		}
		next.findings = slices.Clone(next.accepted)
		next.run()
		l = next
	}
	return l
}

// unaccepted says of keys of Options.Accept why they let nothing through.
func (l *loading) unaccepted() map[string]string {
	out := map[string]string{}
	for _, k := range l.opts.Accept {
		at := func(f Finding) bool { return f.Path == k && f.Verdict == Refused }
		switch p := l.tree.locate(k); {
		case slices.ContainsFunc(l.accepted, func(f Finding) bool { return f.Path == k }):
		case p == nil:
			out[k] = "there is no such key in the file"
		case !slices.ContainsFunc(l.findings, at):
			if l.model != nil { // else not everything was judged
				out[k] = "is not refused"
			}
		case !p.leavable():
			out[k] = "only a key can be left out, and no whole service, network, volume, secret, config or item of a list"
		}
	}
	return out
}

// leavable reports whether the rest of the file means something without what is
// at p.
func (p path) leavable() bool {
	return len(p) > 2 && !strings.HasPrefix(p[len(p)-1], "[") || len(p) == 1 && p[0] != "services"
}

// dropAccepted takes the accepted keys out of the merged view.
func (l *loading) dropAccepted() {
	for _, f := range l.accepted {
		if p := l.tree.locate(f.Path); p != nil {
			l.left = append(l.left, p)
			l.tree = l.tree.without(p)
		}
	}
}

// dropFrom takes the accepted keys out of compose-go's model.
func (l *loading) dropFrom(model map[string]any) {
	for _, p := range l.left {
		var v any = model
		for _, k := range p[:len(p)-1] {
			v = childOf(v, k)
		}
		if m, ok := v.(map[string]any); ok {
			delete(m, p[len(p)-1])
		}
	}
}

func childOf(v any, k string) any {
	switch v := v.(type) {
	case map[string]any:
		return v[k]
	case []any:
		for i, e := range v {
			if path(nil).index(i)[0] == k {
				return e
			}
		}
	}
	return nil
}

// locate returns the path whose text is s, or nil. Names may hold dots.
func (n *node) locate(s string) path {
	try := func(k string, child *node) path {
		rest, ok := strings.CutPrefix(s, k)
		switch {
		case !ok:
			return nil
		case rest == "":
			return path{k}
		case rest[0] != '.' && rest[0] != '[':
			return nil
		}
		if below := child.locate(strings.TrimPrefix(rest, ".")); below != nil {
			return append(path{k}, below...)
		}
		return nil
	}
	for _, k := range n.keys {
		if p := try(k, n.fields[k]); p != nil {
			return p
		}
	}
	for i, item := range n.items {
		if p := try(path(nil).index(i)[0], item); p != nil {
			return p
		}
	}
	return nil
}

// without returns n without what is at p; n stays as it is, as extends may
// share its nodes.
func (n *node) without(p path) *node {
	child := n.child(p[0])
	if child == nil {
		return n
	}
	if n.kind == listNode {
		out := *n
		out.items = slices.Clone(n.items)
		for i := range out.items {
			if out.items[i] == child {
				out.items[i] = child.without(p[1:])
			}
		}
		return &out
	}
	out := n.clone()
	if len(p) == 1 {
		out.remove(p[0])
	} else {
		out.fields[p[0]] = child.without(p[1:])
	}
	return out
}
