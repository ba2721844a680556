package compose

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wherry.dev/spec"
)

// loadFiles loads a stack file with others beside it.
func loadFiles(t *testing.T, text string, files map[string]string) Result {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		writeFile(t, filepath.Join(dir, name), data)
	}
	writeFile(t, filepath.Join(dir, "stack.yml"), text)
	r, err := Load(t.Context(), Options{Files: []string{filepath.Join(dir, "stack.yml")}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestSizesOfData(t *testing.T) {
	for _, tt := range []struct {
		kind string
		size int
		want string
	}{
		{"secret", spec.MaxSecret, ""},
		{"secret", spec.MaxSecret + 1, "secrets.d.file: big has 512001 bytes: a secret has at most 500 KiB"},
		{"config", spec.MaxConfig, ""},
		{"config", spec.MaxConfig + 1, "configs.d.file: big has 1024001 bytes: a config has at most 1000 KiB"},
		{"secret", 2 << 20, "secrets.d.file: big is too large: a secret has at most 500 KiB"},
	} {
		r := loadFiles(t, "services: {web: {image: a, "+tt.kind+"s: [d]}}\n"+tt.kind+"s: {d: {file: big}}\n", map[string]string{"big": strings.Repeat("x", tt.size)})
		if err := r.Err(); tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s of %d bytes: %v", tt.kind, tt.size, err)
		}
	}
}

// The version of a datum is made of its bytes, and of nothing else that a file
// of a client has.
func TestVersionsOfData(t *testing.T) {
	const text = "services: {web: {image: a, secrets: [d]}}\nsecrets: {d: {file: d}}\n"
	dir := t.TempDir()
	id := func() spec.ContentID {
		t.Helper()
		r, err := Load(t.Context(), Options{Files: []string{filepath.Join(dir, "stack.yml")}})
		if err != nil || r.Err() != nil {
			t.Fatal(err, r.Err())
		}
		return r.Stack.Secrets["d"].Content
	}
	writeFile(t, filepath.Join(dir, "stack.yml"), text)
	writeFile(t, filepath.Join(dir, "d"), "one")
	first := id()
	if err := os.Chmod(filepath.Join(dir, "d"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := id(); got != first {
		t.Error("another mode on the client makes another version")
	}
	writeFile(t, filepath.Join(dir, "d"), "two")
	if id() == first {
		t.Error("other bytes make no other version")
	}
}

// Uses of secrets come through the ways in which files are put together.
func TestDataOfMergedFiles(t *testing.T) {
	r := loadFiles(t, `
x-tls: &tls {secrets: [{source: tls, x-wherry: {on_change: none}}]}
services:
  base: {image: a, secrets: [key], configs: [conf]}
  web:
    extends: {service: base}
    secrets: [{source: key, mode: 0400}, {source: tls, target: other}]
  api: {<<: *tls, image: a}
secrets: {key: {file: key}, tls: {file: tls}}
configs: {conf: {content: "a $${literal} ${UNSET:-default}"}}
`, map[string]string{"key": "k", "tls": "t"})
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	mounts := func(service string) string {
		var out []string
		for _, m := range r.Stack.Services[service].Template.Mounts {
			out = append(out, m.Target+" "+m.Source+" "+string(m.OnChange))
		}
		return strings.Join(out, ", ")
	}
	if got, want := mounts("web"), "/conf conf , /run/secrets/key key , /run/secrets/other tls "; got != want {
		t.Errorf("web has %q, want %q", got, want)
	}
	if got, want := mounts("api"), "/run/secrets/tls tls none"; got != want {
		t.Errorf("api has %q, want %q", got, want)
	}
	for _, m := range r.Stack.Services["web"].Template.Mounts {
		if m.Source == "key" && *m.Mode != 0o400 {
			t.Errorf("the mode is %o", *m.Mode)
		}
	}
	files, err := spec.UnpackContent(r.Contents[r.Stack.Configs["conf"].Content])
	if err != nil || string(files[0].Data) != "a ${literal} default" {
		t.Errorf("the config is %v, %v", files, err)
	}
}

// No finding shows the value of a secret.
func TestFindingsKeepSecrets(t *testing.T) {
	r := loadFiles(t, `
services: {web: {image: a, secrets: [a, b, {source: c, x-wherry: {env: C}}]}}
secrets:
  a: {file: value, template_driver: golang}
  b: {file: value, template_driver: jinja}
  c: {file: value}
`, map[string]string{"value": "{{ hunter2 }}"})
	if r.Err() == nil || !strings.Contains(r.Err().Error(), "secrets.a.file: the template cannot be rendered: value:1: the template is not valid there") {
		t.Errorf("got %v", r.Err())
	}
	for _, f := range r.Findings {
		if strings.Contains(f.String(), "hunter") {
			t.Errorf("the finding shows the secret: %s", f)
		}
	}
}

// TestExternalNames: an external object has its own name also where that is how
// the stack would call one of its own.
func TestExternalNames(t *testing.T) {
	r := loadFiles(t, `
name: shop
services: {web: {image: nginx, volumes: ["data:/data"], networks: [edge], secrets: [key]}}
volumes: {data: {external: true, name: shop_data}}
networks: {edge: {external: true, name: shop_edge}}
secrets: {key: {external: true, name: shop_key}}
`, nil)
	s := r.Stack
	for _, got := range []string{s.Volumes["data"].ClusterName("shop", "data"), s.Networks["edge"].ClusterName("shop", "edge"), s.Secrets["key"].ClusterName("shop", "key")} {
		if !strings.HasPrefix(got, "shop_") {
			t.Errorf("%q is looked for", got)
		}
	}
}
