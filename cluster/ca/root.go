package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base32"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"time"

	"wherry.dev/spec"
)

const (
	// RootLife is how long a root is good for.
	RootLife = 20 * 365 * 24 * time.Hour
	// Life is how long the certificate of a node is good for.
	Life = 30 * 24 * time.Hour
	// Grace is how long after its end a certificate may still be renewed.
	Grace = 30 * 24 * time.Hour
	// backdate is how much earlier than now a certificate begins, for clocks
	// that are a little behind.
	backdate = time.Hour

	// maxPEM is the largest PEM text that is looked at, in bytes.
	maxPEM = 64 << 10
	// clientUnit marks the certificate of a client, in the place of a role.
	clientUnit = "client"
)

// Kind says what a certificate is for.
type Kind string

// The kinds. Only a node may be on the serving end of a connection.
const (
	KindNode   Kind = "node"
	KindClient Kind = "client"
)

// Subject is who a certificate speaks of.
type Subject struct {
	Kind Kind
	// ID of the node, or name of the client.
	ID string
	// Role that the node had when the certificate was made; the one that
	// counts is in the table of nodes. Empty for a client.
	Role    spec.NodeRole
	Cluster string
}

// String names the subject in a message: "node 0123456789abcdef".
func (s Subject) String() string { return string(s.Kind) + " " + s.ID }

func (s Subject) check() error {
	switch {
	case s.ID == "" || s.Cluster == "":
		return spec.Invalidf("a certificate needs a name and a cluster")
	case s.Kind == KindClient && s.Role == "":
		return nil
	case s.Kind == KindNode && (s.Role == spec.RoleManager || s.Role == spec.RoleWorker):
		return nil
	}
	return spec.Invalidf("a certificate for %s cannot have the role %q", s, s.Role)
}

// subjectOf reads the subject of a certificate.
func subjectOf(cert *x509.Certificate) (Subject, error) {
	n := cert.Subject
	if n.CommonName == "" || len(n.Organization) != 1 || len(n.OrganizationalUnit) != 1 {
		return Subject{}, spec.Invalidf("the certificate of %q is not one that wherry makes", n)
	}
	s := Subject{Kind: KindNode, ID: n.CommonName, Role: spec.NodeRole(n.OrganizationalUnit[0]), Cluster: n.Organization[0]}
	if s.Role == clientUnit {
		s.Kind, s.Role = KindClient, ""
	}
	return s, s.check()
}

// base is how hashes and secrets are written: lower case, without padding.
var base = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Hash names a root: the SHA-256 of the certificate, in 52 characters.
func Hash(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return base.EncodeToString(sum[:])
}

// keyOf is the fingerprint of a public key, as spec.Node.Key has it.
func keyOf(public any) (string, error) {
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return "", spec.Invalidf("read public key: %v", err)
	}
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:]), nil
}

// NewRoot makes a root for the cluster, with a new key.
func NewRoot(clusterID string, now time.Time) (spec.Root, error) {
	if clusterID == "" {
		return spec.Root{}, spec.Invalidf("make root certificate: the cluster has no ID yet")
	}
	key, keyPEM, err := newKey()
	if err != nil {
		return spec.Root{}, err
	}
	serial := newSerial()
	t := &x509.Certificate{
		SerialNumber: serial,
		// Two roots of one cluster must be told apart by their names.
		Subject:               pkix.Name{CommonName: fmt.Sprintf("wherry CA %x", serial.Bytes()[:4]), Organization: []string{clusterID}},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(RootLife),
		IsCA:                  true,
		MaxPathLenZero:        true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return spec.Root{}, fmt.Errorf("make root certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return spec.Root{}, fmt.Errorf("make root certificate: %w", err)
	}
	return spec.Root{Hash: Hash(cert), Certificate: encodeCert(cert), Key: keyPEM}, nil
}

// Validity is from when to when a root is good.
func Validity(root spec.Root) (from, to time.Time, err error) {
	cert, err := oneCert(root.Certificate)
	if err != nil {
		return from, to, fmt.Errorf("read root %.8s…: %w", root.Hash, err)
	}
	return cert.NotBefore, cert.NotAfter, nil
}

// Sign makes a certificate for the key in a certificate request, of which
// nothing else counts, and returns it with the root behind it. It ends with
// the root at the latest.
func Sign(root spec.Root, csrPEM string, s Subject, now time.Time, life time.Duration) (chainPEM string, err error) {
	if err := s.check(); err != nil {
		return "", err
	}
	public, err := parseCSR(csrPEM)
	if err != nil {
		return "", err
	}
	ca, err := oneCert(root.Certificate)
	if err != nil {
		return "", fmt.Errorf("read root %.8s…: %w", root.Hash, err)
	}
	key, err := parseKey(root.Key)
	if err != nil {
		return "", fmt.Errorf("read key of root %.8s…: %w", root.Hash, err)
	}
	if !now.Before(ca.NotAfter) {
		return "", spec.Unavailablef("the root certificate of the cluster expired at %s: a new one has to be made", when(ca.NotAfter))
	}
	if now.Before(ca.NotBefore) {
		return "", spec.Unavailablef("the root certificate of the cluster is good from %s on, and the clock here says %s: set the clock", when(ca.NotBefore), when(now))
	}
	usages, unit := []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, clientUnit
	if s.Kind == KindNode {
		usages, unit = append(usages, x509.ExtKeyUsageServerAuth), string(s.Role)
	}
	t := &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{CommonName: s.ID, OrganizationalUnit: []string{unit}, Organization: []string{s.Cluster}},
		NotBefore:             latest(now.Add(-backdate), ca.NotBefore),
		NotAfter:              earliest(now.Add(life), ca.NotAfter),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           usages,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, t, ca, public, key)
	if err != nil {
		return "", fmt.Errorf("sign certificate of %s: %w", s, err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})) + encodeCert(ca), nil
}

