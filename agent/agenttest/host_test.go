package agenttest_test

import (
	"bytes"
	"context"
	"io"
	"slices"
	"testing"

	"wherry.dev/agent"
	"wherry.dev/agent/agenttest"
	"wherry.dev/agent/runtimetest"
	"wherry.dev/spec"
)

// TestContract runs the same suite as the runtime on containerd.
func TestContract(t *testing.T) {
	runtimetest.Run(t, func(t *testing.T) runtimetest.Subject {
		h := agenttest.NewHost()
		t.Cleanup(func() {
			for _, f := range h.Faults() {
				t.Error(f)
			}
		})
		return runtimetest.Subject{Runtime: h, Execer: commands{h}}
	})
}

// commands answers the suite's commands.
type commands struct{ *agenttest.Host }

func (c commands) Exec(ctx context.Context, t spec.TaskID, e agent.Exec) (int, error) {
	if code, err := c.Host.Exec(ctx, t, e); err != nil {
		return code, err
	}
	switch {
	case slices.Equal(e.Args, runtimetest.ExecOutput):
		io.WriteString(e.Stdout, "out\n")
		io.WriteString(e.Stderr, "err\n")
		return 5, nil
	case slices.Equal(e.Args, runtimetest.ExecInput):
		var b bytes.Buffer
		b.ReadFrom(e.Stdin)
		_, err := e.Stdout.Write(b.Bytes())
		return 0, err
	case slices.Equal(e.Args, runtimetest.ExecLong):
		<-ctx.Done()
		return 0, ctx.Err()
	}
	return 0, spec.Invalidf("exec: %q: executable file not found in $PATH", e.Args)
}
