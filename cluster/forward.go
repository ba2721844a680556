package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"wherry.dev/api"
	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

const (
	// leaderTime is how long a command or a read is tried while leadership
	// changes.
	leaderTime = 10 * time.Second
	// leaderRetry is how long a failed try waits for the news of another
	// leader before it asks the same one again.
	leaderRetry = 50 * time.Millisecond

	// The routes of managers among themselves; api.Routes has them too.
	proposePath = "/v1/cluster/propose"
	readPath    = "/v1/cluster/read-index"
	alivePath   = "/v1/cluster/alive"
	memberPath  = "/v1/node/member"
)

// bell wakes everyone who waits for it. The zero value is ready for use.
type bell struct {
	mu sync.Mutex
	c  chan struct{}
}

// wait returns a channel that the next ring closes. It is taken before the
// look at what the bell stands for.
func (b *bell) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.c == nil {
		b.c = make(chan struct{})
	}
	return b.c
}

func (b *bell) ring() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.c != nil {
		close(b.c)
		b.c = nil
	}
}

// refused is an error that the leader has decided upon: another try would not
// end otherwise.
type refused struct{ error }

func (r refused) Unwrap() error { return r.error }

var (
	errNoLeader = spec.Unavailablef("the cluster has no leader now: fewer than half of its managers can be reached, or they are just electing one; try again in a moment")
)

// leader returns who leads, as far as this member knows; empty is nobody.
func (m *Member) leader() spec.NodeID {
	m.mu.Lock()
	r, open := m.raft, m.open
	m.mu.Unlock()
	if !open {
		return ""
	}
	addr, _ := r.LeaderWithID()
	return spec.NodeID(addr)
}

// watchLeader rings m.led whenever another member leads, or none.
func (m *Member) watchLeader(ctx context.Context, r *raft.Raft) {
	c := make(chan raft.Observation, 1)
	o := raft.NewObserver(c, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	})
	r.RegisterObserver(o)
	defer r.DeregisterObserver(o)
	for {
		select {
		case <-ctx.Done():
			m.led.ring()
			return
		case <-c:
			m.led.ring()
		}
	}
}

// throughLeader does something at the leader: here when this member leads, or
// there. It tries again through a change of leadership as long as nothing was
// done yet, or, when repeat is set, whatever was done.
func throughLeader[T any](ctx context.Context, m *Member, repeat bool,
	here func(context.Context) (T, error), there func(context.Context, spec.NodeID) (T, error)) (T, error) {
	began := time.Now()
	for {
		changed := m.led.wait()
		var v T
		err := errNoLeader
		sent := false
		switch leader := m.leader(); {
		case m.halt.failure() != nil || !m.running():
			return v, m.stopped(m.halt.failure())
		case leader == m.id:
			v, err = here(ctx)
			sent = !errors.Is(err, errNotLeader) && !errors.Is(err, errTransfer)
		case leader != "" && m.port == nil:
			return v, errNotLeader
		case leader != "":
			// A leader that is frozen answers never; the next one does.
			call, cancel := context.WithTimeout(ctx, leaderTime)
			go func() {
				select {
				case <-changed:
					cancel()
				case <-call.Done():
				}
			}()
			v, err = there(call, leader)
			cancel()
			sent = !errors.Is(err, errNotSent)
		}
		var final refused
		switch {
		case err == nil:
			return v, nil
		case ctx.Err() != nil:
			return v, fmt.Errorf("wait for the cluster: %w", context.Cause(ctx))
		case errors.As(err, &final):
			return v, final.error
		case m.halt.failure() != nil, sent && !repeat, !errors.Is(err, spec.ErrUnavailable), time.Since(began) > leaderTime:
			return v, err
		}
		pause := time.NewTimer(leaderRetry)
		select {
		case <-changed:
		case <-pause.C:
		case <-ctx.Done():
		case <-m.halt.c:
		}
		pause.Stop()
	}
}

func (m *Member) running() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.open
}

// errNotSent is the class of errors after which the other side has surely done
// nothing.
var errNotSent = errors.New("nothing was sent")

// applyAt applies a command at the leader, and returns when it is applied here
// as well.
func (m *Member) applyAt(ctx context.Context, leader spec.NodeID, entry []byte) (store.Result, error) {
	var f api.Forwarded
	if err := m.call(ctx, leader, "POST", proposePath, entry, &f); err != nil {
		return store.Result{}, err
	}
	if f.Index == 0 {
		return store.Result{}, refused{spec.ErrorOfClass(f.Class, f.Error)}
	}
	res := resultOf(f)
	if err := m.reach(ctx, f.Index); err != nil {
		return store.Result{}, err
	}
	return res, nil
}

