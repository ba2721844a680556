package cluster

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"wherry.dev/api"
	"wherry.dev/cluster/ca"
	"wherry.dev/spec"
)

const (
	// joinTime is how long one attempt to join may take.
	joinTime = 15 * time.Second
	// maxReply is the largest answer that is read, in bytes.
	maxReply = 1 << 20
)

// joinCluster asks the manager at addr to make this host a node, and returns
// its answer, which was checked. self says who this host is: Node, Name,
// Address, Version and Format. The caller writes the keys to the disk and then
// installs the certificate, as the last thing. An error of class ErrUnavailable
// may pass: the same may be tried again; any other will not.
//
// Nothing is sent to a manager that does not belong to the token, and the token
// only to one that is known to keep the same time as this host.
func joinCluster(ctx context.Context, addr, token string, identity *ca.Identity, self api.JoinRequest) (api.JoinReply, error) {
	t, err := ca.ParseToken(token)
	if err != nil {
		return api.JoinReply{}, err
	}
	at, err := joinAddress(addr)
	if err != nil {
		return api.JoinReply{}, err
	}
	csr, err := identity.CSR()
	if err != nil {
		return api.JoinReply{}, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, joinTime, fmt.Errorf("no answer within %s", joinTime))
	defer cancel()
	conn, err := dialPinned(ctx, at, t.CAHash)
	if err != nil {
		return api.JoinReply{}, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	line := &oneConn{conn: conn, r: bufio.NewReader(conn), at: at}

	var v api.Version
	date, err := line.call(ctx, "GET", "/v1/version", nil, &v)
	if err != nil {
		return api.JoinReply{}, err
	}
	whose := "the manager at " + at
	if v.Name != "" {
		whose = "manager " + v.Name
	}
	if err := checkSkew(identity.Now(), date, whose); err != nil {
		return api.JoinReply{}, err
	}
	if err := ca.Current(conn.ConnectionState(), identity.Now()); err != nil {
		return api.JoinReply{}, spec.Invalidf("join the cluster at %s: %v", at, err)
	}
	self.Token, self.CSR, self.Time = t.String(), csr, identity.Now().UTC()
	var reply api.JoinReply
	if _, err := line.call(ctx, "POST", "/v1/cluster/join", self, &reply); err != nil {
		return api.JoinReply{}, err
	}
	s, err := identity.Check(reply.Certificate, reply.Roots)
	if err != nil {
		return api.JoinReply{}, spec.Invalidf("join the cluster at %s: the answer is not usable: %v", at, err)
	}
	if s.ID != string(self.Node) || s.Role != reply.Role || s.Cluster != reply.ClusterID || s.Kind != ca.KindNode {
		return api.JoinReply{}, spec.Invalidf("join the cluster at %s: the answer is not usable: it holds the certificate of %s, a %s of cluster %s", at, s, s.Role, s.Cluster)
	}
	if err := checkKeys(reply.Role, reply.GossipKey, reply.ContentKey, reply.DataKey); err != nil {
		return api.JoinReply{}, spec.Invalidf("join the cluster at %s: the answer is not usable: %v", at, err)
	}
	return reply, nil
}

// checkKeys wants the keys that a role has, no more and no less.
func checkKeys(role spec.NodeRole, gossip, content, data []byte) error {
	n := 0
	if role == spec.RoleManager {
		n = keySize
	}
	if len(gossip) != keySize || len(content) != n || len(data) != n {
		return spec.Invalidf("it does not hold the keys of a %s", role)
	}
	return nil
}

// joinAddress completes the address of a manager with the usual port.
func joinAddress(addr string) (string, error) {
	addr = strings.TrimSpace(addr)
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		_, port, _ = net.SplitHostPort(defaultAdvertise)
		if host = addr; strings.HasPrefix(addr, "[") && strings.HasSuffix(addr, "]") {
			host = addr[1 : len(addr)-1]
		}
	}
	_, err = netip.ParseAddr(host)
	number, perr := strconv.ParseUint(port, 10, 16)
	if host == "" || strings.ContainsAny(host, "/ @[]") || strings.Contains(host, ":") && err != nil || perr != nil || number == 0 {
		return "", spec.Invalidf("join the cluster at %q: want the address of a manager, HOST or HOST:PORT", addr)
	}
	return net.JoinHostPort(host, port), nil
}

