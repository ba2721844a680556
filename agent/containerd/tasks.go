package containerd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	tasksapi "github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc/status"

	"wherry.dev/agent"
	"wherry.dev/spec"
)

// List implements agent.Runtime. Nothing is remembered: it tells what
// containerd, the kernel and the shims' records say now. While containerd is
// being restarted it waits.
func (r *Runtime) List(ctx context.Context) ([]agent.ContainerState, error) {
	ctx, cancel := context.WithTimeout(ctx, createTimeout)
	defer cancel()
	for {
		list, procs, err := r.listAll(ctx)
		if err == nil {
			boot := bootID()
			states := make([]agent.ContainerState, 0, len(list))
			for _, c := range list {
				states = append(states, r.state(c, procs[c.ID], boot))
			}
			return states, nil
		}
		if !errdefs.IsUnavailable(native(err)) {
			return nil, fmt.Errorf("list containers: %w", classify(err))
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("list containers: %w", classify(err))
		case <-time.After(retryPause):
		}
	}
}

func (r *Runtime) listAll(ctx context.Context) ([]containers.Container, map[string]*tasktypes.Process, error) {
	// The processes come second: a process that ends in between has a record
	// by then, one that begins in between has a container.
	list, err := r.client.ContainerService().List(ctx, `labels."`+labelTask+`"`)
	if err != nil {
		return nil, nil, err
	}
	procs, err := r.processes(ctx)
	return list, procs, err
}

func (r *Runtime) processes(ctx context.Context) (map[string]*tasktypes.Process, error) {
	resp, err := r.tasks().List(ctx, &tasksapi.ListTasksRequest{})
	if err != nil {
		return nil, err
	}
	procs := make(map[string]*tasktypes.Process, len(resp.Tasks))
	for _, p := range resp.Tasks {
		procs[p.ID] = p
	}
	return procs, nil
}

// state tells the state of one container. p is containerd's view of its
// process, nil when containerd knows none: none was ever started, its shim
// died, containerd was restarted after its end, or its shim does not answer.
func (r *Runtime) state(c containers.Container, p *tasktypes.Process, boot string) agent.ContainerState {
	s := agent.ContainerState{Task: spec.TaskID(c.ID), State: agent.RunCreated}
	s.Stage, _ = strconv.Atoi(c.Labels[labelStage]) // absent: the task's own
	run, started := readRun(r.records(), c.ID)
	if p != nil {
		switch p.Status {
		case tasktypes.Status_RUNNING, tasktypes.Status_PAUSED, tasktypes.Status_PAUSING:
			s.State, s.PID = agent.RunRunning, int(p.Pid)
			return s
		case tasktypes.Status_STOPPED:
			s.State, s.ExitCode, s.Ended = agent.RunStopped, int(p.ExitStatus), p.ExitedAt.AsTime()
			s.OOM = s.ExitCode != 0 && oomKills(c.Labels[labelCgroup]) > 0
			return s
		case tasktypes.Status_CREATED:
			return s
		}
	}
	exit, ended := readExit(r.records(), c.ID)
	switch {
	case !started:
		return s
	case ended && exit.PID == run.PID:
		s.State, s.ExitCode, s.Ended = agent.RunStopped, exit.Status, exit.Time
		s.OOM = exit.OOM && exit.Status != 0
	case run.Boot == boot && run.alive(), r.inLimbo(c.ID, run.PID):
		s.State, s.PID = agent.RunRunning, run.PID
	default:
		// The node went down with it, or its end was lost with its shim. When
		// that was is not known; it was after the start.
		s.State, s.ExitCode, s.Ended = agent.RunStopped, -1, run.Time
	}
	return s
}

// limboTimeout is how long containerd may take to clean up after a dead shim.
const limboTimeout = 10 * time.Second

// inLimbo reports whether containerd is still cleaning up after the shim of a
// process that has ended: it will be known soon how.
func (r *Runtime) inLimbo(id string, pid int) bool {
	if _, err := os.Stat(r.dir("state", "io.containerd.runtime.v2.task", Namespace, id)); err != nil {
		return false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.limbo, func(_ limbo, since time.Time) bool { return time.Since(since) > 10*limboTimeout })
	key := limbo{id, pid}
	since, ok := r.limbo[key]
	if !ok {
		since = time.Now()
		r.limbo[key] = since
		time.AfterFunc(limboTimeout, r.wake)
	}
	return time.Since(since) < limboTimeout
}

// limbo names one process of one task.
type limbo struct {
	task string
	pid  int
}

// Kill implements agent.Runtime.
func (r *Runtime) Kill(ctx context.Context, t spec.TaskID, signal int, all bool) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	_, err := r.tasks().Kill(ctx, &tasksapi.KillRequest{ContainerID: string(t), Signal: uint32(signal), All: all})
	if err == nil || gone(err) {
		return nil
	}
	return fmt.Errorf("signal task %s: %w", t, classify(err))
}

