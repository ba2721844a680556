package store

import (
	"errors"
	"testing"

	"wherry.dev/spec"
)

// TestRunJob: a job is run once more by a number that its tasks carry; what is no
// job is not.
func TestRunJob(t *testing.T) {
	h := newHarness(t)
	h.must(putStack(edit(webAndDB(), "db", func(s *spec.ServiceSpec) { s.Mode = spec.ReplicatedJob })))
	run := func(service string) error {
		return h.apply(Command{SteerService: &SteerService{Stack: "shop", Service: service, Action: SteerRun}}).Err
	}
	if err := run("web"); !errors.Is(err, spec.ErrInvalid) {
		t.Errorf("web was run: %v", err)
	}
	before := h.s.Snapshot().Service("shop", "db")
	if err := run("db"); err != nil {
		t.Fatal(err)
	}
	if now := h.s.Snapshot().Service("shop", "db"); now.Restarts != before.Restarts+1 || now.Rollout == before.Rollout || now.Revision != before.Revision {
		t.Errorf("%+v", now)
	}
}

// TestRestartAfter: who asks for it is restarted when what it depends on changes
// or is restarted, and by nothing else.
func TestRestartAfter(t *testing.T) {
	h := newHarness(t)
	stack := func(db, web string, replicas int) spec.Stack {
		s := edit(webAndDB(), "web", func(s *spec.ServiceSpec) {
			s.Template.Image = web
			s.DependsOn = []spec.Dependency{{Service: "db", Condition: spec.DependencyStarted, Restart: true}}
		})
		return edit(s, "db", func(s *spec.ServiceSpec) { s.Template.Image, s.Replicas = db, &replicas })
	}
	want := 0
	check := func(what string) {
		t.Helper()
		if web := h.s.Snapshot().Service("shop", "web"); web.Restarts != want {
			t.Errorf("%s: %d restarts, want %d", what, web.Restarts, want)
		}
	}
	h.must(putStack(stack("db:1", "web:1", 1)))
	check("first")
	h.must(putStack(stack("db:1", "web:2", 2)))
	check("another image of its own, another number there")
	h.must(putStack(stack("db:2", "web:2", 2)))
	want++
	check("another image there")
	h.must(Command{SteerService: &SteerService{Stack: "shop", Service: "db", Action: SteerRestart}})
	want++
	check("a restart there")
}
