package spec

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// PlaceholderNames are the names of placeholders in the order in which they
// are told: "{{.Task.Slot}}" in a template with Placeholders stands for the
// slot of each task.
var PlaceholderNames = []string{
	"Node.Hostname", "Node.ID", "Node.Platform.Architecture", "Node.Platform.OS", "Service.Name", "Task.ID", "Task.Name", "Task.Slot",
}

var (
	placeholder = regexp.MustCompile(`\{\{\s*\.((?:Node|Service|Task)\.[A-Za-z.]+)\s*\}\}`)
	// placeholderLike also matches what somebody may take for one: a name of
	// ours within an expression.
	placeholderLike = regexp.MustCompile(`\{\{[^{}]*\.(Node|Service|Task)\.[^{}]*\}\}`)
)

// HasPlaceholder reports whether s holds a placeholder, or what looks like one.
// Other text in double braces is no concern of ours.
func HasPlaceholder(s string) bool { return placeholderLike.MatchString(s) }

// unknownPlaceholder returns the first text in s that looks like a placeholder
// and is none; "" when there is none.
func unknownPlaceholder(s string) string {
	for _, m := range placeholderLike.FindAllString(s, -1) {
		if p := placeholder.FindStringSubmatch(m); p == nil || p[0] != m || !slices.Contains(PlaceholderNames, p[1]) {
			return m
		}
	}
	return ""
}

// Placeholders are what placeholders stand for. // :: name → text
//
// The name of a service is that under which it is found on all networks,
// "stack_service"; the slot of a task of a global service is its node.
type Placeholders map[string]string

// Fill returns s with all known placeholders replaced.
func (p Placeholders) Fill(s string) string {
	if !strings.Contains(s, "{{") {
		return s
	}
	return placeholder.ReplaceAllStringFunc(s, func(m string) string {
		v, ok := p[placeholder.FindStringSubmatch(m)[1]]
		if !ok {
			return m
		}
		return v
	})
}

// Filled returns t with the placeholders replaced where they may be. It shares
// with t what holds none.
func (t *Template) Filled(p Placeholders) Template {
	if !t.Placeholders {
		return *t
	}
	return t.mapped(p.Fill)
}

// mapped returns t with all texts that may hold placeholders replaced.
func (t *Template) mapped(f func(string) string) Template {
	all := func(m map[string]string) map[string]string {
		m = maps.Clone(m)
		for k, v := range m {
			m[k] = f(v)
		}
		return m
	}
	out := *t
	out.Hostname, out.Env, out.Labels, out.Mounts = f(t.Hostname), all(t.Env), all(t.Labels), slices.Clone(t.Mounts)
	out.PreStart = slices.Clone(t.PreStart)
	for i := range out.PreStart {
		out.PreStart[i].Env = all(out.PreStart[i].Env)
	}
	for i := range out.Mounts {
		m := &out.Mounts[i]
		m.Subpath = f(m.Subpath)
		if m.Type == MountBind {
			m.Source = f(m.Source)
		}
	}
	return out
}

// HoldsPlaceholders reports whether anything in t looks like a placeholder, in
// a place where they are replaced.
func (t *Template) HoldsPlaceholders() bool {
	found := false
	t.mapped(func(s string) string {
		found = found || HasPlaceholder(s)
		return s
	})
	return found
}

// placeholders judges the placeholders of t and returns what the rest of the
// judgement is to look at.
func (c *checker) placeholders(at string, t *Template) *Template {
	if !t.Placeholders {
		return t
	}
	check := func(where, s string) {
		if u := unknownPlaceholder(s); u != "" {
			c.add(where, "%s is no placeholder; there are {{.%s}}", u, strings.Join(PlaceholderNames, "}}, {{."))
		}
	}
	check(at+".hostname", t.Hostname)
	for _, k := range slices.Sorted(maps.Keys(t.Env)) {
		check(at+".env", t.Env[k])
	}
	for _, k := range slices.Sorted(maps.Keys(t.Labels)) {
		check(at+".labels", t.Labels[k])
	}
	for i, p := range t.PreStart {
		for _, k := range slices.Sorted(maps.Keys(p.Env)) {
			check(fmt.Sprintf("%s.pre_start[%d].env", at, i), p.Env[k])
		}
	}
	for i, m := range t.Mounts {
		where := fmt.Sprintf("%s.mounts[%d]", at, i)
		check(where+".subpath", m.Subpath)
		if m.Type == MountBind {
			check(where+".source", m.Source)
		}
	}
	// With "x" for them, which is good wherever any text is.
	filled := t.mapped(func(s string) string { return placeholderLike.ReplaceAllString(s, "x") })
	return &filled
}
