package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"wherry.dev/api"
	"wherry.dev/spec"
)

// fake is a daemon on a unix socket that answers as a test tells it to. Calls
// that the test has not named are answered with 404.
type fake struct {
	*http.ServeMux
	host string

	mu sync.Mutex
	// calls are the requests so far, as "METHOD /path?query body".
	calls []string
}

func newFake(t *testing.T) *fake {
	t.Helper()
	dir := mustTemp(t) // t.TempDir may be too long for a socket
	f := &fake{ServeMux: http.NewServeMux(), host: "unix://" + filepath.Join(dir, "s")}
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: f}
	go func() { _ = s.Serve(l) }() // until it is closed
	t.Cleanup(func() { s.Close() })
	return f
}

func (f *fake) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var body bytes.Buffer
	_, _ = body.ReadFrom(r.Body)
	r.Body = http.NoBody
	if body.Len() > 0 {
		r.Body = readCloser{bytes.NewReader(body.Bytes())}
	}
	f.mu.Lock()
	f.calls = append(f.calls, strings.TrimSpace(fmt.Sprintf("%s %s %s", r.Method, r.URL.RequestURI(), body.String())))
	f.mu.Unlock()
	f.ServeMux.ServeHTTP(w, r)
}

type readCloser struct{ *bytes.Reader }

func (readCloser) Close() error { return nil }

// seen returns the calls that begin with a prefix.
func (f *fake) seen(prefix string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(f.calls), func(c string) bool { return !strings.HasPrefix(c, prefix) })
}

// answers makes the daemon answer a pattern with values, one after the other;
// the last one stays. An error is answered as such.
func (f *fake) answers(pattern string, values ...any) {
	next := 0
	var mu sync.Mutex
	f.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		v := values[min(next, len(values)-1)]
		next++
		mu.Unlock()
		if err, ok := v.(error); ok {
			var e api.ErrorBody
			e.Error.Class, e.Error.Message = api.ErrorClass(err), err.Error()
			w.WriteHeader(api.ErrorStatus(err))
			v = e
		}
		_ = json.NewEncoder(w).Encode(v) // whoever asked may be gone
	})
}

// result is what a command has said and returned.
type result struct {
	out, err string
	code     int
}

// call runs a command line against the daemon.
func (f *fake) call(t *testing.T, args ...string) result {
	t.Helper()
	return f.callIn(t.Context(), args...)
}

func (f *fake) callIn(ctx context.Context, args ...string) result {
	var out, progress bytes.Buffer
	a := &app{in: os.Stdin, out: &out, err: &progress, env: func(string) (string, bool) { return "", false }}
	root := a.root()
	root.SetOut(&out)
	root.SetErr(&progress)
	root.SetArgs(append([]string{"--host", f.host}, args...))
	err := root.ExecuteContext(ctx)
	r := result{out: out.String(), err: progress.String()}
	if err == nil {
		return r
	}
	var e *exitError
	if !errors.As(err, &e) {
		e = &exitError{code: codeOf(err, a.parsed), err: err}
	}
	if r.code = e.code; e.err != nil {
		r.err += "wherry: " + e.err.Error() + "\n"
	}
	return r
}

// want checks the exit code, and that what was said on stderr holds all texts.
func (r result) want(t *testing.T, code int, texts ...string) {
	t.Helper()
	if r.code != code {
		t.Errorf("exit code %d, want %d\nstdout: %s\nstderr: %s", r.code, code, r.out, r.err)
	}
	for _, text := range texts {
		if !strings.Contains(r.err, text) {
			t.Errorf("stderr lacks %q:\n%s", text, r.err)
		}
	}
}

// decode reads the body of a call, which is all from the first brace.
func decode[T any](t *testing.T, call string) (v T) {
	t.Helper()
	i := strings.Index(call, "{")
	if i < 0 {
		t.Fatalf("%q has no body", call)
	}
	if err := json.Unmarshal([]byte(call[i:]), &v); err != nil {
		t.Fatalf("%q: %v", call, err)
	}
	return v
}

func one(t *testing.T, calls []string) string {
	t.Helper()
	if len(calls) != 1 {
		t.Fatalf("%d calls, want one: %q", len(calls), calls)
	}
	return calls[0]
}

