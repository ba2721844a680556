//go:build e2e

package containerd

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"

	"wherry.dev/agent"
	"wherry.dev/spec"
	"wherry.dev/tests/images"
)

var rounds = flag.Int("rounds", 5, "rounds of TestStartAgainstBareClient")

// TestStartAgainstBareClient starts tasks with the runtime and containers with
// containerd's plain client, in one containerd, turn and turn about, and
// compares the times until the last one runs.
func TestStartAgainstBareClient(t *testing.T) {
	h := newHost(t)
	img := h.load(nil, images.Config{})
	for _, n := range []int{1, 10, 50} {
		var ours, bare []time.Duration
		for round := range *rounds + 1 {
			b := h.bareClient(t, img, n)
			o := h.oursAtOnce(t, img, n)
			if round == 0 {
				continue // fills the caches of both
			}
			bare, ours = append(bare, b), append(ours, o)
		}
		slices.Sort(ours)
		slices.Sort(bare)
		o, b := ours[len(ours)/2], bare[len(bare)/2]
		t.Logf("%d at once: ours %v (%v–%v), bare client %v (%v–%v), ratio %.2f", n,
			o.Round(time.Millisecond), ours[0].Round(time.Millisecond), ours[len(ours)-1].Round(time.Millisecond),
			b.Round(time.Millisecond), bare[0].Round(time.Millisecond), bare[len(bare)-1].Round(time.Millisecond), float64(o)/float64(b))
		limit := 1.5
		if n == 1 {
			limit = 2
		}
		if float64(o) > limit*float64(b) {
			t.Errorf("%d at once take %.2f times as long as with the bare client, want at most %.1f", n, float64(o)/float64(b), limit)
		}
	}
	removeCgroup("/" + Namespace) // of the plain client
	if left := cgroupDirs(h.rt.cgroupParent()); len(left) > 0 {
		t.Errorf("cgroups are left over: %v", left)
	}
}

func (h *host) oursAtOnce(t *testing.T, img agent.ImageConfig, n int) time.Duration {
	t.Helper()
	ctx := context.Background()
	var wg sync.WaitGroup
	begin := time.Now()
	for i := range n {
		wg.Go(func() {
			c := h.container(fmt.Sprintf("1-%d", i), img, spec.Template{Command: []string{"/bin/sleep", "3600"}, NetworkMode: "host"})
			if err := h.rt.Create(ctx, c); err != nil {
				t.Error(err)
				return
			}
			if _, err := h.rt.Start(ctx, c.Task); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	took := time.Since(begin)
	for i := range n {
		wg.Go(func() {
			if err := h.rt.Remove(ctx, spec.TaskID(fmt.Sprintf("1-%d", i))); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	return took
}

// bareClient does what peers' benchmarks do: containerd's client with its
// default spec and nothing around it.
func (h *host) bareClient(t *testing.T, cfg agent.ImageConfig, n int) time.Duration {
	t.Helper()
	ctx := context.Background()
	cl := h.rt.client
	img, err := cl.GetImage(ctx, cfg.Ref)
	if err != nil {
		t.Fatal(err)
	}
	_, snapshotter, err := h.rt.snapshots(ctx)
	if err != nil {
		t.Fatal(err)
	}
	type one struct {
		c    client.Container
		task client.Task
		exit <-chan client.ExitStatus
	}
	all := make([]one, n)
	var wg sync.WaitGroup
	begin := time.Now()
	for i := range n {
		wg.Go(func() {
			id := fmt.Sprintf("bare-%d", i)
			c, err := cl.NewContainer(ctx, id,
				client.WithSnapshotter(snapshotter), client.WithNewSnapshot(id, img),
				client.WithNewSpec(oci.WithImageConfig(img), oci.WithProcessArgs("/bin/sleep", "3600"), oci.WithHostNamespace("network")),
				client.WithRuntime(runtimeName, &options.Options{BinaryName: h.rt.c.RuncBinary, Root: h.rt.runcRoot()}))
			if err != nil {
				t.Error(err)
				return
			}
			task, err := c.NewTask(ctx, cio.NullIO)
			if err != nil {
				t.Error(err)
				return
			}
			exit, err := task.Wait(ctx)
			if err != nil {
				t.Error(err)
				return
			}
			if err := task.Start(ctx); err != nil {
				t.Error(err)
			}
			all[i] = one{c, task, exit}
		})
	}
	wg.Wait()
	took := time.Since(begin)
	for _, x := range all {
		wg.Go(func() {
			_ = x.task.Kill(ctx, syscall.SIGKILL)
			<-x.exit
			_, _ = x.task.Delete(ctx)
			_ = x.c.Delete(ctx, client.WithSnapshotCleanup)
		})
	}
	wg.Wait()
	return took
}
