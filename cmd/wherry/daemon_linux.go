package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"wherry.dev/agent"
	"wherry.dev/agent/containerd"
	"wherry.dev/agent/keeper"
	"wherry.dev/api"
	"wherry.dev/api/server"
	"wherry.dev/cluster"
	"wherry.dev/overlay"
	"wherry.dev/reconciler"
	"wherry.dev/spec"
)

// role runs one of the hidden roles of the binary: containerd, its shim, a
// container's init, the keeper.
func role(args []string) (code int, ok bool) {
	if run, ok := containerd.Role(args); ok {
		return run(), true
	}
	if len(args) > 1 && args[1] == "keeper" {
		return keeper.Main(args[2:]), true
	}
	return 0, false
}

// daemonConfig are the flags of the daemon.
type daemonConfig struct {
	dataDir, runDir string
	name, advertise string
	containerd      string
	logLevel        string
}

func (a *app) addDaemon(root *cobra.Command) {
	var c daemonConfig
	cmd := &cobra.Command{
		Use: "daemon", Short: "Run this host's part of the cluster", Args: noArgs("it has flags only"),
		Long: "Run this host's part of the cluster. On an empty data folder it makes a cluster of one.\n" +
			"Containers outlive the daemon: it may be stopped, killed and upgraded under them.",
		RunE: func(cmd *cobra.Command, _ []string) error { return a.daemon(cmd.Context(), c) },
	}
	f := cmd.Flags()
	f.StringVar(&c.dataDir, "data-dir", "/var/lib/wherry", "folder for everything that must last")
	f.StringVar(&c.runDir, "run-dir", "/run/wherry", "folder for sockets and what ends with the boot")
	f.StringVar(&c.name, "name", "", "name of this node (default: the host's)")
	f.StringVar(&c.advertise, "advertise", "", "IP[:PORT] that others reach this node at")
	f.StringVar(&c.containerd, "containerd", "", "socket of a running containerd to use instead of the own one")
	f.StringVar(&c.logLevel, "log-level", "info", "debug, info, warn or error")
	root.AddCommand(cmd)
}

// daemon wires the parts of a host together, from the bottom to the top, runs
// them until ctx ends or one of them fails, and takes them down the other way
// round: first what acts, then what it acts with.
func (a *app) daemon(ctx context.Context, c daemonConfig) error {
	if os.Geteuid() != 0 {
		return exitWith(exitFailed, "the daemon makes containers and networks and so needs root; start it with sudo")
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.logLevel)); err != nil {
		return exitWith(exitUsage, "--log-level %q: want debug, info, warn or error", c.logLevel)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	if err := c.prepare(); err != nil {
		return err
	}
	unlock, err := lockFolder(c.runDir)
	if err != nil {
		return err
	}
	defer unlock()
	bin, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the program itself: %w", err)
	}

	var member *cluster.Member
	member, err = cluster.Open(cluster.Config{
		DataDir: c.dataDir, NodeName: c.name, Advertise: c.advertise, Version: version, Logger: log.With("part", "cluster"),
		Lead: func(ctx context.Context, epoch uint64) error {
			loop := reconciler.NewLoop(reconciler.Config{Store: member.Store(), Proposer: member, Logger: log.With("part", "reconciler")})
			return loop.Run(ctx, epoch)
		},
	})
	if err != nil {
		return err
	}
	child := containerd.NewDaemon(containerd.DaemonConfig{DataDir: c.dataDir, RunDir: c.runDir, Binary: bin,
		Address: c.containerd, Logger: log.With("part", "containerd")})
	runtime, err := containerd.New(containerd.Config{Address: child.Address(), DataDir: c.dataDir, RunDir: c.runDir,
		Node: member.Node(), Binary: bin, Logger: log.With("part", "runtime")})
	if err != nil {
		return err
	}
	build, err := buildOf(bin)
	if err != nil {
		return err
	}
	keep, err := keeper.Ensure(ctx, keeper.Config{RunDir: c.runDir, Binary: bin, Version: build, Logger: log.With("part", "keeper")})
	if err != nil {
		return err
	}
	network := overlay.New(overlay.Config{Node: member.Node(), RunDir: c.runDir, DNS: keep, Logger: log.With("part", "network")})
	own, err := api.NewClient("unix://" + filepath.Join(c.runDir, "node.sock"))
	if err != nil {
		return err
	}
	host := agent.New(agent.Config{DataDir: c.dataDir, RunDir: c.runDir, Node: member.Node(), NodeName: c.name, Version: version,
		Images: runtime, Runtime: runtime, Execer: runtime, Network: network, Logs: keep, Manager: own,
		Wake: runtime.Changed(), Ports: network.Ports, PortsChanged: network.PortsChanged(), Logger: log.With("part", "agent")})
	srv, err := server.New(server.Config{Store: member.Store(), Proposer: member, Resolver: resolver{runtime}, Nodes: nodes{member.Node(), own},
		Images: images{runtime}, Tasks: tasks{host, runtime, c.dataDir}, ContentKey: member.ContentKey(),
		Node: member.Node(), Version: version, Logger: log.With("part", "api")})
	if err != nil {
		return err
	}

	// What the rest stands on ends only after the rest has.
	base, baseCtx := errgroup.WithContext(context.WithoutCancel(ctx))
	baseCtx, endBase := context.WithCancel(baseCtx)
	base.Go(func() error { return member.Run(baseCtx) })
	base.Go(func() error { return child.Run(baseCtx) })
	base.Go(func() error { return runtime.Run(baseCtx) })
	base.Go(func() error {
		return serve(baseCtx, filepath.Join(c.runDir, "node.sock"), 0o600, srv.Handler(api.RuleNode, api.RuleManager))
	})

	ctx, endWork := context.WithCancel(ctx)
	defer endWork()
	defer context.AfterFunc(baseCtx, endWork)()
	work, workCtx := errgroup.WithContext(ctx)
	work.Go(func() error { return keep.Run(workCtx) })
	work.Go(func() error { return network.Run(workCtx) })
	work.Go(func() error { return host.Run(workCtx) })
	work.Go(func() error { return follow(workCtx, own, member, network, host, log) })
	work.Go(func() error {
		select {
		case <-member.Ready():
		case <-workCtx.Done():
			return nil
		}
		log.Info("ready", "node", member.Node(), "socket", filepath.Join(c.runDir, "wherry.sock"))
		return serve(workCtx, filepath.Join(c.runDir, "wherry.sock"), 0o660, srv.Handler(api.RuleOperator))
	})
	err = work.Wait()
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if left, lerr := runtime.List(end); lerr == nil && len(left) == 0 {
		// Nothing runs that would need names or logs.
		if serr := keep.Stop(end); serr != nil {
			log.Warn("keeper not stopped", "err", serr)
		}
	}
	endBase()
	return errors.Join(err, base.Wait())
}

