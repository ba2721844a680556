package server

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"wherry.dev/spec"
)

// TestReportBounds: a node cannot fill the state, and what it may say passes
// as it is.
func TestReportBounds(t *testing.T) {
	w, task := running(t)
	report := func(s spec.TaskStatus, ports []spec.PortStatus) (*spec.Task, []spec.PortStatus) {
		t.Helper()
		rep := spec.Report{Node: testNode, Tasks: []spec.TaskReport{{Task: task.ID, Status: s}}, Ports: &ports}
		if err := w.node.Report(t.Context(), rep); err != nil {
			t.Fatal(err)
		}
		return w.store.Snapshot().Task(task.ID), *w.store.Snapshot().Node(testNode).Ports
	}
	status := func(attempts, lines, line, text int) spec.TaskStatus {
		s := spec.TaskStatus{State: spec.TaskRunning, Since: w.store.Snapshot().Task(task.ID).Status.Since, Health: spec.HealthHealthy, Reason: strings.Repeat("é", text/2)}
		for i := range attempts {
			a := spec.Attempt{Number: i + 1, Error: strings.Repeat("x", text)}
			for range lines {
				a.LastLog = append(a.LastLog, strings.Repeat("y", line))
			}
			s.Attempts = append(s.Attempts, a)
		}
		return s
	}
	ports := func(n, problem int) (out []spec.PortStatus) {
		for i := range n {
			out = append(out, spec.PortStatus{Port: uint16(i + 1), Protocol: "tcp", Owner: "shop/web", Problem: strings.Repeat("p", problem)})
		}
		return out
	}
	in, inPorts := status(5, 5, 200, 1024), ports(4096, 0)
	if got, p := report(in, inPorts); !reflect.DeepEqual(got.Status, in) || !slices.Equal(p, inPorts) {
		t.Errorf("changed on the way: %+v", got.Status)
	}
	got, p := report(status(9, 50, 5000, 5000), ports(5000, 5000))
	s := got.Status
	if len(s.Reason) > 1024 || !strings.HasSuffix(s.Reason, "é…") || len(s.Attempts) != 5 || s.Attempts[4].Number != 9 ||
		len(s.Attempts[0].Error) != 1024 || len(s.Attempts[0].LastLog) != 5 || len(s.Attempts[0].LastLog[0]) != 200 {
		t.Errorf("status: %+v", s)
	}
	if len(p) != 4096 || len(p[0].Problem) != 1024 {
		t.Errorf("%d ports, the first with %d bytes", len(p), len(p[0].Problem))
	}
	before := w.store.Snapshot().Node(testNode).Info
	err := w.node.Report(t.Context(), spec.Report{Node: testNode, Info: &spec.NodeInfo{Kernel: strings.Repeat("k", 257)}})
	if want := fmt.Sprintf("report of node %s: info.kernel has 257 bytes, more than 256", testNode); !errors.Is(err, spec.ErrInvalid) || !strings.Contains(err.Error(), want) {
		t.Errorf("long info: %v, want %q", err, want)
	}
	err = w.node.Report(t.Context(), spec.Report{Node: testNode, Info: &spec.NodeInfo{Subnets: strings.Repeat("1", 4097)}})
	if !errors.Is(err, spec.ErrInvalid) || !strings.Contains(err.Error(), "info.subnets has 4097 bytes, more than 4096") {
		t.Errorf("long subnets: %v", err)
	}
	if after := w.store.Snapshot().Node(testNode).Info; after != before {
		t.Errorf("info: %+v", after)
	}
}
