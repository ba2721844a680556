package store

import (
	"slices"

	"wherry.dev/spec"
)

// newInTemplate reports whether the template of a service says something that
// programs before AddressFormat do not know.
func newInTemplate(s *spec.ServiceSpec) bool {
	t := &s.Template
	r := &t.Resources
	return t.HasData() || slices.ContainsFunc(t.Mounts, func(m spec.Mount) bool { return m.OnChange != "" || m.Render }) ||
		t.Joins() != "" ||
		t.Restart.Window == spec.NoWindow ||
		t.Placeholders ||
		t.Seccomp != nil ||
		slices.ContainsFunc(t.Mounts, func(m spec.Mount) bool { return m.Submounts != "" || m.Digest != "" || m.Type == spec.MountImage }) ||
		t.PreStart != nil || t.PostStart != nil || t.PreStop != nil ||
		t.Runtime != "" || t.UTSMode != "" || t.CgroupMode != "" || t.Umask != nil || t.DeviceRules != nil || t.DeviceRequests != nil ||
		r.ReserveGeneric != nil || r.KeepOnOOM || r.Swappiness != nil || r.RealtimeRuntime != 0 || r.RealtimePeriod != 0 || r.BlockIO != nil
}
