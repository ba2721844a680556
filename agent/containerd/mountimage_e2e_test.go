//go:build e2e

package containerd

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"

	"wherry.dev/agent"
	"wherry.dev/spec"
	"wherry.dev/tests/images"
)

func TestMountImages(t *testing.T) {
	h := newHost(t)
	ctx := context.Background()
	img := h.load(nil, images.Config{})
	assets := h.load(map[string]string{"usr/share/page": "hello"}, images.Config{Name: "assets", Links: map[string]string{"link": "usr/share"}})
	mounts := []agent.Mount{
		{Image: assets.Ref, Target: "/all", ReadOnly: true},
		{Image: assets.Ref, Subpath: "usr/share", Target: "/part", ReadOnly: true},
		{Image: assets.Ref, Subpath: "usr/share/page", Target: "/page", ReadOnly: true},
	}
	c := h.container("1-1", img, command("cat /all/usr/share/page /part/page /page; (echo x > /part/page) 2>/dev/null || echo; [ -e /count ] && echo again; touch /count"))
	c.Mounts = mounts
	if out, _ := h.output(c); out != "hellohellohello\n" {
		t.Errorf("output %q", out)
	}
	if c.Mounts[0].Source != "" {
		t.Error("the caller's mounts were changed")
	}

	// The images of a node that was down are mounted again.
	for n := range mounts {
		if err := unmount(h.rt.imageDir("1-1", n)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.RemoveAll(h.rt.dir("images")); err != nil {
		t.Fatal(err)
	}
	h.rt.forget("1-1")
	if out, _ := h.output(c); out != "hellohellohello\nagain\n" {
		t.Errorf("output of another attempt %q", out)
	}

	if err := h.rt.RemoveImage(ctx, "assets"); !errors.Is(err, spec.ErrConflict) {
		t.Errorf("an image that is mounted is removed: %v", err)
	}
	if err := h.rt.Remove(ctx, "1-1"); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(h.rt.dir("images")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	sn, _, err := h.rt.snapshots(ctx)
	if err != nil {
		t.Fatal(err)
	}
	err = sn.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		if strings.HasPrefix(i.Name, "1-1") {
			t.Errorf("left: snapshot %s", i.Name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.rt.RemoveImage(ctx, "assets"); err != nil {
		t.Error(err)
	}
}

func TestMountImagesRefused(t *testing.T) {
	h := newHost(t)
	ctx := context.Background()
	img := h.load(nil, images.Config{})
	assets := h.load(map[string]string{"usr/share/page": "hello"}, images.Config{Name: "assets", Links: map[string]string{"link": "usr/share", "out": "/../../../etc"}})
	for id, tt := range map[spec.TaskID]struct{ sub, want string }{
		"1-1": {"none", "has no none"},
		"1-2": {"link", "leads through a symbolic link, to usr/share"},
		"1-3": {"link/page", "leads through a symbolic link, to usr/share/page"},
		"1-4": {"out", "leads through a symbolic link, to etc"},
	} {
		c := h.container(string(id), img, command("true"))
		c.Mounts = []agent.Mount{{Image: assets.Ref, Subpath: tt.sub, Target: "/x", ReadOnly: true}}
		if err := h.rt.Create(ctx, c); !errors.Is(err, spec.ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.sub, err, tt.want)
		}
		// What was made by then goes with the container.
		if err := h.rt.Remove(ctx, id); err != nil {
			t.Error(err)
		}
	}
	if left, err := os.ReadDir(h.rt.dir("images")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
