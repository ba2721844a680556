package ca

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"wherry.dev/spec"
)

// shaken is what both sides of a handshake have to say.
type shaken struct {
	client, server     error
	atClient, atServer tls.ConnectionState
	received           []byte // by the server, decrypted
}

// shake connects two configurations; the client then sends a secret.
func shake(t testing.TB, client, server *tls.Config) shaken {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	b, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(5 * time.Second)
	a.SetDeadline(deadline)
	b.SetDeadline(deadline)
	var s shaken
	var wg sync.WaitGroup
	wg.Go(func() {
		defer b.Close()
		conn := tls.Server(b, server)
		if s.server = conn.HandshakeContext(context.Background()); s.server != nil {
			return
		}
		s.atServer = conn.ConnectionState()
		conn.Write([]byte("!")) // the client sees what was sent before
		s.received, _ = io.ReadAll(conn)
	})
	conn := tls.Client(a, client)
	if s.client = conn.HandshakeContext(context.Background()); s.client == nil {
		s.atClient = conn.ConnectionState()
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			t.Logf("the client: %v", err)
		}
		if _, err := conn.Write([]byte("secret")); err == nil {
			conn.CloseWrite()
		}
	}
	a.Close()
	wg.Wait()
	return s
}

func TestHandshake(t *testing.T) {
	now := time.Now()
	root := newRoot(t, "c1", now.Add(-300*day))
	m, w := newIdentity(t, root, manager, now), newIdentity(t, root, worker, now)
	s := shake(t, w.Client(nil, "x"), m.Server("y", "x"))
	if s.client != nil || s.server != nil || string(s.received) != "secret" {
		t.Fatalf("client %v, server %v, received %q", s.client, s.server, s.received)
	}
	if s.atServer.NegotiatedProtocol != "x" || s.atServer.Version != tls.VersionTLS13 || s.atServer.DidResume {
		t.Errorf("connection %+v", s.atServer)
	}
	if c, ok := PeerOf(s.atServer); !ok || c != (Caller{Subject: worker, Key: w.Key()}) {
		t.Errorf("the server sees %+v %t", c, ok)
	}
	if c, ok := PeerOf(s.atClient); !ok || c != (Caller{Subject: manager, Key: m.Key()}) {
		t.Errorf("the client sees %+v %t", c, ok)
	}

	nobody := open(t, t.TempDir()+"/tls")
	s = shake(t, Pinned(root.Hash, "x"), m.Server("x"))
	if c, ok := PeerOf(s.atServer); s.server != nil || s.client != nil || ok {
		t.Errorf("without a certificate: %v, %v, known as %+v", s.client, s.server, c)
	}
	if s = shake(t, w.Client(nil), nobody.Server()); s.server == nil || !strings.Contains(s.server.Error(), "this node has no certificate yet") {
		t.Errorf("a server without a certificate: %v", s.server)
	}
	if s = shake(t, nobody.Client(nil), m.Server()); s.client == nil || !strings.Contains(s.client.Error(), "this node knows no root yet") {
		t.Errorf("a client without roots: %v", s.client)
	}
	if _, ok := PeerOf(tls.ConnectionState{}); ok {
		t.Error("no connection has a peer")
	}
}

// TestOnlyTLS13: nothing older, and no session outlives what was trusted.
func TestOnlyTLS13(t *testing.T) {
	now := time.Now()
	root := newRoot(t, "c1", now)
	m, w := newIdentity(t, root, manager, now), newIdentity(t, root, worker, now)
	old := w.Client(nil)
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if s := shake(t, old, m.Server()); s.client == nil || s.server == nil || !strings.Contains(s.server.Error(), "unsupported versions") {
		t.Errorf("TLS 1.2: client %v, server %v", s.client, s.server)
	}
	oldServer := m.Server()
	oldServer.MinVersion, oldServer.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if s := shake(t, w.Client(nil), oldServer); s.client == nil || s.server == nil {
		t.Errorf("TLS 1.2 server: client %v, server %v", s.client, s.server)
	}
	eager := w.Client(nil)
	eager.ClientSessionCache = tls.NewLRUClientSessionCache(8)
	eager.SessionTicketsDisabled, eager.ServerName = false, "m1"
	server := m.Server()
	for range 3 {
		s := shake(t, eager, server)
		if s.client != nil || s.server != nil || s.atServer.DidResume {
			t.Fatalf("client %v, server %v, resumed %t", s.client, s.server, s.atServer.DidResume)
		}
	}
}

