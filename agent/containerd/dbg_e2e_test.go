//go:build e2e

package containerd

import (
	"testing"

	"wherry.dev/tests/images"
)

func TestDebug(t *testing.T) {
	h := newHost(t)
	img := h.load(nil, images.Config{})
	out, _ := h.output(h.container("1-1", img, command("mount | grep cgroup; ls -la /sys/fs/cgroup; echo x > /sys/fs/cgroup/test; ls /sys/fs/cgroup/")))
	t.Log(out)
}
