//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"wherry.dev/api"
	"wherry.dev/tests/lab"
)

// examined is what `wherry doctor` on a host finds, and its exit code.
func examined(t *testing.T, h *lab.Host, flags ...string) ([]api.Check, int) {
	t.Helper()
	args := append([]string{lab.Binary(t), "--host", h.Socket(), "doctor", "--format", "json"}, flags...)
	r := h.Run(args...)
	var checks []api.Check
	if err := json.Unmarshal([]byte(r.Stdout), &checks); err != nil {
		t.Fatalf("doctor on %s: exit %d, %v: %s%s", h.Name, r.Code, err, r.Stdout, r.Stderr)
	}
	return checks, r.Code
}

// finds waits until `wherry doctor` on a host says all the words of one check
// with the status; the exit code is to fit to what it finds.
func finds(t *testing.T, h *lab.Host, status, name string, words ...string) {
	t.Helper()
	lab.Eventually(t, 20*time.Second, fmt.Sprintf("doctor on %s names %s %s", h.Name, status, name), func() error {
		checks, code := examined(t, h)
		want, found := 0, false
		for _, c := range checks {
			if c.Status == api.CheckFail {
				want = 1
			}
			hit := c.Status == status && c.Name == name
			text := strings.Join(append([]string{c.Where, c.What, c.Why}, c.Do...), "\n")
			for _, w := range words {
				hit = hit && strings.Contains(text, w)
			}
			found = found || hit
		}
		if code != want {
			t.Errorf("exit code %d, want %d: %+v", code, want, checks)
		}
		if !found {
			return fmt.Errorf("found: %+v", checks)
		}
		return nil
	})
}

// healthy waits until nothing fails on a host.
func healthy(t *testing.T, h *lab.Host) {
	t.Helper()
	lab.Eventually(t, 20*time.Second, "doctor finds nothing wrong on "+h.Name, func() error {
		checks, code := examined(t, h)
		var bad []string
		for _, c := range checks {
			if c.Status == api.CheckFail {
				bad = append(bad, fmt.Sprintf("%s %s: %s", c.Name, c.Where, c.What))
			}
		}
		if code != 0 || len(bad) > 0 {
			return fmt.Errorf("exit code %d: %s", code, strings.Join(bad, "; "))
		}
		return nil
	})
}

// TestDoctor: what is broken is named, on managers and workers, where it can be
// seen, with what to do, and named no more when it is mended.
func TestDoctor(t *testing.T) {
	c := grow(t, 3, 1)
	l, one, worker := c.Lab, c.Hosts[0], c.Hosts[3]
	apply(t, c, stack(t, `
name: shop
services:
  web:
    image: `+image+`
    command: ["httpd", "-f", "-p", "80"]
    deploy: {mode: global}
    ports: ["8080:80"]
`))
	for _, h := range c.Hosts {
		healthy(t, h)
	}

	l.Step(t, "a foreign chain drops what is forwarded", func(t *testing.T) {
		if r := worker.Run("nft", "add table inet fw; add chain inet fw FORWARD { type filter hook forward priority 0; policy drop; }; add chain inet fw INPUT { type filter hook input priority 0; policy accept; }; add rule inet fw INPUT udp dport 4478 drop"); r.Code != 0 {
			t.Fatal(r.Stderr)
		}
		finds(t, worker, api.CheckFail, "firewall", "chain FORWARD of nftables table inet fw", `nft insert rule inet fw FORWARD iifname "wbr-*" accept`)
		finds(t, worker, api.CheckFail, "firewall", "chain INPUT of nftables table inet fw", "nft insert rule inet fw INPUT udp dport 4478 accept")
		if b := worker.LogTail(50); !strings.Contains(b, "a firewall stands in the way") {
			t.Errorf("the log does not say it:\n%s", b)
		}
		for _, line := range []string{`iifname "wbr-*" accept`, `oifname "wbr-*" accept`} {
			worker.Run("nft", "insert rule inet fw FORWARD "+line)
		}
		worker.Run("nft", "insert rule inet fw INPUT udp dport 4478 accept")
		healthy(t, worker)
	})

	l.Step(t, "full packets vanish on the way", func(t *testing.T) {
		l.Narrow(worker, 1400)
		defer l.Narrow(worker, 0)
		finds(t, one, api.CheckFail, "path", worker.Name, "networks send up to 1500", "wherry daemon --mtu 140")
		finds(t, worker, api.CheckFail, "path", one.Name, "networks send up to 1500", "wherry daemon --mtu 140")
		worker.Stop()
		worker.LaunchWith("--mtu", "1400")
		worker.WaitReady()
		for _, h := range c.Hosts {
			healthy(t, h)
		}
		fullSize(t, members(t, c, "shop/web"), 1400)
		worker.Stop()
		l.Narrow(worker, 0)
		worker.Start()
		healthy(t, worker)
	})

	l.Step(t, "a port is taken", func(t *testing.T) {
		thief := exec.Command("nsenter", "--net="+l.NSPath(one.Name), "--", "busybox", "nc", "-ll", "-p", "8081", "-e", "true")
		if err := thief.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			_ = thief.Process.Kill()
			_ = thief.Wait()
		}()
		one.Wherry("apply", "-f", stack(t, `
name: other
services:
  web:
    image: `+image+`
    command: ["sleep", "1000"]
    ports: ["8081:80"]
`), "--wait=false")
		finds(t, one, api.CheckFail, "published", "0.0.0.0:8081/tcp", "other/web", "busybox (pid ")
		healthy(t, worker)
		one.Must("rm", "other")
		healthy(t, one)
	})

	l.Step(t, "a manager is away", func(t *testing.T) {
		gone := c.Hosts[2]
		gone.Stop()
		finds(t, one, api.CheckWarn, "manager", gone.Name, "does not answer at "+gone.Address())
		finds(t, worker, api.CheckWarn, "quorum", "2 of 3 voters answer")
		// There, only the host can be looked at.
		checks, _ := examined(t, gone, "--data-dir", gone.DataDir)
		if checks[0].Name != "daemon" || checks[0].Status != api.CheckWarn || len(checks) < 10 {
			t.Errorf("without a daemon: %+v", checks)
		}
		c.Hosts[1].Stop()
		finds(t, worker, api.CheckFail, "quorum", "nobody leads; 1 of 3 voters answer")
		c.Hosts[1].Start()
		gone.Start()
		healthy(t, worker)
	})
}
