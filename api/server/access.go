package server

import (
	"context"
	"crypto/tls"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"wherry.dev/api"
	"wherry.dev/spec"
)

// CallerKind says what a caller from elsewhere is.
type CallerKind string

// The kinds of callers; the zero value is somebody without a certificate.
const (
	CallerNode   CallerKind = "node"
	CallerClient CallerKind = "client"
)

// Caller is who a connection belongs to, by its verified certificate.
type Caller struct {
	Kind CallerKind
	// ID of the node, or name of the client.
	ID string
	// Role in the certificate of a node. What counts is that in the table of
	// nodes, as soon as there is one.
	Role    spec.NodeRole
	Cluster string
	// Key is the fingerprint of the public key, as spec.Node has it.
	Key string
	// Expired says that the certificate ended a while ago.
	Expired bool
}

// IdentifyFunc returns who a TLS connection belongs to; false when nobody has
// shown a certificate.
type IdentifyFunc func(cs *tls.ConnectionState) (Caller, bool)

// access decides whether a request may use a route and says who it comes from.
type access func(r *http.Request, route api.Route) (Caller, error)

func refuse(route api.Route, format string, args ...any) error {
	return api.Errorf(api.ErrForbidden, "%s: not allowed: "+format, append([]any{route.Name}, args...)...)
}

// local is the access of those who can open a socket of this host. For routes
// of nodes they are this node.
func (s *Server) local(rules []api.Rule) access {
	return func(r *http.Request, route api.Route) (Caller, error) {
		if route.Rule != api.RuleAnyone && !slices.Contains(rules, route.Rule) {
			return Caller{}, refuse(route, "it is for the role %s", route.Rule)
		}
		if route.Rule == api.RuleNode || route.Rule == api.RuleManager {
			c := Caller{Kind: CallerNode, ID: string(s.Node)}
			return c, itself(c, r, route)
		}
		return Caller{}, nil
	}
}

// itself refuses a node that names another one.
func itself(c Caller, r *http.Request, route api.Route) error {
	if id := r.PathValue("node"); route.Rule == api.RuleNode && id != "" && id != c.ID {
		return refuse(route, "node %s asks for node %s", c.ID, id)
	}
	return nil
}

// remote is the access of those who come over the network. What a certificate
// says is proved; what its owner may do is looked up at each call.
func (s *Server) remote(r *http.Request, route api.Route) (Caller, error) {
	var c Caller
	known := false
	if r.TLS != nil {
		c, known = s.Caller(r.TLS)
	}
	if route.Rule == api.RuleAnyone {
		return c, nil
	}
	if !known {
		return c, refuse(route, "it needs a certificate of this cluster")
	}
	if err := byCertificate(c, route); err != nil {
		return c, err
	}
	if c.Kind != CallerNode {
		return c, nil
	}
	if err := itself(c, r, route); err != nil {
		return c, err
	}
	if err := s.byTable(r.Context(), c, route); err != nil {
		return c, err
	}
	if s.Store != nil {
		s.Sessions.Seen(spec.NodeID(c.ID))
	}
	return c, nil
}

// byCertificate judges what needs no look at the state.
func byCertificate(c Caller, route api.Route) error {
	var may []api.Rule
	switch {
	case c.Kind == CallerNode && c.Expired:
		may = []api.Rule{api.RuleRenew}
	case c.Kind == CallerNode:
		may = []api.Rule{api.RuleRenew, api.RuleNode, api.RuleManager}
	case c.Kind == CallerClient && !c.Expired:
		may = []api.Rule{api.RuleOperator}
	}
	switch {
	case slices.Contains(may, route.Rule):
		return nil
	case c.Kind == CallerNode && c.Expired:
		return refuse(route, "the certificate of node %s has expired; all it can do is renew it", c.ID)
	case c.Kind == CallerClient && c.Expired:
		return refuse(route, "the certificate of client %s has expired; make a new one on a manager with `wherry cluster ca client NAME`", c.ID)
	case route.Rule == api.RuleLocal:
		return refuse(route, "it can be asked on the host itself only")
	}
	return refuse(route, "it is for the role %s, and %s is a %s", route.Rule, c.ID, c.Kind)
}

