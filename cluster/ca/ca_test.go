package ca

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"strings"
	"testing"
	"time"

	"wherry.dev/spec"
)

const day = 24 * time.Hour

var (
	worker  = Subject{Kind: KindNode, ID: "00000000000000b1", Role: spec.RoleWorker, Cluster: "c1"}
	manager = Subject{Kind: KindNode, ID: "00000000000000a1", Role: spec.RoleManager, Cluster: "c1"}
	ann     = Subject{Kind: KindClient, ID: "ann", Cluster: "c1"}
)

func newRoot(t testing.TB, cluster string, now time.Time) spec.Root {
	t.Helper()
	r, err := NewRoot(cluster, now)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// newIdentity makes an identity with a certificate that was issued at a time.
func newIdentity(t testing.TB, root spec.Root, s Subject, issued time.Time) *Identity {
	t.Helper()
	i, err := OpenIdentity(t.TempDir() + "/tls")
	if err != nil {
		t.Fatal(err)
	}
	if err := i.Install(sign(t, root, i, s, issued), root.Certificate); err != nil {
		t.Fatal(err)
	}
	return i
}

func sign(t testing.TB, root spec.Root, i *Identity, s Subject, issued time.Time) string {
	t.Helper()
	csr, err := i.CSR()
	if err != nil {
		t.Fatal(err)
	}
	chain, err := Sign(root, csr, s, issued, Life)
	if err != nil {
		t.Fatal(err)
	}
	return chain
}

func wantError(t testing.TB, err, class error, want ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want %q", want)
	}
	if class != nil && !errors.Is(err, class) {
		t.Errorf("error %q is not of class %q", err, class)
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
}

func requestFor(t testing.TB, key any) string {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

func TestSign(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	root := newRoot(t, "c1", now)
	for _, s := range []Subject{worker, manager, ann} {
		i := newIdentity(t, root, s, now)
		leaf := i.Leaf()
		if got := i.Subject(); got != s {
			t.Errorf("subject %+v, want %+v", got, s)
		}
		if i.Issuer() != root.Hash || len(root.Hash) != 52 {
			t.Errorf("issuer %q, want the root %q of 52 characters", i.Issuer(), root.Hash)
		}
		if !leaf.NotBefore.Equal(now.Add(-time.Hour)) || !leaf.NotAfter.Equal(now.Add(30*day)) {
			t.Errorf("good from %s to %s", leaf.NotBefore, leaf.NotAfter)
		}
		if leaf.IsCA || leaf.PublicKeyAlgorithm != x509.ECDSA {
			t.Errorf("it is a CA (%t) or not ECDSA (%s)", leaf.IsCA, leaf.PublicKeyAlgorithm)
		}
	}
	if a, b := newRoot(t, "c1", now), newRoot(t, "c1", now); a.Hash == b.Hash {
		t.Error("two roots have one hash")
	}
}

// TestSignTakesOnlyTheKey: a request cannot ask for a name of its own.
func TestSignTakesOnlyTheKey(t *testing.T) {
	now := time.Now()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ask := &x509.CertificateRequest{DNSNames: []string{"evil.example"}}
	ask.Subject.CommonName, ask.Subject.OrganizationalUnit = manager.ID, []string{"manager"}
	der, err := x509.CreateCertificateRequest(rand.Reader, ask, key)
	if err != nil {
		t.Fatal(err)
	}
	text, err := Sign(newRoot(t, "c1", now), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), worker, now, Life)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := parseCerts(text)
	if err != nil {
		t.Fatal(err)
	}
	if s, err := subjectOf(certs[0]); err != nil || s != worker || len(certs[0].DNSNames) > 0 {
		t.Errorf("got a certificate for %+v %v (%v)", s, certs[0].DNSNames, err)
	}
}

func TestSignEndsWithRoot(t *testing.T) {
	made := time.Now()
	root := newRoot(t, "c1", made)
	_, end, err := Validity(root)
	if err != nil {
		t.Fatal(err)
	}
	i := newIdentity(t, root, worker, end.Add(-day))
	if !i.Leaf().NotAfter.Equal(end) {
		t.Errorf("it ends at %s, its root at %s", i.Leaf().NotAfter, end)
	}
	csr, _ := i.CSR()
	_, err = Sign(root, csr, worker, end, Life)
	wantError(t, err, spec.ErrUnavailable, "root certificate of the cluster expired at")
	_, err = Sign(root, csr, worker, made.Add(-day), Life)
	wantError(t, err, spec.ErrUnavailable, "the clock here says", "set the clock")
}

func TestBadSubject(t *testing.T) {
	now := time.Now()
	root := newRoot(t, "c1", now)
	key, _, _ := newKey()
	csr, err := request(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]Subject{
		"no name":            {Kind: KindNode, Role: spec.RoleWorker, Cluster: "c1"},
		"no cluster":         {Kind: KindNode, ID: "a", Role: spec.RoleWorker},
		"no kind":            {ID: "a", Role: spec.RoleWorker, Cluster: "c1"},
		"node without role":  {Kind: KindNode, ID: "a", Cluster: "c1"},
		"node as client":     {Kind: KindNode, ID: "a", Role: clientUnit, Cluster: "c1"},
		"client with a role": {Kind: KindClient, ID: "a", Role: spec.RoleManager, Cluster: "c1"},
	} {
		if _, err := Sign(root, csr, s, now, Life); !errors.Is(err, spec.ErrInvalid) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	_, err = NewRoot("", now)
	wantError(t, err, spec.ErrInvalid, "no ID yet")
}

func TestBadRequest(t *testing.T) {
	i, err := OpenIdentity(t.TempDir() + "/tls")
	if err != nil {
		t.Fatal(err)
	}
	good, err := i.CSR()
	if err != nil {
		t.Fatal(err)
	}
	if f, err := Fingerprint(good); err != nil || f != i.Key() || len(f) != 64 {
		t.Errorf("fingerprint %q (%v), the key's is %q", f, err, i.Key())
	}
	block, _ := pem.Decode([]byte(good))
	block.Bytes[len(block.Bytes)-1] ^= 1
	tampered := string(pem.EncodeToMemory(block))
	p384, _ := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	rsaKey, _ := rsa.GenerateKey(rand.Reader, 2048)
	_, ed, _ := ed25519.GenerateKey(rand.Reader)
	_, key, _ := newKey()
	for _, c := range []struct{ name, csr, want string }{
		{"empty", "", "it is empty"},
		{"blank", " \n", "it is empty"},
		{"text", "hello", "it is not PEM"},
		{"cut", good[:len(good)/2], "it is not PEM"},
		{"text before", "x\n" + good, "it is not PEM"},
		{"text behind", good + "x", "it is not PEM"},
		{"twice", good + good, "2 blocks"},
		{"a key", key, "PRIVATE KEY"},
		{"a root", newRoot(t, "c1", time.Now()).Certificate, `"CERTIFICATE", want a CERTIFICATE REQUEST`},
		{"not ASN.1", "-----BEGIN CERTIFICATE REQUEST-----\naGVsbG8=\n-----END CERTIFICATE REQUEST-----\n", "it is damaged"},
		{"huge", strings.Repeat("-----BEGIN X-----\n-----END X-----\n", 4000), "at most 64 are possible"},
		{"signature", tampered, "not signed with its own key"},
		{"P-384", requestFor(t, p384), "want ECDSA P-256"},
		{"RSA", requestFor(t, rsaKey), "its key is RSA, want ECDSA P-256"},
		{"Ed25519", requestFor(t, ed), "its key is Ed25519, want ECDSA P-256"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Fingerprint(c.csr)
			wantError(t, err, spec.ErrInvalid, "read certificate request: ", c.want)
			if strings.Contains(err.Error(), "BEGIN") || len(err.Error()) > 200 {
				t.Errorf("the error repeats its input: %q", err)
			}
		})
	}
}

func FuzzRequest(f *testing.F) {
	private, key, err := newKey()
	if err != nil {
		f.Fatal(err)
	}
	good, err := request(private)
	if err != nil {
		f.Fatal(err)
	}
	for _, s := range []string{good, good + good, good[:200], key, "", "-----BEGIN CERTIFICATE REQUEST-----\n-----END CERTIFICATE REQUEST-----\n"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		print, err := Fingerprint(s)
		if err != nil && !errors.Is(err, spec.ErrInvalid) {
			t.Errorf("the error %q has no class", err)
		}
		if err == nil && len(print) != 64 {
			t.Errorf("fingerprint %q", print)
		}
	})
}
