package agent_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"wherry.dev/spec"
)

// TestFetch: images are had before any task of theirs is here, and it is told
// what became of them.
func TestFetch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, forever)
		var problem error
		n.before(func(_ context.Context, op string, _ spec.TaskID) error {
			if op == "Ensure" {
				return problem
			}
			return nil
		})
		want := [][]spec.FetchStatus{{}}
		check := func(when string) {
			t.Helper()
			settle(time.Second)
			if d := cmp.Diff(want, n.host.Fetched()); d != "" {
				t.Errorf("%s (-want +got):\n%s", when, d)
			}
		}
		fetch := func(ids ...spec.RevisionID) {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.wanted.Node, n.wanted.Fetch, n.wanted.Revisions = "n1", ids, map[spec.RevisionID]spec.Template{}
			n.wanted.Index++
			for _, id := range ids {
				n.wanted.Revisions[id] = spec.Template{Image: string("web:" + id)}
			}
			n.a.Set(n.wanted)
		}
		n.agent()
		fetch()
		check("there is nothing to fetch")
		fetch("r1")
		want = append(want, []spec.FetchStatus{{Revision: "r1", Done: true}})
		check("one is there at once")
		problem = spec.NotFoundf("no such image")
		fetch("r1", "r2")
		want = append(want, []spec.FetchStatus{{Revision: "r1", Done: true}, {Revision: "r2", Problem: "no such image", Never: true}})
		check("one is not to be had")
		problem = spec.Unavailablef("no registry")
		settle(15 * time.Second)
		want = append(want, []spec.FetchStatus{{Revision: "r1", Done: true}, {Revision: "r2", Problem: "no registry"}})
		check("it is tried again")
		problem = nil
		settle(15 * time.Second)
		want = append(want, []spec.FetchStatus{{Revision: "r1", Done: true}, {Revision: "r2", Done: true}})
		check("in the end it is there")
		fetch("r2")
		want = append(want, []spec.FetchStatus{{Revision: "r2", Done: true}})
		check("one is not wanted any more")
		n.wanted.Incarnation++
		fetch("r2")
		want = append(want, []spec.FetchStatus{{Revision: "r2", Done: true}})
		check("managers with a restored state")
		n.stop()
		n.check()
	})
}
