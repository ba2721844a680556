package store

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"wherry.dev/spec"
)

// secret makes the contents "sealed:NAME" complete, and others by their ID.
func (h *harness) secret(names ...string) {
	h.Helper()
	for _, n := range names {
		id := spec.ContentID(n)
		if !strings.Contains(n, ":") {
			id = spec.ContentID("sealed:" + n)
		}
		h.must(Command{PutContent: &PutContent{ID: id, Size: 3, Data: []byte("abc")}})
	}
}

func putSecret(name, content string, replace bool) Command {
	return Command{Author: "ann", PutDatum: &PutDatum{Kind: spec.DatumSecret, Name: name, Content: spec.ContentID("sealed:" + content), Size: 3, Replace: replace}}
}

// withSecret lets the service web of a stack use the secret key.
func withSecret(s spec.Stack, d spec.DatumSpec, o spec.OnChange) spec.Stack {
	s.Secrets = map[string]spec.DatumSpec{"key": d}
	return edit(s, "web", func(svc *spec.ServiceSpec) {
		svc.Template.Mounts = append(slices.Clone(svc.Template.Mounts), spec.Mount{Type: spec.MountSecret, Source: "key", Target: "/run/secrets/key", OnChange: o})
	})
}

var external = spec.DatumSpec{External: true, Name: "shared"}

func own(content string) spec.DatumSpec {
	return spec.DatumSpec{Content: spec.ContentID("sealed:" + content), Size: 3}
}

// version is what the newest revision of a stack and its service web have.
func (h *harness) version(stack string) string {
	n := h.s.Snapshot()
	svc := n.Service(stack, "web")
	rev := n.StackRevision(stack, n.Stack(stack).Revision)
	out := fmt.Sprintf("revision %d: %s", n.Stack(stack).Revision, rev.Spec.Secrets["key"].Content)
	for _, id := range svc.Spec.Template.Contents() {
		out += " template " + string(id)
	}
	for k, id := range svc.Spec.Live {
		out += " live " + string(k) + " " + string(id)
	}
	if rev := n.Revision(svc.Revision); rev == nil || !slices.Equal(rev.Template.Contents(), svc.Spec.Template.Contents()) {
		out += " not that of its revision"
	}
	return out
}

func (h *harness) at(stack, want string) {
	h.Helper()
	if got := h.version(stack); got != want {
		h.Errorf("stack %s is at %q, want %q", stack, got, want)
	}
}

func TestStackSecrets(t *testing.T) {
	h := newHarness(t)
	h.secret("a", "b")
	h.must(putStack(withSecret(web("roll", 80), own("a"), "")))
	h.at("roll", "revision 1: sealed:a template sealed:a")
	h.must(putStack(withSecret(web("live", 81), own("a"), spec.OnChangeNone)))
	h.at("live", "revision 1: sealed:a live secret key sealed:a")
	if h.must(putStack(withSecret(web("live", 81), own("a"), spec.OnChangeNone))).Changed {
		t.Error("an equal file made a new revision")
	}
	before := h.s.Snapshot().Service("live", "web").Revision
	h.must(putStack(withSecret(web("roll", 80), own("b"), "")))
	h.must(putStack(withSecret(web("live", 81), own("b"), spec.OnChangeNone)))
	h.at("roll", "revision 2: sealed:b template sealed:b")
	h.at("live", "revision 2: sealed:b live secret key sealed:b")
	if h.s.Snapshot().Service("live", "web").Revision != before {
		t.Error("a file that changes in running tasks replaced them")
	}
	// A kept revision comes back with its version.
	h.must(putStack(h.s.Snapshot().StackRevision("roll", 1).Spec))
	h.at("roll", "revision 3: sealed:a template sealed:a")

	h.refuse(putStack(withSecret(web("new", 83), own("none"), "")), spec.ErrConflict, "not complete: sealed:none")
	bad := withSecret(web("new", 83), own("a"), "")
	bad.Secrets = nil
	h.refuse(putStack(bad), spec.ErrInvalid, `service web uses secret "key", which stack new does not declare`)
	bad = edit(bad, "web", func(s *spec.ServiceSpec) {
		s.Template.Mounts, s.Template.SecretEnv = nil, []spec.SecretVar{{Name: "A", Source: "x"}}
	})
	h.refuse(putStack(bad), spec.ErrInvalid, `service web uses secret "x"`)
}

