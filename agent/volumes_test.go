package agent

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

func testVolumes(t *testing.T) *volumes { return newVolumes(t.TempDir(), func(string) {}) }

func noSeed() ([]spec.ContentFile, error) { return nil, errors.New("nobody asked for a seed") }

func TestVolumeLife(t *testing.T) {
	v := testVolumes(t)
	seed := func() ([]spec.ContentFile, error) {
		return []spec.ContentFile{{Path: ".", Dir: true, Mode: 0o750}, {Path: "a/b", Mode: 0o640, Data: []byte("x")}, {Path: "l", Link: "a/b"}}, nil
	}
	vol := spec.Volume{ID: "1-1", Name: "shop_data", Spec: spec.VolumeSpec{Seed: "sha256:00"}}
	data, err := v.use(t.Context(), vol, seed)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(data, "l")); string(b) != "x" || err != nil {
		t.Errorf("seed: %q, %v", b, err)
	}
	for path, want := range map[string]fs.FileMode{data: 0o750, filepath.Dir(data): 0o700, data + "/a/b": 0o640} {
		if i, err := os.Stat(path); err != nil || i.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want %o", path, i.Mode(), err, want)
		}
	}
	// What the container has written stays, and is not seeded again.
	if err := os.Remove(filepath.Join(data, "l")); err != nil {
		t.Fatal(err)
	}
	if _, err := v.use(t.Context(), vol, noSeed); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(filepath.Join(data, "l")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("seeded twice: %v", err)
	}
	for range 2 {
		if err := v.remove(t.Context(), "1-1"); err != nil {
			t.Fatal(err)
		}
	}
	if names, _ := dirNames(v.dir); len(names) > 0 {
		t.Errorf("left: %v", names)
	}
}

func TestVolumeWithoutOptions(t *testing.T) {
	v := testVolumes(t)
	data, err := v.use(t.Context(), spec.Volume{ID: "1-2"}, noSeed)
	if err != nil {
		t.Fatal(err)
	}
	if i, err := os.Stat(data); err != nil || i.Mode().Perm() != 0o755 {
		t.Errorf("%v, %v", i, err)
	}
	if err := v.release(t.Context(), "1-2"); err != nil {
		t.Error(err)
	}
}

func TestVolumeSweep(t *testing.T) {
	v := testVolumes(t)
	for _, n := range []string{".new-1-1/_data/x", ".gone-1-2/_data", "1-3/_data/keep"} {
		if err := os.MkdirAll(filepath.Join(v.dir, n), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.sweep(); err != nil {
		t.Fatal(err)
	}
	if names, _ := dirNames(v.dir); !slices.Equal(names, []string{"1-3"}) {
		t.Errorf("left: %v", names)
	}
}

func TestSubpath(t *testing.T) {
	data := t.TempDir()
	if err := os.MkdirAll(data+"/a/b", 0o700); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"in": "a/b", "out": "/etc", "up": "../.."} {
		if err := os.Symlink(target, filepath.Join(data, name)); err != nil {
			t.Fatal(err)
		}
	}
	for sub, class := range map[string]string{"": "", "a/b": "", "in": "", "a/../a": "", "out": "invalid", "up": "invalid", "../x": "invalid", "/etc": "invalid", "none": "not_found"} {
		p, err := subpath(data, sub)
		if spec.ErrorClass(err) != class || (err == nil) != (class == "") {
			t.Errorf("%q: %v, want class %q", sub, err, class)
		}
		if err == nil && !strings.HasPrefix(p, data) {
			t.Errorf("%q is %s", sub, p)
		}
	}
}

func TestParseDriverOpts(t *testing.T) {
	tests := []struct {
		name string
		opts map[string]string
		want *driverOpts
		err  string
	}{
		{"none", nil, nil, ""},
		{"nfs", map[string]string{"type": "nfs", "o": "addr=192.0.2.1,rw,nosuid,vers=4", "device": ":/export"},
			&driverOpts{"nfs", ":/export", unix.MS_NOSUID, []string{"addr=192.0.2.1", "vers=4"}}, ""},
		{"tmpfs", map[string]string{"type": "tmpfs", "device": "tmpfs", "o": "size=1m"}, &driverOpts{"tmpfs", "tmpfs", 0, []string{"size=1m"}}, ""},
		{"bind", map[string]string{"type": "none", "device": "/srv", "o": "bind,ro"}, &driverOpts{"", "/srv", unix.MS_BIND | unix.MS_RDONLY, nil}, ""},
		{"unknown", map[string]string{"type": "tmpfs", "device": "tmpfs", "size": "1m"}, nil, `driver option "size" is not known`},
		{"no device", map[string]string{"type": "nfs"}, nil, "device is missing"},
		{"relative", map[string]string{"device": "srv", "o": "bind"}, nil, "not an absolute path"},
		{"no type", map[string]string{"device": "/dev/sdx"}, nil, "type is missing"},
		{"no server", map[string]string{"type": "nfs", "device": "/export"}, nil, "has no server"},
	}
	for _, tt := range tests {
		got, err := parseDriverOpts(tt.opts)
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) || spec.ErrorClass(err) != "invalid" {
				t.Errorf("%s: %v, want %q", tt.name, err, tt.err)
			}
			continue
		}
		if err != nil || (got == nil) != (tt.want == nil) {
			t.Errorf("%s: %+v, %v", tt.name, got, err)
			continue
		}
		if got != nil && (got.fstype != tt.want.fstype || got.device != tt.want.device || got.flags != tt.want.flags || !slices.Equal(got.data, tt.want.data)) {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
}

func TestParseMounts(t *testing.T) {
	info := "1 0 8:1 / / rw - ext4 /dev/sda rw\n" +
		"2 1 0:5 / /data/volumes/1-1/_data rw - tmpfs tmpfs rw\n" +
		"3 1 0:6 / /data/volumes/1-1/_data/with\\040space rw - tmpfs tmpfs rw\n" +
		"4 1 0:7 / /data/volumes/1-10/_data rw - tmpfs tmpfs rw\n"
	got := parseMounts(info, "/data/volumes/1-1")
	if !slices.Equal(got, []string{"/data/volumes/1-1/_data", "/data/volumes/1-1/_data/with space"}) {
		t.Errorf("%q", got)
	}
}

func TestContentOwners(t *testing.T) {
	files := []spec.ContentFile{{Path: ".", Dir: true, Mode: 0o700}, {Path: "f", Mode: 0o600, Data: []byte("x")}, {Path: "d/g", Mode: 0o4755}}
	mode, uid := uint32(0o440), uint32(os.Getuid())
	dir := filepath.Join(t.TempDir(), "c")
	if err := writeContent(dir, files, owner{uid: &uid, mode: &mode}, false); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]fs.FileMode{"f": 0o440, "d/g": 0o440, ".": 0o550} {
		if i, err := os.Stat(filepath.Join(dir, name)); err != nil || i.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want %o", name, i.Mode(), err, want)
		}
	}
	file := filepath.Join(t.TempDir(), "c")
	if err := writeContent(file, []spec.ContentFile{{Path: ".", Mode: 0o4711, Data: []byte("x")}}, owner{}, true); err != nil {
		t.Fatal(err)
	}
	if i, err := os.Stat(file); err != nil || i.Mode() != fs.ModeSetuid|0o711 {
		t.Errorf("%v, %v", i.Mode(), err)
	}
}

