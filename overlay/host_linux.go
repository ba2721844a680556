package overlay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"wherry.dev/spec"
)

// Config of a Host.
type Config struct {
	// Node whose network it is. Everything made is marked with it.
	Node spec.NodeID
	// RunDir is the run folder of the daemon. The namespaces of tasks are
	// mounted in its folder netns, and networks.json is the last set of
	// documents. Nothing in it outlives a boot.
	RunDir string
	// Underlay returns the address and port that the node advertises, by which
	// other hosts reach it; zero while it is unknown. nil is never known. It is
	// asked at every look at the kernel, and must not block.
	Underlay func() netip.AddrPort
	// MTU is the most in bytes that the underlay is taken to carry, whatever its
	// device says; 0 is no bound.
	MTU int
	// DNS gets the resolvers and names; nil has no DNS.
	DNS DNS
	// Resync is the longest time between two looks at the kernel; 0 is 3 s.
	Resync time.Duration
	// Logger; nil discards.
	Logger *slog.Logger
}

// DNS is what answers names inside the tasks' namespaces.
type DNS interface {
	// SetDNS replaces all resolvers and tables. When it returns nil, every
	// resolver answers.
	SetDNS(ctx context.Context, resolvers []spec.Resolver, tables []spec.NameTable) error
}

const (
	defaultResync = 3 * time.Second
	// debounce is how long a burst of kernel events may take to end.
	debounce = 30 * time.Millisecond
	// dnsTimeout bounds one call of the loop to the DNS.
	dnsTimeout = 5 * time.Second
	// dnsRefresh is how often the tables are sent although nothing changed.
	dnsRefresh = 30 * time.Second
	// maxLogged bounds the operations of one pass that are logged one by one: a
	// bridge that comes back has thousands of entries.
	maxLogged = 50
	// maxPasses bounds how often a look at the kernel follows on a change.
	maxPasses = 4
)

// Host is the network of one host. All methods may be called concurrently.
type Host struct {
	c          Config
	log        *slog.Logger
	spaces     sandboxes
	openKernel func() (kernel, error)
	noIPv6     bool // of the kernel
	// wake says that what is wanted has changed, event that the kernel has.
	wake, event chan struct{}
	ports       chan struct{} // see PortsChanged
	mtus        chan struct{} // see MTUChanged

	// passMu is held for one convergence; mu is taken inside it, never around.
	passMu sync.Mutex

	mu       sync.Mutex
	kernel   kernel // nil until open
	noEgress bool   // of the kernel; known when it is open
	nets     map[spec.NetworkID]spec.HostNetwork
	known    bool // nets has been set, so that the rest may be removed
	tasks    map[spec.TaskID]*task
	doomed   map[spec.TaskID]bool // namespaces to be removed
	gen      uint64               // of the task that changed last
	change   uint64               // counts changes of what is wanted
	docs     uint64               // counts changes of nets
	at       uint64               // change that the kernel was brought to
	tried    uint64               // change for which a pass has done what it could
	owed     map[string]bool      // operations that it could not do
	unsaved  bool                 // nets has changed since it was written to the run folder
	mtu      int                  // of the underlay, as it was last seen
	status   Status
	seen     string // the problems that were logged last

	dns dnsSender
	led *ledger
	// walls are read by Run alone; nil are not looked at.
	walls *wallWatch
}

// task is a sandbox and what is going on with it.
type task struct {
	spec.Sandbox
	// busy: Attach is at work on it, and the loop leaves it alone.
	busy bool
	// gen changes with every Attach, so that the loop notices one that came
	// and went while it was reading the kernel.
	gen uint64
	// ready: its namespace can take a resolver.
	ready bool
	// inside is what its namespace was left with; nil is not known.
	inside *State
	// docs is Host.docs as Attach found it.
	docs uint64
}

// sandboxes keeps the namespaces of tasks; *namespaces is the real one.
type sandboxes interface {
	load() ([]spec.Sandbox, error)
	make(s spec.Sandbox) (path string, err error)
	path(t spec.TaskID) string
	exists(t spec.TaskID) bool
	condemn(t spec.TaskID) error
	remove(t spec.TaskID) error
}

