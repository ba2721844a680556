package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"wherry.dev/spec"
)

// faulty puts a log whose disk can fail under a member that does not run yet.
func faulty(t *testing.T, m *Member) *faultyLog {
	t.Helper()
	f := &faultyLog{InmemStore: raft.NewInmemStore()}
	m.logs.inner = f
	if err := m.stable.SetUint64([]byte(keyCurrentTerm), 0); err != nil {
		t.Fatal(err)
	}
	if err := m.bootstrap(); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestFailedAppendStopsMember(t *testing.T) {
	c := testConfig(t.TempDir())
	var led sync.WaitGroup
	led.Add(1)
	c.Lead = func(ctx context.Context, _ uint64) error {
		defer led.Done()
		<-ctx.Done()
		return nil
	}
	m := mustOpen(t, c)
	f := faulty(t, m)
	r := run(t, m)
	r.await(r.Ready(), "ready")
	r.put("a", "1")
	f.set(syscall.EIO, 0)
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			_, err := r.Propose(t.Context(), label(m, "a", fmt.Sprint(100+i)))
			if !errors.Is(err, spec.ErrUnavailable) {
				t.Errorf("a write on a failed disk: %v", err)
			}
		})
	}
	all.Wait()
	r.await(r.done, "end of Run")
	led.Wait()
	if !errors.Is(r.err, syscall.EIO) || !strings.Contains(r.err.Error(), c.DataDir) {
		t.Fatalf("Run returned %v", r.err)
	}
	if got := r.get("a"); got != "1" {
		t.Errorf("a is %q: a write that failed was applied", got)
	}
	if st := r.Status(); st.Failure == "" {
		t.Errorf("status %+v", st)
	}
	if _, err := r.Propose(t.Context(), label(m, "a", "2")); !errors.Is(err, spec.ErrUnavailable) {
		t.Errorf("after the end: %v", err)
	}
}

func TestFailedVoteStopsMember(t *testing.T) {
	m := mustOpen(t, testConfig(t.TempDir()))
	m.stable.f.Close()
	r := run(t, m)
	r.await(r.done, "end of Run")
	if !errors.Is(r.err, fs.ErrClosed) {
		t.Fatalf("Run returned %v", r.err)
	}
}

func TestUnknownCommandStopsMember(t *testing.T) {
	r := start(t, testConfig(t.TempDir()))
	f := r.raft.Apply([]byte("\x7f{}"), time.Second)
	r.await(r.done, "end of Run")
	if r.err == nil || !strings.Contains(r.err.Error(), "command 5") && !strings.Contains(r.err.Error(), "newer version") {
		t.Fatalf("Run returned %v", r.err)
	}
	if f.Error() == nil && f.Response() != nil {
		t.Error("the command was answered")
	}
	// Nor can the folder be used until a program comes that knows it.
	r2 := run(t, mustOpen(t, r.c))
	r2.await(r2.done, "end of Run")
	if r2.err == nil || !strings.Contains(r2.err.Error(), "newer version") {
		t.Fatalf("second Run returned %v", r2.err)
	}
}

func TestSlowDiskOnlyWarnsSoleVoter(t *testing.T) {
	m := mustOpen(t, testConfig(t.TempDir()))
	f := faulty(t, m)
	m.logs.patience = 20 * time.Millisecond
	r := run(t, m)
	r.await(r.Ready(), "ready")
	f.set(nil, 60*time.Millisecond)
	r.put("a", "1")
	if err := r.halt.failure(); err != nil {
		t.Fatal(err)
	}
}
