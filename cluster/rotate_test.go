package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"wherry.dev/api"
	"wherry.dev/cluster/ca"
	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

func rootAt(t testing.TB, made time.Time) spec.Root {
	t.Helper()
	r, err := ca.NewRoot("c1", made)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestNextExchange(t *testing.T) {
	now := time.Now()
	old, root := rootAt(t, now.Add(-day)), rootAt(t, now)
	aged := rootAt(t, now.Add(-ca.RootLife+rootAhead-time.Hour))
	ending := rootAt(t, now.Add(-ca.RootLife+rootLast-time.Hour))
	ended := rootAt(t, now.Add(-ca.RootLife-day))
	future := rootAt(t, now.Add(day))
	node := func(name, issuer, trusts string) *spec.Node {
		return &spec.Node{ID: spec.NodeID(name), Name: name, State: spec.NodeReady, Info: spec.NodeInfo{Issuer: issuer, Trusts: trusts}}
	}
	down := func(n *spec.Node, since time.Duration) *spec.Node {
		n.State, n.DownSince = spec.NodeDown, now.Add(-since)
		return n
	}
	both := old.Hash + "," + root.Hash
	for _, c := range []struct {
		name    string
		roots   []spec.Root
		signer  spec.Root
		nodes   []*spec.Node
		want    exchange
		waiting string
	}{
		{"nothing to do", []spec.Root{old}, old, []*spec.Node{node("a", "", "")}, exchangeNone, ""},
		{"the end is near", []spec.Root{aged}, aged, nil, exchangeBegin, ""},
		{"ended", []spec.Root{ended}, ended, nil, exchangeBegin, ""},
		{"made by a clock that was ahead", []spec.Root{future}, future, nil, exchangeBegin, ""},
		{"not yet trusted", []spec.Root{old, root}, old, []*spec.Node{node("a", old.Hash, both), node("b", old.Hash, old.Hash), node("c", "", "")}, exchangeWait, "b, c"},
		{"trusted", []spec.Root{old, root}, old, []*spec.Node{node("a", old.Hash, both), node("b", old.Hash, both)}, exchangeSwitch, ""},
		{"trusted alone", []spec.Root{old, root}, old, []*spec.Node{node("a", root.Hash, root.Hash)}, exchangeSwitch, ""},
		{"one is down", []spec.Root{old, root}, old, []*spec.Node{node("a", old.Hash, both), down(node("b", old.Hash, old.Hash), 59*day)}, exchangeWait, "b (down)"},
		{"one is lost", []spec.Root{old, root}, old, []*spec.Node{node("a", old.Hash, both), down(node("b", old.Hash, old.Hash), 61*day)}, exchangeSwitch, ""},
		{"down, but it has it", []spec.Root{old, root}, old, []*spec.Node{down(node("b", old.Hash, both), time.Hour)}, exchangeSwitch, ""},
		{"the end is too near to wait", []spec.Root{ending, root}, ending, []*spec.Node{node("a", ending.Hash, ending.Hash)}, exchangeSwitch, ""},
		{"ended while waiting", []spec.Root{ended, root}, ended, []*spec.Node{node("a", ended.Hash, ended.Hash)}, exchangeSwitch, ""},
		{"the new one is of no use", []spec.Root{old, future}, old, []*spec.Node{node("a", old.Hash, old.Hash)}, exchangeBegin, ""},
		{"not yet renewed", []spec.Root{old, root}, root, []*spec.Node{node("a", root.Hash, both), node("b", old.Hash, both)}, exchangeWait, "b"},
		{"down, not yet renewed", []spec.Root{old, root}, root, []*spec.Node{down(node("b", old.Hash, both), time.Hour)}, exchangeWait, "b (down)"},
		{"renewed", []spec.Root{old, root}, root, []*spec.Node{node("a", root.Hash, both), node("b", root.Hash, both)}, exchangeEnd, ""},
		{"the signer has ended", []spec.Root{old, ended}, ended, []*spec.Node{node("a", old.Hash, both)}, exchangeBegin, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := &spec.Authority{Roots: c.roots, Signer: c.signer.Hash}
			got, waiting := nextExchange(a, c.nodes, now)
			if got != c.want || strings.Join(waiting, ", ") != c.waiting {
				t.Errorf("%q, waiting for %q; want %q, %q", got, waiting, c.want, c.waiting)
			}
		})
	}
}