// Status says how the network of a host is.
type Status struct {
	// Applied is the clock of the document that each network was last brought
	// to without an error.
	Applied map[spec.NetworkID]spec.Clock
	// Ports are all that the documents publish, by network, and what became of
	// them; nil before the first look at what is wanted.
	Ports []spec.PortStatus
	// Conflicts are published ports that are not served.
	Conflicts []PortConflict
	// Repairs counts the operations that were needed although nothing wanted
	// had changed: somebody or something else had changed the kernel.
	Repairs uint64
	// Firewalls are chains of others that stand in the way.
	Firewalls []FirewallProblem
	// Errors of the last pass.
	Errors []string
}

// PortConflict is a published port that somebody else holds.
type PortConflict struct {
	Claim  Claim
	Owner  string // "stack/service"
	Reason string // names the holder
}

// New returns the host of c. It does nothing before Run or Attach.
func New(c Config) *Host {
	if c.Resync <= 0 {
		c.Resync = defaultResync
	}
	log := c.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	spaces := newNamespaces(c.RunDir)
	h := newHost(c, log, spaces, nil)
	h.openKernel = func() (kernel, error) {
		if h.noEgress = !hasEgressHook(); h.noEgress {
			log.Info("this kernel has no egress hook of nftables (Linux 5.16 has one); an eBPF program in each task takes its place")
		}
		return newLinuxKernel(c.Node, spaces, log)
	}
	h.walls = &wallWatch{}
	_, err := os.Stat("/proc/sys/net/ipv6")
	h.noIPv6 = errors.Is(err, os.ErrNotExist)
	return h
}

func newHost(c Config, log *slog.Logger, spaces sandboxes, open func() (kernel, error)) *Host {
	return &Host{
		c: c, log: log, spaces: spaces, openKernel: open, dns: dnsSender{to: c.DNS}, led: newLedger(c.DNS != nil),
		wake: make(chan struct{}, 1), event: make(chan struct{}, 1), ports: make(chan struct{}, 1), mtus: make(chan struct{}, 1),
		nets: map[spec.NetworkID]spec.HostNetwork{}, tasks: map[spec.TaskID]*task{}, doomed: map[spec.TaskID]bool{},
	}
}

// openLocked reads what an earlier process left.
func (h *Host) openLocked() error {
	if h.kernel != nil {
		return nil
	}
	k, err := h.openKernel()
	if err != nil {
		return err
	}
	boxes, err := h.spaces.load()
	if err != nil {
		return err
	}
	for _, s := range boxes {
		h.tasks[s.Task] = &task{Sandbox: s, ready: true}
	}
	nets, err := loadNetworks(h.c.RunDir)
	if err != nil {
		return err
	}
	for _, n := range nets {
		old, ok := h.nets[n.Network.ID]
		switch {
		case ok && old.Clock.Before(n.Clock), !ok && (!h.known || h.usedLocked(n.Network.ID)):
			h.nets[n.Network.ID] = n
		}
	}
	h.known = h.known || len(nets) > 0
	h.kernel = k
	return nil
}

// Set replaces the documents of all networks. A document that is older than
// the one that is there does not replace it. A network that is not in nets is
// removed as soon as no sandbox is on it.
func (h *Host) Set(nets []spec.HostNetwork) {
	h.mu.Lock()
	defer h.mu.Unlock()
	next := map[spec.NetworkID]spec.HostNetwork{}
	for _, n := range nets {
		if old, ok := h.nets[n.Network.ID]; ok && n.Clock.Before(old.Clock) {
			n = old
		}
		next[n.Network.ID] = n
	}
	same := h.known && len(next) == len(h.nets)
	for id, n := range next {
		old := h.nets[id]
		old.Clock = n.Clock
		same = same && reflect.DeepEqual(old, n)
	}
	for id, n := range h.nets {
		if _, ok := next[id]; !ok && h.usedLocked(id) {
			next[id], same = n, false
		}
	}
	h.nets, h.known = next, true
	if !same {
		h.unsaved = true
		h.docs++
		h.changedLocked()
		return
	}
	for id, n := range next {
		if _, ok := h.status.Applied[id]; ok && h.at == h.change {
			h.status.Applied[id] = n.Clock
		}
	}
}

// usedLocked reports whether a sandbox is on the network. Such a network stays
// although its document was withdrawn: nothing is taken from a container that
// may be running, and the documents of a new session may come one by one.
func (h *Host) usedLocked(id spec.NetworkID) bool {
	for _, t := range h.tasks {
		if slices.ContainsFunc(t.Addresses, func(a spec.Address) bool { return a.Network == id }) {
			return true
		}
	}
	return false
}

