package containerd

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"google.golang.org/protobuf/types/known/timestamppb"

	"wherry.dev/agent"
	"wherry.dev/spec"
)

func TestRole(t *testing.T) {
	for _, tt := range []struct {
		args []string
		want bool
	}{
		{nil, false},
		{[]string{"wherry"}, false},
		{[]string{"wherry", "version"}, false},
		{[]string{"wherry", "containerd", "--config", "x"}, true},
		{[]string{"/run/wherry/containerd/bin/containerd-shim-runc-v2", "-v"}, true},
		{[]string{"/usr/bin/wherry", "-namespace", "wherry", "-id", "1-1"}, true},
		{[]string{"/.wherry-init", "--", "sleep"}, true},
		{[]string{"wherry", "init", "--", "sleep"}, true},
		{[]string{"wherry", "init"}, false},
		{[]string{"wherry", "node", "containerd"}, false},
	} {
		if _, ok := Role(tt.args); ok != tt.want {
			t.Errorf("%q is a hidden role: %v, want %v", tt.args, ok, tt.want)
		}
	}
}

func TestShimID(t *testing.T) {
	const address = "/run/wherry/containerd/containerd.sock"
	for _, tt := range []struct{ line, want string }{
		{"/usr/bin/wherry -namespace wherry -id 1-1 -address " + address, "1-1"},
		{"/run/wherry/containerd/bin/containerd-shim-runc-v2 -namespace wherry -address " + address + " -publish-binary /usr/bin/wherry -id 1-1 start", "1-1"},
		{"containerd-shim-runc-v2 -namespace wherry -address " + address + " -publish-binary /usr/bin/wherry -id 1-1 -bundle /b -debug delete", "1-1"},
		{"/usr/bin/wherry -namespace wherry -id 1-1 -address /elsewhere" + address, ""},
		{"/usr/bin/containerd-shim-runc-v2 -namespace moby -id 1-1 -address " + address, ""},
		{"/usr/bin/wherry -namespace wherry -address " + address, ""},
		{"/usr/bin/wherry -namespace wherry -address " + address + " -id", ""},
		{"/usr/bin/wherry containerd --config /run/wherry/containerd/config.json", ""},
		{"", ""},
	} {
		if got := shimID(strings.ReplaceAll(tt.line, " ", "\x00")+"\x00", address); got != tt.want {
			t.Errorf("%s: shim of %q, want %q", tt.line, got, tt.want)
		}
	}
}

func TestRefusedByTheDaemon(t *testing.T) {
	dir := t.TempDir()
	long := filepath.Join(dir, strings.Repeat("x", MaxRunDir))
	for name, c := range map[string]DaemonConfig{
		"long run folder":     {DataDir: dir, RunDir: long, Binary: "/bin/true"},
		"relative run folder": {DataDir: dir, RunDir: "run", Binary: "/bin/true"},
	} {
		if err := NewDaemon(c).Run(t.Context()); !errors.Is(err, spec.ErrInvalid) {
			t.Errorf("%s: %v, want an error of class invalid", name, err)
		}
	}
	if err := NewDaemon(DaemonConfig{DataDir: dir, RunDir: "/tmp", Binary: "/no/such/program"}).Run(t.Context()); err == nil {
		t.Error("a program that does not exist: no error")
	}
	if _, err := New(Config{DataDir: dir, RunDir: dir, RuncBinary: "no-such-runc"}); !errors.Is(err, spec.ErrInvalid) {
		t.Errorf("no OCI runtime: %v", err)
	}
}

