package tests

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// TestCatalogue: each test, subtest and file that the tables of known failures
// name exists.
func TestCatalogue(t *testing.T) {
	const root = ".."
	named := namesOfTests(t, root)
	text, err := os.ReadFile("e2e/README.md")
	if err != nil {
		t.Fatal(err)
	}
	quoted := regexp.MustCompile("`([^`]+)`")
	found := 0
	for i, line := range strings.Split(string(text), "\n") {
		if !strings.HasPrefix(line, "|") || strings.Contains(line, "| what it counts |") {
			continue
		}
		for _, m := range quoted.FindAllStringSubmatch(line, -1) {
			name := m[1]
			if strings.Contains(name, " ") || strings.ToUpper(name) == name { // a command, or a variable
				continue
			}
			found++
			if _, err := os.Stat(filepath.Join(root, name)); err == nil {
				continue
			}
			for _, part := range strings.Split(name, "/") {
				if !named[part] {
					t.Errorf("tests/e2e/README.md:%d: %s: there is no %s", i+1, name, part)
				}
			}
		}
	}
	if found < 50 {
		t.Errorf("only %d names are found: the tables are written otherwise", found)
	}
}

// namesOfTests returns the functions of all test files, and all strings in them
// as names of subtests.
func namesOfTests(t *testing.T, root string) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	if err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch x := n.(type) {
			case *ast.FuncDecl:
				out[x.Name.Name] = true
			case *ast.BasicLit:
				if s, err := strconv.Unquote(x.Value); err == nil && x.Kind == token.STRING {
					out[strings.ReplaceAll(s, " ", "_")] = true
				}
			}
			return true
		})
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return out
}