func (h *Host) changedLocked() {
	h.change++
	signal(h.wake)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Status returns how things are. The caller owns it.
func (h *Host) Status() Status {
	h.mu.Lock()
	defer h.mu.Unlock()
	s := h.status
	s.Applied = maps.Clone(s.Applied)
	s.Ports = slices.Clone(s.Ports)
	s.Conflicts, s.Firewalls, s.Errors = slices.Clone(s.Conflicts), slices.Clone(s.Firewalls), slices.Clone(s.Errors)
	return s
}

// underlay returns what the node advertises; the zero value is unknown.
func (h *Host) underlay() netip.AddrPort {
	if h.c.Underlay == nil {
		return netip.AddrPort{}
	}
	return h.c.Underlay()
}

// input is what is to be compiled of the documents, as far as it is known
// before a look at the kernel.
func (h *Host) input(nets []spec.HostNetwork) Input {
	in := Input{Node: h.c.Node, Networks: nets, Underlay: h.underlay(), NoIPv6: h.noIPv6}
	h.mu.Lock()
	defer h.mu.Unlock()
	in.MTU, in.NoEgress = h.mtu, h.noEgress
	return in
}

// MTU returns, in bytes, how large the packets may be by which this host
// reaches others: the MTU of the device with the node's address, else of that
// of the default route; 0 is unknown.
func (h *Host) MTU() int {
	h.mu.Lock()
	mtu := h.mtu
	err := h.openLocked()
	k := h.kernel
	h.mu.Unlock()
	if mtu != 0 || err != nil {
		return mtu
	}
	// Before the first document nothing has looked.
	seen, err := k.observe(query{links: true, underlay: h.underlay().Addr().Unmap()})
	if err != nil {
		return 0
	}
	return h.c.bound(seen.mtu)
}

// MTUChanged says that what MTU returns may have changed. It is for one reader.
func (h *Host) MTUChanged() <-chan struct{} { return h.mtus }

// UnderlayChanged has the host look at once at what Config.Underlay returns now.
func (h *Host) UnderlayChanged() { signal(h.event) }

// bound is what the underlay carries, of what its device says; 0 is unknown.
func (c Config) bound(mtu int) int {
	if c.MTU > 0 && (mtu == 0 || mtu > c.MTU) {
		return c.MTU
	}
	return mtu
}

// Paths returns the ways to all other hosts of this host's networks that are
// held for alive, by node.
func (h *Host) Paths() []Path {
	h.mu.Lock()
	nets := h.documentsLocked()
	h.mu.Unlock()
	return h.input(nets).paths()
}

// Ports returns what became of the ports that are to be published, by network;
// known is false before the first look at what is wanted. The caller owns it.
func (h *Host) Ports() (ports []spec.PortStatus, known bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.status.Ports), h.status.Ports != nil
}

// PortsChanged says that what Ports returns has changed. It is for one reader.
func (h *Host) PortsChanged() <-chan struct{} { return h.ports }

// Run keeps the kernel as it is wanted until ctx ends. When it returns it
// leaves everything in place for the sandboxes that are attached, and nothing
// when there are none. It gives up the claimed ports.
func (h *Host) Run(ctx context.Context) error {
	h.mu.Lock()
	err := h.openLocked()
	k := h.kernel
	h.mu.Unlock()
	if err != nil {
		return fmt.Errorf("start network: %w", err)
	}
	defer k.close()
	defer h.walls.close()
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, 1)
	wg.Go(func() {
		if err := k.run(ctx, func() { signal(h.event) }); err != nil && ctx.Err() == nil {
			failed <- err
		}
	})
	tick := time.NewTicker(h.c.Resync)
	defer tick.Stop()
	full := true
	for {
		h.converge(full)
		h.removeDoomed()
		h.refreshDNS(ctx)
		if full {
			h.watchFirewalls()
		}
		select {
		case <-ctx.Done():
			h.clear()
			return nil
		case err := <-failed:
			return fmt.Errorf("run network: %w", err)
		case <-h.wake:
			full = false
		case <-tick.C:
			full = true
		case <-h.event:
			full = false
			select {
			case <-time.After(debounce):
			case <-ctx.Done():
			}
			select {
			case <-h.event: // the rest of the burst
			default:
			}
		}
	}
}

