package overlay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"wherry.dev/spec"
)

// testDNS remembers what it was given, and fails while fail is set.
type testDNS struct {
	mu    sync.Mutex
	calls int
	last  dnsTables
	fail  error
}

func (d *testDNS) SetDNS(_ context.Context, r []spec.Resolver, t []spec.NameTable) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls++
	if d.fail == nil {
		d.last = dnsTables{r, t}
	}
	return d.fail
}

func (d *testDNS) set(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail = err
}

// bench is a Host over fakes.
type bench struct {
	*Host
	k      *fakeKernel
	spaces *fakeSpaces
	dns    *testDNS
}

func newBench(t *testing.T, dir string) *bench {
	t.Helper()
	b := &bench{k: &fakeKernel{st: NewState()}, spaces: &fakeSpaces{boxes: map[spec.TaskID]spec.Sandbox{}}, dns: &testDNS{}}
	b.reopen(dir)
	return b
}

// reopen is what a new process does over the same kernel.
func (b *bench) reopen(dir string) {
	c := Config{Node: testNode, RunDir: dir, DNS: b.dns, Resync: 3 * time.Second, Underlay: func() netip.AddrPort { return netip.MustParseAddrPort("192.0.2.1:4477") }}
	b.Host = newHost(c, slog.New(slog.DiscardHandler), b.spaces, func() (kernel, error) { return b.k, nil })
}

// run runs the Host inside a bubble until the returned function is called.
func (b *bench) run(t *testing.T) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- b.Run(ctx) }()
	synctest.Wait()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	}
}

func documents(index uint64) []spec.HostNetwork {
	nets := example().Networks
	for i := range nets {
		nets[i].Clock = spec.Clock{Incarnation: 1, Index: index}
		nets[i].Names = []spec.Name{{Name: "web", Addresses: []string{"10.9.1.2"}}}
		nets[i].NamedPorts = []spec.NamedPort{{Name: "http", Protocol: "tcp", Port: 80, Addresses: []string{"10.9.1.2"}}}
	}
	return nets
}

func bubble(t *testing.T, f func(t *testing.T, b *bench)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) { f(t, newBench(t, dir)) })
}

func TestHostWaitsForDocuments(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		b.k.st.Links[LinkID{Name: "wbr-1-1"}] = Link{Kind: kindBridge} // of an earlier process
		defer b.run(t)()
		time.Sleep(time.Minute)
		if ops := b.k.take(); len(ops) > 0 || b.dns.calls > 0 {
			t.Errorf("before the first document: %q, %d calls of the DNS", ops, b.dns.calls)
		}
		b.Set(nil)
		synctest.Wait()
		if got := b.k.take(); !slices.Equal(got, []string{"del link wbr-1-1"}) {
			t.Errorf("after an empty set: %q", got)
		}
	})
}

func TestHostIgnoresOldDocuments(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		defer b.run(t)()
		b.Set(documents(5))
		synctest.Wait()
		b.k.take()
		old := documents(4)
		old[0].Ports = nil
		b.Set(old)
		synctest.Wait()
		if ops := b.k.take(); len(ops) > 0 {
			t.Errorf("an old document did %q", ops)
		}
		b.Set(documents(6)) // the same with a later clock
		synctest.Wait()
		st := b.Status()
		if ops := b.k.take(); len(ops) > 0 || st.Applied["1-1"].Index != 6 || st.Repairs != 0 {
			t.Errorf("the same document did %q; status %+v", ops, st)
		}
	})
}

