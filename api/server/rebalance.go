package server

import (
	"net/http"
	"strconv"

	"wherry.dev/api"
	"wherry.dev/cluster/store"
	"wherry.dev/reconciler"
	"wherry.dev/spec"
)

func (s *Server) rebalancePlan(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	n, err := strconv.Atoi(q.Get("max"))
	if err != nil {
		return spec.Invalidf("max=%q: want how many tasks may move", q.Get("max"))
	}
	snap, moves, err := s.moves(r, q.Get("stack"), n)
	if err != nil {
		return err
	}
	return writeJSON(w, api.List[spec.Move]{Index: snap.Index(), Items: moves})
}

func (s *Server) moves(r *http.Request, stack string, limit int) (*store.Snapshot, []spec.Move, error) {
	if limit < 1 || limit > api.MaxMoves {
		return nil, nil, spec.Invalidf("max=%d: want 1 to %d tasks", limit, api.MaxMoves)
	}
	snap, err := s.snapshot(r)
	if err != nil {
		return nil, nil, err
	}
	if stack != "" && snap.Stack(stack) == nil {
		return nil, nil, noStack(snap, stack)
	}
	return snap, reconciler.Rebalance(snap, stack, limit, s.Now()), nil
}

func (s *Server) rebalance(w http.ResponseWriter, r *http.Request) error {
	var in api.Rebalance
	if err := readJSON(w, r, &in); err != nil {
		return err
	}
	snap, moves, err := s.moves(r, in.Stack, in.Max)
	if err != nil {
		return err
	}
	if len(moves) == 0 {
		return writeJSON(w, api.List[spec.Move]{Index: snap.Index(), Items: moves})
	}
	c := &store.MoveTasks{}
	for _, m := range moves {
		c.Tasks = append(c.Tasks, m.Task)
	}
	res, err := s.propose(r.Context(), store.Command{RequestID: in.RequestID, Author: in.Author, MoveTasks: c})
	if err != nil {
		return err
	}
	return writeJSON(w, api.List[spec.Move]{Index: res.Index, Items: moves})
}