// clear removes all networks if no sandbox needs them: a host whose daemon has
// ended and on which nothing runs is as it was before.
func (h *Host) clear() {
	h.mu.Lock()
	idle := h.known && len(h.tasks) == 0
	h.mu.Unlock()
	if idle {
		h.Set(nil)
		h.converge(true)
		h.removeDoomed()
	}
}

// converge brings the kernel to what is wanted. With full, the namespaces of
// all tasks are looked into.
func (h *Host) converge(full bool) {
	h.passMu.Lock()
	defer h.passMu.Unlock()
	h.mu.Lock()
	repair := h.change == h.tried
	h.mu.Unlock()
	var flows []Op
	for range maxPasses {
		ops, failed := h.pass(full, repair, flows)
		if len(ops)-failed == 0 {
			return
		}
		full = false // what may have changed inside is looked at in any case
		// A packet may have been on its way between the map that sent it to an
		// old target and the entry that remembers it, so flows are forgotten
		// once more.
		flows = slices.DeleteFunc(ops, func(o Op) bool { _, ok := o.Object.(Flow); return !ok })
	}
}

// pass looks at the kernel once and does what is missing, and after that the
// operations in again. It returns what was missing, and how many operations
// of that failed. With repair, what is missing had been there before.
//
// The kernel is read before what is wanted, so that everything that was seen
// has its reason among what is wanted, and nothing is deleted by mistake that
// an Attach makes meanwhile. Tasks that an Attach touched are left to it.
func (h *Host) pass(full, repair bool, again []Op) (ops []Op, failed int) {
	h.mu.Lock()
	if !h.known {
		h.mu.Unlock()
		return nil, 0
	}
	k, change := h.kernel, h.change
	nets, unsaved := h.documentsLocked(), h.unsaved
	h.unsaved = false
	q := query{host: true, watch: true}
	gens, look, known := h.recallLocked(full)
	q.inside, q.programs = look, h.noEgress
	h.mu.Unlock()
	h.tryNets(change, nets)

	if unsaved {
		if err := saveNetworks(h.c.RunDir, nets); err != nil {
			h.log.Warn("cannot keep the documents of networks", "err", err)
		}
	}
	slices.Sort(q.inside)
	in := h.input(nets)
	q.underlay = in.underlay()
	refused := k.claim(Claims(in))
	q.sysctls, q.router6 = hostSysctls(Compile(in)), in.hasIPv6()
	select {
	case <-h.event: // what it announces, be it our own last change, is seen now
	default:
	}
	seen, err := k.observe(q)
	if !seen.host {
		h.finish(change, in, refused, []error{err})
		return nil, 0
	}
	problems := []error{err}
	seen.recall(known)

	h.mu.Lock()
	in.MTU, in.Router6, in.Parents, in.Refused = cmp.Or(h.c.bound(seen.mtu), h.mtu), seen.router6, seen.parents, map[Claim]bool{}
	if h.mtu != in.MTU {
		h.mtu = in.MTU
		signal(h.mtus)
	}
	for c := range refused {
		in.Refused[c] = true
	}
	var busy []spec.Sandbox
	for id, t := range h.tasks {
		if g, ok := gens[id]; ok && g == t.gen && !t.busy {
			in.Tasks = append(in.Tasks, t.Sandbox)
		} else {
			busy = append(busy, t.Sandbox)
		}
	}
	repair = repair && h.change == change
	h.mu.Unlock()

	want := Compile(in)
	problems = append(problems, in.problems()...)
	if seen.adrift && hasTunnels(want) {
		problems = append(problems, fmt.Errorf("no interface of this host has the address %s that the node advertises; its networks reach no other host until one has, or the node is started with --advertise", q.underlay))
	}
	hands := map[string]bool{}
	for _, s := range busy {
		for i := range s.Addresses {
			hands[vethName(h.c.Node, s.Task, i)] = true
		}
	}
	seen.state.dropLinks(func(l LinkID) bool { return l.NS == "" && hands[l.Name] })
	want.dropInside(func(t spec.TaskID) bool { return !seen.inside[t] })

	ops, flows := splitFlowOps(Diff(seen.state, want))
	errs := k.apply(ops)
	if len(flows)+len(again) > 0 {
		h.refreshDNS(context.Background()) // names do not wait until connections are forgotten, which may take long
	}
	errs = append(errs, k.apply(flows)...)
	ops = append(ops, flows...)
	h.remember(gens, want, ops, errs)
	problems = append(problems, k.apply(again)...)
	level, message := slog.LevelDebug, "changed the network"
	if repair {
		level, message = slog.LevelInfo, "repaired the network"
	}
	logged, repairs := 0, uint64(0)
	owed, off := map[string]bool{}, withoutIPv6(ops, errs)
	for i, o := range ops {
		if errs[i] != nil {
			failed++
			owed[o.String()] = true
			if l, six := ofIPv6(o); six && off[l] {
				continue
			}
			problems = append(problems, in.blame(o, errs[i])...)
			continue
		}
		if !h.owed[o.String()] {
			repairs++
		}
		if logged++; logged <= maxLogged {
			h.log.Log(context.Background(), level, message, "op", o)
		}
	}
	if logged > maxLogged {
		h.log.Log(context.Background(), level, message, "op", fmt.Sprintf("and %d more", logged-maxLogged))
	}
	h.mu.Lock()
	if repair {
		h.status.Repairs += repairs
	}
	h.tried, h.owed = change, owed
	h.mu.Unlock()
	h.finish(change, in, refused, problems)
	return ops, failed
}

