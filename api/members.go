package api

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"time"

	"wherry.dev/spec"
)

// ClusterStatus says how the cluster's managers are.
func (c *Client) ClusterStatus(ctx context.Context) (s ClusterStatus, err error) {
	return s, c.call(ctx, "GET", "/v1/cluster", nil, nil, &s)
}

// Backup writes a consistent copy of the cluster's state to w. What was
// written is worth nothing when there is an error.
func (c *Client) Backup(ctx context.Context, w io.Writer) error {
	resp, err := c.request(ctx, "GET", "/v1/cluster/backup", nil, nil, "")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if _, err := io.Copy(w, resp.Body); err != nil {
		return fmt.Errorf("backup: it is not whole: %w", err)
	}
	return nil
}

// ClusterKey returns the key of backups; over a manager's own socket only.
func (c *Client) ClusterKey(ctx context.Context) (k Key, err error) {
	return k, c.call(ctx, "GET", "/v1/cluster/key", nil, nil, &k)
}

// Leftovers lists the tasks that a node still has, and what becomes of each
// when it is drained.
func (c *Client) Leftovers(ctx context.Context, ref string, p Poll) (l List[Leftover], err error) {
	return l, c.call(ctx, "GET", "/v1/nodes/"+url.PathEscape(ref)+"/leftovers", p.query(), nil, &l)
}

// Token returns the token by which a host joins in that role.
func (c *Client) Token(ctx context.Context, role spec.NodeRole, r TokenRequest) (t Token, err error) {
	return t, c.call(ctx, "POST", "/v1/cluster/tokens/"+url.PathEscape(string(role)), nil, r, &t)
}

// ClientCertificate has a certificate made for a person or tool.
func (c *Client) ClientCertificate(ctx context.Context, name string, r ClientRequest) (out Certificates, err error) {
	return out, c.call(ctx, "POST", "/v1/cluster/clients/"+url.PathEscape(name), nil, r, &out)
}

// RotateCA begins the exchange of the certificate authority.
func (c *Client) RotateCA(ctx context.Context) error {
	return c.call(ctx, "POST", "/v1/cluster/ca/rotate", nil, nil, nil)
}

// UpdateNode changes a node, by name or ID.
func (c *Client) UpdateNode(ctx context.Context, ref string, u NodeUpdate) (w Written, err error) {
	return w, c.call(ctx, "PATCH", "/v1/nodes/"+url.PathEscape(ref), nil, u, &w)
}

// RemoveNode takes a node out of the cluster; one that is ready only with
// force.
func (c *Client) RemoveNode(ctx context.Context, ref string, force bool, requestID string) (w Written, err error) {
	q := url.Values{"force": {strconv.FormatBool(force)}, "request_id": {requestID}}
	return w, c.call(ctx, "DELETE", "/v1/nodes/"+url.PathEscape(ref), q, nil, &w)
}

// Leave makes the host that is asked leave the cluster; over its own socket
// only.
func (c *Client) Leave(ctx context.Context, l Leave) error {
	return c.call(ctx, "POST", "/v1/node/leave", nil, l, nil)
}

// Withdrawn asks a node whether it leads new traffic to addresses of tasks.
func (c *Client) Withdrawn(ctx context.Context, r Withdraw) (out Withdrawn, err error) {
	return out, c.call(ctx, "POST", "/v1/node/withdrawn", nil, r, &out)
}

func sessionPath(node spec.NodeID, verb string) string {
	return "/v1/sessions/" + url.PathEscape(string(node)) + verb
}

// Beat says that a node is alive. An error of class spec.ErrConflict says that
// another host has its identity.
func (c *Client) Beat(ctx context.Context, node spec.NodeID, b Beat) error {
	return c.call(ctx, "POST", sessionPath(node, "/beat"), nil, b, nil)
}

// Lease asks for time to run exclusive tasks, for one life of a node's daemon;
// it counts as a beat.
func (c *Client) Lease(ctx context.Context, node spec.NodeID, instance string) (l Lease, err error) {
	return l, c.call(ctx, "POST", sessionPath(node, "/lease"), url.Values{"instance": {instance}}, nil, &l)
}

// Quit takes the calling node out of the cluster.
func (c *Client) Quit(ctx context.Context, node spec.NodeID) error {
	return c.call(ctx, "POST", sessionPath(node, "/leave"), nil, nil, nil)
}

// SessionSilence is how long a session may be silent before it counts as
// broken; a manager sends a line each second.
const SessionSilence = 3 * time.Second

var errSilent = errors.New("the manager is silent")

// Session follows the documents of a node for one life of its daemon, calling
// fn for each, until the stream breaks off or falls silent, fn fails or ctx is
// done. The time that fn takes does not count as silence.
func (c *Client) Session(ctx context.Context, node spec.NodeID, instance string, fn func(Document) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	silence := time.AfterFunc(SessionSilence, func() { cancel(errSilent) })
	defer silence.Stop()
	broken := func(err error) error {
		if context.Cause(ctx) == errSilent {
			return spec.Unavailablef("session of node %s: nothing was heard of the manager for %s", node, SessionSilence)
		}
		return err
	}
	q := url.Values{}
	if instance != "" {
		q.Set("instance", instance)
	}
	resp, err := c.request(ctx, "GET", sessionPath(node, ""), q, nil, "")
	if err != nil {
		return broken(err)
	}
	defer resp.Body.Close()
	for dec := json.NewDecoder(bufio.NewReaderSize(resp.Body, 64<<10)); ; {
		var d Document
		if err := dec.Decode(&d); err != nil {
			return broken(fmt.Errorf("session of node %s: %w", node, err))
		}
		silence.Stop()
		if err := fn(d); err != nil {
			return err
		}
		silence.Reset(SessionSilence)
	}
}
