package containerd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/mount"

	"wherry.dev/spec"
)

// Start implements agent.Runtime.
func (r *Runtime) Start(ctx context.Context, t spec.TaskID) (pid int, err error) {
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, createTimeout)
	defer cancel()
	h, err := r.handle(ctx, t)
	if err != nil {
		return 0, fmt.Errorf("start task %s: %w", t, err)
	}
	if pid, err = r.start(ctx, t, h); err != nil {
		return 0, fmt.Errorf("start task %s: %w", t, err)
	}
	return pid, nil
}

func (r *Runtime) start(ctx context.Context, t spec.TaskID, h *handle) (int, error) {
	if err := checkUpper(h.mounts); err != nil {
		return 0, err
	}
	if stdin := h.labels[labelStdin]; stdin != "" {
		// The run folder may have gone with a reboot.
		if err := makeFIFO(stdin); err != nil {
			return 0, err
		}
	}
	if err := r.mountImages(ctx, string(t), h.snapshotter, h.labels); err != nil {
		return 0, err
	}
	pid, err := r.newProcess(ctx, t, h)
	for isExists(err) {
		// There is one of an earlier attempt, or of a start cut short.
		running, rerr := r.clear(ctx, t)
		if rerr != nil && !passing(rerr) || running > 0 {
			return running, rerr
		}
		if pid, err = r.newProcess(ctx, t, h); !isExists(err) {
			break
		}
		// containerd is cleaning up after a shim that died.
		select {
		case <-ctx.Done():
			return 0, spec.Unavailablef("the shim of an earlier attempt is still being cleaned up")
		case <-time.After(retryPause):
		}
	}
	if err != nil {
		return 0, startError(err)
	}
	if err := r.recordRun(t, pid); err != nil {
		return 0, errors.Join(err, r.deleteProcess(context.WithoutCancel(ctx), t))
	}
	if _, err := r.tasks().Start(ctx, &tasksapi.StartRequest{ContainerID: string(t)}); err != nil {
		err = startError(err)
		return 0, errors.Join(err, r.deleteProcess(context.WithoutCancel(ctx), t), removeRecords(r.records(), string(t)))
	}
	return pid, nil
}

// newProcess makes the process, which then waits to be started.
func (r *Runtime) newProcess(ctx context.Context, t spec.TaskID, h *handle) (int, error) {
	req := &tasksapi.CreateTaskRequest{
		ContainerID: string(t),
		Stdin:       h.labels[labelStdin],
		Stdout:      h.labels[labelStdout],
		Stderr:      h.labels[labelStderr],
		Terminal:    h.labels[labelTTY] != "",
	}
	// With one of the three the shim wants all of them.
	if req.Stdin != "" || req.Stdout != "" || req.Stderr != "" {
		req.Stdout = cmp.Or(req.Stdout, os.DevNull)
		if !req.Terminal {
			req.Stderr = cmp.Or(req.Stderr, os.DevNull)
		}
	}
	for _, m := range h.mounts {
		req.Rootfs = append(req.Rootfs, &types.Mount{Type: m.Type, Source: m.Source, Target: m.Target, Options: m.Options})
	}
	r.creating.RLock()
	defer r.creating.RUnlock()
	if h.labels[labelRealtime] != "" {
		if err := lendRealtime(r.cgroupParent()); err != nil {
			return 0, err
		}
	}
	resp, err := r.tasks().Create(ctx, req)
	if err != nil {
		return 0, err
	}
	return int(resp.Pid), nil
}

// clear deletes the process of an earlier attempt. The PID of one that still
// runs is returned instead.
func (r *Runtime) clear(ctx context.Context, t spec.TaskID) (running int, err error) {
	resp, err := r.tasks().Get(ctx, &tasksapi.GetRequest{ContainerID: string(t)})
	if isNotFound(err) {
		return 0, nil
	}
	if err != nil {
		return 0, classify(err)
	}
	switch resp.Process.Status {
	case tasktypes.Status_RUNNING, tasktypes.Status_PAUSED, tasktypes.Status_PAUSING:
		return int(resp.Process.Pid), nil
	}
	return 0, r.deleteProcess(ctx, t)
}