// TestExchangeEnds: from any state, also one that a wrong clock has left, the
// steps come to an end with one good root that signs.
func TestExchangeEnds(t *testing.T) {
	now := time.Now()
	old, root := rootAt(t, now.Add(-day)), rootAt(t, now)
	ended, future := rootAt(t, now.Add(-ca.RootLife-day)), rootAt(t, now.Add(day))
	for _, roots := range [][]spec.Root{{ended}, {future}, {old, root}, {old, ended}, {old, future}, {ended, root}, {future, root}, {ended, future}} {
		for _, signing := range roots {
			a := &spec.Authority{Roots: roots, Signer: signing.Hash}
			for range 5 {
				// The nodes are always as far as they can be.
				var hashes []string
				for _, r := range a.Roots {
					hashes = append(hashes, r.Hash)
				}
				nodes := []*spec.Node{{Name: "a", State: spec.NodeReady, Info: spec.NodeInfo{Trusts: strings.Join(hashes, ","), Issuer: a.Signer}}}
				step, _ := nextExchange(a, nodes, now)
				if step == exchangeNone {
					break
				}
				a = exchanged(a, step, rootAt(t, now), now)
				if _, err := signer(a); err != nil {
					t.Fatalf("after %q nobody signs", step)
				}
			}
			if len(a.Roots) != 1 || a.Signer != a.Roots[0].Hash || rootLeft(a.Roots[0], now) < rootAhead {
				t.Errorf("%d roots are left, the signer is good for %s", len(a.Roots), rootLeft(a.Roots[0], now))
			}
		}
	}
}

func TestRotateCA(t *testing.T) {
	o := newOffice(t)
	ctx := t.Context()
	before := o.store.Snapshot().Authority()
	token := o.tokenFor(spec.RoleWorker)
	if err := o.rotateCA(ctx); err != nil {
		t.Fatal(err)
	}
	a := o.store.Snapshot().Authority()
	if len(a.Roots) != 2 || a.Signer != before.Signer || a.Roots[0].Hash != before.Signer {
		t.Fatalf("%d roots, signer %s, was %s", len(a.Roots), a.Signer, before.Signer)
	}
	if o.tokenFor(spec.RoleWorker) != token {
		t.Error("the token has changed before the signer did")
	}
	wantError(t, o.rotateCA(ctx), spec.ErrConflict, "an exchange of the certificate authority is under way, it waits for m1: start the daemon there, or remove a node that is gone for good")
	if waiting, err := o.rotateOnce(ctx); err != nil || !slices.Equal(waiting, []string{"m1"}) {
		t.Errorf("waits for %q, %v", waiting, err)
	}
	if o.store.Snapshot().Authority().Version != a.Version {
		t.Error("it went on without the node")
	}
}

func TestEnsureAuthority(t *testing.T) {
	o := newOffice(t)
	a := o.store.Snapshot().Authority()
	if len(a.Roots) != 1 || a.Signer != a.Roots[0].Hash || a.Tokens[spec.RoleManager].Generation != 1 || a.Tokens[spec.RoleWorker].Generation != 1 {
		t.Errorf("made %+v", a)
	}
	if err := o.ensureAuthority(t.Context()); err != nil || o.store.Snapshot().Authority().Version != a.Version {
		t.Errorf("made again: %v", err)
	}
	// Another leader was a moment faster.
	late := *o.enroller
	late.store = store.New()
	late.store.Apply(1, store.Command{Bootstrap: &store.Bootstrap{ClusterID: "c1", Incarnation: 1, Format: store.Format}})
	late.propose = func(ctx context.Context, c store.Command) (store.Result, error) {
		res, err := o.apply(ctx, c)
		late.store = o.store
		return res, err
	}
	if err := late.ensureAuthority(t.Context()); err != nil || o.store.Snapshot().Authority().Version != a.Version {
		t.Errorf("the authority was made twice: %v", err)
	}
	// A state of an older format cannot have one yet.
	old := newOffice(t)
	old.store = store.New()
	old.must(store.Command{Bootstrap: &store.Bootstrap{ClusterID: "c1", Incarnation: 1, Format: 1}})
	if err := old.ensureAuthority(t.Context()); err == nil {
		t.Error("an authority in a state that cannot hold one")
	}
	old.must(store.Command{Bootstrap: &store.Bootstrap{ClusterID: "c1", Incarnation: 1, Format: 2}})
	if err := old.ensureAuthority(t.Context()); err != nil || old.store.Snapshot().Authority() == nil {
		t.Errorf("after the upgrade: %v", err)
	}
}

// fleet is an office with nodes that keep their certificates and report them.
type fleet struct {
	*office
	ctx   context.Context
	wg    sync.WaitGroup
	nodes map[string]*ca.Identity
}

