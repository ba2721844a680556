package containerd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"wherry.dev/spec"
)

// DaemonConfig says where a containerd of our own lives.
type DaemonConfig struct {
	// DataDir and RunDir are absolute folders that this daemon has to itself:
	// images and file systems go to DataDir/containerd, sockets and the state
	// of what runs to RunDir/containerd and RunDir/s. RunDir is at most
	// MaxRunDir bytes long, for the sake of the sockets in it.
	DataDir, RunDir string
	// Binary is the absolute path of this program, which is started in its
	// hidden roles. It may be replaced by a newer one at any time.
	Binary string
	// Address of a containerd that runs already; when set, none is started.
	Address string
	// KeepChild leaves containerd running when Run ends, to be adopted by the
	// next. Containers keep running either way.
	KeepChild bool
	// Logger gets starts and ends of the child; nil discards them.
	Logger *slog.Logger
}

// MaxRunDir is the greatest length of a run folder in bytes: the address of a
// socket has 108, and a shim's name takes 67 of them.
const MaxRunDir = 40

// Daemon keeps one containerd running as a child process. The child has a
// process group of its own, so that Ctrl-C does not reach it, and outlives a
// caller that dies; the next one adopts it if it is of the same build with the
// same configuration, and replaces it otherwise.
//
// When Run's context ends the child is terminated and waited for, unless
// KeepChild is set. The containers stay in any case, with their shims.
type Daemon struct {
	c     DaemonConfig
	ready chan struct{}
}

// NewDaemon returns a daemon that Run will keep running.
func NewDaemon(c DaemonConfig) *Daemon {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return &Daemon{c: c, ready: make(chan struct{})}
}

// Address returns the path of the socket that containerd serves on.
func (d *Daemon) Address() string {
	if d.c.Address != "" {
		return d.c.Address
	}
	return filepath.Join(d.c.RunDir, "containerd", "containerd.sock")
}

// Ready is closed when containerd has served for the first time. Later
// restarts are not told: calls made meanwhile wait.
func (d *Daemon) Ready() <-chan struct{} { return d.ready }

const (
	serveTimeout = 30 * time.Second // a database of many images opens slowly on a slow disk
	stopTimeout  = 10 * time.Second
	minBackoff   = 100 * time.Millisecond
	maxBackoff   = 10 * time.Second
	// healthyAfter is how long a child must have lived for its end not to
	// count as another failure in a row.
	healthyAfter = 30 * time.Second
)

