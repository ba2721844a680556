package containerd

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
	"tags.cncf.io/container-device-interface/pkg/parser"

	"wherry.dev/spec"
)

// defaultCDIDirs are where programs of vendors describe the devices of a node.
var defaultCDIDirs = []string{"/etc/cdi", "/var/run/cdi"}

// injectDevices adds to s what the descriptions of the requested devices say:
// device nodes, files, variables and programs that the OCI runtime runs.
func (r *Runtime) injectDevices(s *specs.Spec, requests []spec.DeviceRequest) error {
	if len(requests) == 0 {
		return nil
	}
	dirs := r.c.CDIDirs
	if dirs == nil {
		dirs = defaultCDIDirs
	}
	// Read anew for each container: a driver may have been installed since.
	cache, err := cdi.NewCache(cdi.WithAutoRefresh(false), cdi.WithSpecDirs(dirs...))
	if err != nil {
		return fmt.Errorf("read descriptions of devices: %w", err)
	}
	// A description that is broken counts only when one of its devices is missed.
	broken := cache.Refresh()
	names, err := pickDevices(requests, cache.ListDevices())
	if err == nil {
		var missing []string
		if missing, err = cache.InjectDevices(s, names...); len(missing) > 0 {
			err = spec.Invalidf("devices %s cannot be had", strings.Join(missing, ", "))
		} else if err != nil {
			err = spec.Invalidf("devices %s: %v", strings.Join(names, ", "), err)
		}
	}
	if err != nil && broken != nil {
		err = errors.Join(err, spec.Invalidf("some descriptions cannot be read: %v", broken))
	}
	return err
}

// pickDevices chooses the devices for requests, by full names, among those
// that the node knows.
func pickDevices(requests []spec.DeviceRequest, known []string) ([]string, error) {
	var picked []string
	for _, r := range requests {
		names, err := pickFor(r, known)
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			if !slices.Contains(picked, n) {
				picked = append(picked, n)
			}
		}
	}
	return picked, nil
}

func pickFor(r spec.DeviceRequest, known []string) ([]string, error) {
	if len(r.Names) > 0 {
		for _, n := range r.Names {
			if !slices.Contains(known, n) {
				return nil, spec.Invalidf("this node knows no device %s; it %s", n, knows(known))
			}
		}
		return r.Names, nil
	}
	vendor, err := pickVendor(r, known)
	if err != nil {
		return nil, err
	}
	kind := vendor + "/" + r.Class + "="
	var ids []string
	for _, n := range known {
		if id, ok := strings.CutPrefix(n, kind); ok {
			ids = append(ids, id)
		}
	}
	full := func(ids []string) []string {
		out := make([]string, len(ids))
		for i, id := range ids {
			out[i] = kind + id
		}
		return out
	}
	switch {
	case len(r.IDs) > 0:
		for _, id := range r.IDs {
			if !slices.Contains(ids, id) {
				return nil, spec.Invalidf("this node knows no device %s%s; it %s", kind, id, knows(known))
			}
		}
		return full(r.IDs), nil
	case r.Count < 0 && slices.Contains(ids, "all"):
		return full([]string{"all"}), nil
	}
	ids = eachOnce(ids)
	if r.Count < 0 {
		return full(ids), nil
	}
	if r.Count > len(ids) {
		return nil, spec.Invalidf("this node has %d devices of the class %s of %s, the task asks for %d", len(ids), r.Class, vendor, r.Count)
	}
	return full(ids[:r.Count]), nil
}

// pickVendor is the vendor of a request, or the only one of its class.
func pickVendor(r spec.DeviceRequest, known []string) (string, error) {
	var vendors []string
	for _, n := range known {
		vendor, class, _ := parser.ParseDevice(n)
		if class == r.Class && !slices.Contains(vendors, vendor) && (r.Vendor == "" || vendor == r.Vendor) {
			vendors = append(vendors, vendor)
		}
	}
	switch len(vendors) {
	case 0:
		return "", spec.Invalidf("this node knows no devices of the class %s; it %s", strings.TrimPrefix(r.Vendor+"/"+r.Class, "/"), knows(known))
	case 1:
		return vendors[0], nil
	}
	return "", spec.Invalidf("this node has devices of the class %s of several vendors, %s: name the driver", r.Class, strings.Join(vendors, ", "))
}

// eachOnce leaves out names for all devices or for one that has another name
// already: vendors number their devices and may list them by serial number, too.
func eachOnce(ids []string) []string {
	number := func(id string) int {
		n, err := strconv.Atoi(id)
		if err != nil {
			return -1
		}
		return n
	}
	numbered := slices.ContainsFunc(ids, func(id string) bool { return number(id) >= 0 })
	out := slices.DeleteFunc(slices.Clone(ids), func(id string) bool { return id == "all" || numbered && number(id) < 0 })
	slices.SortFunc(out, func(a, b string) int { return cmp.Or(cmp.Compare(number(a), number(b)), cmp.Compare(a, b)) })
	return out
}

func knows(known []string) string {
	const most = 10
	switch {
	case len(known) == 0:
		return "knows none: descriptions (CDI) are expected in " + strings.Join(defaultCDIDirs, " and ") + ", see the documentation of the driver"
	case len(known) > most:
		return "knows " + strings.Join(known[:most], ", ") + " and others"
	}
	return "knows " + strings.Join(known, ", ")
}
