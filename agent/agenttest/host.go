package agenttest

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"wherry.dev/agent"
	"wherry.dev/spec"
)

// Host is a node in memory: runtime, images, network, log keeper and managers.
// It outlives the agents that use it, as the real ones do. The exported fields
// are set before use.
type Host struct {
	// Image is what Ensure returns for every image; Ref and Digest are filled in.
	Image agent.ImageConfig
	// Contents are what the managers have. // :: content → bytes
	Contents map[spec.ContentID][]byte
	// Before is called at the beginning of each call, outside of locks; an
	// error is returned to the caller and nothing happens. Ops are named by
	// method: "Ensure", "Create", "Start", "Kill", "Remove", "List", "Exec",
	// "Attach", "Detach", "Withdrawn", "SetLogs", "SetLeases", "Report",
	// "Content", "Exchange", "Mount", "Unmount".
	Before func(ctx context.Context, op string, t spec.TaskID) error
	// After is called when a call has changed the host, outside of locks.
	After func(op string, t spec.TaskID)
	// OnExec answers Exec; nil succeeds at once. It may wait for ctx.
	OnExec func(ctx context.Context, t spec.TaskID, args []string) (output string, code int, err error)
	// Nodes are the hosts that may send to tasks of this one; none by default.
	Nodes []spec.NodeID
	// OnWithdrawn answers Withdrawn; nil succeeds at once. It may wait for ctx.
	OnWithdrawn func(ctx context.Context, n spec.NodeID, addrs []spec.Address) error
	// Wake is poked at every change of a process. Made by NewHost.
	Wake chan struct{}

	mu         sync.Mutex
	containers map[spec.TaskID]*container
	netns      map[spec.TaskID]spec.Sandbox
	sinks      []spec.LogSink
	leases     []spec.TaskLease
	statuses   map[spec.TaskID]spec.TaskStatus
	history    map[spec.TaskID][]spec.TaskStatus
	info       *spec.NodeInfo
	gone       []spec.VolumeID
	ports      [][]spec.PortStatus
	fetched    [][]spec.FetchStatus
	calls      []string
	starts     map[spec.TaskID]int
	kills      map[spec.TaskID][]int
	inside     map[spec.TaskID]string // :: call of the runtime under way
	mounted    map[string]bool        // :: folder that is memory
	faults     []string
	nextPID    int
}

// NewHost makes an empty host.
func NewHost() *Host {
	return &Host{
		Contents: map[spec.ContentID][]byte{}, Wake: make(chan struct{}, 1),
		containers: map[spec.TaskID]*container{}, netns: map[spec.TaskID]spec.Sandbox{},
		statuses: map[spec.TaskID]spec.TaskStatus{}, history: map[spec.TaskID][]spec.TaskStatus{},
		starts: map[spec.TaskID]int{}, kills: map[spec.TaskID][]int{}, inside: map[spec.TaskID]string{}, mounted: map[string]bool{}, nextPID: 100,
	}
}

// The compiler checks that Host is all that an agent needs.
var (
	_ agent.Images    = (*Host)(nil)
	_ agent.Exchanger = (*Host)(nil)
	_ agent.Tmpfs     = (*Host)(nil)
	_ agent.Runtime   = (*Host)(nil)
	_ agent.Execer    = (*Host)(nil)
	_ agent.Network   = (*Host)(nil)
	_ agent.Logs      = (*Host)(nil)
	_ agent.Manager   = (*Host)(nil)
	_ agent.Leases    = (*Host)(nil)
	_ agent.Senders   = (*Host)(nil)
)

func (h *Host) before(ctx context.Context, op string, t spec.TaskID) error {
	if h.Before != nil {
		if err := h.Before(ctx, op, t); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	h.mu.Lock()
	h.calls = append(h.calls, op+" "+string(t))
	h.mu.Unlock()
	return nil
}

func (h *Host) after(op string, t spec.TaskID) {
	if h.After != nil {
		h.After(op, t)
	}
}

func (h *Host) wake() {
	select {
	case h.Wake <- struct{}{}:
	default:
	}
}

// Ensure implements agent.Images.
func (h *Host) Ensure(ctx context.Context, r agent.ImageRequest) (agent.ImageConfig, error) {
	if err := h.before(ctx, "Ensure", ""); err != nil {
		return agent.ImageConfig{}, err
	}
	c := h.Image
	c.Ref, c.Digest = r.Image, r.Digest
	h.after("Ensure", "")
	return c, nil
}

// Attach implements agent.Network.
func (h *Host) Attach(ctx context.Context, s spec.Sandbox) (string, error) {
	if err := h.before(ctx, "Attach", s.Task); err != nil {
		return "", err
	}
	h.mu.Lock()
	h.netns[s.Task] = s
	h.mu.Unlock()
	h.after("Attach", s.Task)
	if s.Mode == "host" {
		return "", nil
	}
	return "/netns/" + string(s.Task), nil
}

// Gateways implements agent.Network: it is 192.0.2.1 on every network.
func (h *Host) Gateways(spec.NetworkID) ([]netip.Addr, error) {
	return []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, 1})}, nil
}

// Detach implements agent.Network.
func (h *Host) Detach(ctx context.Context, t spec.TaskID) error {
	if err := h.before(ctx, "Detach", t); err != nil {
		return err
	}
	h.mu.Lock()
	for id, c := range h.containers {
		if c.spec.NetNS == "/netns/"+string(t) {
			h.faults = append(h.faults, fmt.Sprintf("network of task %s removed under the container of task %s", t, id))
		}
	}
	delete(h.netns, t)
	h.mu.Unlock()
	h.after("Detach", t)
	return nil
}

