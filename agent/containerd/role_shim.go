package containerd

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	eventsapi "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/manager"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/runc"
	"github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2/task"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
)

// exitsEnv tells a shim in which folder it records ends; containerd passes it on.
const exitsEnv = "WHERRY_EXITS"

// runShim is one of the shim's processes: the one that starts it, the server,
// or the one that cleans up after a server that died.
func runShim() int {
	// The shim initialises every plugin that is registered in the process, and
	// this program registers those of the daemon.
	registry.Reset()
	registry.Register(&plugin.Registration{
		Type:     plugins.TTRPCPlugin,
		ID:       "task",
		Requires: []plugin.Type{plugins.EventPlugin, plugins.InternalPlugin},
		InitFn:   newTaskService,
	})
	// One container keeps no more than two threads busy; each further P costs
	// memory in every shim.
	runtime.GOMAXPROCS(min(2, runtime.NumCPU()))
	// The OCI runtime inherits it and makes the mount points with it.
	syscall.Umask(0o022)
	shim.RunShim(context.Background(), shimManager{Shim: manager.NewShimManager(runtimeName), dir: os.Getenv(exitsEnv)})
	return 0
}

func newTaskService(ic *plugin.InitContext) (any, error) {
	pp, err := ic.GetByID(plugins.EventPlugin, "publisher")
	if err != nil {
		return nil, err
	}
	ss, err := ic.GetByID(plugins.InternalPlugin, "shutdown")
	if err != nil {
		return nil, err
	}
	p := pp.(shim.Publisher)
	if dir := os.Getenv(exitsEnv); dir != "" {
		bundle, err := os.Getwd()
		if err != nil {
			return nil, err
		}
		p = recorder{Publisher: p, dir: dir, bundle: bundle}
	}
	return task.NewTaskService(ic.Context, p, ss.(shutdown.Service))
}

// recorder writes the end of the container to a file before it is published.
// containerd forgets the end of a container that ended while containerd was
// down: it takes the shim for a leaked one and shuts it down.
type recorder struct {
	shim.Publisher
	dir, bundle string
}

func (r recorder) Publish(ctx context.Context, topic string, e events.Event) error {
	if x, ok := e.(*eventsapi.TaskExit); ok && x.ID == x.ContainerID {
		rec := exitRecord{PID: int(x.Pid), Status: int(x.ExitStatus), Time: x.ExitedAt.AsTime(), OOM: oomKills(bundleCgroup(r.bundle)) > 0}
		// A record that cannot be written costs the exit code, not the container.
		_ = rec.write(r.dir, x.ContainerID)
	}
	return r.Publisher.Publish(ctx, topic, e)
}

// shimManager records the end of a container whose shim died.
type shimManager struct {
	shim.Shim
	dir string
}

func (m shimManager) Stop(ctx context.Context, id string) (shim.StopStatus, error) {
	cwd, err := os.Getwd()
	if err != nil {
		return shim.StopStatus{}, err
	}
	bundle := filepath.Join(filepath.Dir(cwd), id)
	oom := oomKills(bundleCgroup(bundle)) > 0
	if err := rememberRoot(bundle); err != nil {
		return shim.StopStatus{}, err
	}
	st, err := m.Shim.Stop(ctx, id)
	if err != nil || m.dir == "" || st.Pid == 0 {
		return st, err
	}
	if old, ok := readExit(m.dir, id); !ok || old.PID != st.Pid {
		_ = exitRecord{PID: st.Pid, Status: st.ExitStatus, Time: st.ExitedAt, OOM: oom}.write(m.dir, id)
	}
	return st, nil
}

// rememberRoot writes down where the OCI runtime keeps its state, if the shim
// died before it could. Without that, the state would be looked for, and its
// folder made, where a containerd of the distribution has it.
func rememberRoot(bundle string) error {
	state := filepath.Dir(filepath.Dir(filepath.Dir(bundle)))
	if filepath.Base(state) != "state" {
		return nil // not a containerd of ours
	}
	opts, err := runc.ReadOptions(bundle)
	if err != nil || opts != nil {
		return err
	}
	err = runc.WriteOptions(bundle, &options.Options{Root: filepath.Join(filepath.Dir(state), "runc")})
	if errors.Is(err, os.ErrNotExist) {
		return nil // there is no bundle, so there is nothing to stop
	}
	return err
}