// Fingerprint is the fingerprint of the key in a certificate request, as
// spec.Node.Key has it. The request must be signed with that key.
func Fingerprint(csrPEM string) (string, error) {
	public, err := parseCSR(csrPEM)
	if err != nil {
		return "", err
	}
	return keyOf(public)
}

// parseCSR returns the public key of a certificate request.
func parseCSR(text string) (*ecdsa.PublicKey, error) {
	der, err := onePEM(text, "CERTIFICATE REQUEST")
	if err != nil {
		return nil, spec.Invalidf("read certificate request: %v", err)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, spec.Invalidf("read certificate request: it is damaged")
	}
	public, ok := csr.PublicKey.(*ecdsa.PublicKey)
	if !ok || public.Curve != elliptic.P256() {
		return nil, spec.Invalidf("read certificate request: its key is %s, want ECDSA P-256", csr.PublicKeyAlgorithm)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, spec.Invalidf("read certificate request: it is not signed with its own key")
	}
	return public, nil
}

func request(key *ecdsa.PrivateKey) (string, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return "", fmt.Errorf("make certificate request: %w", err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), nil
}

func newKey() (*ecdsa.PrivateKey, string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, "", fmt.Errorf("make key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, "", fmt.Errorf("make key: %w", err)
	}
	return key, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})), nil
}

// parseKey reads a private key. Its errors say nothing of the text.
func parseKey(text string) (*ecdsa.PrivateKey, error) {
	der, err := onePEM(text, "PRIVATE KEY")
	if err != nil {
		return nil, spec.Invalidf("read private key: %v", err)
	}
	any, err := x509.ParsePKCS8PrivateKey(der)
	key, ok := any.(*ecdsa.PrivateKey)
	if err != nil || !ok || key.Curve != elliptic.P256() {
		return nil, spec.Invalidf("read private key: it is no ECDSA P-256 key in PKCS #8")
	}
	return key, nil
}

// onePEM returns what the single block of a text holds.
func onePEM(text, kind string) ([]byte, error) {
	blocks, err := allPEM(text, kind)
	if err != nil {
		return nil, err
	}
	if len(blocks) != 1 {
		return nil, spec.Invalidf("it holds %d blocks of PEM, want one", len(blocks))
	}
	return blocks[0], nil
}

// allPEM returns what the blocks of a text hold; there must be one at least,
// all of one kind, and nothing else.
func allPEM(text, kind string) ([][]byte, error) {
	if len(text) > maxPEM {
		return nil, spec.Invalidf("it has %d KiB, at most %d are possible", len(text)>>10, maxPEM>>10)
	}
	var all [][]byte
	rest := bytes.TrimSpace([]byte(text))
	for len(rest) > 0 {
		if !bytes.HasPrefix(rest, []byte("-----BEGIN ")) {
			return nil, spec.Invalidf("it is not PEM")
		}
		block, more := pem.Decode(rest)
		if block == nil {
			return nil, spec.Invalidf("it is not PEM")
		}
		if block.Type != kind {
			return nil, spec.Invalidf("it holds a %.40q, want a %s", block.Type, kind)
		}
		all = append(all, block.Bytes)
		rest = bytes.TrimSpace(more)
	}
	if len(all) == 0 {
		return nil, spec.Invalidf("it is empty")
	}
	return all, nil
}

func oneCert(text string) (*x509.Certificate, error) {
	certs, err := parseCerts(text)
	if err != nil {
		return nil, err
	}
	if len(certs) != 1 {
		return nil, spec.Invalidf("it holds %d certificates, want one", len(certs))
	}
	return certs[0], nil
}

func parseCerts(text string) ([]*x509.Certificate, error) {
	blocks, err := allPEM(text, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	certs := make([]*x509.Certificate, len(blocks))
	for i, der := range blocks {
		if certs[i], err = x509.ParseCertificate(der); err != nil {
			return nil, spec.Invalidf("certificate %d: %v", i+1, err)
		}
	}
	return certs, nil
}

func encodeCert(cert *x509.Certificate) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
}

// newSerial returns a number of 127 bits that nobody can guess.
func newSerial() *big.Int {
	b := make([]byte, 16)
	rand.Read(b)
	b[0] = b[0]&0x7f | 0x40 // positive, and always of one length
	return new(big.Int).SetBytes(b)
}

func earliest(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func latest(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// when writes a time in a message.
func when(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05Z") }
