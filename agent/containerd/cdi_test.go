package containerd

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"wherry.dev/spec"
)

func TestPickDevices(t *testing.T) {
	nvidia := []string{"nvidia.com/gpu=0", "nvidia.com/gpu=1", "nvidia.com/gpu=10", "nvidia.com/gpu=2", "nvidia.com/gpu=GPU-aa", "nvidia.com/gpu=all", "vendor.com/net=eth0"}
	amd := []string{"amd.com/gpu=card0", "amd.com/gpu=card1"}
	for _, tt := range []struct {
		name  string
		r     spec.DeviceRequest
		known []string
		want  string // the devices, or a part of the refusal
	}{
		{"by name", spec.DeviceRequest{Names: []string{"vendor.com/net=eth0"}}, nvidia, "vendor.com/net=eth0"},
		{"by an unknown name", spec.DeviceRequest{Names: []string{"vendor.com/net=eth1"}}, nvidia, "knows no device vendor.com/net=eth1; it knows nvidia.com/gpu=0, "},
		{"all", spec.DeviceRequest{Class: "gpu", Count: -1}, nvidia, "nvidia.com/gpu=all"},
		{"all, without a name for it", spec.DeviceRequest{Class: "gpu", Count: -1}, amd, "amd.com/gpu=card0 amd.com/gpu=card1"},
		{"some", spec.DeviceRequest{Class: "gpu", Count: 3}, nvidia, "nvidia.com/gpu=0 nvidia.com/gpu=1 nvidia.com/gpu=2"},
		{"some, by names", spec.DeviceRequest{Class: "gpu", Count: 1}, amd, "amd.com/gpu=card0"},
		{"too many", spec.DeviceRequest{Class: "gpu", Count: 5}, nvidia, "this node has 4 devices of the class gpu of nvidia.com, the task asks for 5"},
		{"by ID", spec.DeviceRequest{Vendor: "nvidia.com", Class: "gpu", IDs: []string{"1", "GPU-aa"}}, nvidia, "nvidia.com/gpu=1 nvidia.com/gpu=GPU-aa"},
		{"by an unknown ID", spec.DeviceRequest{Class: "gpu", IDs: []string{"7"}}, nvidia, "knows no device nvidia.com/gpu=7"},
		{"of another vendor", spec.DeviceRequest{Vendor: "amd.com", Class: "gpu", Count: 1}, nvidia, "knows no devices of the class amd.com/gpu"},
		{"of two vendors", spec.DeviceRequest{Class: "gpu", Count: 1}, append(amd, nvidia...), "several vendors, amd.com, nvidia.com: name the driver"},
		{"of one of two", spec.DeviceRequest{Vendor: "nvidia.com", Class: "gpu", Count: 1}, append(amd, nvidia...), "nvidia.com/gpu=0"},
		{"none", spec.DeviceRequest{Class: "gpu", Count: -1}, nil, "it knows none: descriptions (CDI) are expected in /etc/cdi"},
	} {
		got, err := pickDevices([]spec.DeviceRequest{tt.r, tt.r}, tt.known) // twice is once
		if err != nil {
			if !errors.Is(err, spec.ErrInvalid) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: %v, want %q", tt.name, err, tt.want)
			}
		} else if s := strings.Join(got, " "); s != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, s, tt.want)
		}
	}
}

// description is what a vendor's program writes about two devices.
const description = `
cdiVersion: "0.6.0"
kind: vendor.com/gpu
containerEdits:
  env: [DRIVER=7]
devices:
- name: "0"
  containerEdits:
    env: [GPU=0]
    deviceNodes: [{path: /dev/full}]
    mounts: [{hostPath: /etc/hosts, containerPath: /opt/driver, options: [ro, nosuid, bind]}]
    hooks: [{hookName: createContainer, path: /usr/bin/ctk, args: [ctk, link]}]
- name: "1"
  containerEdits:
    env: [GPU=1]
`

func TestInjectDevices(t *testing.T) {
	dir := t.TempDir()
	r := &Runtime{c: Config{CDIDirs: []string{dir}}}
	s, err := Spec(testContainer(), testOptions())
	if err != nil {
		t.Fatal(err)
	}
	one := []spec.DeviceRequest{{Class: "gpu", Count: 1}}
	if err := r.injectDevices(s, one); !errors.Is(err, spec.ErrInvalid) {
		t.Errorf("without descriptions: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "vendor.yaml"), []byte(description), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "broken.json"), []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := r.injectDevices(s, []spec.DeviceRequest{{Class: "gpu", Count: 3}}); !errors.Is(err, spec.ErrInvalid) || !strings.Contains(err.Error(), "broken.json") {
		t.Errorf("a device that a broken description may have: %v", err)
	}
	if err := r.injectDevices(s, one); err != nil {
		t.Fatal(err)
	}
	env := strings.Join(s.Process.Env, " ")
	if !strings.Contains(env, "DRIVER=7") || !strings.Contains(env, "GPU=0") || strings.Contains(env, "GPU=1") {
		t.Errorf("environment %s", env)
	}
	if len(s.Linux.Devices) != 1 || s.Linux.Devices[0].Path != "/dev/full" || s.Linux.Devices[0].Major != 1 || s.Linux.Devices[0].Minor != 7 {
		t.Errorf("devices %+v", s.Linux.Devices)
	}
	if last := s.Linux.Resources.Devices[len(s.Linux.Resources.Devices)-1]; !last.Allow || *last.Major != 1 || *last.Minor != 7 {
		t.Errorf("the last rule is %+v", last)
	}
	found := false
	for _, m := range s.Mounts {
		found = found || m.Source == "/etc/hosts" && m.Destination == "/opt/driver"
	}
	if !found {
		t.Errorf("mounts %+v", s.Mounts)
	}
	if s.Hooks == nil || len(s.Hooks.CreateContainer) != 1 || s.Hooks.CreateContainer[0].Path != "/usr/bin/ctk" {
		t.Errorf("hooks %+v", s.Hooks)
	}
	bare := &specs.Spec{}
	if err := (&Runtime{}).injectDevices(bare, nil); err != nil || bare.Process != nil {
		t.Errorf("nothing asked for: %v, %+v", err, bare)
	}
}
