package compose

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/template"

	"wherry.dev/spec"
)

var (
	// plainVariable is a reference without a default, or an escaped dollar.
	plainVariable = regexp.MustCompile(`\$\$|\$\{([A-Za-z_][A-Za-z0-9_]*)\}|\$([A-Za-z_][A-Za-z0-9_]*)`)
	// nestedVariable is a reference inside the default of another one.
	nestedVariable = regexp.MustCompile(`\$\{[A-Za-z_][A-Za-z0-9_]*:?[-+?][^}]*\$`)
	// defaultedVariable begins a reference with a default.
	defaultedVariable = regexp.MustCompile(`\$\{[A-Za-z_][A-Za-z0-9_]*:?[-+?]`)
)

// tooManyVariables guards interpolation, whose cost grows with the length of a
// value times the number of variables in it.
func tooManyVariables(s string) bool {
	return strings.Count(s, "$")*len(s) > 16<<20 || strings.Count(s, "${") > 1000
}

// interpolate replaces the variables of a value, as compose-go does, which
// writes to the log of the process about unset ones in or behind a default:
// those are made empty beforehand.
func interpolate(s string, lookup template.Mapping) (string, error) {
	if tooManyVariables(s) {
		return "", spec.Invalidf("the value holds too many variables for its length")
	}
	if strings.Count(s, "$") > 1 && defaultedVariable.MatchString(s) {
		set := func(string) (string, bool) { return "1", true }
		if _, err := template.SubstituteWithOptions(s, set, template.WithoutLogging); err != nil {
			return "", err // not well-formed, whatever the values
		}
		s = plainVariable.ReplaceAllStringFunc(s, func(ref string) string {
			if _, ok := lookup(strings.Trim(ref, "${}")); ok || ref == "$$" {
				return ref
			}
			return ""
		})
	}
	return template.SubstituteWithOptions(s, lookup, template.WithoutLogging)
}

// checkVariables reports wrong and unset variables of all values.
func (l *loading) checkVariables() {
	unset := map[string]bool{}
	l.tree.walk(nil, func(p path, n *node) {
		if strings.Contains(n.text(), "$") {
			l.checkVariable(p, n, unset)
		}
	})
}

// checkVariable reports wrong variables of a value. Included files have
// environments of their own, which compose-go knows.
func (l *loading) checkVariable(p path, n *node, unset map[string]bool) {
	if !l.isMain(n.file) {
		return
	}
	_, err := interpolate(n.text(), l.lookup)
	var missing *template.MissingRequiredError
	switch {
	case errors.As(err, &missing):
		message := fmt.Sprintf("the variable %s has to be set", missing.Variable)
		if missing.Reason != "" {
			message += ": " + missing.Reason
		}
		l.refuse(p, "set it in the environment or in an env file", "%s", message)
	case err != nil:
		l.refuse(p, "write $$ for a dollar sign", "the variables in %q are not valid", excerpt(n.text()))
	}
	if err != nil || nestedVariable.MatchString(n.text()) {
		return
	}
	for _, name := range l.unset(n) {
		if unset[name] {
			continue
		}
		unset[name] = true
		l.note(p, "the variable %s is not set and counts as empty", name)
	}
}

// unset lists the variables of a value that have no default and are not set.
func (l *loading) unset(n *node) []string {
	var names []string
	for _, m := range plainVariable.FindAllStringSubmatch(n.text(), -1) {
		name := m[1] + m[2]
		if _, ok := l.env[name]; !ok && name != "" && name != "COMPOSE_PROJECT_NAME" && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// maxExcerpt is how much of a value a message repeats, in bytes.
const maxExcerpt = 100

// excerpt is the beginning of a value, for messages.
func excerpt(s string) string {
	if len(s) <= maxExcerpt {
		return s
	}
	return strings.ToValidUTF8(s[:maxExcerpt], "") + "…"
}
