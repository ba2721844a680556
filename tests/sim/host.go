package sim

import (
	"maps"
	"slices"
	"strings"
	"time"

	"wherry.dev/cluster/store"
	"wherry.dev/reconciler"
	"wherry.dev/spec"
)

// host is a node with an agent that may be slow, deaf, dumb or dead.
type host struct {
	id   spec.NodeID
	name string
	up   bool // reachable; a host that is not goes on with what it has
	// flipped is when it was cut off or came back.
	flipped time.Time
	memory  int64
	mtu     int
	routes  string // what it reaches by other ways
	links   string // its interfaces, by what it tells
	address string
	want    spec.Wanted
	// lease is until when exclusive tasks may run.
	lease time.Time
	runs  map[spec.TaskID]*run
	// images are those that it is to have before tasks of them, and what became of
	// each; a host of an older version does not tell.
	images []spec.FetchStatus
	older  bool
	// gone are volumes whose removal is to be told.
	gone map[spec.VolumeID]bool
	// data is how much was written to the instances of volumes that the host has,
	// by all tasks so far.
	data map[spec.VolumeID]int
	// fetched are moves to be told of.
	fetched map[spec.VolumeID]spec.VolumeFetched
}

// run is a task on a host.
type run struct {
	task   spec.Task
	image  string
	once   bool // a service that ends by itself
	status spec.TaskStatus
	told   spec.TaskState // the state in the last report that arrived
	health spec.HealthState
	hangs  bool // does not get further until the faults end
	// ending is the end that the task has as soon as nobody shares its network.
	ending spec.TaskState
	// exclusive: the process needs a lease; ended says that it was killed for the
	// lack of one, until there is another.
	exclusive, ended bool
	// stopBy is when the process is killed that the host was told to stop.
	stopBy time.Time
}

// lives reports whether there is a process.
func (r *run) lives() bool { return r.status.State == spec.TaskRunning && !r.ended }

// The times of leases and of stopping.
const (
	leaseTime = 15 * time.Second
	stopGrace = 10 * time.Second
)

// endLeases kills what has no lease any more, and what took too long to stop.
func (h *host) endLeases(w *World) {
	for _, id := range h.ids() {
		r := h.runs[id]
		if !r.exclusive || !r.lives() {
			continue
		}
		switch {
		case !w.now.Before(h.lease):
			w.note("%s kills task %s: its lease is over", h.name, id)
			r.ended = true
		case !r.stopBy.IsZero() && !w.now.Before(r.stopBy):
			r.status.State, r.status.Since = spec.TaskStopped, w.now
		}
	}
}

// unchecked: the image has no health check.
func (r *run) unchecked() bool { return strings.HasSuffix(r.image, ":3") }

func newHost(id spec.NodeID, name string) *host {
	return &host{id: id, name: name, up: true, runs: map[spec.TaskID]*run{}, gone: map[spec.VolumeID]bool{},
		data: map[spec.VolumeID]int{}, fetched: map[spec.VolumeID]spec.VolumeFetched{}}
}

// hear takes the newest document, if it gets through.
func (h *host) hear(w *World, through bool) {
	if !h.up || !through {
		return
	}
	snap := w.store.Snapshot()
	if index := snap.Index(); h.want.Index != index {
		h.want = reconciler.Wanted(snap, h.id)
	}
	n := snap.Node(h.id)
	if n == nil {
		h.want = spec.Wanted{} // it is told that it was removed
	}
	for _, r := range h.runs {
		if d, wanted := h.wanted(r.task.ID); r.stopBy.IsZero() && (!wanted || d != spec.DesiredRunning) {
			r.stopBy = w.now.Add(stopGrace)
		}
	}
	if n != nil && n.State == spec.NodeReady {
		h.lease = w.now.Add(leaseTime)
		for _, t := range h.want.Tasks {
			if r := h.runs[t.ID]; r != nil && t.Desired == spec.DesiredRunning {
				r.ended = false
			}
		}
	}
	for _, t := range h.want.Tasks {
		if h.runs[t.ID] == nil {
			tmpl := h.want.Revisions[t.Revision]
			h.runs[t.ID] = &run{
				image: tmpl.Image, exclusive: tmpl.Exclusive, once: tmpl.Restart.Condition == spec.RestartNone || isJob(&tmpl),
				status: spec.TaskStatus{State: spec.TaskAssigned}, hangs: !w.calm && w.chance(5),
			}
		}
		h.runs[t.ID].task = t
	}
	for _, v := range h.want.RemoveVolumes {
		if !h.gone[v] && !h.uses(v) {
			h.gone[v] = true
			delete(h.data, v)
		}
	}
	h.fetch(w)
	h.fetchImages(w)
}

