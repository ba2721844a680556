package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"time"

	"wherry.dev/cluster/ca"
	"wherry.dev/spec"
)

const (
	// dialTime is how long the way to a node is looked for, on all its
	// addresses together, and dialStagger how long the first has for itself.
	dialTime    = 2 * time.Second
	dialStagger = 150 * time.Millisecond
	// idlePing and pingTime bound how long a request waits for a peer that has
	// vanished: a ping after so much silence, and the end after so much more.
	// A session says something every second, so a live one needs no pings.
	idlePing = 1250 * time.Millisecond
	pingTime = time.Second
	// idleTime is how long a connection without a request is kept.
	idleTime = 30 * time.Second
	// retireTime is how long before the end of a certificate what was opened
	// with it is closed.
	retireTime = time.Minute
)

// dial opens a stream of the protocol to a node, whichever of its addresses it
// answers at.
func (p *port) dial(ctx context.Context, id spec.NodeID, proto string) (net.Conn, error) {
	addrs := p.c.Find(id)
	if len(addrs) == 0 {
		return nil, spec.Unavailablef("reach node %s: no address of it is known", id)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, dialTime, fmt.Errorf("no answer within %s", dialTime))
	defer cancel()
	conn, err := first(ctx, addrs, func(ctx context.Context, addr string) (net.Conn, error) {
		return p.dialAt(ctx, addr, id, proto)
	})
	if err != nil {
		return nil, spec.Unavailablef("reach node %s: %v", id, err)
	}
	return conn, nil
}

