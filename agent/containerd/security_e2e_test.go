//go:build e2e

package containerd

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"wherry.dev/agent"
	"wherry.dev/spec"
	"wherry.dev/tests/images"
)

func TestDefaultsInside(t *testing.T) {
	h := newHost(t)
	img := h.load(map[string]string{"data/file": "x"}, images.Config{})
	c := h.container("1-1", img, command(`
echo caps $(grep CapBnd /proc/self/status)
echo nnp $(grep NoNewPrivs /proc/self/status)
echo seccomp $(grep Seccomp: /proc/self/status)
echo kcore $(head -c 10 /proc/kcore 2>/dev/null | wc -c)
echo kallsyms $(wc -c < /proc/kallsyms)
(echo 1 > /proc/sys/kernel/panic) 2>/dev/null || echo sysctl readonly
(mkdir /sys/fs/cgroup/memory/test) 2>/dev/null || echo cgroup readonly
echo shm $(df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2)
echo ping $(cat /proc/sys/net/ipv4/ping_group_range)
echo port $(cat /proc/sys/net/ipv4/ip_unprivileged_port_start)
echo host $(hostname)
echo links $(ls /sys/class/net)
mount -t tmpfs none /data 2>/dev/null || echo no mount
mknod /data/null c 1 3 2>/dev/null || echo no mknod
echo pid $$
`))
	out, s := h.output(c)
	want := `caps CapBnd: 00000000a00405fb
nnp NoNewPrivs: 1
seccomp Seccomp: 2
kcore 0
kallsyms 0
sysctl readonly
cgroup readonly
shm 65536
ping 0 2147483647
port 0
host web
links lo
no mount
no mknod
pid 1
`
	got := strings.Replace(out, "\t", " ", -1)
	if got != want || s.ExitCode != 0 {
		t.Errorf("inside the container, exit code %d:\n%s\nwant:\n%s", s.ExitCode, got, want)
	}
	c = h.container("1-2", img, command(""))
	c.Template.Command = []string{"ls", "/proc/self/fd"} // the fourth is the folder itself
	if out, _ := h.output(c); out != "0\n1\n2\n3\n" {
		t.Errorf("descriptors of the process: %q", out)
	}
	pids, err := os.ReadFile(filepath.Join(cgroupRoot, "pids", h.rt.cgroupParent(), "1-1", "pids.max"))
	if !cgroupUnified() && (err != nil || strings.TrimSpace(string(pids)) != "4096") {
		t.Errorf("limit of processes %q, %v", pids, err)
	}
}

func TestHostileImages(t *testing.T) {
	h := newHost(t)
	ctx := context.Background()
	marker := filepath.Join(h.dir, "marker")
	if err := os.Mkdir(marker, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"dev", "proc", "sys"} {
		img := h.load(nil, images.Config{Name: "hostile-" + name, Omit: []string{name}, Links: map[string]string{name: marker}})
		err := h.rt.Create(ctx, h.container("1-1", img, command("true")))
		if !errors.Is(err, spec.ErrInvalid) {
			t.Errorf("image whose /%s is a link: %v, want an error of class invalid", name, err)
		}
	}
	if entries, _ := os.ReadDir(marker); len(entries) > 0 {
		t.Errorf("the node's files were reached: %v", entries)
	}
	img := h.load(map[string]string{"etc/group": strings.Repeat("g:x:1:\n", maxDatabase/7+1)}, images.Config{Name: "groups"})
	if err := h.rt.Create(ctx, h.container("1-1", img, command("true"))); !errors.Is(err, spec.ErrInvalid) {
		t.Errorf("image with a huge /etc/group: %v", err)
	}
	img = h.load(nil, images.Config{Name: "user", User: "4294967296"})
	if err := h.rt.Create(ctx, h.container("1-1", img, command("true"))); !errors.Is(err, spec.ErrInvalid) {
		t.Errorf("image with a user beyond 32 bits: %v", err)
	}
	img = h.load(nil, images.Config{Name: "folder", WorkingDir: "/proc/self/fd/8"})
	if err := h.rt.Create(ctx, h.container("1-1", img, command("true"))); !errors.Is(err, spec.ErrInvalid) {
		t.Errorf("image that starts in a descriptor: %v", err)
	}
	img = h.load(nil, images.Config{Name: "labels", Labels: map[string]string{"containerd.io/restart.status": "running", "wherry.dev/task": "9-9"}})
	if err := h.rt.Create(ctx, h.container("1-1", img, command("true"))); err != nil {
		t.Fatal(err)
	}
	rec, err := h.rt.client.ContainerService().Get(ctx, "1-1")
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range rec.Labels {
		if !strings.HasPrefix(k, "wherry.dev/") || v == "9-9" {
			t.Errorf("label of the image on the container: %s=%s", k, v)
		}
	}
	// /etc/passwd as a link out of the image is read inside it.
	img = h.load(map[string]string{"real": "app:x:12:13::/:/bin/sh\n"}, images.Config{Name: "link", User: "app", Links: map[string]string{"etc/passwd": "/../../real"}})
	if out, _ := h.output(h.container("1-2", img, command("id -u"))); out != "12\n" {
		t.Errorf("user by a linked database: %q", out)
	}
}

