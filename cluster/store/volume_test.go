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

func TestVolumeByHand(t *testing.T) {
	h := newHarness(t)
	create := func(name string, v spec.VolumeSpec, home spec.NodeID) Command {
		return Command{CreateVolume: &CreateVolume{Name: name, Spec: v, Home: home}}
	}
	labels := spec.VolumeSpec{Labels: map[string]string{"a": "b"}}
	nfs := spec.VolumeSpec{DriverOpts: map[string]string{"type": "nfs4", "device": "h:/x"}}
	h.must(create("pool", labels, "n2"))
	if v := h.s.Snapshot().VolumeNamed("pool"); v.Stack != "" || len(v.Homes) != 1 || v.Homes[0] != "n2" {
		t.Errorf("%+v", v)
	}
	if h.must(create("pool", labels, "")).Changed {
		t.Error("the same volume again is a change")
	}
	h.refuse(create("pool", spec.VolumeSpec{}, ""), spec.ErrConflict, "pool exists already, with other options")
	h.refuse(create("pool", labels, "n1"), spec.ErrConflict, "another home")
	h.refuse(create("a/b", labels, ""), spec.ErrInvalid, "volume")
	h.refuse(create("x", labels, "n9"), spec.ErrNotFound, "n9")
	h.refuse(create("x", nfs, "n1"), spec.ErrInvalid, "no home")
	h.refuse(create("x", spec.VolumeSpec{External: true}, ""), spec.ErrInvalid, "external")
	h.must(create("share", nfs, ""))

	own := web("shop", 8080)
	own.Volumes = map[string]spec.VolumeSpec{"data": {Name: "pool"}}
	h.refuse(putStack(own), spec.ErrConflict, "pool belongs to no stack", "external")
	own.Volumes["data"] = spec.VolumeSpec{Name: "pool", External: true}
	h.must(putStack(own))
	h.must(putStack(web("blog", 8081)))
	h.refuse(create("blog_data", labels, ""), spec.ErrConflict, "belongs to stack blog")
	h.refuse(Command{RemoveVolumes: &RemoveVolumes{Names: []string{"pool"}}}, spec.ErrConflict, "declared by stack shop")
}

