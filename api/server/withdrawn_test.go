package server

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"wherry.dev/api"
	"wherry.dev/spec"
)

// TestWithdrawn: nodes ask a worker, over the network and without any manager,
// what it still leads to.
func TestWithdrawn(t *testing.T) {
	a, ctx := newAuthority(t), t.Context()
	one, other := spec.Address{Network: "1-2", IP: "10.0.1.7/24"}, spec.Address{Network: "1-2", IP: "10.0.1.8/24"}
	host := &fakeHost{name: "w1", leads: []spec.Address{one}, less: make(chan struct{})}
	far, err := New(Config{Images: host, Tasks: &world{}, Volumes: &world{}, Network: host, Leaver: host, Doctor: doctored, Caller: identify, Node: workerID, Name: "w1",
		Managers: func() []api.Peer { return nil },
		Members:  func() []api.Peer { return []api.Peer{{ID: testNode}, {ID: workerID}} }})
	if err != nil {
		t.Fatal(err)
	}
	addr := a.serveTLS(far.Remote(), a.issue(string(workerID), "worker", time.Hour))
	neighbour := a.member(addr, ptr(a.issue(string(testNode), "worker", time.Hour)))
	ask := func(r api.Withdraw) ([]spec.Address, error) {
		got, err := neighbour.Withdrawn(ctx, r)
		return got.Still, err
	}
	if still, err := ask(api.Withdraw{Addresses: []spec.Address{other}, Wait: spec.Duration(5 * time.Second)}); err != nil || len(still) > 0 {
		t.Errorf("nothing leads there: %v, %v", still, err)
	}
	if still, err := ask(api.Withdraw{Addresses: []spec.Address{other, one}, Wait: spec.Duration(50 * time.Millisecond)}); err != nil || !slices.Equal(still, []spec.Address{one}) {
		t.Errorf("one of two: %v, %v", still, err)
	}
	time.AfterFunc(50*time.Millisecond, func() {
		host.mu.Lock()
		defer host.mu.Unlock()
		host.leads = nil
		close(host.less)
	})
	begin := time.Now()
	if still, err := ask(api.Withdraw{Addresses: []spec.Address{one}, Wait: spec.Duration(5 * time.Second)}); err != nil || len(still) > 0 || time.Since(begin) > 4*time.Second {
		t.Errorf("it was withdrawn meanwhile: %v, %v after %s", still, err, time.Since(begin))
	}

	for what, r := range map[string]api.Withdraw{
		"6 s":           {Wait: spec.Duration(6 * time.Second)},
		"less than 0":   {Wait: -1},
		"too many":      {Addresses: make([]spec.Address, api.MaxWithdrawAddrs+1)},
		"too much text": {Addresses: []spec.Address{{IP: strings.Repeat("1", 65<<10)}}},
	} {
		if _, err := ask(r); !errors.Is(err, spec.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := a.member(addr, ptr(a.issue("eeeeeeeeeeeeeeee", "worker", time.Hour))).Withdrawn(ctx, api.Withdraw{}); !errors.Is(err, api.ErrForbidden) {
		t.Errorf("a node that is none: %v", err)
	}
	host.leads, host.less = []spec.Address{one}, make(chan struct{})
	brief, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := neighbour.Withdrawn(brief, api.Withdraw{Addresses: []spec.Address{one}, Wait: spec.Duration(5 * time.Second)}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a caller that has gone: %v", err)
	}
}
