package agent_test

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"wherry.dev/spec"
)

func seconds(n int) spec.Duration { return spec.Duration(time.Duration(n) * time.Second) }

func TestHealthCheck(t *testing.T) {
	bubble(t, forever, func(n *node) {
		n.template.Health = &spec.HealthCheck{
			Test: []string{"CMD-SHELL", "curl -f localhost"}, Interval: seconds(10), Timeout: seconds(2), Retries: 3,
			StartPeriod: seconds(20), StartInterval: seconds(5),
		}
		const output = "starting\nconnection refused\n"
		var code atomic.Int64
		var args atomic.Value
		code.Store(1)
		n.host.OnExec = func(_ context.Context, _ spec.TaskID, a []string) (string, int, error) {
			args.Store(a)
			return output, int(code.Load()), nil
		}
		n.want(spec.DesiredRunning)
		settle(11 * time.Second)
		if s := n.status(); s.State != spec.TaskRunning || s.Health != spec.HealthStarting || s.Reason != "health check does not pass yet: connection refused" {
			t.Errorf("in the start period: %+v", s)
		}
		if args := args.Load().([]string); !slices.Equal(args, []string{"/bin/sh", "-c", "curl -f localhost"}) {
			t.Errorf("command: %q", args)
		}
		code.Store(0)
		settle(5 * time.Second)
		since := n.status().HealthySince
		if s := n.status(); s.Health != spec.HealthHealthy || s.Reason != "" || since.IsZero() || time.Since(since) > 5*time.Second {
			t.Errorf("after success: %+v", s)
		}
		code.Store(1)
		settle(20 * time.Second) // two failures
		if s := n.status(); s.Health != spec.HealthHealthy || s.Reason != "health check failed 2 times: connection refused" || s.PID == 0 || !s.HealthySince.Equal(since) {
			t.Errorf("after two failures: %+v", s)
		}
		code.Store(0)
		settle(10 * time.Second)
		code.Store(1)
		settle(30500 * time.Millisecond)
		s := n.status()
		if len(s.Attempts) != 1 || s.Attempts[0].Error != "health check failed 3 times: connection refused" || s.Attempts[0].Signal != 15 {
			t.Errorf("after three failures: %+v", s)
		}
		if k := n.host.Kills(task); !slices.Equal(k, []int{15}) {
			t.Errorf("signals: %v", k)
		}
		settle(10 * time.Second)
		if s := n.status(); s.Started != 2 || s.Health != spec.HealthStarting || !s.HealthySince.IsZero() {
			t.Errorf("the next attempt: %+v", s)
		}
	})
}

func TestHealthCheckTimeout(t *testing.T) {
	bubble(t, "trap 'exit 0' TERM; "+forever, func(n *node) {
		n.template.Restart.Condition = spec.RestartOnFailure
		n.template.Health = &spec.HealthCheck{Test: []string{"CMD", "probe"}, Interval: seconds(1), Timeout: seconds(2), Retries: 1}
		n.host.OnExec = func(ctx context.Context, _ spec.TaskID, _ []string) (string, int, error) {
			<-ctx.Done()
			return "", 0, ctx.Err()
		}
		n.want(spec.DesiredRunning)
		settle(3500 * time.Millisecond)
		s := n.status()
		// An end with status 0 is a failure all the same.
		if len(s.Attempts) != 1 || s.Attempts[0].ExitCode != 0 || s.Attempts[0].Error != "health check failed once: no answer within 2s" || !s.Attempts[0].Failed() {
			t.Errorf("status: %+v", s)
		}
		if s.Started != 2 {
			t.Errorf("status: %+v", s)
		}
	})
}

func TestHealthCheckErrors(t *testing.T) {
	tests := []struct {
		name    string
		err     error
		counted bool
	}{
		{"no such command", spec.Invalidf("exec: \"probe\": not found"), true},
		{"runtime away", spec.Unavailablef("no connection to the runtime"), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, forever, func(n *node) {
				n.template.Health = &spec.HealthCheck{Test: []string{"CMD", "probe"}, Interval: seconds(1), Timeout: seconds(2), Retries: 2}
				n.host.OnExec = func(context.Context, spec.TaskID, []string) (string, int, error) { return "", 0, tt.err }
				n.want(spec.DesiredRunning)
				settle(2500 * time.Millisecond)
				s := n.status()
				if counted := len(s.Attempts) == 1 && strings.Contains(s.Attempts[0].Error, tt.err.Error()); counted != tt.counted {
					t.Errorf("status: %+v", s)
				}
			})
		})
	}
}

func TestImageHealthCheck(t *testing.T) {
	for _, disabled := range []bool{false, true} {
		bubble(t, forever, func(n *node) {
			n.host.Image.Health = &spec.HealthCheck{Test: []string{"CMD", "probe"}, Interval: seconds(7)}
			want := spec.HealthHealthy
			if disabled {
				n.template.Health = &spec.HealthCheck{Test: []string{"NONE"}}
				want = spec.HealthNone
			}
			n.want(spec.DesiredRunning)
			settle(8 * time.Second)
			if s := n.status(); s.Health != want {
				t.Errorf("disabled %v: %+v", disabled, s)
			}
		})
	}
}
