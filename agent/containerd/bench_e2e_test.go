//go:build e2e

package containerd

import (
	"context"
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

// BenchmarkStart starts tasks with the runtime and containers with containerd's
// plain client, in one containerd, turn and turn about. It reports the median
// times until the last one runs, and their ratio: wanted are at most 2 for one
// and 1.5 for fifty at once.
func BenchmarkStart(b *testing.B) {
	h := newHost(b)
	img := h.load(nil, images.Config{})
	for _, n := range []int{1, 10, 50} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			h.bareClient(b, img, n) // fills the caches of both
			h.oursAtOnce(b, img, n)
			var ours, bare []time.Duration
			for b.Loop() {
				bare = append(bare, h.bareClient(b, img, n))
				ours = append(ours, h.oursAtOnce(b, img, n))
			}
			slices.Sort(ours)
			slices.Sort(bare)
			o, p := ours[len(ours)/2], bare[len(bare)/2]
			b.ReportMetric(float64(o.Milliseconds()), "ours-ms")
			b.ReportMetric(float64(p.Milliseconds()), "bare-ms")
			b.ReportMetric(float64(o)/float64(p), "ratio")
			b.ReportMetric(0, "ns/op")
		})
	}
	removeCgroup("/" + Namespace) // of the plain client
	if left := cgroupDirs(h.rt.cgroupParent()); len(left) > 0 {
		b.Errorf("cgroups are left over: %v", left)
	}
}

func (h *host) oursAtOnce(t testing.TB, img agent.ImageConfig, n int) time.Duration {
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
func (h *host) bareClient(t testing.TB, cfg agent.ImageConfig, n int) time.Duration {
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
