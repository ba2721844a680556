package spec

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func renderFixture() (RenderFacts, RenderFuncs) {
	var f RenderFacts
	f.Service.ID, f.Service.Name, f.Service.Labels = "1-3", "shop_web", map[string]string{"tier": "front"}
	f.Task.ID, f.Task.Name, f.Task.Slot = "1-9", "shop.web.2", "2"
	f.Node.ID, f.Node.Hostname, f.Node.Platform.Architecture, f.Node.Platform.OS = "00ff", "alpha", "amd64", "linux"
	return f, RenderFuncs{Env: map[string]string{"PORT": "80"}, Datum: func(k DatumKind, name string) (string, error) {
		if name != "tls" {
			return "", fmt.Errorf("no %s %q", k, name)
		}
		return string(k) + "!", nil
	}}
}

func TestRender(t *testing.T) {
	facts, funcs := renderFixture()
	for text, want := range map[string]string{
		`plain`: "plain",
		`{{.Service.ID}} {{.Service.Name}} {{.Service.Labels.tier}} {{index .Service.Labels "tier"}}`: "1-3 shop_web front front",
		`{{.Task.ID}} {{.Task.Name}} {{.Task.Slot}}`:                                                  "1-9 shop.web.2 2",
		`{{.Node.ID}} {{.Node.Hostname}} {{.Node.Platform.OS}}/{{.Node.Platform.Architecture}}`:       "00ff alpha linux/amd64",
		`{{env "PORT"}}{{env "NONE"}} {{secret "tls"}} {{config "tls"}} {{join "-" "a" "b"}}`:         "80 secret! config! a-b",
		`{{range $i := 3}}{{$i}},{{end}}{{define "x"}}[{{.}}]{{end}}{{template "x" .Task.Slot}}`:      "0,1,2,[2]",
	} {
		if got, err := Render(DatumConfig, "app.conf", text, facts, funcs); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", text, got, err)
		}
	}
}

// Every error says where, and none takes long.
func TestRenderRefuses(t *testing.T) {
	facts, funcs := renderFixture()
	doubling := ""
	for i := range 40 {
		doubling += fmt.Sprintf(`{{define "t%d"}}{{template "t%d"}}{{template "t%d"}}{{end}}`, i, i+1, i+1)
	}
	for text, want := range map[string]string{
		"a\n{{.Task.Slot":                    "app.conf:2: unclosed action",
		"a\n{{ .Taks.Slot }}":                "app.conf:2:8: executing \"app.conf\" at <.Taks.Slot>: can't evaluate field Taks",
		"{{ frob }}":                         `app.conf:1: function "frob" not defined`,
		"\n\n  {{ secret \"x\" }}":           "app.conf:3:5:",
		"{{ .Service.Labels.none }}":         "no entry for key",
		"{{ range 1000000000000 }}{{ end }}": "takes too long",
		"{{ range 100000 }}{{ range 100000 }}{{ end }}{{ end }}":                  "takes too long",
		doubling + `{{define "t40"}}{{end}}{{template "t0"}}`:                     "takes too long",
		`{{define "a"}}{{template "a"}}{{end}}{{template "a"}}`:                   "e", // either limit will do
		"{{ range 19999 }}" + strings.Repeat("0123456789abcdef", 4) + "{{ end }}": "more than 1024 KiB",
	} {
		started := time.Now()
		got, err := Render(DatumConfig, "app.conf", text, facts, funcs)
		if err == nil || !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: %d bytes, %v", text, len(got), err)
		}
		if d := time.Since(started); d > 10*time.Second {
			t.Errorf("%.60q took %s", text, d)
		}
	}
}