// dialPinned opens a connection to a manager whose root has the hash.
func dialPinned(ctx context.Context, at, hash string) (*tls.Conn, error) {
	var d net.Dialer
	raw, err := d.DialContext(ctx, "tcp", at)
	if err != nil {
		var op *net.OpError
		if errors.As(err, &op) && op.Err != nil {
			err = op.Err
		}
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, spec.Unavailablef("join the cluster at %s: nobody answers there (%v): is `wherry daemon` running on that manager, and is its port open for TCP and UDP?", at, err)
	}
	conn := tls.Client(raw, ca.Pinned(hash, "http/1.1"))
	err = conn.HandshakeContext(ctx)
	if err == nil {
		return conn, nil
	}
	raw.Close()
	var record tls.RecordHeaderError
	switch {
	case errors.Is(err, ca.ErrForeign):
		return nil, spec.Invalidf("join the cluster at %s: it is another cluster than that of the join token, or its certificate authority was exchanged since: print the token again, with `wherry token worker` on a manager. Nothing was sent", at)
	case errors.Is(err, spec.ErrInvalid):
		return nil, spec.Invalidf("join the cluster at %s: %v", at, err)
	case errors.As(err, &record):
		return nil, spec.Invalidf("join the cluster at %s: what answers there is not wherry: give the address that `wherry token worker` prints", at)
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	}
	return nil, spec.Unavailablef("join the cluster at %s: there is no secure connection (%v): is that the address of a manager?", at, err)
}

// oneConn speaks HTTP over one connection and never opens another, so that who
// was verified is who gets the request.
type oneConn struct {
	conn net.Conn
	r    *bufio.Reader
	at   string
}

// call sends a request and decodes its answer. date is the clock of the other
// side.
func (o *oneConn) call(ctx context.Context, method, path string, in, out any) (date time.Time, err error) {
	fail := func(err error) (time.Time, error) {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return date, spec.Unavailablef("join the cluster at %s: the connection broke (%v): try again", o.at, err)
	}
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return date, fmt.Errorf("encode request %s: %w", path, err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "https://"+o.at+path, body)
	if err != nil {
		return date, fmt.Errorf("call %s: %w", path, err)
	}
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if err := req.Write(o.conn); err != nil {
		return fail(err)
	}
	resp, err := http.ReadResponse(o.r, req)
	if err != nil {
		return fail(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxReply))
	if err != nil {
		return fail(err)
	}
	if resp.StatusCode >= 400 {
		var e api.ErrorBody
		if json.Unmarshal(b, &e) != nil || e.Error.Message == "" {
			return date, spec.Unavailablef("join the cluster at %s: the manager answers %s", o.at, resp.Status)
		}
		return date, api.ErrorOfClass(e.Error.Class, e.Error.Message)
	}
	if date, err = http.ParseTime(resp.Header.Get("Date")); err != nil {
		return date, spec.Invalidf("join the cluster at %s: the answer does not say what time it is there", o.at)
	}
	if err := json.Unmarshal(b, out); err != nil {
		return date, spec.Invalidf("join the cluster at %s: the answer is not understood: %v", o.at, err)
	}
	return date, nil
}

// renewOver asks a manager for a new certificate, over a way that leads to
// one.
func renewOver(way http.RoundTripper) func(context.Context, api.RenewRequest) (api.RenewReply, error) {
	return func(ctx context.Context, r api.RenewRequest) (reply api.RenewReply, err error) {
		ctx, cancel := context.WithTimeoutCause(ctx, joinTime, fmt.Errorf("no answer within %s", joinTime))
		defer cancel()
		if err := callOver(ctx, way, "POST", "/v1/cluster/renew", r, &reply); err != nil {
			return reply, err
		}
		return reply, checkKeys(reply.Role, reply.GossipKey, reply.ContentKey, reply.DataKey)
	}
}
