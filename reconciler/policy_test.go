package reconciler

import (
	"testing"
	"time"

	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

func TestPolicyDefaults(t *testing.T) {
	want := policy{parallelism: 1, action: spec.FailureRollback, monitor: 5 * time.Second, deadline: 10 * time.Minute}
	if got := policyOf(&spec.ServiceSpec{}, false); got != want {
		t.Errorf("update: %+v", got)
	}
	want.action = spec.FailurePause
	if got := policyOf(&spec.ServiceSpec{}, true); got != want {
		t.Errorf("rollback: %+v", got)
	}
	s := &spec.ServiceSpec{ProgressDeadline: spec.Duration(time.Hour), Update: spec.UpdateConfig{
		Parallelism: new(0), Delay: 1, FailureAction: spec.FailureContinue, Monitor: 2, MaxFailureRatio: 0.5, Order: spec.StopFirst}}
	want = policy{parallelism: 0, delay: 1, action: spec.FailureContinue, monitor: 2, checked: 2, ratio: 0.5, order: spec.StopFirst, deadline: time.Hour}
	if got := policyOf(s, false); got != want {
		t.Errorf("%+v", got)
	}
}

func TestLength(t *testing.T) {
	for d, want := range map[time.Duration]string{
		10 * time.Minute: "10m", time.Hour: "1h", 90 * time.Second: "1m30s", 20 * time.Second: "20s", 61 * time.Minute: "1h1m",
		time.Hour + time.Second: "1h0m1s", 1500 * time.Millisecond: "1.5s", 100 * time.Minute: "1h40m",
	} {
		if got := length(d); got != want {
			t.Errorf("%s: %q, want %q", d, got, want)
		}
	}
	if got := spaced(5 * time.Second); got != "5 s" {
		t.Error(got)
	}
	if got := spaced(90 * time.Second); got != "1m30s" {
		t.Error(got)
	}
}

// TestRatioIsExact: a share that was written down is not exceeded by the error
// of a multiplication.
func TestRatioIsExact(t *testing.T) {
	for _, tt := range []struct {
		ratio         float64
		failed, total int
		fails         bool
	}{
		{0, 0, 3, false}, {0, 1, 3, true}, {0.29, 29, 100, false}, {0.29, 30, 100, true}, {0.1, 1, 10, false}, {0.1, 2, 10, true}, {1, 3, 3, false},
	} {
		if got := exceeds(tt.failed, tt.total, tt.ratio); got != tt.fails {
			t.Errorf("%d of %d with %v: %t", tt.failed, tt.total, tt.ratio, got)
		}
	}
}

// TestSince: a wait counts from when this leader saw its begin.
func TestSince(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	at := func(m int) time.Time { return now.Add(time.Duration(m) * time.Minute) }
	svc := &spec.Service{Stack: "a", Name: "b"}
	for _, tt := range []struct {
		name              string
		written, led, saw time.Time
		want              time.Time
	}{
		{"its own", at(-5), at(-60), at(-5), at(-5)},
		{"of the leader before", at(-5), at(-1), at(-1), at(-1)},
		{"of one whose clock was ahead", at(30), at(-1), at(-1), at(-1)},
		{"of one whose clock was behind", at(-90), at(-1), at(-1), at(-1)},
		{"not seen yet", at(-5), at(-1), time.Time{}, at(-1)},
		{"not seen yet, from the future", at(5), at(-1), time.Time{}, now},
		{"by itself, before the clock was set back", at(50), at(-60), at(-10), at(-10)},
	} {
		p := newPlanner(store.New().Snapshot(), now)
		p.seen = Seen{Since: tt.led, Stamps: map[Stamp]time.Time{}}
		if !tt.saw.IsZero() {
			p.seen.Stamps[Stamp{svc.Key(), tt.written.UnixNano()}] = tt.saw
		}
		if got := (&pass{planner: p, svc: svc}).since(tt.written); !got.Equal(tt.want) {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}
