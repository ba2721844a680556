//go:build e2e

package containerd

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"wherry.dev/spec"
	"wherry.dev/tests/images"
)

// TestRequestedDevices: the program sees what the description of a device says.
func TestRequestedDevices(t *testing.T) {
	h := newHost(t)
	img := h.load(nil, images.Config{})
	line := "echo $GPU $DRIVER; cat /opt/driver; (echo x > /dev/gpu0) 2>/dev/null || echo full"
	c := h.container("1-1", img, command(line))
	c.Template.DeviceRequests = []spec.DeviceRequest{{Class: "gpu", Count: -1}}
	if err := h.rt.Create(context.Background(), c); !errors.Is(err, spec.ErrInvalid) || !strings.Contains(err.Error(), "knows no devices of the class gpu") {
		t.Errorf("without a device: %v", err)
	}
	// It is looked for anew each time.
	text := `{"cdiVersion": "0.6.0", "kind": "vendor.com/gpu", "containerEdits": {"env": ["DRIVER=7"]}, "devices": [{"name": "0", "containerEdits": {
		"env": ["GPU=0"], "deviceNodes": [{"path": "/dev/gpu0", "hostPath": "/dev/full", "type": "c", "major": 1, "minor": 7}],
		"mounts": [{"hostPath": "` + filepath.Join(h.dir, "driver") + `", "containerPath": "/opt/driver", "options": ["ro", "bind"]}]}}]}`
	for name, data := range map[string]string{"driver": "library\n", "cdi/vendor.json": text} {
		file := filepath.Join(h.dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(data), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if out, _ := h.output(c); out != "0 7\nlibrary\nfull\n" {
		t.Errorf("output %q", out)
	}
}