// gone reports whether err of a kill says that there is no process.
func gone(err error) bool {
	msg := errText(err)
	return isNotFound(err) || strings.Contains(msg, "process already finished") || strings.Contains(msg, "container not running") ||
		strings.Contains(msg, "no such process") || strings.Contains(msg, "not started")
}

// errText returns the message of a raw call's error.
func errText(err error) string {
	if s, ok := status.FromError(err); ok {
		return s.Message()
	}
	return err.Error()
}

// Remove implements agent.Runtime.
func (r *Runtime) Remove(ctx context.Context, t spec.TaskID) error {
	if err := r.remove(ctx, t); err != nil {
		return fmt.Errorf("remove task %s: %w", t, err)
	}
	return nil
}

func (r *Runtime) remove(ctx context.Context, t spec.TaskID) error {
	id := string(t)
	cgroup := r.cgroupParent() + "/" + id
	if err := r.end(ctx, t); err != nil {
		r.c.Logger.Warn("the shim of a container does not answer, it is killed", "task", t, "err", err)
		if err := r.endByForce(ctx, t, cgroup); err != nil {
			return err
		}
	}
	dctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	cs := r.client.ContainerService()
	snapshotter, key := "", id
	if c, err := cs.Get(dctx, id); err == nil {
		if err := r.unmountImages(dctx, id, c.Snapshotter, c.Labels); err != nil {
			return err
		}
		snapshotter, key = c.Snapshotter, c.SnapshotKey
		if c.Labels[labelCgroup] != "" {
			cgroup = c.Labels[labelCgroup]
		}
	} else if !isNotFound(err) {
		return classify(err)
	}
	if snapshotter == "" {
		var err error
		if _, snapshotter, err = r.snapshots(dctx); err != nil {
			return err
		}
	}
	// The file system goes first: without its container nobody would find it.
	if err := r.client.SnapshotService(snapshotter).Remove(dctx, key); err != nil && !isNotFound(err) {
		return fmt.Errorf("remove file system: %w", classify(err))
	}
	if err := cs.Delete(dctx, id); err != nil && !isNotFound(err) {
		return fmt.Errorf("remove container: %w", classify(err))
	}
	r.forget(t)
	removeCgroup(cgroup)
	r.removeParent()
	if err := os.Remove(r.dir("stdin", id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove pipe: %w", err)
	}
	return removeRecords(r.records(), id)
}

// end kills the container's processes and deletes what runs it.
func (r *Runtime) end(ctx context.Context, t spec.TaskID) error {
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	for {
		done, err := r.tryEnd(ctx, string(t))
		if done {
			return nil
		}
		if err != nil && !passing(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-time.After(retryPause):
		}
	}
}

// retryPause is between two looks at what containerd does by itself.
const retryPause = 20 * time.Millisecond

func (r *Runtime) tryEnd(ctx context.Context, id string) (done bool, err error) {
	// A process that was made but not started has to be killed, too.
	_, err = r.tasks().Kill(ctx, &tasksapi.KillRequest{ContainerID: id, Signal: uint32(syscall.SIGKILL), All: true})
	if err == nil {
		_, err = r.tasks().Wait(ctx, &tasksapi.WaitRequest{ContainerID: id})
	}
	if err != nil && !gone(err) {
		return false, err
	}
	_, err = r.tasks().Delete(ctx, &tasksapi.DeleteTaskRequest{ContainerID: id})
	return err == nil || isNotFound(err), err
}

// passing reports whether err only tells of a state that containerd leaves by
// itself: the process is just ending, or its shim has died and is cleaned up after.
func passing(err error) bool {
	return errdefs.IsFailedPrecondition(native(err)) || strings.Contains(errText(err), "ttrpc: closed")
}

// endByForce ends a container past its shim: its processes and the shim are
// killed by the kernel, upon which containerd cleans up by itself.
func (r *Runtime) endByForce(ctx context.Context, t spec.TaskID, cgroup string) error {
	for _, pid := range cgroupPIDs(cgroup) {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	if run, ok := readRun(r.records(), string(t)); ok && run.Boot == bootID() {
		for _, p := range []struct {
			pid   int
			birth uint64
		}{{run.PID, run.Birth}, {run.Shim, run.ShimBirth}} {
			if p.pid <= 1 || p.pid == os.Getpid() {
				continue
			}
			if err := killProcess(p.pid, p.birth); err != nil {
				return err
			}
		}
	}
	return r.end(ctx, t)
}

// killProcess kills the process that was born then, and no other.
func killProcess(pid int, birth uint64) error {
	p, err := openProcess(pid, birth)
	if err != nil || p == nil {
		return err
	}
	defer p.close()
	return p.signal(syscall.SIGKILL)
}

// removeParent removes the cgroup above all containers of the node when none
// is left in it, unless a container is just being made.
func (r *Runtime) removeParent() {
	if !r.creating.TryLock() {
		return
	}
	defer r.creating.Unlock()
	removeCgroup(r.cgroupParent())
}