func TestHostAttach(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		defer b.run(t)()
		ctx := context.Background()
		box := example().Tasks[0]
		if _, err := b.Attach(ctx, box); spec.ErrorClass(err) != "unavailable" {
			t.Errorf("without a document: %v", err)
		}
		if _, err := b.Attach(ctx, spec.Sandbox{Task: "1-9", Addresses: []spec.Address{{Network: "1-1", IP: "x"}}}); err == nil {
			t.Error("a sandbox without an address was attached")
		}
		// The document and the task at the same time: Attach makes the bridge.
		b.Set(documents(1))
		path, err := b.Attach(ctx, box)
		if err != nil || path != "/run/netns/1-10" {
			t.Fatalf("attach: %q, %v", path, err)
		}
		want := dnsTables{
			resolvers: []spec.Resolver{{Task: "1-10", NetNS: path, Networks: []spec.NetworkID{"1-2", "1-1"}, Upstream: hostResolvers("/etc/resolv.conf")}},
			tables: []spec.NameTable{
				{Network: "1-1", Names: documents(1)[0].Names, Ports: documents(1)[0].NamedPorts},
				{Network: "1-2", Names: documents(1)[1].Names, Ports: documents(1)[1].NamedPorts},
			},
		}
		if diff := cmp.Diff(want, b.dns.last, cmp.AllowUnexported(dnsTables{})); diff != "" {
			t.Errorf("the DNS when Attach returned (-want +got):\n%s", diff)
		}
		if _, ok := b.k.st.Links[LinkID{"1-10", "eth1"}]; !ok {
			t.Errorf("no interface when Attach returned:\n%s", b.k.st)
		}
		synctest.Wait()
		b.k.take()
		// Attaching again, with another host over the same kernel, does nothing.
		if _, err := b.Attach(ctx, box); err != nil {
			t.Error(err)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if ops := b.k.take(); len(ops) > 0 {
			t.Errorf("once more: %q", ops)
		}
		// A withdrawn document takes nothing from a sandbox that exists.
		b.Set(nil)
		time.Sleep(10 * time.Second)
		if ops := b.k.take(); len(ops) > 0 {
			t.Errorf("withdrawn: %q", ops)
		}
		if err := b.Detach(ctx, "1-10"); err != nil {
			t.Error(err)
		}
		b.Set(nil)
		synctest.Wait()
		b.k.st.dropInside(func(spec.TaskID) bool { return true }) // which went with the namespace
		if len(b.k.st.Tables) > 0 || len(b.spaces.boxes) > 0 || len(b.dns.last.resolvers) > 0 || strings.Contains(b.k.st.String(), "w1-10") {
			t.Errorf("after Detach:\n%s\nboxes %v, resolvers %v", b.k.st, b.spaces.boxes, b.dns.last.resolvers)
		}
	})
}

func TestHostRestart(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, dir)
		stop := b.run(t)
		b.Set(documents(1))
		for _, s := range example().Tasks {
			if _, err := b.Attach(context.Background(), s); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		stop()
		b.k.take()
		before := b.k.st.String()

		b.dns = &testDNS{}
		b.reopen(dir)
		defer b.run(t)()
		if len(b.dns.last.resolvers) != 1 {
			t.Errorf("resolvers before any document: %v", b.dns.last.resolvers)
		}
		b.Set(nil) // a session's first word, before its documents
		synctest.Wait()
		b.Set(documents(2))
		synctest.Wait()
		for _, s := range example().Tasks {
			if _, err := b.Attach(context.Background(), s); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if ops := b.k.take(); len(ops) > 0 || b.Status().Repairs > 0 {
			t.Errorf("the new process did %q", ops)
		}
		if diff := cmp.Diff(before, b.k.st.String()); diff != "" {
			t.Errorf("state (-before +after):\n%s", diff)
		}
	})
}

func TestHostRepairs(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		defer b.run(t)()
		b.Set(documents(1))
		if _, err := b.Attach(context.Background(), example().Tasks[0]); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if n := b.Status().Repairs; n != 0 {
			t.Errorf("%d repairs of what was just made", n)
		}
		good := b.k.st.String()
		check := func(after time.Duration, what string) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			if diff := cmp.Diff(good, b.k.st.String()); diff != "" {
				t.Errorf("%s (-want +got):\n%s", what, diff)
			}
		}
		b.k.damage(func(s State) { delete(s.Addrs, Addr{LinkID{Name: "wbr-1-1"}, "10.9.1.1/24"}) }, true)
		check(50*time.Millisecond, "after an event")
		if n := b.Status().Repairs; n != 1 {
			t.Errorf("%d repairs, want 1", n)
		}
		b.k.damage(func(s State) { s.Sysctls[SysctlKey{Path: sysctlForward}] = "0" }, false)
		check(3*time.Second, "without an event")
		b.k.damage(func(s State) { delete(s.Routes, Route{LinkID{"1-10", "eth1"}, "0.0.0.0/0", "10.9.1.1", ""}) }, false)
		check(3*time.Second, "inside a namespace")
	})
}

