package ca

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"wherry.dev/spec"
)

// The files of an identity.
const (
	keyFile   = "key.pem"
	certFile  = "cert.pem"
	rootsFile = "roots.pem"
)

// Identity is who a node is: its key for ever, its certificate and the roots
// that it trusts as they are now. A change takes effect with the next
// connection. All methods may be called concurrently.
type Identity struct {
	// Now is the clock. It may be replaced before anything else is called.
	Now func() time.Time

	dir         string
	key         *ecdsa.PrivateKey
	fingerprint string

	// write is held while the files change; held is what they hold.
	write sync.Mutex
	held  atomic.Pointer[held]
}

// held is one state of an identity, for ever the same.
type held struct {
	chain *chain // nil without a certificate
	trust trust
	// changed is closed when another state has taken its place.
	changed chan struct{}
}

// chain is a certificate with the root that it comes from.
type chain struct {
	cert    tls.Certificate
	subject Subject
	issuer  string // Hash of the root
	text    string
}

// trust is a set of roots.
type trust struct {
	pool   *x509.CertPool
	hashes []string // sorted
	text   string
}

// OpenIdentity reads the identity in a folder of its own. The folder and the
// key are made when they do not exist; a certificate may be missing.
func OpenIdentity(dir string) (*Identity, error) {
	i := &Identity{Now: time.Now, dir: dir}
	if err := i.open(); err != nil {
		return nil, fmt.Errorf("open identity: %w", err)
	}
	return i, nil
}

