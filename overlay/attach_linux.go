package overlay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path"
	"slices"
	"strings"

	"wherry.dev/spec"
)

// taskSysctls are settings of every task's namespace: ports below 1024 and
// ping need no privilege, since the namespace is the task's own. What its
// addresses and routes are is said here and not by whoever on the network
// claims to be a router; links take that over when they are made.
func taskSysctls() map[string]string {
	return map[string]string{
		"net/ipv4/ip_unprivileged_port_start": "0",
		"net/ipv4/ping_group_range":           "0 2147483647",
		sysctl6("default", "accept_ra"):       "0",
	}
}

// taskSysctls6 are those of a task with IPv6: no link makes itself an address,
// and each may have one, whatever new namespaces have from the host.
func taskSysctls6() map[string]string {
	return map[string]string{sysctl6("default", "addr_gen_mode"): "1", sysctl6("default", "disable_ipv6"): "0"}
}

// Attach makes the namespace of a task, connects it to its networks and
// returns the namespace's path, or "" when the task uses the host's. When it
// returns, names resolve inside. A sandbox that exists is verified and
// repaired, never rebuilt: addresses and connections stay.
//
// The error is of class spec.ErrUnavailable when a network's document is not
// here yet or another Attach of the task is under way, spec.ErrConflict when a
// published port of the task's service is taken or an interface of the host that
// a network is on is missing, and spec.ErrInvalid when one
// cannot be published at all or the kernel refuses a setting of the sandbox.
func (h *Host) Attach(ctx context.Context, s spec.Sandbox) (netns string, err error) {
	if s.Mode == "host" {
		return "", nil
	}
	t, nets, err := h.begin(s)
	if err != nil {
		return "", fmt.Errorf("attach task %s: %w", s.Task, err)
	}
	netns, err = h.attach(ctx, t, nets)
	h.end(t, err == nil)
	if err == nil {
		err = h.sendDNS(ctx, false)
	}
	if err != nil {
		return "", fmt.Errorf("attach task %s: %w", s.Task, err)
	}
	return netns, nil
}

// begin takes the task away from the loop.
func (h *Host) begin(s spec.Sandbox) (*task, []spec.HostNetwork, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.openLocked(); err != nil {
		return nil, nil, err
	}
	usable := Input{Node: h.c.Node, Networks: h.documentsLocked()}.networks()
	for _, a := range s.Addresses {
		if _, ok := usable[a.Network]; !ok && s.Mode != "none" {
			return nil, nil, spec.Unavailablef("network %s is not on this node yet", a.Network)
		}
		if err := checkAddress(s, a); err != nil {
			return nil, nil, err
		}
	}
	t := h.tasks[s.Task]
	switch {
	case h.doomed[s.Task]:
		return nil, nil, spec.Unavailablef("its previous sandbox is being removed")
	case t == nil:
		t = &task{}
		h.tasks[s.Task] = t
	case t.busy:
		return nil, nil, spec.Unavailablef("it is being attached already")
	}
	h.gen++
	t.Sandbox, t.busy, t.gen, t.inside, t.docs = s, true, h.gen, nil, h.docs
	return t, h.documentsLocked(), nil
}

// checkAddress refuses an address that a sandbox cannot have.
func checkAddress(s spec.Sandbox, a spec.Address) error {
	if _, err := netip.ParsePrefix(a.IP); err != nil {
		return spec.Invalidf("address %q on network %s: %v", a.IP, a.Network, err)
	}
	if a.IP6 == "" {
		return nil
	}
	if p, err := netip.ParsePrefix(a.IP6); err != nil || !p.Addr().Is6() {
		return spec.Invalidf("address %q on network %s is no IPv6 address with prefix length", a.IP6, a.Network)
	}
	for k, v := range s.Sysctls {
		if p := sysctlPath(k); path.Base(p) == "disable_ipv6" && p != sysctl6("lo", "disable_ipv6") && strings.TrimSpace(v) != "0" {
			return spec.Invalidf("sysctl %s=%s leaves the task without the IPv6 address that it has on network %s; leave the sysctl out", k, v, a.Network)
		}
	}
	return nil
}

