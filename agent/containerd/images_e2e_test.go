//go:build e2e

package containerd

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"

	"wherry.dev/agent"
	"wherry.dev/spec"
	"wherry.dev/tests/images"
)

// testRegistry runs Debian's docker-registry on a loopback port and counts the
// requests for layers.
type testRegistry struct {
	host   string
	blobs  atomic.Int32
	server *httptest.Server
}

func newRegistry(t *testing.T) *testRegistry {
	t.Helper()
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s}}\nhttp: {addr: %s}\n", dir, addr)
	file := filepath.Join(dir, "config.yml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("docker-registry", "serve", file)
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	waitFor(t, "the registry", func() bool {
		resp, err := http.Get("http://" + addr + "/v2/")
		if err == nil {
			_ = resp.Body.Close()
		}
		return err == nil
	})
	r := &testRegistry{}
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: addr})
	r.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/blobs/") {
			r.blobs.Add(1)
		}
		proxy.ServeHTTP(w, req)
	}))
	t.Cleanup(r.server.Close)
	r.host = strings.TrimPrefix(r.server.URL, "http://")
	return r
}

// push stores an image and returns the digest of its manifest.
func (r *testRegistry) push(t *testing.T, name, tag string, b images.Blobs) string {
	t.Helper()
	for _, blob := range [][]byte{b.Config, b.Layer} {
		resp := r.do(t, http.MethodPost, "/v2/"+name+"/blobs/uploads/", "", nil)
		loc, err := resp.Location()
		if err != nil {
			t.Fatal(err)
		}
		q := loc.Query()
		q.Set("digest", digest.FromBytes(blob).String())
		r.do(t, http.MethodPut, loc.Path+"?"+q.Encode(), "application/octet-stream", blob)
	}
	r.do(t, http.MethodPut, "/v2/"+name+"/manifests/"+tag, b.ManifestType, b.Manifest)
	return digest.FromBytes(b.Manifest).String()
}

