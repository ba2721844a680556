//go:build e2e

package bench

import (
	"os"
	"testing"
	"time"

	"wherry.dev/tests/lab"
)

// BenchmarkIdleCluster measures what a cluster of ten nodes costs each of its
// managers while nothing happens: the Pss and CPU of the daemon alone, and
// with its containerd and keeper. IDLE is how long it has been up before.
func BenchmarkIdleCluster(b *testing.B) {
	settle := time.Minute
	if v := os.Getenv("IDLE"); v != "" {
		var err error
		if settle, err = time.ParseDuration(v); err != nil {
			b.Fatal(err)
		}
	}
	c := lab.New(b).Cluster(3, 7)
	machine(b)
	time.Sleep(settle) // the figure is of a cluster that has been idle for that long
	leader := c.Leader()
	managers := c.Managers()
	parts := []string{"daemon", "containerd", "keeper"}
	ticks := func(h *lab.Host, parts ...string) (sum uint64) {
		for _, part := range parts {
			for _, pid := range h.Part(part) {
				sum += cpuTicks(b, pid)
			}
		}
		return sum
	}
	var daemons, all []uint64
	started := time.Now()
	for _, h := range managers {
		daemons, all = append(daemons, ticks(h, "daemon")), append(all, ticks(h, parts...))
	}
	time.Sleep(time.Minute) // the figure is an average over a minute
	secs := time.Since(started).Seconds()
	for i, h := range managers {
		role := "follower"
		if h == leader {
			role = "leader"
		}
		pss := map[string]float64{}
		total := 0.0
		for _, part := range parts {
			for _, pid := range h.Part(part) {
				mib := float64(pssKiB(b, pid)) / 1024
				pss[part] += mib
				total += mib
			}
		}
		cpu := float64(ticks(h, parts...)-all[i]) / secs
		b.Logf("idle manager of 10 nodes (%s): daemon Pss %.1f MiB, %.2f %% of a core; containerd %.1f MiB, keeper %.1f MiB; in all %.1f MiB, %.2f %% of a core",
			role, pss["daemon"], float64(ticks(h, "daemon")-daemons[i])/secs, pss["containerd"], pss["keeper"], total, cpu)
		if h == leader {
			b.ReportMetric(total, "MiB")
			b.ReportMetric(cpu, "%core")
		}
	}
}