// splitFlowOps tells apart what forgets connections.
func splitFlowOps(ops []Op) (changes, flows []Op) {
	for _, o := range ops {
		if _, ok := o.Object.(Flow); ok {
			flows = append(flows, o)
		} else {
			changes = append(changes, o)
		}
	}
	return changes, flows
}

func hasTunnels(s State) bool {
	for _, l := range s.Links {
		if l.Kind == kindVXLAN {
			return true
		}
	}
	return false
}

func hostSysctls(want State) []SysctlKey { return slices.Collect(maps.Keys(want.Sysctls)) }

// documentsLocked returns the documents by network ID.
func (h *Host) documentsLocked() []spec.HostNetwork {
	nets := slices.Collect(maps.Values(h.nets))
	slices.SortFunc(nets, func(a, b spec.HostNetwork) int { return strings.Compare(string(a.Network.ID), string(b.Network.ID)) })
	return nets
}

// finish records the outcome of a pass and logs what is new about it.
func (h *Host) finish(change uint64, in Input, refused map[Claim]error, problems []error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	st := &h.status
	st.Conflicts, st.Errors = nil, nil
	ports := []spec.PortStatus{}
	networks := in.networks()
	for _, d := range in.Networks {
		for _, p := range d.Ports {
			var why []string
			for _, r := range networks[d.Network.ID].refusals(p, refused) {
				why = append(why, r.err.Error())
				if !(p.Shared && errors.Is(r.err, errNoAddress)) {
					st.Conflicts = append(st.Conflicts, PortConflict{r.Claim, p.Owner, r.err.Error()})
				}
			}
			ports = append(ports, spec.PortStatus{HostIP: p.HostIP, Port: p.Port, Protocol: p.Protocol, Owner: p.Owner, Problem: strings.Join(why, "; ")})
		}
	}
	if st.Ports == nil || !slices.Equal(st.Ports, ports) {
		st.Ports = ports
		signal(h.ports)
	}
	of := map[spec.NetworkID]bool{} // networks with problems of their own
	whole := true                   // what else there was to do has been done
	for _, err := range problems {
		if err == nil {
			continue
		}
		if p := (networkProblem{}); errors.As(err, &p) {
			of[p.network] = true
		} else {
			whole = false
		}
		if !slices.Contains(st.Errors, err.Error()) {
			st.Errors = append(st.Errors, err.Error())
		}
	}
	if whole {
		h.broughtNets(change, in.Networks)
		st.Applied = map[spec.NetworkID]spec.Clock{}
		for _, n := range in.Networks {
			if !of[n.Network.ID] {
				st.Applied[n.Network.ID] = n.Clock
			}
		}
	}
	if len(st.Errors) == 0 {
		h.at = change
	}
	now := fmt.Sprint(st.Conflicts, st.Errors)
	if now == h.seen {
		return
	}
	h.seen = now
	for _, c := range st.Conflicts {
		h.log.Warn("a published port is not served", "service", c.Owner, "err", c.Reason)
	}
	for _, e := range st.Errors {
		h.log.Warn("the network is not as wanted; trying again", "err", e)
	}
}
