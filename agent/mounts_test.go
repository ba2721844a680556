package agent_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"wherry.dev/agent"
	"wherry.dev/spec"
)

func TestMounts(t *testing.T) {
	bubble(t, forever, func(n *node) {
		content, err := spec.PackContent([]spec.ContentFile{{Path: ".", Mode: 0o644, Data: []byte("x")}})
		if err != nil {
			t.Fatal(err)
		}
		n.host.Contents["hmac:1"] = content
		mode := uint32(0o400)
		source := filepath.Join(n.data, "host", "dir")
		n.host.Image.Volumes = []string{"/anon", "/data/"}
		n.template.Mounts = []spec.Mount{
			{Type: spec.MountVolume, Source: "data", Target: "/data"},
			{Type: spec.MountBind, Source: source, Target: "/data/bind", ReadOnly: true, Propagation: "rslave"},
			{Type: spec.MountTmpfs, Target: "/tmp", Size: 1 << 20},
			{Type: spec.MountContent, Target: "/conf", Content: "hmac:1"},
			{Type: spec.MountContent, Target: "/own", Content: "hmac:1", Mode: &mode},
			{Type: spec.MountBind, Source: "/etc/hosts", Target: "/etc/hosts"},
			{Type: spec.MountImage, Source: "example.com/assets:1", Digest: "sha256:aa", Target: "/assets", Subpath: "usr/share"},
			{Type: spec.MountBind, Source: source, Target: "/strict", ReadOnly: true, Submounts: "readonly"},
			{Type: spec.MountBind, Source: source, Target: "/loose", ReadOnly: true, Submounts: "writable"},
			{Type: spec.MountBind, Source: source, Target: "/alone", ReadOnly: true, NonRecursive: true},
		}
		n.wanted.Volumes = []spec.Volume{{ID: "1-3", Name: "shop_data"}}
		n.want(spec.DesiredRunning)
		settle(time.Second)
		c, ok := n.host.Container(task)
		if !ok {
			t.Fatalf("no container: %+v", n.status())
		}
		got := map[string]agent.Mount{}
		for _, m := range c.Mounts {
			if _, twice := got[m.Target]; twice {
				t.Errorf("%s is mounted twice", m.Target)
			}
			got[m.Target] = m
		}
		own := filepath.Join(n.run, "tasks", string(task), "content", "4")
		for target, want := range map[string]agent.Mount{
			"/data":            {Source: n.data + "/volumes/1-3/_data", CopyUp: true},
			"/data/bind":       {Source: source, ReadOnly: true, Propagation: "rslave", Tree: agent.TreeReadOnly},
			"/assets":          {ReadOnly: true, Image: "example.com/assets:1", Subpath: "usr/share"},
			"/strict":          {Source: source, ReadOnly: true, Tree: agent.TreeStrict},
			"/loose":           {Source: source, ReadOnly: true},
			"/alone":           {Source: source, ReadOnly: true},
			"/tmp":             {Tmpfs: true},
			"/conf":            {Source: n.data + "/contents/hmac-1/root", ReadOnly: true},
			"/own":             {Source: own, ReadOnly: true},
			"/anon":            {Source: n.data + "/anon/1-1/0", CopyUp: true},
			"/etc/hosts":       {Source: "/etc/hosts"},
			"/etc/hostname":    {Source: n.run + "/tasks/1-1/hostname"},
			"/etc/resolv.conf": {Source: n.run + "/tasks/1-1/resolv.conf"},
		} {
			m, ok := got[target]
			if !ok || m.Source != want.Source || m.ReadOnly != want.ReadOnly || m.CopyUp != want.CopyUp || m.Tmpfs != want.Tmpfs || m.Propagation != want.Propagation || m.Tree != want.Tree ||
				m.Image != want.Image || m.Subpath != want.Subpath {
				t.Errorf("%s: %+v, want %+v", target, m, want)
			}
		}
		if len(got) != 13 {
			t.Errorf("mounts: %+v", got)
		}
		if c.Mounts[len(c.Mounts)-1].Target == "/data" {
			t.Error("a folder is mounted over what is mounted in it")
		}
		if i, err := os.Stat(own); err != nil || i.Mode().Perm() != 0o400 {
			t.Errorf("own copy: %v, %v", i, err)
		}
		if i, err := os.Stat(source); err != nil || !i.IsDir() {
			t.Errorf("bind source: %v, %v", i, err)
		}
		n.want(spec.DesiredStopped)
		settle(time.Second)
		n.want("")
		settle(time.Second)
		n.empty()
		if _, err := os.Stat(filepath.Join(n.data, "volumes", "1-3", "_data")); err != nil {
			t.Errorf("a volume went with its task: %v", err)
		}
	})
}

