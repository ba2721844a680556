package spec

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func sealedID(n string) ContentID { return ContentID(sealedPrefix + strings.Repeat(n, 64)) }

// dataStack has a service that uses data in every way.
func dataStack() *Stack {
	s := validStack()
	s.Secrets = map[string]DatumSpec{"key": {Content: sealedID("a"), Size: 7, Labels: map[string]string{"a": "b"}}, "token": {External: true, Name: "shared"}}
	s.Configs = map[string]DatumSpec{"conf": {Content: KeyedContentID(nil, nil), Size: 3, Render: true}}
	svc := s.Services["web"]
	svc.Template.Mounts = append(svc.Template.Mounts,
		Mount{Type: MountSecret, Source: "key", Target: "/run/secrets/key"},
		Mount{Type: MountSecret, Source: "token", Target: "/run/secrets/token", OnChange: SignalOnChange("SIGHUP")},
		Mount{Type: MountConfig, Source: "conf", Target: "/conf", OnChange: OnChangeNone})
	svc.Template.SecretEnv = []SecretVar{{Name: "KEY", Source: "key"}}
	s.Services["web"] = svc
	return s
}

func TestValidateData(t *testing.T) {
	if err := ValidateStack(dataStack()); err != nil {
		t.Fatal(err)
	}
	web := func(f func(*Template)) func(*Stack) {
		return func(s *Stack) {
			svc := s.Services["web"]
			f(&svc.Template)
			s.Services["web"] = svc
		}
	}
	secret := func(d DatumSpec) func(*Stack) { return func(s *Stack) { s.Secrets["key"] = d } }
	for want, do := range map[string]func(*Stack){
		"secrets.key: the secret has no content":                 secret(DatumSpec{}),
		"secrets.key.content:":                                   secret(DatumSpec{Content: "abc"}),
		"secrets.key.name:":                                      secret(DatumSpec{Content: sealedID("a"), Name: "a/b"}),
		"secrets.key.labels:":                                    secret(DatumSpec{Content: sealedID("a"), Labels: map[string]string{"": ""}}),
		"secrets.key.size: 512001 bytes: a secret has at most":   secret(DatumSpec{Content: sealedID("a"), Size: 512_001}),
		"configs.conf.size: 1024001 bytes: a config has at most": func(s *Stack) { s.Configs["conf"] = DatumSpec{Content: KeyedContentID(nil, nil), Size: 1_024_001} },
		"configs.a/b: the name":                                  func(s *Stack) { s.Configs["a/b"] = s.Configs["conf"] },
		"mounts[5].source: the secret \"key\" is not declared":   func(s *Stack) { delete(s.Secrets, "key") },
		"mounts[7].source: the config \"conf\" is not declared":  func(s *Stack) { s.Configs = nil },
		"mounts[5].on_change: \"restart\" is none of":            web(func(t *Template) { t.Mounts[5].OnChange = "restart" }),
		"mounts[5].on_change: \"SIGHAP\" is not a signal":        web(func(t *Template) { t.Mounts[5].OnChange = SignalOnChange("SIGHAP") }),
		"mounts[5].on_change: the signal SIGKILL cannot":         web(func(t *Template) { t.Mounts[5].OnChange = SignalOnChange("SIGKILL") }),
		"mounts[5].content:":                                     web(func(t *Template) { t.Mounts[5].Content = "x" }),
		"mounts[4].content:":                                     web(func(t *Template) { t.Mounts[4].Content = sealedID("a") }),
		"mounts[5].mode:":                                        web(func(t *Template) { t.Mounts[5].Mode = new(uint32(0o10000)) }),
		"volumes.seeded.seed:":                                   func(s *Stack) { s.Volumes["seeded"] = VolumeSpec{Seed: sealedID("a")} },
		"secret_env[0].name: \"A B\"":                            web(func(t *Template) { t.SecretEnv[0].Name = "A B" }),
		"secret_env[1].name: the variable KEY is set twice":      web(func(t *Template) { t.SecretEnv = append(t.SecretEnv, t.SecretEnv[0]) }),
		"secret_env[0].source: the secret \"x\"":                 web(func(t *Template) { t.SecretEnv[0].Source = "x" }),
		"secret_env[0].source: the secret \"key\" is a template": secret(DatumSpec{Content: sealedID("a"), Render: true}),
	} {
		s := dataStack()
		do(s)
		if err := ValidateStack(s); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q, got %v", want, err)
		}
	}
}

func TestResolveData(t *testing.T) {
	s := dataStack()
	shared, _ := json.Marshal(s)
	copied := *s
	copied.Secrets = map[string]DatumSpec{"key": s.Secrets["key"], "token": {External: true, Name: "shared", Content: sealedID("b")}}
	copied.ResolveData()
	if b, _ := json.Marshal(s); string(b) != string(shared) {
		t.Error("what the stack shares was written to")
	}
	tmpl := copied.Services["web"].Template
	conf := copied.Configs["conf"].Content
	if got, want := tmpl.Contents(), []ContentID{PlainContentID(nil), sealedID("a"), sealedID("a")}; !slices.Equal(got, want) {
		t.Errorf("the template has the contents %v, want %v", got, want)
	}
	live := map[DatumKey]ContentID{"secret token": sealedID("b"), "config conf": conf}
	if d := cmp.Diff(live, copied.Services["web"].Live); d != "" {
		t.Errorf("the service has other versions (-want +got):\n%s", d)
	}
	if d := cmp.Diff(live, tmpl.LiveOf(map[DatumKey]ContentID{"secret token": sealedID("b"), "config conf": conf, "secret other": "x"})); d != "" {
		t.Errorf("the template takes other versions (-want +got):\n%s", d)
	}
	if !tmpl.Mounts[7].Render || tmpl.Mounts[6].Render {
		t.Error("what is a template is not said of the mounts")
	}
	if got := copied.DatumUsers(DatumSecret, "key"); !slices.Equal(got, []string{"web"}) || copied.DatumUsers(DatumConfig, "key") != nil {
		t.Errorf("used by %v", got)
	}

	// A new version of what changes in running tasks makes no new revision.
	before := HashTemplate("shop", "web", &tmpl)
	next := copied
	next.Secrets = map[string]DatumSpec{"key": s.Secrets["key"], "token": {External: true, Content: sealedID("c")}}
	next.ResolveData()
	svc := next.Services["web"]
	if HashTemplate("shop", "web", &svc.Template) != before || svc.Live["secret token"] != sealedID("c") {
		t.Error("a version that changes in running tasks makes another revision, or is lost")
	}
	next.Secrets = map[string]DatumSpec{"key": {Content: sealedID("d")}, "token": next.Secrets["token"]}
	next.ResolveData()
	svc = next.Services["web"]
	if HashTemplate("shop", "web", &svc.Template) == before {
		t.Error("a version that replaces tasks makes no other revision")
	}
	again, _ := json.Marshal(next)
	next.ResolveData()
	if b, _ := json.Marshal(next); string(b) != string(again) {
		t.Error("resolving twice gives something else")
	}
}

func TestClusterNameOfData(t *testing.T) {
	for want, d := range map[string]DatumSpec{"shop_key": {}, "key": {External: true}, "other": {External: true, Name: "other"}, "mine": {Name: "mine"}} {
		if got := d.ClusterName("shop", "key"); got != want {
			t.Errorf("%+v is called %s, want %s", d, got, want)
		}
	}
}
