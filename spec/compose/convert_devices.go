package compose

import (
	"path/filepath"
	"slices"

	"github.com/compose-spec/compose-go/v2/types"

	"wherry.dev/spec"
)

// devices converts device nodes, devices by name, and requests for some of a
// class.
func (c *conversion) devices(at path, s types.ServiceConfig) (nodes []spec.Device, requests []spec.DeviceRequest) {
	request := func(where path, more ...spec.DeviceRequest) {
		for _, r := range more {
			c.origins[at.key("template").key("device_requests").index(len(requests)).String()] = where
			requests = append(requests, r)
		}
	}
	for i, d := range s.Devices {
		where := at.key("devices").index(i)
		switch {
		case spec.DeviceName(d.Source):
			if d.Target != "" && d.Target != d.Source {
				c.refuse(where, "leave the target out", "what %s is called in the container is up to its description", d.Source)
			}
			request(where, spec.DeviceRequest{Names: []string{d.Source}})
		case filepath.IsAbs(d.Source):
			device := spec.Device{Source: d.Source, Target: d.Target, Permissions: d.Permissions}
			if device.Target == "" {
				device.Target = device.Source
			}
			if device.Permissions == "" {
				device.Permissions = "rwm"
			}
			nodes = append(nodes, device)
		default:
			c.refuse(where, "write /dev/dri or vendor.com/class=name", "the device %q is neither a path nor a name of CDI", d.Source)
		}
	}
	for i, r := range s.Gpus {
		if len(r.Capabilities) == 0 {
			r.Capabilities = []string{"gpu"}
		}
		where := at.key("gpus").index(i)
		request(where, c.deviceRequest(where, r)...)
	}
	if s.Deploy != nil && s.Deploy.Resources.Reservations != nil {
		where := at.key("deploy").key("resources").key("reservations").key("devices")
		for i, r := range s.Deploy.Resources.Reservations.Devices {
			request(where.index(i), c.deviceRequest(where.index(i), r)...)
		}
	}
	return nodes, requests
}

// deviceDrivers are the vendors of the drivers that Docker knows.
var deviceDrivers = map[string]string{"": "", "nvidia": "nvidia.com", "amd": "amd.com"}

// gpuFeatures are capabilities that say which part of a driver is wanted: the
// description of a device has all.
var gpuFeatures = []string{"compute", "utility", "graphics", "video", "display", "compat32", "ngx"}

func (c *conversion) deviceRequest(at path, r types.DeviceRequest) []spec.DeviceRequest {
	if r.Driver == "cdi" {
		if len(r.IDs) == 0 {
			c.refuse(at.key("driver"), "name them by device_ids", "devices of the driver cdi have names")
			return nil
		}
		return []spec.DeviceRequest{{Names: r.IDs}}
	}
	vendor, ok := deviceDrivers[r.Driver]
	if !ok {
		c.refuse(at.key("driver"), "use nvidia, amd or cdi, or leave it out for the only vendor of a node", "the driver %q is not known", r.Driver)
	}
	class := ""
	for i, name := range r.Capabilities {
		if name == "gpu" || slices.Contains(gpuFeatures, name) {
			class = "gpu"
		} else {
			c.refuse(at.key("capabilities").index(i), "name the devices by devices: vendor.com/class=name", "only devices with the capability gpu are looked for, not %q", name)
		}
	}
	if !ok || class == "" {
		return nil
	}
	out := spec.DeviceRequest{Vendor: vendor, Class: class, IDs: r.IDs, Count: int(r.Count)}
	if len(out.IDs) == 0 && out.Count == 0 {
		out.Count = -1
	}
	return []spec.DeviceRequest{out}
}
