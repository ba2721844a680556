package cluster

import (
	"context"
	"net/http"

	"wherry.dev/api"
	"wherry.dev/cluster/ca"
	"wherry.dev/spec"
)

// Role returns the role that this member was opened with.
func (m *Member) Role() spec.NodeRole { return m.role }

// Name returns the node's name.
func (m *Member) Name() string { return m.c.NodeName }

// Instance names this life of the node's daemon; it is random.
func (m *Member) Instance() string { return m.instance }

// Address returns what the node advertises, "IP:port". It may change.
func (m *Member) Address() string { return *m.addr.Load() }

// Serve answers the API on the port with h, from Run on. It is called before.
func (m *Member) Serve(h http.Handler) { m.handler = h }

// Identity returns the node's key and certificate; nil without a port.
func (m *Member) Identity() *ca.Identity { return m.identity }

// Transport returns the way to another node's API; an error of class
// spec.ErrUnavailable when there is none.
func (m *Member) Transport(id spec.NodeID) (http.RoundTripper, error) {
	if m.port == nil {
		return nil, spec.Unavailablef("reach node %s: this member has no way to others", id)
	}
	if len(m.dir.find(id)) == 0 {
		return nil, spec.Unavailablef("reach node %s: no address of it is known", id)
	}
	return m.port.transport(id), nil
}

// LastCluster returns what a session said last of the cluster, in this life of
// the daemon or an earlier one; false if none ever did.
func (m *Member) LastCluster() (api.ClusterInfo, bool) { return m.dir.cluster() }

var errNoPort = spec.Unavailablef("this member has no port, and so no certificate authority")

func (m *Member) authority() (*enroller, error) {
	switch {
	case m.role != spec.RoleManager:
		return nil, errWorker
	case m.enroll == nil:
		return nil, errNoPort
	}
	return m.enroll, nil
}

// Leader returns who leads, as far as this member knows; empty is nobody, also
// when this member has stopped.
func (m *Member) Leader() spec.NodeID {
	if m.halt.failure() != nil {
		return ""
	}
	return m.leader()
}

// Join makes a host a node. It may ask again, with the same ID and key, and
// gets the same answer. remote is where it asks from, "IP:port".
func (m *Member) Join(ctx context.Context, r api.JoinRequest, remote string) (api.JoinReply, error) {
	e, err := m.authority()
	if err != nil {
		return api.JoinReply{}, err
	}
	return e.join(ctx, r, remote)
}

// Renew makes a new certificate for a node that calls.
func (m *Member) Renew(ctx context.Context, caller ca.Caller, r api.RenewRequest) (api.RenewReply, error) {
	e, err := m.authority()
	if err != nil {
		return api.RenewReply{}, err
	}
	return e.renew(ctx, caller, r)
}

// Token returns the token by which hosts join with a role.
func (m *Member) Token(ctx context.Context, role spec.NodeRole, r api.TokenRequest) (api.Token, error) {
	e, err := m.authority()
	if err != nil {
		return api.Token{}, err
	}
	return e.token(ctx, role, r)
}

// Client makes a certificate for a person or a tool.
func (m *Member) Client(ctx context.Context, name string, r api.ClientRequest) (api.Certificates, error) {
	e, err := m.authority()
	if err != nil {
		return api.Certificates{}, err
	}
	return e.client(ctx, name, r)
}

// RotateCA begins the exchange of the certificate authority; it goes on by
// itself.
func (m *Member) RotateCA(ctx context.Context) error {
	e, err := m.authority()
	if err != nil {
		return err
	}
	return e.rotateCA(ctx)
}

// Beat takes a sign of life of a node's daemon. It fails with class
// ErrConflict when another host is alive with the identity of that node.
func (m *Member) Beat(_ context.Context, id spec.NodeID, b api.Beat, remote string) error {
	if m.live == nil {
		return nil
	}
	if m.role != spec.RoleManager {
		return errWorker
	}
	if err := m.live.beat(id, b.Instance, remote); err != nil {
		return err
	}
	m.dir.tell(id, b.Address, fromSession)
	if n := m.store.Snapshot().Node(id); n != nil && id != m.id && checkAdvertised(b.Address, remote) == nil {
		m.moved.tell(n, b.Address)
	}
	return nil
}

// Seen notes that a node has just called.
func (m *Member) Seen(id spec.NodeID) {
	if m.live != nil && m.role == spec.RoleManager {
		m.live.seen(id)
	}
}

// Alive takes the signs of life that another manager has seen.
func (m *Member) Alive(a api.Alive) api.AliveReply {
	if m.live == nil || m.role != spec.RoleManager {
		return api.AliveReply{}
	}
	return m.live.merge(a)
}

// tellLeader sends the leader the signs of life seen here.
func (m *Member) tellLeader(ctx context.Context, a api.Alive) (reply api.AliveReply, err error) {
	leader := m.leader()
	if leader == "" || leader == m.id {
		return reply, errNotLeader
	}
	return reply, m.call(ctx, leader, "POST", alivePath, a, &reply)
}
