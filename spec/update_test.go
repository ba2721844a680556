package spec

import (
	"encoding/json"
	"errors"
	"math"
	"strings"
	"testing"
)

func TestValidateUpdates(t *testing.T) {
	for _, tt := range []struct {
		want string // part of the error; "" when there is none
		do   func(s *ServiceSpec)
	}{
		{"", func(s *ServiceSpec) {
			s.Update = UpdateConfig{Parallelism: new(0), Delay: 1, FailureAction: FailureRollback, Monitor: 1, MaxFailureRatio: 1, Order: StartFirst}
			s.Rollback = UpdateConfig{Parallelism: new(MaxReplicas), FailureAction: FailureContinue, Order: StopFirst}
			s.ProgressDeadline = 1
		}},
		{"services.web.update.parallelism: must be from 0", func(s *ServiceSpec) { s.Update.Parallelism = new(-1) }},
		{"services.web.update.parallelism: must be from 0", func(s *ServiceSpec) { s.Update.Parallelism = new(MaxReplicas + 1) }},
		{"services.web.update.delay:", func(s *ServiceSpec) { s.Update.Delay = -1 }},
		{"services.web.update.monitor:", func(s *ServiceSpec) { s.Update.Monitor = -1 }},
		{"services.web.update.failure_action:", func(s *ServiceSpec) { s.Update.FailureAction = "stop" }},
		{"services.web.rollback.failure_action: \"rollback\" is not one of", func(s *ServiceSpec) { s.Rollback.FailureAction = FailureRollback }},
		{"services.web.update.max_failure_ratio:", func(s *ServiceSpec) { s.Update.MaxFailureRatio = 1.01 }},
		{"services.web.rollback.max_failure_ratio:", func(s *ServiceSpec) { s.Rollback.MaxFailureRatio = math.NaN() }},
		{"services.web.update.order:", func(s *ServiceSpec) { s.Update.Order = "both" }},
		{"services.web.update.order: start-first is not possible: the service is exclusive", func(s *ServiceSpec) {
			s.Template.Exclusive, s.Update.Order = true, StartFirst
		}},
		{"services.web.rollback.order: start-first is not possible: the service has the fixed address 10.0.0.9", func(s *ServiceSpec) {
			s.Template.Networks[0].IP, s.Rollback.Order = "10.0.0.9", StartFirst
		}},
		{"services.web.update.order: start-first is not possible: the service shares the network of service db", func(s *ServiceSpec) {
			s.Template.NetworkMode, s.Template.Networks, s.Ports, s.Update.Order = "service:db", nil, nil, StartFirst
		}},
		{"", func(s *ServiceSpec) { s.Canary = Canary{Weight: 99, Promote: PromoteManual} }},
		{"services.web.canary: must have either", func(s *ServiceSpec) { s.Canary = Canary{Promote: PromoteAuto} }},
		{"services.web.canary: must have either", func(s *ServiceSpec) { s.Canary = Canary{Replicas: 1, Weight: 1} }},
		{"services.web.canary.replicas: must be", func(s *ServiceSpec) { s.Canary = Canary{Replicas: -1} }},
		{"services.web.canary.weight: must be from 1 to 99", func(s *ServiceSpec) { s.Canary = Canary{Weight: 100} }},
		{"services.web.canary.promote:", func(s *ServiceSpec) { s.Canary = Canary{Replicas: 1, Promote: "never"} }},
		{"services.web.canary: is not possible with the failure action continue", func(s *ServiceSpec) {
			s.Canary.Replicas, s.Update.FailureAction = 1, FailureContinue
		}},
		{"services.web.progress_deadline:", func(s *ServiceSpec) { s.ProgressDeadline = -1 }},
	} {
		s := validStack()
		svc := s.Services["web"]
		tt.do(&svc)
		s.Services["web"] = svc
		err := ValidateStack(s)
		if tt.want == "" && err != nil || tt.want != "" && (!errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("want %q, got %v", tt.want, err)
		}
	}
}

func TestApart(t *testing.T) {
	for _, tt := range []struct {
		want string
		do   func(s *ServiceSpec)
	}{
		{"", func(*ServiceSpec) {}},
		{"", func(s *ServiceSpec) { s.Ports = []Port{{Target: 80, Mode: PublishIngress}} }},
		{"", func(s *ServiceSpec) { s.Template.Mounts = []Mount{{Type: MountVolume, Target: "/cache"}} }},
		{"", func(s *ServiceSpec) { s.Template.NetworkMode = "none" }},
		{"the service has volume data", func(s *ServiceSpec) { s.Template.Mounts = []Mount{{Type: MountVolume, Source: "data"}} }},
		{"the service has a port of its node", func(s *ServiceSpec) { s.Ports = []Port{{Target: 80, Mode: PublishHost}} }},
		{"the service uses the network of its node", func(s *ServiceSpec) { s.Template.NetworkMode = "host" }},
		{"the service has the fixed address fd00::9", func(s *ServiceSpec) { s.Template.Networks = []Attachment{{Network: "n", IP6: "fd00::9"}} }},
		{"the service is exclusive", func(s *ServiceSpec) { s.Template.Exclusive = true }},
	} {
		var s ServiceSpec
		tt.do(&s)
		if got := s.Apart(); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

// A service that says nothing of its updates is stored as it always was.
func TestNoPolicyIsNotWritten(t *testing.T) {
	b, err := json.Marshal(&ServiceSpec{Mode: Replicated})
	if err != nil || strings.Contains(string(b), "update") || strings.Contains(string(b), "rollback") || strings.Contains(string(b), "deadline") {
		t.Errorf("%s, %v", b, err)
	}
}

func TestCanaryOf(t *testing.T) {
	for _, tt := range []struct {
		canary      Canary
		tasks, want int
	}{
		{Canary{}, 10, 0},
		{Canary{Replicas: 3}, 10, 3},
		{Canary{Replicas: 30}, 10, 9}, // never all
		{Canary{Weight: 1}, 10, 1},    // rounded up
		{Canary{Weight: 20}, 10, 2},
		{Canary{Weight: 21}, 10, 3},
		{Canary{Weight: 99}, 10, 9},
		{Canary{Weight: 99}, 1, 0},
		{Canary{Replicas: 1}, 0, 0},
	} {
		if got := tt.canary.Of(tt.tasks); got != tt.want {
			t.Errorf("%+v of %d tasks is %d, want %d", tt.canary, tt.tasks, got, tt.want)
		}
	}
}
