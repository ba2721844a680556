//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"wherry.dev/api"
	"wherry.dev/tests/lab"
)

// TestContainerKeys applies one stack whose services use what Compose says
// about single containers, and looks at it from within.
func TestContainerKeys(t *testing.T) {
	_, h := oneHost(t)
	dir := t.TempDir()
	for name, text := range map[string]string{
		"raw.env":      "RAW=\"$HOME\" # as it is\n",
		"profile.json": `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}`,
		"stack.yml": `name: keys
services:
  web:
    image: ` + image + `
    command: ["sh", "-c", "cat /data/order; echo $$NAME; touch /masked; exec sleep 1000"]
    hostname: "{{.Service.Name}}-{{.Task.Slot}}"
    environment: {NAME: "{{.Task.Name}} on {{.Node.Hostname}}"}
    env_file: [{path: raw.env, format: raw}]
    security_opt: ["seccomp=profile.json"]
    umask: 0027
    init: true
    volumes:
      - data:/data
      - {type: image, source: ` + image + `, target: /image, image: {subpath: bin}}
    pre_start:
      - {command: [sh, -c, "echo first >> /data/order"]}
      - {command: [sh, -c, "echo second by $$WHO >> /data/order"], environment: {WHO: hook}, user: "0:0"}
    post_start:
      - {command: [sh, -c, "echo after by $$WHO in $$PWD >> /data/order"], environment: [WHO=hook], working_dir: /tmp}
    pre_stop:
      - {command: [sh, -c, "sleep 1; echo before the stop >> /data/order"]}
volumes: {data: {}}
`} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "stack.yml")
	h.Must("apply", "-f", file)
	in := func(line string) string {
		t.Helper()
		r := h.Wherry("exec", "keys/web", "--", "sh", "-c", line)
		return strings.TrimSpace(r.Stdout + r.Stderr)
	}
	task := one(t, h, "keys/web")
	if len(task.Attempts) > 0 || task.Health != "none" {
		t.Errorf("task %+v", task)
	}
	for line, want := range map[string]string{
		"hostname":           "keys_web-1",
		"echo $NAME":         "keys.web.1 on host-1",
		`echo "$RAW"`:        `"$HOME" # as it is`,
		"mkdir /x":           "mkdir: can't create directory '/x': Operation not permitted",
		"cat /data/order":    "first\nsecond by hook\nafter by hook in /tmp",
		"ls /image/busybox":  "/image/busybox",
		"touch /image/x":     "touch: /image/x: Read-only file system",
		"stat -c %a /masked": "640",
	} {
		if got := in(line); got != want {
			t.Errorf("%s says %q, want %q", line, got, want)
		}
	}
	// The log has the output of all of the task's containers.
	lab.Eventually(t, soon, "the log", func() error {
		if out := h.Must("logs", "keys/web"); !strings.Contains(out, "first\n") || !strings.Contains(out, "keys.web.1 on host-1") {
			return fmt.Errorf("the log is %q", out)
		}
		return nil
	})

	change := func(from, to string) {
		t.Helper()
		text := strings.Replace(mustRead(t, file), from, to, 1)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	t.Run("the next task", func(t *testing.T) {
		change("environment: {NAME:", "environment: {MORE: x, NAME:")
		h.Must("apply", "-f", file)
		want := "first\nsecond by hook\nafter by hook in /tmp\nbefore the stop\nfirst\nsecond by hook\nafter by hook in /tmp"
		if got := in("cat /data/order"); got != want {
			t.Errorf("order %q, want %q", got, want)
		}
	})

	t.Run("a container before the start that fails", func(t *testing.T) {
		change(`"echo first >> /data/order"`, `"echo cannot migrate; exit 3"`)
		r := h.Wherry("apply", "-f", file, "--timeout", "15s")
		if r.Code == 0 || !strings.Contains(r.Stderr, "pre_start container 1 of 2 failed: exit 3") {
			t.Errorf("apply: exit %d\n%s%s", r.Code, r.Stdout, r.Stderr)
		}
		failed := false
		var all []api.TaskInfo // the update went back
		if err := json.Unmarshal([]byte(h.Must("ps", "-a", "keys/web", "--format", "json")), &all); err != nil {
			t.Fatal(err)
		}
		for _, task := range all {
			for _, a := range task.Attempts {
				failed = failed || a.ExitCode == 3 && slices.Equal(a.LastLog, []string{"cannot migrate"})
			}
		}
		if !failed {
			t.Errorf("no attempt of %+v tells of the failure", all)
		}
	})
}