// TestWho is what becomes of each kind of certificate at each side.
func TestWho(t *testing.T) {
	now := time.Now()
	root := newRoot(t, "c1", now.Add(-400*day))
	foreign := newRoot(t, "c2", now.Add(-400*day))
	m, w := newIdentity(t, root, manager, now), newIdentity(t, root, worker, now)
	for _, c := range []struct {
		name    string
		root    spec.Root
		who     Subject
		issued  time.Time
		expired bool
		server  string // what a server that is called says
		client  string // what a client that calls it says; "" like server
	}{
		{"good", root, worker, now, false, "", ""},
		{"good for a minute more", root, worker, now.Add(-Life + time.Minute), false, "", ""},
		{"just expired", root, worker, now.Add(-Life - time.Minute), true, "", ""},
		{"expired 29 days ago", root, worker, now.Add(-Life - 29*day), true, "", ""},
		{"expired 31 days ago", root, worker, now.Add(-Life - 31*day), false,
			"the certificate of node 00000000000000b1 expired at " + when(now.Add(-31*day)) + ", more than 30 days before the clock here", ""},
		{"from the future", root, worker, now.Add(3 * time.Hour), false,
			"the certificate of node 00000000000000b1 is good from " + when(now.Add(2*time.Hour)) + " on, and the clock here says", ""},
		{"a little ahead", root, worker, now.Add(50 * time.Minute), false, "", ""},
		{"foreign", foreign, worker, now, false,
			"the certificate of node 00000000000000b1 comes from another certificate authority (" + foreign.Hash[:8] + "…), this node trusts " + root.Hash[:8] + "…", ""},
		{"foreign and expired", foreign, worker, now.Add(-Life - 31*day), false, "comes from another certificate authority", ""},
		{"client", root, ann, now, false, "", "the certificate of client ann is not good for this"},
		{"client, expired", root, ann, now.Add(-Life - day), true, "", "is not good for this"},
		{"client, long expired", root, ann, now.Add(-Life - 31*day), false, "make a new one with `wherry cluster ca client`", "is not good for this"},
	} {
		t.Run(c.name, func(t *testing.T) {
			them := newIdentity(t, c.root, c.who, c.issued)
			trusting := them
			if err := trusting.SetRoots(c.root.Certificate + root.Certificate); err != nil {
				t.Fatal(err)
			}
			// It does not refuse itself: only what the other side says counts.
			them.Now = func() time.Time { return c.issued }
			var seen Caller
			s := shake(t, clientOf(them, now), m.Server())
			check(t, "server", s.server, c.server)
			if c.server == "" {
				seen, _ = PeerOf(s.atServer)
				if seen.Subject != c.who || seen.Expired != c.expired || seen.Key != them.Key() {
					t.Errorf("the server sees %+v", seen)
				}
			} else if len(s.received) > 0 {
				t.Errorf("the server has read %q", s.received)
			}
			if c.client == "" {
				c.client = c.server
			}
			s = shake(t, w.Client(nil), them.Server())
			check(t, "client", s.client, c.client)
			if c.client == "" {
				if seen, _ = PeerOf(s.atClient); seen.Subject != c.who || seen.Expired != c.expired {
					t.Errorf("the client sees %+v", seen)
				}
			} else if len(s.received) > 0 {
				t.Errorf("the client has sent %q", s.received)
			}
		})
	}
}

// clientOf presents an identity's certificate, whatever its dates, and looks
// at the other side by the clock of now.
func clientOf(i *Identity, now time.Time) *tls.Config {
	c := i.Client(nil)
	verifyPeer(c, func() trust { return i.held.Load().trust }, func() time.Time { return now }, nil)
	return c
}

func check(t *testing.T, side string, err error, want string) {
	t.Helper()
	switch {
	case want == "" && err != nil:
		t.Errorf("the %s says %v", side, err)
	case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
		t.Errorf("the %s says %v, want %q", side, err, want)
	}
}

// TestOwnCertificateExpired: who is shut out hears it from itself, in words.
func TestOwnCertificateExpired(t *testing.T) {
	now := time.Now()
	root := newRoot(t, "c1", now.Add(-100*day))
	m, w := newIdentity(t, root, manager, now), newIdentity(t, root, worker, now.Add(-61*day))
	s := shake(t, w.Client(nil), m.Server())
	wantError(t, s.client, spec.ErrInvalid, "the certificate of node 00000000000000b1 expired at", "it must join again")
}

func TestWant(t *testing.T) {
	now := time.Now()
	root := newRoot(t, "c1", now)
	m, w := newIdentity(t, root, manager, now), newIdentity(t, root, worker, now)
	refusal := errors.New("not the node that was looked for")
	s := shake(t, w.Client(func(c Caller) error {
		if c.ID != manager.ID || c.Role != spec.RoleManager || c.Key != m.Key() {
			t.Errorf("asked about %+v", c)
		}
		return refusal
	}), m.Server())
	if !errors.Is(s.client, refusal) || len(s.received) > 0 {
		t.Errorf("the client says %v and has sent %q", s.client, s.received)
	}
}

