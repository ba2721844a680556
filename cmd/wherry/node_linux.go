package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"wherry.dev/agent"
	"wherry.dev/agent/containerd"
	"wherry.dev/agent/keeper"
	"wherry.dev/api"
	"wherry.dev/api/server"
	"wherry.dev/cluster"
	"wherry.dev/cluster/store"
	"wherry.dev/overlay"
	"wherry.dev/reconciler"
	"wherry.dev/spec"
)

// underlayOf returns what the node advertises now; it follows the addresses of
// the host.
func underlayOf(member *cluster.Member) func() netip.AddrPort {
	return func() netip.AddrPort {
		addr, _ := netip.ParseAddrPort(member.Address()) // zero, which is unknown
		return addr
	}
}

// runNode wires the parts of a host together, from the bottom to the top, runs
// them until ctx ends or one of them fails, and takes them down the other way
// round: first what acts, then what it acts with. It returns
// cluster.ErrRoleChanged when the node is to go on in another role.
func runNode(ctx context.Context, c daemonConfig, bin string, log *slog.Logger) error {
	var member *cluster.Member
	var network *overlay.Host
	config := cluster.Config{
		DataDir: c.dataDir, NodeName: c.name, Advertise: c.advertise, Listen: c.listen(), Peers: c.peers, Recover: c.recover, VXLANPort: c.vxlanPort,
		Moved:    func() { network.UnderlayChanged() },
		Instance: c.instance, Version: version, Logger: log.With("part", "cluster"),
		Lead: func(ctx context.Context, epoch uint64) error {
			loop := reconciler.NewLoop(reconciler.Config{Store: member.Store(), Proposer: member, Logger: log.With("part", "reconciler")})
			return loop.Run(ctx, epoch)
		},
	}
	if c.join != "" {
		config.Join = &cluster.Join{Addr: c.join, Token: c.token}
	}
	member, err := cluster.Open(ctx, config)
	if err != nil {
		return err
	}
	if err := setPriority(member.Role()); err != nil {
		log.Warn("a busy host may look like a dead one to the other managers", "err", err)
	}
	manager := member.Role() == spec.RoleManager
	own, err := api.NewClient("unix://" + filepath.Join(c.runDir, "node.sock"))
	if err != nil {
		return err
	}
	// managers is this node's way to a manager: itself, if it is one.
	managers := own
	if !manager {
		managers = api.NewNodeClient(member.Manager())
	}
	told := lastWord(member.LastCluster())
	renewed := make(chan struct{}, 1)

	child := containerd.NewDaemon(containerd.DaemonConfig{DataDir: c.dataDir, RunDir: c.runDir, Binary: bin,
		Address: c.containerd, Logger: log.With("part", "containerd")})
	runtime, err := containerd.New(containerd.Config{Address: child.Address(), DataDir: c.dataDir, RunDir: c.runDir,
		Node: member.Node(), Binary: bin, Peers: imagePeers(member, told), Logger: log.With("part", "runtime")})
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
	var refused atomic.Bool // another host has this node's identity
	network = overlay.New(overlay.Config{Node: member.Node(), RunDir: c.runDir, DNS: keep, Underlay: underlayOf(member), MTU: c.mtu, Logger: log.With("part", "network")})
	host := agent.New(agent.Config{DataDir: c.dataDir, RunDir: c.runDir, Node: member.Node(), NodeName: c.name, Version: version,
		Images: runtime, Runtime: runtime, Execer: runtime, Exchanger: runtime, Network: network, Logs: keep, Manager: managers,
		Senders: senders{node: member.Node(), own: network, way: member.Transport, told: told}, MTU: network.MTU, Subnets: overlay.HostSubnets(member.Node()), Interfaces: overlay.HostInterfaces(member.Node()),
		Wake: runtime.Changed(), Ports: network.Ports, PortsChanged: network.PortsChanged(),
		Identity: func() (issuer, trusts string, format int) {
			return member.Identity().Issuer(), strings.Join(member.Identity().Trusts(), ","), store.Format
		},
		InfoChanged: renewed,
		Lease: func(ctx context.Context) (time.Duration, error) {
			l, err := managers.Lease(ctx, member.Node(), member.Instance())
			return l.For.D(), err
		},
		Refused: refused.Load,
		Fetch:   fetch(member.Transport),
		Leases:  keep, Cgroup: runtime.Cgroup, PurgeImages: runtime.RemoveAllImages,
		Logger: log.With("part", "agent")})
	ctx, endWork := context.WithCancel(ctx)
	defer endWork()
	gone := &leaver{member: member, managers: managers, host: host, network: network, end: endWork, log: log}
	ways := &paths{ways: network.Paths, try: member.Path, name: told.name, log: log.With("part", "paths")}
	look := doctor{c: c, member: member, told: told, network: network, paths: ways, child: child, runtime: runtime, own: own}
	srvConfig := server.Config{Resolver: resolver{runtime}, Nodes: nodes{member, own},
		Images: images{runtime}, Tasks: tasks{host, runtime, c.dataDir}, Volumes: host, Network: network, ContentKey: member.ContentKey(),
		Leaver: gone, Doctor: look.Checks, Registry: runtime.Registry(), Caller: callerOf(member), Managers: told.managers, Members: told.nodes,
		Node: member.Node(), Name: c.name, Version: version, Logger: log.With("part", "api")}
	if manager {
		srvConfig.Store, srvConfig.Proposer, srvConfig.Sessions, srvConfig.Enroller, srvConfig.Peers = member.Store(), member, member, enroller{member}, member
	}
	srv, err := server.New(srvConfig)
	if err != nil {
		return err
	}
	member.Serve(srv.Remote())

	// What the rest stands on ends only after the rest has.
	base, baseCtx := errgroup.WithContext(context.WithoutCancel(ctx))
	baseCtx, endBase := context.WithCancel(baseCtx)
	defer endBase()
	base.Go(func() error {
		err := member.Run(baseCtx)
		if errors.Is(err, cluster.ErrRemoved) {
			return gone.removed(baseCtx)
		}
		return err
	})
	base.Go(func() error { return child.Run(baseCtx) })
	base.Go(func() error { return runtime.Run(baseCtx) })
	base.Go(func() error {
		return serve(baseCtx, filepath.Join(c.runDir, "node.sock"), 0o600, srv.Handler(api.RuleNode, api.RuleManager))
	})

	defer context.AfterFunc(baseCtx, endWork)()
	work, workCtx := errgroup.WithContext(ctx)
	work.Go(func() error { return keep.Run(workCtx) })
	work.Go(func() error { return network.Run(workCtx) })
	work.Go(func() error { return host.Run(workCtx) })
	work.Go(func() error { return ways.Run(workCtx) })
	s := session{node: member.Node(), member: member, managers: managers, network: network, host: host, told: told, gone: gone, refused: &refused, log: log}
	work.Go(func() error { return s.follow(workCtx) })
	work.Go(func() error { return s.beat(workCtx) })
	work.Go(func() error { return watchIdentity(workCtx, member.Identity(), renewed) })
	work.Go(func() error { return pass(workCtx, network.MTUChanged(), renewed) })
	work.Go(func() error {
		select {
		case <-member.Ready():
		case <-workCtx.Done():
			return nil
		}
		if err := c.checkPort(member); err != nil {
			return err
		}
		log.Info("ready", "node", member.Node(), "role", member.Role(), "socket", filepath.Join(c.runDir, "wherry.sock"))
		return serve(workCtx, filepath.Join(c.runDir, "wherry.sock"), 0o660, srv.Handler(api.RuleOperator, api.RuleLocal))
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
	err = errors.Join(err, base.Wait())
	if gone.purged.Load() {
		err = errors.Join(err, removeTraces(c))
	}
	return err
}

// setPriority puts a manager above what else its host does. What is started
// from here goes back to the ordinary first.
func setPriority(role spec.NodeRole) error {
	if role == spec.RoleManager {
		return cluster.Urgent()
	}
	return cluster.Ordinary()
}

// removeTraces deletes both folders of a host that has left for good.
func removeTraces(c daemonConfig) error {
	var errs []error
	for _, dir := range []string{c.dataDir, c.runDir} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			errs = append(errs, fmt.Errorf("delete what is in %s: %w", dir, err))
		}
		for _, e := range entries {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				errs = append(errs, fmt.Errorf("delete what is in %s: %w", dir, err))
			}
		}
	}
	return errors.Join(errs...)
}
