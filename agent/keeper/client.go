package keeper

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"wherry.dev/spec"
)

const (
	// pingEvery is how often Run asks whether the keeper still answers; its end
	// is noticed at once.
	pingEvery = 5 * time.Second
	// hungAfter without an answer, a keeper is ended and started anew.
	hungAfter = 15 * time.Second
	// callTimeout bounds a call whose context has no deadline.
	callTimeout = 30 * time.Second
	// maxBackoff is the longest wait before a keeper that ends again and again
	// is started; one that lived for shortLife is started at once.
	maxBackoff = 500 * time.Millisecond
	shortLife  = 2 * time.Second
)

// Client is the daemon's end. It implements agent.Logs, agent.Leases, and the sink of names
// of the overlay. Safe for concurrent use.
type Client struct {
	cfg Config
	log *slog.Logger
	// starts reports whether the client may start and replace keepers.
	starts bool

	starting sync.Mutex // one start at a time

	dnsMu sync.Mutex // orders calls of SetDNS; guards dns
	dns   *dnsState  // told last, nil when nothing was

	logsMu sync.Mutex // orders calls of SetLogs; guards logs
	logs   *logsState

	leasesMu sync.Mutex // orders calls of SetLeases; guards leases
	leases   *leasesState

	stopOnce sync.Once
	stopped  chan struct{} // closed by Stop
}

// NewClient returns a client of whatever keeper runs in a folder, without
// connecting. It never starts one: its calls fail with class
// spec.ErrUnavailable when none runs.
func NewClient(runDir string) *Client {
	return newClient(Config{RunDir: runDir}, false)
}

func newClient(c Config, starts bool) *Client {
	return &Client{cfg: c, log: c.logger(), starts: starts, stopped: make(chan struct{})}
}

// Ensure returns a client of a keeper of c.Version that serves in c.RunDir: the
// one that runs there, or a new one, to which one of another version has handed
// over its work. Its calls start the keeper again when it has died; Run does so
// without waiting for a call.
func Ensure(ctx context.Context, c Config) (*Client, error) {
	cl := newClient(c, true)
	return cl, cl.ensure(ctx)
}

// SetDNS replaces the resolvers and the names of all networks as a whole. When
// it returns nil, every resolver answers, from these tables. When it returns
// an error, all others do, and the keeper goes on trying those named in it.
func (c *Client) SetDNS(ctx context.Context, resolvers []spec.Resolver, tables []spec.NameTable) error {
	c.dnsMu.Lock()
	defer c.dnsMu.Unlock()
	c.dns = &dnsState{Resolvers: resolvers, Tables: tables}
	if err := c.call(ctx, message{Op: opSetDNS, DNS: c.dns}); err != nil {
		return fmt.Errorf("set names: %w", err)
	}
	return nil
}

// SetLogs replaces the list of sinks as a whole. When it returns nil, the FIFOs
// of all are open. A sink that is no longer listed is drained to its end in the
// background, for at most two seconds, and closed. When it returns an error,
// all others are served, and the keeper goes on trying those named in it.
func (c *Client) SetLogs(ctx context.Context, sinks []spec.LogSink) error {
	c.logsMu.Lock()
	defer c.logsMu.Unlock()
	c.logs = &logsState{Sinks: sinks}
	if err := c.call(ctx, message{Op: opSetLogs, Logs: c.logs}); err != nil {
		return fmt.Errorf("set logs: %w", err)
	}
	return nil
}

// SetLeases replaces the list of exclusive tasks and their deadlines as a whole.
// When it returns nil, the keeper ends what is in a task's cgroup from the
// deadline on, and the next keeper would, too. The processes of a task must have
// ended before it is taken off the list.
func (c *Client) SetLeases(ctx context.Context, leases []spec.TaskLease) error {
	c.leasesMu.Lock()
	defer c.leasesMu.Unlock()
	c.leases = &leasesState{Tasks: leases}
	if err := c.call(ctx, message{Op: opSetLeases, Leases: c.leases}); err != nil {
		return fmt.Errorf("set leases: %w", err)
	}
	return nil
}