func TestContentOfSecretsGoes(t *testing.T) {
	h := newHarness(t)
	h.secret("a", "b")
	used := func(want string) {
		t.Helper()
		got := ""
		for _, x := range []string{"a", "b"} {
			if h.s.Snapshot().ContentInUse(spec.ContentID("sealed:" + x)) {
				got += x
			}
		}
		if got != want {
			t.Errorf("in use are %q, want %q", got, want)
		}
	}
	used("")
	h.must(putSecret("shared", "a", false))
	used("a")
	h.must(putStack(withSecret(web("shop", 80), external, spec.OnChangeNone)))
	h.must(putSecret("shared", "b", true))
	used("ab") // a by the kept revision
	for i := range spec.KeepStackRevisions {
		h.must(putStack(edit(withSecret(web("shop", 80), external, spec.OnChangeNone), "web", func(s *spec.ServiceSpec) { s.Replicas = ptr(i) })))
	}
	used("b")
	h.mustPart(spec.Part{RemoveContents: []spec.ContentID{"sealed:a"}})
	if err := h.part(spec.Part{RemoveContents: []spec.ContentID{"sealed:b"}}); err == nil {
		t.Error("a value that is in force was removed")
	}
	h.must(Command{RemoveStack: &RemoveStack{Name: "shop"}})
	used("b")
	h.secret("c")
	h.must(putSecret("shared", "c", true))
	if v := h.s.Snapshot().Datum(spec.DatumSecret, "shared").Versions; len(v) != 2 || v[0].Number != 2 || v[1].Number != 3 {
		t.Errorf("the versions are %+v, want those that are there: 2 and 3", v)
	}
	h.must(Command{RemoveDatum: &RemoveDatum{Kind: spec.DatumSecret, Name: "shared"}})
	used("")
}

func TestExternalSecrets(t *testing.T) {
	h := newHarness(t)
	h.secret("a", "b")
	s := withSecret(web("shop", 80), external, "")
	s.Volumes["out"] = spec.VolumeSpec{External: true, Name: "disk"}
	h.refuse(putStack(s), spec.ErrNotFound, "volume disk", "secret shared", "create it first")
	delete(s.Volumes, "out")
	h.must(putSecret("shared", "a", false))
	h.must(putStack(s))
	h.at("shop", "revision 1: sealed:a template sealed:a")
	h.must(putStack(withSecret(web("live", 81), external, spec.SignalOnChange("SIGHUP"))))
	h.must(putStack(web("other", 82)))

	if h.must(putSecret("shared", "a", false)).Changed || h.must(putSecret("shared", "a", true)).Changed {
		t.Error("the same value made a new version")
	}
	h.refuse(putSecret("shared", "b", false), spec.ErrConflict, "exists already", "replace")
	before := h.s.Snapshot().Stack("other").Revision
	h.must(putSecret("shared", "b", true))
	h.at("shop", "revision 2: sealed:b template sealed:b")
	h.at("live", "revision 2: sealed:b live secret key sealed:b")
	if h.s.Snapshot().Stack("other").Revision != before {
		t.Error("a stack that does not use the secret got a revision")
	}
	if m := h.s.Snapshot().StackRevision("shop", 2).Message; m != "secret shared has version 2" {
		t.Errorf("the history says %q", m)
	}
	// An older revision of the stack has the older version, the file the newest.
	h.must(putStack(h.s.Snapshot().StackRevision("shop", 1).Spec))
	h.at("shop", "revision 3: sealed:a template sealed:a")
	h.must(putStack(s))
	h.at("shop", "revision 4: sealed:b template sealed:b")

	h.refuse(Command{RemoveDatum: &RemoveDatum{Kind: spec.DatumSecret, Name: "shared"}}, spec.ErrConflict, "in use by live/web, shop/web")
	h.refuse(Command{RemoveDatum: &RemoveDatum{Kind: spec.DatumConfig, Name: "shared"}}, spec.ErrNotFound, `no config "shared"`)
	h.must(Command{RemoveStack: &RemoveStack{Name: "live"}})
	h.must(putStack(web("shop", 80)))
	h.must(Command{RemoveDatum: &RemoveDatum{Kind: spec.DatumSecret, Name: "shared"}})
	h.refuse(putStack(h.s.Snapshot().StackRevision("shop", 4).Spec), spec.ErrNotFound, "secret shared")
	if k := h.kinds(); !strings.Contains(k, "secret.created") || !strings.Contains(k, "secret.changed") || !strings.Contains(k, "secret.removed") {
		t.Errorf("the events are %s", k)
	}
}

// What belongs to a stack is found by no other one, whatever it is called.
func TestSecretsBelongToTheirStack(t *testing.T) {
	h := newHarness(t)
	h.secret("a", "b", "hmac:c")
	h.must(putStack(withSecret(web("shop", 80), own("a"), "")))
	h.refuse(putStack(withSecret(web("spy", 81), spec.DatumSpec{External: true, Name: "shop_key"}, "")), spec.ErrNotFound, "secret shop_key (that one is of stack shop alone)")
	h.refuse(putStack(withSecret(web("spy", 81), spec.DatumSpec{Content: "sealed:b", Name: "shop_key"}, "")), spec.ErrConflict, "secret shop_key belongs to stack shop")
	h.refuse(putSecret("shop_key", "b", true), spec.ErrConflict, "belongs to stack shop")
	h.refuse(Command{RemoveDatum: &RemoveDatum{Kind: spec.DatumSecret, Name: "shop_key"}}, spec.ErrConflict, "belongs to stack shop")
	h.must(putSecret("shared", "b", false))
	h.refuse(putStack(withSecret(web("spy", 81), spec.DatumSpec{Content: "sealed:b", Name: "shared"}, "")), spec.ErrConflict, "exists by itself: declare it external")
	two := withSecret(web("two", 81), own("a"), "")
	two.Secrets["other"] = spec.DatumSpec{Content: "sealed:a", Name: "two_key"}
	h.refuse(putStack(two), spec.ErrInvalid, "declares secret two_key twice")
	// Secrets and configs do not share their names.
	h.must(Command{PutDatum: &PutDatum{Kind: spec.DatumConfig, Name: "shop_key", Content: "hmac:c", Size: 3}})
}

