package main

import (
	"cmp"
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"wherry.dev/agent/containerd"
	"wherry.dev/api"
	"wherry.dev/cluster"
	"wherry.dev/overlay"
	"wherry.dev/spec"
)

// doctor looks at the node of a daemon.
type doctor struct {
	c       daemonConfig
	member  *cluster.Member
	told    *hearsay
	network *overlay.Host
	paths   *paths
	child   *containerd.Daemon
	runtime *containerd.Runtime
	// own is this node's own socket for nodes.
	own *api.Client
}

// Checks looks at everything, within lookTime.
func (d doctor) Checks(ctx context.Context) []api.Check {
	underlay := underlayOf(d.member)()
	status := d.network.Status()
	h := hostLook{dataDir: d.c.dataDir, runDir: d.c.runDir, port: underlay.Port(), tunnels: d.tunnelPort(), running: true,
		networks: len(status.Applied) > 0, six: underlay.Addr().Unmap().Is6() || d.network.HasIPv6()}
	h.firewalls = func() ([]overlay.FirewallProblem, error) { return overlay.CheckFirewalls(d.c.runDir, underlay) }
	return look(ctx, append([]aLook{
		{"daemon", single(func(context.Context) api.Check {
			return well("daemon", d.member.Name(), "runs, %s, version %s", d.member.Role(), version)
		})},
		{"containerd", single(d.containerd)}, {"manager", d.managers}, {"certificate", single(d.certificate)}, {"network", d.networks}, {"path", d.paths.checks},
	}, h.looks()...))
}

// tunnelPort is the port of networks between hosts, as far as this node knows.
func (d doctor) tunnelPort() uint16 {
	port, known := d.network.TunnelPort()
	switch {
	case known:
		return port
	case d.member.Role() == spec.RoleManager:
		return d.member.Store().Snapshot().VXLANPort()
	}
	return spec.VXLANPort
}

func (d doctor) containerd(ctx context.Context) api.Check {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	list, err := d.runtime.List(ctx)
	return judgeContainerd(d.child.Address(), len(list), err)
}

func (d doctor) certificate(context.Context) api.Check {
	leaf := d.member.Identity().Leaf()
	if leaf == nil {
		return failing(well("certificate", "node", "there is none yet"), "without it the node is no member", "Wait until a manager leads, or look at the daemon's log.")
	}
	return judgeCertificate(time.Now(), leaf.NotBefore, leaf.NotAfter)
}

func (d doctor) networks(context.Context) []api.Check {
	status := d.network.Status()
	var out []api.Check
	for _, e := range status.Errors {
		out = append(out, judgeNetwork(e))
	}
	for _, c := range status.Conflicts {
		out = append(out, judgePublished(fmt.Sprintf("%s:%d/%s", c.Claim.IP, c.Claim.Port, c.Claim.Proto), c.Owner, c.Reason))
	}
	if len(out) == 0 {
		out = append(out, well("network", "host", "%s as wanted", count(len(status.Applied), "network")))
	}
	return out
}

// managers asks all managers how they are, at the same time.
func (d doctor) managers(ctx context.Context) []api.Check {
	ctx, cancel := context.WithTimeoutCause(ctx, askTime, fmt.Errorf("no answer within %s", askTime))
	defer cancel()
	peers := slices.Clone(d.told.managers())
	if len(peers) == 0 && d.member.Role() == spec.RoleManager {
		peers = []api.Peer{{ID: d.member.Node(), Name: d.member.Name(), Address: d.member.Address()}}
	}
	slices.SortFunc(peers, func(a, b api.Peer) int { return cmp.Compare(a.Name, b.Name) })
	answers := make([]managerAnswer, len(peers))
	var all sync.WaitGroup
	for i, p := range peers {
		all.Go(func() {
			answers[i] = d.ask(ctx, p)
			if answers[i].err != nil && ctx.Err() != nil {
				answers[i].err = context.Cause(ctx)
			}
		})
	}
	all.Wait()
	out := []api.Check{judgeQuorum(answers)}
	for _, a := range answers {
		out = append(out, judgeManager(a))
		if a.err == nil && a.peer.ID != d.member.Node() {
			out = append(out, judgeSkew(a.peer.Name, a.skew))
		}
	}
	return out
}

func (d doctor) ask(ctx context.Context, p api.Peer) managerAnswer {
	a := managerAnswer{peer: p}
	cl := d.own
	if p.ID != d.member.Node() {
		var tr http.RoundTripper
		if tr, a.err = d.member.Transport(p.ID); a.err != nil {
			return a
		}
		cl = api.NewNodeClient(tr)
	}
	began := time.Now()
	a.status, a.err = cl.Member(ctx)
	// The time in the answer is that of the middle of the question.
	middle := began.Add(time.Since(began) / 2)
	a.skew = a.status.Time.Sub(middle)
	return a
}
