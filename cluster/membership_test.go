package cluster

import (
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"wherry.dev/api"
	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

func TestNextStep(t *testing.T) {
	// A capital letter is a voter, a small one a non-voter.
	servers := func(s string) (out []raft.Server) {
		for _, c := range s {
			id := strings.ToLower(string(c))
			v := raft.Nonvoter
			if string(c) != id {
				v = raft.Voter
			}
			out = append(out, raft.Server{Suffrage: v, ID: raft.ServerID(id), Address: raft.ServerAddress(id)})
		}
		return out
	}
	for _, tt := range []struct {
		name, servers    string
		managers, others string // in the table of nodes
		answer, behind   string // of those that answer, who is behind
		want             step
		anew             string // of those that answer, who has another seat by now
	}{
		{"nothing to do", "ABC", "abc", "w", "bc", "", step{}, ""},
		{"a new manager", "A", "ab", "w", "b", "b", step{stepAdd, "b", "b"}, ""},
		{"a new manager that does not answer", "A", "ab", "", "", "", step{kind: stepWait}, ""},
		{"one that catches up", "Ab", "ab", "", "b", "b", step{kind: stepWait}, ""},
		{"one that has caught up", "Ab", "ab", "", "b", "", step{stepPromote, "b", "b"}, ""},
		{"one that caught up and is gone", "Ab", "ab", "", "", "", step{kind: stepWait}, ""},
		{"two new ones", "A", "abc", "", "bc", "bc", step{stepAdd, "b", "b"}, ""},
		{"demoted", "ABC", "ab", "c", "bc", "", step{stepRemove, "c", "c"}, ""},
		{"removed", "ABC", "ab", "", "b", "", step{stepRemove, "c", "c"}, ""},
		{"removed non-voter", "ABc", "ab", "", "b", "", step{stepRemove, "c", "c"}, ""},
		{"demoted while another is gone", "ABC", "ab", "c", "c", "", step{kind: stepWait}, ""},
		{"gone and removed while another is gone", "ABC", "ab", "", "", "", step{kind: stepWait}, ""},
		{"one of two", "AB", "a", "b", "b", "", step{stepRemove, "b", "b"}, ""},
		{"one of two that is gone", "AB", "a", "", "", "", step{stepRemove, "b", "b"}, ""},
		{"another comes before one goes", "AB", "ac", "b", "bc", "", step{stepAdd, "c", "c"}, ""},
		{"a seat that was given up", "ABC", "abc", "", "bc", "c", step{stepRemove, "c", "c"}, "c"},
		{"two seats that were given up", "ABC", "abc", "", "bc", "bc", step{kind: stepWait}, "bc"},
		{"the same node on a new seat", "AB", "abc", "", "bc", "c", step{stepAdd, "c", "c.2"}, "c"},
		{"the leader itself is left alone", "AB", "b", "a", "b", "", step{}, ""},
	} {
		var nodes []*spec.Node
		for _, c := range tt.managers {
			nodes = append(nodes, &spec.Node{ID: spec.NodeID(c), Role: spec.RoleManager})
		}
		for _, c := range tt.others {
			nodes = append(nodes, &spec.Node{ID: spec.NodeID(c), Role: spec.RoleWorker})
		}
		answers := map[spec.NodeID]api.MemberStatus{}
		for _, c := range tt.answer {
			answers[spec.NodeID(c)] = api.MemberStatus{LastIndex: 1000, AppliedIndex: 1000}
		}
		for _, c := range tt.behind {
			answers[spec.NodeID(c)] = api.MemberStatus{LastIndex: 10, AppliedIndex: 10}
		}
		for _, c := range tt.anew {
			a := answers[spec.NodeID(c)]
			a.Seat = string(c) + ".2"
			answers[spec.NodeID(c)] = a
		}
		if got := nextStep("a", servers(tt.servers), nodes, answers, 1010); got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

func TestSurveyNamesProblems(t *testing.T) {
	st := store.New()
	index := uint64(0)
	apply := func(c store.Command) {
		t.Helper()
		index++
		c.Time = time.Unix(1000, 0)
		if res := st.Apply(index, c); res.Err != nil {
			t.Fatal(res.Err)
		}
	}
	apply(store.Command{Bootstrap: &store.Bootstrap{ClusterID: "c", Incarnation: 1}})
	ids := map[string]spec.NodeID{"m1": "0000000000000001", "m2": "0000000000000002", "m3": "0000000000000003", "m4": "0000000000000004"}
	for _, name := range []string{"m1", "m2", "m3", "m4"} {
		apply(store.Command{PutNode: &store.PutNode{ID: ids[name], Name: name, Address: "192.0.2.1:4477", Role: spec.RoleManager}})
	}
	now := time.Unix(2000, 0)
	healthy := func(id spec.NodeID) api.MemberStatus {
		return api.MemberStatus{Node: id, State: "follower", LeaderID: ids["m1"], Term: 3, LastIndex: 9000, AppliedIndex: 9000,
			FreeBytes: 50 << 30, Voters: []spec.NodeID{ids["m1"], ids["m2"], ids["m3"]}, Time: now}
	}
	for _, tt := range []struct {
		name   string
		change func(a map[spec.NodeID]api.MemberStatus, s func(string, func(*api.MemberStatus)))
		want   []string
	}{
		{"all is well", nil, []string{"m4 does not take part"}},
		{"no quorum to spare", func(a map[spec.NodeID]api.MemberStatus, _ func(string, func(*api.MemberStatus))) {
			delete(a, ids["m2"])
		},
			[]string{"2 of 3 voters answer, and that many are needed", "m2 (192.0.2.1:4477) does not answer", "m4"}},
		{"no leader", func(a map[spec.NodeID]api.MemberStatus, s func(string, func(*api.MemberStatus))) {
			s("m1", func(m *api.MemberStatus) { m.State = "candidate" })
		}, []string{"no leader: 3 of 3", "m4"}},
		{"lag, clock, disk", func(_ map[spec.NodeID]api.MemberStatus, s func(string, func(*api.MemberStatus))) {
			s("m2", func(m *api.MemberStatus) { m.LastIndex = 10 })
			s("m3", func(m *api.MemberStatus) { m.Time, m.FreeBytes = now.Add(-5*time.Second), 100<<20 })
		}, []string{"m2 is 8990 entries behind", "clock of manager m3 differs by -5s", "m3 has 100 MiB left", "m4"}},
		{"a member that has stopped", func(_ map[spec.NodeID]api.MemberStatus, s func(string, func(*api.MemberStatus))) {
			s("m3", func(m *api.MemberStatus) { m.Failure = "the disk fails" })
		}, []string{"m3 has stopped: the disk fails", "m4"}},
		{"an even number", func(a map[spec.NodeID]api.MemberStatus, s func(string, func(*api.MemberStatus))) {
			for _, n := range []string{"m1", "m2", "m3", "m4"} {
				s(n, func(m *api.MemberStatus) { m.Voters = append(m.Voters, ids["m4"]) })
			}
		}, []string{"4 voters survive the failure of 1, as 3 would"}},
	} {
		a := map[spec.NodeID]api.MemberStatus{}
		for _, id := range ids {
			a[id] = healthy(id)
		}
		set := func(name string, f func(*api.MemberStatus)) {
			m := a[ids[name]]
			f(&m)
			a[ids[name]] = m
		}
		set("m1", func(m *api.MemberStatus) { m.State = "leader" })
		if tt.change != nil {
			tt.change(a, set)
		}
		got := survey(st.Snapshot(), ids["m1"], a, nil, now).Problems
		ok := len(got) == len(tt.want)
		for i := range min(len(got), len(tt.want)) {
			ok = ok && strings.Contains(got[i], tt.want[i])
		}
		if !ok {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
}
