package cluster

import (
	"context"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"sync"
	"time"

	"wherry.dev/api"
	"wherry.dev/cluster/ca"
	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

const (
	// maxSkew is how much the clock of a host may differ from ours to join.
	maxSkew = time.Hour
	// clientLife is how long the certificate of a client is good for unless
	// somebody says otherwise, and maxClientLife at most: it cannot be called
	// back.
	clientLife    = 90 * 24 * time.Hour
	maxClientLife = 366 * 24 * time.Hour
	// saltSize is that of the salt of a join token, in bytes.
	saltSize = 32
)

// enroller is a manager's part in who belongs to the cluster: it lets hosts
// join, renews certificates, and keeps the certificate authority. All of what
// it knows is in the state, so any manager may be asked.
type enroller struct {
	// self is this manager, identity its own.
	self     spec.NodeID
	identity *ca.Identity
	keys     keyring
	store    *store.Store
	// propose writes to the state through the leader; fresh returns when the
	// store holds all that was acknowledged before.
	propose func(context.Context, store.Command) (store.Result, error)
	fresh   func(context.Context) error
	limit   *limiter
	now     func() time.Time
	log     *slog.Logger
}

// join makes a host a node. The same host may ask again, with the same ID and
// key, and gets the same answer: the one before may have been lost. remote is
// where it asks from, "IP:port".
func (e *enroller) join(ctx context.Context, r api.JoinRequest, remote string) (api.JoinReply, error) {
	role, err := e.present(ctx, r, remote)
	if err != nil {
		return api.JoinReply{}, err
	}
	snap := e.store.Snapshot()
	key, err := e.admit(snap, r, role, remote)
	if err != nil {
		e.log.Warn("join refused", "remote", remote, "name", r.Name, "err", err)
		return api.JoinReply{}, err
	}
	known := snap.Node(r.Node) != nil
	res, err := e.propose(ctx, store.Command{PutNode: &store.PutNode{ID: r.Node, Name: r.Name, Address: r.Address, Role: role, Key: key}})
	if err == nil {
		err = res.Err
	}
	if err != nil {
		return api.JoinReply{}, err
	}
	renewed, err := e.issue(r.Node, r.CSR)
	if err != nil {
		return api.JoinReply{}, err
	}
	if !known {
		e.log.Info("node joined", "node", r.Node, "name", r.Name, "role", role, "address", r.Address)
	}
	return api.JoinReply{
		ClusterID: e.store.Snapshot().ClusterID(), Role: renewed.Role, Certificates: renewed.Certificates,
		GossipKey: renewed.GossipKey, ContentKey: renewed.ContentKey, DataKey: renewed.DataKey, Managers: renewed.Managers,
	}, nil
}

// present returns the role that the token of a request gives. One that is good
// by what this manager knows passes whatever others do; any other is counted,
// before the leader is asked whether it is so.
func (e *enroller) present(ctx context.Context, r api.JoinRequest, remote string) (spec.NodeRole, error) {
	now := e.now()
	token, err := ca.ParseToken(r.Token)
	malformed := err
	if err == nil {
		_, err = ca.Match(e.store.Snapshot().Authority(), token, now)
	}
	refund := func() {}
	if err != nil && !errors.Is(err, spec.ErrUnavailable) {
		if refund, err = e.limit.take(remote, now); err != nil {
			return "", err
		}
	}
	if malformed != nil {
		return "", malformed
	}
	if err := e.fresh(ctx); err != nil {
		refund() // nothing was learned about the token
		return "", err
	}
	role, err := ca.Match(e.store.Snapshot().Authority(), token, now)
	if err != nil {
		e.log.Warn("join refused", "remote", remote, "name", r.Name, "err", err)
		return "", err
	}
	refund()
	return role, nil
}

// admit checks what a host with a good token says of itself, and returns the
// fingerprint of its key.
func (e *enroller) admit(snap *store.Snapshot, r api.JoinRequest, role spec.NodeRole, remote string) (key string, err error) {
	if err := checkSkew(r.Time, e.now(), "manager "+e.name(snap)); err != nil {
		return "", err
	}
	if raw, err := hex.DecodeString(string(r.Node)); err != nil || len(raw) != 8 || strings.ToLower(string(r.Node)) != string(r.Node) {
		return "", spec.Invalidf("join the cluster: the node ID %.40q is not 16 hex digits", r.Node)
	}
	if err := checkAdvertised(r.Address, remote); err != nil {
		return "", err
	}
	if own := snap.Node(e.self); own != nil && loopback(own.Address) && !loopback(remote) {
		return "", spec.Invalidf("manager %s can be reached on its own host only, at %s: start its daemon with --advertise IP, then join again", own.Name, own.Address)
	}
	if role == spec.RoleManager && r.Format < snap.Format() {
		return "", spec.Invalidf("this host runs wherry %s, which knows the format %d of the state, and the cluster uses %d: upgrade wherry on this host, then join again", r.Version, r.Format, snap.Format())
	}
	if port := snap.VXLANPort(); port != spec.VXLANPort && r.Format < store.AddressFormat {
		return "", spec.Invalidf("this host runs wherry %s, whose networks between hosts use UDP port %d, and the cluster uses %d: upgrade wherry on this host, then join again", r.Version, spec.VXLANPort, port)
	}
	if key, err = ca.Fingerprint(r.CSR); err != nil {
		return "", err
	}
	for _, n := range snap.Nodes() {
		switch {
		case n.ID != r.Node && n.Name != r.Name:
		case n.ID != r.Node:
			return "", spec.Conflictf("the name %s is taken by node %s at %s, which is %s: give this host another one with --name, or, if that node is gone for good, run `wherry node rm %s` on a manager first",
				n.Name, n.ID, n.Address, n.State, n.Name)
		case n.Key != key:
			return "", spec.Conflictf("this host has the ID of node %s at %s, but another key: a data folder cannot be shared or copied. Start with an empty data folder", n.Name, n.Address)
		case n.Role != role:
			return "", spec.Conflictf("this host is node %s already, a %s, and the join token is for a %s: run `wherry node %s %s` on a manager instead",
				n.Name, n.Role, role, map[spec.NodeRole]string{spec.RoleManager: "promote", spec.RoleWorker: "demote"}[role], n.Name)
		}
	}
	return key, nil
}

// checkSkew compares the clock of a host with that of somebody else.
func checkSkew(host, other time.Time, whose string) error {
	skew, word := host.Sub(other), "ahead of"
	if skew < 0 {
		skew, word = -skew, "behind"
	}
	switch {
	case host.IsZero():
		return spec.Invalidf("join the cluster: the request does not say what time it is on this host")
	case skew <= maxSkew:
		return nil
	}
	return spec.Invalidf("the clock of this host is %s %s that of %s: set it, then join again", roughly(skew), word, whose)
}

// roughly writes a time that is longer than an hour: "23h59m", "12 days".
func roughly(d time.Duration) string {
	if d >= 48*time.Hour {
		return fmt.Sprintf("%d days", int(d.Hours())/24)
	}
	return strings.TrimSuffix(d.Truncate(time.Minute).String(), "0s")
}

// checkAdvertised wants an address at which others reach the host.
func checkAdvertised(addr, remote string) error {
	at, err := netip.ParseAddrPort(addr)
	if err != nil || at.Port() == 0 || at.Addr().IsUnspecified() || at.Addr().IsMulticast() {
		return spec.Invalidf("this host advertises the address %.60q, at which nobody can reach it: give it one with --advertise IP[:PORT], then join again", addr)
	}
	if loopback(addr) && !loopback(remote) {
		return spec.Invalidf("this host advertises %s, at which no other host reaches it: give it another address with --advertise IP[:PORT], then join again", addr)
	}
	return nil
}

// loopback says whether an address, "IP:port", is one within its host.
func loopback(addr string) bool {
	at, err := netip.ParseAddrPort(addr)
	return err == nil && at.Addr().Unmap().IsLoopback()
}

// name is the name of this manager, for messages.
func (e *enroller) name(snap *store.Snapshot) string {
	if n := snap.Node(e.self); n != nil {
		return n.Name
	}
	return string(e.self)
}

// issue makes a certificate for a node of the table, with the role that it has
// there.
func (e *enroller) issue(id spec.NodeID, csr string) (api.RenewReply, error) {
	snap := e.store.Snapshot()
	n, a := snap.Node(id), snap.Authority()
	if n == nil {
		return api.RenewReply{}, api.Errorf(api.ErrRemoved, "node %s was removed from the cluster", id)
	}
	root, err := signer(a)
	if err != nil {
		return api.RenewReply{}, err
	}
	key, err := ca.Fingerprint(csr)
	if err != nil {
		return api.RenewReply{}, err
	}
	if n.Key != "" && n.Key != key {
		return api.RenewReply{}, spec.Conflictf("node %s is known by another key: a node keeps its key, to have a new one it must join under a new ID", n.Name)
	}
	s := ca.Subject{Kind: ca.KindNode, ID: string(n.ID), Role: n.Role, Cluster: snap.ClusterID()}
	cert, err := ca.Sign(root, csr, s, e.now(), ca.Life)
	if err != nil {
		return api.RenewReply{}, err
	}
	reply := api.RenewReply{
		Role: n.Role, Certificates: api.Certificates{Certificate: cert, Roots: a.RootsPEM()},
		GossipKey: e.keys.Gossip, Managers: e.managers(snap),
	}
	if n.Role == spec.RoleManager {
		reply.ContentKey, reply.DataKey = e.keys.Content, e.keys.Data
	}
	return reply, nil
}

// signer returns the root that signs.
func signer(a *spec.Authority) (spec.Root, error) {
	if a != nil {
		for _, r := range a.Roots {
			if r.Hash == a.Signer {
				return r, nil
			}
		}
	}
	return spec.Root{}, spec.Unavailablef("the cluster has no certificate authority yet: try again in a moment")
}

// managers lists who can be asked: this manager first, then others that are
// ready, then the rest.
func (e *enroller) managers(snap *store.Snapshot) []api.Peer {
	lists := make([][]api.Peer, 3)
	for _, n := range snap.Nodes() {
		if n.Role != spec.RoleManager {
			continue
		}
		at := 2
		if n.ID == e.self {
			at = 0
		} else if n.State == spec.NodeReady {
			at = 1
		}
		lists[at] = append(lists[at], api.Peer{ID: n.ID, Name: n.Name, Address: n.Address})
	}
	return append(lists[0], append(lists[1], lists[2]...)...)
}

// renew makes a new certificate for a node that calls, whose own may have
// expired.
func (e *enroller) renew(ctx context.Context, caller ca.Caller, r api.RenewRequest) (api.RenewReply, error) {
	if caller.Kind != ca.KindNode {
		return api.RenewReply{}, api.Errorf(api.ErrForbidden, "%s cannot renew: only the certificate of a node can be", caller)
	}
	if err := e.fresh(ctx); err != nil {
		return api.RenewReply{}, err
	}
	snap := e.store.Snapshot()
	if n := snap.Node(spec.NodeID(caller.ID)); n != nil && n.Key != "" && n.Key != caller.Key {
		return api.RenewReply{}, api.Errorf(api.ErrForbidden, "node %s is known by another key than that of the certificate it calls with", n.Name)
	}
	if asked, err := ca.Fingerprint(r.CSR); err != nil {
		return api.RenewReply{}, err
	} else if asked != caller.Key {
		return api.RenewReply{}, spec.Conflictf("%s asks for a certificate for another key than its own: a node keeps its key", caller)
	}
	reply, err := e.issue(spec.NodeID(caller.ID), r.CSR)
	if err == nil {
		e.log.Info("certificate renewed", "node", caller.ID, "role", reply.Role, "expired", caller.Expired)
	}
	return reply, err
}

// renewOwn is renew for this manager itself. It needs no leader: what a
// manager knows is enough to sign with.
func (e *enroller) renewOwn(_ context.Context, r api.RenewRequest) (api.RenewReply, error) {
	if e.store.Snapshot().Node(e.self) == nil {
		return api.RenewReply{}, spec.Unavailablef("the state of this manager does not have its own node: it may be behind")
	}
	return e.issue(e.self, r.CSR)
}

// token returns the token by which a host joins with a role; a new one when
// that is wanted, or when the present one is of no use.
func (e *enroller) token(ctx context.Context, role spec.NodeRole, r api.TokenRequest) (api.Token, error) {
	if role != spec.RoleManager && role != spec.RoleWorker {
		return api.Token{}, spec.Invalidf("a join token is for a manager or a worker, not for %q", role)
	}
	if r.TTL < 0 {
		return api.Token{}, spec.Invalidf("a join token cannot end %s ago", -r.TTL)
	}
	if err := e.fresh(ctx); err != nil {
		return api.Token{}, err
	}
	again := r.Rotate || r.TTL > 0
	a, err := e.change(ctx, func(a *spec.Authority) bool {
		t := a.Tokens[role]
		own := subtle.ConstantTimeCompare(t.Hash, ca.HashSecret(ca.Secret(e.keys.Data, role, t))) == 1
		ended := !t.Expires.IsZero() && !e.now().Before(t.Expires)
		if !again && own && !ended {
			return false
		}
		t = newToken(e.keys.Data, role, t.Generation+1)
		if r.TTL > 0 {
			t.Expires = e.now().Add(r.TTL.D()).UTC().Round(0)
		}
		a.Tokens[role] = t
		return true
	})
	if err != nil {
		return api.Token{}, err
	}
	t := a.Tokens[role]
	token := ca.Token{CAHash: a.Signer, Secret: ca.Secret(e.keys.Data, role, t)}
	reply := api.Token{Role: role, Token: token.String(), Expires: t.Expires, Addresses: []string{}}
	for _, m := range e.managers(e.store.Snapshot()) {
		reply.Addresses = append(reply.Addresses, m.Address)
	}
	return reply, nil
}

func newToken(dataKey []byte, role spec.NodeRole, generation uint64) spec.JoinToken {
	t := spec.JoinToken{Generation: generation, Salt: random(saltSize)}
	t.Hash = ca.HashSecret(ca.Secret(dataKey, role, t))
	return t
}

// clientName is what a person or tool may be called.
var clientName = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9._@-]{0,61}[a-zA-Z0-9])?$`)

// client makes a certificate for a person or a tool, by the authority as it is
// now: a root that this manager does not know to be dropped would make one that
// nobody trusts.
func (e *enroller) client(ctx context.Context, name string, r api.ClientRequest) (api.Certificates, error) {
	if !clientName.MatchString(name) {
		return api.Certificates{}, spec.Invalidf("client %.80q: want a name of at most 63 letters, digits, dots, dashes, underscores and @, with a letter or digit at both ends", name)
	}
	life := r.TTL.D()
	if life == 0 {
		life = clientLife
	}
	if life < time.Minute || life > maxClientLife {
		return api.Certificates{}, spec.Invalidf("client %s: a certificate for %s is not possible, want 1m to %d days", name, r.TTL, int(maxClientLife.Hours())/24)
	}
	if err := e.fresh(ctx); err != nil {
		return api.Certificates{}, err
	}
	snap := e.store.Snapshot()
	a := snap.Authority()
	root, err := signer(a)
	if err != nil {
		return api.Certificates{}, err
	}
	cert, err := ca.Sign(root, r.CSR, ca.Subject{Kind: ca.KindClient, ID: name, Cluster: snap.ClusterID()}, e.now(), life)
	if err != nil {
		return api.Certificates{}, err
	}
	e.log.Info("certificate made", "client", name, "life", life)
	return api.Certificates{Certificate: cert, Roots: a.RootsPEM()}, nil
}

// change writes a change of the authority, unless edit returns false, and
// returns the authority as it is then. edit gets a copy; it is called again
// when somebody else was faster.
func (e *enroller) change(ctx context.Context, edit func(*spec.Authority) bool) (*spec.Authority, error) {
	for try := 0; ; try++ {
		have := e.store.Snapshot().Authority()
		if have == nil {
			_, err := signer(nil)
			return nil, err
		}
		next := cloneAuthority(have)
		if !edit(next) {
			return have, nil
		}
		res, err := e.propose(ctx, store.Command{SetAuthority: &store.SetAuthority{Authority: *next, Base: have.Version}})
		if err == nil {
			err = res.Err
		}
		if err == nil {
			return next, nil
		}
		if !errors.Is(err, spec.ErrConflict) || try == 5 {
			return nil, fmt.Errorf("change the certificate authority: %w", err)
		}
		if err := e.fresh(ctx); err != nil {
			return nil, err
		}
	}
}

func cloneAuthority(a *spec.Authority) *spec.Authority {
	next := *a
	next.Roots = append([]spec.Root(nil), a.Roots...)
	next.Tokens = map[spec.NodeRole]spec.JoinToken{}
	for role, t := range a.Tokens {
		next.Tokens[role] = t
	}
	return &next
}

// limiter bounds the work that wrong tokens make, for the leader above all: per
// address a burst and then one per second, and a burst for all together. Nobody
// can guess a secret at any rate. The zero value is ready.
type limiter struct {
	mu  sync.Mutex
	all bucket
	per map[netip.Prefix]*bucket
}

const (
	burstEach, rateEach = 5, 1.0  // attempts, attempts per second
	burstAll, rateAll   = 50, 5.0 // of all addresses together
)

// bucket counts attempts; they drain away.
type bucket struct {
	level float64
	at    time.Time
}

func (b *bucket) drain(now time.Time, rate float64) {
	if passed := now.Sub(b.at); passed > 0 {
		b.level = max(0, b.level-rate*passed.Seconds())
	}
	b.at = now
}

// take counts an attempt with a token that is not known from an address, or
// refuses it. refund undoes it, for one that was honest.
func (l *limiter) take(remote string, now time.Time) (refund func(), err error) {
	from := source(remote)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all.drain(now, rateAll)
	for p, b := range l.per {
		if b.drain(now, rateEach); b.level == 0 {
			delete(l.per, p)
		}
	}
	each := l.per[from]
	if each == nil {
		each = &bucket{at: now}
	}
	if each.level+1 > burstEach {
		return nil, spec.Unavailablef("too many attempts to join from %s: try again in a second", from.Addr())
	}
	if l.all.level+1 > burstAll {
		return nil, spec.Unavailablef("too many attempts to join: try again in a second")
	}
	if l.per == nil {
		l.per = map[netip.Prefix]*bucket{}
	}
	l.per[from] = each
	each.level++
	l.all.level++
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		each.level = max(0, each.level-1)
		l.all.level = max(0, l.all.level-1)
	}, nil
}

// source is whom an address stands for: a host, or with IPv6 its network,
// since a host has as many addresses there as it likes.
func source(remote string) netip.Prefix {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		host = remote
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return netip.Prefix{} // all that are unknown share one count
	}
	addr = addr.Unmap().WithZone("")
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	p, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}
