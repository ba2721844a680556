package store

import (
	"bytes"
	"flag"
	"fmt"
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
	s.Networks["six"] = spec.NetworkSpec{Driver: spec.DriverOverlay, Pool: spec.Pool{Subnet: "10.7.0.0/16", Range: "10.7.1.0/24", Gateway: "10.7.0.9", Reserved: []string{"10.7.1.1"}}, IPv6: &spec.Pool{}}
	s.Services["all"] = spec.ServiceSpec{Mode: spec.Global, EndpointMode: spec.EndpointDNSRR, Template: spec.Template{Image: "docker.io/library/busybox:1", Command: []string{}, StopGrace: spec.Duration(10e9)}}
	h.secret("key", "hmac:shared")
	h.must(Command{Author: "ann", PutDatum: &PutDatum{Kind: spec.DatumSecret, Name: "shared", Content: "sealed:key", Size: 3, Labels: map[string]string{"a": "b"}}})
	s.Secrets = map[string]spec.DatumSpec{"shared": {External: true}, "own": {Content: "sealed:key", Size: 3}}
	s.Configs = map[string]spec.DatumSpec{"conf": {Content: "hmac:shared", Size: 3, Render: true}}
	data := s.Services["web"]
	data.Template.Mounts = append(data.Template.Mounts, spec.Mount{Type: spec.MountSecret, Source: "shared", Target: "/run/secrets/shared", OnChange: spec.SignalOnChange("SIGHUP")},
		spec.Mount{Type: spec.MountConfig, Source: "conf", Target: "/conf", Mode: ptr(uint32(0o400))})
	data.Template.SecretEnv = []spec.SecretVar{{Name: "OWN", Source: "own"}}
	s.Services["web"] = data
	put := putStack(s)
	put.RequestID, put.PutStack.Message = "r1", "second, with \"quotes\" and ünïcode"
	h.must(put)
	h.apply(Command{RequestID: "r2", RemoveStack: &RemoveStack{Name: "none"}})
	h.mustPart(spec.Part{
		Homes:   []spec.VolumeHome{{Name: "shop_data", Node: "n1"}},
		Volumes: []spec.Volume{{Stack: "shop", Name: "anon", Anonymous: true, Service: "web", Slot: "1", Homes: []spec.NodeID{"n2"}}},
		Service: &spec.ServiceChange{Stack: "shop", Name: "web", Update: &spec.UpdateStatus{State: spec.UpdateCompleted, Since: start},
			VIPs: &[]spec.ServiceVIP{{Network: h.s.Snapshot().NetworkNamed("shop_default").ID, Address: "10.1.0.9"}}},
	})
	svc := h.s.Snapshot().Service("shop", "web")
	h.mustPart(spec.Part{
		Service: &spec.ServiceChange{Stack: "shop", Name: "web", Update: &spec.UpdateStatus{State: spec.UpdatePaused, Message: "why", Since: start, Rollout: svc.Rollout,
			From: "a", To: "b", Rollback: 1, Log: "bye", Done: 1, Progress: start, Batches: 2, Rests: start}},
		Stack: &spec.StackChange{Name: "shop", Revision: 2, State: spec.RevisionPaused, Why: "why", Log: "bye", Ports: map[string][]spec.Port{"web": {{Published: 30000, Target: 80, Protocol: "tcp", Mode: spec.PublishIngress}}}},
	})
	a := h.running("n1", 1, "10.1.0.2/24")
	h.running("n2", 2, "10.1.0.3/24")
	h.must(Command{Reports: &Reports{Reports: []spec.Report{{Node: "n1", Info: &spec.NodeInfo{OS: "linux", Arch: "amd64", MTU: 1450, Subnets: "10.0.0.0/16", Interfaces: "eth0 eth1"}, Tasks: []spec.TaskReport{{
		Task: a, Status: spec.TaskStatus{State: spec.TaskFailed, Files: map[spec.DatumKey]spec.ContentID{"secret shared": "sealed:key"}, Attempts: []spec.Attempt{{Number: 1, Ended: start, ExitCode: 137, LastLog: []string{"bye"}}}},
	}}}}}})
	h.must(Command{SetNode: &SetNode{ID: "n2", Availability: ptr(spec.NodePaused), Labels: map[string]*string{"disk": ptr("ssd")}}})
	h.must(Command{SetNodeState: &SetNodeState{ID: "n2", State: spec.NodeDown}})
	h.must(Command{PutNode: &PutNode{ID: "n4", Name: "delta", Address: "10.0.0.4:4477", Role: spec.RoleWorker, Key: "abcd"}})
	h.must(Command{SetNode: &SetNode{ID: "n4", Availability: ptr(spec.NodeDrain), StopPinned: true}})
	h.must(Command{SetAuthority: &SetAuthority{Authority: authority("r1", "r2")}})
	h.must(putStack(web("old", 81)))
	h.must(Command{RemoveStack: &RemoveStack{Name: "old"}})
	h.must(Command{RemoveVolumes: &RemoveVolumes{Names: []string{"old_data"}}})
	six := h.s.Snapshot().NetworkNamed("shop_six").ID
	task := h.task("n1", 3, "10.1.0.4/24")
	task.Addresses = append(task.Addresses, spec.Address{Network: six, IP: "10.7.1.2/16", IP6: "fd00::2/64", MAC: "02:58:0a:07:01:02"})
	h.mustPart(spec.Part{
		Networks: []spec.NetworkNumbers{{ID: six, Subnet: "10.7.0.0/16", Gateway: "10.7.0.9", VNI: 9, Subnet6: "fd00::/64", Gateway6: "fd00::1"}},
		Create:   []spec.Task{task},
		Service:  &spec.ServiceChange{Stack: "shop", Name: "all", VIPs: &[]spec.ServiceVIP{{Network: six, Address: "10.7.1.3", Address6: "fd00::3"}}},
	})
	h.must(Command{Author: "ann", SteerService: &SteerService{Stack: "shop", Service: "all", Action: SteerPause}})
	h.must(Command{Author: "ann", SteerService: &SteerService{Stack: "shop", Service: "web", Action: SteerRestart}})
	n := h.s.Snapshot()
	for _, x := range n.tables.list() {
		if x.count(n.read()) == 0 {
			t.Fatalf("the history leaves table %s empty", x.title())
		}
	}
	return h
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// The snapshots of all formats that ever landed must load, be written back as
// they are, and take the next format. A golden file of a landed format is never
// rewritten; -update is for the one being worked on.
func TestGoldenSnapshots(t *testing.T) {
	for format := 1; format <= Format; format++ {
		t.Run(fmt.Sprint("format", format), func(t *testing.T) {
			file := fmt.Sprintf("testdata/format%d.snapshot", format)
			if *update && format == Format {
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
			if n.ClusterID() != "c1" || n.Index() == 0 || n.Stack("shop").Revision != 2 || len(n.Tasks()) != 2+b2i(format >= 4) || n.Format() != format ||
				n.Task(n.TasksOn("n1")[0].ID).Status.Attempts[0].ExitCode != 137 || (n.Authority() != nil) != (format >= 2) ||
				len(n.Service("shop", "web").VIPs) != min(1, max(0, format-2)) || n.Node("n1").Info.MTU != 1450*min(1, max(0, format-2)) ||
				format >= 4 && (n.NetworkNamed("shop_six").Subnet6 == "" || n.TasksAt(n.NetworkNamed("shop_six").ID)[0].Addresses[1].IP6 == "") ||
				(n.Datum(spec.DatumSecret, "shared") != nil) != (format >= 4) {
				t.Errorf("the state was read wrongly:\n%s", dump(t, n))
			}
			if d := cmp.Diff(string(golden), dump(t, n)); d != "" {
				t.Errorf("the state persists to other bytes (-golden +got):\n%s", d)
			}
			if format == Format {
				if d := cmp.Diff(string(golden), dump(t, history(t).s.Snapshot())); d != "" {
					t.Errorf("the same history gives another state (-golden +got):\n%s", d)
				}
			}
			h := &harness{TB: t, s: s, index: n.Index()}
			h.must(putStack(web("more", 82)))
			h.must(Command{Bootstrap: &Bootstrap{ClusterID: "c1", Incarnation: n.Incarnation(), Format: Format}})
			h.must(Command{SetNodeState: &SetNodeState{ID: "n2", State: spec.NodeReady}})
			h.must(Command{SetRole: &SetRole{ID: "n2", Role: spec.RoleManager}})
			h.mustPart(vips("more", spec.ServiceVIP{Network: h.s.Snapshot().NetworkNamed("more_default").ID, Address: "10.2.0.9"}))
			again := newStore(true)
			if err := again.Restore(strings.NewReader(dump(t, s.Snapshot()))); err != nil {
				t.Errorf("the raised state does not load: %v", err)
			}
		})
	}
}

// A state of an old format takes what a program of that format would have
// taken, and is written so that it could read it.
func TestFormatRatchet(t *testing.T) {
	h := &harness{TB: t, s: newStore(true)}
	h.must(Command{Bootstrap: &Bootstrap{ClusterID: "c1", Incarnation: 1, Format: 1}})
	h.must(Command{PutNode: &PutNode{ID: "n1", Name: "alpha", Role: spec.RoleManager}})
	h.must(Command{PutNode: &PutNode{ID: "n2", Name: "beta", Role: spec.RoleManager}})
	h.must(Command{SetNodeState: &SetNodeState{ID: "n2", State: spec.NodeDown}})
	exclusive := edit(web("shop", 80), "web", func(s *spec.ServiceSpec) { s.Template.Exclusive = true })
	told := func(id spec.NodeID, format int) Command {
		return Command{Reports: &Reports{Reports: []spec.Report{{Node: id, Info: &spec.NodeInfo{OS: "linux", Format: format}}}}}
	}
	newer := []Command{
		{SetRole: &SetRole{ID: "n2", Role: spec.RoleWorker}},
		{RemoveNode: &RemoveNode{ID: "n2"}},
		{SetAuthority: &SetAuthority{Authority: authority("r1")}},
		{PutNode: &PutNode{ID: "n1", Name: "alpha", Role: spec.RoleManager, Key: "k"}},
		{PutNode: &PutNode{ID: "n1", Name: "alpha"}},
		{SetNode: &SetNode{ID: "n1", Availability: ptr(spec.NodeDrain), StopPinned: true}},
		putStack(exclusive),
		told("n1", 2),
	}
	newest := []Command{
		putStack(edit(web("shop", 80), "web", func(s *spec.ServiceSpec) { s.EndpointMode = spec.EndpointDNSRR })),
		{ApplyPlan: &ApplyPlan{Parts: []spec.Part{vips("shop")}}},
		{Reports: &Reports{Reports: []spec.Report{{Node: "n1", Info: &spec.NodeInfo{OS: "linux", Format: 3, MTU: 1450}}}}},
	}
	six := web("six", 81)
	six.Networks["six"] = spec.NetworkSpec{Driver: spec.DriverOverlay, IPv6: &spec.Pool{}}
	gives := func(p spec.Part) Command { return Command{ApplyPlan: &ApplyPlan{Epoch: 1, Parts: []spec.Part{p}}} }
	address := []spec.Address{{Network: "1-1", IP: "10.1.0.9/24", IP6: "fd00::9/64"}}
	latest := []Command{
		putStack(six),
		putStack(edit(web("shop", 80), "web", func(s *spec.ServiceSpec) {
			s.Ports[0].Published, s.Ports[0].First, s.Ports[0].Last = 0, 80, 90
		})),
		putStack(edit(web("shop", 80), "web", func(s *spec.ServiceSpec) {
			s.Template.Networks = []spec.Attachment{{Network: "default", IP: "10.1.0.8"}}
		})),
		{Reports: &Reports{Reports: []spec.Report{{Node: "n1", Info: &spec.NodeInfo{OS: "linux", Format: 4, Subnets: "10.0.0.0/16"}}}}},
		{Reports: &Reports{Reports: []spec.Report{{Node: "n1", Info: &spec.NodeInfo{OS: "linux", Format: 4, Interfaces: "eth0"}}}}},
		putStack(attached("small", spec.NetworkSpec{Driver: spec.DriverOverlay, MTU: 1400}, spec.Attachment{})),
		putStack(attached("mac", spec.NetworkSpec{Driver: spec.DriverOverlay}, spec.Attachment{MAC: "0a:00:00:00:00:01"})),
		putStack(attached("named", spec.NetworkSpec{Driver: spec.DriverOverlay}, spec.Attachment{Interface: "lan0"})),
		putStack(attached("hidden", spec.NetworkSpec{Driver: spec.DriverOverlay}, spec.Attachment{NoServiceName: true})),
		{Reports: &Reports{Reports: []spec.Report{{Node: "n1", Tasks: []spec.TaskReport{{Task: "1-1", Status: spec.TaskStatus{Files: map[spec.DatumKey]spec.ContentID{"secret a": "x"}}}}}}}},
		{PutContent: &PutContent{ID: "sealed:key", Size: 1, Data: []byte("x")}},
		{PutDatum: &PutDatum{Kind: spec.DatumSecret, Name: "key", Content: "sealed:key"}},
		{RemoveDatum: &RemoveDatum{Kind: spec.DatumSecret, Name: "key"}},
		putStack(withSecret(web("shop", 80), spec.DatumSpec{Content: "sealed:key"}, "")),
		putStack(edit(web("shop", 80), "web", func(s *spec.ServiceSpec) { s.Ports[0].HostIP = "0.0.0.0" })),
	}
	for _, p := range []spec.Part{
		{Create: []spec.Task{{Addresses: []spec.Address{{Network: "1-1", IP: "10.1.0.9/24", Interface: "lan0"}}}}},
		{Networks: []spec.NetworkNumbers{{ID: "1-1", Subnet6: "fd00::/64"}}}, {Create: []spec.Task{{Addresses: address}}},
		{Change: []spec.TaskChange{{Task: "1-9", Addresses: address}}}, vips("shop", spec.ServiceVIP{Network: "1-1", Address: "10.1.0.9", Address6: "fd00::9"}),
	} {
		if c := gives(p); c.NeedsFormat() != AddressFormat {
			t.Errorf("%+v needs format %d", p, c.NeedsFormat())
		}
	}
	rollouts := []Command{
		putStack(edit(web("shop", 80), "web", func(s *spec.ServiceSpec) { s.Update.Order = spec.StopFirst })),
		putStack(edit(web("shop", 80), "web", func(s *spec.ServiceSpec) { s.Rollback.Parallelism = ptr(0) })),
		putStack(edit(web("shop", 80), "web", func(s *spec.ServiceSpec) { s.ProgressDeadline = 1 })),
		putStack(edit(web("shop", 80), "web", func(s *spec.ServiceSpec) { s.Canary.Weight = 10 })),
		{Reports: &Reports{Reports: []spec.Report{{Node: "n1", Tasks: []spec.TaskReport{{Status: spec.TaskStatus{HealthySince: start}}}}}}},
		putStack(edit(web("shop", 80), "web", func(s *spec.ServiceSpec) { s.Placement.Priority = -1 })),
		putStack(edit(web("shop", 80), "web", func(s *spec.ServiceSpec) { s.Placement.Preempt = true })),
		{MoveTasks: &MoveTasks{Tasks: []spec.TaskID{"1-9"}}},
		{RollbackStack: &RollbackStack{Stack: "shop"}},
		{SteerService: &SteerService{Stack: "shop", Service: "web", Action: SteerRestart}},
		{ApplyPlan: &ApplyPlan{Parts: []spec.Part{{Stack: &spec.StackChange{Name: "shop"}}}}},
		{ApplyPlan: &ApplyPlan{Parts: []spec.Part{{Rollback: &spec.StackRollback{Name: "shop"}}}}},
		{ApplyPlan: &ApplyPlan{Parts: []spec.Part{{Create: []spec.Task{{Stack: "shop", Service: "web", Restarts: 1}}}}}},
		{ApplyPlan: &ApplyPlan{Parts: []spec.Part{{Service: &spec.ServiceChange{Stack: "shop", Name: "web", Update: &spec.UpdateStatus{State: spec.UpdatePaused, Rollout: 7}}}}}},
	}
	for _, c := range newer {
		if got := c.NeedsFormat(); got != 2 {
			t.Errorf("%s needs format %d", c.Kind(), got)
		}
		if b, err := Encode(c); err != nil || b[0] != 2 {
			t.Errorf("%s is written in format %d, %v", c.Kind(), b[0], err)
		}
		h.refuse(c, spec.ErrConflict, "needs format 2", "upgrade")
	}
	needs := func(format int, commands []Command) {
		t.Helper()
		for _, c := range commands {
			if b, err := Encode(c); err != nil || int(b[0]) != format || c.NeedsFormat() != format {
				t.Errorf("%s is written in format %d, %v", c.Kind(), b[0], err)
			}
			h.refuse(c, spec.ErrConflict, fmt.Sprint("needs format ", format), "upgrade")
		}
	}
	needs(3, newest)
	needs(4, append(latest, rollouts...))
	bare := Command{ApplyPlan: &ApplyPlan{Parts: []spec.Part{{Service: &spec.ServiceChange{Stack: "shop", Name: "web", Update: &spec.UpdateStatus{State: spec.UpdateUpdating, Message: "why", Since: start}}}}}}
	for _, c := range []Command{putStack(web("shop", 80)), bare, told("n1", 0), {PutNode: &PutNode{ID: "n1", Name: "alpha", Role: spec.RoleManager}}} {
		if b, err := Encode(c); err != nil || b[0] != 1 {
			t.Errorf("%s is written in format %d, %v", c.Kind(), b[0], err)
		}
		h.must(c)
	}
	state := dump(t, h.s.Snapshot())
	for _, word := range []string{"authority", "down_since", "stop_pinned", `"rollout"`, `"completed"`, "update."} {
		if state[0] != 1 || strings.Contains(state, word) {
			t.Errorf("a state of format 1 is written as format %d, with %s: %t", state[0], word, strings.Contains(state, word))
		}
	}
	if got := h.s.Snapshot().CommonFormat("n1"); got != 1 {
		t.Errorf("the common format is %d while n2 has told nothing", got)
	}
	h.must(Command{Bootstrap: &Bootstrap{ClusterID: "c1", Incarnation: 1, Format: 2}})
	h.refuse(Command{Bootstrap: &Bootstrap{ClusterID: "c1", Incarnation: 1, Format: 1}}, spec.ErrConflict, "cannot go back")
	for _, c := range newer[2:6] {
		h.must(c)
	}
	needs(3, newest)
	state = dump(t, h.s.Snapshot())
	for _, word := range []string{`"vips"`, `"endpoint_mode"`, `"mtu"`} {
		if state[0] != 2 || strings.Contains(state, word) {
			t.Errorf("a state of format 2 is written as format %d, with %s: %t", state[0], word, strings.Contains(state, word))
		}
	}
	h.must(Command{Bootstrap: &Bootstrap{ClusterID: "c1", Incarnation: 1, Format: 3}})
	needs(4, append(latest, rollouts...))
	for _, c := range newest {
		h.must(c)
	}
	state = dump(t, h.s.Snapshot())
	for _, word := range []string{`"ipv6"`, `"ip"`, `"subnets"`} {
		if state[0] != 3 || strings.Contains(state, word) {
			t.Errorf("a state of format 3 is written as format %d, with %s: %t", state[0], word, strings.Contains(state, word))
		}
	}
	h.must(Command{Bootstrap: &Bootstrap{ClusterID: "c1", Incarnation: 1, Format: 4}})
	for _, c := range append(latest, rollouts[:3]...) {
		h.must(c)
	}
	if got := dump(t, h.s.Snapshot())[0]; got != 4 {
		t.Errorf("a state of format 4 is written as format %d", got)
	}
}

func TestCommonFormat(t *testing.T) {
	h := newHarness(t)
	n := *h.s.Snapshot()
	n.meta.Format = 1
	if got := n.CommonFormat("n1"); got != Format {
		t.Errorf("workers have a say: %d", got)
	}
	if got := n.CommonFormat("n2"); got != 1 {
		t.Errorf("a manager that has told nothing knows format %d", got)
	}
	h.must(Command{Reports: &Reports{Reports: []spec.Report{{Node: "n1", Info: &spec.NodeInfo{Format: Format}}}}})
	n = *h.s.Snapshot()
	n.meta.Format = 1
	if got := n.CommonFormat("n2"); got != Format {
		t.Errorf("all managers know format %d, common is %d", Format, got)
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
		"newer format":  "\x05" + strings.Replace(state[1:], `"format":4`, `"format":5`, 1),
		"older format":  "\x01" + state[1:],
		"newer table":   "\x01" + strings.Replace(state[1:], `"format":4`, `"format":1`, 1),
		"state format":  swap(`"format":4`, `"format":1`),
		"no format":     swap(`"format":4`, `"format":0`),
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
		"node twice":    swap(`"name":"beta"`, `"name":"alpha"`),
		"name twice":    swap(`"name":"old_default"`, `"name":"shop_default"`),
		"no JSON":       swap(`{"table":"nodes"`, `["table":"nodes"`),
		"many rows":     swap(`{"table":"nodes","rows":3}`, `{"table":"nodes","rows":4}`),
		"few rows":      swap(`{"table":"nodes","rows":3}`, `{"table":"nodes","rows":1}`),
		"negative rows": swap(`{"table":"nodes","rows":3}`, `{"table":"nodes","rows":-1}`),
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

// attached is a stack whose service is attached to a network in some way.
func attached(name string, n spec.NetworkSpec, a spec.Attachment) spec.Stack {
	a.Network = "lan"
	s := edit(web(name, 81), "web", func(s *spec.ServiceSpec) { s.Ports, s.Template.Networks = nil, []spec.Attachment{a} })
	s.Networks["lan"] = n
	return s
}
