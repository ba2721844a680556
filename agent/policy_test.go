package agent

import (
	"testing"
	"time"

	"wherry.dev/spec"
)

func TestBackoff(t *testing.T) {
	tests := []struct {
		base   time.Duration
		streak int
		mean   time.Duration
	}{
		{0, 0, 0},
		{0, 1, time.Second},
		{0, 2, 2 * time.Second},
		{0, 3, 4 * time.Second},
		{0, 9, 256 * time.Second},
		{0, 10, 300 * time.Second},
		{0, 1000, 300 * time.Second},
		{5 * time.Second, 0, 5 * time.Second},
		{5 * time.Second, 1, 5 * time.Second},
		{5 * time.Second, 2, 10 * time.Second},
		{400 * time.Second, 5, 400 * time.Second},
	}
	for _, tt := range tests {
		var low, high time.Duration
		for n := range uint64(500) {
			d := backoff(spec.TaskID(spec.MakeID(1, n)), tt.base, tt.streak)
			if d != backoff(spec.TaskID(spec.MakeID(1, n)), tt.base, tt.streak) {
				t.Fatal("not the same for the same task")
			}
			if n == 0 || d < low {
				low = d
			}
			high = max(high, d)
		}
		if low < max(tt.mean*8/10, tt.base) || high > tt.mean*12/10 {
			t.Errorf("base %s, streak %d: %s to %s, want %s ± 20 %%, no less than the base", tt.base, tt.streak, low, high, tt.mean)
		}
		if tt.mean > 0 && high-low < tt.mean/10 {
			t.Errorf("base %s, streak %d: %s to %s is hardly spread", tt.base, tt.streak, low, high)
		}
	}
}

// TestEndAttemptWindow: a run that lasted begins the count anew.
func TestEndAttemptWindow(t *testing.T) {
	p := spec.Restart{Condition: spec.RestartAny, MaxAttempts: 2, Window: seconds(20)}
	m := memory{Task: "1-1", Status: spec.TaskStatus{State: spec.TaskRunning}}
	now := t0
	run := func(d time.Duration, code int) {
		m.Status.Started++
		m.Attempt = &attempt{Number: m.Status.Started, Started: now, PID: 1, GoodSince: now}
		now = now.Add(d)
		m = endAttempt(m, ending{code: code, at: now}, false, p, now)
	}
	run(time.Second, 1)
	run(time.Second, 1)
	if m.Restarts != 2 || m.Streak != 2 || m.Outcome != "" {
		t.Fatalf("after two short runs: %+v", m)
	}
	run(20*time.Second, 1)
	if m.Restarts != 1 || m.Streak != 1 || !m.Status.NextStart.Equal(now) || m.Outcome != "" {
		t.Fatalf("after a run that lasted: %+v", m)
	}
	run(time.Second, 1)
	run(time.Second, 1)
	if m.Outcome != spec.TaskFailed || m.OutcomeReason != "exit 1 after 2 restarts" {
		t.Fatalf("after the limit: %+v", m)
	}
	if len(m.Status.Attempts) != spec.KeepAttempts || m.Status.Attempts[0].Number != 1 {
		t.Errorf("attempts: %+v", m.Status.Attempts)
	}
}

// TestFailuresSpread: failures that lie far apart do not end a task.
func TestFailuresSpread(t *testing.T) {
	m := memory{Task: "1-1", Status: spec.TaskStatus{State: spec.TaskRunning}}
	now := t0
	for range 50 {
		m.Attempt = &attempt{Number: 1, Started: now, PID: 1}
		now = now.Add(80 * time.Second)
		if m = endAttempt(m, ending{code: 1, at: now}, false, spec.Restart{Condition: spec.RestartAny}, now); m.Outcome != "" {
			t.Fatalf("ended: %+v", m)
		}
	}
}

func TestDescribe(t *testing.T) {
	tests := []struct {
		e    ending
		want string
	}{
		{ending{code: 3}, "exit 3"},
		{ending{code: 137}, "signal 9 (exit 137)"},
		{ending{code: 137, oom: true}, "out of memory (exit 137)"},
		{ending{code: 127, err: "no such file"}, "no such file"},
		{ending{code: 255}, "exit 255"},
	}
	for _, tt := range tests {
		if got := tt.e.describe(); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.e, got, tt.want)
		}
	}
}

func TestResolveCheck(t *testing.T) {
	image := &spec.HealthCheck{Test: []string{"CMD", "i"}, Interval: seconds(7), Retries: 9}
	tests := []struct {
		name        string
		tmpl, image *spec.HealthCheck
		want        *spec.HealthCheck
	}{
		{"none", nil, nil, nil},
		{"image", nil, image, &spec.HealthCheck{Test: []string{"CMD", "i"}, Interval: seconds(7), Timeout: seconds(30), StartInterval: seconds(5), Retries: 9}},
		{"template", &spec.HealthCheck{Test: []string{"CMD-SHELL", "t"}}, image, &spec.HealthCheck{Test: []string{"CMD-SHELL", "t"}, Interval: seconds(30), Timeout: seconds(30), StartInterval: seconds(5), Retries: 3}},
		{"times", &spec.HealthCheck{Interval: seconds(1)}, image, &spec.HealthCheck{Test: []string{"CMD", "i"}, Interval: seconds(1), Timeout: seconds(30), StartInterval: seconds(5), Retries: 9}},
		{"disabled", &spec.HealthCheck{Test: []string{"NONE"}}, image, nil},
		{"empty command", &spec.HealthCheck{Test: []string{"CMD"}}, nil, nil},
	}
	for _, tt := range tests {
		if got := resolveCheck(tt.tmpl, tt.image); !equalCheck(got, tt.want) {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

func equalCheck(a, b *spec.HealthCheck) bool {
	if a == nil || b == nil {
		return a == b
	}
	if len(a.Test) != len(b.Test) || a.Test[len(a.Test)-1] != b.Test[len(b.Test)-1] {
		return false
	}
	return a.Interval == b.Interval && a.Timeout == b.Timeout && a.StartInterval == b.StartInterval && a.StartPeriod == b.StartPeriod && a.Retries == b.Retries
}

func TestParseSignal(t *testing.T) {
	for s, want := range map[string]int{"SIGTERM": 15, "term": 15, "9": 9, "SIGRTMIN+3": 37, "SIGRTMAX-1": 63, "QUIT": 3, "SIGNOPE": 0, "99": 0, "SIGRTMIN+99": 0, "": 0} {
		got, err := parseSignal(s)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("%q: %d, %v, want %d", s, got, err, want)
		}
	}
}
