package server

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"wherry.dev/api"
	"wherry.dev/spec"
)

// TestWhy asks about a stack, a service, a place and a task, in every way in which
// these can be named.
func TestWhy(t *testing.T) {
	w, ctx := newWorld(t), t.Context()
	s := nginx()
	huge := s.Services["web"]
	huge.Template.Resources.ReserveMemory = 1 << 50
	s.Services["huge.db"] = huge
	if _, err := w.client.PutStack(ctx, api.PutStack{Stack: s}); err != nil {
		t.Fatal(err)
	}
	w.runs()
	for _, ref := range []string{"", "shop", "shop/huge.db", "shop/huge.db.1", "shop.huge.db.1", string(w.store.Snapshot().TasksOf("shop", "huge.db")[0].ID)} {
		l, err := w.client.Why(ctx, ref)
		if err != nil {
			t.Fatalf("%q: %v", ref, err)
		}
		i := len(l.Items) - 1
		if ref == "" || ref == "shop" {
			i-- // huge.db comes first
		}
		if i != 0 || len(l.Items[0].Tasks) != 1 {
			t.Fatalf("%q: %+v", ref, l)
		}
		got := l.Items[0].Tasks[0]
		if got.Name != "shop.huge.db.1" || got.Verdict != spec.VerdictPending || len(got.Refusals) != 1 || got.Refusals[0].Reason != "not enough memory" || got.Nearest == nil {
			b, _ := json.Marshal(got)
			t.Errorf("%q: %s", ref, b)
		}
	}
	l, err := w.client.Why(ctx, "shop/web.1")
	if err != nil || len(l.Items) != 1 || len(l.Items[0].Tasks) != 1 || l.Items[0].Tasks[0].Verdict != spec.VerdictFine {
		t.Errorf("a task that runs: %+v, %v", l, err)
	}
	for _, ref := range []string{"shp", "shop/wbe", "shop.web.x", "9-9"} {
		if _, err := w.client.Why(ctx, ref); !errors.Is(err, spec.ErrNotFound) || !strings.Contains(err.Error(), "exist") && !strings.Contains(err.Error(), "has no") {
			t.Errorf("%q: %v", ref, err)
		}
	}
}