func TestPutDatumRefuses(t *testing.T) {
	h := newHarness(t)
	h.secret("a", "hmac:c")
	h.must(putSecret("key", "a", false))
	at := h.s.Snapshot().Datum(spec.DatumSecret, "key").Version
	for want, c := range map[string]PutDatum{
		"neither a secret nor a config":       {Kind: "token", Name: "x", Content: "sealed:a"},
		"without a name":                      {Kind: spec.DatumSecret, Content: "sealed:a"},
		"must not hold slashes":               {Kind: spec.DatumSecret, Name: "a/b", Content: "sealed:a"},
		"the limit is 500 KiB":                {Kind: spec.DatumSecret, Name: "x", Content: "sealed:a", Size: spec.MaxSecret + 1},
		"the limit is 1000 KiB":               {Kind: spec.DatumConfig, Name: "x", Content: "hmac:c", Size: spec.MaxConfig + 1},
		"a secret has a sealed content":       {Kind: spec.DatumSecret, Name: "x", Content: "hmac:c"},
		"a config has not":                    {Kind: spec.DatumConfig, Name: "x", Content: "sealed:a"},
		"not complete":                        {Kind: spec.DatumSecret, Name: "x", Content: "sealed:none"},
		"the write is based on 1":             {Kind: spec.DatumSecret, Name: "key", Content: "sealed:a", Base: ptr(uint64(1))},
		"was removed since version 7":         {Kind: spec.DatumSecret, Name: "gone", Content: "sealed:a", Base: ptr(uint64(7))},
		"with another value or other labels:": {Kind: spec.DatumSecret, Name: "key", Content: "sealed:a", Base: &at, Labels: map[string]string{"a": "b"}},
	} {
		if res := h.apply(Command{PutDatum: &c}); res.Err == nil || !strings.Contains(res.Err.Error(), want) {
			t.Errorf("%+v: %v, want %q", c, res.Err, want)
		}
	}
	c := Command{RequestID: "r1", PutDatum: &PutDatum{Kind: spec.DatumSecret, Name: "key", Content: "sealed:a", Replace: true, Base: &at, Labels: map[string]string{"a": "b"}}}
	if first, again := h.must(c), h.must(c); !first.Changed || again.Index != first.Index {
		t.Errorf("a repeat had the result %+v after %+v", again, first)
	}
	if d := h.s.Snapshot().Datum(spec.DatumSecret, "key"); len(d.Versions) != 1 || d.Labels["a"] != "b" {
		t.Errorf("new labels gave %+v", d)
	}
	// What is not said stays.
	h.secret("b")
	h.must(Command{PutDatum: &PutDatum{Kind: spec.DatumSecret, Name: "key", Content: "sealed:a", Render: ptr(true), Replace: true}})
	h.must(putSecret("key", "b", true))
	if d := h.s.Snapshot().Datum(spec.DatumSecret, "key"); len(d.Versions) != 2 || d.Labels["a"] != "b" || !d.Render {
		t.Errorf("a new version gave %+v", d)
	}
	h.must(Command{PutDatum: &PutDatum{Kind: spec.DatumSecret, Name: "key", Content: "sealed:b", Render: ptr(false), Labels: map[string]string{"c": "d"}, Replace: true}})
	if d := h.s.Snapshot().Datum(spec.DatumSecret, "key"); len(d.Versions) != 2 || len(d.Labels) != 1 || d.Labels["c"] != "d" || d.Render {
		t.Errorf("taken away, it is %+v", d)
	}
}

// Services that only an older file has keep their secrets.
func TestKeepOthersKeepsData(t *testing.T) {
	h := newHarness(t)
	h.secret("a")
	h.must(putStack(withSecret(web("shop", 80), own("a"), spec.OnChangeNone)))
	only := edit(web("shop", 80), "api", func(s *spec.ServiceSpec) { s.Template.Image = "api" })
	delete(only.Services, "web")
	h.must(Command{PutStack: &PutStack{Stack: only, KeepOthers: true}})
	h.at("shop", "revision 2: sealed:a live secret key sealed:a")
}
