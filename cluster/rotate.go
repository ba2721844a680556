package cluster

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"wherry.dev/api"
	"wherry.dev/cluster/ca"
	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// An exchange of the certificate authority has three steps, each taken by the
// leader as soon as the table of nodes shows that the one before has reached
// every node:
//
//  1. a new root is trusted beside the old one, which still signs;
//  2. the new root signs, and every node renews its certificate;
//  3. the old root is dropped.
//
// A node that is down is waited for: it would be shut out otherwise. Only one
// that was away for so long that its certificate cannot even be renewed is not.

const (
	// rootAhead is how long before its end a root is exchanged by itself.
	rootAhead = 365 * 24 * time.Hour
	// rootLast is how long before its end a root stops to sign, whoever has
	// not heard of the next one: certificates end with their root.
	rootLast = ca.Life + ca.Grace
	// rotatePause is the least time from one look at the state to the next.
	rotatePause = 250 * time.Millisecond
	// rotateTick is the longest.
	rotateTick = time.Hour
)

// exchange is what is to be done with the authority next.
type exchange string

const (
	exchangeNone   exchange = ""
	exchangeBegin  exchange = "begin"  // trust a new root
	exchangeSwitch exchange = "switch" // sign with it
	exchangeEnd    exchange = "end"    // drop what is older
	exchangeWait   exchange = "wait"   // for nodes
)

// nextExchange decides what is to be done with the authority, and names the
// nodes that have to be waited for.
func nextExchange(a *spec.Authority, nodes []*spec.Node, now time.Time) (next exchange, waiting []string) {
	newest := a.Roots[len(a.Roots)-1]
	switch left := rootLeft(newest, now); {
	case left == 0, len(a.Roots) == 1 && left < rootAhead:
		return exchangeBegin, nil
	case len(a.Roots) == 1:
		return exchangeNone, nil
	case a.Signer == newest.Hash:
		next = exchangeEnd
		waiting = missing(nodes, now, func(n *spec.Node) bool { return n.Info.Issuer == newest.Hash })
	default:
		next = exchangeSwitch
		waiting = missing(nodes, now, func(n *spec.Node) bool {
			return slices.Contains(strings.Split(n.Info.Trusts, ","), newest.Hash)
		})
		if root, err := signer(a); err != nil || rootLeft(root, now) < rootLast {
			return next, nil // a root that ends takes all its certificates along
		}
	}
	if len(waiting) > 0 {
		return exchangeWait, waiting
	}
	return next, nil
}

// exchanged returns the authority after a step. root is the new one, for
// exchangeBegin.
func exchanged(a *spec.Authority, step exchange, root spec.Root, now time.Time) *spec.Authority {
	next := cloneAuthority(a)
	newest := a.Roots[len(a.Roots)-1]
	switch step {
	case exchangeBegin:
		// One that could never sign, made by a clock that was wrong, is not
		// carried along.
		next.Roots = slices.DeleteFunc(next.Roots, func(r spec.Root) bool { return r.Hash != a.Signer && rootLeft(r, now) == 0 })
		next.Roots = append(next.Roots, root)
	case exchangeSwitch:
		next.Signer = newest.Hash
	case exchangeEnd:
		next.Roots = []spec.Root{newest}
	}
	return next
}

// rootLeft is how long a root can still sign: 0 when it cannot, also when the
// clock was set back to before it was made.
func rootLeft(r spec.Root, now time.Time) time.Duration {
	from, to, err := ca.Validity(r)
	if err != nil || now.Before(from) {
		return 0
	}
	return max(0, to.Sub(now))
}

// missing names the nodes that do not have something yet and can still get it.
func missing(nodes []*spec.Node, now time.Time, has func(*spec.Node) bool) []string {
	var names []string
	for _, n := range nodes {
		lost := n.State == spec.NodeDown && !n.DownSince.IsZero() && now.Sub(n.DownSince) > ca.Life+ca.Grace
		if has(n) || lost {
			continue
		}
		name := n.Name
		if n.State == spec.NodeDown {
			name += " (down)"
		}
		names = append(names, name)
	}
	return names
}

