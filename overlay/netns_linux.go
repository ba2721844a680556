package overlay

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

// namespaces keeps the network namespaces of tasks in a folder: TASK is the
// namespace (a bind mount that keeps it alive), TASK.json the sandbox it was
// made for. The sandbox file is written first and removed first, so a
// namespace without one is a leftover that nobody wants. Safe for concurrent
// use.
type namespaces struct {
	dir string

	mu sync.Mutex
	// handles are netlink sockets inside namespaces. A socket keeps its
	// namespace alive, so they are closed before a namespace is removed.
	handles map[spec.TaskID]*netlink.Handle
	tables  map[spec.TaskID]*nftTables
}

func newNamespaces(runDir string) *namespaces {
	return &namespaces{dir: filepath.Join(runDir, "netns"), handles: map[spec.TaskID]*netlink.Handle{}, tables: map[spec.TaskID]*nftTables{}}
}

func (n *namespaces) path(t spec.TaskID) string { return filepath.Join(n.dir, string(t)) }

func (n *namespaces) exists(t spec.TaskID) bool { return isNamespace(n.path(t)) }

func (n *namespaces) record(t spec.TaskID) string { return n.path(t) + ".json" }

// checkTask refuses what would be another file than one of the folder.
func checkTask(t spec.TaskID) error {
	if t == "" || strings.ContainsAny(string(t), "/\x00") || strings.HasPrefix(string(t), ".") || strings.HasSuffix(string(t), ".json") {
		return spec.Invalidf("task ID %q cannot name a namespace", t)
	}
	return nil
}

// load returns the sandboxes whose namespaces exist and removes everything
// else from the folder: what a crash left half made or half removed, and what
// did not survive a reboot.
func (n *namespaces) load() ([]spec.Sandbox, error) {
	entries, err := os.ReadDir(n.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read namespaces: %w", err)
	}
	var out []spec.Sandbox
	keep := map[string]bool{}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok || !isNamespace(filepath.Join(n.dir, name)) {
			continue
		}
		var s spec.Sandbox
		b, err := os.ReadFile(filepath.Join(n.dir, e.Name()))
		if err != nil || json.Unmarshal(b, &s) != nil || string(s.Task) != name {
			continue
		}
		out = append(out, s)
		keep[name], keep[name+".json"] = true, true
	}
	var errs []error
	for _, e := range entries {
		if !keep[e.Name()] {
			errs = append(errs, removeMount(filepath.Join(n.dir, e.Name())))
		}
	}
	return out, errors.Join(errs...)
}

func isNamespace(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && int64(st.Type) == unix.NSFS_MAGIC
}

func removeMount(path string) error {
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// make ensures that the namespace of s exists and returns its path.
func (n *namespaces) make(s spec.Sandbox) (string, error) {
	if err := checkTask(s.Task); err != nil {
		return "", err
	}
	path := n.path(s.Task)
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		return "", fmt.Errorf("make folder of namespaces: %w", err)
	}
	b, err := json.Marshal(s)
	if err != nil {
		return "", fmt.Errorf("encode sandbox: %w", err)
	}
	if err := os.WriteFile(path+".tmp", b, 0o600); err != nil {
		return "", fmt.Errorf("write sandbox: %w", err)
	}
	if err := os.Rename(path+".tmp", n.record(s.Task)); err != nil {
		return "", fmt.Errorf("write sandbox: %w", err)
	}
	if isNamespace(path) {
		return path, nil
	}
	n.drop(s.Task)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o444)
	if err != nil {
		return "", fmt.Errorf("make namespace: %w", err)
	}
	f.Close()
	if err := bindNewNamespace(path); err != nil {
		return "", errors.Join(fmt.Errorf("make namespace of task %s: %w", s.Task, err), os.Remove(path))
	}
	return path, nil
}

// onThread runs f on a thread whose network namespace f may change. A thread
// that does not find back is never used again: it ends with its goroutine.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		defer home.Close()
		err = f()
		if back := netns.Set(home); back == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

func bindNewNamespace(path string) error {
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		return unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
	})
}

// open returns a descriptor of the task's namespace; the caller closes it.
func (n *namespaces) open(t spec.TaskID) (int, error) {
	path := n.path(t)
	if !isNamespace(path) {
		return -1, spec.NotFoundf("the network namespace of task %s does not exist", t)
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open namespace of task %s: %w", t, err)
	}
	return fd, nil
}

// handle returns netlink inside the task's namespace; it is kept until drop.
func (n *namespaces) handle(t spec.TaskID) (*netlink.Handle, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if h := n.handles[t]; h != nil {
		return h, nil
	}
	fd, err := n.open(t)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	h, err := netlink.NewHandleAt(netns.NsHandle(fd), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink of task %s: %w", t, err)
	}
	n.handles[t] = h
	return h, nil
}

// within runs f on a thread inside the task's namespace.
func (n *namespaces) within(t spec.TaskID, f func() error) error {
	fd, err := n.open(t)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return onThread(func() error {
		if err := netns.Set(netns.NsHandle(fd)); err != nil {
			return fmt.Errorf("enter namespace of task %s: %w", t, err)
		}
		return f()
	})
}

// drop closes what is open inside a namespace.
func (n *namespaces) drop(t spec.TaskID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if h := n.handles[t]; h != nil {
		h.Close()
		delete(n.handles, t)
	}
	if nft := n.tables[t]; nft != nil {
		nft.close()
		delete(n.tables, t)
	}
}

// condemn makes the removal of a namespace certain, also after a crash.
func (n *namespaces) condemn(t spec.TaskID) error {
	if err := checkTask(t); err != nil {
		return err
	}
	if err := os.Remove(n.record(t)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove sandbox of task %s: %w", t, err)
	}
	return nil
}

// remove takes the namespace away; the kernel deletes it when no process is
// left inside.
func (n *namespaces) remove(t spec.TaskID) error {
	if err := n.unplug(t); err != nil {
		return err
	}
	n.drop(t)
	if err := removeMount(n.path(t)); err != nil {
		return fmt.Errorf("remove namespace of task %s: %w", t, err)
	}
	return nil
}