func newFleet(t *testing.T) *fleet {
	ctx, cancel := context.WithCancel(context.Background())
	f := &fleet{office: newOffice(t), ctx: ctx, nodes: map[string]*ca.Identity{}}
	f.identity.Now = f.now
	f.nodes["m1"] = f.identity
	f.wg.Go(func() { f.ownCertificates().keepCertificate(ctx) })
	f.wg.Go(func() { f.rotate(ctx) })
	f.wg.Go(func() { f.report(ctx, bossID, f.identity) })
	t.Cleanup(func() {
		cancel()
		f.wg.Wait()
	})
	return f
}

// add lets a worker join and starts it; stop freezes it.
func (f *fleet) add(id spec.NodeID, name string) (stop func()) {
	f.Helper()
	i, err := ca.OpenIdentity(f.TempDir() + "/tls")
	if err != nil {
		f.Fatal(err)
	}
	i.Now = f.now
	r, err := f.join(f.ctx, api.JoinRequest{
		Token: f.tokenFor(spec.RoleWorker), CSR: request(f, i), Node: id, Name: name, Address: "127.0.0.1:1", Format: 2, Time: f.now(),
	}, "127.0.0.1:1")
	if err != nil {
		f.Fatal(err)
	}
	if err := i.Install(r.Certificate, r.Roots); err != nil {
		f.Fatal(err)
	}
	f.nodes[name] = i
	return f.start(id, i)
}

func (f *fleet) start(id spec.NodeID, i *ca.Identity) (stop func()) {
	ctx, cancel := context.WithCancel(f.ctx)
	c := &certificates{
		identity: i, changed: f.store.Watch, now: f.now, log: f.log,
		wanted: func() api.ClusterInfo {
			info := f.own()
			info.Role = spec.RoleWorker
			return info
		},
		renew: func(ctx context.Context, r api.RenewRequest) (api.RenewReply, error) {
			expired := f.now().After(i.Leaf().NotAfter)
			return f.renew(ctx, ca.Caller{Subject: i.Subject(), Key: i.Key(), Expired: expired}, r)
		},
	}
	f.wg.Go(func() { c.keepCertificate(ctx) })
	f.wg.Go(func() { f.report(ctx, id, i) })
	return cancel
}

// report tells the state what a node trusts, as its agent does.
func (f *fleet) report(ctx context.Context, id spec.NodeID, i *ca.Identity) {
	for ctx.Err() == nil {
		changed := i.Changed()
		f.must(store.Command{Reports: &store.Reports{Reports: []spec.Report{{Node: id, Info: &spec.NodeInfo{
			OS: "linux", Arch: "amd64", Issuer: i.Issuer(), Trusts: strings.Join(i.Trusts(), ","),
		}}}}})
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// talk makes every node call every other one.
func (f *fleet) talk() error {
	var errs []error
	for from, c := range f.nodes {
		for to, s := range f.nodes {
			if from == to {
				continue
			}
			a, b := net.Pipe()
			for _, end := range []net.Conn{a, b} {
				end.SetDeadline(time.Now().Add(time.Millisecond)) // a refusal is not read by everybody
			}
			server := make(chan error, 1)
			go func() {
				conn := tls.Server(b, s.Server())
				err := conn.Handshake()
				if caller, ok := ca.PeerOf(conn.ConnectionState()); err == nil && (!ok || caller.Expired) {
					err = errors.New("nobody, or expired")
				}
				server <- err
			}()
			err := tls.Client(a, c.Client(nil)).Handshake()
			if serr := <-server; err != nil || serr != nil {
				errs = append(errs, errors.New(from+" to "+to+": "+errors.Join(err, serr).Error()))
			}
			a.Close()
			b.Close()
		}
	}
	return errors.Join(errs...)
}

// TestRotation: the authority is exchanged while the nodes talk, a node that is
// down is waited for, and nobody is ever shut out.
func TestRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t)
		f.add("00000000000000b1", "w1")
		stop := f.add("00000000000000b2", "w2")
		first := f.store.Snapshot().Authority().Signer
		oldToken := f.tokenFor(spec.RoleWorker)
		pass := func(d time.Duration) {
			t.Helper()
			for ; d > 0; d -= 250 * time.Millisecond {
				time.Sleep(250 * time.Millisecond)
				if err := f.talk(); err != nil {
					t.Fatal(err)
				}
			}
		}
		pass(time.Second)
		stop()
		synctest.Wait()
		f.must(store.Command{SetNodeState: &store.SetNodeState{ID: "00000000000000b2", State: spec.NodeDown}})
		if err := f.rotateCA(f.ctx); err != nil {
			t.Fatal(err)
		}
		pass(5 * time.Second)
		a := f.store.Snapshot().Authority()
		if len(a.Roots) != 2 || a.Signer != first {
			t.Fatalf("w2 is down, and there are %d roots, the new one signs: %t", len(a.Roots), a.Signer != first)
		}
		if _, waiting := nextExchange(a, f.store.Snapshot().Nodes(), f.now()); !slices.Equal(waiting, []string{"w2 (down)"}) {
			t.Errorf("waits for %q", waiting)
		}
		f.must(store.Command{SetNodeState: &store.SetNodeState{ID: "00000000000000b2", State: spec.NodeReady}})
		f.start("00000000000000b2", f.nodes["w2"])
		pass(8 * time.Second)
		a = f.store.Snapshot().Authority()
		if len(a.Roots) != 1 || a.Signer == first {
			t.Fatalf("after 8 s there are %d roots, the new one signs: %t", len(a.Roots), a.Signer != first)
		}
		for name, i := range f.nodes {
			if i.Issuer() != a.Signer || !slices.Equal(i.Trusts(), []string{a.Signer}) {
				t.Errorf("%s has a certificate from %s, trusts %s", name, i.Issuer(), i.Trusts())
			}
		}
		// The token names the new root, and the old one is of no use.
		token := f.tokenFor(spec.RoleWorker)
		if !strings.HasPrefix(token, "WHERRY-1-"+a.Signer) || token[len(token)-26:] != oldToken[len(oldToken)-26:] {
			t.Error("the token did not change with the signer alone")
		}
		_, err := f.join(f.ctx, api.JoinRequest{Token: oldToken}, "127.0.0.1:1")
		wantError(t, err, spec.ErrInvalid, "of another cluster, or of before the exchange")
		f.add("00000000000000b3", "w3")
		pass(time.Second)
	})
}

