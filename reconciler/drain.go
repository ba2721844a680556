package reconciler

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

// drained says that a task is to leave its node because that is drained, or "".
func (v *view) drained(t *spec.Task) string {
	if n := v.nodes[t.Node]; n != nil && n.Availability == spec.NodeDrain && t.Status.State != spec.TaskPending {
		return "node " + v.nodeName(t.Node) + " is drained"
	}
	return ""
}

// unfit says why a task must be replaced, or "".
func (s *pass) unfit(t *spec.Task) string {
	if why := s.outdated(t); why != "" {
		return why
	}
	return cmp.Or(s.dataMoves(t), s.drained(t))
}

// dataMoves says that a task has to stop because a volume that it uses is being
// moved, or "".
func (v *view) dataMoves(t *spec.Task) string {
	for _, b := range t.Volumes {
		if vol := v.volumes[b.Name]; vol != nil && vol.Move != nil && t.Status.State != spec.TaskPending {
			return v.moveReason(vol)
		}
	}
	return ""
}

func (v *view) moveReason(vol *spec.Volume) string {
	why := "volume " + vol.Name + " is being moved to node " + v.nodeName(vol.Move.To)
	if vol.Move.Problem != "" {
		why += ": " + vol.Move.Problem
	}
	return why
}

// pinned reports whether no node could take a task that is to be replaced, so
// that it stays. On a node that is drained with StopPinned it ends nevertheless
// and leaves its place to a task that waits.
func (s *pass) pinned(pl *place, t *spec.Task) bool {
	why := s.roomWithout(pl, t)
	if why == "" {
		return false
	}
	n := s.nodes[t.Node]
	stop, ground := n != nil && n.StopPinned && s.drained(t) != "", s.drained(t)+", and tasks that cannot move are stopped"
	if moving := s.dataMoves(t); moving != "" {
		stop, ground = true, moving
	}
	if s.outdated(t) != "" && !stop {
		pl.blocked = why
	}
	if stop {
		s.end(pl, t, spec.DesiredStopped, ground)
		if len(pl.ending) == 0 || !s.stopFirst(t) {
			s.startIn(pl)
		}
	}
	return true
}

// copiesGone says which volume of a replicated service has lost all its
// copies, or "": to start on an empty one is for a person to decide.
func (s *pass) copiesGone() string {
	if s.svc.Spec.Mode.PerNode() {
		return ""
	}
	for _, m := range s.mounts {
		v, homes := s.volumes[m.name], s.homes[m.name]
		if m.anonymous || v == nil || len(homes) == 0 || homeless(v) ||
			slices.ContainsFunc(homes, func(id spec.NodeID) bool { return s.nodes[id] != nil }) {
			continue
		}
		return "the only copy of volume " + m.name + " was on node " + joinIDs(homes) +
			", which was removed from the cluster; \"wherry volume rm " + m.name + "\" lets it begin anew, empty"
	}
	return ""
}

func joinIDs(ids []spec.NodeID) string {
	var out []string
	for _, id := range ids {
		out = append(out, string(id))
	}
	return strings.Join(out, ", ")
}

// Leftover is a task that is still on a drained node.
type Leftover struct {
	Task *spec.Task
	Name string
	// Pinned: the task cannot move and stays until the node is active again, or
	// until the pinned ones are to be stopped too.
	Pinned bool
	// Reason is what it waits for, or why it stays and what to do.
	Reason string
}

// Leftovers returns the tasks that a node still has, by ID, and what becomes of
// each if the node is drained: none is left when the drain is done, or only
// pinned ones.
func Leftovers(s *store.Snapshot, node spec.NodeID, now time.Time) []Leftover {
	p := newPlanner(s, now.Round(0).UTC())
	p.numberNetworks() // as the next plan will
	passes := map[string]*pass{}
	var out []Leftover
	for _, t := range s.TasksOn(node) {
		if t.Status.State.Terminal() || t.Status.State == spec.TaskPending {
			continue
		}
		key := serviceKey(t)
		if passes[key] == nil && p.byKey[key] != nil {
			passes[key] = p.look(p.byKey[key])
		}
		l := Leftover{Task: t, Name: p.taskName(t)}
		l.Pinned, l.Reason = p.leftover(passes[key], t)
		out = append(out, l)
	}
	return out
}

// look is the pass of a service that decides nothing.
func (p *planner) look(svc *spec.Service) *pass {
	return p.newPass(svc, publishedPorts(svc))
}

func (p *planner) leftover(s *pass, t *spec.Task) (pinned bool, reason string) {
	if s == nil || t.Desired != spec.DesiredRunning {
		return false, "is being stopped"
	}
	i := slices.IndexFunc(s.places, func(pl *place) bool { return slices.Contains(pl.live, t) })
	if i < 0 || t.Slot == 0 {
		return false, "is about to be stopped"
	}
	pl := s.places[i]
	switch {
	case !p.nodeUp(t.Node):
		return false, "its node is down"
	case len(pl.live) > 1:
		return false, "waits for its replacement to be well"
	}
	if s.joined() {
		return p.followsHead(t)
	}
	if room := s.roomWithout(pl, t); room != "" {
		return true, "stays on drained node " + p.nodeName(t.Node) + ": " + s.whyPinned(t, room) + "; use --stop-pinned to stop it"
	}
	if s.halted() || s.failing() != nil {
		return false, "stays until the update of " + s.svc.Key() + " goes on or is taken back: " + s.svc.Update.Message
	}
	return false, "waits for its turn: the tasks of a service move one at a time"
}

// whyPinned prefers the ground that people know.
func (s *pass) whyPinned(t *spec.Task, room string) string {
	for _, h := range s.class.Homes {
		elsewhere := func(id spec.NodeID) bool {
			n := s.nodes[id]
			return n != nil && n.State == spec.NodeReady && n.Availability == spec.NodeActive
		}
		if slices.Contains(h.Nodes, t.Node) && !slices.ContainsFunc(h.Nodes, elsewhere) {
			return "its volume " + h.Volume + " is there"
		}
	}
	return "no other node can take it (" + room + ")"
}
