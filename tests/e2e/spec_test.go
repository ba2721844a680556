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
	"time"

	"wherry.dev/api"
	"wherry.dev/spec"
	"wherry.dev/tests/lab"
)

// chapter is a small stack for a sentence of the Compose specification that
// only a task can show. Its services begin with <<: *s.
type chapter struct {
	sentence, services string
	// says is what a command in the task of a service prints: SERVICE: COMMAND.
	says map[string]string
	// broken stacks never get ready, and are not waited for.
	broken bool
	// shows is asked until it has no objection.
	shows func(stack string) error
}

// TestSpec: what the chapters of the Compose specification promise of what
// runs; what shows in the file alone is in spec/compose. All stacks share one
// host and run at the same time.
func TestSpec(t *testing.T) {
	_, h := oneHost(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "key"), []byte("key"), 0o600); err != nil {
		t.Fatal(err)
	}
	history := func(stack string) []api.TaskInfo {
		t.Helper()
		r := h.Wherry("ps", "-a", stack, "--format", "json")
		var all []api.TaskInfo
		if err := json.Unmarshal([]byte(r.Stdout), &all); err != nil {
			t.Errorf("ps -a %s: %v\n%s", stack, err, r.Stderr)
		}
		return all
	}
	// only is a check of the only task that the stack has ever had.
	only := func(check func(api.TaskInfo) bool) func(string) error {
		return func(stack string) error {
			if all := history(stack); len(all) != 1 || !check(all[0]) {
				return fmt.Errorf("tasks %+v", all)
			}
			return nil
		}
	}
	some := func(check func(api.TaskInfo) bool) func(string) error {
		return func(stack string) error {
			if all := history(stack); !slices.ContainsFunc(all, check) {
				return fmt.Errorf("tasks %+v", all)
			}
			return nil
		}
	}
	ended := func(check func(spec.Attempt) bool) func(string) error {
		return some(func(i api.TaskInfo) bool { return slices.ContainsFunc(i.Attempts, check) })
	}
	both := func(a, b func(string) error) func(string) error {
		return func(stack string) error {
			if err := a(stack); err != nil {
				return err
			}
			return b(stack)
		}
	}
	// tells checks the output of a command for people.
	tells := func(command string, words ...string) func(string) error {
		return func(stack string) error {
			r := h.Wherry(append(strings.Fields(command), stack)...)
			for _, w := range words {
				if !strings.Contains(r.Stdout, w) {
					return fmt.Errorf("wherry %s does not tell %q:\n%s%s", command, w, r.Stdout, r.Stderr)
				}
			}
			return nil
		}
	}

	cases := []chapter{
		{sentence: "restart no: never, whatever the exit code", broken: true, services: `a: {<<: *s, restart: "no", command: [sh, -c, "echo last words; exit 7"]}`,
			shows: both(only(func(i api.TaskInfo) bool {
				return i.State == spec.TaskFailed && len(i.Attempts) == 1 && i.Attempts[0].ExitCode == 7 && slices.Equal(i.Attempts[0].LastLog, []string{"last words"})
			}), both(tells("ps -a", "exit 7", "last words"), tells("why", "exit 7", "| last words")))},
		{sentence: "restart on-failure: not after a success", broken: true, services: "a: {<<: *s, restart: on-failure, command: 'true'}",
			shows: only(func(i api.TaskInfo) bool { return i.State == spec.TaskComplete && i.Status.Started == 1 })},
		{sentence: "restart on-failure:2: twice, and no more", broken: true, services: "a: {<<: *s, restart: 'on-failure:2', command: 'false'}",
			shows: only(func(i api.TaskInfo) bool { return i.State == spec.TaskFailed && i.Status.Started == 3 })},
		{sentence: "restart always: after a success, too", broken: true, services: "a: {<<: *s, restart: always, command: 'true'}",
			shows: some(func(i api.TaskInfo) bool { return i.Status.Started >= 3 && i.Attempts[0].ExitCode == 0 })},
		{sentence: "a delay lies before each restart", broken: true, services: "a: {<<: *s, command: 'false', deploy: {restart_policy: {delay: 2s}}}",
			shows: some(func(i api.TaskInfo) bool {
				return len(i.Attempts) > 1 && i.Attempts[1].Started.Sub(i.Attempts[0].Ended) >= 1500*time.Millisecond
			})},
		{sentence: "a signal is told", broken: true, services: `a: {<<: *s, restart: "no", command: [sh, -c, "ulimit -c 0; kill -SEGV $$$$"]}`,
			shows: both(ended(func(a spec.Attempt) bool { return a.Signal == 11 && a.ExitCode == 139 }), tells("why", "signal 11"))},
		{sentence: "the lack of memory is told", broken: true, services: `a: {<<: *s, restart: "no", mem_limit: 16m, command: tail /dev/zero}`,
			shows: both(ended(func(a spec.Attempt) bool { return a.OOM }), both(tells("ps -a", "memory"), tells("why", "out of memory")))},

		{sentence: "service_healthy: the dependent starts when the dependency is healthy", services: `
  a: {<<: *s, restart: "no", depends_on: {b: {condition: service_healthy}}, command: [sh, -c, "test -f /vol/ok && exec sleep 1000"], volumes: ["vol:/vol"]}
  b: {<<: *s, command: [sh, -c, "sleep 2; touch /vol/ok; exec sleep 1000"], healthcheck: {test: test -f /vol/ok, interval: 1s, start_period: 20s, start_interval: 200ms}, volumes: ["vol:/vol"]}`,
			says: map[string]string{"a: echo runs": "runs"}},
		{sentence: "an unhealthy task is replaced", services: `a: {<<: *s, command: sleep 1000, healthcheck: {test: "echo not well; test ! -f /bad", interval: 200ms, retries: 2}}`,
			says: map[string]string{"a: touch /bad; echo done": "done"},
			shows: both(ended(func(a spec.Attempt) bool { return a.Error == "health check failed 2 times: not well" }), func(stack string) error {
				// First it is started again, with what it has written; at last another one is.
				if all := history(stack); len(all) != 2 || all[0].Health != spec.HealthHealthy && all[1].Health != spec.HealthHealthy {
					return fmt.Errorf("tasks %+v", all)
				}
				return nil
			})},
		{sentence: "failures within start_period do not count", services: `a: {<<: *s, command: [sh, -c, "sleep 3; touch /ok; exec sleep 1000"], healthcheck: {test: test -f /ok, interval: 1s, retries: 1, start_period: 60s, start_interval: 1s}}`,
			shows: only(func(i api.TaskInfo) bool { return i.Health == spec.HealthHealthy && len(i.Attempts) == 0 })},
		{sentence: "a check that takes longer than its timeout has failed", broken: true, services: `a: {<<: *s, command: sleep 1000, healthcheck: {test: sleep 100, interval: 500ms, timeout: 500ms, retries: 1}}`,
			shows: ended(func(a spec.Attempt) bool { return strings.HasPrefix(a.Error, "health check failed") })},

		{sentence: "configs have their place, owner and mode", services: `a: {<<: *s, command: sleep 1000, configs: [c, {source: c, target: /etc/own, uid: "103", gid: "104", mode: 0440}]}`,
			says: map[string]string{"a: cat /c; stat -c '%u %g %a' /c; stat -c '%u %g %a' /etc/own": "text0 0 444\n103 104 440"}},
		{sentence: "secrets are in /run/secrets, for those only that are granted them", services: `
  a: {<<: *s, command: sleep 1000, secrets: [k, {source: k, target: other, mode: 0400}]}
  b: {<<: *s, command: sleep 1000}`,
			says: map[string]string{"a: cat /run/secrets/k; stat -c %a /run/secrets/other": "key400", "b: ls /run/secrets 2>/dev/null | wc -l": "0"}},

		{sentence: "services without a network in common are isolated", services: `
  proxy: {<<: *s, command: sleep 1000, networks: [front]}
  app: {<<: *s, command: httpd -f -p 80 -h /etc, networks: {front: {aliases: [web]}, back: {}}}
  db: {<<: *s, command: httpd -f -p 80 -h /etc, networks: [back]}`,
			says: map[string]string{
				"proxy: wget -qO- http://web/hostname >/dev/null && echo yes": "yes",
				"app: wget -qO- http://db/hostname >/dev/null && echo yes":    "yes",
				"proxy: wget -qO- http://db/hostname 2>&1 | cut -c1-16":       "wget: bad addres",
			}},
		{sentence: "an internal network leads nowhere else", services: "a: {<<: *s, command: sleep 1000, networks: [inner]}",
			says: map[string]string{"a: ip route | grep -c default": "0"}},
		{sentence: "vip is one address, dnsrr is those of all", services: `
  a: {<<: *s, command: sleep 1000, deploy: {replicas: 2}}
  b: {<<: *s, command: sleep 1000, deploy: {replicas: 2, endpoint_mode: dnsrr}}
  c: {<<: *s, command: sleep 1000}`,
			says: map[string]string{"c: nslookup a | grep -c '^Address.* 10\\.'; nslookup b | grep -c '^Address.* 10\\.'": "1\n2"}},

		{sentence: "a volume is shared by the services that mount it, and read-only where they say so", services: `
  a: {<<: *s, command: [sh, -c, "echo of a > /vol/x; exec sleep 1000"], volumes: ["vol:/vol"]}
  b: {<<: *s, depends_on: [a], command: sleep 1000, volumes: ["vol:/other:ro"]}`,
			says: map[string]string{"b: until test -f /other/x; do sleep 0.1; done; cat /other/x; touch /other/y 2>&1 | grep -o Read-only": "of a\nRead-only"}},
		{sentence: "a tmpfs has its size", services: "a: {<<: *s, command: sleep 1000, volumes: [{type: tmpfs, target: /t, tmpfs: {size: 1m, mode: 0700}}]}",
			says: map[string]string{"a: stat -c %a /t; df -k /t | tail -1 | awk '{print $2}'": "700\n1024"}},

		{sentence: "a limit of processes", services: "a: {<<: *s, command: sleep 1000, deploy: {resources: {limits: {pids: 30}}}}",
			says: map[string]string{"a: for i in `seq 40`; do sleep 1 & done": "sh: can't fork: Resource temporarily unavailable"}},
		{sentence: "booleans in quotes and empty values are in the environment", services: `a: {<<: *s, command: sleep 1000, environment: {A: "true", B: ""}}`,
			says: map[string]string{"a: echo $A; env | grep -c ^B=": "true\n1"}},
	}
	applied := make([]chan lab.Result, len(cases))
	for i := range cases {
		applied[i] = make(chan lab.Result, 1)
		go func() { applied[i] <- cases[i].apply(h, dir, stackOf(i)) }()
	}
	for i := range cases {
		c := &cases[i]
		t.Run(c.sentence, func(t *testing.T) {
			if r := <-applied[i]; r.Code != 0 {
				t.Fatalf("apply: exit %d\n%s", r.Code, r.Stderr)
			}
			for command, want := range c.says {
				service, line, _ := strings.Cut(command, ": ")
				r := h.Wherry("exec", stackOf(i)+"/"+service, "--", "sh", "-c", line)
				if got := strings.TrimSpace(r.Stdout + r.Stderr); got != want {
					t.Errorf("%s says %q, want %q", command, got, want)
				}
			}
			if c.shows != nil {
				lab.Eventually(t, 2*soon, c.sentence, func() error { return c.shows(stackOf(i)) })
			}
		})
	}
}

func stackOf(i int) string { return fmt.Sprintf("spec-%d", i+1) }

// head is what all stacks of TestSpec have.
const head = `name: %s
x-s: &s {image: %s, init: true, stop_grace_period: 1s}
volumes: {vol: {}}
configs: {c: {content: text}}
secrets: {k: {file: key}}
networks: {front: {}, back: {}, inner: {internal: true}}
services:
  %s
`

func (c *chapter) apply(h *lab.Host, dir, name string) lab.Result {
	file := filepath.Join(dir, name+".yml")
	if err := os.WriteFile(file, fmt.Appendf(nil, head, name, image, c.services), 0o600); err != nil {
		return lab.Result{Code: -1, Stderr: err.Error()}
	}
	return h.Wherry("apply", "-f", file, fmt.Sprintf("--wait=%v", !c.broken))
}
