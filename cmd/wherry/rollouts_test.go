package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"wherry.dev/api"
	"wherry.dev/spec"
)

// told is a daemon that tells one status of a stack after the other, and then
// the last one again and again.
func told(t *testing.T, history []api.StackRevision, statuses ...api.StackStatus) *api.Client {
	t.Helper()
	dir, err := os.MkdirTemp("", "told") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	next := make(chan api.StackStatus, len(statuses))
	for _, s := range statuses {
		next <- s
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/stacks/shop/status", func(w http.ResponseWriter, _ *http.Request) {
		s := statuses[len(statuses)-1]
		select {
		case s = <-next:
		default:
		}
		_ = json.NewEncoder(w).Encode(s)
	})
	mux.HandleFunc("GET /v1/stacks/shop/revisions", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(api.List[api.StackRevision]{Items: history})
	})
	srv := &http.Server{Handler: mux}
	go func() { _ = srv.Serve(l) }()
	t.Cleanup(func() { srv.Close() })
	cl, err := api.NewClient("unix://" + socket)
	if err != nil {
		t.Fatal(err)
	}
	return cl
}

// status is that of a stack with the service web.
func status(revision uint64, state string, update spec.UpdateState, message string) api.StackStatus {
	return api.StackStatus{Index: revision, Name: "shop", State: state, Revision: revision, Tasks: 1, Services: []api.ServiceInfo{
		{Name: "web", Stack: "shop", State: state, Message: message, Replicas: api.Replicas{Desired: 1},
			Update: spec.UpdateStatus{State: update, Message: message, Log: map[bool]string{true: "starting\nno such table"}[update == spec.UpdatePaused]}},
	}}
}

func blocked(st api.StackStatus) api.StackStatus {
	st.Services[0].Blocked = true
	return st
}

// TestWaitTellsTheTruth: the exit code and the last words are those of the end.
func TestWaitTellsTheTruth(t *testing.T) {
	failed := api.StackRevision{Revision: 5, State: "rolled_back", Why: "task shop.web.1 failed 3 times, last: exit 2", Log: "starting\nno such table"}
	back := api.StackRevision{Revision: 6, State: "completed", Author: "wherry", Rollback: 4, Current: true}
	noRoom := status(5, api.StateFailed, spec.UpdateUpdating, "")
	noRoom.Services[0].Impossible = "2 nodes: not enough memory"
	for _, tt := range []struct {
		name     string
		statuses []api.StackStatus
		history  []api.StackRevision
		code     int
		want     string // of the error, or of what is said
	}{
		{"well", []api.StackStatus{
			status(5, api.StateUpdating, spec.UpdateUpdating, "shop.web.1 is starting"), status(5, api.StateRunning, spec.UpdateCompleted, "")}, nil, 0, "shop: running, 1 task"},
		{"a failure is no end while the update is under way", []api.StackStatus{
			status(5, api.StateFailed, spec.UpdateUpdating, "exit 2"), status(5, api.StateRunning, spec.UpdateCompleted, "")}, nil, 0, "shop: running"},
		{"somebody has to act", []api.StackStatus{blocked(status(5, api.StateFailed, spec.UpdateUpdating, "network edge does not exist"))}, nil, 1,
			"stack shop failed: service shop/web: network edge does not exist"},
		{"rolled back", []api.StackStatus{
			status(5, api.StateFailed, spec.UpdateUpdating, "exit 2"), status(6, api.StateUpdating, spec.UpdateUpdating, "rolled back to revision 4, since"),
			status(6, api.StateRunning, spec.UpdateRolledBack, "")}, []api.StackRevision{failed, back}, 1,
			"stack shop: revision 5 failed: task shop.web.1 failed 3 times, last: exit 2\n  | starting\n  | no such table\nit was rolled back to revision 4; `wherry history shop` says more"},
		{"going back has failed", []api.StackStatus{status(6, api.StateFailed, spec.UpdatePaused, "rollback paused: no image")},
			[]api.StackRevision{failed, {Revision: 6, State: "paused", Rollback: 4, Current: true}}, 1,
			"revision 6, which took it back, is paused: stack shop failed: service shop/web: rollback paused: no image"},
		{"paused", []api.StackStatus{status(5, api.StateDegraded, spec.UpdatePaused, "update paused: task shop.web.1 failed: exit 2")}, nil, 1,
			"stack shop failed: service shop/web: update paused: task shop.web.1 failed: exit 2\n  | starting\n  | no such table\n`wherry service resume shop/web` goes on"},
		{"it can never fit, and that is told at once", []api.StackStatus{noRoom}, nil, 1,
			"stack shop does not fit: service shop/web: 2 nodes: not enough memory\nit stays declared"},
		{"failed after its update", []api.StackStatus{status(5, api.StateFailed, spec.UpdateCompleted, "exit 3")}, nil, 1, "service shop/web: exit 3"},
		{"somebody else came", []api.StackStatus{status(6, api.StateRunning, spec.UpdateCompleted, "")},
			[]api.StackRevision{{Revision: 5, State: "superseded"}, {Revision: 6, State: "completed", Author: "bob", Current: true}}, 1,
			"stack shop is at revision 6 by now, which bob has made: revision 5 is superseded"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var out bytes.Buffer
			a := &app{err: &out, env: func(string) (string, bool) { return "", false }}
			err := a.waitStack(t.Context(), told(t, tt.history, tt.statuses...), "shop", 7, 5, &waitFlags{wait: true})
			code, said := 0, out.String()
			if e := (*exitError)(nil); errors.As(err, &e) {
				code, said = e.code, e.Error()
			} else if err != nil {
				t.Fatal(err)
			}
			if code != tt.code || !strings.Contains(said, tt.want) {
				t.Errorf("exit %d: %s\nwant %d: %s", code, said, tt.code, tt.want)
			}
		})
	}
}

func TestSetImage(t *testing.T) {
	tmpl := spec.Template{Image: "docker.io/library/app:1", Digest: "sha256:1", PreStart: []spec.InitContainer{
		{Image: "docker.io/library/app:1", Digest: "sha256:1"}, {Image: "docker.io/library/tool:1", Digest: "sha256:2"},
	}}
	if err := setImage(&tmpl, "app:2"); err != nil {
		t.Fatal(err)
	}
	want := spec.Template{Image: "docker.io/library/app:2", PreStart: []spec.InitContainer{
		{Image: "docker.io/library/app:2"}, {Image: "docker.io/library/tool:1", Digest: "sha256:2"},
	}}
	if d := cmp.Diff(want, tmpl); d != "" {
		t.Error(d)
	}
	if err := setImage(&tmpl, "a:b:c"); err == nil || tmpl.Image != want.Image {
		t.Errorf("error %v, image %s", err, tmpl.Image)
	}
}