// rotateCA begins an exchange of the authority; rotate brings it to its end.
func (e *enroller) rotateCA(ctx context.Context) error {
	if err := e.fresh(ctx); err != nil {
		return err
	}
	snap := e.store.Snapshot()
	root, err := ca.NewRoot(snap.ClusterID(), e.now())
	if err != nil {
		return err
	}
	busy := false
	_, err = e.change(ctx, func(a *spec.Authority) bool {
		if busy = len(a.Roots) > 1; busy {
			return false
		}
		a.Roots = append(a.Roots, root)
		return true
	})
	if err != nil {
		return err
	}
	if busy {
		text := "an exchange of the certificate authority is under way"
		if _, waiting := nextExchange(e.store.Snapshot().Authority(), e.store.Snapshot().Nodes(), e.now()); len(waiting) > 0 {
			text += ", it waits for " + strings.Join(waiting, ", ")
		}
		return spec.Conflictf("%s: start the daemon there, or remove a node that is gone for good with `wherry node rm`", text)
	}
	e.log.Info("exchange of the certificate authority begun", "root", root.Hash)
	return nil
}

// ensureAuthority makes the authority and the tokens when the state has none.
// It is for the leader.
func (e *enroller) ensureAuthority(ctx context.Context) error {
	snap := e.store.Snapshot()
	if snap.Authority() != nil {
		return nil
	}
	root, err := ca.NewRoot(snap.ClusterID(), e.now())
	if err != nil {
		return err
	}
	a := spec.Authority{Roots: []spec.Root{root}, Signer: root.Hash, Tokens: map[spec.NodeRole]spec.JoinToken{}}
	for _, role := range []spec.NodeRole{spec.RoleManager, spec.RoleWorker} {
		a.Tokens[role] = newToken(e.keys.Data, role, 1)
	}
	res, err := e.propose(ctx, store.Command{SetAuthority: &store.SetAuthority{Authority: a}})
	if err == nil {
		err = res.Err
	}
	switch {
	case err == nil:
		e.log.Info("certificate authority made", "root", root.Hash)
	case errors.Is(err, spec.ErrConflict) && e.store.Snapshot().Authority() != nil:
		return nil // somebody else has
	}
	return err
}

// rotate keeps the authority going while this member leads: it makes one that
// is missing, and takes the next step of an exchange. It returns when ctx ends.
func (e *enroller) rotate(ctx context.Context) error {
	said := ""
	for {
		changed := e.store.Watch()
		waiting, err := e.rotateOnce(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			e.log.Warn("certificate authority not changed, will try again", "err", err)
		}
		if now := strings.Join(waiting, ", "); now != said {
			if said = now; now != "" {
				e.log.Info("exchange of the certificate authority waits", "nodes", now)
			}
		}
		// Whatever happens in the cluster changes the state: it is not looked
		// at for every change.
		if !wait(ctx, rotatePause) || !changeWithin(ctx, rotateTick, changed) {
			return ctx.Err()
		}
	}
}

// rotateOnce takes one step, and names the nodes that are waited for.
func (e *enroller) rotateOnce(ctx context.Context) (waiting []string, err error) {
	if err := e.ensureAuthority(ctx); err != nil {
		return nil, err
	}
	snap := e.store.Snapshot()
	now := e.now()
	next, waiting := nextExchange(snap.Authority(), snap.Nodes(), now)
	if next == exchangeNone || next == exchangeWait {
		return waiting, nil
	}
	var root spec.Root
	if next == exchangeBegin {
		if root, err = ca.NewRoot(snap.ClusterID(), now); err != nil {
			return nil, err
		}
	}
	a := exchanged(snap.Authority(), next, root, now)
	res, err := e.propose(ctx, store.Command{SetAuthority: &store.SetAuthority{Authority: *a, Base: a.Version}})
	if err == nil {
		err = res.Err
	}
	switch {
	case err == nil:
		e.log.Info("certificate authority changed", "step", next, "signer", a.Signer, "roots", len(a.Roots))
	case errors.Is(err, spec.ErrConflict):
		return nil, nil // it has changed meanwhile, so it is looked at again
	}
	return nil, err
}

// changeWithin waits for a change, but not for longer; false when ctx ends.
func changeWithin(ctx context.Context, d time.Duration, changed <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
	case <-changed:
	}
	return true
}

const (
	// renewSpread is how long after a change of the signer nodes renew at
	// most, so that not all of them do at one moment.
	renewSpread = 2 * time.Second
	// renewRetry is the first pause after a failure; it doubles up to
	// renewRetryMax.
	renewRetry    = time.Second
	renewRetryMax = 5 * time.Minute
)

