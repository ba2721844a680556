package reconciler

import (
	"time"

	"wherry.dev/cluster/store"
	"wherry.dev/scheduler"
	"wherry.dev/spec"
)

// Rebalance returns the moves that make the nodes more even, the one that gains
// most first, at most max of them; of one stack alone unless that is empty. It only
// proposes: a task moves when a user has asked for it (store.MoveTasks), in the way
// in which it leaves a drained node, and only if it gains by that still.
//
// Tasks that cannot move without an interruption or without their data stay: with
// volumes, with a port of their node, exclusive ones, and those of services that stop
// before they start. So do those of services that are not as they ought to be.
func Rebalance(s *store.Snapshot, stack string, limit int, now time.Time) []spec.Move {
	p := newPlanner(s, now.Round(0).UTC())
	p.numberNetworks() // as the next plan will
	var movers []mover
	for _, svc := range p.services {
		if stack == "" || svc.Stack == stack {
			movers = append(movers, p.movers(svc)...)
		}
	}
	out := []spec.Move{}
	for len(out) < limit {
		best, to, most := -1, spec.NodeID(""), 0
		for i := range movers {
			m := &movers[i]
			if m.task == nil {
				continue
			}
			if node, gain := m.better(); gain > most {
				best, to, most = i, node, gain
			}
		}
		if best < 0 {
			break
		}
		m := &movers[best]
		p.board.Release(p.booking(m.task))
		p.board.Book(m.class.Booking(to))
		out = append(out, spec.Move{Task: m.task.ID, Name: p.taskName(m.task), From: p.nodeName(m.task.Node), To: p.nodeName(to)})
		m.task = nil // once is enough
	}
	return out
}

// mover is a task that may move.
type mover struct {
	*pass
	class *scheduler.Class
	task  *spec.Task
}

// better returns where a task would better be, and how much is gained by it.
func (m *mover) better() (spec.NodeID, int) {
	m.board.Release(m.booking(m.task))
	defer m.board.Book(m.booking(m.task))
	return m.board.Better(m.class, m.task.Node)
}

// movers returns the tasks of a service that may move; none while it is not as it
// ought to be.
func (p *planner) movers(svc *spec.Service) []mover {
	s := p.look(svc)
	if s.updating || s.halted() || s.missing() != "" {
		return nil
	}
	var out []mover
	for _, pl := range s.places {
		if !s.current(pl) {
			return nil
		}
		if len(pl.live) == 1 && s.movable(pl, pl.live[0]) && s.unfit(pl.live[0]) == "" {
			out = append(out, mover{s, &s.class, pl.live[0]})
		}
	}
	return out
}

// movable reports whether a task can be on another node without an interruption
// and without leaving data behind.
func (s *pass) movable(pl *place, t *spec.Task) bool {
	failed, _ := s.lost(pl)
	return pl.slot > 0 && len(s.group(s.svc)) == 0 && failed == 0 && s.serves(t) && !s.stopFirst(t) && len(t.Volumes) == 0
}

// moving says that a user wants a task to leave its node because another one is
// better, or "". That is so for a while only, and no longer when the task cannot
// move any more.
func (s *pass) moving(pl *place, t *spec.Task) string {
	if t.MoveUntil.IsZero() || !s.now.Before(t.MoveUntil) || !s.movable(pl, t) {
		return ""
	}
	s.wake(t.MoveUntil)
	return "it moves to a node with fewer tasks"
}

// gains reports whether a task that is to move has somewhere to go.
func (s *pass) gains(pl *place, t *spec.Task) bool {
	m := mover{s, &s.class, t}
	_, gain := m.better()
	return gain > 0 && s.room(pl) == ""
}
