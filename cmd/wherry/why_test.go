package main

import (
	"bytes"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wherry.dev/spec"
)

func TestWriteWhy(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	services := []spec.ServiceWhy{
		{Stack: "shop", Service: "app", State: "updating", Message: "shop.app.1: waits for service db to be healthy", Desired: 1, Tasks: []spec.TaskWhy{{
			Name: "shop.app.1", ID: "1-3", State: spec.TaskPending, Since: now.Add(-time.Minute), Verdict: spec.VerdictWaiting, Message: "shop.app.1: waits for service db to be healthy",
			Waits: []spec.TaskWait{{Service: "db", Condition: spec.DependencyHealthy, Message: "shop.db.1 is unhealthy"}},
		}}},
		{Stack: "shop", Service: "db", State: "failed", Message: "deployment paused", Desired: 1, Tasks: []spec.TaskWhy{{
			Name: "shop.db.1", ID: "1-4", Node: "n1", State: spec.TaskStarting, Since: now.Add(-time.Hour), Verdict: spec.VerdictBackOff, Message: "shop.db.1: exit 137",
			Until: now.Add(7 * time.Second),
			Ends: []spec.AttemptEnd{
				{ID: "1-4", Node: "n1", Attempt: spec.Attempt{Started: now.Add(-12 * time.Second), Ended: now.Add(-10 * time.Second), ExitCode: 137, Signal: 9, OOM: true, LastLog: []string{"one", "two"}}},
				{ID: "1-4", Node: "n1", Attempt: spec.Attempt{Ended: now.Add(-5 * time.Second), ExitCode: -1, Error: "no such image"}},
			},
		}}},
		{Stack: "shop", Service: "web", State: "degraded", Message: "shop.web.2 cannot be placed", Running: 1, Desired: 2, Tasks: []spec.TaskWhy{{
			Name: "shop.web.2", ID: "1-5", State: spec.TaskPending, Since: now, Verdict: spec.VerdictPending, Message: "shop.web.2 cannot be placed",
			Refusals: []spec.Refusal{{Reason: "not enough memory", Nodes: []string{"n1", "n2", "n3", "n4", "n5", "n6", "n7"}}, {Reason: "drained", Nodes: []string{"n8"}}},
			Nearest:  &spec.NearMiss{Node: "n2", Needs: []string{"frees 200 MiB of memory"}},
		}}},
		{Stack: "shop", Service: "well", State: "running", Running: 3, Desired: 3, Tasks: []spec.TaskWhy{}},
	}
	var got bytes.Buffer
	writeWhy(&got, services, now)
	want := `shop/app is updating, 0 of 1 task
  shop.app.1: waits for service db to be healthy
    task 1-3, pending for 1m
    waits for db: shop.db.1 is unhealthy
shop/db is failed, 0 of 1 task
  deployment paused
  shop.db.1: exit 137
    task 1-4 on n1, starting for 1h
    the next attempt is in 8s, at ` + now.Add(7*time.Second).Local().Format("15:04:05") + `
    10s ago on n1, task 1-4: exit 137, signal 9, out of memory after 2s
      | one
      | two
    5s ago on n1, task 1-4: no such image
shop/web is degraded, 1 of 2 tasks
  shop.web.2 cannot be placed
    task 1-5, pending for 0s
    7 nodes: not enough memory (n1, n2, n3, n4, n5 and 2 more)
    1 node: drained (n8)
    fits if n2 frees 200 MiB of memory
`
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Error(diff)
	}
	got.Reset()
	writeWhy(&got, services[3:], now)
	if got.String() != "all is as it ought to be: 1 service, 3 tasks\n" {
		t.Error(got.String())
	}
}