// fetchImages gets images, sooner or later.
func (h *host) fetchImages(w *World) {
	next := []spec.FetchStatus{}
	for _, id := range h.want.Fetch {
		s := spec.FetchStatus{Revision: id}
		if i := slices.IndexFunc(h.images, func(x spec.FetchStatus) bool { return x.Revision == id }); i >= 0 {
			s = h.images[i]
		}
		if !s.Done && s.Problem == "" && (w.calm || w.chance(30)) {
			if s.Done = !strings.Contains(h.want.Revisions[id].Image, "missing"); !s.Done {
				s.Problem, s.Never = "no such image", true
			}
		}
		next = append(next, s)
	}
	h.images = next
}

func (h *host) wanted(id spec.TaskID) (spec.TaskDesired, bool) {
	for i := range h.want.Tasks {
		if h.want.Tasks[i].ID == id {
			return h.want.Tasks[i].Desired, true
		}
	}
	return "", false
}

func (h *host) ids() []spec.TaskID { return slices.Sorted(maps.Keys(h.runs)) }

// step lets one task go on.
func (h *host) step(w *World) {
	if ids := h.ids(); len(ids) > 0 {
		h.advance(w, h.runs[ids[w.rng.IntN(len(ids))]])
		w.checkExclusive()
	}
}

func (h *host) stepAll(w *World) bool {
	moved := false
	for _, id := range h.ids() {
		r := h.runs[id]
		r.hangs = false
		moved = h.advance(w, r) || moved
	}
	return moved
}

// advance takes one step of a task's life.
func (h *host) advance(w *World, r *run) bool {
	desired, wanted := h.wanted(r.task.ID)
	stop := !wanted || desired == spec.DesiredStopped || desired == spec.DesiredRemoved || h.headGone(r)
	var to spec.TaskState
	switch {
	case r.status.State.Terminal():
		if !wanted && r.told == r.status.State {
			delete(h.runs, r.task.ID)
		}
		return false
	case r.ending != "":
		to = r.ending
	case stop:
		to = spec.TaskStopped
	case r.hangs:
		return false
	case strings.Contains(r.image, "missing") && r.status.State == spec.TaskPreparing:
		to = spec.TaskRejected
	case r.status.State == spec.TaskAssigned:
		to = spec.TaskPreparing
	case r.status.State == spec.TaskPreparing:
		to = spec.TaskStarting
	case r.status.State == spec.TaskStarting && r.exclusive && !w.now.Before(h.lease),
		r.status.State == spec.TaskStarting && r.task.Joins != "" && !h.runs[r.task.Joins].lives():
		return false
	case r.status.State == spec.TaskStarting:
		to, r.status.Started, r.health = spec.TaskRunning, 1, spec.HealthStarting
		h.write(w, r)
		if r.unchecked() {
			r.health = spec.HealthNone
		}
	case strings.Contains(r.image, "broken"), !w.calm && w.chance(5), strings.Contains(r.image, "flaky") && w.chance(20):
		to = spec.TaskFailed
		r.status.Attempts = []spec.Attempt{{Number: 1, Started: w.now, Ended: w.now, ExitCode: 1, LastLog: []string{"it broke"}}}
	case r.once && w.chance(50):
		to = spec.TaskComplete
	case r.health == spec.HealthStarting:
		r.health = spec.HealthHealthy
		r.status.Health = r.health
		if w.store.Snapshot().Format() >= store.RolloutFormat {
			r.status.HealthySince = w.now
		}
		return true
	default:
		return h.exchange(r)
	}
	if to.Terminal() && h.shared(r) {
		r.ending = to
		return false // those that share its network end first
	}
	r.status.State, r.status.Since, r.status.Health, r.status.HealthySince = to, w.now, r.health, time.Time{}
	return true
}

// headGone reports whether the task shares the network of one that ends.
func (h *host) headGone(r *run) bool {
	if r.task.Joins == "" {
		return false
	}
	head := h.runs[r.task.Joins]
	if head == nil || head.status.State.Terminal() || head.ending != "" {
		return true
	}
	desired, wanted := h.wanted(r.task.Joins)
	return !wanted || desired != spec.DesiredRunning
}