func (r *testRegistry) do(t *testing.T, method, path, contentType string, body []byte) *http.Response {
	t.Helper()
	req, err := http.NewRequest(method, r.server.URL+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode > 299 {
		msg, _ := io.ReadAll(resp.Body)
		t.Fatalf("%s %s: %s: %s", method, path, resp.Status, msg)
	}
	return resp
}

func blobs(t *testing.T, files map[string]string, c images.Config) images.Blobs {
	t.Helper()
	b, err := images.BusyboxBlobs(files, c)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestPull(t *testing.T) {
	h, reg := newHost(t), newRegistry(t)
	ctx := context.Background()
	dgst := reg.push(t, "app", "1", blobs(t, map[string]string{"version": "one"}, images.Config{
		Cmd: []string{"cat", "/version"}, Volumes: []string{"/z", "/a"}, StopSignal: "SIGQUIT",
		Healthcheck: &images.Healthcheck{Test: []string{"CMD", "true"}},
	}))
	name := reg.host + "/app:1"

	// Many at once share one pull.
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := h.rt.Ensure(ctx, agent.ImageRequest{Image: name, Digest: dgst}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := reg.blobs.Load(); n != 2 {
		t.Errorf("%d blobs fetched, want the configuration and the layer once", n)
	}
	img, err := h.rt.Ensure(ctx, agent.ImageRequest{Image: name, Digest: dgst})
	if err != nil {
		t.Fatal(err)
	}
	if img.Digest != dgst || img.StopSignal != "SIGQUIT" || !slices.Equal(img.Volumes, []string{"/a", "/z"}) || img.Health == nil || img.Health.Retries != 3 {
		t.Errorf("configuration of the image: %+v", img)
	}
	c := h.container("1-1", img, spec.Template{Image: name, NetworkMode: "none"})
	if out, _ := h.output(c); out != "one" {
		t.Errorf("output %q", out)
	}

	// The tag moves; what was pinned stays, what is asked for by tag is new.
	second := reg.push(t, "app", "1", blobs(t, map[string]string{"version": "two"}, images.Config{Cmd: []string{"cat", "/version"}}))
	if got, err := h.rt.Resolve(ctx, name, ""); err != nil || got != second {
		t.Errorf("resolve: %s, %v, want %s", got, err, second)
	}
	img, err = h.rt.Ensure(ctx, agent.ImageRequest{Image: name, Digest: dgst})
	if err != nil || img.Digest != dgst {
		t.Errorf("pinned image after its tag has moved: %s, %v", img.Digest, err)
	}
	var last PullProgress
	pulled, err := h.rt.Pull(ctx, name, PullOptions{Progress: func(p PullProgress) { last = p }})
	if err != nil || pulled.Digest != second || last.Done != last.Total || last.Total == 0 {
		t.Errorf("pull: %+v, %v, progress %+v", pulled, err, last)
	}
	img, err = h.rt.Ensure(ctx, agent.ImageRequest{Image: name})
	if err != nil {
		t.Fatal(err)
	}
	c = h.container("1-2", img, spec.Template{Image: name, NetworkMode: "none"})
	if out, _ := h.output(c); out != "two" {
		t.Errorf("output of the new image %q", out)
	}

	// Stored content is found without the registry.
	reg.server.Close()
	if got, err := h.rt.Resolve(ctx, name, ""); err != nil || got != second {
		t.Errorf("resolve without registry: %s, %v", got, err)
	}
	_, err = h.rt.Ensure(ctx, agent.ImageRequest{Image: reg.host + "/other:1"})
	if !errors.Is(err, spec.ErrUnavailable) || !strings.Contains(err.Error(), reg.host) {
		t.Errorf("registry is down: %v, want an error of class unavailable that names it", err)
	}

	if err := h.rt.RemoveImage(ctx, name); !errors.Is(err, spec.ErrConflict) {
		t.Errorf("removal of an image in use: %v", err)
	}
	for _, id := range []spec.TaskID{"1-1", "1-2"} {
		if err := h.rt.Remove(ctx, id); err != nil {
			t.Fatal(err)
		}
	}
	if err := h.rt.RemoveImage(ctx, name); err != nil {
		t.Errorf("removal: %v", err)
	}
	if err := h.rt.RemoveImage(ctx, dgst); err != nil {
		t.Errorf("removal by digest: %v", err)
	}
	if list, err := h.rt.ListImages(ctx); err != nil || len(list) != 0 {
		t.Errorf("images left: %+v, %v", list, err)
	}
	if err := h.rt.RemoveImage(ctx, name); !errors.Is(err, spec.ErrNotFound) {
		t.Errorf("removal of what is gone: %v", err)
	}
}

func TestPullRefused(t *testing.T) {
	h, reg := newHost(t), newRegistry(t)
	ctx := context.Background()
	reg.push(t, "other", "1", blobs(t, nil, images.Config{Platform: "linux/s390x"}))
	index := fmt.Sprintf(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"%s","size":%d,"platform":{"os":"linux","architecture":"s390x"}}]}`,
		digest.FromBytes(blobs(t, nil, images.Config{Platform: "linux/s390x"}).Manifest), len(blobs(t, nil, images.Config{Platform: "linux/s390x"}).Manifest))
	reg.do(t, http.MethodPut, "/v2/other/manifests/index", "application/vnd.oci.image.index.v1+json", []byte(index))

	for _, tag := range []string{"1", "index"} {
		_, err := h.rt.Ensure(ctx, agent.ImageRequest{Image: reg.host + "/other:" + tag})
		if !errors.Is(err, spec.ErrInvalid) || !strings.Contains(err.Error(), "s390x") {
			t.Errorf("image of another platform (%s): %v, want an error of class invalid that names the platform", tag, err)
		}
	}
	_, err := h.rt.Ensure(ctx, agent.ImageRequest{Image: reg.host + "/none:1"})
	if !errors.Is(err, spec.ErrNotFound) || !strings.Contains(err.Error(), "wherry image load") || !strings.Contains(err.Error(), reg.host) {
		t.Errorf("missing image: %v", err)
	}
	_, err = h.rt.Resolve(ctx, reg.host+"/none:1", "")
	if !errors.Is(err, spec.ErrNotFound) {
		t.Errorf("resolve of a missing image: %v", err)
	}
	if _, err := h.rt.Ensure(ctx, agent.ImageRequest{Image: "UPPER CASE"}); !errors.Is(err, spec.ErrInvalid) {
		t.Errorf("bad name: %v", err)
	}
	refuse := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("WWW-Authenticate", "Basic realm=x")
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer refuse.Close()
	if _, err := h.rt.Ensure(ctx, agent.ImageRequest{Image: strings.TrimPrefix(refuse.URL, "http://") + "/x:1"}); !errors.Is(err, spec.ErrInvalid) {
		t.Errorf("refused credentials: %v", err)
	}
	huge := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		w.Header().Set("Docker-Content-Digest", "sha256:"+strings.Repeat("ab", 32))
		w.Header().Set("Content-Length", fmt.Sprint(5<<20))
	}))
	defer huge.Close()
	if _, err := h.rt.Ensure(ctx, agent.ImageRequest{Image: strings.TrimPrefix(huge.URL, "http://") + "/x:1"}); !errors.Is(err, spec.ErrInvalid) {
		t.Errorf("huge manifest: %v", err)
	}
	cctx, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := h.rt.Ensure(cctx, agent.ImageRequest{Image: reg.host + "/other:1"}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if list, err := h.rt.ListImages(ctx); err != nil || len(list) != 0 {
		t.Errorf("images left: %+v, %v", list, err)
	}
}

func TestLoad(t *testing.T) {
	h := newHost(t)
	ctx := context.Background()
	for _, tt := range []struct {
		name   string
		c      images.Config
		pack   bool
		stored string
	}{
		{"OCI layout", images.Config{Name: "demo/a:1"}, false, "docker.io/demo/a:1"},
		{"docker save", images.Config{Name: "b", Docker: true}, false, "docker.io/library/b:latest"},
		{"compressed", images.Config{Name: "reg.example:5000/c:2"}, true, "reg.example:5000/c:2"},
	} {
		b, err := images.Busybox(map[string]string{"name": tt.name}, tt.c)
		if err != nil {
			t.Fatal(err)
		}
		if tt.pack {
			var z bytes.Buffer
			w := gzip.NewWriter(&z)
			if _, err := w.Write(b); err != nil {
				t.Fatal(err)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			b = z.Bytes()
		}
		for range 2 { // again is no error
			got, err := h.rt.Load(ctx, bytes.NewReader(b))
			if err != nil || len(got) != 1 || got[0].Name != tt.stored || got[0].Size < 1<<20 || len(got[0].Platforms) != 1 {
				t.Fatalf("%s: %+v, %v", tt.name, got, err)
			}
		}
		img, err := h.rt.Ensure(ctx, agent.ImageRequest{Image: tt.stored})
		if err != nil {
			t.Fatal(err)
		}
		id := "1-" + string(rune('1'+len(tt.name)%7))
		if out, _ := h.output(h.container(id, img, command("cat /name"))); out != tt.name {
			t.Errorf("%s: output %q", tt.name, out)
		}
		if err := h.rt.Remove(ctx, spec.TaskID(id)); err != nil {
			t.Fatal(err)
		}
	}
	other, err := images.Busybox(nil, images.Config{Name: "other", Platform: "linux/riscv64"})
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string][]byte{"no archive": []byte(strings.Repeat("junk", 1000)), "empty": nil, "another platform": other} {
		if got, err := h.rt.Load(ctx, bytes.NewReader(b)); !errors.Is(err, spec.ErrInvalid) {
			t.Errorf("%s: %+v, %v, want an error of class invalid", name, got, err)
		} else if name == "another platform" && !strings.Contains(err.Error(), "riscv64") {
			t.Errorf("%s: %v does not name it", name, err)
		}
	}
	list, err := h.rt.ListImages(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, i := range list {
		names = append(names, i.Name)
	}
	if want := []string{"docker.io/demo/a:1", "docker.io/library/b:latest", "reg.example:5000/c:2"}; !slices.Equal(names, want) {
		t.Errorf("images %q, want %q", names, want)
	}
}

// TestPinnedByContent: an image that was loaded is found by its digest, without
// any registry, also after its tag was removed.
func TestPinnedByContent(t *testing.T) {
	h := newHost(t)
	ctx := context.Background()
	img := h.load(nil, images.Config{Name: "app:1"})
	pinned, err := h.rt.Ensure(ctx, agent.ImageRequest{Image: "docker.io/library/app:1", Digest: img.Digest})
	if err != nil || !strings.Contains(pinned.Ref, "@") {
		t.Fatalf("%+v, %v", pinned, err)
	}
	if list, _ := h.rt.ListImages(ctx); len(list) != 1 || list[0].Name != "docker.io/library/app:1" {
		t.Errorf("images %+v, want the one with its tag", list)
	}
	h.load(map[string]string{"new": ""}, images.Config{Name: "app:1"})
	again, err := h.rt.Ensure(ctx, agent.ImageRequest{Image: "docker.io/library/app:1", Digest: img.Digest})
	if err != nil || again.Digest != img.Digest {
		t.Errorf("pinned after the tag has moved: %+v, %v", again, err)
	}
	// A fresh process knows what is stored.
	rt, err := New(h.config())
	if err != nil {
		t.Fatal(err)
	}
	defer rt.client.Close()
	if err := rt.Create(ctx, h.container("1-1", again, command("true"))); err != nil {
		t.Errorf("create by a process that has not ensured the image: %v", err)
	}
}
