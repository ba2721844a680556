package cluster

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"wherry.dev/cluster/ca"
	"wherry.dev/spec"
)

func TestJoinGoesOnAfterACrash(t *testing.T) {
	y := newMany(t)
	y.first("a")
	c := y.config("b")
	c.Join = &Join{Addr: y.live["a"].Address(), Token: y.token(spec.RoleManager)}
	open := func() *Member {
		t.Helper()
		m, err := Open(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	id := open()
	id.release()
	// The files in the order in which they are written; a crash leaves the ones
	// before.
	for _, lost := range [][]string{
		{filepath.Join(tlsDir, "cert.pem")},
		{filepath.Join(tlsDir, "cert.pem"), peersFile},
		{filepath.Join(tlsDir, "cert.pem"), peersFile, raftDir, keyringFile},
	} {
		for _, f := range lost {
			if err := os.RemoveAll(filepath.Join(c.DataDir, f)); err != nil {
				t.Fatal(err)
			}
		}
		m := open()
		m.release()
		if m.Node() != id.Node() {
			t.Errorf("with %s lost, the host joins under another ID", lost)
		}
	}
	// Begun, and then without the flags: it must not make a cluster of its own.
	if err := os.Remove(filepath.Join(c.DataDir, tlsDir, "cert.pem")); err != nil {
		t.Fatal(err)
	}
	alone := c
	alone.Join = nil
	if _, err := Open(t.Context(), alone); !errors.Is(err, spec.ErrConflict) || !strings.Contains(err.Error(), "--join") {
		t.Errorf("a join that was not finished, without --join: %v", err)
	}
	r := y.run("b", c)
	r.await(r.Ready(), "ready")
	y.voters(2)
	y.stop("b")
	// With the flags still there it goes on; with those of another cluster not.
	r = y.run("b", c)
	r.await(r.Ready(), "ready")
	y.stop("b")
	other := newMany(t)
	other.first("x")
	c.Join = &Join{Addr: other.live["x"].Address(), Token: other.token(spec.RoleManager)}
	if _, err := Open(t.Context(), c); !errors.Is(err, spec.ErrConflict) || !strings.Contains(err.Error(), "another cluster") {
		t.Errorf("joining another cluster: %v", err)
	}
	// Somebody who made a cluster does not join one by accident.
	y.stop("a")
	c = y.config("a")
	c.Join = &Join{Addr: other.live["x"].Address(), Token: other.token(spec.RoleManager)}
	if _, err := Open(t.Context(), c); !errors.Is(err, spec.ErrConflict) {
		t.Errorf("the first manager joining another cluster: %v", err)
	}
}

// A unit file keeps the flags of the join for years; the authority may be
// another one by then.
func TestJoinFlagsOutliveAnExchange(t *testing.T) {
	y := newMany(t)
	a := y.first("a")
	join := &Join{Addr: a.Address(), Token: y.token(spec.RoleWorker)}
	y.join("w", spec.RoleWorker)
	old := a.Store().Snapshot().Authority().Signer
	if err := a.RotateCA(t.Context()); err != nil {
		t.Fatal(err)
	}
	y.tellCertificates(func(u *spec.Authority) bool { return len(u.Roots) == 1 && u.Signer != old })
	for _, r := range y.live {
		r.until("the old root to be dropped", func() bool {
			if r.Role() == spec.RoleWorker {
				r.SetCluster(a.enroll.own())
			}
			return !slices.Contains(r.identity.Trusts(), old)
		})
	}
	for _, name := range []string{"w", "a"} {
		y.stop(name)
		c := y.config(name)
		c.Join = join
		m, err := Open(t.Context(), c)
		if err != nil {
			t.Errorf("%s with the flags of its first start: %v", name, err)
			continue
		}
		m.release()
		foreign, err := ca.ParseToken(join.Token)
		if err != nil {
			t.Fatal(err)
		}
		foreign.CAHash = strings.Repeat("a", len(old))
		c.Join = &Join{Addr: join.Addr, Token: foreign.String()}
		if m, err := Open(t.Context(), c); !errors.Is(err, spec.ErrConflict) || !strings.Contains(err.Error(), "another cluster") {
			if err == nil {
				m.release()
			}
			t.Errorf("%s with a token of another cluster: %v", name, err)
		}
	}
}
