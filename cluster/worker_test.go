package cluster

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"wherry.dev/api"
	"wherry.dev/spec"
)

// twoManagers is a worker that knows two managers, b and c; what they answer is set
// by the test.
type twoManagers struct {
	*managers
	t    *testing.T
	b, c atomic.Pointer[http.HandlerFunc]
}

func newTwoManagers(t *testing.T) *twoManagers {
	t.Helper()
	noLeak(t)
	a := newAuthority(t, "one")
	dir := openDirectory(filepath.Join(t.TempDir(), peersFile), nil, slog.New(slog.DiscardHandler))
	pa := a.port(nodeA, func(c *portConfig) { c.Find = dir.find })
	y := &twoManagers{t: t, managers: &managers{m: &Member{id: nodeA, role: spec.RoleWorker, port: pa.port, dir: dir}}}
	info := api.ClusterInfo{Role: spec.RoleWorker}
	for id, h := range map[spec.NodeID]*atomic.Pointer[http.HandlerFunc]{nodeB: &y.b, nodeC: &y.c} {
		p := a.port(id)
		p.serve(t, func(w http.ResponseWriter, r *http.Request) { (*h.Load())(w, r) })
		info.Managers = append(info.Managers, api.Peer{ID: id, Address: p.addr()})
	}
	dir.setCluster(info)
	y.answer(&y.b, says("b"))
	y.answer(&y.c, says("c"))
	y.now = nodeB
	return y
}

func (y *twoManagers) answer(who *atomic.Pointer[http.HandlerFunc], h http.HandlerFunc) {
	who.Store(&h)
}

// says answers with a name and what was sent.
func says(name string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		io.WriteString(w, name+string(b))
	}
}

func unable(w http.ResponseWriter, _ *http.Request) {
	w.WriteHeader(http.StatusServiceUnavailable)
	io.WriteString(w, `{"error":{"class":"unavailable","message":"no leader here"}}`)
}

func (y *twoManagers) call(ctx context.Context, body io.Reader) (string, error) {
	y.t.Helper()
	r, err := http.NewRequestWithContext(ctx, "POST", "https://wherry/", body)
	if err != nil {
		y.t.Fatal(err)
	}
	resp, err := y.RoundTrip(r)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		return resp.Status + string(b), err
	}
	return string(b), err
}

// want makes a call that has to come to a manager at once, with its body.
func (y *twoManagers) want(name string) {
	y.t.Helper()
	ctx, cancel := context.WithTimeout(y.t.Context(), 5*time.Second)
	defer cancel()
	if got, err := y.call(ctx, strings.NewReader("-body")); err != nil || got != name+"-body" {
		y.t.Fatalf("answer %q, %v; want %q", got, err, name+"-body")
	}
}

// once can be read once only.
func once(text string) io.Reader { return io.MultiReader(strings.NewReader(text)) }

func TestManagerIsKept(t *testing.T) {
	y := newTwoManagers(t)
	for range 10 {
		y.want("b")
	}
}

func TestFrozenManagerIsLeft(t *testing.T) {
	y := newTwoManagers(t)
	y.want("b")
	thaw := make(chan struct{})
	defer close(thaw)
	y.answer(&y.b, func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-thaw:
		case <-r.Context().Done():
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := y.call(ctx, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a frozen manager: %v", err)
	}
	for range 5 {
		y.want("c")
	}
}

func TestManagerWithoutALeaderIsLeft(t *testing.T) {
	y := newTwoManagers(t)
	y.answer(&y.b, unable)
	y.want("c")
	y.want("c")
	// A body that cannot be sent again: the caller is told, and the next call
	// goes elsewhere.
	y.answer(&y.c, unable)
	y.answer(&y.b, says("b"))
	if got, err := y.call(t.Context(), once("x")); err != nil || !strings.HasPrefix(got, "503 ") || !strings.Contains(got, "no leader here") {
		t.Errorf("answer %q, %v", got, err)
	}
	y.want("b")
	// When nobody can, it says what they say, and asks no stranger.
	y.answer(&y.b, unable)
	y.m.dir.tell("dddddddddddddddd", "127.0.0.1:1", fromGossip)
	if got, err := y.call(t.Context(), bytes.NewReader([]byte("x"))); err != nil || !strings.Contains(got, "no leader here") {
		t.Errorf("answer %q, %v", got, err)
	}
}

func TestBodyIsSentAgainInFull(t *testing.T) {
	y := newTwoManagers(t)
	y.answer(&y.b, func(_ http.ResponseWriter, r *http.Request) {
		r.Body.Read(make([]byte, 3))
		panic(http.ErrAbortHandler)
	})
	y.want("c")
	// What cannot be sent again is not sent in part.
	y.answer(&y.c, (*y.b.Load()))
	y.answer(&y.b, says("b"))
	if got, err := y.call(t.Context(), once("whole")); err == nil {
		t.Errorf("a body that was read is sent again: %q", got)
	}
}

func TestManagerWhoseAnswerBreaksOffIsLeft(t *testing.T) {
	y := newTwoManagers(t)
	y.answer(&y.b, func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "half")
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	if got, err := y.call(t.Context(), nil); err == nil {
		t.Errorf("answer %q breaks off unnoticed", got)
	}
	y.answer(&y.b, says("b"))
	y.want("c")
}

// TestSilentHostsAreSoonPassed: managers whose hosts take no connection, and
// say nothing, do not use up the time that a session may be silent.
func TestSilentHostsAreSoonPassed(t *testing.T) {
	y := newTwoManagers(t)
	info, _ := y.m.dir.cluster()
	info.Managers = slices.Clone(info.Managers)
	for _, id := range []spec.NodeID{"dddddddddddddddd", "eeeeeeeeeeeeeeee"} {
		l, err := net.Listen("tcp", "127.0.0.1:0") // it never answers
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		info.Managers = append(info.Managers, api.Peer{ID: id, Address: l.Addr().String()})
	}
	y.m.dir.setCluster(info)
	y.now = ""
	y.failed = map[spec.NodeID]time.Time{nodeB: time.Now(), nodeC: time.Now()} // so the silent ones are asked first
	ctx, cancel := context.WithTimeout(t.Context(), api.SessionSilence)
	defer cancel()
	if got, err := y.call(ctx, nil); err != nil || got != "b" && got != "c" {
		t.Errorf("answer %q, %v", got, err)
	}
}