func TestToken(t *testing.T) {
	ends := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	token := api.Token{Role: spec.RoleWorker, Token: "WHERRY-1-aaa-bbb", Addresses: []string{"10.0.0.1:4477"}}
	several := token
	several.Addresses, several.Expires = []string{"10.0.0.1:4477", "[2001:db8::2]:4477"}, ends
	nowhere := token
	nowhere.Addresses = []string{}
	line := "wherry daemon --join 10.0.0.1:4477 --token WHERRY-1-aaa-bbb\n"
	for name, c := range map[string]struct {
		args   []string
		answer any
		code   int
		out    string
		err    []string
		body   *api.TokenRequest
	}{
		"one manager":  {[]string{"worker"}, token, 0, line, nil, &api.TokenRequest{}},
		"several":      {[]string{"worker"}, several, 0, line, []string{"10.0.0.1:4477, [2001:db8::2]:4477", "ends at " + ends.Local().Format(time.DateTime)}, nil},
		"quiet":        {[]string{"worker", "--quiet"}, several, 0, "WHERRY-1-aaa-bbb\n", nil, nil},
		"rotate":       {[]string{"worker", "--rotate"}, token, 0, line, nil, &api.TokenRequest{Rotate: true}},
		"ttl":          {[]string{"worker", "--ttl", "90m"}, token, 0, line, nil, &api.TokenRequest{TTL: spec.Duration(90 * time.Minute)}},
		"no address":   {[]string{"worker"}, nowhere, exitFailed, "", []string{"no address", "--advertise"}, nil},
		"quiet does":   {[]string{"worker", "-q"}, nowhere, 0, "WHERRY-1-aaa-bbb\n", nil, nil},
		"template":     {[]string{"worker", "--format", "{{.role}} {{index .addresses 0}}"}, token, 0, "worker 10.0.0.1:4477\n", nil, nil},
		"no leader":    {[]string{"worker"}, spec.Unavailablef("nobody leads"), exitFailed, "", []string{"nobody leads"}, nil},
		"an argument":  {[]string{"worker", "host-2"}, token, exitUsage, "", []string{"takes no argument"}, nil},
		"no time left": {[]string{"worker", "--ttl", "0s"}, token, exitUsage, "", []string{"above 0"}, nil},
		"less than 0":  {[]string{"worker", "--ttl", "-1h"}, token, exitUsage, "", []string{"above 0"}, nil},
		"no such role": {[]string{"client"}, token, exitUsage, "", []string{"worker, manager"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.answers("POST /v1/cluster/tokens/worker", c.answer)
			r := f.call(t, append([]string{"token"}, c.args...)...)
			r.want(t, c.code, c.err...)
			if r.out != c.out {
				t.Errorf("stdout %q, want %q", r.out, c.out)
			}
			if len(c.err) == 0 && r.err != "" {
				t.Errorf("stderr %q, want nothing", r.err)
			}
			calls := f.seen("POST")
			if c.code == exitUsage && len(calls) > 0 {
				t.Errorf("the daemon was asked: %q", calls)
			}
			if c.body != nil {
				if d := cmp.Diff(*c.body, decode[api.TokenRequest](t, one(t, calls))); d != "" {
					t.Error(d)
				}
			}
		})
	}
	t.Run("what is printed is a command", func(t *testing.T) {
		f := newFake(t)
		f.answers("POST /v1/cluster/tokens/manager", several)
		if err := checkLine(strings.Fields(f.call(t, "token", "manager").out), false); err != nil {
			t.Error(err)
		}
	})
}

func testNodes() []api.NodeInfo {
	return []api.NodeInfo{
		{ID: "00000000000000a1", Name: "host-1", Role: spec.RoleManager, Leader: true, State: spec.NodeReady, Availability: spec.NodeActive,
			Address: "10.0.0.1:4477", Tasks: 3, Info: spec.NodeInfo{NanoCPUs: 4e9, Memory: 8 << 30}},
		{ID: "00000000000000b2", Name: "host-2", Role: spec.RoleWorker, State: spec.NodeDown, Availability: spec.NodeDrain,
			Address: "10.0.0.2:4477", DownSince: time.Now().Add(-5*time.Minute - 10*time.Second)},
	}
}

func TestNodeLs(t *testing.T) {
	f := newFake(t)
	f.answers("GET /v1/nodes", api.List[api.NodeInfo]{Items: testNodes()})
	r := f.call(t, "node", "ls")
	r.want(t, 0)
	want := `NAME    ID                ROLE              STATE    AVAILABILITY  ADDRESS        TASKS  CPUS  MEMORY
host-1  00000000000000a1  manager (leader)  ready    active        10.0.0.1:4477  3      4.0   8.0 GiB
host-2  00000000000000b2  worker            down 5m  drained       10.0.0.2:4477  0      0.0   0 B
`
	if d := cmp.Diff(want, r.out); d != "" {
		t.Error(d)
	}
	r = f.call(t, "node", "ls", "--format", "{{.name}} {{.leader}}")
	if want := "host-1 true\nhost-2 false\n"; r.out != want {
		t.Errorf("got %q, want %q", r.out, want)
	}
	f.call(t, "node", "ls", "host-1").want(t, exitUsage, "node inspect")
}