// Run keeps containerd running until ctx ends. It returns an error when the
// first start fails, since then the configuration is to blame; later failures
// are logged and tried again, with increasing pauses.
func (d *Daemon) Run(ctx context.Context) error {
	if d.c.Address != "" {
		return d.runExternal(ctx)
	}
	if err := d.prepare(); err != nil {
		return fmt.Errorf("prepare containerd: %w", err)
	}
	defer d.lastSweep()
	child, err := d.adopt(ctx)
	if err != nil {
		return fmt.Errorf("take over containerd: %w", err)
	}
	backoff, first := minBackoff, true
	for {
		if child == nil {
			child, err = d.start(ctx)
		}
		switch {
		case ctx.Err() != nil && child == nil:
			return nil
		case err != nil && first:
			return fmt.Errorf("start containerd: %w", err)
		case err != nil:
			d.c.Logger.Error("start containerd", "err", err, "pause", backoff)
		default:
			if first {
				close(d.ready)
			}
			first = false
			started := time.Now()
			if done := d.watch(ctx, child); done {
				return nil
			}
			if time.Since(started) > healthyAfter {
				backoff = minBackoff
			}
			d.c.Logger.Warn("containerd has ended, starting it again", "pid", child.pid, "pause", backoff, "log", d.lastLog())
		}
		child, err = nil, nil
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// watch waits for the end of the child, or for that of ctx: then it ends the
// child, unless it is to be kept, and done is true. Meanwhile it sweeps.
func (d *Daemon) watch(ctx context.Context, child *process) (done bool) {
	defer child.close()
	sctx, cancel := context.WithCancel(ctx)
	swept := make(chan struct{})
	go func() { defer close(swept); d.keepSwept(sctx) }()
	err := child.wait(ctx)
	cancel()
	<-swept
	if err == nil {
		return false
	}
	if !d.c.KeepChild {
		if err := child.stop(stopTimeout); err != nil {
			d.c.Logger.Error("stop containerd", "pid", child.pid, "err", err)
		}
		_ = os.Remove(d.pidFile())
	}
	return true
}

func (d *Daemon) runExternal(ctx context.Context) error {
	wctx, cancel := context.WithTimeout(ctx, serveTimeout)
	defer cancel()
	if err := serving(wctx, d.c.Address); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return spec.Unavailablef("containerd at %s does not answer (%v); check that it runs and that the address is right", d.c.Address, err)
	}
	close(d.ready)
	<-ctx.Done()
	return nil
}

func (d *Daemon) dir(elem ...string) string {
	return filepath.Join(append([]string{d.c.RunDir, "containerd"}, elem...)...)
}

func (d *Daemon) pidFile() string    { return d.dir("child.json") }
func (d *Daemon) configFile() string { return d.dir("config.json") }
func (d *Daemon) logFile() string    { return filepath.Join(d.c.DataDir, "containerd", "log") }

// config is the child's configuration.
func (d *Daemon) config() childConfig {
	return childConfig{
		Root:        filepath.Join(d.c.DataDir, "containerd"),
		State:       d.dir("state"),
		Address:     d.Address(),
		ShimSockets: filepath.Join(d.c.RunDir, "s"),
		Exits:       recordsDir(d.c.DataDir),
		LogLevel:    "warn",
	}
}

func (d *Daemon) prepare() error {
	for _, p := range []string{d.c.DataDir, d.c.RunDir, d.c.Binary} {
		if !filepath.IsAbs(p) {
			return spec.Invalidf("%q is no absolute path", p)
		}
	}
	if len(d.c.RunDir) > MaxRunDir {
		return spec.Invalidf("run folder %s has more than %d characters, which is too long for the sockets in it; choose a shorter one", d.c.RunDir, MaxRunDir)
	}
	c := d.config()
	for _, dir := range []string{c.Root, c.State, c.Exits, c.ShimSockets, d.dir("bin")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make folder: %w", err)
		}
	}
	// containerd looks for its shim by name in the search path. The link is
	// exchanged at once, since a child may be starting a shim now.
	link := d.dir("bin", shimName)
	if to, err := os.Readlink(link); err != nil || to != d.c.Binary {
		_ = os.Remove(link + ".new")
		if err := os.Symlink(d.c.Binary, link+".new"); err != nil {
			return fmt.Errorf("link shim: %w", err)
		}
		if err := os.Rename(link+".new", link); err != nil {
			return fmt.Errorf("link shim: %w", err)
		}
	}
	return nil
}

// childRecord is what is remembered of the child that runs.
type childRecord struct {
	PID     int    `json:"pid"`
	Birth   uint64 `json:"birth"`
	Boot    string `json:"boot"`
	Version string `json:"version"`
}

// adopt finds the child of an earlier life: one of our version that serves is
// returned, any other is ended. Without one the result is nil.
func (d *Daemon) adopt(ctx context.Context) (*process, error) {
	var r childRecord
	if !readRecord(d.pidFile(), &r) || r.Boot != bootID() {
		// Should the run folder have been cleared under a child that runs, it
		// still holds the database and has to go.
		r.PID, r.Birth = d.findChild()
		if r.PID == 0 {
			return nil, nil
		}
	}
	p, err := openProcess(r.PID, r.Birth)
	if err != nil || p == nil {
		return nil, err
	}
	version, err := d.version()
	if err != nil {
		return nil, err
	}
	if r.Version == version {
		wctx, cancel := context.WithTimeout(ctx, stopTimeout)
		defer cancel()
		if err := serving(wctx, d.Address()); err == nil {
			d.c.Logger.Info("containerd adopted", "pid", p.pid)
			return p, nil
		}
	}
	defer p.close()
	d.c.Logger.Info("containerd of an earlier start is replaced", "pid", p.pid)
	return nil, p.stop(stopTimeout)
}