// prepare makes the folders and fills in defaults.
func (c *daemonConfig) prepare() error {
	for _, dir := range []*string{&c.dataDir, &c.runDir} {
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return fmt.Errorf("find folder %s: %w", *dir, err)
		}
		*dir = abs
	}
	if len(c.runDir) > containerd.MaxRunDir {
		return exitWith(exitUsage, "--run-dir %s is longer than %d characters, and the addresses of sockets in it would not fit", c.runDir, containerd.MaxRunDir)
	}
	if err := os.MkdirAll(c.dataDir, 0o700); err != nil {
		return fmt.Errorf("make data folder: %w", err)
	}
	if err := os.MkdirAll(c.runDir, 0o755); err != nil {
		return fmt.Errorf("make run folder: %w", err)
	}
	if c.name == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("find the host's name: %w; give --name", err)
		}
		c.name = host
	}
	return nil
}

// lockFolder claims a run folder for this process, before anything in it is
// touched: what lies there belongs to the daemon that holds it.
func lockFolder(dir string) (unlock func(), err error) {
	path := filepath.Join(dir, "daemon.lock")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("claim run folder: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		b, _ := io.ReadAll(f) // the holder's pid is a courtesy
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, spec.Conflictf("another daemon (pid %s) uses the run folder %s; stop it, or give this one another --run-dir", strings.TrimSpace(string(b)), dir)
		}
		return nil, fmt.Errorf("claim run folder: %w", err)
	}
	if err := errors.Join(f.Truncate(0), writePID(f)); err != nil {
		f.Close()
		return nil, fmt.Errorf("claim run folder: %w", err)
	}
	return func() { f.Close() }, nil
}

func writePID(f *os.File) error {
	_, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())), 0)
	return err
}

// buildOf names the build of a program, so that the keeper of another build is
// replaced even where both call themselves by one version.
func buildOf(path string) (string, error) {
	st, err := os.Stat(path)
	if err != nil {
		return "", fmt.Errorf("look at the program itself: %w", err)
	}
	return fmt.Sprintf("%s-%x-%x", version, st.Size(), st.ModTime().UnixNano()), nil
}

// serve answers on a unix socket until ctx ends. A socket that is there was
// left by a dead daemon, since this one holds the run folder.
func serve(ctx context.Context, path string, mode os.FileMode, h http.Handler) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("replace socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	if err := os.Chmod(path, mode); err != nil {
		return errors.Join(fmt.Errorf("protect socket: %w", err), l.Close())
	}
	if gid, ok := groupID("wherry"); ok && mode&0o060 != 0 {
		if err := os.Chown(path, 0, gid); err != nil {
			return errors.Join(fmt.Errorf("give socket to group wherry: %w", err), l.Close())
		}
	}
	// Streams follow ctx, so that an end does not wait for those who read them.
	s := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, BaseContext: func(net.Listener) context.Context { return ctx }}
	stop := context.AfterFunc(ctx, func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if s.Shutdown(end) != nil {
			_ = s.Close() // what is left by now is cut off
		}
	})
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s: %w", path, err)
	}
	return nil
}

func groupID(name string) (int, bool) {
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, false
	}
	id, err := strconv.Atoi(g.Gid)
	return id, err == nil
}