// currentTime bounds how long a call waits for a state that is current.
const currentTime = 2 * time.Second

// current returns when the state holds every acknowledged write.
func (s *Server) current(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, currentTime)
	defer cancel()
	err := s.Proposer.Linearizable(ctx)
	if err != nil && ctx.Err() == context.DeadlineExceeded {
		return spec.Unavailablef("no leader has answered for %s; try again", currentTime)
	}
	return err
}

// freshTime is how old the state may be by which a route with Fresh admits.
const freshTime = time.Second

// freshness is when the state here was last known to be current.
type freshness struct {
	asking singleflight.Group
	mu     sync.Mutex
	last   time.Time
}

// fresh returns when the state was current within freshTime, or nearly so: who
// asks while another does gets the same answer.
func (s *Server) fresh(ctx context.Context) error {
	s.freshness.mu.Lock()
	last := s.freshness.last
	s.freshness.mu.Unlock()
	if s.Now().Sub(last) < freshTime {
		return nil
	}
	answer := s.freshness.asking.DoChan("", func() (any, error) {
		began := s.Now()
		// It is for all who wait, so none of them ends it.
		err := s.current(context.WithoutCancel(ctx))
		if err == nil {
			s.freshness.mu.Lock()
			s.freshness.last = began
			s.freshness.mu.Unlock()
		}
		return nil, err
	})
	select {
	case a := <-answer:
		return a.Err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// byTable judges a node by the table of nodes. A refusal is final only once
// the state is current: one that lags behind may not know a node yet. A yes
// rests on the state as it is here, unless the route wants it fresh.
func (s *Server) byTable(ctx context.Context, c Caller, route api.Route) error {
	if s.Store == nil {
		return s.byHearsay(c, route)
	}
	var err error
	switch refused := s.judge(c, route) != nil; {
	case refused:
		err = s.current(ctx)
	case route.Fresh:
		err = s.fresh(ctx)
	default:
		return nil
	}
	if err != nil {
		return err
	}
	return s.judge(c, route)
}

// judge looks a node up in the state as it is here.
func (s *Server) judge(c Caller, route api.Route) error {
	snap := s.Store.Snapshot()
	role := c.Role
	if snap.ClusterID() != "" { // else a manager that has joined just now
		n := snap.Node(spec.NodeID(c.ID))
		switch {
		case n == nil:
			return removed(spec.NodeID(c.ID))
		case n.Key != "" && n.Key != c.Key:
			return refuse(route, "node %s has another key than that of the certificate", c.ID)
		}
		role = n.Role
	}
	if route.Rule == api.RuleManager && role != spec.RoleManager {
		return refuse(route, "it is for managers, and node %s is a %s", c.ID, role)
	}
	return nil
}

// byHearsay judges a node by what a manager last told this worker.
func (s *Server) byHearsay(c Caller, route api.Route) error {
	in := func(peers []api.Peer) bool {
		return slices.ContainsFunc(peers, func(p api.Peer) bool { return string(p.ID) == c.ID && (p.Key == "" || p.Key == c.Key) })
	}
	managers, members := s.Managers(), s.Members()
	manager := in(managers) || len(managers) == 0 && c.Role == spec.RoleManager
	switch {
	case manager:
		return nil
	case len(members) > 0 && !in(members):
		return refuse(route, "node %s with this key is not known here as a member", c.ID)
	case route.Rule == api.RuleManager:
		return refuse(route, "it is for managers, and node %s is not known here as one", c.ID)
	}
	return nil
}

func removed(id spec.NodeID) error {
	return api.Errorf(api.ErrRemoved, "node %s was removed from the cluster", id)
}

type callerKey struct{}

// callerOf returns who the request comes from.
func callerOf(r *http.Request) Caller {
	c, _ := r.Context().Value(callerKey{}).(Caller)
	return c
}
