package ca

import (
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"wherry.dev/spec"
)

func open(t testing.TB, dir string) *Identity {
	t.Helper()
	i, err := OpenIdentity(dir)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func TestIdentityLasts(t *testing.T) {
	now := time.Now()
	root, next := newRoot(t, "c1", now), newRoot(t, "c1", now)
	dir := t.TempDir() + "/tls"
	i := open(t, dir)
	if i.Has() || i.Leaf() != nil || i.Issuer() != "" || !i.RenewAt().IsZero() || len(i.Trusts()) > 0 || i.Subject() != (Subject{}) {
		t.Error("a new identity has a certificate")
	}
	changed := i.Changed()
	if err := i.Install(sign(t, root, i, worker, now), root.Certificate); err != nil {
		t.Fatal(err)
	}
	select {
	case <-changed:
	default:
		t.Error("nobody was told")
	}
	if err := i.SetRoots(root.Certificate + next.Certificate); err != nil {
		t.Fatal(err)
	}
	both := []string{root.Hash, next.Hash}
	slices.Sort(both)
	for _, i := range []*Identity{i, open(t, dir)} {
		if !i.Has() || i.Subject() != worker || i.Issuer() != root.Hash || !slices.Equal(i.Trusts(), both) {
			t.Errorf("has %t, %+v from %s, trusts %s", i.Has(), i.Subject(), i.Issuer(), i.Trusts())
		}
	}
	if again := open(t, dir); again.Key() != i.Key() || !again.RenewAt().Equal(i.RenewAt()) {
		t.Error("key or time of renewal is another one after a restart")
	}
	for _, f := range []string{keyFile, certFile, rootsFile} {
		st, err := os.Stat(filepath.Join(dir, f))
		if err != nil || st.Mode() != 0o600 {
			t.Errorf("%s: mode %v, %v", f, st.Mode(), err)
		}
	}
	if left, _ := filepath.Glob(dir + "/*.tmp"); len(left) > 0 {
		t.Errorf("left over: %s", left)
	}
}

// TestCrash: whatever part of an installation is on the disk, the identity
// opens, and has a certificate only when all is there.
func TestCrash(t *testing.T) {
	now := time.Now()
	root := newRoot(t, "c1", now)
	i := newIdentity(t, root, worker, now)
	for _, files := range [][]string{
		{}, {keyFile}, {keyFile, rootsFile}, {keyFile, certFile}, {keyFile, rootsFile, certFile},
	} {
		dir := t.TempDir()
		for _, f := range files {
			b, err := os.ReadFile(filepath.Join(i.dir, f))
			if err != nil {
				t.Fatal(err)
			}
			if err := WriteFile(filepath.Join(dir, f), b); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, f+".tmp"), b[:10], 0o600); err != nil {
				t.Fatal(err)
			}
		}
		got := open(t, dir)
		if got.Has() != (len(files) == 3) {
			t.Errorf("with %s: has a certificate: %t", files, got.Has())
		}
		if err := got.Install(sign(t, root, got, worker, now), root.Certificate); err != nil || !got.Has() {
			t.Errorf("with %s: cannot go on: %v", files, err)
		}
	}
}

func TestRenewAt(t *testing.T) {
	now := time.Now()
	root := newRoot(t, "c1", now)
	i := open(t, t.TempDir()+"/tls")
	seen := map[time.Duration]bool{}
	for range 20 {
		if err := i.Install(sign(t, root, i, worker, now), root.Certificate); err != nil {
			t.Fatal(err)
		}
		age := i.RenewAt().Sub(i.Leaf().NotBefore)
		life := i.Leaf().NotAfter.Sub(i.Leaf().NotBefore)
		if age < life/2 || age > life*8/10 {
			t.Fatalf("renewal after %s of %s", age, life)
		}
		seen[age] = true
	}
	if len(seen) < 19 {
		t.Errorf("20 certificates are renewed at %d times", len(seen))
	}
}

func TestBadInstall(t *testing.T) {
	now := time.Now()
	root, other := newRoot(t, "c1", now), newRoot(t, "c2", now)
	i, stranger := newIdentity(t, root, worker, now), newIdentity(t, root, manager, now)
	own := sign(t, root, i, worker, now)
	leaf := i.Leaf()
	for _, c := range []struct{ name, cert, roots, want string }{
		{"empty", "", root.Certificate, "read certificate: it is empty"},
		{"no roots", own, "", "read roots: it is empty"},
		{"leaf alone", encodeCert(leaf), root.Certificate, "holds 1 certificates, want one and its root"},
		{"another's", sign(t, root, stranger, manager, now), root.Certificate, "the certificate of node 00000000000000a1 is for another key"},
		{"another root behind", encodeCert(leaf) + other.Certificate, other.Certificate, "not signed with the second"},
		{"root not trusted", own, other.Certificate, "comes from a root that is not to be trusted"},
		{"leaf as root", own, encodeCert(leaf), "is no root"},
		{"key as root", own, root.Key, "PRIVATE KEY"},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := i.held.Load()
			_, err := i.Check(c.cert, c.roots)
			wantError(t, err, spec.ErrInvalid, c.want)
			wantError(t, i.Install(c.cert, c.roots), spec.ErrInvalid, c.want)
			if i.held.Load() != before {
				t.Error("it was taken nevertheless")
			}
		})
	}
	wantError(t, i.SetRoots("x"), spec.ErrInvalid, "install roots: it is not PEM")
}

func TestDamagedFolder(t *testing.T) {
	now := time.Now()
	root := newRoot(t, "c1", now)
	for _, c := range []struct{ file, text, want string }{
		{keyFile, "x", "key.pem is damaged: bring back a copy of it"},
		{keyFile, "", "key.pem is missing or empty, but there is a certificate beside it"},
		{rootsFile, "x", "roots.pem is damaged (it is not PEM)"},
		{certFile, root.Certificate, "cert.pem is damaged (it holds 1 certificates"},
	} {
		i := newIdentity(t, root, worker, now)
		if err := WriteFile(filepath.Join(i.dir, c.file), []byte(c.text)); err != nil {
			t.Fatal(err)
		}
		_, err := OpenIdentity(i.dir)
		wantError(t, err, nil, "open identity: ", c.want)
	}
}

func TestIdentityConcurrently(t *testing.T) {
	now := time.Now()
	root := newRoot(t, "c1", now)
	i := newIdentity(t, root, worker, now)
	other := newRoot(t, "c1", now)
	var wg sync.WaitGroup
	for n := range 8 {
		wg.Go(func() {
			for range 5 {
				var err error
				if n%2 == 0 {
					err = i.SetRoots(root.Certificate + other.Certificate)
				} else {
					err = i.Install(i.held.Load().chain.text, root.Certificate)
				}
				if err != nil || !i.Has() || len(i.Trusts()) == 0 {
					t.Error(err)
				}
				i.RenewAt()
			}
		})
	}
	wg.Wait()
	if again := open(t, i.dir); !slices.Equal(again.Trusts(), i.Trusts()) {
		t.Error("the files hold something else")
	}
}
