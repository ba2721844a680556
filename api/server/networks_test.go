package server

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"wherry.dev/api"
	"wherry.dev/cluster/store"
	"wherry.dev/reconciler"
	"wherry.dev/spec"
)

// decide applies what the passes want of the present state.
func (w *world) decide() {
	w.t.Helper()
	plan := reconciler.Plan(w.store.Snapshot(), w.server.Now())
	if !plan.Empty() {
		w.must(store.Command{ApplyPlan: &store.ApplyPlan{Epoch: 1, Parts: plan.Parts}})
	}
}

func TestNetworks(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	refused := func(err, class error, want ...string) {
		t.Helper()
		if !errors.Is(err, class) {
			t.Fatalf("got %v, want class %v", err, class)
		}
		for _, x := range want {
			if !strings.Contains(err.Error(), x) {
				t.Errorf("%q does not say %q", err, x)
			}
		}
	}
	create := func(name, subnet string) error {
		_, err := w.client.CreateNetwork(ctx, api.CreateNetwork{Name: name, Spec: spec.NetworkSpec{Driver: spec.DriverOverlay, Pool: spec.Pool{Subnet: subnet}}})
		return err
	}
	refused(create("a b", "10.9.0.1/24"), spec.ErrInvalid, `"a b"`, "10.9.0.0/24")
	refused(create("host", ""), spec.ErrInvalid, "each host")
	if err := create("edge", "10.9.0.0/24"); err != nil {
		t.Fatal(err)
	}
	w.decide()
	refused(create("edge", ""), spec.ErrConflict, "edge exists already")
	refused(create("other", "10.9.0.0/16"), spec.ErrConflict, "network other: subnet 10.9.0.0/16 overlaps 10.9.0.0/24 of network edge")
	if l, err := w.client.Networks(ctx); err != nil || len(l.Items) != 1 || l.Items[0].State != api.NetworkUnused || l.Items[0].Subnet != "10.9.0.0/24" || l.Items[0].Services == nil {
		t.Fatalf("%+v, %v", l, err)
	}
	_, err := w.client.Network(ctx, "egde", api.Poll{})
	refused(err, spec.ErrNotFound, `"egde" does not exist; there are: edge`)

	s := nginx()
	sv := s.Services["web"]
	sv.Template.NetworkMode, sv.Template.Networks = "", []spec.Attachment{{Network: "edge"}}
	s.Services["web"] = sv
	s.Networks = map[string]spec.NetworkSpec{"edge": {Driver: spec.DriverOverlay, External: true}}
	if _, err := w.client.PutStack(ctx, api.PutStack{Stack: s}); err != nil {
		t.Fatal(err)
	}
	w.decide()
	n, err := w.client.Network(ctx, "edge", api.Poll{})
	if err != nil || n.State != api.NetworkInUse || !slices.Equal(n.Services, []string{"shop/web"}) || len(n.Tasks) != 1 || n.Tasks[0].Name != "shop.web.1" ||
		n.Tasks[0].Node != "host-1" || n.Tasks[0].IP != "10.9.0.2/24" || len(n.VIPs) != 1 || n.VIPs[0].Service != "shop/web" || n.Index == 0 {
		t.Errorf("%+v, %v", n, err)
	}
	_, err = w.client.RemoveNetwork(ctx, "edge", "r1")
	refused(err, spec.ErrConflict, "edge is used by service shop/web")
	_, err = w.client.RemoveNetwork(ctx, "none", "r2")
	refused(err, spec.ErrNotFound, `"none" does not exist; there are: edge`)

	// What the owner leaves is kept for the others.
	own := spec.Stack{Name: "infra", Networks: map[string]spec.NetworkSpec{"lan": {Driver: spec.DriverOverlay, Name: "lan"}}}
	if _, err := w.client.PutStack(ctx, api.PutStack{Stack: own}); err != nil {
		t.Fatal(err)
	}
	if st, err := w.client.StackStatus(ctx, "infra", api.Poll{}); err != nil || st.State != api.StateUpdating || !strings.Contains(st.Message, "network lan") {
		t.Errorf("%+v, %v", st, err)
	}
	s.Networks["edge"] = spec.NetworkSpec{Driver: spec.DriverOverlay, External: true, Name: "lan"}
	if _, err := w.client.PutStack(ctx, api.PutStack{Stack: s}); err != nil {
		t.Fatal(err)
	}
	w.decide()
	if st, err := w.client.StackStatus(ctx, "infra", api.Poll{}); err != nil || st.State != api.StateRunning || st.Message != "" {
		t.Errorf("%+v, %v", st, err)
	}
	if _, err := w.client.RemoveStack(ctx, "infra", false, "r3"); err != nil {
		t.Fatal(err)
	}
	if n, err := w.client.Network(ctx, "lan", api.Poll{}); err != nil || n.State != api.NetworkKept || n.Stack != "infra" {
		t.Errorf("%+v, %v", n, err)
	}
}