// end gives the task back to the loop. A sandbox that was not finished is
// forgotten if nothing of it exists, else the loop goes on with it.
func (h *Host) end(t *task, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.gen++
	t.busy, t.gen = false, h.gen
	t.ready = t.ready || ok
	if h.tasks[t.Task] != t { // detached meanwhile
		if err := h.spaces.condemn(t.Task); err != nil {
			h.log.Warn("cannot remove a sandbox", "task", t.Task, "err", err)
		}
		h.doomed[t.Task] = true
		h.changedLocked()
		return
	}
	if !ok {
		if !h.spaces.exists(t.Task) {
			delete(h.tasks, t.Task)
		}
		h.changedLocked()
	}
	if t.docs != h.docs {
		h.changedLocked() // the loop left the task out when it changed the others
	}
}

func (h *Host) attach(ctx context.Context, t *task, nets []spec.HostNetwork) (string, error) {
	s := t.Sandbox
	existed := h.spaces.exists(s.Task)
	if !existed {
		if err := h.portsFree(s, h.input(nets)); err != nil {
			return "", err
		}
	}
	netns, err := h.spaces.make(s)
	if err != nil {
		return "", err
	}
	err = h.connect(s, nets, existed)
	if errors.Is(err, errNoBridge) || errors.As(err, new(*parentError)) {
		h.converge(false)
		err = h.connect(s, nets, true)
	}
	if errors.Is(err, errNoBridge) {
		return "", spec.Unavailablef("%v; the network could not be made: %s", err, strings.Join(h.Status().Errors, "; "))
	}
	if err != nil {
		return "", lanRefusal(s, err, h.Status().Errors)
	}
	return netns, ctx.Err()
}

// connect makes the task's part of the kernel what it ought to be. What has
// just been made is known to be empty and is not looked at.
func (h *Host) connect(s spec.Sandbox, nets []spec.HostNetwork, existed bool) error {
	in := h.input(nets)
	want := CompileTask(in, s)
	q := query{links: true, inside: []spec.TaskID{s.Task}, programs: in.NoEgress}
	for k, v := range sandboxSysctls(s, hasIPv6(want, s.Task)) {
		key := SysctlKey{NS: s.Task, Path: k}
		want.Sysctls[key] = v
		q.sysctls = append(q.sysctls, key)
	}
	have := NewState()
	have.Links[LinkID{s.Task, "lo"}] = Link{Kind: kindLoopback}
	if existed {
		seen, err := h.kernel.observe(q)
		if err != nil {
			return err
		}
		have = seen.state
		have.dropLinks(func(l LinkID) bool { _, ok := want.Links[l]; return !ok && l.NS == "" })
	}
	ops := Diff(have, want)
	var errs []error
	for i, err := range h.kernel.apply(ops) {
		if err = judgeSysctl(ops[i], s, err); err != nil {
			errs = append(errs, err)
		}
	}
	if left, ok := want.inside()[s.Task]; ok && len(errs) == 0 {
		h.mu.Lock()
		defer h.mu.Unlock()
		if t := h.tasks[s.Task]; t != nil {
			t.inside = &left
		}
	}
	return errors.Join(errs...)
}

// sandboxSysctls returns the settings by path below /proc/sys.
func sandboxSysctls(s spec.Sandbox, six bool) map[string]string {
	out := taskSysctls()
	if six {
		maps.Copy(out, taskSysctls6())
	}
	for k, v := range s.Sysctls {
		out[sysctlPath(k)] = strings.Join(strings.Fields(v), " ")
	}
	return out
}

// hasIPv6 reports whether the task has an IPv6 address in s.
func hasIPv6(s State, task spec.TaskID) bool {
	for a := range s.Addrs {
		if a.Link.NS == task && strings.Contains(a.IP, ":") {
			return true
		}
	}
	return false
}

// sysctlPath is where below /proc/sys a setting is that a task asks for.
func sysctlPath(name string) string { return path.Clean(strings.ReplaceAll(name, ".", "/")) }

