package store

import (
	"strings"
	"testing"

	"wherry.dev/spec"
)

// TestVXLANPort: the port of networks is chosen with the first Bootstrap and
// never again, by managers that all know of it, and outlives a recovery.
func TestVXLANPort(t *testing.T) {
	first := func(port uint16, format int) Command {
		return Command{Bootstrap: &Bootstrap{ClusterID: "c1", Incarnation: 1, Format: format, VXLANPort: port}}
	}
	h := &harness{TB: t, s: newStore(true)}
	h.refuse(first(4789, AddressFormat-1), spec.ErrConflict, "needs format 4")
	if h.s.Snapshot().ClusterID() != "" {
		t.Error("what was refused has begun the state")
	}
	h.must(first(4789, AddressFormat))
	h.must(first(4789, AddressFormat)) // a repeat
	h.refuse(first(4790, AddressFormat), spec.ErrConflict, "cannot be changed")
	h.must(Command{Bootstrap: &Bootstrap{ClusterID: "c1", Incarnation: 2}})
	if port := h.s.Snapshot().VXLANPort(); port != 4789 {
		t.Errorf("port %d after a recovery", port)
	}
	again := newStore(true)
	if err := again.Restore(strings.NewReader(dump(t, h.s.Snapshot()))); err != nil || again.Snapshot().VXLANPort() != 4789 {
		t.Errorf("port %d after a restore, %v", again.Snapshot().VXLANPort(), err)
	}

	old := newHarness(t)
	old.refuse(first(4789, 0), spec.ErrConflict, "cannot be changed")
	if port := old.s.Snapshot().VXLANPort(); port != spec.VXLANPort || strings.Contains(dump(t, old.s.Snapshot()), "vxlan_port") {
		t.Errorf("port %d by default", port)
	}
}