func TestNodeInspect(t *testing.T) {
	f := newFake(t)
	f.answers("GET /v1/nodes/host-1", testNodes()[0])
	f.answers("GET /v1/nodes/nobody", spec.NotFoundf("node %q does not exist", "nobody"))
	r := f.call(t, "node", "inspect", "host-1")
	r.want(t, 0)
	var got []api.NodeInfo
	if err := json.Unmarshal([]byte(r.out), &got); err != nil || len(got) != 1 || got[0].ID != "00000000000000a1" {
		t.Errorf("%v, %+v from %s", err, got, r.out)
	}
	if r := f.call(t, "node", "inspect", "host-1", "nobody"); r.out != "" {
		t.Errorf("prints %q beside the error", r.out)
	} else {
		r.want(t, exitFailed, `"nobody" does not exist`)
	}
	f.call(t, "node", "inspect").want(t, exitUsage, "wants names or IDs of nodes")
}

// leftovers are lists of what a node still has, with rising indexes.
func leftovers(lists ...[]api.Leftover) (out []any) {
	for i, l := range lists {
		out = append(out, api.List[api.Leftover]{Index: uint64(10 + i), Items: l})
	}
	return out
}

func TestDrain(t *testing.T) {
	moves := api.Leftover{Task: "1", Name: "shop.web.1", Reason: "waits for its replacement to be well"}
	stays := api.Leftover{Task: "2", Name: "shop.db.1", Pinned: true, Reason: "stays on drained node host-2: its volume shop_data is there; use --stop-pinned to stop it"}
	drained := func(f *fake) api.NodeUpdate {
		return decode[api.NodeUpdate](t, one(t, f.seen("PATCH /v1/nodes/host-2")))
	}
	const patch, left = "PATCH /v1/nodes/host-2", "GET /v1/nodes/host-2/leftovers"

	t.Run("moves", func(t *testing.T) {
		f := newFake(t)
		f.answers(patch, api.Written{Index: 9, Changed: true})
		f.answers(left, leftovers([]api.Leftover{moves, stays}, []api.Leftover{moves}, nil)...)
		r := f.call(t, "node", "drain", "host-2")
		r.want(t, 0, "host-2: 1 task left to move\n", "host-2: drained, no task is left on it, ")
		u := drained(f)
		if u.Availability == nil || *u.Availability != spec.NodeDrain || u.StopPinned || u.Role != nil || u.Labels != nil || u.RequestID == "" {
			t.Errorf("asked for %+v", u)
		}
		polls := f.seen(left)
		if len(polls) != 3 {
			t.Fatalf("asked %d times, want 3: %q", len(polls), polls)
		}
		if !strings.Contains(polls[1], "index=10") || !strings.Contains(polls[2], "index=11") {
			t.Errorf("does not wait for news: %q", polls)
		}
	})
	t.Run("pinned", func(t *testing.T) {
		f := newFake(t)
		f.answers(patch, api.Written{})
		f.answers(left, leftovers([]api.Leftover{moves, stays}, []api.Leftover{stays})...)
		f.call(t, "node", "drain", "host-2").want(t, exitFailed, "drained but for 1 task", "shop.db.1 stays", "its volume shop_data is there", "--stop-pinned")
	})
	t.Run("stop pinned", func(t *testing.T) {
		f := newFake(t)
		f.answers(patch, api.Written{})
		f.answers(left, leftovers(nil)...)
		f.call(t, "node", "drain", "host-2", "--stop-pinned").want(t, 0)
		if u := drained(f); !u.StopPinned {
			t.Errorf("asked for %+v", u)
		}
	})
	t.Run("time is over", func(t *testing.T) {
		f := newFake(t)
		f.answers(patch, api.Written{})
		f.HandleFunc(left, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("index") != "" {
				<-r.Context().Done() // no news
				return
			}
			_ = json.NewEncoder(w).Encode(api.List[api.Leftover]{Index: 3, Items: []api.Leftover{moves}})
		})
		f.call(t, "node", "drain", "host-2", "--timeout", "150ms").want(t, exitTimeout, "still has 1 task", "150ms", "goes on to drain it", "shop.web.1 waits for its replacement")
	})
	t.Run("interrupted", func(t *testing.T) {
		f := newFake(t)
		f.answers(patch, api.Written{})
		ctx, cancel := context.WithCancel(t.Context())
		f.HandleFunc(left, func(_ http.ResponseWriter, r *http.Request) {
			cancel()
			<-r.Context().Done()
		})
		f.callIn(ctx, "node", "drain", "host-2").want(t, exitInterrupted, "the cluster goes on to drain host-2")
	})
	t.Run("without waiting", func(t *testing.T) {
		f := newFake(t)
		f.answers(patch, api.Written{})
		f.call(t, "node", "drain", "host-2", "--wait=false").want(t, 0, "host-2: gets no new tasks")
		if polls := f.seen("GET"); len(polls) > 0 {
			t.Errorf("it waits: %q", polls)
		}
	})
	t.Run("unknown node", func(t *testing.T) {
		f := newFake(t)
		f.answers(patch, spec.NotFoundf("node %q does not exist", "host-2"))
		f.call(t, "node", "drain", "host-2").want(t, exitFailed, "does not exist")
		if polls := f.seen("GET"); len(polls) > 0 {
			t.Errorf("it waits: %q", polls)
		}
	})
}