// TestSabotagedRestart: a container replaces a mount point by a link, in the
// hope that the next start of it mounts somewhere on the node.
func TestSabotagedRestart(t *testing.T) {
	h := newHost(t)
	img := h.load(nil, images.Config{})
	c := h.container("1-1", img, command("exit 0"))
	h.runTask(c)
	h.await("1-1", agent.RunStopped)
	hd, err := h.rt.handle(context.Background(), "1-1")
	if err != nil {
		t.Fatal(err)
	}
	upper := ""
	for _, o := range hd.mounts[0].Options {
		if d, ok := strings.CutPrefix(o, "upperdir="); ok {
			upper = d
		}
	}
	if upper == "" {
		t.Fatalf("no upper folder in %v", hd.mounts)
	}
	if err := os.RemoveAll(filepath.Join(upper, "sys")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/tmp", filepath.Join(upper, "sys")); err != nil {
		t.Fatal(err)
	}
	if _, err := h.rt.Start(context.Background(), "1-1"); !errors.Is(err, spec.ErrInvalid) {
		t.Errorf("start over a link: %v, want an error of class invalid", err)
	}
}

func TestInit(t *testing.T) {
	h := newHost(t)
	img := h.load(nil, images.Config{})
	c := h.container("1-1", img, command("trap 'exit 5' TERM; echo $$; (sleep 0.1 & ) ; while :; do sleep 0.05; done"))
	c.Template.Init = true
	c.Template.User = "65534"
	pid := h.runTask(c)
	ctx := context.Background()
	waitFor(t, "the command to run", func() bool {
		code, err := h.rt.Exec(ctx, "1-1", agent.Exec{Args: []string{"sh", "-c", "grep -q trap /proc/2/cmdline || grep -q trap /proc/[0-9]*/cmdline"}})
		return err == nil && code == 0
	})
	time.Sleep(300 * time.Millisecond) // lets the orphan become a zombie, if nobody reaps
	code, err := h.rt.Exec(ctx, "1-1", agent.Exec{Args: []string{"sh", "-c", "! grep -q '^State:.Z' /proc/[0-9]*/status"}})
	if err != nil || code != 0 {
		t.Errorf("zombies are left: %d, %v", code, err)
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if s := h.await("1-1", agent.RunStopped); s.ExitCode != 5 {
		t.Errorf("after a signal to the init: %+v, want the command's exit code 5", s)
	}
	c = h.container("1-2", img, command(""))
	c.Template.Init, c.Template.Command = true, []string{"/no/such/command"}
	h.runTask(c)
	if s := h.await("1-2", agent.RunStopped); s.ExitCode != 127 {
		t.Errorf("init without a command to run: %+v, want 127", s)
	}
}

func TestMissingCommand(t *testing.T) {
	h := newHost(t)
	img := h.load(map[string]string{"bin/data": "no program"}, images.Config{})
	for i, args := range [][]string{{"nope"}, {"/nope"}, {"/bin/data"}, {"/etc"}} {
		c := h.container("1-"+string(rune('1'+i)), img, command(""))
		c.Template.Command = args
		if err := h.rt.Create(context.Background(), c); err != nil {
			t.Fatal(err)
		}
		_, err := h.rt.Start(context.Background(), c.Task)
		if !errors.Is(err, spec.ErrInvalid) || !strings.Contains(err.Error(), args[0]) {
			t.Errorf("start of %q: %v, want an error of class invalid that names it", args, err)
		}
		if s := h.state(c.Task); s.State != agent.RunCreated {
			t.Errorf("after the start of %q: %+v", args, s)
		}
	}
}

func TestCopyUp(t *testing.T) {
	h := newHost(t)
	img := h.load(map[string]string{"var/lib/app/a/b": "content", "var/lib/app/run": "#!/bin/sh\n"}, images.Config{
		Links:  map[string]string{"var/lib/app/out": "/etc/passwd", "srv/app": "/var/lib/app"},
		Dirs:   map[string]int64{"var/lib/app": 0o750, "var/lib/app/a": 0o700},
		Owners: map[string]int{"var/lib/app": 33, "var/lib/app/a": 34, "var/lib/app/a/b": 35},
	})
	dir, full := filepath.Join(h.dir, "vol"), filepath.Join(h.dir, "full")
	for _, d := range []string{dir, full} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(full, "mine"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	c := h.container("1-1", img, command("stat -c '%a %u %n' /v/ /v/a /v/a/b /v/run; readlink /v/out; ls /w; touch /v/new"))
	// The folder is reached through a link of the image.
	c.Mounts = []agent.Mount{{Source: dir, Target: "/v", CopyUp: true}, {Source: full, Target: "/w", CopyUp: true}}
	c.Mounts[0].Target = "/srv/app"
	c.Template.Command[2] = strings.ReplaceAll(c.Template.Command[2], "/v", "/srv/app")
	out, s := h.output(c)
	want := "750 33 /srv/app/\n700 34 /srv/app/a\n644 35 /srv/app/a/b\n755 0 /srv/app/run\n/etc/passwd\nmine\n"
	if out != want || s.ExitCode != 0 {
		t.Errorf("%+v:\n%swant:\n%s", s, out, want)
	}
	// A second container finds what the first has made of it.
	c2 := h.container("1-2", img, command("ls -A /var/lib/app"))
	c2.Mounts = []agent.Mount{{Source: dir, Target: "/var/lib/app", CopyUp: true}}
	if out, _ := h.output(c2); out != "a\nnew\nout\nrun\n" {
		t.Errorf("second container: %q", out)
	}
	// A copy that was cut short is begun anew.
	if err := os.WriteFile(filepath.Join(dir, copyMark), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	c3 := h.container("1-3", img, command("ls -A /var/lib/app"))
	c3.Mounts = c2.Mounts
	if out, _ := h.output(c3); out != "a\nout\nrun\n" {
		t.Errorf("after a copy cut short: %q", out)
	}
}
