package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"wherry.dev/api"
	"wherry.dev/overlay"
	"wherry.dev/spec"
)

// senders are the hosts that may send to tasks of this one: this one itself,
// and the other hosts of the tasks' networks, which are asked over their API.
type senders struct {
	node spec.NodeID
	own  *overlay.Host
	way  func(spec.NodeID) (http.RoundTripper, error)
	told *hearsay
}

const (
	// askAgain is the pause before a host is asked again that did not answer: its
	// daemon may be starting anew, and its kernel leads on meanwhile.
	askAgain = 100 * time.Millisecond
	// askMargin is how much earlier than the end a host is to answer what it
	// still leads to, so that this is known.
	askMargin = 100 * time.Millisecond
)

// Senders implements agent.Senders.
func (s senders) Senders(addrs []spec.Address) []spec.NodeID {
	return append([]spec.NodeID{s.node}, s.own.Peers(addrs)...)
}

// Withdrawn implements agent.Senders. A host that does not know the question is
// of an older version, and is not asked twice.
func (s senders) Withdrawn(ctx context.Context, n spec.NodeID, addrs []spec.Address) error {
	if n == s.node {
		if s.own.Withdrawn(ctx, addrs) != nil {
			return still(s.own.Leads(addrs))
		}
		return nil
	}
	for {
		err := s.ask(ctx, n, addrs)
		if err == nil || errors.Is(err, spec.ErrNotFound) || !pause(ctx, askAgain) {
			return s.named(n, err)
		}
	}
}

// ask asks another host once.
func (s senders) ask(ctx context.Context, n spec.NodeID, addrs []spec.Address) error {
	tr, err := s.way(n)
	if err != nil {
		return err
	}
	wait := api.MaxWithdrawWait
	if end, ok := ctx.Deadline(); ok {
		wait = min(wait, max(0, time.Until(end)-askMargin))
	}
	got, err := api.NewNodeClient(tr).Withdrawn(ctx, api.Withdraw{Addresses: addrs, Wait: spec.Duration(wait)})
	if err != nil {
		return err
	}
	return still(got.Still)
}

// named adds the name of the host to an error, as people know it.
func (s senders) named(n spec.NodeID, err error) error {
	for _, p := range s.told.nodes() {
		if err != nil && p.ID == n {
			return fmt.Errorf("%s at %s: %w", p.Name, p.Address, err)
		}
	}
	return err
}

// still says what a host leads to; nil for nothing.
func still(addrs []spec.Address) error {
	if len(addrs) == 0 {
		return nil
	}
	var ips []string
	for _, a := range addrs {
		ips = append(ips, a.IP)
	}
	return spec.Unavailablef("it still sends to %s", strings.Join(ips, ", "))
}