// forwarded is what goes over the wire of a result; resultOf is its inverse.
func forwarded(res store.Result) api.Forwarded {
	f := api.Forwarded{Index: res.Index, Revision: res.Revision, Changed: res.Changed}
	if res.Err != nil {
		f.Error, f.Class = res.Err.Error(), spec.ErrorClass(res.Err)
	}
	for _, err := range res.Parts {
		text := ""
		if err != nil {
			text = err.Error()
		}
		f.Parts = append(f.Parts, text)
	}
	return f
}

func resultOf(f api.Forwarded) store.Result {
	res := store.Result{Index: f.Index, Revision: f.Revision, Changed: f.Changed}
	if f.Error != "" {
		res.Err = spec.ErrorOfClass(f.Class, f.Error)
	}
	for _, text := range f.Parts {
		var err error
		if text != "" {
			err = spec.Conflictf("%s", text)
		}
		res.Parts = append(res.Parts, err)
	}
	return res
}

// reach waits until the command at index is applied here.
func (m *Member) reach(ctx context.Context, index uint64) error {
	for {
		changed := m.store.Watch()
		if m.store.Snapshot().Index() >= index {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return spec.Unavailablef("this manager is behind the leader: it has not seen entry %d yet; try again in a moment", index)
		case <-m.halt.c:
			return m.stopped(m.halt.err)
		}
	}
}

// Forward proposes an encoded command that another manager has sent. It fails
// with class ErrUnavailable when this member does not lead, and with class
// ErrInvalid when the command is none that a manager may send.
func (m *Member) Forward(ctx context.Context, entry []byte) (api.Forwarded, error) {
	// An entry that cannot be read would stop every manager.
	c, err := store.Decode(entry)
	switch {
	case err != nil:
		return api.Forwarded{}, spec.Invalidf("forward command: %v", err)
	case len(entry) > maxEntry:
		return api.Forwarded{}, spec.Invalidf("forward command: it has %d KiB, at most %d are possible", len(entry)>>10, maxEntry>>10)
	case leadersOwn(&c):
		return api.Forwarded{}, spec.Invalidf("forward command: %s is for the leader alone to propose", c.Kind())
	case m.role != spec.RoleManager:
		return api.Forwarded{}, errWorker
	}
	if m.leader() != m.id {
		return api.Forwarded{}, errNotLeader
	}
	if err := m.room(&c); err != nil {
		return api.Forwarded{Error: err.Error(), Class: spec.ErrorClass(err)}, nil
	}
	res, err := m.apply(ctx, entry)
	if err != nil {
		return api.Forwarded{}, err
	}
	return forwarded(res), nil
}

// ReadIndex returns an index at which a state holds every write that was
// acknowledged before the call. It fails with class ErrUnavailable when this
// member does not lead.
func (m *Member) ReadIndex(ctx context.Context) (api.ReadIndex, error) {
	if m.role != spec.RoleManager {
		return api.ReadIndex{}, errWorker
	}
	if err := m.verify(ctx); err != nil {
		return api.ReadIndex{}, err
	}
	s := m.store.Snapshot()
	return api.ReadIndex{Index: s.Index(), Incarnation: s.Incarnation()}, nil
}

// call calls another node's API. in is sent as it is when it is bytes, else as
// JSON; nil sends nothing.
func (m *Member) call(ctx context.Context, id spec.NodeID, method, path string, in, out any) error {
	way, err := m.Transport(id)
	if err != nil {
		return fmt.Errorf("%w: %w", errNotSent, err)
	}
	return callOver(ctx, way, method, path, in, out)
}

func callOver(ctx context.Context, way http.RoundTripper, method, path string, in, out any) error {
	var body io.Reader
	kind := "application/json"
	switch in := in.(type) {
	case nil:
	case []byte:
		body, kind = bytes.NewReader(in), "application/octet-stream"
	default:
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("call %s: %w", path, err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://wherry"+path, body)
	if err != nil {
		return fmt.Errorf("call %s: %w", path, err)
	}
	if body != nil {
		req.Header.Set("Content-Type", kind)
	}
	resp, err := way.RoundTrip(req)
	if err != nil {
		// The class tells whoever can to try again, or elsewhere.
		return spec.Unavailablef("call %s: %v", path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return spec.Unavailablef("call %s: %v", path, err)
	}
	if resp.StatusCode >= 400 {
		var e api.ErrorBody
		if json.Unmarshal(b, &e) != nil || e.Error.Message == "" {
			return spec.Unavailablef("call %s: %s: %s", path, resp.Status, strings.TrimSpace(string(b)))
		}
		return api.ErrorOfClass(e.Error.Class, e.Error.Message)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("call %s: %w", path, err)
	}
	return nil
}
