package server

import (
	"context"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"wherry.dev/api"
	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// session follows a session until it ends; what is alive only is left out.
func session(t *testing.T, c *api.Client, node spec.NodeID, instance string) (<-chan api.Document, <-chan error) {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	docs, end := make(chan api.Document), make(chan error, 1)
	go func() {
		end <- c.Session(ctx, node, instance, func(d api.Document) error {
			if d == (api.Document{}) {
				return nil
			}
			select {
			case docs <- d:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	return docs, end
}

// TestSession: a node gets every document once, and again only what changed.
func TestSession(t *testing.T) {
	w, _ := running(t)
	docs, _ := session(t, w.node, testNode, "")
	first := <-docs
	if first.Wanted == nil || len(first.Wanted.Tasks) != 1 {
		t.Fatalf("first document: %+v", first)
	}
	// A write that is no concern of the node sends nothing; the next does.
	w.must(store.Command{PutContent: &store.PutContent{ID: "hmac:1", Size: 1, Data: []byte("x")}})
	w.must(store.Command{ScaleService: &store.ScaleService{Stack: "shop", Service: "web", Replicas: 2}})
	w.settle()
	next := <-docs
	if next.Wanted == nil || len(next.Wanted.Tasks) != 2 || !first.Wanted.Before(next.Wanted.Clock) {
		t.Errorf("next document: %+v", next)
	}
}

// TestSessionWithdrawsFirst: in one round the documents of networks, which lead
// to a task no more, come before the order to stop it.
func TestSessionWithdrawsFirst(t *testing.T) {
	w := newWorld(t)
	stack := nginx()
	web := stack.Services["web"]
	web.Template.NetworkMode, web.Template.Networks = "", []spec.Attachment{{Network: "default"}}
	web.Ports = []spec.Port{{Target: 80, Published: 8080, Protocol: "tcp", Mode: spec.PublishIngress}}
	stack.Services["web"], stack.Networks = web, map[string]spec.NetworkSpec{"default": {Driver: "overlay"}}
	w.must(store.Command{PutStack: &store.PutStack{Stack: stack}})
	w.settle()
	task := w.store.Snapshot().TasksOf("shop", "web")[0]
	running := spec.TaskStatus{State: spec.TaskRunning, PID: 42, Started: 1}
	w.must(store.Command{Reports: &store.Reports{Reports: []spec.Report{{Node: testNode, Tasks: []spec.TaskReport{{Task: task.ID, Status: running}}}}}})
	docs, _ := session(t, w.node, testNode, "")
	if d := <-docs; d.Network == nil || len(d.Network.Ports) != 1 || len(d.Network.Ports[0].Targets) != 1 || len(d.Network.Names) == 0 {
		t.Fatalf("first document: %+v", d)
	}
	if d := <-docs; d.Wanted == nil || d.Wanted.Tasks[0].Desired != spec.DesiredRunning {
		t.Fatalf("second document: %+v", d)
	}
	w.must(store.Command{ScaleService: &store.ScaleService{Stack: "shop", Service: "web", Replicas: 0}})
	w.settle()
	if d := <-docs; d.Network == nil || len(d.Network.Ports) != 1 || len(d.Network.Ports[0].Targets) != 0 || len(d.Network.Names) != 0 {
		t.Errorf("first document of the round: %+v", d)
	}
	if d := <-docs; d.Wanted == nil || d.Wanted.Tasks[0].Desired != spec.DesiredRemoved {
		t.Errorf("second document of the round: %+v", d)
	}
}

// TestClusterInfo: a node is told what it must know of its cluster, again when
// that has changed, and nothing that is for managers.
func TestClusterInfo(t *testing.T) {
	w := newWorld(t)
	w.join("w", "m")
	w.must(store.Command{SetAuthority: &store.SetAuthority{Authority: spec.Authority{Signer: "b", Roots: []spec.Root{
		{Hash: "a", Certificate: "cert a\n", Key: "secret"}, {Hash: "b", Certificate: "cert b", Key: "secret"}}}}})
	docs, _ := session(t, w.node, testNode, "")
	got := (<-docs).Cluster
	if got == nil || got.ClusterID != "c" || got.Role != spec.RoleManager || got.Roots != "cert a\ncert b\n" || got.Signer != "b" ||
		len(got.Managers) != 2 || len(got.Nodes) != 3 || got.Managers[1] != (api.Peer{ID: managerID, Name: "m2", Address: "127.0.0.1:2", Key: "m"}) {
		t.Errorf("cluster: %+v", got)
	}
	if d := <-docs; d.Wanted == nil {
		t.Errorf("second document: %+v", d)
	}
	w.must(store.Command{SetNodeState: &store.SetNodeState{ID: managerID, State: spec.NodeDown}})
	worker := spec.RoleWorker
	if _, err := w.client.UpdateNode(t.Context(), string(testNode), api.NodeUpdate{Role: &worker}); err == nil {
		t.Error("the last manager that is alive was demoted")
	}
	w.must(store.Command{RemoveNode: &store.RemoveNode{ID: workerID, Force: true}})
	if d := <-docs; d.Cluster == nil || len(d.Cluster.Nodes) != 2 {
		t.Errorf("after a removal: %+v", d)
	}
}

// TestSessionRemoved: the session of a node that is removed ends, and it gets
// no other one.
func TestSessionRemoved(t *testing.T) {
	a := newAuthority(t)
	w := newWorld(t)
	cert := a.issue(string(workerID), "worker", time.Hour)
	w.join(fingerprint(cert.Leaf), "m")
	c := a.member(a.serveTLS(w.server.Remote(), a.issue(string(testNode), "manager", time.Hour)), &cert)
	docs, end := session(t, c, workerID, "i1")
	<-docs
	w.must(store.Command{RemoveNode: &store.RemoveNode{ID: workerID, Force: true}})
	if err := <-end; err == nil || errors.Is(err, api.ErrRemoved) {
		t.Errorf("the stream ended with %v", err)
	}
	_, end = session(t, c, workerID, "i1")
	if err := <-end; !errors.Is(err, api.ErrRemoved) || err.Error() != "node aaaaaaaaaaaaaaaa was removed from the cluster" {
		t.Errorf("next session: %v", err)
	}
}

// TestSessionRefused: of two hosts with one identity the refused one has no
// session, and loses the one that it has.
func TestSessionRefused(t *testing.T) {
	w := newWorld(t)
	w.cluster.refused = "i2"
	first, _ := session(t, w.node, testNode, "i1")
	<-first
	_, end := session(t, w.node, testNode, "i2")
	if err := <-end; !errors.Is(err, spec.ErrConflict) {
		t.Errorf("session of the refused instance: %v", err)
	}
	third, end := session(t, w.node, testNode, "i3")
	<-third
	w.cluster.mu.Lock()
	w.cluster.refused = "i3"
	w.cluster.mu.Unlock()
	if err := w.node.Beat(t.Context(), testNode, api.Beat{Instance: "i3"}); !errors.Is(err, spec.ErrConflict) {
		t.Errorf("beat of the refused instance: %v", err)
	}
	if err := <-end; err == nil {
		t.Error("the refused session ended without an error")
	}
	// The other one goes on.
	w.must(store.Command{PutStack: &store.PutStack{Stack: nginx()}})
	w.settle()
	if d := <-first; d.Wanted == nil || len(d.Wanted.Tasks) != 1 {
		t.Errorf("the session that holds: %+v", d)
	}
}

// TestSessionNeedsCluster: a manager gives a session only while it follows a
// leader.
func TestSessionNeedsCluster(t *testing.T) {
	watch := func(w *world) *httptest.ResponseRecorder {
		rec := httptest.NewRecorder()
		w.server.Handler(api.RuleNode).ServeHTTP(rec, httptest.NewRequestWithContext(t.Context(), "GET", "/v1/sessions/"+string(testNode), nil))
		return rec
	}
	w := quietWorld(t)
	w.lost = spec.Unavailablef("no leader")
	if rec := watch(w); rec.Code != 503 {
		t.Errorf("without a leader: %d %s", rec.Code, rec.Body)
	}
	synctest.Test(t, func(t *testing.T) {
		w := quietWorld(t)
		start := time.Now()
		lead := func(id spec.NodeID) func() {
			return func() {
				w.cluster.mu.Lock()
				defer w.cluster.mu.Unlock()
				w.cluster.leader = id
			}
		}
		// A leader that is away for a moment ends nothing.
		time.AfterFunc(5500*time.Millisecond, lead(""))
		time.AfterFunc(7500*time.Millisecond, lead(managerID))
		time.AfterFunc(10500*time.Millisecond, lead(""))
		rec := watch(w)
		if d := time.Since(start); d < 12*time.Second || d > 14*time.Second {
			t.Errorf("it ended after %s", d)
		}
		if lines := strings.Count(rec.Body.String(), "\n"); lines < 12 {
			t.Errorf("%d lines, want one per second", lines)
		}
	})
}