func TestAvailability(t *testing.T) {
	for verb, want := range map[string]spec.Availability{"pause": spec.NodePaused, "activate": spec.NodeActive} {
		f := newFake(t)
		f.answers("PATCH /v1/nodes/a", api.Written{})
		f.answers("PATCH /v1/nodes/b", spec.NotFoundf("there is no b"))
		f.answers("PATCH /v1/nodes/c", api.Written{})
		r := f.call(t, "node", verb, "a", "b", "c")
		r.want(t, exitFailed, "there is no b")
		if out := fmt.Sprintf("a: %s\nc: %s\n", want, want); r.out != out {
			t.Errorf("%s: prints %q, want %q", verb, r.out, out)
		}
		if u := decode[api.NodeUpdate](t, one(t, f.seen("PATCH /v1/nodes/c"))); u.Availability == nil || *u.Availability != want {
			t.Errorf("%s: asked for %+v", verb, u)
		}
	}
}

// raftStatus is a status in which one manager takes part in Raft so.
func raftStatus(raft string) api.ClusterStatus {
	return api.ClusterStatus{Leader: "00000000000000a1", Managers: []api.ManagerStatus{
		{ID: "00000000000000a1", Name: "host-1", Raft: "leader"}, {ID: "00000000000000b2", Name: "host-2", Raft: raft}}}
}

func TestRole(t *testing.T) {
	node := testNodes()[1]
	gone := raftStatus("none")
	gone.Managers = gone.Managers[:1]
	for name, c := range map[string]struct {
		verb     string
		statuses []any
		flags    []string
		code     int
		err      []string
		asked    int // how often the status was, 0 does not matter
	}{
		"promote":                 {"promote", []any{raftStatus("none"), raftStatus("non-voter"), spec.Unavailablef("election"), raftStatus("voter")}, nil, 0, []string{"host-2: is added to the managers\n", "host-2: catches up with", "host-2: is a manager now, "}, 4},
		"promote, and it leads":   {"promote", []any{raftStatus("leader")}, nil, 0, nil, 1},
		"demote":                  {"demote", []any{raftStatus("leader"), raftStatus("voter"), gone}, nil, 0, []string{"host-2: hands leadership over\n", "host-2: is taken from the managers\n", "host-2: is a worker now, "}, 3},
		"promote takes too long":  {"promote", []any{raftStatus("non-voter")}, []string{"--timeout", "150ms"}, exitTimeout, []string{"not yet a manager", "150ms", "cluster status"}, 0},
		"demote takes too long":   {"demote", []any{raftStatus("voter")}, []string{"--timeout", "150ms"}, exitTimeout, []string{"not yet a worker"}, 0},
		"promote, no waiting":     {"promote", []any{raftStatus("none")}, []string{"--wait=false"}, 0, []string{"host-2: becomes a manager;", "cluster status"}, 0},
		"promote, status refused": {"promote", []any{api.Errorf(api.ErrForbidden, "not for you")}, nil, exitFailed, []string{"not for you"}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFake(t)
			f.answers("GET /v1/nodes/host-2", node)
			f.answers("PATCH /v1/nodes/host-2", api.Written{Changed: true})
			f.answers("GET /v1/cluster", c.statuses...)
			f.call(t, append([]string{"node", c.verb, "host-2"}, c.flags...)...).want(t, c.code, c.err...)
			want := map[string]spec.NodeRole{"promote": spec.RoleManager, "demote": spec.RoleWorker}[c.verb]
			if u := decode[api.NodeUpdate](t, one(t, f.seen("PATCH"))); u.Role == nil || *u.Role != want || u.Availability != nil {
				t.Errorf("asked for %+v", u)
			}
			if n := len(f.seen("GET /v1/cluster")); c.asked > 0 && n != c.asked {
				t.Errorf("asked %d times how it is, want %d", n, c.asked)
			}
		})
	}
	t.Run("refused", func(t *testing.T) {
		f := newFake(t)
		f.answers("GET /v1/nodes/host-2", node)
		f.answers("PATCH /v1/nodes/host-2", spec.Conflictf("node host-2 is the only manager and cannot be demoted"))
		f.call(t, "node", "demote", "host-2").want(t, exitFailed, "only manager")
		if n := len(f.seen("GET /v1/cluster")); n > 0 {
			t.Errorf("waits all the same, %d times", n)
		}
	})
}