// TestMonths: certificates are renewed in time, again and again.
func TestMonths(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t)
		f.add("00000000000000b1", "w1")
		first := f.store.Snapshot().Authority().Signer
		leafs := map[string]bool{}
		for range 4 * 3 {
			time.Sleep(10 * day)
			synctest.Wait()
			for name, i := range f.nodes {
				leaf := i.Leaf()
				leafs[name+leaf.SerialNumber.String()] = true
				life := leaf.NotAfter.Sub(leaf.NotBefore)
				if age := f.now().Sub(leaf.NotBefore); age > life*8/10+time.Hour {
					t.Fatalf("the certificate of %s has reached %s of %s", name, age, life)
				}
			}
		}
		if n := len(leafs); n < 2*120/24 || n > 2*120/14+2 {
			t.Errorf("%d certificates for 2 nodes in 120 days", n)
		}
		if f.store.Snapshot().Authority().Signer != first {
			t.Error("the root was exchanged after some months")
		}
	})
}

// TestRootEnds: the root is exchanged before its end, with nobody's help.
func TestRootEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t)
		f.add("00000000000000b1", "w1")
		a := *f.store.Snapshot().Authority()
		aged := rootAt(t, time.Now().Add(rootAhead+2*day-ca.RootLife))
		a.Roots, a.Signer = []spec.Root{aged}, aged.Hash
		f.must(store.Command{SetAuthority: &store.SetAuthority{Authority: a, Base: a.Version}})
		time.Sleep(day)
		synctest.Wait()
		if f.store.Snapshot().Authority().Signer != aged.Hash {
			t.Error("the root was exchanged too early")
		}
		time.Sleep(2 * day)
		synctest.Wait()
		now := f.store.Snapshot().Authority()
		if len(now.Roots) != 1 || now.Signer == aged.Hash {
			t.Errorf("the root's end is near, and there are %d roots, the old one signs: %t", len(now.Roots), now.Signer == aged.Hash)
		}
		if err := f.talk(); err != nil {
			t.Error(err)
		}
	})
}

// TestClockJump: a cluster that was made while the clock stood in another time
// heals when the clock is set.
func TestClockJump(t *testing.T) {
	for _, jump := range []time.Duration{-40 * 365 * day, 40 * 365 * day, -2 * day} {
		synctest.Test(t, func(t *testing.T) {
			time.Sleep(45 * 365 * day) // no certificate can be made for before 1950
			f := newFleet(t)
			time.Sleep(time.Minute)
			first := f.store.Snapshot().Authority().Signer
			f.skew.Store(int64(jump))
			time.Sleep(2 * time.Hour)
			synctest.Wait()
			a, leaf := f.store.Snapshot().Authority(), f.identity.Leaf()
			if len(a.Roots) != 1 || a.Signer == first || f.identity.Issuer() != a.Signer {
				t.Errorf("%d roots, the first one signs: %t", len(a.Roots), a.Signer == first)
			}
			if now := f.now(); now.Before(leaf.NotBefore) || now.After(leaf.NotAfter) {
				t.Errorf("it is %s, and the certificate is good from %s to %s", now, leaf.NotBefore, leaf.NotAfter)
			}
		})
	}
}