func TestMoveVolume(t *testing.T) {
	h := planned(t)
	h.mustPart(spec.Part{Homes: []spec.VolumeHome{{Name: "shop_data", Node: "n1"}}})
	move := func(to spec.NodeID, stop bool) Command {
		return Command{MoveVolume: &MoveVolume{Name: "shop_data", To: to, Stop: stop}}
	}
	volume := func() spec.Volume { return *h.s.Snapshot().VolumeNamed("shop_data") }
	fetched := func(node spec.NodeID, id uint64, problem string) Result {
		f := spec.VolumeFetched{Volume: volume().ID, Move: id, Problem: problem}
		return h.must(Command{Reports: &Reports{Reports: []spec.Report{{Node: node, VolumesFetched: []spec.VolumeFetched{f, {Volume: "odd", Move: 1}}}}}})
	}
	gone := func(node spec.NodeID) {
		h.must(Command{Reports: &Reports{Reports: []spec.Report{{Node: node, VolumesRemoved: []spec.VolumeID{volume().ID}}}}})
	}
	for _, n := range []spec.NodeID{"n1", "n2"} {
		h.must(Command{SetNodeState: &SetNodeState{ID: n, State: spec.NodeReady}})
	}
	id := h.running("n1", 1, "")
	h.refuse(Command{MoveVolume: &MoveVolume{Name: "none", To: "n2"}}, spec.ErrNotFound, "none")
	h.refuse(move("n9", false), spec.ErrNotFound, "n9")
	h.refuse(move("n2", false), spec.ErrConflict, "used by task shop.web.1", "--stop")
	if h.must(move("n1", false)).Changed {
		t.Error("a move to where it is is a change")
	}

	// The home changes when the copy is there and nobody uses the volume.
	h.must(move("n2", true))
	first := volume().Move.ID
	if h.must(move("n2", true)).Changed {
		t.Error("the same move again is a change")
	}
	wantError(t, h.part(spec.Part{Create: []spec.Task{h.task("n1", 2, "")}, Homes: []spec.VolumeHome{{Name: "shop_data", Node: "n1"}}}), spec.ErrConflict, "being moved")
	fetched("n2", first, "")
	if v := volume(); v.Move == nil || v.Homes[0] != "n1" {
		t.Errorf("moved while a task used it: %+v", v)
	}
	h.report("n1", id, spec.TaskStopped)
	fetched("n2", first, "disk full")
	if v := volume(); v.Move == nil || v.Move.Problem != "disk full" {
		t.Errorf("%+v", v.Move)
	}
	fetched("n1", first, "")
	fetched("n2", first-1, "")
	if v := volume(); v.Move == nil || v.Homes[0] != "n1" {
		t.Errorf("moved by a word that was not for this move: %+v", v)
	}
	fetched("n2", first, "")
	if v := volume(); v.Move != nil || len(v.Homes) != 1 || v.Homes[0] != "n2" || len(v.Left) != 1 || v.Left[0] != "n1" {
		t.Errorf("%+v", v)
	}
	h.refuse(move("n1", false), spec.ErrConflict, "still deletes an older copy")
	gone("n2") // a late word about something else
	if v := volume(); v.Homes[0] != "n2" {
		t.Errorf("%+v", v)
	}
	gone("n1")
	if v := volume(); v.Left != nil || v.Homes[0] != "n2" {
		t.Errorf("%+v", v)
	}

	// One that is taken back leaves a copy that does not count.
	h.must(move("n1", false))
	second := volume().Move.ID
	h.refuse(Command{RemoveVolumes: &RemoveVolumes{Names: []string{"shop_data"}}}, spec.ErrConflict, "being moved")
	h.must(move("n2", false))
	if v := volume(); v.Move != nil || len(v.Left) != 1 || v.Left[0] != "n1" || v.Homes[0] != "n2" {
		t.Errorf("%+v", v)
	}
	if fetched("n1", second, ""); volume().Homes[0] != "n2" {
		t.Errorf("a move that was taken back: %+v", volume())
	}
	gone("n1")

	// A node that goes ends the moves to it, and is waited for no longer.
	h.must(move("n1", false))
	h.must(Command{SetNodeState: &SetNodeState{ID: "n2", State: spec.NodeDown}})
	h.must(Command{RemoveNode: &RemoveNode{ID: "n2", Force: true}})
	if v := volume(); v.Move != nil || len(v.Left) != 1 {
		t.Errorf("%+v", v)
	}
	h.refuse(move("n1", false), spec.ErrConflict, "only copy was on node n2")
}

func TestMoveVolumeRefused(t *testing.T) {
	h := planned(t)
	move := Command{MoveVolume: &MoveVolume{Name: "shop_data", To: "n2"}}
	h.must(move)
	if v := h.s.Snapshot().VolumeNamed("shop_data"); v.Move != nil || len(v.Homes) != 1 || v.Homes[0] != "n2" {
		t.Errorf("one without data: %+v", v)
	}
	move.MoveVolume = &MoveVolume{Name: "shop_data", To: "n1"}
	h.must(Command{SetNodeState: &SetNodeState{ID: "n1", State: spec.NodeReady}})
	h.must(Command{SetNodeState: &SetNodeState{ID: "n2", State: spec.NodeDown}})
	h.refuse(move, spec.ErrConflict, "node beta, which holds it, is down")
	h.must(Command{SetNodeState: &SetNodeState{ID: "n2", State: spec.NodeReady}})
	h.must(Command{SetNodeState: &SetNodeState{ID: "n1", State: spec.NodeDown}})
	h.refuse(move, spec.ErrConflict, "node alpha is down")
	h.mustPart(spec.Part{Homes: []spec.VolumeHome{{Name: "shop_data", Node: "n1"}}})
	h.refuse(move, spec.ErrConflict, "on each of 2 nodes")
	for name, opts := range map[string]map[string]string{"bind": {"o": "bind", "device": "/srv"}, "nfs": {"type": "nfs", "device": "h:/x"}} {
		h.must(Command{CreateVolume: &CreateVolume{Name: name, Spec: spec.VolumeSpec{DriverOpts: opts}}})
		h.refuse(Command{MoveVolume: &MoveVolume{Name: name, To: "n2"}}, spec.ErrInvalid, "volume "+name)
	}
}
