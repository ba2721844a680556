package tests

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"wherry.dev/cluster/store"
	"wherry.dev/reconciler"
	"wherry.dev/spec"
	"wherry.dev/spec/compose"
	"wherry.dev/spec/compose/composetest"
)

// TestHonouredKeysReachTheNode follows every honoured key to the end of the
// way: two files that differ only in it give different documents for the node
// (what it must run, what its networks must be) or, for a key that only counts
// in decisions, a different plan. That every field of these documents has an
// effect on the node is shown where they are consumed.
func TestHonouredKeysReachTheNode(t *testing.T) {
	dir := t.TempDir()
	for name, text := range composetest.Auxiliary {
		write(t, filepath.Join(dir, name), text)
	}
	for key, p := range composetest.Samples {
		t.Run(key, func(t *testing.T) {
			a, errA := loadStack(t, dir, p.A)
			b, errB := loadStack(t, dir, p.B)
			if errA != nil || errB != nil {
				if (errA == nil) == (errB == nil) {
					t.Fatalf("both files are refused: %v; %v", errA, errB)
				}
				return // the key decides whether the file is accepted
			}
			da, db := documents(t, a), documents(t, b)
			if da != db {
				return
			}
			if previewOf(t, a, b) == "" {
				t.Errorf("no difference on the node, none in the plan:\n%s", da)
			}
		})
	}
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

func loadStack(t *testing.T, dir, text string) (compose.Result, error) {
	t.Helper()
	file := filepath.Join(dir, "stack.yml")
	write(t, file, text)
	r, err := compose.Load(t.Context(), compose.Options{Files: []string{file}, Profiles: []string{"on"}, Env: map[string]string{"A_SET": "1", "B_SET": "2"}})
	if err != nil {
		t.Fatal(err)
	}
	return r, r.Err()
}

var now = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// settled is a cluster of one node that has taken up a stack.
func settled(t *testing.T, r compose.Result) *store.Store {
	t.Helper()
	s := store.New()
	var index uint64
	do := func(c store.Command) {
		t.Helper()
		index++
		c.Time = now
		if res := s.Apply(index, c); res.Err != nil {
			t.Fatalf("%s: %v", c.Kind(), res.Err)
		}
	}
	do(store.Command{Bootstrap: &store.Bootstrap{ClusterID: "c", Incarnation: 1, Format: store.Format}})
	do(store.Command{PutNode: &store.PutNode{ID: "0123456789abcdef", Name: "node-1", Role: spec.RoleManager, Address: "10.0.0.1:4477"}})
	do(store.Command{Reports: &store.Reports{Reports: []spec.Report{{Node: "0123456789abcdef",
		Info: &spec.NodeInfo{OS: "linux", Arch: "amd64", NanoCPUs: 4e9, Memory: 8 << 30}}}}})
	for id, b := range r.Contents {
		do(store.Command{PutContent: &store.PutContent{ID: id, Size: len(b), Data: b}})
	}
	// What the stack expects to exist already.
	outside := spec.Stack{Name: "outside", Services: map[string]spec.ServiceSpec{}, Networks: map[string]spec.NetworkSpec{}, Volumes: map[string]spec.VolumeSpec{}}
	for name, n := range r.Stack.Networks {
		if n.External {
			outside.Networks[name] = spec.NetworkSpec{Name: n.ClusterName(r.Stack.Name, name), Driver: spec.DriverBridge}
		}
	}
	for name, v := range r.Stack.Volumes {
		if v.External {
			outside.Volumes[name] = spec.VolumeSpec{Name: v.ClusterName(r.Stack.Name, name)}
		}
	}
	if len(outside.Networks)+len(outside.Volumes) > 0 {
		do(store.Command{PutStack: &store.PutStack{Stack: outside}})
	}
	for _, k := range spec.DatumKinds {
		for name, d := range r.Stack.Data(k) {
			if !d.External {
				continue
			}
			id := spec.ContentID("hmac:outside")
			if k == spec.DatumSecret {
				id = "sealed:outside"
			}
			do(store.Command{PutContent: &store.PutContent{ID: id, Size: 1, Data: []byte("x")}})
			do(store.Command{PutDatum: &store.PutDatum{Kind: k, Name: d.ClusterName(r.Stack.Name, name), Content: id}})
		}
	}
	do(store.Command{PutStack: &store.PutStack{Stack: r.Stack}})
	for range 20 {
		p := reconciler.Plan(s.Snapshot(), now)
		if p.Empty() {
			return s
		}
		do(store.Command{ApplyPlan: &store.ApplyPlan{Epoch: 1, Parts: p.Parts}})
	}
	t.Fatal("the reconciler does not settle")
	return nil
}

// documents are what the node is told, as text.
func documents(t *testing.T, r compose.Result) string {
	t.Helper()
	snap := settled(t, r).Snapshot()
	b, err := json.MarshalIndent([]any{reconciler.Wanted(snap, "0123456789abcdef"), reconciler.HostNetworks(snap, "0123456789abcdef")}, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// previewOf is what the plan says of going from one stack to the other.
func previewOf(t *testing.T, a, b compose.Result) string {
	t.Helper()
	s := settled(t, a)
	index := s.Snapshot().Index()
	for id, c := range b.Contents {
		index++
		if res := s.Apply(index, store.Command{Time: now, PutContent: &store.PutContent{ID: id, Size: len(c), Data: c}}); res.Err != nil {
			t.Fatal(res.Err)
		}
	}
	if a.Stack.Name != b.Stack.Name {
		return "another stack"
	}
	pv, err := reconciler.NewPreview(s, store.Command{PutStack: &store.PutStack{Stack: b.Stack}}, now)
	if err != nil {
		return err.Error()
	}
	if len(pv.Changes)+len(pv.Tasks) == 0 {
		return ""
	}
	out, err := json.Marshal(pv)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}