// shared reports whether a task that is not over shares the network of r.
func (h *host) shared(r *run) bool {
	for _, other := range h.runs { // any order finds the same
		if other.task.Joins == r.task.ID && !other.status.State.Terminal() {
			return true
		}
	}
	return false
}

// report is all that the host has to tell.
func (h *host) report(w *World) (spec.Report, bool) {
	rep := spec.Report{Node: h.id}
	snap := w.store.Snapshot()
	for _, id := range h.ids() {
		r := h.runs[id]
		if t := snap.Task(id); t == nil || t.Status.State != r.status.State || t.Status.Health != r.status.Health || !maps.Equal(t.Status.Files, r.status.Files) {
			rep.Tasks = append(rep.Tasks, spec.TaskReport{Task: id, Status: r.status})
		}
	}
	rep.VolumesRemoved = slices.Sorted(maps.Keys(h.gone))
	if n := snap.Node(h.id); n != nil && !h.older && snap.Format() >= store.RolloutFormat && (n.Fetched == nil || !slices.Equal(*n.Fetched, h.images)) {
		images := append([]spec.FetchStatus{}, h.images...)
		rep.Fetched = &images
	}
	for _, id := range slices.Sorted(maps.Keys(h.fetched)) {
		rep.VolumesFetched = append(rep.VolumesFetched, h.fetched[id])
	}
	return rep, len(rep.Tasks)+len(rep.VolumesRemoved)+len(rep.VolumesFetched) > 0 || rep.Fetched != nil
}

// tell sends a report, which may be lost, late, or arrive twice.
func (h *host) tell(w *World) {
	rep, any := h.report(w)
	if !any || !h.up {
		return
	}
	c := store.Command{Time: w.now, Reports: &store.Reports{Reports: []spec.Report{rep}}}
	switch n := w.rng.IntN(100); {
	case n < 10: // lost
	case n < 20:
		w.late = append(w.late, c)
	default:
		h.arrive(w, c, rep)
		if n < 30 {
			w.apply(c)
		}
	}
}

func (h *host) arrive(w *World, c store.Command, rep spec.Report) (changed bool) {
	changed = w.apply(c).Changed
	for _, t := range rep.Tasks {
		if r := h.runs[t.Task]; r != nil {
			r.told = t.Status.State
		}
		w.note("%s tells: task %s is %s %s", h.name, t.Task, t.Status.State, t.Status.Health)
	}
	for _, v := range rep.VolumesRemoved {
		delete(h.gone, v)
	}
	for _, f := range rep.VolumesFetched {
		delete(h.fetched, f.Volume)
		w.note("%s tells: volume %s is here by move %d %s", h.name, f.Volume, f.Move, f.Problem)
	}
	return changed
}

func (h *host) tellAll(w *World) bool {
	rep, any := h.report(w)
	for _, id := range h.ids() {
		if r := h.runs[id]; r.status.State.Terminal() {
			r.told = r.status.State // what the state does not want to know is told too
		}
	}
	if any {
		return h.arrive(w, store.Command{Time: w.now, Reports: &store.Reports{Reports: []spec.Report{rep}}}, rep)
	}
	return false
}

// flip cuts the host off, or brings it back, perhaps after a reboot.
func (h *host) flip(w *World) {
	h.up, h.flipped = !h.up, w.now
	if h.up && w.chance(50) {
		h.reboot(w)
	}
	w.note("%s is reachable: %t", h.name, h.up)
}

// reboot ends all processes; what ran is found to have failed.
func (h *host) reboot(w *World) {
	for _, id := range h.ids() {
		if r := h.runs[id]; r.status.State == spec.TaskRunning {
			r.status.State, r.status.Since = spec.TaskFailed, w.now
			r.status.Attempts = []spec.Attempt{{Number: 1, Started: w.now, Ended: w.now, ExitCode: -1}}
		}
	}
}

func (h *host) heal(w *World) {
	if !h.up {
		h.flip(w)
	}
	w.apply(store.Command{Time: w.clock(), SetNodeState: &store.SetNodeState{ID: h.id, State: spec.NodeReady}})
	active := spec.NodeActive
	w.apply(store.Command{SetNode: &store.SetNode{ID: h.id, Availability: &active}})
}
