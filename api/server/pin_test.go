package server

import (
	"strings"
	"testing"

	"wherry.dev/api"
	"wherry.dev/spec"
)

// TestPinFurtherImages: images that are mounted, and those of containers before
// the start, are pinned as that of the service.
func TestPinFurtherImages(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	const assets, tool = "docker.io/library/assets:1", "docker.io/library/tool:1"
	put := func(fresh bool) (string, error) {
		s := nginx()
		sv := s.Services["web"]
		sv.Template.Mounts = []spec.Mount{
			{Type: spec.MountImage, Source: assets, Target: "/assets", ReadOnly: true},
			{Type: spec.MountImage, Source: "docker.io/library/data@sha256:" + strings.Repeat("0", 64), Target: "/data", ReadOnly: true},
		}
		sv.Template.PreStart = []spec.InitContainer{{Image: tool}}
		s.Services["web"] = sv
		_, err := w.client.PutStack(ctx, api.PutStack{Stack: s, Pull: fresh})
		if err != nil {
			return "", err
		}
		var digests []string
		tmpl := w.store.Snapshot().Service("shop", "web").Spec.Template
		for _, m := range tmpl.Mounts {
			digests = append(digests, m.Digest[:9])
		}
		digests = append(digests, tmpl.PreStart[0].Digest[:9])
		return strings.Join(digests, " "), nil
	}
	_, err := put(false)
	for _, want := range []string{"services.web.volumes: /assets: image " + assets + ": not found", "services.web.pre_start[0].image: image " + tool + ": not found"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("an image that does not exist: %v, want %q", err, want)
		}
	}
	for _, tt := range []struct {
		now   string
		fresh bool
		want  string
	}{
		{"sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb", false, "sha256:bb sha256:00 sha256:bb"},
		{"sha256:cccccccccccccccccccccccccccccccccc", false, "sha256:bb sha256:00 sha256:bb"}, // an unchanged reference keeps it
		{"sha256:cccccccccccccccccccccccccccccccccc", true, "sha256:cc sha256:00 sha256:cc"},
	} {
		w.images[assets], w.images[tool] = tt.now, tt.now
		if got, err := put(tt.fresh); err != nil || got != tt.want {
			t.Errorf("%+v: %q, %v", tt, got, err)
		}
	}
}
