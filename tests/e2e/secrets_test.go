//go:build e2e

package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"wherry.dev/api"
	"wherry.dev/tests/lab"
)

// rotation is a stack with one service for each way to take a new version.
type rotation struct {
	t    *testing.T
	h    *lab.Host // where commands are given
	dir  string
	word string // in every secret
}

func (r *rotation) file(name, text string) {
	r.t.Helper()
	if err := os.WriteFile(filepath.Join(r.dir, name), []byte(text), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

// apply gives the secret this many extra bytes, and waits for all tasks.
func (r *rotation) apply(n int) {
	r.t.Helper()
	r.file("key", r.value(n))
	r.h.Must("apply", "-f", filepath.Join(r.dir, "stack.yml"))
}

func (r *rotation) value(n int) string { return r.word + strings.Repeat("x", n) }

// sh runs a line in the task of a service.
func (r *rotation) sh(service, line string) string {
	r.t.Helper()
	return r.h.Must("exec", "rot/"+service, "--", "sh", "-c", line)
}

// has fails when a service has another version of the secret.
func (r *rotation) has(service string, n int) {
	r.t.Helper()
	if got := r.sh(service, "cat /run/secrets/key"); got != r.value(n) {
		r.t.Errorf("%s has a secret of %d bytes, want %d more than %d", service, len(got), n, len(r.word))
	}
}

// TestSecrets rotates a secret of services that take a new version by restart,
// by signal and not at all, on two hosts, through the faults of these.
func TestSecrets(t *testing.T) {
	c := grow(t, 1, 1)
	h, worker := c.Hosts[0], c.Hosts[1]
	var seed [12]byte
	rand.Read(seed[:])
	r := &rotation{t: t, h: h, dir: t.TempDir(), word: "canary" + hex.EncodeToString(seed[:])}
	// What a task says goes to disk, so it tells sizes, and never the secret.
	const program = `trap 'echo told $$(wc -c < /run/secrets/key) $$(wc -c < /etc/rendered)' HUP; echo began $$(wc -c < /run/secrets/key); while :; do sleep 0.1; done`
	var services strings.Builder
	for _, name := range []string{"restart", "signal", "none"} {
		mode := map[string]string{"restart": "restart", "signal": "signal:SIGHUP", "none": "none"}[name]
		fmt.Fprintf(&services, "  %s:\n    image: %s\n    command: [sh, -c, \"%s\"]\n    stop_signal: SIGKILL\n    network_mode: none\n    x-wherry: {on_change: '%s'}\n"+
			"    secrets: [{source: key, mode: 0400}, {source: shared, target: /etc/shared, x-wherry: {on_change: none}}, {source: var, x-wherry: {env: VAR}}]\n"+
			"    configs: [{source: rendered, target: /etc/rendered}]\n    deploy: {placement: {constraints: [node.hostname==%s]}}\n", name, image, program, mode, worker.Name)
	}
	r.file("stack.yml", "name: rot\nservices:\n"+services.String()+`secrets: {key: {file: ./key}, var: {file: ./var}, shared: {external: true}}
configs: {rendered: {template_driver: golang, content: "{{.Task.Name}} on {{.Node.Hostname}} with {{secret \"key\"}}\n"}}
`)
	r.file("var", r.word+"-var\n")
	r.file("key", r.value(0))
	bad := h.Wherry("apply", "-f", filepath.Join(r.dir, "stack.yml"))
	refused(t, bad, "secret shared", "create it first")
	if res := h.WherryIn("", r.word+"-shared", "secret", "create", "shared", "-", "--label", "team=a"); res.Code != 0 {
		t.Fatal(res.Stderr)
	}
	r.apply(0)
	before := map[string]api.TaskInfo{}
	for _, s := range []string{"restart", "signal", "none"} {
		r.has(s, 0)
		before[s] = one(t, h, "rot/"+s)
		want := "400 0 0\n" + r.word + "-var\n" + r.word + "-shared\nrot." + s + ".1 on " + worker.Name + " with " + r.value(0) + "\n"
		if got := r.sh(s, "stat -c '%a %u %g' /run/secrets/key; echo $VAR; cat /etc/shared; echo; cat /etc/rendered"); got != want {
			t.Errorf("%s sees %q, want %q", s, got, want)
		}
	}

	r.file("key", r.value(1))
	plan := h.Must("plan", "-f", filepath.Join(r.dir, "stack.yml"))
	for _, want := range []string{"~ secret key", "± task rot.restart.1", "secret key changed", "secret key changes in the running tasks of service rot/signal, which then get SIGHUP",
		"secret key changes in the running tasks of service rot/none, and nothing else happens to them"} {
		if !strings.Contains(plan, want) || strings.Contains(plan, r.word) {
			t.Errorf("the plan does not say %q, or shows the secret:\n%s", want, plan)
		}
	}
	r.apply(1)
	for _, s := range []string{"restart", "signal", "none"} {
		r.has(s, 1)
		now := one(t, h, "rot/"+s)
		if kept := now.ID == before[s].ID && now.Status.PID == before[s].Status.PID && len(now.Attempts) == 0; kept == (s == "restart") {
			t.Errorf("%s was task %s process %d and is task %s process %d", s, before[s].ID, before[s].Status.PID, now.ID, now.Status.PID)
		}
		if got := r.sh(s, "cat /etc/rendered"); !strings.HasSuffix(got, r.value(1)+"\n") {
			t.Errorf("the template of %s was not rendered anew", s)
		}
		before[s] = now
	}
	told := func(want ...string) {
		t.Helper()
		lab.Eventually(t, soon, "the task has been told", func() error {
			var lines []string
			for _, l := range strings.Split(h.Must("logs", "rot/signal"), "\n") {
				if _, text, ok := strings.Cut(l, "told "); ok {
					size, _, _ := strings.Cut(text, " ")
					lines = append(lines, size)
				}
			}
			if !slices.Equal(lines, want) {
				return fmt.Errorf("told %q, want %q", lines, want)
			}
			return nil
		})
	}
	size := func(n int) string { return fmt.Sprint(len(r.word) + n) }
	told(size(1))
	if l := h.Must("logs", "rot/none"); strings.Contains(l, "told") {
		t.Errorf("a service that asked for nothing was told: %s", l)
	}

	// An older revision of the stack comes back with its version; so does the newest.
	r.apply(0)
	told(size(1), size(0))
	r.apply(2)
	told(size(1), size(0), size(2))

	// Nobody is told twice by a daemon that starts again.
	worker.Kill()
	worker.Start()
	r.apply(2)
	told(size(1), size(0), size(2))

	// Without managers, and with a daemon that was killed, tasks start again with
	// the secrets that the host has in memory.
	h.Stop()
	worker.Kill()
	for _, s := range []string{"signal", "none"} {
		if err := syscall.Kill(before[s].Status.PID, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	worker.Launch()
	lab.Eventually(t, soon, "the tasks run again without managers", func() error {
		if n := len(findProcesses("trap", "while")); n < 3 {
			return fmt.Errorf("%d of 3 run", n)
		}
		return nil
	})
	h.Start()
	worker.WaitReady()
	lab.Eventually(t, soon, "both are known to run again", func() error {
		for _, s := range []string{"signal", "none"} {
			if ti := one(t, h, "rot/"+s); ti.State != "running" || ti.Status.Started != 2 || ti.Status.PID == 0 {
				return fmt.Errorf("%s is %+v", s, ti.Status)
			}
		}
		return nil
	})
	for _, s := range []string{"restart", "signal", "none"} {
		r.has(s, 2)
	}

	// A new version of what exists by itself reaches all at once.
	if res := h.WherryIn("", r.word+"-shared2", "secret", "create", "--replace", "shared", "-"); res.Code != 0 || !strings.Contains(res.Stderr, "used by rot/none, rot/restart, rot/signal") {
		t.Fatalf("%d %s", res.Code, res.Stderr)
	}
	for _, s := range []string{"restart", "signal", "none"} {
		if got := r.sh(s, "cat /etc/shared"); got != r.word+"-shared2" {
			t.Errorf("%s has %q", s, got)
		}
	}
	refused(t, h.Wherry("secret", "rm", "shared"), "in use by rot/none, rot/restart, rot/signal")
	var shown []api.DatumInfo
	if err := json.Unmarshal([]byte(h.Must("secret", "inspect", "shared", "rot_key")), &shown); err != nil {
		t.Fatal(err)
	}
	if s := shown[0]; len(s.Versions) != 2 || s.Size != len(r.word)+8 || s.Labels["team"] != "a" || s.Versions[0].Tasks != 3 {
		t.Errorf("shared is %+v", s)
	}
	if s := shown[1]; s.Stack != "rot" || len(s.Versions) != 3 || s.Size != len(r.word)+2 {
		t.Errorf("rot_key is %+v", s)
	}

	r.nowhere(worker, c.Hosts...)

	// A host that was switched off gets its secrets again.
	worker.Reboot()
	worker.WaitReady()
	lab.Eventually(t, 2*soon, "all run after the reboot", func() error {
		for _, s := range []string{"restart", "signal", "none"} {
			l := tasks(t, h, "rot/"+s)
			if len(l) != 1 || l[0].State != "running" || l[0].Status.PID == 0 {
				return fmt.Errorf("%s: %+v", s, l)
			}
			if _, err := h.Try("exec", "rot/"+s, "--", "true"); err != nil {
				return err
			}
		}
		return nil
	})
	for _, s := range []string{"restart", "signal", "none"} {
		r.has(s, 2)
	}

	h.Must("rm", "rot")
	lab.Eventually(t, soon, "the memory is given back with the last task", func() error {
		if _, err := os.Stat(filepath.Join(worker.RunDir, "files")); !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("there is still something: %v", err)
		}
		return nil
	})
	h.Must("secret", "rm", "shared")
	if out := h.Must("secret", "ls", "--format", "json"); strings.TrimSpace(out) != "[]" {
		t.Errorf("left are %s", out)
	}
}

// nowhere fails when a secret is in any file of a host, its memory for secrets
// apart. The search is not blind: there it is found.
func (r *rotation) nowhere(holder *lab.Host, hosts ...*lab.Host) {
	r.t.Helper()
	memory := filepath.Join(holder.RunDir, "files")
	found := 0
	for _, h := range hosts {
		each(r.t, func(path string, b []byte) {
			switch {
			case !bytes.Contains(b, []byte(r.word)):
			case strings.HasPrefix(path, memory+"/"):
				found++
			default:
				r.t.Errorf("%s holds a secret", path)
			}
		}, filepath.Dir(h.DataDir), h.RunDir)
	}
	if found == 0 {
		r.t.Error("the search does not even find the secrets in memory")
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(memory, &st); err != nil || st.Type != 0x01021994 && st.Type != 0x858458f6 {
		r.t.Errorf("%s is no file system in memory: %x, %v", memory, st.Type, err)
	}
}