func (i *Identity) open() error {
	if err := os.MkdirAll(i.dir, 0o700); err != nil {
		return err
	}
	if err := SyncDir(filepath.Dir(i.dir)); err != nil {
		return err
	}
	texts := map[string]string{}
	for _, name := range []string{keyFile, certFile, rootsFile} {
		b, err := os.ReadFile(filepath.Join(i.dir, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		texts[name] = string(b)
	}
	path := filepath.Join(i.dir, keyFile)
	var err error
	switch {
	case texts[keyFile] != "":
		if i.key, err = parseKey(texts[keyFile]); err != nil {
			return spec.Invalidf("%s is damaged: bring back a copy of it", path)
		}
	case texts[certFile] != "":
		return spec.Conflictf("%s is missing or empty, but there is a certificate beside it: bring back a copy of it, or start with an empty data folder", path)
	default:
		var text string
		if i.key, text, err = newKey(); err != nil {
			return err
		}
		if err := WriteFile(path, []byte(text)); err != nil {
			return err
		}
	}
	if i.fingerprint, err = keyOf(i.key.Public()); err != nil {
		return err
	}
	h := &held{changed: make(chan struct{})}
	if text := texts[rootsFile]; text != "" {
		if h.trust, err = parseTrust(text); err != nil {
			return spec.Invalidf("%s is damaged (%v): bring back a copy of it", filepath.Join(i.dir, rootsFile), err)
		}
	}
	// Roots are written first: without them there is no certificate.
	if text := texts[certFile]; text != "" && len(h.trust.hashes) > 0 {
		if h.chain, err = i.parseChain(text); err != nil {
			return spec.Invalidf("%s is damaged (%v): bring back a copy of it", filepath.Join(i.dir, certFile), err)
		}
	}
	i.held.Store(h)
	return nil
}

// parseChain reads a certificate for our key, with its root behind it.
func (i *Identity) parseChain(text string) (*chain, error) {
	c, err := parseChain(text, i.key)
	if err != nil {
		return nil, err
	}
	if key, err := keyOf(c.cert.Leaf.PublicKey); err != nil || key != i.fingerprint {
		return nil, spec.Invalidf("the certificate of %s is for another key", c.subject)
	}
	return c, nil
}

func parseChain(text string, key *ecdsa.PrivateKey) (*chain, error) {
	certs, err := parseCerts(text)
	if err != nil {
		return nil, err
	}
	if len(certs) != 2 {
		return nil, spec.Invalidf("it holds %d certificates, want one and its root", len(certs))
	}
	leaf, root := certs[0], certs[1]
	if err := leaf.CheckSignatureFrom(root); err != nil {
		return nil, spec.Invalidf("its first certificate is not signed with the second: %v", err)
	}
	s, err := subjectOf(leaf)
	if err != nil {
		return nil, err
	}
	cert := tls.Certificate{Certificate: [][]byte{leaf.Raw, root.Raw}, PrivateKey: key, Leaf: leaf}
	return &chain{cert: cert, subject: s, issuer: Hash(root), text: text}, nil
}

func parseTrust(text string) (trust, error) {
	certs, err := parseCerts(text)
	if err != nil {
		return trust{}, err
	}
	t := trust{pool: x509.NewCertPool(), text: text}
	for _, c := range certs {
		if !c.IsCA || !c.BasicConstraintsValid {
			return trust{}, spec.Invalidf("the certificate of %q is no root", c.Subject)
		}
		t.pool.AddCert(c)
		t.hashes = append(t.hashes, Hash(c))
	}
	slices.Sort(t.hashes)
	t.hashes = slices.Compact(t.hashes)
	return t, nil
}

// Check says whether a certificate is one for this identity and comes from one
// of the roots, and returns its subject. It looks at no clock.
func (i *Identity) Check(certPEM, rootsPEM string) (Subject, error) {
	c, _, err := i.check(certPEM, rootsPEM)
	if err != nil {
		return Subject{}, err
	}
	return c.subject, nil
}

func (i *Identity) check(certPEM, rootsPEM string) (*chain, trust, error) {
	t, err := parseTrust(rootsPEM)
	if err != nil {
		return nil, t, spec.Invalidf("read roots: %v", err)
	}
	c, err := i.parseChain(certPEM)
	if err != nil {
		return nil, t, spec.Invalidf("read certificate: %v", err)
	}
	if !slices.Contains(t.hashes, c.issuer) {
		return nil, t, spec.Invalidf("the certificate of %s comes from a root that is not to be trusted", c.subject)
	}
	return c, t, nil
}

// Follows refuses a certificate whose root this node does not trust yet. A new
// root comes to a member by way of those it has, never together with a
// certificate: else whoever answers could exchange both. Without a certificate
// there is nothing to follow.
func (i *Identity) Follows(certPEM string) error {
	c, err := i.parseChain(certPEM)
	if err != nil {
		return spec.Invalidf("read certificate: %v", err)
	}
	if i.Has() && !slices.Contains(i.Trusts(), c.issuer) {
		return spec.Conflictf("certificate of %s: it comes from root %s, which this node does not trust", c.subject, c.issuer)
	}
	return nil
}

// Install replaces certificate and roots, durably. What else makes a host a
// member must be on the disk before: Has is the sign that all is there.
func (i *Identity) Install(certPEM, rootsPEM string) error {
	c, t, err := i.check(certPEM, rootsPEM)
	if err != nil {
		return fmt.Errorf("install certificate: %w", err)
	}
	i.write.Lock()
	defer i.write.Unlock()
	if err := i.save(rootsFile, t.text); err != nil {
		return err
	}
	if err := i.save(certFile, c.text); err != nil {
		return err
	}
	i.swap(c, t)
	return nil
}

// SetRoots replaces the roots, durably.
func (i *Identity) SetRoots(rootsPEM string) error {
	t, err := parseTrust(rootsPEM)
	if err != nil {
		return spec.Invalidf("install roots: %v", err)
	}
	i.write.Lock()
	defer i.write.Unlock()
	old := i.held.Load()
	if slices.Equal(old.trust.hashes, t.hashes) {
		return nil
	}
	if err := i.save(rootsFile, t.text); err != nil {
		return err
	}
	i.swap(old.chain, t)
	return nil
}

func (i *Identity) save(name, text string) error {
	path := filepath.Join(i.dir, name)
	if err := WriteFile(path, []byte(text)); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func (i *Identity) swap(c *chain, t trust) {
	old := i.held.Swap(&held{chain: c, trust: t, changed: make(chan struct{})})
	close(old.changed)
}

// Changed returns a channel that is closed after the next change of
// certificate or roots. A connection goes on with the certificate that it was
// opened with, and all that it can do when that has ended is to renew. So who
// keeps connections open has to open new ones after a change: an Identity knows
// of no connection and closes none.
func (i *Identity) Changed() <-chan struct{} { return i.held.Load().changed }

// Has says whether there is a certificate, be it expired.
func (i *Identity) Has() bool { return i.held.Load().chain != nil }

// CSR makes a certificate request for the key.
func (i *Identity) CSR() (string, error) { return request(i.key) }

// Key is the fingerprint of the key, as spec.Node.Key has it.
func (i *Identity) Key() string { return i.fingerprint }

// Subject is who the certificate speaks of; zero without one.
func (i *Identity) Subject() Subject {
	if c := i.held.Load().chain; c != nil {
		return c.subject
	}
	return Subject{}
}

// Issuer is the hash of the root that the certificate comes from; empty
// without one.
func (i *Identity) Issuer() string {
	if c := i.held.Load().chain; c != nil {
		return c.issuer
	}
	return ""
}

// Trusts are the hashes of the trusted roots, sorted.
func (i *Identity) Trusts() []string { return slices.Clone(i.held.Load().trust.hashes) }

// Leaf is the certificate, nil without one. It must not be modified.
func (i *Identity) Leaf() *x509.Certificate {
	if c := i.held.Load().chain; c != nil {
		return c.cert.Leaf
	}
	return nil
}

// RenewAt is when to renew the certificate: at 50 to 80 % of its life, by
// chance but for one certificate always the same. It is zero without one.
func (i *Identity) RenewAt() time.Time {
	leaf := i.Leaf()
	if leaf == nil {
		return time.Time{}
	}
	sum := sha256.Sum256(leaf.Raw)
	part := 0.5 + 0.3*float64(binary.BigEndian.Uint32(sum[:]))/(1<<32)
	life := leaf.NotAfter.Sub(leaf.NotBefore)
	return leaf.NotBefore.Add(time.Duration(part * float64(life)))
}