// TestHotSwap: configurations that are in use follow the identity.
func TestHotSwap(t *testing.T) {
	now := time.Now()
	root, next := newRoot(t, "c1", now), newRoot(t, "c1", now)
	m, w := newIdentity(t, root, manager, now), newIdentity(t, root, worker, now)
	client, server := w.Client(nil), m.Server()
	works := func() error {
		s := shake(t, client, server)
		return errors.Join(s.client, s.server)
	}
	if err := works(); err != nil {
		t.Fatal(err)
	}
	both := root.Certificate + next.Certificate
	if err := m.Install(sign(t, next, m, manager, now), both); err != nil {
		t.Fatal(err)
	}
	wantError(t, works(), nil, "comes from another certificate authority ("+next.Hash[:8])
	if err := w.SetRoots(both); err != nil {
		t.Fatal(err)
	}
	if err := works(); err != nil {
		t.Fatal(err)
	}
	if err := m.SetRoots(next.Certificate); err != nil {
		t.Fatal(err)
	}
	wantError(t, works(), nil, "comes from another certificate authority ("+root.Hash[:8])
	promoted := Subject{Kind: KindNode, ID: worker.ID, Role: spec.RoleManager, Cluster: "c1"}
	if err := w.Install(sign(t, next, w, promoted, now), next.Certificate); err != nil {
		t.Fatal(err)
	}
	s := shake(t, client, server)
	if c, _ := PeerOf(s.atServer); s.server != nil || c.Subject != promoted {
		t.Errorf("the server sees %+v (%v)", c, s.server)
	}
}

// TestPinned: the first connection of a host goes to a manager with the right
// root, or not one byte of what it would say leaves the host.
func TestPinned(t *testing.T) {
	now := time.Now()
	root, other := newRoot(t, "c1", now), newRoot(t, "c1", now)
	good, w := newIdentity(t, root, manager, now), newIdentity(t, root, worker, now)
	foreign := newIdentity(t, other, manager, now)
	// A man in the middle shows the right root behind a certificate of his own.
	posing := foreign.Server()
	cert := foreign.held.Load().chain.cert
	rootCert, err := oneCert(root.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	cert.Certificate = [][]byte{cert.Certificate[0], rootCert.Raw}
	posing.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &cert, nil }
	// Or the whole chain of the real manager, to whose key he has no access.
	stolen := good.held.Load().chain.cert
	stolen.PrivateKey = foreign.key
	replaying := good.Server()
	replaying.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &stolen, nil }
	client := newIdentity(t, root, ann, now)
	for _, c := range []struct {
		name   string
		server *tls.Config
		want   string
	}{
		{"good", good.Server(), ""},
		{"another root", foreign.Server(), ErrForeign.Error()},
		{"the right root, another signature", posing, "comes from a certificate authority that this node does not trust"},
		{"a key that is not his", replaying, "invalid signature"},
		{"a worker", w.Server(), "node 00000000000000b1 is a worker: give the address of a manager"},
		{"a client", client.Server(), "the certificate of client ann is not good for this"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := shake(t, Pinned(root.Hash), c.server)
			check(t, "client", s.client, c.want)
			if want := []byte("secret"); c.want == "" != bytes.Equal(s.received, want) {
				t.Errorf("the server got %q", s.received)
			}
		})
	}
}

// TestPinnedLooksAtNoClock: a host whose clock is wrong must be able to find
// that out; Current then says what was left open.
func TestPinnedLooksAtNoClock(t *testing.T) {
	now := time.Now()
	root := newRoot(t, "c1", now.Add(-100*day))
	for _, c := range []struct {
		issued time.Time
		want   string
	}{
		{now, ""},
		{now.Add(-31 * day), "the certificate of node 00000000000000a1 expired at"},
		{now.Add(-99 * day), "the certificate of node 00000000000000a1 expired at"},
		{now.Add(20 * day), "the certificate of node 00000000000000a1 is good from"},
	} {
		m := newIdentity(t, root, manager, c.issued)
		s := shake(t, Pinned(root.Hash), m.Server())
		if s.client != nil || s.server != nil {
			t.Fatalf("client %v, server %v", s.client, s.server)
		}
		check(t, "client", Current(s.atClient, now), c.want)
	}
	wantError(t, Current(tls.ConnectionState{}, now), nil, "presents no certificate")
}
