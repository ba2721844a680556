package images

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	// Packages lie over the base, below files and all that is named here.
	Packages *Packages
	// Users of the image besides root and nobody, "NAME:UID:HOME"; each has a
	// group of its name.
	Users []string
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
	if c.Packages != nil {
		packages, err := c.Packages.entries()
		if err != nil {
			return nil, err
		}
		for p, e := range packages {
			if _, ok := entries[p]; !ok || e.header.Typeflag != tar.TypeDir {
				entries[p] = e
			}
		}
	}
	users, groups := "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n", "root:x:0:\nnogroup:x:65534:\n"
	for _, u := range c.Users {
		parts := strings.Split(u, ":")
		if len(parts) != 3 {
			return nil, fmt.Errorf("user %q: want NAME:UID:HOME", u)
		}
		users += fmt.Sprintf("%[1]s:x:%[2]s:%[2]s::%[3]s:/bin/sh\n", parts[0], parts[1], parts[2])
		groups += fmt.Sprintf("%s:x:%s:\n", parts[0], parts[1])
	}
	file("etc/passwd", 0o644, []byte(users))
	file("etc/group", 0o644, []byte(groups))
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
	if err := w.Close(); err != nil { // writes the end
		return nil, err
	}
	return buf.Bytes(), nil
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
	index, err := ociIndex([]string{name}, describe(typeManifest, manifest))
	if err != nil {
		return nil, err
	}
	files := map[string][]byte{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`), "index.json": index}
	for _, b := range [][]byte{manifest, config, layer} {
		files["blobs/sha256/"+strings.TrimPrefix(sum(b), "sha256:")] = b
	}
	return archive(files)
}

// ociIndex names one image several times.
func ociIndex(names []string, image descriptor) ([]byte, error) {
	var all []descriptor
	for _, n := range names {
		d := image
		d.Annotations = map[string]string{"io.containerd.image.name": n, "org.opencontainers.image.ref.name": n}
		all = append(all, d)
	}
	return json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": typeIndex, "manifests": all})
}

// Named returns an archive that Busybox made, with other names of its image.
func Named(image []byte, names ...string) ([]byte, error) {
	r, files := tar.NewReader(bytes.NewReader(image)), map[string][]byte{}
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("name image: %w", err)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			return nil, fmt.Errorf("name image: %w", err)
		}
	}
	var index struct {
		Manifests []descriptor `json:"manifests"`
	}
	if err := json.Unmarshal(files["index.json"], &index); err != nil || len(index.Manifests) == 0 {
		return nil, fmt.Errorf("name image: its index names none: %w", err)
	}
	var err error
	if files["index.json"], err = ociIndex(names, index.Manifests[0]); err != nil {
		return nil, err
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
	if err := w.Close(); err != nil { // writes the end
		return nil, err
	}
	return buf.Bytes(), nil
}
