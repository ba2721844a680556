package containerd

import (
	"context"
	"os"
	"strings"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/typeurl/v2"
	"golang.org/x/sys/unix"
)

// Changed delivers one value after any number of changes: a container may have
// ended. It says "look again", never what. Only one receiver is served.
func (r *Runtime) Changed() <-chan struct{} { return r.changed }

// Run watches containerd for ends of containers and reports them on Changed,
// until ctx ends; then the connection is closed. While containerd is away it
// tries again; after that, too, Changed delivers, since an end may have been
// missed.
func (r *Runtime) Run(ctx context.Context) error {
	defer r.client.Close()
	r.sweep(ctx)
	for ctx.Err() == nil {
		if err := r.watch(ctx); err != nil && ctx.Err() == nil {
			r.c.Logger.Debug("containerd's events have ended, subscribing again", "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
	r.removeParent()
	return nil
}

// watch subscribes and returns when the subscription has ended.
func (r *Runtime) watch(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The subscription is only asked for when there is a server to ask: what
	// happened up to now is covered by the look that this wake-up brings about.
	if err := serving(ctx, r.c.Address); err != nil {
		return err
	}
	ch, errs := r.client.EventService().Subscribe(ctx,
		`namespace==`+Namespace+`,topic=="/tasks/exit"`, `namespace==`+Namespace+`,topic=="/tasks/delete"`)
	r.wake()
	for {
		select {
		case e := <-ch:
			r.event(e)
		case err := <-errs:
			return err
		}
	}
}

func (r *Runtime) wake() {
	select {
	case r.changed <- struct{}{}:
	default:
	}
}

func (r *Runtime) event(e *events.Envelope) {
	if e == nil || e.Event == nil {
		return
	}
	v, err := typeurl.UnmarshalAny(e.Event)
	if err != nil {
		return
	}
	x, ok := v.(*eventsapi.TaskExit)
	if ok && x.ID != x.ContainerID {
		return // of a further process in a container
	}
	if ok {
		// Our shims have written this already; those of a containerd that is
		// not ours do not.
		if old, found := readExit(r.records(), x.ContainerID); !found || old.PID != int(x.Pid) {
			if run, started := readRun(r.records(), x.ContainerID); started && run.PID == int(x.Pid) {
				rec := exitRecord{PID: int(x.Pid), Status: int(x.ExitStatus), Time: x.ExitedAt.AsTime(), OOM: oomKills(r.cgroupParent()+"/"+x.ContainerID) > 0}
				if err := rec.write(r.records(), x.ContainerID); err != nil {
					r.c.Logger.Warn("record end of container", "task", x.ContainerID, "err", err)
				}
			}
		}
	}
	r.wake()
}

// sweep removes what a process that died in the middle has left behind.
func (r *Runtime) sweep(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, createTimeout)
	defer cancel()
	for _, kind := range []string{"views", "exec"} {
		entries, err := os.ReadDir(r.dir(kind))
		if err != nil {
			continue
		}
		for _, e := range entries {
			if strings.Contains(e.Name(), r.token) {
				continue
			}
			if kind == "views" {
				_ = mount.UnmountAll(r.dir(kind, e.Name()), unix.MNT_DETACH)
				_ = os.Remove(r.dir(kind, e.Name()))
			} else {
				_ = os.RemoveAll(r.dir(kind, e.Name()))
			}
		}
	}
	sn, _, err := r.snapshots(ctx)
	if err != nil {
		return
	}
	var views []string
	err = sn.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		if strings.HasPrefix(i.Name, viewPrefix) && !strings.Contains(i.Name, r.token) {
			views = append(views, i.Name)
		}
		return nil
	}, `labels."`+labelView+`"==`+string(r.c.Node))
	if err != nil {
		r.c.Logger.Debug("list views", "err", err)
	}
	for _, v := range views {
		_ = sn.Remove(ctx, v)
	}
}
