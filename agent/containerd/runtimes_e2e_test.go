//go:build e2e

package containerd

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wherry.dev/agent"
	"wherry.dev/spec"
	"wherry.dev/tests/images"
)

// TestOtherRuntime: all of a container's life is in the hands of the OCI
// runtime that it asks for.
func TestOtherRuntime(t *testing.T) {
	h := newHost(t)
	img := h.load(nil, images.Config{})
	c := h.container("1-1", img, command("while :; do sleep 1; done"))
	c.Template.Runtime = "youki"
	bin := t.TempDir()
	t.Setenv("PATH", bin)
	if err := h.rt.Create(context.Background(), c); !errors.Is(err, spec.ErrInvalid) || !strings.Contains(err.Error(), "no OCI runtime youki") {
		t.Errorf("a runtime that the node lacks: %v", err)
	}
	// It is runc under another name, which writes down what it is told.
	calls := filepath.Join(bin, "calls")
	script := "#!/bin/sh\necho \"$*\" >> " + calls + "\nexec " + h.rt.c.RuncBinary + " \"$@\"\n"
	if err := os.WriteFile(filepath.Join(bin, "youki"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	h.runTask(c)
	if code, err := h.rt.Exec(context.Background(), "1-1", agent.Exec{Args: []string{"/bin/true"}}); err != nil || code != 0 {
		t.Errorf("exec: %d, %v", code, err)
	}
	if err := h.rt.Remove(context.Background(), "1-1"); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(calls)
	if err != nil {
		t.Fatal(err)
	}
	for _, call := range []string{" create ", " start ", " exec ", " kill ", " delete "} {
		if !strings.Contains(string(b), call) {
			t.Errorf("no call of%sin:\n%s", call, b)
		}
	}
}