func TestHostGoesOnAfterFailures(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		defer b.run(t)()
		b.k.fail = map[string]error{"add addr 10.9.1.1/24 dev wbr-1-1": errors.New("no luck")}
		b.Set(documents(1))
		synctest.Wait()
		st := b.Status()
		if diff := cmp.Diff([]string{"no luck"}, st.Errors); diff != "" || len(st.Applied) > 0 {
			t.Errorf("status %+v", st)
		}
		if _, ok := b.k.st.Addrs[Addr{LinkID{Name: "wbr-1-2"}, "10.9.2.1/24"}]; !ok {
			t.Error("the other network has to wait")
		}
		b.k.mu.Lock()
		b.k.fail = nil
		b.k.mu.Unlock()
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if st := b.Status(); len(st.Errors) > 0 || st.Applied["1-1"].Index != 1 || st.Repairs != 0 {
			t.Errorf("status %+v", st)
		}
	})
}

func TestHostPortConflict(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		if got, known := b.Ports(); known {
			t.Errorf("ports %+v before the first look", got)
		}
		defer b.run(t)()
		c := Claim{"tcp", "0.0.0.0", 8080}
		b.k.taken = map[Claim]error{c: spec.Conflictf("port 8080/tcp is in use by nginx (pid 7)")}
		b.Set(documents(1))
		box := example().Tasks[0]
		_, err := b.Attach(context.Background(), box)
		if spec.ErrorClass(err) != "conflict" || !strings.Contains(err.Error(), "nginx (pid 7)") {
			t.Errorf("attach: %v", err)
		}
		synctest.Wait()
		want := []PortConflict{{Claim: c, Owner: "shop/web", Reason: "port 8080/tcp is in use by nginx (pid 7)"}}
		if diff := cmp.Diff(want, b.Status().Conflicts); diff != "" {
			t.Errorf("conflicts (-want +got):\n%s", diff)
		}
		ports := func(problem string) {
			t.Helper()
			select {
			case <-b.PortsChanged():
			default:
				t.Error("nobody says that the ports have changed")
			}
			got, known := b.Ports()
			i := slices.IndexFunc(got, func(p spec.PortStatus) bool { return p.Port == 8080 && p.Protocol == "tcp" })
			if !known || i < 0 || got[i] != (spec.PortStatus{Port: 8080, Protocol: "tcp", Owner: "shop/web", Problem: problem}) {
				t.Errorf("ports %+v, want problem %q", got, problem)
			}
		}
		ports("port 8080/tcp is in use by nginx (pid 7)")
		if strings.Contains(b.k.st.String(), "tcp . 8080") {
			t.Errorf("the port was taken from its holder:\n%s", b.k.st)
		}
		b.k.mu.Lock()
		b.k.taken = nil
		b.k.mu.Unlock()
		if _, err := b.Attach(context.Background(), box); err != nil {
			t.Errorf("attach after the port is free: %v", err)
		}
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if st := b.Status(); len(st.Conflicts) > 0 || !strings.Contains(b.k.st.String(), "tcp . 8080") {
			t.Errorf("status %+v", st)
		}
		ports("")
		// What cannot be published is said, and not left out in silence.
		nets := documents(2)
		nets[0].Ports = append(nets[0].Ports, spec.PublishedPort{HostIP: "::1", Port: 99, Protocol: "tcp", Owner: "shop/web"})
		b.Set(nets)
		_, err = b.Attach(context.Background(), spec.Sandbox{Task: "1-44", Name: "shop.web.2"})
		if spec.ErrorClass(err) != "invalid" || !strings.Contains(err.Error(), "port 99/tcp") {
			t.Errorf("attach with an IPv6 port: %v", err)
		}
		// What no sandbox can have is refused.
		for _, s := range []spec.Sandbox{
			{Task: "1-45", Addresses: []spec.Address{{Network: "1-1", IP: "10.9.1.45/24", IP6: "10.9.1.45/24"}}},
			{Task: "1-45", Addresses: []spec.Address{{Network: "1-1", IP: "10.9.1.45/24", IP6: "fd00::45"}}},
			{Task: "1-45", Addresses: []spec.Address{{Network: "1-1", IP: "10.9.1.45/24", IP6: "fd00::45/64"}}, Sysctls: map[string]string{"net.ipv6.conf.all.disable_ipv6": "1"}},
		} {
			if _, err := b.Attach(context.Background(), s); spec.ErrorClass(err) != "invalid" {
				t.Errorf("attach of %+v: %v", s, err)
			}
		}
		// A task that runs is not touched by a port that is lost later.
		b.k.taken = map[Claim]error{c: errors.New("gone")}
		if _, err := b.Attach(context.Background(), box); err != nil {
			t.Errorf("attach of a sandbox that exists: %v", err)
		}
	})
}

