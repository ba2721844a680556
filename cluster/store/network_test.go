package store

import (
	"testing"

	"wherry.dev/spec"
)

// guest is a stack whose one service is on a network of somebody else.
func guest(name, network string) spec.Stack {
	s := web(name, 0)
	s.Volumes = nil
	s.Networks = map[string]spec.NetworkSpec{"default": {External: true, Name: network}}
	return edit(s, "web", func(svc *spec.ServiceSpec) { svc.Template.Mounts, svc.Ports = nil, nil })
}

func (h *harness) network(name string) spec.Network {
	h.Helper()
	n := h.s.Snapshot().NetworkNamed(name)
	if n == nil {
		h.Fatalf("there is no network %s", name)
	}
	return *n
}

func TestNetworkByHand(t *testing.T) {
	h := newHarness(t)
	h.must(Command{CreateNetwork: &CreateNetwork{Name: "edge", Spec: spec.NetworkSpec{Driver: spec.DriverOverlay, Internal: true}}})
	edge := h.network("edge")
	if edge.Stack != "" || edge.Short != "edge" || !edge.Spec.Internal || edge.Gone {
		t.Errorf("%+v", edge)
	}
	h.refuse(Command{CreateNetwork: &CreateNetwork{Name: "edge"}}, spec.ErrConflict, "edge exists already")
	h.refuse(Command{CreateNetwork: &CreateNetwork{Name: "a/b"}}, spec.ErrInvalid, "network")
	h.refuse(Command{CreateNetwork: &CreateNetwork{Name: "x", Spec: spec.NetworkSpec{External: true}}}, spec.ErrInvalid, "external")
	h.refuse(Command{RemoveNetwork: &RemoveNetwork{Name: "none"}}, spec.ErrNotFound, "none")
	own := guest("own", "edge")
	own.Networks["default"] = spec.NetworkSpec{Name: "edge"}
	h.refuse(putStack(own), spec.ErrConflict, "edge belongs to no stack", "external")

	h.must(putStack(web("shop", 8080)))
	h.refuse(Command{CreateNetwork: &CreateNetwork{Name: "shop_default"}}, spec.ErrConflict, "exists already, it belongs to stack shop")
	h.refuse(Command{RemoveNetwork: &RemoveNetwork{Name: "shop_default"}}, spec.ErrConflict, "belongs to stack shop")

	h.must(putStack(guest("blog", "edge")))
	h.refuse(Command{RemoveNetwork: &RemoveNetwork{Name: "edge"}}, spec.ErrConflict, "is used by service blog/web:")
	rev := h.s.Snapshot().Service("blog", "web").Revision
	h.mustPart(spec.Part{Create: []spec.Task{{Stack: "blog", Service: "web", Slot: 1, Node: "n1", Revision: rev,
		Addresses: []spec.Address{{Network: edge.ID, IP: "10.2.0.2/24"}}}}})
	task := h.s.Snapshot().Tasks()[0].ID
	h.refuse(Command{RemoveNetwork: &RemoveNetwork{Name: "edge"}}, spec.ErrConflict, "is used by service blog/web:")
	h.must(Command{RemoveStack: &RemoveStack{Name: "blog"}})
	h.refuse(Command{RemoveNetwork: &RemoveNetwork{Name: "edge"}}, spec.ErrConflict, "is used by task blog.web.1:")
	h.report("n1", task, spec.TaskStopped)
	h.must(Command{RemoveNetwork: &RemoveNetwork{Name: "edge"}})
	h.must(Command{RemoveNetwork: &RemoveNetwork{Name: "edge"}}) // again
	if !h.network("edge").Gone {
		t.Error("the network is not on its way out")
	}
	h.must(Command{CreateNetwork: &CreateNetwork{Name: "edge"}})
	if back := h.network("edge"); back.Gone || back.ID != edge.ID || back.Spec.Internal {
		t.Errorf("%+v", back)
	}
}

// TestNetworkChangesHands: what nobody declares any more and somebody uses may
// be declared by another stack, and keeps its identity and its numbers.
func TestNetworkChangesHands(t *testing.T) {
	h := newHarness(t)
	s := web("shop", 8080)
	s.Networks["default"] = spec.NetworkSpec{Name: "edge"}
	h.must(putStack(s))
	edge := h.network("edge")
	h.mustPart(spec.Part{Networks: []spec.NetworkNumbers{{ID: edge.ID, Subnet: "10.3.0.0/24", Gateway: "10.3.0.1", VNI: 7}}})
	h.must(putStack(guest("blog", "edge")))
	h.must(Command{RemoveStack: &RemoveStack{Name: "shop"}})
	if n := h.network("edge"); !n.Gone {
		t.Errorf("%+v", n)
	}
	h.refuse(Command{RemoveNetwork: &RemoveNetwork{Name: "edge"}}, spec.ErrConflict, "blog/web")
	next := web("next", 8080)
	next.Networks["default"] = spec.NetworkSpec{Name: "edge", Internal: true}
	h.must(putStack(next))
	if n := h.network("edge"); n.ID != edge.ID || n.Gone || n.Stack != "next" || n.Short != "default" || n.VNI != 7 || n.Subnet != "10.3.0.0/24" || !n.Spec.Internal {
		t.Errorf("%+v", n)
	}
	h.refuse(putStack(s), spec.ErrConflict, "edge belongs to stack next")
}

// TestNetworkIsJoinedInTime: a plan that is about to remove a network is
// rejected when somebody has come to use it meanwhile.
func TestNetworkIsJoinedInTime(t *testing.T) {
	h := newHarness(t)
	h.must(putStack(web("shop", 8080)))
	h.must(Command{RemoveStack: &RemoveStack{Name: "shop"}})
	n := h.network("shop_default")
	drop := spec.Part{
		Reads:          []spec.Read{{Kind: spec.KindNetwork, Key: string(n.ID), Version: n.Version}},
		RemoveNetworks: []spec.NetworkID{n.ID},
	}
	h.must(putStack(guest("blog", "shop_default")))
	wantError(t, h.part(drop), spec.ErrConflict, "has moved")
}

// TestExternalBeforeFormat: as long as a manager of an older version is there,
// what it would refuse is refused.
func TestExternalBeforeFormat(t *testing.T) {
	h := &harness{TB: t, s: newStore(true)}
	h.must(Command{Bootstrap: &Bootstrap{ClusterID: "c1", Incarnation: 1, Format: 3}})
	h.refuse(Command{CreateNetwork: &CreateNetwork{Name: "edge"}}, spec.ErrConflict, "needs format 4")
	h.refuse(Command{RemoveNetwork: &RemoveNetwork{Name: "edge"}}, spec.ErrConflict, "needs format 4")
	h.refuse(putStack(guest("blog", "edge")), spec.ErrNotFound, "does not exist: network edge;")
	h.must(putStack(web("shop", 8080)))
	h.must(Command{RemoveStack: &RemoveStack{Name: "shop"}})
	h.refuse(putStack(guest("blog", "shop_default")), spec.ErrNotFound, "network shop_default;")
	next := web("next", 8080)
	next.Networks["default"] = spec.NetworkSpec{Name: "shop_default"}
	h.refuse(putStack(next), spec.ErrConflict, "shop_default of stack shop", "try again later")
	h.must(Command{Bootstrap: &Bootstrap{ClusterID: "c1", Incarnation: 1, Format: 4}})
	h.must(putStack(guest("blog", "edge")))
	h.must(putStack(next))
}
