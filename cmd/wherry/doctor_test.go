package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wherry.dev/api"
	"wherry.dev/spec"
)

// TestJudgements: what is found leads to a status and to words; whatever is not
// well says why, and what to do.
func TestJudgements(t *testing.T) {
	gone := errors.New("operation not supported")
	now := time.Date(2026, 1, 31, 0, 0, 0, 0, time.UTC)
	day := 24 * time.Hour
	peer := func(name string) api.Peer {
		return api.Peer{ID: spec.NodeID(name), Name: name, Address: "192.0.2.1:4477"}
	}
	answer := func(name, state string, term uint64) managerAnswer {
		return managerAnswer{peer: peer(name), status: api.MemberStatus{State: state, Term: term, Voters: []spec.NodeID{"a", "b", "c"}}}
	}
	silent := func(name string) managerAnswer { return managerAnswer{peer: peer(name), err: gone} }
	ms := time.Millisecond
	tests := []struct {
		got  api.Check
		want string
	}{
		{judgeFeature("6.1", "vxlan", nil), "ok: vxlan: there"},
		{judgeFeature("6.1", "vxlan", gone), "fail: vxlan: operation not supported"},
		{judgeCgroups(true, []string{"cpu", "io", "memory", "pids"}), "ok: v2: cpu io memory pids"},
		{judgeCgroups(true, []string{"hugetlb"}), "fail: v2: missing: cpu memory pids"},
		{judgeCgroups(false, []string{"cpu", "cpuacct", "devices", "freezer", "memory", "pids"}), "ok: v1: cpu cpuacct devices freezer memory pids"},
		{judgeCgroups(false, []string{"cpu", "memory", "pids"}), "fail: v1: missing: devices freezer"},
		{judgeRunc("/usr/sbin/runc", "runc version 1.1.5+ds1", nil), "ok: /usr/sbin/runc: runc version 1.1.5+ds1"},
		{judgeRunc("/usr/sbin/runc", "runc version 1.0.3", nil), "warn: /usr/sbin/runc: runc version 1.0.3"},
		{judgeRunc("/usr/sbin/runc", "runc version 2.0.0-rc.1", nil), "ok: /usr/sbin/runc: runc version 2.0.0-rc.1"},
		{judgeRunc("/usr/bin/crun", "crun version 0.17", nil), "ok: /usr/bin/crun: crun version 0.17"},
		{judgeRunc("/usr/sbin/runc", "", gone), "fail: /usr/sbin/runc: it does not say its version: operation not supported"},
		{judgeRunc("", "", nil), "fail: runc, crun: neither is installed"},
		{judgeSpace("/d", 20<<30, 40<<30), "ok: /d: 20.0 GiB of 40.0 GiB are free"},
		{judgeSpace("/d", 500<<20, 40<<30), "warn: /d: 500.0 MiB of 40.0 GiB are free"},
		{judgeSpace("/d", 5<<20, 40<<30), "fail: /d: 5.0 MiB of 40.0 GiB are free"},
		{judgeInodes("/d", 0, 0), "ok: /d: not limited"},
		{judgeInodes("/d", 50_000, 60_000), "ok: /d: 50000 of 60000 are free"},
		{judgeInodes("/d", 5_000, 60_000), "warn: /d: 5000 of 60000 are free"},
		{judgeInodes("/d", 5, 60_000), "fail: /d: 5 of 60000 are free"},
		{judgeFileSystem("/d", "ext4", nil), "ok: /d: ext4"},
		{judgeFileSystem("/d", "xfs", gone), "fail: /d: xfs: no overlay can be mounted on it: operation not supported"},
		{judgeFileSystem("/d", "nfs", gone), "fail: /d: nfs"},
		{judgeFileSystem("/d", "tmpfs", nil), "fail: /d: tmpfs"},
		{judgeDisk("/d", []time.Duration{3 * ms, ms, 2 * ms}, nil), "ok: /d: a record is on disk after 2ms, at most 3ms"},
		{judgeDisk("/d", []time.Duration{90 * ms, 80 * ms, ms}, nil), "warn: /d: a record is on disk after 80ms, at most 90ms"},
		{judgeDisk("/d", []time.Duration{ms, ms, 1500 * ms}, nil), "fail: /d: a record is on disk after 1ms, at most 1.5s"},
		{judgeDisk("/d", nil, gone), "fail: /d: operation not supported"},
		{judgeSynchronised(true, nil), "ok: kernel: kept right by NTP"},
		{judgeSynchronised(false, nil), "warn: kernel: nothing keeps it right, as far as the kernel knows"},
		{judgeSynchronised(false, gone), "ok: kernel: not known: operation not supported"},
		{judgeSkew("a", -300*ms), "ok: a: differs by 300ms"},
		{judgeSkew("a", 5*time.Second), "warn: a: this clock is behind by 5s"},
		{judgeSkew("a", -2*time.Hour), "fail: a: this clock is ahead by 2h0m0s"},
		{judgePort(portState{proto: "tcp", port: 4477}, false), "ok: 4477/tcp: free"},
		{judgePort(portState{proto: "tcp", port: 4477}, true), "fail: 4477/tcp: nobody holds it"},
		{judgePort(portState{proto: "tcp", port: 4477, held: true, own: true}, true), "ok: 4477/tcp: held by this node"},
		{judgePort(portState{proto: "udp", port: 4477, held: true, by: "other (pid 7)"}, false), "fail: 4477/udp: held by other (pid 7)"},
		{judgePort(portState{proto: "udp", port: 4478, tunnels: true}, true), "ok: 4478/udp: free"},
		{judgePort(portState{proto: "udp", port: 4478, tunnels: true, held: true}, true), "fail: 4478/udp: held by the kernel, or a process that cannot be seen from here"},
		{judgePublished("0.0.0.0:80/tcp", "shop/web", "taken by x"), "fail: 0.0.0.0:80/tcp: service shop/web is not served: taken by x"},
		{judgeFirewall("chain c", []string{"this", "that"}, true, []string{"line"}), "fail: chain c: drops this, that"},
		{judgeFirewall("chain c", []string{"this"}, false, []string{"line"}), "warn: chain c: drops this"},
		{judgeResolver("192.0.2.53", 12*ms, nil), "ok: 192.0.2.53: answers after 12ms"},
		{judgeResolver("192.0.2.53", 0, gone), "warn: 192.0.2.53: does not answer: operation not supported"},
		{judgeForwarding("net.ipv4.ip_forward", "1", true, true), "ok: net.ipv4.ip_forward: on"},
		{judgeForwarding("net.ipv4.ip_forward", "0", false, true), "ok: net.ipv4.ip_forward: off; it is switched on with the first network"},
		{judgeForwarding("net.ipv4.ip_forward", "0", true, true), "fail: net.ipv4.ip_forward: off"},
		{judgeIPv6(true, false, true), "ok: kernel: there"},
		{judgeIPv6(true, true, false), "ok: kernel: switched off"},
		{judgeIPv6(false, false, true), "fail: kernel: the kernel has none"},
		{judgeBridgeFilter("b", ""), "ok: b: not there: what tasks of a network say to each other passes no firewall of the host"},
		{judgeBridgeFilter("b", "0"), "ok: b: off: what tasks of a network say to each other passes no firewall of the host"},
		{judgeBridgeFilter("b", "1"), "ok: b: on: what tasks of a network say to each other passes the host's firewalls"},
		{judgeCertificate(now, now.Add(-day), now.Add(29*day)), "ok: node: holds for 29d"},
		{judgeCertificate(now, now.Add(-28*day), now.Add(2*day)), "warn: node: holds for 2d"},
		{judgeCertificate(now, now.Add(-33*day), now.Add(-3*day)), "fail: node: it ended 3d ago"},
		{judgeManager(answer("a", "leader", 3)), "ok: a: leader"},
		{judgeManager(silent("a")), "warn: a: does not answer at 192.0.2.1:4477: operation not supported"},
		{judgeManager(managerAnswer{peer: peer("a"), status: api.MemberStatus{State: "stopped", Failure: "disk full"}}), "fail: a: has stopped: disk full"},
		{judgeQuorum([]managerAnswer{answer("a", "leader", 3), answer("b", "follower", 3), answer("c", "follower", 3)}), "ok: managers: a leads; 3 of 3 voters answer"},
		{judgeQuorum([]managerAnswer{answer("a", "leader", 3), answer("b", "follower", 3), silent("c")}), "warn: managers: a leads; 2 of 3 voters answer"},
		{judgeQuorum([]managerAnswer{answer("a", "leader", 2), answer("b", "candidate", 3), silent("c")}), "fail: managers: nobody leads; 2 of 3 voters answer"},
		{judgeQuorum([]managerAnswer{silent("a"), silent("b"), answer("c", "follower", 3)}), "fail: managers: nobody leads; 1 of 3 voters answer"},
		{judgeQuorum(nil), "fail: managers: no manager is known"},
		{judgeFiles(1 << 20), "ok: open files: 1048576"},
		{judgeFiles(4096), "warn: open files: 4096"},
		{judgeFiles(1024), "fail: open files: 1024"},
		{judgeWatchers(128, false), "ok: fs.inotify.max_user_instances: 128"},
		{judgeWatchers(128, true), "warn: fs.inotify.max_user_instances: 128"},
		{judgeWatchers(8192, true), "ok: fs.inotify.max_user_instances: 8192"},
		{judgeEngines(nil), "ok: host: no other"},
		{judgeEngines([]string{"Docker", "Podman"}), "ok: host: Docker, Podman: beside each other they only share ports, disk and firewalls"},
		{judgeContainerd("/s", 2, nil), "ok: /s: answers, 2 tasks"},
		{judgeContainerd("/s", 0, gone), "fail: /s: does not answer: operation not supported"},
		{judgeNetwork("no interface has the address"), "fail: host: no interface has the address"},
	}
	for _, tt := range tests {
		if got := fmt.Sprintf("%s: %s: %s", tt.got.Status, tt.got.Where, tt.got.What); got != tt.want {
			t.Errorf("%s: got  %s\nwant %s", tt.got.Name, got, tt.want)
		}
		if ill := tt.got.Status != api.CheckOK; ill != (tt.got.Why != "") || ill != (len(tt.got.Do) > 0) || tt.got.Name == "" {
			t.Errorf("%s: why %q, do %q", tt.want, tt.got.Why, tt.got.Do)
		}
	}
}

func TestDoctorPrints(t *testing.T) {
	checks := []api.Check{
		well("space", "/d", "20 GiB are free"),
		doubtful(well("clock", "kernel", "nothing keeps it right"), "times", "apt-get install chrony"),
		failing(well("firewall", "chain c", "drops this"), "it is needed", "one line", "another line"),
	}
	var out bytes.Buffer
	a := &app{out: &out, err: os.Stderr}
	if err := a.showChecks(checks); err != nil {
		t.Fatal(err)
	}
	const want = `STATUS  CHECK     WHERE    FOUND
ok      space     /d       20 GiB are free
warn    clock     kernel   nothing keeps it right
fail    firewall  chain c  drops this

fail: firewall chain c: drops this
  why: it is needed
  do:  one line
  do:  another line

warn: clock kernel: nothing keeps it right
  why: times
  do:  apt-get install chrony
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	b, err := json.Marshal(checks[2])
	const form = `{"name":"firewall","status":"fail","where":"chain c","what":"drops this","why":"it is needed","do":["one line","another line"]}`
	if err != nil || string(b) != form {
		t.Errorf("as JSON: %s, %v", b, err)
	}
}
