package server

import (
	"strings"
	"testing"

	"wherry.dev/api"
	"wherry.dev/spec"
)

// TestPinMountedImages: images that are mounted are pinned as those that are
// run.
func TestPinMountedImages(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	const assets = "docker.io/library/assets:1"
	put := func(fresh bool) (string, error) {
		s := nginx()
		sv := s.Services["web"]
		sv.Template.Mounts = []spec.Mount{
			{Type: spec.MountImage, Source: assets, Target: "/assets", ReadOnly: true},
			{Type: spec.MountImage, Source: "docker.io/library/data@sha256:" + strings.Repeat("0", 64), Target: "/data", ReadOnly: true},
		}
		s.Services["web"] = sv
		_, err := w.client.PutStack(ctx, api.PutStack{Stack: s, Pull: fresh})
		if err != nil {
			return "", err
		}
		var digests []string
		for _, m := range w.store.Snapshot().Service("shop", "web").Spec.Template.Mounts {
			digests = append(digests, m.Digest[:9])
		}
		return strings.Join(digests, " "), nil
	}
	if _, err := put(false); err == nil || !strings.Contains(err.Error(), "services.web.volumes: /assets: image "+assets+": not found") {
		t.Errorf("an image that does not exist: %v", err)
	}
	for _, tt := range []struct {
		now   string
		fresh bool
		want  string
	}{
		{"sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb", false, "sha256:bb sha256:00"},
		{"sha256:cccccccccccccccccccccccccccccccccc", false, "sha256:bb sha256:00"}, // an unchanged reference keeps it
		{"sha256:cccccccccccccccccccccccccccccccccc", true, "sha256:cc sha256:00"},
	} {
		w.images[assets] = tt.now
		if got, err := put(tt.fresh); err != nil || got != tt.want {
			t.Errorf("%+v: %q, %v", tt, got, err)
		}
	}
}
