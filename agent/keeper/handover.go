package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"wherry.dev/spec"
)

// How one keeper replaces another: the new one asks for the handover; the old
// one stops reading and sends its state and every descriptor; the new one says
// that it has them all (ready), the old one lets go (go) and the new one
// serves (serving). Until the old one has said go, it resumes when anything
// fails; after that, only when the new one ends before it serves. So at no
// moment do both read, and what arrives meanwhile waits in the kernel.

// handoverPatience bounds each step before the old keeper lets go.
const handoverPatience = 10 * time.Second

// item is one step or one thing of a handover. Descriptors travel with it, in
// the order of the comment.
type item struct {
	// Kind is "state" (lock, listener), "resolver" (UDP, TCP), "sink" (one per
	// name in Streams), "end", "ready", "go" or "serving".
	Kind    string          `json:"kind"`
	State   json.RawMessage `json:"state,omitempty"`
	Task    spec.TaskID     `json:"task,omitempty"`
	NetNS   fileID          `json:"netns,omitzero"`
	Streams []string        `json:"streams,omitempty"`
	Lost    dropped         `json:"lost,omitzero"`
}

const (
	itemState    = "state"
	itemResolver = "resolver"
	itemSink     = "sink"
	itemEnd      = "end"
	itemReady    = "ready"
	itemGo       = "go"
	itemServing  = "serving"
)

func (p *peer) sendItem(it item, fds ...int) error { return p.send(message{Item: &it}, fds...) }

// expect reads the next message, which must be of the given kind.
func (p *peer) expect(kind string) error {
	m, fds, err := p.receive()
	closeAll(fds)
	if err != nil {
		return err
	}
	if m.Item == nil || m.Item.Kind != kind {
		return spec.Invalidf("the other keeper did not say %q", kind)
	}
	return nil
}

// giveAway hands everything over to the keeper at the other end.
func (k *keeper) giveAway(p *peer) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.replaced {
		return
	}
	k.pauseLocked()
	if err := k.offerLocked(p); err != nil {
		k.log.Warn("hand over to another keeper; going on", "err", err)
		k.resumeLocked()
		return
	}
	k.replaced = true
	for _, s := range k.sinks {
		s.close()
	}
	clear(k.sinks)
	k.lock.Close()
	k.end(errReplaced)
}

// pauseLocked returns when nothing is read any more.
func (k *keeper) pauseLocked() {
	for _, r := range k.resolvers {
		r.pause()
	}
	for _, s := range k.sinks {
		s.stop()
	}
}

func (k *keeper) resumeLocked() {
	k.guard.pause(false)
	for _, r := range k.resolvers {
		r.serve()
	}
	for _, s := range k.sinks {
		s.start()
	}
}

// offerLocked does the old keeper's part; without error, the new one serves.
func (k *keeper) offerLocked(p *peer) error {
	p.c.SetDeadline(time.Now().Add(handoverPatience))
	if err := k.sendAllLocked(p); err != nil {
		return err
	}
	if err := p.expect(itemReady); err != nil {
		return err
	}
	// From now on the other may know later deadlines than we do.
	k.guard.pause(true)
	if err := p.sendItem(item{Kind: itemGo}); err != nil {
		return err
	}
	// From here the other may be reading: only its end gives the right back.
	p.c.SetDeadline(time.Time{})
	return p.expect(itemServing)
}

func (k *keeper) sendAllLocked(p *peer) error {
	b, err := json.Marshal(k.state)
	if err != nil {
		return err
	}
	err = withFDs([]syscall.Conn{k.lock, k.listener}, func(fds []int) error {
		return p.sendItem(item{Kind: itemState, State: b}, fds...)
	})
	if err != nil {
		return err
	}
	for t, r := range k.resolvers {
		err := withFDs([]syscall.Conn{r.sockets.udp, r.sockets.tcp}, func(fds []int) error {
			return p.sendItem(item{Kind: itemResolver, Task: t, NetNS: r.sockets.ns}, fds...)
		})
		if err != nil {
			return err
		}
	}
	for t, s := range k.sinks {
		it := item{Kind: itemSink, Task: t, Lost: s.file.lost}
		var conns []syscall.Conn
		for _, st := range s.streams {
			it.Streams = append(it.Streams, st.name)
			conns = append(conns, st.f)
		}
		err := withFDs(conns, func(fds []int) error { return p.sendItem(it, fds...) })
		if err != nil {
			return err
		}
	}
	return p.sendItem(item{Kind: itemEnd})
}

// withFDs calls f with the descriptors of conns, which stay open meanwhile.
func withFDs(conns []syscall.Conn, f func(fds []int) error) error {
	var fds []int
	var next func(i int) error
	next = func(i int) error {
		if i == len(conns) {
			return f(fds)
		}
		raw, err := conns[i].SyscallConn()
		if err != nil {
			return err
		}
		var inner error
		if err := raw.Control(func(fd uintptr) {
			fds = append(fds, int(fd))
			inner = next(i + 1)
		}); err != nil {
			return err
		}
		return inner
	}
	return next(0)
}

