//go:build e2e

package containerd

import (
	"testing"

	"wherry.dev/agent"
	"wherry.dev/agent/runtimetest"
	"wherry.dev/tests/images"
)

func TestRunToEnd(t *testing.T) {
	h := newHost(t)
	img := h.load(nil, images.Config{})
	out, s := h.output(h.container("1-1", img, command("echo hello; exit 3")))
	if out != "hello\n" || s.ExitCode != 3 || s.State != agent.RunStopped || s.Ended.IsZero() {
		t.Errorf("output %q, state %+v", out, s)
	}
}

func TestContract(t *testing.T) {
	h := newHost(t)
	img := h.load(nil, images.Config{})
	runtimetest.Run(t, func(*testing.T) runtimetest.Subject {
		return runtimetest.Subject{Runtime: h.rt, Execer: h.rt, Image: img, Adjust: func(c *agent.Container) {
			c.Template.NetworkMode = "none"
		}}
	})
}
