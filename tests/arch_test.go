// Package tests checks the shape of the project: which package may import
// what, that pure packages are pure, that each package says what it is for.
package tests

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "wherry.dev"

// rooms lists every package and the packages of ours that it may import.
var rooms = map[string][]string{
	"spec":                     nil,
	"spec/compose":             {"spec"},
	"spec/compose/composetest": nil,
	"scheduler":                {"spec"},
	"overlay/ipam":             {"spec"},
	"cluster/store":            {"spec"},
	"cluster/ca":               {"spec"},
	"reconciler":               {"spec", "scheduler", "overlay/ipam", "cluster/store"},
	"reconciler/gitops":        {"spec", "spec/compose", "api"},
	"cluster":                  {"spec", "api", "cluster/store", "cluster/ca"},
	"api":                      {"spec"},
	"api/server":               {"spec", "api", "cluster/store", "reconciler"},
	"overlay":                  {"spec"},
	"agent":                    {"spec"},
	"agent/agenttest":          {"spec", "agent"},
	"agent/runtimetest":        {"spec", "agent"},
	"agent/containerd":         {"spec", "agent"},
	"agent/keeper":             {"spec", "overlay"},
	"cmd/wherry":               {"*"},
	"tests":                    {"*"},
	"tests/lab":                {"*"},
	"tests/sim":                {"*"},
	"tests/e2e":                {"*"},
	"tests/bench":              {"*"},
	"tests/soak":               {"*"},
	"tests/script":             {"*"},
	"tests/images":             {"*"},
	"tests/images/make":        {"*"},
	"tests/images/serve":       nil,
}

// guests lists who may import a library that decides an architecture. A key
// covers all packages below it.
var guests = map[string][]string{
	"github.com/compose-spec/compose-go":    {"spec/compose"},
	"gopkg.in/yaml.v3":                      {"cmd/wherry", "spec/compose"},
	"github.com/hashicorp/go-memdb":         {"cluster/store"},
	"github.com/hashicorp/raft":             {"cluster"},
	"github.com/hashicorp/raft-wal":         {"cluster"},
	"github.com/hashicorp/memberlist":       {"cluster"},
	"github.com/hashicorp/go-hclog":         {"cluster"},
	"github.com/vishvananda/netlink":        {"overlay"},
	"github.com/vishvananda/netns":          {"overlay"},
	"github.com/google/nftables":            {"overlay"},
	"github.com/miekg/dns":                  {"overlay", "agent/keeper"},
	"github.com/containerd":                 {"agent/containerd"},
	"github.com/opencontainers":             {"agent/containerd"},
	"tags.cncf.io":                          {"agent/containerd"},
	"github.com/go-git/go-git":              {"reconciler/gitops"},
	"github.com/spf13/cobra":                {"cmd/wherry"},
	"github.com/prometheus/client_golang":   {"cmd/wherry", "cluster", "agent", "overlay"},
	"github.com/google/go-cmp":              {"_test"},
	"github.com/rogpeppe/go-internal":       {"_test"},
	"github.com/distribution/reference":     {"spec/compose", "agent/containerd"},
	"github.com/santhosh-tekuri/jsonschema": {"spec/compose"},
	"go.yaml.in/yaml/v4":                    {"spec/compose"},
	"github.com/klauspost/compress":         {"agent"},
	"github.com/moby/sys/mountinfo":         {"agent", "agent/containerd"},
}

// pure packages decide and have no effects: everything they know is an
// argument. The exceptions are the files that hold a loop or touch the host.
var pure = map[string][]string{
	"spec": nil, "cluster/store": nil, "scheduler": nil, "overlay/ipam": nil,
	"reconciler": {"loop.go"},
}

var impureImports = []string{"os", "net/http", "log/slog", "math/rand", "math/rand/v2", "os/exec", "crypto/rand"}

var clock = []string{"Now", "Since", "Until", "After", "AfterFunc", "Sleep", "NewTimer", "NewTicker", "Tick"}

type file struct {
	pkg, path string
	ast       *ast.File
	set       *token.FileSet
}