func TestMountsRejected(t *testing.T) {
	tests := []struct {
		name   string
		mount  spec.Mount
		volume spec.VolumeSpec
		reason string
	}{
		{"bind that must exist", spec.Mount{Type: spec.MountBind, Source: "/no/such", MustExist: true}, spec.VolumeSpec{}, "mount /x: the source /no/such does not exist on this node"},
		{"unknown option", spec.Mount{Type: spec.MountVolume, Source: "data"}, spec.VolumeSpec{DriverOpts: map[string]string{"colour": "red"}}, `mount /x: volume shop_data: driver option "colour" is not known`},
		{"subpath", spec.Mount{Type: spec.MountVolume, Source: "data", Subpath: "../other"}, spec.VolumeSpec{}, `mount /x: subpath "../other" leaves its volume`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, forever, func(n *node) {
				tt.mount.Target = "/x"
				n.template.Mounts = []spec.Mount{tt.mount}
				n.wanted.Volumes = []spec.Volume{{ID: "1-3", Name: "shop_data", Spec: tt.volume}}
				n.want(spec.DesiredRunning)
				settle(time.Second)
				if s := n.status(); s.State != spec.TaskRejected || !strings.HasPrefix(s.Reason, tt.reason) {
					t.Errorf("status: %+v", s)
				}
			})
		})
	}
}

// TestRemoveVolumeWaits: a volume is removed only when no task uses it.
func TestRemoveVolumeWaits(t *testing.T) {
	bubble(t, forever, func(n *node) {
		n.template.Mounts = []spec.Mount{{Type: spec.MountVolume, Source: "data", Target: "/data"}}
		n.wanted.Volumes = []spec.Volume{{ID: "1-3", Name: "shop_data"}}
		n.want(spec.DesiredRunning)
		settle(time.Second)
		n.wanted.RemoveVolumes = []spec.VolumeID{"1-3", "1-9"}
		n.want(spec.DesiredRunning)
		settle(time.Minute)
		if got := n.host.VolumesRemoved(); len(got) != 1 || got[0] != "1-9" {
			t.Errorf("removed: %v", got)
		}
		n.want(spec.DesiredStopped)
		settle(time.Second)
		if got := n.host.VolumesRemoved(); len(got) != 2 || got[1] != "1-3" {
			t.Errorf("removed: %v", got)
		}
		if _, err := os.Stat(filepath.Join(n.data, "volumes", "1-3")); !os.IsNotExist(err) {
			t.Errorf("the volume: %v", err)
		}
	})
}

// TestDiskFull: an agent that cannot write says so and goes on when it can.
func TestDiskFull(t *testing.T) {
	bubble(t, forever, func(n *node) {
		settle(time.Second)
		// A folder in the place of the temporary file fails as a full disk does.
		block := filepath.Join(n.data, "tasks", string(task)+".json.tmp")
		if err := os.Mkdir(block, 0o700); err != nil {
			t.Fatal(err)
		}
		n.want(spec.DesiredRunning)
		settle(20 * time.Second)
		if s := n.status(); n.host.Starts(task) != 0 || !strings.Contains(s.Reason, "is a directory; next try in ") {
			t.Errorf("%d starts, status %+v", n.host.Starts(task), s)
		}
		if err := os.Remove(block); err != nil {
			t.Fatal(err)
		}
		settle(time.Minute)
		if s := n.status(); s.State != spec.TaskRunning || s.Reason != "" {
			t.Errorf("status: %+v", s)
		}
	})
}

// TestWantedNotStored: no container is made for a document that is not on
// disk, since it would be removed after a restart.
func TestWantedNotStored(t *testing.T) {
	bubble(t, forever, func(n *node) {
		block := filepath.Join(n.data, "wanted.json.tmp")
		if err := os.Mkdir(block, 0o700); err != nil {
			t.Fatal(err)
		}
		n.want(spec.DesiredRunning)
		settle(20 * time.Second)
		if s := n.status(); len(n.host.Left()) != 1 || !strings.Contains(s.Reason, "wanted.json") {
			t.Errorf("host %v, status %+v", n.host.Left(), s)
		}
		if err := os.Remove(block); err != nil {
			t.Fatal(err)
		}
		settle(time.Minute)
		if s := n.status(); s.State != spec.TaskRunning || s.Reason != "" {
			t.Errorf("status: %+v", s)
		}
	})
}