func TestHostGateways(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		if got, err := b.Gateways("1-1"); spec.ErrorClass(err) != "unavailable" {
			t.Errorf("without a document: %v, %v", got, err)
		}
		nets := documents(1)
		nets[1].Network.Gateway, nets[1].Network.Subnet6, nets[1].Network.Gateway6 = "10.9.2.254", "fd00:9:2::/64", "fd00:9:2::ff"
		b.Set(nets)
		for id, want := range map[spec.NetworkID]string{"1-1": "[10.9.1.1]", "1-2": "[10.9.2.254 fd00:9:2::ff]"} {
			if got, err := b.Gateways(id); fmt.Sprint(got) != want || err != nil {
				t.Errorf("network %s: %v, %v; want %s", id, got, err, want)
			}
		}
	})
}

func TestHostDNSIsRetried(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		defer b.run(t)()
		b.dns.set(spec.Unavailablef("no keeper is running"))
		b.Set(documents(1))
		if _, err := b.Attach(context.Background(), example().Tasks[0]); spec.ErrorClass(err) != "unavailable" {
			t.Errorf("attach: %v", err)
		}
		synctest.Wait()
		b.dns.set(nil)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if len(b.dns.last.resolvers) != 1 || len(b.dns.last.tables) != 2 {
			t.Errorf("the DNS has %+v", b.dns.last)
		}
		calls := b.dns.calls
		time.Sleep(dnsRefresh / 2)
		if b.dns.calls != calls {
			t.Errorf("%d calls although nothing changed", b.dns.calls-calls)
		}
		nets := documents(2)
		nets[0].Names = nil
		b.Set(nets)
		synctest.Wait()
		if b.dns.calls != calls+1 {
			t.Errorf("%d calls after a change, want 1", b.dns.calls-calls)
		}
	})
}

// A resolver of a task that is on internal networks only asks nobody outside.
func TestHostInternalResolver(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		defer b.run(t)()
		b.Set(documents(1))
		for _, s := range []spec.Sandbox{
			{Task: "1-20", DNS: []string{"192.0.2.53"}, Addresses: []spec.Address{{Network: "1-1", IP: "10.9.1.20/24", MAC: "02:58:0a:09:01:14"}}},
			{Task: "1-21", DNS: []string{"192.0.2.53"}, Addresses: []spec.Address{{Network: "1-2", IP: "10.9.2.21/24", MAC: "02:58:0a:09:02:15"}}},
		} {
			if _, err := b.Attach(context.Background(), s); err != nil {
				t.Fatal(err)
			}
		}
		r := b.dns.last.resolvers
		if len(r) != 2 || !slices.Equal(r[0].Upstream, []string{"192.0.2.53"}) || r[0].Isolated || r[1].Upstream != nil || !r[1].Isolated {
			t.Errorf("resolvers %+v", r)
		}
	})
}

