package server

import (
	"net/http"

	"wherry.dev/api"
	"wherry.dev/cluster/store"
	"wherry.dev/spec"
)

func (s *Server) stackHistory(w http.ResponseWriter, r *http.Request) error {
	snap, err := s.snapshot(r)
	if err != nil {
		return err
	}
	row := snap.Stack(r.PathValue("stack"))
	if row == nil {
		return noStack(snap, r.PathValue("stack"))
	}
	l := api.List[api.StackRevision]{Index: snap.Index(), Items: []api.StackRevision{}}
	for _, rev := range snap.StackRevisions(row.Name) {
		l.Items = append(l.Items, api.StackRevision{
			Revision: rev.Number, Time: rev.Time, Author: rev.Author, Message: rev.Message,
			State: revisionState(row, rev), Why: rev.Why, Log: rev.Log, Rollback: rev.Rollback,
			Current: rev.Number == row.Revision, Services: len(rev.Spec.Services),
		})
	}
	return writeJSON(w, l)
}

// revisionState names what the state leaves empty.
func revisionState(row *spec.StackRow, rev *spec.StackRevision) string {
	switch {
	case rev.State != spec.RevisionUpdating:
		return string(rev.State)
	case rev.Number == row.Revision:
		return api.RevisionUpdating
	}
	return api.RevisionUnknown
}

// rollback takes a stack back, or one service of it.
func (s *Server) rollback(w http.ResponseWriter, r *http.Request) error {
	var in api.Rollback
	if err := readJSON(w, r, &in); err != nil {
		return err
	}
	stack, service := r.PathValue("stack"), r.PathValue("service")
	if snap := s.Store.Snapshot(); snap.Stack(stack) == nil {
		return noStack(snap, stack)
	}
	res, err := s.propose(r.Context(), store.Command{RequestID: in.RequestID, Author: in.Author,
		RollbackStack: &store.RollbackStack{Stack: stack, Service: service, To: in.To, Base: in.Base, Message: in.Message}})
	if err != nil {
		return err
	}
	return writeJSON(w, api.Written{Index: res.Index, Revision: res.Revision, Changed: res.Changed})
}

func (s *Server) steer(action store.SteerAction) handler {
	return func(w http.ResponseWriter, r *http.Request) error {
		var in api.Steer
		if err := readJSON(w, r, &in); err != nil {
			return err
		}
		stack, service := r.PathValue("stack"), r.PathValue("service")
		if snap := s.Store.Snapshot(); snap.Service(stack, service) == nil {
			return noService(snap, stack, service)
		}
		res, err := s.propose(r.Context(), store.Command{RequestID: in.RequestID, Author: in.Author,
			SteerService: &store.SteerService{Stack: stack, Service: service, Action: action}})
		if err != nil {
			return err
		}
		return writeJSON(w, api.Written{Index: res.Index, Revision: res.Revision, Changed: res.Changed})
	}
}