// TestRenewalFails: a failure is repeated ever more slowly, and the first
// success ends that.
func TestRenewalFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		ctx, cancel := context.WithCancel(t.Context())
		var mu sync.Mutex // guards the next three
		var calls []time.Time
		works, kept := false, 0
		c := o.ownCertificates()
		c.changed = func() <-chan struct{} { return nil }
		c.renew = func(ctx context.Context, r api.RenewRequest) (api.RenewReply, error) {
			mu.Lock()
			defer mu.Unlock()
			calls = append(calls, time.Now())
			if !works {
				return api.RenewReply{}, spec.Unavailablef("no manager answers")
			}
			return o.renewOwn(ctx, r)
		}
		c.keep = func(r api.RenewReply) error {
			mu.Lock()
			defer mu.Unlock()
			if kept++; o.identity.Leaf().NotAfter.After(time.Now().Add(29 * day)) {
				t.Error("the certificate was installed before the keys were kept")
			}
			return nil
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			c.keepCertificate(ctx)
		}()
		defer func() {
			cancel()
			<-done
		}()
		due := o.identity.RenewAt()
		time.Sleep(time.Until(due) + time.Hour)
		synctest.Wait()
		mu.Lock()
		if len(calls) < 15 || len(calls) > 25 {
			t.Fatalf("%d attempts in an hour", len(calls))
		}
		if wait := calls[0].Sub(due); wait < 0 || wait > time.Hour {
			t.Errorf("first attempt %s after it was due", wait)
		}
		for i := 1; i < len(calls); i++ {
			pause := calls[i].Sub(calls[i-1])
			if least := min(time.Second<<(i-1), 5*time.Minute); pause < least || pause > least*5/4 {
				t.Errorf("pause %d is %s, want %s and a bit", i, pause, least)
			}
		}
		works = true
		mu.Unlock()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		mu.Lock()
		n := len(calls)
		mu.Unlock()
		time.Sleep(10 * day)
		synctest.Wait()
		mu.Lock()
		defer mu.Unlock()
		if len(calls) != n || kept != 1 || !o.identity.Leaf().NotAfter.After(time.Now().Add(15*day)) {
			t.Errorf("renewed %d times since, keys kept %d times, certificate until %s", len(calls)-n, kept, o.identity.Leaf().NotAfter)
		}
	})
}

// TestRenewalInVain: who answers may be behind; it is not asked in a circle.
func TestRenewalInVain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		ctx, cancel := context.WithCancel(t.Context())
		var calls atomic.Int32
		c := o.ownCertificates()
		c.wanted = func() api.ClusterInfo { return api.ClusterInfo{Signer: strings.Repeat("a", 52)} }
		renew := c.renew
		c.renew = func(ctx context.Context, r api.RenewRequest) (api.RenewReply, error) {
			calls.Add(1)
			return renew(ctx, r)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			c.keepCertificate(ctx)
		}()
		time.Sleep(renewSpread)
		synctest.Wait()
		if calls.Load() == 0 {
			t.Errorf("not renewed within %s of the change", renewSpread)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if calls.Load() > 25 {
			t.Errorf("renewed %d times in an hour", calls.Load())
		}
		cancel()
		<-done
	})
}

// TestFirstCertificate: a new manager has one as soon as there is an authority.
func TestFirstCertificate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := newOffice(t)
		identity, err := ca.OpenIdentity(t.TempDir() + "/tls")
		if err != nil {
			t.Fatal(err)
		}
		o.identity, o.store, o.index = identity, store.New(), 0
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			o.ownCertificates().keepCertificate(ctx)
		}()
		time.Sleep(day)
		began := time.Now()
		o.must(store.Command{Bootstrap: &store.Bootstrap{ClusterID: "c1", Incarnation: 1, Format: store.Format}})
		o.must(store.Command{PutNode: &store.PutNode{ID: bossID, Name: "m1", Address: "127.0.0.1:4477", Role: spec.RoleManager, Key: identity.Key()}})
		if err := o.ensureAuthority(ctx); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if !identity.Has() || identity.Subject().Role != spec.RoleManager || time.Since(began) > 0 {
			t.Errorf("after %s it has a certificate: %t", time.Since(began), identity.Has())
		}
		cancel()
		<-done
	})
}
