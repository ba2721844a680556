package compose

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// tooLong is how long refusing hostile input may take; the issue is growth
// without bound, not milliseconds.
const tooLong = 2 * time.Second

func loadText(t *testing.T, text string) Result {
	t.Helper()
	file := filepath.Join(t.TempDir(), "stack.yml")
	writeFile(t, file, text)
	r, err := Load(t.Context(), Options{Files: []string{file}, Env: map[string]string{}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestHostileInput feeds what is made to take forever or all memory.
func TestHostileInput(t *testing.T) {
	laughs := "a0: &a0 [x,x,x,x,x,x,x,x,x]\n"
	for i := 1; i < 12; i++ {
		laughs += fmt.Sprintf("a%d: &a%d [%s]\n", i, i, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*a%d,", i-1), 9), ","))
	}
	merges := "x-0: &m0 {a: b}\n"
	for i := 1; i < 40; i++ {
		merges += fmt.Sprintf("x-%d: &m%d {k1: *m%d, k2: *m%d}\n", i, i, i-1, i-1)
	}
	diamond := "services:\n"
	for i := range 60 {
		diamond += fmt.Sprintf("  s%d:\n    image: a\n    depends_on: [", i)
		for j := i + 1; j < 60; j++ {
			diamond += fmt.Sprintf("s%d, ", j)
		}
		diamond += "]\n"
	}
	image := "services: {web: {image: nginx}}\n"
	tests := []struct {
		name, text, want string // want "" is accepted
	}{
		{"billion laughs", image + laughs, "aliases are expanded"},
		{"merge bomb", image + merges, "aliases are expanded"},
		{"anchor in itself", "services: &s {web: *s}\n", "contains itself"},
		{"10 MiB", image + strings.Repeat("# "+strings.Repeat("x", 1021)+"\n", 10<<10), "larger than 1024 KiB"},
		{"deep flow", "a: " + strings.Repeat("[", 50_000), "stack.yml"},
		{"deep flow, closed", "a: " + strings.Repeat("[", 9000) + strings.Repeat("]", 9000), "levels deep"},
		{"deep block", nestedMaps(500), "levels deep"},
		{"many variables", "services: {web: {image: nginx, command: '" + strings.Repeat("${A:-x}", 100_000) + "'}}", "too many variables"},
		{"nested variables", "services: {web: {image: nginx, command: '" + strings.Repeat("${A:-", 2000) + strings.Repeat("}", 2000) + "'}}", "too many variables"},
		{"port range", "services: {web: {image: nginx, ports: ['1-65000:1-65000', '1-65000:1-65000/udp']}}", "range of more than"},
		{"dependencies of dependencies", diamond, ""},
		{"many scalars", "services: {web: {image: nginx, labels: [" + strings.Repeat("a,", 200_000) + "]}}", "aliases are expanded"},
		{"control characters", "services:\n  web:\n    image: \"a\\0b\"\n", "image"},
		{"not a mapping", "- a\n- b\n", "is a mapping"},
		{"no services", "volumes: {a: {}}\n", "no active service"},
		{"empty", "# nothing\n", "empty"},
		{"binary", "\x00\x01\x02", "not valid YAML"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			start := time.Now()
			r := loadText(t, tt.text)
			if d := time.Since(start); d > tooLong {
				t.Errorf("took %v", d)
			} else {
				t.Logf("took %v", d)
			}
			switch err := r.Err(); {
			case tt.want == "" && err != nil:
				t.Errorf("refused: %.300v", err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("got %.300v, want %q", err, tt.want)
			}
		})
	}
}

func nestedMaps(depth int) string {
	var b strings.Builder
	for i := range depth {
		b.WriteString(strings.Repeat(" ", i) + "a:\n")
	}
	return b.String()
}

// TestHostileFiles names files that must not be read, or not as they are.
func TestHostileFiles(t *testing.T) {
	dir := t.TempDir()
	large := strings.Repeat("x", maxFile+1)
	for name, text := range map[string]string{
		"large.env": large, "large.conf": large, "loop.yml": "include: [loop.yml]\n",
		"bomb.yml": "services: {web: {image: nginx}}\nx: &a [b]\ny: " + strings.Repeat("[", 5000) + strings.Repeat("]", 5000),
		"tree/big": large, "link/ok": "ok",
	} {
		writeFile(t, filepath.Join(dir, name), text)
	}
	if err := os.Symlink("/etc/hostname", filepath.Join(dir, "link", "out")); err != nil {
		t.Fatal(err)
	}
	tests := []struct{ name, text, want string }{
		{"device as env file", "services: {web: {image: a, env_file: /dev/zero}}", "not a regular file"},
		{"large env file", "services: {web: {image: a, env_file: large.env}}", "larger than 1024 KiB"},
		{"device as label file", "services: {web: {image: a, label_file: /dev/zero}}", "not a regular file"},
		{"large config", "services: {web: {image: a, configs: [c]}}\nconfigs: {c: {file: large.conf}}", "large.conf is too large: a config has at most 1000 KiB"},
		{"large file", "services: {web: {image: a, volumes: ['./large.conf:/a']}}", "too large to travel"},
		{"large folder", "services: {web: {image: a, volumes: ['./tree:/a:ro']}}", "too large to travel"},
		{"link that leads out", "services: {web: {image: a, volumes: ['./link:/a:ro']}}", "points outside"},
		{"include loop", "include: [loop.yml]\nservices: {web: {image: a}}", "include cycle"},
		{"included bomb", "include: [bomb.yml]\n", "levels deep"},
		{"extended bomb", "services: {web: {extends: {file: bomb.yml, service: web}}}", "levels deep"},
		{"extends in circles", "services: {web: {extends: b}, b: {extends: web}}", "ircular reference"},
		{"extends nothing", "services: {web: {image: a, extends: none}}", "none"},
		{"missing include", "include: [nowhere.yml]\nservices: {web: {image: a}}", "nowhere.yml"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(dir, "stack.yml")
			writeFile(t, file, tt.text)
			start := time.Now()
			r, err := Load(t.Context(), Options{Files: []string{file}})
			if err != nil {
				t.Fatal(err)
			}
			if err := r.Err(); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %.300v, want %q", err, tt.want)
			}
			if d := time.Since(start); d > tooLong {
				t.Errorf("took %v", d)
			}
		})
	}
}

func TestIOErrors(t *testing.T) {
	for _, o := range []Options{
		{},
		{Files: []string{filepath.Join(t.TempDir(), "none.yml")}},
		{Files: []string{t.TempDir()}},
		{Files: []string{"-"}},
	} {
		if r, err := Load(t.Context(), o); err == nil {
			t.Errorf("%v: no error, findings %v", o.Files, r.Findings)
		}
	}
}

func TestStdin(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "My Stack")
	writeFile(t, filepath.Join(dir, ".env"), "TAG=5\nWINS=no\n")
	r, err := Load(t.Context(), Options{
		Files: []string{"-"}, Stdin: strings.NewReader("services: {web: {image: 'nginx:$TAG', user: $WINS}}"),
		WorkingDir: dir, Env: map[string]string{"WINS": "yes"},
	})
	if err != nil || r.Err() != nil {
		t.Fatal(err, r.Err())
	}
	web := r.Stack.Services["web"].Template
	if r.Stack.Name != "mystack" || web.Image != "docker.io/library/nginx:5" || web.User != "yes" {
		t.Errorf("got stack %q, image %q, user %q", r.Stack.Name, web.Image, web.User)
	}
}
