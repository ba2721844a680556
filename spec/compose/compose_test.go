package compose

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"wherry.dev/spec"
)

func TestErr(t *testing.T) {
	r := Result{Findings: []Finding{
		{Verdict: Note, Message: "a note"},
		{Verdict: NoEffect, Message: "no effect"},
	}}
	if err := r.Err(); err != nil {
		t.Fatalf("notes are no error: %v", err)
	}
	r.Findings = append(r.Findings,
		Finding{Verdict: Refused, Path: "services.web.tty", File: "a.yml", Line: 3, Column: 5, Message: "is wrong", Hint: "mend it"},
		Finding{Verdict: Refused, Message: "is empty"})
	err := r.Err()
	if want := "a.yml:3:5: services.web.tty: is wrong; mend it\nis empty"; err.Error() != want || !errors.Is(err, spec.ErrInvalid) {
		t.Errorf("got %q, want %q", err, want)
	}
	b, _ := json.Marshal(r.Findings[2])
	if want := `{"verdict":"refused","path":"services.web.tty","file":"a.yml","line":3,"column":5,"message":"is wrong","hint":"mend it"}`; string(b) != want {
		t.Errorf("got %s", b)
	}
}

func TestName(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "Some Folder.d")
	file := filepath.Join(dir, "stack.yml")
	tests := []struct {
		o    Options
		text string
		want string // "" is refused
	}{
		{Options{}, "", "somefolderd"},
		{Options{}, "name: in-file\n", "in-file"},
		{Options{}, "name: ${N:-other}\n", "other"},
		{Options{Env: map[string]string{"COMPOSE_PROJECT_NAME": "env"}}, "name: in-file\n", "env"},
		{Options{Name: "flag", Env: map[string]string{"COMPOSE_PROJECT_NAME": "env"}}, "name: in-file\n", "flag"},
		{Options{Name: "Not Valid"}, "", ""},
		{Options{Name: strings.Repeat("a", 64)}, "", ""},
	}
	for _, tt := range tests {
		writeFile(t, file, tt.text+"services: {web: {image: a, environment: {P: $COMPOSE_PROJECT_NAME}}}\n")
		tt.o.Files = []string{file}
		r, err := Load(t.Context(), tt.o)
		if err != nil {
			t.Fatal(err)
		}
		switch err := r.Err(); {
		case tt.want == "" && err == nil:
			t.Errorf("%+v is accepted", tt.o)
		case tt.want != "" && (err != nil || r.Stack.Name != tt.want || r.Stack.Services["web"].Template.Env["P"] != tt.want):
			t.Errorf("%+v %q: got %q, %v", tt.o, tt.text, r.Stack.Name, err)
		}
	}
}

// TestRefusedInclude checks that a refused stack does not complain about files
// of an included folder that are there.
func TestRefusedInclude(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "sub", "inc.yml"), "services: {inc: {image: a, env_file: a.env, configs: [c]}}\nconfigs: {c: {file: c.conf}}\n")
	writeFile(t, filepath.Join(dir, "sub", "a.env"), "A=1\n")
	writeFile(t, filepath.Join(dir, "sub", "c.conf"), "c")
	file := filepath.Join(dir, "stack.yml")
	writeFile(t, file, "include: [sub/inc.yml]\nservices: {web: {image: a, replicaz: 1, depends_on: [inc]}}\n")
	r, err := Load(t.Context(), Options{Files: []string{file}})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Err(); err == nil || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "replicaz") {
		t.Errorf("want one refusal, got %v", err)
	}
}

// TestDeterministic loads one stack many times: contents, names and order must
// not depend on the order of maps.
func TestDeterministic(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "stack.yml")
	writeFile(t, filepath.Join(dir, "data", "a"), "a")
	text := "services:\n"
	for i := range 9 {
		text += fmt.Sprintf("  s%d: {image: a, links: ['s0:a%d'], networks: [n%d, n0], volumes: ['./data:/d%d'], bogus%d: 1, ports: ['80%d:80', '90%d:90']}\n", i, i, i, i, i, i, i)
	}
	text += "networks: {n0: , n1: , n2: , n3: , n4: , n5: , n6: , n7: , n8: }\n"
	for _, text := range []string{text, strings.ReplaceAll(text, "bogus", "x-bogus")} {
		writeFile(t, file, text)
		first := ""
		for range 20 {
			r, err := Load(t.Context(), Options{Files: []string{file}})
			if err != nil {
				t.Fatal(err)
			}
			b, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			if first == "" {
				first = string(b)
			}
			if first != string(b) {
				t.Fatalf("two loads differ:\n%s\n%s", first, b)
			}
		}
	}
}

