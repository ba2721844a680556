//go:build e2e

package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"

	"wherry.dev/tests/images"
	"wherry.dev/tests/lab"
)

const image = "wherry-examples/busybox:1.35"

// series are times of one thing, measured several times.
type series []time.Duration

func (s series) median() time.Duration {
	sorted := slices.Sorted(slices.Values(s))
	return sorted[len(sorted)/2]
}

func (s series) String() string {
	sorted := slices.Sorted(slices.Values(s))
	return fmt.Sprintf("%s / %s / %s (n=%d)", ms(sorted[0]), ms(s.median()), ms(sorted[len(sorted)-1]), len(s))
}

func ms(d time.Duration) string { return fmt.Sprintf("%.0f ms", float64(d.Microseconds())/1000) }

// machine prints what the figures were taken on.
func machine(b *testing.B) {
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	cpu := "unknown CPU"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for _, l := range strings.Split(string(info), "\n") {
			if k, v, ok := strings.Cut(l, ":"); ok && strings.TrimSpace(k) == "model name" {
				cpu = strings.TrimSpace(v)
				break
			}
		}
	}
	load, _ := os.ReadFile("/proc/loadavg")
	b.Logf("machine: %d × %s, Linux %s, %s, load %s", runtime.NumCPU(), cpu, strings.TrimSpace(string(kernel)), runtime.Version(), strings.TrimSpace(string(load)))
}

func host(b *testing.B) *lab.Host {
	b.Helper()
	l := lab.New(b)
	h := l.Host("host-1")
	h.Start()
	f := filepath.Join(b.TempDir(), "image.tar")
	if err := os.WriteFile(f, images.Must(b, image, ""), 0o600); err != nil {
		b.Fatal(err)
	}
	h.Must("image", "load", f)
	machine(b)
	// The bare client leaves the OCI runtime's state in the usual place, and the
	// group above those of its containers.
	b.Cleanup(func() {
		for _, pattern := range []string{"/sys/fs/cgroup/*/bench", "/sys/fs/cgroup/bench"} {
			dirs, _ := filepath.Glob(pattern)
			for _, dir := range dirs {
				_ = os.Remove(dir)
			}
		}
		for _, dir := range []string{"runc/bench", "runc", "s", ""} {
			_ = os.Remove(filepath.Join("/run/containerd", dir)) // what is not empty is somebody else's
		}
	})
	return h
}

// running counts processes with exactly this command line.
func running(cmdline string) int {
	n := 0
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0
	}
	for _, e := range entries {
		if c := e.Name()[0]; c < '0' || c > '9' {
			continue
		}
		b, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err == nil && strings.TrimRight(strings.ReplaceAll(string(b), "\x00", " "), " ") == cmdline {
			n++
		}
	}
	return n
}

// await polls /proc until n processes have the command line.
func await(b *testing.B, cmdline string, n int) {
	b.Helper()
	deadline := time.Now().Add(2 * time.Minute)
	for running(cmdline) != n {
		if time.Now().After(deadline) {
			b.Fatalf("%d of %d processes %q after two minutes", running(cmdline), n, cmdline)
		}
		time.Sleep(2 * time.Millisecond) // between two looks
	}
}

// apply measures the time from the call of `wherry apply` until n containers
// run on the host's network.
func apply(b *testing.B, h *lab.Host, n int, secs string) time.Duration {
	b.Helper()
	f := filepath.Join(b.TempDir(), "stack.yml")
	text := fmt.Sprintf("name: bench\nservices:\n  s:\n    image: %s\n    command: [sleep, %q]\n    network_mode: host\n    stop_signal: SIGKILL\n    deploy: {replicas: %d}\n", image, secs, n)
	if err := os.WriteFile(f, []byte(text), 0o600); err != nil {
		b.Fatal(err)
	}
	started := time.Now()
	h.Must("apply", "-f", f, "--wait=false")
	await(b, "sleep "+secs, n)
	d := time.Since(started)
	h.Must("rm", "bench")
	await(b, "sleep "+secs, 0)
	return d
}