// deleteProcess deletes a process that has ended or was never started.
func (r *Runtime) deleteProcess(ctx context.Context, t spec.TaskID) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	if _, err := r.tasks().Delete(ctx, &tasksapi.DeleteTaskRequest{ContainerID: string(t)}); err != nil && !isNotFound(err) {
		return fmt.Errorf("delete process: %w", classify(err))
	}
	return nil
}

// recordRun remembers which process the container runs from now on.
func (r *Runtime) recordRun(t spec.TaskID, pid int) error {
	birth, _, parent, ok := procStat(pid)
	if !ok {
		return spec.Unavailablef("process %d has ended before it was started", pid)
	}
	// Whoever could still write the end of an earlier attempt is gone by now.
	if err := removeFile(exitPath(r.records(), string(t))); err != nil {
		return err
	}
	rec := runRecord{PID: pid, Birth: birth, Shim: parent, Boot: bootID(), Time: time.Now()}
	rec.ShimBirth, _, _, _ = procStat(parent)
	return rec.write(r.records(), string(t))
}

// checkUpper refuses to mount over links that an earlier attempt left behind in
// the container's own layer: the OCI runtime would follow them while it runs
// with the rights of the node.
func checkUpper(mounts []mount.Mount) error {
	for _, m := range mounts {
		dir := ""
		switch m.Type {
		case "overlay":
			for _, o := range m.Options {
				if d, ok := strings.CutPrefix(o, "upperdir="); ok {
					dir = d
				}
			}
		case "bind":
			dir = m.Source
		}
		if dir == "" {
			continue
		}
		if err := checkMountPoints(dir); err != nil {
			return err
		}
	}
	return nil
}

// mountPoints are the folders of a root file system on which the runtime
// mounts what gives access to the kernel.
var mountPoints = []string{"dev", "proc", "sys"}

// checkMountPoints refuses a root file system in which a mount point is
// anything but a folder, or absent.
func checkMountPoints(root string) error {
	for _, name := range mountPoints {
		st, err := os.Lstat(filepath.Join(root, name))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("look at /%s of the root file system: %w", name, err)
		}
		// Overlayfs marks a removed folder by a device node with numbers 0, 0.
		if !st.IsDir() && st.Mode()&fs.ModeCharDevice == 0 {
			return spec.Invalidf("/%s of the root file system is no folder but a %s; such an image may reach files of the node and is not run", name, kindOf(st.Mode()))
		}
	}
	return nil
}

func kindOf(m fs.FileMode) string {
	switch {
	case m&fs.ModeSymlink != 0:
		return "symbolic link"
	case m.IsRegular():
		return "file"
	}
	return "special file"
}

// startError classifies the failure of a start. What the OCI runtime says
// comes as text only.
func startError(err error) error {
	msg := errText(err)
	for _, s := range []string{"executable file not found", "no such file or directory", "permission denied", "exec format error", "is a directory", "not a directory"} {
		if strings.Contains(msg, "exec") && strings.Contains(msg, s) {
			return spec.Invalidf("%s", runcMessage(msg))
		}
	}
	return classify(err)
}

// runcMessage cuts the message of the OCI runtime out of what the layers above
// wrapped around it.
func runcMessage(msg string) string {
	for _, mark := range []string{"unable to start container process: ", "container_linux.go", "starting container process caused: "} {
		if i := strings.LastIndex(msg, mark); i >= 0 {
			msg = msg[i+len(mark):]
		}
	}
	if i := strings.LastIndex(msg, "exec: "); i > 0 {
		msg = msg[i:]
	}
	msg, _, _ = strings.Cut(msg, "\n")
	return strings.TrimSuffix(msg, ": unknown")
}
