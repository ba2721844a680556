package containerd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/shim"
)

// containerd knows a shim by its bundle, the folder that bears the container's
// name. Should containerd be killed after it made the bundle and before it
// noted the shim's address there, the next containerd removes the bundle; but
// the helper that starts the shim lives on, and so does the shim. Only another
// start of the same container can find it, by its socket. Any other is a
// stray, unknown to all, and is looked for and ended.

const (
	sweepEvery = time.Minute
	// sweepPause is between two looks: a stray that only one of them sees was
	// just about to end.
	sweepPause = time.Second
	// strayTimeout is how long a stray may take to end, and then to be
	// killed. It is short since one that waits for somebody to read its log is
	// deaf to signals.
	strayTimeout = time.Second
	// startTime is how long the start of a container may take on a busy host,
	// from its bundle to its process.
	startTime = 10 * time.Second
)

// stray is a process of a shim whose bundle is gone.
type stray struct {
	pid   int
	birth uint64
	id    string // of the container
}

// keepSwept sweeps at once and then every minute, until ctx ends.
func (d *Daemon) keepSwept(ctx context.Context) {
	for {
		d.sweep(ctx)
		select {
		case <-ctx.Done():
			return
		case <-time.After(sweepEvery):
		}
	}
}

// lastSweep is for the end of Run. A containerd that goes on may yet make
// strays; whoever adopts it sweeps.
func (d *Daemon) lastSweep() {
	if d.c.KeepChild {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	d.sweep(ctx)
}

// sweep ends strays until none is left, since a helper among them may be
// starting a shim, or until ctx ends. Without strays it is one look.
func (d *Daemon) sweep(ctx context.Context) {
	var before []stray
	for {
		now := d.strays()
		if len(now) == 0 {
			d.removeSockets()
			return
		}
		var old []stray
		for _, s := range now {
			if slices.Contains(before, s) {
				old = append(old, s)
			}
		}
		if err := d.endStrays(old); err != nil {
			d.c.Logger.Error("end shims that serve nobody", "err", err)
			return
		}
		before = now
		select {
		case <-ctx.Done():
			return
		case <-time.After(sweepPause):
		}
	}
}

// strays looks for processes of shims that serve nobody.
func (d *Daemon) strays() []stray {
	var list []stray
	for pid, line := range processes() {
		id := shimID(line, d.Address())
		if id == "" {
			continue
		}
		// A bundle is renamed before it is removed, and a removed folder has
		// " (deleted)" behind its name.
		cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		if err != nil || filepath.Base(cwd) == id || d.serves(pid, id) {
			continue
		}
		if birth, state, _, ok := procStat(pid); ok && state != 'Z' {
			list = append(list, stray{pid, birth, id})
		}
	}
	return list
}

// shimID returns which container a process is the shim of, a helper that
// starts or deletes one included; "" when it is none of the containerd at
// address.
func shimID(cmdline, address string) string {
	flags := map[string]string{}
	args := strings.Split(cmdline, "\x00")
	for i := 1; i+1 < len(args); i++ {
		switch args[i] {
		case "-namespace", "-address", "-id":
			flags[args[i]] = args[i+1]
			i++
		}
	}
	if flags["-namespace"] != Namespace || flags["-address"] != address {
		return ""
	}
	return flags["-id"]
}

// serves reports whether a shim without its bundle runs a container all the
// same, or is about to: a later start of the same container, with a bundle of
// its own, takes a shim whose socket answers.
func (d *Daemon) serves(pid int, id string) bool {
	bundle := filepath.Join(d.bundles(), id)
	st, err := os.Stat(bundle)
	if err != nil {
		return false
	}
	if time.Since(st.ModTime()) < startTime {
		return true
	}
	b, err := os.ReadFile(filepath.Join(bundle, "init.pid"))
	if err != nil {
		return false
	}
	init, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return false
	}
	_, _, parent, ok := procStat(init)
	return ok && parent == pid
}

// bundles is the folder of all bundles.
func (d *Daemon) bundles() string {
	return filepath.Join(d.config().State, "io.containerd.runtime.v2.task", Namespace)
}

func (d *Daemon) endStrays(list []stray) error {
	errs := make([]error, len(list))
	var wg sync.WaitGroup
	for i, s := range list {
		wg.Go(func() {
			p, err := openProcess(s.pid, s.birth)
			if err != nil || p == nil {
				errs[i] = err
				return
			}
			defer p.close()
			d.c.Logger.Warn("a shim that serves nobody is ended", "task", s.id, "pid", s.pid)
			errs[i] = p.stop(strayTimeout)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// removeSockets removes the sockets of shims that are gone: one that was
// killed, or has lost its bundle, leaves its socket behind.
func (d *Daemon) removeSockets() {
	c := d.config()
	// Read in this order, since a bundle is older than its socket.
	sockets, err := os.ReadDir(c.ShimSockets)
	if err != nil || len(sockets) == 0 {
		return
	}
	bundles, err := os.ReadDir(d.bundles())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return
	}
	used := map[string]bool{}
	ctx := namespaces.WithNamespace(context.Background(), Namespace)
	for _, b := range bundles {
		if a, err := shim.CreateSocketAddress(ctx, c.ShimSockets, c.Address, b.Name(), false); err == nil {
			used[filepath.Base(a)] = true
		}
	}
	for _, s := range sockets {
		if used[s.Name()] || s.Type() != fs.ModeSocket {
			continue
		}
		// Asked as well, should a shim of another version have another name.
		path := filepath.Join(c.ShimSockets, s.Name())
		conn, err := net.DialTimeout("unix", path, time.Second)
		if err == nil {
			_ = conn.Close()
		} else if errors.Is(err, syscall.ECONNREFUSED) {
			_ = os.Remove(path)
		}
	}
}