func TestLabel(t *testing.T) {
	text := func(s string) *string { return &s }
	for _, c := range []struct {
		args []string
		want map[string]*string // nil: wrong use
	}{
		{[]string{"disk=ssd", "zone=a"}, map[string]*string{"disk": text("ssd"), "zone": text("a")}},
		{[]string{"zone-"}, map[string]*string{"zone": nil}},
		{[]string{"zone-=a-"}, map[string]*string{"zone-": text("a-")}},
		{[]string{"empty=", "url=a=b"}, map[string]*string{"empty": text(""), "url": text("a=b")}},
		{[]string{"zone"}, nil},
		{[]string{"=a"}, nil},
		{[]string{"--", "-"}, nil},
		{[]string{"good=1", "bad"}, nil},
		{nil, nil},
	} {
		f := newFake(t)
		f.answers("PATCH /v1/nodes/host-2", api.Written{})
		r := f.call(t, append([]string{"node", "label", "host-2"}, c.args...)...)
		if c.want == nil {
			r.want(t, exitUsage, "KEY=VALUE")
			if calls := f.seen(""); len(calls) > 0 {
				t.Errorf("%q: the daemon was asked: %q", c.args, calls)
			}
			continue
		}
		r.want(t, 0)
		u := decode[api.NodeUpdate](t, one(t, f.seen("PATCH")))
		if d := cmp.Diff(c.want, u.Labels); d != "" || u.Availability != nil || u.Role != nil {
			t.Errorf("%q: %s\n%+v", c.args, d, u)
		}
	}
}

func TestNodeRm(t *testing.T) {
	f := newFake(t)
	f.answers("DELETE /v1/nodes/host-2", api.Written{})
	f.answers("DELETE /v1/nodes/host-3", spec.Conflictf("node host-3 is ready"))
	f.answers("DELETE /v1/nodes/host-4", api.Written{})
	r := f.call(t, "node", "rm", "host-2", "host-3", "host-4")
	r.want(t, exitFailed, "host-3 is ready")
	if want := "host-2: removed\nhost-4: removed\n"; r.out != want {
		t.Errorf("prints %q, want %q", r.out, want)
	}
	for _, call := range f.seen("DELETE") {
		if !strings.Contains(call, "force=false") || strings.Contains(call, "request_id=&") || !strings.Contains(call, "request_id=") {
			t.Errorf("asks %q", call)
		}
	}
	f.call(t, "node", "rm", "--force", "host-4").want(t, 0)
	if calls := f.seen("DELETE /v1/nodes/host-4?force=true"); len(calls) != 1 {
		t.Errorf("does not force: %q", f.seen("DELETE"))
	}
}

