package reconciler

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// data plays a line that has to do with secrets and configs:
//
//	content ID…             they are complete
//	secret NAME ID          it exists by itself, with this version from now on
//	files TASK KEY=ID…      the task has these versions; KEY is as in secret:tls
//	reads NODE              what the node is told of services
//	uses NODE ID            whether the node gets the content
func (c *cluster) data(f []string) {
	c.t.Helper()
	switch f[0] {
	case "content":
		for _, id := range f[1:] {
			c.must(store.Command{PutContent: &store.PutContent{ID: spec.ContentID(id), Size: 1, Data: []byte("x")}})
		}
	case "secret":
		c.must(store.Command{PutDatum: &store.PutDatum{Kind: spec.DatumSecret, Name: f[1], Content: spec.ContentID(f[2]), Size: 1, Replace: true}})
	case "files":
		s := spec.TaskStatus{State: spec.TaskRunning, Health: spec.HealthHealthy, Started: 1, Files: map[spec.DatumKey]spec.ContentID{}}
		for _, kv := range f[2:] {
			k, v, _ := strings.Cut(kv, "=")
			s.Files[spec.DatumKey(strings.Replace(k, ":", " ", 1))] = spec.ContentID(v)
		}
		for _, t := range slices.Backward(c.store.Snapshot().Tasks()) {
			if !t.Status.State.Terminal() && c.name(t) == f[1] {
				c.tell(t, s)
				return
			}
		}
		c.t.Fatalf("no task %s", f[1])
	case "reads":
		w := Wanted(c.store.Snapshot(), nodeID(f[1]))
		for _, key := range slices.Sorted(maps.Keys(w.Services)) {
			s := w.Services[key]
			c.printf("  service %s %s labels %v live %s\n", key, s.ID, s.Labels, versions(s.Live))
		}
		for _, id := range slices.Sorted(maps.Keys(w.Revisions)) {
			c.printf("  revision of %s has %v\n", w.Revisions[id].Image, func() []spec.ContentID { t := w.Revisions[id]; return t.Contents() }())
		}
	case "uses":
		c.printf("  %t\n", NodeUses(c.store.Snapshot(), nodeID(f[1]), spec.ContentID(f[2])))
	}
}

func versions(m map[spec.DatumKey]spec.ContentID) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		out = append(out, fmt.Sprintf("%s=%s", k, m[k]))
	}
	return "[" + strings.Join(out, " ") + "]"
}