// findChild looks for a child of ours among all processes.
func (d *Daemon) findChild() (pid int, birth uint64) {
	want := "\x00" + daemonVerb + "\x00--config\x00" + d.configFile() + "\x00"
	for pid, line := range processes() {
		if !strings.HasSuffix(line, want) {
			continue
		}
		if birth, state, _, ok := procStat(pid); ok && state != 'Z' {
			return pid, birth
		}
	}
	return 0, 0
}

// start starts the child and returns when it serves.
func (d *Daemon) start(ctx context.Context) (*process, error) {
	version, err := d.version()
	if err != nil {
		return nil, err
	}
	if err := writeRecord(d.configFile(), d.config()); err != nil {
		return nil, err
	}
	out, err := openLog(d.logFile())
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(d.c.Binary, daemonVerb, "--config", d.configFile())
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = out, out
	cmd.Env = append(os.Environ(), "PATH="+d.dir("bin")+":"+os.Getenv("PATH"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p, err := childProcess(cmd)
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil, err
	}
	// Recorded before it is ready: should we die now, the next one finds it.
	if err := writeRecord(d.pidFile(), childRecord{PID: p.pid, Birth: p.birth, Boot: bootID(), Version: version}); err != nil {
		return nil, errors.Join(err, p.stop(stopTimeout), p.close())
	}
	if err := d.awaitServing(ctx, p); err != nil {
		return nil, errors.Join(err, p.stop(stopTimeout), p.close())
	}
	d.c.Logger.Info("containerd started", "pid", p.pid)
	return p, nil
}

// awaitServing waits until the child serves, ends or takes too long.
func (d *Daemon) awaitServing(ctx context.Context, p *process) error {
	wctx, cancel := context.WithTimeout(ctx, serveTimeout)
	defer cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if p.wait(wctx) == nil {
			cancel()
		}
	}()
	err := serving(wctx, d.Address())
	cancel()
	<-ended
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case p.ended():
		return fmt.Errorf("it ended at once, its last words: %s", d.lastLog())
	}
	return fmt.Errorf("it does not answer after %v (%w), its last words: %s", serveTimeout, err, d.lastLog())
}

// version identifies what the child is made of: the build and configuration.
func (d *Daemon) version() (string, error) {
	id, err := buildID(d.c.Binary)
	if err != nil {
		return "", fmt.Errorf("read version of %s: %w", d.c.Binary, err)
	}
	b, err := json.Marshal(d.config())
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(fmt.Appendf(b, "\n%s", id))
	return hex.EncodeToString(sum[:8]), nil
}

// buildID returns the build ID that the Go linker put into a program; for a
// program without one, its size and time.
func buildID(path string) (string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if s := f.Section(".note.go.buildid"); s != nil {
		if b, err := s.Data(); err == nil && len(b) > 0 {
			return string(b), nil
		}
	}
	st, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	return fmt.Sprint(st.Size(), st.ModTime().UnixNano()), nil
}

// maxLog is the size in bytes at which a log is put aside when the child is
// started. The child logs warnings only.
const maxLog = 1 << 20

func openLog(path string) (*os.File, error) {
	if st, err := os.Stat(path); err == nil && st.Size() > maxLog {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, fmt.Errorf("rotate log: %w", err)
		}
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return f, nil
}

// lastLog returns the last lines of the child's log as one.
func (d *Daemon) lastLog() string {
	f, err := os.Open(d.logFile())
	if err != nil {
		return "none"
	}
	defer f.Close()
	const tail = 600
	if st, err := f.Stat(); err == nil && st.Size() > tail {
		if _, err := f.Seek(-tail, io.SeekEnd); err != nil && !errors.Is(err, fs.ErrInvalid) {
			return "none"
		}
	}
	b, _ := io.ReadAll(io.LimitReader(f, tail))
	return strings.ReplaceAll(string(bytes.TrimSpace(b)), "\n", " | ")
}