func TestLeave(t *testing.T) {
	for _, c := range []struct {
		flags []string
		want  api.Leave
		says  string
	}{
		{nil, api.Leave{}, "is still in the data folder"},
		{[]string{"--purge"}, api.Leave{Purge: true}, "every other trace are deleted"},
		{[]string{"--purge", "--force"}, api.Leave{Purge: true, Force: true}, "every other trace are deleted"},
	} {
		f := newFake(t)
		f.HandleFunc("POST /v1/node/leave", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
		f.call(t, append([]string{"node", "leave"}, c.flags...)...).want(t, 0, "has left its cluster", c.says)
		if got := decode[api.Leave](t, one(t, f.seen("POST"))); got != c.want {
			t.Errorf("%q asks for %+v, want %+v", c.flags, got, c.want)
		}
	}
	f := newFake(t)
	f.call(t, "node", "leave", "host-2").want(t, exitUsage, "it is this host that leaves", "node rm")
}

func testStatus() api.ClusterStatus {
	return api.ClusterStatus{
		ClusterID: "00112233445566778899aabbccddeeff", Leader: "00000000000000a1", Term: 1234, Workers: 1, Ready: 3, Signer: "old", Roots: []string{"old"},
		Managers: []api.ManagerStatus{
			{ID: "00000000000000a1", Name: "manager-01", Address: "192.168.100.101:4477", Raft: "leader", Reachable: true, Version: "v1.20.3", Term: 1234, FreeBytes: 512 << 30},
			{ID: "00000000000000b2", Name: "manager-02", Address: "192.168.100.102:4477", Raft: "non-voter", Reachable: true, Term: 1234, Lag: 81920, FreeBytes: 900 << 20, Skew: spec.Duration(-1500*time.Millisecond - 400*time.Microsecond)},
			{ID: "00000000000000c3", Name: "manager-03", Address: "192.168.100.103:4477", Raft: "voter", Error: "no answer"},
		},
		Problems: []string{"manager manager-03 does not answer: no answer", "manager manager-02 is catching up"},
	}
}

func TestClusterStatus(t *testing.T) {
	f := newFake(t)
	f.answers("GET /v1/cluster", testStatus())
	r := f.call(t, "cluster", "status")
	r.want(t, 0)
	want := `MANAGER     ADDRESS               RAFT       TERM  LAG    SKEW   FREE       VERSION
manager-01  192.168.100.101:4477  leader     1234  0      0s     512.0 GiB  v1.20.3
manager-02  192.168.100.102:4477  non-voter  1234  81920  -1.5s  900.0 MiB  -
manager-03  192.168.100.103:4477  voter      -     -      -      -          unreachable

cluster 00112233445566778899aabbccddeeff: 3 managers, 1 worker, 3 ready
problem: manager manager-03 does not answer: no answer
problem: manager manager-02 is catching up
`
	if d := cmp.Diff(want, r.out); d != "" {
		t.Error(d)
	}
	for _, l := range strings.Split(r.out, "\n") {
		if n := len([]rune(l)); n > 100 {
			t.Errorf("%d columns, want at most 100: %s", n, l)
		}
	}

	r = f.call(t, "cluster", "status", "--format", "json")
	var got []api.ClusterStatus
	if err := json.Unmarshal([]byte(r.out), &got); err != nil || len(got) != 1 {
		t.Fatalf("%v in %s", err, r.out)
	}
	if d := cmp.Diff(testStatus(), got[0]); d != "" {
		t.Error(d)
	}
}

// TestClusterStatusNoLeader: a script must notice that nobody leads, in every
// format, and a person must still see what there is.
func TestClusterStatusNoLeader(t *testing.T) {
	s := testStatus()
	s.Leader, s.Problems = "", []string{"the cluster has no leader: 1 of 3 voters answer"}
	f := newFake(t)
	f.answers("GET /v1/cluster", s)
	for _, format := range []string{"table", "json", "yaml", "{{.cluster_id}}"} {
		r := f.call(t, "cluster", "status", "--format", format)
		r.want(t, exitFailed)
		if !strings.Contains(r.out, s.ClusterID) || r.err != "" {
			t.Errorf("--format %s: prints %q and %q", format, r.out, r.err)
		}
	}
	if r := f.call(t, "cluster", "status"); !strings.Contains(r.out, "problem: the cluster has no leader") {
		t.Errorf("does not say why:\n%s", r.out)
	}
}

// files are the names and modes of what is in a folder.
func files(t *testing.T, dir string) map[string]os.FileMode {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]os.FileMode{}
	for _, e := range entries {
		st, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		out[e.Name()] = st.Mode()
	}
	return out
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestBackup(t *testing.T) {
	f := newFake(t)
	f.HandleFunc("GET /v1/cluster/backup", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "sealed") })
	f.answers("GET /v1/cluster/key", api.Key{Key: "c2VjcmV0"})
	dir := t.TempDir()
	state, key := filepath.Join(dir, "state.wherry"), filepath.Join(dir, "state.key")

	r := f.call(t, "cluster", "backup", state, "--key-file", key)
	r.want(t, 0, "wherry cluster restore "+state+" --key-file "+key)
	if d := cmp.Diff(map[string]os.FileMode{"state.wherry": 0o600, "state.key": 0o600}, files(t, dir)); d != "" {
		t.Error(d)
	}
	if s, k := read(t, state), read(t, key); s != "sealed" || k != "c2VjcmV0\n" {
		t.Errorf("wrote %q and the key %q", s, k)
	}
	if strings.Contains(r.out+r.err, "c2VjcmV0") {
		t.Error("the key is printed")
	}

	// What is there is not touched, unless that is wanted.
	for _, p := range []string{state, key} {
		if err := os.WriteFile(p, []byte("before"), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	f.call(t, "cluster", "backup", state).want(t, exitFailed, state+" exists", "--force")
	f.call(t, "cluster", "backup", filepath.Join(dir, "other"), "--key-file", key).want(t, exitFailed, key+" exists")
	if s, k := read(t, state), read(t, key); s != "before" || k != "before" {
		t.Errorf("overwrote them with %q and %q", s, k)
	}
	if _, err := os.Stat(filepath.Join(dir, "other")); err == nil {
		t.Error("there is a backup whose key was not written")
	}
	f.call(t, "cluster", "backup", state, "--force").want(t, 0)
	if s, k := read(t, state), read(t, key); s != "sealed" || k != "before" {
		t.Errorf("--force left %q and %q", s, k)
	}
	if m := files(t, dir)["state.wherry"]; m != 0o600 {
		t.Errorf("mode %v after --force", m)
	}

	if r := f.call(t, "cluster", "backup", "-"); r.out != "sealed" || r.code != 0 {
		t.Errorf("to the output: %+v", r)
	}
	f.call(t, "cluster", "backup").want(t, exitUsage, "FILE")
	f.call(t, "cluster", "backup", filepath.Join(dir, "no", "folder")).want(t, exitFailed, "no such file")
}

// TestBackupBroken: a stream that breaks off leaves nothing behind, nor does it
// harm what was there.
func TestBackupBroken(t *testing.T) {
	f := newFake(t)
	f.HandleFunc("GET /v1/cluster/backup", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprint(w, strings.Repeat("sealed", 10000))
		panic(http.ErrAbortHandler)
	})
	dir := t.TempDir()
	f.call(t, "cluster", "backup", filepath.Join(dir, "new")).want(t, exitFailed, "not whole")
	if got := files(t, dir); len(got) > 0 {
		t.Errorf("leaves %v", got)
	}
	old := filepath.Join(dir, "old")
	if err := os.WriteFile(old, []byte("before"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.call(t, "cluster", "backup", old, "--force").want(t, exitFailed, "not whole")
	if got := files(t, dir); len(got) != 1 || read(t, old) != "before" {
		t.Errorf("leaves %v, the old one holds %q", got, read(t, old))
	}
}

func TestRestoreUse(t *testing.T) {
	f := newFake(t)
	dir := t.TempDir()
	backup, data := filepath.Join(dir, "backup"), filepath.Join(dir, "data")
	if err := os.WriteFile(backup, []byte("not a backup"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.call(t, "cluster", "restore", backup, "--data-dir", data).want(t, exitUsage, "--key-file", "cluster backup --key-file")
	f.call(t, "cluster", "restore", "--key-file", backup, "--data-dir", data).want(t, exitUsage, "wants one FILE")
	f.call(t, "cluster", "restore", backup, "--key-file", filepath.Join(dir, "none"), "--data-dir", data).want(t, exitFailed, "read the key")
	f.call(t, "cluster", "restore", filepath.Join(dir, "none"), "--key-file", backup, "--data-dir", data).want(t, exitFailed, "read the backup")
	if _, err := os.Stat(data); err == nil {
		t.Error("it made the data folder")
	}
	if calls := f.seen(""); len(calls) > 0 {
		t.Errorf("a daemon was asked: %q", calls)
	}
}

func TestRotateCA(t *testing.T) {
	status := func(signer string, waiting string, roots ...string) api.ClusterStatus {
		s := testStatus()
		s.Signer, s.Roots = signer, roots
		if waiting != "" {
			s.Waiting = []string{waiting}
		}
		return s
	}
	const rotate, ask = "POST /v1/cluster/ca/rotate", "GET /v1/cluster"
	accept := func(f *fake) {
		f.HandleFunc(rotate, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	}
	t.Run("to its end", func(t *testing.T) {
		f := newFake(t)
		accept(f)
		// Before the leader has begun it looks like the end.
		f.answers(ask, status("old", "", "old"), status("old", "", "old"), status("old", "host-2", "old", "new"),
			spec.Unavailablef("election"), status("new", "host-3 (down)", "old", "new"), status("new", "", "new"))
		f.call(t, "cluster", "ca", "rotate").want(t, 0, "waits for host-2", "waits for host-3 (down)", "done, ")
		if n := len(f.seen("GET")); n != 6 {
			t.Errorf("asked %d times, want 6", n)
		}
	})
	t.Run("takes too long", func(t *testing.T) {
		f := newFake(t)
		accept(f)
		f.answers(ask, status("old", "", "old"), status("old", "host-2 (down)", "old", "new"))
		f.call(t, "cluster", "ca", "rotate", "--timeout", "250ms").want(t, exitTimeout, "waits for host-2 (down)")
	})
	t.Run("under way", func(t *testing.T) {
		f := newFake(t)
		f.answers(rotate, spec.Conflictf("an exchange of the certificate authority is under way"))
		f.answers(ask, status("old", "host-2", "old", "new"))
		f.call(t, "cluster", "ca", "rotate").want(t, exitFailed, "under way")
	})
	t.Run("without waiting", func(t *testing.T) {
		f := newFake(t)
		accept(f)
		f.answers(ask, status("old", "", "old"))
		f.call(t, "cluster", "ca", "rotate", "--wait=false").want(t, 0)
	})
}

// sign makes a certificate as a manager would, by an authority of its own.
func sign(t *testing.T, csrPEM string) api.Certificates {
	t.Helper()
	block, _ := pem.Decode([]byte(csrPEM))
	if block == nil {
		t.Fatalf("%q is no request", csrPEM)
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err == nil {
		err = csr.CheckSignature()
	}
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	issue := func(serial int64, name string, isCA bool, public any, parent *x509.Certificate) (*x509.Certificate, string) {
		c := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, IsCA: isCA, BasicConstraintsValid: true,
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
		if parent == nil {
			parent = c
		}
		der, err := x509.CreateCertificate(rand.Reader, c, parent, public, key)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return parsed, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	}
	root, rootPEM := issue(1, "root", true, key.Public(), nil)
	_, leafPEM := issue(2, csr.Subject.CommonName, false, csr.PublicKey, root)
	return api.Certificates{Certificate: leafPEM, Roots: rootPEM}
}

func TestClientCertificate(t *testing.T) {
	f := newFake(t)
	f.HandleFunc("POST /v1/cluster/clients/anna", func(w http.ResponseWriter, r *http.Request) {
		var in api.ClientRequest
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			t.Error(err)
		}
		_ = json.NewEncoder(w).Encode(sign(t, in.CSR))
	})
	dir := filepath.Join(t.TempDir(), "certs")
	r := f.call(t, "cluster", "ca", "client", "anna", "--out", dir, "--ttl", "24h")
	r.want(t, 0)
	if d := cmp.Diff(map[string]os.FileMode{"anna.pem": 0o600, "anna-key.pem": 0o600, "ca.pem": 0o600}, files(t, dir)); d != "" {
		t.Error(d)
	}
	if st, err := os.Stat(dir); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("the folder: %v, %v", st.Mode(), err)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "anna.pem"), filepath.Join(dir, "anna-key.pem"))
	if err != nil {
		t.Fatalf("certificate and key: %v", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(read(t, filepath.Join(dir, "ca.pem")))) {
		t.Fatal("no root in ca.pem")
	}
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots}); err != nil {
		t.Error(err)
	}
	if got := pair.Leaf.Subject.CommonName; got != "anna" {
		t.Errorf("it is asked for as %q", got)
	}
	call := one(t, f.seen("POST"))
	if in := decode[api.ClientRequest](t, call); in.TTL.D() != 24*time.Hour {
		t.Errorf("asks for %s", in.TTL)
	}
	if strings.Contains(call, "PRIVATE") {
		t.Error("the key leaves the host")
	}
	// What is printed is the beginning of a command.
	if err := checkLine(append(strings.Fields(r.out), "ls"), false); err != nil {
		t.Errorf("%s: %v", r.out, err)
	}

	// Another one takes its place, with another key.
	before := read(t, filepath.Join(dir, "anna-key.pem"))
	f.call(t, "cluster", "ca", "client", "anna", "--out", dir).want(t, 0)
	if read(t, filepath.Join(dir, "anna-key.pem")) == before {
		t.Error("the key is the same")
	}
	if _, err := tls.LoadX509KeyPair(filepath.Join(dir, "anna.pem"), filepath.Join(dir, "anna-key.pem")); err != nil {
		t.Error(err)
	}

	for _, name := range []string{"../anna", "a/b", ".hidden", ""} {
		f.call(t, "cluster", "ca", "client", name, "--out", dir).want(t, exitUsage)
	}
	f.call(t, "cluster", "ca", "client").want(t, exitUsage, "wants one NAME")
}

// TestClientCertificateRefused: a refusal leaves nothing behind.
func TestClientCertificateRefused(t *testing.T) {
	f := newFake(t)
	f.answers("POST /v1/cluster/clients/anna", spec.Unavailablef("the cluster has no certificate authority yet"))
	dir := filepath.Join(t.TempDir(), "certs")
	f.call(t, "cluster", "ca", "client", "anna", "--out", dir).want(t, exitFailed, "no certificate authority yet")
	if _, err := os.Stat(dir); err == nil {
		t.Errorf("leaves %v", files(t, dir))
	}
}

// TestNotManager: a worker points to a manager, and the exit code is that of
// an unreachable one.
func TestNotManager(t *testing.T) {
	f := newFake(t)
	f.answers("/", api.Errorf(api.ErrNotManager, "node host-4 is a worker; ask a manager: host-1 (--host https://10.0.0.1:4477)"))
	for _, args := range [][]string{
		{"token", "worker"}, {"node", "ls"}, {"node", "inspect", "x"}, {"node", "drain", "x"}, {"node", "pause", "x"}, {"node", "promote", "x"},
		{"node", "label", "x", "a=b"}, {"node", "rm", "x"}, {"cluster", "status"}, {"cluster", "backup", "-"}, {"cluster", "ca", "rotate"},
		{"cluster", "ca", "client", "anna"}, {"ls"}, {"ps"},
	} {
		r := f.call(t, args...)
		r.want(t, exitUnreachable, "host-4 is a worker", "--host https://10.0.0.1:4477")
		if r.out != "" {
			t.Errorf("%v prints %q", args, r.out)
		}
	}
}