// dialAt opens a stream to the node at an address; id is who it must be, or
// empty for any node of the cluster.
func (p *port) dialAt(ctx context.Context, addr string, id spec.NodeID, proto string) (net.Conn, error) {
	conn, peer, err := dialNode(ctx, p.c.Identity, addr, id, proto, func(raw net.Conn) (net.Conn, error) {
		c := p.own(raw)
		if c == nil {
			return nil, net.ErrClosed
		}
		c.deaf(deafTime)
		if proto == protoHTTP1 || proto == protoHTTP2 {
			c.deaf(deafClientTime)
		}
		return c, nil
	})
	if peer != "" && p.c.Learn != nil {
		p.c.Learn(peer, addr)
	}
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// dialNode connects to an address and finds out which node is there. It is
// empty when none of this cluster is; it is also returned along with the error
// that says that it is not the one that was wanted. An empty id wants any. wrap
// sees the connection before it is used, and closes it if it fails.
func dialNode(ctx context.Context, identity *ca.Identity, addr string, id spec.NodeID, proto string, wrap func(net.Conn) (net.Conn, error)) (*tls.Conn, spec.NodeID, error) {
	raw, err := (&net.Dialer{KeepAliveConfig: keepAlive}).DialContext(ctx, "tcp", addr)
	if err == nil {
		raw, err = wrap(raw)
	}
	if err != nil {
		return nil, "", shorten(ctx, addr, err)
	}
	var peer spec.NodeID
	conn := tls.Client(raw, identity.Client(func(c ca.Caller) error {
		if c.Kind != ca.KindNode {
			return fmt.Errorf("%s answers as %s, which is no node", addr, c.ID)
		}
		peer = spec.NodeID(c.ID)
		if id != "" && peer != id {
			return fmt.Errorf("%s answers as node %s, not %s", addr, peer, id)
		}
		return nil
	}, proto))
	err = conn.HandshakeContext(ctx)
	switch {
	case err != nil && id != "" && peer != "" && peer != id:
		err = fmt.Errorf("%s answers as node %s, not %s", addr, peer, id)
	case err != nil:
		err = shorten(ctx, addr, err)
	case conn.ConnectionState().NegotiatedProtocol != proto:
		err = fmt.Errorf("%s does not speak %s", addr, proto)
	}
	if err != nil {
		raw.Close()
		return nil, peer, err
	}
	return conn, peer, nil
}

// shorten says once where it went wrong, and why: an error of a dial that ends
// with its context does not say why the context did.
func shorten(ctx context.Context, addr string, err error) error {
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	var op *net.OpError
	if errors.As(err, &op) && op.Err != nil {
		err = op.Err
	}
	return fmt.Errorf("%s: %w", addr, err)
}

// first dials all addresses, each a little later than the one before or as
// soon as that has failed, and returns the first connection. No dial is left
// when it returns but for one that ends at once.
func first(ctx context.Context, addrs []string, dial func(context.Context, string) (net.Conn, error)) (net.Conn, error) {
	if len(addrs) == 1 {
		return dial(ctx, addrs[0])
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type answer struct {
		conn net.Conn
		err  error
	}
	answers := make(chan answer)
	var errs []error
	begun := 0
	next := time.NewTimer(0)
	defer next.Stop()
	for len(errs) < len(addrs) {
		select {
		case <-next.C:
			if begun == len(addrs) {
				continue
			}
			addr := addrs[begun]
			begun++
			next.Reset(dialStagger)
			go func() {
				conn, err := dial(ctx, addr)
				select {
				case answers <- answer{conn, err}:
				case <-ctx.Done():
					if err == nil {
						conn.Close()
					}
				}
			}()
		case a := <-answers:
			if a.err == nil {
				return a.conn, nil
			}
			errs = append(errs, a.err)
			next.Reset(0)
		case <-ctx.Done():
			return nil, oneLine(append(errs, context.Cause(ctx)))
		}
	}
	return nil, oneLine(errs)
}

// oneLine joins errors as errors.Join does, on one line.
func oneLine(errs []error) error {
	words := make([]string, len(errs))
	for i, err := range errs {
		words[i] = err.Error()
	}
	return errors.New(strings.Join(words, "; "))
}

// transport returns the way of HTTP requests to a node; the host of their URL
// does not matter. Requests share one HTTP/2 connection, which is checked while
// it is silent, and those that begin after the node has got another certificate
// share another one; see followCertificate. A request with an Upgrade header
// has an HTTP/1.1 connection of its own, which becomes the response's body.
func (p *port) transport(id spec.NodeID) nodeTransport { return nodeTransport{p, id} }

type nodeTransport struct {
	p  *port
	id spec.NodeID
}

func (t nodeTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	u := *r.URL
	u.Scheme, u.Host = "https", string(t.id)
	r = r.WithContext(r.Context())
	r.URL = &u
	if r.Header.Get("Upgrade") != "" {
		return t.p.upgrade.RoundTrip(r)
	}
	return t.p.http2.Load().RoundTrip(r)
}

// roundTripWithin is RoundTrip; in haste it fails when there is no connection
// after passTime. The time of an answer is not bounded.
func (t nodeTransport) roundTripWithin(r *http.Request, haste bool) (*http.Response, error) {
	if !haste || r.Header.Get("Upgrade") != "" {
		return t.RoundTrip(r)
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	late := time.AfterFunc(passTime, func() {
		cancel(spec.Unavailablef("reach node %s: not within %s", t.id, passTime))
	})
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { late.Stop() }})
	resp, err := t.RoundTrip(r.WithContext(ctx))
	late.Stop()
	if err != nil {
		if r.Context().Err() == nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		cancel(nil)
		return nil, err
	}
	resp.Body = bodyOf{resp.Body, func() { cancel(nil) }}
	return resp, nil
}

// bodyOf ends what belongs to an answer together with its body.
type bodyOf struct {
	io.ReadCloser
	end func()
}

func (b bodyOf) Close() error {
	defer b.end()
	return b.ReadCloser.Close()
}

// followCertificate sees to it that requests come with the certificate that
// the node has, until the port is closed. A connection stays with the one that
// it was opened with, and the other side judges each call by it: so a new
// certificate gets a new pool. What is under way on the connections of the old
// one comes to its end there, but what has not when the old certificate ends is
// cut, and whoever streams has to begin again. leaf is the certificate that the
// first pool was made with.
func (p *port) followCertificate(leaf *x509.Certificate) {
	for {
		changed := p.c.Identity.Changed()
		if now := p.c.Identity.Leaf(); now != leaf {
			old := p.http2.Swap(p.newTransport(protoHTTP2))
			old.CloseIdleConnections()
			if leaf != nil {
				end := leaf.NotAfter.Add(-retireTime)
				p.wg.Go(func() { p.retire(old, end) })
			}
			leaf = now
		}
		select {
		case <-p.closed:
			return
		case <-changed:
		}
	}
}

// retire cuts the connections of a pool at a time.
func (p *port) retire(pool *http.Transport, at time.Time) {
	for {
		left := at.Sub(p.c.Identity.Now())
		if left <= 0 {
			break
		}
		t := time.NewTimer(min(left, time.Hour)) // a clock may be set meanwhile
		select {
		case <-p.closed:
			t.Stop()
			return
		case <-t.C:
		}
	}
	p.mu.Lock()
	var gone []*portConn
	for c := range p.conns {
		if c.pool == pool {
			gone = append(gone, c)
		}
	}
	p.mu.Unlock()
	for _, c := range gone {
		c.Close()
	}
}

func (p *port) newTransport(proto string) *http.Transport {
	var protos http.Protocols
	protos.SetHTTP2(proto == protoHTTP2)
	protos.SetHTTP1(proto == protoHTTP1)
	t := &http.Transport{
		Protocols:          &protos,
		DisableCompression: true,
		DisableKeepAlives:  proto == protoHTTP1,
		IdleConnTimeout:    idleTime,
		HTTP2:              &http.HTTP2Config{SendPingTimeout: idlePing, PingTimeout: pingTime},
	}
	t.DialTLSContext = func(ctx context.Context, _, host string) (net.Conn, error) {
		id, _, err := net.SplitHostPort(host)
		if err != nil {
			return nil, err
		}
		conn, err := p.dial(ctx, spec.NodeID(id), proto)
		if err != nil {
			return nil, err
		}
		if c, ok := conn.(*tls.Conn).NetConn().(*portConn); ok && proto == protoHTTP2 {
			p.mu.Lock()
			c.pool = t
			p.mu.Unlock()
		}
		return conn, nil
	}
	return t
}
