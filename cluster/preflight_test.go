package cluster

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"wherry.dev/spec"
)

func TestPreflight(t *testing.T) {
	t.Parallel()
	a, foreign := newAuthority(t, "one"), newAuthority(t, "two")
	self, copied, other, alien := a.port(nodeA), a.port(nodeA), a.port(nodeB), foreign.port(nodeA)
	dumb, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer dumb.Close()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	check := func(known ...string) error {
		return preflight(t.Context(), self.c.Identity, nodeA, known, "10.0.0.1:4477", self.number())
	}
	begin := time.Now()
	if err := check(self.addr(), other.addr(), alien.addr(), dumb.Addr().String(), gone.Addr().String()); err != nil {
		t.Errorf("nobody has this identity: %v", err)
	}
	if took := time.Since(begin); took > 2*preflightTime {
		t.Errorf("took %s", took)
	}
	err = check(other.addr(), copied.addr())
	if !errors.Is(err, spec.ErrConflict) || !strings.Contains(err.Error(), "another host at "+copied.addr()+" uses the identity of this node, "+string(nodeA)) {
		t.Error(err)
	}
	// What this node advertises may lead back to it by a way that it does not know.
	if err := preflight(t.Context(), self.c.Identity, nodeA, []string{copied.addr()}, copied.addr(), self.number()); err != nil {
		t.Error(err)
	}
}

func TestIsLocal(t *testing.T) {
	locals := []net.Addr{&net.IPNet{IP: net.IPv4(10, 0, 0, 5), Mask: net.CIDRMask(24, 32)}, &net.IPNet{IP: netip.MustParseAddr("fd00::5").AsSlice(), Mask: net.CIDRMask(64, 128)}}
	for addr, want := range map[string]bool{
		"10.0.0.5:4477": true, "10.0.0.5:4478": false, "10.0.0.6:4477": false, "[fd00::5]:4477": true, "[::ffff:10.0.0.5]:4477": true, "host:4477": false,
	} {
		if got := isLocal(addr, 4477, locals); got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
}
