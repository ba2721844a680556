package agent

import (
	"cmp"
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"wherry.dev/spec"
)

// The times of reporting: changes are gathered for reportGather; a report that
// did not get through is tried again after 1/10 s to 5 s.
const (
	reportGather   = 30 * time.Millisecond
	reportRetry    = 100 * time.Millisecond
	reportRetryMax = 5 * time.Second
	reportTimeout  = 30 * time.Second
)

// reporter delivers the newest status of every task that changed, until the
// managers have acknowledged it.
type reporter struct {
	node    spec.NodeID
	manager Manager
	log     *slog.Logger
	wake    chan struct{} // capacity one

	mu    sync.Mutex
	info  *spec.NodeInfo
	tasks map[spec.TaskID]spec.TaskStatus      // :: not acknowledged yet
	gone  map[spec.VolumeID]struct{}           // :: not acknowledged yet
	moved map[spec.VolumeID]spec.VolumeFetched // :: not acknowledged yet
	ports *[]spec.PortStatus                   // not acknowledged yet
	told  *[]spec.PortStatus                   // the ports that were given last
	// images are what became of those that are to be had before their tasks; nil
	// before the first. untold is that list as long as it is not acknowledged.
	images []spec.FetchStatus
	untold *[]spec.FetchStatus
}

func newReporter(node spec.NodeID, m Manager, log *slog.Logger) *reporter {
	return &reporter{
		node: node, manager: m, log: log, wake: make(chan struct{}, 1),
		tasks: map[spec.TaskID]spec.TaskStatus{}, gone: map[spec.VolumeID]struct{}{}, moved: map[spec.VolumeID]spec.VolumeFetched{},
	}
}

func (r *reporter) nodeInfo(i spec.NodeInfo) {
	r.mu.Lock()
	r.info = &i
	r.mu.Unlock()
	poke(r.wake)
}

func (r *reporter) task(t spec.TaskID, s spec.TaskStatus) {
	r.mu.Lock()
	r.tasks[t] = s
	r.mu.Unlock()
	poke(r.wake)
}

func (r *reporter) volumeGone(v spec.VolumeID) {
	r.mu.Lock()
	r.gone[v] = struct{}{}
	r.mu.Unlock()
	poke(r.wake)
}

func (r *reporter) volumeFetched(f spec.VolumeFetched) {
	r.mu.Lock()
	r.moved[f.Volume] = f
	r.mu.Unlock()
	poke(r.wake)
}

// publish takes what became of the ports, and reports it when it is news.
func (r *reporter) publish(ports []spec.PortStatus) {
	if ports == nil {
		ports = []spec.PortStatus{} // on the wire, nil is "as before"
	}
	r.mu.Lock()
	news := r.told == nil || !slices.Equal(*r.told, ports)
	if news {
		r.ports, r.told = &ports, &ports
	}
	r.mu.Unlock()
	if news {
		poke(r.wake)
	}
}

// publishAgain reports the ports and images once more: to managers who may have forgotten
// them.
func (r *reporter) publishAgain() {
	r.mu.Lock()
	r.ports = r.told
	if r.images != nil {
		images := r.images
		r.untold = &images
	}
	r.mu.Unlock()
	poke(r.wake)
}

// take empties what is pending into a report.
func (r *reporter) take() (spec.Report, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := spec.Report{Node: r.node, Info: r.info, VolumesRemoved: slices.Sorted(maps.Keys(r.gone)), Ports: r.ports, Fetched: r.untold}
	for id, s := range r.tasks {
		out.Tasks = append(out.Tasks, spec.TaskReport{Task: id, Status: s})
	}
	for _, id := range slices.Sorted(maps.Keys(r.moved)) {
		out.VolumesFetched = append(out.VolumesFetched, r.moved[id])
	}
	slices.SortFunc(out.Tasks, func(a, b spec.TaskReport) int { return cmp.Compare(a.Task, b.Task) })
	r.info, r.ports, r.untold = nil, nil, nil
	clear(r.tasks)
	clear(r.gone)
	clear(r.moved)
	return out, out.Info != nil || out.Ports != nil || out.Fetched != nil || len(out.Tasks)+len(out.VolumesRemoved)+len(out.VolumesFetched) > 0
}

// putBack returns what was not acknowledged, unless something newer came.
func (r *reporter) putBack(p spec.Report) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.info == nil {
		r.info = p.Info
	}
	if r.ports == nil {
		r.ports = p.Ports
	}
	if r.untold == nil {
		r.untold = p.Fetched
	}
	for _, t := range p.Tasks {
		if _, newer := r.tasks[t.Task]; !newer {
			r.tasks[t.Task] = t.Status
		}
	}
	for _, v := range p.VolumesRemoved {
		r.gone[v] = struct{}{}
	}
	for _, f := range p.VolumesFetched {
		if _, newer := r.moved[f.Volume]; !newer {
			r.moved[f.Volume] = f
		}
	}
}

// watchInfo reports what the node is, now and whenever its identity, the MTU of
// its network, its interfaces or what the host reaches changes.
func (a *Agent) watchInfo(ctx context.Context, info spec.NodeInfo) {
	look := time.NewTicker(a.c.Resync)
	defer look.Stop()
	var told spec.NodeInfo
	for again := true; ; {
		if a.c.Identity != nil {
			info.Issuer, info.Trusts, info.Format = a.c.Identity()
		}
		if a.c.MTU != nil {
			info.MTU = a.c.MTU()
		}
		if a.c.Subnets != nil {
			info.Subnets = a.c.Subnets()
		}
		if a.c.Interfaces != nil {
			info.Interfaces = a.c.Interfaces()
		}
		if again || info != told {
			a.report.nodeInfo(info)
			told = info
		}
		again = false
		select {
		case <-ctx.Done():
			return
		case <-a.c.InfoChanged:
			again = true // also when it is as before
		case <-look.C:
		}
	}
}

// watchPorts gives the ports to the reporter now and at every change.
func (a *Agent) watchPorts(ctx context.Context) {
	for {
		if ports, known := a.c.Ports(); known {
			a.report.publish(ports)
		}
		select {
		case <-ctx.Done():
			return
		case <-a.c.PortsChanged:
		}
	}
}

// run delivers until ctx ends.
func (r *reporter) run(ctx context.Context) {
	fails := 0
	for {
		if fails == 0 {
			select {
			case <-ctx.Done():
				return
			case <-r.wake:
			}
		}
		if !sleep(ctx, reportGather) {
			return
		}
		p, any := r.take()
		if !any {
			fails = 0
			continue
		}
		rctx, cancel := context.WithTimeout(ctx, reportTimeout)
		err := r.manager.Report(rctx, p)
		cancel()
		if err == nil {
			fails = 0
			continue
		}
		r.putBack(p)
		if ctx.Err() != nil {
			return
		}
		if fails++; fails == 1 {
			r.log.Warn("report not delivered, trying again", "tasks", len(p.Tasks), "err", err)
		}
		if !sleep(ctx, min(reportRetry<<min(fails-1, 10), reportRetryMax)) {
			return
		}
	}
}
