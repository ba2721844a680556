package store

import (
	"bytes"
	"testing"

	"wherry.dev/spec"
)

func TestRemoveVolumes(t *testing.T) {
	h := planned(t)
	h.mustPart(spec.Part{Homes: []spec.VolumeHome{{Name: "shop_data", Node: "n1"}, {Name: "shop_data", Node: "n2"}, {Name: "shop_data", Node: "n1"}}})
	id := h.running("n1", 1, "")
	remove := func(names ...string) Command { return Command{RemoveVolumes: &RemoveVolumes{Names: names}} }
	h.refuse(remove("a", "shop_data", "b"), spec.ErrNotFound, "no volume a, b")
	h.refuse(remove("shop_data"), spec.ErrConflict, "used by task shop.web.1")
	h.report("n1", id, spec.TaskStopped)
	h.refuse(remove("shop_data"), spec.ErrConflict, "declared by stack shop")
	h.must(Command{RemoveStack: &RemoveStack{Name: "shop"}})

	v := h.s.Snapshot().VolumeNamed("shop_data")
	report := func(node spec.NodeID) {
		h.must(Command{Reports: &Reports{Reports: []spec.Report{{Node: node, VolumesRemoved: []spec.VolumeID{v.ID, "9-9", "odd"}}}}})
	}
	report("n1")
	if got := h.s.Snapshot().Volume(v.ID); got != v {
		t.Errorf("a node's word removed what nobody asked to remove: %+v", got)
	}
	h.must(remove("shop_data", "shop_data"))
	if got := h.s.Snapshot().Volume(v.ID); !got.Removing || got.Version != h.index {
		t.Errorf("%+v", got)
	}
	if h.must(remove("shop_data")).Changed {
		t.Error("removing again is a change")
	}
	wantError(t, h.part(spec.Part{Homes: []spec.VolumeHome{{Name: "shop_data", Node: "n1"}}}), spec.ErrConflict, "being removed")
	report("n2")
	report("n2")
	if got := h.s.Snapshot().Volume(v.ID); got == nil || len(got.Homes) != 1 || got.Homes[0] != "n1" {
		t.Fatalf("%+v", got)
	}
	report("n1")
	if h.s.Snapshot().Volume(v.ID) != nil {
		t.Error("the row is still there")
	}
	if got := h.kinds(); got != "node.joined node.joined stack.applied task.stopped stack.removed volume.removed" {
		t.Errorf("events %q", got)
	}
}

func TestRemoveStackWithVolumes(t *testing.T) {
	h := planned(t)
	other := web("other", 1)
	other.Volumes["shared"] = spec.VolumeSpec{External: true, Name: "shop_data"}
	h.must(putStack(other))
	remove := Command{RemoveStack: &RemoveStack{Name: "shop", Volumes: true}}
	h.refuse(remove, spec.ErrConflict, "shop_data is declared by stack other")
	rev := h.s.Snapshot().Service("other", "web").Revision
	h.mustPart(spec.Part{Create: []spec.Task{{
		Stack: "other", Service: "web", Slot: 1, Node: "n1", Revision: rev, Volumes: []spec.VolumeBinding{{Target: "/s", Name: "shop_data"}},
	}}})
	h.refuse(remove, spec.ErrConflict, "used by task other.web.1")
	h.must(putStack(web("other", 1)))
	h.refuse(remove, spec.ErrConflict, "used by task other.web.1")
	foreign := h.s.Snapshot().Tasks()[0].ID
	h.report("n1", foreign, spec.TaskStopped)

	// The stack's own tasks do not stand in the way; the row waits for them.
	id := h.running("n1", 1, "")
	h.must(remove)
	if v := h.s.Snapshot().VolumeNamed("shop_data"); v == nil || !v.Removing {
		t.Fatalf("%+v", v)
	}
	h.report("n1", id, spec.TaskStopped)
	if v := h.s.Snapshot().VolumeNamed("shop_data"); v != nil {
		t.Errorf("a volume without home and tasks is still there: %+v", v)
	}
	if h.s.Snapshot().VolumeNamed("other_data").Removing {
		t.Error("another stack's volume goes too")
	}
}

func TestPutContent(t *testing.T) {
	h := newHarness(t)
	part := func(size, offset int, data string) Command {
		return Command{PutContent: &PutContent{ID: "c", Size: size, Offset: offset, Data: []byte(data)}}
	}
	data := func() string { return string(h.s.Snapshot().Content("c").Data) }
	h.refuse(part(10, 4, "456"), spec.ErrConflict, "has 0 bytes so far, the part begins at 4")
	h.must(part(10, 0, "0123"))
	h.refuse(part(10, 5, "56"), spec.ErrConflict, "has 4 bytes so far")
	h.refuse(part(10, 2, "xx"), spec.ErrConflict, "other bytes")
	h.refuse(part(11, 4, "4"), spec.ErrConflict, "other bytes")
	h.must(part(10, 0, "0123"))
	h.must(part(10, 2, "2345"))
	h.must(part(10, 1, "12"))
	if data() != "012345" {
		t.Fatalf("data %q", data())
	}
	h.must(part(6, 0, "abc")) // an incomplete one may start anew
	h.must(part(6, 3, "def"))
	h.refuse(part(6, 0, "xyz"), spec.ErrConflict, "other bytes")
	h.refuse(part(5, 0, "abc"), spec.ErrConflict, "other bytes")
	h.must(part(6, 0, "abcdef"))
	if c := h.s.Snapshot().Content("c"); data() != "abcdef" || c.Index != h.index {
		t.Errorf("%+v: a part that is repeated must refresh the index", c)
	}
	for _, c := range []PutContent{
		{Size: 1, Data: []byte("x")},
		{ID: "d", Data: []byte("x")},
		{ID: "d", Size: MaxArchive + 1, Data: []byte("x")},
		{ID: "d", Size: 1},
		{ID: "d", Size: 1, Offset: 1, Data: []byte("x")},
		{ID: "d", Size: 1, Offset: -1, Data: []byte("x")},
		{ID: "d", Size: 1, Offset: 1<<62 + 1<<61, Data: []byte("x")},
		{ID: "d", Size: MaxArchive, Data: bytes.Repeat([]byte("x"), spec.MaxChunk+1)},
	} {
		h.refuse(Command{PutContent: &c}, spec.ErrInvalid)
	}
	s := web("shop", 1)
	s.Volumes["data"] = spec.VolumeSpec{Seed: "c"}
	h.must(putStack(s))
	if n := h.s.Snapshot(); !n.ContentInUse("c") || n.ContentInUse("d") || n.ContentInUse("") {
		t.Error("wrong contents in use")
	}
}