// Senders implements agent.Senders.
func (h *Host) Senders([]spec.Address) []spec.NodeID { return slices.Clone(h.Nodes) }

// Withdrawn implements agent.Senders.
func (h *Host) Withdrawn(ctx context.Context, n spec.NodeID, addrs []spec.Address) error {
	if err := h.before(ctx, "Withdrawn", ""); err != nil {
		return err
	}
	if h.OnWithdrawn == nil {
		return nil
	}
	return h.OnWithdrawn(ctx, n, addrs)
}

// SetLogs implements agent.Logs.
func (h *Host) SetLogs(ctx context.Context, sinks []spec.LogSink) error {
	if err := h.before(ctx, "SetLogs", ""); err != nil {
		return err
	}
	h.mu.Lock()
	h.sinks = slices.Clone(sinks)
	h.mu.Unlock()
	h.after("SetLogs", "")
	return nil
}

// SetLeases implements agent.Leases. That a lease is over has no effect before
// Enforce is called.
func (h *Host) SetLeases(ctx context.Context, leases []spec.TaskLease) error {
	if err := h.before(ctx, "SetLeases", ""); err != nil {
		return err
	}
	h.mu.Lock()
	h.leases = slices.Clone(leases)
	h.mu.Unlock()
	h.after("SetLeases", "")
	return nil
}

// Leases is the list handed over last.
func (h *Host) Leases() []spec.TaskLease {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.leases)
}

// Enforce ends the processes whose lease is over at now, as the keeper does.
func (h *Host) Enforce(now int64) {
	for _, l := range h.Leases() {
		if now >= l.Deadline {
			h.End(l.Task, 137)
		}
	}
}

// Report implements agent.Manager.
func (h *Host) Report(ctx context.Context, r spec.Report) error {
	if err := h.before(ctx, "Report", ""); err != nil {
		return err
	}
	h.mu.Lock()
	if r.Info != nil {
		h.info = r.Info
	}
	if r.Ports != nil {
		h.ports = append(h.ports, slices.Clone(*r.Ports))
	}
	if r.Fetched != nil {
		h.fetched = append(h.fetched, slices.Clone(*r.Fetched))
	}
	for _, t := range r.Tasks {
		old := h.statuses[t.Task]
		if old.State != "" && t.Status.State.Before(old.State) || old.State.Terminal() && old.State != t.Status.State {
			h.faults = append(h.faults, fmt.Sprintf("task %s went back from %s to %s", t.Task, old.State, t.Status.State))
		}
		h.statuses[t.Task] = t.Status
		h.history[t.Task] = append(h.history[t.Task], t.Status)
	}
	h.gone = append(h.gone, r.VolumesRemoved...)
	h.mu.Unlock()
	h.after("Report", "")
	return nil
}

// Content implements agent.Manager.
func (h *Host) Content(ctx context.Context, id spec.ContentID) ([]byte, error) {
	if err := h.before(ctx, "Content", ""); err != nil {
		return nil, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	b, ok := h.Contents[id]
	if !ok {
		return nil, spec.NotFoundf("no content %s", id)
	}
	return b, nil
}

// Status is what was reported last of a task.
func (h *Host) Status(t spec.TaskID) spec.TaskStatus {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.statuses[t]
}

// History is all that was reported of a task.
func (h *Host) History(t spec.TaskID) []spec.TaskStatus {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.history[t])
}

// Info is what the node last said of itself; nil when it has said nothing.
func (h *Host) Info() *spec.NodeInfo {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.info
}

// VolumesRemoved are the volumes reported as removed, in order.
func (h *Host) VolumesRemoved() []spec.VolumeID {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.gone)
}

// Starts is how many processes a task has had.
func (h *Host) Starts(t spec.TaskID) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.starts[t]
}

// Kills are the signals that a task's process got.
func (h *Host) Kills(t spec.TaskID) []int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.kills[t])
}

// Calls are all calls so far, as "Op TASK", in order.
func (h *Host) Calls() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.calls)
}

// Sinks is the list of log sinks handed over last.
func (h *Host) Sinks() []spec.LogSink {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.sinks)
}

// Left names what exists on the host: containers and namespaces.
func (h *Host) Left() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var out []string
	for id := range h.containers {
		out = append(out, "container "+string(id))
	}
	for id := range h.netns {
		out = append(out, "netns "+string(id))
	}
	slices.Sort(out)
	return out
}

// Faults are breaches of a contract by the agent.
func (h *Host) Faults() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.faults)
}

// writeLogLocked appends to a task's log as the keeper does.
func (h *Host) writeLogLocked(t spec.TaskID, text string) {
	i := slices.IndexFunc(h.sinks, func(k spec.LogSink) bool { return k.Task == t })
	if i < 0 {
		return
	}
	f, err := os.OpenFile(h.sinks[i].File, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		h.faults = append(h.faults, err.Error())
		return
	}
	defer f.Close()
	b, err := json.Marshal(map[string]string{"log": text + "\n", "stream": "stdout", "time": time.Now().Format(time.RFC3339Nano)})
	if err == nil {
		_, err = f.Write(append(b, '\n'))
	}
	if err != nil {
		h.faults = append(h.faults, err.Error())
	}
}

// Fetched are the lists of images that were reported, in order.
func (h *Host) Fetched() [][]spec.FetchStatus {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.fetched)
}

// Ports are the lists of ports that were reported, in order.
func (h *Host) Ports() [][]spec.PortStatus {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.ports)
}
