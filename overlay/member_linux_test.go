//go:build e2e

package overlay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"wherry.dev/spec"
)

// A member is a host of several under test: a namespace, and in it a process
// of this program that runs a Host and does what it is told by its standard
// input, since much of a Host is bound to the namespace of its process.

// memberEnv holds the memberConfig of such a process.
const memberEnv = "WHERRY_TEST_MEMBER"

type memberConfig struct {
	Node     spec.NodeID
	RunDir   string
	Underlay netip.AddrPort
	Resync   time.Duration
	// NoEgress has the host take its kernel for one without an egress hook.
	NoEgress bool
}

// order is what a member is to do.
type order struct {
	Set      []spec.HostNetwork `json:",omitempty"`
	Attach   *spec.Sandbox      `json:",omitempty"`
	Detach   spec.TaskID        `json:",omitempty"`
	Converge bool               `json:",omitempty"`
	State    bool               `json:",omitempty"` // report it as text
	// Quit ends the member; with Clear it removes everything first.
	Quit, Clear bool `json:",omitempty"`
}

// report is how a member is after an order.
type report struct {
	Err    string
	Path   string // of the namespace that was attached
	Status Status
	Ops    []string // logged since the last report
	Text   string   // the whole state as the Host sees it
	CPU    time.Duration
	MTU    int
}

func runMember() int {
	var c memberConfig
	if err := json.Unmarshal([]byte(os.Getenv(memberEnv)), &c); err != nil {
		fmt.Fprintln(os.Stderr, "member:", err)
		return 1
	}
	log := &opLog{}
	h := New(Config{Node: c.Node, RunDir: c.RunDir, Resync: c.Resync, Logger: slog.New(log), Underlay: func() netip.AddrPort { return c.Underlay }})
	if open := h.openKernel; c.NoEgress {
		h.openKernel = func() (kernel, error) {
			k, err := open()
			h.noEgress = true
			return k, err
		}
	}
	mtu := h.MTU()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	in, out := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var o order
		if err := in.Decode(&o); err != nil {
			return 1 // the test is over
		}
		r := report{MTU: mtu}
		var err error
		switch {
		case o.Quit:
			if o.Clear {
				h.mu.Lock()
				for id := range h.tasks {
					o.Detach = id
					h.mu.Unlock()
					err = errors.Join(err, h.Detach(ctx, o.Detach))
					h.mu.Lock()
				}
				h.mu.Unlock()
			}
			cancel()
			err = errors.Join(err, <-done)
			if k, ok := h.kernel.(*linuxKernel); ok {
				err = errors.Join(err, k.deleteDoomed())
			}
		case o.Attach != nil:
			r.Path, err = h.Attach(ctx, *o.Attach)
		case o.Detach != "":
			err = h.Detach(ctx, o.Detach)
		case o.Set != nil:
			h.Set(o.Set)
		case o.Converge:
			h.converge(true)
		}
		if err != nil {
			r.Err = err.Error()
		}
		if o.State {
			r.Text = stateTextOf(h)
		}
		r.Status, r.Ops = h.Status(), log.take()
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err == nil {
			r.CPU = time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
		if err := out.Encode(r); err != nil || o.Quit {
			return 0
		}
	}
}

// member is the test's end of such a process.
type member struct {
	t *testing.T
	memberConfig
	number uint32
	ns     string
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	out    *json.Decoder
}

func (m *member) start() {
	m.t.Helper()
	env, err := json.Marshal(m.memberConfig)
	if err != nil {
		m.t.Fatal(err)
	}
	m.cmd = exec.Command("/proc/self/exe")
	m.cmd.Env = append(os.Environ(), memberEnv+"="+string(env))
	m.cmd.Stderr = os.Stderr
	m.stdin, _ = m.cmd.StdinPipe()
	stdout, _ := m.cmd.StdoutPipe()
	m.out = json.NewDecoder(stdout)
	if err := at(m.ns, m.cmd.Start); err != nil {
		m.t.Fatal(err)
	}
}