func TestCheckTemplates(t *testing.T) {
	text := map[string]string{
		"good":  `{{env "A"}} {{secret "tls"}} {{.Service.Labels.tier}} {{slice (secret "tls") 0 9}}`,
		"tls":   "x",
		"empty": "",
		"never": "\n{{",
		"field": "{{.Service.Nmae}}",
		"other": `{{secret "good"}}{{/* a template itself */}}`,
		"loops": `{{range 1000000}}{{end}}`,
	}
	s := &Stack{Secrets: map[string]DatumSpec{"tls": {}}, Configs: map[string]DatumSpec{"unknown": {Render: true}}}
	svc := ServiceSpec{Labels: map[string]string{"tier": "front"}}
	svc.Template.Mounts = []Mount{{Type: MountSecret, Source: "tls", Target: "/run/secrets/tls"}}
	for name := range text {
		if name != "tls" {
			s.Configs[name] = DatumSpec{Render: true}
			svc.Template.Mounts = append(svc.Template.Mounts, Mount{Type: MountConfig, Source: name, Target: "/" + name, Render: true})
		}
	}
	bare := svc
	bare.Template.Mounts = svc.Template.Mounts[1:] // without tls
	s.Services = map[string]ServiceSpec{"web": svc, "bare": bare}
	var got []string
	for _, p := range CheckTemplates(s, func(_ DatumKind, short string) (string, string, bool) {
		b, ok := text[short]
		return short + ".conf", b, ok
	}) {
		got = append(got, fmt.Sprintf("%s %s/%s: %v", p.Kind, p.Service, p.Name, p.Err))
	}
	all := strings.Join(got, "\n")
	for _, want := range []string{
		"config bare/good: good.conf:1:", "the service has no secret that is not itself a template",
		"config bare/field: field.conf:1:10", "config web/field: field.conf:1:10",
		"config bare/loops:", "config web/loops:",
		"config /never: never.conf:2: unclosed action",
		"config bare/other:", `config web/other: other.conf:1:2: executing "other.conf" at <secret "good">: error calling secret: the service has no such secret; it has tls`,
	} {
		if !strings.Contains(all, want) {
			t.Errorf("%q is missing in\n%s", want, all)
		}
	}
	if len(got) != 8 {
		t.Errorf("%d problems:\n%s", len(got), all)
	}
}

// No error shows anything of a secret, whatever a template does with it.
func TestRenderErrorsKeepSecrets(t *testing.T) {
	const value = "hunter2"
	facts, funcs := renderFixture()
	var tmpl Template
	tmpl.Mounts = []Mount{{Type: MountSecret, Source: "tls", Target: "/run/secrets/tls"}}
	funcs.Datum = func(k DatumKind, name string) (string, error) {
		if _, err := tmpl.FindDatum(k, name); err != nil {
			return "", err
		}
		return value, nil
	}
	for _, text := range []string{
		`{{range secret "tls"}}{{end}}`, `{{secret (secret "tls")}}`, `{{(secret "tls").Field}}`, `{{index (secret "tls") 99}}`, `{{call (secret "tls")}}`,
		`{{template (secret "tls")}}`, `{{index .Service.Labels (secret "tls") 1}}`, `{{slice (secret "tls") 99}}`, `{{lt (secret "tls") 1}}`, `{{not_there (secret "tls")}}`,
	} {
		_, err := Render(DatumConfig, "app.conf", text, facts, funcs)
		if err == nil || strings.Contains(err.Error(), value) || !strings.HasPrefix(err.Error(), "app.conf:1") {
			t.Errorf("%s: %v", text, err)
		}
	}
	for _, text := range []string{value + "\n {{ printf \"" + value + "\" 1 | .Field }}", "{{ " + value + " }}", "{{ \"" + value, "{{ if }}" + value} {
		for _, err := range []error{
			func() error { _, err := Render(DatumSecret, "token", text, facts, funcs); return err }(),
			func() error {
				s := &Stack{Secrets: map[string]DatumSpec{"token": {Render: true}}, Services: map[string]ServiceSpec{"web": {Template: Template{Mounts: []Mount{{Type: MountSecret, Source: "token", Render: true}}}}}}
				p := CheckTemplates(s, func(DatumKind, string) (string, string, bool) { return "token", text, true })
				if len(p) != 1 {
					return nil
				}
				return p[0].Err
			}(),
		} {
			if err == nil || strings.Contains(err.Error(), value) || !strings.HasPrefix(err.Error(), "token:") {
				t.Errorf("%q: %v", text, err)
			}
		}
	}
}
