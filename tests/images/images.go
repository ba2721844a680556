package images

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path"
	"runtime"
	"slices"
	"strings"
	"time"
)

// BusyboxPath is the program that the images are made of; Debian's package
// busybox-static installs it.
const BusyboxPath = "/usr/bin/busybox"

// Config describes an image. The zero value is busybox without a command.
type Config struct {
	// Name as it is to be stored, "demo/web:1"; empty is "busybox:latest".
	Name       string
	Entrypoint []string
	Cmd        []string
	Env        []string
	User       string
	WorkingDir string
	Volumes    []string
	Labels     map[string]string
	StopSignal string
	// Healthcheck as in a Dockerfile: ["CMD", …] with times in nanoseconds.
	Healthcheck *Healthcheck
	// Platform "os/arch"; empty is the node's.
	Platform string
	// Links maps paths of symbolic links to their targets.
	Links map[string]string
	// Dirs maps paths of folders to their modes; those of files are made anyway.
	Dirs map[string]int64
	// Owners maps paths of files, folders and links to the user and group ID
	// that own them.
	Owners map[string]int
	// Omit lists folders of the base that are left out, such as "dev".
	Omit []string
	// Docker makes an archive as `docker save` writes it instead of an OCI layout.
	Docker bool
}

// Healthcheck is a health check in an image's configuration.
type Healthcheck struct {
	Test        []string      `json:",omitempty"`
	Interval    time.Duration `json:",omitempty"`
	Timeout     time.Duration `json:",omitempty"`
	StartPeriod time.Duration `json:",omitempty"`
	Retries     int           `json:",omitempty"`
}

// Busybox returns an archive with one image: busybox with all of its commands
// in /bin, and files, which maps paths to contents. Scripts, which begin with
// "#!", and programs may be executed. Equal arguments give equal bytes.
func Busybox(files map[string]string, c Config) ([]byte, error) {
	layer, err := busyboxLayer(files, c)
	if err != nil {
		return nil, fmt.Errorf("make image: %w", err)
	}
	config, err := configOf(c, layer)
	if err != nil {
		return nil, fmt.Errorf("make image: %w", err)
	}
	name := c.Name
	if name == "" {
		name = "busybox:latest"
	}
	if c.Docker {
		return dockerArchive(name, config, layer)
	}
	return ociLayout(name, config, layer)
}

// Blobs is an image taken apart, as a registry wants it.
type Blobs struct {
	Manifest, Config, Layer []byte
	// ManifestType is the media type of Manifest.
	ManifestType string
}

// BusyboxBlobs returns the parts of the image that Busybox makes.
func BusyboxBlobs(files map[string]string, c Config) (Blobs, error) {
	layer, err := busyboxLayer(files, c)
	if err != nil {
		return Blobs{}, fmt.Errorf("make image: %w", err)
	}
	config, err := configOf(c, layer)
	if err != nil {
		return Blobs{}, fmt.Errorf("make image: %w", err)
	}
	manifest, err := ociManifest(config, layer)
	return Blobs{Manifest: manifest, Config: config, Layer: layer, ManifestType: typeManifest}, err
}

const (
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar"
	typeIndex    = "application/vnd.oci.image.index.v1+json"
)

type entry struct {
	header tar.Header
	data   []byte
}

