package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"wherry.dev/spec"
)

const (
	// drainTime bounds how long the stop signal of a task waits for all hosts
	// together. It is long for those that live, which need some ten milliseconds,
	// and short for whoever stops tasks while a host is dead.
	drainTime = 2 * time.Second
	// drainTell is how long that is nothing to tell about.
	drainTell = 200 * time.Millisecond
)

// drain is the wait of one task for the hosts that send to it: they are told by
// the managers, and asked here. It is the worker's own but for what is under mu.
type drain struct {
	cancel context.CancelFunc
	end    time.Time // it is waited no longer

	mu   sync.Mutex
	left int // hosts that have not answered
	tell bool
}

// state says how many hosts are waited for, and whether that is to be told.
func (d *drain) state() (left int, tell bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.left, d.tell
}

// startDrain asks all hosts at once, in the background.
func (w *worker) startDrain(ctx context.Context) {
	w.stopProbe()
	addrs := w.served()
	hosts := w.a.c.Senders.Senders(addrs)
	ctx, cancel := context.WithTimeout(ctx, drainTime)
	d := &drain{cancel: cancel, end: time.Now().Add(drainTime), left: len(hosts)}
	w.drain = d
	tell := time.AfterFunc(drainTell, func() {
		d.mu.Lock()
		d.tell = true
		d.mu.Unlock()
		poke(w.wake)
	})
	w.a.background.Go(func() {
		defer cancel()
		defer tell.Stop()
		w.askAll(ctx, d, hosts, addrs)
	})
}

// askAll returns when each host has answered or ctx ends.
func (w *worker) askAll(ctx context.Context, d *drain, hosts []spec.NodeID, addrs []spec.Address) {
	begin := time.Now()
	var failed []string
	var all sync.WaitGroup
	for _, n := range hosts {
		all.Go(func() {
			err := w.a.c.Senders.Withdrawn(ctx, n, addrs)
			d.mu.Lock()
			d.left--
			if err != nil {
				failed = append(failed, fmt.Sprintf("node %s: %v", n, err))
			}
			d.mu.Unlock()
			poke(w.wake)
		})
	}
	all.Wait()
	took := time.Since(begin).Round(time.Millisecond)
	switch {
	case errors.Is(ctx.Err(), context.Canceled) && time.Now().Before(d.end): // it is waited for no more
	case len(failed) == 0:
		w.a.log.Debug("no host sends to the task any more", "task", w.id, "hosts", len(hosts), "took", took)
	default:
		slices.Sort(failed)
		w.a.log.Warn("a task is stopped to which hosts may still send", "task", w.id, "hosts", len(hosts), "took", took, "err", strings.Join(failed, "; "))
	}
}

// stopDrain ends the wait under way.
func (w *worker) stopDrain() {
	if w.drain != nil {
		w.drain.cancel()
		w.drain = nil
	}
}

// takeDrain tells of a wait that takes long.
func (w *worker) takeDrain() {
	if w.drain == nil {
		return
	}
	left, tell := w.drain.state()
	if !tell || left == 0 || !w.mem.StopSent.IsZero() {
		return
	}
	m := w.mem
	m.Status.Reason = fmt.Sprintf("draining: waits until %s no longer %s to it", plural(left, "host"), verb(left, "send"))
	w.commit(m)
}

func verb(n int, what string) string {
	if n == 1 {
		return what + "s"
	}
	return what
}
