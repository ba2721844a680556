package compose

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/schema"
	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden files")

// TestTableCoversSchema checks that every path of the schema of Compose has a
// verdict, and that no row is for a path that does not exist.
func TestTableCoversSchema(t *testing.T) {
	table := newTable()
	paths := map[string]bool{}
	for _, p := range schema.AttributePaths() {
		path := string(p)
		paths[path] = true
		r, state := table.lookup(strings.Split(path, "."))
		if state != keyKnown {
			t.Errorf("%s has no verdict", path)
			continue
		}
		if r == &structure && !slices.ContainsFunc(allRows(), func(r row) bool { return strings.HasPrefix(r.path, path+".") }) {
			t.Errorf("%s has no verdict", path)
		}
	}
	seen := map[string]bool{}
	for _, r := range allRows() {
		if own := strings.Contains(r.path, ".x-wherry") || strings.HasSuffix(r.path, ".[].*"); own == paths[r.path] {
			t.Errorf("the row %s is for a key that Compose does not have", r.path)
		}
		if seen[r.path] {
			t.Errorf("%s has two rows", r.path)
		}
		seen[r.path] = true
		if r.verdict != "" && r.note == "" {
			t.Errorf("the verdict on %s has no reason", r.path)
		}
	}
}

const docsIntro = `<!-- Generated from the tables in spec/compose/verdicts*.go by
     go test ./spec/compose -run TestDocs -update. Do not edit. -->

# Compose files: what is honoured

Every key of the Compose specification has a verdict. ` + "`wherry validate`, `plan` and `apply`" + ` judge the whole input before anything is changed, and name
file, line and path of everything that is not honoured. No key is dropped in silence; an unknown key is refused. Whatever the Compose
library itself refuses is refused here too.

- **honoured**: it does what the specification says, with the remark.
- **no effect**: it is understood and does nothing on a cluster; a finding says so.
- **refused**: the stack cannot be applied; the last column says what to do instead. "Not built yet" is a refusal like any other.

Keys below a key are judged like it unless they are listed. ` + "`x-wherry`" + ` in a service holds what Compose has no key for; other keys that begin with ` + "`x-`" + `, anchors, merge keys, interpolation, ` + "`.env`, `--env-file`" + `, several files,
` + "`!reset` and `!override`" + ` work as in Compose. A file has at most 1 MiB.

## Paths of the client

A relative path (also one with ` + "`~`" + `) in ` + "`volumes`" + ` names something that only the client has:

| what it is | what it becomes |
|---|---|
| a file, at most 1 MiB | read-only content that travels with the stack |
| a folder that all services mount read-only, at most 1 MiB | read-only content that travels with the stack |
| a folder that some service may write to, at most 1 MiB | a local volume of the stack, filled from the folder when it is first made |
| an empty folder, or nothing | an empty local volume of the stack, also when the name looks like that of a file |
| larger | refused, unless the service is pinned |

A finding says which. The name of such a volume is made of the path. An absolute path stays a path of the node; a missing one is made there, unless
` + "`create_host_path: false`" + ` says otherwise.

With ` + "`x-wherry: {pin: NODE}`" + ` a service is placed on one node only, and its relative paths name what lies there at the same place as on the client: for
large folders, and for those that somebody edits. What the client has must be there, else the task is rejected.

## Habits of single hosts

` + "`container_name`" + ` is a further name of the service on its networks. Relative paths are above. ` + "`/var/run/docker.sock`" + ` is the node's own: it shows what Docker
runs there, which is nothing of the stack, and a node without it rejects the task.

## Keys that are refused

` + "`wherry apply`" + `, ` + "`plan`" + ` and ` + "`validate`" + ` take ` + "`--accept KEY`" + ` for a file that is to be applied in spite of a refused key, with the path that the refusal
names, such as ` + "`--accept services.web.external_links`" + `: the key is left out, and the plan says so. It may be given several times; a key that is not in
the file or is not refused is an error.

## Placeholders

In ` + "`hostname`, in the values of `environment` and `labels`, in absolute sources of binds and in `volume.subpath`" + `, these stand for what only the node of a task
knows, and are replaced there:

| placeholder | stands for |
|---|---|
| ` + "`{{.Node.Hostname}}`, `{{.Node.ID}}`" + ` | the name and the ID of the node |
| ` + "`{{.Node.Platform.OS}}`, `{{.Node.Platform.Architecture}}`" + ` | such as ` + "`linux` and `amd64`" + ` |
| ` + "`{{.Service.Name}}`" + ` | STACK_SERVICE, which is also a name on the service's networks |
| ` + "`{{.Task.ID}}`, `{{.Task.Name}}`" + ` | the ID of the task, and STACK.SERVICE.SLOT |
| ` + "`{{.Task.Slot}}`" + ` | the number of the slot, from 1; for a global service the ID of the node |

Any other expression with ` + "`.Node.`, `.Service.` or `.Task.`" + ` in double braces is refused; other double braces are text. What is done per task by the name of a volume in
Swarm is done by a volume without a source: each slot has one of its own.

## Defaults worth knowing

- A service without ` + "`restart` and `deploy.restart_policy`" + ` is always restarted: a cluster keeps services running. (In Compose it is not.)
- A service without ` + "`networks` and `network_mode`" + ` is on the network ` + "`default`" + ` of the stack, which spans all hosts.
- The name of a service answers with one address of its own on each network, whose connections go to the ready tasks; with
  ` + "`deploy.endpoint_mode: dnsrr`" + ` it answers with the addresses of these, as ` + "`tasks.NAME`" + ` always does.
- Ports are published on every node. A host IP is honoured, never widened.
- Without ` + "`deploy.replicas`" + ` the number set by scaling stays, one at first.
`