func TestContentsAreChecked(t *testing.T) {
	good, err := spec.PackContent([]spec.ContentFile{{Path: ".", Mode: 0o644, Data: []byte("x")}})
	if err != nil {
		t.Fatal(err)
	}
	fetched := 0
	c := newContents(t.TempDir(), func(_ context.Context, id spec.ContentID) ([]byte, error) {
		fetched++
		if id == "hmac:bad" {
			return []byte("no archive"), nil
		}
		return good, nil
	}, func(string) {})
	for range 2 {
		path, err := c.ensure(t.Context(), spec.PlainContentID(good))
		if err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(path); string(b) != "x" || strings.Contains(path, ":") {
			t.Errorf("%s: %q, %v", path, b, err)
		}
	}
	if fetched != 1 {
		t.Errorf("fetched %d times", fetched)
	}
	if _, err := c.ensure(t.Context(), "sha256:00"); err == nil || !strings.Contains(err.Error(), "another hash") {
		t.Errorf("wrong hash: %v", err)
	}
	if _, err := c.ensure(t.Context(), "hmac:bad"); spec.ErrorClass(err) != "invalid" {
		t.Errorf("no archive: %v", err)
	}
	if err := c.sweep(map[spec.ContentID]bool{spec.PlainContentID(good): true}); err != nil {
		t.Fatal(err)
	}
	if names, _ := dirNames(c.dir); len(names) != 1 {
		t.Errorf("kept: %v", names)
	}
	if err := c.sweep(nil); err != nil {
		t.Fatal(err)
	}
	if names, _ := dirNames(c.dir); len(names) != 0 {
		t.Errorf("left: %v", names)
	}
}

func TestTmpfsOptions(t *testing.T) {
	mode := uint32(0o1770)
	tests := []struct {
		m    spec.Mount
		want string
	}{
		{spec.Mount{}, "noexec,nosuid,nodev"},
		{spec.Mount{Options: []string{"exec", "uid=7"}, Size: 4096, Mode: &mode}, "nosuid,nodev,exec,uid=7,size=4096,mode=1770"},
		{spec.Mount{Options: []string{"noexec"}}, "nosuid,nodev,noexec"},
	}
	for _, tt := range tests {
		if got := strings.Join(tmpfsOptions(tt.m), ","); got != tt.want {
			t.Errorf("%+v: %s, want %s", tt.m, got, tt.want)
		}
	}
}
