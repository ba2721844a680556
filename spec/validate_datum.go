package spec

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
)

// varName is what a shell takes for the name of a variable.
var varName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// data checks the declared secrets and configs.
func (c *checker) data() {
	for _, k := range DatumKinds {
		declared := c.stack.Data(k)
		for _, name := range slices.Sorted(maps.Keys(declared)) {
			d := declared[name]
			c.datum(fmt.Sprintf("%ss.%s", k, name), name, k, &d)
		}
	}
}

func (c *checker) datum(at, name string, k DatumKind, d *DatumSpec) {
	c.objectName(at, name)
	if d.Name != "" {
		c.objectName(at+".name", d.Name)
	}
	switch {
	case d.Content == "" && !d.External:
		c.add(at, "the %s has no content", k)
	case d.Content != "":
		c.anyContent(at+".content", d.Content)
	}
	if d.Size < 0 || d.Size > k.MaxSize() {
		c.add(at+".size", "%d bytes: a %s has at most %d KiB", d.Size, k, k.MaxSize()>>10)
	}
	c.labels(at+".labels", d.Labels)
}

// ValidateDatum checks a secret or config that belongs to no stack, of so many
// bytes. Its error joins all problems.
func ValidateDatum(k DatumKind, name string, labels map[string]string, size int) error {
	c := &checker{}
	c.objectName(string(k), name)
	if size > k.MaxSize() {
		c.add(string(k)+" "+name, "it has %d bytes, and at most %d KiB are allowed", size, k.MaxSize()>>10)
	}
	c.labels(string(k)+" "+name, labels)
	return errors.Join(c.problems...)
}

// anyContent also admits the ID of a sealed content.
func (c *checker) anyContent(at string, id ContentID) {
	if s, ok := strings.CutPrefix(string(id), sealedPrefix); ok {
		id = ContentID("hmac:" + s)
	}
	c.content(at, id)
}

// datumMount checks the mount of a secret or config.
func (c *checker) datumMount(at string, m *Mount, k DatumKind) {
	if _, ok := c.stack.Data(k)[m.Source]; !ok {
		c.add(at+".source", "the %s %q is not declared", k, m.Source)
	}
	if err := CheckOnChange(m.OnChange); err != nil {
		c.add(at+".on_change", "%v", err)
	}
	if m.Content != "" {
		c.anyContent(at+".content", m.Content)
	}
}

func (c *checker) secretEnv(at string, vars []SecretVar) {
	seen := map[string]bool{}
	for i, v := range vars {
		where := fmt.Sprintf("%s[%d]", at, i)
		if !varName.MatchString(v.Name) {
			c.add(where+".name", "%q is not the name of a variable", v.Name)
		}
		if seen[v.Name] {
			c.add(where+".name", "the variable %s is set twice", v.Name)
		}
		seen[v.Name] = true
		if d, ok := c.stack.Secrets[v.Source]; !ok {
			c.add(where+".source", "the secret %q is not declared", v.Source)
		} else if d.Render {
			c.add(where+".source", "the secret %q is a template, and these are rendered to files only", v.Source)
		}
		if v.Content != "" {
			c.anyContent(where+".content", v.Content)
		}
	}
}

// CheckOnChange refuses what is none.
func CheckOnChange(o OnChange) error {
	s := o.Signal()
	switch {
	case o == "" || o == OnChangeNone:
		return nil
	case s == "":
		return Invalidf("%q is none of restart, none and signal:NAME, such as signal:SIGHUP", o)
	case !knownSignal(s):
		return Invalidf("%q is not a signal such as SIGHUP", s)
	case slices.Contains([]string{"KILL", "STOP", "9", "19"}, strings.TrimPrefix(strings.ToUpper(s), "SIG")):
		return Invalidf("the signal %s cannot be handled by a program: use restart", s)
	}
	return nil
}

// signals are those with a name that is the same on all platforms.
var signals = strings.Fields(`HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM CHLD CONT STOP TSTP TTIN TTOU
	URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS`)

func knownSignal(s string) bool {
	return regexp.MustCompile(`^([1-9]|[1-5][0-9]|6[0-4])$`).MatchString(s) || slices.Contains(signals, strings.TrimPrefix(strings.ToUpper(s), "SIG"))
}
