package agenttest

import (
	"context"
	"os"
	"path/filepath"

	"wherry.dev/agent"
	"wherry.dev/spec"
)

// showLocked lets the process of a container see a file. What a container has
// mounted stays what it was at that moment, as a mount does when its source is
// renamed over.
func (h *Host) showLocked(c *container, m agent.Mount) {
	if st, err := os.Stat(m.Source); err != nil || !st.Mode().IsRegular() {
		return
	}
	b, err := os.ReadFile(m.Source)
	if err != nil {
		h.faults = append(h.faults, err.Error())
		return
	}
	c.mounted[m.Target] = string(b)
}

// Exchange implements agent.Exchanger.
func (h *Host) Exchange(ctx context.Context, t spec.TaskID, mounts []agent.Mount) error {
	leave, err := h.enter(ctx, "Exchange", t)
	if err != nil {
		return err
	}
	h.mu.Lock()
	c := h.containers[t]
	running := c != nil && c.state.State == agent.RunRunning
	for _, m := range mounts {
		if running {
			h.showLocked(c, m)
		}
	}
	h.mu.Unlock()
	leave()
	if !running {
		return spec.Conflictf("container %s does not run", t)
	}
	h.after("Exchange", t)
	return nil
}

// File is what the process of a task sees at a target; the variables from
// Container.EnvFile are at "env".
func (h *Host) File(t spec.TaskID, target string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if c := h.containers[t]; c != nil {
		return c.mounted[target]
	}
	return ""
}

// Mount implements agent.Tmpfs: the folder counts as memory, and is empty after
// Reboot and Unmount.
func (h *Host) Mount(dir string) error {
	if err := h.before(context.Background(), "Mount", ""); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mounted[dir] = true
	return nil
}

// Unmount implements agent.Tmpfs.
func (h *Host) Unmount(dir string) error {
	if err := h.before(context.Background(), "Unmount", ""); err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.forgetLocked(dir)
	return nil
}

func (h *Host) forgetLocked(dir string) {
	delete(h.mounted, dir)
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if rerr := os.RemoveAll(filepath.Join(dir, e.Name())); rerr != nil {
			err = rerr
		}
	}
	if err != nil && !os.IsNotExist(err) {
		h.faults = append(h.faults, err.Error())
	}
}

// Memory are the folders that are memory now.
func (h *Host) Memory() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []string
	for dir := range h.mounted {
		out = append(out, dir)
	}
	return out
}