// takeOver replaces the running keeper of the folder. It returns errRunning
// when that is of our version.
func (k *keeper) takeOver(ctx context.Context) error {
	p, err := dialControl(ctx, k.cfg.RunDir)
	if err != nil {
		return err
	}
	defer p.c.Close()
	p.c.SetDeadline(time.Now().Add(handoverPatience))
	m, err := p.call(message{Op: opStatus})
	if err != nil {
		return err
	}
	if m.Status != nil && m.Status.Version == k.cfg.Version {
		return errRunning
	}
	if err := p.send(message{Op: opHandover}); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := k.adoptLocked(p); err != nil {
		k.dropLocked()
		return fmt.Errorf("take over from another keeper: %w", err)
	}
	k.resumeLocked()
	if err := p.sendItem(item{Kind: itemServing}); err != nil {
		k.log.Warn("the keeper that was replaced is gone already", "err", err)
	}
	// What was told but not handed over is opened now.
	k.applyDNSLocked()
	k.applyLogsLocked()
	return errors.Join(k.saveLocked(), writePID(k.cfg.RunDir))
}

// adoptLocked receives everything and returns when the old keeper has let go.
func (k *keeper) adoptLocked(p *peer) error {
	for {
		m, fds, err := p.receive()
		if err != nil {
			return err
		}
		if m.Item == nil {
			closeAll(fds)
			return errors.Join(errRefused, m.fault())
		}
		if m.Item.Kind == itemEnd {
			closeAll(fds)
			break
		}
		if err := k.adoptItemLocked(*m.Item, fds); err != nil {
			return err
		}
	}
	if k.listener == nil {
		return spec.Invalidf("the other keeper handed over no state")
	}
	if err := p.sendItem(item{Kind: itemReady}); err != nil {
		return err
	}
	return p.expect(itemGo)
}

// adoptItemLocked takes one thing over; it owns fds.
func (k *keeper) adoptItemLocked(it item, fds []int) (err error) {
	want, known := map[string]int{itemState: 2, itemResolver: 2, itemSink: len(it.Streams)}[it.Kind]
	if !known { // of a newer keeper; what was told is opened anew
		closeAll(fds)
		return nil
	}
	if len(fds) != want {
		closeAll(fds)
		return spec.Invalidf("%d descriptors came with a %s, not %d", len(fds), it.Kind, want)
	}
	switch it.Kind {
	case itemState:
		k.lock = os.NewFile(uintptr(fds[0]), lockName)
		f := os.NewFile(uintptr(fds[1]), sockName)
		defer f.Close()
		if err := json.Unmarshal(it.State, &k.state); err != nil {
			return err
		}
		k.zones = newZones(k.state.DNS.Tables)
		k.guard.set(k.state.Leases.Tasks)
		l, err := net.FileListener(f)
		if err != nil {
			return err
		}
		ul, ok := l.(*net.UnixListener)
		if !ok {
			l.Close()
			return spec.Invalidf("the control socket handed over is a %T", l)
		}
		ul.SetUnlinkOnClose(false)
		k.listener = ul
	case itemResolver:
		u, t, err := adoptSockets(fds[0], fds[1])
		if err != nil {
			return err
		}
		var want spec.Resolver
		for _, r := range k.state.DNS.Resolvers {
			if r.Task == it.Task {
				want = r
			}
		}
		k.resolvers[it.Task] = newResolver(want, sockets{u, t, it.NetNS}, k.zones.view(want), k.exchange, &k.count)
	case itemSink:
		return k.adoptSinkLocked(it, fds)
	}
	return nil
}

func (k *keeper) adoptSinkLocked(it item, fds []int) error {
	var want *spec.LogSink
	for _, s := range k.state.Logs.Sinks {
		if s.Task == it.Task {
			want = &s
		}
	}
	if want == nil {
		closeAll(fds)
		return spec.Invalidf("a sink of task %s was handed over that is not wanted", it.Task)
	}
	paths := map[string]string{"stdout": want.Stdout, "stderr": want.Stderr}
	have := map[string]*stream{}
	for i, name := range it.Streams {
		st, err := adoptStream(name, paths[name], fds[i])
		if err != nil {
			closeAll(fds[i+1:])
			return err
		}
		have[name] = st
	}
	s, err := openSink(*want, have, k.slots, &k.count, k.log)
	if err != nil {
		return err
	}
	s.file.lost = it.Lost
	k.sinks[it.Task] = s
	return nil
}

// dropLocked closes what was received, without touching what it refers to.
func (k *keeper) dropLocked() {
	for _, r := range k.resolvers {
		r.close()
	}
	for _, s := range k.sinks {
		s.close()
	}
	clear(k.resolvers)
	clear(k.sinks)
	if k.listener != nil {
		k.listener.Close()
		k.listener = nil
	}
	if k.lock != nil {
		k.lock.Close() // the old keeper goes on holding it
		k.lock = nil
	}
	k.state, k.zones = state{}, nil
	k.guard.set(nil)
}
