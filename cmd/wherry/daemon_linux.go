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
	"golang.org/x/sys/unix"

	"wherry.dev/agent/containerd"
	"wherry.dev/agent/keeper"
	"wherry.dev/api"
	"wherry.dev/cluster"
	"wherry.dev/overlay"
	"wherry.dev/spec"
)

// role runs one of the hidden roles of the binary: containerd, its shim, a
// container's init, the keeper.
func role(args []string) (code int, ok bool) {
	run, ok := containerd.Role(args)
	if !ok && len(args) > 1 && args[1] == "keeper" {
		run, ok = func() int { return keeper.Main(args[2:]) }, true
	}
	if !ok {
		return 0, false
	}
	// The daemon that started it may be a manager, which has a higher priority;
	// one that cannot be given back was not there.
	_ = cluster.Ordinary()
	return run(), true
}

// daemonConfig are the flags of the daemon.
type daemonConfig struct {
	dataDir, runDir string
	name, advertise string
	join, token     string
	tokenFile       string
	peers           []string
	recover         bool
	instance        string // of this process
	containerd      string
	vxlanPort       uint16
	mtu             int // the most that the underlay carries; 0 is as its device says
	logLevel        string
}

func (a *app) addDaemon(root *cobra.Command) {
	var c daemonConfig
	cmd := &cobra.Command{
		Use: "daemon", Short: "Run this host's part of the cluster", Args: noArgs("it has flags only"),
		Long: "Run this host's part of the cluster. On an empty data folder it makes a cluster of one,\n" +
			"or with --join and a token becomes a node of another one: `wherry token worker` on a manager\n" +
			"prints the whole line. Who lists the processes of the host sees --token, but not the token in a file\n" +
			"(--token-file) or in the environment (WHERRY_TOKEN).\n" +
			"Containers outlive the daemon: it may be stopped, killed and upgraded under them.",
		Example: "  wherry daemon\n  wherry daemon --join 192.0.2.1:4477 --token WHERRY-1-…\n" +
			"  wherry daemon --join 192.0.2.1:4477 --token-file token",
		RunE: func(cmd *cobra.Command, _ []string) error { return a.daemon(cmd.Context(), c) },
	}
	f := cmd.Flags()
	f.StringVar(&c.dataDir, "data-dir", defaultDataDir, "folder for everything that must last")
	f.StringVar(&c.runDir, "run-dir", "/run/wherry", "folder for sockets and what ends with the boot")
	f.StringVar(&c.name, "name", "", "name of this node (default: the host's)")
	f.StringVar(&c.advertise, "advertise", "", "IP[:PORT] that others reach this node at (default: found out, port 4477)")
	f.StringVar(&c.join, "join", "", "IP:PORT of a manager of the cluster to join; needs a token")
	f.StringVar(&c.token, "token", "", "token to join with (WHERRY_TOKEN)")
	f.StringVar(&c.tokenFile, "token-file", "", "file with the token to join with, instead of --token")
	f.StringSliceVar(&c.peers, "peer", nil, "IP:PORT of any node of this cluster, should all known addresses be outdated")
	f.BoolVar(&c.recover, "recover", false, "make this manager the only one: when the majority of managers is lost for ever")
	f.StringVar(&c.containerd, "containerd", "", "socket of a running containerd to use instead of the own one")
	f.Uint16Var(&c.vxlanPort, "vxlan-port", 0, "UDP port of networks between hosts, chosen for ever when the first daemon makes a cluster (default 4478)")
	f.IntVar(&c.mtu, "mtu", 0, "most bytes in a packet to other hosts, when less arrives than the device takes (default: as the device)")
	f.StringVar(&c.logLevel, "log-level", "info", "debug, info, warn or error")
	root.AddCommand(cmd)
}

