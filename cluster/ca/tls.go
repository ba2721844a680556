package ca

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"
	"time"

	"wherry.dev/spec"
)

// Caller is who is at the other end of a connection, by a certificate that was
// verified.
type Caller struct {
	Subject
	// Key is the fingerprint of its public key, as spec.Node.Key has it.
	Key string
	// Expired says that the certificate is past its end, if by no more than
	// Grace: it is good for a renewal only.
	Expired bool
}

// PeerOf returns who is at the other end, by the clock of now. It reports
// false when nobody was named. The connection must have been made with a
// configuration of this package, which has verified the certificate.
func PeerOf(cs tls.ConnectionState) (Caller, bool) {
	if !cs.HandshakeComplete || len(cs.PeerCertificates) == 0 {
		return Caller{}, false
	}
	c, err := callerOf(cs.PeerCertificates[0], time.Now())
	return c, err == nil
}

func callerOf(leaf *x509.Certificate, now time.Time) (Caller, error) {
	s, err := subjectOf(leaf)
	if err != nil {
		return Caller{}, err
	}
	key, err := keyOf(leaf.PublicKey)
	if err != nil {
		return Caller{}, err
	}
	return Caller{Subject: s, Key: key, Expired: now.After(leaf.NotAfter)}, nil
}

// base configuration: TLS 1.3, and nothing is kept from one connection to the
// next, neither by tickets nor by a cache.
func newConfig(protos []string) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: protos, SessionTicketsDisabled: true}
}

// Server is for connections that others begin. Who has a certificate presents
// it, and it is verified; who has none is let in without a name (PeerOf).
func (i *Identity) Server(protos ...string) *tls.Config {
	c := newConfig(protos)
	c.ClientAuth = tls.RequestClientCert
	c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		h := i.held.Load()
		if h.chain == nil {
			return nil, spec.Unavailablef("this node has no certificate yet")
		}
		return &h.chain.cert, nil
	}
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return nil
		}
		_, err := i.held.Load().trust.judge(cs.PeerCertificates, x509.ExtKeyUsageClientAuth, i.Now())
		return err
	}
	return c
}

// Client is for connections to other nodes. What counts there is the root and
// what want says of the node, not a name of a host. A nil want admits every
// node of the cluster. A certificate that expired within Grace passes: want
// may refuse it.
func (i *Identity) Client(want func(Caller) error, protos ...string) *tls.Config {
	c := newConfig(protos)
	c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		h := i.held.Load()
		if h.chain == nil {
			return &tls.Certificate{}, nil
		}
		return &h.chain.cert, h.chain.usable(i.Now())
	}
	verifyPeer(c, func() trust { return i.held.Load().trust }, i.Now, want)
	return c
}

// usable says in words what the other side could only refuse.
func (c *chain) usable(now time.Time) error {
	if end := c.cert.Leaf.NotAfter; now.After(end.Add(Grace)) {
		return expired(c.subject, end, now)
	}
	return nil
}

// verifyPeer replaces the library's check of names of hosts by ours.
func verifyPeer(c *tls.Config, t func() trust, now func() time.Time, want func(Caller) error) {
	c.InsecureSkipVerify = true // VerifyConnection does it
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return spec.Invalidf("the other side presents no certificate")
		}
		peer, err := t().judge(cs.PeerCertificates, x509.ExtKeyUsageServerAuth, now())
		if err != nil || want == nil {
			return err
		}
		return want(peer)
	}
}

// Pinned is for the first connection of a host that knows no more than the
// hash of a root: the other side must be a manager whose certificate comes
// from that root. Until then nothing is sent. Dates are not looked at, since
// the host's clock may be the one that is wrong: that is for the caller, by
// Current, before anything secret is sent.
func Pinned(hash string, protos ...string) *tls.Config {
	c := newConfig(protos)
	c.InsecureSkipVerify = true // VerifyConnection does it
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		for _, cert := range cs.PeerCertificates {
			if Hash(cert) != hash || !cert.IsCA {
				continue
			}
			t := trust{pool: x509.NewCertPool(), hashes: []string{hash}}
			t.pool.AddCert(cert)
			peer, _, err := t.verify(cs.PeerCertificates, x509.ExtKeyUsageServerAuth, time.Now())
			if err == nil && peer.Role != spec.RoleManager {
				err = spec.Invalidf("%s is a %s: give the address of a manager", peer, peer.Role)
			}
			return err
		}
		return ErrForeign
	}
	return c
}

