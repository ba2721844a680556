package compose

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wherry.dev/spec"
)

func loadUpdate(t *testing.T, text string) Result {
	t.Helper()
	file := filepath.Join(t.TempDir(), "stack.yml")
	writeFile(t, file, text)
	r, err := Load(t.Context(), Options{Files: []string{file}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestUpdates(t *testing.T) {
	for _, tt := range []struct {
		deploy, own string
		want        spec.ServiceSpec
	}{
		{deploy: "{}"},
		// Defaults that are written out are the same file.
		{deploy: "{update_config: {parallelism: 1, failure_action: rollback}, rollback_config: {failure_action: pause, max_failure_ratio: 0}}", own: "{progress_deadline: 10m}"},
		{deploy: "{update_config: {parallelism: 0, delay: 10s, failure_action: continue, monitor: 1m, max_failure_ratio: 0.1, order: start-first}}",
			want: spec.ServiceSpec{Update: spec.UpdateConfig{Parallelism: new(0), Delay: spec.Duration(10 * time.Second), FailureAction: spec.FailureContinue,
				Monitor: spec.Duration(time.Minute), MaxFailureRatio: 0.1, Order: spec.StartFirst}}},
		{deploy: "{rollback_config: {parallelism: \"3\", failure_action: continue, order: stop-first}}", own: "{progress_deadline: 1h}",
			want: spec.ServiceSpec{Rollback: spec.UpdateConfig{Parallelism: new(3), FailureAction: spec.FailureContinue, Order: spec.StopFirst}, ProgressDeadline: spec.Duration(time.Hour)}},
		{deploy: "{}", own: "{canary: {weight: 10%}}", want: spec.ServiceSpec{Canary: spec.Canary{Weight: 10}}},
		{deploy: "{}", own: "{canary: {weight: 10, promote: auto}}", want: spec.ServiceSpec{Canary: spec.Canary{Weight: 10}}},
		{deploy: "{}", own: "{canary: {replicas: \"2\", promote: manual}}", want: spec.ServiceSpec{Canary: spec.Canary{Replicas: 2, Promote: spec.PromoteManual}}},
		{deploy: "{}", own: "{canary: }"},
	} {
		r := loadUpdate(t, "services: {web: {image: nginx, deploy: "+tt.deploy+", x-wherry: "+tt.own+"}}")
		if err := r.Err(); err != nil || len(r.Findings) > 0 {
			t.Errorf("%s: %v, %v", tt.deploy, err, r.Findings)
		}
		svc := r.Stack.Services["web"]
		got := spec.ServiceSpec{Update: svc.Update, Rollback: svc.Rollback, ProgressDeadline: svc.ProgressDeadline, Canary: svc.Canary}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", tt.deploy, d)
		}
	}
}

func TestPriority(t *testing.T) {
	for _, tt := range []struct {
		own, want string
		priority  int
		preempt   bool
	}{
		{own: "{priority: 10}", priority: 10},
		{own: "{priority: \"${N:--1000}\", preempt: \"${ON:-true}\"}", priority: -1000, preempt: true},
		{own: "{priority: 1001}", want: `services.web.x-wherry.priority: "1001" is no whole number from -1000 to 1000; write for instance 100`},
		{own: "{priority: high}", want: `services.web.x-wherry.priority: "high" is no whole number`},
		{own: "{preempt: maybe}", want: `services.web.x-wherry.preempt: "maybe" is neither true nor false`},
	} {
		r := loadUpdate(t, "services: {web: {image: nginx, deploy: {placement: {max_replicas_per_node: 2}}, x-wherry: "+tt.own+"}}")
		if err := r.Err(); tt.want != "" {
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: %v, want %s", tt.own, err, tt.want)
			}
			continue
		}
		want := spec.Placement{MaxPerNode: 2, Priority: tt.priority, Preempt: tt.preempt}
		if d := cmp.Diff(want, r.Stack.Services["web"].Placement); d != "" {
			t.Errorf("%s (-want +got):\n%s", tt.own, d)
		}
	}
}

func TestUpdatesThatAreRefused(t *testing.T) {
	for _, tt := range []struct{ deploy, want string }{
		{"update_config: {parallelism: 10001}", "services.web.deploy.update_config.parallelism: must be from 0, which is all at once, to 10000"},
		{"update_config: {delay: -1s}", "services.web.deploy.update_config.delay: must not be negative"},
		{"update_config: {monitor: -1s}", "services.web.deploy.update_config.monitor: must not be negative"},
		{"update_config: {failure_action: roll-back}", `services.web.deploy.update_config.failure_action: the action "roll-back" does not exist here, want rollback, pause or continue; did you mean rollback?`},
		{"update_config: {max_failure_ratio: 1.5}", "services.web.deploy.update_config.max_failure_ratio: must be from 0 to 1; write 0.25 for a quarter of the tasks"},
		{"update_config: {max_failure_ratio: -0.5}", "services.web.deploy.update_config.max_failure_ratio: must be from 0 to 1"},
		{"update_config: {order: startfirst}", `services.web.deploy.update_config.order: must be one of start-first, stop-first`},
		{"rollback_config: {failure_action: rollback}", `services.web.deploy.rollback_config.failure_action: the action "rollback" does not exist here, want pause or continue`},
		{"rollback_config: {order: both}", `services.web.deploy.rollback_config.order: must be one of start-first, stop-first`},
		{"update_config: {order: start-first}\n    x-wherry: {exclusive: true}", "services.web.deploy.update_config.order: start-first is not possible: the service is exclusive; leave it out"},
		{"rollback_config: {order: start-first}\n    x-wherry: {exclusive: true}", "services.web.deploy.rollback_config.order: start-first is not possible: the service is exclusive; leave it out"},
		{"replicas: 1\n    x-wherry: {progress_deadline: soon}", `services.web.x-wherry.progress_deadline: "soon" is no length of time; write for instance 30m`},
		{"replicas: 1\n    x-wherry: {canary: true}", "services.web.x-wherry.canary: true is no mapping; write for instance canary: {weight: 10%}"},
		{"replicas: 1\n    x-wherry: {canary: {}}", "services.web.x-wherry.canary: give either replicas, a number of tasks, or weight, a share of them"},
		{"replicas: 1\n    x-wherry: {canary: {replicas: 1, weight: 5}}", "services.web.x-wherry.canary: give either replicas"},
		{"replicas: 1\n    x-wherry: {canary: {weight: 100%}}", `services.web.x-wherry.canary.weight: "100%" is no number from 1 to 99; write for instance 10%`},
		{"replicas: 1\n    x-wherry: {canary: {replicas: few}}", `services.web.x-wherry.canary.replicas: "few" is no number from 1 to 10000`},
		{"replicas: 1\n    x-wherry: {canary: {weight: 5, promote: never}}", `services.web.x-wherry.canary.promote: the way "never" does not exist here, want auto or manual`},
		{"replicas: 1\n    x-wherry: {canary: {weight: 5, after: 5m}}", "services.web.x-wherry.canary.after: there is no such key"},
		{"update_config: {failure_action: continue}\n    x-wherry: {canary: {weight: 5}}", "services.web.x-wherry.canary: a canary that fails must not be gone on behind"},
		{"replicas: 1\n    x-wherry: {progress_deadline: 0s}", `services.web.x-wherry.progress_deadline: "0s" is no length of time`},
	} {
		r := loadUpdate(t, "services:\n  web:\n    image: nginx\n    deploy: {"+strings.Replace(tt.deploy, "\n", "}\n", 1)+map[bool]string{true: "", false: "}"}[strings.Contains(tt.deploy, "\n")]+"\n")
		var got []string
		for _, f := range r.Findings {
			if f.Verdict == Refused {
				got = append(got, f.String())
			}
		}
		line := "stack.yml:4:"
		if strings.Contains(tt.want, ".x-wherry.") {
			line = "stack.yml:5:"
		}
		if len(got) != 1 || !strings.Contains(got[0], tt.want) || !strings.Contains(got[0], line) {
			t.Errorf("%s: got %q, want %q", tt.deploy, got, tt.want)
		}
	}
}