func busyboxLayer(files map[string]string, c Config) ([]byte, error) {
	program, err := os.ReadFile(BusyboxPath)
	if err != nil {
		return nil, fmt.Errorf("read busybox (install busybox-static): %w", err)
	}
	applets, err := exec.Command(BusyboxPath, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list commands of busybox: %w", err)
	}
	entries := map[string]entry{}
	dir := func(p string, mode int64) {
		entries[p] = entry{header: tar.Header{Name: p + "/", Typeflag: tar.TypeDir, Mode: mode}}
	}
	file := func(p string, mode int64, data []byte) {
		for d := path.Dir(p); d != "."; d = path.Dir(d) {
			if _, ok := entries[d]; !ok {
				dir(d, 0o755)
			}
		}
		entries[p] = entry{header: tar.Header{Name: p, Typeflag: tar.TypeReg, Mode: mode, Size: int64(len(data))}, data: data}
	}
	link := func(p, to string) {
		entries[p] = entry{header: tar.Header{Name: p, Typeflag: tar.TypeSymlink, Linkname: to, Mode: 0o777}}
	}
	for _, d := range []string{"bin", "dev", "etc", "home", "proc", "root", "run", "sys", "var"} {
		if !slices.Contains(c.Omit, d) {
			dir(d, 0o755)
		}
	}
	dir("tmp", 0o1777)
	file("bin/busybox", 0o755, program)
	for _, a := range strings.Fields(string(applets)) {
		if a != "busybox" {
			link("bin/"+a, "busybox")
		}
	}
	file("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"))
	file("etc/group", 0o644, []byte("root:x:0:\nnogroup:x:65534:\n"))
	for p, mode := range c.Dirs {
		dir(rel(p), mode)
	}
	for p, data := range files {
		mode := int64(0o644)
		if strings.HasPrefix(data, "#!") || strings.HasPrefix(data, "\x7fELF") {
			mode = 0o755
		}
		file(rel(p), mode, []byte(data))
	}
	for p, to := range c.Links {
		link(rel(p), to)
	}
	for p, id := range c.Owners {
		e := entries[rel(p)]
		e.header.Uid, e.header.Gid = id, id
		entries[rel(p)] = e
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, p := range slices.Sorted(maps.Keys(entries)) {
		e := entries[p]
		if err := add(w, e.header, e.data); err != nil {
			return nil, err
		}
	}
	return buf.Bytes(), w.Close()
}

func rel(p string) string { return strings.TrimPrefix(path.Clean("/"+p), "/") }

func add(w *tar.Writer, h tar.Header, data []byte) error {
	h.Format = tar.FormatPAX
	if err := w.WriteHeader(&h); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(s[:])
}

func configOf(c Config, layer []byte) ([]byte, error) {
	osName, arch := runtime.GOOS, runtime.GOARCH
	if c.Platform != "" {
		osName, arch, _ = strings.Cut(c.Platform, "/")
	}
	volumes := map[string]struct{}{}
	for _, v := range c.Volumes {
		volumes[v] = struct{}{}
	}
	type config struct {
		User        string              `json:",omitempty"`
		Env         []string            `json:",omitempty"`
		Entrypoint  []string            `json:",omitempty"`
		Cmd         []string            `json:",omitempty"`
		Volumes     map[string]struct{} `json:",omitempty"`
		WorkingDir  string              `json:",omitempty"`
		Labels      map[string]string   `json:",omitempty"`
		StopSignal  string              `json:",omitempty"`
		Healthcheck *Healthcheck        `json:",omitempty"`
	}
	return json.Marshal(map[string]any{
		"created": "2020-01-01T00:00:00Z", "os": osName, "architecture": arch,
		"config": config{c.User, c.Env, c.Entrypoint, c.Cmd, volumes, c.WorkingDir, c.Labels, c.StopSignal, c.Healthcheck},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{sum(layer)}},
	})
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

func describe(mediaType string, b []byte) descriptor {
	return descriptor{MediaType: mediaType, Digest: sum(b), Size: len(b)}
}

func ociManifest(config, layer []byte) ([]byte, error) {
	return json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": typeManifest,
		"config": describe(typeConfig, config), "layers": []descriptor{describe(typeLayer, layer)},
	})
}

func ociLayout(name string, config, layer []byte) ([]byte, error) {
	manifest, err := ociManifest(config, layer)
	if err != nil {
		return nil, err
	}
	d := describe(typeManifest, manifest)
	d.Annotations = map[string]string{"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": typeIndex, "manifests": []descriptor{d}})
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`), "index.json": index}
	for _, b := range [][]byte{manifest, config, layer} {
		files["blobs/sha256/"+strings.TrimPrefix(sum(b), "sha256:")] = b
	}
	return archive(files)
}

func dockerArchive(name string, config, layer []byte) ([]byte, error) {
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "RepoTags": []string{name}, "Layers": []string{"layer.tar"}}})
	if err != nil {
		return nil, err
	}
	return archive(map[string][]byte{"manifest.json": manifest, "config.json": config, "layer.tar": layer})
}

func archive(files map[string][]byte) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		h := tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(files[name]))}
		if err := add(w, h, files[name]); err != nil {
			return nil, err
		}
	}
	return buf.Bytes(), w.Close()
}