func TestNormalizeImage(t *testing.T) {
	digest := "sha256:" + strings.Repeat("0123456789abcdef", 4)
	tests := []struct{ in, image, digest string }{
		{"nginx", "docker.io/library/nginx:latest", ""},
		{"nginx:1.27", "docker.io/library/nginx:1.27", ""},
		{"acme/web", "docker.io/acme/web:latest", ""},
		{"localhost:5000/web", "localhost:5000/web:latest", ""},
		{"ghcr.io/acme/web:v1", "ghcr.io/acme/web:v1", ""},
		{"nginx@" + digest, "docker.io/library/nginx@" + digest, digest},
		{"nginx:1@" + digest, "docker.io/library/nginx:1@" + digest, digest},
	}
	for _, tt := range tests {
		image, digest, err := NormalizeImage(tt.in)
		if err != nil || image != tt.image || digest != tt.digest {
			t.Errorf("%s: got %q, %q, %v", tt.in, image, digest, err)
		}
	}
	for _, in := range []string{"", "nginx:", "NGINX", "a b", "https://docker.io/nginx", "nginx@sha256:12"} {
		if image, _, err := NormalizeImage(in); !errors.Is(err, spec.ErrInvalid) {
			t.Errorf("%q: got %q, %v", in, image, err)
		}
	}
}

func TestNanoCPUs(t *testing.T) {
	for in, want := range map[float32]int64{0.1: 100_000_000, 0.5: 500_000_000, 1.5: 1_500_000_000, 0.333: 333_000_000, 64: 64_000_000_000, 0: 0} {
		if got := nanoCPUs(in); got != want {
			t.Errorf("%v: got %d, want %d", in, got, want)
		}
	}
}

func TestEditDistance(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"ports", "ports", 0}, {"prots", "ports", 1}, {"port", "ports", 1}, {"imgae", "image", 1}, {"abc", "xyz", 3}} {
		if got := spec.EditDistance(tt.a, tt.b); got != tt.want {
			t.Errorf("%s %s: got %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}

func BenchmarkLoad1000Services(b *testing.B) {
	var text strings.Builder
	text.WriteString("services:\n")
	for i := range 1000 {
		fmt.Fprintf(&text, "  s%d: {image: 'nginx:1', ports: ['%d:80'], environment: {A: b}, depends_on: [s0]}\n", i+1, i+1)
	}
	text.WriteString("  s0: {image: a}\n")
	for b.Loop() {
		r, err := Load(b.Context(), Options{Files: []string{"-"}, Stdin: strings.NewReader(text.String()), Name: "a"})
		if err != nil || r.Err() != nil {
			b.Fatal(err, r.Err())
		}
	}
}

// TestExclusive follows x-wherry through the ways in which it can be written.
func TestExclusive(t *testing.T) {
	tests := []struct {
		text string
		want bool
		err  string // part of the refusal; "" when there is none
	}{
		{"services: {web: {image: nginx, x-wherry: {exclusive: true}}}", true, ""},
		{"services: {web: {image: nginx, x-wherry: {exclusive: \"${ON}\"}}}", true, ""},
		{"services: {web: {image: nginx, x-wherry: {exclusive: false}}}", false, ""},
		{"services: {web: {image: nginx, x-wherry: {}}}", false, ""},
		{"services: {web: {image: nginx, x-wherry: }}", false, ""},
		{"x-base: &b {x-wherry: {exclusive: true}}\nservices: {web: {<<: *b, image: nginx}}", true, ""},
		{"services: {web: {image: nginx, x-wherry: true}}", false, "services.web.x-wherry: true is no mapping"},
		{"services: {web: {image: nginx, x-wherry: {exclusive: 3}}}", false, "services.web.x-wherry.exclusive: \"3\" is neither true nor false"},
		{"services: {web: {image: nginx, x-wherry: {exclusiv: true}}}", false, "services.web.x-wherry.exclusiv: there is no such key; did you mean \"exclusive\"?"},
		{"x-wherry: {exclusive: true}\nservices: {web: {image: nginx}}", false, "x-wherry: there is nothing to be set here; x-wherry stands below services.NAME"},
		{"services: {web: {image: nginx, deploy: {update_config: {order: start-first}}, x-wherry: {exclusive: true}}}", true, "services.web.deploy.update_config.order"},
	}
	for _, tt := range tests {
		file := filepath.Join(t.TempDir(), "stack.yml")
		writeFile(t, file, tt.text)
		r, err := Load(t.Context(), Options{Files: []string{file}, Env: map[string]string{"ON": "true"}})
		if err != nil {
			t.Fatal(err)
		}
		switch err := r.Err(); {
		case tt.err == "" && err != nil, tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)):
			t.Errorf("%s: %v, want %q", tt.text, err, tt.err)
		}
		if got := r.Stack.Services["web"].Template.Exclusive; got != tt.want && tt.err == "" {
			t.Errorf("%s: exclusive %v", tt.text, got)
		}
	}
}
