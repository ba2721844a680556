package keeper

import (
	"context"
	"errors"
	"net"
	"os"
	"time"

	"wherry.dev/spec"
)

// acceptAll serves the control socket until ctx ends.
func (k *keeper) acceptAll(ctx context.Context) {
	k.listener.SetDeadline(time.Time{})
	context.AfterFunc(ctx, func() { k.listener.SetDeadline(time.Unix(1, 0)) })
	k.conns.Go(func() {
		for {
			c, err := k.listener.AcceptUnix()
			if err != nil {
				if !retryAccept(ctx, err) {
					return
				}
				continue
			}
			k.conns.Go(func() { k.serveControl(ctx, c) })
		}
	})
}

// retryAccept waits a little and reports whether accepting may go on after err:
// for want of descriptors it does, at the end of the listener it does not.
func retryAccept(ctx context.Context, err error) bool {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(50 * time.Millisecond):
		return true
	}
}

// serveControl answers the requests of one control connection. A connection
// that ends without an answer tells the client to ask the next keeper.
func (k *keeper) serveControl(ctx context.Context, c *net.UnixConn) {
	p := &peer{c: c}
	defer func() {
		if !p.kept {
			c.Close()
		}
	}()
	release := context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })
	defer release()
	if err := checkPeer(c); err != nil {
		p.send(failure(err))
		return
	}
	for {
		m, fds, err := p.receive()
		closeAll(fds)
		if err != nil {
			return
		}
		var reply message
		switch m.Op {
		case opStatus:
			reply.Status = k.status()
		case opSetDNS:
			if m.DNS == nil {
				m.DNS = &dnsState{}
			}
			reply = failure(k.setDNS(*m.DNS))
		case opSetLogs:
			if m.Logs == nil {
				m.Logs = &logsState{}
			}
			reply = failure(k.setLogs(*m.Logs))
		case opSetLeases:
			if m.Leases == nil {
				m.Leases = &leasesState{}
			}
			reply = failure(k.setLeases(*m.Leases))
		case opStop:
			if k.keep(p) {
				p.send(message{Status: &Status{Version: k.cfg.Version, PID: os.Getpid()}})
				k.end(errStopped)
			}
			return
		case opHandover:
			if release() { // once begun, it is not cut short
				k.giveAway(p)
			}
			return
		default:
			reply = failure(spec.Invalidf("the keeper of version %s knows no operation %q", k.cfg.Version, m.Op))
		}
		if k.isReplaced() || p.send(reply) != nil {
			return
		}
	}
}

func (k *keeper) isReplaced() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.replaced
}

// keep leaves a connection open until the process ends, which is what its
// other end waits for. It reports false when another keeper serves already.
func (k *keeper) keep(p *peer) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.replaced {
		return false
	}
	p.kept = true
	k.kept = append(k.kept, p)
	return true
}
