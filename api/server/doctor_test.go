package server

import (
	"context"
	"net/http/httptest"
	"testing"

	"wherry.dev/api"
)

func doctored(context.Context) []api.Check {
	return []api.Check{{Name: "disk", Status: api.CheckOK, Where: "/var/lib/wherry", What: "20 GiB are free"}}
}

// TestDoctorOnAnyNode: a manager and a worker look at themselves.
func TestDoctorOnAnyNode(t *testing.T) {
	w := newWorld(t)
	worker, err := New(Config{Images: &w.host, Tasks: w, Volumes: w, Network: &w.host, Leaver: &w.host, Doctor: doctored, Caller: identify, Node: workerID, Name: "w1",
		Managers: func() []api.Peer { return nil }, Members: func() []api.Peer { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]*Server{"manager": w.server, "worker": worker} {
		r := httptest.NewRecorder()
		s.Handler(api.RuleOperator).ServeHTTP(r, httptest.NewRequest("GET", "/v1/node/doctor", nil))
		const want = `{"index":0,"items":[{"name":"disk","status":"ok","where":"/var/lib/wherry","what":"20 GiB are free"}]}` + "\n"
		if r.Code != 200 || r.Body.String() != want {
			t.Errorf("%s: %d %s", name, r.Code, r.Body)
		}
	}
}
