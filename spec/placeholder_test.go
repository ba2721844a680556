package spec

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFill(t *testing.T) {
	p := Placeholders{"Task.Slot": "3", "Node.Hostname": "{{.Task.Slot}}"}
	for in, want := range map[string]string{
		"":                                 "",
		"web":                              "web",
		"web-{{.Task.Slot}}":               "web-3",
		"{{ .Task.Slot }}{{.Task.Slot  }}": "33",
		"{{.Node.Hostname}}":               "{{.Task.Slot}}", // what stands for one is not looked at again
		"{{.Task.Name}}":                   "{{.Task.Name}}",
		"{{ .Values.name }} {{":            "{{ .Values.name }} {{",
		"{.Task.Slot}":                     "{.Task.Slot}",
	} {
		if got := p.Fill(in); got != want {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

func TestUnknownPlaceholder(t *testing.T) {
	for in, want := range map[string]string{
		"{{.Task.Slot}}-{{.Node.ID}}":            "",
		"{{ .Values.name }} {{ Task }} {{if}}":   "",
		"{{.Task.Slots}}":                        "{{.Task.Slots}}",
		"{{.Service.Labels}}":                    "{{.Service.Labels}}",
		"a {{ .Task.Slot | printf \"%02d\" }} b": "{{ .Task.Slot | printf \"%02d\" }}",
		"{{index .Service.Labels \"a\"}}":        "{{index .Service.Labels \"a\"}}",
		"{{- .Task.Slot -}}":                     "{{- .Task.Slot -}}",
	} {
		if got := unknownPlaceholder(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
		if like := HasPlaceholder(in); like != (want != "" || strings.Contains(in, ".Task.")) {
			t.Errorf("%q looks like a placeholder: %v", in, like)
		}
	}
}

func TestFilled(t *testing.T) {
	all := func(s string) Template {
		return Template{
			Image: "{{.Task.ID}}", Command: []string{"{{.Task.ID}}"}, Hostname: s, Env: map[string]string{"A": s}, Labels: map[string]string{"b": s},
			Mounts: []Mount{{Type: MountBind, Source: "/" + s, Target: "/{{.Task.ID}}"}, {Type: MountVolume, Source: "data", Target: "/d", Subpath: s}},
		}
	}
	p := Placeholders{"Task.ID": "1-2"}
	in := all("{{.Task.ID}}")
	if got := in.Filled(p); !cmp.Equal(got, in) {
		t.Errorf("without placeholders: %s", cmp.Diff(in, got))
	}
	in.Placeholders = true
	want := all("1-2")
	want.Placeholders = true
	if diff := cmp.Diff(want, in.Filled(p)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if in.Env["A"] != "{{.Task.ID}}" || in.Mounts[0].Source != "/{{.Task.ID}}" {
		t.Error("the template itself was changed")
	}
}

func TestValidatePlaceholders(t *testing.T) {
	with := func(s string) *Stack {
		st := validStack()
		web := st.Services["web"]
		web.Template.Placeholders, web.Template.Hostname = true, "web-"+s
		web.Template.Env, web.Template.Labels = map[string]string{"A": s}, map[string]string{"b": s}
		web.Template.Mounts[0].Subpath, web.Template.Mounts[2].Source = s, "/srv/"+s
		st.Services["web"] = web
		return st
	}
	if err := ValidateStack(with("{{.Task.Slot}}")); err != nil {
		t.Error(err)
	}
	err := ValidateStack(with("{{.Task.Slots}}"))
	if !errors.Is(err, ErrInvalid) {
		t.Fatalf("unknown placeholder: %v", err)
	}
	for _, want := range []string{"template.hostname:", "template.env:", "template.labels:", "mounts[0].subpath:", "mounts[2].source:"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no problem with %s in: %v", want, err)
		}
	}
	if err := ValidateStack(with("a b{{.Task.Slot}}")); err == nil || !strings.Contains(err.Error(), "template.hostname: the name") {
		t.Errorf("a bad name beside a placeholder: %v", err)
	}
}