func (m *member) do(o order) report {
	m.t.Helper()
	r := m.try(o)
	if r.Err != "" {
		m.t.Fatalf("host %d: %s", m.number, r.Err)
	}
	return r
}

func (m *member) try(o order) report {
	m.t.Helper()
	var r report
	if err := json.NewEncoder(m.stdin).Encode(o); err != nil {
		m.t.Fatalf("host %d: %v", m.number, err)
	}
	if err := m.out.Decode(&r); err != nil {
		m.t.Fatalf("host %d: %v", m.number, err)
	}
	return r
}

func (m *member) quit(clear bool) report {
	m.t.Helper()
	if m.cmd == nil {
		return report{}
	}
	r := m.try(order{Quit: true, Clear: clear})
	m.stdin.Close()
	if err := m.cmd.Wait(); err != nil {
		m.t.Errorf("host %d: %v", m.number, err)
	}
	m.cmd = nil
	return r
}

func (m *member) sh(line string) string {
	m.t.Helper()
	out, err := exec.Command("nsenter", "--net="+m.ns, "sh", "-c", line).CombinedOutput()
	if err != nil {
		m.t.Fatalf("host %d: %s: %v\n%s", m.number, line, err, out)
	}
	return string(out)
}

func (m *member) kernelText() string {
	m.t.Helper()
	return m.sh(kernelCommand)
}

// fleet is several hosts at one switch, with a network and tasks on it.
type fleet struct {
	*world  // for its ways to connect and to wait
	members []*member
	spaces  *namespaces
	v6      bool
	clock   uint64
	network spec.Network
	tasks   []fleetTask
	mtu     int
	// edit changes the document of a host before it is handed over, in the words
	// of IPv4 where something else is spoken, see say.
	edit func(m *member, d *spec.HostNetwork)
}

type fleetTask struct {
	spec.Sandbox
	on *member
	ns string
}

func (t fleetTask) ip() string { ip, _, _ := strings.Cut(t.Addresses[0].IP, "/"); return ip }

func newFleet(t *testing.T, hosts int, v6 bool) *fleet {
	t.Helper()
	f := &fleet{world: &world{t: t}, spaces: newNamespaces(t.TempDir()), v6: v6,
		network: spec.Network{ID: "1-1", Subnet: "10.9.1.0/24", Gateway: "10.9.1.1", VNI: 4097, Spec: spec.NetworkSpec{Driver: spec.DriverOverlay}}}
	sh(t, "ip link add sw0 type bridge mcast_snooping 0; ip link set sw0 addrgenmode none; ip link set sw0 up")
	t.Cleanup(func() {
		for _, m := range f.members {
			m.quit(true)
			m.sh("ip link del up0")
			if err := f.spaces.remove(spec.TaskID(fmt.Sprintf("host-%d", m.number))); err != nil {
				t.Error(err)
			}
		}
		sh(t, "ip link del sw0")
	})
	for i := range hosts {
		m := f.join(uint32(i + 1))
		m.start()
		f.members = append(f.members, m)
	}
	return f
}

// oldKernels has all hosts take their kernels for ones without an egress hook.
var oldKernels bool

