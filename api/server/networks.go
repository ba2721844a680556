package server

import (
	"fmt"
	"net/http"
	"strings"

	"wherry.dev/api"
	"wherry.dev/cluster/store"
	"wherry.dev/reconciler"
	"wherry.dev/spec"
)

func (s *Server) networkList(w http.ResponseWriter, r *http.Request) error {
	snap, err := s.snapshot(r)
	if err != nil {
		return err
	}
	l := api.List[api.NetworkInfo]{Index: snap.Index(), Items: []api.NetworkInfo{}}
	uses := reconciler.Uses(snap, s.Now())
	for _, n := range snap.Networks() {
		l.Items = append(l.Items, networkInfo(snap, n, uses[n.ID]))
	}
	return writeJSON(w, l)
}

func networkInfo(snap *store.Snapshot, n *spec.Network, use reconciler.NetworkUse) api.NetworkInfo {
	out := api.NetworkInfo{Network: *n, Services: use.Services, Problem: use.Problem, Note: use.Note}
	switch {
	case n.Gone && len(use.Services) > 0:
		out.State = api.NetworkKept
	case n.Gone:
		out.State = api.NetworkRemoving
	case len(use.Services) > 0 || len(networkTasks(snap, n)) > 0:
		out.State = api.NetworkInUse
	default:
		out.State = api.NetworkUnused
	}
	return out
}

// networkTasks are the tasks that have an address on a network.
func networkTasks(snap *store.Snapshot, n *spec.Network) []api.NetworkTask {
	out := []api.NetworkTask{}
	for _, t := range snap.TasksAt(n.ID) {
		if !snap.HoldsAddresses(t) {
			continue
		}
		for _, a := range t.Addresses {
			if a.Network == n.ID {
				one := api.NetworkTask{ID: t.ID, Name: taskName(snap, t), State: t.Status.State, IP: a.IP, IP6: a.IP6}
				if node := snap.Node(t.Node); node != nil {
					one.Node = node.Name
				}
				out = append(out, one)
			}
		}
	}
	return out
}

func (s *Server) networkGet(w http.ResponseWriter, r *http.Request) error {
	snap, err := s.snapshot(r)
	if err != nil {
		return err
	}
	n, err := findNetwork(snap, r.PathValue("network"))
	if err != nil {
		return err
	}
	out := api.NetworkDetail{Index: snap.Index(), VIPs: []api.NetworkVIP{}, Tasks: networkTasks(snap, n),
		NetworkInfo: networkInfo(snap, n, reconciler.Uses(snap, s.Now())[n.ID])}
	for _, svc := range snap.ServicesAt(n.ID) {
		for _, v := range svc.VIPs {
			if v.Network == n.ID {
				out.VIPs = append(out.VIPs, api.NetworkVIP{Service: svc.Key(), Address: v.Address, Address6: v.Address6})
			}
		}
	}
	return writeJSON(w, out)
}

// findNetwork takes a cluster-wide name or an ID.
func findNetwork(snap *store.Snapshot, ref string) (*spec.Network, error) {
	if n := snap.NetworkNamed(ref); n != nil {
		return n, nil
	}
	if n := snap.Network(spec.NetworkID(ref)); n != nil {
		return n, nil
	}
	return nil, noNetwork(snap, ref)
}

func noNetwork(snap *store.Snapshot, ref string) error {
	var names []string
	for _, n := range snap.Networks() {
		names = append(names, n.Name)
	}
	if len(names) == 0 {
		return spec.NotFoundf("network %q does not exist; there are no networks", ref)
	}
	return spec.NotFoundf("network %q does not exist; there are: %s", ref, strings.Join(names, ", "))
}

func (s *Server) networkCreate(w http.ResponseWriter, r *http.Request) error {
	var in api.CreateNetwork
	if err := readJSON(w, r, &in); err != nil {
		return err
	}
	if err := spec.ValidateNetwork(in.Name, &in.Spec); err != nil {
		return err
	}
	if err := s.Proposer.Linearizable(r.Context()); err != nil {
		return err
	}
	cmd := store.Command{Time: s.Now(), CreateNetwork: &store.CreateNetwork{Name: in.Name, Spec: in.Spec}}
	private := s.Store.Clone()
	if res := private.Apply(private.Snapshot().Index()+1, cmd); res.Err == nil {
		// What could not get its subnet is not made at all.
		snap := private.Snapshot()
		if why := reconciler.Uses(snap, s.Now())[snap.NetworkNamed(in.Name).ID].Problem; why != "" {
			return spec.Conflictf("%s", why)
		}
	}
	cmd.RequestID, cmd.Author = in.RequestID, in.Author
	res, err := s.propose(r.Context(), cmd)
	if err != nil {
		return fmt.Errorf("create network: %w", err)
	}
	return writeJSON(w, api.Written{Index: res.Index, Changed: res.Changed})
}

func (s *Server) networkDelete(w http.ResponseWriter, r *http.Request) error {
	name := r.PathValue("network")
	if snap := s.Store.Snapshot(); snap.NetworkNamed(name) == nil {
		if err := s.Proposer.Linearizable(r.Context()); err != nil {
			return err
		}
		if snap = s.Store.Snapshot(); snap.NetworkNamed(name) == nil {
			return noNetwork(snap, name)
		}
	}
	res, err := s.propose(r.Context(), store.Command{RequestID: r.URL.Query().Get("request_id"), RemoveNetwork: &store.RemoveNetwork{Name: name}})
	if err != nil {
		return err
	}
	return writeJSON(w, api.Written{Index: res.Index, Changed: res.Changed})
}