// The loop reads the kernel while tasks come and go: it never takes away what
// an Attach has just made, nor makes again what a Detach removes.
func TestHostRaces(t *testing.T) {
	bubble(t, func(t *testing.T, b *bench) {
		ctx := context.Background()
		defer b.run(t)()
		b.Set(documents(1))
		synctest.Wait()
		box, other := example().Tasks[0], spec.Sandbox{Task: "1-30", Addresses: []spec.Address{{Network: "1-1", IP: "10.9.1.30/24", MAC: "02:58:0a:09:01:1e"}}}
		if _, err := b.Attach(ctx, other); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		b.k.take()
		var once sync.Once
		b.k.mu.Lock()
		b.k.looking = func() {
			once.Do(func() {
				if _, err := b.Attach(ctx, box); err != nil {
					t.Error(err)
				}
				if err := b.Detach(ctx, "1-30"); err != nil {
					t.Error(err)
				}
			})
		}
		b.k.mu.Unlock()
		time.Sleep(3 * time.Second) // the loop looks
		synctest.Wait()
		var deleted, added []string
		for _, op := range b.k.take() {
			if strings.HasPrefix(op, "del link") {
				deleted = append(deleted, op)
			}
			if strings.HasPrefix(op, "add link w") {
				added = append(added, strings.Fields(op)[2])
			}
		}
		if !slices.Equal(deleted, []string{"del link w1-30-0"}) || !slices.Equal(added, []string{"w1-10-0", "w1-10-1"}) {
			t.Errorf("deleted %q, added %q", deleted, added)
		}
		if n := b.Status().Repairs; n != 0 {
			t.Errorf("%d repairs", n)
		}
	})
}

func TestNamespaceFolder(t *testing.T) {
	n := newNamespaces(t.TempDir())
	if boxes, err := n.load(); err != nil || len(boxes) > 0 {
		t.Errorf("no folder: %v, %v", boxes, err)
	}
	// What is left of a boot: files, but no namespaces.
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"1-1", "1-1.json", "1-2.json", "1-3", "1-4.tmp"} {
		if err := os.WriteFile(filepath.Join(n.dir, name), []byte(`{"task":"1-1"}`), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if boxes, err := n.load(); err != nil || len(boxes) > 0 {
		t.Errorf("after a boot: %v, %v", boxes, err)
	}
	if left, _ := os.ReadDir(n.dir); len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
	for _, bad := range []spec.TaskID{"", "..", "a/b", "x.json"} {
		if _, err := n.make(spec.Sandbox{Task: bad}); spec.ErrorClass(err) != "invalid" {
			t.Errorf("task %q: %v", bad, err)
		}
	}
}

func TestFindSocket(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 101 1 0
   1: 0100007F:1F91 0100007F:C350 06 00000000:00000000 03:00000000 00000000     0        0 0 3 0
   2: 010012C6:1F92 020012C6:C350 01 00000000:00000000 00:00000000 00000000     0        0 102 1 0
   3: 00000000:1F92 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 103 1 0
   5: 00000000000000000000000000000000:1F94 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 105 1 0
   6: 000000FD000000000000000001000000:1F95 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 106 1 0
   4: 0000000000000000FFFF00000100007F:1F93 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 104 1 0
`
	path := filepath.Join(t.TempDir(), "tcp")
	if err := os.WriteFile(path, []byte(table), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		ip    string
		port  uint16
		inode uint64
		found bool
	}{
		{"127.0.0.1", 8080, 101, true},
		{"0.0.0.0", 8080, 101, true},
		{"198.18.0.1", 8080, 0, false},
		{"127.0.0.1", 8081, 0, false}, // closed
		{"198.18.0.1", 8082, 103, true},
		{"127.0.0.1", 8083, 104, true},
		{"0.0.0.0", 8084, 105, true}, // it may take IPv4, too
		{"::", 8084, 105, true},
		{"fd00::1", 8084, 105, true},
		{"::", 8083, 0, false}, // of IPv4 in the dress of IPv6
		{"fd00::1", 8082, 0, false},
		{"fd00::1", 8085, 106, true},
		{"fd00::2", 8085, 0, false},
		{"::", 8085, 106, true},
		{"0.0.0.0", 8085, 0, false},
		{"0.0.0.0", 8086, 0, false},
	} {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		inode, found := findSocket(f, netip.MustParseAddr(tt.ip), tt.port)
		f.Close()
		if inode != tt.inode || found != tt.found {
			t.Errorf("%s:%d: %d, %v; want %d, %v", tt.ip, tt.port, inode, found, tt.inode, tt.found)
		}
	}
}

func TestHostResolvers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(path, []byte("# comment\nsearch example.org\nnameserver 127.0.0.53\nnameserver\tfd00::1 # second\noptions edns0\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := hostResolvers(path); !slices.Equal(got, []string{"127.0.0.53", "fd00::1"}) {
		t.Errorf("got %q", got)
	}
	if got := hostResolvers(path + ".none"); got != nil {
		t.Errorf("no file: %q", got)
	}
}
