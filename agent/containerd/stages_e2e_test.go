//go:build e2e

package containerd

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"wherry.dev/agent"
	"wherry.dev/tests/images"
)

// TestStages: containers of one task come one after the other, each is known
// for what it is, and volumes are filled from the image of the task's own.
func TestStages(t *testing.T) {
	h := newHost(t)
	img := h.load(map[string]string{"data/page": "of the service"}, images.Config{})
	first := h.load(map[string]string{"data/page": "of the first", "who": "first"}, images.Config{Name: "first"})
	volume := filepath.Join(h.dir, "volume")
	if err := os.Mkdir(volume, 0o755); err != nil {
		t.Fatal(err)
	}
	mounts := []agent.Mount{{Source: volume, Target: "/data", CopyUp: true}}
	c := h.container("1-1", first, command("cat /who /data/page; echo done > /data/first"))
	c.Stage, c.Fill, c.Mounts = 2, img.Ref, mounts
	if out, s := h.output(c); out != "firstof the service" || s.Stage != 2 {
		t.Errorf("output %q, state %+v", out, s)
	}
	if err := h.rt.Remove(context.Background(), "1-1"); err != nil {
		t.Fatal(err)
	}
	c = h.container("1-1", img, command("cat /data/page /data/first"))
	c.Mounts = mounts
	if out, s := h.output(c); out != "of the servicedone\n" || s.Stage != 0 {
		t.Errorf("output %q, state %+v", out, s)
	}
}