// daemon claims the folders and runs this host's part of the cluster, again
// and again as long as it only gets another role in it.
func (a *app) daemon(ctx context.Context, c daemonConfig) error {
	if os.Geteuid() != 0 {
		return exitWith(exitFailed, "the daemon makes containers and networks and so needs root; start it with sudo")
	}
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.logLevel)); err != nil {
		return exitWith(exitUsage, "--log-level %q: want debug, info, warn or error", c.logLevel)
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	fromEnv, _ := a.env(tokenEnv)
	// It is no concern of the programs that are started from here.
	if err := os.Unsetenv(tokenEnv); err != nil {
		return fmt.Errorf("forget %s: %w", tokenEnv, err)
	}
	if err := c.prepare(fromEnv); err != nil {
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
	c.instance = requestID()
	for {
		err := runNode(ctx, c, bin, log)
		if ctx.Err() != nil || !errors.Is(err, cluster.ErrRoleChanged) {
			return err
		}
		log.Info("this node has another role now, starting again in it")
		c.recover = false
	}
}

// tokenEnv may hold the token to join with. Without --join it means nothing.
const tokenEnv = "WHERRY_TOKEN"

// findToken fills in the token to join with, from its file or the environment.
func (c *daemonConfig) findToken(fromEnv string) error {
	switch {
	case c.token != "" && c.tokenFile != "":
		return exitWith(exitUsage, "--token and --token-file: only one of them")
	case c.tokenFile != "" && c.join != "":
		b, err := os.ReadFile(c.tokenFile)
		if err != nil {
			return fmt.Errorf("read the token to join with: %w; a host that has joined needs neither --join nor --token-file", err)
		}
		if c.token = strings.TrimSpace(string(b)); c.token == "" {
			return exitWith(exitFailed, "the token file %s is empty; `wherry token worker --quiet` on a manager prints a token", c.tokenFile)
		}
	case c.join != "" && c.token == "":
		c.token = strings.TrimSpace(fromEnv)
	}
	if (c.join == "") != (c.token == "" && c.tokenFile == "") {
		return exitWith(exitUsage, "--join and a token (--token, --token-file or %s) belong together; `wherry token worker` on a manager prints the whole line", tokenEnv)
	}
	return nil
}

// prepare checks the flags, makes the folders and fills in defaults. fromEnv is
// the token in the environment.
func (c *daemonConfig) prepare(fromEnv string) error {
	if err := c.findToken(fromEnv); err != nil {
		return err
	}
	if c.mtu != 0 && (c.mtu < overlay.LeastMTU || c.mtu > overlay.MostMTU) {
		return exitWith(exitUsage, "--mtu %d: want %d to %d bytes, or nothing for what the device takes", c.mtu, overlay.LeastMTU, overlay.MostMTU)
	}
	if c.join != "" && c.vxlanPort != 0 {
		return exitWith(exitUsage, "--vxlan-port is for the first daemon of a cluster, which tells the others; leave it out with --join")
	}
	if c.vxlanPort != 0 && c.listen() == fmt.Sprintf(":%d", c.vxlanPort) {
		return exitWith(exitUsage, "--vxlan-port %d is the port of --advertise; take another one for one of the two", c.vxlanPort)
	}
	if c.join != "" && c.recover {
		return exitWith(exitUsage, "--recover is for a manager that has lost the others, --join for a new node: only one of them")
	}
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

// checkPort refuses a port of networks that is not the cluster's.
func (c *daemonConfig) checkPort(m *cluster.Member) error {
	switch {
	case c.vxlanPort == 0:
	case m.Role() != spec.RoleManager:
		return spec.Conflictf("--vxlan-port is for the first daemon of a cluster, and this node is a worker; leave it out: the managers tell the port")
	case m.Store().Snapshot().VXLANPort() != c.vxlanPort:
		return spec.Conflictf("--vxlan-port %d: the networks of this cluster use UDP port %d since it was made, and cannot change; leave the flag out", c.vxlanPort, m.Store().Snapshot().VXLANPort())
	}
	return nil
}

// listen is the address of the node's one port.
func (c *daemonConfig) listen() string {
	if _, port, err := net.SplitHostPort(c.advertise); err == nil && port != "" {
		return ":" + port
	}
	return ":" + api.DefaultPort
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

// restore makes a data folder out of a backup.
func restore(dir string, backup io.Reader, key string) error {
	return cluster.Restore(dir, backup, []byte(key))
}
