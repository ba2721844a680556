package server

import (
	"errors"
	"net/http"
	"strings"

	"wherry.dev/api"
	"wherry.dev/cluster/store"
	"wherry.dev/reconciler"
	"wherry.dev/spec"
)

func (s *Server) why(w http.ResponseWriter, r *http.Request) error {
	snap, err := s.snapshot(r)
	if err != nil {
		return err
	}
	stack, service, place, err := findPlaces(snap, r.URL.Query().Get("of"))
	if err != nil {
		return err
	}
	items := reconciler.Why(snap, stack, service, place, s.Now())
	if place != "" && (len(items) == 0 || len(items[0].Tasks) == 0) {
		return spec.NotFoundf("service %s has no task %s; `wherry ps %s` lists them", spec.ServiceKey(stack, service), place, spec.ServiceKey(stack, service))
	}
	return writeJSON(w, api.List[spec.ServiceWhy]{Index: snap.Index(), Items: items})
}

// findPlaces resolves a stack, "stack/service", "stack/service.PLACE", or a task
// by name or ID, whose place it is then; "" is everything.
func findPlaces(snap *store.Snapshot, ref string) (stack, service, place string, err error) {
	if ref == "" || snap.Stack(ref) != nil {
		return ref, "", "", nil
	}
	if stack, service, ok := spec.SplitServiceKey(ref); ok {
		if snap.Service(stack, service) != nil {
			return stack, service, "", nil
		}
		for _, sv := range snap.ServicesOf(stack) {
			if place, ok := strings.CutPrefix(service, sv.Name+"."); ok && place != "" {
				return stack, sv.Name, placeNamed(snap, sv, place), nil
			}
		}
		return "", "", "", noService(snap, stack, service)
	}
	t, err := findTask(snap, ref)
	if err == nil {
		if snap.Service(t.Stack, t.Service) == nil {
			return "", "", "", spec.NotFoundf("task %s is left of service %s, which does not exist any more: it is %s and wanted %s",
				t.ID, spec.ServiceKey(t.Stack, t.Service), t.Status.State, t.Desired)
		}
		return t.Stack, t.Service, t.Place(), nil
	}
	for _, sv := range snap.Services() { // a place without a task
		if place, ok := strings.CutPrefix(ref, sv.Stack+"."+sv.Name+"."); ok && errors.Is(err, spec.ErrNotFound) {
			return sv.Stack, sv.Name, placeNamed(snap, sv, place), nil
		}
	}
	return "", "", "", err
}

// placeNamed is what Task.Place calls what people call so.
func placeNamed(snap *store.Snapshot, sv *spec.Service, place string) string {
	if sv.Spec.Mode == spec.Global {
		if n, err := findNode(snap, place); err == nil {
			return string(n.ID)
		}
	}
	return place
}