// bare measures the same with a containerd client alone, on the same daemon.
func bare(b *testing.B, h *lab.Host, n int, secs string) time.Duration {
	b.Helper()
	cl, err := containerd.New(filepath.Join(h.RunDir, "containerd", "containerd.sock"))
	if err != nil {
		b.Fatal(err)
	}
	defer cl.Close()
	ctx := namespaces.WithNamespace(context.Background(), "wherry")
	img, err := cl.GetImage(ctx, "docker.io/"+image)
	if err != nil {
		b.Fatal(err)
	}
	bench := namespaces.WithNamespace(context.Background(), "bench")
	is := cl.ImageService()
	if _, err := is.Get(bench, img.Name()); err != nil {
		// The content is shared; only the name has to exist in the other namespace.
		meta := img.Metadata()
		tar := filepath.Join(b.TempDir(), "image.tar")
		if err := os.WriteFile(tar, images.Must(b, image, ""), 0o600); err != nil {
			b.Fatal(err)
		}
		f, err := os.Open(tar)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := cl.Import(bench, f); err != nil {
			b.Fatalf("import %s: %v", meta.Name, err)
		}
		f.Close()
	}
	list, err := cl.ListImages(bench)
	if err != nil || len(list) == 0 {
		b.Fatalf("no image for the bare client: %v", err)
	}
	img = list[0]
	if ok, err := img.IsUnpacked(bench, "overlayfs"); err != nil {
		b.Fatal(err)
	} else if !ok {
		if err := img.Unpack(bench, "overlayfs"); err != nil {
			b.Fatal(err)
		}
	}

	cs, ts := make([]containerd.Container, n), make([]containerd.Task, n)
	errs := make([]error, n)
	started := time.Now()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { cs[i], ts[i], errs[i] = startBare(bench, cl, img, fmt.Sprintf("bare-%s-%d", secs, i), secs) })
	}
	wg.Wait()
	await(b, "sleep "+secs, n)
	d := time.Since(started)
	for i := range n {
		if errs[i] != nil {
			b.Fatal(errs[i])
		}
		if _, err := ts[i].Delete(bench, containerd.WithProcessKill); err != nil {
			b.Fatal(err)
		}
		if err := cs[i].Delete(bench, containerd.WithSnapshotCleanup); err != nil {
			b.Fatal(err)
		}
	}
	return d
}

func startBare(ctx context.Context, cl *containerd.Client, img containerd.Image, id, secs string) (containerd.Container, containerd.Task, error) {
	c, err := cl.NewContainer(ctx, id, containerd.WithSnapshotter("overlayfs"), containerd.WithNewSnapshot(id, img),
		containerd.WithNewSpec(oci.WithImageConfig(img), oci.WithProcessArgs("sleep", secs), oci.WithHostNamespace("network")))
	if err != nil {
		return nil, nil, err
	}
	t, err := c.NewTask(ctx, cio.NullIO)
	if err != nil {
		return c, nil, err
	}
	return c, t, t.Start(ctx)
}

// BenchmarkApply compares apply with the bare client, in rounds of bare,
// apply, bare.
func BenchmarkApply(b *testing.B) {
	h := host(b)
	for _, n := range []int{1, 50} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			rounds := 7
			if n > 1 {
				rounds = 5
			}
			var floor, ours series
			for i := range rounds {
				floor = append(floor, bare(b, h, n, fmt.Sprintf("81%d%02d1", n, i)))
				ours = append(ours, apply(b, h, n, fmt.Sprintf("82%d%02d", n, i)))
				floor = append(floor, bare(b, h, n, fmt.Sprintf("81%d%02d2", n, i)))
			}
			ratio := float64(ours.median()) / float64(floor.median())
			b.Logf("apply of %d: wherry %s, bare containerd client %s: ratio %.2f", n, ours, floor, ratio)
			b.ReportMetric(ratio, "×bare")
			b.ReportMetric(float64(ours.median().Milliseconds()), "ms/apply")
		})
	}
}

// BenchmarkHeal measures from the kill of a container's process until another
// one runs.
func BenchmarkHeal(b *testing.B) {
	h := host(b)
	const cmd = "sleep 8300"
	f := filepath.Join(b.TempDir(), "stack.yml")
	if err := os.WriteFile(f, []byte("name: heal\nservices: {s: {image: "+image+", command: [sleep, '8300'], restart: always, deploy: {restart_policy: {condition: any, window: 1s}}}}\n"), 0o600); err != nil {
		b.Fatal(err)
	}
	h.Must("apply", "-f", f)
	var times series
	for range 10 {
		out := strings.TrimSpace(h.Must("ps", "heal", "--format", "{{.status.pid}}"))
		pid, err := strconv.Atoi(out)
		if err != nil {
			b.Fatalf("pid %q: %v", out, err)
		}
		time.Sleep(1500 * time.Millisecond) // an attempt that lasted its window restarts at once
		started := time.Now()
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			b.Fatal(err)
		}
		for {
			if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err != nil && running(cmd) == 1 {
				break
			}
			time.Sleep(2 * time.Millisecond) // between two looks
		}
		times = append(times, time.Since(started))
		lab.Eventually(b, 10*time.Second, "the new process is reported", func() error {
			if now := strings.TrimSpace(h.Must("ps", "heal", "--format", "{{.status.pid}}")); now == out || now == "" || now == "<no value>" {
				return fmt.Errorf("pid %s", now)
			}
			return nil
		})
	}
	b.Logf("killed container running again: %s", times)
	b.ReportMetric(float64(times.median().Milliseconds()), "ms/heal")
}

