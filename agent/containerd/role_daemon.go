package containerd

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/cmd/containerd/server"
	srvconfig "github.com/containerd/containerd/v2/cmd/containerd/server/config"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/version"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	// The parts of containerd that are needed to run containers, and no others.
	_ "github.com/containerd/containerd/v2/core/runtime/v2"
	_ "github.com/containerd/containerd/v2/plugins/content/local/plugin"
	_ "github.com/containerd/containerd/v2/plugins/diff/walking/plugin"
	_ "github.com/containerd/containerd/v2/plugins/events"
	_ "github.com/containerd/containerd/v2/plugins/gc"
	_ "github.com/containerd/containerd/v2/plugins/leases"
	_ "github.com/containerd/containerd/v2/plugins/metadata"
	_ "github.com/containerd/containerd/v2/plugins/mount"
	_ "github.com/containerd/containerd/v2/plugins/server/grpc"
	_ "github.com/containerd/containerd/v2/plugins/server/ttrpc"
	_ "github.com/containerd/containerd/v2/plugins/services/containers"
	_ "github.com/containerd/containerd/v2/plugins/services/content"
	_ "github.com/containerd/containerd/v2/plugins/services/diff"
	_ "github.com/containerd/containerd/v2/plugins/services/events"
	_ "github.com/containerd/containerd/v2/plugins/services/healthcheck"
	_ "github.com/containerd/containerd/v2/plugins/services/images"
	_ "github.com/containerd/containerd/v2/plugins/services/introspection"
	_ "github.com/containerd/containerd/v2/plugins/services/leases"
	_ "github.com/containerd/containerd/v2/plugins/services/namespaces"
	_ "github.com/containerd/containerd/v2/plugins/services/snapshots"
	_ "github.com/containerd/containerd/v2/plugins/services/tasks"
	_ "github.com/containerd/containerd/v2/plugins/services/version"
	_ "github.com/containerd/containerd/v2/plugins/services/warning"
	_ "github.com/containerd/containerd/v2/plugins/snapshots/native/plugin"
	_ "github.com/containerd/containerd/v2/plugins/snapshots/overlay/plugin"
)

// childConfig is the file that the daemon role reads; Daemon writes it.
type childConfig struct {
	Root        string `json:"root"`
	State       string `json:"state"`
	Address     string `json:"address"`
	ShimSockets string `json:"shim_sockets"`
	Exits       string `json:"exits"`
	LogLevel    string `json:"log_level"`
}

// runDaemon is containerd.
func runDaemon(args []string) int {
	if err := serveContainerd(args); err != nil {
		fmt.Fprintf(os.Stderr, "containerd: %v\n", err)
		return 1
	}
	return 0
}

func serveContainerd(args []string) error {
	f := flag.NewFlagSet(daemonVerb, flag.ContinueOnError)
	file := f.String("config", "", "configuration file")
	if err := f.Parse(args); err != nil {
		return err
	}
	b, err := os.ReadFile(*file)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	var c childConfig
	if err := json.Unmarshal(b, &c); err != nil {
		return fmt.Errorf("read configuration %s: %w", *file, err)
	}
	// What is idle most of the time should be small; containerd allocates in
	// bursts when containers are made.
	debug.SetGCPercent(50)
	syscall.Umask(0o022)
	if err := log.SetLevel(c.LogLevel); err != nil {
		return err
	}

	for name, value := range map[string]string{
		// The shims inherit it. (containerd's own setting of their environment
		// does not reach the one that cleans up after a dead shim.)
		exitsEnv: c.Exits,
		// A shim's start is mostly the initialisation of packages that it does
		// not use; no garbage is worth collecting before the shim sets its own
		// percentage, which is the first thing it does.
		"GOGC": "off",
		// No program of the node is run on what an image holds.
		"CONTAINERD_DISABLE_PIGZ":  "1",
		"CONTAINERD_DISABLE_IGZIP": "1",
	} {
		if err := os.Setenv(name, value); err != nil {
			return err
		}
	}

	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT)
	// The reader of our output may be gone while we must live on.
	signal.Ignore(unix.SIGPIPE)

	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	config := c.server()
	if err := server.CreateTopLevelDirectories(config); err != nil {
		return err
	}
	if err := mount.SetTempMountLocation(filepath.Join(c.Root, "tmpmounts")); err != nil {
		return fmt.Errorf("make folder of temporary mounts: %w", err)
	}
	if _, err := mount.CleanupTempMounts(0); err != nil {
		log.G(ctx).WithError(err).Warn("unmount temporary mounts")
	}

	type result struct {
		srv *server.Server
		err error
	}
	// Opening the database blocks while another process holds it, and a signal
	// must end us even then.
	made := make(chan result, 1)
	go func() {
		srv, err := server.New(ctx, config)
		made <- result{srv, err}
	}()
	var srv *server.Server
	select {
	case <-signals:
		return nil
	case r := <-made:
		if r.err != nil {
			return r.err
		}
		srv = r.srv
	}
	if err := srv.Start(ctx); err != nil {
		srv.Stop()
		return err
	}
	boundLog(ctx, signals)
	cancel()
	srv.Stop()
	return nil
}

// boundLog keeps the log on standard error below a size, until a signal arrives.
func boundLog(ctx context.Context, signals <-chan os.Signal) {
	tick := time.NewTicker(time.Minute)
	defer tick.Stop()
	for {
		select {
		case <-signals:
			return
		case <-tick.C:
		}
		// It is opened for appending, so every writer goes on at the new end.
		if st, err := os.Stderr.Stat(); err == nil && st.Mode().IsRegular() && st.Size() > 4*maxLog {
			if err := os.Stderr.Truncate(0); err != nil {
				log.G(ctx).WithError(err).Warn("truncate log")
			}
		}
	}
}

// server makes containerd's own configuration. Everything that would
// otherwise lie in folders shared by all containerds of the host is placed.
func (c childConfig) server() *srvconfig.Config {
	return &srvconfig.Config{
		Version: version.ConfigVersion,
		Root:    c.Root,
		State:   c.State,
		// Metrics of gRPC calls, which nobody reads, on every call.
		DisabledPlugins: []string{"io.containerd.metrics.v1.grpc-prometheus", "io.containerd.metrics.v1.grpc-otel"},
		RequiredPlugins: []string{"io.containerd.runtime.v2.task", "io.containerd.server.v1.grpc", "io.containerd.server.v1.ttrpc"},
		Plugins: map[string]any{
			"io.containerd.server.v1.grpc":  map[string]any{"address": c.Address},
			"io.containerd.server.v1.ttrpc": map[string]any{"address": c.Address + ".ttrpc"},
			"io.containerd.shim.v1.manager": map[string]any{"socket_dir": c.ShimSockets},
			// Without it a loss of power leaves empty files in an image that
			// the database calls complete.
			"io.containerd.service.v1.diff-service": map[string]any{"default": []string{"walking"}, "sync_fs": true},
			// A removed file system frees its space soon, not at the hundredth change.
			"io.containerd.gc.v1.scheduler": map[string]any{"deletion_threshold": 1, "schedule_delay": "1s", "startup_delay": "5s"},
		},
	}
}
