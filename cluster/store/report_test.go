package store

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wherry.dev/spec"
)

func TestReportStates(t *testing.T) {
	h := planned(t)
	id := h.running("n1", 1, "10.1.0.2/24")
	n := h.s.Snapshot()
	task, svc := n.Task(id), n.Service("shop", "web")
	for _, tc := range []struct {
		node  spec.NodeID
		id    spec.TaskID
		state spec.TaskState
	}{
		{"n1", "9-9", spec.TaskRunning}, // no such task
		{"n1", "odd", spec.TaskRunning}, // no ID at all
		{"n2", id, spec.TaskFailed},     // another node's
		{"x", id, spec.TaskFailed},      // no such node
		{"n1", id, spec.TaskStarting},   // backward
		{"n1", id, ""},                  // no state
		{"n1", id, "odd"},               // unknown
		{"n1", id, spec.TaskRunning},    // nothing new
	} {
		if h.report(tc.node, tc.id, tc.state).Changed {
			t.Errorf("%+v was not ignored", tc)
		}
	}
	attempts := make([]spec.Attempt, 8)
	for i := range attempts {
		attempts[i] = spec.Attempt{Number: i + 1, Ended: start}
	}
	h.must(Command{Reports: &Reports{Reports: []spec.Report{{Node: "n1", Tasks: []spec.TaskReport{{
		Task: id, Status: spec.TaskStatus{State: spec.TaskRunning, Health: spec.HealthHealthy, PID: 7, Attempts: attempts},
	}}}}}})
	n = h.s.Snapshot()
	got := n.Task(id)
	if got.Status.PID != 7 || got.Status.Since != task.Status.Since || len(got.Status.Attempts) != spec.KeepAttempts || got.Status.Attempts[0].Number != 4 {
		t.Errorf("status %+v", got.Status)
	}
	if got.Version != task.Version || n.Service("shop", "web") != svc {
		t.Error("a report moved a version")
	}
	h.report("n1", id, spec.TaskFailed)
	failed := h.s.Snapshot().Task(id)
	if want := start.Add(time.Duration(h.index) * time.Second); failed.Status.Since != want {
		t.Errorf("failed since %v, want %v", failed.Status.Since, want)
	}
	if h.report("n1", id, spec.TaskStopped).Changed || h.report("n1", id, spec.TaskFailed).Changed {
		t.Error("what is over goes on")
	}
	if got := h.kinds(); got != "node.joined node.joined stack.applied task.failed" {
		t.Errorf("events %q", got)
	}
}

func TestReportInfo(t *testing.T) {
	h := newHarness(t)
	report := func() Result {
		return h.must(Command{Reports: &Reports{Reports: []spec.Report{{Node: "n1", Info: &spec.NodeInfo{OS: "linux", Memory: 1 << 30}}}}})
	}
	before := h.s.Snapshot().Node("n1")
	if !report().Changed || report().Changed {
		t.Error("want one change")
	}
	if got := h.s.Snapshot().Node("n1"); got.Info.Memory != 1<<30 || got.Version != before.Version {
		t.Errorf("node %+v", got)
	}
}

func TestReportPorts(t *testing.T) {
	h := newHarness(t)
	served := spec.PortStatus{Port: 80, Protocol: "tcp", Owner: "shop/web"}
	refused := served
	refused.Problem = "port 80/tcp is in use by nginx (pid 7)"
	version := h.s.Snapshot().Node("n1").Version
	for _, tc := range []struct {
		name    string
		node    spec.NodeID
		ports   *[]spec.PortStatus
		changed bool
		want    *[]spec.PortStatus
	}{
		{"not told", "n1", nil, false, nil},
		{"none", "n1", &[]spec.PortStatus{}, true, &[]spec.PortStatus{}},
		{"none again", "n1", ptr([]spec.PortStatus(nil)), false, &[]spec.PortStatus{}},
		{"refused", "n1", &[]spec.PortStatus{refused}, true, &[]spec.PortStatus{refused}},
		{"as before", "n1", nil, false, &[]spec.PortStatus{refused}},
		{"repeated", "n1", &[]spec.PortStatus{refused}, false, &[]spec.PortStatus{refused}},
		{"no such node", "x", &[]spec.PortStatus{served}, false, &[]spec.PortStatus{refused}},
		{"served", "n1", &[]spec.PortStatus{served}, true, &[]spec.PortStatus{served}},
		{"gone", "n1", &[]spec.PortStatus{}, true, &[]spec.PortStatus{}},
	} {
		res := h.must(Command{Reports: &Reports{Reports: []spec.Report{{Node: tc.node, Ports: tc.ports}}}})
		got := h.s.Snapshot().Node("n1")
		if res.Changed != tc.changed {
			t.Errorf("%s: changed %v", tc.name, res.Changed)
		}
		if d := cmp.Diff(tc.want, got.Ports); d != "" {
			t.Errorf("%s (-want +got):\n%s", tc.name, d)
		}
		if got.Version != version {
			t.Errorf("%s: a report moved the version", tc.name)
		}
		restored := New()
		state := dump(t, h.s.Snapshot())
		if err := restored.Restore(strings.NewReader(state)); err != nil {
			t.Fatalf("%s: %v", tc.name, err)
		}
		if d := cmp.Diff(tc.want, restored.Snapshot().Node("n1").Ports); d != "" || dump(t, restored.Snapshot()) != state {
			t.Errorf("%s: restored otherwise (-want +got):\n%s", tc.name, d)
		}
	}
}