// Status asks the keeper about itself. It never starts one.
func (c *Client) Status(ctx context.Context) (Status, error) {
	m, err := c.ask(ctx, message{Op: opStatus})
	if err == nil && m.Status == nil {
		err = errors.New("the answer holds no status")
	}
	if err != nil {
		return Status{}, unavailable(err)
	}
	return *m.Status, nil
}

func unavailable(err error) error {
	if nobody(err) {
		return spec.Unavailablef("no keeper is running")
	}
	return err
}

// tries of a question whose connection ended without an answer, as happens when
// a keeper is being replaced. All questions may be repeated.
const tries = 3

// ask asks a question, over a connection of its own.
func (c *Client) ask(ctx context.Context, m message) (reply message, err error) {
	for range tries {
		reply, err = c.askOnce(ctx, m)
		if err == nil || nobody(err) || isTimeout(err) || ctx.Err() != nil {
			break
		}
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return reply, err
}

func (c *Client) askOnce(ctx context.Context, m message) (message, error) {
	p, done, err := c.connect(ctx)
	if err != nil {
		return message{}, err
	}
	defer done()
	reply, err := p.call(m)
	if err != nil {
		return message{}, fmt.Errorf("ask the keeper: %w", err)
	}
	return reply, nil
}

// connect connects for as long as ctx, or callTimeout.
func (c *Client) connect(ctx context.Context) (*peer, func(), error) {
	p, err := dialControl(ctx, c.cfg.RunDir)
	if err != nil {
		return nil, nil, err
	}
	end, ok := ctx.Deadline()
	if !ok {
		end = time.Now().Add(callTimeout)
	}
	p.c.SetDeadline(end)
	stop := context.AfterFunc(ctx, func() { p.c.SetDeadline(time.Unix(1, 0)) })
	return p, func() { stop(); p.c.Close() }, nil
}

// call tells the keeper something, after starting one if none runs.
func (c *Client) call(ctx context.Context, m message) error {
	reply, err := c.ask(ctx, m)
	if err != nil && c.starts && ctx.Err() == nil && !isTimeout(err) {
		if err := c.ensure(ctx); err != nil {
			return err
		}
		reply, err = c.ask(ctx, m)
	}
	if err != nil {
		return unavailable(err)
	}
	return reply.fault()
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout() || errors.Is(err, os.ErrDeadlineExceeded)
}

// ensure makes sure that a keeper of our version serves.
func (c *Client) ensure(ctx context.Context) error {
	c.starting.Lock()
	defer c.starting.Unlock()
	select {
	case <-c.stopped:
		return spec.Unavailablef("the keeper was stopped")
	default:
	}
	short, cancel := context.WithTimeout(ctx, hungAfter)
	defer cancel()
	s, err := c.Status(short)
	switch {
	case err == nil && s.Version == c.cfg.Version:
		return nil
	case err == nil:
		c.log.Info("replace the keeper", "pid", s.PID, "from", s.Version, "to", c.cfg.Version)
		err := spawn(ctx, c.cfg)
		if err == nil || ctx.Err() != nil {
			return err
		}
		c.log.Warn("the keeper does not hand over", "pid", s.PID, "err", err)
		if err := c.killHung(ctx); err != nil {
			return err
		}
	case ctx.Err() != nil:
		return err
	case isTimeout(err) || errors.Is(err, context.DeadlineExceeded):
		if err := c.killHung(ctx); err != nil {
			return err
		}
	}
	if err := spawn(ctx, c.cfg); err != nil {
		return fmt.Errorf("start keeper: %w", err)
	}
	return nil
}

// killHung ends a keeper that does not do what it is asked. It loses nothing by that: what
// it has not written yet is still in the FIFOs.
func (c *Client) killHung(ctx context.Context) error {
	p, err := readPID(c.cfg.RunDir)
	if err != nil {
		return fmt.Errorf("end the keeper: %w", err)
	}
	c.log.Error("the keeper does not do what it is asked; ending it", "pid", p.PID)
	if err := p.kill(ctx); err != nil {
		return fmt.Errorf("end the keeper: %w", err)
	}
	return nil
}

// Run watches over the keeper until ctx ends or Stop is called: when it has
// died it is started again at once, and told again what it was told last. It
// returns nil.
func (c *Client) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var backoff time.Duration
	for first := true; ; first = false {
		err := c.ensure(ctx)
		if err == nil && !first {
			c.repeat(ctx)
		}
		if err == nil {
			began := time.Now()
			err = c.watch(ctx)
			if time.Since(began) > shortLife {
				backoff = 0
			}
		}
		select {
		case <-ctx.Done():
		case <-c.stopped:
		case <-time.After(backoff):
		}
		if c.ended(ctx) {
			return nil
		}
		c.log.Warn("the keeper is gone; starting it again", "err", err)
		backoff = min(max(2*backoff, 50*time.Millisecond), maxBackoff)
	}
}