// ErrForeign says that the other side belongs to another cluster than the one
// that is looked for.
var ErrForeign = errors.New("its certificate authority is not the one that the join token names")

// Current returns an error when the certificate at the other end has expired
// or is not good yet.
func Current(cs tls.ConnectionState, now time.Time) error {
	if len(cs.PeerCertificates) == 0 {
		return spec.Invalidf("the other side presents no certificate")
	}
	leaf := cs.PeerCertificates[0]
	s, err := subjectOf(leaf)
	if err != nil {
		return err
	}
	if now.After(leaf.NotAfter) {
		return spec.Invalidf("the certificate of %s expired at %s, and the clock here says %s", s, when(leaf.NotAfter), when(now))
	}
	return early(s, leaf, now)
}

// judge says who presents these certificates and whether that is to be
// believed.
func (t trust) judge(certs []*x509.Certificate, use x509.ExtKeyUsage, now time.Time) (Caller, error) {
	peer, leaf, err := t.verify(certs, use, now)
	if err != nil {
		return Caller{}, err
	}
	if err := early(peer.Subject, leaf, now); err != nil {
		return Caller{}, err
	}
	if now.After(leaf.NotAfter.Add(Grace)) {
		return Caller{}, expired(peer.Subject, leaf.NotAfter, now)
	}
	return peer, nil
}

// verify is judge without a look at the dates. Roots alone are what we trust:
// there are no certificates in between, and none is taken from the other side.
func (t trust) verify(certs []*x509.Certificate, use x509.ExtKeyUsage, now time.Time) (Caller, *x509.Certificate, error) {
	leaf := certs[0]
	peer, err := callerOf(leaf, now)
	if err != nil {
		return Caller{}, nil, err
	}
	// The library judges by a moment at which the certificate was good; it ends
	// no later than its root.
	at := latest(earliest(now, leaf.NotAfter), leaf.NotBefore)
	if t.pool == nil {
		return Caller{}, nil, spec.Invalidf("the certificate of %s cannot be verified: this node knows no root yet", peer)
	}
	_, err = leaf.Verify(x509.VerifyOptions{Roots: t.pool, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{use}})
	var foreign x509.UnknownAuthorityError
	switch {
	case err == nil:
		return peer, leaf, nil
	case errors.As(err, &foreign) && len(certs) > 1 && !slices.Contains(t.hashes, Hash(certs[1])):
		return Caller{}, nil, spec.Invalidf("the certificate of %s comes from another certificate authority (%.8s…), this node trusts %s: it is of another cluster, or was away while the authority was exchanged", peer, Hash(certs[1]), brief(t.hashes))
	case errors.As(err, &foreign):
		return Caller{}, nil, spec.Invalidf("the certificate of %s comes from a certificate authority that this node does not trust", peer)
	}
	return Caller{}, nil, spec.Invalidf("the certificate of %s is not good for this: %v", peer, err)
}

func early(s Subject, leaf *x509.Certificate, now time.Time) error {
	if now.Before(leaf.NotBefore) {
		return spec.Invalidf("the certificate of %s is good from %s on, and the clock here says %s: one of two clocks is wrong", s, when(leaf.NotBefore), when(now))
	}
	return nil
}

func expired(s Subject, end, now time.Time) error {
	cure := "it must join again"
	if s.Kind == KindClient {
		cure = "make a new one with `wherry cluster ca client`"
	}
	return spec.Invalidf("the certificate of %s expired at %s, more than %d days before the clock here (%s): %s", s, when(end), int(Grace.Hours())/24, when(now), cure)
}

// brief writes hashes for a message.
func brief(hashes []string) string {
	text := ""
	for _, h := range hashes {
		if text != "" {
			text += ", "
		}
		text += h[:8] + "…"
	}
	return text
}
