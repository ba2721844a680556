package store

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wherry.dev/spec"
)

var update = flag.Bool("update", false, "rewrite the golden snapshot of the present format")

// history fills every table.
func history(t *testing.T) *harness {
	h := planned(t)
	h.must(Command{PutContent: &PutContent{ID: "hmac:01", Size: 5, Data: []byte("hello")}})
	h.must(Command{PutContent: &PutContent{ID: "hmac:02", Size: 9, Data: []byte("half")}})
	s := web("shop", 8080)
	s.Volumes["seeded"] = spec.VolumeSpec{Seed: "hmac:01", Labels: map[string]string{"b": "2", "a": "<&>"}}
	s.Services["all"] = spec.ServiceSpec{Mode: spec.Global, Template: spec.Template{Image: "docker.io/library/busybox:1", Command: []string{}, StopGrace: spec.Duration(10e9)}}
	put := putStack(s)
	put.RequestID, put.PutStack.Message = "r1", "second, with \"quotes\" and ünïcode"
	h.must(put)
	h.apply(Command{RequestID: "r2", RemoveStack: &RemoveStack{Name: "none"}})
	h.mustPart(spec.Part{
		Homes:   []spec.VolumeHome{{Name: "shop_data", Node: "n1"}},
		Volumes: []spec.Volume{{Stack: "shop", Name: "anon", Anonymous: true, Service: "web", Slot: "1", Homes: []spec.NodeID{"n2"}}},
		Service: &spec.ServiceChange{Stack: "shop", Name: "web", Update: &spec.UpdateStatus{State: spec.UpdateCompleted, Since: start}},
	})
	a := h.running("n1", 1, "10.1.0.2/24")
	h.running("n2", 2, "10.1.0.3/24")
	h.must(Command{Reports: &Reports{Reports: []spec.Report{{Node: "n1", Info: &spec.NodeInfo{OS: "linux", Arch: "amd64"}, Tasks: []spec.TaskReport{{
		Task: a, Status: spec.TaskStatus{State: spec.TaskFailed, Attempts: []spec.Attempt{{Number: 1, Ended: start, ExitCode: 137, LastLog: []string{"bye"}}}},
	}}}}}})
	h.must(Command{SetNode: &SetNode{ID: "n2", Availability: ptr(spec.NodePaused), Labels: map[string]*string{"disk": ptr("ssd")}}})
	h.must(Command{SetNodeState: &SetNodeState{ID: "n2", State: spec.NodeDown}})
	h.must(putStack(web("old", 81)))
	h.must(Command{RemoveStack: &RemoveStack{Name: "old"}})
	h.must(Command{RemoveVolumes: &RemoveVolumes{Names: []string{"old_data"}}})
	n := h.s.Snapshot()
	for _, x := range n.tables.list() {
		if x.count(n.read()) == 0 {
			t.Fatalf("the history leaves table %s empty", x.title())
		}
	}
	return h
}

// The snapshots of all formats that ever landed must load. A golden file of a
// landed format is never rewritten; -update is for the one being worked on.
func TestGoldenSnapshot(t *testing.T) {
	const file = "testdata/format1.snapshot"
	if *update {
		if err := os.WriteFile(file, []byte(dump(t, history(t).s.Snapshot())), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	golden, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s := newStore(true)
	if err := s.Restore(bytes.NewReader(golden)); err != nil {
		t.Fatal(err)
	}
	n := s.Snapshot()
	if n.ClusterID() != "c1" || n.Index() == 0 || n.Stack("shop").Revision != 2 || len(n.Tasks()) != 2 || n.Task(n.TasksOn("n1")[0].ID).Status.Attempts[0].ExitCode != 137 {
		t.Errorf("the state was read wrongly:\n%s", dump(t, n))
	}
	if res := s.Apply(n.Index()+1, putStack(web("more", 82))); res.Err != nil {
		t.Errorf("the state cannot be used: %v", res.Err)
	}
	if Format == 1 {
		if d := cmp.Diff(string(golden), dump(t, n)); d != "" {
			t.Errorf("the state persists to other bytes (-golden +got):\n%s", d)
		}
		if d := cmp.Diff(string(golden), dump(t, history(t).s.Snapshot())); d != "" {
			t.Errorf("the same history gives another state (-golden +got):\n%s", d)
		}
	}
}

func TestRestoreReplacesEverything(t *testing.T) {
	h := history(t)
	state := dump(t, h.s.Snapshot())
	other := newHarness(t)
	other.must(putStack(web("theirs", 1)))
	held := other.s.Snapshot()
	if err := other.s.Restore(strings.NewReader(state)); err != nil {
		t.Fatal(err)
	}
	if got := dump(t, other.s.Snapshot()); got != state {
		t.Error(cmp.Diff(state, got))
	}
	if held.Stack("theirs") == nil || other.s.Snapshot().Stack("theirs") != nil {
		t.Error("old and new state are mixed")
	}
	// Both go on alike, identifiers included.
	other.index = h.index
	h.must(putStack(web("next", 99)))
	other.must(putStack(web("next", 99)))
	if d := cmp.Diff(dump(t, h.s.Snapshot()), dump(t, other.s.Snapshot())); d != "" {
		t.Error(d)
	}
}

func TestRestoreRefuses(t *testing.T) {
	state := dump(t, history(t).s.Snapshot())
	lines := strings.SplitAfter(state, "\n")
	swap := func(old, new string) string {
		if !strings.Contains(state, old) {
			t.Fatalf("the state has no %q", old)
		}
		return strings.Replace(state, old, new, 1)
	}
	for name, bad := range map[string]string{
		"empty":         "",
		"format 0":      "\x00" + state[1:],
		"newer format":  "\x02" + state[1:],
		"state format":  swap(`"format":1`, `"format":2`),
		"no format":     swap(`"format":1`, `"format":0`),
		"cut":           state[:len(state)/2],
		"line missing":  strings.Join(lines[:len(lines)-2], ""),
		"row missing":   strings.Join(append(append([]string{}, lines[:2]...), lines[3:]...), ""),
		"behind":        state + "x",
		"unknown table": swap(`{"table":"nodes"`, `{"table":"modes"`),
		"table twice":   swap(`{"table":"nodes"`, `{"table":"tasks"`),
		"unknown field": swap(`"cluster_id"`, `"clutter_id"`),
		"unknown row":   swap(`"availability":`, `"mood":1,"availability":`),
		"bad key":       swap(`{"id":"1-5","stack":"shop"`, `{"id":"one","stack":"shop"`),
		"row twice":     swap(`"id":"n2"`, `"id":"n1"`),
		"name twice":    swap(`"name":"old_default"`, `"name":"shop_default"`),
		"no JSON":       swap(`{"table":"nodes"`, `["table":"nodes"`),
		"many rows":     swap(`{"table":"nodes","rows":2}`, `{"table":"nodes","rows":3}`),
		"few rows":      swap(`{"table":"nodes","rows":2}`, `{"table":"nodes","rows":1}`),
		"negative rows": swap(`{"table":"nodes","rows":2}`, `{"table":"nodes","rows":-1}`),
	} {
		t.Run(name, func(t *testing.T) {
			h := newHarness(t)
			before := dump(t, h.s.Snapshot())
			wantError(t, h.s.Restore(strings.NewReader(bad)), spec.ErrInvalid)
			if dump(t, h.s.Snapshot()) != before {
				t.Error("a failed restore changed the state")
			}
		})
	}
}