func sources(t *testing.T) []file {
	t.Helper()
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	var files []file
	err = filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := d.Name()
		if d.IsDir() && p != root && (strings.HasPrefix(name, ".") || name == "testdata" || name == "build" || name == "bin") {
			return filepath.SkipDir
		}
		if d.IsDir() || filepath.Ext(p) != ".go" {
			return nil
		}
		set := token.NewFileSet()
		f, err := parser.ParseFile(set, p, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		files = append(files, file{pkg: filepath.ToSlash(filepath.Dir(rel)), path: rel, ast: f, set: set})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 20 {
		t.Fatalf("only %d source files found below %s", len(files), root)
	}
	return files
}

func isTest(f file) bool { return strings.HasSuffix(f.path, "_test.go") }

func TestTopLevel(t *testing.T) {
	allowed := []string{"api", "agent", "cluster", "cmd", "docs", "examples", "overlay", "reconciler", "scheduler", "spec", "tests", "bin", "build"}
	entries, err := os.ReadDir("..")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.IsDir() && !strings.HasPrefix(e.Name(), ".") && !slices.Contains(allowed, e.Name()) {
			t.Errorf("folder %s: the house has no such room", e.Name())
		}
	}
}

func TestImports(t *testing.T) {
	for _, f := range sources(t) {
		allowed, ok := rooms[f.pkg]
		if !ok {
			t.Errorf("%s: package %s is not in the plan of the house", f.path, f.pkg)
			continue
		}
		for _, imp := range f.ast.Imports {
			name, err := strconv.Unquote(imp.Path.Value)
			if err != nil {
				t.Fatal(err)
			}
			if err := checkImport(f, name, allowed); err != nil {
				t.Errorf("%s: %v", f.set.Position(imp.Pos()), err)
			}
		}
	}
}

func checkImport(f file, name string, allowed []string) error {
	if own, ok := strings.CutPrefix(name, module+"/"); ok {
		switch {
		case own == f.pkg || slices.Contains(allowed, own) || slices.Contains(allowed, "*") && !strings.HasPrefix(own, "cmd/"):
			return nil
		case isTest(f) && (strings.HasPrefix(own, f.pkg+"/") || strings.HasPrefix(own, "tests/images") || slices.Contains([]string{"agent/agenttest", "agent/runtimetest", "spec", "tests/lab"}, own)):
			return nil // a test may use the fakes and tools of tests
		}
		return fmt.Errorf("%s must not import %s", f.pkg, own)
	}
	if first, _, _ := strings.Cut(name, "/"); !strings.Contains(first, ".") {
		return nil // standard library
	}
	if f.pkg == "spec" && !isTest(f) {
		return fmt.Errorf("spec must not import %s: it stands on the standard library alone", name)
	}
	if strings.HasPrefix(f.pkg, "tests") {
		return nil
	}
	for lib, who := range guests {
		if name != lib && !strings.HasPrefix(name, lib+"/") {
			continue
		}
		if slices.Contains(who, f.pkg) || slices.Contains(who, "_test") && (isTest(f) || strings.HasSuffix(f.pkg, "test")) || isTest(f) && slices.ContainsFunc(who, func(w string) bool { return strings.HasPrefix(f.pkg, w) }) {
			return nil
		}
		return fmt.Errorf("%s is for %s only", lib, strings.Join(who, ", "))
	}
	return nil
}

func TestPure(t *testing.T) {
	for _, f := range sources(t) {
		loops, ok := pure[f.pkg]
		if !ok || isTest(f) || slices.Contains(loops, path.Base(f.path)) {
			continue
		}
		for _, imp := range f.ast.Imports {
			if name, _ := strconv.Unquote(imp.Path.Value); slices.Contains(impureImports, name) {
				t.Errorf("%s: pure package %s imports %s", f.set.Position(imp.Pos()), f.pkg, name)
			}
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				t.Errorf("%s: pure package %s starts a goroutine", f.set.Position(n.Pos()), f.pkg)
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains(clock, n.Sel.Name) {
					t.Errorf("%s: pure package %s reads the clock (time.%s)", f.set.Position(n.Pos()), f.pkg, n.Sel.Name)
				}
			}
			return true
		})
	}
}

// TestPackageDocs: every package says in one place what it is for.
func TestPackageDocs(t *testing.T) {
	docs := map[string][]string{}
	pkgs := map[string]bool{}
	for _, f := range sources(t) {
		onlyTests := f.pkg == "tests"
		if isTest(f) && !onlyTests {
			continue
		}
		pkgs[f.pkg] = true
		if f.ast.Doc != nil {
			docs[f.pkg] = append(docs[f.pkg], f.path)
		}
	}
	for p := range pkgs {
		switch n := len(docs[p]); {
		case n == 0:
			t.Errorf("package %s has no doc comment", p)
		case n > 1:
			t.Errorf("package %s has %d doc comments: %s", p, n, strings.Join(docs[p], ", "))
		}
	}
}

// TestNoInit: nothing happens by being imported.
func TestNoInit(t *testing.T) {
	for _, f := range sources(t) {
		if isTest(f) {
			continue
		}
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s: func init", f.set.Position(fn.Pos()))
			}
		}
	}
}