func TestRecords(t *testing.T) {
	dir := t.TempDir()
	if _, ok := readExit(dir, "1-1"); ok {
		t.Error("a record out of nothing")
	}
	want := exitRecord{PID: 7, Status: 3, Time: time.Now().UTC(), OOM: true}
	if err := want.write(dir, "1-1"); err != nil {
		t.Fatal(err)
	}
	if got, ok := readExit(dir, "1-1"); !ok || !reflect.DeepEqual(got, want) {
		t.Errorf("read %+v, wrote %+v", got, want)
	}
	if err := errors.Join(removeRecords(dir, "1-1"), removeRecords(dir, "1-1")); err != nil {
		t.Errorf("remove twice: %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

// TestState covers what containerd, the kernel and the records can say of one
// container.
func TestState(t *testing.T) {
	r := &Runtime{c: Config{DataDir: t.TempDir(), RunDir: t.TempDir()}, limbo: map[limbo]time.Time{}}
	if err := os.MkdirAll(r.records(), 0o700); err != nil {
		t.Fatal(err)
	}
	birth, _, _, _ := procStat(os.Getpid())
	boot := bootID()
	begun := time.Now().Add(-time.Minute).Round(0).UTC()
	ended := time.Now().Round(0).UTC()
	here := runRecord{PID: os.Getpid(), Birth: birth, Boot: boot, Time: begun}
	gone := runRecord{PID: os.Getpid(), Birth: birth + 1, Boot: boot, Time: begun}
	exit := exitRecord{PID: os.Getpid(), Status: 3, Time: ended}
	stopped := agent.ContainerState{Task: "1-1", State: agent.RunStopped, ExitCode: 3, Ended: ended}
	lost := agent.ContainerState{Task: "1-1", State: agent.RunStopped, ExitCode: -1, Ended: begun}
	run := agent.ContainerState{Task: "1-1", State: agent.RunRunning, PID: os.Getpid()}
	created := agent.ContainerState{Task: "1-1", State: agent.RunCreated}
	for _, tt := range []struct {
		name string
		proc *tasktypes.Process
		run  *runRecord
		exit *exitRecord
		want agent.ContainerState
	}{
		{"never started", nil, nil, nil, created},
		{"made, not started", &tasktypes.Process{Status: tasktypes.Status_CREATED, Pid: 5}, &gone, nil, created},
		{"running", &tasktypes.Process{Status: tasktypes.Status_RUNNING, Pid: uint32(os.Getpid())}, nil, nil, run},
		{"paused", &tasktypes.Process{Status: tasktypes.Status_PAUSED, Pid: uint32(os.Getpid())}, nil, nil, run},
		{"ended", &tasktypes.Process{Status: tasktypes.Status_STOPPED, ExitStatus: 3, ExitedAt: timestamppb.New(ended)}, nil, nil, stopped},
		{"ended while containerd was down", nil, &gone, &exit, stopped},
		{"shim does not answer", nil, &here, nil, run},
		{"an earlier end", nil, &here, &exitRecord{PID: 1, Status: 9, Time: ended}, run},
		{"nobody knows how it ended", nil, &gone, nil, lost},
		{"ran before the node was started anew", nil, &runRecord{PID: os.Getpid(), Birth: birth, Boot: "other", Time: begun}, nil, lost},
		{"ended by the kernel", nil, &gone, &exitRecord{PID: os.Getpid(), Status: 137, Time: ended, OOM: true}, agent.ContainerState{Task: "1-1", State: agent.RunStopped, ExitCode: 137, Ended: ended, OOM: true}},
		{"only a child was ended by the kernel", nil, &gone, &exitRecord{PID: os.Getpid(), Time: ended, OOM: true}, agent.ContainerState{Task: "1-1", State: agent.RunStopped, Ended: ended}},
	} {
		if err := removeRecords(r.records(), "1-1"); err != nil {
			t.Fatal(err)
		}
		if tt.run != nil {
			if err := tt.run.write(r.records(), "1-1"); err != nil {
				t.Fatal(err)
			}
		}
		if tt.exit != nil {
			if err := tt.exit.write(r.records(), "1-1"); err != nil {
				t.Fatal(err)
			}
		}
		if got := r.state(containers.Container{ID: "1-1"}, tt.proc, boot); got != tt.want {
			t.Errorf("%s: %+v, want %+v", tt.name, got, tt.want)
		}
	}
	// While containerd cleans up after a dead shim, the end is not told.
	if err := errors.Join(removeRecords(r.records(), "1-1"), gone.write(r.records(), "1-1"),
		os.MkdirAll(r.dir("state", "io.containerd.runtime.v2.task", Namespace, "1-1"), 0o700)); err != nil {
		t.Fatal(err)
	}
	if got := r.state(containers.Container{ID: "1-1"}, nil, boot); got.State != agent.RunRunning {
		t.Errorf("being cleaned up: %+v, want running", got)
	}
}

func TestResolvePath(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"a/b", "etc"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"abs": "/a/b", "up": "../../../a", "a/rel": "../etc", "chain": "abs/../rel", "loop": "loop", "out": "/../../tmp"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for name, want := range map[string]string{
		"/": ".", "a/b": "a/b", "/a/../etc": "etc", "abs": "a/b", "abs/x/y": "a/b/x/y", "up/b": "a/b", "a/rel/passwd": "etc/passwd",
		"chain/z": "etc/z", "none/x": "none/x", "out/x": "tmp/x", "../../a": "a",
	} {
		if got, err := resolve(root, name); err != nil || got != want {
			t.Errorf("%s: %s, %v, want %s", name, got, err, want)
		}
	}
	if got, err := resolve(root, "loop/x"); !errors.Is(err, spec.ErrInvalid) {
		t.Errorf("loop: %s, %v", got, err)
	}
}

func TestMountPoints(t *testing.T) {
	for _, tt := range []struct {
		name string
		make func(dir string) error
		ok   bool
	}{
		{"absent", func(string) error { return nil }, true},
		{"folder", func(d string) error { return os.Mkdir(d+"/dev", 0o755) }, true},
		{"link", func(d string) error { return os.Symlink("/dev", d+"/dev") }, false},
		{"link to nowhere", func(d string) error { return os.Symlink("/none", d+"/sys") }, false},
		{"file", func(d string) error { return os.WriteFile(d+"/proc", nil, 0o644) }, false},
		{"pipe", func(d string) error { return syscall.Mkfifo(d+"/proc", 0o644) }, false},
	} {
		dir := t.TempDir()
		if err := tt.make(dir); err != nil {
			t.Fatal(err)
		}
		if err := checkMountPoints(dir); (err == nil) != tt.ok || err != nil && !errors.Is(err, spec.ErrInvalid) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

func TestFillVolume(t *testing.T) {
	image, volume := t.TempDir(), t.TempDir()
	if err := errors.Join(
		os.MkdirAll(image+"/srv/app/sub", 0o755),
		os.Chmod(image+"/srv/app/sub", 0o710),
		os.WriteFile(image+"/srv/app/file", []byte("one"), 0o640),
		os.Link(image+"/srv/app/file", image+"/srv/app/same"),
		os.Symlink("/etc/passwd", image+"/srv/app/link"),
		syscall.Mkfifo(image+"/srv/app/pipe", 0o600),
		os.Chtimes(image+"/srv/app/sub", time.Unix(1000, 0), time.Unix(1000, 0)),
		os.WriteFile(volume+"/"+copyMark, nil, 0o600),
		os.WriteFile(volume+"/half", nil, 0o600),
	); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(image)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if ok, err := fillable(volume); err != nil || !ok {
		t.Errorf("half filled volume is to be filled: %v, %v", ok, err)
	}
	if err := fillVolume(t.Context(), root, "/srv/app", volume); err != nil {
		t.Fatal(err)
	}
	if ok, err := fillable(volume); err != nil || ok {
		t.Errorf("filled volume is to be filled again: %v, %v", ok, err)
	}
	var got []string
	err = filepath.WalkDir(volume, func(p string, _ fs.DirEntry, err error) error {
		st, serr := os.Lstat(p)
		if err := errors.Join(err, serr); err != nil {
			return err
		}
		got = append(got, strings.TrimPrefix(p, volume)+" "+st.Mode().String())
		return nil
	})
	want := []string{" drwxr-xr-x", "/file -rw-r-----", "/link Lrwxrwxrwx", "/pipe prw-------", "/same -rw-r-----", "/sub drwx--x---"}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("copied %q, %v, want %q", got, err, want)
	}
	st, err := os.Stat(volume + "/sub")
	if err != nil || !st.ModTime().Equal(time.Unix(1000, 0)) {
		t.Errorf("time of a folder: %v, %v", st.ModTime(), err)
	}
	one, err1 := os.Stat(volume + "/file")
	two, err2 := os.Stat(volume + "/same")
	if err1 != nil || err2 != nil || !os.SameFile(one, two) {
		t.Error("two names of one file have become two files")
	}
	if err := fillVolume(t.Context(), root, "/srv/none", t.TempDir()); err != nil {
		t.Errorf("folder that the image lacks: %v", err)
	}
}

func TestFlights(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s flights
		var runs, cancelled atomic.Int32
		work := func(ctx context.Context) error {
			runs.Add(1)
			select {
			case <-time.After(time.Second):
				return spec.ErrNotFound
			case <-ctx.Done():
				cancelled.Add(1)
				return ctx.Err()
			}
		}
		var wg sync.WaitGroup
		early, leave := context.WithCancel(t.Context())
		wg.Go(func() {
			if err := s.do(early, "x", work); !errors.Is(err, context.Canceled) {
				t.Errorf("who left early: %v", err)
			}
		})
		for range 3 {
			wg.Go(func() {
				if err := s.do(t.Context(), "x", work); !errors.Is(err, spec.ErrNotFound) {
					t.Errorf("who waited: %v", err)
				}
			})
		}
		synctest.Wait()
		leave()
		wg.Wait()
		if runs.Load() != 1 || cancelled.Load() != 0 {
			t.Errorf("work ran %d times and was cancelled %d times, want 1 and 0", runs.Load(), cancelled.Load())
		}
		alone, leave := context.WithCancel(t.Context())
		wg.Go(func() { _ = s.do(alone, "y", work) })
		synctest.Wait()
		leave()
		wg.Wait()
		synctest.Wait()
		if cancelled.Load() != 1 {
			t.Error("work for which nobody waits goes on")
		}
	})
}

func TestProcess(t *testing.T) {
	cmd := exec.Command("/bin/sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p, err := childProcess(cmd)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := p.wait(ctx); !errors.Is(err, context.DeadlineExceeded) || p.ended() {
		t.Errorf("wait for a running process: %v", err)
	}
	if other, err := openProcess(p.pid, p.birth+1); other != nil || err != nil {
		t.Errorf("opened a process that was born at another time: %v", err)
	}
	same, err := openProcess(p.pid, p.birth)
	if err != nil || same == nil {
		t.Fatalf("open: %v", err)
	}
	defer same.close()
	if err := p.stop(10 * time.Second); err != nil || !same.ended() {
		t.Errorf("stop: %v, ended %v", err, same.ended())
	}
	if err := same.signal(syscall.SIGTERM); err != nil {
		t.Errorf("signal to what has ended: %v", err)
	}
	if gone, err := openProcess(p.pid, p.birth); gone != nil || err != nil {
		t.Errorf("opened what has ended: %v", err)
	}
}

func TestNormalizeImage(t *testing.T) {
	for name, want := range map[string]string{
		"nginx": "docker.io/library/nginx:latest", "demo/web:1": "docker.io/demo/web:1", "reg:5000/x": "reg:5000/x:latest",
		"x@sha256:" + strings.Repeat("a", 64): "docker.io/library/x@sha256:" + strings.Repeat("a", 64),
	} {
		if got, err := NormalizeImage(name); err != nil || got != want {
			t.Errorf("%s: %s, %v, want %s", name, got, err, want)
		}
	}
	for _, bad := range []string{"", "A", "a b", "-"} {
		if got, err := NormalizeImage(bad); !errors.Is(err, spec.ErrInvalid) {
			t.Errorf("%q: %s, %v", bad, got, err)
		}
	}
}

func TestStartError(t *testing.T) {
	for _, tt := range []struct{ msg, want string }{
		{`failed to create shim task: OCI runtime create failed: runc create failed: unable to start container process: exec: "nope": executable file not found in $PATH: unknown`, `exec: "nope": executable file not found in $PATH`},
		{`OCI runtime create failed: unable to start container process: exec: "/x": permission denied: unknown`, `exec: "/x": permission denied`},
		{`OCI runtime create failed: container_linux.go:380: starting container process caused: exec: "/y": stat /y: no such file or directory: unknown`, `exec: "/y": stat /y: no such file or directory`},
	} {
		if err := startError(errors.New(tt.msg)); !errors.Is(err, spec.ErrInvalid) || err.Error() != tt.want {
			t.Errorf("%s\ngives %v, want %s", tt.msg, err, tt.want)
		}
	}
	if err := startError(errors.New("no space left on device")); errors.Is(err, spec.ErrInvalid) {
		t.Errorf("a full disk is no fault of the service: %v", err)
	}
}