// BenchmarkVersion measures `wherry version` beside `true`, and the size of
// the binary.
func BenchmarkVersion(b *testing.B) {
	bin := lab.Binary(b)
	machine(b)
	var ours, floor series
	for range 20 {
		for _, m := range []struct {
			args []string
			to   *series
		}{{[]string{bin, "version"}, &ours}, {[]string{"/bin/true"}, &floor}} {
			started := time.Now()
			if err := exec.Command(m.args[0], m.args[1:]...).Run(); err != nil {
				b.Fatal(err)
			}
			*m.to = append(*m.to, time.Since(started))
		}
	}
	st, err := os.Stat(bin)
	if err != nil {
		b.Fatal(err)
	}
	b.Logf("wherry version: %s, /bin/true: %s; binary %.1f MiB", ours, floor, float64(st.Size())/(1<<20))
	b.ReportMetric(float64(ours.median().Microseconds())/1000, "ms/version")
	b.ReportMetric(float64(st.Size())/(1<<20), "MiB")
}

// BenchmarkIdle measures what the example costs while nothing happens: the sum
// of Pss and the CPU of daemon, containerd and keeper, the shims apart. IDLE
// is how long the stack has been up before (5m by default).
func BenchmarkIdle(b *testing.B) {
	settle := 5 * time.Minute
	if v := os.Getenv("IDLE"); v != "" {
		var err error
		if settle, err = time.ParseDuration(v); err != nil {
			b.Fatal(err)
		}
	}
	h := host(b)
	h.Must("apply", "-f", "../../examples/hello/stack.yml")
	time.Sleep(settle) // the figure is of a cluster that has been idle for that long
	parts := map[string]int{"daemon": h.PID()}
	for _, what := range []string{"containerd", "keeper"} {
		if pids := byArgs(h.RunDir, "wherry "+what); len(pids) == 1 {
			parts[what] = pids[0]
		} else {
			b.Fatalf("%d processes %s", len(pids), what)
		}
	}
	ticks := func() (sum uint64) {
		for _, pid := range parts {
			sum += cpuTicks(b, pid)
		}
		return sum
	}
	before, started := ticks(), time.Now()
	time.Sleep(time.Minute) // the figure is an average over a minute
	cpu := float64(ticks()-before) / 100 / time.Since(started).Seconds() * 100
	total := 0
	for name, pid := range parts {
		pss := pssKiB(b, pid)
		total += pss
		b.Logf("%-10s Pss %.1f MiB", name, float64(pss)/1024)
	}
	shims := 0
	for _, pid := range byArgs(h.RunDir, "-namespace wherry") {
		shims += pssKiB(b, pid)
	}
	b.Logf("idle %s after apply: Pss %.1f MiB in all, %.2f %% of a core; shims %.1f MiB apart", settle, float64(total)/1024, cpu, float64(shims)/1024)
	b.ReportMetric(float64(total)/1024, "MiB")
	b.ReportMetric(cpu, "%core")
}

func byArgs(words ...string) []int {
	var pids []int
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		b, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		line := strings.ReplaceAll(string(b), "\x00", " ")
		if err == nil && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(line, w) }) {
			pids = append(pids, pid)
		}
	}
	return pids
}

func pssKiB(b *testing.B, pid int) int {
	b.Helper()
	roll, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		b.Fatal(err)
	}
	for _, l := range strings.Split(string(roll), "\n") {
		var kib int
		if n, _ := fmt.Sscanf(l, "Pss: %d kB", &kib); n == 1 {
			return kib
		}
	}
	b.Fatalf("no Pss of %d", pid)
	return 0
}

// cpuTicks is the time that a process has used, in hundredths of a second.
func cpuTicks(b *testing.B, pid int) uint64 {
	b.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	f := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	user, err1 := strconv.ParseUint(f[11], 10, 64)
	sys, err2 := strconv.ParseUint(f[12], 10, 64)
	if err1 != nil || err2 != nil {
		b.Fatalf("stat of %d: %s", pid, stat)
	}
	return user + sys
}