// certificates keeps the roots and the certificate of a node as its cluster
// wants them: it renews one that is old, that comes from a root which does not
// sign any more, or that has another role than the node.
type certificates struct {
	identity *ca.Identity
	// wanted is what the cluster wants: of it, Roots, Signer and Role count,
	// each if it is not empty. changed is closed after it may have changed.
	wanted  func() api.ClusterInfo
	changed func() <-chan struct{}
	// renew asks for a certificate.
	renew func(context.Context, api.RenewRequest) (api.RenewReply, error)
	// keep, unless nil, gets each answer before its certificate is installed,
	// to store the keys in it.
	keep func(api.RenewReply) error
	now  func() time.Time
	log  *slog.Logger
}

// own is what the state wants of this manager.
func (e *enroller) own() api.ClusterInfo {
	snap := e.store.Snapshot()
	a, n := snap.Authority(), snap.Node(e.self)
	if a == nil || n == nil {
		return api.ClusterInfo{}
	}
	return api.ClusterInfo{ClusterID: snap.ClusterID(), Role: n.Role, Managers: e.managers(snap), Roots: a.RootsPEM(), Signer: a.Signer}
}

// ownCertificates is the keeper of this manager's certificate.
func (e *enroller) ownCertificates() *certificates {
	return &certificates{
		identity: e.identity, wanted: e.own, changed: e.store.Watch,
		renew: e.renewOwn, now: e.now, log: e.log,
	}
}

// due says from when on a certificate is to be renewed, given what the cluster
// wants. The zero time is now.
func due(leaf *x509.Certificate, renewAt time.Time, issuer string, role spec.NodeRole, want api.ClusterInfo, now time.Time) time.Time {
	switch {
	case leaf == nil,
		now.Before(leaf.NotBefore), // the clock was set back
		want.Signer != "" && issuer != want.Signer,
		want.Role != "" && role != want.Role:
		return time.Time{}
	}
	return renewAt
}

// keepCertificate runs until ctx ends.
func (c *certificates) keepCertificate(ctx context.Context) error {
	tries := 0 // since the certificate was last as it should be
	for {
		changed := c.changed()
		want := c.wanted()
		if want.Roots != "" {
			if err := c.identity.SetRoots(want.Roots); err != nil {
				c.log.Error("roots of the cluster not stored, will try again", "err", err)
			}
		}
		leaf := c.identity.Leaf()
		left := due(leaf, c.identity.RenewAt(), c.identity.Issuer(), c.identity.Subject().Role, want, c.now()).Sub(c.now())
		switch {
		case leaf == nil && want.Signer == "":
			// Nobody can sign yet.
			if !changeWithin(ctx, time.Hour, changed) {
				return ctx.Err()
			}
			continue
		case left > 0:
			tries = 0
			if !changeWithin(ctx, min(left, time.Hour), changed) { // a clock may be set meanwhile
				return ctx.Err()
			}
			continue
		case tries == 0 && leaf != nil:
			// A host that has none yet is waited for, all others take turns.
			if !wait(ctx, rand.N(renewSpread)) {
				return ctx.Err()
			}
		}
		err := c.renewNow(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if tries++; err == nil && tries == 1 {
			continue
		}
		// Also a certificate that is no better than the one before is not asked
		// for in a circle: who answers may be behind.
		pause := min(renewRetry<<min(tries-1, 10), renewRetryMax)
		if err != nil {
			c.log.Warn("certificate not renewed, will try again", "err", err, "after", pause, "ends", c.ends())
		}
		if !wait(ctx, pause+rand.N(pause/4)) {
			return ctx.Err()
		}
	}
}

func (c *certificates) ends() time.Time {
	if leaf := c.identity.Leaf(); leaf != nil {
		return leaf.NotAfter
	}
	return time.Time{}
}

// renewNow gets a certificate and installs it.
func (c *certificates) renewNow(ctx context.Context) error {
	csr, err := c.identity.CSR()
	if err != nil {
		return err
	}
	reply, err := c.renew(ctx, api.RenewRequest{CSR: csr})
	if err != nil {
		return err
	}
	if _, err := c.identity.Check(reply.Certificate, reply.Roots); err != nil {
		return err
	}
	if err := c.identity.Follows(reply.Certificate); err != nil {
		return err
	}
	if c.keep != nil {
		if err := c.keep(reply); err != nil {
			return err
		}
	}
	if err := c.identity.Install(reply.Certificate, reply.Roots); err != nil {
		return err
	}
	c.log.Info("certificate installed", "role", reply.Role, "issuer", c.identity.Issuer(), "ends", c.ends())
	return nil
}