// judgeSysctl gives an error of a setting its class: a setting of the user
// that the kernel refuses will be refused again. One of ours that the kernel
// does not have is no error.
func judgeSysctl(o Op, s spec.Sandbox, err error) error {
	x, ok := o.Object.(Sysctl)
	if err == nil || !ok {
		return err
	}
	for k := range s.Sysctls {
		if sysctlPath(k) == x.Key.Path {
			return spec.Invalidf("sysctl %s cannot be set to %q in the task's namespace: %v", k, s.Sysctls[k], err)
		}
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// portsFree claims the published ports of the task's service.
func (h *Host) portsFree(s spec.Sandbox, in Input) error {
	networks := in.networks()
	mine, owner := map[spec.NetworkID][]spec.PublishedPort{}, ""
	for _, n := range in.Networks {
		for _, p := range n.Ports {
			// The longest owner that fits: service names may contain dots.
			if !strings.HasPrefix(s.Name, strings.Replace(p.Owner, "/", ".", 1)+".") || len(p.Owner) < len(owner) {
				continue
			}
			if len(p.Owner) > len(owner) {
				owner = p.Owner
				clear(mine)
			}
			mine[n.Network.ID] = append(mine[n.Network.ID], p)
		}
	}
	var all []Claim
	shared := map[Claim]bool{}
	for id, ports := range mine {
		for _, p := range ports {
			claims, err := networks[id].claims(p)
			if err != nil {
				return err
			}
			for _, c := range claims {
				shared[c] = shared[c] || p.Shared
			}
			all = append(all, claims...)
		}
	}
	slices.SortFunc(all, compareClaims)
	refused := h.kernel.claim(slices.Compact(all))
	for _, c := range all {
		if err := refused[c]; err != nil && !(shared[c] && errors.Is(err, errNoAddress)) {
			return err
		}
	}
	return nil
}

// Gateways returns the addresses of this host on a network, that of IPv4 and, if
// the network has IPv6 here, that; on a macvlan network it has none. Class spec.ErrUnavailable: the network's
// document is not here yet.
func (h *Host) Gateways(id spec.NetworkID) ([]netip.Addr, error) {
	h.mu.Lock()
	err := h.openLocked() // which reads the documents of an earlier process
	d, ok := h.nets[id]
	h.mu.Unlock()
	if err != nil {
		return nil, fmt.Errorf("find the gateway of network %s: %w", id, err)
	}
	n, usable := h.input([]spec.HostNetwork{d}).networks()[id]
	if !ok || !usable {
		return nil, spec.Unavailablef("network %s is not on this node yet", id)
	}
	if n.lan() {
		return nil, nil
	}
	out := []netip.Addr{n.gateway}
	if n.six() {
		out = append(out, n.gateway6)
	}
	return out, nil
}

// Detach removes the sandbox of a task. It returns as soon as the removal is
// certain; the work is done in the background. A task without sandbox is no
// error.
func (h *Host) Detach(_ context.Context, id spec.TaskID) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := h.openLocked(); err != nil {
		return fmt.Errorf("detach task %s: %w", id, err)
	}
	if h.tasks[id] == nil {
		return nil
	}
	if err := h.spaces.condemn(id); err != nil {
		return fmt.Errorf("detach task %s: %w", id, err)
	}
	delete(h.tasks, id)
	h.doomed[id] = true
	h.changedLocked()
	return nil
}

// removeDoomed removes the namespaces of tasks that were detached.
func (h *Host) removeDoomed() {
	h.mu.Lock()
	var gone []spec.TaskID
	for id := range h.doomed {
		gone = append(gone, id)
	}
	h.mu.Unlock()
	for _, id := range gone {
		if err := h.spaces.remove(id); err != nil {
			h.log.Warn("cannot remove a namespace; trying again", "task", id, "err", err)
			continue
		}
		h.mu.Lock()
		delete(h.doomed, id)
		h.mu.Unlock()
	}
}