// join makes a namespace at the switch.
func (f *fleet) join(number uint32) *member {
	f.t.Helper()
	ns, err := f.spaces.make(spec.Sandbox{Task: spec.TaskID(fmt.Sprintf("host-%d", number))})
	if err != nil {
		f.t.Fatal(err)
	}
	addr, bits := netip.AddrFrom4([4]byte{198, 18, 0, byte(10 + number)}), 24
	if f.v6 {
		addr, bits = netip.MustParseAddr(fmt.Sprintf("fd00::%d", 10+number)), 64
	}
	m := &member{t: f.t, number: number, ns: ns, memberConfig: memberConfig{
		Node: spec.NodeID(fmt.Sprintf("%08xcafe", number)), RunDir: f.t.TempDir(), Underlay: netip.AddrPortFrom(addr, 4477), NoEgress: oldKernels}}
	port := fmt.Sprintf("sw%d", number)
	sh(f.t, fmt.Sprintf("ip link add %s type veth peer name up0 netns %s; ip link set %s addrgenmode none master sw0 up", port, ns, port))
	m.sh(fmt.Sprintf("ip link set lo up; ip link set up0 addrgenmode none; ip addr add %s/%d dev up0 %s; ip link set up0 up", addr, bits, map[bool]string{true: "nodad"}[f.v6]))
	m.sh(fmt.Sprintf("ip addr add 2001:db8::%x/64 dev up0 nodad; ip addr add fe80::%x/64 dev up0 nodad", 10+number, 10+number))
	sh(f.t, "ip link show dev "+port+"; ip link show dev sw0") // they carry packets now, see settle
	settle6(f.t, ns, "up0", fmt.Sprintf("2001:db8::%x", 10+number), fmt.Sprintf("fe80::%x", 10+number))
	return m
}

// settle6 waits until a link takes packets for its new IPv6 addresses, see
// settleAddrs: an answer that comes before is lost, and a second with it.
func settle6(t *testing.T, ns, link string, addrs ...string) {
	t.Helper()
	if err := at(ns, func() error {
		h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer h.Close()
		l, err := h.LinkByName(link)
		if err != nil {
			return err
		}
		var list []Addr
		for _, a := range addrs {
			list = append(list, Addr{LinkID{Name: link}, a + "/64"})
		}
		settleAddrs(list, func(LinkID) (*netlink.Handle, netlink.Link, error) { return h, l, nil })
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func (m *member) underlay() string { return m.Underlay.Addr().String() }

// task adds a task without attaching it.
func (f *fleet) task(on int, id spec.TaskID, ip string) *fleetTask {
	f.tasks = append(f.tasks, fleetTask{Sandbox: sandbox(id, "shop.web.1", "1-1="+ip+"/24"), on: f.members[on]})
	return &f.tasks[len(f.tasks)-1]
}

// documents are what the managers would say to a host.
func (f *fleet) documents(m *member) []spec.HostNetwork {
	d := spec.HostNetwork{Clock: spec.Clock{Incarnation: 1, Index: f.clock}, Network: f.network, HostNumber: m.number, MTU: f.mtu}
	for _, o := range f.members {
		if o != m {
			d.Hosts = append(d.Hosts, spec.NetworkHost{Node: o.Node, Number: o.number, Address: o.underlay()})
		}
	}
	for _, t := range f.tasks {
		a := t.Addresses[0]
		if t.on == m {
			d.Tasks = append(d.Tasks, spec.Endpoint{Task: t.Task, Name: t.Name, IP: a.IP, MAC: a.MAC})
		} else {
			d.Remote = append(d.Remote, spec.RemoteEndpoint{IP: t.ip(), MAC: a.MAC, Host: t.on.number})
		}
	}
	if f.edit != nil {
		f.edit(m, &d)
	}
	return []spec.HostNetwork{f.document(d)}
}

// set hands the documents to all hosts and waits until they are applied.
func (f *fleet) set() {
	f.t.Helper()
	f.clock++
	for _, m := range f.members {
		m.do(order{Set: f.documents(m)})
	}
	for _, m := range f.members {
		f.applied(m)
	}
}

func (f *fleet) applied(m *member) {
	f.t.Helper()
	f.within(10*time.Second, fmt.Sprintf("host %d applies the document", m.number), func() error {
		if st := m.do(order{}).Status; st.Applied[f.network.ID].Index != f.clock {
			return fmt.Errorf("applied %v, errors %q", st.Applied, st.Errors)
		}
		return nil
	})
}

// attachAll attaches all tasks.
func (f *fleet) attachAll() {
	f.t.Helper()
	for i := range f.tasks {
		t := &f.tasks[i]
		box := f.box(t.Sandbox)
		t.ns = t.on.do(order{Attach: &box}).Path
	}
}