// ended reports whether Run is to end.
func (c *Client) ended(ctx context.Context) bool {
	select {
	case <-ctx.Done():
		return true
	case <-c.stopped:
		return true
	default:
		return false
	}
}

// watch returns when the keeper has ended or does not answer.
func (c *Client) watch(ctx context.Context) error {
	p, err := dialControl(ctx, c.cfg.RunDir)
	if err != nil {
		return err
	}
	defer p.c.Close()
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		select {
		case <-ctx.Done():
		case <-c.stopped:
		case <-ended:
		}
		p.c.Close()
	}()
	for {
		p.c.SetDeadline(time.Now().Add(hungAfter))
		m, err := p.call(message{Op: opStatus})
		if err != nil {
			return err
		}
		if m.Status == nil || m.Status.Version != c.cfg.Version {
			return errReplaced
		}
		p.c.SetDeadline(time.Now().Add(pingEvery))
		if _, fds, err := p.receive(); !isTimeout(err) {
			closeAll(fds)
			return fmt.Errorf("the keeper closed the connection: %w", err)
		}
	}
}

// repeat tells a keeper again what the last one was told.
func (c *Client) repeat(ctx context.Context) {
	c.dnsMu.Lock()
	if c.dns != nil {
		if err := c.call(ctx, message{Op: opSetDNS, DNS: c.dns}); err != nil {
			c.log.Warn("set names again", "err", err)
		}
	}
	c.dnsMu.Unlock()
	c.logsMu.Lock()
	if c.logs != nil {
		if err := c.call(ctx, message{Op: opSetLogs, Logs: c.logs}); err != nil {
			c.log.Warn("set logs again", "err", err)
		}
	}
	c.logsMu.Unlock()
	c.leasesMu.Lock()
	if c.leases != nil {
		if err := c.call(ctx, message{Op: opSetLeases, Leases: c.leases}); err != nil {
			c.log.Warn("set leases again", "err", err)
		}
	}
	c.leasesMu.Unlock()
}

// Stop ends the keeper, for good as far as this client goes, and returns when
// its process is gone and the FIFOs' output is written. A keeper that is not
// gone when ctx ends is killed. That none runs is no error.
func (c *Client) Stop(ctx context.Context) error {
	c.stopOnce.Do(func() { close(c.stopped) })
	c.starting.Lock()
	defer c.starting.Unlock()
	id, err := c.askStop(ctx)
	switch {
	case nobody(err):
		return nil
	case err == nil:
		if err = id.wait(ctx); err == nil {
			return nil
		}
	}
	if id == (process{}) { // it did not say
		var idErr error
		if id, idErr = readPID(c.cfg.RunDir); idErr != nil {
			return errors.Join(err, idErr)
		}
	}
	return errors.Join(err, id.kill(context.WithoutCancel(ctx)))
}

// askStop asks the keeper to end and waits until it closes the connection,
// which is the last that it does. It returns which process that is, also with an
// error, as far as the keeper said it.
func (c *Client) askStop(ctx context.Context) (id process, err error) {
	for range tries {
		if id, err = c.askStopOnce(ctx); err == nil || nobody(err) || isTimeout(err) {
			break
		} // it was being replaced: ask the next
	}
	return id, err
}

func (c *Client) askStopOnce(ctx context.Context) (id process, err error) {
	p, done, err := c.connect(ctx)
	if err != nil {
		return id, err
	}
	defer done()
	m, err := p.call(message{Op: opStop})
	if err != nil {
		return id, err
	}
	if m.Status != nil {
		id, _ = processOf(m.Status.PID) // none, if it is gone by now
	}
	if _, _, err := p.receive(); isTimeout(err) {
		return id, err
	}
	return id, nil
}