// TestDocs compares docs/compose.md with the table.
func TestDocs(t *testing.T) {
	var b strings.Builder
	b.WriteString(docsIntro)
	sections := []struct {
		title string
		keep  func(path string) bool
	}{
		{"Top level", func(p string) bool { return !strings.Contains(p, ".*") }},
		{"Services", func(p string) bool {
			return strings.HasPrefix(p, "services.") && !strings.HasPrefix(p, "services.*.deploy")
		}},
		{"Services: deploy", func(p string) bool { return strings.HasPrefix(p, "services.*.deploy") }},
		{"Networks", func(p string) bool { return strings.HasPrefix(p, "networks.") }},
		{"Volumes", func(p string) bool { return strings.HasPrefix(p, "volumes.") }},
		{"Secrets", func(p string) bool { return strings.HasPrefix(p, "secrets.") }},
		{"Configs", func(p string) bool { return strings.HasPrefix(p, "configs.") }},
	}
	printed := 0
	for _, s := range sections {
		fmt.Fprintf(&b, "\n## %s\n\n| key | verdict | remark | instead |\n|---|---|---|---|\n", s.title)
		for _, r := range sortedRows() {
			if !s.keep(r.path) {
				continue
			}
			printed++
			verdict := map[Verdict]string{"": "honoured", NoEffect: "no effect", Refused: "refused"}[r.verdict]
			note := r.note
			if len(r.same) > 0 {
				note += " (`" + strings.Join(r.same, "`, `") + "` is what holds anyway and accepted)"
			}
			fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", r.path, verdict, note, r.hint)
		}
	}
	if printed != len(allRows()) {
		t.Errorf("%d of %d rows are printed", printed, len(allRows()))
	}
	golden(t, filepath.Join("..", "..", "docs", "compose.md"), b.String())
}

func sortedRows() []row {
	rows := allRows()
	slices.SortFunc(rows, func(a, b row) int { return strings.Compare(a.path, b.path) })
	return rows
}

// golden compares got with a file, or writes it with -update.
func golden(t *testing.T, name, got string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s is out of date, run the test with -update (-file +now):\n%s", name, diff)
	}
}
